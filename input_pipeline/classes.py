"""Which of a network's classes each class of a data set is, by what both are called.

The first of these ways that fits all classes of the set is taken:

    wnid     ImageNet's identifiers, or the names that they stand for
    name     the same name; else the same but for case, Unicode form, and `_` or `-` for a space
    number   0 to K-1, or 1 to K, as numbers, for a network of K classes

The set may have only some of the network's classes. Places in a list are no meaning: what fits none
of these is refused, unless the order is insisted on.
"""

import dataclasses
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence

from input_pipeline.errors import DataError, nearest
from input_pipeline.image_files import imagenet_classes, imagenet_names

SHOWN = 5  # names of each side in a message


@dataclasses.dataclass(frozen=True)
class Matched:
    """labels: the network's label of each class of the set, in the set's order. how: one line."""

    labels: tuple[int, ...]
    how: str

    @property
    def key(self) -> str:
        """16 hexadecimal digits that tell one matching from another."""
        return hashlib.sha256(json.dumps(self.labels).encode()).hexdigest()[:16]


def match(
    where: str,
    found: Sequence[str],
    network: Sequence[str],
    *,
    on_disk: Sequence[str] = (),
    part: bool = False,
    in_order: bool = False,
    insist: str = "--classes-in-order",
) -> Matched:
    """The classes `found` of a set as a network's, whose names are in label order.

    where: what has these classes, for messages. on_disk: what they are called there, where that
    says more (wnids). part: numbered classes may be only some of the network's. in_order: class k
    is the network's class k, whatever both are called. insist: how a user asks for that. Raises
    DataError, which lists both sides and says what would do.
    """
    if in_order:
        return _in_order(where, found, network, insist)
    called = list(on_disk or found)
    # Unnamed classes of another number are most likely other classes.
    numbered = not part and len(found) != len(network) and _numbers(found) is not None
    ways = (
        _by_wnid(called, network),
        _by_name(imagenet_names(called), imagenet_names(network)),
        _by_name(found, network),
        _by_number(found, network),
    )
    for way in () if numbered else ways:
        if way is not None and len(set(way[0])) == len(found):
            labels, how = way
            return Matched(tuple(labels), f"{_count(found, network)} matched {how}")
    raise DataError(_refused(where, found, network, insist))


_Way = tuple[list[int], str] | None


def _in_order(where: str, found: Sequence[str], network: Sequence[str], insist: str) -> Matched:
    """Numbers are in the order of numbers, not of text."""
    if len(found) != len(network):
        raise DataError(
            f"{insist}: {where} has {len(found)} classes ({_shown(found)}) and the network "
            f"{len(network)} ({_shown(network)}); expected as many"
        )
    numbers, places = _numbers(found), list(range(len(found)))
    order = places if numbers is None else sorted(places, key=numbers.__getitem__)
    labels = [order.index(k) for k in places] if numbers is not None else places
    pairs = [f"{found[k]!r} for {network[label]!r}" for label, k in enumerate(order[:3])]
    more = ", ..." if len(found) > len(pairs) else ""
    return Matched(
        tuple(labels), f"{_count(found, network)} taken in order: {', '.join(pairs)}{more}"
    )


def _by_wnid(called: Sequence[str], network: Sequence[str]) -> _Way:
    wnids, names = imagenet_classes()
    theirs = wnids if tuple(network) == names else tuple(network)
    if not set(called) <= set(wnids) or not set(called) <= set(theirs):
        return None
    index = {wnid: k for k, wnid in enumerate(theirs)}
    return [index[wnid] for wnid in called], "by wnid"


def _by_name(found: Sequence[str], network: Sequence[str]) -> _Way:
    if list(found) == list(network):  # also of names that are there twice, as ImageNet's cranes
        return list(range(len(found))), "by name"
    exact, alike = _once(list(network)), _once([_spelled(name) for name in network])
    labels = []
    respelled = []
    for name in found:
        label = exact.get(name, alike.get(_spelled(name)))
        if label is None:
            return None
        labels.append(label)
        if network[label] != name:
            respelled.append(f"{name!r} for {network[label]!r}")
    more = ", ..." if len(respelled) > 2 else ""
    told = f", of them {len(respelled)} in another spelling: {', '.join(respelled[:2])}{more}"
    return labels, "by name" + (told if respelled else "")


def _once(names: list[str]) -> dict[str, int]:
    """Name -> its place, of the names that are there once: the others are ambiguous."""
    counts = Counter(names)
    return {name: k for k, name in enumerate(names) if counts[name] == 1}


def _spelled(name: str) -> str:
    """The same for all spellings of a name."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(text.replace("_", " ").replace("-", " ").split())


def _by_number(found: Sequence[str], network: Sequence[str]) -> _Way:
    """A network whose classes are numbers themselves has their values; others count from 0."""
    numbers, own, K = _numbers(found), _numbers(network), len(network)
    if numbers is None:
        return None
    given, from_0, from_1 = set(numbers), set(range(K)), set(range(1, K + 1))
    values = list(range(K)) if own is None else own
    # Some numbers alone do not say whether they count from 0 or 1: 0 does, and so does K.
    if given <= set(values) and (own is not None or 0 in given):
        shift = 0
    elif (
        set(values) == from_0
        and given <= from_1
        and (given == from_1 or (own is None and K in given))
    ):
        shift = 1
    elif set(values) == from_1 and given == from_0:
        shift = -1
    else:
        return None
    told = f", {_span(numbers)}"
    if shift:
        told = f", {_span([v + shift for v in values])} for {_span(values)}"
    return [values.index(value - shift) for value in numbers], "by number" + told


def _numbers(names: Sequence[str]) -> list[int] | None:
    """What the names are as numbers, if all are and no two are the same."""
    if not all(name.isascii() and name.isdecimal() and len(name) < 10 for name in names):
        return None
    numbers = [int(name) for name in names]
    return numbers if len(set(numbers)) == len(numbers) else None


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    if high - low + 1 == len(numbers) and low < high:
        return f"{low}..{high}"
    more = ", ..." if len(numbers) > SHOWN else ""
    return ", ".join(map(str, sorted(numbers)[:SHOWN])) + more


def _count(found: Sequence[str], network: Sequence[str]) -> str:
    of = "" if len(found) == len(network) else f" of {len(network)}"
    return f"{len(found)}{of} classes"


def _shown(names: Sequence[str]) -> str:
    """The first few names in their order, and how many others."""
    more = f" and {len(names) - SHOWN} others" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def _refused(where: str, found: Sequence[str], network: Sequence[str], insist: str) -> str:
    reason = "they are not called alike"
    alike = {_spelled(name) for name in network}
    odd = [name for name in found if _spelled(name) not in alike]
    if _numbers(found) is not None and _numbers(network) is None:
        last = len(network) - 1
        reason = f"numbers are 0..{last}, with 0, or 1..{last + 1}, with {last + 1}"
    elif odd:
        hint = nearest(" (is {!r} meant?)", odd[0], network)
        reason = f"the network has no class {odd[0]!r}{hint}"
    order = f", or insist on their order with {insist}" if len(found) == len(network) else ""
    return (
        f"{where} has {len(found)} classes ({_shown(found)}) and the network {len(network)} "
        f"({_shown(network)}), and they do not match: {reason}; call them what the network "
        f"does{order}"
    )

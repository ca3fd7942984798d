"""Matches the classes of a data set with those of a network, by their names.

The first of these ways that fits all classes of the set is taken:

    wnid     ImageNet's identifiers, or the names that they stand for
    name     the same name; else the same but for case, Unicode form, and `_` or `-` for a space
    number   0 to K-1, or 1 to K, as numbers, for a network of K classes

The set may have only some of the network's classes. Positions in a list mean nothing: a set that
fits none of these ways is refused, unless the user insists on the order.
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
    """The classes of a set as a network's."""

    labels: tuple[int, ...]  # the network's label of each class of the set, in the set's order
    how: str  # one line for people

    @property
    def key(self) -> str:
        """16 hexadecimal digits that tell one matching from another."""
        return hashlib.sha256(json.dumps(self.labels).encode()).hexdigest()[:16]


def match(
    where: str,
    classes: Sequence[str],
    network: Sequence[str],
    *,
    on_disk: Sequence[str] = (),
    part: bool = False,
    in_order: bool = False,
    insist: str = "--classes-in-order",
) -> Matched:
    """The `classes` of a set as a network's, whose names are in label order.

    where: the set, for messages. on_disk: the names of the classes there, if they say more (wnids).
    part: numbered classes may be only some of the network's. in_order: class k is the network's
    class k, whatever their names. insist: how a user asks for that. Raises DataError, which lists
    both sides and says what would work.
    """
    if in_order:
        return _in_order(where, classes, network, insist)
    folder_names = list(on_disk or classes)
    # Unnamed classes of another number are most likely other classes.
    other_numbers = not part and len(classes) != len(network) and _numbers(classes) is not None
    ways = (
        _by_wnid(folder_names, network),
        _by_name(imagenet_names(folder_names), imagenet_names(network)),
        _by_name(classes, network),
        _by_number(classes, network),
    )
    for way in () if other_numbers else ways:
        if way is not None and len(set(way[0])) == len(classes):
            labels, how = way
            return Matched(tuple(labels), f"{_count(classes, network)} matched {how}")
    raise DataError(_refusal(where, classes, network, insist))


_Way = tuple[list[int], str] | None


def _in_order(where: str, classes: Sequence[str], network: Sequence[str], insist: str) -> Matched:
    """Matches by order; names that are numbers are ordered as numbers, not as text."""
    if len(classes) != len(network):
        raise DataError(
            f"{insist}: {where} has {len(classes)} classes ({_some(classes)}) and the network "
            f"{len(network)} ({_some(network)}); expected as many"
        )
    numbers, indices = _numbers(classes), list(range(len(classes)))
    order = indices if numbers is None else sorted(indices, key=numbers.__getitem__)
    labels = [order.index(k) for k in indices] if numbers is not None else indices
    pairs = [f"{classes[k]!r} for {network[label]!r}" for label, k in enumerate(order[:3])]
    more = ", ..." if len(classes) > len(pairs) else ""
    return Matched(
        tuple(labels), f"{_count(classes, network)} taken in order: {', '.join(pairs)}{more}"
    )


def _by_wnid(folder_names: Sequence[str], network: Sequence[str]) -> _Way:
    wnids, names = imagenet_classes()
    network_wnids = wnids if tuple(network) == names else tuple(network)
    if not set(folder_names) <= set(wnids) or not set(folder_names) <= set(network_wnids):
        return None
    label_of = {wnid: k for k, wnid in enumerate(network_wnids)}
    return [label_of[wnid] for wnid in folder_names], "by wnid"


def _by_name(classes: Sequence[str], network: Sequence[str]) -> _Way:
    if list(classes) == list(network):  # also of names that are there twice, as ImageNet's cranes
        return list(range(len(classes))), "by name"
    label_of = _unambiguous(list(network))
    label_of_spelling = _unambiguous([_normal_form(name) for name in network])
    labels = []
    respelled = []
    for name in classes:
        label = label_of.get(name, label_of_spelling.get(_normal_form(name)))
        if label is None:
            return None
        labels.append(label)
        if network[label] != name:
            respelled.append(f"{name!r} for {network[label]!r}")
    more = ", ..." if len(respelled) > 2 else ""
    detail = f", of them {len(respelled)} in another spelling: {', '.join(respelled[:2])}{more}"
    return labels, "by name" + (detail if respelled else "")


def _unambiguous(names: list[str]) -> dict[str, int]:
    """Name -> index, of the names that occur once: the others are ambiguous."""
    counts = Counter(names)
    return {name: k for k, name in enumerate(names) if counts[name] == 1}


def _normal_form(name: str) -> str:
    """A normal form, which is the same for all spellings of a name."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(text.replace("_", " ").replace("-", " ").split())


def _by_number(classes: Sequence[str], network: Sequence[str]) -> _Way:
    """Matches numbers with a network's own numbers, or, if it has names, with 0 to K-1."""
    numbers, network_numbers, K = _numbers(classes), _numbers(network), len(network)
    if numbers is None:
        return None
    number_set, from_0, from_1 = set(numbers), set(range(K)), set(range(1, K + 1))
    values = list(range(K)) if network_numbers is None else network_numbers
    # Some numbers alone do not say whether they count from 0 or 1: 0 does, and so does K.
    if number_set <= set(values) and (network_numbers is not None or 0 in number_set):
        shift = 0
    elif (
        set(values) == from_0
        and number_set <= from_1
        and (number_set == from_1 or (network_numbers is None and K in number_set))
    ):
        shift = 1
    elif set(values) == from_1 and number_set == from_0:
        shift = -1
    else:
        return None
    detail = f", {_span(numbers)}"
    if shift:
        detail = f", {_span([v + shift for v in values])} for {_span(values)}"
    return [values.index(value - shift) for value in numbers], "by number" + detail


def _numbers(names: Sequence[str]) -> list[int] | None:
    """The names as numbers, if all are numbers and no two are equal."""
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


def _count(classes: Sequence[str], network: Sequence[str]) -> str:
    total = "" if len(classes) == len(network) else f" of {len(network)}"
    return f"{len(classes)}{total} classes"


def _some(names: Sequence[str]) -> str:
    """The first few names in their order, and how many others."""
    more = f" and {len(names) - SHOWN} others" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def _refusal(where: str, classes: Sequence[str], network: Sequence[str], insist: str) -> str:
    reason = "they are not called alike"
    spellings = {_normal_form(name) for name in network}
    unknown = [name for name in classes if _normal_form(name) not in spellings]
    if _numbers(classes) is not None and _numbers(network) is None:
        last = len(network) - 1
        reason = f"numbers are 0..{last}, with 0, or 1..{last + 1}, with {last + 1}"
    elif unknown:
        hint = nearest(" (is {!r} meant?)", unknown[0], network)
        reason = f"the network has no class {unknown[0]!r}{hint}"
    order = f", or insist on their order with {insist}" if len(classes) == len(network) else ""
    return (
        f"{where} has {len(classes)} classes ({_some(classes)}) and the network {len(network)} "
        f"({_some(network)}), and they do not match: {reason}; call them what the network "
        f"does{order}"
    )

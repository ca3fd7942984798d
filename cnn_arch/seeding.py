"""A trained network's values as the start of another, deeper one.

Copying (VGG, section 3.1): "we initialised the first four convolutional layers and the last three
fully-connected layers with the layers of net A (the intermediate layers were initialised
randomly)." A's second convolution is 64 -> 128 and B-E's is 64 -> 64, so the four are taken by
their place in the stages: conv1_1, conv2_1, conv3_1 and conv3_2 are copied to the layers of the
same names.

Growing (Net2Net, Chen et al. 2015, arXiv:1511.05641): all layers are copied and the new ones start
as the identity, so that the deeper network computes what the shallow one does. A new convolution
of VGG has a kernel of one in the middle, which ReLU leaves alone; in a new residual block the
scale and bias of the last batch normalisation are 0, so that the block is its shortcut.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from cnn_arch import registry
from cnn_arch.errors import ArchitectureError, unknown
from cnn_arch.family import Arrays, Growth
from cnn_arch.network import flat_state

Kind = Literal["copy", "grow"]
KINDS = ("copy", "grow")
Mapping = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class SeedReport:
    """What became of every parameter and running statistic of both networks."""

    shallow: str  # the architectures
    deep: str
    copied: list[tuple[str, str]]  # (name in the shallow net, name in the deep net)
    fresh: list[str]  # in the deep net, with their own initial values
    used: list[str]  # in the shallow net: copied
    left_over: list[str]  # in the shallow net: not copied
    # In the deep net, with values that make a new layer pass on what it gets.
    identity: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """A line each: what was copied, what is fresh or the identity, what was left over.

        'stage1/*' stands for all names of that network that start so.
        """
        deep = [new for _, new in self.copied] + self.fresh + self.identity
        shallow = self.used + self.left_over
        unchanged = [new for old, new in self.copied if old == new]
        renamed = [f"{old} -> {new}" for old, new in self.copied if old != new]
        lists: list[tuple[str, Sequence[object], list[str]]] = [
            (f"copied from {self.shallow}", self.copied, _shortened(unchanged, deep) + renamed),
            (f"fresh in {self.deep}", self.fresh, _shortened(self.fresh, deep)),
            (f"left over of {self.shallow}", self.left_over, _shortened(self.left_over, shallow)),
        ]
        if self.identity:
            shown = _shortened(self.identity, deep)
            lists.insert(2, (f"identity in {self.deep}", self.identity, shown))
        return "\n".join(
            f"{title} ({len(copies)}): {', '.join(shown) or 'nothing'}"
            for title, copies, shown in lists
        )


def _prefixes(name: str) -> list[str]:
    """'a/b/c' -> ['a/', 'a/b/']."""
    parts = name.split("/")
    return ["/".join(parts[:i]) + "/" for i in range(1, len(parts))]


def _shortened(names: Sequence[str], among: Sequence[str]) -> list[str]:
    """`names`, those under one prefix as one where they are all of `among` under it."""
    counts, totals = (Counter(p for name in of for p in _prefixes(name)) for of in (names, among))
    short = (
        next((f"{p}*" for p in _prefixes(name) if counts[p] == totals[p]), name) for name in names
    )
    return list(dict.fromkeys(short))


def seed(
    shallow: Arrays,
    shallow_name: str,
    deep: Arrays,
    deep_name: str,
    mapping: Mapping | None = None,
    *,
    kind: Kind = "copy",
    fresh: Collection[str] = (),
) -> tuple[Arrays, SeedReport]:
    """Puts values of a trained network into a deeper (or an equal) one.

    Args:
        shallow: trained parameters and running statistics by name, see `flat_state`.
        shallow_name: its architecture, such as 'vgg:A'.
        deep: initial values by name; what is not copied keeps these.
        deep_name: its architecture.
        mapping: of 'copy': pairs of patterns (old, new) that say what is copied. Both have the
            same number of '*', and what they match in the old name is put into the new one. Every
            pattern must match, every new name must exist, and no new value may be filled twice.
            Without it everything is copied between networks of the same architecture, the paper's
            layers between those of VGG, and other pairs are an error.
        kind: 'copy', or 'grow' where the deeper network shall compute the same function.
        fresh: names in the deep network that keep their initial values whatever the above says:
            the classifier's (`classifier`), where the classes differ.

    Returns: the deep network's values, and what was copied, fresh, used and left over.

    Raises ArchitectureError when a pattern matches nothing, a value is missing, two shapes differ
    (naming both), or growing is not known for this pair.
    """
    if kind not in KINDS:
        raise unknown("kind of seeding", kind, KINDS)
    if kind == "grow" and mapping is not None:
        raise ArchitectureError("Growing copies every layer; it takes no mapping.")
    growth = _growth(shallow_name, deep_name) if kind == "grow" else None
    if mapping is None:
        patterns = [("*", "*")] if growth else _known_mapping(shallow_name, deep_name)
        names = (*shallow, *deep)  # without layers that options leave out of both
        mapping = [
            pair for pair in patterns if any(n.startswith(pair[0].rstrip("*")) for n in names)
        ]
    copied = _copied(mapping, shallow, shallow_name, deep, deep_name, fresh)
    seeded = dict(deep)
    for name, source in copied.items():
        value = _enlarged(shallow[source], deep[name].shape) if growth else shallow[source]
        if value.shape != deep[name].shape:
            raise ArchitectureError(
                f"{source} of {shallow_name} has shape {value.shape}, but {name} of {deep_name} "
                f"has shape {deep[name].shape}."
            )
        seeded[name] = value
    added = [name for name in deep if name not in copied and name not in fresh]
    identity = growth.identity(added, deep, deep_name) if growth else {}
    used = set(copied.values())
    return {**seeded, **identity}, SeedReport(
        shallow=shallow_name,
        deep=deep_name,
        copied=[(copied[name], name) for name in deep if name in copied],
        fresh=[name for name in deep if name not in copied and name not in identity],
        used=[name for name in shallow if name in used],
        left_over=[name for name in shallow if name not in used],
        identity=[name for name in deep if name in identity],
    )


def _copied(
    mapping: Mapping,
    shallow: Arrays,
    shallow_name: str,
    deep: Arrays,
    deep_name: str,
    fresh: Collection[str],
) -> dict[str, str]:
    """Name in the deep network -> name in the shallow one. Raises ArchitectureError."""
    copied: dict[str, str] = {}
    for old_pattern, new_pattern in mapping:
        fixed = new_pattern.split("*")
        if old_pattern.count("*") != len(fixed) - 1:
            raise ArchitectureError(
                f"The patterns {old_pattern!r} and {new_pattern!r} differ in their number of '*'."
            )
        expression = re.compile("(.*)".join(map(re.escape, old_pattern.split("*"))))
        matches = [match for match in map(expression.fullmatch, shallow) if match]
        if not matches:
            raise ArchitectureError(
                f"{shallow_name} has no parameter that matches {old_pattern!r}."
            )
        for match in matches:
            parts = [*match.groups(), ""]  # what the stars stand for, and nothing after the last
            old, new = match[0], "".join(a + b for a, b in zip(fixed, parts, strict=True))
            if new in fresh:
                continue
            if new not in deep:
                raise ArchitectureError(
                    f"{deep_name} has no parameter {new}, which {old} of {shallow_name} "
                    f"should start."
                )
            if new in copied:
                raise ArchitectureError(
                    f"{new} of {deep_name} would be filled by both {copied[new]} and {old} of "
                    f"{shallow_name}."
                )
            copied[new] = old
    return copied


def classifier(name: str, **arguments: Any) -> set[str]:
    """Names of the values whose shape depends on the number of classes: the last layer's.

    arguments: those of `cnn_arch.create`, without `classes`. A network with auxiliary classifiers
    has several last layers. Raises ArchitectureError as `create` does.
    """
    two, three = (
        flat_state(nnx.state(registry.abstract(name, classes=classes, **arguments)))
        for classes in (2, 3)
    )
    return {key for key, value in two.items() if value.shape != three[key].shape}


def _known_mapping(shallow_name: str, deep_name: str) -> Mapping:
    if registry.full_name(shallow_name) == registry.full_name(deep_name):
        return [("*", "*")]
    (shallow, _), (deep, _) = registry.find(shallow_name), registry.find(deep_name)
    if shallow is not deep or not shallow.seeded:
        raise ArchitectureError(
            f"{shallow_name} cannot start {deep_name} by itself: which layers correspond is known "
            f"within {_within(lambda family: bool(family.seeded))} and for the same architecture "
            "only, so name them in a mapping of (old, new) patterns, or let the network grow."
        )
    return [(f"{layer}/*", f"{layer}/*") for layer in shallow.seeded]


def _within(can: Callable[[registry.Family], bool]) -> str:
    names = [family.name for family in registry.families().values() if can(family)]
    return ", ".join(names)


def _growth(shallow_name: str, deep_name: str) -> Growth:
    """How the family of both grows. Raises ArchitectureError unless it can, from this to that."""
    (shallow, old), (deep, new) = registry.find(shallow_name), registry.find(deep_name)
    growth = deep.growth
    if shallow is deep and growth and {old, new} <= set(growth.variants or (old, new)):
        return growth
    raise ArchitectureError(
        f"{shallow_name} cannot grow into {deep_name}: that is known within the families "
        f"{_within(lambda family: family.growth is not None)}"
        + (f", and there of {', '.join(growth.variants)}." if growth and growth.variants else ".")
    )


def _enlarged(kernel: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A convolution's kernel in the middle of a larger one that computes the same."""
    if kernel.ndim != 4 or kernel.shape[2:] != shape[2:] or kernel.shape[0] > shape[0]:
        return kernel
    edge = (shape[0] - kernel.shape[0]) // 2
    return jnp.pad(kernel, ((edge, edge), (edge, edge), (0, 0), (0, 0)))

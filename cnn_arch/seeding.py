"""A shallow network's parameters as the start of a deeper one (VGG, section 3.1).

"We initialised the first four convolutional layers and the last three fully-connected layers with
the layers of net A (the intermediate layers were initialised randomly)." A's second convolution
is 64 -> 128 and B-E's is 64 -> 64, so the four are taken by their place in the stages: conv1_1,
conv2_1, conv3_1 and conv3_2 are copied to the layers of the same names.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax

from cnn_arch import registry
from cnn_arch.errors import ArchitectureError

VGG_SEEDED = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")

Mapping = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class SeedReport:
    """What became of every parameter of both networks.

    Attributes:
        shallow, deep: names of the architectures.
        copied: (name in the shallow net, name in the deep net).
        fresh: names in the deep net that keep their own initial values.
        used: names in the shallow net that were copied.
        left_over: names in the shallow net that were not.
    """

    shallow: str
    deep: str
    copied: list[tuple[str, str]]
    fresh: list[str]
    used: list[str]
    left_over: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        """Three lines: what was copied, what is fresh, what was left over."""
        copied = [old if old == new else f"{old} -> {new}" for old, new in self.copied]
        lists = {
            f"copied from {self.shallow}": copied,
            f"fresh in {self.deep}": self.fresh,
            f"left over of {self.shallow}": self.left_over,
        }
        return "\n".join(
            f"{what} ({len(names)}): {', '.join(names) or 'nothing'}"
            for what, names in lists.items()
        )


def seed(
    shallow_params: dict[str, jax.Array],
    shallow_name: str,
    deep_params: dict[str, jax.Array],
    deep_name: str,
    mapping: Mapping | None = None,
) -> tuple[dict[str, jax.Array], SeedReport]:
    """Copies parameters of a shallow network into a deeper one.

    Args:
        shallow_params: trained parameters by name, see `flat_state`.
        shallow_name: its architecture, such as 'vgg:A'.
        deep_params: initial parameters by name; what is not copied keeps these values.
        deep_name: its architecture.
        mapping: pairs of patterns (old, new) that say what is copied. Both have the same number
            of '*', and what they match in the old name is put into the new one. Every pattern
            must match, every new name must exist, and no new parameter may be filled twice.
            Without it both networks must be VGG, and the paper's layers are copied.

    Returns: the deep network's parameters, and what was copied, fresh, used and left over.

    Raises ArchitectureError when a pattern matches nothing, a parameter is missing, or two shapes
    differ (naming both).
    """
    if mapping is None:
        mapping = _vgg_mapping(shallow_name, deep_name)
    copied: dict[str, str] = {}
    for old_pattern, new_pattern in mapping:
        for old, new in _pairs(old_pattern, new_pattern, shallow_params, shallow_name):
            if new not in deep_params:
                raise ArchitectureError(
                    f"{deep_name} has no parameter {new}, which {old} of {shallow_name} "
                    f"should start."
                )
            if new in copied:
                raise ArchitectureError(
                    f"{new} of {deep_name} would be filled by both {copied[new]} and {old} of "
                    f"{shallow_name}."
                )
            if shallow_params[old].shape != deep_params[new].shape:
                raise ArchitectureError(
                    f"{old} of {shallow_name} has shape {shallow_params[old].shape}, but {new} of "
                    f"{deep_name} has shape {deep_params[new].shape}."
                )
            copied[new] = old
    seeded = {
        name: shallow_params[copied[name]] if name in copied else value
        for name, value in deep_params.items()
    }
    used = set(copied.values())
    return seeded, SeedReport(
        shallow=shallow_name,
        deep=deep_name,
        copied=[(copied[name], name) for name in deep_params if name in copied],
        fresh=[name for name in deep_params if name not in copied],
        used=[name for name in shallow_params if name in used],
        left_over=[name for name in shallow_params if name not in used],
    )


def _vgg_mapping(shallow_name: str, deep_name: str) -> Mapping:
    for name in (shallow_name, deep_name):
        if registry.find(name)[0].name != "vgg":
            raise ArchitectureError(
                f"{shallow_name} cannot start {deep_name} by itself: which layers correspond is "
                f"known for VGG only, so name them in a mapping of (old, new) patterns."
            )
    return [(f"{layer}/*", f"{layer}/*") for layer in VGG_SEEDED]


def _pairs(
    old_pattern: str, new_pattern: str, params: dict[str, jax.Array], shallow_name: str
) -> list[tuple[str, str]]:
    """(old name, new name) for every parameter that the old pattern matches."""
    if old_pattern.count("*") != new_pattern.count("*"):
        raise ArchitectureError(
            f"The patterns {old_pattern!r} and {new_pattern!r} differ in their number of '*'."
        )
    pairs = []
    expression = re.compile("(.*)".join(map(re.escape, old_pattern.split("*"))))
    for old in params:
        match = expression.fullmatch(old)
        if match:
            parts = [*match.groups(), ""]  # what the stars stand for, and nothing after the last
            fixed = new_pattern.split("*")
            pairs.append((old, "".join(a + b for a, b in zip(fixed, parts, strict=True))))
    if not pairs:
        raise ArchitectureError(f"{shallow_name} has no parameter that matches {old_pattern!r}.")
    return pairs

"""Architectures by name: 'vgg:E' is variant E of family vgg, which the module `vgg` offers.

A family that is not one of this package's is looked for in a user's module (`user_modules`).
Whatever takes a name raises ArchitectureError where it is unknown.
"""

import unicodedata
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NamedTuple

import jax
from flax import nnx

from cnn_arch import alexnet, dan_net, googlenet, lenet, nin, resnet, user_modules, vgg
from cnn_arch.errors import ArchitectureError, unknown
from cnn_arch.family import Family, Inputs
from cnn_arch.network import Network


class Bounds(NamedTuple):
    """What a number may be: from `low` to `high`, these included unless told otherwise."""

    low: float
    high: float
    above: bool = False  # low itself is excluded
    below: bool = False  # high itself is excluded

    def hold(self, value: float) -> bool:
        """Whether `value` lies within; NaN does not."""
        low, high = self.low, self.high
        return (low < value if self.above else low <= value) and (
            value < high if self.below else value <= high
        )

    def __str__(self) -> str:
        low, high = (int(v) if v == int(v) else v for v in (self.low, self.high))
        return f"{'above' if self.above else 'at least'} {low} and " + (
            f"{'below' if self.below else 'at most'} {high}"
        )


# The numbers among the options. Of several networks one name means one thing.
RANGES = {
    "width": Bounds(2**-10, 64),
    "hidden": Bounds(0, 2**20),
    "dropout": Bounds(0, 1, below=True),
    "aux_dropout": Bounds(0, 1, below=True),
    "head_dropout": Bounds(0, 1, below=True),
    "bn_group_size": Bounds(0, 2**20),
    "padding": Bounds(0, 10),  # beyond it, a kernel of 11 pixels sees zeros only
    "positive_bias": Bounds(0, 100),
    "first_scale": Bounds(0, 1e4, above=True),
    "aux_weight": Bounds(0, 100, above=True),
    "rubbish": Bounds(0, 1e4, above=True),
}
WHOLE = ("hidden", "bn_group_size", "padding")
SIZES = {"image_size": 16384, "classes": 2**20, "channels": 4096}
_FAMILIES = {
    family.name: family
    for module in (lenet, dan_net, alexnet, nin, vgg, googlenet, resnet)
    for family in module.FAMILIES
}


def families() -> dict[str, Family]:
    """This package's families by name."""
    return dict(_FAMILIES)


def variants() -> list[str]:
    """All registered architectures: 'vgg:A', 'vgg:A-LRN', ..., 'cifar_plain:1202'."""
    return [
        f"{family.name}:{variant}" for family in _FAMILIES.values() for variant in family.variants
    ]


def find(name: str) -> tuple[Family, str]:
    """'vgg:E' -> (the family vgg, 'E'); the name of a family with a default variant means that.

    Raises ArchitectureError, with the nearest name, when there is no such architecture, and where
    a user's module is broken.
    """
    head, colon, variant = str(name).partition(":")
    family = _FAMILIES.get(head)
    if family is None and user_modules.can_be(head):
        module = user_modules.find(head)
        family = module and module.family
    if family is None:
        if colon and user_modules.can_be(head):
            raise _no_family(name, head)
        raise unknown("architecture", name, variants(), _meant(name))
    variant = variant or family.default
    if variant not in family.variants and not family.accepts(variant):
        names = [f"{head}:{other}" for other in family.variants]
        raise unknown("architecture", name, names, _meant(name))
    return family, variant


def _no_family(name: str, head: str) -> ArchitectureError:
    """The error for 'head:variant' where neither a family nor a user's module is called head."""
    # Less alike than this is a user's network whose module was not found.
    near = _meant(name) or next(iter(get_close_matches(name, variants(), n=1, cutoff=0.6)), "")
    hint = f" Did you mean {near!r}?" if near else ""
    return ArchitectureError(
        f"Unknown architecture {name!r}.{hint} There is no module {head!r} beside the study's "
        f"file or on PYTHONPATH, and no family of this name; there are {', '.join(_FAMILIES)}."
    )


def _meant(name: str) -> str:
    """The name that another spelling of it stands for, as `VGG:a` and `cifar_resnet:08` do, and
    those in full-width letters and digits; '' if it stands for none."""
    head, _, variant = unicodedata.normalize("NFKC", str(name)).replace(" ", "").partition(":")
    family, variant = _FAMILIES.get(head.casefold()), variant.lstrip("+").lstrip("0")
    if family is None:
        return ""
    matches = [other for other in family.variants if other.casefold() == variant.casefold()]
    if not matches and family.accepts(variant):
        matches = [variant]
    return f"{family.name}:{matches[0]}" if matches else ""


def full_name(name: str) -> str:
    """'googlenet' -> 'googlenet:paper'."""
    family, variant = find(name)
    return f"{family.name}:{variant}"


def origin(name: str) -> dict[str, str]:
    """Of a user's architecture `source`, a digest of its module's files, and their `folder`.

    {} of this package's.
    """
    family, _ = find(name)
    module = None if family.name in _FAMILIES else user_modules.find(family.name)
    return module.origin if module else {}


def check_source(name: str, source: str | None) -> None:
    """Raises ArchitectureError where an architecture's files are not those of this digest.

    source: None for an architecture of this package.
    """
    now = origin(name)
    if now.get("source") != source:
        raise ArchitectureError(
            f"source={source!r} is another version of {name}: its files in {now.get('folder')} "
            f"have the digest {now.get('source')!r}. Put back the files that this is the digest "
            "of, or train anew."
        )


def inputs(name: str) -> Inputs:
    """The paper's images and classes."""
    family, variant = find(name)
    return family.inputs(variant)


def depth(name: str, options: Mapping[str, Any] | None = None) -> int:
    """Weight layers, as the paper counts them; options: that differ from their defaults."""
    family, variant = find(name)
    return family.depth(variant) + family.more_depth({**family.options(variant), **(options or {})})


def options(name: str) -> dict[str, Any]:
    """The options `create` takes for this architecture, with their defaults."""
    family, variant = find(name)
    return family.options(variant)


def idle(name: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Those of all options of an architecture that change nothing beside the others, and what
    they would need."""
    family, variant = find(name)
    needs = {option: need for option, need in family.needs.items() if option in options}
    return {o: need.text for o, need in needs.items() if not need.is_met(variant, options)}


def create(
    name: str,
    *,
    image_size: int | None = None,
    classes: int | None = None,
    channels: int | None = None,
    rngs: nnx.Rngs,
    **options: Any,
) -> Network:
    """Builds an architecture with fresh weights, in train mode.

    Args:
        name: 'family:variant', see `variants`.
        image_size: height and width in pixels; the paper's by default.
        classes: number of classes; the paper's by default.
        channels: of the images; the paper's by default.
        rngs: its `params` stream draws the initial weights. They depend on its key only, not on
            devices, and are drawn on the host: not under jit or another trace.
        options: see `options`.

    Raises ArchitectureError for an unknown name or option, an image that is too small, or a
    value that cannot be.
    """
    family, variant = find(name)
    arguments = {"image_size": image_size, "classes": classes, "channels": channels}
    sizes: dict[str, int] = vars(family.inputs(variant)).copy()
    sizes |= {argument: size for argument, size in arguments.items() if size is not None}
    check(name, **sizes, **options)
    return family.build(variant, sizes, rngs, **options)


def check(name: str, **arguments: Any) -> None:
    """Raises ArchitectureError, as `create` does, for sizes and options that cannot be."""
    family, variant = find(name)
    defaults = family.options(variant)
    options = {key: value for key, value in arguments.items() if key not in SIZES}
    for argument, value in arguments.items():
        if argument in options and argument not in defaults:
            raise unknown(f"option of {name}:", argument, defaults)
        _check_number(argument, value)
    for option, need in idle(name, {**defaults, **options}).items():
        if options.get(option, defaults[option]) != defaults[option]:
            raise ArchitectureError(
                f"{option}={options[option]!r} changes nothing in {family.name}:{variant}: it "
                f"needs {need}. Leave it at {defaults[option]!r}."
            )
    minimum, size = family.minimum_image_size(variant), arguments.get("image_size")
    if size is not None and size < minimum:
        raise ArchitectureError(
            f"{name} needs images of at least {minimum}x{minimum} pixels, got {size}x{size}."
        )


def _check_number(argument: str, value: Any) -> None:
    """Raises ArchitectureError unless a size or an option is in its range, where it has one."""
    if argument in SIZES and value is not None:
        most = SIZES[argument]
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise ArchitectureError(
                f"{argument} must be a whole number from 1 to {most}, got {value!r}."
            )
    if argument in RANGES:
        bounds, is_whole = RANGES[argument], argument in WHOLE
        kind = int if is_whole else int | float
        if not isinstance(value, kind) or isinstance(value, bool) or not bounds.hold(value):
            raise ArchitectureError(
                f"{argument} must be a {'whole ' if is_whole else ''}number "
                f"{'' if bounds.above else 'of '}{bounds}, got {value!r}."
            )


class NoKeys:
    """In place of `nnx.Rngs` where a network is built, under a trace, for its shapes only."""

    def params(self) -> None:
        return None


def abstract(name: str, **arguments: Any) -> Network:
    """The network that `create` makes, in train mode, with shapes in place of arrays; a new one
    each time."""
    family, _ = find(name)
    traced = _traced if family.name in _FAMILIES else _traced.__wrapped__  # a user's may change
    return nnx.merge(*traced(name, **arguments), copy=True)


@lru_cache(maxsize=None, typed=True)
def _traced(name: str, **arguments: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """The parts of what `abstract` makes, traced once for all who ask for them."""
    graphs = []

    def state() -> nnx.State:
        graph, values = nnx.split(create(name, rngs=NoKeys(), **arguments))
        graphs.append(graph)
        return values

    shapes = jax.eval_shape(state)
    return graphs[0], shapes

"""Architectures by name: 'vgg:E' is variant E of family vgg, which the module `vgg` offers.

A family that is not one of this package's is looked for in a user's module (`user_modules`).
"""

import unicodedata
from collections.abc import Mapping
from typing import Any

from flax import nnx

from cnn_arch import alexnet, dan_net, googlenet, lenet, nin, resnet, user_modules, vgg
from cnn_arch.errors import ArchitectureError, unknown
from cnn_arch.family import Family, Inputs
from cnn_arch.network import Network

# Numbers among the options: lowest and highest value, and whether the lowest or the highest is
# excluded. Of several networks one name means one thing.
RANGES: dict[str, tuple[float, float, bool, bool]] = {
    "width": (2**-10, 64, False, False),
    "dropout": (0, 1, False, True),
    "aux_dropout": (0, 1, False, True),
    "head_dropout": (0, 1, False, True),
    "bn_group_size": (0, 2**20, False, False),
    "padding": (0, 10, False, False),  # beyond it, a kernel of 11 pixels sees zeros only
    "positive_bias": (0, 100, False, False),
    "aux_weight": (0, 100, True, False),
    "rubbish": (0, 1e4, True, False),
}
WHOLE = ("bn_group_size", "padding")
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
        family = user_modules.family(head)
    if family is None:
        error = unknown("architecture", name, variants(), _meant(name))
        if colon and user_modules.can_be(head):
            error.args = (f"{error} {user_modules.SEARCHED.format(head)}",)
        raise error
    variant = variant or family.default
    if variant not in family.variants and not family.accepts(variant):
        known = [f"{head}:{known}" for known in family.variants]
        raise unknown("architecture", name, known, _meant(name))
    return family, variant


def _meant(name: str) -> str:
    """The name that another spelling of it stands for, as `VGG:a` and `cifar_resnet:08` do, and
    those in full-width letters and digits; '' if it stands for none."""
    head, _, variant = unicodedata.normalize("NFKC", str(name)).replace(" ", "").partition(":")
    family, variant = _FAMILIES.get(head.casefold()), variant.lstrip("+").lstrip("0")
    if family is None:
        return ""
    same = [known for known in family.variants if known.casefold() == variant.casefold()]
    if not same and family.accepts(variant):
        same = [variant]
    return f"{family.name}:{same[0]}" if same else ""


def full_name(name: str) -> str:
    """'googlenet' -> 'googlenet:paper'. Raises ArchitectureError for an unknown name."""
    family, variant = find(name)
    return f"{family.name}:{variant}"


def origin(name: str) -> dict[str, str]:
    """Of a user's architecture `source`, a digest of its module's files, and their `folder`.

    {} of this package's.

    Raises ArchitectureError for an unknown name.
    """
    family, _ = find(name)
    return {} if family.name in _FAMILIES else user_modules.origin(family.name)


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
    """The paper's images and classes. Raises ArchitectureError for an unknown name."""
    family, variant = find(name)
    return family.inputs(variant)


def depth(name: str) -> int:
    """Weight layers, as the paper counts them. Raises ArchitectureError for an unknown name."""
    family, variant = find(name)
    return family.depth(variant)


def options(name: str) -> dict[str, Any]:
    """The options `create` takes for this architecture, with their defaults.

    Raises ArchitectureError for an unknown name.
    """
    family, variant = find(name)
    return family.options(variant)


def idle(name: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Those of all options of an architecture that change nothing beside the others, and what
    they would need.

    Raises ArchitectureError for an unknown name.
    """
    family, variant = find(name)
    needs = {option: need for option, need in family.needs.items() if option in options}
    return {o: need.told for o, need in needs.items() if not need.there(variant, options)}


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
    given = {"image_size": image_size, "classes": classes, "channels": channels}
    sizes: dict[str, int] = vars(family.inputs(variant)).copy()
    sizes |= {what: size for what, size in given.items() if size is not None}
    check(name, **sizes, **options)
    return family.build(variant, sizes, rngs=rngs, **options)


def check(
    name: str,
    *,
    image_size: int | None = None,
    classes: int | None = None,
    channels: int | None = None,
    **options: Any,
) -> None:
    """Raises ArchitectureError, as `create` does, for sizes and options that cannot be."""
    family, variant = find(name)
    for what, value in (("image_size", image_size), ("classes", classes), ("channels", channels)):
        _check_number(what, value)
    known = family.options(variant)
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of {name}:", option, known)
        _check_number(option, value)
    for option, need in idle(name, {**known, **options}).items():
        if options.get(option, known[option]) != known[option]:
            raise ArchitectureError(
                f"{option}={options[option]!r} changes nothing in {family.name}:{variant}: it "
                f"needs {need}. Leave it at {known[option]!r}."
            )
    minimum = family.minimum_image_size(variant)
    if image_size is not None and image_size < minimum:
        raise ArchitectureError(
            f"{name} needs images of at least {minimum}x{minimum} pixels, got "
            f"{image_size}x{image_size}."
        )


def _check_number(what: str, value: Any) -> None:
    """Raises ArchitectureError unless a size or an option is in its range, where it has one."""
    if what in SIZES and value is not None:
        most = SIZES[what]
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 1 <= value <= most:
            raise ArchitectureError(
                f"{what} must be a whole number from 1 to {most}, got {value!r}."
            )
    if what in RANGES:
        low, high, above, below = RANGES[what]
        kind = int if what in WHOLE else int | float
        within = isinstance(value, kind) and not isinstance(value, bool)
        within = within and (low < value if above else low <= value)
        within = within and (value < high if below else value <= high)
        if not within:
            raise ArchitectureError(
                f"{what} must be a {'whole ' if what in WHOLE else ''}number "
                f"{'above' if above else 'of at least'} {low:g} and "
                f"{'below' if below else 'at most'} {high:g}, got {value!r}."
            )


class NoKeys:
    """In place of `nnx.Rngs` where a network is built, under a trace, for its shapes only."""

    def params(self) -> None:
        return None


def abstract(
    name: str,
    *,
    image_size: int | None = None,
    classes: int | None = None,
    channels: int | None = None,
    **options: Any,
) -> Network:
    """The network that `create` makes, in train mode, with shapes in place of arrays."""
    return nnx.eval_shape(
        lambda: create(
            name,
            image_size=image_size,
            classes=classes,
            channels=channels,
            rngs=NoKeys(),
            **options,
        )
    )

"""Architectures by name: 'vgg:E' is variant E of family vgg."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from flax import nnx

from cnn_arch import resnet, vgg
from cnn_arch.errors import ArchitectureError, unknown
from cnn_arch.network import Network


@dataclass(frozen=True)
class Family:
    """The architectures of one paper.

    Attributes:
        name: as in 'name:variant'.
        variants: the registered ones.
        paper: where they are described.
        network: called with (variant, *, image_size, classes, channels, rngs, **options).
        depth: variant -> number of weight layers as the paper counts them.
        minimum_image_size: variant -> the smallest image it can be built for, in pixels.
        image_size, classes: the paper's.
        accepts: whether a variant that is not registered can be built too.
        fixed: arguments of the network that make it this family's.
    """

    name: str
    variants: tuple[str, ...]
    paper: str
    network: type[Network]
    depth: Callable[[str], int]
    minimum_image_size: Callable[[str], int]
    image_size: int
    classes: int
    accepts: Callable[[str], bool] = lambda variant: False
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Any]:
        """The options of this family's networks and their default values."""
        parameters = inspect.signature(self.network.__init__).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}


_CIFAR = partial(
    Family,
    variants=tuple(map(str, resnet.CIFAR_DEPTHS)),
    paper="arXiv:1512.03385, section 4.2",
    network=resnet.CifarNet,
    depth=int,
    minimum_image_size=resnet.minimum_cifar_image_size,
    image_size=32,
    classes=10,
    accepts=resnet.is_cifar_depth,
)
_VGG = Family(
    name="vgg",
    variants=tuple(vgg.CONFIGURATIONS),
    paper="arXiv:1409.1556, Table 1",
    network=vgg.VGG,
    depth=vgg.depth,
    minimum_image_size=vgg.minimum_image_size,
    image_size=224,
    classes=1000,
)
_FAMILIES = {
    family.name: family
    for family in (
        _VGG,
        _CIFAR(name="cifar_resnet", fixed={"residual": True}),
        _CIFAR(name="cifar_plain", fixed={"residual": False}),
    )
}


def families() -> dict[str, Family]:
    """All families by name."""
    return dict(_FAMILIES)


def variants() -> list[str]:
    """All registered architectures: 'vgg:A', 'vgg:A-LRN', ..., 'cifar_plain:1202'."""
    return [
        f"{family.name}:{variant}" for family in _FAMILIES.values() for variant in family.variants
    ]


def find(name: str) -> tuple[Family, str]:
    """'vgg:E' -> (the family vgg, 'E').

    Raises ArchitectureError, with the nearest name, when there is no such architecture.
    """
    head, _, variant = str(name).partition(":")
    family = _FAMILIES.get(head)
    if family is None:
        raise unknown("architecture", name, variants())
    if variant not in family.variants and not family.accepts(variant):
        raise unknown("architecture", name, [f"{head}:{known}" for known in family.variants])
    return family, variant


def depth(name: str) -> int:
    """Weight layers, as the paper counts them. Raises ArchitectureError for an unknown name."""
    family, variant = find(name)
    return family.depth(variant)


def options(name: str) -> dict[str, Any]:
    """The options `create` takes for this architecture, with their defaults.

    Raises ArchitectureError for an unknown name.
    """
    return find(name)[0].defaults


def create(
    name: str,
    *,
    image_size: int | None = None,
    classes: int | None = None,
    channels: int = 3,
    rngs: nnx.Rngs,
    **options: Any,
) -> Network:
    """Builds an architecture with fresh weights, in train mode.

    Args:
        name: 'family:variant', see `variants`.
        image_size: height and width in pixels; the paper's by default.
        classes: number of classes; the paper's by default.
        channels: of the images.
        rngs: its `params` stream draws the initial weights. They depend on its key only, not on
            devices, and are drawn on the host: not under jit or another trace.
        options: see `options`.

    Raises ArchitectureError for an unknown name or option, an image that is too small, or a
    value that cannot be.
    """
    family, variant = find(name)
    image_size = family.image_size if image_size is None else image_size
    classes = family.classes if classes is None else classes
    check(name, image_size=image_size, classes=classes, channels=channels, **options)
    return family.network(
        variant,
        image_size=image_size,
        classes=classes,
        channels=channels,
        rngs=rngs,
        **family.fixed,
        **options,
    )


def check(
    name: str,
    *,
    image_size: int | None = None,
    classes: int | None = None,
    channels: int = 3,
    **options: Any,
) -> None:
    """Raises ArchitectureError, as `create` does, for sizes and options that cannot be."""
    family, variant = find(name)
    image_size = family.image_size if image_size is None else image_size
    classes = family.classes if classes is None else classes
    for what, value in (("image_size", image_size), ("classes", classes), ("channels", channels)):
        if not isinstance(value, int) or value < 1:
            raise ArchitectureError(f"{what} must be a whole number of at least 1, got {value!r}.")
    for option in options:
        if option not in family.defaults:
            raise unknown(f"option of {name}:", option, family.defaults)
    minimum = family.minimum_image_size(variant)
    if image_size < minimum:
        raise ArchitectureError(
            f"{name} needs images of at least {minimum}x{minimum} pixels, got "
            f"{image_size}x{image_size}."
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
    channels: int = 3,
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

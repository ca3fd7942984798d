"""Architectures by name: 'vgg:E' is variant E of family vgg."""

import inspect
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from flax import nnx

from cnn_arch import alexnet, dan_net, googlenet, lenet, nin, resnet, vgg
from cnn_arch.errors import ArchitectureError, unknown
from cnn_arch.network import Network


@dataclass(frozen=True)
class Inputs:
    """A paper's square images, `image_size` pixels a side, and how many classes they have."""

    image_size: int = 224
    channels: int = 3
    classes: int = 1000


@dataclass(frozen=True)
class Need:
    """What an option needs in order to change the network.

    there: whether (variant, options) have it; told: what they must have.
    """

    there: Callable[[str, Mapping[str, Any]], bool]
    told: str


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
_NORMALISED = {
    "bn_group_size": Need(lambda v, o: bool(o.get("batch_norm", True)), "batch_norm=True")
}
_AUXILIARY = Need(lambda v, o: bool(o["auxiliary"]), "auxiliary=True")


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
        inputs: variant -> the paper's images and classes.
        accepts: whether a variant that is not registered can be built too.
        default: the variant that the family's bare name means.
        presets: variant -> the options whose defaults differ from the network's.
        fixed: arguments of the network that make it this family's.
        networks: variant -> its network where it is another one, with options of its own.
        needs: option -> what it needs in order to change anything.
    """

    name: str
    variants: tuple[str, ...]
    paper: str
    network: type[Network]
    depth: Callable[[str], int]
    minimum_image_size: Callable[[str], int]
    inputs: Callable[[str], Inputs] = lambda variant: Inputs()
    accepts: Callable[[str], bool] = lambda variant: False
    default: str = ""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    networks: Mapping[str, type[Network]] = field(default_factory=dict)
    needs: Mapping[str, Need] = field(default_factory=dict)

    def options(self, variant: str) -> dict[str, Any]:
        """The options of a variant's network and their default values."""
        network = self.networks.get(variant, self.network)
        parameters = inspect.signature(network.__init__).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        free = {name: value for name, value in defaults.items() if name not in self.fixed}
        return {**free, **self.presets.get(variant, {})}


_LENET5 = Family(
    name="lenet5",
    variants=("original", "modern"),
    paper="Proc. IEEE 86(11), 1998, section II-B",
    network=lenet.LeNet5,
    networks={"modern": lenet.ModernLeNet5},
    depth=lenet.depth,
    minimum_image_size=lenet.minimum_image_size,
    inputs=lambda variant: Inputs(32, 1, 10),
    default="original",
)
_DAN_NET = Family(
    name="dan_net",
    variants=dan_net.VARIANTS,
    paper="arXiv:1102.0183, section 4.3",
    network=dan_net.DanNet,
    depth=dan_net.depth,
    minimum_image_size=dan_net.minimum_image_size,
    inputs=lambda variant: Inputs(32, 3, 10),
)
_ALEXNET = Family(
    name="alexnet",
    variants=alexnet.VARIANTS,
    paper="NIPS 2012, section 3",
    network=alexnet.AlexNet,
    depth=alexnet.depth,
    minimum_image_size=alexnet.minimum_image_size,
    inputs=lambda variant: {"caffenet": Inputs(227), "cifar": Inputs(32, 3, 10)}.get(
        variant, Inputs()
    ),
    default="two_gpu",
    presets={
        "caffenet": {"lrn": "caffe", "padding": 0},
        "torchvision": {"lrn": "none", "positive_bias": 0.0, "init": "he"},
    },
    networks={"cifar": alexnet.CifarNet},
    needs=_NORMALISED,
)
_NIN = Family(
    name="nin",
    variants=tuple(nin.CONFIGURATIONS),
    paper="arXiv:1312.4400, section 3",
    network=nin.NIN,
    depth=nin.depth,
    minimum_image_size=nin.minimum_image_size,
    inputs=lambda variant: {
        "cifar100": Inputs(32, 3, 100),
        "mnist": Inputs(28, 1, 10),
    }.get(variant, Inputs(32, 3, 10)),
    needs={
        **_NORMALISED,
        "head_dropout": Need(lambda variant, options: options["head"] == "fc", "head=fc"),
    },
)
_VGG = Family(
    name="vgg",
    variants=tuple(vgg.CONFIGURATIONS),
    paper="arXiv:1409.1556, Table 1",
    network=vgg.VGG,
    depth=vgg.depth,
    minimum_image_size=vgg.minimum_image_size,
    needs={**_NORMALISED, "lrn": Need(lambda variant, options: variant == "A-LRN", "vgg:A-LRN")},
)
_GOOGLENET = Family(
    name="googlenet",
    variants=googlenet.VARIANTS,
    paper="CVPR 2015, Table 1",
    network=googlenet.GoogLeNet,
    depth=googlenet.depth,
    minimum_image_size=googlenet.minimum_image_size,
    default="paper",
    presets={"torchvision": {"lrn": "none", "batch_norm": True, "dropout": 0.2}},
    needs={**_NORMALISED, "aux_weight": _AUXILIARY, "aux_dropout": _AUXILIARY},
)
_RESNET = partial(
    Family,
    paper="arXiv:1512.03385, Table 1",
    network=resnet.ResNet,
    depth=int,
    minimum_image_size=resnet.minimum_image_size,
    needs={
        "stride_in": Need(
            lambda variant, options: variant in resnet.BOTTLENECKS,
            f"bottlenecks, which resnet:{', '.join(resnet.BOTTLENECKS)} have",
        )
    },
)
_CIFAR = partial(
    Family,
    variants=tuple(map(str, resnet.CIFAR_DEPTHS)),
    paper="arXiv:1512.03385, section 4.2",
    network=resnet.CifarNet,
    depth=int,
    minimum_image_size=resnet.minimum_cifar_image_size,
    inputs=lambda variant: Inputs(32, 3, 10),
    accepts=resnet.is_cifar_depth,
)
_PLAIN = {"residual": False, "shortcut": "A", "zero_gamma": False}  # no shortcuts, no options
_FAMILIES = {
    family.name: family
    for family in (
        _LENET5,
        _DAN_NET,
        _ALEXNET,
        _NIN,
        _VGG,
        _GOOGLENET,
        _RESNET(name="resnet", variants=tuple(resnet.BLOCKS), fixed={"residual": True}),
        _RESNET(name="plain", variants=("18", "34"), fixed=_PLAIN),
        _CIFAR(name="cifar_resnet", fixed={"residual": True}),
        _CIFAR(name="cifar_plain", fixed=_PLAIN),
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
    """'vgg:E' -> (the family vgg, 'E'); the name of a family with a default variant means that.

    Raises ArchitectureError, with the nearest name, when there is no such architecture.
    """
    head, _, variant = str(name).partition(":")
    family = _FAMILIES.get(head)
    if family is None:
        raise unknown("architecture", name, variants(), _meant(name))
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
    sizes = {"image_size": image_size, "classes": classes, "channels": channels}
    papers = vars(family.inputs(variant))
    sizes = {what: papers[what] if size is None else size for what, size in sizes.items()}
    check(name, **sizes, **options)
    return family.networks.get(variant, family.network)(
        variant,
        rngs=rngs,
        **sizes,
        **family.fixed,
        **{**family.presets.get(variant, {}), **options},
    )


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

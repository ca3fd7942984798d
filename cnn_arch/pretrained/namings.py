"""How the sources name the layers of their networks and order their channels.

A naming is data: for each family that a source has, pairs of layers by our path and by its name.
The names were looked up in the files that the functions below are called after.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cnn_arch.alexnet import ACTIVATIONS, AlexNet
from cnn_arch.errors import ArchitectureError
from cnn_arch.googlenet import INCEPTIONS, GoogLeNet
from cnn_arch.layers import ConvUnit, response_norm
from cnn_arch.resnet import Bottleneck, Bottleneck3x3, CifarNet, ResNet
from cnn_arch.vgg import VGG


@dataclass(frozen=True)
class Layer:
    """A layer by both names.

    Attributes:
        ours, theirs: path here, and name without the suffix of the tensor there.
        inputs, outputs: for each of our maps the index of theirs, where the order differs.
        convolution: whether a fully connected layer is a convolution over the whole map there.
    """

    ours: str
    theirs: str
    inputs: list[int] | None = None
    outputs: list[int] | None = None
    convolution: bool = False


@dataclass(frozen=True)
class Source:
    """How one naming has the networks of one family.

    Attributes:
        layers: network -> its layers, in the source's order.
        first, last: the first and the last layer's name there.
        spatial: name of the fully connected layer that sees a map, if there is one.
        variants: the family's that the source has; none listed: all.
        options: option -> its values that the source has. More than one: the tensors decide.
    """

    layers: Callable[[Any], list[Layer]]
    first: str
    last: str
    spatial: str = ""
    variants: tuple[str, ...] = ()
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


def _unit(
    ours: str,
    conv: str,
    norm: str,
    inputs: list[int] | None = None,
    outputs: list[int] | None = None,
) -> list[Layer]:
    """A `ConvUnit`; the network may be without its batch normalisation."""
    return [
        Layer(f"{ours}/conv", conv, inputs, outputs),
        Layer(f"{ours}/norm", norm, outputs=outputs),
    ]


def _torch_alexnet(network: Any) -> list[Layer]:
    """torchvision/models/alexnet.py: places in two sequences that count every ReLU and pooling."""
    convs = [Layer(f"conv{i}/conv", f"features.{n}") for i, n in enumerate((0, 3, 6, 8, 10), 1)]
    return convs + [Layer(f"fc{i}", f"classifier.{n}") for i, n in enumerate((1, 4, 6), 6)]


def _torch_vgg(network: Any, dense: tuple[str, str, str], convolution: bool) -> list[Layer]:
    """torchvision/models/vgg.py and timm/models/vgg.py: batch normalisation counts as a place."""
    layers, place = [], 0
    for stage, sizes in enumerate(network.kernel_sizes, start=1):
        for i in range(1, len(sizes) + 1):
            name = f"conv{stage}_{i}"
            layers += _unit(name, f"features.{place}", f"features.{place + 1}")
            place += 2 if getattr(network, name).norm is None else 3
        place += 1
    fc6, fc7, fc8 = dense
    layers += [Layer("fc6", fc6, convolution=convolution)]
    return [*layers, Layer("fc7", fc7, convolution=convolution), Layer("fc8", fc8)]


def _torch_resnet(network: Any, shortcut: str, last: str, padded: bool) -> list[Layer]:
    """torchvision/models/resnet.py; akamaster's resnet.py, whose shortcut A is padded around."""
    stages = {i: stage for i in range(1, 5) if (stage := getattr(network, f"stage{i}", None))}
    orders: dict[int, list[int] | None] = dict.fromkeys([0, *stages])
    if padded and network_options(network)["shortcut"] == "A":
        orders |= _padded_orders(network)
    layers = _unit("conv1", "conv1", "bn1")
    for s, stage in stages.items():
        for b in range(1, stage.blocks + 1):
            ours, theirs = f"stage{s}/block{b}", f"layer{s}.{b - 1}"
            convs = 3 if isinstance(getattr(stage, f"block{b}"), Bottleneck) else 2
            for i in range(1, convs + 1):
                before = orders[s - 1 if b == 1 else s] if i == 1 else None
                after = orders[s] if i == convs else None
                names = f"{ours}/conv{i}", f"{theirs}.conv{i}", f"{theirs}.bn{i}"
                layers += _unit(*names, before, after)
            layers += _unit(f"{ours}/shortcut", f"{theirs}.{shortcut}.0", f"{theirs}.{shortcut}.1")
    return [*layers, Layer("fc", last, inputs=orders[max(stages)])]


def _padded_orders(network: Any) -> dict[int, list[int] | None]:
    """Stage -> for each of our maps theirs, if each shortcut is padded with a quarter on each side.

    Here the maps of a shortcut come first and the zeros follow. Raises ArchitectureError for maps
    to which a quarter on each side does not add up.
    """
    orders: dict[int, list[int] | None] = {1: None}
    order: list[int] = list(range(network.stage1.block1.conv1.conv.kernel.shape[-1]))
    for s in (2, 3):
        maps = getattr(network, f"stage{s}").block1.conv1.conv.kernel.shape[-1]
        quarter = maps // 4
        if len(order) + 2 * quarter != maps:
            raise ArchitectureError(
                f"{network.name}: shortcut A from {len(order)} to {maps} maps cannot be named "
                f"'cifar', which adds a quarter of the maps on each side; take another width."
            )
        order = [quarter + place for place in order]
        order += sorted(set(range(maps)) - set(order))
        orders[s] = order
    return orders


def _torch_googlenet(network: Any) -> list[Layer]:
    """torchvision/models/googlenet.py."""
    branches = {
        "branch1": "branch1",
        "branch2_reduce": "branch2.0",
        "branch2": "branch2.1",
        "branch3_reduce": "branch3.0",
        "branch3": "branch3.1",
        "branch4": "branch4.1",
    }
    units = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"}
    for module in INCEPTIONS:
        for ours, theirs in branches.items():
            units[f"inception{module}/{ours}"] = f"inception{module}.{theirs}"
    layers = [x for ours, name in units.items() for x in _unit(ours, f"{name}.conv", f"{name}.bn")]
    for i in (1, 2) if network.auxiliary else ():
        layers += _unit(f"auxiliary{i}/conv", f"aux{i}.conv.conv", f"aux{i}.conv.bn")
        layers += [Layer(f"auxiliary{i}/{fc}", f"aux{i}.{fc}") for fc in ("fc1", "fc2")]
    return [*layers, Layer("fc", "fc")]


def _caffe_same(network: Any, convs: Iterable[str]) -> list[Layer]:
    """Networks whose layers have the same names here as in Caffe."""
    layers = [Layer(f"{name}/conv", name) for name in convs]
    return layers + [Layer(name, name) for name in ("fc6", "fc7", "fc8")]


def _caffe_vgg(network: Any) -> list[Layer]:
    """The authors' VGG_ILSVRC_16_layers_deploy.prototxt."""
    sizes = enumerate(network.kernel_sizes, start=1)
    return _caffe_same(
        network, [f"conv{s}_{i}" for s, all_ in sizes for i, _ in enumerate(all_, 1)]
    )


def _caffe_googlenet(network: Any) -> list[Layer]:
    """bvlc_googlenet/train_val.prototxt."""
    branches = {
        "branch1": "1x1",
        "branch2_reduce": "3x3_reduce",
        "branch2": "3x3",
        "branch3_reduce": "5x5_reduce",
        "branch3": "5x5",
        "branch4": "pool_proj",
    }
    names = {"conv1": "conv1/7x7_s2", "conv2_reduce": "conv2/3x3_reduce", "conv2": "conv2/3x3"}
    for module in INCEPTIONS:
        for ours, theirs in branches.items():
            names[f"inception{module}/{ours}"] = f"inception_{module}/{theirs}"
    layers = [Layer(f"{ours}/conv", theirs) for ours, theirs in names.items()]
    for i in (1, 2) if network.auxiliary else ():
        layers.append(Layer(f"auxiliary{i}/conv/conv", f"loss{i}/conv"))
        layers.append(Layer(f"auxiliary{i}/fc1", f"loss{i}/fc"))
        layers.append(Layer(f"auxiliary{i}/fc2", f"loss{i}/classifier"))
    return [*layers, Layer("fc", "loss3/classifier")]


def network_options(network: Any) -> dict[str, Any]:
    """The options that change what a network computes, as it was built."""
    if isinstance(network, AlexNet):
        names = {function: name for name, function in ACTIVATIONS.items()}
        return {
            "activation": names[network.activation],
            "overlapping": network.pool.size == 3,
            "without": network.without,
            "padding": network.conv1.conv.padding,
            "lrn": _lrn(network),
            "batch_norm": network.conv1.norm is not None,
        }
    if isinstance(network, VGG):
        return {"batch_norm": network.conv1_1.norm is not None}
    if isinstance(network, GoogLeNet):
        batch_norm, auxiliary = network.conv1.norm is not None, network.auxiliary
        return {"batch_norm": batch_norm, "lrn": _lrn(network), "auxiliary": auxiliary}
    if not isinstance(network, ResNet | CifarNet) or "plain" in network.name:
        return {}
    stages = [getattr(network, f"stage{i}") for i in range(1, 5) if hasattr(network, f"stage{i}")]
    blocks = [getattr(stage, f"block{i + 1}") for stage in stages for i in range(stage.blocks)]
    projections = sum(isinstance(block.shortcut, ConvUnit) for block in blocks)
    shortcut = "A" if not projections else "B" if projections < len(blocks) else "C"
    if not isinstance(blocks[0], Bottleneck):
        return {"shortcut": shortcut}
    stride_in = "3x3" if isinstance(blocks[0], Bottleneck3x3) else "1x1"
    return {"shortcut": shortcut, "stride_in": stride_in}


def _lrn(network: Any) -> str:
    """The convention of its local response normalisation."""
    if network.lrn is None:
        return "none"
    for convention in ("paper", "caffe", "cuda-convnet"):
        known = response_norm(convention)
        if known is not None and (known.k, known.alpha) == (network.lrn.k, network.lrn.alpha):
            return convention
    return f"k={network.lrn.k}, alpha={network.lrn.alpha}"


_ALEXNET = {"activation": ("relu",), "overlapping": (True,), "without": ("",)}
_EITHER = (False, True)
_FOUR = ("A", "B", "D", "E")
_RESIDUAL = {"stride_in": ("3x3",), "shortcut": ("B",)}

SOURCES: dict[tuple[str, str], Source] = {
    ("torchvision", "alexnet"): Source(
        _torch_alexnet,
        first="features.0",
        last="classifier.6",
        spatial="classifier.1",
        variants=("torchvision",),
        options={**_ALEXNET, "lrn": ("none",), "padding": (2,), "batch_norm": (False,)},
    ),
    ("torchvision", "vgg"): Source(
        partial(
            _torch_vgg,
            dense=("classifier.0", "classifier.3", "classifier.6"),
            convolution=False,
        ),
        first="features.0",
        last="classifier.6",
        spatial="classifier.0",
        variants=_FOUR,
        options={"batch_norm": _EITHER},
    ),
    ("torchvision", "resnet"): Source(
        partial(_torch_resnet, shortcut="downsample", last="fc", padded=False),
        first="conv1",
        last="fc",
        options=_RESIDUAL,
    ),
    ("torchvision", "googlenet"): Source(
        _torch_googlenet,
        first="conv1.conv",
        last="fc",
        variants=("torchvision",),
        options={"batch_norm": (True,), "lrn": ("none",), "auxiliary": _EITHER},
    ),
    ("timm", "vgg"): Source(
        partial(
            _torch_vgg, dense=("pre_logits.fc1", "pre_logits.fc2", "head.fc"), convolution=True
        ),
        first="features.0",
        last="head.fc",
        spatial="pre_logits.fc1",
        variants=_FOUR,
        options={"batch_norm": _EITHER},
    ),
    ("timm", "resnet"): Source(
        partial(_torch_resnet, shortcut="downsample", last="fc", padded=False),
        first="conv1",
        last="fc",
        options=_RESIDUAL,
    ),
    ("cifar", "cifar_resnet"): Source(
        partial(_torch_resnet, shortcut="shortcut", last="linear", padded=True),
        first="conv1",
        last="linear",
        options={"shortcut": ("A", "B")},
    ),
    ("caffe", "alexnet"): Source(
        partial(_caffe_same, convs=[f"conv{i}" for i in range(1, 6)]),
        first="conv1",
        last="fc8",
        spatial="fc6",
        variants=("caffenet", "two_gpu"),
        options={**_ALEXNET, "lrn": ("caffe",), "padding": (0,), "batch_norm": (False,)},
    ),
    ("caffe", "vgg"): Source(
        _caffe_vgg,
        first="conv1_1",
        last="fc8",
        spatial="fc6",
        variants=("A", "B", "C", "D", "E"),
        options={"batch_norm": (False,)},
    ),
    ("caffe", "googlenet"): Source(
        _caffe_googlenet,
        first="conv1/7x7_s2",
        last="loss3/classifier",
        variants=("paper",),
        options={"batch_norm": (False,), "lrn": ("caffe",), "auxiliary": _EITHER},
    ),
}

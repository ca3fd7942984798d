"""Residual and plain networks (He et al., arXiv:1512.03385).

Table 1, ImageNet: a 7x7 convolution with stride 2 to 64 maps, a 3x3 max-pool with stride 2, four
stages of blocks, global average pooling and one fully connected layer. A block is two 3x3
convolutions (18 and 34 layers) or a bottleneck of 1x1, 3x3 and 1x1 (50, 101 and 152 layers).

Section 4.2, CIFAR-10: a 3x3 convolution to 16 maps, then three stages of n blocks of two 3x3
convolutions with 16, 32 and 64 maps: 6n + 2 weight layers.

Batch normalisation after each convolution and before its ReLU; ReLU after the addition. Each stage
but the first halves the map in its first convolution. The plain networks are the same without
shortcuts.
"""

import itertools
import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from cnn_arch import layers
from cnn_arch.errors import ArchitectureError, choose, unknown
from cnn_arch.family import Arrays, Family, Growth, Inputs, Need
from cnn_arch.initial_weights import Init
from cnn_arch.kernels.barriers import relu
from cnn_arch.network import Composite, Network, Tape
from cnn_arch.published import Layer, Shape, Source, conv_unit, numbered

Shortcut = Literal["A", "B", "C"]
KerasName = Callable[[int, int, int], tuple[str, str]]
Stride = Literal["1x1", "3x3"]

MAPS = (64, 128, 256, 512)
# Blocks in the four stages: the columns of Table 1.
BLOCKS: dict[str, tuple[int, int, int, int]] = {
    "18": (2, 2, 2, 2),
    "34": (3, 4, 6, 3),
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
}
BOTTLENECKS = ("50", "101", "152")
CIFAR_MAPS = (16, 32, 64)
CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56, 110, 1202)
DEEPEST = 10_000


def is_cifar_depth(variant: str) -> bool:
    """Whether it is 6n + 2 for an n of at least 1, in plain digits, and at most DEEPEST."""
    if not re.fullmatch(r"[1-9][0-9]{0,4}", variant):
        return False
    return 8 <= int(variant) <= DEEPEST and int(variant) % 6 == 2


class Block(Composite):
    """A few convolutions, and around them a shortcut if the network is residual (Figure 2).

    Args:
        shortcut: where it is. A: the identity everywhere, subsampled and filled up with zeros
            where the maps change. B: there a 1x1 convolution instead. C: a 1x1 convolution in
            every block. None: nowhere.
        zero_gamma: the last batch normalisation starts with scale 0, so that a residual block
            starts as its shortcut (Goyal et al. 2017, section 5.1).
        unit: further arguments of `ConvUnit`.
    """

    expansion = 1  # maps out for each map of the stage

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        shortcut: Shortcut | None,
        zero_gamma: bool,
        **unit: Any,
    ) -> None:
        last = self.add_layers(inputs, outputs, stride, **unit)
        if zero_gamma and last.norm is not None:
            last.norm.scale.set_value(jnp.zeros_like(last.norm.scale.get_value()))
        changes = stride != 1 or inputs != outputs
        self.add = None if shortcut is None else layers.Add()
        way: layers.ConvUnit | layers.IdentityShortcut | None = None
        if shortcut == "C" or (shortcut == "B" and changes):
            way = layers.ConvUnit(inputs, outputs, 1, stride, activation=None, **unit)
        elif shortcut == "A" and changes:
            way = layers.IdentityShortcut(outputs, stride)
        self.shortcut = way

    def add_layers(self, inputs: int, outputs: int, stride: int, **unit: Any) -> layers.ConvUnit:
        """Makes the convolutions conv1, conv2, ...; returns the last."""
        raise NotImplementedError

    def __call__(self, tape: Tape, x: jax.Array) -> jax.Array:
        possible = (f"conv{i}" for i in itertools.count(1))
        *names, name = itertools.takewhile(partial(hasattr, self), possible)
        y, last = x, getattr(self, name)
        for earlier in names:
            y = tape(earlier, getattr(self, earlier), y)
        if self.add is not None and last.fuses(tape, y):
            x = x if self.shortcut is None else tape("shortcut", self.shortcut, x)
            return last.fused(y, x, rectified=True)
        y = tape(name, last, y)
        if self.shortcut is not None:
            x = tape("shortcut", self.shortcut, x)
        if self.add is not None:
            y = tape("add", self.add, y, x)
        return tape("relu", relu, y)


class BasicBlock(Block):
    """Two 3x3 convolutions (Figure 5, left)."""

    def add_layers(self, inputs: int, outputs: int, stride: int, **unit: Any) -> layers.ConvUnit:
        self.conv1 = layers.ConvUnit(inputs, outputs, 3, stride, **unit)
        self.conv2 = layers.ConvUnit(outputs, outputs, 3, activation=None, **unit)
        return self.conv2


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions, the last to four times the maps (Figure 5, right)."""

    stride_in: Stride = "1x1"
    expansion = 4

    def add_layers(self, inputs: int, outputs: int, stride: int, **unit: Any) -> layers.ConvUnit:
        maps = outputs // self.expansion
        first, second = (stride, 1) if self.stride_in == "1x1" else (1, stride)
        self.conv1 = layers.ConvUnit(inputs, maps, 1, first, **unit)
        self.conv2 = layers.ConvUnit(maps, maps, 3, second, **unit)
        self.conv3 = layers.ConvUnit(maps, outputs, 1, activation=None, **unit)
        return self.conv3


class Bottleneck3x3(Bottleneck):
    """A bottleneck with its stride in the 3x3 convolution (fb.resnet.torch, torchvision)."""

    stride_in = "3x3"


class Stage(Composite):
    """`blocks` blocks at one map size, named block1, block2, ...; the first has the stride."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        blocks: int,
        kind: type[Block],
        **block: Any,
    ) -> None:
        self.blocks = blocks
        for i in range(1, blocks + 1):
            setattr(self, f"block{i}", kind(inputs, outputs, stride, **block))
            inputs, stride = outputs, 1

    def __call__(self, tape: Tape, x: jax.Array) -> jax.Array:
        blocks = [(f"block{i}", getattr(self, f"block{i}")) for i in range(1, self.blocks + 1)]
        return tape.repeat(blocks[1:], tape.chain(blocks[:1], x))


class _Staged(Network):
    """A convolution, stages of blocks, global average pooling and a fully connected layer."""

    stem: ClassVar[tuple[str, ...]] = ("conv1",)

    def add_stages(
        self,
        maps: Sequence[int],
        blocks: Sequence[int],
        kind: type[Block],
        *,
        residual: bool,
        shortcut: Shortcut,
        **block: Any,
    ) -> int:
        """Stages of so many blocks, the first without a stride; returns the maps of the last.

        Raises ArchitectureError for another shortcut than A, B and C.
        """
        if shortcut not in get_args(Shortcut):
            raise unknown("shortcut", shortcut, get_args(Shortcut))
        block["shortcut"] = shortcut if residual else None
        inputs = maps[0]
        for i, (outputs, count) in enumerate(zip(maps, blocks, strict=True), start=1):
            outputs *= kind.expansion
            stage = Stage(inputs, outputs, 1 if i == 1 else 2, blocks=count, kind=kind, **block)
            setattr(self, f"stage{i}", stage)
            inputs = outputs
        self.stages = len(maps)
        return inputs

    def map_features(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        x = tape.chain([(name, getattr(self, name)) for name in self.stem], x)
        for i in range(1, self.stages + 1):
            x = tape(f"stage{i}", getattr(self, f"stage{i}"), x)
        return x

    def map_logits(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        return tape("fc", self.fc, tape("pool", self.pool, x))


class ResNet(_Staged):
    """A network of Table 1.

    Args:
        variant: the depth.
        residual: with shortcuts (resnet) or without (plain).
        width: multiplies the maps of every convolution.
        shortcut: A, B or C, see `Block`.
        stride_in: of a bottleneck: the first 1x1 convolution, as in the paper, or the 3x3, as is
            common practice (torchvision, timm): 6% more multiply-adds in 50 layers.
        zero_gamma: whether residual blocks start as their shortcuts, see `Block`.
        bn_group_size: examples that are normalised together; 0 for the whole batch.
        init: initial weights, see `initializer`; the paper's are 'he', here for the fully
            connected layer too, whose bias starts at zero.
        dtype: of the computation; parameters, statistics and logits are float32.
    """

    stem = ("conv1", "pool1")

    def __init__(
        self,
        variant: str,
        *,
        residual: bool,
        image_size: int,
        classes: int,
        channels: int,
        rngs: nnx.Rngs,
        width: float = 1.0,
        shortcut: Shortcut = "B",
        stride_in: Stride = "1x1",
        zero_gamma: bool = False,
        bn_group_size: int = 0,
        init: Init = "he",
        dtype: layers.Dtype = "float32",
    ) -> None:
        bottleneck = choose("stride_in", stride_in, {"1x1": Bottleneck, "3x3": Bottleneck3x3})
        kind = bottleneck if variant in BOTTLENECKS else BasicBlock
        weights = layers.weights(init, dtype, rngs, width)
        unit = {"group_size": bn_group_size, "use_bias": False, **weights}
        block = {"residual": residual, "shortcut": shortcut, "zero_gamma": zero_gamma, **unit}
        maps = [layers.scaled(n, width) for n in MAPS]
        self.conv1 = layers.ConvUnit(channels, maps[0], 7, 2, **unit)
        self.pool1 = layers.MaxPool(3, 2, padding=1)
        last = self.add_stages(maps, BLOCKS[variant], kind, **block)
        self.pool = layers.GlobalAveragePool()
        self.fc = layers.Dense(last, classes, **weights)


class CifarNet(_Staged):
    """A network of section 4.2.

    Args:
        variant: the depth, 6n + 2.
        residual: with shortcuts (cifar_resnet) or without (cifar_plain).
        width: multiplies the maps of every convolution.
        shortcut: A (the paper's), B or C, see `Block`.
        zero_gamma: whether residual blocks start as their shortcuts, see `Block`.
        bn_group_size: examples that are normalised together; 0 for the whole batch.
        init: initial weights, see `initializer`; the paper's are 'he', here for the fully
            connected layer too, whose bias starts at zero.
        dtype: of the computation; parameters, statistics and logits are float32.
    """

    def __init__(
        self,
        variant: str,
        *,
        residual: bool,
        image_size: int,
        classes: int,
        channels: int,
        rngs: nnx.Rngs,
        width: float = 1.0,
        shortcut: Shortcut = "A",
        zero_gamma: bool = False,
        bn_group_size: int = 0,
        init: Init = "he",
        dtype: layers.Dtype = "float32",
    ) -> None:
        maps, blocks = [layers.scaled(n, width) for n in CIFAR_MAPS], (int(variant) - 2) // 6
        weights = layers.weights(init, dtype, rngs, width)
        unit = {"group_size": bn_group_size, "use_bias": False, **weights}
        block = {"residual": residual, "shortcut": shortcut, "zero_gamma": zero_gamma, **unit}
        self.conv1 = layers.ConvUnit(channels, maps[0], 3, **unit)
        last = self.add_stages(maps, [blocks] * len(maps), BasicBlock, **block)
        self.pool = layers.GlobalAveragePool()
        self.fc = layers.Dense(last, classes, **weights)


def _identity(added: Collection[str], deep: Arrays, deep_name: str) -> Arrays:
    """New blocks that are their shortcut: the last normalisation's scale and bias are 0."""
    values: Arrays = {}
    blocks = {match[0] for match in map(re.compile(r"stage\d+/block\d+/").match, added) if match}
    for block in blocks:
        inside = [name for name in added if name.startswith(block)]
        if any("/shortcut/" in name for name in inside):
            raise ArchitectureError(
                f"{deep_name} with shortcuts of kind C cannot grow: the shortcut of the new block "
                f"{block.rstrip('/')} is not the identity."
            )
        norm = max(name.rpartition("/")[0] for name in inside if name.endswith("norm/scale"))
        for name in (f"{norm}/scale", f"{norm}/bias"):
            values[name] = jnp.zeros_like(deep[name])
    return values


def _torch_resnet(network: Any, shortcut: str, last: str, padded: bool) -> list[Layer]:
    """The resnet.py of torchvision, pytorch-cifar-models and akamaster, whose shortcut A is padded
    around."""
    stages = {i: getattr(network, f"stage{i}") for i in range(1, network.stages + 1)}
    orders: dict[int, list[int] | None] = dict.fromkeys([0, *stages])
    if padded and dict(network.options)["shortcut"] == "A":
        orders |= _padded_orders(network)
    pairs = conv_unit("conv1", "conv1", "bn1")
    for s, stage in stages.items():
        for b in range(1, stage.blocks + 1):
            ours, theirs = f"stage{s}/block{b}", f"layer{s}.{b - 1}"
            convs = 3 if isinstance(getattr(stage, f"block{b}"), Bottleneck) else 2
            for i in range(1, convs + 1):
                before = orders[s - 1 if b == 1 else s] if i == 1 else None
                after = orders[s] if i == convs else None
                names = f"{ours}/conv{i}", f"{theirs}.conv{i}", f"{theirs}.bn{i}"
                pairs += conv_unit(*names, before, after)
            pairs += conv_unit(
                f"{ours}/shortcut", f"{theirs}.{shortcut}.0", f"{theirs}.{shortcut}.1"
            )
    return [*pairs, Layer("fc", last, inputs=orders[max(stages)])]


def _huggingface(network: Any) -> list[Layer]:
    """transformers/models/resnet/modeling_resnet.py."""

    def unit(ours: str, theirs: str) -> list[Layer]:
        return conv_unit(ours, f"resnet.{theirs}.convolution", f"resnet.{theirs}.normalization")

    pairs = unit("conv1", "embedder.embedder")
    for s in range(1, network.stages + 1):
        stage = getattr(network, f"stage{s}")
        for b in range(1, stage.blocks + 1):
            ours, theirs = f"stage{s}/block{b}", f"encoder.stages.{s - 1}.layers.{b - 1}"
            pairs += unit(f"{ours}/shortcut", f"{theirs}.shortcut")
            convs = 3 if isinstance(getattr(stage, f"block{b}"), Bottleneck) else 2
            for i in range(1, convs + 1):
                pairs += unit(f"{ours}/conv{i}", f"{theirs}.layer.{i - 1}")
    return [*pairs, Layer("fc", "classifier.1")]


def _keras_resnet(
    network: Any, stem: tuple[str, str], last: str, unit: KerasName, shortcut: int
) -> list[Layer]:
    """In Keras's order, by the distance to the output: branches that join go on side by side.

    unit: (stage, block, convolution; 0 is the shortcut) -> its name and its normalisation's.
    shortcut: its place among the two branches that are added.
    """
    pairs = conv_unit("conv1", *stem)
    for s in range(1, network.stages + 1):
        for b in range(1, getattr(network, f"stage{s}").blocks + 1):
            block = f"stage{s}/block{b}"
            pairs += conv_unit(f"{block}/conv1", *unit(s, b, 1))
            pairs += conv_unit(f"{block}/conv2", *unit(s, b, 2))
            joined = [conv_unit(f"{block}/conv3", *unit(s, b, 3))]
            if b == 1:
                joined.insert(shortcut, conv_unit(f"{block}/shortcut", *unit(s, b, 0)))
            pairs += [layer for part in zip(*joined, strict=True) for layer in part]
    return [*pairs, Layer("fc", last)]


def _keras_name(stage: int, block: int, conv: int) -> tuple[str, str]:
    """keras/src/applications/resnet.py."""
    name = f"conv{stage + 1}_block{block}_{conv}"
    return f"{name}_conv", f"{name}_bn"


def _first_keras_name(stage: int, block: int, conv: int) -> tuple[str, str]:
    """resnet50.py of fchollet/deep-learning-models, and of keras_applications up to 1.0.8."""
    name = f"{stage + 1}{'abcdef'[block - 1]}_branch{('1', '2a', '2b', '2c')[conv]}"
    return f"res{name}", f"bn{name}"


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


_TORCHVISION_NAMES = partial(_torch_resnet, shortcut="downsample", last="fc", padded=False)
_RELEASED = Source(
    _TORCHVISION_NAMES,
    first="conv1",
    last="fc",
    options={"stride_in": ("3x3",), "shortcut": ("B",)},
)
_STRIDE_IN_1X1 = {"stride_in": ("1x1",), "shortcut": ("B",)}
_KERAS = Source(
    partial(
        _keras_resnet,
        stem=("conv1_conv", "conv1_bn"),
        last="predictions",
        unit=_keras_name,
        shortcut=0,
    ),
    first="conv1_conv",
    last="predictions",
    variants=BOTTLENECKS,
    options=_STRIDE_IN_1X1,
    epsilon=1.001e-5,
)
_FIRST_KERAS = Source(
    partial(
        _keras_resnet,
        stem=("conv1", "bn_conv1"),
        last="fc1000",
        unit=_first_keras_name,
        shortcut=1,
    ),
    first="conv1",
    last="fc1000",
    variants=("50",),
    options=_STRIDE_IN_1X1,
    epsilon=1e-3,  # by default in Keras
)
_RESNET = partial(
    Family,
    paper="arXiv:1512.03385, Table 1",
    network=ResNet,
    depth=int,
    minimum_image_size=lambda variant: 32,  # five halvings leave one pixel
    shape=Shape("conv1/conv", "fc", 64, 512, variants=dict.fromkeys(BOTTLENECKS, (64, 4 * 512))),
    needs={
        "stride_in": Need(
            lambda variant, options: variant in BOTTLENECKS,
            f"bottlenecks, which resnet:{', '.join(BOTTLENECKS)} have",
        )
    },
)
_CIFAR = partial(
    Family,
    variants=tuple(map(str, CIFAR_DEPTHS)),
    paper="arXiv:1512.03385, section 4.2",
    network=CifarNet,
    depth=int,
    minimum_image_size=lambda variant: 4,  # two halvings leave one pixel
    shape=Shape("conv1/conv", "fc", 16, 64),
    inputs=lambda variant: Inputs(32, 3, 10),
    accepts=is_cifar_depth,
)
_PLAIN = {"residual": False, "shortcut": "A", "zero_gamma": False}  # no shortcuts, no options
FAMILIES = (
    _RESNET(
        name="resnet",
        variants=tuple(BLOCKS),
        fixed={"residual": True},
        growth=Growth((), _identity),
        published={
            "torchvision": _RELEASED,
            "timm": _RELEASED,
            "huggingface": Source(
                _huggingface,
                first="resnet.embedder.embedder.convolution",
                last="classifier.1",
                options={"stride_in": ("3x3", "1x1"), "shortcut": ("B",)},
            ),
            "keras": _KERAS,
            "keras-numbered": numbered(_KERAS),
            "deep-learning-models": _FIRST_KERAS,
        },
    ),
    _RESNET(name="plain", variants=("18", "34"), fixed=_PLAIN),
    _CIFAR(
        name="cifar_resnet",
        fixed={"residual": True},
        growth=Growth((), _identity),
        published={
            "cifar": Source(
                partial(_torch_resnet, shortcut="shortcut", last="linear", padded=True),
                first="conv1",
                last="linear",
                options={"shortcut": ("A", "B")},
            ),
            "pytorch-cifar-models": Source(
                _TORCHVISION_NAMES, first="conv1", last="fc", options={"shortcut": ("B",)}
            ),
        },
    ),
    _CIFAR(name="cifar_plain", fixed=_PLAIN),
)

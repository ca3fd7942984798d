"""AlexNet (Krizhevsky, Sutskever & Hinton, NIPS 2012, section 3).

Five convolutions, the first 11x11 with stride 4, and three fully connected layers (Figure 2,
section 3.5). ReLU after every layer but the last (3.1), local response normalisation after the ReLU
of the first two convolutions (3.3), overlapping 3x3 max-pooling with stride 2 after both and after
the fifth (3.4), dropout of the hidden units of fc6 and fc7 (4.2).

two_gpu: the net of Figure 2. The second, fourth and fifth convolution see the maps of their own GPU
    only, which makes them convolutions in two groups.
one_gpu: its rival in section 3.2, without groups. Half the kernels in the first four convolutions;
    the fifth and the fully connected layers keep their size (the section's footnote).
six_conv: two_gpu with a sixth convolution over the last pooling layer (section 6.1). The paper
    prints nothing else about it; that it is 256 3x3 kernels in two groups, with the initial bias of
    the fifth, is an assumption.
caffenet: Caffe's CaffeNet: two_gpu with pooling before normalisation, images of 227 pixels and no
    padding.
torchvision: torchvision's net, from Krizhevsky's "One weird trick" (arXiv:1404.5997): one tower of
    64-192-384-256-256 maps, no normalisation, dropout before fc6 and fc7 instead of after.
cifar: the CIFAR-10 net of section 3.3, see `CifarNet`.

The paper's images are 224 pixels wide, and conv1 maps 55: that takes a padding of 2, or images of
227 pixels.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from cnn_arch import layers
from cnn_arch.errors import ArchitectureError, choose, unknown
from cnn_arch.family import NORMALISED, Family, Inputs
from cnn_arch.initial_weights import Init, Initializer
from cnn_arch.kernels.barriers import relu
from cnn_arch.network import Named, Network, Tape
from cnn_arch.published import Layer, Shape, Source, caffe_names, in_tensorflow
from cnn_arch.window import Window

ACTIVATIONS: dict[str, layers.Activation] = {"relu": relu, "tanh": nnx.tanh}


@dataclass(frozen=True)
class Convolution:
    """A convolution and what comes after it."""

    maps: int
    size: int
    stride: int = 1
    groups: int = 1
    pool: bool = False  # whether pooling follows
    lrn: bool = False  # whether normalisation follows too
    raised: bool = False  # whether its biases start at `positive_bias` (section 5), not at 0


@dataclass(frozen=True)
class Design:
    """A variant."""

    layers: tuple[Convolution, ...]
    towers: int = 1  # GPUs that share each layer's maps
    pool_first: bool = False  # before normalisation
    dropout_first: bool = False  # before the hidden fully connected layers, not after


def _five(maps: tuple[int, int, int, int, int], groups: int = 1) -> tuple[Convolution, ...]:
    """The five convolutions of section 3.5; `groups` is 2 where they are spread over two GPUs."""
    return (
        Convolution(maps[0], 11, stride=4, pool=True, lrn=True),
        Convolution(maps[1], 5, groups=groups, pool=True, lrn=True, raised=True),
        Convolution(maps[2], 3),
        Convolution(maps[3], 3, groups=groups, raised=True),
        Convolution(maps[4], 3, groups=groups, pool=True, raised=True),
    )


_TWO_GPU = _five((96, 256, 384, 384, 256), groups=2)
DESIGNS = {
    "two_gpu": Design(_TWO_GPU, towers=2),
    "one_gpu": Design(_five((48, 128, 192, 192, 256))),
    "six_conv": Design((*_TWO_GPU, Convolution(256, 3, groups=2, raised=True)), towers=2),
    "caffenet": Design(_TWO_GPU, towers=2, pool_first=True),
    "torchvision": Design(_five((64, 192, 384, 256, 256)), dropout_first=True),
}
HIDDEN = 4096
VARIANTS = (*DESIGNS, "cifar")


class AlexNet(Network):
    """A network for ImageNet: the paper's or one of its relatives.

    Args:
        variant: one of DESIGNS.
        activation: 'relu', or 'tanh' (Figure 1); not of the last layer.
        lrn: convention of local response normalisation, see `layers.response_norm`.
        overlapping: 3x3 pooling windows with stride 2; otherwise 2x2, whose maps are of the same
            size (section 3.4).
        without: a convolution to leave out, such as 'conv3' (section 7): any but the first.
            Normalisation and pooling after it stay.
        padding: zeros around the image for conv1, in pixels.
        positive_bias: what biases start at in conv2, conv4, conv5 and the hidden fully connected
            layers (section 5); others start at 0. Caffe's copy of two_gpu had to take 0.1.
        width: multiplies the maps of every convolution, on each GPU, and the hidden units.
        dropout: probability of dropping a hidden unit.
        inverted_dropout: training divides the kept units by 1 - dropout, as in Caffe and
            torchvision. Otherwise testing multiplies all units by 1 - dropout (section 4.2).
        batch_norm: batch normalisation between each convolution and its activation; not in the
            paper.
        bn_group_size: examples that are normalised together; 0 for the whole batch.
        init: initial weights, see `initializer`; 'gaussian' is section 5's.
        dtype: of the computation; parameters and logits are float32.
    """

    def __init__(
        self,
        variant: str,
        *,
        image_size: int,
        classes: int,
        channels: int,
        rngs: nnx.Rngs,
        activation: Literal["relu", "tanh"] = "relu",
        lrn: layers.LRN = "paper",
        overlapping: bool = True,
        without: str = "",
        padding: int = 2,
        positive_bias: float = 1.0,
        width: float = 1.0,
        dropout: float = 0.5,
        inverted_dropout: bool = False,
        batch_norm: bool = False,
        bn_group_size: int = 0,
        init: Init = "gaussian",
        dtype: layers.Dtype = "float32",
    ) -> None:
        self.design, self.without = DESIGNS[variant], without
        removable = [name for name, _ in self._convolutions()][1:]
        if without and without not in removable:
            raise unknown("middle layer", without, removable)
        self.activation = choose("activation", activation, ACTIVATIONS)
        self.lrn = layers.response_norm(lrn)
        self.pool = layers.MaxPool(3 if overlapping else 2, 2)
        self.dropout = layers.dropout(dropout, inverted=inverted_dropout)
        weights = layers.weights(init, dtype, rngs, width)
        unit = {
            "activation": self.activation,
            "group_size": bn_group_size if batch_norm else None,
            "use_bias": True,
            **weights,
        }
        side, inputs, towers = image_size, channels, self.design.towers
        for name, layer in self._convolutions():
            if name != without:
                border = padding if name == "conv1" else layer.size // 2
                conv = {
                    "padding": border,
                    "groups": layer.groups,
                    "bias": positive_bias if layer.raised else 0.0,
                    **unit,
                }
                outputs = towers * layers.scaled(layer.maps // towers, width)
                setattr(
                    self, name, layers.ConvUnit(inputs, outputs, layer.size, layer.stride, **conv)
                )
                side, inputs = Window(layer.size, layer.stride, border).outputs(side), outputs
            if layer.pool:
                side = self.pool.window((side,)).outputs(side)
        first, second, last = self._fully_connected()
        hidden = layers.scaled(HIDDEN, width)
        setattr(
            self, first, layers.Dense((side, side, inputs), hidden, bias=positive_bias, **weights)
        )
        setattr(self, second, layers.Dense(hidden, hidden, bias=positive_bias, **weights))
        setattr(self, last, layers.Dense(hidden, classes, **weights))

    def _convolutions(self) -> list[tuple[str, Convolution]]:
        """All of the design, by name and in order, one left out included."""
        return [(f"conv{i}", layer) for i, layer in enumerate(self.design.layers, start=1)]

    def _fully_connected(self) -> list[str]:
        """Their names: 'fc6', 'fc7' and 'fc8' after five convolutions."""
        return [f"fc{len(self.design.layers) + i}" for i in (1, 2, 3)]

    def map_features(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        stage: list[Named] = []  # up to the next pooling
        for i, (name, layer) in enumerate(self._convolutions(), start=1):
            if name != self.without:
                stage.append((name, getattr(self, name)))
            if layer.pool:
                after: list[Named] = [(f"pool{i}", self.pool)]
                if layer.lrn and self.lrn is not None:
                    after.insert(1 if self.design.pool_first else 0, (f"lrn{i}", self.lrn))
                x, stage = tape.chain([*stage, *after], x), []
        return tape.chain(stage, x)

    def map_logits(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        *hidden, last = self._fully_connected()
        for name in hidden:
            number = name.removeprefix("fc")
            if self.design.dropout_first:
                x = tape("dropout" + number, self.dropout, x, rngs=rngs)
            x = tape(name, getattr(self, name), x)
            x = tape(self.activation.__name__ + number, self.activation, x)
            if not self.design.dropout_first:
                x = tape("dropout" + number, self.dropout, x, rngs=rngs)
        return tape(last, getattr(self, last), x)


class LocallyConnected(nnx.Module):
    """A convolution, padded to the same size, with other kernels and biases at each position.

    Weights are float32, (h, w, size * size * inputs, outputs), and biases (h, w, outputs). Layer
    tables list it as a convolution.
    """

    kind = "conv"

    def __init__(
        self,
        map_shape: tuple[int, int, int],
        outputs: int,
        size: int,
        *,
        init: Initializer,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        height, width, inputs = self.map_shape = map_shape
        self.size, self.dtype = size, dtype
        shape = (size, size, inputs, outputs)
        # One by one, as the variance may depend on what a single kernel sees.
        kernels = [init(rngs.params(), shape, jnp.float32) for _ in range(height * width)]
        self.kernel = nnx.Param(jnp.stack(kernels).reshape(height, width, -1, outputs))
        self.bias = nnx.Param(jnp.zeros((height, width, outputs), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, h, w, inputs) -> (B, h, w, outputs); another map is an ArchitectureError."""
        if x.shape[1:] != self.map_shape:
            raise ArchitectureError(
                f"a locally connected layer for maps of {self.map_shape} got {x.shape[1:]}: its "
                "network takes images of the size it was built for only"
            )
        height, width, _ = self.map_shape
        padding = self.size // 2
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        patches = [
            x[:, row : row + height, column : column + width]
            for row in range(self.size)
            for column in range(self.size)
        ]
        kernel = self.kernel.get_value().astype(self.dtype)
        y = jnp.einsum("bhwi,hwio->bhwo", jnp.concatenate(patches, axis=-1), kernel)
        return y + self.bias.get_value().astype(self.dtype)

    def window(self, input_shape: tuple[int, ...]) -> Window:
        return Window(self.size, 1, self.size // 2)

    def macs(self, output_shape: tuple[int, ...]) -> int:
        return self.kernel.get_value().size


class CifarNet(Network):
    """The CIFAR-10 net of section 3.3: 13% error without and 11% with normalisation.

    The paper's footnote leaves its description to the files published with cuda-convnet. There,
    layers-conv-local-13pct and layers-conv-local-11pct have these errors and differ in the
    normalisation alone: two 5x5 convolutions to 64 maps, each with ReLU, normalisation and
    overlapping max-pooling, two locally connected 3x3 layers with 32 maps and ReLU, and one fully
    connected layer. They were trained on crops of 24 pixels. That the four-layer net of Figure 1,
    with ReLU or tanh, is this one too is an assumption.

    Args:
        variant: 'cifar'.
        activation: 'relu' or 'tanh'; not of the last layer.
        lrn: convention of local response normalisation, see `layers.response_norm`.
        overlapping: 3x3 pooling windows with stride 2; otherwise 2x2.
        width: multiplies the maps.
        first_scale: multiplies conv1's initial weights; 0.01 with init 'gaussian' is as in
            cuda-convnet's files, which see pixels of 0 to 255 less their mean.
        init: initial weights, see `initializer`; biases start at zero. With 'gaussian' the
            deviation is 0.01, and 0.04 in the locally connected layers.
        dtype: of the computation; parameters and logits are float32.
    """

    def __init__(
        self,
        variant: str,
        *,
        image_size: int,
        classes: int,
        channels: int,
        rngs: nnx.Rngs,
        activation: Literal["relu", "tanh"] = "relu",
        lrn: layers.LRN = "cuda-convnet",
        overlapping: bool = True,
        width: float = 1.0,
        first_scale: float = 1.0,
        init: Init = "gaussian",
        dtype: layers.Dtype = "float32",
    ) -> None:
        self.activation = choose("activation", activation, ACTIVATIONS)
        self.lrn = layers.response_norm(lrn)
        self.pool = layers.MaxPool(3 if overlapping else 2, 2, ceil=True)
        maps, local_maps = layers.scaled(64, width), layers.scaled(32, width)
        shared = layers.weights(init, dtype, rngs, width)
        local = layers.weights(init, dtype, rngs, width, deviation=0.04)
        unit = {"activation": self.activation, "use_bias": True, **shared}
        self.conv1 = layers.ConvUnit(channels, maps, 5, **unit)
        first = self.conv1.conv.kernel
        first.set_value(first.get_value() * first_scale)
        self.conv2 = layers.ConvUnit(maps, maps, 5, **unit)
        side = image_size
        for _ in range(2):
            side = self.pool.window((side,)).outputs(side)
        self.local3 = LocallyConnected((side, side, maps), local_maps, 3, **local)
        self.local4 = LocallyConnected((side, side, local_maps), local_maps, 3, **local)
        self.fc5 = layers.Dense((side, side, local_maps), classes, **shared)

    def map_features(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        for i, conv in (("1", self.conv1), ("2", self.conv2)):
            norm: list[Named] = [] if self.lrn is None else [("lrn" + i, self.lrn)]
            x = tape.chain([("conv" + i, conv), *norm, ("pool" + i, self.pool)], x)
        name = self.activation.__name__
        local3: list[Named] = [("local3", self.local3), (name + "3", self.activation)]
        local4: list[Named] = [("local4", self.local4), (name + "4", self.activation)]
        return tape.chain([*local3, *local4], x)

    def map_logits(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        return tape("fc5", self.fc5, x)


def _torch_alexnet(network: Any) -> list[Layer]:
    """torchvision/models/alexnet.py: places in two sequences that count every ReLU and pooling."""
    convs = [Layer(f"conv{i}/conv", f"features.{n}") for i, n in enumerate((0, 3, 6, 8, 10), 1)]
    return convs + [Layer(f"fc{i}", f"classifier.{n}") for i, n in enumerate((1, 4, 6), 6)]


_PUBLISHED: dict[str, tuple[Any, ...]] = {
    "activation": ("relu",),
    "overlapping": (True,),
    "without": ("",),
    "batch_norm": (False,),
    "inverted_dropout": (True,),
}
_CAFFE = Source(
    partial(caffe_names, convs=[f"conv{i}" for i in range(1, 6)]),
    first="conv1",
    last="fc8",
    spatial="fc6",
    variants=("caffenet", "two_gpu"),
    options={**_PUBLISHED, "lrn": ("caffe",), "padding": (0,)},
)

FAMILIES = (
    Family(
        name="alexnet",
        variants=VARIANTS,
        paper="NIPS 2012, section 3",
        network=AlexNet,
        # The paper calls the CIFAR net four-layer, not counting its classifier.
        depth=lambda v: 4 if v == "cifar" else len(DESIGNS[v].layers) + 3,
        more_depth=lambda options: -1 if options.get("without") else 0,
        # The last pooling must have a window: 3 pixels there take 7, 15 and, with padding, 67.
        minimum_image_size=lambda variant: {"caffenet": 67, "cifar": 4}.get(variant, 63),
        inputs=lambda variant: {"caffenet": Inputs(227), "cifar": Inputs(32, 3, 10)}.get(
            variant, Inputs()
        ),
        default="two_gpu",
        presets={
            "caffenet": {"lrn": "caffe", "padding": 0, "inverted_dropout": True},
            "torchvision": {
                "lrn": "none",
                "positive_bias": 0.0,
                "inverted_dropout": True,
                "init": "he",
            },
        },
        networks={"cifar": CifarNet},
        needs=NORMALISED,
        shape=Shape(
            "conv1/conv",
            "fc8",
            96,
            4096,
            "fc6",
            256,
            {"torchvision": (64, 4096), "one_gpu": (48, 4096)},
        ),
        published={
            "torchvision": Source(
                _torch_alexnet,
                first="features.0",
                last="classifier.6",
                spatial="classifier.1",
                variants=("torchvision",),
                options={**_PUBLISHED, "lrn": ("none",), "padding": (2,)},
            ),
            "caffe": _CAFFE,
            "caffe-tensorflow": in_tensorflow(_CAFFE),
        },
    ),
)

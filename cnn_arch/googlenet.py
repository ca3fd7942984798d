"""GoogLeNet (Szegedy et al., CVPR 2015, Table 1 and section 5).

A 7x7 convolution with stride 2, a 1x1 and a 3x3 convolution, nine Inception modules, global average
pooling, dropout and one fully connected layer: 22 layers with weights along the way. A ReLU after
every convolution. Every 3x3 max-pooling has stride 2 and windows that may reach beyond the map;
local response normalisation after the first and before the second (Figure 3).

An Inception module (Figure 2b) puts the maps of four branches one behind the other: a 1x1
convolution, a 1x1 and a 3x3, a 1x1 and a 5x5, and a 3x3 max-pooling with stride 1 and a 1x1.

In training, two auxiliary classifiers look at the modules 4a and 4d; their losses count 0.3 each
(section 5). At test time they do not exist.

paper: as printed.
torchvision: torchvision's net. Batch normalisation after every convolution, which then has no bias;
    no local response normalisation; 3x3 where the paper has 5x5; 2x2 windows in the last
    max-pooling; the auxiliary classifiers average over a grid of 4x4 windows of whatever size fits.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cnn_arch import layers
from cnn_arch.family import NORMALISED, Family, Need
from cnn_arch.initial_weights import Init
from cnn_arch.kernels.barriers import relu
from cnn_arch.network import Composite, Named, Network, Tape
from cnn_arch.published import Layer, Shape, Source, conv_unit, in_tensorflow
from cnn_arch.window import Window

VARIANTS = ("paper", "torchvision")

# Maps of the columns #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5 and pool proj of Table 1.
INCEPTIONS: dict[str, tuple[int, int, int, int, int, int]] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
EPSILON = 1e-3  # of batch normalisation, as in torchvision and the Inception nets that came later


class Inception(Composite):
    """An Inception module (Figure 2b).

    Args:
        inputs: maps in.
        maps: of its convolutions, in the order of Table 1's columns.
        large: kernel size of the third branch, 5 in the paper.
        unit: further arguments of `ConvUnit`.
    """

    def __init__(self, inputs: int, maps: list[int], large: int, **unit: Any) -> None:
        conv1, reduce3, conv3, reduce5, conv5, projection = maps
        self.branch1 = layers.ConvUnit(inputs, conv1, 1, **unit)
        self.branch2_reduce = layers.ConvUnit(inputs, reduce3, 1, **unit)
        self.branch2 = layers.ConvUnit(reduce3, conv3, 3, **unit)
        self.branch3_reduce = layers.ConvUnit(inputs, reduce5, 1, **unit)
        self.branch3 = layers.ConvUnit(reduce5, conv5, large, **unit)
        self.pool = layers.MaxPool(3, 1, padding=1)
        self.branch4 = layers.ConvUnit(inputs, projection, 1, **unit)
        self.concat = layers.Concat()
        self.outputs = conv1 + conv3 + conv5 + projection

    def __call__(self, tape: Tape, x: jax.Array) -> jax.Array:
        branch1 = tape("branch1", self.branch1, x)
        branch2 = tape("branch2", self.branch2, tape("branch2_reduce", self.branch2_reduce, x))
        branch3 = tape("branch3", self.branch3, tape("branch3_reduce", self.branch3_reduce, x))
        branch4 = tape("branch4", self.branch4, tape("pool", self.pool, x))
        return tape("concat", self.concat, branch1, branch2, branch3, branch4)


class GridAveragePool(nnx.Module):
    """The mean of each of size x size windows that cover the map evenly, as PyTorch's adaptive one.

    Along an axis of n inputs window i reaches from floor(i n / size) to ceil((i + 1) n / size):
    windows overlap where n is no multiple of size, and repeat inputs where it is smaller.
    """

    kind = "average_pool"

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, h, w, c) -> (B, size, size, c)."""
        y = x.astype(jnp.float32)
        for axis in (1, 2):
            n = x.shape[axis]
            ends = [(i * n // self.size, -(-(i + 1) * n // self.size)) for i in range(self.size)]
            windows = [jax.lax.slice_in_dim(y, low, high, axis=axis) for low, high in ends]
            y = jnp.stack([window.mean(axis) for window in windows], axis)
        return y.astype(x.dtype)


class AuxiliaryClassifier(Composite):
    """A classifier in the middle of the network (section 5).

    Average pooling with 5x5 windows and stride 3, a 1x1 convolution to 128 maps, a fully connected
    layer of 1024 units, dropout, and the classes. Where the map is smaller than 5x5, it is one
    window.

    Args:
        side, inputs: height (and width) and maps of what it looks at.
        grid: average over a grid of 4x4 windows instead, as torchvision.
        dropout: probability of dropping one of the 1024 units.
        unit: further arguments of `ConvUnit`.
    """

    def __init__(
        self,
        side: int,
        inputs: int,
        *,
        classes: int,
        grid: bool,
        width: float,
        dropout: float,
        unit: dict[str, Any],
    ) -> None:
        weights = {name: unit[name] for name in ("init", "dtype", "rngs")}
        maps, hidden, window = layers.scaled(128, width), layers.scaled(1024, width), min(5, side)
        self.pool = GridAveragePool(4) if grid else layers.AveragePool(window, 3)
        side = 4 if grid else Window(window, 3).outputs(side)
        self.conv = layers.ConvUnit(inputs, maps, 1, **unit)
        self.fc1 = layers.Dense((side, side, maps), hidden, **weights)
        self.dropout = nnx.Dropout(dropout)
        self.fc2 = layers.Dense(hidden, classes, **weights)

    def __call__(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """(B, side, side, inputs) -> logits (B, classes), float32."""
        x = tape("conv", self.conv, tape("pool", self.pool, x))
        x = tape("relu", relu, tape("fc1", self.fc1, x))
        x = tape("dropout", self.dropout, x, rngs=rngs)
        return tape("fc2", self.fc2, x).astype(jnp.float32)


class GoogLeNet(Network):
    """The network of Table 1.

    Args:
        variant: 'paper' or 'torchvision'.
        auxiliary: whether training has the two auxiliary classifiers. They look at maps of the size
            that images of `image_size` have there, and only `losses` calls them.
        aux_weight: what each of their losses counts.
        lrn: convention of local response normalisation, see `layers.response_norm`.
        batch_norm: batch normalisation between each convolution and its ReLU, instead of biases.
        bn_group_size: examples that are normalised together; 0 for the whole batch.
        width: multiplies the maps of every convolution and the auxiliary classifiers' hidden units.
        dropout: probability of dropping a mean before the fully connected layer.
        aux_dropout: probability of dropping a hidden unit of the auxiliary classifiers.
        init: initial weights, see `initializer`; biases start at zero. The paper does not
            print its own. 'he' keeps the size of activations through 22 layers of ReLU; Caffe's
            copy has weights of half that variance, and biases of 0.2.
        dtype: of the computation; parameters, statistics and logits are float32.
    """

    def __init__(
        self,
        variant: str,
        *,
        image_size: int,
        classes: int,
        channels: int,
        rngs: nnx.Rngs,
        auxiliary: bool = True,
        aux_weight: float = 0.3,
        lrn: layers.LRN = "paper",
        batch_norm: bool = False,
        bn_group_size: int = 0,
        width: float = 1.0,
        dropout: float = 0.4,
        aux_dropout: float = 0.7,
        init: Init = "he",
        dtype: layers.Dtype = "float32",
    ) -> None:
        self.aux_weight = aux_weight
        torchvision = variant == "torchvision"
        weights = layers.weights(init, dtype, rngs, width)
        unit = {
            "group_size": bn_group_size if batch_norm else None,
            "epsilon": EPSILON,
            "use_bias": not batch_norm,
            **weights,
        }
        first, second = layers.scaled(64, width), layers.scaled(192, width)
        self.conv1 = layers.ConvUnit(channels, first, 7, 2, **unit)
        self.conv2_reduce = layers.ConvUnit(first, first, 1, **unit)
        self.conv2 = layers.ConvUnit(first, second, 3, **unit)
        self.lrn = layers.response_norm(lrn)
        self.pool = layers.MaxPool(3, 2, ceil=True)
        self.pool4 = layers.MaxPool(2 if torchvision else 3, 2, ceil=True)
        inputs, outputs = second, {}
        for name, table in INCEPTIONS.items():
            maps = [layers.scaled(maps, width) for maps in table]
            module = Inception(inputs, maps, 3 if torchvision else 5, **unit)
            setattr(self, f"inception{name}", module)
            inputs = outputs[name] = module.outputs
        self.global_pool = layers.GlobalAveragePool()
        self.dropout = nnx.Dropout(dropout)
        self.fc = layers.Dense(inputs, classes, **weights)

        self.auxiliary = auxiliary
        if auxiliary:
            side = Window(7, 2, 3).outputs(image_size)
            for _ in range(3):
                side = Window(3, 2, ceil=True).outputs(side)
            classifier = partial(
                AuxiliaryClassifier,
                grid=torchvision,
                classes=classes,
                width=width,
                dropout=aux_dropout,
                unit=unit,
            )
            self.auxiliary1 = classifier(side, outputs["4a"])
            self.auxiliary2 = classifier(side, outputs["4d"])

    def _maps(self, x: jax.Array, tape: Tape) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The maps after 4a, 4d and 5b, each (B, h, w, c)."""
        lrn1, lrn2 = ([] if self.lrn is None else [(f"lrn{i}", self.lrn)] for i in (1, 2))
        x = tape.chain([("conv1", self.conv1), ("pool1", self.pool), *lrn1], x)
        conv2: list[Named] = [("conv2_reduce", self.conv2_reduce), ("conv2", self.conv2)]
        x = tape.chain([*conv2, *lrn2, ("pool2", self.pool)], x)
        pools: dict[str, list[Named]] = {
            "3b": [("pool3", self.pool)],
            "4e": [("pool4", self.pool4)],
        }
        after = {}
        for name in INCEPTIONS:
            module = (f"inception{name}", getattr(self, f"inception{name}"))
            x = after[name] = tape.chain([module, *pools.get(name, [])], x)
        return after["4a"], after["4d"], x

    def map_features(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        return self._maps(x, tape)[2]

    def map_logits(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        x = tape("pool5", self.global_pool, x)
        x = tape("dropout", self.dropout, x, rngs=rngs)
        return tape("fc", self.fc, x)

    def losses(
        self,
        x: jax.Array,
        targets: jax.Array,
        *,
        rngs: nnx.Rngs | None = None,
        tape: Tape | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """As `Network.losses`; in train mode with the weighted losses of the auxiliary classifiers.

        The logits are those of the main classifier.
        """
        if not self.auxiliary or self.dropout.deterministic:
            return super().losses(x, targets, rngs=rngs, tape=tape)
        self.check_images(x)
        tape = tape or Tape()
        after_4a, after_4d, features = self._maps(x, tape)
        logits = self.head(features, rngs=rngs, tape=tape)
        first = tape("auxiliary1", self.auxiliary1, after_4a, rngs=rngs)
        second = tape("auxiliary2", self.auxiliary2, after_4d, rngs=rngs)
        auxiliary = self.loss_of(first, targets) + self.loss_of(second, targets)
        return self.loss_of(logits, targets) + self.aux_weight * auxiliary, logits


# A convolution here -> its name in torchvision and in Caffe; of a module, within it.
_NAMES = {
    "conv1": ("conv1", "conv1/7x7_s2"),
    "conv2_reduce": ("conv2", "conv2/3x3_reduce"),
    "conv2": ("conv3", "conv2/3x3"),
}
_BRANCHES = {
    "branch1": ("branch1", "1x1"),
    "branch2_reduce": ("branch2.0", "3x3_reduce"),
    "branch2": ("branch2.1", "3x3"),
    "branch3_reduce": ("branch3.0", "5x5_reduce"),
    "branch3": ("branch3.1", "5x5"),
    "branch4": ("branch4.1", "pool_proj"),
}


def _torch_googlenet(network: Any) -> list[Layer]:
    """torchvision/models/googlenet.py."""
    names = {ours: torch for ours, (torch, _) in _NAMES.items()}
    for module in INCEPTIONS:
        for ours, (torch, _) in _BRANCHES.items():
            names[f"inception{module}/{ours}"] = f"inception{module}.{torch}"
    pairs: list[Layer] = []
    for ours, theirs in names.items():
        pairs += conv_unit(ours, f"{theirs}.conv", f"{theirs}.bn")
    for i in (1, 2) if network.auxiliary else ():
        pairs += conv_unit(f"auxiliary{i}/conv", f"aux{i}.conv.conv", f"aux{i}.conv.bn")
        pairs += [Layer(f"auxiliary{i}/{fc}", f"aux{i}.{fc}") for fc in ("fc1", "fc2")]
    return [*pairs, Layer("fc", "fc")]


def _caffe_googlenet(network: Any) -> list[Layer]:
    """bvlc_googlenet/train_val.prototxt."""
    pairs = [Layer(f"{ours}/conv", caffe) for ours, (_, caffe) in _NAMES.items()]
    for module in INCEPTIONS:
        for ours, (_, caffe) in _BRANCHES.items():
            pairs.append(Layer(f"inception{module}/{ours}/conv", f"inception_{module}/{caffe}"))
    for i in (1, 2) if network.auxiliary else ():
        for ours, caffe in (("conv/conv", "conv"), ("fc1", "fc"), ("fc2", "classifier")):
            pairs.append(Layer(f"auxiliary{i}/{ours}", f"loss{i}/{caffe}"))
    return [*pairs, Layer("fc", "loss3/classifier")]


_AUXILIARY = Need(lambda variant, options: bool(options["auxiliary"]), "auxiliary=True")
_CAFFE = Source(
    _caffe_googlenet,
    first="conv1/7x7_s2",
    last="loss3/classifier",
    variants=("paper",),
    options={"batch_norm": (False,), "lrn": ("caffe",), "auxiliary": (False, True)},
)
FAMILIES = (
    Family(
        name="googlenet",
        variants=VARIANTS,
        paper="CVPR 2015, Table 1",
        network=GoogLeNet,
        depth=lambda variant: 22,
        minimum_image_size=lambda variant: 32,  # five halvings leave one pixel
        default="paper",
        presets={"torchvision": {"lrn": "none", "batch_norm": True, "dropout": 0.2}},
        needs={**NORMALISED, "aux_weight": _AUXILIARY, "aux_dropout": _AUXILIARY},
        shape=Shape("conv1/conv", "fc", 64, 1024),
        published={
            "torchvision": Source(
                _torch_googlenet,
                first="conv1.conv",
                last="fc",
                variants=("torchvision",),
                options={"batch_norm": (True,), "lrn": ("none",), "auxiliary": (False, True)},
            ),
            "caffe": _CAFFE,
            "caffe-tensorflow": in_tensorflow(_CAFFE),
        },
    ),
)

"""VGG (Simonyan & Zisserman, arXiv:1409.1556v6, Table 1 and section 2).

Configurations A, A-LRN, B, C, D and E: 3x3 convolutions (1x1 in C), each with a bias and ReLU,
in five stages with a 2x2 max-pool after each, then three fully connected layers with dropout.
B-5x5 is the shallow net of section 4.1: B with each pair of 3x3 convolutions replaced by one 5x5.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cnn_arch import layers
from cnn_arch.errors import ArchitectureError
from cnn_arch.family import NORMALISED, Arrays, Family, Growth, Need
from cnn_arch.initial_weights import Init
from cnn_arch.kernels.barriers import relu
from cnn_arch.network import Named, Network, Tape
from cnn_arch.published import Layer, Shape, Source, caffe_names, conv_unit, in_tensorflow, numbered

MAPS = (64, 128, 256, 512, 512)
HIDDEN = 4096

# Kernel sizes of the convolutions of the five stages: the columns of Table 1, and section 4.1.
CONFIGURATIONS: dict[str, tuple[tuple[int, ...], ...]] = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "A-LRN": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
    "B-5x5": ((5,), (5,), (5,), (5,), (5,)),
}


class VGG(Network):
    """A network of Table 1.

    Args:
        variant: a column of Table 1.
        width: multiplies the maps of every convolution and the hidden units.
        hidden: units of fc6 and fc7 at width 1 (4096 in the paper); 0 for neither, so that fc8 sees
            the last map.
        dropout: probability of dropping a hidden unit of fc6 and fc7 (0.5 in the paper).
        batch_norm: batch normalisation between each convolution and its ReLU; not in the paper.
        bn_group_size: examples that are normalised together; 0 for the whole batch.
        lrn: convention of A-LRN's local response normalisation, see `layers.response_norm`.
        init: initial weights, see `initializer`; biases start at zero.
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
        width: float = 1.0,
        hidden: int = HIDDEN,
        dropout: float = 0.5,
        batch_norm: bool = False,
        bn_group_size: int = 0,
        lrn: layers.LRN = "paper",
        init: Init = "gaussian",
        dtype: layers.Dtype = "float32",
    ) -> None:
        self.kernel_sizes = CONFIGURATIONS[variant]
        maps = [layers.scaled(maps, width) for maps in MAPS]
        weights = layers.weights(init, dtype, rngs, width)
        group_size = bn_group_size if batch_norm else None
        inputs = channels
        for name, stage, size in self.convolutions():
            unit = layers.ConvUnit(
                inputs, maps[stage], size, use_bias=True, group_size=group_size, **weights
            )
            setattr(self, name, unit)
            inputs = maps[stage]
        self.lrn = layers.response_norm(lrn if variant == "A-LRN" else "none")
        self.pool = layers.MaxPool(2, 2)
        side = image_size // 2 ** len(MAPS)
        inputs_of_dense: int | tuple[int, int, int] = (side, side, inputs)
        self.dropout = nnx.Dropout(dropout)
        self.hidden = hidden > 0
        if self.hidden:
            units = layers.scaled(hidden, width)
            self.fc6 = layers.Dense(inputs_of_dense, units, **weights)
            self.fc7 = layers.Dense(units, units, **weights)
            inputs_of_dense = units
        self.fc8 = layers.Dense(inputs_of_dense, classes, **weights)

    def convolutions(self) -> list[tuple[str, int, int]]:
        """(name, stage index, kernel size), in order: 'conv3_2' is the second of stage 3."""
        return [
            (f"conv{stage + 1}_{i + 1}", stage, size)
            for stage, sizes in enumerate(self.kernel_sizes)
            for i, size in enumerate(sizes)
        ]

    def map_features(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        for stage, sizes in enumerate(self.kernel_sizes, start=1):
            names = [f"conv{stage}_{i}" for i in range(1, len(sizes) + 1)]
            named: list[Named] = [(name, getattr(self, name)) for name in names]
            if stage == 1 and self.lrn is not None:
                named.append(("lrn1", self.lrn))
            x = tape.chain([*named, (f"pool{stage}", self.pool)], x)
        return x

    def map_logits(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        for name, layer in (("6", self.fc6), ("7", self.fc7)) if self.hidden else ():
            x = tape("relu" + name, relu, tape("fc" + name, layer, x))
            x = tape("dropout" + name, self.dropout, x, rngs=rngs)
        return tape("fc8", self.fc8, x)


# What section 3.1 copies of a shallower net. Nets that only add convolutions can grow.
SEEDED = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")
GROWN = ("A", "B", "C", "D", "E")


def _identity(added: Collection[str], deep: Arrays, deep_name: str) -> Arrays:
    """New convolutions with a kernel of one in the middle, which ReLU leaves alone."""
    values: Arrays = {}
    for name in added:
        if "/norm/" in name:
            raise ArchitectureError(
                f"{deep_name} with batch_norm cannot grow: a new layer that normalises its "
                f"batch is not the identity ({name})."
            )
        value = jnp.zeros_like(deep[name])
        if name.endswith("kernel"):
            middle = value.shape[0] // 2
            value = value.at[middle, middle].set(jnp.eye(*value.shape[2:]))
        values[name] = value
    return values


def _torch_vgg(network: Any, dense: Sequence[str], convolution: bool = False) -> list[Layer]:
    """torchvision/models/vgg.py, timm/models/vgg.py, models/vgg.py of kuangliu/pytorch-cifar and
    vgg.py of chengyangfu/pytorch-vgg-cifar10: batch normalisation counts as a place."""
    pairs, place = [], 0
    for name, stage, _ in network.convolutions():
        first = place + stage  # each stage before it has a pooling
        pairs += conv_unit(name, f"features.{first}", f"features.{first + 1}")
        place += 2 if getattr(network, name).norm is None else 3
    *hidden, last = dense
    for ours, theirs in zip(("fc6", "fc7"), hidden, strict=False):
        pairs.append(Layer(ours, theirs, convolution=convolution))
    return [*pairs, Layer("fc8", last)]


def _torch(
    dense: Sequence[str], hidden: int, batch_norm: tuple[bool, ...], convolution: bool = False
) -> Source:
    """A source of PyTorch's; dense: the names of its fully connected layers."""
    return Source(
        partial(_torch_vgg, dense=dense, convolution=convolution),
        first="features.0",
        last=dense[-1],
        spatial=dense[0],
        variants=("A", "B", "D", "E"),
        options={"batch_norm": batch_norm, "hidden": (hidden,)},
    )


def _caffe_vgg(network: Any) -> list[Layer]:
    """The authors' VGG_ILSVRC_16_layers_deploy.prototxt."""
    return caffe_names(network, [name for name, *_ in network.convolutions()])


def _keras_vgg(network: Any) -> list[Layer]:
    """keras/src/applications/vgg16.py and vgg19.py; the same since Keras 1."""
    layers = [
        Layer(f"{name}/conv", f"block{name[4]}_conv{name[6]}")
        for name, *_ in network.convolutions()
    ]
    dense = {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}
    return layers + [Layer(*pair) for pair in dense.items()]


_KERAS = Source(
    _keras_vgg,
    first="block1_conv1",
    last="predictions",
    spatial="fc1",
    variants=("D", "E"),
    options={"batch_norm": (False,), "hidden": (HIDDEN,)},
)
_CAFFE = Source(
    _caffe_vgg,
    first="conv1_1",
    last="fc8",
    spatial="fc6",
    variants=("A", "B", "C", "D", "E"),
    options={"batch_norm": (False,), "hidden": (HIDDEN,)},
)
FAMILIES = (
    Family(
        name="vgg",
        variants=tuple(CONFIGURATIONS),
        paper="arXiv:1409.1556, Table 1",
        network=VGG,
        depth=lambda variant: sum(map(len, CONFIGURATIONS[variant])) + 3,
        more_depth=lambda options: 0 if options["hidden"] else -2,
        minimum_image_size=lambda variant: 2 ** len(MAPS),  # five halvings leave one pixel
        needs={
            **NORMALISED,
            "lrn": Need(lambda variant, options: variant == "A-LRN", "vgg:A-LRN"),
            "dropout": Need(lambda variant, options: options["hidden"] > 0, "hidden above 0"),
        },
        seeded=SEEDED,
        growth=Growth(GROWN, _identity),
        shape=Shape("conv1_1/conv", "fc8", 64, 4096, "fc6", 512),
        published={
            "torchvision": _torch(
                ("classifier.0", "classifier.3", "classifier.6"), HIDDEN, (False, True)
            ),
            "timm": _torch(
                ("pre_logits.fc1", "pre_logits.fc2", "head.fc"), HIDDEN, (False, True), True
            ),
            # CIFAR-10's: at its 32 pixels the last map is one pixel.
            "kuangliu": _torch(("classifier",), 0, (True,)),
            "chengyangfu": _torch(
                ("classifier.1", "classifier.4", "classifier.6"), 512, (False, True)
            ),
            "caffe": _CAFFE,
            "caffe-tensorflow": in_tensorflow(_CAFFE),
            # vgg16_weights.npz of cs.toronto.edu/~frossard/post/vgg16.
            "frossard": in_tensorflow(_CAFFE, variants=("D",)),
            "keras": _KERAS,
            "keras-numbered": numbered(_KERAS),
        },
    ),
)

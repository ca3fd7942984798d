"""Network in network (Lin, Chen & Yan, arXiv:1312.4400v3, section 3).

Three blocks, each a convolution and two 1x1 convolutions, which are a small multilayer perceptron
at every position ('cccp' layers: cascaded cross channel parametric pooling). ReLU after each of
them. Max-pooling and dropout follow the first two blocks. The last block has one map per class,
and the logits are their means: there is no fully connected layer, but in the rivals of section 4.6.

The paper leaves the layers' sizes to the authors' files for cuda-convnet, cifar-10_def and its
like (github.com/mavenlin/cuda-convnet, folder NIN), which are followed here. Pooling windows that
start inside the map are kept there, so that 32 pixels become 16 and 8. Dropout leaves what it keeps
as it is and halves all in testing (PluginsSrc/include/extralayers.cuh).
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
from flax import nnx

from cnn_arch import layers
from cnn_arch.errors import choose
from cnn_arch.family import NORMALISED, Family, Inputs, Need
from cnn_arch.initial_weights import Init
from cnn_arch.network import Network, Tape
from cnn_arch.published import Layer, Source

SecondPool = Literal["max", "average"]
Head = Literal["average", "fc"]


@dataclass(frozen=True)
class Block:
    """A convolution of `size` pixels to maps[0], then 1x1 convolutions to maps[1] and maps[2]."""

    size: int
    maps: tuple[int, int, int | None]  # None: one per class
    deviations: tuple[float, float, float] = (0.05, 0.05, 0.05)  # of the first weights, 'gaussian'


_SECOND_AND_THIRD = (Block(5, (192, 192, 192)), Block(3, (192, 192, None)))
CONFIGURATIONS: dict[str, tuple[Block, Block, Block]] = {
    "cifar10": (Block(5, (192, 160, 96)), *_SECOND_AND_THIRD),
    "cifar100": (Block(5, (192, 160, 96), (0.001, 0.01, 0.01)), *_SECOND_AND_THIRD),
    "svhn": (Block(5, (128, 96, 64)), Block(5, (320, 256, 128)), Block(5, (384, 256, None))),
    "mnist": (Block(5, (96, 64, 48)), Block(5, (128, 96, 48)), Block(5, (128, 96, None))),
}


class NIN(Network):
    """A network of the authors' files.

    Args:
        variant: the data set it was made for.
        width: multiplies the maps of every layer but the last.
        dropout: probability of dropping a value after the first and the second block.
        pool2: pooling after the second block, 'max', or 'average' as in the authors' later Caffe
            model. Where its windows reach beyond the map they average what is inside.
        head: 'average', or 'fc', a fully connected layer from all values of the last maps to the
            classes in its place (section 4.6).
        head_dropout: probability of dropping one of these values; for 'fc' only.
        inverted_dropout: training divides the kept values by 1 - dropout, as in Caffe. Otherwise
            testing multiplies all values by 1 - dropout, as in the authors' cuda-convnet.
        batch_norm: batch normalisation between each convolution, 1x1 or not, and its ReLU; not
            in the paper.
        bn_group_size: examples that are normalised together; 0 for the whole batch.
        init: initial weights, see `initializer`; 'gaussian' has the authors' deviations, 0.05, and
            0.001, 0.01 and 0.01 in the first block of 'cifar100'. Biases start at zero.
        dtype: of the computation; parameters and logits are float32.

    Raises ArchitectureError for another pool2 or head.
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
        dropout: float = 0.5,
        pool2: SecondPool = "max",
        head: Head = "average",
        head_dropout: float = 0.0,
        inverted_dropout: bool = False,
        batch_norm: bool = False,
        bn_group_size: int = 0,
        init: Init = "gaussian",
        dtype: layers.Dtype = "float32",
    ) -> None:
        pools = {"max": layers.MaxPool, "average": layers.AveragePool}
        second = choose("pool2", pool2, pools)
        self.averages = choose("head", head, {"average": True, "fc": False})
        dropped = partial(layers.dropout, inverted=inverted_dropout)
        weights = partial(layers.weights, init, dtype, rngs, width)
        group = bn_group_size if batch_norm else None
        inputs = channels
        for i, block in enumerate(CONFIGURATIONS[variant], start=1):
            for name, maps, size, deviation in zip(
                _layers(i), block.maps, (block.size, 1, 1), block.deviations, strict=True
            ):
                outputs = classes if maps is None else layers.scaled(maps, width)
                unit = {"use_bias": True, "group_size": group, **weights(deviation=deviation)}
                setattr(self, name, layers.ConvUnit(inputs, outputs, size, **unit))
                inputs = outputs
        self.pool1 = layers.MaxPool(3, 2, ceil=True)
        self.pool2 = second(3, 2, ceil=True)
        self.dropout = dropped(dropout)
        self.pool = layers.GlobalAveragePool()
        if not self.averages:
            side = image_size
            for pool in (self.pool1, self.pool2):
                side = pool.window((side,)).outputs(side)
            self.head_dropout = dropped(head_dropout)
            self.fc = layers.Dense((side, side, inputs), classes, **weights(deviation=0.05))

    def map_features(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """Images (B, H, W, C) -> one map per class (B, h, w, classes)."""
        for i, pool in ((1, self.pool1), (2, self.pool2)):
            x = tape.chain([*self._block(i), (f"pool{i}", pool)], x)
            x = tape(f"dropout{i}", self.dropout, x, rngs=rngs)
        return tape.chain(self._block(3), x)

    def map_logits(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        if self.averages:
            return tape("pool", self.pool, x)
        x = tape("dropout3", self.head_dropout, x, rngs=rngs)
        return tape("fc", self.fc, x)

    def _block(self, i: int) -> list[tuple[str, layers.ConvUnit]]:
        return [(name, getattr(self, name)) for name in _layers(i)]


def _layers(block: int) -> tuple[str, str, str]:
    """The authors' names: conv2, cccp3 and cccp4 are block 2."""
    return f"conv{block}", f"cccp{2 * block - 1}", f"cccp{2 * block}"


def _caffe_nin(network: NIN) -> list[Layer]:
    """The authors' gist e56253735ef32c3c296d, cifar10_nin, as in Lasagne/Recipes,
    modelzoo/cifar10_nin.py."""
    return [Layer(f"{name}/conv", name) for block in (1, 2, 3) for name in _layers(block)]


FAMILIES = (
    Family(
        name="nin",
        variants=tuple(CONFIGURATIONS),
        paper="arXiv:1312.4400, section 3",
        network=NIN,
        depth=lambda variant: 9,
        more_depth=lambda options: 1 if options["head"] == "fc" else 0,
        minimum_image_size=lambda variant: 4,  # two poolings leave 2 pixels and 1
        inputs=lambda variant: {
            "cifar100": Inputs(32, 3, 100),
            "mnist": Inputs(28, 1, 10),
        }.get(variant, Inputs(32, 3, 10)),
        needs={
            **NORMALISED,
            "head_dropout": Need(lambda variant, options: options["head"] == "fc", "head=fc"),
        },
        published={
            "caffe": Source(
                _caffe_nin,
                first="conv1",
                last="cccp6",
                variants=("cifar10",),
                options={
                    "pool2": ("average",),
                    "head": ("average",),
                    "batch_norm": (False,),
                    "inverted_dropout": (True,),
                },
            ),
        },
    ),
)

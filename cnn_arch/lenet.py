"""LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998, Proc. IEEE 86(11), sections II-B and II-C).

Seven layers with weights (Figure 2): C1 and C3 are 5x5 convolutions, S2 and S4 sub-sample by two,
C5 sees the whole of S4's maps, F6 is fully connected, and the output has one unit per class.

`original` is the paper's: C3 has the connections of Table I, the sub-sampling layers have trained
coefficients, every unit up to F6 is squashed by a scaled tanh, and the output units measure the
distance to fixed drawings of the characters. It is trained with the loss of equation 9. `modern`
has the same maps as they are usually built today: C3 connected to all maps, ReLU, max-pooling and
soft-max.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cnn_arch import layers
from cnn_arch.errors import ArchitectureError
from cnn_arch.family import Family, Inputs
from cnn_arch.initial_weights import Init, Initializer
from cnn_arch.kernels.barriers import relu
from cnn_arch.kernels.convolution import convolve
from cnn_arch.network import Named, Network, Tape
from cnn_arch.window import Window

C1_MAPS, C3_MAPS, C5_UNITS, F6_UNITS = 6, 16, 120, 84

# Table I: the maps of S2 that each map of C3 sees. Each map of S2 feeds ten maps of C3.
C3_INPUTS = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)
C3_FEEDS = 10

# What F6 should look like for each class: 7x12 pixels, ink +1 and paper -1. The paper prints its
# characters as a picture only (Figure 3); these are drawn after its idea, not copied from it.
DIGITS = """
..###..  ...#...  .#####.  .#####.  .....#.
.#...#.  ..##...  #.....#  #.....#  ....##.
#.....#  .###...  ......#  ......#  ...#.#.
#.....#  ...#...  ......#  ......#  ..#..#.
#.....#  ...#...  .....#.  ......#  .#...#.
#.....#  ...#...  ....#..  ..####.  #....#.
#.....#  ...#...  ...#...  ......#  #######
#.....#  ...#...  ..#....  ......#  .....#.
#.....#  ...#...  .#.....  ......#  .....#.
.#...#.  ...#...  #......  #.....#  .....#.
..###..  .#####.  #######  .#####.  .....#.
.......  .......  .......  .......  .......

#######  ..####.  #######  ..###..  ..###..
#......  .#....#  #.....#  .#...#.  .#...#.
#......  #......  ......#  #.....#  #.....#
#......  #......  .....#.  #.....#  #.....#
#.####.  #.####.  .....#.  .#...#.  #.....#
##....#  ##....#  ....#..  ..###..  .#...##
......#  #.....#  ....#..  .#...#.  ..###.#
......#  #.....#  ...#...  #.....#  ......#
......#  #.....#  ...#...  #.....#  ......#
#.....#  .#...#.  ..#....  .#...#.  #....#.
.#####.  ..###..  ..#....  ..###..  .####..
.......  .......  .......  .......  .......
"""


def _pixels(drawings: str) -> np.ndarray:
    """Drawings side by side, in blocks one below the other -> (drawings, 84), +1 and -1."""
    blocks = [map(str.split, block.splitlines()) for block in drawings.strip().split("\n\n")]
    characters = ["".join(rows) for block in blocks for rows in zip(*block, strict=True)]
    return np.array([[1 if pixel == "#" else -1 for pixel in c] for c in characters], np.float32)


TARGETS = _pixels(DIGITS)


class Subsampling(nnx.Module):
    """S2 and S4: the sum over 2x2 pixels, times the map's coefficient, plus the map's bias."""

    kind = "subsampling"

    def __init__(self, maps: int, *, init: Initializer, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.dtype = dtype
        # Drawn as the kernels of units with four inputs, of which one weight each is kept.
        weights = init(rngs.params(), (2, 2, 1, maps), jnp.float32)
        self.coefficient = nnx.Param(weights[0, 0, 0])
        self.bias = nnx.Param(jnp.zeros((maps,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H // 2, W // 2, C); an odd last row or column is left out."""
        batch, height, width, maps = x.shape
        height, width = height // 2, width // 2
        x = x[:, : 2 * height, : 2 * width].astype(self.dtype)
        total = x.reshape(batch, height, 2, width, 2, maps).sum(axis=(2, 4))
        coefficient, bias = self.coefficient.get_value(), self.bias.get_value()
        return total * coefficient.astype(self.dtype) + bias.astype(self.dtype)

    def window(self, input_shape: tuple[int, ...]) -> Window:
        return Window(2, 2)


class PartialConv(nnx.Module):
    """C3: a 5x5 convolution without padding whose maps see the maps of Table I.

    Its 1516 weights are those of the connections that exist: the kernel has shape (5, 5, 60), the
    60 pairs of maps in the order of `C3_INPUTS`. They are put into a kernel of all pairs, zero
    elsewhere, since a dense convolution is faster than 60 small ones.
    """

    kind = "conv"
    size = 5

    def __init__(self, *, init: Initializer, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.dtype = dtype
        # Each map has its own fan-in. The fan-out of a map of S2 is that of a kernel with
        # C3_FEEDS maps, of which one is kept.
        kernels = [
            init(rngs.params(), (self.size, self.size, len(maps), C3_FEEDS), jnp.float32)[..., 0]
            for maps in C3_INPUTS
        ]
        self.kernel = nnx.Param(jnp.concatenate(kernels, axis=-1))
        self.bias = nnx.Param(jnp.zeros((C3_MAPS,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, 6) -> (B, H - 4, W - 4, 16)."""
        pairs = [(i, o) for o, maps in enumerate(C3_INPUTS) for i in maps]
        inputs, outputs = np.array(pairs).T
        zeros = jnp.zeros((self.size, self.size, C1_MAPS, C3_MAPS), self.dtype)
        weights = self.kernel.get_value().astype(self.dtype)
        kernel = zeros.at[:, :, inputs, outputs].set(weights)
        y = convolve(x.astype(self.dtype), kernel, padding=0)
        return y + self.bias.get_value().astype(self.dtype)

    def window(self, input_shape: tuple[int, ...]) -> Window:
        return Window(self.size)

    def macs(self, output_shape: tuple[int, ...]) -> int:
        return output_shape[1] * output_shape[2] * self.kernel.get_value().size


class RadialBasis(nnx.Module):
    """The output units: minus the squared distance to each class's drawing (equation 7).

    (..., 84) -> (..., classes), float32. The paper's units give the distance itself, a penalty;
    its negative is a logit: the soft-max of the outputs is proportional to exp(-distance), the
    posterior of classes with Gaussian densities around their drawings. Nothing is trained here.
    """

    kind = "rbf"

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, x: jax.Array) -> jax.Array:
        differences = x.astype(jnp.float32)[..., None, :] - TARGETS[: self.classes]
        return -jnp.square(differences).sum(axis=-1)

    def macs(self, output_shape: tuple[int, ...]) -> int:
        return output_shape[-1] * F6_UNITS


class _SevenLayers(Network):
    """Calls C1, S2, C3, S4, C5, F6 and the output, whatever they are, and the activations."""

    activation: layers.Activation
    activated: ClassVar[tuple[str, ...]]

    def map_features(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        x = tape.chain([*self._unit("C1"), *self._unit("S2")], x)
        return tape.chain([*self._unit("C3"), *self._unit("S4")], x)

    def map_logits(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        for name, layer in [*self._unit("C5"), *self._unit("F6"), *self._unit("output")]:
            x = tape(name, layer, x)
        return x

    def _unit(self, name: str) -> list[Named]:
        named: list[Named] = [(name, getattr(self, name))]
        if name in self.activated:
            named.append((f"{name}_{self.activation.__name__}", self.activation))
        return named


class LeNet5(_SevenLayers):
    """The paper's network.

    Its 60,000 trained values are those of section II-B: C1 156, S2 12, C3 1,516, S4 32, C5 48,120
    and F6 10,164. So are its 345,308 connections, which count the biases, the sub-sampling and
    the output's 840, but for C3: the printed sum has 156,000 there, and 1,516 weights at 10x10
    positions are 151,600.

    C5's kernels are as large as the maps of S4, 5x5 at the paper's 32 pixels, so that its own
    maps are single units at every size the network is built for. On larger images the network
    slides in its fully convolutional form (section VII).

    Args:
        variant: 'original'.
        classes: at most ten, the digits from 0 on.
        rubbish: j of equation 9, see `loss_of`. The paper prints no value. Ours is small beside
            the 44 to 160 that lie between two drawings, and so F6 comes to look like them. From
            the 84 between a drawing and an F6 of zeros on, the loss is satisfied as soon as the
            right drawing is the nearest.
        init: initial weights, see `initializer`; the paper's are 'lecun' (appendix A).
            Biases start at zero, which the paper does not say.
        dtype: of the computation; parameters, distances and logits are float32.

    Raises ArchitectureError for more classes than there are drawings.
    """

    activated = ("C1", "S2", "C3", "S4", "C5", "F6")

    def __init__(
        self,
        variant: str,
        *,
        image_size: int,
        classes: int,
        channels: int,
        rngs: nnx.Rngs,
        rubbish: float = 1.0,
        init: Init = "lecun",
        dtype: layers.Dtype = "float32",
    ) -> None:
        self.activation = layers.scaled_tanh
        if classes > len(TARGETS):
            raise ArchitectureError(
                f"lenet5:{variant} has drawings of ten classes, the digits, and cannot tell "
                f"{classes} apart; lenet5:modern can"
            )
        self.rubbish = rubbish
        weights = layers.weights(init, dtype, rngs)
        side = _s4_side(image_size)
        self.C1 = layers.Conv(channels, C1_MAPS, 5, use_bias=True, padding=0, **weights)
        self.S2 = Subsampling(C1_MAPS, **weights)
        self.C3 = PartialConv(**weights)
        self.S4 = Subsampling(C3_MAPS, **weights)
        self.C5 = layers.Dense((side, side, C3_MAPS), C5_UNITS, **weights)
        self.F6 = layers.Dense(C5_UNITS, F6_UNITS, **weights)
        self.output = RadialBasis(classes)

    def loss_of(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """The maximum a posteriori criterion, equation 9: (..., classes) twice -> (...,).

        With y_i the distances, minus the logits, and D the right class, the loss is
        y_D + log(exp(-j) + sum_i exp(-y_i)): the soft-max cross-entropy with one further class,
        'rubbish', whose distance is always j. For targets that are no single class it is the
        expectation over them.
        """
        everything = jnp.logaddexp(jax.nn.logsumexp(logits, axis=-1), -self.rubbish)
        return everything - jnp.sum(targets * logits, axis=-1)

    def curvature(self, last: jax.Array, targets: jax.Array) -> jax.Array:
        """2: of the first term of equation 9, the distance to the right class, by F6's states.

        The second term is left out, as f'' is: what it adds can be negative, and nears -2 as soon
        as an image is classified with confidence.
        """
        return jnp.full_like(last, 2)


class ModernLeNet5(_SevenLayers):
    """LeNet-5's maps with today's layers, 61,706 parameters at 32 pixels.

    Args:
        variant: 'modern'.
        width: multiplies the maps of C1 and C3 and the units of C5 and F6.
        init: initial weights, see `initializer`; biases start at zero.
        dtype: of the computation; parameters and logits are float32.
    """

    activated = ("C1", "C3", "C5", "F6")

    def __init__(
        self,
        variant: str,
        *,
        image_size: int,
        classes: int,
        channels: int,
        rngs: nnx.Rngs,
        width: float = 1.0,
        init: Init = "he",
        dtype: layers.Dtype = "float32",
    ) -> None:
        self.activation = relu
        c1, c3, c5, f6 = (layers.scaled(n, width) for n in (C1_MAPS, C3_MAPS, C5_UNITS, F6_UNITS))
        weights = layers.weights(init, dtype, rngs, width)
        side = _s4_side(image_size)
        self.C1 = layers.Conv(channels, c1, 5, use_bias=True, padding=0, **weights)
        self.S2 = layers.MaxPool(2, 2)
        self.C3 = layers.Conv(c1, c3, 5, use_bias=True, padding=0, **weights)
        self.S4 = layers.MaxPool(2, 2)
        self.C5 = layers.Dense((side, side, c3), c5, **weights)
        self.F6 = layers.Dense(c5, f6, **weights)
        self.output = layers.Dense(f6, classes, **weights)


def _s4_side(image_size: int) -> int:
    """Side of S4's maps: 5 at 32 pixels."""
    return ((image_size - 4) // 2 - 4) // 2


FAMILIES = (
    Family(
        name="lenet5",
        variants=("original", "modern"),
        paper="Proc. IEEE 86(11), 1998, section II-B",
        network=LeNet5,
        networks={"modern": ModernLeNet5},
        # The paper counts every layer with weights, sub-sampling too; max-pooling has none.
        depth=lambda variant: 7 if variant == "original" else 5,
        # One pixel is left of two 5x5 convolutions without padding and two halvings.
        minimum_image_size=lambda variant: 16,
        inputs=lambda variant: Inputs(32, 1, 10),
        default="original",
    ),
)

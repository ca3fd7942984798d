"""Dan-net (Ciresan, Meier, Masci, Gambardella & Schmidhuber, IJCAI 2011, arXiv:1102.0183).

The CIFAR-10 networks with eight hidden layers and 100, 200 or 300 maps: three times a 3x3
convolution without padding and max-pooling without overlap (3x3, 2x2, 2x2), then fully connected
layers of 300 and 100 units, and the output.

Our source for the layers is a public script that counts the multiplications of the network with
300 maps. Not confirmed by a copy of the paper: the fully connected layers of the networks with
100 and 200 maps (taken to be the same), that each map sees all maps before it (the authors' code
also has random connection tables), the scaled tanh, the initial weights, and the soft-max.
"""

from typing import Literal

import jax
from flax import nnx

from cnn_arch import layers
from cnn_arch.errors import choose
from cnn_arch.family import Family, Inputs
from cnn_arch.initial_weights import Init
from cnn_arch.kernels.barriers import relu
from cnn_arch.network import Network, Tape

NonLinearity = Literal["tanh", "relu"]

VARIANTS = ("100", "200", "300")
POOLS = (3, 2, 2)
HIDDEN = (300, 100)


class DanNet(Network):
    """A network for CIFAR-10.

    Args:
        variant: the number of maps of each convolution.
        width: multiplies the maps and the hidden units.
        activation: of all hidden layers: 'tanh', LeCun's scaled one, or 'relu'.
        init: initial weights, see `initializer`; the paper's are 'uniform'. Biases start
            at zero.
        dtype: of the computation; parameters and logits are float32.

    Raises ArchitectureError for another activation.
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
        activation: NonLinearity = "tanh",
        init: Init = "uniform",
        dtype: layers.Dtype = "float32",
    ) -> None:
        activations: dict[str, layers.Activation] = {"tanh": layers.scaled_tanh, "relu": relu}
        self.activation = choose("activation", activation, activations)
        maps, first, second = (layers.scaled(n, width) for n in (int(variant), *HIDDEN))
        weights = layers.weights(init, dtype, rngs, width)
        conv = {"padding": 0, "use_bias": True, "activation": self.activation, **weights}
        inputs, side = channels, image_size
        for i, pool in enumerate(POOLS, start=1):
            setattr(self, f"conv{i}", layers.ConvUnit(inputs, maps, 3, **conv))
            setattr(self, f"pool{i}", layers.MaxPool(pool, pool))
            inputs, side = maps, (side - 2) // pool
        self.fc1 = layers.Dense((side, side, maps), first, **weights)
        self.fc2 = layers.Dense(first, second, **weights)
        self.fc3 = layers.Dense(second, classes, **weights)

    def map_features(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        for i in range(1, len(POOLS) + 1):
            stage = [(name, getattr(self, name)) for name in (f"conv{i}", f"pool{i}")]
            x = tape.chain(stage, x)
        return x

    def map_logits(self, tape: Tape, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        for name, layer in (("fc1", self.fc1), ("fc2", self.fc2)):
            x = tape(name, layer, x)
            x = tape(f"{name}_{self.activation.__name__}", self.activation, x)
        return tape("fc3", self.fc3, x)


FAMILIES = (
    Family(
        name="dan_net",
        variants=VARIANTS,
        paper="arXiv:1102.0183, section 4.3",
        network=DanNet,
        depth=lambda variant: len(POOLS) + len(HIDDEN) + 1,
        minimum_image_size=lambda variant: 32,  # 30 after conv1, then 10, 8, 4, 2 and 1
        inputs=lambda variant: Inputs(32, 3, 10),
    ),
)

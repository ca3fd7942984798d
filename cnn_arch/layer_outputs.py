"""What a network computes at one of its layers: features for other tasks than its own.

Layers have the names of `Network.endpoints`. A layer's output is taken as the next layer sees it:
'fc7' is what follows its ReLU, as the papers have it, and 'fc7' of a layer inside a composite, such
as 'conv1_1/conv', is its own output.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cnn_arch import execution
from cnn_arch.errors import ArchitectureError, unknown
from cnn_arch.layers import ConvUnit, Dense
from cnn_arch.network import Composite, Layer, Network, RecordedOutput, Tape, passes_on


@dataclass(frozen=True)
class LayerOutput:
    """A layer's output for one image."""

    shape: tuple[int, ...]  # (h, w, c), or (units,)
    depth: int  # layers with weights on the longest way from the image to it


def layer_outputs(network: Network) -> dict[str, LayerOutput]:
    """Every layer of a network by name, in the order of computation; nothing is computed."""
    return _traced(network).layers


def outer(network: Network) -> list[str]:
    """The layers that lie in no block or module, without the logits and what only passes on.

    In the order of computation: 'conv1', 'pool1', 'stage1', ..., 'pool'.
    """
    trail = _traced(network)
    names = [name for name in trail.layers if "/" not in name and name not in trail.passing]
    return [name for name in names if name != trail.last]


def steps(network: Network) -> list[str]:
    """The layers of `outer`, but of a stage its blocks: 'conv1', 'stage1/block1', ..., 'pool'."""
    trail = _traced(network)
    divided = {name.partition("/")[0] for name in trail.blocks}
    names = {*trail.blocks, *outer(network)} - divided
    return [name for name in trail.layers if name in names]


def classifier_input(network: Network) -> str:
    """The layer whose output is what the last fully connected layer sees, such as 'fc7' or 'pool'.

    Raises ArchitectureError where the logits are no fully connected layer's.
    """
    trail = _traced(network)
    if trail.last is None or trail.layers[trail.last].shape != (network.classes,):
        raise ArchitectureError(
            f"{network.name} has no fully connected layer for its classes; name a layer."
        )
    return trail.seen_by_last


def check(network: Network, layer: str) -> LayerOutput:
    """A layer of a network. Raises ArchitectureError, with the nearest name, if there is none."""
    layers = layer_outputs(network)
    if layer not in layers:
        raise unknown(f"layer of {network.name}", layer, layers)
    return layers[layer]


def pooled(network: Network, layer: str, x: jax.Array, backend: str | None = None) -> jax.Array:
    """A layer's output for images (B, H, W, C), the mean of each of its maps: (B, c) float32.

    backend: as of `execution.tape`. Raises ArchitectureError for an unknown layer.
    """
    recorded = RecordedOutput(layer)
    network(x, tape=execution.recording_tape(recorded, backend))
    if recorded.output is None:
        check(network, layer)
    y = jnp.asarray(recorded.output, jnp.float32)
    return y.mean(axis=(1, 2)) if y.ndim == 4 else y


def outputs(network: Network, layers: Sequence[str], x: jax.Array) -> dict[str, jax.Array]:
    """The outputs of several layers for images (B, H, W, C), by name: (B, h, w, c) or (B, c).

    Raises ArchitectureError for an unknown layer.
    """
    tape = _RecordingTape(layers)
    network(x, tape=tape)
    for recorded in tape.recorded:
        if recorded.output is None:
            check(network, recorded.layer)
    return {recorded.layer: jnp.asarray(recorded.output) for recorded in tape.recorded}


class _RecordingTape(Tape):
    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__()
        self.recorded = [RecordedOutput(layer) for layer in layers]

    def note(
        self, name: str, layer: Layer, inputs: tuple[jax.Array, ...], output: jax.Array
    ) -> None:
        for recorded in self.recorded:
            recorded.see(name, layer, inputs, output)


class _Trail(Tape):
    """Notes each layer's shape and depth, and which layer the last fully connected one sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: dict[str, LayerOutput] = {}
        self.arrays: dict[int, tuple[jax.Array, str, int]] = {}  # id -> array, its layer, its depth
        self.ends: dict[str, str] = {}
        self.passing: set[str] = set()  # names of what `passes_on`
        self.blocks: list[str] = []  # composites of layers that lie in another one

    @property
    def last(self) -> str | None:
        return self.ends.get("last")

    @property
    def seen_by_last(self) -> str:
        return self.ends["seen"]

    def note(
        self, name: str, layer: Layer, inputs: tuple[jax.Array, ...], output: jax.Array
    ) -> None:
        before = [self.arrays[id(x)] for x in inputs if id(x) in self.arrays]
        depth = max((at for *_, at in before), default=0) + hasattr(layer, "kernel")
        origin = name
        if passes_on(layer, inputs) and before:
            origin = before[0][1]
            self.passing.add(name)
        elif id(output) in self.arrays:  # a composite's is that of its last layer
            depth = self.arrays[id(output)][2]
        if "/" in name and isinstance(layer, Composite) and not isinstance(layer, ConvUnit):
            self.blocks.append(name)
        self.layers[name] = LayerOutput(tuple(output.shape[1:]), depth)
        self.arrays[id(output)] = output, origin, depth
        if isinstance(layer, Dense):
            self.ends["last"], self.ends["seen"] = name, before[0][1] if before else ""


def _traced(network: Network) -> _Trail:
    trail = _Trail()
    graphdef, state = nnx.split(network)

    def forward(state: Any, x: jax.Array) -> jax.Array:
        net = nnx.merge(graphdef, state)
        net.eval()
        return net(x, tape=trail)

    side = network.image_size
    images = jax.ShapeDtypeStruct((1, side, side, network.channels), jnp.float32)
    jax.eval_shape(forward, state, images)
    return trail

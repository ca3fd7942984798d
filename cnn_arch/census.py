"""What can be counted of a network without data: shapes, parameters, MACs, receptive fields.

The network is traced abstractly, layer by layer, so that nothing is allocated or computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count
from math import prod
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cnn_arch import registry
from cnn_arch.network import Composite, Layer, Named, Network, Tape
from cnn_arch.window import Window


@dataclass(frozen=True)
class LayerRow:
    """One layer of the table."""

    name: str  # its path, such as 'stage2/block1/conv1/conv'
    # conv, norm, lrn, max_pool, average_pool, shortcut, add, concat, fc, and LeNet-5's subsampling
    # and rbf.
    kind: str
    kernel: int  # of its window, as the stride; 1 where it looks at one position
    stride: int
    output_shape: tuple[int, ...]  # (h, w, c), or (units,)
    params: int  # trained values, biases and scales included
    macs: int  # multiply-adds of convolutions and fully connected layers for one image
    # Side of the square of input pixels that one output depends on; it may be larger than the
    # image, where it reaches into the padding.
    receptive_field: int
    jump: int  # distance in input pixels between neighbouring outputs
    activation_bytes: int  # of the output, for one image
    inputs: tuple[str, ...]  # rows that it reads, through ReLU and dropout; none: the image
    stage: int = 0  # number of the chain of layers that it lies in (`Tape.chain`); 0: in none


@dataclass(frozen=True)
class Census:
    """The layers of a network as it is tested, and their totals."""

    name: str
    image_size: int
    channels: int
    classes: int
    depth: int  # weight layers as the paper counts them
    params: int  # trained values of these layers
    # Of all layers: more than `params` where some serve in training only (GoogLeNet's auxiliary
    # classifiers).
    training_params: int
    macs: int
    # Outputs of convolutions and fully connected layers for one image, as AlexNet's paper counts
    # them (without the input).
    neurons: int
    # Of all layers' outputs for one image: what backpropagation keeps. ReLU and dropout count as
    # done in place.
    activation_bytes: int
    layers: list[LayerRow] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _View:
    """Input pixels [low, high] that output 0 of a map depends on; output i is i * jump further."""

    low: int
    high: int
    jump: int

    def through(self, window: Window) -> "_View":
        low = self.low - window.padding * self.jump
        high = self.high + (window.kernel - 1 - window.padding) * self.jump
        return _View(low, high, self.jump * window.stride)


class _CensusTape(Tape):
    """Notes a row for every layer that has a kind, and follows views along the data flow."""

    def __init__(self, image: jax.Array) -> None:
        super().__init__()
        self.rows: list[LayerRow] = []
        self.stages = count(1)  # numbers of chains, of all tapes inside this one too
        # Arrays are kept beside their views so that no other array can take their id.
        self.views = {id(image): (image, _View(0, 0, 1))}
        self.sources: dict[int, tuple[str, ...]] = {id(image): ()}  # rows that an array comes from

    def chain(self, layers: Sequence[Named], x: jax.Array) -> jax.Array:
        first = len(self.rows)
        y = super().chain(layers, x)
        stage = next(self.stages)
        self.rows[first:] = [replace(row, stage=stage) for row in self.rows[first:]]
        return y

    def __call__(self, name: str, layer: Layer, *inputs: jax.Array, **options: Any) -> jax.Array:
        if isinstance(layer, Composite):
            return super().__call__(name, layer, *inputs, **options)
        graph, state = nnx.split(layer) if isinstance(layer, nnx.Module) else (layer, None)
        output = _called(graph, state, inputs, options)
        self.note(self.prefix + name, layer, inputs, output)
        return output

    def note(
        self, name: str, layer: Layer, inputs: tuple[jax.Array, ...], output: jax.Array
    ) -> None:
        if isinstance(layer, Composite):
            return
        window = layer.window(inputs[0].shape) if hasattr(layer, "window") else Window(1)
        views = [self.views[id(x)][1].through(window) for x in inputs]
        (jump,) = {view.jump for view in views}
        view = _View(min(v.low for v in views), max(v.high for v in views), jump)
        self.views[id(output)] = (output, view)
        inputs_of = tuple(dict.fromkeys(name for x in inputs for name in self.sources[id(x)]))
        self.sources[id(output)] = (name,) if hasattr(layer, "kind") else inputs_of
        if hasattr(layer, "kind"):
            self.rows.append(
                LayerRow(
                    name=name,
                    kind=layer.kind,
                    kernel=window.kernel,
                    stride=window.stride,
                    output_shape=tuple(output.shape[1:]),
                    params=_count(nnx.state(layer, nnx.Param)),
                    macs=layer.macs(output.shape) if hasattr(layer, "macs") else 0,
                    receptive_field=view.high - view.low + 1,
                    jump=jump,
                    activation_bytes=prod(output.shape[1:]) * output.dtype.itemsize,
                    inputs=inputs_of,
                )
            )


@partial(jax.jit, static_argnums=0)
def _called(graph: Any, state: nnx.State | None, inputs: Any, options: Any) -> jax.Array:
    """What a layer, or a function, returns: JAX traces those that are alike once."""
    layer = graph if state is None else nnx.merge(graph, state)
    return layer(*inputs, **options)


def census(name: str, **arguments: Any) -> Census:
    """Counts an architecture; the arguments are those of `create`, and so are its errors."""
    network = registry.abstract(name, **arguments)
    rows = _traced(network, _CensusTape).rows
    return Census(
        name=network.name,
        image_size=network.image_size,
        channels=network.channels,
        classes=network.classes,
        depth=registry.depth(name, dict(network.options)),
        params=sum(row.params for row in rows),
        training_params=_count(nnx.state(network, nnx.Param)),
        macs=sum(row.macs for row in rows),
        neurons=sum(prod(row.output_shape) for row in rows if row.kind in ("conv", "fc")),
        activation_bytes=sum(row.activation_bytes for row in rows),
        layers=rows,
    )


def receptive_fields(network: Network) -> dict[str, np.ndarray]:
    """The pixels that each place of a layer's output depends on, by the layer's name.

    An array (h, 2) has the first pixel and the one after the last, along one axis of the image, of
    each place along the map; images and maps are square. What fully connected layers give has one
    place. The census's `receptive_field` is without borders; this is inside of them, also where a
    stride leaves the last pixels out. Nothing is computed.
    """
    return _traced(network, _FieldTape).by_name


class _FieldTape(Tape):
    """Follows the pixels that each place depends on along the data flow."""

    def __init__(self, image: jax.Array) -> None:
        super().__init__()
        pixels = np.arange(image.shape[1])
        own = np.stack([pixels, pixels + 1], axis=1)
        # Arrays are kept beside their fields so that no other array can take their id.
        self.fields = {id(image): (image, own)}
        self.by_name: dict[str, np.ndarray] = {}

    def note(
        self, name: str, layer: Layer, inputs: tuple[jax.Array, ...], output: jax.Array
    ) -> None:
        if not isinstance(layer, Composite):
            window = layer.window(inputs[0].shape) if hasattr(layer, "window") else Window(1)
            fields = [self.fields[id(x)][1] for x in inputs]
            starts: np.ndarray = window.stride * np.arange(
                output.shape[1] if output.ndim == 4 else 1
            )
            low = np.maximum(starts - window.padding, 0)
            last = len(fields[0]) - 1
            high = np.minimum(starts - window.padding + window.kernel - 1, last)
            firsts = np.min([field[low, 0] for field in fields], axis=0)
            ends = np.max([field[high, 1] for field in fields], axis=0)
            self.fields[id(output)] = (output, np.stack([firsts, ends], axis=1))
        self.by_name[name] = self.fields[id(output)][1]


Traced = TypeVar("Traced", bound=Tape)


def _traced(network: Network, kind: Callable[[jax.Array], Traced]) -> Traced:
    """The tape that has followed an image of the network's size through it, in eval mode."""
    graph, state = nnx.split(network)
    tapes: list[Traced] = []

    def trace(state: nnx.State, x: jax.Array) -> jax.Array:
        net = nnx.merge(graph, state)
        net.eval()
        tapes.append(kind(x))
        return net(x, tape=tapes[0])

    shape = (1, network.image_size, network.image_size, network.channels)
    jax.eval_shape(trace, state, jax.ShapeDtypeStruct(shape, jnp.float32))
    return tapes[0]


def _count(params: nnx.State) -> int:
    return sum(prod(p.shape) for p in jax.tree.leaves(params))

"""What can be counted of a network without data: shapes, parameters, MACs, receptive fields.

The network is traced abstractly, layer by layer, so that nothing is allocated or computed.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cnn_arch import registry
from cnn_arch.network import Composite, Tape
from cnn_arch.window import Window


@dataclass(frozen=True)
class LayerRow:
    """One layer of the table.

    Attributes:
        name: path of the layer, such as 'stage2/block1/conv1/conv'.
        kind: conv, norm, lrn, max_pool, average_pool, shortcut, add, concat, fc, and LeNet-5's
            subsampling and rbf.
        kernel, stride: of its window; 1 where it looks at one position.
        output_shape: (h, w, c), or (units,).
        params: trained values, biases and scales included.
        macs: multiply-adds of convolutions and fully connected layers for one image.
        receptive_field: side of the square of input pixels that one output depends on; it may
            be larger than the image, where it reaches into the padding.
        jump: distance in input pixels between neighbouring outputs.
        activation_bytes: of the output, for one image.
    """

    name: str
    kind: str
    kernel: int
    stride: int
    output_shape: tuple[int, ...]
    params: int
    macs: int
    receptive_field: int
    jump: int
    activation_bytes: int


@dataclass(frozen=True)
class Census:
    """The layers of a network as it is tested, and their totals.

    Attributes:
        depth: weight layers as the paper counts them.
        params: trained values of these layers.
        training_params: of all layers; more than `params` where some serve in training only
            (GoogLeNet's auxiliary classifiers).
        neurons: outputs of convolutions and fully connected layers for one image, as AlexNet's
            paper counts them (without the input).
        activation_bytes: of all layers' outputs for one image: what backpropagation keeps. ReLU
            and dropout count as done in place.
    """

    name: str
    image_size: int
    channels: int
    classes: int
    depth: int
    params: int
    training_params: int
    macs: int
    neurons: int
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
        # Arrays are kept beside their views so that no other array can take their id.
        self.views = {id(image): (image, _View(0, 0, 1))}

    def note(
        self,
        name: str,
        layer: Callable[..., jax.Array],
        inputs: tuple[jax.Array, ...],
        output: jax.Array,
    ) -> None:
        if isinstance(layer, Composite):
            return
        window = layer.window(inputs[0].shape) if hasattr(layer, "window") else Window(1)
        views = [self.views[id(x)][1].through(window) for x in inputs]
        (jump,) = {view.jump for view in views}
        view = _View(min(v.low for v in views), max(v.high for v in views), jump)
        self.views[id(output)] = (output, view)
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
                )
            )


def census(
    name: str,
    *,
    image_size: int | None = None,
    classes: int | None = None,
    channels: int | None = None,
    **options: Any,
) -> Census:
    """Counts an architecture; the arguments are those of `create`, and so are its errors."""
    create = partial(registry.create, name, classes=classes, channels=channels, **options)
    papers = registry.inputs(name)
    side = papers.image_size if image_size is None else image_size
    depth = papers.channels if channels is None else channels
    rows: list[LayerRow] = []
    trained: list[int] = []

    def trace(x: jax.Array) -> jax.Array:
        net = create(image_size=side, rngs=registry.NoKeys())
        net.eval()
        trained.append(_count(nnx.state(net, nnx.Param)))
        tape = _CensusTape(x)
        logits = net(x, tape=tape)
        rows.extend(tape.rows)
        return logits

    registry.check(name, image_size=side, classes=classes, channels=channels, **options)
    logits = jax.eval_shape(trace, jax.ShapeDtypeStruct((1, side, side, depth), jnp.float32))
    return Census(
        name=registry.full_name(name),
        image_size=side,
        channels=depth,
        classes=logits.shape[1],
        depth=registry.depth(name),
        params=sum(row.params for row in rows),
        training_params=trained[0],
        macs=sum(row.macs for row in rows),
        neurons=sum(prod(row.output_shape) for row in rows if row.kind in ("conv", "fc")),
        activation_bytes=sum(row.activation_bytes for row in rows),
        layers=rows,
    )


def _count(params: nnx.State) -> int:
    return sum(prod(p.shape) for p in jax.tree.leaves(params))

"""A network's layers as a list that another library can execute, with their inputs and sizes.

A tape records it while the network is called, so that a peer has the same layers by construction.
It is plain data, so that a peer's process needs no JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

# What the peers can execute; `record` refuses all else.
ACTIVATIONS = ("relu", "tanh", "scaled_tanh")
POOLS = ("max_pool", "average_pool")


@dataclass(frozen=True)
class Node:
    """One layer. Value 0 is the images, and value k the output of the k-th node."""

    name: str  # on the tape, which is also the path of its parameters
    # conv, fc, norm, lrn, global_pool, dropout, shortcut, add, concat, of `POOLS` or `ACTIVATIONS`
    op: str
    inputs: tuple[int, ...]  # numbers of values
    shape: tuple[int, ...]  # of its output for one image: (h, w, c) or (units,)
    options: dict[str, Any]  # what else the op needs to know


@dataclass(frozen=True)
class Graph:
    """A network."""

    name: str
    image_shape: tuple[int, ...]  # (h, w, c)
    nodes: tuple[Node, ...]  # in the order of execution
    params: int  # trained values

    def last_used(self) -> list[tuple[int, ...]]:
        """For each node, the values that no later one needs."""
        last = {value: k for k, node in enumerate(self.nodes) for value in node.inputs}
        return [tuple(v for v, i in last.items() if i == k) for k in range(len(self.nodes))]


def record(name: str, *, image_size: int, classes: int, **options: Any) -> Graph:
    """The graph of an architecture; the arguments are those of `cnn_arch.create`.

    Raises ArchitectureError for what can't be built, and for layers or a loss that the peers lack.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import cnn_arch
    from cnn_arch import registry
    from cnn_arch.errors import ArchitectureError
    from cnn_arch.network import Composite, Network, Tape

    nodes: list[Node] = []

    class Recorder(Tape):
        """Appends a node for every layer; it keeps the arrays so that their ids stay unique."""

        def __init__(self, images: jax.Array) -> None:
            super().__init__()
            self.values = {id(images): (images, 0)}

        def note(
            self,
            name: str,
            layer: Callable[..., jax.Array],
            inputs: tuple[jax.Array, ...],
            output: jax.Array,
        ) -> None:
            if isinstance(layer, Composite):
                return
            op, settings = _describe(layer)
            numbers = [self.values.get(id(x), (x, -1))[1] for x in inputs]
            if not op or -1 in numbers:
                kind = getattr(layer, "__name__", type(layer).__name__)
                raise ArchitectureError(
                    f"{net.name}: a peer has no {kind} as {name} is; choose an architecture "
                    "without it, or --peer none"
                )
            nodes.append(Node(name, op, tuple(numbers), tuple(output.shape[1:]), settings))
            self.values[id(output)] = (output, len(nodes))

    arguments = {"image_size": image_size, "classes": classes, **options}
    net = cnn_arch.abstract(name, **arguments)
    if type(net).losses is not Network.losses or type(net).loss_of is not Network.loss_of:
        raise ArchitectureError(
            f"{net.name}: its loss is not a plain soft-max cross-entropy, which is all that peers "
            "have; choose an architecture with that, such as vgg:A, or --peer none"
        )

    def trace(x: jax.Array) -> jax.Array:
        traced = registry.create(name, rngs=registry.NoKeys(), **arguments)
        traced.eval()
        return traced(x, tape=Recorder(x))

    shape = (image_size, image_size, net.channels)
    jax.eval_shape(trace, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    params = sum(prod(p.shape) for p in jax.tree.leaves(nnx.state(net, nnx.Param)))
    return Graph(net.name, shape, tuple(nodes), params)


def _describe(layer: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    """(op, options) of a layer; op is '' for a layer that peers lack."""
    from flax import nnx

    from cnn_arch import layers

    if isinstance(layer, layers.Conv):
        inputs = layer.kernel.get_value().shape[2] * layer.groups
        sizes = {"inputs": inputs, "bias": layer.bias is not None}
        return "conv", {**sizes, **_of(layer, "size", "stride", "padding", "groups")}
    if isinstance(layer, layers.Dense):
        return "fc", {"inputs": list(layer.map_shape)}
    if isinstance(layer, layers.BatchNorm):
        return ("" if layer.group_size else "norm"), _of(layer, "epsilon")
    if isinstance(layer, layers.LocalResponseNorm):
        return "lrn", {**_of(layer, "k", "alpha", "n"), "beta": 0.75}
    if isinstance(layer, layers.MaxPool):
        return "max_pool", _of(layer, "size", "stride", "padding", "ceil")
    if isinstance(layer, layers.AveragePool):
        return "average_pool", _of(layer, "size", "stride", "ceil")
    if isinstance(layer, layers.IdentityShortcut):
        return "shortcut", _of(layer, "outputs", "stride")
    if isinstance(layer, nnx.Dropout):
        factor = 1 - layer.rate if isinstance(layer, layers.Dropout) else 1
        return "dropout", {"rate": float(layer.rate), "factor": float(factor)}
    op_of = {layers.GlobalAveragePool: "global_pool", layers.Add: "add", layers.Concat: "concat"}
    if type(layer) in op_of:
        return op_of[type(layer)], {}
    name = getattr(layer, "__name__", "")
    return (name if name in ACTIVATIONS else ""), {}


def _of(layer: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(layer, name) for name in names}

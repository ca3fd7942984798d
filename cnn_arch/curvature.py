"""Second derivatives of a loss by each weight, for stochastic diagonal Levenberg-Marquardt.

LeCun et al. 1998 (Proc. IEEE 86(11), appendix C) send second derivatives back through a network as
gradients are sent, with squares in place of weights and slopes. With `a_i = sum_j u_ij x_j` the
input of a unit and `x_i = f(a_i)` its state,

    d2E/du_ij^2 = d2E/da_i^2 x_j^2         d2E/da_i^2 = f'(a_i)^2 sum_k u_ki^2 d2E/da_k^2

and of a weight that connections share, the sum over them. Three things are left out: the second
derivatives between two weights, those between two units, and f''. What is left is never negative.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cnn_arch import registry
from cnn_arch.errors import ArchitectureError
from cnn_arch.kernels.barriers import relu
from cnn_arch.layers import Conv, Dense, MaxPool, scaled_tanh
from cnn_arch.lenet import PartialConv, RadialBasis, Subsampling
from cnn_arch.network import Composite, Layer, Network, Tape, flat_state, unflat_state

ACTIVATIONS = (relu, scaled_tanh)
LINEAR = (Conv, Dense, PartialConv)  # whose outputs are sums of products of a weight and an input


def diagonal(
    merge: Callable[[dict[str, jax.Array]], Network],
    params: dict[str, jax.Array],
    x: jax.Array,
    targets: jax.Array,
) -> dict[str, jax.Array]:
    """Second derivatives of the mean loss over a batch by each parameter, as in the module's text.

    They begin with those of the loss by the outputs of the last layer with weights
    (`Network.curvature`). merge: parameters -> the network, in eval mode; params: by name, those
    that are differentiated. x: (B, H, W, C); targets: (B, classes), see `Network.losses`. Raises
    ArchitectureError for a network with another layer than those here.
    """

    def outputs(params: dict[str, jax.Array]) -> jax.Array:
        tape = _SecondDerivatives()
        logits = merge(params)(x, tape=tape)
        return logits if tape.last is None else tape.last

    last, send_back = jax.vjp(outputs, params)
    (derivatives,) = send_back(merge(params).curvature(last, targets) / len(x))
    return derivatives


def check(name: str, **arguments: Any) -> None:
    """Raises ArchitectureError where `diagonal` has no rule for a layer of this network.

    name, arguments: as of `cnn_arch.abstract`.
    """
    network = registry.abstract(name, **arguments)
    network.eval()
    graph, params, rest = nnx.split(network, nnx.Param, ...)

    def merge(values: dict[str, jax.Array]) -> Network:
        return nnx.merge(graph, unflat_state(values, params), rest, copy=True)

    shape = (1, network.image_size, network.image_size, network.channels)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    targets = jax.ShapeDtypeStruct((1, network.classes), jnp.float32)
    jax.eval_shape(partial(diagonal, merge), flat_state(params), images, targets)


class _SecondDerivatives(Tape):
    """Calls layers as usual; the gradients of what comes out are second derivatives.

    last: what went into the last layer, where that has no weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last: jax.Array | None = None

    def __call__(self, name: str, layer: Layer, *inputs: jax.Array, **options: Any) -> jax.Array:
        if isinstance(layer, Composite):
            return super().__call__(name, layer, *inputs, **options)
        if isinstance(layer, RadialBasis):
            (self.last,) = inputs
            return layer(*inputs)
        if isinstance(layer, LINEAR):
            return _linear(layer, *inputs)
        if isinstance(layer, Subsampling):
            return _subsampled(layer, *inputs)
        if isinstance(layer, MaxPool):  # hands on what it gets, as it is
            return layer(*inputs)
        if isinstance(layer, nnx.Dropout) or layer in ACTIVATIONS:
            return _activated(layer, *inputs)
        layer_type = getattr(layer, "__name__", type(layer).__name__)
        types = ", ".join(type.__name__ for type in (*LINEAR, Subsampling, MaxPool, RadialBasis))
        raise ArchitectureError(
            f"no rule for second derivatives of {self.prefix}{name} ({layer_type}) is "
            f"here; they are for {types}, "
            f"{' and '.join(activation.__name__ for activation in ACTIVATIONS)}"
        )


def _ruled(
    call: Callable[..., jax.Array], backward: Callable[..., Any], *arguments: Any
) -> jax.Array:
    """call(*given), whose derivatives are backward(given, those by its result)."""
    ruled = jax.custom_vjp(call)
    ruled.defvjp(lambda *arguments: (call(*arguments), arguments), backward)
    return ruled(*arguments)


def _function(layer: Layer) -> tuple[Callable[..., jax.Array], Any]:
    """A layer as a function of its weights and its input, and these weights."""
    graph, weights = nnx.split(layer)
    return lambda weights, x: nnx.merge(graph, weights, copy=True)(x), weights


def _linear(layer: Layer, x: jax.Array) -> jax.Array:
    """The derivatives of the layer whose weights and inputs are the squares of this one's."""
    call, weights = _function(layer)

    def backward(residuals: Any, curvature: jax.Array) -> Any:
        return jax.vjp(call, *jax.tree.map(jnp.square, residuals))[1](curvature)

    return _ruled(call, backward, weights, x)


def _subsampled(layer: Subsampling, x: jax.Array) -> jax.Array:
    """As of a unit with one input, the sum over 2x2 pixels, and one weight."""
    call, weights = _function(layer)

    def backward(residuals: Any, curvature: jax.Array) -> Any:
        weights, x = residuals
        # By the coefficient, the slope is the sum: what the layer gives with coefficients of 1.
        unit = jax.tree.map(jnp.zeros_like, weights)
        unit["coefficient"] = jax.tree.map(jnp.ones_like, weights["coefficient"])
        of_weights, _ = jax.vjp(call, weights, x)[1](curvature * call(unit, x))
        of_bias, of_x = jax.vjp(call, jax.tree.map(jnp.square, weights), x)[1](curvature)
        of_weights["bias"] = of_bias["bias"]
        return of_weights, of_x

    return _ruled(call, backward, weights, x)


def _activated(activation: Layer, x: jax.Array) -> jax.Array:
    def backward(residuals: tuple[jax.Array], curvature: jax.Array) -> tuple[jax.Array]:
        (slope,) = jax.vjp(activation, *residuals)[1](jnp.ones_like(curvature))
        return (curvature * jnp.square(slope),)

    return _ruled(activation, backward, x)

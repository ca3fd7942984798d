"""Weights and biases on a map, with gradients in the computation's dtype or in float32."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cnn_arch.kernels import onednn
from cnn_arch.kernels.barriers import apart

Multiply = Callable[[jax.Array, jax.Array], jax.Array]


def affine(
    multiply: Multiply, x: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> jax.Array:
    """`multiply(x, kernel)` and the biases, in x's dtype, which their gradients are computed in."""
    y = multiply(x, kernel.astype(x.dtype))
    if bias is None:
        return y
    bias = bias.astype(x.dtype)
    return _plus(y, bias) if onednn.takes(x) and x.dtype == jnp.bfloat16 else y + bias


@jax.custom_vjp
def _plus(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y + bias, both bfloat16. The gradient of the bias is a float32 sum, the faster on a CPU."""
    return y + bias


def _plus_forward(y: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
    return y + bias, None


def _plus_backward(_: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    once, again = apart((gradient, gradient))
    total = once.astype(jnp.float32).sum(tuple(range(gradient.ndim - 1)))
    return again, total.astype(gradient.dtype)


_plus.defvjp(_plus_forward, _plus_backward)


def affine_with_float32_gradients(
    multiply: Multiply, x: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> jax.Array:
    """The same values as `affine`, and the same gradient by x.

    Those by kernel and bias, which are float32, are summed over the examples in float32, and over
    devices too; in `affine` each device's sum is rounded to x's dtype.
    """

    @jax.custom_vjp
    def applied(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        return affine(multiply, x, kernel, bias)

    def forward(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, Any]:
        return applied(x, kernel, bias), (x, kernel, bias)

    def backward(residuals: Any, gradient: jax.Array) -> tuple[Any, ...]:
        x, kernel, bias = residuals
        _, by_x = jax.vjp(lambda x: affine(multiply, x, kernel, bias), x)
        exact = x.astype(jnp.float32)
        _, by_weights = jax.vjp(lambda *weights: affine(multiply, exact, *weights), kernel, bias)
        return *by_x(gradient), *by_weights(gradient.astype(jnp.float32))

    applied.defvjp(forward, backward)
    return applied(x, kernel, bias)

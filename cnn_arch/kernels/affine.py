"""Weights and biases on a map, with gradients in the computation's dtype or in float32."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Multiply = Callable[[jax.Array, jax.Array], jax.Array]


def affine(
    multiply: Multiply, x: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> jax.Array:
    """`multiply(x, kernel)` and the biases, in x's dtype, which their gradients are computed in."""
    y = multiply(x, kernel.astype(x.dtype))
    return y if bias is None else y + bias.astype(x.dtype)


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

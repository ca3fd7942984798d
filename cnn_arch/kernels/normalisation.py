"""Batch normalisation and local response normalisation, with gradients that read few maps."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

from cnn_arch.kernels.barriers import apart


def normalised(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    epsilon: float,
) -> jax.Array:
    factor = scale * lax.rsqrt(var + epsilon)
    return ((x.astype(jnp.float32) - mean) * factor + bias).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x normalised with its own moments, (B, H, W, C), and these, which have no gradient.

    Its own gradient, since that of `_moments` and `normalised` keeps and reads more maps: here x
    is read for the two sums over the gradient, and once more.
    """
    return _batch_norm_forward(x, scale, bias, epsilon)[0]


def _batch_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    mean, var = _moments(x)
    y = normalised(x, scale, bias, mean, var, epsilon)
    return (y, mean, var), (x, scale, mean, var)


def _batch_norm_backward(
    epsilon: float, residuals: tuple[jax.Array, ...], gradients: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    x, scale, mean, var = residuals
    values, gradient = x.astype(jnp.float32), gradients[0].astype(jnp.float32)
    axes, count = tuple(range(x.ndim - 1)), x[..., 0].size
    inverse = lax.rsqrt(var + epsilon)
    # The barriers keep XLA from writing `values - mean` down once to read it three times.
    mean = apart(mean)
    of_bias = gradient.sum(axes)
    along = (gradient * (values - mean)).sum(axes)
    mean, along = apart((mean, along))
    slope = along * jnp.square(inverse) / count
    of_x = (gradient - of_bias / count - (values - mean) * slope) * (scale * inverse)
    return of_x.astype(x.dtype), along * inverse, of_bias


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each map, (B, H, W, C) -> (C,) twice, float32.

    One pass over x, about 1.3 times faster a training step on CPU than the variance around the
    mean. The values are first shifted by one of their own, so that mean^2 is never much larger
    than the variance and their difference keeps its digits.
    """
    axes = tuple(range(x.ndim - 1))
    x = x.astype(jnp.float32)
    # Two names for one value: XLA would write `x - shift` down to read it twice.
    shift, again = apart((x[(0,) * len(axes)],) * 2)
    mean = (x - shift).mean(axes)
    return mean + shift, jnp.square(x - again).mean(axes) - jnp.square(mean)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def local_response_norm(x: jax.Array, n: int, k: float, alpha: float) -> jax.Array:
    """x (k + alpha * sum of squares over the n maps around each)^-0.75, computed in float32.

    Its own gradient, which keeps two maps of x's dtype; and barriers, since XLA would compute sums
    of neighbours for each neighbour.
    """
    return _response_norm_forward(x, n, k, alpha)[0]


def _response_norm_forward(
    x: jax.Array, n: int, k: float, alpha: float
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    values = x.astype(jnp.float32)
    root = apart(lax.rsqrt(k + alpha * _sum_of_neighbours(jnp.square(values), n)))
    y = values * root * jnp.sqrt(root)  # no power, which is slow on CPU
    return y.astype(x.dtype), (x, root.astype(x.dtype))


def _response_norm_backward(
    n: int, k: float, alpha: float, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array]:
    dtype = gradient.dtype
    x, root, gradient = (array.astype(jnp.float32) for array in (*residuals, gradient))
    gradient = apart(gradient)
    factor = root * jnp.sqrt(root)
    through = apart(gradient * x * factor * jnp.square(root))
    of_x = gradient * factor - 1.5 * alpha * x * _sum_of_neighbours(through, n)
    return (of_x.astype(dtype),)


local_response_norm.defvjp(_response_norm_forward, _response_norm_backward)


def _sum_of_neighbours(x: jax.Array, n: int) -> jax.Array:
    """Over the n maps around each, itself in the middle."""
    reach, channels = n // 2, x.shape[-1]
    x = jnp.pad(x, ((0, 0),) * 3 + ((reach, reach),))
    return reduce(jnp.add, (x[..., i : i + channels] for i in range(n)))

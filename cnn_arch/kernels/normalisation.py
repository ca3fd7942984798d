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
    """(x - mean) / sqrt(var + epsilon) * scale + bias, computed in float32, of x's dtype."""
    factor = scale * lax.rsqrt(var + epsilon)
    return ((x.astype(jnp.float32) - mean) * factor + bias).astype(x.dtype)


Moments = tuple[jax.Array, jax.Array]
Gradients = tuple[jax.Array, jax.Array, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    near: jax.Array,
    groups: int,
    epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x normalised with the moments of each group of consecutive examples, and these moments.

    Args:
        x: (B, H, W, C).
        scale, bias: (C,).
        near: (C,), numbers near the mean, such as a running mean. The variance is a difference of
            two sums, and is exact to float32's digits where these are not far off.
        groups: so many equal parts of the batch.

    Returns y like x, and mean and biased variance, (groups, C) float32, which have no gradient.

    Its gradient is its own, since that of the formula keeps and reads more maps. A CPU and other
    devices have programs of their own.
    """
    return _batch_norm_forward(x, scale, bias, near, groups, epsilon)[0]


def _batch_norm_forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    near: jax.Array,
    groups: int,
    epsilon: float,
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    y, mean, var = _forward(x, scale, bias, near, groups, epsilon)
    return (y, mean, var), (x, scale, mean, var)


def _batch_norm_backward(
    groups: int,
    epsilon: float,
    residuals: tuple[jax.Array, ...],
    gradients: tuple[jax.Array, ...],
) -> tuple[jax.Array, ...]:
    of_x, of_scale, of_bias = _backward(*residuals, gradients[0], epsilon)
    return of_x, of_scale, of_bias, jnp.zeros_like(of_bias)


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


# Both are traced once for each shape: every platform's program is traced each time.
@partial(jax.jit, static_argnums=(4, 5), inline=True)
def _forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    near: jax.Array,
    groups: int,
    epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    outputs: tuple[jax.Array, jax.Array, jax.Array] = lax.platform_dependent(
        *(x, scale, bias, near),
        cpu=partial(_forward_on_cpu, groups=groups, epsilon=epsilon),
        default=partial(forward_by_example, groups=groups, epsilon=epsilon),
    )
    return outputs


@partial(jax.jit, static_argnums=5, inline=True)
def _backward(
    x: jax.Array,
    scale: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    gradient: jax.Array,
    epsilon: float,
) -> Gradients:
    gradients: Gradients = lax.platform_dependent(
        *(x, scale, mean, var, gradient),
        cpu=partial(_backward_on_cpu, epsilon=epsilon),
        default=partial(backward_by_example, epsilon=epsilon),
    )
    return gradients


def forward_by_example(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    near: jax.Array,
    *,
    groups: int,
    epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`batch_norm` from two sums over each example, which its group shares.

    The map keeps its shape, so XLA takes the sums where it computes the map; and the sums do not
    depend on one another, so devices that share a group exchange them at once.
    """
    examples, count = len(x) // groups, x[..., 0].size // groups
    off = x.astype(jnp.float32) - near
    mean = _over_group(off, groups) / count
    var = jnp.maximum(_over_group(jnp.square(off), groups) / count - jnp.square(mean), 0)
    mean = mean + near
    spread = partial(_to_examples, examples=examples)
    return normalised(x, scale, bias, spread(mean), spread(var), epsilon), mean, var


def backward_by_example(
    x: jax.Array,
    scale: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    gradient: jax.Array,
    *,
    epsilon: float,
) -> Gradients:
    """The gradients by x, scale and bias of `batch_norm`, as `forward_by_example` computes it."""
    groups = len(mean)
    examples, count = len(x) // groups, x[..., 0].size // groups
    spread = partial(_to_examples, examples=examples)
    wide, inverse = gradient.astype(jnp.float32), lax.rsqrt(var + epsilon)
    off = x.astype(jnp.float32) - spread(mean)
    total, along = _over_group(wide, groups), _over_group(wide * off, groups)
    slope = along * jnp.square(inverse) / count
    of_x = (wide - spread(total / count) - off * spread(slope)) * spread(scale * inverse)
    return of_x.astype(x.dtype), (along * inverse).sum(0), total.sum(0)


def _over_group(values: jax.Array, groups: int) -> jax.Array:
    """Sums of each map over its group, (B, H, W, C) -> (groups, C)."""
    of_examples = values.sum(axis=(1, 2))
    return of_examples.reshape(groups, -1, values.shape[-1]).sum(axis=1)


def _to_examples(values: jax.Array, examples: int) -> jax.Array:
    """A group's values for each of its examples, (groups, C) -> (B, 1, 1, C), or of one group."""
    if len(values) > 1:
        values = jnp.repeat(values, examples, axis=0)
    return values[:, None, None]


def _forward_on_cpu(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    near: jax.Array,
    *,
    groups: int,
    epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    def group(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        mean, var = _moments_on_cpu(x)
        return normalised(x, scale, bias, mean, var, epsilon), mean, var

    if groups == 1:
        y, mean, var = group(x)
        return y, mean[None], var[None]
    y, mean, var = jax.vmap(group)(x.reshape(groups, -1, *x.shape[1:]))
    return y.reshape(x.shape), mean, var


def _backward_on_cpu(
    x: jax.Array,
    scale: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    gradient: jax.Array,
    *,
    epsilon: float,
) -> Gradients:
    def group(x: jax.Array, mean: jax.Array, var: jax.Array, gradient: jax.Array) -> Gradients:
        axes, count = tuple(range(x.ndim - 1)), x[..., 0].size
        inverse = lax.rsqrt(var + epsilon)
        # The barriers keep XLA from writing `values - mean` down once to read it three times.
        mean = apart(mean)
        (values, again), (wide, wide_again, once_more) = _float32(x, 2), _float32(gradient, 3)
        of_bias = wide.sum(axes)
        along = (wide_again * (values - mean)).sum(axes)
        mean, along = apart((mean, along))
        slope = along * jnp.square(inverse) / count
        of_x = (once_more - of_bias / count - (again - mean) * slope) * (scale * inverse)
        return of_x.astype(x.dtype), along * inverse, of_bias

    if len(mean) == 1:
        return group(x, mean[0], var[0], gradient)
    shape = (len(mean), -1, *x.shape[1:])
    of_x, of_scale, of_bias = jax.vmap(group)(x.reshape(shape), mean, var, gradient.reshape(shape))
    return of_x.reshape(x.shape), of_scale.sum(axis=0), of_bias.sum(axis=0)


def _moments_on_cpu(x: jax.Array) -> Moments:
    """Mean and biased variance of each map, (B, H, W, C) -> (C,) twice, float32.

    One pass over x, about 1.3 times faster a training step on CPU than the variance around the
    mean. The values are first shifted by one of their own, so that mean^2 is never much larger
    than the variance and their difference keeps its digits.
    """
    axes = tuple(range(x.ndim - 1))
    # Two names for one value: XLA would write `x - shift` down to read it twice.
    shift, again = apart((x[(0,) * len(axes)].astype(jnp.float32),) * 2)
    values, values_again = _float32(x, 2)
    mean = (values - shift).mean(axes)
    return mean + shift, jnp.square(values_again - again).mean(axes) - jnp.square(mean)


def _float32(x: jax.Array, times: int) -> list[jax.Array]:
    """x as float32 for so many uses: XLA on CPU would write bfloat16's down to read it again."""
    names = apart((x,) * times) if x.dtype == jnp.bfloat16 else (x,) * times
    return [name.astype(jnp.float32) for name in names]


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

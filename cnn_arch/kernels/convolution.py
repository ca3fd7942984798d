"""Convolutions by whichever of XLA, oneDNN and products of matrices is fastest."""

import jax
import jax.numpy as jnp
from jax import lax

from cnn_arch.kernels import onednn


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int | None = None, groups: int = 1
) -> jax.Array:
    """Cross-correlation (B, H, W, C) * (k, k, C / groups, F), zero padding k // 2 by default.

    On maps so small that every position sees all others (up to 2x2 for k = 3) it is one matrix
    product a position: fewer multiplications, and about 10 times faster with XLA on CPU. Groups
    are convolved one by one: XLA's grouped convolution has slow weight gradients on CPU.
    Where `onednn.using` says so, oneDNN convolves.
    """
    if groups > 1:
        parts = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
        return jnp.concatenate([convolve(x, k, stride, padding) for x, k in parts], axis=-1)
    padding = kernel.shape[0] // 2 if padding is None else padding
    if _is_small(x, kernel, stride, padding):
        return _convolve_small_map(x, kernel)
    if onednn.takes(x):
        return onednn.convolve(x, kernel, stride, padding)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _is_small(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> bool:
    """Whether every position of the map sees all others, and kernels are centred."""
    radius = kernel.shape[0] // 2
    centred = stride == 1 and padding == radius > 0 and kernel.shape[0] % 2 == 1
    return centred and max(x.shape[1:3]) <= radius + 1


def fuses(x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int) -> bool:
    """Whether `convolve` is one call of oneDNN, for which there is `onednn.convolve_fused`."""
    return onednn.takes(x) and groups == 1 and not _is_small(x, kernel, stride, padding)


@jax.custom_vjp
def _convolve_small_map(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _position_by_position(x, kernel)


def _position_by_position(x: jax.Array, kernel: jax.Array) -> jax.Array:
    batch, height, width, inputs = x.shape
    radius, outputs = kernel.shape[0] // 2, kernel.shape[3]
    x = x.reshape(batch, -1)
    positions = []
    for row in range(radius, radius - height, -1):
        for column in range(radius, radius - width, -1):
            taps = kernel[row : row + height, column : column + width]  # (H, W, C, F)
            positions.append(x @ taps.reshape(height * width * inputs, outputs))
    return jnp.stack(positions, axis=1).reshape(batch, height, width, outputs)


def _small_map_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve_small_map(x, kernel), (x, kernel)


def _small_map_backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    _, back = jax.vjp(lambda x: _position_by_position(x, kernel), x)
    # One product a tap: summed over the examples of several devices, they are no more than the
    # kernel, as the gradients of the forward pass's products would be.
    radius, (height, width) = kernel.shape[0] // 2, x.shape[1:3]

    def tap(row: int, column: int) -> jax.Array:
        if abs(row) >= height or abs(column) >= width:  # sees nothing but padding
            return jnp.zeros(kernel.shape[2:], kernel.dtype)
        source, target = (
            (slice(None), *(slice(max(n, 0), size + min(n, 0)) for n, size in shift))
            for shift in (
                ((row, height), (column, width)),
                ((-row, height), (-column, width)),
            )
        )
        return lax.dot_general(x[source], gradient[target], (((0, 1, 2), (0, 1, 2)), ((), ())))

    around = range(-radius, radius + 1)
    taps = jnp.stack([jnp.stack([tap(row, column) for column in around]) for row in around])
    return *back(gradient), taps


_convolve_small_map.defvjp(_small_map_forward, _small_map_backward)

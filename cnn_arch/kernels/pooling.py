"""Max-pooling as the maximum of strided slices, and windows that reach beyond the map."""

from functools import partial, reduce

import jax
import jax.numpy as jnp

from cnn_arch.kernels.barriers import apart
from cnn_arch.kernels.phases import merge
from cnn_arch.window import Window


def fill_windows(x: jax.Array, window: Window, value: jax.typing.ArrayLike) -> jax.Array:
    """Pads height and width so that every window of `window` lies inside."""
    sides = [(0, 0)]
    for size in x.shape[1:3]:
        reach = (window.outputs(size) - 1) * window.stride + window.kernel
        sides.append((window.padding, max(0, reach - size - window.padding)))
    return jnp.pad(x, (*sides, (0, 0)), constant_values=value) if any(map(any, sides)) else x


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    return reduce(jnp.maximum, window_slices(x, size, stride))


def window_slices(x: jax.Array, size: int, stride: int) -> list[jax.Array]:
    """The values at each place of the window, row by row: size * size maps of the output's size."""
    height, width = ((n - size) // stride * stride + 1 for n in x.shape[1:3])
    return [
        x[:, row : row + height : stride, column : column + width : stride]
        for row in range(size)
        for column in range(size)
    ]


def _max_pool_forward(
    x: jax.Array, size: int, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    largest = max_pool(x, size, stride)
    return largest, (x, largest)


def _max_pool_backward(
    size: int, stride: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array]:
    x, largest = residuals
    # The place in its window that each output came from: of equal values the first.
    place = jnp.full(largest.shape, size * size, jnp.int8 if size <= 11 else jnp.int32)
    for i, values in reversed(list(enumerate(window_slices(x, size, stride)))):
        place = jnp.where(values == largest, jnp.array(i, place.dtype), place)
    # Each phase of x is seen by windows from `reach` before to its own.
    (_, height, width, _), (_, rows, columns, _) = x.shape, largest.shape
    reach = (size - 1) // stride
    phase_height, phase_width = -(-height // stride), -(-width // stride)
    sides = ((0, 0), (reach, phase_height - rows), (reach, phase_width - columns), (0, 0))
    padded = [jnp.pad(place, sides, constant_values=size * size), jnp.pad(gradient, sides)]
    place, gradient = apart(padded)

    def phase(row: int, column: int) -> jax.Array:
        total = jnp.zeros((len(x), phase_height, phase_width, x.shape[-1]), x.dtype)
        for i in range(row, size, stride):
            for j in range(column, size, stride):
                top, left = reach - i // stride, reach - j // stride
                seen = (
                    slice(None),
                    slice(top, top + phase_height),
                    slice(left, left + phase_width),
                )
                total += jnp.where(place[seen] == i * size + j, gradient[seen], 0)
        return total

    phases = [[phase(row, column) for column in range(stride)] for row in range(stride)]
    return (merge(phases, height, width),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)

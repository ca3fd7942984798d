"""Max-pooling with a gradient for each kind of device, and windows that reach beyond the map."""

import os
from collections.abc import Callable
from functools import partial, reduce
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnn_arch.errors import unknown
from cnn_arch.kernels.barriers import apart
from cnn_arch.kernels.bits import as_bits, from_bits
from cnn_arch.kernels.phases import merge
from cnn_arch.window import Window

Pooling = Literal["auto", "slices", "windows"]
VARIABLE = "CNN_DEPTH_MAX_POOL"  # slices, windows, or auto


def wished() -> Pooling:
    """How maps are pooled, as $CNN_DEPTH_MAX_POOL says.

    `slices`: as the maximum of strided slices. `windows`: by XLA's reduction of windows, whose
    gradient is select-and-scatter. `auto`: `windows` on a TPU, where they move less memory, and
    `slices` elsewhere; on a CPU they take a tenth of the time. Values are equal, and gradients but
    for the rounding of bfloat16's sums.

    Raises ArchitectureError for another value than these.
    """
    wish = os.environ.get(VARIABLE) or "auto"
    choices: dict[str, Pooling] = {"auto": "auto", "slices": "slices", "windows": "windows"}
    if wish not in choices:
        raise unknown(f"${VARIABLE}", wish, choices)
    return choices[wish]


def _by_platform(
    slices: Callable[..., jax.Array], windows: Callable[..., jax.Array], *arrays: jax.Array
) -> jax.Array:
    wish = wished()
    if wish == "auto":
        return lax.platform_dependent(*arrays, tpu=windows, default=slices)
    return {"slices": slices, "windows": windows}[wish](*arrays)


def _sides(x: jax.Array, window: Window) -> tuple[tuple[int, int], ...]:
    """Rows and columns that are missing before and after x, for every window to lie inside."""
    sides = []
    for size in x.shape[1:3]:
        reach = (window.outputs(size) - 1) * window.stride + window.kernel
        sides.append((window.padding, max(0, reach - size - window.padding)))
    return ((0, 0), *sides, (0, 0))


def fill_windows(x: jax.Array, window: Window, value: jax.typing.ArrayLike) -> jax.Array:
    """Pads height and width so that every window of `window` lies inside."""
    sides = _sides(x, window)
    return jnp.pad(x, sides, constant_values=value) if any(map(any, sides)) else x


def window_slices(x: jax.Array, size: int, stride: int) -> list[jax.Array]:
    """The values at each place of the window, row by row: size * size maps of the output's size."""
    height, width = ((n - size) // stride * stride + 1 for n in x.shape[1:3])
    return [
        x[:, row : row + height : stride, column : column + width : stride]
        for row in range(size)
        for column in range(size)
    ]


def sum_of_windows(x: jax.Array, window: Window) -> jax.Array:
    """The sum of each window's values inside the map: (B, H, W, C) -> (B, h, w, C).

    On a CPU a sum of slices; XLA's windows elsewhere, whose gradient is one operation.
    """
    size, stride = window.kernel, window.stride

    def of_slices(x: jax.Array) -> jax.Array:
        return reduce(jnp.add, window_slices(fill_windows(x, window, 0), size, stride))

    def of_windows(x: jax.Array) -> jax.Array:
        zero = np.zeros((), x.dtype)
        shape, strides = (1, size, size, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, zero, lax.add, shape, strides, _sides(x, window))

    return lax.platform_dependent(x, cpu=of_slices, default=of_windows)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: jax.Array, window: Window) -> jax.Array:
    """The largest of each window's values inside the map: (B, H, W, C) -> (B, h, w, C).

    Of equal values the first one gets the gradient.
    """
    return _by_platform(
        partial(_maximum_of_slices, window=window), partial(maximum_of_windows, window=window), x
    )


def _max_pool_forward(
    x: jax.Array, window: Window
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    largest = max_pool(x, window)
    return largest, (x, largest)


def _max_pool_backward(
    window: Window, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array]:
    return (
        _by_platform(
            partial(_to_slices, window=window),
            partial(to_windows, window=window),
            *(*residuals, gradient),
        ),
    )


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def maximum_of_windows(x: jax.Array, window: Window) -> jax.Array:
    """`max_pool` by XLA's reduction of windows."""
    size, stride = window.kernel, window.stride
    lowest = np.array(-np.inf, x.dtype)  # no tracer: XLA is to know a maximum when it sees one
    shape, strides = (1, size, size, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, lowest, lax.max, shape, strides, _sides(x, window))


def to_windows(x: jax.Array, largest: jax.Array, gradient: jax.Array, window: Window) -> jax.Array:
    """The gradient of `maximum_of_windows`."""
    _, back = jax.vjp(partial(maximum_of_windows, window=window), x)
    (of_x,) = back(gradient)
    return of_x


def _filled(x: jax.Array, window: Window) -> jax.Array:
    """x's bits, between those of minus infinity where windows reach beyond it."""
    return fill_windows(as_bits(x), window, as_bits(jnp.array(-jnp.inf, x.dtype)))


def _wide_slices(filled: jax.Array, window: Window) -> list[jax.Array]:
    """The slices of what `_filled` gives, as float32."""
    slices = window_slices(filled, window.kernel, window.stride)
    return [from_bits(bits).astype(jnp.float32) for bits in slices]


def _maximum_of_slices(x: jax.Array, window: Window) -> jax.Array:
    return reduce(jnp.maximum, _wide_slices(_filled(x, window), window)).astype(x.dtype)


def _to_slices(x: jax.Array, largest: jax.Array, gradient: jax.Array, window: Window) -> jax.Array:
    """The gradient of `_maximum_of_slices`: what comes back to each phase of the map."""
    size, stride, inside = window.kernel, window.stride, x.shape[1:3]
    filled = _filled(x, window)
    # The place in its window that each output came from: of equal values the first.
    place = jnp.full(largest.shape, size * size, jnp.int8 if size <= 11 else jnp.int32)
    wide = largest.astype(jnp.float32)
    for i, values in reversed(list(enumerate(_wide_slices(filled, window)))):
        place = jnp.where(values == wide, jnp.array(i, place.dtype), place)
    # Each phase of x is seen by windows from `reach` before to its own.
    (_, height, width, _), (_, rows, columns, _) = filled.shape, largest.shape
    reach = (size - 1) // stride
    phase_height, phase_width = -(-height // stride), -(-width // stride)
    sides = ((0, 0), (reach, phase_height - rows), (reach, phase_width - columns), (0, 0))
    padded = [jnp.pad(place, sides, constant_values=size * size), jnp.pad(gradient, sides)]
    place, gradient = apart(padded)

    def phase(row: int, column: int) -> jax.Array:
        total = jnp.zeros((len(x), phase_height, phase_width, x.shape[-1]), jnp.float32)
        for i in range(row, size, stride):
            for j in range(column, size, stride):
                top, left = reach - i // stride, reach - j // stride
                windows = (
                    slice(None),
                    slice(top, top + phase_height),
                    slice(left, left + phase_width),
                )
                part = gradient[windows].astype(jnp.float32)
                total += jnp.where(place[windows] == i * size + j, part, 0)
        return total.astype(x.dtype)

    phases = [[phase(row, column) for column in range(stride)] for row in range(stride)]
    top, left = window.padding, window.padding
    return merge(phases, height, width)[:, top : top + inside[0], left : left + inside[1]]

"""Maps cut into phases: of stride s, the s x s maps of every s-th row and column.

What strided windows see of one phase is whole maps, shifted; so is what their gradients add to it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def merge(phases: Sequence[Sequence[jax.Array]], height: int, width: int) -> jax.Array:
    """The map, (B, height, width, C), of `phases[row][column]`, each (B, h, w, C).

    Row r and column c of the map are row r // s and column c // s of the phase of their remainders;
    h and w are large enough for all of them.
    """
    stride = len(phases)
    if stride == 1:
        return phases[0][0][:, :height, :width]
    merged = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)  # (B, h, s, w, s, C)
    batch, rows, _, columns, _, maps = merged.shape
    merged = merged.reshape(batch, rows * stride, columns * stride, maps)
    return merged[:, :height, :width]

"""bfloat16 maps as whole numbers, which XLA on a CPU moves as they are.

It slices, reverses, pads and joins bfloat16 in float32 (jaxlib 0.10.2), so that a loop over parts
of a map holds a float32 copy of all of it. It transposes uint16 in half the time, too.
"""

import jax
import jax.numpy as jnp
from jax import lax


def as_bits(x: jax.Array) -> jax.Array:
    """bfloat16 as uint16 of the same bits; other arrays as they are."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def from_bits(x: jax.Array) -> jax.Array:
    """What `as_bits` was given."""
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x

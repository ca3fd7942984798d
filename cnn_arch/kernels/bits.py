"""bfloat16 maps as whole numbers, which XLA on a CPU moves as they are.

What only moves values, such as a transposition, it does for bfloat16 in float32: three times the
memory traffic (jaxlib 0.10.2).
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

"""Values that XLA on CPU computes once and keeps, and ReLU, which needs that most."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Tree = TypeVar("Tree")


def apart(tree: Tree) -> Tree:
    """These arrays, as values that XLA on CPU computes once and keeps.

    What else it would fuse into each use of them, and compute there again, can be all that led to
    them. Elsewhere nothing: other compilers weigh that. Needs `execution.compiler_options`.
    """
    return lax.platform_dependent(tree, cpu=lax.optimization_barrier, default=lambda tree: tree)


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), whose gradient (0 at 0) is taken from the result: x need not be kept.

    Both are computed once: XLA on CPU would compute a residual block's sum again, and those of all
    blocks before it, for each use, in time quadratic in the depth.
    """
    return apart(jnp.maximum(x, 0))


def _relu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = relu(x)
    return y, y


def _relu_backward(y: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (apart(jnp.where(y > 0, gradient, 0)),)


relu.defvjp(_relu_forward, _relu_backward)

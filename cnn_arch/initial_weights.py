"""Initial weights by name, drawn on the host."""

from collections.abc import Callable
from math import prod
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from cnn_arch.errors import ArchitectureError, choose

# (key, shape, dtype) -> values; without a key, for shapes only, anything.
Initializer = Callable[[jax.Array | None, tuple[int, ...], jnp.dtype], jax.Array]
_Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
Init = Literal["gaussian", "glorot", "he", "lecun", "uniform"]


def initializer(init: Init, width: float = 1.0, *, deviation: float = 0.01) -> Initializer:
    """The initial weights by name, for kernels with the output channels last.

    'gaussian': N(0, deviation^2), 0.01 in AlexNet and VGG, the deviation divided by sqrt(width) so
    that a net of reduced width has activations of the same size. 'glorot': uniform, variance
    2 / (fan_in + fan_out) (Glorot & Bengio 2010). 'he': normal, variance 2 / fan_in (He et al.
    2015, arXiv:1502.01852). 'lecun': uniform between -2.4 / fan_in and 2.4 / fan_in (LeCun et al.
    1998, appendix A). 'uniform': between -0.05 and 0.05 (Ciresan et al. 2011).

    Raises ArchitectureError for another name.
    """
    draws: dict[str, tuple[_Draw, Callable[[tuple[int, ...]], float]]] = {
        "gaussian": (np.random.Generator.standard_normal, lambda shape: deviation / width**0.5),
        "glorot": (
            _unit_uniform,
            lambda shape: (2 / (_fan_in(shape) + prod(shape[:-2]) * shape[-1])) ** 0.5,
        ),
        "he": (np.random.Generator.standard_normal, lambda shape: (2 / _fan_in(shape)) ** 0.5),
        "lecun": (_unit_uniform, lambda shape: 2.4 / _fan_in(shape) / 3**0.5),
        "uniform": (_unit_uniform, lambda shape: 0.05 / 3**0.5),
    }
    distribution, spread = choose("init", init, draws)

    def draw(key: jax.Array | None, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        # NumPy draws at once; JAX would first compile a program for each shape.
        if key is None:
            return jnp.empty(shape, dtype)
        if isinstance(key, jax.core.Tracer):
            raise ArchitectureError(
                "weights are drawn on the host: create networks outside of jit and other "
                "transformations, or take cnn_arch.abstract for shapes only"
            )
        words = np.asarray(jax.random.key_data(key)).astype(np.uint64)
        random = np.random.Generator(np.random.Philox(key=words))
        values = distribution(random, shape) * spread(shape)
        return jnp.asarray(values, dtype)

    return draw


def _unit_uniform(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform with deviation 1."""
    return random.uniform(-(3**0.5), 3**0.5, shape)


def _fan_in(shape: tuple[int, ...]) -> int:
    """Inputs of a unit whose kernel has this shape, output channels last."""
    return prod(shape[:-1])

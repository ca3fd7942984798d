"""The networks of the classic papers, and what can be known of one without data.

>>> from flax import nnx
>>> import cnn_arch
>>> net = cnn_arch.create("vgg:A", image_size=32, classes=10, width=0.125, rngs=nnx.Rngs(0))
"""

from cnn_arch.errors import ArchitectureError
from cnn_arch.network import Network, Tape, flat_state, unflat_state
from cnn_arch.registry import (
    Family,
    abstract,
    check,
    create,
    depth,
    families,
    full_name,
    idle,
    inputs,
    options,
    variants,
)

__all__ = [
    "ArchitectureError",
    "Family",
    "Network",
    "Tape",
    "abstract",
    "check",
    "create",
    "depth",
    "families",
    "flat_state",
    "full_name",
    "idle",
    "inputs",
    "options",
    "unflat_state",
    "variants",
]

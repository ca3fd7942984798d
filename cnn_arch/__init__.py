"""The networks of the classic papers, and what can be known of one without data.

>>> from flax import nnx
>>> import cnn_arch
>>> net = cnn_arch.create("vgg:A", image_size=32, classes=10, width=0.125, rngs=nnx.Rngs(0))
"""

from cnn_arch.errors import ArchitectureError
from cnn_arch.family import Family, Inputs, Need
from cnn_arch.network import Network, Tape, flat_state, unflat_state
from cnn_arch.registry import (
    abstract,
    check,
    check_source,
    create,
    depth,
    families,
    full_name,
    idle,
    inputs,
    options,
    origin,
    variants,
)
from cnn_arch.user_modules import look_in

__all__ = [
    "ArchitectureError",
    "Family",
    "Inputs",
    "Need",
    "Network",
    "Tape",
    "abstract",
    "check",
    "check_source",
    "create",
    "depth",
    "families",
    "flat_state",
    "full_name",
    "idle",
    "inputs",
    "look_in",
    "options",
    "origin",
    "unflat_state",
    "variants",
]

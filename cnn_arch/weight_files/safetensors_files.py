"""Reads and writes safetensors."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from cnn_arch.weight_files.values import Refused, contiguous, refusing

_SAFETENSORS_TYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "BF16": "bfloat16",
    "BOOL": "bool",
}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    with refusing("it is damaged or cut short"):
        # The library's NumPy interface has no bfloat16, so its checked bytes are taken instead.
        entries = safetensors.deserialize(data)
    _check_names_differ(data)
    del data  # `entries` is a copy
    tensors = {}
    for name, entry in entries:
        dtype = _SAFETENSORS_TYPES.get(entry["dtype"])
        if dtype is None:
            raise Refused(f"tensor {name!r} has the type {entry['dtype']}, which is not read")
        tensors[name] = contiguous(name, entry["data"], dtype, entry["shape"])
    return tensors


def _check_names_differ(data: bytes) -> None:
    """Refuses a header that names a tensor twice, of which the library silently takes the last."""
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    with refusing("its header is wrong"):
        names = [name for name, _ in json.loads(header, object_pairs_hook=list)]
    if twice := [a for a, b in pairwise(sorted(names)) if a == b]:
        raise Refused(f"it has two tensors named {twice[0]!r}")


def write_safetensors(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    if "__metadata__" in tensors:
        raise Refused("'__metadata__' is no name for a tensor in safetensors")
    # Not `save_file`, which makes files that only their owner can read.
    file.write(safetensors.numpy.save(dict(tensors)))

"""Checks and conversions that all formats share: types, shapes, finite values, refusals."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

# How the values of each type are stored. bfloat16, which NumPy lacks, is the upper half of a
# float32; a bool is a byte that is zero or not.
STORED = {
    **{name: np.dtype(name).str[1:] for name in ("float16", "float32", "float64")},
    **{f"int{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"u{bits // 8}" for bits in (8, 16, 32, 64)},
    "bfloat16": "u2",
    "bool": "u1",
}
_READ_AS = {"bfloat16": "float32", "float16": "float32"}

NUMPY_TYPES = frozenset(STORED) - {"bfloat16"}

MIB = 1 << 20
NO_MEMORY = 1 << 60  # more elements than any memory holds
MOST_DIMENSIONS = 64  # of NumPy and of torch
# Compressed files may be this many times larger unpacked, and smaller ones 16 MiB; trained weights
# hardly shrink at all, while deflate can blow up a file a thousandfold.
_MOST_EXPANSION = 100
_ALWAYS_UNPACKED = 16 * MIB


class Refused(Exception):
    """The reason why a file's bytes are refused; `read` and `write` add the file's name."""


def contiguous(name: str, raw: bytes, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """The tensor whose elements fill `raw`, little-endian and in row-major order."""
    check_shape(name, shape)
    if len(raw) != math.prod(shape) * itemsize(dtype):
        raise Refused(
            f"tensor {name!r} has {len(raw)} bytes, but {dtype} of shape {tuple(shape)} takes "
            f"{math.prod(shape) * itemsize(dtype)}"
        )
    return view(name, raw, dtype, shape, row_major(shape), 0, "<")


def view(
    name: str,
    raw: bytes,
    dtype: str,
    shape: Sequence[int],
    strides: Sequence[int],
    offset: int,
    byte_order: str,
) -> np.ndarray:
    """The elements of `raw` that start at `offset` and lie `strides` apart, both in elements."""
    check_shape(name, shape)
    if len(strides) != len(shape) or any(not 0 <= n < NO_MEMORY for n in (offset, *strides)):
        raise Refused(f"tensor {name!r} has strides or an offset that do not fit its shape")
    if 0 in shape:
        return np.zeros(shape, _READ_AS.get(dtype, dtype))
    width = itemsize(dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if (last + 1) * width > len(raw):
        raise Refused(
            f"tensor {name!r} reaches to element {last} of a storage of {len(raw) // width}"
        )
    in_bytes = [stride * width for stride in strides]
    stored = np.dtype(byte_order + STORED[dtype])
    return widened(np.ndarray(shape, stored, raw, offset * width, in_bytes), dtype)


def widened(stored: np.ndarray, dtype: str) -> np.ndarray:
    """A copy of stored values, in the type that they are read as."""
    if dtype == "bfloat16":
        bits: np.ndarray = stored.astype(np.uint32, order="C")
        bits <<= 16
        return bits.view(np.float32)
    return stored.astype(_READ_AS.get(dtype, dtype), order="C")


def itemsize(dtype: str) -> int:
    return int(STORED[dtype][1:])


def row_major(shape: Sequence[int]) -> list[int]:
    """The strides, in elements, of a tensor whose last index moves fastest."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def check_shape(name: str, shape: Sequence[int]) -> None:
    """Refuses shapes that NumPy would not take, also of arrays without elements."""
    if len(shape) > MOST_DIMENSIONS:
        raise Refused(f"tensor {name!r} has {len(shape)} dimensions")
    if any(size < 0 for size in shape) or math.prod(max(s, 1) for s in shape) >= NO_MEMORY:
        raise Refused(f"tensor {name!r} has a negative dimension, or more than any memory holds")


def check_expansion(size: int, unpacked: int) -> None:
    """Refuses a file of `size` bytes whose parts would take far more bytes in memory."""
    if unpacked > max(_MOST_EXPANSION * size, _ALWAYS_UNPACKED):
        raise Refused(f"its {size} bytes would unpack to {unpacked}")


def check_finite(name: str, tensor: np.ndarray) -> None:
    if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
        raise Refused(f"tensor {name!r} has NaN or infinite values")


def ready(name: str, tensor: np.ndarray) -> np.ndarray:
    """The tensor as it is written: C-contiguous and little-endian."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        encoded = b""
    if not encoded:
        raise Refused(f"{name!r} is no name for a tensor")
    array = np.asarray(tensor, order="C")
    if array.dtype.name not in NUMPY_TYPES:
        raise Refused(f"tensor {name!r} is {array.dtype.name}, which is not written")
    check_finite(name, array)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


@contextmanager
def refusing(problem: str) -> Iterator[None]:
    """Turns all that a library raises on damaged bytes into `Refused`; only around its calls."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:  # zipfile alone raises ten types, and none promises to stay at them
        reason = str(error) or type(error).__name__
        raise Refused(f"{problem}: {reason.rstrip('.')}") from error

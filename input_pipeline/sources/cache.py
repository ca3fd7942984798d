"""A cache, in the user's cache folder, of arrays that take long to compute from files."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from input_pipeline.whole_files import Arrays, read_arrays, write_arrays

FORMAT = "3"  # of all entries; those of another version are computed anew
# A file this young, in ns, may change again within one tick of its clock, and look the same.
FRESH = 2 * 10**9


def read(kind: str, where: Sequence[str], key: str = "") -> Arrays | None:
    """The arrays that `write` kept under the same words; None without any, or if damaged."""
    arrays = read_arrays(_file(kind, where))
    if arrays is None or "checksum" not in arrays:
        return None
    return arrays if arrays.pop("checksum").tobytes() == _checksum(key, arrays) else None


def write(kind: str, where: Sequence[str], arrays: Arrays, key: str = "") -> None:
    """Keeps arrays. Without a home or with a full disk nothing is kept, nor is that an error."""
    file, checksum = _file(kind, where), np.frombuffer(_checksum(key, arrays), np.uint8)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(file, {"checksum": checksum, **arrays})


def of_files(kind: str, files: Sequence[Path], build: Callable[[], Arrays]) -> Arrays:
    """The arrays that `build` makes of `files`, kept until a file's size, time or inode changes."""
    where = [str(file.resolve()) for file in files]
    stats = [
        (stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in (file.stat() for file in files)
    ]
    key, now = json.dumps(stats), time.time_ns()
    arrays = read(kind, where, key)
    if arrays is None:
        arrays = build()
        if all(abs(now - mtime) > FRESH for _, mtime, _ in stats):
            write(kind, where, arrays, key)
    return arrays


def _file(kind: str, where: Sequence[str]) -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.sha256(json.dumps([kind, *where]).encode()).hexdigest()[:32]
    return Path(base) / "cnn-depth" / "index" / f"{name}.npz"


def _checksum(key: str, arrays: Arrays) -> bytes:
    digest = hashlib.sha256(json.dumps([FORMAT, key]).encode())
    for name in sorted(arrays):
        digest.update(f"\0{name} {arrays[name].dtype.str} {arrays[name].shape}\0".encode())
        digest.update(arrays[name].tobytes())
    return digest.digest()

"""Files that are written whole or not at all."""

import contextlib
import os
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

Arrays = dict[str, np.ndarray]
PARTIAL = ".partial"  # ends the names of files that are being written


@contextlib.contextmanager
def whole_file(path: Path, *, synced: bool = False) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file `path` on exit; an error leaves no partial file.

    Any number of processes and machines may write the same file. synced: whether to wait until it
    is on the disk. Raises OSError.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb", buffering=1 << 20) as stream:
            yield stream
            if synced:
                stream.flush()
                os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # gives the disk its space back
            partial.unlink(missing_ok=True)
        raise


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Writes arrays by name as a .npz file. Raises OSError."""
    with whole_file(path) as stream:
        np.savez(stream, allow_pickle=False, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path, names: Sequence[str] = ()) -> Arrays | None:
    """The arrays of these names, or all, of a .npz file; None if any is missing or damaged.

    No pickled objects are read.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in names or archive.files}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return None

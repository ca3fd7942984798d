"""Images inside large files: where they lie, and reading them in place."""

import errno
import io
import os
import resource
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from input_pipeline.errors import DataError


class _File(io.FileIO):
    """Closed when nothing refers to it, as another thread may still read a file that is dropped."""

    def __del__(self) -> None:
        self.close()


class OpenFiles:
    """Files of which many threads read parts. The first `MOST` stay open."""

    MOST = 256

    def __init__(self, paths: Sequence[Path]):
        self.paths = tuple(paths)
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        unlimited = allowed == resource.RLIM_INFINITY
        # A process has several such objects, and other open files.
        self._limit = self.MOST if unlimited else min(self.MOST, allowed // 8)
        self._streams: dict[int, _File] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return OpenFiles, (self.paths,)

    def read(self, k: int, offset: int, size: int) -> bytes:
        """`size` bytes of file k. Raises OSError, or DataError where the file ends before."""
        with self._lock:
            stream = self._streams.get(k)
        if stream is None:
            stream = self._open(k)
            with self._lock:
                if len(self._streams) < self._limit:
                    stream = self._streams.setdefault(k, stream)
        content = os.pread(stream.fileno(), size, offset)
        while len(content) < size:
            chunk = os.pread(stream.fileno(), size - len(content), offset + len(content))
            if not chunk:
                raise DataError(
                    f"{self.paths[k]}: ends before byte {offset + size}, up to which an image "
                    "reaches; the file is truncated"
                )
            content += chunk
        return content

    def _open(self, k: int) -> _File:
        try:
            return _File(self.paths[k])
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        with self._lock:
            self._streams.clear()
        return _File(self.paths[k])


class ByteRanges:
    """Parts of large files: the first `counts[0]` of them lie in the first file, and so on.

    counts: (K,), one for each file. offsets, sizes: (N,), in bytes.
    """

    def __init__(
        self, paths: Sequence[Path], counts: np.ndarray, offsets: np.ndarray, sizes: np.ndarray
    ):
        self.files = OpenFiles(paths)
        self.offsets, self.sizes = offsets, sizes
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return len(self.offsets)

    def place(self, i: int) -> tuple[int, int]:
        """(file of part i, how many parts lie before it in that file)."""
        k = int(np.searchsorted(self._ends, i, "right"))
        return k, i - (int(self._ends[k - 1]) if k else 0)

    def read(self, i: int, start: int = 0, size: int | None = None) -> bytes:
        """Part i, or `size` bytes of it from `start` on.

        Raises OSError, or DataError where the file ends before.
        """
        size = int(self.sizes[i]) if size is None else size
        return self.files.read(self.place(i)[0], int(self.offsets[i]) + start, size)

"""Hashes of what image files hold, by which a data set is known wherever it lies.

A file is read for its hash once: while its path, inode, size and time of change stay, the hash that
is kept in the user's cache folder is taken for its content. Without the inode, two folders of files
of one size and time, as unpacked BMPs are, could be swapped unnoticed.
"""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.room import Room
from input_pipeline.sources import cache
from input_pipeline.sources.source import Names, Progress, Source

BYTES = 16  # of a hash
_MOST = 2**26  # bytes of files that all threads hold at once
_PIECE = 64  # images that a thread reads before it takes others
_SAVE_SECONDS = 60.0  # between two savings of hashes that took that long to make


def of_bytes(content: bytes) -> bytes:
    """The hash of a file's content."""
    return hashlib.blake2b(content, digest_size=BYTES).digest()


def of_source(
    source: Source, on_progress: Progress | None = None, *, labels: bool = False
) -> np.ndarray:
    """(N, 16) uint8: the hash of each image, from reading it; zeros of what can't be read.

    labels: whether the image's label is hashed with it, where only reading tells that.
    """
    found: np.ndarray = np.zeros((len(source), BYTES), np.uint8)
    for _ in _hashed(source, np.arange(len(source)), found, on_progress, labels):
        pass
    return found


class Folder:
    """The hashes of files in one folder, kept under its absolute path.

    places: the folders in it, by number. which (N,) int32, names, sizes, times and inodes (N,)
    int64: the place, name, size in bytes, time of change in ns and inode of each file.
    """

    def __init__(
        self,
        folder: Path,
        places: Sequence[str],
        which: np.ndarray,
        names: Names,
        sizes: np.ndarray,
        times: np.ndarray,
        inodes: np.ndarray,
    ):
        self._where = [str(folder.resolve())]
        text = json.dumps(list(places)).encode()
        self._places, self._which, self._names = np.frombuffer(text, np.uint8), which, names
        self._sizes, self._times, self._inodes = sizes, times, inodes

    def hashes(self, source: Source, on_progress: Progress | None = None) -> np.ndarray:
        """(N, 16) uint8, in the order of `source`: kept ones, and of other files from reading."""
        found, known = self._known()
        rest = np.flatnonzero(~known & (self._sizes >= 0))
        if not len(rest):
            return found
        started, saved = time.time_ns(), time.monotonic()
        # Of files that have come to rest: others may change and look the same.
        settled = np.abs(started - self._times) > cache.FRESH
        try:
            for _ in _hashed(source, rest, found, on_progress):
                if time.monotonic() - saved > _SAVE_SECONDS:
                    self._keep(found, settled)
                    saved = time.monotonic()
        finally:
            if settled[rest].any():
                self._keep(found, settled)
        return found

    def _known(self) -> tuple[np.ndarray, np.ndarray]:
        """(hashes, which of them are known)."""
        found: np.ndarray = np.zeros((len(self._which), BYTES), np.uint8)
        kept = cache.read("contents", self._where)
        if kept is None:
            return found, np.zeros(len(found), bool)
        at = self._places_in(kept)
        there = np.flatnonzero(at >= 0)
        at = at[there]
        same: np.ndarray = np.ones(len(there), bool)
        own = {"sizes": self._sizes, "times": self._times, "inodes": self._inodes}
        for name, array in own.items():
            same &= kept[name][at] == array[there]
        found[there[same]] = kept["hashes"][at[same]]
        known: np.ndarray = np.zeros(len(found), bool)
        known[there[same]] = True
        return found, known

    def _places_in(self, kept: cache.Arrays) -> np.ndarray:
        """(N,) int64: where each file lies in what was kept; -1 for one that is not there."""
        own = {"places": self._places, "which": self._which, "ends": self._names.ends}
        alike = all(np.array_equal(kept[name], array) for name, array in own.items())
        if alike and kept["names"].tobytes() == self._names.blob:
            return np.arange(len(self._which))
        names = Names(kept["names"].tobytes(), kept["ends"])
        before = {key: i for i, key in enumerate(_keys(kept["places"], kept["which"], names))}
        keys = _keys(self._places, self._which, self._names)
        return np.array([before.get(key, -1) for key in keys], np.int64)

    def _keep(self, found: np.ndarray, settled: np.ndarray) -> None:
        """Keeps the hashes of settled files that could be read."""
        trusted = settled & found.any(axis=1)
        cache.write(
            "contents",
            self._where,
            {
                "places": self._places,
                "which": self._which,
                "names": np.frombuffer(self._names.blob, np.uint8),
                "ends": self._names.ends,
                "sizes": self._sizes,
                "inodes": self._inodes,
                "times": np.where(trusted, self._times, -1),
                "hashes": found,
            },
        )


def _keys(places: np.ndarray, which: np.ndarray, names: Names) -> Iterable[tuple[str, bytes]]:
    told = json.loads(places.tobytes())
    return ((told[k], names[i]) for i, k in enumerate(which.tolist()))


def _hashed(
    source: Source,
    indices: np.ndarray,
    found: np.ndarray,
    on_progress: Progress | None,
    labels: bool = False,
) -> Iterable[None]:
    """Reads the images at `indices` and writes their hashes to `found`; gives a turn now and then.

    Threads, as reading waits and hashing leaves Python's lock.
    """
    done, stop, room = 0, threading.Event(), Room(_MOST)

    def work(piece: np.ndarray) -> int:
        for i in piece.tolist():
            if stop.is_set():
                break
            with room.take(source.size(i)), contextlib.suppress(OSError, DataError):
                # Of what can't be read whoever needs the image says so.
                content, label = source.read_again(i)
                told = of_bytes(content)
                del content  # before the next one is read
                told = of_bytes(told + b"%d" % label) if labels else told
                found[i] = np.frombuffer(told, np.uint8)
        return len(piece)

    with ThreadPoolExecutor(max(8, 2 * (os.cpu_count() or 1))) as pool:
        cuts = range(_PIECE, len(indices), _PIECE)
        waiting = {pool.submit(work, piece) for piece in np.split(indices, cuts)}
        try:
            while waiting:
                ended, waiting = wait(waiting, timeout=0.1)
                done += sum(future.result() for future in ended)
                if on_progress is not None:
                    on_progress(done, len(indices))
                yield
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

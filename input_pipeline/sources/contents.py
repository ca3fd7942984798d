"""Hashes of what image files hold, by which a data set is known wherever it lies.

A file is read for its hash once: while its path, inode, size and time of change stay, the hash that
is kept in the user's cache folder is taken for its content. Without the inode, two folders of files
of one size and time, as unpacked BMPs are, could be swapped unnoticed.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.sources import cache
from input_pipeline.sources.source import Names, Progress, Source
from input_pipeline.threads import Room, each
from input_pipeline.whole_files import Arrays

BYTES = 16  # of a hash
_MOST = 2**26  # bytes of files that all threads hold at once
_SAVE_SECONDS = 60.0  # between two savings of hashes that took that long to make


def of_bytes(content: bytes) -> bytes:
    """The hash of a file's content."""
    return hashlib.blake2b(content, digest_size=BYTES).digest()


def of_large_files(
    kind: str,
    files: Sequence[Path],
    source: Source,
    on_progress: Progress | None,
    *,
    labels: bool = False,
) -> np.ndarray:
    """`of_source` of images that lie in `files`, kept until one of these changes."""
    found = cache.of_files(kind, files, lambda: {"hashes": of_source(source, on_progress, labels)})
    return found["hashes"]


def of_source(
    source: Source, on_progress: Progress | None = None, labels: bool = False
) -> np.ndarray:
    """(N, 16) uint8: the hash of each image, from reading it; zeros of what can't be read.

    labels: whether the image's label is hashed with it, where only reading tells that.
    """
    found: np.ndarray = np.zeros((len(source), BYTES), np.uint8)
    for _ in _hashed(source, np.arange(len(source)), found, on_progress, labels):
        pass
    return found


def of_files(
    folder: Path, files: Arrays, source: Source, on_progress: Progress | None = None
) -> np.ndarray:
    """(N, 16) uint8: the hash of each file in `folder`, kept ones and of other files from reading.

    files: the folders in it, `places`, as JSON; of each file, in the order of `source`, `which` of
    them it lies in, its name (`names` and `ends`, as of `Names`), `sizes` in bytes, `times` of
    change in ns and `inodes`, (N,) int64.
    """
    where = [str(folder.resolve())]
    found: np.ndarray = np.zeros((len(source), BYTES), np.uint8)
    known: np.ndarray = np.zeros(len(source), bool)
    kept = cache.read("contents", where)
    if kept is not None:
        at = _places_in(kept, files)
        known = at >= 0
        for name in ("sizes", "times", "inodes"):
            known &= kept[name][at] == files[name]
        found[known] = kept["hashes"][at[known]]
    rest = np.flatnonzero(~known & (files["sizes"] >= 0))
    if not len(rest):
        return found
    started, saved = time.time_ns(), time.monotonic()
    # Of files that have come to rest: others may change and look the same.
    settled = np.abs(started - files["times"]) > cache.FRESH

    def keep() -> None:
        trusted = settled & found.any(axis=1)
        times = np.where(trusted, files["times"], -1)
        cache.write("contents", where, files | {"times": times, "hashes": found})

    try:
        for _ in _hashed(source, rest, found, on_progress):
            if time.monotonic() - saved > _SAVE_SECONDS:
                keep()
                saved = time.monotonic()
    finally:
        if settled[rest].any():
            keep()
    return found


def _places_in(kept: Arrays, files: Arrays) -> np.ndarray:
    """(N,) int64: where each file lies in what was kept; -1 for one that is not there."""
    if all(np.array_equal(kept[key], files[key]) for key in ("places", "which", "names", "ends")):
        return np.arange(len(files["which"]))
    before = {key: i for i, key in enumerate(_keys(kept))}
    return np.array([before.get(key, -1) for key in _keys(files)], np.int64)


def _keys(files: Arrays) -> Iterable[tuple[str, bytes]]:
    places = json.loads(files["places"].tobytes())
    names = Names(files["names"].tobytes(), files["ends"])
    return ((places[k], names[i]) for i, k in enumerate(files["which"].tolist()))


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
    room = Room(_MOST)

    def work(i: int) -> None:
        with room.take(source.size(i)), contextlib.suppress(OSError, DataError):
            # Of what can't be read whoever needs the image says so.
            content, label = source.read_again(i)
            told = of_bytes(content)
            told = of_bytes(told + b"%d" % label) if labels else told
            found[i] = np.frombuffer(told, np.uint8)

    for done in each(work, indices.tolist(), max(8, 2 * (os.cpu_count() or 1))):
        if on_progress is not None:
            on_progress(done, len(indices))
        yield

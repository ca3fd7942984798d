"""Hashes of image files, by which a data set is recognised wherever it lies.

A file is read for its hash once. The hash is kept in the user's cache folder and holds while the
file's path, inode, size and time of change stay. Without the inode, two folders of files of one
size and time, as unpacked BMPs are, could be swapped unnoticed.
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
from input_pipeline.threads import MemoryBudget, run_in_threads
from input_pipeline.whole_files import Arrays

BYTES = 16  # of a hash
_MAX_BYTES = 2**26  # of files that all threads together hold at once
_SAVE_SECONDS = 60.0  # of hashing between two writes of the cache


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
    """`of_source` of images that lie in `files`, cached until one of these files changes."""
    arrays = cache.of_files(kind, files, lambda: {"hashes": of_source(source, on_progress, labels)})
    return arrays["hashes"]


def of_source(
    source: Source, on_progress: Progress | None = None, labels: bool = False
) -> np.ndarray:
    """(N, 16) uint8: the hash of each image, from reading it; zeros of what can't be read.

    labels: whether an image's label is hashed too, where an image must be read for it.
    """
    hashes: np.ndarray = np.zeros((len(source), BYTES), np.uint8)
    for _ in _hash_images(source, np.arange(len(source)), hashes, on_progress, labels):
        pass
    return hashes


def of_files(
    folder: Path, files: Arrays, source: Source, on_progress: Progress | None = None
) -> np.ndarray:
    """(N, 16) uint8: the hash of each file in `folder`, from the cache or from reading it.

    files: `places`, the folders in it, as JSON. Of each file, in the order of `source`: `which` of
    these it lies in, and its name (`names` and `ends`, as of `Names`). (N,) int64 are `sizes` in
    bytes, `times` of change in ns and `inodes`.
    """
    where = [str(folder.resolve())]
    hashes: np.ndarray = np.zeros((len(source), BYTES), np.uint8)
    unchanged: np.ndarray = np.zeros(len(source), bool)
    cached = cache.read("contents", where)
    if cached is not None:
        position = _positions_in(cached, files)
        unchanged = position >= 0
        for name in ("sizes", "times", "inodes"):
            unchanged &= cached[name][position] == files[name]
        hashes[unchanged] = cached["hashes"][position[unchanged]]
    unhashed = np.flatnonzero(~unchanged & (files["sizes"] >= 0))
    if not len(unhashed):
        return hashes
    started, saved = time.time_ns(), time.monotonic()
    # A file that changed just now may change again and look the same.
    settled = np.abs(started - files["times"]) > cache.FRESH

    def save() -> None:
        trusted = settled & hashes.any(axis=1)
        times = np.where(trusted, files["times"], -1)
        cache.write("contents", where, files | {"times": times, "hashes": hashes})

    try:
        for _ in _hash_images(source, unhashed, hashes, on_progress):
            if time.monotonic() - saved > _SAVE_SECONDS:
                save()
                saved = time.monotonic()
    finally:
        if settled[unhashed].any():
            save()
    return hashes


def _positions_in(cached: Arrays, files: Arrays) -> np.ndarray:
    """(N,) int64: the position of each file in the cache; -1 for one that it has not."""
    if all(np.array_equal(cached[key], files[key]) for key in ("places", "which", "names", "ends")):
        return np.arange(len(files["which"]))
    position_of = {key: i for i, key in enumerate(_keys(cached))}
    return np.array([position_of.get(key, -1) for key in _keys(files)], np.int64)


def _keys(files: Arrays) -> Iterable[tuple[str, bytes]]:
    places = json.loads(files["places"].tobytes())
    names = Names(files["names"].tobytes(), files["ends"])
    return ((places[k], names[i]) for i, k in enumerate(files["which"].tolist()))


def _hash_images(
    source: Source,
    indices: np.ndarray,
    hashes: np.ndarray,
    on_progress: Progress | None,
    labels: bool = False,
) -> Iterable[None]:
    """Reads the images at `indices`, writes their hashes to `hashes`, and yields now and then.

    Threads gain time here, as reading waits and hashing releases Python's lock.
    """
    room = MemoryBudget(_MAX_BYTES)

    def work(i: int) -> None:
        with room.take(source.size(i)), contextlib.suppress(OSError, DataError):
            # An image that can't be read is reported by whoever needs it.
            content, label = source.read_again(i)
            digest = of_bytes(content)
            digest = of_bytes(digest + b"%d" % label) if labels else digest
            hashes[i] = np.frombuffer(digest, np.uint8)

    for count in run_in_threads(work, indices.tolist(), max(8, 2 * (os.cpu_count() or 1))):
        if on_progress is not None:
            on_progress(count, len(indices))
        yield

"""TFRecord shards that `prepare` wrote: few large files instead of a million small ones.

    train-00000-of-01024.tfrecord ... val-00000-of-00049.tfrecord
    train-00000-of-01024.json     ... what `prepare` did to the images of a finished shard
    index.npz                         where each image lies, its label, and a hash of it
    dataset.json                      classes, counts, options, fingerprints; written last
    .lock                             empty; locked by the process that writes here

The records are tf.train.Examples with image/encoded, image/class/label and image/filename, which
other programs read too. Here one `pread` at the offset in the index fetches an image.

Where images are kept decoded, image/encoded is a PPM file, and one `pread` fetches rows of it. Two
more features describe the encoded image: whether it was a JPEG of which training decodes windows,
and the checksum of the record that would have held it.
"""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.pixels import Pixels
from input_pipeline.sources import contents
from input_pipeline.sources.byte_ranges import ByteRanges
from input_pipeline.sources.source import ImageSet, Progress, Source
from input_pipeline.tfrecords import first_text
from input_pipeline.whole_files import Arrays

SHARDS_FILE = "dataset.json"
INDEX_FILE = "index.npz"
EXPECTED = "a folder that `cnn-depth data prepare` wrote, with {root}/" + SHARDS_FILE
FORMAT = "cnn-depth shards"
VERSION = 2  # 2: the index has the images' hashes
PARTS = ("train", "val")
# The arrays of each part in the index: images a shard (K,); of each image (N,); hashes (N, 16).
KINDS = {
    "counts": np.int64,
    "offsets": np.int64,
    "sizes": np.uint32,
    "labels": np.int32,
    "hashes": np.uint8,
}
# Where images are kept decoded, also (N, 4): the numbers of `Pixels`, 0 where that was impossible.
DECODED_KINDS = KINDS | {"pixels": np.uint32}
# Features of a record.
ENCODED, PLAIN, CHECKSUM = b"image/encoded", b"image/plain", b"image/encoded/checksum"
Features = dict[bytes, bytes | int]


def shard_file(part: str, number: int, of: int) -> str:
    return f"{part}-{number:05d}-of-{of:05d}.tfrecord"


def file_size(file: Path) -> int:
    """Bytes; -1 if there is no such file."""
    try:
        return file.stat().st_size
    except OSError:
        return -1


def kinds(state: dict[str, Any]) -> dict[str, Any]:
    """The names and types of each part's arrays in the index. state: dataset.json."""
    return DECODED_KINDS if state["decoded"] else KINDS


class ShardSource(Source):
    """The images that lie at `images` in shards. pixels: as in `DECODED_KINDS`, if decoded."""

    labels: np.ndarray

    def __init__(self, images: ByteRanges, labels: np.ndarray, pixels: np.ndarray | None):
        self._images, self.labels, self._pixels = images, labels, pixels

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> tuple[bytes, int]:
        return self._images.read(i), int(self.labels[i])

    def size(self, i: int) -> int:
        return int(self._images.sizes[i])

    def pixels(self, i: int) -> Pixels | None:
        if self._pixels is None:
            return None
        height, width, plain, orientation = self._pixels[i].tolist()
        start = self.size(i) - 3 * height * width

        def read(top: int, bottom: int) -> bytes:
            line = 3 * width
            return self._images.read(i, start + top * line, (bottom - top) * line)

        return Pixels(height, width, bool(plain), orientation, read) if height else None

    def check(self, expected: np.ndarray, on_progress: Progress | None) -> None:
        """DataError where the hash of an image is not that of `expected`, (N, 16) uint8.

        Images are read once for this.
        """
        files = self._images.files.paths
        hashes = contents.of_large_files("shards", files, self, on_progress)
        changed = np.flatnonzero((hashes != expected).any(axis=1))
        if len(changed):
            file = files[self._images.place(int(changed[0]))[0]]
            raise DataError(
                f"{file} does not hold what was written ({len(changed)} images differ); delete it, "
                "and `cnn-depth data prepare` writes it again"
            )

    def where(self, i: int) -> str:
        images = self._images
        shard, record = images.place(i)
        file = images.files.paths[shard].name
        # A record ends with its image and a checksum, behind which the next one starts.
        start = 12 + (int(images.offsets[i - 1]) + int(images.sizes[i - 1]) + 4 if record else 0)
        try:
            head = images.files.read(shard, start, int(images.offsets[i]) - start)
            return f"{file}: {os.fsdecode(first_text(head, b'image/filename'))}"
        except (OSError, ValueError):
            return f"{file}: record {record}"


def open_shards(root: Path, on_progress: Progress | None = None) -> ImageSet:
    """The set that `prepare` wrote into the folder `root`.

    on_progress: of images that are read for their hashes, which happens once. Raises DataError,
    also where an image has changed since it was written.
    """
    state = read_state(root / SHARDS_FILE)
    if not state["complete"]:
        raise DataError(f"{root}: not all shards are written; run `cnn-depth data prepare` again")
    arrays = _read_index(root / INDEX_FILE, state)
    train, test = (_open_part(root, part, state, arrays) for part in PARTS)
    for part, source in zip(PARTS, (train, test), strict=True):
        source.check(arrays[f"{part}_hashes"], on_progress)
    return ImageSet(
        "shards",
        train,
        test,
        tuple(state["class_names"]),
        state["fingerprint"],
        mirror_ok=state["mirror_ok"],
        folders=tuple(state["folders"]),
    )


def index_digest(content: bytes) -> str:
    """The hash of the index, by which dataset.json recognises it."""
    return hashlib.sha256(content).hexdigest()


def _read_index(file: Path, state: dict[str, Any]) -> Arrays:
    keys = [f"{part}_{name}" for part in PARTS for name in kinds(state)]
    try:
        content = file.read_bytes()
        if index_digest(content) != state.get("index"):
            raise ValueError(f"not the one that {SHARDS_FILE} was written with")
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {key: archive[key] for key in keys}
    except Exception as error:  # NumPy raises many kinds of errors for a damaged or hostile file
        raise DataError(
            f"{file}: cannot be read ({error}); run `cnn-depth data prepare` again: it writes the "
            "index anew"
        ) from error


def _open_part(root: Path, part: str, state: dict[str, Any], arrays: Arrays) -> ShardSource:
    shard_count, count = state["shards"][part], state["counts"][part]
    arrays_of = {name: arrays[f"{part}_{name}"] for name in kinds(state)}
    counts, offsets, sizes, labels, hashes = (arrays_of[name] for name in KINDS)
    pixels = arrays_of.get("pixels")
    fits = (
        all(arrays_of[name].dtype == kind for name, kind in kinds(state).items())
        and (pixels is None or pixels.shape == (count, 4))
        and counts.shape == (shard_count,)
        and offsets.shape == sizes.shape == labels.shape == (count,)
        and hashes.shape == (count, contents.BYTES)
        and (counts >= 0).all()
        and counts.sum() == count > 0
        and (offsets >= 0).all()
        and ((labels >= 0) & (labels < len(state["class_names"]))).all()
    )
    if fits and pixels is not None:
        fits = (3.0 * pixels[:, 0] * pixels[:, 1] <= sizes).all()
    if not fits:
        raise DataError(f"{root / INDEX_FILE}: does not fit {root / SHARDS_FILE}; prepare it again")
    files = [root / shard_file(part, k, shard_count) for k in range(shard_count)]
    lengths = np.array([file_size(file) for file in files], np.int64)
    if (lengths < 0).any():
        missing = files[int(np.argmax(lengths < 0))]
        raise DataError(f"{missing} does not exist; `cnn-depth data prepare` writes it again")
    images = ByteRanges(files, counts, offsets, sizes)
    beyond_end = offsets > np.repeat(lengths, counts) - sizes
    if beyond_end.any():
        shard, _ = images.place(int(np.argmax(beyond_end)))
        raise DataError(
            f"{files[shard]} is shorter than it was when written; delete it, and `cnn-depth data "
            "prepare` writes it again"
        )
    return ShardSource(images, labels, pixels)


def read_state(file: Path) -> dict[str, Any]:
    """dataset.json, of a finished folder or not. DataError if it is damaged."""
    if not file.is_file():
        raise DataError(f"{file} does not exist; expected {EXPECTED.format(root=file.parent)}")
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DataError(f"{file}: not written by `cnn-depth data prepare`")
    if state.get("version") != VERSION:
        raise DataError(
            f"{file}: version {state.get('version')!r}; this program reads version {VERSION}: "
            "prepare the images again, in another folder"
        )
    state.setdefault("decoded", False)
    if not _is_sound(state):
        raise DataError(f"{file}: damaged; prepare the shards again in another folder")
    return state


def _is_sound(state: dict[str, Any]) -> bool:
    is_sound = (
        isinstance(state.get("complete"), bool)
        and isinstance(state.get("mirror_ok"), bool)
        and isinstance(state.get("decoded"), bool)
        and isinstance(state.get("source"), str)
        and all(is_strings(state.get(key)) for key in ("class_names", "folders"))
        and len(state["folders"]) in (0, len(state["class_names"]))
        and all(_is_numbers(state.get(key)) for key in ("counts", "shards"))
        and all(1 <= state["shards"][part] <= 99_999 for part in PARTS)
        and {"short_side", "quality"} <= state.keys()
    )
    if not is_sound or not state["complete"]:
        return is_sound
    return (
        isinstance(state.get("fingerprint"), str)
        and isinstance(state.get("bytes"), list)
        and all(type(state.get(key)) is int for key in ("shrunk", "undecodable"))
        and is_strings(state.get("undecodable_names"))
    )


def is_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _is_numbers(value: object) -> bool:
    """Whether it is {"train": number, "val": number}, both integers of at least 0."""
    return (
        isinstance(value, dict)
        and set(value) == set(PARTS)
        and all(type(entry) is int and entry >= 0 for entry in value.values())
    )

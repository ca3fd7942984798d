"""TFRecord shards that `prepare` wrote: few large files instead of a million small ones.

    train-00000-of-01024.tfrecord ... val-00000-of-00049.tfrecord
    train-00000-of-01024.json     ... what was done to a finished shard
    index.npz                         where each image lies, its label, and a hash of it
    dataset.json                      classes, counts, options, fingerprints; written last
    .lock                             empty; locked by who writes here

The records are tf.train.Examples with image/encoded, image/class/label and image/filename, which
other programs read too. Here one `pread` at the place that the index tells fetches an image.

Where images are kept decoded, image/encoded is a PPM file, and one `pread` fetches rows of it. Two
more features tell of the encoded image that it was: whether it was a JPEG of which training decodes
windows, and the checksum of the record that would have held it.
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
# And where images are kept decoded, (N, 4): the numbers of `Pixels`, or 0 where they could not be.
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
    """The arrays of each part in the index of shards that dataset.json describes so."""
    return DECODED_KINDS if state["decoded"] else KINDS


class ShardSource(Source):
    """The images that lie at `images` in shards; pixels: as in `DECODED_KINDS`, if these are."""

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
        """DataError where an image has another hash than is expected, (N, 16) uint8.

        They are read once to know that.
        """
        files = self._images.files.paths
        found = contents.of_large_files("shards", files, self, on_progress)
        other = np.flatnonzero((found != expected).any(axis=1))
        if len(other):
            file = files[self._images.place(int(other[0]))[0]]
            raise DataError(
                f"{file} does not hold what was written ({len(other)} images differ); delete it, "
                "and `cnn-depth data prepare` writes it again"
            )

    def where(self, i: int) -> str:
        images = self._images
        shard, before = images.place(i)
        file = images.files.paths[shard].name
        # A record ends with its image and a checksum, behind which the next one starts.
        start = 12 + (int(images.offsets[i - 1]) + int(images.sizes[i - 1]) + 4 if before else 0)
        try:
            head = images.files.read(shard, start, int(images.offsets[i]) - start)
            return f"{file}: {os.fsdecode(first_text(head, b'image/filename'))}"
        except (OSError, ValueError):
            return f"{file}: record {before}"


def open_shards(root: Path, on_progress: Progress | None = None) -> ImageSet:
    """What `prepare` wrote into the folder `root`. on_progress: of images that are read for their
    hashes, as they are once. Raises DataError, also where an image has changed since."""
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
    """What dataset.json tells the index of these shards by."""
    return hashlib.sha256(content).hexdigest()


def _read_index(file: Path, state: dict[str, Any]) -> Arrays:
    keys = [f"{part}_{name}" for part in PARTS for name in kinds(state)]
    try:
        content = file.read_bytes()
        if index_digest(content) != state.get("index"):
            raise ValueError(f"not the one that {SHARDS_FILE} was written with")
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {key: archive[key] for key in keys}
    except Exception as error:  # whatever NumPy meets in a file that was made to do harm
        raise DataError(
            f"{file}: cannot be read ({error}); run `cnn-depth data prepare` again: it writes the "
            "index anew"
        ) from error


def _open_part(root: Path, part: str, state: dict[str, Any], arrays: Arrays) -> ShardSource:
    of, count = state["shards"][part], state["counts"][part]
    own = {name: arrays[f"{part}_{name}"] for name in kinds(state)}
    counts, offsets, sizes, labels, hashes = (own[name] for name in KINDS)
    pixels = own.get("pixels")
    fits = (
        all(own[name].dtype == kind for name, kind in kinds(state).items())
        and (pixels is None or pixels.shape == (count, 4))
        and counts.shape == (of,)
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
    files = [root / shard_file(part, k, of) for k in range(of)]
    lengths = np.array([file_size(file) for file in files], np.int64)
    if (lengths < 0).any():
        missing = files[int(np.argmax(lengths < 0))]
        raise DataError(f"{missing} does not exist; `cnn-depth data prepare` writes it again")
    images = ByteRanges(files, counts, offsets, sizes)
    over = offsets > np.repeat(lengths, counts) - sizes
    if over.any():
        shard, _ = images.place(int(np.argmax(over)))
        raise DataError(
            f"{files[shard]} is shorter than it was when written; delete it, and `cnn-depth data "
            "prepare` writes it again"
        )
    return ShardSource(images, labels, pixels)


def read_state(file: Path) -> dict[str, Any]:
    """dataset.json, of a folder that is finished or not. DataError if it is damaged."""
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
    begun = (
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
    if not begun or not state["complete"]:
        return begun
    return (
        isinstance(state.get("fingerprint"), str)
        and isinstance(state.get("bytes"), list)
        and all(type(state.get(key)) is int for key in ("shrunk", "undecodable"))
        and is_strings(state.get("undecodable_names"))
    )


def is_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _is_numbers(value: object) -> bool:
    """Whether it is {"train": number, "val": number}, none of them below 0."""
    return (
        isinstance(value, dict)
        and set(value) == set(PARTS)
        and all(type(entry) is int and entry >= 0 for entry in value.values())
    )

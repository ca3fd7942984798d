"""ILSVRC's original tars, read without unpacking them.

PATH/ILSVRC2012_img_train.tar    a tar a class, n01440764.tar
PATH/ILSVRC2012_img_val.tar      the images, and beside it a file of their labels (labels.py)
"""

import contextlib
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.image_files import imagenet_names
from input_pipeline.sources import contents
from input_pipeline.sources.byte_ranges import ByteRanges
from input_pipeline.sources.cache import Arrays, of_files
from input_pipeline.sources.folders import is_image
from input_pipeline.sources.labels import flat_labels
from input_pipeline.sources.source import (
    ImageSet,
    Listing,
    Names,
    Progress,
    Source,
    as_data_errors,
    check_classes,
    fingerprint,
)

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
EXPECTED = "{root}/" + TRAIN_TAR + " and {root}/" + VAL_TAR
BETWEEN_UPDATES = 2**24  # bytes read between two updates of the progress


class TarSource(Source):
    """Images in the uncompressed tar `file`, or in tars within it.

    places: arrays `offsets` and `sizes` (N,), in bytes. inner: the name of each label's tar without
    its suffix; empty where the images lie in `file` itself.
    """

    labels: np.ndarray

    def __init__(self, file: Path, listing: Listing, places: Arrays, inner: Sequence[str]):
        self._file, self._inner = file, tuple(inner)
        self._names, self.labels = listing.names, listing.labels
        counts = np.array([len(listing.names)])
        self._images = ByteRanges([file], counts, places["offsets"], places["sizes"])

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> tuple[bytes, int]:
        return self._images.read(i), int(self.labels[i])

    def size(self, i: int) -> int:
        return int(self._images.sizes[i])

    def where(self, i: int) -> str:
        inner = f"{self._inner[int(self.labels[i])]}.tar: " if self._inner else ""
        return f"{self._file.name}: {inner}{os.fsdecode(self._names[i])}"


def open_ilsvrc(root: Path, on_progress: Progress | None) -> ImageSet:
    """The set in the folder `root`. on_progress: of a tar's bytes, while it is read. DataError."""
    train_file, val_file = root / TRAIN_TAR, root / VAL_TAR
    for file in (train_file, val_file):
        if not file.is_file():
            raise DataError(f"{file} does not exist; expected ILSVRC-2012's original tars")
    with as_data_errors(train_file):
        arrays = of_files(
            "tar of tars", [train_file], lambda: _walk_nested(train_file, on_progress)
        )
    folders = [str(name) for name in arrays["folders"]]
    check_classes(train_file, folders, arrays["counts"])
    labels: np.ndarray = np.repeat(np.arange(len(folders), dtype=np.int32), arrays["counts"])
    train = Listing(names_of(arrays), labels)
    train_digest = train.digest(arrays["hashes"])
    train_source = TarSource(train_file, train, arrays, inner=folders)
    with as_data_errors(val_file):
        arrays = of_files("tar of images", [val_file], lambda: _walk_flat(val_file, on_progress))
    names = list(names_of(arrays))
    labels = flat_labels(val_file, names, [root], folders)
    order = np.argsort(labels, kind="stable")
    arrays = {key: arrays[key][order] for key in ("offsets", "sizes", "hashes")}
    test = Listing(Names.of(names[i] for i in order), labels[order])
    return ImageSet(
        "ilsvrc",
        train_source,
        TarSource(val_file, test, arrays, inner=()),
        imagenet_names(folders),
        fingerprint(folders, train_digest, test.digest(arrays["hashes"])),
        folders=tuple(folders),
    )


def _walk_nested(file: Path, on_progress: Progress | None) -> Arrays:
    """The images of a tar whose members are tars, one a class, named after it.

    The arrays of `_walk_flat` of all classes, joined, and of each class its name, `folders` (K,)
    str, and its number of images, `counts` (K,).
    """
    arrays_of: dict[str, Arrays] = {}
    with file.open("rb") as stream, whole_tar(stream, str(file)) as outer:
        for member in filter(tarfile.TarInfo.isreg, outer):
            base = member.name.rpartition("/")[2]
            if base.startswith("."):  # as macOS adds
                continue
            if not base.endswith(".tar"):
                raise DataError(
                    f"{file}: holds {member.name!r}; expected one tar a class, n01440764.tar"
                )
            folder = base.removesuffix(".tar")
            if folder in arrays_of:
                raise DataError(f"{file}: holds two tars called {base!r}; expected one tar a class")
            content = outer.extractfile(member)
            assert content is not None  # it is a file
            with content, whole_tar(content, f"{file}: {member.name}") as inner:
                images = [
                    (name, member.offset_data + start, size) for name, start, size in _images(inner)
                ]
            arrays_of[folder] = _arrays(stream, images, on_progress)
    folders = sorted(arrays_of)
    by_class = [_arrays(stream, []), *(arrays_of[name] for name in folders)]
    names = Names.join([names_of(arrays) for arrays in by_class])
    joined = {key: np.concatenate([arrays[key] for arrays in by_class]) for key in by_class[0]}
    counts = np.array([len(arrays["sizes"]) for arrays in by_class[1:]], np.int64)
    return joined | {"ends": names.ends, "folders": np.array(folders, "U"), "counts": counts}


def _walk_flat(file: Path, on_progress: Progress | None) -> Arrays:
    """The images of a tar, sorted by name, as arrays.

    `names` are bytes, which end at `ends` (N,); `offsets` and `sizes` are (N,) int64; `hashes`, of
    their contents, are (N, 16) uint8.
    """
    with file.open("rb") as stream:
        with whole_tar(stream, str(file)) as tar:
            images = list(_images(tar))
        return _arrays(stream, images, on_progress)


def members(
    file: Path, kind: str, is_wanted: Callable[[str], bool], on_progress: Progress | None
) -> Arrays:
    """The files of a tar whose names, with folders, pass `is_wanted`, as arrays of `_walk_flat`.

    kind: a word for them, which names them in the cache. on_progress: of bytes. Raises DataError.
    """

    def build() -> Arrays:
        with file.open("rb") as stream:
            with whole_tar(stream, str(file)) as tar:
                files = [
                    (os.fsencode(member.name), member.offset_data, member.size)
                    for member in tar
                    if member.isreg() and is_wanted(member.name)
                ]
            return _arrays(stream, files, on_progress)

    with as_data_errors(file):
        arrays = of_files(f"tar of {kind}", [file], build)
    names = list(names_of(arrays))
    duplicates = [
        name for name, previous in zip(names[1:], names[:-1], strict=True) if name == previous
    ]
    if duplicates:
        raise DataError(
            f"{file}: holds {os.fsdecode(duplicates[0])!r} twice; expected each file once"
        )
    return arrays


@contextlib.contextmanager
def whole_tar(stream: IO[bytes], where: str) -> Iterator[tarfile.TarFile]:
    """The tar in `stream`; its user must go through all members. DataError unless it is whole.

    tarfile takes the end of the file or a damaged header for the end of the tar.
    """
    try:
        with tarfile.open(
            fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as tar:
            yield tar
            stream.seek(tar.offset)
            if stream.read(512) != bytes(512):
                raise tarfile.ReadError(f"no header at byte {tar.offset}")
    except tarfile.TarError as error:
        raise DataError(f"{where}: {error}; the tar is truncated or damaged") from error


def _images(tar: tarfile.TarFile) -> Iterator[tuple[bytes, int, int]]:
    """(name without folders, offset, size) of the images in a tar."""
    for member in tar:
        name = os.fsencode(member.name).rpartition(b"/")[2]
        if member.isreg() and is_image(name):
            yield name, member.offset_data, member.size


def _arrays(
    stream: IO[bytes],
    images: list[tuple[bytes, int, int]],
    on_progress: Progress | None = None,
) -> Arrays:
    """The arrays of `_walk_flat`. on_progress: of the bytes of the whole tar, in its order."""
    hashes, shown = {}, 0
    for _, offset, size in sorted(images, key=lambda image: image[1]):  # in their order on the disk
        hashes[offset] = contents.of_bytes(os.pread(stream.fileno(), size, offset))
        if on_progress is not None and offset + size >= shown + BETWEEN_UPDATES:
            shown = offset + size
            on_progress(shown, os.fstat(stream.fileno()).st_size)
    images = sorted(images)
    names = Names.of(name for name, _, _ in images)
    hashed = b"".join(hashes[offset] for _, offset, _ in images)
    return {
        "names": np.frombuffer(names.blob, np.uint8),
        "ends": names.ends,
        "offsets": np.array([offset for _, offset, _ in images], np.int64),
        "sizes": np.array([size for _, _, size in images], np.int64),
        "hashes": np.frombuffer(hashed, np.uint8).reshape(-1, contents.BYTES),
    }


def names_of(arrays: Arrays) -> Names:
    """The names in the arrays of a tar."""
    return Names(arrays["names"].tobytes(), arrays["ends"])

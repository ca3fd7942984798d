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
    check_classes,
    fingerprint,
    reading,
)

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
EXPECTED = "{root}/" + TRAIN_TAR + " and {root}/" + VAL_TAR


class TarSource(Source):
    """Images in the uncompressed tar `file`, or in the tars in it, called as `inner` by label."""

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
    """The set in the folder `root`. on_progress: of bytes, while tars are read. DataError."""
    train_file, val_file = root / TRAIN_TAR, root / VAL_TAR
    for file in (train_file, val_file):
        if not file.is_file():
            raise DataError(f"{file} does not exist; expected ILSVRC-2012's original tars")
    done, total = 0, sum(file.stat().st_size for file in (train_file, val_file))

    def progress(size: int) -> None:
        nonlocal done
        done += size
        if on_progress is not None:
            on_progress(done, total)

    with reading(train_file):
        found = of_files("tar of tars", [train_file], lambda: _walk_nested(train_file, progress))
    folders = [str(name) for name in found["folders"]]
    check_classes(train_file, folders, found["counts"])
    labels: np.ndarray = np.repeat(np.arange(len(folders), dtype=np.int32), found["counts"])
    train = Listing(names_of(found), labels)
    train_digest = train.digest(found["hashes"])
    train_source = TarSource(train_file, train, found, inner=folders)
    with reading(val_file):
        found = of_files("tar of images", [val_file], lambda: _walk_flat(val_file, progress))
    names = list(names_of(found))
    labels = flat_labels(val_file, names, [root], folders)
    order = np.argsort(labels, kind="stable")
    found = {key: found[key][order] for key in ("offsets", "sizes", "hashes")}
    test = Listing(Names.of(names[i] for i in order), labels[order])
    return ImageSet(
        "ilsvrc",
        train_source,
        TarSource(val_file, test, found, inner=()),
        imagenet_names(folders),
        fingerprint(folders, train_digest, test.digest(found["hashes"])),
        folders=tuple(folders),
    )


def _walk_nested(file: Path, progress: Callable[[int], None]) -> Arrays:
    """The images of a tar whose members are tars, one a class, called after it.

    As of `_walk_flat`, joined, with `folders` (K,) str and `counts` (K,) of the images of each.
    """
    classes: dict[str, Arrays] = {}
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
            if folder in classes:
                raise DataError(f"{file}: holds two tars called {base!r}; expected one tar a class")
            content = outer.extractfile(member)
            assert content is not None  # it is a file
            with content, whole_tar(content, f"{file}: {member.name}") as inner:
                images = [
                    (name, member.offset_data + at, size) for name, at, size in _images(inner)
                ]
            classes[folder] = _arrays(stream, images)
            progress(member.size)
    folders = sorted(classes)
    found = [_arrays(stream, []), *(classes[name] for name in folders)]
    names = Names.join([names_of(one) for one in found])
    joined = {key: np.concatenate([one[key] for one in found]) for key in found[0]}
    counts = np.array([len(one["sizes"]) for one in found[1:]], np.int64)
    return joined | {"ends": names.ends, "folders": np.array(folders, "U"), "counts": counts}


def _walk_flat(file: Path, progress: Callable[[int], None]) -> Arrays:
    """The images of a tar, sorted by name: their `names` as bytes, which end at `ends` (N,), their
    `offsets` and `sizes` (N,) int64, and `hashes` (N, 16) uint8 of what they hold.
    """
    with file.open("rb") as stream:
        with whole_tar(stream, str(file)) as tar:
            images = list(_images(tar))
        found = _arrays(stream, images)
    progress(file.stat().st_size)
    return found


def members(
    file: Path, kind: str, wanted: Callable[[str], bool], on_progress: Progress | None
) -> Arrays:
    """The files of a tar whose whole names are `wanted`, as `_walk_flat` gives images. DataError.

    kind: what is wanted, in a word, by which it is kept. on_progress: of bytes.
    """

    def build() -> Arrays:
        with file.open("rb") as stream:
            with whole_tar(stream, str(file)) as tar:
                files = [
                    (os.fsencode(member.name), member.offset_data, member.size)
                    for member in tar
                    if member.isreg() and wanted(member.name)
                ]
            found = _arrays(stream, files)
        if on_progress is not None:
            on_progress(file.stat().st_size, file.stat().st_size)
        return found

    with reading(file):
        found = of_files(f"tar of {kind}", [file], build)
    names = list(names_of(found))
    twice = [name for name, before in zip(names[1:], names[:-1], strict=True) if name == before]
    if twice:
        raise DataError(f"{file}: holds {os.fsdecode(twice[0])!r} twice; expected each file once")
    return found


@contextlib.contextmanager
def whole_tar(stream: IO[bytes], where: str) -> Iterator[tarfile.TarFile]:
    """The tar in `stream`, whose members must be gone through. DataError unless it is whole.

    tarfile takes the end of the file, and a damaged header, for the end too.
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


def _arrays(stream: IO[bytes], images: list[tuple[bytes, int, int]]) -> Arrays:
    hashes = {}
    for _, offset, size in sorted(images, key=lambda image: image[1]):  # as they lie on the disk
        hashes[offset] = contents.of_bytes(os.pread(stream.fileno(), size, offset))
    images = sorted(images)
    names = Names.of(name for name, _, _ in images)
    joined = b"".join(hashes[offset] for _, offset, _ in images)
    return {
        "names": np.frombuffer(names.blob, np.uint8),
        "ends": names.ends,
        "offsets": np.array([offset for _, offset, _ in images], np.int64),
        "sizes": np.array([size for _, _, size in images], np.int64),
        "hashes": np.frombuffer(joined, np.uint8).reshape(-1, contents.BYTES),
    }


def names_of(found: Arrays) -> Names:
    """The names in what was found of a tar."""
    return Names(found["names"].tobytes(), found["ends"])

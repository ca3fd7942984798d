"""The interface of all sources of encoded images, and the fingerprints of their sets."""

import abc
import contextlib
import dataclasses
import errno
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.image_files import SUFFIXES
from input_pipeline.pixels import Pixels

Progress = Callable[[int, int], None]  # called with the amount done and the total, in any unit
PAUSES = (0.1, 1.0, 5.0)  # seconds, before a file is read again
T = TypeVar("T")


class Source(abc.ABC):
    """Encoded images with labels."""

    labels: np.ndarray | None  # (N,) int32; None where an image must be read for its label
    missing: Sequence[int] = ()  # images that are listed but whose files are not there
    notes: Sequence[str] = ()  # sentences for people about files that are not read

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, i: int) -> tuple[bytes, int]:
        """(content of image file i, its label). Thread-safe. Raises OSError or DataError."""

    @abc.abstractmethod
    def where(self, i: int) -> str:
        """Where image i lies, for messages."""

    def size(self, i: int) -> int:
        """Bytes of image file i; 0 where it must be read to know."""
        return 0

    def pixels(self, i: int) -> Pixels | None:
        """The pixels of image i where they are kept decoded; its label is then in `labels`."""
        return None

    def read_again(self, i: int) -> tuple[bytes, int]:
        """`read`, tried again where storage fails, which is no fault of the file."""
        return retried(lambda: self.read(i))

    def take(self, indices: np.ndarray) -> "Source":
        """The images at `indices`, in that order."""
        return _Subset(self, np.asarray(indices))


def retried(read: Callable[[], T]) -> T:
    """The return value of `read`, called again where storage fails. Raises OSError or DataError."""
    for pause in PAUSES:
        try:
            return read()
        except (FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise
            time.sleep(pause)
    return read()


class Wrapped(Source):
    """The images of another source; subclasses change what `read` returns."""

    def __init__(self, source: Source):
        self.source = source
        self.labels, self.missing, self.notes = source.labels, source.missing, source.notes

    def __len__(self) -> int:
        return len(self.source)

    def where(self, i: int) -> str:
        return self.source.where(i)

    def size(self, i: int) -> int:
        return self.source.size(i)

    def pixels(self, i: int) -> Pixels | None:
        return self.source.pixels(i)


class _Subset(Source):
    def __init__(self, source: Source, indices: np.ndarray):
        if indices.ndim != 1 or ((indices < 0) | (indices >= len(source))).any():
            raise DataError(f"indices of images run from 0 to {len(source) - 1}")
        self._source = source
        self._indices: np.ndarray = indices.astype(np.int32)
        self.labels = None if source.labels is None else source.labels[self._indices]
        self.notes = source.notes
        self.missing = np.flatnonzero(np.isin(indices, source.missing)).tolist()

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, i: int) -> tuple[bytes, int]:
        return self._source.read(int(self._indices[i]))

    def where(self, i: int) -> str:
        return self._source.where(int(self._indices[i]))

    def size(self, i: int) -> int:
        return self._source.size(int(self._indices[i]))

    def pixels(self, i: int) -> Pixels | None:
        return self._source.pixels(int(self._indices[i]))


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """A training part and a test part."""

    name: str
    train: Source  # without images where the set is only for tests
    test: Source
    class_names: tuple[str, ...]
    fingerprint: str  # changes when contents, names or labels do
    mirror_ok: bool = True  # False where a mirrored image is not an image of its class
    folders: tuple[str, ...] = ()  # what the classes are called on disk: ImageNet's wnids
    # `Collection.targets` of the training and the test part, where an image may be of several
    # classes. Labels are then 0.
    targets: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of both parts for people: files that are not read, which part is the test."""
        return tuple(dict.fromkeys((*self.train.notes, *self.test.notes)))


@dataclasses.dataclass(frozen=True, eq=False)
class Names:
    """Many short names in few bytes: name i ends at `ends[i]`, where the next one starts."""

    blob: bytes
    ends: np.ndarray  # (N,) uint32, or int64 from 4 GB on

    @classmethod
    def of(cls, names: Iterable[bytes]) -> "Names":
        names = list(names)
        return cls(b"".join(names), _narrow(np.cumsum([len(name) for name in names], dtype="i8")))

    @classmethod
    def join(cls, parts: Sequence["Names"]) -> "Names":
        starts = np.cumsum([0, *(len(part.blob) for part in parts[:-1])], dtype=np.int64)
        ends = [part.ends + start for part, start in zip(parts, starts, strict=True)]
        joined = np.concatenate([np.zeros(0, np.int64), *ends])
        return cls(b"".join(part.blob for part in parts), _narrow(joined))

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[bytes]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> bytes:
        i = range(len(self.ends))[i]
        start = int(self.ends[i - 1]) if i else 0
        return self.blob[start : int(self.ends[i])]


def _narrow(ends: np.ndarray) -> np.ndarray:
    return ends.astype(np.uint32) if not len(ends) or ends[-1] < 2**32 else ends


@dataclasses.dataclass(frozen=True, eq=False)
class Listing:
    """The images of one part in order: sorted by label, then by name."""

    names: Names
    labels: np.ndarray  # (N,) int32

    def digest(self, contents: np.ndarray) -> bytes:
        """Hash of every image's name, label and content, in order.

        contents: (N, 16) uint8, the hash of each image's content (`contents.py`).
        """
        digest = hashlib.sha256(b"%d\0" % len(self.names))
        for values, kind in ((self.names.ends, "<u8"), (self.labels, "<i4"), (contents, "u1")):
            digest.update(values.astype(kind).tobytes())
        digest.update(self.names.blob)
        return digest.digest()


def fingerprint(names: Sequence[str], *parts: bytes) -> str:
    """`images-` and 16 hexadecimal digits, which depend on classes and images, not on paths.

    names: of the classes. parts: `Listing.digest` of each part, and what else tells sets apart.
    """
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape"))
    digest.update(b"".join(parts))
    return f"images-{digest.hexdigest()[:16]}"


def check_classes(where: Path, folders: Sequence[str], counts: np.ndarray) -> None:
    """DataError unless there are two classes or more, each with images. counts: (K,) of images."""
    if len(folders) < 2:
        problem = f"one class only ({folders[0]})" if folders else "no folders of classes"
        raise DataError(f"{where} holds {problem}; expected at least two, each with its images")
    empty = [name for name, count in zip(folders, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"{where}: no image files (of type {', '.join(SUFFIXES)}) of {len(empty)} of "
            f"{len(folders)} classes: {first_names(empty)}"
        )


def first_names(names: Iterable[str]) -> str:
    """The first few names, and how many others."""
    names = sorted(names)
    more = f" and {len(names) - 5} others" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more


@contextlib.contextmanager
def as_data_errors(path: object) -> Iterator[None]:
    """Turns the OSErrors of a file or folder that cannot be read into DataErrors."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error

"""Image files in folders of classes, or in ILSVRC's flat validation folder.

    PATH/train/CLASS/image files
    PATH/val/CLASS/image files, or PATH/val/image files with a file of their labels (labels.py)

Images of a class may lie in deeper folders. Kaggle's copy of ILSVRC has both parts in
PATH/ILSVRC/Data/CLS-LOC.
"""

import dataclasses
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from input_pipeline.errors import DataError, nearest
from input_pipeline.image_files import SUFFIXES, TEST_PARTS, imagenet_names
from input_pipeline.sources import contents
from input_pipeline.sources.labels import FILES, flat_labels
from input_pipeline.sources.source import (
    ImageSet,
    Listing,
    Names,
    Progress,
    Source,
    as_data_errors,
    check_classes,
    fingerprint,
    first_names,
)

EXPECTED = "{root}/train/CLASS/image files and {root}/val/CLASS/image files"
_KAGGLE = ("ILSVRC", "Data", "CLS-LOC")
_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)


class FolderSource(Source):
    """Image files below `root`: those with label k lie in `root/folders[k]`."""

    labels: np.ndarray

    def __init__(
        self,
        root: Path,
        folders: Sequence[str],
        names: Names,
        labels: np.ndarray,
        missing: Sequence[int] = (),
        notes: Sequence[str] = (),
    ):
        self._names, self.labels, self.missing = names, labels, tuple(missing)
        self.notes = tuple(notes)
        self._folders = tuple(folders)
        self._paths = tuple(os.fsencode(root / folder) + b"/" for folder in folders)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, i: int) -> tuple[bytes, int]:
        with io.FileIO(self._path(i)) as stream:  # type: ignore[arg-type]
            return stream.readall(), int(self.labels[i])

    def size(self, i: int) -> int:
        try:
            return os.stat(self._path(i)).st_size
        except OSError:  # reading it will say so
            return 0

    def _path(self, i: int) -> bytes:
        return self._paths[int(self.labels[i])] + self._names[i]

    def where(self, i: int) -> str:
        return f"{self._folders[int(self.labels[i])]}/{os.fsdecode(self._names[i])}"


def data_folder(root: Path) -> Path:
    """The folder that holds train and val: in Kaggle's copy of ILSVRC three levels down."""
    candidates = [root.joinpath(*_KAGGLE), root.joinpath(*_KAGGLE[1:])]
    return next((candidate for candidate in candidates if (candidate / "train").is_dir()), root)


def open_folder(root: Path, on_progress: Progress | None = None) -> ImageSet:
    """The set in the folder `root`. on_progress: of images whose contents are read. DataError."""
    data = data_folder(root)
    if not (data / "train").is_dir():
        check_parts(root)
        raise DataError(f"{root}: no train folder; expected {EXPECTED.format(root=root)}")
    parts = [name for name in TEST_PARTS if (data / name).is_dir()]
    if not parts:
        raise DataError(
            f"{data} has a train folder but none called {', '.join(TEST_PARTS[:-1])} or "
            f"{TEST_PARTS[-1]}; expected {data}/val/CLASS/image files, or data.path={data}/train "
            "with data.split=0.2, which tests on a fifth of each class"
        )
    folders, test_folder = subfolders(data / "train"), data / parts[0]
    if folders:
        check_no_images_beside(data / "train")
    train = list_classes(data / "train", folders, range(len(folders)))
    check_classes(data / "train", folders, np.bincount(train.labels, minlength=len(folders)))
    test_classes = subfolders(test_folder)
    if test_classes:
        check_no_images_beside(test_folder)
        unknown = set(test_classes) - set(folders)
        if unknown:
            name = nearest("{!r}", min(unknown), folders)
            hint = f" (is {name} meant by {min(unknown)!r}?)" if name else ""
            raise DataError(
                f"{test_folder} has classes that train has not: {first_names(unknown)}{hint}"
            )
        test = list_classes(test_folder, folders, [folders.index(name) for name in test_classes])
    else:
        test = list_flat(test_folder, root, folders)
    if not len(test.names):
        raise DataError(f"{test_folder} holds no image files (of type {', '.join(SUFFIXES)})")
    digests = [part.digest(part.hashes(on_progress)) for part in (train, test)]
    return ImageSet(
        "folder",
        train.source(data),
        test.source(data, tested_part(data, parts)),
        imagenet_names(folders),
        fingerprint(folders, *digests),
        folders=tuple(folders),
    )


def tested_part(where: Path | str, parts: Sequence[str]) -> list[str]:
    """A note that only the first test part is read, if there are several."""
    if len(parts) < 2:
        return []
    return [f"{where}: {parts[0]!r} is the test part; {first_names(parts[1:])} is not read"]


@dataclasses.dataclass(frozen=True, eq=False)
class Files(Listing):
    """The images of one part as files: those with label k lie in `part / places[k]`."""

    part: Path
    places: tuple[str, ...]
    facts: np.ndarray  # (3, N) int64: sizes in bytes, times of change in ns, inodes
    unread: "Unread"  # other files in the part

    def hashes(self, on_progress: Progress | None = None) -> np.ndarray:
        """(N, 16) uint8: a hash of each image's content, from the cache or from reading it."""
        flat = set(self.places) == {"."}
        places = json.dumps((".",) if flat else self.places).encode()
        files = {
            "places": np.frombuffer(places, np.uint8),
            "which": np.zeros_like(self.labels) if flat else self.labels,
            "names": np.frombuffer(self.names.blob, np.uint8),
            "ends": self.names.ends,
            **dict(zip(("sizes", "times", "inodes"), self.facts, strict=True)),
        }
        return contents.of_files(self.part, files, self.source(self.part), on_progress)

    def take(self, indices: np.ndarray) -> "Files":
        """The images at `indices`, in that order."""
        names, facts = Names.of(self.names[i] for i in indices.tolist()), self.facts[:, indices]
        return dataclasses.replace(self, names=names, labels=self.labels[indices], facts=facts)

    def source(self, root: Path, notes: Sequence[str] = ()) -> FolderSource:
        """The images, named by their paths from `root`, the part or a folder above it."""
        inner = self.part.relative_to(root)
        places = [str(inner / place) for place in self.places]
        missing = np.flatnonzero(self.facts[0] < 0).tolist()
        notes = [*notes, *self.unread.notes(inner)]
        return FolderSource(root, places, self.names, self.labels, missing, notes)


# Kinds of what is not read, beside suffixes.
_HIDDEN, _ODD, _LOOP = "hidden", "odd", "loop"
_WORDS = {
    _HIDDEN: ("hidden image file is not read", "hidden image files are not read"),
    _ODD: ("entry that is no file is not read", "entries that are no files are not read"),
    _LOOP: (
        "link to a folder that it lies in is not followed",
        "links to folders that they lie in are not followed",
    ),
}
_HEIC = {".heic", ".heif", ".hif"}


class Unread:
    """The files of a part that are not read: of each kind their number and an example."""

    def __init__(self) -> None:
        self._tallies: dict[str, tuple[int, bytes]] = {}  # (count, example) by kind

    def add(self, kind: str, where: bytes, count: int = 1) -> None:
        """kind: a suffix such as `.psd`, or a key of `_WORDS`. where: the path in the part."""
        previous, example = self._tallies.get(kind, (0, where))
        self._tallies[kind] = previous + count, example

    def add_all(self, other: "Unread", inside: bytes) -> None:
        """Adds what is not read in `inside`, a folder of the part."""
        for kind, (count, example) in other._tallies.items():
            self.add(kind, os.path.join(inside, example), count)

    def notes(self, part: Path) -> list[str]:
        """Sentences that say what is not read; `part` stands before the names."""
        notes, suffixes = [], sorted(self._tallies.keys() - _WORDS.keys())
        counts = {kind: count for kind, (count, _) in self._tallies.items()}
        such_as = {
            k: f", such as {part / os.fsdecode(example)}"
            for k, (_, example) in self._tallies.items()
        }
        if suffixes:
            ends = {kind: f"of suffix {kind}" if kind else "without a suffix" for kind in suffixes}
            counted = [
                _counted(counts[k], f"file {end}", f"files {end}") for k, end in ends.items()
            ]
            is_single = sum(counts[kind] for kind in suffixes) == 1
            notes.append(f"{' and '.join(counted)} {'is' if is_single else 'are'} not read")
            notes[-1] += such_as[suffixes[0]]
            if _HEIC.intersection(suffixes):
                notes[-1] += "; with pillow-heif installed .heic is read"
        for kind, (single, plural) in _WORDS.items():
            if kind in counts:
                notes.append(_counted(counts[kind], single, plural) + such_as[kind])
        return notes


def _counted(number: int, single: str, plural: str) -> str:
    return f"{number:,} {single if number == 1 else plural}"


def check_no_images_beside(part: Path) -> None:
    """DataError for images beside folders of classes: they would be left out unnoticed."""
    beside = [os.fsdecode(name) for name, *_ in _list_folder(part, Unread(), deep=False)]
    if beside:
        raise DataError(
            f"{part} holds folders of classes and, beside them, image files ({len(beside)}): "
            f"{first_names(beside)}; move each into the folder of its class, or elsewhere"
        )


def list_flat(part: Path, root: Path, folders: Sequence[str]) -> Files:
    """The images of a folder without classes, whose file of labels lies in it or above it."""
    data = part.parent
    kaggle_root = data.parents[2:3] if data.parts[-3:] == _KAGGLE else ()
    unread = Unread()
    files = _list_folder(part, unread, deep=False)
    names = [name for name, *_ in files]
    labels = flat_labels(part, names, dict.fromkeys([part, data, root, *kaggle_root]), folders)
    places = (".",) * len(folders)
    listing = Files(Names.of(names), labels, part, places, _facts(files), unread)
    return listing.take(np.argsort(labels, kind="stable"))


def check_parts(root: Path) -> None:
    """DataError if `root` is a folder of classes without parts, or of images without classes."""
    names = subfolders(root)
    if any(has_images(root / name) for name in names[:20]):
        raise DataError(
            f"{root} holds folders of classes ({first_names(names)}) but no train and val; "
            "data.split=0.2 tests on a fifth of each class; or move some images of each class to "
            f"{root}/val/CLASS/ and the others to {root}/train/CLASS/"
        )
    if has_images(root):
        raise DataError(
            f"{root} holds images but no classes; expected {EXPECTED.format(root=root)}"
        )


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted, without hidden ones."""
    with as_data_errors(folder), os.scandir(folder) as entries:
        return sorted(
            entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry)
        )


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def has_images(folder: Path, deep: bool = False) -> bool:
    """Whether image files lie in a folder. deep: also look into the folders in it."""
    return any(_walk(folder, Unread(), deep))


def is_image(name: bytes) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.startswith(b".")


# (path from the listed folder, size in bytes, time of change in ns, inode)
File = tuple[bytes, int, int, int]


def _facts(files: Sequence[File]) -> np.ndarray:
    """`Files.facts`. Unsigned inodes wrap around, which keeps them distinct."""
    sizes, times, inodes = ([file[k] for file in files] for k in (1, 2, 3))
    signed = np.array(inodes, np.uint64).astype(np.int64)
    return np.stack([np.array(sizes, np.int64), np.array(times, np.int64), signed])


def _list_folder(folder: Path, unread: Unread, deep: bool = True) -> list[File]:
    """The image files in a folder, sorted; the size and time of a broken link are -1."""
    return sorted(_walk(folder, unread, deep))


def _walk(folder: Path, unread: Unread, deep: bool) -> Iterator[File]:
    top = os.fsencode(folder)
    with as_data_errors(folder):
        ancestors = {
            _inode(os.stat(path)) for path in (folder.resolve(), *folder.resolve().parents)
        }
        yield from _image_files(top, b"", ancestors, unread, deep)


def _inode(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _image_files(
    top: bytes, inner: bytes, ancestors: set[tuple[int, int]], unread: Unread, deep: bool
) -> Iterator[File]:
    """The image files in `top/inner`. ancestors: the inodes of it and of the folders above."""
    folders = []
    with os.scandir(os.path.join(top, inner)) as entries:
        for entry in entries:
            name = os.path.join(inner, entry.name)
            if _is_folder(entry):
                folders.append((name, entry.name))
            elif is_image(entry.name):
                file = _image(entry, name)
                if file is None:
                    unread.add(_ODD, name)
                else:
                    yield file
            elif not entry.name.startswith(b"."):
                if os.fsdecode(entry.name) not in FILES:
                    suffix = os.path.splitext(os.fsdecode(entry.name))[1].lower()
                    unread.add(suffix, name)
            elif is_image(entry.name.lstrip(b".")):
                unread.add(_HIDDEN, name)
    for name, base in folders if deep else []:
        inode = _inode(os.stat(os.path.join(top, name)))
        if inode in ancestors:
            unread.add(_LOOP, name)
        elif base.startswith(b"."):
            _add_hidden(top, name, ancestors | {inode}, unread)
        else:
            yield from _image_files(top, name, ancestors | {inode}, unread, deep)


def _image(entry: os.DirEntry, name: bytes) -> File | None:
    """The image file of an entry; None for an entry that is no file, such as a pipe."""
    try:
        if not entry.is_file():
            if entry.is_symlink() and not os.path.exists(entry.path):
                return name, -1, -1, 0  # reading it will say so
            return None
        stat = entry.stat()
    except OSError:  # a link that leads to itself, or a file that has just gone
        return name, -1, -1, 0
    return name, stat.st_size, stat.st_mtime_ns, stat.st_ino


def _add_hidden(top: bytes, name: bytes, ancestors: set[tuple[int, int]], unread: Unread) -> None:
    """Counts the images in a hidden folder."""
    for image, *_ in _image_files(top, name, ancestors, Unread(), deep=True):
        unread.add(_HIDDEN, image)


def list_classes(part: Path, folders: Sequence[str], classes: Iterable[int]) -> Files:
    """The images in and below the folders of `classes`, ascending indices into `folders`."""

    def list_class(k: int) -> tuple[Names, np.ndarray, Unread]:
        unread = Unread()
        files = _list_folder(part / folders[k], unread)
        return Names.of(name for name, *_ in files), _facts(files), unread

    classes = list(classes)
    with ThreadPoolExecutor(8) as pool:  # a network file system answers several requests at once
        listings = list(pool.map(list_class, classes))
    facts = [_facts([]), *(facts for _, facts, _ in listings)]
    unread = Unread()
    for k, (*_, class_unread) in zip(classes, listings, strict=True):
        unread.add_all(class_unread, os.fsencode(folders[k]))
    _add_beside(part, unread)
    return Files(
        Names.join([names for names, *_ in listings]),
        np.repeat(np.array(classes, np.int32), [len(names) for names, *_ in listings]),
        part,
        tuple(folders),
        np.concatenate(facts, axis=1),
        unread,
    )


def _add_beside(part: Path, unread: Unread) -> None:
    """Counts what is not read beside the folders of classes and in hidden folders."""
    top = os.fsencode(part)
    with as_data_errors(part):
        hidden = [name for name in os.listdir(top) if name.startswith(b".")]
    _list_folder(part, unread, deep=False)
    for name in hidden:
        if os.path.isdir(os.path.join(top, name)):
            _add_hidden(top, name, {_inode(os.stat(os.path.join(top, name)))}, unread)

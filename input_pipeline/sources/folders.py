"""Image files in folders of classes, or in ILSVRC's flat validation folder.

    PATH/train/CLASS/image files
    PATH/val/CLASS/image files, or PATH/val/image files with a file of their labels (labels.py)

Kaggle's copy of ILSVRC has both in PATH/ILSVRC/Data/CLS-LOC.
"""

import difflib
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.image_files import SUFFIXES, TEST_PARTS
from input_pipeline.sources.labels import flat_labels
from input_pipeline.sources.source import (
    ImageSet,
    Listing,
    Names,
    Source,
    check_classes,
    class_names,
    fingerprint,
    reading,
    some,
)

EXPECTED = "{root}/train/CLASS/image files and {root}/val/CLASS/image files"
_KAGGLE = ("ILSVRC", "Data", "CLS-LOC")
_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)


class FolderSource(Source):
    """Image files in `root`: those with label k in `root/folders[k]`."""

    labels: np.ndarray

    def __init__(
        self,
        root: Path,
        folders: Sequence[str],
        names: Names,
        labels: np.ndarray,
        missing: Sequence[int] = (),
    ):
        self._names, self.labels, self.missing = names, labels, tuple(missing)
        self._folders = tuple(folders)
        self._paths = tuple(os.fsencode(root / folder) + b"/" for folder in folders)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, i: int) -> tuple[bytes, int]:
        label = int(self.labels[i])
        with io.FileIO(self._paths[label] + self._names[i]) as stream:  # type: ignore[arg-type]
            return stream.readall(), label

    def where(self, i: int) -> str:
        return f"{self._folders[int(self.labels[i])]}/{os.fsdecode(self._names[i])}"


def data_folder(root: Path) -> Path:
    """The folder that holds train and val: in Kaggle's copy of ILSVRC three levels down."""
    inside = [root.joinpath(*_KAGGLE), root.joinpath(*_KAGGLE[1:])]
    return next((inner for inner in inside if (inner / "train").is_dir()), root)


def open_folder(root: Path) -> ImageSet:
    """The set in the folder `root`. Raises DataError."""
    data = data_folder(root)
    if not (data / "train").is_dir():
        check_parts(root)
        raise DataError(f"{root}: no train folder; expected {EXPECTED.format(root=root)}")
    part = next((part for part in TEST_PARTS if (data / part).is_dir()), None)
    if part is None:
        raise DataError(
            f"{data} has a train folder but none called {', '.join(TEST_PARTS[:-1])} or "
            f"{TEST_PARTS[-1]}; expected {data}/val/CLASS/image files, or data.path={data}/train "
            "with data.split=0.2, which tests on a fifth of each class"
        )
    folders = subfolders(data / "train")
    if folders:
        _check_no_images_beside(data / "train")
    train = list_classes(data / "train", folders, range(len(folders)))
    check_classes(data / "train", folders, np.bincount(train.labels, minlength=len(folders)))
    inside = subfolders(data / part)
    if inside:
        _check_no_images_beside(data / part)
        test = _list_test(data / part, inside, folders)
        test_places = [f"{part}/{name}" for name in folders]
    else:
        test = list_flat(data / part, root, folders)
        test_places = [part] * len(folders)
    if not len(test.names):
        raise DataError(f"{data / part} holds no image files (of type {', '.join(SUFFIXES)})")
    return ImageSet(
        "folder",
        _source(data, [f"train/{name}" for name in folders], train),
        _source(data, test_places, test),
        class_names(folders),
        fingerprint(folders, train, test),
        folders=tuple(folders),
    )


def _source(data: Path, places: Sequence[str], listing: Listing) -> FolderSource:
    missing = np.flatnonzero(listing.sizes < 0).tolist()
    return FolderSource(data, places, listing.names, listing.labels, missing)


def _check_no_images_beside(part: Path) -> None:
    """DataError for images beside folders of classes: they would be left out unnoticed."""
    beside = [os.fsdecode(name) for name, _ in _list_folder(part)]
    if beside:
        raise DataError(
            f"{part} holds folders of classes and, beside them, image files ({len(beside)}): "
            f"{some(beside)}; move each into the folder of its class, or elsewhere"
        )


def _list_test(part: Path, inside: Sequence[str], folders: Sequence[str]) -> Listing:
    """The images in the classes' folders `inside`, which may be fewer than train's `folders`."""
    odd = set(inside) - set(folders)
    if odd:
        near = difflib.get_close_matches(min(odd), folders, n=1)
        hint = f" (is {near[0]!r} meant by {min(odd)!r}?)" if near else ""
        raise DataError(f"{part} has classes that train has not: {some(odd)}{hint}")
    return list_classes(part, folders, [folders.index(name) for name in inside])


def list_flat(part: Path, root: Path, folders: Sequence[str]) -> Listing:
    """The images of a folder without classes; a file of labels lies in it or somewhere above."""
    data = part.parent
    above = data.parents[2:3] if data.parts[-3:] == _KAGGLE else ()
    files = _list_folder(part)
    names = [name for name, _ in files]
    labels = flat_labels(part, names, dict.fromkeys([part, data, root, *above]), folders)
    order = np.argsort(labels, kind="stable")
    sizes = np.array([size for _, size in files], np.int64)
    return Listing(Names.of(names[i] for i in order), sizes[order], labels[order])


def check_parts(root: Path) -> None:
    """DataError if `root` is a folder of classes without parts, or of images without classes."""
    inside = subfolders(root)
    if any(_list_folder(root / name) for name in inside[:20]):
        raise DataError(
            f"{root} holds folders of classes ({some(inside)}) but no train and val; "
            "data.split=0.2 tests on a fifth of each class; or move some images of each class to "
            f"{root}/val/CLASS/ and the others to {root}/train/CLASS/"
        )
    if _list_folder(root):
        raise DataError(
            f"{root} holds images but no classes; expected {EXPECTED.format(root=root)}"
        )


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted, without hidden ones."""
    with reading(folder), os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith((".", "__")) and entry.is_dir()
        )


def has_images(folder: Path) -> bool:
    """Whether image files lie in a folder."""
    with reading(folder), os.scandir(os.fsencode(folder)) as entries:
        return any(is_image(entry.name) for entry in entries)


def is_image(name: bytes) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.startswith(b".")


def _list_folder(folder: Path) -> list[tuple[bytes, int]]:
    """(name, size) of the image files in a folder, sorted; -1 for a link that leads nowhere."""
    found = []
    with reading(folder), os.scandir(os.fsencode(folder)) as entries:
        for entry in entries:
            if not is_image(entry.name):
                continue
            if entry.is_file():
                found.append((entry.name, entry.stat().st_size))
            elif entry.is_symlink() and not os.path.exists(entry.path):
                found.append((entry.name, -1))  # reading it will say so
    return sorted(found)


def list_classes(part: Path, folders: Sequence[str], classes: Iterable[int]) -> Listing:
    """The images in the folders of `classes`, ascending places in `folders`."""

    def one(k: int) -> tuple[Names, np.ndarray]:
        files = _list_folder(part / folders[k])
        return Names.of(name for name, _ in files), np.array([size for _, size in files], np.int64)

    classes = list(classes)
    with ThreadPoolExecutor(8) as pool:  # a network's file system answers several at once
        listed = list(pool.map(one, classes))
    return Listing(
        Names.join([names for names, _ in listed]),
        np.concatenate([sizes for _, sizes in listed]),
        np.repeat(np.array(classes, np.int32), [len(names) for names, _ in listed]),
    )

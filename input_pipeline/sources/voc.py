"""PASCAL VOC's images and their classes, as its classification task has them.

    VOCdevkit/VOC2007/JPEGImages/000005.jpg
    VOCdevkit/VOC2007/ImageSets/Main/aeroplane_trainval.txt    a line an image: 000005 -1

Or the original tars in a folder, `VOCtrainval_06-Nov-2007.tar` and so on, read in place.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.sources import folders, tars
from input_pipeline.sources.collection import TEST, TRAIN, Collection, Joined
from input_pipeline.sources.source import (
    ImageSet,
    Listing,
    Names,
    Progress,
    Source,
    as_data_errors,
    fingerprint,
)

TARS = {
    "VOC2007": ("VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"),
    "VOC2012": ("VOCtrainval_11-May-2012.tar",),
}
EXPECTED = "{root}/VOCdevkit/VOC2007, or a year's own folder or tars"
_YEARS = range(2007, 2013)  # of this layout
_IMAGES, _LISTS = "JPEGImages", "ImageSets/Main"
_MEMBER = re.compile(rf"(?:.*/)?(?:{_IMAGES}/[^/]+\.jpg|{_LISTS}/[^/]+\.txt)")
_LIST = re.compile(r"([^.].*)_(trainval|train|val|test)\.txt")
_TARGETS = {"1": 1, "-1": 0, "0": -1}  # of the devkit's values


class _Files(NamedTuple):
    """What lies in a year's folder, or in one of its tars."""

    lists: dict[str, tuple[str, str]]  # (where it lies, its text) of each file of ImageSets/Main
    images: Source
    hashes: np.ndarray  # (n, 16) uint8, of the images
    names: list[bytes]  # of the images, with folders


class _Part(NamedTuple):
    """The content of the lists of one part."""

    classes: list[str]
    ids: list[str]  # of images, such as 000005
    targets: np.ndarray  # (n, K) int8, as of a Collection
    where: str  # its first list


def find(root: Path) -> dict[str, list[Path]]:
    """The folder or tars of each year of VOC that lies in `root`."""
    names = [f"{prefix}VOC{year}" for prefix in ("", "VOCdevkit/") for year in _YEARS]
    years = [path for path in (root, *map(root.joinpath, names)) if _is_year(path)]
    if years:
        return {path.absolute().name: [path] for path in years}
    candidates = {year: [root / name for name in files] for year, files in TARS.items()}
    existing = {
        year: [file for file in files if file.is_file()] for year, files in candidates.items()
    }
    return {year: files for year, files in existing.items() if files}


def _is_year(path: Path) -> bool:
    return (path / _IMAGES).is_dir() and (path / _LISTS).is_dir()


def open_voc(root: Path, on_progress: Progress | None = None) -> Collection:
    """The year of VOC in `root`: its trainval images, then its test images. Raises DataError.

    Targets are 1 for a class in the image and 0 (the devkit's -1) for another. They are -1 (the
    devkit's 0) where all objects of the class are difficult. Where the test images have no
    annotations, as from 2008 on, the lists train and val are the two parts.
    """
    years = find(root)
    if len(years) != 1:
        texts = " and ".join(str(path) for paths in years.values() for path in paths)
        raise DataError(
            f"{root} holds {texts}; expected one year of VOC: name its folder, or move its tars "
            "into a folder of their own"
        )
    ((name, paths),) = years.items()
    open_files = _in_folder if paths[0].is_dir() else _in_tar
    files = [open_files(path, on_progress) for path in paths]
    lists = {key: entry for part in files for key, entry in part.lists.items()}
    images = Joined([part.images for part in files])
    parts = [_read_part(root, lists, "trainval"), _read_part(root, lists, "test")]
    if (parts[1].targets == -1).all():
        parts = [_read_part(root, lists, "train"), _read_part(root, lists, "val")]
        note = f"{name}: its test images have no annotations here; val is the test part"
        images.notes = (*images.notes, note)
    names = [os.fsdecode(path).rpartition("/")[2] for part in files for path in part.names]
    places = {name.removesuffix(".jpg"): i for i, name in enumerate(names) if name.endswith(".jpg")}
    index = _image_indices(parts, places)
    if n := len(places) - len(index):
        images.notes = (*images.notes, f"{name}: {n:,} of its images are in no list that is used")
    counts = [len(part.ids) for part in parts]
    hashes = np.split(np.concatenate([part.hashes for part in files])[index], counts[:1])
    digests = [
        Listing(Names.of(map(os.fsencode, part.ids)), np.zeros(len(own), np.int32)).digest(own)
        for part, own in zip(parts, hashes, strict=True)
    ]
    targets = np.concatenate([part.targets for part in parts])
    return Collection(
        name=name,
        images=images.take(index),
        class_names=tuple(parts[0].classes),
        fingerprint=fingerprint(parts[0].classes, *digests, targets.tobytes()),
        parts=np.repeat(np.array([TRAIN, TEST], np.uint8), counts),
        targets=targets,
    )


def open_set(root: Path, on_progress: Progress | None = None) -> ImageSet:
    """The year of VOC in `root` as a set to train and to test on. Raises DataError."""
    if not find(root):
        raise DataError(f"{root} holds no year of VOC; expected {EXPECTED.format(root=root)}")
    c = open_voc(root, on_progress)
    assert c.targets is not None
    train, test = (np.flatnonzero(c.parts == part) for part in (TRAIN, TEST))
    return ImageSet(
        c.name,
        c.images.take(train),
        c.images.take(test),
        c.class_names,
        c.fingerprint,
        targets=(c.targets[train], c.targets[test]),
    )


def _read_part(root: Path, lists: dict[str, tuple[str, str]], part: str) -> _Part:
    """The lists of a part, one for each class, of the same images; empty where there are none."""
    matches = (_LIST.fullmatch(name) for name in sorted(lists))
    classes = [match[1] for match in matches if match and match[2] == part]
    first = f"{root}: {_LISTS}/CLASS_{part}.txt"
    ids: list[str] = []
    columns: list[list[int]] = []
    for name in classes:
        where, text = lists[f"{name}_{part}.txt"]
        rows = [line.split() for line in text.splitlines()]
        for k, row in enumerate(rows, 1):
            if len(row) != 2 or row[1] not in _TARGETS:
                raise DataError(f"{where}, line {k}: {' '.join(row)!r}; expected ID and 1, 0 or -1")
            if columns and k <= len(ids) and row[0] != ids[k - 1]:
                raise DataError(
                    f"{where}, line {k}: {row[0]}; expected {ids[k - 1]}, as in {first}"
                )
        if columns and len(rows) != len(ids):
            raise DataError(f"{where}: {len(rows)} lines; expected {len(ids)}, as in {first}")
        if not columns:
            first, ids = where, [i for i, _ in rows]
        columns.append([_TARGETS[mark] for _, mark in rows])
    return _Part(classes, ids, np.array(columns, np.int8).reshape(len(columns), len(ids)).T, first)


def _image_indices(parts: list[_Part], places: dict[str, int]) -> np.ndarray:
    """(n,) the indices of all listed images. DataError unless each exists and is listed once."""
    where_of: dict[str, str] = {}
    for part in parts:
        if not part.ids:
            raise DataError(f"{part.where}: no such lists, or no images in them")
        if part.classes != parts[0].classes:
            unmatched = min(set(part.classes) ^ set(parts[0].classes))
            raise DataError(
                f"{part.where}: class {unmatched!r} has no list beside it or {parts[0].where}"
            )
        for k, i in enumerate(part.ids, 1):
            where = f"{part.where}, line {k}"
            if i not in places:
                raise DataError(f"{where}: image {i}, of which there is no {_IMAGES}/{i}.jpg")
            if i in where_of:
                raise DataError(f"{where}: image {i} is listed twice, before at {where_of[i]}")
            where_of[i] = where
    return np.array([places[i] for i in where_of])


def _in_folder(root: Path, on_progress: Progress | None) -> _Files:
    images = folders.list_classes(root, [_IMAGES], [0])
    with as_data_errors(root / _LISTS):
        lists = [
            (file.name, (str(file), file.read_text("utf-8", "replace")))
            for file in (root / _LISTS).glob("*_*.txt")
        ]
    return _Files(dict(lists), images.source(root), images.hashes(on_progress), [*images.names])


def _in_tar(file: Path, on_progress: Progress | None) -> _Files:
    arrays = tars.members(file, "VOC", lambda name: bool(_MEMBER.fullmatch(name)), on_progress)
    names = tars.names_of(arrays)
    listing = Listing(names, np.zeros(len(names), np.int32))
    source = tars.TarSource(file, listing, arrays, inner=())
    lists = {
        os.fsdecode(name).rpartition("/")[2]: (
            source.where(i),
            source.read(i)[0].decode("utf-8", "replace"),
        )
        for i, name in enumerate(names)
        if name.endswith(b".txt")
    }
    return _Files(lists, source, arrays["hashes"], [*names])

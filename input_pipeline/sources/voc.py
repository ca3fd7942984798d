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
    fingerprint,
    reading,
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

    lists: dict[str, tuple[str, str]]  # of ImageSets/Main, by name: where each is, and its text
    images: Source
    hashes: np.ndarray  # (n, 16) uint8, of the images
    names: list[bytes]  # theirs, with folders


class _Part(NamedTuple):
    """What the lists of one part say."""

    classes: list[str]
    ids: list[str]  # of images, such as 000005
    targets: np.ndarray  # (n, K) int8, as of a Collection
    where: str  # its first list


def find(root: Path) -> dict[str, list[Path]]:
    """Where the years of VOC lie in a folder: each in a folder, or in tars."""
    names = [f"{above}VOC{year}" for above in ("", "VOCdevkit/") for year in _YEARS]
    years = [path for path in (root, *map(root.joinpath, names)) if _is_year(path)]
    if years:
        return {path.absolute().name: [path] for path in years}
    there = {year: [root / name for name in files] for year, files in TARS.items()}
    found = {year: [file for file in files if file.is_file()] for year, files in there.items()}
    return {year: files for year, files in found.items() if files}


def _is_year(path: Path) -> bool:
    return (path / _IMAGES).is_dir() and (path / _LISTS).is_dir()


def open_voc(root: Path, on_progress: Progress | None = None) -> Collection:
    """The year of VOC in `root`: its trainval images, then its test images. Raises DataError.

    Targets are 1 for a class that is there and 0 (the devkit's -1) for one that is not. They are
    -1 (the devkit's 0) where all objects of the class are difficult. Where the test images have no
    annotations, as from 2008 on, the lists train and val are the two parts.
    """
    found = find(root)
    if len(found) != 1:
        there = " and ".join(str(path) for paths in found.values() for path in paths)
        raise DataError(
            f"{root} holds {there}; expected one year of VOC: name its folder, or move its tars "
            "into a folder of their own"
        )
    ((name, paths),) = found.items()
    opens = _in_folder if paths[0].is_dir() else _in_tar
    files = [opens(path, on_progress) for path in paths]
    lists = {key: one for part in files for key, one in part.lists.items()}
    whole = Joined([part.images for part in files])
    parts = [_read(root, lists, "trainval"), _read(root, lists, "test")]
    if (parts[1].targets == -1).all():
        parts = [_read(root, lists, "train"), _read(root, lists, "val")]
        note = f"{name}: its test images have no annotations here; val is the test part"
        whole.notes = (*whole.notes, note)
    names = [os.fsdecode(path).rpartition("/")[2] for part in files for path in part.names]
    places = {name.removesuffix(".jpg"): i for i, name in enumerate(names) if name.endswith(".jpg")}
    index = _checked(parts, places)
    if left := len(places) - len(index):
        whole.notes = (*whole.notes, f"{name}: {left:,} of its images are in no list that is used")
    counts = [len(part.ids) for part in parts]
    hashes = np.split(np.concatenate([part.hashes for part in files])[index], counts[:1])
    digests = [
        Listing(Names.of(map(os.fsencode, part.ids)), np.zeros(len(own), np.int32)).digest(own)
        for part, own in zip(parts, hashes, strict=True)
    ]
    targets = np.concatenate([part.targets for part in parts])
    return Collection(
        name=name,
        images=whole.take(index),
        class_names=tuple(parts[0].classes),
        fingerprint=fingerprint(parts[0].classes, *digests, targets.tobytes()),
        parts=np.repeat(np.array([TRAIN, TEST], np.uint8), counts),
        targets=targets,
    )


def open_set(root: Path, on_progress: Progress | None = None) -> ImageSet:
    """The same with its two parts apart, to train and to test on. Raises DataError."""
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


def _read(root: Path, lists: dict[str, tuple[str, str]], part: str) -> _Part:
    """The lists of a part, a class each, all of the same images; empty where there are none."""
    found = (_LIST.fullmatch(name) for name in sorted(lists))
    classes = [match[1] for match in found if match and match[2] == part]
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
        columns.append([_TARGETS[value] for _, value in rows])
    return _Part(classes, ids, np.array(columns, np.int8).reshape(len(columns), len(ids)).T, first)


def _checked(parts: list[_Part], places: dict[str, int]) -> np.ndarray:
    """(n,) the places of all listed images. DataError unless each is there, and listed once."""
    seen: dict[str, str] = {}
    for part in parts:
        if not part.ids:
            raise DataError(f"{part.where}: no such lists, or no images in them")
        if part.classes != parts[0].classes:
            odd = min(set(part.classes) ^ set(parts[0].classes))
            raise DataError(
                f"{part.where}: class {odd!r} has no list beside it or {parts[0].where}"
            )
        for k, i in enumerate(part.ids, 1):
            where = f"{part.where}, line {k}"
            if i not in places:
                raise DataError(f"{where}: image {i}, of which there is no {_IMAGES}/{i}.jpg")
            if i in seen:
                raise DataError(f"{where}: image {i} is listed twice, before at {seen[i]}")
            seen[i] = where
    return np.array([places[i] for i in seen])


def _in_folder(root: Path, on_progress: Progress | None) -> _Files:
    images = folders.list_classes(root, [_IMAGES], [0])
    with reading(root / _LISTS):
        found = [
            (p.name, (str(p), p.read_text("utf-8", "replace")))
            for p in (root / _LISTS).glob("*_*.txt")
        ]
    return _Files(dict(found), images.source(root), images.hashes(on_progress), [*images.names])


def _in_tar(file: Path, on_progress: Progress | None) -> _Files:
    found = tars.members(file, "VOC", lambda name: bool(_MEMBER.fullmatch(name)), on_progress)
    names = tars.names_of(found)
    listing = Listing(names, np.zeros(len(names), np.int32))
    source = tars.TarSource(file, listing, found, inner=())
    lists = {
        os.fsdecode(name).rpartition("/")[2]: (
            source.where(i),
            source.read(i)[0].decode("utf-8", "replace"),
        )
        for i, name in enumerate(names)
        if name.endswith(b".txt")
    }
    return _Files(lists, source, found["hashes"], [*names])

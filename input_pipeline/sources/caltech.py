"""Caltech-101 and Caltech-256, from their folders, or Caltech-256 from its original tar.

    101_ObjectCategories/accordion/image_0001.jpg    and BACKGROUND_Google
    256_ObjectCategories/001.ak47/001_0001.jpg       and 257.clutter

Their images belong to no parts: experiments draw some of each class. A class of images of nothing
in particular comes with each, and is a class of the set. `Faces` and `Faces_easy` are two classes,
and some images are grey. An empty folder in `056.dog` and the file `198.spider/RENAME2` are of no
use, and no image.
"""

import os
import re
import shlex
from pathlib import Path

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.image_files import TEST_PARTS
from input_pipeline.sources import folders, relabelled, tars
from input_pipeline.sources.collection import ANY, Collection
from input_pipeline.sources.source import (
    ImageSet,
    Listing,
    Names,
    Progress,
    check_classes,
    fingerprint,
)

# Folder -> the set's name, and its class of images of nothing in particular.
SETS = {
    "101_ObjectCategories": ("Caltech-101", "BACKGROUND_Google"),
    "256_ObjectCategories": ("Caltech-256", "257.clutter"),
}
_ARCHIVES = {
    "101_ObjectCategories.tar.gz": "tar -xzf {file} -C {folder}",
    "caltech-101.zip": "unzip {file} -d {folder} && tar -xzf "
    "{folder}/caltech-101/101_ObjectCategories.tar.gz -C {folder}/caltech-101",
}


def find(root: Path) -> dict[str, Path]:
    """Where Caltech's sets lie in a folder, by the keys of `SETS`: each a folder or an archive."""
    for name, (_, background) in SETS.items():
        if root.absolute().name == name or (root / background).is_dir():
            return {} if _has_parts(root) else {name: root}
    found = {}
    above = (root, root / "caltech-101")  # as the archive of Caltech's page unpacks
    for name in SETS:
        archives = _ARCHIVES if name.startswith("101") else ()
        places = [path / inner for inner in (name, f"{name}.tar", *archives) for path in above]
        there = next((path for path in places if path.exists() and not _has_parts(path)), None)
        if there is not None:
            found[name] = there
    return found


def _has_parts(folder: Path) -> bool:
    """Whether someone has made parts of a set, which is then a folder of images as others are."""
    return any((folder / part).is_dir() for part in ("train", *TEST_PARTS))


def open_caltech(root: Path, on_progress: Progress | None = None) -> Collection:
    """The set in `root`; on_progress: of images that are read for their hashes. Raises DataError.

    Class names are those of the folders, Caltech-256's without the numbers before them.
    """
    found = find(root)
    if len(found) != 1:
        there = " and ".join(map(str, found.values()))
        raise DataError(f"{root} holds {there}; expected one of Caltech's sets: name its folder")
    ((inside, path),) = found.items()
    if path.name in _ARCHIVES:
        file, folder = shlex.quote(str(path)), shlex.quote(str(path.parent))
        command = _ARCHIVES[path.name].format(file=file, folder=folder)
        raise DataError(f"{path} is compressed and can't be read in place; unpack it: {command}")
    if path.is_dir():
        images = relabelled.folder_set(path, on_progress)
    else:
        images = _in_tar(path, inside, on_progress)
    name, background = SETS[inside]
    return Collection(
        name=name,
        images=images.test,
        class_names=tuple(re.sub(r"^\d{3}\.", "", folder) for folder in images.folders),
        fingerprint=images.fingerprint,
        parts=np.full(len(images.test), ANY, np.uint8),
        background=images.folders.index(background) if background in images.folders else None,
    )


def _in_tar(file: Path, top: str, on_progress: Progress | None) -> ImageSet:
    """The set in a tar, as `relabelled.folder_set` has the same files unpacked."""
    found = tars.members(file, "Caltech", lambda name: f"{top}/" in name, on_progress)
    images, unread = [], folders.Unread()
    for i, name in enumerate(tars.names_of(found)):
        inner = name.rpartition(os.fsencode(top) + b"/")[2]
        folder, _, rest = inner.partition(b"/")
        last = inner.rpartition(b"/")[2]
        if folders.is_image(last) and rest:
            images.append((folder, rest, i))
        elif not last.startswith(b"."):
            unread.add(os.path.splitext(os.fsdecode(last))[1].lower(), inner)
    images.sort()
    classes = sorted({os.fsdecode(folder) for folder, _, _ in images})
    numbers = {os.fsencode(name): k for k, name in enumerate(classes)}
    labels = np.array([numbers[folder] for folder, _, _ in images], np.int32)
    check_classes(file, classes, np.bincount(labels, minlength=len(classes)))
    listing = Listing(Names.of(rest for _, rest, _ in images), labels)
    at = np.array([i for _, _, i in images], np.int64)
    places = {key: found[key][at] for key in ("offsets", "sizes", "hashes")}
    source = tars.TarSource(file, listing, places, inner=())
    source.notes = tuple(unread.notes(Path()))
    digest = fingerprint(classes, listing.digest(places["hashes"]))
    nothing = source.take(np.arange(0))
    return ImageSet(file.name, nothing, source, tuple(classes), digest, folders=tuple(classes))

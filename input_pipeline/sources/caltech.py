"""Caltech-101 and Caltech-256, from their folders, or Caltech-256 from its original tar.

    101_ObjectCategories/accordion/image_0001.jpg    and BACKGROUND_Google
    256_ObjectCategories/001.ak47/001_0001.jpg       and 257.clutter

The sets have no parts: experiments draw some images of each class. Each has a class of images of
nothing in particular, which counts as a class. `Faces` and `Faces_easy` are two classes, and some
images are grey. An empty folder in `056.dog` and the file `198.spider/RENAME2` are not read.
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
    """The folders or archives of Caltech's sets in a folder, by the keys of `SETS`."""
    for name, (_, background) in SETS.items():
        if root.absolute().name == name or (root / background).is_dir():
            return {} if _has_parts(root) else {name: root}
    place_of = {}
    roots = (root, root / "caltech-101")  # as Caltech's own archive unpacks
    for name in SETS:
        archives = _ARCHIVES if name.startswith("101") else ()
        places = [path / inner for inner in (name, f"{name}.tar", *archives) for path in roots]
        place = next((path for path in places if path.exists() and not _has_parts(path)), None)
        if place is not None:
            place_of[name] = place
    return place_of


def _has_parts(folder: Path) -> bool:
    """Whether a set was divided into parts, which makes it an ordinary folder of images."""
    return any((folder / part).is_dir() for part in ("train", *TEST_PARTS))


def open_caltech(root: Path, on_progress: Progress | None = None) -> Collection:
    """The set in `root`. on_progress: of images that are read for their hashes. Raises DataError.

    Class names are those of the folders, Caltech-256's without the numbers before them.
    """
    place_of = find(root)
    if len(place_of) != 1:
        places = " and ".join(map(str, place_of.values()))
        raise DataError(f"{root} holds {places}; expected one of Caltech's sets: name its folder")
    ((folder_name, path),) = place_of.items()
    if path.name in _ARCHIVES:
        file, folder = shlex.quote(str(path)), shlex.quote(str(path.parent))
        command = _ARCHIVES[path.name].format(file=file, folder=folder)
        raise DataError(f"{path} is compressed and can't be read in place; unpack it: {command}")
    if path.is_dir():
        image_set = relabelled.folder_set(path, on_progress)
    else:
        image_set = _in_tar(path, folder_name, on_progress)
    name, background = SETS[folder_name]
    return Collection(
        name=name,
        images=image_set.test,
        class_names=tuple(re.sub(r"^\d{3}\.", "", folder) for folder in image_set.folders),
        fingerprint=image_set.fingerprint,
        parts=np.full(len(image_set.test), ANY, np.uint8),
        background=image_set.folders.index(background) if background in image_set.folders else None,
    )


def _in_tar(file: Path, top: str, on_progress: Progress | None) -> ImageSet:
    """The set in a tar, as `relabelled.folder_set` has the same files unpacked."""
    arrays = tars.members(file, "Caltech", lambda name: f"{top}/" in name, on_progress)
    images, unread = [], folders.Unread()
    for i, name in enumerate(tars.names_of(arrays)):
        inner = name.rpartition(os.fsencode(top) + b"/")[2]
        folder, _, image = inner.partition(b"/")
        base = inner.rpartition(b"/")[2]
        if folders.is_image(base) and image:
            images.append((folder, image, i))
        elif not base.startswith(b"."):
            unread.add(os.path.splitext(os.fsdecode(base))[1].lower(), inner)
    images.sort()
    classes = sorted({os.fsdecode(folder) for folder, _, _ in images})
    label_of = {os.fsencode(name): k for k, name in enumerate(classes)}
    labels = np.array([label_of[folder] for folder, _, _ in images], np.int32)
    check_classes(file, classes, np.bincount(labels, minlength=len(classes)))
    listing = Listing(Names.of(image for _, image, _ in images), labels)
    indices = np.array([i for _, _, i in images], np.int64)
    places = {key: arrays[key][indices] for key in ("offsets", "sizes", "hashes")}
    source = tars.TarSource(file, listing, places, inner=())
    source.notes = tuple(unread.notes(Path()))
    digest = fingerprint(classes, listing.digest(places["hashes"]))
    no_images = source.take(np.arange(0))
    return ImageSet(file.name, no_images, source, tuple(classes), digest, folders=tuple(classes))

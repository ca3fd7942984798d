"""The test images of any set, labelled as a network numbers its classes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from input_pipeline.classes import Matched, match
from input_pipeline.errors import DataError
from input_pipeline.image_files import SUFFIXES, TEST_PARTS, imagenet_classes, imagenet_names
from input_pipeline.sources import folders, shards, tars, tfds_sets
from input_pipeline.sources.source import (
    ImageSet,
    Progress,
    Source,
    Wrapped,
    fingerprint,
    first_names,
)


class Relabelled(Wrapped):
    """The same images; label k becomes index[k]."""

    def __init__(self, source: Source, index: Sequence[int]):
        super().__init__(source)
        self._index = index
        if source.labels is not None:
            self.labels = np.array(index, np.int32)[source.labels]

    def read(self, i: int) -> tuple[bytes, int]:
        content, label = self.source.read(i)
        return content, self._index[label]


@dataclasses.dataclass(frozen=True, eq=False)
class TestImages:
    """Test images labelled as a network numbers its classes."""

    __test__ = False  # not a pytest class

    source: Source
    fingerprint: str
    mirror_ok: bool  # False where a mirrored image is not an image of its class
    matched: Matched  # the set's classes as the network's


def of_set(
    where: str,
    image_set: ImageSet,
    class_names: Sequence[str],
    *,
    part: bool = False,
    in_order: bool = False,
) -> TestImages:
    """The test part of a set. where: the set's name, for messages; part, in_order: as in `match`.

    Raises DataError where its classes are not the network's.
    """
    matched = match(
        where,
        image_set.class_names,
        class_names,
        on_disk=image_set.folders,
        part=part,
        in_order=in_order,
    )
    source = Relabelled(image_set.test, matched.labels)
    return TestImages(source, image_set.fingerprint, image_set.mirror_ok, matched)


def is_set(root: Path) -> bool:
    """Whether a folder holds tars, shards or one TFDS set, rather than folders of images."""
    markers = (shards.SHARDS_FILE, tars.TRAIN_TAR, tars.VAL_TAR, "dataset_info.json")
    if any((root / name).is_file() for name in markers):
        return True
    part, _ = _image_part(root)
    return not _has_classes(part) and bool(tfds_sets.tfds_names(root))


def has_images(root: Path, deep: bool = False) -> bool:
    """Whether a folder or its test part holds images, or folders of classes with images.

    deep: also where all images of the classes lie in deeper folders.
    """
    part, _ = _image_part(root)
    return _has_classes(part, deep) or folders.has_images(part)


def _has_classes(part: Path, deep: bool = False) -> bool:
    return any(folders.has_images(part / name, deep) for name in folders.subfolders(part))


def _image_part(root: Path) -> tuple[Path, list[str]]:
    """The folder of test images, which may be `root` itself, and the test parts that exist."""
    data = folders.data_folder(root)
    parts = [part for part in TEST_PARTS if (data / part).is_dir()]
    return (data / parts[0] if parts else root), parts


def image_folder(
    root: Path,
    class_names: Sequence[str],
    on_progress: Progress | None = None,
    *,
    in_order: bool = False,
) -> TestImages:
    """The images of `folder_set` as a network's, in the order of its labels. Raises DataError."""
    image_set = folder_set(root, on_progress)
    test_images = of_set(str(root), image_set, class_names, part=True, in_order=in_order)
    labels = test_images.source.labels
    assert labels is not None  # as folders have them
    return dataclasses.replace(
        test_images, source=test_images.source.take(np.argsort(labels, kind="stable"))
    )


def folder_set(root: Path, on_progress: Progress | None = None) -> ImageSet:
    """The images of `ROOT/CLASS/*`, or of its `val` or `test` part, as a set with a test part only.

    ImageNet's flat validation folder with a file of its labels is read too. on_progress: of images
    whose contents are read. Raises DataError.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder of images")
    part, parts = _image_part(root)
    subfolders = folders.subfolders(part)
    classes = [name for name in subfolders if folders.has_images(part / name, deep=True)]
    notes = folders.tested_part(root, parts)
    if classes:
        folders.check_no_images_beside(part)
        if len(classes) < len(subfolders):
            notes.append(
                f"{part}: no images in the folders {first_names(set(subfolders) - set(classes))}"
            )
        listing = folders.list_classes(part, classes, range(len(classes)))
    elif folders.has_images(part):
        listing, classes = _list_flat(part, root)
    else:
        raise DataError(
            f"{part} holds no folders of classes with image files (of type {', '.join(SUFFIXES)}); "
            f"expected {part}/CLASS/image files"
        )
    digest = fingerprint(classes, listing.digest(listing.hashes(on_progress)))
    test = listing.source(part, notes)
    no_images = test.take(np.arange(0))
    names = imagenet_names(classes)
    return ImageSet("folder", no_images, test, names, digest, folders=tuple(classes))


def _list_flat(part: Path, root: Path) -> tuple[folders.Files, list[str]]:
    """The images of ImageNet's flat folder, and the wnids of their classes."""
    wnids, _ = imagenet_classes()
    listing = folders.list_flat(part, root, wnids)
    present, labels = np.unique(listing.labels, return_inverse=True)
    places = (".",) * len(present)
    listing = dataclasses.replace(listing, labels=labels.astype(np.int32), places=places)
    return listing, [wnids[k] for k in present]

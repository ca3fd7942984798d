"""A folder of classes without parts, of which a share of each class is the test.

    PATH/CLASS/image files

The test images depend only on the share and the names of classes and files, not on a seed or a file
system's order. All seeds of a sweep are tested on the same images.
"""

import hashlib
import os
from pathlib import Path

import numpy as np

from input_pipeline.datasets import stratified
from input_pipeline.errors import DataError
from input_pipeline.image_files import TEST_PARTS, imagenet_names
from input_pipeline.sources import folders
from input_pipeline.sources.source import (
    ImageSet,
    Progress,
    check_classes,
    fingerprint,
    first_names,
)


def open_split(root: Path, share: float, on_progress: Progress | None = None) -> ImageSet:
    """The set in the folder `root`, whose test part is `share` of each class, at least one image.

    on_progress: of images whose contents are read. Raises DataError.
    """
    if not 0.0 < share < 1.0:
        raise DataError(f"split {share} of {root}; expected more than 0 and less than 1")
    data = folders.data_folder(root)
    parts = [part for part in ("train", *TEST_PARTS) if (data / part).is_dir()]
    if parts:
        raise DataError(
            f"{data} has a part {parts[0]!r} already, and split={share} is for a folder of classes "
            f"without parts; leave the split out, or take {data / parts[0]} as the folder"
        )
    classes = folders.subfolders(root)
    if classes:
        folders.check_no_images_beside(root)
    listing = folders.list_classes(root, classes, range(len(classes)))
    counts = np.bincount(listing.labels, minlength=len(classes))
    check_classes(root, classes, counts)
    few = [f"{name} ({n})" for name, n in zip(classes, counts.tolist(), strict=True) if n < 2]
    if few:
        raise DataError(
            f"{root}: too few images of {len(few)} of {len(classes)} classes for split={share}: "
            f"{first_names(few)}; expected two at least, one to train on and one to test on"
        )
    in_test = stratified(
        listing.labels, round(share * len(listing.labels)), _ranks(listing, classes), 1
    )
    train, test = (listing.take(np.flatnonzero(part)) for part in (~in_test, in_test))
    emptied = np.setdiff1d(listing.labels, train.labels)
    if len(emptied):
        raise DataError(
            f"{root}: split={share} leaves no image of {classes[emptied[0]]!r} to train on; "
            "expected a smaller share"
        )
    hashes = listing.hashes(on_progress)
    digests = (train.digest(hashes[~in_test]), test.digest(hashes[in_test]))
    return ImageSet(
        "folder",
        train.source(root),
        test.source(root),
        imagenet_names(classes),
        fingerprint(classes, *digests, f"split {share}".encode()),
        folders=tuple(classes),
    )


def _ranks(listing: folders.Files, classes: list[str]) -> np.ndarray:
    """(N,) uint64 from the hash of CLASS/FILE, which no version of a random generator changes."""
    prefixes = [os.fsencode(name) + b"/" for name in classes]
    ranks = [
        int.from_bytes(hashlib.sha256(prefixes[label] + listing.names[i]).digest()[:8])
        for i, label in enumerate(listing.labels.tolist())
    ]
    return np.array(ranks, np.uint64)

"""The boxes of the images of a config: where they are read, and the images that have none."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

import ml_collections
import numpy as np

import input_pipeline
from experiments.config import ConfigError
from experiments.data.base import Progress
from experiments.text import numbered
from input_pipeline import annotations, sources
from input_pipeline.boxes import Boxes

Found = TypeVar("Found", bound=input_pipeline.Dataset | sources.ImageSet)
Parts = tuple[Boxes, Boxes]  # of the training and the test images


def read(
    d: ml_collections.ConfigDict,
    found: input_pipeline.Dataset | sources.ImageSet,
    on_read: Progress | None,
) -> tuple[Parts | None, tuple[str, ...]]:
    """The boxes that `data.boxes` asks for, and sentences for people about them.

    on_read: of what has to be read. Raises DataError where the set has none, or they can't be read,
    and ConfigError where they can't be meant.
    """
    if not d.boxes:
        return None, ()
    if isinstance(found, sources.ImageSet):
        told = annotations.read_boxes("records" if d.boxes == "own" else d.boxes, found, on_read)
        return (told.train, told.test), told.notes
    if d.boxes != "own":
        raise ConfigError(
            f"data.boxes={d.boxes!r} is for encoded images, such as data.name=folder; of "
            f"{d.name!r} it is 'own'"
        )
    if found.train.boxes is None or found.test.boxes is None:
        raise input_pipeline.DataError(
            f"data.boxes='own', and {d.name!r} has no boxes; data.name=placed_digits has, and an "
            ".npz with train_boxes and test_boxes"
        )
    return (found.train.boxes, found.test.boxes), ()


def with_boxes(found: Found, boxes: Parts) -> tuple[Found, Parts, tuple[str, ...]]:
    """The images that have a box, their boxes, and how many are left out.

    The boxes become part of the set's fingerprint. Raises DataError where a part is left empty.
    """
    rows, notes = [np.flatnonzero(of.counts) for of in boxes], []
    for name, some, of in zip(("training", "test"), rows, boxes, strict=True):
        if not len(some):
            raise input_pipeline.DataError(f"data.boxes: no {name} image of {found.name} has a box")
        if len(some) < len(of):
            left = numbered(len(of) - len(some), f"{name} image")
            notes.append(f"data.boxes: {left} of {len(of)} without a box, left out")
    train, test = (of.take(some) for of, some in zip(boxes, rows, strict=True))
    digest = hashlib.sha256(train.digest() + test.digest()).hexdigest()[:16]
    marked = f"{found.fingerprint}-boxes-{digest}"
    return replaced(found, rows, fingerprint=marked), (train, test), tuple(notes)


def replaced(found: Found, rows: Sequence[np.ndarray], **more: Any) -> Found:
    """The set with these images of its training and its test part."""
    more |= {"train": found.train.take(rows[0]), "test": found.test.take(rows[1])}
    return dataclasses.replace(found, **more)

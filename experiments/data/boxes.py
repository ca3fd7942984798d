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

DatasetT = TypeVar("DatasetT", bound=input_pipeline.Dataset | sources.ImageSet)
Parts = tuple[Boxes, Boxes]  # of the training and the test images


def read(
    d: ml_collections.ConfigDict,
    dataset: input_pipeline.Dataset | sources.ImageSet,
    on_read: Progress | None,
) -> tuple[Parts | None, tuple[str, ...]]:
    """The boxes that `data.boxes` asks for, and sentences for people about them.

    on_read: progress of reading. Raises DataError where the set has none, or they can't be read,
    and ConfigError where `data.boxes` does not suit the set.
    """
    if not d.boxes:
        return None, ()
    if isinstance(dataset, sources.ImageSet):
        boxes = annotations.read_boxes("records" if d.boxes == "own" else d.boxes, dataset, on_read)
        return (boxes.train, boxes.test), boxes.notes
    if d.boxes != "own":
        raise ConfigError(
            f"data.boxes={d.boxes!r} is for encoded images, such as data.name=folder; of "
            f"{d.name!r} it is 'own'"
        )
    if dataset.train.boxes is None or dataset.test.boxes is None:
        raise input_pipeline.DataError(
            f"data.boxes='own', and {d.name!r} has no boxes; data.name=placed_digits has, and an "
            ".npz with train_boxes and test_boxes"
        )
    return (dataset.train.boxes, dataset.test.boxes), ()


def with_boxes(dataset: DatasetT, boxes: Parts) -> tuple[DatasetT, Parts, tuple[str, ...]]:
    """The images that have a box, their boxes, and how many are left out.

    The boxes become part of the set's fingerprint. Raises DataError where a part is left empty.
    """
    rows, notes = [np.flatnonzero(part.counts) for part in boxes], []
    for name, indices, part in zip(("training", "test"), rows, boxes, strict=True):
        if not len(indices):
            raise input_pipeline.DataError(
                f"data.boxes: no {name} image of {dataset.name} has a box"
            )
        if len(indices) < len(part):
            count = numbered(len(part) - len(indices), f"{name} image")
            notes.append(f"data.boxes: {count} of {len(part)} without a box, left out")
    train, test = (part.take(indices) for part, indices in zip(boxes, rows, strict=True))
    digest = hashlib.sha256(train.digest() + test.digest()).hexdigest()[:16]
    fingerprint = f"{dataset.fingerprint}-boxes-{digest}"
    return replaced(dataset, rows, fingerprint=fingerprint), (train, test), tuple(notes)


def replaced(dataset: DatasetT, rows: Sequence[np.ndarray], **changes: Any) -> DatasetT:
    """The set with these images of its training and its test part."""
    changes |= {"train": dataset.train.take(rows[0]), "test": dataset.test.take(rows[1])}
    return dataclasses.replace(dataset, **changes)

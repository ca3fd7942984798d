"""The images of a config, opened, checked and split."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

import input_pipeline
from experiments.config import ConfigError, inherits, one_of
from experiments.data import boxes as box_reading
from experiments.data.base import Data, Opened, Progress, check_batch
from experiments.data.preprocessing import Preprocessing
from experiments.data.resident import prepare_resident
from experiments.data.streamed import prepare_streamed
from experiments.data.views import resident_view, stream_view
from experiments.text import nearest
from input_pipeline import crops, resident, sources, stream


def open_data(d: ml_collections.ConfigDict, on_read: Progress | None = None) -> Opened:
    """Finds the data that `config.data` names and holds out a part of the training images.

    The held-out part is the same for every run on this data. on_read: progress, in any unit, of
    reading what identifies the data. Raises DataError and ConfigError.
    """
    names = (*input_pipeline.names(), *sources.STREAMED, "tfds:NAME")
    dataset: input_pipeline.Dataset | sources.ImageSet
    if d.name not in names and not sources.is_streamed(d.name):
        hint = nearest("did you mean {!r}? ", d.name, names)
        raise ConfigError(f"unknown data.name={d.name!r}; {hint}known: {', '.join(names)}")
    if not d.path and d.name in (*sources.STREAMED, "npz"):
        placeholder = "FILE.npz" if d.name == "npz" else "FOLDER"
        raise input_pipeline.DataError(
            f"data.path is empty, and data.name={d.name!r} needs it: --set data.path={placeholder}"
        )
    if d.split and d.name != "folder":
        raise ConfigError(
            f"data.split={d.split} is for a folder of classes, data.name=folder, and data.name is "
            f"{d.name!r}; set data.split=0"
        )
    channels, path = 3, d.path or None
    if sources.is_streamed(d.name):
        dataset = sources.open_set(d.name, path, on_read, split=d.split)
    else:
        dataset = input_pipeline.load(d.name, path=path)
        channels = dataset.channels
    targets = dataset.targets if isinstance(dataset, sources.ImageSet) else None
    if targets is not None:
        for key, usual in (("classes", ()), ("balanced", False), ("boxes", "")):
            _suits(d, key, usual, "images of one class each")
    boxes, notes = box_reading.read(d, dataset, on_read)
    if d.classes:
        dataset, rows = only(dataset, d.classes)
        boxes = boxes and (boxes[0].take(rows[0]), boxes[1].take(rows[1]))
    if boxes is not None:
        dataset, boxes, left_out = box_reading.with_boxes(dataset, boxes)
        notes += left_out
    labels = dataset.train.labels
    train, holdout = np.arange(len(dataset.train)), np.arange(0)
    if d.holdout:
        strata: np.ndarray = np.zeros(len(train), np.int32) if labels is None else labels
        train, holdout = input_pipeline.split_holdout(strata, d.holdout, seed=0)
    if d.balanced:
        if labels is None:
            raise ConfigError(
                f"data.balanced=True needs labels that are known beforehand, and those of "
                f"{d.name!r} are in its records; set it to False"
            )
        train = train[input_pipeline.balanced(labels[train], seed=0)]
    return Opened(
        name=dataset.name,
        class_names=dataset.class_names,
        channels=channels,
        fingerprint=dataset.fingerprint,
        train=len(train),
        dataset=dataset,
        parts={
            "train": dataset.train.take(train),
            "holdout": dataset.train.take(holdout),
            "test": dataset.test,
        },
        boxes=boxes
        and {"train": boxes[0].take(train), "holdout": boxes[0].take(holdout), "test": boxes[1]},
        box_notes=notes,
        targets=targets
        and {"train": targets[0][train], "holdout": targets[0][holdout], "test": targets[1]},
    )


def only(
    dataset: input_pipeline.Dataset | sources.ImageSet, classes: Sequence[str]
) -> tuple[input_pipeline.Dataset | sources.ImageSet, list[np.ndarray]]:
    """(the images of these classes of a set, numbered in the set's order; their indices in its
    training and its test part).

    Raises ConfigError for an unknown class, for one class only, and where labels are in records.
    """
    for name in classes:
        one_of(name, dataset.class_names, f"data.classes: class of {dataset.name}")
    numbers = [k for k, name in enumerate(dataset.class_names) if name in classes]
    if len(numbers) < 2:
        raise ConfigError(f"data.classes={tuple(classes)!r}; expected two classes at least")
    index: np.ndarray = np.full(dataset.classes, -1, np.int32)
    index[numbers] = np.arange(len(numbers))
    rows = [_rows(part.labels, index, dataset.name) for part in (dataset.train, dataset.test)]
    names = tuple(dataset.class_names[k] for k in numbers)
    subset = box_reading.replaced(dataset, rows, class_names=names)
    if isinstance(subset, input_pipeline.Dataset):
        parts = (subset.train, subset.test)
        relabelled = [dataclasses.replace(part, labels=index[part.labels]) for part in parts]
        return dataclasses.replace(subset, train=relabelled[0], test=relabelled[1]), rows
    train, test = (sources.Relabelled(part, index.tolist()) for part in (subset.train, subset.test))
    folders = tuple(subset.folders[k] for k in numbers) if subset.folders else ()
    return dataclasses.replace(subset, train=train, test=test, folders=folders), rows


def _rows(labels: np.ndarray | None, index: np.ndarray, name: str) -> np.ndarray:
    """The images whose class has a number in `index`."""
    if labels is None:
        raise ConfigError(
            f"data.classes needs labels that are known beforehand, and those of {name!r} are in "
            "its records"
        )
    return np.flatnonzero(index[labels] >= 0)


def check(config: ml_collections.ConfigDict, opened: Opened) -> None:
    """Raises ConfigError or DataError where the views or batches do not suit the data."""
    d = config.data
    if config.train.boxes != "none" and opened.boxes is None:
        raise ConfigError(
            f"train.boxes={config.train.boxes!r} needs boxes, and data.boxes is empty; set it to a "
            "file or folder of annotations, or to 'own' for a set that has boxes"
        )
    if isinstance(opened.dataset, sources.ImageSet):
        stream.check_installed()
        stream_view(config)
        for key in ("pad", "frame", "distort"):
            _suits(d, key, 0, "small data sets that are kept on the device")
        if config.train.steps_per_dispatch > 1:
            raise ConfigError(
                f"train.steps_per_dispatch={config.train.steps_per_dispatch} is for small data "
                "sets that are kept on the device: encoded images come batch by batch"
            )
        if d.normalise in ("gcn_zca", "lenet"):
            raise ConfigError(
                f"data.normalise={d.normalise!r} is for small images kept on the device"
            )
        if d.mirror and not opened.dataset.mirror_ok:
            raise ConfigError(f"data.mirror=True does not suit {opened.name!r}")
    else:
        resident_view(config).check(opened.dataset)
        for key, usual in (("view", "scale"), ("colour", "none"), ("exif", False)):
            _suits(d, key, usual, "encoded images, such as data.name=folder")
        if d.normalise == "fixed":
            raise ConfigError("data.normalise='fixed' is for encoded images; use per_channel")
        if d.normalise == "lenet" and d.divide_by_std and not inherits(config):
            raise ConfigError(
                "data.divide_by_std=True does nothing with data.normalise='lenet', which has a "
                "divisor of its own; set it to False"
            )
        height, width = opened.dataset.train.images.shape[1:3]
        framed = width + 2 * d.frame, height + 2 * d.frame
        if d.frame and framed != (d.image_size, d.image_size):
            raise ConfigError(
                f"data.frame={d.frame} makes images of {width}x{height} pixels "
                f"{framed[0]}x{framed[1]}, and data.image_size is {d.image_size}; a frame is for "
                "images that are not scaled"
            )
    if opened.targets is not None:
        _suits_several(config, opened)
    check_batch(config, opened.train, opened.name)


def _suits_several(config: ml_collections.ConfigDict, opened: Opened) -> None:
    """Raises ConfigError or DataError where images of several classes can't be trained on so."""
    assert opened.targets is not None
    t, reason = config.train, f"and images of {opened.name} are of several"
    if t.loss != "binary":
        raise ConfigError(
            f"train.loss={t.loss!r} gives each image one class, {reason}; set train.loss=binary"
        )
    needs = "needs the training error of one class an image"
    if t.until_error:
        raise ConfigError(
            f"train.until_error={t.until_error!r} {needs}, {reason}; set train.until_error=0"
        )
    if config.schedule.warmup == "until_error":
        raise ConfigError(
            f"schedule.warmup='until_error' {needs}, {reason}; set schedule.warmup=none"
        )
    for part, targets in opened.targets.items():
        if len(targets) and not (targets == 1).any():
            reason = f"{opened.name}: no image of its part {part!r} shows a class"
            raise input_pipeline.DataError(reason)


def _suits(d: ml_collections.ConfigDict, key: str, usual: Any, kind: str) -> None:
    if d[key] != usual:
        raise ConfigError(
            f"data.{key}={d[key]!r} is for {kind}, and data.name is {d.name!r}; "
            f"set data.{key}={usual!r}"
        )


def prepare(
    config: ml_collections.ConfigDict,
    *,
    opened: Opened | None = None,
    statistics_file: Path | None = None,
    prep: Preprocessing | None = None,
    on_progress: Progress = lambda n, total: None,
    on_bad: Callable[[str], None] = lambda reason: None,
) -> Data:
    """Finds the data, holds a part out, and takes its means from what is left for training.

    opened: what `open_data` returned. statistics_file: where statistics are kept, and from which
    they are read if it is there. prep: the seeding run's preprocessing, where the config inherits
    it. on_progress: of the images that statistics are taken from. on_bad: is called with why a file
    is unusable. Raises DataError, and ConfigError where batches or `prep` do not suit the images.
    """
    if inherits(config) != (prep is not None):
        raise ValueError(f"seeding.normalise={config.seeding.normalise!r}, and {prep=}")
    opened = opened or open_data(config.data)
    check(config, opened)
    if isinstance(opened.dataset, sources.ImageSet):
        on_bad = functools.cache(on_bad)  # the same file may be met by several streams
        return prepare_streamed(config, opened, statistics_file, prep, on_progress, on_bad)
    return prepare_resident(config, opened, statistics_file, prep)


def expected(
    config: ml_collections.ConfigDict, channels: int, stored: tuple[int, int] | None
) -> Preprocessing:
    """How a config that inherits nothing will see images, with zeros for what is to be fitted.

    channels, stored: see `inherited`.
    """
    d = config.data
    square: np.ndarray | None = None
    shape: tuple[int, ...] = () if d.normalise in ("none", "lenet") else (channels,)
    if d.normalise in ("per_pixel", "gcn_zca"):
        shape = (*(stored or (d.image_size, d.image_size)), channels)
        view = None if stored else stream_view(config)
        if isinstance(view, crops.SquareView):
            square = np.zeros((view.S, view.S, channels), np.float32)
    normalise = resident.Normalisation(np.zeros(shape, np.float32), np.ones((), np.float32))
    if d.normalise == "gcn_zca":
        normalise = dataclasses.replace(normalise, whitening=np.zeros((), np.float32))
    return Preprocessing(normalise, (), channels, square_mean=square)

"""The images of a config, split and laid out for the device, and the views that nets see."""

from dataclasses import dataclass

import ml_collections
import numpy as np

import input_pipeline
from experiments.config import ConfigError
from input_pipeline import resident


@dataclass(frozen=True)
class Data:
    """A data set that fits on the device, as one array, so that one program tests every part.

    images: (N, H, W, C) uint8, labels: (N,) int32; `parts` names where in them the training
    examples (`train`), those held out from training (`holdout`) and the test set (`test`) lie.
    """

    dataset: input_pipeline.Dataset
    images: np.ndarray
    labels: np.ndarray
    parts: dict[str, range]
    normalise: resident.Normalisation
    train_view: resident.TrainView
    test_view: resident.TestView


def load(config: ml_collections.ConfigDict) -> input_pipeline.Dataset:
    """The data set that `config.data` names."""
    return input_pipeline.load(config.data.name, path=config.data.path or None)


def views(config: ml_collections.ConfigDict) -> tuple[resident.TrainView, resident.TestView]:
    """The train and test views of a config."""
    d = config.data
    train = resident.TrainView(
        crop=d.image_size, S=tuple(d.S) if d.S[1] else None, pad=d.pad, mirror=d.mirror
    )
    return train, resident.TestView(crop=d.image_size, Q=config.test.Q or None)


def prepare(config: ml_collections.ConfigDict) -> Data:
    """Loads, holds out, and fits the normalisation to what is left for training.

    The held-out part is the same for every run on this data: it does not depend on `seed`.

    Raises:
        DataError: the data can't be read, or the view does not suit it.
        ConfigError: more images a batch than there are.
    """
    d = config.data
    dataset = load(config)
    train, test = views(config)
    train.check(dataset)
    rest, held = dataset.train, dataset.train.take(np.arange(0))
    if d.holdout:
        rest, held = dataset.train.split_holdout(d.holdout, seed=0)
    check_batch(config, len(rest), dataset.name)
    sets = {"train": rest, "holdout": held, "test": dataset.test}
    starts = np.cumsum([0, *(len(s) for s in sets.values())])
    return Data(
        dataset=dataset,
        images=np.concatenate([s.images for s in sets.values()]),
        labels=np.concatenate([s.labels for s in sets.values()]),
        parts={
            name: range(int(start), int(start) + len(s))
            for (name, s), start in zip(sets.items(), starts, strict=False)
        },
        normalise=resident.Normalisation.fit(
            rest.images, d.normalise, divide_by_std=d.divide_by_std
        ),
        train_view=train,
        test_view=test,
    )


def check_batch(config: ml_collections.ConfigDict, n: int, name: str) -> None:
    """Raises ConfigError where a batch does not suit the n training images or the network."""
    t, group = config.train, config.model.get("bn_group_size", 0)
    if t.batch_size > n:
        raise ConfigError(
            f"train.batch_size={t.batch_size} is more than the {n} training images of {name}"
        )
    if group and (t.batch_size // t.accumulate) % group:
        raise ConfigError(
            f"model.bn_group_size={group} does not divide the {t.batch_size // t.accumulate} "
            "images of a batch (train.batch_size / train.accumulate)"
        )


def total_steps(config: ml_collections.ConfigDict, n: int) -> int:
    """Training steps of a config on n training examples; a part of a batch counts as one."""
    t = config.train
    return t.steps or max(1, -(-round(t.epochs * n) // t.batch_size))

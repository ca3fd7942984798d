"""Heads on a run's features: the split, the strength, and what the test says.

The strength (C, or k of the neighbours) that is best on held-out training images is taken, the
smaller of equals, and the head is then fitted to all training images. The test images are looked at
once, by that head.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from experiments.config import ConfigError, one_of
from experiments.statistics import error_rate, over_seeds, true_class_rank
from experiments.testing import metrics
from experiments.transfer import heads
from experiments.transfer.features import PassFeatures, Set, combined, same_images, unit_length
from experiments.transfer.splits import random_split
from input_pipeline import DataError, split_holdout
from input_pipeline.datasets import stratified
from input_pipeline.sources.collection import ANY, TEST, Collection

Normalise = Literal["scale", "l2", "none"]
SHARE = 0.5  # of the memory, which features may take
HELD_OUT = 0.2  # share of the training images on which strengths are compared


@dataclass(frozen=True)
class HeadSettings:
    """How a head is trained and tested."""

    head: heads.Kind | Literal["finetune"] = "logistic"
    # scale: features are divided by their root mean square length over the training images, one
    # number; l2: each image's by its own length; none: as they are.
    normalise: Normalise = "scale"
    combine: str = "mean"  # of several passes, see `features.combined`
    strength: float | None = None  # C, or k of the neighbours; None: chosen on held-out images
    only: tuple[str, ...] = ()  # names of the classes that are told apart; none: all of the set
    train_per_class: int | None = None  # training images of each class, drawn anew in each split
    test_per_class: int | None = None  # at most, of a set without parts
    test_share: float = 0.25  # of a set without parts, where no numbers a class are given
    splits: int = 1  # that are drawn
    # How average precisions are taken, where images have several classes.
    precision: metrics.Interpolation = "all_points"
    solver: Literal["auto", "sklearn", "device"] = "auto"


@dataclass(frozen=True)
class Split:
    """One split: the strength that was chosen, and the test's figures. Shares are in percent."""

    train: int  # images
    test: int
    strength: float
    tried: dict[str, float]  # strength -> `_wrong_of` on held-out images
    errors: int | None = None  # test images whose class is not the first
    top5_errors: int | None = None
    mean_class_recall: float | None = None
    mean_average_precision: float | None = None
    by_class: tuple[float, ...] = ()  # recall, or average precision
    confusion: tuple[tuple[int, ...], ...] = ()  # [true class][predicted class]: test images
    seconds: float = 0.0


@dataclass(frozen=True)
class Result:
    """The figures of a head on features, over all splits."""

    run: str
    layer: str
    depth: int
    passes: tuple[str, ...]
    data: str
    fingerprint: str  # of the set
    class_names: tuple[str, ...]
    features: int  # an image
    left_out: int
    how: HeadSettings
    splits: tuple[Split, ...]
    feature_seconds: float
    notes: tuple[str, ...] = ()
    heads: tuple["Scaled", ...] = field(default=(), repr=False)  # of each split

    @property
    def several(self) -> bool:
        """Whether images may be of several classes."""
        return self.splits[0].errors is None

    def wrong(self) -> tuple[float, float | None, float | None]:
        """(percent, low, high): the error, or 100 minus the mean average precision.

        Of one split it is the Wilson interval of its errors, of several the t-interval of the mean.
        """
        values = [_wrong(split) for split in self.splits]
        if len(values) > 1:
            interval = over_seeds(values)
            return interval.mean, interval.low, interval.high
        (split,) = self.splits
        if split.errors is None:
            return values[0], None, None
        rate = error_rate(split.errors, split.test)
        return rate.percent, rate.low, rate.high

    def to_json(self) -> dict[str, Any]:
        record = asdict(replace(self, heads=()))
        del record["heads"]
        wrong, low, high = self.wrong()
        return record | {"wrong": wrong, "low": low, "high": high}


@dataclass(frozen=True)
class Scaled:
    """A head with the normalisation of the features that it sees."""

    head: heads.Head
    normalise: Normalise
    divisor: float  # of `scale`

    def scores(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The scores of these rows of features (n, d): (rows, K)."""
        return self.head.scores(
            heads.Rows(x, rows, partial(_prepared, self.normalise, self.divisor))
        )


def run(
    groups: Sequence[Sequence[PassFeatures]],
    how: HeadSettings,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Trains and tests a head on features of the same images.

    groups: the passes of each network, which are combined as `how` says. The features of several
    networks are put side by side (VGG, section B.1); normalise='l2' divides each network's by
    their own length. on_progress: of heads that are fitted.

    Raises DataError where the images do not suffice or are not the same, and ConfigError for a
    `how` that can't be.
    """
    check(how)
    images = groups[0][0].of
    x: np.ndarray = side_by_side(groups, how)
    if how.only:
        images, rows = chosen(images, how.only)
        x = x[rows]
    targets = targets_of(images)
    several = images.targets is not None
    notes: list[str] = []
    splits, fitted = [], []
    values = heads.GRID[how.head] if how.strength is None else (how.strength,)
    fits = how.splits * (len(values) + 1 if len(values) > 1 else 1)
    counter = iter(range(1, fits + 1))

    def fit(rows: np.ndarray, strength: float) -> Scaled:
        head = _fit(x, rows, targets, how, strength, several, notes.append)
        on_progress(next(counter), fits)
        return head

    drawn = list(split(images, how))
    if len(drawn) < how.splits:
        notes.append(
            f"one split: {images.name} has a test part, and --train-per-class draws from the rest"
        )
    for train, test in drawn:
        start = time.monotonic()
        check_classes(images, targets[train], several)
        if several:
            check_classes(images, targets[test], several, "test")
        tried: dict[float, float] = {}
        if len(values) > 1:
            rest, held_out = _held_out(images, targets, train, several)
            for value in values:
                score = fit(rest, value).scores(x, held_out)
                tried[value] = _wrong_of(score, targets[held_out], several, how)
        best = min(values, key=lambda value: (tried.get(value, 0.0), value))
        head = fit(train, best)
        figures = tested(head.scores(x, test), targets[test], several, how)
        splits.append(
            Split(
                train=len(train),
                test=len(test),
                strength=best,
                tried={f"{value:g}": wrong for value, wrong in tried.items()},
                seconds=round(time.monotonic() - start, 3),
                **figures,
            )
        )
        fitted.append(head)
    passes = [features for group in groups for features in group]
    first = passes[0]
    return Result(
        run=" + ".join(group[0].run for group in groups),
        layer=first.layer,
        depth=first.depth,
        passes=tuple(dict.fromkeys(features.name for features in passes)),
        data=images.name,
        fingerprint=images.fingerprint,
        class_names=images.class_names,
        features=x.shape[1],
        left_out=images.left_out,
        how=how,
        splits=tuple(splits),
        feature_seconds=sum(features.seconds for features in passes),
        notes=tuple(dict.fromkeys(notes)),
        heads=tuple(fitted),
    )


def side_by_side(groups: Sequence[Sequence[PassFeatures]], how: HeadSettings) -> np.ndarray:
    """The features of several networks, (n, d). Raises DataError where images differ."""
    if len(groups) == 1:
        return combined(groups[0], how.combine)
    parts = [combined(group, how.combine, l2=how.normalise == "l2") for group in groups]
    same_images([group[0] for group in groups])
    return np.concatenate([np.asarray(part, np.float32) for part in parts], axis=1)


def chosen(images: Set, classes: Sequence[str]) -> tuple[Set, np.ndarray]:
    """(the images of these classes alone, their rows); the classes keep the set's order.

    Raises ConfigError for an unknown class, and for images of several classes.
    """
    for name in classes:
        one_of(name, images.class_names, f"--only: class of {images.name}")
    if images.targets is not None:
        raise ConfigError("--only is for images of one class each")
    indices = [k for k, name in enumerate(images.class_names) if name in classes]
    rows = np.flatnonzero(np.isin(images.labels, indices))
    labels: np.ndarray = np.searchsorted(indices, images.labels[rows]).astype(np.int32)
    names = tuple(images.class_names[k] for k in indices)
    columns = {"ids": images.ids[rows], "parts": images.parts[rows], "labels": labels}
    return replace(images, class_names=names, background=None, **columns), rows


def targets_of(images: Set) -> np.ndarray:
    """(n, K) int8: 1 for the classes of an image, 0 for others, -1 where it does not count."""
    if images.targets is not None:
        return images.targets
    targets: np.ndarray = np.zeros((len(images), len(images.class_names)), np.int8)
    targets[np.arange(len(images)), images.labels] = 1
    return targets


def split(images: Set, how: HeadSettings) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(training rows, test rows) of each split.

    A set that has parts is split into these; `train_per_class` draws from the training part.
    Without parts, images are drawn class by class. Raises DataError for a part without images or
    a class with too few, and ConfigError for options that do not go with the set.
    """
    rows: np.ndarray = np.arange(len(images))
    has_parts = not (images.parts == ANY).any()
    if how.test_per_class is not None and how.train_per_class is None:
        raise ConfigError("--test-per-class goes with --train-per-class")
    train, test = rows[images.parts != TEST], rows[images.parts == TEST]
    if has_parts and not len(train):
        raise DataError(f"{images.name} has no training images")
    if has_parts and not len(test):
        raise DataError(f"{images.name} has no test images")
    if has_parts and how.train_per_class is None:
        yield train, test
        return
    if images.targets is not None:
        raise ConfigError("images of several classes are not drawn class by class")
    if has_parts and how.test_per_class is not None:
        raise ConfigError(
            f"--test-per-class is for sets without parts, and {images.name} has a test part"
        )
    for seed in range(how.splits):
        if how.train_per_class is None:
            drawn, rest = split_holdout(images.labels, how.test_share, seed)
            yield train[drawn], train[rest]
            continue
        drawn, rest = random_split(
            images.labels[train],
            images.class_names,
            how.train_per_class,
            seed,
            how.test_per_class,
            least_left=0 if has_parts else 1,
        )
        yield train[drawn], test if has_parts else train[rest]


def check(how: HeadSettings) -> None:
    """Raises ConfigError for options that can't be."""
    value = how.strength
    if value is not None and not 0 < value < math.inf:
        raise ConfigError(f"--strength {value:g}; expected more than 0")
    if value is not None and how.head == "knn" and value != int(value):
        raise ConfigError(f"--strength {value:g}; expected a whole number of neighbours")
    for name in ("train_per_class", "test_per_class", "splits"):
        value = getattr(how, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}; expected at least 1")
    if not 0 < how.test_share < 1:
        raise ConfigError(f"--test-share {how.test_share:g}; expected more than 0 and less than 1")
    if how.solver == "device" and how.head == "knn":
        raise ConfigError("--solver device is for linear heads, svm and logistic")


def check_classes(
    images: Set | Collection, targets: np.ndarray, several: bool, part: str = "training"
) -> None:
    """Raises DataError where the classes of these images can't be learnt, or tested."""
    if len(images.class_names) < 2:
        raise DataError(
            f"{images.name} has one class only ({images.class_names[0]}); expected at least two"
        )
    present = (targets == 1).any(axis=0)
    if several:
        present &= (targets == 0).any(axis=0)
    if not present.all():
        missing = images.class_names[int(np.flatnonzero(~present)[0])]
        needed = "images of it and images without it" if several else "one"
        raise DataError(f"{images.name}: class {missing!r} lacks {part} images; expected {needed}")


def _held_out(
    images: Set, targets: np.ndarray, train: np.ndarray, several: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The training rows as (rest, held out). Raises DataError where there are too few."""
    if not several:
        rest, held_out = split_holdout(images.labels[train], HELD_OUT, seed=0)
        return train[rest], train[held_out]
    ranks = np.random.Philox(key=0).random_raw(len(train))
    one_class: np.ndarray = np.zeros(len(train), np.int32)
    drawn = stratified(one_class, round(HELD_OUT * len(train)), ranks, least=1)
    check_classes(images, targets[train[~drawn]], several)
    return train[~drawn], train[drawn]


def _fit(
    x: np.ndarray,
    rows: np.ndarray,
    targets: np.ndarray,
    how: HeadSettings,
    strength: float,
    several: bool,
    on_note: Callable[[str], None],
) -> Scaled:
    divisor = 1.0
    if how.normalise == "scale":
        squares = 0.0
        for at in range(0, len(rows), heads.CHUNK):
            chunk = np.asarray(x[rows[at : at + heads.CHUNK]], np.float32)
            squares += float(np.einsum("nd,nd->", chunk, chunk, dtype=np.float64))
        divisor = (squares / len(rows)) ** 0.5 or 1.0
    prepared = partial(_prepared, how.normalise, divisor)
    assert how.head != "finetune"  # `finetune` has that
    head = heads.fit(
        how.head,
        heads.Rows(x, rows, prepared),
        targets[rows],
        strength,
        several=several,
        on_device=how.solver == "device" or (how.solver == "auto" and _outgrows(x)),
        on_note=on_note,
    )
    return Scaled(head, how.normalise, divisor)


def _prepared(normalise: Normalise, divisor: float, x: np.ndarray) -> np.ndarray:
    return unit_length(x) if normalise == "l2" else x / np.float32(divisor)


def _outgrows(x: np.ndarray) -> bool:
    """Whether features as float32 are more than half of the memory that is free."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 * x.size > SHARE * free


def _wrong_of(scores: np.ndarray, targets: np.ndarray, several: bool, how: HeadSettings) -> float:
    """Percent: the error, or 100 minus the mean average precision."""
    if several:
        present = (targets == 1).any(axis=0)  # of the held-out images, a rare class may be in none
        return 100 - metrics.mean_average_precision(
            scores[:, present], targets[:, present], how.precision
        )
    return 100 * float((true_class_rank(scores, targets.argmax(axis=1)) > 1).mean())


def _wrong(split: Split) -> float:
    if split.errors is None:
        assert split.mean_average_precision is not None
        return 100 - split.mean_average_precision
    return 100 * split.errors / split.test


def tested(
    scores: np.ndarray, targets: np.ndarray, several: bool, how: HeadSettings
) -> dict[str, Any]:
    """The figures of test scores (n, K), as fields of `Split`. targets: as of `targets_of`."""
    if several:
        by_class = [
            metrics.average_precision(score, target, how.precision)
            for score, target in zip(scores.T, targets.T, strict=True)
        ]
        return {
            "mean_average_precision": float(np.mean(by_class)),
            "by_class": tuple(by_class),
        }
    labels = targets.argmax(axis=1)
    ranks = true_class_rank(scores, labels)
    confusion = metrics.confusion(scores.argmax(axis=1), labels, targets.shape[1])
    counts = confusion.sum(axis=1)
    recalls = 100 * np.diagonal(confusion) / np.maximum(counts, 1)
    return {
        "errors": int((ranks > 1).sum()),
        "top5_errors": int((ranks > 5).sum()),
        "mean_class_recall": metrics.mean_class_recall(confusion),
        "by_class": tuple(map(float, recalls)),
        "confusion": tuple(tuple(map(int, row)) for row in confusion),
    }

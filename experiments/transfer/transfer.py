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
from experiments.transfer.features import Found, Set, combined, same_images, unit_length
from experiments.transfer.splits import random_split
from input_pipeline import DataError, split_holdout
from input_pipeline.datasets import stratified
from input_pipeline.sources.collection import ANY, TEST, Collection

Normalise = Literal["scale", "l2", "none"]
SHARE = 0.5  # of the memory, which features may take
HELD_OUT = 0.2  # share of the training images on which strengths are compared


@dataclass(frozen=True)
class How:
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
    precision: metrics.Interpolation = (
        "all_points"  # of averages, where images have several classes
    )
    solver: Literal["auto", "sklearn", "device"] = "auto"


@dataclass(frozen=True)
class Split:
    """One split: what was chosen, and what the test says. Shares are in percent."""

    train: int  # images
    test: int
    strength: float
    tried: dict[str, float]  # strength -> what is wrong on held-out images
    errors: int | None = None  # test images whose class is not the first
    top5_errors: int | None = None
    mean_class_recall: float | None = None
    mean_average_precision: float | None = None
    by_class: tuple[float, ...] = ()  # recall, or average precision
    confusion: tuple[tuple[int, ...], ...] = ()  # (true class, found class) -> test images
    seconds: float = 0.0


@dataclass(frozen=True)
class Result:
    """What a head makes of features, over all splits."""

    run: str
    layer: str
    depth: int
    passes: tuple[str, ...]
    data: str
    fingerprint: str  # of the set
    class_names: tuple[str, ...]
    features: int  # an image
    left_out: int
    how: How
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

        Of one split the Wilson interval of its test errors, of several the t-interval of the mean.
        """
        values = [_wrong(one) for one in self.splits]
        if len(values) > 1:
            found = over_seeds(values)
            return found.mean, found.low, found.high
        (one,) = self.splits
        if one.errors is None:
            return values[0], None, None
        rate = error_rate(one.errors, one.test)
        return rate.percent, rate.low, rate.high

    def to_json(self) -> dict[str, Any]:
        told = asdict(replace(self, heads=()))
        del told["heads"]
        wrong, low, high = self.wrong()
        return told | {"wrong": wrong, "low": low, "high": high}


@dataclass(frozen=True)
class Scaled:
    """A head with what is done to features before it."""

    head: heads.Head
    normalise: Normalise
    divisor: float  # of `scale`

    def scores(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Of these rows of features (n, d): (rows, K)."""
        return self.head.scores(
            heads.Rows(x, rows, partial(_prepared, self.normalise, self.divisor))
        )


def run(
    groups: Sequence[Sequence[Found]],
    how: How,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Trains and tests a head on features of the same images.

    groups: of each network its passes, which are combined as `how` says; the features of several
    networks are put side by side (VGG, section B.1), with normalise='l2' each network's by their
    own length. on_progress: of heads that are fitted.

    Raises DataError where the images do not suffice or are not the same, and ConfigError for a
    `how` that can't be.
    """
    check(how)
    of = groups[0][0].of
    x: np.ndarray = side_by_side(groups, how)
    if how.only:
        of, rows = chosen(of, how.only)
        x = x[rows]
    targets = targets_of(of)
    several = of.targets is not None
    notes: list[str] = []
    splits, fitted = [], []
    values = heads.GRID[how.head] if how.strength is None else (how.strength,)
    fits = how.splits * (len(values) + 1 if len(values) > 1 else 1)
    done = iter(range(1, fits + 1))

    def fit(rows: np.ndarray, strength: float) -> Scaled:
        head = _fit(x, rows, targets, how, strength, several, notes.append)
        on_progress(next(done), fits)
        return head

    drawn = list(split(of, how))
    if len(drawn) < how.splits:
        notes.append(
            f"one split: {of.name} has a test part, and --train-per-class draws from the rest"
        )
    for train, test in drawn:
        start = time.monotonic()
        check_classes(of, targets[train], several)
        if several:
            check_classes(of, targets[test], several, "test")
        tried: dict[float, float] = {}
        if len(values) > 1:
            rest, held = _held_out(of, targets, train, several)
            for value in values:
                score = fit(rest, value).scores(x, held)
                tried[value] = _wrong_of(score, targets[held], several, how)
        best = min(values, key=lambda value: (tried.get(value, 0.0), value))
        head = fit(train, best)
        found = tested(head.scores(x, test), targets[test], several, how)
        splits.append(
            Split(
                train=len(train),
                test=len(test),
                strength=best,
                tried={f"{value:g}": wrong for value, wrong in tried.items()},
                seconds=round(time.monotonic() - start, 3),
                **found,
            )
        )
        fitted.append(head)
    passes = [one for group in groups for one in group]
    first = passes[0]
    return Result(
        run=" + ".join(group[0].run for group in groups),
        layer=first.layer,
        depth=first.depth,
        passes=tuple(dict.fromkeys(one.name for one in passes)),
        data=of.name,
        fingerprint=of.fingerprint,
        class_names=of.class_names,
        features=x.shape[1],
        left_out=of.left_out,
        how=how,
        splits=tuple(splits),
        feature_seconds=sum(one.seconds for one in passes),
        notes=tuple(dict.fromkeys(notes)),
        heads=tuple(fitted),
    )


def side_by_side(groups: Sequence[Sequence[Found]], how: How) -> np.ndarray:
    """The features of several networks, (n, d). Raises DataError where images differ."""
    if len(groups) == 1:
        return combined(groups[0], how.combine)
    parts = [combined(group, how.combine, l2=how.normalise == "l2") for group in groups]
    same_images([group[0] for group in groups])
    return np.concatenate([np.asarray(part, np.float32) for part in parts], axis=1)


def chosen(of: Set, classes: Sequence[str]) -> tuple[Set, np.ndarray]:
    """The images of these classes alone, numbered in the set's order, and which rows they are.

    Raises ConfigError for a class that is not there, and for images of several classes.
    """
    for name in classes:
        one_of(name, of.class_names, f"--only: class of {of.name}")
    if of.targets is not None:
        raise ConfigError("--only is for images of one class each")
    kept = [k for k, name in enumerate(of.class_names) if name in classes]
    rows = np.flatnonzero(np.isin(of.labels, kept))
    labels: np.ndarray = np.searchsorted(kept, of.labels[rows]).astype(np.int32)
    names = tuple(of.class_names[k] for k in kept)
    columns = {"ids": of.ids[rows], "parts": of.parts[rows], "labels": labels}
    return replace(of, class_names=names, background=None, **columns), rows


def targets_of(of: Set) -> np.ndarray:
    """(n, K) int8: 1 for the classes of an image, 0 for others, -1 where it does not count."""
    if of.targets is not None:
        return of.targets
    targets: np.ndarray = np.zeros((len(of), len(of.class_names)), np.int8)
    targets[np.arange(len(of)), of.labels] = 1
    return targets


def split(of: Set, how: How) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(training rows, test rows) of each split.

    A set's own parts where it has them; of the training part, with `train_per_class`, so many of
    each class. Without parts, images are drawn class by class. Raises DataError, and ConfigError
    where numbers a class can't be.
    """
    whole: np.ndarray = np.arange(len(of))
    given = not (of.parts == ANY).any()
    if how.test_per_class is not None and how.train_per_class is None:
        raise ConfigError("--test-per-class goes with --train-per-class")
    train, test = whole[of.parts != TEST], whole[of.parts == TEST]
    if given and not len(train):
        raise DataError(f"{of.name} has no training images")
    if given and not len(test):
        raise DataError(f"{of.name} has no test images")
    if given and how.train_per_class is None:
        yield train, test
        return
    if of.targets is not None:
        raise ConfigError("images of several classes are not drawn class by class")
    if given and how.test_per_class is not None:
        raise ConfigError(
            f"--test-per-class is for sets without parts, and {of.name} has a test part"
        )
    for seed in range(how.splits):
        if how.train_per_class is None:
            some, rest = split_holdout(of.labels, how.test_share, seed)
            yield train[some], train[rest]
            continue
        some, rest = random_split(
            of.labels[train],
            of.class_names,
            how.train_per_class,
            seed,
            how.test_per_class,
            least_left=0 if given else 1,
        )
        yield train[some], test if given else train[rest]


def check(how: How) -> None:
    """Raises ConfigError for what can't be."""
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
    of: Set | Collection, targets: np.ndarray, several: bool, part: str = "training"
) -> None:
    """Raises DataError where the classes of these images can't be learnt, or tested."""
    if len(of.class_names) < 2:
        raise DataError(
            f"{of.name} has one class only ({of.class_names[0]}); expected at least two"
        )
    there = (targets == 1).any(axis=0)
    if several:
        there &= (targets == 0).any(axis=0)
    if not there.all():
        missing = of.class_names[int(np.flatnonzero(~there)[0])]
        what = "images of it and images without it" if several else "one"
        raise DataError(f"{of.name}: class {missing!r} lacks {part} images; expected {what}")


def _held_out(
    of: Set, targets: np.ndarray, train: np.ndarray, several: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(the rest, held out) of the training rows. Raises DataError where there are too few."""
    if not several:
        rest, held = split_holdout(of.labels[train], HELD_OUT, seed=0)
        return train[rest], train[held]
    ranks = np.random.Philox(key=0).random_raw(len(train))
    none: np.ndarray = np.zeros(len(train), np.int32)
    chosen = stratified(none, round(HELD_OUT * len(train)), ranks, least=1)
    check_classes(of, targets[train[~chosen]], several)
    return train[~chosen], train[chosen]


def _fit(
    x: np.ndarray,
    rows: np.ndarray,
    targets: np.ndarray,
    how: How,
    strength: float,
    several: bool,
    on_note: Callable[[str], None],
) -> Scaled:
    divisor = 1.0
    if how.normalise == "scale":
        squares = 0.0
        for at in range(0, len(rows), heads.CHUNK):
            seen = np.asarray(x[rows[at : at + heads.CHUNK]], np.float32)
            squares += float(np.einsum("nd,nd->", seen, seen, dtype=np.float64))
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


def _wrong_of(scores: np.ndarray, targets: np.ndarray, several: bool, how: How) -> float:
    """Percent: the error, or 100 minus the mean average precision."""
    if several:
        there = (targets == 1).any(axis=0)  # of the held-out images, a rare class may be in none
        return 100 - metrics.mean_average_precision(
            scores[:, there], targets[:, there], how.precision
        )
    return 100 * float((true_class_rank(scores, targets.argmax(axis=1)) > 1).mean())


def _wrong(one: Split) -> float:
    if one.errors is None:
        assert one.mean_average_precision is not None
        return 100 - one.mean_average_precision
    return 100 * one.errors / one.test


def tested(scores: np.ndarray, targets: np.ndarray, several: bool, how: How) -> dict[str, Any]:
    """What the test says of scores (n, K), as fields of `Split`. targets: as of `targets_of`."""
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

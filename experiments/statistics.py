"""Errors, intervals and paired tests: what a measured figure is worth.

Errors are in percent of the test examples, differences of two errors in points of percent.
Intervals hold with 95%; they and the tests are SciPy's, but for Bonett and Price's interval, which
SciPy lacks. `scipy.stats` takes a second to import, and a good part of that for the thousand
intervals of a large report: those of one run and of a mean are computed here, as SciPy does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95


def true_class_rank(posteriors: ArrayLike, labels: ArrayLike) -> NDArray[np.int64]:
    """(n,) rank of the true class among all classes, 1 = most probable.

    Ties count against the net: a class with the same posterior as the true class is ranked before
    it. So a net that can't tell classes apart is always wrong, never right by the order of the
    classes. A row that holds NaN is ranked after all classes (K + 1).

    posteriors: (n, K) float; logits serve as well, only their order counts. labels: (n,) int.

    Raises:
        ValueError: shapes that do not fit, or a label outside [0, K).
    """
    posteriors, labels = np.asarray(posteriors), np.asarray(labels)
    if posteriors.ndim != 2 or labels.shape != posteriors.shape[:1]:
        raise ValueError(
            f"posteriors (n, K) and labels (n,) expected, got {posteriors.shape}, {labels.shape}"
        )
    n, classes = posteriors.shape
    if n and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {labels.min()}..{labels.max()}")
    true = np.take_along_axis(posteriors, labels[:, None].astype(np.int64), axis=1)  # (n, 1)
    rank = np.count_nonzero(posteriors >= true, axis=1)  # counts the true class itself
    return np.where(np.isnan(posteriors).any(axis=1), classes + 1, rank)


@dataclass(frozen=True)
class ErrorRate:
    """Errors of one run among n test examples, in percent, with the Wilson interval."""

    errors: int
    n: int
    percent: float
    low: float
    high: float


def error_rate(errors: int, n: int) -> ErrorRate:
    """The error rate and its Wilson score interval (Wilson 1927), without correction.

    The interval says how far the error would move with other test examples from the same source,
    nothing of other training seeds. Raises ValueError for n < 1, or errors outside 0..n.
    """
    from scipy.special import ndtri

    if not 0 <= errors <= n or n < 1:
        raise ValueError(f"{errors} errors among {n} examples: expected 0 to n, of at least 1")
    errors, n = int(errors), int(n)
    z, p = float(ndtri(0.5 + 0.5 * CONFIDENCE)), errors / n
    denominator = 2 * (n + z**2)
    centre = (2 * n * p + z**2) / denominator
    half = z / denominator * math.sqrt(4 * n * p * (1 - p) + z**2)
    low, high = centre - half if errors else 0.0, centre + half if errors < n else 1.0
    return ErrorRate(errors, n, 100 * errors / n, 100 * low, 100 * high)


@dataclass(frozen=True)
class SeedSummary:
    """One figure over several training seeds, in the unit of that figure.

    low and high are None where all values are equal: errors are counted, so a deviation of 0 does
    not say that other seeds would give the same.
    """

    seeds: int
    mean: float
    deviation: float | None  # of the sample (n - 1); this, low and high are None for one seed
    low: float | None  # low and high bound the mean (Student's t)
    high: float | None


def over_seeds(values: Sequence[float]) -> SeedSummary:
    """Mean, sample deviation, and the t-interval of the mean. ValueError: no values."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"one value for each seed expected, got shape {array.shape}")
    mean = float(array.mean())
    if array.size == 1 or not np.isfinite(array).all():
        return SeedSummary(array.size, mean, None, None, None)
    low, high = _mean_interval(array)
    return SeedSummary(array.size, mean, float(array.std(ddof=1)), low, high)


@dataclass(frozen=True)
class PairedDifference:
    """First minus second over the seeds that both have.

    low, high and p_value are None where all differences are equal: t has no finite value then.
    """

    seeds: int
    mean: float
    deviation: float
    low: float | None
    high: float | None
    p_value: float | None


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Mean of first - second over the same seeds, its t-interval, and the paired t-test.

    Raises ValueError for fewer than two seeds, or unequal lengths.
    """
    from scipy import stats

    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 1 or a.shape != b.shape or a.size < 2:
        raise ValueError(
            f"two equally long lists of at least 2 values expected, got {a.shape}, {b.shape}"
        )
    difference = a - b
    low, high = _mean_interval(difference)
    p_value = None if low is None else float(stats.ttest_1samp(difference, 0.0).pvalue)
    mean, deviation = float(difference.mean()), float(difference.std(ddof=1))
    return PairedDifference(difference.size, mean, deviation, low, high, p_value)


@dataclass(frozen=True)
class PairedTest:
    """Two runs on the same n test examples."""

    n: int
    only_first: int  # examples that only the first run gets wrong
    only_second: int
    difference: float  # the first's error minus the second's, points of percent
    low: float  # low and high are the interval of the difference
    high: float
    p_value: float  # of the exact McNemar test


def mcnemar(wrong_first: ArrayLike, wrong_second: ArrayLike) -> PairedTest:
    """Exact McNemar test (two-sided binomial test on the examples that only one run gets wrong).

    The interval of the difference is Bonett and Price's (2012): the Wald interval after one example
    was added to each of the two discordant cells. It stays sensible when no example is discordant.

    wrong_first, wrong_second: (n,) bool, the run is wrong on this example; in the same order.
    Raises ValueError for unequal lengths, or no examples.
    """
    from scipy import stats

    n, only_first, only_second = _discordant(wrong_first, wrong_second)
    discordant = only_first + only_second
    p_value = float(stats.binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0
    p12, p21 = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    scale = np.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    low, high = stats.norm.interval(CONFIDENCE, loc=p12 - p21, scale=scale)
    return PairedTest(
        n,
        only_first,
        only_second,
        100 * (only_first - only_second) / n,
        100 * max(float(low), -1.0),
        100 * min(float(high), 1.0),
        p_value,
    )


def bootstrap_difference(
    wrong_first: ArrayLike, wrong_second: ArrayLike, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
    """The percentile bootstrap interval of the first error minus the second, in points.

    Examples are drawn with replacement, the same ones for both runs (Efron and Tibshirani 1993,
    chapter 13). How many of these only one run gets wrong is multinomial, and that is drawn.

    None where all examples are of one kind; the interval of `mcnemar` has a width there too.
    Arguments and errors are those of `mcnemar`.
    """
    n, only_first, only_second = _discordant(wrong_first, wrong_second)
    if n in (only_first, only_second, n - only_first - only_second):
        return None
    shares = np.array([only_first, only_second, n - only_first - only_second]) / n
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=resamples)  # (resamples, 3)
    return _middle(100 * (drawn[:, 0] - drawn[:, 1]) / n)


@dataclass(frozen=True)
class RankAgreement:
    """Kendall's tau-b of two orders of the same rows, -1 to 1, with its interval."""

    rows: int
    tau: float | None  # None where one of the orders has ties only
    low: float | None  # low and high are None where no draw has a tau
    high: float | None


def rank_agreement(
    printed: Sequence[float],
    wrong: Sequence[ArrayLike],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> RankAgreement:
    """Whether measured errors order the rows as printed ones do (Kendall 1945, tau-b).

    The percentile bootstrap says how far tau moves by the choice of test images and of training
    seeds. It draws both with replacement: the same images for all rows, the seeds of each row.

    For each row an image is added that it alone gets wrong, as Bonett and Price do for two rows
    (see `mcnemar`). Rows without an error would else be certain of their tie.

    printed: the R printed figures. wrong: for each row (S, n) bool, whether the net of a seed is
    wrong on a test image; the images are in the same order for all rows, S may differ.

    Raises ValueError for fewer than two rows, unequal lengths, or other numbers of images.
    """
    order = np.asarray(printed, np.float64)
    errors = [np.atleast_2d(np.asarray(w, np.float32)) for w in wrong]
    sizes = {w.shape[1] for w in errors}
    if order.size < 2 or order.size != len(errors) or len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"two rows or more, tested on the same images, expected: {order.size} printed figures, "
            f"tests of shapes {[w.shape for w in errors]}"
        )
    (tau,) = _tau_b(order, np.array([[w.mean() for w in errors]]))
    added = np.repeat(np.eye(order.size), [len(w) for w in errors], axis=0)
    nets = np.concatenate([np.concatenate(errors), added], axis=1)  # (all seeds, images)
    # Images on which all nets are alike are drawn as one: their number is multinomial.
    patterns, counts = np.unique(nets, axis=1, return_counts=True)
    starts = np.cumsum([len(w) for w in errors])[:-1]
    rng = np.random.default_rng(seed)
    # Whole numbers until the end, so that equal numbers of errors stay ties.
    images = nets.shape[1]
    weights = rng.multinomial(images, counts / images, size=resamples)  # (resamples, patterns)
    columns = []
    for row_patterns in np.split(patterns, starts):
        seeds = len(row_patterns)
        drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
        wrong_then = weights @ row_patterns.T.astype(np.int64)  # (resamples, seeds)
        columns.append((wrong_then * drawn).sum(axis=1) / (seeds * images))
    taus = _tau_b(order, np.stack(columns, axis=1))
    taus = taus[np.isfinite(taus)]
    if not np.isfinite(tau):
        return RankAgreement(order.size, None, None, None)
    if not taus.size:
        return RankAgreement(order.size, float(tau), None, None)
    return RankAgreement(order.size, float(tau), *_middle(taus))


def _middle(drawn: NDArray[Any]) -> tuple[float, float]:
    """The two percentiles between which the middle 95% of the drawn values lie."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(low), float(high)


def _tau_b(first: NDArray[np.float64], others: NDArray[Any]) -> NDArray[np.float64]:
    """Tau-b of (R,) and each of (B, R); NaN where either has ties only."""
    i, j = np.triu_indices(first.size, 1)
    signs, other_signs = np.sign(first[i] - first[j]), np.sign(others[:, i] - others[:, j])
    untied = np.sqrt(np.count_nonzero(signs) * np.count_nonzero(other_signs, axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(untied > 0, other_signs @ signs / untied, np.nan)


def _discordant(wrong_first: ArrayLike, wrong_second: ArrayLike) -> tuple[int, int, int]:
    """Numbers of examples, of those that only the first run gets wrong, and only the second."""
    first, second = np.asarray(wrong_first, bool), np.asarray(wrong_second, bool)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise ValueError(f"two lists on the same examples expected: {first.shape}, {second.shape}")
    return first.size, int((first & ~second).sum()), int((second & ~first).sum())


def _mean_interval(values: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    """The t-interval of a mean; None for equal values, from which nothing can be said of it."""
    from scipy.special import stdtrit

    # Errors are multiples of 100/n, and their differences round.
    if np.ptp(values) <= 1e-9 * max(1.0, np.abs(values).max()):
        return None, None
    mean, scale = values.mean(), values.std(ddof=1) / values.size**0.5
    low, high = (stdtrit(values.size - 1, q) for q in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low * scale + mean), float(high * scale + mean)

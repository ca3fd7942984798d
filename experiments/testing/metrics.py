"""The figures by which classifiers of VOC's and Caltech's images are judged, all in percent.

Over several splits their mean and sample deviation are those of `statistics.over_seeds`.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

# How precision between measured recalls is taken: see `average_precision`.
Interpolation = Literal["eleven_points", "all_points", "none"]


def average_precision(
    scores: ArrayLike, targets: ArrayLike, interpolation: Interpolation = "all_points"
) -> float:
    """The average precision of a ranking by scores, in percent.

    `all_points` is that of VOC's devkits from 2010 on: the area under the best precision at each
    recall or a higher one. `eleven_points` is that of 2007: the mean of this best precision at the
    recalls 0, 0.1, ..., 1. `none` is the area under the precision as it is, which is scikit-learn's
    figure. It is at most that of `all_points`.

    Equal scores are one step of the ranking, so the order of examples does not matter. A devkit
    keeps their order: its figure is this one where negatives come first, and never lower. Recalls
    are compared as whole numbers. In MATLAB 0.3 of its steps exceeds 3 / 10 by rounding.

    scores: (n,), higher for the class; infinite ones will do. targets: (n,) 1, 0, or -1 for
    examples that count neither way. Raises ValueError for other values or no positive.
    """
    score, target = np.asarray(scores, np.float64), np.asarray(targets)
    if score.ndim != 1 or score.shape != target.shape:
        raise ValueError(
            f"scores (n,) and targets (n,) expected, got {score.shape}, {target.shape}"
        )
    if np.isnan(score).any():
        raise ValueError("scores hold NaN; expected numbers that can be ranked")
    if interpolation not in get_args(Interpolation):
        choices = ", ".join(get_args(Interpolation))
        raise ValueError(f"interpolation {interpolation!r}; expected one of {choices}")
    if not np.isin(target, (-1, 0, 1)).all():
        raise ValueError("targets other than 1, 0 and -1")
    counted = np.flatnonzero(target >= 0)
    order = counted[np.argsort(-score[counted], kind="stable")]
    ranked = score[order]
    steps = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    right = np.cumsum(target[order] == 1)[steps] if len(order) else np.zeros(1, np.int64)
    positives = int(right[-1])
    if not positives:
        raise ValueError("no positive example; expected at least one")
    precision = right / (steps + 1)
    if interpolation != "none":
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    if interpolation == "eleven_points":
        at = np.searchsorted(10 * right, positives * np.arange(11), side="left")
        return float(100 * precision[at].mean())
    return float(100 * (np.diff(right, prepend=0) * precision).sum() / positives)


def mean_average_precision(
    scores: ArrayLike, targets: ArrayLike, interpolation: Interpolation = "all_points"
) -> float:
    """The mean over classes of `average_precision`, in percent.

    scores, targets: (n, K). Raises ValueError, which names the class by its number.
    """
    score, target = np.asarray(scores), np.asarray(targets)
    if score.ndim != 2 or score.shape != target.shape or not score.shape[1]:
        raise ValueError(f"scores and targets (n, K) expected, got {score.shape}, {target.shape}")
    precisions = []
    for k in range(score.shape[1]):
        try:
            precisions.append(average_precision(score[:, k], target[:, k], interpolation))
        except ValueError as error:
            raise ValueError(f"class {k}: {error}") from None
    return float(np.mean(precisions))


def confusion(predicted: ArrayLike, labels: ArrayLike, classes: int) -> NDArray[np.int64]:
    """(K, K) counts of examples: in row i those of class i, in column j those taken for class j.

    predicted, labels: (n,) int. Raises ValueError for a class outside [0, K).
    """
    guess, true = np.asarray(predicted), np.asarray(labels)
    if guess.ndim != 1 or guess.shape != true.shape:
        raise ValueError(f"predicted and labels (n,) expected, got {guess.shape}, {true.shape}")
    for name, values in (("predicted", guess), ("labels", true)):
        if values.size and not (values.min() >= 0 and values.max() < classes):
            raise ValueError(f"{name} must lie in 0..{classes - 1}")
    counts = np.bincount(true.astype(np.int64) * classes + guess, minlength=classes * classes)
    return counts.reshape(classes, classes)


def mean_class_recall(counts: ArrayLike) -> float:
    """The mean over classes of the share of their examples that is recognised, in percent.

    It weighs classes alike, whatever their numbers of test images (VGG's section B.3).

    counts: (K, K) of `confusion`. A class without examples is left out, as one that no split draws
    from. Raises ValueError where no class has any.
    """
    table = np.asarray(counts)
    examples = table.sum(axis=1)
    present = examples > 0
    if not present.any():
        raise ValueError("no examples; expected at least one")
    return float(100 * (np.diagonal(table)[present] / examples[present]).mean())

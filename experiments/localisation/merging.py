"""Greedy merging of boxes (Sermanet et al. 2014, OverFeat, section 4.2).

Of all boxes of a class the two that match best are replaced by their average, again and again,
until no two match well enough. What is left has the sum of the confidences of the boxes in it, and
the most confident box is the answer. The paper matches by "the sum of the distance between centers
of the two bounding boxes and the intersection area of the boxes", and prints neither units nor the
threshold. Here the distance is in units of the boxes' mean side, the square root of their mean
area, and the intersection counts as one minus its share of the union, so that a smaller score is a
better match. An average is over all boxes that were merged into one.
"""

from collections.abc import Sequence

import numpy as np

from input_pipeline.boxes import areas, iou

THRESHOLD = 1.0  # two boxes with a larger match score are not merged


def match_scores(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How badly boxes (..., 4) match others, broadcast -> (...,); 0 where they are the same."""
    across, down = (
        (boxes[..., k] + boxes[..., k + 2] - others[..., k] - others[..., k + 2]) / 2
        for k in (0, 1)
    )
    apart = np.sqrt(across**2 + down**2)
    side = np.sqrt((areas(boxes) + areas(others)) / 2)
    distance = np.divide(apart, side, out=np.full_like(apart, np.inf), where=side > 0)
    return distance + 1 - iou(boxes, others)


def merge(
    boxes: np.ndarray, confidences: np.ndarray, threshold: float = THRESHOLD
) -> tuple[np.ndarray, np.ndarray]:
    """The merged boxes of one class, (m, 4), and their confidences, (m,): the highest first.

    boxes: (n, 4) float; confidences: (n,). The order in which they come does not matter.
    """
    merged, sums, left = _merged([(boxes, confidences)], threshold)
    found = np.flatnonzero(left[0])
    order = found[np.argsort(-sums[0, found], kind="stable")]
    return merged[0, order], sums[0, order]


def most_trusted(
    problems: Sequence[tuple[np.ndarray, np.ndarray]], threshold: float = THRESHOLD
) -> np.ndarray:
    """Of each problem the first box of `merge`, (m, 4); many at once are much faster.

    problems: boxes (n, 4) and confidences (n,), one at least, of each.
    """
    found: np.ndarray = np.zeros((len(problems), 4))
    order = sorted(range(len(problems)), key=lambda k: len(problems[k][0]))  # alike in size
    while order:
        most = len(problems[order[-1]][0])
        part = order[-max(1, LARGEST // most**2) :]
        del order[-len(part) :]
        merged, sums, left = _merged([problems[k] for k in part], threshold)
        best = np.where(left, sums, -np.inf).argmax(axis=1)
        found[part] = merged[np.arange(len(part)), best]
    return found


def of_images(found: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], classes: int) -> np.ndarray:
    """The most trusted merged box of each image and class, (n, classes, 4); NaN without any.

    found: of each image parts, (boxes (p, classes, 4), confidences (p, classes)).
    """
    merged: np.ndarray = np.full((len(found), classes, 4), np.nan)
    joined = [tuple(np.concatenate(each) for each in zip(*parts, strict=True)) for parts in found]
    rows = [row for row, (boxes, _) in enumerate(joined) if len(boxes)]
    problems = [
        (joined[row][0][:, k], joined[row][1][:, k]) for row in rows for k in range(classes)
    ]
    merged[rows] = most_trusted(problems).reshape(len(rows), classes, 4)
    return merged


LARGEST = 2**21  # match scores that are held at once


def _merged(
    problems: Sequence[tuple[np.ndarray, np.ndarray]], threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of m problems what is left: boxes (m, p, 4), confidences (m, p), and which there are."""
    m, p = len(problems), max(len(boxes) for boxes, _ in problems)
    boxes, sums = np.zeros((m, p, 4)), np.zeros((m, p))
    counts: np.ndarray = np.zeros((m, p))  # of boxes in a merged one; 0 where there is none
    for k, (own, trust) in enumerate(problems):
        order = np.lexsort((*own.T, -trust))
        boxes[k, : len(own)], sums[k, : len(own)] = own[order], trust[order]
        counts[k, : len(own)] = 1
    scores = match_scores(boxes[:, :, None], boxes[:, None])
    there = counts > 0
    later = np.arange(p) > np.arange(p)[:, None]
    scores[~(there[:, :, None] & there[:, None] & later)] = np.inf
    nearest, lowest = scores.argmin(axis=-1), scores.min(axis=-1)  # of each box the best match
    going = np.arange(m)
    while len(going):
        i = lowest[going].argmin(axis=1)
        on = lowest[going, i] <= threshold
        going, i = going[on], i[on]
        j = nearest[going, i]
        own, theirs = counts[going, i][:, None], counts[going, j][:, None]
        boxes[going, i] = (own * boxes[going, i] + theirs * boxes[going, j]) / (own + theirs)
        counts[going, i], counts[going, j] = (own + theirs)[:, 0], 0
        sums[going, i] += sums[going, j]
        row = match_scores(boxes[going, i][:, None], boxes[going])
        row[counts[going] == 0] = np.inf
        place = np.arange(p)
        scores[going, i] = np.where(place > i[:, None], row, np.inf)
        scores[going, :, i] = np.where(place < i[:, None], row, np.inf)
        scores[going, j] = scores[going, :, j] = np.inf
        _look_again(scores, nearest, lowest, going, i, j)
    return boxes, sums, counts > 0


def _look_again(
    scores: np.ndarray,
    nearest: np.ndarray,
    lowest: np.ndarray,
    going: np.ndarray,
    i: np.ndarray,
    j: np.ndarray,
) -> None:
    """Best matches of the problems `going`, whose boxes i are new and whose boxes j are gone."""
    column, near, low = scores[going, :, i], nearest[going], lowest[going]
    better = (column < low) | ((column == low) & (i[:, None] < near))
    nearest[going] = np.where(better, i[:, None], near)
    lowest[going] = np.where(better, column, low)
    stale = (near == i[:, None]) | (near == j[:, None])
    stale[np.arange(len(going)), i] = stale[np.arange(len(going)), j] = True
    problem, row = np.nonzero(stale)
    problem = going[problem]
    nearest[problem, row] = scores[problem, row].argmin(axis=1)
    lowest[problem, row] = scores[problem, row, nearest[problem, row]]

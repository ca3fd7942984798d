"""Greedy merging of boxes (Sermanet et al. 2014, OverFeat, section 4.2).

Of all boxes of a class the two that match best are replaced by their average, again and again,
until no two match well enough. A merged box has the sum of the confidences of the boxes in it, and
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
LARGEST = 2**21  # match scores in memory at once


def match_scores(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How badly boxes (..., 4) match others, broadcast -> (...,); 0 where they are the same."""
    across, down = (
        (boxes[..., k] + boxes[..., k + 2] - others[..., k] - others[..., k + 2]) / 2
        for k in (0, 1)
    )
    length = np.sqrt(across**2 + down**2)
    side = np.sqrt((areas(boxes) + areas(others)) / 2)
    distance = np.divide(length, side, out=np.full_like(length, np.inf), where=side > 0)
    return distance + 1 - iou(boxes, others)


def merge(
    boxes: np.ndarray, confidences: np.ndarray, threshold: float = THRESHOLD
) -> tuple[np.ndarray, np.ndarray]:
    """The merged boxes of one class, (m, 4), and their confidences, (m,): the highest first.

    boxes: (n, 4) float; confidences: (n,). The order in which they come does not matter.
    """
    merged, sums, remaining = _merged([(boxes, confidences)], threshold)
    indices = np.flatnonzero(remaining[0])
    order = indices[np.argsort(-sums[0, indices], kind="stable")]
    return merged[0, order], sums[0, order]


def most_trusted(
    problems: Sequence[tuple[np.ndarray, np.ndarray]], threshold: float = THRESHOLD
) -> np.ndarray:
    """The first box that `merge` gives for each problem, (m, 4); many at once are much faster.

    problems: the boxes (n, 4) and confidences (n,) of each, with at least one box.
    """
    best_boxes: np.ndarray = np.zeros((len(problems), 4))
    order = sorted(range(len(problems)), key=lambda k: len(problems[k][0]))  # alike in size
    while order:
        most = len(problems[order[-1]][0])
        part = order[-max(1, LARGEST // most**2) :]
        del order[-len(part) :]
        merged, sums, remaining = _merged([problems[k] for k in part], threshold)
        best = np.where(remaining, sums, -np.inf).argmax(axis=1)
        best_boxes[part] = merged[np.arange(len(part)), best]
    return best_boxes


def of_images(
    images: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], classes: int
) -> np.ndarray:
    """The most trusted merged box of each image and class, (n, classes, 4); NaN without any.

    images: the parts of each image, (boxes (p, classes, 4), confidences (p, classes)).
    """
    merged: np.ndarray = np.full((len(images), classes, 4), np.nan)
    empty = np.zeros((0, classes, 4)), np.zeros((0, classes))  # of an image that can't be read now
    joined = [
        tuple(np.concatenate(arrays) for arrays in zip(empty, *parts, strict=True))
        for parts in images
    ]
    rows = [row for row, (boxes, _) in enumerate(joined) if len(boxes)]
    problems = [
        (joined[row][0][:, k], joined[row][1][:, k]) for row in rows for k in range(classes)
    ]
    merged[rows] = most_trusted(problems).reshape(len(rows), classes, 4)
    return merged


def _merged(
    problems: Sequence[tuple[np.ndarray, np.ndarray]], threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merged boxes (m, p, 4) of m problems, their confidences (m, p), and which exist, (m, p)."""
    m, p = len(problems), max(len(boxes) for boxes, _ in problems)
    boxes, sums = np.zeros((m, p, 4)), np.zeros((m, p))
    counts: np.ndarray = np.zeros((m, p))  # of boxes in a merged one; 0 where there is none
    for k, (own, trust) in enumerate(problems):
        order = np.lexsort((*own.T, -trust))
        boxes[k, : len(own)], sums[k, : len(own)] = own[order], trust[order]
        counts[k, : len(own)] = 1
    scores = match_scores(boxes[:, :, None], boxes[:, None])
    present = counts > 0
    later = np.arange(p) > np.arange(p)[:, None]
    scores[~(present[:, :, None] & present[:, None] & later)] = np.inf
    nearest, lowest = scores.argmin(axis=-1), scores.min(axis=-1)  # of each box the best match
    active = np.arange(m)
    while len(active):
        i = lowest[active].argmin(axis=1)
        matching = lowest[active, i] <= threshold
        active, i = active[matching], i[matching]
        j = nearest[active, i]
        own, theirs = counts[active, i][:, None], counts[active, j][:, None]
        boxes[active, i] = (own * boxes[active, i] + theirs * boxes[active, j]) / (own + theirs)
        counts[active, i], counts[active, j] = (own + theirs)[:, 0], 0
        sums[active, i] += sums[active, j]
        row = match_scores(boxes[active, i][:, None], boxes[active])
        row[counts[active] == 0] = np.inf
        columns = np.arange(p)
        scores[active, i] = np.where(columns > i[:, None], row, np.inf)
        scores[active, :, i] = np.where(columns < i[:, None], row, np.inf)
        scores[active, j] = scores[active, :, j] = np.inf
        _update_matches(scores, nearest, lowest, active, i, j)
    return boxes, sums, counts > 0


def _update_matches(
    scores: np.ndarray,
    nearest: np.ndarray,
    lowest: np.ndarray,
    active: np.ndarray,
    i: np.ndarray,
    j: np.ndarray,
) -> None:
    """Updates best matches in the problems `active`, whose boxes i changed and boxes j are gone."""
    column, near, low = scores[active, :, i], nearest[active], lowest[active]
    better = (column < low) | ((column == low) & (i[:, None] < near))
    nearest[active] = np.where(better, i[:, None], near)
    lowest[active] = np.where(better, column, low)
    stale = (near == i[:, None]) | (near == j[:, None])
    stale[np.arange(len(active)), i] = stale[np.arange(len(active)), j] = True
    problem, row = np.nonzero(stale)
    problem = active[problem]
    nearest[problem, row] = scores[problem, row].argmin(axis=1)
    lowest[problem, row] = scores[problem, row, nearest[problem, row]]

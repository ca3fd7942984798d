"""Greedy merging of boxes (Sermanet et al. 2014, OverFeat, section 4.2).

Of all boxes of a class the two that match best are replaced by their average, again and again,
until no two match well enough. What is left has the sum of the confidences of the boxes in it, and
the most confident box is the answer. The paper matches by "the sum of the distance between centers
of the two bounding boxes and the intersection area of the boxes", and prints neither units nor the
threshold. Here the distance is in units of the boxes' mean side, the square root of their mean
area, and the intersection counts as one minus its share of the union, so that a smaller score is a
better match. An average is over all boxes that were merged into one.
"""

import numpy as np

from input_pipeline.boxes import areas, iou

THRESHOLD = 1.0  # two boxes with a larger match score are not merged


def match_scores(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How badly boxes (..., 4) match others, broadcast -> (...,); 0 where they are the same."""
    centres, theirs = ((b[..., :2] + b[..., 2:]) / 2 for b in (boxes, others))
    apart = np.sqrt(np.square(centres - theirs).sum(axis=-1))
    side = np.sqrt((areas(boxes) + areas(others)) / 2)
    distance = np.divide(apart, side, out=np.full_like(apart, np.inf), where=side > 0)
    return distance + 1 - iou(boxes, others)


def merge(
    boxes: np.ndarray, confidences: np.ndarray, threshold: float = THRESHOLD
) -> tuple[np.ndarray, np.ndarray]:
    """The merged boxes of one class, (m, 4), and their confidences, (m,): the highest first.

    boxes: (n, 4) float; confidences: (n,). The order in which they come does not matter.
    """
    order = np.lexsort((*boxes.T, -confidences))
    boxes, sums = boxes[order].astype(np.float64), confidences[order].astype(np.float64)
    counts: np.ndarray = np.ones(len(boxes))
    scores = match_scores(boxes[:, None], boxes[None])
    scores[np.tril_indices(len(boxes))] = np.inf
    while len(boxes) > 1:
        i, j = divmod(int(scores.argmin()), len(boxes))
        if scores[i, j] > threshold:
            break
        total = counts[i] + counts[j]
        boxes[i] = (counts[i] * boxes[i] + counts[j] * boxes[j]) / total
        counts[i], sums[i] = total, sums[i] + sums[j]
        boxes, sums, counts = (np.delete(array, j, axis=0) for array in (boxes, sums, counts))
        scores = np.delete(np.delete(scores, j, axis=0), j, axis=1)
        row = match_scores(boxes[i], boxes)
        scores[i, i + 1 :], scores[:i, i] = row[i + 1 :], row[:i]
    order = np.argsort(-sums, kind="stable")
    return boxes[order], sums[order]

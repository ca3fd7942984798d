"""Boxes around the objects of a set's images, and around those objects in views of the images.

A box is (left, top, right, bottom), float, in pixels. Edges lie between pixels: the whole of an
image of height h and width w is (0, 0, w, h).
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from input_pipeline.crops import Placement


@dataclasses.dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of n images, any number of each; all are of the class of the image's label."""

    starts: np.ndarray  # (n + 1,) int64: image i has the boxes from starts[i] to starts[i + 1]
    edges: np.ndarray  # (m, 4) float32: left, top, right, bottom
    # (n, 2) int32: height and width of each image by its annotation; 0 where that has none.
    sizes: np.ndarray

    @classmethod
    def of(cls, arrays: Sequence[np.ndarray], sizes: np.ndarray | None = None) -> "Boxes":
        """Boxes from an array (k, 4) for each image. sizes: as the field; 0 by default."""
        counts = [len(boxes) for boxes in arrays]
        edges = np.concatenate([np.zeros((0, 4), np.float32), *arrays]).astype(np.float32)
        if sizes is None:
            sizes = np.zeros((len(arrays), 2), np.int32)
        return cls(np.cumsum([0, *counts], dtype=np.int64), edges, np.asarray(sizes, np.int32))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def counts(self) -> np.ndarray:
        """(n,) int64: how many boxes each image has."""
        return np.diff(self.starts)

    def take(self, indices: np.ndarray) -> "Boxes":
        """The boxes of the images at `indices`, in that order."""
        arrays = [self.edges[self.starts[i] : self.starts[i + 1]] for i in indices]
        return Boxes.of(arrays, self.sizes[indices])

    def inside(self, i: int, height: int, width: int) -> np.ndarray:
        """The boxes of image i, (k, 4) float64, in pixels of the image's own size.

        They are clipped to the image, as an annotation without its size could not be before.
        """
        boxes: np.ndarray = self.edges[self.starts[i] : self.starts[i + 1]].astype(np.float64)
        rows, columns = self.sizes[i].tolist()
        if rows and columns and (rows, columns) != (height, width):
            boxes *= np.array([width / columns, height / rows] * 2)
        return boxes.clip(0, [width, height] * 2)

    def padded(self, count: int, height: int, width: int) -> np.ndarray:
        """(n, count, 4) float32, in pixels of images of this size; NaN where an image has fewer."""
        padded: np.ndarray = np.full((len(self), count, 4), np.nan, np.float32)
        for i, n in enumerate(self.counts):
            padded[i, :n] = self.inside(i, height, width)[:count]
        return padded

    def digest(self) -> bytes:
        """A hash of every box, by image."""
        digest = hashlib.sha256(b"%d\0" % len(self))
        for values, kind in ((self.starts, "<i8"), (self.edges, "<f4"), (self.sizes, "<i4")):
            digest.update(np.ascontiguousarray(values.astype(kind)))
        return digest.digest()


def in_view(boxes: np.ndarray, place: Placement) -> np.ndarray:
    """Boxes (..., 4) of the stored image in the pixels of a view of it.

    They are not clipped to the view: an object that the view shows in part has its whole box.
    """
    box, (rows, columns) = place.box, place.size
    scale = np.array([columns / box.width, rows / box.height] * 2)
    return (boxes - np.array([box.left, box.top] * 2)) * scale


def in_image(boxes: np.ndarray, place: Placement) -> np.ndarray:
    """The inverse of `in_view`: boxes (..., 4) of a view in the pixels of the stored image."""
    box, (rows, columns) = place.box, place.size
    scale = np.array([box.width / columns, box.height / rows] * 2)
    return boxes * scale + np.array([box.left, box.top] * 2)


def areas(boxes: np.ndarray) -> np.ndarray:
    """(..., 4) -> (...,); 0 where a box has no inside."""
    # Side by side: NumPy is slow along an axis of two.
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return np.maximum(width, 0) * np.maximum(height, 0)


def intersections(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The area that two boxes share: (..., 4) twice, broadcast -> (...,)."""
    left, top = (np.maximum(boxes[..., k], others[..., k]) for k in (0, 1))
    right, bottom = (np.minimum(boxes[..., k], others[..., k]) for k in (2, 3))
    return np.maximum(right - left, 0) * np.maximum(bottom - top, 0)


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union: (..., 4) twice, broadcast -> (...,) in [0, 1]; 0 of empty boxes."""
    shared = intersections(boxes, others)
    union = areas(boxes) + areas(others) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def shown_share(boxes: np.ndarray, side_hw: tuple[int, int]) -> np.ndarray:
    """The share of each box, (..., 4) in a view's pixels, that lies in the view: (...,)."""
    height, width = side_hw
    box_areas = areas(boxes)
    shown_areas = intersections(boxes, np.array([0.0, 0.0, width, height]))
    return np.divide(shown_areas, box_areas, out=np.zeros_like(box_areas), where=box_areas > 0)

"""OpenCV's INTER_LINEAR, with which Caffe's tools scaled images.

Each output pixel is mixed of its two neighbours along each axis, however much the image shrinks:
unlike Pillow's BILINEAR, the triangle is not widened. Source: OpenCV's resize.cpp (`resizeLinear_`
in modules/imgproc/src). OpenCV rounds its weights to 11 bits: at most one grey level of difference.
"""

import numpy as np

from input_pipeline.crops import Box


def resample(image: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """`box` of an image (H, W, C) uint8 at `size` (height, width): (*size, C) uint8."""
    low, high, share = _neighbours(box.top, box.height, size[0], image.shape[0])
    rows = _interpolated(image[low], image[high], share[:, None, None])
    low, high, share = _neighbours(box.left, box.width, size[1], image.shape[1])
    shown = _interpolated(rows[:, low], rows[:, high], share[:, None])
    return np.rint(shown).astype(np.uint8)


def _neighbours(
    start: float, length: float, pixels: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the pixel before, the pixel after, the share of the latter) of each output pixel."""
    position = start + (np.arange(pixels) + 0.5) * (length / pixels) - 0.5
    position = np.clip(position, 0, size - 1)
    low = np.floor(position).astype(np.int64)
    return low, np.minimum(low + 1, size - 1), (position - low).astype(np.float32)


def _interpolated(before: np.ndarray, after: np.ndarray, share: np.ndarray) -> np.ndarray:
    return before + share * (after.astype(np.float32) - before)

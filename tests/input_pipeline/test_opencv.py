"""OpenCV's bilinear kernel, against its formula written out pixel by pixel."""

import math

import numpy as np
import pytest

from input_pipeline import opencv
from input_pipeline.crops import Box


def slowly(image, height, width):
    """INTER_LINEAR as OpenCV documents it: source = (shown + 0.5) * ratio - 0.5, two neighbours."""
    rows, columns, channels = image.shape
    resampled = np.zeros((height, width, channels))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
            u = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = math.floor(v), math.floor(u)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            a, b = v - top, u - left
            resampled[y, x] = (
                (1 - a) * (1 - b) * image[top, left]
                + (1 - a) * b * image[top, right]
                + a * (1 - b) * image[bottom, left]
                + a * b * image[bottom, right]
            )
    return resampled


@pytest.mark.parametrize("size", [(7, 5), (20, 31), (11, 60), (40, 62)])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_pixel_is_mixed_of_its_neighbours_alone(size, channels):
    image = np.random.default_rng(0).integers(0, 256, (20, 31, channels), np.uint8)
    resampled = opencv.resample(image, Box(0, 0, 20, 31), size)
    assert resampled.dtype == np.uint8
    assert np.abs(resampled - slowly(image, *size)).max() <= 0.5 + 1e-3


def test_a_part_is_what_the_whole_image_shows_there():
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    resampled = opencv.resample(image, Box(0, 0, 40, 60), (16, 16))
    rows, columns = 40 / 16, 60 / 16
    part = opencv.resample(image, Box(3 * rows, 2 * columns, 10 * rows, 9 * columns), (10, 9))
    np.testing.assert_array_equal(part, resampled[3:13, 2:11])


def test_halving_is_the_mean_of_two_by_two():
    image = np.random.default_rng(2).integers(0, 256, (8, 12, 3), np.uint8)
    halved = opencv.resample(image, Box(0, 0, 8, 12), (4, 6))
    means = image.reshape(4, 2, 6, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved - means).max() <= 0.5

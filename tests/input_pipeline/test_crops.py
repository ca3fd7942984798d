"""The geometry of views, against the papers' numbers and Pillow's."""

import pytest
from PIL import Image, ImageOps

from input_pipeline import crops


@pytest.mark.parametrize(
    ("length", "crop", "expected"),
    [(224, 32, 32), (256, 32, 37), (384, 32, 55), (512, 32, 73), (288, 32, 41), (256, 224, 256)],
)
def test_vgg_scales_keep_their_ratio_to_the_crop(length, crop, expected):
    assert crops.in_ratio(length, crop) == expected
    assert abs(expected - length * crop / 224) <= 0.5


def test_cifar_padding_keeps_its_ratio_to_the_crop():
    assert crops.in_ratio(4, 32, crops.CIFAR_CROP) == 4
    assert crops.in_ratio(4, 16, crops.CIFAR_CROP) == 2


@pytest.mark.parametrize("size", [(8, 8), (375, 500), (500, 333)])
@pytest.mark.parametrize("short_side", [8, 256, 511])
def test_scaling_keeps_the_shape_and_sets_the_short_side(size, short_side):
    height, width = crops.scaled_size(*size, short_side)
    assert min(height, width) == short_side
    assert abs(height * size[1] / size[0] - width) <= 0.5 * max(size) / min(size) + 1e-9


def test_scaled_size_is_pillows_cover():
    image = ImageOps.cover(Image.new("L", (500, 375)), (256, 256))
    assert crops.scaled_size(375, 500, 256) == (image.height, image.width)


@pytest.mark.parametrize(("size", "crop"), [(256, 224), (37, 32), (32, 32), (9, 4)])
def test_centred_crop_leaves_the_same_border_on_both_sides(size, crop):
    before = crops.centre_offset(size, crop)
    after = size - crop - before
    assert after - before in (0, 1)

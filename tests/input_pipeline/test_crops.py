"""The geometry of views, against the papers' numbers and Pillow's."""

from collections import Counter

import numpy as np
import pytest

from input_pipeline import DataError, crops, order


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


@pytest.mark.parametrize("size", [(8, 8), (375, 500), (500, 333), (349, 500), (500, 349)])
@pytest.mark.parametrize("short_side", [8, 256, 511])
def test_scaling_sets_the_short_side_and_rounds_the_long_one_down(size, short_side):
    height, width = crops.scaled_size(*size, short_side)
    assert min(height, width) == short_side
    # torchvision/transforms/functional.py, `_compute_resized_output_size`.
    assert max(height, width) == int(short_side * max(size) / min(size))


@pytest.mark.parametrize(
    ("size", "crop", "expected"),
    [(256, 224, 16), (37, 32, 2), (39, 32, 4), (32, 32, 0), (9, 4, 2), (366, 224, 71), (35, 32, 2)],
)
def test_a_centred_crop_lies_at_the_nearest_pixel_halves_to_even(size, crop, expected):
    # torchvision's `center_crop`: int(round((size - crop) / 2.0)).
    assert crops.centre_offset(size, crop) == expected


# -------------------------------------------------------------------------- training views

SIZES = [(375, 500), (500, 333), (224, 224), (61, 2900), (20, 17)]


def drawn(view, size, count=300):
    return [view.place(*size, order.words(3, 0, i, view.WORDS)) for i in range(count)]


def inside(box, size):
    return (
        box.top >= 0
        and box.left >= 0
        and box.top + box.height <= size[0] + 1e-6
        and box.left + box.width <= size[1] + 1e-6
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "view",
    [
        crops.ScaleView(crop=224, S=(256, 512)),
        crops.SquareView(crop=224, S=256),
        crops.AreaView(crop=224),
    ],
    ids=lambda view: type(view).__name__,
)
def test_training_views_lie_inside_the_image(view, size):
    for place in drawn(view, size):
        assert inside(place.box, size)
        assert place.size == (224, 224)


def test_vgg_views_draw_every_scale_and_every_offset_of_it():
    view = crops.ScaleView(crop=4, S=(5, 7))
    places = drawn(view, (10, 20), 2000)
    counts = Counter((min(p.scaled), p.offset) for p in places)
    possible = [
        (S, (row, column)) for S in (5, 6, 7) for row in range(S - 3) for column in range(2 * S - 3)
    ]
    assert set(counts) == set(possible)
    by_scale = Counter(min(p.scaled) for p in places)
    assert all(abs(by_scale[S] - 2000 / 3) < 4 * (2000 * 2 / 9) ** 0.5 for S in (5, 6, 7))


def test_a_vgg_view_is_its_crop_of_the_scaled_image():
    for place in drawn(crops.ScaleView(crop=224, S=(256, 512)), (375, 500), 50):
        S = min(place.scaled)
        assert place.scaled == crops.scaled_size(375, 500, S)
        assert place.box.top == pytest.approx(place.offset[0] * 375 / place.scaled[0])
        assert place.box.width == pytest.approx(224 * 500 / place.scaled[1])


def test_alexnet_draws_every_place_in_the_central_square():
    # "extracting random 224x224 patches (and their horizontal reflections) from the 256x256
    # images": the paper counts 32 x 32 places and two mirrors ("a factor of 2048"), though
    # 33 x 33 places fit.
    places = drawn(crops.SquareView(crop=224, S=256), (256, 400), 20000)
    offsets = {p.offset for p in places}
    assert offsets == {(row, column) for row in range(33) for column in range(33)}
    for place in places[:50]:
        assert place.box == (place.offset[0], 72 + place.offset[1], 224, 224)


def test_googlenet_parts_have_the_papers_areas_and_aspects():
    size = (3750, 5000)
    places = drawn(crops.AreaView(crop=224), size, 3000)
    areas = np.array([p.box.height * p.box.width / (size[0] * size[1]) for p in places])
    aspects = np.array([p.box.width / p.box.height for p in places])
    assert areas.min() > 0.0799
    assert areas.max() <= 1.0
    assert aspects.min() > 0.7495
    assert aspects.max() < 1.334
    # Small parts always fit: uniform there. Both shapes are as likely, and all is reached.
    counts = np.histogram(areas[areas < 0.5], 6, (0.08, 0.5))[0]
    assert counts.max() < 1.35 * counts.min()
    small = aspects[areas < 0.4]
    assert abs((small > 1).mean() - 0.5) < 0.06
    tops = np.array([p.box.top / (size[0] - p.box.height) for p in places if p.box.height < 3700])
    assert tops.min() < 0.01
    assert tops.max() > 0.99
    assert abs(tops.mean() - 0.5) < 0.03


def test_an_image_too_slim_for_googlenets_parts_gives_the_largest_allowed():
    for place in drawn(crops.AreaView(crop=224, area=(0.9, 1.0)), (100, 1000), 20):
        assert (place.box.height, place.box.width) == (100, 133)
    for place in drawn(crops.AreaView(crop=224, area=(0.9, 1.0)), (1000, 100), 20):
        assert (place.box.height, place.box.width) == (133, 100)


# ------------------------------------------------------------------------------- test views


def test_ten_crops_are_the_corners_and_the_centre():
    places = crops.TenCropView(crop=224, Q=256).places(512, 512)
    assert [p.offset for p in places] == [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]
    assert places[1].box == (0, 64, 448, 448)
    assert crops.TenCropView.mirrored


def test_alexnets_ten_crops_lie_in_the_central_square():
    # "We first rescaled the image such that the shorter side was of length 256, and then cropped
    # out the central 256x256 patch"; "five 224x224 patches (the four corner patches and the center
    # patch)" are of that.
    view = crops.TenCropView(crop=224, Q=256, square=True)
    places = view.places(512, 800)
    assert [p.offset for p in places] == [(0, 72), (0, 104), (32, 72), (32, 104), (16, 88)]
    assert places[0].box == (0, 144, 448, 448)
    upright = view.places(800, 512)
    assert [p.offset for p in upright] == [(72, 0), (72, 32), (104, 0), (104, 32), (88, 16)]
    assert upright[0].scaled == (400, 256)


@pytest.mark.parametrize("size", [(300, 300), (375, 500), (500, 333), (61, 2900)])
def test_ten_crops_of_the_square_are_extremes_of_alexnets_training_crops(size):
    train = crops.SquareView(crop=224, S=257)
    boxes = [train.place(*size, words).box for words in ((0, 0), (0, 33), (33, 0), (33, 33))]
    places = crops.TenCropView(crop=224, Q=257, square=True).places(*size)
    assert [p.box for p in places[:4]] == boxes
    assert places[4].box == train.place(*size, (16, 16)).box


def test_vggs_grid_is_5_by_5_from_border_to_border():
    places = crops.GridView(crop=224, Q=256).places(256, 344)
    assert len(places) == 25
    assert sorted({p.offset[0] for p in places}) == [0, 8, 16, 24, 32]
    assert sorted({p.offset[1] for p in places}) == [0, 30, 60, 90, 120]
    assert places[1].offset == (0, 30)  # row by row
    # Over three scales and with mirrors: the 150 crops of section 3.2.
    assert 3 * 2 * len(places) == 150


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("Q", [224, 257, 259, 384])
def test_the_middle_of_vggs_grid_is_the_central_crop(size, Q):
    places = crops.GridView(crop=224, Q=Q).places(*size)
    assert places[12:13] == crops.CentreView(crop=224, Q=Q).places(*size)
    rows, columns = ([p.offset[axis] for p in places] for axis in (0, 1))
    for offsets, length in ((rows[::5], places[0].scaled[0]), (columns[:5], places[0].scaled[1])):
        assert (offsets[0], offsets[-1]) == (0, length - 224)
        assert np.ptp(np.diff(offsets)) <= 1  # as regular as whole pixels can be


@pytest.mark.parametrize("size", [(300, 400), (400, 300)])
def test_googlenet_tests_144_views(size):
    places = crops.MultiSquareView(crop=224).places(*size)
    assert 2 * len(places) == 144
    assert all(inside(p.box, size) for p in places)
    for k, Q in enumerate((256, 288, 320, 352)):
        scale = Q / 300
        of_scale = places[18 * k : 18 * (k + 1)]
        squares = [p.box for p in of_scale[5::6]]
        height, width = of_scale[5].scaled
        assert [b.height * height / size[0] for b in squares] == pytest.approx([Q] * 3)
        assert [b.width * width / size[1] for b in squares] == pytest.approx([Q] * 3)
        long = [max(b.top, b.left) for b in squares]
        assert long == pytest.approx([0, 50, 100], abs=1 / scale)
        first = [p.offset for p in of_scale[:5]]
        assert first == [p.offset for p in crops.TenCropView(crop=224, Q=Q).places(Q, Q)]


def test_the_whole_image_is_one_view_at_short_side_q():
    (place,) = crops.WholeView(Q=256).places(500, 375)
    assert place.size == place.scaled == (341, 256)
    assert place.box == (0, 0, 500, 375)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: crops.ScaleView(crop=224, S=(200, 300)),
        lambda: crops.ScaleView(crop=224, S=(512, 256)),
        lambda: crops.SquareView(crop=224, S=223),
        lambda: crops.AreaView(crop=224, area=(0.0, 1.0)),
        lambda: crops.AreaView(crop=224, aspect=(2.0, 1.0)),
        lambda: crops.TenCropView(crop=224, Q=200),
        lambda: crops.MultiSquareView(crop=300),
        lambda: crops.WholeView(Q=0),
    ],
)
def test_views_that_can_not_be_are_refused(wrong):
    with pytest.raises(DataError, match="expected"):
        wrong()

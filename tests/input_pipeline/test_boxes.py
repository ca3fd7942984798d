"""Boxes in images and views, beside the pipeline's own pixels and other code."""

import contextlib

import numpy as np
import pytest
from PIL import Image

from input_pipeline import boxes, crops, order, stream
from input_pipeline.boxes import Boxes
from tests.input_pipeline.encoded_images import Memory, encoded

RNG = np.random.default_rng(0)
SIZES = [(90, 130), (140, 100), (75, 75), (301, 64)]
RED, BLUE = 0, 2


def drawn(height, width, box):
    """A blue image with a red box; edges between pixels."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., BLUE] = 255
    left, top, right, bottom = box
    image[top:bottom, left:right] = (255, 0, 0)
    return image


def edges(view):
    """Where the red box lies in a view: the places at which red passes the half of its strength.

    Measured along the strongest line of each axis; inf where the box leaves the view there.
    """
    spans = []
    for red in (view[..., RED].max(axis=0), view[..., RED].max(axis=1)):
        strong = np.flatnonzero(red >= 128)
        if not len(strong):
            return None
        first, last = strong[0], strong[-1]
        low, high = -np.inf, np.inf
        if first:  # between two pixels' centres
            a, b = float(red[first - 1]), float(red[first])
            low = first - 0.5 + (127.5 - a) / (b - a)
        if last < len(red) - 1:
            a, b = float(red[last]), float(red[last + 1])
            high = last + 0.5 + (a - 127.5) / (a - b)
        spans.append((low, high))
    (left, right), (top, bottom) = spans
    return np.array([left, top, right, bottom])


def assert_lies_there(view, box, case):
    """Within half a pixel; where the box leaves the view, its edge does too."""
    height, width = view.shape[:2]
    inside = box.clip(0, [width, height, width, height])
    if (inside[2:] - inside[:2]).min() < 3:
        return False  # too little of it is shown to be measured
    measured = edges(view)
    assert measured is not None, case
    outside = np.isinf(measured)
    limits = np.array([0, 0, width, height])
    np.testing.assert_allclose(inside[~outside], measured[~outside], atol=0.5, err_msg=str(case))
    np.testing.assert_allclose(inside[outside], limits[outside], atol=0.5, err_msg=str(case))
    return True


def random_box(height, width):
    left, right = sorted(RNG.choice(width + 1, 2, replace=False).tolist())
    top, bottom = sorted(RNG.choice(height + 1, 2, replace=False).tolist())
    return left, top, right, bottom


VIEWS = [
    crops.ScaleView(crop=64, S=(64, 160)),
    crops.SquareView(crop=64, S=80),
    crops.AreaView(crop=64),
]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("view", VIEWS, ids=lambda view: type(view).__name__)
def test_boxes_follow_training_views_and_their_mirrors(view, kind):
    """Through the stream's own views, of JPEGs' windows and of images that are decoded whole."""
    cases = [(size, random_box(*size)) for size in SIZES * 10]
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    source = Memory(
        [encoded(Image.fromarray(drawn(*size, box)), kind, **options) for size, box in cases]
    )
    viewer, measured = stream.training_viewer(source, view, seed=3), 0
    for i, (size, box) in enumerate(cases):
        (pixels,), _ = viewer.example(i, 1)
        (place,) = viewer.places(*size, i, 1)
        assert place == view.place(*size, order.words(3, 1, i, view.WORDS))
        placed = boxes.in_view(np.array([box], float), place)
        measured += assert_lies_there(pixels, placed[0], (size, box, place))
        left, top, right, bottom = placed[0]
        mirror = np.array([view.crop - right, top, view.crop - left, bottom])
        measured += assert_lies_there(pixels[:, ::-1], mirror, (size, box, place))
        np.testing.assert_allclose(boxes.in_image(placed, place), [box], atol=1e-9)
    assert measured > 30


TEST_VIEWS = [
    crops.CentreView(crop=64, Q=80),
    crops.TenCropView(crop=64, Q=72, square=True),
    crops.GridView(crop=64, Q=90, warp=True),
    crops.MultiSquareView(crop=64, scales=(70, 96)),
    crops.WholeView(Q=70),
]


@pytest.mark.parametrize("view", TEST_VIEWS, ids=lambda view: type(view).__name__)
def test_boxes_follow_test_views(view):
    cases = [(size, random_box(*size)) for size in SIZES * 3]
    source = Memory([encoded(Image.fromarray(drawn(*size, box)), "PNG") for size, box in cases])
    measured = 0
    with contextlib.closing(stream.eval_stream(source, view, batch=1)) as batches:
        for (size, box), batch in zip(cases, batches, strict=True):
            for pixels, place in zip(batch.views[0], view.places(*size), strict=True):
                placed = boxes.in_view(np.array(box, float), place)
                measured += assert_lies_there(pixels, placed, (size, box, place))
                np.testing.assert_allclose(boxes.in_image(placed, place), box, atol=1e-9)
    assert measured >= 6


def test_an_image_of_another_size_has_its_boxes_scaled():
    """By Pillow's own reduction of the image that the box was drawn in."""
    measured = 0
    for size in SIZES * 3:
        box = random_box(*size)
        height, width = 50, 70
        scaled = Boxes.of([np.array([box])], np.array([size])).inside(0, height, width)
        image = Image.fromarray(drawn(*size, box)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        measured += assert_lies_there(np.asarray(image), scaled[0], (size, box))
    assert measured >= 3


def test_shares_of_an_image_are_exact_at_any_size():
    shares = np.array([[1 / 3, 0.25, 0.5, 1.0]])
    placed = Boxes.of([shares], np.array([(1, 1)])).inside(0, 40, 90)
    assert placed.tolist() == [[float(np.float32(1 / 3)) * 90, 10, 45, 40]]


def mask(box, side=40):
    image = np.zeros((side, side), bool)
    left, top, right, bottom = box
    image[top:bottom, left:right] = True
    return image


PAIRS = [(random_box(40, 40), random_box(40, 40)) for _ in range(300)]
PAIRS += [
    ((0, 0, 4, 4), (0, 0, 4, 4)),  # one and the same
    ((0, 0, 4, 4), (4, 0, 8, 4)),  # they touch
    ((0, 0, 4, 4), (9, 9, 12, 12)),  # apart both ways
    ((0, 0, 40, 40), (10, 10, 11, 12)),  # one in the other
]


def test_overlaps_are_counts_of_pixels():
    for first, second in PAIRS:
        a, b = mask(first), mask(second)
        overlap = boxes.iou(np.array(first, float), np.array(second, float))
        assert overlap == pytest.approx((a & b).sum() / (a | b).sum(), abs=1e-12)
        assert boxes.intersections(np.array(first), np.array(second)) == (a & b).sum()
        assert boxes.areas(np.array(first)) == a.sum()
        view = mask(first)[5:25, 3:33]  # one that shows a part
        placed = np.array(first, float) - [3, 5, 3, 5]
        assert boxes.shown_share(placed, (20, 30)) == pytest.approx(view.sum() / a.sum(), abs=1e-12)


@pytest.mark.peers
def test_overlaps_are_torchvisions():
    torch = pytest.importorskip("torch")
    box_iou = pytest.importorskip("torchvision").ops.box_iou
    first, second = (
        np.array(part, np.float64) + RNG.random((len(PAIRS), 4)) / 4
        for part in zip(*PAIRS, strict=True)
    )
    expected = box_iou(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    np.testing.assert_allclose(boxes.iou(first[:, None], second), expected, atol=1e-12)


def test_an_empty_box_overlaps_nothing():
    empty, turned = np.array([3.0, 3, 3, 9]), np.array([9.0, 9, 1, 1])
    for box in (empty, turned):
        assert boxes.areas(box) == 0
        assert boxes.iou(box, box) == 0
        assert boxes.iou(box, np.array([0.0, 0, 10, 10])) == 0
        assert boxes.shown_share(box, (10, 10)) == 0


def test_padding_and_taking_keep_each_images_own():
    rows = [random_box(50, 60) for _ in range(5)]
    sizes = np.array([(50, 60), (100, 120), (0, 0)])
    objects = Boxes.of([np.array(rows[:2]), np.array(rows[2:]), np.zeros((0, 4))], sizes)
    assert (len(objects), objects.counts.tolist()) == (3, [2, 3, 0])
    padded = objects.padded(2, 50, 60)
    assert padded[0].tolist() == [list(row) for row in rows[:2]]
    assert padded[1].tolist() == (np.array(rows[2:4], float) / 2).tolist()
    assert np.isnan(padded[2]).all()
    reordered = objects.take(np.array([2, 1, 1]))
    assert reordered.counts.tolist() == [0, 3, 3]
    assert reordered.sizes.tolist() == [[0, 0], [100, 120], [100, 120]]
    assert reordered.inside(2, 100, 120).tolist() == [list(row) for row in rows[2:]]


def test_every_box_and_whose_it_is_tells_sets_apart():
    rows = np.array([random_box(50, 60) for _ in range(3)], np.float32)
    sets = [
        Boxes.of([rows[:2], rows[2:]]),
        Boxes.of([rows[:1], rows[1:]]),
        Boxes.of([rows[:2], rows[2:] + np.float32(1e-3)]),
        Boxes.of([rows[:2], rows[2:], rows[:0]]),
        Boxes.of([rows[:2], rows[2:]], np.array([(0, 0), (50, 60)])),
    ]
    assert len({objects.digest() for objects in sets}) == len(sets)
    assert sets[0].digest() == Boxes.of([rows[:2].copy(), rows[2:].copy()]).digest()


def test_boxes_that_leave_an_image_of_unknown_size_are_cut_at_its_border():
    objects = Boxes.of([np.array([[10.0, 20, 130, 90], [0, 0, 40, 30], [105, 5, 120, 9]])])
    cut = [[10, 20, 100, 80], [0, 0, 40, 30], [100, 5, 100, 9]]
    assert objects.inside(0, 80, 100).tolist() == cut

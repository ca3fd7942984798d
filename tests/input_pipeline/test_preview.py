"""The contact sheet: its views are the pipeline's own, and its boxes lie where these are."""

import contextlib

import jax
import numpy as np
import pytest
from PIL import Image

from input_pipeline import DataError, colour, crops, order, resident
from input_pipeline.boxes import Boxes
from input_pipeline.sources import open_set
from input_pipeline.stream import Stream, eval_stream
from input_pipeline.tools import preview

SEED, EPOCHS = 5, 3
PLAIN = preview.Colours("none", None, mirror=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of three classes of four images; the third of the first can't be read."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("ant", "bee", "cat"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(4):
                height, width = random.integers(60, 200, 2)
                low = random.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                picture = Image.fromarray(low).resize((int(width), int(height)))
                picture.save(folder / f"{i}.jpg", quality=95)
    (root / "train" / "ant" / "2.jpg").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def images(root):
    return open_set("folder", root)


def cut(sheet: preview.Sheet, area: preview.Area) -> np.ndarray:
    box = (area.left, area.top, area.left + area.width, area.top + area.height)
    return np.asarray(sheet.picture.crop(box))


def streamed(images, view):
    """The stream's batches of one epoch each, and {(index, epoch): view}."""
    batches, views = [], {}
    with Stream(images.train, view, seed=SEED, batch=len(images.train)) as stream:
        for _ in range(EPOCHS):
            batch = next(stream)
            batches.append(batch)
            for k, (index, epoch) in enumerate(zip(batch.indices, batch.epochs, strict=True)):
                views[int(index), int(epoch)] = batch.images[k]
    return batches, views


VIEWS = [
    crops.ScaleView(crop=160, S=(160, 256)),
    crops.SquareView(crop=96, S=128),
    crops.AreaView(crop=128),
]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: type(view).__name__)
def test_training_views_on_the_sheet_are_the_streams(images, view):
    _, expected = streamed(images, view)
    rows = preview.views_of_training(
        images, "train", view, PLAIN, seed=SEED, epochs=EPOCHS, count=4
    )
    sheet = preview.sheet(rows, "title", "subtitle")
    assert len(rows) == 4
    for row, areas in zip(rows, sheet.views, strict=True):
        assert len(areas) == EPOCHS
        for epoch, area in enumerate(areas):
            zoom = int(sheet.zoom)
            shown = cut(sheet, area)[::zoom, ::zoom]
            np.testing.assert_array_equal(shown, expected[row.index, epoch])


def test_colours_and_mirrors_are_what_training_makes_of_a_batch(images):
    view = VIEWS[0]
    colours = preview.fit_colours("photometric+pca_public", images, view, mirror=True)
    rows = preview.views_of_training(
        images, "train", view, colours, seed=SEED, epochs=EPOCHS, count=12
    )
    # All examples of an epoch at once, in the stream's order.
    expected, flips = {}, set()
    recolour = jax.jit(lambda x, keys: colour.recolour(x, keys, colours.kind, colours.constants))
    for batch in streamed(images, view)[0]:
        keys = jax.vmap(resident.view_key, (None, 0, 0))(SEED, batch.epochs, batch.indices)
        x = recolour(batch.images, keys)
        mirrored = np.asarray(colour.mirror(x, keys))
        for k, (index, epoch) in enumerate(zip(batch.indices, batch.epochs, strict=True)):
            flips.add((int(index), int(epoch), bool((mirrored[k] != np.asarray(x[k])).any())))
            expected[int(index), int(epoch)] = np.clip(np.rint(mirrored[k]), 0, 255)
    sheet = preview.sheet(rows, "title", "subtitle")
    for row, areas in zip(rows, sheet.views, strict=True):
        for epoch, area in enumerate(areas):
            # The device may sum a mean in another order for another batch.
            off = np.abs(cut(sheet, area).astype(int) - expected[row.index, epoch])
            assert off.max() <= 1
            assert (off > 0).mean() < 1e-3
            says_mirrored = "mirrored" in row.tiles[epoch].captions[0]
            assert (row.index, epoch, says_mirrored) in flips


@pytest.mark.parametrize(
    ("view", "zoom"),
    [
        (crops.CentreView(crop=96, Q=128), 1),
        (crops.TenCropView(crop=224, Q=256), 1),
        (crops.GridView(crop=224, Q=256), 1 / 2),
        (crops.MultiSquareView(crop=80, scales=(90, 110, 130, 150)), 1),
        (crops.WholeView(Q=90), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_test_views_on_the_sheet_are_the_evaluations(images, view, zoom):
    expected = {}
    with contextlib.closing(eval_stream(images.test, view, batch=5)) as batches:
        for batch in batches:
            for index, views in zip(batch.indices[batch.mask], batch.views, strict=False):
                expected[int(index)] = views
    rows = preview.views_of_test(images, "test", view, seed=SEED, count=2)
    sheet = preview.sheet(rows, "title", "subtitle")
    assert sheet.zoom == zoom
    for row, areas in zip(rows, sheet.views, strict=True):
        assert len(areas) == len(view.places(100, 100))
        for area, pixels in zip(areas, expected[row.index], strict=True):
            reduced = np.asarray(Image.fromarray(pixels).reduce(round(1 / zoom)))
            np.testing.assert_array_equal(cut(sheet, area), reduced)


def test_boxes_lie_where_the_placement_says(images):
    view = crops.ScaleView(crop=160, S=(200, 300))
    rows = preview.views_of_training(images, "train", view, PLAIN, seed=SEED, epochs=1, count=3)
    sheet = preview.sheet(rows, "title", "subtitle")
    (ink,) = preview.colours(1)
    for row, area in zip(rows, sheet.stored, strict=True):
        height, width = row.image.shape[:2]
        words = order.words(SEED, 0, row.index, view.WORDS)
        box = view.place(height, width, words).box
        assert area.width / width == pytest.approx(area.height / height, rel=0.02)
        drawn = (cut(sheet, area) == ink).all(axis=2)
        # Two sides of the frame in full; on the others lies the number.
        bottom, right = (np.flatnonzero(drawn.mean(axis=axis) > 0.3)[-1] for axis in (1, 0))
        assert bottom + 1 == pytest.approx((box.top + box.height) * area.height / height, abs=1)
        assert right + 1 == pytest.approx((box.left + box.width) * area.width / width, abs=1)
        rows_drawn, columns_drawn = np.nonzero(drawn)
        assert rows_drawn.min() == pytest.approx(box.top * area.height / height, abs=1)
        assert columns_drawn.min() == pytest.approx(box.left * area.width / width, abs=1)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: type(view).__name__)
def test_boxes_of_objects_are_drawn_around_them(tmp_path, view):
    """Red ones in blue images, whose sides are where lines are, in mirrored views too."""
    random, edges = np.random.default_rng(1), []
    for k in range(6):
        height, width = random.integers(100, 200, 2).tolist()
        top, left = random.integers(10, 40, 2).tolist()
        image = np.zeros((height, width, 3), np.uint8)
        image[..., 2] = 255
        image[top : top + 50, left : left + 40] = (255, 0, 0)
        for part in ("train", "val"):
            folder = tmp_path / part / "ab"[k % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{k // 2}.png")
        edges.append(np.array([[left, top, left + 40, top + 50]]))
    boxes = Boxes.of([edges[k] for k in (0, 2, 4, 1, 3, 5)])
    images = open_set("folder", tmp_path)
    colours = preview.Colours("none", None, mirror=True)
    rows = preview.views_of_training(
        images, "train", view, colours, seed=SEED, epochs=4, count=6, boxes=boxes
    )
    rows += preview.views_of_test(
        images, "test", crops.CentreView(crop=90, Q=100), seed=SEED, count=6, boxes=boxes
    )
    sheet, checked = preview.sheet(rows, "title", "subtitle"), 0
    for row, areas in zip(rows, sheet.views, strict=True):
        for tile, area in zip(row.tiles, areas, strict=True):
            zoom = area.width // tile.pixels.shape[1]
            line = (cut(sheet, area) == preview.OBJECT).all(axis=2)
            red = np.kron(tile.pixels[..., 0] > 127, np.ones((zoom, zoom))) > 0
            for seen_line, seen_red in ((line, red), (line.T, red.T)):
                red_places = np.flatnonzero(seen_red.any(axis=0))
                if len(red_places) < 20 or seen_red.any(axis=1).sum() < 20:
                    continue
                across = seen_line[seen_red.any(axis=1)].mean(axis=0)
                last = seen_red.shape[1] - 1
                sides = [side for side in red_places[[0, -1]] if 0 < side < last]
                drawn = np.flatnonzero(across > 0.5)
                lines = (np.diff(drawn) > 1).sum() + 1 if len(drawn) else 0
                assert len(sides) <= lines <= 2  # a line may lie at the view's border
                for side in sides:
                    assert np.abs(drawn - side).min() <= 1.5 * zoom
                    checked += 1
    assert checked > 40
    mirrored = [tile.captions[0].endswith("mirrored") for row in rows for tile in row.tiles]
    assert 3 < sum(mirrored) < len(mirrored)


def test_the_stored_image_is_shown_whole(root, images):
    rows = preview.views_of_test(
        images, "test", crops.CentreView(crop=20, Q=200), seed=SEED, count=1
    )
    sheet = preview.sheet(rows, "title", "subtitle")
    with Image.open(root / rows[0].file) as stored:
        expected = np.asarray(stored.resize(sheet.stored[0][2:], Image.Resampling.BOX), int)
    off = np.abs(cut(sheet, sheet.stored[0]).astype(int) - expected).max(axis=2)
    assert (off <= 1).mean() > 0.9  # all but the box of the small view


def test_images_are_spread_over_the_classes_and_follow_from_the_seed(images):
    def chosen(seed, count):
        rows = preview.views_of_training(
            images, "train", VIEWS[2], PLAIN, seed=seed, epochs=1, count=count
        )
        return [(row.class_name, row.index) for row in rows]

    assert chosen(1, 3) == chosen(1, 3)
    assert len({tuple(chosen(seed, 3)) for seed in range(5)}) > 1
    for seed in range(5):
        assert [name for name, _ in chosen(seed, 3)] == ["ant", "bee", "cat"]


def test_an_unusable_image_is_named_and_another_of_its_class_shown(root, images):
    messages: list[str] = []
    with pytest.raises(StopIteration):
        next(iter(preview.usable(images.train, [[2]], messages.append)))
    assert len(messages) == 1
    assert "train/ant/2.jpg" in messages[0]
    ((index, image, label),) = preview.usable(images.train, [[2, 3]], messages.append)
    assert (index, label) == (3, 0)
    with Image.open(root / "train/ant/3.jpg") as stored:
        np.testing.assert_array_equal(image, np.asarray(stored))


def test_nothing_on_the_sheet_overlaps(images):
    rows = preview.views_of_test(images, "test", crops.GridView(crop=64, Q=80), seed=SEED, count=3)
    sheet = preview.sheet(rows, "A title" * 30, "about" * 100)
    areas = [*sheet.stored, *(area for views in sheet.views for area in views)]
    covered = np.zeros((sheet.picture.height, sheet.picture.width), int)
    for area in areas:
        covered[area.top : area.top + area.height, area.left : area.left + area.width] += 1
    assert covered.max() == 1
    assert covered.sum() == sum(area.width * area.height for area in areas)  # none is cut off
    lefts = {tuple(area.left for area in views) for views in sheet.views}
    assert len(lefts) == 1  # columns are aligned


def test_an_unknown_colour_is_refused(images):
    with pytest.raises(DataError, match="pca_public"):
        preview.fit_colours("sepia", images, VIEWS[0], mirror=True)


def test_fitted_colours_are_those_of_the_training_images(images):
    view = crops.ScaleView(crop=32, S=(32, 64))
    constants = preview.fit_colours("pca_fitted", images, view, mirror=True).constants
    squares = []
    with contextlib.closing(
        eval_stream(
            images.train.take(np.array([i for i in range(12) if i != 2])),
            crops.CentreView(crop=32, Q=32),
            batch=11,
        )
    ) as batches:
        for batch in batches:
            squares.append(batch.views.reshape(-1, 3).astype(np.float64))
    covariance = np.cov(np.concatenate(squares).T, bias=True)
    assert constants is not None
    np.testing.assert_allclose(constants @ constants.T, covariance, rtol=1e-4)  # E l E^T


def test_captions_say_what_was_drawn(images):
    view = crops.ScaleView(crop=20, S=(40, 60))
    (row,) = preview.views_of_training(images, "train", view, PLAIN, seed=SEED, epochs=2, count=1)
    for epoch, tile in enumerate(row.tiles):
        words = order.words(SEED, epoch, row.index, 3)
        offset = view.place(*row.image.shape[:2], words).offset
        assert tile.captions == (f"epoch {epoch}", f"S = {40 + words[0] % 21} at {offset}")
    part = crops.AreaView(crop=20, area=(0.25, 0.25), aspect=(0.5, 0.5))
    (row,) = preview.views_of_training(images, "train", part, PLAIN, seed=SEED, epochs=1, count=1)
    share, _, shape = row.tiles[0].captions[1].partition("% of the area, ")
    assert float(share) == pytest.approx(25, abs=2)
    assert float(shape.removesuffix(" : 1")) == pytest.approx(0.5, abs=0.02)
    (row,) = preview.views_of_test(
        images, "test", crops.TenCropView(crop=20, Q=50), seed=SEED, count=1
    )
    assert [tile.captions for tile in row.tiles[:1]] == [("Q = 50 at (0, 0)",)]

"""Networks that say boxes: boxes in views, loss, training, merging, and tests of whole images."""

import csv
import itertools
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import config, data
from experiments.localisation import localise, localised, merging, regression
from experiments.localisation.candidates import Localiser
from experiments.runs import checkpoints, runs
from experiments.testing import evaluate, prediction_store, predictions
from experiments.training import train
from input_pipeline import DataError, resident
from input_pipeline import boxes as geometry
from input_pipeline.boxes import Boxes

CLASSES = 3
ROOT = runs.Path(__file__).resolve().parents[2]


def mesh(devices=1):
    kind = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices], axis_types=kind)


def whole_mesh():
    """Of all processes' devices."""
    kind = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=kind)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def rectangles(n, height, width, *, channels=1, seed=0, smallest=8):
    """Black images with a white rectangle each, and where it is: (n, 4)."""
    rng = np.random.default_rng(seed)
    images, boxes = np.zeros((n, height, width, channels), np.uint8), []
    for image in images:
        rows, columns = (rng.integers(smallest, side // 2) for side in (height, width))
        top, left = rng.integers(0, height - rows), rng.integers(0, width - columns)
        image[top : top + rows, left : left + columns] = 255
        boxes.append((left, top, left + columns, top + rows))
    return images, np.array(boxes, np.float32)


def edges(view):
    """Where a view (h, w) of a white rectangle is half white, along the lines through its middle:
    (left, top, right, bottom), NaN where the view's border cuts it off."""
    crossings = []
    for axis in (0, 1):
        profile = view.max(axis=axis)
        white = np.flatnonzero(profile >= 128)
        first, last = white[0], white[-1]

        def crossing(inner, outer, profile=profile):
            if not 0 <= outer < len(profile):
                return np.nan
            share = (profile[inner] - 127.5) / (profile[inner] - profile[outer])
            return inner + 0.5 + share * (outer - inner)  # of pixels' centres

        crossings.append((crossing(first, first - 1), crossing(last, last + 1)))
    (left, right), (top, bottom) = crossings
    return np.array([left, top, right, bottom])


def assert_where_it_is_shown(views, boxes, least=10):
    compared = 0
    for view, box in zip(views, boxes, strict=True):
        if np.isfinite(box).all():
            expected = edges(view)
            visible = np.isfinite(expected)
            np.testing.assert_allclose(box[visible], expected[visible], atol=0.5)
            compared += visible.sum()
    assert compared >= least


# --------------------------------------------------------------------------- boxes in views


@pytest.mark.parametrize("mirror", [False, True])
def test_boxes_follow_views_of_images_on_the_device(mirror):
    images, image_boxes = rectangles(24, 40, 52)
    view = resident.TrainView(crop=32, S=(36, 56), pad=3, mirror=mirror)
    nothing = resident.Normalisation(np.zeros((), np.float32), np.ones((), np.float32))
    labels, indices = np.zeros(24, np.int32), np.arange(24, dtype=np.int32)
    arguments = (indices, np.full(24, 5, np.int32), 7, view)
    x, _ = resident.train_batch(resident.Images.of(images), labels, *arguments, nothing)
    padded = Boxes.of([box[None] for box in image_boxes]).padded(2, 40, 52)
    boxes = resident.train_boxes(padded, *arguments, (40, 52), 0.6)
    assert_where_it_is_shown(np.asarray(x)[..., 0], np.asarray(boxes))
    shown = geometry.shown_share(np.nan_to_num(np.asarray(boxes)), (32, 32))
    finite = np.isfinite(np.asarray(boxes)).all(axis=1)
    assert 0 < finite.sum() < 24
    assert (shown[finite] >= 0.6 - 1e-6).all()
    everything = resident.train_boxes(padded, *arguments, (40, 52), 0.0)
    assert np.isfinite(np.asarray(everything)).all(axis=1).sum() > finite.sum()


def test_one_of_several_boxes_is_drawn_anew_in_each_pass():
    two = np.array([[[2, 2, 20, 20], [20, 20, 38, 38], [np.nan] * 4]], np.float32)
    view = resident.TrainView(crop=40)
    indices = np.zeros(64, np.int32)
    drawn = resident.train_boxes(two, indices, np.arange(64), 0, view, (40, 40), 0.5)
    lefts = np.unique(np.asarray(drawn)[:, 0], return_counts=True)
    assert lefts[0].tolist() == [2, 20]
    assert lefts[1].min() > 16


def write_folder(root, n=12, size=(60, 80)):
    """A folder of two classes of PNGs, and a table of where the rectangles are."""
    table = []
    for part, count, seed in (("train", n, 0), ("val", 6, 1)):
        images, boxes = rectangles(2 * count, *size, channels=3, seed=seed, smallest=24)
        for i, (image, box) in enumerate(zip(images, boxes, strict=True)):
            name = ("ant", "bee")[i % 2]
            (root / part / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / part / name / f"{i}.png")
            table.append([f"{part}/{name}/{i}.png", name, *box.tolist()])
    with (root.parent / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "class", "x1", "y1", "x2", "y2"], *table])
    return root


@pytest.mark.parametrize(
    "view",
    [
        {"data.S": (40, 64)},
        {"data.S": (48, 48), "data.view": "square"},
        {"data.view": "area", "data.area": (0.3, 1.0)},
    ],
    ids=["scale", "square", "area"],
)
def test_boxes_follow_views_of_encoded_images(view, tmp_path):
    folder = write_folder(tmp_path / "images")
    base = config.base()
    base.model = config.model("vgg:A", width=0.125)
    c = config.override(
        base,
        {
            "data.name": "folder",
            "data.path": str(folder),
            "data.boxes": str(tmp_path / "boxes.csv"),
            "data.image_size": 40,
            "data.mirror": True,
            "data.normalise": "none",
            "data.holdout": 0.0,
            "train.batch_size": 8,
            "train.boxes": "single",
            **view,
        },
        "test",
    )
    prepared = data.prepare(c)
    assert prepared.counts["train"] == 24
    feed, views, boxes = prepared.feed(c, mesh(), 0), [], []
    for step in range(6):
        batch = jax.tree.map(lambda a: a[0], feed.next(range(step, step + 1)))
        x, _ = prepared.train_views(prepared.constants, np.int32(c.seed), batch)
        views.append(np.asarray(x)[..., 0])
        boxes.append(np.asarray(prepared.train_boxes(prepared.constants, np.int32(c.seed), batch)))
    feed.close()
    assert_where_it_is_shown(np.concatenate(views), np.concatenate(boxes))
    # The same of tests, which tell all boxes of an image.
    for batch in prepared.tested("test", mesh(), 8, prepared.centre, np.arange(12)):
        x = prepared.test_views(prepared.constants, batch.inputs, prepared.centre)[:, 0]
        assert_where_it_is_shown(
            np.asarray(x)[batch.mask][..., 0], batch.boxes[batch.mask][:, 0], 4
        )


# ------------------------------------------------------------------------ loss and overlap


def test_overlap_equals_counted_pixels():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 20, (200, 2, 2))
    both = np.concatenate([low, low + rng.integers(0, 20, (200, 2, 2))], axis=-1)
    counted = []
    for a, b in both.astype(int):
        masks = np.zeros((2, 40, 40), bool)
        for mask, (left, top, right, bottom) in zip(masks, (a, b), strict=True):
            mask[top:bottom, left:right] = True
        union = (masks[0] | masks[1]).sum()
        counted.append((masks[0] & masks[1]).sum() / union if union else 0)
    first, second = both[:, 0].astype(np.float64), both[:, 1].astype(np.float64)
    np.testing.assert_allclose(geometry.iou(first, second), counted, atol=1e-12)
    on_device = regression.iou(first.astype(np.float32), second.astype(np.float32))
    np.testing.assert_allclose(on_device, counted, atol=1e-6)


def test_outputs_are_centre_and_size_in_units_of_the_crop():
    outputs = jnp.array([[0.5, 0.25, 1.0, 0.5]])
    np.testing.assert_allclose(regression.boxes_of(outputs, None, 32), [[0, 0, 32, 16]])
    np.testing.assert_allclose(regression.targets_of(jnp.array([[0.0, 0, 32, 16]]), 32), outputs)
    by_class = jnp.arange(12.0)[None] / 12
    np.testing.assert_allclose(
        regression.for_class(by_class, jnp.array([2])), by_class[:, 8:], atol=0
    )


def test_loss_is_half_the_squared_distance_and_nothing_where_no_box_is_known():
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(4, 12)).astype(np.float32), np.array([0, 1, 2, 1])
    boxes = np.sort(rng.uniform(0, 32, (4, 2, 2)), axis=1).reshape(4, 4).astype(np.float32)
    boxes[3] = np.nan
    expected = []
    for out, label, (left, top, right, bottom) in zip(outputs, labels, boxes, strict=True):
        target = np.array([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]) / 32
        expected.append(0.5 * np.square(out[4 * label : 4 * label + 4] - target).sum())
    losses = regression.losses(outputs, labels, boxes, 32)
    np.testing.assert_allclose(losses, [*expected[:3], 0], rtol=1e-5)
    gradient = jax.grad(lambda o: regression.losses(o, labels, boxes, 32).sum())(outputs)
    assert np.isfinite(gradient).all()
    assert not gradient[3].any()
    assert np.isnan(regression.wrong(outputs, labels, boxes, 32)[3])


# --------------------------------------------------------------------------------- merging


def merged_plainly(boxes, confidences):
    """The same by lists and loops: [(box, confidence)], the most trusted first."""
    groups = [
        (list(map(float, box)), float(c), 1) for box, c in zip(boxes, confidences, strict=True)
    ]
    while len(groups) > 1:
        scores = {}
        for (i, (a, _, _)), (j, (b, _, _)) in itertools.combinations(enumerate(groups), 2):
            centres = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (a, b)]
            area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
            across = min(a[2], b[2]) - max(a[0], b[0])
            down = min(a[3], b[3]) - max(a[1], b[1])
            shared = max(across, 0) * max(down, 0)
            apart = sum((p - q) ** 2 for p, q in zip(*centres, strict=True)) ** 0.5
            side = (sum(area) / 2) ** 0.5
            scores[i, j] = apart / side + 1 - shared / (sum(area) - shared)
        i, j = min(scores, key=scores.get)
        if scores[i, j] > merging.THRESHOLD:
            break
        (a, p, m), (b, q, n) = groups[i], groups[j]
        box = [(m * x + n * y) / (m + n) for x, y in zip(a, b, strict=True)]
        groups = [group for k, group in enumerate(groups) if k not in (i, j)]
        groups.append((box, p + q, m + n))
    return sorted(((box, c) for box, c, _ in groups), key=lambda group: -group[1])


@pytest.mark.parametrize("seed", range(5))
def test_merging_equals_a_plain_one_in_any_order(seed):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(20, 200, (3, 2))[rng.integers(0, 3, 24)] + rng.normal(0, 6, (24, 2))
    half = rng.uniform(10, 25, (24, 2))
    boxes, trust = np.concatenate([centres - half, centres + half], axis=1), rng.uniform(size=24)
    merged, sums = merging.merge(boxes, trust)
    expected = merged_plainly(boxes, trust)
    np.testing.assert_allclose(merged, [box for box, _ in expected], rtol=1e-9)
    np.testing.assert_allclose(sums, [c for _, c in expected], rtol=1e-9)
    assert len(merged) < 24
    np.testing.assert_allclose(sums.sum(), trust.sum())
    order = rng.permutation(24)
    again, same = merging.merge(boxes[order], trust[order])
    np.testing.assert_array_equal(again, merged)
    np.testing.assert_array_equal(same, sums)


def test_many_problems_at_once_are_each_by_itself(monkeypatch):
    rng, images = np.random.default_rng(0), []
    monkeypatch.setattr(merging, "LARGEST", 3000)
    for n in [1, 40, *rng.integers(0, 30, 20)]:
        centres = rng.uniform(20, 200, (n, 3, 2))
        half = rng.uniform(10, 25, (n, 3, 2))
        boxes = np.concatenate([centres - half, centres + half], axis=-1)
        trust = rng.choice([0.1, 0.5], (n, 3))  # many are as trusted as others
        images.append([(boxes[: n // 2], trust[: n // 2]), (boxes[n // 2 :], trust[n // 2 :])])
    merged = merging.of_images(images, 3)
    for parts, image_boxes in zip(images, merged, strict=True):
        boxes, trust = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        for k in range(3):
            if len(boxes):
                expected, _ = merging.merge(boxes[:, k], trust[:, k])
                np.testing.assert_array_equal(image_boxes[k], expected[0])
            else:
                assert np.isnan(image_boxes[k]).all()


def test_image_of_which_nothing_was_said_has_no_box():
    part = np.arange(8.0).reshape(2, 1, 4), np.array([[0.25], [0.75]])
    merged = merging.of_images([[], [part]], 1)
    assert np.isnan(merged[0]).all()
    np.testing.assert_array_equal(merged[1], merging.merge(part[0][:, 0], part[1][:, 0])[0][:1])


# ------------------------------------------------------------------------- trained networks


def write_npz(file, train=60, test=20, side=32):
    """Rectangles of three classes: squares, wide and high ones."""
    rng, arrays = np.random.default_rng(0), {}
    for part, n in (("train", train), ("test", test)):
        images, boxes = np.zeros((n, side, side, 1), np.uint8), np.full((n, 2, 4), np.nan)
        for i in range(n):
            rows, columns = ((14, 14), (10, 20), (20, 10))[i % CLASSES]
            top, left = rng.integers(0, side - rows), rng.integers(0, side - columns)
            images[i, top : top + rows, left : left + columns] = 255
            boxes[i, 0] = left, top, left + columns, top + rows
        arrays |= {f"{part}_images": images, f"{part}_labels": np.arange(n) % CLASSES}
        arrays[f"{part}_boxes"] = boxes
    np.savez(file, **arrays)
    return file


def settings(file, **overrides):
    base = config.base()
    base.model = config.model("vgg:A", width=0.0625, init="he", batch_norm=True)
    chosen = {
        "data.name": "npz",
        "data.path": str(file),
        "data.boxes": "own",
        "data.normalise": "per_channel",
        "data.divide_by_std": True,
        "data.holdout": 0.1,
        "test.batch_size": 8,
        "schedule.lr": 0.02,
        "train.batch_size": 16,
        "train.steps": 8,
    }
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    return config.override(base, {**chosen, **overrides}, "test")


def trained(c, folder, stop=None):
    """The run of a config; stop: the steps at which it is stopped, and gone on with."""
    fingerprint = data.open_data(c.data).fingerprint
    run = runs.create(c, fingerprint, folder, {"study": "t", "row": "r", "seed_from": None})
    for step in stop or ():
        heard = []
        with run.lock(), pytest.raises(train.Interrupted):
            train.train(
                run,
                mesh(),
                on_event=heard.append,
                stop=lambda step=step, heard=heard: heard[-1].get("step") == step,
            )
    with run.lock():
        train.train(run, mesh())
    return run


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("data") / "boxes.npz")


@pytest.fixture(scope="module")
def classifier(file, tmp_path_factory):
    return trained(settings(file), tmp_path_factory.mktemp("runs"))


def seeded(file, classifier, **overrides):
    about = {"seeding__run": classifier.id, "seeding__classifier": "fresh", **overrides}
    return settings(file, train__boxes="per_class", **about)


@pytest.fixture(scope="module")
def localiser(file, classifier):
    return trained(seeded(file, classifier), classifier.folder.parent)


def arrays_of(run):
    _, trees = checkpoints.load_network(run.checkpoints)
    return {f"{kind}.{n}": np.asarray(a) for kind in trees for n, a in trees[kind].items()}


def test_stopped_localiser_ends_bit_for_bit_like_an_undisturbed_one(
    file, classifier, localiser, tmp_path
):
    folder = classifier.folder.parent
    again = seeded(file, classifier, seed=0, checkpoint__every_steps=3)
    elsewhere = tmp_path / "runs"
    elsewhere.mkdir()
    (elsewhere / classifier.id).symlink_to(folder / classifier.id)
    run = trained(again, elsewhere, stop=(3, 5))
    assert run.id == localiser.id
    expected, arrays = arrays_of(localiser), arrays_of(run)
    assert expected.keys() == arrays.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    assert run.read("result")["top1_errors_count"] == localiser.read("result")["top1_errors_count"]


def test_last_layer_is_fresh_and_has_a_box_a_class(localiser, classifier):
    seeding, own = localiser.read("seeding"), arrays_of(localiser)
    assert own["params.fc8/kernel"].shape[1] == 4 * CLASSES
    assert sorted(seeding["fresh"]) == ["fc8/bias", "fc8/kernel"]


@pytest.mark.parametrize("kind", [pytest.param("single", marks=pytest.mark.slow), "per_class"])
def test_twenty_images_are_learnt_by_heart(kind, tmp_path):
    file = write_npz(tmp_path / "few.npz", train=20, test=20)
    arrays = dict(np.load(file))
    arrays |= {f"test_{name}": arrays[f"train_{name}"] for name in ("images", "labels", "boxes")}
    np.savez(file, **arrays)
    c = settings(file, train__boxes=kind, train__steps=400, train__batch_size=20, data__holdout=0.0)
    c.schedule.kind, c.schedule.lr, c.model.dropout = "cosine", 0.003, 0.0
    run = trained(c, tmp_path)
    assert run.read("result")["top1_errors_count"] == 0
    result = predictions.load(run.folder / "predictions" / "test-center.npz")
    shared = geometry.iou(result.boxes.astype(np.float64), arrays["test_boxes"][result.ids, 0])
    assert shared.mean() > 0.9


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_training_error_is_of_the_views_that_show_a_box(accumulate, tmp_path, monkeypatch):
    file = write_npz(tmp_path / "boxes.npz", side=48)
    c = settings(
        file,
        **{"train.boxes": "single", "data.S": (48, 48), "data.box_part": 1.0, "train.steps": 3},
        **{"train.accumulate": accumulate, "train.log_every_epochs": 0.01, "data.image_size": 32},
    )
    monkeypatch.setattr(  # those of odd labels are wrong
        regression,
        "wrong",
        lambda outputs, labels, boxes, crop: jnp.where(
            jnp.isfinite(boxes).all(axis=-1), labels % 2, jnp.nan
        ),
    )
    logged = trained(c, tmp_path / "runs").logged()
    lines = [line for line in logged if "train_error" in line]
    prepared = data.prepare(c)
    feed, compared = prepared.feed(c, mesh(), 0), 0
    for step in range(3):
        batch = jax.tree.map(lambda a: a[0], feed.next(range(step, step + 1)))
        boxes = prepared.train_boxes(prepared.constants, np.int32(c.seed), batch)
        shown = np.isfinite(np.asarray(boxes)).all(axis=1)
        labels = prepared.labels[np.asarray(batch["indices"])]
        (error,) = (line["train_error"] for line in lines if line["step"] == step + 1)
        np.testing.assert_allclose(error, 100 * (labels[shown] % 2).mean(), rtol=1e-5)
        compared += 0 < shown.sum() < 16
    assert compared


def test_views_without_a_box_have_no_training_error(tmp_path):
    file = write_npz(tmp_path / "boxes.npz", side=48)
    c = settings(
        file,
        **{"train.boxes": "single", "data.S": (480, 480), "data.box_part": 1.0, "train.steps": 3},
        **{"train.until_error": 50.0, "train.log_every_epochs": 0.01, "data.image_size": 32},
        **{"schedule.warmup": "until_error", "schedule.warmup_part": 0.6},
    )
    run = trained(c, tmp_path / "runs")
    assert run.read("result")["steps"] == 3  # an error of 0 would end it
    lines = [line for line in run.logged() if "train_loss" in line]
    assert [line["train_loss"] for line in lines] == [0, 0, 0]
    assert not any("train_error" in line for line in lines)


def test_central_test_is_of_boxes_with_the_class_given(file, localiser):
    result, stored = localiser.read("result"), prediction_store.load(localiser, "center")
    boxes, labels = (np.load(file)[f"test_{name}"] for name in ("boxes", "labels"))
    shared = geometry.iou(stored.boxes.astype(np.float64), boxes[stored.ids, 0])
    np.testing.assert_array_equal(stored.topk_wrong(), shared <= 0.5)
    np.testing.assert_array_equal(stored.labels, labels[stored.ids])
    assert result["top1_errors_count"] == (shared <= 0.5).sum()
    assert "top5_errors_count" not in result
    with pytest.raises(predictions.PredictionsError, match="have no top-5 error"):
        stored.topk_wrong(5)
    with pytest.raises(predictions.PredictionsError, match="have no mean"):
        predictions.mean([stored, stored])
    subject = evaluate.Subject(localiser, mesh())
    again = subject.tested("center").predictions
    np.testing.assert_allclose(again.boxes, stored.boxes, atol=1e-3)
    with pytest.raises(config.ConfigError, match="`cnn-depth localise` tests boxes"):
        subject.tested("dense")


def test_whole_images_of_the_crops_size_are_the_central_crops(localiser):
    result = localise.localise([(Localiser(evaluate.Subject(localiser, mesh())), (32,))])
    assert len(result.ids) == 20
    stored = prediction_store.load(localiser, "center")
    stored = stored.take(np.argsort(stored.ids))
    np.testing.assert_array_equal(~result.given, stored.topk_wrong())
    # What it says of the image's own class is what the central test says.
    own = (result.classes == result.labels[:, None]).argmax(axis=1)
    boxes = result.boxes[np.arange(20), own]
    np.testing.assert_allclose(boxes, stored.boxes, atol=2e-4)
    assert result.rate(3).percent == pytest.approx(result.given_rate.percent)  # of three classes


def test_boxes_of_several_scales_are_merged_and_kept(localiser, monkeypatch):
    subject = Localiser(evaluate.Subject(localiser, mesh()))
    result = localise.localise([(subject, (32, 64))])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Localiser, "candidates", lambda *a: pytest.fail("it computes again"))
        again = localise.localise([(Localiser(evaluate.Subject(localiser, mesh())), (32, 64))])
    np.testing.assert_array_equal(again.boxes, result.boxes)
    about = localised.about([(localiser, (32, 64))])
    assert localised.load(localiser, about).rate(5) == result.rate(5)
    assert localised.load(localiser, localised.about([(localiser, (32, 48))])) is None
    # By hand: the classifier's classes, and the boxes of both scales.
    top = np.concatenate([result.classes, result.labels[:, None]], axis=1).astype(np.int32)
    parts = [
        {i: (b, t) for i, b, t in subject.candidates(Q, top, lambda n, total: None)}
        for Q in (32, 64)
    ]
    for row, i in enumerate(result.ids.tolist()):
        boxes, trust = (np.concatenate([part[i][k] for part in parts]) for k in (0, 1))
        assert len(boxes) == 1 + 4  # at twice the size, 2 x 2 windows fit
        for k in range(CLASSES):
            expected = merging.merge(boxes[:, k], trust[:, k])[0][0]
            np.testing.assert_allclose(result.boxes[row, k], expected, rtol=1e-6)


def test_stopped_test_of_boxes_goes_on(file, classifier, localiser, monkeypatch):
    monkeypatch.setattr("experiments.localisation.candidates.PART", 8)
    subject = Localiser(evaluate.Subject(localiser, mesh()))
    top = np.zeros((20, 1), np.int32)
    expected = list(subject.candidates(48, top, lambda n, total: None))
    folder = next(localiser.folder.glob("predictions/boxes-Q48-*"))
    assert len(list(folder.iterdir())) == 3
    (folder / "0000008.npz").unlink()
    (folder / "0000016.npz").write_bytes(b"cut off")
    (folder / "0000000.npz").touch()
    before = (folder / "0000000.npz").stat().st_mtime_ns
    again = list(subject.candidates(48, top, lambda n, total: None))
    assert (folder / "0000000.npz").stat().st_mtime_ns == before
    for first, second in zip(expected, again, strict=True):
        assert first[0] == second[0]
        np.testing.assert_array_equal(first[1], second[1])


@pytest.mark.slow
def test_several_devices_say_the_same(fresh_python, localiser):
    code = f"""
import shutil, sys; sys.path.insert(0, 'tests/experiments')
import numpy as np
from test_localisation import mesh
from experiments.localisation.candidates import Localiser
from experiments.runs import runs
from experiments.testing import evaluate
run = runs.Run(runs.Path({str(localiser.folder)!r}))
top, found = np.tile(np.arange(2, dtype=np.int32), (20, 1)), []
for devices in (1, 4):
    for folder in run.folder.glob('predictions/boxes-Q64-*'):
        shutil.rmtree(folder)
    subject = Localiser(evaluate.Subject(run, mesh(devices)))
    found.append(list(subject.candidates(64, top, lambda done, total: None)))
    assert len(found[-1]) == 20
for one, other in zip(*found, strict=True):
    np.testing.assert_allclose(one[1], other[1], rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(one[2], other[2], atol=1e-4)
"""
    process = fresh_python("-c", code, devices=4, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    assert process.returncode == 0, process.stderr


def test_two_processes_share_the_images(localiser, monkeypatch):
    monkeypatch.setattr("experiments.localisation.candidates.PART", 4)
    code = f"""
import sys; sys.path.insert(0, 'tests/experiments')
import jax
jax.distributed.initialize('localhost:{free_port()}', 2, int(sys.argv[1]))
from test_localisation import whole_mesh
from experiments.localisation import candidates, localise
from experiments.runs import runs
from experiments.testing import evaluate
candidates.PART = 4
run = runs.Run(runs.Path({str(localiser.folder)!r}))
subject = candidates.Localiser(evaluate.Subject(run, whole_mesh()))
found = localise.localise([(subject, (40,))])
print(len(found.ids), found.given.sum(), found.right.sum())
"""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(process)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in (0, 1)
    ]
    outputs = []
    for process in both:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        outputs.append(out.splitlines()[-1])
    assert outputs[0] == outputs[1]
    (folder,) = localiser.folder.glob("predictions/boxes-Q40-*")
    assert len(list(folder.iterdir())) == 5
    before = {part.name: part.read_bytes() for part in folder.iterdir()}
    result = localise.localise([(Localiser(evaluate.Subject(localiser, mesh())), (40,))])
    assert outputs[0] == f"{len(result.ids)} {result.given.sum()} {result.right.sum()}"
    assert {part.name: part.read_bytes() for part in folder.iterdir()} == before


# --------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train__loss": "binary"}, r"train.loss='binary' is not for train.boxes='single'"),
        ({"train__label_smoothing": 0.1}, r"label_smoothing=0.1 is not for train.boxes"),
        ({"data__distort": 0.5}, r"data.distort=0.5 is not for train.boxes"),
        ({"train__boxes": "one"}, r"train.boxes='one' is none of none, single, per_class"),
    ],
)
def test_configs_that_cannot_be_meant(overrides, message, file):
    with pytest.raises(config.ConfigError, match=message):
        settings(file, **{"train__boxes": "single", **overrides})


def test_sets_without_boxes_are_refused(file):
    with pytest.raises(config.ConfigError, match=r"train.boxes='single' needs boxes, and data.box"):
        data.prepare(settings(file, train__boxes="single", data__boxes=""))
    with pytest.raises(DataError, match=r"'digits' has no boxes; data\.name=placed_digits has"):
        data.open_data(settings(file, data__name="digits", data__path="").data)
    with pytest.raises(config.ConfigError, match="is for encoded images"):
        data.open_data(settings(file, data__boxes="boxes.csv").data)


def test_images_without_a_box_are_left_out_and_counted(file, tmp_path):
    arrays = dict(np.load(file))
    arrays["train_boxes"][:9] = np.nan
    np.savez(tmp_path / "some.npz", **arrays)
    opened = data.open_data(settings(tmp_path / "some.npz").data)
    assert opened.train + len(opened.parts["holdout"]) == 51
    assert any("9 training images of 60 without a box" in note for note in opened.notes)
    assert len(opened.boxes["train"]) == opened.train
    full = data.open_data(settings(file).data)
    assert full.fingerprint != opened.fingerprint


@pytest.mark.parametrize("arch", ["googlenet", "lenet5"])
def test_networks_with_losses_of_their_own_say_no_boxes(arch, file):
    from experiments import network

    c = settings(file, train__boxes="single")
    c.model = config.model(arch)
    c.data.image_size = 224 if arch == "googlenet" else 32
    with pytest.raises(config.ConfigError, match=r"train.boxes='single' is not for"):
        network.skeleton(c, CLASSES, 1, train=True)


def test_runs_that_are_no_localisers_are_refused(file, classifier, localiser, tmp_path):
    with pytest.raises(config.ConfigError, match="says classes, not boxes"):
        Localiser(evaluate.Subject(classifier, mesh()))
    alone = trained(settings(file, train__boxes="single", train__steps=1), tmp_path)
    with pytest.raises(config.ConfigError, match="was not started from a classifier"):
        Localiser(evaluate.Subject(alone, mesh()))
    with pytest.raises(config.ConfigError, match="says boxes; expected a classifier"):
        Localiser(evaluate.Subject(localiser, mesh())).check(localiser)

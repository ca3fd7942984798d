"""What verbs make of a run whose last layer says boxes: `predict` above all."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import config as configs
from experiments.data import preprocessing
from experiments.localisation import localise, localised, merging
from experiments.localisation.candidates import Localiser
from experiments.network import for_tests, skeleton
from experiments.report import box_figure, study
from experiments.runs import checkpoints, results, runs
from experiments.testing import classifier, evaluate, predictions
from experiments.training import train
from input_pipeline import image_files
from launch import devices
from launch.planning import graph
from tests.experiments.test_preprocessing import trained

SIDE, STRIDE = 28, 4  # of the network, and of its places in a larger image


def images(n, width, rng):
    """Images of noise with an oblong, whose brightness tells the class; its box."""
    labels = np.arange(n) % 3
    pixels = rng.integers(0, 60, (n, 32, width, 1), dtype=np.uint8)
    boxes = np.zeros((n, 4))
    for image, box, k in zip(pixels, boxes, labels, strict=True):
        top, left = rng.integers(0, 18), rng.integers(0, width - 14)
        image[top : top + 14, left : left + 12] += np.uint8(60 * (k + 1))
        box[:] = left, top, left + 12, top + 14
    return pixels, labels, boxes


def config(path, **overrides):
    base = configs.base()
    base.model = configs.model("lenet5:modern")
    base.data.update(name="npz", path=str(path), image_size=SIDE, holdout=0.0, divide_by_std=True)
    base.train.update(batch_size=30, steps=6)
    base.schedule.lr, base.test.Q = 0.01, 32
    return configs.override(base, overrides, "test")


def made(root, width, normalise):
    """Runs of a classifier and of the localiser that it seeds, in `root/runs`; test images beside.

    Returns the localiser.
    """
    rng, arrays = np.random.default_rng(0), {}
    for part, n in (("train", 60), ("test", 9)):
        shown, labels, boxes = images(n, width, rng)
        arrays |= {f"{part}_images": shown, f"{part}_labels": labels, f"{part}_boxes": boxes}
    for i, image in enumerate(arrays["test_images"]):
        Image.fromarray(image[..., 0]).save(root / f"{i}.png")
    np.savez(root / "images.npz", **arrays)
    overrides = {"data.normalise": normalise}
    first = trained(config(root / "images.npz", **overrides), root / "runs")
    overrides |= {"train.boxes": "per_class", "data.boxes": "own", "seeding.classifier": "fresh"}
    own = config(root / "images.npz", **overrides)
    graph.forget_data()
    mine = configs.Study("mine", "mine", own, ())
    job = graph._job(mine, "boxes", own, own.seed, None, root / "runs", first)
    job.create()
    with job.run.lock():
        train.train(job.run, devices.mesh())
    return job.run


@pytest.fixture(scope="module")
def localiser(tmp_path_factory):
    """A run that says boxes; beside `runs` lie its test images, 40 pixels wide and 32 high."""
    return made(tmp_path_factory.mktemp("boxes"), 40, "per_channel")


@pytest.fixture
def folder(localiser):
    return localiser.folder.parent.parent


@pytest.fixture
def seeding(localiser):
    """The classifier."""
    return runs.Run(localiser.folder.parent / localiser.config().seeding.run)


@pytest.fixture
def predicted(told, localiser, tmp_path):
    """What `predict` says of images."""
    picture = ("--picture", tmp_path / "picture.png")
    return lambda *words: told("predict", *words, "--run", localiser.folder, *picture)


def by_hand(localiser, pixels):
    """(classes, probabilities, boxes), window by window, of an image that is not scaled."""
    run = localiser
    nets = []
    for net_run in (run, runs.Run(run.folder.parent / run.config().seeding.run)):
        _, arrays = checkpoints.load_network(net_run.checkpoints)
        nets.append(skeleton(net_run.config(), 3, 1, train=False).merge(*for_tests(arrays)))
    normalisation = preprocessing.load(run.folder / preprocessing.FILE).normalise

    def scores(net, image):
        places = [
            (top, left)
            for top in range(0, image.shape[0] - SIDE + 1, STRIDE)
            for left in range(0, image.shape[1] - SIDE + 1, STRIDE)
        ]
        x = np.stack([image[top : top + SIDE, left : left + SIDE] for top, left in places])
        return np.array(places), np.asarray(net((x - normalisation.mean) / normalisation.std))

    image = pixels.astype(np.float32)
    places, outputs = scores(nets[0], image)
    _, classes = scores(nets[1], image)
    both = [classes.mean(axis=0), scores(nets[1], image[:, ::-1])[1].mean(axis=0)]
    p = np.mean([jax.nn.softmax(logits) for logits in both], axis=0)
    trust = np.asarray(jax.nn.softmax(classes))
    boxes = []
    for k in np.argsort(-p):
        column, row, width, height = SIDE * outputs.reshape(-1, 3, 4)[:, k].T
        left, top = places[:, 1] + column - width / 2, places[:, 0] + row - height / 2
        own = np.stack([left, top, left + width, top + height], axis=1)
        boxes.append(merging.merge(own, trust[:, k])[0][0])
    return np.argsort(-p), np.sort(p)[::-1], np.array(boxes)


def test_predict_merges_the_boxes_of_every_window(localiser, folder, predicted):
    words = [folder / f"{i}.png" for i in range(3)]
    answer = predicted(*words)
    assert (answer["classifier"], answer["scales"]) == (localiser.config().seeding.run, [32])
    for path, image in zip(words, answer["images"], strict=True):
        labels, p, boxes = by_hand(localiser, np.asarray(Image.open(path))[..., None])
        assert [row["label"] for row in image["classes"]] == labels.tolist()
        np.testing.assert_allclose([row["probability"] for row in image["classes"]], p, rtol=1e-4)
        np.testing.assert_allclose([row["box"] for row in image["classes"]], boxes, atol=1e-2)


def test_predict_of_test_images_says_what_localise_does(localiser, folder, told, predicted):
    told("localise", localiser.folder)
    (file,) = localiser.folder.glob("predictions/localised-*.npz")
    images = predicted(*(folder / f"{i}.png" for i in range(9)))["images"]
    with np.load(file) as saved:
        labels = [[row["label"] for row in image["classes"]] for image in images]
        np.testing.assert_array_equal(saved["classes"], labels)
        boxes = [[row["box"] for row in image["classes"]] for image in images]
        np.testing.assert_allclose(saved["boxes"], boxes, atol=1e-2)


def test_boxes_of_images_of_any_size_are_in_pixels_of_the_file(predicted, tmp_path):
    large = np.random.default_rng(1).integers(0, 256, (96, 120, 1), dtype=np.uint8)
    upright = large[:, 20:84]  # of another shape than the others, in the same call
    shown = {"large": large, "small": image_files.scaled(large, (32, 40)), "upright": upright}
    for name, pixels in shown.items():
        Image.fromarray(pixels[..., 0]).save(tmp_path / f"{name}.png")

    def boxes(*names):
        images = predicted(*(tmp_path / f"{name}.png" for name in names))["images"]
        return [np.array([row["box"] for row in image["classes"]]) for image in images]

    first, second, third = boxes(*shown)
    np.testing.assert_allclose(first, 3 * second, atol=1e-2)
    np.testing.assert_allclose(third, *boxes("upright"), atol=1e-2)


def test_several_scales_are_merged(folder, predicted):
    single, both = predicted(folder / "1.png"), predicted(folder / "1.png", "--Q", "32,48")
    assert both["scales"] == [32, 48]
    probabilities = [
        [row["probability"] for row in answer["images"][0]["classes"]] for answer in (single, both)
    ]
    assert probabilities[0] != probabilities[1]
    np.testing.assert_allclose(np.sum(probabilities, axis=1), 1, rtol=1e-5)


def test_each_image_is_drawn_with_its_boxes(folder, localiser, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("predict", folder / "0.png", folder / "0.png", "no.png", "--run", localiser.folder)
    status, out, err = call(*words, "--top", 2, "--boxes", "drawn")
    assert status == 1
    assert "left out: image no.png does not exist" in err
    assert "boxes: drawn/0.png, drawn/0-2.png" in out
    assert "left, top, right, bottom" in out
    with Image.open("drawn/0.png") as drawn:
        assert drawn.size == (13 * 40, 13 * 32)
        assert {(0, 114, 178), (230, 159, 0)} <= {colour for _, colour in drawn.getcolors(10**6)}
    assert Path("prediction.png").exists()
    status, _, err = call("predict", "no.png", "--run", localiser.folder)
    assert (status, err) == (2, "cnn-depth: error: image no.png does not exist\n")


def test_a_mean_image_belongs_to_the_central_square_of_files(tmp_path, told):
    run = made(tmp_path, 32, "per_pixel")
    rng = np.random.default_rng(5)
    wide = rng.integers(0, 256, (32, 52), dtype=np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide[:, 10:42]).save(tmp_path / "middle.png")
    words = (tmp_path / "wide.png", tmp_path / "middle.png", "--run", run.folder)
    images = told("predict", *words, "--picture", tmp_path / "p.png")["images"]
    wide, middle = (np.array([row["box"] for row in image["classes"]]) for image in images)
    np.testing.assert_allclose(wide, middle + np.array([10, 0, 10, 0]), atol=1e-4)


def test_options_for_boxes_are_refused_of_a_classifier(seeding, folder, call):
    for option in (("--boxes", "d"), ("--scales", "64")):
        status, _, err = call("predict", folder / "0.png", "--run", seeding.folder, *option)
        assert status == 2
        assert err == (
            f"cnn-depth: error: {' '.join(option)} is for a run that says boxes (train.boxes), and "
            f"{seeding.id} says classes only\n"
        )


def test_a_localiser_is_no_classifier(localiser, seeding):
    with pytest.raises(configs.ConfigError, match="says boxes") as raised:
        classifier.load(localiser.folder)
    assert str(raised.value) == (
        f"{localiser.id} says boxes (train.boxes='per_class'), not classes; expected a classifier, "
        f"such as {seeding.id}, which seeds it"
    )


@pytest.mark.parametrize("naming", ["cnn-depth", "huggingface"])
def test_files_of_classifiers_are_not_made_of_boxes(naming, localiser, call, tmp_path):
    words = ("weights", "export", localiser.folder, "--naming", naming)
    status, _, err = call(*words, "--out", tmp_path / "net.npz")
    assert status == 2
    assert f"--naming {naming} is of classifiers, and {localiser.id} says boxes" in err
    assert not (tmp_path / "net.npz").exists()


def test_errors_of_boxes_and_of_classes_are_not_compared(localiser, seeding, call):
    status, _, err = call("compare", localiser.folder, seeding.folder)
    assert status == 2
    assert "can't be compared: one errs in boxes, the other in classes" in err


def test_a_comparison_of_boxes_says_so_in_a_line_of_its_own(localiser, call, tmp_path):
    copied = shutil.copytree(localiser.folder, tmp_path / "other")
    status, out, err = call("compare", localiser.folder, copied)
    assert status == 0, err
    assert "\\n" not in out
    assert "Top-1: error of boxes" in out


def test_a_folder_with_an_at_sign_names_no_scales(localiser, told, tmp_path):
    copied = shutil.copytree(localiser.folder.parent, tmp_path / "me@host" / "runs")
    answer = told("localise", copied / localiser.id)
    assert answer["localisers"] == told("localise", localiser.folder)["localisers"]


def test_runs_are_named_once(localiser, seeding, call):
    status, _, err = call("localise", localiser.folder, f"{localiser.folder}@32,48")
    assert status == 2
    assert "is named 2 times; expected once: its boxes; RUN@256,384 gives it several" in err
    twice = f"{seeding.folder},{seeding.folder}"
    status, _, err = call("localise", localiser.folder, "--classifiers", twice)
    assert status == 2
    assert "is named 2 times; expected once: its posteriors" in err


def test_nothing_is_reused_of_a_classifier_that_was_trained_anew(localiser, tmp_path):
    copied = shutil.copytree(localiser.folder.parent, tmp_path / "runs")
    run, own = runs.Run(copied / localiser.id), runs.Run(copied / localiser.config().seeding.run)
    at = [(run, (32,))]
    before = localise.localise([(Localiser(evaluate.Subject(run, devices.mesh())), (32,))])
    assert localised.load(run, localised.about(at)) is not None
    shutil.rmtree(own.checkpoints)
    record = own.read("run")
    shutil.copytree(seed_anew(own, tmp_path / "anew"), own.checkpoints)
    runs.write_json(own.folder / "run.json", {**record, "created": "later"})
    assert localised.load(run, localised.about(at)) is None
    after = localise.localise([(Localiser(evaluate.Subject(run, devices.mesh())), (32,))])
    assert not np.array_equal(after.boxes, before.boxes)


def seed_anew(run, folder):
    """Checkpoints of a run's step, of a training with another seed."""
    c = configs.override(run.config(), {"seed": 5}, "test")
    return trained(c, folder).checkpoints


def test_boxes_are_not_tested_on_other_images(localiser, folder, call):
    status, _, err = call("evaluate", localiser.folder, "--data", folder / "images.npz")
    assert status == 2
    assert f"{localiser.id} says boxes, and those of other images are not read" in err


def test_features_of_a_localiser_are_those_of_any_network(localiser, folder, told):
    (own,) = told("features", localiser.folder)
    (of_npz,) = told("features", localiser.folder, "--data", folder / "images.npz")
    for answer in (own, of_npz):
        assert (answer["layer"], answer["n"], answer["features"]) == ("F6", 69, 84)


def test_inspection_leaves_out_what_needs_scores_of_classes(localiser, told, tmp_path):
    words = ("--parts", "filters,occlusion,saliency,statistics", "--out", tmp_path)
    answer = told("inspect", localiser.folder, *words)
    assert set(answer["left_out"]) == {"occlusion", "saliency", "gradients"}
    assert len({*answer["left_out"].values()}) == 1
    assert answer["statistics"]


def test_a_localiser_without_its_classifier_is_refused(localiser, folder, call, tmp_path):
    (tmp_path / "runs").mkdir()
    alone = tmp_path / "runs" / localiser.id
    alone.symlink_to(localiser.folder)
    status, _, err = call("predict", folder / "0.png", "--run", alone)
    assert status == 2
    assert (
        f"{localiser.config().seeding.run}, the classifier of {localiser.id}, is not trained" in err
    )


def reported(*trained_runs):
    rows = [
        results.Row("s", run.id, "lenet5:modern", {0: run.folder}, state="finished")
        for run in trained_runs
    ]
    collected = results.collect(rows)
    table = study.table(collected, "title", "profile")
    return study.report(collected, table), table


def test_a_report_says_which_errors_are_of_boxes(localiser, seeding):
    _, table = reported(seeding, localiser)
    assert [record["error_of"] for record in table.records] == ["classes", "boxes"]
    (column,) = (c for c in table.columns if c.header == "top-1 error")
    assert [column.cell(record).below for record in table.records] == ["", "of boxes"]
    assert "Rows of boxes: their error and losses are of one box an image" in table.legend[0]
    _, table = reported(seeding)
    assert "error_of" not in table.document["columns"]
    assert "boxes" not in table.legend[0]


def test_a_report_draws_right_and_wrong_boxes(localiser, seeding):
    page, _ = reported(seeding, localiser)
    (figure,) = (figure for figure in page.figures if figure.name == "boxes")
    assert f"run {localiser.id}" in figure.svg
    own = results.read_run(localiser.folder)
    right, wrong = box_figure._shown(own)
    # What they share is computed from the images' own boxes, and not from those of the test.
    assert len(right) + len(wrong) >= box_figure.SHOWN
    assert all(image.shared > 0.5 for image in right)
    assert all(image.shared <= 0.5 for image in wrong)
    tested = predictions.load(localiser.folder / "predictions" / "test-center.npz")
    assert len(wrong) == min(box_figure.SHOWN, int(tested.topk_wrong(1).sum()))
    with np.load(localiser.config().data.path) as stored:
        shown = stored["test_images"][int(tested.ids[np.flatnonzero(tested.topk_wrong(1))[0]])]
    np.testing.assert_array_equal(wrong[0].picture, shown[2:30, 6:34])
    page, _ = reported(seeding)
    assert "boxes" not in [figure.name for figure in page.figures]
    alone = box_figure._canvas([], wrong[:2])
    assert alone.axes.shape == (1, 2)
    assert "boxes are wrong" in alone.caption
    assert "boxes are right" not in alone.caption


def test_a_report_without_the_images_says_so(localiser, tmp_path):
    alone = tmp_path / localiser.id
    shutil.copytree(localiser.folder, alone)
    file, path = alone / "run.json", localiser.config().data.path
    file.write_text(file.read_text().replace(path, "gone.npz"))
    (figure,) = box_figure.draw([results.read_run(alone)])
    assert figure.svg == ""
    assert figure.note.startswith("Left out: ")
    assert "gone.npz" in figure.note

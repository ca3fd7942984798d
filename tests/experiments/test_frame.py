"""Images in a black frame: in training, and in every way to test the network that saw them so."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import config as configs
from experiments import data, weights
from experiments.data import preprocessing
from experiments.testing import classifier, predictions
from input_pipeline import crops, image_files
from launch import cli
from tests.experiments.test_preprocessing import npz, small, trained

FRAME = {"data__frame": 2, "data__image_size": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained run in `runs`, and its images as images.npz."""
    root = tmp_path_factory.mktemp("framed")
    path = npz(root / "images.npz", 0, 256)
    trained(small(path, **FRAME), root / "runs")
    return root


@pytest.fixture
def run(folder):
    (path,) = (folder / "runs").glob("*/run.json")
    return path.parent


def test_the_frame_is_black_and_the_image_as_it_is_stored(folder):
    c = small(folder / "images.npz", **FRAME)
    prepared = data.prepare(c)
    images = prepared.constants[0][np.arange(60)]
    with np.load(folder / "images.npz") as stored:
        inside = np.concatenate([stored["train_images"], stored["test_images"]])
    np.testing.assert_array_equal(images[:, 2:-2, 2:-2], inside)
    assert images.shape == (60, 12, 12, 1)
    assert images.sum() == inside.sum()


def test_the_mean_image_is_that_of_framed_images(folder):
    c = small(folder / "images.npz", **FRAME, data__normalise="per_pixel")
    mean = data.prepare(c).preprocessing.normalise.mean
    assert mean.shape == (12, 12, 1)
    assert not mean[:2].any()
    assert mean[2:-2, 2:-2].all()


def test_a_frame_around_images_that_would_be_scaled_is_refused(folder):
    with pytest.raises(
        configs.ConfigError, match=r"of 8x8 pixels 12x12, and data\.image_size is 16"
    ):
        data.prepare(small(folder / "images.npz", data__frame=2, data__image_size=16))


@pytest.mark.parametrize("Q", [0, 15])
def test_the_classifier_frames_images_too(Q, folder, run, tmp_path):
    if Q:  # what is framed is scaled and cropped, not what is to be framed
        run = trained(small(folder / "images.npz", **FRAME, test__Q=Q), tmp_path).folder
    model = classifier.load(run)
    with np.load(folder / "images.npz") as stored:
        images = stored["test_images"]
    tested = predictions.load(run / "predictions" / "test-center.npz")
    posteriors = model(images)
    order = np.argsort(tested.ids)
    np.testing.assert_allclose(posteriors, tested.posteriors[order], atol=1e-4)
    large = np.random.default_rng(0).integers(0, 256, (24, 20, 1), dtype=np.uint8)
    inside = image_files.central_view(large, crops.CentreView(crop=8, Q=8))
    np.testing.assert_array_equal(model.see(large), image_files.framed(inside, 2))


@pytest.fixture
def pictures(folder, tmp_path):
    """The test images as files, a folder a class."""
    with np.load(folder / "images.npz") as stored:
        images, labels = stored["test_images"], stored["test_labels"]
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "set" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(tmp_path / "set" / str(label) / f"{i:02}.png")
    return str(tmp_path / "set")


@pytest.mark.parametrize("kind", ["npz", "files"])
def test_images_that_are_given_are_framed(kind, folder, run, pictures, capsys):
    path = {"npz": str(folder / "images.npz"), "files": pictures}[kind]
    own = predictions.load(run / "predictions" / "test-center.npz")
    words = ("evaluate", run.name, "--runs", str(folder / "runs"), "--data", path, "--json")
    assert cli.main(words) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["n"] == len(own.labels)
    assert answer["top1_errors_count"] == int(own.topk_wrong(1).sum())


def test_a_mean_image_of_oblong_images_is_that_of_given_ones(tmp_path, capsys):
    random = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        arrays[f"{part}_images"] = random.integers(0, 256, (30, 8, 11, 1), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(30) % 3
    np.savez(tmp_path / "oblong.npz", **arrays)
    c = small(tmp_path / "oblong.npz", data__normalise="per_pixel")
    run = trained(c, tmp_path / "runs")
    own = predictions.load(run.folder / "predictions" / "test-center.npz")
    words = ("evaluate", run.id, "--runs", str(tmp_path / "runs"), "--json")
    assert cli.main([*words, "--data", str(tmp_path / "oblong.npz")]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["top1_errors_count"] == int(own.topk_wrong(1).sum())


def test_an_exported_network_keeps_its_frame(folder, run, tmp_path):
    model, file = classifier.load(run), tmp_path / "net.safetensors"
    weights.export_run(weights.runs.Run(run), file, "cnn-depth")
    again = weights.import_run(file, "cifar_resnet:8", tmp_path / "runs")
    assert preprocessing.load(again.folder / preprocessing.FILE).frame == 2
    image = np.random.default_rng(1).integers(0, 256, (1, 8, 8, 1), dtype=np.uint8)
    np.testing.assert_allclose(classifier.load(again.folder)(image), model(image), atol=1e-5)

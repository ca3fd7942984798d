"""`cnn-depth evaluate` and `compare` on the command line."""

import contextlib
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import config, data, network
from experiments.data import preprocessing
from experiments.runs import checkpoints, runs
from experiments.testing import predictions
from tests.made_up import noise


def make_run(c, folder):
    """A run with a fresh network."""
    images = data.prepare(c)
    run = runs.create(c, images.fingerprint, folder, {"study": "t", "row": "r"})
    params, stats = network.initial(c, images.classes, images.channels)
    with contextlib.closing(checkpoints.Checkpoints(run.checkpoints)) as saved:
        saved.save(1, {"params": params, "stats": stats}, {}, val_error=50.0)
    preprocessing.save(run.folder / "preprocessing.npz", images.preprocessing)
    return run


EVALUATE = ("evaluate", "resnet-8", "--runs", "runs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs with fresh networks, as `cifar_resnet-8-...` and `cifar_plain-8-...`."""
    folder = tmp_path_factory.mktemp("made")
    np.savez(folder / "images.npz", **noise(20, 12, (8, 8, 1), 3))
    for arch in ("cifar_resnet:8", "cifar_plain:8"):
        base = config.base()
        base.model = config.model(arch, width=0.25)
        settings = {"data.name": "npz", "data.path": str(folder / "images.npz")}
        c = config.override(
            base, {**settings, "data.image_size": 8, "train.batch_size": 10}, "test"
        )
        make_run(c, folder / "runs")
    return folder


def test_runs_are_tested_fused_and_compared(folder, told, call):
    words = ("resnet-8", "plain-8", "--protocol", "dense,multi_crop", "--scales", "8,11")
    words += ("--runs", folder / "runs")
    *tested, fused = told("evaluate", *words, "--fusion")
    assert [(test["protocol"], test["scales"], test["n"]) for test in tested] == [
        (name, [8, 11], 12) for name in ("dense", "multi_crop") * 2
    ]
    assert (fused["fusion"], fused["n"]) == (4, 12)
    _, output, _ = call("evaluate", *words, "--fusion")
    for text in ("fusion of these 4", "8/8, 11", "dense: the network made fully convolutional"):
        assert text in " ".join(output.split())
    assert "all of it was tested before" in output
    answer = told("compare", *words)
    counts = [test["top1_errors_count"] for test in tested]
    assert [test["errors_count"] for test in answer["tested"]] == counts


def test_batch_statistics_are_taken_before_the_test(folder, told):
    words = ("evaluate", "resnet-8", "--batch-statistics", 15, "--runs", folder / "runs")
    assert told(*words)[0]["n"] == 12


@pytest.fixture
def named(folder, tmp_path, monkeypatch):
    """The network with names for its classes, and its test images in folders: `make(*names)`."""
    monkeypatch.chdir(tmp_path)
    (run,) = (folder / "runs").glob("cifar_resnet*")
    copy = shutil.copytree(run, tmp_path / "runs" / run.name)
    prepared = preprocessing.load(copy / "preprocessing.npz")
    prepared = dataclasses.replace(prepared, class_names=("bird", "cat", "dog"))
    preprocessing.save(copy / "preprocessing.npz", prepared)
    with np.load(folder / "images.npz") as arrays:
        images, labels = arrays["test_images"], arrays["test_labels"]

    def make(*names):
        root = tmp_path / "-".join(names)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            (root / names[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[:, :, 0]).save(root / names[label] / f"{i:02}.png")
        return str(root)

    return make


@pytest.fixture
def evaluated(told):
    """evaluated(words): what a test of the network says."""
    return lambda *words: told(*EVALUATE, *words)[0]


def test_classes_of_given_images_are_matched_by_meaning_and_said(named, folder, call, evaluated):
    own = evaluated()
    assert own["classes"] is None
    for names, how in {
        ("bird", "cat", "dog"): "3 classes matched by name",
        ("1", "2", "3"): "3 classes matched by number, 1..3 for 0..2",
    }.items():
        result = evaluated("--data", named(*names))
        assert result["classes"] == how
        assert result["top1_errors_count"] == own["top1_errors_count"]
    result = evaluated("--data", str(folder / "images.npz"))
    assert result["classes"] == "3 classes matched by number, 0..2"
    assert result["top1_errors_count"] == own["top1_errors_count"]
    german = named("Vogel", "Katze", "Hund")
    status, _, error = call(*EVALUATE, "--data", german)
    assert status == 2
    for text in ("'Hund', 'Katze', 'Vogel'", "'bird', 'cat', 'dog'", "--classes-in-order"):
        assert text in error
    words = ("--data", german, "--classes-in-order")
    assert evaluated(*words)["classes"].startswith("3 classes taken in order: 'Hund' for")
    output = call(*EVALUATE, *words)[1]
    assert "3 classes taken in order: 'Hund' for 'bird', 'Katze'" in output


def test_an_npz_is_matched_by_its_names(named, folder, call, evaluated):
    with np.load(folder / "images.npz") as arrays:
        own = dict(arrays)
    moved = {f"{part}_labels": (2 - own[f"{part}_labels"]) for part in ("train", "test")}
    np.savez("moved.npz", **{**own, **moved}, class_names=np.array(["Dog", "Cat", "Bird"]))
    result = evaluated("--data", "moved.npz")
    assert result["top1_errors_count"] == evaluated()["top1_errors_count"]
    two = {name: array[own[f"{name.split('_')[0]}_labels"] < 2] for name, array in own.items()}
    np.savez("two.npz", **two)
    status, _, error = call(*EVALUATE, "--data", "two.npz")
    assert status == 2
    assert "two.npz has 2 classes ('0', '1') and the network 3" in error


def test_an_npz_needs_no_training_part_to_be_a_test(named, folder, call, evaluated):
    with np.load(folder / "images.npz") as arrays:
        test = {name: arrays[name] for name in ("test_images", "test_labels")}
    np.savez("test.npz", **test)
    result = evaluated("--data", "test.npz")
    assert result["classes"] == "3 classes matched by number, 0..2"
    assert result["top1_errors_count"] == evaluated()["top1_errors_count"]
    some = {name: array[test["test_labels"] < 2] for name, array in test.items()}
    np.savez("some.npz", **some, class_names=np.array(["0", "1", "2"]))
    assert evaluated("--data", "some.npz")["n"] == len(some["test_labels"])
    for changes, message in (
        ({"test_labels": test["test_labels"] + 10**9}, "test_labels holds 1000000002"),
        ({"train_labels": test["test_labels"]}, "key 'train_images' is missing"),
    ):
        np.savez("wrong.npz", **{**test, **changes})
        status, _, error = call(*EVALUATE, "--data", "wrong.npz")
        assert (status, message in error) == (2, True)


def test_a_kept_test_is_of_its_matching(named, call, evaluated):
    words = ("--data", named("bird", "cat", "dog"))
    first = evaluated(*words)
    assert [first["reused"], evaluated(*words)["reused"]] == [False, True]
    (run,) = Path("runs").iterdir()
    (file,) = run.glob("predictions/other-*")
    about = predictions.about(file)
    for classes in ({}, {"classes": "of another matching"}):
        old = {key: value for key, value in about.items() if key != "classes"}
        predictions.save(file, predictions.load(file), {**old, **classes})
        if not classes:  # as it was kept when classes were matched by position
            compared = ("compare", *EVALUATE[1:], "--protocol", "center,ten_crop", *words)
            status, _, error = call(*compared)
            assert status == 2
            assert "before classes were matched" in error
        assert not evaluated(*words)["reused"]


def test_a_split_folder_is_tested_on_what_was_kept_for_it(named, tmp_path, told, call):
    base = config.base()
    base.model = config.model("cifar_resnet:8", width=0.25)
    settings = {"data.name": "folder", "data.path": named("bird", "cat", "dog")}
    settings |= {"data.split": 0.5, "data.image_size": 8, "train.batch_size": 3}
    c = config.override(base, settings, "test")
    run = make_run(c, tmp_path / "split")
    words = ("evaluate", run.id, "--runs", tmp_path / "split")
    assert told(*words)[0]["n"] == 6
    stored = predictions.load(next(run.folder.glob("predictions/*")))
    assert stored.labels.tolist() == [0, 0, 1, 1, 2, 2]
    status, _, error = call(*words, "--data", c.data.path)
    assert status == 2
    assert "holds the images that" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--protocol", "densee"], ["'densee'", "did you mean 'dense'"]),
        (["--protocol", "dense", "--scales", "7"], ["test scale 7", "data.image_size=8"]),
        (["--scales", "x"], ["scales 'x'", "256,288,320"]),
        (["--protocol", "dense", "--flip"], ["--flip is for the protocol center"]),
        (["--fusion"], ["--fusion needs several runs or protocols"]),
        (["--batch-statistics", "-1"], ["--batch-statistics -1"]),
        (["--data", "nowhere"], ["nowhere"]),
        (["--classes-in-order"], ["--classes-in-order goes with --data"]),
    ],
)
def test_what_can_not_be_says_why(folder, words, said, call):
    status, _, error = call("evaluate", "resnet-8", "--runs", folder / "runs", *words)
    assert status == 2
    assert all(text in error for text in said), error
    assert "Traceback" not in error


@pytest.mark.parametrize("protocol", ["center", "dense"])
def test_images_that_are_enlarged_are_counted(folder, tmp_path, protocol, told, call):
    sides = [(6, 9), (9, 6), (8, 8), (20, 11), (7, 7)]  # three have a side below 8
    for number, (height, width) in enumerate(sides):
        place = tmp_path / "val" / str(number % 3)
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (height, width), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    words = ("evaluate", "cifar_resnet-8", "--protocol", protocol, "--data", tmp_path / "val")
    words += ("--runs", folder / "runs")
    assert told(*words)[0]["enlarged"] == 3
    output = " ".join(call(*words)[1].split())
    assert "are smaller than 8 pixels and were enlarged" in output

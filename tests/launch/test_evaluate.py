"""`cnn-depth evaluate` and `compare` on the command line."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import config, data, network
from experiments.data import preprocessing
from experiments.runs import checkpoints, runs
from experiments.testing import predictions
from launch import cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs with fresh networks, as `cifar_resnet-8-...` and `cifar_plain-8-...`."""
    folder, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 20), ("test", 12)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(n) % 3
    np.savez(folder / "images.npz", **arrays)
    for arch in ("cifar_resnet:8", "cifar_plain:8"):
        base = config.base()
        base.model = config.model(arch, width=0.25)
        settings = {"data.name": "npz", "data.path": str(folder / "images.npz")}
        c = config.override(
            base, {**settings, "data.image_size": 8, "train.batch_size": 10}, "test"
        )
        images = data.prepare(c)
        run = runs.create(c, images.fingerprint, folder / "runs", {"study": "t", "row": "r"})
        params, stats = network.initial(c, images.classes, images.channels)
        with contextlib.closing(checkpoints.Checkpoints(run.checkpoints)) as saved:
            saved.save(1, {"params": params, "stats": stats}, {}, val_error=50.0)
        preprocessing.save(run.folder / "preprocessing.npz", images.seen)
    return folder


def call(folder, *words):
    return cli.main([*words, "--runs", str(folder / "runs")])


def test_runs_are_tested_fused_and_compared(folder, capsys):
    words = ("evaluate", "resnet-8", "plain-8", "--protocol", "dense,multi_crop", "--scales")
    assert call(folder, *words, "8,11", "--fusion", "--json") == 0
    *tested, fused = json.loads(capsys.readouterr().out)
    assert [(one["protocol"], one["scales"], one["n"]) for one in tested] == [
        (name, [8, 11], 12) for name in ("dense", "multi_crop") * 2
    ]
    assert (fused["fusion"], fused["n"]) == (4, 12)
    assert call(folder, *words, "8,11", "--fusion") == 0
    shown = capsys.readouterr()
    told = " ".join(shown.out.split())
    for text in ("fusion of these 4", "8/8, 11", "dense: the network made fully convolutional"):
        assert text in told
    assert "all of it was tested before" in shown.out
    assert call(folder, "compare", *words[1:], "8,11", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    counts = [one["top1_errors_count"] for one in tested]
    assert [one["errors_count"] for one in found["tested"]] == counts


def test_batch_statistics_are_taken_before_the_test(folder, capsys):
    assert call(folder, "evaluate", "resnet-8", "--batch-statistics", "15", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["n"] == 12


@pytest.fixture
def named(folder, tmp_path, monkeypatch):
    """The network with names for its classes, and its test images in folders: `make(*names)`."""
    monkeypatch.chdir(tmp_path)
    (run,) = (folder / "runs").glob("cifar_resnet*")
    copy = shutil.copytree(run, tmp_path / "runs" / run.name)
    seen = preprocessing.load(copy / "preprocessing.npz")
    seen = dataclasses.replace(seen, class_names=("bird", "cat", "dog"))
    preprocessing.save(copy / "preprocessing.npz", seen)
    with np.load(folder / "images.npz") as arrays:
        images, labels = arrays["test_images"], arrays["test_labels"]

    def make(*names):
        root = tmp_path / "-".join(names)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            (root / names[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[:, :, 0]).save(root / names[label] / f"{i:02}.png")
        return str(root)

    return make


def evaluated(capsys, *words):
    assert cli.main(["evaluate", "resnet-8", "--runs", "runs", "--json", *words]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    return found


def test_classes_of_given_images_are_matched_by_meaning_and_said(named, folder, capsys):
    own = evaluated(capsys)
    assert own["classes"] is None
    for names, how in {
        ("bird", "cat", "dog"): "3 classes matched by name",
        ("1", "2", "3"): "3 classes matched by number, 1..3 for 0..2",
    }.items():
        found = evaluated(capsys, "--data", named(*names))
        assert found["classes"] == how
        assert found["top1_errors_count"] == own["top1_errors_count"]
    found = evaluated(capsys, "--data", str(folder / "images.npz"))
    assert found["classes"] == "3 classes matched by number, 0..2"
    assert found["top1_errors_count"] == own["top1_errors_count"]
    german = named("Vogel", "Katze", "Hund")
    assert cli.main(["evaluate", "resnet-8", "--runs", "runs", "--data", german]) == 2
    error = capsys.readouterr().err
    for text in ("'Hund', 'Katze', 'Vogel'", "'bird', 'cat', 'dog'", "--classes-in-order"):
        assert text in error
    words = ("--data", german, "--classes-in-order")
    assert evaluated(capsys, *words)["classes"].startswith("3 classes taken in order: 'Hund' for")
    assert cli.main(["evaluate", "resnet-8", "--runs", "runs", *words]) == 0
    assert "3 classes taken in order: 'Hund' for 'bird', 'Katze'" in capsys.readouterr().out


def test_an_npz_is_matched_by_its_names(named, folder, capsys, tmp_path):
    with np.load(folder / "images.npz") as arrays:
        own = dict(arrays)
    moved = {f"{part}_labels": (2 - own[f"{part}_labels"]) for part in ("train", "test")}
    np.savez("moved.npz", **{**own, **moved}, class_names=np.array(["Dog", "Cat", "Bird"]))
    found = evaluated(capsys, "--data", "moved.npz")
    assert found["top1_errors_count"] == evaluated(capsys)["top1_errors_count"]
    two = {name: array[own[f"{name.split('_')[0]}_labels"] < 2] for name, array in own.items()}
    np.savez("two.npz", **two)
    assert cli.main(["evaluate", "resnet-8", "--runs", "runs", "--data", "two.npz"]) == 2
    assert "two.npz has 2 classes ('0', '1') and the network 3" in capsys.readouterr().err


def test_an_npz_needs_no_training_part_to_be_a_test(named, folder, capsys):
    with np.load(folder / "images.npz") as arrays:
        test = {name: arrays[name] for name in ("test_images", "test_labels")}
    np.savez("test.npz", **test)
    found = evaluated(capsys, "--data", "test.npz")
    assert found["classes"] == "3 classes matched by number, 0..2"
    assert found["top1_errors_count"] == evaluated(capsys)["top1_errors_count"]
    some = {name: array[test["test_labels"] < 2] for name, array in test.items()}
    np.savez("some.npz", **some, class_names=np.array(["0", "1", "2"]))
    assert evaluated(capsys, "--data", "some.npz")["n"] == len(some["test_labels"])
    for changes, told in (
        ({"test_labels": test["test_labels"] + 10**9}, "test_labels holds 1000000002"),
        ({"train_labels": test["test_labels"]}, "key 'train_images' is missing"),
    ):
        np.savez("wrong.npz", **{**test, **changes})
        assert cli.main(["evaluate", "resnet-8", "--runs", "runs", "--data", "wrong.npz"]) == 2
        assert told in capsys.readouterr().err


def test_a_kept_test_is_of_its_matching(named, capsys):
    words = ("--data", named("bird", "cat", "dog"))
    first = evaluated(capsys, *words)
    assert [first["reused"], evaluated(capsys, *words)["reused"]] == [False, True]
    (run,) = Path("runs").iterdir()
    (file,) = run.glob("predictions/other-*")
    about = predictions.about(file)
    for classes in ({}, {"classes": "of another matching"}):
        old = {key: value for key, value in about.items() if key != "classes"}
        predictions.save(file, predictions.load(file), {**old, **classes})
        if not classes:  # as it was kept when classes were matched by position
            compared = ("compare", "resnet-8", "--runs", "runs", "--protocol", "center,ten_crop")
            assert cli.main([*compared, *words]) == 2
            assert "before classes were matched" in capsys.readouterr().err
        assert not evaluated(capsys, *words)["reused"]


def test_a_split_folder_is_tested_on_what_was_kept_for_it(named, tmp_path, capsys):
    base = config.base()
    base.model = config.model("cifar_resnet:8", width=0.25)
    settings = {"data.name": "folder", "data.path": named("bird", "cat", "dog")}
    settings |= {"data.split": 0.5, "data.image_size": 8, "train.batch_size": 3}
    c = config.override(base, settings, "test")
    images = data.prepare(c)
    run = runs.create(c, images.fingerprint, tmp_path / "split", {"study": "t", "row": "r"})
    params, stats = network.initial(c, images.classes, images.channels)
    with contextlib.closing(checkpoints.Checkpoints(run.checkpoints)) as saved:
        saved.save(1, {"params": params, "stats": stats}, {}, val_error=50.0)
    preprocessing.save(run.folder / "preprocessing.npz", images.seen)
    words = ["evaluate", run.id, "--runs", str(tmp_path / "split")]
    assert cli.main([*words, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["n"] == 6
    kept = predictions.load(next(run.folder.glob("predictions/*")))
    assert kept.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert cli.main([*words, "--data", c.data.path]) == 2
    assert "holds the images that" in capsys.readouterr().err


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
def test_what_can_not_be_says_why(folder, capsys, words, said):
    assert call(folder, "evaluate", "resnet-8", *words) == 2
    error = capsys.readouterr().err
    assert all(text in error for text in said), error
    assert "Traceback" not in error


@pytest.mark.parametrize("protocol", ["center", "dense"])
def test_images_that_are_enlarged_are_counted(folder, tmp_path, capsys, protocol):
    sides = [(6, 9), (9, 6), (8, 8), (20, 11), (7, 7)]  # three have a side below 8
    for number, (height, width) in enumerate(sides):
        place = tmp_path / "val" / str(number % 3)
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (height, width), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    words = ("evaluate", "cifar_resnet-8", "--protocol", protocol, "--data", str(tmp_path / "val"))
    assert call(folder, *words, "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["enlarged"] == 3
    assert call(folder, *words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "are smaller than 8 pixels and were enlarged" in shown

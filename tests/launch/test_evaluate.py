"""`cnn-depth evaluate` and `compare` on the command line."""

import contextlib
import json

import numpy as np
import pytest
from PIL import Image

from experiments import checkpoints, config, data, network, preprocessing, runs
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
        preprocessing.save(run.folder / "preprocessing.npz", preprocessing.of_data(images))
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

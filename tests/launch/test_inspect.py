"""`cnn-depth inspect`: what it prints, writes and refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.inspection import inspection
from tests import made_up

SIDE, CLASSES = 16, 4


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    made_up.run(folder, "cifar_resnet:8", SIDE, 1, CLASSES, {"width": 0.5})
    made_up.squares(folder / "set.npz", SIDE, 1, CLASSES, 40, 12)
    return folder


@pytest.fixture
def look(call, runs_folder):
    data = ("--data", runs_folder / "set.npz", "--runs", runs_folder)
    return lambda *words: call("inspect", "cifar_resnet-8", *data, *words)


def test_a_page_with_all_parts_and_the_arrays_are_written(look, tmp_path):
    words = ("--units", 3, "--images", 10, "--bits", 16, "--out", tmp_path / "inside", "--json")
    status, out, err = look(*words)
    assert status == 0, err
    answer = json.loads(out)
    page = Path(answer["report"]).read_text()
    for words in (
        "Inside cifar_resnet-8-made",
        "kernels of conv1/conv",
        "What excites units of stage2 most",
        "Nearest training images",
        "recall@10",
        "square of 3x3 pixels covers the image",
        "largest absolute gradient",
        "Dead units",
        "With train.log_gradients=true",
    ):
        assert words in page, words
    assert page.count("data:image/png;base64") >= 1 + 4 + 12 + 12
    assert all(part in err for part in inspection.PARTS)
    with np.load(answer["arrays"]) as file:
        assert file["filters/kernels"].shape == (3, 3, 1, 8)
        assert file["units/stage2/ids"].shape == (3, 8)
        assert file["codes/autoencoder/training"].shape == (40, 16)
        assert file["saliency/maps"].shape == (6, SIDE, SIDE)
        assert file["statistics/layers"][0] == "conv1"
    assert set(answer["codes"]) == {"autoencoder", "PCA", "projections"}
    assert answer["left_out"] == {}
    assert [row["layer"] for row in answer["gradients"]][-1] == "fc"
    tables = {file.name for file in (tmp_path / "inside").iterdir()}
    assert {"layers.csv", "codes.json", "report.html", "inspection.npz", "figures"} <= tables


def test_parts_and_layers_are_those_that_are_asked_for(look, runs_folder):
    status, out, err = look("--parts", "units,filters", "--layer", "stage1,stage3/block1/conv1")
    assert status == 0, err
    folder = runs_folder / "reports" / "inspect-cifar_resnet-8-made"
    assert str(folder / "report.html").replace("\n", "") in out.replace("\n", "")
    drawn = sorted(file.stem for file in (folder / "figures").iterdir())
    assert drawn == ["filters", "units-stage1", "units-stage3-block1-conv1"]
    assert "Outputs of the layers" not in out
    assert "(1 of 2)" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--layer", "stge2"), "Did you mean 'stage2'"),
        (("--parts", "filter"), "--parts 'filter'; expected some of filters, units"),
        (("--units", "0"), "--units 0; expected at least 1"),
        (("--bits", "0"), "--bits 0; expected at least 1"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(look, words, told):
    status, _, err = look(*words)
    assert status == 2
    assert told in err
    assert len(err.strip().splitlines()) == 1


def test_a_run_that_is_not_there_and_images_that_do_not_fit(call, runs_folder, tmp_path):
    status, _, err = call("inspect", "resnet-9", "--runs", runs_folder)
    assert (status, len(err.splitlines())) == (2, 1)
    status, _, err = call("inspect", "cifar_resnet-8", "--runs", runs_folder)
    assert status == 2
    assert "name images with --data" in err or "say what to test it on" in err
    made_up.squares(tmp_path / "colour.npz", SIDE, 3, CLASSES, 8, 4)
    words = ("--data", tmp_path / "colour.npz", "--runs", runs_folder)
    status, _, err = call("inspect", "cifar_resnet-8", *words)
    assert status == 2
    assert "channels: 3" in err


def test_image_files_of_other_classes_without_parts(call, runs_folder, tmp_path):
    rng = np.random.default_rng(0)
    for k, name in enumerate(("blue", "green", "red")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            picture = rng.integers(0, 120, (20 + k, 24, 3), dtype=np.uint8)
            picture[..., 2 - k] += 100
            Image.fromarray(picture).save(tmp_path / "photos" / name / f"{i:02}.png")
    (tmp_path / "photos" / "red" / "bad.png").write_bytes(b"no picture")
    made_up.run(runs_folder, "cifar_resnet:14", SIDE, 3, CLASSES, {"width": 0.5})
    words = ("--data", tmp_path / "photos", "--runs", runs_folder, "--json", "--bits", 8)
    status, out, err = call("inspect", "cifar_resnet-14", *words)
    assert status == 0, err
    assert "left out: " in err
    answer = json.loads(out)
    page = Path(answer["report"]).read_text()
    assert "every fifth image is a test image here" in page
    assert "the class that the network finds" in page
    assert "are not the network" in answer["left_out"]["gradients"]
    with np.load(answer["arrays"]) as file:
        # Six of seven, and without the last, which is the bad one.
        assert file["nearest/queries"].tolist() == [0, 5, 10, 20, 25]
        assert file["codes/tested_ids"].tolist() == [0, 5, 10, 15, 20, 25]
        assert len(file["codes/training_ids"]) == 24
        assert file["images/pictures"].shape == (5, SIDE, SIDE, 3)
        first = file["images/pictures"][0].astype(int)
        assert first[..., 2].mean() > first[..., 0].mean() + 50  # blue

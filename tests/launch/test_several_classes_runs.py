"""What verbs do with images of several classes each: training on, tests, predictions, refusals."""

import json
from pathlib import Path

import pytest

from experiments.runs import runs
from experiments.testing import predictions
from launch import row_states
from tests import made_up


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of runs with an imported network."""
    folder = tmp_path_factory.mktemp("runs")
    made_up.run(folder, "cifar_resnet:8", 8, 3, 5, {"width": 0.25})
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    made_up.voc(root / "VOCdevkit" / "VOC2007")
    return root


@pytest.fixture
def run_in(call, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *words: call(*words, "--runs", folder)


def tuned(run_in, sets, *words):
    """What `transfer --head finetune` says, its run's folder, and what it says on stderr."""
    words = ("--data", sets, "--head", "finetune", *words, "--json")
    status, out, err = run_in("transfer", "cifar_resnet-8-made", *words)
    assert status == 0, err
    answer = json.loads(out)
    (result,), (folder,) = answer["results"], answer["runs"]
    return result, Path(folder), err


def test_a_network_is_trained_on_for_several_classes_an_image(run_in, sets):
    words = ("--from", "stage3", "--set", "train.epochs=2", "--precision", "eleven_points")
    result, folder, err = tuned(run_in, sets, *words)
    assert "VOC2007: images may be of several classes" in err
    assert "(train.loss=binary)" in err
    (split,) = result["splits"]
    assert (split["train"], split["test"], result["layer"]) == (22, 12, "from stage3")
    assert split["errors"] is None
    tested = predictions.load(folder / "predictions" / "test-center.npz")
    assert split["mean_average_precision"] == tested.mean_average_precision("eleven_points")
    assert split["by_class"] == tested.average_precisions("eleven_points")
    run = runs.Run(folder)
    config = run.config()
    assert (config.data.name, config.train.loss) == ("voc", "binary")
    # Every verb that reads the run.
    row = row_states.of_runs([run])[run.id]
    assert row.error == pytest.approx(100 - tested.mean_average_precision())
    status, out, _ = run_in("evaluate", folder, "--protocol", "center,dense", "--fusion")
    assert status == 0
    words = " ".join(out.split())
    assert "mean AP %" in words
    assert "top-1" not in words
    assert "average precision %: cow " in words
    status, _, err = run_in("compare", folder, "--protocol", "center,dense")
    assert (status, "several classes each are not right or wrong" in err) == (2, True)
    status, _, err = run_in("localise", folder)
    assert (status, "says classes, not boxes" in err) == (2, True)
    image = sets / "VOCdevkit/VOC2007/JPEGImages/000001.jpg"
    status, out, _ = run_in("predict", image, "--run", folder, "--json")
    (shown,) = json.loads(out)["images"]
    assert status == 0
    assert sum(class_["probability"] for class_ in shown["classes"]) != pytest.approx(1, abs=1e-3)


def test_the_last_layer_alone_becomes_a_run_that_is_tested_alike(run_in, sets):
    result, folder, _ = tuned(run_in, sets, "--from", "head", "--set", "train.epochs=4")
    (split,) = result["splits"]
    status, out, err = run_in("evaluate", folder, "--data", sets, "--json")
    assert status == 0, err
    (tested,) = json.loads(out)
    assert tested["mean_average_precision"] == pytest.approx(split["mean_average_precision"])
    assert list(tested["average_precision"].values()) == pytest.approx(split["by_class"])
    status, _, err = run_in("evaluate", folder, "--data", "digits")
    assert (status, "digits does not exist" in err) == (2, True)


def test_a_linear_head_is_a_network_of_such_classes(run_in, sets):
    status, out, err = run_in("transfer", "cifar_resnet-8-made", "--data", sets, "--json")
    assert status == 0, err
    answer = json.loads(out)
    (result,), (folder,) = answer["results"], answer["runs"]
    status, out, err = run_in("evaluate", folder, "--data", sets, "--json")
    assert status == 0, err
    (tested,) = json.loads(out)
    (split,) = result["splits"]
    assert tested["mean_average_precision"] == pytest.approx(split["mean_average_precision"])


def test_a_table_and_a_report_say_what_the_figure_is(run_in, sets, tmp_path):
    words = ("--data", sets, "--head", "finetune", "--from", "head", "--report", tmp_path / "told")
    status, out, err = run_in("transfer", "cifar_resnet-8-made", *words, "--set", "train.epochs=1")
    assert status == 0, err
    words = " ".join(out.split())
    assert "mean AP" in words
    assert "average precision" in words
    page = (tmp_path / "told" / "report.html").read_text()
    assert "the mean over classes of the average precision" in page
    assert "Not drawn: images may be of several classes" in page


@pytest.mark.slow
def test_an_inspection_leaves_out_what_needs_one_class_an_image(run_in, sets):
    words = ("--data", sets, "--parts", "nearest,occlusion,statistics", "--json")
    status, out, err = run_in("inspect", "cifar_resnet-8-made", *words)
    assert status == 0, err
    answer = json.loads(out)
    assert answer["left_out"] == {"gradients": "images may be of several classes"}
    page = Path(answer["report"]).read_text()
    assert "nearest of 24 training images" in page
    assert "Below each image its class" not in page


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--set", "train.loss=network"), "set train.loss=binary"),
        (("--from", "head", "--set", "train.loss=network"), "set train.loss=binary"),
        (("--set", "data.balanced=true"), "data.balanced=True is for images of one class each"),
    ],
)
def test_what_such_images_cannot_have_is_told_in_a_line(run_in, sets, words, told):
    words = ("--data", sets, "--head", "finetune", *words)
    status, _, err = run_in("transfer", "cifar_resnet-8-made", *words)
    assert status == 2
    assert told in err.splitlines()[-1]


def test_classes_that_no_test_image_shows_are_told_before_the_training(run_in, tmp_path):
    made_up.voc(tmp_path / "VOC2007")
    file = tmp_path / "VOC2007/ImageSets/Main/train_test.txt"
    file.write_text(file.read_text().replace(" 1\n", "-1\n"))
    words = ("--data", tmp_path, "--head", "finetune")
    status, _, err = run_in("transfer", "cifar_resnet-8-made", *words)
    assert status == 2
    assert "class 'train' lacks test images" in err.splitlines()[-1]


def test_a_training_names_the_set_and_the_loss(run_in, call, sets, study):
    words = ("train", study, "--set", "data.name=voc", "--set", f"data.path={sets}")
    status, _, err = run_in(*words)
    assert status == 2
    assert "train.loss='network' gives each image one class" in err.splitlines()[-1]
    small = ("train.loss=binary", "train.batch_size=6", "train.steps=2")
    status, out, err = run_in(*words, *(f"--set={setting}" for setting in small))
    assert status == 0, err
    assert "mean average precision" in out + err
    status, _, err = call("data", "check", sets, "--data", "voc")
    assert (status, "`data check` is for images of one class each" in err) == (2, True)

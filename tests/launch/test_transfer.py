"""`cnn-depth features` and `cnn-depth transfer`: what they print, make, keep and refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import cnn_arch
from cnn_arch import pretrained, weight_files
from experiments import data as data_lib
from experiments import weights
from experiments.report import transfer as transfer_report
from experiments.runs import runs
from experiments.testing import predictions
from experiments.transfer import features, finetune, result_store, transfer
from input_pipeline.sources.collection import ANY, TEST, TRAIN
from tests.experiments.test_report import smallest_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of runs with an imported network."""
    folder = tmp_path_factory.mktemp("runs")
    net = cnn_arch.create("cifar_resnet:8", rngs=nnx.Rngs(0))
    weight_files.write(folder / "net.pth", pretrained.export(net, "cifar"))
    weights.import_run(folder / "net.pth", "cifar_resnet:8", folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder without parts of 16 pictures of each of three classes, which colour tells apart."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "photos"
    for k, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir(parents=True)
        for i in range(16):
            picture = rng.integers(0, 120, (36, 40, 3), dtype=np.uint8)
            picture[..., 2 - k] += 100
            Image.fromarray(picture).save(root / name / f"{i:02}.png")
    return root


@pytest.fixture
def run_in(call, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *words: call(*words, "--runs", folder)


def test_a_folder_of_classes_becomes_a_tested_classifier(run_in, folder, photos):
    status, out, err = run_in("transfer", "cifar_resnet-8", "--data", photos, "--json")
    assert status == 0, err
    answer = json.loads(out)
    (result,), (run,) = answer["results"], answer["runs"]
    (split,) = result["splits"]
    assert (split["train"], split["test"]) == (36, 12)
    assert result["layer"] == "pool"
    assert result["class_names"] == ["blue", "green", "red"]
    assert split["errors"] <= 1
    assert set(split["tried"]) == {"0.01", "0.1", "1", "10", "100", "1000"}
    assert np.sum(split["confusion"]) == 12
    # The run says the same of the same images, and classifies files.
    status, out, _ = run_in("predict", photos / "red" / "00.png", "--run", run, "--json")
    (image,) = json.loads(out)["images"]
    assert (status, image["classes"][0]["name"]) == (0, "red")
    (logits,) = features.Extractor(runs.Run(Path(run)), mesh(), str(photos)).features(
        features.FeatureRequest("fc")
    )
    labels = logits.of.labels
    _, test = next(transfer.split(logits.of, transfer.HeadSettings()))
    wrong = logits.values[test].argmax(axis=1) != labels[test]
    assert int(wrong.sum()) == split["errors"]
    # It leaves as other runs do.
    exported = folder / "red.pth"
    status, _, err = run_in("weights", "export", run, "--naming", "cifar", "--out", exported)
    assert status == 0, err
    assert weight_files.read(exported)["linear.weight"].shape == (3, 64)


def mesh():
    from launch import devices

    return devices.mesh()


def test_layers_are_named_below_their_depths_where_that_has_room():
    canvas, labels = transfer_report._named_depths({2: ["pool1"], 5: ["pool2", "conv3"]})
    assert labels == {2: "2\npool1", 5: "5\npool2\nconv3"}
    assert canvas.below >= 0.15 * 4  # numbers, two names and what the axis is called
    near = {depth: [f"inception_{depth}/output"] for depth in range(2, 12)}
    canvas, labels = transfer_report._named_depths(near)
    assert labels == {depth: str(depth) for depth in near}
    assert canvas.figure.get_size_inches()[0] < 9  # one panel does not need the page's width


def test_layers_are_ranked_and_a_report_is_written(run_in, photos, tmp_path):
    words = ("--layer", "all", "--head", "svm", "--train-per-class", 5, "--splits", 3)
    status, out, err = run_in(
        "transfer", "cifar_resnet-8", "--data", photos, *words, "--report", tmp_path / "told"
    )
    assert status == 0, err
    assert "svm on the features of cifar_resnet-8" in out
    assert "15 training and 33 test images, 3 splits" in out
    assert "By class" in out
    page = (tmp_path / "told" / "report.html").read_text()
    assert "Test error against the depth of the layer" in page
    assert "Confusion of the best head" in page
    assert smallest_text(page) >= 9
    assert "<image" not in page  # which would stay light on a dark page
    document = json.loads((tmp_path / "told" / "transfer.json").read_text())
    by_class = json.loads((tmp_path / "told" / "classes.json").read_text())["rows"]
    assert [(row["class"], row["n"]) for row in by_class] == [
        *(("blue", 33), ("green", 33), ("red", 33))
    ]
    layers = [row["layer"] for row in document["rows"]]
    assert sorted(layers) == ["conv1", "pool", "stage1", "stage2", "stage3"]
    values = [row["wrong"] for row in document["rows"]]
    assert values == sorted(values)
    assert [row["depth"] for row in document["rows"] if row["layer"] == "stage2"] == [5]


def test_features_are_written_for_others(run_in, photos, tmp_path):
    words = ("features", "cifar_resnet-8", "--data", photos, "--l2", "--out", "f.npz", "--json")
    status, out, err = run_in(*words)
    assert status == 0, err
    (answer,) = json.loads(out)
    with np.load(tmp_path / "f.npz") as file:
        assert file["features"].shape == (answer["n"], answer["features"]) == (48, 64)
        np.testing.assert_allclose(np.linalg.norm(file["features"], axis=1), 1, rtol=1e-5)
        assert file["classes"].tolist() == ["blue", "green", "red"]
        assert file["parts"].tolist() == ["any"] * 48
        assert file["labels"].tolist() == [0] * 16 + [1] * 16 + [2] * 16


def test_networks_side_by_side(run_in, folder, photos):
    net = cnn_arch.create("cifar_resnet:14", rngs=nnx.Rngs(1))
    weight_files.write(folder / "other.pth", pretrained.export(net, "cifar"))
    second = weights.import_run(folder / "other.pth", "cifar_resnet:14", folder)
    words = ("--data", photos, "--together", "--normalise", "l2", "--json")
    status, out, err = run_in("transfer", "cifar_resnet-8", second.id, *words)
    assert status == 0, err
    answer = json.loads(out)
    (result,) = answer["results"]
    assert result["features"] == 128
    assert result["run"].endswith(f" + {second.id}")
    assert answer["runs"] == []
    first = runs.Run(next(folder.glob("cifar_resnet-8-*")))
    how = transfer.HeadSettings(normalise="l2")
    stored = result_store.by_fingerprint(
        [first, second], "pool", result["passes"], result["fingerprint"], how
    )
    assert stored == result
    assert (
        result_store.by_fingerprint([first, second], "pool", result["passes"], "other", how) is None
    )
    groups = [
        features.Extractor(run, mesh(), str(photos)).features(features.FeatureRequest())
        for run in (first, second)
    ]
    x = transfer.side_by_side(groups, how)
    np.testing.assert_allclose(np.linalg.norm(x[:, :64], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(x[:, 64:], axis=1), 1, rtol=1e-5)
    status, _, err = run_in("transfer", "cifar_resnet-8", "--data", photos, "--together")
    assert (status, "--together is for several runs" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--layer", "pol"), "'pol'"),
        (("--strength", "-1"), "--strength -1"),
        (("--strength", "nan"), "--strength nan"),
        (("--head", "knn", "--strength", "1.5"), "a whole number of neighbours"),
        (("--head", "finetune", "--which", "best"), "--which goes with features"),
        (("--head", "finetune", "--from", "head", "--head-rate", "2"), "not --from head"),
        (("--splits", "0"), "--splits 0"),
        (("--test-share", "1"), "--test-share 1"),
        (("--train-per-class", "16"), "class 'blue' has 16 images"),
        (("--test-per-class", "5"), "--test-per-class goes with --train-per-class"),
        (("--head", "knn", "--solver", "device"), "--solver device is for linear heads"),
        (("--protocol", "googlenet_144"), "features are taken by center"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(run_in, photos, words, told):
    status, _, err = run_in("transfer", "cifar_resnet-8", "--data", photos, *words)
    assert status == 2
    assert told in err.splitlines()[-1]


def test_a_set_of_one_class_is_refused(run_in, tmp_path, photos):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "blue").symlink_to(photos / "blue")
    status, _, err = run_in("transfer", "cifar_resnet-8", "--data", tmp_path / "one")
    assert status == 2
    assert "one class only" in err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--normalise", "l2"), "does not divide features by their length"),
        (("--head", "knn"), "neighbours are no layer"),
        (("--flip",), "a network sees one view"),
        (("--layer", "stage1"), "sees pool, and this one stage1"),
    ],
)
def test_a_head_that_is_no_network_makes_no_run(run_in, photos, words, why):
    status, out, _ = run_in("transfer", "cifar_resnet-8", "--data", photos, *words)
    assert status == 0
    assert why in " ".join(out.split())


def set_of(parts, labels, targets=None):
    labels = np.array(labels, np.int32)
    return features.Set(
        "made",
        "",
        ("a", "b"),
        np.arange(len(labels)),
        labels,
        np.array(parts, np.uint8),
        targets,
        None,
        0,
    )


def test_some_classes_are_told_apart(run_in, photos):
    words = ("--data", photos, "--only", "red,blue", "--json")
    status, out, err = run_in("transfer", "cifar_resnet-8", *words)
    assert status == 0, err
    (result,) = json.loads(out)["results"]
    assert result["class_names"] == ["blue", "red"]
    (split,) = result["splits"]
    assert (split["train"], split["test"]) == (24, 8)
    status, _, err = run_in("transfer", "cifar_resnet-8", "--data", photos, "--only", "red,pink")
    assert (status, "'pink'" in err) == (2, True)


def test_a_runs_own_split_is_kept(run_in, folder, photos):
    train = ("train", "residual_depth", "--set", "data.name=folder", "--set", f"data.path={photos}")
    small = {"data.split": 0.25, "data.holdout": 0, "train.steps": 2, "train.batch_size": 8}
    words = [f"--set={key}={value}" for key, value in small.items()]
    status, out, err = run_in(
        *train, "--set", "model.arch=cifar_resnet:8", "--set", "data.pad=0", *words, "--json"
    )
    assert status == 0, err
    run = json.loads(out)["run"]
    status, out, err = run_in("transfer", run, "--json")
    assert status == 0, err
    (result,) = json.loads(out)["results"]
    (split,) = result["splits"]
    tested = predictions.load(Path(run) / "predictions" / "test-center.npz")
    assert (split["train"], split["test"]) == (36, len(tested.ids)) == (36, 12)
    extractor = features.Extractor(runs.Run(Path(run)), mesh(), None)
    assert (extractor.collection.parts == TEST).sum() == 12
    config = finetune.config_of(extractor, finetune.Tuning())  # trained on with the same parts
    named = config.data.name, config.data.path, config.data.split
    assert named == ("folder", str(photos), 0.25)
    assert data_lib.open_data(config.data).dataset.fingerprint == extractor.collection.fingerprint


def test_splits_keep_to_a_sets_parts():
    of = set_of([TRAIN] * 6 + [TEST] * 2, [0, 1] * 4)
    ((train, test),) = transfer.split(of, transfer.HeadSettings(splits=3))
    assert (train.tolist(), test.tolist()) == ([0, 1, 2, 3, 4, 5], [6, 7])
    drawn = list(transfer.split(of, transfer.HeadSettings(splits=3, train_per_class=2)))
    assert [test.tolist() for _, test in drawn] == [[6, 7]] * 3
    assert all(sorted(of.labels[train]) == [0, 0, 1, 1] for train, _ in drawn)
    assert len({tuple(train) for train, _ in drawn}) > 1
    (split,) = transfer.split(of, transfer.HeadSettings(train_per_class=3))  # all there are
    assert split[0].tolist() == [0, 1, 2, 3, 4, 5]
    free = set_of([ANY] * 8, [0, 1] * 4)
    for train, test in transfer.split(free, transfer.HeadSettings(splits=2)):
        assert sorted([*train, *test]) == list(range(8))
        assert sorted(free.labels[test]) == [0, 1]

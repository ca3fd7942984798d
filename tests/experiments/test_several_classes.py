"""Networks trained on images of several classes each: the loss, the figures, what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.metrics import average_precision_score, log_loss

import cnn_arch
from cnn_arch.network import counted_losses, flat_state
from experiments import config as configs
from experiments import data, model_card, weights
from experiments.data import preprocessing
from experiments.network import skeleton
from experiments.report import study
from experiments.runs import checkpoints, results, runs
from experiments.testing import classifier, evaluate, predictions
from experiments.testing.prediction_store import EvaluationSettings
from experiments.testing.predictions import Predictions, PredictionsError
from experiments.training import state, train
from experiments.transfer import finetune
from experiments.transfer.features import Extractor, FeatureRequest
from input_pipeline import DataError
from input_pipeline.sources import open_set
from tests import made_up


def mesh(devices=1):
    kind = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices], axis_types=kind)


@pytest.fixture(scope="module")
def year(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets") / "VOCdevkit" / "VOC2007"
    made_up.voc(root)
    return root


def settings(year, **overrides):
    base = configs.base()
    base.model = configs.model("cifar_resnet:8", width=0.25)
    chosen = {
        "data.name": "voc",
        "data.path": str(year),
        "data.image_size": 8,
        "data.S": (10, 12),
        "data.holdout": 0.25,
        "data.mirror": True,
        "data.divide_by_std": True,
        "test.Q": 10,
        "train.batch_size": 6,
        "train.steps": 8,
        "train.loss": "binary",
        "train.validate_every_epochs": 1.0,
        "schedule.kind": "constant",
        "schedule.lr": 0.01,
    }
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    return configs.override(base, chosen | overrides, "test")


def create(config, folder):
    opened = data.open_data(config.data)
    return runs.create(config, opened.fingerprint, folder, {"study": "t", "row": "r"})


def trained(run, stop=lambda: False):
    with run.lock():
        return train.train(run, mesh(), stop=stop)


@pytest.fixture(scope="module")
def run(year, tmp_path_factory):
    run = create(settings(year), tmp_path_factory.mktemp("runs"))
    trained(run)
    return run


# ---------------------------------------------------------------------------------- the loss


def drawn(n=7, classes=5, seed=0):
    """Logits and targets of which some count neither way; of the last image none counts."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(-1, 2, (n, classes)).astype(np.float32)
    targets[-1] = -1
    return 3 * rng.standard_normal((n, classes)).astype(np.float32), targets


def test_the_loss_is_the_mean_logistic_cross_entropy_of_the_classes_that_count():
    logits, targets = drawn()
    losses = counted_losses(jnp.asarray(logits), jnp.asarray(targets))
    class_losses = np.asarray(optax.sigmoid_binary_cross_entropy(logits, np.maximum(targets, 0)))
    expected = [class_losses[i][targets[i] >= 0].mean() for i in range(len(class_losses) - 1)]
    np.testing.assert_allclose(losses[:-1], expected, rtol=1e-6)
    assert losses[-1] == 0
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    for i in range(len(class_losses) - 1):
        counts = targets[i] >= 0
        loss = log_loss(targets[i][counts], p[i][counts], labels=[0, 1])
        assert losses[i] == pytest.approx(loss, rel=1e-5)
    net = cnn_arch.create("cifar_resnet:8", rngs=nnx.Rngs(0))
    net.binary_loss = net.several_classes = True
    np.testing.assert_array_equal(net.loss_of(jnp.asarray(logits), jnp.asarray(targets)), losses)


def test_classes_that_do_not_count_have_no_gradient():
    logits, targets = drawn()
    total = lambda x, t: counted_losses(x, t).sum()  # noqa: E731
    gradient = np.asarray(jax.grad(total)(jnp.asarray(logits), jnp.asarray(targets)))
    assert (gradient[targets < 0] == 0).all()
    n = np.maximum((targets >= 0).sum(axis=1, keepdims=True), 1)
    expected = np.where(targets < 0, 0, (1 / (1 + np.exp(-logits)) - targets) / n)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_a_step_learns_the_targets_of_the_images_it_sees(year):
    config = settings(year, train__label_smoothing=0.1, data__holdout=0.0, train__batch_size=12)
    opened = data.open_data(config.data)
    prepared = data.prepare(config, opened=opened)
    training = state.start(config, prepared, mesh(), None)
    feed = prepared.feed(config, mesh(), 0)
    batch = {name: array[0] for name, array in feed.next(range(1)).items()}
    feed.close()
    targets = opened.targets["train"][np.asarray(batch["indices"])]
    np.testing.assert_array_equal(batch["labels"], targets)
    assert (targets == -1).any()
    x, _ = prepared.train_views(training.constants, np.int32(config.seed), batch)
    params, stats = training.state["params"], training.state["stats"]
    logits = skeleton(config, 3, 3, train=True).merge(params, stats)(x)
    smoothed = 0.9 * targets + 0.1 / 3
    class_losses = np.asarray(optax.sigmoid_binary_cross_entropy(logits, smoothed))
    counts = targets >= 0
    loss = (np.where(counts, class_losses, 0).sum(axis=1) / counts.sum(axis=1)).mean()
    training.advance(1)
    training.finish_steps()
    training.close()
    assert training.window.loss == pytest.approx(loss, rel=1e-5)
    assert training.window.mean_error is None


# ---------------------------------------------------------------------------------- the figures


def told_by(run):
    return predictions.load(run.folder / "predictions" / "test-center.npz")


def test_a_run_tells_the_mean_average_precision(run, year):
    result, tested = run.read("result"), told_by(run)
    targets = open_set("voc", year).targets[1]
    np.testing.assert_array_equal(tested.targets, targets)
    assert tested.posteriors.shape == (12, 3)
    by_class = []
    for k in range(3):
        counts = targets[:, k] >= 0
        p, t = tested.posteriors[counts, k], targets[counts, k]
        by_class.append(100 * average_precision_score(t, p))
    assert tested.average_precisions("none") == pytest.approx(by_class)
    assert tested.mean_average_precision("none") == pytest.approx(np.mean(by_class))
    assert result["mean_average_precision"] == tested.mean_average_precision()
    assert list(result["average_precision"]) == ["cow", "dog", "train"]
    assert "top1_error" not in result
    assert 0 < result["train_mean_average_precision"] <= 100
    p, counts = tested.posteriors.astype(np.float64), targets >= 0
    class_losses = -np.log(np.where(targets == 1, p, 1 - p))
    losses = np.where(counts, class_losses, 0).sum(axis=1) / counts.sum(axis=1)
    np.testing.assert_allclose(tested.losses, losses, rtol=1e-4)
    assert result["test_loss"] == pytest.approx(losses.mean(), rel=1e-4)


def test_posteriors_are_each_classs_own(run, year):
    tested, model = told_by(run), classifier.load(run.folder)
    part = open_set("voc", year).test
    views = np.stack([model.read(year / part.where(i)) for i in range(12)])
    np.testing.assert_allclose(np.exp(model.log_posteriors(views)), tested.posteriors, atol=1e-5)
    logits = np.log(tested.posteriors) - np.log1p(-tested.posteriors)
    assert np.abs(tested.posteriors.sum(axis=1) - 1).max() > 1e-2
    assert np.isfinite(logits).all()


def test_the_log_has_the_precision_of_held_out_images_and_no_errors(run):
    lines = run.logged()
    keys = set().union(*lines)
    assert {"val_loss", "val_mean_average_precision", "train_loss"} <= keys
    assert not [key for key in keys if key.endswith("error")]
    step, _ = checkpoints.load_network(run.checkpoints, "best")
    best = max(
        (line for line in lines if "val_loss" in line),
        key=lambda line: line["val_mean_average_precision"],
    )
    assert step == best["step"]


def test_the_training_ends_where_the_precision_gets_no_better(year, tmp_path):
    run = create(settings(year, train__patience=2, train__steps=60, schedule__lr=1e-12), tmp_path)
    result, key = trained(run), "val_mean_average_precision"
    values = [line[key] for line in run.logged() if key in line]
    assert len(values) < 20  # there are three steps in an epoch
    assert result["steps"] == 3 * len(values)
    assert max(values[-2:]) <= max(values[:-2])
    assert values[-3] > max(values[:-3], default=0)


def test_a_stopped_training_ends_with_the_same_bits(run, year, tmp_path):
    again = create(settings(year), tmp_path)
    assert again.id == run.id
    stops = iter([False] * 4 + [True])
    with pytest.raises(train.Interrupted):
        trained(again, stop=lambda: next(stops, True))
    trained(again)
    (_, first), (_, second) = (checkpoints.load_network(r.checkpoints) for r in (run, again))
    for kind in first:
        for name, array in first[kind].items():
            np.testing.assert_array_equal(array, second[kind][name], err_msg=name)
    np.testing.assert_array_equal(told_by(run).posteriors, told_by(again).posteriors)
    figures = [
        [line for line in r.logged() if "val_mean_average_precision" in line] for r in (run, again)
    ]
    assert figures[0] == figures[1]


DEVICES = """
import sys
import jax, numpy as np
from experiments import data
from experiments.training import state
from tests.experiments.test_several_classes import mesh, settings

found = []
for devices in (1, 2):
    config = settings(sys.argv[1])
    prepared = data.prepare(config, opened=data.open_data(config.data))
    training = state.start(config, prepared, mesh(devices), None)
    training.advance(1)
    training.finish_steps()
    training.close()
    params = {name: np.asarray(array) for name, array in training.state["params"].items()}
    found.append((training.window.loss, params))
(loss, one), (other, two) = found
assert np.isclose(loss, other, rtol=1e-6), (loss, other)
for name, array in one.items():
    assert np.allclose(two[name], array, rtol=0, atol=1e-6 * max(1, np.abs(array).max())), name
"""


@pytest.mark.slow
def test_two_devices_make_the_step_of_one(fresh_python, year):
    process = fresh_python("-c", DEVICES, str(year), devices=2)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    "protocol", ["center", "dense", pytest.param("multi_crop", marks=pytest.mark.slow)]
)
def test_every_protocol_tells_the_precision(run, protocol):
    subject = evaluate.Subject(run, mesh())
    result = subject.tested(protocol).to_json("eleven_points")
    assert 0 < result["mean_average_precision"] <= 100
    assert list(result["average_precision"]) == ["cow", "dog", "train"]
    assert "top1_error" not in result
    assert json.loads(json.dumps(result)) == {**result, "scales": [10]}
    assert subject.tested(protocol).reused


def test_other_images_are_tested_by_the_names_of_their_classes(run, tmp_path):
    folder = tmp_path / "VOC2012"
    made_up.voc(folder)
    for file in (folder / "ImageSets/Main").glob("dog_*.txt"):
        file.rename(file.with_name(file.name.replace("dog", "aeroplane")))
    with pytest.raises(DataError, match="aeroplane"):
        evaluate.Subject(run, mesh(), EvaluationSettings(data=str(folder))).tested()
    for file in (folder / "ImageSets/Main").glob("aeroplane_*.txt"):
        file.unlink()
    tested = evaluate.Subject(run, mesh(), EvaluationSettings(data=str(folder))).tested()
    own = told_by(run)
    assert tested.predictions.targets[:, 1].tolist() == [-1] * 12
    np.testing.assert_array_equal(tested.predictions.targets[:, ::2], own.targets[:, ::2])
    np.testing.assert_allclose(tested.predictions.posteriors, own.posteriors, atol=1e-5)
    precisions = tested.to_json()["average_precision"]
    assert precisions["dog"] is None
    assert (
        precisions["cow"]
        == evaluate.error_counts(own, ("cow", "dog", "train"))["average_precision"]["cow"]
    )


# ---------------------------------------------------------------------------------- predictions


def made(n=40, seed=0):
    rng = np.random.default_rng(seed)
    posteriors = (1 - 1e-6 * rng.random((n, 3))).astype(np.float32)  # which rounding would tie
    targets = rng.integers(-1, 2, (n, 3)).astype(np.int8)
    return Predictions(np.arange(n), np.zeros(n, int), posteriors, targets=targets)


def test_predictions_are_kept_to_the_bit(tmp_path):
    original = made()
    predictions.save(tmp_path / "p.npz", original, {})
    loaded = predictions.load(tmp_path / "p.npz")
    np.testing.assert_array_equal(loaded.posteriors, original.posteriors)
    np.testing.assert_array_equal(loaded.targets, original.targets)
    assert loaded.mean_average_precision() == original.mean_average_precision()
    assert loaded.ranks is None
    assert loaded.error == 100 - loaded.mean_average_precision()


def test_predictions_of_several_classes_are_not_right_or_wrong():
    tested = made()
    for k in (1, 5):
        with pytest.raises(PredictionsError, match="several classes each are not right or wrong"):
            tested.topk_wrong(k)


def test_the_mean_of_passes_keeps_the_targets_and_refuses_others():
    first, second = made(), made(seed=1)
    same = Predictions(first.ids, first.labels, second.posteriors, targets=first.targets)
    mean = predictions.mean([first, same.take(np.arange(40)[::-1])])
    np.testing.assert_array_equal(mean.targets, first.targets)
    np.testing.assert_allclose(
        mean.posteriors, (first.posteriors + second.posteriors) / 2, rtol=1e-6
    )
    plain = Predictions(first.ids, first.labels, first.posteriors)
    for different in (second, plain):
        with pytest.raises(PredictionsError, match="their classes differ"):
            predictions.mean([first, different])
    nothing = Predictions(
        first.ids, first.labels, first.posteriors, targets=np.zeros_like(first.targets)
    )
    with pytest.raises(PredictionsError, match="no image shows a class"):
        nothing.mean_average_precision()


# ---------------------------------------------------------------------------------- what is made


def test_a_report_tells_the_figure_and_its_name(run):
    row = results.Row(
        "s", "net", "cifar_resnet:8", {0: run.folder, 1: run.folder}, None, "finished"
    )
    (result,) = results.collect([row])
    table = study.table([result], "title", "profile")
    (record,) = table.document["rows"]
    error = 100 - run.read("result")["mean_average_precision"]
    assert record["top1_error"] == pytest.approx(error)
    assert record["top1_interval"] != results.WILSON
    assert record["top5_error"] is None
    assert record["error_of"] == study.SEVERAL
    assert study.SEVERAL_LEGEND in table.legend[0]
    assert study.report([result], table).figures is not None


def test_exported_weights_keep_that_classes_have_probabilities_of_their_own(run, tmp_path):
    weights.export_run(run, tmp_path / "net.safetensors", "cnn-depth")
    back = weights.import_run(tmp_path / "net.safetensors", None, tmp_path)
    prep = preprocessing.load(back.folder / preprocessing.FILE)
    assert prep.several
    assert prep.class_names == ("cow", "dog", "train")
    card = model_card.text(run, classifier.load(run.folder))
    value = run.read("result")["mean_average_precision"]
    assert f"| mean average precision | {value:.2f}% (12 images, center) |" in card
    assert "| classes | 3, several an image |" in card


# ---------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("train.loss", "network", "gives each image one class, .*VOC2007.*set train.loss=binary"),
        ("train.until_error", 5.0, "needs the training error.*set train.until_error=0"),
        ("data.classes", ("cow", "dog"), r"one class each, .*'voc'; set data.classes=\(\)"),
        ("data.balanced", True, "one class each, .*'voc'; set data.balanced=False"),
        ("data.boxes", "boxes.csv", "one class each, .*'voc'; set data.boxes=''"),
    ],
)
def test_what_needs_one_class_an_image_is_refused(year, key, value, told):
    config = settings(year, **{key.replace(".", "__"): value})
    with pytest.raises(configs.ConfigError, match=f"{key}=.*{told}"):
        data.prepare(config)


def test_a_warm_up_by_the_training_error_is_refused(year):
    warm = {"schedule__warmup": "until_error", "schedule__warmup_lr": 0.01}
    with pytest.raises(configs.ConfigError, match=r"until_error' needs.*set schedule.warmup=none"):
        data.prepare(settings(year, **warm))


def test_a_year_that_is_taken_for_a_folder_of_classes_says_what_to_set(year, tmp_path):
    with pytest.raises(DataError, match=r"several classes each.*trainings with data\.name=voc"):
        open_set("folder", year)
    with pytest.raises(DataError, match=r"holds no year of VOC; expected .*VOCdevkit/VOC2007"):
        open_set("voc", tmp_path)
    with pytest.raises(DataError, match=r"data\.path is empty"):
        data.open_data(settings("").data)


def test_a_part_without_a_class_is_refused(tmp_path):
    made_up.voc(tmp_path / "VOC2007")
    for file in (tmp_path / "VOC2007/ImageSets/Main").glob("*_test.txt"):
        file.write_text(file.read_text().replace("  1\n", " -1\n"))
    with pytest.raises(DataError, match="no image of its part 'test' shows a class"):
        data.prepare(settings(tmp_path))


# ---------------------------------------------------------------------------------- the last layer


def test_the_last_layer_learns_on_features_as_the_frozen_network_does(tmp_path):
    year = tmp_path / "VOC2007"
    made_up.voc(year, side=8)  # so that no crop is drawn, and nothing scaled
    shallow = made_up.run(tmp_path / "runs", "cifar_resnet:8", 8, 3, 5, {"width": 0.25})
    extractor = Extractor(shallow, mesh(), str(year))
    overrides = {"train.epochs": 3.0, "schedule.lr": 0.1}
    tuning = finetune.Tuning(finetune.HEAD, overrides=overrides)
    config = finetune.config_of(extractor, tuning)
    assert finetune.on_features(extractor, config, tuning) == ""
    (features,) = extractor.features(FeatureRequest())
    rows, test = finetune.rows_of(features, extractor.collection, config)
    assert (len(rows), len(test)) == (24, 12)
    head = finetune.train_head(extractor, config, features, rows, extractor.collection.class_names)
    seeded = {"seeding.run": shallow.id, "seeding.weights": shallow.imported}
    frozen = create(configs.override(config, seeded, "test"), tmp_path / "runs")
    trained(frozen)
    arrays = flat_state(nnx.state(classifier.load(frozen.folder).network))
    np.testing.assert_allclose(head.weights, arrays["fc/kernel"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(head.bias, arrays["fc/bias"], rtol=1e-3, atol=1e-5)

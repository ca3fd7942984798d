"""Training a network on: the config of it, and the last layer alone on what it sees."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import ArchitectureError, pretrained, weight_files
from cnn_arch.network import flat_state
from experiments import config as configs
from experiments import data as data_lib
from experiments import network, weights
from experiments.config import ConfigError
from experiments.runs import runs
from experiments.testing import classifier
from experiments.training import optimizer, train
from experiments.transfer import finetune
from experiments.transfer.features import Extractor, FeatureRequest
from input_pipeline import balanced
from launch import devices


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(folder):
    """An imported network."""
    net = cnn_arch.create("cifar_resnet:8", rngs=nnx.Rngs(0))
    weight_files.write(folder / "net.pth", pretrained.export(net, "cifar"))
    return weights.import_run(folder / "net.pth", "cifar_resnet:8", folder)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """An .npz of three classes that colour tells apart, one of them rare."""
    file = tmp_path_factory.mktemp("data") / "colours.npz"
    rng, content = np.random.default_rng(0), {}
    for part, n in (("train", 200), ("test", 60)):
        labels = np.minimum(np.arange(n) % 7, 2)
        images = rng.integers(0, 150, (n, 32, 32, 3), dtype=np.uint8)
        images[np.arange(n), :, :, labels] += 60
        content |= {f"{part}_images": images, f"{part}_labels": labels}
    np.savez(file, **content)
    return str(file)


def subject(run, arrays):
    return Extractor(run, devices.mesh(), arrays)


def tuned(run, arrays, first, **overrides):
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    return finetune.config_of(subject(run, arrays), finetune.Tuning(first, overrides=overrides))


def test_the_last_layer_learns_on_features_as_the_frozen_network_does(run, arrays, folder):
    config = tuned(run, arrays, finetune.HEAD, train__epochs=3.0, schedule__lr=0.1)
    extractor = subject(run, arrays)
    overrides = {"train.epochs": 3.0, "schedule.lr": 0.1}
    tuning = finetune.Tuning(finetune.HEAD, overrides=overrides)
    assert finetune.on_features(extractor, config, tuning) == ""
    (features,) = extractor.features(FeatureRequest())
    rows, test = finetune.rows_of(features, extractor.collection, config)
    assert (len(rows), len(test)) == (200, 60)
    head = finetune.train_head(extractor, config, features, rows, extractor.collection.class_names)
    # The same config, by the training of every run.
    seeded = configs.override(
        config, {"seeding.run": run.id, "seeding.weights": run.imported}, "test"
    )
    opened = data_lib.open_data(seeded.data)
    tuned_run = runs.create(seeded, opened.fingerprint, folder, {"study": "t", "row": "r"})
    with tuned_run.lock():
        train.train(tuned_run, devices.mesh())
    state = flat_state(nnx.state(classifier.load(tuned_run.folder).network))
    np.testing.assert_allclose(head.weights, state["fc/kernel"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(head.bias, state["fc/bias"], rtol=1e-3, atol=1e-5)
    before = flat_state(nnx.state(classifier.load(run.folder).network))
    for name, array in before.items():
        if not name.startswith("fc/"):
            np.testing.assert_array_equal(array, state[name], err_msg=name)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("data.mirror", True, "data.mirror needs the images"),
        ("data.holdout", 0.1, "data.holdout needs the images"),
        ("optimizer.freeze", ("conv1/*",), "optimizer.freeze needs the images"),
        ("train.ema", 0.9, "train.ema needs the images"),
        ("train.loss", "binary", "train.loss needs the images"),
        ("test.Q", 40, "test.Q needs the images"),
        ("schedule.warmup", "until_error", "needs the training error of each step"),
    ],
)
def test_who_cannot_learn_on_features_says_why(run, arrays, key, value, why):
    tuning = finetune.Tuning(finetune.HEAD, overrides={key: value})
    extractor = subject(run, arrays)
    assert why in finetune.on_features(extractor, finetune.config_of(extractor, tuning), tuning)
    from_stage3 = finetune.Tuning("stage3")
    assert "other layers" in finetune.on_features(
        extractor, finetune.config_of(extractor, from_stage3), from_stage3
    )


@pytest.mark.parametrize("key", ["data.classes", "data.path", "model.arch"])
def test_what_the_run_and_the_data_say_is_not_overridden(run, arrays, key):
    with pytest.raises(ConfigError, match=f"--set {key}: the run and --data say that"):
        tuned(run, arrays, finetune.ALL, **{key.replace(".", "__"): "x"})


@pytest.mark.parametrize("inverted", [False, True])
def test_a_last_layer_that_learns_alone_sees_what_tests_see(inverted, arrays, folder):
    net = cnn_arch.create(
        "nin:cifar10", rngs=nnx.Rngs(0), width=1 / 16, init="he", inverted_dropout=inverted
    )
    file = folder / f"nin-{inverted}.npz"
    weight_files.write(file, pretrained.export(net, "cnn-depth"))
    options = {"width": 1 / 16, "inverted_dropout": inverted}
    run = weights.import_run(file, "nin:cifar10", folder, options=options, mean=[128.0], std=[64.0])
    config = tuned(run, arrays, finetune.HEAD)
    skeletons = [network.skeleton(config, 10, 3, train=train) for train in (True, False)]
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    values = flat_state(nnx.state(net))
    training, testing = (s.merge(values, {})(jnp.asarray(x)) for s in skeletons)
    net.eval()
    expected = net(jnp.asarray(x))
    assert np.ptp(expected) > 0
    np.testing.assert_array_equal(training, testing)
    np.testing.assert_allclose(testing, expected, rtol=1e-5)


def test_layers_before_the_first_stay_as_they_are(run, arrays):
    assert tuned(run, arrays, "stage2").optimizer.freeze == ("conv1/*", "stage1/*")
    config = tuned(run, arrays, "stage3")
    assert config.optimizer.freeze == ("conv1/*", "stage1/*", "stage2/*")
    assert config.optimizer.rates == (("fc/*", 10.0),)
    assert config.seeding.classifier == "fresh"
    assert (config.data.name, config.data.path) == ("npz", arrays)
    assert tuned(run, arrays, finetune.ALL).optimizer.freeze == ()
    with pytest.raises(ArchitectureError, match="'stage9'"):
        tuned(run, arrays, "stage9")
    with pytest.raises(ConfigError, match=r"schedule\.lt"):
        tuned(run, arrays, finetune.ALL, schedule__lt=1)


def test_a_rare_class_comes_as_often_as_the_others():
    labels = np.array([0] * 7 + [1] * 3 + [2] * 2)
    indices = balanced(labels, seed=0)
    assert np.bincount(labels[indices]).tolist() == [7, 7, 7]
    assert indices.tolist() == sorted(indices)
    assert {*np.bincount(indices)[labels == 1].tolist()} == {2, 3}
    np.testing.assert_array_equal(indices, balanced(labels, seed=0))
    assert balanced(np.array([0, 1, 1, 0]), seed=3).tolist() == [0, 1, 2, 3]


def test_balanced_data_trains_on_all_classes_alike(run, arrays):
    plain, even = (
        data_lib.open_data(tuned(run, arrays, finetune.ALL, data__balanced=how).data)
        for how in (False, True)
    )
    counts = np.bincount(even.parts["train"].labels)
    assert len({*counts.tolist()}) == 1
    assert even.train == counts.sum() > plain.train
    np.testing.assert_array_equal(plain.parts["holdout"].labels, even.parts["holdout"].labels)


TINY = {
    "model.arch": "cifar_resnet:8",
    "model.width": 0.25,
    "data.image_size": 8,
    "train.batch_size": 32,
    "train.steps": 12,
    "train.validate_every_epochs": 0.05,
}


def tiny(**overrides):
    base = configs.base()
    base.model = configs.model("cifar_resnet:8")
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    return configs.override(base, {**TINY, **overrides}, "test")


def trained(config, folder):
    opened = data_lib.open_data(config.data)
    run = runs.create(config, opened.fingerprint, folder, {"study": "t", "row": "r"})
    with run.lock():
        train.train(run, devices.mesh())
    return run


def arrays_of(run):
    return flat_state(nnx.state(classifier.load(run.folder).network, nnx.Param))


def test_layers_are_unfrozen_at_their_part_of_the_training(tmp_path):
    unfreeze = (("stage1/*", 0.5), ("conv1/*", 0.99))
    waits, short = (
        tiny(optimizer__unfreeze=unfreeze, optimizer__weight_decay=0.1, train__steps=steps)
        for steps in (12, 100)
    )
    start, _ = network.initial(waits, 10, 1)
    final = arrays_of(trained(waits, tmp_path))
    moved = {
        name: bool(np.any(np.asarray(final[name]) != np.asarray(a))) for name, a in start.items()
    }
    assert all(moved[name] for name in moved if name.startswith(("stage1/", "stage3/", "fc/")))
    assert not any(moved[name] for name in moved if name.startswith("conv1/"))  # round(11.88) = 12
    assert optimizer.unfrozen(short, start)["stage1/block1/conv1/conv/kernel"] == 0.5


def test_unfreezing_what_stays_frozen_is_refused():
    config = tiny(optimizer__unfreeze=(("stage1/*", 0.5),), optimizer__freeze=("stage*",))
    params, _ = network.initial(config, 10, 1)
    with pytest.raises(ConfigError, match=r"is frozen by optimizer\.freeze for good"):
        optimizer.create(config, params)
    with pytest.raises(ConfigError, match=r"optimizer\.unfreeze"):
        optimizer.create(tiny(optimizer__unfreeze=(("stag/*", 0.5),)), params)


def test_training_ends_where_held_out_images_get_no_better(tmp_path):
    still = tiny(train__patience=3, schedule__lr=1e-12, schedule__kind="constant")
    run = trained(still, tmp_path)
    result = run.read("result")
    every = max(1, round(0.05 * result["train_images"] / 32))
    assert result["steps"] == 4 * every  # the first is the best; then three that are no better
    with pytest.raises(ConfigError, match=r"train\.patience=3 is judged on held-out"):
        tiny(train__patience=3, data__holdout=0.0)


def test_patience_survives_a_stop(tmp_path):
    still = tiny(train__patience=3, schedule__lr=1e-12, schedule__kind="constant")
    opened = data_lib.open_data(still.data)
    run = runs.create(still, opened.fingerprint, tmp_path, {"study": "t", "row": "r"})
    stops = iter([False] * 5 + [True])
    with run.lock(), pytest.raises(train.Interrupted):
        train.train(run, devices.mesh(), stop=lambda: next(stops, True))
    with run.lock():
        result = train.train(run, devices.mesh())
    every = max(1, round(0.05 * result["train_images"] / 32))
    assert result["steps"] == 4 * every


def test_the_binary_loss_is_each_classs_for_itself():
    net = cnn_arch.create("cifar_resnet:8", rngs=nnx.Rngs(0))
    net.binary_loss = True
    logits, targets = jnp.array([[2.0, -1.0, 0.5]]), jnp.array([[1.0, 0.0, 0.0]])
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    expected = -np.mean(np.log(np.where(np.asarray(targets) == 1, p, 1 - p)))
    np.testing.assert_allclose(net.loss_of(logits, targets), [expected], rtol=1e-6)


def test_networks_with_a_loss_of_their_own_refuse_another():
    config = configs.base()
    config.model = configs.model("lenet5:original")
    with pytest.raises(ConfigError, match="which has a loss of its own"):
        network.skeleton(config, 10, 1, train=True, loss="binary")


def test_the_binary_loss_trains(tmp_path):
    run = trained(tiny(train__loss="binary", train__steps=150, schedule__lr=0.5), tmp_path)
    assert run.read("result")["top1_error"] < 40


def test_some_classes_of_a_set_are_numbered_anew(run, arrays):
    all_classes = data_lib.open_data(tiny().data)
    config = tiny(data__classes=("7", "1", "3"))
    some = data_lib.open_data(config.data)
    assert some.class_names == ("1", "3", "7")
    for part in ("train", "holdout", "test"):
        assert {*np.unique(some.parts[part].labels).tolist()} == {0, 1, 2}
    chosen = np.isin(all_classes.dataset.test.labels, [1, 3, 7])
    np.testing.assert_array_equal(some.dataset.test.images, all_classes.dataset.test.images[chosen])
    digits = np.array([1, 3, 7])[some.dataset.test.labels]
    np.testing.assert_array_equal(digits, all_classes.dataset.test.labels[chosen])
    assert configs.override(tiny(), {"data.classes": "1,3"}, "--set").data.classes == ("1", "3")
    for classes, message in ((("1", "12"), "'12'"), (("1",), "two classes at least")):
        with pytest.raises(ConfigError, match=message):
            data_lib.open_data(tiny(data__classes=classes).data)


def test_a_network_of_some_classes_trains(tmp_path):
    run = trained(tiny(data__classes=("0", "1", "8")), tmp_path)
    assert classifier.load(run.folder).class_names == ("0", "1", "8")
    assert run.read("result")["n"] < 200


def test_some_classes_of_a_folder(tmp_path):
    from PIL import Image

    for part in ("train", "val"):
        for name in "abc":
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / part / name / f"{i}.png")
    config = tiny(
        data__name="folder", data__path=str(tmp_path), data__classes=("a", "c"), data__holdout=0.0
    )
    some = data_lib.open_data(config.data)
    assert some.class_names == ("a", "c")
    assert some.parts["train"].labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [some.parts["test"].read(i)[1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert "/c/" in some.parts["test"].where(5)

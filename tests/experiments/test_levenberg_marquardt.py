"""Rates of weights: what they are, when they are measured, and that a run repeats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import curvature, unflat_state
from experiments import config, data, network
from experiments.runs import runs
from experiments.training import optimizer
from experiments.training import state as training_state
from input_pipeline import order
from tests.experiments.test_train import (
    assert_same_bits,
    create,
    finish,
    mesh,
    started,
    stop_at,
    trained,
)
from tests.experiments.test_train import network as arrays

PATTERNS = 6
LENET = {
    "model.arch": "lenet5:original",
    "data.image_size": 16,
    "data.holdout": 0.0,
    "optimizer.kind": "sdlm",
    "optimizer.momentum": 0.0,
    "optimizer.weight_decay": 0.0,
    "optimizer.mu": 0.5,
    "optimizer.patterns": PATTERNS,
    "schedule.kind": "constant",
    "schedule.lr": 0.001,
    "train.batch_size": 500,
    "train.steps": 7,
}


def lenet(**overrides):
    base = config.base()
    base.model = config.model("lenet5:original")
    overrides = {k.replace("__", "."): v for k, v in overrides.items()}
    return config.override(base, {**LENET, **overrides}, "test")


def test_an_update_is_the_gradient_over_mu_and_the_second_derivative():
    c = lenet()
    grads = {"a/kernel": jnp.array([1.0, -2.0, 3.0]), "a/bias": jnp.array([4.0])}
    curved = {"a/kernel": jnp.array([0.5, 0.0, 9.5]), "a/bias": jnp.array([1.5])}
    transform = optimizer.create(c, grads)
    updates, _ = transform.update(grads, transform.init(grads), grads, lr=0.1, curvature=curved)
    np.testing.assert_allclose(updates["a/kernel"], [-0.1, 0.4, -0.03], rtol=1e-6)
    np.testing.assert_allclose(updates["a/bias"], [-0.2], rtol=1e-6)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return trained(lenet(), tmp_path_factory.mktemp("runs"))


def test_they_are_measured_before_each_pass_on_the_images_that_it_begins_with(tmp_path):
    c = lenet(train__steps=6)
    images = data.prepare(c)
    training = training_state.start(c, images, mesh(), None)
    assert training.curvature.steps == 3  # of 1,297 images in batches of 500
    curvatures = []
    for _ in range(6):
        before = {name: np.asarray(a) for name, a in training.state["params"].items()}
        training.advance(1)
        training.finish_steps()
        curvatures.append({n: np.asarray(a) for n, a in training.state["curvature"].items()})
        if training.position in (1, 4):
            expected = measured(c, images, before, training.position - 1)
            for name, value in expected.items():
                scale = np.abs(value).max() + 1e-12
                np.testing.assert_allclose(curvatures[-1][name] / scale, value / scale, atol=1e-4)
    for first, second in ((0, 1), (1, 2), (3, 4), (4, 5)):
        assert_same_bits(curvatures[first], curvatures[second])
    assert any((curvatures[2][name] != curvatures[3][name]).any() for name in curvatures[2])


def measured(c, images, params, position):
    """The second derivatives by another way to the images: one by one, on the host."""
    indices, _ = order.training(c.seed, images.counts["train"], position * 500, PATTERNS)
    _, labels, _ = images.constants
    x, _ = images.train_views(
        images.constants, c.seed, {"indices": indices, "epochs": np.zeros(PATTERNS, np.int32)}
    )
    net = cnn_arch.create("lenet5:original", image_size=16, rngs=nnx.Rngs(0))
    net.eval()
    graph, like = nnx.split(net, nnx.Param)
    targets = np.eye(10)[labels[indices]]

    def merge(values):
        return nnx.merge(graph, unflat_state(values, like), copy=True)

    diagonal = jax.jit(lambda x, targets: curvature.diagonal(merge, params, x, targets))
    diagonals = [diagonal(x[i : i + 1], jnp.asarray(targets[i : i + 1])) for i in range(PATTERNS)]
    return {name: np.mean([values[name] for values in diagonals], axis=0) for name in params}


def test_two_runs_are_equal_and_one_that_was_stopped_at_any_step_too(finished, tmp_path):
    run = create(lenet(), tmp_path)
    for at in (1, 2, 3, 5, 6):
        stop_at(run, at)
    finish(run)
    assert_same_bits(arrays(run), arrays(finished))
    starts = [start["step"] for start in run.read("starts")["starts"]]
    assert starts == [0, 1, 2, 3, 5, 6]
    assert run.read("starts")["starts"][0]["versions"] == runs.versions()


def test_frozen_layers_have_no_second_derivatives():
    training = started(lenet(optimizer__freeze=("C1*", "S2*")))
    c = training.config
    params, _ = network.initial(c, 10, 1)
    frozen = {name for name in params if name.startswith(("C1", "S2"))}
    assert training.state["curvature"].keys() == params.keys() - frozen


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optimizer.momentum": 0.9}, "optimizer.momentum=0.9 is for optimizer.kind='sgd'"),
        ({"optimizer.weight_decay": 1e-4}, "optimizer.weight_decay=0.0001 is for"),
        ({"data.name": "folder"}, "is for small data sets"),
        ({"schedule.kind": "steps", "schedule.factors": "0.1"}, "must be as many numbers"),
    ],
)
def test_what_it_does_not_go_with_is_refused(changes, told):
    with pytest.raises(config.ConfigError, match=told):
        config.override(lenet(), changes, "test")


def test_listed_factors_are_those_of_the_first_rate():
    c = lenet(
        schedule__kind="steps",
        schedule__milestones=(0.25, 0.5, 0.75),
        schedule__factors=(0.4, 2, 0.02),
    )
    schedule = optimizer.Schedule(c, 8)
    expected = [0.001, 0.001, 0.0004, 0.0004, 0.002, 0.002, 0.00002, 0.00002]
    assert [schedule.rate(step) for step in range(8)] == pytest.approx(expected)


def test_the_printed_rates_are_the_studys():
    c = config.read("lenet").config
    schedule = optimizer.Schedule(c, 20)
    printed = [5e-4] * 2 + [2e-4] * 3 + [1e-4] * 3 + [5e-5] * 4 + [1e-5] * 8
    assert [schedule.rate(passes) for passes in range(20)] == pytest.approx(printed)

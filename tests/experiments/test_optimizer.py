"""The optimiser beside the papers' formulas, and the schedules beside their words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import config as configs
from experiments.training import optimizer

NAMES = ("conv/kernel", "conv/bias")


def config(**overrides):
    c = configs.base()
    c.model = configs.model("vgg:A")
    return configs.override(c, {k.replace("__", "."): v for k, v in overrides.items()}, "test")


def run(c, rates, seed=0):
    """Parameters after steps with the given rates and random gradients, and the gradients."""
    random = np.random.default_rng(seed)
    params = {n: jnp.asarray(random.normal(size=3), jnp.float32) for n in NAMES}
    start = {n: np.asarray(p, np.float64) for n, p in params.items()}
    transform = optimizer.create(c, NAMES)
    trained = sorted(set(NAMES) - optimizer.frozen(c, NAMES))
    params = {n: params[n] for n in trained}
    state = transform.init(params)
    gradients = []
    for lr in rates:
        grads = {n: jnp.asarray(random.normal(size=3), jnp.float32) for n in NAMES}
        gradients.append({n: np.asarray(g, np.float64) for n, g in grads.items()})
        change, state = transform.update({n: grads[n] for n in trained}, state, params, lr=lr)
        params = {n: params[n] + change[n] for n in trained}
    return start, gradients, params


RATES = (0.1, 0.1, 0.01, 0.01)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_and_decay_are_the_papers(nesterov):
    c = config(optimizer__weight_decay=0.01, optimizer__nesterov=nesterov)
    start, gradients, params = run(c, RATES)
    for name in NAMES:
        w, v = start[name], np.zeros(3)
        for lr, grads in zip(RATES, gradients, strict=True):
            g = grads[name] + (0.01 * w if name.endswith("kernel") else 0)
            v = 0.9 * v + g
            w = w - lr * (g + 0.9 * v if nesterov else v)
        np.testing.assert_allclose(params[name], w, rtol=1e-5)


def test_rate_inside_the_velocity_is_alexnets_update():
    c = config(optimizer__weight_decay=0.0005, optimizer__lr_in_velocity=True)
    start, gradients, params = run(c, RATES)
    w, v = start["conv/kernel"], np.zeros(3)
    for lr, grads in zip(RATES, gradients, strict=True):
        v = 0.9 * v - 0.0005 * lr * w - lr * grads["conv/kernel"]
        w = w + v
    np.testing.assert_allclose(params["conv/kernel"], w, rtol=1e-5)


def test_frozen_parameters_have_no_state_and_no_part_in_the_clipped_norm():
    c = config(optimizer__freeze=("*/bias",), optimizer__clip_norm=0.5, optimizer__weight_decay=0.0)
    start, gradients, params = run(c, (1.0,))
    norm = np.linalg.norm(gradients[0]["conv/kernel"])
    assert norm > 0.5
    expected = start["conv/kernel"] - gradients[0]["conv/kernel"] * 0.5 / norm
    np.testing.assert_allclose(params["conv/kernel"], expected, rtol=1e-5)
    state = optimizer.create(c, NAMES).init({"conv/kernel": jnp.zeros(7)})
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(7,)]  # the momentum


def test_patterns_that_freeze_everything_are_refused():
    with pytest.raises(configs.ConfigError, match=r"freezes all 2 parameters.*nothing.*to train"):
        optimizer.create(config(optimizer__freeze=("*/bias", "conv/*")), NAMES)


def test_decay_may_touch_frozen_parameters_only():
    c = config(optimizer__freeze=("*/kernel",), optimizer__weight_decay=0.5)
    start, gradients, params = run(c, (0.1,))
    expected = start["conv/bias"] - 0.1 * gradients[0]["conv/bias"]
    np.testing.assert_allclose(params["conv/bias"], expected, rtol=1e-5)


@pytest.mark.parametrize("inside", [False, True])
def test_rates_of_parameters_are_multiples_of_the_schedules(inside):
    rates = (("*/bias", 2.0), ("conv/*", 0.5))
    c = config(optimizer__rates=rates, optimizer__lr_in_velocity=inside)
    start, gradients, params = run(c, RATES)
    for name, factor in (("conv/kernel", 0.5), ("conv/bias", 1.0)):
        w, v = start[name], np.zeros(3)
        for lr, grads in zip(RATES, gradients, strict=True):
            g = grads[name] + (1e-4 * w if name.endswith("kernel") else 0)
            if inside:
                v = 0.9 * v - factor * lr * g
                w = w + v
            else:
                v = 0.9 * v + g
                w = w - factor * lr * v
        np.testing.assert_allclose(params[name], w, rtol=1e-5)


@pytest.mark.parametrize("value", ["conv/*", (("conv/*", "fast"),), ((1, 2.0),)])
def test_rates_are_pairs_of_a_pattern_and_a_number(value):
    with pytest.raises(
        configs.ConfigError, match=r"optimizer\.rates.* pairs of a pattern and a num"
    ):
        config(optimizer__rates=value)


def test_clipping_bounds_the_global_norm():
    c = config(optimizer__clip_norm=0.5, optimizer__weight_decay=0.0)
    start, gradients, params = run(c, (1.0,))
    norm = np.sqrt(sum(np.square(g).sum() for g in gradients[0].values()))
    assert norm > 0.5
    for name in NAMES:
        expected = start[name] - gradients[0][name] * 0.5 / norm
        np.testing.assert_allclose(params[name], expected, rtol=1e-5)


@pytest.mark.parametrize("key", ["decay", "freeze"])
def test_pattern_that_matches_nothing_is_an_error(key):
    with pytest.raises(configs.ConfigError, match=f"optimizer.{key}.*'fc9/'"):
        optimizer.create(config(**{f"optimizer__{key}": ("fc9/",)}), NAMES)


def rates(c, total):
    schedule = optimizer.Schedule(c, total)
    return [schedule.rate(step) for step in range(total)]


def test_steps_divide_at_the_milestones_and_a_cosine_ends_near_zero():
    # ResNet on CIFAR-10: 0.1, /10 at 32k and 48k of 64k iterations.
    learning_rates = rates(config(schedule__lr=0.1), 64)
    np.testing.assert_allclose(learning_rates, [0.1] * 32 + [0.01] * 16 + [0.001] * 16)
    learning_rates = rates(config(schedule__kind="cosine", schedule__lr=1.0), 100)
    np.testing.assert_allclose(learning_rates, (1 + np.cos(np.pi * np.arange(100) / 100)) / 2)


def test_warmups_reach_the_rate():
    warm = {"schedule__lr": 3.2, "schedule__warmup_lr": 0.1}
    linear = {"schedule__warmup": "linear", "schedule__warmup_steps": 10}
    learning_rates = rates(config(schedule__kind="constant", **warm, **linear), 12)
    np.testing.assert_allclose(learning_rates, [*np.linspace(0.1, 3.2, 11), 3.2])
    constant = {"schedule__warmup": "constant", "schedule__warmup_steps": 3}
    learning_rates = rates(config(schedule__milestones=(0.5,), **warm, **constant), 12)
    np.testing.assert_allclose(learning_rates, [0.1] * 3 + [3.2] * 3 + [0.32] * 6)


@pytest.mark.parametrize("kind", ["constant", "linear"])
def test_warmup_is_a_part_of_the_training(kind):
    # Goyal et al.: 5 of 90 epochs. `warmup_steps` no longer counts.
    same = {"schedule__warmup": kind, "schedule__warmup_lr": 0.01}
    part = rates(config(schedule__warmup_part=5 / 90, schedule__warmup_steps=7, **same), 900)
    assert part == rates(config(schedule__warmup_steps=50, **same), 900)
    assert part[49] < 0.1 == part[50]


def test_warmup_until_error_ends_at_its_part_of_the_training_at_latest():
    schedule = optimizer.Schedule(
        config(schedule__warmup="until_error", schedule__warmup_part=0.02), 100
    )
    learning_rates = []
    for step in range(4):
        learning_rates.append(schedule.rate(step))
        if schedule.watches_every_step:
            schedule.observe_training(step, 90.0)
    assert learning_rates == [0.01, 0.01, 0.1, 0.1]


def test_warmup_until_error_ends_once_training_is_below_it():
    # ResNet-110: 0.01 until the training error is below 80%, then 0.1.
    schedule = optimizer.Schedule(config(schedule__warmup="until_error"), 100)
    errors = [90.0, 90.0, 60.0, 90.0, 60.0, 60.0, 60.0, 60.0, 60.0]  # one lucky batch is no end
    mean, step = errors[0], 0
    for step, error in enumerate(errors):
        assert schedule.watches_every_step
        assert schedule.rate(step) == 0.01
        schedule.observe_training(step, error)
        mean = 0.9 * mean + 0.1 * error if step else mean
        if mean < 80:
            break
    assert step > 3
    assert not schedule.watches_every_step
    assert schedule.rate(step + 1) == 0.1


def test_plateau_divides_by_ten_at_most_three_times():
    c = config(schedule__kind="plateau", schedule__lr=0.01, schedule__patience=2)
    schedule = optimizer.Schedule(c, 1000)
    learning_rates, improved = [], []
    for error in (50, 40, 45, 40, 39, 39, 39, 39, 39, 39, 39, 39):
        improved.append(schedule.observe_validation(float(error)))
        learning_rates.append(schedule.rate(0))
    drops = [round(np.log10(0.01 / rate)) for rate in learning_rates]
    assert drops == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3]
    assert [i for i, better in enumerate(improved) if better] == [0, 1, 4]


def test_restored_schedule_goes_on_where_it_was():
    c = config(schedule__kind="plateau", schedule__patience=2)
    first, second = optimizer.Schedule(c, 100), optimizer.Schedule(c, 100)
    for error in (50.0, 51.0):
        first.observe_validation(error)
    second.restore(first.state)
    for error in (52.0, 49.0, 60.0, 60.0):
        assert first.observe_validation(error) == second.observe_validation(error)
        assert first.rate(0) == second.rate(0)


@pytest.mark.parametrize("warmup", ["linear", "constant", "until_error"])
def test_a_warm_up_that_is_no_part_of_the_training_is_refused(warmup):
    def total(steps):
        return optimizer.Schedule(
            config(schedule__warmup=warmup, schedule__warmup_steps=10), steps
        ).total

    assert total(11) == 11
    for steps in (10, 3):
        with pytest.raises(configs.ConfigError, match=rf"warmup_steps=10 .* {steps} steps.*_part"):
            total(steps)


def test_more_steps_than_are_counted_are_refused():
    with pytest.raises(configs.ConfigError, match=r"train\.epochs=1e\+06 are 3,000,000,000 steps"):
        optimizer.Schedule(config(train__epochs=1e6), 3_000_000_000)

"""What accelerators run in place of a CPU's programs: the same numbers, in another form."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_arch import ArchitectureError
from cnn_arch.kernels import normalisation, pooling
from cnn_arch.layers import MaxPool
from tests.cnn_arch import reference

EPSILON = 1e-5


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def maps(offset):
    return normal(8, 3, 3, 5) + np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1) + offset


# The running mean is 0 at a training's first step, and near the mean soon.
@pytest.mark.parametrize(("offset", "near", "digits"), [(0, 0, 4), (30, 0, 3), (300, 298, 4)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_batch_norm_by_example_equals_numpy_in_each_group(groups, offset, near, digits):
    x, scale, bias = maps(offset), 1 + 0.3 * normal(5, seed=1), normal(5, seed=2)
    y, mean, var = normalisation.forward_by_example(
        x, scale, bias, np.full(5, near, np.float32), groups=groups, epsilon=EPSILON
    )
    wide = x.astype(np.float64)
    expected, *_ = reference.batch_norm_train(wide, scale, bias, 8 // groups)
    grouped = wide.reshape(groups, -1, 5)
    np.testing.assert_allclose(mean, grouped.mean(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var, grouped.var(axis=1), rtol=10.0**-digits)
    np.testing.assert_allclose(y, expected, atol=2 * 10.0**-digits)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_batch_norm_by_example_has_the_gradients_of_the_formula(groups):
    x, scale, bias = maps(3), 1 + 0.3 * normal(5, seed=1), normal(5, seed=2)
    weights = normal(*x.shape, seed=9)

    def plain(x, scale, bias):
        grouped = x.reshape(groups, -1, 3, 3, 5)
        centred = grouped - grouped.mean((1, 2, 3), keepdims=True)
        y = centred / jnp.sqrt((centred**2).mean((1, 2, 3), keepdims=True) + EPSILON)
        return ((y * scale + bias).reshape(x.shape) * weights).sum()

    expected = jax.grad(plain, argnums=(0, 1, 2))(x, scale, bias)
    grouped = x.reshape(groups, -1, 5)
    gradients = normalisation.backward_by_example(
        x, scale, grouped.mean(axis=1), grouped.var(axis=1), weights, epsilon=EPSILON
    )
    for gradient, by_formula in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, by_formula, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    "pool",
    [MaxPool(), MaxPool(3, 2), MaxPool(3, 2, padding=1), MaxPool(3, 2, ceil=True), MaxPool(3, 1)],
    ids=("2", "3/2", "padded", "ceil", "3/1"),
)
def test_both_forms_of_max_pooling_are_equal(monkeypatch, pool, ties):
    x = normal(2, 8, 7, 3)
    x = np.maximum(np.round(x), 0) if ties else x
    weights = normal(*pool(x).shape, seed=9)
    results = {}
    for form in ("slices", "windows"):
        monkeypatch.setenv(pooling.VARIABLE, form)
        results[form] = jax.jit(
            lambda x: (pool(x), jax.grad(lambda x: (pool(x) * weights).sum())(x))
        )(x)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), *results.values())


def test_an_unknown_form_of_max_pooling_is_refused(monkeypatch):
    monkeypatch.setenv(pooling.VARIABLE, "window")
    with pytest.raises(ArchitectureError, match=r"MAX_POOL.*'window'.*windows"):
        MaxPool()(normal(1, 2, 2, 1))


def lowered(f, platform, *arguments):
    return jax.jit(f).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_each_platform_has_its_own_max_pooling(platform):
    text = lowered(jax.grad(lambda x: (MaxPool(3, 2)(x) ** 2).sum()), platform, normal(2, 9, 9, 3))
    assert ("select_and_scatter" in text) == (platform == "tpu")
    assert ("optimization_barrier" in text) == (platform == "cpu")


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_groups_of_a_batch_are_cut_out_of_the_map_on_a_cpu_only(platform):
    def total(x):
        zeros = jnp.zeros(5)
        return (normalisation.batch_norm(x, zeros, zeros, zeros, 4, EPSILON)[0] ** 2).sum()

    text = lowered(jax.grad(total), platform, normal(8, 3, 3, 5))
    ranks = {shape.count("x") for shape in re.findall(r"tensor<((?:\d+x)+)f32>", text)}
    assert max(ranks) == (5 if platform == "cpu" else 4)

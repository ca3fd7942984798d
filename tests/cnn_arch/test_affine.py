"""Gradients of weights in bfloat16 networks, rounded or in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch.layers import Affine, Conv, Dense
from experiments import config as configs
from experiments import network
from experiments.config.keys import identity_part


def layer(kind, dtype="bfloat16"):
    shared = {
        "init": lambda key, shape, dtype: jax.random.normal(key, shape, dtype),
        "dtype": jnp.dtype(dtype),
        "rngs": nnx.Rngs(0),
    }
    if kind == "conv":
        return Conv(3, 4, 3, 2, use_bias=True, **shared), (16, 9, 9, 3)
    if kind == "small map":
        return Conv(3, 4, 3, use_bias=True, **shared), (16, 2, 2, 3)
    if kind == "groups":
        return Conv(4, 4, 3, use_bias=False, groups=2, **shared), (16, 5, 5, 4)
    return Dense((2, 2, 3), 4, **shared), (16, 2, 2, 3)


def gradients(module, x, weight):
    """(value, gradients by parameters, by x) of the sum of the outputs times a weight."""
    graphdef, params = nnx.split(module, nnx.Param)

    def loss(params, x):
        y = nnx.merge(graphdef, params, copy=True)(x)
        return (y.astype(jnp.float32) * weight).sum()

    value, (by_params, by_x) = jax.value_and_grad(loss, argnums=(0, 1))(params, x)
    return value, cnn_arch.flat_state(by_params), by_x


@pytest.mark.parametrize("kind", ["conv", "small map", "groups", "dense"])
def test_float32_gradients_are_the_exact_ones_of_the_same_rounded_values(kind):
    module, shape = layer(kind)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
    weight = jnp.asarray(rng.normal(size=module(x).shape), jnp.bfloat16).astype(jnp.float32)
    rounded = gradients(module, x, weight)
    module.float32_gradients = True
    value, by_params, by_x = gradients(module, x, weight)
    assert value == rounded[0]
    np.testing.assert_array_equal(by_x, rounded[2])

    # The outputs' gradients are the weights, which bfloat16 holds: a float32 layer has the same.
    exact, _ = layer(kind, "float32")
    _, expected, _ = gradients(exact, x.astype(jnp.float32), weight)
    assert by_params.keys() == expected.keys()
    for name, gradient in by_params.items():
        assert gradient.dtype == jnp.float32
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-5, atol=1e-4)
        off = np.abs(rounded[1][name] - expected[name]).max()
        assert off > 10 * np.abs(gradient - expected[name]).max()


def test_float32_gradients_change_nothing_in_a_float32_layer():
    module, shape = layer("conv", "float32")
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    before = gradients(module, x, 1.0)
    module.float32_gradients = True
    for first, second in zip(
        jax.tree.leaves(before), jax.tree.leaves(gradients(module, x, 1.0)), strict=True
    ):
        np.testing.assert_array_equal(first, second)


def test_tests_and_runs_before_the_key_are_what_they_were():
    config = configs.read("vgg").config
    assert "train.gradient_dtype" not in identity_part(config)
    config.train.gradient_dtype = "float32"
    assert "train.gradient_dtype" not in identity_part(config)  # in float32 it changes nothing
    config.model.dtype = "bfloat16"
    assert identity_part(config)["train.gradient_dtype"] == "float32"
    for kind in ("model", "float32"):
        skeleton = network.skeleton(config, 4, 3, train=True, gradient_dtype=kind)
        net = nnx.merge(skeleton.graphdef, skeleton.params, skeleton.stats)
        layers = [layer for _, layer in nnx.iter_modules(net) if isinstance(layer, Affine)]
        assert {layer.float32_gradients for layer in layers} == {kind == "float32"}

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from flax import nnx
from jax import lax

from cnn_arch import ArchitectureError
from cnn_arch.initial_weights import initializer
from cnn_arch.kernels import normalisation as kernels
from cnn_arch.kernels.barriers import relu
from cnn_arch.kernels.convolution import convolve
from cnn_arch.layers import BatchNorm, IdentityShortcut, LocalResponseNorm, MaxPool
from tests.cnn_arch import reference
from tests.cnn_arch.reference import normal


def value_and_gradients(f, *arguments):
    """f's value and the gradients of a random projection of it."""
    value = f(*arguments)
    weights = normal(*value.shape, seed=9)

    def total(*arguments):
        return (f(*arguments) * weights).sum()

    return value, jax.grad(total, argnums=tuple(range(len(arguments))))(*arguments)


@pytest.mark.parametrize(
    ("size", "kernel"), [((1, 1), 3), ((2, 2), 3), ((1, 2), 3), ((2, 1), 3), ((3, 3), 5)]
)
def test_convolution_of_small_maps_equals_xla_in_value_and_gradient(size, kernel):
    x, w = normal(3, *size, 4), normal(kernel, kernel, 4, 5)

    def plain(x, w):
        return lax.conv_general_dilated(
            x, w, (1, 1), [(kernel // 2,) * 2] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    jaxpr = str(jax.make_jaxpr(convolve)(x, w))
    assert "conv_general_dilated" not in jaxpr
    for ours, theirs in zip(
        jax.tree.leaves(value_and_gradients(convolve, x, w)),
        jax.tree.leaves(value_and_gradients(plain, x, w)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_convolution_equals_scipy(size, stride, kernel):
    x, w = normal(2, size, size, 3), normal(kernel, kernel, 3, 4)
    np.testing.assert_allclose(convolve(x, w, stride), reference.conv(x, w, stride), atol=1e-4)


@pytest.mark.parametrize("size", [2, 5, 8])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("window", [(2, 2), (3, 2), (3, 1), (2, 3), (5, 3)])
def test_max_pool_equals_window_reduction_in_value_and_gradient(size, ties, window):
    if window[0] > size:
        pytest.skip("the window is larger than the map")
    x = normal(2, size, size, 3)
    x = np.maximum(np.round(x), 0) if ties else x

    def plain(x):
        side, stride = window
        return lax.reduce_window(
            x, -jnp.inf, lax.max, (1, side, side, 1), (1, stride, stride, 1), "VALID"
        )

    value, (gradient,) = value_and_gradients(MaxPool(*window), x)
    expected, (expected_gradient,) = value_and_gradients(plain, x)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


@pytest.mark.parametrize(("size", "stride", "padding", "ceil"), [(3, 2, 1, False), (3, 2, 0, True)])
def test_max_pool_has_no_gradient_at_its_padding(size, stride, padding, ceil):
    x = np.round(2 * normal(2, 8, 7, 3))
    pool = MaxPool(size, stride, padding=padding, ceil=ceil)

    def plain(x):
        reach = [(pool.window(x.shape).outputs(n) - 1) * stride + size for n in x.shape[1:3]]
        sides = [(padding, end - n - padding) for end, n in zip(reach, x.shape[1:3], strict=True)]
        return lax.reduce_window(
            x,
            -jnp.inf,
            lax.max,
            (1, size, size, 1),
            (1, stride, stride, 1),
            [(0, 0), *sides, (0, 0)],
        )

    value, (gradient,) = value_and_gradients(pool, x)
    expected, (expected_gradient,) = value_and_gradients(plain, x)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def normalise(x):
    scale, bias = jnp.array([0.5, 1.0, 2.0]), jnp.array([-1.0, 0.0, 1.0])
    return kernels.batch_norm(x, scale, bias, jnp.zeros(3), 2, 1e-5)[0]


@pytest.mark.parametrize("layer", [MaxPool(3, 2), MaxPool(3, 1), normalise])
def test_in_bfloat16_values_and_gradients_are_rounded_once(layer):
    x = jnp.asarray(np.round(4 * normal(4, 9, 9, 3)) / 4, jnp.bfloat16)
    weight = jnp.asarray(normal(*layer(x).shape), jnp.bfloat16)

    def both(x):
        y, back = jax.vjp(layer, x)
        return y, *back(weight.astype(x.dtype))

    for ours, exact in zip(jax.jit(both)(x), both(x.astype(jnp.float32)), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(np.float32), exact, rtol=2**-8, atol=1e-6)


def test_max_pool_lets_nan_through():
    for place in np.ndindex(2, 2):
        x = normal(1, 2, 2, 1)
        x[0, *place, 0] = np.nan
        assert np.isnan(MaxPool()(x)).all()


def test_local_response_norm_equals_the_formula():
    x = 100 * normal(2, 3, 3, 7)
    np.testing.assert_allclose(
        LocalResponseNorm()(x), reference.local_response_norm(x), rtol=1e-5, atol=1e-4
    )


def test_local_response_norm_has_the_gradient_of_the_formula():
    x = 100 * normal(2, 3, 3, 7)

    def plain(x):
        squares = jnp.pad(x**2, ((0, 0),) * 3 + ((2, 2),))
        return x / (2 + 1e-4 * sum(squares[..., i : i + 7] for i in range(5))) ** 0.75

    _, (gradient,) = value_and_gradients(LocalResponseNorm(), x)
    _, (expected,) = value_and_gradients(plain, x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    y, backward = jax.vjp(LocalResponseNorm(), jnp.asarray(x, jnp.bfloat16))
    (rough,) = backward(jax.vjp(LocalResponseNorm(), x)[0].astype(jnp.bfloat16))
    (exact,) = jax.vjp(plain, x)[1](LocalResponseNorm()(x))
    assert y.dtype == rough.dtype == jnp.bfloat16
    assert np.abs(rough.astype(np.float32) - exact).max() < 0.02 * np.abs(exact).max()


def test_relu_has_no_gradient_at_zero_and_lets_nan_through():
    x = jnp.array([-1.0, -0.0, 0.0, 2.0, jnp.nan])
    np.testing.assert_array_equal(relu(x), [0, 0, 0, 2, jnp.nan])
    np.testing.assert_array_equal(jax.vjp(relu, x)[1](jnp.full(5, 3.0))[0], [0, 0, 0, 3, 0])


def batch_norm(channels, group_size):
    norm = BatchNorm(channels, group_size=group_size)
    norm.scale.set_value(1 + 0.3 * normal(channels, seed=1))
    norm.bias.set_value(normal(channels, seed=2))
    return norm


@pytest.mark.parametrize("group_size", [0, 2, 4, 8])
@pytest.mark.parametrize("offset", [0, 300])
def test_batch_norm_equals_numpy_in_each_group(group_size, offset):
    x = normal(8, 3, 3, 5) + np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1) + offset
    norm = batch_norm(5, group_size)
    y = norm(x)
    expected, mean, var = reference.batch_norm_train(
        x.astype(np.float64),
        np.asarray(norm.scale.get_value()),
        np.asarray(norm.bias.get_value()),
        group_size,
    )
    np.testing.assert_allclose(y, expected, atol=2e-4)
    np.testing.assert_allclose(norm.mean.get_value(), 0.1 * mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.var.get_value(), 0.9 + 0.1 * var, rtol=1e-4)


@pytest.mark.parametrize("offset", [0, 300])
@pytest.mark.parametrize("group_size", [0, 2])
def test_batch_norm_has_the_gradients_of_the_formula(group_size, offset):
    norm = batch_norm(5, group_size)
    graph, params, stats = nnx.split(norm, nnx.Param, nnx.BatchStat)
    x = normal(8, 3, 3, 5) + np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1) + offset

    def ours(x, params):
        return nnx.merge(graph, params, stats, copy=True)(x)

    def plain(x, params):
        grouped = (x - offset).reshape(-1, group_size or 8, 3, 3, 5)
        centred = grouped - grouped.mean((1, 2, 3), keepdims=True)
        y = centred / jnp.sqrt((centred**2).mean((1, 2, 3), keepdims=True) + norm.epsilon)
        return (y * params["scale"][...] + params["bias"][...]).reshape(x.shape)

    _, gradients = value_and_gradients(ours, x, params)
    _, expected = value_and_gradients(plain, x, params)
    for gradient, by_formula in zip(*map(jax.tree.leaves, (gradients, expected)), strict=True):
        np.testing.assert_allclose(gradient, by_formula, rtol=2e-4, atol=2e-4)


def test_batch_norm_gradient_equals_finite_differences():
    norm = batch_norm(3, 2)
    graph, params, stats = nnx.split(norm, nnx.Param, nnx.BatchStat)
    weights = normal(4, 2, 2, 3, seed=5)

    def total(x):
        return (nnx.merge(graph, params, stats, copy=True)(x) * weights).sum()

    jax.test_util.check_grads(
        total, (normal(4, 2, 2, 3),), order=1, modes=["rev"], atol=1e-2, rtol=1e-2
    )


def test_batch_norm_uses_running_statistics_in_eval_mode():
    norm = batch_norm(5, 0)
    norm.mean.set_value(normal(5, seed=3))
    norm.var.set_value(np.exp(normal(5, seed=4)))
    norm.eval()
    x = normal(2, 3, 3, 5)
    values = (norm.scale, norm.bias, norm.mean, norm.var)
    expected = reference.batch_norm_eval(x, *(np.asarray(v.get_value()) for v in values))
    np.testing.assert_allclose(norm(x), expected, atol=1e-5)


def test_batch_norm_rejects_a_batch_that_is_not_whole_groups():
    with pytest.raises(ArchitectureError, match=r"batch of 6 .* bn_group_size=4"):
        BatchNorm(1, group_size=4)(jnp.ones((6, 2, 2, 1)))


def test_identity_shortcut_takes_even_positions_and_adds_zero_maps():
    x = normal(2, 5, 5, 3)
    y = IdentityShortcut(outputs=7, stride=2)(x)
    assert y.shape == (2, 3, 3, 7)
    np.testing.assert_array_equal(y[..., :3], x[:, ::2, ::2])
    assert not y[..., 3:].any()


@pytest.mark.parametrize(
    ("init", "width", "variance"),
    [
        ("gaussian", 1.0, 1e-4),
        ("gaussian", 0.25, 4e-4),
        ("he", 1.0, 2 / (9 * 64)),
        ("glorot", 1.0, 2 / (9 * 64 + 9 * 128)),
    ],
)
def test_initial_weights_have_the_variance_of_their_paper(init, width, variance):
    w = initializer(init, width)(jax.random.key(0), (3, 3, 64, 128), jnp.float32)
    assert np.var(w) == pytest.approx(variance, rel=0.03)
    assert abs(np.mean(w)) < 0.02 * variance**0.5

"""Second derivatives against finite differences of LeNet-5 in NumPy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import ArchitectureError, curvature, flat_state, unflat_state
from tests.cnn_arch import test_lenet as paper
from tests.cnn_arch.reference import logits_of, moved, normal

SIDE = 16  # the smallest images
STEP = 1e-5


def curvatures(net, x, targets):
    """Of all parameters by name."""
    net.eval()
    graph, params = nnx.split(net, nnx.Param)

    def merge(values):
        return nnx.merge(graph, unflat_state(values, params), copy=True)

    diagonal = jax.jit(lambda values: curvature.diagonal(merge, values, x, targets))
    return {name: np.asarray(value) for name, value in diagonal(flat_state(params)).items()}


def example(seed=0):
    """A network, its values, one image and its target."""
    net, p = moved("lenet5:original", image_size=SIDE)
    x = normal(1, SIDE, SIDE, 1, seed=seed)
    return net, p, x, np.eye(10)[[3 - 2 * (seed > 0)]]


def units(p):
    """The layers of the network: name -> what its units add up, from their inputs and weights."""
    return {
        "C1": lambda x, w: paper.conv5(x, w["kernel"]) + w["bias"],
        "S2": lambda x, w: paper.subsample(x, w["coefficient"], w["bias"]),
        "C3": lambda x, w: paper.partial_conv(x, w["kernel"], w["bias"]),
        "S4": lambda x, w: paper.subsample(x, w["coefficient"], w["bias"]),
        "C5": lambda x, w: x.reshape(1, -1) @ w["kernel"] + w["bias"],
        "F6": lambda x, w: x @ w["kernel"] + w["bias"],
    }


def of_layer(p, name):
    return {key.partition("/")[2]: v for key, v in p.items() if key.startswith(f"{name}/")}


def jacobian(function, at):
    """d function / d at, (outputs, at.size), by central differences."""
    columns = []
    for i in range(at.size):
        step = np.zeros(at.size)
        step[i] = STEP
        step = step.reshape(at.shape)
        columns.append((function(at + step) - function(at - step)).ravel() / (2 * STEP))
    return np.stack(columns, axis=1)


def squared_slopes(layer, x, weights):
    """Of what the units of a layer add up: by each of its arrays of weights, and by its inputs."""
    by_weight = {
        key: jacobian(lambda v, key=key: layer(x, {**weights, key: v}), value) ** 2
        for key, value in weights.items()
    }
    return by_weight, jacobian(lambda v: layer(v, weights), x) ** 2


def loss(state, target):
    """The first term of equation 9 by F6's states, (84,): the distance to the right class."""
    return ((state - target[0] @ cnn_arch.lenet.TARGETS) ** 2).sum()


def second_difference(function, at, direction, step=1e-3):
    return (
        function(at + step * direction) - 2 * function(at) + function(at - step * direction)
    ) / (step**2)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_all_equal_the_papers_recursion_by_finite_differences(seed):
    net, p, x, target = example(seed)
    layers = units(p)
    inputs, sums, state = {}, {}, x.astype(np.float64)
    for name, layer in layers.items():
        inputs[name], sums[name] = state, layer(state, of_layer(p, name))
        state = paper.squash(sums[name])
    eye = np.eye(84)
    h_state = np.array([second_difference(lambda s: loss(s, target), state[0], e) for e in eye])
    expected = {}
    for name in reversed(layers):
        slope = jacobian(paper.squash, sums[name].ravel()).diagonal()
        h_sum = slope**2 * h_state.ravel()
        squares, by_input = squared_slopes(layers[name], inputs[name], of_layer(p, name))
        for key, by_weight in squares.items():
            shape = p[f"{name}/{key}"].shape
            expected[f"{name}/{key}"] = (h_sum @ by_weight).reshape(shape)
        h_state = h_sum @ by_input
    diagonal = curvatures(net, jnp.asarray(x), jnp.asarray(target))
    assert diagonal.keys() == expected.keys()
    for name, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(diagonal[name] / scale, value / scale, atol=3e-4, err_msg=name)


@pytest.mark.parametrize("seed", [0, 1])
def test_of_f6_they_are_the_second_differences_of_the_linearised_network(seed):
    """There nothing is left out but f'': each weight has one unit."""
    net, p, x, target = example(seed)
    state = x.astype(np.float64)
    for name, layer in list(units(p).items())[:-1]:
        state = paper.squash(layer(state, of_layer(p, name)))
    kernel, bias = p["F6/kernel"], p["F6/bias"]
    diagonal = curvatures(net, jnp.asarray(x), jnp.asarray(target))["F6/kernel"]
    sums = (state @ kernel + bias)[0]
    outputs = paper.squash(sums)
    for unit in range(0, 84, 5):
        for i in range(0, 120, 7):
            change = np.zeros(84)
            change[unit] = STEP * state[0, i]
            along = (paper.squash(sums + change) - paper.squash(sums - change)) / (2 * STEP)
            expected = second_difference(lambda s: loss(s, target), outputs, along)
            assert diagonal[i, unit] == pytest.approx(expected, rel=2e-3, abs=1e-5)


def test_of_a_batch_they_are_the_mean():
    net, *_ = example()
    x, targets = normal(3, SIDE, SIDE, 1, seed=4), np.eye(10)[[1, 7, 7]]
    together = curvatures(net, jnp.asarray(x), jnp.asarray(targets))
    alone = [curvatures(net, x[i : i + 1], targets[i : i + 1]) for i in range(3)]
    for name, value in together.items():
        mean = np.mean([diagonal[name] for diagonal in alone], axis=0)
        np.testing.assert_allclose(value, mean, rtol=1e-4, atol=1e-7)


def test_of_a_softmax_they_begin_with_p_1_minus_p():
    net, _ = moved("lenet5:modern", image_size=SIDE)
    x, target = normal(1, SIDE, SIDE, 1), np.eye(10)[[2]]
    diagonal = curvatures(net, jnp.asarray(x), jnp.asarray(target))
    share = np.asarray(jax.nn.softmax(logits_of(net, x)))[0]
    np.testing.assert_allclose(diagonal["output/bias"], share * (1 - share), rtol=1e-3, atol=1e-7)


def test_dropout_that_halves_its_values_is_inverted_dropout_of_halved_weights():
    options = {"image_size": 63, "classes": 3, "width": 1 / 24, "lrn": "none", "init": "he"}
    net, inverted = (
        cnn_arch.create("alexnet:one_gpu", rngs=nnx.Rngs(0), inverted_dropout=value, **options)
        for value in (False, True)
    )
    halved = ("fc7/kernel", "fc8/kernel")
    for name in halved:
        kernel = getattr(inverted, name.split("/")[0]).kernel
        kernel.set_value(kernel.get_value() / 2)
    x, targets = normal(2, 63, 63, 3).astype(np.float32), np.eye(3)[[0, 2]]
    ours, theirs = (curvatures(n, jnp.asarray(x), jnp.asarray(targets)) for n in (net, inverted))
    np.testing.assert_allclose(logits_of(net, x), logits_of(inverted, x), rtol=1e-5)
    for name, values in ours.items():
        factor = 4 if name in halved else 1  # by a weight that is half as large
        scale = np.abs(values).max()
        assert scale > 0, name
        np.testing.assert_allclose(theirs[name] / scale, factor * values / scale, atol=1e-5)


def test_networks_with_other_layers_are_refused():
    curvature.check("lenet5:original")
    curvature.check("vgg:A", image_size=32, classes=10, width=0.125)
    with pytest.raises(ArchitectureError, match=r"norm \(BatchNorm\) is here; they are for Conv"):
        curvature.check("cifar_resnet:20")

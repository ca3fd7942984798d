import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import ArchitectureError, flat_state, unflat_state
from cnn_arch.census import census
from tests.cnn_arch import reference

PAPERS = Path(__file__).parents[2] / "experiments" / "papers"


def rows(file):
    with (PAPERS / file).open(newline="") as lines:
        return list(csv.DictReader(lines))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_net(**options):
    """A network whose every parameter is random, biases too, and its parameters by name."""
    options = {"width": 0.05, "init": "glorot", **options}
    net = cnn_arch.create("dan_net:100", rngs=nnx.Rngs(0), **options)
    state = nnx.state(net, nnx.Param)
    values = {
        name: jnp.asarray(value + 0.2 * normal(*value.shape, seed=i))
        for i, (name, value) in enumerate(flat_state(state).items())
    }
    nnx.update(net, unflat_state(values, state))
    return net, {name: np.asarray(value, np.float64) for name, value in values.items()}


@nnx.jit
def logits_of(net, x):
    return net(x)


def test_layers_equal_the_table():
    expected = rows("dannet_layers.csv")
    for ours, theirs in zip(census("dan_net:300").layers, expected, strict=True):
        assert ours.name.removesuffix("/conv") == theirs["name"].replace("output", "fc3")
        assert ours.kind == theirs["kind"].replace("maxpool", "max_pool")
        assert ours.output_shape[-1] == int(theirs["out_ch"])
        assert ours.params == int(theirs["weights_and_biases"] or 0)
        assert ours.macs == int(theirs["macs"] or 0)
        if ours.kind != "fc":
            assert ours.output_shape[0] == int(theirs["out_size"])
            assert (ours.kernel, ours.stride) == (int(theirs["kernel"]), int(theirs["stride"]))


def test_totals_equal_the_table():
    (row,) = [r for r in rows("computed_params.csv") if r["config"].startswith("Dan-net CIFAR-10")]
    result = census("dan_net:300")
    assert (result.params, result.macs) == (int(row["params"]), int(row["macs"]))
    assert result.depth == sum(row.params > 0 for row in result.layers) == 6


@pytest.mark.parametrize("maps", [100, 200, 300])
def test_variants_differ_in_their_maps_only(maps):
    result = census(f"dan_net:{maps}")
    convolutions = 3 * 9 * maps + 2 * 9 * maps**2 + 3 * maps
    dense = (maps + 1) * 300 + 301 * 100 + 101 * 10
    assert result.params == convolutions + dense


def pool(x, size):
    y = np.empty((len(x), x.shape[1] // size, x.shape[2] // size, x.shape[3]))
    for row in range(y.shape[1]):
        for column in range(y.shape[2]):
            top, left = size * row, size * column
            y[:, row, column] = x[:, top : top + size, left : left + size].max((1, 2))
    return y


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("size", [32, 45])
def test_logits_equal_numpy(activation, size):
    def f(x):
        return 1.7159 * np.tanh(2 * x / 3) if activation == "tanh" else np.maximum(x, 0)

    net, p = random_net(image_size=size, activation=activation, channels=2)
    y = x = normal(2, size, size, 2)
    for i, side in ((1, 3), (2, 2), (3, 2)):
        kernel, bias = p[f"conv{i}/conv/kernel"], p[f"conv{i}/conv/bias"]
        y = pool(f(reference.conv(y, kernel)[:, 1:-1, 1:-1] + bias), side)
    y = y.reshape(len(y), -1)
    for i in (1, 2):
        y = f(y @ p[f"fc{i}/kernel"] + p[f"fc{i}/bias"])
    expected = y @ p["fc3/kernel"] + p["fc3/bias"]
    np.testing.assert_allclose(logits_of(net, x), expected, atol=1e-4 * np.abs(expected).max())


def test_initial_weights_are_uniform_up_to_a_twentieth():
    net = cnn_arch.create("dan_net:100", width=0.2, rngs=nnx.Rngs(0))
    for name, value in flat_state(nnx.state(net)).items():
        if name.endswith("bias"):
            assert not np.any(value)
        else:
            assert 0.045 < np.abs(value).max() <= 0.05
            assert np.std(value) == pytest.approx(0.05 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("dan_net:300", {"activation": "sigmoid"}, r"Unknown activation 'sigmoid'.*tanh, relu"),
        ("dan_net:300", {"image_size": 31}, r"at least 32x32 pixels, got 31x31"),
        ("dan_net:400", {}, r"Did you mean 'dan_net:[123]00'"),
        ("dan_net", {}, r"Known: dan_net:100, dan_net:200, dan_net:300"),
        ("dan_net:300", {"dropout": 0.5}, r"Unknown option of dan_net:300: 'dropout'"),
    ],
)
def test_what_cannot_be_built_is_a_clear_error(name, arguments, message):
    with pytest.raises(ArchitectureError, match=message):
        cnn_arch.create(name, rngs=nnx.Rngs(0), **arguments)


@pytest.mark.peers
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_logits_and_gradients_equal_torch(activation):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    net, values = random_net(activation=activation, classes=3)
    x, labels = normal(3, 32, 32, 3), [2, 0, 1]

    def f(x):
        return 1.7159 * torch.tanh(x / 1.5) if activation == "tanh" else torch.relu(x)

    p = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    y = torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2)
    for i, side in ((1, 3), (2, 2), (3, 2)):
        kernel = p[f"conv{i}/conv/kernel"].permute(3, 2, 0, 1)
        y = f(functional.conv2d(y, kernel, p[f"conv{i}/conv/bias"]))
        y = functional.max_pool2d(y, side)
    y = y.permute(0, 2, 3, 1).flatten(1)
    for i in (1, 2):
        y = f(functional.linear(y, p[f"fc{i}/kernel"].T, p[f"fc{i}/bias"]))
    logits = functional.linear(y, p["fc3/kernel"].T, p["fc3/bias"])
    functional.cross_entropy(logits, torch.tensor(labels), reduction="sum").backward()

    graph, params = nnx.split(net, nnx.Param)

    @jax.jit
    def gradient_of(params):
        def total(params):
            targets = jax.nn.one_hot(jnp.array(labels), 3)
            losses, logits = nnx.merge(graph, params, copy=True).losses(x, targets)
            return losses.sum(), logits

        return jax.grad(total, has_aux=True)(params)

    def relative_error(ours, theirs):
        theirs = theirs.detach().numpy()
        return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)

    gradient, ours = gradient_of(params)
    assert relative_error(ours, logits) < 1e-4
    for name, value in flat_state(gradient).items():
        assert p[name].grad.norm() > 1e-3, name
        assert relative_error(value, p[name].grad) < 1e-4, name

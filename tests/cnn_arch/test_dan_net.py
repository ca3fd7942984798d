import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import flat_state
from cnn_arch.census import census
from tests.cnn_arch import reference
from tests.cnn_arch.reference import logits_of, losses_and_gradient, moved, normal, relative_error


def random_net(**options):
    return moved("dan_net:100", **{"width": 0.05, "init": "glorot", **options})


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

    _, ours, gradient = losses_and_gradient(net, x, np.eye(3, dtype=np.float32)[labels])
    assert relative_error(ours, logits.detach().numpy()) < 1e-4
    for name, value in gradient.items():
        assert p[name].grad.norm() > 1e-3, name
        assert relative_error(value, p[name].grad.numpy()) < 1e-4, name

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import flat_state, lenet
from cnn_arch.census import census
from cnn_arch.dense import FullyConvolutional
from cnn_arch.initial_weights import initializer
from cnn_arch.layers import scaled_tanh
from tests.cnn_arch import reference
from tests.cnn_arch.reference import (
    logits_of,
    losses_and_gradient,
    moved,
    normal,
    relative_error,
    rows,
)

TABLE_1 = {
    int(row["c3_map"]): [int(m) for m in row["s2_maps"].split()]
    for row in rows("lenet_table1_c3.csv")
}


# The network again, in NumPy and float64.


def squash(x):
    return 1.7159 * np.tanh(2 * x / 3)


def conv5(x, kernel):
    return reference.conv(x, kernel)[:, 2:-2, 2:-2]


def subsample(x, coefficient, bias):
    y = np.empty((len(x), x.shape[1] // 2, x.shape[2] // 2, x.shape[3]))
    for row in range(y.shape[1]):
        for column in range(y.shape[2]):
            window = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            y[:, row, column] = window.sum((1, 2)) * coefficient + bias
    return y


def partial_conv(x, kernel, bias):
    maps, first = [], 0
    for c3_map, s2_maps in TABLE_1.items():
        part = kernel[:, :, first : first + len(s2_maps), None]
        maps.append(conv5(x[..., s2_maps], part)[..., 0] + bias[c3_map])
        first += len(s2_maps)
    return np.stack(maps, axis=-1)


def distances(x, p, targets):
    """The outputs of the paper's RBF units (equation 7), (B, classes)."""
    x = squash(conv5(x, p["C1/kernel"]) + p["C1/bias"])
    x = squash(subsample(x, p["S2/coefficient"], p["S2/bias"]))
    x = squash(partial_conv(x, p["C3/kernel"], p["C3/bias"]))
    x = squash(subsample(x, p["S4/coefficient"], p["S4/bias"]))
    x = squash(x.reshape(len(x), -1) @ p["C5/kernel"] + p["C5/bias"])
    x = squash(x @ p["F6/kernel"] + p["F6/bias"])
    return np.array([[sum((x_b - w) ** 2) for w in targets] for x_b in x])


def map_criterion(y, targets, j):
    """Equation 9, its expectation over the targets: (B,)."""
    competition = np.log(np.exp(-j) + np.exp(-y).sum(axis=1))
    return (targets * (y + competition[:, None])).sum(axis=1)


def test_layers_equal_the_paper():
    kinds = {
        "conv": "conv",
        "trainable subsampling": "subsampling",
        "partially connected conv": "conv",
        "fc": "fc",
        "Euclidean RBF": "rbf",
    }
    for ours, theirs in zip(census("lenet5").layers, rows("lenet5_layers.csv"), strict=True):
        assert ours.name == theirs["name"]
        # C5 sees the whole map: a fully connected layer.
        assert ours.kind == ("fc" if ours.name == "C5" else kinds[theirs["kind"]])
        assert ours.output_shape[-1] == int(theirs["out_ch"])
        assert ours.output_shape[0] == int(theirs["out_size"]) or len(ours.output_shape) == 1
        assert ours.params == int(theirs["weights_and_biases"])
        assert ours.macs == int(theirs["macs"] or 0)
        assert (ours.kernel, ours.stride) == (
            int(theirs["kernel"] or 1),
            int(theirs["stride"] or 1),
        )


def test_totals_equal_the_paper():
    (row,) = [row for row in rows("computed_params.csv") if row["config"] == "LeNet-5"]
    result = census("lenet5:original")
    assert (result.params, result.macs) == (int(row["params"]), int(row["macs"]))
    assert result.training_params == 60_000
    assert result.depth == len(result.layers) == cnn_arch.depth("lenet5") == 7

    connections = 0
    for layer in result.layers:
        units = np.prod(layer.output_shape)
        biases = 0 if layer.kind == "rbf" else units
        connections += biases + (4 * units if layer.kind == "subsampling" else layer.macs)
    # Section II-B, whose 156,000 connections of C3 are 4,400 more than 1516 * 10 * 10.
    assert connections == 345_308 - 4_400


def test_modern_layers_are_conv_pool_conv_pool_and_three_dense():
    result = census("lenet5:modern")
    assert [(row.name, row.kind, row.params) for row in result.layers] == [
        ("C1", "conv", 156),
        ("S2", "max_pool", 0),
        ("C3", "conv", 25 * 6 * 16 + 16),
        ("S4", "max_pool", 0),
        ("C5", "fc", 400 * 120 + 120),
        ("F6", "fc", 120 * 84 + 84),
        ("output", "fc", 84 * 10 + 10),
    ]
    weighted = [row for row in result.layers if row.params]
    assert result.depth == len(weighted) == cnn_arch.depth("lenet5:modern")


def test_each_map_of_s2_changes_exactly_the_maps_of_table_1():
    layer = lenet.PartialConv(init=initializer("lecun"), dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = normal(1, 7, 7, 6)
    before = layer(x)
    for s2_map in range(6):
        changed = x.copy()
        changed[..., s2_map] += 1
        differs = np.any(np.asarray(layer(changed)) != before, axis=(0, 1, 2))
        expected = [s2_map in s2_maps for s2_maps in TABLE_1.values()]
        np.testing.assert_array_equal(differs, expected)


def test_initial_weights_lie_within_2_4_over_the_fan_in_of_each_unit():
    net = cnn_arch.create("lenet5", rngs=nnx.Rngs(0))
    values = flat_state(nnx.state(net))
    kernel, first = np.abs(values["C3/kernel"]), 0
    for s2_maps in TABLE_1.values():
        bound = 2.4 / (25 * len(s2_maps))
        largest = kernel[:, :, first : first + len(s2_maps)].max()
        assert 0.9 * bound < largest <= bound * 1.0001
        first += len(s2_maps)
    for name, fan_in in (("C1", 25), ("C5", 400), ("F6", 120)):
        assert 0.9 * 2.4 / fan_in < np.abs(values[f"{name}/kernel"]).max() <= 2.4001 / fan_in
    for name in ("S2", "S4"):
        assert 0.2 < np.abs(values[f"{name}/coefficient"]).max() <= 0.6001
    assert not any(np.any(values[f"{name}/bias"]) for name in ("C1", "S2", "C3", "S4", "C5", "F6"))


def test_glorot_weights_of_c3_have_the_variance_of_their_fans():
    layer = lenet.PartialConv(init=initializer("glorot"), dtype=jnp.float32, rngs=nnx.Rngs(0))
    kernel = np.asarray(layer.kernel.get_value())
    # Maps 6 to 14 see four maps each, and each map of S2 feeds ten.
    assert kernel[:, :, 18:54].var() == pytest.approx(2 / (25 * 4 + 25 * 10), rel=0.1)


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_subsampling_is_the_sum_times_a_coefficient_plus_a_bias(size):
    layer = lenet.Subsampling(3, init=initializer("lecun"), dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.bias.set_value(jnp.asarray(normal(3, seed=1)))
    x = normal(2, *size, 3)
    expected = subsample(x, np.asarray(layer.coefficient.get_value()), layer.bias.get_value())
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


def test_scaled_tanh_has_the_constants_of_appendix_a():
    assert scaled_tanh(jnp.float32(1)) == pytest.approx(1, abs=1e-4)
    assert scaled_tanh(jnp.float32(-1)) == pytest.approx(-1, abs=1e-4)
    assert scaled_tanh(jnp.float32(50)) == pytest.approx(1.7159)
    # The second derivative is largest at +-1: the third is zero there.
    third = jax.grad(jax.grad(jax.grad(scaled_tanh)))
    assert third(1.0) == pytest.approx(0, abs=0.02)
    assert third(0.0) < -0.5


def test_drawings_are_ten_pictures_of_twelve_rows_and_seven_columns():
    assert lenet.TARGETS.shape == (10, 84)
    assert set(np.unique(lenet.TARGETS)) == {-1, 1}
    pictures = lenet.TARGETS.reshape(10, 12, 7) > 0
    assert pictures[5, 0].all()
    assert pictures[7, 0].all()
    assert pictures[1, :11, 3].all()  # the one's stem
    assert list(pictures[4, 6]) == [True] * 7  # the four's bar
    np.testing.assert_array_equal(pictures[0, :11], pictures[0, :11][::-1])
    np.testing.assert_array_equal(pictures[8], pictures[8][:, ::-1])
    # The closest two are as far apart, and the farthest, as the documentation of `rubbish` says.
    squared = ((lenet.TARGETS[:, None] - lenet.TARGETS) ** 2).sum(axis=-1)
    assert squared[~np.eye(10, dtype=bool)].min() == 44
    assert squared.max() == 160


def test_output_units_act_on_the_last_axis():
    x = normal(2, 3, 4, 84)
    logits = lenet.RadialBasis(7)(x)
    assert logits.shape == (2, 3, 4, 7)
    expected = -((x[1, 2, 3] - lenet.TARGETS[:7]) ** 2).sum(axis=1)
    np.testing.assert_allclose(logits[1, 2, 3], expected, rtol=1e-5)


@pytest.mark.parametrize(("size", "classes"), [(16, 4), (29, 10)])
def test_logits_are_minus_the_distances_of_the_numpy_network(size, classes):
    net, values = moved("lenet5:original", image_size=size, classes=classes, channels=2)
    x = normal(2, size, size, 2)
    expected = -distances(x, values, lenet.TARGETS[:classes])
    np.testing.assert_allclose(logits_of(net, x), expected, rtol=1e-4)


@pytest.mark.parametrize("rubbish", [1.0, 145.0])
def test_loss_is_the_map_criterion_and_its_gradient_that_of_finite_differences(rubbish):
    net, values = moved("lenet5:original", image_size=16, rubbish=rubbish)
    x = normal(3, 16, 16, 1)
    targets = np.eye(10)[[3, 0, 9]]
    targets[1] = 0.1  # one soft target

    def numpy_loss(values):
        return map_criterion(distances(x, values, lenet.TARGETS), targets, rubbish)

    losses, logits, gradient = losses_and_gradient(net, x, np.float32(targets))
    np.testing.assert_allclose(losses, numpy_loss(values), rtol=1e-4)
    np.testing.assert_allclose(logits, logits_of(net, x), rtol=1e-6)
    assert (losses > 0).all()
    for name in ("S2/coefficient", "C3/bias", "S4/bias", "F6/bias"):
        scale = np.abs(gradient[name]).max()
        for i in range(0, values[name].size, 7):
            ends = []
            for step in (1e-5, -1e-5):
                shifted = {**values, name: values[name].copy()}
                shifted[name][i] += step
                ends.append(numpy_loss(shifted).sum())
            slope = (ends[0] - ends[1]) / 2e-5
            assert gradient[name][i] == pytest.approx(slope, rel=1e-3, abs=1e-3 * scale), name


def test_modern_loss_is_cross_entropy():
    net = cnn_arch.create("lenet5:modern", rngs=nnx.Rngs(0), image_size=16, width=0.5)
    x, labels = normal(3, 16, 16, 1), np.array([1, 5, 9])
    losses, logits, _ = losses_and_gradient(net, x, np.eye(10, dtype=np.float32)[labels])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(losses, -np.log(shares[np.arange(3), labels]), rtol=1e-5)


@pytest.mark.parametrize("name", ["lenet5:original", "lenet5:modern"])
@pytest.mark.parametrize(("size", "side"), [(16, 1), (28, 4), (32, 5), (35, 5), (48, 9)])
def test_c5_sees_the_whole_map_of_s4_at_every_size(name, size, side):
    layers = {row.name: row for row in census(name, image_size=size).layers}
    assert layers["S4"].output_shape == (side, side, 16)
    assert (layers["C5"].kernel, layers["C5"].output_shape) == (side, (120,))
    assert layers["output"].output_shape == (10,)


@pytest.mark.parametrize("name", ["lenet5:original", "lenet5:modern"])
def test_larger_images_give_the_logits_of_windows_four_pixels_apart(name):
    net, _ = moved(name, image_size=28)
    x = normal(2, 32, 36, 1)
    class_map = nnx.jit(lambda net: FullyConvolutional(net)(x))(net)
    assert class_map.shape == (2, 2, 3, 10)
    for row, column in np.ndindex(2, 3):
        window = x[:, 4 * row : 4 * row + 28, 4 * column : 4 * column + 28]
        expected = logits_of(net, window)
        np.testing.assert_allclose(class_map[:, row, column], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["lenet5:original", "lenet5:modern"])
def test_bfloat16_computes_in_bfloat16_and_gives_float32_logits(name):
    net = cnn_arch.create(name, rngs=nnx.Rngs(0), image_size=16, dtype="bfloat16")
    x = normal(2, 16, 16, 1)
    assert {v.dtype for v in flat_state(nnx.state(net)).values()} == {jnp.dtype("float32")}
    endpoints = nnx.jit(lambda net: net.endpoints(x))(net)
    assert endpoints["C3"].dtype == endpoints["S4"].dtype == endpoints["F6"].dtype == jnp.bfloat16
    assert endpoints["logits"].dtype == jnp.float32
    exact = logits_of(cnn_arch.create(name, rngs=nnx.Rngs(0), image_size=16), x)
    assert 0 < np.abs(endpoints["logits"] - exact).max() < 0.05 * np.abs(exact).max()


# PyTorch


def torch_gradients(net, p, x, loss):
    """Runs `loss(parameters, images (B, C, H, W))`: the logits and each parameter's gradient."""
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in p.items()}
    images = torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float64)
    logits, losses = loss(torch, tensors, images)
    losses.sum().backward()
    return logits.detach().numpy(), {name: t.grad.numpy() for name, t in tensors.items()}


def conv_weight(kernel):
    """(k, k, inputs, outputs) -> PyTorch's (outputs, inputs, k, k)."""
    return kernel.permute(3, 2, 0, 1)


def check_against_torch(net, values, x, targets, loss):
    _, logits, ours = losses_and_gradient(net, x, targets)
    their_logits, theirs = torch_gradients(net, values, x, loss)
    assert relative_error(logits, their_logits) < 1e-4
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert np.linalg.norm(theirs[name]) > 1e-6, name
        assert relative_error(value, theirs[name]) < 1e-4, name


@pytest.mark.peers
def test_original_logits_and_gradients_equal_torch():
    rubbish, targets = 190.0, np.eye(10, dtype=np.float32)[[3, 0, 9]]

    def loss(torch, p, x):
        def squash(x):
            return 1.7159 * torch.tanh(x / 1.5)

        def subsample(x, name):
            mean = torch.nn.functional.avg_pool2d(x, 2)
            return (
                4 * mean * p[f"{name}/coefficient"][:, None, None]
                + p[f"{name}/bias"][:, None, None]
            )

        conv2d = torch.nn.functional.conv2d
        x = squash(conv2d(x, conv_weight(p["C1/kernel"]), p["C1/bias"]))
        x = squash(subsample(x, "S2"))
        parts = p["C3/kernel"].permute(2, 0, 1).split([len(maps) for maps in TABLE_1.values()])
        maps = [
            conv2d(x[:, s2_maps], part[None])
            for part, s2_maps in zip(parts, TABLE_1.values(), strict=True)
        ]
        x = squash(torch.cat(maps, dim=1) + p["C3/bias"][:, None, None])
        x = squash(subsample(x, "S4"))
        c5 = p["C5/kernel"].reshape(5, 5, 16, 120)
        x = squash(conv2d(x, conv_weight(c5), p["C5/bias"])).flatten(1)
        x = squash(x @ p["F6/kernel"] + p["F6/bias"])
        y = torch.cdist(x, torch.tensor(lenet.TARGETS, dtype=x.dtype)) ** 2
        right = (y * torch.tensor(targets)).sum(dim=1)
        with_rubbish = torch.cat([-y, torch.full((len(y), 1), -rubbish, dtype=y.dtype)], dim=1)
        return -y, right + torch.logsumexp(with_rubbish, dim=1)

    net, values = moved("lenet5:original", rubbish=rubbish)
    check_against_torch(net, values, normal(3, 32, 32, 1), targets, loss)


@pytest.mark.peers
def test_modern_logits_and_gradients_equal_torch():
    labels = [1, 0, 2, 1]

    def loss(torch, p, x):
        functional = torch.nn.functional
        for conv in ("C1", "C3"):
            x = functional.conv2d(x, conv_weight(p[f"{conv}/kernel"]), p[f"{conv}/bias"])
            x = functional.max_pool2d(torch.relu(x), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = torch.relu(x @ p["C5/kernel"] + p["C5/bias"])
        x = torch.relu(x @ p["F6/kernel"] + p["F6/bias"])
        logits = x @ p["output/kernel"] + p["output/bias"]
        return logits, functional.cross_entropy(logits, torch.tensor(labels), reduction="none")

    net, values = moved("lenet5:modern", image_size=25, channels=3, classes=3, width=0.5)
    targets = np.eye(3, dtype=np.float32)[labels]
    check_against_torch(net, values, normal(4, 25, 25, 3), targets, loss)

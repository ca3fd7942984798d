import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import flat_state
from cnn_arch.census import census
from cnn_arch.dense import FullyConvolutional
from cnn_arch.layers import AveragePool, MaxPool
from tests.cnn_arch import reference
from tests.cnn_arch.reference import logits_of, losses_and_gradient, moved, normal, relative_error

CONFIGS = {"cifar10": "cifar-10", "cifar100": "cifar-100", "svhn": "svhn", "mnist": "mnist"}
BLOCKS = (("conv1", "cccp1", "cccp2"), ("conv2", "cccp3", "cccp4"), ("conv3", "cccp5", "cccp6"))


def random_net(name="nin:cifar10", **options):
    options = {"width": 1 / 32, "init": "he", **options}
    return moved(name, lambda *shape, seed: np.abs(normal(*shape, seed=seed)), **options)


def pool(x, reduce):
    """3x3 with stride 2; windows that start inside the map see what they can of it."""
    sides = [-(-(n - 3) // 2) + 1 for n in x.shape[1:3]]
    y = np.empty((len(x), *sides, x.shape[3]))
    for row in range(sides[0]):
        for column in range(sides[1]):
            window = x[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            y[:, row, column] = reduce(window, axis=(1, 2))
    return y


@pytest.mark.parametrize("size", [(4, 5), (7, 6), (2, 4)])
def test_pooling_keeps_windows_that_start_inside_the_map(size):
    x = normal(2, *size, 3) - 3  # a zero from outside would be the maximum
    ours = MaxPool(3, 2, ceil=True)(jnp.asarray(x))
    np.testing.assert_array_equal(ours, pool(x, np.max))
    ours = AveragePool(3, 2, ceil=True)(jnp.asarray(x))
    np.testing.assert_allclose(ours, pool(x, np.mean), rtol=1e-5)


@pytest.mark.parametrize("pool2", ["max", "average"])
@pytest.mark.parametrize("size", [7, 12])
def test_logits_equal_numpy(pool2, size):
    net, p = random_net(image_size=size, classes=4, pool2=pool2, channels=2)
    net.eval()
    y = x = normal(2, size, size, 2)
    pools = (np.max, {"max": np.max, "average": np.mean}[pool2], None)
    for block, pooling in zip(BLOCKS, pools, strict=True):
        for name in block:
            y = reference.conv(y, p[f"{name}/conv/kernel"]) + p[f"{name}/conv/bias"]
            y = reference.relu(y)
        y = y if pooling is None else pool(y, pooling) * 0.5  # what dropout keeps of it
    expected = y.mean((1, 2))
    assert (expected > 0).any()
    np.testing.assert_allclose(logits_of(net, x), expected, rtol=1e-4)


def test_last_block_has_one_map_per_class_at_every_width():
    net = cnn_arch.create("nin:svhn", rngs=nnx.Rngs(0), image_size=8, width=1 / 64, classes=17)
    net.eval()
    x = normal(2, 8, 8, 3)
    endpoints = nnx.jit(lambda net: net.endpoints(x))(net)
    features = np.asarray(endpoints["features"])
    assert features.shape == (2, 2, 2, 17)
    assert (features >= 0).all()
    np.testing.assert_allclose(endpoints["logits"], features.mean((1, 2)), rtol=1e-6)


@pytest.mark.parametrize(("inverted", "training", "testing"), [(False, 1, 0.5), (True, 2, 1)])
def test_dropout_follows_the_first_two_blocks_and_scales_as_asked(inverted, training, testing):
    net, _ = random_net(image_size=16, inverted_dropout=inverted)
    x = normal(2, 16, 16, 3)
    endpoints = nnx.jit(lambda net, rngs: net.endpoints(x, rngs=rngs))(net, nnx.Rngs(dropout=0))
    for i in (1, 2):
        before, after = np.asarray(endpoints[f"pool{i}"]), np.asarray(endpoints[f"dropout{i}"])
        nonzero = after != 0
        assert 0.3 < nonzero[before != 0].mean() < 0.7
        np.testing.assert_allclose(after[nonzero], training * before[nonzero], rtol=1e-6)
    np.testing.assert_array_equal(endpoints["features"], endpoints["cccp6"])
    net.eval()
    endpoints = nnx.jit(lambda net: net.endpoints(x))(net)
    for i in (1, 2):
        before, after = endpoints[f"pool{i}"], endpoints[f"dropout{i}"]
        np.testing.assert_allclose(after, testing * before, rtol=1e-6)


@pytest.mark.parametrize("variant", CONFIGS)
def test_fully_connected_head_sees_all_values_of_the_last_maps(variant):
    # Section 4.6: a linear layer in place of global average pooling, all else the same.
    average, fc = census(f"nin:{variant}"), census(f"nin:{variant}", head="fc")
    classes = cnn_arch.inputs(f"nin:{variant}").classes
    side = {"mnist": 7}.get(variant, 8)
    inputs = side * side * classes
    assert fc.params == average.params + (inputs + 1) * classes
    assert fc.macs == average.macs + inputs * classes
    assert [row.name for row in fc.layers[:-1]] == [row.name for row in average.layers[:-1]]
    assert (fc.layers[-1].name, fc.layers[-1].kind) == ("fc", "fc")


def test_logits_of_the_fully_connected_head_equal_numpy():
    net, p = random_net(image_size=9, classes=4, head="fc", head_dropout=0.5)
    net.eval()
    x = normal(2, 9, 9, 3)
    endpoints = nnx.jit(lambda net: net.endpoints(x))(net)
    features = np.asarray(endpoints["features"], np.float64)
    assert features.shape == (2, 2, 2, 4)
    expected = 0.5 * features.reshape(2, -1) @ p["fc/kernel"] + p["fc/bias"]
    np.testing.assert_allclose(endpoints["logits"], expected, rtol=1e-4)


@pytest.mark.parametrize(("rate", "inverted"), [(0.0, False), (0.5, False), (0.5, True)])
def test_head_dropout_comes_before_the_fully_connected_layer_in_train_mode(rate, inverted):
    options = {"head": "fc", "head_dropout": rate, "dropout": 0.0, "inverted_dropout": inverted}
    net, _ = random_net(image_size=32, classes=8, **options)
    x = normal(2, 32, 32, 3)
    endpoints = nnx.jit(lambda net, rngs: net.endpoints(x, rngs=rngs))(net, nnx.Rngs(dropout=0))
    before, after = np.asarray(endpoints["features"]), np.asarray(endpoints["dropout3"])
    nonzero = after != 0
    assert abs(nonzero[before != 0].mean() - (1 - rate)) < 0.1
    expected = before[nonzero] / (1 - rate) if inverted else before[nonzero]
    np.testing.assert_allclose(after[nonzero], expected, rtol=1e-6)


def test_fully_convolutional_form_of_the_fully_connected_head_is_the_network():
    net, _ = random_net(image_size=8, classes=5, head="fc")
    net.eval()
    x = jnp.asarray(normal(2, 8, 8, 3))
    scores = nnx.jit(lambda net: FullyConvolutional(net).scores(x))(net)
    np.testing.assert_allclose(scores, logits_of(net, x), rtol=1e-4)


@pytest.mark.parametrize(
    ("variant", "first"),
    [("cifar10", {}), ("cifar100", {"conv1": 0.001, "cccp1": 0.01, "cccp2": 0.01})],
)
def test_initial_weights_are_the_authors(variant, first):
    # initW in the files cifar-10_def and cifar-100_def of their cuda-convnet.
    net = cnn_arch.create(f"nin:{variant}", rngs=nnx.Rngs(0), image_size=8)
    for name, value in flat_state(nnx.state(net)).items():
        if name.endswith("bias"):
            assert not np.any(value)
        else:
            deviation = first.get(name.split("/")[0], 0.05)
            assert np.std(value) == pytest.approx(deviation, rel=0.05), name


@pytest.mark.peers
@pytest.mark.parametrize(
    ("variant", "size", "options"),
    [
        ("cifar10", 12, {}),
        ("svhn", 9, {"pool2": "average"}),
        ("mnist", 28, {"batch_norm": True, "bn_group_size": 0, "dropout": 0.0}),
    ],
)
def test_logits_and_gradients_equal_torch(variant, size, options):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    net, values = random_net(f"nin:{variant}", image_size=size, classes=3, **options)
    channels = cnn_arch.inputs(f"nin:{variant}").channels
    x, labels = normal(4, size, size, channels), [2, 0, 1, 1]
    if not options.get("batch_norm"):
        net.eval()

    p = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    y = torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2)
    for i, block in enumerate(BLOCKS):
        for name in block:
            kernel = p[f"{name}/conv/kernel"].permute(3, 2, 0, 1)
            y = functional.conv2d(y, kernel, p[f"{name}/conv/bias"], padding="same")
            if options.get("batch_norm"):
                scale, shift = p[f"{name}/norm/scale"], p[f"{name}/norm/bias"]
                y = functional.batch_norm(y, None, None, scale, shift, training=True)
            y = torch.relu(y)
        if i == 1 and options.get("pool2") == "average":
            y = functional.avg_pool2d(y, 3, 2, ceil_mode=True)
        elif i < 2:
            y = functional.max_pool2d(y, 3, 2, ceil_mode=True)
        if i < 2 and options.get("dropout", 0.5):
            y = y / 2
    logits = y.mean(dim=(2, 3))
    functional.cross_entropy(logits, torch.tensor(labels), reduction="sum").backward()

    _, ours, gradient = losses_and_gradient(net, x, np.eye(3, dtype=np.float32)[labels])
    assert relative_error(ours, logits.detach().numpy()) < 1e-4
    for name, value in gradient.items():
        # A bias before batch normalisation has no effect but for rounding.
        if not (options.get("batch_norm") and name.endswith("conv/bias")):
            assert p[name].grad.norm() > 1e-3, name
            assert relative_error(value, p[name].grad.numpy()) < 1e-4, name

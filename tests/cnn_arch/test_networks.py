from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import ArchitectureError, flat_state, unflat_state
from cnn_arch.layers import ConvUnit, weights
from cnn_arch.network import EndpointTape
from cnn_arch.resnet import BasicBlock
from tests.cnn_arch import reference

SMALL = {
    "vgg:A": {"image_size": 32, "width": 1 / 16},
    "vgg:A-LRN": {"image_size": 32, "width": 1 / 16},
    "vgg:B": {"image_size": 32, "width": 1 / 16},
    "vgg:C": {"image_size": 32, "width": 1 / 16},
    "vgg:D": {"image_size": 32, "width": 1 / 16},
    "vgg:E": {"image_size": 32, "width": 1 / 16},
    "cifar_resnet:8": {"image_size": 8, "width": 0.25},
    "cifar_plain:8": {"image_size": 8, "width": 0.25},
}


def images(n, size, channels=3, seed=0):
    shape = (n, size, size, channels)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def small(name, **options):
    options = {"classes": 5, "rngs": nnx.Rngs(0), **SMALL[name], **options}
    if name.startswith("vgg"):
        options = {"init": "he", **options}
    return cnn_arch.create(name, **options)


def with_random_statistics_and_biases(net):
    """Gives every parameter and statistic a value that its formula depends on."""
    rng = np.random.default_rng(1)
    for path, variable in nnx.to_flat_state(nnx.state(net)):
        shape = variable.get_value().shape
        if path[-1] in ("bias", "mean"):
            new = rng.normal(scale=0.3, size=shape)
        elif path[-1] in ("scale", "var"):
            new = rng.uniform(0.5, 1.5, size=shape)
        else:
            continue
        variable.set_value(jnp.asarray(new, jnp.float32))
        nnx.update(net, nnx.from_flat_state([(path, variable)]))
    return {name: np.asarray(v, np.float64) for name, v in flat_state(nnx.state(net)).items()}


@pytest.mark.parametrize(
    ("name", "stages", "batch_norm", "hidden"),
    [
        ("vgg:A", (1, 1, 2, 2, 2), False, 4096),
        ("vgg:A", (1, 1, 2, 2, 2), True, 4096),
        ("vgg:A", (1, 1, 2, 2, 2), False, 512),
        ("vgg:A", (1, 1, 2, 2, 2), False, 0),
        ("vgg:A-LRN", (1, 1, 2, 2, 2), False, 4096),
        ("vgg:C", (2, 2, 3, 3, 3), False, 4096),
        ("vgg:C", (2, 2, 3, 3, 3), True, 4096),
    ],
)
def test_vgg_logits_equal_numpy(name, stages, batch_norm, hidden):
    net = small(name, width=1 / 32, batch_norm=batch_norm, hidden=hidden, init="he")
    values = with_random_statistics_and_biases(net)
    assert [values[f"fc{i}/bias"].size for i in (6, 7) if hidden] == [hidden // 32] * 2 * bool(
        hidden
    )
    net.eval()
    x = 10 * images(2, 32)
    expected = reference.vgg(x, values, stages, lrn="LRN" in name, batch_norm=batch_norm)
    np.testing.assert_allclose(net(x), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["cifar_resnet:14", "cifar_plain:14"])
@pytest.mark.parametrize(("train", "group_size"), [(False, 0), (True, 0), (True, 2)])
@pytest.mark.parametrize("size", [8, 9])
def test_cifar_net_logits_equal_numpy(name, train, group_size, size):
    net = cnn_arch.create(
        name, image_size=size, width=0.25, bn_group_size=group_size, rngs=nnx.Rngs(0)
    )
    values = with_random_statistics_and_biases(net)
    net.train() if train else net.eval()
    x = images(4, size)
    expected = reference.cifar_net(
        x, values, 2, residual="resnet" in name, train=train, group_size=group_size
    )
    np.testing.assert_allclose(net(x), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", cnn_arch.variants())
def test_state_is_parameters_and_batch_statistics_only(name):
    if name.endswith(":1202"):
        pytest.skip("the same code as the shallower ones")
    net = cnn_arch.abstract(name)
    kinds = {type(variable) for _, variable in nnx.to_flat_state(nnx.state(net))}
    assert kinds <= {nnx.Param, nnx.BatchStat}


def test_networks_of_shapes_share_nothing_that_can_change():
    first = cnn_arch.abstract("vgg:A", image_size=32)
    first.eval()
    first.fc8.kernel.set_value(jax.ShapeDtypeStruct((1, 1), jnp.float32))
    second = cnn_arch.abstract("vgg:A", image_size=32)
    assert not second.dropout.deterministic
    assert second.fc8.kernel.shape == (4096, 1000)
    assert cnn_arch.abstract("vgg:A", image_size=64).fc6.kernel.shape == (2 * 2 * 512, 4096)


@pytest.mark.parametrize("name", ["vgg:A-LRN", "cifar_resnet:8"])
def test_bfloat16_logits_are_close_to_float32(name):
    x = images(4, 32)
    float32 = small(name, image_size=32)
    bfloat16 = small(name, image_size=32, dtype="bfloat16")
    assert all(v.dtype == jnp.float32 for v in flat_state(nnx.state(bfloat16)).values())
    float32.eval()
    bfloat16.eval()
    assert bfloat16.features(x).dtype == jnp.bfloat16
    expected, logits = np.asarray(float32(x)), np.asarray(bfloat16(x))
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()


KEPT = ["alexnet:two_gpu", "nin:cifar10", "vgg:A-LRN", "googlenet", "resnet:50", "cifar_resnet:8"]


@pytest.mark.parametrize("name", KEPT)
def test_in_bfloat16_no_map_is_kept_for_the_gradients_in_float32(name):
    net = cnn_arch.abstract(name, width=0.25, dtype="bfloat16")
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)

    def gradients(params, rest, x, targets):
        def loss(params):
            merged = nnx.merge(graphdef, params, rest, copy=True)
            return merged.losses(x, targets, rngs=nnx.Rngs(dropout=0))[0].mean()

        return jax.vjp(loss, params)[1]

    inputs = [(2, net.image_size, net.image_size, net.channels), (2, net.classes)]
    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs)
    residuals = jax.tree.leaves(jax.eval_shape(gradients, params, rest, *arguments))
    maps = [array for array in residuals if array.ndim == 4 and array.shape[0] == 2]
    assert any(array.dtype == jnp.bfloat16 for array in maps)
    assert not [array for array in maps if array.dtype == jnp.float32]


@pytest.mark.parametrize(
    ("name", "size", "features"),
    [
        ("vgg:D", 32, (1, 1, 32)),
        ("vgg:D", 64, (2, 2, 32)),
        ("vgg:D", 70, (2, 2, 32)),
        ("cifar_resnet:8", 16, (4, 4, 16)),
        ("cifar_resnet:8", 33, (9, 9, 16)),
        ("cifar_plain:8", 4, (1, 1, 16)),
    ],
)
def test_features_and_logits_have_the_documented_shapes(name, size, features):
    net = small(name, image_size=size, channels=1)
    net.eval()
    x = images(2, size, 1)
    assert net.features(x).shape == (2, *features)
    np.testing.assert_array_equal(net(x), net.head(net.features(x)))
    assert net(x).shape == (2, 5)


def test_endpoints_are_the_outputs_of_the_layers():
    net = small("cifar_resnet:8")
    net.eval()
    x = images(2, 8)
    endpoints = net.endpoints(x)
    np.testing.assert_array_equal(endpoints["logits"], net(x))
    np.testing.assert_array_equal(endpoints["features"], net.features(x))
    np.testing.assert_array_equal(endpoints["stage3/block1"], endpoints["features"])
    np.testing.assert_array_equal(
        endpoints["stage2/block1/add"],
        endpoints["stage2/block1/conv2"] + endpoints["stage2/block1/shortcut"],
    )


def test_dropout_draws_from_the_given_rngs_in_train_mode_only():
    net = small("vgg:A")
    x = images(2, 32)
    first, again, reseeded = (net(x, rngs=nnx.Rngs(dropout=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, reseeded)
    net.eval()
    np.testing.assert_array_equal(net(x), net(x, rngs=nnx.Rngs(dropout=1)))


def test_flat_state_can_be_put_back():
    state = nnx.state(small("cifar_resnet:8"), nnx.Param)
    values = flat_state(state)
    assert "stage2/block1/conv1/conv/kernel" in values
    assert "stage3/block1/conv2/norm/scale" in values
    doubled = flat_state(unflat_state({k: 2 * v for k, v in values.items()}, state))
    for name, value in values.items():
        np.testing.assert_array_equal(doubled[name], 2 * value)
    with pytest.raises(ArchitectureError, match="fc/bias"):
        unflat_state({k: v for k, v in values.items() if k != "fc/bias"}, state)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vgg:F", {}, r"vgg:F.*Did you mean 'vgg:"),
        ("vggg:E", {}, r"Did you mean 'vgg:E'"),
        ("vgg", {}, r"Known: vgg:A"),
        ("cifar_resnet:57", {}, r"Did you mean 'cifar_resnet:56'"),
        ("vgg:A", {"image_size": 31}, r"at least 32x32.*31x31"),
        ("cifar_plain:8", {"image_size": 3}, r"at least 4x4"),
        ("vgg:A", {"droput": 0.5}, r"droput.*Did you mean 'dropout'"),
        ("vgg:A", {"width": 0}, r"width must be a number of at least .*, got 0"),
        ("vgg:A", {"width": "1"}, r"width must be a number"),
        ("vgg:A", {"dropout": 1.0}, r"dropout must be .* below 1,"),
        ("vgg:A", {"init": "hee"}, r"Did you mean 'he'"),
        ("vgg:A", {"dtype": "float16"}, r"Did you mean '.*float"),
        ("vgg:A", {"classes": 0}, r"classes must be"),
        (
            "cifar_plain:8",
            {"bn_group_size": -1},
            r"bn_group_size must be a whole number of at least 0",
        ),
        ("lenet5", {"classes": 47}, r"lenet5:original .* ten classes.*47.*lenet5:modern can"),
        ("lenet5", {"rubbish": 0.0}, r"rubbish must be a number above 0 .* got 0.0"),
        ("lenet5", {"rubbish": "1"}, r"rubbish must be a number above 0 .* got '1'"),
        ("lenet5", {"width": 0.5}, r"option of lenet5: 'width'.*Known: rubbish, init, dtype"),
        ("lenet5:modern", {"rubbish": 2.0}, r"option of lenet5:modern: 'rubbish'"),
        ("lenet5:modern", {"image_size": 15}, r"at least 16x16 pixels, got 15x15"),
        ("lenet5:old", {}, r"Did you mean 'lenet5:modern'"),
        ("dan_net:300", {"activation": "sigmoid"}, r"Unknown activation 'sigmoid'.*tanh, relu"),
        ("dan_net:300", {"image_size": 31}, r"at least 32x32 pixels, got 31x31"),
        ("dan_net:400", {}, r"Did you mean 'dan_net:[123]00'"),
        ("dan_net", {}, r"Known: dan_net:100, dan_net:200, dan_net:300"),
        ("dan_net:300", {"dropout": 0.5}, r"Unknown option of dan_net:300: 'dropout'"),
        (
            "alexnet:two_gpu",
            {"without": "conv1"},
            r"middle layer 'conv1'.*Known: conv2, conv3, conv4, conv5\.",
        ),
        ("alexnet:two_gpu", {"without": "fc6"}, r"middle layer 'fc6'"),
        ("alexnet:two_gpu", {"activation": "elu"}, r"activation 'elu'.*Did you mean 'relu'"),
        ("alexnet:two_gpu", {"padding": -1}, r"padding must be .* got -1"),
        ("alexnet:two_gpu", {"padding": 0, "image_size": 63}, r"take larger images"),
        ("alexnet:two_gpu", {"lrn": "cafe"}, r"Did you mean 'caffe'"),
        ("alexnet:two_gpu", {"dropout": 1}, r"dropout must be"),
        ("alexnet:two_gpu", {"image_size": 62}, r"at least 63x63"),
        ("nin:cifar10", {"pool2": "mean"}, r"Unknown pool2 'mean'.*Known: max, average"),
        ("nin:cifar10", {"head": "dense"}, r"Unknown head 'dense'.*Known: average, fc"),
        ("vgg:A", {"hidden": -1}, r"hidden must be a whole number of at least 0 .* got -1"),
        (
            "vgg:A",
            {"hidden": 0, "dropout": 0.25},
            r"dropout=0.25 changes nothing .* hidden above 0",
        ),
        ("nin:cifar10", {"head_dropout": 0.5}, r"head_dropout=0.5 changes nothing .* head=fc"),
        (
            "nin:cifar10",
            {"head": "fc", "head_dropout": 1.0},
            r"dropout must be a number of at least 0",
        ),
        ("nin:cifar10", {"image_size": 3}, r"at least 4x4 pixels, got 3x3"),
        ("nin:cifar10", {"dropout": 1.0}, r"dropout must be a number of at least 0 and below 1"),
        ("nin:imagenet", {}, r"Unknown architecture 'nin:imagenet'.*nin:cifar10"),
        ("resnext:50", {}, r"Did you mean 'resnet:50'.*no family of this name; there are lenet5, "),
        (
            "my_nets:vgg14",
            {},
            r"^Unknown architecture 'my_nets:vgg14'. There is no module 'my_nets'",
        ),
        ("googlenet", {"image_size": 31}, r"at least 32x32"),
        ("googlenet", {"aux_weight": -0.1}, r"aux_weight must be .* got -0.1"),
        ("googlenet", {"aux_weight": "0.3"}, r"aux_weight must be"),
        ("googlenet", {"aux_dropout": 1.0}, r"dropout must be"),
        ("googlenet", {"lrn": "papers"}, r"Did you mean 'paper'"),
        ("googlenet", {"auxilary": False}, r"Did you mean 'auxiliary'"),
    ],
)
def test_what_cannot_be_built_is_a_clear_error(name, arguments, message):
    with pytest.raises(ArchitectureError, match=message):
        cnn_arch.create(name, rngs=nnx.Rngs(0), **arguments)


def test_images_of_another_size_or_depth_are_a_clear_error():
    net = small("vgg:A")
    with pytest.raises(ArchitectureError, match=r"fully convolutional form"):
        net(images(1, 64))
    with pytest.raises(ArchitectureError, match=r"\(B, H, W, 3\), got \(1, 32, 32, 1\)"):
        net(images(1, 32, 1))


def test_any_depth_of_six_n_plus_two_can_be_built():
    net = cnn_arch.abstract("cifar_plain:26", image_size=4)
    kernels = [name for name in flat_state(nnx.state(net)) if name.endswith("kernel")]
    assert len(kernels) == 26 == cnn_arch.depth("cifar_plain:26")


def test_weights_follow_their_distribution_and_their_key():
    def kernels(init, seed, width=1.0):
        options = {"image_size": 32, "classes": 10, "init": init, "width": width}
        net = cnn_arch.create("vgg:A", rngs=nnx.Rngs(seed), **options)
        return flat_state(nnx.state(net, nnx.Param))

    # (deviation, largest value) of conv3_2, 3x3x64x64, and of fc7, 1024x1024.
    expected = {
        "gaussian": [(0.02, None), (0.02, None)],
        "glorot": [((1 / 576) ** 0.5, (3 / 576) ** 0.5), ((1 / 1024) ** 0.5, (3 / 1024) ** 0.5)],
        "he": [((2 / 576) ** 0.5, None), ((2 / 1024) ** 0.5, None)],
    }
    for init, figures in expected.items():
        weights = kernels(init, 0, width=0.25)
        for name, (deviation, largest) in zip(("conv3_2/conv", "fc7"), figures, strict=True):
            values = np.asarray(weights[f"{name}/kernel"])
            assert np.isclose(values.std(), deviation, rtol=0.02), (init, name)
            assert abs(values.mean()) < deviation / 50, (init, name)
            assert largest is None or 0.99 * largest < np.abs(values).max() <= largest * 1.0001
        again, reseeded = kernels(init, 0, width=0.25), kernels(init, 1, width=0.25)
        np.testing.assert_array_equal(weights["fc7/kernel"], again["fc7/kernel"])
        assert not np.allclose(weights["fc7/kernel"], reseeded["fc7/kernel"])
        assert not np.any(weights["fc7/bias"])


def test_weights_are_not_drawn_under_a_trace():
    create = partial(cnn_arch.create, "vgg:A", image_size=32, width=1 / 16)
    with pytest.raises(ArchitectureError, match="outside of jit"):
        jax.jit(lambda key: nnx.state(create(rngs=nnx.Rngs(key))))(jax.random.key(0))


class ThreeConvolutions(BasicBlock):
    """A block as a user's own module may have it."""

    def add_layers(self, inputs, outputs, stride, **unit):
        super().add_layers(inputs, outputs, stride, **unit)
        self.conv3 = ConvUnit(outputs, outputs, 3, activation=None, **unit)
        return self.conv3


def test_a_block_calls_every_convolution_that_it_has():
    options = {"group_size": 0, "use_bias": False, **weights("he", "float32", nnx.Rngs(0))}
    block = ThreeConvolutions(4, 4, 1, shortcut="A", zero_gamma=False, **options)
    tape = EndpointTape()
    block(tape, images(2, 8, channels=4))
    called = [name for name in tape.outputs if "/" not in name]
    assert called == ["conv1", "conv2", "conv3", "add", "relu"]

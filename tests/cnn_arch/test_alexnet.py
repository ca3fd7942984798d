from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import ArchitectureError, flat_state
from cnn_arch.alexnet import LocallyConnected
from cnn_arch.census import census
from cnn_arch.initial_weights import initializer

VARIANTS = ("two_gpu", "one_gpu", "six_conv", "caffenet", "torchvision", "cifar")


def small(variant, **options):
    options = {"width": 1 / 24, "classes": 5, "image_size": 63, "init": "he", **options}
    return cnn_arch.create(f"alexnet:{variant}", rngs=nnx.Rngs(0), **options)


def layer_names(variant, **options):
    layers = census(f"alexnet:{variant}", width=1 / 24, **options).layers
    return [row.name.removesuffix("/conv") for row in layers]


@pytest.mark.parametrize("variant", ["two_gpu", "caffenet"])
def test_neurons_are_those_of_section_3_5(variant):
    # "253,440-186,624-64,896-64,896-43,264-4096-4096-1000", the first of which the reprint in
    # the Communications of the ACM corrects to 290,400.
    printed = (290400, 186624, 64896, 64896, 43264, 4096, 4096, 1000)
    result = census(f"alexnet:{variant}")
    assert result.params == census("alexnet:two_gpu").params
    weighted = [row for row in result.layers if row.kind in ("conv", "fc")]
    assert tuple(int(np.prod(row.output_shape)) for row in weighted) == printed
    assert result.neurons == sum(printed) == 659272


def test_one_gpu_net_has_half_the_kernels_and_about_as_many_parameters():
    weighted = [row for row in census("alexnet:one_gpu").layers if row.kind in ("conv", "fc")]
    maps = [row.output_shape[-1] for row in weighted]
    assert maps == [48, 128, 192, 192, 256, 4096, 4096, 1000]
    inputs = [3, 48, 128, 192, 192, 6 * 6 * 256, 4096, 4096]
    kernels = [11 * 11, 5 * 5, 3 * 3, 3 * 3, 3 * 3, 1, 1, 1]
    expected = [k * i * o + o for k, i, o in zip(kernels, inputs, maps, strict=True)]
    assert [row.params for row in weighted] == expected
    assert sum(expected) == pytest.approx(census("alexnet:two_gpu").params, rel=0.02)


def test_six_conv_is_two_gpu_with_a_convolution_over_the_last_pooling_layer():
    ours, five = census("alexnet:six_conv"), census("alexnet:two_gpu")
    assert ours.layers[:10] == five.layers[:10]
    assert five.layers[9].name == "pool5"
    assert ours.layers[10].name == "conv6/conv"
    assert ours.layers[10].output_shape == (6, 6, 256)
    assert ours.layers[10].params == 3 * 3 * 128 * 256 + 256
    assert [row.params for row in ours.layers[11:]] == [row.params for row in five.layers[10:]]
    assert ours.depth == 9


def test_cifar_net_is_the_one_of_cuda_convnets_file():
    # layers-conv-local-11pct.cfg: outputsX=0 of its pooling layers means ceil((n - 3) / 2) + 1.
    expected = [
        ("conv1", (32, 32, 64), (5 * 5 * 3 + 1) * 64),
        ("lrn1", (32, 32, 64), 0),
        ("pool1", (16, 16, 64), 0),
        ("conv2", (16, 16, 64), (5 * 5 * 64 + 1) * 64),
        ("lrn2", (16, 16, 64), 0),
        ("pool2", (8, 8, 64), 0),
        ("local3", (8, 8, 32), (3 * 3 * 64 + 1) * 32 * 8 * 8),
        ("local4", (8, 8, 32), (3 * 3 * 32 + 1) * 32 * 8 * 8),
        ("fc5", (10,), (8 * 8 * 32 + 1) * 10),
    ]
    ours = census("alexnet:cifar").layers
    assert [(r.name.removesuffix("/conv"), r.output_shape, r.params) for r in ours] == expected
    cropped = census("alexnet:cifar", image_size=24).layers
    assert [r.output_shape[0] for r in cropped if r.kind == "max_pool"] == [12, 6]
    assert layer_names("cifar", lrn="none") == [
        name for name, _, _ in expected if not name.startswith("lrn")
    ]


def test_locally_connected_layer_has_its_own_kernel_at_each_position():
    layer = LocallyConnected(
        (2, 3, 4), 5, 3, init=initializer("he"), dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    rng = np.random.default_rng(0)
    layer.bias.set_value(rng.normal(size=(2, 3, 5)).astype(np.float32))
    x = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel, bias = (np.asarray(v.get_value()) for v in (layer.kernel, layer.bias))
    expected = np.empty((2, 2, 3, 5))
    for row, column in np.ndindex(2, 3):
        window = padded[:, row : row + 3, column : column + 3].reshape(2, -1)
        expected[:, row, column] = window @ kernel[row, column] + bias[row, column]
    np.testing.assert_allclose(jax.jit(layer)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["two_gpu", "one_gpu", "six_conv"])
def test_normalisation_comes_before_pooling(variant):
    names = layer_names(variant)
    assert names[:6] == ["conv1", "lrn1", "pool1", "conv2", "lrn2", "pool2"]
    assert [name for name in names if name.startswith("lrn")] == ["lrn1", "lrn2"]


def test_caffenet_pools_before_normalisation():
    assert layer_names("caffenet")[:6] == ["conv1", "pool1", "lrn1", "conv2", "pool2", "lrn2"]


def test_ablations_change_what_they_name_and_nothing_else():
    full = layer_names("two_gpu")
    for left_out in ("conv2", "conv3", "conv4", "conv5"):
        rest = [name for name in full if name != left_out]
        assert layer_names("two_gpu", without=left_out) == rest
    no_norm = [name for name in full if not name.startswith("lrn")]
    assert layer_names("two_gpu", lrn="none") == no_norm
    with_norm = [row.name for row in census("alexnet:two_gpu", batch_norm=True).layers]
    assert [name for name in with_norm if "/" in name] == [
        f"conv{i}/{part}" for i in range(1, 6) for part in ("conv", "norm")
    ]
    # "z = 2 ... produces output of equivalent dimensions" (section 3.4)
    wide, narrow = (census("alexnet:two_gpu", overlapping=x).layers for x in (True, False))
    assert [row.output_shape for row in wide] == [row.output_shape for row in narrow]
    assert [row.kernel for row in wide if row.kind == "max_pool"] == [3, 3, 3]
    assert [row.kernel for row in narrow if row.kind == "max_pool"] == [2, 2, 2]


def test_left_out_convolution_leaves_the_next_one_its_inputs():
    layers = {row.name: row for row in census("alexnet:two_gpu", without="conv3").layers}
    assert layers["conv4/conv"].params == 3 * 3 * 128 * 384 + 384  # two groups of 128 maps


@pytest.mark.parametrize("variant", ["two_gpu", "cifar"])
@pytest.mark.parametrize(("activation", "other"), [("tanh", "relu"), ("relu", "tanh")])
def test_activation_is_the_one_asked_for_throughout(variant, activation, other):
    net = small(variant, activation=activation, image_size=63 if variant == "two_gpu" else 8)
    net.eval()
    x = np.random.default_rng(0).normal(size=(1, net.image_size, net.image_size, 3))
    endpoints = jax.jit(net.endpoints)(x.astype(np.float32))
    called = [name for name in endpoints if activation in name]
    assert len(called) == (7 if variant == "two_gpu" else 4)
    assert not [name for name in endpoints if other in name]
    if activation == "tanh":
        np.testing.assert_array_equal(endpoints["conv1/tanh"], jnp.tanh(endpoints["conv1/conv"]))


def layers_called(net):
    """Names in the order of the calls."""
    called = []

    class Names(cnn_arch.Tape):
        def note(self, name, layer, inputs, output):
            called.append(name)

    x = jax.ShapeDtypeStruct((1, net.image_size, net.image_size, 3), jnp.float32)
    jax.eval_shape(lambda x: net(x, rngs=nnx.Rngs(dropout=0), tape=Names()), x)
    return called


@pytest.mark.parametrize(
    ("variant", "options", "dropped", "training", "testing"),
    [
        ("two_gpu", {}, "relu6", 1, 0.75),  # section 4.2
        ("two_gpu", {"inverted_dropout": True}, "relu6", 1 / 0.75, 1),
        ("caffenet", {"image_size": 67}, "relu6", 1 / 0.75, 1),
        ("torchvision", {}, "pool5", 1 / 0.75, 1),
    ],
)
def test_dropout_is_where_the_variant_has_it_and_scales_when_it_does(
    variant, options, dropped, training, testing
):
    net = small(variant, dropout=0.25, **options)
    shape = (4, net.image_size, net.image_size, 3)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    endpoints = jax.jit(lambda key: net.endpoints(x, rngs=nnx.Rngs(dropout=key)))(jax.random.key(0))
    names = layers_called(net)
    assert names[names.index("dropout6") - 1] == dropped
    before, after = np.asarray(endpoints[dropped]), np.asarray(endpoints["dropout6"])
    nonzero = after != 0
    assert 0.5 < nonzero[before != 0].mean() < 1
    np.testing.assert_allclose(after[nonzero], training * before[nonzero], rtol=1e-6)
    assert [name for name in names if name.startswith("dropout")] == ["dropout6", "dropout7"]
    net.eval()
    endpoints = jax.jit(lambda: net.endpoints(x))()
    np.testing.assert_allclose(endpoints["dropout6"], testing * endpoints[dropped], rtol=1e-6)


def test_biases_start_as_in_section_5():
    def biases(variant, **options):
        net = small(variant, **options)
        state = flat_state(nnx.state(net, nnx.Param))
        values = {name.split("/")[0]: v for name, v in state.items() if name.endswith("bias")}
        assert all(np.ptp(v) == 0 for v in values.values())
        return {name: float(v.ravel()[0]) for name, v in values.items()}

    raised = {"conv2", "conv4", "conv5", "fc6", "fc7"}
    assert biases("two_gpu") == {
        name: float(name in raised)
        for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    }
    assert {n for n, v in biases("two_gpu", positive_bias=0.125).items() if v == 0.125} == raised
    assert not any(biases("torchvision").values())
    assert not any(biases("cifar", image_size=8).values())


def test_weights_start_as_in_section_5():
    net = cnn_arch.create("alexnet:two_gpu", width=0.25, rngs=nnx.Rngs(0))
    for name, values in flat_state(nnx.state(net, nnx.Param)).items():
        if name.endswith("kernel"):
            assert np.std(values) == pytest.approx(0.01 / 0.25**0.5, rel=0.05), name


def test_weights_of_the_cifar_net_start_as_in_cuda_convnets_files():
    def deviations(**options):
        net = cnn_arch.create("alexnet:cifar", rngs=nnx.Rngs(0), **options)
        state = flat_state(nnx.state(net, nnx.Param))
        return {
            name.split("/")[0]: np.std(values)
            for name, values in state.items()
            if name.endswith("kernel")
        }

    expected = {"conv1": 0.0001, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc5": 0.01}
    assert deviations(first_scale=0.01) == pytest.approx(expected, rel=0.03)
    assert deviations() == pytest.approx({**expected, "conv1": 0.01}, rel=0.03)


@pytest.mark.parametrize("variant", VARIANTS)
def test_smallest_image_is_the_documented_one(variant):
    smallest = cnn_arch.families()["alexnet"].minimum_image_size(variant)
    layers = census(f"alexnet:{variant}", image_size=smallest).layers
    assert [row.output_shape[0] for row in layers if row.kind == "max_pool"][-1] == 1
    with pytest.raises(ArchitectureError, match=f"at least {smallest}x{smallest}"):
        small(variant, image_size=smallest - 1)


def test_locally_connected_layers_take_images_of_one_size_only():
    net = small("cifar", image_size=8)
    with pytest.raises(ArchitectureError, match="of the size it was built for"):
        jax.eval_shape(net, jnp.ones((1, 16, 16, 3)))


# The same networks in PyTorch.


def torch_network(variant, net, activation):
    """The variant's modules by our names; only the numbers of maps are taken from `net`."""
    torch = pytest.importorskip("torch")
    from torch import nn

    class ResponseNorm(nn.Module):
        def __init__(self, k, alpha):
            super().__init__()
            self.k, self.alpha = k, alpha

        def forward(self, x):
            places = torch.arange(x.shape[1])
            near = ((places[:, None] - places).abs() <= 2).to(x.dtype)
            total = torch.einsum("ij,bjhw->bihw", near, x**2)
            return x / (self.k + self.alpha * total) ** 0.75

    class Halved(nn.Module):
        def forward(self, x):
            return 0.5 * x

    class Local(nn.Module):
        def __init__(self, side, inputs, outputs):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(side * side, inputs * 9, outputs))
            self.bias = nn.Parameter(torch.zeros(side * side, outputs))

        def forward(self, x):
            windows = nn.functional.unfold(x, 3, padding=1)  # (B, inputs * 9, positions)
            y = torch.einsum("bip,pio->bpo", windows, self.weight) + self.bias
            return y.transpose(1, 2).reshape(len(x), -1, *x.shape[2:])

    shapes = {name: v.shape for name, v in flat_state(nnx.state(net, nnx.Param)).items()}

    def maps(i):
        return 3 if i == 0 else shapes[f"conv{i}/conv/kernel"][-1]

    def conv(i, size, stride=1, groups=1, padding=None):
        padding = size // 2 if padding is None else padding
        return nn.Conv2d(maps(i - 1), maps(i), size, stride, padding, groups=groups)

    def dense(i):
        inputs, outputs = shapes[f"fc{i}/kernel"]
        return nn.Linear(inputs, outputs)

    def act():
        return {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]()

    def build(**layers):
        return nn.Sequential(OrderedDict(layers))

    def pool(ceil=False):
        return nn.MaxPool2d(3, 2, ceil_mode=ceil)

    if variant == "cifar":
        first, second = shapes["local3/bias"][-1], shapes["local4/bias"][-1]
        return build(
            conv1=conv(1, 5), act1=act(), lrn1=ResponseNorm(1, 1e-3 / 5), pool1=pool(True),
            conv2=conv(2, 5), act2=act(), lrn2=ResponseNorm(1, 1e-3 / 5), pool2=pool(True),
            local3=Local(8, maps(2), first), act3=act(),
            local4=Local(8, first, second), act4=act(),
            flat=nn.Flatten(), fc5=dense(5),
        )  # fmt: skip
    if variant == "torchvision":
        return build(
            features=nn.Sequential(
                conv(1, 11, 4, padding=2), act(), pool(), conv(2, 5), act(), pool(),
                conv(3, 3), act(), conv(4, 3), act(), conv(5, 3), act(), pool(),
            ),
            flat=nn.Flatten(),
            classifier=nn.Sequential(
                nn.Dropout(), dense(6), act(), nn.Dropout(), dense(7), act(), dense(8)
            ),
        )  # fmt: skip
    if variant == "caffenet":
        start = build(
            conv1=conv(1, 11, 4, padding=0), act1=act(), pool1=pool(), lrn1=ResponseNorm(1, 2e-5),
            conv2=conv(2, 5, groups=2), act2=act(), pool2=pool(), lrn2=ResponseNorm(1, 2e-5),
        )  # fmt: skip
    else:
        groups = 1 if variant == "one_gpu" else 2
        start = build(
            conv1=conv(1, 11, 4, padding=2), act1=act(), lrn1=ResponseNorm(2, 1e-4), pool1=pool(),
            conv2=conv(2, 5, groups=groups), act2=act(), lrn2=ResponseNorm(2, 1e-4), pool2=pool(),
        )  # fmt: skip
    groups = 1 if variant == "one_gpu" else 2
    middle = build(
        conv3=conv(3, 3), act3=act(), conv4=conv(4, 3, groups=groups), act4=act(),
        conv5=conv(5, 3, groups=groups), act5=act(), pool5=pool(),
    )  # fmt: skip
    if variant == "six_conv":
        middle = build(**dict(middle.named_children()), conv6=conv(6, 3, groups=groups), act6=act())
    number = 7 if variant == "six_conv" else 6
    dropout = nn.Dropout if variant == "caffenet" else Halved
    end = build(
        flat=nn.Flatten(), **{f"fc{number}": dense(number)}, act8=act(), drop8=dropout(),
        **{f"fc{number + 1}": dense(number + 1)}, act9=act(), drop9=dropout(),
        **{f"fc{number + 2}": dense(number + 2)},
    )  # fmt: skip
    return build(
        **dict(start.named_children()),
        **dict(middle.named_children()),
        **dict(end.named_children()),
    )


TORCHVISION_NAMES = {
    "conv1": "features.0", "conv2": "features.3", "conv3": "features.6", "conv4": "features.8",
    "conv5": "features.10", "fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6",
}  # fmt: skip


def as_torch(net, variant, name, values):
    """(PyTorch's name, values in its layout) of one of our parameters."""
    module, *_, kind = name.split("/")
    values = np.asarray(values)
    if module.startswith("local") and kind == "kernel":
        # A window is flattened as (row, column, map) here and as (map, row, column) there.
        height, width, inputs, outputs = values.shape
        values = values.reshape(height * width, 9, inputs // 9, outputs).swapaxes(1, 2)
        values = values.reshape(height * width, inputs, outputs)
    elif module.startswith("local"):
        values = values.reshape(-1, values.shape[-1])
    elif kind == "kernel" and module.startswith("conv"):
        values = values.transpose(3, 2, 0, 1)
    elif kind == "kernel":
        # A map is flattened as (h, w, c) here and as (c, h, w) there.
        values = values.reshape(*getattr(net, module).map_shape, -1)
        values = values.transpose(3, 2, 0, 1).reshape(values.shape[-1], -1)
    module = TORCHVISION_NAMES[module] if variant == "torchvision" else module
    return f"{module}.{'weight' if kind == 'kernel' else 'bias'}", values


@pytest.mark.peers
@pytest.mark.parametrize(
    ("variant", "activation", "size"),
    [
        ("two_gpu", "relu", 224),
        ("two_gpu", "tanh", 95),
        ("one_gpu", "relu", 95),
        ("six_conv", "relu", 127),
        ("caffenet", "relu", 227),
        ("torchvision", "relu", 224),
        ("cifar", "relu", 32),
        ("cifar", "tanh", 32),
    ],
)
def test_logits_and_gradients_equal_pytorch(variant, activation, size):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    width = 1 / 4 if variant == "cifar" else 1 / 16
    net = small(variant, image_size=size, width=width, activation=activation)
    net.eval()
    for name, values in flat_state(nnx.state(net, nnx.Param)).items():
        if name.endswith("bias"):
            # Large enough for normalisation to depend on more than its k.
            module = net
            for part in name.split("/")[:-1]:
                module = getattr(module, part)
            scale = 30 if activation == "relu" else 0.3
            module.bias.set_value(scale * rng.normal(size=values.shape).astype(np.float32))
    images = rng.normal(size=(3, size, size, 3)).astype(np.float32)
    images *= 100 if activation == "relu" else 1
    targets = rng.dirichlet(np.ones(5), size=3).astype(np.float32)

    peer = torch_network(variant, net, activation).double().eval()
    params = dict(peer.named_parameters())
    state = flat_state(nnx.state(net, nnx.Param))
    with torch.no_grad():
        for name, values in state.items():
            theirs, values = as_torch(net, variant, name, values)
            params.pop(theirs).copy_(torch.tensor(values, dtype=torch.float64))
    assert not params
    expected = peer(torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2))
    # The logits are large: divided, they do not saturate the soft-max.
    scale = float(expected.detach().abs().max()) / 3
    log_probabilities = torch.log_softmax(expected / scale, 1)
    loss = -(torch.tensor(targets, dtype=torch.float64) * log_probabilities).sum(1).mean()
    loss.backward()

    graph, ours = nnx.split(net)

    @jax.jit
    def loss_and_logits(ours):
        logits = nnx.merge(graph, ours)(images)
        return -(targets * jax.nn.log_softmax(logits / scale)).sum(1).mean(), logits

    gradient, logits = jax.grad(loss_and_logits, has_aux=True)(ours)
    expected = expected.detach().numpy()
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    params = dict(peer.named_parameters())
    for name, values in flat_state(gradient).items():
        theirs, values = as_torch(net, variant, name, values)
        expected = params[theirs].grad.numpy()
        assert np.abs(expected).max() > 0, name
        assert np.abs(values - expected).max() < 1e-4 * np.abs(expected).max(), name

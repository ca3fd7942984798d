import re
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import ArchitectureError
from cnn_arch.census import census
from tests.cnn_arch.reference import rows

OTHER_TOTALS = {
    "AlexNet two-GPU": ("alexnet:two_gpu", {}),
    "AlexNet torchvision": ("alexnet:torchvision", {}),
    "LeNet-5": ("lenet5:original", {}),
    "NIN cifar-10": ("nin:cifar10", {}),
    "NIN cifar-100": ("nin:cifar100", {}),
    "NIN svhn": ("nin:svhn", {}),
    "NIN mnist": ("nin:mnist", {}),
    "GoogLeNet (no aux; biases; no BN)": ("googlenet:paper", {"auxiliary": False}),
    "GoogLeNet with both aux heads": ("googlenet:paper", {}),
    "Dan-net CIFAR-10 300 maps (dense maps)": ("dan_net:300", {}),
    "ResNet-34 A": ("resnet:34", {"shortcut": "A"}),
    "ResNet-34 C": ("resnet:34", {"shortcut": "C"}),
    "ResNet-18 A": ("resnet:18", {"shortcut": "A"}),
    "plain-18": ("plain:18", {}),
    "plain-34": ("plain:34", {}),
}


def printed_totals():
    """(architecture, options, row) of every row of the file."""
    for row in rows("computed_params.csv"):
        config = row["config"]
        imagenet = re.fullmatch(r"ResNet-(\d+) B \(stride in (first 1x1|3x3).*\)", config)
        if config in OTHER_TOTALS:
            yield *OTHER_TOTALS[config], row
        elif config.startswith("VGG-"):
            yield "vgg:" + config.removeprefix("VGG-"), {}, row
        elif config.startswith("CIFAR ResNet-"):
            depth = config.removeprefix("CIFAR ResNet-").split()[0]
            yield f"cifar_resnet:{depth}", {}, row
            yield f"cifar_plain:{depth}", {}, row
        elif imagenet:
            stride = {"first 1x1": "1x1", "3x3": "3x3"}[imagenet[2]]
            yield f"resnet:{imagenet[1]}", {"stride_in": stride, "shortcut": "B"}, row
        else:
            raise ValueError(f"no architecture for {config!r}")


@pytest.mark.parametrize(
    ("name", "options", "row"),
    [
        pytest.param(
            *totals,
            id=totals[2]["config"] + " " + totals[0],
            marks=pytest.mark.slow if totals[0].endswith(":1202") else (),
        )
        for totals in printed_totals()
    ],
)
def test_totals_equal_the_tables(name, options, row):
    result = census(name, **options)
    with_auxiliary = "aux heads" in row["config"]
    assert (result.training_params if with_auxiliary else result.params) == int(row["params"])
    if row["macs"]:
        assert result.macs == int(row["macs"])
    if name.split(":")[0] not in ("lenet5", "googlenet") and options.get("shortcut") != "C":
        weighted = [row for row in result.layers if row.kind in ("conv", "fc")]
        main = [row for row in weighted if "/shortcut/" not in row.name]
        assert result.depth == len(main) == cnn_arch.depth(name)


@pytest.mark.parametrize(
    ("name", "options", "depth"),
    [
        ("alexnet:two_gpu", {"without": "conv3"}, 7),
        ("nin:cifar10", {"head": "fc"}, 10),
        ("vgg:A", {"hidden": 0}, 9),
        ("vgg:A", {"hidden": 64}, 11),
    ],
)
def test_depth_follows_the_options(name, options, depth):
    result = census(name, **options)
    weighted = [row for row in result.layers if row.kind in ("conv", "fc")]
    assert result.depth == len(weighted) == depth


def test_activation_memory_is_that_of_the_outputs():
    result = census("vgg:A", image_size=64, width=0.25, dtype="bfloat16")
    outputs = {row.name: row for row in result.layers}
    assert outputs["conv1_1/conv"].activation_bytes == 64 * 64 * 16 * 2
    assert outputs["fc8"].activation_bytes == 1000 * 2
    assert result.activation_bytes == sum(row.activation_bytes for row in result.layers)


TABLES = [
    *((f"vgg:{v}", "vgg_table1_layers.csv", v) for v in ("A", "A-LRN", "B", "C", "D", "E")),
    ("alexnet:two_gpu", "alexnet_layers.csv", "two-GPU"),
    ("alexnet:torchvision", "alexnet_layers.csv", "one-weird-trick"),
    ("dan_net:300", "dannet_layers.csv", "CIFAR-10 300 maps"),
    *(
        (f"nin:{name.replace('-', '')}", "nin_layers.csv", name)
        for name in ("cifar-10", "cifar-100", "svhn", "mnist")
    ),
]
KINDS = {"maxpool": "max_pool", "avgpool": "average_pool"}
NAMES = {"output": "fc3", "global_avg": "pool"}


@pytest.mark.parametrize(("name", "file", "config"), TABLES)
def test_layers_equal_the_tables(name, file, config):
    lines = [row for row in rows(file) if row["config"] == config]
    expected = [row for row in lines if not row["kind"].startswith("dropout")]
    for ours, theirs in zip(census(name).layers, expected, strict=True):
        called = NAMES.get(theirs["name"], theirs["name"])
        assert ours.name.removesuffix("/conv") == called
        assert ours.kind == KINDS.get(theirs["kind"], theirs["kind"])
        assert ours.output_shape[-1] == int(theirs["out_ch"])
        assert ours.params == int(theirs["weights_and_biases"] or 0)
        assert ours.macs == int(theirs["macs"] or 0)
        if ours.kind != "fc" and called != "pool":
            assert ours.output_shape[0] == int(theirs["out_size"])
        if ours.kind in ("conv", "max_pool"):
            assert (ours.kernel, ours.stride) == (int(theirs["kernel"]), int(theirs["stride"]))


def counted_macs(jaxpr):
    """Multiply-adds of all convolutions and matrix products of a traced program."""
    total = 0
    for equation in jaxpr.eqns:
        shape = equation.outvars[0].aval.shape
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            total += prod(shape) * prod(kernel) // kernel[3]
        elif equation.primitive.name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            total += prod(shape) * prod(equation.invars[0].aval.shape[i] for i in contracted)
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                total += counted_macs(value.jaxpr)
    return total


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("vgg:A-LRN", 96, {"width": 0.1}),
        ("vgg:C", 128, {"width": 0.2, "batch_norm": True}),
        ("cifar_resnet:14", 17, {"width": 0.5}),
        ("cifar_plain:8", 16, {}),
        ("resnet:50", 128, {"width": 0.125, "shortcut": "C", "stride_in": "3x3"}),
        ("alexnet:two_gpu", 99, {"width": 0.125}),
        ("alexnet:six_conv", 163, {"width": 0.125}),
        ("nin:svhn", 20, {"width": 0.1}),
        ("dan_net:100", 45, {}),
        ("googlenet:torchvision", 128, {"width": 0.125, "auxiliary": False}),
    ],
)
def test_macs_and_parameters_equal_those_of_the_traced_program(name, size, options):
    options = {"image_size": size, "classes": 7, "channels": 2, **options}
    result = census(name, **options)

    net = cnn_arch.create(name, rngs=nnx.Rngs(0), **options)
    net.eval()
    program = jax.make_jaxpr(net)(jnp.zeros((1, size, size, 2)))
    assert result.macs == counted_macs(program.jaxpr)
    assert result.params == sum(x.size for x in jax.tree.leaves(nnx.state(net, nnx.Param)))
    assert result.layers[-1].output_shape == (7,)


@pytest.mark.parametrize(
    ("name", "layer", "size", "width"),
    [
        ("vgg:A", "conv4_2", 128, 1 / 64),
        ("vgg:C", "pool4", 160, 1 / 64),
        ("cifar_resnet:8", "stage2/block1", 64, 1 / 16),
        ("cifar_resnet:14", "stage3/block2", 96, 1 / 16),
        ("cifar_plain:8", "stage3/block1", 64, 1 / 16),
    ],
)
def test_receptive_field_is_the_extent_of_the_gradient(name, layer, size, width):
    options = {"image_size": size, "width": width, "channels": 1, "classes": 2}
    net = cnn_arch.create(name, rngs=nnx.Rngs(0), **options)
    net.eval()
    # Positive weights: nothing cancels, ReLU passes all. Averages have no gradient to lose to a
    # maximum, so that pooling is seen whole.
    state = nnx.state(net, nnx.Param)
    nnx.update(net, jax.tree.map(lambda v: jnp.full_like(v, 0.1), state))
    if hasattr(net, "pool") and name.startswith("vgg"):
        net.pool = AveragePool()

    @partial(jax.jit, static_argnums=1)
    @jax.grad
    def gradient_of_centre(x, shift):
        feature = net.endpoints(x)[layer]
        middle = feature.shape[1] // 2
        return feature[0, middle + shift, middle + shift].sum()

    def extent(shift):
        gradient = np.asarray(gradient_of_centre(jnp.ones((1, size, size, 1)), shift))
        indices = np.flatnonzero(gradient.any(axis=(0, 2, 3)))
        assert indices[0] > 0
        assert indices[-1] < size - 1, "the field reaches beyond the image"
        return indices[0], indices[-1]

    (row,) = [
        row
        for row in census(name, **options).layers
        if row.name in (layer, layer + "/conv", layer + "/add", layer + "/conv2/norm")
        and not (row.name.endswith("norm") and "resnet" in name)
    ]
    low, high = extent(0)
    assert row.receptive_field == high - low + 1
    assert row.jump == low - extent(-1)[0]


class AveragePool(nnx.Module):
    def __call__(self, x):
        return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def test_census_rejects_what_create_rejects():
    with pytest.raises(ArchitectureError, match="at least 32x32"):
        census("vgg:E", image_size=16)
    with pytest.raises(ArchitectureError, match="Did you mean 'width'"):
        census("vgg:E", widht=2)


def test_rows_know_what_they_read_and_in_which_chain_they_lie():
    rows = {row.name: row for row in census("resnet:18").layers}
    block = "stage1/block1"
    assert rows["conv1/conv"].inputs == ()  # the image
    assert rows[f"{block}/conv2/conv"].inputs == (f"{block}/conv1/norm",)  # through ReLU
    assert rows[f"{block}/add"].inputs == (f"{block}/conv2/norm", "pool1")
    assert rows["fc"].stage == 0
    assert {row.stage for name, row in rows.items() if name.startswith(block)} == {2}
    assert max(row.stage for row in rows.values()) == 1 + 8  # the stem, and a chain a block

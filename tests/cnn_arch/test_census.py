import csv
from functools import partial
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import ArchitectureError
from cnn_arch.census import census

PAPERS = Path(__file__).parents[2] / "experiments" / "papers"


def rows(file):
    with (PAPERS / file).open(newline="") as lines:
        return list(csv.DictReader(lines))


def printed_totals():
    for row in rows("computed_params.csv"):
        config = row["config"]
        if config.startswith("VGG-"):
            yield "vgg:" + config.removeprefix("VGG-"), int(row["params"]), int(row["macs"])
        elif config.startswith("CIFAR ResNet-"):
            depth = config.removeprefix("CIFAR ResNet-").split()[0]
            yield f"cifar_resnet:{depth}", int(row["params"]), int(row["macs"])
            yield f"cifar_plain:{depth}", int(row["params"]), int(row["macs"])


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        pytest.param(*totals, marks=pytest.mark.slow if totals[0].endswith(":1202") else ())
        for totals in printed_totals()
    ],
)
def test_totals_equal_the_tables(name, params, macs):
    result = census(name)
    assert (result.params, result.macs) == (params, macs)
    weighted = [row for row in result.layers if row.kind in ("conv", "fc")]
    assert result.depth == len(weighted) == cnn_arch.depth(name)


@pytest.mark.parametrize("variant", ["A", "A-LRN", "B", "C", "D", "E"])
def test_vgg_layers_equal_table_1(variant):
    kinds = {"maxpool": "max_pool"}
    expected = [row for row in rows("vgg_table1_layers.csv") if row["config"] == variant]
    result = census(f"vgg:{variant}").layers
    for ours, theirs in zip(result, expected, strict=True):
        assert ours.name.removesuffix("/conv") == theirs["name"]
        assert ours.kind == kinds.get(theirs["kind"], theirs["kind"])
        assert ours.output_shape[-1] == int(theirs["out_ch"])
        assert ours.params == int(theirs["weights_and_biases"] or 0)
        assert ours.macs == int(theirs["macs"] or 0)
        if ours.kind != "fc":
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
        seen = np.flatnonzero(gradient.any(axis=(0, 2, 3)))
        assert seen[0] > 0
        assert seen[-1] < size - 1, "the field reaches beyond the image"
        return seen[0], seen[-1]

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

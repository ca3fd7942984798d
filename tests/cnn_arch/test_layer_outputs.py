"""A layer's output as features: behind its non-linearity, averaged over its map."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import ArchitectureError, layer_outputs
from cnn_arch.census import census
from cnn_arch.dense import FullyConvolutional

SMALL = {"image_size": 32, "classes": 7}


def network(arch, **options):
    net = cnn_arch.create(arch, rngs=nnx.Rngs(0), **{**SMALL, **options})
    net.eval()
    return net


def images(side=32, n=3, channels=3):
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, side, side, channels)), jnp.float32)


CASES = [
    ("vgg:A", "fc7", "relu7", {"width": 0.125}),
    ("vgg:A", "conv2_1", "conv2_1", {"width": 0.125}),
    ("vgg:A", "conv2_1/conv", "conv2_1/conv", {"width": 0.125}),
    ("vgg:A", "fc8", "fc8", {"width": 0.125}),
    ("cifar_resnet:20", "stage2/block2", "stage2/block2", {}),
    ("cifar_resnet:20", "pool", "pool", {}),
    ("resnet:18", "stage3", "stage3", {"width": 0.125}),
    ("googlenet:torchvision", "inception4a", "inception4a", {"width": 0.25}),
]


@pytest.mark.parametrize(("arch", "layer", "endpoint", "options"), CASES)
def test_it_is_the_mean_of_the_endpoint(arch, layer, endpoint, options):
    net, x = network(arch, **options), images()
    pooled = layer_outputs.pooled(net, layer, x)
    expected = np.asarray(net.endpoints(x)[endpoint], np.float64)
    expected = expected.mean(axis=(1, 2)) if expected.ndim == 4 else expected
    np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-5)
    dense = FullyConvolutional(net).pooled(layer, x)
    np.testing.assert_allclose(dense, expected, rtol=1e-4, atol=1e-5)
    shape = layer_outputs.check(net, layer).shape
    assert shape == net.endpoints(x)[layer].shape[1:]


@pytest.mark.parametrize(("arch", "layer"), [("vgg:A", "fc7"), ("cifar_resnet:8", "stage2")])
def test_whole_images_of_several_sizes_are_as_each_alone(arch, layer):
    net = network(arch, width=0.125) if arch == "vgg:A" else network(arch)
    x, sizes = images(64), [(64, 64), (40, 64), (33, 47)]
    together = FullyConvolutional(net).pooled(layer, x, jnp.array(sizes))
    for image, (h, w), pooled in zip(x, sizes, together, strict=True):
        alone = FullyConvolutional(net).pooled(layer, image[None, :h, :w])
        np.testing.assert_allclose(pooled, alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "layer"),
    [
        ("vgg:D", "fc7"),
        ("alexnet:two_gpu", "fc7"),
        ("resnet:50", "pool"),
        ("googlenet:paper", "pool5"),
        ("lenet5:modern", "F6"),
        ("dan_net:100", "fc2"),
    ],
)
def test_what_the_classifier_sees(arch, layer):
    assert layer_outputs.classifier_input(cnn_arch.abstract(arch)) == layer


@pytest.mark.parametrize("arch", ["nin:cifar10", "lenet5:original"])
def test_not_every_network_ends_with_a_fully_connected_layer(arch):
    with pytest.raises(ArchitectureError, match="no fully connected layer for its classes"):
        layer_outputs.classifier_input(cnn_arch.abstract(arch))


@pytest.mark.parametrize("arch", ["vgg:A", "vgg:E", "resnet:18", "resnet:152", "cifar_resnet:110"])
def test_depth_is_counted_as_the_papers_do(arch):
    net = cnn_arch.abstract(arch)
    *_, logits = layer_outputs.layer_outputs(net).values()
    assert logits.depth == census(arch).depth


def test_layers_in_no_block():
    assert layer_outputs.outer(cnn_arch.abstract("cifar_resnet:8")) == [
        *("conv1", "stage1", "stage2", "stage3", "pool")
    ]
    vgg = layer_outputs.outer(cnn_arch.abstract("vgg:A"))
    assert vgg[-3:] == ["pool5", "fc6", "fc7"]


@pytest.mark.parametrize(
    ("arch", "wanted"),
    [
        (
            "cifar_resnet:14",
            ["conv1", *(f"stage{s}/block{b}" for s in "123" for b in "12"), "pool"],
        ),
        ("nin:cifar10", ["conv1", "cccp1", "cccp2", "pool1"]),
        ("googlenet:paper", ["conv1", "pool1", "lrn1", "conv2_reduce"]),
    ],
)
def test_steps_are_layers_and_of_stages_the_blocks(arch, wanted):
    steps = layer_outputs.steps(cnn_arch.abstract(arch))
    assert steps[: len(wanted)] == wanted
    assert len(steps) == len(set(steps))
    if arch.startswith("cifar"):
        assert len(steps) == len(wanted)


def test_several_layers_are_read_at_once():
    net, x = network("vgg:A", width=0.125), images()
    outputs = layer_outputs.outputs(net, ["fc7", "conv2_1", "conv1_1/conv"], x)
    ends = net.endpoints(x)
    for layer, endpoint in (("fc7", "relu7"), ("conv2_1", "conv2_1"), *[("conv1_1/conv",) * 2]):
        np.testing.assert_array_equal(outputs[layer], ends[endpoint])
    with pytest.raises(ArchitectureError, match=r"fc9.*fc"):
        layer_outputs.outputs(net, ["fc7", "fc9"], x)


def test_an_unknown_layer_is_refused_with_the_nearest():
    net = network("vgg:A", width=0.125)
    with pytest.raises(ArchitectureError, match=r"fc9.*fc"):
        layer_outputs.pooled(net, "fc9", images())
    with pytest.raises(ArchitectureError, match="fc9"):
        FullyConvolutional(net).pooled("fc9", images())

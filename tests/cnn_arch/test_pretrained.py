"""Names, layouts and options of other people's weights.

The PyTorch modules here are written after the published networks' structure and state dicts; those
tests are marked `peers`.
"""

import jax
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import ArchitectureError, flat_state, pretrained
from cnn_arch.errors import WeightsError
from cnn_arch.network import Tape, unflat_state
from tests.cnn_arch import test_alexnet, test_googlenet

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def randomize(net, seed):
    """Fills a network with values that make every map differ: weights that keep the size of
    activations, and statistics as a trained network has them."""
    rng = np.random.default_rng(seed)
    values = {}
    for name, value in flat_state(nnx.state(net)).items():
        kind, shape = name.rpartition("/")[2], value.shape
        if kind == "kernel":
            values[name] = rng.normal(size=shape) * (2 / np.prod(shape[:-1])) ** 0.5
        elif kind in ("scale", "var"):
            values[name] = rng.uniform(0.5, 1.5, shape)
        else:
            values[name] = 0.2 * rng.normal(size=shape)
    values = {name: np.asarray(value, np.float32) for name, value in values.items()}
    nnx.update(net, unflat_state(values, nnx.state(net)))
    return net


def create(arch, seed=0, **options):
    options = {"classes": 7, "width": 1 / 8, **options}
    if not arch.startswith("alexnet"):
        options = {"image_size": 32, **options}
    return randomize(cnn_arch.create(arch, rngs=nnx.Rngs(seed), **options), seed)


@pytest.fixture(scope="module")
def resnet18():
    return create("resnet:18")


@pytest.fixture
def tensors(resnet18):
    return pretrained.export(resnet18, "torchvision")


def values(net):
    return {name: np.asarray(value) for name, value in flat_state(nnx.state(net)).items()}


NETWORKS = [
    ("torchvision", "alexnet:torchvision", {"image_size": 95}),
    ("torchvision", "vgg:A", {"image_size": 64}),
    ("torchvision", "vgg:B", {"batch_norm": True}),
    ("torchvision", "vgg:E", {}),
    ("torchvision", "resnet:18", {}),
    ("torchvision", "resnet:34", {}),
    ("torchvision", "resnet:50", {"stride_in": "3x3"}),
    ("torchvision", "resnet:101", {"stride_in": "3x3", "width": 1 / 16}),
    ("torchvision", "googlenet:torchvision", {}),
    ("torchvision", "googlenet:torchvision", {"auxiliary": False}),
    ("timm", "vgg:A", {"image_size": 64, "batch_norm": True}),
    ("timm", "vgg:E", {"batch_norm": True}),
    ("timm", "resnet:18", {}),
    ("timm", "resnet:50", {"stride_in": "3x3"}),
    ("huggingface", "resnet:18", {}),
    ("huggingface", "resnet:50", {"stride_in": "3x3"}),
    ("huggingface", "resnet:101", {"stride_in": "3x3", "width": 1 / 16}),
    ("cifar", "cifar_resnet:8", {"width": 1 / 4}),
    ("cifar", "cifar_resnet:20", {"width": 1}),
    ("cifar", "cifar_resnet:14", {"shortcut": "B"}),
    ("cifar", "cifar_resnet:32", {"width": 1 / 4}),
    ("kuangliu", "vgg:A", {"hidden": 0, "batch_norm": True}),
    ("kuangliu", "vgg:D", {"hidden": 0, "batch_norm": True, "image_size": 64}),
    ("chengyangfu", "vgg:B", {"hidden": 512}),
    ("chengyangfu", "vgg:A", {"hidden": 512, "batch_norm": True, "image_size": 96}),
    ("pytorch-cifar-models", "cifar_resnet:20", {"shortcut": "B", "width": 1}),
    ("pytorch-cifar-models", "cifar_resnet:56", {"shortcut": "B", "width": 1 / 4}),
    ("caffe", "alexnet:caffenet", {"image_size": 131, "lrn": "caffe"}),
    (
        "caffe",
        "alexnet:two_gpu",
        {"image_size": 99, "lrn": "caffe", "padding": 0, "inverted_dropout": True},
    ),
    ("caffe", "vgg:A", {"image_size": 64}),
    ("caffe", "vgg:B", {}),
    ("caffe", "vgg:C", {"channels": 1}),
    ("caffe", "vgg:E", {}),
    ("caffe", "googlenet:paper", {"lrn": "caffe"}),
    ("caffe", "googlenet:paper", {"lrn": "caffe", "auxiliary": False}),
    ("caffe", "nin:cifar10", {"pool2": "average", "inverted_dropout": True}),
    ("caffe-tensorflow", "alexnet:caffenet", {"image_size": 99, "lrn": "caffe"}),
    ("caffe-tensorflow", "vgg:A", {"image_size": 64}),
    ("caffe-tensorflow", "googlenet:paper", {"lrn": "caffe"}),
    ("frossard", "vgg:D", {"image_size": 64}),
    ("keras", "vgg:D", {"image_size": 64}),
    ("keras", "vgg:E", {"channels": 1}),
    ("keras-numbered", "vgg:D", {}),
    ("cnn-depth", "vgg:A-LRN", {"image_size": 64}),
    ("cnn-depth", "vgg:A", {"image_size": 64, "hidden": 512}),
    ("cnn-depth", "vgg:A", {"image_size": 96, "hidden": 0}),
    ("cnn-depth", "vgg:C", {"batch_norm": True}),
    ("cnn-depth", "alexnet:one_gpu", {"batch_norm": True, "image_size": 95}),
    ("cnn-depth", "alexnet:cifar", {}),
    ("cnn-depth", "resnet:50", {"shortcut": "C", "width": 1 / 16}),
    ("cnn-depth", "nin:cifar10", {"width": 1 / 8}),
    ("cnn-depth", "cifar_plain:20", {}),
    ("cnn-depth", "cifar_resnet:20", {"shortcut": "C"}),
    ("cnn-depth", "googlenet:paper", {}),
]


@pytest.mark.parametrize(("naming", "arch", "options"), NETWORKS)
def test_exported_weights_load_exactly_with_nothing_left(naming, arch, options):
    """Into a network that was created from what the tensors say."""
    net = create(arch, **options)
    exported = pretrained.export(net, naming)
    assert all(value.flags.c_contiguous for value in exported.values())
    expected_naming = "torchvision" if arch.startswith("resnet") and naming == "timm" else naming
    assert pretrained.detect(arch, exported) == expected_naming
    arguments = pretrained.arguments(arch, exported, naming)
    if arch in ("alexnet:cifar", "nin:cifar10"):  # which no other naming knows
        assert arguments["channels"] == 3
        arguments |= {"classes": 7, "width": 1 / 8}
    assert (arguments["classes"], arguments.get("width", 1)) == (7, options.get("width", 1 / 8))
    if arch.startswith(("alexnet", "vgg")):
        assert arguments.get("image_size", 32) == options.get("image_size", 32)
    else:
        arguments["image_size"] = 32

    fresh = cnn_arch.create(arch, rngs=nnx.Rngs(1), **arguments)
    report = pretrained.load(fresh, exported, naming=naming)
    expected, loaded = values(net), values(fresh)
    assert all(np.array_equal(expected[name], loaded[name]) for name in expected)
    assert set(report.used.values()) == set(expected)
    assert set(report.used) | set(report.ignored) == set(exported)
    assert all(name.endswith("num_batches_tracked") for name in report.ignored)
    norms = sum(name.endswith("running_var") for name in exported)
    assert len(report.ignored) == norms
    again = pretrained.export(fresh, naming)
    assert list(again) == list(exported)
    assert all(np.array_equal(again[name], exported[name]) for name in again)


def test_arguments_say_what_follows_from_the_source(tensors):
    assert pretrained.arguments("resnet:18", tensors) == {
        "image_size": 224,
        "classes": 7,
        "channels": 3,
        "width": 1 / 8,
        "shortcut": "B",
    }
    full = {
        "conv1.0": np.zeros((96, 3, 11, 11), np.float32),
        "fc6.0": np.zeros((1, 1, 4096, 9216), np.float16),
        "fc8.0": np.zeros((1, 1, 1000, 4096), np.float16),
    }
    for variant in ("caffenet", "two_gpu"):
        assert pretrained.arguments(f"alexnet:{variant}", full, "caffe") == {
            "image_size": 227,
            "classes": 1000,
            "channels": 3,
            "activation": "relu",
            "overlapping": True,
            "without": "",
            "lrn": "caffe",
            "padding": 0,
            "batch_norm": False,
            "inverted_dropout": True,
        }
    full = {
        "features.0.weight": np.zeros((64, 3, 11, 11), np.float32),
        "classifier.1.weight": np.zeros((4096, 9216), np.float16),
        "classifier.6.weight": np.zeros((1000, 4096), np.float16),
    }
    arguments = pretrained.arguments("alexnet:torchvision", full)
    assert (arguments["image_size"], arguments["padding"], arguments["lrn"]) == (224, 2, "none")
    full = {
        "features.0.weight": np.zeros((64, 3, 3, 3), np.float32),
        "features.1.running_mean": np.zeros(64, np.float32),
        "pre_logits.fc1.weight": np.zeros((4096, 512, 7, 7), np.float16),
        "head.fc.weight": np.zeros((1000, 4096), np.float16),
    }
    arguments = pretrained.arguments("vgg:D", full)
    assert arguments == {
        "image_size": 224,
        "classes": 1000,
        "channels": 3,
        "batch_norm": True,
        "hidden": 4096,
    }
    exported = pretrained.export(create("resnet:50", stride_in="3x3"), "torchvision")
    assert pretrained.arguments("resnet:50", exported)["stride_in"] == "3x3"


def test_arguments_refuse_sizes_of_no_width_of_the_network():
    """resnet50's tensors are no resnet-18 of four times the width."""
    exported = pretrained.export(create("resnet:50", stride_in="3x3"), "torchvision")
    with pytest.raises(WeightsError, match="not the weights of resnet:18 at any width"):
        pretrained.arguments("resnet:18", exported)
    del exported["fc.weight"]
    with pytest.raises(WeightsError, match=r"no fc\.weight"):
        pretrained.arguments("resnet:50", exported, "torchvision")


def test_full_networks_have_the_published_numbers_of_values():
    """Parameters of torchvision's weights meta, entries of its state dicts."""
    net = cnn_arch.create("resnet:18", image_size=32, rngs=nnx.Rngs(0))
    exported = pretrained.export(net, "torchvision")
    assert len(exported) == 122
    weights = [v.size for k, v in exported.items() if k.endswith(("weight", "bias"))]
    assert sum(weights) == 11689512
    assert len(pretrained.export(create("vgg:A"), "torchvision")) == 22


MODULES = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
CAFFE_BRANCHES = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")
CAFFE_GOOGLENET = " ".join(
    [
        "conv1/7x7_s2 conv2/3x3_reduce conv2/3x3 loss3/classifier",
        *(f"loss{i}/conv loss{i}/fc loss{i}/classifier" for i in (1, 2)),
        *(f"inception_{module}/{branch}" for module in MODULES for branch in CAFFE_BRANCHES),
    ]
)
CAFFE_VGG16 = """
conv1_1 conv1_2 conv2_1 conv2_2 conv3_1 conv3_2 conv3_3 conv4_1 conv4_2 conv4_3 conv5_1 conv5_2
conv5_3 fc6 fc7 fc8
"""
CAFFE_NIN = "conv1 cccp1 cccp2 conv2 cccp3 cccp4 conv3 cccp5 cccp6"
CAFFE_ALEXNET = "conv1 conv2 conv3 conv4 conv5 fc6 fc7 fc8"


@pytest.mark.parametrize(
    ("arch", "options", "layers"),
    [
        ("googlenet:paper", {"lrn": "caffe"}, CAFFE_GOOGLENET),
        ("vgg:D", {}, CAFFE_VGG16),
        ("nin:cifar10", {"pool2": "average", "inverted_dropout": True}, CAFFE_NIN),
        ("alexnet:caffenet", {"image_size": 67}, CAFFE_ALEXNET),
    ],
)
def test_caffe_names_are_those_of_the_prototxt(arch, options, layers):
    exported = pretrained.export(create(arch, **options), "caffe")
    assert set(exported) == {f"{name}.{blob}" for name in layers.split() for blob in (0, 1)}


def test_older_caffe_files_have_four_dimensions():
    net = create("alexnet:caffenet", image_size=99)
    exported = pretrained.export(net, "caffe")
    older = {
        name: value.reshape((1,) * (4 - value.ndim) + value.shape)
        for name, value in exported.items()
    }
    fresh = create("alexnet:caffenet", 1, **pretrained.arguments("alexnet:caffenet", older))
    pretrained.load(fresh, older)
    assert np.array_equal(values(net)["fc6/kernel"], values(fresh)["fc6/kernel"])


def convolved(net, tensors, naming):
    """With each fully connected layer of the network as a convolution over its whole map."""
    reshaped = dict(tensors)
    for name in ("fc6", "fc7", "fc8"):
        height, width, inputs = getattr(net, name).map_shape
        weights = name + {"caffe": ".0", "caffe-tensorflow": "/weights"}[naming]
        shape = (-1, inputs, height, width) if naming == "caffe" else (height, width, inputs, -1)
        reshaped[weights] = tensors[weights].reshape(shape)
    return reshaped


@pytest.mark.parametrize("naming", ["caffe", "caffe-tensorflow"])
def test_classifiers_that_are_convolutions_are_the_same_network(naming):
    net = create("vgg:A", image_size=96)
    exported = pretrained.export(net, naming)
    convolutional = convolved(net, exported, naming)
    assert sum(values.ndim == 4 for values in convolutional.values()) == 8 + 3
    arguments = pretrained.arguments("vgg:A", convolutional)
    assert arguments == pretrained.arguments("vgg:A", exported)
    fresh = cnn_arch.create("vgg:A", rngs=nnx.Rngs(1), **arguments)
    pretrained.load(fresh, convolutional)
    again = pretrained.export(fresh, naming)
    assert all(np.array_equal(again[name], exported[name]) for name in exported)
    name = next(name for name in convolutional if name.startswith("fc6"))
    convolutional[name] = convolutional[name].transpose()
    message = refused(net, convolutional, naming)
    assert (
        f"1 of another shape: {name} is {convolutional[name].shape}, not {exported[name].shape}"
        in message
    )
    assert "\n" not in message


def test_vgg16_weights_npz_has_the_published_names_and_shapes():
    """As cs.toronto.edu/~frossard/post/vgg16's script prints them."""
    net = cnn_arch.abstract("vgg:D")
    shapes = {tensor.theirs: tensor.shape for tensor in pretrained._tensors(net, "frossard")}
    assert {name: shapes[name] for name in ("conv1_1_W", "conv1_1_b", "conv5_3_W")} == {
        "conv1_1_W": (3, 3, 3, 64),
        "conv1_1_b": (64,),
        "conv5_3_W": (3, 3, 512, 512),
    }
    dense = [shapes[f"fc{i}_W"] for i in (6, 7, 8)]
    assert dense == [(25088, 4096), (4096, 4096), (4096, 1000)]
    assert len(shapes) == 32


def test_caffe_kernels_of_the_first_layer_are_reversed():
    net = create("vgg:A")
    exported = pretrained.export(net, "caffe")
    kernel = np.asarray(net.conv1_1.conv.kernel.get_value())  # (H, W, in, out)
    assert np.array_equal(exported["conv1_1.0"][5, 0], kernel[:, :, 2, 5])
    kernel = np.asarray(net.conv2_1.conv.kernel.get_value())
    assert np.array_equal(exported["conv2_1.0"][5, 0], kernel[:, :, 0, 5])


IMAGENET = ((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255))
KUANGLIU = ((0.4914 * 255, 0.4822 * 255, 0.4465 * 255), (0.2023 * 255, 0.1994 * 255, 0.201 * 255))
BVLC = ((123, 117, 104), (1, 1, 1))


@pytest.mark.parametrize(
    ("arch", "naming", "order", "constants", "sizes"),
    [
        ("alexnet:torchvision", "torchvision", "RGB", IMAGENET, (256, 224, "bilinear")),
        ("vgg:D", "timm", "RGB", IMAGENET, (256, 224, "bilinear")),
        ("vgg:A", "kuangliu", "RGB", KUANGLIU, (32, 32, "bilinear")),
        ("vgg:A", "chengyangfu", "RGB", IMAGENET, (32, 32, "bilinear")),
        ("resnet:50", "torchvision", "RGB", IMAGENET, (256, 224, "bilinear")),
        ("resnet:50", "timm", "RGB", IMAGENET, (int(224 / 0.95), 224, "bicubic")),
        ("resnet:50", "huggingface", "RGB", IMAGENET, (256, 224, "bicubic")),
        ("cifar_resnet:20", "cifar", "RGB", IMAGENET, (32, 32, "bilinear")),
        ("alexnet:caffenet", "caffe", "BGR", BVLC, (256, 227, "opencv_bilinear")),
        ("googlenet", "caffe", "BGR", BVLC, (256, 224, "opencv_bilinear")),
        ("googlenet", "caffe-tensorflow", "BGR", BVLC, (256, 224, "opencv_bilinear")),
        (
            "vgg:E",
            "caffe",
            "BGR",
            ((123.68, 116.779, 103.939), (1, 1, 1)),
            (256, 224, "bilinear"),
        ),
        *(
            (arch, naming, "BGR", ((123.68, 116.779, 103.939), (1, 1, 1)), (256, 224, "bicubic"))
            for arch in ("vgg:D", "resnet:50")
            for naming in ("keras", "keras-numbered")
        ),
    ],
)
def test_preprocessing_is_the_sources(arch, naming, order, constants, sizes):
    images = pretrained.preprocessing(arch, naming)
    assert images.colour_order == order
    np.testing.assert_allclose((images.mean, images.std), constants)
    assert (images.short_side, images.crop, images.resize) == sizes
    # BVLC's databases hold images of 256x256, whatever their aspect was.
    assert images.warp == (sizes[2] == "opencv_bilinear")
    assert images.source


@pytest.mark.parametrize(
    ("sha256", "weights", "short_side"),
    [
        ("0676ba61" + "0" * 56, "ResNet50_Weights.IMAGENET1K_V1", 256),
        ("11ad3fa6" + "0" * 56, "ResNet50_Weights.IMAGENET1K_V2", 232),
        ("12345678" + "0" * 56, "", 256),
        ("", "", 256),
    ],
)
def test_published_files_are_known_by_their_digest(sha256, weights, short_side):
    images = pretrained.preprocessing("resnet:50", "torchvision", sha256)
    assert (images.weights, images.short_side) == (weights, short_side)


def test_every_naming_has_its_preparation_in_the_table():
    for name in cnn_arch.variants():
        for naming in pretrained.NAMINGS[:-1]:
            try:
                images = pretrained.preprocessing(name, naming, classes=10)
            except ArchitectureError:  # the naming does not have it
                continue
            assert (images is None) == name.startswith("nin")  # its images were whitened


def test_preparation_of_cifars_images_is_by_the_number_of_classes():
    """As the repository's logs of training have it, for CIFAR-10 and for CIFAR-100."""
    by_classes = {
        10: ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)),
        100: ((0.507, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
    }
    for classes, constants in by_classes.items():
        images = pretrained.preprocessing(
            "cifar_resnet:20", "pytorch-cifar-models", classes=classes
        )
        np.testing.assert_allclose((images.mean, images.std), np.multiply(255, constants))
        assert (images.short_side, images.crop, images.colour_order) == (32, 32, "RGB")
    assert pretrained.preprocessing("cifar_resnet:20", "pytorch-cifar-models", classes=11) is None


def test_pytorch_cifar_models_names_are_those_of_its_state_dict():
    """Written down from its resnet.py: 16, 32 and 64 maps, projections where maps change."""
    net = create("cifar_resnet:8", shortcut="B", width=1)
    expected = {"conv1.weight": (16, 3, 3, 3), "fc.weight": (7, 64), "fc.bias": (7,)}
    norms = {"bn1": 16}
    for stage, inputs, maps in ((1, 16, 16), (2, 16, 32), (3, 32, 64)):
        block = f"layer{stage}.0"
        expected[f"{block}.conv1.weight"] = (maps, inputs, 3, 3)
        expected[f"{block}.conv2.weight"] = (maps, maps, 3, 3)
        norms |= {f"{block}.bn1": maps, f"{block}.bn2": maps}
        if stage > 1:
            expected[f"{block}.downsample.0.weight"] = (maps, inputs, 1, 1)
            norms[f"{block}.downsample.1"] = maps
    counted = {f"{norm}.num_batches_tracked": () for norm in norms}
    expected |= counted | {f"{norm}.{x}": (n,) for norm, n in norms.items() for x in BN[:4]}
    exported = pretrained.export(net, "pytorch-cifar-models")
    assert {name: value.shape for name, value in exported.items()} == expected


@pytest.mark.parametrize(
    ("arch", "block"), [("resnet:18", ((8, 3), (8, 3))), ("resnet:50", ((8, 1), (8, 3), (32, 1)))]
)
def test_huggingface_names_are_those_of_its_state_dict(arch, block):
    """Written down from transformers' modeling_resnet.py."""
    options = {"stride_in": "3x3"} if len(block) == 3 else {}
    exported = pretrained.export(create(arch, **options), "huggingface")
    names = list(exported)
    units = ["embedder.embedder"]
    last = block[-1][0]
    for stage, blocks in enumerate(RESNET[int(arch.removeprefix("resnet:"))]):
        for b in range(blocks):
            inner = f"encoder.stages.{stage}.layers.{b}"
            if b == 0 and (stage > 0 or last != 8):
                units.append(f"{inner}.shortcut")
            units += [f"{inner}.layer.{i}" for i in range(len(block))]
    expected = []
    for unit in units:
        expected.append(f"resnet.{unit}.convolution.weight")
        expected += [f"resnet.{unit}.normalization.{part}" for part in BN]
    assert names == [*expected, "classifier.1.weight", "classifier.1.bias"]
    shapes = [
        exported[f"resnet.encoder.stages.0.layers.1.layer.{i}.convolution.weight"].shape
        for i in range(len(block))
    ]
    inputs = [last, *(maps for maps, _ in block)]
    assert shapes == [(n, m, k, k) for m, (n, k) in zip(inputs, block, strict=False)]
    assert exported["resnet.embedder.embedder.convolution.weight"].shape == (8, 3, 7, 7)
    assert exported["classifier.1.weight"].shape == (7, 8 * last)


def test_a_bottleneck_of_huggingface_has_its_stride_in_either_place():
    """In the 3x3 by default, as its config.json has; the tensors do not tell."""
    first = create("resnet:50", stride_in="1x1", width=1 / 16)
    exported = pretrained.export(first, "huggingface")
    assert pretrained.arguments("resnet:50", exported)["stride_in"] == "3x3"
    fresh = create("resnet:50", 1, stride_in="1x1", width=1 / 16)
    pretrained.load(fresh, exported)
    assert np.array_equal(values(first)["fc/kernel"], values(fresh)["fc/kernel"])
    assert "stride_in" not in pretrained.arguments(
        "resnet:18", pretrained.export(create("resnet:18"), "huggingface")
    )


def test_torchvisions_googlenet_takes_images_from_minus_one_to_one():
    images = pretrained.preprocessing("googlenet:torchvision", "torchvision")
    assert [(x - images.mean[0]) / images.std[0] for x in (0, 255)] == [-1, 1]
    assert pretrained.preprocessing("vgg:D", "cnn-depth") is None


def refused(net, tensors, naming="torchvision"):
    """The message of `load`, which must not have changed the network."""
    before = values(net)
    with pytest.raises(ArchitectureError) as error:
        pretrained.load(net, tensors, naming=naming)
    after = values(net)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    return str(error.value)


def test_all_wrong_names_and_shapes_are_in_one_error(resnet18, tensors):
    tensors["layer1.0.conv1.weigth"] = tensors.pop("layer1.0.conv1.weight")
    del tensors["fc.bias"]
    tensors["fc.weight"] = tensors["fc.weight"][:6]
    tensors["head"] = np.zeros(3, np.float32)
    message = refused(resnet18, tensors)
    assert "2 missing: layer1.0.conv1.weight, fc.bias" in message
    assert "2 unknown: layer1.0.conv1.weigth (near layer1.0.conv1.weight), head" in message
    assert "1 of another shape: fc.weight is (6, 64), not (7, 64)" in message


def test_only_the_first_of_many_names_are_shown(resnet18, tensors):
    few = {name: value for name, value in tensors.items() if name.startswith(("conv1", "fc"))}
    message = refused(resnet18, few)
    assert "99 missing" in message
    assert "and 89 more" in message
    assert "layer4.1" not in message


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.float32(np.nan), "fc.bias has a NaN or an infinity"),
        (np.float32(-np.inf), "fc.bias has a NaN or an infinity"),
        (np.int64(1), "fc.bias is int64, not float16, float32 or float64"),
        (np.float64(1e39), "fc.bias has values that are too large for float32"),
    ],
)
def test_values_that_are_no_weights_are_refused(resnet18, tensors, value, problem):
    tensors["fc.bias"] = np.full(7, value)
    assert problem in refused(resnet18, tensors)


def test_negative_variances_are_refused(resnet18, tensors):
    tensors["bn1.running_var"] = -tensors["bn1.running_var"]
    assert "bn1.running_var is a variance" in refused(resnet18, tensors)


def test_other_floats_become_float32(tensors):
    net = create("resnet:18", 1)
    tensors["fc.bias"] = tensors["fc.bias"].astype(np.float16)
    tensors["fc.weight"] = tensors["fc.weight"].astype(np.float64)
    pretrained.load(net, tensors)
    loaded = values(net)
    assert {value.dtype for value in loaded.values()} == {np.dtype(np.float32)}
    assert np.array_equal(loaded["fc/bias"], tensors["fc.bias"].astype(np.float32))
    assert np.array_equal(loaded["fc/kernel"].T, tensors["fc.weight"])


def test_counts_of_batches_may_be_missing(tensors):
    """As in the files torchvision published before PyTorch counted."""
    net = create("resnet:18", 1)
    old = {name: value for name, value in tensors.items() if not name.endswith("tracked")}
    assert pretrained.load(net, old).ignored == []
    old["bn7.num_batches_tracked"] = np.zeros((), np.int64)
    assert "unknown: bn7.num_batches_tracked" in refused(net, old)


def test_tensors_of_another_network_are_refused(resnet18, tensors):
    assert "missing: layer1.2.conv1.weight" in refused(create("resnet:34"), tensors)
    assert "missing" in refused(create("vgg:A"), tensors)
    exported = pretrained.export(create("resnet:50", stride_in="3x3"), "torchvision")
    message = refused(resnet18, exported)
    assert "unknown: layer1.0.conv3.weight" in message
    assert "layer1.0.conv1.weight is (8, 8, 1, 1), not (8, 8, 3, 3)" in message


def test_networks_without_arrays_take_the_tensors(tensors, resnet18):
    """And cost no initial weights."""
    net = cnn_arch.abstract("resnet:18", **pretrained.arguments("resnet:18", tensors))
    pretrained.load(net, tensors)
    expected, loaded = values(resnet18), values(net)
    assert all(np.array_equal(expected[name], loaded[name]) for name in expected)
    exported = pretrained.export(create("cifar_resnet:8", width=1 / 4), "cifar")
    arguments = pretrained.arguments("cifar_resnet:8", exported)
    net = cnn_arch.abstract("cifar_resnet:8", **arguments)
    pretrained.load(net, exported)
    again = pretrained.export(net, "cifar")
    assert all(np.array_equal(again[name], exported[name]) for name in again)


@pytest.mark.parametrize(
    ("naming", "arch", "right", "wrong", "needed"),
    [
        ("torchvision", "resnet:50", {"stride_in": "3x3"}, {"stride_in": "1x1"}, "stride_in='3x3'"),
        ("torchvision", "resnet:18", {}, {"shortcut": "A"}, "shortcut='B'"),
        ("torchvision", "resnet:18", {}, {"shortcut": "C"}, "shortcut='B'"),
        ("cifar", "cifar_resnet:8", {"width": 1 / 4}, {"shortcut": "C"}, "shortcut='A' or 'B'"),
        ("caffe", "alexnet:caffenet", {"image_size": 99}, {"lrn": "paper"}, "lrn='caffe'"),
        ("caffe", "alexnet:caffenet", {"image_size": 99}, {"lrn": "cuda-convnet"}, "lrn='caffe'"),
        (
            "caffe",
            "alexnet:two_gpu",
            {"image_size": 99, "lrn": "caffe", "padding": 0, "inverted_dropout": True},
            {"padding": 2, "inverted_dropout": False},
            "padding=0, inverted_dropout=True",
        ),
        (
            "torchvision",
            "alexnet:torchvision",
            {"image_size": 95},
            {"activation": "tanh", "overlapping": False},
            "activation='relu', overlapping=True",
        ),
        (
            "torchvision",
            "alexnet:torchvision",
            {"image_size": 95},
            {"batch_norm": True, "without": "conv3"},
            "without='', batch_norm=False",
        ),
        ("caffe", "googlenet:paper", {"lrn": "caffe"}, {"lrn": "paper"}, "lrn='caffe'"),
        ("caffe", "vgg:D", {}, {"batch_norm": True}, "batch_norm=False"),
        (
            "caffe",
            "nin:cifar10",
            {"pool2": "average", "inverted_dropout": True},
            {"pool2": "max", "inverted_dropout": False},
            "pool2='average', inverted_dropout=True",
        ),
        ("torchvision", "vgg:A", {}, {"hidden": 512}, "hidden=4096"),
        ("kuangliu", "vgg:A", {"hidden": 0, "batch_norm": True}, {"hidden": 512}, "hidden=0"),
        (
            "chengyangfu",
            "vgg:A",
            {"hidden": 512},
            {"hidden": 4096},
            "hidden=512",
        ),
        ("torchvision", "googlenet:torchvision", {}, {"batch_norm": False}, "batch_norm=True"),
    ],
)
def test_networks_that_compute_something_else_are_refused(naming, arch, right, wrong, needed):
    exported = pretrained.export(create(arch, **right), naming)
    net = create(arch, **{**right, **wrong})
    message = refused(net, exported, naming)
    assert f"{naming} has: these weights need {needed}." in message
    with pytest.raises(ArchitectureError, match="these weights need"):
        pretrained.export(net, naming)


def test_options_that_tensors_show_must_be_the_networks():
    plain, normalised = create("vgg:A"), create("vgg:A", batch_norm=True)
    exported = {net: pretrained.export(net, "torchvision") for net in (plain, normalised)}
    assert "need batch_norm=True" in refused(plain, exported[normalised])
    assert "need batch_norm=False" in refused(normalised, exported[plain])
    a, b = (create("cifar_resnet:8", width=1 / 4, shortcut=shortcut) for shortcut in "AB")
    assert "need shortcut='B'" in refused(a, pretrained.export(b, "cifar"), "cifar")
    assert "need shortcut='A'" in refused(b, pretrained.export(a, "cifar"), "cifar")


def test_auxiliary_classifiers_may_be_left_out_but_not_made_up():
    with_, without = (create("googlenet:torchvision", auxiliary=x) for x in (True, False))
    exported = pretrained.export(with_, "torchvision")
    report = pretrained.load(without, exported)
    assert {name.partition(".")[0] for name in report.ignored if "num_" not in name} == {
        "aux1",
        "aux2",
    }
    assert np.array_equal(values(with_)["fc/kernel"], values(without)["fc/kernel"])
    message = refused(with_, pretrained.export(without, "torchvision"))
    assert "need auxiliary=False" in message


@pytest.mark.parametrize(
    ("naming", "arch", "options", "message"),
    [
        ("torchvision", "vgg:C", {}, "can be caffe or caffe-tensorflow or cnn-depth"),
        ("frossard", "vgg:E", {}, "frossard has no vgg:E"),
        ("torchvision", "vgg:A-LRN", {}, "can be cnn-depth"),
        ("caffe", "vgg:A-LRN", {}, "can be cnn-depth"),
        ("caffe", "vgg:A", {"channels": 4}, "Images of 4 channels"),
        ("caffe", "alexnet:one_gpu", {"image_size": 95}, "can be cnn-depth"),
        ("torchvision", "plain:18", {}, "can be cnn-depth"),
        ("torchvision", "cifar_resnet:8", {}, "cifar or pytorch-cifar-models or cnn-depth"),
        ("pytorch-cifar-models", "cifar_resnet:8", {}, "need shortcut='B'"),
        ("caffe", "googlenet:torchvision", {}, "can be torchvision or cnn-depth"),
        ("cifar", "cifar_resnet:8", {"width": 3 / 16}, "take another width"),
        ("keras", "vgg:A", {}, "can be torchvision or timm or kuangliu"),
        ("keras", "resnet:18", {}, "keras has no resnet:18"),
        ("keras", "resnet:50", {"stride_in": "3x3"}, "need stride_in='1x1'"),
        ("keras", "resnet:50", {"channels": 4}, "Images of 4 channels"),
        ("deep-learning-models", "resnet:101", {"width": 1 / 16}, "has no resnet:101"),
        ("jax", "vgg:A", {}, "Unknown naming of weights 'jax'"),
    ],
)
def test_what_a_naming_cannot_express_is_refused(naming, arch, options, message):
    with pytest.raises(ArchitectureError, match=message):
        pretrained.export(create(arch, **options), naming)


def test_unknown_names_are_described():
    with pytest.raises(WeightsError) as error:
        pretrained.detect("vgg:D", {"block1_conv1_W:0": 0, "block1_conv1_b:0": 0})
    message = str(error.value)
    assert "Seen: block1_conv1_W:0, block1_conv1_b:0." in message
    assert (
        "torchvision would have features.0.weight, classifier.0.weight, classifier.6.weight; "
        "timm would have features.0.weight, pre_logits.fc1.weight, head.fc.weight; "
    ) in message
    assert "caffe would have conv1_1.0, fc6.0, fc8.0; " in message
    assert "cifar" not in message
    with pytest.raises(WeightsError, match="Seen: nothing"):
        pretrained.detect("lenet5:modern", {})
    with pytest.raises(ArchitectureError, match="Unknown architecture"):
        pretrained.detect("vgg:Z", {})


def test_caffes_other_lenet_and_nin_are_refused():
    """examples/mnist/lenet.prototxt has 20 and 50 maps; nin_imagenet has a fourth block."""
    shapes = {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "ip1": (500, 800), "ip2": (10, 500)}
    lenet = {f"{name}.0": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for variant in ("original", "modern"):
        with pytest.raises(WeightsError, match=r"^These are no weights of lenet5:.*Seen: conv1\.0"):
            pretrained.detect(f"lenet5:{variant}", lenet)
    net = create("nin:cifar10", pool2="average", inverted_dropout=True)
    exported = pretrained.export(net, "caffe")
    larger = {**exported, "conv4-1024.0": np.zeros((1024, 384, 3, 3), np.float32)}
    assert "1 unknown: conv4-1024.0" in refused(net, larger, "caffe")


KERAS_RESNETS = [
    ("keras", "resnet:50", 1.001e-5),
    ("keras", "resnet:101", 1.001e-5),
    ("keras-numbered", "resnet:152", 1.001e-5),
    ("deep-learning-models", "resnet:50", 1e-3),
]


def keras_resnet(naming, arch, seed=0):
    """A network of which some variances are as small as the epsilons, and its tensors."""
    net = create(arch, seed, width=1 / 64)
    rng = np.random.default_rng(seed)
    small = {
        name: (value * rng.choice([0, 1e-12, 1e-8, 1e-5, 1], value.shape)).astype(np.float32)
        for name, value in values(net).items()
        if name.endswith("/var")
    }
    nnx.update(net, unflat_state({**values(net), **small}, nnx.state(net)))
    return net, pretrained.export(net, naming)


@pytest.mark.parametrize(("naming", "arch", "epsilon"), KERAS_RESNETS)
def test_a_resnet_of_kerass_comes_back_within_one_rounding_of_its_variances(naming, arch, epsilon):
    net, exported = keras_resnet(naming, arch)
    assert pretrained.detect(arch, exported) == naming
    arguments = pretrained.arguments(arch, exported)
    assert (arguments["stride_in"], arguments["width"]) == ("1x1", 1 / 64)
    fresh = cnn_arch.create(arch, rngs=nnx.Rngs(1), **{**arguments, "image_size": 32})
    report = pretrained.load(fresh, exported)
    assert not report.ignored
    assert set(report.used) == set(exported)
    assert set(report.used.values()) == set(values(net))
    loaded = values(fresh)
    for name, expected in values(net).items():
        difference = np.abs(loaded[name] - expected)
        limit = np.spacing(np.maximum(expected, np.float32(epsilon - 1e-5)))
        assert (difference <= (limit if name.endswith("/var") else 0)).all(), name
    convs = sum(name.endswith("/conv/kernel") for name in loaded)
    zeros = [name for name, ours in report.used.items() if ours.endswith("/mean")]
    zeros = [exported[name] for name in zeros if name.endswith("/bias")]
    assert len(zeros) == convs
    assert not np.concatenate(zeros).any()


@pytest.mark.parametrize(("naming", "arch", "epsilon"), KERAS_RESNETS[::3])
def test_biases_and_epsilon_of_kerass_resnets_are_in_the_statistics(naming, arch, epsilon):
    net, exported = keras_resnet(naming, arch)
    rng = np.random.default_rng(1)
    units = {}
    for theirs, ours in pretrained.load(net, exported).used.items():
        exported[theirs] = rng.uniform(0, 1e-4, exported[theirs].shape).astype(np.float32)
        kind = "b" if theirs.endswith("/bias") else ours.rpartition("/")[2]
        units.setdefault(ours.rpartition("/")[0], {})[kind] = exported[theirs].astype(np.float64)
    pretrained.load(net, exported)
    loaded = {name: value.astype(np.float64) for name, value in values(net).items()}
    for unit, their in units.items():
        if not unit.endswith("/norm"):
            continue
        x = rng.normal(size=their["b"].shape)
        expected = (x + their["b"] - their["mean"]) / np.sqrt(their["var"] + epsilon)
        y = (x - loaded[f"{unit}/mean"]) / np.sqrt(loaded[f"{unit}/var"] + 1e-5)
        np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_a_resnet_of_kerass_is_refused_with_what_is_wrong():
    net, exported = keras_resnet("keras", "resnet:50")
    wrong = dict(exported)
    del wrong["conv1_conv/bias"]
    assert "1 missing: conv1_conv/bias" in refused(net, wrong, "keras")
    wrong = {**exported, "conv1_bn/moving_variance": np.float32([-1e-7])}
    assert "conv1_bn/moving_variance is a variance" in refused(net, wrong, "keras")
    wrong = {**exported, "conv1_conv/bias": np.float32([3e38])}
    wrong["conv1_bn/moving_mean"] = np.float32([-3e38])
    assert "conv1/norm/mean: a bias and a mean are too far apart" in refused(net, wrong, "keras")
    wrong = {**exported, "conv1_conv/bias": np.float32([np.nan])}
    assert "conv1_conv/bias has a NaN" in refused(net, wrong, "keras")


def test_names_of_keras_are_those_of_its_layers_in_its_order():
    """Written down from keras/src/applications; `test_peers` compares with Keras itself."""
    names = list(pretrained.export(create("resnet:50", width=1 / 64), "keras"))
    norm = ("gamma", "beta", "moving_mean", "moving_variance")
    layers = ["conv1_conv", "conv1_bn"]
    for stage, blocks in enumerate((3, 4, 6, 3), start=2):
        for block in range(1, blocks + 1):
            branches = [0, 3] if block == 1 else [3]
            units = [f"{n}_{kind}" for n in (1, 2) for kind in ("conv", "bn")]
            units += [f"{n}_{kind}" for kind in ("conv", "bn") for n in branches]
            layers += [f"conv{stage}_block{block}_{unit}" for unit in units]
    layers.append("predictions")
    parts = {layer: norm if layer.endswith("bn") else ("kernel", "bias") for layer in layers}
    assert names == [f"{layer}/{part}" for layer in layers for part in parts[layer]]
    exported = pretrained.export(create("vgg:D"), "keras")
    blocks = [
        f"block{s}_conv{i}" for s, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)
    ]
    layers = [*blocks, "fc1", "fc2", "predictions"]
    assert list(exported) == [f"{layer}/{part}" for layer in layers for part in ("kernel", "bias")]
    kernel = np.asarray(create("vgg:D").conv1_1.conv.kernel.get_value())
    assert np.array_equal(exported["block1_conv1/kernel"], kernel[:, :, ::-1])


def test_names_of_keras_are_not_taken_for_our_own():
    exported = pretrained.export(create("vgg:D"), "keras")
    without_top = {name: x for name, x in exported.items() if name.startswith("block")}
    with pytest.raises(WeightsError, match=r"keras would have block1_conv1/kernel, fc1/kernel, "):
        pretrained.detect("vgg:D", without_top)


def test_first_resnet50_of_keras_has_its_layers_in_keras_order():
    """resnet50.py of fchollet/deep-learning-models."""
    names = list(pretrained.export(create("resnet:50", width=1 / 64), "deep-learning-models"))
    layers = [*dict.fromkeys(name.rpartition("/")[0] for name in names)]
    assert layers[:12] == [
        *("conv1", "bn_conv1", "res2a_branch2a", "bn2a_branch2a", "res2a_branch2b"),
        *("bn2a_branch2b", "res2a_branch2c", "res2a_branch1", "bn2a_branch2c", "bn2a_branch1"),
        *("res2b_branch2a", "bn2b_branch2a"),
    ]
    assert layers[-3:] == ["res5c_branch2c", "bn5c_branch2c", "fc1000"]


def test_numbers_of_keras_layers_count_each_class():
    names = list(pretrained.export(create("resnet:50", width=1 / 64), "keras-numbered"))
    layers = [*dict.fromkeys(name.rpartition("/")[0] for name in names)]
    assert layers[:4] == ["conv2d", "batch_normalization", "conv2d_1", "batch_normalization_1"]
    assert layers[-3:] == ["conv2d_52", "batch_normalization_52", "dense"]


# The published networks again, as PyTorch modules with the published names.

VGG = {"A": (1, 1, 2, 2, 2), "B": (2,) * 5, "D": (2, 2, 3, 3, 3), "E": (2, 2, 4, 4, 4)}
RESNET = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def torch_tree(torch, tree):
    """A module whose children are named by a dict: modules, or dicts of them."""
    module = torch.nn.Module()
    for name, child in tree.items():
        child = torch_tree(torch, child) if isinstance(child, dict) else child
        module.add_module(name, child)
    return module


def torch_vgg(torch, variant, width, side, classes, batch_norm, timm):
    nn = torch.nn
    layers, inputs = [], 3
    for maps, count in zip((64, 128, 256, 512, 512), VGG[variant], strict=True):
        for _ in range(count):
            layers.append(nn.Conv2d(inputs, int(maps * width), 3, padding=1))
            inputs = int(maps * width)
            layers += [nn.BatchNorm2d(inputs)] if batch_norm else []
            layers.append(nn.ReLU())
        layers.append(nn.MaxPool2d(2))
    features, hidden = nn.Sequential(*layers), int(4096 * width)
    if timm:
        fc1, fc2 = nn.Conv2d(inputs, hidden, side), nn.Conv2d(hidden, hidden, 1)
        fc3 = nn.Linear(hidden, classes)
        net = {"features": features, "pre_logits": {"fc1": fc1, "fc2": fc2}, "head": {"fc": fc3}}

        def logits(x):
            return fc3(torch.relu(fc2(torch.relu(fc1(features(x))))).mean((2, 3)))
    else:
        sizes = [(inputs * side**2, hidden), (hidden, hidden)]
        head = [y for a, b in sizes for y in (nn.Linear(a, b), nn.ReLU(), nn.Dropout())]
        classifier = nn.Sequential(*head, nn.Linear(hidden, classes))
        net = {"features": features, "classifier": classifier}

        def logits(x):
            return classifier(features(x).flatten(1))

    return torch_tree(torch, net), logits


def torch_cifar_vgg(torch, variant, width, batch_norm, hidden):
    """kuangliu's, whose last average is over single pixels, and chengyangfu's with hidden units."""
    module, _ = torch_vgg(torch, variant, width, 1, 7, batch_norm, False)
    nn, inputs = torch.nn, int(512 * width)
    features, classifier = module.features, nn.Linear(inputs, 7)
    if hidden:
        layers = []
        for _ in range(2):
            layers += [nn.Dropout(), nn.Linear(inputs, int(hidden * width)), nn.ReLU(True)]
            inputs = int(hidden * width)
        classifier = nn.Sequential(*layers, nn.Linear(inputs, 7))
    else:
        features.append(nn.AvgPool2d(kernel_size=1, stride=1))
    net = torch_tree(torch, {"features": features, "classifier": classifier})
    return net, lambda x: classifier(features(x).flatten(1))


def torch_alexnet(torch):
    like = create("alexnet:torchvision", image_size=95)
    module = test_alexnet.torch_network("torchvision", like, "relu")
    return module, module


def torch_resnet(torch, blocks, maps, classes, bottleneck=False, cifar=""):
    """cifar: of small images; 'A' is akamaster's, whose parameterless shortcut pads a quarter of
    the maps on each side, 'B' that of pytorch-cifar-models."""
    nn = torch.nn
    inputs = maps[0]
    size, step = (3, 1) if cifar else (7, 2)
    stem = nn.Conv2d(3, inputs, size, step, padding=size // 2, bias=False)
    tree, order = {"conv1": stem, "bn1": nn.BatchNorm2d(inputs)}, []
    for s, (count, planes) in enumerate(zip(blocks, maps, strict=True), start=1):
        stage = {}
        for b in range(count):
            stride, outputs = 2 if s > 1 and b == 0 else 1, 4 * planes if bottleneck else planes
            sizes = [(inputs, planes, 3, stride), (planes, planes, 3, 1)]
            if bottleneck:
                sizes = [
                    (inputs, planes, 1, 1),
                    (planes, planes, 3, stride),
                    (planes, outputs, 1, 1),
                ]
            block = {}
            for i, (a, c, kernel, step) in enumerate(sizes, start=1):
                conv = nn.Conv2d(a, c, kernel, step, padding=kernel // 2, bias=False)
                block |= {f"conv{i}": conv, f"bn{i}": nn.BatchNorm2d(c)}
            if cifar != "A" and (stride > 1 or inputs != outputs):
                projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                block["downsample"] = nn.Sequential(projection, nn.BatchNorm2d(outputs))
            stage[str(b)] = block
            order.append((block, len(sizes), stride, (outputs - inputs) // 2))
            inputs = outputs
        tree[f"layer{s}"] = stage
    last = nn.Linear(inputs, classes)
    tree["linear" if cifar == "A" else "fc"] = last

    def logits(x):
        x = torch.relu(tree["bn1"](stem(x)))
        x = x if cifar else nn.functional.max_pool2d(x, 3, 2, padding=1)
        for block, convs, stride, added in order:
            y = x
            for i in range(1, convs + 1):
                y = block[f"bn{i}"](block[f"conv{i}"](y))
                y = torch.relu(y) if i < convs else y
            if "downsample" in block:
                x = block["downsample"](x)
            elif added:
                x = x[:, :, ::stride, ::stride]
                zeros = torch.zeros_like(x[:, :1]).expand(-1, added, -1, -1)
                x = torch.cat([zeros, x, zeros], 1)
            x = torch.relu(x + y)
        return last(x.mean((2, 3)))

    return torch_tree(torch, tree), logits


def torch_caffe_alexnet(torch, width, side, classes, *, pool_first):
    nn = torch.nn
    a, b, c, d, e, hidden = (int(maps * width) for maps in (96, 256, 384, 384, 256, 4096))
    convs = [
        nn.Conv2d(3, a, 11, 4),
        nn.Conv2d(a, b, 5, padding=2, groups=2),
        nn.Conv2d(b, c, 3, padding=1),
        nn.Conv2d(c, d, 3, padding=1, groups=2),
        nn.Conv2d(d, e, 3, padding=1, groups=2),
    ]
    dense = [nn.Linear(e * side**2, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, classes)]
    names = [*(f"conv{i}" for i in range(1, 6)), "fc6", "fc7", "fc8"]
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1)

    def logits(x):
        for i, conv in enumerate(convs):
            x = torch.relu(conv(x))
            if i < 2:
                x = norm(pool(x)) if pool_first else pool(norm(x))
        x = pool(x).flatten(1)
        return dense[2](torch.relu(dense[1](torch.relu(dense[0](x)))))

    return torch_tree(torch, dict(zip(names, convs + dense, strict=True))), logits


def torch_state(torch, module, seed=0, scale=1.0):
    """Fills the module and returns its float32 state dict as NumPy arrays.

    Maps of very different sizes, so that no two can be exchanged unseen.
    """
    rng = np.random.default_rng(seed)
    state = {}
    for name, value in module.state_dict().items():
        kind, shape = name.rpartition(".")[2], tuple(value.shape)
        if kind == "num_batches_tracked":
            state[name] = np.full((), 17, np.int64)
            continue
        if kind == "weight" and len(shape) > 1:
            values = rng.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5
        elif kind in ("weight", "running_var"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = 0.2 * scale * rng.normal(size=shape)
        state[name] = values.astype(np.float32)
    module.double().eval()
    module.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    return state


def relative_error(logits, expected):
    expected = expected.detach().numpy()
    assert expected.std(axis=0).max() > 1e-3 * np.abs(expected).max()  # it sees the images
    return np.abs(np.asarray(logits) - expected).max() / np.abs(expected).max()


def our_logits(net, images):
    graph, state = nnx.split(net)
    return jax.jit(lambda state, images: nnx.merge(graph, state)(images))(state, images)


@pytest.mark.peers
@pytest.mark.parametrize(
    ("naming", "arch", "size", "build", "sizes"),
    [
        ("torchvision", "alexnet:torchvision", 95, torch_alexnet, ()),
        ("torchvision", "vgg:A", 64, torch_vgg, ("A", 1 / 8, 2, 7, False, False)),
        ("torchvision", "vgg:B", 64, torch_vgg, ("B", 1 / 8, 2, 7, True, False)),
        ("timm", "vgg:D", 64, torch_vgg, ("D", 1 / 8, 2, 7, False, True)),
        ("kuangliu", "vgg:D", 32, torch_cifar_vgg, ("D", 1 / 8, True, 0)),
        ("chengyangfu", "vgg:E", 32, torch_cifar_vgg, ("E", 1 / 8, True, 512)),
        ("chengyangfu", "vgg:A", 32, torch_cifar_vgg, ("A", 1 / 8, False, 512)),
        ("torchvision", "resnet:18", 64, torch_resnet, (RESNET[18], (8, 16, 32, 64), 7)),
        ("torchvision", "resnet:50", 64, torch_resnet, (RESNET[50], (8, 16, 32, 64), 7, True)),
        ("cifar", "cifar_resnet:20", 32, torch_resnet, ((3, 3, 3), (4, 8, 16), 7, False, "A")),
        (
            "pytorch-cifar-models",
            "cifar_resnet:20",
            32,
            torch_resnet,
            ((3, 3, 3), (4, 8, 16), 7, False, "B"),
        ),
    ],
)
def test_names_and_logits_equal_pytorch(torch, naming, arch, size, build, sizes):
    module, logits = build(torch, *sizes)
    state = torch_state(torch, module)
    arguments = pretrained.arguments(arch, state)
    assert pretrained.detect(arch, state) == naming
    net = cnn_arch.create(arch, rngs=nnx.Rngs(1), **{**arguments, "image_size": size})
    if arch.startswith(("vgg", "alexnet")):
        assert arguments["image_size"] == size
    report = pretrained.load(net, state)
    assert all(name.endswith("num_batches_tracked") for name in report.ignored)
    net.eval()
    images = np.random.default_rng(1).normal(size=(3, size, size, 3)).astype(np.float32)
    expected = logits(torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2))
    assert relative_error(our_logits(net, images), expected) < 1e-4

    exported = pretrained.export(net, naming)
    assert list(exported) == list(state)
    for name, value in exported.items():
        assert value.dtype == state[name].dtype
        if not name.endswith("num_batches_tracked"):
            assert np.array_equal(value, state[name]), name
    module.load_state_dict({name: torch.tensor(value) for name, value in exported.items()})


@pytest.mark.peers
@pytest.mark.parametrize(
    ("arch", "layer", "expansion", "stride_in"),
    [
        ("resnet:18", "basic", 1, "3x3"),
        ("resnet:34", "basic", 1, "3x3"),
        ("resnet:50", "bottleneck", 4, "3x3"),
        ("resnet:50", "bottleneck", 4, "1x1"),
    ],
)
def test_names_and_logits_equal_transformers(torch, arch, layer, expansion, stride_in):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[maps * expansion for maps in (8, 16, 32, 64)],
        depths=list(RESNET[int(arch.removeprefix("resnet:"))]),
        layer_type=layer,
        downsample_in_bottleneck=stride_in == "1x1",
        num_labels=7,
    )
    module = transformers.ResNetForImageClassification(config)
    state = torch_state(torch, module)
    arguments = {**pretrained.arguments(arch, state), "image_size": 64}
    if expansion == 4:
        assert arguments["stride_in"] == "3x3"  # its default
        arguments["stride_in"] = stride_in
    net = cnn_arch.create(arch, rngs=nnx.Rngs(1), **arguments)
    assert pretrained.load(net, state).naming == "huggingface"
    net.eval()
    images = np.random.default_rng(1).normal(size=(3, 64, 64, 3)).astype(np.float32)
    expected = module(torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2)).logits
    assert relative_error(our_logits(net, images), expected) < 1e-4
    exported = pretrained.export(net, "huggingface")
    assert list(exported) == list(state)
    assert all(
        np.array_equal(value, state[name])
        for name, value in exported.items()
        if not name.endswith("num_batches_tracked")
    )


# torchvision's layers -> Caffe's.
IN_CAFFE = {
    "conv1": "conv1/7x7_s2",
    "conv2": "conv2/3x3_reduce",
    "conv3": "conv2/3x3",
    **{f"aux{i}.conv": f"loss{i}/conv" for i in (1, 2)},
    **{f"aux{i}.fc1": f"loss{i}/fc" for i in (1, 2)},
    **{f"aux{i}.fc2": f"loss{i}/classifier" for i in (1, 2)},
    **{
        f"inception{module}.{ours}": f"inception_{module}/{theirs}"
        for module in MODULES
        for ours, theirs in zip(test_googlenet.BRANCHES.values(), CAFFE_BRANCHES, strict=True)
    },
    "fc": "loss3/classifier",
}


@pytest.mark.peers
@pytest.mark.parametrize(("naming", "size"), [("torchvision", 64), ("caffe", 128)])
def test_googlenet_equals_pytorch(torch, naming, size):
    """Auxiliary classifiers too; Caffe's images are BGR."""
    caffe = naming == "caffe"
    variant = "paper" if caffe else "torchvision"
    arch = f"googlenet:{variant}"
    like = create(arch, image_size=size)
    logits = module = test_googlenet.torch_network(variant, like, not caffe, (1, 1e-4 / 5))
    state = torch_state(torch, module, scale=30 if caffe else 1)
    if caffe:
        named = {}
        for name, value in state.items():
            layer, _, kind = name.rpartition(".")
            layer = layer.removesuffix(".conv") if layer not in IN_CAFFE else layer
            named[f"{IN_CAFFE[layer]}.{0 if kind == 'weight' else 1}"] = value
        state = named
    arguments = {**pretrained.arguments(arch, state), "image_size": size}
    net = cnn_arch.create(arch, rngs=nnx.Rngs(1), **arguments)
    pretrained.load(net, state)
    net.eval()
    images = np.random.default_rng(1).normal(size=(3, size, size, 3)).astype(np.float32)
    images *= 100 if caffe else 1
    theirs = images[..., ::-1].copy() if caffe else images
    expected = logits(torch.tensor(theirs, dtype=torch.float64).permute(0, 3, 1, 2))

    graph, ours = nnx.split(net)

    @jax.jit
    def all_logits(ours, images):
        net = nnx.merge(graph, ours)
        maps = net.endpoints(images)
        first = net.auxiliary1(Tape(), maps["inception4a"])
        return [maps["logits"], first, net.auxiliary2(Tape(), maps["inception4d"])]

    for output, right in zip(all_logits(ours, images), expected, strict=True):
        assert relative_error(output, right) < 1e-4
    exported = pretrained.export(net, naming)
    assert set(exported) == set(state)
    if not caffe:
        assert list(exported) == list(state)


@pytest.mark.peers
@pytest.mark.parametrize("arch", ["alexnet:caffenet", "alexnet:two_gpu"])
def test_caffe_alexnets_take_rgb_here_and_bgr_there(torch, arch):
    module, logits = torch_caffe_alexnet(torch, 1 / 16, 2, 7, pool_first=arch.endswith("caffenet"))
    state = torch_state(torch, module, scale=100)  # large maps, for normalisation to matter
    state = {name.replace("weight", "0").replace("bias", "1"): x for name, x in state.items()}
    arguments = pretrained.arguments(arch, state)
    assert arguments["image_size"] == 99
    net = cnn_arch.create(arch, rngs=nnx.Rngs(1), **arguments)
    pretrained.load(net, state)
    net.eval()
    images = 100 * np.random.default_rng(1).normal(size=(3, 99, 99, 3)).astype(np.float32)
    bgr = torch.tensor(images[..., ::-1].copy(), dtype=torch.float64).permute(0, 3, 1, 2)
    expected = logits(bgr)
    assert relative_error(our_logits(net, images), expected) < 1e-4
    rgb = logits(bgr.flip(1))
    assert relative_error(our_logits(net, images), rgb) > 0.1
    exported = pretrained.export(net, "caffe")
    assert all(np.array_equal(exported[name], value) for name, value in state.items())


def plain_vgg(torch, tensors, images, suffixes, *, ours, convolutions):
    """VGG-16 from its tensors by name, (B, H, W, C) -> logits.

    ours: kernels are (H, W, in, out), and maps are flattened as (H, W, C).
    """
    weight, bias = suffixes
    tensors = {name: torch.tensor(x, dtype=torch.float64) for name, x in tensors.items()}

    def convolve(x, name, padding):
        kernel = tensors[name + weight]
        kernel = kernel.permute(3, 2, 0, 1) if ours else kernel
        return torch.nn.functional.conv2d(x, kernel, tensors[name + bias], padding=padding)

    def multiply(x, name):
        x = (x.permute(0, 2, 3, 1) if ours else x).flatten(1) if x.ndim == 4 else x
        kernel = tensors[name + weight]
        return x @ (kernel if ours else kernel.T) + tensors[name + bias]

    x = torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2)
    for stage, count in enumerate(VGG["D"], 1):
        for i in range(1, count + 1):
            x = torch.relu(convolve(x, f"conv{stage}_{i}", 1))
        x = torch.nn.functional.max_pool2d(x, 2)
    for name in ("fc6", "fc7", "fc8"):
        x = convolve(x, name, 0) if convolutions else multiply(x, name)
        x = torch.relu(x) if name != "fc8" else x
    return x.flatten(1)


@pytest.mark.peers
@pytest.mark.parametrize(
    ("naming", "suffixes", "convolutions", "blue_first"),
    [
        ("frossard", ("_W", "_b"), False, False),
        ("caffe-tensorflow", ("/weights", "/biases"), False, True),
        ("caffe-tensorflow", ("/weights", "/biases"), True, True),
        ("caffe", (".0", ".1"), True, True),
    ],
)
def test_other_layouts_of_caffes_vgg_equal_pytorch(
    torch, naming, suffixes, convolutions, blue_first
):
    like = create("vgg:D", image_size=64)
    tensors = pretrained.export(like, naming)
    tensors = convolved(like, tensors, naming) if convolutions else tensors
    rng = np.random.default_rng(2)
    tensors = {
        name: (rng.normal(size=x.shape) * np.std(x)).astype(np.float32)
        for name, x in tensors.items()
    }
    arguments = pretrained.arguments("vgg:D", tensors)
    net = cnn_arch.create("vgg:D", rngs=nnx.Rngs(1), **{**arguments, "image_size": 64})
    assert pretrained.load(net, tensors).naming == naming
    net.eval()
    images = rng.normal(size=(3, 64, 64, 3)).astype(np.float32)
    theirs = images[..., ::-1].copy() if blue_first else images
    ours = naming != "caffe"
    expected = plain_vgg(torch, tensors, theirs, suffixes, ours=ours, convolutions=convolutions)
    assert relative_error(our_logits(net, images), expected) < 1e-4


@pytest.mark.peers
def test_nin_of_caffe_equals_pytorch(torch):
    options = {"pool2": "average", "inverted_dropout": True}
    like = create("nin:cifar10", classes=10, width=1, **options)
    tensors = pretrained.export(like, "caffe")
    net = cnn_arch.abstract("nin:cifar10", **pretrained.arguments("nin:cifar10", tensors))
    pretrained.load(net, tensors)
    net.eval()
    images = np.random.default_rng(1).normal(size=(3, 32, 32, 3)).astype(np.float32)
    x = torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2)
    pools = (torch.nn.functional.max_pool2d, torch.nn.functional.avg_pool2d)
    for i, name in enumerate(CAFFE_NIN.split()):
        kernel, bias = (torch.tensor(tensors[f"{name}.{j}"], dtype=torch.float64) for j in (0, 1))
        padding = kernel.shape[-1] // 2
        x = torch.relu(torch.nn.functional.conv2d(x, kernel, bias, padding=padding))
        x = pools[i // 3](x, 3, 2, ceil_mode=True) if i in (2, 5) else x
    assert relative_error(our_logits(net, images), x.mean((2, 3))) < 1e-4

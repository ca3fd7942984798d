"""The same weights in independent implementations: Keras applications, and ONNX graphs.

The graphs are those that the `onnx` package ships without weights; their constants are replaced by
random numbers, so that two exchanged channels make a test fail. onnxruntime runs them.
"""

import os
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import flat_state, pretrained, unflat_state, weight_files
from cnn_arch.pretrained import names

pytestmark = pytest.mark.peers

TOLERANCE = 1e-4  # of the largest logit


def network(name, values, **arguments):
    """The network with these values by flat name, in eval mode; none is missing or left over."""
    net = cnn_arch.abstract(name, **arguments)
    state = nnx.state(net)
    nnx.update(net, unflat_state({k: jnp.asarray(v) for k, v in values.items()}, state))
    net.eval()
    return net


def random_value(kind, shape, random):
    """A weight, bias, scale or variance of a size that keeps activations about as they are."""
    if kind in ("scale", "var"):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    if kind in ("bias", "mean"):
        return random.normal(scale=0.1, size=shape).astype(np.float32)
    # Less than He's deviation: residual branches add up.
    fan_in = np.prod(shape[:-1])
    return random.normal(scale=(1.5 / fan_in) ** 0.5, size=shape).astype(np.float32)


def images(n, size, seed=0):
    return np.random.default_rng(seed).normal(size=(n, size, size, 3)).astype(np.float32)


def assert_close(logits, expected):
    logits, expected = np.asarray(logits), np.asarray(expected)
    assert logits.shape == expected.shape
    assert np.ptp(expected, axis=-1).min() > 0.01
    assert np.abs(logits - expected).max() < TOLERANCE * np.abs(expected).max()


# ----------------------------------------------------------------------------------- Keras


@pytest.fixture(scope="module")
def keras():
    os.environ["KERAS_BACKEND"] = "jax"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("keras")


def keras_names(name):
    """Our layer -> Keras's, of VGG and ResNet."""
    family, variant = name.split(":")
    if family == "vgg":
        stages = enumerate(cnn_arch.vgg.CONFIGURATIONS[variant], start=1)
        convolutions = {
            f"conv{s}_{i}/conv": f"block{s}_conv{i}"
            for s, sizes in stages
            for i in range(1, len(sizes) + 1)
        }
        return {**convolutions, "fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}
    names = {"conv1/conv": "conv1_conv", "conv1/norm": "conv1_bn", "fc": "predictions"}
    for stage, blocks in enumerate(cnn_arch.resnet.BLOCKS[variant], start=1):
        for block in range(1, blocks + 1):
            units = {"conv1": 1, "conv2": 2, "conv3": 3, **({"shortcut": 0} if block == 1 else {})}
            for ours, theirs in units.items():
                for part, suffix in (("conv", "conv"), ("norm", "bn")):
                    key = f"stage{stage}/block{block}/{ours}/{part}"
                    names[key] = f"conv{stage + 1}_block{block}_{theirs}_{suffix}"
    return names


def exchange_weights(model, names):
    """Gives a Keras model random weights; returns them by our names."""
    random, ours = np.random.default_rng(1), {}
    kinds = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
    unused = {layer.name for layer in model.layers if layer.weights}
    for layer_name, keras_name in names.items():
        layer = model.get_layer(keras_name)
        unused.remove(keras_name)
        for weight in layer.weights:
            kind = kinds.get(weight.name, weight.name)
            value = random_value(kind, weight.shape, random)
            if "_bn" not in keras_name and kind == "bias" and keras_name.endswith("_conv"):
                # Keras's residual networks have biases before batch normalisation.
                weight.assign(np.zeros_like(value))
                continue
            weight.assign(value)
            ours[f"{layer_name}/{kind}"] = value
    assert not unused
    return ours


KERAS = {
    "vgg:D": ("VGG16", 32),
    "vgg:E": ("VGG19", 32),
    "resnet:50": ("ResNet50", 64),
    "resnet:101": ("ResNet101", 64),
    "resnet:152": ("ResNet152", 64),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KERAS)
def test_logits_equal_keras_applications(keras, name):
    application, size = KERAS[name]
    model = getattr(keras.applications, application)(
        weights=None, input_shape=(size, size, 3), classes=7, classifier_activation=None
    )
    values = exchange_weights(model, keras_names(name))
    net = network(name, values, image_size=size, classes=7)
    x = images(2, size)
    assert_close(net(jnp.asarray(x)), model(x, training=False))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["vgg:D", "resnet:50"])
def test_gradients_equal_keras_applications(keras, name):
    application, size = KERAS[name]
    model = getattr(keras.applications, application)(
        weights=None, input_shape=(size, size, 3), classes=7, classifier_activation=None
    )
    names = keras_names(name)
    net = network(name, exchange_weights(model, names), image_size=size, classes=7)
    x, weight = jnp.asarray(images(2, size)), jnp.asarray(images(2, 7)[:, :, 0, 0])
    fixed = [variable.value for variable in model.non_trainable_variables]

    def theirs(trainable):
        logits, _ = model.stateless_call(trainable, fixed, x, training=False)
        return (logits * weight).sum()

    gradients = jax.jit(jax.grad(theirs))([v.value for v in model.trainable_variables])
    paths = {v.path: g for v, g in zip(model.trainable_variables, gradients, strict=True)}
    graphdef, params, stats = nnx.split(net, nnx.Param, nnx.BatchStat)

    def ours(params):
        return (nnx.merge(graphdef, params, stats)(x) * weight).sum()

    kinds = {"scale": "gamma", "bias": "beta", "kernel": "kernel"}
    our_gradients = flat_state(jax.jit(jax.grad(ours))(params))
    assert our_gradients
    for key, value in our_gradients.items():
        layer, _, kind = key.rpartition("/")
        suffix = kinds[kind] if names[layer].endswith("_bn") else kind
        (expected,) = (g for p, g in paths.items() if p.endswith(f"{names[layer]}/{suffix}"))
        expected = np.asarray(expected)
        assert np.abs(expected).max() > 0
        assert np.abs(value - expected).max() < 10 * TOLERANCE * np.abs(expected).max(), key


def keras_model(keras, application, size, seed):
    """With random weights, of which the smallest variances are as small as Keras's epsilon."""
    model = getattr(keras.applications, application)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )
    random = np.random.default_rng(seed)
    for layer in model.layers:
        weights = {weight.name: weight for weight in layer.weights}
        for name, weight in weights.items():
            weight.assign(random_value("bias" if name != "kernel" else name, weight.shape, random))
        if "gamma" in weights:
            variance = 10 ** random.uniform(-6, 0, weights["gamma"].shape)
            weights["moving_variance"].assign(variance.astype(np.float32))
            scale = np.sqrt(variance + 1e-5) * random.uniform(0.5, 1, variance.shape)
            weights["gamma"].assign(scale.astype(np.float32))
    return model


def without_names(path):
    """The file as Keras wrote it before it gave the layers' names."""
    import h5py

    with h5py.File(path, "r+") as file:
        file.visititems(lambda name, place: place.attrs.pop("name", None) and None)


APPLICATIONS = {
    "VGG16": ("vgg:D", 32),
    "VGG19": ("vgg:E", 32),
    "ResNet50": ("resnet:50", 64),
    "ResNet101": ("resnet:101", 64),
    "ResNet152": ("resnet:152", 64),
}
FORMS = {
    "x.weights.h5": "keras",
    "numbered.weights.h5": "keras-numbered",
    "x.h5": "keras",
    "x.keras": "keras",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("application", ["VGG16", "ResNet50"])
def test_files_that_keras_saves_are_read(keras, tmp_path, application):
    arch, size = APPLICATIONS[application]
    model = keras_model(keras, application, size, seed=1)
    x = images(2, size)
    expected = model(x[..., ::-1], training=False)  # Keras's networks take blue first
    for form, naming in FORMS.items():
        path = tmp_path / form
        (model.save_weights if form.endswith(".weights.h5") else model.save)(path)
        if naming == "keras-numbered":
            without_names(path)
        tensors = weight_files.read(path)
        path.unlink()
        assert names.fitting(tensors) == [arch]
        assert pretrained.detect(arch, tensors) == naming
        arguments = {**pretrained.arguments(arch, tensors), "image_size": size}
        net = cnn_arch.abstract(arch, **arguments)
        report = pretrained.load(net, tensors)
        assert set(report.used) == set(tensors)
        net.eval()
        assert_close(net(jnp.asarray(x)), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("application", APPLICATIONS)
def test_keras_loads_what_is_exported(keras, tmp_path, application):
    """Into each network, all of whose layers Keras finds by their order alone."""
    arch, size = APPLICATIONS[application]
    net = cnn_arch.abstract(arch, image_size=size, classes=10)
    random = np.random.default_rng(2)
    state = flat_state(nnx.state(net))
    values = {k: random_value(k.rpartition("/")[2], v.shape, random) for k, v in state.items()}
    nnx.update(net, unflat_state({k: jnp.asarray(v) for k, v in values.items()}, nnx.state(net)))
    net.eval()
    exported = pretrained.export(net, "keras")
    weight_files.write(tmp_path / "net.h5", exported)
    model = keras_model(keras, application, size, seed=3)
    model.load_weights(tmp_path / "net.h5")
    (tmp_path / "net.h5").unlink()
    for layer in model.layers:
        for weight in layer.weights:
            np.testing.assert_array_equal(weight, exported[f"{layer.name}/{weight.name}"])
    x = images(2, size)
    assert_close(model(x[..., ::-1], training=False), net(jnp.asarray(x)))


# ------------------------------------------------------------------------------------ ONNX


def caffe_inception_names():
    names = {"conv1": "conv1/7x7_s2", "conv2_reduce": "conv2/3x3_reduce", "conv2": "conv2/3x3"}
    branches = {
        "branch1": "1x1",
        "branch2_reduce": "3x3_reduce",
        "branch2": "3x3",
        "branch3_reduce": "5x5_reduce",
        "branch3": "5x5",
        "branch4": "pool_proj",
    }
    for module in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        for ours, theirs in branches.items():
            names[f"inception{module}/{ours}"] = f"inception_{module}/{theirs}"
    return {**{f"{k}/conv": v for k, v in names.items()}, "fc": "loss3/classifier"}


def alexnet_names():
    convolutions = {f"conv{i}/conv": f"conv{i}" for i in range(1, 6)}
    return {**convolutions, **{f"fc{i}": f"fc{i}" for i in (6, 7, 8)}}


def vgg19_names():
    sizes = cnn_arch.vgg.CONFIGURATIONS["E"]
    layers = [f"conv{s}_{i + 1}" for s, k in enumerate(sizes, start=1) for i in range(len(k))]
    return {**{f"{k}/conv": k for k in layers}, **{f"fc{i}": f"fc{i}" for i in (6, 7, 8)}}


def resnet50_names():
    branches = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    names = {"conv1/conv": "gpu_0/conv1", "conv1/norm": "gpu_0/res_conv1_bn", "fc": "gpu_0/pred"}
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            units = {**branches, **({"shortcut": "branch1"} if block == 0 else {})}
            for ours, theirs in units.items():
                prefix = f"gpu_0/res{stage + 1}_{block}_{theirs}"
                names[f"stage{stage}/block{block + 1}/{ours}/conv"] = prefix
                names[f"stage{stage}/block{block + 1}/{ours}/norm"] = f"{prefix}_bn"
    return names


def random_constants(graph, onnx):
    """Replaces a graph's weights by random ones, which it returns by name."""
    shapes = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    random, weights = np.random.default_rng(2), {}
    constants = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    for node in constants:
        weights[node.output[0]] = tuple(shapes.pop(node.input[0]))
        graph.node.remove(node)
    for name, value in list(shapes.items()):
        # Only weights above a certain size are made by ConstantOfShape.
        if value.dtype == np.float32 and "blobs_queue" not in name:
            weights[name] = value.shape
    kinds = {"b": "bias", "s": "scale", "rm": "mean", "riv": "var", "w": "kernel"}
    for name, shape in weights.items():
        kind = kinds[name.split("_")[-2]]
        last_axes = (2, 3, 1, 0) if len(shape) == 4 else tuple(range(len(shape)))[::-1]
        value = random_value(kind, tuple(shape[i] for i in last_axes), random)
        weights[name] = np.ascontiguousarray(np.transpose(value, np.argsort(last_axes)))
    initializers = [
        i
        for i in graph.initializer
        if i.name in shapes and i.name not in weights and "blobs_queue" not in i.name
    ]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in weights.items())
    inputs = [i for i in graph.input if i.name.endswith("data_0")]
    del graph.input[:]
    graph.input.extend(inputs)
    return weights


def as_flat(weights, names, net):
    """The graph's weights by our flat names and in our layout; every one is used."""
    suffixes = {"kernel": "w", "scale": "s", "bias": "b", "mean": "rm", "var": "riv"}
    unused, flat = dict(weights), {}
    for key, like in flat_state(nnx.state(net)).items():
        layer, _, kind = key.rpartition("/")
        value = unused.pop(f"{names[layer]}_{suffixes[kind]}_0")
        if value.shape[:2] == (1, 1) and "/" not in layer:  # Caffe's fully connected weights
            value = value[0, 0]
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        elif value.ndim == 2:
            side = round((value.shape[1] / net_channels(net, layer)) ** 0.5)
            value = value.reshape(len(value), -1, side, side).transpose(2, 3, 1, 0)
        flat[key] = value.reshape(like.shape)
    assert not unused
    return flat


def net_channels(net, layer):
    return getattr(net, layer).map_shape[2]


def ceil_mode(graph, onnx):
    """Caffe's pooling, which the graph's converter rounded down and made up for at the end."""
    for node in graph.node:
        strides = [list(a.ints) for a in node.attribute if a.name == "strides"]
        if node.op_type == "MaxPool" and strides == [[2, 2]]:
            node.attribute.append(onnx.helper.make_attribute("ceil_mode", 1))
        if node.op_type == "AveragePool":
            for attribute in node.attribute:
                if attribute.name == "pads":
                    attribute.ints[:] = [0, 0, 0, 0]


GRAPHS = {
    "light_bvlc_alexnet": (
        "alexnet:two_gpu",
        alexnet_names,
        {"image_size": 227, "padding": 0, "lrn": "caffe", "inverted_dropout": True},
    ),
    "light_vgg19": ("vgg:E", vgg19_names, {}),
    "light_resnet50": ("resnet:50", resnet50_names, {"stride_in": "3x3"}),
    "light_inception_v1": (
        "googlenet:paper",
        caffe_inception_names,
        {"lrn": "caffe", "auxiliary": False},
    ),
}


@pytest.mark.parametrize("graph_name", GRAPHS)
def test_logits_equal_the_onnx_graph(graph_name):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    name, names, arguments = GRAPHS[graph_name]
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    model = onnx.load(folder / f"{graph_name}.onnx")
    graph = model.graph
    weights = random_constants(graph, onnx)
    if graph_name == "light_inception_v1":
        ceil_mode(graph, onnx)
        model.opset_import[0].version = 10
    net = cnn_arch.abstract(name, **arguments)
    net = network(name, as_flat(weights, names(), net), **arguments)
    size = net.image_size
    for dim, value in zip(
        graph.input[0].type.tensor_type.shape.dim, (1, 3, size, size), strict=True
    ):
        dim.dim_value = value
    del graph.value_info[:]
    (logits,) = (
        node.output[0]
        for node in graph.node
        if node.op_type == "Gemm"
        and node.output[0] in {i for n in graph.node if n.op_type == "Softmax" for i in n.input}
    )
    del graph.output[:]
    graph.output.append(
        onnx.helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, [1, 1000])
    )
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = images(1, size)
    (expected,) = session.run(None, {graph.input[0].name: x.transpose(0, 3, 1, 2)})
    assert_close(net(jnp.asarray(x)), expected)

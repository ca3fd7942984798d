from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import ArchitectureError
from cnn_arch.dense import FullyConvolutional, _SizedTape, class_scores
from cnn_arch.initial_weights import initializer
from cnn_arch.layers import (
    AveragePool,
    Conv,
    Dense,
    GlobalAveragePool,
    IdentityShortcut,
    LocalResponseNorm,
    MaxPool,
)
from cnn_arch.lenet import Subsampling
from cnn_arch.network import Network, Tape
from cnn_arch.window import Window

# Training sizes at which the first fully connected layer sees more than one pixel.
NETWORKS = {
    "vgg:A": {"image_size": 64, "width": 1 / 16, "init": "he"},
    "resnet:18": {"image_size": 64, "width": 1 / 16},
    "cifar_resnet:8": {"image_size": 16, "width": 0.25},
    "alexnet:two_gpu": {"image_size": 99, "width": 1 / 8, "init": "he"},
    "alexnet:torchvision": {"image_size": 99, "width": 1 / 8},
    "nin:cifar10": {"image_size": 16, "width": 1 / 8, "init": "he"},
    "googlenet:paper": {"image_size": 32, "width": 1 / 8, "auxiliary": False},
    "lenet5:original": {},
    "lenet5:modern": {},
    "dan_net:100": {"image_size": 45},
}
FLATTENING = {"vgg:A": 32, "alexnet:two_gpu": 32, "alexnet:torchvision": 32, "dan_net:100": 12}
SLOW = "googlenet:paper"
NAMES = [pytest.param(name, marks=pytest.mark.slow if name == SLOW else ()) for name in NETWORKS]


@pytest.fixture(scope="module", autouse=True)
def fast_compilation():
    """The programs run once: compiling them is what takes time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def images(net, height, width, batch=2):
    shape = (batch, height, width, net.channels)
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def network(name, **options):
    """Its biases and running means are random: a border of zeros is no map of zeros inside."""
    net = cnn_arch.create(name, rngs=nnx.Rngs(0), **NETWORKS.get(name, {}) | options)
    net.eval()
    random = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(net)):
        if path[-1] in ("bias", "mean"):
            value = variable.get_value()
            variable.set_value(value + jnp.asarray(random.normal(0, 0.3, value.shape), value.dtype))
    return net


def run(net, function, *arrays):
    """function(FullyConvolutional(net), *arrays), as a program that is quick to compile."""
    graphdef, state = nnx.split(net)

    def program(state, *arrays):
        return function(FullyConvolutional(nnx.merge(graphdef, state)), *arrays)

    options = {"xla_backend_optimization_level": 0}
    return jax.tree.map(np.asarray, jax.jit(program, compiler_options=options)(state, *arrays))


def error(values, expected):
    return np.abs(values - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_at_the_training_size_the_class_map_is_the_classifier(name):
    net = network(name)
    x = images(net, net.image_size, net.image_size)
    class_map, scores, expected = run(
        net, lambda dense, x: (dense(x), dense.scores(x), dense.network(x)), x
    )
    assert class_map.shape[-1] == net.classes
    if name in FLATTENING:
        assert class_map.shape == (2, 1, 1, net.classes)
    assert error(class_scores(class_map), expected) < 1e-5
    assert error(scores, expected) < 1e-5


@pytest.mark.parametrize("name", FLATTENING)
def test_a_place_of_the_class_map_is_the_head_on_its_window_of_the_features(name):
    net = network(name)
    x = images(net, net.image_size + FLATTENING[name], net.image_size + 2 * FLATTENING[name])
    class_map, features = run(net, lambda dense, x: (dense(x), dense.network.features(x)), x)
    side = net.fc1.map_shape[0] if name == "dan_net:100" else net.fc6.map_shape[0]
    rows, columns = class_map.shape[1:3]
    assert (rows, columns) == tuple(n - side + 1 for n in features.shape[1:3])
    assert rows < columns
    for row in range(rows):
        for column in range(columns):
            window = features[:, row : row + side, column : column + side]
            np.testing.assert_allclose(
                class_map[:, row, column],
                net.head(jnp.asarray(window)),
                rtol=1e-4,
                atol=1e-5 * np.abs(class_map).max(),
            )


def test_an_averaging_network_s_class_scores_are_its_own_at_every_size():
    net = network("cifar_resnet:8")
    x = images(net, 40, 29)
    class_map, scores, expected = run(
        net, lambda dense, x: (dense(x), dense.scores(x), dense.network(x)), x
    )
    assert error(class_scores(class_map), expected) < 1e-5
    assert error(scores, expected) < 1e-5


def test_class_scores_are_averaged_before_the_soft_max():
    net = network("lenet5:modern")
    x = 3 * images(net, 40, 44)
    class_map, scores = run(net, lambda dense, x: (dense(x), dense.scores(x)), x)
    assert class_map.shape[1:3] == (3, 4)
    np.testing.assert_allclose(scores, class_map.mean(axis=(1, 2)), rtol=1e-5, atol=1e-5)
    mean_of_posteriors = nnx.softmax(class_map).mean(axis=(1, 2))
    assert jnp.abs(nnx.softmax(scores) - mean_of_posteriors).max() > 0.1


class Layers(Network):
    """These layers, the mean of their maps, and a fully connected layer."""

    image_size, channels, classes = 8, 4, 5

    def __init__(self, *layers):
        self.layers = nnx.List(layers)
        self.pool = GlobalAveragePool()
        self.fc = Dense(4, self.classes, **WEIGHTS)

    def map_features(self, tape, x, rngs):
        return tape.chain([(f"layer{i}", layer) for i, layer in enumerate(self.layers)], x)

    def map_logits(self, tape, x, rngs):
        return tape("fc", self.fc, tape("pool", self.pool, x))


WEIGHTS = {"init": initializer("he"), "dtype": jnp.dtype("float32"), "rngs": nnx.Rngs(0)}


def conv(size, stride=1, **options):
    return Conv(4, 4, size, stride, use_bias=True, **{**WEIGHTS, "bias": 1.0, **options})


LAYERS = {
    "convolutions": [conv(3), conv(5, 2), conv(3, 2), conv(1, 2), conv(4, 3, padding=2)],
    "1x1 convolution with padding": [conv(1, 1, padding=1), conv(3)],
    "max-pooling with padding": [
        conv(3, bias=-9.0),
        MaxPool(3, 2, padding=1),
        MaxPool(3, 1, padding=1),
    ],
    "max-pooling of windows that start inside": [
        conv(3, bias=-9.0),
        MaxPool(3, 2, ceil=True),
        conv(3),
    ],
    "max-pooling within the map": [conv(3), MaxPool(3, 2), MaxPool(2, 2), conv(1)],
    "average pooling": [conv(3), AveragePool(3, 2, ceil=True), conv(3), AveragePool(2, 1)],
    "normalisation": [conv(3), LocalResponseNorm(alpha=0.1), conv(3), nnx.Dropout(0.5), conv(3)],
    "sub-sampling": [conv(3), Subsampling(4, **WEIGHTS), IdentityShortcut(4, 2), conv(3)],
}


def padded(net, sizes, shape):
    """Images of these sizes in arrays of one shape, with nonsense around them."""
    x = np.array(images(net, *shape, batch=len(sizes)))
    for i, (height, width) in enumerate(sizes):
        x[i, height:] = x[i, :, width:] = (np.nan, np.inf, 1e4)[i % 3]
    return jnp.asarray(x)


def check_batch_of_several_sizes(net):
    net.eval()
    least = net.image_size
    sizes = [(0, 0), (7, 34), (31, 3), (22, 22)]  # more than the least, some odd and some even
    sizes = [(least + height, least + width) for height, width in sizes]
    x = padded(net, sizes, (least + 33, least + 35))

    def together_and_alone(dense, x, true_sizes):
        alone = [dense(x[i : i + 1, :h, :w])[0] for i, (h, w) in enumerate(sizes)]
        return dense.scores(x, true_sizes), alone

    scores, alone = run(net, together_and_alone, x, jnp.asarray(sizes))
    for score, class_map in zip(scores, alone, strict=True):
        assert error(score, class_map.mean(axis=(0, 1))) < 1e-5


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_at_its_own_border_a_layer_sees_what_it_sees_alone(layers):
    check_batch_of_several_sizes(Layers(*layers))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in NETWORKS if name != SLOW),
        ("nin:cifar10", {"pool2": "average", "batch_norm": True}),
        pytest.param("resnet:50", {"image_size": 32}, marks=pytest.mark.slow),
        pytest.param(SLOW, {}, marks=pytest.mark.slow),
        pytest.param("googlenet:torchvision", {"image_size": 32}, marks=pytest.mark.slow),
    ],
)
def test_images_of_several_sizes_in_one_batch_have_the_scores_they_have_alone(name, options):
    check_batch_of_several_sizes(network(name, **options))


@pytest.mark.parametrize("ceil", [False, True])
def test_windows_of_many_sizes_are_counted_at_once(ceil):
    for kernel, stride, padding in product(range(1, 6), range(1, 4), range(3)):
        if padding > kernel // 2:
            continue
        window = Window(kernel, stride, padding, ceil)
        sizes = np.arange(kernel, 16)
        laid = []  # side by side, one by one
        for size in sizes:
            starts = list(range(-padding, size + padding - kernel + 1, stride))
            beyond = starts[-1] + stride
            if ceil and starts[-1] + kernel < size + padding and beyond < size:
                starts.append(beyond)
            laid.append(len(starts))
        assert window.count(sizes).tolist() == laid
        assert [window.outputs(int(size)) for size in sizes] == laid


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_followed_as_the_shapes_of_images_alone(name):
    net = network(name)
    most = net.image_size + 40
    sizes = [(net.image_size + i, most - i) for i in range(0, 41, 5)]
    x = jnp.zeros((len(sizes), most, most, net.channels))

    def followed(dense, x, sizes):
        tape = _SizedTape(x, sizes)
        return tape.maps[id(dense.network.features(x, tape=tape))][1]

    shapes = [
        jax.eval_shape(net.features, jax.ShapeDtypeStruct((1, *size, net.channels), x.dtype)).shape
        for size in sizes
    ]
    assert run(net, followed, x, jnp.asarray(sizes)).tolist() == [list(s[1:3]) for s in shapes]


def test_in_bfloat16_means_are_taken_in_float32():
    net = Layers(conv(3, dtype=jnp.dtype("bfloat16")))
    net.eval()
    x = padded(net, [(37, 30), (16, 17)], (40, 40))
    alone = run(net, lambda dense, x: dense.network.features(x, tape=Tape()), x[:1, :37, :30])
    assert alone.dtype == jnp.bfloat16
    scores = run(net, FullyConvolutional.scores, x, jnp.asarray([(37, 30), (16, 17)]))
    assert scores.dtype == np.float32
    expected = net.fc(jnp.asarray(alone.astype(np.float32).mean(axis=(1, 2))))
    # Two programs round a feature to another bfloat16 here and there (where the CPU has units for
    # it); means that were taken in bfloat16 would be off by more.
    assert error(scores[:1], np.asarray(expected)) < 5e-4
    rounded = net.fc(jnp.asarray(alone).mean(axis=(1, 2)).astype(jnp.float32))
    assert error(np.asarray(rounded), np.asarray(expected)) > 5e-4


def test_arrays_smaller_than_a_window_are_a_clear_error():
    net = network("vgg:A")
    for call in (FullyConvolutional(net), FullyConvolutional(net).scores):
        with pytest.raises(ArchitectureError, match="fc6 looks at 2x2 features at once"):
            jax.eval_shape(call, images(net, 64, 32))


@pytest.mark.parametrize("name", ["vgg:A", "lenet5:modern"])
def test_an_image_smaller_than_a_window_has_no_scores_and_changes_no_other_s(name):
    net = network(name)
    sizes = jnp.asarray([(64, 32), (70, 65), (1, 1)]) // (1 if name == "vgg:A" else 2)
    scores = run(net, FullyConvolutional.scores, images(net, 96, 96, batch=3), sizes)
    assert np.isnan(scores).all(axis=1).tolist() == [True, False, True]


def test_layers_of_which_the_border_is_unknown_are_a_clear_error():
    net = cnn_arch.create("alexnet:cifar", image_size=16, width=1 / 16, rngs=nnx.Rngs(0))
    net.eval()
    x, sizes = images(net, 16, 16), jnp.asarray([(16, 16), (15, 16)])
    assert run(net, FullyConvolutional.scores, x).shape == (2, 10)
    with pytest.raises(ArchitectureError, match=r"local3 sees .*LocallyConnected.* of one size"):
        run(net, FullyConvolutional.scores, x, sizes)


def test_a_network_in_train_mode_is_a_clear_error():
    net = network("resnet:18")
    net.train()
    for call in (FullyConvolutional(net), FullyConvolutional(net).scores):
        with pytest.raises(ArchitectureError, match="train mode"):
            call(images(net, 64, 64))

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import ArchitectureError
from cnn_arch.dense import FullyConvolutional, class_scores

# Training sizes at which the first fully connected layer sees more than one pixel.
NETWORKS = {
    "vgg:A": {"image_size": 64, "width": 1 / 16, "init": "he"},
    "resnet:18": {"image_size": 64, "width": 1 / 16},
    "cifar_resnet:8": {"image_size": 16, "width": 0.25},
    "alexnet:two_gpu": {"image_size": 99, "width": 1 / 8, "init": "he"},
    "alexnet:torchvision": {"image_size": 99, "width": 1 / 8},
    "nin:cifar10": {"image_size": 16, "width": 1 / 8},
    "googlenet:paper": {"image_size": 32, "width": 1 / 8, "auxiliary": False},
    "lenet5:original": {},
    "lenet5:modern": {},
    "dan_net:100": {"image_size": 45},
}
FLATTENING = {"vgg:A": 32, "alexnet:two_gpu": 32, "alexnet:torchvision": 32, "dan_net:100": 12}


def images(net, height, width):
    shape = (2, height, width, net.channels)
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def network(name):
    net = cnn_arch.create(name, rngs=nnx.Rngs(0), **NETWORKS[name])
    net.eval()
    return net


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "googlenet:paper" else ())
        for name in NETWORKS
    ],
)
def test_at_the_training_size_the_class_map_is_the_classifier(name):
    net = network(name)
    x = images(net, net.image_size, net.image_size)
    class_map = FullyConvolutional(net)(x)
    assert class_map.shape[-1] == net.classes
    if name in FLATTENING:
        assert class_map.shape == (2, 1, 1, net.classes)
    expected = np.asarray(net(x))
    error = np.abs(np.asarray(class_scores(class_map)) - expected).max()
    assert error < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", FLATTENING)
def test_a_place_of_the_class_map_is_the_head_on_its_window_of_the_features(name):
    net = network(name)
    x = images(net, net.image_size + FLATTENING[name], net.image_size + 2 * FLATTENING[name])
    class_map = FullyConvolutional(net)(x)
    features = net.features(x)
    side = net.features(images(net, net.image_size, net.image_size)).shape[1]
    rows, columns = class_map.shape[1:3]
    assert (rows, columns) == tuple(n - side + 1 for n in features.shape[1:3])
    assert rows < columns
    for row in range(rows):
        for column in range(columns):
            window = features[:, row : row + side, column : column + side]
            np.testing.assert_allclose(
                class_map[:, row, column],
                net.head(window),
                rtol=1e-4,
                atol=1e-5 * float(jnp.abs(class_map).max()),
            )


def test_an_averaging_network_s_class_scores_are_its_own_at_every_size():
    net = network("resnet:18")
    x = images(net, 96, 80)
    np.testing.assert_allclose(
        class_scores(FullyConvolutional(net)(x)), net(x), rtol=1e-4, atol=1e-5
    )


def test_an_image_smaller_than_a_window_is_a_clear_error():
    net = network("vgg:A")
    with pytest.raises(ArchitectureError, match="fc6 looks at 2x2 features at once"):
        FullyConvolutional(net)(images(net, 64, 32))


def test_a_network_in_train_mode_is_a_clear_error():
    net = network("resnet:18")
    net.train()
    with pytest.raises(ArchitectureError, match="train mode"):
        FullyConvolutional(net)(images(net, 64, 64))

"""torchvision's and timm's own networks, with the same random weights: names, shapes and logits.

Beside a PyTorch these two are small: `pip install --no-deps torchvision timm`. Without them the
tests are skipped; `test_pretrained` compares with modules that have their names.
"""

import jax
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import pretrained

pytestmark = pytest.mark.peers

CASES = [
    ("torchvision", "alexnet", "alexnet:torchvision"),
    ("torchvision", "vgg11", "vgg:A"),
    ("torchvision", "vgg16_bn", "vgg:D"),
    ("torchvision", "vgg19", "vgg:E"),
    ("torchvision", "resnet18", "resnet:18"),
    ("torchvision", "resnet34", "resnet:34"),
    ("torchvision", "resnet50", "resnet:50"),
    ("torchvision", "resnet152", "resnet:152"),
    ("torchvision", "googlenet", "googlenet:torchvision"),
    ("timm", "vgg11", "vgg:A"),
    ("timm", "vgg16_bn", "vgg:D"),
    ("timm", "resnet18", "resnet:18"),
    ("timm", "resnet50", "resnet:50"),
]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def built(library, name):
    """A network of the library's, without weights of its own."""
    if library == "timm":
        return pytest.importorskip("timm").create_model(name)
    models = pytest.importorskip("torchvision").models
    options = {"init_weights": False} if name == "googlenet" else {}
    return getattr(models, name)(weights=None, **options)


def shaken(torch, module):
    """Its state dict, statistics and scales of batch normalisation at random too."""
    random = torch.Generator().manual_seed(0)
    for name, value in module.state_dict().items():
        if name.endswith(("running_var", "running_mean")) or value.ndim == 1:
            noise = torch.rand(value.shape, generator=random) / 2
            positive = name.endswith("running_var") or not name.endswith(("bias", "running_mean"))
            value.copy_(noise + 0.75 if positive else noise - 0.25)
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(("library", "name", "arch"), CASES)
def test_logits_are_the_librarys(torch, library, name, arch):
    module = built(library, name).eval()
    state = shaken(torch, module)
    # The names of timm's ResNets are torchvision's.
    naming = pretrained.detect(arch, state)
    assert naming in (library, "torchvision")
    arguments = pretrained.arguments(arch, state, library)
    net = cnn_arch.create(arch, rngs=nnx.Rngs(1), **arguments)
    pretrained.load(net, state, naming=library)
    net.eval()
    images = np.random.default_rng(1).normal(size=(1, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    graph, values = nnx.split(net)
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(lambda values, x: nnx.merge(graph, values)(x))(values, images)
    assert np.abs(np.asarray(logits) - expected).max() < 1e-4 * np.abs(expected).max()
    exported = pretrained.export(net, library)
    module.load_state_dict({key: torch.tensor(value) for key, value in exported.items()})
    for key, value in exported.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value, state[key])

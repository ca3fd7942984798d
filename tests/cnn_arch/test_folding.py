"""A folded network gives what it gave before, whether its layers are computed one by one or not."""

import jax
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import execution
from cnn_arch.folding import fold
from cnn_arch.kernels import onednn

NETWORKS = [
    ("cifar_resnet:20", 16, {}),
    ("cifar_plain:8", 16, {}),
    ("resnet:50", 64, {"shortcut": "C"}),
    ("vgg:A", 32, {}),
    ("vgg:A", 32, {"batch_norm": True}),
    ("alexnet:two_gpu", 96, {}),  # groups
    ("nin:cifar10", 32, {}),
    ("dan_net:100", 32, {}),  # tanh
    ("googlenet", 64, {}),
]


def trained(name, size, dtype="float32", **options):
    """A network in eval mode whose normalisations and biases are of no special value."""
    net = cnn_arch.create(
        name, rngs=nnx.Rngs(0), image_size=size, classes=10, dtype=dtype, **options
    )
    rng = np.random.default_rng(0)

    def value(path, like):
        if path.endswith(("scale", "var")):
            return rng.uniform(0.5, 1.5, like.shape)
        if path.endswith(("bias", "mean")):
            return rng.normal(0, 0.1, like.shape)
        return like

    state = nnx.state(net, nnx.Any(nnx.Param, nnx.BatchStat))
    flat = cnn_arch.flat_state(state).items()
    values = {path: np.asarray(value(path, like), np.float32) for path, like in flat}
    nnx.update(net, cnn_arch.unflat_state(values, state))
    net.eval()
    return net, rng.standard_normal((2, size, size, 3), np.float32)


def logits(net, x, **tape):
    graphdef, state = nnx.split(net)
    options = execution.compiler_options()
    forward = lambda state, x: nnx.merge(graphdef, state)(x, tape=execution.tape(**tape))  # noqa: E731
    return np.asarray(jax.jit(forward, compiler_options=options)(state, x))


@pytest.mark.parametrize(("name", "size", "options"), NETWORKS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folded_network_has_the_same_logits(name, size, options, dtype):
    if not onednn.works(dtype):
        pytest.skip(f"oneDNN does not multiply {dtype} with this jaxlib on this processor")
    width = {} if name == "dan_net:100" else {"width": 0.25}
    net, x = trained(name, size, dtype, **width, **options)
    expected = logits(net, x)
    fold(net)
    tolerance = {"float32": 1e-5, "bfloat16": 5e-2}[dtype] * np.abs(expected).max()
    with onednn.using("onednn"):
        for fuses in (False, True):
            np.testing.assert_allclose(logits(net, x, fuses=fuses), expected, atol=tolerance)


def calls(name, fuses):
    net, x = trained(name, 32, width=0.25)
    fold(net)
    graphdef, state = nnx.split(net)
    tape = execution.tape(fuses=fuses)
    with onednn.using("onednn"):
        program = jax.jit(lambda state: nnx.merge(graphdef, state)(x, tape=tape)).lower(state)
    text = program.as_text()
    return text.count("BINARY_ADD"), text.count("BIAS"), text.count("__onednn$convolution")


def test_sums_biases_and_relus_are_part_of_the_convolutions():
    assert calls("cifar_resnet:8", fuses=False)[:2] == (0, 0)
    sums, biases, convolutions = calls("cifar_resnet:8", fuses=True)
    assert (sums, biases) == (3, convolutions) == (3, 7)

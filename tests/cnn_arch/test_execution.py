import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import ArchitectureError, flat_state
from cnn_arch.execution import compiler_options, tape

NETWORKS = {
    "cifar_resnet:20": {"image_size": 8, "width": 0.25},
    "resnet:50": {"image_size": 32, "width": 1 / 16},
    "vgg:C": {"image_size": 32, "width": 1 / 16, "init": "he", "batch_norm": True},
    "googlenet:torchvision": {"image_size": 64, "width": 1 / 8},
}


def step(name, tape=None, batch=4, **options):
    """(jitted loss and gradients, its arguments) of one training step."""
    net = cnn_arch.create(name, rngs=nnx.Rngs(0), classes=4, **{**NETWORKS[name], **options})
    graphdef, params, stats = nnx.split(net, nnx.Param, nnx.BatchStat)
    size = net.image_size
    x = jnp.asarray(np.random.default_rng(0).normal(size=(batch, size, size, 3)), jnp.float32)
    targets = jnp.tile(jnp.eye(4), (batch // 4, 1))

    def loss(params, stats):
        net = nnx.merge(graphdef, params, stats, copy=True)
        losses, _ = net.losses(x, targets, rngs=nnx.Rngs(dropout=0), tape=tape)
        return losses.mean(), nnx.state(net, nnx.BatchStat)

    return jax.value_and_grad(loss, has_aux=True), (params, stats)


@pytest.mark.parametrize(
    ("name", "scan", "remat"),
    [
        pytest.param("cifar_resnet:20", "always", False, marks=pytest.mark.slow),
        pytest.param("cifar_resnet:20", "never", True, marks=pytest.mark.slow),
        ("cifar_resnet:20", "always", True),
        pytest.param("vgg:C", "never", True, marks=pytest.mark.slow),
        pytest.param("resnet:50", "always", True, marks=pytest.mark.slow),
        pytest.param("googlenet:torchvision", "never", True, marks=pytest.mark.slow),
    ],
)
def test_loss_gradients_and_statistics_are_those_of_the_plain_form(name, scan, remat):
    function, arguments = step(name)
    (loss, stats), gradients = jax.jit(function)(*arguments)
    function, arguments = step(name, tape(scan, remat))
    (loss_2, stats_2), gradients_2 = jax.jit(function)(*arguments)
    np.testing.assert_allclose(loss_2, loss, rtol=1e-5)
    for expected, found in ((stats, stats_2), (gradients, gradients_2)):
        expected, found = flat_state(expected), flat_state(found)
        assert list(found) == list(expected)
        for key, value in expected.items():
            scale = float(jnp.abs(value).max())
            np.testing.assert_allclose(found[key], value, rtol=1e-3, atol=1e-4 * scale + 1e-6)


def test_a_scanned_stage_is_one_loop_over_its_blocks():
    def text(scan):
        function, arguments = step("cifar_resnet:20", tape(scan))
        return jax.jit(function).lower(*arguments).as_text()

    unrolled, scanned = text("never"), text("always")
    assert "stablehlo.while" not in unrolled
    assert scanned.count("stablehlo.convolution") < unrolled.count("stablehlo.convolution")


def test_auto_scans_deep_stages_only_and_none_on_cpu():
    least = tape("auto", backend="gpu").scanned_from
    assert 18 - 1 < least < 200 - 1  # depth 110 and depth 1202
    assert tape("auto", backend="cpu").scanned_from is None


def test_rematerialisation_needs_less_memory():
    def temporary_bytes(remat):
        function, arguments = step("cifar_resnet:20", tape("never", remat), batch=16, image_size=16)
        jitted = jax.jit(function, compiler_options=compiler_options())
        return jitted.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(True) < 0.6 * temporary_bytes(False)


def test_an_unknown_way_to_scan_is_a_clear_error():
    with pytest.raises(ArchitectureError, match="Did you mean 'always'"):
        tape("allways")

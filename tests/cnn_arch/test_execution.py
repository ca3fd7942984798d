import re
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

import cnn_arch
from cnn_arch import ArchitectureError, execution, flat_state
from cnn_arch.execution import compiler_options, tape
from cnn_arch.kernels.barriers import relu

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
        ("cifar_resnet:20", "never", False),
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
    for expected, result in ((stats, stats_2), (gradients, gradients_2)):
        expected, result = flat_state(expected), flat_state(result)
        assert list(result) == list(expected)
        for key, value in expected.items():
            scale = float(jnp.abs(value).max())
            np.testing.assert_allclose(result[key], value, rtol=1e-3, atol=1e-4 * scale + 1e-6)


def test_a_scanned_stage_is_one_loop_and_an_unrolled_one_is_traced_once():
    def text(depth, scan, remat=False):
        net = cnn_arch.create(f"cifar_resnet:{depth}", rngs=nnx.Rngs(0), width=0.25, image_size=8)
        graphdef, params, rest = nnx.split(net, nnx.Param, ...)

        def loss(params, x):
            merged = nnx.merge(graphdef, params, rest, copy=True)
            return merged(x, tape=tape(scan, remat)).mean()

        return jax.jit(jax.grad(loss)).lower(params, jnp.ones((2, 8, 8, 3))).as_text()

    assert "stablehlo.while" in text(20, "always")
    for remat in (False, True):
        less, more = text(20, "never", remat), text(32, "never", remat)
        assert "stablehlo.while" not in more
        assert more.count("stablehlo.convolution") == less.count("stablehlo.convolution")


@pytest.mark.parametrize("scan", ["never", "always"])
def test_blocks_in_train_and_in_eval_mode_are_each_what_they_are(scan):
    net = cnn_arch.create("cifar_resnet:20", rngs=nnx.Rngs(0), width=0.25, image_size=8)
    net.stage1.block3.eval()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
    graphdef, state = nnx.split(net)
    forward = jax.jit(lambda state: nnx.merge(graphdef, state)(x, tape=tape(scan)))
    np.testing.assert_allclose(forward(state), net(x), rtol=1e-4, atol=1e-5)


def test_auto_scans_deep_stages_only_and_none_on_cpu():
    least = tape("auto", backend="gpu").scanned_from
    assert 36 - 1 < least < 200 - 1  # resnet:152 and cifar_resnet:1202
    assert tape("auto", backend="cpu").scanned_from is None


def test_no_fusion_on_cpu_reads_more_of_a_deeper_network():
    def most_read(name):
        net = cnn_arch.create(name, rngs=nnx.Rngs(0), width=0.25, image_size=8)
        graphdef, params, rest = nnx.split(net, nnx.Param, ...)

        def loss(params, x):
            merged = nnx.merge(graphdef, params, rest, copy=True)
            return jnp.square(merged(x, tape=tape())).mean()

        options = compiler_options() | {"xla_backend_optimization_level": 0}
        jitted = jax.jit(jax.grad(loss), compiler_options=options)
        text = jitted.lower(params, jnp.ones((2, 8, 8, 3))).compile().as_text()
        fused = re.findall(r" fusion\((.*?)\), kind=", text)
        assert fused
        return max(operands.count("%") for operands in fused)

    assert most_read("cifar_resnet:32") <= most_read("cifar_resnet:20")


def test_barriers_are_for_the_cpu_alone():
    def text(platform):
        traced = jax.jit(jax.grad(lambda x: relu(x).sum())).trace(jnp.ones(3))
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert "optimization_barrier" in text("cpu")
    assert "optimization_barrier" not in text("cuda")


def test_compiler_options_are_for_the_cpu_and_those_that_this_jaxlib_knows():
    assert "xla_cpu_experimental_ynn_fusion_type" in compiler_options("cpu")
    assert compiler_options("gpu") == {}
    assert compiler_options("cpu", deterministic=True) == compiler_options("cpu")
    (name,) = options = compiler_options("gpu", deterministic=True)
    assert options[name] is True
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    assert execution._known(mesh, tuple(options.items()))
    assert not execution._known(mesh, (("xla_cpu_no_such_option", "1"),))


@dataclass
class Kind:
    """As much of a mesh as `overlap` looks at."""

    device_kind: str
    size: int = 8

    @property
    def devices(self):
        return np.array([self])


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("NVIDIA H100 80GB HBM3", 3),
        ("TPU v6 lite", 4),
        ("TPU v6e", 4),
        ("TPU v5", 4),
        ("TPU v5p", 4),
        ("TPU v5 lite", 5),
        ("TPU v4", 5),
        ("cpu", 0),
        ("AMD Instinct MI300X", 0),
    ],
)
def test_exchanges_are_overlapped_by_the_kind_of_device(kind, asked, monkeypatch):
    monkeypatch.setattr(execution, "_known", lambda mesh, options: True)
    assert len(execution.overlap(Kind(kind))) == asked
    fused = kind in ("TPU v4", "TPU v5 lite")
    assert execution.overlap(Kind(kind), statistics=True) == (
        {} if fused else execution.overlap(Kind(kind))
    )
    assert execution.overlap(Kind(kind, size=1)) == {}
    monkeypatch.setenv("CNN_DEPTH_OVERLAP", "xla")
    assert execution.overlap(Kind(kind)) == {}
    monkeypatch.setenv("CNN_DEPTH_OVERLAP", "of")
    with pytest.raises(ArchitectureError, match="CNN_DEPTH_OVERLAP"):
        execution.overlap(Kind(kind))


def test_a_compiler_that_does_not_know_the_options_for_overlap_gets_none(monkeypatch):
    monkeypatch.setattr(execution, "_known", lambda mesh, options: False)
    assert execution.overlap(Kind("NVIDIA H100 80GB HBM3")) == {}


def test_rematerialisation_needs_less_memory():
    def temporary_bytes(remat):
        function, arguments = step("cifar_resnet:20", tape("never", remat), batch=16, image_size=16)
        jitted = jax.jit(function, compiler_options=compiler_options())
        return jitted.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(True) < 0.6 * temporary_bytes(False)


def test_an_unknown_way_to_scan_is_a_clear_error():
    with pytest.raises(ArchitectureError, match="Did you mean 'always'"):
        tape("allways")


@pytest.mark.parametrize(
    ("platform", "capability", "expected"),
    [
        ("cpu", None, ["float32", "float32", "float32"]),
        ("gpu", "9.0", ["TF32", "TF32", "float32"]),
        ("gpu", "12.0", ["TF32", "TF32", "float32"]),
        ("gpu", "7.5", ["float32", "float32", "float32"]),  # older than TF32
        ("gpu", "gfx90a", ["float32", "float32", "float32"]),
        (
            "tpu",
            None,
            ["bfloat16 (one pass)", "bfloat16 (three passes)", "bfloat16 (six passes)"],
        ),
    ],
)
def test_what_a_precision_means_on_a_device(platform, capability, expected):
    """As the documentation of `jax.lax.Precision` has it."""
    device = SimpleNamespace(platform=platform)
    if capability:
        device.compute_capability = capability
    types = [execution.multiplied_in(p, "float32", device) for p in execution.PRECISIONS]
    assert types == expected
    assert execution.multiplied_in("default", "bfloat16", device) == "bfloat16"

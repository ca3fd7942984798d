"""oneDNN's convolutions beside XLA's, and what happens where they do not work."""

import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import cnn_arch
from cnn_arch import execution
from cnn_arch.errors import ArchitectureError
from cnn_arch.kernels import convolution, onednn

works = pytest.mark.skipif(
    jax.default_backend() != "cpu" or not onednn.works(),
    reason="oneDNN's convolutions do not work with this jaxlib on this processor",
)
works_in_bfloat16 = pytest.mark.skipif(
    jax.default_backend() != "cpu" or not onednn.works("bfloat16"),
    reason="oneDNN does not multiply bfloat16 with this jaxlib on this processor",
)


@works
@pytest.mark.parametrize(
    ("images", "sizes", "inputs", "outputs", "kernel", "stride", "padding"),
    [
        (4, (9, 14), 3, 8, 3, 1, 1),
        (8, (28, 28), 4, 8, 3, 1, 1),  # a few examples at a time
        (7, (28, 28), 4, 8, 3, 1, 1),  # one at a time
        (3, (28, 28), 8, 4, 5, 1, 2),
        (2, (31, 31), 3, 8, 11, 4, 2),  # the last columns are in no window
        (5, (11, 11), 8, 4, 1, 2, 0),
        (3, (13, 12), 8, 4, 3, 2, 1),
        (2, (13, 13), 4, 8, 2, 3, 0),  # phases that no window sees
        (2, (14, 14), 4, 8, 5, 3, 0),  # the last rows are in no window
        (2, (6, 6), 4, 8, 3, 2, 4),  # windows that see nothing but padding
        (2, (8, 8), 4, 4, 3, 1, 3),  # padded by more than a window less one
    ],
)
def test_values_and_gradients_are_those_of_numpy(
    images, sizes, inputs, outputs, kernel, stride, padding
):
    rng = np.random.default_rng(1)
    out = ((size + 2 * padding - kernel) // stride + 1 for size in sizes)
    x = rng.standard_normal((images, *sizes, inputs), np.float32)
    k = rng.standard_normal((kernel, kernel, inputs, outputs), np.float32)
    dy = rng.standard_normal((images, *out, outputs), np.float32)

    @jax.jit
    def ours(x, k, dy):
        y, back = jax.vjp(lambda x, k: convolution.convolve(x, k, stride, padding), x, k)
        return y, *back(dy)

    with onednn.using("onednn"):
        assert "__onednn" in ours.lower(x, k, dy).as_text()
        values = ours(x, k, dy)
    for value, right in zip(values, onednn._by_numpy(x, k, dy, stride, padding), strict=True):
        np.testing.assert_allclose(value, right, atol=2e-5 * np.abs(right).max())


@works_in_bfloat16
@pytest.mark.parametrize(
    ("images", "sizes", "inputs", "outputs", "kernel", "stride", "padding"),
    [
        (16, (28, 28), 4, 8, 3, 1, 1),  # a few examples at a time
        (2, (31, 31), 3, 8, 11, 4, 2),
        (3, (13, 12), 8, 4, 3, 2, 1),
        (2, (13, 13), 4, 8, 2, 3, 0),  # phases that no window sees
    ],
)
def test_of_bfloat16_only_the_sums_are_rounded(
    images, sizes, inputs, outputs, kernel, stride, padding
):
    rng = np.random.default_rng(1)
    out = ((size + 2 * padding - kernel) // stride + 1 for size in sizes)
    shapes = (images, *sizes, inputs), (kernel, kernel, inputs, outputs), (images, *out, outputs)
    x, k, dy = (rng.standard_normal(shape, np.float32).astype(jnp.bfloat16) for shape in shapes)

    @jax.jit
    def ours(x, k, dy):
        y, back = jax.vjp(lambda x, k: convolution.convolve(x, k, stride, padding), x, k)
        return y, *back(dy)

    with onednn.using("onednn"):
        values = ours(x, k, dy)
    wide = (array.astype(np.float32) for array in (x, k, dy))
    for value, right in zip(values, onednn._by_numpy(*wide, stride, padding), strict=True):
        assert value.dtype == jnp.bfloat16
        least = 2e-5 * np.abs(right).max()  # what float32 sums in another order differ by
        np.testing.assert_allclose(value.astype(np.float32), right, rtol=2**-8, atol=least)


@works_in_bfloat16
def test_parts_of_bfloat16_maps_are_not_widened():
    """XLA on a CPU (jaxlib 0.10.2) would copy all of a map to float32, to loop over its parts."""
    x, dy = (jnp.zeros((32, 28, 28, maps), jnp.bfloat16) for maps in (16, 8))
    with onednn.using("onednn"):
        program = jax.jit(partial(onednn._of_kernel, size=3, stride=1, pad=1))
        text = program.lower(x, dy).compile().as_text()
    (held,) = re.findall(r"= \((.*?)\) while\(", text)
    assert "u16[4,8,28,28,16]" in held
    assert "f32[4,8" not in held


@works_in_bfloat16
def test_bias_of_bfloat16_has_the_gradient_of_a_float32_sum():
    layer = cnn_arch.create("vgg:A", rngs=nnx.Rngs(0), width=0.125, dtype="bfloat16").conv1_1.conv
    graphdef, params = nnx.split(layer, nnx.Param)
    x = jnp.zeros((64, 32, 32, 3), jnp.bfloat16)
    dy = jax.random.normal(jax.random.key(1), (64, 32, 32, 8)).astype(jnp.bfloat16)
    with onednn.using("onednn"):
        back = jax.jit(lambda p: jax.vjp(lambda p: nnx.merge(graphdef, p)(x), p)[1](dy)[0])
        ours = back(params)["bias"].get_value()
    right = np.asarray(dy, np.float64).sum((0, 1, 2))
    np.testing.assert_allclose(ours, right, rtol=2**-8, atol=1e-3)


@works
def test_products_and_their_gradients_are_those_of_numpy():
    x, k, dy = (
        np.random.default_rng(2).standard_normal(shape, np.float32)
        for shape in ((5, 300), (300, 70), (5, 70))
    )

    @jax.jit
    def ours(x, k, dy):
        y, back = jax.vjp(onednn.matmul, x, k)
        return y, *back(dy)

    with onednn.using("onednn"):
        values = ours(x, k, dy)
    for value, right in zip(values, (x @ k, dy @ k.T, x.T @ dy), strict=True):
        np.testing.assert_allclose(value, right, atol=2e-5 * np.abs(right).max())


@works
@pytest.mark.parametrize(("scan", "remat"), [("never", False), ("always", True)])
@pytest.mark.parametrize(("name", "size"), [("cifar_resnet:20", 16), ("vgg:A", 32)])
def test_a_network_has_the_gradients_that_it_has_with_xla(name, size, scan, remat):
    net = cnn_arch.create(name, rngs=nnx.Rngs(0), width=0.25, image_size=size)
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)
    x = jax.random.normal(jax.random.key(1), (8, size, size, 3))

    def loss(params):
        merged = nnx.merge(graphdef, params, rest, copy=True)
        dropout = nnx.Rngs(dropout=3)
        return jnp.square(merged(x, rngs=dropout, tape=execution.tape(scan, remat))).mean()

    def gradient(whose):
        options = execution.compiler_options()
        with onednn.using(whose):
            return jax.jit(jax.grad(loss), compiler_options=options)(params)

    for ours, theirs in zip(
        *map(jax.tree.leaves, (gradient("onednn"), gradient("xla"))), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max() + 1e-7)


@works_in_bfloat16
@pytest.mark.parametrize(("name", "size"), [("cifar_resnet:20", 16), ("vgg:A", 32)])
def test_a_network_in_bfloat16_is_as_near_to_float32_as_with_xla(name, size):
    x = jax.random.normal(jax.random.key(1), (16, size, size, 3))

    def gradient(whose, dtype):
        net = cnn_arch.create(name, rngs=nnx.Rngs(0), width=0.25, image_size=size, dtype=dtype)
        graphdef, params, rest = nnx.split(net, nnx.Param, ...)

        def loss(params):
            merged = nnx.merge(graphdef, params, rest, copy=True)
            return jnp.square(merged(x, rngs=nnx.Rngs(dropout=3), tape=execution.tape())).mean()

        options = execution.compiler_options()
        with onednn.using(whose):
            program = jax.jit(jax.grad(loss), compiler_options=options).lower(params)
            assert ("__onednn" in program.as_text()) == (whose == "onednn")
            return np.concatenate([a.ravel() for a in jax.tree.leaves(program.compile()(params))])

    exact = gradient("xla", "float32")
    ours, theirs = (
        np.linalg.norm(gradient(whose, "bfloat16") - exact) / np.linalg.norm(exact)
        for whose in ("onednn", "xla")
    )
    assert ours < 1.5 * theirs
    assert ours < 0.2


def test_other_dtypes_are_xlas():
    with onednn.using("onednn"):
        assert not onednn.takes(jnp.ones(1, jnp.float16))
        assert onednn.takes(jnp.ones(1, jnp.bfloat16))
        assert onednn.takes(jnp.ones(1))
    assert not onednn.takes(jnp.ones(1))


@pytest.mark.parametrize(("flags", "has"), [("fma avx512_bf16", True), ("fma avx512f", False)])
def test_bfloat16_needs_its_instructions(flags, has, kept, monkeypatch):
    monkeypatch.setattr(onednn, "_processor", lambda: ["model name : x", f"flags : {flags}"])
    monkeypatch.setattr(onednn, "_try_apart", lambda dtype: (True, True))
    monkeypatch.setenv(onednn.VARIABLE, "onednn")
    assert onednn.works("float32")
    assert onednn.works("bfloat16") is has
    assert onednn.chosen("float32") == "onednn"
    if has:
        assert onednn.chosen("bfloat16") == "onednn"
        return
    with pytest.raises(ArchitectureError, match=r"CONVOLUTIONS=onednn with bfloat16.*amx_bf16"):
        onednn.chosen("bfloat16")


def test_the_variable_overrides(monkeypatch):
    monkeypatch.setattr(onednn, "works", lambda dtype: False)
    monkeypatch.setenv(onednn.VARIABLE, "onednn")
    assert onednn.chosen() == "onednn"
    monkeypatch.setenv(onednn.VARIABLE, "auto")
    assert onednn.chosen() == "xla"
    monkeypatch.setenv(onednn.VARIABLE, "mkl")
    with pytest.raises(ArchitectureError, match=r"CONVOLUTIONS 'mkl'.*auto, xla, onednn"):
        onednn.chosen()


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Where the outcome of a trial is kept; each test begins without one."""
    file = tmp_path / "cache" / "kept.json"
    monkeypatch.setattr(onednn, "_verdict_file", lambda dtype: file)
    monkeypatch.setattr(onednn.sys, "platform", "linux")
    monkeypatch.setattr(onednn.platform, "machine", lambda: "x86_64")
    onednn.works.cache_clear()
    yield file
    onednn.works.cache_clear()


def trial_is(monkeypatch, code):
    run = onednn.subprocess.run
    monkeypatch.setattr(
        onednn.subprocess, "run", lambda words, **how: run([*words[:-1], code], **how)
    )


@pytest.mark.parametrize(
    ("code", "passes"),
    [("pass", True), ("import os; os.abort()", False), ("import sys; sys.exit(3)", False)],
)
def test_outcome_of_a_trial_is_remembered(monkeypatch, kept, code, passes):
    trial_is(monkeypatch, code)
    assert onednn.works() is passes
    assert json.loads(kept.read_text()) == {"works": passes}
    onednn.works.cache_clear()
    monkeypatch.setattr(onednn, "_try_apart", partial(pytest.fail, "tried again"))
    assert onednn.works() is passes


@pytest.mark.parametrize("code", ["1 / 0", "import os; os.kill(os.getpid(), 9)"])
def test_trial_that_was_stopped_or_never_began_is_made_again(monkeypatch, kept, code):
    trial_is(monkeypatch, code)
    assert onednn.works() is False
    assert not kept.exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_trial_with_wrong_values_is_no_crash(dtype, monkeypatch):
    right = onednn._by_numpy
    wrong = lambda *args: tuple(1.1 * part for part in right(*args))  # noqa: E731
    plain = partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    convolve = lambda x, k, stride, pad: plain(x, k, (stride,) * 2, [(pad, pad)] * 2)  # noqa: E731
    fused = lambda x, k, bias, addend, _, *sizes: jnp.maximum(  # noqa: E731
        convolve(x, k, *sizes) + bias + addend, 0
    )
    monkeypatch.setattr(onednn, "convolve", convolve)
    monkeypatch.setattr(onednn, "convolve_fused", fused)
    monkeypatch.setattr(onednn, "matmul", jnp.matmul)
    assert onednn.verdict(dtype) == 0
    monkeypatch.setattr(onednn, "_by_numpy", wrong)
    assert onednn.verdict(dtype) == onednn.WRONG

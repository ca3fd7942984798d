"""Convolutions and products of matrices by oneDNN inside the programs that XLA makes for a CPU.

jaxlib for x86-64 holds oneDNN, and XLA's thunks `__onednn$convolution` (the forward convolution)
and `__onednn$matmul` call it; XLA's own rewriting into these thunks is not built in, so they are
called here by name. A layer's three products are then faster than XLA's, which gather patches and
multiply.

The thunks are not documented: what their configuration means has changed between releases. So they
are used only once `trial` has passed, in a process of its own, for this jaxlib on this processor.

Maps are float32 or, where the processor has instructions for it, bfloat16. Sums of products are
float32 in both.

All three products of a convolutional layer are forward convolutions. The gradient of the input is
the kernel, flipped, over the output's gradient; of a strided layer, one such convolution for each
of the input's phases. The gradient of the kernel is the output's gradient, as a dilated kernel,
over the input, with the examples as the channels that are summed over.
"""

import contextlib
import contextvars
import functools
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax import lax

from cnn_arch.errors import ArchitectureError, choose
from cnn_arch.kernels.bits import as_bits, from_bits
from cnn_arch.kernels.phases import merge

Convolutions = Literal["xla", "onednn"]

VARIABLE = "CNN_DEPTH_CONVOLUTIONS"  # xla, onednn, or auto
TRIAL_SECONDS = 120
WRONG = 3  # the trial's exit status where oneDNN's values are not right
# How far the trial's values may be off, as a share of the largest: bfloat16 has 8 bits.
TOLERANCES: dict[str, float] = {"float32": 1e-4, "bfloat16": 1e-2}
# Instructions for products of bfloat16, as Linux names them. Without, oneDNN is slow or refuses.
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
# The gradient of the kernel is summed over as many examples at a time as have POSITIONS in all, but
# no fewer and no more than EXAMPLES: so few that their maps stay in a core's cache. If maps of so
# many exceed MOST_BYTES, with which it takes twice as long on an AMD EPYC, FEWEST is the bound.
POSITIONS = 4096
EXAMPLES = (8, 32)
FEWEST, MOST_BYTES = 4, 64 * 2**20

_using: contextvars.ContextVar[bool] = contextvars.ContextVar("oneDNN", default=False)


@contextlib.contextmanager
def using(convolutions: Convolutions) -> Iterator[None]:
    """What the layers call while a program is traced and compiled, on this thread.

    A program that calls oneDNN by name can't be kept in JAX's compilation cache (jaxlib 0.10 fails
    to write it down), so nothing is written there meanwhile.
    """
    token = _using.set(convolutions == "onednn")
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    if convolutions == "onednn":
        jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    try:
        yield
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
        _using.reset(token)


def takes(x: jax.Array) -> bool:
    """Whether oneDNN is to convolve or multiply x."""
    return _using.get() and x.dtype in (jnp.float32, jnp.bfloat16)


def wished() -> Literal["auto", "xla", "onednn"]:
    """What $CNN_DEPTH_CONVOLUTIONS says.

    Raises ArchitectureError for another value than these.
    """
    choices: dict[str, Literal["auto", "xla", "onednn"]]
    choices = {"auto": "auto", "xla": "xla", "onednn": "onednn"}
    return choose(f"${VARIABLE}", os.environ.get(VARIABLE) or "auto", choices)


def chosen(dtype: str = "float32") -> Convolutions:
    """`onednn` on a CPU where it works, else `xla`, unless $CNN_DEPTH_CONVOLUTIONS says which.

    A program over several devices needs `xla`: a call by name is not cut into parts.

    Raises ArchitectureError for another value of the variable, and where it asks for oneDNN's
    bfloat16 on a processor without instructions for it.
    """
    wish = wished()
    if wish == "onednn" and dtype == "bfloat16" and not multiplies_bfloat16():
        raise ArchitectureError(
            f"${VARIABLE}=onednn with bfloat16 needs a processor with {' or '.join(BFLOAT16_FLAGS)}"
            ", which this one lacks. Unset it, or compute in float32."
        )
    if wish != "auto":
        return wish
    return "onednn" if jax.default_backend() == "cpu" and works(dtype) else "xla"


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16."""
    return not _words().isdisjoint(BFLOAT16_FLAGS)


def has_avx512() -> bool:
    """Whether this processor computes with 16 float32 at once, with which oneDNN gains most."""
    return "avx512f" in _words()


def _words() -> set[str]:
    return set(" ".join(_processor()).split())


def _processor() -> list[str]:
    """What Linux says of the kinds of cores: their names and instructions."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return sorted({line for line in lines if line.startswith(("model name", "flags"))})
    return []


@functools.cache
def works(dtype: str = "float32") -> bool:
    """Whether the trial passed for this jaxlib on this processor.

    Its outcome is kept in the folder of JAX's compilation cache, where there is one.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    if dtype == "bfloat16" and not (multiplies_bfloat16() and works()):
        return False
    verdict_file = _verdict_file(dtype)
    if verdict_file is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return bool(json.loads(verdict_file.read_text())["works"])
    passed, final = _try_apart(dtype)
    if verdict_file is not None and final:
        with contextlib.suppress(OSError):
            verdict_file.parent.mkdir(parents=True, exist_ok=True)
            part = verdict_file.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps({"works": passed}))
            part.replace(verdict_file)
    return passed


def _verdict_file(dtype: str) -> Path | None:
    folder, processor = jax.config.jax_compilation_cache_dir, _processor()
    if not folder or "://" in folder or not processor:
        return None
    calls = Path(__file__).read_text()  # what these calls are
    identity = "\n".join([jaxlib.__version__, dtype, calls, *processor])
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return Path(folder) / f"onednn-{key}.json"


def _try_apart(dtype: str) -> tuple[bool, bool]:
    """(passed, final): the trial in a process of its own, since what fails may abort it.

    Final is what the trial itself found or died of, not that it was stopped or never began.
    """
    code = f"import sys; from cnn_arch.kernels import onednn; sys.exit(onednn.verdict({dtype!r}))"
    root = str(Path(__file__).parent.parent.parent)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
    }
    try:
        process = subprocess.run(
            [sys.executable, "-P", "-c", code],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            start_new_session=True,  # what interrupts this program is no verdict
            timeout=TRIAL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False, False
    crashed = (signal.SIGABRT, signal.SIGSEGV, signal.SIGILL, signal.SIGFPE, signal.SIGBUS)
    status = process.returncode
    return status == 0, status in (0, WRONG, *(-number for number in crashed))


def verdict(dtype: str) -> int:
    """The exit status of a process that only makes the trial: 0, or WRONG."""
    try:
        trial(dtype)
    except (AssertionError, jax.errors.JaxRuntimeError):
        return WRONG
    return 0


def trial(dtype: str) -> None:
    """Compares values and gradients with NumPy's; raises AssertionError where they differ.

    A thunk that reads its configuration in another way may also abort the process.
    """
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype(jnp.dtype(dtype))

    for images, size, inputs, outputs, kernel, stride, padding in (
        (2, 16, 8, 16, 3, 1, 1),
        (8, 9, 3, 16, 3, 2, 1),
        (2, 23, 3, 16, 11, 4, 2),
        (4, 12, 16, 8, 1, 2, 0),
    ):
        out = (size + 2 * padding - kernel) // stride + 1
        x = drawn(images, size, size, inputs)
        k = drawn(kernel, kernel, inputs, outputs)
        dy = drawn(images, out, out, outputs)

        @jax.jit
        def ours(x: Any, k: Any, dy: Any, stride: int = stride, padding: int = padding) -> Any:
            y, back = jax.vjp(lambda x, k: convolve(x, k, stride, padding), x, k)
            return y, *back(dy)

        bias: np.ndarray = drawn(outputs).astype(np.float32)
        addend = drawn(images, out, out, outputs)
        with using("onednn"):
            values = ours(x, k, dy)
            fused = jax.jit(convolve_fused, static_argnums=(4, 5, 6))(
                *(x, k, bias, addend), True, stride, padding
            )
        x, k, dy = (array.astype(np.float32) for array in (x, k, dy))
        expected = _by_numpy(x, k, dy, stride, padding)
        _compare("convolution", values, expected, TOLERANCES[dtype])
        total = np.maximum(expected[0] + bias + addend.astype(np.float32), 0)
        _compare("fused convolution", [fused], [total], TOLERANCES[dtype])
    x, k, dy = drawn(8, 37), drawn(37, 24), drawn(8, 24)
    with using("onednn"):
        values = jax.jit(lambda x, k, dy: (matmul(x, k), *jax.vjp(matmul, x, k)[1](dy)))(x, k, dy)
    x, k, dy = (array.astype(np.float32) for array in (x, k, dy))
    _compare("product", values, (x @ k, dy @ k.T, x.T @ dy), TOLERANCES[dtype])


def _compare(
    operation: str, values: Sequence[Any], expected: Sequence[np.ndarray], tolerance: float
) -> None:
    for ours, reference in zip(values, expected, strict=True):
        error = np.abs(ours.astype(np.float32) - reference).max() / np.abs(reference).max()
        if not error < tolerance:
            raise AssertionError(f"oneDNN's {operation} is off by {error:.1e}")


def _by_numpy(
    x: np.ndarray, k: np.ndarray, dy: np.ndarray, stride: int, padding: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A convolution and its gradients of x and k, tap by tap."""
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(x, sides)
    y, dx, dk = np.zeros_like(dy), np.zeros_like(padded), np.zeros_like(k)
    for row, column in np.ndindex(*k.shape[:2]):
        rows, columns = (
            slice(at, at + stride * (n - 1) + 1, stride)
            for at, n in zip((row, column), dy.shape[1:3], strict=True)
        )
        patches = padded[:, rows, columns]
        y += patches @ k[row, column]
        dx[:, rows, columns] += dy @ k[row, column].T
        dk[row, column] = np.einsum("bhwc,bhwf->cf", patches, dy, optimize=True)
    height, width = x.shape[1:3]
    return y, dx[:, padding : padding + height, padding : padding + width], dk


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Cross-correlation (B, H, W, C) * (k, k, C, F), both float32 or bfloat16, on a CPU device."""
    sides, shape = (padding, padding), _shape(x, kernel, stride, padding)
    return _convolution(x, kernel, shape, _HWIO, strides=(stride, stride), low=sides, high=sides)


def convolve_fused(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    addend: jax.Array | None,
    rectified: bool,
    stride: int,
    padding: int,
) -> jax.Array:
    """What `convolve` gives, plus biases and an addend, and of that the ReLU, in one pass.

    bias: (F,) float32; addend: like the output. Where None, nothing is added. No gradient.
    """
    others: list[jax.Array] = []
    operations = []
    if bias is not None:
        operations.append("BIAS")
        others.append(bias)
    if addend is not None:
        operations.append("BINARY_ADD")
        others.append(addend)
    if rectified:
        operations.append("RELU")
    sides = (padding, padding)
    return _convolution(
        x,
        kernel,
        _shape(x, kernel, stride, padding),
        _HWIO,
        strides=(stride, stride),
        low=sides,
        high=sides,
        fused=tuple(operations),
        others=others,
    )


def _shape(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> tuple[int, ...]:
    """The output's, (B, h, w, F)."""
    batch, *sizes, _ = x.shape
    size, _, _, maps = kernel.shape
    height, width = ((n + 2 * padding - size) // stride + 1 for n in sizes)
    return batch, height, width, maps


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # The barriers keep XLA from computing what led to the maps once more for each use of them.
    x, kernel = residuals
    x, gradient = lax.optimization_barrier(x), lax.optimization_barrier(gradient)
    of_x = _of_input(gradient, kernel, stride, padding, x.shape[1:3])
    return of_x, _of_kernel(x, gradient, kernel.shape[0], stride, padding)


convolve.defvjp(_forward, _backward)


def _of_input(
    gradient: jax.Array, kernel: jax.Array, stride: int, padding: int, sizes: Sequence[int]
) -> jax.Array:
    """The gradient of the input, (B, *sizes, C).

    Rows (and columns) of one phase, those with the same remainder modulo the stride, are seen by
    every stride-th row of the kernel: their gradient is a convolution with these, flipped.
    """
    height, width = (-(-size // stride) for size in sizes)
    batch, rows, columns, _ = gradient.shape
    maps = kernel.shape[2]
    moved, kernel = as_bits(gradient), as_bits(kernel)

    def phase(row: int, column: int) -> jax.Array:
        first = [(at + padding) % stride for at in (row, column)]
        part = jnp.flip(kernel[first[0] :: stride, first[1] :: stride], (0, 1))
        shape = (batch, height, width, maps)
        if 0 in part.shape:
            return jnp.zeros(shape, moved.dtype)
        low, high, cut = [], [], [slice(None)]
        for at, begin, taps, size, n in zip(
            (row, column), first, part.shape[:2], (height, width), (rows, columns), strict=True
        ):
            before = taps - 1 - (at + padding - begin) // stride
            after = size + taps - 1 - n - before
            low.append(max(before, 0))
            high.append(max(after, 0))
            cut.append(slice(max(-before, 0), n + min(after, 0)))
        arrays = from_bits(moved[tuple(cut)]), from_bits(part)
        return as_bits(_convolution(*arrays, shape, _HWOI, low=low, high=high))

    phases = [[phase(row, column) for column in range(stride)] for row in range(stride)]
    return from_bits(merge(phases, *sizes))


def _of_kernel(x: jax.Array, gradient: jax.Array, size: int, stride: int, pad: int) -> jax.Array:
    """The gradient of the kernel, (k, k, C, F).

    A few examples at a time, whose maps stay in the caches, are the channels summed over of a
    convolution in which the output's gradient is the kernel. Columns and maps are one axis, so that
    a row of what comes out, k * C long, is seen in one piece. The sum is float32.
    """
    _, height, width, maps = x.shape
    batch, rows, columns, outputs = gradient.shape
    # Beyond the far border: what windows see of padding, or, if negative, what no window sees.
    below, right = (
        (outs - 1) * stride + size - ins - pad for outs, ins in ((rows, height), (columns, width))
    )
    height, width = height + min(below, 0), width + min(right, 0)
    part = _examples_at_once(batch, rows * columns, x.nbytes // batch)

    def of_part(
        total: jax.Array, maps_and_gradient: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        x, gradient = maps_and_gradient
        last = x.reshape(part, -1).T.reshape(1, height, width * maps, part)
        product = _convolution(
            from_bits(lax.optimization_barrier(last)),
            from_bits(gradient),
            total.shape,
            _IHWO,
            dtype=jnp.float32,
            dilations=(stride, stride * maps),
            low=(pad, pad * maps),
            high=(max(below, 0), max(right, 0) * maps),
        )
        return total + product, None

    parts = [
        a.reshape(batch // part, part, *a.shape[1:])
        for a in (as_bits(x)[:, :height, :width], as_bits(gradient))
    ]
    zero = jnp.zeros((1, size, size * maps, outputs), jnp.float32)
    total, _ = lax.scan(of_part, zero, parts)
    return total.reshape(size, size, maps, outputs).astype(x.dtype)


def _examples_at_once(batch: int, positions: int, image_bytes: int) -> int:
    """A divisor of the batch, as POSITIONS and EXAMPLES say. image_bytes: of an example's maps."""
    fewest, most = EXAMPLES
    if fewest * image_bytes > MOST_BYTES:
        fewest = FEWEST
    most = min(batch, most, max(fewest, POSITIONS // positions))
    return max(n for n in range(1, most + 1) if batch % n == 0)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(B, I) @ (I, O), both float32 or bfloat16, on a CPU device."""
    return _product(x, kernel)


def _matmul_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul(x, kernel), (x, kernel)


def _matmul_backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    # XLA's product is the faster for few examples; JAX's own gradient would turn it afterwards.
    return _product(gradient, kernel, transposed=True), x.T @ gradient


matmul.defvjp(_matmul_forward, _matmul_backward)


# Axes of a kernel: (outputs, inputs, height, width).
_HWIO, _HWOI, _IHWO = (3, 2, 0, 1), (2, 3, 0, 1), (3, 0, 1, 2)


def _convolution(
    x: jax.Array,
    kernel: jax.Array,
    shape: tuple[int, ...],
    axes: tuple[int, int, int, int],
    *,
    strides: Sequence[int] = (1, 1),
    dilations: Sequence[int] = (1, 1),
    low: Sequence[int],
    high: Sequence[int],
    dtype: Any = None,
    fused: Sequence[str] = (),
    others: Sequence[jax.Array] = (),
) -> jax.Array:
    """oneDNN's forward convolution (B, H, W, C) -> shape, of x's dtype or another.

    axes: the kernel's. fused: what is done with its values before they are written, by the names of
    XLA's OneDnnFusionConfig; others: what that needs.
    """
    layout = {"batch_dim": 0, "feature_dim": 3, "spatial_dims": (1, 2)}
    of_kernel = {
        "output_feature_dim": axes[0],
        "input_feature_dim": axes[1],
        "spatial_dims": axes[2:],
    }
    window = {
        "strides": strides,
        "pad_left": low,
        "pad_right": high,
        "window_dilations": dilations,
    }
    config = {
        "dims": "4",
        "input": {"dims": "4", "data": layout},
        "kernel": {"dims": "4", "filter": of_kernel},
        "output": {"dims": "4", "data": layout},
        "window": window,
        "feature_groups": 1,
    }
    if fused:
        config["fusions"] = {"ops": fused}
    arrays = x, kernel, *others
    return _call("convolution", {"onednn_conv_config": config}, shape, *arrays, dtype=dtype)


def _product(x: jax.Array, kernel: jax.Array, *, transposed: bool = False) -> jax.Array:
    """oneDNN's product of matrices, x @ kernel or x @ kernel.T."""
    config = {"transpose_a": False, "transpose_b": transposed}
    shape = (len(x), kernel.shape[0 if transposed else 1])
    return _call("matmul", {"onednn_matmul_config": config}, shape, x, kernel)


def _call(
    operation: str,
    config: Mapping[str, Any],
    shape: tuple[int, ...],
    *arrays: jax.Array,
    dtype: Any = None,
) -> jax.Array:
    call = jax.ffi.ffi_call(
        f"__onednn${operation}",
        jax.ShapeDtypeStruct(shape, dtype or arrays[0].dtype),
        vmap_method="sequential",
        custom_call_api_version=2,
        legacy_backend_config=json.dumps(config),
    )
    result: jax.Array = call(*arrays)
    return result

"""Convolutions and products of matrices by oneDNN inside the programs that XLA makes for a CPU.

jaxlib for x86-64 holds oneDNN, and XLA's thunks `__onednn$convolution` (the forward convolution)
and `__onednn$matmul` call it; XLA's own rewriting into these thunks is not built in, so they are
called here by name. A layer's three products are then faster than XLA's, which gather patches and
multiply.

The thunks are not documented: what their configuration means has changed between releases. So they
are used only once `trial` has passed, in a process of its own, for this jaxlib on this processor.

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

from cnn_arch.errors import choose
from cnn_arch.kernels.phases import merge

Convolutions = Literal["xla", "onednn"]

VARIABLE = "CNN_DEPTH_CONVOLUTIONS"  # xla, onednn, or auto
TRIAL_SECONDS = 120
WRONG = 3  # the trial's exit status where oneDNN's values are not right
# The gradient of the kernel is summed over as many examples at a time as have POSITIONS in all, but
# no fewer and no more than EXAMPLES: so few that their maps stay in a core's cache.
POSITIONS = 8192
EXAMPLES = (4, 32)

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
    return _using.get() and x.dtype == jnp.float32


def wished() -> Literal["auto", "xla", "onednn"]:
    """What $CNN_DEPTH_CONVOLUTIONS says.

    Raises ArchitectureError for another value than these.
    """
    choices: dict[str, Literal["auto", "xla", "onednn"]]
    choices = {"auto": "auto", "xla": "xla", "onednn": "onednn"}
    return choose(f"${VARIABLE}", os.environ.get(VARIABLE) or "auto", choices)


def chosen() -> Convolutions:
    """`onednn` on a CPU where it works, else `xla`, unless $CNN_DEPTH_CONVOLUTIONS says which.

    A program over several devices needs `xla`: a call by name is not cut into parts.

    Raises ArchitectureError for another value of the variable.
    """
    wish = wished()
    if wish != "auto":
        return wish
    return "onednn" if jax.default_backend() == "cpu" and works() else "xla"


@functools.cache
def works() -> bool:
    """Whether the trial passed for this jaxlib on this processor.

    Its outcome is kept in the folder of JAX's compilation cache, where there is one.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    verdict_file = _verdict_file()
    if verdict_file is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return bool(json.loads(verdict_file.read_text())["works"])
    passed, final = _try_apart()
    if verdict_file is not None and final:
        with contextlib.suppress(OSError):
            verdict_file.parent.mkdir(parents=True, exist_ok=True)
            part = verdict_file.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps({"works": passed}))
            part.replace(verdict_file)
    return passed


def _verdict_file() -> Path | None:
    folder = jax.config.jax_compilation_cache_dir
    if not folder or "://" in folder:
        return None
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kinds = sorted({line for line in lines if line.startswith(("model name", "flags"))})
        calls = Path(__file__).read_text()  # what these calls are
        identity = "\n".join([jaxlib.__version__, calls, *kinds])
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return Path(folder) / f"onednn-{key}.json"
    return None


def _try_apart() -> tuple[bool, bool]:
    """(passed, final): the trial in a process of its own, since what fails may abort it.

    Final is what the trial itself found or died of, not that it was stopped or never began.
    """
    code = "import sys; from cnn_arch.kernels import onednn; sys.exit(onednn.verdict())"
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


def verdict() -> int:
    """The exit status of a process that only makes the trial: 0, or WRONG."""
    try:
        trial()
    except (AssertionError, jax.errors.JaxRuntimeError):
        return WRONG
    return 0


def trial() -> None:
    """Compares values and gradients with NumPy's; raises AssertionError where they differ.

    A thunk that reads its configuration in another way may also abort the process.
    """
    rng = np.random.default_rng(0)
    for images, size, inputs, outputs, kernel, stride, padding in (
        (2, 16, 8, 16, 3, 1, 1),
        (8, 9, 3, 16, 3, 2, 1),
        (2, 23, 3, 16, 11, 4, 2),
        (4, 12, 16, 8, 1, 2, 0),
    ):
        out = (size + 2 * padding - kernel) // stride + 1
        x = rng.standard_normal((images, size, size, inputs), np.float32)
        k = rng.standard_normal((kernel, kernel, inputs, outputs), np.float32)
        dy = rng.standard_normal((images, out, out, outputs), np.float32)

        @jax.jit
        def ours(x: Any, k: Any, dy: Any, stride: int = stride, padding: int = padding) -> Any:
            y, back = jax.vjp(lambda x, k: convolve(x, k, stride, padding), x, k)
            return y, *back(dy)

        with using("onednn"):
            values = ours(x, k, dy)
        _compare("convolution", values, _by_numpy(x, k, dy, stride, padding))
    x, k, dy = (rng.standard_normal(shape, np.float32) for shape in ((8, 37), (37, 24), (8, 24)))
    with using("onednn"):
        values = jax.jit(lambda x, k, dy: (matmul(x, k), *jax.vjp(matmul, x, k)[1](dy)))(x, k, dy)
    _compare("product", values, (x @ k, dy @ k.T, x.T @ dy))


def _compare(operation: str, values: Sequence[Any], expected: Sequence[np.ndarray]) -> None:
    for ours, reference in zip(values, expected, strict=True):
        error = np.abs(ours - reference).max() / np.abs(reference).max()
        if not error < 1e-4:
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
    """Cross-correlation (B, H, W, C) * (k, k, C, F), float32, on one CPU device."""
    batch, *sizes, _ = x.shape
    size, _, _, maps = kernel.shape
    height, width = ((n + 2 * padding - size) // stride + 1 for n in sizes)
    sides = (padding, padding)
    shape = (batch, height, width, maps)
    return _convolution(x, kernel, shape, _HWIO, strides=(stride, stride), low=sides, high=sides)


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

    def phase(row: int, column: int) -> jax.Array:
        first = [(at + padding) % stride for at in (row, column)]
        part = jnp.flip(kernel[first[0] :: stride, first[1] :: stride], (0, 1))
        shape = (batch, height, width, maps)
        if 0 in part.shape:
            return jnp.zeros(shape, gradient.dtype)
        low, high, cut = [], [], [slice(None)]
        for at, begin, taps, size, n in zip(
            (row, column), first, part.shape[:2], (height, width), (rows, columns), strict=True
        ):
            before = taps - 1 - (at + padding - begin) // stride
            after = size + taps - 1 - n - before
            low.append(max(before, 0))
            high.append(max(after, 0))
            cut.append(slice(max(-before, 0), n + min(after, 0)))
        return _convolution(gradient[tuple(cut)], part, shape, _HWOI, low=low, high=high)

    phases = [[phase(row, column) for column in range(stride)] for row in range(stride)]
    return merge(phases, *sizes)


def _of_kernel(x: jax.Array, gradient: jax.Array, size: int, stride: int, pad: int) -> jax.Array:
    """The gradient of the kernel, (k, k, C, F).

    A few examples at a time, whose maps stay in the caches, are the channels summed over of a
    convolution in which the output's gradient is the kernel. Columns and maps are one axis, so that
    a row of what comes out, k * C long, is seen in one piece.
    """
    _, height, width, maps = x.shape
    batch, rows, columns, outputs = gradient.shape
    # Beyond the far border: what windows see of padding, or, if negative, what no window sees.
    below, right = (
        (outs - 1) * stride + size - ins - pad for outs, ins in ((rows, height), (columns, width))
    )
    height, width = height + min(below, 0), width + min(right, 0)
    part = _examples_at_once(batch, rows * columns)

    def of_part(
        total: jax.Array, maps_and_gradient: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        x, gradient = maps_and_gradient
        last = x.reshape(part, -1).T.reshape(1, height, width * maps, part)
        product = _convolution(
            lax.optimization_barrier(last),
            gradient,
            total.shape,
            _IHWO,
            dilations=(stride, stride * maps),
            low=(pad, pad * maps),
            high=(max(below, 0), max(right, 0) * maps),
        )
        return total + product, None

    parts = [
        a.reshape(batch // part, part, *a.shape[1:]) for a in (x[:, :height, :width], gradient)
    ]
    zero = jnp.zeros((1, size, size * maps, outputs), jnp.float32)
    total, _ = lax.scan(of_part, zero, parts)
    return total.reshape(size, size, maps, outputs)


def _examples_at_once(batch: int, positions: int) -> int:
    """A divisor of the batch, as POSITIONS and EXAMPLES say."""
    fewest, most = EXAMPLES
    most = min(batch, most, max(fewest, POSITIONS // positions))
    return max(n for n in range(1, most + 1) if batch % n == 0)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(B, I) @ (I, O), float32, on one CPU device."""
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
) -> jax.Array:
    """oneDNN's forward convolution (B, H, W, C) -> shape; `axes` are the kernel's."""
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
    return _call("convolution", {"onednn_conv_config": config}, shape, x, kernel)


def _product(x: jax.Array, kernel: jax.Array, *, transposed: bool = False) -> jax.Array:
    """oneDNN's product of matrices, x @ kernel or x @ kernel.T."""
    config = {"transpose_a": False, "transpose_b": transposed}
    shape = (len(x), kernel.shape[0 if transposed else 1])
    return _call("matmul", {"onednn_matmul_config": config}, shape, x, kernel)


def _call(
    operation: str, config: Mapping[str, Any], shape: tuple[int, ...], x: jax.Array, y: jax.Array
) -> jax.Array:
    call = jax.ffi.ffi_call(
        f"__onednn${operation}",
        jax.ShapeDtypeStruct(shape, x.dtype),
        vmap_method="sequential",
        custom_call_api_version=2,
        legacy_backend_config=json.dumps(config),
    )
    result: jax.Array = call(x, y)
    return result

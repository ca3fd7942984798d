"""Convolutions by oneDNN inside the programs that XLA makes for a CPU.

jaxlib for x86-64 holds oneDNN, and XLA's thunk `__onednn$convolution` calls its forward
convolution; XLA's own rewriting into that thunk is not built in, so it is called here by name. One
layer's three products are then 1.2 to 6 times faster than XLA's, which gather patches and multiply.

The thunk is not documented: what its configuration means has changed between releases. So it is
used only once `trial` has passed, in a process of its own, for this jaxlib on this processor.

All three products are forward convolutions. The gradient of the input is the kernel, flipped, over
the output's gradient. The gradient of the kernel is one in three dimensions (rows, columns and
channels): the examples are the channels that are summed over, the output's gradient is the kernel,
rows by columns by 1, so that what comes out is (k, k, C, F).
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax import lax

from cnn_arch.errors import unknown

Convolutions = Literal["xla", "onednn"]

VARIABLE = "CNN_DEPTH_CONVOLUTIONS"  # xla, onednn, or auto
TRIAL_SECONDS = 120
WRONG = 3  # the trial's exit status where oneDNN's values are not right
# The gradient of the kernel sums over examples at once. Fewer than SUMMED are made more: parts of
# an image's rows, at least ROWS each, are examples of their own.
SUMMED = 64
ROWS = 14
# A jitted program's `compiler_options`. Without it XLA would compute a layer's input again inside
# the transposition that the gradient of the kernel needs, element by element.
COMPILER_OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander"}

_using: contextvars.ContextVar[bool] = contextvars.ContextVar("oneDNN", default=False)


@contextlib.contextmanager
def using(convolutions: Convolutions) -> Iterator[None]:
    """What `cnn_arch.layers.convolve` calls while a program is traced and compiled, on this thread.

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
    """Whether oneDNN is to convolve x."""
    return _using.get() and x.dtype == jnp.float32


def wished() -> Literal["auto", "xla", "onednn"]:
    """What $CNN_DEPTH_CONVOLUTIONS says.

    Raises ArchitectureError for another value than these.
    """
    wish = os.environ.get(VARIABLE) or "auto"
    known: dict[str, Literal["auto", "xla", "onednn"]]
    known = {"auto": "auto", "xla": "xla", "onednn": "onednn"}
    if wish not in known:
        raise unknown(f"${VARIABLE}", wish, known)
    return known[wish]


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
    kept = _kept()
    if kept is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return bool(json.loads(kept.read_text())["works"])
    passed, final = _try_apart()
    if kept is not None and final:
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps({"works": passed}))
            part.replace(kept)
    return passed


def _kept() -> Path | None:
    folder = jax.config.jax_compilation_cache_dir
    if not folder or "://" in folder:
        return None
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kinds = sorted({line for line in lines if line.startswith(("model name", "flags"))})
        key = hashlib.sha256("\n".join([jaxlib.__version__, *kinds]).encode()).hexdigest()[:16]
        return Path(folder) / f"onednn-{key}.json"
    return None


def _try_apart() -> tuple[bool, bool]:
    """(passed, final): the trial in a process of its own, since what fails may abort it.

    Final is what the trial itself found or died of, not that it was stopped or never began.
    """
    code = "import sys; from cnn_arch import onednn; sys.exit(onednn.verdict())"
    root = str(Path(__file__).parent.parent)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
    }
    try:
        done = subprocess.run(
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
    return done.returncode == 0, done.returncode in (0, WRONG, *(-number for number in crashed))


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
        for found, right in zip(values, _by_numpy(x, k, dy, stride, padding), strict=True):
            error = np.abs(found - right).max() / np.abs(right).max()
            if not error < 1e-4:
                raise AssertionError(f"oneDNN's convolution is off by {error:.1e}")


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
        seen = padded[:, rows, columns]
        y += seen @ k[row, column]
        dx[:, rows, columns] += dy @ k[row, column].T
        dk[row, column] = np.einsum("bhwc,bhwf->cf", seen, dy, optimize=True)
    height, width = x.shape[1:3]
    return y, dx[:, padding : padding + height, padding : padding + width], dk


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Cross-correlation (B, H, W, C) * (k, k, C, F), float32, on one CPU device."""
    batch, *sizes, _ = x.shape
    size, _, _, maps = kernel.shape
    height, width = ((n + 2 * padding - size) // stride + 1 for n in sizes)
    return _call(
        x,
        kernel,
        (batch, height, width, maps),
        source=(0, 3, 1, 2),
        weights=(3, 2, 0, 1),
        stride=stride,
        low=(padding, padding),
        high=(padding, padding),
    )


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    if stride == 1 and padding < kernel.shape[0]:
        flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        of_x = convolve(gradient, flipped, 1, kernel.shape[0] - 1 - padding)
    else:
        turned = jax.linear_transpose(lambda x: _by_xla(x, kernel, stride, padding), x)
        (of_x,) = turned(gradient)
    return of_x, _of_kernel(x, gradient, kernel.shape[0], stride, padding)


convolve.defvjp(_forward, _backward)


def _of_kernel(x: jax.Array, gradient: jax.Array, size: int, stride: int, pad: int) -> jax.Array:
    """The gradient of the kernel, (k, k, C, F)."""
    parts = _parts(len(x), gradient.shape[1]) if stride == 1 else 1
    rows = pad
    if parts > 1:
        x, gradient, rows = _as_examples(x, gradient, size, pad, parts), _cut(gradient, parts), 0
    examples, height, width, maps = x.shape
    _, out_height, out_width, outputs = gradient.shape
    # Beyond the far border: what windows see of padding, or, if negative, what no window sees.
    over = [
        (n - 1) * stride + size - m - p
        for n, m, p in ((out_height, height, rows), (out_width, width, pad))
    ]
    x = x[:, : height + min(over[0], 0), : width + min(over[1], 0)]
    shape = x.shape[1:]
    last = lax.optimization_barrier(x).reshape(examples, -1).T.reshape(1, *shape, examples)
    found = _call(
        lax.optimization_barrier(last),
        gradient[..., None],
        (1, size, size, maps, outputs),
        source=(0, 4, 1, 2, 3),
        weights=(3, 0, 1, 2, 4),
        dilation=stride,
        low=(rows, pad, 0),
        high=(max(over[0], 0), max(over[1], 0), 0),
    )
    return found[0]


def _parts(examples: int, rows: int) -> int:
    """Into how many parts rows are cut, a power of two."""
    parts = 1
    while 2 * parts * examples <= SUMMED and rows % (2 * parts) == 0 and rows >= 2 * parts * ROWS:
        parts *= 2
    return parts


def _cut(gradient: jax.Array, parts: int) -> jax.Array:
    examples, height, width, maps = gradient.shape
    return gradient.reshape(examples * parts, height // parts, width, maps)


def _as_examples(x: jax.Array, gradient: jax.Array, size: int, pad: int, parts: int) -> jax.Array:
    """The rows of x that each part of the gradient's rows sees, as examples of their own."""
    examples, _, width, maps = x.shape
    rows = gradient.shape[1] // parts
    x = jnp.pad(x, ((0, 0), (pad, pad), (0, 0), (0, 0)))
    seen = [x[:, at : at + rows + size - 1] for at in range(0, rows * parts, rows)]
    return jnp.stack(seen, axis=1).reshape(examples * parts, rows + size - 1, width, maps)


def _by_xla(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _call(
    x: jax.Array,
    kernel: jax.Array,
    shape: tuple[int, ...],
    *,
    source: tuple[int, ...],
    weights: tuple[int, ...],
    stride: int = 1,
    dilation: int = 1,
    low: Sequence[int],
    high: Sequence[int],
) -> jax.Array:
    """oneDNN's forward convolution; the result's layout is the source's.

    source, weights: which axes are the examples (or outputs), the channels summed over, and the
    space.
    """
    axes, space = str(len(source)), len(source) - 2
    layout = {"batch_dim": source[0], "feature_dim": source[1], "spatial_dims": source[2:]}
    of_kernel = {
        "output_feature_dim": weights[0],
        "input_feature_dim": weights[1],
        "spatial_dims": weights[2:],
    }
    window = {
        "strides": [stride] * space,
        "pad_left": low,
        "pad_right": high,
        "window_dilations": [dilation] * 2 + [1] * (space - 2),
    }
    config = {
        "dims": axes,
        "input": {"dims": axes, "data": layout},
        "kernel": {"dims": axes, "filter": of_kernel},
        "output": {"dims": axes, "data": layout},
        "window": window,
        "feature_groups": 1,
    }
    call = jax.ffi.ffi_call(
        "__onednn$convolution",
        jax.ShapeDtypeStruct(shape, x.dtype),
        vmap_method="sequential",
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"onednn_conv_config": config}),
    )
    result: jax.Array = call(x, kernel)
    return result

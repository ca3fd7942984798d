"""How a network's stages are executed: unrolled or scanned, keeping their inner maps or not.

Neither changes parameters or, but for rounding, results. Of an unrolled stage equal blocks are
traced once, and compiled one by one. A scanned stage is compiled as one block that runs many times:
compile time no longer grows with depth, at the price of slower steps (on CPU thirty to a hundred
times slower). Rematerialisation forgets what lies inside a stage (of a residual network: inside a
block) after the forward pass and computes it again for the gradients: less memory, about a third
more arithmetic.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cnn_arch.errors import choose
from cnn_arch.network import Layer, Named, RecordedOutput, Tape

Scan = Literal["auto", "always", "never"]
Precision = Literal["default", "high", "highest"]
Options = dict[str, str | bool | int]
PRECISIONS: tuple[Precision, ...] = ("default", "high", "highest")

# 'auto' scans stages of at least so many blocks of one structure. On CPU none, where the papers'
# deepest network, of 1202 layers, compiles in two or three minutes. Elsewhere a guess: ImageNet's
# deepest, of 36 blocks a stage, is unrolled, as a loop copies the output of each convolution into
# what it keeps for the gradients.
SCANNED_FROM = 64


def tape(
    scan: Scan = "auto", remat: bool = False, backend: str | None = None, *, fuses: bool = False
) -> Tape:
    """The tape that training and testing call a network with, inside `jax.jit`.

    Args:
        scan: whether repeated blocks are scanned; 'auto': from SCANNED_FROM on, and never on CPU.
        remat: whether the inner maps of stages are computed again for the gradients.
        backend: 'cpu', 'gpu' or 'tpu'; JAX's default one if not given.
        fuses: see `Tape`.

    Raises ArchitectureError for another `scan`.
    """
    return _Execution(_scanned_from(scan, backend), remat, fuses)


def _scanned_from(scan: Scan, backend: str | None) -> int | None:
    on_cpu = (backend or jax.default_backend()) == "cpu"
    least = {"auto": None if on_cpu else SCANNED_FROM, "always": 2, "never": None}
    return choose("scan", scan, least)


def recording_tape(recorded: RecordedOutput, backend: str | None = None) -> Tape:
    """The tape of tests, which also records a layer's output. backend: as of `tape`."""
    return _Recording(recorded, _scanned_from("auto", backend))


# What XLA on CPU gives to YNNPACK. By default that is convolutions as well, with which a training
# step takes up to 1.6 times as long as with XLA's own.
_YNN: Options = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,"
    "LIBRARY_FUSION_TYPE_REDUCE"
}


def compiler_options(backend: str | None = None, *, deterministic: bool = False) -> Options:
    """What `jax.jit(compiler_options=...)` needs for a program with a network, forward or backward.

    deterministic: on GPU, whether a program gives the same bits each time and however often it is
    compiled: by kernels without atomic additions, and without trying which are fastest. It changes
    nothing elsewhere: a CPU's programs do so on as many cores.

    XLA on CPU drops barriers before it merges and fuses computations. It would then keep every map
    that is to be rematerialised, and compute sums and normalised maps again for each of their uses;
    so the pass that drops them is left out.
    """
    backend = backend or jax.default_backend()
    if backend != "cpu":
        return {"xla_gpu_deterministic_ops": True} if deterministic and backend == "gpu" else {}
    options: Options = {"xla_disable_hlo_passes": "cse_barrier_expander"}
    mesh = Mesh(np.array(jax.local_devices(backend="cpu")[:1]), ("data",))
    return options | _YNN if _known(mesh, tuple(_YNN.items())) else options


OVERLAP = "CNN_DEPTH_OVERLAP"  # auto, or xla
# XLA gathers all gradients into few exchanges, which begin when the last of them is there; of so
# many bytes each they begin earlier.
_EXCHANGED = 4 * 2**20
# By the device's kind. The SparseCores of TPU v5p and v6e exchange while the others compute; older
# TPUs make exchanges parts of other operations.
_BESIDE: dict[str, Options] = {
    r"NVIDIA .*": {
        "xla_gpu_all_reduce_combine_threshold_bytes": _EXCHANGED,
        "xla_gpu_experimental_collective_start_as_early_as_possible": True,
        "xla_gpu_experimental_parallel_collective_overlap_limit": 8,
    },
    r"TPU (v5p?|v6 lite|v6e)": {
        "xla_jf_crs_combiner_threshold_in_bytes": _EXCHANGED,
        "xla_sc_disable_megacore_partitioning": True,
        "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
        "xla_tpu_use_tc_device_shape_on_sc": True,
    },
}
_FUSED: dict[str, Options] = {
    r"TPU (v4|v5 lite|v5e)": {
        "xla_enable_async_all_reduce": True,
        "xla_jf_crs_combiner_threshold_in_bytes": _EXCHANGED // 2,
        "xla_tpu_enable_async_collective_fusion": True,
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
        "xla_tpu_enable_async_collective_fusion_fuse_kloop_fusions": True,
    },
}


def overlap(mesh: Mesh, *, statistics: bool = False) -> Options:
    """The compiler options with which a mesh exchanges gradients while it computes others.

    statistics: whether batch normalisations exchange sums too. On TPU v4 and v5e, which make
    exchanges parts of other operations, that costs more than it hides.

    Empty then, for one device, where $CNN_DEPTH_OVERLAP is `xla`, for other kinds of devices, and
    where this jaxlib or plugin doesn't know them. They change when a sum is exchanged, and not what
    is summed.

    Raises ArchitectureError where $CNN_DEPTH_OVERLAP is neither `auto` nor `xla`.
    """
    wish = os.environ.get(OVERLAP) or "auto"
    kind = mesh.devices.flat[0].device_kind
    by_kind = _BESIDE if statistics else _BESIDE | _FUSED
    matching = [options for pattern, options in by_kind.items() if re.fullmatch(pattern, kind)]
    chosen = choose(f"${OVERLAP}", wish, {"auto": matching, "xla": []})
    if mesh.size == 1 or not chosen or not _known(mesh, tuple(chosen[0].items())):
        return {}
    return chosen[0]


@cache
def _known(mesh: Mesh, options: tuple[tuple[str, Any], ...]) -> bool:
    """Whether the compiler for a mesh knows these options, which are experimental."""
    program = jax.jit(
        lambda: jnp.zeros(()),
        out_shardings=NamedSharding(mesh, P()),
        compiler_options=dict(options),
    )
    try:
        program.lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def multiplied_in(precision: Precision, dtype: str, device: Any) -> str:
    """The numbers in which a network of this dtype multiplies on a device, for people.

    As the documentation of `jax.lax.Precision` has it. TF32 is NVIDIA's, from compute capability
    8.0 on.
    """
    if dtype == "bfloat16":
        return "bfloat16"
    if device.platform == "tpu":
        passes = {"default": "one pass", "high": "three passes", "highest": "six passes"}
        return f"bfloat16 ({passes[precision]})"
    capability = str(getattr(device, "compute_capability", ""))
    nvidia = re.fullmatch(r"(\d+)\.\d+", capability)  # AMD's are names, such as gfx90a
    if nvidia and int(nvidia[1]) >= 8 and precision != "highest":
        return "TF32"
    return "float32"


@dataclass(frozen=True)
class _Pure:
    """Layers as a function: `call(state, x)` -> (output, new running statistics)."""

    call: Callable[[Any, jax.Array], tuple[jax.Array, Any]]
    modules: list[nnx.Module]
    graphdefs: tuple[Any, ...]  # functions of equal ones are the same one of the state
    state: Any


class _Execution(Tape):
    """Calls layers as pure functions of their state where blocks are of one structure, and where
    a stage's inner maps are forgotten."""

    def __init__(self, scanned_from: int | None, remat: bool, fuses: bool = False) -> None:
        super().__init__()
        self.scanned_from, self.remat, self.fuses = scanned_from, remat, fuses

    def chain(self, layers: Sequence[Named], x: jax.Array) -> jax.Array:
        if not self.remat or not layers:
            return super().chain(layers, x)
        pure = self._pure(layers)
        y, states = jax.checkpoint(pure.call)(pure.state, x)
        _update(pure.modules, states)
        return y

    def repeat(self, layers: Sequence[Named], x: jax.Array) -> jax.Array:
        if len(layers) < 2:
            return super().repeat(layers, x)
        blocks = [self._pure([layer]) for layer in layers]
        # Blocks that differ in what is no array, such as being in train or in eval mode, have
        # programs of their own.
        bodies = {
            block.graphdefs: jax.checkpoint(block.call) if self.remat else block.call
            for block in reversed(blocks)
        }
        scanned = self.scanned_from is not None and len(layers) >= self.scanned_from
        if scanned and len(bodies) == 1:
            (body,) = bodies.values()
            stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *(b.state for b in blocks))
            x, states = lax.scan(lambda x, state: body(state, x), x, stacked)
            for i, block in enumerate(blocks):
                _update(block.modules, jax.tree.map(lambda part, i=i: part[i], states))
            return x
        once = {graphdefs: jax.jit(body) for graphdefs, body in bodies.items()}  # traced once
        for block in blocks:
            x, states = once[block.graphdefs](block.state, x)
            _update(block.modules, states)
        return x

    def _pure(self, layers: Sequence[Named]) -> _Pure:
        modules = [layer for _, layer in layers if isinstance(layer, nnx.Module)]
        splits = [nnx.split(module) for module in modules]
        graphdefs = tuple(graphdef for graphdef, _ in splits)
        inner = Tape()
        inner.prefix, inner.fuses = self.prefix, self.fuses

        def call(state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            merged = [
                nnx.merge(graphdef, part, copy=True)
                for graphdef, part in zip(graphdefs, state, strict=True)
            ]
            copies = iter(merged)
            named = [
                (name, next(copies) if isinstance(layer, nnx.Module) else layer)
                for name, layer in layers
            ]
            y = inner.chain(named, x)
            return y, [nnx.state(module, nnx.BatchStat) for module in merged]

        return _Pure(call, modules, graphdefs, [state for _, state in splits])


class _Recording(_Execution):
    """Records a layer's output; the stage that this layer lies in is unrolled."""

    def __init__(self, recorded: RecordedOutput, scanned_from: int | None) -> None:
        super().__init__(scanned_from, remat=False)
        self.recorded = recorded

    def repeat(self, layers: Sequence[Named], x: jax.Array) -> jax.Array:
        names = [self.prefix + name for name, _ in layers]
        if any(
            self.recorded.layer == name or self.recorded.layer.startswith(name + "/")
            for name in names
        ):
            return Tape.repeat(self, layers, x)
        return super().repeat(layers, x)

    def note(
        self, name: str, layer: Layer, inputs: tuple[jax.Array, ...], output: jax.Array
    ) -> None:
        self.recorded.see(name, layer, inputs, output)


def _update(modules: Sequence[nnx.Module], states: Sequence[nnx.State]) -> None:
    for module, state in zip(modules, states, strict=True):
        nnx.update(module, state)

"""How a network's stages are executed: unrolled or scanned, keeping their inner maps or not.

Neither changes parameters or, but for rounding, results. A scanned stage is compiled as one block
that runs many times: compile time no longer grows with depth, at the price of slower steps (much
slower on CPU, where the loop's body is not run on all cores). Rematerialisation forgets what lies
inside a stage (of a residual network: inside a block) after the forward pass and computes it again
for the gradients: less memory, about a third more arithmetic.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from cnn_arch import onednn
from cnn_arch.errors import unknown
from cnn_arch.network import Named, Tape

Scan = Literal["auto", "always", "never"]

# 'auto' scans stages of at least so many blocks of one structure. On CPU, where scanned steps were
# measured to be ten times slower, that is where unrolled stages take minutes to compile; elsewhere
# the number is a guess.
SCANNED_FROM = {"cpu": 100}
SCANNED_FROM_ELSEWHERE = 24


def tape(scan: Scan = "auto", remat: bool = False, backend: str | None = None) -> Tape:
    """The tape that training and testing call a network with.

    Args:
        scan: whether repeated blocks are scanned; 'auto': from SCANNED_FROM blocks on.
        remat: whether the inner maps of stages are computed again for the gradients.
        backend: 'cpu', 'gpu' or 'tpu'; JAX's default one if not given.

    Raises ArchitectureError for another `scan`.
    """
    backend = backend or jax.default_backend()
    least: dict[str, int | None] = {
        "auto": SCANNED_FROM.get(backend, SCANNED_FROM_ELSEWHERE),
        "always": 2,
        "never": None,
    }
    if scan not in least:
        raise unknown("scan", scan, least)
    return _Execution(least[scan], remat)


def compiler_options(
    remat: bool, convolutions: onednn.Convolutions = "xla", backend: str | None = None
) -> dict[str, str]:
    """What `jax.jit(compiler_options=...)` needs for a program whose stages are rematerialised, or
    whose convolutions are oneDNN's.

    XLA on CPU drops the barriers between the forward pass and what is computed again before it
    merges equal computations, and so keeps every map after all; that pass is left out.
    """
    if (backend or jax.default_backend()) != "cpu":
        return {}
    return dict(onednn.COMPILER_OPTIONS) if remat or convolutions == "onednn" else {}


class _Execution(Tape):
    """Calls layers as pure functions of their state where a stage is scanned or forgotten."""

    def __init__(self, scanned_from: int | None, remat: bool) -> None:
        super().__init__()
        self.scanned_from, self.remat = scanned_from, remat

    def chain(self, layers: Sequence[Named], x: jax.Array) -> jax.Array:
        if not self.remat or not layers:
            return super().chain(layers, x)
        call, modules, state = self._pure(layers)
        y, new = jax.checkpoint(call)(state, x)
        _update(modules, new)
        return y

    def repeat(self, layers: Sequence[Named], x: jax.Array) -> jax.Array:
        if self.scanned_from is None or len(layers) < self.scanned_from:
            return super().repeat(layers, x)
        call, _, _ = self._pure(layers[:1])
        modules = [[layer] for _, layer in layers]
        states = [_state(block) for block in modules]
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *states)
        body = jax.checkpoint(call) if self.remat else call

        def step(x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
            return body(state, x)

        y, new = lax.scan(step, x, stacked)
        for i, block in enumerate(modules):
            _update(block, jax.tree.map(lambda part, i=i: part[i], new))
        return y

    def _pure(
        self, layers: Sequence[Named]
    ) -> tuple[Callable[[Any, jax.Array], tuple[jax.Array, Any]], list[nnx.Module], Any]:
        """(call, modules, state): call(state, x) -> (output, new running statistics)."""
        modules = [layer for _, layer in layers if isinstance(layer, nnx.Module)]
        graphdefs = [nnx.split(module)[0] for module in modules]
        inner = Tape()
        inner.prefix = self.prefix

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

        return call, modules, _state(modules)


def _state(modules: Sequence[nnx.Module]) -> list[nnx.State]:
    return [nnx.state(module) for module in modules]


def _update(modules: Sequence[nnx.Module], states: Sequence[nnx.State]) -> None:
    for module, state in zip(modules, states, strict=True):
        nnx.update(module, state)

"""What every library trains in `bench step`, and what shows the peak of a device."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from launch.bench import timing
from launch.bench.timing import Timing, Watch

RATE, MOMENTUM, DECAY = 1e-4, 0.9, 1e-4
# Side of the square matrices whose product shows the peak, and the floats that are copied.
SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
COPIED = {"cpu": 2**26, "gpu": 2**28, "tpu": 2**28}


@dataclass(frozen=True)
class Case:
    """What is trained: a network, and so many images of so many pixels a side in a batch."""

    arch: str
    size: int
    batch: int
    classes: int
    dtype: str
    width: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        """Of the network's builder; He's weights, with which no sum dies out or overflows."""
        width = {} if self.width == 1 else {"width": self.width}
        return {"dtype": self.dtype, "init": "he", **width}

    def __str__(self) -> str:
        width = "" if self.width == 1 else f" width {self.width:g}"
        return f"{self.arch}@{self.size}x{self.batch}{width}"


@dataclass(frozen=True)
class Work:
    """What shows a peak: `once()`, which returns when it is done, of so many FLOP or bytes."""

    once: Callable[[], object]
    amount: float


@dataclass(frozen=True)
class Peak:
    """The best of many calls, in FLOP or bytes a second, and the time that all of them took."""

    best: float
    timing: Timing


class Runner(Protocol):
    """A training in this process.

    params: trained values; device: the kind of the one it is on; note: how it trains; doubt: why
    that may not be its best, or nothing; before: bytes that were resident at most before the
    network was made.
    """

    params: int
    device: str
    note: str
    doubt: str
    before: int

    def steps(self, number: int) -> None:
        """So many training steps; they are done when this returns."""

    def peak_bytes(self) -> int | None:
        """The most of the device's memory that was in use; None on a CPU."""

    def bytes_accessed(self) -> float | None:
        """Bytes that a step reads and writes, where the compiler counts them."""

    def product(self) -> Work | None:
        """A product of two large matrices of the case's dtype; None if not measured."""

    def copy(self) -> Work | None:
        """The copying of a large array; None if not measured."""


def most_resident() -> int:
    """Bytes that this process had resident at most."""
    try:  # not ru_maxrss, which a process inherits from the one that started it
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def best_rate(work: Work, platform: str) -> Peak:
    """The best of as many calls as a timing has, after one that touches the memory."""
    shortest = float("inf")

    def go(calls: int) -> None:
        nonlocal shortest
        for _ in range(calls):
            start = time.perf_counter()
            work.once()
            shortest = min(shortest, time.perf_counter() - start)

    taken = timing.timed(go, work.amount, lambda: watch(platform))
    return Peak(work.amount / shortest, taken)


def made_up(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Images (B, h, w, 3) float32 and labels (B,) int32."""
    random = np.random.default_rng(0)
    shape = (case.batch, case.size, case.size, 3)
    images = random.standard_normal(shape, np.float32)
    return images, random.integers(0, case.classes, case.batch, dtype=np.int32)


def watch(platform: str) -> Watch:
    """Of all cores; where an accelerator does the work, of the one that hands it over."""
    return Watch() if platform == "cpu" else Watch(cores=1, waits=True)

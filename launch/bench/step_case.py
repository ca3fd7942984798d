"""What every library trains in `bench step`, and how the peak of a device is measured."""

from __future__ import annotations

import abc
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from launch.bench import timing
from launch.bench.timing import Timing, watch_of

SMALL = 64  # up to so many pixels, images are of 10 classes
RATE, MOMENTUM, DECAY = 1e-4, 0.9, 1e-4
# Side of the square matrices whose product shows the peak, and the floats that are copied.
SIDE = {"cpu": 2**11, "elsewhere": 2**13}
COPIED = {"cpu": 2**26, "elsewhere": 2**28}


@dataclass(frozen=True)
class Case:
    """A network that is trained or tested, and the batch that it is trained or tested on."""

    arch: str
    size: int  # side of the images, pixels
    batch: int  # images
    classes: int
    dtype: str
    width: float = 1.0
    forward: bool = False  # a test's forward pass in place of a training step
    channels: int = 3

    @property
    def options(self) -> dict[str, Any]:
        """Options of the network's builder; with He's weights no sum vanishes or overflows."""
        width = {} if self.width == 1 else {"width": self.width}
        return {"dtype": self.dtype, "init": "he", **width}

    def __str__(self) -> str:
        width = "" if self.width == 1 else f" width {self.width:g}"
        return f"{self.arch}@{self.size}x{self.batch}{width}{', forward' * self.forward}"

    @property
    def passes(self) -> int:
        """A step's multiply-adds, as a multiple of the forward pass's."""
        return 1 if self.forward else 3


def choose(
    nets: Sequence[str],
    platform: str,
    *,
    size: int | None = None,
    batch: int | None = None,
    dtype: str | None = None,
    width: float = 1.0,
) -> list[Case]:
    """The cases of `NAME` or `NAME@SIZExBATCH`; size, batch, dtype: None for the platform's own.

    Raises ConfigError, ArchitectureError.
    """
    import cnn_arch
    from experiments.config import ConfigError

    cpu, cases = platform == "cpu", []
    for net in nets:
        name, at, rest = net.partition("@")
        match = re.fullmatch(r"(\d+)x(\d+)", rest)
        if at and match is None:
            raise ConfigError(f"--arch {net}: expected NAME@SIZExBATCH, such as {name}@224x8")
        name = cnn_arch.full_name(name)
        inputs = cnn_arch.inputs(name)
        pixels = int(match[1]) if match else size or inputs.image_size
        usual = (128 if pixels <= SMALL else 8) if cpu else 256
        images = int(match[2]) if match else batch or usual
        if images < 1:
            raise ConfigError(f"--arch {net}: the batch must be at least 1, not {images}")
        classes = 10 if pixels <= SMALL else inputs.classes
        precision = dtype or ("float32" if cpu else "bfloat16")
        case = Case(name, pixels, images, classes, precision, width, channels=inputs.channels)
        cases.append(case)
    return cases


@dataclass(frozen=True)
class Peak:
    """The best of many calls."""

    best: float  # FLOP/s or bytes/s
    timing: Timing  # of all calls


class Runner(abc.ABC):
    """A training, or a test, in this process."""

    params: int  # trained values
    device: str  # kind of the device
    note: str  # how it trains
    doubt = ""  # why that may not be its best way
    before: int  # most bytes that were resident before the network was made
    # FLOP/s of the `product` of two large matrices of the case's dtype, and bytes/s that the `copy`
    # of a large array reads and writes.
    peaks: Mapping[str, Callable[[], Peak]] = MappingProxyType({})

    @abc.abstractmethod
    def steps(self, number: int) -> None:
        """So many steps; they are done when this returns."""

    @abc.abstractmethod
    def peak_bytes(self) -> int | None:
        """The most of the device's memory that was in use; None on a CPU."""

    def bytes_accessed(self) -> float | None:
        """Bytes that a step reads and writes, where the compiler counts them."""
        return None


def most_resident() -> int:
    """The most bytes that this process had resident."""
    try:  # not ru_maxrss, which a process inherits from the one that started it
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak(once: Callable[[], object], amount: float, platform: str) -> Peak:
    """The peak of `once()`, which does so many FLOP or moves so many bytes and waits for the end.

    It is called as often as a timing needs, after a call that touches the memory.
    """
    shortest = float("inf")

    def go(calls: int) -> None:
        nonlocal shortest
        for _ in range(calls):
            start = time.perf_counter()
            once()
            shortest = min(shortest, time.perf_counter() - start)

    burst = timing.timed(go, amount, lambda: watch_of(platform))
    return Peak(amount / shortest, burst)


def made_up(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Images (B, h, w, channels) float32 and labels (B,) int32."""
    random = np.random.default_rng(0)
    shape = (case.batch, case.size, case.size, case.channels)
    images = random.standard_normal(shape, np.float32)
    return images, random.integers(0, case.classes, case.batch, dtype=np.int32)

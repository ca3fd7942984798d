"""The memory that one accelerator needs for a training step, from a network's layers alone.

Nothing is compiled. What backpropagation keeps follows from the layers: the output of each
convolution; what follows its normalisation and ReLU, as the next convolution's input; sums of
blocks, and what max-pools see. How often XLA has each in memory at the peak is fitted.

The estimate is within 15%, or 0.2 GB where that is more, of the programs that
`tests/launch/test_memory.py` compiles for a TPU v5e and an H100. It is of a net whose layers are
all trained; cuDNN's scratch memory, and test programs, are not in it. A TPU keeps small maps in its
vector memory, which is not modelled: of CIFAR's small nets the estimate is too high.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import prod
from operator import add
from typing import Any, Literal

import ml_collections

from cnn_arch.census import Census, LayerRow
from experiments.training.program import groups_span

Kind = Literal["tpu", "gpu"]
GIB = 2**30


@dataclass(frozen=True)
class PeakCounts:
    """How often each kind of map is in memory at the peak."""

    normed: float  # outputs of convolutions with normalisation
    plain: float  # outputs of convolutions without it
    rectified: float  # what the next convolution sees after ReLU
    pooled: float  # what only a max-pool sees after ReLU
    joined: float  # sums, concatenations, outputs of pools and of response normalisation
    response: float  # float32 maps of the largest response normalisation
    gradients: float  # of all parameters
    narrow: int = 4  # bytes of a number in `rectified`, at most


# Fitted to the programs of `tests/launch/test_memory.py` (libtpu 0.0.42.1, jaxlib 0.10.2), and
# rounded. That they are not all 1 has reasons. A TPU fuses normalisation and ReLU into the
# convolution that reads them, which reads bfloat16, and takes the gradient of a max-pool in maps of
# its own. XLA on a GPU keeps a convolution's output beside its ReLU, and computes again what only a
# max-pool sees. Most gradients of parameters come when maps are gone.
PEAK_COUNTS: dict[Kind, PeakCounts] = {
    "tpu": PeakCounts(0.95, 0.4, 0.4, 1.6, 0.9, 2.5, 0.5, narrow=2),
    "gpu": PeakCounts(1.3, 1.1, 0.95, 0.0, 0.55, 2.3, 0.0),
}
# A stage that computes its inner maps again has all of them in memory meanwhile.
INSIDE = PeakCounts(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Need:
    """Bytes that one device needs."""

    state: int  # parameters, momentum, averages, sums of gradients
    data: int  # a set that lies on the device
    maps: int  # activations of a micro-batch that the gradients need, and the gradients
    images: int  # of a micro-batch

    @property
    def total(self) -> int:
        return self.state + self.data + self.maps + self.images


def need(
    census: Census,
    config: ml_collections.ConfigDict,
    kind: Kind,
    devices: int = 1,
    resident: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> Need:
    """What a config's training step needs on each of several devices.

    resident: bytes of the data set, where it lies on the device. changes: of the config's keys.
    """
    t = {**config.train, **_own(changes, "train.")}
    model = {**config.model, **_own(changes, "model.")}
    size = 2 if model.get("dtype") == "bfloat16" else 4
    images = -(-t["batch_size"] // (t["accumulate"] * devices))
    params = 4 * census.training_params
    cast = params // 2 if size == 2 else 0
    maps = (
        _maps(census, kind, images, size, t["remat"]) + PEAK_COUNTS[kind].gradients * params + cast
    )
    return Need(
        state=params * (2 + (t["ema"] > 0) + (t["accumulate"] > 1)),
        data=resident,
        maps=round(maps),
        images=images * census.image_size**2 * census.channels * size,
    )


def mends(
    census: Census,
    config: ml_collections.ConfigDict,
    kind: Kind,
    memory: float,
    devices: int = 1,
    resident: int = 0,
) -> list[dict[str, Any]]:
    """The fewest changes of keys with which a step fits `memory` bytes; empty where none do.

    Each entry is enough by itself, and changes results by rounding only: without `bn_group_size`,
    micro-batches would be normalised apart, and are not made smaller.
    """
    t, model = config.train, config.model
    normalised = any(row.kind == "norm" for row in census.layers)
    group = model.get("bn_group_size", 0) or (t.batch_size // t.accumulate if normalised else 1)
    accumulations = [
        n
        for n in range(t.accumulate, t.batch_size // devices + 1)
        if t.batch_size % (n * devices) == 0 and t.batch_size // n % group == 0
    ]
    remat = {} if t.remat else {"train.remat": True}
    dtype = {"model.dtype": "bfloat16"} if model.get("dtype") == "float32" else {}
    fitting: list[dict[str, Any]] = []
    for extra in ({}, remat, dtype, {**remat, **dtype}):
        for n in accumulations:
            split = {"train.accumulate": n} if n > t.accumulate else {}
            changes = {**split, **extra}
            if need(census, config, kind, devices, resident, changes).total <= memory:
                if changes not in fitting:
                    fitting.append(changes)
                break
    fewest = min(map(len, fitting), default=0)
    return [changes for changes in fitting if len(changes) == fewest]


def exchanges(census: Census, config: ml_collections.ConfigDict, devices: int) -> int:
    """How often a step's batch normalisations exchange sums between devices; 0 where no group
    spans several. Each does so twice a micro-batch, forward and backward."""
    norms = sum(row.kind == "norm" for row in census.layers)
    return 2 * norms * config.train.accumulate if groups_span(config, devices) else 0


def _own(changes: Mapping[str, Any] | None, part: str) -> dict[str, Any]:
    items = (changes or {}).items()
    return {key.removeprefix(part): value for key, value in items if key.startswith(part)}


def _maps(census: Census, kind: Kind, images: int, size: int, remat: bool) -> float:
    """Bytes of the maps.

    With `remat`, a stage keeps its last map, and has all of its maps while its gradient is
    computed; those of later stages are gone by then.
    """
    users: dict[str, list[str]] = defaultdict(list)
    for row in census.layers:
        for name in row.inputs:
            users[name].append(row.kind)
    sizes = {row.name: _map(row.output_shape, kind, images, size) for row in census.layers}
    narrow = min(size, PEAK_COUNTS[kind].narrow) / size
    responses = [sizes[row.name] * 4 / size for row in census.layers if row.kind == "lrn"]
    always = PEAK_COUNTS[kind].response * max(responses, default=0.0)
    ends = {row.stage: row.name for row in census.layers if remat and row.stage}
    last_maps, inner_maps = dict.fromkeys(ends, 0.0), dict.fromkeys(ends, 0.0)
    for row in census.layers:
        times = partial(_times, row, users[row.name])
        if row.stage not in ends:
            always += sizes[row.name] * times(PEAK_COUNTS[kind], narrow)
        elif row.name == ends[row.stage]:
            last_maps[row.stage] = sizes[row.name]
        else:
            inner_maps[row.stage] += sizes[row.name] * times(INSIDE, 1.0)
    so_far = accumulate(last_maps.values())
    return always + max(map(add, so_far, inner_maps.values()), default=0.0)


def _times(row: LayerRow, users: list[str], counts: PeakCounts, narrow: float) -> float:
    """How often a layer's map is in memory.

    users: kinds of the layers that read it. narrow: the fraction of its bytes that `rectified` has.
    """
    rectified = counts.pooled if "max_pool" in users else 0.0
    copied = row.kind == "norm" and "concat" in users
    if copied or {"conv", "fc"} & {*users}:
        rectified = counts.rectified * narrow
    if row.kind == "conv":
        return counts.normed if "norm" in users else counts.plain + rectified
    return {"norm": rectified, "fc": 1.0}.get(row.kind, counts.joined)


def _map(shape: tuple[int, ...], kind: Kind, images: int, size: int) -> int:
    """Bytes of a map; a TPU pads images or channels to 128, and the others to 8."""
    *sides, channels = shape
    numbers = images * channels
    if kind == "tpu":
        numbers = min(_up(images, 128) * _up(channels, 8), _up(channels, 128) * _up(images, 8))
    return prod(sides) * numbers * size


def _up(number: int, to: int) -> int:
    return -(-number // to) * to

"""Whether rows fit the devices that they are to train on: what `--plan` and `doctor` say of it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import ml_collections

import cnn_arch
from cnn_arch.census import Census
from experiments import config as configs
from experiments import papers
from experiments.data import absent
from input_pipeline.sources import is_streamed
from launch import chips, devices
from launch.planning import memory
from launch.planning.graph import Job, Net, census_of
from launch.planning.memory import GIB, Kind

KINDS: dict[str, Kind] = {"tpu": "tpu", "gpu": "gpu", "cuda": "gpu", "rocm": "gpu"}
# What JAX takes of a GPU's memory, unless this variable says otherwise.
FRACTION, DEFAULT = "XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75"


@dataclass(frozen=True)
class Devices:
    """The devices of one kind that a row trains on."""

    name: str
    kind: Kind
    count: int
    memory: float  # bytes of each that a program may have


@dataclass(frozen=True)
class Fit:
    """How a row fits devices."""

    devices: str
    count: int
    needed: int  # bytes of each device
    there: float  # bytes of each device that a program may have
    mends: tuple[dict[str, Any], ...]  # changes of keys, each enough to make it fit
    images: float  # of a micro-batch on each device
    exchanges: int  # of sums in a step, as `memory.exchanges` counts them

    @property
    def fits(self) -> bool:
        return self.needed <= self.there

    def lines(self, row: str) -> list[str]:
        """What a person should know of the fit, a line each."""
        if self.images != int(self.images):
            return [
                f"{row}: micro-batches of {self.images * self.count:g} images can't be spread over "
                f"the {self.count} devices of {self.devices}"
            ]
        lines = []
        if not self.fits:
            lines.append(
                f"{row}: needs about {self.needed / GIB:.1f} GiB on each device of {self.devices}, "
                f"which has {self.there / GIB:.1f}; {_mends_text(self.mends)}"
            )
        if self.exchanges:
            lines.append(
                f"{row}: on {self.devices} groups of batch normalisation span devices, whose sums "
                f"are exchanged {self.exchanges} times a step; "
                f"model.bn_group_size={self.images:g} or fewer devices avoid it"
            )
        return lines


def _mends_text(mends: Iterable[Mapping[str, Any]]) -> str:
    """`train.accumulate=2, or train.remat=true makes it fit`."""
    keys = [" with ".join(f"{k}={str(v).lower()}" for k, v in mend.items()) for mend in mends]
    return f"{', or '.join(keys)} makes it fit" if keys else "no key makes it fit: use more devices"


def targets(names: str | None) -> list[Devices]:
    """The devices that `--chips` names, else the accelerators here, as a row uses them: one GPU, or
    all of a TPU host's chips. Empty on a machine without accelerators.

    Raises DeviceError for names of another form.
    """
    if names is not None:
        return [_absent(absent) for absent in chips.parse(names)]
    if not any(map(devices.plugins, devices.PLUGINS)):
        return []
    try:
        probe = devices.probe(devices.Slot())
    except devices.DeviceError:  # `doctor` says what is wrong
        return []
    kind = KINDS.get(probe.platform)
    if kind is None or not probe.memory:
        return []
    count = probe.count if kind == "tpu" else 1
    return [Devices(f"{count} x {probe.kind}", kind, count, probe.memory)]


def _absent(absent: chips.ChipSet) -> Devices:
    kind, fraction_text = KINDS[absent.chip.platform], os.environ.get(FRACTION, DEFAULT)
    try:
        fraction = float(fraction_text) if kind == "gpu" else 1.0
    except ValueError:
        fraction = math.nan
    if not 0 < fraction < math.inf:
        message = f"{FRACTION}={fraction_text}: expected a number above 0, such as {DEFAULT}"
        raise devices.DeviceError(message)
    return Devices(absent.name, kind, absent.count, fraction * absent.chip.memory)


def of_job(job: Job, target: Devices) -> Fit:
    """How a job's training fits devices."""
    d, images = job.config.data, job.data
    resident = 0
    if not is_streamed(d.name):
        stored = images.stored or (d.image_size, d.image_size)
        count = round(images.train / (1 - d.holdout)) + images.test
        resident = count * (prod(stored) * images.channels + 4)
    return _fit(job.census, job.config, target, resident)


def _fit(census: Census, config: ml_collections.ConfigDict, target: Devices, resident: int) -> Fit:
    needed = memory.need(census, config, target.kind, target.count, resident).total
    mends: list[dict[str, Any]] = []
    if needed > target.memory:
        mends = memory.mends(census, config, target.kind, target.memory, target.count, resident)
    return Fit(
        devices=target.name,
        count=target.count,
        needed=needed,
        there=target.memory,
        mends=tuple(mends),
        images=config.train.batch_size / config.train.accumulate / target.count,
        exchanges=memory.exchanges(census, config, target.count),
    )


def warnings(jobs: Iterable[Job], targets: Sequence[Devices]) -> list[str]:
    """What a person should know of jobs on devices, a line each; seeds of a row share theirs."""
    lines: dict[str, None] = {}
    for job in jobs:
        for target in targets:
            lines |= dict.fromkeys(of_job(job, target).lines(f"{job.study}, {job.row}"))
    return list(lines)


def too_large(kind: Kind, bytes_there: float) -> list[tuple[str, str]]:
    """The rows of the papers' tables, in the profile paper, that do not fit one device.

    Gives pairs of `STUDY/ROW` and what makes it fit. Traces all networks: half a minute.
    """
    target = Devices("one device", kind, 1, bytes_there)
    tables = papers.tables().values()
    nets = {net.study or table.study for table in tables for row in table.rows for net in row.nets}
    misfits = []
    for name in sorted(nets):
        study = configs.read(f"{name}:profile=paper")
        for row in study.rows:
            config = study.config_of(row)
            images = cnn_arch.inputs(config.model.arch)
            census = census_of(Net.of(config, images.classes, images.channels))
            size = config.data.image_size**2 * images.channels + 4
            resident = 0 if is_streamed(config.data.name) else size * sum(absent.SMALL.values())
            fitted = _fit(census, config, target, resident)
            if not fitted.fits:
                misfits.append((f"{name}/{row.name}", _mends_text(fitted.mends)))
    return misfits

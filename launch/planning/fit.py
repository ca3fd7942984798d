"""Whether rows fit the devices that they are to train on: what `--plan` and `doctor` say of it."""

from __future__ import annotations

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
FRACTION, USUAL = "XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75"


@dataclass(frozen=True)
class Devices:
    """So many devices that a row trains on. memory: bytes of each that a program may have."""

    name: str
    kind: Kind
    count: int
    memory: float


@dataclass(frozen=True)
class Fit:
    """How a row fits devices.

    needed, there: bytes of a device. mends: changes of keys, each of which makes it fit; of a row
    that fits, none. images: of a micro-batch on a device. exchanges: see `memory.exchanges`.
    """

    devices: str
    count: int
    needed: int
    there: float
    mends: tuple[dict[str, Any], ...]
    images: float
    exchanges: int

    @property
    def fits(self) -> bool:
        return self.needed <= self.there

    def lines(self, row: str) -> list[str]:
        """What a person should know of it, a line each."""
        if self.images != int(self.images):
            return [
                f"{row}: micro-batches of {self.images * self.count:g} images can't be spread over "
                f"the {self.count} devices of {self.devices}"
            ]
        found = []
        if not self.fits:
            found.append(
                f"{row}: needs about {self.needed / GIB:.1f} GiB on each device of {self.devices}, "
                f"which has {self.there / GIB:.1f}; {told(self.mends)}"
            )
        if self.exchanges:
            found.append(
                f"{row}: on {self.devices} groups of batch normalisation span devices, whose sums "
                f"are exchanged {self.exchanges} times a step; "
                f"model.bn_group_size={self.images:g} or fewer devices avoid it"
            )
        return found


def told(mends: Iterable[Mapping[str, Any]]) -> str:
    """`train.accumulate=2, or train.remat=true makes it fit`."""
    each = [" with ".join(f"{k}={str(v).lower()}" for k, v in one.items()) for one in mends]
    return f"{', or '.join(each)} makes it fit" if each else "no key makes it fit: use more devices"


def known(names: str | None) -> list[Devices]:
    """Those that `--chips` names, else the accelerators here, as a row uses them: a GPU, or all of
    a TPU host's chips. None on a machine without.

    Raises DeviceError for names of another form.
    """
    if names is not None:
        return [_absent(one) for one in chips.parse(names)]
    if not any(map(devices.plugins, devices.PLUGINS)):
        return []
    try:
        found = devices.probe(devices.Slot())
    except devices.DeviceError:  # `doctor` says what is wrong
        return []
    kind = KINDS.get(found.platform)
    if kind is None or not found.memory:
        return []
    count = found.count if kind == "tpu" else 1
    return [Devices(f"{count} x {found.kind}", kind, count, found.memory)]


def _absent(one: chips.Absent) -> Devices:
    kind, said = KINDS[one.chip.platform], os.environ.get(FRACTION, USUAL)
    try:
        part = float(said) if kind == "gpu" else 1.0
    except ValueError:
        told = f"{FRACTION}={said}: expected a number, such as {USUAL}"
        raise devices.DeviceError(told) from None
    return Devices(one.name, kind, one.count, part * one.chip.memory)


def of_job(job: Job, on: Devices) -> Fit:
    """How a job's training fits devices."""
    d, images = job.config.data, job.data
    resident = 0
    if not is_streamed(d.name):
        stored = images.stored or (d.image_size, d.image_size)
        count = round(images.train / (1 - d.holdout)) + images.test
        resident = count * (prod(stored) * images.channels + 4)
    return _fit(job.census, job.config, on, resident)


def _fit(census: Census, config: ml_collections.ConfigDict, on: Devices, resident: int) -> Fit:
    needed = memory.need(census, config, on.kind, on.count, resident).total
    mends: list[dict[str, Any]] = []
    if needed > on.memory:
        mends = memory.mends(census, config, on.kind, on.memory, on.count, resident)
    return Fit(
        devices=on.name,
        count=on.count,
        needed=needed,
        there=on.memory,
        mends=tuple(mends),
        images=config.train.batch_size / config.train.accumulate / on.count,
        exchanges=memory.exchanges(census, config, on.count),
    )


def warnings(jobs: Iterable[Job], on: Sequence[Devices]) -> list[str]:
    """What a person should know of jobs on devices, a line each; seeds of a row share theirs."""
    found: dict[str, None] = {}
    for job in jobs:
        for one in on:
            found |= dict.fromkeys(of_job(job, one).lines(f"{job.study}, {job.row}"))
    return list(found)


def too_large(kind: Kind, bytes_there: float) -> list[tuple[str, str]]:
    """The rows of the papers' tables in the profile paper that do not fit one device, a pair
    (study and row, mend) each. Traces all of their networks, in about half a minute."""
    on = Devices("one device", kind, 1, bytes_there)
    tables = papers.tables().values()
    nets = {net.study or table.study for table in tables for row in table.rows for net in row.nets}
    found = []
    for name in sorted(nets):
        study = configs.read(f"{name}:profile=paper")
        for row in study.rows:
            config = study.config_of(row)
            images = cnn_arch.inputs(config.model.arch)
            census = census_of(Net.of(config, images.classes, images.channels))
            size = config.data.image_size**2 * images.channels + 4
            resident = 0 if is_streamed(config.data.name) else size * sum(absent.SMALL.values())
            one = _fit(census, config, on, resident)
            if not one.fits:
                found.append((f"{name}/{row.name}", told(one.mends)))
    return found

"""Accelerators that need not be there: what they can do at most, and a mesh of them.

XLA compiles for them where their plugin is installed: libtpu for TPUs, jax-cuda12-plugin and
jax-cuda12-pjrt for NVIDIA's GPUs. Nothing runs.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launch import devices
from launch.bench.frame import BenchError

if TYPE_CHECKING:
    from jax.sharding import Mesh


@dataclass(frozen=True)
class Chip:
    """One device's limits, as its maker's public documents state them.

    peak: bfloat16 operations a second. hbm, memory: bytes a second, and bytes, of its main memory.
    link: bytes a second to and from the other chips, all links together.
    """

    peak: float
    hbm: float
    memory: float
    link: float


# Google Cloud's pages of each TPU version: bfloat16 peak, HBM bandwidth and capacity,
# interconnect bandwidth. A v4 chip's two cores are two devices.
CHIPS = {
    "v4": Chip(137.5e12, 614e9, 16e9, 150e9),
    "v5e": Chip(197e12, 819e9, 16e9, 200e9),
    "v5p": Chip(459e12, 2765e9, 95e9, 600e9),
    "v6e": Chip(918e12, 1640e9, 32e9, 448e9),
}
EXAMPLE = "v5e:2x4"
NAME = re.compile(rf"(?:([1-9]\d*)\*)?({'|'.join(CHIPS)}):([1-9]\d*(?:x[1-9]\d*)+)")


@dataclass(frozen=True)
class Absent:
    """So many chips of one kind: `v5e:2x4`, or `2*v5e:2x4`, two slices of them."""

    name: str

    @property
    def _parts(self) -> tuple[str, str, str]:
        found = NAME.fullmatch(self.name)
        assert found is not None
        slices, kind, shape = found.groups()
        return slices or "1", kind, shape

    @property
    def kind(self) -> str:
        return self._parts[1]

    @property
    def count(self) -> int:
        """Devices in all."""
        slices, kind, shape = self._parts
        chips = int(slices) * math.prod(map(int, shape.split("x")))
        return chips * (2 if kind == "v4" else 1)

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    def mesh(self) -> Mesh:
        """The mesh axis `data` over all of them.

        Raises:
            BenchError: the plugin is not installed, or knows no such topology.
        """
        import numpy as np
        from jax.experimental import topologies
        from jax.sharding import AxisType, Mesh

        slices, kind, shape = self._parts
        options: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if shape == "1x1" else {}
        if slices != "1":
            options["num_slices"] = int(slices)
        try:
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{kind}:{shape}", **options
            ).devices
        except Exception as error:  # the plugin raises what it likes
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise BenchError(f"--chips {self.name}: {said[:200]}") from error
        ordered = sorted(found, key=devices.by_place)
        return Mesh(np.array(ordered), ("data",), axis_types=(AxisType.Auto,))


def parse(names: str) -> list[Absent]:
    """`v5e:1x1,v5e:2x4`.

    Raises:
        BenchError: a name of another form, an unknown kind, or no plugin for it.
    """
    found = []
    for name in names.split(","):
        if not NAME.fullmatch(name):
            known = ", ".join(CHIPS)
            raise BenchError(
                f"--chips {name}: expected KIND:SHAPE, such as {EXAMPLE} or 2*{EXAMPLE} for two "
                f"slices; KIND is one of {known}"
            )
        found.append(Absent(name))
    if not devices.plugins("tpu"):
        raise BenchError("compiling for a TPU that is not there needs libtpu: pip install libtpu")
    return found


def without_accelerators() -> dict[str, str]:
    """What keeps a process that compiles for absent chips from looking for present ones."""
    return {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
    }

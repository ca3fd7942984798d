"""Accelerators that need not be present: their limits, and a mesh of them.

Estimates need nothing installed. XLA compiles for them where their plugin is installed: libtpu for
TPUs, jax-cuda12-plugin and jax-cuda12-pjrt for NVIDIA's GPUs. Nothing runs.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launch import devices
from launch.devices import DeviceError

if TYPE_CHECKING:
    from jax.sharding import Mesh


@dataclass(frozen=True)
class Chip:
    """One device's limits, as its maker's public documents state them."""

    peak: float  # bfloat16 operations a second
    hbm: float  # bytes a second of its main memory
    memory: float  # bytes
    link: float  # bytes a second that it can send to other devices
    gpu: str = ""  # the description of a GPU for XLA; '' for a TPU

    @property
    def platform(self) -> str:
        return "cuda" if self.gpu else "tpu"


# What XLA's own descriptions of these GPUs say (xla/tools/hlo_opt/gpu_specs).
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared_of_block}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {hbm}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{name}"
"""
_A100 = _GPU.format(
    shared=167936,
    shared_of_block=166912,
    cores=108,
    fpus=64,
    hbm=2039040000000,
    cache=41943040,
    clock=1.41,
    memory=85100068864,
    major=8,
    name="NVIDIA A100-SXM4-80GB",
)
_H100 = _GPU.format(
    shared=233472,
    shared_of_block=232448,
    cores=132,
    fpus=128,
    hbm=3352320000000,
    cache=52428800,
    clock=1.98,
    memory=84978434048,
    major=9,
    name="NVIDIA H100 80GB HBM3",
)
# Google Cloud's pages of each TPU version: bfloat16 peak, HBM bandwidth and capacity,
# interconnect bandwidth. A v4 chip's two cores are two devices. NVIDIA's data sheets of the SXM
# modules: bfloat16 without sparsity, memory, and half of NVLink's bandwidth in both directions.
CHIPS = {
    "v4": Chip(137.5e12, 614e9, 16e9, 150e9),
    "v5e": Chip(197e12, 819e9, 16e9, 200e9),
    "v5p": Chip(459e12, 2765e9, 95e9, 600e9),
    "v6e": Chip(918e12, 1640e9, 32e9, 448e9),
    "a100": Chip(312e12, 2039e9, 80e9, 300e9, _A100),
    "h100": Chip(989.4e12, 3350e9, 80e9, 450e9, _H100),
}
EXAMPLE = "v5e:2x4"
GPU_EXAMPLE = "h100:8"
_TPUS, _GPUS = ("|".join(k for k, c in CHIPS.items() if c.platform == p) for p in ("tpu", "cuda"))
_N = r"[1-9]\d*"
NAME = re.compile(rf"(?:({_N})\*)?(?:({_TPUS}):({_N}(?:x{_N})+)|({_GPUS}):({_N}))")
PLUGINS = {"tpu": "libtpu", "cuda": "jax-cuda12-plugin jax-cuda12-pjrt"}


@dataclass(frozen=True)
class ChipSet:
    """Chips of one kind: `v5e:2x4`, or `2*v5e:2x4` for two slices of them; `h100:8`, or
    `2*h100:8` for two machines with eight each."""

    name: str

    @property
    def _parts(self) -> tuple[str, str, str]:
        match = NAME.fullmatch(self.name)
        assert match is not None
        slices, tpu, shape, gpu, number = match.groups()
        return slices or "1", tpu or gpu, shape or number

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
            DeviceError: the plugin is not installed, or knows no such topology.
        """
        import numpy as np
        from jax.experimental import topologies
        from jax.sharding import AxisType, Mesh

        slices, kind, shape = self._parts
        options: dict[str, Any] = {"topology_name": f"{kind}:{shape}"}
        if self.chip.gpu:
            options = {"target_config": self.chip.gpu, "topology": f"1x{slices}x{shape}"}
        elif shape == "1x1":
            options["chips_per_host_bounds"] = (1, 1, 1)
        if slices != "1" and not self.chip.gpu:
            options["num_slices"] = int(slices)
        try:
            chips = topologies.get_topology_desc(platform=self.chip.platform, **options).devices
        except Exception as error:  # the plugin raises what it likes
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DeviceError(f"--chips {self.name}: {reason[:200]}") from error
        ordered = sorted(chips, key=devices.by_place)
        return Mesh(np.array(ordered), ("data",), axis_types=(AxisType.Auto,))


def parse(names: str) -> list[ChipSet]:
    """The chips of a list of names, such as `v5e:1x1,v5e:2x4,h100:8`.

    Raises:
        DeviceError: a name of another form, or an unknown kind.
    """
    absent = []
    for name in names.split(","):
        if not NAME.fullmatch(name):
            kinds = ", ".join(CHIPS)
            raise DeviceError(
                f"--chips {name}: expected KIND:SHAPE, such as {EXAMPLE} or 2*{EXAMPLE} for two "
                f"slices, or KIND:NUMBER, such as {GPU_EXAMPLE}; KIND is one of {kinds}"
            )
        absent.append(ChipSet(name))
    return absent


def check_plugins(chips: Sequence[ChipSet]) -> None:
    """Raises DeviceError where what compiles for one of them is not installed."""
    for absent in chips:
        platform = absent.chip.platform
        if not devices.plugins(platform):
            raise DeviceError(
                f"--chips {absent.name}: compiling for what is not there needs a plugin: "
                f"pip install {PLUGINS[platform]}"
            )


def without_accelerators() -> dict[str, str]:
    """The environment that keeps a process, which compiles for absent chips, off present ones."""
    return {
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "-1",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
    }

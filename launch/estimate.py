"""How long a run will take, from runs like it that are finished, else from a measured rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from experiments.runs import Run, RunError
from launch import costs
from launch.graph import Job


def measured_seconds(jobs: Iterable[Job], folder: Path) -> float | None:
    """Expected seconds of all jobs by the finished runs in `folder`; None where there are none."""
    there = any(_rates(path) for path in folder.glob("*/result.json"))
    return sum(seconds(jobs, folder, 1.0).values()) if there else None


def seconds(jobs: Iterable[Job], folder: Path, macs_per_s: float) -> dict[str, float]:
    """Expected seconds by run id.

    A run is taken to need time to compile in proportion to its depth and time to train, and to be
    tested, in proportion to its multiply-adds; both rates are medians over the finished runs in
    `folder` of the same architecture family or, where there are none, of all; with no run at all
    the measured `macs_per_s` of one process serves.
    """
    found = [r for r in map(_rates, folder.glob("*/result.json")) if r is not None]
    expected = {}
    for job in jobs:
        family = job.config.model.arch.split(":")[0]
        same = [r for r in found if r["family"] == family] or found
        rate = median(r["macs_per_s"] for r in same) if same else macs_per_s
        compiling = median(r["compile_s_per_layer"] for r in same) if same else 0.3
        macs = costs.testing_macs(job, job.missing_tests())
        if job.run.state()[0] != "finished":
            macs += job.training_macs
        expected[job.run.id] = macs / rate + compiling * job.census.depth
    return expected


def _rates(path: Path) -> Mapping[str, Any] | None:
    try:
        result = Run(path.parent).read("result") or {}
    except RunError:  # of another run than those that are asked about; `status` shows it
        return None
    needed = ("seconds", "depth", "macs", "images_per_s", "compile_seconds")
    if any(not isinstance(result.get(key), int | float) for key in needed):
        return None
    if not result["seconds"] or not result["depth"]:
        return None
    return {
        "family": path.parent.name.split("-")[0],
        "macs_per_s": 3 * result["macs"] * result["images_per_s"],
        "compile_s_per_layer": result["compile_seconds"] / result["depth"],
    }

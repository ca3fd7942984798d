"""What runs cost: multiply-adds, and the time that they take.

Times come from finished runs of the same family, else from a measured rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from experiments.runs.runs import Run, RunError
from experiments.testing import protocols
from experiments.testing.prediction_store import PlannedTest
from input_pipeline import crops
from launch.planning.graph import Job, Net, census_of

STARTING_SECONDS = 5.0  # of a run's own process, until it compiles


def left_macs(job: Job) -> int:
    """Multiply-adds of the training and the tests that are not done yet."""
    return (0 if job.run.trained else job.training_macs) + testing_macs(job, job.missing_tests())


def testing_macs(job: Job, tests: Sequence[PlannedTest]) -> int:
    """Multiply-adds of tests on all test images of a job; each pass counts once, with its mirrors.

    Dense passes are counted as over square images; wider images cost more.
    """
    passes = {
        part.name: part
        for test in tests
        for part in protocols.resolve(test.protocol, job.config, test.scales, flip=test.flip)
    }
    views = sum(_macs_an_image(job, part) for part in passes.values())
    return job.data.test * views


def _macs_an_image(job: Job, part: protocols.Pass) -> int:
    mirrored = 1 + (part.mirror and job.data.mirror_ok)
    view = part.view(job.config.data.image_size)
    if isinstance(view, crops.WholeView):
        return mirrored * _dense_macs(job.net, view.Q)
    return mirrored * len(view.places(512, 512)) * job.census.macs


def _dense_macs(net: Net, side: int) -> int:
    """Multiply-adds of a network over a whole image of side x side pixels (VGG, section 3.2).

    Fully connected layers that read a map of places work at each of its places; those behind a
    global average work once.
    """
    layers, dense = census_of(net).layers, census_of(replace(net, image_size=side)).layers
    first = next((i for i, layer in enumerate(layers) if layer.kind == "fc"), len(layers))
    places = 1
    if 0 < first < len(layers) and len(layers[first - 1].output_shape) == 3:
        map_side, dense_side = layers[first - 1].output_shape[0], dense[first - 1].output_shape[0]
        places = (dense_side - map_side + 1) ** 2
    fc_macs = sum(layer.macs for layer in layers[first:])
    return sum(layer.macs for layer in dense[:first]) + places * fc_macs


def measured_seconds(jobs: Iterable[Job], folder: Path) -> float | None:
    """Expected seconds of all jobs by the finished runs in `folder`; None where there are none."""
    has_rates = any(_rates(path) for path in folder.glob("*/result.json"))
    return sum(seconds(jobs, folder, 1.0).values()) if has_rates else None


def seconds(jobs: Iterable[Job], folder: Path, macs_per_s: float) -> dict[str, float]:
    """Expected seconds by run id.

    A run needs a few seconds to start, time to compile in proportion to its depth, and time to
    train and test in proportion to its multiply-adds. Both rates are medians over the finished
    runs in `folder`: those of the same architecture family, else all. Without any run, the measured
    `macs_per_s` of one process is taken.
    """
    rates = [r for r in map(_rates, folder.glob("*/result.json")) if r is not None]
    expected = {}
    for job in jobs:
        family = job.config.model.arch.split(":")[0]
        similar = [r for r in rates if r["family"] == family] or rates
        rate = median(r["macs_per_s"] for r in similar) if similar else macs_per_s
        compile_s_per_layer = median(r["compile_s_per_layer"] for r in similar) if similar else 0.3
        expected[job.run.id] = (
            STARTING_SECONDS + left_macs(job) / rate + compile_s_per_layer * job.census.depth
        )
    return expected


def _rates(path: Path) -> Mapping[str, Any] | None:
    try:
        result = Run(path.parent).read("result") or {}
    except RunError:  # of some other run; `status` shows it
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


def makespan(
    seconds: Mapping[str, float],
    seeded_by: Mapping[str, str],
    devices: int,
    running: Iterable[str] = (),
) -> float:
    """Seconds until all runs end, each on one device; of those that can start, the head of the
    longest chain does.

    seconds: of each run, seeding runs before those that they seed. seeded_by: a run -> its seeding
    run. running: runs that have begun.
    """
    chain = dict(seconds)  # seconds of a run and of the longest chain that it seeds
    for run in reversed(list(seconds)):
        if (seeding := seeded_by.get(run, "")) in seconds:
            chain[seeding] = max(chain[seeding], seconds[seeding] + chain[run])
    free_at, ends = [0.0] * max(1, devices), dict[str, float]()
    unstarted, started = dict(seconds), set(running)
    while unstarted:
        ready = [run for run in unstarted if seeded_by.get(run) not in unstarted]
        starts = {run: max(min(free_at), ends.get(seeded_by.get(run, ""), 0.0)) for run in ready}
        run = min(ready, key=lambda run: (run not in started, starts[run], -chain[run]))
        del unstarted[run]
        ends[run] = starts[run] + seconds[run]
        free_at[free_at.index(min(free_at))] = ends[run]
    return max(ends.values(), default=0.0)


class Remaining:
    """The time left of several runs: their expected times, corrected by the pace of those that have
    begun.

    expected: seconds of each run. slots: how many run side by side.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        expected: Mapping[str, float],
        slots: int,
        now: Callable[[], float] = time.monotonic,
    ):
        self.expected = {job.run.id: expected[job.run.id] for job in jobs}
        self.seeded_by = {job.run.id: job.seeding.run.id for job in jobs if job.seeding is not None}
        # Expected seconds of the tests that follow its training.
        self.tests = {
            job.run.id: testing_macs(job, job.missing_tests()) / macs_left * expected[job.run.id]
            if (macs_left := left_macs(job))
            else 0.0
            for job in jobs
        }
        self.slots, self.now = slots, now
        self._starts: dict[str, float] = {}  # of runs at work
        self._reported: dict[str, tuple[float, float]] = {}  # (seconds of training left, when said)
        self._durations: dict[str, float] = {}  # of finished runs, in seconds
        self._ended: set[str] = set()

    def begin(self, run: str) -> None:
        self._starts[run] = self.now()

    def tell(self, run: str, seconds: float | None) -> None:
        """Takes a run's own estimate of the seconds left of its training; its tests follow."""
        if seconds is not None:
            self._reported[run] = (seconds, self.now())

    def end(self, run: str, finished: bool) -> None:
        """Takes the end of a run; the duration of one that failed is not counted."""
        start = self._starts.pop(run, None)
        if finished and start is not None:
            self._durations[run] = self.now() - start
        self._ended.add(run)

    def seconds(self) -> float:
        """Seconds until all runs have ended."""
        times = [(took, self.expected[run]) for run, took in self._durations.items()]
        remaining = {}
        for run, start in self._starts.items():
            elapsed = self.now() - start
            if run in self._reported:
                reported, when = self._reported[run]
                remaining[run] = max(0.0, reported + self.tests[run] - (self.now() - when))
                times.append((elapsed + remaining[run], self.expected[run]))
        total = sum(expected for _, expected in times)
        correction = sum(took for took, _ in times) / total if total else 1.0
        for run, expected in self.expected.items():
            if run not in self._ended and run not in remaining:
                elapsed = self.now() - self._starts[run] if run in self._starts else 0.0
                remaining[run] = max(0.0, correction * expected - elapsed)
        ordered = {run: remaining[run] for run in self.expected if run in remaining}
        return makespan(ordered, self.seeded_by, self.slots, self._starts)

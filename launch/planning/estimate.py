"""What runs cost: multiply-adds, and the time that they take.

Time is reckoned from runs like them that are finished, else from a measured rate.
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
from experiments.testing.kept import PlannedTest
from input_pipeline import crops
from launch.planning.graph import Job, Net, census_of

STARTING_SECONDS = 5.0  # of a run's own process, until it compiles


def left_macs(job: Job) -> int:
    """Multiply-adds of the training and the tests that are not done yet."""
    return (0 if job.run.trained else job.training_macs) + testing_macs(job, job.missing_tests())


def testing_macs(job: Job, tests: Sequence[PlannedTest]) -> int:
    """Multiply-adds of tests on all test images of a job; each pass counts once.

    Of dense passes they are those of square images: wider ones cost more. Mirrors are counted.
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

    Fully connected layers that look at a map of places work at each place of it; after a global
    average they work once.
    """
    here, there = census_of(net).layers, census_of(replace(net, image_size=side)).layers
    first = next((i for i, layer in enumerate(here) if layer.kind == "fc"), len(here))
    places = 1
    if 0 < first < len(here) and len(here[first - 1].output_shape) == 3:
        trained, seen = here[first - 1].output_shape[0], there[first - 1].output_shape[0]
        places = (seen - trained + 1) ** 2
    after = sum(layer.macs for layer in here[first:])
    return sum(layer.macs for layer in there[:first]) + places * after


def measured_seconds(jobs: Iterable[Job], folder: Path) -> float | None:
    """Expected seconds of all jobs by the finished runs in `folder`; None where there are none."""
    there = any(_rates(path) for path in folder.glob("*/result.json"))
    return sum(seconds(jobs, folder, 1.0).values()) if there else None


def seconds(jobs: Iterable[Job], folder: Path, macs_per_s: float) -> dict[str, float]:
    """Expected seconds by run id.

    A run is taken to need a few seconds to start, time to compile in proportion to its depth and
    time to train, and to be tested, in proportion to its multiply-adds; both rates are medians over
    the finished runs in `folder` of the same architecture family or, where there are none, of all;
    with no run at all the measured `macs_per_s` of one process serves.
    """
    found = [r for r in map(_rates, folder.glob("*/result.json")) if r is not None]
    expected = {}
    for job in jobs:
        family = job.config.model.arch.split(":")[0]
        same = [r for r in found if r["family"] == family] or found
        rate = median(r["macs_per_s"] for r in same) if same else macs_per_s
        compiling = median(r["compile_s_per_layer"] for r in same) if same else 0.3
        expected[job.run.id] = (
            STARTING_SECONDS + left_macs(job) / rate + compiling * job.census.depth
        )
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


def makespan(
    seconds: Mapping[str, float],
    after: Mapping[str, str],
    devices: int,
    running: Iterable[str] = (),
) -> float:
    """Seconds until all runs end, each on one of the devices, those with most behind them first.

    seconds: of each run; those that seed others come first. after: the run that seeds a run.
    running: have begun.
    """
    behind = dict(seconds)  # and what it seeds
    for run in reversed(list(seconds)):
        if (seed := after.get(run, "")) in seconds:
            behind[seed] = max(behind[seed], seconds[seed] + behind[run])
    free, ends = [0.0] * max(1, devices), dict[str, float]()
    waiting, begun = dict(seconds), set(running)
    while waiting:
        ready = [run for run in waiting if after.get(run) not in waiting]
        starts = {run: max(min(free), ends.get(after.get(run, ""), 0.0)) for run in ready}
        run = min(ready, key=lambda run: (run not in begun, starts[run], -behind[run]))
        del waiting[run]
        ends[run] = starts[run] + seconds[run]
        free[free.index(min(free))] = ends[run]
    return max(ends.values(), default=0.0)


class Remaining:
    """The time left of several runs: what was expected of them, corrected by how those that have
    begun go on.

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
        self.after = {job.run.id: job.seeding.run.id for job in jobs if job.seeding is not None}
        # Of what is left of each, the tests beside the last one of its training.
        self.tests = {
            job.run.id: testing_macs(job, job.missing_tests()) / left * expected[job.run.id]
            if (left := left_macs(job))
            else 0.0
            for job in jobs
        }
        self.slots, self.now = slots, now
        self._begun: dict[str, float] = {}  # of those at work: when
        self._left: dict[str, tuple[float, float]] = {}  # (seconds, when they were told)
        self._over: dict[str, float] = {}  # of those that ended: what they took
        self._gone: set[str] = set()

    def begin(self, run: str) -> None:
        self._begun[run] = self.now()

    def tell(self, run: str, left: float | None) -> None:
        """A run's training has so many seconds left, as far as it knows; its tests follow."""
        if left is not None:
            self._left[run] = (left, self.now())

    def end(self, run: str, finished: bool) -> None:
        """A run has ended; what one that failed took tells nothing."""
        began = self._begun.pop(run, None)
        if finished and began is not None:
            self._over[run] = self.now() - began
        self._gone.add(run)

    def seconds(self) -> float:
        """Until all have ended."""
        rates = [(took, self.expected[run]) for run, took in self._over.items()]
        left = {}
        for run, began in self._begun.items():
            elapsed = self.now() - began
            if run in self._left:
                told, when = self._left[run]
                left[run] = max(0.0, told + self.tests[run] - (self.now() - when))
                rates.append((elapsed + left[run], self.expected[run]))
        usual = sum(expected for _, expected in rates)
        correction = sum(seen for seen, _ in rates) / usual if usual else 1.0
        for run, expected in self.expected.items():
            if run not in self._gone and run not in left:
                elapsed = self.now() - self._begun[run] if run in self._begun else 0.0
                left[run] = max(0.0, correction * expected - elapsed)
        order = {run: left[run] for run in self.expected if run in left}
        return makespan(order, self.after, self.slots, self._begun)

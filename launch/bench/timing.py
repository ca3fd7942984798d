"""How every bench takes a time, and which times it believes.

A burst of work is timed by a `Watch`: by the clock, by the processor time that it spent on all
cores, and by the cores that were left to it. What was left is read from /proc/stat: what the
usable cores spent on anything else, or lost to the host of a virtual machine, was not. The delay of
a process's own threads (schedstat) would count a library's threads that wait for each other too.

`in_turns` measures again what is not to be believed, a bounded number of times, and says why where
it stays so: a `Series` with a `doubt` gives no ratio and no verdict.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Generic, TypeVar

from launch import devices

LEAST_STEPS, LEAST_SECONDS = 5, 2.0
LEAST_SHARE = 0.9  # of the cores that a burst is meant to have
MOST_APART = 1.3  # the fastest repeat over the slowest
TRIES = 3  # of one burst
ROUNDS = 2  # times as many as repeats were asked for, at most

Burst = TypeVar("Burst")


@dataclass(frozen=True)
class Timing:
    """So many images in so many seconds.

    core_seconds: processor time spent on all cores; None where it is not known. cores: that it is
    meant to have. free: cores that other programs and the host left to it, on average; None where
    the system does not tell. steps: in which the work was done; None for what happens once, such as
    a program's start. waits: for a device that does the work, so that core_seconds shows nothing.
    """

    images: float
    seconds: float
    core_seconds: float | None = None
    cores: float = 1
    free: float | None = None
    steps: int | None = 0
    waits: bool = False

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    @property
    def used(self) -> float | None:
        """Cores that it kept busy, on average."""
        return None if self.core_seconds is None else self.core_seconds / self.seconds

    def doubt(self, best: float | None = None) -> str | None:
        """Why it is not to be believed by itself; None if it is.

        best: the most cores that another burst of the same work kept busy.
        """
        enough = self.seconds >= LEAST_SECONDS * 0.999 and (self.steps or 0) >= LEAST_STEPS
        if self.steps is not None and not enough:
            return (
                f"{self.steps} steps in {self.seconds:.2g} s, where at least {LEAST_STEPS} and "
                f"{LEAST_SECONDS:g} s are needed"
            )
        if self.free is not None and self.free < LEAST_SHARE * self.cores:
            return f"other programs or the host left it {self.free:.2f} of {self.cores:g} cores"
        if self.waits:
            return None
        if self.used is None:
            return "its processor time is not known"
        if self.free is None and self.used < LEAST_SHARE * self.cores:
            return (
                f"it had {self.used:.2f} of {self.cores:g} cores, and this system does not tell "
                "whether others took the rest"
            )
        if best is not None and self.used < LEAST_SHARE * best:
            return f"it had {self.used:.2f} cores, where it had {best:.2f} at best"
        return None


class Watch:
    """Times what happens between its making and `stop`.

    core_seconds(): processor time that the work has spent so far, None if unknown; by default that
    of this process. cores: that the work is meant to have, by default all that are usable.
    """

    def __init__(
        self,
        core_seconds: Callable[[], float | None] = time.process_time,
        cores: float | None = None,
        *,
        waits: bool = False,
    ) -> None:
        affinity = hasattr(os, "sched_getaffinity")
        self._usable = os.sched_getaffinity(0) if affinity else None
        self._cores = devices.usable_cores() if cores is None else cores
        self._core_seconds, self._waits = core_seconds, waits
        self._busy, self._spent = busy_seconds(self._usable), core_seconds()
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self._start

    def stop(self, images: float, steps: int | None) -> Timing:
        """The time until now, of so many images and steps."""
        seconds, spent = self.seconds, self._core_seconds()
        busy, used, free = busy_seconds(self._usable), None, None
        if spent is not None and self._spent is not None:
            used = spent - self._spent
            if busy is not None and self._busy is not None and self._usable:
                others = max(0.0, busy - self._busy - used)
                free = max(0.0, len(self._usable) - others / seconds)
        return Timing(images, seconds, used, self._cores, free, steps, self._waits)


def watch_of(platform: str) -> Watch:
    """Of all cores; where an accelerator does the work, of the one that hands it over."""
    return Watch() if platform == "cpu" else Watch(cores=1, waits=True)


def cpu_ticks(file: Path = Path("/proc/stat")) -> dict[str, tuple[int, int]]:
    """Core, or `cpu` for all -> its clock ticks (spent, lost to the host); {} where not told.

    Source: proc_stat(5): user, nice, system, irq and softirq; steal.
    """
    found = {}
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            name, *fields = line.split() or [""]
            if name.startswith("cpu"):
                user, nice, system, _, _, irq, softirq, stolen = map(int, fields[:8])
                found[name] = (user + nice + system + irq + softirq, stolen)
    except (OSError, ValueError):
        return {}
    return found


def busy_seconds(cores: set[int] | None, file: Path = Path("/proc/stat")) -> float | None:
    """Seconds that these cores have spent on anything, or their host took; None where not told."""
    ticks, names = cpu_ticks(file), [f"cpu{core}" for core in cores or ()]
    if not names or not ticks.keys() >= {*names}:
        return None
    return sum(sum(ticks[name]) for name in names) / os.sysconf("SC_CLK_TCK")


def process_seconds(pid: int) -> float:
    """Processor time of a live process, on all its threads (proc_pid_stat(5): utime and stime).

    Raises OSError where the system does not tell.
    """
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def with_ended_children() -> float | None:
    """Processor time of this process and of its children that have ended, in seconds."""
    told = os.times()
    return told.user + told.system + told.children_user + told.children_system


def timed(
    go: Callable[[int], object],
    images: float,
    watch: Callable[[], Watch] = Watch,
    steps: int = LEAST_STEPS,
) -> Timing:
    """The time of `go(n)`, which does n steps of so many images and returns when they are done.

    At least `steps` of them and `LEAST_STEPS`, and `LEAST_SECONDS`; what was too short is taken as
    part of the warm-up, which touches all memory first.
    """

    def measure(n: int) -> Timing:
        running = watch()
        go(n)
        return running.stop(n * images, n)

    go(1)
    return long_enough(measure, max(steps, LEAST_STEPS))


def long_enough(measure: Callable[[int], Timing], steps: int) -> Timing:
    """A timing of so many steps, or of as many more as it needs."""
    while (found := measure(steps)).seconds < LEAST_SECONDS:
        steps = ceil(steps * min(100.0, 1.2 * LEAST_SECONDS / max(found.seconds, 1e-6)))
    return found


def laps(lap: Callable[[], int], images: int, watch: Watch) -> Timing:
    """The time of as many laps of so many images as it needs; `lap()` gives its steps."""
    number = steps = 0
    while steps < LEAST_STEPS or watch.seconds < LEAST_SECONDS:
        steps += lap()
        number += 1
    return watch.stop(number * images, steps)


# ------------------------------------------------------------------------ what is believed


def timings_of(burst: Any) -> tuple[Timing, ...]:
    """What a burst consists of: itself, the timings of its items, or its `timing`."""
    if isinstance(burst, Timing):
        return (burst,)
    if isinstance(burst, tuple):
        return tuple(timing for one in burst for timing in timings_of(one))
    return timings_of(burst.timing)


@dataclass(frozen=True)
class Series(Generic[Burst]):
    """The repeats of one subject, and why they are not trusted; `again`: bursts thrown away."""

    bursts: tuple[Burst, ...]
    doubt: str | None = None
    again: tuple[Burst, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What says whether it is trusted, with every timing."""
        return {
            "trusted": self.doubt is None,
            "not_trusted": self.doubt,
            "timings": [
                {**vars(timing), "images_per_s": timing.rate} for timing in timings_of(self.bursts)
            ],
            "measured_again": len(self.again),
        }


def series(bursts: Sequence[Burst], again: Sequence[Burst] = ()) -> Series[Burst]:
    """These repeats, judged; `again`: others of the same work, which were thrown away."""
    doubt = _doubt(bursts, again)
    for part in zip(*map(timings_of, bursts), strict=True):
        rates = [timing.rate for timing in part]
        if doubt is None and max(rates) > MOST_APART * min(rates):
            doubt = f"its repeats are {max(rates) / min(rates):.2f} times apart"
    if doubt and again:
        doubt += f" ({len(again)} of {len(bursts) + len(again)} bursts were thrown away)"
    return Series(tuple(bursts), doubt, tuple(again))


def in_turns(
    subjects: Mapping[str, Callable[[], Burst]],
    repeats: int,
    on_turn: Callable[[str], None],
    *,
    titles: Mapping[str, str] | None = None,
    absent: tuple[type[Exception], ...] = (),
) -> tuple[dict[str, Series[Burst]], dict[str, str]]:
    """The repeats of every subject, forwards in one round and backwards in the next.

    A burst that is doubted is measured again, up to `TRIES` times. Rounds go on while the repeats
    of any subject are doubted, until there are `ROUNDS` times as many as were asked for. Kept are
    the last rounds in which nothing was doubted or, where these are too few, the last ones.

    Gives subject -> its series; and subject -> why it is not measured, for those that raised an
    exception of the types `absent`.
    """
    turns, missing = {name: _Subject(burst) for name, burst in subjects.items()}, dict[str, str]()
    number = 0
    while True:
        number += 1
        for name in [*turns][:: 1 if number % 2 else -1]:
            try:
                title = f"round {number}: {titles[name] if titles else name}"
                turns[name].measure(number, title, on_turn)
            except absent as error:
                missing[name] = str(error)
                del turns[name]
        if number < repeats:
            continue
        rounds = range(1, number + 1)
        sound = [k for k in rounds if not any(each.doubted(k) for each in turns.values())]
        kept = (sound if len(sound) >= repeats else rounds)[-repeats:]
        found = {name: each.series(kept) for name, each in turns.items()}
        if number >= ROUNDS * repeats or not any(each.doubt for each in found.values()):
            return found, missing


class _Subject(Generic[Burst]):
    """What is measured: its bursts by the number of their round, and those thrown away."""

    def __init__(self, burst: Callable[[], Burst]) -> None:
        self._burst = burst
        self._bursts: dict[int, Burst] = {}
        self._thrown: list[Burst] = []

    def measure(self, number: int, title: str, on_turn: Callable[[str], None]) -> None:
        """The burst of a round, measured again while it is doubted."""
        for again in range(TRIES):
            on_turn(title + (", again" if again else ""))
            self._bursts[number] = self._burst()
            if again == TRIES - 1 or not self.doubted(number):
                return
            self._thrown.append(self._bursts.pop(number))

    def doubted(self, number: int) -> bool:
        """Whether the burst of a round is doubted by itself, beside all others."""
        others = [*self._bursts.values(), *self._thrown]
        return _doubt([self._bursts[number]], others) is not None

    def series(self, kept: Sequence[int]) -> Series[Burst]:
        """The bursts of these rounds."""
        left = [burst for k, burst in self._bursts.items() if k not in kept]
        return series([self._bursts[k] for k in kept], [*self._thrown, *left])


def _doubt(bursts: Sequence[Any], others: Sequence[Any]) -> str | None:
    """Why one of these bursts is not to be believed by itself, beside others of the same work."""
    parts = [timings_of(burst) for burst in [*bursts, *others]]
    best = [
        max((timing.used for timing in each if timing.used is not None), default=None)
        for each in zip(*parts, strict=True)
    ]
    for burst in parts[: len(bursts)]:
        for timing, most in zip(burst, best, strict=True):
            if doubt := timing.doubt(most):
                return doubt
    return None

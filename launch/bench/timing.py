"""How every bench takes a time, and which times it believes.

A burst of work is timed by a `Watch`: by the clock, by the processor time that it spent on all
cores, and by the cores that were left to it. The latter follow from /proc/stat: all usable cores,
less what they spent on other work or lost to the host of a virtual machine. The delay of
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
    """How long a burst of work took."""

    images: float
    seconds: float
    # Processor time spent on all cores; None where it is not known.
    core_seconds: float | None = None
    cores: float = 1  # that it is meant to have
    # Cores that other programs and the host left to it, on average; None where not known.
    free: float | None = None
    # In which the work was done; None for what happens once, such as a program's start.
    steps: int | None = 0
    # Whether it waits for a device that does the work, so that core_seconds shows nothing.
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
    of this process. cores: as many as the work is meant to have, by default all usable ones.
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
    """A watch of all cores; where an accelerator does the work, of the one that feeds it."""
    return Watch() if platform == "cpu" else Watch(cores=1, waits=True)


def cpu_ticks(file: Path = Path("/proc/stat")) -> dict[str, tuple[int, int]]:
    """Core, or `cpu` for all -> its clock ticks (spent, lost to the host); {} where unknown.

    Source: proc_stat(5): user, nice, system, irq and softirq; steal.
    """
    ticks = {}
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            name, *fields = line.split() or [""]
            if name.startswith("cpu"):
                user, nice, system, _, _, irq, softirq, stolen = map(int, fields[:8])
                ticks[name] = (user + nice + system + irq + softirq, stolen)
    except (OSError, ValueError):
        return {}
    return ticks


def busy_seconds(cores: set[int] | None, file: Path = Path("/proc/stat")) -> float | None:
    """Seconds that these cores have worked, or their host took from them; None where unknown."""
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
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def timed(
    go: Callable[[int], object],
    images: float,
    watch: Callable[[], Watch] = Watch,
    steps: int = LEAST_STEPS,
) -> Timing:
    """The time of `go(n)`, which does n steps of so many images and returns when they are done.

    It takes at least `steps` and `LEAST_STEPS` steps, and `LEAST_SECONDS`. A timing that was too
    short counts as warm-up, which touches all memory first.
    """

    def measure(n: int) -> Timing:
        running = watch()
        go(n)
        return running.stop(n * images, n)

    go(1)
    return long_enough(measure, max(steps, LEAST_STEPS))


def long_enough(measure: Callable[[int], Timing], steps: int) -> Timing:
    """A timing of so many steps, or of as many more as it needs."""
    while (timing := measure(steps)).seconds < LEAST_SECONDS:
        steps = ceil(steps * min(100.0, 1.2 * LEAST_SECONDS / max(timing.seconds, 1e-6)))
    return timing


def laps(lap: Callable[[], int], images: int, watch: Watch) -> Timing:
    """The time of as many laps of so many images as it needs; `lap()` gives its steps."""
    count = steps = 0
    while steps < LEAST_STEPS or watch.seconds < LEAST_SECONDS:
        steps += lap()
        count += 1
    return watch.stop(count * images, steps)


# ------------------------------------------------------------------------ what is believed


def timings_of(burst: Any) -> tuple[Timing, ...]:
    """The timings of a burst: itself, those of its items, or its `timing`."""
    if isinstance(burst, Timing):
        return (burst,)
    if isinstance(burst, tuple):
        return tuple(timing for part in burst for timing in timings_of(part))
    return timings_of(burst.timing)


@dataclass(frozen=True)
class Series(Generic[Burst]):
    """The repeats of one subject."""

    bursts: tuple[Burst, ...]
    doubt: str | None = None  # why they are not trusted
    again: tuple[Burst, ...] = ()  # bursts that were discarded and measured again

    def to_json(self) -> dict[str, Any]:
        """Whether it is trusted, and every timing."""
        return {
            "trusted": self.doubt is None,
            "not_trusted": self.doubt,
            "timings": [
                {**vars(timing), "images_per_s": timing.rate} for timing in timings_of(self.bursts)
            ],
            "measured_again": len(self.again),
        }


def series(bursts: Sequence[Burst], again: Sequence[Burst] = ()) -> Series[Burst]:
    """These repeats, judged; `again`: discarded bursts of the same work."""
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
    of any subject are doubted, until there are `ROUNDS` times as many as were asked for. The series
    are of the last rounds in which nothing was doubted or, where these are too few, the last ones.

    Gives subject -> its series; and subject -> why it is not measured, for those that raised an
    exception of the types `absent`.
    """
    present, reasons = {name: _Subject(burst) for name, burst in subjects.items()}, dict[str, str]()
    number = 0
    while True:
        number += 1
        for name in [*present][:: 1 if number % 2 else -1]:
            try:
                title = f"round {number}: {titles[name] if titles else name}"
                present[name].measure(number, title, on_turn)
            except absent as error:
                reasons[name] = str(error)
                del present[name]
        if number < repeats:
            continue
        rounds = range(1, number + 1)
        sound = [k for k in rounds if not any(s.doubted(k) for s in present.values())]
        selected = (sound if len(sound) >= repeats else rounds)[-repeats:]
        series_of = {name: subject.series(selected) for name, subject in present.items()}
        if number >= ROUNDS * repeats or not any(s.doubt for s in series_of.values()):
            return series_of, reasons


class _Subject(Generic[Burst]):
    """What is measured: its bursts by the number of their round, and the discarded ones."""

    def __init__(self, burst: Callable[[], Burst]) -> None:
        self._burst = burst
        self._bursts: dict[int, Burst] = {}
        self._discarded: list[Burst] = []

    def measure(self, number: int, title: str, on_turn: Callable[[str], None]) -> None:
        """The burst of a round, measured again while it is doubted."""
        for attempt in range(TRIES):
            on_turn(title + (", again" if attempt else ""))
            self._bursts[number] = self._burst()
            if attempt == TRIES - 1 or not self.doubted(number):
                return
            self._discarded.append(self._bursts.pop(number))

    def doubted(self, number: int) -> bool:
        """Whether the burst of a round is doubted, beside all others."""
        others = [*self._bursts.values(), *self._discarded]
        return _doubt([self._bursts[number]], others) is not None

    def series(self, rounds: Sequence[int]) -> Series[Burst]:
        """The bursts of these rounds."""
        unselected = [burst for k, burst in self._bursts.items() if k not in rounds]
        return series([self._bursts[k] for k in rounds], [*self._discarded, *unselected])


def _doubt(bursts: Sequence[Any], others: Sequence[Any]) -> str | None:
    """Why one of these bursts is not to be believed by itself, beside others of the same work."""
    timings = [timings_of(burst) for burst in [*bursts, *others]]
    most_used = [
        max((timing.used for timing in part if timing.used is not None), default=None)
        for part in zip(*timings, strict=True)
    ]
    for burst in timings[: len(bursts)]:
        for timing, best in zip(burst, most_used, strict=True):
            if doubt := timing.doubt(best):
                return doubt
    return None

"""What benches show: ratios of timings of the same repeat, and their targets."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from experiments.runs import runs
from launch.bench.timing import Series, Timing

PLAIN_SECONDS = 15.0  # between lines of progress where a bar can't be drawn
PLAIN_WIDTH = 120
NOT_TRUSTED = "not trusted"


@dataclass(frozen=True)
class Ratio:
    """The ratio of each repeat; its median is the figure, lowest and highest are its spread."""

    each: tuple[float, ...]

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
        """Ours over theirs, repeat by repeat."""
        return cls(tuple(a / b for a, b in zip(ours, theirs, strict=True)))

    @property
    def median(self) -> float:
        return median(self.each)

    def __str__(self) -> str:
        return f"{self.median:.2f} [{min(self.each):.2f}, {max(self.each):.2f}]"


@dataclass(frozen=True)
class NotTrusted:
    """In place of a ratio: which timings are not to be believed, and why."""

    why: str

    def __str__(self) -> str:
        return NOT_TRUSTED


def compare(
    ours: Series[Timing], theirs: Series[Timing], titles: tuple[str, str] = ("ours", "the peer")
) -> Ratio | NotTrusted:
    """The ratio of the rates, where both are trusted."""
    return trusted(dict(zip(titles, (ours, theirs), strict=True))) or Ratio.of(
        rates(ours), rates(theirs)
    )


def trusted(named: Mapping[str, Series[Any]]) -> NotTrusted | None:
    """Title -> series: which of them are not trusted; None if all are."""
    doubts = [f"{title}: {series.doubt}" for title, series in named.items() if series.doubt]
    return NotTrusted("; ".join(doubts)) if doubts else None


def rates(series: Series[Timing]) -> list[float]:
    """Images a second of each repeat."""
    return [timing.rate for timing in series.bursts]


def doubts(named: Mapping[str, Series[Any]]) -> list[str]:
    """Title -> series: a line for each that is not trusted."""
    return [
        f"{title}: {NOT_TRUSTED}: {series.doubt}" for title, series in named.items() if series.doubt
    ]


@dataclass(frozen=True)
class Item:
    """One line of a bench: what was compared, its target and aim, and the ratio, or why not.

    by_core_time: the same ratio of the processor time that each spent, where that says the same on
    cores that other programs leave alone. at_most: the target is met from below.
    """

    name: str
    title: str
    target: float
    measured: Ratio | NotTrusted | str
    aim: float | None = None
    by_core_time: Ratio | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; None if it was not measured or is not trusted."""
        if not isinstance(self.measured, Ratio):
            return None
        found = self.measured.median
        return found <= self.target if self.at_most else found >= self.target

    @property
    def goal(self) -> str:
        """The target, and the aim in brackets."""
        aim = f" ({self.aim:g})" if self.aim is not None else ""
        return f"{'<= ' if self.at_most else ''}{self.target:g}{aim}"

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": self.name,
            "title": self.title,
            "target": self.target,
            "at_most": self.at_most,
            "aim": self.aim,
            "met": self.met,
            "measured": None,
        }
        if isinstance(self.measured, str):
            return {**found, "not_measured": self.measured}
        if isinstance(self.measured, NotTrusted):
            return {**found, "not_trusted": self.measured.why}
        each = list(self.measured.each)
        return {
            **found,
            "measured": self.measured.median,
            "lowest": min(each),
            "highest": max(each),
            "each": each,
            "by_core_time": list(self.by_core_time.each) if self.by_core_time else None,
        }


def core_time_ratio(ours: Series[Timing], theirs: Series[Timing]) -> Ratio | None:
    """How much less processor time ours spend on an image than theirs; None if not known or not
    trusted."""
    if ours.doubt or theirs.doubt:
        return None
    spent = [
        [t.core_seconds / t.images for t in series.bursts if t.core_seconds is not None]
        for series in (ours, theirs)
    ]
    if [len(each) for each in spent] != [len(ours.bursts), len(theirs.bursts)]:
        return None
    return Ratio.of(spent[1], spent[0])


def machine() -> dict[str, Any]:
    """Processor, cores and load, at this moment; `cpu_ticks` is for `stolen`."""
    affinity = hasattr(os, "sched_getaffinity")
    return {
        "processor": runs.processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if affinity else os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "cpu_ticks": _cpu_ticks(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu_ticks() -> tuple[int, int] | None:
    """(spent, stolen) by all cores since the start of this machine; Linux only (proc_stat(5))."""
    try:
        line = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0]
        user, nice, system, _, _, irq, softirq, stolen = map(int, line.split()[1:9])
    except (OSError, ValueError):
        return None
    return user + nice + system + irq + softirq, stolen


def stolen(machine: Mapping[str, Any]) -> float | None:
    """Of the time asked of a virtual machine's cores since `machine` was told, the share that its
    host gave to others; None where that is not known."""
    before, now = machine.get("cpu_ticks"), _cpu_ticks()
    if before is None or now is None:
        return None
    spent, taken = (after - start for start, after in zip(before, now, strict=True))
    return taken / max(spent + taken, 1)


def versions(*packages: str) -> dict[str, str | None]:
    """The installed version of each distribution; None for one that is not there."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


@contextmanager
def turns_bar(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """A bar of measurements: gives `on_turn(what)`, to be called as each one begins.

    Where bars can't be drawn, a plain line now and then.
    """
    bar = Progress(
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=total)
    begun, said = -1, float("-inf")

    def on_turn(what: str) -> None:
        nonlocal begun, said
        begun += 1
        most = max(total, begun + 1)  # what is measured again was not foreseen
        bar.update(task, completed=begun, total=most, description=what)
        if not console.is_terminal and time.monotonic() - said > PLAIN_SECONDS:
            said = time.monotonic()
            console.print(f"[{begun + 1}/{most}] {what}", highlight=False, markup=False)

    with bar:
        yield on_turn


def screen() -> Console:
    """Where tables are printed; what is no terminal is as wide as they need."""
    console = Console(highlight=False)
    known = console.is_terminal or "COLUMNS" in os.environ
    return console if known else Console(highlight=False, width=PLAIN_WIDTH)


def rate_cells(series: Series[Timing], digits: int) -> tuple[str, str, str]:
    """The median rate, the lowest and the highest, to be shown; the median only where it is
    trusted."""
    each = rates(series)
    middle = NOT_TRUSTED if series.doubt else f"{median(each):,.{digits}f}"
    return middle, f"{min(each):,.{digits}f}", f"{max(each):,.{digits}f}"


def rates_table(timings: Mapping[str, Series[Timing]], titles: Mapping[str, str]) -> Table:
    """Median, lowest and highest rate of everything that was measured."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("measured")
    for name in ("images/s", "lowest", "highest", "core ms/image"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, found in timings.items():
        spent = [
            1e3 * t.core_seconds / t.images for t in found.bursts if t.core_seconds is not None
        ]
        shown = f"{median(spent):.2f}" if spent and not found.doubt else ""
        table.add_row(titles[name], *rate_cells(found, 0), shown)
    return table


def items_table(items: Sequence[Item]) -> Table:
    """Every item beside its target."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("ratio", overflow="fold")
    table.add_column("target", justify="right", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("core time", justify="right", no_wrap=True)
    table.add_column("met", no_wrap=True)
    for item in items:
        if isinstance(item.measured, str):
            table.add_row(item.title, item.goal, "-", "", "")
            continue
        if isinstance(item.measured, NotTrusted):
            table.add_row(item.title, item.goal, Text(NOT_TRUSTED, "bold yellow"), "", "")
            continue
        met = Text("yes", "green") if item.met else Text("no", "bold red")
        spent = f"{item.by_core_time.median:.2f}" if item.by_core_time else ""
        table.add_row(item.title, item.goal, Text(str(item.measured)), spent, met)
    return table

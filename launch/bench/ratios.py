"""What benches compare: ratios of timings of the same repeat, and their targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from launch.bench.timing import Series, Timing

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

"""What benches compare: ratios of timings of the same repeat, their targets, and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from launch.bench.timing import Series, Timing

NOT_TRUSTED = "not trusted"
MET = {True: Text("yes", "green"), False: Text("no", "bold red"), None: Text("")}


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


def doubts(named: Mapping[str, Series[Any]], titles: Mapping[str, str] | None = None) -> list[str]:
    """Name -> series, and its title: a line for each that is not trusted."""
    return [
        f"{titles[name] if titles else name}: {NOT_TRUSTED}: {series.doubt}"
        for name, series in named.items()
        if series.doubt
    ]


def rates(series: Series[Timing]) -> list[float]:
    """Images a second of each repeat."""
    return [timing.rate for timing in series.bursts]


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
        each = self.measured.each
        return {
            **found,
            "measured": self.measured.median,
            "lowest": min(each),
            "highest": max(each),
            "each": each,
            "by_core_time": self.by_core_time and self.by_core_time.each,
        }


def core_time_ratio(ours: Series[Timing], theirs: Series[Timing]) -> Ratio | None:
    """How much less processor time ours spend on an image than theirs; None if not known or not
    trusted."""
    spent = [
        [t.core_seconds / t.images for t in each.bursts if t.core_seconds is not None]
        for each in (theirs, ours)
    ]
    known = [len(each) for each in spent] == [len(theirs.bursts), len(ours.bursts)]
    return Ratio.of(*spent) if known and not (ours.doubt or theirs.doubt) else None


# ------------------------------------------------------------------------ tables


@dataclass(frozen=True)
class Table:
    """Rows of cells below the names of the columns.

    sides: `l` or `r` for each column, to which side its cells go; those it does not reach: `r`.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Text]]
    sides: str = "l"

    def markdown(self) -> str:
        rules = ["---" if side == "l" else "---:" for side in self._sides()]
        lines = [self.columns, rules, *self.rows]
        return "\n".join(
            f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines
        )

    def rich(self) -> RichTable:
        """The table for a Rich console; in a narrow one its first column is folded."""
        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for i, (name, side) in enumerate(zip(self.columns, self._sides(), strict=True)):
            justify = "left" if side == "l" else "right"
            table.add_column(name, justify=justify, no_wrap=i > 0, overflow="fold")  # type: ignore[arg-type]
        for row in self.rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
        return table

    def _sides(self) -> str:
        return self.sides.ljust(len(self.columns), "r")


def spread(each: Sequence[float], form: str, doubt: str | None = None) -> tuple[str, ...]:
    """The median, where it is trusted, the lowest and the highest, in a format, to be shown."""
    middle, *ends = (format(value, form) for value in (median(each), min(each), max(each)))
    return (NOT_TRUSTED if doubt else middle, *ends)


def rates_tables(
    timings: Mapping[str, Series[Timing]], titles: Mapping[str, str]
) -> tuple[Table, Table]:
    """Median, lowest and highest rate of all that was measured: (for the screen, for the page)."""
    columns, screen, page = ("measured", "images/s", "lowest", "highest"), [], []
    for name, found in timings.items():
        spent = [
            1e3 * t.core_seconds / t.images for t in found.bursts if t.core_seconds is not None
        ]
        core = f"{median(spent):.2f}" if spent and not found.doubt else ""
        screen.append((titles[name], *spread(rates(found), ",.0f", found.doubt), core))
        page.append((titles[name], *spread(rates(found), ",.1f", found.doubt)))
    return Table((*columns, "core ms/image"), screen), Table(columns, page)


def items_tables(items: Sequence[Item]) -> tuple[Table, Table] | tuple[None, None]:
    """Every item beside its target: (for the screen, for the page); nothing where there is none.

    The page says why an item was not measured; on the screen that is one of the notes.
    """
    if not items:
        return None, None
    screen: list[tuple[str | Text, ...]] = []
    page: list[tuple[str | Text, ...]] = []
    for item in items:
        shown: str | Text = str(item.measured)
        page.append((item.title, item.goal, shown, MET[item.met]))
        if isinstance(item.measured, NotTrusted):
            shown = Text(NOT_TRUSTED, "bold yellow")
        elif isinstance(item.measured, str):
            shown = "-"
        spent = f"{item.by_core_time.median:.2f}" if item.by_core_time else ""
        screen.append((item.title, item.goal, shown, spent, MET[item.met]))
    return (
        Table(("ratio", "target", "measured", "core time", "met"), screen, "lrrrl"),
        Table(("ratio", "target (aim)", "measured", "met"), page),
    )

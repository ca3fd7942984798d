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
    """Ratios of the repeats: their median is the figure, lowest and highest are its spread."""

    each: tuple[float, ...]  # a ratio a repeat

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
    """In place of a ratio whose timings are not to be believed."""

    why: str  # which timings, and why

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
    """Which series are not trusted, by their titles; None if all are."""
    doubts = [f"{title}: {series.doubt}" for title, series in named.items() if series.doubt]
    return NotTrusted("; ".join(doubts)) if doubts else None


def doubts(named: Mapping[str, Series[Any]], titles: Mapping[str, str] | None = None) -> list[str]:
    """A line for each series that is not trusted, with its title or else its name."""
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
    """One comparison of a bench, beside its target."""

    name: str
    title: str
    target: float
    measured: Ratio | NotTrusted | str  # or why it was not measured
    aim: float | None = None
    # The ratio of the processor times, where it agrees with `measured` on undisturbed cores.
    by_core_time: Ratio | None = None
    at_most: bool = False  # whether the target is a maximum

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; None if it was not measured or is not trusted."""
        if not isinstance(self.measured, Ratio):
            return None
        figure = self.measured.median
        return figure <= self.target if self.at_most else figure >= self.target

    @property
    def goal(self) -> str:
        """The target, and the aim in brackets."""
        aim = f" ({self.aim:g})" if self.aim is not None else ""
        return f"{'<= ' if self.at_most else ''}{self.target:g}{aim}"

    def to_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "name": self.name,
            "title": self.title,
            "target": self.target,
            "at_most": self.at_most,
            "aim": self.aim,
            "met": self.met,
            "measured": None,
        }
        if isinstance(self.measured, str):
            return {**fields, "not_measured": self.measured}
        if isinstance(self.measured, NotTrusted):
            return {**fields, "not_trusted": self.measured.why}
        ratios = self.measured.each
        return {
            **fields,
            "measured": self.measured.median,
            "lowest": min(ratios),
            "highest": max(ratios),
            "each": ratios,
            "by_core_time": self.by_core_time and self.by_core_time.each,
        }


def core_time_ratio(ours: Series[Timing], theirs: Series[Timing]) -> Ratio | None:
    """Their processor time an image over ours; None if it is not known or not trusted."""
    image_seconds = [
        [t.core_seconds / t.images for t in series.bursts if t.core_seconds is not None]
        for series in (theirs, ours)
    ]
    is_known = [len(s) for s in image_seconds] == [len(theirs.bursts), len(ours.bursts)]
    return Ratio.of(*image_seconds) if is_known and not (ours.doubt or theirs.doubt) else None


# ------------------------------------------------------------------------ tables


@dataclass(frozen=True)
class Table:
    """Rows of cells below the names of the columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Text]]
    sides: str = "l"  # alignment of the first columns, `l` or `r`; of the others it is `r`

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


def spread(figures: Sequence[float], form: str, doubt: str | None = None) -> tuple[str, ...]:
    """The median, where it is trusted, the lowest and the highest, in the format `form`."""
    middle, *ends = (format(x, form) for x in (median(figures), min(figures), max(figures)))
    return (NOT_TRUSTED if doubt else middle, *ends)


def rates_tables(
    timings: Mapping[str, Series[Timing]], titles: Mapping[str, str]
) -> tuple[Table, Table]:
    """Median, lowest and highest rate of all that was measured: (for the screen, for the page)."""
    columns, screen, page = ("measured", "images/s", "lowest", "highest"), [], []
    for name, series in timings.items():
        core_ms = [
            1e3 * t.core_seconds / t.images for t in series.bursts if t.core_seconds is not None
        ]
        core_cell = f"{median(core_ms):.2f}" if core_ms and not series.doubt else ""
        screen.append((titles[name], *spread(rates(series), ",.0f", series.doubt), core_cell))
        page.append((titles[name], *spread(rates(series), ",.1f", series.doubt)))
    return Table((*columns, "core ms/image"), screen), Table(columns, page)


def items_tables(items: Sequence[Item]) -> tuple[Table, Table] | tuple[None, None]:
    """Every item beside its target: (for the screen, for the page); (None, None) without items.

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
        core_time = f"{item.by_core_time.median:.2f}" if item.by_core_time else ""
        screen.append((item.title, item.goal, shown, core_time, MET[item.met]))
    return (
        Table(("ratio", "target", "measured", "core time", "met"), screen, "lrrrl"),
        Table(("ratio", "target (aim)", "measured", "met"), page),
    )

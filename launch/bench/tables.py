"""The tables of benches, for the screen and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from launch.bench.ratios import NOT_TRUSTED, Item, NotTrusted, rates
from launch.bench.timing import Series, Timing

MET = {
    True: Text("yes", "green"),
    False: Text("no", "bold red"),
    None: Text(""),
}


@dataclass(frozen=True)
class Table:
    """Rows of cells below the names of the columns.

    sides: `l` or `r` for each column, to which side its cells go; those it does not reach: `r`.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Text]]
    sides: str = "l"

    def markdown(self) -> str:
        """The table in Markdown."""
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


def rate_cells(series: Series[Timing], digits: int) -> tuple[str, str, str]:
    """The median rate, the lowest and the highest, to be shown; the median only where it is
    trusted."""
    each = rates(series)
    middle = NOT_TRUSTED if series.doubt else f"{median(each):,.{digits}f}"
    return middle, f"{min(each):,.{digits}f}", f"{max(each):,.{digits}f}"


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
        screen.append((titles[name], *rate_cells(found, 0), core))
        page.append((titles[name], *rate_cells(found, 1)))
    return Table((*columns, "core ms/image"), screen), Table(columns, page)


def items_tables(items: Sequence[Item]) -> tuple[Table, Table]:
    """Every item beside its target: (for the screen, for the page).

    The page says why an item was not measured; on the screen that is one of the notes.
    """
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

"""Tables for people: Markdown, and the terminal; the page takes their columns."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from experiments.report.text import Cell, Column, markdown_text

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {"failed": "red", "finished": "", "measured": "", "partly": ""}  # of a row, by state
ALONE = 11  # characters for the name of a group of one column, if it has so many

# ------------------------------------------------------------------------------- Markdown


def markdown(
    title: str,
    above: Sequence[str],
    columns: Sequence[Column],
    blocks: Mapping[str, Sequence[dict]],
    below: Sequence[str],
) -> str:
    """Title, lines in Markdown, a table for each block below its name, and lines in Markdown.

    One block has no name.
    """
    headers = []
    for column in columns:
        header = f"{column.header}, {column.unit}".rstrip(", ").replace("\n", " ")
        headers.append(f"{column.group}: {header}" if column.group else header)
    rule = ["---:" if column.right else "---" for column in columns]
    parts = [f"# {markdown_text(title)}", *above]
    for name, records in blocks.items():
        if len(blocks) > 1:
            parts.append(f"## {markdown_text(name)}")
        rows = [
            [markdown_text(c.cell(record).joined("<br>")) for c in columns] for record in records
        ]
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in (headers, rule, *rows)))
    return "\n\n".join([*parts, *below]) + "\n"


# ------------------------------------------------------------------------------- terminal


@dataclass(frozen=True)
class Sheet:
    """A table for the terminal.

    above: lines below the title. blocks: name -> records; one block has no name. notes, remarks:
    (line, style) below the table, before and after what says that columns were left out.
    name_widths: characters that the first column is broken at, the widest first; none: it is not
    broken, and neither are the headers.
    """

    title: str
    above: Sequence[str]
    columns: Sequence[Column]
    blocks: Mapping[str, Sequence[dict]]
    notes: Sequence[tuple[str, str]]
    remarks: Sequence[tuple[str, str]]
    name_widths: Sequence[int] = ()


def print_sheet(sheet: Sheet, console: "Console") -> None:
    """Prints a table on a rich Console, its blocks with the same column widths.

    A file or pipe gets all columns. A screen too narrow loses those least missed, and is told so.
    """
    from rich.text import Text

    records = [record for block in sheet.blocks.values() for record in block]
    shown, gap = _fitted(sheet, records, console)
    wide = widths(shown, records)
    room = console.width if console.is_terminal else 120
    room = room if sheet.name_widths else min(room, console.width)
    prose = min(max(sum(wide) + gap * (len(wide) - 1), 80), room)

    def say(text: str, style: str = "") -> None:
        lines = textwrap.fill(text, prose, break_on_hyphens=False)
        console.print(Text(lines, style), soft_wrap=True)

    say(sheet.title, "bold")
    for line in sheet.above:
        say(line, "italic")
    for name, block in sheet.blocks.items():
        console.print()
        if len(sheet.blocks) > 1:
            say(name, "bold")
        _print_rows(console, shown, block, wide, gap)
    console.print()
    for line, style in sheet.notes:
        say(line, style)
    left_out = [c for c in sheet.columns if _place(c) not in map(_place, shown)]
    if left_out:
        grouped = any(column.group for column in left_out)
        if not grouped:  # the column least missed is named first
            left_out.sort(key=lambda column: -column.drop)
        names = [": ".join(filter(None, _place(column))) for column in left_out]
        between = "; " if grouped else ", "
        say(f"Left out for lack of room: {between.join(names)}.", "dim")
    for line, style in sheet.remarks:
        say(line, style)


def _fitted(
    sheet: Sheet, records: Sequence[dict], console: "Console"
) -> tuple[Sequence[Column], int]:
    """The columns that there is room for, and the spaces between them."""
    ways = [_broken(sheet.columns, width) for width in sheet.name_widths] or [[*sheet.columns]]
    if not console.is_terminal:
        return ways[0], 2
    for columns in ways:
        shown, gap = fit(columns, records, console.width)
        taken = sum(widths(shown, records)) + gap * (len(shown) - 1)
        if len(shown) == len(columns) and taken <= console.width:
            break
    return shown, gap


def fit(
    columns: Sequence[Column], records: Sequence[dict], screen: int
) -> tuple[list[Column], int]:
    """(columns, spaces between columns) that a screen has room for."""
    columns = list(columns)
    while True:
        room = screen - sum(widths(columns, records))
        for gap in (2, 1):
            if gap * (len(columns) - 1) <= room:
                return columns, gap
        least = max(columns, key=lambda column: column.drop)
        if not least.drop:
            return columns, 1
        columns.remove(least)


def _place(column: Column) -> tuple[str, str]:
    """What tells a column from all others, however its header is broken."""
    return column.group, " ".join(column.header.split()).replace("diff.", "difference")


def _broken(columns: Sequence[Column], name_width: int) -> list[Column]:
    """The columns with names and headers broken into lines, all headers ending on the last."""
    name, *others = columns

    def cell(row: dict) -> Cell:
        full = name.cell(row)
        texts = ("\n".join(textwrap.wrap(text, name_width)) for text in (full.text, full.below))
        return Cell(full.value, *texts)

    found = [replace(name, cell=cell)]
    for column, before in zip(others, columns, strict=False):
        header = column.header.replace(" (", "\n(").replace("difference", "diff.")
        if column.group != before.group:  # room for the longest word of the group's name
            alone = sum(other.group == column.group for other in others) == 1
            words = [*map(len, column.group.split()), min(len(column.group), ALONE) * alone]
            header = header.rjust(max(words, default=0))
        found.append(replace(column, header=header))
    tall = max(column.header.count("\n") for column in found)
    return [replace(c, header="\n" * (tall - c.header.count("\n")) + c.header) for c in found]


def widths(columns: Sequence[Column], records: Sequence[dict]) -> list[int]:
    """Characters each column needs for all studies, so that their blocks line up."""
    found = []
    for column in columns:
        lines = [*column.header.split("\n"), column.unit]
        for cell in map(column.cell, records):
            lines += [*cell.text.split("\n"), *cell.below.split("\n")]
        found.append(max(map(len, lines)))
    return found


def _print_rows(
    console: "Console",
    columns: Sequence[Column],
    records: Sequence[dict],
    widths: Sequence[int],
    gap: int,
) -> None:
    """Prints the columns of these widths, `gap` spaces apart, below the names of their groups."""
    from rich import box
    from rich.segment import Segments
    from rich.table import Table
    from rich.text import Text

    for line in _group_lines(columns, widths, gap):
        console.print(Text(line, "bold"), soft_wrap=True)
    shown = Table(
        box=box.SIMPLE_HEAD,  # its divider is one space
        show_edge=False,
        pad_edge=False,
        padding=(0, gap - 1, 0, 0),
        header_style="bold",
    )
    for column, width in zip(columns, widths, strict=True):
        header = Text("\n".join(filter(None, (column.header, column.unit))))
        side: Any = "right" if column.right else "left"
        shown.add_column(header, justify=side, min_width=width, no_wrap=True)
    for record in records:
        style = STYLES.get(record.get("state", "measured"), "dim")
        shown.add_row(*(Text(column.cell(record).joined("\n")) for column in columns), style=style)
    # `print(width=...)` would cap it at the width that a pipe claims to have.
    options = console.options.update(width=sum(widths) + gap * (len(widths) - 1))
    console.print(Segments(console.render(shown, options)), soft_wrap=True, end="")


def _group_lines(columns: Sequence[Column], widths: Sequence[int], gap: int) -> list[str]:
    """The names of groups in the middle above their columns, as many lines as the longest takes."""
    blocks: list[tuple[int, list[str]]] = []
    sized = zip(columns, widths, strict=True)
    for group, found in groupby(sized, key=lambda pair: pair[0].group):
        parts = [width for _, width in found]
        span = sum(parts) + gap * (len(parts) - 1)
        blocks.append((span, textwrap.wrap(group, span)))
    tall = max(len(lines) for _, lines in blocks)
    return [
        (" " * gap)
        .join(([""] * (tall - len(lines)) + lines)[number].center(span) for span, lines in blocks)
        .rstrip()
        for number in range(tall)
    ]

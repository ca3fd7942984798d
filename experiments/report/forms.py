"""The forms of a table: terminal, Markdown, LaTeX, CSV and JSON; `page` has the HTML."""

import csv
import io
import json
import math
import re
import string
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.report.table import Cell, Column, Table, grouped
from experiments.report.text import MINUS

if TYPE_CHECKING:
    from rich.console import Console

TEMPLATES = Path(__file__).with_name("templates")

# ------------------------------------------------------------------------------- programs


def document(table: Table) -> Any:
    """The table's document, with null for what JSON has no number for."""
    return json.loads(json.dumps(table.document), parse_constant=lambda _: None)


def to_json(table: Table) -> str:
    """The table's document in a file."""
    return json.dumps(document(table), indent=1, ensure_ascii=False) + "\n"


def to_csv(table: Table) -> str:
    """The table's lines, unrounded; an empty field is None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(next(iter(table.lines), {})), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.lines)
    return text.getvalue()


# ------------------------------------------------------------------------------- Markdown


# What would be emphasis, code, a tag, a formula, an escape, or the end of a cell.
MARKS = re.compile(r"[\\`*$|]|<(?=[a-zA-Z/!?])|(?<!\w)_|_(?!\w)")


def _markdown_text(text: str) -> str:
    """Text that is read as it is, and breaks no table."""
    return MARKS.sub(r"\\\g<0>", text.replace("\n", " "))


def _markdown_cell(cell: Cell) -> str:
    return "<br>".join(_markdown_text(part) for part in (cell.text, cell.below) if part)


def _header(column: Column) -> str:
    """Header and unit in one line."""
    return f"{column.header}, {column.unit}".rstrip(", ").replace("\n", " ")


def to_markdown(table: Table) -> str:
    """Title, origin, a table for each block, notes, remarks and findings."""
    columns = table.columns
    headers = [": ".join(filter(None, (c.group, _header(c)))) for c in columns]
    rule = ["---:" if column.right else "---" for column in columns]
    parts = [f"# {_markdown_text(table.title)}"]
    parts += [f"**{_markdown_text(line)}**" for line in table.origin]
    for name, records in table.blocks.items():
        if len(table.blocks) > 1:
            parts.append(f"## {_markdown_text(name)}")
        rows = [[_markdown_cell(column.cell(record)) for column in columns] for record in records]
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in (headers, rule, *rows)))
    parts += map(_markdown_text, [*table.notes, *table.remarks])
    if table.findings:
        parts.append("\n".join(f"- {_markdown_text(finding)}" for finding in table.findings))
    return "\n\n".join(parts) + "\n"


# ------------------------------------------------------------------------------- LaTeX

SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    MINUS: "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "µ": r"$\mu$",
    "–": "--",
    "—": "---",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\ldots{}",
}
SIGNS |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
SIGNS |= {sign: rf"\textsuperscript{{{i}}}" for i, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u0327": "c"}


def latex_text(text: str) -> str:
    """Text as LaTeX of plain ASCII; a sign that has no known form becomes a question mark."""
    pieces: list[str] = []
    for sign in text:
        if sign in SIGNS:
            pieces.append(SIGNS[sign])
            continue
        if sign == "-" and pieces and pieces[-1].endswith("-"):  # two would be a dash
            pieces.append("{}")
        for part in sign if sign.isascii() else unicodedata.normalize("NFKD", sign):
            if part in ACCENTS and pieces:
                pieces[-1] = f"\\{ACCENTS[part]}{{{pieces[-1]}}}"
            else:
                pieces.append(part if part.isascii() else "?")
    return "".join(pieces)


def to_latex(table: Table) -> str:
    """A float with a booktabs table; the caption says whose figures these are."""
    columns = [column for column in table.columns if not column.wide]
    caption = " ".join([table.title.removesuffix(".") + ".", *table.origin])
    rows = []
    for name, records in table.blocks.items():
        if len(table.blocks) > 1:
            rows.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{{latex_text(name)}}} \\")
        rows += [_latex_row([column.cell(record) for column in columns]) for record in records]
    below = [*table.notes, *table.remarks, *table.findings]
    return string.Template((TEMPLATES / "table.tex").read_text()).substitute(
        caption=latex_text(caption),
        name=table.name,
        columns="".join("r" if column.right else "l" for column in columns),
        header="\n".join(_latex_header(columns)),
        rows="\n".join(rows),
        below="".join(latex_text(line) + "\\par\n" for line in below),
    )


def _latex_header(columns: Sequence[Column]) -> list[str]:
    """Where there are groups a line of them and rules below these; the line of headers."""
    group_cells, rules, start = [], [], 1
    for group, parts in grouped(columns):
        size = len(parts)
        if group:
            group_cells.append(rf"\multicolumn{{{size}}}{{c}}{{{latex_text(group)}}}")
            rules.append(rf"\cmidrule(lr){{{start}-{start + size - 1}}}")
        else:
            group_cells += [""] * size
        start += size
    groups = [" & ".join(group_cells) + r" \\", " ".join(rules)] if rules else []
    return [*groups, " & ".join(latex_text(_header(column)) for column in columns) + r" \\"]


def _latex_row(cells: Sequence[Cell]) -> str:
    name, *others = cells
    first = latex_text(name.text) + (f" ({latex_text(name.below)})" if name.below else "")
    if first.startswith(("[", "*")):  # after \\ these would be an option of it
        first = f"{{{first[0]}}}{first[1:]}"
    return " & ".join([first, *(latex_text(c.joined(" ")) for c in others)]) + r" \\"


# name -> (ending of the file, what makes its text)
FILES: dict[str, tuple[str, Callable[[Table], str]]] = {
    "markdown": ("md", to_markdown),
    "csv": ("csv", to_csv),
    "latex": ("tex", to_latex),
    "json": ("json", to_json),
}

# ------------------------------------------------------------------------------- terminal

STYLES = {"failed": "red", "finished": "", "measured": "", "partly": ""}  # of a row, by state
NAME_WIDTHS = (48, 36, 28, 22, 18)  # characters that a row's name is broken at, as it has to be
ALONE = 11  # characters for the name of a group of one column, if it has so many
PIPE = 120  # characters of a line of prose that goes to a file, at most


def to_terminal(table: Table, console: "Console") -> None:
    """Prints the table on a rich Console, its blocks with the same column widths.

    A file or pipe gets all columns. A screen too narrow loses those least missed, and is told so.
    """
    from rich.text import Text

    shown, left_out, gap = _fitted(table, console.width if console.is_terminal else math.inf)
    wide = _widths(shown, table.records)
    room = console.width if console.is_terminal else PIPE
    prose = min(max(sum(wide) + gap * (len(wide) - 1), 80), room)

    def say(text: str, style: str = "") -> None:
        lines = textwrap.fill(text, prose, break_on_hyphens=False)
        console.print(Text(lines, style), soft_wrap=True)

    say(table.title, "bold")
    for line in table.origin:
        say(line, "italic")
    for name, block in table.blocks.items():
        console.print()
        if len(table.blocks) > 1:
            say(name, "bold")
        _print_rows(console, shown, block, wide, gap)
    console.print()
    for note, state in table.notes.items():
        say(note, STYLES.get(state, ""))
    if left_out:
        say(f"Left out for lack of room: {'; '.join(map(_unbroken, left_out))}.", "dim")
    for line in table.remarks:
        say(line, "dim")
    for finding in table.findings:
        console.print()
        say(finding)


def _fitted(table: Table, screen: float) -> tuple[list[Column], list[Column], int]:
    """The columns that a screen has room for, those left out, and the spaces between columns."""
    for name_width in NAME_WIDTHS:
        shown, left_out = _broken([c for c in table.columns if not c.wide], name_width), []
        while True:
            room = screen - sum(_widths(shown, table.records))
            gap = 2 if 2 * (len(shown) - 1) <= room else 1
            fits = gap * (len(shown) - 1) <= room
            least = max(shown, key=lambda column: column.drop)
            if fits or not least.drop:
                break
            shown.remove(least)
            left_out.append(least)
        if fits and not left_out:
            break
    return shown, left_out, gap


def _broken(columns: Sequence[Column], name_width: int) -> list[Column]:
    """The columns with names and headers broken into lines."""
    name, *others = columns

    def cell(row: dict[str, Any]) -> Cell:
        full = name.cell(row)
        texts = ("\n".join(textwrap.wrap(text, name_width)) for text in (full.text, full.below))
        return Cell(full.value, *texts)

    broken = [replace(name, cell=cell)]
    for column, previous in zip(others, columns, strict=False):
        header = column.header.replace(" (", "\n(").replace("difference", "diff.")
        if column.group != previous.group:  # room for the longest word of the group's name
            alone = sum(c.group == column.group for c in others) == 1
            lengths = [*map(len, column.group.split()), min(len(column.group), ALONE) * alone]
            header = header.rjust(max(lengths, default=0))
        broken.append(replace(column, header=header))
    return broken


def _unbroken(column: Column) -> str:
    """Group and header of a column whose header was broken into lines."""
    header = " ".join(column.header.split()).replace("diff.", "difference")
    return ": ".join(filter(None, (column.group, header)))


def _widths(columns: Sequence[Column], records: Sequence[dict[str, Any]]) -> list[int]:
    """Characters each column needs."""
    from rich.cells import cell_len

    widths = []
    for column in columns:
        cells = [column.cell(record).joined("\n") for record in records]
        lines = "\n".join([column.header, column.unit, *cells]).split("\n")
        widths.append(max(map(cell_len, lines)))
    return widths


def _print_rows(
    console: "Console",
    columns: Sequence[Column],
    records: Sequence[dict[str, Any]],
    widths: Sequence[int],
    gap: int,
) -> None:
    """Prints the columns of these widths, `gap` spaces apart, below the names of their groups."""
    from rich.cells import cell_len
    from rich.text import Text

    def say(texts: Sequence[str], style: str, *, header: bool = False) -> None:
        cells = [text.split("\n") for text in texts]
        height = max(map(len, cells))
        for k in range(height):
            line = []
            for column, width, cell in zip(columns, widths, cells, strict=True):
                i = k - (height - len(cell)) * header  # headers end on the last line
                part = cell[i] if 0 <= i < len(cell) else ""
                room = " " * (width - cell_len(part))
                line.append(room + part if column.right else part + room)
            console.print(Text((" " * gap).join(line).rstrip(), style), soft_wrap=True)

    for line in _group_lines(columns, widths, gap):
        console.print(Text(line, "bold"), soft_wrap=True)
    headers = ["\n".join(filter(None, (column.header, column.unit))) for column in columns]
    say(headers, "bold", header=True)
    rule = "-" if console.options.ascii_only else "─"
    console.print(Text(rule * (sum(widths) + gap * (len(widths) - 1))), soft_wrap=True)
    for record in records:
        style = STYLES.get(record.get("state", "measured"), "dim")
        say([column.cell(record).joined("\n") for column in columns], style)


def _group_lines(columns: Sequence[Column], widths: Sequence[int], gap: int) -> list[str]:
    """The names of groups in the middle above their columns, as many lines as the longest takes."""
    blocks: list[tuple[int, list[str]]] = []
    remaining = iter(widths)
    for group, parts in grouped(columns):
        span = sum(next(remaining) for _ in parts) + gap * (len(parts) - 1)
        blocks.append((span, textwrap.wrap(group, span)))
    height = max(len(lines) for _, lines in blocks)
    return [
        (" " * gap)
        .join(([""] * (height - len(lines)) + lines)[k].center(span) for span, lines in blocks)
        .rstrip()
        for k in range(height)
    ]

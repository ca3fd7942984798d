"""A paper's table for people: terminal, Markdown and LaTeX; the HTML page takes its columns."""

import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from experiments.report.forms import Sheet, markdown, print_sheet
from experiments.report.paper import document
from experiments.report.text import (
    MINUS,
    Cell,
    Column,
    count,
    decimal,
    error_digits,
    markdown_text,
    plain,
    whole,
)

if TYPE_CHECKING:
    from rich.console import Console

SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
NAME_WIDTHS = (48, 36, 28, 22, 18)  # characters that a row's name is broken at, as it has to be
DECIMALS = 2  # of figures that were neither tested on images nor printed


def columns(table: Mapping[str, Any], *, costs: bool = False) -> list[Column]:
    """The columns for people; what was printed and measured of one of the table's is its group.

    costs: with depth, size and multiply-adds of the nets trained here, and how they were tested.
    """
    rows = table["rows"]
    found = [Column("row", "", False, lambda row: _name_cell(table, row))]
    if costs:
        for key, header, show in (
            ("depth", "layers", whole),
            ("parameters", "params", count),
            ("macs", "MACs", count),
        ):
            if any(row[key] is not None for row in rows):
                found.append(Column(header, "", True, plain(key, show)))
    for place, column in enumerate(table["columns"]):
        found += _parts(table, column, place)
    if any(_seeds(row) != 1 for row in rows if _seeds(row)):
        found.append(Column("seeds", "", True, _seeds_cell, drop=40))
    if costs and len({row["tested"] for row in rows if row["tested"]}) > 1:
        found.append(Column("tested", "", False, plain("tested", str)))
    return found


def _parts(table: Mapping[str, Any], column: Mapping[str, Any], place: int) -> list[Column]:
    """Printed, measured and difference of a column, those that some row has.

    Measured is there too where nothing was measured yet, if it is printed or nothing is.
    """
    key, group = column["key"], f"{column['header']}, {column['unit']}"
    cells = [row["cells"][key] for row in table["rows"]]
    there = {name: any(cell[name] is not None for cell in cells) for name in cells[0]}
    measurable = bool(column["what"] or column["unit"] == "times")
    parts: list[tuple[str, Callable[[Mapping[str, Any], dict], Cell], int]] = []
    if there["printed"]:
        parts.append(("printed", _printed_cell, 2 * place if measurable else 50 + place))
    wanted = measurable and (there["printed"] or not document.some(table, "printed"))
    if there["measured"] or wanted:
        counted = there["measured"] and not document.trained(table)
        header = "counted" if counted else f"measured ({table['profile']})"
        parts.append((header, _measured_cell, 2 * place))
    if there["difference"]:
        parts.append(("difference", _difference_cell, 100 + place))
    return [
        Column(header, "", True, partial(cell, column), drop, group) for header, cell, drop in parts
    ]


def _name_cell(table: Mapping[str, Any], row: Mapping[str, Any]) -> Cell:
    numbers = document.footnotes(table)
    marks = sorted(numbers[note] for note in document.row_notes(table, row))
    name = " ".join([row["row"], *(str(mark).translate(SUPERSCRIPTS) for mark in marks)])
    return Cell(row["row"], name, document.state_words(row))


def _seeds(row: Mapping[str, Any]) -> int:
    return max((c["measured"]["seeds"] for c in row["cells"].values() if c["measured"]), default=0)


def _seeds_cell(row: dict) -> Cell:
    return Cell(_seeds(row) or None, str(_seeds(row) or ""))


def _printed_cell(column: Mapping[str, Any], row: dict) -> Cell:
    printed = row["cells"][column["key"]]["printed"]
    if not printed:
        return Cell(None, "")
    std, digits = printed["std"], _printed_digits(printed)
    below = "" if std is None else f"± {std:.{digits}f}"
    return Cell(printed["value"], printed["text"].replace("-", MINUS), below)


def _measured_cell(column: Mapping[str, Any], row: dict) -> Cell:
    found = row["cells"][column["key"]]["measured"]
    if not found:
        return Cell(None, "")
    digits = _digits(column, row)
    text, below = decimal(found["value"], digits), ""
    if found["deviation"] is not None:
        text += f" ± {decimal(found['deviation'], digits)}"
    if found["low"] is not None:
        below = f"[{decimal(found['low'], digits)}, {decimal(found['high'], digits)}]"
    return Cell(found["value"], text, below)


def _difference_cell(column: Mapping[str, Any], row: dict) -> Cell:
    value = row["cells"][column["key"]]["difference"]
    return Cell(value, "" if value is None else decimal(value, _digits(column, row), "+"))


def _digits(column: Mapping[str, Any], row: Mapping[str, Any]) -> int:
    """Decimals of errors by how many images there are; of others, one more than is printed."""
    cell = row["cells"][column["key"]]
    if column["unit"] in ("%", "points"):
        n = cell["measured"]["n"]
        return error_digits(n) if n else DECIMALS
    return _printed_digits(cell["printed"]) + 1 if cell["printed"] else DECIMALS


def _printed_digits(printed: Mapping[str, Any]) -> int:
    return len(printed["text"].partition(".")[2])


def _footnotes(table: Mapping[str, Any]) -> list[str]:
    """Each behind its sign."""
    numbers = document.footnotes(table).items()
    return [f"{str(number).translate(SUPERSCRIPTS)} {note}" for note, number in numbers]


# ------------------------------------------------------------------------------- terminal


def to_terminal(table: Mapping[str, Any], console: "Console") -> None:
    """Prints the table on a rich Console; a screen too narrow loses the columns least missed."""
    sentences = document.agreement(table)
    sheet = Sheet(
        table["title"],
        document.origin(table),
        columns(table),
        {"": table["rows"]},
        [
            (note, "red" if note.partition(" ")[2].startswith("failed") else "")
            for note in _footnotes(table)
        ],
        [(line, "" if line in sentences else "dim") for line in document.remarks(table)],
        NAME_WIDTHS,
    )
    print_sheet(sheet, console)


# ------------------------------------------------------------------------------- Markdown


def to_markdown(table: Mapping[str, Any]) -> str:
    """Title, what was printed and measured, table, footnotes and remarks."""
    above = [f"**{markdown_text(line)}**" for line in document.origin(table)]
    below = [markdown_text(line) for line in [*_footnotes(table), *document.remarks(table)]]
    return markdown(table["title"], above, columns(table, costs=True), {"": table["rows"]}, below)


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
    found: list[str] = []
    for sign in text:
        if sign in SIGNS:
            found.append(SIGNS[sign])
            continue
        if sign == "-" and found and found[-1].endswith("-"):  # two would be a dash
            found.append("{}")
        for part in sign if sign.isascii() else unicodedata.normalize("NFKD", sign):
            if part in ACCENTS and found:
                found[-1] = f"\\{ACCENTS[part]}{{{found[-1]}}}"
            else:
                found.append(part if part.isascii() else "?")
    return "".join(found)


LATEX = string.Template(r"""% \usepackage{booktabs}
\begin{table}
\centering
\caption{$caption}
\label{tab:$name}
\small
\begin{tabular}{$columns}
\toprule
$header
\midrule
$rows
\bottomrule
\end{tabular}
\par\medskip
\begin{minipage}{\linewidth}\footnotesize\raggedright
$below\end{minipage}
\end{table}
""")


def to_latex(table: Mapping[str, Any]) -> str:
    """A float with a booktabs table; the caption says what was printed and measured."""
    shown = columns(table)
    caption = " ".join([table["title"].removesuffix(".") + ".", *document.origin(table)])
    return LATEX.substitute(
        caption=latex_text(caption),
        name=table["table"],
        columns="".join("r" if column.right else "l" for column in shown),
        header="\n".join(_latex_header(shown)),
        rows="\n".join(_latex_row([c.cell(row) for c in shown]) for row in table["rows"]),
        below="".join(
            latex_text(line) + "\\par\n" for line in [*_footnotes(table), *document.remarks(table)]
        ),
    )


def _latex_header(shown: Sequence[Column]) -> list[str]:
    """A line of groups, rules below these, and the line of headers."""
    above, rules, place = [], [], 1
    for group, parts in groupby(shown, key=lambda column: column.group):
        size = len(list(parts))
        if group:
            above.append(rf"\multicolumn{{{size}}}{{c}}{{{latex_text(group)}}}")
            rules.append(rf"\cmidrule(lr){{{place}-{place + size - 1}}}")
        else:
            above += [""] * size
        place += size
    below = [latex_text(column.header) for column in shown]
    return [" & ".join(above) + r" \\", " ".join(rules), " & ".join(below) + r" \\"]


def _latex_row(cells: Sequence[Cell]) -> str:
    name, *others = cells
    first = latex_text(name.text) + (f" ({latex_text(name.below)})" if name.below else "")
    if first.startswith(("[", "*")):  # after \\ these would be an option of it
        first = f"{{{first[0]}}}{first[1:]}"
    return " & ".join([first, *(latex_text(c.joined(" ")) for c in others)]) + r" \\"

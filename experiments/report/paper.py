"""A paper's report: its tables with printed beside measured figures, figures and page.

A table's document comes first, which JSON holds unrounded; then the words on it, and its columns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from experiments.papers import recipe
from experiments.papers.measured import RowResult, TableResult
from experiments.papers.table import Column as PaperColumn
from experiments.papers.table import Count
from experiments.report import box_figure, paper_figures
from experiments.report.page import Report
from experiments.report.table import Cell, Column, Table, plain
from experiments.report.text import MINUS, count, decimal, duration, error_digits, rounded
from experiments.runs.results import provenance


def report(results: Sequence[TableResult], title: str) -> Report:
    """All tables of a paper, in one profile. title: the paper."""
    tables = [table(result) for result in results]
    measured = [t for t in tables if _trained(t.document)] or tables
    runs = [run for result in results for row in result.rows for run in row.runs]
    return Report(
        title,
        list(dict.fromkeys((t.document["profile"], t.document["about"]) for t in measured)),
        tables,
        [*paper_figures.draw(results), *box_figure.draw(runs)],
        runs,
    )


def table(result: TableResult) -> Table:
    """The table of a result; what was not measured is blank, and the row's state says why."""
    content = document(result)
    return Table(
        content["title"],
        _columns(content),
        {"": content["rows"]},
        name=content["table"],
        origin=_origin(content),
        notes={
            f"{mark} {note}": note.partition(":")[0] for note, mark in _footnotes(content).items()
        },
        legend=[*_legend(content), *content["notes"]],
        caveat=_caveat(content),
        findings=_agreement(content),
        document=content,
        lines=lines(content),
    )


# ------------------------------------------------------------------------------- the document


def document(result: TableResult) -> dict[str, Any]:
    """Everything about a table that is shown anywhere."""
    table = result.table
    runs = [run for row in result.rows for run in row.runs]
    return {
        "table": table.name,
        "title": table.title,
        "profile": result.profile,
        "papers_recipe": bool(runs) and all(map(recipe.is_papers, runs)),
        "about": result.about,
        "dataset": table.dataset,
        "columns": [asdict(column) for column in table.columns],
        "rows": [_row(row, table.columns) for row in result.rows],
        "agreement": {key: asdict(tau) for key, tau in result.agreement.items()},
        "notes": list(table.notes),
        "runs": {run.folder.name: provenance(run) for run in runs},
    }


def _row(result: RowResult, columns: tuple[PaperColumn, ...]) -> dict[str, Any]:
    row = result.row
    cells = {}
    for column in columns:
        printed, measured = row.printed.get(column.key), result.cells.get(column.key)
        difference = None  # measured less printed, but not where a bound (`>60`) is printed
        if printed and measured and not printed.text.startswith(("<", ">")):
            difference = measured.value - printed.value
        cells[column.key] = {
            "printed": asdict(printed) if printed else None,
            "measured": asdict(measured) if measured else None,
            "difference": difference,
        }
    return {
        "row": row.name,
        "state": result.state,
        "reason": result.reason,
        "note": row.note,
        "seconds": result.seconds,
        "tested": result.tested,
        "counted": isinstance(row.measured, Count),
        **{key: result.costs.get(key) for key, *_ in COSTS},
        "cells": cells,
        "runs": [run.folder.name for run in result.runs],
    }


def lines(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of a document's CSV: one for each row and column."""
    return [_line(content, row, column) for row in content["rows"] for column in content["columns"]]


def _line(
    table: Mapping[str, Any], row: Mapping[str, Any], column: Mapping[str, Any]
) -> dict[str, Any]:
    """A row's figures of one column, in a line of the CSV; None for what there is not."""
    cell = row["cells"][column["key"]]
    printed, measured = cell["printed"] or {}, cell["measured"] or {}
    return {
        **{key: table[key] for key in ("table", "profile", "about", "dataset")},
        "row": row["row"],
        "column": column["key"],
        "unit": column["unit"],
        "printed": printed.get("value"),
        **{f"printed_{key}": printed.get(key) for key in ("text", "std", "source")},
        "measured": measured.get("value"),
        **{k: measured.get(k) for k in ("low", "high", "interval", "deviation", "seeds", "n")},
        "difference": cell["difference"],
        **{key: row[key] for key in ("state", "reason", "tested")},
        "runs": " ".join(row["runs"]),
    }


# ------------------------------------------------------------------------------- words

STATES = {"partly": "partly measured", "measured": ""}
FROM_MEMORY = "memory"  # of a source: nothing that could be read confirmed the figure
TAU = (
    "tau-b is Kendall's: 1 is the same order, −1 the reverse; in brackets its 95% bootstrap "
    "interval over the choice of test images"
)
OVER_SEEDS = ", and of training seeds."
ONE_SEED = ": with one seed a row it does not say what other seeds would give."
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def _figures(table: Mapping[str, Any], kind: str, key: str = "") -> list[Any]:
    """All `printed`, `measured` or `difference` that there are, of one column or of all."""
    cells = (
        cell
        for row in table["rows"]
        for column, cell in row["cells"].items()
        if key in ("", column)
    )
    return [cell[kind] for cell in cells if cell[kind] is not None]


def _trained(table: Mapping[str, Any]) -> bool:
    """Whether some row is of trained nets; others are counted, and are so in every profile."""
    return not all(row["counted"] for row in table["rows"])


def _origin(table: Mapping[str, Any]) -> list[str]:
    """Whose figures these are: what was measured, and what was printed where."""
    profile = f"profile {table['profile']}, {table['about']}"
    if not _figures(table, "measured"):
        measured = f"P{profile[1:]}: nothing was measured here."
    elif _trained(table):
        measured = f"Measured here: {profile}."
    else:
        measured = f"Counted here at the paper's size; nothing is trained ({profile})."
    return [measured, f"Printed: {table['dataset']}; {_sources(table)}."]


def _sources(table: Mapping[str, Any]) -> str:
    """Where the figures were read; with names of rows where it was not the same for all."""
    rows: dict[str, dict[str, None]] = {}
    for row in table["rows"]:
        for cell in row["cells"].values():
            if cell["printed"]:
                rows.setdefault(cell["printed"]["source"], {})[row["row"]] = None
    if not rows:
        return "no figures, but curves"
    common, *others = sorted(rows, key=lambda source: -len(rows[source]))
    words = [f"{_source(source)} ({', '.join(rows[source])})" for source in others]
    return "; ".join([_source(common), *words])


def _source(source: str) -> str:
    if source == FROM_MEMORY:
        return "from memory, unchecked"
    return f"read in {source.strip()}" if source.strip() else "the source is not noted"


def _row_notes(table: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """The notes of a row: its reason, its own note, and those of its printed figures."""
    notes = [f"{row['state']}: {row['reason']}" if row["reason"] else ""]
    notes += [row["note"]] if row["note"] != row["reason"] else []
    printed: dict[str, list[str]] = {}
    for column in table["columns"]:
        figure = row["cells"][column["key"]]["printed"]
        if figure and figure["note"]:
            printed.setdefault(figure["note"], []).append(column["header"])
    printed_count = len([cell for cell in row["cells"].values() if cell["printed"]])
    for note, headers in printed.items():
        which = "" if len(headers) == printed_count else f" {', '.join(headers)}"
        notes.append(f"printed{which}: {note}")
    return list(dict.fromkeys(filter(None, notes)))


def _footnotes(table: Mapping[str, Any]) -> dict[str, str]:
    """The notes of all rows with their signs."""
    notes = dict.fromkeys(note for row in table["rows"] for note in _row_notes(table, row))
    return {note: str(number).translate(SUPERSCRIPTS) for number, note in enumerate(notes, 1)}


def _agreement(table: Mapping[str, Any]) -> list[str]:
    """Whether the rows have the printed order, a sentence a column."""
    order = "Order of the rows, printed against measured"
    return [
        f"{order} ({column['header']}): {_tau(**table['agreement'][column['key']])}."
        for column in table["columns"]
        if column["key"] in table["agreement"]
    ]


def _tau(rows: int, tau: float | None, low: float | None, high: float | None) -> str:
    over = f"over {rows} rows"
    if tau is None:
        return f"all alike {over}, no tau-b"
    if low is None or high is None:
        return f"tau-b {decimal(tau, 2)} {over}, and too little to tell by how much it moves"
    verdict = "not told apart from no order at all"
    if low > 0:
        verdict = "the same order more than the reverse, on other test images too"
    if high < 0:
        verdict = "the reverse order more than the same, on other test images too"
    return f"tau-b {decimal(tau, 2)} [{decimal(low, 2)}, {decimal(high, 2)}] {over}: {verdict}"


def _legend(table: Mapping[str, Any]) -> list[str]:
    """Lines on what intervals, signs, n and tau-b are; some may be empty."""
    measured = _figures(table, "measured")
    intervals = dict.fromkeys(figure["interval"] for figure in measured if figure["interval"])
    signs = [f"In brackets: {'; or '.join(intervals)}."] if intervals else []
    varied = dict.fromkeys(
        figure["seeds"] > 1 for figure in measured if figure["deviation"] is not None
    )
    if varied:
        over = ("training seeds" if seeds else "random splits" for seeds in varied)
        signs.append(f"± is the sample deviation over {', or of one seed over '.join(over)}.")
    if _figures(table, "difference"):
        signs.append(f"Difference: {'measured' if _trained(table) else 'counted'} less printed.")
    if sizes := sorted({figure["n"] for figure in measured if figure["n"] is not None}):
        signs.append(f"n = {' or '.join(f'{n:,}' for n in sizes)} test images.")
    tested = _tested(table)
    if measured and len(tested) == 1 and _trained(table):
        signs.append(f"Tested: {tested.pop()}.")
    lines = [" ".join(signs)]
    if table["agreement"]:
        several = all(figure["seeds"] > 1 for figure in measured if figure["n"] is not None)
        lines.append(TAU + (OVER_SEEDS if several else ONE_SEED))
    return lines


def _tested(table: Mapping[str, Any]) -> set[str]:
    return {row["tested"] for row in table["rows"] if row["tested"]}


def _caveat(table: Mapping[str, Any]) -> str:
    """What a table that wasn't measured as the paper measured it can't say."""
    if table["profile"] == "paper" or not _trained(table) or not _figures(table, "measured"):
        return ""
    if table["papers_recipe"]:
        return (
            f"These runs of the profile {table['profile']} have the paper's recipe. Whether their "
            f"images are those of {table['dataset']} is not checked."
        )
    return (
        f"The profile {table['profile']} is another experiment than the paper's: it says nothing "
        "about whether the printed figures are right."
    )


# ------------------------------------------------------------------------------- columns

DECIMALS = 2  # of figures that were neither tested on images nor printed
COSTS = (("depth", "layers", rounded), ("parameters", "params", count), ("macs", "MACs", count))


def _columns(table: Mapping[str, Any]) -> list[Column]:
    """The row, what the net trained here costs, the table's columns, and how it was tested."""
    rows = table["rows"]
    columns = [Column("row", "", False, partial(_name_cell, table, _footnotes(table)))]
    columns += [
        Column(header, "", True, plain(key, show), wide=True)
        for key, header, show in COSTS
        if any(row[key] is not None for row in rows)
    ]
    for k, column in enumerate(table["columns"]):
        columns += _parts(table, column, k)
    if any(_seeds(row) > 1 for row in rows):
        columns.append(Column("seeds", "", True, _seeds_cell, drop=40))
    if len(_tested(table)) > 1:
        columns.append(Column("tested", "", False, plain("tested", str), wide=True))
    return columns


def _parts(table: Mapping[str, Any], column: Mapping[str, Any], k: int) -> list[Column]:
    """The printed, measured and difference columns of a column, as far as some row has them.

    The measured one stands before anything is measured too, if the column, or none, is printed.
    """
    key, group = column["key"], f"{column['header']}, {column['unit']}"
    printed, measured = (_figures(table, kind, key) for kind in ("printed", "measured"))
    measurable = bool(column["what"] or column["unit"] == "times")
    parts: list[tuple[str, Callable[[Mapping[str, Any], dict[str, Any]], Cell], int]] = []
    if printed:
        parts.append(("printed", _printed_cell, 2 * k if measurable else 50 + k))
    if measured or (measurable and (printed or not _figures(table, "printed"))):
        counted = measured and not _trained(table)
        header = "counted" if counted else f"measured ({table['profile']})"
        parts.append((header, _measured_cell, 2 * k))
    if _figures(table, "difference", key):
        parts.append(("difference", _difference_cell, 100 + k))
    return [
        Column(header, "", True, partial(cell, column), drop, group) for header, cell, drop in parts
    ]


def _name_cell(table: Mapping[str, Any], marks: Mapping[str, str], row: Mapping[str, Any]) -> Cell:
    """The name with the signs of its notes, and its state where it was not measured."""
    signs = [mark for note, mark in marks.items() if note in _row_notes(table, row)]
    state = STATES.get(row["state"], row["state"])
    if row["seconds"] is not None and row["state"] == "on request":
        state += f", about {duration(row['seconds'])} here"
    return Cell(row["row"], " ".join([row["row"], *signs]), state)


def _seeds(row: Mapping[str, Any]) -> int:
    return max((c["measured"]["seeds"] for c in row["cells"].values() if c["measured"]), default=0)


def _seeds_cell(row: dict[str, Any]) -> Cell:
    return Cell(_seeds(row) or None, str(_seeds(row) or ""))


def _printed_cell(column: Mapping[str, Any], row: dict[str, Any]) -> Cell:
    printed = row["cells"][column["key"]]["printed"]
    if not printed:
        return Cell()
    std, digits = printed["std"], _printed_digits(printed)
    below = "" if std is None else f"± {std:.{digits}f}"
    return Cell(printed["value"], printed["text"].replace("-", MINUS), below)


def _measured_cell(column: Mapping[str, Any], row: dict[str, Any]) -> Cell:
    measured = row["cells"][column["key"]]["measured"]
    if not measured:
        return Cell()
    digits = _digits(column, row)
    text, below = decimal(measured["value"], digits), ""
    if measured["deviation"] is not None:
        text += f" ± {decimal(measured['deviation'], digits)}"
    if measured["low"] is not None:
        below = f"[{decimal(measured['low'], digits)}, {decimal(measured['high'], digits)}]"
    return Cell(measured["value"], text, below)


def _difference_cell(column: Mapping[str, Any], row: dict[str, Any]) -> Cell:
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

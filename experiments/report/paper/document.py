"""A paper's table as one document of plain values, which every form of it is made of.

The document is what the JSON file holds, unrounded; the forms for people round it.
"""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from experiments.papers.measured import RowResult, TableResult
from experiments.papers.table import Column, Count
from experiments.report import text
from experiments.report.text import decimal
from experiments.runs.results import RunResult

# Columns of the CSV -> what they mean; one line a row of the table and column that was printed or
# measured.
RAW = {
    "table": "name of the table",
    "profile": "at what size its rows were measured here",
    "about": "data, sizes and widths of the measured figures",
    "dataset": "what the printed figures are of",
    "row": "name of the row",
    "column": "name of the column",
    "unit": "%, points (of percent), M (millions), G (1e9) or times",
    "printed": "the number printed",
    "printed_text": "as it is printed",
    "printed_std": "the deviation printed beside it",
    "printed_source": "where it was read",
    "measured": "the figure measured here; mean over seeds",
    "low": "lower end of the interval",
    "high": "upper end of the interval",
    "interval": "what the interval is",
    "deviation": "sample deviation over seeds",
    "seeds": "number of seeds",
    "n": "test images, each counted once",
    "difference": "measured less printed; empty where a bound is printed",
    "state": "measured, partly, printed only, not run, on request or failed",
    "reason": "why nothing, or not all, was measured",
    "tested": "test protocol",
    "runs": "ids of the runs, separated by spaces",
}


def document(result: TableResult) -> dict[str, Any]:
    """Everything about a table that is shown anywhere."""
    table = result.table
    return {
        "table": table.name,
        "title": table.title,
        "profile": result.profile,
        "about": result.about,
        "dataset": table.dataset,
        "columns": [asdict(column) for column in table.columns],
        "rows": [_row(row, table.columns) for row in result.rows],
        "agreement": {key: asdict(found) for key, found in result.agreement.items()},
        "notes": list(table.notes),
        "runs": {run.folder.name: provenance(run) for row in result.rows for run in row.runs},
    }


def _row(result: RowResult, columns: tuple[Column, ...]) -> dict[str, Any]:
    row = result.row
    cells = {}
    for column in columns:
        printed, measured = row.printed.get(column.key), result.cells.get(column.key)
        less = None  # measured less printed, but not where a bound (`>60`) is printed
        if printed and measured and not printed.text.startswith(("<", ">")):
            less = measured.value - printed.value
        cells[column.key] = {
            "printed": asdict(printed) if printed else None,
            "measured": asdict(measured) if measured else None,
            "difference": less,
        }
    return {
        "row": row.name,
        "state": result.state,
        "reason": result.reason,
        "note": row.note,
        "seconds": result.seconds,
        "tested": result.tested,
        "counted": isinstance(row.measured, Count),
        "depth": result.depth,
        "parameters": result.parameters,
        "macs": result.macs,
        "cells": cells,
        "runs": [run.folder.name for run in result.runs],
    }


def provenance(run: RunResult) -> dict[str, Any]:
    """Where a run's figures come from, and what it cost; None for what the run doesn't tell.

    `device_seconds`: seconds times devices. `training_macs`: those of forward and backward
    pass, counted as three times the forward pass's, for each image trained on.
    """
    told, result = run.run, run.result
    config, seconds = told.get("config", {}), result.get("seconds")
    batch, devices = config.get("train", {}).get("batch_size"), result.get("devices", "")
    images = result["steps"] * batch if batch else None
    number = devices.partition(" x ")[0]
    return {
        "study": told.get("study"),
        "row": told.get("row"),
        "seed": told.get("seed"),
        "seed_from": told.get("seed_from"),
        "finished": result.get("finished"),
        "devices": devices or None,
        "seconds": seconds,
        "device_seconds": seconds * int(number) if seconds and number.isdecimal() else None,
        "images": images,
        "training_macs": 3 * result["macs"] * images if images and result.get("macs") else None,
        "commit": told.get("versions", {}).get("commit"),
        "versions": told.get("versions"),
        "config": config,
    }


def to_csv(table: Mapping[str, Any]) -> str:
    """One line a row of the table and column; an empty field is None."""
    lines = (_line(table, row, column) for row in table["rows"] for column in table["columns"])
    return text.to_csv(RAW, lines)


def _line(
    table: Mapping[str, Any], row: Mapping[str, Any], column: Mapping[str, Any]
) -> dict[str, Any]:
    line = {key: table[key] for key in ("table", "profile", "about", "dataset")}
    line |= {key: row[key] for key in ("row", "state", "reason", "tested")}
    cell = row["cells"][column["key"]]
    line |= {"column": column["key"], "unit": column["unit"], "difference": cell["difference"]}
    if printed := cell["printed"]:
        line |= {"printed": printed["value"]}
        line |= {f"printed_{key}": printed[key] for key in ("text", "std", "source")}
    if measured := cell["measured"]:
        line |= {"measured" if key == "value" else key: of for key, of in measured.items()}
    return line | {"runs": " ".join(row["runs"])}


# What forms for people say in words

STATES = {"partly": "partly measured", "measured": ""}
FROM_MEMORY = "memory"  # of a source: nothing that could be read confirmed the figure
TAU = (
    "tau-b is Kendall's: 1 is the same order, −1 the reverse; in brackets its 95% bootstrap "
    "interval over the choice of test images"
)
OVER_SEEDS = ", and of training seeds."
ONE_SEED = ": with one seed a row it does not say what other seeds would give."


def state_words(row: Mapping[str, Any]) -> str:
    """'' for a row that was measured."""
    words = STATES.get(row["state"], row["state"])
    if row["seconds"] is not None and row["state"] == "on request":
        words += f", about {duration(row['seconds'])} here"
    return words


def duration(seconds: float) -> str:
    """'3:10:00', hours first."""
    return str(timedelta(seconds=max(1, round(seconds))))


def origin(table: Mapping[str, Any]) -> list[str]:
    """Whose figures these are: what was measured, and what was printed where."""
    profile = f"profile {table['profile']}, {table['about']}"
    if not some(table, "measured"):
        measured = f"P{profile[1:]}: nothing was measured here."
    elif trained(table):
        measured = f"Measured here: {profile}."
    else:
        measured = f"Counted here at the paper's size; nothing is trained ({profile})."
    return [measured, f"Printed: {table['dataset']}; {_sources(table)}."]


def trained(table: Mapping[str, Any]) -> bool:
    """Whether some row is of trained nets; others are counted, and are so in every profile."""
    return not all(row["counted"] for row in table["rows"])


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
    words = [f"{_source(other)} ({', '.join(rows[other])})" for other in others]
    return "; ".join([_source(common), *words])


def _source(told: str) -> str:
    if told == FROM_MEMORY:
        return "from memory, unchecked"
    return f"read in {told.strip()}" if told.strip() else "the source is not noted"


def row_notes(table: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """What has to be known of a row: its reason, its note, and those of its printed figures."""
    notes = [f"{row['state']}: {row['reason']}" if row["reason"] else ""]
    notes += [row["note"]] if row["note"] != row["reason"] else []
    printed: dict[str, list[str]] = {}
    for column in table["columns"]:
        found = row["cells"][column["key"]]["printed"]
        if found and found["note"]:
            printed.setdefault(found["note"], []).append(column["header"])
    many = len([c for c in row["cells"].values() if c["printed"]])
    for note, headers in printed.items():
        of = "" if len(headers) == many else f" {', '.join(headers)}"
        notes.append(f"printed{of}: {note}")
    return list(dict.fromkeys(filter(None, notes)))


def footnotes(table: Mapping[str, Any]) -> dict[str, int]:
    """The notes of all rows with their numbers."""
    notes = dict.fromkeys(note for row in table["rows"] for note in row_notes(table, row))
    return {note: number for number, note in enumerate(notes, 1)}


def agreement(table: Mapping[str, Any]) -> list[str]:
    """Whether the rows have the printed order, a sentence a column."""
    sentences = []
    for column in table["columns"]:
        found = table["agreement"].get(column["key"])
        if found:
            order = f"Order of the rows, printed against measured ({column['header']})"
            sentences.append(f"{order}: {_tau(**found)}.")
    return sentences


def _tau(rows: int, tau: float | None, low: float | None, high: float | None) -> str:
    over = f"over {rows} rows"
    if tau is None:
        return f"all alike {over}, no tau-b"
    if low is None or high is None:
        return f"tau-b {decimal(tau, 2)} {over}, and too little to tell by how much it moves"
    words = "not told apart from no order at all"
    if low > 0:
        words = "the same order more than the reverse, on other test images too"
    if high < 0:
        words = "the reverse order more than the same, on other test images too"
    return f"tau-b {decimal(tau, 2)} [{decimal(low, 2)}, {decimal(high, 2)}] {over}: {words}"


def legend(table: Mapping[str, Any]) -> list[str]:
    """What intervals, signs and n are, and tau-b; lines, of which some are empty."""
    found = [c["measured"] for r in table["rows"] for c in r["cells"].values() if c["measured"]]
    intervals = dict.fromkeys(m["interval"] for m in found if m["interval"])
    signs = [f"In brackets: {'; or '.join(intervals)}."] if intervals else []
    if any(m["deviation"] is not None for m in found):
        signs.append("± is the sample deviation over training seeds.")
    if some(table, "difference"):
        signs.append(f"Difference: {'measured' if trained(table) else 'counted'} less printed.")
    if sizes := sorted({m["n"] for m in found if m["n"] is not None}):
        signs.append(f"n = {' or '.join(f'{n:,}' for n in sizes)} test images.")
    tested = {r["tested"] for r in table["rows"] if r["tested"]}
    if found and len(tested) == 1 and trained(table):
        signs.append(f"Tested: {tested.pop()}.")
    lines = [" ".join(signs)]
    if table["agreement"]:
        several = all(m["seeds"] > 1 for m in found if m["n"] is not None)
        lines.append(TAU + (OVER_SEEDS if several else ONE_SEED))
    return lines


def some(table: Mapping[str, Any], key: str) -> bool:
    """Whether some cell has a `printed` or `measured` figure, or a `difference`."""
    cells = (cell for row in table["rows"] for cell in row["cells"].values())
    return any(cell[key] is not None for cell in cells)


def caveat(table: Mapping[str, Any]) -> str:
    """What a table that wasn't measured as the paper measured it can't say."""
    if table["profile"] == "paper" or not trained(table) or not some(table, "measured"):
        return ""
    return (
        f"The profile {table['profile']} is another experiment than the paper's: it says nothing "
        "about whether the printed figures are right."
    )


def remarks(table: Mapping[str, Any]) -> list[str]:
    """What stands below a table, less its footnotes."""
    lines = [*agreement(table), *legend(table), *table["notes"], caveat(table)]
    return list(filter(None, lines))

"""`cnn-depth table --recorded`: printed, recorded and one's own figures, side by side."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import papers, recorded
from experiments.config import ConfigError
from experiments.papers.table import Table as PaperTable
from experiments.report.forms import to_terminal
from experiments.report.table import Cell, Column, Table
from experiments.runs import runs
from experiments.text import visible
from launch.console import say


def show(args: argparse.Namespace) -> int:
    """Prints the tables that the options of `cnn-depth table` name; 1 where nothing is recorded.

    Raises ConfigError for options that do not go with --recorded.
    """
    unused = [name for name in ("plan", "record", "rows", "all", "set") if getattr(args, name)]
    if unused:
        raise ConfigError(f"--recorded prints whole tables and runs nothing: without --{unused[0]}")
    folder = runs.root(args.runs)  # its reports have one's own figures
    documents = [_document(table, folder) for table in papers.named(args.table)]
    if args.json:
        print(json.dumps(documents, indent=1, ensure_ascii=False))
    else:
        for document in documents:
            _print(document)
    return 0 if any(document["recorded"] for document in documents) else 1


def _document(table: PaperTable, folder: Path) -> dict[str, Any]:
    """A table's rows with their printed, recorded and own figures, by column."""
    recorded_rows = recorded.read(table.name)
    own_profile, own = recorded.latest_measured(table.name, table.paper, folder)
    rows = []
    for row in table.rows:
        profiles = recorded_rows.get(row.name) or {"": {"cells": {}, "runs": []}}
        printed, own_cells = row.printed, own.get(row.name, {})
        for profile, entry in profiles.items():
            cells = {
                column.key: {
                    "printed": printed[column.key].text if column.key in printed else None,
                    "recorded": entry["cells"].get(column.key),
                    "own": own_cells.get(column.key),
                }
                for column in table.columns
            }
            printed, own_cells = {}, {}  # in the row's first line only
            rows.append(
                {
                    "row": row.name,
                    "profile": profile,
                    "tested": entry.get("tested", ""),
                    "cells": cells,
                    "runs": entry["runs"],
                }
            )
    return {
        "table": table.name,
        "title": table.title,
        "dataset": table.dataset,
        "columns": {column.key: f"{column.header}, {column.unit}" for column in table.columns},
        "rows": rows,
        "recorded": bool(recorded_rows),
        "own_profile": own_profile,
    }


def _print(document: dict[str, Any]) -> None:
    console = Console()
    title = visible(f"{document['title']} ({document['dataset']})")
    to_terminal(Table(title, _columns(document), {"": document["rows"]}), console)
    if not document["recorded"]:
        say(console, f"Nothing is recorded of {document['table']}.")
        return
    for row in document["rows"]:
        if row["runs"]:
            say(console, _how(row))
    legend = (
        "In brackets: 95% Wilson interval of the test errors of one run; ± is the deviation over "
    )
    say(console, legend + "seeds. --json gives configs, versions and curves.")


def _columns(document: dict[str, Any]) -> list[Column]:
    """The row's column, and for each of the table's the printed, recorded and own figures."""

    def name(row: dict[str, Any]) -> Cell:
        shown = row["profile"] not in ("", "paper")
        return Cell(None, visible(row["row"] + (f" ({row['profile']})" if shown else "")))

    def figure(key: str, whose: str, row: dict[str, Any]) -> Cell:
        value = row["cells"][key][whose]
        return Cell(None, visible((value or "") if whose == "printed" else recorded.text(value)))

    headers = {"printed": "printed", "recorded": "recorded"}
    if document["own_profile"]:
        headers["own"] = f"own ({document['own_profile']})"
    return [
        Column("row", "", False, name),
        *(
            Column(header, "", True, partial(figure, key, whose), drop=place, group=group)
            for place, (key, group) in enumerate(document["columns"].items(), 1)
            for whose, header in headers.items()
        ),
    ]


def _how(row: dict[str, Any]) -> str:
    """How a recorded row was measured, in a line."""
    runs = row["runs"]
    result, config = runs[0]["result"], runs[0]["config"]
    commits = dict.fromkeys(s["versions"].get("commit") for run in runs for s in run["starts"])
    seeds = ", ".join(dict.fromkeys(str(run["seed"]) for run in runs))
    hours = sum(run["result"].get("seconds", 0) for run in runs) / 3600
    # Of nets that are compared by how long they train, the figure is of the lengths.
    of_lengths = len({run["row"] for run in runs}) > 1
    return (
        f"{row['row']}, profile {row['profile']}: {result['data']} at {config['data.image_size']} "
        f"pixels, {recorded.lengths(runs)} epochs of batches of {config['train.batch_size']}; "
        f"{row['tested'] + '; ' if of_lengths else ''}"
        f"n = {result['n']:,}; seed {seeds}; {result['devices']}, {hours:.1f} hours in all; "
        f"commit {', '.join(filter(None, commits))}"
    )

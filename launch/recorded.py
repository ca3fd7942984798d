"""What `cnn-depth table --recorded` prints: printed, recorded and one's own figures, at once."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import papers, recorded
from experiments.text import visible
from launch.console import say

if TYPE_CHECKING:
    from experiments.papers.table import Table


WIDTH = 160


def check(args: argparse.Namespace) -> None:
    """Raises ConfigError for options that --recorded has no use for."""
    given = [name for name in ("plan", "record", "rows", "all", "set") if getattr(args, name)]
    if given:
        from experiments.config import ConfigError

        raise ConfigError(f"--recorded prints whole tables and runs nothing: without --{given[0]}")


def show(names: Sequence[str], folder: Path, as_json: bool) -> int:
    """Prints the tables of these names; 1 where nothing is recorded of any.

    folder: where runs are kept, whose reports have one's own figures.
    """
    tables = papers.named(names)
    documents = [document(table, folder) for table in tables]
    if as_json:
        json.dump(documents, sys.stdout, indent=1, ensure_ascii=False)
        print()
    else:
        for found in documents:
            _print(found)
    return 0 if any(found["recorded"] for found in documents) else 1


def document(table: Table, folder: Path) -> dict[str, Any]:
    """A table's rows with their printed, recorded and own figures, by column."""
    found = recorded.read(table.name)
    profile, own = recorded.own(table.name, table.paper, folder)
    rows = []
    for row in table.rows:
        profiles = found.get(row.name) or {"": {"cells": {}, "runs": []}}
        for place, (of, entry) in enumerate(profiles.items()):
            cells = {}
            for column in table.columns:
                printed = row.printed.get(column.key) if place == 0 else None
                cells[column.key] = {
                    "printed": printed.text if printed else None,
                    "recorded": entry["cells"].get(column.key),
                    "own": own.get(row.name, {}).get(column.key) if place == 0 else None,
                }
            rows.append({"row": row.name, "profile": of, "cells": cells, "runs": entry["runs"]})
    return {
        "table": table.name,
        "title": table.title,
        "dataset": table.dataset,
        "columns": {column.key: f"{column.header}, {column.unit}" for column in table.columns},
        "rows": rows,
        "recorded": bool(found),
        "own_profile": profile,
    }


def _print(found: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Grid

    console = Console()
    if not console.is_terminal:  # a file has room for all of a row
        console = Console(width=WIDTH)
    say(console, f"{found['title']} ({found['dataset']})")
    grid = Grid(box=box.SIMPLE)
    grid.add_column("row")
    for header in found["columns"].values():
        grid.add_column(f"printed\n{header}", justify="right")
        grid.add_column("recorded", justify="right", no_wrap=True)
        if found["own_profile"]:
            grid.add_column(f"own ({found['own_profile']})", justify="right", no_wrap=True)
    for row in found["rows"]:
        cells = []
        for key in found["columns"]:
            cell = row["cells"][key]
            cells += [cell["printed"] or "", recorded.text(cell["recorded"])]
            cells += [recorded.text(cell["own"])] if found["own_profile"] else []
        name = row["row"] + (f" ({row['profile']})" if row["profile"] not in ("", "paper") else "")
        grid.add_row(*(escape(visible(cell)) for cell in (name, *cells)))
    console.print(grid)
    if not found["recorded"]:
        say(console, f"Nothing is recorded of {found['table']}.")
        return
    for row in found["rows"]:
        if row["runs"]:
            say(console, _how(row))
    say(
        console,
        "In brackets: 95% Wilson interval of the test errors of one run; ± is the deviation over "
        "seeds. --json gives configs, versions and curves.",
    )


def _how(row: dict[str, Any]) -> str:
    """How a recorded row was measured, in a line."""
    runs = row["runs"]
    result, config = runs[0]["result"], runs[0]["config"]
    commits = dict.fromkeys(s["versions"].get("commit") for run in runs for s in run["starts"])
    seeds = ", ".join(str(run["seed"]) for run in runs)
    hours = sum(run["result"].get("seconds", 0) for run in runs) / 3600
    return (
        f"{row['row']}, profile {row['profile']}: {result['data']} at {config['data.image_size']} "
        f"pixels, {result['epochs']:g} epochs of batches of {config['train.batch_size']}; "
        f"n = {result['n']:,}; seed {seeds}; {result['devices']}, {hours:.1f} hours in all; "
        f"commit {', '.join(filter(None, commits))}"
    )

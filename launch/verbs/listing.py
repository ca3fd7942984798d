"""`cnn-depth list`: the architectures, experiments and tables there are."""

from __future__ import annotations

import argparse
import ast
import json
import sys
from pathlib import Path
from typing import Any

from launch.patience import waiting

HELP = """\
List the architectures (with variants, depth and paper), the experiments that ship, and the papers'
tables: how many of their rows this software can run, how many are recorded with it (`table NAME
--recorded`), and what was measured in which profile."""
EXAMPLE = """
cnn-depth list
cnn-depth list tables
cnn-depth list architectures --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cnn-depth list`."""
    parser.add_argument(
        "what", nargs="?", choices=("architectures", "experiments", "tables"), help="one kind only"
    )
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="where tables were measured (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def main(args: argparse.Namespace) -> int:
    """Print what there is."""
    with waiting("looking at what there is"):
        found = _found(args)
    if args.json:
        json.dump(found, sys.stdout, indent=2)
        print()
    else:
        _print_tables(found)
    return 0


def _found(args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if args.what in (None, "architectures"):
        found["architectures"] = architectures()
    if args.what in (None, "experiments"):
        found["experiments"] = experiments()
    if args.what in (None, "tables"):
        from experiments.runs import runs

        found["tables"] = tables(runs.root(args.runs))
    return found


def architectures() -> list[dict[str, Any]]:
    """A row per family: name, paper, each variant's depth and the paper's images and classes."""
    import cnn_arch

    return [
        {
            "family": name,
            "variants": {v: cnn_arch.depth(f"{name}:{v}") for v in family.variants},
            "inputs": {v: vars(family.inputs(v)) for v in family.variants},
            "paper": family.paper,
        }
        for name, family in cnn_arch.families().items()
    ]


def experiments() -> list[dict[str, str]]:
    """A row per shipped config file: its name and its docstring's first line."""
    from experiments.config.study import CONFIGS, names

    rows = []
    for name in names():
        text = (CONFIGS / f"{name}.py").read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(text)) or ""
        rows.append({"name": name, "about": docstring.partition("\n")[0]})
    return rows


def tables(folder: Path) -> list[dict[str, Any]]:
    """A row per table: its rows, those that can be run or counted, those that are recorded, and of
    each report in `folder` that holds it, how many of them were measured there."""
    from experiments import papers, recorded

    rows = []
    for table in papers.tables().values():
        measured = {}
        for file in sorted((folder / "reports").glob(f"{table.paper}-*/{table.name}.json")):
            try:
                told = json.loads(file.read_text(encoding="utf-8"))["rows"]
                count = sum(row["state"] in ("measured", "partly") for row in told)
            except (OSError, ValueError, KeyError, TypeError):  # of another version
                continue
            measured[file.parent.name.removeprefix(f"{table.paper}-")] = count
        rows.append(
            {
                "name": table.name,
                "title": table.title,
                "rows": len(table.rows),
                "can_be_run": sum(row.measured is not None for row in table.rows),
                "recorded": len(recorded.read(table.name)),
                "measured": measured,
            }
        )
    return rows


def _print_tables(found: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if "architectures" in found:
        table = Table(title="architectures", title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("family", no_wrap=True)
        table.add_column("variants (weight layers)", overflow="fold")
        table.add_column("paper", overflow="fold")
        for row in found["architectures"]:
            # The CIFAR nets are named by their depth; only other names need it beside them.
            variants = ", ".join(
                name if name == str(depth) else f"{name} ({depth})"
                for name, depth in row["variants"].items()
            )
            table.add_row(
                row["family"],
                variants,
                Text(row["paper"]),
            )
        console.print(table)
    if "experiments" in found:
        table = Table(title="experiments", title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("name", no_wrap=True)
        table.add_column("about", overflow="fold")
        for row in found["experiments"]:
            table.add_row(row["name"], Text(row["about"]))
        console.print(table)
    if "tables" in found:
        table = Table(title="tables", title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("name", no_wrap=True)
        table.add_column("what the paper prints", overflow="fold")
        table.add_column("rows to run", justify="right")
        table.add_column("recorded", justify="right")
        table.add_column("measured", overflow="fold")
        for row in found["tables"]:
            status = ", ".join(f"{name} {count}" for name, count in row["measured"].items())
            runnable = f"{row['can_be_run']} of {row['rows']}"
            recorded = str(row["recorded"] or "")
            table.add_row(row["name"], Text(row["title"]), runnable, recorded, Text(status))
        console.print(table)

"""`cnn-depth list`: the architectures, studies, tables and keys of configs there are."""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from launch.patience import waiting
from launch.verbs.options import add_runs_and_json

HELP = """\
List the architectures (with variants, depth and paper), the studies that ship, and the papers'
tables: how many of their rows this software can run, how many are recorded with it (`table NAME
--recorded`), and what was measured in which profile.

`list keys` prints every key of a config: its default, what it means, what it may be, and whether it
is part of a run's identity, which tells runs apart. `no`: it changes how a run is executed, not
what it computes. The options of the architectures are keys of `model`."""
EXAMPLE = """
cnn-depth list
cnn-depth list tables
cnn-depth list keys
cnn-depth list keys 'schedule.*'
cnn-depth list keys dropout --json
cnn-depth list architectures --json
"""
KINDS = ("architectures", "studies", "tables", "keys")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=KINDS, help="one kind only")
    pattern = "of keys: a part of a name, or a pattern such as 'data.*' (default: all)"
    parser.add_argument("pattern", nargs="?", help=pattern)
    add_runs_and_json(parser, "JSON instead of tables")


def main(args: argparse.Namespace) -> int:
    """Prints the lists. Raises ConfigError for a pattern that fits no key."""
    with waiting("looking at what there is"):
        lists = _lists(args)
    if args.json:
        print(json.dumps(lists, indent=2))
    else:
        _print_tables(lists)
    return 0


def _lists(args: argparse.Namespace) -> dict[str, Any]:
    from experiments.config import ConfigError
    from experiments.runs import runs

    if args.what == "keys":
        return {"keys": keys(args.pattern)}
    if args.pattern:
        raise ConfigError(f"list {args.what} {args.pattern}: only keys are listed by a pattern")
    makers = {
        "architectures": architectures,
        "studies": studies,
        "tables": lambda: tables(runs.root(args.runs)),
    }
    return {name: make() for name, make in makers.items() if args.what in (None, name)}


def keys(pattern: str | None = None) -> list[dict[str, Any]]:
    """A row per key of a config whose name contains `pattern`, or matches it as `data.*` does.

    An option of architectures has a row for each default and meaning, with the architectures that
    have it.

    Raises ConfigError, with the nearest name, where no key fits.
    """
    import fnmatch

    import cnn_arch
    from experiments import config

    archs_by_key: dict[config.Key, list[str]] = {key: [] for key in config.KEYS.values()}
    options: dict[config.Key, list[str]] = {}
    for arch in cnn_arch.variants():
        for key in config.network_keys(arch).values():
            options.setdefault(key, []).append(arch)
    archs_by_key |= dict(sorted(options.items(), key=lambda item: item[0].name))
    rows = [
        {
            "name": key.name,
            "default": key.default,
            "meaning": key.meaning,
            "choices": list(key.choices),
            "bounds": key.bounds and key.bounds._asdict(),
            "values": key.values,
            "identity": key.counts,
            "architectures": archs,
        }
        for key, archs in archs_by_key.items()
        if pattern is None or pattern in key.name or fnmatch.fnmatch(key.name, pattern)
    ]
    if pattern is not None and not rows:
        names = {key.name for key in archs_by_key}
        raise config.ConfigError(config.unknown_key(pattern, names, "list keys"))
    return rows


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


def studies() -> list[dict[str, str]]:
    """A row per study that ships: its name and its docstring's first line."""
    from experiments.config.study import CONFIGS, names

    rows = []
    for name in names():
        text = (CONFIGS / f"{name}.py").read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(text)) or ""
        rows.append({"name": name, "about": docstring.partition("\n")[0]})
    return rows


def tables(folder: Path) -> list[dict[str, Any]]:
    """A row per table: its name, title, and numbers of rows: all, runnable, recorded and measured.

    Measured rows are counted in each report in `folder` that holds the table.
    """
    from experiments import papers, recorded

    rows = []
    for table in papers.tables().values():
        measured = {}
        for file in sorted((folder / "reports").glob(f"{table.paper}-*/{table.name}.json")):
            try:
                report_rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
                count = sum(row["state"] in ("measured", "partly") for row in report_rows)
            except (OSError, ValueError, KeyError, TypeError):  # a report of another version
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


def _print_tables(lists: dict[str, list[dict[str, Any]]]) -> None:
    if "architectures" in lists:
        rows = ([row["family"], _variants(row), row["paper"]] for row in lists["architectures"])
        _print("architectures", ["family", "variants (weight layers)", "paper"], rows)
    if "studies" in lists:
        about = ([row["name"], row["about"]] for row in lists["studies"])
        _print("studies", ["name", "about"], about)
    if "tables" in lists:
        rows = (
            [
                row["name"],
                row["title"],
                f"{row['can_be_run']} of {row['rows']}",
                str(row["recorded"] or ""),
                ", ".join(f"{name} {count}" for name, count in row["measured"].items()),
            ]
            for row in lists["tables"]
        )
        columns = ["name", "what the paper prints", "rows to run", "recorded", "measured"]
        _print("tables", columns, rows, right=("rows to run", "recorded"))
    for row in lists.get("keys", ()):
        _print_key(row)


def _variants(row: dict[str, Any]) -> str:
    """The variants with their depths. The name of a CIFAR net is its depth, and not repeated."""
    return ", ".join(
        name if name == str(depth) else f"{name} ({depth})"
        for name, depth in row["variants"].items()
    )


def meaning(row: dict[str, Any]) -> str:
    """A key's meaning and, of an option, the architectures or whole families that have it."""
    import cnn_arch

    variants_by_family: dict[str, list[str]] = {}
    for name in row["architectures"]:
        family, _, variant = name.partition(":")
        variants_by_family.setdefault(family, []).append(variant)
    families = cnn_arch.families()
    archs = [
        family if len(names) == len(families[family].variants) else f"{family}:{','.join(names)}"
        for family, names in variants_by_family.items()
    ]
    return f"{row['meaning']} ({', '.join(archs)})" if archs else row["meaning"]


def _print_key(row: dict[str, Any]) -> None:
    """Prints a key and its default; below it its meaning, values and part in a run's identity."""
    import textwrap

    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(f"{row['name']} = {row['default']!r}", style="bold"))
    for text in (meaning(row), f"{row['values']}; identity: {row['identity']}"):
        for line in textwrap.wrap(text, max(20, console.width - 4)):
            console.print(f"    {line}", markup=False, soft_wrap=True)


def _print(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()
) -> None:
    """Prints a table. Names are not broken, columns in `right` are aligned right, others fold."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(
            column,
            no_wrap=i == 0,
            overflow="ellipsis" if i == 0 or column in right else "fold",
            justify="right" if column in right else "left",
        )
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)

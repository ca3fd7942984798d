"""`cnn-depth status`: how the rows of a runs folder stand, on whatever machine they run."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from launch.patience import waiting
from launch.verbs.options import add_options, add_runs_and_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from launch.row_states import Rows, RowState

HELP = """\
Show how runs stand, from any machine that sees their folder: state, step, loss, error, rate, time
left, node, and why a row failed or waits. It reads the runs' folders and asks Slurm, once, about
those that were given to it; no process of ours has to be alive.

WORD names rows: a run's id or a part of it, a row, STUDY/ROW, a study, a state (failed, running,
...), or a pattern such as 'vgg_depth/*seed 2*'.

Of more than 40 rows, those that run or need a look are shown (of each of running, stopping, failed,
lost and unreadable, up to 30), of queued, blocked, interrupted, cancelled and untouched rows the
first three, of finished rows the three that ended last; the others are counted. --all shows every
row.

Loss and error of a finished row are those of its training images and test images; of another, the
latest training batches'. Of images of several classes each, the error is 100 minus the mean average
precision."""
EXAMPLE = """
cnn-depth status
cnn-depth status failed lost
cnn-depth status --study vgg_depth --watch 10
cnn-depth status 'resnet-*' --json
"""

FEW = 40  # rows that are shown whatever their states
SHOWN = {"running": 30, "stopping": 30, "failed": 30, "lost": 30, "unreadable": 30}
OTHERS = 3  # rows of any other state
STYLES = {
    "running": "green",
    "stopping": "yellow",
    "failed": "red",
    "lost": "red",
    "unreadable": "red",
    "blocked": "yellow",
    "finished": "",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    words = "only rows that one of these names (default: all)"
    parser.add_argument("word", nargs="*", metavar="WORD", help=words)
    options = {
        "--study NAME": "only rows of this study",
        "--all": "show every row, however many",
        "--watch SECONDS": "look again every SECONDS, until no row is running, queued or stopping",
    }
    add_options(parser, options)
    add_runs_and_json(parser, "every row as JSON")


def main(args: argparse.Namespace) -> int:
    """Prints the rows; 0 however they stand."""
    looks = _looks(args)
    if args.json:
        for found in looks:  # with --watch, one document a line
            print(json.dumps(_as_json(found), indent=None if args.watch else 1), flush=True)
        return 0
    from rich.console import Console

    console = Console()
    with waiting("looking at the runs"):
        found = next(looks)
    if console.is_terminal and args.watch and any(row.active for row in found.rows):
        found = _live(console, args, found, looks)
    _print(console, args, found)
    for found in looks:
        console.print()
        _print(console, args, found)
    return 0


def _looks(args: argparse.Namespace) -> Iterator[Rows]:
    """What a look finds; with --watch, that of each look until no row is active."""
    while True:
        found = _read(args)
        yield found
        if not args.watch or not any(row.active for row in found.rows):
            return
        time.sleep(args.watch)


def _read(args: argparse.Namespace) -> Rows:
    from dataclasses import replace

    from experiments.runs import names as run_names
    from experiments.runs import runs
    from experiments.runs.state import STATES
    from launch import row_states

    found = row_states.read(runs.root(args.runs))
    some = found.rows
    if args.study:
        some = run_names.of_study(args.study, some, found.folder)
    if args.word:
        named: set[str] = set()
        for word in args.word:
            fits = [row for row in some if word in (row.state, row.study)] or (
                [] if word in STATES else run_names.matches(word, some)
            )
            if not fits and word not in STATES:
                run_names.find([word], some, found.folder)  # says what there is
            named.update(row.run for row in fits)
        some = [row for row in some if row.run in named]
    return replace(found, rows=some)


def _as_json(found: Rows) -> dict[str, Any]:
    """Folder, what Slurm said, how many rows stand so, and the rows."""
    from dataclasses import asdict

    from launch.row_states import count

    rows = [
        {"run": row.run, "name": row.name, **asdict(row), "folder": str(row.folder)}
        for row in found.rows
    ]
    return {
        "folder": str(found.folder),
        "time": time.time(),
        "slurm": found.slurm,
        "counts": count(found.rows),
        "rows": rows,
    }


def _live(console: Console, args: argparse.Namespace, found: Rows, looks: Iterator[Rows]) -> Rows:
    """Shows the rows anew on the whole screen; what the last look found."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    def screen(found: Rows) -> Group:
        said = f"{time.strftime('%H:%M:%S')}, every {args.watch:g} s; Ctrl-C ends this"
        # The end matters most where a screen is short.
        *table, summary = _shown(found, args.all, console)
        return Group(summary, Text(said, "dim"), *table)

    with Live(screen(found), console=console, screen=True, auto_refresh=False) as live:
        for found in looks:
            live.update(screen(found), refresh=True)
    return found


# The table.


class Column(NamedTuple):
    """`drop` > 0: left out first (highest number first) on a narrow screen."""

    header: str
    right: bool
    cell: Callable[[RowState], str]
    drop: int = 0


def _state(row: RowState) -> str:
    """Of a running row that does not train, what it does."""
    return row.doing if row.state == "running" and row.doing not in ("", "training") else row.state


def _step(row: RowState) -> str:
    if row.step is None:
        return ""
    if not row.steps or row.step == row.steps:
        return f"{row.step:,}"
    return f"{row.step:,} of {row.steps:,} {100 * row.step // row.steps:3}%"


def _loss(row: RowState) -> str:
    """Three decimals, of small losses two digits."""
    if row.loss is None:
        return ""
    return f"{row.loss:.3f}" if row.loss >= 0.01 or row.loss == 0 else f"{row.loss:.1g}"


def _where(row: RowState) -> str:
    """The node of a row at work; why a queued one waits, as squeue shows it."""
    if row.state == "queued":
        return f"({row.reason})"
    return row.node if row.state != "finished" else ""


def _columns(rows: Sequence[RowState]) -> list[Column]:
    from experiments.text import clock, visible

    names = [(row.study, row.name) for row in rows]
    # Rows of one name differ in their configs, and only the id tells them apart.
    drop_run = 0 if len(set(names)) < len(names) else 3
    return [
        Column("row", False, lambda row: row.name),
        Column("run", False, lambda row: visible(row.run), drop_run),
        Column("state", False, _state),
        Column("step", True, _step),
        Column("loss", True, _loss, 2),
        Column("error, %", True, lambda row: "" if row.error is None else f"{row.error:.1f}"),
        Column("images/s", True, lambda row: "" if row.rate is None else f"{row.rate:,.0f}", 4),
        Column("left", True, lambda row: "" if row.left is None else clock(row.left)),
        Column("node or (why it waits)", False, _where, 1),
    ]


def _print(console: Console, args: argparse.Namespace, found: Rows) -> None:
    for part in _shown(found, args.all, console):
        console.print(part, soft_wrap=True)


def _shown(found: Rows, every: bool, console: Console) -> list[RenderableType]:
    """What is printed: a table a study, the reasons below it, and a summary line last."""
    from itertools import groupby

    from rich.text import Text

    from experiments.text import visible
    from launch.row_states import counted

    if not found.rows:
        return [Text(f"no rows in {visible(str(found.folder))}")]
    rows = found.rows if every else _selected(found.rows)
    width = console.width if console.is_terminal else 10_000  # a file or a pipe takes any
    columns = _fitting(_columns(rows), rows, width)
    widths = [_wide(column, rows) for column in columns]
    parts: list[RenderableType] = []
    picked = {row.run for row in rows}
    for study, all_of in groupby(found.rows, key=lambda row: row.study):
        of_study = list(all_of)
        chosen = [row for row in of_study if row.run in picked]
        hidden = [row for row in of_study if row.run not in picked]
        parts.append(Text(study or "(no study)", "bold"))
        if chosen:
            lines = [Text(_line([c.header for c in columns], columns, widths), "bold")]
            for row in chosen:
                line = _line([c.cell(row) for c in columns], columns, widths)
                lines.append(Text(line, STYLES.get(row.state, "dim")))
            parts.append(Text("\n").join(lines))
        if hidden:
            more = f"and {len(hidden):,} more" if chosen else f"{len(hidden):,} rows"
            parts.append(Text(f"{more}: {counted(hidden)}", "dim"))
        parts += [Text(reason, STYLES.get(state, "dim")) for state, reason in _reasons(chosen)]
        parts.append(Text(""))
    parts.append(_summary(found, len(rows) < len(found.rows)))
    return parts


def _selected(rows: Sequence[RowState]) -> list[RowState]:
    """Of many rows, those that matter first; see HELP."""
    if len(rows) <= FEW:
        return list(rows)
    by_state: dict[str, list[RowState]] = {}
    for row in rows:
        by_state.setdefault(row.state, []).append(row)
    picked: set[str] = set()
    for state, some in by_state.items():
        most = SHOWN.get(state, OTHERS)
        if state == "finished":
            some = sorted(some, key=lambda row: row.ended)[-most:]
        picked.update(row.run for row in some[:most])
    return [row for row in rows if row.run in picked]


def _reasons(rows: Sequence[RowState]) -> list[tuple[str, str]]:
    """(state, sentence) of rows that say why; those of one state and reason together."""
    names: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.reason and row.state != "queued":
            names.setdefault((row.state, row.reason), []).append(row.name)
    found = []
    for (state, reason), of in names.items():
        more = f" and {len(of) - 3} more" if len(of) > 3 else ""
        found.append((state, f"{'; '.join(of[:3])}{more}: {state}, {reason}"))
    return found


def _summary(found: Rows, hidden: bool) -> RenderableType:
    from rich.text import Text

    from launch.row_states import counted

    rate = sum(row.rate or 0 for row in found.rows if row.state == "running")
    parts = [f"{len(found.rows):,} row{'s' * (len(found.rows) != 1)}: {counted(found.rows)}"]
    if rate:
        parts.append(f"{rate:,.0f} images/s in all")
    if hidden:
        parts.append("--all shows every row")
    text = Text("; ".join(parts))
    if found.slurm == "does not answer":
        told = "\nSlurm does not answer here: states are from the runs' folders alone"
        text.append(told, "yellow")
    return text


def _wide(column: Column, rows: Sequence[RowState]) -> int:
    return max(len(column.header), *(len(column.cell(row)) for row in rows))


def _fitting(columns: list[Column], rows: Sequence[RowState], width: int) -> list[Column]:
    """The columns that have room, and of those only such that hold something."""
    kept = [c for c in columns if any(c.cell(row) for row in rows)]
    while sum(_wide(c, rows) for c in kept) + 2 * (len(kept) - 1) > width:
        least = max(kept, key=lambda column: column.drop)
        if not least.drop:
            break
        kept.remove(least)
    return kept


def _line(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    parts = zip(cells, columns, widths, strict=True)
    return "  ".join(c.rjust(w) if column.right else c.ljust(w) for c, column, w in parts).rstrip()

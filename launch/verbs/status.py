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

FEW = 40  # so many rows are all shown, whatever their states
# Of more rows, how many of each state are shown.
SHOWN = {"running": 30, "stopping": 30, "failed": 30, "lost": 30, "unreadable": 30}
OTHERS = 3  # of any other state
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
    word_help = "only rows that one of these names (default: all)"
    parser.add_argument("word", nargs="*", metavar="WORD", help=word_help)
    options = {
        "--study NAME": "only rows of this study",
        "--all": "show every row, however many",
        "--watch SECONDS": "look again every SECONDS, until no row is running, queued or stopping",
    }
    add_options(parser, options)
    add_runs_and_json(parser, "every row as JSON")


def main(args: argparse.Namespace) -> int:
    """Prints the rows. Returns 0 whatever their states."""
    looks = _looks(args)
    if args.json:
        for overview in looks:  # with --watch, one document a line
            print(json.dumps(_as_json(overview), indent=None if args.watch else 1), flush=True)
        return 0
    from rich.console import Console

    console = Console()
    with waiting("looking at the runs"):
        overview = next(looks)
    if console.is_terminal and args.watch and any(row.active for row in overview.rows):
        overview = _live(console, args, overview, looks)
    _print(console, args, overview)
    for overview in looks:
        console.print()
        _print(console, args, overview)
    return 0


def _looks(args: argparse.Namespace) -> Iterator[Rows]:
    """Yields the rows as they stand; with --watch again and again, until no row is active."""
    while True:
        overview = _read(args)
        yield overview
        if not args.watch or not any(row.active for row in overview.rows):
            return
        time.sleep(args.watch)


def _read(args: argparse.Namespace) -> Rows:
    from dataclasses import replace

    from experiments.runs import names as run_names
    from experiments.runs import runs
    from experiments.runs.state import STATES
    from launch import row_states

    overview = row_states.read(runs.root(args.runs))
    rows = overview.rows
    if args.study:
        rows = run_names.of_study(args.study, rows, overview.folder)
    if args.word:
        named_ids: set[str] = set()
        for word in args.word:
            matching = [row for row in rows if word in (row.state, row.study)] or (
                [] if word in STATES else run_names.matches(word, rows)
            )
            if not matching and word not in STATES:
                run_names.find([word], rows, overview.folder)  # raises, with the names there are
            named_ids.update(row.run for row in matching)
        rows = [row for row in rows if row.run in named_ids]
    return replace(overview, rows=rows)


def _as_json(overview: Rows) -> dict[str, Any]:
    """The folder, whether Slurm answered, the number of rows of each state, and the rows."""
    from dataclasses import asdict

    from launch.row_states import count

    rows = [
        {"run": row.run, "name": row.name, **asdict(row), "folder": str(row.folder)}
        for row in overview.rows
    ]
    return {
        "folder": str(overview.folder),
        "time": time.time(),
        "slurm": overview.slurm,
        "counts": count(overview.rows),
        "rows": rows,
    }


def _live(
    console: Console, args: argparse.Namespace, overview: Rows, looks: Iterator[Rows]
) -> Rows:
    """Shows the rows on the whole screen at every look. Returns those of the last look."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    def screen(overview: Rows) -> Group:
        hint = f"{time.strftime('%H:%M:%S')}, every {args.watch:g} s; Ctrl-C ends this"
        # The summary comes first here, as a short screen cuts off the end.
        *table, summary = _shown(overview, args.all, console)
        return Group(summary, Text(hint, "dim"), *table)

    with Live(screen(overview), console=console, screen=True, auto_refresh=False) as live:
        for overview in looks:
            live.update(screen(overview), refresh=True)
    return overview


# The table.


class Column(NamedTuple):
    """A column of the table."""

    header: str
    right: bool  # aligned right
    cell: Callable[[RowState], str]
    drop: int = 0  # > 0: may be left out on a narrow screen, the highest number first


def _state(row: RowState) -> str:
    """The state of a row; of a running one that does not train, what it does."""
    return row.doing if row.state == "running" and row.doing not in ("", "training") else row.state


def _step(row: RowState) -> str:
    if row.step is None:
        return ""
    if not row.steps or row.step == row.steps:
        return f"{row.step:,}"
    return f"{row.step:,} of {row.steps:,} {100 * row.step // row.steps:3}%"


def _loss(row: RowState) -> str:
    """The loss with three decimals; below 0.01 with one digit."""
    if row.loss is None:
        return ""
    return f"{row.loss:.3f}" if row.loss >= 0.01 or row.loss == 0 else f"{row.loss:.1g}"


def _where(row: RowState) -> str:
    """The node of a row, or why a queued one waits, as squeue shows it."""
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


def _print(console: Console, args: argparse.Namespace, overview: Rows) -> None:
    for part in _shown(overview, args.all, console):
        console.print(part, soft_wrap=True)


def _shown(overview: Rows, show_all: bool, console: Console) -> list[RenderableType]:
    """What is printed: of each study a table and the reasons below it; then a summary line."""
    from itertools import groupby

    from rich.text import Text

    from experiments.text import visible
    from launch.row_states import counted

    if not overview.rows:
        return [Text(f"no rows in {visible(str(overview.folder))}")]
    rows = overview.rows if show_all else _selected(overview.rows)
    width = console.width if console.is_terminal else 10_000  # files and pipes have no width
    columns = _fitting(_columns(rows), rows, width)
    widths = [_wide(column, rows) for column in columns]
    parts: list[RenderableType] = []
    selected_ids = {row.run for row in rows}
    for study, group in groupby(overview.rows, key=lambda row: row.study):
        of_study = list(group)
        selected = [row for row in of_study if row.run in selected_ids]
        hidden = [row for row in of_study if row.run not in selected_ids]
        parts.append(Text(study or "(no study)", "bold"))
        if selected:
            lines = [Text(_line([c.header for c in columns], columns, widths), "bold")]
            for row in selected:
                line = _line([c.cell(row) for c in columns], columns, widths)
                lines.append(Text(line, STYLES.get(row.state, "dim")))
            parts.append(Text("\n").join(lines))
        if hidden:
            more = f"and {len(hidden):,} more" if selected else f"{len(hidden):,} rows"
            parts.append(Text(f"{more}: {counted(hidden)}", "dim"))
        parts += [Text(reason, STYLES.get(state, "dim")) for state, reason in _reasons(selected)]
        parts.append(Text(""))
    parts.append(_summary(overview, len(rows) < len(overview.rows)))
    return parts


def _selected(rows: Sequence[RowState]) -> list[RowState]:
    """The rows that are shown: all of few, else some of each state; see HELP."""
    if len(rows) <= FEW:
        return list(rows)
    by_state: dict[str, list[RowState]] = {}
    for row in rows:
        by_state.setdefault(row.state, []).append(row)
    selected_ids: set[str] = set()
    for state, group in by_state.items():
        limit = SHOWN.get(state, OTHERS)
        if state == "finished":
            group = sorted(group, key=lambda row: row.ended)[-limit:]
        selected_ids.update(row.run for row in group[:limit])
    return [row for row in rows if row.run in selected_ids]


def _reasons(rows: Sequence[RowState]) -> list[tuple[str, str]]:
    """(state, sentence) for each state and reason that rows have, with the rows' names."""
    names_by_reason: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.reason and row.state != "queued":
            names_by_reason.setdefault((row.state, row.reason), []).append(row.name)
    sentences = []
    for (state, reason), names in names_by_reason.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        sentences.append((state, f"{'; '.join(names[:3])}{more}: {state}, {reason}"))
    return sentences


def _summary(overview: Rows, hidden: bool) -> RenderableType:
    from rich.text import Text

    from launch.row_states import counted

    rows = overview.rows
    rate = sum(row.rate or 0 for row in rows if row.state == "running")
    parts = [f"{len(rows):,} row{'s' * (len(rows) != 1)}: {counted(rows)}"]
    if rate:
        parts.append(f"{rate:,.0f} images/s in all")
    if hidden:
        parts.append("--all shows every row")
    text = Text("; ".join(parts))
    if overview.slurm == "does not answer":
        warning = "\nSlurm does not answer here: states are from the runs' folders alone"
        text.append(warning, "yellow")
    return text


def _wide(column: Column, rows: Sequence[RowState]) -> int:
    return max(len(column.header), *(len(column.cell(row)) for row in rows))


def _fitting(columns: list[Column], rows: Sequence[RowState], width: int) -> list[Column]:
    """The columns that hold something, without those that a screen of `width` has no room for."""
    fitting = [c for c in columns if any(c.cell(row) for row in rows)]
    while sum(_wide(c, rows) for c in fitting) + 2 * (len(fitting) - 1) > width:
        least_needed = max(fitting, key=lambda column: column.drop)
        if not least_needed.drop:
            break
        fitting.remove(least_needed)
    return fitting


def _line(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    parts = zip(cells, columns, widths, strict=True)
    return "  ".join(c.rjust(w) if column.right else c.ljust(w) for c, column, w in parts).rstrip()

"""`cnn-depth cancel`: ends runs wherever they are; their checkpoints stay."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launch.verbs.options import add_options, add_runs_and_json

if TYPE_CHECKING:
    from launch.row_states import Rows, RowState

HELP = """\
End runs that run or are queued, on Slurm (one call for all of them) and on this machine, and keep
rows that they seed from starting. What they saved stays: `cnn-depth retry` or the command that
started them goes on from there. What is finished is never touched.

ROW is a run's id or a part that only it has, a row's name ('B', 'B (seed 2)'), STUDY/ROW, or a
pattern such as 'vgg_depth/*'."""
EXAMPLE = """
cnn-depth cancel vgg_depth/E
cnn-depth cancel 'E (seed *'
cnn-depth cancel --study vgg_depth
"""

NAMES = 10  # rows that a line lists by name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_row_arguments(parser)
    add_runs_and_json(parser, "what was done as JSON")


def add_row_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name rows; `cnn-depth retry` has them too."""
    parser.add_argument("row", nargs="*", metavar="ROW", help="rows or runs; see above")
    options = {"--study NAME": "all rows of this study", "--all": "all rows of the folder"}
    add_options(parser, options)


def named_rows(args: argparse.Namespace) -> tuple[Rows, list[RowState]]:
    """All rows of the folder, and those that the options name.

    Raises RunError where the options name no row, or name rows in more than one way.
    """
    from experiments.runs import names, runs
    from launch import row_states

    overview = row_states.read(runs.root(args.runs))
    selectors = sum([bool(args.row), args.study is not None, args.all])
    if selectors != 1:
        raise runs.RunError("expected rows, or --study NAME, or --all" + " alone" * (selectors > 1))
    if args.all:
        return overview, overview.rows
    if args.study is not None:
        return overview, names.of_study(args.study, overview.rows, overview.folder)
    return overview, names.find(args.row, overview.rows, overview.folder)


def main(args: argparse.Namespace) -> int:
    """Returns 0 when every named row that runs or is queued is being ended, else 1."""
    from launch import row_states

    overview, named = named_rows(args)
    active = [row for row in named if row.active]
    failed = cancel(active, overview.rows)
    ended = [row for row in active if row.run not in failed]
    stuck = seeded_by(ended, overview.rows)
    if args.json:
        document = {
            "cancelled": [row.run for row in ended],
            "not_cancelled": failed,
            "will_not_run": [row.run for row in stuck],
        }
        print(json.dumps(document, indent=1))
        return 1 if failed else 0
    outcomes = {
        "running": "saves and ends",
        "stopping": "was ending already",
        "queued": "was queued",
    }
    for state, outcome in outcomes.items():
        if group := [row for row in ended if row.state == state]:
            print(f"cancelled, {outcome}: {listed(group)}")
    if stuck:
        print(f"will not run, as these seed them: {listed(stuck)}")
    if inactive := [row for row in named if not row.active]:
        names = f" ({listed(inactive)})" if len(inactive) <= NAMES else ""
        print(f"not touched: {row_states.counted(inactive)}{names}")
    for run, reason in failed.items():
        print(f"cnn-depth: {run} can't be cancelled: {reason}", file=sys.stderr)
    return 1 if failed else 0


def cancel(active: Sequence[RowState], rows: Sequence[RowState]) -> dict[str, str]:
    """Ends rows that run or are queued. Returns run id -> reason for each row that can't be ended.

    rows: all rows of the folder. A job with other active rows goes on with them, and ends the
    cancelled row itself. Rows are marked first, as a worker that is told to end reads the mark.
    """
    from experiments.runs import runs
    from launch import row_states
    from launch.executors import squeue

    failed = {row.run: reason for row in active if (reason := _out_of_reach(row))}
    for row in [row for row in active if row.run not in failed]:
        try:
            mark = {"time": time.time(), "by": row_states.user()}
            runs.write_json(row.folder / "cancelled.json", mark)
        except runs.RunError as error:
            failed[row.run] = str(error)
    reachable = [row for row in active if row.run not in failed]
    reachable_ids = {row.run for row in reachable}
    shared = {row.job for row in rows if row.active and row.run not in reachable_ids}
    job_of = {row.run: row.job for row in reachable if row.in_slurm and row.job not in shared}
    try:
        refused = squeue.cancel(set(job_of.values()))
    except squeue.SlurmError as error:
        refused = dict.fromkeys(job_of.values(), str(error))
    failed |= {run: refused[job] for run, job in job_of.items() if job in refused}
    for row in reachable:
        if not row.in_slurm and (reason := _terminate(row)):
            failed[row.run] = reason
    for row in reachable:
        if row.run in failed:
            (row.folder / "cancelled.json").unlink(missing_ok=True)
    return failed


def seeded_by(ended: Sequence[RowState], rows: Sequence[RowState]) -> list[RowState]:
    """The unfinished rows that can't run, as they wait for one of `ended`."""
    gone = {row.run for row in ended if not row.trained}
    waiting = [row for row in rows if not row.trained and row.step is None]
    stuck: list[RowState] = []
    while seeded := [row for row in waiting if row.seeding_run in gone and row.run not in gone]:
        gone.update(row.run for row in seeded)
        stuck += seeded
    return stuck


def _out_of_reach(row: RowState) -> str:
    """Why a row can't be ended from here; empty if it can be."""
    from experiments.runs import runs, state

    if row.in_slurm:
        return ""
    if row.unsure:
        return f"Slurm does not answer here, and it was given job {row.job}"
    holder = state.holder(row.folder)
    this_host = socket.gethostname()
    if runs.Run(row.folder).locked():
        if holder is None:
            return f"the file {row.folder / 'lock'} does not say which process is at work"
        if holder[1] == this_host:
            return ""
    host = row.node or (holder[1] if holder else "another machine")
    return f"it runs on {host}, and this is {this_host}; cancel it there"


def _terminate(row: RowState) -> str:
    """Asks the local process that holds a run's lock to save and end.

    Returns why that is not possible; empty if it is.
    """
    from experiments.runs import runs, state

    holder = state.holder(row.folder)
    if holder is None or not runs.Run(row.folder).locked():
        return ""  # it has just ended by itself
    try:
        os.kill(holder[0], signal.SIGTERM)
    except ProcessLookupError:
        return f"process {holder[0]} is not there, yet holds {row.folder / 'lock'}"
    except PermissionError:
        return f"process {holder[0]} belongs to another user"
    return ""


def listed(rows: Sequence[RowState]) -> str:
    """The names of rows; of many, the first."""
    names = ", ".join(row.name for row in rows[:NAMES])
    return names + (f" and {len(rows) - NAMES} more" if len(rows) > NAMES else "")

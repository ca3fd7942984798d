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

NAMES = 10  # that a line lists


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_row_arguments(parser)
    add_runs_and_json(parser, "what was done as JSON")


def add_row_arguments(parser: argparse.ArgumentParser) -> None:
    """Which rows; shared with `cnn-depth retry`."""
    parser.add_argument("row", nargs="*", metavar="ROW", help="rows or runs; see above")
    options = {"--study NAME": "all rows of this study", "--all": "all rows of the folder"}
    add_options(parser, options)


def asked(args: argparse.Namespace) -> tuple[Rows, list[RowState]]:
    """All rows of the folder, and those that the options name.

    Raises RunError where they name none, or too much.
    """
    from experiments.runs import names, runs
    from launch import row_states

    found = row_states.read(runs.root(args.runs))
    given = sum([bool(args.row), args.study is not None, args.all])
    if given != 1:
        raise runs.RunError("expected rows, or --study NAME, or --all" + " alone" * (given > 1))
    if args.all:
        return found, found.rows
    if args.study is not None:
        return found, names.of_study(args.study, found.rows, found.folder)
    return found, names.find(args.row, found.rows, found.folder)


def main(args: argparse.Namespace) -> int:
    """0 when everything named that runs or is queued is being ended, 1 if some could not be."""
    from launch import row_states

    found, named = asked(args)
    active = [row for row in named if row.active]
    failed = cancel(active, found.rows)
    ended = [row for row in active if row.run not in failed]
    stuck = seeded_by(ended, found.rows)
    if args.json:
        told = {
            "cancelled": [row.run for row in ended],
            "not_cancelled": failed,
            "will_not_run": [row.run for row in stuck],
        }
        print(json.dumps(told, indent=1))
        return 1 if failed else 0
    was = {"running": "saves and ends", "stopping": "was ending already", "queued": "was queued"}
    for state, how in was.items():
        if some := [row for row in ended if row.state == state]:
            print(f"cancelled, {how}: {listed(some)}")
    if stuck:
        print(f"will not run, as these seed them: {listed(stuck)}")
    if other := [row for row in named if not row.active]:
        which = f" ({listed(other)})" if len(other) <= NAMES else ""
        print(f"not touched: {row_states.counted(other)}{which}")
    for run, problem in failed.items():
        print(f"cnn-depth: {run} can't be cancelled: {problem}", file=sys.stderr)
    return 1 if failed else 0


def cancel(active: Sequence[RowState], rows: Sequence[RowState]) -> dict[str, str]:
    """Ends rows that run or are queued; run id -> why not, of those that could not be.

    rows: all of the folder. A job that has others of these to do goes on with them, and ends the
    row itself. Each is marked first: a worker that is told to end reads there that it is not to go
    on.
    """
    from experiments.runs import runs
    from launch import row_states
    from launch.executors import squeue

    failed = {row.run: why for row in active if (why := _out_of_reach(row))}
    for row in [row for row in active if row.run not in failed]:
        try:
            mark = {"time": time.time(), "by": row_states.user()}
            runs.write_json(row.folder / "cancelled.json", mark)
        except runs.RunError as error:
            failed[row.run] = str(error)
    within = [row for row in active if row.run not in failed]
    named = {row.run for row in within}
    shared = {row.job for row in rows if row.active and row.run not in named}
    jobs = {row.job: row.run for row in within if row.in_slurm and row.job not in shared}
    try:
        failed |= {jobs[job]: why for job, why in squeue.cancel(jobs).items() if job in jobs}
    except squeue.SlurmError as error:
        failed |= dict.fromkeys(jobs.values(), str(error))
    for row in within:
        if not row.in_slurm and (problem := _terminate(row)):
            failed[row.run] = problem
    for row in within:
        if row.run in failed:
            (row.folder / "cancelled.json").unlink(missing_ok=True)
    return failed


def seeded_by(ended: Sequence[RowState], found: Sequence[RowState]) -> list[RowState]:
    """The rows that will not run when these do not."""
    gone = {row.run for row in ended if not row.trained}
    waiting = [row for row in found if not row.trained and row.step is None]
    stuck: list[RowState] = []
    while more := [row for row in waiting if row.seeding_run in gone and row.run not in gone]:
        gone.update(row.run for row in more)
        stuck += more
    return stuck


def _out_of_reach(row: RowState) -> str:
    """Why a row can't be ended from here; empty if it can be."""
    from experiments.runs import runs, state

    if row.in_slurm:
        return ""
    if row.unsure:
        return f"Slurm does not answer here, and it was given job {row.job}"
    holder = state.holder(row.folder)
    here = socket.gethostname()
    if runs.Run(row.folder).locked():
        if holder is None:
            return f"the file {row.folder / 'lock'} does not say which process is at work"
        if holder[1] == here:
            return ""
    host = row.node or (holder[1] if holder else "another machine")
    return f"it runs on {host}, and this is {here}; cancel it there"


def _terminate(row: RowState) -> str:
    """Asks the process that holds a run's lock, on this machine, to save and end; why not."""
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

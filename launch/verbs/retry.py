"""`cnn-depth retry`: rows that did not finish, given to Slurm once more as they were."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.executors.backend import TRACK
from launch.verbs.cancel import add_row_arguments, listed, named_rows
from launch.verbs.options import add_options, add_runs_and_json

if TYPE_CHECKING:
    from experiments.runs.runs import Run
    from launch.row_states import RowState

HELP = """\
Submit rows to Slurm once more that failed, were cancelled, lost or interrupted, with the options,
tests and code that they were submitted with; each goes on from its last checkpoint. Rows that seed
them and did not finish either go first, and rows that were blocked by them go too.

Of rows last run on a machine without Slurm, the marks that keep them from starting are removed, and
the command that goes on with them is printed.

ROW is a run's id or a part that only it has, a row's name ('B', 'B (seed 2)'), STUDY/ROW, or a
pattern such as 'vgg_depth/*'."""
EXAMPLE = """
cnn-depth retry vgg_depth/E
cnn-depth retry --study vgg_depth --time 2-00:00:00
cnn-depth retry --all --partition long
"""

AGAIN = ("failed", "cancelled", "lost", "blocked", "interrupted")
OPTIONS = ("partition", "time", "account", "constraint")
LEAVING_SECONDS = 30.0  # for jobs that can never start to leave Slurm's queue


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_row_arguments(parser)
    again = [f"--{name} {name.upper()}" for name in OPTIONS]
    options = dict.fromkeys(again, "instead of what it was")
    options["--sbatch KEY=VALUE..."] = (
        "an option of sbatch, on top of those before, such as mem=64G"
    )
    options[TRACK] = "trackers, instead of those it was submitted with"
    options["--live"] = "run the code as it is, not as it was submitted"
    add_options(parser, options)
    add_runs_and_json(parser, "what was done as JSON")


def main(args: argparse.Namespace) -> int:
    """Returns 0, also where there was nothing to do again."""
    from experiments import tracking
    from launch import row_states
    from launch.executors import cluster

    changes: dict[str, Any] = {name: value for name in OPTIONS if (value := getattr(args, name))}
    changes["sbatch"] = cluster.parse_sbatch(args.sbatch)
    if args.track is not None:
        tracking.choose(args.track)
    overview, named = named_rows(args)
    chosen = with_lines(named, overview.rows)

    def tell(text: str) -> None:
        print(text, file=sys.stderr if args.json else sys.stdout)

    jobs, commands = again(chosen, overview.folder, changes, tell, args.live, args.track)
    if args.json:
        ids_by_command = {command: [row.run for row in rows] for command, rows in commands.items()}
        print(json.dumps({"submitted": jobs, "commands": ids_by_command}, indent=1))
        return 0
    if submitted := [row for row in chosen if row.run in jobs]:
        print(f"submitted: {listed(submitted)}")
    for command, rows in commands.items():
        text = f"`{command}`" if command else "the command of its study, such as `cnn-depth sweep`,"
        print(f"ready to start: {text} goes on with {listed(rows)}")
    chosen_ids = {row.run for row in chosen}
    if untouched := [row for row in named if row.run not in chosen_ids]:
        print(f"not touched: {row_states.counted(untouched)}")
    return 0


def with_lines(named: Sequence[RowState], rows: Sequence[RowState]) -> list[RowState]:
    """The named rows that are to run again, and the rows that wait for them.

    The seeding runs that they lack are among them, and come before the rows that they seed.
    """
    from launch.row_states import seeding_chain

    by_id = {row.run: row for row in rows}
    lines = {row.run: seeding_chain(row.run, by_id) for row in rows}
    chosen_ids: set[str] = set()
    for row in named:
        if row.state in AGAIN:
            before = reversed(lines[row.run][:-1])
            missed = takewhile(lambda r: r.state in AGAIN and not r.trained, before)
            chosen_ids.update(r.run for r in (row, *missed))
    for row in sorted(rows, key=lambda row: len(lines[row.run])):
        if row.state == "blocked" and row.seeding_run in chosen_ids:
            chosen_ids.add(row.run)
    chosen = [row for row in rows if row.run in chosen_ids]
    return sorted(chosen, key=lambda row: sum(r.run in chosen_ids for r in lines[row.run]))


def again(
    chosen: Sequence[RowState],
    folder: Path,
    changes: Mapping[str, Any],
    tell: Callable[[str], None],
    live: bool = False,
    track: str | None = None,
) -> tuple[dict[str, str], dict[str, list[RowState]]]:
    """Removes the marks of rows, and submits those that Slurm had.

    changes: fields of their clusters that override the earlier ones; sbatch's options are merged.
    live: jobs run the code as it is when they start, not the copy they were submitted with.
    track: their trackers; None: those they were submitted with.

    Returns run id -> Slurm's job, and, of the rows that Slurm never had, command -> rows: the
    command goes on with them, and is '' where none is known.

    Raises SlurmError where Slurm does not answer, or refuses. Rows that it did not take stay as
    they were.
    """
    from experiments.runs.runs import Run
    from experiments.runs.state import clear_marks
    from launch import row_states

    jobs = {row.run: row_states.load(row.folder, "job") or {} for row in chosen}
    slurm = [row for row in chosen if jobs[row.run].get("backend") == "slurm"]
    commands: dict[str, list[RowState]] = {}
    for row in chosen:
        if row not in slurm:
            clear_marks(Run(row.folder))
            commands.setdefault(str(jobs[row.run].get("command") or ""), []).append(row)
    if not slurm:
        return {}, commands
    _leave_queue(slurm)
    marks = {row.run: clear_marks(Run(row.folder)) for row in slurm}
    try:
        return _submit(slurm, jobs, folder, changes, tell, live, track), commands
    finally:
        for row in slurm:
            if row_states.load(row.folder, "job") == jobs[row.run]:  # Slurm did not take it
                for path, content in marks[row.run].items():
                    path.write_bytes(content)


def _leave_queue(slurm: Sequence[RowState]) -> None:
    """Ends jobs that wait for a failed seeding run, so that their rows can be submitted."""
    from experiments.runs.runs import Run
    from launch.executors import slurm as backend
    from launch.executors import squeue

    stale = {row.job for row in slurm if row.in_slurm}
    if not stale:
        return
    squeue.cancel(stale)
    end = time.monotonic() + LEAVING_SECONDS
    while stale & (backend.queue(Run(row.folder) for row in slurm) or {}).keys():
        if time.monotonic() > end:
            raise squeue.SlurmError(
                f"jobs {', '.join(sorted(stale))} wait for a failed seeding run, and stay in "
                "Slurm's queue though they were cancelled; try again when they are gone"
            )
        time.sleep(0.5)


def _submit(
    slurm: Sequence[RowState],
    jobs: Mapping[str, Mapping[str, Any]],
    folder: Path,
    changes: Mapping[str, Any],
    tell: Callable[[str], None],
    live: bool,
    track: str | None,
) -> dict[str, str]:
    """Submits rows as their job.json says, seeding runs first. Returns run id -> Slurm's job.

    jobs: run id -> the content of its job.json. changes, live, track: see `again`.
    """
    from experiments.runs.runs import Run
    from experiments.testing.prediction_store import PlannedTest
    from launch.executors import cluster, snapshot
    from launch.executors import slurm as backend

    ended_jobs = {row.run: row.job for row in slurm if not row.in_slurm}
    groups: list[tuple[tuple[cluster.Cluster, Path, str], list[backend.Item]]] = []
    group_of: dict[str, int] = {}  # run id -> its group's index, not before its seeding run's
    for row in slurm:
        job = jobs[row.run]
        previous = job.get("cluster") or {}
        options = {**previous.get("sbatch", {}), **changes["sbatch"]}
        code = snapshot.ROOT
        if job.get("code") and not live:
            code = snapshot.find(folder, str(job["code"]))
        trackers = job.get("track", "") if track is None else track
        key = cluster.from_json({**previous, **changes, "sbatch": options}), code, trackers
        item = backend.Item(
            run=Run(row.folder),
            name=row.name,
            tests=tuple(PlannedTest(**test) for test in job.get("tests", ())),
            after=job.get("after") or None,
            modules=_modules(Run(row.folder)) if live else job.get("modules", ""),
            code=code,
            track=trackers,
        )
        first = group_of.get(row.seeding_run, 0)
        alike = (i for i, (group_key, _) in enumerate(groups) if i >= first and group_key == key)
        index = next(alike, len(groups))
        if index == len(groups):
            groups.append((key, []))
        groups[index][1].append(item)
        group_of[row.run] = index
    job_ids: dict[str, str] = {}
    for (settings, _, _), items in groups:
        job_ids |= backend.submit(items, settings, folder, tell, ended_jobs)
    return job_ids


def _modules(run: Run) -> str:
    """The folder of the user's module that defines a run's network, as it is now."""
    return str(run.config().model.get("folder", ""))

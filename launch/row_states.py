"""The rows of a runs folder and how each of them stands, from any machine that sees the folder.

The run folders are read first, then Slurm is asked once about all rows that are not finished.
Nothing is kept between two calls, and nothing heavy is imported. The states are those of
`experiments.runs.state`.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.runs import state
from experiments.runs.names import with_seed
from experiments.runs.runs import Run, RunError, error_of
from experiments.runs.state import ACTIVE, STATES, RunFiles
from experiments.text import clock, visible
from launch.executors import squeue
from launch.executors.squeue import Queued

SILENT_SECONDS = 300.0  # without progress, after which a running row's reason says so
THREADS = 16  # that read folders: on another machine's file system this is mostly waiting
# States of a seeding run in which the rows that it seeds are blocked, as the reason puts them.
NO_SEED = {
    "failed": "failed",
    "cancelled": "was cancelled",
    "lost": "was lost",
    "blocked": "is blocked",
    "unreadable": "is unreadable",
}


@dataclass(frozen=True)
class RowState:
    """A row of a study and how it stands. Its texts can be printed as they are."""

    folder: Path
    study: str
    row: str
    seed: int
    state: str
    reason: str = ""
    doing: str = ""  # of a running row: starting, statistics, training, testing, or ''
    step: int | None = None
    steps: int | None = None
    loss: float | None = None  # of the training images; before the end, of the latest batches
    error: float | None = None  # percent of the test images; before the end, of the latest batches
    rate: float | None = None  # images a second
    left: float | None = None  # seconds of work left
    node: str = ""  # where it runs or last ran
    job: str = ""  # its Slurm job; '' if none
    seeding_run: str = ""  # the id of the run that seeds it; '' if none
    seeding_row: str = ""  # that run's row
    trained: bool = False  # its network can seed others
    created: str = ""  # local time
    ended: str = ""  # local time, of finished rows
    unsure: bool = False  # only Slurm knows, and it does not answer
    in_slurm: bool = False  # its job waits, runs or is ending

    @property
    def run(self) -> str:
        """Its run id, the folder's name."""
        return self.folder.name

    @property
    def name(self) -> str:
        """`row`, or `row (seed 3)` for another seed than 0."""
        return with_seed(self.row, self.seed)

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


@dataclass(frozen=True)
class Rows:
    """The rows of a folder, by study, seeding runs first, else as they were created."""

    folder: Path
    rows: list[RowState]
    slurm: str  # `answered`, `does not answer`, or `not asked`: no unfinished row is a Slurm job


def count(rows: Iterable[RowState]) -> dict[str, int]:
    """State -> number of rows, in the order of STATES, without states that no row has."""
    numbers = Counter(row.state for row in rows)
    return {name: numbers[name] for name in STATES if numbers[name]}


def counted(rows: Iterable[RowState]) -> str:
    """`2 running, 1 failed`."""
    return ", ".join(f"{number:,} {state}" for state, number in count(rows).items())


def read(folder: Path) -> Rows:
    """The rows of a runs folder, without runs of imported weights. Raises RunError where the folder
    can't be read."""
    try:
        with os.scandir(folder) as entries:
            dirs = [e for e in entries if not e.name.startswith(".") and e.is_dir()]
    except OSError as error:
        raise RunError(f"no runs can be read in '{folder}': {error.strerror}; see --runs") from None
    files_of_runs = [
        run_files
        for run_files in _read_all([Path(e.path) for e in dirs])
        if "imported" not in run_files.about
    ]
    states, slurm = _stand_all(files_of_runs)
    return Rows(
        folder,
        _in_order(states, {run_files.folder.name: run_files.made for run_files in files_of_runs}),
        slurm,
    )


def of_runs(runs: Iterable[Run]) -> dict[str, RowState]:
    """How some runs stand, by run id; a run without a folder is `not run`."""
    folders = {run.id: run.folder for run in runs}
    states, _ = _stand_all(_read_all(list(folders.values())))
    missing = {i: RowState(f, "", i, 0, "not run") for i, f in folders.items() if i not in states}
    return {**states, **missing}


def read_one(row: RowState) -> RowState:
    """The row as it stands now; its seeding run is not looked at."""
    run_files = state.read_files(row.folder)
    if run_files is None:
        return replace(row, state="lost", reason="its folder is gone")
    states, _ = _stand_all([run_files])
    return states[row.run]


def _stand_all(files_of_runs: Sequence[RunFiles]) -> tuple[dict[str, RowState], str]:
    """How runs stand, by id, and `Rows.slurm`. Slurm is asked once, about the jobs of all users
    with rows that are not finished."""
    # A finished row may still be tested; its fresh progress says so.
    users = {
        str(run_files.contents.get("job", {}).get("user") or user())
        for run_files in files_of_runs
        if run_files.job and ("result" not in run_files.contents or run_files.fresh)
    }
    queue = squeue.recent_jobs(",".join(sorted(users))) if users else {}
    slurm = "not asked" if not users else "does not answer" if queue is None else "answered"
    states = {run_files.folder.name: _stand(run_files, queue) for run_files in files_of_runs}
    # A job may have ended between the reading of its folder and the question to Slurm.
    doubted = [
        run_files.folder
        for run_files in files_of_runs
        if states[run_files.folder.name].state in ("lost", "interrupted")
    ]
    states |= {run_files.folder.name: _stand(run_files, queue) for run_files in _read_all(doubted)}
    return _with_blocked(_with_ends(states, queue or {})), slurm


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """A JSON file of a run's folder, such as `job`; None if it is not there or not readable."""
    try:
        return Run(folder).read(name)
    except RunError:
        return None


def _read_all(folders: Sequence[Path]) -> list[RunFiles]:
    """What the folders of runs hold; other folders are left out."""
    with ThreadPoolExecutor(THREADS) as pool:
        return [
            run_files for run_files in pool.map(state.read_files, folders) if run_files is not None
        ]


def user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name
        return str(os.getuid())


def _stand(run_files: RunFiles, queue: Mapping[str, Queued] | None) -> RowState:
    """How a run stands, whatever its seeding run does."""
    try:
        return _stood(run_files, queue)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{run_files.folder} has a JSON file that is not as it is written here: {error}"
        return RowState(run_files.folder, "", run_files.folder.name, 0, "unreadable", reason)


def _stood(run_files: RunFiles, queue: Mapping[str, Queued] | None) -> RowState:
    """`_stand` of a folder with well-formed files."""
    name, reason = state.decide(run_files, queue)
    about, progress = run_files.about, run_files.progress
    silent = state.age(progress) if progress and progress.get("job") == run_files.job else 0.0
    if name == "running" and not reason and silent > SILENT_SECONDS:
        reason = f"silent for {clock(silent)}"
    queued = (queue or {}).get(run_files.job)
    if queued is not None and state.left(run_files, queued):
        queued = None
    seeding = about.get("seed_from") or {}
    node = (queued.node if queued is not None else "") or str(progress.get("host") or "")
    row = RowState(
        folder=run_files.folder,
        study=visible(str(about.get("study") or "")),
        row=visible(str(about.get("row") or about.get("name") or run_files.folder.name)),
        seed=int(about.get("seed") or 0),
        state=name,
        reason=visible(reason),
        node=visible(node),
        job=run_files.job,
        seeding_run=str(seeding.get("run") or ""),
        seeding_row=visible(str(seeding.get("row") or "")),
        trained="result" in run_files.contents,
        created=str(about.get("created") or ""),
        in_slurm=queued is not None and queued.active,
        unsure=queue is None and bool(run_files.job) and name in ("queued", "interrupted"),
    )
    return replace(row, **_figures(run_files, name))


def _figures(run_files: RunFiles, name: str) -> dict[str, Any]:
    """Fields of a RowState such as step and loss, of a run in the state `name`."""
    progress, result = run_files.progress, run_files.contents.get("result")
    if result is not None:
        return {
            "step": result.get("steps"),
            "steps": result.get("steps"),
            "loss": _number(result.get("train_loss")),
            "error": _number(error_of(result)),
            "rate": _number(result.get("images_per_s")),
            "ended": str(result.get("finished") or ""),
            "doing": "testing" if name == "running" else "",
        }
    figures = progress
    if not progress and "metrics.jsonl" in run_files.names:
        logged = Run(run_files.folder).last_logged()
        figures = {"loss": logged.get("train_loss"), "error": logged.get("train_error"), **logged}
    fields: dict[str, Any] = {
        "step": figures.get("step"),
        "steps": figures.get("steps"),
        "loss": _number(figures.get("loss")),
        "error": _number(figures.get("error")),
    }
    if name in ("running", "stopping"):
        eta = _number(progress.get("left"))
        fields["doing"] = visible(str(progress.get("state") or "")) if run_files.fresh else ""
        fields["rate"] = _number(figures.get("images_per_s"))
        fields["left"] = eta if eta is None else max(0.0, eta - max(0.0, state.age(progress)))
    return fields


def _number(value: Any) -> float | None:
    """A finite number, else None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _with_ends(states: Mapping[str, RowState], queue: Mapping[str, Queued]) -> dict[str, RowState]:
    """The rows; of lost ones the reason says how Slurm's job ended, where Slurm knows it."""
    lost = {row.job for row in states.values() if row.state == "lost" and row.job}
    ends = {job: (queue[job].state, "") for job in lost if job in queue}
    ends |= squeue.ended(lost - ends.keys()) if lost - ends.keys() else {}
    rows = dict(states)
    for run, row in states.items():
        if row.state == "lost" and row.job in ends:
            state, code = ends[row.job]
            status = f", exit status {code}" if code else ""
            rows[run] = replace(row, reason=f"its Slurm job ended: {state}{status}")
    return rows


def _with_blocked(states: Mapping[str, RowState]) -> dict[str, RowState]:
    """The rows, blocked where their seeding run, or one before it, will not be trained."""
    rows: dict[str, RowState] = {}
    for run in states:
        for row in seeding_chain(run, states):
            seeding = rows.get(row.seeding_run)
            waits = row.state in ("not run", "lost") or (
                row.state == "queued" and row.reason.startswith("Dependency")
            )
            gone = seeding is not None and seeding.state in NO_SEED and not seeding.trained
            if seeding is not None and gone and waits and row.step is None:
                reason = f"its seeding run, {seeding.name}, {NO_SEED[seeding.state]}"
                row = replace(row, state="blocked", reason=reason)
            rows.setdefault(row.run, row)
    return {run: rows[run] for run in states}


def seeding_chain(run: str, states: Mapping[str, RowState]) -> list[RowState]:
    """The chain of seeding runs that ends in a row: the first one, ..., the row itself."""
    chain: dict[str, RowState] = {}
    while run in states and run not in chain:
        chain[run] = states[run]
        run = states[run].seeding_run
    return list(reversed(chain.values()))


def _in_order(states: Mapping[str, RowState], ranks: Mapping[str, int]) -> list[RowState]:
    """Rows by study, studies and rows as created, but seeding runs first.

    ranks: run id -> rank among rows that were created in the same second.
    """
    rows = sorted(states.values(), key=lambda row: (row.created, ranks[row.run], row.name, row.run))
    studies = {study: place for place, study in enumerate(dict.fromkeys(r.study for r in rows))}
    rows.sort(key=lambda row: studies[row.study])  # and within it as before
    order: dict[str, RowState] = {}
    for row in rows:
        for member in seeding_chain(row.run, states):
            if member.study == row.study:
                order.setdefault(member.run, member)
    return list(order.values())

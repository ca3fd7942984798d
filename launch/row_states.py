"""The rows of a runs folder and how each of them stands, from any machine that sees the folder.

What the run folders say comes first, what Slurm says second; nothing is kept between two looks,
and nothing heavy is imported. Of rows that are not finished, Slurm is asked once for all. The
states are those of `experiments.runs.state`.
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
from experiments.runs.state import ACTIVE, STATES, Look
from experiments.text import clock, visible
from launch.executors import squeue
from launch.executors.squeue import Queued

SILENT_SECONDS = 300.0  # without progress that are told of a running row
THREADS = 16  # that read folders: most of it is waiting where the file system is another machine's
# A row whose seeding run stands so will not be run before that one is.
NO_SEED = {
    "failed": "failed",
    "cancelled": "was cancelled",
    "lost": "was lost",
    "blocked": "is blocked",
    "unreadable": "is unreadable",
}


@dataclass(frozen=True)
class RowState:
    """A row of a study and how it stands. Its texts can be printed as they are.

    run: its id, the folder's name. seeding_run: the id of the run that seeds it, '' if none;
    seeding_row: that one's row. doing: of a running one, `starting`, `statistics`, `training`,
    `testing` or ''. loss, error (percent): of the test images once finished (the loss of the
    training images), of the latest training batches before. rate: images a second. left: seconds
    of work left. node: where it runs or last ran. job: its Slurm job, '' if none; in_slurm: that
    waits, runs or is ending. unsure: only Slurm knows, and it does not answer. trained: its network
    can seed others. created, ended: local times, the latter of finished rows.
    """

    folder: Path
    study: str
    row: str
    seed: int
    state: str
    reason: str = ""
    doing: str = ""
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    error: float | None = None
    rate: float | None = None
    left: float | None = None
    node: str = ""
    job: str = ""
    seeding_run: str = ""
    seeding_row: str = ""
    trained: bool = False
    created: str = ""
    ended: str = ""
    unsure: bool = False
    in_slurm: bool = False

    @property
    def run(self) -> str:
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
    """The rows of a folder, by study, seeding runs first, else as they were created.

    slurm: `answered`, `not asked` (no unfinished row was given to it) or `does not answer`.
    """

    folder: Path
    rows: list[RowState]
    slurm: str


def count(rows: Iterable[RowState]) -> dict[str, int]:
    """State -> number of rows, in the order of STATES, without states that no row has."""
    found = Counter(row.state for row in rows)
    return {name: found[name] for name in STATES if found[name]}


def counted(rows: Iterable[RowState]) -> str:
    """`2 running, 1 failed`."""
    return ", ".join(f"{number:,} {state}" for state, number in count(rows).items())


def read(folder: Path) -> Rows:
    """The rows of a runs folder; runs of imported weights are none. Raises RunError without it."""
    try:
        with os.scandir(folder) as entries:
            there = [e for e in entries if not e.name.startswith(".") and e.is_dir()]
    except OSError as error:
        raise RunError(f"no runs can be read in '{folder}': {error.strerror}; see --runs") from None
    seen = [s for s in _look_at_all([Path(e.path) for e in there]) if "imported" not in s.about]
    found, told = _stand_all(seen)
    return Rows(folder, _in_order(found, {s.folder.name: s.made for s in seen}), told)


def of_runs(runs: Iterable[Run]) -> dict[str, RowState]:
    """How some runs stand, by run id; one whose folder is not there is not run."""
    folders = {run.id: run.folder for run in runs}
    found, _ = _stand_all(_look_at_all(list(folders.values())))
    rest = {i: RowState(f, "", i, 0, "not run") for i, f in folders.items() if i not in found}
    return {**found, **rest}


def read_one(row: RowState) -> RowState:
    """The row as it stands now. Whether its seeding run can be had is not looked at."""
    seen = state.look(row.folder)
    if seen is None:
        return replace(row, state="lost", reason="its folder is gone")
    found, _ = _stand_all([seen])
    return found[row.run]


def _stand_all(seen: Sequence[Look]) -> tuple[dict[str, RowState], str]:
    """How runs stand, by their ids, and what Slurm said; see `Rows`. It is asked once, for those
    who gave it rows that are not finished."""
    # A finished row may be tested yet; its job is asked for where its progress says so.
    users = {
        str(s.contents.get("job", {}).get("user") or user())
        for s in seen
        if s.job and ("result" not in s.contents or s.fresh)
    }
    queue = squeue.known(",".join(sorted(users))) if users else {}
    told = "not asked" if not users else "does not answer" if queue is None else "answered"
    found = {s.folder.name: _stand(s, queue) for s in seen}
    # A job may have ended between the look at its folder and the question to Slurm.
    doubted = [s.folder for s in seen if found[s.folder.name].state in ("lost", "interrupted")]
    found |= {s.folder.name: _stand(s, queue) for s in _look_at_all(doubted)}
    return _with_blocked(_with_ends(found, queue or {})), told


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """A JSON file of a run's folder, such as `job`; None if it is not there or not readable."""
    try:
        return Run(folder).read(name)
    except RunError:
        return None


def _look_at_all(folders: Sequence[Path]) -> list[Look]:
    """Those that are runs'."""
    with ThreadPoolExecutor(THREADS) as pool:
        return [seen for seen in pool.map(state.look, folders) if seen is not None]


def user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name
        return str(os.getuid())


def _stand(seen: Look, queue: Mapping[str, Queued] | None) -> RowState:
    """How a run stands, but for what its seeding run does to it."""
    try:
        return _stood(seen, queue)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{seen.folder} has a JSON file that is not as it is written here: {error}"
        return RowState(seen.folder, "", seen.folder.name, 0, "unreadable", reason)


def _stood(seen: Look, queue: Mapping[str, Queued] | None) -> RowState:
    """`_stand` of files that hold what they should."""
    name, reason = state.decide(seen, queue)
    about, progress = seen.about, seen.progress
    silent = state.age(progress) if progress and progress.get("job") == seen.job else 0.0
    if name == "running" and not reason and silent > SILENT_SECONDS:
        reason = f"silent for {clock(silent)}"
    queued = (queue or {}).get(seen.job)
    if queued is not None and state.left(seen, queued):
        queued = None
    seeding = about.get("seed_from") or {}
    node = (queued.node if queued is not None else "") or str(progress.get("host") or "")
    row = RowState(
        folder=seen.folder,
        study=visible(str(about.get("study") or "")),
        row=visible(str(about.get("row") or about.get("name") or seen.folder.name)),
        seed=int(about.get("seed") or 0),
        state=name,
        reason=visible(reason),
        node=visible(node),
        job=seen.job,
        seeding_run=str(seeding.get("run") or ""),
        seeding_row=visible(str(seeding.get("row") or "")),
        trained="result" in seen.contents,
        created=str(about.get("created") or ""),
        in_slurm=queued is not None and queued.active,
        unsure=queue is None and bool(seen.job) and name in ("queued", "interrupted"),
    )
    return replace(row, **_figures(seen, name))


def _figures(seen: Look, name: str) -> dict[str, Any]:
    """Step, loss and the like of a run in the state `name`, as fields of a RowState."""
    progress, result = seen.progress, seen.contents.get("result")
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
    told = progress
    if not progress and "metrics.jsonl" in seen.files:
        told = Run(seen.folder).last_logged()
        told = {"loss": told.get("train_loss"), "error": told.get("train_error"), **told}
    found: dict[str, Any] = {
        "step": told.get("step"),
        "steps": told.get("steps"),
        "loss": _number(told.get("loss")),
        "error": _number(told.get("error")),
    }
    if name in ("running", "stopping"):
        left = _number(progress.get("left"))
        found["doing"] = visible(str(progress.get("state") or "")) if seen.fresh else ""
        found["rate"] = _number(told.get("images_per_s"))
        found["left"] = left if left is None else max(0.0, left - max(0.0, state.age(progress)))
    return found


def _number(value: Any) -> float | None:
    """A finite number, else None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _with_ends(found: Mapping[str, RowState], queue: Mapping[str, Queued]) -> dict[str, RowState]:
    """The rows with what Slurm knows of the ends of jobs that are lost."""
    lost = {row.job for row in found.values() if row.state == "lost" and row.job}
    ends = {job: (queue[job].state, "") for job in lost if job in queue}
    ends |= squeue.ended(lost - ends.keys()) if lost - ends.keys() else {}
    rows = dict(found)
    for run, row in found.items():
        if row.state == "lost" and row.job in ends:
            state, code = ends[row.job]
            status = f", exit status {code}" if code else ""
            rows[run] = replace(row, reason=f"its Slurm job ended: {state}{status}")
    return rows


def _with_blocked(found: Mapping[str, RowState]) -> dict[str, RowState]:
    """The rows with those blocked whose seeding run, or that one's, will not come."""
    rows: dict[str, RowState] = {}
    for run in found:
        for row in line(run, found):
            seeding = rows.get(row.seeding_run)
            waits = row.state in ("not run", "lost") or (
                row.state == "queued" and row.reason.startswith("Dependency")
            )
            gone = seeding is not None and seeding.state in NO_SEED and not seeding.trained
            if seeding is not None and gone and waits and row.step is None:
                reason = f"its seeding run, {seeding.name}, {NO_SEED[seeding.state]}"
                row = replace(row, state="blocked", reason=reason)
            rows.setdefault(row.run, row)
    return {run: rows[run] for run in found}


def line(run: str, found: Mapping[str, RowState]) -> list[RowState]:
    """A row and those before it: its seeding run's own, its seeding run, itself."""
    line: dict[str, RowState] = {}
    while run in found and run not in line:
        line[run] = found[run]
        run = found[run].seeding_run
    return list(reversed(line.values()))


def _in_order(found: Mapping[str, RowState], made: Mapping[str, int]) -> list[RowState]:
    """Rows by study, studies and rows as created, but seeding runs first.

    made: orders rows that were created in the same second.
    """
    rows = sorted(found.values(), key=lambda row: (row.created, made[row.run], row.name, row.run))
    studies = {study: place for place, study in enumerate(dict.fromkeys(r.study for r in rows))}
    rows.sort(key=lambda row: studies[row.study])  # and within it as before
    order: dict[str, RowState] = {}
    for row in rows:
        for one in line(row.run, found):
            if one.study == row.study:
                order.setdefault(one.run, one)
    return list(order.values())

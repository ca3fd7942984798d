"""The rows of a runs folder and how each of them stands, from any machine that sees the folder.

What the run folders say comes first, what Slurm says second; nothing is kept between two looks,
and nothing heavy is imported. Of rows that are not finished, Slurm is asked once for all.

    finished      trained and tested
    running       its lock is held on this machine, Slurm runs its job, or its progress is fresh
    queued        Slurm will start it, or start it again
    stopping      cancelled, and its process has not left yet
    failed        for a reason of its own
    blocked       its seed failed, was cancelled, was lost, or is blocked
    cancelled     by `cnn-depth cancel`
    lost          its Slurm job is gone, and it has neither a result nor a reason
    interrupted   begun on some machine, and nobody is at work on it
    not run       never begun
    unreadable    one of its files can't be read; the reason names it
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.runs.runs import Run, RunError
from experiments.text import visible
from launch.executors import squeue
from launch.executors.squeue import Queued

STATES = (
    "running",
    "stopping",
    "queued",
    "failed",
    "lost",
    "unreadable",
    "blocked",
    "interrupted",
    "cancelled",
    "not run",
    "finished",
)
FRESH_SECONDS = 60.0  # how long a progress.json counts as a sign of life
SILENT_SECONDS = 300.0  # without progress that are told of a running row
THREADS = 16  # that read folders: most of it is waiting where the file system is another machine's
TAIL = 1 << 13  # bytes of metrics.jsonl that hold its last lines
# A row whose seed stands so will not be run before the seed is.
NO_SEED = ("failed", "cancelled", "lost", "blocked", "unreadable")


@dataclass(frozen=True)
class RowState:
    """A row of a study and how it stands. Its texts can be printed as they are.

    run: its id, the folder's name. after: the run that seeds it, '' if none; seed_row: that one's
    row. doing: of a running one, `starting`, `statistics`, `training`, `testing` or ''. loss, error
    (percent): of the test images once finished (the loss of the training images), of the latest
    training batches before. rate: images a second. left: seconds of work left. node: where it runs
    or last ran. job: its Slurm job, '' if none; in_slurm: that waits, runs or is ending. unsure:
    only Slurm knows, and it does not answer. trained: its network can seed others. created, ended:
    local times, the latter of finished rows.
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
    after: str = ""
    seed_row: str = ""
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
        return f"{self.row} (seed {self.seed})" if self.seed else self.row

    @property
    def active(self) -> bool:
        return self.state in ("running", "stopping", "queued")


@dataclass(frozen=True)
class Rows:
    """The rows of a folder, by study, seeds before what they seed, else as they were created.

    slurm: `answered`, `not asked` (no unfinished row was given to it) or `does not answer`.
    """

    folder: Path
    rows: list[RowState]
    slurm: str

    def counts(self) -> dict[str, int]:
        """How many rows stand so, in the order of STATES, without states that no row has."""
        return count(self.rows)


def count(rows: Iterable[RowState]) -> dict[str, int]:
    """State -> number of rows, in the order of STATES."""
    found = dict.fromkeys(STATES, 0)
    for row in rows:
        found[row.state] += 1
    return {state: number for state, number in found.items() if number}


def counted(rows: Iterable[RowState]) -> str:
    """`2 running, 1 failed`."""
    return ", ".join(f"{number:,} {state}" for state, number in count(rows).items())


def read(folder: Path) -> Rows:
    """The rows of a runs folder.

    Raises:
        RunError: there is no such folder.
    """
    try:
        with os.scandir(folder) as entries:
            folders = [
                Path(entry.path)
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir()
            ]
    except OSError as error:
        raise RunError(f"no runs can be read in '{folder}': {error.strerror}; see --runs") from None
    seen = [s for s in _look_at_all(folders) if s is not None and not s.imported]
    queue, told = _ask_slurm(seen)
    found = {s.run: _stand(s, queue) for s in seen}
    # A job may have ended between the look at its folder and the question to Slurm.
    again = [s.folder for s in seen if found[s.run].state in ("lost", "interrupted")]
    found |= {s.run: _stand(s, queue) for s in _look_at_all(again) if s is not None}
    found = _with_blocked(_with_ends(found, queue or {}))
    return Rows(folder, _in_order(found, {s.run: s.made for s in seen}), told)


def clock(seconds: float | None) -> str:
    """`1:05`, `2:03:04`, of days `3d 02:03`; `?` where nobody knows."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(min(seconds, 1e9)), 60)
    hours, minutes = divmod(minutes, 60)
    days, of_day = divmod(hours, 24)
    if days:
        return f"{days}d {of_day:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def read_one(row: RowState) -> RowState:
    """The row as it stands now. Whether its seed can be had is not looked at."""
    seen = _look(row.folder)
    if seen is None:
        return replace(row, state="lost", reason="its folder is gone")
    queue, _ = _ask_slurm([seen])
    found = _stand(seen, queue)
    if found.state == "lost":  # its job may have ended after the look
        found = _stand(_look(row.folder) or seen, queue)
    return _with_ends({found.run: found}, queue or {})[found.run]


def find(words: Sequence[str], rows: Sequence[RowState], folder: Path) -> list[RowState]:
    """The rows that words name, each once, in the order of `rows`.

    A word is a run's id or folder, `study/row`, a row's name (`B`, `B (seed 2)`) or a part that
    only one run's id has; with a * or ? in it, all rows whose id, name or `study/name` fits.

    Raises:
        RunError: a word fits no row, or several.
    """
    named: set[str] = set()
    for word in words:
        fits = matches(word, rows)
        if not fits:
            raise RunError(_unknown(word, rows, folder))
        if len(fits) > 1 and not _is_pattern(word):
            raise RunError(f"'{word}' fits {len(fits)} rows, name one by its id: {_listed(fits)}")
        named.update(row.run for row in fits)
    return [row for row in rows if row.run in named]


def one(word: str, rows: Sequence[RowState], folder: Path) -> RowState:
    """The row that a word names. Raises RunError where it names none, or several."""
    fits = find([word], rows, folder)
    if len(fits) > 1:
        raise RunError(f"'{word}' fits {len(fits)} rows; expected one: {_listed(fits)}")
    return fits[0]


def of_study(study: str, rows: Sequence[RowState], folder: Path) -> list[RowState]:
    """The rows of a study. Raises RunError where there are none."""
    fits = [row for row in rows if row.study == study]
    if not fits:
        studies = list(dict.fromkeys(row.study for row in rows))
        nearest = difflib.get_close_matches(study, studies, n=1, cutoff=0.5)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"there are: {', '.join(studies)}"
        raise RunError(f"no run in '{folder}' belongs to the study '{study}'; {hint}")
    return fits


def matches(word: str, rows: Sequence[RowState]) -> list[RowState]:
    """The rows that a word fits best: by id, else by name, else by a part of the id."""
    if _is_pattern(word):
        return [
            row
            for row in rows
            if any(fnmatch.fnmatchcase(name, word) for name in (row.run, *_names(row)))
        ]
    path = Path(word).resolve() if os.sep in word and Path(word).is_dir() else None
    tests: list[Callable[[RowState], bool]] = [
        lambda row: row.run == word or (path is not None and row.folder.resolve() == path),
        lambda row: word in _names(row),
        lambda row: bool(word) and word in row.run,
    ]
    for fits in tests:
        if found := [row for row in rows if fits(row)]:
            return found
    return []


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """A JSON file of a run's folder, such as `job`; None if it is not there or not readable."""
    try:
        return Run(folder).read(name)
    except RunError:
        return None


def _listed(rows: Sequence[RowState]) -> str:
    some = "; ".join(f"{row.run} ({row.study}/{row.name}, {row.state})" for row in rows[:5])
    return some + (f"; and {len(rows) - 5} more" if len(rows) > 5 else "")


def _names(row: RowState) -> tuple[str, str]:
    return row.name, f"{row.study}/{row.name}"


def _is_pattern(word: str) -> bool:
    return "*" in word or "?" in word


def _unknown(word: str, rows: Sequence[RowState], folder: Path) -> str:
    if not rows:
        return f"no row is called '{word}': there are no runs in '{folder}'"
    names = list(dict.fromkeys(row.name for row in rows))
    known = [*names, *(row.run for row in rows), *(f"{row.study}/{row.name}" for row in rows)]
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"there are: {some}"
    return f"no row in '{folder}' is called '{word}'; {hint}"


# From a run's folder and Slurm's queue to a state.


@dataclass(frozen=True)
class _Seen:
    """What a run's folder holds; `made` orders runs that were created in one second."""

    folder: Path
    files: frozenset[str]
    about: dict[str, Any]
    made: int
    locked: bool
    contents: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed_at: float = 0.0
    last: dict[str, Any] = field(default_factory=dict)  # of metrics.jsonl, its last training line
    broken: str = ""  # which of its files can't be read, and why

    @property
    def run(self) -> str:
        return self.folder.name

    @property
    def imported(self) -> bool:
        """Its network was made from a weights file: no training."""
        return "imported" in self.about

    def get(self, name: str) -> dict[str, Any] | None:
        return self.contents.get(name)

    @property
    def job(self) -> str:
        """The Slurm job that it was last given to, or says to run in."""
        told, progress = self.get("job") or {}, self.get("progress") or {}
        if told.get("backend") == "slurm":
            return str(told.get("job") or "")
        return "" if told else str(progress.get("job") or "")

    @property
    def fresh(self) -> bool:
        """Its worker wrote something a moment ago (or, with another clock, will)."""
        progress = self.get("progress")
        if progress is None or progress.get("state") == "ended":
            return False
        return _age(progress) < FRESH_SECONDS


def _age(content: Mapping[str, Any]) -> float:
    """Seconds since a file's `time`."""
    told = content.get("time")
    return time.time() - told if isinstance(told, int | float) else math.inf


def _look_at_all(folders: Sequence[Path]) -> list[_Seen | None]:
    if not folders:
        return []
    with ThreadPoolExecutor(min(THREADS, len(folders))) as pool:
        return list(pool.map(_look, folders))


def _look(folder: Path) -> _Seen | None:
    """Reads what there is of a run; None if the folder is no run's."""
    try:
        files = frozenset(os.listdir(folder))
    except OSError:
        return None
    if "run.json" not in files:
        return None
    names = ("run", "result", "progress", "job", "failed", "untested", "cancelled")
    contents, broken = {}, ""
    for name in names:
        if f"{name}.json" not in files:
            continue
        try:
            content = Run(folder).read(name)
        except RunError as error:
            if name != "progress":  # which is written anew all the time
                broken = broken or str(error)
        else:
            if content is not None:
                contents[name] = content
    about, made = contents.pop("run", {}), 0
    with suppress(OSError):
        made = (folder / "run.json").stat().st_mtime_ns
    failed_at = 0.0
    if "failed" in contents:
        with suppress(OSError):
            failed_at = (folder / "failed.json").stat().st_mtime
    at_work = "result" not in contents or _age(contents.get("progress", {})) < FRESH_SECONDS
    locked = at_work and "lock" in files and Run(folder).locked()
    last = {}
    if "result" not in contents and "progress" not in contents and "metrics.jsonl" in files:
        last = _last_line(folder / "metrics.jsonl")
    return _Seen(folder, files, about, made, locked, contents, failed_at, last, broken)


def holder(folder: Path) -> tuple[int, str] | None:
    """(process, host) that the lock file names, None if it names none."""
    with suppress(OSError):
        found = re.match(r"process (\d+) on (\S+)", (folder / "lock").read_text())
        if found:
            return int(found[1]), found[2]
    return None


def _last_line(path: Path) -> dict[str, Any]:
    """The last line of metrics.jsonl about training, {} if none can be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        with suppress(ValueError):
            told = json.loads(line)
            if isinstance(told, dict) and "train_loss" in told:
                return told
    return {}


def _ask_slurm(seen: Sequence[_Seen]) -> tuple[dict[str, Queued] | None, str]:
    """Slurm's jobs of the users who gave it rows that are not finished, and whether it answered.

    A finished row may be tested yet; its job is asked for where its progress says so.
    """
    users = {
        str((s.get("job") or {}).get("user") or user())
        for s in seen
        if s.job and (s.get("result") is None or s.fresh)
    }
    if not users:
        return {}, "not asked"
    queue = squeue.known(",".join(sorted(users)))
    return queue, "does not answer" if queue is None else "answered"


def user() -> str:
    """Who asks."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name
        return str(os.getuid())


def _stand(seen: _Seen, queue: Mapping[str, Queued] | None) -> RowState:
    """How a run stands, but for what its seed does to it."""
    try:
        return _stood(seen, queue)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{seen.folder} has a JSON file that is not as it is written here: {error}"
        return RowState(seen.folder, "", seen.run, 0, "unreadable", reason)


def _stood(seen: _Seen, queue: Mapping[str, Queued] | None) -> RowState:
    """`_stand` of files that hold what they should."""
    state, reason = _state(seen, queue)
    about, result = seen.about, seen.get("result")
    progress = seen.get("progress") or {}
    silent = _age(progress) if progress and progress.get("job") == seen.job else 0.0
    if state == "running" and not reason and silent > SILENT_SECONDS:
        reason = f"silent for {clock(silent)}"
    queued = (queue or {}).get(seen.job)
    donor = about.get("seed_from") or {}
    row = RowState(
        folder=seen.folder,
        study=visible(str(about.get("study") or "")),
        row=visible(str(about.get("row") or about.get("name") or seen.run)),
        seed=int(about.get("seed") or 0),
        state=state,
        reason=visible(reason),
        node=visible(
            (queued.node if queued is not None else "") or str(progress.get("host") or "")
        ),
        job=seen.job,
        after=str(donor.get("run") or ""),
        seed_row=visible(str(donor.get("row") or "")),
        trained=result is not None,
        created=str(about.get("created") or ""),
        in_slurm=queued is not None and queued.active,
        unsure=queue is None and bool(seen.job) and state in ("queued", "interrupted"),
    )
    if result is not None:
        row = replace(
            row,
            step=result.get("steps"),
            steps=result.get("steps"),
            loss=_number(result.get("train_loss")),
            error=_number(result.get("top1_error")),
            rate=_number(result.get("images_per_s")),
            ended=str(result.get("finished") or ""),
        )
        return replace(row, doing="testing") if state == "running" else row
    if progress:
        row = replace(
            row,
            step=progress.get("step"),
            steps=progress.get("steps"),
            loss=_number(progress.get("loss")),
            error=_number(progress.get("error")),
        )
    elif seen.last:
        row = replace(
            row,
            step=seen.last.get("step"),
            loss=_number(seen.last.get("train_loss")),
            error=_number(seen.last.get("train_error")),
        )
    if state not in ("running", "stopping"):
        return row
    left = _number(progress.get("left"))
    return replace(
        row,
        doing=visible(str(progress.get("state") or "")) if seen.fresh else "",
        rate=_number((progress or seen.last).get("images_per_s")),
        left=None if left is None else max(0.0, left - max(0.0, _age(progress))),
    )


def _number(value: Any) -> float | None:
    """A finite number, else None."""
    ok = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if ok else None


def _state(seen: _Seen, queue: Mapping[str, Queued] | None) -> tuple[str, str]:
    """(state, reason) of a run."""
    if seen.broken:
        return "unreadable", seen.broken
    queued = (queue or {}).get(seen.job)
    job_state = queued.state if queued is not None else ""
    progress = seen.get("progress") or {}
    # A worker of another machine is known by its progress only.
    elsewhere = seen.fresh and progress.get("host") != socket.gethostname() and queued is None
    by_slurm = bool(seen.job) and queue is not None  # it would know of a process that goes on
    if seen.get("result") is not None:
        return _trained(seen, job_state, elsewhere and not by_slurm)
    failed = seen.get("failed")
    # A row that is tried again keeps its failed.json until it is finished.
    tried = seen.locked or job_state in squeue.WAITING | squeue.RUNNING
    tried = tried or (elsewhere and progress["time"] > seen.failed_at)
    if failed is not None and not tried:
        return "failed", str(failed.get("reason") or "")
    cancelled = seen.get("cancelled")
    if cancelled is not None:
        late = elsewhere and not by_slurm and progress["time"] > (cancelled.get("time") or 0)
        alive = seen.locked or (queued is not None and queued.active) or late
        by = f"by {cancelled['by']}" if cancelled.get("by") else ""
        return ("stopping" if alive else "cancelled"), by
    if seen.locked:
        return "running", ""
    if queued is not None and job_state in squeue.WAITING:
        return "queued", queued.reason or job_state.lower().replace("_", " ")
    if job_state in squeue.RUNNING:
        return "running", "" if job_state == "RUNNING" else job_state.lower()
    if job_state in squeue.ENDING:
        return "stopping", "its Slurm job is ending"
    if elsewhere:
        return "running", ""
    begun = "progress.json" in seen.files or "metrics.jsonl" in seen.files
    if not seen.job:
        return ("interrupted" if begun else "not run"), ""
    if queue is None:
        if not begun:
            return "queued", "Slurm does not answer here"
        host = f" on {progress['host']}" if progress.get("host") else ""
        return "interrupted", f"last heard of{host}; Slurm does not answer here"
    return "lost", "its Slurm job is gone"


def _trained(seen: _Seen, job_state: str, elsewhere: bool) -> tuple[str, str]:
    """(state, reason) of a run whose training has ended; its tests may not have."""
    testing = (seen.get("progress") or {}).get("state") == "testing"
    if seen.locked or (testing and (elsewhere or job_state in squeue.RUNNING)):
        return "running", ""
    untested = seen.get("untested")
    if job_state in squeue.WAITING and (testing or untested is not None):
        return "queued", "its tests"
    if untested is not None:
        return "failed", f"trained, but not tested: {untested.get('reason') or ''}"
    return "finished", ""


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
            reason = f"its Slurm job ended: {state}{status}"
            rows[run] = replace(row, reason=reason)
    return rows


def _with_blocked(found: Mapping[str, RowState]) -> dict[str, RowState]:
    """The rows with those blocked whose seed, or its seed, will not come."""
    rows: dict[str, RowState] = {}
    for run in found:
        for row in _line(run, found):
            donor = rows.get(row.after)
            waits = row.state in ("not run", "lost") or (
                row.state == "queued" and row.reason.startswith("Dependency")
            )
            stuck = donor is not None and donor.state in NO_SEED and not donor.trained
            if donor is not None and stuck and waits and row.step is None:
                how = {"lost": "was lost", "cancelled": "was cancelled"}
                how |= {state: f"is {state}" for state in ("blocked", "unreadable")}
                reason = f"its seed, {donor.name}, {how.get(donor.state, 'failed')}"
                row = replace(row, state="blocked", reason=reason)
            rows.setdefault(row.run, row)
    return {run: rows[run] for run in found}


def _line(run: str, found: Mapping[str, RowState]) -> list[RowState]:
    """A row and those before it: its seed's seed, its seed, itself."""
    line: dict[str, RowState] = {}
    while run in found and run not in line:
        line[run] = found[run]
        run = found[run].after
    return list(reversed(line.values()))


def _in_order(found: Mapping[str, RowState], made: Mapping[str, int]) -> list[RowState]:
    """Rows by study, studies and rows as created, but seeds before what they seed.

    made: orders rows that were created in the same second.
    """
    rows = sorted(found.values(), key=lambda row: (row.created, made[row.run], row.name, row.run))
    studies = {study: place for place, study in enumerate(dict.fromkeys(r.study for r in rows))}
    rows.sort(key=lambda row: studies[row.study])  # and within it as before
    order: dict[str, RowState] = {}
    for row in rows:
        for one in _line(row.run, found):
            if one.study == row.study:
                order.setdefault(one.run, one)
    return list(order.values())

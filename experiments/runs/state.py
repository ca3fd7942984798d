"""How a run stands, from the files of its folder and what a cluster says of its job.

Every verb takes a run's state from here. A run alone can't be `blocked`: that needs the others of
its folder, see `launch.row_states`. Nothing heavy is imported.
"""

from __future__ import annotations

import math
import os
import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from experiments.runs.runs import Run, RunError

STATES = {
    "running": "its lock is held on this machine, Slurm runs its job, or its progress is fresh",
    "stopping": "cancelled, and its process has not left yet",
    "queued": "Slurm will start it, or start it again",
    "failed": "for a reason of its own",
    "lost": "its Slurm job is gone, and it has neither a result nor a reason",
    "unreadable": "one of its files can't be read; the reason names it",
    "blocked": "its seeding run failed, was cancelled, was lost, or is blocked",
    "interrupted": "begun on some machine, and nobody is at work on it",
    "cancelled": "by `cnn-depth cancel`",
    "not run": "never begun",
    "imported": "its network was made from a weights file, or by `transfer`; there is no training",
    "finished": "trained, and tested as it was asked",
}
FAILED_FIRST = sorted(STATES, key=lambda name: name != "failed")  # of a row over its seeds
ACTIVE = ("running", "stopping", "queued")
# Files that say how an earlier start ended and keep a run from starting; a new start removes them.
MARKS = ("failed", "cancelled", "untested", "attempts")
FRESH_SECONDS = 60.0  # how long a progress.json counts as a sign of life
READ = ("run", "result", "progress", "job", "failed", "untested", "cancelled")


class ClusterJob(Protocol):
    """A job in a cluster's queue."""

    @property
    def waiting(self) -> bool: ...
    @property
    def running(self) -> bool: ...
    @property
    def active(self) -> bool: ...  # it waits, runs or is ending; else it has ended
    @property
    def state(self) -> str: ...  # in the cluster's words
    @property
    def reason(self) -> str: ...


Queue = Mapping[str, ClusterJob]  # by job id


@dataclass(frozen=True)
class RunFiles:
    """What a run's folder holds at one moment."""

    folder: Path
    names: frozenset[str]  # of its files
    locked: bool
    made: int = 0  # when run.json was written, in ns; orders runs created in the same second
    failed_at: float = 0.0  # when failed.json was written
    broken: str = ""  # which file can't be read, and why; '' if all can
    contents: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # JSON files, by stem

    @property
    def about(self) -> dict[str, Any]:
        """run.json."""
        return self.contents.get("run", {})

    @property
    def progress(self) -> dict[str, Any]:
        return self.contents.get("progress", {})

    @property
    def job(self) -> str:
        """The Slurm job that it was last given to, or that its progress names; '' if none."""
        job = self.contents.get("job")
        if job is None:
            return str(self.progress.get("job") or "")
        return str(job.get("job") or "") if job.get("backend") == "slurm" else ""

    @property
    def fresh(self) -> bool:
        """Whether its progress was written a moment ago, or in the future of this host's clock."""
        return self.progress.get("state") != "ended" and age(self.progress) < FRESH_SECONDS

    @property
    def begun(self) -> bool:
        return not self.names.isdisjoint(("progress.json", "metrics.jsonl"))


def age(content: Mapping[str, Any]) -> float:
    """Seconds since the `time` that a file names; infinite where it names none."""
    timestamp = content.get("time")
    return time.time() - timestamp if isinstance(timestamp, int | float) else math.inf


def read_files(folder: Path) -> RunFiles | None:
    """Reads a run's folder; None if it is no run's."""
    try:
        files = frozenset(os.listdir(folder))
    except OSError:
        return None
    if "run.json" not in files:
        return None
    run, contents, broken = Run(folder), {}, ""
    for name in READ:
        if f"{name}.json" not in files:
            continue
        try:
            content = run.read(name)
        except RunError as error:
            if name != "progress":  # which is written anew all the time
                broken = broken or str(error)
        else:
            if content is not None:
                contents[name] = content
    at_work = "result" not in contents or age(contents.get("progress", {})) < FRESH_SECONDS
    return RunFiles(
        folder,
        files,
        locked=at_work and "lock" in files and run.locked(),
        made=_written(folder / "run.json"),
        failed_at=_written(folder / "failed.json") / 1e9 if "failed" in contents else 0.0,
        broken=broken,
        contents=contents,
    )


def _written(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 if it is gone."""
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return 0


def of(run: Run) -> tuple[str, str]:
    """(state, reason) of a run by its folder alone, as if no cluster had a job of it."""
    run_files = read_files(run.folder)
    return ("not run", "") if run_files is None else decide(run_files, {})


def decide(run_files: RunFiles, queue: Queue | None) -> tuple[str, str]:
    """(state, reason). queue: the cluster's jobs, None where it does not answer."""
    if run_files.broken:
        return "unreadable", run_files.broken
    try:
        return _decide(run_files, queue)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{run_files.folder} has a JSON file that is not as it is written here: {error}"
        return "unreadable", reason


def _decide(run_files: RunFiles, queue: Queue | None) -> tuple[str, str]:
    if "imported" in run_files.about:
        return "imported", ""
    job = (queue or {}).get(run_files.job)
    if job is not None and left(run_files, job):
        job = None
    # A process of another machine is known by its progress only.
    elsewhere = (
        run_files.fresh and run_files.progress.get("host") != socket.gethostname() and job is None
    )
    in_reach = not run_files.job or queue is None  # else Slurm would know of a process that goes on
    if "result" in run_files.contents:
        return _trained(run_files, job, elsewhere and in_reach)
    failed = run_files.contents.get("failed")
    # A run that is tried again keeps its failed.json until its training begins.
    tried = run_files.locked or (job is not None and (job.waiting or job.running))
    tried = tried or (elsewhere and run_files.progress["time"] > run_files.failed_at)
    if failed is not None and not tried:
        return "failed", str(failed.get("reason") or "")
    cancelled = run_files.contents.get("cancelled")
    if cancelled is not None:
        late = elsewhere and in_reach and run_files.progress["time"] > (cancelled.get("time") or 0)
        alive = run_files.locked or late or (job is not None and job.active)
        reason = f"by {cancelled['by']}" if cancelled.get("by") else ""
        return ("stopping" if alive else "cancelled"), reason
    if run_files.locked:
        return "running", ""
    if job is not None and job.waiting:
        return "queued", job.reason or job.state.lower().replace("_", " ")
    if job is not None and job.running:
        return "running", "" if job.state == "RUNNING" else job.state.lower()
    if job is not None and job.active:
        return "stopping", "its Slurm job is ending"
    if elsewhere:
        return "running", ""
    if not run_files.job:
        return ("interrupted" if run_files.begun else "not run"), ""
    if queue is None:
        if not run_files.begun:
            return "queued", "Slurm does not answer here"
        host = f" on {run_files.progress['host']}" if run_files.progress.get("host") else ""
        return "interrupted", f"last heard of{host}; Slurm does not answer here"
    return "lost", "its Slurm job is gone"


def left(run_files: RunFiles, job: ClusterJob) -> bool:
    """Whether a job of several runs is through with this one, and goes on with the others.

    A job that still waits is through with a cancelled run: it will not train it.
    """
    packed = (run_files.contents.get("job") or {}).get("packed", 1) > 1
    if packed and job.waiting and not run_files.locked:
        return "cancelled" in run_files.contents
    if not packed or not job.running or run_files.locked:
        return False
    if (run_files.contents.get("failed") or {}).get("kind") == "lost":
        return True
    marks = ("result", "failed", "cancelled")
    ended = (
        run_files.progress.get("state") == "ended"
        and run_files.progress.get("job") == run_files.job
    )
    return ended and any(mark in run_files.contents for mark in marks)


def _trained(run_files: RunFiles, job: ClusterJob | None, elsewhere: bool) -> tuple[str, str]:
    """(state, reason) of a run whose training has ended; its tests may not have."""
    testing = run_files.progress.get("state") == "testing"
    if run_files.locked or (testing and elsewhere) or (job is not None and job.running):
        return "running", ""
    if job is not None and job.waiting:
        return "queued", "its tests"
    untested = run_files.contents.get("untested")
    if untested is not None:
        return "failed", f"trained, but not tested: {untested.get('reason') or ''}"
    return "finished", ""


def why_failed(run: Run) -> str:
    """Why a run failed, or can't be read; '' if neither is so."""
    name, reason = of(run)
    return reason if name in ("failed", "unreadable") else ""


def ended(folder: Path) -> bool:
    """Whether a file says that the run has ended; whether a process is at work is not checked."""
    return any((folder / f"{name}.json").exists() for name in ("result", "failed", "cancelled"))


def clear_marks(run: Run) -> dict[Path, bytes]:
    """Removes the files that keep a run from starting; returns their contents, by path."""
    contents = {}
    for name in MARKS:
        path = run.folder / f"{name}.json"
        with suppress(FileNotFoundError):
            contents[path] = path.read_bytes()
            path.unlink()
    return contents


def holder(folder: Path) -> tuple[int, str] | None:
    """(process, host) that the lock file names, None if it names none."""
    with suppress(OSError):
        match = re.match(r"process (\d+) on (\S+)", (folder / "lock").read_text())
        if match:
            return int(match[1]), match[2]
    return None

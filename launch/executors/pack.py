"""Several runs side by side in one job of a cluster: each in a process of its own, as if alone.

Each has a share of the job's cores, or of a GPU with its memory, and its own state, log and
checkpoints. A run that ends leaves the others alone; one whose process is lost is started again
here; a cancelled one gets a signal to end. The job ends with the last of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.runs import runs
from experiments.runs.runs import Run
from launch import devices

LOOK_SECONDS = 1.0  # between two looks at the processes
CANCELLED_SECONDS = 5.0  # between two looks at whether runs were cancelled
MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # of a GPU, that a process takes; JAX takes 0.75
SHARED = 0.9  # of a GPU's memory, for all of its runs
ENDED = (0, 2, 3)  # exit statuses of the worker: finished, failed, cancelled


@dataclass
class _Member:
    """A run of the pack, and its process."""

    run: Run
    words: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    starts: int = 1
    stopping: bool = False  # told to end, and so not started again

    @property
    def status(self) -> int | None:
        return self.process.poll()


def run(tasks: Sequence[Sequence[str]], job: str) -> int:
    """Runs the tasks of a job, and returns the job's exit status.

    tasks: the worker's arguments of each. job: its id. Runs that a later job has are left to that.
    If a run has not ended, the status is that run's, so that the job is started again.
    """
    own_tasks = [task for task in tasks if not _given_away(Run(Path(task[0])), job)]
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, lambda n, frame: signals.append(n))
    members = [
        _start(task, environment)
        for task, environment in zip(own_tasks, environments(len(own_tasks)), strict=True)
    ]
    checked_at = time.monotonic()
    while any([_goes_on(member) for member in members]):  # noqa: C419  all are looked after
        time.sleep(LOOK_SECONDS)
        while signals:
            _signal([m for m in members if m.status is None], signal.Signals(signals.pop()))
            for member in members:
                member.stopping = True
        if time.monotonic() - checked_at > CANCELLED_SECONDS:
            checked_at = time.monotonic()
            _tell_cancelled(members)
    statuses = [member.process.returncode for member in members]
    going_on = [status for status in statuses if status not in ENDED]
    return going_on[0] if going_on else max(statuses, default=0)


def _given_away(run: Run, job: str) -> bool:
    """Whether a later job than this one has the run.

    A job may begin before its runs' job.json is written: that is then missing, or names an earlier
    job.
    """
    latest = (run.read("job") or {}).get("job") or job
    latest_number, own_number = (int(name.partition("_")[0] or 0) for name in (latest, job))
    return latest_number > own_number


def environments(number: int) -> list[dict[str, str]]:
    """The environments of `number` processes that share this job's GPUs, or else its cores."""
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
    if not gpus:
        return [devices.environment(slot) for slot in devices.cpu_slots(number)]
    shares = []
    for i in range(number):
        environment = devices.environment(devices.Slot(device=i % gpus))
        sharing = len(range(i % gpus, number, gpus))
        if sharing > 1 and MEMORY not in os.environ:
            environment[MEMORY] = f"{SHARED / sharing:.3f}"
        shares.append(environment)
    return shares


def _start(task: Sequence[str], environment: dict[str, str]) -> _Member:
    words = [sys.executable, "-P", "-u", "-m", "launch.executors.worker", "--packed", *task]
    process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL)
    return _Member(Run(Path(task[0])), words, environment, process)


def _goes_on(member: _Member) -> bool:
    """Whether a run's process goes on; a lost one is started again, as often as a job is."""
    status = member.status
    if status is None:
        return True
    if status in ENDED or member.stopping:
        return False
    options: dict[str, Any] = (member.run.read("job") or {}).get("cluster", {})
    if member.starts > options.get("retries", 3):
        reason = f"its process ended {member.starts} times, the last one with status {status}"
        runs.write_json(member.run.folder / "failed.json", {"reason": reason, "kind": "lost"})
        member.stopping = True
        return False
    member.starts += 1
    member.process = subprocess.Popen(
        member.words, env=member.environment, stdin=subprocess.DEVNULL
    )
    return True


def _tell_cancelled(members: Sequence[_Member]) -> None:
    for member in members:
        if member.status is None and not member.stopping and member.run.read("cancelled"):
            member.stopping = True
            _signal([member], signal.SIGTERM)


def _signal(members: Sequence[_Member], number: signal.Signals) -> None:
    for member in members:
        member.process.send_signal(number)

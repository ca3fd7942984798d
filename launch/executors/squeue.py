"""Calls of Slurm's programs `squeue`, `sacct` and `scancel`, each within a time limit.

A job is named as Slurm prints it: `12`, or `12_3` for task 3 of the array 12. Where Slurm does not
answer (no such program, no controller, no accounting), the answer is None or {}.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from launch import devices

SECONDS = 20  # limit of one call
AT_ONCE = 2000  # job ids in one command line
HABITS = ("SQUEUE_", "SACCT_", "SCANCEL_")  # the user's variables, which change the output
JOB = r"\d+(?:_\d+)?"
REFUSED = rf"error on job id ({JOB}): (.*)"  # a message of scancel

# States of jobs that have not ended, in the words of `squeue`.
WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD"})
WAITING |= {"SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = frozenset({"RUNNING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"})
ACTIVE = WAITING | RUNNING | {"COMPLETING"}


class SlurmError(ValueError):
    """Slurm refused, or does not answer."""

    user_error = True


@dataclass(frozen=True)
class Queued:
    """A job as `squeue` prints it."""

    job: str
    state: str  # PENDING, RUNNING, ...
    node: str  # of a running job its nodes, as in `n[1-2]`
    reason: str  # why it waits; '' if it does not
    left: str  # time until its limit, as in `1-02:00:00`

    @property
    def waiting(self) -> bool:
        return self.state in WAITING

    @property
    def running(self) -> bool:
        return self.state in RUNNING

    @property
    def active(self) -> bool:
        """It waits, runs or is ending."""
        return self.state in ACTIVE


def queue(user: str) -> dict[str, Queued] | None:
    """The jobs of a user, or of several with commas between, that have not ended, by id.

    None where Slurm does not answer.
    """
    jobs = recent_jobs(user)
    return None if jobs is None else {name: job for name, job in jobs.items() if job.active}


def recent_jobs(user: str) -> dict[str, Queued] | None:
    """As `queue`, with jobs that ended so recently that Slurm still lists them (5 minutes)."""
    text = ask("squeue", "-h", "-r", "-t", "all", "-u", user, "-o", "%i|%T|%L|%N|%r")
    if text is None:
        return None
    jobs = {}
    for line in text.splitlines():
        parts = line.split("|", 4)
        if len(parts) == 5:
            job, state, left, node, reason = (part.strip() for part in parts)
            jobs[job] = Queued(job, state, node, "" if reason == "None" else reason, left)
    return jobs


def ended(jobs: Collection[str]) -> dict[str, tuple[str, str]]:
    """(state, exit code) of jobs that accounting knows to have ended; {} where it does not answer.

    state: FAILED, CANCELLED, NODE_FAIL, ...; exit code: `STATUS:SIGNAL`.
    """
    ends: dict[str, tuple[str, str]] = {}
    for chunk in _chunks(sorted(jobs)):
        text = ask("sacct", "-n", "-P", "-X", "-o", "JobID,State,ExitCode", "-j", ",".join(chunk))
        for line in (text or "").splitlines():
            job, _, rest = line.partition("|")
            state, _, code = rest.partition("|")
            state = state.split()[0] if state else ""  # "CANCELLED by 1000"
            if state and state not in ACTIVE:
                ends[job] = (state, code)
    return ends


def cancel(jobs: Collection[str]) -> dict[str, str]:
    """Ends jobs; job -> reason of those that Slurm refused to end. Ended jobs are no error.

    Raises SlurmError where Slurm does not answer.
    """
    refused: dict[str, str] = {}
    for chunk in _chunks(sorted(job for job in jobs if re.fullmatch(JOB, job))):
        try:
            process = run("scancel", *chunk)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SlurmError(f"Slurm jobs can't be cancelled from here: {error}") from error
        refused.update(re.findall(REFUSED, process.stderr))
        if process.returncode and not re.search(REFUSED, process.stderr):
            last_words = devices.last_words(process)
            raise SlurmError(f"Slurm jobs can't be cancelled from here: {last_words}")
    harmless = ("already", "Invalid job id")
    return {job: why for job, why in refused.items() if not any(word in why for word in harmless)}


def ask(*words: str) -> str | None:
    """The output of a program; None where it is missing, fails or takes too long."""
    try:
        process = run(*words)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if process.returncode else process.stdout


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of Slurm. Raises OSError or subprocess.TimeoutExpired."""
    return subprocess.run(
        words,
        env={k: v for k, v in os.environ.items() if not k.startswith(HABITS)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS,
        check=False,
    )


def _chunks(jobs: Sequence[str]) -> list[Sequence[str]]:
    return [jobs[start : start + AT_ONCE] for start in range(0, len(jobs), AT_ONCE)]

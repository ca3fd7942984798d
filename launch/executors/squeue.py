"""Slurm's own programs, asked: `squeue`, `sacct` and `scancel`, each within a time limit.

A job is named as Slurm prints it: `12`, or `12_3` for the third task of the array 12. Where Slurm
does not answer (no such program, no controller, no accounting), what is asked gives None or {}.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from launch import devices

SECONDS = 20  # for one answer
AT_ONCE = 2000  # job ids in one command line
HABITS = ("SQUEUE_", "SACCT_", "SCANCEL_")  # variables of the user's, which are not for programs
JOB = r"\d+(?:_\d+)?"
REFUSED = rf"error on job id ({JOB}): (.*)"  # as scancel says it

# States of a job that still is to run or runs, as `squeue` names them.
WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD"})
WAITING |= {"SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = frozenset({"RUNNING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"})
ACTIVE = WAITING | RUNNING | {"COMPLETING"}


class SlurmError(ValueError):
    """Slurm refused, or does not answer."""

    user_error = True


@dataclass(frozen=True)
class Queued:
    """A job as `squeue` tells it.

    state: PENDING, RUNNING, ... node: of a running job, its nodes as Slurm writes them (`n[1-2]`).
    reason: why it waits, '' if it does not. left: until its time limit, as Slurm writes it.
    """

    job: str
    state: str
    node: str
    reason: str
    left: str

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
    """The jobs of a user (or of several, with commas between) that have not ended, by their ids.

    None where Slurm does not answer.
    """
    found = known(user)
    return None if found is None else {job: told for job, told in found.items() if told.active}


def known(user: str) -> dict[str, Queued] | None:
    """As `queue`, with those jobs that ended so lately that Slurm still holds them (5 minutes)."""
    text = ask("squeue", "-h", "-r", "-t", "all", "-u", user, "-o", "%i|%T|%L|%N|%r")
    if text is None:
        return None
    found = {}
    for line in text.splitlines():
        parts = line.split("|", 4)
        if len(parts) == 5:
            job, state, left, node, reason = (part.strip() for part in parts)
            found[job] = Queued(job, state, node, "" if reason == "None" else reason, left)
    return found


def ended(jobs: Collection[str]) -> dict[str, tuple[str, str]]:
    """(state, exit code) of jobs that accounting knows to have ended; {} where it does not answer.

    state: FAILED, CANCELLED, NODE_FAIL, ...; exit code: `STATUS:SIGNAL`.
    """
    found: dict[str, tuple[str, str]] = {}
    for some in _chunks(sorted(jobs)):
        text = ask("sacct", "-n", "-P", "-X", "-o", "JobID,State,ExitCode", "-j", ",".join(some))
        for line in (text or "").splitlines():
            job, _, rest = line.partition("|")
            state, _, code = rest.partition("|")
            state = state.split()[0] if state else ""  # "CANCELLED by 1000"
            if state and state not in ACTIVE:
                found[job] = (state, code)
    return found


def cancel(jobs: Collection[str]) -> dict[str, str]:
    """Ends jobs; why not, of those that it may not end. Jobs that have ended are no error.

    Raises SlurmError where Slurm does not answer.
    """
    refused: dict[str, str] = {}
    for some in _chunks(sorted(job for job in jobs if re.fullmatch(JOB, job))):
        try:
            done = run("scancel", *some)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SlurmError(f"Slurm jobs can't be cancelled from here: {error}") from error
        refused.update(re.findall(REFUSED, done.stderr))
        if done.returncode and not re.search(REFUSED, done.stderr):
            said = devices.last_words(done)
            raise SlurmError(f"Slurm jobs can't be cancelled from here: {said}")
    over = ("already", "Invalid job id")
    return {job: why for job, why in refused.items() if not any(word in why for word in over)}


def ask(*words: str) -> str | None:
    """What a program printed; None where it is not there, fails or takes too long."""
    try:
        done = run(*words)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


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

"""Jobs on this machine: each in a process of its own, or several, seeding runs first."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, Queue
from typing import Any

from experiments.runs import runs, state
from experiments.runs.runs import Run, RunError
from experiments.text import ending
from launch import devices
from launch.devices import Slot
from launch.executors.worker import STOPPED, arguments
from launch.planning.graph import Job

GRACE_SECONDS = 60.0  # for workers to save after an interrupt
LOST_SECONDS = 10.0  # for the other processes of a run that lost one
CHECK_SECONDS = 10.0  # between two looks for runs that need not go on

Process = subprocess.Popen[str]


@dataclass
class _Worker:
    job: Job
    slot: Slot
    processes: list[Process]  # the first one speaks for the run
    reason: str = ""  # why the run or one of its tests failed
    ended: str = ""  # why it need not go on, where it was stopped for that


Needless = Callable[[], Mapping[str, str]]


def run(
    jobs: Sequence[Job],
    slots: Sequence[Slot],
    on_event: Callable[[Job, dict[str, Any]], None],
    processes: int = 1,
    needless: Needless = dict,
) -> dict[str, str]:
    """Runs jobs that are not done, as many at once as there are slots.

    processes: of each job, which train it together, each on a part of the slot's cores. needless:
    gives the runs that need not go on, run id -> why, and is asked again and again.
    `on_event(job, event)` gets each job's `launched`, `start`, `progress`, `testing`, `locked`,
    `finished`, `failed`, `blocked` (its seeding run failed) and `ended` (it need not go on).
    Returns run id -> reason of those that did not finish, and should have. An interrupt lets the
    workers save and leave first.
    """
    waiting = {job.run.id: job for job in jobs if not job.done}
    failed: dict[str, str] = {}
    for job in [job for job in waiting.values() if job.run.diverged]:
        failed[job.run.id] = state.why_failed(waiting.pop(job.run.id).run)
        on_event(job, {"event": "failed", "reason": failed[job.run.id]})
    free, active = list(slots), dict[str, _Worker]()
    events: Queue[tuple[str, dict[str, Any] | None]] = Queue()
    checked = time.monotonic()
    try:
        while waiting or active:
            if time.monotonic() > checked + CHECK_SECONDS:
                _end_needless(needless(), waiting, active, on_event)
                checked = time.monotonic()
            _give_up_blocked(waiting, failed, on_event)
            for job in _ready(waiting, active)[: len(free)]:
                del waiting[job.run.id]
                try:
                    worker = _launch(job, free[0], events, processes)
                except RunError as error:  # of this run's folder; others may go on
                    failed[job.run.id] = str(error)
                    on_event(job, {"event": "failed", "reason": str(error)})
                    continue
                del free[0]
                active[job.run.id] = worker
                on_event(job, {"event": "launched"})
            if not active:
                continue
            try:
                run_id, event = events.get(timeout=1.0)
            except Empty:
                continue
            worker = active[run_id]
            if event is not None and event["event"] in ("untested", "failed"):
                worker.reason = event["reason"]
                continue
            if event is not None:
                on_event(worker.job, event)
                continue
            del active[run_id]
            free.append(worker.slot)
            event = _last_event(worker)
            if event["event"] == "failed":
                failed[run_id] = event["reason"]
            on_event(worker.job, event)
    finally:
        _stop([process for worker in active.values() for process in worker.processes])
    return failed


def blocked(job: Job, failed: Collection[str]) -> bool:
    """Whether a job's seeding run is among those that failed. A trained one can seed, though its
    tests failed."""
    seeding = job.seeding
    return seeding is not None and seeding.run.id in failed and not seeding.run.trained


def blocked_by(job: Job) -> str:
    """Why a job can't run whose seeding run failed."""
    assert job.seeding is not None
    return f"its seeding run, {job.seeding.name}, failed"


def can_run(job: Job) -> bool:
    """Whether a job can still finish: a run that diverged would diverge again."""
    if job.run.trained:
        return True
    if job.run.diverged:
        return False
    return job.seeding is None or can_run(job.seeding)


def _give_up_blocked(
    waiting: dict[str, Job], failed: dict[str, str], on_event: Callable[[Job, dict[str, Any]], None]
) -> None:
    """Moves jobs whose seeding run failed, and the jobs that these seed, from `waiting` to
    `failed`."""
    while stuck := [job for job in waiting.values() if blocked(job, failed)]:
        for job in stuck:
            del waiting[job.run.id]
            failed[job.run.id] = blocked_by(job)
            on_event(job, {"event": "blocked", "reason": failed[job.run.id]})


def _end_needless(
    reasons: Mapping[str, str],
    waiting: dict[str, Job],
    active: dict[str, _Worker],
    on_event: Callable[[Job, dict[str, Any]], None],
) -> None:
    """Takes jobs that need not go on from `waiting`, and has those that are active save and
    leave."""
    for run_id, reason in reasons.items():
        if run_id in waiting:
            on_event(waiting.pop(run_id), {"event": "ended", "reason": reason})
        elif run_id in active and not active[run_id].ended:
            active[run_id].ended = reason
            threading.Thread(target=_stop, args=(active[run_id].processes,), daemon=True).start()


def _ready(waiting: dict[str, Job], active: dict[str, _Worker]) -> list[Job]:
    """Jobs whose seeding run is trained; first those that lead the longest chain of work."""
    missing = waiting.keys() | active.keys()
    ready = [j for j in waiting.values() if j.seeding is None or j.seeding.run.id not in missing]
    seeded: dict[str, list[Job]] = {}
    for job in waiting.values():
        if job.seeding is not None:
            seeded.setdefault(job.seeding.run.id, []).append(job)

    def work(job: Job) -> int:
        return job.training_macs + max(map(work, seeded.get(job.run.id, ())), default=0)

    return sorted(ready, key=work, reverse=True)


def record_start(run: Run) -> None:
    """Records how a run was started here, for `cnn-depth status` and `retry`."""
    state.clear_marks(run)
    command = shlex.join(["cnn-depth", *sys.argv[1:]])
    started = {"backend": "local", "command": command, "started": time.time()}
    runs.write_json(run.folder / "job.json", started)


def _launch(
    job: Job, slot: Slot, events: Queue[tuple[str, dict[str, Any] | None]], processes: int
) -> _Worker:
    job.create()
    record_start(job.run)
    words = arguments(job.run, job.tests, job.modules)
    group = [
        subprocess.Popen(
            [*devices.PYTHON, "-m", "launch.executors.worker", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if index else subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # an interrupt of the terminal reaches it through `_stop` only
        )
        for index, environment in enumerate(_environments(slot, processes))
    ]

    def listen() -> None:
        out = group[0].stdout
        assert out is not None
        with out:
            for line in out:
                with suppress(json.JSONDecodeError):  # a line cut short by a kill
                    events.put((job.run.id, json.loads(line)))
        group[0].wait()
        events.put((job.run.id, None))

    def watch() -> None:
        """Stops all processes when one is lost: the others would wait for it."""
        while all(process.poll() is None for process in group):
            time.sleep(0.2)
        if any(process.poll() for process in group):
            _stop(group, LOST_SECONDS)

    threading.Thread(target=listen, daemon=True).start()
    if processes > 1:
        threading.Thread(target=watch, daemon=True).start()
    return _Worker(job, slot, group)


def _environments(slot: Slot, processes: int) -> list[dict[str, str]]:
    """The environments of the processes that share a slot; process i has its i-th accelerators."""
    if processes == 1:
        return [devices.environment(slot)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    size = max(1, len(slot.cores) // processes)
    environments = []
    for index in range(processes):
        start = index * size % max(1, len(slot.cores))
        device = None if slot.device is None else slot.device * processes + index
        share = replace(slot, cores=slot.cores[start : start + size], device=device)
        environments.append(
            {**devices.environment(share), **devices.process_variables(index, processes, address)}
        )
    return environments


def _last_event(worker: _Worker) -> dict[str, Any]:
    """What is told of a job whose processes have left."""
    if worker.ended and not worker.job.done:
        return {"event": "ended", "reason": worker.ended}
    if reason := _end(worker):
        return {"event": "failed", "reason": reason}
    return {"event": "finished"}


def _end(worker: _Worker) -> str:
    """Why a worker's run is not finished; empty if it is."""
    if worker.job.done:
        return ""
    run = worker.job.run
    codes = [process.poll() or 0 for process in worker.processes]
    code = codes[0]
    if code == 2 and (reason := state.why_failed(run) or worker.reason):
        return reason
    if STOPPED in codes:
        return "stopped; it goes on when started again"
    code = next((c for c in codes if c not in (0, -signal.SIGTERM, -signal.SIGKILL)), code)
    return f"its process ended with {ending(code)}; see {run.folder / 'log.txt'}"


def _stop(processes: Sequence[Process], grace: float = GRACE_SECONDS) -> None:
    """Asks processes to save and leave, and ends those that do not."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    end = time.monotonic() + grace
    for process in processes:
        try:
            process.wait(timeout=max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()

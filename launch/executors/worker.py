"""One run in a process of its own, or in several.

    python -m launch.executors.worker FOLDER [TESTS [MODULES]]
    python -m launch.executors.worker --jobs FILE      (as a task of a Slurm job)
    python -m launch.executors.worker --packed FOLDER TESTS MODULES    (beside others in one)

Trains the run, and then tests it by each of TESTS, a JSON list of `{protocol, scales, flip}`. What
is trained or tested already is not done again. MODULES is the folder of the user's module that
defines its network. FILE holds a JSON list with an entry for each job of an array: [FOLDER, TESTS,
MODULES], or a list of these, which run side by side (`pack`).

Events go to standard output, a JSON object a line; the current figures to progress.json; all other
output to the run's log.txt (log-1.txt, ... of further processes). SIGTERM, SIGINT and SIGUSR2 make
it save and leave; so does the end of the reader of its events.

Exit status: 0 finished; 2 the run failed for a reason of its own, which failed.json has, and of a
test untested.json and an event; 75 it was asked to stop and can go on later; else a bug or a lost
process. On a cluster, which starts jobs again: 3 it was cancelled. A run that is trained but failed
a test ends with 0 there, as the runs that it seeds can start.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.runs import runs
from experiments.runs.runs import Run
from launch import devices

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from experiments.testing.prediction_store import PlannedTest

    Tell = Callable[[dict[str, Any]], None]
    Stop = Callable[[], bool]

FINISHED, FAILED, CANCELLED, STOPPED = 0, 2, 3, 75  # EX_TEMPFAIL
UNSTARTED = "CNN_DEPTH_UNSTARTED"  # names a file: a line for each start without this program
TOLD_SECONDS = 5.0  # between writes of progress.json while events come
BEAT_SECONDS = 20.0  # between writes while none come
FIGURES = ("step", "steps", "loss", "error", "images_per_s", "left")  # of progress.json


def arguments(run: Run, tests: Sequence[PlannedTest], modules: str) -> list[str]:
    return [str(run.folder.absolute()), json.dumps([asdict(test) for test in tests]), modules]


def main(folder: Path, tests: str = "[]", modules: str = "", *, cluster: bool = False) -> int:
    """Trains and tests the run in `folder`, once no other process does; the exit status.

    modules: the folder of a user's module. cluster: whether this is a task of a Slurm job, which is
    started again if it is lost or stopped.
    """
    with devices.starting() as on_event:
        return _main(folder, tests, modules, cluster, on_event)


def _main(folder: Path, tests: str, modules: str, cluster: bool, on_event: Tell) -> int:
    index, count = devices.process_index(slurm=cluster)
    events = None if cluster or index else os.fdopen(os.dup(1), "w", buffering=1)
    signals = _set_up(folder / (f"log-{index}.txt" if index else "log.txt"))

    from experiments.testing import prediction_store

    run = Run(folder)
    recorder: Recorder | None = None

    def tell(event: dict[str, Any]) -> None:
        on_event(event)
        if event["event"] == "note":
            print(event["text"])  # in log.txt
        if recorder is not None:
            recorder(event)
        try:
            if events is not None:
                events.write(json.dumps(event) + "\n")
        except OSError:  # whoever reads them is gone
            signals.append(signal.SIGPIPE)

    planned = [prediction_store.PlannedTest(**test) for test in json.loads(tests)]
    if not index and run.locked():
        tell({"event": "locked"})
    try:
        with nullcontext() if index else run.lock(wait=lambda: not signals):
            recorder = None if index else Recorder(run, count)
            outcome = _given_up(run, index) if cluster else None
            if outcome is None:
                devices.join(slurm=cluster)
                if modules:
                    import cnn_arch

                    cnn_arch.look_in(modules)
                outcome = _train(run, tell, lambda: bool(signals), cluster)
                outcome = outcome or _test(run, planned, tell, lambda: bool(signals), cluster)
            status = outcome
            if not index and status == FINISHED:
                (folder / "attempts.json").unlink(missing_ok=True)
    except runs.RunLocked:  # asked to stop while another process had it
        status = STOPPED
    except Exception:
        if count == 1:
            raise
        traceback.print_exc()
        status = 1
    if status == STOPPED and cluster and run.read("cancelled"):
        status = CANCELLED
    if recorder is not None:
        recorder.close()
    if status and count > 1:
        # The others may be anywhere; waiting for them at this process's end could take minutes.
        sys.stdout.flush()
        os._exit(status)
    return status


def _set_up(log: Path) -> list[int]:
    """Sends standard output and errors to a log file. Returns a list to which signals to stop are
    appended when they come."""
    file = open(log, "a", buffering=1, opener=runs.no_link)  # noqa: SIM115
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, lambda n, frame: signals.append(n))
    devices.set_up()
    return signals


def _given_up(run: Run, index: int) -> int | None:
    """The exit status of a job that must not go on: its run was cancelled, failed for its own
    reason, or was started too often without progress. None if it is to go on."""
    restarted = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    trained = run.read("result") is not None
    if run.read("cancelled"):
        return CANCELLED
    if restarted and run.read("failed"):
        return FAILED
    if restarted and trained and run.read("untested"):
        return FINISHED
    if index:
        return None
    retries = (run.read("job") or {}).get("cluster", {}).get("retries", 3)
    position = _position(run)
    attempts = run.read("attempts") or {"got_to": None, "count": 0}
    count = attempts["count"] + 1 if attempts["got_to"] == position else 1
    if count <= 1 + retries:
        runs.write_json(run.folder / "attempts.json", {"got_to": position, "count": count})
        return None
    reason = (
        f"it was stopped or lost {attempts['count']} times in a row {'in its tests' * trained}"
        f"{f'at step {position[0]}' * (not trained)} without getting further; "
        f"`cnn-depth logs {run.id}` shows what it said last, and `cnn-depth retry {run.id}` tries "
        "again"
    )
    if trained:
        runs.write_json(run.folder / "untested.json", {"reason": reason})
        return FINISHED
    runs.write_json(run.folder / "failed.json", {"reason": reason, "kind": "lost"})
    return FAILED


def _position(run: Run) -> list[float]:
    """How far a run is: the step of its latest checkpoint, and the time of its latest test."""
    steps = [int(path.name) for path in run.checkpoints.glob("*") if path.name.isdecimal()]
    test_times = [path.stat().st_mtime for path in (run.folder / "predictions").glob("*.npz")]
    return [max(steps, default=0), max(test_times, default=0)]


def _mesh(cluster: bool) -> Mesh:
    """All devices of the job's processes. Raises DeviceError where the job's GPUs are missing."""
    mesh = devices.mesh()
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0) if cluster else 0
    if gpus and mesh.devices.flat[0].platform == "cpu":
        raise devices.DeviceError(f"the job has {gpus} GPUs a node, and JAX finds none here")
    return mesh


def _train(run: Run, tell: Tell, stop: Stop, cluster: bool) -> int:
    from experiments.runs import processes
    from experiments.training import train

    try:
        train.train(run, _mesh(cluster), on_event=tell, stop=stop)
    except train.Interrupted:
        return STOPPED
    except train.Diverged:  # it has said so in failed.json
        return FAILED
    except Exception as error:
        # A node's devices are not the run's own reason: it may start on another.
        elsewhere = cluster and isinstance(error, devices.DeviceError)
        if elsewhere or not getattr(error, "user_error", False):
            raise
        if processes.first() or not run.read("failed"):
            with suppress(runs.RunError):  # a full disk, or a folder that is gone
                runs.write_json(run.folder / "failed.json", {"reason": str(error)})
        tell({"event": "failed", "reason": str(error)})
        return FAILED
    return FINISHED


def _test(run: Run, planned: Sequence[PlannedTest], tell: Tell, stop: Stop, cluster: bool) -> int:
    """Runs the planned tests that are not kept yet; a test that is stopped goes on later."""
    from experiments.runs import processes
    from experiments.testing import evaluate, prediction_store
    from experiments.training import train

    if not planned:
        return FINISHED
    kept_flags = processes.from_first([prediction_store.is_complete(run, test) for test in planned])
    missing = [test for test, is_kept in zip(planned, kept_flags, strict=True) if not is_kept]

    @contextmanager
    def bar(label: str) -> Iterator[Callable[[int, int], None]]:
        def on_progress(done: int, total: int) -> None:
            name = label.removeprefix(run.id).strip(": ")
            tell({"event": "testing", "what": name, "images": done, "of": total})
            if stop():
                raise train.Interrupted(f"stopped in the test {name}, which goes on from there")

        yield on_progress

    def on_bad(reason: str) -> None:
        tell({"event": "bad_image", "reason": reason})

    subject: evaluate.Subject | None = None
    failed: list[str] = []
    for test in missing:
        try:
            subject = subject or evaluate.Subject(
                run, _mesh(cluster), prediction_store.EvaluationSettings(), bar, on_bad
            )
            subject.tested(test.protocol, test.scales, flip=test.flip)
        except train.Interrupted:
            return STOPPED
        except Exception as error:
            if not getattr(error, "user_error", False):
                raise
            failed.append(f"test {test.name}: {error}")
            if processes.several():  # the others may wait for this process
                runs.write_json(run.folder / "untested.json", {"reason": failed[-1]})
                raise
    if processes.first():
        (run.folder / "untested.json").unlink(missing_ok=True)
    if not failed:
        return FINISHED
    reason = "; ".join(failed)
    if processes.first():
        runs.write_json(run.folder / "untested.json", {"reason": reason})
    tell({"event": "untested", "reason": reason})
    return FINISHED if cluster else FAILED


class Recorder:
    """Writes a run's progress.json, for other processes and hosts.

    Call it with the run's events. Between them, as in a long compilation, it writes a sign of life,
    until it is closed.
    """

    def __init__(self, run: Run, processes: int):
        self._run, self._written = run, float("-inf")
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._progress: dict[str, Any] = {
            "state": "starting",
            **dict.fromkeys(FIGURES),
            "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            "pid": os.getpid(),
            "processes": processes,
            "job": _slurm_id(),
        }
        self._write()
        threading.Thread(target=self._beat, daemon=True).start()

    def __call__(self, event: dict[str, Any]) -> None:
        """Takes an event. Raises RunError where the run's folder is gone."""
        kind = event["event"]
        previous_state = self._progress["state"]
        if kind == "start":
            self._progress |= {"step": event["step"], "steps": event["steps"], "state": "training"}
        elif kind == "progress":
            self._progress |= {name: event[name] for name in FIGURES}
        elif kind in ("statistics", "testing"):
            self._progress |= {"state": kind, "left": None}
        now = time.monotonic()
        if self._progress["state"] != previous_state or now - self._written > TOLD_SECONDS:
            self._write()
            if not self._run.folder.is_dir():
                raise runs.RunError(f"{self._run.folder} was deleted while it was trained")

    def _write(self) -> None:
        with self._lock:
            self._written = time.monotonic()
            content = {"time": time.time(), **self._progress}
            with suppress(runs.RunError):  # the training reports a full disk where it matters
                runs.write_json(self._run.folder / "progress.json", content)

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            self._write()

    def close(self) -> None:
        """Says that the process has ended with the run, for now or for good."""
        self._closed.set()
        self._progress["state"] = "ended"
        self._write()


def _slurm_id() -> str:
    """The id of this process's job, as `squeue` prints it; '' where there is none."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def _of_cluster(file: Path) -> int:
    index = int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)
    task = json.loads(file.read_bytes())[index]
    if os.environ.get(UNSTARTED):
        Path(os.environ[UNSTARTED]).unlink(missing_ok=True)
    if isinstance(task[0], str):
        folder, tests, modules = task
        return main(Path(folder), tests, modules, cluster=True)
    from launch.executors import pack

    return pack.run(task, _slurm_id())


if __name__ == "__main__":
    if sys.argv[1] == "--jobs":
        sys.exit(_of_cluster(Path(sys.argv[2])))
    if sys.argv[1] == "--packed":
        sys.exit(main(Path(sys.argv[2]), *sys.argv[3:5], cluster=True))
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:4]))

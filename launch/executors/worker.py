"""One run in a process of its own, or in several.

    python -m launch.executors.worker FOLDER [TESTS [MODULES]]
    python -m launch.executors.worker --jobs FILE      (as a task of a Slurm job)
    python -m launch.executors.worker --packed FOLDER TESTS MODULES    (beside others in one)

Trains the run, and then tests it by each of TESTS, a JSON list of `{protocol, scales, flip}`; what
is trained or tested already is not done again. MODULES is the folder of a user's module that its
network is of. FILE holds a JSON list of [FOLDER, TESTS, MODULES], or of lists of these, of which
the job does those of its index in its array, side by side (`pack`). Writes events, one JSON object
a line, to standard output, where it is in progress.json, and all else to the run's log.txt
(log-1.txt, ... of the second process on). SIGTERM, SIGINT and SIGUSR2 make it save where it is and
leave; so does the end of whoever reads the events.

Exit status: 0 finished, 2 the run failed for a reason of its own (told in failed.json, and of a
test in untested.json and an event), 75 it was asked to stop and can go on later, else a bug or a
lost process. On a cluster, where it is started again by itself: 3 it was cancelled, and a run that
is trained and could not be tested has ended with 0, as what it seeds can start.
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

    from experiments.testing.kept import PlannedTest

    Tell = Callable[[dict[str, Any]], None]
    Stop = Callable[[], bool]

FINISHED, FAILED, CANCELLED, STOPPED = 0, 2, 3, 75  # EX_TEMPFAIL
UNSTARTED = "CNN_DEPTH_UNSTARTED"  # names the file that counts starts of a job without this program
TOLD_SECONDS = 5.0  # between two writings of progress.json
BEAT_SECONDS = 20.0  # at most
FIGURES = ("step", "steps", "loss", "error", "images_per_s", "left")  # of progress.json


def arguments(run: Run, tests: Sequence[PlannedTest], modules: str) -> list[str]:
    return [str(run.folder.absolute()), json.dumps([asdict(test) for test in tests]), modules]


def main(folder: Path, tests: str = "[]", modules: str = "", *, cluster: bool = False) -> int:
    """Trains and tests the run in `folder`, once nobody else does.

    modules: the folder of a user's module. cluster: as a task of a Slurm job, which is started
    again where it is lost or stopped.
    """
    with devices.starting() as heard:
        return _main(folder, tests, modules, cluster, heard)


def _main(folder: Path, tests: str, modules: str, cluster: bool, heard: Tell) -> int:
    index, count = devices.place(slurm=cluster)
    events = None if cluster or index else os.fdopen(os.dup(1), "w", buffering=1)
    asked = _set_up(folder / (f"log-{index}.txt" if index else "log.txt"))

    from experiments.testing import kept

    run = Run(folder)
    recorded: Recorder | None = None

    def tell(event: dict[str, Any]) -> None:
        heard(event)
        if event["event"] == "note":
            print(event["text"])  # in log.txt
        if recorded is not None:
            recorded(event)
        try:
            if events is not None:
                events.write(json.dumps(event) + "\n")
        except OSError:  # whoever reads them is gone
            asked.append(signal.SIGPIPE)

    planned = [kept.PlannedTest(**test) for test in json.loads(tests)]
    if not index and run.locked():
        tell({"event": "locked"})
    try:
        with nullcontext() if index else run.lock(wait=lambda: not asked):
            recorded = None if index else Recorder(run, count)
            ended = _given_up(run, index) if cluster else None
            if ended is None:
                devices.join(slurm=cluster)
                if modules:
                    import cnn_arch

                    cnn_arch.look_in(modules)
                ended = _train(run, tell, lambda: bool(asked), cluster)
                ended = ended or _test(run, planned, tell, lambda: bool(asked), cluster)
            status = ended
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
    if recorded is not None:
        recorded.close()
    if status and count > 1:
        # The others may be anywhere; waiting for them at this process's end could take minutes.
        sys.stdout.flush()
        os._exit(status)
    return status


def _set_up(log: Path) -> list[int]:
    """Sends standard output and errors to a log file; signals to stop are listed in what it gives,
    once they come."""
    file = open(log, "a", buffering=1, opener=runs.no_link)  # noqa: SIM115
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, lambda n, frame: asked.append(n))
    devices.set_up()
    return asked


def _given_up(run: Run, index: int) -> int | None:
    """The status with which a job ends that Slurm started (again): it was cancelled, it failed for
    its own reason, or got no further too often. None if it is to go on."""
    again = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    trained = run.read("result") is not None
    if run.read("cancelled"):
        return CANCELLED
    if again and run.read("failed"):
        return FAILED
    if again and trained and run.read("untested"):
        return FINISHED
    if index:
        return None
    most = (run.read("job") or {}).get("cluster", {}).get("retries", 3)
    got = _got_to(run)
    before = run.read("attempts") or {"got_to": None, "count": 0}
    count = before["count"] + 1 if before["got_to"] == got else 1
    if count <= 1 + most:
        runs.write_json(run.folder / "attempts.json", {"got_to": got, "count": count})
        return None
    reason = (
        f"it was stopped or lost {before['count']} times in a row {'in its tests' * trained}"
        f"{f'at step {got[0]}' * (not trained)} without getting further; `cnn-depth logs {run.id}` "
        f"shows what it said last, and `cnn-depth retry {run.id}` tries again"
    )
    if trained:
        runs.write_json(run.folder / "untested.json", {"reason": reason})
        return FINISHED
    runs.write_json(run.folder / "failed.json", {"reason": reason, "kind": "lost"})
    return FAILED


def _got_to(run: Run) -> list[float]:
    """How far a run is: its latest checkpoint, and when something of its tests was last kept."""
    saved = [int(path.name) for path in run.checkpoints.glob("*") if path.name.isdecimal()]
    kept = [path.stat().st_mtime for path in (run.folder / "predictions").glob("*.npz")]
    return [max(saved, default=0), max(kept, default=0)]


def _mesh(cluster: bool) -> Mesh:
    """All devices of the job's processes. Raises DeviceError where they are not what was asked."""
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
    """Tests the run by what is not kept yet; a test that is stopped goes on later."""
    from experiments.runs import processes
    from experiments.testing import evaluate, kept
    from experiments.training import train

    if not planned:
        return FINISHED
    there = processes.agreed([kept.there(run, test) for test in planned])
    missing = [test for test, kept_already in zip(planned, there, strict=True) if not kept_already]

    @contextmanager
    def bar(label: str) -> Iterator[Callable[[int, int], None]]:
        def on_progress(done: int, total: int) -> None:
            what = label.removeprefix(run.id).strip(": ")
            tell({"event": "testing", "what": what, "images": done, "of": total})
            if stop():
                raise train.Interrupted(f"stopped in the test {what}, which goes on from there")

        yield on_progress

    def on_bad(reason: str) -> None:
        tell({"event": "bad_image", "reason": reason})

    subject: evaluate.Subject | None = None
    failed: list[str] = []
    for test in missing:
        try:
            subject = subject or evaluate.Subject(run, _mesh(cluster), kept.Asked(), bar, on_bad)
            subject.tested(test.protocol, test.scales, flip=test.flip)
        except train.Interrupted:
            return STOPPED
        except Exception as error:
            if not getattr(error, "user_error", False):
                raise
            failed.append(f"test {test.name}: {error}")
            if processes.several():  # the others may wait for this one's part
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
    """Keeps in a run's progress.json where it is, for whoever looks from another process or host.

    Call it with the run's events. It shows a sign of life between them too, however long a
    compilation takes, until it is closed.
    """

    def __init__(self, run: Run, processes: int):
        self._run, self._written = run, float("-inf")
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._told: dict[str, Any] = {
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
        before = self._told["state"]
        if kind == "start":
            self._told |= {"step": event["step"], "steps": event["steps"], "state": "training"}
        elif kind == "progress":
            self._told |= {name: event[name] for name in FIGURES}
        elif kind in ("statistics", "testing"):
            self._told |= {"state": kind, "left": None}
        now = time.monotonic()
        if self._told["state"] != before or now - self._written > TOLD_SECONDS:
            self._write()
            if not self._run.folder.is_dir():
                raise runs.RunError(f"{self._run.folder} was deleted while it was trained")

    def _write(self) -> None:
        with self._lock:
            self._written = time.monotonic()
            told = {"time": time.time(), **self._told}
            with suppress(runs.RunError):  # of a full disk the training tells, where it matters
                runs.write_json(self._run.folder / "progress.json", told)

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            self._write()

    def close(self) -> None:
        """Says that the process has ended with the run, for now or for good."""
        self._closed.set()
        self._told["state"] = "ended"
        self._write()


def _slurm_id() -> str:
    """Of this process's job, as `squeue` shows it; '' where there is none."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{what}_ID") for what in ("JOB", "TASK"))
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

"""The process that sends a run to a tracker: `python -m experiments.tracking.sender FOLDER NAME`.

It follows metrics.jsonl, so that a training never waits for a tracker, and asks the tracker what it
has already, so that whatever was missed is sent by the next start. Standard input: at the end of
the training a line with the seconds for the rest; if it closes without one, the training was lost.
Standard output: lines of JSON, `{"sent": step}` and `{"failed": why}`. Whatever the tracker's
library prints is dropped, as it may hold keys.
"""

import importlib
import json
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from experiments.runs.names import with_seed
from experiments.runs.runs import Run, RunError
from experiments.text import visible

LOOK_SECONDS = 2.0  # between two looks at metrics.jsonl
AGAIN_SECONDS = 60.0  # before a tracker that failed is tried again
LINGER_SECONDS = 600.0  # for the rest of a finished run, which nobody starts again
GRACE_SECONDS = 5.0  # until the process ends where the training was lost
KEPT = ("run.json", "starts.json", "metrics.jsonl", "result.json")  # files that a tracker gets
SECRET = re.compile("KEY|TOKEN|PASSWORD|SECRET", re.IGNORECASE)  # names of variables
MOST_CHARACTERS = 300  # of an error


class About(NamedTuple):
    """The description of a run that a tracker gets."""

    name: str  # STUDY/ROW (seed 2)
    study: str  # '' if no study made the run
    config: dict[str, Any]  # flat: 'train.batch_size' -> 128
    start: dict[str, str]  # of its last start: devices, processor, commit, versions
    pid: int  # of the process that trains


def about(run: Run) -> About:
    """The description of a run, from its folder. Raises RunError where that can't be read."""
    content = run.read("run") or {}
    row = with_seed(str(content.get("row") or run.id), content.get("seed") or 0)
    study = str(content.get("study") or "")
    start: dict[str, Any] = {}
    with suppress(RunError, LookupError):  # it was cut, and nothing depends on it
        last = (run.read("starts") or {})["starts"][-1]
        start = {**last["versions"], **last}
    return About(
        name=f"{study}/{row}" if study else row,
        study=study,
        config=_flat(content["config"]),
        start={k: v for k, v in start.items() if isinstance(v, str) and v},
        pid=os.getppid(),
    )


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Does what `experiments.config.flatten` does, without its imports."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


@dataclass(frozen=True)
class Ended:
    """How a training ended."""

    state: str  # finished, failed or stopped
    result: dict[str, Any]  # result.json; empty where there is none
    files: Sequence[Path]  # for the tracker to keep
    picture: Path | None = None  # of its curves, if it is finished


class Tracker(Protocol):
    """A run in a tracker: one for a run's id, however often it is started. Made with the run and
    its `About`. After any exception it is made anew, and sent all lines again."""

    def send(self, lines: Sequence[dict[str, Any]]) -> int | None:
        """Sends the lines of metrics.jsonl that it lacks, in order. Returns its last step now."""

    def end(self, ended: Ended | None) -> None:
        """Sends how the training ended, and waits until all is sent. None: it was lost."""


class _End(threading.Thread):
    """Waits for the training's end, and then limits the time of this process."""

    def __init__(self, run: Run):
        super().__init__(daemon=True)
        self._run, self.happened, self.orderly = run, threading.Event(), False

    def run(self) -> None:
        line = sys.stdin.readline().strip()
        self.orderly = bool(line)
        seconds = float(line or GRACE_SECONDS)
        if line and (self._run.folder / "result.json").exists():
            seconds = max(seconds, LINGER_SECONDS)
        # The alarm ends this process, in whatever call it hangs.
        signal.setitimer(signal.ITIMER_REAL, seconds)
        self.happened.set()


def main(folder: Path, name: str) -> int:
    """Follows the run to its end. Returns 0 where the tracker then has all of it, else 1."""
    output = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.nice(5)  # after the training's own work
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # what they ask for, the training does

    def tell(**message: Any) -> None:
        with suppress(OSError):  # the training has gone
            print(json.dumps(message), file=output, flush=True)

    run = Run(folder)
    end = _End(run)
    end.start()
    module = importlib.import_module(f"experiments.tracking.{name}_run")
    # The process of an earlier start may be about to leave.
    with run.metrics.open("rb") as file, run.lock(name=f"{name}.lock", wait=lambda: True):
        return _follow(run, file, lambda: module.Tracker(run, about(run)), end, tell)


def _follow(
    run: Run, file: BinaryIO, connect: Callable[[], Tracker], end: _End, tell: Callable[..., None]
) -> int:
    tracker: Tracker | None = None
    failing = ""
    while True:
        has_ended = end.happened.is_set()
        try:
            if tracker is None:
                file.seek(0)
                tracker = connect()
            if lines := _new_lines(file):
                tell(sent=tracker.send(lines))
            if has_ended:
                with tempfile.TemporaryDirectory() as folder:
                    tracker.end(_ended(run, Path(folder)) if end.orderly else None)
                return 0
            failing = ""
        except (Exception, SystemExit) as error:
            tracker, why = None, _why(error)
            if why != failing:
                tell(failed=why)
            failing = why
            if has_ended:
                return 1
        end.happened.wait(LOOK_SECONDS if tracker is not None else AGAIN_SECONDS)


def _new_lines(file: BinaryIO) -> list[dict[str, Any]]:
    """The complete lines that were added since the last call."""
    start, text = file.tell(), file.read()
    complete = text[: text.rfind(b"\n") + 1]
    file.seek(start + len(complete))
    lines = []
    for line in complete.splitlines():
        with suppress(ValueError):
            content = json.loads(line)
            if isinstance(content, dict) and "step" in content:
                lines.append(content)
    return lines


def numbers(content: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line or of result.json, without the step."""
    return {
        name: value
        for name, value in content.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
    }


def _ended(run: Run, folder: Path) -> Ended:
    """How the training ended. folder: for the picture."""
    result, failed = run.read("result"), run.read("failed")
    files = [path for name in KEPT if (path := run.folder / name).is_file()]
    if result is None:
        return Ended("stopped" if failed is None else "failed", {}, files)
    return Ended("finished", result, files, _picture(run, folder / "curves.png"))


def _picture(run: Run, path: Path) -> Path | None:
    """The errors (or precisions) and losses that were logged, over epochs; None without any."""
    lines = [line for line in run.logged() if "epoch" in line]
    suffixes = ("error", "precision", "loss")
    names = {key: None for line in lines for key in line if key.endswith(suffixes)}
    if not names:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 7), layout="constrained")
    errors, losses = figure.subplots(2, sharex=True)
    for name in names:
        axes = losses if name.endswith("loss") else errors
        points = [(line["epoch"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), label=name)
    precise = any(name.endswith("precision") for name in names)
    errors.set(title=run.id, ylabel="mean average precision, %" if precise else "error, %")
    losses.set(xlabel="epoch", ylabel="loss")
    for axes in (errors, losses):
        axes.legend()
    figure.savefig(path, dpi=100)
    return path


def _why(error: BaseException) -> str:
    """An error in one line, without passwords and keys: servers' addresses may hold them."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = re.sub(r"(?<=://)[^/@\s]+@", "***@", text)
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) > 3:
            text = text.replace(value, "***")
    text = visible(text)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))

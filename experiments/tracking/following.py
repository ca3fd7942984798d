"""The training's side of its trackers: a process for each, which it never waits for in its loop."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from experiments.runs.runs import Run
from experiments.tracking import REMOTE
from experiments.tracking.sender import LINGER_SECONDS

PATIENCE_SECONDS = 5.0  # at the end, for all trackers together
ROOT = Path(__file__).resolve().parents[2]


class Sender:
    """The training's end of the process that sends a run to a tracker."""

    def __init__(self, run: Run, name: str):
        self.run, self.name = run, name
        self.sent: int | None = None  # the last step that was handed to the tracker
        self._rest, self._gone = b"", False
        self._later = f"`cnn-depth track {run.id} --to {name}` sends"
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        words = ["-m", "experiments.tracking.sender", str(run.folder.absolute()), name]
        self.process = subprocess.Popen(
            [sys.executable, "-P", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            # An interrupt of the terminal is the training's. The process stays in the training's
            # session, as Linux may weigh priorities within a session only (sched(7), autogroups).
            process_group=0,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        os.set_blocking(self._out.fileno(), False)

    def heard(self) -> Iterator[str]:
        """The failures that the process has reported by now, without waiting."""
        while True:
            try:
                text = os.read(self._out.fileno(), 1 << 16)
            except BlockingIOError:
                return
            if not text:
                if not (self._gone or self._in.closed):
                    self._gone = True
                    yield f"{self.name}: its process has ended; {self._later} what it lacks"
                return
            *lines, self._rest = (self._rest + text).split(b"\n")
            for line in lines:
                message = json.loads(line)
                self.sent = message.get("sent", self.sent)
                if "failed" in message:
                    yield f"{self.name}: {message['failed']}"

    def end(self, seconds: float) -> None:
        """Tells the process that the training has ended, and its time for the rest."""
        with suppress(OSError):  # it has ended, which `heard` reports
            self._in.write(f"{seconds}\n".encode())
            self._in.close()

    def ended(self, seconds: float) -> Iterator[str]:
        """Waits for the process's end, after `end`; yields failures, and what was not sent."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, seconds))
        yield from self.heard()
        self._out.close()
        status = self.process.poll()
        if status == 0:
            return
        received = "nothing" if self.sent is None else f"what was logged up to step {self.sent}"
        later = f"{self._later} it"
        if not (self.run.folder / "result.json").exists():
            self.process.kill()
            self.process.wait()
            yield f"{self.name} has {received}; the next start sends the rest, or {later}"
        elif status is None:
            self.process.returncode = 0  # nobody waits for it
            limit = (
                f"process {self.process.pid} goes on for at most {LINGER_SECONDS / 60:g} minutes"
            )
            yield f"{self.name} has {received}; {limit}, and what is missing then, {later}"
        else:
            yield f"{self.name} has {received}, not the rest; {later}"


def send(run: Run, name: str) -> str:
    """Sends a tracker what it lacks of a run whose lock is held. Returns why that failed, or ''."""
    sender = Sender(run, name)
    sender.end(LINGER_SECONDS)
    try:
        problems = list(sender.ended(LINGER_SECONDS + PATIENCE_SECONDS))
    finally:
        sender.process.kill()  # where this is interrupted
    return problems[0] if problems else ""


@contextmanager
def following(
    run: Run, names: Sequence[str], note: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Has trackers follow a run until the end of the block, and for at most PATIENCE_SECONDS then.

    Yields a function to call now and then, which notes failures. note: called with each, a line.
    """
    senders = []
    for name in names:
        if name in REMOTE:
            try:
                senders.append(Sender(run, name))
            except OSError as error:
                note(f"{name}: its process does not start: {error}")

    def hear() -> None:
        for sender in senders:
            for text in sender.heard():
                note(text)

    try:
        yield hear
    finally:
        end = time.monotonic() + PATIENCE_SECONDS
        for sender in senders:
            sender.end(PATIENCE_SECONDS)
        for sender in senders:
            for text in sender.ended(end - time.monotonic()):
                note(text)

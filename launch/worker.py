"""One run in a process of its own: `python -m launch.worker FOLDER [TESTS]`.

Trains the run, and then tests it by each of TESTS, a JSON list of `{protocol, scales, flip}`; what
is trained or tested already is not done again. Writes events, one JSON object a line, to standard
output, and all else to the run's log.txt. SIGTERM and SIGINT make it save where it is and leave; so
does the end of whoever reads the events.

Exit status: 0 finished, 2 the run failed for a reason of its own (told in failed.json, and of a
test in an event `untested`), 75 it was asked to stop and can go on later, else a bug or a lost
process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch import devices

if TYPE_CHECKING:
    from experiments.kept import PlannedTest
    from experiments.runs import Run

    Tell = Callable[[dict[str, Any]], None]

STOPPED = 75  # EX_TEMPFAIL


def main(folder: Path, tests: str = "[]") -> int:
    """Trains and tests the run in `folder`, once nobody else does."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    log = (folder / "log.txt").open("a", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, frame: asked.append(n))
    devices.set_up()

    def tell(event: dict[str, Any]) -> None:
        try:
            events.write(json.dumps(event) + "\n")
        except BrokenPipeError:
            asked.append(signal.SIGPIPE)

    from experiments import kept, runs

    planned = [kept.PlannedTest(**test) for test in json.loads(tests)]
    run = runs.Run(folder)
    if run.locked():
        tell({"event": "locked"})
    try:
        with run.lock(wait=lambda: not asked):
            return _train(run, tell, lambda: bool(asked)) or _test(
                run, planned, tell, lambda: bool(asked)
            )
    except runs.RunLocked:  # asked to stop while another process had it
        return STOPPED


def _train(run: Run, tell: Tell, stop: Callable[[], bool]) -> int:
    from experiments import runs, train

    try:
        train.train(run, devices.mesh(), on_event=tell, stop=stop)
    except train.Interrupted:
        return STOPPED
    except train.Diverged:  # it has said so in failed.json
        return 2
    except Exception as error:
        if not getattr(error, "user_error", False):
            raise
        runs.write_json(run.folder / "failed.json", {"reason": str(error)})
        return 2
    return 0


def _test(run: Run, planned: Sequence[PlannedTest], tell: Tell, stop: Callable[[], bool]) -> int:
    """Tests the run by what is not kept yet; a test that is stopped goes on later."""
    from experiments import evaluate, kept, train

    missing = [test for test in planned if not kept.there(run, test)]
    if not missing:
        return 0

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
            subject = subject or evaluate.Subject(run, devices.mesh(), kept.Asked(), bar, on_bad)
            subject.tested(test.protocol, test.scales, flip=test.flip)
        except train.Interrupted:
            return STOPPED
        except Exception as error:
            if not getattr(error, "user_error", False):
                raise
            failed.append(f"test {test.name}: {error}")
    if failed:
        tell({"event": "untested", "reason": "; ".join(failed)})
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))

"""Heads on features that tables ask for: computed one after the other, in a process of its own.

    python -m launch.executors.heads < TASKS

TASKS is a JSON list with the `_task` of each head. The features are computed on all devices. They
and the results of the heads are kept with the runs, by the code of `cnn-depth transfer`. Each head
prints a JSON line to standard output, `{"reason": ...}`, '' for success. Bars and notes go to
standard error.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.text import ending
from launch import devices

if TYPE_CHECKING:
    from experiments.papers.heads import Head

GRACE_SECONDS = 60.0  # to save features after an interrupt


def run(heads: Sequence[Head]) -> dict[Head, str]:
    """Computes heads that are missing. Returns head -> reason of those that could not be."""
    words = [*devices.PYTHON, "-m", "launch.executors.heads"]
    reasons: list[str] = []
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=devices.environment(devices.Slot()),
        start_new_session=True,  # an interrupt of the terminal reaches it once, from here
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError), process.stdin as stdin:
                json.dump([_task(head) for head in heads], stdin)
            reasons += [json.loads(line)["reason"] for line in process.stdout]
            code = process.wait()
        finally:
            stop(process)
    if code:
        reasons += [f"its process ended with {ending(code)}"] * (len(heads) - len(reasons))
    return {head: reason for head, reason in zip(heads, reasons, strict=True) if reason}


def stop(process: subprocess.Popen[Any]) -> None:
    """Ends a process that tables wait for, if it still runs; it saves what it has computed."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _task(head: Head) -> dict[str, Any]:
    return {
        "runs": [str(run.folder.absolute()) for run in head.runs],
        "data": head.data,
        "wanted": {"layer": head.layer, "protocol": head.protocol, "scales": head.scales},
        "how": asdict(head.how),
    }


def main() -> int:
    """Computes the heads that standard input names."""
    tasks = json.load(sys.stdin)
    devices.set_up()
    devices.start()
    from rich.console import Console

    from experiments.runs.runs import Run
    from experiments.transfer import result_store
    from experiments.transfer.features import FeatureRequest
    from experiments.transfer.transfer import HeadSettings
    from launch.verbs.features import extractors_of
    from launch.verbs.transfer import progress

    @cache
    def load(folder: str, data: str | None) -> Any:
        (extractor,) = extractors_of([Run(Path(folder))], data)
        return extractor

    screen = Console(stderr=True)
    for task in tasks:
        reason = ""
        try:
            how = HeadSettings(**{**task["how"], "only": tuple(task["how"]["only"])})
            request = FeatureRequest(**task["wanted"])
            extractors = [load(folder, task["data"]) for folder in task["runs"]]
            name = " + ".join(extractor.run.id for extractor in extractors)
            tell = progress(screen, name, request.layer)
            result_store.learn([(extractor, request) for extractor in extractors], how, tell)
        except Exception as error:
            if not getattr(error, "user_error", False):
                raise
            reason = str(error)
        print(json.dumps({"reason": reason}), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

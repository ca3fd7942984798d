"""A CIFAR-10 training as one types it, `cnn-depth train`, held still while others are measured."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Self

from launch import devices
from launch.bench import step_runs
from launch.bench.process import PeerEnded
from launch.bench.timing import LEAST_SECONDS, Timing, Watch, process_seconds

CASE = "cifar_resnet:20@32x128"  # the same network on a batch of as many images
BATCH = 128
STARTED_SECONDS = 300  # after which its first steps are no longer awaited
LOOK_SECONDS = 0.002


# Becomes the command, and is killed when the bench ends (PR_SET_PDEATHSIG of prctl(2)): held still,
# it would stay for ever.
CODE = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Typed:
    """Row resnet-20 of `cifar_resnet` on made-up images, in a process that is stopped and
    continued by signals; a context manager.

    Its environment is the user's, so that `train` chooses its memory settings itself. images:
    number to train on; options: further options of the command. Raises PeerEnded where it ends.
    """

    def __init__(self, images: int = step_runs.IMAGES, options: Sequence[str] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory(
            prefix="cnn-depth-bench-", ignore_cleanup_errors=True
        )
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)
        folder = Path(self._folder.name)
        data = step_runs.made_up(images, folder / "made_up.npz")
        environment = devices.environment(devices.Slot())
        if "GLIBC_TUNABLES" not in os.environ:
            del environment["GLIBC_TUNABLES"]
        command = [*devices.PYTHON, "-m", "launch", "train", step_runs.STUDY]
        command += ["--row", step_runs.ROW, "--runs", str(folder), "--set", "data.name=npz"]
        command += ["--set", f"data.path={data}", *options]
        logged = ["--set", "train.log_every_epochs=1e-9"]  # its log says when a step is done
        self._process = subprocess.Popen(
            [*devices.PYTHON, "-c", CODE, *command, *logged],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
        )
        try:
            self._until(2, STARTED_SECONDS)
            self._process.send_signal(signal.SIGSTOP)
        except BaseException:
            self.__exit__()
            raise

    def burst(self, steps: int) -> Timing:
        """The time of at least so many steps, and of at least two seconds."""
        self._process.send_signal(signal.SIGCONT)
        first = self._until(self._steps() + 2, STARTED_SECONDS)  # it was held in the first of them
        watch, last = Watch(partial(process_seconds, self._process.pid)), first
        while last - first < steps or watch.seconds < LEAST_SECONDS:
            last = self._until(last + 1, STARTED_SECONDS)
        timing = watch.stop((last - first) * BATCH, last - first)
        self._process.send_signal(signal.SIGSTOP)
        return timing

    def _until(self, steps: int, seconds: float) -> int:
        """Waits for so many steps since its start; gives their number."""
        deadline = time.monotonic() + seconds
        while (count := self._steps()) < steps:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._errors.seek(0)
                last_line = (self._errors.read().strip().splitlines() or ["it said nothing"])[-1]
                raise PeerEnded(f"`cnn-depth train` made no step: {last_line[:200]}")
            time.sleep(LOOK_SECONDS)
        return count

    def _steps(self) -> int:
        """Steps since its start, which are lines of its log."""
        logs = Path(self._folder.name).glob("*/metrics.jsonl")
        return sum(text.count(b'"train_loss"') for text in map(Path.read_bytes, logs))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()
        self._folder.cleanup()

"""Tests of boxes over whole images that tables ask for: `cnn-depth localise`, in its own process.

The table's process must not take an accelerator.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch import devices
from launch.executors.heads import stop

if TYPE_CHECKING:
    from experiments.localisation.localised import LocaliserAt


def run(at: Sequence[LocaliserAt], folder: Path) -> bool:
    """Tests localisers together and keeps the result with the runs; whether that succeeded.

    at: runs with their test scales. folder: of runs. Errors go to standard error.
    """
    names = [f"{run.id}@{','.join(map(str, scales))}" for run, scales in at]
    words = [*devices.PYTHON, "-m", "launch", "localise", *names, "--runs", str(folder), "--json"]
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=devices.environment(devices.Slot()),
        start_new_session=True,  # an interrupt of the terminal reaches it once, from here
    )
    try:
        return process.wait() == 0
    finally:
        stop(process)

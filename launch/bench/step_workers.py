"""Processes that train one network each, with one library, a burst of steps when they are told to.

Their thread pools spin for a while after work and would disturb each other in one process. A
`worker` begins one, and what `start` makes answers in it.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

from launch import devices
from launch.bench import timing
from launch.bench.layer_graph import Graph
from launch.bench.process import Answer, Process
from launch.bench.step_case import Case, Peak, Runner, most_resident
from launch.bench.timing import Timing, watch_of


def worker(library: str, case: Case, graph: Graph | None, platform: str) -> Process:
    """A library's process, which answers as `start` says. Raises PeerEnded where it can't go on."""
    cores = devices.usable_cores()
    variables = {
        "OMP_NUM_THREADS": str(cores),
        "TF_NUM_INTRAOP_THREADS": str(cores),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_ENABLE_ONEDNN_OPTS": "1",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "KERAS_BACKEND": "tensorflow",
    }
    code = "from launch.bench import process, step_workers as w; process.serve(w.start)"
    return Process(library, code, variables, library, case, graph, platform, cores)


def start(
    library: str, case: Case, graph: Graph | None, platform: str, threads: int
) -> tuple[dict[str, Any], Answer]:
    """Makes a training: what there is to say of it, and what answers.

    It answers a `burst` of so many steps at least with the time they took, `memory` with the bytes
    that the training took at most, and a large `product` or `copy` with its peak.
    """
    runner: Runner
    if library == "ours":
        from launch.bench.step_ours import Ours

        runner = Ours(case)
    elif library == "keras":
        from launch.bench.keras_net import Keras

        runner = Keras(case, graph, platform, threads)
    else:
        from launch.bench.torch_net import Torch

        runner = Torch(case, graph, platform, threads, compiled=library == "torch_compiled")
    runner.steps(2)  # compiles it, and touches all memory

    def answer(what: str, steps: int = 0) -> Timing | Peak | int:
        if what == "burst":
            return timing.timed(runner.steps, case.batch, partial(watch_of, platform), steps)
        if what == "memory":
            used = runner.peak_bytes()
            return most_resident() - runner.before if used is None else used
        return runner.peaks[what]()

    names = ("params", "device", "note", "doubt")
    told = {name: getattr(runner, name) for name in names}
    return {**told, "bytes_accessed": runner.bytes_accessed()}, answer


def installed(library: str) -> bool:
    needed = ("keras", "tensorflow") if library == "keras" else ("torch",)
    return all(importlib.util.find_spec(name) is not None for name in needed)

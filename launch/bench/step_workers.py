"""Processes that train one network each, with one library, a burst of steps at a time.

Thread pools of libraries spin for a while after work and would disturb each other in one process.
`worker` begins a process, and the function that `start` gives answers in it.
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
    """Makes a training or a test; gives its description, and what answers questions about it.

    The answer to a `burst` of at least so many steps is its time; to `memory`, the most bytes that
    it took; to a large `product` or `copy`, its peak.
    """
    runner: Runner
    if library == "ours":
        from launch.bench.step_ours import OurForward, Ours

        runner = OurForward(case) if case.forward else Ours(case)
    elif case.forward:
        from launch.bench.torch_net import TorchForward

        runner = TorchForward(case, graph, platform, threads, frozen=library == "torch_frozen")
    elif library == "keras":
        from launch.bench.keras_net import Keras

        runner = Keras(case, graph, platform, threads)
    else:
        from launch.bench.torch_net import Torch

        runner = Torch(case, graph, platform, threads, compiled=library == "torch_compiled")
    runner.steps(2)  # compiles it, and touches all memory

    def answer(question: str, steps: int = 0) -> Timing | Peak | int:
        if question == "burst":
            return timing.timed(runner.steps, case.batch, partial(watch_of, platform), steps)
        if question == "memory":
            peak = runner.peak_bytes()
            return most_resident() - runner.before if peak is None else peak
        return runner.peaks[question]()

    names = ("params", "device", "note", "doubt")
    description = {name: getattr(runner, name) for name in names}
    return {**description, "bytes_accessed": runner.bytes_accessed()}, answer


def installed(library: str) -> bool:
    modules = ("keras", "tensorflow") if library == "keras" else ("torch",)
    return all(importlib.util.find_spec(name) is not None for name in modules)

"""Processes that train one network each, with one library, a burst of steps when they are told to.

Their thread pools spin for a while after work and would disturb each other in one process. A
`Worker` asks, and what `start` makes answers in the process.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from launch import devices
from launch.bench import timing
from launch.bench.layer_graph import Graph
from launch.bench.process import Answer, Process
from launch.bench.step_case import (
    DECAY,
    MOMENTUM,
    RATE,
    SIDE,
    Case,
    Peak,
    Runner,
    Work,
    best_rate,
    made_up,
    most_resident,
)
from launch.bench.timing import Timing, watch_of


class Worker(Process):
    """A library's process; a context manager. Raises PeerEnded where it can't go on."""

    def __init__(self, library: str, case: Case, graph: Graph | None, platform: str):
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
        question = {
            "library": library,
            "case": asdict(case),
            "graph": graph.to_json() if graph else None,
            "platform": platform,
            "threads": cores,
        }
        code = "from launch.bench import process, step_workers as w; process.serve(w.start)"
        super().__init__(library, code, variables, question)

    def burst(self, steps: int) -> Timing:
        """The time of so many steps at least, as `timing.timed` takes it."""
        return Timing(**self.ask({"do": "burst", "steps": steps}))

    def memory(self) -> int:
        """Bytes that the training took at most."""
        return int(self.ask({"do": "memory"})["bytes"])

    def peak(self, what: str) -> Peak | None:
        """Of a large `product` in FLOP/s, or a large `copy` in bytes/s; None if not measured."""
        told = self.ask({"do": what})
        return Peak(told["best"], Timing(**told["timing"])) if told else None


def start(asked: dict[str, Any]) -> tuple[dict[str, Any], Answer]:
    """Makes what a `Worker` asks for: what there is to say of it, and what answers."""
    case, platform = Case(**asked["case"]), asked["platform"]
    graph = Graph.from_json(asked["graph"]) if asked["graph"] else None
    runner = _runner(asked["library"], case, graph, platform, asked["threads"])
    runner.steps(2)  # compiles it, and touches all memory

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        if asked["do"] == "burst":
            watch = partial(watch_of, platform)
            return asdict(timing.timed(runner.steps, case.batch, watch, asked["steps"]))
        if asked["do"] == "memory":
            used = runner.peak_bytes()
            return {"bytes": most_resident() - runner.before if used is None else used}
        work = runner.product() if asked["do"] == "product" else runner.copy()
        return asdict(best_rate(work, platform)) if work else {}

    names = ("params", "device", "note", "doubt")
    told = {name: getattr(runner, name) for name in names}
    return {**told, "bytes_accessed": runner.bytes_accessed()}, answer


def _runner(library: str, case: Case, graph: Graph | None, platform: str, threads: int) -> Runner:
    if library == "ours":
        from launch.bench.step_ours import Ours

        return Ours(case)
    assert graph is not None
    if library == "keras":
        return Keras(case, graph, platform, threads)
    return Torch(case, graph, platform, threads, compiled=library == "torch_compiled")


class Torch:
    """PyTorch: maps channels last, its own SGD in one fused kernel, autocast for bfloat16."""

    doubt = ""

    def __init__(self, case: Case, graph: Graph, platform: str, threads: int, *, compiled: bool):
        from launch.bench import torch_net

        torch: Any = importlib.import_module("torch")
        if platform != "cpu" and not torch.cuda.is_available():
            raise RuntimeError(f"this PyTorch ({torch.__version__}) finds no GPU")
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.torch, self.case = torch, case
        self.place = "cpu" if platform == "cpu" else "cuda"
        self.device = "cpu" if platform == "cpu" else torch.cuda.get_device_name()
        if self.place == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.backends.cuda.matmul.allow_tf32 = True  # as XLA does
        self.before = most_resident()
        net = torch_net.network(graph).to(self.place)
        self.params = sum(parameter.numel() for parameter in net.parameters())
        kernels = [p for p in net.parameters() if p.ndim > 1]
        others = [p for p in net.parameters() if p.ndim == 1]
        groups = [{"params": kernels, "weight_decay": DECAY}, {"params": others}]
        self.optimizer = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, fused=True)
        images, labels = made_up(case)
        x = torch.from_numpy(images.transpose(0, 3, 1, 2)).to(self.place)
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.y = torch.from_numpy(labels.astype(np.int64)).to(self.place)
        self.net = torch.compile(net) if compiled else net
        self.note = f"{threads} threads"

    def steps(self, number: int) -> None:
        torch = self.torch
        for _ in range(number):
            low = self.case.dtype == "bfloat16"
            with torch.autocast(self.place, torch.bfloat16, enabled=low):
                logits = self.net(self.x)
            loss = torch.nn.functional.cross_entropy(logits.float(), self.y)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        loss.item()

    def peak_bytes(self) -> int | None:
        return None if self.place == "cpu" else int(self.torch.cuda.max_memory_allocated())

    def bytes_accessed(self) -> float | None:
        return None

    def product(self) -> Work:
        torch = self.torch
        side = SIDE["cpu" if self.place == "cpu" else "gpu"]
        a = torch.randn(side, side, device=self.place, dtype=getattr(torch, self.case.dtype))

        def once() -> None:
            torch.matmul(a, a)
            if self.place == "cuda":
                torch.cuda.synchronize()

        return Work(once, 2 * side**3)

    def copy(self) -> Work | None:
        return None


class Keras:
    """Keras on TensorFlow, the faster of two steps: `train_on_batch` of a compiled model, with
    `jit_compile` as Keras chooses it, and a `tf.function` with a gradient tape.
    """

    def __init__(self, case: Case, graph: Graph, platform: str, threads: int):
        tf: Any = importlib.import_module("tensorflow")
        keras: Any = importlib.import_module("keras")
        from launch.bench import keras_net

        gpus = tf.config.list_physical_devices("GPU")
        if platform != "cpu" and not gpus:
            raise RuntimeError(f"this TensorFlow ({tf.__version__}) finds no GPU")
        if platform == "cpu":
            tf.config.set_visible_devices([], "GPU")
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        keras.utils.set_random_seed(0)
        low = case.dtype == "bfloat16"
        keras.config.set_dtype_policy("mixed_bfloat16" if low else "float32")
        self.tf, self.keras, self.case, self.cpu = tf, keras, case, platform == "cpu"
        details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
        self.device = "cpu" if self.cpu else details.get("device_name", "gpu")
        self.before = most_resident()
        self.model = keras_net.network(graph)
        self.params = sum(int(np.prod(v.shape)) for v in self.model.trainable_weights)
        images, labels = made_up(case)
        self.x, self.y = tf.constant(images), tf.constant(labels)
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        optimizer = keras.optimizers.SGD(RATE, momentum=MOMENTUM, weight_decay=DECAY)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        self.model.compile(optimizer=optimizer, loss=self.loss)
        ways = {"train_on_batch": self._on_batch, "tf.function": self._function(optimizer)}
        took, self.doubt = _step_seconds(ways, platform)
        best = min(took, key=lambda name: took[name])
        self._way = ways[best]
        said = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in took.items())
        self.note = f"{best} (a step by {said}; jit_compile {self.model.jit_compile})"

    def _on_batch(self, number: int) -> None:
        for _ in range(number):
            self.model.train_on_batch(self.x, self.y)

    def _function(self, optimizer: Any) -> Any:
        tf, model = self.tf, self.model

        @tf.function
        def step(x: Any, y: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = self.loss(y, model(x, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            return loss

        def steps(number: int) -> None:
            for _ in range(number):
                loss = step(self.x, self.y)
            loss.numpy()

        return steps

    def steps(self, number: int) -> None:
        self._way(number)

    def peak_bytes(self) -> int | None:
        return (
            None if self.cpu else int(self.tf.config.experimental.get_memory_info("GPU:0")["peak"])
        )

    def bytes_accessed(self) -> float | None:
        return None

    def product(self) -> Work | None:
        return None  # JAX and PyTorch tell the peak

    def copy(self) -> Work | None:
        return None


def _step_seconds(
    ways: dict[str, Callable[[int], None]], platform: str
) -> tuple[dict[str, float], str]:
    """Of a step in each way; and why that is not to be believed, or nothing."""
    subjects = {}
    for name, steps in ways.items():
        steps(2)
        subjects[name] = partial(timing.timed, steps, 1, lambda: watch_of(platform))
    found, _ = timing.in_turns(subjects, 1, lambda said: None)
    doubts = [f"{name}: {series.doubt}" for name, series in found.items() if series.doubt]
    doubt = f"which of its steps is faster is not known: {'; '.join(doubts)}" if doubts else ""
    return {name: 1 / series.bursts[0].rate for name, series in found.items()}, doubt


def installed(library: str) -> bool:
    """Whether what a peer needs is there."""
    needed = ("keras", "tensorflow") if library == "keras" else ("torch",)
    return all(importlib.util.find_spec(name) is not None for name in needed)

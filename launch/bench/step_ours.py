"""Our own training as runs have it, on images that are on the device already."""

from __future__ import annotations

import functools
import json
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from cnn_arch import execution
from cnn_arch.kernels import onednn
from experiments import config as config_lib
from experiments import data as data_lib
from experiments import network
from experiments.data.preprocessing import Preprocessing
from experiments.training import state as training_state
from input_pipeline.resident import Normalisation, TrainView
from launch import devices
from launch.bench import step_case
from launch.bench.step_case import Case, Peak, Runner, most_resident


class _SameBatch:
    """A feed without inputs: the one batch is among the data's constants."""

    bottleneck = ""

    def next(self, numbers: range) -> data_lib.Arrays:
        return {}

    def close(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class MadeUp(data_lib.Resident):
    """One batch of made-up images, float32, and labels, as `constants`; no part is tested."""

    def feed(self, config: ml_collections.ConfigDict, mesh: Mesh, position: int) -> data_lib.Feed:
        return _SameBatch()

    def train_views(
        self, constants: Any, seed: jax.Array, batch: data_lib.Arrays
    ) -> tuple[jax.Array, jax.Array]:
        images, labels = constants
        return images, labels


def with_inputs(
    config: ml_collections.ConfigDict, mesh: Mesh
) -> tuple[training_state.Training, tuple[Any, ...]]:
    """The training of a config, and the arguments of its first step."""
    data = data_lib.prepare(config)
    training = training_state.start(config, data, mesh, None)
    feed = data.feed(config, mesh, 0)
    inputs = {
        "step": np.zeros(1, np.int32),
        "lr": np.full(1, config.schedule.lr, np.float32),
        "batch": feed.next(range(1)),
    }
    feed.close()
    return training, (training.state, training.constants, np.int32(config.seed), inputs)


def training(
    case: Case, mesh: Mesh, convolutions: onednn.Convolutions = "xla"
) -> training_state.Training:
    """The training of a case: plain, with momentum and L2 decay."""
    identity = Normalisation(np.zeros((), np.float32), np.ones((), np.float32))
    images, labels = step_case.made_up(case)
    data = MadeUp(
        name="made up",
        fingerprint="",
        counts={"train": case.batch},
        preprocessing=Preprocessing(identity, tuple(map(str, range(case.classes))), case.channels),
        constants=(images, labels),
        labels=labels,
        parts={},
        train_view=TrainView(crop=case.size),
        crop=case.size,
        Q=case.size,
    )
    config = config_of(case)
    config.optimizer.momentum, config.optimizer.weight_decay = step_case.MOMENTUM, step_case.DECAY
    config.schedule.kind, config.schedule.lr = "constant", step_case.RATE
    config.train.batch_size, config.train.steps = case.batch, 2**30
    return training_state.start(config, data, mesh, None, convolutions)


def config_of(case: Case) -> ml_collections.ConfigDict:
    """A config with a case's network and images."""
    config = config_lib.base()
    config.model = config_lib.model(case.arch, **case.options)
    config.data.image_size = case.size
    return config


class _Timed:
    """A jitted function that notes how long it takes to trace, to lower and to compile it."""

    def __init__(self, dispatch: Any, seconds: dict[str, float]) -> None:
        self.stage, self.seconds = dispatch, seconds

    def lower(self, *arguments: Any) -> _Timed:
        self._advance("trace", *arguments)
        self._advance("lower")
        return self

    def compile(self) -> Any:
        self._advance("compile")
        return self.stage

    def _advance(self, name: str, *arguments: Any) -> None:
        start = time.perf_counter()
        self.stage = getattr(self.stage, name)(*arguments)
        self.seconds[name] = time.perf_counter() - start


def tell_start(case_json: str, started: str) -> None:
    """Prints how long a training took to start, as JSON. For a process of its own.

    case_json: the fields of a `Case`; started: `time.time()` at the start of the process. Seconds:
    `imports` until this is called, `network` until there is a training, `trace`, `lower`,
    `compile`, and `first_step` from the process's start until one step is done.
    """
    imported = time.time()
    run = training(Case(**json.loads(case_json)), devices.mesh(1))
    seconds = {"imports": imported - float(started), "network": time.time() - imported}
    run.dispatch = _Timed(run.dispatch, seconds)
    run.advance(1)
    run.finish_steps()
    seconds["first_step"] = time.time() - float(started)
    print(json.dumps({"seconds": seconds, "device": jax.devices()[0].device_kind}))


class Ours(Runner):
    """One training on the first device."""

    def __init__(self, case: Case):
        devices.set_up()
        self.case, self.platform = case, jax.default_backend()
        self.place = "cpu" if self.platform == "cpu" else "elsewhere"
        self.device = jax.devices()[0].device_kind
        self.before = most_resident()
        self.convolutions = onednn.chosen(case.dtype)  # as in a long training or a large test
        self.note = "XLA"
        if self.place == "cpu":
            self.note += f", convolutions {self.convolutions}, {devices.usable_cores()} cores"
        self.peaks = {"product": self._product, "copy": self._copy}
        self.set_up()

    def set_up(self) -> None:
        self.training = training(self.case, devices.mesh(1), self.convolutions)
        self.params = sum(x.size for x in self.training.state["params"].values())

    def steps(self, number: int) -> None:
        for _ in range(number):
            self.training.advance(1)
        self.training.finish_steps()

    def peak_bytes(self) -> int | None:
        stats = jax.devices()[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use")

    def bytes_accessed(self) -> float | None:
        cost = self.training.compiled[1].cost_analysis() or {}
        return cost.get("bytes accessed")

    def _product(self) -> Peak:
        side = step_case.SIDE[self.place]
        a = jax.random.normal(jax.random.key(0), (side, side)).astype(self.case.dtype)
        product = jax.jit(lambda a: a @ a)
        return step_case.peak(lambda: jax.block_until_ready(product(a)), 2 * side**3, self.platform)

    def _copy(self) -> Peak:
        a = jnp.zeros(step_case.COPIED[self.place], jnp.float32)
        copy = jax.jit(lambda a: a + 1)
        return step_case.peak(lambda: jax.block_until_ready(copy(a)), 2 * a.nbytes, self.platform)


class OurForward(Ours):
    """A test's forward pass, from normalised images to log posteriors, on the first device."""

    def set_up(self) -> None:
        config = config_of(self.case)
        shape = self.case.classes, self.case.channels
        skeleton = network.skeleton(config, *shape, train=False)
        arrays = jax.device_put(network.initial(config, *shape))
        self.params = sum(x.size for x in arrays[0].values())
        images, _ = step_case.made_up(self.case)

        fuses = self.convolutions == "onednn"

        def forward(params: Any, stats: Any, x: jax.Array) -> jax.Array:
            tape, net = execution.tape(fuses=fuses), skeleton.merge(params, stats)
            with skeleton.multiplying():
                return jax.nn.log_softmax(net(x, tape=tape))

        program = jax.jit(forward, compiler_options=execution.compiler_options())
        inputs = (*(skeleton.folded(*arrays) if fuses else arrays), jax.device_put(images))
        with onednn.using(self.convolutions):
            self.program = functools.partial(program.lower(*inputs).compile(), *inputs)

    def steps(self, number: int) -> None:
        for _ in range(number):
            jax.block_until_ready(self.program())

    def bytes_accessed(self) -> float | None:
        return None

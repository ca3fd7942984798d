"""A run that is being trained: what it has, where it is, and how it goes on."""

import enum
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from cnn_arch.kernels import onednn
from experiments import data as data_lib
from experiments import network
from experiments.config import ConfigError
from experiments.runs import processes, runs
from experiments.training import levenberg_marquardt, optimizer, program
from experiments.training.step import averaged

RECENT_SECONDS = 30.0  # at least; the recent rate is that of one to two times as long


class Diverged(runs.RunError):
    """The loss, a gradient, a parameter or a running statistic is no longer a finite number."""


class Interrupted(Exception):
    """The run was asked to stop, and has saved where it was."""


@dataclass
class Window:
    """Sums of the step metrics since the last line of metrics.jsonl."""

    steps: int = 0
    loss: float = 0.0
    error: float = 0.0
    # Steps without an error: no view of theirs shows a box, or images may be of several classes.
    unknown: int = 0
    gradients: dict[str, float] = field(default_factory=dict)  # mean squares, by layer

    def add(self, loss: float, error: float, gradients: Mapping[str, float] = {}) -> None:
        self.steps, self.loss = self.steps + 1, self.loss + loss
        for layer, mean_square in gradients.items():
            self.gradients[layer] = self.gradients.get(layer, 0.0) + mean_square
        if math.isnan(error):
            self.unknown += 1
        else:
            self.error += error

    @property
    def mean_error(self) -> float | None:
        """Percent; None where no step has an error."""
        counted = self.steps - self.unknown
        return self.error / counted if counted else None


class Request(enum.IntEnum):
    """What a training is asked to do between two steps."""

    NOTHING = 0
    SAVE = 1
    STOP = 2  # and save


@dataclass
class Training:
    """One run being trained."""

    config: ConfigDict
    data: data_lib.Data
    mesh: Mesh
    state: dict[str, Any]
    schedule: optimizer.Schedule
    dispatch: Any  # jitted
    constants: Any  # the data's, on the mesh
    total: int  # steps of the whole training, which `train.until_error` cuts short
    convolutions: onednn.Convolutions
    curvature: levenberg_marquardt.Curvature | None = None  # measured where `sdlm` needs it
    position: int = 0  # steps dispatched so far
    seconds: float = 0.0  # of training, without compiling, testing and writing
    # (position, seconds) at two moments: the later is taken anew each RECENT_SECONDS, and becomes
    # the earlier one, from which the recent rate is counted.
    marks: tuple[tuple[int, float], tuple[int, float]] = ((0, 0.0), (0, 0.0))
    wait_seconds: float = 0.0  # of a step, for its data: a running mean
    step_seconds: float = 0.0  # of a step: a running mean
    compile_seconds: float = 0.0
    feed: data_lib.Feed | None = None
    window: Window = field(default_factory=Window)
    request: Request = Request.NOTHING  # this process's
    agreed: Request = Request.NOTHING  # the largest of all processes' requests
    pending: list[tuple[int, Any]] = field(default_factory=list)
    compiled: dict[int, Any] = field(default_factory=dict)

    @property
    def host(self) -> dict[str, Any]:
        """What the checkpoint keeps besides arrays; nothing may be pending."""
        return {
            "schedule": self.schedule.state,
            "window": vars(self.window),
            "total": self.total,
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
        }

    def resume(self, step: int, state: dict[str, Any], host: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.state, self.position = state, step
        self.seconds, self.compile_seconds = host["seconds"], host["compile_seconds"]
        self.marks = ((step, self.seconds), (step, self.seconds))
        self.total = host.get("total", self.total)  # older checkpoints lack it
        self.schedule.restore(host["schedule"])
        self.window = Window(**host["window"])

    def advance(self, steps: int) -> None:
        """Dispatches this many steps as one program and takes in the metrics of earlier ones."""
        numbers = range(self.position, self.position + steps)
        if self.feed is None:
            self.feed = self.data.feed(self.config, self.mesh, self.position)
        if self.curvature is not None and self.position % self.curvature.steps == 0:
            start = time.perf_counter()
            curvature, compile_seconds = self.curvature.measure(
                self.state, self.constants, self.position
            )
            self.state = {**self.state, "curvature": curvature}
            self.compile_seconds += compile_seconds
            self.seconds += time.perf_counter() - start - compile_seconds
        start = time.perf_counter()
        batch = self.feed.next(numbers)
        waited = time.perf_counter() - start
        self.wait_seconds += 0.1 * (waited - self.wait_seconds)
        self.seconds += waited
        inputs = {
            "step": np.array(numbers, np.int32),
            "lr": np.array([self.schedule.rate(n) for n in numbers], np.float32),
            "batch": batch,
        }
        if processes.several():
            requests = np.full((steps, processes.own_mesh(self.mesh).size), self.request, np.int32)
            spread = NamedSharding(self.mesh, P(None, "data"))
            inputs["asked"] = processes.put_share(requests, spread, axis=1)
        arguments = (self.state, self.constants, np.int32(self.config.seed), inputs)
        if steps not in self.compiled:
            start = time.perf_counter()
            with onednn.using(self.convolutions):
                self.compiled[steps] = self.dispatch.lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - start
        start = time.perf_counter()
        self.state, metrics = self.compiled[steps](*arguments)
        self.position += steps
        self.pending.append((numbers.start, metrics))
        self.take_in(keep=0 if self.schedule.watches_every_step else 1)
        spent = time.perf_counter() - start
        self.step_seconds += 0.1 * (waited + spent - self.step_seconds)
        self.seconds += spent
        self.mark()

    def mark(self) -> None:
        """Notes where the training is, for the recent rate."""
        if self.seconds - self.marks[1][1] >= RECENT_SECONDS:
            self.marks = (self.marks[1], (self.position, self.seconds))

    def take_in(self, keep: int = 0) -> None:
        """Fetches metrics of all but the last `keep` dispatches, so the device never waits.

        Raises Diverged at the first step that made a number that is not finite.
        """
        while len(self.pending) > keep:
            first, arrays = self.pending.pop(0)
            metrics = jax.tree.map(lambda values: np.asarray(values).tolist(), arrays)
            self.agreed = max([self.agreed, *map(Request, metrics.get("asked", ()))])
            for i, finite in enumerate(metrics["finite"]):
                step, loss, error = first + i, metrics["loss"][i], metrics["error"][i]
                if not finite:
                    raise Diverged(f"NaN or Inf at step {step} (loss {loss:g})")
                squares = {name: means[i] for name, means in metrics.get("gradients", {}).items()}
                self.window.add(loss, error, squares)
                if self.schedule.watches_every_step:
                    self.schedule.observe_training(step, error)

    def finish_steps(self) -> None:
        """Waits for all dispatched steps; the wait counts as training time."""
        start = time.perf_counter()
        self.take_in()
        self.seconds += time.perf_counter() - start

    @property
    def bottleneck(self) -> str:
        """What holds training up: a stage of the data's, or `train`; '' with resident data."""
        if self.feed is None or not self.feed.bottleneck:
            return ""
        return self.feed.bottleneck if self.wait_seconds > 0.1 * self.step_seconds else "train"

    def close(self) -> None:
        """Ends what runs in the background."""
        if self.feed is not None:
            self.feed.close()

    @property
    def epoch(self) -> float:
        """Passes through the training images so far."""
        examples = self.position * self.config.train.batch_size
        return float(examples / self.data.counts["train"])

    @property
    def images_per_second(self) -> float:
        """Training images a second since the run's first step, compiling left out."""
        return float(self.position * self.config.train.batch_size / max(self.seconds, 1e-9))

    @property
    def recent_images_per_second(self) -> float:
        """The rate of the last half minute or minute, from which the time left is told.

        The whole run's rate says little of it once the process was suspended, or shared its cores.
        """
        position, seconds = self.marks[0]
        images = (self.position - position) * self.config.train.batch_size
        return float(images / max(self.seconds - seconds, 1e-9))

    def tested(self) -> tuple[network.Flat, network.Flat]:
        """The parameters and running statistics that are tested."""
        return network.for_tests(self.state)


def check_mesh(config: ConfigDict, mesh: Mesh) -> None:
    """Raises ConfigError where a batch can't be spread evenly over the devices."""
    micro = config.train.batch_size // config.train.accumulate
    if micro % mesh.size:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} in train.accumulate="
            f"{config.train.accumulate} parts can't be spread over {mesh.size} devices; "
            "choose a multiple, or fewer devices"
        )


def start(
    config: ConfigDict,
    data: data_lib.Data,
    mesh: Mesh,
    seeds: network.Flat | None,
    convolutions: onednn.Convolutions = "xla",
) -> Training:
    """A training at step 0; `seeds` take the place of fresh parameters and statistics.

    convolutions: whose they are; oneDNN's need a single device.

    Raises ArchitectureError or ConfigError where the config does not fit network, data or devices.
    """
    check_mesh(config, mesh)
    shape = (data.classes, data.channels)
    params, stats = network.initial(config, *shape)
    frozen = optimizer.frozen(config, params)
    skeleton = network.skeleton(
        config,
        *shape,
        train=True,
        frozen=frozen,
        gradient_dtype=config.train.gradient_dtype,
        loss=config.train.loss,
        several=data.preprocessing.several,
    )
    if seeds is not None:
        params, stats = ({name: seeds[name] for name in tree} for tree in (params, stats))
    transform = optimizer.create(config, params)
    trained = {name: array for name, array in params.items() if name not in frozen}
    state = {"params": params, "stats": stats, "optimizer": jax.jit(transform.init)(trained)}
    curvature = None
    if config.optimizer.kind == "sdlm":
        curvature = levenberg_marquardt.Curvature(config, data, mesh, frozen)
        state["curvature"] = jax.tree.map(jnp.zeros_like, trained)  # until it is measured
    if config.train.ema:
        state["ema"] = jax.tree.map(jnp.copy, averaged(params, stats, frozen))
    everywhere = NamedSharding(mesh, P())
    total = data_lib.total_steps(config, data.counts["train"])
    return Training(
        config=config,
        data=data,
        mesh=mesh,
        state=processes.put(state, everywhere),
        schedule=optimizer.Schedule(config, total),
        dispatch=program.jitted(config, skeleton, transform, data, mesh, frozen),
        constants=processes.put(data.constants, everywhere),
        total=total,
        convolutions=convolutions,
        curvature=curvature,
    )

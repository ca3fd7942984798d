"""Training one run: the papers' recipe as one jitted step over flat parameters, and its loop.

The loop is deterministic in what it computes and free in when it writes: the examples, views and
dropout masks of a step follow from (seed, step), the rate from the schedule's few numbers, and
all else is in the checkpoint. A run killed at any moment and started again therefore ends bit for
bit where an undisturbed one ends.
"""

import contextlib
import enum
import json
import math
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import cnn_arch
from cnn_arch import execution, onednn
from cnn_arch.census import Census, census
from experiments import config as configs
from experiments import data as data_lib
from experiments import network
from experiments.config import ConfigError
from experiments.data import preprocessing
from experiments.runs import processes, runs
from experiments.runs.checkpoints import CheckpointError, Checkpoints, load_network
from experiments.testing import evaluate, kept
from experiments.testing.predictions import Predictions
from experiments.testing.tester import Tester
from experiments.training import levenberg_marquardt, memory, optimizer
from input_pipeline import DataError, crops

Event = dict[str, Any]
# From so many multiply-adds on a training on CPU is oneDNN's: some minutes on two cores.
ONEDNN_FROM_MACS = 1e13
# What a trained network is tested on in the end.
FINAL = {"seen": "on training images", "test": "on test images"}


class Diverged(runs.RunError):
    """The loss, a gradient, a parameter or a running statistic is no longer a finite number."""


class Interrupted(Exception):
    """The run was asked to stop, and has saved where it was."""


# ------------------------------------------------------------------------------- the step


def make_step(
    config: ml_collections.ConfigDict,
    skeleton: network.Skeleton,
    update: Callable[..., Any],
    data: data_lib.Data,
    mesh: Mesh,
    frozen: Collection[str] = (),
) -> Callable[..., tuple[dict[str, Any], dict[str, jax.Array]]]:
    """One training step as a pure function, to be jitted.

    `step(state, constants, seed, inputs)`: state has the trees `params`, `stats`, `optimizer`
    (`ema`, and `curvature`, which stays as it is); constants are the data's; inputs are `step`,
    `lr` (scalars) and `batch`, the arrays (B, ...) of the data's feed, laid out over the mesh axis
    `data`. Returns the state and the metrics `loss` (mean of the network's losses), `error`
    (training error of this batch, percent) and `finite`.

    frozen: names of parameters that stay as they are. The loss is differentiated by the others
    only, so nothing is computed backward before the first layer that has one of these.

    The batch is one global batch: gradients and BatchNorm groups are of all its examples, on
    however many devices they lie. Dropout masks are drawn for the global batch from (seed, step).

    With several processes, inputs have `asked` too, an int32 a device, and the metrics the largest
    of them: so all learn at the same step what one of them was asked.
    """
    t, parts = config.train, config.train.accumulate
    spread = NamedSharding(mesh, P("data"))
    classes = data.classes

    def loss(
        trained: network.Flat,
        still: network.Flat,
        stats: network.Flat,
        constants: Any,
        seed: jax.Array,
        batch: data_lib.Arrays,
        draw: jax.Array,
    ) -> tuple[jax.Array, tuple[network.Flat, jax.Array]]:
        x, y = data.train_views(constants, seed, batch)
        x = jax.lax.with_sharding_constraint(x, spread)
        net = skeleton.merge({**still, **trained}, stats)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 2**31 - 1), draw)
        targets = optax.smooth_labels(jax.nn.one_hot(y, classes), t.label_smoothing)
        tape = execution.tape(t.scan, t.remat)
        losses, logits = net.losses(x, targets, rngs=nnx.Rngs(dropout=key), tape=tape)
        wrong = (logits.argmax(axis=-1) != y).astype(jnp.float32)
        return losses.mean(), (cnn_arch.flat_state(nnx.state(net, nnx.BatchStat)), wrong.mean())

    gradient = jax.value_and_grad(loss, has_aux=True)

    def accumulated(
        trained: network.Flat,
        still: network.Flat,
        stats: network.Flat,
        constants: Any,
        seed: jax.Array,
        inputs: dict[str, Any],
    ) -> Any:
        """The mean over micro-batches; micro-batch j has every parts-th example from j on."""
        total: Any = None
        for part in range(parts):
            micro = {name: array[part::parts] for name, array in inputs["batch"].items()}
            draw = inputs["step"] * parts + part
            (value, (stats, wrong)), grads = gradient(
                trained, still, stats, constants, seed, micro, draw
            )
            found = (value, wrong, grads)
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        value, wrong, grads = jax.tree.map(lambda x: x / parts, total)
        return value, wrong, grads, stats

    def step(
        state: dict[str, Any], constants: Any, seed: jax.Array, inputs: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        still = {name: array for name, array in state["params"].items() if name in frozen}
        trained = {name: a for name, a in state["params"].items() if name not in frozen}
        with skeleton.multiplying():
            value, wrong, grads, stats = accumulated(
                trained, still, state["stats"], constants, seed, inputs
            )
        measured = {"curvature": state["curvature"]} if "curvature" in state else {}
        change, opt_state = update(grads, state["optimizer"], trained, lr=inputs["lr"], **measured)
        trained = optax.apply_updates(trained, change)
        params = {name: trained.get(name, array) for name, array in state["params"].items()}
        new = {"params": params, "stats": stats, "optimizer": opt_state, **measured}
        if t.ema:
            share = jnp.maximum(1 - t.ema, 9 / (10 + inputs["step"]))
            found = averaged(params, stats, frozen)
            # So that what does not change stays as it is, to the bit.
            new["ema"] = {n: kept + share * (found[n] - kept) for n, kept in state["ema"].items()}
        # A gradient that is not finite leaves its parameter so.
        finite = _all_finite((value, trained, stats))
        metrics = {"loss": value, "error": 100 * wrong, "finite": finite}
        if "asked" in inputs:
            metrics["asked"] = inputs["asked"].max()
        return new, metrics

    return step


def averaged(params: network.Flat, stats: network.Flat, frozen: Collection[str]) -> network.Flat:
    """What `train.ema` averages, by name: trained parameters and running statistics."""
    return {name: array for name, array in {**params, **stats}.items() if name not in frozen}


# Arrays looked at together: XLA on CPU takes time quadratic in what it fuses into one test.
LOOKED_AT = 32
LARGE = 2**18  # elements; larger arrays are looked at one by one


def _all_finite(tree: Any) -> jax.Array:
    """Whether every number is finite; each by itself, as a norm would overflow before they do.

    A large array's rows are summed first, times zero, which leaves NaN where a number is not
    finite: XLA on CPU reduces an array to one number on one core, and its maximum of a row drops
    NaN.
    """
    arrays = jax.tree.leaves(tree)
    small = sorted((x for x in arrays if x.size <= LARGE), key=lambda x: x.size)
    parts = [small[at : at + LOOKED_AT] for at in range(0, len(small), LOOKED_AT)]
    found = [jnp.concatenate([x.ravel() for x in part]) for part in parts]
    found += [(x * 0).sum(axis=-1).ravel() for x in arrays if x.size > LARGE]
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in found]))


def make_dispatch(step: Callable[..., Any]) -> Callable[..., Any]:
    """`dispatch(state, constants, seed, inputs)`: K steps, inputs with a leading axis K."""

    def dispatch(state: Any, constants: Any, seed: jax.Array, inputs: Any) -> Any:
        if len(inputs["lr"]) == 1:  # a loop of one still costs on CPU
            state, metrics = step(state, constants, seed, jax.tree.map(lambda x: x[0], inputs))
            return state, jax.tree.map(lambda x: x[None], metrics)
        return jax.lax.scan(lambda carry, one: step(carry, constants, seed, one), state, inputs)

    return dispatch


# ------------------------------------------------------------------------------- the run


@dataclass
class Window:
    """Sums of the step metrics since the last line of metrics.jsonl."""

    steps: int = 0
    loss: float = 0.0
    error: float = 0.0

    def add(self, loss: float, error: float) -> None:
        self.steps, self.loss, self.error = self.steps + 1, self.loss + loss, self.error + error


class Asked(enum.IntEnum):
    """What a training is asked to do between two steps."""

    NOTHING = 0
    SAVE = 1
    STOP = 2  # and save


@dataclass
class Training:
    """One run being trained. `position` is the number of steps dispatched so far, and `total` of
    the whole training, which `train.until_error` cuts short.

    curvature: measures second derivatives before each pass, where the optimiser needs them.
    asked: of this process; heard: of any, with several, at the same step everywhere.
    """

    config: ml_collections.ConfigDict
    data: data_lib.Data
    mesh: Mesh
    state: dict[str, Any]
    schedule: optimizer.Schedule
    dispatch: Any  # jitted
    constants: Any  # the data's, on the mesh
    total: int
    convolutions: onednn.Convolutions
    curvature: levenberg_marquardt.Curvature | None = None
    position: int = 0
    seconds: float = 0.0  # of training, without compiling, testing and writing
    waited: float = 0.0  # for the data, a step, of late
    taken: float = 0.0  # seconds of a step, of late
    compile_seconds: float = 0.0
    feed: data_lib.Feed | None = None
    window: Window = field(default_factory=Window)
    asked: Asked = Asked.NOTHING
    heard: Asked = Asked.NOTHING
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
        self.total = host.get("total", self.total)  # checkpoints from before it was kept
        self.schedule.restore(host["schedule"])
        self.window = Window(**host["window"])

    def advance(self, steps: int) -> None:
        """Dispatches this many steps as one program and takes in what earlier ones found."""
        numbers = range(self.position, self.position + steps)
        if self.feed is None:
            self.feed = self.data.feed(self.config, self.mesh, self.position)
        if self.curvature is not None and self.curvature.due(self.position):
            self._measure_curvature(self.curvature)
        start = time.perf_counter()
        batch = self.feed.next(numbers)
        waited = time.perf_counter() - start
        self.waited += 0.1 * (waited - self.waited)
        self.seconds += waited
        inputs = {
            "step": np.array(numbers, np.int32),
            "lr": np.array([self.schedule.rate(n) for n in numbers], np.float32),
            "batch": batch,
        }
        if processes.several():
            own = np.full((steps, processes.own_mesh(self.mesh).size), self.asked, np.int32)
            spread = NamedSharding(self.mesh, P(None, "data"))
            inputs["asked"] = processes.put_share(own, spread, axis=1)
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
        self.taken += 0.1 * (waited + spent - self.taken)
        self.seconds += spent

    def _measure_curvature(self, curvature: levenberg_marquardt.Curvature) -> None:
        start = time.perf_counter()
        found, compiling = curvature.measure(self.state, self.constants, self.position)
        self.state = {**self.state, "curvature": found}
        self.compile_seconds += compiling
        self.seconds += time.perf_counter() - start - compiling

    def take_in(self, keep: int = 0) -> None:
        """Fetches metrics of all but the last `keep` dispatches, so the device never waits.

        Raises:
            Diverged: at the first step that made something that is not finite.
        """
        while len(self.pending) > keep:
            first, metrics = self.pending.pop(0)
            found = {name: np.asarray(values).tolist() for name, values in metrics.items()}
            self.heard = max([self.heard, *map(Asked, found.get("asked", ()))])
            for offset, finite in enumerate(found["finite"]):
                step, loss, error = first + offset, found["loss"][offset], found["error"][offset]
                if not finite:
                    raise Diverged(f"NaN or Inf at step {step} (loss {loss:g})")
                self.window.add(loss, error)
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
        return self.feed.bottleneck if self.waited > 0.1 * self.taken else "train"

    def close(self) -> None:
        """Ends what runs in the background."""
        if self.feed is not None:
            self.feed.close()

    def tested(self) -> tuple[network.Flat, network.Flat]:
        """The parameters and running statistics that are tested."""
        return network.for_tests(self.state)


def check_mesh(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Raises ConfigError where a batch can't be spread evenly over the devices."""
    micro = config.train.batch_size // config.train.accumulate
    if micro % mesh.size:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} in train.accumulate="
            f"{config.train.accumulate} parts can't be spread over {mesh.size} devices; "
            "choose a multiple, or fewer devices"
        )


def start(
    config: ml_collections.ConfigDict,
    data: data_lib.Data,
    mesh: Mesh,
    seeds: network.Flat | None,
    convolutions: onednn.Convolutions = "xla",
) -> Training:
    """A training at step 0; `seeds` take the place of fresh parameters and statistics.

    convolutions: whose; oneDNN's need a single device.

    Raises:
        ArchitectureError, ConfigError: the config does not fit the network, data or devices.
    """
    check_mesh(config, mesh)
    shape = (data.classes, data.channels)
    params, stats = network.initial(config, *shape)
    frozen = optimizer.frozen(config, params)
    skeleton = network.skeleton(config, *shape, train=True, frozen=frozen)
    if seeds is not None:
        params, stats = ({name: seeds[name] for name in kept} for kept in (params, stats))
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
    step = make_step(config, skeleton, transform.update, data, mesh, frozen)
    return Training(
        config=config,
        data=data,
        mesh=mesh,
        state=processes.put(state, everywhere),
        schedule=optimizer.Schedule(config, total),
        dispatch=jax.jit(
            make_dispatch(step),
            donate_argnums=0,
            out_shardings=everywhere,
            compiler_options=execution.compiler_options(deterministic=config.train.deterministic),
        ),
        constants=processes.put(data.constants, everywhere),
        total=total,
        convolutions=convolutions,
        curvature=curvature,
    )


def _convolutions(
    run: runs.Run, config: ml_collections.ConfigDict, data: data_lib.Data, mesh: Mesh, begun: bool
) -> onednn.Convolutions:
    """Whose convolutions the run is trained with: those it was begun with, where they work.

    oneDNN's and XLA's differ by rounding, so a change would be seen in the last digits of a run
    that goes on. $CNN_DEPTH_CONVOLUTIONS makes one. A short training is XLA's, whose compiled
    program is kept for the next start.

    Raises:
        RunError: the run was begun with oneDNN's, which do not work here.
    """
    wished = onednn.wished()
    if mesh.size > 1 or jax.default_backend() != "cpu" or config.model.dtype != "float32":
        return "xla"
    told = run.read("execution") or {}
    kept = told.get("convolutions", "xla" if begun else None)
    if wished != "auto":
        use = wished
    elif kept == "xla" or (kept is None and _macs(config, data) < ONEDNN_FROM_MACS):
        use = "xla"
    else:
        use = onednn.chosen()
        if kept == "onednn" and use == "xla":
            raise runs.RunError(
                f"{run.id} was begun with oneDNN's convolutions, which failed their trial with "
                f"this jaxlib on this processor, or did not end it in {onednn.TRIAL_SECONDS} s; "
                f"{onednn.VARIABLE}=xla goes on with XLA's, which differ by rounding"
            )
    if told.get("convolutions") != use:
        runs.write_json(run.folder / "execution.json", {"convolutions": use})
    return use


def _macs(config: ml_collections.ConfigDict, data: data_lib.Data) -> float:
    """Multiply-adds of the whole training, forward and backward."""
    examples = data_lib.total_steps(config, data.counts["train"]) * config.train.batch_size
    return 3.0 * examples * _cost(config, data).macs


def _cost(config: ml_collections.ConfigDict, data: data_lib.Data) -> Census:
    return census(
        config.model.arch,
        image_size=config.data.image_size,
        classes=data.classes,
        channels=data.channels,
        **configs.builder_options(config.model),
    )


def _intervals(config: ml_collections.ConfigDict, n: int, total: int) -> dict[str, int]:
    """Steps between log lines, between validations, between tests that are only logged, where there
    are any, and between checkpoints (0: none by steps)."""
    epoch = n / config.train.batch_size
    steps = {
        "log": max(1, round(config.train.log_every_epochs * epoch)),
        "validate": max(1, round(config.train.validate_every_epochs * epoch)),
    }
    if config.optimizer.kind == "sdlm":
        steps["pass"] = levenberg_marquardt.steps_a_pass(n, config.train.batch_size)
    if config.test.curve_epochs:
        steps["curve"] = max(1, round(config.test.curve_epochs * epoch))
    return {k: min(v, total) for k, v in steps.items()} | {
        "save": config.checkpoint.every_steps,
    }


def _due(position: int, interval: int, total: int) -> bool:
    return position == total or (interval > 0 and position % interval == 0)


def _chunk(position: int, most: int, intervals: dict[str, int], total: int) -> int:
    """Steps of the next dispatch: `most`, or one where the next thing to do comes before.

    So two programs are compiled, and not one for each number of steps up to there.
    """
    ends = [total] + [(position // i + 1) * i for i in intervals.values() if i]
    return most if most <= min(ends) - position else 1


def _even(most: int, intervals: dict[str, int]) -> int:
    """Of at most so many steps those of which few are left over in the shortest interval."""
    shortest = min(interval for interval in intervals.values() if interval)
    return shortest // math.ceil(shortest / most)


def steps_a_dispatch(config: ml_collections.ConfigDict, data: data_lib.Data) -> int:
    """The most steps that one program makes."""
    if isinstance(data, data_lib.Streamed):  # batches come one by one
        return 1
    most = config.train.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 32)
    n = data.counts["train"]
    return _even(most, _intervals(config, n, data_lib.total_steps(config, n)))


def train(
    run: runs.Run,
    mesh: Mesh,
    *,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Trains a run to its end and tests it; goes on from its latest checkpoint, if it has one.

    Call it with the run's lock held. `on_event` hears of progress; `stop` is asked between
    dispatches. Returns the content of result.json, which a finished run has already. With several
    processes all call it; the first one's has the lock and writes.

    Raises:
        Diverged: NaN or Inf; the last good checkpoint stays.
        Interrupted: `stop` said so; all is saved.
    """
    done = processes.read(lambda: run.read("result"))
    if done is not None:
        return done
    try:
        with memory.enough_to_train(run.config()):
            return _train(run, mesh, on_event, stop)
    except OSError as error:
        if run.folder.is_dir() and error.errno not in runs.STORAGE:
            raise
        raise runs.unwritten(Path(error.filename or run.folder / "run.json"), error) from error


def _train(
    run: runs.Run,
    mesh: Mesh,
    on_event: Callable[[Event], None],
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """`train` of a run that is not finished."""
    if processes.first():
        (run.folder / "failed.json").unlink(missing_ok=True)
    config = run.config()
    opened = data_lib.open_data(config.data)
    runs.check_data(run, opened.fingerprint)

    def on_progress(done: int, total: int) -> None:
        on_event({"event": "statistics", "images": done, "of": total})
        if stop():
            raise Interrupted("stopped while the means of the training images were taken")

    def prepare() -> data_lib.Data:
        return data_lib.prepare(
            config,
            opened=opened,
            kept=run.folder / "statistics.npz",
            seen=preprocessing.inherited(run, config),
            on_progress=on_progress,
            on_bad=lambda reason: on_event({"event": "bad_image", "reason": reason}),
        )

    data = processes.one_first(prepare, "the means of the training images are there")
    with Checkpoints(run.checkpoints) as checkpoints:
        seeds = None
        if checkpoints.latest is None and config.seeding.run:
            seeds, told = _seeds(run, config, data)
            on_event({"event": "seeded", "summary": told})
        begun = checkpoints.latest is not None
        convolutions = _convolutions(run, config, data, mesh, begun)
        training = start(config, data, mesh, seeds, convolutions)
        note = partial(_note, on_event)
        if checkpoints.latest is not None:
            training.resume(*checkpoints.restore(training.state, on_damaged=note))
        elif processes.first():
            preprocessing.save(run.folder / preprocessing.FILE, preprocessing.of_data(data))
        if training.position < training.total and processes.first():
            for part in FINAL:  # of an earlier training that was begun anew
                for old in (run.folder / "predictions").glob(f"*{part}-center.npz"):
                    old.unlink(missing_ok=True)
        _check_log(run, training, note)
        log = MetricsLog(run, training.position)
        if processes.first() and training.position < training.total:
            runs.note_start(run, training.position, _devices(mesh))
        on_event({"event": "start", "step": training.position, "steps": training.total})
        tester = cache(partial(_tester, config, data, mesh, training))
        try:
            _loop(training, checkpoints, log, tester, on_event, stop)
        except Diverged as error:
            last = checkpoints.latest
            where = f"step {last}" if last is not None else "none"
            message = f"{error}; last good checkpoint: {where}"
            if processes.first():
                failed = {"reason": message, "kind": "diverged"}
                runs.write_json(run.folder / "failed.json", failed)
            raise Diverged(message) from None
        finally:
            log.close()
            training.close()
        checkpoints.finish()
        result = _finish(run, training, tester(), on_event, stop)
        checkpoints.prune()
    return result


def _devices(mesh: Mesh) -> str:
    """'8 x TPU v5e'."""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}"


def _check_log(run: runs.Run, training: Training, note: Callable[[str], None]) -> None:
    """Tells of lines that metrics.jsonl lacks: what they held is not computed again."""
    n = training.data.counts["train"]
    interval = _intervals(training.config, n, training.total)["log"]
    due = training.position // interval * interval
    if due and not any(line["step"] == due and "train_loss" in line for line in run.logged()):
        where = f"lacks lines before step {training.position}, where the run goes on"
        note(f"{run.metrics} {where}: its curves will have a gap")


def _note(on_event: Callable[[Event], None], text: str) -> None:
    on_event({"event": "note", "text": text})


def _loop(
    training: Training,
    checkpoints: Checkpoints,
    log: "MetricsLog",
    tester: Callable[[], Tester],
    on_event: Callable[[Event], None],
    stop: Callable[[], bool],
) -> None:
    config, n = training.config, training.data.counts["train"]
    intervals = _intervals(config, n, training.total)
    most = steps_a_dispatch(config, training.data)
    saved_at = time.monotonic()
    while training.position < training.total:
        limit = 1 if training.schedule.watches_every_step else most
        training.advance(_chunk(training.position, limit, intervals, training.total))
        position, val_error, better = training.position, None, False
        on_event(_progress(training))
        if _due(position, intervals["log"], training.total):
            training.finish_steps()
            if log.training(training) < config.train.until_error:
                training.total = position
        if training.data.counts["holdout"] and _due(
            position, intervals["validate"], training.total
        ):
            training.finish_steps()
            val_error = log.validation(training, tester())
            better = training.schedule.observe_validation(val_error)
        if "curve" in intervals and _due(position, intervals["curve"], training.total):
            training.finish_steps()
            log.curve(training, tester())
        asked = Asked.STOP if stop() else Asked.NOTHING
        if not asked and time.monotonic() - saved_at > (
            config.checkpoint.every_seconds or math.inf
        ):
            asked = Asked.SAVE
        if processes.several():  # all save and stop at the same step
            training.asked, asked = asked, training.heard
        stopping = asked == Asked.STOP and position < training.total
        if better or asked or _due(position, intervals["save"], training.total):
            training.finish_steps()
            # The step after this one takes the state's memory for its own (donation).
            log.check()
            checkpoints.save(position, _copy(training.state), training.host, val_error)
            training.asked = training.heard = Asked.NOTHING
            saved_at = time.monotonic()
        if stopping:
            raise Interrupted(f"stopped after step {position}, which is saved")


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _progress(training: Training) -> Event:
    w, rate = training.window, images_per_second(training)
    left = (training.total - training.position) * training.config.train.batch_size
    return {
        "event": "progress",
        "step": training.position,
        "steps": training.total,
        "loss": w.loss / w.steps if w.steps else None,
        "error": w.error / w.steps if w.steps else None,
        "images_per_s": rate,
        "left": left / rate if rate else None,
        "bottleneck": training.bottleneck,
    }


def images_per_second(training: Training) -> float:
    """Training images a second since the run's first step, compiling left out."""
    return training.position * training.config.train.batch_size / max(training.seconds, 1e-9)


def _tester(
    config: ml_collections.ConfigDict, data: data_lib.Data, mesh: Mesh, training: Training
) -> Tester:
    shape, own = (data.classes, data.channels), processes.own_mesh(mesh)
    return Tester(
        skeleton=network.skeleton(config, *shape, train=False),
        data=data,
        constants=processes.here(training.constants, own),
        mesh=own,
        batch=config.test.batch_size,
        deterministic=config.train.deterministic,
    )


def _seeds(
    run: runs.Run, config: ml_collections.ConfigDict, data: data_lib.Data
) -> tuple[network.Flat, str]:
    """The fresh network's parameters and running statistics, those of the seeding run in their
    places, and a summary.

    Which of them is copied, fresh or left over is kept in seeding.json.
    """
    donor = runs.Run(run.folder.parent / config.seeding.run)
    step, arrays = load_network(donor.checkpoints)
    done = donor.read("result")
    if donor.imported != config.seeding.weights:
        raise CheckpointError(f"{donor.folder} is no longer what was to seed {run.id}")
    if not donor.imported and (done is None or done["steps"] != step):
        raise CheckpointError(f"{donor.folder}, which is to seed {run.id}, is not finished")
    shape = (data.classes, data.channels)
    params, stats = network.initial(config, *shape)
    tested, theirs = network.for_tests(arrays)
    seeded, report = network.seed(
        {**tested, **theirs},
        donor.config().model.arch,
        {**params, **stats},
        config,
        *shape,
    )
    if processes.first():
        runs.write_json(run.folder / "seeding.json", {"from": donor.id, **report.to_json()})
    whose = f"as {donor.id} did" if configs.inherits(config) else "by their own mean and deviation"
    return seeded, f"{report.summary()}\nimages are normalised {whose}"


def _finish(
    run: runs.Run,
    training: Training,
    tester: Tester,
    on_event: Callable[[Event], None],
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """Tests the last parameters on the training and test images and writes result.json."""
    config, data = training.config, training.data
    files = {part: run.folder / "predictions" / f"{part}-center.npz" for part in FINAL}
    seen, tested = (
        _tested(run, training, tester, part, file, on_event, stop) for part, file in files.items()
    )
    cost = _cost(config, data)
    result = {
        "protocol": "center",
        **evaluate.error_counts(tested),
        "left_out": data.counts["test"] - len(tested.labels),
        "test_loss": tested.mean_loss,
        "train_loss": seen.mean_loss,
        "train_error": 100 * float(seen.topk_wrong().mean()),
        "train_tested": len(seen.labels),
        "steps": training.total,
        "epochs": training.total * config.train.batch_size / data.counts["train"],
        "train_images": data.counts["train"],
        "holdout_images": data.counts["holdout"],
        "data": data.name,
        "images_per_s": images_per_second(training),
        "seconds": training.seconds,
        "compile_seconds": training.compile_seconds,
        "depth": cost.depth,
        "parameters": cost.params,
        "macs": cost.macs,
        "precision": config.model.precision,
        "multiplied_in": execution.multiplied_in(
            config.model.precision, config.model.dtype, training.mesh.devices.flat[0]
        ),
        "devices": _devices(training.mesh),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if processes.first():
        runs.write_json(run.folder / "result.json", result)
        files["seen"].unlink(missing_ok=True)
    processes.meet("the result is kept")
    return result


def _tested(
    run: runs.Run,
    training: Training,
    tester: Tester,
    part: str,
    file: Path,
    on_event: Callable[[Event], None],
    stop: Callable[[], bool],
) -> Predictions:
    """The central views of a part, or what is left of them, tested and kept in `file`."""
    what = FINAL[part]

    def on_progress(done: int, total: int) -> None:
        on_event({"event": "testing", "what": what, "images": done, "of": total})
        if stop() and done < total:
            raise Interrupted(
                f"stopped in the final test {what}, which goes on from there; the training is saved"
            )

    about = {"run": run.id, "step": training.total, "part": part, "rounding": crops.ROUNDING}
    found = processes.read(lambda: kept.read(file, about))
    if found is None:
        params, stats = processes.here(training.tested(), tester.mesh)
        found = evaluate.collect(
            tester, params, stats, part, tester.data.centre, file, about, on_progress
        )
    if found is None:
        raise DataError(f"none of the {tester.data.counts[part]} images of {part!r} can be used")
    return found


# ------------------------------------------------------------------------------- the log


class MetricsLog:
    """metrics.jsonl and TensorBoard events; lines after the step that a run goes on from go.

    Of several processes only the first one's writes.
    """

    def __init__(self, run: runs.Run, step: int):
        if not processes.first():
            return
        runs.write_text(run.metrics, "".join(_lines_until(run.metrics, step)))
        self.path = run.metrics
        self.file = run.metrics.open("a")
        self.board = _board(run.folder / "tensorboard", step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        if not processes.first():
            return
        try:
            os.stat(self.path)  # what is deleted could still be written
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
        except OSError as error:
            raise runs.unwritten(self.path, error) from error
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def check(self) -> None:
        """Raises RunError where the run's folder was deleted: Orbax would make another."""
        if processes.first():
            try:
                os.stat(self.path)
            except OSError as error:
                raise runs.unwritten(self.path, error) from error

    def training(self, training: Training) -> float:
        """Writes the means since the last line and starts the next ones; returns the error
        (percent)."""
        w = training.window
        error = w.error / w.steps
        self.write(
            training.position,
            {
                "epoch": _epoch(training),
                "train_loss": w.loss / w.steps,
                "train_error": error,
                "lr": training.schedule.rate(training.position - 1),
                "images_per_s": images_per_second(training),
                "seconds": training.seconds,
            },
        )
        training.window = Window()
        return error

    def validation(self, training: Training, tester: Tester) -> float:
        """Tests on the held-out images, writes and returns their error (percent)."""
        found = tester.run(*training.tested(), "holdout")
        values = {"val_loss": found.mean_loss, "val_top1_error": found.error}
        self.write(training.position, {"epoch": _epoch(training), **values})
        return found.error

    def curve(self, training: Training, tester: Tester) -> None:
        """Tests on the test images, and on the training images where that is asked for, and writes
        their errors (percent); nothing depends on them."""
        found = tester.run(*training.tested(), "test")
        values = {"test_loss": found.mean_loss, "test_top1_error": found.error}
        if training.config.test.curve_seen:
            found = tester.run(*training.tested(), "seen")
            values |= {"seen_loss": found.mean_loss, "seen_top1_error": found.error}
        self.write(training.position, {"epoch": _epoch(training), **values})

    def close(self) -> None:
        if processes.first():
            with contextlib.suppress(OSError):  # `write` has told of a full disk
                self.file.close()
            self.board.close()


def _board(folder: Path, step: int) -> Any:
    """A writer of TensorBoard events after `step`.

    What its thread can't write is left out: a disk that is full is told of by metrics.jsonl.
    tensorboardX imports PyTorch where that is installed, which takes seconds, for arrays that it
    is never given here; it does without.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # importing it raises ImportError
    try:
        from tensorboardX import SummaryWriter
        from tensorboardX.record_writer import register_writer_factory
    finally:
        if hidden:
            del sys.modules["torch"]
    register_writer_factory(_Events.prefix, _Events)
    return SummaryWriter(f"{_Events.prefix}:{folder}", purge_step=step + 1)


class _Events:
    """A file of TensorBoard's events, as tensorboardX opens it by the prefix of its name.

    Its writer is a thread that an error would end; the training would then wait for it for ever.
    """

    prefix = "events"

    def __init__(self, path: str):
        self._file = Path(path).open("wb", buffering=0)  # noqa: SIM115

    @classmethod
    def open(cls, path: str) -> "_Events":
        return cls(path.removeprefix(f"{cls.prefix}:"))

    @classmethod
    def directory_check(cls, path: str) -> None:
        os.makedirs(path.removeprefix(f"{cls.prefix}:"), exist_ok=True)

    def write(self, content: bytes) -> None:
        with contextlib.suppress(OSError):
            self._file.write(content)

    def flush(self) -> None:
        """It has no buffer."""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _epoch(training: Training) -> float:
    examples = training.position * training.config.train.batch_size
    return examples / training.data.counts["train"]


def _lines_until(path: Path, step: int) -> Iterator[str]:
    if not path.is_file():
        return
    for line in path.read_text("utf-8", errors="replace").splitlines(keepends=True):
        with contextlib.suppress(json.JSONDecodeError, KeyError):  # a line cut short by a kill
            if json.loads(line)["step"] <= step:
                yield line

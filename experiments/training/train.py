"""Training one run: the papers' recipe as one jitted step over flat parameters, and its loop.

The loop is deterministic in what it computes and free in when it writes: the examples, views and
dropout masks of a step follow from (seed, step), the rate from the schedule's few numbers, and
all else is in the checkpoint. A run killed at any moment and started again therefore ends bit for
bit where an undisturbed one ends.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cnn_arch import execution
from experiments import config as configs
from experiments import data as data_lib
from experiments import network, tracking
from experiments.data import preprocessing
from experiments.runs import processes, runs
from experiments.runs.checkpoints import CheckpointError, Checkpoints, load_network
from experiments.testing import evaluate, prediction_store
from experiments.testing.predictions import Predictions
from experiments.testing.tester import Tester
from experiments.tracking.following import following
from experiments.training import convolutions, levenberg_marquardt, memory
from experiments.training.metrics_log import MetricsLog
from experiments.training.state import Diverged, Interrupted, Request, Training, start
from input_pipeline import DataError, crops

Event = dict[str, Any]
OnEvent = Callable[[Event], None]
Stop = Callable[[], bool]
# What a trained network is tested on in the end.
FINAL = {"seen": "on training images", "test": "on test images"}


def _intervals(config: ConfigDict, n: int, total: int) -> dict[str, int]:
    """Steps between log lines, validations, measurements of curvature, tests for curves and
    checkpoints (0: none by steps), by name."""
    epoch = n / config.train.batch_size
    steps = {
        "log": max(1, round(config.train.log_every_epochs * epoch)),
        "validate": max(1, round(config.train.validate_every_epochs * epoch)),
    }
    if config.optimizer.kind == "sdlm":
        steps["pass"] = levenberg_marquardt.steps_a_pass(n, config.train.batch_size)
    if config.test.curve_epochs:
        steps["curve"] = max(1, round(config.test.curve_epochs * epoch))
    capped = {name: min(interval, total) for name, interval in steps.items()}
    return {**capped, "save": config.checkpoint.every_steps}


def _due(position: int, interval: int, total: int) -> bool:
    return position == total or (interval > 0 and position % interval == 0)


def _chunk(position: int, most: int, intervals: dict[str, int], total: int) -> int:
    """Steps of the next dispatch: `most`, or one where the next thing to do comes before.

    So only two programs are compiled, and not one for each number of steps.
    """
    ends = [total] + [(position // i + 1) * i for i in intervals.values() if i]
    return most if most <= min(ends) - position else 1


def _even(most: int, intervals: dict[str, int]) -> int:
    """The steps of a dispatch, at most `most`, that divide the shortest interval about evenly."""
    shortest = min(interval for interval in intervals.values() if interval)
    return shortest // math.ceil(shortest / most)


def steps_a_dispatch(config: ConfigDict, data: data_lib.Data) -> int:
    """The most steps that one program makes."""
    if isinstance(data, data_lib.Streamed):  # batches come one by one
        return 1
    most = config.train.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 32)
    n = data.counts["train"]
    return _even(most, _intervals(config, n, data_lib.total_steps(config, n)))


def train(
    run: runs.Run, mesh: Mesh, *, on_event: OnEvent = lambda event: None, stop: Stop = lambda: False
) -> dict[str, Any]:
    """Trains a run to its end and tests it; goes on from its latest checkpoint, if it has one.

    Call it with the run's lock held. `on_event` is called with progress, and `stop` between
    dispatches. Returns the content of result.json, which a finished run has already. With several
    processes all call it; the first one has the lock and writes.

    Raises:
        Diverged: NaN or Inf; the last good checkpoint stays.
        Interrupted: `stop` returned True; all is saved.
    """
    result = processes.read(lambda: run.read("result"))
    if result is not None:
        return result
    try:
        with memory.enough_to_train(run.config()):
            return _train(run, mesh, on_event, stop)
    except OSError as error:
        if run.folder.is_dir() and error.errno not in runs.STORAGE:
            raise
        raise runs.unwritten(Path(error.filename or run.folder / "run.json"), error) from error


def _train(run: runs.Run, mesh: Mesh, on_event: OnEvent, stop: Stop) -> dict[str, Any]:
    """`train` of a run that is not finished."""
    if processes.first():
        (run.folder / "failed.json").unlink(missing_ok=True)
    config = run.config()
    data = _data(run, config, on_event, stop)

    def note(text: str) -> None:
        on_event({"event": "note", "text": text})

    with Checkpoints(run.checkpoints) as checkpoints:
        seeds = None
        if checkpoints.latest is None and config.seeding.run:
            seeds, summary = _seeds(run, config, data)
            on_event({"event": "seeded", "summary": summary})
        resumed = checkpoints.latest is not None
        library = convolutions.choose(run, config, data, mesh, resumed)
        on_cpu, dtype = jax.default_backend() == "cpu", config.model.get("dtype")
        if on_cpu and library == "xla" and dtype == "bfloat16":
            note("model.dtype=bfloat16 is no faster than float32 with XLA's convolutions on a CPU")
        training = start(config, data, mesh, seeds, library)
        if checkpoints.latest is not None:
            training.resume(*checkpoints.restore(training.state, on_damaged=note))
        elif processes.first():
            preprocessing.save(run.folder / preprocessing.FILE, data.preprocessing)
        if training.position < training.total and processes.first():
            for part in FINAL:  # of an earlier training that was begun anew
                for file in (run.folder / "predictions").glob(f"*{part}-center.npz"):
                    file.unlink(missing_ok=True)
        _check_log(run, training, note)
        log = MetricsLog(run, training.position)
        if processes.first() and training.position < training.total:
            runs.note_start(run, training.position, _devices(mesh))
        on_event({"event": "start", "step": training.position, "steps": training.total})
        tester = cache(partial(_tester, config, data, mesh, training))
        trackers = tracking.chosen() if processes.first() else ()
        with following(run, trackers, note) as log.on_line:
            _to_the_end(run, training, checkpoints, log, tester, on_event, stop)
            result = _finish(run, training, tester(), on_event, stop)
        checkpoints.prune()
    return result


def _to_the_end(
    run: runs.Run,
    training: Training,
    checkpoints: Checkpoints,
    log: MetricsLog,
    tester: Callable[[], Tester],
    on_event: OnEvent,
    stop: Stop,
) -> None:
    """Takes all steps and waits until the last is saved. failed.json tells of a divergence."""
    try:
        _loop(training, checkpoints, log, tester, on_event, stop)
    except Diverged as error:
        last = checkpoints.latest
        message = f"{error}; last good checkpoint: {'none' if last is None else f'step {last}'}"
        if processes.first():
            failed = {"reason": message, "kind": "diverged"}
            runs.write_json(run.folder / "failed.json", failed)
        raise Diverged(message) from None
    finally:
        log.close()
        training.close()
    checkpoints.finish()


def _data(run: runs.Run, config: ConfigDict, on_event: OnEvent, stop: Stop) -> data_lib.Data:
    """The images of a run, with the means that they are normalised by."""
    opened = data_lib.open_data(config.data)
    runs.check_data(run, opened.fingerprint)

    def on_progress(n: int, total: int) -> None:
        on_event({"event": "statistics", "images": n, "of": total})
        if stop():
            raise Interrupted("stopped while the means of the training images were taken")

    def prepare() -> data_lib.Data:
        return data_lib.prepare(
            config,
            opened=opened,
            statistics_file=run.folder / "statistics.npz",
            prep=preprocessing.inherited(run, config),
            on_progress=on_progress,
            on_bad=lambda reason: on_event({"event": "bad_image", "reason": reason}),
        )

    return processes.first_then_others(prepare, "the means of the training images are there")


def _devices(mesh: Mesh) -> str:
    """'8 x TPU v5e'."""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}"


def _check_log(run: runs.Run, training: Training, note: Callable[[str], None]) -> None:
    """Notes that metrics.jsonl lacks lines: their figures are not computed again."""
    n = training.data.counts["train"]
    interval = _intervals(training.config, n, training.total)["log"]
    due = training.position // interval * interval
    if due and not any(line["step"] == due and "train_loss" in line for line in run.logged()):
        reason = f"lacks lines before step {training.position}, where the run goes on"
        note(f"{run.metrics} {reason}: its curves will have a gap")


def _loop(
    training: Training,
    checkpoints: Checkpoints,
    log: MetricsLog,
    tester: Callable[[], Tester],
    on_event: OnEvent,
    stop: Stop,
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
            error = log.training(training)
            if error is not None and error < config.train.until_error:
                training.total = position
        if training.data.counts["holdout"] and _due(
            position, intervals["validate"], training.total
        ):
            training.finish_steps()
            val_error = log.validation(training, tester())
            better = training.schedule.observe_validation(val_error)
            if 0 < config.train.patience <= training.schedule.stale:
                training.total = position
        if "curve" in intervals and _due(position, intervals["curve"], training.total):
            training.finish_steps()
            log.curve(training, tester())
        late = time.monotonic() - saved_at > (config.checkpoint.every_seconds or math.inf)
        request = Request.STOP if stop() else Request.SAVE if late else Request.NOTHING
        if processes.several():  # all save and stop at the same step
            training.request, request = request, training.agreed
        stopping = request == Request.STOP and position < training.total
        if better or request or _due(position, intervals["save"], training.total):
            training.finish_steps()
            # Copied, because the state's memory is donated to the next step.
            log.check()
            checkpoints.save(position, _copy(training.state), training.host, val_error)
            training.request = training.agreed = Request.NOTHING
            saved_at = time.monotonic()
        if stopping:
            raise Interrupted(f"stopped after step {position}, which is saved")


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _progress(training: Training) -> Event:
    w, rate = training.window, training.recent_images_per_second
    remaining = (training.total - training.position) * training.config.train.batch_size
    return {
        "event": "progress",
        "step": training.position,
        "steps": training.total,
        "loss": w.loss / w.steps if w.steps else None,
        "error": w.mean_error,
        "images_per_s": rate,
        "left": remaining / rate if rate else None,
        "bottleneck": training.bottleneck,
    }


def _tester(config: ConfigDict, data: data_lib.Data, mesh: Mesh, training: Training) -> Tester:
    shape, own_mesh = (data.classes, data.channels), processes.own_mesh(mesh)
    return Tester(
        skeleton=network.skeleton(config, *shape, train=False),
        data=data,
        constants=processes.to_own_mesh(training.constants, own_mesh),
        mesh=own_mesh,
        batch=config.test.batch_size,
        deterministic=config.train.deterministic,
        boxes=config.train.boxes != "none",
    )


def _seeds(run: runs.Run, config: ConfigDict, data: data_lib.Data) -> tuple[network.Flat, str]:
    """(parameters and running statistics, the seeding run's in place of fresh ones; a summary).

    seeding.json says which of them are copied, fresh or left over.
    """
    seeding_run = runs.Run(run.folder.parent / config.seeding.run)
    step, arrays = load_network(seeding_run.checkpoints)
    result = seeding_run.read("result")
    if seeding_run.imported != config.seeding.weights:
        raise CheckpointError(f"{seeding_run.folder} is no longer what was to seed {run.id}")
    if not seeding_run.imported and (result is None or result["steps"] != step):
        raise CheckpointError(f"{seeding_run.folder}, which is to seed {run.id}, is not finished")
    shape = (data.classes, data.channels)
    params, stats = network.initial(config, *shape)
    seeding_params, seeding_stats = network.for_tests(arrays)
    seeded, report = network.seed(
        {**seeding_params, **seeding_stats},
        seeding_run.config().model.arch,
        {**params, **stats},
        config,
        *shape,
    )
    if processes.first():
        runs.write_json(run.folder / "seeding.json", {"from": seeding_run.id, **asdict(report)})
    inherits = configs.inherits(config)
    how = f"as {seeding_run.id} did" if inherits else "by their own mean and deviation"
    return seeded, f"{report.summary()}\nimages are normalised {how}"


def _finish(
    run: runs.Run, training: Training, tester: Tester, on_event: OnEvent, stop: Stop
) -> dict[str, Any]:
    """Tests the last parameters on the training and test images and writes result.json."""
    config, data = training.config, training.data
    files = {part: run.folder / "predictions" / f"{part}-center.npz" for part in FINAL}
    on_train, on_test = (
        _tested(run, training, tester, part, file, on_event, stop) for part, file in files.items()
    )
    train_figure = {"train_error": on_train.error}
    if on_train.targets is not None:
        train_figure = {"train_mean_average_precision": on_train.mean_average_precision()}
    cost = network.cost(config, data.classes, data.channels)
    result = {
        "protocol": "center",
        **evaluate.error_counts(on_test, data.preprocessing.class_names),
        "left_out": data.counts["test"] - len(on_test.labels),
        "test_loss": on_test.mean_loss,
        "train_loss": on_train.mean_loss,
        **train_figure,
        "train_tested": len(on_train.labels),
        "steps": training.total,
        "epochs": training.total * config.train.batch_size / data.counts["train"],
        "train_images": data.counts["train"],
        "holdout_images": data.counts["holdout"],
        "data": data.name,
        "images_per_s": training.images_per_second,
        "seconds": training.seconds,
        "compile_seconds": training.compile_seconds,
        "depth": cost.depth,
        "parameters": cost.params,
        "macs": cost.macs,
        "precision": config.model.precision,
        "multiplied_in": execution.multiplied_in(
            config.model.precision,
            config.model.get("dtype", "float32"),
            training.mesh.devices.flat[0],
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
    on_event: OnEvent,
    stop: Stop,
) -> Predictions:
    """Tests the central views of a part, or those that `file` lacks, and keeps all in `file`."""
    name = FINAL[part]

    def on_progress(n: int, total: int) -> None:
        on_event({"event": "testing", "what": name, "images": n, "of": total})
        if stop() and n < total:
            raise Interrupted(
                f"stopped in the final test {name}, which goes on from there; the training is saved"
            )

    about = {"run": run.id, "step": training.total, "part": part, "rounding": crops.ROUNDING}
    predictions = processes.read(lambda: prediction_store.read(file, about))
    if predictions is None:
        params, stats = processes.to_own_mesh(training.tested(), tester.mesh)
        predictions = evaluate.collect(
            tester, params, stats, part, tester.data.centre, file, about, on_progress
        )
    if predictions is None:
        raise DataError(f"none of the {tester.data.counts[part]} images of {part!r} can be used")
    return predictions

"""`cnn-depth bench end_to_end`: the program from its start, and the training loop."""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from statistics import mean, median
from typing import Any

from launch import devices
from launch.bench import frame, ratios, timing
from launch.bench.frame import BenchError, Report
from launch.bench.ratios import NOT_TRUSTED, Item, Ratio, Table, spread
from launch.bench.timing import Series, Timing, Watch, in_turns, watch_of, with_ended_children
from launch.verbs.options import add_options

HELP = """\
Measure the whole program: seconds of `--help`; seconds from the command to the first finished
training step of the demo net, with an empty and with a filled compilation cache; the training loop
beside its jitted step alone; microseconds a step that the loop, its input and its bookkeeping take,
early and late in a training, and what a checkpoint costs. All files are temporary."""
EXAMPLE = """
cnn-depth bench end_to_end
cnn-depth bench end_to_end --longest 100000 --repeats 3 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options = {
        "--repeats N": "default: 5",
        "--steps N": "of the demo net's loop and of its bare step, a measurement (default: 1000)",
        "--longest N": "steps after which a step's bookkeeping is measured last (default: 10000)",
    }
    add_options(parser, options, repeats=5, steps=1000, longest=10_000)


VERSIONS = ("jax", "jaxlib", "flax", "orbax-checkpoint")
DEMO = ("residual_depth", "resnet-20")
START_SECONDS = 300  # a first step that takes longer is not awaited
LOOK_SECONDS = 0.005
WARM_STEPS = 5  # of a loop, which are not timed: programs are still loaded
EARLY = 100  # a step that is early in a training
# Steps of an early and a late training, taken in turns by so many: a machine's pace changes from
# second to second by more than a step's bookkeeping may grow.
WINDOW, TURN = 2_000, 100
MOST_WINDOWS = 50  # within which two seconds must pass
SAVED_EVERY = 500  # steps, of both
# A net that costs next to nothing: what remains of a step is the loop's.
TINY = {
    "model.arch": "cifar_plain:8",
    "model.width": "0.0625",
    "data.image_size": "8",
    "data.pad": "0",
    "data.holdout": "0",
    "train.batch_size": "2",
}


@dataclass(frozen=True)
class Limit:
    """A figure with an upper bound: the median of the repeats."""

    name: str
    title: str
    at_most: float
    each: tuple[float, ...]  # a figure a repeat
    doubt: str | None = None  # why it is not trusted

    @property
    def met(self) -> bool | None:
        """Whether the median is within the target; None where it is not trusted."""
        return None if self.doubt else median(self.each) <= self.at_most

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "at_most": self.at_most,
            "met": self.met,
            "measured": None if self.doubt else median(self.each),
            "not_trusted": self.doubt,
            "lowest": min(self.each),
            "highest": max(self.each),
            "each": list(self.each),
        }


# ------------------------------------------------------------------------ from the command on


PROGRAM = (*devices.PYTHON, "-m", "launch")


def help_timing() -> Timing:
    """The time of `cnn-depth --help`, at its second start: the first reads files off the disk."""
    command, environment = [*PROGRAM, "--help"], devices.environment(devices.Slot())
    for _ in range(2):
        watch = Watch(with_ended_children, 1)
        completed = subprocess.run(command, env=environment, capture_output=True, check=False)
        start = watch.stop(1, None)  # a start happens once
        if completed.returncode:
            raise BenchError(f"--help ended with exit status {completed.returncode}")
    return start


def first_step_timing(cache: Path, *options: str) -> Timing:
    """The time from the command to the demo net's first finished step; the program is then killed.

    cache: folder of compiled programs; options: further ones of the command. The step is finished
    when its line is in metrics.jsonl. Raises BenchError where the program ends before.
    """
    environment = devices.environment(devices.Slot()) | {"XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    study, row = DEMO
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile("w+") as output,
    ):
        logged = ("--set", "train.log_every_epochs=1e-9")
        command = [*PROGRAM, "train", study, "--row", row, "--runs", folder, *logged, *options]
        watch = Watch(with_ended_children)
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while not (finished := _has_a_step(Path(folder))):
                if process.poll() is not None or watch.seconds > START_SECONDS:
                    break
                time.sleep(LOOK_SECONDS)
            seconds = watch.seconds
        finally:
            process.kill()
            process.wait()
        start = watch.stop(1, None)  # with the processor time of the process, which has ended
        if not finished and not _has_a_step(Path(folder)):
            output.seek(0)
            last_line = (output.read().strip().splitlines() or ["it said nothing"])[-1]
            raise BenchError(f"the demo net made no step in {seconds:.0f} s: {last_line}")
    return replace(start, seconds=seconds)


def _has_a_step(runs: Path) -> bool:
    return any(path.stat().st_size for path in runs.glob("*/metrics.jsonl"))


# ------------------------------------------------------------------------ the loop and its step


class Stepped:
    """A training that does so many steps at each call of `go`; a context manager.

    It has a thread of its own, which waits in between.
    """

    def __init__(self, row: str | None, overrides: Mapping[str, str]) -> None:
        self._requests: SimpleQueue[int] = SimpleQueue()
        self._replies: SimpleQueue[dict[int, float] | BaseException] = SimpleQueue()
        self._steps, self._ended = 0, False
        self._previous: tuple[int, float] | None = None
        self._seconds: dict[int, float] = {}
        self._thread = threading.Thread(target=self._train, args=(row, overrides), daemon=True)

    def __enter__(self) -> Stepped:
        self._thread.start()
        self._receive()  # of its first step
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._requests.put(0)
        self._thread.join()

    def go(self, steps: int) -> dict[int, float]:
        """Does so many steps; step -> seconds from its end to that of the next one."""
        self._requests.put(steps)
        return self._receive()

    def _receive(self) -> dict[int, float]:
        reply = self._replies.get()
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def _train(self, row: str | None, overrides: Mapping[str, str]) -> None:
        """Trains a row of the demo study as the product does, in a temporary folder."""
        from experiments.training import train
        from launch.planning import graph

        try:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                job = graph.job_of_row(DEMO[0], row, overrides, Path(folder))
                job.create()
                with job.run.lock():
                    train.train(job.run, devices.mesh(), on_event=self._on_event)
            raise BenchError("the training has no more steps")
        except BaseException as error:
            self._replies.put(error)

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] != "progress":
            return
        if self._previous is not None:
            step, start = self._previous
            self._seconds[step] = time.perf_counter() - start
        if len(self._seconds) == self._steps:
            self._replies.put(self._seconds)
            self._seconds, self._steps = {}, self._requests.get()
        if self._ended:
            raise BenchError("no more steps are asked for")
        self._previous = event["step"], time.perf_counter()


def saves(seconds: Mapping[int, float], every: int) -> list[float]:
    """Seconds by which a step with a checkpoint took longer than those around it."""
    nearby = {
        step: [seconds[s] for s in range(step - 20, step) if s in seconds]
        for step in seconds
        if step % every == 0
    }
    return [seconds[step] - median(others) for step, others in nearby.items() if others]


def demo_overrides(steps: int, seed: int) -> dict[str, str]:
    """Overrides for so many steps of the demo net without validation, with a checkpoint halfway.

    That is one in some ten seconds, where the product has one a minute.
    """
    return {
        "train.steps": str(WARM_STEPS + 1 + steps),
        "train.steps_per_dispatch": "1",
        "data.holdout": "0",
        "checkpoint.every_steps": str(WARM_STEPS + steps // 2),
        "seed": str(seed),
    }


def watch() -> Watch:
    import jax

    return watch_of(jax.default_backend())


def loop_timing(row: str | None, overrides: Mapping[str, str]) -> Timing:
    """The time of a training's steps after the first `WARM_STEPS`; an image is a step."""
    steps = int(overrides["train.steps"]) - WARM_STEPS - 1
    with Stepped(row, overrides) as training:
        training.go(WARM_STEPS)
        running = watch()
        training.go(steps)
        return running.stop(steps, steps)


def bare_step(row: str | None, overrides: Mapping[str, str]) -> Callable[[int], None]:
    """Gives `go(n)`, which does n jitted steps on one batch of the same data, and nothing else."""
    import jax

    from launch.bench.step_ours import with_inputs
    from launch.planning import graph

    config = graph.job_of_row(DEMO[0], row, overrides, Path("runs")).config
    training, (state, *inputs) = with_inputs(config, devices.mesh())
    step = training.dispatch.lower(state, *inputs).compile()  # as the loop does
    arguments = jax.device_put(inputs)

    def go(n: int) -> None:
        nonlocal state
        for _ in range(n):
            state, metrics = step(state, *arguments)
        jax.block_until_ready((state, metrics))

    return go


@dataclass(frozen=True)
class Pair:
    """Steps of two trainings of the tiny net: one began lately, one long ago."""

    early: dict[int, float]  # step -> seconds
    late: dict[int, float]
    growth: float  # the median over the turns of late over early, medians of a turn
    timing: Timing  # of both together

    def to_json(self) -> dict[str, Any]:
        return {
            "growth": self.growth,
            **{
                name: {
                    "median": median(seconds.values()),
                    "mean": mean(seconds.values()),
                    "saves": saves(seconds, SAVED_EVERY),
                }
                for name, seconds in (("early", self.early), ("late", self.late))
            },
        }


def paired(longest: int) -> Pair:
    """Steps from EARLY on beside those from `longest` on, in turns."""
    overrides = {
        "train.steps": str(longest + MOST_WINDOWS * WINDOW + 2 * TURN),
        "train.steps_per_dispatch": "1",
        "checkpoint.every_steps": str(SAVED_EVERY),
        "checkpoint.every_seconds": "0",
    }
    seconds: tuple[dict[int, float], dict[int, float]] = ({}, {})
    growth: list[float] = []
    with (
        Stepped(None, {**TINY, **overrides}) as late,
        Stepped(None, {**TINY, **overrides}) as early,
    ):
        # Checkpoints come in the middle of a turn, so that they are written in it.
        late.go(longest + TURN // 2)
        early.go(EARLY + TURN // 2)
        running, turns = watch(), [(1, late), (0, early)]
        while (
            len(growth) < WINDOW // TURN
            or min(sum(s.values()) for s in seconds) < timing.LEAST_SECONDS
        ):
            medians = {}
            for index, training in turns:
                turn = training.go(TURN)
                seconds[index].update(turn)
                medians[index] = median(turn.values())
            growth.append(medians[1] / medians[0])
            turns.reverse()
        steps = sum(map(len, seconds))
        total = running.stop(steps, steps)
    return Pair(*seconds, median(growth), total)


# ------------------------------------------------------------------------ the bench


TITLES = {
    "help": "--help",
    "starts": "first step",
    "loop": "the loop",
    "bare": "the step alone",
    "pairs": "a step's bookkeeping",
}


def measure(args: argparse.Namespace, machine: dict[str, Any], console: Any) -> Report:
    frame.at_least(args, repeats=1, steps=2, longest=EARLY)
    devices.set_up()
    os.environ["CNN_DEPTH_CONVOLUTIONS"] = "xla"  # in the loop as in the bare step, however long
    import jax

    seeds = itertools.count()

    def starts() -> tuple[Timing, Timing]:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
            return first_step_timing(Path(cache)), first_step_timing(Path(cache))

    def loop() -> Timing:
        seed = next(seeds)
        return timing.long_enough(
            lambda steps: loop_timing(DEMO[1], demo_overrides(steps, seed)), args.steps
        )

    def bare() -> Timing:
        go = bare_step(DEMO[1], demo_overrides(args.steps, 0))
        return timing.timed(go, 1, watch, args.steps)

    subjects: dict[str, Callable[[], Any]] = {
        "help": help_timing,
        "starts": starts,
        "loop": loop,
        "bare": bare,
        "pairs": functools.partial(paired, args.longest),
    }
    with frame.turns_bar(console, len(subjects) * args.repeats) as on_turn:
        series, _ = in_turns(subjects, args.repeats, on_turn, titles=TITLES)
    limits, item = targets(series)
    device_kind = jax.devices()[0].device_kind
    device = frame.cpu(machine) if jax.default_backend() == "cpu" else str(device_kind)
    settings = {name: getattr(args, name) for name in ("repeats", "steps", "longest")}
    raw = {**series, "pairs": {**series["pairs"].to_json(), "each": series["pairs"].bursts}}
    figures = {"settings": settings, "limits": limits, "items": [item], "raw": raw}
    parts = report(series, limits, item, settings)
    return Report(device, figures, parts, {"device": device}, in_markdown=True)


def targets(series: Mapping[str, Series[Any]]) -> tuple[list[Limit], Item]:
    """The figures with an upper bound, and the ratio with a lower one."""
    starts, pairs = series["starts"], series["pairs"]
    empty, filled = (tuple(pair[k].seconds for pair in starts.bursts) for k in (0, 1))
    seconds = tuple(start.seconds for start in series["help"].bursts)
    growth = tuple(pair.growth for pair in pairs.bursts)
    to_step = "seconds to the first step, {} cache"
    limits = [
        Limit("help_seconds", "seconds of --help", 0.3, seconds, series["help"].doubt),
        Limit("first_step_empty", to_step.format("empty"), 5, empty, starts.doubt),
        Limit("first_step_filled", to_step.format("filled"), 5, filled, starts.doubt),
        Limit("step_growth", "a step's time, last over first", 1.1, growth, pairs.doubt),
    ]
    ratio = ratios.compare(series["loop"], series["bare"], (TITLES["loop"], TITLES["bare"]))
    return limits, Item("loop_over_step", "training loop over its bare step", 0.95, ratio)


MET = {True: "yes", False: "NO", None: ""}


def report(
    series: Mapping[str, Series[Any]],
    limits: Sequence[Limit],
    item: Item,
    settings: Mapping[str, int],
) -> list[frame.Part]:
    """The parts of the report; their Markdown is readable on the screen too."""
    rows = []
    for limit in limits:
        cells = (*spread(limit.each, ".2f", limit.doubt), MET[limit.met])
        rows.append((limit.title, f"at most {limit.at_most:g}", *cells))
    ratio = item.measured
    shown = spread(ratio.each, ".2f") if isinstance(ratio, Ratio) else (str(ratio), "", "")
    rows.append((item.title, f"at least {item.target:g}", *shown, MET[item.met]))
    steps = []
    for name, step in (("early", EARLY), ("late", settings["longest"])):
        trainings = [getattr(pair, name) for pair in series["pairs"].bursts]
        typical = median(median(seconds.values()) for seconds in trainings)
        average = median(mean(seconds.values()) for seconds in trainings)
        save = median(s for seconds in trainings for s in saves(seconds, SAVED_EVERY))
        times = [f"{1e6 * seconds:,.0f}" for seconds in (typical, average, save)]
        steps.append((f"{step:,}", *([NOT_TRUSTED, "", ""] if series["pairs"].doubt else times)))
    explanation = (
        "A step of a tiny net, microseconds, early and late in a training, in turns: the median, "
        f"the mean with all that is written, and what a checkpoint, one in {SAVED_EVERY} steps, "
        "holds the loop up."
    )
    conditions = (
        f"The demo net is row {DEMO[1]} of {DEMO[0]}; {settings['repeats']} repeats, in turns, "
        f"{settings['steps']} steps of its loop and of its bare step in each."
    )
    table = Table(("measured", "target", "median", "lowest", "highest", "met"), rows, "lrrrrl")
    bookkeeping = Table(("from step", "median", "mean", "checkpoint"), steps, "r")
    return [
        *frame.both(conditions, table),
        frame.notes(ratios.doubts(series, TITLES)),
        *frame.both(explanation, bookkeeping),
    ]

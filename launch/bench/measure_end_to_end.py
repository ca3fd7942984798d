"""What `cnn-depth bench end_to_end` measures: the program from its start, and the training loop."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from statistics import mean, median
from typing import Any

from launch import devices
from launch.bench import figures, page
from launch.bench.figures import Item, Ratio

DEMO = ("residual_depth", "resnet-20")
START_SECONDS = 300  # a first step that takes longer is not awaited
LOOK_SECONDS = 0.005
WARM_STEPS = 5  # of a loop, which are not timed: programs are still loaded
EARLY = 100  # a step that is early in a training
# Steps of an early and a late training, taken in turns by so many: a machine's pace changes from
# second to second by more than a step's bookkeeping may grow.
WINDOW, TURN = 2_000, 100
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


class EndToEndError(ValueError):
    """An option without sense, or a program that does not start."""

    user_error = True


@dataclass(frozen=True)
class Limit:
    """A figure that is to be at most so much: the median of what each repeat found."""

    name: str
    title: str
    at_most: float
    each: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.each)

    @property
    def met(self) -> bool:
        """Whether the median is within the target."""
        return self.median <= self.at_most

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "at_most": self.at_most,
            "met": self.met,
            "measured": self.median,
            "lowest": min(self.each),
            "highest": max(self.each),
            "each": list(self.each),
        }


# ------------------------------------------------------------------------ from the command on


def program(*words: str) -> list[str]:
    """The command line of this program, in a process of its own."""
    return [*devices.PYTHON, "-m", "launch", *words]


def help_seconds() -> float:
    """Seconds of `cnn-depth --help`."""
    start = time.perf_counter()
    environment = devices.environment(devices.Slot())
    done = subprocess.run(program("--help"), env=environment, capture_output=True, check=False)
    if done.returncode:
        raise EndToEndError(f"--help ended with exit status {done.returncode}")
    return time.perf_counter() - start


def first_step_seconds(cache: Path, *words: str) -> float:
    """Seconds from the command to the first finished training step of the demo net, which is then
    ended. cache: where compiled programs are kept; words: further options.

    The step is finished when its line is in metrics.jsonl: each step is logged here.

    Raises EndToEndError where the program ends before.
    """
    environment = devices.environment(devices.Slot()) | {"XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    study, row = DEMO
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        often = ("--set", "train.log_every_epochs=1e-9")
        command = program("train", study, "--row", row, "--runs", folder, *often, *words)
        with tempfile.TemporaryFile("w+") as said:
            start = time.perf_counter()
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                while not (finished := _has_a_step(Path(folder))):
                    if process.poll() is not None or time.perf_counter() - start > START_SECONDS:
                        break
                    time.sleep(LOOK_SECONDS)
                took = time.perf_counter() - start
            finally:
                process.kill()
                process.wait()
            if not finished and not _has_a_step(Path(folder)):
                said.seek(0)
                last = (said.read().strip().splitlines() or ["it said nothing"])[-1]
                raise EndToEndError(f"the demo net made no step in {took:.0f} s: {last}")
    return took


def _has_a_step(runs: Path) -> bool:
    return any(path.stat().st_size for path in runs.glob("*/metrics.jsonl"))


# ------------------------------------------------------------------------ the loop and its step


@dataclass(frozen=True)
class Loop:
    """When a training's progress was heard of: (step, seconds), of one training."""

    heard: tuple[tuple[int, float], ...]

    def seconds_a_step(self, warm: int = 0) -> float:
        """Between the first and the last that was heard, without the first few."""
        (first, start), (last, end) = self.heard[warm], self.heard[-1]
        return (end - start) / (last - first)


class Stepped:
    """A training that goes on by so many steps when it is told to; a context manager.

    It has a thread of its own, which waits in between.
    """

    def __init__(self, row: str | None, overrides: Mapping[str, str]) -> None:
        self._asked: SimpleQueue[int] = SimpleQueue()
        self._told: SimpleQueue[dict[int, float] | BaseException] = SimpleQueue()
        self._left, self._ended = 0, False
        self._since: tuple[int, float] | None = None
        self._spent: dict[int, float] = {}
        self._thread = threading.Thread(target=self._train, args=(row, overrides), daemon=True)

    def __enter__(self) -> Stepped:
        self._thread.start()
        self._hear()  # of its first step
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._asked.put(0)
        self._thread.join()

    def go(self, steps: int) -> dict[int, float]:
        """Step -> seconds from its end to that of the next one, of so many."""
        self._asked.put(steps)
        return self._hear()

    def _hear(self) -> dict[int, float]:
        told = self._told.get()
        if isinstance(told, BaseException):
            raise told
        return told

    def _train(self, row: str | None, overrides: Mapping[str, str]) -> None:
        try:
            _train(row, overrides, self._on_event)
            raise EndToEndError("the training has no more steps")
        except BaseException as error:
            self._told.put(error)

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] != "progress":
            return
        if self._since is not None:
            step, start = self._since
            self._spent[step] = time.perf_counter() - start
        if len(self._spent) == self._left:
            self._told.put(self._spent)
            self._spent, self._left = {}, self._asked.get()
        if self._ended:
            raise EndToEndError("no more steps are asked for")
        self._since = event["step"], time.perf_counter()


def saves(spent: Mapping[int, float], every: int) -> list[float]:
    """Seconds by which a step with a checkpoint took longer than those around it."""
    found = []
    for step in (step for step in spent if step % every == 0):
        around = [spent[s] for s in range(step - 20, step) if s in spent]
        if around:
            found.append(spent[step] - median(around))
    return found


def demo_overrides(steps: int, seed: int) -> dict[str, str]:
    """The demo net's config, for `steps` steps without validation and with a checkpoint halfway:
    one in some ten seconds, where the product has one a minute."""
    return {
        "train.steps": str(WARM_STEPS + 1 + steps),
        "train.steps_per_dispatch": "1",
        "data.holdout": "0",
        "checkpoint.every_steps": str(WARM_STEPS + steps // 2),
        "seed": str(seed),
    }


def _train(
    row: str | None, overrides: Mapping[str, str], on_event: Callable[[dict[str, Any]], None]
) -> None:
    """The product's whole training of a row of the demo study, in a temporary folder."""
    from experiments import train
    from launch import graph

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        job = graph.one(DEMO[0], row, overrides, Path(folder))
        job.create()
        with job.run.lock():
            train.train(job.run, devices.mesh(), on_event=on_event)


def trained(row: str | None, overrides: Mapping[str, str]) -> Loop:
    """What is heard of a training."""
    heard: list[tuple[int, float]] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            heard.append((event["step"], time.perf_counter()))

    _train(row, overrides, on_event)
    return Loop(tuple(heard))


def bare_step(row: str | None, overrides: Mapping[str, str]) -> Callable[[int], float]:
    """Gives `seconds(n)`: those that n jitted steps on one batch of the same data take alone."""
    import jax
    import numpy as np

    from experiments import data as data_lib
    from experiments import train
    from launch import graph

    config = graph.one(DEMO[0], row, overrides, Path("runs")).config
    data = data_lib.prepare(config)
    training = train.start(config, data, devices.mesh(), None)
    training.advance(1)  # compiles it as the loop does
    training.finish_steps()
    assert training.feed is not None
    inputs = {
        "step": np.zeros(1, np.int32),
        "lr": np.full(1, config.schedule.lr, np.float32),
        "batch": training.feed.next(range(1)),
    }
    step, state = training.compiled[1], training.state
    arguments = (training.constants, *jax.device_put((np.int32(config.seed), inputs)))
    training.close()

    def seconds(n: int) -> float:
        nonlocal state
        state, _ = step(state, *arguments)  # not timed
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(n):
            state, metrics = step(state, *arguments)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    return seconds


@dataclass(frozen=True)
class Pair:
    """Seconds of steps of two trainings of the tiny net: one begun lately, one long ago.

    early, late: of each, by the number of the step.
    """

    early: dict[int, float]
    late: dict[int, float]
    growth: float  # the median over the turns of late over early, medians of a turn

    def to_json(self) -> dict[str, Any]:
        return {
            "growth": self.growth,
            **{
                name: {
                    "median": median(spent.values()),
                    "mean": mean(spent.values()),
                    "saves": saves(spent, SAVED_EVERY),
                }
                for name, spent in (("early", self.early), ("late", self.late))
            },
        }


def paired(longest: int) -> Pair:
    """Steps from EARLY on beside those from `longest` on, in turns."""
    own = {
        "train.steps": str(longest + WINDOW + 2 * TURN),
        "train.steps_per_dispatch": "1",
        "checkpoint.every_steps": str(SAVED_EVERY),
        "checkpoint.every_seconds": "0",
    }
    spent: tuple[dict[int, float], dict[int, float]] = ({}, {})
    growth = []
    with Stepped(None, {**TINY, **own}) as old, Stepped(None, {**TINY, **own}) as new:
        # Checkpoints come in the middle of a turn, so that they are written in it.
        old.go(longest + TURN // 2)
        new.go(EARLY + TURN // 2)
        for turn in range(WINDOW // TURN):
            both = [(0, new), (1, old)]
            medians = {}
            for which, training in both if turn % 2 else reversed(both):
                found = training.go(TURN)
                spent[which].update(found)
                medians[which] = median(found.values())
            growth.append(medians[1] / medians[0])
    return Pair(*spent, median(growth))


# ------------------------------------------------------------------------ the bench


def main(args: argparse.Namespace) -> int:
    """Measure and print. Raises EndToEndError for options without sense."""
    for name, value, least in (
        ("repeats", args.repeats, 1),
        ("steps", args.steps, 2),
        ("longest", args.longest, EARLY),
    ):
        if value < least:
            raise EndToEndError(f"--{name} must be at least {least}, not {value}")
    devices.set_up()
    os.environ["CNN_DEPTH_CONVOLUTIONS"] = "xla"  # in the loop as in the bare step, however long
    from rich.console import Console

    machine = figures.machine()
    found = measure(args.repeats, args.steps, args.longest, Console(stderr=True))
    limits, item = targets(found)
    device = _device(machine)
    versions = figures.versions("cnn-depth", "jax", "jaxlib", "flax", "orbax-checkpoint")
    settings = {name: getattr(args, name) for name in ("repeats", "steps", "longest")}
    body = report(found, limits, item, settings)
    if args.json:
        told: dict[str, Any] = {"bench": "end_to_end", "machine": {**machine, "device": device}}
        told |= {
            "versions": versions,
            "settings": settings,
            "limits": [x.to_json() for x in limits],
        }
        print(json.dumps({**told, "items": [item.to_json()], "raw": found.to_json()}, indent=1))
    else:
        print(body)
    if args.page is not None:
        command = page.command_line()
        page.write("end_to_end", device, command, machine, versions, body, args.page)
    return 0


def _device(machine: Mapping[str, Any]) -> str:
    import jax

    device = jax.devices()[0]
    return page.cpu(machine) if device.platform == "cpu" else str(device.device_kind)


@dataclass(frozen=True)
class Found:
    """Seconds of each repeat; of a step of the loop and of the bare step; and the tiny net's."""

    help: list[float]
    empty: list[float]
    filled: list[float]
    loop: list[float]
    bare: list[float]
    pairs: list[Pair]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "pairs": [pair.to_json() for pair in self.pairs]}


def measure(repeats: int, steps: int, longest: int, console: Any) -> Found:
    """All of it, in turns. console: where progress is shown."""
    found = Found([], [], [], [], [], [])
    with figures.turns_bar(console, 6 * repeats) as on_turn:
        for repeat in range(repeats):
            on_turn("--help")
            found.help.append(help_seconds())
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
                on_turn("first step, empty cache")
                found.empty.append(first_step_seconds(Path(cache)))
                on_turn("first step, filled cache")
                found.filled.append(first_step_seconds(Path(cache)))
            overrides = demo_overrides(steps, repeat)
            on_turn("the loop")
            found.loop.append(trained(DEMO[1], overrides).seconds_a_step(WARM_STEPS))
            on_turn("the step alone")
            found.bare.append(bare_step(DEMO[1], overrides)(steps) / steps)
            on_turn("a step's bookkeeping")
            found.pairs.append(paired(longest))
    return found


def targets(found: Found) -> tuple[list[Limit], Item]:
    """What is to be at most so much, and the ratio that is to be at least so much."""
    growth = tuple(pair.growth for pair in found.pairs)
    limits = [
        Limit("help_seconds", "seconds of --help", 0.3, tuple(found.help)),
        Limit("first_step_empty", "seconds to the first step, empty cache", 5, tuple(found.empty)),
        Limit(
            "first_step_filled", "seconds to the first step, filled cache", 5, tuple(found.filled)
        ),
        Limit("step_growth", "a step's time, last over first", 1.1, growth),
    ]
    # Images/s of the loop over those of the step: seconds the other way round.
    ratio = Ratio.of(found.bare, found.loop)
    return limits, Item("loop_over_step", "training loop over its bare step", 0.95, ratio)


def report(found: Found, limits: Sequence[Limit], item: Item, settings: Mapping[str, int]) -> str:
    """What was found, as Markdown that reads well as it is."""
    parts = [
        f"The demo net is row {DEMO[1]} of {DEMO[0]}; {settings['repeats']} repeats, in turns, "
        f"{settings['steps']} steps of its loop and of its bare step in each.",
        "",
        "| measured | target | median | lowest | highest | met |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for limit in limits:
        parts.append(
            f"| {limit.title} | at most {limit.at_most:g} | {limit.median:.2f} | "
            f"{min(limit.each):.2f} | {max(limit.each):.2f} | {'yes' if limit.met else 'NO'} |"
        )
    assert isinstance(item.measured, Ratio)
    each = item.measured.each
    parts += [
        f"| {item.title} | at least {item.target:g} | {item.measured.median:.2f} | "
        f"{min(each):.2f} | {max(each):.2f} | {'yes' if item.met else 'NO'} |",
        "",
        "A step of a tiny net, microseconds, early and late in a training, in turns: the median, "
        f"the mean with all that is written, and what a checkpoint, one in {SAVED_EVERY} steps, "
        "holds the loop up.",
        "",
        "| from step | median | mean | checkpoint |",
        "|---:|---:|---:|---:|",
    ]
    for name, step in (("early", EARLY), ("late", settings["longest"])):
        spent = [getattr(pair, name) for pair in found.pairs]
        middle = median(median(each.values()) for each in spent)
        whole = median(mean(each.values()) for each in spent)
        held = median(save for each in spent for save in saves(each, SAVED_EVERY))
        parts.append(f"| {step:,} | {1e6 * middle:,.0f} | {1e6 * whole:,.0f} | {1e6 * held:,.0f} |")
    return "\n".join(parts)

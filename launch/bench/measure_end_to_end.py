"""What `cnn-depth bench end_to_end` measures: the program from its start, and the training loop."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from launch import devices
from launch.bench import figures, page
from launch.bench.figures import Item, Ratio

DEMO = ("residual_depth", "resnet-20")
START_SECONDS = 300  # a first step that takes longer is not awaited
LOOK_SECONDS = 0.005
WARM_STEPS = 5  # of a loop, which are not timed: programs are still loaded
WINDOW = 2_000  # steps over which the time of one is taken
MARKS = (100, 1_000, 10_000, 100_000)  # steps before which windows begin
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

    def intervals(self) -> dict[int, float]:
        """Step -> seconds from it to the next one, where they are told one by one."""
        pairs = zip(self.heard, self.heard[1:], strict=False)
        return {first: end - start for (first, start), (_, end) in pairs}

    def step_at(self, mark: int, window: int = WINDOW) -> float:
        """The median of the seconds of a step, from step `mark` on."""
        found = self.intervals()
        return median(found[step] for step in range(mark, mark + window) if step in found)

    def mean_at(self, mark: int, window: int = WINDOW) -> float:
        """Their mean, with what is written now and then."""
        found = self.intervals()
        there = [found[step] for step in range(mark, mark + window) if step in found]
        return sum(there) / len(there)

    def saves(self, every: int) -> list[float]:
        """Seconds by which a step with a checkpoint took longer than those around it."""
        found = self.intervals()
        spent = []
        for step in range(every, max(found) + 1, every):
            around = [found[s] for s in range(step - 20, step) if s in found]
            if step in found and around:
                spent.append(found[step] - median(around))
        return spent


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


def trained(row: str | None, overrides: Mapping[str, str]) -> Loop:
    """The product's whole training of a row of the demo study, in a temporary folder."""
    from experiments import train
    from launch import graph

    heard: list[tuple[int, float]] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            heard.append((event["step"], time.perf_counter()))

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        job = graph.one(DEMO[0], row, overrides, Path(folder))
        job.create()
        with job.run.lock():
            train.train(job.run, devices.mesh(), on_event=on_event)
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


def saved_every(longest: int) -> int:
    """Steps between the checkpoints of a training of so many: about a hundred, at least."""
    return max(100, longest // 100)


def flat(longest: int) -> Loop:
    """A training of the tiny net, a little longer than `longest` steps."""
    own = {
        "train.steps": str(longest + WINDOW + 1),
        "train.steps_per_dispatch": "1",
        "checkpoint.every_steps": str(saved_every(longest)),
        "checkpoint.every_seconds": "0",
    }
    return trained(None, {**TINY, **own})


# ------------------------------------------------------------------------ the bench


def main(args: argparse.Namespace) -> int:
    """Measure and print. Raises EndToEndError for options without sense."""
    for name, value, least in (
        ("repeats", args.repeats, 1),
        ("steps", args.steps, 2),
        ("longest", args.longest, MARKS[0]),
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
    """Seconds of each repeat; of a step of the loop and of the bare step; of the tiny net, a list
    by mark, and what its checkpoints cost."""

    help: list[float]
    empty: list[float]
    filled: list[float]
    loop: list[float]
    bare: list[float]
    steps_at: dict[int, list[float]]
    means_at: dict[int, list[float]]
    saves: list[list[float]]

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def marks(longest: int) -> list[int]:
    """Steps at which the tiny net's are measured: powers of ten and the last."""
    return sorted({mark for mark in MARKS if mark <= longest} | {longest})


def measure(repeats: int, steps: int, longest: int, console: Any) -> Found:
    """All of it, in turns. console: where progress is shown."""
    found = Found([], [], [], [], [], {m: [] for m in marks(longest)}, {}, [])
    found.means_at.update({mark: [] for mark in found.steps_at})
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
            tiny = flat(longest)
            for mark in found.steps_at:
                found.steps_at[mark].append(tiny.step_at(mark))
                found.means_at[mark].append(tiny.mean_at(mark))
            found.saves.append(tiny.saves(saved_every(longest)))
    return found


def targets(found: Found) -> tuple[list[Limit], Item]:
    """What is to be at most so much, and the ratio that is to be at least so much."""
    first, last = (found.steps_at[end(found.steps_at)] for end in (min, max))
    growth = Ratio.of(last, first).each
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
        "A step of a tiny net, microseconds: the median, and the mean with all that is written.",
        "",
        f"| from step | median of {WINDOW:,} | mean |",
        "|---:|---:|---:|",
    ]
    for mark, spent in found.steps_at.items():
        middle, mean = (1e6 * median(each) for each in (spent, found.means_at[mark]))
        parts.append(f"| {mark:,} | {middle:,.0f} | {mean:,.0f} |")
    early = [save for saves in found.saves for save in saves[1:4]]
    late = [save for saves in found.saves for save in saves[-3:]]
    opened = [saves[0] for saves in found.saves if saves]
    if early and late:
        parts += [
            "",
            f"A checkpoint holds the loop up by {1e3 * median(early):.1f} ms early (the second to "
            f"fourth) and {1e3 * median(late):.1f} ms late (the last three); the very first, with "
            f"which Orbax is imported, by {1e3 * median(opened):.0f} ms.",
        ]
    return "\n".join(parts)

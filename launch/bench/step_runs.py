"""A CIFAR-10 training as a run has it, for `cnn-depth bench step --seeds`: many steps a dispatch.

Beside a seed by itself: several of them in one program (`vmap`), and one by deterministic kernels.
One process has all three, which take turns.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from launch import devices
from launch.bench.figures import Item, Ratio
from launch.bench.process import Process, answers

STUDY, ROW = "cifar_resnet", "resnet-20"
NET = "cifar_resnet:20"
ITERATIONS = 64_000  # the paper's, of 128 images
MOST_SECONDS = 90.0  # for them, on a GPU
MOST_TIMES = 3.0  # five seeds at once, of one's time
IMAGES = 50_000
FORMS = ("one", "together", "deterministic")
BURST_SECONDS = 2.0


@dataclass(frozen=True)
class Runs:
    """Seconds a step of each form, by repeat; a step of `together` is one of all `seeds`."""

    seeds: int
    steps_a_dispatch: int
    seconds: dict[str, tuple[float, ...]]
    cpu: bool

    def items(self) -> list[Item]:
        """What has a target on a GPU; on a CPU nothing has."""
        if self.cpu:
            return []
        whole = Ratio(tuple(ITERATIONS * step for step in self.seconds["one"]))
        found = [
            Item("seconds_of_64k", f"{NET}, seconds of 64,000", MOST_SECONDS, whole, at_most=True)
        ]
        if self.seeds == 5:
            title = f"{NET}, five seeds at once over one"
            found.append(Item("five_seeds", title, MOST_TIMES, self.times, at_most=True))
        return found

    @property
    def times(self) -> Ratio:
        """A step of all seeds in one program over one seed's."""
        return Ratio.of(self.seconds["together"], self.seconds["one"])

    @property
    def notes(self) -> list[str]:
        one = median(self.seconds["one"])
        slower = Ratio.of(self.seconds["deterministic"], self.seconds["one"])
        return [
            f"{NET} as `cnn-depth train {STUDY} --row {ROW}` trains it, {self.steps_a_dispatch} "
            f"steps a dispatch: {1e3 * one:.2f} ms a step of 128 images, {ITERATIONS * one:,.0f} s "
            f"for {ITERATIONS:,}",
            f"{self.seeds} seeds in one program take {self.times} times as long as one; "
            "`train.deterministic` "
            + ("changes nothing on a CPU" if self.cpu else f"takes {slower} times as long"),
        ]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    seeds: int,
    repeats: int,
    on_turn: Callable[[str], None],
    *,
    images: int = IMAGES,
    seconds: float = BURST_SECONDS,
    **overrides: str,
) -> Runs:
    """In turns, in another process. Raises PeerEnded where that ends.

    images: made up, for training; seconds: of a measurement; overrides: of the study's config.
    """
    on_turn(f"{NET} as runs train it: starts")
    code = "from launch.bench import step_runs as r; r.serve()"
    question = {"seeds": seeds, "images": images, "overrides": overrides}
    found: dict[str, list[float]] = {form: [] for form in FORMS}
    with Process("ours", code, {}, question) as asked:
        for repeat in range(repeats):
            for form in FORMS if repeat % 2 == 0 else reversed(FORMS):
                on_turn(f"{NET} as runs train it, repeat {repeat + 1} of {repeats}: {form}")
                found[form].append(asked.ask({"form": form, "seconds": seconds})["seconds"])
        told = asked.told
    taken = {form: tuple(each) for form, each in found.items()}
    return Runs(seeds, told["steps_a_dispatch"], taken, told["platform"] == "cpu")


def serve() -> None:
    """Answers `measure` until there are no more questions."""
    channel = answers()
    devices.set_up()
    asked = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory(prefix="cnn-depth-bench-") as folder:
        file = Path(folder) / "made_up.npz"
        _make_up(file, asked["images"])
        forms = _Forms(asked["seeds"], {**asked["overrides"], "data.path": str(file)})
    told = {"steps_a_dispatch": forms.steps, "platform": forms.platform}
    channel.write(json.dumps(told) + "\n")
    for line in sys.stdin:
        channel.write(json.dumps({"seconds": forms.seconds_a_step(**json.loads(line))}) + "\n")


def _make_up(file: Path, images: int) -> None:
    random = np.random.default_rng(0)
    parts = {}
    for part, n in (("train", images), ("test", 10)):
        parts[f"{part}_images"] = random.integers(0, 256, (n, 32, 32, 3), np.uint8)
        parts[f"{part}_labels"] = random.integers(0, 10, n, np.uint8)
        parts[f"{part}_labels"][:10] = np.arange(10)
    np.savez(file, **parts)  # type: ignore[arg-type]


class _Forms:
    """The three trainings on the first device; `steps`: that they dispatch at once."""

    def __init__(self, seeds: int, overrides: Mapping[str, str]) -> None:
        import jax

        from experiments import data as data_lib
        from experiments import train
        from launch import graph

        self.platform = jax.default_backend()
        mesh, given = devices.mesh(1), {"data.name": "npz", **overrides}
        configs = {
            form: graph.one(STUDY, ROW, {**given, **more}, Path("runs")).config
            for form, more in (("one", {}), ("deterministic", {"train.deterministic": "true"}))
        }
        data = data_lib.prepare(configs["one"])
        self.steps = train.steps_a_dispatch(configs["one"], data)
        self._go: dict[str, Callable[[], Any]] = {}
        for form, config in configs.items():
            training = train.start(config, data, mesh, None)
            self._go[form] = self._alone(training)
        trainings = []
        for seed in range(seeds):
            config = configs["one"].copy_and_resolve_references()
            config.seed = seed
            trainings.append(train.start(config, data, mesh, None))
        self._go["together"] = self._together(trainings)

    def _alone(self, training: Any) -> Callable[[], Any]:
        def go() -> Any:
            training.advance(self.steps)
            return training.state["params"]

        return go

    def _together(self, trainings: list[Any]) -> Callable[[], Any]:
        """All of them as one program, over stacked states and batches."""
        import jax
        import jax.numpy as jnp

        from cnn_arch import execution

        first = trainings[0]
        state = jax.tree.map(lambda *each: jnp.stack(each), *(t.state for t in trainings))
        axes = (0, None, 0, {"step": None, "lr": None, "batch": 0})
        several = jax.jit(
            jax.vmap(first.dispatch.__wrapped__, axes),
            donate_argnums=0,
            compiler_options=execution.compiler_options(),
        )
        feeds = [t.data.feed(t.config, t.mesh, 0) for t in trainings]
        numbers = np.array([t.config.seed for t in trainings], np.int32)
        position = 0

        def go() -> Any:
            nonlocal state, position
            taken = range(position, position + self.steps)
            inputs = {
                "step": np.array(taken, np.int32),
                "lr": np.array([first.schedule.rate(n) for n in taken], np.float32),
                "batch": jax.tree.map(
                    lambda *each: np.stack(each), *(feed.next(taken) for feed in feeds)
                ),
            }
            state, metrics = several(state, first.constants, numbers, inputs)
            position += self.steps
            return state["params"], metrics

        return go

    def seconds_a_step(self, form: str, seconds: float) -> float:
        """Over so many seconds, after a dispatch that is not timed."""
        import jax

        def timed(dispatches: int) -> float:
            start = time.perf_counter()
            for _ in range(dispatches):
                found = self._go[form]()
            jax.block_until_ready(found)
            return time.perf_counter() - start

        timed(1)
        dispatches = min(1000, ceil(seconds / max(timed(1), 1e-6)))
        return timed(dispatches) / (dispatches * self.steps)

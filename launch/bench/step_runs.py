"""A CIFAR-10 training as a run has it, for `cnn-depth bench step --seeds`: many steps a dispatch.

Beside a seed by itself: several of them in one program (`vmap`), and one by deterministic kernels.
One process has all three, which take turns.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from launch import devices
from launch.bench import ratios, timing
from launch.bench.process import Answer, PeerEnded, Process
from launch.bench.ratios import Item, NotTrusted, Ratio
from launch.bench.timing import Series, Timing, in_turns, watch_of

STUDY, ROW = "cifar_resnet", "resnet-20"
NET = "cifar_resnet:20"
ITERATIONS = 64_000  # the paper's, of 128 images
MOST_SECONDS = 90.0  # for them, on a GPU, without compiling, tests and writing
MOST_TIMES = 3.0  # five seeds at once, of one's time
IMAGES = 50_000
TITLES = {"one": "one seed", "together": "seeds at once", "deterministic": "deterministic"}


@dataclass(frozen=True)
class Runs:
    """The timings of each form, whose `images` are steps; one of `together` is of all `seeds`.

    absent: why a form was not measured.
    """

    seeds: int
    steps_a_dispatch: int
    timings: dict[str, Series[Timing]]
    absent: dict[str, str]
    cpu: bool

    def items(self) -> list[Item]:
        """What has a target on a GPU; on a CPU nothing has."""
        if self.cpu:
            return []
        whole: Ratio | NotTrusted | str = self.absent.get("one", "")
        if one := self.timings.get("one"):
            share = Ratio(tuple(ITERATIONS / rate / MOST_SECONDS for rate in ratios.rates(one)))
            whole = ratios.trusted({TITLES["one"]: one}) or share
        title = f"{NET}, {ITERATIONS:,} steps, over {MOST_SECONDS:g} s"
        found = [Item("seconds_of_64k", title, 1.0, whole, at_most=True)]
        if self.seeds == 5:
            title, five = f"{NET}, five seeds at once, time over one's", self.times("together")
            found.append(Item("five_seeds", title, MOST_TIMES, five, at_most=True))
        return found

    def times(self, form: str) -> Ratio | NotTrusted | str:
        """The time of a form's step over one seed's; or why it was not measured."""
        if missing := self.absent.get("one") or self.absent.get(form):
            return missing
        titles = (TITLES["one"], TITLES[form])
        return ratios.compare(self.timings["one"], self.timings[form], titles)

    @property
    def notes(self) -> list[str]:
        named = f"{NET} as `cnn-depth train {STUDY} --row {ROW}` trains it"
        if "one" in self.absent:
            return [f"{named}: not measured: {self.absent['one']}"]
        took = ratios.NOT_TRUSTED
        if self.timings["one"].doubt is None:
            one = 1 / median(ratios.rates(self.timings["one"]))
            took = (
                f"{1e3 * one:.2f} ms a step of 128 images; {ITERATIONS:,} take "
                f"{ITERATIONS * one:,.0f} s, without compiling, tests and writing"
            )
        found = [f"{named}, {self.steps_a_dispatch} steps a dispatch: {took}"]
        for form, title in (
            ("together", f"{self.seeds} seeds in one program"),
            ("deterministic", "`train.deterministic`, which changes nothing on a CPU"),
        ):
            ratio = self.times(form)
            took = f"{ratio} of one's time" if isinstance(ratio, Ratio) else str(ratio)
            took = f"not measured: {ratio}" if isinstance(ratio, str) else took
            found.append(f"{NET}, {title}: {took}")
        return found + ratios.doubts(self.timings, {k: f"{NET}, {v}" for k, v in TITLES.items()})


def measure(
    seeds: int,
    repeats: int,
    on_turn: Callable[[str], None],
    *,
    images: int = IMAGES,
    **overrides: str,
) -> Runs:
    """In turns, in another process. Raises PeerEnded where that does not begin.

    images: made up, for training; overrides: of the study's config.
    """
    on_turn(f"{NET} as runs train it: starts")
    code = "from launch.bench import process, step_runs as r; process.serve(r.start)"
    with Process("ours", code, {}, seeds, images, overrides) as asked:
        titles = {form: f"{NET} as runs train it: {title}" for form, title in TITLES.items()}
        subjects = {form: functools.partial(asked.ask, form) for form in TITLES}
        found, absent = in_turns(subjects, repeats, on_turn, titles=titles, absent=(PeerEnded,))
        told = asked.told
    return Runs(seeds, told["steps_a_dispatch"], found, absent, told["platform"] == "cpu")


def start(seeds: int, images: int, overrides: Mapping[str, str]) -> tuple[dict[str, Any], Answer]:
    """Makes the trainings that `measure` asks for: what there is to say of them, what answers."""
    devices.set_up()
    with tempfile.TemporaryDirectory(prefix="cnn-depth-bench-") as folder:
        file = made_up(images, Path(folder) / "made_up.npz")
        forms = _Forms(seeds, {**overrides, "data.path": str(file)})
    return {"steps_a_dispatch": forms.steps, "platform": forms.platform}, forms.burst


def made_up(images: int, file: Path) -> Path:
    """The file, with so many training images of CIFAR-10's size, and ten to test."""
    random, parts = np.random.default_rng(0), {}
    for part, n in (("train", images), ("test", 10)):
        parts[f"{part}_images"] = random.integers(0, 256, (n, 32, 32, 3), np.uint8)
        parts[f"{part}_labels"] = random.integers(0, 10, n, np.uint8)
        parts[f"{part}_labels"][:10] = np.arange(10)
    np.savez(file, **parts)  # type: ignore[arg-type]
    return file


class _Forms:
    """The three trainings on the first device; `steps`: that they dispatch at once."""

    def __init__(self, seeds: int, overrides: Mapping[str, str]) -> None:
        import jax

        from experiments import data as data_lib
        from experiments.training import train
        from launch.planning import graph

        self.platform, self.seeds = jax.default_backend(), seeds
        given = {"data.name": "npz", **overrides}
        self.config = graph.one(STUDY, ROW, given, Path("runs")).config
        self.data = data_lib.prepare(self.config)
        self.steps = train.steps_a_dispatch(self.config, self.data)
        self._go: dict[str, Callable[[], Any]] = {}

    def _training(self, seed: int = 0, *, deterministic: bool = False) -> Any:
        from experiments.training import state as training_state

        config = self.config.copy_and_resolve_references()
        config.seed, config.train.deterministic = seed, deterministic
        return training_state.start(config, self.data, devices.mesh(1), None)

    def _alone(self, form: str) -> Callable[[], Any]:
        training = self._training(deterministic=form == "deterministic")

        def go() -> Any:
            training.advance(self.steps)
            return training.state["params"]

        return go

    def _together(self) -> Callable[[], Any]:
        """All seeds as one program, over stacked states; on the same batches each time."""
        import jax
        import jax.numpy as jnp

        from cnn_arch import execution

        trainings = [self._training(seed) for seed in range(self.seeds)]
        first, taken = trainings[0], range(self.steps)
        axes = (0, None, 0, {"step": None, "lr": None, "batch": 0})
        several = jax.jit(
            jax.vmap(first.dispatch.__wrapped__, axes),
            donate_argnums=0,
            compiler_options=execution.compiler_options(),
        )

        def stacked(trees: list[Any]) -> Any:
            return jax.tree.map(lambda *each: jnp.stack(each), *trees)

        state = stacked([t.state for t in trainings])
        seeds: np.ndarray = np.arange(self.seeds, dtype=np.int32)
        inputs = {
            "step": np.array(taken, np.int32),
            "lr": np.array([first.schedule.rate(n) for n in taken], np.float32),
            "batch": stacked([t.data.feed(t.config, t.mesh, 0).next(taken) for t in trainings]),
        }
        before: Any = None

        def go() -> Any:
            nonlocal state, before
            state, metrics = several(state, first.constants, seeds, inputs)
            if before is not None:
                jax.device_get(before)  # as a run does
            before = metrics
            return state["params"]

        return go

    def burst(self, form: str) -> Timing:
        """The time of some dispatches, whose `images` are training steps."""
        import jax

        if form not in self._go:
            self._go[form] = self._together() if form == "together" else self._alone(form)
        go = self._go[form]

        def dispatched(number: int) -> None:
            for _ in range(number):
                found = go()
            jax.block_until_ready(found)

        return timing.timed(dispatched, self.steps, lambda: watch_of(self.platform))

"""A CIFAR-10 training as a run has it, for `cnn-depth bench step --seeds`: many steps a dispatch.

A seed by itself is compared with several in one program (`vmap`), and with deterministic kernels.
One process has all three trainings, which take turns.
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
    """The timings of each form of `TITLES`."""

    seeds: int  # that are trained `together`
    steps_a_dispatch: int
    timings: dict[str, Series[Timing]]  # whose `images` are steps, of `together` of all seeds
    absent: dict[str, str]  # form -> why it was not measured
    cpu: bool

    def items(self) -> list[Item]:
        """The comparisons that have a target on a GPU; on a CPU there are none."""
        if self.cpu:
            return []
        duration: Ratio | NotTrusted | str = self.absent.get("one", "")
        if single := self.timings.get("one"):
            ratio = Ratio(tuple(ITERATIONS / rate / MOST_SECONDS for rate in ratios.rates(single)))
            duration = ratios.trusted({TITLES["one"]: single}) or ratio
        title = f"{NET}, {ITERATIONS:,} steps, over {MOST_SECONDS:g} s"
        items = [Item("seconds_of_64k", title, 1.0, duration, at_most=True)]
        if self.seeds == 5:
            title, together = f"{NET}, five seeds at once, time over one's", self.times("together")
            items.append(Item("five_seeds", title, MOST_TIMES, together, at_most=True))
        return items

    def times(self, form: str) -> Ratio | NotTrusted | str:
        """The time of a form's step over one seed's; or why it was not measured."""
        if reason := self.absent.get("one") or self.absent.get(form):
            return reason
        titles = (TITLES["one"], TITLES[form])
        return ratios.compare(self.timings["one"], self.timings[form], titles)

    @property
    def notes(self) -> list[str]:
        row = f"{NET} as `cnn-depth train {STUDY} --row {ROW}` trains it"
        if "one" in self.absent:
            return [f"{row}: not measured: {self.absent['one']}"]
        figure = ratios.NOT_TRUSTED
        if self.timings["one"].doubt is None:
            seconds = 1 / median(ratios.rates(self.timings["one"]))
            figure = (
                f"{1e3 * seconds:.2f} ms a step of 128 images; {ITERATIONS:,} take "
                f"{ITERATIONS * seconds:,.0f} s, without compiling, tests and writing"
            )
        lines = [f"{row}, {self.steps_a_dispatch} steps a dispatch: {figure}"]
        for form, title in (
            ("together", f"{self.seeds} seeds in one program"),
            ("deterministic", "`train.deterministic`, which changes nothing on a CPU"),
        ):
            ratio = self.times(form)
            figure = f"{ratio} of one's time" if isinstance(ratio, Ratio) else str(ratio)
            figure = f"not measured: {ratio}" if isinstance(ratio, str) else figure
            lines.append(f"{NET}, {title}: {figure}")
        return lines + ratios.doubts(self.timings, {k: f"{NET}, {v}" for k, v in TITLES.items()})


def measure(
    seeds: int,
    repeats: int,
    on_turn: Callable[[str], None],
    *,
    images: int = IMAGES,
    **overrides: str,
) -> Runs:
    """Measures the forms in turns, in another process; raises PeerEnded where that can't begin.

    images: number of made-up training images; overrides: of the study's config.
    """
    on_turn(f"{NET} as runs train it: starts")
    code = "from launch.bench import process, step_runs as r; process.serve(r.start)"
    with Process("ours", code, {}, seeds, images, overrides) as process:
        titles = {form: f"{NET} as runs train it: {title}" for form, title in TITLES.items()}
        subjects = {form: functools.partial(process.ask, form) for form in TITLES}
        timings, reasons = in_turns(subjects, repeats, on_turn, titles=titles, absent=(PeerEnded,))
        description = process.description
    return Runs(
        seeds, description["steps_a_dispatch"], timings, reasons, description["platform"] == "cpu"
    )


def start(seeds: int, images: int, overrides: Mapping[str, str]) -> tuple[dict[str, Any], Answer]:
    """Makes the trainings of `measure`; gives their description, and the function that answers."""
    devices.set_up()
    with tempfile.TemporaryDirectory(prefix="cnn-depth-bench-") as folder:
        file = made_up(images, Path(folder) / "made_up.npz")
        forms = _Forms(seeds, {**overrides, "data.path": str(file)})
    return {"steps_a_dispatch": forms.steps, "platform": forms.platform}, forms.burst


def made_up(images: int, file: Path) -> Path:
    """Writes so many training images of CIFAR-10's size, and ten test images; gives the file."""
    random, arrays = np.random.default_rng(0), {}
    for part, n in (("train", images), ("test", 10)):
        arrays[f"{part}_images"] = random.integers(0, 256, (n, 32, 32, 3), np.uint8)
        arrays[f"{part}_labels"] = random.integers(0, 10, n, np.uint8)
        arrays[f"{part}_labels"][:10] = np.arange(10)
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file


class _Forms:
    """The three trainings on the first device, which dispatch `steps` steps at once."""

    def __init__(self, seeds: int, overrides: Mapping[str, str]) -> None:
        import jax

        from experiments import data as data_lib
        from experiments.training import train
        from launch.planning import graph

        self.platform, self.seeds = jax.default_backend(), seeds
        changes = {"data.name": "npz", **overrides}
        self.config = graph.job_of_row(STUDY, ROW, changes, Path("runs")).config
        self.data = data_lib.prepare(self.config)
        self.steps = train.steps_a_dispatch(self.config, self.data)
        self._dispatches: dict[str, Callable[[], Any]] = {}

    def _training(self, seed: int = 0, *, deterministic: bool = False) -> Any:
        from experiments.training import state as training_state

        config = self.config.copy_and_resolve_references()
        config.seed, config.train.deterministic = seed, deterministic
        return training_state.start(config, self.data, devices.mesh(1), None)

    def _alone(self, form: str) -> Callable[[], Any]:
        training = self._training(deterministic=form == "deterministic")

        def dispatch() -> Any:
            training.advance(self.steps)
            return training.state["params"]

        return dispatch

    def _together(self) -> Callable[[], Any]:
        """All seeds as one program, over stacked states, on the same batches in every dispatch."""
        import jax
        import jax.numpy as jnp

        from cnn_arch import execution

        trainings = [self._training(seed) for seed in range(self.seeds)]
        first, numbers = trainings[0], range(self.steps)
        axes = (0, None, 0, {"step": None, "lr": None, "batch": 0})
        vmapped = jax.jit(
            jax.vmap(first.dispatch.__wrapped__, axes),
            donate_argnums=0,
            compiler_options=execution.compiler_options(),
        )

        def stacked(trees: list[Any]) -> Any:
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

        state = stacked([t.state for t in trainings])
        seeds: np.ndarray = np.arange(self.seeds, dtype=np.int32)
        inputs = {
            "step": np.array(numbers, np.int32),
            "lr": np.array([first.schedule.rate(n) for n in numbers], np.float32),
            "batch": stacked([t.data.feed(t.config, t.mesh, 0).next(numbers) for t in trainings]),
        }
        previous: Any = None

        def dispatch() -> Any:
            nonlocal state, previous
            state, metrics = vmapped(state, first.constants, seeds, inputs)
            if previous is not None:
                jax.device_get(previous)  # as a run does
            previous = metrics
            return state["params"]

        return dispatch

    def burst(self, form: str) -> Timing:
        """The time of some dispatches, whose `images` are training steps."""
        import jax

        if form not in self._dispatches:
            self._dispatches[form] = self._together() if form == "together" else self._alone(form)
        dispatch = self._dispatches[form]

        def go(count: int) -> None:
            for _ in range(count):
                params = dispatch()
            jax.block_until_ready(params)

        return timing.timed(go, self.steps, lambda: watch_of(self.platform))

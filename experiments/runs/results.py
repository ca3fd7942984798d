"""What finished runs left behind, read once, for tables, findings, figures and the page alike."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import flatten
from experiments.config.keys import EXECUTION
from experiments.runs.runs import AVERAGED, Run, error_of
from experiments.statistics import ErrorRate, SeedSummary, error_rate, over_seeds
from experiments.testing import predictions

WILSON = "95% Wilson interval of one run's test errors"
T_INTERVAL = "95% t-interval of the mean over seeds"
ARCHITECTURE = "model.arch"
# Of a config: what is no setting of a training, but tells seeds apart, or says that it is seeded.
NO_SETTINGS = ("seed", "seeding", *EXECUTION)
NAMES_A_RUN = ("seeding.run", "seeding.weights")
DATA = "data"  # among settings: the data's fingerprint
# Logged figures that are means over the steps since the line before.
OVER_STEPS = ("train_loss", "train_error")


@cache
def _is_setting(key: str) -> bool:
    return not any(key == one or key.startswith(f"{one}.") for one in NO_SETTINGS)


@dataclass(frozen=True)
class Row:
    """One row of a study as the sweep knows it."""

    study: str  # such as 'vgg_depth'
    name: str  # such as 'plain-56' or 'vgg:E from A'
    architecture: str  # such as 'cifar_plain:56'
    runs: Mapping[int, Path]  # seed -> run folder, one entry for each seed asked for
    seed_from: str | None = None  # the row whose net starts this one
    state: str = "not run"  # one of `experiments.runs.state`
    reason: str = ""  # why it stands so, one sentence; '' where there is nothing to say


@dataclass(frozen=True)
class RunResult:
    """One finished run folder: run.json, result.json, metrics.jsonl, seeding.json."""

    folder: Path
    run: dict
    result: dict
    metrics: list[dict]
    seeding: dict | None

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(epochs, values) of one logged figure; epochs are fractions, from the step numbers.

        Of a mean over steps, a last line of less than half as many steps as the one before is
        joined with that one: a few steps would be a hook at the end of the curve.
        """
        by_step = {line["step"]: line[key] for line in self.metrics if line.get(key) is not None}
        steps = np.array(sorted(by_step), dtype=np.float64)
        values = np.array([by_step[step] for step in sorted(by_step)], dtype=np.float64)
        if key in OVER_STEPS and len(steps) > 1:
            *_, before, last = np.diff(steps, prepend=0.0)
            if last < before / 2:
                joined = (before * values[-2] + last * values[-1]) / (before + last)
                steps, values = np.delete(steps, -2), np.append(values[:-2], joined)
        return steps * (self.result["epochs"] / max(self.result["steps"], 1)), values

    @property
    def boxes(self) -> bool:
        """Whether its errors are of boxes, and not of classes."""
        kind = (self.run.get("config") or {}).get("train", {}).get("boxes", "none")
        return bool(kind != "none")

    @property
    def several(self) -> bool:
        """Whether its images may be of several classes, and its figure is an average precision."""
        return AVERAGED in self.result

    @property
    def cut(self) -> str:
        """Why the curves of its training are not whole, '' if they are."""
        last = max((one["step"] for one in self.metrics if "train_loss" in one), default=0)
        if last >= self.result["steps"]:
            return ""
        there = f"ends at step {last} of {self.result['steps']}"
        return f"{self.folder / 'metrics.jsonl'} {there}: its curves are cut there"

    def top1_wrong(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids, wrong) of the test examples, in the order of their ids.

        Raises ValueError where the saved predictions are missing, or hold another count of errors
        than result.json.
        """
        path = self.folder / "predictions" / "test-center.npz"
        tested = predictions.load(path)
        wrong = tested.topk_wrong(1)
        told = self.result["top1_errors_count"]
        if int(wrong.sum()) != told:
            raise ValueError(f"{path} holds {int(wrong.sum())} errors, result.json says {told}")
        order = np.argsort(tested.ids)
        return tested.ids[order], wrong[order]


@dataclass(frozen=True)
class Measurement:
    """A figure in the unit of its column; over several seeds, their mean.

    interval: what low and high are, '' where there is none. deviation: over seeds. n: test images.
    """

    value: float
    low: float | None = None
    high: float | None = None
    interval: str = ""
    deviation: float | None = None
    seeds: int = 1
    n: int | None = None


def measured_error(rates: Sequence[ErrorRate]) -> Measurement:
    """The error of one run, or the mean of several seeds' runs."""
    if len(rates) == 1:
        (rate,) = rates
        return Measurement(rate.percent, rate.low, rate.high, WILSON, n=rate.n)
    return measured_mean([rate.percent for rate in rates], rates[0].n, 100.0)


def measured_mean(values: Sequence[float], n: int | None, most: float) -> Measurement:
    """The mean over seeds; its interval can't leave 0..`most`."""
    found = over_seeds(values)
    if found.low is None or found.high is None:
        return Measurement(found.mean, deviation=found.deviation, seeds=found.seeds, n=n)
    low, high = max(found.low, 0.0), min(found.high, most)
    return Measurement(found.mean, low, high, T_INTERVAL, found.deviation, found.seeds, n)


@dataclass(frozen=True)
class RowResult:
    """A row with its finished runs (seed -> run); `state` and `reason` as they are to be shown."""

    row: Row
    state: str
    reason: str
    runs: dict[int, RunResult] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def study(self) -> str:
        return self.row.study

    @property
    def family(self) -> str:
        return self.row.architecture.partition(":")[0]

    @property
    def seeded(self) -> bool:
        return self.row.seed_from is not None

    @property
    def boxes(self) -> bool:
        """Whether a measured row's errors are of boxes, and not of classes."""
        return any(run.boxes for run in self.runs.values())

    @property
    def several(self) -> bool:
        """Whether a measured row's images may be of several classes."""
        return any(run.several for run in self.runs.values())

    @property
    def depth(self) -> int:
        """Weight layers; only a measured row has them."""
        return self.constant("depth")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config of a measured row's training, flat, and its data, less what only seeds it or
        executes it."""
        run = next(iter(self.runs.values()))
        flat = flatten(run.run.get("config") or {}) | {DATA: run.run.get("data")}
        return {key: value for key, value in flat.items() if _is_setting(key)}

    @cached_property
    def start(self) -> dict[str, Any]:
        """What is no setting of a measured row, but tells it from others: its first seed, and what
        seeds it in which way."""
        run = next(iter(self.runs.values()))
        how = flatten({"seeding": (run.run.get("config") or {}).get("seeding", {})})
        how = {key: value for key, value in how.items() if key not in NAMES_A_RUN}
        return {"seed": min(self.row.runs), "from": self.row.seed_from, **how}

    def constant(self, key: str) -> Any:
        """An entry of result.json that does not depend on the seed, or None."""
        return next(iter(self.runs.values())).result.get(key) if self.runs else None

    def values(self, key: str) -> list[float]:
        """An entry of result.json for every finished seed that has it, in the order of seeds."""
        found = [self.runs[seed].result.get(key) for seed in sorted(self.runs)]
        return [value for value in found if value is not None]

    def summary(self, key: str) -> SeedSummary | None:
        """An entry of result.json over the finished seeds, or None where no run has it."""
        values = self.values(key)
        return over_seeds(values) if values else None

    def rates(self, k: int) -> list[ErrorRate]:
        """Top-k errors of the finished seeds; none if there are none (or too few classes)."""
        n = self.constant("n")
        return [error_rate(int(count), n) for count in self.values(f"top{k}_errors_count") if n]

    def error(self, k: int) -> Measurement | None:
        """Top-k error in percent over the finished seeds, if there is one; of several classes 100
        minus the mean average precision, which has no interval of its images."""
        if rates := self.rates(k):
            return measured_error(rates)
        values = self.errors() if k == 1 else []
        n = self.constant("n")
        if len(values) > 1:
            return measured_mean(values, n, 100.0)
        return Measurement(values[0], n=n) if values else None

    def errors(self) -> list[float]:
        """The error of every finished seed, in the order of seeds: see `error_of`."""
        found = [error_of(self.runs[seed].result) for seed in sorted(self.runs)]
        return [value for value in found if value is not None]


def collect(rows: Iterable[Row]) -> list[RowResult]:
    """Reads the run folders of all rows. A run without a readable result has no figures.

    A row that is called finished but lacks a result is shown as failed, with the reason.
    """
    found = []
    for row in rows:
        runs: dict[int, RunResult] = {}
        state, reason = row.state, row.reason
        for seed, folder in sorted(row.runs.items()):
            try:
                runs[seed] = read_run(Path(folder))
            except ValueError as error:
                if state == "finished":
                    state, reason = "failed", f"seed {seed} has no readable result ({error})"
        found.append(RowResult(row, state, reason, runs))
    return found


def read_run(folder: Path) -> RunResult:
    """What a finished run left behind. Raises ValueError where that can't be read."""
    there = Run(folder)
    result, run = there.read("result"), there.read("run")
    if result is None or run is None:
        name = "result" if result is None else "run"
        raise ValueError(f"{folder / name}.json is missing")
    figure = AVERAGED if AVERAGED in result else "top1_errors_count"
    for key in ("n", figure, "steps", "epochs", "train_loss", "depth"):
        if key not in result:
            raise ValueError(f"{folder / 'result.json'} lacks '{key}'")
    return RunResult(folder, run, result, there.logged(), there.read("seeding"))


def provenance(run: RunResult) -> dict[str, Any]:
    """Where a run's figures come from, and what it cost; None for what the run doesn't tell.

    `device_seconds`: seconds times devices. `training_macs`: those of forward and backward
    pass, counted as three times the forward pass's, for each image trained on.
    """
    told, result = run.run, run.result
    config, seconds = told.get("config", {}), result.get("seconds")
    batch, devices = config.get("train", {}).get("batch_size"), result.get("devices", "")
    images = result["steps"] * batch if batch else None
    number = devices.partition(" x ")[0]
    return {
        "study": told.get("study"),
        "row": told.get("row"),
        "seed": told.get("seed"),
        "seed_from": told.get("seed_from"),
        "finished": result.get("finished"),
        "devices": devices or None,
        "seconds": seconds,
        "device_seconds": seconds * int(number) if seconds and number.isdecimal() else None,
        "images": images,
        "training_macs": 3 * result["macs"] * images if images and result.get("macs") else None,
        "commit": told.get("versions", {}).get("commit"),
        "versions": told.get("versions"),
        "config": config,
    }


def studies(results: Sequence[RowResult]) -> dict[str, list[RowResult]]:
    """Rows by study, both in the order given."""
    grouped: dict[str, list[RowResult]] = {}
    for result in results:
        grouped.setdefault(result.study, []).append(result)
    return grouped


def differing(first: RowResult, second: RowResult, but: tuple[str, ...] = ()) -> list[str]:
    """The settings in which two measured rows differ, in order, less those named `but`.

    An option that only one of two architectures has goes with `model.arch`.
    """
    one, two = first.settings, second.settings
    return sorted(key for key in (one.keys() & two.keys()) - set(but) if one[key] != two[key])


def rows_of(results: Sequence[RowResult], family: str, *, seeded: bool = False) -> list[RowResult]:
    """The measured rows of a family from random weights, or from another net; by depth."""
    found = [r for r in results if r.runs and r.family == family and r.seeded == seeded]
    return sorted(found, key=lambda result: result.depth)


def series(rows: Sequence[RowResult]) -> dict[str, list[RowResult]]:
    """The rows of one family that belong together, by depth, by what tells them from the others.

    That is one series, named '', where no architecture is there twice. Else those of the same
    settings but for the architecture are one, and what differs names it. A series has an
    architecture once; of rows that are one run under two names, it has the first.
    """
    once: dict[tuple[tuple[int, Path], ...], RowResult] = {}
    for row in rows:
        once.setdefault(tuple(sorted(row.row.runs.items())), row)
    rows = list(once.values())
    architectures = [row.row.architecture for row in rows]
    if len(set(architectures)) == len(architectures):
        return {"": rows} if rows else {}
    groups: list[list[RowResult]] = []
    # Those of the same values of what all rows have: no others are compared, of thousands of rows.
    near: dict[tuple[str, ...], list[list[RowResult]]] = {}
    shared = sorted(set.intersection(*(set(row.settings) for row in rows)) - {ARCHITECTURE})
    for row in rows:
        candidates = near.setdefault(tuple(repr(row.settings[key]) for key in shared), [])
        free = [g for g in candidates if all(_architecture(r) != _architecture(row) for r in g)]
        alike = [g for g in free if not differing(g[0], row, but=(ARCHITECTURE,))]
        if alike:  # of several, the one that starts most like it
            max(alike, key=lambda g: _equal(g[0].start, row.start)).append(row)
        else:
            groups.append([row])
            candidates.append(groups[-1])
    return dict(zip(_names([group[0] for group in groups]), groups, strict=True))


def _equal(one: Mapping[str, Any], two: Mapping[str, Any]) -> int:
    """How many keys have the same value in both."""
    return sum(one[key] == two.get(key) for key in one)


def _architecture(row: RowResult) -> str:
    return row.row.architecture


def _names(rows: Sequence[RowResult]) -> list[str]:
    """Of each row what tells it from the others, in as few words as do."""
    settings = _differing([row.settings for row in rows])
    start = _differing([row.start for row in rows])
    told = [{**row.settings, **row.start} for row in rows]
    readable = [key for key in settings if key != DATA]  # a fingerprint says nothing to a reader
    for keys in (readable, settings, [*settings, *start]):
        last = [key.rpartition(".")[2] for key in keys]
        short = {k: one if last.count(one) == 1 else k for k, one in zip(keys, last, strict=True)}
        for form in (_rounded, str):
            names = [", ".join(f"{short[k]} {form(one.get(k))}" for k in keys) for one in told]
            if len(set(names)) == len(names):
                return names
    return [row.name for row in rows]


def _differing(told: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys, but the architecture's, whose values are not the same in all."""
    keys = set().union(*told) - {ARCHITECTURE}
    return sorted(k for k in keys if any(one.get(k) != told[0].get(k) for one in told))


def _rounded(value: Any) -> str:
    """Without the last digits of a number such as 0.30000000000000004."""
    return str(float(f"{value:.6g}")) if isinstance(value, float) else str(value)


def seeding_pairs(results: Sequence[RowResult]) -> list[tuple[RowResult, RowResult]]:
    """(from scratch, seeded) rows of one architecture and the same settings, both measured, by
    depth; of one study."""
    pairs = []
    for seeded, candidates in _seeded(results):
        alike = [scratch for scratch in candidates if not differing(scratch, seeded)]
        alike.sort(key=lambda scratch: scratch.runs.keys().isdisjoint(seeded.runs))
        pairs += [(scratch, seeded) for scratch in alike[:1]]
    return sorted(pairs, key=lambda pair: pair[1].depth)


def unpaired(results: Sequence[RowResult]) -> list[tuple[RowResult, RowResult, list[str]]]:
    """(seeded row, the row from scratch nearest to it, the settings in which they differ), where
    the architecture is there from scratch, but not in the same settings."""
    found = []
    for seeded, candidates in _seeded(results):
        apart = [(differing(scratch, seeded), scratch) for scratch in candidates]
        keys, nearest = min(apart, key=lambda one: len(one[0]), default=([], seeded))
        if keys:
            found.append((seeded, nearest, keys))
    return found


def _seeded(results: Sequence[RowResult]) -> list[tuple[RowResult, list[RowResult]]]:
    """Each measured seeded row with the measured rows of its architecture from scratch."""
    measured = [result for result in results if result.runs]
    scratch: dict[str, list[RowResult]] = {}
    for result in measured:
        if not result.seeded:
            scratch.setdefault(result.row.architecture, []).append(result)
    return [(r, scratch.get(r.row.architecture, [])) for r in measured if r.seeded]

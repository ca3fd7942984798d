"""What finished runs left behind, read once, for tables, findings, figures and the page alike."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import flatten, older_options
from experiments.config.keys import EXECUTION
from experiments.runs.runs import AVERAGED, Run, error_of
from experiments.statistics import ErrorRate, SeedSummary, error_rate, over_seeds
from experiments.testing import predictions

WILSON = "95% Wilson interval of one run's test errors"
T_INTERVAL = "95% t-interval of the mean over seeds"
ARCHITECTURE = "model.arch"
# Keys that are no settings of a training: they tell seeds apart, seed it, or say how it executes.
NO_SETTINGS = ("seed", "seeding", *EXECUTION)
NAMES_A_RUN = ("seeding.run", "seeding.weights")
DATA = "data"  # among settings: the data's fingerprint
# Logged figures that are means over the steps since the line before.
OVER_STEPS = ("train_loss", "train_error")


@cache
def _is_setting(key: str) -> bool:
    return not any(key == prefix or key.startswith(f"{prefix}.") for prefix in NO_SETTINGS)


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

        Of a mean over steps, a last line of less than half as many steps as the line before is
        merged with it: the mean of a few steps would bend the end of the curve.
        """
        by_step = {line["step"]: line[key] for line in self.metrics if line.get(key) is not None}
        steps = np.array(sorted(by_step), dtype=np.float64)
        values = np.array([by_step[step] for step in sorted(by_step)], dtype=np.float64)
        if key in OVER_STEPS and len(steps) > 1:
            *_, previous, last = np.diff(steps, prepend=0.0)
            if last < previous / 2:
                joined = (previous * values[-2] + last * values[-1]) / (previous + last)
                steps, values = np.delete(steps, -2), np.append(values[:-2], joined)
        return steps * (self.result["epochs"] / max(self.result["steps"], 1)), values

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The flat config, with what newer options were in runs that do not name them."""
        config = flatten(self.run.get("config") or {})
        older = older_options(config.get("model.arch", ""))
        return {**{f"model.{option}": value for option, value in older.items()}, **config}

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
        last = max((line["step"] for line in self.metrics if "train_loss" in line), default=0)
        if last >= self.result["steps"]:
            return ""
        reason = f"ends at step {last} of {self.result['steps']}"
        return f"{self.folder / 'metrics.jsonl'} {reason}: its curves are cut there"

    def top1_wrong(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids, wrong) of the test examples, in the order of their ids.

        Raises ValueError where the saved predictions are missing, or hold another count of errors
        than result.json.
        """
        path = self.folder / "predictions" / "test-center.npz"
        tested = predictions.load(path)
        wrong = tested.topk_wrong(1)
        expected = self.result["top1_errors_count"]
        if int(wrong.sum()) != expected:
            raise ValueError(f"{path} holds {int(wrong.sum())} errors, result.json says {expected}")
        order = np.argsort(tested.ids)
        return tested.ids[order], wrong[order]


@dataclass(frozen=True)
class Measurement:
    """A figure in the unit of its column; over several seeds, their mean."""

    value: float
    low: float | None = None
    high: float | None = None
    interval: str = ""  # what low and high are, '' where there is none
    deviation: float | None = None  # over seeds
    seeds: int = 1
    n: int | None = None  # test images


def measured_error(rates: Sequence[ErrorRate]) -> Measurement:
    """The error of one run, or the mean of several seeds' runs."""
    if len(rates) == 1:
        (rate,) = rates
        return Measurement(rate.percent, rate.low, rate.high, WILSON, n=rate.n)
    return measured_mean([rate.percent for rate in rates], rates[0].n, 100.0)


def measured_mean(values: Sequence[float], n: int | None, most: float) -> Measurement:
    """The mean over seeds; its interval can't leave 0..`most`."""
    summary = over_seeds(values)
    if summary.low is None or summary.high is None:
        return Measurement(summary.mean, deviation=summary.deviation, seeds=summary.seeds, n=n)
    low, high = max(summary.low, 0.0), min(summary.high, most)
    return Measurement(summary.mean, low, high, T_INTERVAL, summary.deviation, summary.seeds, n)


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
        """A measured row's flat config and data, without the keys that only seed or execute it."""
        run = next(iter(self.runs.values()))
        flat = run.settings | {DATA: run.run.get("data")}
        return {key: value for key, value in flat.items() if _is_setting(key)}

    @cached_property
    def start(self) -> dict[str, Any]:
        """What tells measured rows of the same settings apart: the first seed, the row that seeds
        it, and how it does."""
        run = next(iter(self.runs.values()))
        how = flatten({"seeding": (run.run.get("config") or {}).get("seeding", {})})
        how = {key: value for key, value in how.items() if key not in NAMES_A_RUN}
        return {"seed": min(self.row.runs), "from": self.row.seed_from, **how}

    def constant(self, key: str) -> Any:
        """An entry of result.json that does not depend on the seed, or None."""
        return next(iter(self.runs.values())).result.get(key) if self.runs else None

    def values(self, key: str) -> list[float]:
        """An entry of result.json for every finished seed that has it, in the order of seeds."""
        entries = [self.runs[seed].result.get(key) for seed in sorted(self.runs)]
        return [value for value in entries if value is not None]

    def summary(self, key: str) -> SeedSummary | None:
        """An entry of result.json over the finished seeds, or None where no run has it."""
        values = self.values(key)
        return over_seeds(values) if values else None

    def rates(self, k: int) -> list[ErrorRate]:
        """Top-k errors of the finished seeds; none if there are none (or too few classes)."""
        n = self.constant("n")
        return [error_rate(int(count), n) for count in self.values(f"top{k}_errors_count") if n]

    def error(self, k: int) -> Measurement | None:
        """Top-k error in percent over the finished seeds, None where there is none.

        With several classes an image it is 100 minus the mean average precision, which has no
        interval over images.
        """
        if rates := self.rates(k):
            return measured_error(rates)
        values = self.errors() if k == 1 else []
        n = self.constant("n")
        if len(values) > 1:
            return measured_mean(values, n, 100.0)
        return Measurement(values[0], n=n) if values else None

    def errors(self) -> list[float]:
        """The error of every finished seed, in the order of seeds: see `error_of`."""
        errors = [error_of(self.runs[seed].result) for seed in sorted(self.runs)]
        return [error for error in errors if error is not None]


def collect(rows: Iterable[Row]) -> list[RowResult]:
    """Reads the run folders of all rows. A run without a readable result has no figures.

    A row that is called finished but lacks a result is shown as failed, with the reason.
    """
    results = []
    for row in rows:
        runs: dict[int, RunResult] = {}
        state, reason = row.state, row.reason
        for seed, folder in sorted(row.runs.items()):
            try:
                runs[seed] = read_run(Path(folder))
            except ValueError as error:
                if state == "finished":
                    state, reason = "failed", f"seed {seed} has no readable result ({error})"
        results.append(RowResult(row, state, reason, runs))
    return results


def read_run(folder: Path) -> RunResult:
    """What a finished run left behind. Raises ValueError where that can't be read."""
    files = Run(folder)
    result, run = files.read("result"), files.read("run")
    if result is None or run is None:
        name = "result" if result is None else "run"
        raise ValueError(f"{folder / name}.json is missing")
    figure = AVERAGED if AVERAGED in result else "top1_errors_count"
    for key in ("n", figure, "steps", "epochs", "train_loss", "depth"):
        if key not in result:
            raise ValueError(f"{folder / 'result.json'} lacks '{key}'")
    return RunResult(folder, run, result, files.logged(), files.read("seeding"))


def provenance(run: RunResult) -> dict[str, Any]:
    """Where a run's figures come from, and what it cost; None for what the run doesn't tell.

    `device_seconds`: seconds times devices. `training_macs`: those of forward and backward
    pass, counted as three times the forward pass's, for each image trained on.
    """
    description, result = run.run, run.result
    config, seconds = description.get("config", {}), result.get("seconds")
    batch, devices = config.get("train", {}).get("batch_size"), result.get("devices", "")
    images = result["steps"] * batch if batch else None
    number = devices.partition(" x ")[0]
    return {
        "study": description.get("study"),
        "row": description.get("row"),
        "seed": description.get("seed"),
        "seed_from": description.get("seed_from"),
        "finished": result.get("finished"),
        "devices": devices or None,
        "seconds": seconds,
        "device_seconds": seconds * int(number) if seconds and number.isdecimal() else None,
        "images": images,
        "training_macs": 3 * result["macs"] * images if images and result.get("macs") else None,
        "commit": description.get("versions", {}).get("commit"),
        "versions": description.get("versions"),
        "config": config,
    }


def studies(results: Sequence[RowResult]) -> dict[str, list[RowResult]]:
    """Rows by study, both in the order given."""
    grouped: dict[str, list[RowResult]] = {}
    for row in results:
        grouped.setdefault(row.study, []).append(row)
    return grouped


def differing(first: RowResult, second: RowResult, but: tuple[str, ...] = ()) -> list[str]:
    """The settings in which two measured rows differ, in order, less those named `but`.

    Options that only one of two architectures has are left out: `model.arch` stands for them.
    """
    a, b = first.settings, second.settings
    return sorted(key for key in (a.keys() & b.keys()) - set(but) if a[key] != b[key])


def rows_of(results: Sequence[RowResult], family: str, *, seeded: bool = False) -> list[RowResult]:
    """The measured rows of a family from random weights, or from another net; by depth."""
    rows = [row for row in results if row.runs and row.family == family and row.seeded == seeded]
    return sorted(rows, key=lambda row: row.depth)


def series(rows: Sequence[RowResult]) -> dict[str, list[RowResult]]:
    """Groups the rows of one family, sorted by depth, into series; by the series' names.

    Where no architecture occurs twice there is one series, named ''. Else a series has rows that
    differ in the architecture only, each once, and is named by what tells it from the others. Of
    rows that share their runs it has the first.
    """
    row_of_runs: dict[tuple[tuple[int, Path], ...], RowResult] = {}
    for row in rows:
        row_of_runs.setdefault(tuple(sorted(row.row.runs.items())), row)
    rows = list(row_of_runs.values())
    architectures = [row.row.architecture for row in rows]
    if len(set(architectures)) == len(architectures):
        return {"": rows} if rows else {}
    groups: list[list[RowResult]] = []
    # Groups by their values of the keys that all rows have: thousands of rows make few comparisons.
    buckets: dict[tuple[str, ...], list[list[RowResult]]] = {}
    shared = sorted(set.intersection(*(set(row.settings) for row in rows)) - {ARCHITECTURE})
    for row in rows:
        candidates = buckets.setdefault(tuple(repr(row.settings[key]) for key in shared), [])
        fitting = [g for g in candidates if all(_architecture(r) != _architecture(row) for r in g)]
        alike = [g for g in fitting if not differing(g[0], row, but=(ARCHITECTURE,))]
        if alike:  # of several, the one whose start is most like the row's
            max(alike, key=lambda g: _equal(g[0].start, row.start)).append(row)
        else:
            groups.append([row])
            candidates.append(groups[-1])
    return dict(zip(_names([group[0] for group in groups]), groups, strict=True))


def _equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> int:
    """How many keys have the same value in both."""
    return sum(a[key] == b.get(key) for key in a)


def _architecture(row: RowResult) -> str:
    return row.row.architecture


def _names(rows: Sequence[RowResult]) -> list[str]:
    """A name of each row: the fewest settings that tell all apart, else the row's own name."""
    settings = _differing([row.settings for row in rows])
    start = _differing([row.start for row in rows])
    facts = [{**row.settings, **row.start} for row in rows]
    readable = [key for key in settings if key != DATA]  # a fingerprint says nothing to a reader
    for keys in (readable, settings, [*settings, *start]):
        ends = [key.rpartition(".")[2] for key in keys]
        short = {k: end if ends.count(end) == 1 else k for k, end in zip(keys, ends, strict=True)}
        for form in (_rounded, str):
            names = [", ".join(f"{short[k]} {form(fact.get(k))}" for k in keys) for fact in facts]
            if len(set(names)) == len(names):
                return names
    return [row.name for row in rows]


def _differing(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys but the architecture's whose values are not the same in all mappings."""
    keys = set().union(*mappings) - {ARCHITECTURE}
    return sorted(k for k in keys if any(m.get(k) != mappings[0].get(k) for m in mappings))


def _rounded(value: Any) -> str:
    """The value as text, without the last digits of a number such as 0.30000000000000004."""
    return str(float(f"{value:.6g}")) if isinstance(value, float) else str(value)


def seeding_pairs(results: Sequence[RowResult]) -> list[tuple[RowResult, RowResult]]:
    """(from scratch, seeded) rows of one study with the same architecture and settings, both
    measured; by depth."""
    pairs = []
    for seeded, candidates in _seeded(results):
        alike = [scratch for scratch in candidates if not differing(scratch, seeded)]
        alike.sort(key=lambda scratch: scratch.runs.keys().isdisjoint(seeded.runs))
        pairs += [(scratch, seeded) for scratch in alike[:1]]
    return sorted(pairs, key=lambda pair: pair[1].depth)


def unpaired(results: Sequence[RowResult]) -> list[tuple[RowResult, RowResult, list[str]]]:
    """(seeded row, nearest row from scratch, settings in which they differ), where no row from
    scratch has both the architecture and the settings."""
    triples = []
    for seeded, candidates in _seeded(results):
        differences = [(differing(scratch, seeded), scratch) for scratch in candidates]
        keys, nearest = min(differences, key=lambda pair: len(pair[0]), default=([], seeded))
        if keys:
            triples.append((seeded, nearest, keys))
    return triples


def _seeded(results: Sequence[RowResult]) -> list[tuple[RowResult, list[RowResult]]]:
    """Each measured seeded row with the measured rows of its architecture from scratch."""
    measured = [row for row in results if row.runs]
    scratch: dict[str, list[RowResult]] = {}
    for row in measured:
        if not row.seeded:
            scratch.setdefault(row.row.architecture, []).append(row)
    return [(row, scratch.get(row.row.architecture, [])) for row in measured if row.seeded]

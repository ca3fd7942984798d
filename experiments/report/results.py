"""What finished runs left behind, read once, for tables, findings, figures and the page alike."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments import predictions
from experiments.runs import Run
from experiments.statistics import SeedSummary, error_rate, over_seeds

WILSON = "95% Wilson interval of one run's test errors"
T_INTERVAL = "95% t-interval of the mean over seeds"


@dataclass(frozen=True)
class Row:
    """One row of a study as the sweep knows it.

    Attributes:
        study: name of the study, e.g. 'vgg_depth'.
        name: the row's name, e.g. 'plain-56' or 'vgg:E from A'.
        architecture: registry name, e.g. 'cifar_plain:56'.
        runs: seed -> run folder, one entry for each seed asked for.
        seed_from: name of the row whose net starts this one, or None.
        state: finished, running, failed, waiting or not run.
        reason: one sentence, for a row that failed or waits.
    """

    study: str
    name: str
    architecture: str
    runs: Mapping[int, Path]
    seed_from: str | None = None
    state: str = "not run"
    reason: str = ""


@dataclass(frozen=True)
class RunResult:
    """One finished run folder: run.json, result.json, metrics.jsonl, seeding.json."""

    folder: Path
    run: dict
    result: dict
    metrics: list[dict]
    seeding: dict | None

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(epochs, values) of one logged figure; epochs are fractions, from the step numbers."""
        by_step = {line["step"]: line[key] for line in self.metrics if line.get(key) is not None}
        steps = np.array(sorted(by_step), dtype=np.float64)
        values = np.array([by_step[step] for step in sorted(by_step)], dtype=np.float64)
        return steps * (self.result["epochs"] / max(self.result["steps"], 1)), values

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

        Raises:
            ValueError: the saved predictions are missing, or hold another count of errors than
                result.json.
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
class ErrorSummary:
    """An error in percent with the interval that fits: of one run, or of the mean over seeds."""

    seeds: int
    n: int
    percent: float
    low: float
    high: float
    interval: str
    deviation: float | None
    minimum: float
    maximum: float


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
    def measured(self) -> bool:
        """At least one seed has finished."""
        return bool(self.runs)

    @property
    def depth(self) -> int:
        """Weight layers; only a measured row has them."""
        return self.constant("depth")

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

    def error(self, k: int) -> ErrorSummary | None:
        """Top-k error over the finished seeds; None if there is none (or too few classes)."""
        counts, n = self.values(f"top{k}_errors_count"), self.constant("n")
        if not counts or not n:
            return None
        rates = [error_rate(int(count), n) for count in counts]
        seeds = over_seeds([rate.percent for rate in rates])
        low, high, kind = seeds.low, seeds.high, T_INTERVAL
        if low is None or high is None:
            low, high, kind = rates[0].low, rates[0].high, WILSON
        else:  # an error is a share: its mean cannot leave 0..100
            low, high = max(low, 0.0), min(high, 100.0)
        return ErrorSummary(
            len(rates),
            n,
            seeds.mean,
            low,
            high,
            kind,
            seeds.deviation,
            seeds.minimum,
            seeds.maximum,
        )


def collect(rows: Iterable[Row]) -> list[RowResult]:
    """Reads the run folders of all rows. A run without a readable result has no figures.

    A row that is called finished but lacks a result is shown as failed, with the reason.
    """
    return [_collect_row(row) for row in rows]


def _collect_row(row: Row) -> RowResult:
    runs, missing = {}, []
    for seed, folder in sorted(row.runs.items()):
        try:
            runs[seed] = read_run(Path(folder))
        except ValueError as error:
            missing.append((seed, error))
    state, reason = row.state, row.reason
    if missing and state == "finished":
        seed, problem = missing[0]
        state, reason = "failed", f"seed {seed} has no readable result ({problem})"
    return RowResult(row, state, reason, runs)


def read_run(folder: Path) -> RunResult:
    """What a finished run left behind. Raises ValueError where that can't be read."""
    there = Run(folder)
    result, run = there.read("result"), there.read("run")
    for name, content in (("result", result), ("run", run)):
        if content is None:
            raise ValueError(f"{folder / name}.json is missing")
    assert result is not None
    assert run is not None
    for key in ("n", "top1_errors_count", "steps", "epochs", "train_loss", "depth"):
        if key not in result:
            raise ValueError(f"{folder / 'result.json'} lacks '{key}'")
    return RunResult(folder, run, result, there.logged(), there.read("seeding"))


def studies(results: Sequence[RowResult]) -> dict[str, list[RowResult]]:
    """Rows by study, both in the order given."""
    grouped: dict[str, list[RowResult]] = {}
    for result in results:
        grouped.setdefault(result.study, []).append(result)
    return grouped


def scratch_rows(results: Sequence[RowResult], family: str) -> list[RowResult]:
    """Measured rows of a family that start from random weights, by depth; one an architecture."""
    found: dict[str, RowResult] = {}
    for result in results:
        if result.family == family and result.measured and result.row.seed_from is None:
            found.setdefault(result.row.architecture, result)
    return sorted(found.values(), key=lambda result: result.depth)


def seeding_pairs(results: Sequence[RowResult]) -> list[tuple[RowResult, RowResult]]:
    """(from scratch, seeded) rows of one architecture, both measured, by depth; of one study."""
    scratch = {
        result.row.architecture: result
        for result in reversed(results)
        if result.measured and result.row.seed_from is None
    }
    pairs = [
        (scratch[result.row.architecture], result)
        for result in results
        if result.measured and result.row.seed_from and result.row.architecture in scratch
    ]
    return sorted(pairs, key=lambda pair: pair[1].depth)

"""A paper's table with what was measured: nothing is computed here that needs a network.

    result = measure(table, "demo", about, runs_of_row)
    result.rows[0].cells["top1"]        # a Measurement

A row's runs that are not there, or were not tested as the row says, leave its cells empty.
"""

import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn_arch.census import census
from experiments.localisation import localised
from experiments.papers.heads import Head, Sets
from experiments.papers.table import (
    HEADS,
    AfterEpochs,
    Column,
    Count,
    Difference,
    EpochsRatio,
    Error,
    Located,
    Net,
    Row,
    Table,
    Transferred,
)
from experiments.runs import runs
from experiments.runs.results import (
    Measurement,
    RunResult,
    measured_error,
    measured_mean,
    read_run,
)
from experiments.statistics import (
    ErrorRate,
    RankAgreement,
    error_rate,
    mcnemar,
    over_seeds,
    paired_difference,
    rank_agreement,
)
from experiments.testing import prediction_store, predictions, protocols
from experiments.testing.predictions import Predictions
from input_pipeline import crops

COMPARED = 2000  # images whose posteriors are compared between nets, at most
MCNEMAR = "95% interval of the difference, paired by test image (Bonett and Price)"
OVER_SPLITS = "95% t-interval of the mean over random splits"
PAIRED = "95% t-interval of the mean difference over seeds"
RANKS = {"top1": 1, "top5": 5}
LOCATED = 5  # classes that an image may be said to be of, where boxes are tested
LOGGED = {"seen": ("seen_top1_error", "train_tested"), "test": ("test_top1_error", "n")}
COSTS = ("depth", "parameters", "macs")
SPLITS = {"recall": "mean_class_recall", "ap": "mean_average_precision"}  # of a head's split
COUNTED = {"params": ("parameters", 1e6), "macs": ("macs", 1e9)}  # in millions, and in 1e9


@dataclass(frozen=True)
class RowRuns:
    """What a row needs, seed by seed."""

    # Seed -> the runs of each of the row's nets, a tuple of members a net.
    replicates: Mapping[int, tuple[tuple[runs.Run, ...], ...]] = field(default_factory=dict)
    # `ready`, or what is shown where nothing was measured: `printed only`, `on request`, `not run`
    # or `failed`.
    state: str = "ready"
    reason: str = ""  # one sentence
    seconds: float | None = None  # that an `on request` row would take here


@dataclass(frozen=True)
class RowResult:
    """A row of a table with what was measured of it."""

    row: Row
    # `measured`, `partly` (some seeds are missing), `not measured` (the runs are there and do not
    # give the figure; `reason` says why), or that of `RowRuns`.
    state: str
    reason: str = ""
    seconds: float | None = None  # as in `RowRuns`; None where something was measured
    cells: Mapping[str, Measurement] = field(default_factory=dict)  # measured ones, by column
    tested: str = ""  # how, in words
    # Depth, parameters and macs of the net as it was trained here; empty for several nets.
    costs: Mapping[str, int | None] = field(default_factory=dict)
    runs: tuple[RunResult, ...] = ()  # each once
    # Ids (m,) of up to `COMPARED` images, and the first seed's posteriors (m, K) of them.
    compared: tuple[NDArray[np.int32], NDArray[np.float32]] | None = None


@dataclass(frozen=True)
class TableResult:
    """A table with what was measured of it in a profile."""

    table: Table
    profile: str  # its name
    about: str  # data, sizes and widths that the rows were measured with
    rows: tuple[RowResult, ...]
    agreement: Mapping[str, RankAgreement]  # by column, if two rows or more have both figures


def scales_here(net: Net, crop: int, paper_crop: int) -> str | None:
    """A net's test scales in ratio to the crop that it was trained with; a word stays as it is."""
    if net.scales is None or not net.scales[0].isdecimal():
        return net.scales
    sides = (crops.in_ratio(int(Q), crop, paper_crop) for Q in net.scales.split(","))
    return ",".join(map(str, dict.fromkeys(sides)))


def localisers_at(
    nets: Sequence[Net], trained: Sequence[runs.Run], paper_crop: int
) -> list[localised.LocaliserAt]:
    """The localisers with the test scales that they get here. trained: a run of each."""
    localisers = []
    for net, run in zip(nets, trained, strict=True):
        config = run.config()
        scales = scales_here(net, config.data.image_size, paper_crop)
        passes = protocols.resolve("dense", config, scales)
        localisers.append((run, tuple(Q for part in passes for Q in part.scales)))
    return localisers


def measure(
    table: Table,
    profile: str,
    about: str,
    runs_of_row: Mapping[str, RowRuns],
    sets: Sets | None = None,
) -> TableResult:
    """The table from the runs that are there. sets: the images of its heads."""
    table = replace(table, columns=_columns(table, profile))
    readings = [
        _Reading(table, row, runs_of_row[row.name], profile, sets or Sets()) for row in table.rows
    ]
    rows = tuple(reading.result() for reading in readings)
    agreements = {c.key: _agreement(c, readings) for c in table.columns if c.what in RANKS}
    agreement = {key: ranks for key, ranks in agreements.items() if ranks is not None}
    return TableResult(table, profile, about, rows, agreement)


def _columns(table: Table, profile: str) -> tuple[Column, ...]:
    """A table's columns in a profile; those of heads without images in it are printed only."""

    def measured(column: Column) -> bool:
        transfers = [row.measured for row in table.rows if isinstance(row.measured, Transferred)]
        return any(transfer.target(column.key, profile) for transfer in transfers)

    columns = (
        replace(column, what="") if column.what in HEADS and not measured(column) else column
        for column in table.columns
    )
    return tuple(c for c in columns if c.what or any(c.key in row.printed for row in table.rows))


class _Reading:
    """The tests of a row, read from its runs."""

    def __init__(self, table: Table, row: Row, row_runs: RowRuns, profile: str, sets: Sets):
        self.table, self.row, self.row_runs = table, row, row_runs
        self.profile, self.sets = profile, sets
        self.missing: list[str] = []  # why figures are not there, seed by seed
        self.tests: dict[int, list[Predictions]] = {}  # seed -> those of each term of the row
        self.heads: dict[
            str, list[dict[str, Any]]
        ] = {}  # column -> figures of its head, seed by seed
        self.shown: dict[str, Head] = {}  # column -> one of its heads
        self.unfinished: list[str] = []  # networks that need not be finished, with why
        self.located: list[ErrorRate] = []  # errors of merged boxes, seed by seed
        self.runs: dict[str, RunResult] = {}
        for seed, nets in row_runs.replicates.items():
            try:
                self._read(seed, nets)
            except (OSError, ValueError, KeyError) as error:
                self.missing.append(str(error))

    def _read(self, seed: int, nets: tuple[tuple[runs.Run, ...], ...]) -> None:
        unfinished = self._need_no_end(nets)
        self.unfinished += unfinished.values()
        trained = [run for members in nets for run in members if run.id not in unfinished]
        for run in trained:
            if not run.read("result"):
                raise runs.RunError(f"{run.id} is not trained")
        results = [read_run(run.folder) for run in trained]
        for result in results:
            if result.several and not isinstance(self.row.measured, Transferred):
                raise runs.RunError(f"images of {result.folder.name} are of several classes each")
        if isinstance(self.row.measured, Transferred):
            self._read_heads(self.row.measured, trained)
        elif isinstance(self.row.measured, Located):
            self._read_boxes(self.row.measured, trained)
        elif not isinstance(self.row.measured, EpochsRatio | AfterEpochs):
            terms = [
                [self._saved(net, run) for run in members]
                for net, members in zip(self.row.nets, nets, strict=True)
            ]
            if isinstance(self.row.measured, Error):  # all are averaged
                terms = [[test for members in terms for test in members]]
            self.tests[seed] = [predictions.mean(term) for term in terms]
        self.runs.update({result.folder.name: result for result in results})

    def _read_heads(self, measured: Transferred, trained: Sequence[runs.Run]) -> None:
        """What the heads of a seed came to, column by column."""
        headers = {c.key: c.header.partition(",")[0] for c in self.table.columns}
        absent: dict[str, list[str]] = {}
        heads = self.sets.heads(measured, self.profile, trained, self.table.crop)
        for key, head in heads.items():
            result = head.result() if isinstance(head, Head) else None
            if result is None or isinstance(head, str):
                why = head if isinstance(head, str) else self.sets.why_not(head)
                absent.setdefault(why, []).append(headers[key])
            else:
                self.heads.setdefault(key, []).append(result)
                self.shown[key] = head
        self.missing += [f"{', '.join(columns)}: {why}" for why, columns in absent.items()]

    def _read_boxes(self, measured: Located, trained: Sequence[runs.Run]) -> None:
        """The error of a seed's localisers."""
        localisers = localisers_at(measured.nets, trained, self.table.crop)
        merged = localised.load(trained[0], localised.about(localisers))
        if merged is None:
            self.missing.append("its boxes are not merged yet")
        else:
            self.located.append(merged.rate(LOCATED))

    def _need_no_end(self, nets: tuple[tuple[runs.Run, ...], ...]) -> dict[str, str]:
        """The runs that need not be finished: id -> its row, and why in words.

        Where what counts is how soon an error is reached, these are those that diverged, and those
        that another has outrun.
        """
        if not isinstance(self.row.measured, EpochsRatio):
            return {}
        epochs_of_run = outrun(self.row.measured, nets)
        reasons = {}
        for (run,), net in zip(nets, self.row.nets, strict=True):
            if run.id in epochs_of_run:
                reasons[run.id] = f"{net.row} ({epochs_of_run[run.id]:.3g} epochs)"
            elif not run.read("result") and (run.read("failed") or {}).get("kind") == "diverged":
                reasons[run.id] = f"{net.row} (diverged)"
        return reasons

    def _saved(self, net: Net, run: runs.Run) -> Predictions:
        scales = scales_here(net, run.config().data.image_size, self.table.crop)
        return prediction_store.load(run, net.protocol, scales)

    def wrong(self, k: int, term: int = 0) -> dict[int, NDArray[np.bool_]]:
        """Seed -> (n,) whether the top k miss an image's class, in the order of the images' ids."""
        return {
            seed: tests[term].topk_wrong(k)[np.argsort(tests[term].ids)]
            for seed, tests in self.tests.items()
        }

    def result(self) -> RowResult:
        """The row's figures."""
        row, row_runs = self.row, self.row_runs
        if isinstance(row.measured, Count):
            return self._counted(row.measured)
        cells = {c.key: cell for c in self.table.columns if (cell := self._cell(c))}
        state, reason = row_runs.state, row_runs.reason
        missing = next(iter(self.missing), "")
        if isinstance(row.measured, Transferred):
            missing = "; ".join(dict.fromkeys(self.missing))
        if cells:
            finished, planned = max(cell.seeds for cell in cells.values()), len(row_runs.replicates)
            why = reason if state == "failed" else missing
            state, reason = "partly", f"{finished} of {planned} seeds; {why}"
            if finished == planned:
                state, reason = "measured", ""
                if isinstance(row.measured, Transferred) and missing:
                    state, reason = "partly", missing
        elif state == "ready":
            state, reason = "not run" if not self.runs else "not measured", missing
        return RowResult(
            row,
            state,
            reason,
            None if cells else row_runs.seconds,
            cells,
            self._tested(),
            self._costs(),
            runs=tuple(self.runs.values()),
            compared=self._compared(),
        )

    def _counted(self, count: Count) -> RowResult:
        counts = census(count.arch, **count.options)
        costs = {"depth": counts.depth, "parameters": counts.params, "macs": counts.macs}
        cells = {c.key: cell for c in self.table.columns if (cell := _cost(c, costs))}
        tested = "counted at the paper's size"
        return RowResult(self.row, "measured", cells=cells, tested=tested, costs=costs)

    def _cell(self, column: Column) -> Measurement | None:
        measured = self.row.measured
        if isinstance(measured, EpochsRatio):
            return self._epochs(measured) if column.unit == "times" else None
        if isinstance(measured, AfterEpochs):
            return self._logged(measured, column) if column.what in LOGGED else None
        if column.what in HEADS:
            return _of_heads(self.heads.get(column.key, ()), column.what)
        if column.what == "located":
            return measured_error(self.located) if self.located else None
        if column.what in COUNTED:
            return _cost(column, self._costs())
        if column.what not in RANKS or not self.tests:
            return None
        k = RANKS[column.what]
        if isinstance(measured, Difference):
            try:
                return _difference(self.wrong(k, 0), self.wrong(k, 1))
            except ValueError as error:  # other images were left out
                self.missing.append(f"the two can't be compared: {error}")
                return None
        if isinstance(measured, Error):
            return measured_error(
                [error_rate(int(w.sum()), len(w)) for w in self.wrong(k).values()]
            )
        return None

    def _epochs(self, measured: EpochsRatio) -> Measurement | None:
        ratios = []
        for best in self._fewest(measured):
            if len(best) == 2:
                ratios.append(best[0][0] / best[1][0])
            elif self.runs:
                self.missing.append(f"{measured.error:g}% of training error was not reached")
        return measured_mean(ratios, None, np.inf) if ratios else None

    def _fewest(self, measured: EpochsRatio) -> list[list[tuple[float, str]]]:
        """For each seed, the fewest epochs to the error of the slow and of the fast networks, each
        with its row; a kind that never gets there is left out."""
        fewest = []
        for members in self.row_runs.replicates.values():
            kinds: tuple[list[tuple[float, str]], ...] = ([], [])
            for k, ((run,), net) in enumerate(zip(members, self.row.nets, strict=True)):
                if run.id in self.runs:
                    reached = _reached(self.runs[run.id], measured.error)
                    kinds[k >= len(measured.slow)].extend((e, net.row) for e in reached)
            fewest.append([min(kind) for kind in kinds if kind])
        return fewest

    def _logged(self, measured: AfterEpochs, column: Column) -> Measurement | None:
        key, counted = LOGGED[column.what]
        rates = []
        for run in self.runs.values():
            epochs, errors = run.curve(key)
            gaps = np.abs(epochs - measured.epochs)
            # What is logged after whole steps lies beside the end of an epoch.
            if gaps.size and gaps.min() < 2.5 * run.result["epochs"] / run.result["steps"]:
                n = run.result[counted]
                rates.append(error_rate(round(float(errors[gaps.argmin()]) / 100 * n), n))
            else:
                self.missing.append(
                    f"{run.folder.name} logged no {key} then: delete the run, and train it with "
                    "test.curve_epochs=1 and test.curve_seen=true"
                )
        return measured_error(rates) if rates else None

    def _tested(self) -> str:
        if not self.runs:
            return ""
        if isinstance(self.row.measured, Transferred):
            return _of_features(self.shown.values())
        if isinstance(self.row.measured, AfterEpochs):
            return "all images, between two passes"
        if isinstance(self.row.measured, EpochsRatio):
            seeds = [
                ", ".join(f"{row} {epochs:.3g}" for epochs, row in best)
                for best in self._fewest(self.row.measured)
            ]
            error, by_seed = self.row.measured.error, "; ".join(filter(None, seeds))
            text = f"epochs to a training error below {error:g}%: {by_seed or 'never'}"
            return "; not finished: ".join(filter(None, [text, ", ".join(self.unfinished)]))
        crop = next(iter(self.runs.values())).run["config"]["data"]["image_size"]
        pairs = [(net.protocol, scales_here(net, crop, self.table.crop)) for net in self.row.nets]
        return "; ".join(dict.fromkeys(" at ".join(filter(None, pair)) for pair in pairs))

    def _costs(self) -> dict[str, int | None]:
        nets = self.row.nets
        if len(nets) != 1 or nets[0].members > 1 or not self.runs:
            return {}
        result = next(iter(self.runs.values())).result
        return {key: result.get(key) for key in COSTS}

    def _compared(self) -> tuple[NDArray[np.int32], NDArray[np.float32]] | None:
        if not isinstance(self.row.measured, Error) or not self.tests:
            return None
        (test,) = self.tests[min(self.tests)]
        order = np.argsort(test.ids)
        order = order[np.linspace(0, len(order) - 1, min(COMPARED, len(order))).astype(np.int64)]
        return test.ids[order], test.posteriors[order]


def outrun(measured: EpochsRatio, nets: Sequence[tuple[runs.Run, ...]]) -> dict[str, float]:
    """The unfinished runs that can't take the fewest epochs any more: id -> epochs trained.

    In no more epochs, another learning rate of the same network has reached the error.

    nets: the run of each of `measured.slow`, then of `measured.fast`.
    """
    slower: dict[str, float] = {}
    for kind in (nets[: len(measured.slow)], nets[len(measured.slow) :]):
        reached: list[float] = []
        trained: dict[str, float] = {}  # of unfinished runs that have not reached it
        for (run,) in kind:
            with contextlib.suppress(OSError, ValueError, KeyError):  # said where it is read
                if (run.folder / "result.json").exists():
                    reached += _reached(read_run(run.folder), measured.error)
                    continue
                lines = [line for line in run.logged() if "train_error" in line]
                if lines and min(line["train_error"] for line in lines) >= measured.error:
                    trained[run.id] = lines[-1]["epoch"]
        if reached:
            slower |= {run: epochs for run, epochs in trained.items() if epochs >= min(reached)}
    return slower


def _reached(run: RunResult, error: float) -> list[float]:
    """The epochs to a training error (percent) below `error`, or nothing."""
    epochs, errors = run.curve("train_error")
    reached: list[float] = epochs[errors < error].tolist()
    return reached[:1]


def _of_heads(heads: Sequence[Mapping[str, Any]], kind: str) -> Measurement | None:
    """The mean figure of heads, one a seed; of one seed alone, over its splits."""
    if not heads:
        return None
    values = [[split[SPLITS[kind]] for split in head["splits"]] for head in heads]
    n = heads[0]["splits"][0]["test"]
    if len(heads) > 1:
        return measured_mean([float(np.mean(splits)) for splits in values], n, 100.0)
    summary = over_seeds(values[0])
    if summary.low is None or summary.high is None:
        return Measurement(summary.mean, deviation=summary.deviation, n=n)
    low, high = max(summary.low, 0.0), min(summary.high, 100.0)
    return Measurement(summary.mean, low, high, OVER_SPLITS, summary.deviation, n=n)


def _of_features(heads: Iterable[Head]) -> str:
    """How features were taken, in words."""
    words = {"mean": "averaged", "concatenate": "side by side"}
    descriptions = [f"{h.layer}, {h.protocol} at {h.scales} {words[h.how.combine]}" for h in heads]
    return "; ".join(dict.fromkeys(descriptions))


def _cost(column: Column, costs: Mapping[str, Any]) -> Measurement | None:
    """The cost that a column is of, in its unit."""
    name, unit = COUNTED.get(column.what, ("", 1))
    return None if costs.get(name) is None else Measurement(costs[name] / unit)


def _difference(
    first: Mapping[int, NDArray[np.bool_]], second: Mapping[int, NDArray[np.bool_]]
) -> Measurement:
    if len(first) == 1:
        (wrong_first,), (wrong_second,) = first.values(), second.values()
        test = mcnemar(wrong_first, wrong_second)
        return Measurement(test.difference, test.low, test.high, MCNEMAR, n=test.n)
    errors = [[100 * float(w.mean()) for w in wrong.values()] for wrong in (first, second)]
    paired, n = paired_difference(*errors), len(next(iter(first.values())))
    kind = "" if paired.low is None else PAIRED
    return Measurement(
        paired.mean, paired.low, paired.high, kind, paired.deviation, paired.seeds, n
    )


def _agreement(column: Column, readings: Sequence[_Reading]) -> RankAgreement | None:
    """Of the rows that have both figures; None where their test images are not the same."""
    compared: list[tuple[float, list[NDArray[np.bool_]], NDArray[np.int32]]] = []
    for reading in readings:
        printed = reading.row.printed.get(column.key)
        if printed is None or not reading.tests or not isinstance(reading.row.measured, Error):
            continue
        wrong = list(reading.wrong(RANKS[column.what]).values())
        ids = np.sort(next(iter(reading.tests.values()))[0].ids)
        compared.append((printed.value, wrong, ids))
    if len(compared) < 2 or any(not np.array_equal(ids, compared[0][2]) for *_, ids in compared):
        return None
    return rank_agreement([value for value, *_ in compared], [np.stack(w) for _, w, _ in compared])


def overlap(posteriors: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """How alike the posteriors (m, K) of nets on the same images are, (nets, nets).

    Each is the mean over images of the sum over classes of the smaller posterior: 1 is the same, 0
    nothing in common.
    """
    overlaps = np.ones((len(posteriors), len(posteriors)))
    for i, j in itertools.combinations(range(len(posteriors)), 2):
        smaller = np.minimum(posteriors[i], posteriors[j]).sum(axis=1)
        overlaps[i, j] = overlaps[j, i] = float(smaller.mean())
    return overlaps

"""Sentences that are computed from the runs, favourable or not."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from experiments.runs.results import (
    ARCHITECTURE,
    RowResult,
    differing,
    rows_of,
    seeding_pairs,
    series,
    studies,
    unpaired,
)
from experiments.statistics import SeedSummary, mcnemar, over_seeds, paired_difference

REFERENCE_DEPTH = 20  # the shallowest net of He et al. 2016, Table 6
PLAIN, RESIDUAL = "cifar_plain", "cifar_resnet"


@dataclass(frozen=True)
class Finding:
    """A sentence or a few, and the figures that they were made of."""

    text: str
    figures: dict = field(default_factory=dict)  # percent, points of percent, p-values


def findings(results: Sequence[RowResult]) -> list[Finding]:
    """Deepest plain net against plain-20 and the residual net of its depth; seeded against scratch.

    Each of several settings is compared by itself. A comparison whose rows are not both measured is
    left out; of a seeded row without its like from scratch a sentence says so.
    """
    computed = []
    for rows in studies(results).values():
        computed += [compare(first, second) for first, second in _comparisons(rows)]
        computed += [_unpaired(*unmatched) for unmatched in unpaired(rows)]
    return computed + _caveats(computed)


def _unpaired(seeded: RowResult, scratch: RowResult, keys: Sequence[str]) -> Finding:
    theirs, ours = scratch.settings, seeded.settings
    differences = "; ".join(
        f"{key} is {theirs.get(key)} there and {ours.get(key)} here" for key in keys
    )
    return Finding(
        f"{seeded.name} is compared with no net from scratch: none was trained in its settings "
        f"({scratch.name} comes nearest: {differences})."
    )


def _comparisons(rows: Sequence[RowResult]) -> list[tuple[RowResult, RowResult]]:
    pairs = []
    plain, residual = rows_of(rows, PLAIN), rows_of(rows, RESIDUAL)
    for group in series(plain).values():
        pairs += _with_reference(group)
        as_deep = [row for row in residual if row.depth == group[-1].depth]
        same_settings = [
            row for row in as_deep if not differing(group[-1], row, but=(ARCHITECTURE,))
        ]
        shared = [row for row in same_settings if row.runs.keys() & group[-1].runs.keys()]  # seeds
        pairs += [(group[-1], row) for row in shared or same_settings or as_deep]
    for group in series(residual).values():
        pairs += _with_reference(group)
    return pairs + [(seeded, scratch) for scratch, seeded in seeding_pairs(rows)]


def _with_reference(rows: Sequence[RowResult]) -> list[tuple[RowResult, RowResult]]:
    """The deepest net beside the one of 20 layers (beside the shallowest where there is none)."""
    reference = next((row for row in rows if row.depth == REFERENCE_DEPTH), rows[0])
    return [(rows[-1], reference)] if rows[-1].depth > reference.depth else []


def compare(first: RowResult, second: RowResult) -> Finding:
    """Training loss and test error of two rows on the seeds both have finished.

    Two or more seeds: paired t-test over seeds. One: exact McNemar test on the test images. Other
    settings than the architecture in which they differ are named.
    """
    seeds = sorted(first.runs.keys() & second.runs.keys())
    if not seeds:
        names = f"{first.name} against {second.name}"
        finding = Finding(f"{names}: no seed was finished for both, so nothing is compared.")
    elif len(seeds) == 1:
        finding = _compare_runs(first, second, seeds[0])
    else:
        finding = _compare_seeds(first, second, seeds)
    keys = differing(first, second, but=(ARCHITECTURE,))
    addition = f" They differ in {', '.join(keys)} too." if keys else ""
    return replace(finding, text=finding.text + addition)


def _compare_runs(first: RowResult, second: RowResult, seed: int) -> Finding:
    first_run, second_run = first.runs[seed], second.runs[seed]
    opening = (
        f"{first.name} against {second.name} (seed {seed}): training loss "
        f"{first_run.result['train_loss']:.3f} against {second_run.result['train_loss']:.3f}; "
        "test error "
    )
    try:
        first_ids, first_wrong = first_run.top1_wrong()
        second_ids, second_wrong = second_run.top1_wrong()
        if not np.array_equal(first_ids, second_ids):
            raise ValueError("the two runs were not tested on the same images")
    except ValueError as error:
        rates = [
            100 * run.result["top1_errors_count"] / run.result["n"]
            for run in (first_run, second_run)
        ]
        return Finding(
            f"{opening}{rates[0]:.1f}% against {rates[1]:.1f}%; no paired test: {error}."
        )
    test = mcnemar(first_wrong, second_wrong)
    text = (
        f"{opening}{100 * first_wrong.mean():.1f}% against {100 * second_wrong.mean():.1f}%, "
        f"{points(test.difference, test.low, test.high)}. Of {test.n} images {test.only_first} are "
        f"wrong only for {first.name} and {test.only_second} only for {second.name}: "
        f"{verdict(test.p_value)} (exact McNemar test)."
    )
    return Finding(text, {"first": first.name, "second": second.name, "seed": seed, **asdict(test)})


def _compare_seeds(first: RowResult, second: RowResult, seeds: list[int]) -> Finding:
    def pair(key: str) -> list[list[float]]:
        return [[row.runs[seed].result[key] for seed in seeds] for row in (first, second)]

    errors, losses = pair("top1_error"), pair("train_loss")
    error, loss = paired_difference(*errors), paired_difference(*losses)
    (first_error, second_error), (first_loss, second_loss) = (
        map(over_seeds, errors),
        map(over_seeds, losses),
    )
    text = (
        f"{first.name} against {second.name} (mean ± deviation over {len(seeds)} seeds): "
        f"training loss {spread(first_loss, 3)} against {spread(second_loss, 3)}; test error "
        f"{spread(first_error, 1)}% against {spread(second_error, 1)}%, "
        f"{points(error.mean, error.low, error.high)}: {verdict(error.p_value)} "
        "(t-test paired by seed)."
    )
    figures = {"first": first.name, "second": second.name, "seed": seeds}
    return Finding(text, figures | {"top1_error": asdict(error), "train_loss": asdict(loss)})


def points(difference: float, low: float | None, high: float | None) -> str:
    """'1.2 points lower (95% interval of the difference -2.9 to 0.5)', where there is one."""
    size = f"{abs(difference):.1f} points {'higher' if difference > 0 else 'lower'}"
    if round(difference, 1) == 0:
        size = "0.0 points apart"
    if low is None or high is None:
        return size
    return f"{size} (95% interval of the difference {low:+.1f} to {high:+.1f})"


def spread(summary: SeedSummary, digits: int) -> str:
    """'18.2 ± 1.3'."""
    deviation = "" if summary.deviation is None else f" ± {summary.deviation:.{digits}f}"
    return f"{summary.mean:.{digits}f}{deviation}"


def verdict(p_value: float | None) -> str:
    """What a test at the 5% level says, with its p-value."""
    if p_value is None:
        return "no test is possible, the difference is the same for every seed"
    size = "a" if p_value < 0.05 else "no"
    return f"{size} difference beyond chance at the 5% level, {p_text(p_value)}"


def p_text(p_value: float) -> str:
    """'p = 0.031', 'p = 4e-12'; never 'p = 0'."""
    if p_value < 1e-300:
        return "p < 1e-300"
    return f"p = {p_value:.2g}" if p_value < 0.001 else f"p = {p_value:.3f}"


def _caveats(comparisons: list[Finding]) -> list[Finding]:
    """What the tests above do not cover, if it applies."""
    seeds = [finding.figures["seed"] for finding in comparisons if finding.figures]
    sentences = []
    if len(seeds) > 1:
        sentences.append(f"The {len(seeds)} p-values are not corrected for there being several.")
    if any(isinstance(seed, int) for seed in seeds):
        sentences.append(
            "A McNemar test on one run each covers the choice of test images, not of the training "
            "seed."
        )
    return [Finding(" ".join(sentences))] if sentences else []

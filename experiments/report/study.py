"""A study's report: its rows as a table, what their runs say of each other, figures and page."""

from collections.abc import Sequence
from dataclasses import asdict

from experiments.report import box_figure, figures
from experiments.report.findings import findings
from experiments.report.page import Report
from experiments.report.table import Cell, Column, Table, plain
from experiments.report.text import count, error_digits, loss, rounded, with_interval
from experiments.runs.results import RowResult, studies
from experiments.runs.state import STATES

LEGEND = (
    "Errors are in percent of the n test images, each counted once. One seed: error and the 95% "
    "Wilson interval of that run's test errors."
)
SEEDS_LEGEND = (
    "Several seeds: mean over seeds and the 95% t-interval of that mean; below it ± sample "
    "deviation and smallest to largest. Seeds with one and the same error have no interval."
)
COST_LEGEND = (
    "MACs: multiply-adds of one image. Train loss: of the final net on its training images, as in "
    "testing. Images/s and time: training of one run."
)
BOXES_LEGEND = (
    "Rows of boxes: their error and losses are of one box an image, with the class given. It is "
    "wrong where it shares at most half with each true one, over their union; its loss is half the "
    "squared distance from the true one."
)
SEVERAL_LEGEND = (
    "Rows of images of several classes each: their error is 100 minus the mean over classes of the "
    "average precision, and their losses are means over the classes that count."
)
SEEDED_LEGEND = "Time of a seeded net is without that of the net it starts from."

# Raw columns of an error.
ERROR = {
    "error": "percent; mean over seeds",
    "low": "percent; lower end of the interval",
    "high": "percent; upper end of the interval",
    "interval": "what the interval is",
    "deviation": "points of percent; sample deviation over seeds",
    "min": "percent; smallest over seeds",
    "max": "percent; largest over seeds",
}
# Raw columns: key -> what it means. CSV and JSON hold exactly these, unrounded.
RAW = {
    "profile": "data and size the rows were measured at",
    "study": "name of the study",
    "row": "name of the row",
    "architecture": "registered architecture",
    "seed_from": "row whose net starts this one",
    "state": ", ".join(STATES),
    "reason": "why a row stands so",
    "depth": "weight layers",
    "parameters": "trainable parameters",
    "macs": "multiply-adds of one image",
    "seeds": "seeds that have finished",
    "seeds_asked": "number of seeds asked for",
    "n": "test images, each counted once",
    **{f"top{k}_{name}": meaning for k in (1, 5) for name, meaning in ERROR.items()},
    "train_loss": "of the final net on its training images, as in testing; mean over seeds",
    "train_loss_deviation": "sample deviation over seeds",
    "test_loss": "mean over seeds",
    "images_per_s": "images trained on a second; mean over seeds",
    "seconds": "seconds to train one run; mean over seeds",
    "compile_seconds": "seconds to compile; mean over seeds",
    "steps": "training steps",
    "epochs": "training epochs",
    "protocol": "test protocol",
    "devices": "devices trained on",
}

CLASSES, BOXES, SEVERAL = "classes", "boxes", "several classes an image"
# A further raw column, where some row's errors are not of one class an image.
ERROR_OF = {"error_of": f"what a row's errors and losses are of: {CLASSES}, {BOXES} or {SEVERAL}"}


def report(results: Sequence[RowResult], table: Table) -> Report:
    """The report of a study or of several. table: of the same rows."""
    profile = table.document["profile"]
    of_classes = [row for row in results if _error_of(row) == CLASSES]
    runs = [run for row in results for _, run in sorted(row.runs.items())]
    return Report(
        table.title,
        [(profile, "")],
        [table],
        [*figures.draw(of_classes, profile), *box_figure.draw(runs)],
        runs,
    )


def table(results: Sequence[RowResult], title: str, profile: str) -> Table:
    """The table of all rows; one without a finished run has its state, and blanks for figures.

    title: what was studied. profile: data and sizes, e.g. 'demo: scikit-learn digits, 16x16'; it
    stands in every form.
    """
    records = [_record(result, profile) for result in results]
    shown = [
        record | {"runs": [run.folder.name for _, run in sorted(result.runs.items())]}
        for record, result in zip(records, results, strict=True)
    ]
    complete = all(record["state"] == "finished" for record in records)
    several = any(len(record["seeds"]) > 1 for record in records)
    seeded = any(record["seed_from"] for record in records)
    kinds = [_error_of(row) for row in results]
    other_kinds = set(kinds) - {CLASSES}
    for record, kind in zip((*records, *shown), kinds * 2, strict=True):
        if other_kinds:
            record["error_of"] = kind
    legends = (
        SEEDS_LEGEND * several,
        COST_LEGEND,
        SEEDED_LEGEND * seeded,
        BOXES_LEGEND * (BOXES in other_kinds),
        SEVERAL_LEGEND * (SEVERAL in other_kinds),
    )
    computed = findings([row for row in results if _error_of(row) == CLASSES])
    return Table(
        title,
        COLUMNS if complete else [*COLUMNS, STATE],
        {study: [r for r in shown if r["study"] == study] for study in studies(results)},
        origin=[f"Profile: {profile}"],
        notes={
            f"{r['row']}: {r['state']}, {r['reason']}": r["state"] for r in records if r["reason"]
        },
        legend=[" ".join(filter(None, (LEGEND, *legends)))],
        findings=[finding.text for finding in computed],
        document={
            "title": title,
            "profile": profile,
            "columns": RAW | (ERROR_OF if other_kinds else {}),
            "rows": records,
            "findings": [asdict(finding) for finding in computed],
        },
        lines=[record | {"seeds": " ".join(map(str, record["seeds"]))} for record in records],
    )


def _error_of(row: RowResult) -> str:
    """What a row's errors are of: classes, boxes, or several classes an image."""
    return BOXES if row.boxes else SEVERAL if row.several else CLASSES


def _record(result: RowResult, profile: str) -> dict:
    row = result.row
    record = dict.fromkeys(RAW) | {
        "profile": profile,
        "study": row.study,
        "row": row.name,
        "architecture": row.architecture,
        "seed_from": row.seed_from,
        "state": result.state,
        "reason": result.reason or None,
        "seeds": sorted(result.runs),
        "seeds_asked": len(row.runs),
    }
    for key in ("depth", "parameters", "macs", "n", "steps", "epochs", "protocol", "devices"):
        record[key] = result.constant(key)
    for k in (1, 5):
        if error := result.error(k):
            statistics = (
                error.value,
                error.low,
                error.high,
                error.interval or None,
                error.deviation,
            )
            rates = [rate.percent for rate in result.rates(k)] or result.errors()
            extremes = (min(rates), max(rates)) if error.seeds > 1 else (None, None)
            names = (f"top{k}_{name}" for name in ERROR)
            record |= zip(names, statistics + extremes, strict=True)
    for key in ("train_loss", "test_loss", "images_per_s", "seconds", "compile_seconds"):
        summary = result.summary(key)
        record[key] = summary.mean if summary else None
        if key == "train_loss" and summary:
            record["train_loss_deviation"] = summary.deviation
    return record


def _error_cell(record: dict, k: int) -> Cell:
    value, low, high, _, deviation, least, most = (record[f"top{k}_{name}"] for name in ERROR)
    if value is None:
        return Cell()
    digits = error_digits(record["n"])
    below = ""
    if deviation is not None:
        below = f"± {deviation:.{digits}f}, {least:.{digits}f} to {most:.{digits}f}"
    subject = {BOXES: "of boxes", SEVERAL: "100 - mean AP"}.get(record.get("error_of", CLASSES), "")
    below = ", ".join(filter(None, (subject, below)))
    return Cell(value, with_interval(value, low, high, digits), below)


def _loss_cell(record: dict) -> Cell:
    value, deviation = record["train_loss"], record["train_loss_deviation"]
    below = "" if deviation is None else f"± {loss(deviation)}"
    return Cell() if value is None else Cell(value, loss(value), below)


def _seeds_cell(record: dict) -> Cell:
    finished, planned = len(record["seeds"]), record["seeds_asked"]
    return Cell(finished, str(finished) if finished == planned else f"{finished} of {planned}")


def _seconds(seconds: float) -> str:
    return f"{seconds:,.{1 if seconds < 99.95 else 0}f}"


ERRORS = "% [95% interval]"
STATE = Column("state", "", False, plain("state", lambda s: "" if s == "finished" else str(s)))
COLUMNS = [
    Column("net", "", False, plain("row", str)),
    Column("layers", "", True, plain("depth", rounded)),
    Column("params", "", True, plain("parameters", count), drop=4),
    Column("MACs", "", True, plain("macs", count), drop=5),
    Column("seeds", "", True, _seeds_cell, drop=1),
    Column("n", "", True, plain("n", rounded)),
    Column("top-1 error", ERRORS, True, lambda record: _error_cell(record, 1)),
    Column("top-5 error", ERRORS, True, lambda record: _error_cell(record, 5), drop=2),
    Column("train\nloss", "", True, _loss_cell),
    Column("speed", "images/s", True, plain("images_per_s", rounded), drop=6),
    Column("time", "s", True, plain("seconds", _seconds), drop=3),
]

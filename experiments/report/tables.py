"""One table of rows, printed for people (terminal, Markdown, HTML) and for programs (CSV, JSON)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from experiments.report import text
from experiments.report.findings import Finding, findings
from experiments.report.forms import Sheet, markdown, print_sheet
from experiments.report.text import (
    Cell,
    Column,
    count,
    error_digits,
    loss,
    markdown_text,
    number,
    plain,
    whole,
)
from experiments.runs.results import RowResult
from experiments.runs.state import STATES

if TYPE_CHECKING:
    from rich.console import Console

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
    **{f"top{k}_{name}": what for k in (1, 5) for name, what in ERROR.items()},
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


@dataclass(frozen=True)
class Table:
    """Title, profile and records (one dict with the keys of RAW for each row), and findings."""

    title: str
    profile: str
    records: list[dict]
    findings: list[Finding]

    def studies(self) -> dict[str, list[dict]]:
        studies = dict.fromkeys(record["study"] for record in self.records)
        return {study: [r for r in self.records if r["study"] == study] for study in studies}

    def columns(self) -> list[Column]:
        """The columns for people; the state is shown only where a row is not finished."""
        complete = all(record["state"] == "finished" for record in self.records)
        return COLUMNS if complete else [*COLUMNS, STATE]

    def legend(self) -> str:
        several = any(len(record["seeds"]) > 1 for record in self.records)
        seeded = any(record["seed_from"] for record in self.records)
        parts = (LEGEND, SEEDS_LEGEND * several, COST_LEGEND, SEEDED_LEGEND * seeded)
        return " ".join(filter(None, parts))

    def reasons(self) -> list[str]:
        """Why rows failed or wait, a line each."""
        return [f"{r['row']}: {r['state']}, {r['reason']}" for r in self.records if r["reason"]]


def report_table(results: Sequence[RowResult], title: str, profile: str) -> Table:
    """Records of all rows; a row without a finished run has None for every figure."""
    records = [_record(result, profile) for result in results]
    return Table(title, profile, records, findings(results))


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
            found = (error.value, error.low, error.high, error.interval or None, error.deviation)
            rates = [rate.percent for rate in result.rates(k)]
            extremes = (min(rates), max(rates)) if error.seeds > 1 else (None, None)
            names = (f"top{k}_{name}" for name in ERROR)
            record |= zip(names, found + extremes, strict=True)
    for key in ("train_loss", "test_loss", "images_per_s", "seconds", "compile_seconds"):
        summary = result.summary(key)
        record[key] = summary.mean if summary else None
        if key == "train_loss" and summary:
            record["train_loss_deviation"] = summary.deviation
    return record


def _error_cell(record: dict, k: int) -> Cell:
    value, low, high, _, deviation, least, most = (record[f"top{k}_{name}"] for name in ERROR)
    if value is None:
        return Cell(None, "")
    digits = error_digits(record["n"])
    shown = f"{value:.{digits}f}"
    if low is not None:
        shown += f" [{low:.{digits}f}, {high:.{digits}f}]"
    below = ""
    if deviation is not None:
        below = f"± {deviation:.{digits}f}, {least:.{digits}f} to {most:.{digits}f}"
    return Cell(value, shown, below)


def _loss_cell(record: dict) -> Cell:
    deviation = record["train_loss_deviation"]
    below = "" if deviation is None else f"± {loss(deviation)}"
    return Cell(record["train_loss"], loss(record["train_loss"]), below)


def _seeds_cell(record: dict) -> Cell:
    done, asked = len(record["seeds"]), record["seeds_asked"]
    return Cell(done, str(done) if done == asked else f"{done} of {asked}")


ERRORS = "% [95% interval]"
STATE = Column("state", "", False, plain("state", lambda s: "" if s == "finished" else str(s)))
COLUMNS = [
    Column("net", "", False, plain("row", str)),
    Column("layers", "", True, plain("depth", whole)),
    Column("params", "", True, plain("parameters", count), drop=4),
    Column("MACs", "", True, plain("macs", count), drop=5),
    Column("seeds", "", True, _seeds_cell, drop=1),
    Column("n", "", True, plain("n", whole)),
    Column("top-1 error", ERRORS, True, lambda record: _error_cell(record, 1)),
    Column("top-5 error", ERRORS, True, lambda record: _error_cell(record, 5), drop=2),
    Column("train\nloss", "", True, _loss_cell),
    Column("speed", "images/s", True, plain("images_per_s", whole), drop=6),
    Column("time", "s", True, plain("seconds", lambda s: number(s, 1 if s < 99.95 else 0)), drop=3),
]


# Forms for programs


def to_json(table: Table) -> str:
    """All raw figures, the meaning of every key, and the findings. Not finite -> null."""
    return text.to_json(
        {
            "title": table.title,
            "profile": table.profile,
            "columns": RAW,
            "rows": table.records,
            "findings": [asdict(finding) for finding in table.findings],
        }
    )


def to_csv(table: Table) -> str:
    """All raw figures, one line a row; the seeds are separated by spaces, an empty cell is None."""
    return text.to_csv(RAW, (r | {"seeds": " ".join(map(str, r["seeds"]))} for r in table.records))


# Forms for people


def to_markdown(table: Table) -> str:
    """Title, profile, one table a study, legend and findings."""
    below = [*map(markdown_text, table.reasons()), table.legend()]
    if table.findings:
        below.append("\n".join(f"- {markdown_text(finding.text)}" for finding in table.findings))
    above = [f"Profile: **{markdown_text(table.profile)}**"]
    return markdown(table.title, above, table.columns(), table.studies(), below)


def to_terminal(table: Table, console: "Console") -> None:
    """Prints the table on a rich Console, one block a study with the same column widths."""
    told = [line for finding in table.findings for line in (("", ""), (finding.text, ""))]
    sheet = Sheet(
        table.title,
        [table.profile],
        table.columns(),
        table.studies(),
        [(reason, "red" if ": failed" in reason else "") for reason in table.reasons()],
        [(table.legend(), "dim"), *told],
    )
    print_sheet(sheet, console)

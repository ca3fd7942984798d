"""One table of rows, printed for people (terminal, Markdown, HTML) and for programs (CSV, JSON)."""

import csv
import io
import json
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from experiments.report.findings import Finding
from experiments.runs.results import RowResult
from experiments.runs.state import STATES

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

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
    "top1_error": "percent; mean over seeds",
    "top1_low": "percent; lower end of the interval",
    "top1_high": "percent; upper end of the interval",
    "top1_interval": "what the interval is",
    "top1_deviation": "points of percent; sample deviation over seeds",
    "top1_min": "percent; smallest over seeds",
    "top1_max": "percent; largest over seeds",
    "top5_error": "percent; mean over seeds",
    "top5_low": "percent; lower end of the interval",
    "top5_high": "percent; upper end of the interval",
    "top5_interval": "what the interval is",
    "top5_deviation": "points of percent; sample deviation over seeds",
    "top5_min": "percent; smallest over seeds",
    "top5_max": "percent; largest over seeds",
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
class Cell:
    """A figure for people: its raw value, its text, and a second line for several seeds."""

    value: object
    text: str
    below: str = ""


@dataclass(frozen=True)
class Column:
    """A column for people; `drop` > 0: left out first (highest number first) on a narrow screen.

    group: what this column and its neighbours of the same group are parts of.
    """

    header: str
    unit: str
    right: bool
    cell: Callable[[dict], Cell]
    drop: int = 0
    group: str = ""


@dataclass(frozen=True)
class Table:
    """Title, profile and records (one dict with the keys of RAW for each row), and findings."""

    title: str
    profile: str
    records: list[dict]
    findings: list[Finding]

    def studies(self) -> dict[str, list[dict]]:
        grouped: dict[str, list[dict]] = {}
        for record in self.records:
            grouped.setdefault(record["study"], []).append(record)
        return grouped

    def columns(self) -> list[Column]:
        """The columns for people; the state is shown only where a row is not finished."""
        complete = all(record["state"] == "finished" for record in self.records)
        return COLUMNS if complete else [*COLUMNS, STATE]

    def legend(self) -> str:
        parts = [LEGEND]
        if any(len(record["seeds"]) > 1 for record in self.records):
            parts.append(SEEDS_LEGEND)
        parts.append(COST_LEGEND)
        if any(record["seed_from"] for record in self.records):
            parts.append(SEEDED_LEGEND)
        return " ".join(parts)

    def reasons(self) -> list[str]:
        """Why rows failed or wait, a line each."""
        return [f"{r['row']}: {r['state']}, {r['reason']}" for r in self.records if r["reason"]]


def make_table(
    results: Sequence[RowResult], title: str, profile: str, findings: Sequence[Finding] = ()
) -> Table:
    """Records of all rows; a row without a finished run has None for every figure."""
    records = [_record(result, profile) for result in results]
    return Table(title, profile, records, list(findings))


def _record(result: RowResult, profile: str) -> dict:
    row = result.row
    record = dict.fromkeys(RAW)
    record |= {
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
        record |= _error_entries(result, k)
    for key in ("train_loss", "test_loss", "images_per_s", "seconds", "compile_seconds"):
        summary = result.summary(key)
        record[key] = summary.mean if summary else None
        if key == "train_loss" and summary:
            record["train_loss_deviation"] = summary.deviation
    return record


def _error_entries(result: RowResult, k: int) -> dict:
    error = result.error(k)
    if error is None:
        return {}
    entries: dict[str, Any] = {"error": error.percent, "low": error.low, "high": error.high}
    entries["interval"] = error.interval or None
    if error.seeds > 1:
        entries |= {
            "deviation": error.deviation,
            "min": error.minimum,
            "max": error.maximum,
        }
    return {f"top{k}_{name}": value for name, value in entries.items()}


# Numbers for people


def count(value: float | None) -> str:
    """75.3 k, 0.27 M, 40.6 M, 19.6 G: three figures at most."""
    if value is None:
        return ""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= (size / 10 if unit == "M" else size):
            scaled = value / size
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:,.{digits}f} {unit}"
    return f"{value:.0f}"


def number(value: float | None, digits: int) -> str:
    """Fixed digits with thousands separators; '' for None, 'nan' or 'inf' as they are."""
    return "" if value is None else f"{value:,.{digits}f}"


def loss(value: float | None) -> str:
    """Three decimals, for small losses four, for tiny ones 4e-06."""
    if value is None or not math.isfinite(value) or value == 0 or abs(value) >= 0.01:
        return number(value, 3)
    return f"{value:.4f}" if abs(value) >= 0.0005 else f"{value:.0e}"


def error_digits(n: int) -> int:
    """Decimals of an error in percent: one for some hundreds of images, two for thousands."""
    return 1 if n < 5000 else 2


def _error_cell(record: dict, key: str) -> Cell:
    value = record[f"{key}_error"]
    if value is None:
        return Cell(None, "")
    digits = error_digits(record["n"])
    low, high = record[f"{key}_low"], record[f"{key}_high"]
    text = f"{value:.{digits}f}"
    if low is not None:
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    deviation = record[f"{key}_deviation"]
    if deviation is None:
        return Cell(value, text)
    least, most = record[f"{key}_min"], record[f"{key}_max"]
    below = f"± {deviation:.{digits}f}, {least:.{digits}f} to {most:.{digits}f}"
    return Cell(value, text, below)


def _loss_cell(record: dict) -> Cell:
    deviation = record["train_loss_deviation"]
    below = "" if deviation is None else f"± {loss(deviation)}"
    return Cell(record["train_loss"], loss(record["train_loss"]), below)


def _seeds_cell(record: dict) -> Cell:
    done, asked = len(record["seeds"]), record["seeds_asked"]
    return Cell(done, str(done) if done == asked else f"{done} of {asked}")


def _plain_cell(key: str, show: Callable[[Any], str]) -> Callable[[dict], Cell]:
    return lambda record: Cell(record[key], show(record[key]))


def _whole(value: float | None) -> str:
    return number(value, 0)


def _seconds(value: float | None) -> str:
    return number(value, 1 if value is not None and value < 99.95 else 0)


NAME = Column("net", "", False, _plain_cell("row", str))
STYLES = {"failed": "red", "finished": "", "measured": "", "partly": ""}  # of a row, by state
STATE = Column(
    "state", "", False, _plain_cell("state", lambda s: "" if s == "finished" else str(s))
)
COLUMNS = [
    NAME,
    Column("layers", "", True, _plain_cell("depth", _whole)),
    Column("params", "", True, _plain_cell("parameters", count), drop=4),
    Column("MACs", "", True, _plain_cell("macs", count), drop=5),
    Column("seeds", "", True, _seeds_cell, drop=1),
    Column("n", "", True, _plain_cell("n", _whole)),
    Column("top-1 error", "% [95% interval]", True, lambda record: _error_cell(record, "top1")),
    Column(
        "top-5 error", "% [95% interval]", True, lambda record: _error_cell(record, "top5"), drop=2
    ),
    Column("train\nloss", "", True, _loss_cell),
    Column("speed", "images/s", True, _plain_cell("images_per_s", _whole), drop=6),
    Column("time", "s", True, _plain_cell("seconds", _seconds), drop=3),
]


# Forms for programs


def to_json(table: Table) -> str:
    """All raw figures, the meaning of every key, and the findings. Not finite -> null."""
    document = {
        "title": table.title,
        "profile": table.profile,
        "columns": RAW,
        "rows": table.records,
        "findings": [asdict(finding) for finding in table.findings],
    }
    return json.dumps(finite(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The value with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_csv(table: Table) -> str:
    """All raw figures, one line a row; the seeds are separated by spaces, an empty cell is None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(RAW), lineterminator="\n")
    writer.writeheader()
    for record in table.records:
        writer.writerow(record | {"seeds": " ".join(map(str, record["seeds"]))})
    return text.getvalue()


# Forms for people


def to_markdown(table: Table) -> str:
    """Title, profile, one table a study, legend and findings."""
    parts = [f"# {markdown_text(table.title)}", f"Profile: **{markdown_text(table.profile)}**"]
    columns, several = table.columns(), len(table.studies()) > 1
    for study, records in table.studies().items():
        if several:
            parts.append(f"## {markdown_text(study)}")
        parts.append(markdown_table(columns, records))
    parts += [f"{markdown_text(reason)}" for reason in table.reasons()]
    parts.append(table.legend())
    if table.findings:
        parts.append("\n".join(f"- {markdown_text(finding.text)}" for finding in table.findings))
    return "\n\n".join(parts) + "\n"


def markdown_table(columns: Sequence[Column], records: Sequence[dict]) -> str:
    """Header, rule, and one line a record."""
    headers = [f"{column.header}, {column.unit}".rstrip(", ") for column in columns]
    headers = [header.replace("\n", " ") for header in headers]
    groups = [f"{column.group}: " if column.group else "" for column in columns]
    headers = [group + header for group, header in zip(groups, headers, strict=True)]
    rules = ["---:" if column.right else "---" for column in columns]
    lines = [headers, rules]
    for record in records:
        cells = [column.cell(record) for column in columns]
        lines.append([markdown_text("<br>".join(filter(None, (c.text, c.below)))) for c in cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown_text(text: str) -> str:
    """Text that breaks no table."""
    return text.replace("|", "\\|").replace("\n", " ")


def to_terminal(table: Table, console: "Console") -> None:
    """Prints the table on a rich Console, one block a study with the same column widths.

    A file or pipe gets all columns. A screen too narrow loses those least missed, and is told so.
    """
    from rich.text import Text

    columns, dropped, gap = table.columns(), list[str](), 2
    if console.is_terminal:
        columns, dropped, gap = fit(columns, table.records, console.width)
    wide = widths(columns, table.records)
    prose = prose_width(console, wide, gap)

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style), width=prose)

    say(table.title, "bold")
    say(table.profile, "italic")
    for study, records in table.studies().items():
        console.print()
        if len(table.studies()) > 1:
            say(study, "bold")
        print_rows(console, columns, records, wide, gap)
    console.print()
    for reason in table.reasons():
        say(reason, "red" if ": failed" in reason else "")
    if dropped:
        say(f"Left out for lack of room: {', '.join(dropped)}.", "dim")
    say(table.legend(), "dim")
    for finding in table.findings:
        console.print()
        say(finding.text)


def prose_width(console: "Console", widths: Sequence[int], gap: int) -> int:
    """Of the text around a table: as wide as it, within reason."""
    width = sum(widths) + gap * (len(widths) - 1)
    return min(max(width, 80), console.width if console.is_terminal else 120)


def fit(
    columns: Sequence[Column], records: Sequence[dict], screen: int
) -> tuple[list[Column], list[str], int]:
    """(columns, headers left out, spaces between columns) that a screen has room for."""
    columns, dropped = list(columns), list[str]()
    while True:
        room = screen - sum(widths(columns, records))
        for gap in (2, 1):
            if gap * (len(columns) - 1) <= room:
                return columns, dropped, gap
        least = max(columns, key=lambda column: column.drop)
        if not least.drop:
            return columns, dropped, 1
        columns.remove(least)
        dropped.append(least.header)


def widths(columns: Sequence[Column], records: Sequence[dict]) -> list[int]:
    """Characters each column needs for all studies, so that their blocks line up."""
    found = []
    for column in columns:
        lines = [*column.header.split("\n"), column.unit]
        for cell in map(column.cell, records):
            lines += [*cell.text.split("\n"), *cell.below.split("\n")]
        found.append(max(map(len, lines)))
    return found


def print_rows(
    console: "Console",
    columns: Sequence[Column],
    records: Sequence[dict],
    widths: Sequence[int],
    gap: int,
) -> None:
    """Prints the columns of these widths, `gap` spaces apart, below the names of their groups."""
    from rich.segment import Segments
    from rich.text import Text

    for line in _group_lines(columns, widths, gap):
        console.print(Text(line, "bold"), soft_wrap=True)
    width = sum(widths) + gap * (len(widths) - 1)
    shown = _rich_table(columns, records, widths, gap)
    # `print(width=...)` would cap it at the width that a pipe claims to have.
    segments = Segments(console.render(shown, console.options.update(width=width)))
    console.print(segments, soft_wrap=True, end="")


def _group_lines(columns: Sequence[Column], widths: Sequence[int], gap: int) -> list[str]:
    """The names of groups in the middle above their columns, as many lines as the longest takes."""
    blocks: list[tuple[int, list[str]]] = []
    sized = zip(columns, widths, strict=True)
    for group, found in groupby(sized, key=lambda pair: pair[0].group):
        parts = [width for _, width in found]
        span = sum(parts) + gap * (len(parts) - 1)
        blocks.append((span, textwrap.wrap(group, span)))
    tall = max(len(lines) for _, lines in blocks)
    return [
        (" " * gap)
        .join(([""] * (tall - len(lines)) + lines)[number].center(span) for span, lines in blocks)
        .rstrip()
        for number in range(tall)
    ]


def _rich_table(
    columns: Sequence[Column], records: Sequence[dict], widths: Sequence[int], gap: int
) -> "RichTable":
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(
        box=box.SIMPLE_HEAD,  # its divider is one space
        show_edge=False,
        pad_edge=False,
        padding=(0, gap - 1, 0, 0),
        header_style="bold",
    )
    for column, width in zip(columns, widths, strict=True):
        header = Text("\n".join(filter(None, (column.header, column.unit))))
        shown.add_column(
            header, justify="right" if column.right else "left", min_width=width, no_wrap=True
        )
    for record in records:
        style = STYLES.get(record["state"], "dim")
        cells = [column.cell(record) for column in columns]
        shown.add_row(
            *(Text("\n".join(filter(None, (cell.text, cell.below)))) for cell in cells), style=style
        )
    return shown

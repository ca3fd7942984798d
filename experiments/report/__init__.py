"""From finished run folders to tables, findings, figures and one HTML page.

    results = collect(rows)                                 # Row -> RowResult, read once
    render_terminal(results, Console(), title, profile)
    paths = write_report(results, folder, title, profile)

Nothing here trains, tests or guesses: a row without a finished run shows its state.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.report import figures, page
from experiments.report.findings import Finding, findings
from experiments.report.tables import report_table, to_csv, to_json, to_markdown, to_terminal
from experiments.runs.results import Row, RowResult, collect
from experiments.runs.runs import RunError, write_text

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Finding",
    "ReportError",
    "Row",
    "collect",
    "findings",
    "render_terminal",
    "report_table",
    "write_files",
    "write_report",
]


class ReportError(RuntimeError):
    """A report that can't be written; the message says where and why."""

    user_error = True


def render_terminal(
    results: Sequence[RowResult], console: "Console", title: str, profile: str
) -> None:
    """Prints the table and the findings on a rich Console."""
    to_terminal(report_table(results, title, profile), console)


def write_report(
    results: Sequence[RowResult], folder: Path | str, title: str, profile: str
) -> dict[str, Path]:
    """Writes the report into `folder`, which is made, each file at once or not at all.

    title: what was studied. profile: data and sizes, e.g. 'demo: scikit-learn digits, 16x16'; it
    stands in every file.

    Returns name -> path: 'report' (HTML), 'markdown', 'csv', 'json', and 'figures/NAME' for each
    figure that could be drawn. Raises ReportError where a file can't be written.
    """
    folder = Path(folder)
    table, drawn = report_table(results, title, profile), figures.draw(results, profile)
    contents = {
        "markdown": ("table.md", to_markdown(table)),
        "csv": ("table.csv", to_csv(table)),
        "json": ("table.json", to_json(table)),
    }
    whole = page.page(table, drawn, results, folder)
    return write_files(folder, contents, drawn, whole, figures.KINDS)


def write_files(
    folder: Path,
    contents: Mapping[str, tuple[str, str]],
    drawn: Iterable[figures.Figure],
    whole: str,
    kinds: Iterable[str],
) -> dict[str, Path]:
    """Writes name -> (file, text), figures and the page, and returns name -> path.

    Figures of these kinds (the first word of the file's name) that are no longer there are removed.
    Raises ReportError where a file can't be written.
    """
    svgs = {f"figures/{f.name}": (f"figures/{f.name}.svg", f.svg) for f in drawn if f.svg}
    paths, known = {}, set(kinds)
    try:
        for name, (file, text) in {**contents, **svgs, "report": ("report.html", whole)}.items():
            paths[name] = folder / file
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            write_text(paths[name], text)
        for path in (folder / "figures").glob("*.svg"):  # of rows no longer in the report
            if path not in paths.values() and path.stem.partition("-")[0] in known:
                path.unlink()
    except (OSError, RunError) as error:
        reason = error.__cause__ or error
        reason = getattr(reason, "strerror", None) or reason
        raise ReportError(
            f"the report can't be written into {folder} ({reason}); "
            "nothing else is lost: make room or make the folder writable, and run "
            "`cnn-depth report` or `cnn-depth table` again"
        ) from error
    return paths

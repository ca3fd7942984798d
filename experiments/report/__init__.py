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
from experiments.report.tables import (
    Table,
    make_table,
    to_csv,
    to_json,
    to_markdown,
    to_terminal,
)
from experiments.runs.results import Row, RowResult, RunResult, collect
from input_pipeline.whole_files import whole_file

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Finding",
    "ReportError",
    "Row",
    "RowResult",
    "RunResult",
    "Table",
    "collect",
    "findings",
    "render_terminal",
    "report_table",
    "save_figure",
    "write_files",
    "write_report",
]


class ReportError(RuntimeError):
    """A report that can't be written; the message says where and why."""

    user_error = True


def report_table(results: Sequence[RowResult], title: str, profile: str) -> Table:
    """The table with its findings; `tables.to_json` and its siblings print it."""
    return make_table(results, title, profile, findings(results))


def render_terminal(
    results: Sequence[RowResult], console: "Console", title: str, profile: str
) -> None:
    """Prints the table and the findings on a rich Console."""
    to_terminal(report_table(results, title, profile), console)


def write_report(
    results: Sequence[RowResult], folder: Path | str, title: str, profile: str
) -> dict[str, Path]:
    """Writes the report into `folder`, each file at once or not at all.

    Args:
        results: what `collect` read.
        folder: made if it is not there.
        title: what was studied.
        profile: data and sizes, e.g. 'demo: scikit-learn digits, 16x16'; stands in every file.

    Returns:
        name -> path: 'report' (HTML), 'markdown', 'csv', 'json', and 'figures/NAME' for each
        figure that could be drawn.

    Raises:
        ReportError: a file can't be written.
    """
    folder = Path(folder)
    table, drawn = report_table(results, title, profile), figures.draw(results, profile)
    contents = {
        "markdown": ("table.md", to_markdown(table)),
        "csv": ("table.csv", to_csv(table)),
        "json": ("table.json", to_json(table)),
    }
    for figure in drawn:
        if figure.svg:
            contents[f"figures/{figure.name}"] = (f"figures/{figure.name}.svg", figure.svg)
    contents["report"] = ("report.html", page.page(table, drawn, results, folder))
    return write_files(folder, contents, figures.KINDS)


def save_figure(results: Sequence[RowResult], profile: str, name: str, path: Path | str) -> None:
    """Saves one figure ('depth', 'vgg_depth', 'curves' or 'seeding') as PNG or SVG, by its ending.

    Raises:
        ValueError: no such figure or ending, or its rows are missing.
    """
    figures.save(results, profile, name, path)


def write_files(
    folder: Path, contents: Mapping[str, tuple[str, str]], kinds: Iterable[str]
) -> dict[str, Path]:
    """Writes name -> (file, text), each at once or not at all, and returns name -> path.

    Figures of these kinds (the first word of the file's name) that are no longer there are removed.

    Raises:
        ReportError: a file can't be written.
    """
    paths, known = {}, set(kinds)
    try:
        for name, (file, text) in contents.items():
            _write(folder / file, text)
            paths[name] = folder / file
        for path in (folder / "figures").glob("*.svg"):  # of rows no longer in the report
            if path not in paths.values() and path.stem.partition("-")[0] in known:
                path.unlink()
    except OSError as error:
        raise ReportError(
            f"the report can't be written into {folder} ({error.strerror or error}); "
            "nothing else is lost: make room or make the folder writable, and run "
            "`cnn-depth report` or `cnn-depth table` again"
        ) from error
    return paths


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as stream:
        stream.write(text.encode())

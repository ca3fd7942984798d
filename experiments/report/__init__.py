"""From finished runs to tables, findings, figures and one HTML page.

    table = study.table(collect(rows), title, profile)      # or paper.table(a TableResult)
    forms.to_terminal(table, Console())
    paths = write(study.report(collect(rows), title, profile), folder)

Nothing here trains, tests or guesses: a row that was not measured has blanks and shows its state.
"""

from pathlib import Path

from experiments.report.forms import FILES
from experiments.report.page import Report, page
from experiments.runs.runs import RunError, write_text

__all__ = ["ReportError", "write"]


class ReportError(RuntimeError):
    """A report that can't be written; the message says where and why."""

    user_error = True


def write(report: Report, folder: Path) -> dict[str, Path]:
    """Writes tables, figures and a page into `folder`, which is made, each file at once.

    Returns name -> path: 'report' (HTML), 'TABLE/FORM' of each table and form, and 'figures/NAME'
    of each figure that could be drawn. Figures of such kinds (the first word of their names) that
    are no longer there are removed. Raises ReportError where a file can't be written.
    """
    contents = {
        f"{table.name}/{form}": (f"{table.name}.{ending}", make(table))
        for table in report.tables
        for form, (ending, make) in FILES.items()
    }
    contents |= {f"figures/{f.name}": (f"figures/{f.name}.svg", f.svg) for f in report.figures}
    kinds = {figure.name.partition("-")[0] for figure in report.figures}
    contents["report"] = ("report.html", page(report, folder))
    paths = {}
    try:
        for name, (file, text) in contents.items():
            if not text:  # a figure that was not drawn
                continue
            paths[name] = folder / file
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            write_text(paths[name], text)
        for path in (folder / "figures").glob("*.svg"):  # of rows no longer in the report
            if path not in paths.values() and path.stem.partition("-")[0] in kinds:
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

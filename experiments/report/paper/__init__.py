"""Papers' tables with what was measured, for the terminal, as files and as a page.

    render(result, Console())                       # a TableResult
    paths = write(results, folder, title)           # all tables of a paper, in one profile

Nothing here trains or tests; what was not measured is blank, and the row's state says why.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.papers.measured import TableResult
from experiments.report import write_files
from experiments.report.paper import document, figures, forms, page
from experiments.report.text import to_json

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["render", "write"]

# name -> (ending of the file, what makes it of a table's document)
FORMS = {
    "markdown": ("md", forms.to_markdown),
    "csv": ("csv", document.to_csv),
    "latex": ("tex", forms.to_latex),
    "json": ("json", to_json),
}


def render(result: TableResult, console: "Console") -> None:
    """Prints a table on a rich Console."""
    forms.to_terminal(document.document(result), console)


def write(results: Sequence[TableResult], folder: Path | str, title: str) -> dict[str, Path]:
    """Writes tables, figures and a page into `folder`, which is made, each file at once.

    results: all tables of a paper, in one profile. title: the paper.

    Returns name -> path: 'report' (HTML), 'TABLE/markdown', 'TABLE/csv', 'TABLE/latex' and
    'TABLE/json' of each table, and 'figures/NAME' of each figure that could be drawn.
    """
    folder = Path(folder)
    drawn = figures.draw(results)
    documents = [document.document(result) for result in results]
    contents = {
        f"{table['table']}/{form}": (f"{table['table']}.{ending}", make(table))
        for table in documents
        for form, (ending, make) in FORMS.items()
    }
    whole = page.page(documents, results, drawn, folder, title)
    return write_files(folder, contents, drawn, whole, figures.KINDS)

"""The papers' printed results: as CSV with their sources, and as tables that can be run.

Each paper's module has `TITLE` and `tables()`; `table.py` says what a table is made of.
"""

import importlib
from collections.abc import Iterable

from experiments.papers.table import Table

PAPERS = ("vgg", "resnet", "alexnet", "googlenet", "nin", "lenet", "dan_net", "goyal")


def title(paper: str) -> str:
    """The paper's short name, authors and year."""
    return importlib.import_module(f"experiments.papers.{paper}").TITLE


def tables() -> dict[str, Table]:
    """Every table by its name, in the order of the papers and of their tables."""
    all_tables = [
        table
        for paper in PAPERS
        for table in importlib.import_module(f"experiments.papers.{paper}").tables()
    ]
    return {table.name: table for table in all_tables}


def named(names: Iterable[str]) -> list[Table]:
    """The tables of these names, each once; the name of a paper stands for all of its tables.

    Raises ConfigError for a name that is neither, with the nearest one.
    """
    table_by_name = tables()
    selected: dict[str, Table] = {}
    for name in names:
        of_paper = {t.name: t for t in table_by_name.values() if t.paper == name}
        if name in table_by_name:
            of_paper = {name: table_by_name[name]}
        if not of_paper:
            from experiments.config import one_of  # with JAX, which takes seconds to import

            one_of(name, [*table_by_name, *PAPERS], "table")
        selected.update(of_paper)
    return list(selected.values())

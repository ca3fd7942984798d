"""What a table is, a study's or a paper's, before it has a form."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class Cell:
    """A figure for people."""

    value: object = None  # unrounded
    text: str = ""
    below: str = ""  # a second line, such as an interval

    def joined(self, between: str) -> str:
        return between.join(filter(None, (self.text, self.below)))


@dataclass(frozen=True)
class Column:
    """A column for people."""

    header: str
    unit: str
    right: bool  # whether cells are aligned to the right
    cell: Callable[[dict[str, Any]], Cell]  # of a record
    drop: int = 0  # above 0: a narrow screen leaves the column out, the highest number first
    # What it and its neighbours of the same group are parts of, such as what was printed and what
    # was measured of one figure.
    group: str = ""
    wide: bool = False  # in Markdown and on the page only


def grouped(columns: Iterable[Column]) -> list[tuple[str, list[Column]]]:
    """(group, its columns) for each run of neighbouring columns of one group."""
    return [(group, list(members)) for group, members in groupby(columns, lambda c: c.group)]


def plain(key: str, show: Callable[[Any], str]) -> Callable[[dict[str, Any]], Cell]:
    """The cell of a record's entry; an empty one where it is None."""
    return lambda record: Cell(record[key], "" if record[key] is None else show(record[key]))


def one_block(records: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The blocks of a table whose records are all measured, and name no runs."""
    return {"": [record | {"state": "finished", "runs": []} for record in records]}


@dataclass(frozen=True)
class Table:
    """Columns for people, the records that they make cells of, and what stands around them."""

    title: str
    columns: Sequence[Column]
    # Name -> records, with their `state` and the names of their `runs`. The name of a single block
    # is '' or that of its study.
    blocks: Mapping[str, Sequence[dict[str, Any]]]
    name: str = "table"  # of its files
    origin: Sequence[str] = ()  # whose figures these are, a line each
    # What has to be known of rows -> the state that it explains.
    notes: Mapping[str, str] = field(default_factory=dict)
    legend: Sequence[str] = ()  # what signs and figures are
    caveat: str = ""  # what the table can't say
    findings: Sequence[str] = ()  # sentences that were computed from its figures
    document: Mapping[str, Any] = field(default_factory=dict)  # all of it unrounded, for JSON
    lines: Sequence[Mapping[str, Any]] = ()  # of its CSV

    @property
    def remarks(self) -> list[str]:
        """What stands below the table, less notes and findings."""
        return [line for line in (*self.legend, self.caveat) if line]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of all blocks."""
        return [record for block in self.blocks.values() for record in block]

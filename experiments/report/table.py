"""What a table is, a study's or a paper's, before it has a form."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class Cell:
    """A figure for people: its raw value, its text, and a second line for what belongs to it."""

    value: object = None
    text: str = ""
    below: str = ""

    def joined(self, between: str) -> str:
        return between.join(filter(None, (self.text, self.below)))


@dataclass(frozen=True)
class Column:
    """A column for people; `drop` > 0: left out first (highest number first) on a narrow screen.

    group: what this column and its neighbours of the same group are parts of, such as what was
    printed and what was measured of one figure. wide: in Markdown and on the page only.
    """

    header: str
    unit: str
    right: bool
    cell: Callable[[dict[str, Any]], Cell]
    drop: int = 0
    group: str = ""
    wide: bool = False


def grouped(columns: Iterable[Column]) -> list[tuple[str, list[Column]]]:
    """Columns that follow each other in a group, below its name."""
    return [(group, list(found)) for group, found in groupby(columns, lambda c: c.group)]


def plain(key: str, show: Callable[[Any], str]) -> Callable[[dict[str, Any]], Cell]:
    """The cell of a record's entry; an empty one where it is None."""
    return lambda record: Cell(record[key], "" if record[key] is None else show(record[key]))


@dataclass(frozen=True)
class Table:
    """Columns for people, the records that they make cells of, and what stands around them.

    blocks: name -> records, with their `state` and the names of their `runs`; one block has no
    name, or that of its study. name: of its files. origin: whose figures these are, a line each.
    notes: why rows stand so, and what has to be known of them, each with the state it explains.
    legend: what signs and figures are. caveat: what the table can't say. findings: sentences that
    were computed from its figures. document: all of it unrounded, for JSON. lines: of its CSV.
    """

    title: str
    columns: Sequence[Column]
    blocks: Mapping[str, Sequence[dict[str, Any]]]
    name: str = "table"
    origin: Sequence[str] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    legend: Sequence[str] = ()
    caveat: str = ""
    findings: Sequence[str] = ()
    document: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[Mapping[str, Any]] = ()

    @property
    def remarks(self) -> list[str]:
        """What stands below the table, less notes and findings."""
        return [line for line in (*self.legend, self.caveat) if line]

    @property
    def records(self) -> list[dict[str, Any]]:
        """Of all blocks."""
        return [record for block in self.blocks.values() for record in block]

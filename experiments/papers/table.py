"""What a table is: rows that pair what a paper printed with the runs and tests that measure it."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Printed:
    """A figure as a paper prints it."""

    text: str  # with its digits, and its words (`>60`, `about 2`)
    value: float  # the number in it
    std: float | None = None  # the deviation printed beside it
    source: str = ""  # where it was read
    note: str = ""  # what has to be known of it


@dataclass(frozen=True)
class Net:
    """A row of a study, trained and tested."""

    row: str  # of the table's study, or of `study`
    protocol: str = "center"
    # Test scales Q as the paper has them at its crop, `256,384`, or a word of `protocols.SCALES`;
    # None is the row's own.
    scales: str | None = None
    members: int = 1  # networks that differ in their seed only, whose posteriors are averaged
    study: str = ""


@dataclass(frozen=True)
class Error:
    """Test error of a network, or of several whose posteriors are averaged."""

    nets: tuple[Net, ...]


@dataclass(frozen=True)
class Difference:
    """Test error of the first network minus the second's, in points of percent."""

    first: Net
    second: Net


@dataclass(frozen=True)
class EpochsRatio:
    """How many times as many epochs `slow` takes as `fast` to a training error.

    Of each, the fewest epochs count: its networks differ in their learning rates.
    """

    slow: tuple[Net, ...]
    fast: tuple[Net, ...]
    error: float  # percent


@dataclass(frozen=True)
class AfterEpochs:
    """Errors that a network's training logged after so many epochs."""

    net: Net
    epochs: float


@dataclass(frozen=True)
class Count:
    """Parameters and multiply-adds of an architecture at the paper's size: nothing is trained."""

    arch: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """Images that a head on networks' features learns from and is tested on.

    combine, precision, train_per_class, test_per_class and splits are as in `HeadSettings`.
    """

    scales: str  # of the features, as the paper has them at its crop
    combine: str
    profiles: tuple[str, ...] = ("paper",)  # that use these images
    # In the folder of `table --sets`; '' are the images of the networks' own set, of the classes
    # that they were not trained on.
    place: str = ""
    name: str = ""  # of the set in `place`
    precision: Literal["all_points", "eleven_points"] = "all_points"
    train_per_class: int | None = None
    test_per_class: int | None = None
    splits: int = 1


@dataclass(frozen=True)
class Transferred:
    """The figures of a linear SVM on features of networks, side by side.

    Each image's features are divided by their length.
    """

    nets: tuple[Net, ...]
    on: Mapping[str, tuple[Target, ...]]  # column -> images, one a profile at most
    layer: str  # whose output the features are

    def target(self, key: str, profile: str) -> Target | None:
        """The images of a column in a profile."""
        return next((target for target in self.on.get(key, ()) if profile in target.profiles), None)


@dataclass(frozen=True)
class Located:
    """Top-5 error of the boxes of networks over whole images, merged (`localise.localise`).

    Classes are said by the classifiers that the localisers start from.
    """

    nets: tuple[Net, ...]  # localisers with their scales


Measured = Error | Difference | EpochsRatio | AfterEpochs | Count | Transferred | Located


@dataclass(frozen=True)
class Column:
    """A figure that a table has of each row."""

    key: str  # of the rows' `printed`
    header: str
    unit: str  # `%`, `points`, `M`, `G` or `times`
    # `top1`, `top5`, `params`, `macs`, or `located` (the top-5 error of boxes); of a training's log
    # `seen` (all training images) or `test`; of heads `ap` or `recall`, where more is better. '' is
    # printed only: nobody else has the labels of that test set.
    what: str


TOP1 = Column("top1", "top-1 error", "%", "top1")
TOP5 = Column("top5", "top-5 error", "%", "top5")
HEADS = ("ap", "recall")  # of `what`
TEST5 = Column("test5", "top-5 error, test server", "%", "")
# Column -> what the CSVs call its figures: metric and split.
ERRORS = {
    "top1": ("top1_error", "val"),
    "top5": ("top5_error", "val"),
    "test5": ("top5_error", "test"),
}
OTHERS = "another group's system"


@dataclass(frozen=True)
class Row:
    """A row of a table: what the paper printed of it, and what measures it here."""

    name: str
    printed: Mapping[str, Printed]  # by column; empty where the paper gives a curve only
    measured: Measured | None = None  # None for what this software can't produce
    note: str = ""  # why it can't be measured, or what differs
    runs: int = 1  # whose mean the paper prints; profiles `paper` and `cifar` train as many
    costly: tuple[str, ...] = ()  # profiles in which the row is run on request only
    # Profiles in which it can't be measured or told apart from another row; `note` may say why.
    not_in: tuple[str, ...] = ()
    # Whether it is another paper's row, which is run on request only and shown where it is there.
    borrowed: bool = False

    @property
    def nets(self) -> tuple[Net, ...]:
        """The networks it needs."""
        m = self.measured
        if isinstance(m, Error | Transferred | Located):
            return m.nets
        if isinstance(m, Difference):
            return (m.first, m.second)
        if isinstance(m, AfterEpochs):
            return (m.net,)
        return (*m.slow, *m.fast) if isinstance(m, EpochsRatio) else ()


@dataclass(frozen=True)
class Table:
    """A table, or the curves of a figure, of a paper."""

    name: str  # such as `vgg-3`
    title: str
    study: str  # whose rows the nets are
    dataset: str  # that the printed figures are of
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    crop: int = 224  # the paper's, pixels; scales are in ratio to it
    notes: tuple[str, ...] = ()  # a line each, shown below
    trained_on: str = ""  # the set that the nets are trained on, where that is another set
    small: str = ""  # the study of the nets in other profiles than `paper`, where it is another
    # Studies with an argument `more`, the folder of another set -> its name in `table --sets`.
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def paper(self) -> str:
        return self.name.rpartition("-")[0]

    def study_of(self, net: Net, profile: str) -> str:
        """Whose row a net is in a profile."""
        return net.study or (self.study if profile == "paper" else self.small or self.study)


@cache
def records(file: str) -> tuple[dict[str, str], ...]:
    """The lines of one of the CSVs here."""
    with (FOLDER / f"{file}.csv").open(newline="") as opened:
        return tuple(csv.DictReader(opened))


def lines(file: str, **where: str) -> list[dict[str, str]]:
    """The lines of a CSV that have these values, such as `metric="top1_error"`."""
    return [r for r in records(file) if all(r[key] == value for key, value in where.items())]


def printed(file: str, **where: str) -> Printed:
    """The figure of the line of a CSV with these values. ValueError: there is none, or several."""
    matches = lines(file, **where)
    if len(matches) != 1:
        raise ValueError(f"{len(matches)} lines of {file}.csv have {where}; expected one")
    (line,) = matches
    number = line["value"].removeprefix("about").strip().lstrip("<>")
    return Printed(
        text=line["value"],
        value=float(number),
        std=float(line["std"]) if line["std"] else None,
        source=line["verified"],
        note=line["note"],
    )


def errors(file: str, **where: str) -> dict[str, Printed]:
    """The errors that a CSV has of the lines with these values, by the key of their column."""
    available = {(r["metric"], r["split"]) for r in lines(file, **where)}
    return {
        key: printed(file, metric=metric, split=split, **where)
        for key, (metric, split) in ERRORS.items()
        if (metric, split) in available
    }


def results(
    file: str,
    nets: Mapping[str, tuple[Net, ...]],
    borrowed: Mapping[str, Net] = {},
    notes: Mapping[str, str] = {},
) -> list[Row]:
    """A row for each system of a CSV of errors, in its order.

    nets, borrowed, notes: by system. One without nets is another group's, where no note says more.
    """
    rows = []
    for name in dict.fromkeys(r["row"] for r in records(file)):
        row_nets = (borrowed[name],) if name in borrowed else nets.get(name, ())
        note = notes.get(name, "" if row_nets else OTHERS)
        measured = Error(row_nets) if row_nets else None
        rows.append(Row(name, errors(file, row=name), measured, note, borrowed=name in borrowed))
    return rows

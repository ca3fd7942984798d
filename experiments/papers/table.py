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
    """A figure as a paper prints it.

    text: with its digits, and its words (`>60`, `about 2`). value: the number in it. std: the
    deviation printed beside it. source: where it was read. note: what has to be known of it.
    """

    text: str
    value: float
    std: float | None = None
    source: str = ""
    note: str = ""


@dataclass(frozen=True)
class Net:
    """A row of a study, trained and tested.

    row: of the table's study, or of `study`. scales: test scales Q as the paper has them at its
    crop, `256,384`, or a word of `protocols.SCALES`; None is the row's own. members: networks that
    differ in their seed only, whose posteriors are averaged.
    """

    row: str
    protocol: str = "center"
    scales: str | None = None
    members: int = 1
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
    """How many times as many epochs `slow` takes as `fast` to a training error (percent); of each,
    the fewest of several networks, which differ in their learning rates."""

    slow: tuple[Net, ...]
    fast: tuple[Net, ...]
    error: float


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

    scales, combine: of the features, as the paper has them at its crop, and as of `transfer.How`;
    precision, train_per_class, test_per_class and splits as there. profiles: in which these images
    are meant. place: in the folder of `table --sets`; '' are the images of the networks' own set,
    of the classes that they were not trained on. name: what the set in `place` is called.
    """

    scales: str
    combine: str
    profiles: tuple[str, ...] = ("paper",)
    place: str = ""
    name: str = ""
    precision: Literal["all_points", "eleven_points"] = "all_points"
    train_per_class: int | None = None
    test_per_class: int | None = None
    splits: int = 1


@dataclass(frozen=True)
class Transferred:
    """What a linear SVM makes of features of networks, side by side, each image's divided by their
    length. on: column -> images, one a profile at most. layer: whose output the features are."""

    nets: tuple[Net, ...]
    on: Mapping[str, tuple[Target, ...]]
    layer: str

    def target(self, key: str, profile: str) -> Target | None:
        """The images of a column in a profile."""
        return next((one for one in self.on.get(key, ()) if profile in one.profiles), None)


@dataclass(frozen=True)
class Located:
    """Top-5 error of the boxes of networks over whole images, merged (`localise.localise`).

    nets: localisers with their scales; classes are said by the classifiers that they start from.
    """

    nets: tuple[Net, ...]


Measured = Error | Difference | EpochsRatio | AfterEpochs | Count | Transferred | Located


@dataclass(frozen=True)
class Column:
    """key: of the rows' `printed`. unit: `%`, `points`, `M`, `G` or `times`. what: `top1`,
    `top5`, `params` or `macs`, `located` (the top-5 error of boxes), or of a training's log `seen`
    (all training images) or `test`, or of heads `ap` or `recall`, where more is better; '' is
    printed only: nobody else has the labels of that test set."""

    key: str
    header: str
    unit: str
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
    """printed: by column, empty where the paper gives a curve only.

    measured: None for what this software can't produce; `note` says why not, or what differs.
    runs: of how many the paper prints the mean; the profiles `paper` and `cifar` train as many.
    costly: profiles in which the row is run on request only. not_in: profiles in which it can't be
    measured or told apart from another row; `note` may say why. borrowed: another paper's row,
    which is run on request only and shown where it is there.
    """

    name: str
    printed: Mapping[str, Printed]
    measured: Measured | None = None
    note: str = ""
    runs: int = 1
    costly: tuple[str, ...] = ()
    not_in: tuple[str, ...] = ()
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
    """A table, or the curves of a figure, of a paper.

    name: `vgg-3`. study: whose rows the nets are. dataset: what the printed figures are of.
    crop: the paper's, pixels: scales are in ratio to it. notes: a line each, shown below.
    learnt: what the nets are trained on, where that is another set. small: the study of the nets in
    other profiles than `paper`, where that is another. more: studies with an argument `more`, the
    folder of another set, and what that is called in `table --sets`.
    """

    name: str
    title: str
    study: str
    dataset: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    crop: int = 224
    notes: tuple[str, ...] = ()
    learnt: str = ""
    small: str = ""
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
    found = lines(file, **where)
    if len(found) != 1:
        raise ValueError(f"{len(found)} lines of {file}.csv have {where}; expected one")
    (line,) = found
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
    there = {(r["metric"], r["split"]) for r in lines(file, **where)}
    return {
        key: printed(file, metric=metric, split=split, **where)
        for key, (metric, split) in ERRORS.items()
        if (metric, split) in there
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
        of = (borrowed[name],) if name in borrowed else nets.get(name, ())
        note = notes.get(name, "" if of else OTHERS)
        measured = Error(of) if of else None
        rows.append(Row(name, errors(file, row=name), measured, note, borrowed=name in borrowed))
    return rows

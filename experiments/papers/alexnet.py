"""Krizhevsky, Sutskever and Hinton 2012: tables 1 and 2, and what its text prints."""

from dataclasses import replace
from typing import Any

from experiments.papers.table import (
    OTHERS,
    TEST5,
    TOP1,
    TOP5,
    Column,
    Count,
    Difference,
    EpochsRatio,
    Error,
    Measured,
    Net,
    Printed,
    Row,
    Table,
    lines,
    printed,
    results,
)

TITLE = "AlexNet (Krizhevsky, Sutskever and Hinton 2012)"
FALL_2011 = "pre-trained on ImageNet's Fall 2011 release"
# Table 1: the CSV's name of a row -> the name shown, and the test protocol where it is built.
TABLE1 = {
    "Sparse coding": ("Sparse coding", ""),
    "SIFT + FVs": ("SIFT + FVs", ""),
    "CNN (AlexNet)": ("CNN, 10 crops", "ten_crop"),
    "CNN no TTA": ("CNN, one crop (footnote)", "center"),
}
# What the text takes away -> its name in the CSV, and the row of the study.
TAKEN_AWAY = {
    "one GPU, half the kernels": ("two_gpu", "one_gpu"),
    "no response normalisation": ("lrn", "without LRN"),
    "2x2 pooling, no overlap": ("pool", "without overlap"),
}
# Figure 1: its training error (percent), and the learning rates that each of its nets is tried
# with. The paper prints neither those it tried nor those it took. 0.03 joined when 0.01, the
# largest until then, had been the fastest for tanh.
UNTIL = 25.0
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)
RATES_DIVIDED = (0.003, 0.01, 0.03, 0.1)  # of inputs that are divided by their deviation
COLOURS = "encoded images only: digits and CIFAR-10 have no colour shifts"


def tables() -> list[Table]:
    """Its tables in order, then the text's."""
    size = {"params": printed("alexnet_ablations", row="params")}
    return [
        _table1(),
        _table2(),
        _text(),
        _table(
            "params",
            "abstract: its size",
            [Row("AlexNet", size, Count("alexnet:two_gpu"))],
            Column("params", "parameters", "M", "params"),
        ),
        _cifar(),
        _relu(),
    ]


def _table(number: str, title: str, rows: list[Row], *columns: Column, **more: Any) -> Table:
    """more: fields of the table, where they differ from those of a table of ILSVRC-2012."""
    fields = {"study": "alexnet", "dataset": "ILSVRC-2012"} | more
    title = f"AlexNet, {title}"
    return Table(f"alexnet-{number}", title, columns=columns, rows=tuple(rows), **fields)


def _table1() -> Table:
    rows = []
    for row, (shown, protocol) in TABLE1.items():
        cells = {
            key: printed("alexnet_table1", row=row, metric=f"{key}_error")
            for key in ("top1", "top5")
        }
        measured = Error((Net("two_gpu", protocol),)) if protocol else None
        rows.append(Row(shown, cells, measured, "" if measured else OTHERS))
    note = "Measured on the images at hand: ILSVRC-2010 is another set of 1000 classes than 2012."
    title = "Table 1: ILSVRC-2010"
    return _table("1", title, rows, TOP1, TOP5, dataset="ILSVRC-2010", notes=(note,))


def _table2() -> Table:
    nets: dict[str, tuple[Net, ...]]
    nets = {f"{n} CNN{'s' * (n > 1)}": (Net("two_gpu", "ten_crop", members=n),) for n in (1, 5)}
    single, pair = (Net("six_conv", "ten_crop", None, n, "alexnet_fall2011") for n in (1, 2))
    nets |= {"1 CNN*": (single,), "7 CNNs*": (pair, *nets["5 CNNs"])}
    note_of_row = {"1 CNN*": FALL_2011, "7 CNNs*": f"two nets {FALL_2011}"}
    rows = [
        replace(row, costly=("cifar",)) if row.name in note_of_row else row
        for row in results("alexnet_table2", nets, notes=note_of_row)
    ]
    notes = (
        "The paper does not say here that it tests on ten crops; section 4.1 does.",
        "* In the profile cifar the other set is CIFAR-100, in demo digits and mirrored ones.",
    )
    more = {"alexnet_fall2011": "fall11_whole"}
    title = "Table 2: ILSVRC-2012"
    return _table("2", title, rows, TOP1, TOP5, TEST5, notes=notes, more=more)


def _reduced(name: str) -> dict[str, Printed]:
    """By how many points each error is lower with what the CSV calls `name`."""
    return {
        key: printed("alexnet_ablations", row=f"{name}_{key}")
        for key in ("top1", "top5")
        if lines("alexnet_ablations", row=f"{name}_{key}")
    }


def _more(without: str) -> Difference:
    return Difference(Net(without, "ten_crop"), Net("two_gpu", "ten_crop"))


def _text() -> Table:
    rows = [
        Row(shown, _reduced(name), _more(without)) for shown, (name, without) in TAKEN_AWAY.items()
    ]
    colours, small = _more("without colours"), ("demo", "cifar")
    rows.append(Row("no colour shifts", _reduced("pca"), colours, COLOURS, not_in=small))
    loss = {"top1": printed("alexnet_ablations", row="drop_middle_layer")}
    rows += [Row(f"no conv{i}", loss, _more(f"without conv{i}")) for i in (3, 4)]
    columns = (Column(f"top{k}", f"top-{k} error more", "points", f"top{k}") for k in (1, 5))
    title = "sections 3, 4.1 and 7: what an error grows by without it"
    return _table("text", title, rows, *columns)


def _four_layers(
    number: str, title: str, column: Column, entries: list[tuple[str, str, Measured]]
) -> Table:
    """A table of the nets of `alexnet_cifar`.

    entries: of each row the shown name, that in the CSV ('' where the paper prints nothing), and
    what measures it.
    """
    rows = [
        Row(shown, {column.key: printed("alexnet_ablations", row=row)} if row else {}, measured)
        for shown, row, measured in entries
    ]
    return _table(number, title, rows, column, study="alexnet_cifar", dataset="CIFAR-10", crop=24)


def _cifar() -> Table:
    with_it, without = (Error((Net(row, "ten_crop"),)) for row in ("LRN", "no LRN"))
    return _four_layers(
        "cifar",
        "section 3.3: four layers, with response normalisation and without",
        Column("top1", "test error", "%", "top1"),
        [("no normalisation", "cifar_nolrn", without), ("normalisation", "cifar_lrn", with_it)],
    )


def _relu() -> Table:
    def ratio(rates: tuple[float, ...], suffix: str = "") -> EpochsRatio:
        nets = [
            tuple(Net(f"{activation}{suffix} {rate}") for rate in rates)
            for activation in ("tanh", "relu")
        ]
        return EpochsRatio(nets[0], nets[1], UNTIL)

    return _four_layers(
        "relu",
        "Figure 1: epochs to 25% training error, four layers",
        Column("speed", "times as many epochs", "times", ""),
        [
            ("tanh beside ReLU", "relu_speed", ratio(RATES)),
            ("the same, inputs divided", "", ratio(RATES_DIVIDED, " divided")),
        ],
    )

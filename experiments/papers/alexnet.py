"""Krizhevsky, Sutskever and Hinton 2012: tables 1 and 2, and what its text prints."""

from experiments.papers.table import (
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
    errors,
    printed,
    records,
)

TITLE = "AlexNet (Krizhevsky, Sutskever and Hinton 2012)"
OTHERS = "another group's system"
FALL_2011 = "pre-trained on ImageNet's Fall 2011 release, with a sixth convolution"
# What the text takes away: its name in the CSV, and the row of the study.
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
    return [_table1(), _table2(), _text(), _parameters(), _cifar(), _relu()]


def _table1() -> Table:
    ours = {
        "CNN (AlexNet)": Net("two_gpu", "ten_crop"),
        "CNN no TTA": Net("two_gpu", "center"),
    }
    rows = []
    for name in dict.fromkeys(r["row"] for r in records("alexnet_table1")):
        measured = Error((ours[name],)) if name in ours else None
        shown = {"CNN (AlexNet)": "CNN, 10 crops", "CNN no TTA": "CNN, one crop (footnote)"}
        found = errors("alexnet_table1", row=name)
        rows.append(Row(shown.get(name, name), found, measured, "" if measured else OTHERS))
    note = "Measured on the images at hand: ILSVRC-2010 is another set of 1000 classes than 2012."
    return Table(
        "alexnet-1",
        "AlexNet, Table 1: ILSVRC-2010",
        "alexnet",
        "ILSVRC-2010",
        (TOP1, TOP5),
        tuple(rows),
        notes=(note,),
    )


def _table2() -> Table:
    ours = {"1 CNN": Net("two_gpu", "ten_crop"), "5 CNNs": Net("two_gpu", "ten_crop", members=5)}
    why = {"SIFT + FVs": OTHERS, "1 CNN*": FALL_2011, "7 CNNs*": f"two nets {FALL_2011}"}
    rows = []
    for name in dict.fromkeys(r["row"] for r in records("alexnet_table2")):
        cells = errors("alexnet_table2", row=name, split="val")
        if any(r["row"] == name and r["split"] == "test" for r in records("alexnet_table2")):
            where = {"row": name, "split": "test", "metric": "top5_error"}
            cells["test5"] = printed("alexnet_table2", **where)
        measured = Error((ours[name],)) if name in ours else None
        rows.append(Row(name, cells, measured, why.get(name, "")))
    return Table(
        "alexnet-2",
        "AlexNet, Table 2: ILSVRC-2012",
        "alexnet",
        "ILSVRC-2012",
        (TOP1, TOP5, TEST5),
        tuple(rows),
        notes=("The paper does not say here that it tests on ten crops; section 4.1 does.",),
    )


def _reduced(name: str) -> dict[str, Printed]:
    """By how many points an error is lower with what the CSV calls `name`."""
    return {
        key: printed("alexnet_ablations", row=f"{name}_{key}")
        for key in ("top1", "top5")
        if any(r["row"] == f"{name}_{key}" for r in records("alexnet_ablations"))
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
    return Table(
        "alexnet-text",
        "AlexNet, sections 3, 4.1 and 7: what an error grows by without it",
        "alexnet",
        "ILSVRC-2012",
        (
            Column("top1", "top-1 error more", "points", "top1"),
            Column("top5", "top-5 error more", "points", "top5"),
        ),
        tuple(rows),
    )


def _parameters() -> Table:
    found = {"params": printed("alexnet_ablations", row="params")}
    return Table(
        "alexnet-params",
        "AlexNet, abstract: its size",
        "alexnet",
        "ILSVRC-2012",
        (Column("params", "parameters", "M", "params"),),
        (Row("AlexNet", found, Count("alexnet:two_gpu")),),
    )


def _four_layers(
    name: str, title: str, column: Column, rows: list[tuple[str, str, Measured]]
) -> Table:
    """A table of the nets of `alexnet_cifar`; rows: shown name, that in the CSV (none where the
    paper prints nothing), what measures."""
    found = [
        Row(shown, {column.key: printed("alexnet_ablations", row=row)} if row else {}, measured)
        for shown, row, measured in rows
    ]
    return Table(name, title, "alexnet_cifar", "CIFAR-10", (column,), tuple(found), crop=24)


def _cifar() -> Table:
    column = Column("top1", "test error", "%", "top1")
    with_it, without = (Error((Net(row, "ten_crop"),)) for row in ("LRN", "no LRN"))
    return _four_layers(
        "alexnet-cifar",
        "AlexNet, section 3.3: four layers, with response normalisation and without",
        column,
        [("no normalisation", "cifar_nolrn", without), ("normalisation", "cifar_lrn", with_it)],
    )


def _relu() -> Table:
    column = Column("speed", "times as many epochs", "times", "")

    def ratio(rates: tuple[float, ...], how: str = "") -> EpochsRatio:
        nets = [tuple(Net(f"{of}{how} {rate}") for rate in rates) for of in ("tanh", "relu")]
        return EpochsRatio(nets[0], nets[1], UNTIL)

    return _four_layers(
        "alexnet-relu",
        "AlexNet, Figure 1: epochs to 25% training error, four layers",
        column,
        [
            ("tanh beside ReLU", "relu_speed", ratio(RATES)),
            ("the same, inputs divided", "", ratio(RATES_DIVIDED, " divided")),
        ],
    )

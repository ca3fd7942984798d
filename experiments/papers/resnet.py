"""He et al. 2015: tables 1 to 6, and the curves behind figures 1, 4 and 6."""

from experiments.papers.table import (
    OTHERS,
    TEST5,
    TOP1,
    TOP5,
    Column,
    Count,
    Error,
    Net,
    Printed,
    Row,
    Table,
    lines,
    printed,
    records,
    results,
)

TITLE = "ResNet (He et al. 2015)"
DATASETS = {"resnet": ("ILSVRC-2012", 224), "cifar_resnet": ("CIFAR-10", 32)}  # by study: its crop
AS_THEIRS = "as its own paper trained it"
# Names of the paper's rows -> rows of the study `resnet`. Table 2's nets have shortcuts A.
NETS = {
    "plain-18": "plain-18",
    "plain-34": "plain-34",
    "ResNet-18": "resnet-18 A",
    "ResNet-34": "resnet-34 A",
    "ResNet-34 A": "resnet-34 A",
    "ResNet-34 B": "resnet-34 B",
    "ResNet-34 C": "resnet-34 C",
    "ResNet-50": "resnet-50",
    "ResNet-101": "resnet-101",
    "ResNet-152": "resnet-152",
}
LONG = ("demo", "cifar", "folder")


def tables() -> list[Table]:
    """Its tables in order, then its figures."""
    return [
        _table1(),
        _table2(),
        _table3(),
        _table4(),
        _table5(),
        _table6(),
        _figure1(),
        _figure4(),
        _figure6(),
    ]


def _table1() -> Table:
    rows = []
    for r in records("resnet_table1_flops"):
        depth = r["config"].removeprefix("ResNet-")
        arch = {"VGG-16": "vgg:D", "VGG-19": "vgg:E"}.get(r["row"], f"resnet:{depth}")
        options = {"shortcut": "A"} if depth in ("18", "34") else {}
        cells = {"macs": printed("resnet_table1_flops", row=r["row"])}
        rows.append(Row(r["config"], cells, Count(arch, options)))
    column = Column("macs", "multiply-adds", "G", "macs")
    notes = (
        "The paper calls multiply-adds FLOPs. Shortcuts A, and stride 2 in the first 1x1. Its 15.3 "
        "of VGG-16 leaves the fully connected layers out, its 19.6 of VGG-19 does not.",
    )
    return _table("1", "the cost of the nets", (column,), rows, notes=notes)


def _nets(protocol: str, scales: str) -> dict[str, tuple[Net, ...]]:
    return {name: (Net(row, protocol, scales),) for name, row in NETS.items()}


def _table2() -> Table:
    rows = results("resnet_table2", _nets("ten_crop", "256"))
    return _table("2", "plain and residual nets", (TOP1,), rows)


def _table3() -> Table:
    borrowed = {
        "VGG-16": Net("D [256;512]", "ten_crop", "256", study="vgg"),
        "GoogLeNet": Net("googlenet", "ten_crop", study="googlenet"),
    }
    notes = dict.fromkeys(borrowed, AS_THEIRS)
    rows = results("resnet_table3", _nets("ten_crop", "256"), borrowed, notes)
    return _table("3", "10-crop tests", (TOP1, TOP5), rows)


def _table4() -> Table:
    borrowed = {
        "VGG (v5)": Net("E [256;512]", "dense+multi_crop", "256,384,512", study="vgg"),
        "GoogLeNet (ILSVRC'14)": Net("googlenet", "googlenet_144", study="googlenet"),
    }
    notes = dict.fromkeys(borrowed, AS_THEIRS)
    rows = results("resnet_table4", _nets("dense", "resnet"), borrowed, notes)
    columns = (TOP1, TOP5, TEST5)
    return _table("4", "single models, five test scales", columns, rows)


def _table5() -> Table:
    six = "six models of different depth, which the paper does not name but for two of 152"
    rows = results("resnet_table5", {}, notes={"ResNet (ILSVRC'15)": six})
    return _table("5", "ensembles", (TEST5,), rows)


TEST_ERROR = Column("top1", "test error", "%", "top1")
PARAMS = Column("params", "parameters", "M", "params")


def _cifar(name: str, cells: dict[str, Printed], note: str = "", runs: int = 1) -> Row:
    depth = name.rpartition("-")[2]
    net = Net(name.lower())
    costly = LONG if depth == "1202" else ()
    return Row(name, cells, Error((net,)), note, runs, costly)


def _table6() -> Table:
    rows = []
    for line in lines("resnet_table6", metric="test_error"):
        name, metric, note, runs = line["row"], "test_error", "", 1
        if name == "ResNet-110":
            metric, runs = "test_error_mean", 5
            note = f"mean of five runs; the best of them is {line['value']}"
        cells = {
            key: printed("resnet_table6", row=name, metric=csv_metric)
            for key, csv_metric in (("top1", metric), ("params", "params"))
            if lines("resnet_table6", row=name, metric=csv_metric)
        }
        if name.startswith("ResNet"):
            rows.append(_cifar(name, cells, note, runs))
        elif name == "NIN":
            measured = Error((Net("CIFAR-10 shifted", study="nin"),))
            rows.append(Row(name, cells, measured, AS_THEIRS, borrowed=True))
        else:
            rows.append(Row(name, cells, None, OTHERS))
    columns = (TEST_ERROR, PARAMS)
    return _table("6", "CIFAR-10", columns, rows, study="cifar_resnet")


def _figure1() -> Table:
    rows = [_cifar(name, {}) for name in ("plain-20", "plain-56")]
    title = "plain nets, training and test error over iterations"
    return _table("fig1", title, (TEST_ERROR,), rows, study="cifar_resnet")


def _figure4() -> Table:
    names = ("plain-18", "plain-34", "ResNet-18", "ResNet-34")
    rows = [Row(name, {}, Error((Net(NETS[name]),))) for name in names]
    title = "plain and residual nets, error over iterations"
    notes = ("The paper's validation errors are of centre crops of ILSVRC's validation images.",)
    return _table("fig4", title, (TOP1,), rows, notes=notes)


def _figure6() -> Table:
    bound = printed("resnet_text_numbers", metric="error_lower_bound")
    above = Printed(f">{bound.text}", bound.value, source=bound.source, note=bound.note)
    rows = [
        *(_cifar(f"plain-{depth}", {}) for depth in (20, 32, 44, 56)),
        _cifar("plain-110", {"top1": above}, "the paper says 'above 60%'"),
        *(_cifar(f"ResNet-{depth}", {}) for depth in (20, 32, 44, 56, 110, 1202)),
    ]
    title = "plain and residual nets, training and test error over iterations"
    return _table("fig6", title, (TEST_ERROR,), rows, study="cifar_resnet")


def _table(
    number: str,
    title: str,
    columns: tuple[Column, ...],
    rows: list[Row],
    study: str = "resnet",
    notes: tuple[str, ...] = (),
) -> Table:
    label = f"Figure {number[3:]}" if number.startswith("fig") else f"Table {number}"
    name, (dataset, crop) = f"ResNet, {label}: {title}", DATASETS[study]
    return Table(f"resnet-{number}", name, study, dataset, columns, tuple(rows), crop, notes)

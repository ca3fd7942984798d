"""He et al. 2015: tables 1 to 6, and the curves behind figures 1, 4 and 6."""

from experiments.papers.table import (
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
    errors,
    printed,
    records,
)

TITLE = "ResNet (He et al. 2015)"
ILSVRC, CIFAR = "ILSVRC-2012", "CIFAR-10"
OTHERS = "another group's system"
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
        arch = {"VGG-16": "vgg:D", "VGG-19": "vgg:E"}.get(r["row"])
        options: dict[str, str] = {}
        if arch is None:
            depth = r["config"].removeprefix("ResNet-")
            arch = f"resnet:{depth}"
            options = {"shortcut": "A"} if depth in ("18", "34") else {}
        found = {"macs": printed("resnet_table1_flops", row=r["row"])}
        rows.append(Row(r["config"], found, Count(arch, options)))
    column = Column("macs", "multiply-adds", "G", "macs")
    notes = (
        "The paper calls multiply-adds FLOPs. Shortcuts A, and stride 2 in the first 1x1. Its 15.3 "
        "of VGG-16 leaves the fully connected layers out, its 19.6 of VGG-19 does not.",
    )
    return _table("1", "the cost of the nets", ILSVRC, "resnet", (column,), rows, notes=notes)


def _ten_crop(name: str) -> Error:
    return Error((Net(NETS[name], "ten_crop", "256"),))


def _table2() -> Table:
    rows = [
        Row(r["row"], errors("resnet_table2", row=r["row"]), _ten_crop(r["row"]))
        for r in records("resnet_table2")
    ]
    return _table("2", "plain and residual nets", ILSVRC, "resnet", (TOP1,), rows)


def _names(file: str) -> list[str]:
    return list(dict.fromkeys(r["row"] for r in records(file)))


def _table3() -> Table:
    borrowed = {
        "VGG-16": Net("D [256;512]", "ten_crop", "256", study="vgg"),
        "GoogLeNet": Net("googlenet", "ten_crop", study="googlenet"),
    }
    rows = []
    for name in _names("resnet_table3"):
        measured = _ten_crop(name) if name in NETS else None
        note = "" if measured else OTHERS
        if name in borrowed:
            measured, note = Error((borrowed[name],)), "as its own paper trained it"
        cells = errors("resnet_table3", row=name)
        rows.append(Row(name, cells, measured, note, borrowed=name in borrowed))
    return _table("3", "10-crop tests", ILSVRC, "resnet", (TOP1, TOP5), rows)


def _table4() -> Table:
    borrowed = {
        "VGG (v5)": Net("E [256;512]", "dense+multi_crop", "256,384,512", study="vgg"),
        "GoogLeNet (ILSVRC'14)": Net("googlenet", "googlenet_144", study="googlenet"),
    }
    rows = []
    for name in _names("resnet_table4"):
        of_val = all(r["split"] == "val" for r in records("resnet_table4") if r["row"] == name)
        cells = errors("resnet_table4", row=name)
        if not of_val:
            cells = {"test5": cells["top5"]}
        measured = Error((Net(NETS[name], "dense", "resnet"),)) if name in NETS else None
        note = "" if measured else OTHERS
        if name in borrowed:
            measured, note = Error((borrowed[name],)), "as its own paper trained it"
        rows.append(Row(name, cells, measured, note, borrowed=name in borrowed))
    columns = (TOP1, TOP5, TEST5)
    return _table("4", "single models, five test scales", ILSVRC, "resnet", columns, rows)


def _table5() -> Table:
    rows = []
    for name in _names("resnet_table5"):
        note = OTHERS
        if name.startswith("ResNet"):
            note = "six models of different depth, which the paper does not name but for two of 152"
        rows.append(Row(name, {"test5": printed("resnet_table5", row=name)}, None, note))
    return _table("5", "ensembles", ILSVRC, "resnet", (TEST5,), rows)


TEST_ERROR = Column("top1", "test error", "%", "top1")
PARAMS = Column("params", "parameters", "M", "params")


def _cifar(name: str, cells: dict[str, Printed], note: str = "", runs: int = 1) -> Row:
    depth = name.rpartition("-")[2]
    net = Net(name.lower())
    costly = LONG if depth == "1202" else ()
    return Row(name, cells, Error((net,)), note, runs, costly)


def _table6() -> Table:
    rows = []
    for name in _names("resnet_table6"):
        where = {"row": name, "metric": "test_error"}
        size = {}
        if any(r["row"] == name and r["metric"] == "params" for r in records("resnet_table6")):
            size["params"] = printed("resnet_table6", row=name, metric="params")
        if name.startswith("ResNet"):
            note, runs = "", 1
            if name == "ResNet-110":
                best = printed("resnet_table6", **where)
                where["metric"], runs = "test_error_mean", 5
                note = f"mean of five runs; the best of them is {best.text}"
            cells = {"top1": printed("resnet_table6", **where), **size}
            rows.append(_cifar(name, cells, note, runs))
            continue
        cells = {"top1": printed("resnet_table6", **where), **size}
        if name == "NIN":
            net = Net("CIFAR-10 shifted", study="nin")
            note = "as its own paper trained it"
            rows.append(Row(name, cells, Error((net,)), note, borrowed=True))
        else:
            rows.append(Row(name, cells, None, OTHERS))
    columns = (TEST_ERROR, PARAMS)
    return _table("6", "CIFAR-10", CIFAR, "cifar_resnet", columns, rows, crop=32)


def _figure1() -> Table:
    rows = [_cifar(name, {}) for name in ("plain-20", "plain-56")]
    title = "plain nets, training and test error over iterations"
    return _table("fig1", title, CIFAR, "cifar_resnet", (TEST_ERROR,), rows, crop=32)


def _figure4() -> Table:
    rows = []
    for name in ("plain-18", "plain-34", "ResNet-18", "ResNet-34"):
        rows.append(Row(name, {}, Error((Net(NETS[name], "center"),))))
    title = "plain and residual nets, error over iterations"
    notes = ("The paper's validation errors are of centre crops of ILSVRC's validation images.",)
    return _table("fig4", title, ILSVRC, "resnet", (TOP1,), rows, notes=notes)


def _figure6() -> Table:
    bound = printed("resnet_text_numbers", metric="error_lower_bound")
    rows = []
    for name in ("plain-20", "plain-32", "plain-44", "plain-56"):
        rows.append(_cifar(name, {}))
    above = Printed(f">{bound.text}", bound.value, source=bound.source, note=bound.note)
    rows.append(_cifar("plain-110", {"top1": above}, "the paper says 'above 60%'"))
    for name in ("ResNet-20", "ResNet-32", "ResNet-44", "ResNet-56", "ResNet-110", "ResNet-1202"):
        rows.append(_cifar(name, {}))
    title = "plain and residual nets, training and test error over iterations"
    return _table("fig6", title, CIFAR, "cifar_resnet", (TEST_ERROR,), rows, crop=32)


def _table(
    number: str,
    title: str,
    dataset: str,
    study: str,
    columns: tuple[Column, ...],
    rows: list[Row],
    crop: int = 224,
    notes: tuple[str, ...] = (),
) -> Table:
    what = f"Figure {number[3:]}" if number.startswith("fig") else f"Table {number}"
    name = f"ResNet, {what}: {title}"
    return Table(f"resnet-{number}", name, study, dataset, columns, tuple(rows), crop, notes)

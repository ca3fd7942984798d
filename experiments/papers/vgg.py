"""Simonyan and Zisserman 2014, tables 2 to 7."""

from experiments.papers.table import (
    TEST5,
    TOP1,
    TOP5,
    Column,
    Count,
    Difference,
    Error,
    Net,
    Printed,
    Row,
    Table,
    errors,
    printed,
    records,
)

TITLE = "VGG (Simonyan and Zisserman 2014)"
DATASET = "ILSVRC-2012"
METHODS = {  # the paper's words -> protocols
    "dense": "dense",
    "multi-crop": "multi_crop",
    "multi-crop & dense": "dense+multi_crop",
}
JITTER = "[256;512]"


def study_row(config: str, train_scale: str) -> str:
    """The row of the study `vgg` that trains a configuration at a scale."""
    return f"{config} {train_scale}"


def tables() -> list[Table]:
    """Its tables in order."""
    return [_table2(), _table3(), _table4(), _table5(), _table6(), _table7(), _shallow()]


def _table2() -> Table:
    column = Column("params", "parameters", "M", "params")
    rows = [
        Row(r["config"], {"params": printed("vgg_table2", config=r["config"])}, _count(r["config"]))
        for r in records("vgg_table2")
    ]
    return _table("2", "parameters", (column,), rows)


def _count(config: str) -> Count:
    return Count(f"vgg:{config}")


def _by_scale(file: str) -> list[Row]:
    rows = []
    for r in records(file):
        if r["metric"] != "top1_error":
            continue
        where = {key: r[key] for key in ("config", "train_scale", "test_scale")}
        net = Net(study_row(r["config"], r["train_scale"]), "dense", r["test_scale"])
        name = f"{r['config']}, S={r['train_scale']}"
        rows.append(Row(name, errors(file, **where), Error((net,))))
    return rows


def _table3() -> Table:
    return _table("3", "one test scale", (TOP1, TOP5), _by_scale("vgg_table3"))


def _table4() -> Table:
    return _table("4", "several test scales", (TOP1, TOP5), _by_scale("vgg_table4"))


def _table5() -> Table:
    rows = []
    for r in records("vgg_table5"):
        if r["metric"] == "top1_error":
            net = Net(study_row(r["config"], JITTER), METHODS[r["method"]], r["test_scale"])
            found = errors("vgg_table5", config=r["config"], method=r["method"])
            rows.append(Row(f"{r['config']}, {r['method']}", found, Error((net,))))
    return _table("5", "dense, multi-crop and both", (TOP1, TOP5), rows)


def _table6() -> Table:
    rows = []
    for r in records("vgg_table6"):
        if r["metric"] == "top1_error":
            members = [m for m in records("vgg_table6_members") if m["row"] == r["row"]]
            nets = []
            for m in members:
                name = study_row(m["config"], m["train_scale"])
                if r["row"] == "submission_7nets" and name == study_row("D", JITTER):
                    name += " FC"  # section 4.4: only its fully connected layers were fine-tuned
                nets.append(Net(name, METHODS[r["method"]], m["test_scale"]))
            cells = _val_and_test("vgg_table6", row=r["row"])
            rows.append(Row(f"{len(nets)} nets, {r['method']}", cells, Error(tuple(nets))))
    return _table("6", "fusion", (TOP1, TOP5, TEST5), rows)


def _val_and_test(file: str, **where: str) -> dict[str, Printed]:
    cells = errors(file, **where, split="val")
    if any(
        r["split"] == "test" and all(r[k] == v for k, v in where.items()) for r in records(file)
    ):
        cells["test5"] = printed(file, **where, split="test", metric="top5_error")
    return cells


def _table7() -> Table:
    same = {r.name: r.measured for t in (_table5(), _table6()) for r in t.rows}
    ours = {
        "VGG (2 nets, multi-crop & dense eval.)": same["2 nets, multi-crop & dense"],
        "VGG (1 net, multi-crop & dense eval.)": same["E, multi-crop & dense"],
        "VGG (ILSVRC submission, 7 nets, dense eval.)": same["7 nets, dense"],
    }
    borrowed = {
        "GoogLeNet (Szegedy et al. 2014) (1 net)": Net(
            "googlenet", "googlenet_144", study="googlenet"
        ),
        "GoogLeNet (Szegedy et al. 2014) (7 nets)": Net(
            "googlenet", "googlenet_144", members=7, study="googlenet"
        ),
        "Krizhevsky et al. 2012 (5 nets)": Net("two_gpu", "ten_crop", members=5, study="alexnet"),
        "Krizhevsky et al. 2012 (1 net)": Net("two_gpu", "ten_crop", study="alexnet"),
    }
    rows = []
    for name in dict.fromkeys(r["row"] for r in records("vgg_table7")):
        cells = _val_and_test("vgg_table7", row=name)
        measured = ours.get(name)
        if name in borrowed:
            measured = Error((borrowed[name],))
        note = "" if measured else "another group's system"
        rows.append(Row(name, cells, measured, note, borrowed=name in borrowed))
    return _table("7", "the state of the art", (TOP1, TOP5, TEST5), rows)


def _shallow() -> Table:
    column = Column("difference", "top-1 error more than B's", "points", "top1")
    where = {"metric": "top1_error_increase_vs_B"}
    shallow, deep = (Net(study_row(c, "256"), "center") for c in ("B-5x5", "B"))
    row = Row(
        "B with 5x5 for each pair of 3x3",
        {"difference": printed("vgg_text_numbers", **where)},
        Difference(shallow, deep),
    )
    return _table("shallow", "a shallow net with larger filters (section 4.1)", (column,), [row])


def _table(number: str, title: str, columns: tuple[Column, ...], rows: list[Row]) -> Table:
    name = f"Table {number}" if number.isdecimal() else "text"
    return Table(f"vgg-{number}", f"VGG, {name}: {title}", "vgg", DATASET, columns, tuple(rows))

"""Szegedy et al. 2015 (CVPR): tables 2 and 3."""

from dataclasses import replace

from experiments.papers import vgg
from experiments.papers.table import (
    OTHERS,
    TEST5,
    TOP5,
    Error,
    Net,
    Row,
    Table,
    lines,
    printed,
    records,
)

TITLE = "GoogLeNet (Szegedy et al. 2015)"
DATASET = "ILSVRC-2014"
SUBMISSION = ("vgg-6", "7 nets, dense")  # VGG's: table and row
CROPS = {"1": "center", "10": "ten_crop", "144": "googlenet_144"}


def tables() -> list[Table]:
    """Its tables of results in order."""
    return [_table2(), _table3()]


def _table2() -> Table:
    seven = (r.nets for t in vgg.tables() for r in t.rows if (t.name, r.name) == SUBMISSION)
    nets = {
        "SuperVision 2012, no other data": (Net("two_gpu", "ten_crop", None, 5, "alexnet"),),
        "VGG 2014, no other data": tuple(replace(net, study="vgg") for net in next(seven)),
        "GoogLeNet 2014, no other data": (Net("googlenet", CROPS["144"], members=7),),
    }
    rows = []
    for r in records("googlenet_table2"):
        cells = {"test5": printed("googlenet_table2", row=r["row"], value=r["value"])}
        larger = "22k" in r["note"]
        name = f"{r['row']}, {'ImageNet 22k' if larger else 'no other data'}"
        note = "" if name in nets else "pre-trained on more of ImageNet" if larger else OTHERS
        borrowed = name in nets and not name.startswith("GoogLeNet")
        measured = Error(nets[name]) if name in nets else None
        rows.append(Row(name, cells, measured, note, borrowed=borrowed))
    title = "GoogLeNet, Table 2: classification at ILSVRC"
    return Table("googlenet-2", title, "googlenet", DATASET, (TOP5, TEST5), tuple(rows))


def _table3() -> Table:
    rows = []
    for r in lines("googlenet_table3", metric="top5_error"):
        models, crops = (r[key].split()[0] for key in ("config", "method"))
        cost = printed("googlenet_table3", row=r["row"], metric="cost").text
        name = f"{models} model{'' if models == '1' else 's'}, {crops} crop{'s' * (crops != '1')}"
        net = Net("googlenet", CROPS[crops], members=int(models))
        cells = {"top5": printed("googlenet_table3", row=r["row"], metric="top5_error")}
        rows.append(Row(f"{name} (cost {cost})", cells, Error((net,))))
    title = "GoogLeNet, Table 3: models and crops"
    note = "Cost: how often a network looks at a crop. One crop is the centre of short side 256."
    return Table("googlenet-3", title, "googlenet", DATASET, (TOP5,), tuple(rows), notes=(note,))

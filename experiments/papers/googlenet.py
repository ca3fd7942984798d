"""Szegedy et al. 2015 (CVPR): tables 2 and 3."""

import dataclasses

from experiments.papers import vgg
from experiments.papers.table import TEST5, TOP5, Error, Net, Row, Table, printed, records

TITLE = "GoogLeNet (Szegedy et al. 2015)"
DATASET = "ILSVRC-2014"
CROPS = {"1": "center", "10": "ten_crop", "144": "googlenet_144"}
OTHERS = "another group's system"


def tables() -> list[Table]:
    """Its tables of results in order."""
    return [_table2(), _table3()]


def _all_seven() -> Error:
    return Error((Net("googlenet", CROPS["144"], members=7),))


def _vgg_submission() -> Error:
    """The seven nets of VGG's Table 6."""
    (table,) = (table for table in vgg.tables() if table.name == "vgg-6")
    (row,) = (row for row in table.rows if row.name == "7 nets, dense")
    return Error(tuple(dataclasses.replace(net, study="vgg") for net in row.nets))


def _table2() -> Table:
    supervision = Error((Net("two_gpu", "ten_crop", members=5, study="alexnet"),))
    borrowed = {
        ("SuperVision 2012", "16.4"): supervision,
        ("VGG 2014", "7.32"): _vgg_submission(),
    }
    rows = []
    for r in records("googlenet_table2"):
        where = {"row": r["row"], "value": r["value"]}
        cells = {"test5": printed("googlenet_table2", **where)}
        data = "ImageNet 22k" if "22k" in r["note"] else "no other data"
        name = f"{r['row']}, {data}"
        measured, note = borrowed.get((r["row"], r["value"])), ""
        if r["row"] == "GoogLeNet 2014":
            rows.append(Row(name, cells, _all_seven()))
            continue
        if measured is None:
            note = "pre-trained on more of ImageNet" if "22k" in r["note"] else OTHERS
        rows.append(Row(name, cells, measured, note, borrowed=measured is not None))
    return Table(
        "googlenet-2",
        "GoogLeNet, Table 2: classification at ILSVRC",
        "googlenet",
        DATASET,
        (TOP5, TEST5),
        tuple(rows),
    )


def _table3() -> Table:
    rows = []
    for r in records("googlenet_table3"):
        if r["metric"] != "top5_error":
            continue
        models, crops = (r[key].split()[0] for key in ("config", "method"))
        cost = printed("googlenet_table3", row=r["row"], metric="cost").text
        name = f"{models} model{'' if models == '1' else 's'}, {crops} crop{'s' * (crops != '1')}"
        net = Net("googlenet", CROPS[crops], members=int(models))
        cells = {"top5": printed("googlenet_table3", row=r["row"], metric="top5_error")}
        rows.append(Row(f"{name} (cost {cost})", cells, Error((net,))))
    return Table(
        "googlenet-3",
        "GoogLeNet, Table 3: models and crops",
        "googlenet",
        DATASET,
        (TOP5,),
        tuple(rows),
        notes=(
            "Cost: how often a network looks at a crop. One crop is the centre of short side 256.",
        ),
    )

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
SUBMISSION = ("vgg-6", "7 nets, dense")
CROPS = {"1": "center", "10": "ten_crop", "144": "googlenet_144"}


def tables() -> list[Table]:
    """Its tables of results in order."""
    return [_table2(), _table3()]


def _vgg_submission() -> Error:
    """The seven nets of VGG's Table 6."""
    (nets,) = (r.nets for t in vgg.tables() for r in t.rows if (t.name, r.name) == SUBMISSION)
    return Error(tuple(replace(net, study="vgg") for net in nets))


def _table2() -> Table:
    ours = {
        "SuperVision 2012, no other data": Error(
            (Net("two_gpu", "ten_crop", members=5, study="alexnet"),)
        ),
        "VGG 2014, no other data": _vgg_submission(),
        "GoogLeNet 2014, no other data": Error((Net("googlenet", CROPS["144"], members=7),)),
    }
    rows = []
    for r in records("googlenet_table2"):
        cells = {"test5": printed("googlenet_table2", row=r["row"], value=r["value"])}
        more = "22k" in r["note"]
        name = f"{r['row']}, {'ImageNet 22k' if more else 'no other data'}"
        note = "" if name in ours else "pre-trained on more of ImageNet" if more else OTHERS
        borrowed = name in ours and not name.startswith("GoogLeNet")
        rows.append(Row(name, cells, ours.get(name), note, borrowed=borrowed))
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
    for r in lines("googlenet_table3", metric="top5_error"):
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

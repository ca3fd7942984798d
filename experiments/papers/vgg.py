"""Simonyan and Zisserman 2014, tables 2 to 12."""

from dataclasses import replace

from experiments.papers.table import (
    OTHERS,
    TEST5,
    TOP1,
    TOP5,
    Column,
    Count,
    Difference,
    Error,
    Located,
    Net,
    Row,
    Table,
    Target,
    Transferred,
    errors,
    lines,
    printed,
    records,
    results,
)

TITLE = "VGG (Simonyan and Zisserman 2014)"
DATASET = "ILSVRC-2012"
METHODS = {  # the paper's words -> protocols
    "dense": "dense",
    "multi-crop": "multi_crop",
    "multi-crop & dense": "dense+multi_crop",
}
JITTER = "[256;512]"
# Of Table 11 (section B.1): at which scales images are seen, and how these are combined.
AVERAGED, STACKED = ("256,384,512,640,768", "mean"), ("256,384,512", "concatenate")
TARGETS = {
    "VOC-2007": Target(
        *AVERAGED, place="VOCdevkit/VOC2007", name="VOC2007", precision="eleven_points"
    ),
    "VOC-2012": Target(*AVERAGED, place="VOCdevkit/VOC2012", name="VOC2012"),
    "Caltech-101": Target(
        *STACKED,
        place="101_ObjectCategories",
        name="Caltech-101",
        train_per_class=30,
        test_per_class=50,
        splits=3,
    ),
    "Caltech-256": Target(
        *STACKED, place="256_ObjectCategories", name="Caltech-256", train_per_class=60, splits=3
    ),
}
LOCALISATION, LOCATED = "vgg_localisation", "ILSVRC-2014 localisation"
LOCATION = (
    Column("val", "top-5 localisation error", "%", "located"),
    Column("test", "the same, test server", "%", ""),
)
NO_BOXES = ("cifar",)  # profiles whose images have none
BOX_NOTES = (
    "A box is right where it shares more than half with a true one, over their union.",
    "The paper prints neither the unit of boxes nor how long localisers were trained: here the "
    "crop's side, and as long as classifiers, with two drops of the rate.",
    "The paper takes the classes from its best classifiers: here from those that the localisers "
    "start from, at the same scales. OverFeat prints no threshold for merging: see the docs.",
)
OTHER_CLASSES = (
    Target(*STACKED, ("demo", "cifar"), train_per_class=25, splits=5),
    Target(*STACKED, ("folder",), splits=5),
)
TRANSFER_NOTES = (
    "The paper takes its two best nets: here those of Table 4, trained with S in [256;512].",
    "VOC-2012's test images have no annotations outside its server: without these, val is the test "
    "part and train alone is learnt from. VOC-2007's precision is that of eleven recalls.",
    "Caltech's deviations are over three random splits. The paper's own are not known.",
    "Other classes: those of the profile's images that the nets were not trained on. 25 images of "
    "each are learnt from, in five draws; of a folder all training images.",
)


def tables() -> list[Table]:
    """Its tables in order; the rows of the study are named `CONFIGURATION S`."""
    return [
        _table2(),
        _by_scale("3", "one test scale"),
        _by_scale("4", "several test scales"),
        _table5(),
        _table6(),
        _table7(),
        _table8(),
        _table9(),
        _table10(),
        _table11(),
        _table12(),
        _shallow(),
    ]


def _table2() -> Table:
    column = Column("params", "parameters", "M", "params")
    configs = [r["config"] for r in records("vgg_table2")]
    rows = [Row(c, {"params": printed("vgg_table2", config=c)}, Count(f"vgg:{c}")) for c in configs]
    return _table("2", "parameters", (column,), rows)


def _by_scale(number: str, title: str) -> Table:
    """Tables 3 and 4."""
    file, rows = f"vgg_table{number}", []
    for r in lines(file, metric="top1_error"):
        where = {key: r[key] for key in ("config", "train_scale", "test_scale")}
        net = Net(f"{r['config']} {r['train_scale']}", "dense", r["test_scale"])
        name = f"{r['config']}, S={r['train_scale']}"
        rows.append(Row(name, errors(file, **where), Error((net,))))
    return _table(number, title, (TOP1, TOP5), rows)


def _table5() -> Table:
    rows = []
    for r in lines("vgg_table5", metric="top1_error"):
        net = Net(f"{r['config']} {JITTER}", METHODS[r["method"]], r["test_scale"])
        cells = errors("vgg_table5", config=r["config"], method=r["method"])
        rows.append(Row(f"{r['config']}, {r['method']}", cells, Error((net,))))
    return _table("5", "dense, multi-crop and both", (TOP1, TOP5), rows)


def _table6() -> Table:
    rows = []
    for r in lines("vgg_table6", metric="top1_error"):
        nets = []
        for m in lines("vgg_table6_members", row=r["row"]):
            name = f"{m['config']} {m['train_scale']}"
            if r["row"] == "submission_7nets" and name == f"D {JITTER}":
                name += " FC"  # section 4.4: only its fully connected layers were fine-tuned
            nets.append(Net(name, METHODS[r["method"]], m["test_scale"]))
        cells = errors("vgg_table6", row=r["row"])
        rows.append(Row(f"{len(nets)} nets, {r['method']}", cells, Error(tuple(nets))))
    return _table("6", "fusion", (TOP1, TOP5, TEST5), rows)


def _table7() -> Table:
    nets_of_row = {r.name: r.nets for t in (_table5(), _table6()) for r in t.rows}
    nets = {
        "VGG (2 nets, multi-crop & dense eval.)": nets_of_row["2 nets, multi-crop & dense"],
        "VGG (1 net, multi-crop & dense eval.)": nets_of_row["E, multi-crop & dense"],
        "VGG (ILSVRC submission, 7 nets, dense eval.)": nets_of_row["7 nets, dense"],
    }
    google = Net("googlenet", "googlenet_144", study="googlenet")
    alexnet = Net("two_gpu", "ten_crop", study="alexnet")
    borrowed = {
        "GoogLeNet (Szegedy et al. 2014) (1 net)": google,
        "GoogLeNet (Szegedy et al. 2014) (7 nets)": replace(google, members=7),
        "Krizhevsky et al. 2012 (5 nets)": replace(alexnet, members=5),
        "Krizhevsky et al. 2012 (1 net)": alexnet,
    }
    rows = results("vgg_table7", nets, borrowed)
    return _table("7", "the state of the art", (TOP1, TOP5, TEST5), rows)


def _table8() -> Table:
    rows = []
    for r in records("vgg_table8"):
        tuned, boxes = r["row"].split("/")
        name = f"D 384 {boxes}" + (" fc6-7" if tuned == "fc12" else "")
        layers = {"fc12": "first two fully connected layers", "all": "all layers"}[tuned]
        cells = {"top1": printed("vgg_table8", row=r["row"])}
        rows.append(Row(f"{layers}, {boxes}", cells, Error((Net(name),)), not_in=NO_BOXES))
    column = Column("top1", "localisation error, class given", "%", "top1")
    return _boxes_table("8", "boxes of central crops", (column,), rows)


def _table9() -> Table:
    rows = []
    for name in dict.fromkeys(r["row"] for r in records("vgg_table9")):
        cells = {
            r["split"]: printed("vgg_table9", row=name, split=r["split"])
            for r in lines("vgg_table9", row=name)
        }
        pairs = [pair.split("/") for pair in name.removeprefix("fusion/").split(" and ")]
        nets = tuple(Net(f"D {S} PCR", "dense", Q) for S, Q in pairs)
        title = " and ".join(f"S={S}, Q={Q}" for S, Q in pairs)
        rows.append(Row(title, cells, Located(nets), not_in=NO_BOXES))
    return _boxes_table("9", "boxes of whole images, merged", LOCATION, rows)


def _table10() -> Table:
    best, rows = _table9().rows[-1], []
    for name in dict.fromkeys(r["row"] for r in records("vgg_table10")):
        csv_lines = lines("vgg_table10", row=name)
        cells = {r["split"]: printed("vgg_table10", row=name, split=r["split"]) for r in csv_lines}
        our_row = replace(best, name=name, printed=cells) if name == "VGG" else None
        rows.append(our_row or Row(name, cells, None, OTHERS))
    return _boxes_table("10", "localisation, the state of the art", LOCATION, rows)


def _boxes_table(number: str, title: str, columns: tuple[Column, ...], rows: list[Row]) -> Table:
    table = _table(number, title, columns, rows)
    notes = BOX_NOTES[: 2 if number == "8" else None]
    return replace(table, study=LOCALISATION, dataset=LOCATED, trained_on=DATASET, notes=notes)


def _table11() -> Table:
    rows = []
    for name in dict.fromkeys(r["row"] for r in records("vgg_table11")):
        datasets = [r["dataset"] for r in lines("vgg_table11", row=name)]
        cells = {key: printed("vgg_table11", row=name, dataset=key) for key in datasets}
        nets = tuple(Net(f"{net} {JITTER}", "dense") for net in "DE" if f"Net-{net}" in name)
        on = {key: (target,) for key, target in TARGETS.items()} | {"own": OTHER_CLASSES}
        measured = Transferred(nets, on, "fc7") if nets else None
        rows.append(Row(name, cells, measured, "" if nets else OTHERS))
    columns = [
        *(Column(key, f"{key}, mean AP", "%", "ap") for key in ("VOC-2007", "VOC-2012")),
        *(Column(f"Caltech-{n}", f"Caltech-{n}, recall", "%", "recall") for n in (101, 256)),
        Column("own", "other classes, recall", "%", "recall"),
    ]
    table = _table("11", "features for other images", tuple(columns), rows)
    return replace(
        table,
        dataset="VOC and Caltech",
        notes=TRANSFER_NOTES,
        trained_on=DATASET,
        small="vgg_transfer",
    )


def _table12() -> Table:
    why = "actions are labels of one person's box, which are not read here"
    rows = []
    for r in records("vgg_table12"):
        is_vgg = r["row"].startswith("VGG")
        cells = {"ap": printed("vgg_table12", row=r["row"])}
        rows.append(Row(r["row"], cells, None, why if is_vgg else OTHERS))
    column = Column("ap", "mean AP", "%", "")
    table = _table("12", "features for actions", (column,), rows)
    return replace(table, dataset="VOC-2012 actions")


def _shallow() -> Table:
    column = Column("difference", "top-1 error more than B's", "points", "top1")
    cells = {"difference": printed("vgg_text_numbers", metric="top1_error_increase_vs_B")}
    more = Difference(Net("B-5x5 256"), Net("B 256"))
    rows = [Row("B with 5x5 for each pair of 3x3", cells, more)]
    return _table("shallow", "a shallow net with larger filters (section 4.1)", (column,), rows)


def _table(number: str, title: str, columns: tuple[Column, ...], rows: list[Row]) -> Table:
    name = f"Table {number}" if number.isdecimal() else "text"
    return Table(f"vgg-{number}", f"VGG, {name}: {title}", "vgg", DATASET, columns, tuple(rows))

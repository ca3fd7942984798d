"""LeCun, Bottou, Bengio and Haffner 1998: Figures 5 and 9."""

from experiments.papers.table import (
    AfterEpochs,
    Column,
    Error,
    Net,
    Printed,
    Row,
    Table,
    printed,
    records,
)

TITLE = "LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998)"
ERROR = Column("top1", "test error", "%", "top1")
TRAINING = Column("train", "training error", "%", "seen")
TEST = Column("test", "test error", "%", "test")
PASSES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 19, 20)
MEASURED = ("LeNet-5", "LeNet-5 [dist]")
UNDISTORTED = "nine of ten images distorted; encoded images are not"
RELATIVE = "a smaller relative, or several of them, which is not built here"
OTHER = "no convolutional network"
# Rows that the paper does not have -> why they are there, profiles that can't tell them apart.
OURS = {
    "LeNet-5, SGD": ("one rate for all weights; not in the paper", ("cifar", "folder")),
    "LeNet-5, modern": ("the same maps as they are built today; not in the paper", ("folder",)),
}


def tables() -> list[Table]:
    """The curves of training, and the figure of results."""
    return [_figure5(), _figure9()]


def _figure5() -> Table:
    rows = []
    for passes in PASSES:
        cells: dict[str, Printed] = {}
        if passes == 19:
            cells["train"] = printed("lenet_text_numbers", row="train error")
        if passes == 20:
            cells["test"] = printed("lenet_fig9", row="LeNet-5")
        name = f"after {passes} pass" + "es" * (passes > 1)
        rows.append(Row(name, cells, AfterEpochs(Net("LeNet-5"), float(passes))))
    title = "training and test error over passes through the training set"
    note = "Of the figure's two curves no figures were found but those of the text."
    return _table("5", title, (TRAINING, TEST), rows, note)


def _table(
    number: str, title: str, columns: tuple[Column, ...], rows: list[Row], *notes: str
) -> Table:
    name, title = f"lenet-fig{number}", f"LeNet-5, Figure {number}: {title}"
    return Table(name, title, "lenet", "MNIST", columns, tuple(rows), 32, notes)


def _figure9() -> Table:
    rows = []
    for r in records("lenet_fig9"):
        name = r["row"]
        cells = {"top1": printed("lenet_fig9", row=name)}
        if name in MEASURED:
            note, not_in = ("", ()) if name == "LeNet-5" else (UNDISTORTED, ("folder",))
            rows.append(Row(name, cells, Error((Net(name),)), note, not_in=not_in))
        else:
            rows.append(Row(name, cells, None, RELATIVE if "LeNet" in name else OTHER))
        if name == "LeNet-5":
            rows += [
                Row(other, {}, Error((Net(other),)), why, not_in=not_in)
                for other, (why, not_in) in OURS.items()
            ]
    return _table("9", "handwritten digits", (ERROR,), rows)

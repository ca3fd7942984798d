"""LeCun, Bottou, Bengio and Haffner 1998: Figure 9."""

from experiments.papers.table import Column, Error, Net, Row, Table, printed, records

TITLE = "LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998)"
ERROR = Column("top1", "test error", "%", "top1")


def tables() -> list[Table]:
    """The one figure of results."""
    return [_figure9()]


def _figure9() -> Table:
    rows = []
    for r in records("lenet_fig9"):
        measured = Error((Net("LeNet-5"),)) if r["row"] == "LeNet-5" else None
        found = {"top1": printed("lenet_fig9", row=r["row"])}
        rows.append(Row(r["row"], found, measured, "" if measured else _why(r["row"])))
    return Table(
        "lenet-fig9",
        "LeNet-5, Figure 9: handwritten digits",
        "lenet",
        "MNIST",
        (ERROR,),
        tuple(rows),
        crop=32,
    )


def _why(row: str) -> str:
    """Why it is only printed."""
    if row == "LeNet-5 [dist]":
        return "540,000 images distorted by translation, scale, squeeze and shear are not made here"
    if "LeNet" in row:
        return "a smaller relative, or several of them, which is not built here"
    return "no convolutional network"

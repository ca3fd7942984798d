"""Lin, Chen and Yan 2013: tables 1 to 5."""

from experiments.papers.table import OTHERS, Column, Error, Net, Row, Table, printed, records

TITLE = "Network in network (Lin, Chen and Yan 2013)"
ERROR = Column("top1", "test error", "%", "top1")
UNKNOWN = "the paper does not print this network's layers"
# Table -> the paper's name of a row -> the study's.
TRAINED = {
    "1": {
        "NIN + Dropout": "CIFAR-10",
        "NIN + Dropout + Data Augmentation": "CIFAR-10 shifted",
    },
    "2": {"NIN + Dropout": "CIFAR-100"},
    "3": {"NIN + Dropout": "SVHN"},
    "4": {"NIN + Dropout": "MNIST"},
    "5": {
        "mlpconv + Fully Connected": "CIFAR-10 fc",
        "mlpconv + Fully Connected + Dropout": "CIFAR-10 fc dropout",
        "mlpconv + Global Average Pooling": "CIFAR-10",
        "NIN without dropout": "CIFAR-10 without dropout",
    },
}
NOTES = {
    "SVHN": "trained without SVHN's extra images, and the mean colour taken off in place of LCN",
}


def tables() -> list[Table]:
    """Its tables in order."""
    return [_table(number) for number in TRAINED]


def _table(number: str) -> Table:
    file = f"nin_table{number}"
    rows = []
    for r in records(file):
        row = TRAINED[number].get(r["row"])
        note = NOTES.get(row, "") if row else UNKNOWN if number == "5" else OTHERS
        measured = Error((Net(row),)) if row else None
        rows.append(Row(r["row"], {"top1": printed(file, row=r["row"])}, measured, note))
    dataset = records(file)[0]["dataset"]
    about = "global average pooling (with the text's)" if number == "5" else dataset
    title = f"NiN, Table {number}: {about}"
    return Table(f"nin-{number}", title, "nin", dataset, (ERROR,), tuple(rows), crop=32)

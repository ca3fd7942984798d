"""Ciresan, Meier, Masci, Gambardella and Schmidhuber 2011: its tables, as far as they are known."""

import re
from collections.abc import Callable

from experiments.papers.table import Column, Error, Net, Row, Table, printed, records

TITLE = "Dan-net (Ciresan et al. 2011)"
ERROR = Column("top1", "test error", "%", "top1")
NOTES = (
    "Figures but those of the abstract are recalled, not read from a copy of the paper.",
    "Those with a deviation are means of several runs; of how many is not known.",
)
# The paper's name of a row -> the study's.
TRAINED = {
    "100 maps trans 0 IP no": "100 maps, 0%",
    "100 maps trans 5 IP no": "100 maps, 5%",
    "200 maps trans 5 IP no": "200 maps, 5%",
    "300 maps trans 5 IP no": "300 maps, 5%",
}


def tables() -> list[Table]:
    """CIFAR-10, which is measured, then MNIST and NORB."""
    return [
        _table("cifar", "CIFAR", "CIFAR-10", _why_not_on_cifar),
        _table("mnist", "MNIST", "MNIST", lambda row: "the sizes of its kernels are not known"),
        _table("norb", "NORB", "NORB", lambda row: "NORB and this net's kernels are not there"),
    ]


def _why_not_on_cifar(row: str) -> str:
    if row.startswith("400"):
        return "its layers are not known"
    return "its fixed filters on the input are not known"


def _table(name: str, table: str, dataset: str, why: Callable[[str], str]) -> Table:
    rows = []
    for r in records("dannet_results"):
        # The abstract repeats the tables' best, and has how fast it learns MNIST besides.
        if r["table"] == f"{table} table" or r["row"].startswith(f"{table} epoch"):
            net = TRAINED.get(r["row"])
            measured = Error((Net(net),)) if net else None
            cells = {"top1": printed("dannet_results", row=r["row"], table=r["table"])}
            rows.append(Row(_shown(r["row"]), cells, measured, "" if net else why(r["row"])))
    name, title = f"dan_net-{name}", f"Dan-net: {dataset}"
    return Table(name, title, "dan_net", dataset, (ERROR,), tuple(rows), crop=32, notes=NOTES)


def _shown(row: str) -> str:
    """`100 maps trans 5 IP edge` -> `100 maps, translation 5%, image processing edge`."""
    shown = re.sub(r" ?trans (\d) IP (\w+)", r", translation \1%, image processing \2", row)
    return shown.lstrip(", ")

"""Goyal et al. 2017: tables 1 and 2."""

from experiments.papers.table import TOP1, Error, Net, Row, Table, errors, records

TITLE = "Large minibatches (Goyal et al. 2017)"
RUNS = 5  # of which the paper prints mean and deviation
# The paper's name of a row -> the study's, where they differ.
SAME = {
    "baseline kn=256": "kn=256 lr=0.10",
    "no warmup kn=8k": "kn=8k no warm-up",
    "constant warmup kn=8k": "kn=8k constant warm-up",
    "gradual warmup kn=8k": "kn=8k lr=0.10*32",
    "kn=256 gamma=0.0": "kn=256 lr=0.10",
    "kn=8k gamma=0.0": "kn=8k lr=0.10*32",
}


def tables() -> list[Table]:
    """Its tables in order."""
    return [
        _table("1", "warm-up", "goyal_table1"),
        _table("2", "rate, initial scale and depth", "goyal_table2"),
    ]


def _table(number: str, about: str, file: str) -> Table:
    rows = []
    for r in records(file):
        net = Net(SAME.get(r["row"], r["row"]))
        part = f"{r['table']} " if r["table"] != number else ""
        cells = errors(file, row=r["row"])
        rows.append(Row(part + r["row"], cells, Error((net,)), runs=RUNS))
    notes = [f"Means of {RUNS} runs; each of the paper's is the median of its last five epochs."]
    if number == "2":
        notes.append("The caption of 2a has 23.68 for kn=256 and rate 0.1, which is rate 0.2's.")
    name, title = f"goyal-{number}", f"Goyal et al., Table {number}: {about}"
    return Table(name, title, "goyal", "ILSVRC-2012", (TOP1,), tuple(rows), notes=tuple(notes))

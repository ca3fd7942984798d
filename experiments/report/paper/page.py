"""All tables of a paper as one self-contained HTML page."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.papers.measured import TableResult
from experiments.report.figures import Figure, slug
from experiments.report.page import render, run_details
from experiments.report.paper import document, forms
from experiments.report.text import count


def page(
    tables: Sequence[Mapping[str, Any]],
    results: Sequence[TableResult],
    figures: Sequence[Figure],
    folder: Path,
    title: str,
) -> str:
    """The page as text; tables: the documents of `results`, in their order."""
    runs = {run.folder.name: run for result in results for row in result.rows for run in row.runs}
    told = {name: of for table in tables for name, of in table["runs"].items()}
    details = []
    for number, (name, run) in enumerate(runs.items(), 1):
        of = told[name]
        words = f"Run {number}: {of['study']}, {of['row']}, seed {of['seed']}"
        details.append(run_details(words, run, folder, _facts(of), f"run-{slug(name)}"))
    # Each profile with what it is, and what it can't say.
    measured = [table for table in tables if document.trained(table)] or tables
    return render(
        "paper.html",
        title=title,
        profiles=dict.fromkeys((table["profile"], table["about"]) for table in measured),
        caveats=dict.fromkeys(filter(None, map(document.caveat, tables))),
        tables=tables,
        columns=partial(forms.columns, costs=True),
        document=document,
        numbers={name: number for number, name in enumerate(runs, 1)},
        figures=figures,
        runs=details,
        total=_total(list(told.values())),
    )


def _facts(told: Mapping[str, Any]) -> dict[str, Any]:
    seeded = told["seed_from"]
    if isinstance(seeded, Mapping):
        seeded = ", ".join(str(seeded[key]) for key in ("row", "run") if seeded.get(key))
    return {
        "finished": told["finished"],
        "training": None if told["seconds"] is None else document.duration(told["seconds"]),
        **{words: show(told[key]) for key, words, _, show in COSTS if told[key] is not None},
        "seeded by": seeded,
        "commit": told["commit"],
    }


def _macs(value: float) -> str:
    return f"{value:.3g}" if value >= 1e12 else count(value)


def _total(runs: Sequence[Mapping[str, Any]]) -> str:
    """What all runs cost together, of those that tell."""
    parts = [f"{len(runs)} run{'s' if len(runs) > 1 else ''}"]
    for key, words, more, show in COSTS:
        values = [run[key] for run in runs if run[key] is not None]
        if values:
            parts.append(f"{show(sum(values))} {words}{more}")
    return f"{', '.join(parts)}."


COSTS: tuple[tuple[str, str, str, Callable[[Any], str]], ...] = (  # the third of the total only
    ("device_seconds", "device time", "", document.duration),
    ("images", "images trained on", "", "{:,}".format),
    ("training_macs", "multiply-adds of training", " (three times the forward pass's)", _macs),
)

"""A report as one self-contained HTML page, made by the template of this package."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.report.figures import DARK_TONES, Figure, slug
from experiments.report.forms import TEMPLATES
from experiments.report.table import Table, grouped
from experiments.report.text import count, duration
from experiments.runs.results import RunResult, provenance
from experiments.text import numbered


@dataclass(frozen=True)
class Report:
    """What stands on a page, and in files of its own."""

    title: str
    profiles: Sequence[tuple[str, str]]  # at what size things were measured, and on what
    tables: Sequence[Table]
    figures: Sequence[Figure]
    runs: Sequence[RunResult]  # of all tables, some several times
    heading: str = "Profile"  # of the profiles


def page(report: Report, folder: Path) -> str:
    """The page as text. Run folders are shown relative to `folder`, where it will lie.

    Whatever it shows is escaped, but for the drawings of figures.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "broken": lambda text: escape(text).replace("\n", Markup("<br>")),
        "grouped": grouped,
        "drawing": lambda figure: Markup(drawing(figure)),
        "repr": repr,
        "slug": slug,
        "variable": _variable,
    }
    runs = {run.folder.name: (run, provenance(run)) for run in report.runs}
    return environment.get_template("page.html").render(
        report=report,
        caveats=dict.fromkeys(table.caveat for table in report.tables if table.caveat),
        numbers={name: number for number, name in enumerate(runs, 1)},
        runs={name: _details(*run_and_origin, folder) for name, run_and_origin in runs.items()},
        total=_total([origin for _, origin in runs.values()]),
        tones=DARK_TONES,
    )


def drawing(figure: Figure) -> str:
    """What follows `<svg ` in a figure's drawing, fit to stand in a page.

    Ids get the figure's name, so that several figures can stand in one page; colours become CSS
    variables, so that they follow the reader's light or dark scheme.
    """
    svg = figure.svg[figure.svg.index("<svg ") + len("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<title>.*?</title>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{figure.name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\1{figure.name}-", svg)
    for colour in DARK_TONES:
        svg = svg.replace(colour, f"var({_variable(colour)})")
    return svg.strip()


def _variable(colour: str) -> str:
    return f"--c{colour[1:]}"


def _details(run: RunResult, origin: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A run's name, facts, config, result and seeding report."""
    seeded = origin["seed_from"] or {}
    facts = {
        "folder": os.path.relpath(run.folder, folder),
        "run": run.run.get("id"),
        "seed": origin["seed"],
        "created": run.run.get("created"),
        "devices": origin["devices"],
        "finished": origin["finished"],
        "training": None if origin["seconds"] is None else duration(origin["seconds"]),
        **{label: show(origin[key]) for key, label, _, show in COSTS if origin[key] is not None},
        "seeded by": ", ".join(seeded[key] for key in ("row", "run") if seeded.get(key)),
        "commit": origin["commit"],
        "versions": ", ".join(f"{name} {v}" for name, v in (origin["versions"] or {}).items()),
    }
    dumped = partial(json.dumps, indent=1, ensure_ascii=False)
    return {
        "title": f"{origin['study']}, {origin['row']}, seed {origin['seed']}",
        "facts": {name: fact for name, fact in facts.items() if fact not in (None, "")},
        "contents": {"config": dumped(run.run.get("config")), "result": dumped(run.result)},
        "seeding": run.seeding,
    }


def _macs(value: float) -> str:
    return f"{value:.3g}" if value >= 1e12 else count(value)


def _total(runs: Sequence[Mapping[str, Any]]) -> str:
    """What all runs cost together, as far as it is known."""
    parts = [numbered(len(runs), "run")]
    for key, label, addition, show in COSTS:
        values = [run[key] for run in runs if run[key] is not None]
        if values:
            parts.append(f"{show(sum(values))} {label}{addition}")
    return f"{', '.join(parts)}."


# Key, words, what the total adds to the words, and how a value is shown.
COSTS: tuple[tuple[str, str, str, Callable[[Any], str]], ...] = (
    ("device_seconds", "device time", "", duration),
    ("images", "images trained on", "", "{:,}".format),
    ("training_macs", "multiply-adds of training", " (three times the forward pass's)", _macs),
)

"""A report as one self-contained HTML page, made by the templates of this package."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from experiments.report.figures import DARK_TONES, Figure, slug
from experiments.report.tables import Table
from experiments.report.text import Column
from experiments.runs.results import RowResult, RunResult

TEMPLATES = Path(__file__).with_name("templates")


def page(
    table: Table, figures: Sequence[Figure], results: Sequence[RowResult], folder: Path | str
) -> str:
    """A study's page as text. Run folders are shown relative to `folder`, where it will lie."""
    runs = []
    for row in results:
        for _, run in sorted(row.runs.items()):
            title = f"{row.study}: {row.name}, seed {run.run.get('seed')}"
            runs.append(run_details(title, run, Path(folder)))
    return render("study.html", title=table.title, table=table, figures=figures, runs=runs)


def render(template: str, **shown: Any) -> str:
    """A page of this template; whatever it shows is escaped, but for the drawings of figures."""
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
        "consecutive": _by_group,
        "drawing": lambda figure: Markup(drawing(figure)),
        "repr": repr,
        "slug": slug,
        "variable": _variable,
    }
    text = environment.get_template(template).render(tones=DARK_TONES, **shown)
    # JSON is full of quotes, which one can read by these names.
    return text.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")


def _by_group(columns: Sequence[Column]) -> list[tuple[str, list[Column]]]:
    """Columns that follow each other in a group."""
    return [(group, list(found)) for group, found in groupby(columns, lambda c: c.group)]


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


def run_details(
    title: str,
    run: RunResult,
    folder: Path,
    facts: Mapping[str, Any] | None = None,
    anchor: str = "",
) -> dict[str, Any]:
    """A run's facts, config, result and seeding report, for the templates; anchor: its id."""
    versions = ", ".join(f"{name} {of}" for name, of in run.run.get("versions", {}).items())
    shown = {
        "folder": os.path.relpath(run.folder, folder),
        "run": run.run.get("id"),
        "seed": run.run.get("seed"),
        "created": run.run.get("created"),
        "devices": run.result.get("devices"),
        **(facts or {}),
        "versions": versions,
    }
    contents = {"config": run.run.get("config"), "result": run.result}
    dumped = partial(json.dumps, indent=1, ensure_ascii=False)
    return {
        "title": title,
        "anchor": anchor,
        "facts": {name: fact for name, fact in shown.items() if fact not in (None, "")},
        "contents": {name: dumped(content) for name, content in contents.items()},
        "seeding": None if run.seeding is None else _seeding(run.seeding),
    }


def _seeding(seeding: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Its entries by their names: lines where there are several, else a text."""
    told: dict[str, str | list[str]] = {}
    for key, entries in seeding.items():
        lines = [_pair(each) for each in entries] if isinstance(entries, list) else str(entries)
        told[key.replace("_", " ")] = lines
    return told


def _pair(entry: Any) -> str:
    if isinstance(entry, list):
        old, *new = map(str, entry)
        return old if new in ([], [old]) else f"{old} -> {', '.join(new)}"
    return str(entry)

"""All tables of a paper as one self-contained HTML page: nothing is loaded from anywhere."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from experiments.papers.measured import TableResult
from experiments.report.figures import Figure, slug
from experiments.report.page import cell_text, figures_section, framed, run_details
from experiments.report.paper import document, forms
from experiments.report.text import Column, count
from experiments.runs.results import RunResult


def page(
    tables: Sequence[Mapping[str, Any]],
    results: Sequence[TableResult],
    figures: Sequence[Figure],
    folder: Path,
    title: str,
) -> str:
    """The page as text; tables: the documents of `results`, in their order."""
    runs = {run.folder.name: run for result in results for row in result.rows for run in row.runs}
    numbers = {name: i for i, name in enumerate(runs, 1)}
    body = [
        f"<header><h1>{escape(title)}</h1>",
        *_profiles(tables),
        "</header>",
        _contents(tables),
        "<main>",
        *(_table(table, numbers) for table in tables),
        figures_section(figures),
        _runs(tables, runs, folder),
        "</main>",
    ]
    return framed(title, body, CSS)


def _profiles(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each profile with what it is, and what it can't say."""
    measured = [table for table in tables if document.trained(table)] or tables
    found = dict.fromkeys((table["profile"], table["about"]) for table in measured)
    lines = [
        f'<p class="profile">Profile: <strong>{escape(profile)}</strong>, {escape(about)}.</p>'
        for profile, about in found
    ]
    caveats = dict.fromkeys(filter(None, map(document.caveat, tables)))
    return [*lines, *(f'<p class="note">{escape(caveat)}</p>' for caveat in caveats)]


def _contents(tables: Sequence[Mapping[str, Any]]) -> str:
    if len(tables) < 2:
        return ""
    links = "".join(
        f'<li><a href="#{_table_id(table)}">{escape(table["title"])}</a></li>' for table in tables
    )
    return f'<nav aria-label="Tables"><ul>{links}</ul></nav>'


def _table_id(table: Mapping[str, Any]) -> str:
    return f"table-{slug(table['table'])}"


def _run_id(name: str) -> str:
    return f"run-{slug(name)}"


def _table(table: Mapping[str, Any], numbers: Mapping[str, int]) -> str:
    columns = forms.columns(table, costs=True)
    linked = any(row["runs"] for row in table["rows"])
    rows = "\n".join(_row(columns, row, numbers, linked=linked) for row in table["rows"])
    origin = "<br>".join(map(escape, document.origin(table)))
    notes = "".join(f"<li>{escape(note)}</li>" for note in document.footnotes(table))
    remarks = document.agreement(table)
    words = "".join(f"<p>{escape(sentence)}</p>" for sentence in remarks)
    above = [*remarks, document.caveat(table)]  # the caveat stands at the top of the page
    others = [line for line in document.remarks(table) if line not in above]
    small = "<br>".join(map(escape, others))
    return (
        f'<section id="{_table_id(table)}"><h2>{escape(table["title"])}</h2>\n'
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(table["title"])}">'
        f"<table>\n<caption>{origin}</caption>\n"
        f"<thead>{_header(columns, linked=linked)}</thead>\n"
        f"<tbody>\n{rows}\n</tbody></table></div>\n"
        + (f"<ol>{notes}</ol>\n" if notes else "")
        + words
        + (f'<p class="note">{small}</p>' if small else "")
        + "</section>"
    )


def _header(columns: Sequence[Column], *, linked: bool) -> str:
    """Two lines: groups above their columns, and the other columns over both."""
    above, below = [], []
    for group, found in groupby(columns, key=lambda column: column.group):
        parts = list(found)
        if group:
            side = "group" if len(parts) > 1 else "group right"
            above.append(
                f'<th scope="colgroup" colspan="{len(parts)}" class="{side}">{escape(group)}</th>'
            )
            heads = [escape(column.header).replace(" (", "<br>(") for column in parts]
            below += [f'<th scope="col" class="right">{head}</th>' for head in heads]
            continue
        for column in parts:
            side = ' class="right"' if column.right else ""
            above.append(f'<th scope="col" rowspan="2"{side}>{escape(column.header)}</th>')
    if linked:
        above.append('<th scope="col" rowspan="2">runs</th>')
    return f"<tr>{''.join(above)}</tr>\n<tr>{''.join(below)}</tr>"


def _row(
    columns: Sequence[Column], row: Mapping[str, Any], numbers: Mapping[str, int], *, linked: bool
) -> str:
    name, *others = [column.cell(dict(row)) for column in columns]
    below = f"<br><small>{escape(name.below)}</small>" if name.below else ""
    cells = [f'<th scope="row">{escape(name.text)}{below}</th>']
    for column, cell in zip(columns[1:], others, strict=True):
        text = cell_text(cell)
        if column.header.startswith("measured") and cell.text and row["runs"]:
            text = f'<a href="#{_run_id(row["runs"][0])}">{text}</a>'
        side = ' class="right"' if column.right else ""
        cells.append(f"<td{side}>{text}</td>")
    if linked:
        links = " ".join(f'<a href="#{_run_id(run)}">{numbers[run]}</a>' for run in row["runs"])
        cells.append(f'<td class="runs">{links}</td>')
    state = escape(row["state"].replace(" ", "-"))
    return f'<tr class="{state}">' + "".join(cells) + "</tr>"


def _runs(tables: Sequence[Mapping[str, Any]], runs: Mapping[str, RunResult], folder: Path) -> str:
    if not runs:
        return ""
    told = {name: of for table in tables for name, of in table["runs"].items()}
    parts = []
    for number, (name, run) in enumerate(runs.items(), 1):
        of = told[name]
        title = f"Run {number}: {of['study']}, {of['row']}, seed {of['seed']}"
        parts.append(run_details(title, run, folder, _facts(of), _run_id(name)))
    return (
        f"<section><h2>Runs</h2>\n<p>{escape(_total(list(told.values())))}</p>\n"
        + "\n".join(parts)
        + "\n</section>"
    )


def _facts(told: Mapping[str, Any]) -> dict[str, Any]:
    seeded = told["seed_from"]
    if isinstance(seeded, Mapping):
        seeded = ", ".join(str(seeded[key]) for key in ("row", "run") if seeded.get(key))
    return {
        "finished": told["finished"],
        "training": _shown(told["seconds"], document.duration),
        "device time": _shown(told["device_seconds"], document.duration),
        "images trained on": _shown(told["images"], "{:,}".format),
        "multiply-adds of training": _shown(told["training_macs"], _macs),
        "seeded by": seeded,
        "commit": told["commit"],
    }


def _shown(value: Any, show: Any) -> str | None:
    return None if value is None else show(value)


def _macs(value: float) -> str:
    return f"{value:.3g}" if value >= 1e12 else count(value)


def _total(runs: Sequence[Mapping[str, Any]]) -> str:
    """What all runs cost together, of those that tell."""
    parts = [f"{len(runs)} run{'s' if len(runs) > 1 else ''}"]
    for key, words, show in (
        ("device_seconds", "device time", document.duration),
        ("images", "images trained on", "{:,}".format),
        ("training_macs", "multiply-adds of training (three times the forward pass's)", _macs),
    ):
        values = [run[key] for run in runs if run[key] is not None]
        if values:
            parts.append(f"{show(sum(values))} {words}")
    return f"{', '.join(parts)}."


CSS = """
body{max-width:76rem}
thead .group{border-bottom:1px solid var(--cc8c8c8);white-space:normal}
thead .group:not(.right){text-align:center}
figure svg{width:auto}
.runs{white-space:normal;min-width:4rem;max-width:9rem}
tbody tr:not(.measured):not(.partly):not(.failed) th{font-weight:400}
a{color:inherit;text-decoration-color:var(--c0072b2);text-underline-offset:.15em}
nav ul{padding-left:1.2rem}
details:target>summary{outline:2px solid var(--c0072b2);outline-offset:.2rem}
ol{font-size:.86rem;max-width:46rem;padding-left:1.6rem}
h2{scroll-margin-top:1rem}"""

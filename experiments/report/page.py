"""The report as one self-contained HTML page: nothing is loaded from anywhere."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from experiments.report.figures import DARK_TONES, Figure
from experiments.report.tables import Table
from experiments.report.text import Cell, Column
from experiments.runs.results import RowResult, RunResult


def page(
    table: Table, figures: Sequence[Figure], results: Sequence[RowResult], folder: Path | str
) -> str:
    """The page as text. Run folders are shown relative to `folder`, where the page will lie."""
    body = [
        f"<header><h1>{escape(table.title)}</h1>",
        f'<p class="profile">Profile: <strong>{escape(table.profile)}</strong></p></header>',
        "<main>",
        _findings(table),
        _tables(table),
        figures_section(figures),
        _runs(results, Path(folder)),
        "</main>",
    ]
    return framed(table.title, body)


def framed(title: str, body: Sequence[str], css: str = "") -> str:
    """A whole page of these parts, less those that are empty; css: beside what all pages have."""
    return _FRAME.format(
        title=escape(title), style=_style() + css, body="\n".join(filter(None, body))
    )


def _findings(table: Table) -> str:
    if not table.findings:
        return ""
    items = "\n".join(f"<li>{escape(finding.text)}</li>" for finding in table.findings)
    return f'<section><h2>Findings</h2>\n<ul class="findings">\n{items}\n</ul></section>'


def _tables(table: Table) -> str:
    columns = table.columns()
    head = "".join(_header(column) for column in columns)
    groups = []
    for study, records in table.studies().items():
        rows = "\n".join(_row(columns, record) for record in records)
        name = f'<tr class="study"><th colspan="{len(columns)}" scope="rowgroup">'
        groups.append(f"<tbody>\n{name}{escape(study)}</th></tr>\n{rows}\n</tbody>")
    reasons = "".join(f"<p>{escape(reason)}</p>" for reason in table.reasons())
    return (
        '<section><h2>Table</h2>\n<div class="wide" tabindex="0" role="region" '
        f'aria-label="Table of all rows"><table>\n<caption>{escape(table.profile)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n" + "\n".join(groups) + f"\n</table></div>\n{reasons}"
        f'<p class="note">{escape(table.legend())}</p></section>'
    )


def _header(column: Column) -> str:
    name = escape(column.header).replace("\n", "<br>")
    unit = f"<br><small>{escape(column.unit)}</small>" if column.unit else ""
    return f'<th scope="col"{_side(column)}>{name}{unit}</th>'


def _side(column: Column) -> str:
    return ' class="right"' if column.right else ""


def _row(columns: Sequence[Column], record: Mapping[str, Any]) -> str:
    first, *others = [column.cell(dict(record)) for column in columns]
    cells = [f'<th scope="row">{escape(first.text)}</th>']
    for column, cell in zip(columns[1:], others, strict=True):
        cells.append(f"<td{_side(column)}>{cell_text(cell)}</td>")
    state = escape(record["state"].replace(" ", "-"))
    return f'<tr class="{state}">' + "".join(cells) + "</tr>"


def cell_text(cell: Cell) -> str:
    """The text; where it stands for a number, with that number unrounded."""
    text = escape(cell.text)
    if isinstance(cell.value, int | float) and text:
        text = f'<data value="{cell.value!r}">{text}</data>'
    below = f"<br><small>{escape(cell.below)}</small>" if cell.below else ""
    return text + below


def figures_section(figures: Sequence[Figure]) -> str:
    """All figures, and why others were not drawn."""
    parts = []
    for figure in figures:
        if figure.svg:
            parts.append(
                f'<figure><div class="wide" tabindex="0" role="region" '
                f'aria-label="{escape(figure.title)}">{inline_svg(figure)}</div>\n'
                f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
            )
        else:
            parts.append(f"<p><em>{escape(figure.title)}.</em> {escape(figure.note)}</p>")
    return "<section><h2>Figures</h2>\n" + "\n".join(parts) + "\n</section>" if parts else ""


def inline_svg(figure: Figure) -> str:
    """The figure's SVG fit to stand in a page.

    Ids get the figure's name, so that several figures can stand in one page; colours become CSS
    variables, so that they follow the reader's light or dark scheme.
    """
    svg = figure.svg[figure.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<title>.*?</title>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{figure.name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\1{figure.name}-", svg)
    for colour in DARK_TONES:
        svg = svg.replace(colour, f"var({_variable(colour)})")
    label = f'<svg role="img" aria-label="{escape(figure.title)}" '
    return svg.replace("<svg ", label, 1).strip()


def _variable(colour: str) -> str:
    return f"--c{colour[1:]}"


def _runs(results: Sequence[RowResult], folder: Path) -> str:
    shown = [_run(row, row.runs[seed], folder) for row in results for seed in sorted(row.runs)]
    return "<section><h2>Runs</h2>\n" + "\n".join(shown) + "\n</section>" if shown else ""


def _run(row: RowResult, run: RunResult, folder: Path) -> str:
    return run_details(f"{row.study}: {row.name}, seed {run.run.get('seed')}", run, folder)


def run_details(
    title: str,
    run: RunResult,
    folder: Path,
    facts: Mapping[str, Any] | None = None,
    anchor: str = "",
) -> str:
    """A run's facts, config, result and seeding report, to be opened; anchor: its id."""
    versions = ", ".join(f"{name} {of}" for name, of in run.run.get("versions", {}).items())
    shown = {
        "folder": _relative(run.folder, folder),
        "run": run.run.get("id"),
        "seed": run.run.get("seed"),
        "created": run.run.get("created"),
        "devices": run.result.get("devices"),
        **(facts or {}),
        "versions": versions,
    }
    lines = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(fact))}</dd>"
        for name, fact in shown.items()
        if fact not in (None, "")
    )
    parts = [f"<dl>{lines}</dl>"]
    for name, content in (("config", run.run.get("config")), ("result", run.result)):
        text = escape(json.dumps(content, indent=1, ensure_ascii=False))
        parts.append(f"<details><summary>{name}</summary><pre>{text}</pre></details>")
    if run.seeding is not None:
        parts.append(_seeding(run.seeding))
    name = f' id="{escape(anchor)}"' if anchor else ""
    return (
        f'<details class="run"{name}><summary>{escape(title)}</summary>\n'
        + "\n".join(parts)
        + "\n</details>"
    )


def _relative(path: Path, folder: Path) -> str:
    try:
        return os.path.relpath(path, folder)
    except ValueError:  # another drive
        return str(path)


def _seeding(seeding: Mapping[str, Any]) -> str:
    """What was copied (old name -> new name), what starts fresh, what was left over."""
    parts, counts = [], []
    for key, entries in seeding.items():
        name = escape(key.replace("_", " "))
        if isinstance(entries, list):
            counts.append(f"{len(entries)} {name}")
            lines = "\n".join(_pair(entry) for entry in entries)
            parts.append(f"<h3>{name} ({len(entries)})</h3><pre>{escape(lines)}</pre>")
        else:
            parts.append(f"<p>{name}: {escape(str(entries))}</p>")
    summary = f"seeding report: {', '.join(counts)}"
    return f"<details><summary>{summary}</summary>" + "".join(parts) + "</details>"


def _pair(entry: Any) -> str:
    if isinstance(entry, list):
        old, *new = map(str, entry)
        return old if new in ([], [old]) else f"{old} -> {', '.join(new)}"
    return str(entry)


def _style() -> str:
    light = "".join(f"{_variable(colour)}:{colour};" for colour in DARK_TONES)
    dark = "".join(f"{_variable(colour)}:{tone};" for colour, tone in DARK_TONES.items())
    return (
        f":root{{color-scheme:light dark;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{_CSS}"
    )


_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
{body}
</body>
</html>
"""

_CSS = """body{font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
 color:var(--c222222);background:var(--cffffff);max-width:66rem;margin:0 auto;padding:1rem}
h1{font-size:1.7rem;line-height:1.2;margin:.6rem 0}
h2{font-size:1.2rem;margin:2rem 0 .6rem}
h3{font-size:.95rem;margin:.8rem 0 .2rem}
.profile{border-left:.3rem solid var(--c0072b2);padding:.4rem .8rem;margin:0}
.findings{padding-left:1.2rem;max-width:46rem}
.findings li{margin:.5rem 0}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums;width:100%}
caption{caption-side:top;text-align:left;padding:.2rem 0 .6rem}
th,td{padding:.28rem .55rem;text-align:left;vertical-align:top;white-space:nowrap}
th[scope=row]{font-weight:600;position:sticky;left:0;background:var(--cffffff)}
thead th{vertical-align:bottom;border-bottom:2px solid var(--c222222)}
tbody tr{border-bottom:1px solid var(--cc8c8c8)}
.right{text-align:right}
.study th{padding-top:1rem;font-weight:600;font-style:italic}
.failed th,.failed td{color:var(--cd55e00)}
small,.note,figcaption{font-size:.8rem;opacity:.85}
.note,figcaption{max-width:46rem}
figure{margin:1.4rem 0}
figure svg{display:block;width:100%;min-width:38rem;height:auto}
details{margin:.4rem 0}
details details{margin-left:1rem}
summary{cursor:pointer}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:.4rem 1rem;
 font-size:.9rem}
dd{margin:0;overflow-wrap:anywhere}
pre{font-size:.8rem;overflow-x:auto;border:1px solid var(--cc8c8c8);padding:.6rem;margin:.3rem 0}
@media print{body{max-width:none;font-size:10pt}.wide{overflow:visible}
 table{font-size:7.5pt}th,td{padding:.15rem .3rem}figure,tr{break-inside:avoid}
 figure svg{min-width:0}}"""

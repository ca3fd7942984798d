"""Figures of a paper's tables: errors against costs, training curves, and how alike nets are."""

import itertools
import json
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.papers.measured import RowResult, TableResult, overlap
from experiments.papers.table import HEADS, Column
from experiments.report.figures import (
    BLUE,
    INK,
    ORANGE,
    PAPER,
    VERMILLION,
    Canvas,
    Figure,
    Net,
    bar,
    bars_caption,
    log_scale,
    panel_title,
    plot_training,
    shade,
    spaced,
)
from experiments.report.text import count
from experiments.runs.results import Measurement, RunResult

# Of lines that are told apart by kind, not by order: (colour, marker).
STYLES = (
    (BLUE, "o"),
    (VERMILLION, "s"),
    (ORANGE, "^"),
    ("#a83279", "D"),
    ("#16345f", "v"),
    ("#5d3a9b", "P"),
)
PRINTED = (0, (4, 2))  # the dashes of its lines
COSTS = (
    ("depth", "weight layers"),
    ("macs", "multiply-adds of one image"),
    ("parameters", "parameters"),
)
CURVES_ALONE, CURVES_BESIDE = 8, 6  # in a panel
NETS = 14  # of a heat map


@dataclass(frozen=True)
class Point:
    """A row of one net: its errors against what it costs."""

    name: str
    printed: float | None
    measured: Measurement
    costs: Mapping[str, float]


def draw(results: Sequence[TableResult]) -> list[Figure]:
    """All figures of a paper's tables; one that no table has the rows for is a note."""
    figures = []
    for kind, (title, missing, plot) in KINDS.items():
        figures += plot(results) or [Figure(kind, title, note=f"Not drawn: {missing}.")]
    return figures


def _figure(name: str, title: str, subtitle: str, result: TableResult, canvas: Canvas) -> Figure:
    measured = f"Measured here: profile {result.profile}, {result.about}"
    return Figure(name, title, [measured, subtitle], canvas)


# ------------------------------------------------------------------------------- against costs


def plot_errors(results: Sequence[TableResult]) -> list[Figure]:
    """The errors of each table against depth, multiply-adds and parameters, where these differ."""
    drawn = []
    for result in results:
        canvas = _errors(result)
        if canvas is not None:
            title = f"Errors against costs in {result.table.title}"
            has_printed = any(row.row.printed for row in result.rows)
            printed = f"Printed: {result.table.dataset}" if has_printed else ""
            drawn.append(_figure(f"errors-{result.table.name}", title, printed, result, canvas))
    return drawn


def points(result: TableResult, column: Column) -> list[Point]:
    """The rows of one net that have an error and all costs."""
    nets = []
    for row in result.rows:
        measured, printed = row.cells.get(column.key), row.row.printed.get(column.key)
        costs = {key: value for key, _ in COSTS if (value := row.costs.get(key)) is not None}
        if measured is None or len(row.row.nets) != 1 or len(costs) < len(COSTS):
            continue
        nets.append(Point(row.row.name, printed.value if printed else None, measured, costs))
    return nets


def grouped(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points that belong on one line, by its name.

    The first word names the line: `plain-20` is of `plain`. Where first words join only nets of one
    depth, as in `D, S=256`, the last part names it.
    """
    parts = (lambda name: re.split("[-, ]", name)[0], lambda name: name.rpartition(",")[2].strip())
    for part in parts:
        groups: dict[str, list[Point]] = {}
        for point in points:
            groups.setdefault(part(point.name), []).append(point)
        if any(len({p.costs["depth"] for p in group}) > 1 for group in groups.values()):
            return groups
    return {"": list(points)}


def _errors(result: TableResult) -> Canvas | None:
    """The drawing of the top-1 error, or else of the first error that some row was measured in."""
    columns = [c for c in result.table.columns if c.unit == "%" and c.what not in ("", *HEADS)]
    columns = [c for c in columns if any(c.key in row.cells for row in result.rows)]
    column = min(columns, key=lambda c: c.what != "top1", default=None)
    nets = points(result, column) if column else []
    costs = [cost for cost in COSTS if _differ([net.costs[cost[0]] for net in nets])]
    if column is None or not costs:
        return None
    groups = grouped(nets)
    canvas = Canvas(2, 2 if len(costs) > 1 else 1, height=3.1, below=0.8)
    *panels, key = canvas.axes.flat[: len(costs) + 1]
    for axes in canvas.axes.flat[len(costs) + 1 :]:
        axes.set_axis_off()
    for axes, (cost, label) in zip(panels, costs, strict=True):
        for k, group in enumerate(groups.values()):
            _line(axes, group, cost, *STYLES[k % len(STYLES)])
        axes.set_xlabel(label, color=INK, size=9)
        _cost_scale(axes, cost, sorted({net.costs[cost] for net in nets}))
        panel_title(axes, f"{column.header}, %")
    tops = (v for net in nets for v in (net.measured.value, net.measured.high, net.printed))
    highest = max(value for value in tops if value is not None)
    for axes in panels:
        axes.set_ylim(0, 1.06 * highest or 1)
    has_printed = any(net.printed is not None for net in nets)
    _key(key, list(groups), result.profile, result.table.dataset if has_printed else "")
    canvas.caption = f"{len(nets)} nets." + bars_caption(net.measured for net in nets)
    if has_printed and result.profile != "paper":
        canvas.caption += (
            " Printed errors stand at the depth, multiply-adds and parameters of the nets trained "
            "here, which are not the paper's."
        )
    return canvas


def _differ(values: Sequence[float]) -> bool:
    """Whether values differ by more than a hundredth; on an axis of less stands one figure."""
    return bool(values) and max(values) > 1.01 * min(values)


def _line(axes: Any, group: Sequence[Point], cost: str, colour: str, marker: str) -> None:
    """Draws measured errors solid and filled, with intervals; printed ones dashed and hollow."""
    x = [point.costs[cost] for point in group]
    for point in group:
        bar(axes, point.costs[cost], point.measured, colour, 1.2)
    for values, line, fill in (
        ([point.printed for point in group], PRINTED, PAPER),
        ([point.measured.value for point in group], "solid", colour),
    ):
        dots = [(a, float(b)) for a, b in zip(x, values, strict=True) if b is not None]
        if not dots:
            continue
        xs = sorted({a for a, _ in dots})
        means = [float(np.mean([b for a, b in dots if a == at])) for at in xs]
        axes.plot(xs, means, color=colour, linewidth=1.3, linestyle=line, marker="")
        style = {"color": colour, "marker": marker, "markersize": 5.0, "markerfacecolor": fill}
        axes.plot(*zip(*dots, strict=True), linestyle="none", **style)


def _cost_scale(axes: Any, cost: str, values: Sequence[float]) -> None:
    """Ticks at the depths, or few at other costs, logarithmic where these differ fivefold.

    values: sorted.
    """
    from matplotlib.ticker import FixedLocator, MaxNLocator

    if cost == "depth":
        axes.xaxis.set_major_locator(FixedLocator(spaced(values)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        return
    if values[-1] > 5 * values[0]:
        log_scale(axes.xaxis, values[0], values[-1])
    else:
        least, greatest = values[0], values[-1]
        ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(least, greatest)
        visible = [tick for tick in ticks if least <= tick <= greatest] or [least]
        by_label = {count(tick): tick for tick in visible}  # what rounds to one figure is one tick
        axes.xaxis.set_major_locator(FixedLocator(list(by_label.values())))
    axes.xaxis.set_major_formatter(lambda value, _: count(value))


def _key(axes: Any, groups: Sequence[str], profile: str, dataset: str) -> None:
    """Draws what lines and signs mean, in place of a fourth panel."""
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    entries: list[tuple[Any, str, str, str, str]]
    entries = [("solid", INK, "o", INK, f"measured (profile {profile})")]
    if dataset:
        entries.append((PRINTED, INK, "o", PAPER, f"printed ({dataset})"))
    if any(groups):
        styles = itertools.cycle(STYLES)
        entries += [("solid", c, m, c, name) for name, (c, m) in zip(groups, styles, strict=False)]
    for k, (line, colour, marker, fill, text) in enumerate(entries):
        y = 0.97 - 0.095 * k
        axes.plot([0.02, 0.14], [y, y], color=colour, linewidth=1.4, linestyle=line)
        axes.plot(0.08, y, marker, color=colour, markersize=5.0, markerfacecolor=fill)
        axes.text(0.18, y, textwrap.shorten(text, 44), color=colour, size=9, va="center")


# ------------------------------------------------------------------------------- training curves

# The first part of an architecture's name -> (figure, panel).
SIDES = {
    "cifar_plain": ("cifar_resnet", "Plain"),
    "cifar_resnet": ("cifar_resnet", "Residual"),
    "plain": ("resnet", "Plain"),
    "resnet": ("resnet", "Residual"),
}


def plot_curves(results: Sequence[TableResult]) -> list[Figure]:
    """Error and loss over epochs; plain and residual nets side by side."""
    figures: dict[str, tuple[TableResult, dict[str, list[RunResult]]]] = {}
    for result, run in curve_runs(results):
        family = architecture(run).partition(":")[0]
        figure, panel = SIDES.get(family, ("", "Nets"))
        _, panels = figures.setdefault(figure, (result, {}))
        panels.setdefault(panel, []).append(run)
    drawn = []
    for figure, (result, panels) in figures.items():
        limit = CURVES_BESIDE if len(panels) > 1 else CURVES_ALONE
        nets = {panel: _nets(panels[panel], limit) for panel in sorted(panels)}
        canvas = plot_training(nets)
        left_out = sum(map(len, panels.values())) - sum(map(len, nets.values()))
        canvas.caption += f" {left_out} more nets are left out." if left_out else ""
        name, title = "curves", "How the nets train"
        if len(figures) > 1:
            name, title = f"curves-{figure or 'others'}", f"{title}: {result.table.study}"
        subtitle = "One run of each net, of its first seed"
        drawn.append(_figure(name, title, subtitle, result, canvas))
    return drawn


def curve_runs(results: Sequence[TableResult]) -> list[tuple[TableResult, RunResult]]:
    """A run of each net that logged its training error: the first that a table has.

    A net is an architecture in certain settings, seeded or not; its seeds are one.
    """
    run_of_net: dict[str, tuple[TableResult, RunResult]] = {}
    runs = ((result, run) for result in results for row in result.rows for run in row.runs)
    for result, run in runs:
        if architecture(run) and run.curve("train_error")[0].size:
            run_of_net.setdefault(_net(run), (result, run))
    return list(run_of_net.values())


def _net(run: RunResult) -> str:
    """A text that all seeds of a net have in common, and no other net has."""
    settings = {key: value for key, value in run.settings.items() if key != "seed"}
    seeded = run.run.get("seed_from") or {}
    settings |= {"seeding.run": seeded.get("row"), "data": run.run.get("data")}
    return json.dumps(settings, sort_keys=True, default=str)


def architecture(run: RunResult) -> str:
    """The registered name of a run's architecture; '' where the run does not say."""
    return run.run.get("config", {}).get("model", {}).get("arch", "")


def _nets(runs: Sequence[RunResult], limit: int) -> list[Net]:
    """At most `limit` nets, spread over depth, in its order; they are named by their rows where an
    architecture is there several times."""
    by_depth = sorted(runs, key=lambda run: run.result["depth"])
    indices = np.linspace(0, len(by_depth) - 1, min(limit, len(by_depth))).round().astype(int)
    chosen = [by_depth[i] for i in indices]
    count_of_architecture = Counter(map(architecture, chosen))
    nets = []
    for run in chosen:
        name = architecture(run).partition(":")[2] or architecture(run)
        if name.isdecimal():
            name = f"{run.result['depth']} layers"
        if count_of_architecture[architecture(run)] > 1 and run.run.get("row"):
            name = str(run.run["row"])
        nets.append(Net(name, run.result["depth"], run.curve))
    return nets


# ------------------------------------------------------------------------------- how alike


def plot_alike(results: Sequence[TableResult]) -> list[Figure]:
    """A figure for each group of nets tested on the same images: how alike their posteriors are."""
    groups: dict[tuple[bytes, int], dict[str, tuple[TableResult, RowResult]]] = {}
    for result in results:
        for row in result.rows:
            single = [net.members for net in row.row.nets] == [1]
            if single and row.compared is not None and row.runs:
                ids, posteriors = row.compared
                same_images = groups.setdefault((ids.tobytes(), posteriors.shape[1]), {})
                same_images.setdefault(row.runs[0].folder.name, (result, row))
    drawn: list[Figure] = []
    for (ids, _), group in groups.items():
        nets = list(group.values())
        if len(nets) > 1:
            result, canvas = nets[0][0], _alike([row for _, row in nets])
            images = len(np.frombuffer(ids, np.int32))
            name = "alike" if not drawn else f"alike-{result.table.name}"
            title = "How alike the nets' posteriors are"
            drawn.append(_figure(name, title, f"Mean over {images:,} test images", result, canvas))
    return drawn


def _alike(rows: Sequence[RowResult]) -> Canvas:
    shown = rows[:NETS]
    names = [row.row.name for row in shown]
    overlaps = overlap([row.compared[1] for row in shown if row.compared])
    size, longest = len(names), max(map(len, names))
    cell = 0.5
    left = min(0.35 + 0.073 * (longest + 5), 4.0)
    width = max(6.0, left + cell * size + 0.3)
    canvas = Canvas(1, width=width, height=0.8 * cell * size + 0.95, left=left)
    axes = canvas.axes[0, 0]
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    least = overlaps.min()
    strength = (overlaps - least) / (1 - least) if least < 1 else np.ones_like(overlaps)
    shade(axes, 0.07 + 0.93 * strength)
    for (i, j), share in np.ndenumerate(overlaps):
        colour = PAPER if strength[i, j] > 0.55 else INK
        text = "1" if i == j else f"{share:.2f}"
        axes.text(j, i, text, color=colour, size=9, ha="center", va="center")
    axes.set_xticks(range(size), [str(i + 1) for i in range(size)])
    axes.set_yticks(range(size), [f"{name} ({i + 1})" for i, name in enumerate(names)])
    canvas.caption = (
        "For each two nets, the mean over images of the sum over classes of the smaller "
        "posterior: 1 is the same, 0 nothing in common. Of several seeds, the first. Colours run "
        "from the smallest of these figures to 1."
        + (f" {len(rows) - NETS} more nets are left out." if len(rows) > NETS else "")
    )
    return canvas


KINDS: dict[str, tuple[str, str, Callable[[Sequence[TableResult]], list[Figure]]]] = {
    "errors": (
        "Errors against costs",
        "it needs a table with two tested rows of one net each, whose costs differ",
        plot_errors,
    ),
    "curves": (
        "How the nets train",
        "it needs a finished run with logged metrics",
        plot_curves,
    ),
    "alike": (
        "How alike the nets' posteriors are",
        "it needs two nets that were tested on the same images",
        plot_alike,
    ),
}

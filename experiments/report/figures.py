"""The report's figures, as SVG: error against depth, training curves, seeded against scratch.

Matplotlib is imported when a figure is drawn, and only its object interface is used: no pyplot, no
global state. Text stays text in the SVG.
"""

import hashlib
import io
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np

from experiments.report.findings import PLAIN, RESIDUAL
from experiments.runs.results import (
    Measurement,
    RowResult,
    rows_of,
    seeding_pairs,
    series,
    studies,
)

# Okabe and Ito's colours (told apart by colour-blind readers), with a second tone for dark pages.
INK, FAINT, PAPER = "#222222", "#c8c8c8", "#ffffff"
BLUE, VERMILLION, ORANGE = "#0072b2", "#d55e00", "#b87400"
# From light to dark: depth is an order, and lightness shows it without colour too.
DEPTHS = ("#e69f00", "#cc5a2b", "#a83279", "#5d3a9b", "#16345f", "#000000")
DARK_TONES = {
    INK: "#dddddd",
    FAINT: "#4a4f57",
    PAPER: "#15181c",
    BLUE: "#56b4e9",
    VERMILLION: "#ff8a4c",
    ORANGE: "#f0b040",
    "#e69f00": "#a8842f",
    "#cc5a2b": "#cc7040",
    "#a83279": "#e0709f",
    "#5d3a9b": "#c99cf0",
    "#16345f": "#b5d4ff",
    "#000000": "#ffffff",
}
VALIDATION = ("val_top1_error", "test_top1_error")  # what is logged of images not trained on
POINTS = 80  # of a training curve, each the mean of the values logged there
NETS = 30  # that a panel names, at most: more lines can not be told apart
MARGIN = 0.02  # inches below the lowest panel's labels
LABEL = 11 / 72  # inches from one line's label to the next
LETTER = 0.075  # inches of a letter in a label, about
PANEL = 1.6  # inches of a panel's width, at least


@dataclass(frozen=True)
class Figure:
    """A drawing with its title; where there is none, `note` says what is missing."""

    name: str  # of its file, without the suffix
    title: str
    lines: Sequence[str] = ()  # below the title
    canvas: "Canvas | None" = None
    note: str = ""

    @cached_property
    def svg(self) -> str:
        """The drawing, '' where there is none; the same runs give the same bytes."""
        if self.canvas is None:
            return ""
        import matplotlib

        head(self.canvas, self.title, self.lines)
        stream = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            metadata = {"Date": None, "Title": self.canvas.caption}
            figure = self.canvas.figure
            figure.savefig(stream, format="svg", dpi=160, facecolor=PAPER, metadata=metadata)
        return stream.getvalue()


def draw(results: Sequence[RowResult], profile: str) -> list[Figure]:
    """All figures of all studies; one that no study has the rows for is a note."""
    figures, by_study = [], studies(results)
    for kind, (title, missing, plot) in KINDS.items():
        drawn = [(study, canvas) for study, rows in by_study.items() if (canvas := plot(rows))]
        for k, (study, canvas) in enumerate(drawn):
            name = f"{kind}-{slug(study)}" if k else kind
            lines = [profile, _measured(by_study[study])]
            figures.append(Figure(name, canvas.title or title, lines, canvas))
        if not drawn:
            figures.append(Figure(kind, title, note=f"Not drawn: {missing}."))
    return figures


def slug(text: str) -> str:
    """The text as a name of a file or anchor; a digest if it has no Latin letters or digits."""
    latin = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return latin or hashlib.sha256(text.encode()).hexdigest()[:8]


# ------------------------------------------------------------------------------- canvas


class Canvas:
    """A Matplotlib figure with its axes, and the caption that grows as things are drawn.

    Sizes are in inches. No text is smaller than 9 points, which are 12 pixels.
    """

    def __init__(
        self,
        columns: int,
        rows: int = 1,
        width: float = 9,
        height: float = 3.6,
        left: float = 0.5,
        below: float = 0.6,
    ):
        """height: of one row. left: room for the tick labels of a vertical axis. below: room under
        each row, for the tick labels and the name of a horizontal axis."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as MatplotlibFigure

        self.figure = MatplotlibFigure(figsize=(width, height * rows + 0.75))
        FigureCanvasAgg(self.figure)
        self.axes: Any = self.figure.subplots(rows, columns, squeeze=False)
        # title: of what is drawn, where that is less than figures of its kind may hold. above: room
        # over the first row, for titles of panels beyond their first line.
        self.caption, self.title, self.left, self.below, self.above = "", "", left, below, 0.0
        self.end_labels: list[tuple[Any, float, float, str, str]] = []
        axes: Any
        for axes in self.axes.flat:
            axes.set_facecolor("none")
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color(INK)
            axes.tick_params(colors=INK, labelsize=9)
            axes.grid(axis="y", color=FAINT, linewidth=0.6)
            axes.set_axisbelow(True)

    def end_label(self, axes: Any, x: float, y: float, text: str, colour: str) -> None:
        """Notes a label for a line's end; `head` writes it where it touches no other label."""
        if np.isfinite(y):
            self.end_labels.append((axes, x, y, text, colour))


def _measured(rows: Sequence[RowResult]) -> str:
    """Study, n and seeds, in a line."""
    n = " or ".join(f"{n:,}" for n in sorted({row.constant("n") for row in rows if row.runs}))
    seeds = sorted({len(row.runs) for row in rows if row.runs})
    seed_counts = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    words = f"{seed_counts} seed" + "s" * (seeds != [1])
    return f"{rows[0].study}: n = {n} test images, {words} a row"


def head(canvas: Canvas, title: str, lines: Sequence[str]) -> None:
    """Writes title and lines above the axes, which get the rest of the figure, and end labels.

    A title of several lines and many labels make the figure taller, long labels make it wider.
    """
    width, height = canvas.figure.get_size_inches()
    columns = canvas.axes.shape[1]
    width += columns * max(0, PANEL - _panel_width(canvas, width))
    titles = textwrap.wrap(title, round(8.8 * width))
    extra = 0.2 * (len(titles) - 1)
    wrapped = [part for line in lines for part in textwrap.wrap(line, round(11.7 * width))]
    header = 0.75 + extra + 0.16 * len(wrapped) + canvas.above
    height += extra + canvas.above
    rows = len(canvas.axes)
    crowd = max(Counter(id(axes) for axes, *_ in canvas.end_labels).values(), default=0)
    height += rows * max(0, LABEL * crowd - _panel_height(canvas, height, header))
    canvas.figure.set_size_inches(width, height)
    style: dict[str, Any] = {"color": INK, "va": "top", "linespacing": 1.25, "parse_math": False}
    title_at = (0.1 / width, 1 - 0.1 / height)
    canvas.figure.text(*title_at, "\n".join(titles), size=12, weight="bold", **style)
    lines_at = (0.1 / width, 1 - (0.36 + extra) / height)
    canvas.figure.text(*lines_at, "\n".join(wrapped), size=9, **style)
    layout(canvas, header)
    for axes in canvas.axes.flat:  # labels on the right, each as near to its line's end as can be
        labels = [label for label in canvas.end_labels if label[0] is axes]
        gap = LABEL * canvas.figure.dpi / axes.get_window_extent().height
        to_axes = axes.transData + axes.transAxes.inverted()
        heights = [float(to_axes.transform((x, y))[1]) for _, x, y, _, _ in labels]
        style = {"transform": axes.transAxes, "size": 9, "va": "center", "parse_math": False}
        for (*_, text, colour), y in zip(labels, spread(heights, gap), strict=True):
            axes.text(1.02, y, text, color=colour, **style)


def shade(axes: Any, shares: np.ndarray) -> None:
    """A square for each share (rows, columns) above 0, the darker the nearer it is to 1.

    Unlike a picture's, its colours follow the reader's light or dark scheme.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    cells = np.argwhere(shares > 0)
    squares = [Rectangle((j - 0.49, i - 0.49), 0.98, 0.98) for i, j in cells]
    colours = [to_rgba(BLUE, 0.9 * float(shares[i, j])) for i, j in cells]
    axes.add_collection(PatchCollection(squares, facecolors=colours, linewidths=0))
    axes.set_xlim(-0.5, shares.shape[1] - 0.5)
    axes.set_ylim(shares.shape[0] - 0.5, -0.5)


def blank(axes: Any) -> None:
    """No frame, no ticks: what is drawn is a picture."""
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_yticks([])


def panel_title(axes: Any, text: str) -> None:
    axes.set_title(text, loc="left", size=10, color=INK, y=1.02, parse_math=False)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places moved apart by at least `gap`, in the same order, as little as it takes.

    They end up between 0 and 1, unless there are too many.
    """
    from scipy.optimize import isotonic_regression

    order, steps = np.argsort(places, kind="stable"), gap * np.arange(len(places))
    placed = np.empty(len(places))
    fitted = isotonic_regression(np.asarray(places)[order] - steps).x  # had they no gaps
    placed[order] = np.clip(fitted, 0, max(0, 1 - gap * (len(places) - 1))) + steps
    return placed.tolist()


def layout(canvas: Canvas, header: float) -> None:
    """Places the axes, in inches: below the header, with room for tick and end labels.

    tight_layout would measure every text for it, which takes as long as drawing.
    """
    width, height = canvas.figure.get_size_inches()
    labels = _label_width(canvas)
    left, gap, right = canvas.left, canvas.left + labels, 0.15 + labels
    below, bottom = canvas.below, canvas.below + MARGIN
    panel = _panel_width(canvas, width)
    tall = _panel_height(canvas, height, header)
    canvas.figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        top=1 - header / height,
        bottom=bottom / height,
        wspace=gap / panel,
        hspace=below / tall,
    )


def _label_width(canvas: Canvas) -> float:
    """Width of the longest label at a line's end, in inches."""
    return LETTER * max((len(text) for *_, text, _ in canvas.end_labels), default=0)


def _panel_width(canvas: Canvas, width: float) -> float:
    """Width of each panel of a figure of this width, in inches."""
    columns = canvas.axes.shape[1]
    return (width - 0.15) / columns - canvas.left - _label_width(canvas)


def _panel_height(canvas: Canvas, height: float, header: float) -> float:
    """Height of each panel of a figure of this height, in inches."""
    rows = len(canvas.axes)
    return (height - header - rows * canvas.below - MARGIN) / rows


# ------------------------------------------------------------------------------- against depth


# The dashes of lines of one kind or one depth, in turn.
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))
Line = tuple[str, Sequence[RowResult], dict[str, Any]]  # its name, rows by depth, how it is drawn


def _named(*words: str) -> str:
    return ", ".join(filter(None, words))


def lines(name: str, rows: Sequence[RowResult], colour: str, marker: str) -> list[Line]:
    """The lines of rows of one kind: one, or one for each of several settings."""
    style = {"color": colour, "marker": marker, "linewidth": 1.8, "markersize": 5.0}
    return [
        (_named(name, setting), group, style | {"linestyle": DASHES[k % len(DASHES)]})
        for k, (setting, group) in enumerate(series(rows).items())
    ]


def _against_depth(drawn: Sequence[Line], caption: str) -> Canvas:
    """Test error with intervals, and training loss, against depth."""
    canvas = Canvas(2)
    error_axes, loss_axes = canvas.axes[0]
    line_count = len(drawn)
    if line_count > NETS:
        drawn = evenly_chosen(
            drawn, lambda line: float(np.mean([_top1(row).value for row in line[1]]))
        )
    variants: dict[int, dict[str, None]] = {}  # of each depth, those that have a name
    for name, rows, style in drawn:
        depths, colour = [row.depth for row in rows], style["color"]
        errors = [_top1(row).value for row in rows]
        losses = [float(np.mean(row.values("train_loss"))) for row in rows]
        sides = ((error_axes, "top1_error", errors), (loss_axes, "train_loss", losses))
        for axes, key, means in sides:
            axes.plot(depths, means, **style)
            canvas.end_label(axes, depths[-1], means[-1], name, colour)
            for row in rows:
                _dots(axes, row.depth, row.values(key), colour)
        for row in rows:
            bar(error_axes, row.depth, _top1(row), colour, 1.4)
            variant = row.row.architecture.partition(":")[2]
            of_depth = variants.setdefault(row.depth, {})
            of_depth |= {variant: None} if variant != str(row.depth) else {}
    panel_title(error_axes, "Test error, % (top-1)")
    panel_title(loss_axes, "Training loss of the final net")
    error_axes.set_ylim(bottom=0)
    _loss_scale(canvas, [loss_axes])
    shown = spaced(sorted(variants))
    ticks = ["\n".join([str(depth), ", ".join(variants[depth])]).strip() for depth in shown]
    for axes in (error_axes, loss_axes):
        axes.set_xlabel("weight layers", color=INK, size=9)
        axes.set_xticks(shown, ticks)
    canvas.caption = caption + _intervals_caption([row for _, rows, _ in drawn for row in rows])
    canvas.caption += (line_count > NETS) * (
        f" Of {line_count} lines {NETS} are drawn, evenly from the lowest to the highest error."
    )
    return canvas


Number = TypeVar("Number", int, float)
Drawn = TypeVar("Drawn")


def spaced(values: Sequence[Number]) -> list[Number]:
    """Those of the sorted places whose labels do not touch the label before."""
    shown = list(values[:1])
    for value in values[1:]:
        if value - shown[-1] > (values[-1] - values[0]) / 16:
            shown.append(value)
    return shown


def _loss_scale(canvas: Canvas, axes: Sequence[Any]) -> None:
    """One scale for all axes: logarithmic where losses differ tenfold, else from zero."""
    values = _drawn_values(axes)
    if not values.size or values.min() <= 0 or values.max() <= 10 * values.min():
        linear_scale(axes)
        return
    low, high = values.min() * 0.85, values.max() * 1.15
    canvas.left += 0.22  # for what the axis is called
    for panel in axes:
        log_scale(panel.yaxis, low, high)
        panel.set_ylim(low, high)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def log_scale(axis: Any, low: float, high: float) -> None:
    """A logarithmic scale, and a label that says so.

    It has ticks at powers of ten, and between them at 2 and 5 where the range is small.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    label = ", ".join(filter(None, (axis.get_label_text(), "log scale")))
    axis.set_label_text(label, color=INK, size=9)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 60 * low else (1,)))
    axis.set_minor_locator(NullLocator())


def linear_scale(axes: Sequence[Any]) -> None:
    """One scale for all axes, from zero."""
    values = _drawn_values(axes)
    for panel in axes:
        panel.set_ylim(0, 1.06 * values.max() if values.size and values.max() > 0 else 1)


def _drawn_values(axes: Sequence[Any]) -> np.ndarray:
    values = [np.asarray(line.get_ydata(), np.float64) for panel in axes for line in panel.lines]
    values = np.concatenate(values) if values else np.array([])
    return values[np.isfinite(values)]


def _top1(row: RowResult) -> Measurement:
    error = row.error(1)
    assert error is not None, "only rows that were measured are drawn"
    return error


def _dots(axes: Any, x: float, values: Sequence[float], colour: str) -> None:
    """A dot for each seed, where there are several."""
    if len(values) > 1:
        axes.plot([x] * len(values), values, ".", color=colour, alpha=0.45)


def bar(axes: Any, x: float, error: Any, colour: str, width: float) -> None:
    """The interval of an error (with `low` and `high`), where it has one."""
    if error.low is not None:
        axes.vlines(x, error.low, error.high, color=colour, linewidth=width)


def bars_caption(errors: Iterable[Measurement]) -> str:
    """A sentence on what the bars of these errors are; '' where none has an interval."""
    kinds = dict.fromkeys(error.interval for error in errors if error.interval)
    return f" Bars: {' or '.join(kinds)}." if kinds else ""


def _intervals_caption(rows: Sequence[RowResult]) -> str:
    dots = " Small dots: single seeds." if any(len(row.runs) > 1 for row in rows) else ""
    return bars_caption(map(_top1, rows)) + dots


def plot_depth(rows: Sequence[RowResult]) -> Canvas | None:
    """Plain against residual nets over depth; None without two depths of one of them."""
    plain, residual = rows_of(rows, PLAIN), rows_of(rows, RESIDUAL)
    if max(len({row.depth for row in kind}) for kind in (plain, residual)) < 2:
        return None
    drawn = lines("plain", plain, VERMILLION, "o") + lines("residual", residual, BLUE, "s")
    if plain and residual:
        return _against_depth(drawn, "Plain against residual nets.")
    alone = "plain" if plain else "residual"
    canvas = _against_depth(drawn, f"{alone.capitalize()} nets by depth.")
    canvas.title = f"What depth does to {alone} nets"
    return canvas


def plot_vgg_depth(rows: Sequence[RowResult]) -> Canvas | None:
    """VGG from scratch against seeded over depth; None without two depths from scratch."""
    scratch, seeded = (rows_of(rows, "vgg", seeded=seeded) for seeded in (False, True))
    if len({row.depth for row in scratch}) < 2:
        return None
    drawn = lines("from scratch", scratch, ORANGE, "o") + lines("seeded", seeded, BLUE, "s")
    canvas = _against_depth(drawn, "VGG nets by depth.")
    if not seeded:
        canvas.title = "What depth does to VGG, from scratch"
    if sources := ", ".join(dict.fromkeys(str(row.row.seed_from) for row in seeded)):
        canvas.caption += f" Seeded: what each run's seeding report names starts as in {sources}."
    return canvas


# ------------------------------------------------------------------------------- training curves


Curve = tuple[np.ndarray, np.ndarray]  # epochs and values


def mean_curve(row: RowResult, key: str) -> Curve:
    """(epochs, mean over the finished seeds) of a logged figure, where all seeds logged it."""
    curves = [row.runs[seed].curve(key) for seed in sorted(row.runs)]
    epochs = curves[0][0]
    for logged, _ in curves[1:]:
        epochs = np.intersect1d(epochs, logged)
    values = [y[np.isin(x, epochs)] for x, y in curves]
    return epochs, np.mean(values, axis=0) if epochs.size else np.array([])


def thin(epochs: np.ndarray, values: np.ndarray, points: int = POINTS) -> Curve:
    """At most `points` points, each the mean of equally many neighbours.

    The rest makes the last point; less than half of a point's values join the point before.
    """
    size = -(-len(values) // points)
    if size <= 1:
        return epochs, values
    edges = np.arange(0, len(values), size)
    if len(edges) > 1 and len(values) - edges[-1] < size / 2:
        edges = edges[:-1]
    counts = np.diff([*edges, len(values)])
    return np.add.reduceat(epochs, edges) / counts, np.add.reduceat(values, edges) / counts


@dataclass(frozen=True)
class Net:
    """A net in a figure of training."""

    name: str
    depth: int
    curve: Callable[[str], Curve]  # of a logged figure, by its key

    @property
    def validation(self) -> str:
        """Which error on other images it logged, if any."""
        return next((key for key in VALIDATION if self.curve(key)[0].size), "")

    def last_error(self) -> float:
        """The training error in the end, in percent; infinite where none was logged."""
        errors = self.curve("train_error")[1]
        return float(errors[-1]) if errors.size else np.inf


def plot_training(panels: Mapping[str, Sequence[Net]]) -> Canvas:
    """Error over epochs, and below it loss; a column a panel, as He et al. 2016, Figure 6."""
    most_nets = max(map(len, panels.values()))
    panels = {panel: evenly_chosen(nets, Net.last_error) for panel, nets in panels.items()}
    canvas = Canvas(len(panels), 2, height=3.1, width=9.0 if len(panels) > 1 else 5.5)
    drawn = [net for nets in panels.values() for net in nets]
    colours = depth_colours([net.depth for net in drawn])
    validated = any(net.validation for net in drawn)
    most_of_depth = 0  # nets of a depth in a panel
    for (panel, nets), (error_axes, loss_axes) in zip(panels.items(), canvas.axes.T, strict=True):
        panel_title(error_axes, f"{panel}: {'' if validated else 'training '}error, %")
        panel_title(loss_axes, f"{panel}: training loss")
        loss_axes.set_xlabel("epoch", color=INK, size=9)
        nets_of_depth: Counter[int] = Counter()
        for net in nets:
            dashes = DASHES[nets_of_depth[net.depth] % len(DASHES)]
            style = {"color": colours[net.depth], "linestyle": dashes}
            nets_of_depth[net.depth] += 1
            error = net.curve("train_error")
            if net.validation:
                _curve(canvas, error_axes, error, 0.8, style)
                error = net.curve(net.validation)
            _curve(canvas, error_axes, error, 2.2 if net.validation else 1.6, style, net.name)
            _curve(canvas, loss_axes, net.curve("train_loss"), 1.6, style, net.name)
        most_of_depth = max(most_of_depth, *nets_of_depth.values())
    linear_scale(canvas.axes[0])
    _loss_scale(canvas, canvas.axes[1])
    canvas.caption = (
        "Thin: training error; thick: validation error, on images that are not trained on. "
        * validated
        + "Training error and loss are means of what was logged between two points, with "
        "augmentation and dropout where there are any."
        + " Dashed: another net of the same depth."
        * (most_of_depth > 1)
        + f" At most {NETS} nets a panel are drawn, evenly from the lowest to the highest training "
        "error in the end." * (most_nets > NETS)
    )
    return canvas


def evenly_chosen(drawn: Sequence[Drawn], error: Callable[[Drawn], float]) -> list[Drawn]:
    """At most NETS of the items, evenly over the order of their errors, in the order given."""
    if len(drawn) <= NETS:
        return list(drawn)
    order = np.argsort([error(item) for item in drawn], kind="stable")
    chosen = set(order[np.linspace(0, len(drawn) - 1, NETS).round().astype(int)].tolist())
    return [item for k, item in enumerate(drawn) if k in chosen]


def _curve(
    canvas: Canvas, axes: Any, curve: Curve, width: float, style: dict[str, Any], label: str = ""
) -> None:
    epochs, values = thin(*curve)
    if len(values):
        marker = "." if len(values) == 1 else ""  # one point alone is no line
        line_style = {"marker": marker, "linewidth": width, "solid_capstyle": "round"}
        axes.plot(epochs, values, **line_style, **style)
        if label:
            canvas.end_label(axes, float(epochs[-1]), float(values[-1]), label, style["color"])


def plot_curves(rows: Sequence[RowResult]) -> Canvas | None:
    """Plain nets left, residual right; of several seeds, their mean."""
    sides = {"Plain": rows_of(rows, PLAIN), "Residual": rows_of(rows, RESIDUAL)}
    panels = {
        side: [
            Net(_named(f"{row.depth} layers", setting), row.depth, partial(mean_curve, row))
            for setting, group in series(entry).items()
            for row in group
        ]
        for side, entry in sides.items()
        if entry
    }
    if not any(net.curve("train_loss")[0].size for nets in panels.values() for net in nets):
        return None
    canvas = plot_training(panels)
    if len(panels) == 1:
        canvas.title = f"How {next(iter(panels)).lower()} nets train"
    if any(len(row.runs) > 1 for entry in sides.values() for row in entry):
        canvas.caption += " Several seeds: their mean."
    return canvas


def depth_colours(depths: Sequence[int]) -> dict[int, str]:
    """A colour for each depth, from light to dark; of more than six, neighbours share one."""
    distinct = sorted(set(depths))
    last = len(DEPTHS) - 1 - (len(distinct) < len(DEPTHS))
    steps = np.linspace(0, last, len(distinct)).round().astype(int)
    return {depth: DEPTHS[step] for depth, step in zip(distinct, steps, strict=True)}


# ------------------------------------------------------------------------------- seeding


def plot_seeding(rows: Sequence[RowResult]) -> Canvas | None:
    """For every deeper net seeded against scratch: final error, and training loss over epochs."""
    every = seeding_pairs(rows)
    pairs = evenly_chosen(every, lambda pair: _top1(pair[1]).value)
    if not pairs:
        return None
    canvas = Canvas(len(pairs) + 1, width=max(9.0, 2.4 * (len(pairs) + 1)), height=3.3)
    error_axes, *curve_axes = canvas.axes[0]
    names = [seeded.row.architecture for _, seeded in pairs]
    if len(set(names)) < len(names):  # one architecture in several settings
        names = [seeded.name for _, seeded in pairs]
    ticks = dict(enumerate(names))
    room = _panel_width(canvas, canvas.figure.get_figwidth()) / len(pairs)
    if LETTER * max(map(len, names)) > room:  # numbers, where names would overlap
        names = [f"{k}: {name}" for k, name in enumerate(names, 1)]
        step = 1 if len(pairs) <= 12 else 5
        ticks = {k - 1: str(k) for k in range(step, len(pairs) + 1, step)}
    titles = [textwrap.wrap(f"{name}: training loss", TITLE) for name in names]
    canvas.above = 0.17 * (max(map(len, titles)) - 1)
    for k, pair in enumerate(pairs):
        for row, shift, (_, colour, marker) in zip(pair, (-0.14, 0.14), SEEDING, strict=True):
            error = _top1(row)
            bar(error_axes, k + shift, error, colour, 1.6)
            error_axes.plot(k + shift, error.value, marker, color=colour, markersize=5.5)
            _dots(error_axes, k + shift, row.values("top1_error"), colour)
            curve = mean_curve(row, "train_loss")
            _curve(canvas, curve_axes[k], curve, 1.8, {"color": colour})
        panel_title(curve_axes[k], "\n".join(titles[k]))
        curve_axes[k].set_xlabel("epoch", color=INK, size=9)
    panel_title(error_axes, "Test error, %")
    error_axes.set_xticks(list(ticks), list(ticks.values()))
    error_axes.set_xlim(-0.6, len(pairs) - 0.4)
    error_axes.set_ylim(bottom=0)
    _key(error_axes)
    _loss_scale(canvas, curve_axes)
    both = [row for pair in pairs for row in pair]
    canvas.caption = (
        "The same net from scratch and seeded from a shallower one." + _intervals_caption(both)
    )
    canvas.caption += (len(every) > NETS) * (
        f" Of {len(every)} nets {NETS} are drawn, evenly from the lowest to the highest error of "
        "the seeded ones."
    )
    return canvas


TITLE = 24  # characters in a line of a panel's title
SEEDING = (("● from scratch", ORANGE, "o"), ("■ seeded", BLUE, "s"))


def _key(axes: Any) -> None:
    """The two names in their colours above the points, in place of a legend box."""
    axes.set_ylim(0, axes.get_ylim()[1] * 1.22)
    for k, (label, colour, _) in enumerate(SEEDING):
        at = (0.03, 0.98 - 0.075 * k)
        axes.text(*at, label, transform=axes.transAxes, color=colour, size=9, va="top")


KINDS: dict[str, tuple[str, str, Callable[[Sequence[RowResult]], Canvas | None]]] = {
    "depth": (
        "What depth does to plain and to residual nets",
        "it needs finished plain or residual nets of two depths",
        plot_depth,
    ),
    "vgg_depth": (
        "What depth does to VGG, from scratch and seeded",
        "it needs finished VGG nets of two depths from scratch",
        plot_vgg_depth,
    ),
    "curves": (
        "How plain and residual nets train",
        "it needs finished plain or residual nets with logged metrics",
        plot_curves,
    ),
    "seeding": (
        "Seeded against from scratch",
        "it needs a net that finished both from scratch and seeded",
        plot_seeding,
    ),
}

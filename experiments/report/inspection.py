"""The report of an inspection: what a trained network has learned, in pictures and two tables."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.inspection import codes
from experiments.inspection.inspection import Inspection
from experiments.inspection.statistics import LayerStatistics
from experiments.inspection.units import Units
from experiments.report.figures import (
    BLUE,
    INK,
    VERMILLION,
    Canvas,
    Figure,
    blank,
    depth_colours,
    linear_scale,
    log_scale,
    panel_title,
    slug,
)
from experiments.report.page import Report
from experiments.report.table import Cell, Column, Table, one_block, plain
from experiments.report.text import MINUS, rounded, shortened

WIDTH = 9.0  # inches, of figures of many pictures
THUMBNAIL = 64  # pixels, at most, of a picture's side in a mosaic
CRISP = 48  # pixels, at least: smaller pictures are repeated, so that no viewer smooths them
GAP, BETWEEN = 3, 136  # pixels between pictures, and their grey
HEAT = "magma"
NAMED = 14  # characters of a class's name below a picture


def report(inspection: Inspection) -> Report:
    """The page of an inspection; parts that could not be looked at say why."""
    title = f"Inside {inspection.run}"
    figures = [figure for draw in FIGURES for figure in draw(inspection)]
    candidates = [make(inspection) for make in (layers_table, codes_table)]
    network = f"{len(inspection.class_names)} classes; the network of step {inspection.step}"
    if not inspection.has_parts:
        network += "; the set has no parts, and every fifth image is a test image here"
    tables = [table for table in candidates if table is not None]
    return Report(title, [(inspection.data, network)], tables, figures, [], heading="Data")


# ------------------------------------------------------------------------------- tables


def layers_table(inspection: Inspection) -> Table | None:
    """Mean, deviation and dead units of each layer; None where they were not looked at."""
    if not inspection.statistics:
        return None
    records = [vars(layer) | {"dead_share": _dead(layer)} for layer in inspection.statistics]
    columns = [
        Column("layer", "", False, plain("layer", str)),
        Column("depth", "", True, plain("depth", rounded)),
        Column("units", "", True, plain("units", rounded)),
        Column("mean", "", True, plain("mean", _short)),
        Column("deviation", "", True, plain("deviation", _short)),
        Column("dead units", "%", True, _dead_cell),
    ]
    images = inspection.statistics[0].images
    return Table(
        "Outputs of the layers",
        columns,
        one_block(records),
        name="layers",
        origin=[f"{inspection.data}, {images:,} test images."],
        legend=[
            "Outputs are taken behind a layer's non-linearity, over all images, places and units. "
            "Depth: layers with weights up to the layer. A unit is dead if it is above zero at no "
            "place of any of these images."
        ],
        document={"rows": records},
        lines=records,
    )


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", MINUS)


def _dead(layer: LayerStatistics) -> float:
    return 100 * layer.dead / layer.units


def _dead_cell(record: dict[str, Any]) -> Cell:
    share = record["dead_share"]
    return Cell(share, f"{share:.1f}", f"{record['dead']:,} units" if record["dead"] else "")


def codes_table(inspection: Inspection) -> Table | None:
    """How well codes find neighbours; None where they were not looked at."""
    if not inspection.codes or inspection.features is None:
        return None
    features = inspection.features
    n, d = features.training.shape
    records = [
        {"codes": code.how, "bits": code.bits, "recall": 100 * code.recall}
        for code in inspection.codes
    ]
    columns = [
        Column("codes", "", False, plain("codes", str)),
        Column("bits", "", True, plain("bits", rounded)),
        Column("recall@10", "%", True, plain("recall", lambda x: f"{x:.1f}")),
    ]
    return Table(
        "Short binary codes",
        columns,
        one_block(records),
        name="codes",
        origin=[
            f"{features.layer}: {d:,} features; {len(features.tested):,} test images against "
            f"{n:,} of {features.training_images:,} training images."
        ],
        legend=[
            f"Recall@{codes.NEIGHBOURS}: of an image's {codes.NEIGHBOURS} nearest training images "
            "by Euclidean distance of the features, the share that is among its "
            f"{codes.NEIGHBOURS} nearest by Hamming distance of the codes; the mean over images. "
            "Of equal distances the image that comes first in the set is nearer. Autoencoder: "
            f"signs of the hidden tanh units after {codes.STEPS} steps of Adam on the training "
            "images. PCA: signs of the first principal components. Projections: signs of random "
            "ones, the baseline."
        ],
        document={"rows": records},
        lines=records,
    )


# ------------------------------------------------------------------------------- mosaics


def crisp(picture: np.ndarray, side: int = 0) -> np.ndarray:
    """A picture (h, w, C) uint8 as RGB, as large as mosaics have them.

    Pixels of small ones are repeated, blocks of large ones averaged; grey ones get three channels.
    side: in pixels, of the picture whose scale is used; by default this picture's own.
    """
    side = side or max(picture.shape[:2])
    if side > THUMBNAIL:
        k = -(-side // THUMBNAIL)
        h, w = (size // k * k for size in picture.shape[:2])
        blocks = picture[:h, :w].reshape(h // k, k, w // k, k, -1)
        picture = blocks.mean(axis=(1, 3)).round().astype(np.uint8)
    k = max(1, CRISP // side)
    picture = picture.repeat(k, axis=0).repeat(k, axis=1)
    return np.broadcast_to(picture, (*picture.shape[:2], 3))


def mosaic(rows: Sequence[Sequence[np.ndarray]]) -> tuple[np.ndarray, int]:
    """Pictures (h, w, C) uint8 in rows as one, RGB, and the distance from one to the next.

    Each is in the middle of its cell; what is between them is grey, so that neither black nor white
    borders are lost.
    """
    side = max(max(picture.shape[:2]) for row in rows for picture in row)
    drawn = [[crisp(picture, side) for picture in row] for row in rows]
    cell = max(max(picture.shape[:2]) for row in drawn for picture in row) + GAP
    columns = max(map(len, drawn))
    sheet: np.ndarray = np.full((len(drawn) * cell, columns * cell, 3), BETWEEN, np.uint8)
    for i, row in enumerate(drawn):
        for j, picture in enumerate(row):
            h, w = picture.shape[:2]
            top, left = i * cell + (cell - h) // 2, j * cell + (cell - w) // 2
            sheet[top : top + h, left : left + w] = picture
    return sheet, cell


def _show(axes: Any, picture: np.ndarray, **options: Any) -> None:
    blank(axes)
    axes.imshow(picture, interpolation="none", **options)
    axes.set_anchor("NW")


def _canvas(
    columns: int, width: float, tall: float, left: float = 0.1, rows: int = 1, below: float = 0.06
) -> Canvas:
    """A canvas whose rows of axes are `tall` inches, and `below` between them."""
    height = (rows * (tall + below) + 0.25) / rows  # `layout` needs that much more for the header
    return Canvas(columns, rows, width=width, height=height, left=left, below=below)


def _left_out(inspection: Inspection, part: str, title: str) -> list[Figure]:
    """The note in place of a figure, if there is a reason."""
    why = inspection.left_out.get(part)
    return [Figure(part, title, note=f"Left out: {why}".rstrip(".") + ".")] if why else []


# ------------------------------------------------------------------------------- figures


def draw_filters(inspection: Inspection) -> list[Figure]:
    title = "Filters of the first convolution"
    if inspection.filters is None:
        return _left_out(inspection, "filters", title)
    pictures = inspection.filters.pictures
    n, h, w, channels = pictures.shape
    columns = min(n, max(8, math.ceil(math.sqrt(2 * n))))
    rows = [pictures[at : at + columns] for at in range(0, n, columns)]
    picture, _ = mosaic([list(row) for row in rows])
    inches = min(WIDTH - 0.3, 0.62 * columns)
    canvas = _canvas(1, max(6.4, inches + 0.3), inches * len(rows) / columns)
    (axes,) = canvas.axes[0]
    _show(axes, picture)
    kind = "in colour, as the image's channels" if channels == 3 else "in grey"
    canvas.caption = (
        f"The {n} kernels of {inspection.filters.layer}, {w}x{h} pixels, {kind}; row by row in the "
        "order of the layer's maps. Each is scaled to its own range, from its smallest weight "
        "(black) to its largest (white), and enlarged without interpolation."
    )
    return [Figure("filters", title, [inspection.run], canvas)]


def draw_units(inspection: Inspection) -> list[Figure]:
    title = "What excites units most"
    if not inspection.units:
        return _left_out(inspection, "units", title)
    return [_units(inspection, units) for units in inspection.units]


def _units(inspection: Inspection, units: Units) -> Figure:
    side = next(iter(inspection.pictures.values())).shape[0]
    pictures = [[inspection.pictures[int(i)] for i in row] for row in units.ids]
    patches = [
        [picture[b[0] : b[2], b[1] : b[3]] for picture, b in zip(row, boxes, strict=True)]
        for row, boxes in zip(pictures, units.boxes, strict=True)
    ]
    sizes = units.boxes[..., 2:] - units.boxes[..., :2]
    part_only = bool((sizes < side).any())
    (u, k), panels = units.ids.shape, 1 + part_only
    wide = (WIDTH - 0.75 * (1 + panels)) / panels if part_only else 4.6
    canvas = _canvas(panels, WIDTH if part_only else 6.4, wide * u / k, left=0.75)
    axes = canvas.axes[0]
    picture, cell = mosaic(pictures)
    _show(axes[0], picture)
    if part_only:
        panel_title(axes[0], "images, the part that is seen outlined")
        _outline(axes[0], units, side, cell)
        picture, patch_cell = mosaic(patches)
        _show(axes[1], picture)
        panel_title(axes[1], "these parts alone")
        axes[1].set_yticks((np.arange(u) + 0.5) * patch_cell - 0.5, [""] * u)
    axes[0].set_yticks((np.arange(u) + 0.5) * cell - 0.5, [f"unit {i}" for i in units.units])
    canvas.caption = (
        f"Of each of {u} of the {units.layer_units:,} units of {units.layer} (depth {units.depth}),"
        f" the {k} of {units.images:,} test images with its largest responses, the largest first. "
        "Units are those whose responses vary most over these images. "
        + (
            f"The outline is all that the largest response depends on: {units.field}x{units.field} "
            "pixels, or less at the border."
            if part_only
            else "Their responses depend on the whole image."
        )
    )
    title = f"What excites units of {units.layer} most"
    return Figure(f"units-{slug(units.layer)}", title, [inspection.data], canvas)


def _outline(axes: Any, units: Units, side: int, cell: int) -> None:
    """Rectangles around the patches in the mosaic of whole images."""
    from matplotlib.patches import Rectangle

    drawn_side = cell - GAP  # of an image's side, in the mosaic
    margin = GAP // 2
    for i, row in enumerate(units.boxes):
        for j, (top, left, bottom, right) in enumerate(row * drawn_side / side):
            corner = (j * cell + margin + left - 0.5, i * cell + margin + top - 0.5)
            size = (right - left, bottom - top)
            axes.add_patch(Rectangle(corner, *size, fill=False, ec=VERMILLION, linewidth=1.1))


def _class(inspection: Inspection, label: int) -> str:
    """The class of an image; '' where it may be of several."""
    return "" if inspection.several else shortened(inspection.class_names[label], NAMED)


def draw_nearest(inspection: Inspection) -> list[Figure]:
    title = "Nearest training images"
    nearest = inspection.nearest
    if nearest is None:
        return _left_out(inspection, "nearest", title)
    q, k = nearest.ids.shape
    canvas = _canvas(1 + k, WIDTH, 1.05, left=0.12, rows=q, below=0.25)
    for row, query, ids in zip(canvas.axes, nearest.queries, nearest.ids, strict=True):
        for axes, at in zip(row, [query, *ids], strict=True):
            label = inspection.labels[int(at)]
            _show(axes, crisp(inspection.pictures[int(at)]))
            right = label == inspection.labels[int(query)]
            axes.set_xlabel(_class(inspection, label), color=INK if right else VERMILLION, size=9)
    panel_title(canvas.axes[0, 0], "image")
    panel_title(canvas.axes[0, 1], "nearest first")
    canvas.caption = (
        f"Left: {q} test images. To the right of each, its {k} nearest of "
        f"{nearest.training_images:,} training images by Euclidean distance of the features that "
        f"the last layer sees, {nearest.layer}. "
        "Below each image its class, coloured where it is another than the left image's."
    )
    if inspection.several:
        canvas.caption = canvas.caption.rpartition(" Below each image")[0]
    return [Figure("nearest", title, [inspection.data], canvas)]


def draw_codes(inspection: Inspection) -> list[Figure]:
    return _left_out(inspection, "codes", "Short binary codes")


def _pairs(inspection: Inspection, maps: Sequence[np.ndarray], low: float, high: float) -> Canvas:
    """Images above, and their maps below, of the same size."""
    assert inspection.images is not None
    n, side = len(inspection.images), inspection.images.pictures.shape[1]
    canvas = _canvas(n, WIDTH, 1.4, left=0.12, rows=2, below=0.27)
    for column, (picture, values) in enumerate(zip(inspection.images.pictures, maps, strict=True)):
        above, below = canvas.axes[:, column]
        _show(above, crisp(picture))
        name = _class(inspection, int(inspection.images.labels[column]))
        above.set_xlabel(name, color=INK, size=9)
        _show(below, values, cmap=HEAT, vmin=low, vmax=high, extent=(0, side, side, 0))
    return canvas


def _whose(inspection: Inspection) -> str:
    return "the true class" if inspection.own_classes else "the class that the network finds"


def draw_occlusion(inspection: Inspection) -> list[Figure]:
    title = "Where a covered image loses its class"
    occlusion = inspection.occlusion
    if occlusion is None:
        return _left_out(inspection, "occlusion", title)
    canvas = _pairs(inspection, list(occlusion.covered), 0, 1)
    for k, axes in enumerate(canvas.axes[1]):
        least = occlusion.covered[k].min()
        axes.set_xlabel(f"{occlusion.whole[k]:.2f}, least {least:.2f}", color=INK, size=9)
    canvas.caption = (
        f"Above: {len(occlusion.whole)} test images and their classes. Below: the posterior of "
        f"{_whose(inspection)} where a square of {occlusion.square}x{occlusion.square} pixels "
        "covers the image, by the square's place: black 0, light 1; dark places hide what speaks "
        "for the class. The square is the mean that is taken off all images, 0 in the network's "
        "input. Numbers: the posterior of the whole image, and the least of all places."
    )
    return [Figure("occlusion", title, [inspection.data], canvas)]


def draw_saliency(inspection: Inspection) -> list[Figure]:
    title = "Pixels that a class's score depends on most"
    saliency = inspection.saliency
    if saliency is None:
        return _left_out(inspection, "saliency", title)
    scaled = saliency.maps / np.maximum(saliency.maps.max(axis=(1, 2), keepdims=True), 1e-30)
    canvas = _pairs(inspection, list(scaled), 0, 1)
    canvas.caption = (
        f"Above: {len(saliency.maps)} test images and their classes. Below: of each pixel the "
        "largest absolute gradient over its channels of the score (logit) of "
        f"{_whose(inspection)}. Light is large; each map is scaled to its own largest value."
    )
    return [Figure("saliency", title, [inspection.data], canvas)]


def draw_statistics(inspection: Inspection) -> list[Figure]:
    title = "Outputs of the layers, by depth"
    if not inspection.statistics:
        return _left_out(inspection, "statistics", title)
    canvas = Canvas(3, height=3.2)
    panels = (
        ("Mean", [layer.mean for layer in inspection.statistics]),
        ("Deviation", [layer.deviation for layer in inspection.statistics]),
        ("Dead units, %", [_dead(layer) for layer in inspection.statistics]),
    )
    depths = [layer.depth for layer in inspection.statistics]
    for axes, (name, values) in zip(canvas.axes[0], panels, strict=True):
        axes.plot(depths, values, "o-", color=BLUE, linewidth=1.4, markersize=3.5)
        axes.set_xlabel("layers with weights", color=INK, size=9)
        panel_title(axes, name)
    linear_scale([canvas.axes[0, 1]])
    canvas.axes[0, 2].set_ylim(-1, max(20.0, 1.1 * max(panels[2][1])))
    canvas.axes[0, 2].yaxis.set_major_formatter("{x:g}")
    canvas.caption = (
        f"{len(depths)} layers and blocks, each behind its non-linearity, over "
        f"{inspection.statistics[0].images:,} test images of {inspection.data}. Mean and deviation "
        "are over images, places and units. A unit is dead if it is above zero at no place of any "
        "image."
    )
    return [Figure("statistics", title, [inspection.data], canvas), *_gradients(inspection)]


def _gradients(inspection: Inspection) -> list[Figure]:
    title = "The loss's gradient by the weights, by depth"
    if not inspection.gradients:
        return _left_out(inspection, "gradients", title)
    canvas = Canvas(1, height=3.2, width=5.5, left=0.75)
    (axes,) = canvas.axes[0]
    drawn = [gradient for gradient in inspection.gradients if gradient.mean_square > 0]
    roots = [math.sqrt(gradient.mean_square) for gradient in drawn]
    axes.plot([gradient.depth for gradient in drawn], roots, "o", color=BLUE, markersize=4)
    _magnitudes(axes, roots)
    axes.set_xlabel("layers with weights", color=INK, size=9)
    canvas.caption = (
        f"The root of the mean square over each of {len(drawn)} layers' weights, of the mean loss "
        f"of {inspection.gradients[0].images} training images at the checkpoint (step "
        f"{inspection.step}), shown as test images are."
    )
    if not inspection.logged:
        canvas.caption += " With train.log_gradients=true a run's log has them over its training."
    if len(drawn) < len(inspection.gradients):
        canvas.caption += (
            f" {len(inspection.gradients) - len(drawn)} layers have none, and no point."
        )
    return [Figure("gradients", title, [inspection.data], canvas)]


def _magnitudes(axes: Any, roots: Sequence[float]) -> None:
    """A logarithmic axis for root mean squares, which are above 0."""
    axes.set_ylabel("root mean square", color=INK, size=9)
    if roots:
        low, high = 0.7 * min(roots), 1.4 * max(roots)
        log_scale(axes.yaxis, low, high)
        axes.set_ylim(low, high)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")


def draw_logged(inspection: Inspection) -> list[Figure]:
    """Gradients over training, a line a layer, the deeper the darker."""
    if not inspection.logged:
        return []
    canvas = Canvas(1, height=3.6, width=5.5, left=0.75)
    (axes,) = canvas.axes[0]
    colours = depth_colours([layer.depth for layer in inspection.logged])
    for layer in inspection.logged:
        values = np.where(layer.values > 0, layer.values, np.nan)
        axes.plot(layer.epochs, values, color=colours[layer.depth], linewidth=1.2)
    drawn = np.concatenate([layer.values for layer in inspection.logged])
    _magnitudes(axes, drawn[drawn > 0].tolist())
    axes.set_xlabel("epoch", color=INK, size=9)
    for layer in (inspection.logged[0], inspection.logged[-1]):
        end = float(layer.epochs[-1]), float(layer.values[-1])
        canvas.end_label(axes, *end, layer.layer, colours[layer.depth])
    canvas.caption = (
        f"The root of the mean square of the loss's gradient over each of {len(inspection.logged)} "
        "layers' weights, and over the steps since the line of the log before."
    )
    return [Figure("logged", "The loss's gradient in training", [inspection.data], canvas)]


FIGURES: tuple[Callable[[Inspection], list[Figure]], ...] = (
    draw_filters,
    draw_units,
    draw_nearest,
    draw_codes,
    draw_occlusion,
    draw_saliency,
    draw_statistics,
    draw_logged,
)

"""Images with what a network sees in them: the picture of `cnn-depth predict`."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs.runs import RunError
from input_pipeline.whole_files import whole_file

COLUMNS, PANEL, LABELS = 4, 2.4, 0.26  # inches: a panel's width, a label's height
SHOWN = 34  # characters that fit a panel


def unused_path(path: Path) -> Path:
    """`path`, or where a file is there already, `NAME-2.png` or the next such name that is free."""
    if path.is_dir() or not os.path.lexists(path):
        return path
    candidates = (path.with_name(f"{path.stem}-{k}{path.suffix}") for k in itertools.count(2))
    return next(candidate for candidate in candidates if not os.path.lexists(candidate))


def draw(views: Sequence[np.ndarray], images: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes a picture (by `path`'s suffix) of n views (h, w, C) uint8, labels below each.

    images: for each view, `image` and `classes`: `name` and `probability`, best first.
    Raises RunError where it can't be written.
    """
    from matplotlib.figure import Figure

    if not path.name or path.is_dir():
        raise RunError(f"the picture {path} can't be written: that is a folder")
    columns = min(COLUMNS, len(views))
    rows = -(-len(views) // columns)
    below = LABELS * max(len(image["classes"]) for image in images)
    figure = Figure(figsize=(columns * PANEL, rows * (PANEL + below)), dpi=120)
    grid = figure.add_gridspec(
        2 * rows, columns, height_ratios=[PANEL, below] * rows, hspace=0.12, wspace=0.12
    )
    for i, (view, image) in enumerate(zip(views, images, strict=True)):
        row, column = 2 * (i // columns), i % columns
        view_axes, bar_axes = (figure.add_subplot(grid[row + j, column]) for j in (0, 1))
        view_axes.imshow(view.squeeze(), cmap="grey", vmin=0, vmax=255)
        name = drawn_text(image["image"])  # the end of a long path says which image it is
        name = name if len(name) <= SHOWN else f"...{name[3 - SHOWN :]}"
        view_axes.set_title(name, fontsize=8, parse_math=False)
        _bars(bar_axes, image["classes"])
        for axes in (view_axes, bar_axes):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
    try:
        with whole_file(path) as stream:
            figure.savefig(stream, format=path.suffix[1:], bbox_inches="tight")
    except (OSError, ValueError) as error:
        raise RunError(f"the picture {path} can't be written: {error}") from error


def _bars(axes: Any, classes: Sequence[Mapping[str, Any]]) -> None:
    ys = -np.arange(len(classes))
    axes.barh(ys, [row["probability"] for row in classes], color="#9ecae1", height=0.8)
    axes.set_xlim(0, 1)
    axes.set_ylim(ys[-1] - 0.5, 0.5)
    for y, row in zip(ys, classes, strict=True):
        name = drawn_text(row["name"])
        name = name if len(name) <= SHOWN else f"{name[: SHOWN - 4].rstrip()} ..."
        text = f"{name}  {100 * row['probability']:.1f}%"
        axes.text(0.01, y, text, va="center", fontsize=7, parse_math=False)


def drawn_text(text: str) -> str:
    """The text with `?` for what a font can't draw."""
    return "".join(c if c.isprintable() else "?" for c in text)

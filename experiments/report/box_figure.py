"""The figure of test images with their true and their predicted boxes, as the test views them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.report.figures import BLUE, FAINT, INK, VERMILLION, Canvas, Figure, blank
from experiments.report.text import shortened
from experiments.runs.results import RunResult

TITLE = "Boxes of test images"
SHOWN = 4  # images whose boxes are right, and as many whose boxes are wrong
NAMED = 16  # characters of a class's name that fit


@dataclass(frozen=True)
class _Image:
    picture: np.ndarray  # (crop, crop, C) uint8
    true: np.ndarray  # (m, 4) left, top, right, bottom, in its pixels
    predicted: np.ndarray  # (4,), the same
    shared: float  # IoU of the predicted box with the true one that it overlaps most
    name: str  # of its class


def draw(runs: Iterable[RunResult]) -> list[Figure]:
    """The figure, of the run with the fewest errors; none where no run says boxes.

    Where its images or its predictions are not at hand, a note says so.
    """
    localisers = [run for run in runs if run.boxes]
    if not localisers:
        return []
    from experiments.config import ConfigError
    from experiments.runs.runs import RunError
    from experiments.testing.predictions import PredictionsError
    from input_pipeline import DataError

    best = min(localisers, key=lambda run: run.result["top1_errors_count"] / run.result["n"])
    try:
        right, wrong = _shown(best)
    except (ConfigError, DataError, PredictionsError, RunError) as error:
        return [Figure("boxes", TITLE, note=f"Left out: {error}".rstrip(".") + ".")]
    line = f"{best.run.get('study')}, {best.run.get('row')}: run {best.folder.name}"
    return [Figure("boxes", TITLE, [line], _canvas(right, wrong))]


def _shown(result: RunResult) -> tuple[list[_Image], list[_Image]]:
    """(images with a right box, with a wrong one), evenly spread over the test images."""
    from experiments import data
    from experiments.data import preprocessing
    from experiments.runs import runs
    from experiments.testing import predictions
    from input_pipeline import crops

    run = runs.Run(result.folder)
    config = run.config()
    tested = predictions.load(result.folder / "predictions" / "test-center.npz")
    opened = data.open_data(config.data)
    runs.check_data(run, opened.fingerprint)
    preparation = preprocessing.load(result.folder / preprocessing.FILE)
    crop = config.data.image_size
    view = crops.CentreView(crop=crop, Q=config.test.Q or crop, warp=preparation.warp)
    wrong = tested.topk_wrong(1)
    groups = []
    for rows in (np.flatnonzero(~wrong), np.flatnonzero(wrong)):
        picked = np.unique(np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int))
        groups.append([_image(opened, tested, int(row), view, preparation) for row in rows[picked]])
    return groups[0], groups[1]


def _image(opened: Any, tested: Any, row: int, view: Any, preparation: Any) -> _Image:
    """The image of a row of the predictions."""
    from input_pipeline import image_files
    from input_pipeline.boxes import in_view, iou

    i, part = int(tested.ids[row]), opened.parts["test"]
    if hasattr(part, "images"):
        stored = image_files.framed(part.images[i], preparation.frame)
    else:
        content, _ = part.read_again(i)
        stored = image_files.read_image(part.where(i), preparation.channels, content)
    height, width = stored.shape[:2]
    boxes = opened.boxes["test"].inside(
        i, height - 2 * preparation.frame, width - 2 * preparation.frame
    )
    true = in_view(boxes + preparation.frame, view.places(height, width)[0])
    predicted = tested.boxes[row].astype(np.float64)
    return _Image(
        image_files.central_view(stored, view, preparation.resize),
        true,
        predicted,
        float(iou(predicted, true).max()),
        opened.class_names[int(tested.labels[row])],
    )


def _canvas(right: Sequence[_Image], wrong: Sequence[_Image]) -> Canvas:
    from matplotlib.patches import Rectangle

    groups = {name: images for name, images in (("right", right), ("wrong", wrong)) if images}
    columns = max(map(len, groups.values()))
    width = max(4.5, 2.25 * columns)
    canvas = Canvas(columns, len(groups), width=width, height=2.6, left=0.35, below=0.35)
    for (name, images), row in zip(groups.items(), canvas.axes, strict=True):
        row[0].set_ylabel(name, color=INK, size=9)
        for axes in row:
            blank(axes)
        for axes, image in zip(row, images, strict=False):
            rgb = np.broadcast_to(image.picture, (*image.picture.shape[:2], 3))
            axes.imshow(rgb, interpolation="none")
            boxes = [(box, BLUE, "-") for box in image.true] + [(image.predicted, VERMILLION, "--")]
            for (left, top, far, bottom), colour, style in boxes:
                size = (far - left, bottom - top)
                line = {"fill": False, "ec": colour, "ls": style, "linewidth": 1.6}
                axes.add_patch(Rectangle((left - 0.5, top - 0.5), *size, **line))
            name = shortened(image.name, NAMED)
            axes.set_xlabel(f"{name}: {image.shared:.2f}", color=INK, size=9, parse_math=False)
            axes.spines[:].set_color(FAINT)
    kinds = " and ".join(f"some of those whose boxes are {name}" for name in groups)
    canvas.caption = (
        f"Central views of test images, {kinds}. Blue: the true boxes; vermillion, dashed: the box "
        "that the network says of the image's class. The number is the area that both share, over "
        "that of their union; a box is right above 0.5."
    )
    return canvas

"""`cnn-depth predict`: what a trained or imported network sees in images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.verbs.options import RUN, add_options, add_runs_and_json

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from experiments.testing.classifier import Classifier

BATCH = 128  # images whose views are held at a time
PICTURED = 48  # images that the picture shows

HELP = """\
Classify image files with a run's network: the most probable classes with their probabilities, and
a picture of the images (the first 48) with the labels drawn. Images are prepared as the run's were.

Files that can't be used are named and left out. Exit status 0 if all could be used, 1 if some
couldn't, 2 if none could. A picture that is there is kept: the new one gets the next free name."""
EXAMPLE = """
cnn-depth predict cat.jpg dog.png --run resnet-50
cnn-depth predict photos/*.jpg --run residual_depth/resnet-44 --top 3 --picture seen.png
cnn-depth predict cat.jpg --weights resnet50.pth --as resnet:50 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from launch.verbs.weights import add_import_arguments

    parser.add_argument("image", nargs="+", type=Path, help="image files")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", help=RUN)
    what = "a weights file; import it first"
    source.add_argument("--weights", type=Path, metavar="FILE", help=what)
    add_import_arguments(parser)
    options = {
        "--top N": "classes shown (default 5)",
        "--which last|best": "checkpoint",
        "--picture FILE": "where the picture goes (default: prediction.png; then prediction-2.png, "
        "...)",
    }
    add_options(parser, options, top=5, which="last", picture=Path("prediction.png"))
    add_runs_and_json(parser)


def main(args: argparse.Namespace) -> int:
    from launch import devices

    devices.set_up()
    devices.start()
    from rich.console import Console

    from experiments.config import ConfigError
    from experiments.report import picture
    from experiments.runs import names, runs
    from experiments.testing import classifier
    from experiments.text import visible
    from input_pipeline import DataError
    from launch.console import images_bar, say
    from launch.verbs.evaluate import imported

    if args.top < 1:
        raise ConfigError(f"--top must be at least 1, not {args.top}")
    run = imported(args) or names.find_run(args.run, runs.root(args.runs))
    model = classifier.load(run.folder, args.which)
    screen = Console(stderr=True)

    def on_bad(reason: str) -> None:
        if len(args.image) > 1:
            say(screen, f"left out: {reason}")

    with images_bar(screen, "classifying") as bar:
        seen = _classify(model, args.image, args.top, bar, on_bad)
    if not seen.found:
        only = len(args.image) == 1
        reason = seen.bad[0]["reason"] if only else f"none of {len(args.image)} files can be used"
        raise DataError(visible(reason))
    if not model.seen.exif:
        _say_turned([image["image"] for image in seen.found], screen)
    file = picture.free(args.picture)
    if args.json:
        told = {"run": run.id, "picture": str(file), "images": seen.found, "bad": seen.bad}
        print(json.dumps(told, indent=1))
    else:
        _print(seen, args.picture, file)
    picture.draw(seen.pictured, seen.found[: len(seen.pictured)], file)
    return 1 if seen.bad else 0


def _say_turned(paths: Sequence[str], screen: Console) -> None:
    """Says of which images an EXIF orientation is ignored."""
    from input_pipeline import image_files
    from launch.console import say

    for path in paths:
        try:
            turned = image_files.orientation(Path(path).read_bytes())
        except OSError:  # it has gone since the image was read
            continue
        if turned != 1:
            told = f"{path}: its EXIF orientation, {turned}, is ignored, as it was in training; a "
            say(screen, told + "network trained with data.exif=true turns images")


@dataclass
class _Seen:
    """What was found in images. pictured: the views of the first of them; bad: files, and why."""

    found: list[dict[str, Any]] = field(default_factory=list)
    pictured: list[np.ndarray] = field(default_factory=list)
    bad: list[dict[str, str]] = field(default_factory=list)


def _classify(
    model: Classifier,
    paths: Sequence[Path],
    top: int,
    on_progress: Callable[[int, int], None],
    on_bad: Callable[[str], None],
) -> _Seen:
    """Batch by batch, so that the views of many images need no more memory than those of one."""
    import numpy as np

    from input_pipeline import DataError

    seen = _Seen()
    names: list[Path] = []
    views: list[np.ndarray] = []
    for done, path in enumerate(paths, 1):
        try:
            views.append(model.read(path))
            names.append(path)
        except DataError as error:
            seen.bad.append({"image": str(path), "reason": str(error)})
            on_bad(str(error))
        if views and (len(views) == BATCH or done == len(paths)):
            posteriors = np.exp(model.log_posteriors(np.stack(views), BATCH))
            best = np.argsort(-posteriors, axis=1, kind="stable")[:, :top]
            for name, p, labels in zip(names, posteriors, best, strict=True):
                classes = [
                    {"label": int(k), "name": model.class_names[k], "probability": float(p[k])}
                    for k in labels
                ]
                seen.found.append({"image": str(name), "classes": classes})
            seen.pictured += views[: PICTURED - len(seen.pictured)]
            names, views = [], []
        on_progress(done, len(paths))
    return seen


def _print(seen: _Seen, asked: Path, picture: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from experiments.text import visible
    from launch.console import say

    table = Table()
    table.add_column("image", overflow="fold")  # all of a path: its end says which image it is
    table.add_column("class")
    table.add_column("probability %")
    for image in seen.found:
        for rank, row in enumerate(image["classes"]):
            name = Text(visible(image["image"]) if rank == 0 else "")
            last = rank == len(image["classes"]) - 1
            percent = f"{100 * row['probability']:.2f}"
            table.add_row(name, Text(visible(row["name"])), percent, end_section=last)
    console = Console()
    console.print(table)
    told = f"picture: {picture}"
    if len(seen.pictured) < len(seen.found):
        told += f", of the first {len(seen.pictured)} of {len(seen.found):,} images"
    if picture != asked:
        told += f" ({asked} is there already, and kept)"
    say(console, told)

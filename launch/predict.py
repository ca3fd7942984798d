"""`cnn-depth predict`: what a trained or imported network sees in images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HELP = """\
Classify image files with a run's network: the most probable classes with their probabilities, and
a picture of the images with the labels drawn. Images are prepared as the run's were."""
EXAMPLE = """
cnn-depth predict cat.jpg dog.png --run resnet-50
cnn-depth predict photos/*.jpg --run cifar_resnet-44 --top 3 --picture seen.png
cnn-depth predict cat.jpg --weights resnet50.pth --as resnet:50 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cnn-depth predict`."""
    from launch.weights import add_import_arguments

    parser.add_argument("image", nargs="+", type=Path, help="image files")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", help="a run's folder, its id, or a part only it has")
    source.add_argument(
        "--weights", type=Path, metavar="FILE", help="a weights file; import it first"
    )
    add_import_arguments(parser, required=False)
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes shown (default 5)")
    parser.add_argument("--which", choices=("last", "best"), default="last", help="checkpoint")
    parser.add_argument(
        "--picture",
        type=Path,
        default=Path("prediction.png"),
        metavar="FILE",
        help="where the picture goes (default: prediction.png)",
    )
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="where runs are kept (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    """Prints and draws the predictions for every image."""
    from launch import devices

    devices.set_up()
    devices.start()
    import numpy as np

    from experiments import classifier, runs
    from experiments.config import ConfigError
    from experiments.report import picture
    from launch.evaluate import imported

    if args.top < 1:
        raise ConfigError(f"--top must be at least 1, not {args.top}")
    run = imported(args) or runs.find(args.run, runs.root(args.runs))
    model = classifier.load(run.folder, args.which)
    views = np.stack([model.read(path) for path in args.image])
    if not model.seen.exif:
        _say_turned(args.image)
    posteriors = np.exp(model.log_posteriors(views))
    best = np.argsort(-posteriors, axis=1, kind="stable")[:, : args.top]
    found: list[dict[str, Any]] = [
        {
            "image": str(path),
            "classes": [
                {"label": int(k), "name": model.class_names[k], "probability": float(p[k])}
                for k in top
            ],
        }
        for path, p, top in zip(args.image, posteriors, best, strict=True)
    ]
    if args.json:
        print(json.dumps({"run": run.id, "picture": str(args.picture), "images": found}, indent=1))
    else:
        _print(found, args.picture)
    picture.draw(views, found, args.picture)
    return 0


def _say_turned(paths: list[Path]) -> None:
    """Says of which images an EXIF orientation is ignored."""
    from rich.console import Console

    from input_pipeline import image_files

    for path in paths:
        try:
            turned = image_files.orientation(path.read_bytes())
        except OSError:  # it was told where the image was read
            continue
        if turned != 1:
            Console(stderr=True).print(
                f"{path}: its EXIF orientation, {turned}, is ignored, as it was in training; a "
                "network trained with data.exif=true turns images",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )


def _print(found: list[dict[str, Any]], picture: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from experiments.text import visible
    from launch.progress import say

    table = Table("image", "class", "probability %")
    for image in found:
        for rank, row in enumerate(image["classes"]):
            name = Text(visible(image["image"]) if rank == 0 else "")
            last = rank == len(image["classes"]) - 1
            percent = f"{100 * row['probability']:.2f}"
            table.add_row(name, Text(visible(row["name"])), percent, end_section=last)
    console = Console()
    console.print(table)
    say(console, f"picture: {picture}")

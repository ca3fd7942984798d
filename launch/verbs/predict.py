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

    from experiments.runs.runs import Run

OnBad = Callable[[Path, str], None]  # hears of each file that can't be used, and why
BATCH = 128  # images whose views are held at a time
PICTURED = 48  # images that the picture shows

HELP = """\
Classify image files with a run's network: the most probable classes with their probabilities, and
a picture of the images (the first 48) with the labels drawn. Images are prepared as the run's were.
Of a run whose images may be of several classes each class has a probability of its own.

Of a run that says boxes (train.boxes) the classes are those of the classifier that it was started
from, tested densely, and each has a box in pixels of the image file: left, top, right, bottom. It
is found as `cnn-depth localise` finds it: over the whole image, at every scale, and merged.

Files that can't be used are named and left out. Exit status 0 if all could be used, 1 if some
couldn't, 2 if none could. A picture that is there is kept: the new one gets the next free name."""
EXAMPLE = """
cnn-depth predict cat.jpg dog.png --run resnet-50
cnn-depth predict photos/*.jpg --run residual_depth/resnet-44 --top 3 --picture seen.png
cnn-depth predict cat.jpg --weights resnet50.pth --as resnet:50 --json
cnn-depth predict photos/*.jpg --run vgg_localisation/'D 256 PCR' --boxes boxed
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
        "--boxes DIR": "of a run that says boxes: also each image as DIR/IMAGE.png, with its boxes",
        "--scales --Q Q[,Q...]": "of a run that says boxes: short sides of the scaled image, in "
        "pixels (default: its test scale)",
    }
    add_options(parser, options, top=5, which="last", picture=Path("prediction.png"))
    add_runs_and_json(parser)


def main(args: argparse.Namespace) -> int:
    from launch import devices

    devices.set_up()
    devices.start()
    from rich.console import Console

    from experiments.config import ConfigError
    from experiments.data import preprocessing
    from experiments.report import picture
    from experiments.runs import names, runs
    from experiments.text import visible
    from input_pipeline import DataError
    from launch.console import say
    from launch.verbs.evaluate import imported

    if args.top < 1:
        raise ConfigError(f"--top must be at least 1, not {args.top}")
    run = imported(args) or names.find_run(args.run, runs.root(args.runs))
    screen, seen = Console(stderr=True), _Seen()

    def on_bad(path: Path, reason: str) -> None:
        seen.bad.append({"image": str(path), "reason": reason})
        if len(args.image) > 1:
            say(screen, f"left out: {reason}")

    about = (_localise if _says_boxes(run, args) else _classify)(run, args, seen, screen, on_bad)
    if not seen.found:
        only = len(args.image) == 1
        reason = seen.bad[0]["reason"] if only else f"none of {len(args.image)} files can be used"
        raise DataError(visible(reason))
    if not preprocessing.load(run.folder / preprocessing.FILE).exif:
        _say_turned([image["image"] for image in seen.found], screen)
    file = picture.free(args.picture)
    if args.json:
        told = {"run": run.id, **about, "picture": str(file), "images": seen.found, "bad": seen.bad}
        print(json.dumps(told, indent=1))
    else:
        _print(seen, args.picture, file)
    picture.draw(seen.pictured, seen.found[: len(seen.pictured)], file)
    return 1 if seen.bad else 0


def _says_boxes(run: Run, args: argparse.Namespace) -> bool:
    """Raises ConfigError where options are for boxes, and the run says none."""
    from experiments.config import ConfigError

    if run.config().train.boxes != "none":
        return True
    for option, value in (("--boxes", args.boxes), ("--scales", args.scales)):
        if value is not None:
            raise ConfigError(
                f"{option} {value} is for a run that says boxes (train.boxes), and {run.id} says "
                "classes only"
            )
    return False


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
    run: Run, args: argparse.Namespace, seen: _Seen, screen: Console, on_bad: OnBad
) -> dict[str, Any]:
    """Batch by batch, so that the views of many images need no more memory than those of one."""
    import numpy as np

    from experiments.testing import classifier
    from input_pipeline import DataError
    from launch.console import images_bar

    model = classifier.load(run.folder, args.which)
    names: list[Path] = []
    views: list[np.ndarray] = []
    with images_bar(screen, "classifying") as on_progress:
        for done, path in enumerate(args.image, 1):
            try:
                views.append(model.read(path))
                names.append(path)
            except DataError as error:
                on_bad(path, str(error))
            if views and (len(views) == BATCH or done == len(args.image)):
                posteriors = np.exp(model.log_posteriors(np.stack(views), BATCH))
                best = np.argsort(-posteriors, axis=1, kind="stable")[:, : args.top]
                for name, p, labels in zip(names, posteriors, best, strict=True):
                    classes = _classes(labels, p[labels], model.class_names)
                    seen.found.append({"image": str(name), "classes": classes})
                seen.pictured += views[: PICTURED - len(seen.pictured)]
                names, views = [], []
            on_progress(done, len(args.image))
    return {}


def _classes(
    labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {"label": int(k), "name": names[k], "probability": float(p)}
        for k, p in zip(labels, probabilities, strict=True)
    ]


def _localise(
    run: Run, args: argparse.Namespace, seen: _Seen, screen: Console, on_bad: OnBad
) -> dict[str, Any]:
    """The boxes of a run that says them; what else JSON tells."""
    import numpy as np

    from experiments.data import preprocessing
    from experiments.localisation.pictures import localise_files
    from experiments.report import boxed, picture
    from experiments.testing import protocols
    from input_pipeline import image_files
    from launch import devices
    from launch.console import images_bar

    passes = protocols.resolve("dense", run.config(), args.scales)
    scales = [Q for part in passes for Q in part.scales]
    prepared = preprocessing.load(run.folder / preprocessing.FILE)
    found = localise_files(
        run,
        args.image,
        scales,
        devices.mesh(),
        top=args.top,
        which=args.which,
        on_bad=on_bad,
        bar=lambda label: images_bar(screen, label),
    )
    for one in found:
        classes = _classes(one.classes, one.probabilities, prepared.class_names)
        for row, box in zip(classes, one.boxes.tolist(), strict=True):
            row["box"] = box
        seen.found.append({"image": str(one.path), "classes": classes})
        if args.boxes is None and len(seen.pictured) == PICTURED:
            continue
        image = image_files.read_image(one.path, prepared.channels, exif=prepared.exif)
        if len(seen.pictured) < PICTURED:
            seen.pictured.append(np.asarray(boxed.boxed(image, one.boxes[:1], [""])))
        if args.boxes is not None:
            texts = [f"{row['name']} {100 * row['probability']:.1f}%" for row in classes]
            file = picture.free(args.boxes / f"{one.path.stem}.png")
            boxed.save(boxed.boxed(image, one.boxes, texts), file)
            seen.found[-1]["boxes"] = str(file)
    return {"classifier": run.config().seeding.run, "scales": scales}


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
    boxes = any("box" in row for image in seen.found for row in image["classes"])
    if boxes:
        table.add_column("box, pixels:\nleft, top, right, bottom", no_wrap=True)
    for image in seen.found:
        for rank, row in enumerate(image["classes"]):
            name = Text(visible(image["image"]) if rank == 0 else "")
            last = rank == len(image["classes"]) - 1
            percent = f"{100 * row['probability']:.2f}"
            box = [", ".join(f"{edge:.1f}" for edge in row["box"])] if boxes else []
            table.add_row(name, Text(visible(row["name"])), percent, *box, end_section=last)
    console = Console()
    console.print(table)
    told = f"picture: {picture}"
    if len(seen.pictured) < len(seen.found):
        told += f", of the first {len(seen.pictured)} of {len(seen.found):,} images"
    if picture != asked:
        told += f" ({asked} is there already, and kept)"
    say(console, told)
    drawn = [image["boxes"] for image in seen.found if "boxes" in image]
    if drawn:
        say(console, f"boxes: {', '.join(drawn[:3])}{', ...' if len(drawn) > 3 else ''}")

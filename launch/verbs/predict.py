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

OnBad = Callable[[Path, str], None]  # called with each file that can't be used, and the reason
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
    weights_help = "a weights file; import it first"
    source.add_argument("--weights", type=Path, metavar="FILE", help=weights_help)
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
    screen, answers = Console(stderr=True), _Answers()

    def on_bad(path: Path, reason: str) -> None:
        answers.bad.append({"image": str(path), "reason": reason})
        if len(args.image) > 1:
            say(screen, f"left out: {reason}")

    about = (_localise if _says_boxes(run, args) else _classify)(run, args, answers, screen, on_bad)
    if not answers.images:
        n = len(args.image)
        reason = answers.bad[0]["reason"] if n == 1 else f"none of {n} files can be used"
        raise DataError(visible(reason))
    if not preprocessing.load(run.folder / preprocessing.FILE).exif:
        _say_turned([image["image"] for image in answers.images], screen)
    file = picture.unused_path(args.picture)
    if args.json:
        document = {
            "run": run.id,
            **about,
            "picture": str(file),
            "images": answers.images,
            "bad": answers.bad,
        }
        print(json.dumps(document, indent=1))
    else:
        _print(answers, args.picture, file)
    picture.draw(answers.pictured, answers.images[: len(answers.pictured)], file)
    return 1 if answers.bad else 0


def _says_boxes(run: Run, args: argparse.Namespace) -> bool:
    """Whether a run says boxes. Raises ConfigError for options of boxes where it says none."""
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
    """Notes each image whose EXIF orientation is ignored."""
    from input_pipeline import image_files
    from launch.console import say

    for path in paths:
        try:
            orientation = image_files.orientation(Path(path).read_bytes())
        except OSError:  # the file was removed after the image was read
            continue
        if orientation != 1:
            say(
                screen,
                f"{path}: its EXIF orientation, {orientation}, is ignored, as it was in training; "
                "a network trained with data.exif=true turns images",
            )


@dataclass
class _Answers:
    """What is said of the images."""

    images: list[dict[str, Any]] = field(default_factory=list)  # as JSON has them
    pictured: list[np.ndarray] = field(default_factory=list)  # views of the first PICTURED images
    bad: list[dict[str, str]] = field(default_factory=list)  # files that can't be used, and why


def _classify(
    run: Run, args: argparse.Namespace, answers: _Answers, screen: Console, on_bad: OnBad
) -> dict[str, Any]:
    """Classifies batch by batch, so that only one batch of views is in memory."""
    import numpy as np

    from experiments.testing import classifier
    from input_pipeline import DataError
    from launch.console import images_bar

    model = classifier.load(run.folder, args.which)
    names: list[Path] = []
    views: list[np.ndarray] = []
    with images_bar(screen, "classifying") as on_progress:
        for count, path in enumerate(args.image, 1):
            try:
                views.append(model.read(path))
                names.append(path)
            except DataError as error:
                on_bad(path, str(error))
            if views and (len(views) == BATCH or count == len(args.image)):
                posteriors = np.exp(model.log_posteriors(np.stack(views), BATCH))
                best = np.argsort(-posteriors, axis=1, kind="stable")[:, : args.top]
                for name, p, labels in zip(names, posteriors, best, strict=True):
                    classes = _classes(labels, p[labels], model.class_names)
                    answers.images.append({"image": str(name), "classes": classes})
                answers.pictured += views[: PICTURED - len(answers.pictured)]
                names, views = [], []
            on_progress(count, len(args.image))
    return {}


def _classes(
    labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {"label": int(k), "name": names[k], "probability": float(p)}
        for k, p in zip(labels, probabilities, strict=True)
    ]


def _localise(
    run: Run, args: argparse.Namespace, answers: _Answers, screen: Console, on_bad: OnBad
) -> dict[str, Any]:
    """Adds classes with boxes to `answers`. Returns what JSON says besides the images."""
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
    located_files = localise_files(
        run,
        args.image,
        scales,
        devices.mesh(),
        top=args.top,
        which=args.which,
        on_bad=on_bad,
        bar=lambda label: images_bar(screen, label),
    )
    for located in located_files:
        classes = _classes(located.classes, located.probabilities, prepared.class_names)
        for row, box in zip(classes, located.boxes.tolist(), strict=True):
            row["box"] = box
        answers.images.append({"image": str(located.path), "classes": classes})
        if args.boxes is None and len(answers.pictured) == PICTURED:
            continue
        image = image_files.read_image(located.path, prepared.channels, exif=prepared.exif)
        if len(answers.pictured) < PICTURED:
            answers.pictured.append(np.asarray(boxed.boxed(image, located.boxes[:1], [""])))
        if args.boxes is not None:
            texts = [f"{row['name']} {100 * row['probability']:.1f}%" for row in classes]
            file = picture.unused_path(args.boxes / f"{located.path.stem}.png")
            boxed.save(boxed.boxed(image, located.boxes, texts), file)
            answers.images[-1]["boxes"] = str(file)
    return {"classifier": run.config().seeding.run, "scales": scales}


def _print(answers: _Answers, requested: Path, picture: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from experiments.text import visible
    from launch.console import say

    table = Table()
    table.add_column("image", overflow="fold")  # the whole path, whose end identifies the image
    table.add_column("class")
    table.add_column("probability %")
    boxes = any("box" in row for image in answers.images for row in image["classes"])
    if boxes:
        table.add_column("box, pixels:\nleft, top, right, bottom", no_wrap=True)
    for image in answers.images:
        for rank, row in enumerate(image["classes"]):
            name = Text(visible(image["image"]) if rank == 0 else "")
            is_last = rank == len(image["classes"]) - 1
            percent = f"{100 * row['probability']:.2f}"
            box = [", ".join(f"{edge:.1f}" for edge in row["box"])] if boxes else []
            table.add_row(name, Text(visible(row["name"])), percent, *box, end_section=is_last)
    console = Console()
    console.print(table)
    note = f"picture: {picture}"
    if len(answers.pictured) < len(answers.images):
        note += f", of the first {len(answers.pictured)} of {len(answers.images):,} images"
    if picture != requested:
        note += f" ({requested} is there already, and kept)"
    say(console, note)
    boxed = [image["boxes"] for image in answers.images if "boxes" in image]
    if boxed:
        say(console, f"boxes: {', '.join(boxed[:3])}{', ...' if len(boxed) > 3 else ''}")

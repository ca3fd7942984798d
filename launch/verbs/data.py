"""`cnn-depth data`: image data before a training: checked, looked at, written as shards."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.verbs.options import add_options

if TYPE_CHECKING:
    from rich.console import Console

    from input_pipeline.annotations import Annotated
    from input_pipeline.crops import TestView, TrainView
    from input_pipeline.sources import ImageSet
    from input_pipeline.tools.check import Report
    from input_pipeline.tools.preview import Colours

HELP = """\
Check image data (`check`), look at what a network sees of it (`preview`), or write it into few
large files that are read fast (`prepare`).

PATH is a folder with {train,val}/CLASS/image files, ILSVRC's folder (original tars, or unpacked
with its flat val), what `prepare` wrote, or TFDS's data_dir; which of them is found out, or said
with --data folder|ilsvrc|shards|tfds:NAME. A set without a train part, as CLASS/image files, is
checked and shown as a test part; --split makes two of it.

`check` reads and decodes every image once, just as training does. Exit status 0 if all can be used,
1 if some can't, 2 for bad input."""
EXAMPLE = """
cnn-depth data check imagenet
cnn-depth data check imagenet --boxes ILSVRC/Annotations/CLS-LOC
cnn-depth data preview imagenet --view vgg --out vgg.png
cnn-depth data preview imagenet --view ten_crop --Q 256 --images 3
cnn-depth data prepare imagenet imagenet_512 --short-side 512
cnn-depth data prepare imagenet pixels_512 --short-side 512 --decoded
"""

TRAIN_VIEWS = {
    "vgg": "short side S drawn from 256 to 512, random crop (VGG section 3.1)",
    "resnet": "short side S drawn from 256 to 480, random crop (ResNet section 3.4)",
    "alexnet": "random crop of the central square of side S = 256 (AlexNet section 4.1)",
    "googlenet": "8 to 100% of the area, aspect 3/4 to 4/3 (GoogLeNet section 6)",
}
TEST_VIEWS = {
    "center": "the central crop at short side Q",
    "ten_crop": "corners and centre (and their mirrors)",
    "grid": "a 5 x 5 grid of crops (and their mirrors)",
    "googlenet_144": "GoogLeNet's 144 crops: these 72 and their mirrors",
    "whole": "the whole image at short side Q, for a dense test",
}
OPTIONS = {
    "--data NAME": "folder, ilsvrc, shards or tfds:NAME (default: what PATH looks like)",
    "--split SHARE": "of a folder of classes without train and val: the share of each class that "
    "is the test, as data.split of a training has it",
}
BOXES = {
    "--boxes PATH": "annotations of boxes, or `own` for those in a TFDS set's records: `check` "
    "counts what is wrong with them, `preview` draws them; as data.boxes of a training",
}
CHECK_OPTIONS = {
    "--list FILE": "where every unusable image goes, one a line: part, file and reason, tabs "
    "between; and what is wrong with boxes: the word boxes, what, and its kind",
    "--threads N": "default: two a core, at least 4",
    "--json": "print JSON",
}
PREPARE_OPTIONS = {
    "--short-side PIXELS": "shrink images with a longer short side to it: at least the largest S "
    "of training, 512 for VGG (default: files are copied byte for byte)",
    "--decoded": "keep pixels, 3 bytes each, in place of image files: training shows the same "
    "views to the bit, and decodes nothing",
    "--shards N": "of the train part (default: 1024 images each)",
    "--quality QUALITY": "of the JPEGs that are shrunk (default: 95)",
    "--processes N": "default: one a core",
    "--json": "print JSON",
}
_FIXED = {"--S": ("googlenet",), "--Q": ("googlenet_144",)}
EPOCHS = 4
MOST_IMAGES, MOST_EPOCHS, LARGEST = 48, 16, 1024
MOST_LEFT_OUT = 0.05  # share of unusable images up to which leaving them out is advised
SHOWN = 10  # unusable images and classes that `check` names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="check|preview|prepare")
    check = _action(actions, "check", "read every image once and report what was found")
    add_options(check, BOXES | CHECK_OPTIONS)
    _add_preview(_action(actions, "preview", "a picture of images, and of views of them"))
    prepare = _action(actions, "prepare", "write TFRecord shards")
    prepare.add_argument("out", type=Path, metavar="OUT", help="a new folder, or an unfinished one")
    add_options(prepare, PREPARE_OPTIONS, quality=95)


def _action(actions: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="where the images are")
    add_options(parser, OPTIONS, split=0.0)
    return parser


def _add_preview(parser: argparse.ArgumentParser) -> None:
    lines = {view: f"  {view:<13}  {text}" for view, text in (TRAIN_VIEWS | TEST_VIEWS).items()}
    parser.epilog = "\n".join(
        [
            "training views:",
            *(lines[view] for view in TRAIN_VIEWS),
            "test views:",
            *(lines[view] for view in TEST_VIEWS),
            "\nLengths are for a crop of 224, and in the same ratio to another one.",
        ]
    )
    parser.add_argument("--view", required=True, metavar="VIEW", help="one of those below")
    options = {
        "--crop PIXELS": "default: 224",
        "--S LOW[,HIGH]": "short side in training (default: the paper's)",
        "--Q PIXELS": "short side in a test (default: 256)",
        "--seed SEED": "of the training (default: 0)",
        "--epochs K": f"epochs of a training view (default: {EPOCHS})",
        "--images N": "default: 6",
        "--part train|test": "default: train for training views, test for test views",
        "--colour KIND": "how training changes colours (default: the paper's; none: not at all)",
        "--out FILE": "where the picture goes (default: preview.png)",
    }
    add_options(parser, BOXES | options, crop=224, seed=0, images=6, out=Path("preview.png"))


def main(args: argparse.Namespace) -> int:
    return {"check": _check, "preview": _preview, "prepare": _prepare}[args.action](args)


def _open(args: argparse.Namespace, console: Console) -> ImageSet:
    from input_pipeline import DataError, sources
    from launch.console import reading

    with reading(console, str(args.path)) as on_read:
        name = args.data or sources.detect(args.path)
        for_test = args.action != "prepare"
        images = sources.open_set(name, args.path, on_read, split=args.split, for_test=for_test)
    if images.targets is not None:
        raise DataError(
            f"--data {name}: `data {args.action}` is for images of one class each, and those of "
            f"{images.name} are of several"
        )
    return images


def _read_boxes(args: argparse.Namespace, images: ImageSet, console: Console) -> Annotated | None:
    from input_pipeline.annotations import RECORDS, read_boxes
    from launch.console import reading

    if args.boxes is None:
        return None
    with reading(console, args.boxes) as on_read:
        return read_boxes(RECORDS if args.boxes == "own" else args.boxes, images, on_read)


def _within(option: str, value: int | None, low: int, high: int) -> None:
    """Raises DataError where an option's value is given and not in [low, high]."""
    from input_pipeline import DataError

    if value is not None and not low <= value <= high:
        raise DataError(f"{option} {value}; expected {low} to {high}")


# ----------------------------------------------------------------------------------- check


def _check(args: argparse.Namespace) -> int:
    from rich.console import Console

    from input_pipeline import DataError, stream
    from input_pipeline.tools import check
    from launch.console import images_bar

    _within("--threads", args.threads, 1, 1024)
    stream.check_installed()
    console = Console(stderr=True)
    images = _open(args, console)
    boxes = _read_boxes(args, images, console)
    list_path = args.list or Path(os.devnull)
    try:
        list_file = list_path.open("w", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"--list {args.list} can't be written: {error.strerror}") from error
    with list_file as output, images_bar(console, f"checking {images.name}") as bar:
        report = check.check(images, boxes=boxes, threads=args.threads, on_progress=bar)
        parts = {name: part for name, part in report.parts.items() if part.images}
        report = dataclasses.replace(report, parts=parts)  # a set for tests has no train part
        problems = {} if report.boxes is None else report.boxes.problems
        box_problems = [("boxes", name, kind) for kind, names in problems.items() for name in names]
        for entry in (*report.unusable, *box_problems):
            fields = (word.replace("\t", " ").replace("\n", " ") for word in entry)
            print(*fields, sep="\t", file=output)
    if args.json:
        print(json.dumps(_as_json(report, args.path), indent=1))
    else:
        _print_report(report, args)
    return 1 if report.unusable else 0


def _sides(sides: Any) -> dict[str, int] | None:
    import numpy as np

    if not len(sides):
        return None
    return {"min": int(sides.min()), "median": int(np.median(sides)), "max": int(sides.max())}


def _as_json(report: Report, path: Path) -> dict[str, Any]:
    parts = {
        name: {
            "images": part.images,
            "usable": part.usable,
            "bytes": part.size,
            "short_side": _sides(part.short_sides),
            "long_side": _sides(part.long_sides),
            "smaller_than_224": part.smaller,
            "exif_turned": part.turned[0],
            "formats": [
                {"format": kind, "decoded": way, "images": count, "example": file}
                for (kind, way), (count, file) in part.formats.items()
            ],
            "images_per_class": _sides(part.per_class),
            "classes_with_few": [
                {"class": _class(report, k), "images": int(part.per_class[k])} for k in part.few()
            ],
        }
        for name, part in report.parts.items()
    }
    twins = report.duplicates
    return {
        "path": str(path),
        "data": report.name,
        "classes": len(report.class_names),
        "parts": parts,
        "unusable": [entry._asdict() for entry in report.unusable],
        "duplicates": {
            "test_in_train": twins.across,
            "within_train": twins.train,
            "within_test": twins.test,
            "of_another_class": twins.labels,
            "examples": [{"test": a, "train": b} for a, b in twins.names],
        },
        "boxes": None if report.boxes is None else _boxes_as_json(report, report.boxes),
        "notes": list(report.notes),
        "seconds": report.seconds,
        "threads": report.threads,
        "images_per_s": report.images / report.seconds,
    }


def _boxes_as_json(report: Report, boxes: Annotated) -> dict[str, Any]:
    parts = {name: getattr(boxes, name) for name in report.parts}
    return {
        "parts": {
            name: {
                "boxes": int(part.counts.sum()),
                "images": int((part.counts > 0).sum()),
                "images_without": int((part.counts == 0).sum()),
            }
            for name, part in parts.items()
        },
        "problems": boxes.problems,
        "notes": list(boxes.notes),
    }


def _class(report: Report, k: int) -> str:
    """The name of class k: its folder's, where the set has folders."""
    return (report.folders or report.class_names)[k]


def _print_report(report: Report, args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    from input_pipeline.stream import DEFAULT_DECODING
    from launch import console as printing

    console = Console()
    say = partial(printing.say, console)
    say(f"{args.path} ({report.name})", "bold")
    table = Table("")
    for name in report.parts:
        table.add_column(name, justify="right", no_wrap=True)
    for label, cell in _ROWS.items():
        table.add_row(label, *map(cell, report.parts.values()))
    table.add_row("size", *(decimal(part.size) for part in report.parts.values()))
    console.print(table)
    console.print(_formats(report))
    if "train" not in report.parts:
        say("no train part: it can be tested on, and trained on with data.split")
    for name, part in report.parts.items():
        if few := part.few():
            classes = ", ".join(f"{_class(report, k)} ({part.per_class[k]})" for k in few[:SHOWN])
            more = f" and {len(few) - SHOWN:,} others" if len(few) > SHOWN else ""
            say(f"classes with few usable images in {name}: {classes}{more}", "yellow")
    _say_duplicates(report, say)
    for name, part in report.parts.items():
        count, example = part.turned
        if count:
            text = f"{count:,}, such as {example}; ignored, unless data.exif=true"
            say(f"EXIF orientation other than 1 in {name}: {text}", "yellow")
    for note in report.notes:
        say(note, "yellow")
    if report.boxes is not None:
        for name in report.parts:
            counts = getattr(report.boxes, name).counts
            text = f"{counts.sum():,} around {(counts > 0).sum():,} of {len(counts):,} images"
            say(f"boxes in {name}: {text}")
        for note in report.boxes.notes:
            say(note, "yellow")
    rate = report.images / report.seconds
    megabytes = report.size / report.seconds / 1e6
    say(f"read and decoded: {rate:,.0f} images/s, {megabytes:,.0f} MB/s, {report.threads} threads")
    if not report.unusable:
        say("every image can be used", "green")
        return
    say(f"{len(report.unusable):,} of {report.images:,} images can't be used:", "bold red")
    for entry in report.unusable[:SHOWN]:
        is_named = entry.file in entry.reason
        say(f"  {entry.reason if is_named else f'{entry.file}: {entry.reason}'}")
    if len(report.unusable) > SHOWN:
        where = args.list or "`--list FILE` or `--json`"
        say(f"  and {len(report.unusable) - SHOWN:,} others: {where} has all of them")
    parts = report.parts.values()
    if any(
        part.images - part.usable > math.ceil(DEFAULT_DECODING.max_unusable * part.images)
        for part in parts
    ):
        share = max((part.images - part.usable) / part.images for part in parts)
        needed = math.ceil(1000 * share) / 1000
        advice = "mend or delete them first: what is left of the set may not be like the whole"
        if share <= MOST_LEFT_OUT:
            advice = f"with --set data.max_bad={needed:g} it leaves them out"
        say(f"training stops at so many; {advice}")


def _range(sides: Any) -> str:
    summary = _sides(sides)
    return "-" if summary is None else " / ".join(f"{value:,}" for value in summary.values())


_ROWS: dict[str, Callable[[Any], str]] = {
    "images": lambda part: f"{part.images:,}",
    "that can be used": lambda part: f"{part.usable:,}",
    "classes with images": lambda part: (
        f"{(part.per_class > 0).sum():,} of {len(part.per_class):,}"
    ),
    "images a class, min / median / max": lambda part: _range(part.per_class),
    "short side, min / median / max": lambda part: _range(part.short_sides),
    "long side, min / median / max": lambda part: _range(part.long_sides),
    "short side below 224": lambda part: f"{part.smaller:,}",
}


def _formats(report: Report) -> Any:
    """The table of image formats. Plain JPEGs are decoded the fast way, all others one by one."""
    from rich.table import Table
    from rich.text import Text

    from experiments.text import visible
    from input_pipeline.tools.check import count_formats

    labels = {"fast": "fast", "careful": "carefully", "before": "before", "unusable": "no"}
    styles = {"careful": "yellow", "unusable": "red"}
    counts = count_formats(report)
    has_examples = any(way == "careful" for _, way in counts)
    table = Table("format", "decoded")
    for name in report.parts:
        table.add_column(name, justify="right", no_wrap=True)
    if has_examples:
        table.add_column("such as", overflow="fold")
    for (kind, way), numbers in counts.items():
        entries = [part.formats.get((kind, way)) for part in report.parts.values()]
        example = next(entry[1] for entry in entries if entry is not None)
        row = [Text(kind), Text(labels[way], styles.get(way, ""))]
        row += [Text(f"{numbers[name]:,}") for name in report.parts]
        if has_examples:
            row.append(Text(visible(example) if way == "careful" else ""))
        table.add_row(*row)
    return table


def _say_duplicates(report: Report, say: Callable[..., None]) -> None:
    twins = report.duplicates
    if not twins.across + twins.train + twins.test:
        say("no two files have the same content")
        return
    text = (
        f"same content: {twins.across:,} of test are also in train; {twins.train:,} in train and "
        f"{twins.test:,} in test are there twice"
    )
    if twins.labels:
        text += f"; {twins.labels:,} of these have another class than their twin"
    say(text, "yellow")
    for test, train in twins.names:
        say(f"  {test} is {train}")
    if twins.across > len(twins.names):
        say(f"  and {twins.across - len(twins.names):,} others")


# --------------------------------------------------------------------------------- preview


def _preview(args: argparse.Namespace) -> int:
    # Views are drawn on the host, to take no accelerator from a training.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from rich.console import Console

    from input_pipeline import DataError, stream
    from input_pipeline.tools import preview
    from launch.console import say

    view, title = _view(args)
    _within("--images", args.images, 1, MOST_IMAGES)
    _within("--epochs", args.epochs, 1, MOST_EPOCHS)
    _within("--seed", args.seed, 0, 2**31 - 1)
    if args.out.suffix.lower() != ".png":
        raise DataError(f"--out {args.out}; the picture is a PNG: expected a name in .png")
    if not args.out.parent.is_dir():
        raise DataError(f"--out {args.out}: there is no folder {args.out.parent}")
    stream.check_installed()
    console = Console(stderr=True)
    images = _open(args, console)
    part = args.part or ("train" if args.view in TRAIN_VIEWS and len(images.train) else "test")
    if not len(getattr(images, part)):
        raise DataError(f"--part {part}: {args.path} ({images.name}) has no such part")

    annotated = _read_boxes(args, images, console)
    options = {
        "seed": args.seed,
        "count": args.images,
        "boxes": None if annotated is None else getattr(annotated, part),
        "on_bad": lambda reason: say(console, f"left out: {reason}"),
    }
    if args.view in TRAIN_VIEWS:
        epochs = args.epochs or EPOCHS
        colours, colour_title = _colours(args, images, view, console)
        rows = preview.views_of_training(images, part, view, colours, epochs=epochs, **options)
        title += f", {colour_title}"
    else:
        rows = preview.views_of_test(images, part, view, **options)
    if not rows:
        raise DataError(f"{args.path}: none of the images that were looked at can be used")
    n = len(getattr(images, part))
    caption = f"{args.path} ({images.name}), {part}: {n:,} images, {images.classes:,} classes"
    caption += f"; seed {args.seed}"
    if args.view not in ("googlenet", "whole"):
        frame = "square" if args.view == "alexnet" else "scaled image"
        caption += f"; at (row, column) of the {frame}"
    sheet = preview.sheet(rows, f"{args.view}: {title}", caption)
    try:
        sheet.picture.save(args.out, format="PNG")
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"the picture {args.out} can't be written: {reason}") from error
    size = f"{sheet.picture.width} x {sheet.picture.height}"
    views = sum(len(row.tiles) for row in rows)
    say(Console(), f"{args.out}: {views} views of {len(rows)} images, {size} pixels")
    return 0


def _colours(
    args: argparse.Namespace, images: ImageSet, view: TrainView, console: Console
) -> tuple[Colours, str]:
    """The colours of training views, and their part of the title."""
    from input_pipeline.tools import preview
    from launch.console import images_bar

    kind = args.colour or ("photometric" if args.view == "googlenet" else "pca_public")
    with images_bar(console, "colour statistics") as bar:
        colours = preview.fit_colours(kind, images, view, mirror=images.mirror_ok, on_progress=bar)
    return colours, f"{'mirrored at random' if colours.mirror else 'no mirrors'}, colour {kind}"


def _view(args: argparse.Namespace) -> tuple[Any, str]:
    """The view that the options describe, and its title. Raises DataError for wrong options."""
    from input_pipeline import DataError

    _one_of("view", args.view, (*TRAIN_VIEWS, *TEST_VIEWS))
    _within("--crop", args.crop, 1, LARGEST)
    for option, value in (("--S", max(args.S or (1,))), ("--Q", args.Q)):
        _within(option, value, 1, 4 * LARGEST)
    accepted = ["--S", "--epochs", "--colour"] if args.view in TRAIN_VIEWS else ["--Q"]
    accepted = [option for option in accepted if args.view not in _FIXED.get(option, ())]
    for option in ("--S", "--Q", "--epochs", "--colour"):
        if getattr(args, option[2:]) is not None and option not in accepted:
            suits = f"; it takes {', '.join(accepted)}" if accepted else ""
            raise DataError(f"{option} does not go with --view {args.view}{suits}")
    return _train_view(args) if args.view in TRAIN_VIEWS else _test_view(args)


def _train_view(args: argparse.Namespace) -> tuple[TrainView, str]:
    from input_pipeline import DataError, colour, crops

    if args.colour is not None:
        _one_of("colour", args.colour, colour.KINDS)
    crop = args.crop
    if args.view == "googlenet":
        return crops.AreaView(crop=crop), f"8 to 100% of the area, shown at {crop} x {crop}"
    if args.view == "alexnet":
        low, high = args.S or (crops.in_ratio(256, crop),) * 2
        if low != high:
            raise DataError(f"--S {low},{high}: --view alexnet has one scale; expected --S {low}")
        view = crops.SquareView(crop=crop, S=low)
        return view, f"{crop} x {crop} crops of the central square of side {low}"
    highest = {"vgg": 512, "resnet": 480}[args.view]
    S = args.S or (crops.in_ratio(256, crop), crops.in_ratio(highest, crop))
    drawn = f"S = {S[0]}" if S[0] == S[1] else f"S from {S[0]} to {S[1]}"
    return crops.ScaleView(crop=crop, S=S), f"{crop} x {crop} crops, {drawn}"


def _test_view(args: argparse.Namespace) -> tuple[TestView, str]:
    from input_pipeline import crops

    crop = args.crop
    if args.view == "googlenet_144":
        scales = tuple(crops.in_ratio(Q, crop) for Q in crops.MultiSquareView.scales)
        title = f"{crop} x {crop} crops at {len(scales)} scales, without their mirrors"
        return crops.MultiSquareView(crop=crop, scales=scales), title
    Q = crops.in_ratio(256, crop) if args.Q is None else args.Q
    if args.view == "whole":
        return crops.WholeView(Q=Q), f"the whole image at Q = {Q}"
    if args.view == "center":
        return crops.CentreView(crop=crop, Q=Q), f"the central {crop} x {crop} at Q = {Q}"
    kind = crops.TenCropView if args.view == "ten_crop" else crops.GridView
    return kind(crop=crop, Q=Q), f"{crop} x {crop} crops at Q = {Q}, without their mirrors"


def _one_of(kind: str, name: str, valid: Sequence[str]) -> None:
    """Raises DataError, with the nearest name, where `name` is not one of `known`."""
    from experiments.text import nearest
    from input_pipeline import DataError

    if name not in valid:
        hint = nearest("did you mean {!r}?", name, valid, 0.5) or f"there are: {', '.join(valid)}."
        raise DataError(f"there is no {kind} {name!r}; {hint}")


# --------------------------------------------------------------------------------- prepare


def _check_apart(path: Path, out: Path) -> None:
    """Raises DataError if shards would lie among the images, or the images among shards."""
    from input_pipeline import DataError

    source, target = (folder.expanduser().resolve() for folder in (path, out))
    if source == target:
        raise DataError(f"OUT {out} is PATH itself; expected a new folder outside it")
    for inner, outer, text in ((target, source, "OUT is in PATH"), (source, target, "PATH in OUT")):
        if outer in inner.parents:
            raise DataError(f"{inner} is in {outer} ({text}); expected a new folder outside PATH")


def _prepare(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.filesize import decimal

    from input_pipeline.tools.prepare import prepare
    from launch.console import images_bar, say

    _within("--processes", args.processes, 1, 1024)
    _check_apart(args.path, args.out)
    console = Console(stderr=True)
    images = _open(args, console)
    with contextlib.ExitStack() as bars:
        stages: dict[str, tuple[Callable[[int, int], None], int]] = {}

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                bars.close()
                label = {"measure": "measuring", "write": "writing"}.get(stage, "reading again")
                # Work of an earlier start is no part of the rate.
                stages[stage] = bars.enter_context(images_bar(console, label)), done
            show, before = stages[stage]
            if done > before:
                show(done - before, total - before)

        def on_room(needed: int, free: int) -> None:
            text = f"pixels to be written: {decimal(needed)}; free at {args.out}: {decimal(free)}"
            say(console, text)

        prepared = prepare(
            images,
            args.out,
            short_side=args.short_side,
            shards=args.shards,
            quality=args.quality,
            decoded=args.decoded,
            processes=args.processes,
            on_progress=on_progress,
            on_room=on_room,
        )
    train = "cnn-depth train resnet:50,data=shards --set " + shlex.quote(f"data.path={args.out}")
    if args.json:
        document = {
            "path": str(args.out),
            "images": prepared.counts,
            "classes": images.classes,
            "bytes": prepared.size,
            "shards_written": prepared.written,
            "shrunk": prepared.shrunk,
            "decoded": args.decoded,
            "undecodable": prepared.undecodable,
            "undecodable_names": prepared.undecodable_names,
            "train": train,
        }
        print(json.dumps(document, indent=1))
        return 0
    out = Console()
    counts = ", ".join(f"{n:,} {part} images" for part, n in prepared.counts.items())
    say(out, f"{args.out}: {counts}, {images.classes:,} classes, {decimal(prepared.size)}")
    say(out, f"shards written now: {prepared.written:,}; images shrunk: {prepared.shrunk:,}")
    if prepared.undecodable:
        names = f"{prepared.undecodable:,} ({', '.join(prepared.undecodable_names[:3])})"
        say(out, f"copied as they are, as they can't be decoded: {names}", "yellow")
    print(f"to train on it:\n  {train}")
    return 0

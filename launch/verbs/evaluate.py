"""`cnn-depth evaluate`: tests runs, or a weights file, on images by the papers' protocols."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.verbs.options import RUNS, add_options, add_runs_and_json

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.runs.runs import Run
    from experiments.testing.evaluate import Evaluated, Subject
    from experiments.testing.metrics import Interpolation
    from experiments.testing.prediction_store import EvaluationSettings
    from experiments.testing.predictions import Predictions

HELP = """\
Test trained runs, imported ones or a weights file by a paper's protocol, every test image once.
Prints n, top-1 and top-5 error with their 95% intervals, and keeps the posteriors beside the run:
what was tested once is not computed again, and a test that was stopped goes on where it was. Of
images that may be of several classes (VOC) it prints the mean and each class's average precision.

  center            the central crop of the image scaled to short side Q (--flip: its mirror too)
  ten_crop          corners and centre, and their mirrors (AlexNet)
  dense             the whole image, fully convolutional; scores averaged, then the soft-max; the
                    mean with the mirror (VGG)
  multi_crop        a 5x5 grid of crops and their mirrors, 50 a scale (VGG)
  dense+multi_crop  the mean of both (VGG)
  googlenet_144     144 crops at four scales (GoogLeNet)

Posteriors of crops, scales, protocols and networks are averaged after the soft-max (of several
classes an image, the sigmoid of each). Mirrors are left out, and it is said, where a mirrored image
is not one of its class (digits).
--data is a folder of images ({class}/*, or with a part val or test of it; ILSVRC's tars, shards and
TFDS's folders too), an .npz, or the name of a data set; by default, a trained run's own.
Its classes are matched with the network's by wnid, by name (in any case and Unicode form), or as
numbers from 0 or 1, and it is said how; --classes-in-order takes them in their order instead."""
EXAMPLE = """
cnn-depth evaluate residual_depth/resnet-44
cnn-depth evaluate vgg_depth/D --protocol dense --scales vgg
cnn-depth evaluate 'vgg_depth/D seeded' 'vgg_depth/E seeded' --protocol dense,multi_crop --fusion
cnn-depth evaluate resnet-50 --protocol dense --scales resnet --batch-statistics 20000
cnn-depth evaluate --weights resnet20.th --as cifar_resnet:20 --data cifar10
"""

# How a run is, or was, tested.
TESTING = {
    "--protocol P[,P...]": "how it is tested, several with commas between (default: center)",
    "--scales --Q Q[,Q...]": "test scales, short sides in pixels, averaged; or `vgg` (S-32, S, "
    "S+32, or lowest, middle and highest) or `resnet` (224 to 640) (default: the run's test scale)",
    "--flip": "with center: the mean with the mirror's posteriors",
    "--data DATA": "images to test on (default: the run's own test images)",
    "--classes-in-order": "the classes of --data are the network's in their order, whatever they "
    "are called",
    "--which last|best": "the last checkpoint, or the best on held-out training images (default: "
    "last)",
    "--batch-statistics N": "batch normalisation's means and variances are taken from N training "
    "images first",
}
TESTING_DEFAULTS: dict[str, Any] = {"protocol": "center", "which": "last", "batch_statistics": 0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from launch.verbs.weights import add_import_arguments

    parser.add_argument("run", nargs="*", help=RUNS)
    add_options(parser, {"--weights FILE": "a weights file, imported first, with --as"})
    add_import_arguments(parser)
    add_options(parser, TESTING, **TESTING_DEFAULTS)
    add_options(
        parser,
        {
            "--precision all_points|eleven_points": "average precision, where images may be of "
            "several classes: VOC's from 2010 on, or before (default: all_points)",
            "--fusion": "also the mean posteriors of all runs and protocols named",
        },
        precision="all_points",
    )
    add_runs_and_json(parser)


def parse_testing(args: argparse.Namespace) -> tuple[list[str], EvaluationSettings]:
    """The protocols and the other settings of TESTING. Raises ConfigError where they don't fit."""
    from experiments.config import ConfigError
    from experiments.testing import protocols
    from experiments.testing.prediction_store import EvaluationSettings

    names = protocols.listed(args.protocol)
    for name in names:
        protocols.check(name, args.scales, flip=args.flip)
    if args.batch_statistics < 0:
        raise ConfigError(f"--batch-statistics {args.batch_statistics}; expected 0 or more images")
    if args.classes_in_order and args.data is None:
        raise ConfigError("--classes-in-order goes with --data, whose classes it is about")
    return names, EvaluationSettings(
        args.which, args.data, args.batch_statistics, args.classes_in_order
    )


def imported(args: argparse.Namespace) -> Any:
    """The run of `--weights`; None without it. Raises ConfigError for its options without it."""
    from experiments.config import ConfigError
    from launch.verbs.weights import import_weights

    if args.weights is None:
        import_options = ("arch", "naming", "set", "classes", "mean", "std", "map", "which_weights")
        if any(getattr(args, name) for name in import_options):
            raise ConfigError(
                "--as, --naming, --set, --classes, --mean, --std, --map and --which-weights go "
                "with --weights"
            )
        return None
    return import_weights(args.weights, args)


def main(args: argparse.Namespace) -> int:
    from launch import devices

    devices.set_up()
    devices.start()
    from rich.console import Console

    from experiments.config import ConfigError
    from experiments.runs import names as run_names
    from experiments.runs import runs
    from experiments.testing import evaluate, protocols
    from launch.console import say

    names, settings = parse_testing(args)
    folder = runs.root(args.runs)
    selected = run_names.find_runs(args.run, folder)
    imported_run = imported(args)
    selected += [imported_run] if imported_run is not None else []
    selected = list({run.folder.resolve(): run for run in selected}.values())
    if not selected:
        raise ConfigError("nothing to test: name a run, or give --weights FILE --as ARCH")
    if args.fusion:
        _check_fusion(selected, names, args.data)
    for run in selected:  # before hours are spent on the first one
        for name in names:
            protocols.resolve(name, run.config(), args.scales, flip=args.flip)
    screen = Console(stderr=True)
    say_once = cache(partial(say, screen))
    results = []
    for run in selected:
        subject = subject_of(run, settings, screen, say_once)
        results += [subject.tested(name, args.scales, flip=args.flip) for name in names]
    fused = evaluate.fuse(results) if args.fusion else None
    if args.json:
        documents = [result.to_json(args.precision) for result in results]
        if fused is not None:
            counts = evaluate.error_counts(fused, results[0].class_names, args.precision)
            documents.append({"fusion": len(results), **counts})
        print(json.dumps(documents, indent=1))
    else:
        _print(results, fused, args.precision)
    return 0


def subject_of(
    run: Run, settings: EvaluationSettings, screen: Console, say_once: Callable[[str], None]
) -> Subject:
    """A run to be tested on this process's devices, with its progress and notes on the screen."""
    from experiments.testing.evaluate import Subject
    from launch import devices
    from launch.console import images_bar, reading

    return Subject(
        run,
        devices.mesh(),
        settings,
        lambda label: images_bar(screen, label),
        lambda reason: say_once(f"left out: {reason}"),
        say_once,
        lambda name: reading(screen, name),
    )


def _check_fusion(selected: Sequence[Run], protocols: Sequence[str], data: Path | None) -> None:
    """Raises ConfigError where runs can't be fused. data: that of --data; None: the runs' own."""
    from experiments.config import ConfigError

    if len(selected) * len(protocols) < 2:
        raise ConfigError("--fusion needs several runs or protocols")
    data_by_run = {run.id: (run.read("run") or {}).get("data") for run in selected}
    if data is None and len(set(data_by_run.values())) > 1:
        origins = ", ".join(f"{run}: {name}" for run, name in data_by_run.items())
        raise ConfigError(f"--fusion needs the same test images; the runs' data are {origins}")


def _by_matching(results: list[Evaluated]) -> dict[str, list[str]]:
    """How the images' classes were matched -> the runs; no runs if it is the same for all."""
    matchings: dict[str, dict[str, None]] = {}
    for result in results:
        if result.classes is not None:
            matchings.setdefault(result.classes, {})[result.run] = None
    return {how: list(runs) if len(matchings) > 1 else [] for how, runs in matchings.items()}


def _print(results: list[Evaluated], fused: Predictions | None, precision: Interpolation) -> None:
    from rich.console import Console
    from rich.text import Text

    from experiments.localisation import regression
    from experiments.runs.runs import AVERAGED
    from experiments.statistics import error_rate
    from experiments.testing.evaluate import error_counts
    from experiments.testing.protocols import PROTOCOLS
    from experiments.text import visible
    from launch.console import figures_table, say

    names = ("row\nrun\ncheckpoint, data", "protocol\ncrop/Q")
    several = {result.predictions.targets is not None for result in results}
    top_k = ("top-1 error %", "top-5 error %") if False in several else ()
    table = figures_table(names, ("n", *top_k, *(("mean AP %",) if True in several else ())))

    def rates(counts: dict[str, Any]) -> list[Text]:
        cells = []
        if AVERAGED in counts:
            return [Text("")] * len(top_k) + [Text(f"{counts[AVERAGED]:.2f}")]
        for k in (1, 5):
            if f"top{k}_errors_count" not in counts:  # of boxes
                cells.append(Text(""))
                continue
            rate = error_rate(counts[f"top{k}_errors_count"], counts["n"])
            cells.append(Text(f"{rate.percent:.2f}\n[{rate.low:.2f}, {rate.high:.2f}]"))
        return cells

    documents = [result.to_json(precision) for result in results]
    for result, counts in zip(results, documents, strict=True):
        source = f"{result.checkpoint}, {visible(result.data)}"
        left_out = f"\n{result.left_out} left out" if result.left_out else ""
        table.add_row(
            Text("\n".join(dict.fromkeys((result.row, visible(result.run), source)))),
            Text(f"{result.protocol}\n{result.crop}/{', '.join(map(str, result.scales))}"),
            Text(f"{counts['n']}{left_out}"),
            *rates(counts),
        )
    if fused is not None:
        counts = error_counts(fused, results[0].class_names, precision)
        n = Text(str(counts["n"]))
        table.add_section()
        table.add_row(f"fusion of these {len(results)}", "", n, *rates(counts))
    console = Console()
    console.print(table)
    for name in dict.fromkeys(result.protocol.removesuffix("+flip") for result in results):
        width = min(100, console.width)
        description = textwrap.fill(f"{name}: {PROTOCOLS[name]}", width, subsequent_indent="  ")
        console.print(description, style="dim", highlight=False)
    for counts in (document for document in documents if AVERAGED in document):
        classes = [
            f"{visible(name)} {'-' if value is None else f'{value:.1f}'}"
            for name, value in counts["average_precision"].items()
        ]
        say(
            console,
            f"{counts['run']} {counts['protocol']}, average precision %: " + ", ".join(classes),
        )
    for run in dict.fromkeys(r.run for r in results if r.predictions.boxes is not None):
        say(console, f"{run}: {regression.ERROR}")
    for matching, runs in _by_matching(results).items():
        whose = f"{', '.join(runs)}: " if runs else ""
        console.print(Text(f"{whose}{matching}"), soft_wrap=True)
    unmirrored = {r.data for r in results if not r.mirrored and r.protocol != "center"}
    if unmirrored:
        whose = ", ".join(sorted(unmirrored))
        say(console, f"without mirrors: a mirrored image of {whose} is not one of its class")
    small = {(r.data, r.enlarged, max(r.scales)) for r in results if r.enlarged}
    for data, count, Q in sorted(small):
        say(console, f"{count} images of {data} are smaller than {Q} pixels and were enlarged")
    if any(result.reused for result in results):
        amount = "all" if all(result.reused for result in results) else "some"
        console.print(f"{amount} of it was tested before, and taken from there", style="dim")

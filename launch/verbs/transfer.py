"""`cnn-depth transfer`: a trained network for other classes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.verbs.features import DEFAULTS, FEATURES, extractors, wanted_of
from launch.verbs.options import RUNS, add_options, add_runs_and_json

if TYPE_CHECKING:
    from experiments.runs.runs import Run
    from experiments.transfer.transfer import Result

HELP = """\
Use a trained network for the classes of another set: a classifier learns from the network's
features of the training images, and is tested on the test images. The features are computed once
and kept (see `cnn-depth features`, whose options are here too).

  logistic  multinomial logistic regression (default)
  svm       a linear support vector machine, one class against the rest
  knn       the nearest training images

C, or the number of neighbours, is chosen on a fifth of the training images that is held out; then
the head learns from all of them. Several runs and layers are ranked, and a report shows the error
against the depth of the layer.

Sets with parts are tested on their test part. Of others so many images of each class are drawn as
--train-per-class says, or a share is the test. Images may be of several classes (VOC); then average
precision is what counts. A linear head on what the last layer sees becomes a run, which `evaluate`,
`predict` and `weights export` take."""
EXAMPLE = """
cnn-depth transfer resnet-50 --data photos
cnn-depth transfer residual_depth/resnet-44 --data digits --layer stage1,stage2,stage3,pool
cnn-depth transfer vgg-D --data 101_ObjectCategories --head svm --normalise l2 --protocol dense \
--scales 256,384,512 --combine concatenate --train-per-class 30 --test-per-class 50 --splits 3
"""

HEAD = {
    "--head logistic|svm|knn": "what learns (default: logistic)",
    "--normalise scale|l2|none": "features are divided by their root mean square length over the "
    "training images, each image's by its own, or left alone (default: scale)",
    "--strength SHARE": "C, or the number of neighbours; it is not chosen then",
    "--train-per-class N": "training images of each class, drawn anew in each split",
    "--test-per-class N": "test images of each class, at most, of a set without parts",
    "--test-share SHARE": "of a set without parts (default: 0.25)",
    "--splits N": "that are drawn (default: 1)",
    "--precision all_points|eleven_points": "average precision, where images may be of several "
    "classes: VOC's from 2010 on, or before (default: all_points)",
    "--solver auto|sklearn|device": "of linear heads: scikit-learn in memory, or chunk by chunk on "
    "the device; auto takes the latter where features outgrow half of the memory (default: auto)",
}
HEAD_DEFAULTS: dict[str, Any] = {
    "head": "logistic",
    "normalise": "scale",
    "test_share": 0.25,
    "splits": 1,
    "precision": "all_points",
    "solver": "auto",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="+", help=RUNS)
    layer = (
        "layers, each for itself (default: what the last fully connected one sees); `all`: each "
    )
    add_options(parser, {"--layer L[,L...]": f"{layer}that is in no block"})
    features = {name: what for name, what in FEATURES.items() if name != "--l2"}
    add_options(parser, features, **DEFAULTS)
    add_options(parser, HEAD, **HEAD_DEFAULTS)
    add_options(
        parser, {"--report DIR": "where the report goes (default: reports/transfer-SET in --runs)"}
    )
    add_runs_and_json(parser)


def main(args: argparse.Namespace) -> int:
    from launch import devices

    devices.set_up()
    devices.start()
    from rich.console import Console

    from experiments import report
    from experiments.report import transfer as transfer_report
    from experiments.report.figures import slug
    from experiments.runs import runs
    from experiments.transfer import made, transfer

    how = transfer.How(
        head=args.head,
        normalise=args.normalise,
        combine=args.combine,
        strength=args.strength,
        train_per_class=args.train_per_class,
        test_per_class=args.test_per_class,
        test_share=args.test_share,
        splits=args.splits,
        precision=args.precision,
        solver=args.solver,
    )
    transfer.check(how)
    subjects, screen = extractors(args), Console(stderr=True)
    wanted = [(subject, one) for subject in subjects for one in _wanted(args, subject)]
    for subject, one in wanted:  # before hours are spent on the first one
        subject.layer(one.layer)
    results, runs_made, why = [], [], ""
    for subject, one in wanted:
        passes = subject.found(one)
        result = transfer.run(passes, how, _progress(screen, subject.run.id, passes[0].layer))
        results.append(result)
        why = made.why_not(subject, result)
        if not why:
            runs_made.append(made.make(subject, result, runs.root(args.runs)))
    folder = args.report or runs.root(args.runs) / "reports" / f"transfer-{slug(results[0].data)}"
    written = report.write(transfer_report.report(results), folder)["report"]
    if args.json:
        told = [result.to_json() for result in results]
        print(
            json.dumps({"results": told, "runs": [str(run.folder) for run in runs_made]}, indent=1)
        )
    else:
        _print(results, runs_made, why, written)
    return 0


def _wanted(args: argparse.Namespace, subject: Any) -> list[Any]:
    """What is asked for of a run; `all` are the layers that lie in no block or module."""
    from dataclasses import replace

    from cnn_arch import layer_outputs

    first, *_ = found = wanted_of(args)
    if args.layer != "all":
        return found
    return [replace(first, layer=name) for name in layer_outputs.outer(subject.bare)]


def _progress(screen: Any, run: str, layer: str) -> Any:
    from launch.console import SOON_SECONDS, at_times

    tell = at_times(screen, soon=SOON_SECONDS)
    return lambda done, total: tell(f"{run} {layer}: {done} of {total} heads are fitted")


def _print(results: Sequence[Result], runs_made: Sequence[Run], why: str, report: Path) -> None:
    from rich.console import Console

    from experiments.report import forms
    from experiments.report import transfer as transfer_report
    from launch.console import say

    console = Console()
    forms.to_terminal(transfer_report.table(results), console)
    for run in runs_made:
        say(console, f"a run with this head: {run.folder}")
    if why and not runs_made:
        say(console, f"no run is made: {why}")
    say(console, f"report: {report}")

"""`cnn-depth track`: sends a tracker what it lacks of runs that are there."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from launch.verbs.options import RUNS, RUNS_FOLDER, add_options

if TYPE_CHECKING:
    from experiments.runs.runs import Run

HELP = """\
Send a tracker what it lacks of runs: curves, configs and results of runs that were trained without
it, or that could not be sent. What it has is not sent again. `--track` of `train`, `sweep`, `table`
and `retry` does this while runs are trained."""
EXAMPLE = """
cnn-depth track residual_depth/resnet-20 --to wandb
cnn-depth track 'vgg_depth/*' --to mlflow,wandb
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="+", help=RUNS)
    what = "wandb and mlflow, or one of them (default: those of $CNN_DEPTH_TRACK)"
    add_options(parser, {"--to NAME[,NAME...]": what, "--runs DIR": RUNS_FOLDER})


def main(args: argparse.Namespace) -> int:
    """1 where something was not sent."""
    from experiments import tracking
    from experiments.runs import names, runs

    tracking.choose(args.to, "--to")
    trackers = [name for name in tracking.chosen() if name in tracking.REMOTE]
    if not trackers:
        raise tracking.TrackingError(
            f"--to {args.to or tracking.TENSORBOARD}: expected {' or '.join(tracking.REMOTE)}"
        )
    found = names.find_runs(args.run, runs.root(args.runs))
    failed = [(run, name) for run in found for name in trackers if not _sent(run, name)]
    return 1 if failed else 0


def _sent(run: Run, name: str) -> bool:
    """Sends and tells of it; whether all was sent."""
    from experiments.runs.runs import RunLocked
    from experiments.text import visible
    from experiments.tracking import following

    if not run.metrics.is_file():
        print(visible(f"{run.id}: nothing is logged"))
        return True
    try:
        with run.lock():
            why = following.send(run, name)
    except RunLocked as error:
        why = str(error)
    print(visible(f"{run.id}: {why or f'{name} has all of it'}"))
    return not why

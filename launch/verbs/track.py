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
    to_help = "wandb and mlflow, or one of them (default: those of $CNN_DEPTH_TRACK)"
    add_options(parser, {"--to NAME[,NAME...]": to_help, "--runs DIR": RUNS_FOLDER})


def main(args: argparse.Namespace) -> int:
    """Returns 1 where something was not sent."""
    from experiments import tracking
    from experiments.runs import names, runs

    tracking.choose(args.to, "--to")
    trackers = [name for name in tracking.chosen() if name in tracking.REMOTE]
    if not trackers:
        where = f"${tracking.VARIABLE} names none" if args.to is None else f"--to {args.to}"
        choices = " or ".join(tracking.REMOTE)
        raise tracking.TrackingError(
            f"{where}: expected {choices}, such as --to {tracking.REMOTE[0]}"
        )
    selected = names.find_runs(args.run, runs.root(args.runs))
    failed = [(run, name) for run in selected for name in trackers if not _sent(run, name)]
    return 1 if failed else 0


def _sent(run: Run, name: str) -> bool:
    """Sends a run to a tracker, and prints the outcome. Returns whether all of it was sent."""
    from experiments.runs.runs import RunLocked
    from experiments.text import visible
    from experiments.tracking import following

    if not run.metrics.is_file():
        print(visible(f"{run.id}: nothing is logged"))
        return True
    try:
        with run.lock():
            problem = following.send(run, name)
    except RunLocked as error:
        problem = str(error)
    print(visible(f"{run.id}: {problem or f'{name} has all of it'}"))
    return not problem

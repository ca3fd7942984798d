"""`cnn-depth report`: the table and report of a study's runs that are there already."""

from __future__ import annotations

import argparse

from launch.patience import waiting
from launch.verbs import sweep

HELP = """\
Print the table of one or more studies and write their report, from the runs that are there;
nothing is trained, and a row that is not finished is shown as such."""
EXAMPLE = """
cnn-depth report residual_depth vgg_depth
cnn-depth report vgg_depth --seeds 5 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sweep.add_study_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Always 0: an unfinished row is no failure of the report."""
    from experiments.runs import runs

    folder = runs.root(args.runs)
    with waiting("reading the runs"):
        rows = sweep.plan(args, folder)
    sweep.write(rows, {}, folder, args)
    return 0

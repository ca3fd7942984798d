"""`cnn-depth evaluate`: tests trained runs on their data's test images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = """\
Test trained runs: the central crop of every test image once. Prints n, top-1 and top-5 error with
their 95% intervals, and saves the posteriors beside the run."""
EXAMPLE = """
cnn-depth evaluate cifar_resnet-44
cnn-depth evaluate vgg-A --which best --Q 37
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cnn-depth evaluate`."""
    parser.add_argument("run", nargs="+", help="a run's folder, its id, or a part only it has")
    parser.add_argument(
        "--which",
        choices=("last", "best"),
        default="last",
        help="the last checkpoint, or the best on held-out training images (default: last)",
    )
    parser.add_argument("--Q", type=int, help="test scale, pixels (default: the run's)")
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="where runs are kept (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    """Tests each run in turn."""
    from launch import devices

    devices.set_up()
    from rich.console import Console
    from rich.table import Table

    from experiments import evaluate, runs
    from experiments.statistics import error_rate

    folder = args.runs or runs.root()
    found = [runs.find(text, folder) for text in args.run]
    results = [evaluate.evaluate(run, devices.mesh(), args.which, args.Q) for run in found]
    if args.json:
        print(json.dumps(results, indent=1))
        return 0
    table = Table("run", "checkpoint", "test view", "n", "top-1 error %", "top-5 error %")
    for result in results:
        cells = []
        for k in (1, 5):
            rate = error_rate(result[f"top{k}_errors_count"], result["n"])
            cells.append(f"{rate.percent:.2f} [{rate.low:.2f}, {rate.high:.2f}]")
        view = f"centre {result['crop']}, Q={result['Q']}"
        table.add_row(result["run"], result["checkpoint"], view, str(result["n"]), *cells)
    Console().print(table)
    return 0

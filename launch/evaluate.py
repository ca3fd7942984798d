"""`cnn-depth evaluate`: tests runs, or a weights file, on images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HELP = """\
Test trained runs, imported ones or a weights file: the central crop of every test image once.
Prints n, top-1 and top-5 error with their 95% intervals, and saves the posteriors beside the run.

--data is a folder of images ({class}/*, or with a part val or test of it), an .npz, or the name of
a data set; by default, a trained run's own."""
EXAMPLE = """
cnn-depth evaluate cifar_resnet-44
cnn-depth evaluate vgg-A --which best --Q 37
cnn-depth evaluate --weights resnet20.th --as cifar_resnet:20 --data cifar10
cnn-depth evaluate resnet-50 --data imagenet/val
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cnn-depth evaluate`."""
    from launch.weights import add_import_arguments

    parser.add_argument("run", nargs="*", help="a run's folder, its id, or a part only it has")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="a weights file, imported first, with --as"
    )
    add_import_arguments(parser, required=False)
    parser.add_argument("--data", help="images to test on (default: the run's own test images)")
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


def imported(args: argparse.Namespace) -> Any:
    """The run of `--weights`, or None without it. Raises ConfigError where options don't fit."""
    from experiments.config import ConfigError
    from launch.weights import import_weights

    if args.weights is None:
        if any((args.arch, args.naming, args.set, args.classes, args.mean, args.std)):
            raise ConfigError("--as, --naming, --set, --classes, --mean, --std go with --weights")
        return None
    if args.arch is None:
        raise ConfigError("--weights needs --as ARCH: the architecture they are of")
    return import_weights(args.weights, args)


def main(args: argparse.Namespace) -> int:
    """Tests each run in turn."""
    from launch import devices

    devices.set_up()
    from rich.console import Console

    from experiments import evaluate, runs
    from experiments.config import ConfigError
    from launch.progress import images_bar

    folder = args.runs or runs.root()
    found = [runs.find(text, folder) for text in args.run]
    made = imported(args)
    found += [made] if made is not None else []
    if not found:
        raise ConfigError("nothing to test: name a run, or give --weights FILE --as ARCH")
    results = []
    for run in found:
        screen = Console(stderr=True)

        def on_bad(reason: str, screen: Console = screen) -> None:
            screen.print(f"left out: {reason}", highlight=False, markup=False, emoji=False)

        with images_bar(screen, run.id) as on_progress:
            found_here = evaluate.evaluate(
                run, devices.mesh(), args.which, args.Q, args.data, on_progress, on_bad
            )
        results.append(found_here)
    if args.json:
        print(json.dumps(results, indent=1))
    else:
        _print(results)
    return 0


def _print(results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from experiments.statistics import error_rate

    table = Table()
    for name in ("run", "data"):
        table.add_column(name, overflow="fold")
    for name in ("crop/Q", "n", "top-1 error %", "top-5 error %"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        cells = []
        for k in (1, 5):
            rate = error_rate(result[f"top{k}_errors_count"], result["n"])
            cells.append(f"{rate.percent:.2f}\n[{rate.low:.2f}, {rate.high:.2f}]")
        view = f"{result['crop']}/{result['Q']}"
        tested = Text(f"{result['run']} {result['checkpoint']}")
        left = f"\n{result['left_out']} left out" if result["left_out"] else ""
        n = f"{result['n']}{left}"
        table.add_row(tested, Text(result["data"]), view, Text(n), *map(Text, cells))
    console = Console()
    console.print(table)
    console.print("central crop of the image scaled to short side Q, in pixels", style="dim")

"""`cnn-depth train`: one run, in this process, on all of its devices."""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path
from typing import Any

HELP = """\
Train one network: the config of a study, or one row of its sweep. A run that was interrupted goes
on where it stopped; one that is finished is not trained again."""
EXAMPLE = """
cnn-depth train residual_depth --row resnet-20
cnn-depth train vgg_depth --set model.arch=vgg:D --set train.epochs=5
cnn-depth train resnet:18,data=folder --set data.path=/data/imagenet
cnn-depth train my.py --seed-from resnet-50 --set seeding.classifier=fresh
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cnn-depth train`."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "study", nargs="?", help="a study of `cnn-depth list`, or a config file; NAME:ARGUMENT"
    )
    which.add_argument("--config", metavar="FILE", help="the same")
    parser.add_argument("--row", help="a row of its sweep (default: the config without a sweep)")
    parser.add_argument(
        "--seed-from",
        metavar="RUN",
        help="start from the network of this trained or imported run; see `seeding` in a config",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seed", type=int, help="the same as --set seed=N")
    parser.add_argument("--devices", type=int, metavar="N", help="use N devices (default: all)")
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="where runs are kept (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def main(args: argparse.Namespace) -> int:
    """0 when the run is finished, 130 when it was interrupted (and saved)."""
    from rich.console import Console

    from launch import devices

    devices.set_up()
    from experiments import config as configs
    from experiments import runs, train
    from launch import graph, progress

    study = args.study or args.config
    overrides = configs.parse_set(args.set)
    if args.seed is not None:
        overrides["seed"] = str(args.seed)
    folder = args.runs or runs.root()
    donor = runs.find(args.seed_from, folder) if args.seed_from else None
    job = graph.one(study, args.row, overrides, folder, donor)
    if job.after is not None and job.after.run.state()[0] != "finished":
        raise runs.RunError(
            f"row {job.row!r} starts from row {job.after.row!r}, which is not trained yet; train "
            f"that first, or run `cnn-depth sweep {study}`"
        )
    screen = Console(stderr=args.json)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, frame: asked.append(n))
    mesh = devices.mesh(args.devices)
    job.create()
    with progress.Watch(screen, [job], {}) as watch:

        def tell(event: dict[str, Any]) -> None:
            watch.on_event(job, event)

        tell({"event": "launched"})
        try:
            with job.run.lock():
                result = train.train(job.run, mesh, on_event=tell, stop=lambda: bool(asked))
        except train.Interrupted as stopped:
            screen.print(f"{stopped}; the same command goes on from there", highlight=False)
            return 130
        tell({"event": "finished"})
    if args.json:
        print(json.dumps({"run": str(job.run.folder), **result}, indent=1))
    else:
        screen.print(f"run: {job.run.folder}", highlight=False, soft_wrap=True)
    return 0

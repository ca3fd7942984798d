"""`cnn-depth inspect`: a look inside a trained network."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from launch.verbs.features import extractors_of
from launch.verbs.options import RUN, add_options, add_runs_and_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from experiments.inspection.inspection import Inspection

HELP = """\
Look inside the network of a run: one page with figures, and their arrays beside it.

  filters     the kernels of the first convolution
  units       images that excite units most, and the part of each that a unit sees
  nearest     test images with their nearest training images, by what the last layer sees
  codes       short binary codes for them: how often they find the same neighbours
  occlusion   the posterior of the true class where a square covers the image
  saliency    the gradient of the true class's score by the pixels
  statistics  outputs of all layers, dead units and gradients, by depth

Features are those of `cnn-depth features`, and kept as they are there. Of sets of more than 6,000
images 5,000 training and 1,000 test images are taken, unless features of all are kept already. One
process does all, on its own devices."""
EXAMPLE = """
cnn-depth inspect residual_depth/resnet-44
cnn-depth inspect vgg_depth/D --parts units,statistics --layer conv1_1,conv3_1,fc7 --units 12
cnn-depth inspect resnet-50 --data photos --out inside
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help=RUN)
    options = {
        "--data DATA": "images, as `evaluate` takes them, of all parts (default: the run's own)",
        "--layer L[,L...]": "layers whose units are shown (default: four, evenly over the depth)",
        "--parts P[,P...]": "what to look at (default: all of the above)",
        "--units N": "units shown of each layer (default: 8)",
        "--images N": "test images that units and statistics look through (default: 500)",
        "--bits N": "of codes (default: 64)",
        "--which last|best": "checkpoint (default: last)",
        "--out DIR": "where the page and inspection.npz go (default: reports/inspect-RUN in "
        "--runs)",
    }
    add_options(parser, options, units=8, images=500, bits=64, which="last")
    add_runs_and_json(parser)


def main(args: argparse.Namespace) -> int:
    from launch import devices

    devices.set_up()
    devices.start()
    from rich.console import Console

    from experiments import report
    from experiments.inspection import inspection
    from experiments.inspection.looking import Looking
    from experiments.report import inspection as inspection_report
    from experiments.runs import names, runs
    from launch.console import say

    settings = inspection.InspectionSettings(
        parts=_listed(args.parts) or inspection.PARTS,
        layers=_listed(args.layer),
        units=args.units,
        images=args.images,
        bits=args.bits,
    )
    settings.check()
    screen, run = Console(stderr=True), names.find_run(args.run, runs.root(args.runs))
    (subject,) = extractors_of([run], args.data, args.which)
    parts = [part for part in inspection.PARTS if part in settings.parts]

    def on_part(part: str) -> None:
        say(screen, f"{run.id}: {part} ({parts.index(part) + 1} of {len(parts)})")

    inspected = inspection.inspect(Looking(subject), settings, on_part)
    folder = args.out or runs.root(args.runs) / "reports" / f"inspect-{run.id}"
    say(screen, f"{run.id}: drawing")
    written = report.write(inspection_report.report(inspected), folder)
    inspection.write(inspected, folder / inspection.FILE)
    files = {"report": written["report"], "arrays": folder / inspection.FILE}
    if args.json:
        print(json.dumps(_as_json(inspected, files), indent=1))
    else:
        _print(inspected, files)
    return 0


def _listed(words: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (words or "").split(","))))


def _as_json(inspected: Inspection, files: Mapping[str, Path]) -> dict[str, Any]:
    return {
        "run": inspected.run,
        "step": inspected.step,
        "data": inspected.data,
        **{name: str(file) for name, file in files.items()},
        "units": {layer.layer: layer.units.tolist() for layer in inspected.units},
        "codes": {code.how: {"bits": code.bits, "recall": code.recall} for code in inspected.codes},
        "statistics": [vars(layer) for layer in inspected.statistics],
        "gradients": [vars(layer) for layer in inspected.gradients],
        "left_out": inspected.left_out,
    }


def _print(inspected: Inspection, files: Mapping[str, Path]) -> None:
    from rich.console import Console

    from experiments.report import forms, inspection
    from launch.console import say

    console = Console()
    for make in (inspection.layers_table, inspection.codes_table):
        table = make(inspected)
        if table is not None:
            forms.to_terminal(table, console)
    for part, reason in inspected.left_out.items():
        say(console, f"{part} is left out: {reason}")
    say(console, f"report: {files['report']}")
    say(console, f"arrays: {files['arrays']}")

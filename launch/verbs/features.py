"""`cnn-depth features`: a layer's output for every image of a set, kept beside the run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.verbs.options import RUNS, add_options, add_runs_and_json

if TYPE_CHECKING:
    from experiments.runs.runs import Run
    from experiments.transfer.features import PassFeatures

HELP = """\
Compute features of every image of a set, once, with the network of a run: a layer's output, and of
a map the mean over its places. They are kept beside the run, and what is there is not computed
again; a command that was stopped goes on where it was. `cnn-depth transfer` learns from them.

A layer is what `cnn-depth describe` calls it, behind its non-linearity; by default the one whose
output the last fully connected layer sees (fc7, pool). Views are those of `cnn-depth evaluate`:

  center      the central crop of the image scaled to short side Q (--flip: and its mirror)
  ten_crop    corners and centre, and their mirrors, averaged
  dense       the whole image, fully convolutional, averaged over the map, with the mirror (VGG)
  multi_crop  a 5x5 grid of crops and their mirrors, averaged

Several scales are averaged, or put side by side by --combine concatenate."""
EXAMPLE = """
cnn-depth features residual_depth/resnet-44 --data digits
cnn-depth features resnet-50 --data photos --layer stage3 --out photos.npz
cnn-depth features vgg-D --data VOCdevkit/VOC2007 --protocol dense --scales 256,384,512,640,768 --l2
"""

# Options that say which features.
FEATURES = {
    "--data DATA": "images, as `evaluate` takes them, of all parts (default: the run's own)",
    "--protocol P": "what is shown of an image: center, ten_crop, dense or multi_crop (default: "
    "center)",
    "--scales --Q Q[,Q...]": "short sides of the scaled image, in pixels, or `vgg` or `resnet`, as "
    "in `evaluate` (default: the run's test scale)",
    "--flip": "with center: the mean with the mirror's",
    "--combine mean|concatenate": "of several scales (default: mean)",
    "--l2": "each image's features are divided by their Euclidean length, as VGG's are",
    "--dtype float32|float16": "in which they are kept (default: float32)",
    "--which last|best": "checkpoint (default: last)",
}
DEFAULTS: dict[str, Any] = {
    "protocol": "center",
    "combine": "mean",
    "dtype": "float32",
    "which": "last",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="+", help=RUNS)
    options = {"--layer L[,L...]": "layers (default: what the last fully connected one sees)"}
    add_options(parser, options)
    add_options(parser, FEATURES, **DEFAULTS)
    out_help = "also write an .npz: features (n, d) float32, ids, labels, parts, classes"
    add_options(parser, {"--out FILE": f"{out_help}; of one run and layer"})
    add_runs_and_json(parser)


def requested_features(args: argparse.Namespace) -> list[Any]:
    """A `features.FeatureRequest` for each layer of `--layer`."""
    from experiments.transfer.features import FeatureRequest

    layers = list(dict.fromkeys((args.layer or "").split(",")))
    return [
        FeatureRequest(layer, args.protocol, args.scales, args.flip, args.dtype) for layer in layers
    ]


def extractors(args: argparse.Namespace) -> list[Any]:
    """An `Extractor` of each named run. Raises as `find_runs` and `Extractor` do."""
    from experiments.runs import names, runs

    selected = names.find_runs(args.run, runs.root(args.runs))
    return extractors_of(selected, args.data, args.which)


def extractors_of(selected: Sequence[Run], data: str | None, which: str = "last") -> list[Any]:
    """An `Extractor` of each run, which shows its progress on the screen. Raises as it does."""
    from functools import cache

    from rich.console import Console

    from experiments.transfer.features import Extractor
    from launch import devices
    from launch.console import images_bar, reading, say

    screen = Console(stderr=True)
    say_once = cache(lambda text: say(screen, text))
    return [
        Extractor(
            run,
            devices.mesh(),
            data,
            which=which,
            bar=lambda label: images_bar(screen, label),
            on_bad=lambda reason: say_once(f"left out: {reason}"),
            on_note=say_once,
            reading=lambda name: reading(screen, name),
        )
        for run in selected
    ]


def main(args: argparse.Namespace) -> int:
    from launch import devices

    devices.set_up()
    devices.start()
    from experiments.config import ConfigError
    from experiments.transfer import features

    requests, subjects = requested_features(args), extractors(args)
    if args.out is not None and len(requests) * len(subjects) > 1:
        raise ConfigError("--out is for the features of one run and one layer")
    if args.out is not None and args.out.suffix != ".npz":
        raise ConfigError(f"--out {args.out}: features are written as .npz")
    for subject in subjects:  # before hours are spent on the first one
        for request in requests:
            subject.layer(request.layer)
    computed = [subject.features(request) for subject in subjects for request in requests]
    if args.out is not None:
        features.write(args.out, computed[0], args.combine, l2=args.l2)
    if args.json:
        print(json.dumps([_as_json(entry) for passes in computed for entry in passes], indent=1))
    else:
        _print([entry for passes in computed for entry in passes], args.out)
    return 0


def _as_json(features: PassFeatures) -> dict[str, Any]:
    n, d = features.values.shape
    return {
        "run": features.run,
        "layer": features.layer,
        "depth": features.depth,
        "pass": features.name,
        "data": features.of.name,
        "n": n,
        "left_out": features.of.left_out,
        "features": d,
        "dtype": str(features.values.dtype),
        "mirrored": features.mirrored,
        "enlarged": features.enlarged,
        "seconds": features.seconds,
        "reused": features.reused,
        "file": str(features.file),
    }


def _print(entries: list[PassFeatures], out: Path | None) -> None:
    from rich.console import Console
    from rich.text import Text

    from experiments.text import visible
    from launch.console import figures_table, say

    table = figures_table(("run\ndata", "layer\npass"), ("images", "features", "MB", "images/s"))
    for entry in entries:
        n, d = entry.values.shape
        left_out = f"\n{entry.of.left_out} left out" if entry.of.left_out else ""
        rate = f"{n / entry.seconds:,.0f}" if entry.seconds else ""
        table.add_row(
            Text(f"{visible(entry.run)}\n{visible(entry.of.name)}"),
            Text(f"{entry.layer}\n{entry.name}"),
            Text(f"{n:,}{left_out}"),
            f"{d:,}",
            f"{entry.values.nbytes / 1e6:,.1f}",
            rate,
        )
    console = Console()
    console.print(table)
    for folder in dict.fromkeys(entry.file.parent for entry in entries):
        say(console, f"kept in {folder}")
    if out is not None:
        say(console, f"written: {out}")
    if any(entry.reused for entry in entries):
        say(console, "what was there is not computed again: images/s are those of then")

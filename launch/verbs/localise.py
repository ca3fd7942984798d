"""`cnn-depth localise`: where objects are, by VGG's full protocol."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from launch.verbs.evaluate import subject_of
from launch.verbs.options import RUN, add_options, add_runs_and_json

if TYPE_CHECKING:
    from experiments.localisation.localised import Localised
    from experiments.runs.runs import Run

HELP = """\
Test runs whose last layer says boxes (train.boxes), as VGG's paper does in its appendix A. The
classes of an image are the five most probable ones of the classifier that the run was started from,
applied densely. Localiser and classifier are applied to the whole image at every scale; the boxes
of a class, of all places, scales and runs, are merged greedily (OverFeat), and the most trusted one
is the answer. It is right where it shares more than half with a true box, over their union.

Several runs are tested together: their boxes are merged. `cnn-depth evaluate` tests one run's boxes
on central crops with the class given, as table 8 does."""
EXAMPLE = """
cnn-depth localise vgg_localisation/'D 256 PCR'
cnn-depth localise vgg_localisation/'D 384 PCR' --scales 352,384
cnn-depth localise vgg_localisation/'D 256 PCR'@256 vgg_localisation/'D 384 PCR'@352,384
"""
OPTIONS = {
    "--scales --Q Q[,Q...]": "short sides of the scaled image, in pixels (default: each run's test "
    "scale); RUN@Q,Q gives a run its own",
    "--classifiers RUN[,RUN...]": "whose posteriors say the classes, averaged (default: those that "
    "the runs were started from, at the runs' scales)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="+", help=f"{RUN}; RUN@256,384 at these scales")
    add_options(parser, OPTIONS)
    add_runs_and_json(parser)


def main(args: argparse.Namespace) -> int:
    from launch import devices

    devices.set_up()
    devices.start()
    from rich.console import Console

    from experiments.localisation.candidates import Localiser
    from experiments.localisation.localise import localise
    from experiments.runs import names, runs
    from experiments.testing.prediction_store import OWN
    from launch.console import images_bar, say

    folder, screen = runs.root(args.runs), Console(stderr=True)
    requests = [_with_scales(word, args.scales) for word in args.run]
    selected = [(names.find_run(name, folder), scales) for name, scales in requests]
    members = []
    for run, scales in selected:
        subject = subject_of(run, OWN, screen, cache(partial(say, screen)))
        members.append((Localiser(subject), _sides(run, scales)))
    classifier_names = [] if args.classifiers is None else args.classifiers.split(",")
    classifiers = [names.find_run(word, folder) for word in classifier_names]
    _check_once([run for run, _ in selected], "its boxes; RUN@256,384 gives it several scales")
    _check_once(classifiers, "its posteriors")
    sides = tuple(dict.fromkeys(Q for _, scales in members for Q in scales))
    result = localise(
        members, [(run, sides) for run in classifiers], lambda label: images_bar(screen, label)
    )
    if args.json:
        print(json.dumps(_as_json(result), indent=1))
    else:
        _print(result)
    return 0


def _check_once(runs: Sequence[Run], hint: str) -> None:
    """Raises ConfigError where a run is named twice. hint: what would count twice, and a remedy."""
    from experiments.config import ConfigError

    ids = [run.id for run in runs]
    for name in ids:
        if ids.count(name) > 1:
            raise ConfigError(f"{name} is named {ids.count(name)} times; expected once: {hint}")


def _with_scales(word: str, scales: str | None) -> tuple[str, str | None]:
    """Splits `RUN@256,384` into a run's name and its scales; `scales` where it has none."""
    name, at, own = word.rpartition("@")
    return (name, own) if at and "/" not in own else (word, scales)  # me@host/runs is a folder


def _sides(run: Run, scales: str | None) -> tuple[int, ...]:
    """The test scales of a run. Raises ConfigError for what is no scale, or is below its crop."""
    from experiments.testing import protocols

    passes = protocols.resolve("dense", run.config(), scales)
    return tuple(Q for part in passes for Q in part.scales)


def _as_json(result: Localised) -> dict[str, Any]:
    """The result for JSON: errors in percent with their 95% Wilson intervals."""
    rates = {"top1": result.rate(1), "top5": result.rate(5), "class_given": result.given_rate}
    errors: dict[str, Any] = {}
    for name, rate in rates.items():
        errors |= {
            f"{name}_error": rate.percent,
            f"{name}_low": rate.low,
            f"{name}_high": rate.high,
        }
    return {**result.about, "n": len(result.ids), "left_out": result.left_out, **errors}


def _print(result: Localised) -> None:
    from rich.console import Console
    from rich.text import Text

    from experiments.text import visible
    from launch.console import figures_table

    headers = ("n", "top-1 error %", "top-5 error %", "class given, error %")
    table = figures_table(("localisers\nscales",), headers)

    def member_lines(members: Sequence[Any]) -> str:
        return "\n".join(f"{visible(run)}\n  {', '.join(map(str, Qs))}" for run, _, Qs in members)

    rates = (result.rate(1), result.rate(5), result.given_rate)
    left_out = f"\n{result.left_out} left out" if result.left_out else ""
    table.add_row(
        Text(member_lines(result.about["localisers"])),
        Text(f"{len(result.ids)}{left_out}"),
        *(Text(f"{r.percent:.2f}\n[{r.low:.2f}, {r.high:.2f}]") for r in rates),
    )
    console = Console()
    console.print(table)
    console.print(Text(f"classes: {member_lines(result.about['classifiers'])}"), style="dim")

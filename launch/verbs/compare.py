"""`cnn-depth compare`: paired comparisons of tested runs, from their saved predictions."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launch.verbs.evaluate import TESTING, TESTING_DEFAULTS, asked_of
from launch.verbs.options import RUNS, add_options, add_runs_and_json

if TYPE_CHECKING:
    from experiments.runs.runs import Run
    from experiments.testing.kept import Asked
    from experiments.testing.predictions import Predictions

HELP = """\
Compare tested runs, or one run's protocols, on the same images: each with the first. Prints the
errors with their 95% intervals; their difference with its 95% interval (10,000 bootstrap resamples
of the images); how many images only one of the two gets wrong; and the exact McNemar test of that.

It reads what `cnn-depth train` and `evaluate` saved, and computes no network."""
EXAMPLE = """
cnn-depth compare residual_depth/plain-20 residual_depth/resnet-20
cnn-depth compare vgg_depth/D --protocol center,dense --top 5
cnn-depth compare vgg_depth/A vgg_depth/D vgg_depth/E --which best --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="+", metavar="RUN", help=RUNS)
    add_options(parser, TESTING, **TESTING_DEFAULTS)
    parser.add_argument(
        "--top", type=int, choices=(1, 5), default=1, help="top-1 or top-5 error (default: 1)"
    )
    add_runs_and_json(parser)


@dataclass(frozen=True)
class Entry:
    """One test of one run. scales: as given to `evaluate`; None: by default."""

    run: Run
    protocol: str
    scales: str | None
    flip: bool
    asked: Asked

    @property
    def name(self) -> str:
        options = (
            "flip" if self.flip else None,
            self.scales,
            self.asked.which if self.asked.which != "last" else None,
        )
        return " ".join(filter(None, (self.run.id, self.protocol, *options)))


def saved(entry: Entry) -> Predictions:
    """The predictions that a test left.

    Raises PredictionsError where a file can't be read, and RunError where the run was not tested
    so; the message says how to.
    """
    from experiments.runs.runs import RunError
    from experiments.testing import kept

    asked = entry.asked
    entry.run.config()  # a folder that can't be read is no run that was not tested
    try:
        return kept.saved(entry.run, entry.protocol, entry.scales, flip=entry.flip, asked=asked)
    except RunError as error:
        words = ["cnn-depth", "evaluate", str(entry.run.folder), "--protocol", entry.protocol]
        words += ["--scales", entry.scales] if entry.scales else []
        words += ["--which", asked.which] if asked.which != "last" else []
        words += ["--flip"] if entry.flip else []
        words += ["--data", asked.data] if asked.data is not None else []
        words += ["--classes-in-order"] if asked.classes_in_order else []
        if asked.statistics_images:
            words += ["--batch-statistics", str(asked.statistics_images)]
        raise RunError(f"{error}; run: {shlex.join(words)}") from None


def main(args: argparse.Namespace) -> int:
    from experiments.runs import names as run_names
    from experiments.runs import runs

    names, asked = asked_of(args)
    folder = runs.root(args.runs)
    found = run_names.find_runs(args.run, folder)
    entries = [Entry(run, name, args.scales, args.flip, asked) for run in found for name in names]
    _check(entries)
    compared = compare(entries, args.top)
    _note_other_data(entries)
    if args.json:
        print(json.dumps(compared, indent=1))
    else:
        _print(compared)
    return 0


def _check(entries: Sequence[Entry]) -> None:
    from experiments.runs.runs import RunError

    names = [entry.name for entry in entries]
    keys = [(entry.run.folder.resolve(), entry.protocol) for entry in entries]
    twice = [name for name, key in zip(names, keys, strict=True) if keys.count(key) > 1]
    if twice:
        raise RunError(f"{twice[0]} is named twice; there is nothing to compare it with")
    if len(entries) < 2:
        raise RunError(f"only {names[0]} is named; expected two runs, or two protocols")


def compare(entries: Sequence[Entry], top: int) -> dict[str, Any]:
    """Top-`top` errors of all entries, in percent, and each one's difference from the first's.

    A difference is the first's error minus the other's, in points of percent.

    Raises RunError or PredictionsError where they are missing, unreadable, or of other images.
    """
    from experiments.runs.runs import RunError
    from experiments.statistics import bootstrap_difference, mcnemar
    from experiments.testing.predictions import order_like

    first, *others = entries
    reference = saved(first)
    wrong_first = reference.topk_wrong(top)
    tested = [_error(first, wrong_first)]
    comparisons = []
    for entry in others:
        found = saved(entry)
        if (found.boxes is None) != (reference.boxes is None):
            raise RunError(
                f"{entry.name} and {first.name} can't be compared: one errs in boxes, the other in "
                "classes"
            )
        order = order_like(found, reference, (entry.name, first.name))
        wrong = found.topk_wrong(top)[order]
        test = mcnemar(wrong_first, wrong)
        low, high = bootstrap_difference(wrong_first, wrong) or (None, None)
        tested.append(_error(entry, wrong))
        comparisons.append(
            {
                "first": first.name,
                "second": entry.name,
                "difference": test.difference,
                "low": low,
                "high": high,
                "only_first": test.only_first,
                "only_second": test.only_second,
                "p_value": test.p_value,
            }
        )
    boxes = {} if reference.boxes is None else {"error_of": "boxes"}
    return {"top": top, **boxes, "tested": tested, "comparisons": comparisons}


def _error(entry: Entry, wrong: Any) -> dict[str, Any]:
    """wrong: (n,) bool."""
    from experiments.runs import names
    from experiments.statistics import error_rate

    rate = error_rate(int(wrong.sum()), len(wrong))
    return {
        "name": entry.name,
        "run": entry.run.id,
        "row": names.labelled(entry.run).row,
        "protocol": entry.protocol,
        "scales": entry.scales,
        "checkpoint": entry.asked.which,
        "n": rate.n,
        "errors_count": rate.errors,
        "error": rate.percent,
        "low": rate.low,
        "high": rate.high,
    }


def _note_other_data(entries: Sequence[Entry]) -> None:
    """Says where only ids and labels tell that the images are the same."""
    from rich.console import Console

    from launch.console import say

    data = {run.id: (run.read("run") or {}).get("data") for run in (e.run for e in entries)}
    known = {run: text for run, text in data.items() if text}
    if len(set(known.values())) > 1:
        told = ", ".join(f"{run}: {text}" for run, text in known.items())
        say(
            Console(stderr=True),
            f"note: the runs belong to different data ({told}); their test images have the same "
            "numbers and labels, and are taken to be the same",
        )


def _print(compared: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    from experiments.localisation import regression
    from experiments.report.findings import p_text
    from experiments.text import visible
    from launch.console import figures_table

    first, *others = compared["tested"]
    table = figures_table(
        ["row\nrun\nprotocol"],
        [f"top-{compared['top']}\nerror %", "first - this,\npoints", "wrong only\nfirst / this"],
    )
    figures = [""] * 2
    for tested, test in zip(compared["tested"], [None, *compared["comparisons"]], strict=True):
        if test is not None:
            interval = "" if test["low"] is None else "\n[{low:+.2f}, {high:+.2f}]".format(**test)
            figures = [
                f"{test['difference']:+.2f}{interval}",
                f"{test['only_first']} / {test['only_second']}\n{p_text(test['p_value'])}",
            ]
        run, protocol = tested["run"], tested["name"][len(tested["run"]) + 1 :]
        name = "\n".join(dict.fromkeys((tested["row"], visible(run), visible(protocol))))
        error = "{error:.2f}\n[{low:.2f}, {high:.2f}]".format(**tested)
        table.add_row(*map(Text, (name, error, *figures)))
    told = (
        f"{first['n']} images, the same for all. first: {first['name']}; positive points: this one "
        "errs less. 95% intervals: Wilson's of errors, bootstrap over the images of differences. "
        "p: exact McNemar test"
    )
    if len(others) > 1:
        told += f", not adjusted for there being {len(others)} comparisons"
    console = Console()
    console.print(table)
    console.print(Text(visible(told), style="dim"))
    if "error_of" in compared:
        console.print(Text(f"Top-1: {regression.ERROR}", style="dim"))

"""`cnn-depth compare`: paired comparisons of tested runs, from their saved predictions."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launch.verbs.evaluate import TESTING, TESTING_DEFAULTS, parse_testing
from launch.verbs.options import RUNS, add_options, add_runs_and_json

if TYPE_CHECKING:
    from experiments.runs.runs import Run
    from experiments.testing.prediction_store import EvaluationSettings
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
    """One test of one run."""

    run: Run
    protocol: str
    scales: str | None  # as `evaluate` takes them; None: the default
    flip: bool
    settings: EvaluationSettings

    @property
    def name(self) -> str:
        options = (
            "flip" if self.flip else None,
            self.scales,
            self.settings.which if self.settings.which != "last" else None,
        )
        return " ".join(filter(None, (self.run.id, self.protocol, *options)))


def saved(entry: Entry) -> Predictions:
    """The predictions that a test left.

    Raises PredictionsError where a file can't be read, and RunError where there was no such test,
    with the command that makes it.
    """
    from experiments.runs.runs import RunError
    from experiments.testing import prediction_store

    settings = entry.settings
    entry.run.config()  # a folder that can't be read is no run that was not tested
    try:
        return prediction_store.load(
            entry.run, entry.protocol, entry.scales, flip=entry.flip, settings=settings
        )
    except RunError as error:
        command = ["cnn-depth", "evaluate", str(entry.run.folder), "--protocol", entry.protocol]
        command += ["--scales", entry.scales] if entry.scales else []
        command += ["--which", settings.which] if settings.which != "last" else []
        command += ["--flip"] if entry.flip else []
        command += ["--data", settings.data] if settings.data is not None else []
        command += ["--classes-in-order"] if settings.classes_in_order else []
        if settings.statistics_images:
            command += ["--batch-statistics", str(settings.statistics_images)]
        raise RunError(f"{error}; run: {shlex.join(command)}") from None


def main(args: argparse.Namespace) -> int:
    from experiments.runs import names as run_names
    from experiments.runs import runs

    protocols, settings = parse_testing(args)
    folder = runs.root(args.runs)
    selected = run_names.find_runs(args.run, folder)
    entries = [
        Entry(run, protocol, args.scales, args.flip, settings)
        for run in selected
        for protocol in protocols
    ]
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
    repeated = [name for name, key in zip(names, keys, strict=True) if keys.count(key) > 1]
    if repeated:
        raise RunError(f"{repeated[0]} is named twice; there is nothing to compare it with")
    if len(entries) < 2:
        raise RunError(f"only {names[0]} is named; expected two runs, or two protocols")


def compare(entries: Sequence[Entry], top: int) -> dict[str, Any]:
    """Top-`top` errors of all entries, in percent, and each one's difference from the first's.

    A difference is the first's error minus the other's, in points of percent.

    Raises RunError or PredictionsError for missing or unreadable predictions, or other images.
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
        predictions = saved(entry)
        if (predictions.boxes is None) != (reference.boxes is None):
            raise RunError(
                f"{entry.name} and {first.name} can't be compared: one errs in boxes, the other in "
                "classes"
            )
        order = order_like(predictions, reference, (entry.name, first.name))
        wrong = predictions.topk_wrong(top)[order]
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
    """The error of an entry for JSON. wrong: (n,) bool."""
    from experiments.runs import names
    from experiments.statistics import error_rate

    rate = error_rate(int(wrong.sum()), len(wrong))
    return {
        "name": entry.name,
        "run": entry.run.id,
        "row": names.labelled(entry.run).row,
        "protocol": entry.protocol,
        "scales": entry.scales,
        "checkpoint": entry.settings.which,
        "n": rate.n,
        "errors_count": rate.errors,
        "error": rate.percent,
        "low": rate.low,
        "high": rate.high,
    }


def _note_other_data(entries: Sequence[Entry]) -> None:
    """Notes runs of different data, whose images are matched by ids and labels alone."""
    from rich.console import Console

    from launch.console import say

    data_by_run = {run.id: (run.read("run") or {}).get("data") for run in (e.run for e in entries)}
    recorded = {run: data for run, data in data_by_run.items() if data}
    if len(set(recorded.values())) > 1:
        origins = ", ".join(f"{run}: {data}" for run, data in recorded.items())
        say(
            Console(stderr=True),
            f"note: the runs belong to different data ({origins}); their test images have the same "
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
    caption = (
        f"{first['n']} images, the same for all. first: {first['name']}; positive points: this one "
        "errs less. 95% intervals: Wilson's of errors, bootstrap over the images of differences. "
        "p: exact McNemar test"
    )
    if len(others) > 1:
        caption += f", not adjusted for there being {len(others)} comparisons"
    console = Console()
    console.print(table)
    console.print(Text(visible(caption), style="dim"))
    if "error_of" in compared:
        console.print(Text(f"Top-1: {regression.ERROR}", style="dim"))

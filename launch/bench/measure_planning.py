"""`cnn-depth bench planning`: what a sweep of many rows takes before its first run."""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from launch import devices
from launch.bench import frame, timing
from launch.bench.frame import Report
from launch.bench.ratios import NOT_TRUSTED
from launch.bench.timing import Series, Timing, Watch, in_turns
from launch.verbs.options import add_options

HELP = """\
Measure the seconds that planning a sweep of many rows takes, before its first run."""
EXAMPLE = """
cnn-depth bench planning
cnn-depth bench planning --rows 100 --json
"""
VERSIONS = ("jax", "ml-collections")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, {"--rows N": "of the sweep (default: 1000)"}, rows=1000)


STUDY = """\
from experiments.studies import residual_depth

DEPTHS = (8, 14, 20)

def get_config(arg=None):
    return residual_depth.get_config()

def sweep():
    for i in range({rows}):
        arch = f"cifar_resnet:{{DEPTHS[i % 3]}}"
        yield f"row-{{i}}", {{"model.arch": arch, "schedule.lr": 1e-4 * (1 + i)}}
"""


@dataclass(frozen=True)
class Sweep:
    """The planning of a generated sweep."""

    # A row: to `plan` it, to make its runs' `folders`, to `look` at them, and to `plan_again`.
    seconds: dict[str, float]
    timing: Timing  # of all parts; an image is a row


def sweep(rows: int) -> Sweep:
    """Plans a sweep of so many rows as often as a timing needs, after a small one."""
    total = Counter[str]()

    def lap() -> int:
        total.update(swept(rows))
        return rows

    swept(timing.LEAST_STEPS)
    elapsed = timing.laps(lap, rows, Watch(cores=1))
    return Sweep({part: seconds / elapsed.images for part, seconds in total.items()}, elapsed)


def swept(rows: int) -> dict[str, float]:
    """Seconds of each part of one sweep's planning."""
    from launch.planning import graph

    clock = []
    with tempfile.TemporaryDirectory() as folder:
        study, runs = Path(folder) / "rows.py", Path(folder) / "runs"
        study.write_text(STUDY.format(rows=rows), encoding="utf-8")
        clock.append(time.perf_counter())
        planned = graph.plan([str(study)], {}, None, runs)
        clock.append(time.perf_counter())
        jobs = [job for row in planned for job in row.jobs.values()]
        for job in jobs:
            job.create()
        clock.append(time.perf_counter())
        if any(job.done for job in jobs):
            raise AssertionError("a run that was only made is not done")
        clock.append(time.perf_counter())
        graph.plan([str(study)], {}, None, runs)
        clock.append(time.perf_counter())
    parts = ("plan", "folders", "look", "plan_again")
    return {part: end - start for part, (start, end) in zip(parts, pairwise(clock), strict=True)}


def measure(args: argparse.Namespace, machine: dict[str, Any], console: Any) -> Report:
    """Measures a sweep's planning."""
    frame.at_least(args, rows=1)
    devices.use_cpu_only()
    title = f"a sweep of {args.rows:,} rows"
    with frame.turns_bar(console, 1) as on_turn:
        subject = {title: functools.partial(sweep, args.rows)}
        planned = in_turns(subject, 1, on_turn)[0][title]
    return report(planned, args.rows)


def report(planned: Series[Sweep], rows: int) -> Report:
    """The figures of a sweep's planning, for all outputs."""
    seconds = planned.bursts[-1].seconds
    if planned.doubt:
        sentence = f"A sweep of {rows:,} rows, {NOT_TRUSTED}: {planned.doubt}."
    else:
        parts = ", ".join(f"{k.replace('_', ' ')} {1e3 * s:.2f}" for k, s in seconds.items())
        total = rows * (seconds["plan"] + seconds["folders"] + seconds["look"])
        sentence = (
            f"A sweep of {rows:,} rows, milliseconds a row: {parts}; {total:.1f} s in all before "
            "the first run."
        )
    figures = {"rows": rows, "seconds_a_row": seconds, **planned.to_json()}
    return Report("CPU", figures, [*frame.both(sentence)])

"""`cnn-depth sweep`: every row of one or more studies, then their table and report."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.executors import backend
from launch.patience import waiting
from launch.verbs.options import add_options, add_runs_and_json

if TYPE_CHECKING:
    from experiments.config import Study
    from experiments.runs.results import Row
    from launch.planning.graph import StudyRow

MOST_SEEDS = 10_000
CHIPS = "--chips [N*]KIND:SHAPE"
HELP = """\
Train every row of a sweep, rows that seed others first, several side by side where the machine
has room; print the table and write the report. What is trained already is not trained again.

On a cluster (--backend slurm) rows are jobs that start after those of their seeding runs; the
command ends when they are submitted, and the same command prints the table once they are done."""
EXAMPLE = """
cnn-depth sweep residual_depth vgg_depth
cnn-depth sweep vgg_depth --seeds 5
cnn-depth sweep residual_depth --rows 'resnet-*' --grid schedule.lr=0.01,0.1
cnn-depth sweep residual_depth --set train.epochs=3 --set data.name=npz --set data.path=my.npz
cnn-depth sweep vgg_depth --backend slurm --partition gpu --gpus-per-node 1 --dry-run
cnn-depth sweep vgg_depth --backend slurm --gpus-per-node 8 --dry-run --chips h100:8
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study_arguments(parser)
    backend.add_arguments(parser)
    chips = "with --dry-run: warn of rows that do not fit the memory of such devices, as h100:8"
    add_options(parser, {CHIPS: chips})


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which rows; `cnn-depth report` has them too."""
    study_help = "a study of `cnn-depth list`, or a config file; name:arg hands arg on"
    parser.add_argument("study", nargs="+", help=study_help)
    options = {
        "--set KEY=VALUE...": "override a key (`cnn-depth list keys`) in every row, such as "
        "train.epochs=3",
        "--grid KEY=V,V...": "each row at each of these values of a key, such as "
        "schedule.lr=0.01,0.1; may be repeated: at each combination",
        "--zip": "with several --grid: the first values of all keys together, the second, ...",
        "--seeds N": "train each row with N seeds",
    }
    add_options(parser, options)
    rows_help = "only rows with such names, and those that seed them: 'resnet-*'"
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help=rows_help)
    add_runs_and_json(parser, "the table as JSON")


def main(args: argparse.Namespace) -> int:
    """Trains the rows that are not finished, or submits them. Returns 1 if a row failed."""
    from rich.console import Console

    from experiments.runs import runs

    backend.check(args)
    if args.chips and not args.dry_run:
        raise backend.BackendError("--chips goes with --dry-run")
    if args.chips:
        from launch.planning import fit

        fit.targets(args.chips)  # its form, before seconds of planning
    folder = runs.root(args.runs)
    with waiting("planning the rows"):
        rows = plan(args, folder)
    screen = Console(stderr=args.json)
    jobs = [job for row in rows for job in row.jobs.values()]
    reasons = backend.execute(jobs, folder, args, screen)
    if reasons is None:
        return 0
    write(rows, reasons, folder, args)
    return 1 if reasons else 0


def plan(args: argparse.Namespace, folder: Path) -> list[StudyRow]:
    """The rows that the options name, with their jobs. Raises ConfigError for wrong options."""
    from experiments.config import ConfigError, grid, parse_set
    from launch import devices

    devices.use_cpu_only()  # planning must not take an accelerator from the runs
    from launch.planning import graph

    if args.seeds is not None and not 1 <= args.seeds <= MOST_SEEDS:
        raise ConfigError(f"--seeds {args.seeds}: expected 1 to {MOST_SEEDS:,}")
    axes = grid.axes(args.grid)
    if args.zip and len(axes) < 2:
        raise ConfigError("--zip goes with several --grid")
    repeated = [key for key, _ in axes if key in parse_set(args.set)]
    if repeated:
        raise ConfigError(f"{repeated[0]} is in --grid and in --set; leave one of them out")

    studies: dict[str, Study] = {}

    def change(study: Study) -> Study:
        if study.name in studies:
            raise ConfigError(
                f"two studies are called {study.name!r}, so that their rows can't be told apart; "
                "expected studies of different names"
            )
        studies[study.name] = grid.expanded(study, axes, together=args.zip)
        return grid.selected(studies[study.name], args.rows)

    rows = graph.plan(args.study, parse_set(args.set), args.seeds, folder, change)
    grid.check_some(list(studies.values()), args.rows)
    keys = [key for key, _ in axes]
    for axis_keys in [keys] if args.zip else [[key] for key in keys]:
        _check_apart(rows, axis_keys)
    return rows


def _check_apart(rows: Sequence[StudyRow], keys: Sequence[str]) -> None:
    """Raises ConfigError where two values of a grid make the same runs.

    Such values are one value written in two ways, or those of a key that changes no result.
    """
    from experiments.config import ConfigError

    overrides = {
        (id(study), row.name): row.overrides
        for study in {id(row.study): row.study for row in rows}.values()
        for row in study.rows
    }
    runs: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        values = tuple(overrides[id(row.study), row.name][key] for key in keys)
        runs.setdefault(values, set()).update(job.run.id for job in row.jobs.values())
    text_by_runs: dict[frozenset[str], str] = {}
    for values, ids in runs.items():
        text = ", ".join(values)
        first = text_by_runs.setdefault(frozenset(ids), text)
        if first != text:
            raise ConfigError(
                f"--grid {', '.join(keys)}: {first!r} and {text!r} make the same runs; expected "
                "values that change results, each once"
            )


def report_rows(rows: Sequence[StudyRow], reasons: dict[str, str]) -> list[Row]:
    """The rows as a report takes them, with their states. reasons: run id -> why it failed now."""
    from experiments.runs.results import Row
    from experiments.runs.state import FAILED_FIRST
    from experiments.text import visible
    from launch import row_states

    states = row_states.of_runs(job.run for row in rows for job in row.jobs.values())
    entries = []
    for row in rows:
        job_states = [states[job.run.id] for job in row.jobs.values()]
        seeds_of: dict[str, list[str]] = {}
        for seed, state in zip(row.jobs, job_states, strict=True):
            if state.state != "finished" and (reason := reasons.get(state.run) or state.reason):
                seeds_of.setdefault(reason, []).append(str(seed))
        several = len(seeds_of) > 1 or len(row.jobs) > sum(map(len, seeds_of.values()))
        texts = [
            f"seed {', '.join(seeds)}: " * several + reason for reason, seeds in seeds_of.items()
        ]
        entries.append(
            Row(
                study=row.study.name,
                name=row.name,
                architecture=next(iter(row.jobs.values())).config.model.arch,
                runs={seed: job.run.folder for seed, job in row.jobs.items()},
                seed_from=row.seed_from,
                state=min((state.state for state in job_states), key=FAILED_FIRST.index),
                reason=visible("; ".join(texts)),
            )
        )
    return entries


def profile(rows: Sequence[StudyRow]) -> str:
    """The data, image sizes and widths that the rows were measured at, by study."""
    from experiments.text import visible

    sizes_by_study: dict[str, dict[str, None]] = {}
    for job in (job for row in rows for job in row.jobs.values()):
        c = job.config
        size = f"{visible(c.data.name)} at {c.data.image_size}x{c.data.image_size}"
        width = f", width {c.model.width:g}" if c.model.get("width", 1.0) != 1 else ""
        sizes_by_study.setdefault(job.study, {})[size + width] = None
    return "; ".join(f"{study}: {' and '.join(sizes)}" for study, sizes in sizes_by_study.items())


def write(
    rows: Sequence[StudyRow], reasons: dict[str, str], folder: Path, args: argparse.Namespace
) -> None:
    """Prints the table and writes the report."""
    from rich.console import Console

    from experiments import report
    from experiments.report import forms, study
    from experiments.runs import results
    from launch.console import say

    row_results = results.collect(report_rows(rows, reasons))
    screen = Console(stderr=True)
    for result in row_results:
        for cut in filter(None, (run.cut for run in result.runs.values())):
            say(screen, cut)
    title = "; ".join(dict.fromkeys(row.study.title for row in rows))
    table = study.table(row_results, title, profile(rows))
    console = Console()
    if not args.json:  # before the report, which a full disk may cost
        forms.to_terminal(table, console)
    name = "+".join(dict.fromkeys(row.study.name for row in rows))
    if args.grid or args.rows or args.set:  # beside the report of the study itself
        selection = json.dumps([sorted(args.grid), args.zip, sorted(args.rows), sorted(args.set)])
        infix = "-some" if args.grid or args.rows else ""
        name += f"{infix}-{hashlib.sha256(selection.encode()).hexdigest()[:6]}"
    report_folder = folder / "reports" / name
    written = report.write(study.report(row_results, table), report_folder)
    if args.json:
        print(forms.to_json(table), end="")
    else:
        say(console, f"report: {written['report']}")

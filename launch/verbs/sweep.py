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
    warned = "with --dry-run: warn of rows that do not fit the memory of such devices, as h100:8"
    add_options(parser, {CHIPS: warned})


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Which rows, where; shared with `cnn-depth report`."""
    study = "a study of `cnn-depth list`, or a config file; name:arg hands arg on"
    parser.add_argument("study", nargs="+", help=study)
    options = {
        "--set KEY=VALUE...": "override a key (`cnn-depth list keys`) in every row, such as "
        "train.epochs=3",
        "--grid KEY=V,V...": "each row at each of these values of a key, such as "
        "schedule.lr=0.01,0.1; may be repeated: at each combination",
        "--zip": "with several --grid: the first values of all keys together, the second, ...",
        "--seeds N": "train each row with N seeds",
    }
    add_options(parser, options)
    some = "only rows with such names, and those that seed them: 'resnet-*'"
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help=some)
    add_runs_and_json(parser, "the table as JSON")


def main(args: argparse.Namespace) -> int:
    """Runs what is missing, or hands it to a cluster; 1 if a row failed."""
    from rich.console import Console

    from experiments.runs import runs

    backend.check(args)
    if args.chips and not args.dry_run:
        raise backend.BackendError("--chips goes with --dry-run")
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
    from experiments.config import ConfigError, grid, parse_set
    from launch import devices

    devices.use_cpu_only()  # planning must not take an accelerator from the runs
    from launch.planning import graph

    if args.seeds is not None and not 1 <= args.seeds <= MOST_SEEDS:
        raise ConfigError(f"--seeds {args.seeds}: expected 1 to {MOST_SEEDS:,}")
    found = grid.axes(args.grid)
    if args.zip and len(found) < 2:
        raise ConfigError("--zip goes with several --grid")
    twice = [key for key, _ in found if key in parse_set(args.set)]
    if twice:
        raise ConfigError(f"{twice[0]} is in --grid and in --set; leave one of them out")

    studies: dict[str, Study] = {}

    def change(study: Study) -> Study:
        if study.name in studies:
            raise ConfigError(
                f"two studies are called {study.name!r}, so that their rows can't be told apart; "
                "expected studies of different names"
            )
        studies[study.name] = grid.over(study, found, together=args.zip)
        return grid.some(studies[study.name], args.rows)

    rows = graph.plan(args.study, parse_set(args.set), args.seeds, folder, change)
    grid.check_some(list(studies.values()), args.rows)
    keys = [key for key, _ in found]
    for chosen in [keys] if args.zip else [[key] for key in keys]:
        _check_apart(rows, chosen)
    return rows


def _check_apart(rows: Sequence[StudyRow], keys: Sequence[str]) -> None:
    """Raises ConfigError where two values of a grid make the same runs: those written differently,
    and those of a key that changes no result. Their rows would be a run under several names."""
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
    first: dict[frozenset[str], str] = {}
    for values, ids in runs.items():
        told = ", ".join(values)
        other = first.setdefault(frozenset(ids), told)
        if other != told:
            raise ConfigError(
                f"--grid {', '.join(keys)}: {other!r} and {told!r} make the same runs; expected "
                "values that change results, each once"
            )


def report_rows(rows: Sequence[StudyRow], reasons: dict[str, str]) -> list[Row]:
    """The rows as the report takes them, with their states."""
    from experiments.runs.results import Row
    from experiments.runs.state import FAILED_FIRST
    from experiments.text import visible
    from launch import row_states

    states = row_states.of_runs(job.run for row in rows for job in row.jobs.values())
    found = []
    for row in rows:
        stands = [states[job.run.id] for job in row.jobs.values()]
        why: dict[str, list[str]] = {}  # reason -> seeds
        for seed, one in zip(row.jobs, stands, strict=True):
            if one.state != "finished" and (reason := reasons.get(one.run) or one.reason):
                why.setdefault(reason, []).append(str(seed))
        several = len(why) > 1 or len(row.jobs) > sum(map(len, why.values()))
        told = [f"seed {', '.join(of)}: " * several + reason for reason, of in why.items()]
        found.append(
            Row(
                study=row.study.name,
                name=row.name,
                architecture=next(iter(row.jobs.values())).config.model.arch,
                runs={seed: job.run.folder for seed, job in row.jobs.items()},
                seed_from=row.seed_from,
                state=min((one.state for one in stands), key=FAILED_FIRST.index),
                reason=visible("; ".join(told)),
            )
        )
    return found


def profile(rows: Sequence[StudyRow]) -> str:
    """What the rows were measured on, so that nobody takes it for something else."""
    from experiments.text import visible

    told: dict[str, dict[str, None]] = {}
    for job in (job for row in rows for job in row.jobs.values()):
        c = job.config
        size = f"{visible(c.data.name)} at {c.data.image_size}x{c.data.image_size}"
        width = f", width {c.model.width:g}" if c.model.get("width", 1.0) != 1 else ""
        told.setdefault(job.study, {})[size + width] = None
    return "; ".join(f"{study}: {' and '.join(lines)}" for study, lines in told.items())


def write(
    rows: Sequence[StudyRow], reasons: dict[str, str], folder: Path, args: argparse.Namespace
) -> None:
    """Prints the table and writes the report."""
    from rich.console import Console

    from experiments import report
    from experiments.report import forms, study
    from experiments.runs import results
    from launch.console import say

    found = results.collect(report_rows(rows, reasons))
    screen = Console(stderr=True)
    for result in found:
        for cut in filter(None, (run.cut for run in result.runs.values())):
            say(screen, cut)
    title = "; ".join(dict.fromkeys(row.study.title for row in rows))
    table = study.table(found, title, profile(rows))
    console = Console()
    if not args.json:  # before the report, which a full disk may cost
        forms.to_terminal(table, console)
    name = "+".join(dict.fromkeys(row.study.name for row in rows))
    if args.grid or args.rows or args.set:  # beside the report of the study itself
        asked = json.dumps([sorted(args.grid), args.zip, sorted(args.rows), sorted(args.set)])
        some = "-some" if args.grid or args.rows else ""
        name += f"{some}-{hashlib.sha256(asked.encode()).hexdigest()[:6]}"
    place = folder / "reports" / name
    written = report.write(study.report(found, table), place)
    if args.json:
        print(forms.to_json(table), end="")
    else:
        say(console, f"report: {written['report']}")

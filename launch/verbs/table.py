"""`cnn-depth table`: a paper's table as a program; printed and measured figures side by side."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launch.executors import backend
from launch.patience import waiting
from launch.verbs.options import add_options, add_runs_and_json
from launch.verbs.sweep import CHIPS, MOST_SEEDS

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.papers.heads import Sets
    from experiments.papers.measured import RowRuns, TableResult
    from experiments.papers.table import Table
    from launch.planning.table_plan import PlannedRow, PlannedTable
    from launch.row_states import RowState

HELP = """\
Train what a paper's table needs, test it as the paper did, and print the paper's figures beside the
measured ones. What is trained or tested already is not done again, and tables share their runs; an
interrupted command goes on where it stopped.

The profile is the size at which it is done:
  demo    scikit-learn's digits, narrow nets: minutes on two CPU cores
  cifar   CIFAR-10, or the small images that the paper itself used
  folder  any folder of images (--set data.path=FOLDER), at a small crop (--size)
  paper   as printed: data, sizes, widths and iterations of the paper (--set data.path=IMAGENET)

--recorded prints the figures that were measured by this project and are kept with it, beside the
printed ones and those of your last table.

Rows of other people's systems are printed only. Rows that are too costly for a profile, or that are
another paper's, are run where they are asked for: --rows NAME, or --all."""
EXAMPLE = """
cnn-depth table vgg-3 --profile demo
cnn-depth table vgg-3 vgg-4 vgg-5 --profile folder --set data.path=photographs --size 96
cnn-depth table resnet-6 --profile cifar --rows ResNet-20 ResNet-56 --seeds 5
cnn-depth table vgg --profile paper --plan --rate 40T --devices 8
cnn-depth table vgg-11 --profile paper --set data.path=imagenet --sets other-sets
cnn-depth table resnet --profile paper --plan --rate 40T --chips v5e:1x1,h100:8
cnn-depth table resnet-6 --profile cifar --backend slurm --partition gpu --gpus-per-node 1
cnn-depth table lenet-fig9 --recorded
cnn-depth list tables
"""
SIZES = {
    "--profile PROFILE": "demo, cifar, folder or paper (default: demo)",
    "--size PIXELS": "side of the networks' input; scales keep their ratio to it (default: the "
    "profile's)",
    "--seeds N": "train each row with N seeds",
    "--sets DIR": "with the profile paper: the folder of VOCdevkit/VOC2007, VOCdevkit/VOC2012, "
    "101_ObjectCategories and 256_ObjectCategories, which vgg-11 tests features on; with paper or "
    "folder that of fall11_whole, whose classes alexnet-2's starred nets learn first",
}
OPTIONS = {
    "--all": "also rows that are run on request only",
    "--set KEY=VALUE...": "override a key (`cnn-depth list keys`) in every row, such as "
    "data.path=imagenet",
    "--plan": "print what would be run, and what it costs",
    "--rate MACS": "with --plan: multiply-adds a second of a device, such as 40T (default: "
    "measured)",
    "--devices N": "with --plan: devices, a run on each (default: 1)",
    CHIPS: "with --plan: warn of rows that do not fit the memory of these, as h100:8,v5e:2x4 "
    "(default: the accelerators here)",
    "--recorded": "print what is recorded, and run nothing",
    "--record": "record the rows whose runs are finished, with this project; run nothing",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    table_help = "a table of `cnn-depth list tables`, or a paper: all of its tables"
    parser.add_argument("table", nargs="+", help=table_help)
    add_options(parser, SIZES, profile="demo")
    rows_help = "only rows with such names: 'ResNet-*'"
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help=rows_help)
    add_options(parser, OPTIONS)
    backend.add_arguments(parser)
    add_runs_and_json(parser)


def main(args: argparse.Namespace) -> int:
    """Trains and tests what is missing, or submits it. Returns 1 if a row failed."""
    if args.recorded:
        from launch import recorded

        return recorded.show(args)
    with waiting("starting"):
        from rich.console import Console

        from experiments import papers
        from experiments.config import ConfigError, one_of
        from experiments.config.profiles import PROFILES
        from experiments.papers.heads import Sets
        from experiments.runs import runs
        from launch import devices
        from launch.console import reading
        from launch.planning.table_plan import OF_SETS, merged, needless, plan

    backend.check(args)
    one_of(args.profile, PROFILES, "profile")
    for name in ("seeds", "devices"):
        value = getattr(args, name)
        if value is not None and not 1 <= value <= MOST_SEEDS:
            raise ConfigError(f"--{name} {value}: expected 1 to {MOST_SEEDS:,}")
    if args.sets is not None and (args.profile not in OF_SETS or not args.sets.is_dir()):
        profiles = " or ".join(OF_SETS)
        problem = "is no folder" if args.profile in OF_SETS else f"goes with --profile {profiles}"
        raise ConfigError(f"--sets {args.sets} {problem}")
    if not args.plan and any(o is not None for o in (args.rate, args.devices, args.chips)):
        raise ConfigError("--rate, --devices and --chips go with --plan")
    if args.plan and (args.backend != "local" or args.processes or args.parallel):
        raise ConfigError("--plan runs nothing: without --backend, --processes and --parallel")
    if args.record:
        _check_record(args)
    tables = papers.named(args.table)
    devices.use_cpu_only()  # planning must not take an accelerator from the runs
    folder = runs.root(args.runs)
    if args.plan:
        from launch.planning import cost_report

        cost_report.check(args)
        with waiting("planning the tables"):
            planned = plan(tables, [], args, folder)
        cost_report.show(planned, args, folder)
        return 0
    with waiting("planning the tables"):
        planned = plan(tables, _shown_before(tables, args, folder), args, folder)
    sets = Sets(args.sets, lambda name: reading(Console(stderr=True), name))
    if args.record:
        return _record(planned, args, folder, sets)
    screen = Console(stderr=args.json)
    jobs = merged(planned)
    reasons: dict[str, str] | None = {}
    if jobs:
        ask = partial(needless, planned)
        reasons = backend.execute(list(jobs.values()), folder, args, screen, ask)
    if reasons is None:
        _tell_of_heads(planned, screen)
        return 0
    _learn_heads(planned, args, sets, screen)
    unmerged = _merge_boxes(planned, folder, screen)
    _write(planned, reasons, args, folder, sets)
    return 1 if reasons or sets.failed or unmerged else 0


def _tell_of_heads(planned: Sequence[PlannedTable], screen: Console) -> None:
    """Says how the heads of tables are computed where a cluster trains the runs."""
    from launch.console import say
    from launch.planning import table_plan

    names = [plan.table.name for plan in planned if table_plan.transferred(plan)]
    if names:
        text = "are computed here, by the same command, when the runs are there"
        say(screen, f"{', '.join(names)}: features, and the heads on them, {text}")


def _learn_heads(
    planned: Sequence[PlannedTable], args: argparse.Namespace, sets: Sets, screen: Console
) -> None:
    """Computes the missing heads on features of trained networks; failures go to `sets.failed`."""
    from experiments.text import numbered
    from launch.executors import heads
    from launch.planning import table_plan

    missing = [
        head for head in table_plan.heads(planned, args.profile, sets) if head.result() is None
    ]
    if missing:
        text = f"{numbered(len(missing), 'head')} on features to learn, one after the other"
        screen.print(text, highlight=False)
        sets.failed.update(heads.run(missing))


def _merge_boxes(planned: Sequence[PlannedTable], folder: Path, screen: Console) -> int:
    """Makes the missing tests of localisers over whole images. Returns how many failed."""
    from experiments.text import numbered
    from launch.executors import boxes
    from launch.planning import table_plan

    missing = table_plan.boxes(planned)
    if missing:
        text = f"{numbered(len(missing), 'test')} of boxes over whole images, one after the other"
        screen.print(text, highlight=False)
    return sum(not boxes.run(test, folder) for test in missing)


def _check_record(args: argparse.Namespace) -> None:
    """Raises ConfigError where options change a paper's recipe, or don't go with --record."""
    from experiments.config import ConfigError, parse_set
    from experiments.recorded import PROFILES

    if args.profile not in PROFILES:
        raise ConfigError(
            f"--record keeps figures of the profiles {' and '.join(PROFILES)}, not of "
            f"{args.profile!r}; add --profile {PROFILES[0]}"
        )
    allowed = ("data.name", "data.path", "data.threads")
    changed = [key for key in parse_set(args.set) if key not in allowed]
    if changed or args.size is not None:
        option = f"--set {changed[0]}" if changed else "--size"
        raise ConfigError(f"--record keeps figures of recipes as they ship: leave out {option}")
    if args.plan or args.json or args.backend != "local":
        raise ConfigError("--record runs nothing: without --plan, --backend and --json")


def _record(
    planned: Sequence[PlannedTable], args: argparse.Namespace, folder: Path, sets: Sets
) -> int:
    """Records the chosen rows. Returns 1 where there is none, or one is not measured."""
    from experiments import recorded

    problems: dict[str, str] = {}  # '': recorded
    for plan in planned:
        if not plan.shown:
            row_names = [row.row.name for row in plan.rows if row.selected]
            row_problems = recorded.record(measure(plan, args, {}, folder, sets), row_names)
            problems |= {f"{plan.table.name}, {row}": text for row, text in row_problems.items()}
    for row, problem in problems.items():
        print(f"{row}: not recorded: {problem}" if problem else f"{row}: recorded")
    return 1 if any(problems.values()) or not problems else 0


def _shown_before(tables: Sequence[Table], args: argparse.Namespace, folder: Path) -> list[Table]:
    """The other tables of these papers that their reports hold."""
    from experiments import papers

    names = {table.name for table in tables}
    return [
        table
        for table in papers.tables().values()
        if table.paper in {t.paper for t in tables}
        and table.name not in names
        and (_place(table.paper, args, folder) / f"{table.name}.json").is_file()
    ]


def _place(paper: str, args: argparse.Namespace, folder: Path) -> Path:
    """The folder of a paper's report: one for each profile and each set of changes to it."""
    changed = json.dumps([sorted(args.set), args.size]) if args.set or args.size else ""
    suffix = f"-{hashlib.sha256(changed.encode()).hexdigest()[:6]}" if changed else ""
    return folder / "reports" / f"{paper}-{args.profile}{suffix}"


def measure(
    planned: PlannedTable,
    args: argparse.Namespace,
    reasons: Mapping[str, str],
    folder: Path,
    sets: Sets | None = None,
) -> TableResult:
    """The table from the runs in `folder`. reasons: run id -> why it failed now."""
    from experiments.papers import measured
    from launch import row_states
    from launch.planning import estimate
    from launch.planning.table_plan import merged

    states = row_states.of_runs(job.run for row in planned.rows for job in row.jobs)
    needs_by_row = {}
    for row in planned.rows:
        needs = _needs(row, reasons, states)
        if needs.state == "on request":  # the time it would take, at the rate of finished runs
            jobs = merged([replace(planned, rows=[row])], selected_only=False).values()
            jobs_left = [job for job in jobs if not job.done]
            needs = replace(needs, seconds=estimate.measured_seconds(jobs_left, folder))
        needs_by_row[row.row.name] = needs
    return measured.measure(planned.table, args.profile, about(planned, args), needs_by_row, sets)


def _needs(
    planned: PlannedRow, reasons: Mapping[str, str], states: Mapping[str, RowState]
) -> RowRuns:
    from experiments.papers.measured import RowRuns

    row = planned.row
    if row.measured is None:
        return RowRuns(state="printed only", reason=row.note)
    replicates = {
        number: tuple(tuple(job.run for job in members) for members in nets)
        for number, nets in planned.replicates.items()
    }
    state, reason = ("ready", "") if planned.selected else ("on request", planned.request)
    for job in planned.needed:
        run_state = states[job.run.id]
        failed = reasons.get(job.run.id) or (
            run_state.reason if run_state.state == "failed" else ""
        )
        if failed and not job.done:
            state, reason = "failed", f"{job.name}: {failed}"
    return RowRuns(replicates, state, reason)


def about(planned: PlannedTable, args: argparse.Namespace) -> str:
    """The data and sizes that a table's rows are measured at, and what was changed by hand.

    Rows that became the same run are named too.
    """
    settings: list[str] = []
    for row in planned.rows:
        is_trained = row.jobs and all(job.run.trained for job in row.jobs)
        for job in row.jobs if row.selected or is_trained else ():
            c = job.config
            width = c.model.get("width", 1.0)
            length = f"{c.train.steps:,} steps" if c.train.steps else f"{c.train.epochs:g} epochs"
            classes = f"{len(c.data.classes)} classes of " if c.data.classes else ""
            settings.append(
                f"{classes}{c.data.name} at {c.data.image_size}x{c.data.image_size}, "
                f"{'full width' if width == 1 else f'width {width:g}'}, "
                f"{length} of batches of {c.train.batch_size}"
            )
    parts = list(dict.fromkeys(settings)) or ["nothing is trained"]
    if args.set:
        parts.append(f"changed: {', '.join(sorted(args.set))}")
    names_of: dict[str, dict[str, None]] = {}
    for job in (job for row in planned.rows for job in row.jobs):
        names_of.setdefault(job.run.id, {})[job.row] = None
    alike = [names for names in names_of.values() if len(names) > 1]  # --set made them equal
    return "; ".join([*parts, *(f"the same run: {' and '.join(names)}" for names in alike)])


def _write(
    planned: Sequence[PlannedTable],
    reasons: Mapping[str, str],
    args: argparse.Namespace,
    folder: Path,
    sets: Sets,
) -> None:
    """Prints the tables and writes the report of each paper."""
    from rich.console import Console

    from experiments import papers, report
    from experiments.report import forms, paper
    from launch.console import say

    order = list(papers.tables())
    console = Console()
    documents = []
    for name in dict.fromkeys(plan.table.paper for plan in planned):
        own = [plan for plan in planned if plan.table.paper == name]
        own.sort(key=lambda plan: order.index(plan.table.name))
        results = [measure(plan, args, reasons, folder, sets) for plan in own]
        paper_report = paper.report(results, papers.title(name))
        written = report.write(paper_report, _place(name, args, folder))
        for table in (
            t for plan, t in zip(own, paper_report.tables, strict=True) if not plan.shown
        ):
            if args.json:
                documents.append(forms.document(table))
            else:
                forms.to_terminal(table, console)
        if not args.json:
            say(console, f"report: {written['report']}")
    if args.json:
        print(json.dumps(documents, indent=1, ensure_ascii=False))

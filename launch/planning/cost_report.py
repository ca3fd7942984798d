"""What a table would run, and what that costs: `cnn-depth table --plan`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from experiments.config import ConfigError
from experiments.report.text import count
from experiments.text import numbered
from launch import devices, row_states
from launch.console import figures_table, say
from launch.patience import waiting
from launch.planning import estimate, fit
from launch.planning.graph import Job
from launch.planning.table_plan import PlannedTable, located, merged, transferred

UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


@dataclass(frozen=True)
class PlannedRun:
    """A run of a plan, as `--json` prints it."""

    id: str
    study: str
    row: str
    seed: int
    seeded_from: str | None  # the id of its seeding run
    state: str
    steps: int
    batch_size: int
    images: int  # over all steps of its training
    parameters: int
    training_macs: int
    tests: tuple[str, ...]
    testing_macs: int
    left_macs: int  # of the training and the tests that are not done yet
    seconds: float  # that `left_macs` take on one device
    tables: tuple[str, ...]  # those that need it
    fits: tuple[fit.Fit, ...]  # of its training, one for each of the devices asked about


def parse_rate(text: str) -> float:
    """`40T` as 4e13. Raises ConfigError."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([kMGTP]?)", text.strip())
    if not match or not float(match[1]):
        raise ConfigError(f"--rate {text!r}: expected multiply-adds a second, such as 40T or 8.5G")
    return float(match[1]) * UNITS[match[2]]


def check(args: argparse.Namespace) -> None:
    """Raises ConfigError or DeviceError for a --rate or --chips of another form: planning, which
    takes seconds, can wait for that."""
    if args.rate is not None:
        parse_rate(args.rate)
    if args.chips is not None:
        fit.targets(args.chips)


def show(planned: Sequence[PlannedTable], args: argparse.Namespace, folder: Path) -> None:
    """Prints the plan of the tables that the options of `cnn-depth table` name."""
    jobs = merged(planned)
    targets = fit.targets(args.chips)
    rate_source, seconds = _seconds(list(jobs.values()), folder, args.rate)
    states = row_states.of_runs(job.run for job in jobs.values())
    runs = [
        _run(job, planned, seconds[run], states[run].state, targets) for run, job in jobs.items()
    ]
    assumed = sorted({name for table in planned for name in table.assumed})
    totals = _totals(runs, planned, args.devices or 1)
    totals |= {"rate": rate_source, "assumed_data": assumed, "profile": args.profile}
    totals["warnings"] = fit.warnings(jobs.values(), targets)
    if args.json:
        print(json.dumps({**totals, "runs": [asdict(run) for run in runs]}, indent=1))
    else:
        _print(runs, totals, planned)


def _seconds(jobs: Sequence[Job], folder: Path, rate: str | None) -> tuple[str, dict[str, float]]:
    """The source of the rate, in words, and by run id the seconds left on one device."""
    if rate is not None:
        macs_per_s = parse_rate(rate)
        seconds_left = {job.run.id: estimate.left_macs(job) / macs_per_s for job in jobs}
        return f"{rate} multiply-adds a second and device, as stated", seconds_left
    seconds_left = {job.run.id: 0.0 for job in jobs}
    unfinished = [job for job in jobs if estimate.left_macs(job)]
    rate_source = "nothing is left to do"
    if unfinished:
        with waiting("timing a convolution on this machine"):
            probe = devices.probe(devices.cpu_slots(1)[0])
        seconds_left |= estimate.seconds(unfinished, folder, probe.macs_per_s)
        rate_source = (
            "the rate of runs like them that are finished here; for want of those, "
            f"{probe.macs_per_s / 1e9:.3g}G multiply-adds a second of a convolution timed on this "
            f"machine's {probe.platform}"
        )
    return rate_source, seconds_left


def _run(
    job: Job,
    planned: Sequence[PlannedTable],
    seconds: float,
    state: str,
    targets: Sequence[fit.Devices],
) -> PlannedRun:
    table_names = [table.table.name for table in planned if job.run.id in merged([table])]
    if state == "finished" and job.missing_tests():
        state = "to test"
    return PlannedRun(
        id=job.run.id,
        study=job.study,
        row=job.row,
        seed=job.config.seed,
        seeded_from=None if job.seeding is None else job.seeding.run.id,
        state=state,
        steps=job.steps,
        batch_size=job.config.train.batch_size,
        images=job.images,
        parameters=job.census.params,
        training_macs=job.training_macs,
        tests=tuple(test.name for test in job.tests),
        testing_macs=estimate.testing_macs(job, job.tests),
        left_macs=estimate.left_macs(job),
        seconds=seconds,
        tables=tuple(table_names),
        fits=tuple(fit.of_job(job, target) for target in targets),
    )


def _totals(
    runs: Sequence[PlannedRun], planned: Sequence[PlannedTable], devices: int
) -> dict[str, Any]:
    seconds = {run.id: run.seconds for run in runs}
    seeded_by = {run.id: run.seeded_from for run in runs if run.seeded_from is not None}
    return {
        "tables": [table.table.name for table in planned],
        "run_count": len(runs),
        "finished": sum(run.state in ("finished", "to test") for run in runs),
        "shared_between_tables": sum(len(run.tables) > 1 for run in runs),
        "edges": len(seeded_by),
        "training_macs": sum(run.training_macs for run in runs),
        "testing_macs": sum(run.testing_macs for run in runs),
        "left_macs": sum(run.left_macs for run in runs),
        "device_hours": sum(run.seconds for run in runs) / 3600,
        "devices": devices,
        "hours": estimate.makespan(seconds, seeded_by, devices) / 3600,
    }


def _print(
    runs: Sequence[PlannedRun], totals: Mapping[str, Any], planned: Sequence[PlannedTable]
) -> None:
    console = Console()
    say(console, f"{', '.join(totals['tables'])} in the profile {totals['profile']}", "bold")
    table = figures_table(
        ("row, and from which\nit starts", "state"),
        ("steps\nbatch", "params", "MACs to train\nto test", "hours\nleft"),
    )
    row_of = {run.id: run.row for run in runs}
    rows: dict[tuple[str, str, int], list[PlannedRun]] = {}
    for run in runs:  # the same row on other data has other steps
        rows.setdefault((run.study, run.row, run.steps), []).append(run)
    study = ""
    for (name, row, _), seeds in rows.items():
        if name != study:
            study = name
            table.add_section()
            table.add_row(Text(study, "italic"))
        first = seeds[0]
        seeding_row = row_of.get(first.seeded_from or "", "")
        seeds_note = f", {len(seeds)} seeds" if len(seeds) > 1 else ""
        cells = (
            row + seeds_note + (f"\n  from {seeding_row}" if seeding_row else ""),
            ", ".join(dict.fromkeys(run.state for run in seeds)),
            f"{first.steps:,}\n{first.batch_size}",
            count(first.parameters),
            f"{_macs(sum(r.training_macs for r in seeds))}\n"
            f"{_macs(sum(r.testing_macs for r in seeds))}",
            _hours(sum(run.seconds for run in seeds) / 3600),
        )
        table.add_row(*map(Text, cells))
    console.print(table)
    for line in _summary(totals, planned):
        console.print(line, highlight=False)
    for warning in totals["warnings"]:
        say(console, warning)


def _summary(totals: Mapping[str, Any], planned: Sequence[PlannedTable]) -> list[Text]:
    lines = [
        f"{numbered(totals['run_count'], 'run')}, {totals['finished']} of them trained; "
        f"{totals['edges']} start from another; {totals['shared_between_tables']} serve several of "
        "these tables",
        f"{_macs(totals['training_macs'])} multiply-adds of training (three times the forward "
        f"ones), {_macs(totals['testing_macs'])} of tests (dense: of square images); "
        f"{_macs(totals['left_macs'])} left",
        f"{_hours(totals['device_hours'])} device-hours; on {totals['devices']} "
        f"device{'s' if totals['devices'] > 1 else ''}, a run on each: {_hours(totals['hours'])} "
        f"hours ({totals['rate']})",
    ]
    for name in totals["assumed_data"]:
        lines.append(f"{name} was not found here: its published numbers of images are taken")
    if names := [table.table.name for table in planned if transferred(table)]:
        lines.append(f"features of {', '.join(names)}, and the heads on them, are not counted")
    if names := [table.table.name for table in planned if located(table)]:
        lines.append(f"tests of boxes over whole images, of {', '.join(names)}, are not counted")
    requests = [
        f"{table.table.name}, {row.row.name}: {row.request}"
        for table in planned
        for row in table.rows
        if row.row.nets and not row.selected
    ]
    return [Text(line) for line in (*lines, *requests)]


def _macs(macs: float) -> str:
    """Three significant digits, as `1.23e+18`."""
    return f"{macs:.3g}" if macs else "0"


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours < 100 else f"{hours:,.0f}"

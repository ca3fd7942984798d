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
    """A run of a plan. macs: of its training, and of its tests; left: what of both is not done yet.

    seconds: what is left takes on one device. tables: that ask for it. fits: how its training
    fits devices, where these are known.
    """

    id: str
    study: str
    row: str
    seed: int
    seeded_from: str | None
    state: str
    steps: int
    batch_size: int
    images: int
    parameters: int
    training_macs: int
    tests: tuple[str, ...]
    testing_macs: int
    left_macs: int
    seconds: float
    tables: tuple[str, ...]
    fits: tuple[fit.Fit, ...]


def parse_rate(text: str) -> float:
    """`40T` as 4e13. Raises ConfigError."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([kMGTP]?)", text.strip())
    if not found or not float(found[1]):
        raise ConfigError(f"--rate {text!r}: expected multiply-adds a second, such as 40T or 8.5G")
    return float(found[1]) * UNITS[found[2]]


def show(planned: Sequence[PlannedTable], args: argparse.Namespace, folder: Path) -> None:
    """Prints the plan of what is asked for by the options of `cnn-depth table`."""
    jobs = merged(planned)
    on = fit.known(args.chips)
    how, seconds = _seconds(list(jobs.values()), folder, args.rate)
    states = row_states.of_runs(job.run for job in jobs.values())
    found = [_run(job, planned, seconds[run], states[run].state, on) for run, job in jobs.items()]
    assumed = sorted({name for table in planned for name in table.assumed})
    totals = _totals(found, planned, args.devices or 1)
    totals |= {"rate": how, "assumed_data": assumed, "profile": args.profile}
    totals["warnings"] = fit.warnings(jobs.values(), on)
    if args.json:
        print(json.dumps({**totals, "runs": [asdict(run) for run in found]}, indent=1))
    else:
        _print(found, totals, planned)


def _seconds(jobs: Sequence[Job], folder: Path, rate: str | None) -> tuple[str, dict[str, float]]:
    """How the time was reckoned, and what is left of each run, on one device."""
    if rate is not None:
        macs_per_s = parse_rate(rate)
        left = {job.run.id: estimate.left_macs(job) / macs_per_s for job in jobs}
        return f"{rate} multiply-adds a second and device, as stated", left
    left = {job.run.id: 0.0 for job in jobs}
    unfinished = [job for job in jobs if estimate.left_macs(job)]
    how = "nothing is left to do"
    if unfinished:
        with waiting("timing a convolution on this machine"):
            probe = devices.probe(devices.cpu_slots(1)[0])
        left |= estimate.seconds(unfinished, folder, probe.macs_per_s)
        how = (
            "the rate of runs like them that are finished here; for want of those, "
            f"{probe.macs_per_s / 1e9:.3g}G multiply-adds a second of a convolution timed on this "
            f"machine's {probe.platform}"
        )
    return how, left


def _run(
    job: Job,
    planned: Sequence[PlannedTable],
    seconds: float,
    state: str,
    on: Sequence[fit.Devices],
) -> PlannedRun:
    asking = [table.table.name for table in planned if job.run.id in merged([table])]
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
        tables=tuple(asking),
        fits=tuple(fit.of_job(job, one) for one in on),
    )


def _totals(
    found: Sequence[PlannedRun], planned: Sequence[PlannedTable], devices: int
) -> dict[str, Any]:
    seconds = {run.id: run.seconds for run in found}
    after = {run.id: run.seeded_from for run in found if run.seeded_from is not None}
    return {
        "tables": [table.table.name for table in planned],
        "run_count": len(found),
        "finished": sum(run.state in ("finished", "to test") for run in found),
        "shared_between_tables": sum(len(run.tables) > 1 for run in found),
        "edges": len(after),
        "training_macs": sum(run.training_macs for run in found),
        "testing_macs": sum(run.testing_macs for run in found),
        "left_macs": sum(run.left_macs for run in found),
        "device_hours": sum(run.seconds for run in found) / 3600,
        "devices": devices,
        "hours": estimate.makespan(seconds, after, devices) / 3600,
    }


def _print(
    found: Sequence[PlannedRun], totals: Mapping[str, Any], planned: Sequence[PlannedTable]
) -> None:
    console = Console()
    say(console, f"{', '.join(totals['tables'])} in the profile {totals['profile']}", "bold")
    table = figures_table(
        ("row, and from which\nit starts", "state"),
        ("steps\nbatch", "params", "MACs to train\nto test", "hours\nleft"),
    )
    names = {run.id: run.row for run in found}
    rows: dict[tuple[str, str, int], list[PlannedRun]] = {}
    for run in found:  # the same row on other data has other steps
        rows.setdefault((run.study, run.row, run.steps), []).append(run)
    study = ""
    for (name, row, _), seeds in rows.items():
        if name != study:
            study = name
            table.add_section()
            table.add_row(Text(study, "italic"))
        first = seeds[0]
        start = names.get(first.seeded_from or "", "")
        many = f", {len(seeds)} seeds" if len(seeds) > 1 else ""
        cells = (
            row + many + (f"\n  from {start}" if start else ""),
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
    if names := [one.table.name for one in planned if transferred(one)]:
        lines.append(f"features of {', '.join(names)}, and the heads on them, are not counted")
    if names := [one.table.name for one in planned if located(one)]:
        lines.append(f"tests of boxes over whole images, of {', '.join(names)}, are not counted")
    requests = [
        f"{table.table.name}, {row.row.name}: {row.request}"
        for table in planned
        for row in table.rows
        if row.row.nets and not row.asked
    ]
    return [Text(line) for line in (*lines, *requests)]


def _macs(value: float) -> str:
    """`1.23e18`, as it is multiplied up."""
    return f"{value:.3g}" if value else "0"


def _hours(value: float) -> str:
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"

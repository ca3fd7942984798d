"""Where runs execute: on this machine, or as jobs of a Slurm cluster; the options that say so."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.executors import cluster
from launch.patience import waiting
from launch.verbs.options import add_options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

    from launch.executors import local
    from launch.executors.cluster import Cluster
    from launch.executors.slurm import Item, Plan
    from launch.planning.graph import Job
    from launch.row_states import RowState

LOCAL = ("parallel", "processes")  # options of this machine alone
PARALLEL = "--parallel N"
TRACK = "--track NAME[,NAME...]"
HERE = {
    "--backend local|slurm": "where runs execute: on this machine (default), or as jobs of a Slurm "
    "cluster",
    PARALLEL: "runs side by side (default: one an accelerator, else one a CPU core)",
    "--processes N": "each run in N processes of this machine, as on N hosts (default: 1)",
    TRACK: "where runs are tracked: wandb, mlflow and tensorboard, or none (default: "
    "$CNN_DEPTH_TRACK, or tensorboard)",
}
JOB = {
    "--cluster FILE": "a TOML file with what follows, as partition = 'gpu', gpus_per_node = 8, and "
    f"with grace, retries, setup, python and [sbatch] (default: ${cluster.ENVIRONMENT})",
    "--partition NAME": "default: the cluster's own",
    "--nodes N": "hosts of each run (default: 1)",
    "--gpus-per-node N": "default: none",
    "--processes-per-node N": "default: 1",
    "--time LIMIT": "time limit of each start, such as 12:00:00; a run goes on in another start "
    "(default: the partition's)",
    "--account NAME": None,
    "--constraint FEATURES": None,
    "--pack N": "runs side by side in a job, which share its cores or GPUs (default: 1)",
    "--max-parallel N": "jobs of an array at once (default: any)",
}
SUBMITTING = {
    "--sbatch KEY=VALUE...": "another option of sbatch, such as mem=64G; may be repeated",
    "--live": "jobs run the code as it is when they start, not as it is now",
    "--dry-run": "print the graph and the scripts; submit nothing",
    "--wait": "follow the runs, to the table",
}
# Names in `args` of the options for a cluster alone; the first are fields of `Cluster`.
FIELDS = [option.split()[0][2:].replace("-", "_") for option in JOB if "FILE" not in option]
SLURM = (*FIELDS, "cluster", "sbatch", "live", "dry_run", "wait")
LOOK_SECONDS = 10.0  # between two looks at the folders of runs, and at Slurm's queue
SHOWN = 3  # job ids that are listed


class BackendError(ValueError):
    """Options that do not go together."""

    user_error = True


def add_arguments(parser: argparse.ArgumentParser, *, parallel: bool = True) -> None:
    """Adds the options of where runs execute. parallel: whether several may run side by side."""
    options = {name: text for name, text in HERE.items() if parallel or name != PARALLEL}
    add_options(parser, options, backend="local")
    group = parser.add_argument_group("on a cluster, with --backend slurm")
    add_options(group, {**JOB, **SUBMITTING})


def check(args: argparse.Namespace) -> Cluster | None:
    """The cluster that the options name; None where runs execute on this machine. Sets the trackers
    to those that the options name.

    Raises BackendError where options do not go with the backend, and what `cluster.read` and
    `tracking.choose` raise.
    """
    from experiments import tracking

    tracking.choose(args.track)
    needed, foreign = ("slurm", SLURM) if args.backend == "local" else ("local", LOCAL)
    for name in foreign:
        if getattr(args, name, None):
            option = f"--{name.replace('_', '-')}"
            raise BackendError(f"{option} goes with --backend {needed}, not {args.backend}")
    for name in LOCAL:
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise BackendError(f"--{name} {value}: expected at least 1")
    if args.backend == "local":
        return None
    if args.dry_run and args.wait:
        raise BackendError("--dry-run submits nothing that --wait could wait for")
    options: dict[str, Any] = {name: getattr(args, name) for name in FIELDS}
    options["sbatch"] = cluster.parse_sbatch(args.sbatch)
    return cluster.read(args.cluster, options)


def execute(
    jobs: Sequence[Job],
    folder: Path,
    args: argparse.Namespace,
    console: Console,
    needless: local.Needless = dict,
) -> dict[str, str] | None:
    """Trains and tests the jobs that are not done, with the jobs that seed them.

    needless: gives the runs that need not go on, run id -> why; on a cluster they go on.

    Returns run id -> reason of those that did not finish; None where a cluster goes on with them,
    or --dry-run only shows them.
    """
    from experiments.runs.state import why_failed
    from experiments.text import numbered
    from launch.console import say
    from launch.executors import local, slurm

    job_options = check(args)
    unique = {job.run.id: job for job in jobs}
    missing = [job for job in unique.values() if not job.done]
    if not any(local.can_run(job) for job in missing):  # it would diverge again
        if job_options is not None and args.dry_run:
            console.print("nothing is left to submit")
            return None
        return {job.run.id: why_failed(job.run) or local.blocked_by(job) for job in missing}
    if job_options is None:
        return _here(list(unique.values()), missing, folder, args, console, needless)
    if args.dry_run:
        _show(list(unique.values()), missing, job_options, folder, args, console)
        return None
    for job in missing:
        job.create()
    items = _items(missing, folder, live=args.live, make=True)
    ids = slurm.submit(items, job_options, folder, lambda text: say(console, text))
    arrays = list(dict.fromkeys(job.partition("_")[0] for job in ids.values()))
    listed = ", ".join(arrays[:SHOWN]) + (", ..." if len(arrays) > SHOWN else "")
    if ids:
        summary = f"{numbered(len(ids), 'run')} submitted, in {len(arrays)} jobs or arrays of jobs"
        console.print(f"{summary}: {listed}", highlight=False)
    if args.wait:
        return _follow(missing, console)
    if args.json:
        print(json.dumps({"backend": "slurm", "submitted": ids}, indent=1))
    else:
        say(console, f"see how they stand: cnn-depth status --runs {folder}")
    return None


def _here(
    jobs: Sequence[Job],
    missing: Sequence[Job],
    folder: Path,
    args: argparse.Namespace,
    console: Console,
    needless: local.Needless,
) -> dict[str, str]:
    from experiments.text import clock, numbered
    from launch import devices, progress
    from launch.executors import local
    from launch.planning import estimate

    refuse_queued(missing)
    parallel, processes = getattr(args, "parallel", None), args.processes or 1
    # A run's share of the cores is the same when it goes on later: its last bits may depend on it.
    number = min(parallel or max(1, devices.usable_cores() // processes), len(jobs))
    with waiting("timing a convolution on this machine"):
        probe = devices.probe(devices.cpu_slots(number)[0])
    if processes > 1 and probe.platform != "cpu":
        if processes > probe.count or probe.platform == "tpu":
            chips = "one has all of them" if probe.platform == "tpu" else f"there are {probe.count}"
            raise devices.DeviceError(
                f"--processes {processes}: each has accelerators of its own, and here {chips}"
            )
        probe = replace(probe, count=probe.count // processes)
    slots = devices.slots(probe, number, parallel)
    expected = estimate.seconds(missing, folder, probe.macs_per_s)
    watch = progress.Watch(console, missing, expected, len(slots))
    for job in missing:  # so that `status` shows those that have to wait
        job.create()
    to_train = sum(not job.run.trained for job in missing)
    to_test = len(missing) - to_train
    console.print(
        f"{numbered(to_train, 'run')} to train, {f'{to_test} to test, ' if to_test else ''}"
        f"{len(jobs) - len(missing)} there already; "
        f"{len(slots)} side by side on {probe.platform}; "
        f"about {clock(watch.left())} in all",
        highlight=False,
    )
    with watch:
        return local.run(missing, slots, watch.on_event, processes, needless)


def refuse_queued(jobs: Sequence[Job]) -> None:
    """Raises BackendError where Slurm has jobs that will train these runs."""
    from launch.executors import slurm

    submitted = [job for job in jobs if (job.run.read("job") or {}).get("backend") == "slurm"]
    slurm_jobs = (slurm.queue(job.run for job in submitted) or {}) if submitted else {}
    for job in submitted:
        if queued := slurm.queued_as(job.run, slurm_jobs):
            raise BackendError(
                f"{job.name} is Slurm's job {queued}: wait for it, or end it first with "
                f"`cnn-depth cancel {job.run.id}`"
            )


def _items(jobs: Sequence[Job], folder: Path, *, live: bool, make: bool) -> list[Item]:
    """The items to submit, with the code that they run.

    live: it is that of the present folder, whatever it will be. make: a missing snapshot is made.
    """
    from experiments import tracking
    from launch.executors import snapshot
    from launch.executors.slurm import Item

    seeded_by = {job.run.id: job.seeding.run.id for job in jobs if job.seeding is not None}
    modules: dict[str, set[str]] = {}
    for job in jobs:
        if job.modules:
            name = job.config.model.arch.partition(":")[0]
            modules.setdefault(job.modules, set()).add(name)
    code = snapshot.Snapshot(snapshot.ROOT, {})
    if not live:
        code = (snapshot.make if make else snapshot.planned)(folder, modules)
    return [
        Item(
            run=job.run,
            name=job.name,
            tests=job.tests,
            after=seeded_by.get(job.run.id),
            modules=code.modules.get(job.modules, job.modules),
            code=code.root,
            track=os.environ.get(tracking.VARIABLE, ""),
        )
        for job in jobs
    ]


def _show(
    jobs: Sequence[Job],
    missing: Sequence[Job],
    job_options: Cluster,
    folder: Path,
    args: argparse.Namespace,
    console: Console,
) -> None:
    """Prints what would be submitted: the graph, the scripts, and what does not fit --chips."""
    from launch.console import say
    from launch.executors import slurm
    from launch.planning import fit

    chips = getattr(args, "chips", None)
    warnings = fit.warnings(jobs, fit.targets(chips)) if chips else []
    items = _items(missing, folder, live=args.live, make=False)
    plan, scripts = slurm.scripts(items, job_options, folder)
    if args.json:
        arrays = [
            {
                "runs": [item.run.id for item in array.items],
                "rows": [item.name for item in array.items],
                "after": array.after or None,
                "script": text,
            }
            for array, text in scripts
        ]
        document = {"cluster": asdict(job_options), "arrays": arrays, "queued": plan.queued}
        print(json.dumps({**document, "left": plan.left, "warnings": warnings}, indent=1))
        return
    from rich.text import Text

    console.print(_tree(jobs, plan))
    name_of = {job.run.id: job.name for job in jobs}
    for array, text in scripts:
        dependency = f", after {name_of.get(array.after, array.after)}" if array.after else ""
        count = len(array.groups)
        kind = f"an array of {count} jobs" if count > 1 else "a job"
        if len(array.items) > count:
            kind += f" of {len(array.items)} runs"
        console.rule(Text(f"{array.name}: {kind}{dependency}"), align="left")
        # A script is printed as it is, to the letter.
        console.print(text.strip(), highlight=False, markup=False, emoji=False, soft_wrap=True)
    for line in warnings:
        say(console, line)


def _tree(jobs: Sequence[Job], plan: Plan) -> Tree:
    """The rows as a tree, each below the one that seeds it, with what the submission does."""
    from rich.text import Text
    from rich.tree import Tree

    to_submit = {item.run.id for array in plan.arrays for item in array.items}

    def state(job: Job) -> str:
        if job.run.id in plan.queued:
            return f"queued as {plan.queued[job.run.id]}"
        if job.run.id in plan.left:
            return "not submitted: " + plan.left[job.run.id]
        return "to submit" if job.run.id in to_submit else "there"

    root = Tree(Text("the graph"), guide_style="dim")
    nodes: dict[str, Tree] = {}

    def node(job: Job) -> Tree:
        if job.run.id not in nodes:
            parent = root if job.seeding is None else node(job.seeding)
            label = Text.assemble(job.name, (f"  {state(job)}", "dim"))
            nodes[job.run.id] = parent.add(label)
        return nodes[job.run.id]

    for job in jobs:
        node(job)
    return root


def _follow(missing: Sequence[Job], console: Console) -> dict[str, str]:
    """Shows the runs until the last has ended; run id -> reason of those that did not finish."""
    from experiments.text import numbered
    from launch import progress
    from launch.console import say

    try:
        with progress.Watch(console, missing, {}) as watch:
            follower = Follower(missing, watch.on_event)
            follower.look()
            while follower.waiting:
                time.sleep(LOOK_SECONDS)
                follower.look()
    except KeyboardInterrupt:
        going_on = sum(not job.done for job in missing)
        say(
            console,
            f"still in Slurm: {numbered(going_on, 'run')}; the same command follows again, and "
            "`cnn-depth cancel` ends what is there",
        )
        raise
    return follower.failed


class Follower:
    """Follows runs that other processes train, by their folders and Slurm's queue. It calls
    `on_event(job, event)` as `local.run` does."""

    def __init__(self, jobs: Sequence[Job], on_event: Callable[[Job, dict[str, Any]], None]):
        self.waiting = {job.run.id: job for job in jobs}  # those that have not ended
        self.failed: dict[str, str] = {}  # run id -> reason
        self._on_event = on_event
        self._launched: set[str] = set()
        self._steps: dict[str, int | None] = {}  # run id -> the latest step reported
        self._missed = Counter[str]()  # run id -> looks in a row that found no job

    def look(self) -> None:
        """Looks once at all runs that have not ended."""
        from launch import row_states

        rows = row_states.of_runs(job.run for job in self.waiting.values())
        for run, job in list(self.waiting.items()):
            row, outcome = rows[run], self._outcome(job, rows[run])
            finished = outcome is not None and outcome["event"] == "finished"
            if run not in self._launched and (row.state == "running" or finished):
                self._launched.add(run)
                self._on_event(job, {"event": "launched"})
            if row.doing == "training" and row.rate is not None:
                self._progress(job, row)
            if outcome is None:
                continue
            del self.waiting[run]
            if not finished:
                self.failed[run] = outcome["reason"]
            self._on_event(job, outcome)

    def _progress(self, job: Job, row: RowState) -> None:
        if self._steps.get(row.run) != row.step:
            self._steps[row.run] = row.step
            figures = {"images_per_s": row.rate, "bottleneck": ""}
            figures |= {
                name: getattr(row, name) for name in ("step", "steps", "loss", "error", "left")
            }
            self._on_event(job, {"event": "progress", **figures})

    def _outcome(self, job: Job, row: RowState) -> dict[str, Any] | None:
        """How a job ended; None if it goes on."""
        from launch.executors import local

        if job.done:
            return {"event": "finished"}
        if row.state == "failed":
            return {"event": "failed", "reason": row.reason}
        if row.active or row.in_slurm or row.unsure:
            del self._missed[row.run]
            return None
        if row.state == "cancelled":
            return {"event": "failed", "reason": "cancelled"}
        if local.blocked(job, self.failed):
            return {"event": "blocked", "reason": local.blocked_by(job)}
        # A shared file system may show files later than Slurm the end of their job.
        self._missed[row.run] += 1
        if self._missed[row.run] < 3:
            return None
        log = (job.run.read("job") or {}).get("log", "its log")
        gone = f"its Slurm job {row.job} is gone; see {log}"
        return {"event": "failed", "reason": row.reason if row.state == "unreadable" else gone}

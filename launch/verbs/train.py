"""`cnn-depth train`: one run, in this process on all of its devices, or through a backend."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from launch.executors import backend
from launch.verbs.options import add_options, add_runs_and_json

if TYPE_CHECKING:
    from rich.console import Console

    from launch.planning.graph import Job

    OnEvent = Callable[[Mapping[str, Any]], None]

HELP = """\
Train one network: the config of a study, or one row of its sweep. A run that was interrupted goes
on where it stopped; one that is finished is not trained again."""
EXAMPLE = """
cnn-depth train residual_depth --row resnet-20
cnn-depth train vgg_depth --set model.arch=vgg:D --set train.epochs=5
cnn-depth train resnet:18,data=folder --set data.path=/data/imagenet
cnn-depth train my.py --seed-from resnet-50 --set seeding.classifier=fresh
cnn-depth train my.py --seed-from resnet-50 --set 'optimizer.freeze=conv1/*,stage*'
cnn-depth train residual_depth --row resnet-20 --processes 2
cnn-depth train resnet:50,data=folder --set data.path=/data/imagenet --backend slurm --nodes 2
"""
OPTIONS = {
    "--row ROW": "a row of its sweep (default: the config without a sweep)",
    "--seed-from RUN": "start from the network of this trained or imported run, and normalise "
    "images as it did (seeding.normalise=fit: by the mean of this run's own); see `seeding` in a "
    "config",
    "--set KEY=VALUE...": "change a key of the config; `cnn-depth list keys` shows them. "
    "optimizer.freeze=PATTERN,... keeps parameters, and the statistics of frozen batch "
    "normalisation, as they are, and computes no gradients of them",
    "--seed SEED": "the same as --set seed=N",
    "--devices N": "use N devices (default: all)",
    "--distributed": "this is one of the processes of a job, each of which runs the same command: "
    "on a TPU pod, on Kubernetes, under srun or mpirun, or as $JAX_COORDINATOR_ADDRESS, "
    "$JAX_NUM_PROCESSES and $JAX_PROCESS_ID say",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    study_help = "a study of `cnn-depth list`, or a config file; NAME:ARGUMENT"
    source.add_argument("study", nargs="?", help=study_help)
    source.add_argument("--config", metavar="FILE", help="the same")
    add_options(parser, OPTIONS)
    backend.add_arguments(parser, parallel=False)
    add_runs_and_json(parser, "the result as JSON")


def main(args: argparse.Namespace) -> int:
    """Returns 0 for a run that is finished or left to a cluster, 1 for one that failed in another
    process, and 130 for one that was interrupted and saved."""
    from launch import devices

    with devices.starting() as on_event:
        return _main(args, on_event)


def _main(args: argparse.Namespace, on_event: OnEvent) -> int:
    from rich.console import Console

    from launch import devices

    elsewhere = backend.check(args) is not None or args.processes is not None
    if elsewhere and args.devices is not None:
        raise backend.BackendError("--devices goes with a run in this process: without --processes")
    if args.distributed and (elsewhere or args.devices is not None):
        raise backend.BackendError("--distributed goes without --backend, --processes or --devices")
    devices.set_up()
    if args.distributed:
        devices.join(detect=True)
    if elsewhere:
        devices.use_cpu_only()  # the accelerators are the run's
    devices.start()
    from experiments import config as configs
    from experiments.runs import names, runs
    from launch.console import say
    from launch.planning import graph

    study = args.study or args.config
    overrides = configs.parse_set(args.set)
    if args.seed is not None:
        overrides["seed"] = str(args.seed)
    folder = runs.root(args.runs)
    seeding_run = names.find_run(args.seed_from, folder) if args.seed_from else None
    job = graph.job_of_row(study, args.row, overrides, folder, seeding_run)
    can_start = job.seeding is None or job.seeding.run.trained
    if not can_start and args.backend == "local":
        assert job.seeding is not None
        raise runs.RunError(
            f"row {job.row!r} starts from row {job.seeding.row!r}, which is not trained yet; train "
            f"that first, or run `cnn-depth sweep {study}`"
        )
    screen = Console(stderr=args.json)
    if args.distributed:
        return _one_of_several(job, screen)
    if not elsewhere:
        backend.refuse_queued([job])
        return _here(job, args, screen, on_event)
    on_event({"event": "left to others"})
    reasons = backend.execute([job], folder, args, screen)
    if reasons is None:
        return 0
    if reasons:
        say(screen, f"{job.name}: {reasons[job.run.id]}")
        return 1
    _tell(job, job.run.read("result") or {}, args.json, screen)
    return 0


def _here(job: Job, args: argparse.Namespace, screen: Console, on_event: OnEvent) -> int:
    """Trains a run in this process alone. `on_event` is called with its events too."""
    from experiments.training import train
    from launch import devices, progress
    from launch.console import say
    from launch.executors import local
    from launch.executors.worker import Recorder

    signals: list[int] = []
    screen_errors: list[BaseException] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, frame: signals.append(n))
    mesh = devices.mesh(args.devices)
    job.create()
    with progress.Watch(screen, [job], {}) as watch, job.run.lock():
        local.record_start(job.run)
        recorder = Recorder(job.run, 1)

        def report(event: dict[str, Any]) -> None:
            on_event(event)
            recorder(event)
            try:
                watch.on_event(job, event)
            # The screen is gone: save, and leave. Rich raises SystemExit where a pipe is broken.
            except (OSError, SystemExit) as error:
                screen_errors.append(error)
                signals.append(signal.SIGPIPE)

        report({"event": "launched"})
        try:
            result = train.train(job.run, mesh, on_event=report, stop=lambda: bool(signals))
        except train.Interrupted as interrupted:
            if screen_errors:
                raise screen_errors[0] from None
            say(screen, f"{interrupted}; the same command goes on from there")
            return 130
        finally:
            recorder.close()
        report({"event": "finished"})
        if screen_errors:
            raise screen_errors[0]
    _tell(job, result, args.json, screen)
    return 0


def _one_of_several(job: Job, screen: Console) -> int:
    """Trains a run in this process and others, each of which runs the same command."""
    from experiments.runs import processes
    from launch.console import say
    from launch.executors import local, worker

    if processes.first():
        job.create()
        local.record_start(job.run)
        follow = f"cnn-depth logs {job.run.id} -f --runs {job.run.folder.parent}"
        say(screen, f"run: {job.run.folder}; {follow}")
    processes.meet("the run's folder is there")
    return worker.main(job.run.folder.absolute(), cluster=True)


def _tell(job: Job, result: dict[str, Any], as_json: bool, screen: Console) -> None:
    from launch.console import say

    if as_json:
        print(json.dumps({"run": str(job.run.folder), **result}, indent=1))
    else:
        say(screen, f"run: {job.run.folder}")

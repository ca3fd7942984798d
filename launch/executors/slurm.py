"""Runs as jobs of Slurm. A run starts when the job of its seeding run is done.

Scripts, the tasks of their jobs and the logs lie in `.slurm` of the runs folder. A job's program is
`launch.executors.worker`. The end of its script decides whether Slurm starts the job again.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments import tracking
from experiments.runs import state
from experiments.runs.runs import Run, write_json, write_text
from experiments.testing.prediction_store import PlannedTest
from launch import devices
from launch.executors import snapshot, squeue
from launch.executors.cluster import OURS, Cluster
from launch.executors.squeue import Queued, SlurmError
from launch.executors.worker import UNSTARTED, arguments

FILES = ".slurm"  # in the runs folder
LOCK = ".submit.lock"
ARRAY_SIZE = 1001  # Slurm's default for MaxArraySize
# A job of an array is named ARRAY_INDEX: its bare number would mean the whole array. After a
# program that was stopped or lost, the script requeues its job if that still runs, or is at its
# time limit. A job that ends for another reason was cancelled, or Slurm itself starts it again.
SCRIPT = """\
#!/bin/bash

{options}

trap : TERM
job=$SLURM_JOB_ID
[ -z "$SLURM_ARRAY_JOB_ID" ] || job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
export {unstarted}={files}/${{job}}_unstarted
{setup}
[ -d {code} ] || {{ echo "the code of this job is gone: "{code} >&2; exit 2; }}
export PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}}
export GLIBC_TUNABLES="${{GLIBC_TUNABLES-{tunables}}}"
export SLURM_EXPORT_ENV=ALL  # to the tasks, also of a job that was given nothing

{program}

status=$?
case $status in 0 | 2 | 3) exit $status ;; esac
echo "exit status $status" >>"${unstarted}"  # the program takes it away when it starts
if [ "$(wc -l <"${unstarted}")" -gt {retries} ]; then
  echo "the program did not start, {retries} starts after the first; giving up" >&2
  exit $status
fi
for _ in 1 2 3 4 5 6 7 8 9 10; do
  case $(squeue -h -t all -j "$job" -o '%T %r') in
    "RUNNING "* | "COMPLETING TimeLimit") scontrol requeue "$job" && break ;;
    ?*) exit $status ;;
  esac
  sleep 30  # Slurm does not answer
done
for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 60; done  # until Slurm ends it
exit $status
"""


@dataclass(frozen=True)
class Item:
    """A run to be submitted."""

    run: Run
    name: str  # its row's
    tests: tuple[PlannedTest, ...] = ()
    after: str | None = None  # the id of the run that seeds it
    modules: str = ""  # folder of the module that its network is of; '': the project's
    code: Path = snapshot.ROOT  # the folder that its job imports the project from
    track: str = ""  # trackers, as in $CNN_DEPTH_TRACK; '': those of the job's environment


@dataclass(frozen=True)
class Array:
    """Items that are submitted at once, as one job or one array of jobs."""

    groups: tuple[tuple[Item, ...], ...]  # for each job its items, which it runs side by side
    after: str = ""  # the run whose job has to end first; '' if none

    @property
    def items(self) -> tuple[Item, ...]:
        """All of them, in order."""
        return tuple(item for group in self.groups for item in group)

    @property
    def name(self) -> str:
        """`A`, or `A .. E`."""
        first, last = self.items[0].name, self.items[-1].name
        return first if len(self.items) == 1 else f"{first} .. {last}"


@dataclass(frozen=True)
class Plan:
    """What a submission does."""

    arrays: tuple[Array, ...]  # in the order of their submission
    queued: Mapping[str, str]  # run id -> its job that is in Slurm's queue already
    left: Mapping[str, str]  # run id -> why it is not submitted


def submit(
    items: Sequence[Item],
    cluster: Cluster,
    folder: Path,
    tell: Callable[[str], None],
    done_with: Mapping[str, str] = {},
) -> dict[str, str]:
    """Submits runs of a folder that are not queued already; run id -> Slurm's job.

    items: all of the same `code` and `track`, their runs' folders made. done_with: run id -> a job
    that has ended this run, and at most goes on with others. Each array is recorded (job.json of
    its runs) once Slurm has taken it, so that a later refusal makes no run be submitted twice.

    Raises SlurmError where Slurm does not answer, or refuses, and what `sort_out` raises.
    """
    if shutil.which("sbatch") is None:
        raise SlurmError(
            "there is no sbatch here; expected a machine from which a Slurm cluster's jobs are "
            "submitted (--dry-run works anywhere)"
        )
    with (folder / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two submissions at once would submit the same runs
        slurm_jobs = queue(item.run for item in items)
        if slurm_jobs is None:
            raise SlurmError("Slurm does not answer (squeue fails); is its controller up?")
        plan = sort_out(items, slurm_jobs, folder, _array_size(), cluster.pack, done_with)
        queued = sum(item.run.id in plan.queued for item in items)
        if queued:
            tell(f"{queued} queued or running already")
        for reason, count in Counter(plan.left.values()).items():
            tell(f"{count} not submitted: {reason}")
        ids: dict[str, str] = {}
        total = sum(len(array.items) for array in plan.arrays)
        for array in plan.arrays:
            after = ids.get(array.after) or plan.queued.get(array.after, "")
            try:
                ids |= _submit(array, after, cluster, folder)
            except SlurmError as error:
                if not ids:
                    raise
                raise SlurmError(f"{error} ({len(ids)} of {total} runs are submitted)") from None
        snapshot.clean(folder, {*slurm_jobs, *ids.values()})
        return ids


def scripts(
    items: Sequence[Item], cluster: Cluster, folder: Path
) -> tuple[Plan, list[tuple[Array, str]]]:
    """What `submit` would do, with the script of each array; it needs no Slurm."""
    slurm_jobs = queue(item.run for item in items) or {}
    plan = sort_out(items, slurm_jobs, folder, _array_size(), cluster.pack)
    name_of = {item.run.id: item.name for array in plan.arrays for item in array.items}
    array_scripts = []
    for array in plan.arrays:
        after = f"JOB-OF-{name_of[array.after]}" if array.after in name_of else ""
        after = plan.queued.get(array.after) or after
        array_scripts.append((array, _script(array, after, cluster, folder).text))
    return plan, array_scripts


def queue(runs: Iterable[Run]) -> dict[str, Queued] | None:
    """The queued jobs, by id, of all users who submitted these runs; None where Slurm does not
    answer."""
    jobs = (run.read("job") or {} for run in runs)
    users = {job["user"] for job in jobs if job.get("user")}
    return squeue.queue(",".join(sorted(users | {getpass.getuser()})))


def sort_out(
    items: Sequence[Item],
    slurm_jobs: Mapping[str, Queued],
    folder: Path,
    size: int = ARRAY_SIZE,
    pack: int = 1,
    done_with: Mapping[str, str] = {},
) -> Plan:
    """Sorts items into arrays of at most `size` jobs, which all wait for the same run.

    pack: items of a job; an item that seeds others has a job of its own. done_with: see `submit`.

    Raises SlurmError where an item's seeding run is neither trained nor queued nor among them.
    """
    runs = {item.run.id: item.run for item in items}
    seeding_runs = {
        item.after: Run(folder / item.after) for item in items if item.after is not None
    }
    untrained = {name: run for name, run in seeding_runs.items() if not run.trained}
    name_of = {item.run.id: item.name for item in items}
    queued, skipped = dict[str, str](), dict[str, str]()
    for name, run in {**untrained, **runs}.items():
        job = queued_as(run, slurm_jobs)
        if job and job != done_with.get(name):
            queued[name] = job
        elif reason := _obstacle(run, name_of.get(name, name), slurm_jobs):
            skipped[name] = reason
    to_submit = {i.run.id: i for i in items if i.run.id not in queued and i.run.id not in skipped}
    hopeless = {name for name in skipped if {**seeding_runs, **runs}[name].diverged}
    while blocked := [i for i in to_submit.values() if i.after in hopeless & untrained.keys()]:
        for item in blocked:
            del to_submit[item.run.id]
            hopeless.add(item.run.id)
            skipped[item.run.id] = skipped[item.after or ""]
    for item in to_submit.values():
        if item.after in untrained and item.after not in queued and item.after not in to_submit:
            seeding_name = name_of.get(item.after or "", f"the run {item.after}")
            raise SlurmError(
                f"{item.name} starts from {seeding_name}, which is neither trained nor in Slurm's "
                f"queue: {skipped.get(item.after or '') or 'it has to be submitted too'}"
            )
    return Plan(tuple(_arrays(to_submit, untrained, queued, size, pack)), queued, skipped)


def _obstacle(run: Run, name: str, slurm_jobs: Mapping[str, Queued]) -> str:
    """Why a run that is not queued can't be submitted; '' if it can."""
    if run.diverged:
        return f"{name} failed, and would again: {state.why_failed(run)}"
    if run.locked() and (run.read("job") or {}).get("job") not in slurm_jobs:
        holder = (run.folder / "lock").read_text().strip() or "another process"
        return f"{name} is being trained by {holder}"
    return ""


def queued_as(run: Run, slurm_jobs: Mapping[str, Queued]) -> str:
    """The id of the job that will train a run; '' if there is none."""
    run_files = state.read_files(run.folder)
    if run_files is None or run_files.job not in slurm_jobs or "cancelled" in run_files.contents:
        return ""
    is_over = not (slurm_jobs[run_files.job].waiting or slurm_jobs[run_files.job].running)
    # A job of several runs goes on when one of them has failed.
    is_over = is_over or (run_files.contents.get("job") or {}).get("packed", 1) > 1
    return "" if is_over and "failed" in run_files.contents else run_files.job


def _arrays(
    to_submit: Mapping[str, Item],
    untrained: Collection[str],
    queued: Mapping[str, str],
    size: int,
    pack: int,
) -> Iterator[Array]:
    """The arrays of items; within an array, items that others wait for come first."""
    seeds = {item.after for item in to_submit.values()}
    items_after: dict[str, list[Item]] = {}
    for item in to_submit.values():
        after = item.after if item.after is not None and item.after in untrained else ""
        items_after.setdefault(after, []).append(item)
    ready = ["", *(name for name in items_after if name in queued)]
    while ready:
        after = ready.pop(0)
        items = sorted(items_after.pop(after, []), key=lambda item: item.run.id not in seeds)
        seeding = [item for item in items if item.run.id in seeds]
        rest = items[len(seeding) :]
        groups: list[tuple[Item, ...]] = [(item,) for item in seeding]
        groups += [tuple(rest[i : i + pack]) for i in range(0, len(rest), pack)]
        for start in range(0, len(groups), size):
            yield Array(tuple(groups[start : start + size]), after)
        ready += [item.run.id for item in items if item.run.id in items_after]


def _submit(array: Array, after: str, cluster: Cluster, folder: Path) -> dict[str, str]:
    """Hands an array to Slurm and records it; run id -> job. after: the job that it waits for."""
    script = _script(array, after, cluster, folder)
    for item in array.items:
        state.clear_marks(item.run)
    try:
        script.jobs.parent.mkdir(exist_ok=True)
        if script.jobs.parent.is_symlink():
            raise SlurmError(f"{script.jobs.parent} is a link; expected a folder of its own")
        write_text(script.jobs, script.tasks)
        write_text(script.jobs.with_suffix(".sh"), script.text)
        words = ["sbatch", "--parsable", str(script.jobs.with_suffix(".sh"))]
        environment = _clean_environment(script.options)
        process = subprocess.run(
            words, capture_output=True, text=True, env=environment, check=False
        )
    except OSError as error:
        raise SlurmError(f"sbatch refused {array.name}: {error}") from error
    if process.returncode:
        raise SlurmError(f"sbatch refused {array.name}: {_error(process.stderr or process.stdout)}")
    match = re.search(r"^(\d+)(?:;\S*)?$", process.stdout, re.MULTILINE)  # NUMBER or NUMBER;CLUSTER
    if match is None:
        raise SlurmError(
            f"sbatch took {array.name} and told no job's number ({_error(process.stdout)}): look "
            "for it with squeue, and end it with scancel before you submit again"
        )
    now = time.time()
    ids = {}
    for index, item in ((i, item) for i, group in enumerate(array.groups) for item in group):
        job = f"{match[1]}_{index}" if len(array.groups) > 1 else match[1]
        ids[item.run.id] = job
        content: dict[str, Any] = {
            "backend": "slurm",
            "job": job,
            "user": getpass.getuser(),
            "submitted": now,
            "cluster": asdict(cluster),
            "tests": [asdict(test) for test in item.tests],
            "after": item.after,
            "modules": item.modules,
            "packed": len(array.groups[index]),
            "code": "" if item.code == snapshot.ROOT else item.code.name,
            "track": item.track,
            "log": str(script.jobs.parent / f"{job}_0_log.err"),
        }
        write_json(item.run.folder / "job.json", content)
    return ids


@dataclass(frozen=True)
class _Script:
    """A script for sbatch."""

    text: str
    jobs: Path  # the file with the tasks of each job of its array
    tasks: str  # the content of that file
    options: Mapping[str, Any]  # those of sbatch that it sets, without their dashes


def _script(array: Array, after: str, cluster: Cluster, folder: Path) -> _Script:
    """The script of an array. after: the job that it waits for."""
    files = folder.absolute() / FILES
    if "%" in str(files):
        raise SlurmError(f"{files}: Slurm replaces % in names of files; expected a path without it")
    if ":" in str(files):
        raise SlurmError(
            f"{files}: PYTHONPATH parts folders by colons; expected a path without one"
        )
    groups = [[arguments(i.run, i.tests, i.modules) for i in group] for group in array.groups]
    tasks = json.dumps([group[0] if len(group) == 1 else group for group in groups])
    path = files / f"{hashlib.sha256(tasks.encode()).hexdigest()[:12]}.json"
    count = len(array.groups) if len(array.groups) > 1 else 0
    name = "%A_%a" if count else "%j"
    at_once = min(count, cluster.max_parallel or count)
    settings: dict[str, Any] = {
        "job-name": array.name,
        "partition": cluster.partition,
        "nodes": cluster.nodes,
        "ntasks-per-node": cluster.processes_per_node,
        "gpus-per-node": cluster.gpus_per_node,
        "time": cluster.time,
        "account": cluster.account,
        "constraint": cluster.constraint,
        "dependency": f"afterok:{after}" if after else "",
        "kill-on-invalid-dep": "yes",
        "array": f"0-{count - 1}%{at_once}" if count else "",
        "signal": f"USR2@{cluster.grace}",
        "requeue": True,
        "open-mode": "append",
        "output": files / f"{name}_0_log.out",
        "error": files / f"{name}_0_log.err",
    }
    options = {key: value for key, value in settings.items() if value not in ("", 0)}
    options |= {key: value for key, value in cluster.sbatch.items() if value is not False}
    logs = [f"--output={files}/{name}_%t_log.out", f"--error={files}/{name}_%t_log.err"]
    srun = ["srun", "--unbuffered", *logs, "--kill-on-bad-exit=1", "--wait=300"]
    if "cpus-per-task" in options:  # srun does not take it from its job
        srun.append(f"--cpus-per-task={options['cpus-per-task']}")
    code = array.items[0].code
    roots = [str(code)]
    if code != snapshot.ROOT:  # before those that the environment names
        roots += dict.fromkeys(item.modules for item in array.items if item.modules)
    track = array.items[0].track  # keys of trackers stay in the environment
    exports = [f"export {tracking.VARIABLE}={shlex.quote(track)}"] if track else []
    python = cluster.python or (sys.executable,)
    program = [*python, "-P", "-u", "-m", "launch.executors.worker", "--jobs", str(path)]
    text = SCRIPT.format(
        options="\n".join(
            f"#SBATCH --{key}" + ("" if value is True else f"={shlex.quote(str(value))}")
            for key, value in sorted(options.items())
        ),
        unstarted=UNSTARTED,
        files=shlex.quote(str(files)),
        setup="\n".join([*cluster.setup, *exports]),
        code=shlex.quote(str(code)),
        root=":".join(map(shlex.quote, roots)),
        tunables=devices.HUGE_PAGES,
        program=shlex.join([*srun, *program]),
        retries=max(1, cluster.retries),
    )
    return _Script(text, path, tasks, options)


def _array_size() -> int:
    """How many jobs an array may have."""
    text = squeue.ask("scontrol", "show", "config") or ""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    return max(1, int(match[1])) if match else ARRAY_SIZE


def _clean_environment(options: Mapping[str, Any]) -> dict[str, str]:
    """The environment without variables that would reach new jobs or override their scripts.

    The first are those of the allocation in which this runs, the second defaults of sbatch such as
    SBATCH_PARTITION; a default that no option of the script replaces stays.
    """
    keys = {*options, *OURS, "array-inx"}
    keys |= {"timelimit"} if "time" in keys else set()
    names = {f"SBATCH_{key.upper().replace('-', '_')}" for key in keys}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in names and (not name.startswith("SLURM_") or name in CLUSTER_VARIABLES)
    }


CLUSTER_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS")  # these say which cluster


def _error(text: str) -> str:
    """What sbatch printed, in one line."""
    lines = [re.sub(r"^sbatch: (error: )?", "", line.strip()) for line in text.splitlines()]
    return "; ".join(dict.fromkeys(filter(None, lines))) or "it says nothing"

"""What a Slurm job of ours asks for: a small TOML of a cluster's defaults, and options over it.

partition = "gpu"
nodes = 2                    # hosts a job
gpus_per_node = 8
time = "1-00:00:00"
setup = ["module load cuda"] # shell lines before the job's program
python = ["apptainer", "exec", "--nv", "net.sif", "python"]  # what starts Python in a job

[sbatch]                     # anything else that sbatch takes
mem = "200G"
cpus-per-task = 16
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

ENVIRONMENT = "CNN_DEPTH_CLUSTER"  # names the file that is read if none is given
# sbatch's formats: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S
TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<d_hours>\d+)(?::(?P<d_minutes>\d+)(?::(?P<d_seconds>\d+))?)?"
    r"|(?P<hours>\d+):(?P<h_minutes>\d+):(?P<h_seconds>\d+)"
    r"|(?P<minutes>\d+)(?::(?P<seconds>\d+))?)"
)
TIMES = (
    "minutes, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS, DAYS-HOURS:MINUTES or "
    "DAYS-HOURS:MINUTES:SECONDS, such as 90, 12:00:00 or 1-12"
)
UNLIMITED = ("", "unlimited", "infinite")  # the first: the partition's own limit

_LOGS = "the logs' places are where `cnn-depth logs` finds them"
_OUTPUT = "sbatch's answer is read for the job's id"
# What sbatch takes, and is not to be given by hand.
OURS = {
    "output": _LOGS,
    "error": _LOGS,
    "open-mode": "a job that is started again adds to its logs",
    "array": "rows that may start together are an array; see --max-parallel",
    "dependency": "it is set from the rows that seed others",
    "kill-on-invalid-dep": "a row whose seeding run failed never starts",
    "requeue": "a job that is stopped or lost is started again",
    "no-requeue": "a job that is stopped or lost is started again; `retries` bounds how often",
    "signal": "it warns a job before its end; see `grace`",
    "job-name": "it is the row's name",
    "wrap": "the script is made here",
    "test-only": "use --dry-run",
    "wait": "use --wait",
    "parsable": _OUTPUT,
    "quiet": _OUTPUT,
    "ntasks": "it follows from --nodes and --processes-per-node",
    "ntasks-per-node": "use --processes-per-node",
}
OPTIONS = ("partition", "nodes", "gpus-per-node", "time", "account", "constraint")


class ClusterError(ValueError):
    """A cluster's file, or an option of a cluster, that can't be used."""

    user_error = True


@dataclass(frozen=True)
class Cluster:
    """What each job asks Slurm for.

    pack: runs side by side in a job. time: as sbatch takes it; '' for the partition's own
    limit. max_parallel: jobs of an array at once, 0 for no limit. grace: seconds between the
    warning signal and the end. retries: how often a run is started once more that got no
    further in the start before. setup: shell lines of each job before its program. python:
    words that start Python in a job, as of a container; the Python that submits if there are none.
    sbatch: further options of sbatch, without their dashes; true for one without a value.
    """

    partition: str = ""
    nodes: int = 1
    gpus_per_node: int = 0
    processes_per_node: int = 1
    time: str = ""
    account: str = ""
    constraint: str = ""
    pack: int = 1
    max_parallel: int = 0
    grace: int = 120
    retries: int = 3
    setup: tuple[str, ...] = ()
    python: tuple[str, ...] = ()
    sbatch: Mapping[str, str | int | bool] = field(default_factory=dict)


# The smallest value of each number.
LEAST = {"nodes": 1, "gpus_per_node": 0, "processes_per_node": 1, "pack": 1, "max_parallel": 0}
LEAST |= {"grace": 1, "retries": 0}
# Of what the lists are.
LISTS = {
    "setup": 'shell lines, such as ["module load cuda"]',
    "python": 'words, such as ["apptainer", "exec", "--nv", "cnn-depth.sif", "python"]',
}


def from_json(content: Mapping[str, Any]) -> Cluster:
    """A cluster from its fields as they were kept with a submitted run. Raises ClusterError."""
    cluster = _made(content, "what was submitted")
    _check(cluster)
    return cluster


def read(file: Path | None, options: Mapping[str, Any]) -> Cluster:
    """The cluster of a TOML file ($CNN_DEPTH_CLUSTER if None; without that, the defaults).

    options: fields by name that override the file's; those that are None do not, and those of
    `sbatch` are added to the file's.

    Raises ClusterError where the file can't be read, a key is unknown, or a value is of no use.
    """
    if file is None and os.environ.get(ENVIRONMENT):
        file = Path(os.environ[ENVIRONMENT]).expanduser()
    found = _made(_load(file), str(file)) if file is not None else Cluster()
    given = {key: value for key, value in options.items() if value is not None}
    sbatch = {**found.sbatch, **_sbatch(given.pop("sbatch", {}), "--sbatch")}
    values = _values(given, lambda key: "--" + key.replace("_", "-"))
    cluster = replace(found, **values, sbatch=sbatch)
    _check(cluster)
    return cluster


def parse_sbatch(assignments: Iterable[str]) -> dict[str, str | bool]:
    """`--sbatch KEY=VALUE` texts; KEY alone is an option without a value."""
    found: dict[str, str | bool] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not re.fullmatch(r"[A-Za-z][\w-]*", key) or (equals and not value):
            raise ClusterError(
                f"--sbatch {text!r}: expected KEY=VALUE, such as mem=64G, with sbatch's own name "
                "of an option, without dashes before it"
            )
        found[key] = value if equals else True
    return found


def seconds(time: str) -> int | None:
    """A time limit in seconds, None for no limit, or where it is no time limit."""
    found = TIME.fullmatch(time)
    if found is None:
        return None
    parts = {key: int(value or 0) for key, value in found.groupdict().items()}
    hours = 24 * parts["days"] + parts["d_hours"] + parts["hours"]
    minutes = 60 * hours + parts["d_minutes"] + parts["h_minutes"] + parts["minutes"]
    return 60 * minutes + parts["d_seconds"] + parts["h_seconds"] + parts["seconds"]


def _load(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClusterError(f"cluster file {file} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ClusterError(f"cluster file {file}: {error}") from error


def _made(content: Mapping[str, Any], where: str) -> Cluster:
    """The cluster that keys and values say. where: whose they are, for errors."""
    known = [part.name for part in fields(Cluster)]
    unknown = [key for key in content if key not in known]
    if unknown:
        from experiments.text import nearest

        hint = nearest("did you mean {!r}? ", unknown[0].replace("-", "_"), known, 0.4)
        raise ClusterError(
            f"{where}: unknown key {unknown[0]!r}; {hint}known: {', '.join(known)}; other options "
            "of sbatch go under [sbatch]"
        )
    rest = {key: value for key, value in content.items() if key != "sbatch"}
    sbatch = content.get("sbatch", {})
    if not isinstance(sbatch, Mapping):
        raise ClusterError(f"{where}: sbatch = {sbatch!r}: expected a table, [sbatch]")
    return Cluster(
        **_values(rest, lambda key: f"{where}: {key} ="), sbatch=_sbatch(sbatch, f"{where}, sbatch")
    )


def _values(content: Mapping[str, Any], where: Callable[[str], str]) -> dict[str, Any]:
    """Values of fields, of the right types. where(key): how an error about it begins."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if key == "time" and whole:
            value = str(value)  # minutes
        right, expected = isinstance(value, str), "a text"
        if key in LEAST:
            right = whole and value >= LEAST[key]
            expected = f"a whole number, at least {LEAST[key]}"
        elif key in LISTS:
            right = isinstance(value, list | tuple) and all(isinstance(x, str) for x in value)
            expected = f"a list of {LISTS[key]}"
        elif key == "time" and right:
            right = value.lower() in UNLIMITED or TIME.fullmatch(value) is not None
            expected = TIMES
        if not right:
            raise ClusterError(f"{where(key)} {value!r}: expected {expected}")
        found[key] = tuple(value) if key in LISTS else value
    return found


def _sbatch(content: Mapping[str, Any], where: str) -> dict[str, str | int | bool]:
    found: dict[str, str | int | bool] = {}
    for name, value in content.items():
        key = name.replace("_", "-")
        if key in OPTIONS:
            raise ClusterError(f"{where}: {name}: it has an option of its own, --{key}")
        if key in OURS:
            raise ClusterError(f"{where}: {name} is set for each job: {OURS[key]}")
        if not isinstance(value, str | int):
            raise ClusterError(
                f"{where}: {name} = {value!r}: expected a text, a whole number, or true for an "
                "option without a value"
            )
        if value is not False:
            found[key] = value
    return found


def _check(cluster: Cluster) -> None:
    """Raises ClusterError where values do not go together."""
    limit = seconds(cluster.time)
    if limit is not None and limit <= cluster.grace:
        raise ClusterError(
            f"time {cluster.time!r} is {limit} s, and a job is warned {cluster.grace} s before its "
            "end (`grace`); expected more than that"
        )
    gpus, processes = cluster.gpus_per_node, cluster.processes_per_node
    if cluster.pack > 1 and cluster.nodes * processes > 1:
        raise ClusterError(
            f"--pack {cluster.pack} puts several runs into one process's place, and this is "
            f"{cluster.nodes} nodes with {processes} processes each; expected 1 and 1"
        )
    if gpus and gpus % processes:
        raise ClusterError(
            f"{gpus} GPUs can't be shared out among {processes} processes a node; expected a "
            "number of processes that divides it"
        )

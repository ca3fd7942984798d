"""What a job asks Slurm for: a small TOML with a cluster's defaults, and options that override it.

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

ENVIRONMENT = "CNN_DEPTH_CLUSTER"  # the variable that names the default file
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
UNLIMITED = ("", "unlimited", "infinite")  # '': the partition's own limit

_LOGS = "the logs' places are where `cnn-depth logs` finds them"
_OUTPUT = "sbatch's answer is read for the job's id"
# Options of sbatch that each job sets by itself, and why or by what option.
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
    """What each job asks Slurm for."""

    partition: str = ""
    nodes: int = 1  # hosts of each run
    gpus_per_node: int = 0
    processes_per_node: int = 1
    time: str = ""  # a limit as sbatch takes it; '': the partition's own
    account: str = ""
    constraint: str = ""
    pack: int = 1  # runs side by side in a job
    max_parallel: int = 0  # jobs of an array at once; 0: no limit
    grace: int = 120  # seconds between the warning signal and the end
    retries: int = 3  # further starts of a run that made no progress in the one before
    setup: tuple[str, ...] = ()  # shell lines before a job's program
    # The words that start Python in a job, such as a container's; (): the Python that submits.
    python: tuple[str, ...] = ()
    # Further options of sbatch, without dashes; True for one without a value.
    sbatch: Mapping[str, str | int | bool] = field(default_factory=dict)


# The smallest value of each number.
LEAST = {"nodes": 1, "gpus_per_node": 0, "processes_per_node": 1, "pack": 1, "max_parallel": 0}
LEAST |= {"grace": 1, "retries": 0}
# What the lists hold, for errors.
LISTS = {
    "setup": 'shell lines, such as ["module load cuda"]',
    "python": 'words, such as ["apptainer", "exec", "--nv", "cnn-depth.sif", "python"]',
}


def from_json(content: Mapping[str, Any]) -> Cluster:
    """The cluster whose fields were kept with a submitted run. Raises ClusterError."""
    cluster = _made(content, "what was submitted")
    _check(cluster)
    return cluster


def read(file: Path | None, options: Mapping[str, Any]) -> Cluster:
    """The cluster of a TOML file ($CNN_DEPTH_CLUSTER if None; without that, the defaults).

    options: fields by name that override the file's, unless they are None; those of `sbatch` are
    added to the file's.

    Raises ClusterError where the file can't be read, a key is unknown, or a value is of no use.
    """
    if file is None and os.environ.get(ENVIRONMENT):
        file = Path(os.environ[ENVIRONMENT]).expanduser()
    base = _made(_load(file), str(file)) if file is not None else Cluster()
    overrides = {key: value for key, value in options.items() if value is not None}
    sbatch = {**base.sbatch, **_sbatch(overrides.pop("sbatch", {}), "--sbatch")}
    values = _values(overrides, lambda key: "--" + key.replace("_", "-"))
    cluster = replace(base, **values, sbatch=sbatch)
    _check(cluster)
    return cluster


def parse_sbatch(assignments: Iterable[str]) -> dict[str, str | bool]:
    """`--sbatch KEY=VALUE` texts; KEY alone is an option without a value."""
    options: dict[str, str | bool] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not re.fullmatch(r"[A-Za-z][\w-]*", key) or (equals and not value):
            raise ClusterError(
                f"--sbatch {text!r}: expected KEY=VALUE, such as mem=64G, with sbatch's own name "
                "of an option, without dashes before it"
            )
        options[key] = value if equals else True
    return options


def seconds(time: str) -> int | None:
    """A time limit in seconds; None for no limit and for texts of another form."""
    match = TIME.fullmatch(time)
    if match is None:
        return None
    parts = {key: int(value or 0) for key, value in match.groupdict().items()}
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
    """The cluster of a file's keys and values. where: the file's name, for errors."""
    names = [part.name for part in fields(Cluster)]
    unknown = [key for key in content if key not in names]
    if unknown:
        from experiments.text import nearest

        hint = nearest("did you mean {!r}? ", unknown[0].replace("-", "_"), names, 0.4)
        raise ClusterError(
            f"{where}: unknown key {unknown[0]!r}; {hint}known: {', '.join(names)}; other options "
            "of sbatch go under [sbatch]"
        )
    plain = {key: value for key, value in content.items() if key != "sbatch"}
    sbatch = content.get("sbatch", {})
    if not isinstance(sbatch, Mapping):
        raise ClusterError(f"{where}: sbatch = {sbatch!r}: expected a table, [sbatch]")
    return Cluster(
        **_values(plain, lambda key: f"{where}: {key} ="),
        sbatch=_sbatch(sbatch, f"{where}, sbatch"),
    )


def _values(content: Mapping[str, Any], where: Callable[[str], str]) -> dict[str, Any]:
    """The values of fields, checked. where(key): how an error about a key begins."""
    values: dict[str, Any] = {}
    for key, value in content.items():
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if key == "time" and is_integer:
            value = str(value)  # minutes
        is_valid, expected = isinstance(value, str), "a text"
        if key in LEAST:
            is_valid = is_integer and value >= LEAST[key]
            expected = f"a whole number, at least {LEAST[key]}"
        elif key in LISTS:
            is_valid = isinstance(value, list | tuple) and all(isinstance(x, str) for x in value)
            expected = f"a list of {LISTS[key]}"
        elif key == "time" and is_valid:
            is_valid = value.lower() in UNLIMITED or TIME.fullmatch(value) is not None
            expected = TIMES
        if not is_valid:
            raise ClusterError(f"{where(key)} {value!r}: expected {expected}")
        values[key] = tuple(value) if key in LISTS else value
    return values


def _sbatch(content: Mapping[str, Any], where: str) -> dict[str, str | int | bool]:
    options: dict[str, str | int | bool] = {}
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
            options[key] = value
    return options


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

"""What a run is: one training of one resolved config, in one folder named by its identity.

The identity is a hash of everything that can change the result: the config (less what only says
where and how often things are written), the data set's content, and the run that seeds it. Rows
of different studies that need the same run share it, and nothing is trained twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EACCES, EDQUOT, EFBIG, EIO, ENOSPC, EPERM, EROFS, ESTALE
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what only looks at folders starts without JAX
    from ml_collections import ConfigDict

COMMIT = "COMMIT"  # in a copy of the code (`launch.executors.snapshot`): the commit it is of
TAIL = 1 << 16  # bytes of metrics.jsonl that hold its last lines
GRADIENT = "gradient/"  # there, before a layer's name: its gradient's root mean square
FORMAT = 2  # of the identity: raised when the same config comes to mean another computation


class RunError(ValueError):
    """A run folder that can't be used, or a run that failed for a reason of its own."""

    user_error = True


class RunLocked(RunError):
    """Another process is at work in the run's folder."""


def root(path: Path | None = None) -> Path:
    """Where runs are kept: `path`, $CNN_DEPTH_RUNS, or `runs` in the present folder.

    Raises RunError where that is a file.
    """
    folder = path or Path(os.environ.get("CNN_DEPTH_RUNS", "runs"))
    if folder.exists() and not folder.is_dir():
        raise RunError(f"runs are kept in a folder, and {folder} is a file; see --runs")
    return folder


# Keys that a file must have; one that was cut or emptied lacks them.
NEEDED = {
    "run": ("config",),
    "result": ("steps", "train_loss"),
    "failed": ("reason",),
}
AVERAGED = "mean_average_precision"  # of a result whose images may be of several classes
# Numbers of OSErrors that are the disk's fault and not the program's.
STORAGE = {ENOSPC, EDQUOT, EFBIG, EIO, EROFS, EACCES, EPERM, ESTALE}


def error_of(result: Mapping[str, Any]) -> float | None:
    """A result's error in percent; of images that may be of several classes, 100 minus the mean
    average precision."""
    if AVERAGED in result:
        return 100 - float(result[AVERAGED])
    return result.get("top1_error")


def no_link(path: str, flags: int) -> int:
    """An `opener` of `open` that refuses a link: it may lead out of a run's folder."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def write_text(path: Path, text: str) -> None:
    """Writes `path` at once or not at all. Raises RunError where it can't be written."""
    from input_pipeline.whole_files import whole_file

    try:
        with whole_file(path) as stream:
            stream.write(text.encode())
    except OSError as error:
        raise unwritten(path, error) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `path` at once or not at all. Raises RunError where it can't be written."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def unwritten(path: Path, error: OSError) -> RunError:
    """What to raise where a file of a run, or its folder, can't be written."""
    folder = path.parent
    if isinstance(error, FileNotFoundError) or not folder.exists():
        return RunError(f"{folder} was deleted while it was written")
    return RunError(f"{path} can't be written: {error.strerror or error}")


def identity(config: ConfigDict, fingerprint: str) -> str:
    """Ten hex digits that name the run of `config` on the data with this fingerprint."""
    from experiments import config as configs

    part = {"format": FORMAT, "data": fingerprint, "config": configs.identity_part(config)}
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Run:
    """A run's folder and what lies in it; the folder need not exist yet."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder (`run`, `result`, `failed`, `seeding`), None if not there.

        Raises RunError where it can't be read, or is not what is written under this name.
        """
        path = self.folder / f"{name}.json"
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise RunError(f"{path} can't be read: {reason}") from error
        if not isinstance(content, dict):
            raise RunError(f"{path} can't be read: it holds no JSON object")
        missing = [key for key in NEEDED.get(name, ()) if key not in content]
        if missing:
            raise RunError(f"{path} is not whole: it lacks '{missing[0]}'")
        return content

    def logged(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; those that can't be read, as of a kill, are left out."""
        try:
            text = self.metrics.read_text("utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"{self.metrics} can't be read: {error.strerror}") from error
        return list(_logged(text.splitlines()))

    def last_logged(self) -> dict[str, Any]:
        """The last line of metrics.jsonl about training, read from the file's end; {} without."""
        try:
            with self.metrics.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return {}
        return next((line for line in _logged(reversed(lines)) if "train_loss" in line), {})

    @property
    def imported(self) -> str:
        """A digest of what was imported, if its network was made from a weights file; else ''."""
        return (self.read("run") or {}).get("imported", {}).get("digest", "")

    @property
    def diverged(self) -> bool:
        """Whether it ended in NaN or Inf, as it would again."""
        try:
            return (self.read("failed") or {}).get("kind") == "diverged"
        except RunError:  # its state is then 'unreadable'
            return False

    @property
    def trained(self) -> bool:
        """Whether it has a network: its training has ended, or its weights were imported."""
        try:
            return bool(self.imported) or self.read("result") is not None
        except RunError:  # its state is then 'unreadable'
            return False

    def config(self) -> ConfigDict:
        """The resolved config that the folder was made with."""
        from experiments import config as configs

        content = self.read("run")
        if content is None:
            raise RunError(f"{self.folder} is not a run: it has no run.json")
        try:
            return configs.from_json(content["config"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            path = self.folder / "run.json"
            raise RunError(f"{path} holds no config of this version: {error}") from error

    def locked(self) -> bool:
        """Whether a process is at work in the folder."""
        try:
            with (self.folder / "lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    @contextmanager
    def lock(
        self, *, wait: Callable[[], bool] = lambda: False, name: str = "lock"
    ) -> Iterator[None]:
        """Holds the folder for this process; the operating system lets go of it at any death.

        name: of the file that is locked, where only a part of the folder is held.

        Raises:
            RunLocked: another process holds it, and `wait` no longer says to wait for that.
            RunError: the folder can't be written.
        """
        path = self.folder / name
        try:
            opened = open(path, "a+b", buffering=0, opener=no_link)  # noqa: SIM115
        except OSError as error:
            raise unwritten(path, error) from error
        with opened as file:
            tries = 5  # `locked` of another process holds it for an instant
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    tries -= 1
                    if tries <= 0 and not wait():
                        file.seek(0)
                        holder = file.read().decode(errors="replace").strip()
                        holder = holder or "another process"
                        raise RunLocked(f"{self.folder} is being written by {holder}") from error
                    time.sleep(0.05)
            file.truncate(0)
            with suppress(OSError):  # on a full disk the holder's name is left out
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            yield


def _logged(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Lines of metrics.jsonl, without those that can't be read."""
    for text in lines:
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and "step" in line:
                yield line


def run_of(config: ConfigDict, fingerprint: str, folder: Path) -> Run:
    """The run of `config` under `folder`, whether it is there or not."""
    name = config.model.arch.replace(":", "-")
    return Run(folder / f"{name}-{identity(config, fingerprint)}")


def create(config: ConfigDict, fingerprint: str, folder: Path, label: Mapping[str, Any]) -> Run:
    """The run of `config` under `folder`, made if it is not there.

    An existing run that is not finished takes over the keys that only say how it executes.
    label: for people only (`study`, `row`, `seed_from`); of a shared run, the first one's.

    Raises RunError where the folder can't be written.
    """
    run = run_of(config, fingerprint, folder)
    content = run.read("run")
    if content is None:
        content = description(run, config, fingerprint, label)
    elif content["config"] == json.loads(json.dumps(config.to_dict())):
        return run
    else:
        content["config"] = config.to_dict()
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        if run.read("result") is None:
            write_json(run.folder / "run.json", content)
    except OSError as error:
        raise RunError(f"runs can't be kept in {folder}: {error.strerror}") from error
    return run


def description(
    run: Run, config: ConfigDict, fingerprint: str, label: Mapping[str, Any]
) -> dict[str, Any]:
    """What run.json says of a new run. label: what only some runs have, see `create`."""
    return {
        "id": run.id,
        "name": config.model.arch,
        **label,
        "seed": config.seed,
        "config": config.to_dict(),
        "data": fingerprint,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
    }


def note_start(run: Run, step: int, devices: str) -> None:
    """Adds to starts.json with which versions, where and from which step a training goes on.

    Raises RunError where the file can't be written.
    """
    try:
        starts = (run.read("starts") or {}).get("starts", [])
    except RunError:  # it was cut, and nothing depends on it
        starts = []
    start = {
        "step": step,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "devices": devices,
        "processor": processor(),
        "versions": versions(),
    }
    write_json(run.folder / "starts.json", {"starts": [*starts, start]})


def processor() -> str:
    """The name of this machine's processor, as its system has it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def check_data(run: Run, fingerprint: str) -> None:
    """Raises RunError where a run's data set is no longer the one it was made with."""
    made_with = (run.read("run") or {}).get("data")
    if made_with != fingerprint:
        raise RunError(
            f"{run.id} belongs to the data {made_with}, and what is there now is {fingerprint}"
        )


def _commit() -> str:
    """The commit of the source tree this is run from, `-changed` where files differ from it; '' of
    an installed package, or without git."""
    root = Path(__file__).resolve().parents[2]
    with suppress(OSError):
        return (root / COMMIT).read_text()
    if not (root / ".git").exists():
        return ""
    name = ["describe", "--always", "--exclude=*", "--abbrev=10", "--dirty=-changed"]
    try:
        git = ["git", "-C", str(root), *name]
        return subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _snapshot() -> dict[str, str]:
    """The name of the copy of the code that runs; {} where it is no copy."""
    root = Path(__file__).resolve().parents[2]
    return {"snapshot": root.name} if (root / COMMIT).is_file() else {}


@cache
def versions() -> dict[str, str]:
    """Versions of what computes: this project's and its commit, Python, and the packages."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "cnn-depth": importlib.metadata.version("cnn-depth"),
        "commit": _commit(),
        **_snapshot(),
        "python": platform.python_version(),
        **{p: importlib.metadata.version(p) for p in packages},
    }

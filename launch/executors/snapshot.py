"""Copies of the code for the jobs of a cluster: what is submitted is what runs.

A job may wait for days, and be started again later, while its user edits the project. So each
submission copies the packages, and the modules of a user's own networks, to
`.slurm/code/USER/DIGEST` of the runs folder. Submissions of the same code share one copy. Jobs
import from there, at every start.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.runs import runs
from experiments.runs.runs import Run
from experiments.runs.state import read_files

PACKAGES = ("cnn_arch", "experiments", "input_pipeline", "launch")
ROOT = Path(__file__).resolve().parents[2]  # the folder that holds them
# In the runs folder; each user of a shared one has a folder, and runs no one else's code.
FOLDER = Path(".slurm") / "code" / str(os.getuid())
USERS = "user_modules"  # in a snapshot: a folder for each folder of users' modules
SPARED_SECONDS = 3600.0  # a younger snapshot may be in use by another submission


@dataclass(frozen=True)
class Snapshot:
    """A copy of the code."""

    root: Path  # the folder that jobs import from
    modules: Mapping[str, str]  # a folder of users' modules -> its copy


def planned(folder: Path, modules: Mapping[str, Iterable[str]]) -> Snapshot:
    """The snapshot of the present code under the runs folder, made or not.

    modules: a folder of users' modules -> those that the jobs' networks are of.
    """
    return _planned(folder, _files(modules), modules)


def make(folder: Path, modules: Mapping[str, Iterable[str]]) -> Snapshot:
    """The snapshot of the present code; a missing one is made, whole or not at all.

    Raises RunError where it can't be written, or belongs to someone else.
    """
    files = _files(modules)
    snapshot = _planned(folder, files, modules)
    place = snapshot.root
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _check_owner(place.parent)
        if place.is_dir():
            _check_owner(place)
            os.utime(place)
            return snapshot
        partial = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
        try:
            for name, content in files.items():
                file = partial / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
                file.chmod(0o444)
            (partial / runs.COMMIT).write_text(runs.versions()["commit"])
            _rename(partial, place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise runs.unwritten(place, error) from error
    return snapshot


def find(folder: Path, name: str) -> Path:
    """The folder of the snapshot that a run was submitted with, by its name in job.json.

    Raises RunError where it is gone, or belongs to someone else.
    """
    place = folder.absolute() / FOLDER / name
    if not re.fullmatch(r"[0-9a-f]{16}", name) or not place.is_dir():
        raise runs.RunError(
            f"the code that it was submitted with, {place}, is gone; submit it anew with the "
            "command of its study, or with --live"
        )
    _check_owner(place)
    return place


def clean(folder: Path, queued: Collection[str]) -> None:
    """Deletes snapshots whose runs are all trained and not in the queue, unless they are young.

    queued: ids of Slurm's jobs.
    """
    place = folder.absolute() / FOLDER
    snapshots = [path for path in place.glob("*") if path.is_dir() and not path.is_symlink()]
    stale = [path for path in snapshots if time.time() - path.stat().st_mtime > SPARED_SECONDS]
    if not stale:
        return
    needed = set()
    for file in folder.glob("*/job.json"):
        run_files = read_files(file.parent)
        job = {} if run_files is None else run_files.contents.get("job", {})
        if job.get("code") and (job.get("job") in queued or not Run(file.parent).trained):
            needed.add(job["code"])
    for path in stale:
        if path.name not in needed:
            shutil.rmtree(path, ignore_errors=True)


def _planned(
    folder: Path, files: Mapping[str, bytes], modules: Mapping[str, Iterable[str]]
) -> Snapshot:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    root = folder.absolute() / FOLDER / digest.hexdigest()[:16]
    copies = {source: str(root / USERS / str(k)) for k, source in enumerate(sorted(modules))}
    return Snapshot(root, copies)


def _files(modules: Mapping[str, Iterable[str]]) -> dict[str, bytes]:
    """Path in the snapshot -> content, of all its files."""
    from cnn_arch import user_modules

    files = {str(path.relative_to(ROOT)): path.read_bytes() for path in _package_files()}
    for k, source in enumerate(sorted(modules)):
        for name in sorted(modules[source]):
            for path, content in user_modules.files(name).items():
                files[str(Path(USERS) / str(k) / path)] = content
    return files


def _package_files() -> Iterator[Path]:
    """The files of the packages, without compiled ones, hidden ones and links."""
    for package in PACKAGES:
        for folder, dirs, names in os.walk(ROOT / package):
            dirs[:] = sorted(d for d in dirs if d != "__pycache__" and not d.startswith("."))
            for name in sorted(names):
                path = Path(folder) / name
                if not name.startswith(".") and path.suffix != ".pyc" and path.is_file():
                    yield path


def _rename(partial: Path, place: Path) -> None:
    """Renames a finished snapshot; another submission may have made the same one meanwhile."""
    try:
        partial.rename(place)
    except OSError:
        if not place.is_dir():
            raise


def _check_owner(place: Path) -> None:
    """Raises RunError for code that someone else has put there."""
    for path in (place.parent, place):
        if path.is_symlink() or path.stat().st_uid != os.getuid():
            raise runs.RunError(
                f"{path} is not a folder of yours, and no code is run from it; delete it, or "
                "take another --runs"
            )

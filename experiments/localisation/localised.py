"""What localisers say of the images of a set, as it is kept with the first of their runs."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.localisation import merging
from experiments.runs import checkpoints, runs
from experiments.statistics import ErrorRate, error_rate
from input_pipeline import crops
from input_pipeline.whole_files import read_arrays, write_arrays

COLUMNS = ("ids", "labels", "classes", "boxes", "right", "given")
At = tuple[runs.Run, tuple[int, ...]]  # a run and its test scales: short sides, pixels


@dataclass(frozen=True)
class Localised:
    """What localisers say of n test images, of k classes each."""

    about: dict[str, Any]  # localisers with their scales, classifiers, and what else decides
    ids: np.ndarray  # (n,) int32, the images' places among those with boxes
    labels: np.ndarray  # (n,) int32
    classes: np.ndarray  # (n, k) int32, the most probable first
    boxes: np.ndarray  # (n, k, 4) float32, in pixels of the images; NaN where no place said one
    right: np.ndarray  # (n, k) bool: it is the image's class, and the box is right
    given: np.ndarray  # (n,) bool: the box is right where the class is given
    left_out: int

    def wrong(self, k: int) -> np.ndarray:
        """(n,) bool: none of the k most probable classes has a right box."""
        return np.logical_not(self.right[:, :k].any(axis=1))

    def rate(self, k: int) -> ErrorRate:
        """The localisation error of the k most probable classes."""
        return error_rate(int(self.wrong(k).sum()), len(self.ids))

    @property
    def given_rate(self) -> ErrorRate:
        """The localisation error where the class is given, of images of which it was asked for."""
        return error_rate(int((~self.given).sum()), len(self.ids))


def about(members: Sequence[At], classifiers: Sequence[At] = ()) -> dict[str, Any]:
    """What a result is of: localisers and classifiers with their scales, and the rules.

    classifiers: by default those that the members were started from, at the members' scales. Raises
    RunError or CheckpointError where a run has no checkpoint.
    """
    classifiers = classifiers or own_classifiers(members)
    return {
        "localisers": [_told(at) for at in members],
        "classifiers": [_told(at) for at in classifiers],
        "made": [made(run) for run, _ in (*members, *classifiers)],
        "data": (members[0][0].read("run") or {}).get("data"),
        "threshold": merging.THRESHOLD,
        "rounding": crops.ROUNDING,
    }


def own_classifiers(members: Sequence[At]) -> tuple[At, ...]:
    """The classifiers that localisers were started from, each once with all their scales."""
    found: dict[str, tuple[int, ...]] = {}
    for run, scales in members:
        name = run.config().seeding.run
        found[name] = tuple(dict.fromkeys((*found.get(name, ()), *scales)))
    folder = members[0][0].folder.parent
    return tuple((runs.Run(folder / name), scales) for name, scales in found.items())


def made(run: runs.Run) -> str:
    """When a run's folder was made: one that is trained anew has the same id and step."""
    return str((run.read("run") or {}).get("created") or "")


def _told(at: At) -> list[Any]:
    run, scales = at
    return [run.id, checkpoints.step_of(run.checkpoints, "last"), list(scales)]


def _file(run: runs.Run, about: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    return run.folder / "predictions" / f"localised-{digest}.npz"


def keep(run: runs.Run, result: Localised) -> None:
    """Keeps a result with a run. Raises RunError where that can't be written."""
    file = _file(run, result.about)
    arrays = {name: getattr(result, name) for name in COLUMNS}
    told = {**result.about, "left_out": result.left_out}
    try:
        file.parent.mkdir(exist_ok=True)
        write_arrays(file, {**arrays, "about": np.array(json.dumps(told))})
    except OSError as error:
        raise runs.unwritten(file, error) from error


def kept(run: runs.Run, about: dict[str, Any]) -> Localised | None:
    """What is kept with a run; None where it is of something else, or damaged."""
    found = read_arrays(_file(run, about), (*COLUMNS, "about"))
    if found is None:
        return None
    told = json.loads(str(found.pop("about")))
    left_out = told.pop("left_out")
    return Localised(about, left_out=left_out, **found) if told == about else None

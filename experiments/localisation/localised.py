"""The boxes that localisers say of the images of a set, kept with the first of their runs."""

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
LocaliserAt = tuple[runs.Run, tuple[int, ...]]  # a run and its test scales: short sides, pixels


@dataclass(frozen=True)
class Localised:
    """The boxes that localisers say of n test images, of k classes each."""

    about: dict[str, Any]  # all that decides the boxes, see the function `about`
    ids: np.ndarray  # (n,) int32, the images' places among those with boxes
    labels: np.ndarray  # (n,) int32
    classes: np.ndarray  # (n, k) int32, the most probable first
    boxes: np.ndarray  # (n, k, 4) float32, in pixels of the images; NaN where no place said one
    right: np.ndarray  # (n, k) bool: the class is the image's, and the box is right
    given: np.ndarray  # (n,) bool: the box of the image's true class is right
    left_out: int  # images that can't be used

    def wrong(self, k: int) -> np.ndarray:
        """(n,) bool: none of the k most probable classes has a right box."""
        return np.logical_not(self.right[:, :k].any(axis=1))

    def rate(self, k: int) -> ErrorRate:
        """The localisation error of the k most probable classes."""
        return error_rate(int(self.wrong(k).sum()), len(self.ids))

    @property
    def given_rate(self) -> ErrorRate:
        """The localisation error where the class is given."""
        return error_rate(int((~self.given).sum()), len(self.ids))


def about(
    members: Sequence[LocaliserAt], classifiers: Sequence[LocaliserAt] = ()
) -> dict[str, Any]:
    """All that decides a result: localisers and classifiers with their scales, data and rules.

    classifiers: by default those that the members were started from, at the members' scales. Raises
    RunError or CheckpointError where a run has no checkpoint.
    """
    classifiers = classifiers or own_classifiers(members)
    return {
        "localisers": [_described(run_scales) for run_scales in members],
        "classifiers": [_described(run_scales) for run_scales in classifiers],
        "made": [made(run) for run, _ in (*members, *classifiers)],
        "data": (members[0][0].read("run") or {}).get("data"),
        "threshold": merging.THRESHOLD,
        "rounding": crops.ROUNDING,
    }


def own_classifiers(members: Sequence[LocaliserAt]) -> tuple[LocaliserAt, ...]:
    """The classifiers that localisers were started from, each once with all their scales."""
    scales_of: dict[str, tuple[int, ...]] = {}
    for run, scales in members:
        name = run.config().seeding.run
        scales_of[name] = tuple(dict.fromkeys((*scales_of.get(name, ()), *scales)))
    folder = members[0][0].folder.parent
    return tuple((runs.Run(folder / name), scales) for name, scales in scales_of.items())


def made(run: runs.Run) -> str:
    """When a run's folder was made. It tells apart runs trained anew, of the same id and step."""
    return str((run.read("run") or {}).get("created") or "")


def _described(run_scales: LocaliserAt) -> list[Any]:
    run, scales = run_scales
    return [run.id, checkpoints.step_of(run.checkpoints, "last"), list(scales)]


def _file(run: runs.Run, about: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    return run.folder / "predictions" / f"localised-{digest}.npz"


def save(run: runs.Run, result: Localised) -> None:
    """Keeps a result with a run. Raises RunError where it can't be written."""
    file = _file(run, result.about)
    arrays = {name: getattr(result, name) for name in COLUMNS}
    content = {**result.about, "left_out": result.left_out}
    try:
        file.parent.mkdir(exist_ok=True)
        write_arrays(file, {**arrays, "about": np.array(json.dumps(content))})
    except OSError as error:
        raise runs.unwritten(file, error) from error


def load(run: runs.Run, about: dict[str, Any]) -> Localised | None:
    """The result that is kept with a run; None where it is missing, damaged or not of `about`."""
    arrays = read_arrays(_file(run, about), (*COLUMNS, "about"))
    if arrays is None:
        return None
    content = json.loads(str(arrays.pop("about")))
    left_out = content.pop("left_out")
    return Localised(about, left_out=left_out, **arrays) if content == about else None

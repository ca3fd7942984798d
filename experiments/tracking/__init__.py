"""Trackers, programs that show runs beside their folders, and which of them are used.

TensorBoard's events are written by the training's log. Weights & Biases and MLflow have a process
of their own for each run, which follows its metrics.jsonl (`following`, `sender`). The choice is no
part of a run's identity: it comes from `--track`, or from $CNN_DEPTH_TRACK, which jobs inherit.
"""

import os
from importlib.util import find_spec

from experiments.text import nearest

VARIABLE = "CNN_DEPTH_TRACK"
TENSORBOARD, NONE = "tensorboard", "none"
REMOTE = ("wandb", "mlflow")  # those with a process of their own, by their extras' names
NAMES = (*REMOTE, TENSORBOARD, NONE)
MLFLOW_STORE = "MLFLOW_TRACKING_URI"  # of MLflow: where its server or store is


class TrackingError(ValueError):
    """A tracker that is unknown or not installed."""

    user_error = True


def chosen() -> tuple[str, ...]:
    """The trackers that $CNN_DEPTH_TRACK names, TensorBoard where it is not set; () for none.

    Raises TrackingError where a name is unknown.
    """
    return _parse(os.environ.get(VARIABLE) or TENSORBOARD, f"${VARIABLE}")


def choose(text: str | None, option: str = "--track") -> None:
    """Has this process and those that it starts use the trackers that `text` names.

    text: NAME,...; None: as $CNN_DEPTH_TRACK says. option: that the user gave it with.

    Raises TrackingError where a name is unknown, or a tracker's package is not installed.
    """
    if text is not None:
        _parse(text, option)
        os.environ[VARIABLE] = text
    for name in chosen():
        check_installed(name)


def check_installed(name: str) -> None:
    """Raises TrackingError, with how to install it, where a tracker's packages are not there."""
    from input_pipeline.errors import INSTALL

    needed = {"wandb": ["wandb"], "mlflow": ["mlflow"]}.get(name, [])
    if name == "mlflow" and not os.environ.get(MLFLOW_STORE):  # a store in SQLite
        needed += ["sqlalchemy", "alembic"]
    missing = [package for package in needed if not _is_installed(package)]
    if missing:
        problem = f"the tracker {name} needs {' and '.join(missing)}, not installed here"
        raise TrackingError(f"{problem}: {INSTALL.format(name)}")


def _is_installed(package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # not a mere folder of that name, ./wandb


def _parse(text: str, where: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in NAMES:
            hint = nearest("did you mean {!r}? ", name, NAMES, 0.4)
            problem = f"unknown tracker {name!r}; {hint}known: {', '.join(NAMES)}"
            raise TrackingError(f"{where} {text}: {problem}")
    if NONE in names and len(names) > 1:
        raise TrackingError(f"{where} {text}: {NONE} goes alone")
    return () if names == (NONE,) else names

"""Per-example posteriors of a tested run, saved so that nothing needs a second forward pass."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Predictions:
    """Posteriors of a test set. ids, labels: (n,) int32; posteriors: (n, classes) float32."""

    ids: np.ndarray
    labels: np.ndarray
    posteriors: np.ndarray


def save(path: Path, predictions: Predictions) -> None:
    """Writes `path` (.npz) at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **vars(predictions))
    os.replace(partial, path)


def load(path: Path) -> Predictions:
    """Reads what `save` wrote; nothing in the file is executed."""
    with np.load(path, allow_pickle=False) as file:
        return Predictions(**{k: file[k] for k in ("ids", "labels", "posteriors")})

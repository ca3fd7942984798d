"""What a trained network needs to see images as in its training; kept with every run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from experiments import runs
from experiments.data import TestData
from input_pipeline import image_files, resident


@dataclass(frozen=True)
class Preprocessing:
    """What a network needs to see images as in its training.

    channels: of the images. resize: how image files are scaled. of_view: a mean image is that of
    the view, not of the images as they are stored. square_mean: the mean image of the central
    squares of images, of which `normalise` has the central crop. mirror_ok: False where a mirrored
    image is not one of its class. exif: whether images are turned as their EXIF orientation says.
    """

    normalise: resident.Normalisation
    class_names: tuple[str, ...]
    channels: int
    resize: image_files.Resize = "bilinear"
    of_view: bool = False
    square_mean: np.ndarray | None = None
    mirror_ok: bool = True
    exif: bool = False

    @property
    def of_stored(self) -> bool:
        """Whether a mean image is that of the stored images, all of one size."""
        return self.normalise.mean.ndim == 3 and not self.of_view


def of_data(data: TestData) -> Preprocessing:
    """How the images of a run's data are prepared for a test."""
    cut = data.normalise.mean.shape != data.test_normalise.mean.shape
    return Preprocessing(
        data.test_normalise,
        data.class_names,
        data.channels,
        of_view=data.means_are_of_views,
        square_mean=np.asarray(data.normalise.mean) if cut else None,
        mirror_ok=data.mirror_ok,
        exif=data.exif,
    )


def save(path: Path, found: Preprocessing) -> None:
    """Keeps with a run what its network needs to see images as in training."""
    whitening = found.normalise.whitening
    extra: dict[str, Any] = {} if whitening is None else {"whitening": whitening}
    if found.square_mean is not None:
        extra["square_mean"] = found.square_mean
    np.savez(
        path,
        **extra,
        mean=found.normalise.mean,
        std=found.normalise.std,
        class_names=np.array(found.class_names),
        channels=found.channels,
        resize=np.array(found.resize),
        of_view=found.of_view,
        mirror_ok=found.mirror_ok,
        exif=found.exif,
    )


def load(path: Path) -> Preprocessing:
    """What `save` wrote. Raises RunError where it can't be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            resize = str(file["resize"]) if "resize" in file else "bilinear"
            return Preprocessing(
                resident.Normalisation(file["mean"], file["std"], file.get("whitening")),
                tuple(map(str, file["class_names"])),
                int(file["channels"]),
                "bicubic" if resize == "bicubic" else "bilinear",
                bool(file.get("of_view", False)),
                file.get("square_mean"),
                bool(file.get("mirror_ok", True)),
                bool(file.get("exif", False)),
            )
    except FileNotFoundError:
        raise runs.RunError(f"{path.parent} was never trained: it has no {path.name}") from None
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise runs.RunError(f"{path} can't be read: {error}") from error

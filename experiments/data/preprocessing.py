"""What a trained network needs to see images as in its training; kept with every run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args
from zipfile import BadZipFile

import ml_collections
import numpy as np

from experiments import config as configs
from experiments.runs import runs
from input_pipeline import image_files, resident
from input_pipeline.whole_files import write_arrays

FILE = "preprocessing.npz"  # in a run's folder


@dataclass(frozen=True)
class Preprocessing:
    """What a network needs to see images as in its training."""

    normalise: resident.Normalisation
    class_names: tuple[str, ...]
    channels: int
    resize: image_files.Resize = "bilinear"  # the kernel that scales image files
    warp: bool = False  # whether they are scaled to a square, whatever their aspect
    of_view: bool = False  # whether a mean image is that of the view, not of the stored images
    square_mean: np.ndarray | None = None  # of central squares; `normalise` has its central crop
    mirror_ok: bool = True  # False where a mirrored image is not one of its class
    exif: bool = False  # whether images are turned as their EXIF orientation says
    frame: int = 0  # black pixels around each image, which is first scaled to fit inside
    # Whether an image may be of several classes: each has a probability of its own, the sigmoid of
    # its logit. Else all together have one, the soft-max.
    several: bool = False

    def small_side(self, crop: int) -> int | None:
        """The side, pixels, of images that a mean image or a frame takes; None where it takes views
        of any image. crop: side of the network's input."""
        if self.frame:
            return crop - 2 * self.frame
        of_stored = self.normalise.mean.ndim == 3 and not self.of_view
        return min(self.normalise.mean.shape[:2]) if of_stored else None

    def sees_as(self, other: Preprocessing) -> bool:
        """Whether both make the same input of any image."""
        own, theirs = ({**vars(prep), **vars(prep.normalise)} for prep in (self, other))
        ignored = ("normalise", "class_names", "mirror_ok", "several")
        return all(
            np.array_equal(np.asarray(value), np.asarray(theirs[name]))
            for name, value in own.items()
            if name not in ignored
        )


def save(path: Path, prep: Preprocessing) -> None:
    """Keeps with a run what its network needs to see images as in training."""
    values = {**vars(prep), **vars(prep.normalise)}
    del values["normalise"]
    write_arrays(path, {k: np.asarray(value) for k, value in values.items() if value is not None})


def inherited(run: runs.Run, config: ml_collections.ConfigDict) -> Preprocessing | None:
    """The seeding run's preprocessing; None where the config does not inherit it.

    Raises RunError where it can't be read.
    """
    if not configs.inherits(config):
        return None
    file = run.folder / FILE
    return load(file if file.is_file() else run.folder.parent / config.seeding.run / FILE)


def load(path: Path) -> Preprocessing:
    """What `save` wrote. Raises RunError where it can't be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            resize = str(file.get("resize", "bilinear"))
            if resize not in get_args(image_files.Resize):
                raise ValueError(f"resize {resize!r} is not known")
            flags = ("warp", "of_view", "mirror_ok", "exif", "several")
            return Preprocessing(
                normalise=resident.Normalisation(file["mean"], file["std"], file.get("whitening")),
                class_names=tuple(map(str, file["class_names"])),
                channels=int(file["channels"]),
                resize=cast(image_files.Resize, resize),
                square_mean=file.get("square_mean"),
                **{flag: bool(file[flag]) for flag in flags if flag in file},
                frame=int(file.get("frame", 0)),
            )
    except FileNotFoundError:
        raise runs.RunError(f"{path.parent} was never trained: it has no {path.name}") from None
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise runs.RunError(f"{path} can't be read: {error}") from error

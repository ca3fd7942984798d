"""Which view of an image a config asks for."""

import dataclasses

import ml_collections
import numpy as np

from experiments.config import ConfigError
from experiments.data.base import Opened
from experiments.data.preprocessing import Preprocessing
from input_pipeline import crops, resident, sources


def resident_view(config: ml_collections.ConfigDict) -> resident.TrainView:
    """The training view of a config whose data lies on the device."""
    d = config.data
    return resident.TrainView(
        crop=d.image_size,
        S=tuple(d.S) if d.S[1] else None,
        pad=d.pad,
        mirror=d.mirror,
        distort=d.distort,
    )


def stream_view(config: ml_collections.ConfigDict) -> crops.TrainView:
    """The training view of a config of encoded images."""
    d = config.data
    crop, (low, high) = d.image_size, d.S
    S = (low, high) if high else (crop, crop)
    if d.view == "scale":
        return crops.ScaleView(crop=crop, S=S)
    if d.view == "area":
        return crops.AreaView(crop=crop, area=tuple(d.area), aspect=tuple(d.aspect))
    if S[0] != S[1]:
        raise ConfigError(f"data.S={d.S!r} must be one scale, twice, for data.view='square'")
    return crops.SquareView(crop=crop, S=S[0])


def stored_size(config: ml_collections.ConfigDict, opened: Opened) -> tuple[int, int] | None:
    """(height, width) with the frame of images that lie on the device; None of encoded ones."""
    if isinstance(opened.dataset, sources.ImageSet):
        return None
    height, width = opened.dataset.train.images.shape[1:3]
    return height + 2 * config.data.frame, width + 2 * config.data.frame


def inherited(
    prep: Preprocessing,
    config: ml_collections.ConfigDict,
    channels: int,
    stored: tuple[int, int] | None,
) -> resident.Normalisation:
    """How a config's images are normalised as the run that seeds it did.

    channels, stored: of the config's images, as of `stored_size`. A mean image of stored images, or
    a whitening, belongs to images of its size. Of encoded images it is the view's, or the central
    square's of view `square`. Raises ConfigError where it belongs to other images.
    """
    normalise, d = prep.normalise, config.data
    hint = (
        "; seeding.normalise=fit takes mean and deviation from the images of this run instead, "
        "as data.normalise says"
    )
    if channels != prep.channels and (np.ndim(normalise.mean) or np.ndim(normalise.std)):
        raise ConfigError(
            f"{config.seeding.run} normalised images of channels: {prep.channels}, and those of "
            f"{d.name!r} have {channels}{hint}"
        )
    if np.ndim(normalise.mean) < 3:
        return normalise
    means, sides = [normalise.mean], [(d.image_size, d.image_size)]
    view = None if stored else stream_view(config)
    if stored is not None:
        sides = [stored]
    elif normalise.whitening is not None:
        raise ConfigError(
            f"{config.seeding.run} whitened small images, and those of {d.name!r} are encoded{hint}"
        )
    elif isinstance(view, crops.SquareView):
        means, sides = [prep.square_mean, *means], [(view.S, view.S), *sides]
    for mean in means:
        if mean is not None and mean.shape[:2] in sides:
            return dataclasses.replace(normalise, mean=mean)
    height, width = normalise.mean.shape[:2]
    needed = " or ".join(f"{h}x{w}" for h, w in sides)
    raise ConfigError(
        f"{config.seeding.run} took a mean image of {height}x{width} pixels off its images, and "
        f"those of {d.name!r} need one of {needed}{hint}"
    )

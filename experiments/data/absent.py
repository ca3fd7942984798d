"""The data of a config as far as a compiled program needs it: shapes, and no images."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import NamedSharding

from experiments.data.base import Arrays, Data, test_sizes
from experiments.data.preprocessing import Preprocessing
from experiments.data.resident import Resident
from experiments.data.streamed import Streamed
from experiments.data.views import resident_view, stream_view
from input_pipeline import crops, resident, stream

SMALL = {"train": 50_000, "test": 10_000}
IMAGENET = {"train": 1_281_167, "test": 50_000}


def small(config: ml_collections.ConfigDict, size: int, channels: int, classes: int) -> Resident:
    """As many images as CIFAR-10 has, of so many pixels a side, for a config."""
    n, shape = sum(SMALL.values()), (size, size, channels)
    rows = jax.ShapeDtypeStruct((n, size * size * channels), jnp.uint8)
    labels = jax.ShapeDtypeStruct((n,), jnp.int32)
    return Resident(
        name=config.data.name,
        fingerprint="",
        counts={**SMALL, "holdout": 0},
        preprocessing=_preprocessing(shape, classes, channels),
        constants=(resident.Images(rows, shape), labels, None),
        labels=np.zeros(n, np.int32),
        parts={},
        train_view=resident_view(config),
        **test_sizes(config),
    )


def imagenet(config: ml_collections.ConfigDict) -> Streamed:
    """As many images as ImageNet has, for a config."""
    d, view = config.data, stream_view(config)
    side = view.S if isinstance(view, crops.SquareView) else d.image_size
    mean = {"per_pixel": (side, side, 3), "per_channel": (3,), "fixed": (3,), "none": ()}
    shape = mean[d.normalise]
    shift: np.ndarray | None = np.zeros((3, 3), np.float32) if "pca" in d.colour else None
    return Streamed(
        name=config.data.name,
        fingerprint="",
        counts={**IMAGENET, "holdout": 0},
        preprocessing=_preprocessing(shape, classes=1000, channels=3),
        constants={
            "mean": jax.ShapeDtypeStruct(shape, jnp.float32),
            "std": jax.ShapeDtypeStruct((), jnp.float32),
            "colour": shift,
        },
        sources={},
        how=stream.DEFAULT_DECODING,
        train_view=view,
        mirror=d.mirror,
        colour=d.colour,
        **test_sizes(config),
    )


def _preprocessing(mean: tuple[int, ...], classes: int, channels: int) -> Preprocessing:
    normalise = resident.Normalisation(np.zeros(mean, np.float32), np.ones((), np.float32))
    return Preprocessing(normalise, tuple(map(str, range(classes))), channels)


def batch(config: ml_collections.ConfigDict, data: Data, steps: int) -> Arrays:
    """The shapes of what a feed gives for so many steps."""
    lead, side = (steps, config.train.batch_size), config.data.image_size
    shapes: dict[str, tuple[tuple[int, ...], Any]]
    shapes = {"indices": ((), jnp.int32), "epochs": ((), jnp.int32)}
    if isinstance(data, Streamed):
        shapes |= {
            "images": ((side, side, data.channels), jnp.uint8),
            "labels": ((), jnp.int32),
            "offsets": ((2,), jnp.int32),
        }
        if config.data.boxes:
            shapes["boxes"] = ((4,), jnp.float32)
    return {n: jax.ShapeDtypeStruct((*lead, *shape), kind) for n, (shape, kind) in shapes.items()}


def tested(data: Data, view: crops.TestView, images: int) -> Arrays:
    """The shapes of so many images of a test; whole ones have sides of 3:4."""
    if not isinstance(data, Streamed):
        return {"indices": jax.ShapeDtypeStruct((images,), jnp.int32)}
    if not isinstance(view, crops.WholeView):
        shape = (images, 1, data.crop, data.crop, data.channels)
        return {"images": jax.ShapeDtypeStruct(shape, jnp.uint8)}
    shape = (images, 1, view.Q, view.Q * 4 // 3, data.channels)
    return {
        "images": jax.ShapeDtypeStruct(shape, jnp.uint8),
        "sizes": jax.ShapeDtypeStruct((images, 2), jnp.int32),
    }


def laid_out(tree: Any, sharding: NamedSharding) -> Any:
    """The shapes of these arrays, on a mesh."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(jnp.shape(a), a.dtype, sharding=sharding), tree
    )

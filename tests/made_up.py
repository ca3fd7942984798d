"""Made-up data that several tests train on, and runs of networks that nobody trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

import cnn_arch
from experiments import config as configs
from experiments import weights
from experiments.data.preprocessing import Preprocessing
from experiments.runs import runs
from input_pipeline import resident


def noise(train: int, test: int, shape: tuple[int, ...], classes: int) -> dict[str, np.ndarray]:
    """Images of this shape that are noise, as an .npz has them; labels 0, 1, ... in turns."""
    rng, arrays = np.random.default_rng(0), {}
    for part, n in (("train", train), ("test", test)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(n) % classes
    return arrays


def squares(
    file: Path, side: int, channels: int, classes: int, train: int, test: int
) -> np.ndarray:
    """Writes an .npz of noise with a bright square whose place tells the class; its images."""
    rng = np.random.default_rng(0)
    n = train + test
    labels = np.arange(n) % classes
    made = rng.integers(0, 90, (n, side, side, channels), dtype=np.uint8)
    size = side // 4
    for image, k in zip(made, labels, strict=True):
        top, left = size * (k // 4), size * (k % 4)
        image[top : top + size, left : left + size] += 120
    arrays = {
        "train_images": made[:train],
        "train_labels": labels[:train],
        "test_images": made[train:],
        "test_labels": labels[train:],
    }
    np.savez(file, **arrays)
    return made


def run(
    folder: Path,
    arch: str,
    side: int,
    channels: int,
    classes: int,
    options: Mapping[str, Any] | None = None,
    *,
    mean: float = 60.0,
    std: float = 50.0,
) -> runs.Run:
    """A run with the network as it is initialised, statistics of batches included."""
    sizes = {"image_size": side, "channels": channels, "classes": classes}
    net = cnn_arch.create(arch, rngs=nnx.Rngs(0), **sizes, **(options or {}))
    _, params, stats = nnx.split(net, nnx.Param, nnx.BatchStat)
    config = configs.base()
    config.model = configs.model(arch, **(options or {}))
    config.data.image_size = side
    names = tuple(map(str, range(classes)))
    normalise = resident.Normalisation(np.float32(mean), np.float32(std))
    found = runs.Run(folder / f"{net.name.replace(':', '-')}-made")
    arrays = {"params": cnn_arch.flat_state(params), "stats": cnn_arch.flat_state(stats)}
    about = {"digest": "made", "file": "nowhere"}
    weights.write_run(found, config, about, arrays, Preprocessing(normalise, names, channels))
    return found

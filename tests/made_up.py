"""Made-up data that several tests train on, and runs of networks that nobody trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from PIL import Image

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
    images = rng.integers(0, 90, (n, side, side, channels), dtype=np.uint8)
    size = side // 4
    for image, k in zip(images, labels, strict=True):
        top, left = size * (k // 4), size * (k % 4)
        image[top : top + size, left : left + size] += 120
    arrays = {
        "train_images": images[:train],
        "train_labels": labels[:train],
        "test_images": images[train:],
        "test_labels": labels[train:],
    }
    np.savez(file, **arrays)
    return images


VOC = {"cow": (0, 1), "dog": (1, 2), "train": (2,)}  # the colours of images that show a class


def voc(year: Path, train: int = 24, test: int = 12, side: int | None = None) -> None:
    """Writes a year of VOC: small JPEGs that are red, green or blue in turns, and lists of VOC's
    classes. Of every fifth image all dogs are difficult. side: of all images; drawn by default."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "ImageSets/Main"):
        (year / folder).mkdir(parents=True)
    targets = np.array(
        [[i % 3 in colours for colours in VOC.values()] for i in range(train + test)]
    )
    targets = targets.astype(np.int8)
    targets[4::5, 1] = -1
    for i in range(train + test):
        height, width = (side, side) if side else rng.integers(12, 20, 2)
        pixels = rng.integers(0, 100, (height, width, 3), np.uint8)
        pixels[..., i % 3] += 90
        Image.fromarray(pixels).save(year / "JPEGImages" / f"{i:06}.jpg", quality=95)
    for part, ids in (("trainval", range(train)), ("test", range(train, train + test))):
        for k, name in enumerate(VOC):
            lines = [f"{i:06} {({1: 1, 0: -1, -1: 0})[int(targets[i, k])]:2}\n" for i in ids]
            (year / "ImageSets/Main" / f"{name}_{part}.txt").write_text("".join(lines))


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
    new_run = runs.Run(folder / f"{net.name.replace(':', '-')}-made")
    arrays = {"params": cnn_arch.flat_state(params), "stats": cnn_arch.flat_state(stats)}
    about = {"digest": "made", "file": "nowhere"}
    weights.write_run(new_run, config, about, arrays, Preprocessing(normalise, names, channels))
    return new_run

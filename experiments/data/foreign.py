"""Images of any set as a test of a network that exists: its classes and its preprocessing."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

import input_pipeline
from experiments import data as data_lib
from experiments.data import ResidentTests, StreamedTests, TestData
from experiments.data.preprocessing import Preprocessing
from input_pipeline import DataError, classes, crops, image_files, resident, sources, stream


def open_test(
    name: str,
    seen: Preprocessing,
    config: ml_collections.ConfigDict,
    on_bad: Callable[[str], None] = lambda reason: None,
    on_note: Callable[[str], None] = lambda note: None,
    on_read: data_lib.Progress | None = None,
    *,
    in_order: bool = False,
) -> TestData:
    """The test images of a set, as part `test`.

    name: a folder of images (`{class}/*`, or with a part val or test of it; ILSVRC's tars, shards
    and TFDS's folders too), an .npz, or the name of a data set. on_note: hears of what lies there
    and is not read; on_read: of what has to be read to know the set by its contents. in_order: its
    classes are the network's in their order, not those that are called so.

    Raises:
        DataError: it can't be read, or its classes or channels are not the network's.
    """
    if not sources.is_streamed(name) and not Path(name).is_dir():
        return _resident(name, seen, config, in_order)
    found = sources.open_test(name, seen.class_names, on_read, in_order=in_order)
    for note in found.source.notes:
        on_note(note)
    source = sources.Upright(found.source) if seen.exif else found.source
    options: dict[str, Any] = {
        "name": name,
        "class_names": seen.class_names,
        "channels": seen.channels,
        "fingerprint": found.fingerprint,
        "counts": {"test": len(source)},
        "normalise": seen.normalise,
        "warp": seen.warp,
        "mirror_ok": found.mirror_ok and seen.mirror_ok,
        "exif": seen.exif,
        "frame": seen.frame,
        "matched": found.matched,
        **data_lib.test_sizes(config),
    }
    mean = seen.normalise.mean if seen.square_mean is None else seen.square_mean
    streamed = StreamedTests(
        **options,
        constants={"mean": mean, "std": seen.normalise.std},
        sources={"test": source},
        threads=config.data.threads,
        bad=stream.BadImages(config.data.bad, config.data.max_bad),
        on_bad=on_bad,
        kernel=seen.resize,
    )
    side = seen.small_side(config.data.image_size)
    if side is None:
        return streamed
    # The mean image, or the frame, belongs to small images of its size: these are made, and kept.
    images, labels, usable = _small(streamed, side)
    images = image_files.framed(images, seen.frame)
    return dataclasses.replace(_on_device(images, labels, options), usable=usable)


def _small(tests: StreamedTests, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Central squares (n, side, side, C) uint8 of all images, of side `side`, their labels, and
    which of them are usable; the others are blank."""
    view = crops.CentreView(crop=side, Q=side)
    batches = list(
        stream.eval_stream(
            tests.sources["test"],
            view,
            batch=64,
            channels=tests.channels,
            threads=tests.threads or None,
            kernel=tests.kernel,
            bad=tests.bad,
            on_bad=tests.on_bad,
        )
    )
    n = tests.counts["test"]
    images = np.concatenate([found.views[:, 0] for found in batches])[:n]
    labels = np.concatenate([found.labels for found in batches])[:n]
    return images, labels, np.concatenate([found.mask for found in batches])[:n]


def _on_device(images: np.ndarray, labels: np.ndarray, options: dict[str, Any]) -> ResidentTests:
    normalise = options["normalise"]
    return ResidentTests(
        **options,
        constants=(resident.Images.of(images), labels, normalise.whitening),
        labels=labels,
        parts={"test": range(len(labels))},
    )


def _resident(
    name: str, seen: Preprocessing, config: ml_collections.ConfigDict, in_order: bool
) -> ResidentTests:
    path = Path(name)
    of_file = path.suffix == ".npz"
    dataset = input_pipeline.load_npz_test(path) if of_file else input_pipeline.load(name)
    matched = classes.match(name, dataset.class_names, seen.class_names, in_order=in_order)
    images: np.ndarray = dataset.test.images
    labels = np.array(matched.labels, np.int32)[dataset.test.labels]
    if images.shape[-1] != seen.channels:
        raise DataError(
            f"images of {name} have channels: {images.shape[-1]}, and the network takes "
            f"{seen.channels}"
        )
    _check_kernel(name, images.shape[1:3], seen, config)
    side, stored = seen.small_side(config.data.image_size), images.shape[1:3]
    if side is not None:
        if stored != ((side, side) if seen.frame else seen.normalise.mean.shape[:2]):
            view = crops.CentreView(crop=side, Q=side)
            views = [image_files.central_view(image, view, seen.resize) for image in images]
            images = np.stack(views)
        images = image_files.framed(images, seen.frame)
    options = {
        "name": dataset.name,
        "class_names": seen.class_names,
        "channels": seen.channels,
        "fingerprint": dataset.fingerprint,
        "counts": {"test": len(labels)},
        "normalise": seen.normalise,
        "warp": seen.warp,
        "mirror_ok": dataset.mirror_ok and seen.mirror_ok,
        "frame": seen.frame,
        "matched": matched,
        **data_lib.test_sizes(config),
    }
    tests = _on_device(images, labels, options)
    return dataclasses.replace(tests, of_view=seen.of_view)


def _check_kernel(
    name: str, stored: tuple[int, ...], seen: Preprocessing, config: ml_collections.ConfigDict
) -> None:
    """Raises DataError where images on the device would be scaled by another kernel."""
    Q = config.test.Q or config.data.image_size
    if seen.resize != "bilinear" and min(stored) != Q:
        raise DataError(
            f"images of {name} are {stored[1]}x{stored[0]} and would be scaled to {Q} by a "
            f"bilinear kernel, and the network's were by a {seen.resize} one: write them as image "
            "files (PNG), which are scaled as they should be"
        )

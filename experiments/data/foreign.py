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
from input_pipeline.sources.collection import Collection, Held


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
    and TFDS's folders too), an .npz, or the name of a data set; of a network whose images may be of
    several classes, a year of VOC. on_note: hears of what lies there and is not read; on_read: of
    what has to be read to know the set by its contents. in_order: its classes are the network's in
    their order. Raises DataError, also where its classes or channels are not the network's.
    """
    if seen.several:
        return _of_several(name, seen, config, on_bad, on_note, on_read, in_order=in_order)
    if not sources.is_streamed(name) and not Path(name).is_dir():
        return _named(name, seen, config, in_order)
    found = sources.open_test(name, seen.class_names, on_read, in_order=in_order)
    for note in found.source.notes:
        on_note(note)
    shown = _Shown(name, found.fingerprint, found.mirror_ok, found.matched)
    return _streamed(shown, found.source, seen, config, on_bad)


def _of_several(
    name: str,
    seen: Preprocessing,
    config: ml_collections.ConfigDict,
    on_bad: Callable[[str], None],
    on_note: Callable[[str], None],
    on_read: data_lib.Progress | None,
    *,
    in_order: bool,
) -> TestData:
    """As `open_test`; classes of the network that the set has not count neither way."""
    found = sources.open_set("voc", name, on_read)
    assert found.targets is not None
    for note in found.notes:
        on_note(note)
    matched = classes.match(name, found.class_names, seen.class_names, in_order=in_order)
    targets: np.ndarray = np.full((len(found.test), len(seen.class_names)), -1, np.int8)
    targets[:, matched.labels] = found.targets[1]
    shown = _Shown(name, found.fingerprint, found.mirror_ok, matched)
    return _streamed(shown, found.test, seen, config, on_bad, {"test": targets})


def open_all(
    collection: Collection,
    seen: Preprocessing,
    config: ml_collections.ConfigDict,
    on_bad: Callable[[str], None] = lambda reason: None,
) -> TestData:
    """All images of a set, as part `test`, for what is computed without regard to their classes.

    Their labels are the set's own, and the classes still the network's.
    """
    c = collection
    shown = _Shown(c.name, c.fingerprint, c.mirror_ok)
    if isinstance(c.images, Held):
        return _resident(shown, c.images.images, c.images.labels, seen, config)
    return _streamed(shown, c.images, seen, config, on_bad)


@dataclasses.dataclass(frozen=True)
class _Shown:
    """What is known of a set that is shown to a network."""

    name: str
    fingerprint: str
    mirror_ok: bool
    matched: classes.Matched | None = None

    def options(
        self, seen: Preprocessing, n: int, config: ml_collections.ConfigDict
    ) -> dict[str, Any]:
        """Arguments of `TestData`."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "seen": dataclasses.replace(seen, mirror_ok=self.mirror_ok and seen.mirror_ok),
            "counts": {"test": n},
            "matched": self.matched,
            **data_lib.test_sizes(config),
        }


def _streamed(
    shown: _Shown,
    source: sources.Source,
    seen: Preprocessing,
    config: ml_collections.ConfigDict,
    on_bad: Callable[[str], None],
    targets: dict[str, np.ndarray] | None = None,
) -> TestData:
    source = sources.Upright(source) if seen.exif else source
    options = {**shown.options(seen, len(source), config), "targets": targets}
    how = stream.Decoding(
        channels=seen.channels,
        threads=config.data.threads,
        kernel=seen.resize,
        policy=config.data.bad,
        most=config.data.max_bad,
        on_bad=on_bad,
    )
    side = seen.small_side(config.data.image_size)
    if side is not None:
        options["seen"] = dataclasses.replace(options["seen"], of_view=False)
        return _small(source, how, side, options)
    return StreamedTests(
        **options,
        constants=constants(seen),
        sources={"test": source},
        how=how,
    )


def constants(seen: Preprocessing) -> dict[str, Any]:
    """What is taken off views that come from the host, and what they are divided by."""
    mean = seen.normalise.mean if seen.square_mean is None else seen.square_mean
    return {"mean": mean, "std": seen.normalise.std}


def _small(
    source: sources.Source, how: stream.Decoding, side: int, options: dict[str, Any]
) -> ResidentTests:
    """The central squares of all images, of the side that a mean image or a frame belongs to.

    Blanks stand in for unusable ones.
    """
    view, n = crops.CentreView(crop=side, Q=side), len(source)
    batches = list(stream.eval_stream(source, view, batch=64, how=how))
    images = np.concatenate([found.views[:, 0] for found in batches])[:n]
    labels = np.concatenate([found.labels for found in batches])[:n]
    usable = np.concatenate([found.mask for found in batches])[:n]
    images = image_files.framed(images, options["seen"].frame)
    return on_device(images, labels, usable=usable, **options)


def on_device(images: np.ndarray, labels: np.ndarray, **options: Any) -> ResidentTests:
    """Images (n, h, w, C) uint8 as part `test`. options: as of `ResidentTests`."""
    whitening = options["seen"].normalise.whitening
    return ResidentTests(
        **options,
        constants=(resident.Images.of(images), labels, whitening),
        labels=labels,
        parts={"test": range(len(labels))},
    )


def _named(
    name: str, seen: Preprocessing, config: ml_collections.ConfigDict, in_order: bool
) -> ResidentTests:
    path = Path(name)
    of_file = path.suffix == ".npz"
    dataset = input_pipeline.load_npz_test(path) if of_file else input_pipeline.load(name)
    matched = classes.match(name, dataset.class_names, seen.class_names, in_order=in_order)
    labels = np.array(matched.labels, np.int32)[dataset.test.labels]
    shown = _Shown(dataset.name, dataset.fingerprint, dataset.mirror_ok, matched)
    return _resident(shown, dataset.test.images, labels, seen, config)


def _resident(
    shown: _Shown,
    images: np.ndarray,
    labels: np.ndarray,
    seen: Preprocessing,
    config: ml_collections.ConfigDict,
) -> ResidentTests:
    if images.shape[-1] != seen.channels:
        raise DataError(
            f"images of {shown.name} have channels: {images.shape[-1]}, and the network takes "
            f"{seen.channels}"
        )
    side, stored = seen.small_side(config.data.image_size), images.shape[1:3]
    _check_kernel(shown.name, stored, seen, config)
    if side is not None:
        if stored != ((side, side) if seen.frame else seen.normalise.mean.shape[:2]):
            view = crops.CentreView(crop=side, Q=side)
            views = [image_files.central_view(image, view, seen.resize) for image in images]
            images = np.stack(views)
        images = image_files.framed(images, seen.frame)
    return on_device(images, labels, **shown.options(seen, len(labels), config))


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

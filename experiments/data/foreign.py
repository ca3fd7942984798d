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
from input_pipeline.sources.collection import Collection, InMemory


def open_test(
    name: str,
    prep: Preprocessing,
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
    several classes, a year of VOC. in_order: its classes are the network's in their order.

    on_note: is called with what lies there and is not read; on_read: with the progress of reading
    what identifies the set. Raises DataError, also where its classes or channels are not the
    network's.
    """
    if prep.several:
        return _of_several(name, prep, config, on_bad, on_note, on_read, in_order=in_order)
    if not sources.is_streamed(name) and not Path(name).is_dir():
        return _named(name, prep, config, in_order)
    test_set = sources.open_test(name, prep.class_names, on_read, in_order=in_order)
    for note in test_set.source.notes:
        on_note(note)
    info = _SetInfo(name, test_set.fingerprint, test_set.mirror_ok, test_set.matched)
    return _streamed(info, test_set.source, prep, config, on_bad)


def _of_several(
    name: str,
    prep: Preprocessing,
    config: ml_collections.ConfigDict,
    on_bad: Callable[[str], None],
    on_note: Callable[[str], None],
    on_read: data_lib.Progress | None,
    *,
    in_order: bool,
) -> TestData:
    """As `open_test`; classes of the network that the set has not count neither way."""
    image_set = sources.open_set("voc", name, on_read)
    assert image_set.targets is not None
    for note in image_set.notes:
        on_note(note)
    matched = classes.match(name, image_set.class_names, prep.class_names, in_order=in_order)
    targets: np.ndarray = np.full((len(image_set.test), len(prep.class_names)), -1, np.int8)
    targets[:, matched.labels] = image_set.targets[1]
    info = _SetInfo(name, image_set.fingerprint, image_set.mirror_ok, matched)
    return _streamed(info, image_set.test, prep, config, on_bad, {"test": targets})


def open_all(
    collection: Collection,
    prep: Preprocessing,
    config: ml_collections.ConfigDict,
    on_bad: Callable[[str], None] = lambda reason: None,
) -> TestData:
    """All images of a set, as part `test`, for what is computed without regard to their classes.

    Their labels are the set's own, and the classes still the network's.
    """
    c = collection
    info = _SetInfo(c.name, c.fingerprint, c.mirror_ok)
    if isinstance(c.images, InMemory):
        return _resident(info, c.images.images, c.images.labels, prep, config)
    return _streamed(info, c.images, prep, config, on_bad)


@dataclasses.dataclass(frozen=True)
class _SetInfo:
    """What is known of a set that is shown to a network."""

    name: str
    fingerprint: str
    mirror_ok: bool
    matched: classes.Matched | None = None

    def options(
        self, prep: Preprocessing, n: int, config: ml_collections.ConfigDict
    ) -> dict[str, Any]:
        """Arguments of `TestData`."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "preprocessing": dataclasses.replace(prep, mirror_ok=self.mirror_ok and prep.mirror_ok),
            "counts": {"test": n},
            "matched": self.matched,
            **data_lib.test_sizes(config),
        }


def _streamed(
    info: _SetInfo,
    source: sources.Source,
    prep: Preprocessing,
    config: ml_collections.ConfigDict,
    on_bad: Callable[[str], None],
    targets: dict[str, np.ndarray] | None = None,
) -> TestData:
    source = sources.Upright(source) if prep.exif else source
    options = {**info.options(prep, len(source), config), "targets": targets}
    how = stream.Decoding(
        channels=prep.channels,
        threads=config.data.threads,
        kernel=prep.resize,
        policy=config.data.bad,
        max_unusable=config.data.max_bad,
        on_bad=on_bad,
    )
    side = prep.small_side(config.data.image_size)
    if side is not None:
        options["preprocessing"] = dataclasses.replace(options["preprocessing"], of_view=False)
        return _small(source, how, side, options)
    return StreamedTests(
        **options,
        constants=constants(prep),
        sources={"test": source},
        how=how,
    )


def constants(prep: Preprocessing) -> dict[str, Any]:
    """The mean and deviation by which views that come from the host are normalised."""
    mean = prep.normalise.mean if prep.square_mean is None else prep.square_mean
    return {"mean": mean, "std": prep.normalise.std}


def _small(
    source: sources.Source, how: stream.Decoding, side: int, options: dict[str, Any]
) -> ResidentTests:
    """The central squares of all images, of the side that a mean image or a frame belongs to.

    Blanks stand in for unusable ones.
    """
    view, n = crops.CentreView(crop=side, Q=side), len(source)
    batches = list(stream.eval_stream(source, view, batch=64, how=how))
    images = np.concatenate([batch.views[:, 0] for batch in batches])[:n]
    labels = np.concatenate([batch.labels for batch in batches])[:n]
    usable = np.concatenate([batch.mask for batch in batches])[:n]
    images = image_files.framed(images, options["preprocessing"].frame)
    return on_device(images, labels, usable=usable, **options)


def on_device(images: np.ndarray, labels: np.ndarray, **options: Any) -> ResidentTests:
    """Images (n, h, w, C) uint8 as part `test`. options: as of `ResidentTests`."""
    whitening = options["preprocessing"].normalise.whitening
    return ResidentTests(
        **options,
        constants=(resident.Images.of(images), labels, whitening),
        labels=labels,
        parts={"test": range(len(labels))},
    )


def _named(
    name: str, prep: Preprocessing, config: ml_collections.ConfigDict, in_order: bool
) -> ResidentTests:
    path = Path(name)
    of_file = path.suffix == ".npz"
    dataset = input_pipeline.load_npz_test(path) if of_file else input_pipeline.load(name)
    matched = classes.match(name, dataset.class_names, prep.class_names, in_order=in_order)
    labels = np.array(matched.labels, np.int32)[dataset.test.labels]
    info = _SetInfo(dataset.name, dataset.fingerprint, dataset.mirror_ok, matched)
    return _resident(info, dataset.test.images, labels, prep, config)


def _resident(
    info: _SetInfo,
    images: np.ndarray,
    labels: np.ndarray,
    prep: Preprocessing,
    config: ml_collections.ConfigDict,
) -> ResidentTests:
    if images.shape[-1] != prep.channels:
        raise DataError(
            f"images of {info.name} have channels: {images.shape[-1]}, and the network takes "
            f"{prep.channels}"
        )
    side, stored = prep.small_side(config.data.image_size), images.shape[1:3]
    _check_kernel(info.name, stored, prep, config)
    if side is not None:
        if stored != ((side, side) if prep.frame else prep.normalise.mean.shape[:2]):
            view = crops.CentreView(crop=side, Q=side)
            views = [image_files.central_view(image, view, prep.resize) for image in images]
            images = np.stack(views)
        images = image_files.framed(images, prep.frame)
    return on_device(images, labels, **info.options(prep, len(labels), config))


def _check_kernel(
    name: str, stored: tuple[int, ...], prep: Preprocessing, config: ml_collections.ConfigDict
) -> None:
    """Raises DataError where images on the device would be scaled by another kernel."""
    Q = config.test.Q or config.data.image_size
    if prep.resize != "bilinear" and min(stored) != Q:
        raise DataError(
            f"images of {name} are {stored[1]}x{stored[0]} and would be scaled to {Q} by a "
            f"bilinear kernel, and the network's were by a {prep.resize} one: write them as image "
            "files (PNG), which are scaled as they should be"
        )

"""Encoded images, whose views come from the host step by step."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.config.keys import FITTED
from experiments.data import base
from experiments.data.base import Arrays, Data, Feed, Opened, Progress, TestData, Tested
from experiments.data.preprocessing import Preprocessing
from experiments.data.views import inherited, stream_view
from experiments.runs import processes
from input_pipeline import colour, crops, image_files, resident, sources, stream, whole_images
from input_pipeline.square_statistics import SquareStatistics
from input_pipeline.whole_files import read_arrays, write_arrays


@dataclass(frozen=True, kw_only=True)
class StreamedTests(TestData):
    """Encoded images, decoded and cropped on the host; the mean is taken off on the device."""

    sources: dict[str, sources.Source]
    how: stream.Decoding
    # (n, 2) of the parts whose images were looked at: stored height and width.
    sizes: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def stored(self, part: str, indices: np.ndarray) -> np.ndarray:
        return self.sizes[part][indices]

    def prepare(self, part: str, view: crops.TestView, on_progress: Progress) -> None:
        if isinstance(view, crops.WholeView) and part not in self.sizes:
            self.sizes[part] = whole_images.image_sizes(self.sources[part], self.how, on_progress)

    def tested(
        self, part: str, mesh: Mesh, budget: int, view: crops.TestView, places: np.ndarray
    ) -> Iterator[Tested]:
        spread = NamedSharding(mesh, P("data"))
        with contextlib.closing(self._batches(part, mesh, budget, view, places)) as batches:
            for batch in batches:
                arrays = {"images": batch.views}
                if batch.sizes is not None:
                    arrays["sizes"] = batch.sizes
                indices, boxes = places[batch.indices], None
                if self.boxes is not None and batch.stored is not None:
                    boxes = base.boxes_in(self.boxes[part], indices, batch.stored, view)
                    arrays["labels"] = batch.labels
                inputs = jax.device_put(arrays, spread)
                yield Tested(inputs, batch.labels, indices, batch.mask, batch.enlarged, boxes)

    def _batches(
        self, part: str, mesh: Mesh, budget: int, view: crops.TestView, places: np.ndarray
    ) -> Generator[stream.TestBatch]:
        """The views on the host, as of `tested`; indices are those of `places`."""
        source = self.sources[part].take(places)
        # As many images may be unusable as of the whole part, however few are taken.
        share = self.how.max_unusable * self.counts[part] / max(1, len(places))
        how = dataclasses.replace(self.how, max_unusable=min(1.0, share))
        if isinstance(view, crops.WholeView):
            return whole_images.whole_stream(
                source,
                view.Q,
                self.sizes[part][places],
                pixels=budget * self.crop**2 // (1 + view.mirrored),
                multiple=mesh.size,
                warp=view.warp,
                how=how,
            )
        shown = len(view.places(512, 512)) * (1 + view.mirrored)
        size = base.images_a_batch(budget, shown, mesh.size)
        return stream.eval_stream(source, view, batch=size, how=how)

    def test_views(self, constants: Any, inputs: Arrays, view: crops.TestView) -> jax.Array:
        x, whole_mean = self.pixels(constants, inputs, view), constants["mean"]
        mean = base.mean_of_views(whole_mean, view, x.shape)
        side, padded = whole_mean.shape[:1], x.shape[2:4]
        if isinstance(view, crops.WholeView) and mean.ndim == 1 and side == (view.Q,):
            # Images that are such a square themselves have the mean image taken off.
            beyond = [(0, size - view.Q) for size in padded]
            image = jnp.pad(whole_mean - mean, (*beyond, (0, 0))) + mean
            square = (inputs["sizes"] == view.Q).all(axis=1)[:, None, None, None, None]
            mean = jnp.where(square, image, mean)
        return (x - mean) / constants["std"]

    def pixels(self, constants: Any, inputs: Arrays, view: crops.TestView) -> jax.Array:
        return inputs["images"].astype(jnp.float32)


@dataclass(frozen=True, kw_only=True)
class Streamed(StreamedTests, Data):
    """Encoded images with a part to train on; the device mirrors and recolours them."""

    train_view: crops.TrainView
    mirror: bool
    colour: str
    box_part: float = 0.0

    def feed(self, config: ml_collections.ConfigDict, mesh: Mesh, position: int) -> Feed:
        views = stream.Stream(
            self.sources["train"],
            self.train_view,
            seed=config.seed,
            batch=config.train.batch_size,
            position=position,
            shard=processes.share(mesh),
            how=self.how,
            boxes=None if self.boxes is None else self.boxes["train"],
            part=self.box_part,
        )
        targets = None if self.targets is None else self.targets["train"]
        return _Views(views, NamedSharding(mesh, P(None, "data")), targets)

    def train_views(
        self, constants: Any, seed: jax.Array, batch: Arrays
    ) -> tuple[jax.Array, jax.Array]:
        keys = jax.vmap(resident.view_key, (None, 0, 0))(seed, batch["epochs"], batch["indices"])
        images, mean = batch["images"], self._means(constants["mean"], batch["offsets"])
        if self.mirror:  # bytes, and the mean with them: mirroring what is computed costs more
            images = colour.mirror(images, keys)
            mean = colour.mirror(mean, keys) if mean.ndim == 4 else mean
        x = colour.recolour(images, keys, self.colour, constants["colour"])
        return (x - mean) / constants["std"], batch["labels"]

    def train_boxes(self, constants: Any, seed: jax.Array, batch: Arrays) -> jax.Array:
        boxes = batch["boxes"]
        if not self.mirror:
            return boxes
        keys = jax.vmap(resident.view_key, (None, 0, 0))(seed, batch["epochs"], batch["indices"])
        turned = resident.mirrored_boxes(boxes, self.crop)
        return jnp.where(colour.mirrored(keys)[:, None], turned, boxes)

    def _means(self, mean: jax.Array, offsets: jax.Array) -> jax.Array:
        """What is subtracted from each view: of a mean image the part where the view lies."""
        if mean.ndim < 3:
            return mean
        if mean.shape[:2] == (self.crop, self.crop):
            return jnp.broadcast_to(mean, (len(offsets), *mean.shape))
        size = (self.crop, self.crop, mean.shape[2])
        return jax.vmap(lambda at: jax.lax.dynamic_slice(mean, (at[0], at[1], 0), size))(offsets)


class _Views:
    """A stream's batches on the mesh. targets: of its images, in place of their labels."""

    def __init__(
        self, stream: stream.Stream, spread: NamedSharding, targets: np.ndarray | None = None
    ):
        self._stream, self._spread, self._targets = stream, spread, targets
        self._waiting = self._copying = 0.0  # seconds a batch: running means

    @property
    def bottleneck(self) -> str:
        return "copy" if self._copying > self._waiting else self._stream.bottleneck

    def next(self, numbers: range) -> Arrays:
        if len(numbers) != 1 or numbers[0] != self._stream.position:
            raise ValueError(f"steps {numbers} are not the next one, {self._stream.position}")
        start = time.perf_counter()
        batch = next(self._stream)
        received = time.perf_counter()
        share = {name: array[None] for name, array in vars(batch).items() if array is not None}
        if self._targets is not None:
            share["labels"] = self._targets[batch.indices][None]
        arrays = processes.put_share(share, self._spread, axis=1)
        self._waiting += 0.1 * (received - start - self._waiting)
        self._copying += 0.1 * (time.perf_counter() - received - self._copying)
        return arrays

    def close(self) -> None:
        self._stream.close()


def prepare_streamed(
    config: ml_collections.ConfigDict,
    opened: Opened,
    statistics_file: Path | None,
    prep: Preprocessing | None,
    on_progress: Progress,
    on_bad: Callable[[str], None],
) -> Streamed:
    d = config.data
    train = stream_view(config)
    how = stream.Decoding(
        channels=opened.channels,
        threads=d.threads,
        kernel="bilinear" if prep is None else prep.resize,
        policy=d.bad,
        max_unusable=d.max_bad,
        on_bad=on_bad,
    )
    side = train.S if isinstance(train, crops.SquareView) else d.image_size
    parts = dict(opened.parts)
    if d.exif:
        parts = {name: sources.Upright(part) for name, part in parts.items()}
    statistics = None
    fitted = d.normalise in ("per_pixel", "per_channel") or d.divide_by_std
    if (fitted and prep is None) or d.colour in FITTED:
        statistics = _read_statistics(statistics_file)
        if statistics is None:
            count = d.statistics_images or len(parts["train"])
            usual = dataclasses.replace(how, kernel="bilinear")
            statistics = SquareStatistics.fit(parts["train"], side, count, usual, on_progress)
            _keep_statistics(statistics_file, statistics)
    if prep is None:
        normalise = _normalisation(d, statistics)
    else:
        normalise = inherited(prep, config, opened.channels, None)
    shift = colour.constants(d.colour, 3, statistics.pixels if statistics else None)
    # As many training images as there are test images measure the training error well enough.
    positions = np.linspace(
        0, len(parts["train"]) - 1, min(len(parts["train"]), len(parts["test"]))
    )
    indices = np.unique(positions.astype(np.int64))
    parts["seen"], boxes, targets = parts["train"].take(indices), opened.boxes, opened.targets
    if boxes is not None:
        boxes = {**boxes, "seen": boxes["train"].take(indices)}
    if targets is not None:
        targets = {**targets, "seen": targets["train"][indices]}
    return Streamed(
        **base.facts(config, opened, parts),
        boxes=boxes,
        targets=targets,
        preprocessing=_preprocessing(config, opened, normalise, how.kernel),
        constants={"mean": normalise.mean, "std": normalise.std, "colour": shift},
        sources=parts,
        train_view=train,
        mirror=d.mirror,
        colour=d.colour,
        box_part=d.box_part,
        how=how,
    )


def _preprocessing(
    config: ml_collections.ConfigDict,
    opened: Opened,
    normalise: resident.Normalisation,
    kernel: image_files.Resize,
) -> Preprocessing:
    """How a test sees the images; a mean image of their squares is cut to the central crop."""
    crop, full_mean = config.data.image_size, normalise.mean
    centre = crops.CentreView(crop=crop, Q=config.test.Q or crop)
    mean = base.mean_of_views(full_mean, centre, (1, 1, crop, crop))
    return Preprocessing(
        dataclasses.replace(normalise, mean=mean),
        opened.class_names,
        opened.channels,
        resize=kernel,
        of_view=True,
        square_mean=None if mean.shape == full_mean.shape else np.asarray(full_mean),
        mirror_ok=opened.dataset.mirror_ok,
        exif=config.data.exif,
        several=opened.targets is not None,
    )


def _read_statistics(file: Path | None) -> SquareStatistics | None:
    """What `_keep_statistics` wrote; None where it is not there, or not whole."""
    arrays = file and read_arrays(file, ("mean_HWC", "mean_C", "covariance", "images"))
    if not arrays:
        return None
    pixels = colour.Statistics(arrays["mean_C"], arrays["covariance"], int(arrays["images"]))
    return SquareStatistics(arrays["mean_HWC"], pixels)


def _keep_statistics(file: Path | None, statistics: SquareStatistics) -> None:
    if file is not None:
        pixels = statistics.pixels
        arrays = {"mean_C": pixels.mean_C, "covariance": pixels.covariance}
        images = np.asarray(pixels.n)
        write_arrays(file, {"mean_HWC": statistics.mean_HWC, "images": images, **arrays})


def _normalisation(
    d: ml_collections.ConfigDict, statistics: SquareStatistics | None
) -> resident.Normalisation:
    mean, variance = np.asarray(d.mean if d.normalise == "fixed" else 0.0), 1.0
    if statistics is not None:
        pixels = statistics.pixels
        fitted = {"per_pixel": statistics.mean_HWC, "per_channel": pixels.mean_C}
        mean = fitted.get(d.normalise, mean)
        square = np.mean(np.diag(pixels.covariance) + pixels.mean_C**2)
        variance = float(square - np.mean(mean * (2 * statistics.mean_HWC - mean)))
    std = resident.deviation(variance, d.divide_by_std)
    return resident.Normalisation(np.asarray(mean, np.float32), std)

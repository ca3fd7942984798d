"""Small sets, which lie on the device whole."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.data import base
from experiments.data.base import Arrays, Data, Feed, Opened, Progress, TestData, Tested
from experiments.data.preprocessing import Preprocessing
from experiments.data.views import inherited, resident_view
from experiments.runs import processes
from input_pipeline import crops, image_files, order, resident
from input_pipeline.boxes import Boxes
from input_pipeline.whole_files import read_arrays, write_arrays

_UNCHANGED = resident.Normalisation(np.zeros((), np.float32), np.ones((), np.float32))


@dataclass(frozen=True, kw_only=True)
class ResidentTests(TestData):
    """A data set that fits on the device, as one array, so that one program tests every part."""

    labels: np.ndarray  # (N,) int32
    parts: dict[str, range]  # where in the array the parts lie
    # (N,) bool, False where a blank stands in for a file that can't be read; None: all are usable.
    usable: np.ndarray | None = None

    def stored(self, part: str, indices: np.ndarray) -> np.ndarray:
        return np.tile(self.constants[0].shape[1:3], (len(indices), 1))

    def prepare(self, part: str, view: crops.TestView, on_progress: Progress) -> None:
        pass

    def tested(
        self, part: str, mesh: Mesh, budget: int, view: crops.TestView, places: np.ndarray
    ) -> Iterator[Tested]:
        spread, start = NamedSharding(mesh, P("data")), np.int32(self.parts[part].start)
        stored = self.constants[0].shape[1:3]
        shown = view.places(*stored)
        area = sum(place.size[0] * place.size[1] for place in shown) * (1 + view.mirrored)
        size = base.images_a_batch(budget, area / self.crop**2, mesh.size)
        for slots, mask in order.eval_batches(len(places), size):
            indices = places[slots].astype(np.int32)
            inputs = {"indices": processes.put(indices + start, spread)}
            if self.usable is not None:
                mask = mask & self.usable[indices + start]
            enlarged = np.full(len(mask), min(stored) < min(shown[0].scaled))
            labels, boxes = self.labels[indices + start], None
            if self.boxes is not None:
                sizes = self.stored(part, indices)
                boxes = base.boxes_in(self.boxes[part], indices, sizes, view)
                inputs["labels"] = processes.put(labels, spread)
            yield Tested(inputs, labels, indices, mask, enlarged, boxes)

    def test_views(self, constants: Any, inputs: Arrays, view: crops.TestView) -> jax.Array:
        images, _, whitening, *_ = constants
        normalise = dataclasses.replace(self.preprocessing.normalise, whitening=whitening)
        if not self.preprocessing.of_view:
            return resident.view_batch(images, inputs["indices"], view, normalise)
        x = self.pixels(constants, inputs, view)
        return (x - base.mean_of_views(normalise.mean, view, x.shape)) / normalise.std

    def pixels(self, constants: Any, inputs: Arrays, view: crops.TestView) -> jax.Array:
        return resident.view_batch(constants[0], inputs["indices"], view, _UNCHANGED)


@dataclass(frozen=True, kw_only=True)
class Resident(ResidentTests, Data):
    """A data set on the device with a part to train on."""

    train_view: resident.TrainView
    box_part: float = 0.0

    def feed(self, config: ml_collections.ConfigDict, mesh: Mesh, position: int) -> Feed:
        return _Order(config.seed, config.train.batch_size, self.counts["train"], mesh)

    def train_views(
        self, constants: Any, seed: jax.Array, batch: Arrays
    ) -> tuple[jax.Array, jax.Array]:
        images, labels, whitening, *_ = constants
        indices, epochs = batch["indices"], batch["epochs"]
        normalise = dataclasses.replace(self.preprocessing.normalise, whitening=whitening)
        return resident.train_batch(
            images, labels, indices, epochs, seed, self.train_view, normalise
        )

    def train_boxes(self, constants: Any, seed: jax.Array, batch: Arrays) -> jax.Array:
        images, *_, boxes = constants
        indices, epochs, size = batch["indices"], batch["epochs"], images.shape[1:3]
        return resident.train_boxes(
            boxes, indices, epochs, seed, self.train_view, size, self.box_part
        )


@dataclass(frozen=True)
class _Order:
    """The feed of a set on the device: it only says which examples a batch holds."""

    seed: int
    batch: int
    n: int
    mesh: Mesh

    bottleneck = ""

    def next(self, numbers: range) -> Arrays:
        spread = NamedSharding(self.mesh, P(None, "data"))
        steps = [order.training(self.seed, self.n, k * self.batch, self.batch) for k in numbers]
        indices, epochs = (np.stack(arrays) for arrays in zip(*steps, strict=True))
        batch: Arrays = processes.put({"indices": indices, "epochs": epochs}, spread)
        return batch

    def close(self) -> None:
        pass


def prepare_resident(
    config: ml_collections.ConfigDict,
    opened: Opened,
    statistics_file: Path | None,
    prep: Preprocessing | None,
) -> Resident:
    parts = opened.parts
    starts = np.cumsum([0, *(len(part) for part in parts.values())])
    labels = np.concatenate([part.labels for part in parts.values()])
    places = {
        name: range(int(start), int(start) + len(part))
        for (name, part), start in zip(parts.items(), starts, strict=False)
    }
    places["seen"] = places["train"]
    images = np.concatenate([part.images for part in parts.values()])
    images = image_files.framed(images, config.data.frame) if config.data.frame else images
    boxes = dict(opened.boxes) if opened.boxes is not None else None
    if boxes is not None:
        boxes = {name: _in_frame(b, config.data.frame) for name, b in boxes.items()}
        boxes["seen"] = boxes["train"]
    if prep is None:
        normalise = _fitted(config.data, images[: len(parts["train"])], statistics_file)
    else:
        normalise = inherited(prep, config, opened.channels, images.shape[1:3])
    constants: tuple[Any, ...] = (resident.Images.of(images), labels, normalise.whitening)
    if boxes is not None:
        most = max(1, *(int(b.counts.max(initial=1)) for b in boxes.values()))
        padded = [boxes[name].padded(most, *images.shape[1:3]) for name in parts]
        constants = (*constants, np.concatenate(padded))
    return Resident(
        **base.facts(config, opened, places),
        boxes=boxes,
        preprocessing=Preprocessing(
            normalise,
            opened.class_names,
            opened.channels,
            mirror_ok=opened.dataset.mirror_ok,
            frame=config.data.frame,
        ),
        constants=constants,
        labels=labels,
        parts=places,
        train_view=resident_view(config),
        box_part=config.data.box_part,
    )


def _in_frame(boxes: Boxes, frame: int) -> Boxes:
    """The boxes of images in the pixels of these images with a frame around them."""
    return dataclasses.replace(boxes, edges=boxes.edges + np.float32(frame))


def _fitted(
    d: ml_collections.ConfigDict, images: np.ndarray, file: Path | None
) -> resident.Normalisation:
    """Fits the normalisation. A whitening is kept in `file`: it takes time, and differs in the last
    bits between machines."""
    file = file if d.normalise == "gcn_zca" else None
    arrays = file and read_arrays(file, ("mean", "std", "whitening"))
    if arrays:
        return resident.Normalisation(**arrays)
    normalise = resident.Normalisation.fit(images, d.normalise, divide_by_std=d.divide_by_std)
    if file:
        write_arrays(file, vars(normalise))
    return normalise

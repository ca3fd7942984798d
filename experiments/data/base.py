"""What training and testing know of data: parts, batches, and the views of a step."""

import abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

import input_pipeline
from experiments.config import ConfigError
from experiments.data.preprocessing import Preprocessing
from input_pipeline import crops, sources
from input_pipeline.boxes import Boxes, in_view
from input_pipeline.classes import Matched

Arrays = dict[str, jax.Array]
Progress = Callable[[int, int], None]  # images read, of how many


class Feed(Protocol):
    """The training examples of one run, step by step."""

    @property
    def bottleneck(self) -> str:
        """The stage that holds the feed up; '' where nothing can."""

    def next(self, numbers: range) -> Arrays:
        """What `Data.train_views` needs of these steps; arrays (steps, batch, ...) on the mesh."""

    def close(self) -> None:
        """Ends what runs in the background."""


@dataclass(frozen=True)
class Tested:
    """A batch of a part that is tested; fields without a comment are as of `stream.TestBatch`."""

    inputs: Arrays  # what `TestData.test_views` needs
    labels: np.ndarray
    indices: np.ndarray
    mask: np.ndarray
    enlarged: np.ndarray
    # (b, M, 4), the boxes in the first view of each image, in its pixels; NaN where it has fewer.
    boxes: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class TestData(abc.ABC):
    """Images that networks are tested on."""

    __test__ = False  # not a pytest class

    name: str
    fingerprint: str
    counts: dict[str, int]  # examples by part
    preprocessing: Preprocessing  # how a network sees them, and its classes
    constants: Any  # arrays that the views need, as arguments of the programs that make them
    crop: int  # side of the network's input, pixels
    Q: int  # short side of the image that is tested, unless a view says otherwise
    square: bool = False  # whether crops lie in the central square of the scaled image
    matched: Matched | None = None  # how the classes of another set are the network's
    boxes: dict[str, Boxes] | None = None  # of each part, where the data have them
    # Of each part that is tested, as of a `Collection`, where images may be of several classes.
    targets: dict[str, np.ndarray] | None = None

    @property
    def classes(self) -> int:
        return len(self.preprocessing.class_names)

    @property
    def channels(self) -> int:
        return self.preprocessing.channels

    @property
    def centre(self) -> crops.CentreView:
        """The view of a test image unless another is asked for."""
        return crops.CentreView(crop=self.crop, Q=self.Q, warp=self.preprocessing.warp)

    @abc.abstractmethod
    def stored(self, part: str, indices: np.ndarray) -> np.ndarray:
        """(b, 2) int, the heights and widths of these images; after `prepare` for a whole view."""

    @abc.abstractmethod
    def prepare(self, part: str, view: crops.TestView, on_progress: Progress) -> None:
        """Reads what `tested` needs to know of all images of a part before it begins."""

    @abc.abstractmethod
    def tested(
        self, part: str, mesh: Mesh, budget: int, view: crops.TestView, places: np.ndarray
    ) -> Iterator[Tested]:
        """The examples of a part at `places`, each once.

        budget: the area of a batch's views, as a number of views of the network's input size.
        """

    @abc.abstractmethod
    def test_views(self, constants: Any, inputs: Arrays, view: crops.TestView) -> jax.Array:
        """x (b, V, h, w, C) float32, `view` of a tested batch; a pure function.

        Where `inputs` has `sizes`, (b, 2) int32, the images are smaller than h x w, and what lies
        beyond them means nothing.
        """

    @abc.abstractmethod
    def pixels(self, constants: Any, inputs: Arrays, view: crops.TestView) -> jax.Array:
        """The views of `test_views` before they are normalised, 0 to 255, to be looked at."""


class Data(TestData):
    """The data of a config. `counts` are the examples to train on (`train`), to validate on
    (`holdout`), to test on (`test`), and those of the training part that are tested (`seen`).
    """

    @abc.abstractmethod
    def feed(self, config: ml_collections.ConfigDict, mesh: Mesh, position: int) -> Feed:
        """Training batches from step `position` on."""

    @abc.abstractmethod
    def train_views(
        self, constants: Any, seed: jax.Array, batch: Arrays
    ) -> tuple[jax.Array, jax.Array]:
        """x (B, crop, crop, C) float32 and labels (B,) of a feed's batch; a pure function."""

    @abc.abstractmethod
    def train_boxes(self, constants: Any, seed: jax.Array, batch: Arrays) -> jax.Array:
        """(B, 4) float32, where the object is in each of these views, in pixels; a pure function.

        NaN where a view shows too little of the image's boxes. Only of data that have boxes.
        """


def boxes_in(
    boxes: Boxes, indices: np.ndarray, stored: np.ndarray, view: crops.TestView
) -> np.ndarray:
    """(b, M, 4) float32: the boxes of these images in the first crop of a view of each.

    stored: (b, 2), heights and widths of the images. NaN where an image has fewer than M boxes.
    """
    most = int(boxes.counts[indices].max(initial=1))
    padded: np.ndarray = np.full((len(indices), most, 4), np.nan, np.float32)
    for row, (index, (height, width)) in enumerate(zip(indices, stored.tolist(), strict=True)):
        if height and width:  # else it can't be used
            visible = in_view(boxes.inside(index, height, width), view.places(height, width)[0])
            padded[row, : len(visible)] = visible
    return padded


def images_a_batch(budget: int, views: float, devices: int) -> int:
    """How many images have views of about `budget` inputs of the network; a multiple of devices."""
    return max(1, round(budget / views) // devices) * devices


def mean_of_views(mean: Any, view: crops.TestView, shape: tuple[int, ...]) -> Any:
    """What is subtracted from views of shape (b, V, h, w, C); it broadcasts to them.

    A mean image of the crop's size is subtracted from any crop. A larger one is that of the central
    square of images: of the central crop and AlexNet's ten their part of it is subtracted. Of other
    views, which show more than the square or another scale, it is the mean colour.
    """
    if mean.ndim < 3 or mean.shape[:2] == shape[2:4]:
        return mean
    side = mean.shape[0]
    if isinstance(view, crops.CentreView):
        at = crops.centre_offset(side, view.crop)
        return mean[at : at + view.crop, at : at + view.crop]
    if isinstance(view, crops.TenCropView) and view.square and side == view.Q:
        offsets = [place.offset for place in view.places(side, side)]
        parts = [mean[r : r + view.crop, c : c + view.crop] for r, c in offsets]
        return (np if isinstance(mean, np.ndarray) else jnp).stack(parts)
    return mean.mean(axis=(0, 1))


@dataclass(frozen=True)
class Opened:
    """A config's data, found but not read."""

    name: str
    class_names: tuple[str, ...]
    channels: int
    fingerprint: str
    train: int  # the number of images left for training
    dataset: input_pipeline.Dataset | sources.ImageSet
    parts: dict[str, Any]  # Examples or Sources
    boxes: dict[str, Boxes] | None = None  # of each part, where `data.boxes` says where they are
    box_notes: tuple[str, ...] = ()  # sentences for people about the boxes
    targets: dict[str, np.ndarray] | None = None  # of each part, as of an `ImageSet`

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for people about the data: what was not read, which part is the test."""
        notes = self.dataset.notes if isinstance(self.dataset, sources.ImageSet) else ()
        return (*notes, *self.box_notes)


def test_sizes(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What a test needs to know of the views of a config, as arguments of `TestData`."""
    crop, square = config.data.image_size, config.data.view == "square"
    return {"crop": crop, "Q": config.test.Q or crop, "square": square}


def facts(
    config: ml_collections.ConfigDict, opened: Opened, parts: dict[str, Any]
) -> dict[str, Any]:
    """What is known of a config's data wherever they lie, as arguments of `Data`."""
    return {
        "name": opened.name,
        "fingerprint": opened.fingerprint,
        "counts": {name: len(part) for name, part in parts.items()},
        **test_sizes(config),
    }


def check_batch(config: ml_collections.ConfigDict, n: int, name: str) -> None:
    """Raises ConfigError where a batch does not suit the n training images or the network."""
    t, group = config.train, config.model.get("bn_group_size", 0)
    if t.batch_size > n:
        raise ConfigError(
            f"train.batch_size={t.batch_size} is more than the {n} training images of {name}"
        )
    if group and (t.batch_size // t.accumulate) % group:
        raise ConfigError(
            f"model.bn_group_size={group} does not divide the {t.batch_size // t.accumulate} "
            "images of a batch (train.batch_size / train.accumulate)"
        )


def total_steps(config: ml_collections.ConfigDict, n: int) -> int:
    """Training steps of a config on n training examples; a part of a batch counts as one."""
    t = config.train
    return t.steps or max(1, -(-round(t.epochs * n) // t.batch_size))

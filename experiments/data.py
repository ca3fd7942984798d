"""The images of a config, split, and what a network is shown of them.

Small sets lie on the device whole (`Resident`); of encoded images each step's views come from the
host (`Streamed`). Training knows them only as `Data`, testing as `TestData`.
"""

import abc
import contextlib
import dataclasses
import difflib
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import input_pipeline
from experiments.config import ConfigError, inherits
from experiments.config.keys import FITTED
from experiments.preprocessing import Preprocessing
from experiments.runs import processes
from input_pipeline import colour, crops, image_files, order, resident, sources, stream, whole
from input_pipeline.classes import Matched

Arrays = dict[str, jax.Array]
Progress = Callable[[int, int], None]  # images read, of how many
_UNCHANGED = resident.Normalisation(np.zeros((), np.float32), np.ones((), np.float32))


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
    """A batch of a part that is tested: what `TestData.test_views` needs, and what it is.

    labels and indices: (b,) int32; mask: (b,) bool, False where there is no example; enlarged: (b,)
    bool, whether the image was smaller than what is shown of it.
    """

    inputs: Arrays
    labels: np.ndarray
    indices: np.ndarray
    mask: np.ndarray
    enlarged: np.ndarray


@dataclass(frozen=True, kw_only=True)
class TestData(abc.ABC):
    """Images that networks are tested on. `counts`: examples by part.

    constants: arrays that the views need, as arguments of the programs that make them. crop: side
    of the network's input, pixels. square: crops lie in the central square of the scaled image.
    warp: images are scaled to a square whatever their aspect. mirror_ok: False where a mirrored
    image is not an image of its class, and is not shown.
    exif: whether images are turned as their EXIF orientation says. frame: so many black pixels are
    around each image.
    matched: how the classes of a set that is not the network's own are its classes.
    """

    __test__ = False  # not a pytest class

    name: str
    class_names: tuple[str, ...]
    channels: int
    fingerprint: str
    counts: dict[str, int]
    normalise: resident.Normalisation
    constants: Any
    crop: int
    Q: int  # short side of the image that is tested, unless a view says otherwise
    square: bool = False
    warp: bool = False
    mirror_ok: bool = True
    exif: bool = False
    frame: int = 0
    matched: Matched | None = None

    means_are_of_views = False

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def test_normalise(self) -> resident.Normalisation:
        """As it is done to the images of a test."""
        return self.normalise

    @property
    def resize(self) -> image_files.Resize:
        """The kernel with which image files are scaled."""
        return "bilinear"

    @property
    def centre(self) -> crops.CentreView:
        """What is shown of a test image where nothing else is asked for."""
        return crops.CentreView(crop=self.crop, Q=self.Q, warp=self.warp)

    @abc.abstractmethod
    def prepare(self, part: str, view: crops.TestView, on_progress: Progress) -> None:
        """Whatever `tested` needs to know of all images of a part before it begins."""

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


def _images_a_batch(budget: int, views: float, devices: int) -> int:
    """So many that their views are about `budget` of the network's input, on all devices."""
    return max(1, round(budget / views) // devices) * devices


# --------------------------------------------------------------------------------- resident


@dataclass(frozen=True, kw_only=True)
class ResidentTests(TestData):
    """A data set that fits on the device, as one array, so that one program tests every part.

    labels: (N,) int32; `parts` says where in the array the parts lie. of_view: a mean image is that
    of the view, not of the stored images. usable: (N,) bool, False where a blank stands in for a
    file that can't be read; all are by default.
    """

    labels: np.ndarray
    parts: dict[str, range]
    of_view: bool = False
    usable: np.ndarray | None = None

    def prepare(self, part: str, view: crops.TestView, on_progress: Progress) -> None:
        pass

    def tested(
        self, part: str, mesh: Mesh, budget: int, view: crops.TestView, places: np.ndarray
    ) -> Iterator[Tested]:
        spread, start = NamedSharding(mesh, P("data")), np.int32(self.parts[part].start)
        stored = self.constants[0].shape[1:3]
        shown = view.places(*stored)
        area = sum(place.size[0] * place.size[1] for place in shown) * (1 + view.mirrored)
        size = _images_a_batch(budget, area / self.crop**2, mesh.size)
        for slots, mask in order.eval_batches(len(places), size):
            indices = places[slots].astype(np.int32)
            inputs = {"indices": processes.put(indices + start, spread)}
            if self.usable is not None:
                mask = mask & self.usable[indices + start]
            enlarged = np.full(len(mask), min(stored) < min(shown[0].scaled))
            yield Tested(inputs, self.labels[indices + start], indices, mask, enlarged)

    def test_views(self, constants: Any, inputs: Arrays, view: crops.TestView) -> jax.Array:
        images, _, whitening = constants
        normalise = dataclasses.replace(self.normalise, whitening=whitening)
        if not self.of_view:
            return resident.view_batch(images, inputs["indices"], view, normalise)
        x = resident.view_batch(images, inputs["indices"], view, _UNCHANGED)
        return (x - _mean_of_views(normalise.mean, view, x.shape)) / normalise.std


@dataclass(frozen=True, kw_only=True)
class Resident(ResidentTests, Data):
    """The same with a part to train on."""

    train_view: resident.TrainView

    def feed(self, config: ml_collections.ConfigDict, mesh: Mesh, position: int) -> Feed:
        return _Order(config.seed, config.train.batch_size, self.counts["train"], mesh)

    def train_views(
        self, constants: Any, seed: jax.Array, batch: Arrays
    ) -> tuple[jax.Array, jax.Array]:
        images, labels, whitening = constants
        indices, epochs = batch["indices"], batch["epochs"]
        normalise = dataclasses.replace(self.normalise, whitening=whitening)
        return resident.train_batch(
            images, labels, indices, epochs, seed, self.train_view, normalise
        )


@dataclass(frozen=True)
class _Order:
    """Only which examples a batch holds has to be said: the images are on the device."""

    seed: int
    batch: int
    n: int
    mesh: Mesh

    bottleneck = ""

    def next(self, numbers: range) -> Arrays:
        spread = NamedSharding(self.mesh, P(None, "data"))
        steps = [order.training(self.seed, self.n, k * self.batch, self.batch) for k in numbers]
        indices, epochs = (np.stack(each) for each in zip(*steps, strict=True))
        batch: Arrays = processes.put({"indices": indices, "epochs": epochs}, spread)
        return batch

    def close(self) -> None:
        pass


# --------------------------------------------------------------------------------- streamed


@dataclass(frozen=True, kw_only=True)
class StreamedTests(TestData):
    """Encoded images, decoded and cropped on the host; the mean is taken off on the device.

    kernel: with which they are scaled.
    """

    sources: dict[str, sources.Source]
    threads: int
    bad: stream.BadImages
    on_bad: Callable[[str], None]
    kernel: image_files.Resize = "bilinear"
    # (n, 2) of the parts whose images were looked at: stored height and width.
    sizes: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    means_are_of_views = True

    @property
    def resize(self) -> image_files.Resize:
        return self.kernel

    @property
    def test_normalise(self) -> resident.Normalisation:
        shape = (1, 1, self.crop, self.crop)
        mean = _mean_of_views(self.normalise.mean, self.centre, shape)
        return dataclasses.replace(self.normalise, mean=mean)

    def prepare(self, part: str, view: crops.TestView, on_progress: Progress) -> None:
        if isinstance(view, crops.WholeView) and part not in self.sizes:
            self.sizes[part] = whole.image_sizes(
                self.sources[part],
                threads=self.threads or None,
                bad=self.bad,
                on_bad=self.on_bad,
                on_progress=on_progress,
            )

    def tested(
        self, part: str, mesh: Mesh, budget: int, view: crops.TestView, places: np.ndarray
    ) -> Iterator[Tested]:
        spread, source = NamedSharding(mesh, P("data")), self.sources[part].take(places)
        # So many of all images may be unusable, wherever they lie.
        share = self.bad.most * self.counts[part] / max(1, len(places))
        bad = dataclasses.replace(self.bad, most=min(1.0, share))
        options: dict[str, Any] = {
            "channels": self.channels,
            "threads": self.threads or None,
            "kernel": self.kernel,
            "bad": bad,
            "on_bad": self.on_bad,
        }
        batches: Any
        if isinstance(view, crops.WholeView):
            pixels = budget * self.crop**2 // (1 + view.mirrored)
            sizes = self.sizes[part][places]
            batches = whole.whole_stream(
                source,
                view.Q,
                sizes,
                pixels=pixels,
                multiple=mesh.size,
                warp=view.warp,
                **options,
            )
        else:
            shown = len(view.places(512, 512)) * (1 + view.mirrored)
            size = _images_a_batch(budget, shown, mesh.size)
            batches = stream.eval_stream(source, view, batch=size, **options)
        with contextlib.closing(batches):
            for found in batches:
                if isinstance(found, whole.WholeBatch):
                    arrays = {"images": found.images[:, None], "sizes": found.sizes}
                else:
                    arrays = {"images": found.views}
                inputs = jax.device_put(arrays, spread)
                yield Tested(
                    inputs, found.labels, places[found.indices], found.mask, found.enlarged
                )

    def test_views(self, constants: Any, inputs: Arrays, view: crops.TestView) -> jax.Array:
        x, whole_mean = inputs["images"].astype(jnp.float32), constants["mean"]
        mean = _mean_of_views(whole_mean, view, x.shape)
        side, padded = whole_mean.shape[:1], x.shape[2:4]
        if isinstance(view, crops.WholeView) and mean.ndim == 1 and side == (view.Q,):
            # Images that are such a square, and not only their place in the batch.
            beyond = [(0, size - view.Q) for size in padded]
            image = jnp.pad(whole_mean - mean, (*beyond, (0, 0))) + mean
            square = (inputs["sizes"] == view.Q).all(axis=1)[:, None, None, None, None]
            mean = jnp.where(square, image, mean)
        return (x - mean) / constants["std"]


def _mean_of_views(mean: Any, view: crops.TestView, shape: tuple[int, ...]) -> Any:
    """What is taken off views of shape (b, V, h, w, C), which broadcasts to it.

    A mean image of the crop's size is that of any crop. A larger one is that of the central square
    of images: the central crop and AlexNet's ten have their parts of it taken off, and other views,
    which show more than the square or another scale, its mean colour.
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


@dataclass(frozen=True, kw_only=True)
class Streamed(StreamedTests, Data):
    """The same with a part to train on; colour and mirror are the device's too."""

    train_view: crops.TrainView
    mirror: bool
    colour: str

    def feed(self, config: ml_collections.ConfigDict, mesh: Mesh, position: int) -> Feed:
        found = stream.Stream(
            self.sources["train"],
            self.train_view,
            seed=config.seed,
            batch=config.train.batch_size,
            position=position,
            shard=processes.share(mesh),
            channels=self.channels,
            threads=self.threads or None,
            kernel=self.kernel,
            bad=self.bad,
            on_bad=self.on_bad,
        )
        return _Views(found, NamedSharding(mesh, P(None, "data")))

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

    def _means(self, mean: jax.Array, offsets: jax.Array) -> jax.Array:
        """What is taken off each view: a mean image is cut where the view lies in it."""
        if mean.ndim < 3:
            return mean
        if mean.shape[:2] == (self.crop, self.crop):
            return jnp.broadcast_to(mean, (len(offsets), *mean.shape))
        size = (self.crop, self.crop, mean.shape[2])
        return jax.vmap(lambda at: jax.lax.dynamic_slice(mean, (at[0], at[1], 0), size))(offsets)


class _Views:
    """A stream's batches on the mesh."""

    def __init__(self, stream: stream.Stream, spread: NamedSharding):
        self._stream, self._spread = stream, spread
        self._waiting = self._copying = 0.0  # seconds a batch, of late

    @property
    def bottleneck(self) -> str:
        return "copy" if self._copying > self._waiting else self._stream.bottleneck

    def next(self, numbers: range) -> Arrays:
        if len(numbers) != 1 or numbers[0] != self._stream.position:
            raise ValueError(f"steps {numbers} are not the next one, {self._stream.position}")
        start = time.perf_counter()
        found = next(self._stream)
        here = time.perf_counter()
        own = {name: array[None] for name, array in vars(found).items()}
        arrays = processes.put_share(own, self._spread, axis=1)
        self._waiting += 0.1 * (here - start - self._waiting)
        self._copying += 0.1 * (time.perf_counter() - here - self._copying)
        return arrays

    def close(self) -> None:
        self._stream.close()


# ---------------------------------------------------------------------------------- opening


@dataclass(frozen=True)
class Opened:
    """A config's data, found but not read: what is known of it before any training.

    train: the images left for training.
    """

    name: str
    class_names: tuple[str, ...]
    channels: int
    fingerprint: str
    train: int
    found: input_pipeline.Dataset | sources.ImageSet
    parts: dict[str, Any]  # Examples or Sources

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of the data: what was not read, which part is the test."""
        return self.found.notes if isinstance(self.found, sources.ImageSet) else ()


def open_data(d: ml_collections.ConfigDict, on_read: Progress | None = None) -> Opened:
    """Finds the data that `config.data` names and holds out a part of the training images.

    The held-out part is the same for every run on this data: it does not depend on `seed`.
    on_read: of what has to be read to know the data by its contents, in any unit.

    Raises:
        DataError: the data can't be found, or no such part can be held out.
    """
    known = (*input_pipeline.names(), *sources.STREAMED, "tfds:NAME")
    found: input_pipeline.Dataset | sources.ImageSet
    if d.name not in known and not sources.is_streamed(d.name):
        near = difflib.get_close_matches(d.name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown data.name={d.name!r}; {hint}known: {', '.join(known)}")
    if not d.path and d.name in (*sources.STREAMED, "npz"):
        what = "FILE.npz" if d.name == "npz" else "FOLDER"
        raise input_pipeline.DataError(
            f"data.path is empty, and data.name={d.name!r} needs it: --set data.path={what}"
        )
    if d.split and d.name != "folder":
        raise ConfigError(
            f"data.split={d.split} is for a folder of classes, data.name=folder, and data.name is "
            f"{d.name!r}; set data.split=0"
        )
    if sources.is_streamed(d.name):
        found = sources.open_set(d.name, d.path or None, on_read, split=d.split)
        channels, labels = 3, found.train.labels
    else:
        found = input_pipeline.load(d.name, path=d.path or None)
        channels, labels = found.channels, found.train.labels
    n = len(found.train)
    rest, held = np.arange(n), np.arange(0)
    if d.holdout:
        alike = np.zeros(n, np.int32) if labels is None else labels
        rest, held = input_pipeline.split_holdout(alike, d.holdout, seed=0)
    return Opened(
        name=found.name,
        class_names=found.class_names,
        channels=channels,
        fingerprint=found.fingerprint,
        train=len(rest),
        found=found,
        parts={
            "train": found.train.take(rest),
            "holdout": found.train.take(held),
            "test": found.test,
        },
    )


def check(config: ml_collections.ConfigDict, opened: Opened) -> None:
    """Raises ConfigError or DataError where the views or batches do not suit the data."""
    d = config.data
    if isinstance(opened.found, sources.ImageSet):
        stream.check_installed()
        _stream_view(config)
        for key in ("pad", "frame", "distort"):
            _suits(d, key, 0, "small data sets that are kept on the device")
        if config.train.steps_per_dispatch > 1:
            raise ConfigError(
                f"train.steps_per_dispatch={config.train.steps_per_dispatch} is for small data "
                "sets that are kept on the device: encoded images come batch by batch"
            )
        if d.normalise in ("gcn_zca", "lenet"):
            raise ConfigError(
                f"data.normalise={d.normalise!r} is for small images kept on the device"
            )
        if d.mirror and not opened.found.mirror_ok:
            raise ConfigError(f"data.mirror=True does not suit {opened.name!r}")
    else:
        _resident_view(config).check(opened.found)
        for key, usual in (("view", "scale"), ("colour", "none"), ("exif", False)):
            _suits(d, key, usual, "encoded images, such as data.name=folder")
        if d.normalise == "fixed":
            raise ConfigError("data.normalise='fixed' is for encoded images; use per_channel")
        if d.normalise == "lenet" and d.divide_by_std and not inherits(config):
            raise ConfigError(
                "data.divide_by_std=True does nothing with data.normalise='lenet', which has a "
                "divisor of its own; set it to False"
            )
        height, width = opened.found.train.images.shape[1:3]
        framed = width + 2 * d.frame, height + 2 * d.frame
        if d.frame and framed != (d.image_size, d.image_size):
            raise ConfigError(
                f"data.frame={d.frame} makes images of {width}x{height} pixels "
                f"{framed[0]}x{framed[1]}, and data.image_size is {d.image_size}; a frame is for "
                "images that are not scaled"
            )
    check_batch(config, opened.train, opened.name)


def _suits(d: ml_collections.ConfigDict, key: str, usual: Any, whom: str) -> None:
    if d[key] != usual:
        raise ConfigError(
            f"data.{key}={d[key]!r} is for {whom}, and data.name is {d.name!r}; "
            f"set data.{key}={usual!r}"
        )


def _resident_view(config: ml_collections.ConfigDict) -> resident.TrainView:
    """The training view of a config whose data lies on the device."""
    d = config.data
    return resident.TrainView(
        crop=d.image_size,
        S=tuple(d.S) if d.S[1] else None,
        pad=d.pad,
        mirror=d.mirror,
        distort=d.distort,
    )


def _stream_view(config: ml_collections.ConfigDict) -> crops.TrainView:
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


def test_sizes(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What a test needs to know of the views of a config, as arguments of `TestData`."""
    crop, square = config.data.image_size, config.data.view == "square"
    return {"crop": crop, "Q": config.test.Q or crop, "square": square}


def prepare(
    config: ml_collections.ConfigDict,
    *,
    opened: Opened | None = None,
    kept: Path | None = None,
    seen: Preprocessing | None = None,
    on_progress: Progress = lambda done, total: None,
    on_bad: Callable[[str], None] = lambda reason: None,
) -> Data:
    """Finds the data, holds a part out, and takes its means from what is left for training.

    opened: what `open_data` found, where that was called already. kept: file in which the
    statistics of a streamed set are kept, or found if it is there. seen: how the run that seeds
    this one sees images (`preprocessing.inherited`), where the config inherits that. on_progress:
    of the images that statistics are taken from; on_bad: hears of each unusable file once.

    Raises:
        DataError: the data can't be read, or the view does not suit it.
        ConfigError: more images a batch than there are, or `seen` does not suit them.
    """
    if inherits(config) != (seen is not None):
        raise ValueError(f"seeding.normalise={config.seeding.normalise!r}, and seen={seen!r}")
    opened = opened or open_data(config.data)
    check(config, opened)
    if isinstance(opened.found, sources.ImageSet):
        return _streamed(config, opened, kept, seen, on_progress, _once(on_bad))
    return _resident(config, opened, kept, seen)


def stored_size(config: ml_collections.ConfigDict, opened: Opened) -> tuple[int, int] | None:
    """Height and width of the images, with their frames, of a set that lies on the device; None of
    encoded images."""
    if isinstance(opened.found, sources.ImageSet):
        return None
    height, width = opened.found.train.images.shape[1:3]
    return height + 2 * config.data.frame, width + 2 * config.data.frame


def expected(
    config: ml_collections.ConfigDict, channels: int, stored: tuple[int, int] | None
) -> Preprocessing:
    """How a config that inherits nothing will see images, with zeros for what is to be fitted.

    channels, stored: see `inherited`.
    """
    d = config.data
    square: np.ndarray | None = None
    shape: tuple[int, ...] = () if d.normalise in ("none", "lenet") else (channels,)
    if d.normalise in ("per_pixel", "gcn_zca"):
        shape = (*(stored or (d.image_size, d.image_size)), channels)
        view = None if stored else _stream_view(config)
        if isinstance(view, crops.SquareView):
            square = np.zeros((view.S, view.S, channels), np.float32)
    normalise = resident.Normalisation(np.zeros(shape, np.float32), np.ones((), np.float32))
    if d.normalise == "gcn_zca":
        normalise = dataclasses.replace(normalise, whitening=np.zeros((), np.float32))
    return Preprocessing(normalise, (), channels, square_mean=square)


def inherited(
    seen: Preprocessing,
    config: ml_collections.ConfigDict,
    channels: int,
    stored: tuple[int, int] | None,
) -> resident.Normalisation:
    """How a config's images are normalised as the run that seeds it did.

    channels, stored: of the config's images; stored height and width of a set that lies on the
    device, None of encoded images. A mean image of stored images, or a whitening, belongs to
    images of its size. Of encoded images it is the view's, or the central square's of view
    `square`.

    Raises:
        ConfigError: it belongs to images of other channels or another size.
    """
    own, d = seen.normalise, config.data
    mend = (
        "; seeding.normalise=fit takes mean and deviation from the images of this run instead, "
        "as data.normalise says"
    )
    if channels != seen.channels and (np.ndim(own.mean) or np.ndim(own.std)):
        raise ConfigError(
            f"{config.seeding.run} normalised images of channels: {seen.channels}, and those of "
            f"{d.name!r} have {channels}{mend}"
        )
    if np.ndim(own.mean) < 3:
        return own
    means, sides = [own.mean], [(d.image_size, d.image_size)]
    view = None if stored else _stream_view(config)
    if stored is not None:
        sides = [stored]
    elif own.whitening is not None:
        raise ConfigError(
            f"{config.seeding.run} whitened small images, and those of {d.name!r} are encoded{mend}"
        )
    elif isinstance(view, crops.SquareView):
        means, sides = [seen.square_mean, *means], [(view.S, view.S), *sides]
    for mean in means:
        if mean is not None and mean.shape[:2] in sides:
            return dataclasses.replace(own, mean=mean)
    height, width = own.mean.shape[:2]
    needed = " or ".join(f"{h}x{w}" for h, w in sides)
    raise ConfigError(
        f"{config.seeding.run} took a mean image of {height}x{width} pixels off its images, and "
        f"those of {d.name!r} need one of {needed}{mend}"
    )


def _once(on_bad: Callable[[str], None]) -> Callable[[str], None]:
    """The same file may be met by several streams."""
    told: set[str] = set()

    def tell(reason: str) -> None:
        if reason not in told:
            told.add(reason)
            on_bad(reason)

    return tell


def _resident(
    config: ml_collections.ConfigDict,
    opened: Opened,
    kept: Path | None,
    seen: Preprocessing | None,
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
    if config.data.frame:
        images = image_files.framed(images, config.data.frame)
    if seen is None:
        normalise = _fitted(config.data, images[: len(parts["train"])], kept)
    else:
        normalise = inherited(seen, config, opened.channels, images.shape[1:3])
    return Resident(
        name=opened.name,
        class_names=opened.class_names,
        channels=opened.channels,
        fingerprint=opened.fingerprint,
        mirror_ok=opened.found.mirror_ok,
        counts={name: len(place) for name, place in places.items()},
        normalise=normalise,
        constants=(images, labels, normalise.whitening),
        labels=labels,
        parts=places,
        train_view=_resident_view(config),
        frame=config.data.frame,
        **test_sizes(config),
    )


def _fitted(
    d: ml_collections.ConfigDict, images: np.ndarray, kept: Path | None
) -> resident.Normalisation:
    """Whitening takes time to fit, and is not the same to the bit everywhere: it is kept."""
    kept = kept if d.normalise == "gcn_zca" else None
    found = _read(kept, "mean", "std", "whitening")
    if found is not None:
        return resident.Normalisation(**found)
    normalise = resident.Normalisation.fit(images, d.normalise, divide_by_std=d.divide_by_std)
    _keep(kept, **vars(normalise))
    return normalise


def _read(file: Path | None, *names: str) -> dict[str, np.ndarray] | None:
    """Arrays that `_keep` wrote; None where they are not there, or not whole."""
    if file is None:
        return None
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as found:
            return {name: found[name] for name in names}
    except (OSError, EOFError, KeyError, ValueError, BadZipFile, zlib.error):
        return None


def _keep(file: Path | None, **arrays: Any) -> None:
    """Writes the file whole or not at all."""
    if file is not None:
        part = file.with_name(f"part-{file.name}")
        np.savez(part, **arrays)
        part.replace(file)


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


# ------------------------------------------------------------- statistics of a streamed set


def _streamed(
    config: ml_collections.ConfigDict,
    opened: Opened,
    kept: Path | None,
    seen: Preprocessing | None,
    on_progress: Progress,
    on_bad: Callable[[str], None],
) -> Streamed:
    d = config.data
    train = _stream_view(config)
    bad = stream.BadImages(d.bad, d.max_bad)
    side = train.S if isinstance(train, crops.SquareView) else d.image_size
    parts = dict(opened.parts)
    if d.exif:
        parts = {name: sources.Upright(part) for name, part in parts.items()}
    statistics = None
    fitted = d.normalise in ("per_pixel", "per_channel") or d.divide_by_std
    if (fitted and seen is None) or d.colour in FITTED:
        statistics = _Statistics.read(kept)
        if statistics is None:
            statistics = _Statistics.fit(parts["train"], side, d, bad, on_progress, on_bad)
            statistics.keep(kept)
    if seen is None:
        normalise = _normalisation(d, statistics)
    else:
        normalise = inherited(seen, config, opened.channels, None)
    shift = colour.constants(d.colour, 3, statistics.pixels if statistics else None)
    # As many training images as there are test images tell the training error well enough.
    some = np.linspace(0, len(parts["train"]) - 1, min(len(parts["train"]), len(parts["test"])))
    parts["seen"] = parts["train"].take(np.unique(some.astype(np.int64)))
    return Streamed(
        name=opened.name,
        class_names=opened.class_names,
        channels=opened.channels,
        fingerprint=opened.fingerprint,
        mirror_ok=opened.found.mirror_ok,
        counts={name: len(part) for name, part in parts.items()},
        normalise=normalise,
        constants={"mean": normalise.mean, "std": normalise.std, "colour": shift},
        sources=parts,
        train_view=train,
        exif=d.exif,
        mirror=d.mirror,
        colour=d.colour,
        threads=d.threads,
        bad=bad,
        on_bad=on_bad,
        kernel="bilinear" if seen is None else seen.resize,
        **test_sizes(config),
    )


@dataclass(frozen=True)
class _Statistics:
    """Of central squares of training images: their mean, (side, side, C) float64, 0 to 255, and
    mean and covariance of their pixels."""

    mean_HWC: np.ndarray
    pixels: colour.Statistics

    @classmethod
    def fit(
        cls,
        source: sources.Source,
        side: int,
        d: ml_collections.ConfigDict,
        bad: stream.BadImages,
        on_progress: Progress,
        on_bad: Callable[[str], None],
    ) -> "_Statistics":
        """From `data.statistics_images` of the images (0: all), spread evenly over them."""
        n = min(d.statistics_images or len(source), len(source))
        chosen = source.take(np.unique(np.linspace(0, len(source) - 1, n).astype(np.int64)))
        view, total = crops.CentreView(crop=side, Q=side), np.zeros((side, side, 3))
        batches = stream.eval_stream(
            chosen, view, batch=64, threads=d.threads or None, bad=bad, on_bad=on_bad
        )

        def images() -> Iterator[np.ndarray]:
            done = 0
            for found in batches:
                for image in found.views[found.mask, 0]:
                    np.add(total, image, out=total)
                    yield image
                done += int(found.mask.sum())
                on_progress(done, len(chosen))

        with contextlib.closing(batches):
            pixels = colour.Statistics.fit(images())
        return cls(total / pixels.n, pixels)

    @classmethod
    def read(cls, file: Path | None) -> "_Statistics | None":
        """What `keep` wrote; None where it is not there, or not whole."""
        found = _read(file, "mean_HWC", "mean_C", "covariance", "images")
        if found is None:
            return None
        n = int(found["images"])
        return cls(found["mean_HWC"], colour.Statistics(found["mean_C"], found["covariance"], n))

    def keep(self, file: Path | None) -> None:
        """Writes it whole or not at all."""
        p = self.pixels
        _keep(file, mean_HWC=self.mean_HWC, mean_C=p.mean_C, covariance=p.covariance, images=p.n)


def _normalisation(
    d: ml_collections.ConfigDict, statistics: _Statistics | None
) -> resident.Normalisation:
    mean = np.asarray(d.mean if d.normalise == "fixed" else 0.0)
    std = 1.0
    if statistics is not None:
        pixels = statistics.pixels
        mean = {"per_pixel": statistics.mean_HWC, "per_channel": pixels.mean_C}.get(
            d.normalise, mean
        )
        if d.divide_by_std:
            square = np.mean(np.diag(pixels.covariance) + pixels.mean_C**2)
            left = square - np.mean(mean * (2 * statistics.mean_HWC - mean))
            if left < 1e-6:
                raise input_pipeline.DataError(
                    "all training images are the same: their standard deviation is 0"
                )
            std = float(np.sqrt(left))
    return resident.Normalisation(np.asarray(mean, np.float32), np.asarray(std, np.float32))

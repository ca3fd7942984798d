"""Batches of views from encoded images through tf.data: read, decode, resample, batch.

    stream = Stream(source, ScaleView(crop=224, S=(256, 512)), seed=0, batch=256)
    for batch in stream:          # endless; `stream.position` batches have been given
        batch.images              # (256, 224, 224, 3) uint8

A view depends on (seed, epoch, index of the example) and nothing else, and which examples a batch
holds on (seed, its number): not on threads, on the number of hosts or on where the stream was
started. Several stages run at once: while the device trains on batch n, batch n+1 is on its way to
it, n+2 is decoded and scaled, and the files of n+3 are read.
"""

import atexit
import contextlib
import importlib.util
import math
import os
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from input_pipeline import crops, jpeg, order, viewer
from input_pipeline.boxes import Boxes, in_view, shown
from input_pipeline.crops import Placement
from input_pipeline.errors import INSTALL, DataError
from input_pipeline.image_files import Resize
from input_pipeline.sources import Source
from input_pipeline.viewer import ABOUT, INDEX, KIND, LABEL, UNUSABLE, WINDOW, Content, Viewer

AHEAD = 2  # batches that wait for the device


@dataclass(frozen=True)
class Batch:
    """Views of b training examples, on the host.

    images: (b, crop, crop, C) uint8. labels, indices, epochs: (b,) int32. offsets: (b, 2) int32,
    row and column of the view in the scaled image (in AlexNet's square). boxes: (b, 4) float32,
    where the object is in the view, unmirrored, in its pixels; NaN where it shows none enough.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    epochs: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray | None = None


@dataclass(frozen=True)
class TestBatch:
    """Views of b test examples: views (b, V, h, w, C) uint8, labels and indices (b,) int32.

    mask: (b,) bool, False where there is no example: after the last one, or an unusable file.
    enlarged: (b,) bool, whether the image was smaller than what is shown of it. sizes: of whole
    images, (b, 2) int32 height and width: each is in the top left corner, with zeros beyond.
    stored: (b, 2) int32, height and width of the images as they are stored.
    """

    __test__ = False  # not a pytest class

    views: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    mask: np.ndarray
    enlarged: np.ndarray
    sizes: np.ndarray | None = None
    stored: np.ndarray | None = None


@dataclass(frozen=True)
class Decoding:
    """How encoded images are read, whatever is shown of them.

    channels: 1 or 3. threads: that decode and scale; 0: one a core. kernel: with which images are
    scaled. policy: of files that can't be read, `skip` names each once and goes on (in training the
    next usable example by index, with its own label, takes its place; in a test it is left out),
    `raise` ends with a DataError. most: the share of the examples, rounded up, that may be skipped.
    on_bad: hears of each unusable file, once.
    """

    channels: int = 3
    threads: int = 0
    kernel: Resize = "bilinear"
    policy: Literal["skip", "raise"] = "skip"
    most: float = 0.001
    on_bad: Callable[[str], None] = field(default=lambda reason: None, repr=False)

    def check(self, reasons: dict[int, str], n: int) -> None:
        """Raises DataError if these unusable examples are too many of n."""
        if len(reasons) <= (0 if self.policy == "raise" else math.ceil(self.most * n)):
            return
        listed = "".join(f"\n  {reason}" for reason in list(reasons.values())[:5])
        allowed = "none is allowed" if self.policy == "raise" else f"{self.most:g} is allowed"
        raise DataError(
            f"{len(reasons)} of {n} examples can't be used, and of these {allowed} "
            f"(`cnn-depth data check` finds them all):{listed}"
        )


USUAL = Decoding()


def cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_installed() -> None:
    """Raises DataError where the packages that read encoded images are missing."""
    needed = ("tensorflow", "cykooz_resizer")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(
            f"reading encoded images needs {' and '.join(missing)}: {INSTALL.format('jpeg')}"
        )


# --------------------------------------------------------------------------------- training


def training_viewer(
    source: Source, view: crops.TrainView, seed: int, how: Decoding = USUAL
) -> Viewer:
    """What a stream of this seed shows of each example in each epoch: `.one(index, epoch)`."""

    def places(height: int, width: int, index: int, epoch: int) -> list[Placement]:
        return [view.place(height, width, order.words(seed, epoch, index, view.WORDS))]

    blank = (1, view.crop, view.crop, how.channels)
    return Viewer(source, places, view.BEYOND_BOX, blank, how.kernel)


class Stream(Iterator[Batch], contextlib.AbstractContextManager["Stream"]):
    """The endless stream of training batches from batch number `position` on.

    batch: of all hosts together; shard (h, H) gives the h-th of H equal parts of each. boxes: of
    the images, where batches are to say where the objects are; `part`: how much of a box a view has
    to show. Raises DataError, when iterated, where more files are unusable than `how` allows.
    """

    def __init__(
        self,
        source: Source,
        view: crops.TrainView,
        *,
        seed: int,
        batch: int,
        position: int = 0,
        shard: tuple[int, int] = (0, 1),
        how: Decoding = USUAL,
        boxes: Boxes | None = None,
        part: float = 0.0,
    ):
        host, hosts = shard
        if batch < 1 or batch % hosts or not 0 <= host < hosts or not len(source):
            raise ValueError(f"Stream(batch={batch}, shard={shard}) of {len(source)} examples")
        self.position = position
        self._failed: DataError | None = None
        self._seed, self._view, self._boxes, self._part = seed, view, boxes, part
        n, b = len(source), batch // hosts

        def locate(number: int) -> tuple[int, int]:
            step, place = divmod(number, b)
            epoch, at = divmod(step * batch + host * b + place, n)
            return int(order.permutation(seed, epoch, n)[at]), epoch

        shown = training_viewer(source, view, seed, how)
        self._batches = Batches(shown, locate, b, range(position * b, 2**62), how)

    def __next__(self) -> Batch:
        if self._failed is not None:
            raise self._failed
        try:
            return self._next()
        except DataError as error:
            self._failed = error
            self.close()
            raise

    def _next(self) -> Batch:
        views, told = next(self._batches)
        unusable = np.flatnonzero(told[:, KIND] == UNUSABLE)
        if len(unusable):
            views, told = views.copy(), told.copy()
            for place in unusable:
                index, epoch = told[place, [INDEX, viewer.EPOCH]].tolist()
                views[place], told[place] = self._substitute(index, epoch)
        self.position += 1
        return Batch(
            images=views[:, 0],
            labels=told[:, LABEL],
            indices=told[:, INDEX],
            epochs=told[:, viewer.EPOCH],
            offsets=told[:, viewer.OFFSET],
            boxes=None if self._boxes is None else np.stack([*map(self._box, told)]),
        )

    def _box(self, told: np.ndarray) -> np.ndarray:
        """Where the object is in a view, (4,) float32: of an image's boxes one that is shown."""
        assert self._boxes is not None
        view, index = self._view, int(told[INDEX])
        height, width = told[viewer.STORED].tolist()
        *words, last = order.words(self._seed, int(told[viewer.EPOCH]), index, view.WORDS + 1)
        place = view.place(height, width, words)
        seen = in_view(self._boxes.inside(index, height, width), place)
        share = shown(seen, place.size)
        fit = seen[(share >= self._part) & (share > 0)]
        found = fit[last % len(fit)] if len(fit) else np.full(4, np.nan)
        return found.astype(np.float32)

    def _substitute(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The next usable example after an unusable one. Depends on what the files hold alone."""
        shown = self._batches.viewer
        n = len(shown.source)
        for step in range(1, n + 1):
            self._batches.name_bad()
            views, told = shown.one((index + step) % n, epoch)
            if told[KIND] != UNUSABLE:
                return views, told
        raise DataError("no example can be used")

    @property
    def bottleneck(self) -> str:
        """Which stage holds the stream up: `read` the files, or `augment` (decode and scale)."""
        return self._batches.bottleneck

    def close(self) -> None:
        """Ends the threads; batches that are under way are dropped."""
        self._batches.close()

    def __exit__(self, *exception: object) -> None:
        self.close()


# ----------------------------------------------------------------------------------- testing


def eval_stream(
    source: Source, view: crops.TestView, *, batch: int, how: Decoding = USUAL
) -> Generator[TestBatch]:
    """Every example once, in order. Raises DataError as `Stream` does.

    The views of a batch are (b, V, h, w, C); with a `WholeView`, whose shape differs from image to
    image, a batch has one image (`whole_images` has more). Mirrors are left to the device.
    """
    n = len(source)
    b, side = (1, 1) if isinstance(view, crops.WholeView) else (batch, view.crop)

    def locate(number: int) -> tuple[int, int] | None:
        return (number, 0) if number < n else None

    def places(height: int, width: int, index: int, epoch: int) -> list[Placement]:
        return view.places(height, width)

    blank = (len(view.places(512, 512)), side, side, how.channels)
    shown = Viewer(source, places, True, blank, how.kernel, whole=True)
    batches = Batches(shown, locate, b, range(-(-n // b) * b), how)
    try:
        for views, told in batches:
            batches.name_bad()
            usable = told[:, KIND] != UNUSABLE
            enlarged: np.ndarray = told[:, viewer.ENLARGED].astype(bool)
            stored = told[:, viewer.STORED]
            yield TestBatch(views, told[:, LABEL], told[:, INDEX], usable, enlarged, stored=stored)
    finally:
        batches.close()


# ------------------------------------------------------------------------------ the pipeline

LARGE = 2**20  # pixels of a window: larger ones are not decoded in groups, which takes memory
GROUP = 16  # at most: examples that go through a stage together, as calling Python costs


# Threads that still read when the interpreter ends would wait for it, and it for them.
_OPEN: "weakref.WeakSet[Batches]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for batches in list(_OPEN):
        batches.close()


class Batches(Iterator[tuple[np.ndarray, np.ndarray]]):
    """(views (b, V, h, w, C) uint8, told (b, TOLD) int32) of examples by number, in order.

    locate: number -> (index, epoch), or None for a place without example. ragged: views differ in
    size, and a batch has all their pixels in one array, (sum of V h w C,); b is at most GROUP.
    """

    def __init__(
        self,
        viewer: Viewer,
        locate: Callable[[int], tuple[int, int] | None],
        b: int,
        numbers: range,
        how: Decoding,
        ragged: bool = False,
    ):
        self.viewer, self.locate, self.b, self.numbers = viewer, locate, b, numbers
        self.how, self.ragged = how, ragged
        threads = how.threads or cores()
        self.threads, self.readers = threads + 1, max(2, threads // 2)  # one waits for Python
        self._iterator: Iterator[Any] | None = None
        # Whether nothing is decoded in groups, as of a set that is kept decoded.
        self._alone = len(viewer.source) > 0 and viewer.source.pixels(0) is not None
        # Contents that are shown one by one, by number: large or odd ones, and decoded pixels.
        self._kept: dict[int, Content] = {}
        self.group = max(size for size in range(1, GROUP + 1) if b % size == 0)
        self._read = self._shown = 0  # groups, roughly: several threads count
        self._waiting = 0.0  # of these, read and not yet shown, of late
        _OPEN.add(self)
        self._named = 0

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        tf = jpeg.tensorflow()
        if not self.numbers:
            raise StopIteration
        if self._iterator is None:
            self._iterator = self._dataset().as_numpy_iterator()
        self._waiting += 0.3 * (self._read - self._shown - self._waiting)
        try:
            views, told = next(self._iterator)
        except tf.errors.InvalidArgumentError:
            # A file that TensorFlow can't decode, not said which: this batch one by one, and the
            # rest from anew.
            self.close()
            views, told = self._one_by_one()
        self.numbers = self.numbers[self.b :]
        return views, told.astype(np.int32)

    @property
    def bottleneck(self) -> str:
        """`augment` where examples that were read wait to be decoded and scaled, else `read`."""
        return "augment" if self._waiting > self.threads / 2 else "read"

    def name_bad(self) -> None:
        """Names the files newly found unusable. Raises DataError when these are too many."""
        reasons = self.viewer.reasons.copy()
        for reason in list(reasons.values())[self._named :]:
            self.how.on_bad(reason)
        self._named = len(reasons)
        self.how.check(reasons, len(self.viewer.source))

    def close(self) -> None:
        self._iterator = None
        self._kept.clear()
        self._kept = {}
        self._read = self._shown = 0

    def _one_by_one(self) -> tuple[np.ndarray, np.ndarray]:
        return self._joined([self._one(number) for number in self.numbers[: self.b]])

    def _one(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        located = self.locate(number)
        return self._nothing() if located is None else self.viewer.one(*located)

    def _nothing(self) -> tuple[np.ndarray, np.ndarray]:
        return self.viewer.show_odd(b"", np.zeros(ABOUT))

    def _joined(self, found: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        told = np.stack([told for _, told in found])
        if self.ragged:
            return np.concatenate([views.ravel() for views, _ in found]), told
        return np.stack([views for views, _ in found]), told

    def _fetch(
        self, kept: dict[int, Content], start: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a group: what is decoded together, its windows, and all rows; `kept` gets the rest."""
        contents: Any = np.full(self.group, jpeg.empty(), object)
        windows: np.ndarray = np.tile(np.array([0, 0, 1, 1], np.int32), (self.group, 1))
        abouts: np.ndarray = np.zeros((self.group, ABOUT + 1))
        for place, number in enumerate(range(int(start), int(start) + self.group)):
            located: tuple[int, int] | None = self.locate(number)
            content: Content = b""
            if located is not None:
                content, abouts[place, :-1] = self.viewer.fetch(*located)
            abouts[place, -1] = number
            if self._in_group(abouts[place]):
                contents[place], windows[place] = content, abouts[place, WINDOW]
            else:
                kept[number] = content
        self._read += 1
        return contents, windows, abouts

    def _show(
        self, kept: dict[int, Content], abouts: np.ndarray, *images: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The views of a group, of decoded windows and of what was `kept`."""
        self._shown += 1
        found = []
        for place, about in enumerate(abouts):
            if self._in_group(about):
                found.append(self.viewer.show(images[place], about))
                continue
            content = kept.pop(int(about[-1]), None)
            if content is None:  # closed meanwhile: nobody looks at this
                found.append(self._nothing())
            else:
                found.append(self.viewer.finish(content, about))
        return self._joined(found)

    def _in_group(self, about: np.ndarray) -> bool:
        """Whether an example is decoded in its group."""
        if self._alone or about[KIND] != viewer.PLAIN:
            return False
        rows, columns = about[WINDOW][2:]
        return bool(rows * columns <= LARGE)

    def _dataset(self) -> Any:
        """The numbers from here on -> examples read -> decoded and shown -> batches."""
        tf = jpeg.tensorflow()
        kept, group = self._kept, self.group
        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False
        options.threading.max_intra_op_parallelism = 1
        options.threading.private_threadpool_size = self.threads + self.readers

        def read_group(start: Any) -> Any:
            fetch, kinds = partial(self._fetch, kept), [tf.string, tf.int32, tf.float64]
            contents, windows, abouts = tf.numpy_function(fetch, [start], kinds)
            return (
                tf.ensure_shape(contents, [group]),
                tf.ensure_shape(windows, [group, 4]),
                tf.ensure_shape(abouts, [group, ABOUT + 1]),
            )

        def show_group(contents: Any, windows: Any, abouts: Any) -> Any:
            images: list[Any] = []
            for place in range(0 if self._alone else group):
                with tf.control_dependencies(images[-1:]):  # one after the other, in one thread
                    images.append(self.viewer.decode(contents[place], windows[place]))
            show = partial(self._show, kept)
            return tf.numpy_function(show, [abouts, *images], [tf.uint8, tf.float64])

        def join(views: Any, told: Any) -> Any:
            shape = tf.shape(views)[1:]  # of the one group
            if not self.ragged:
                shape = tf.concat([[self.b], shape[1:]], axis=0)
            return tf.reshape(views, shape), tf.reshape(told, [self.b, viewer.TOLD])

        found = tf.data.Dataset.range(self.numbers.start, self.numbers.stop, group)
        found = found.map(read_group, num_parallel_calls=self.readers)
        found = found.map(show_group, num_parallel_calls=self.threads)
        return found.batch(self.b // group).map(join).prefetch(AHEAD).with_options(options)

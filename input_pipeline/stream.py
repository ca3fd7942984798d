"""Batches of views from encoded images through tf.data: read, decode, resample, batch.

    stream = Stream(source, ScaleView(crop=224, S=(256, 512)), seed=0, batch=256)
    for batch in stream:          # endless; `stream.position` counts the batches so far
        batch.images              # (256, 224, 224, 3) uint8

A view depends only on (seed, epoch, index of the example), and the examples of a batch only on the
seed and its number. Threads, the number of hosts and the start of the stream do not matter. Several
stages run at once: while the device trains on batch n, batch n+1 is on its way to it, n+2 is
decoded and scaled, and the files of n+3 are read.
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
from input_pipeline.boxes import Boxes, in_view, shown_share
from input_pipeline.crops import Placement
from input_pipeline.errors import INSTALL, DataError
from input_pipeline.image_files import Resize
from input_pipeline.sources import Source
from input_pipeline.viewer import INDEX, KIND, LABEL, SPEC_SIZE, UNUSABLE, WINDOW, Content, Viewer

AHEAD = 2  # batches that wait for the device


@dataclass(frozen=True)
class Batch:
    """Views of b training examples, on the host."""

    images: np.ndarray  # (b, crop, crop, C) uint8
    labels: np.ndarray  # (b,) int32
    indices: np.ndarray  # (b,) int32
    epochs: np.ndarray  # (b,) int32
    offsets: np.ndarray  # (b, 2) int32: row, column in the scaled image (in AlexNet's square)
    # (b, 4) float32: an object in the view's pixels, unmirrored; NaN where too little is shown
    boxes: np.ndarray | None = None


@dataclass(frozen=True)
class TestBatch:
    """Views of b test examples, on the host."""

    __test__ = False  # not a pytest class

    views: np.ndarray  # (b, V, h, w, C) uint8
    labels: np.ndarray  # (b,) int32
    indices: np.ndarray  # (b,) int32
    mask: np.ndarray  # (b,) bool: False after the last example, or for an unusable file
    enlarged: np.ndarray  # (b,) bool: whether the image was smaller than what is shown of it
    # (b, 2) int32: heights and widths of whole images, which lie top left, with zeros beyond
    sizes: np.ndarray | None = None
    stored: np.ndarray | None = None  # (b, 2) int32: heights and widths of the stored images


@dataclass(frozen=True)
class Decoding:
    """How encoded images are read, whatever is shown of them."""

    channels: int = 3  # 1 or 3
    threads: int = 0  # that decode and scale; 0: one a core
    kernel: Resize = "bilinear"  # for scaling
    # What to do with an unusable file. `skip` reports it once and goes on: in training the next
    # usable example by index, with its own label, takes its place; a test leaves it out. `raise`
    # ends with a DataError.
    policy: Literal["skip", "raise"] = "skip"
    max_unusable: float = 0.001  # share of the examples, rounded up, that may be skipped
    # Called once with the reason of each unusable file.
    on_bad: Callable[[str], None] = field(default=lambda reason: None, repr=False)

    def check(self, reasons: dict[int, str], n: int) -> None:
        """Raises DataError if these unusable examples are too many of n."""
        if len(reasons) <= (0 if self.policy == "raise" else math.ceil(self.max_unusable * n)):
            return
        lines = "".join(f"\n  {reason}" for reason in list(reasons.values())[:5])
        allowed = (
            "none is allowed" if self.policy == "raise" else f"{self.max_unusable:g} is allowed"
        )
        raise DataError(
            f"{len(reasons)} of {n} examples can't be used, and of these {allowed} "
            f"(`cnn-depth data check` finds them all):{lines}"
        )


DEFAULT_DECODING = Decoding()


def cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_installed() -> None:
    """Raises DataError where the packages that read encoded images are missing."""
    modules = ("tensorflow", "cykooz_resizer")
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(
            f"reading encoded images needs {' and '.join(missing)}: {INSTALL.format('jpeg')}"
        )


# --------------------------------------------------------------------------------- training


def training_viewer(
    source: Source, view: crops.TrainView, seed: int, how: Decoding = DEFAULT_DECODING
) -> Viewer:
    """The views that a stream of this seed shows, by `.example(index, epoch)`."""

    def places(height: int, width: int, index: int, epoch: int) -> list[Placement]:
        return [view.place(height, width, order.words(seed, epoch, index, view.WORDS))]

    blank = (1, view.crop, view.crop, how.channels)
    return Viewer(source, places, view.BEYOND_BOX, blank, how.kernel)


class Stream(Iterator[Batch], contextlib.AbstractContextManager["Stream"]):
    """The endless stream of training batches from batch number `position` on.

    batch: its size, of all hosts together; shard (h, H) is the h-th of H equal parts of each.
    boxes: of the images, if batches shall have boxes; part: the share of a box that a view has to
    show. When iterated, raises DataError where more files are unusable than `how` allows.
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
        how: Decoding = DEFAULT_DECODING,
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
            step, k = divmod(number, b)
            epoch, i = divmod(step * batch + host * b + k, n)
            return int(order.permutation(seed, epoch, n)[i]), epoch

        example_viewer = training_viewer(source, view, seed, how)
        self._batches = Batches(example_viewer, locate, b, range(position * b, 2**62), how)

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
        views, meta = next(self._batches)
        unusable = np.flatnonzero(meta[:, KIND] == UNUSABLE)
        if len(unusable):
            views, meta = views.copy(), meta.copy()
            for k in unusable:
                index, epoch = meta[k, [INDEX, viewer.EPOCH]].tolist()
                views[k], meta[k] = self._substitute(index, epoch)
        self.position += 1
        return Batch(
            images=views[:, 0],
            labels=meta[:, LABEL],
            indices=meta[:, INDEX],
            epochs=meta[:, viewer.EPOCH],
            offsets=meta[:, viewer.OFFSET],
            boxes=None if self._boxes is None else np.stack([*map(self._box, meta)]),
        )

    def _box(self, meta: np.ndarray) -> np.ndarray:
        """A box in the view's pixels, (4,) float32, drawn from those it shows; NaN without any."""
        assert self._boxes is not None
        view, index = self._view, int(meta[INDEX])
        height, width = meta[viewer.STORED].tolist()
        *words, choice = order.words(self._seed, int(meta[viewer.EPOCH]), index, view.WORDS + 1)
        place = view.place(height, width, words)
        boxes = in_view(self._boxes.inside(index, height, width), place)
        share = shown_share(boxes, place.size)
        visible = boxes[(share >= self._part) & (share > 0)]
        box = visible[choice % len(visible)] if len(visible) else np.full(4, np.nan)
        return box.astype(np.float32)

    def _substitute(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The next usable example after an unusable one, which depends on the files alone."""
        example_viewer = self._batches.viewer
        n = len(example_viewer.source)
        for step in range(1, n + 1):
            self._batches.report_bad()
            views, meta = example_viewer.example((index + step) % n, epoch)
            if meta[KIND] != UNUSABLE:
                return views, meta
        raise DataError("no example can be used")

    @property
    def bottleneck(self) -> str:
        """The stage that holds the stream up: `read` the files, or `augment` (decode and scale)."""
        return self._batches.bottleneck

    def close(self) -> None:
        """Ends the threads, and drops batches that are not ready."""
        self._batches.close()

    def __exit__(self, *exception: object) -> None:
        self.close()


# ----------------------------------------------------------------------------------- testing


def eval_stream(
    source: Source, view: crops.TestView, *, batch: int, how: Decoding = DEFAULT_DECODING
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
    example_viewer = Viewer(source, places, True, blank, how.kernel, whole=True)
    batches = Batches(example_viewer, locate, b, range(-(-n // b) * b), how)
    try:
        for views, meta in batches:
            batches.report_bad()
            usable = meta[:, KIND] != UNUSABLE
            enlarged: np.ndarray = meta[:, viewer.ENLARGED].astype(bool)
            stored = meta[:, viewer.STORED]
            yield TestBatch(views, meta[:, LABEL], meta[:, INDEX], usable, enlarged, stored=stored)
    finally:
        batches.close()


# ------------------------------------------------------------------------------ the pipeline

LARGE = 2**20  # pixels: larger windows are decoded one by one, as groups of them take memory
GROUP = 16  # at most so many examples go through a stage together, as calls of Python cost time


# Closed at exit: threads that still read would wait for the interpreter's end, and it for them.
_OPEN: "weakref.WeakSet[Batches]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for batches in list(_OPEN):
        batches.close()


class Batches(Iterator[tuple[np.ndarray, np.ndarray]]):
    """(views (b, V, h, w, C) uint8, meta (b, META_SIZE) int32) of examples by number, in order.

    locate: number -> (index, epoch), or None for a number without example. ragged: views differ in
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
        # Whether nothing is decoded in groups, as the set is kept decoded.
        self._ungrouped = len(viewer.source) > 0 and viewer.source.pixels(0) is not None
        # By number, contents that are shown one by one: large or odd ones, and decoded pixels.
        self._singles: dict[int, Content] = {}
        self.group = max(size for size in range(1, GROUP + 1) if b % size == 0)
        self._groups_read = self._groups_shown = 0  # roughly, as several threads count
        self._waiting = 0.0  # a running mean of the groups that are read and not yet shown
        _OPEN.add(self)
        self._reported = 0

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        tf = jpeg.tensorflow()
        if not self.numbers:
            raise StopIteration
        if self._iterator is None:
            self._iterator = self._dataset().as_numpy_iterator()
        self._waiting += 0.3 * (self._groups_read - self._groups_shown - self._waiting)
        try:
            views, meta = next(self._iterator)
        except tf.errors.InvalidArgumentError:
            # TensorFlow can't decode a file, and does not say which. This batch is decoded one by
            # one, and a new iterator starts after it.
            self.close()
            views, meta = self._stacked([*map(self._example, self.numbers[: self.b])])
        self.numbers = self.numbers[self.b :]
        return views, meta.astype(np.int32)

    @property
    def bottleneck(self) -> str:
        """`augment` where examples that were read wait to be decoded and scaled, else `read`."""
        return "augment" if self._waiting > self.threads / 2 else "read"

    def report_bad(self) -> None:
        """Reports each unusable file once. Raises DataError if there are too many."""
        reasons = self.viewer.reasons.copy()
        for reason in list(reasons.values())[self._reported :]:
            self.how.on_bad(reason)
        self._reported = len(reasons)
        self.how.check(reasons, len(self.viewer.source))

    def close(self) -> None:
        self._iterator = None
        self._singles.clear()
        self._singles = {}
        self._groups_read = self._groups_shown = 0

    def _example(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        example = self.locate(number)
        return self._blank() if example is None else self.viewer.example(*example)

    def _blank(self) -> tuple[np.ndarray, np.ndarray]:
        return self.viewer.show_odd(b"", np.zeros(SPEC_SIZE))

    def _stacked(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        meta = np.stack([meta for _, meta in pairs])
        if self.ragged:
            return np.concatenate([views.ravel() for views, _ in pairs]), meta
        return np.stack([views for views, _ in pairs]), meta

    def _fetch(
        self, singles: dict[int, Content], start: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(contents that are decoded together, their windows, specs) of a group.

        Other contents go into `singles`.
        """
        contents: Any = np.full(self.group, jpeg.empty(), object)
        windows: np.ndarray = np.tile(np.array([0, 0, 1, 1], np.int32), (self.group, 1))
        specs: np.ndarray = np.zeros((self.group, SPEC_SIZE + 1))
        for k, number in enumerate(range(int(start), int(start) + self.group)):
            example: tuple[int, int] | None = self.locate(number)
            content: Content = b""
            if example is not None:
                content, specs[k, :-1] = self.viewer.fetch(*example)
            specs[k, -1] = number
            if self._in_group(specs[k]):
                contents[k], windows[k] = content, specs[k, WINDOW]
            else:
                singles[number] = content
        self._groups_read += 1
        return contents, windows, specs

    def _show(
        self, singles: dict[int, Content], specs: np.ndarray, *images: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(views, meta) of a group, from decoded windows and from `singles`."""
        self._groups_shown += 1
        examples = []
        for k, spec in enumerate(specs):
            if self._in_group(spec):
                examples.append(self.viewer.show(images[k], spec))
                continue
            content = singles.pop(int(spec[-1]), None)
            if content is None:  # closed meanwhile, so that nobody uses this
                examples.append(self._blank())
            else:
                examples.append(self.viewer.finish(content, spec))
        return self._stacked(examples)

    def _in_group(self, spec: np.ndarray) -> bool:
        """Whether an example is decoded in its group."""
        if self._ungrouped or spec[KIND] != viewer.PLAIN:
            return False
        rows, columns = spec[WINDOW][2:]
        return bool(rows * columns <= LARGE)

    def _dataset(self) -> Any:
        """The tf.data pipeline: numbers -> contents -> decoded and shown views -> batches."""
        tf = jpeg.tensorflow()
        singles, group = self._singles, self.group
        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False
        options.threading.max_intra_op_parallelism = 1
        options.threading.private_threadpool_size = self.threads + self.readers

        def read_group(start: Any) -> Any:
            fetch, kinds = partial(self._fetch, singles), [tf.string, tf.int32, tf.float64]
            contents, windows, specs = tf.numpy_function(fetch, [start], kinds)
            return (
                tf.ensure_shape(contents, [group]),
                tf.ensure_shape(windows, [group, 4]),
                tf.ensure_shape(specs, [group, SPEC_SIZE + 1]),
            )

        def show_group(contents: Any, windows: Any, specs: Any) -> Any:
            images: list[Any] = []
            for k in range(0 if self._ungrouped else group):
                with tf.control_dependencies(images[-1:]):  # one after the other, in one thread
                    images.append(self.viewer.decode(contents[k], windows[k]))
            show = partial(self._show, singles)
            return tf.numpy_function(show, [specs, *images], [tf.uint8, tf.float64])

        def join(views: Any, meta: Any) -> Any:
            shape = tf.shape(views)[1:]  # of the one group
            if not self.ragged:
                shape = tf.concat([[self.b], shape[1:]], axis=0)
            return tf.reshape(views, shape), tf.reshape(meta, [self.b, viewer.META_SIZE])

        dataset = tf.data.Dataset.range(self.numbers.start, self.numbers.stop, group)
        dataset = dataset.map(read_group, num_parallel_calls=self.readers)
        dataset = dataset.map(show_group, num_parallel_calls=self.threads)
        return dataset.batch(self.b // group).map(join).prefetch(AHEAD).with_options(options)

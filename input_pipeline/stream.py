"""Batches of views from encoded images through tf.data: read, decode, resample, batch.

    stream = Stream(source, ScaleView(crop=224, S=(256, 512)), seed=0, batch=256)
    for batch in stream:          # endless; `stream.position` batches have been given
        batch.images              # (256, 224, 224, 3) uint8

A view depends on (seed, epoch, index of the example) and nothing else, and which examples a batch
holds on (seed, its number): not on threads, on the number of hosts or on where the stream was
started. Several stages run at once: while the device trains on batch n, batch n+1 is on its way to
it, n+2 is decoded and scaled, and the files of n+3 are read.
"""

import importlib.util
import math
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from input_pipeline import crops, image_files, jpeg, order
from input_pipeline.crops import Box, Placement
from input_pipeline.errors import DataError
from input_pipeline.sources import Source

AHEAD = 2  # batches that wait for the device


@dataclass(frozen=True)
class Batch:
    """Views of b training examples, on the host.

    images: (b, crop, crop, C) uint8. labels, indices, epochs: (b,) int32. offsets: (b, 2) int32,
    row and column of the view in the scaled image (in AlexNet's square).
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    epochs: np.ndarray
    offsets: np.ndarray


@dataclass(frozen=True)
class TestBatch:
    """Views of b test examples: views (b, V, h, w, C) uint8, labels and indices (b,) int32.

    mask: (b,) bool, False where there is no example: after the last one, or an unusable file.
    """

    __test__ = False  # not a pytest class

    views: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class BadImages:
    """What is done about files that can't be read as images.

    policy: `skip` names each once and goes on (in training the next usable example by index, with
    its own label, takes its place; in a test it is left out), `raise` ends with a DataError. most:
    the share of the examples, rounded up, that may be skipped.
    """

    policy: Literal["skip", "raise"] = "skip"
    most: float = 0.001

    def check(self, reasons: dict[int, str], n: int) -> None:
        """Raises DataError if these are too many of n examples."""
        if len(reasons) <= (0 if self.policy == "raise" else math.ceil(self.most * n)):
            return
        listed = "".join(f"\n  {reason}" for reason in list(reasons.values())[:5])
        allowed = "none is allowed" if self.policy == "raise" else f"{self.most:g} is allowed"
        raise DataError(
            f"{len(reasons)} of {n} examples can't be used, and of these {allowed} "
            f"(`cnn-depth data check` finds them all):{listed}"
        )


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
            f"reading encoded images needs {' and '.join(missing)}: pip install 'cnn-depth[jpeg]'"
        )


# --------------------------------------------------------------------------------- training


class Stream:
    """The endless stream of training batches from batch number `position` on.

    batch: of all hosts together; shard (h, H) gives the h-th of H equal parts of each. threads:
    that decode and scale (default: one a core). on_bad: hears of each unusable file, once.

    Raises, when iterated:
        DataError: more files are unusable than `bad` allows.
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
        channels: int = 3,
        threads: int | None = None,
        bad: BadImages | None = None,
        on_bad: Callable[[str], None] = lambda reason: None,
    ):
        host, hosts = shard
        if batch < 1 or batch % hosts or not 0 <= host < hosts or not len(source):
            raise ValueError(f"Stream(batch={batch}, shard={shard}) of {len(source)} examples")
        self.position, self.bad, self._on_bad = position, bad or BadImages(), on_bad
        n, b = len(source), batch // hosts

        def locate(number: int) -> tuple[int, int]:
            step, place = divmod(number, b)
            epoch, at = divmod(step * batch + host * b + place, n)
            return int(order.permutation(seed, epoch, n)[at]), epoch

        def places(height: int, width: int, index: int, epoch: int) -> list[Placement]:
            return [view.place(height, width, order.words(seed, epoch, index, view.WORDS))]

        self._examples = _Examples(
            source=source,
            locate=locate,
            places=places,
            beyond=view.BEYOND_BOX,
            blank=(1, view.crop, view.crop, channels),
            threads=threads or cores(),
        )
        self._batches = _Batches(self._examples, b, range(position * b, 2**62))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        views, about = next(self._batches)
        unusable = np.flatnonzero(about[:, KIND] == UNUSABLE)
        if len(unusable):
            views, about = views.copy(), about.copy()
            for place in unusable:
                views[place], about[place] = self._substitute(*about[place, INDEX : EPOCH + 1])
        self.position += 1
        columns: np.ndarray = about.astype(np.int32)
        return Batch(
            images=views[:, 0],
            labels=columns[:, LABEL],
            indices=columns[:, INDEX],
            epochs=columns[:, EPOCH],
            offsets=columns[:, OFFSET],
        )

    def _substitute(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The next usable example after an unusable one. Depends on what the files hold alone."""
        n = len(self._examples.source)
        for step in range(1, n + 1):
            self._examples.tell(self.bad, self._on_bad)
            views, about = self._examples.one(int(index + step) % n, int(epoch))
            if about[KIND] != UNUSABLE:
                return views, about
        raise DataError("no example can be used")

    @property
    def bottleneck(self) -> str:
        """Which stage holds the stream up: `read` the files, or `augment` (decode and scale)."""
        return self._examples.bottleneck

    def close(self) -> None:
        """Ends the threads; batches that are under way are dropped."""
        self._batches.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


# ----------------------------------------------------------------------------------- testing


def eval_stream(
    source: Source,
    view: crops.TestView,
    *,
    batch: int,
    shard: tuple[int, int] = (0, 1),
    channels: int = 3,
    threads: int | None = None,
    bad: BadImages | None = None,
    on_bad: Callable[[str], None] = lambda reason: None,
) -> Generator[TestBatch]:
    """Every example once, in order; the arguments are as for `Stream`.

    The views of a batch are (b, V, h, w, C); with a `WholeView`, whose shape differs from image to
    image, a batch has one image. Mirrors are left to the device.
    """
    host, hosts = shard
    whole = isinstance(view, crops.WholeView)
    b = 1 if whole else -(-batch // hosts)
    n, bad = len(source), bad or BadImages()
    steps = -(-n // (b * hosts))

    def locate(number: int) -> tuple[int, int] | None:
        step, place = divmod(number, b)
        index = (step * hosts + host) * b + place
        return (index, 0) if index < n else None

    side = 1 if isinstance(view, crops.WholeView) else view.crop
    examples = _Examples(
        source=source,
        locate=locate,
        places=lambda height, width, index, epoch: view.places(height, width),
        beyond=True,
        blank=(len(view.places(512, 512)), side, side, channels),
        threads=threads or cores(),
    )
    batches = _Batches(examples, b, range(steps * b))
    try:
        for views, about in batches:
            examples.tell(bad, on_bad)
            columns: np.ndarray = about.astype(np.int32)
            mask = about[:, KIND] != UNUSABLE
            yield TestBatch(views, columns[:, LABEL], columns[:, INDEX], mask)
    finally:
        batches.close()


# ------------------------------------------------------------------------------ the pipeline

# What travels with an example: whole numbers in this order. Its kind, label, index and epoch, the
# view's offset and size, and the window to decode.
KIND, LABEL, INDEX, EPOCH = range(4)
OFFSET, SIZE, WINDOW = slice(4, 6), slice(6, 8), slice(8, 12)
ABOUT = 12
# Kinds: no example, or not to be used; a JPEG with a plain header; all else.
UNUSABLE, PLAIN, ODD = range(3)


@dataclass(eq=False)
class _Examples:
    """From the number of an example to its views (V, h, w, C) uint8, in two stages.

    locate: number -> (index, epoch), or None for a place without example. places: (height, width,
    index, epoch) -> what is shown. blank: the views' shape.
    """

    source: Source
    locate: Callable[[int], tuple[int, int] | None]
    places: Callable[[int, int, int, int], Sequence[Placement]]
    beyond: bool
    blank: tuple[int, int, int, int]
    threads: int

    def __post_init__(self) -> None:
        self.readers = max(4, 2 * self.threads)
        self.reasons: dict[int, str] = {}  # of the unusable ones
        self._told = 0
        self._odd: set[int] = set()  # their headers are plain, but TensorFlow can't decode them
        self._counts = [0, 0]  # examples that have left either stage, roughly

    def tell(self, bad: BadImages, on_bad: Callable[[str], None]) -> None:
        """Names the files newly found unusable. Raises DataError when these are too many."""
        reasons = dict(self.reasons)
        for reason in list(reasons.values())[self._told :]:
            on_bad(reason)
        self._told = len(reasons)
        bad.check(reasons, len(self.source))

    @property
    def bottleneck(self) -> str:
        read, shown = self._counts
        return "augment" if read - shown > self.readers // 2 else "read"

    def fetch(self, number: int) -> tuple[bytes, np.ndarray, np.ndarray]:
        """First stage: content, what travels with it, and the box (4,) float64 in the window."""
        located = self.locate(int(number))
        if located is None:
            return b"", np.zeros(ABOUT, np.int64), np.zeros(4)
        return self._fetch(*located)

    def _fetch(self, index: int, epoch: int) -> tuple[bytes, np.ndarray, np.ndarray]:
        about: np.ndarray = np.zeros(ABOUT, np.int64)
        box: np.ndarray = np.zeros(4)
        about[INDEX], about[EPOCH] = index, epoch
        self._counts[0] += 1
        if index in self.reasons:
            return b"", about, box
        try:
            content, about[LABEL] = self.source.read(index)
        except (OSError, DataError) as error:
            self.reasons[index] = f"{self.source.where(index)}: {error}"
            return b"", about, box
        header = None if index in self._odd else jpeg.header(content)
        about[KIND] = ODD if header is None else PLAIN
        if header is None:
            return content, about, box
        places = self.places(header.height, header.width, index, epoch)
        if len(places) > 1:
            about[WINDOW] = 0, 0, header.height, header.width
            return content, about, box
        view = places[0]
        window = jpeg.window(view.box, view.size, header.height, header.width, beyond=self.beyond)
        about[OFFSET], about[SIZE], about[WINDOW] = view.offset, view.size, window
        box[:] = view.box
        box[:2] -= window[:2]
        return content, about, box

    def show(
        self, image: np.ndarray, about: np.ndarray, box: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Second stage, after decoding: of the window one view, or of the whole image all."""
        self._counts[1] += 1
        if self.blank[0] > 1:
            size = image.shape[0], image.shape[1]
            places = self.places(*size, int(about[INDEX]), int(about[EPOCH]))
            return np.stack(jpeg.views(image, places)), about
        height, width = about[SIZE].tolist()
        shown = jpeg.resample(image, Box(*box.tolist()), (height, width), beyond=self.beyond)
        return shown[None], about

    def show_odd(self, content: bytes, about: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Second stage for all but plain JPEGs."""
        self._counts[1] += 1
        about = about.copy()
        index = int(about[INDEX])
        if about[KIND] != UNUSABLE:
            try:
                where = self.source.where(index)
                image = image_files.read_image(where, self.blank[3], content)
            except DataError as error:
                self.reasons[index] = str(error)
                about[KIND] = UNUSABLE
        if about[KIND] == UNUSABLE:
            return np.zeros(self.blank, np.uint8), about
        size = image.shape[0], image.shape[1]
        places = self.places(*size, index, int(about[EPOCH]))
        about[OFFSET] = places[0].offset
        if len(places) > 1:
            return np.stack(jpeg.views(image, places)), about
        shown = jpeg.resample(image, places[0].box, places[0].size, beyond=self.beyond)
        return shown[None], about

    def one(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Both stages for one example, now, whatever its file holds."""
        tf = jpeg.tensorflow()
        content, about, box = self._fetch(index, epoch)
        if about[KIND] == PLAIN:
            try:
                return self.show(self.decode(content, about[WINDOW]).numpy(), about, box)
            except tf.errors.InvalidArgumentError:
                self._odd.add(index)
                about[KIND] = ODD
        return self.show_odd(content, about)

    def nothing(self) -> tuple[np.ndarray, np.ndarray]:
        """What stands in a place without example."""
        return np.zeros(self.blank, np.uint8), np.zeros(ABOUT, np.int64)

    def decode(self, content: Any, window: Any) -> Any:
        """A window of a JPEG, in a graph or now. Raises tf.errors.InvalidArgumentError."""
        tf = jpeg.tensorflow()
        return tf.image.decode_and_crop_jpeg(
            content,
            tf.cast(window, tf.int32),
            channels=self.blank[3],
            dct_method="INTEGER_ACCURATE",  # equals Pillow's, and costs no more than the fast one
        )


class _Batches:
    """(views (b, V, h, w, C) uint8, about (b, ABOUT) int64) of examples by number, in order."""

    def __init__(self, examples: _Examples, b: int, numbers: range):
        self.examples, self.b, self.numbers = examples, b, numbers
        self._iterator: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        tf = jpeg.tensorflow()
        if not self.numbers:
            raise StopIteration
        if self._iterator is None:
            self._iterator = self._dataset().as_numpy_iterator()
        try:
            views, about = next(self._iterator)
        except tf.errors.InvalidArgumentError:
            # A file that TensorFlow can't decode, not said which: this batch one by one, and the
            # rest from anew.
            self.close()
            views, about = self._one_by_one()
        self.numbers = self.numbers[self.b :]
        return views, about

    def _one_by_one(self) -> tuple[np.ndarray, np.ndarray]:
        found = []
        for number in self.numbers[: self.b]:
            located = self.examples.locate(number)
            found.append(
                self.examples.one(*located) if located is not None else self.examples.nothing()
            )
        return np.stack([views for views, _ in found]), np.stack([about for _, about in found])

    def close(self) -> None:
        self._iterator = None

    def _dataset(self) -> Any:
        tf = jpeg.tensorflow()
        examples = self.examples
        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False
        options.threading.max_intra_op_parallelism = 1
        options.threading.private_threadpool_size = examples.threads + examples.readers

        def fetched(number: Any) -> Any:
            return tf.numpy_function(examples.fetch, [number], [tf.string, tf.int64, tf.float64])

        def viewed(content: Any, about: Any, box: Any) -> Any:
            about.set_shape([ABOUT])
            kinds = [tf.uint8, tf.int64]

            def plain() -> Any:
                image = examples.decode(content, about[WINDOW])
                return tf.numpy_function(examples.show, [image, about, box], kinds)

            def odd() -> Any:
                return tf.numpy_function(examples.show_odd, [content, about], kinds)

            return tf.cond(about[KIND] == PLAIN, plain, odd)

        found = tf.data.Dataset.range(self.numbers.start, self.numbers.stop)
        found = found.map(fetched, num_parallel_calls=examples.readers)
        found = found.map(viewed, num_parallel_calls=examples.threads)
        return found.batch(self.b).prefetch(AHEAD).with_options(options)

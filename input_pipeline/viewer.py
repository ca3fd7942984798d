"""From an encoded image to the views of it that are shown, whatever the file holds.

Two stages run in different threads: `fetch` reads the file and decides what to decode, `show` turns
the decoded window into views. In between TensorFlow decodes a JPEG's window; other files go through
`show_odd`. Of an image that is kept decoded, `fetch` reads the pixels that would be decoded, and
`show` gives the same views of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from input_pipeline import image_files, jpeg
from input_pipeline.crops import Box, Placement
from input_pipeline.errors import DataError
from input_pipeline.image_files import Resize
from input_pipeline.sources import Source
from input_pipeline.sources.source import retried

# An example's `spec`, a row of float64. Its first META_SIZE entries, `meta`, are handed on with the
# views: kind, label, index and epoch, the view's offset, whether the image was enlarged, and its
# stored height and width. Then come the view's size, the window to decode, the box in the window.
KIND, LABEL, INDEX, EPOCH, OFFSET = 0, 1, 2, 3, slice(4, 6)
ENLARGED = 6
STORED = slice(7, 9)
META_SIZE = 9
SIZE, WINDOW, BOX = slice(9, 11), slice(11, 15), slice(15, 19)
SPEC_SIZE = 19
# Kinds: no example, or an unusable one; a JPEG with a plain header; any other encoded image; an
# image that is kept decoded.
UNUSABLE, PLAIN, ODD, DECODED = range(4)
T = TypeVar("T")
Content = bytes | np.ndarray  # of a file, or the decoded window (h, w, 3) uint8


@dataclass(eq=False)
class Viewer:
    """Views (V, h, w, C) uint8 of the examples of a source, by index and epoch.

    `reasons` collects why examples are unusable, by index. Raises DataError for grey views of a set
    that is kept decoded, as grey values are a JPEG's own.
    """

    source: Source
    # (height, width, index, epoch) -> the views of an image of this size
    places: Callable[[int, int, int, int], Sequence[Placement]]
    beyond: bool  # whether pixels beyond a view are mixed in at its edge
    blank: tuple[int, int, int, int]  # shape of zeros that replace the views of unusable images
    kernel: Resize = "bilinear"  # for scaling
    # Whether images are decoded and scaled whole and then cut, as in tests. In training only the
    # window that a view needs is decoded.
    whole: bool = False

    def __post_init__(self) -> None:
        self.reasons: dict[int, str] = {}
        self._odd: set[int] = set()  # their headers are plain, but TensorFlow can't decode them
        if self.blank[3] != 3 and len(self.source) and self.source.pixels(0) is not None:
            raise DataError(
                f"{self.source.where(0)}: RGB pixels, of which grey views can't be made; expected "
                "the encoded images"
            )

    def fetch(self, index: int, epoch: int) -> tuple[Content, np.ndarray]:
        """The file's content or pixels, and the example's spec."""
        pixels = self.source.pixels(index)
        if pixels is None:
            return self.fetch_file(index, epoch)
        spec = _spec(index, epoch)
        window = self._place(spec, pixels.height, pixels.width, plain=pixels.plain)
        decoded = self._attempt(index, partial(retried, partial(pixels.window, window)))
        if decoded is None:
            return b"", spec
        assert self.source.labels is not None
        spec[KIND], spec[LABEL] = DECODED, self.source.labels[index]
        return decoded, spec

    def fetch_file(self, index: int, epoch: int) -> tuple[bytes, np.ndarray]:
        """As `fetch`, but the file's content even where the image is kept decoded."""
        spec = _spec(index, epoch)
        loaded = self._attempt(index, partial(self.source.read_again, index))
        if loaded is None:
            return b"", spec
        content, spec[LABEL] = loaded
        header = None if index in self._odd else jpeg.header(content)
        if header is None:
            spec[KIND] = ODD
        else:
            spec[KIND] = PLAIN
            self._place(spec, header.height, header.width, plain=True)
        return content, spec

    def _attempt(self, index: int, read: Callable[[], T]) -> T | None:
        """The return value of `read`, or None for an unusable image."""
        if index in self.reasons:
            return None
        try:
            return read()
        except OSError as error:
            self.reasons[index] = f"{self.source.where(index)}: {error.strerror or error}"
        except DataError as error:
            self.reasons[index] = str(error)
        return None

    def _place(self, spec: np.ndarray, height: int, width: int, *, plain: bool) -> Box:
        """Returns the window to decode; writes it, and a training view's placement, into `spec`.

        plain: whether it is a JPEG of which a window is decoded; other files are decoded whole.
        """
        window = Box(0, 0, height, width)
        spec[STORED] = height, width
        if self.whole:
            spec[WINDOW] = window
            return window
        (view,) = self.places(height, width, int(spec[INDEX]), int(spec[EPOCH]))
        if plain:
            window = jpeg.window(
                view.box, view.size, height, width, beyond=self.beyond, kernel=self.kernel
            )
        top, left, rows, columns = view.box
        box = (top - window.top, left - window.left, rows, columns)
        spec[OFFSET] = view.offset
        spec[SIZE.start :] = (*view.size, *window, *box)
        return window

    def decode(self, content: Any, window: Any) -> Any:
        """A window of a JPEG, in a graph or eagerly. Raises tf.errors.InvalidArgumentError."""
        tf = jpeg.tensorflow()
        return tf.image.decode_and_crop_jpeg(
            content,
            tf.cast(window, tf.int32),
            channels=self.blank[3],
            dct_method="INTEGER_ACCURATE",  # equals Pillow's, and costs no more than the fast one
        )

    def show(self, image: np.ndarray, spec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(views, meta) of the decoded window (h, w, C)."""
        if self.whole:
            return self._views(image, spec), spec[:META_SIZE]
        rows, columns = spec[SIZE].astype(int).tolist()
        return self._resample(image, Box(*spec[BOX].tolist()), (rows, columns)), spec[:META_SIZE]

    def show_odd(self, content: bytes, spec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(views, meta) of any image but plain JPEGs, from its file's content."""
        meta = spec[:META_SIZE].copy()
        index = int(meta[INDEX])
        if meta[KIND] != UNUSABLE:
            try:
                where = self.source.where(index)
                image = image_files.read_image(where, self.blank[3], content)
                return self._views(image, meta), meta
            except DataError as error:
                self.reasons[index] = str(error)
        meta[KIND] = UNUSABLE
        return np.zeros(self.blank, np.uint8), meta

    def _views(self, image: np.ndarray, meta: np.ndarray) -> np.ndarray:
        """The views of a whole image; writes the first one's offset and more into `meta`."""
        size = image.shape[0], image.shape[1]
        places = self.places(*size, int(meta[INDEX]), int(meta[EPOCH]))
        meta[OFFSET], meta[STORED] = places[0].offset, size
        meta[ENLARGED] = min(size) < min(places[0].scaled)
        if self.whole:
            return np.stack(jpeg.views(image, places, self.kernel))
        return self._resample(image, places[0].box, places[0].size)

    def _resample(self, image: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
        """The one training view (1, h, w, C)."""
        return jpeg.resample(image, box, size, beyond=self.beyond, kernel=self.kernel)[None]

    def example(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(views, meta) of one example: both stages at once."""
        return self.finish(*self.fetch(index, epoch))

    def check(self, content: bytes, spec: np.ndarray) -> tuple[int, int]:
        """(height, width) of the image that `fetch` read, decoded to its end and dropped.

        (0, 0), and the kind UNUSABLE, where neither way decodes it. TensorFlow takes 700 MB and is
        tried second.
        """
        index = int(spec[INDEX])
        if spec[KIND] != UNUSABLE:
            try:
                return image_files.image_size(self.source.where(index), content)
            except DataError as error:
                reason = str(error)
            if spec[KIND] == PLAIN:
                try:
                    height, width, _ = self.decode(content, spec[WINDOW]).shape
                except jpeg.tensorflow().errors.InvalidArgumentError:
                    pass
                else:
                    return int(height), int(width)
            self.reasons[index] = reason
            spec[KIND] = UNUSABLE
        return 0, 0

    def finish(self, content: Content, spec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(views, meta) of any example that `fetch` read: decodes and shows it at once."""
        if isinstance(content, np.ndarray):
            return self.show(content, spec)
        if spec[KIND] == PLAIN:
            try:
                return self.show(self.decode(content, spec[WINDOW]).numpy(), spec)
            except jpeg.tensorflow().errors.InvalidArgumentError:
                self._odd.add(int(spec[INDEX]))
                spec[KIND] = ODD
        return self.show_odd(content, spec)


def _spec(index: int, epoch: int) -> np.ndarray:
    spec: np.ndarray = np.zeros(SPEC_SIZE)
    spec[INDEX], spec[EPOCH] = index, epoch
    return spec


def as_stored(source: Source) -> Viewer:
    """Views of whole images as stored: `.example(index, 0)` is ((1, H, W, 3) uint8, meta)."""

    def places(height: int, width: int, index: int, epoch: int) -> list[Placement]:
        size = (height, width)
        return [Placement(Box(0, 0, height, width), size, size, (0, 0))]

    return Viewer(source, places, beyond=False, blank=(1, 1, 1, 3))

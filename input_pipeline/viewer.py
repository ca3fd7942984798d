"""From an encoded image to the views of it that are shown, whatever the file holds.

Two stages, which run in different threads: `fetch` reads the file and decides what to decode,
`show` makes of the decoded window what a network sees. In between TensorFlow decodes a JPEG's
window; all else goes through `show_odd`. Of an image that is kept decoded, `fetch` reads the pixels
that would be decoded, and `show` gives the same views of them.
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
from input_pipeline.sources.source import again

# What travels with an example, one row of float64: its kind, label, index and epoch, the view's
# offset, whether the image was enlarged and its stored height and width, which are told in the end;
# the view's size, the window to decode, the box in the window.
KIND, LABEL, INDEX, EPOCH, OFFSET = 0, 1, 2, 3, slice(4, 6)
ENLARGED = 6
STORED = slice(7, 9)
TOLD = 9
SIZE, WINDOW, BOX = slice(9, 11), slice(11, 15), slice(15, 19)
ABOUT = 19
# Kinds: no example, or not to be used; a JPEG with a plain header; all else that is encoded; what
# is kept decoded.
UNUSABLE, PLAIN, ODD, DECODED = range(4)
T = TypeVar("T")
Content = bytes | np.ndarray  # of a file, or the decoded window (h, w, 3) uint8


@dataclass(eq=False)
class Viewer:
    """Views (V, h, w, C) uint8 of the examples of a source, by index and epoch.

    places: (height, width, index, epoch) -> what is shown of an image of this size. beyond: whether
    pixels beyond a view are mixed in at its edge. blank: shape of what stands in for views that
    can't be had. kernel: with which images are scaled. whole: images are decoded and scaled whole
    and then cut, as test images are; otherwise only the window that a view needs is.

    `reasons` grows by what is found unusable: index -> why. Raises DataError for grey views of a
    set that is kept decoded: grey values are a JPEG's own.
    """

    source: Source
    places: Callable[[int, int, int, int], Sequence[Placement]]
    beyond: bool
    blank: tuple[int, int, int, int]
    kernel: Resize = "bilinear"
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
        """The file's content or pixels, and the row that travels with it."""
        pixels = self.source.pixels(index)
        if pixels is None:
            return self.fetch_file(index, epoch)
        about = _about(index, epoch)
        window = self._place(about, pixels.height, pixels.width, plain=pixels.plain)
        shown = self._tried(index, partial(again, partial(pixels.window, window)))
        if shown is None:
            return b"", about
        assert self.source.labels is not None
        about[KIND], about[LABEL] = DECODED, self.source.labels[index]
        return shown, about

    def fetch_file(self, index: int, epoch: int) -> tuple[bytes, np.ndarray]:
        """`fetch`, but of the file, even where it holds pixels."""
        about = _about(index, epoch)
        read = self._tried(index, partial(self.source.read_again, index))
        if read is None:
            return b"", about
        content, about[LABEL] = read
        header = None if index in self._odd else jpeg.header(content)
        if header is None:
            about[KIND] = ODD
        else:
            about[KIND] = PLAIN
            self._place(about, header.height, header.width, plain=True)
        return content, about

    def _tried(self, index: int, read: Callable[[], T]) -> T | None:
        """What `read` returns; None of an unusable image."""
        if index in self.reasons:
            return None
        try:
            return read()
        except OSError as error:
            self.reasons[index] = f"{self.source.where(index)}: {error.strerror or error}"
        except DataError as error:
            self.reasons[index] = str(error)
        return None

    def _place(self, about: np.ndarray, height: int, width: int, *, plain: bool) -> Box:
        """The window to decode; writes it down, and of a training view all else.

        plain: whether it is a JPEG of which a window is decoded; all else is decoded whole.
        """
        window = Box(0, 0, height, width)
        about[STORED] = height, width
        if self.whole:
            about[WINDOW] = window
            return window
        (view,) = self.places(height, width, int(about[INDEX]), int(about[EPOCH]))
        if plain:
            window = jpeg.window(
                view.box, view.size, height, width, beyond=self.beyond, kernel=self.kernel
            )
        top, left, rows, columns = view.box
        box = (top - window.top, left - window.left, rows, columns)
        about[OFFSET] = view.offset
        about[SIZE.start :] = (*view.size, *window, *box)
        return window

    def decode(self, content: Any, window: Any) -> Any:
        """A window of a JPEG, in a graph or now. Raises tf.errors.InvalidArgumentError."""
        tf = jpeg.tensorflow()
        return tf.image.decode_and_crop_jpeg(
            content,
            tf.cast(window, tf.int32),
            channels=self.blank[3],
            dct_method="INTEGER_ACCURATE",  # equals Pillow's, and costs no more than the fast one
        )

    def show(self, image: np.ndarray, about: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(views, what is told of them (TOLD,)) of the decoded window (h, w, C)."""
        if self.whole:
            return self._views(image, about), about[:TOLD]
        rows, columns = about[SIZE].astype(int).tolist()
        return self._resample(image, Box(*about[BOX].tolist()), (rows, columns)), about[:TOLD]

    def show_odd(self, content: bytes, about: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same of all but plain JPEGs."""
        told = about[:TOLD].copy()
        index = int(told[INDEX])
        if told[KIND] != UNUSABLE:
            try:
                where = self.source.where(index)
                image = image_files.read_image(where, self.blank[3], content)
                return self._views(image, told), told
            except DataError as error:
                self.reasons[index] = str(error)
        told[KIND] = UNUSABLE
        return np.zeros(self.blank, np.uint8), told

    def _views(self, image: np.ndarray, told: np.ndarray) -> np.ndarray:
        """Of a whole image; writes down the first one's offset, and whether it was enlarged."""
        size = image.shape[0], image.shape[1]
        places = self.places(*size, int(told[INDEX]), int(told[EPOCH]))
        told[OFFSET], told[STORED] = places[0].offset, size
        told[ENLARGED] = min(size) < min(places[0].scaled)
        if self.whole:
            return np.stack(jpeg.views(image, places, self.kernel))
        return self._resample(image, places[0].box, places[0].size)

    def _resample(self, image: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
        """The one training view (1, h, w, C)."""
        return jpeg.resample(image, box, size, beyond=self.beyond, kernel=self.kernel)[None]

    def one(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Both stages for one example, now."""
        return self.finish(*self.fetch(index, epoch))

    def check(self, content: bytes, about: np.ndarray) -> tuple[int, int]:
        """(height, width) of the image that `fetch` found, decoded to its end and dropped.

        (0, 0), and the kind UNUSABLE, where neither way decodes it. TensorFlow takes 700 MB, and is
        asked second.
        """
        index = int(about[INDEX])
        if about[KIND] != UNUSABLE:
            try:
                return image_files.image_size(self.source.where(index), content)
            except DataError as error:
                reason = str(error)
            if about[KIND] == PLAIN:
                try:
                    height, width, _ = self.decode(content, about[WINDOW]).shape
                except jpeg.tensorflow().errors.InvalidArgumentError:
                    pass
                else:
                    return int(height), int(width)
            self.reasons[index] = reason
            about[KIND] = UNUSABLE
        return 0, 0

    def finish(self, content: Content, about: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The second stage with decoding, now; whatever `fetch` found."""
        if isinstance(content, np.ndarray):
            return self.show(content, about)
        if about[KIND] == PLAIN:
            try:
                return self.show(self.decode(content, about[WINDOW]).numpy(), about)
            except jpeg.tensorflow().errors.InvalidArgumentError:
                self._odd.add(int(about[INDEX]))
                about[KIND] = ODD
        return self.show_odd(content, about)


def _about(index: int, epoch: int) -> np.ndarray:
    about: np.ndarray = np.zeros(ABOUT)
    about[INDEX], about[EPOCH] = index, epoch
    return about


def as_stored(source: Source) -> Viewer:
    """Views of whole images as they are stored: `.one(index, 0)` is ((1, H, W, 3) uint8, told)."""

    def places(height: int, width: int, index: int, epoch: int) -> list[Placement]:
        size = (height, width)
        return [Placement(Box(0, 0, height, width), size, size, (0, 0))]

    return Viewer(source, places, beyond=False, blank=(1, 1, 1, 3))

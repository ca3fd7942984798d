"""From an encoded image to a view of it: decode only what the view needs, resample once.

The fast way is TensorFlow's, which decodes a window of a JPEG to the same bits as Pillow; it takes
files that `header` understands. Others (CMYK, PNG, 16 bits, truncated files) go the careful way:
Pillow decodes the whole image, or says what is wrong with it. For a training view only its window
is decoded, and resampled once. Test images are scaled whole and then cut.
"""

import contextlib
import functools
import io
import math
import os
import re
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from input_pipeline import image_files
from input_pipeline.crops import Box, Placement
from input_pipeline.errors import INSTALL, DataError
from input_pipeline.image_files import Resize

# Rows and columns of a window's edge that differ from the whole image's: chroma is interpolated
# between neighbours.
CHROMA_MARGIN = 2
# How many pixels a kernel reaches beyond a pixel's own place, where the image does not shrink.
_REACH: dict[Resize, float] = {"bilinear": 1.0, "bicubic": 2.0, "opencv_bilinear": 1.0}
PIXEL_LIMIT = 2**26  # larger images are left to Pillow's own check
# Markers of frames. _PLAIN: baseline, extended and progressive Huffman coding. _FRAMES has rare
# codings too: lossless, hierarchical, arithmetic.
_PROGRESSIVE, _PLAIN = 0xC2, frozenset((0xC0, 0xC1, 0xC2))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN = 0xDA
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length


@functools.cache
def tensorflow() -> Any:
    """TensorFlow, without its log messages and without the GPUs, whose memory it would take.

    Raises DataError where it is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # nothing here uses it, and it says so
    try:
        import tensorflow as tf
    except ImportError as error:
        raise DataError(f"this needs TensorFlow ({error}): {INSTALL.format('jpeg')}") from None
    with contextlib.suppress(RuntimeError):  # other code has started it already
        tf.config.set_visible_devices([], "GPU")
    return tf


@functools.cache
def empty() -> bytes:
    """The smallest JPEG: one black pixel."""
    content = io.BytesIO()
    Image.new("L", (1, 1)).save(content, "JPEG")
    return content.getvalue()


class Frame(NamedTuple):
    """The frame header of a JPEG."""

    marker: int  # of the coding
    bits: int
    height: int
    width: int
    components: int

    @property
    def plain(self) -> bool:
        """Whether TensorFlow decodes it, and Pillow would not refuse its size or shape."""
        short, long = sorted((self.height, self.width))
        kind = self.marker in _PLAIN and self.bits == 8 and self.components in (1, 3)
        return kind and 0 < short * long <= PIXEL_LIMIT and long <= image_files.LONGEST * short


def _segments(content: bytes) -> Iterator[tuple[int, int]]:
    """(marker, offset) of a JPEG's segments, up to the first bytes that are none."""
    at = 2 if content[:2] == b"\xff\xd8" else len(content)
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        else:
            yield marker, at
            at += 2 + int.from_bytes(content[at + 2 : at + 4])


def frame(content: bytes) -> Frame | None:
    """The first frame header of a JPEG; None where there is none."""
    return next((_frame(content, at) for kind, at in _segments(content) if kind in _FRAMES), None)


def _frame(content: bytes, at: int) -> Frame | None:
    if at + 10 > len(content):
        return None
    return Frame(content[at + 1], *struct.unpack_from(">BHHB", content, at + 4))


def header(content: bytes) -> Frame | None:
    """The frame of a plain JPEG: 8 bits, grey or three components, with its end. Else None."""
    sof = None  # start of frame
    for marker, at in _segments(content):
        if marker in _FRAMES:
            sof = _frame(content, at)
            if sof is None or not sof.plain:
                return None
        elif marker == _SCAN:
            is_whole = sof is not None and _ends_whole(content, at, sof.marker == _PROGRESSIVE)
            return sof if is_whole else None
    return None


_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def _ends_whole(content: bytes, at: int, progressive: bool) -> bool:
    """Whether the scan that begins at `at` runs to the end marker, which ends the file.

    In other files it may depend on the window whether a decoder meets the damage.
    """
    if not content.endswith(b"\xff\xd9"):
        return False
    if progressive:  # a decoder reads all scans before it gives the first row
        return True
    start = at + 2 + int.from_bytes(content[at + 2 : at + 4])
    # In the image 0xFF is followed by 0, or by the number of a restart.
    first = _MARKER.search(content, start)
    return first is not None and first.start() == len(content) - 2


def window(
    box: Box,
    size: tuple[int, int],
    height: int,
    width: int,
    *,
    beyond: bool,
    kernel: Resize = "bilinear",
) -> Box:
    """The window to decode, in whole pixels, to show `box` of an image of height x width at `size`.

    beyond: whether pixels beyond the box are mixed in at its edge, as far as the kernel reaches.
    """
    reach = _REACH[kernel] if beyond else 0.0
    top, bottom = _span(box.top, box.height, size[0], height, reach)
    left, right = _span(box.left, box.width, size[1], width, reach)
    return Box(top, left, bottom - top, right - left)


def _span(start: float, length: float, pixels: int, size: int, reach: float) -> tuple[int, int]:
    reach = CHROMA_MARGIN + reach * max(1.0, length / pixels)
    return max(0, math.floor(start - reach)), min(size, math.ceil(start + length + reach))


_local: Any = threading.local()


def resample(
    image: np.ndarray,
    box: Box,
    size: tuple[int, int],
    *,
    beyond: bool = True,
    kernel: Resize = "bilinear",
) -> np.ndarray:
    """`box` of an image (H, W, C) uint8 at `size` (height, width): (*size, C) uint8.

    Differs from resizing the whole image with this kernel by rounding only. beyond: whether pixels
    beyond the box are mixed in at its edge; without them its edges must be whole numbers.

    Other kernels are Pillow's. The fast resampler, cykooz.resizer 4.0.1, filters columns first and
    clips in between, Pillow rows first: where a kernel overshoots, as the bicubic does, they are
    up to 11 levels apart (findings/cykooz_bicubic_passes.sh).
    """
    if not beyond:
        rows = slice(int(box.top), int(box.top + box.height))
        image = image[rows, int(box.left) : int(box.left + box.width)]
        box = Box(0, 0, image.shape[0], image.shape[1])
    height, width, channels = image.shape
    if size == (height, width) and tuple(box) == (0, 0, *size):
        return image
    if kernel != "bilinear":
        return image_files.resample(image, box, size, kernel)
    import cykooz_resizer as cykooz

    kind = cykooz.PixelType.U8x3 if channels == 3 else cykooz.PixelType.U8
    if not hasattr(_local, "resizer"):
        _local.resizer = cykooz.Resizer()
        _local.kernel = cykooz.ResizeAlg.convolution(cykooz.FilterType.bilinear)
        _local.last = None
    if _local.last != (size, channels):  # most views are like the last one
        _local.last, _local.shown = (size, channels), cykooz.ImageData(size[1], size[0], kind)
    # Rounding may put an edge a hair beyond the image.
    top, left = max(0.0, box.top), max(0.0, box.left)
    high, wide = min(box.height, height - top), min(box.width, width - left)
    source = cykooz.ImageData(width, height, kind, image.tobytes())
    part = cykooz.CropBox(left, top, wide, high)
    _local.resizer.resize(source, _local.shown, cykooz.ResizeOptions(_local.kernel, crop_box=part))
    return np.frombuffer(_local.shown.get_buffer(), np.uint8).reshape(*size, channels)


def views(
    image: np.ndarray, places: Sequence[Placement], kernel: Resize = "bilinear"
) -> list[np.ndarray]:
    """Each test view of a whole image (H, W, C) uint8; the image is scaled once a scale."""
    height = image.shape[0]
    scaled: dict[tuple[int, int], np.ndarray] = {}
    cut_views = []
    for place in places:
        crop_at_scale = math.isclose(place.box.height * place.scaled[0], height * place.size[0])
        if not crop_at_scale:
            cut_views.append(image_files.resample(image, place.box, place.size, kernel))
            continue
        if place.scaled not in scaled:
            scaled[place.scaled] = image_files.scaled(image, place.scaled, kernel)
        (top, left), (rows, columns) = place.offset, place.size
        cut_views.append(scaled[place.scaled][top : top + rows, left : left + columns])
    return cut_views

"""Images that are kept decoded: the file that holds their pixels, and reading a window of them.

The file is a PPM: a short header, then RGB bytes, row by row from the top. So a window lies in one
stretch of bytes, and other programs read the image too.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from input_pipeline.crops import Box

_HEADER = re.compile(rb"P6\n(?:# EXIF orientation ([1-8])\n)?(\d{1,9}) (\d{1,9})\n255\n")


class Pixels(NamedTuple):
    """An image that is kept decoded."""

    height: int
    width: int
    plain: bool  # whether it was a JPEG of which training decodes a window, and not the whole
    orientation: int  # by its EXIF, 1 to 8; the pixels are not turned
    read: Callable[[int, int], bytes]  # (start row, stop row) -> bytes; raises OSError or DataError

    def window(self, box: Box) -> np.ndarray:
        """A window in whole pixels, (h, w, 3) uint8. Raises OSError or DataError."""
        top, left, height, width = map(int, box)
        rows = np.frombuffer(self.read(top, top + height), np.uint8)
        return rows.reshape(height, self.width, 3)[:, left : left + width]


def ppm(pixels: np.ndarray, orientation: int = 1) -> bytes:
    """The PPM file of an image (H, W, 3) uint8; it states an EXIF orientation other than 1."""
    height, width, _ = pixels.shape
    comment = b"# EXIF orientation %d\n" % orientation if orientation != 1 else b""
    return b"P6\n%s%d %d\n255\n%s" % (comment, width, height, pixels.tobytes())


class Header(NamedTuple):
    """The header of a PPM file."""

    height: int
    width: int
    orientation: int


def ppm_header(content: bytes) -> Header | None:
    """The header of a complete file that `ppm` made; None for other content."""
    match = _HEADER.match(content)
    if match is None:
        return None
    orientation, width, height = (int(number or 1) for number in match.groups())
    is_complete = len(content) == match.end() + 3 * height * width
    return Header(height, width, orientation) if is_complete else None

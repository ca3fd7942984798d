"""Images turned as their EXIF orientation says."""

import numpy as np

from input_pipeline import image_files
from input_pipeline.sources.source import Source


class Upright(Source):
    """The same images, those that state an EXIF orientation as they are meant to be seen.

    These are decoded, turned and handed on as PPM files, whatever reads them then.
    """

    def __init__(self, source: Source):
        self._source = source
        self.labels, self.missing, self.notes = source.labels, source.missing, source.notes

    def __len__(self) -> int:
        return len(self._source)

    def read(self, i: int) -> tuple[bytes, int]:
        content, label = self._source.read(i)
        if image_files.orientation(content) != 1:
            image = image_files.read_image(self.where(i), content=content, exif=True)
            content = _as_ppm(image)
        return content, label

    def where(self, i: int) -> str:
        return self._source.where(i)

    def size(self, i: int) -> int:
        return self._source.size(i)


def _as_ppm(image: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as a file without compression or loss."""
    height, width, _ = image.shape
    return b"P6 %d %d 255\n" % (width, height) + image.tobytes()

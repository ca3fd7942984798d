"""Decoded images for `prepare`: their pixels, their records, and the disk space that they take."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from input_pipeline import image_files, jpeg
from input_pipeline.errors import DataError
from input_pipeline.pixels import ppm
from input_pipeline.sources import Source
from input_pipeline.sources.shards import CHECKSUM, ENCODED, PLAIN, Features
from input_pipeline.sources.source import as_data_errors
from input_pipeline.stream import cores
from input_pipeline.tfrecords import checksum
from input_pipeline.threads import run_in_threads

_OVERHEAD = 256  # bytes of a record beside its image, roughly


def decode(where: str, content: bytes) -> tuple[np.ndarray, bool] | None:
    """((H, W, 3) uint8, whether it is a JPEG of which training decodes windows) of an image file.

    Pillow gives the bits of TensorFlow, which training decodes with, but which takes 700 MB and is
    tried second. None where neither decodes the file.
    """
    plain = jpeg.header(content) is not None
    try:
        return image_files.read_image(where, content=content), plain
    except DataError:
        if not plain:
            return None
    tf = jpeg.tensorflow()
    try:
        image = tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")
    except tf.errors.InvalidArgumentError:
        return None
    return image.numpy(), plain


def decoded(where: str, features: Features, record: bytes) -> Features | None:
    """The features of an image's record with its pixels; None where it can't be decoded.

    features, record: with the encoded image. The checksum of that record stays with the pixels, so
    that they are recognised as the same image.
    """
    content = features[ENCODED]
    assert isinstance(content, bytes)
    image = decode(where, content)
    if image is None:
        return None
    pixels, plain = image
    return {
        **{key: value for key, value in features.items() if key != ENCODED},
        PLAIN: int(plain),
        CHECKSUM: int.from_bytes(checksum(record), "little"),
        ENCODED: ppm(pixels, image_files.orientation(content)),
    }


def shrunk(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """(height, width) of an image once its short side is at most `short_side`."""
    short = min(height, width)
    if short_side is None or short <= short_side:
        return height, width
    return round(height * short_side / short), round(width * short_side / short)


def room(
    parts: Iterable[tuple[Source, range]],
    short_side: int | None,
    on_progress: Callable[[int, int], None],
) -> int:
    """The bytes that images take decoded, from the sizes that their files state. Raises DataError.

    parts: sources, each with the range of its images that are to be written.
    """
    images = [(source, i) for source, indices in parts for i in indices]
    sizes: np.ndarray = np.zeros(len(images), np.int64)

    def measure(k: int) -> None:
        source, i = images[k]
        with as_data_errors(source.where(i)):
            content, _ = source.read(i)
        height, width = image_files.stated_size(content)
        rows, columns = shrunk(height, width, short_side)
        sizes[k] = (3 * rows * columns or len(content)) + _OVERHEAD

    for count in run_in_threads(measure, range(len(images)), max(4, 2 * cores())):
        on_progress(count, len(images))
    return int(sizes.sum())


def check_room(out: Path, needed: int, on_room: Callable[[int, int], None]) -> None:
    """DataError where the disk of `out` has no room. Calls on_room(bytes needed, bytes free)."""
    free = shutil.disk_usage(out).free
    on_room(needed, free)
    if needed > free:
        raise DataError(
            f"{out}: decoded images of {needed / 1e9:,.1f} GB are to be written, and its disk has "
            f"{free / 1e9:,.1f} GB free; expected another disk, or a smaller short side"
        )

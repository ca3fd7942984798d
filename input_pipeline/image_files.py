"""Image files, one at a time: reading them and the central test view; ImageNet's classes.

Decoding and scaling are Pillow's, whose filters widen when they shrink an image, as in the test
views of the released torchvision and timm weights.
"""

import functools
import io
import threading
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from input_pipeline.errors import DataError

Resize = Literal["bilinear", "bicubic"]
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Pillow's other readers are left out: one of them starts a program.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
LONGEST = 50  # sides of an image: one longer than so many times the other is refused
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_FILTERS_OF_WARNINGS = threading.Lock()
# As TFDS and ILSVRC's own tools call the parts that have labels and are not trained on.
TEST_PARTS = ("val", "validation", "test")


def read_image(path: str | Path, channels: int = 3, content: bytes | None = None) -> np.ndarray:
    """The file's first image, (H, W, channels) uint8: RGB, or grey for one channel.

    CMYK, palettes and transparency are converted; EXIF rotation is ignored, as it is in ImageNet.
    content: of the file where it has been read already; `path` is its name then.
    Raises DataError, naming the file, for what is no image or too large to be one in earnest.
    """
    if channels not in (1, 3):
        raise DataError(f"{path}: images have 1 or 3 channels, not {channels}")
    try:
        with _open(path if content is None else io.BytesIO(content)) as image:
            _check_shape(path, image.size)
            pixels = np.asarray(_eight_bits(path, image).convert("L" if channels == 1 else "RGB"))
    except FileNotFoundError:
        raise DataError(f"image {path} does not exist") from None
    except UnidentifiedImageError:
        raise DataError(f"{path} is no image that Pillow can read") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is refused: {error}") from None
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise DataError(f"image {path} can't be read: {error}") from None
    return pixels.reshape(*pixels.shape[:2], channels)


def _open(file: str | Path | io.BytesIO) -> Image.Image:
    with _FILTERS_OF_WARNINGS, warnings.catch_warnings():  # these belong to all threads
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", message="Corrupt EXIF data|Truncated File Read")
        return Image.open(file, formats=FORMATS)


def _check_shape(path: str | Path, size: tuple[int, int]) -> None:
    if max(size) > LONGEST * min(size):
        raise DataError(
            f"image {path} of {size[0]}x{size[1]} pixels is refused: one side is more than "
            f"{LONGEST} times the other"
        )


def _eight_bits(path: str | Path, image: Image.Image) -> Image.Image:
    """The image with 16-bit grey levels brought to eight bits, which Pillow would cut off."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"image {path} has pixels of mode {image.mode}; expected 8 or 16 bits")
    return image


def central_view(
    image: np.ndarray, short_side: int, crop: int, resize: Resize = "bilinear"
) -> np.ndarray:
    """The central square of side `crop` of an image scaled to `short_side`, uint8 in and out.

    (H, W, C) -> (crop, crop, C). An image that already has that short side is not resampled. The
    long side is rounded down and the crop's offset to the nearest pixel (halves to even), as in
    torchvision's Resize and CenterCrop.
    """
    height, width, channels = image.shape
    short = min(height, width)
    scaled = (height * short_side // short, width * short_side // short)
    if scaled != (height, width):
        pillow = Image.fromarray(image[:, :, 0] if channels == 1 else image)
        image = np.asarray(pillow.resize(scaled[::-1], _FILTERS[resize]))
        image = image.reshape(*scaled, channels)
    top, left = (round((size - crop) / 2) for size in scaled)
    return image[top : top + crop, left : left + crop]


@functools.cache
def imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(wnids, names) of the 1000 classes of ILSVRC-2012, in label order: by wnid."""
    text = (Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="utf-8")
    pairs = [line.partition(" ") for line in text.splitlines()]
    return tuple(p[0] for p in pairs), tuple(p[2] for p in pairs)

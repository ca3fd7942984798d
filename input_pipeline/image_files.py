"""Image files, one at a time: reading them and the central test view; ImageNet's classes.

Decoding is Pillow's, and so is scaling, but for one kernel: Pillow's filters widen when they shrink
an image, as in the test views of the released torchvision and timm weights.
"""

import functools
import io
import threading
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from input_pipeline import opencv
from input_pipeline.crops import Box, CentreView
from input_pipeline.errors import DataError

# With which kernel images are scaled: Pillow's BILINEAR or BICUBIC, or OpenCV's INTER_LINEAR.
Resize = Literal["bilinear", "bicubic", "opencv_bilinear"]
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


def central_view(image: np.ndarray, view: CentreView, resize: Resize = "bilinear") -> np.ndarray:
    """`view` of an image (H, W, C): (crop, crop, C), uint8 in and out.

    The whole image is scaled first, as torchvision does. An image that already has the scaled size
    is not resampled.
    """
    (place,) = view.places(*image.shape[:2])
    (top, left), (height, width) = place.offset, place.size
    return scaled(image, place.scaled, resize)[top : top + height, left : left + width]


def scaled(image: np.ndarray, size: tuple[int, int], resize: Resize = "bilinear") -> np.ndarray:
    """An image (H, W, C) uint8 at `size` (height, width)."""
    height, width = image.shape[:2]
    return resample(image, Box(0, 0, height, width), size, resize)


def resample(
    image: np.ndarray, box: Box, size: tuple[int, int], resize: Resize = "bilinear"
) -> np.ndarray:
    """`box` of an image (H, W, C) uint8 at `size` (height, width): (*size, C) uint8.

    Pixels beyond the box are mixed in at its edge, as where the whole image is scaled first; from
    that it differs by rounding.
    """
    height, width, channels = image.shape
    if size == (height, width) and tuple(box) == (0, 0, *size):
        return image
    if resize == "opencv_bilinear":
        return opencv.resample(image, box, size)
    # Rounding may put an edge a hair beyond the image.
    left, top = max(0.0, box.left), max(0.0, box.top)
    edges = (left, top, min(width, box.left + box.width), min(height, box.top + box.height))
    pillow = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    shown = pillow.resize(size[::-1], _FILTERS[resize], box=edges)
    return np.asarray(shown).reshape(*size, channels)


@functools.cache
def imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(wnids, names) of the 1000 classes of ILSVRC-2012, in label order: by wnid."""
    text = (Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="utf-8")
    pairs = [line.partition(" ") for line in text.splitlines()]
    return tuple(p[0] for p in pairs), tuple(p[2] for p in pairs)

"""Reads and scales image files, one at a time; the central test view; ImageNet's classes.

Decoding is Pillow's, and so is scaling, but for one kernel: Pillow's filters widen when they shrink
an image, as in the test views of the released torchvision and timm weights.
"""

import contextlib
import functools
import importlib
import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from input_pipeline import opencv
from input_pipeline.crops import Box, CentreView
from input_pipeline.errors import DataError
from input_pipeline.pixels import ppm_header

# The kernel that scales images: Pillow's BILINEAR or BICUBIC, or OpenCV's INTER_LINEAR.
Resize = Literal["bilinear", "bicubic", "opencv_bilinear"]
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
with contextlib.suppress(ImportError):  # where it is installed, Pillow reads HEIC
    importlib.import_module("pillow_heif").register_heif_opener()
# The formats that are read, and the suffixes of their files. Pillow's other readers are not used,
# as one of them starts a program.
_SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif"),
}
_IS_SUPPORTED = {"AVIF": features.check("avif"), "HEIF": "HEIF" in Image.OPEN}
FORMATS = tuple(kind for kind in _SUFFIXES_OF if _IS_SUPPORTED.get(kind, True))
FORMAT_OF = {suffix: kind for kind in FORMATS for suffix in _SUFFIXES_OF[kind]}
SUFFIXES = tuple(FORMAT_OF)
LONGEST = 50  # an image is refused whose long side is more than so many times its short one
_WARNINGS_LOCK = threading.Lock()
# What TFDS and ILSVRC's tools call the parts that have labels and are not trained on.
TEST_PARTS = ("val", "validation", "test")


def read_image(
    path: str | Path, channels: int = 3, content: bytes | None = None, *, exif: bool = False
) -> np.ndarray:
    """The file's first image, (H, W, channels) uint8: RGB, or grey for one channel.

    CMYK, palettes and transparency are converted. exif: whether the image is turned as its EXIF
    orientation says; ImageNet's networks were trained without. content: of the file, if it was read
    already. Raises DataError, naming the file, for a file that is no image, or far too large.
    """
    if channels not in (1, 3):
        raise DataError(f"{path}: images have 1 or 3 channels, not {channels}")
    with _decoded(path, content) as image:
        if exif and (header := ppm_header(content or b"")):
            image.getexif()[ExifTags.Base.Orientation] = header.orientation
        upright = ImageOps.exif_transpose(image) if exif else image
        pixels = np.asarray(_eight_bits(upright).convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def image_size(path: str | Path, content: bytes) -> tuple[int, int]:
    """(height, width) of an image that is decoded to its end and dropped. Raises DataError."""
    with _decoded(path, content) as image:
        return image.height, image.width


def stated_size(content: bytes) -> tuple[int, int]:
    """(height, width) by the file's header; (0, 0) if no header can be read."""
    try:
        with _open(io.BytesIO(content)) as image:
            return image.height, image.width
    except (*_UNREADABLE, Image.DecompressionBombWarning, Image.DecompressionBombError):
        return 0, 0


def format_of(content: bytes) -> str:
    """The format, of those that are read here, by a file's first bytes, or 'unknown'."""
    Image.init()
    begins = content[:16]
    for kind in _SUFFIXES_OF:
        if kind in Image.OPEN and (accepts := Image.OPEN[kind][1]) and accepts(begins):
            return kind
    return "HEIF" if content[4:8] == b"ftyp" else "unknown"  # Pillow's reader may be missing


# Every file that states an orientation has one of these words, but for AVIF, HEIF and PNG.
_ORIENTED = (b"Exif", b"EXIF", b"tiff:Orientation")
# Chunks of a PNG that may state one: of this kind, or texts that begin so.
_PNG_EXIF = b"eXIf"
_PNG_TEXTS = (b"Raw profile type exif\0", b"Raw profile type APP1\0", b"XML:com.adobe.xmp\0")


def orientation(content: bytes) -> int:
    """The EXIF orientation of an image file, 1 to 8, that `read_image` without `exif` ignores.

    1 where none is stated, where the file can't be read, and of TIFFs, which Pillow always turns.
    """
    if header := ppm_header(content):
        return header.orientation
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        if not _png_may_state(content):  # Pillow would decode the image to find that out
            return 1
    elif content[4:8] != b"ftyp" and not any(word in content for word in _ORIENTED):
        return 1
    try:
        with _open(io.BytesIO(content)) as image:
            if image.format == "TIFF":
                return 1
            stated = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (*_UNREADABLE, Image.DecompressionBombWarning, Image.DecompressionBombError):
        return 1
    return stated if stated in range(1, 9) else 1


def _png_may_state(content: bytes) -> bool:
    """Whether one of a PNG's chunks, before or behind the pixels, may state an orientation."""
    at = 8
    while at + 8 <= len(content):
        length, kind = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        start = content[at + 8 : at + 40]
        if kind == _PNG_EXIF or (kind[1:] in (b"EXt", b"TXt") and start.startswith(_PNG_TEXTS)):
            return True
        at += 12 + length
    return False


# What Pillow raises for damaged files.
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, MemoryError)


@contextlib.contextmanager
def _decoded(path: str | Path, content: bytes | None) -> Iterator[Image.Image]:
    """An image file's first image, decoded. Raises DataError."""
    try:
        with _open(path if content is None else io.BytesIO(content)) as image:
            _check(path, image)
            image.load()
            yield image
    except FileNotFoundError:
        raise DataError(f"image {path} does not exist") from None
    except UnidentifiedImageError:
        raise DataError(f"{path} is no image that Pillow can read") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is refused: {error}") from None
    except DataError:
        raise
    except _UNREADABLE as error:
        raise DataError(f"image {path} can't be read: {error}") from None


def _open(file: str | Path | io.BytesIO) -> Image.Image:
    with _WARNINGS_LOCK, warnings.catch_warnings():  # all threads share the filters
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", message="Corrupt EXIF data|Truncated File Read")
        return Image.open(file, formats=FORMATS)


def _check(path: str | Path, image: Image.Image) -> None:
    (width, height), mode = image.size, image.mode
    if max(width, height) > LONGEST * min(width, height):
        raise DataError(
            f"image {path} of {width}x{height} pixels is refused: one side is more than "
            f"{LONGEST} times the other"
        )
    # Grey levels of a PGM are 0 to 65535: Pillow scales any maxval above 255 to that.
    if mode == "F" or (mode == "I" and image.format != "PPM"):
        raise DataError(f"image {path} has pixels of mode {mode}; expected 8 or 16 bits")


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image with 16-bit grey levels scaled to eight bits, where Pillow would clip them."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


def central_view(image: np.ndarray, view: CentreView, resize: Resize = "bilinear") -> np.ndarray:
    """`view` of an image (H, W, C): (crop, crop, C), uint8. The whole image is scaled first."""
    (place,) = view.places(*image.shape[:2])
    (top, left), (height, width) = place.offset, place.size
    return scaled(image, place.scaled, resize)[top : top + height, left : left + width]


def framed(images: np.ndarray, frame: int) -> np.ndarray:
    """Images (..., H, W, C) with a frame of so many black pixels around each."""
    padding = [(0, 0)] * (images.ndim - 3) + [(frame, frame)] * 2 + [(0, 0)]
    return np.pad(images, padding)


def scaled(image: np.ndarray, size: tuple[int, int], resize: Resize = "bilinear") -> np.ndarray:
    """An image (H, W, C) uint8 at `size` (height, width)."""
    height, width = image.shape[:2]
    return resample(image, Box(0, 0, height, width), size, resize)


def resample(
    image: np.ndarray, box: Box, size: tuple[int, int], resize: Resize = "bilinear"
) -> np.ndarray:
    """`box` of an image (H, W, C) uint8 at `size` (height, width): (*size, C) uint8.

    Pixels beyond the box are mixed in at its edge, as if the whole image was scaled and then cut.
    The two differ by rounding.
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
    resized = pillow.resize(size[::-1], _FILTERS[resize], box=edges)
    return np.asarray(resized).reshape(*size, channels)


@functools.cache
def imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(wnids, names) of the 1000 classes of ILSVRC-2012, in label order: by wnid."""
    text = (Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="utf-8")
    pairs = [line.partition(" ") for line in text.splitlines()]
    return tuple(p[0] for p in pairs), tuple(p[2] for p in pairs)


def imagenet_names(classes: Sequence[str]) -> tuple[str, ...]:
    """ImageNet's names of classes that are all wnids; else the classes as they are."""
    names = dict(zip(*imagenet_classes(), strict=True))
    return tuple(names[name] for name in classes) if set(classes) <= set(names) else tuple(classes)

"""Image files, one at a time: reading them, the central test view, and folders of classes.

Decoding and scaling are Pillow's, whose filters widen when they shrink an image, as in the test
views of the released torchvision and timm weights.
"""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from input_pipeline import crops
from input_pipeline.errors import DataError

Resize = Literal["bilinear", "bicubic"]
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
# As TFDS and ILSVRC's own tools call the parts that have labels and are not trained on.
TEST_PARTS = ("val", "validation", "test")


def read_image(path: str | Path, channels: int = 3) -> np.ndarray:
    """The file's first image, (H, W, channels) uint8: RGB, or grey for one channel.

    CMYK, palettes and transparency are converted; EXIF rotation is ignored, as it is in ImageNet.
    Raises DataError, naming the file, for what is no image or too large to be one in earnest.
    """
    if channels not in (1, 3):
        raise DataError(f"{path}: images have 1 or 3 channels, not {channels}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", message="Corrupt EXIF data|Truncated File Read")
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except FileNotFoundError:
        raise DataError(f"image {path} does not exist") from None
    except UnidentifiedImageError:
        raise DataError(f"{path} is no image that Pillow can read") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is refused: {error}") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(f"image {path} can't be read: {error}") from None
    return pixels.reshape(*pixels.shape[:2], channels)


def central_view(
    image: np.ndarray, short_side: int, crop: int, resize: Resize = "bilinear"
) -> np.ndarray:
    """The central square of side `crop` of an image scaled to `short_side`, uint8 in and out.

    (H, W, C) -> (crop, crop, C). An image that already has that short side is not resampled.
    """
    height, width, channels = image.shape
    scaled = crops.scaled_size(height, width, short_side)
    if scaled != (height, width):
        pillow = Image.fromarray(image[:, :, 0] if channels == 1 else image)
        image = np.asarray(pillow.resize(scaled[::-1], _FILTERS[resize]))
        image = image.reshape(*scaled, channels)
    top, left = (crops.centre_offset(size, crop) for size in scaled)
    return image[top : top + crop, left : left + crop]


@dataclass(frozen=True)
class LabelledFiles:
    """Image files with labels: `labels[i]` is the class of `files[i]`."""

    folder: Path
    files: tuple[Path, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.files)


def image_folder(path: str | Path, class_names: Sequence[str]) -> LabelledFiles:
    """The files of an image folder `PATH/{class}/*`, or of its `val` or `test` part.

    The classes' folders, sorted, are matched with `class_names` (a network's) by name; else, where
    these are ImageNet's, by wnid, so that a part of ImageNet's classes can be tested; else by
    their order, if there are as many. Raises DataError where none of these fits.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root} is no folder of images")
    root = next((root / part for part in TEST_PARTS if (root / part).is_dir()), root)
    found = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if not found:
        raise DataError(f"{root} holds no folders of classes; expected {root}/CLASS/image files")
    index = _class_index(root, found, class_names)
    files: list[Path] = []
    labels: list[int] = []
    for name in found:
        here = sorted(f for f in (root / name).iterdir() if f.suffix.lower() in SUFFIXES)
        files += here
        labels += [index[name]] * len(here)
    if not files:
        raise DataError(f"{root} holds no image files (of type {', '.join(SUFFIXES)})")
    return LabelledFiles(root, tuple(files), np.array(labels, np.int32))


def _class_index(root: Path, found: list[str], class_names: Sequence[str]) -> dict[str, int]:
    known = {name: i for i, name in enumerate(class_names)}
    if set(found) <= known.keys():
        return {name: known[name] for name in found}
    wnids, names = imagenet_classes()
    if tuple(class_names) == names and set(found) <= set(wnids):
        return {name: wnids.index(name) for name in found}
    if len(found) == len(class_names):
        return {name: i for i, name in enumerate(found)}
    odd = next(name for name in found if name not in known)
    raise DataError(
        f"{root} has {len(found)} folders of classes and the network {len(class_names)} classes, "
        f"none of which is called {odd!r}"
    )


@functools.cache
def imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(wnids, names) of the 1000 classes of ILSVRC-2012, in label order: by wnid."""
    text = (Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="utf-8")
    pairs = [line.partition(" ") for line in text.splitlines()]
    return tuple(p[0] for p in pairs), tuple(p[2] for p in pairs)

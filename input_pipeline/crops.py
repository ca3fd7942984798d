"""The geometry of train and test views, as pure functions of sizes in pixels.

An image is first scaled isotropically so that its short side has a given length (S when
training, Q when testing), then a square of side `crop` is cut out (VGG section 3.1 and 3.2).
"""

from typing import Any

IMAGENET_CROP = 224
CIFAR_CROP = 32


def _divide(numerator: Any, denominator: int) -> Any:
    """Quotient of two non-negative integers, rounded to nearest, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


def in_ratio(length: int, crop: int, paper_crop: int = IMAGENET_CROP) -> int:
    """A paper's length in pixels, carried from the paper's crop to another crop.

    VGG's S = 256, 384 and 512 at crop 224 become 37, 55 and 73 at crop 32; the CIFAR
    padding of 4 at crop 32 becomes 2 at crop 16 (`in_ratio(4, 16, CIFAR_CROP)`).
    """
    return _divide(length * crop, paper_crop)


def scaled_size(height: int, width: int, short_side: Any) -> tuple[Any, Any]:
    """(height, width) of an image after isotropic scaling of its short side to `short_side`.

    Only products, sums and floor divisions: `short_side` may also be a traced JAX integer.
    """
    short = min(height, width)
    return _divide(height * short_side, short), _divide(width * short_side, short)


def centre_offset(size: int, crop: int) -> int:
    """First row (or column) of the centred crop; the odd pixel is left at the far side."""
    return (size - crop) // 2

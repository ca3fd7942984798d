"""The geometry of every train and test view, as pure functions of sizes and random words.

An image is first scaled isotropically so that its short side has a given length (S when
training, Q when testing), then a square of side `crop` is cut out (VGG section 3.1 and 3.2). A view
is a `Placement`: a box in the pixels of the stored image and the size at which it is shown. Scaling
and cropping are one resampling of that box.

Every view here follows one rule, torchvision's (`Resize` and `CenterCrop` of
torchvision/transforms/functional.py): the long side of the scaled image is rounded down, and the
place of a centred crop to the nearest pixel, halves to even. The figures of most published weights
were measured so, and no paper says how it rounded.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from input_pipeline.errors import DataError

IMAGENET_CROP = 224
CIFAR_CROP = 32
_WORD = 2.0**64  # random words are below it
# The rule's name, which is kept with results that depend on it.
ROUNDING = "long side down, centre to even"


def in_ratio(length: int, crop: int, paper_crop: int = IMAGENET_CROP) -> int:
    """A paper's length in pixels, carried from the paper's crop to another crop.

    VGG's S = 256, 384 and 512 at crop 224 become 37, 55 and 73 at crop 32.
    """
    return (2 * length * crop + paper_crop) // (2 * paper_crop)  # to the nearest, halves up


def scaled_size(height: int, width: int, short_side: Any) -> tuple[Any, Any]:
    """(height, width) of an image after isotropic scaling of its short side to `short_side`.

    The long side is rounded down. `short_side` may also be a traced JAX integer.
    """
    short = min(height, width)
    return height * short_side // short, width * short_side // short


def centre_offset(size: int, crop: int) -> int:
    """First row (or column) of the centred crop: to the nearest pixel, halves to even."""
    return round((size - crop) / 2)


def _centre(rows: int, columns: int) -> tuple[int, int]:
    """Where the centred crop begins, if the last possible place is (rows, columns)."""
    return centre_offset(rows, 0), centre_offset(columns, 0)


class Box(NamedTuple):
    """A rectangle of the stored image, in its pixels; edges may lie between pixels."""

    top: float
    left: float
    height: float
    width: float


class Placement(NamedTuple):
    """One view of an image: `box` shown at `size`."""

    box: Box
    size: tuple[int, int]  # (height, width) of the view
    scaled: tuple[int, int]  # (height, width) of the whole scaled image
    offset: tuple[int, int]  # (row, column) of the view in the scaled image


def _placement(
    height: int, width: int, scaled: tuple[int, int], offset: tuple[int, int], size: tuple[int, int]
) -> Placement:
    """The view of `size` at `offset` in the image of height x width, scaled to `scaled`."""
    rows, columns = height / scaled[0], width / scaled[1]
    box = Box(offset[0] * rows, offset[1] * columns, size[0] * rows, size[1] * columns)
    return Placement(box, size, scaled, offset)


# -------------------------------------------------------------------------------- training


@dataclass(frozen=True, kw_only=True)
class ScaleView:
    """A random crop of the image scaled to S (VGG section 3.1, ResNet section 3.4).

    S: (lowest, highest) short side; one integer is drawn uniformly for each image.
    """

    crop: int
    S: tuple[int, int]

    WORDS = 3
    BEYOND_BOX = True  # pixels at the view's edge are mixed with those beyond it

    def __post_init__(self) -> None:
        low, high = self.S
        if not 1 <= self.crop <= low <= high:
            raise DataError(
                f"training view crop={self.crop}, S={self.S}; expected 1 <= crop <= S[0] <= S[1]"
            )

    def place(self, height: int, width: int, words: Sequence[int]) -> Placement:
        """The view of an image of this size for these random words."""
        low, high = self.S
        scaled = scaled_size(height, width, low + words[0] % (high - low + 1))
        offset = (words[1] % (scaled[0] - self.crop + 1), words[2] % (scaled[1] - self.crop + 1))
        return _placement(height, width, scaled, offset, (self.crop, self.crop))


@dataclass(frozen=True, kw_only=True)
class SquareView:
    """A random crop of the central S x S square of the image scaled to S (AlexNet section 2, 4.1).

    The placement's offset is in the square, where the mean image is cut too.
    """

    crop: int
    S: int

    WORDS = 2
    BEYOND_BOX = True

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.S:
            raise DataError(f"training view crop={self.crop}, S={self.S}; expected 1 <= crop <= S")

    def place(self, height: int, width: int, words: Sequence[int]) -> Placement:
        """The view of an image of this size for these random words."""
        scaled = scaled_size(height, width, self.S)
        row, column = (word % (self.S - self.crop + 1) for word in words[:2])
        top, left = (centre_offset(length, self.S) for length in scaled)
        size = (self.crop, self.crop)
        placed = _placement(height, width, scaled, (top + row, left + column), size)
        return placed._replace(offset=(row, column))


@dataclass(frozen=True, kw_only=True)
class AreaView:
    """A random part of the image, resized to a square (GoogLeNet section 6).

    A part that does not fit into the image is drawn again, ten times at most; then it is as large
    as the aspect allows. It is cut out first, so that nothing beyond it is mixed into the view.
    """

    crop: int
    area: tuple[float, float] = (0.08, 1.0)  # bounds of its share of the image, drawn uniformly
    # Bounds of width / height, drawn uniformly on a logarithmic scale.
    aspect: tuple[float, float] = (3 / 4, 4 / 3)

    ATTEMPTS = 10
    WORDS = 2 * ATTEMPTS + 2
    BEYOND_BOX = False

    def __post_init__(self) -> None:
        if self.crop < 1 or not 0 < self.area[0] <= self.area[1] <= 1:
            raise DataError(
                f"training view crop={self.crop}, area={self.area}; expected crop >= 1 and "
                "0 < area[0] <= area[1] <= 1"
            )
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise DataError(f"training view aspect={self.aspect}; expected 0 < lowest <= highest")

    def place(self, height: int, width: int, words: Sequence[int]) -> Placement:
        """The view of an image of this size for these random words."""
        rows, columns = self._part(height, width, words)
        box = Box(words[-2] % (height - rows + 1), words[-1] % (width - columns + 1), rows, columns)
        size = (self.crop, self.crop)
        return Placement(box, size, size, (0, 0))

    def _part(self, height: int, width: int, words: Sequence[int]) -> tuple[int, int]:
        """(rows, columns) of the part."""
        (smallest, largest), (narrow, wide) = self.area, self.aspect
        for attempt in range(self.ATTEMPTS):
            share, slant = (word / _WORD for word in words[2 * attempt : 2 * attempt + 2])
            pixels = (smallest + share * (largest - smallest)) * height * width
            aspect = narrow * (wide / narrow) ** slant
            rows, columns = round(math.sqrt(pixels / aspect)), round(math.sqrt(pixels * aspect))
            if 1 <= rows <= height and 1 <= columns <= width:
                return rows, columns
        return (
            max(1, min(height, round(width / narrow))),
            max(1, min(width, round(height * wide))),
        )


TrainView = ScaleView | SquareView | AreaView

# --------------------------------------------------------------------------------- testing


def _test_size(height: int, width: int, Q: int, warp: bool) -> tuple[int, int]:
    """(height, width) of the scaled test image."""
    return (Q, Q) if warp else scaled_size(height, width, Q)


@dataclass(frozen=True, kw_only=True)
class _CropsView(abc.ABC):
    """Crops of the image scaled so that its short side is Q.

    warp: the image is made a Q x Q square instead, whatever its aspect (Caffe's reference models).
    """

    crop: int
    Q: int
    warp: bool = False

    mirrored = True

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.Q:
            raise DataError(f"test view crop={self.crop}, Q={self.Q}; expected 1 <= crop <= Q")

    def places(self, height: int, width: int) -> list[Placement]:
        """The views of an image of this size, row by row."""
        scaled = _test_size(height, width, self.Q, self.warp)
        offsets = self._offsets(scaled[0] - self.crop, scaled[1] - self.crop)
        size = (self.crop, self.crop)
        return [_placement(height, width, scaled, offset, size) for offset in offsets]

    @abc.abstractmethod
    def _offsets(self, rows: int, columns: int) -> list[tuple[int, int]]:
        """Where the crops begin, if the last possible place is (rows, columns)."""


class CentreView(_CropsView):
    """The central crop alone."""

    mirrored = False

    def _offsets(self, rows: int, columns: int) -> list[tuple[int, int]]:
        return [_centre(rows, columns)]


@dataclass(frozen=True, kw_only=True)
class TenCropView(_CropsView):
    """The four corners and the centre, to be mirrored too (AlexNet section 4.1).

    square: of the central Q x Q square, as AlexNet has it (section 2), not of the scaled image.
    """

    square: bool = False

    def _offsets(self, rows: int, columns: int) -> list[tuple[int, int]]:
        if not self.square:
            return _corners_and_centre(rows, columns)
        last = self.Q - self.crop
        top, left = (centre_offset(length + self.crop, self.Q) for length in (rows, columns))
        return [(top + row, left + column) for row, column in _corners_and_centre(last, last)]


def _corners_and_centre(rows: int, columns: int) -> list[tuple[int, int]]:
    corners = [(row, column) for row in (0, rows) for column in (0, columns)]
    return [*corners, _centre(rows, columns)]


class GridView(_CropsView):
    """A regular 5x5 grid from border to border, to be mirrored too (VGG section 3.2).

    Its places are rounded as the centre's: its middle crop is `CentreView`'s.
    """

    def _offsets(self, rows: int, columns: int) -> list[tuple[int, int]]:
        return [(round(rows * i / 4), round(columns * j / 4)) for i in range(5) for j in range(5)]


@dataclass(frozen=True, kw_only=True)
class MultiSquareView:
    """GoogLeNet's 144 crops (section 7), half of which are mirrors.

    At each scale three squares (left, centre, right, or top, centre, bottom) of the scaled image,
    and of each square its four corner crops, its central crop and the whole square at crop size.
    """

    crop: int
    scales: tuple[int, ...] = (256, 288, 320, 352)
    warp: bool = False

    mirrored = True

    def __post_init__(self) -> None:
        if not self.scales or not 1 <= self.crop <= min(self.scales):
            raise DataError(
                f"test view crop={self.crop}, scales={self.scales}; expected 1 <= crop <= scales"
            )

    def places(self, height: int, width: int) -> list[Placement]:
        """The views of an image of this size: six a square, three squares a scale."""
        views = []
        for Q in self.scales:
            scaled = _test_size(height, width, Q, self.warp)
            crop_offsets = _corners_and_centre(Q - self.crop, Q - self.crop)
            last = scaled[0] - Q, scaled[1] - Q
            for top, left in ((0, 0), _centre(*last), last):
                offsets = [(top + row, left + column) for row, column in crop_offsets]
                size = (self.crop, self.crop)
                views += [_placement(height, width, scaled, offset, size) for offset in offsets]
                square = _placement(height, width, scaled, (top, left), (Q, Q))
                views.append(square._replace(size=size))
        return views


@dataclass(frozen=True, kw_only=True)
class WholeView:
    """The whole image at short side Q, for a fully convolutional net (VGG section 3.2)."""

    Q: int
    warp: bool = False

    mirrored = True

    def __post_init__(self) -> None:
        if self.Q < 1:
            raise DataError(f"test view Q={self.Q}; expected at least 1")

    def places(self, height: int, width: int) -> list[Placement]:
        """The only view of an image of this size."""
        scaled = _test_size(height, width, self.Q, self.warp)
        return [_placement(height, width, scaled, (0, 0), scaled)]


TestView = CentreView | TenCropView | GridView | MultiSquareView | WholeView

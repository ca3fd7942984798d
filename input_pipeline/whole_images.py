"""Whole images in batches, for a fully convolutional net (VGG section 3.2).

    sizes = image_sizes(source)
    for batch in whole_stream(source, 256, sizes, pixels=64 * 256 * 341):
        batch.views               # (b, 1, H, W, 3) uint8, of few different shapes
        batch.sizes               # (b, 2): each image lies in the top left corner of its place

Images scaled to one short side differ in their long ones, and a program is compiled for each shape
it is given. So images are sorted into few buckets by their scaled size; in a batch of a bucket all
are padded to the largest of it. Which buckets make the least padding follows from the stored sizes.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from input_pipeline import crops, image_files, viewer
from input_pipeline.crops import Placement
from input_pipeline.errors import DataError
from input_pipeline.sources import Source
from input_pipeline.stream import GROUP, USUAL, Batches, Decoding, TestBatch, cores
from input_pipeline.viewer import INDEX, KIND, UNUSABLE, Viewer

PROGRAMS = 8  # at most
WORTH = 0.03  # of the images' own pixels: what one more program must save
_PIECE = 32  # files that a thread reads before it says so


def image_sizes(
    source: Source,
    how: Decoding = USUAL,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """(n, 2) int32 stored (height, width) of every image, from reading each file once.

    Plain JPEGs are not decoded, all else is; what is kept decoded is not read. (0, 0) where a file
    is unusable: `how.on_bad` hears why, in the order of the source. Threads: two a core by default,
    four at least, as reading waits. Raises DataError where more files are unusable than `how`
    allows.
    """
    n, stored = len(source), viewer.as_stored(source)
    sizes: np.ndarray = np.zeros((n, 2), np.int32)
    reasons: dict[int, str] = {}

    def look(piece: range) -> None:
        for index in piece:
            if pixels := source.pixels(index):
                sizes[index] = pixels.height, pixels.width
                continue
            content, about = stored.fetch_file(index, 0)
            if about[KIND] == viewer.PLAIN:
                sizes[index] = about[viewer.WINDOW][2:]
            elif about[KIND] == viewer.ODD:
                views, told = stored.show_odd(content, about)
                if told[KIND] != UNUSABLE:
                    sizes[index] = views.shape[1:3]

    pieces = [range(at, min(at + _PIECE, n)) for at in range(0, n, _PIECE)]
    pool = ThreadPoolExecutor(how.threads or max(4, 2 * cores()))
    try:
        for piece, _ in zip(pieces, pool.map(look, pieces), strict=True):
            for index in piece:
                if not sizes[index, 0]:
                    reasons[index] = stored.reasons[index]
                    how.on_bad(reasons[index])
            how.check(reasons, n)
            on_progress(piece.stop, n)
    finally:
        pool.shutdown(cancel_futures=True)
    return sizes


# ---------------------------------------------------------------------------------- buckets


class Bucket(NamedTuple):
    """Images that are shown at one shape, (H, W), `batch` at once; indices (count,) ascending."""

    shape: tuple[int, int]
    batch: int
    indices: np.ndarray

    @property
    def pixels(self) -> int:
        """Of all its batches, blank places included."""
        return _up(len(self.indices), self.batch) * self.shape[0] * self.shape[1]


def plan(
    sizes: np.ndarray,
    Q: int,
    *,
    pixels: int,
    multiple: int = 1,
    programs: int = PROGRAMS,
    warp: bool = False,
) -> list[Bucket]:
    """The buckets of images whose stored sizes are (n, 2), at short side Q; the largest first.

    pixels: of a batch, about; the number of its images is a multiple of `multiple`. programs: how
    many buckets there are at most. They are chosen so that their batches have the fewest pixels,
    where each bucket counts as WORTH of the images' own pixels more. Lying and upright images have
    buckets of their own, and a bucket has all lengths from one to another; or one bucket has all
    images. Images of size (0, 0) are in none. warp: as of `crops.WholeView`.
    """
    usable = np.flatnonzero(sizes[:, 0])
    if not len(usable):
        return []
    batching = _Batching(pixels, multiple)
    shapes = _shapes(_scaled(sizes[usable], Q, warp), Q, programs, batching)
    buckets = []
    for H, W in np.unique(shapes, axis=0).tolist():
        indices = usable[(shapes == (H, W)).all(axis=1)]
        buckets.append(Bucket((H, W), batching.images(len(indices), H * W), indices))
    # Largest first: where memory is short, that shows at once.
    return sorted(buckets, key=lambda bucket: bucket.shape[0] * bucket.shape[1], reverse=True)


def _up(number: Any, multiple: Any) -> Any:
    """The next multiple."""
    return -(-number // multiple) * multiple


@dataclass(frozen=True)
class _Batching:
    """Of buckets of so many images, of so many pixels a shape; counts may be an array."""

    pixels: int
    multiple: int

    def images(self, counts: Any, area: int) -> Any:
        """That a batch has."""
        most = max(1, self.pixels // (area * self.multiple)) * self.multiple
        batches = _up(counts, most) // most
        return _up(-(-counts // batches), self.multiple)

    def cost(self, counts: Any, area: int) -> Any:
        """Pixels of all batches."""
        return _up(counts, self.images(counts, area)) * area


def _scaled(sizes: np.ndarray, Q: int, warp: bool = False) -> np.ndarray:
    """(n, 2): the scaled size of each."""
    different, places = np.unique(sizes, axis=0, return_inverse=True)
    view = crops.WholeView(Q=Q, warp=warp)
    scaled = [view.places(height, width)[0].scaled for height, width in different.tolist()]
    return np.array(scaled, np.int64)[places.reshape(-1)]


def _shapes(scaled: np.ndarray, Q: int, programs: int, batching: _Batching) -> np.ndarray:
    """(n, 2): the shape that each image of scaled size (n, 2) is shown at."""
    heights, widths = scaled.T
    worth = WORTH * float((heights * widths).sum())
    largest = scaled.max(axis=0)
    least = batching.cost(len(scaled), int(largest.prod())) + worth
    shapes = np.tile(largest, (len(scaled), 1))
    for lying in (widths >= heights, widths > heights):  # squares may be either
        found = [
            _cuts(lengths, programs, lambda counts, length: batching.cost(counts, Q * length))
            for lengths in (widths[lying], heights[~lying])
        ]
        for (wide, ends_wide), (high, ends_high) in itertools.product(*found):
            count = len(ends_wide) + len(ends_high)
            if count <= programs and wide + high + count * worth < least:
                least = wide + high + count * worth
                shapes = np.full_like(scaled, Q)
                shapes[lying, 1] = ends_wide[np.searchsorted(ends_wide, widths[lying])]
                shapes[~lying, 0] = ends_high[np.searchsorted(ends_high, heights[~lying])]
    return shapes


def _cuts(
    lengths: np.ndarray, most: int, cost: Callable[[np.ndarray, int], np.ndarray]
) -> list[tuple[float, np.ndarray]]:
    """The cheapest ways to cut a sorted list of lengths into 0, 1, ... `most` parts.

    cost(counts, length): of parts of so many, the longest being `length`. Each way is told as its
    cost and the parts' longest, ascending. Dynamic programming over the j shortest lengths.
    """
    different, counts = np.unique(lengths, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])  # how many are shorter
    n = len(different)
    best: np.ndarray = np.full((most + 1, n + 1), np.inf)  # of k parts with the first j lengths
    start: np.ndarray = np.zeros((most + 1, n + 1), np.int64)  # where the last of them begins
    best[0, 0] = 0
    for j, length in enumerate(different.tolist(), 1):
        ways = best[:-1, :j] + cost(before[j] - before[:j], length)
        start[1:, j] = ways.argmin(axis=1)
        best[1:, j] = ways.min(axis=1)
    found = []
    for k in np.flatnonzero(np.isfinite(best[:, n])).tolist():
        ends = [n]
        for part in range(k, 0, -1):
            ends.append(int(start[part, ends[-1]]))
        found.append((float(best[k, n]), different[np.array(ends[-2::-1], np.int64) - 1]))
    return found


def waste(
    sizes: np.ndarray, Q: int, *, pixels: int, multiple: int = 1, programs: int = PROGRAMS
) -> float:
    """The share of the pixels of `whole_stream`'s batches that are padding or blank places."""
    buckets = plan(sizes, Q, pixels=pixels, multiple=multiple, programs=programs)
    own = sum(int(_scaled(sizes[b.indices], Q).prod(axis=1).sum()) for b in buckets)
    return 1 - own / sum(b.pixels for b in buckets) if buckets else 0.0


# -------------------------------------------------------------------------------- the stream


def whole_stream(
    source: Source,
    Q: int,
    sizes: np.ndarray,
    *,
    pixels: int,
    multiple: int = 1,
    programs: int = PROGRAMS,
    warp: bool = False,
    how: Decoding = USUAL,
) -> Generator[TestBatch]:
    """Every usable example once, scaled to short side Q: bucket by bucket, in each by index.

    sizes: `image_sizes(source)`, whose unusable files are left out, and neither told nor counted
    again. All batches of a bucket have one shape. The others are as for `plan`. Raises DataError
    as `Stream` does, and where an image has another size than `sizes` says.
    """
    if sizes.shape != (len(source), 2):
        raise ValueError(f"sizes of shape {sizes.shape} of {len(source)} images")
    buckets = plan(sizes, Q, pixels=pixels, multiple=multiple, programs=programs, warp=warp)
    indices = [i for bucket in buckets for i in bucket.indices.tolist()]
    images = _images(source, crops.WholeView(Q=Q, warp=warp), sizes, indices, how)
    with contextlib.closing(images):
        yield from _batches(buckets, how.channels, images)


def whole_batches(
    read: Callable[[int], np.ndarray],
    Q: int,
    sizes: np.ndarray,
    *,
    pixels: int,
    multiple: int = 1,
    warp: bool = False,
    how: Decoding = USUAL,
) -> Generator[TestBatch]:
    """`whole_stream` of images that `read(index)` gives, (h, w, C) uint8, whose labels are 0.

    They are scaled here, one by one. sizes: (n, 2) of all of them, heights and widths.
    """
    view = crops.WholeView(Q=Q, warp=warp)
    buckets = plan(sizes, Q, pixels=pixels, multiple=multiple, warp=warp)

    def images() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for bucket in buckets:
            for index in bucket.indices.tolist():
                (place,) = view.places(*sizes[index].tolist())
                told: np.ndarray = np.zeros(viewer.TOLD, np.int32)
                told[INDEX] = index
                told[viewer.ENLARGED] = min(sizes[index]) < min(place.scaled)
                yield told, image_files.scaled(read(index), place.scaled, how.kernel)

    yield from _batches(buckets, how.channels, images())


def _batches(
    buckets: Sequence[Bucket],
    channels: int,
    images: Iterator[tuple[np.ndarray, np.ndarray | None]],
) -> Iterator[TestBatch]:
    """The batches of all buckets, whose images are given in order."""
    for bucket in buckets:
        for at in range(0, len(bucket.indices), bucket.batch):
            count = min(bucket.batch, len(bucket.indices) - at)
            yield _batch(bucket, channels, itertools.islice(images, count))


def _batch(
    bucket: Bucket, channels: int, shown: Iterable[tuple[np.ndarray, np.ndarray | None]]
) -> TestBatch:
    b, (H, W) = bucket.batch, bucket.shape
    sizes: np.ndarray = np.full((b, 2), bucket.shape, np.int32)
    batch = TestBatch(
        views=np.zeros((b, 1, H, W, channels), np.uint8),
        labels=np.zeros(b, np.int32),
        indices=np.zeros(b, np.int32),
        mask=np.zeros(b, bool),
        enlarged=np.zeros(b, bool),
        sizes=sizes,
    )
    for place, (told, image) in enumerate(shown):
        batch.labels[place], batch.indices[place] = told[viewer.LABEL], told[INDEX]
        if image is not None:
            height, width = image.shape[:2]
            batch.views[place, 0, :height, :width] = image
            sizes[place], batch.mask[place] = (height, width), True
            batch.enlarged[place] = told[viewer.ENLARGED]
    return batch


def _images(
    source: Source,
    view: crops.WholeView,
    sizes: np.ndarray,
    indices: Sequence[int],
    how: Decoding,
) -> Generator[tuple[np.ndarray, np.ndarray | None]]:
    """The images at `indices`, decoded in groups: (what is told of it (TOLD,), the scaled image
    (h, w, C), or None where it is unusable) of each."""
    changed: dict[int, tuple[int, int]] = {}  # index -> size, unlike what was said

    def scaled_size(index: int) -> tuple[int, int]:
        return view.places(*sizes[index].tolist())[0].size

    def locate(number: int) -> tuple[int, int] | None:
        return (indices[number], 0) if number < len(indices) else None

    def places(height: int, width: int, index: int, epoch: int) -> list[Placement]:
        if [height, width] != sizes[index].tolist():
            changed[index] = height, width
        (place,) = view.places(height, width)
        size = scaled_size(index)
        return [place._replace(size=size, scaled=size)]

    shown = Viewer(source, places, True, (1, 1, 1, how.channels), how.kernel, whole=True)
    numbers = range(_up(len(indices), GROUP))
    groups = Batches(shown, locate, GROUP, numbers, how, ragged=True)
    try:
        for pixels, told in groups:
            groups.name_bad()
            if changed:
                index = min(changed)
                height, width = changed[index]
                before = "{1}x{0}".format(*sizes[index])
                raise DataError(
                    f"{source.where(index)} has {width}x{height} pixels, and had {before} when "
                    "the sizes of these images were read"
                )
            at = 0
            for row in told:
                usable = row[KIND] != UNUSABLE
                shape = (*(scaled_size(int(row[INDEX])) if usable else (1, 1)), how.channels)
                size = math.prod(shape)
                yield row, pixels[at : at + size].reshape(shape) if usable else None
                at += size
    finally:
        groups.close()

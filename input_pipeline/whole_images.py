"""Whole images in batches, for a fully convolutional net (VGG section 3.2).

    sizes = image_sizes(source)
    for batch in whole_stream(source, 256, sizes, pixels=64 * 256 * 341):
        batch.views               # (b, 1, H, W, 3) uint8, of few different shapes
        batch.sizes               # (b, 2): each image lies in the top left corner of its place

Images scaled to one short side differ in their long ones, and a program is compiled for each shape
it is given. So images are sorted into few buckets by their scaled size, and those of a bucket are
padded to its largest. The stored sizes determine the buckets with the least padding.
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
from input_pipeline.stream import DEFAULT_DECODING, GROUP, Batches, Decoding, TestBatch, cores
from input_pipeline.viewer import INDEX, KIND, UNUSABLE, Viewer

PROGRAMS = 8  # at most
WORTH = 0.03  # the share of the images' own pixels that one more program must save
_PIECE = 32  # files that a thread reads between two reports


def image_sizes(
    source: Source,
    how: Decoding = DEFAULT_DECODING,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """(n, 2) int32 stored (height, width) of every image, from reading each file once.

    Plain JPEGs are not decoded, other files are; images that are kept decoded are not read. (0, 0)
    where a file is unusable, with the reason to `how.on_bad`, in the order of the source. Threads:
    by default two a core, at least four, as reading waits. Raises DataError where more files are
    unusable than `how` allows.
    """
    n, stored = len(source), viewer.as_stored(source)
    sizes: np.ndarray = np.zeros((n, 2), np.int32)
    reasons: dict[int, str] = {}

    def read_sizes(piece: range) -> None:
        for index in piece:
            if pixels := source.pixels(index):
                sizes[index] = pixels.height, pixels.width
                continue
            content, spec = stored.fetch_file(index, 0)
            if spec[KIND] == viewer.PLAIN:
                sizes[index] = spec[viewer.WINDOW][2:]
            elif spec[KIND] == viewer.ODD:
                views, meta = stored.show_odd(content, spec)
                if meta[KIND] != UNUSABLE:
                    sizes[index] = views.shape[1:3]

    pieces = [range(start, min(start + _PIECE, n)) for start in range(0, n, _PIECE)]
    pool = ThreadPoolExecutor(how.threads or max(4, 2 * cores()))
    try:
        for piece, _ in zip(pieces, pool.map(read_sizes, pieces), strict=True):
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
    """Images that are shown at one shape."""

    shape: tuple[int, int]  # (H, W)
    batch: int  # images at once
    indices: np.ndarray  # (count,), ascending

    @property
    def pixels(self) -> int:
        """The pixels of all its batches, including blank places."""
        return _rounded_up(len(self.indices), self.batch) * self.shape[0] * self.shape[1]


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

    pixels: roughly, of a batch, whose number of images is a multiple of `multiple`. programs: the
    largest number of buckets. warp: as of `crops.WholeView`. The buckets chosen have the fewest
    pixels in their batches, where each bucket costs WORTH of the images' own pixels more. Landscape
    and portrait images have buckets of their own, each with all lengths from one to another; or one
    bucket has all images. Images of size (0, 0) are in none.
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


def _rounded_up(number: Any, multiple: Any) -> Any:
    """`number`, rounded up to a multiple."""
    return -(-number // multiple) * multiple


@dataclass(frozen=True)
class _Batching:
    """Batch sizes and costs of buckets. counts: of images, maybe an array; area: of a shape."""

    pixels: int  # roughly, of a batch
    multiple: int  # of which the number of a batch's images is a multiple

    def images(self, counts: Any, area: int) -> Any:
        """The number of images of a batch."""
        largest = max(1, self.pixels // (area * self.multiple)) * self.multiple
        batches = _rounded_up(counts, largest) // largest
        return _rounded_up(-(-counts // batches), self.multiple)

    def cost(self, counts: Any, area: int) -> Any:
        """The pixels of all batches."""
        return _rounded_up(counts, self.images(counts, area)) * area


def _scaled(sizes: np.ndarray, Q: int, warp: bool = False) -> np.ndarray:
    """(n, 2): the scaled sizes of images of these stored sizes, (n, 2)."""
    unique, inverse = np.unique(sizes, axis=0, return_inverse=True)
    view = crops.WholeView(Q=Q, warp=warp)
    scaled = [view.places(height, width)[0].scaled for height, width in unique.tolist()]
    return np.array(scaled, np.int64)[inverse.reshape(-1)]


def _shapes(scaled: np.ndarray, Q: int, programs: int, batching: _Batching) -> np.ndarray:
    """(n, 2): the shape at which each image is shown. scaled: (n, 2), the images' scaled sizes."""
    heights, widths = scaled.T
    worth = WORTH * float((heights * widths).sum())
    largest = scaled.max(axis=0)
    lowest = batching.cost(len(scaled), int(largest.prod())) + worth
    shapes = np.tile(largest, (len(scaled), 1))
    for landscape in (widths >= heights, widths > heights):  # squares may be either
        cuts = [
            _cuts(lengths, programs, lambda counts, length: batching.cost(counts, Q * length))
            for lengths in (widths[landscape], heights[~landscape])
        ]
        for (wide, ends_wide), (high, ends_high) in itertools.product(*cuts):
            count = len(ends_wide) + len(ends_high)
            if count <= programs and wide + high + count * worth < lowest:
                lowest = wide + high + count * worth
                shapes = np.full_like(scaled, Q)
                shapes[landscape, 1] = ends_wide[np.searchsorted(ends_wide, widths[landscape])]
                shapes[~landscape, 0] = ends_high[np.searchsorted(ends_high, heights[~landscape])]
    return shapes


def _cuts(
    lengths: np.ndarray, k_max: int, cost: Callable[[np.ndarray, int], np.ndarray]
) -> list[tuple[float, np.ndarray]]:
    """The cheapest cuts of the sorted lengths into 0, 1, ... `k_max` parts.

    cost(counts, length): of parts with so many lengths, the longest of which is `length`. Each cut
    is (its cost, the longest length of each part, ascending). Dynamic programming over the j
    shortest lengths.
    """
    unique, counts = np.unique(lengths, return_counts=True)
    shorter = np.concatenate([[0], np.cumsum(counts)])  # how many are shorter
    n = len(unique)
    best: np.ndarray = np.full((k_max + 1, n + 1), np.inf)  # of k parts with the first j lengths
    last_start: np.ndarray = np.zeros((k_max + 1, n + 1), np.int64)  # where the last of them begins
    best[0, 0] = 0
    for j, length in enumerate(unique.tolist(), 1):
        ways = best[:-1, :j] + cost(shorter[j] - shorter[:j], length)
        last_start[1:, j] = ways.argmin(axis=1)
        best[1:, j] = ways.min(axis=1)
    cuts = []
    for k in np.flatnonzero(np.isfinite(best[:, n])).tolist():
        ends = [n]
        for part in range(k, 0, -1):
            ends.append(int(last_start[part, ends[-1]]))
        cuts.append((float(best[k, n]), unique[np.array(ends[-2::-1], np.int64) - 1]))
    return cuts


def waste(
    sizes: np.ndarray, Q: int, *, pixels: int, multiple: int = 1, programs: int = PROGRAMS
) -> float:
    """The share of the pixels of `whole_stream`'s batches that are padding or blank places."""
    buckets = plan(sizes, Q, pixels=pixels, multiple=multiple, programs=programs)
    image_pixels = sum(int(_scaled(sizes[b.indices], Q).prod(axis=1).sum()) for b in buckets)
    return 1 - image_pixels / sum(b.pixels for b in buckets) if buckets else 0.0


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
    how: Decoding = DEFAULT_DECODING,
) -> Generator[TestBatch]:
    """Every usable example once, scaled to short side Q: bucket by bucket, in each by index.

    sizes: `image_sizes(source)`, whose unusable files are left out, and neither reported nor
    counted again. The others are as for `plan`. All batches of a bucket have one shape. Raises
    DataError as `Stream` does, and where an image has another size than in `sizes`.
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
    how: Decoding = DEFAULT_DECODING,
) -> Generator[TestBatch]:
    """`whole_stream` of the images (h, w, C) uint8 that `read(index)` returns, with labels 0.

    They are scaled here, one by one. sizes: (n, 2), heights and widths of all.
    """
    view = crops.WholeView(Q=Q, warp=warp)
    buckets = plan(sizes, Q, pixels=pixels, multiple=multiple, warp=warp)

    def images() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for bucket in buckets:
            for index in bucket.indices.tolist():
                (place,) = view.places(*sizes[index].tolist())
                meta: np.ndarray = np.zeros(viewer.META_SIZE, np.int32)
                meta[INDEX] = index
                meta[viewer.ENLARGED] = min(sizes[index]) < min(place.scaled)
                yield meta, image_files.scaled(read(index), place.scaled, how.kernel)

    yield from _batches(buckets, how.channels, images())


def _batches(
    buckets: Sequence[Bucket],
    channels: int,
    images: Iterator[tuple[np.ndarray, np.ndarray | None]],
) -> Iterator[TestBatch]:
    """The batches of all buckets. images: (meta, image) in the buckets' order."""
    for bucket in buckets:
        for start in range(0, len(bucket.indices), bucket.batch):
            count = min(bucket.batch, len(bucket.indices) - start)
            yield _batch(bucket, channels, itertools.islice(images, count))


def _batch(
    bucket: Bucket, channels: int, images: Iterable[tuple[np.ndarray, np.ndarray | None]]
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
    for k, (meta, image) in enumerate(images):
        batch.labels[k], batch.indices[k] = meta[viewer.LABEL], meta[INDEX]
        if image is not None:
            height, width = image.shape[:2]
            batch.views[k, 0, :height, :width] = image
            sizes[k], batch.mask[k] = (height, width), True
            batch.enlarged[k] = meta[viewer.ENLARGED]
    return batch


def _images(
    source: Source,
    view: crops.WholeView,
    sizes: np.ndarray,
    indices: Sequence[int],
    how: Decoding,
) -> Generator[tuple[np.ndarray, np.ndarray | None]]:
    """(meta, scaled image (h, w, C) or None if unusable) of each of `indices`, read in groups."""
    changed: dict[int, tuple[int, int]] = {}  # index -> size, where it is not that of `sizes`

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

    example_viewer = Viewer(source, places, True, (1, 1, 1, how.channels), how.kernel, whole=True)
    numbers = range(_rounded_up(len(indices), GROUP))
    groups = Batches(example_viewer, locate, GROUP, numbers, how, ragged=True)
    try:
        for pixels, metas in groups:
            groups.report_bad()
            if changed:
                index = min(changed)
                height, width = changed[index]
                earlier = "{1}x{0}".format(*sizes[index])
                raise DataError(
                    f"{source.where(index)} has {width}x{height} pixels, and had {earlier} when "
                    "the sizes of these images were read"
                )
            start = 0
            for meta in metas:
                usable = meta[KIND] != UNUSABLE
                shape = (*(scaled_size(int(meta[INDEX])) if usable else (1, 1)), how.channels)
                size = math.prod(shape)
                yield meta, pixels[start : start + size].reshape(shape) if usable else None
                start += size
    finally:
        groups.close()

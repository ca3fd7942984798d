"""Whole images in batches: few shapes, little padding, every example once."""

import contextlib
import io
import itertools
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from input_pipeline import DataError, crops, jpeg, whole_images
from input_pipeline.stream import Decoding, eval_stream
from tests.input_pipeline.encoded_images import Memory, encoded, without_tables

pytestmark = pytest.mark.usefixtures("no_pauses")


def shapes_of(sizes, Q, **options):
    return [bucket.shape for bucket in whole_images.plan(sizes, Q, **options)]


def picture(height, width, seed=0):
    """A picture with smooth parts, edges and some texture."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels[height // 4 : height // 2, width // 3 :] = rng.integers(0, 256, 3)
    return Image.fromarray(
        np.clip(pixels + rng.integers(-9, 10, pixels.shape), 0, 255).astype("u1")
    )


def photo_sizes(n, seed=0):
    """(n, 2) as photographs have them: mostly 4:3 and 3:2, one in four upright, some cut freely."""
    rng = np.random.default_rng(seed)
    aspects = rng.choice([4 / 3, 3 / 2, 1.0], n, p=[0.55, 0.4, 0.05])
    free = rng.random(n) < 0.35
    aspects[free] = 1 + rng.gamma(2.0, 0.2, free.sum())
    sizes = np.stack([np.rint(500 / aspects), np.full(n, 500)], axis=1).astype(np.int32)
    upright = rng.random(n) < 0.25
    sizes[upright] = sizes[upright, ::-1]
    return sizes


SHAPES = [
    (60, 80), (80, 60), (50, 50), (61, 83), (45, 90), (90, 45), (30, 600), (700, 25), (9, 7),
    (77, 77), (64, 70), (70, 64), (40, 55), (55, 40), (60, 80), (48, 100), (63, 90), (88, 61),
    (60, 80), (52, 90), (33, 44), (44, 33), (60, 80),
]  # fmt: skip
N = len(SHAPES)
CONTENTS = [encoded(picture(*shape, i)) for i, shape in enumerate(SHAPES)]
SOURCE = Memory(CONTENTS)
SIZES = np.array(SHAPES, np.int32)
Q = 32
ALL = Decoding(max_unusable=1.0)


def streamed(source=SOURCE, sizes=SIZES, *, pixels=5 * Q * Q, **options):
    return list(whole_images.whole_stream(source, Q, sizes, pixels=pixels, **options))


def singles(source=SOURCE, how=ALL):
    """index -> the image alone, (h, w, C), from the stream of single ones."""
    batches = eval_stream(source, crops.WholeView(Q=Q), batch=1, how=how)
    return {int(b.indices[0]): b.views[0, 0] for b in batches if b.mask[0]}


def places(batches):
    """(index, label, image in its place (H, W, C), size, whether it is an example) of each."""
    return [
        (int(index), int(label), image, tuple(size.tolist()), bool(mask))
        for b in batches
        for index, label, image, size, mask in zip(
            b.indices, b.labels, b.views[:, 0], b.sizes, b.mask, strict=True
        )
    ]


# ------------------------------------------------------------------------------- stored sizes


def test_sizes_are_pillows_whatever_the_file_is():
    image = picture(60, 81)
    grey16 = Image.fromarray((np.arange(60 * 50).reshape(60, 50) * 21).astype(np.uint16))
    contents = [
        *CONTENTS,
        encoded(image, "PNG"),
        encoded(image.convert("CMYK")),
        encoded(image.convert("L")),
        encoded(image, progressive=True),
        encoded(image.convert("RGBA"), "PNG"),
        encoded(grey16, "PNG"),
    ]
    sizes = whole_images.image_sizes(Memory(contents))
    expected = [Image.open(io.BytesIO(content)).size[::-1] for content in contents]
    assert sizes.dtype == np.int32
    assert [tuple(size) for size in sizes.tolist()] == expected


def bad_source():
    contents = list(CONTENTS)
    contents[1] = CONTENTS[1][: len(CONTENTS[1]) // 2]
    contents[4] = b""
    contents[6] = b"not an image" * 50
    contents[7] = encoded(picture(5, 300))  # one side is 60 times the other
    contents[10] = without_tables(CONTENTS[10])
    contents[2] = encoded(picture(*SHAPES[2]), "PNG")
    contents[5] = encoded(picture(*SHAPES[5]).convert("CMYK"))
    contents[8] = encoded(picture(*SHAPES[8]).convert("L"))
    return Memory(contents, broken=(12,))


BAD = [1, 4, 6, 7, 12]  # and 10, which only decoding shows


def test_unusable_files_have_no_size_and_are_named_in_order():
    reasons = []
    sizes = whole_images.image_sizes(bad_source(), replace(ALL, on_bad=reasons.append, threads=3))
    assert np.flatnonzero(sizes[:, 0] == 0).tolist() == BAD
    assert not sizes[BAD].any()
    assert [reason.partition("image-")[2][:2].strip(" :") for reason in reasons] == list(
        map(str, BAD)
    )
    assert "broken disk" in reasons[-1]
    good = [i for i in range(N) if i not in BAD]
    np.testing.assert_array_equal(sizes[good], SIZES[good])


@pytest.mark.parametrize(
    ("how", "words"),
    [(Decoding(policy="raise"), "none is allowed"), (Decoding(max_unusable=0.1), "0.1 is allowed")],
)
def test_more_unusable_files_than_allowed_end_the_reading_of_sizes(how, words):
    with pytest.raises(DataError, match=words):
        whole_images.image_sizes(bad_source(), how)
    five = Decoding(max_unusable=5 / N)
    assert (whole_images.image_sizes(bad_source(), five)[:, 0] == 0).sum() == 5


def test_storage_that_fails_for_a_moment_costs_no_size():
    failing, reasons = Counter(), []

    class Shaky(Memory):
        def read(self, i):
            failing[i] += 1
            if failing[i] <= 2:
                raise OSError("input/output error")
            return super().read(i)

    sizes = whole_images.image_sizes(Shaky(CONTENTS), Decoding(on_bad=reasons.append))
    np.testing.assert_array_equal(sizes, SIZES)
    assert not reasons


def test_files_are_read_once_by_no_more_threads_than_said_and_progress_is_told():
    reads, lock, busy, most, progress = Counter(), threading.Lock(), [0], [0], []

    class Watched(Memory):
        def read(self, i):
            with lock:
                reads[i] += 1
                busy[0] += 1
                most[0] = max(most[0], busy[0])
            time.sleep(0.001)
            with lock:
                busy[0] -= 1
            return super().read(i)

    n = 150
    source = Watched([CONTENTS[i % N] for i in range(n)])
    sizes = whole_images.image_sizes(
        source, Decoding(threads=3), lambda count, total: progress.append((count, total))
    )
    np.testing.assert_array_equal(sizes, SIZES[np.arange(n) % N])
    assert set(reads.values()) == {1}
    assert most[0] <= 3
    assert progress == sorted(progress)
    assert progress[-1] == (n, n)
    assert len(progress) > 2


# ------------------------------------------------------------------------------------ buckets


def partitions(items):
    """All ways to put items into groups."""
    if not items:
        yield []
        return
    first, *rest = items
    for groups in partitions(rest):
        yield [[first], *groups]
        for k, group in enumerate(groups):
            yield [*groups[:k], [first, *group], *groups[k + 1 :]]


def total_of(groups, scaled, side):
    """What the plan minimises, of groups of images that lie, are upright, or are all of them."""
    own = sum(h * w for h, w in scaled)
    total = whole_images.WORTH * own * len(groups)
    for group in groups:
        H, W = (max(scaled[i][axis] for i in group) for axis in (0, 1))
        if min(H, W) > side and len(group) < len(scaled):
            return np.inf
        total += len(group) * H * W
    return total


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("programs", [1, 2, 3, 8])
def test_no_other_buckets_make_less_padding(seed, programs):
    rng = np.random.default_rng(seed)
    spread = rng.choice([3, 20, 300])
    sizes = 100 + rng.integers(0, spread, (7, 2)) * (rng.random((7, 2)) < 0.7)
    if seed % 3 == 0:
        sizes = np.sort(sizes, axis=1)  # all lie
    side = 64
    scaled = [crops.scaled_size(h, w, side) for h, w in sizes.tolist()]
    least = min(
        total_of(groups, scaled, side)
        for groups in partitions(list(range(7)))
        if len(groups) <= programs
    )
    buckets = whole_images.plan(sizes, side, pixels=1, programs=programs)
    assert len(buckets) <= programs
    groups = [bucket.indices.tolist() for bucket in buckets]
    assert sorted(itertools.chain(*groups)) == list(range(7))
    assert total_of(groups, scaled, side) == pytest.approx(least, rel=1e-12)
    shapes = [tuple(max(scaled[i][axis] for i in g) for axis in (0, 1)) for g in groups]
    assert shapes_of(sizes, side, pixels=1, programs=programs) == shapes


@pytest.mark.parametrize("seed", range(8))
def test_blank_places_count_where_batches_are_large(seed):
    # Lying images only, cut at any lengths.
    rng = np.random.default_rng(seed)
    widths = np.sort(rng.integers(40, 120, 14))
    sizes = np.stack([np.full(14, 40), widths], axis=1)
    pixels, multiple = 9 * 40 * 70, 4

    def padded(widths):
        area = 40 * int(widths[-1])
        most = max(1, pixels // area // multiple) * multiple
        batches = -(-len(widths) // most)
        b = next(b for b in range(multiple, 999, multiple) if b * batches >= len(widths))
        return area * b * -(-len(widths) // b)

    ends = sorted({int(np.searchsorted(widths, w, side="right")) for w in widths})[:-1]
    least = min(
        sum(map(padded, np.split(widths, cuts)))
        + whole_images.WORTH * 40 * widths.sum() * (len(cuts) + 1)
        for count in range(4)
        for cuts in itertools.combinations(ends, count)
    )
    buckets = whole_images.plan(sizes, 40, pixels=pixels, multiple=multiple, programs=4)
    total = sum(bucket.pixels for bucket in buckets) + whole_images.WORTH * 40 * widths.sum() * len(
        buckets
    )
    assert total == pytest.approx(least)
    assert all(bucket.batch % multiple == 0 for bucket in buckets)


@pytest.mark.parametrize("side", [256, 384])
@pytest.mark.parametrize(("n", "multiple", "most"), [(200, 1, 0.1), (200, 8, 0.15), (5000, 8, 0.1)])
def test_little_is_wasted_on_photographs_with_few_programs(n, side, multiple, most):
    pixels = 64 * 256 * 341
    sizes = photo_sizes(n)
    assert whole_images.waste(sizes, side, pixels=pixels, multiple=multiple) < most
    assert len(shapes_of(sizes, side, pixels=pixels, multiple=multiple)) <= 6
    for bucket in whole_images.plan(sizes, side, pixels=pixels, multiple=multiple):
        area = bucket.shape[0] * bucket.shape[1]
        assert multiple <= bucket.batch <= max(multiple, pixels // area)
        assert len(bucket.indices) > bucket.batch * (len(bucket.indices) // bucket.batch - 1)


def test_images_of_one_size_need_one_program():
    sizes = np.full((1000, 2), 224, np.int32)
    assert shapes_of(sizes, 256, pixels=1) == [(256, 256)]
    assert whole_images.waste(sizes, 256, pixels=100 * 256 * 256) == 0
    # 1000 images in batches of at most 64: 16 of them, of 63 rather than 64.
    (bucket,) = whole_images.plan(sizes, 256, pixels=64 * 256 * 256)
    assert bucket.batch == 63


def test_few_very_long_images_do_not_pad_the_others():
    sizes = np.concatenate([photo_sizes(5000), [[100, 4900], [4000, 90]]]).astype(np.int32)
    assert whole_images.waste(sizes, 256, pixels=128 * 256 * 341) < 0.15


def test_no_images_make_no_buckets():
    none = np.zeros((0, 2), np.int32)
    for sizes in (none, np.zeros((3, 2), np.int32)):
        assert whole_images.plan(sizes, 256, pixels=10**6) == []
        assert whole_images.waste(sizes, 256, pixels=10**6) == 0
    assert streamed(Memory([]), whole_images.image_sizes(Memory([]))) == []
    assert whole_images.image_sizes(Memory([])).shape == (0, 2)


# ------------------------------------------------------------------------------------- stream


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"multiple": 3, "how": Decoding(threads=1)},
        {"programs": 1},
        {"programs": 2, "pixels": 1},
        {"pixels": 10**6, "multiple": 8},
        {"how": Decoding(kernel="bicubic", channels=1)},
    ],
    ids=str,
)
def test_every_image_is_shown_once_as_it_is_shown_alone(options):
    expected = singles(how=options.get("how", ALL))
    batches = streamed(**options)
    indices = []
    for index, label, image, (height, width), mask in places(batches):
        if not mask:
            assert not image.any()
            assert (height, width) == image.shape[:2]
            continue
        indices.append(index)
        assert label == index % 7
        assert (height, width) == crops.scaled_size(*SHAPES[index], Q)
        np.testing.assert_array_equal(image[:height, :width], expected[index])
        assert not image[height:].any()
        assert not image[:, width:].any()
    assert sorted(indices) == list(range(N))
    # One program a shape, in a row; within it by index.
    shapes = [batch.views[:, 0].shape for batch in batches]
    runs = [shape for shape, _ in itertools.groupby(shapes)]
    assert len(runs) == len(set(runs)) == len({shape[1:3] for shape in runs})
    assert len(runs) <= options.get("programs", whole_images.PROGRAMS)
    for shape in runs:
        of_shape = [b.indices[b.mask] for b in batches if b.views[:, 0].shape == shape]
        assert (np.diff(np.concatenate(of_shape)) > 0).all()
        assert shape[0] % options.get("multiple", 1) == 0


def test_waste_is_that_of_the_batches():
    for options in ({"pixels": 5 * Q * Q}, {"pixels": 10**5, "multiple": 4, "programs": 3}):
        batches = streamed(**options)
        own = sum(int(b.sizes[b.mask].prod(axis=1).sum()) for b in batches)
        computed = sum(b.views[..., 0].size for b in batches)
        assert whole_images.waste(SIZES, Q, **options) == pytest.approx(1 - own / computed)


def test_warped_images_are_squares_of_one_shape():
    view = crops.WholeView(Q=Q, warp=True)
    alone = [batch.views[0, 0] for batch in eval_stream(SOURCE, view, batch=1)]
    batches = streamed(warp=True)
    assert {batch.views.shape[2:4] for batch in batches} == {(Q, Q)}
    for index, _, image, size, mask in places(batches):
        if mask:
            assert size == (Q, Q)
            np.testing.assert_array_equal(image, alone[index])


def test_fewer_images_than_programs_are_enough():
    source = SOURCE.take(np.array([1, 0]))
    batches = streamed(source, SIZES[[1, 0]])
    assert sorted(b.views[:, 0].shape[:3] for b in batches) == [(1, 32, 42), (1, 42, 32)]
    (together,) = streamed(source, SIZES[[1, 0]], multiple=8)
    assert together.mask.tolist() == [True] * 2 + [False] * 6
    assert together.views.shape == (8, 1, 42, 42, 3)
    assert together.indices[:2].tolist() == [0, 1]
    assert together.labels[:2].tolist() == [1, 0]


def test_unusable_files_are_left_out_and_told_once():
    source, reasons = bad_source(), []
    sizes = whole_images.image_sizes(source, ALL)
    rows = places(streamed(source, sizes, how=replace(ALL, on_bad=reasons.append)))
    usable = {index: (label, image, size) for index, label, image, size, mask in rows if mask}
    assert sorted(usable) == [i for i in range(N) if i not in (*BAD, 10)]
    assert len(reasons) == 1  # the others were told when sizes were read
    assert "image-10" in reasons[0]
    expected = singles(source)
    for index, (label, image, (height, width)) in usable.items():
        assert label == index % 7
        np.testing.assert_array_equal(image[:height, :width], expected[index])
    (left_out,) = [(image, size) for i, _, image, size, mask in rows if i == 10 and not mask]
    assert not left_out[0].any()
    assert left_out[1] == left_out[0].shape[:2]


def test_the_policy_raise_ends_at_the_first_file_that_can_not_be_decoded():
    source = Memory([*CONTENTS[:10], without_tables(CONTENTS[10]), *CONTENTS[11:]])
    how = Decoding(policy="raise")
    sizes = whole_images.image_sizes(source, how)
    assert jpeg.header(source.contents[10])
    with pytest.raises(DataError, match=r"none is allowed[^\n]*\n[^\n]*image-10"):
        streamed(source, sizes, how=how)


def test_sizes_of_other_images_are_refused():
    sizes = SIZES.copy()
    sizes[3] = 61, 84
    with pytest.raises(DataError, match="image-3 has 83x61 pixels, and had 84x61"):
        streamed(sizes=sizes)
    with pytest.raises(ValueError, match="of 23 images"):
        streamed(sizes=SIZES[:-1])


def test_a_stream_can_be_left_early():
    batches = whole_images.whole_stream(SOURCE, Q, SIZES, pixels=Q * Q)
    with contextlib.closing(batches):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)

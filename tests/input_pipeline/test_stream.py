"""The stream of views from encoded images: exact to repeat, whatever is in the files."""

import io
import itertools
import time
from collections import Counter
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from input_pipeline import DataError, crops, image_files, jpeg, order, whole_images
from input_pipeline.sources import Upright
from input_pipeline.stream import Decoding, Stream, eval_stream
from tests.input_pipeline.encoded_images import Memory, encoded, without_tables

pytestmark = pytest.mark.usefixtures("no_pauses")


def picture(i):
    """A small picture, unlike the others: numbered by its colours, with texture."""
    rng = np.random.default_rng(i)
    height, width = rng.integers(40, 90, 2)
    pixels = rng.integers(0, 60, (height, width, 3)) + rng.integers(0, 190, 3)
    return Image.fromarray(pixels.astype(np.uint8))


def damaged(content):
    """A JPEG with a marker in the middle of its image: its upper part can be decoded."""
    place = (content.index(b"\xff\xda") + len(content)) // 2
    return content[:place] + b"\xff\xc4" + content[place + 2 :]


N = 45
CONTENTS = [encoded(picture(i)) for i in range(N)]
SOURCE = Memory(CONTENTS)
VIEW = crops.ScaleView(crop=24, S=(28, 56))


def batches(count, source=SOURCE, view=VIEW, *, batch=12, seed=5, position=0, shard=(0, 1), **how):
    where = {"position": position, "shard": shard}
    with Stream(source, view, seed=seed, batch=batch, **where, how=Decoding(**how)) as stream:
        return [next(stream) for _ in range(count)]


def joined(parts):
    """The fields of batches, one after the other."""
    names = [name for name, array in vars(parts[0]).items() if array is not None]
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.fixture(scope="module")
def whole():
    """Ten batches of 12: two epochs of 45 and most of a third."""
    return joined(batches(10))


def test_a_batch_holds_the_examples_and_views_that_the_numbers_say(whole):
    indices, epochs = order.training(5, N, 0, 120)
    np.testing.assert_array_equal(whole["indices"], indices)
    np.testing.assert_array_equal(whole["epochs"], epochs)
    np.testing.assert_array_equal(whole["labels"], indices % 7)
    for place in (0, 50, 119):
        index, epoch = int(indices[place]), int(epochs[place])
        image = Image.open(io.BytesIO(CONTENTS[index]))
        words = order.words(5, epoch, index, VIEW.WORDS)
        drawn = VIEW.place(image.height, image.width, words)
        scaled = image.resize(drawn.scaled[::-1], Image.Resampling.BILINEAR)
        top, left = drawn.offset
        expected = np.asarray(scaled)[top : top + 24, left : left + 24].astype(int)
        off = np.abs(whole["images"][place] - expected)
        assert off.max() <= 3
        assert off.mean() < 0.5
        assert whole["offsets"][place].tolist() == [top, left]


def test_views_differ_between_epochs(whole):
    index = whole["indices"][0]
    first, second = np.flatnonzero(whole["indices"] == index)[:2]
    assert (whole["images"][first] != whole["images"][second]).any()


@pytest.mark.parametrize(("hosts", "threads"), [(2, 1), (4, 8), (1, 1), (1, 8)])
def test_hosts_and_threads_change_nothing(whole, hosts, threads):
    parts = [batches(10, shard=(h, hosts), threads=threads) for h in range(hosts)]
    together = [parts[h][step] for step in range(10) for h in range(hosts)]
    assert_same(joined(together), whole)


@pytest.mark.parametrize("position", [1, 3, 4, 7])
def test_a_restored_stream_gives_the_same_bytes(whole, position):
    rest = joined(batches(10 - position, position=position))
    assert_same(rest, {name: array[12 * position :] for name, array in whole.items()})


def test_the_position_counts_the_batches():
    with Stream(SOURCE, VIEW, seed=0, batch=4, position=7) as stream:
        next(stream)
        assert stream.position == 8


def test_the_views_do_not_depend_on_the_batch_size(whole):
    again = joined(batches(8, batch=15))
    assert_same(again, whole)


def test_a_far_position_is_reached_at_once():
    far = 10**9
    (batch,) = batches(1, position=far)
    indices, epochs = order.training(5, N, far * 12, 12)
    np.testing.assert_array_equal(batch.indices, indices)
    np.testing.assert_array_equal(batch.epochs, epochs)


@pytest.mark.parametrize("view", [crops.SquareView(crop=24, S=30), crops.AreaView(crop=24)])
def test_other_views_stream_too(view):
    (batch,) = batches(1, view=view)
    for image, index, offset in zip(batch.images, batch.indices, batch.offsets, strict=True):
        with Image.open(io.BytesIO(CONTENTS[index])) as stored:
            place = view.place(*stored.size[::-1], order.words(5, 0, int(index), view.WORDS))
            top, left, height, width = place.box
            part = stored.resize(
                (24, 24), Image.Resampling.BILINEAR, (left, top, left + width, top + height)
            )
        assert np.abs(image.astype(int) - np.asarray(part)).mean() < 3
        assert tuple(offset) == place.offset


# ------------------------------------------------------------------------------ odd files

GREY16 = Image.fromarray((np.arange(60 * 50).reshape(60, 50) * 21).astype(np.uint16))
READABLE = {
    0: ("grey", encoded(picture(0).convert("L"))),
    1: ("CMYK", encoded(picture(1).convert("CMYK"))),
    2: ("PNG named .JPEG", encoded(picture(2), "PNG")),
    3: ("16 bits", encoded(GREY16, "PNG")),
    4: ("smaller than the crop", encoded(picture(4).resize((9, 7)))),
    5: ("progressive", encoded(picture(5), progressive=True)),
    6: ("transparent", encoded(picture(6).convert("RGBA"), "PNG")),
}
UNREADABLE = {
    7: ("truncated", CONTENTS[7][: len(CONTENTS[7]) // 2]),
    8: ("empty", b""),
    9: ("text", b"not an image" * 50),
    10: ("plain outside, not inside", without_tables(CONTENTS[10])),
    13: ("damaged in the middle", damaged(CONTENTS[13])),
}


def odd_source():
    contents = list(CONTENTS)
    for index, (_, content) in {**READABLE, **UNREADABLE}.items():
        contents[index] = content
    return Memory(contents, broken=(11,))


def test_one_of_the_unusable_files_looks_plain():
    plain = [i for i, (_, content) in UNREADABLE.items() if jpeg.header(content)]
    assert plain == [10]


def test_odd_but_readable_files_are_converted_as_pillow_does():
    reasons = []
    source = odd_source().take(np.array(list(READABLE)))
    view = crops.CentreView(crop=20, Q=20)
    (batch,) = eval_stream(source, view, batch=len(READABLE), how=Decoding(on_bad=reasons.append))
    assert batch.mask.all()
    assert not reasons
    assert batch.labels.tolist() == list(READABLE)
    for shown, (name, content) in zip(batch.views[:, 0], READABLE.values(), strict=True):
        image = GREY16.point(lambda v: v / 256).convert("L") if name == "16 bits" else None
        image = image or Image.open(io.BytesIO(content))
        scaled = crops.scaled_size(image.height, image.width, 20)
        expected = np.asarray(image.convert("RGB").resize(scaled[::-1], Image.Resampling.BILINEAR))
        (place,) = view.places(image.height, image.width)
        top, left = place.offset
        off = np.abs(shown.astype(int) - expected[top : top + 20, left : left + 20])
        assert max(off.max() / 3, off.mean() / 0.6) <= 1, name


def test_unusable_files_are_named_and_replaced_by_the_next_example():
    reasons = []
    source = odd_source()
    options = {"source": source, "max_unusable": 0.2, "on_bad": reasons.append}
    replaced = joined(batches(4, **options))
    plain = joined(batches(4))
    assert len(reasons) == 6
    assert len(set(reasons)) == 6
    for index in (*UNREADABLE, 11):
        assert sum(f"image-{index}" in reason for reason in reasons) == 1
    assert any("broken disk" in reason for reason in reasons)
    bad = np.isin(plain["indices"], [*UNREADABLE, 11])
    assert bad.sum() >= 5
    next_usable = np.where(plain["indices"][bad] == 13, 14, 12)
    np.testing.assert_array_equal(replaced["indices"][bad], next_usable)
    np.testing.assert_array_equal(replaced["indices"][~bad], plain["indices"][~bad])
    np.testing.assert_array_equal(replaced["labels"], replaced["indices"] % 7)
    same = ~bad & ~np.isin(plain["indices"], list(READABLE))
    np.testing.assert_array_equal(replaced["images"][same], plain["images"][same])
    # The substitute is shown as example 12 of that epoch.
    shown = {
        e: replaced["images"][(replaced["indices"] == 12) & (replaced["epochs"] == e)] for e in (0,)
    }
    assert len(shown[0]) >= 2
    assert (shown[0] == shown[0][0]).all()


def test_bad_files_change_nothing_for_other_hosts_threads_and_restarts():
    def some(position, count, **options):
        return batches(count, odd_source(), max_unusable=0.2, position=position, **options)

    expected = joined(some(0, 6))
    parts = [some(0, 6, shard=(h, 3), threads=2 + h) for h in range(3)]
    assert_same(joined([parts[h][k] for k in range(6) for h in range(3)]), expected)
    rest = joined(some(2, 4))
    assert_same(rest, {name: array[24:] for name, array in expected.items()})


def test_more_bad_files_than_allowed_end_the_stream_with_their_names():
    with pytest.raises(
        DataError, match=r"(?s)of 45 examples .* 0.02 is allowed .*image-"
    ) as raised:
        batches(8, odd_source(), max_unusable=0.02)
    assert "cnn-depth data check" in str(raised.value)


def test_the_policy_raise_ends_at_the_first_bad_file():
    with pytest.raises(DataError, match=r"none is allowed"):
        batches(8, odd_source(), policy="raise")


def test_a_test_leaves_unusable_files_out_and_names_them():
    reasons = []
    view = crops.TenCropView(crop=20, Q=24)
    how = Decoding(max_unusable=0.2, on_bad=reasons.append)
    batches = list(eval_stream(odd_source(), view, batch=8, how=how))
    mask = np.concatenate([batch.mask for batch in batches])
    indices = np.concatenate([batch.indices for batch in batches])
    assert all(batch.views.shape == (8, 5, 20, 20, 3) for batch in batches)
    assert set(range(N)) - set(indices[mask]) == {*UNREADABLE, 11}
    assert Counter(indices[mask]).most_common(1)[0][1] == 1
    assert len(reasons) == 6


# -------------------------------------------------------------------------------- testing


def test_a_test_shows_every_example_once_in_order():
    batches = list(eval_stream(SOURCE, crops.CentreView(crop=24, Q=28), batch=8))
    assert {len(batch.mask) for batch in batches} == {8}
    shown = [
        (int(i), int(label))
        for batch in batches
        for i, label in zip(batch.indices[batch.mask], batch.labels[batch.mask], strict=True)
    ]
    assert shown == [(i, i % 7) for i in range(N)]


def test_whole_images_keep_their_own_shapes():
    view = crops.WholeView(Q=30)
    for i, batch in enumerate(eval_stream(SOURCE.take(np.arange(5)), view, batch=8)):
        with Image.open(io.BytesIO(CONTENTS[i])) as image:
            assert batch.views.shape[2:4] == crops.scaled_size(image.height, image.width, 30)


@pytest.mark.parametrize("view", [crops.CentreView(crop=24, Q=28), crops.GridView(crop=24, Q=28)])
def test_test_images_are_scaled_with_the_kernel_asked_for(view):
    contents = [CONTENTS[0], encoded(picture(1), "PNG"), encoded(picture(2).convert("CMYK"))]
    source = Memory(contents)
    pillows = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    shown = {}
    for kernel, resampling in pillows.items():
        (batch,) = eval_stream(source, view, batch=3, how=Decoding(kernel=kernel))
        shown[kernel] = batch.views
        for content, views in zip(contents, batch.views, strict=True):
            image = Image.open(io.BytesIO(content)).convert("RGB")
            for pixels, place in zip(views, view.places(image.height, image.width), strict=True):
                top, left = place.offset
                scaled = np.asarray(image.resize(place.scaled[::-1], resampling))
                np.testing.assert_array_equal(pixels, scaled[top : top + 24, left : left + 24])
    (plain,) = eval_stream(source, view, batch=3)
    np.testing.assert_array_equal(plain.views, shown["bilinear"])
    assert np.abs(shown["bicubic"].astype(int) - shown["bilinear"]).mean() > 1


def test_grey_networks_get_grey_views():
    (batch,) = batches(1, channels=1)
    assert batch.images.shape == (12, 24, 24, 1)


def test_storage_that_fails_for_a_moment_costs_no_example():
    failing = Counter()

    class Shaky(Memory):
        def read(self, i):
            failing[i] += 1
            if failing[i] <= 2:
                raise OSError("input/output error")
            return super().read(i)

    reasons = []
    assert_same(joined(batches(4, Shaky(CONTENTS), on_bad=reasons.append)), joined(batches(4)))
    assert not reasons


def test_a_stream_that_failed_stays_failed():
    how = Decoding(policy="raise")
    with Stream(odd_source(), VIEW, seed=5, batch=12, how=how) as stream:
        with pytest.raises(DataError) as first:
            list(itertools.islice(stream, 8))
        with pytest.raises(DataError) as second:
            next(stream)
    assert str(first.value) == str(second.value)


def test_large_windows_are_decoded_alone_to_the_same_bytes(whole, monkeypatch):
    monkeypatch.setattr("input_pipeline.stream.LARGE", 900)
    assert_same(joined(batches(10)), whole)
    alone = joined(batches(4, odd_source(), max_unusable=0.2))
    monkeypatch.undo()
    assert_same(alone, joined(batches(4, odd_source(), max_unusable=0.2)))


def test_a_program_ends_though_a_stream_is_still_open(fresh_python):
    code = """
import tests.input_pipeline.test_stream as t
open_test = t.eval_stream(t.Memory(t.CONTENTS * 40), t.crops.CentreView(crop=24, Q=28), batch=8)
next(open_test)
open_stream = t.Stream(t.SOURCE, t.VIEW, seed=0, batch=4)
next(open_stream)
"""
    process = fresh_python("-c", code, timeout=120)
    assert process.returncode == 0, process.stderr


def test_the_slowest_stage_is_told():
    class Slow(Memory):
        def read(self, i):
            time.sleep(0.01)
            return super().read(i)

    slow_to_read = Stream(Slow(CONTENTS), VIEW, seed=0, batch=12, how=Decoding(threads=2))
    large = Memory([encoded(picture(0).resize((900, 700)))] * 40)
    slow_to_show = Stream(large, crops.ScaleView(crop=600, S=(700, 900)), seed=0, batch=12)
    for stream, stage in ((slow_to_read, "read"), (slow_to_show, "augment")):
        with stream:
            for _ in range(12):
                next(stream)
            assert stream.bottleneck == stage


@pytest.mark.parametrize("kernel", get_args(image_files.Resize))
@pytest.mark.parametrize("warp", [False, True])
def test_a_test_view_is_the_same_to_the_last_bit_however_it_is_read(kernel, warp):
    # `predict` reads one file with Pillow, `evaluate` streams many with TensorFlow.
    view = crops.CentreView(crop=24, Q=29, warp=warp)
    (batch,) = eval_stream(SOURCE, view, batch=len(SOURCE), how=Decoding(kernel=kernel))
    for content, pixels in zip(CONTENTS, batch.views[:, 0], strict=True):
        image = image_files.read_image("image", 3, content)
        np.testing.assert_array_equal(pixels, image_files.central_view(image, view, kernel))


def test_images_that_state_an_orientation_are_shown_turned_in_training_and_in_tests():
    """As PNGs of the turned pixels are, though JPEGs mostly go another way."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter, clockwise, to be seen
    jpegs = [encoded(picture(i), exif=exif if i % 3 else b"") for i in range(12)]
    turned = [
        np.rot90(np.asarray(Image.open(io.BytesIO(content))), -1 if i % 3 else 0)
        for i, content in enumerate(jpegs)
    ]
    expected = Memory([encoded(Image.fromarray(image), "PNG") for image in turned])
    upright = Upright(Memory(jpegs))
    for view in (crops.CentreView(crop=24, Q=28), crops.TenCropView(crop=24, Q=28)):
        both = [next(eval_stream(s, view, batch=12)).views for s in (upright, expected)]
        np.testing.assert_array_equal(*both)
    view = crops.ScaleView(crop=24, S=(24, 40))
    both = []
    for source in (upright, expected):
        with Stream(source, view, seed=1, batch=12) as batches:
            both.append(next(batches).images)
    np.testing.assert_array_equal(*both)
    sizes = [whole_images.image_sizes(s).tolist() for s in (upright, expected)]
    assert sizes[0] == sizes[1] == [list(image.shape[:2]) for image in turned]

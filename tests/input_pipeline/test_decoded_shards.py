"""Shards of pixels: every view is that of the encoded images, bit for bit."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import jax
import numpy as np
import pytest
from PIL import Image

from input_pipeline import DataError, colour, crops, image_files, jpeg, resident
from input_pipeline.pixels import ppm, ppm_header
from input_pipeline.sources import Upright, open_set
from input_pipeline.stream import Decoding, Stream, eval_stream
from input_pipeline.tools import check, decoding
from input_pipeline.tools.prepare import prepare
from input_pipeline.whole_images import image_sizes, whole_stream
from tests.input_pipeline.encoded_images import contents, encoded, without_tables
from tests.input_pipeline.test_jpeg import scene


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


GREY16 = Image.fromarray((np.arange(90 * 70).reshape(90, 70) * 9).astype(np.uint16))
TURNED = scene(64, 90, 12)
# What an original may be; the same in both classes but for its size.
ORIGINALS = {
    "0.jpg": lambda k: encoded(scene(150 + k, 233, k), quality=90),
    "1.jpg": lambda k: encoded(scene(233, 150 + k, k), quality=70),
    "2.jpg": lambda k: encoded(scene(90 + k, 120, k), subsampling="4:4:4"),
    "3.jpg": lambda k: encoded(scene(91, 121 + k, k), subsampling="4:2:2"),
    "4.jpg": lambda k: encoded(scene(160, 99 + k, k), progressive=True),
    "5.jpg": lambda k: encoded(scene(110, 99 + k, k, "L")),
    "6.jpg": lambda k: encoded(scene(110 + k, 99, k, "CMYK")),
    "7.jpg": lambda k: encoded(scene(120 + k, 91, k), exif=oriented(6)),
    "8.jpg": lambda k: encoded(scene(33, 41 + k, k)),  # smaller than any view
    "a.png": lambda k: encoded(scene(140, 101 + k, k, "RGBA"), "PNG"),
    "b.png": lambda k: encoded(scene(140 + k, 101, k, "P"), "PNG"),
    "c.png": lambda k: encoded(GREY16, "PNG"),
    "d.png": lambda k: encoded(scene(99 + k, 130, k), "PNG", exif=oriented(3)),
    "e.ppm": lambda k: encoded(scene(99 + k, 77, k), "PPM"),
    "f.jpg": lambda k: encoded(scene(150, 233, k))[:2000],  # cut off
    "g.jpg": lambda k: b"no image",
    "h.jpg": lambda k: without_tables(encoded(scene(150, 233, k))),
}
UNUSABLE = ("f.jpg", "g.jpg", "h.jpg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    for part, (k, name) in itertools.product(("train", "val"), enumerate(("ant", "bee"))):
        (root / part / name).mkdir(parents=True)
        for file, make in ORIGINALS.items():
            (root / part / name / file).write_bytes(make(2 * k + (part == "val")))
    return root


Pair = namedtuple("Pair", "encoded decoded")


@pytest.fixture(scope="module", params=[None, 80], ids=["as they are", "short side 80"])
def pair(request, folder, tmp_path_factory):
    """The same set as shards of image files and of pixels."""
    images, root = open_set("folder", folder), tmp_path_factory.mktemp("shards")
    for name in Pair._fields:
        decoded = name == "decoded"
        prepare(
            images, root / name, short_side=request.param, shards=3, processes=1, decoded=decoded
        )
    return Pair(*(open_set("shards", root / name) for name in Pair._fields))


HOW = Decoding(max_unusable=1.0, threads=2)
TRAIN_VIEWS = {
    "VGG": crops.ScaleView(crop=64, S=(64, 130)),
    "AlexNet": crops.SquareView(crop=64, S=70),
    "area": crops.AreaView(crop=64),
}
TEST_VIEWS = {
    "centre": crops.CentreView(crop=64, Q=70),
    "centre of a square": crops.CentreView(crop=64, Q=70, warp=True),
    "ten crops": crops.TenCropView(crop=64, Q=80),
    "ten crops of the square": crops.TenCropView(crop=64, Q=80, square=True),
    "grid": crops.GridView(crop=64, Q=90),
    "GoogLeNet": crops.MultiSquareView(crop=48, scales=(60, 70)),
    "whole": crops.WholeView(Q=72),
}


def same(first, second):
    """Whether all fields of batches are equal to the bit; labels where there is an image."""
    for first_batch, second_batch in zip(first, second, strict=True):
        mask = getattr(first_batch, "mask", slice(None))
        for name, values in vars(first_batch).items():
            part = mask if name == "labels" else slice(None)
            second_values = getattr(second_batch, name)
            assert (values is None) == (second_values is None)
            if values is not None:
                np.testing.assert_array_equal(values[part], second_values[part], err_msg=name)


def trained_on(source, view, kernel="bilinear"):
    """Four epochs of batches, and what was unusable."""
    bad = []
    how = Decoding(max_unusable=1.0, threads=2, kernel=kernel, on_bad=bad.append)
    with Stream(source, view, seed=3, batch=17, how=how) as stream:
        return [next(stream) for _ in range(8)], bad


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "opencv_bilinear"])
@pytest.mark.parametrize("name", TRAIN_VIEWS)
def test_training_views_are_the_same_bits(pair, name, kernel):
    (first, first_bad), (second, second_bad) = (
        trained_on(images.train, TRAIN_VIEWS[name], kernel) for images in pair
    )
    same(first, second)
    assert sorted(first_bad) == sorted(second_bad)
    assert len(first_bad) == 2 * len(UNUSABLE)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "opencv_bilinear"])
@pytest.mark.parametrize("name", TEST_VIEWS)
def test_test_views_are_the_same_bits(pair, name, kernel):
    how = Decoding(max_unusable=1.0, threads=2, kernel=kernel)
    streams = [
        list(eval_stream(images.test, TEST_VIEWS[name], batch=8, how=how)) for images in pair
    ]
    same(*streams)
    assert sum(batch.mask.sum() for batch in streams[0]) == 2 * (len(ORIGINALS) - len(UNUSABLE))


def test_whole_images_of_a_dense_test_are_the_same_bits(pair, monkeypatch):
    sizes = [image_sizes(images.test, HOW) for images in pair]
    np.testing.assert_array_equal(*sizes)
    streams = [
        list(whole_stream(images.test, 72, size, pixels=4 * 72 * 100, how=HOW))
        for images, size in zip(pair, sizes, strict=True)
    ]
    same(*streams)
    monkeypatch.setattr(type(pair.decoded.test), "read", None)  # sizes stand in the index
    test = pair.decoded.test
    good = [i for i in range(len(test)) if not test.where(i).endswith(UNUSABLE)]
    good_sizes = image_sizes(test.take(np.array(good)))
    np.testing.assert_array_equal(good_sizes, sizes[1][good])


@pytest.mark.parametrize("name", TRAIN_VIEWS)
def test_turned_as_their_exif_says_they_are_the_same_bits(pair, name):
    views = [trained_on(Upright(images.train), TRAIN_VIEWS[name])[0] for images in pair]
    same(*views)
    plain, _ = trained_on(pair.decoded.train, TRAIN_VIEWS[name])
    assert any((a.images != b.images).any() for a, b in zip(plain, views[0], strict=True))


@pytest.mark.parametrize("kind", ["pca_public", "photometric"])
def test_mirrored_and_in_other_colours_they_are_the_same_bits(pair, kind):
    def seen(images):
        batch = trained_on(images.train, TRAIN_VIEWS["VGG"])[0][0]
        keys = jax.vmap(resident.view_key, (None, 0, 0))(3, batch.epochs, batch.indices)
        shown = colour.recolour(batch.images, keys, kind, colour.constants(kind, 3, None))
        return np.asarray(colour.mirror(shown, keys))

    np.testing.assert_array_equal(*map(seen, pair))


def test_the_pixels_are_those_of_the_whole_decoded_image(pair):
    """Beside Pillow, and not through the way that training takes."""
    for i, (content, _) in enumerate(contents(pair.encoded.train)):
        where = pair.encoded.train.where(i)
        pixels = pair.decoded.train.pixels(i)
        if where.endswith(UNUSABLE):
            assert pixels is None
            assert pair.decoded.train.read(i)[0] == content
            continue
        expected = image_files.read_image(where, content=content)
        assert (pixels.height, pixels.width) == expected.shape[:2]
        assert pixels.plain == (jpeg.header(content) is not None)
        shown = pixels.window(crops.Box(3, 5, 11, 13))
        np.testing.assert_array_equal(shown, expected[3:14, 5:18])
        stored, _ = pair.decoded.train.read(i)
        np.testing.assert_array_equal(image_files.read_image(where, content=stored), expected)
        assert image_files.orientation(stored) == image_files.orientation(content)
        upright = image_files.read_image(where, content=content, exif=True)
        again = image_files.read_image(where, content=stored, exif=True)
        np.testing.assert_array_equal(again, upright)


def test_both_are_the_same_data_set(pair):
    first, second = pair
    for name in ("fingerprint", "class_names", "folders", "mirror_ok", "name"):
        assert getattr(first, name) == getattr(second, name)
    np.testing.assert_array_equal(first.train.labels, second.train.labels)
    assert [first.test.where(i) for i in range(9)] == [second.test.where(i) for i in range(9)]


def test_a_jpeg_that_pillow_refuses_is_decoded_as_training_does(monkeypatch):
    content = encoded(scene(60, 70))
    expected = image_files.read_image("x", content=content)

    def refuse(*args, **options):
        raise DataError("no")

    monkeypatch.setattr(image_files, "read_image", refuse)
    pixels, plain = decoding.decode("x", content)
    assert plain
    np.testing.assert_array_equal(pixels, expected)
    assert decoding.decode("x", encoded(scene(60, 70), "PNG")) is None


def test_a_view_reads_the_rows_that_it_needs_and_no_others(pair, monkeypatch):
    train = pair.decoded.train
    read, files = [], train._images.files
    original = files.read
    monkeypatch.setattr(
        files, "read", lambda k, at, size: read.append(size) or original(k, at, size)
    )
    pixels = train.pixels(0)
    pixels.window(crops.Box(10, 20, 7, 9))
    assert read == [3 * 7 * pixels.width]


def test_grey_views_are_refused(pair):
    with pytest.raises(DataError, match=r"RGB pixels, of which grey views can't be made"):
        list(eval_stream(pair.decoded.test, TEST_VIEWS["centre"], batch=4, how=Decoding(1)))


def test_what_is_checked_is_what_is_kept(pair):
    first, second = (check.check(images, threads=2) for images in pair)
    for part in ("train", "test"):
        a, b = first.parts[part], second.parts[part]
        assert (a.usable, a.turned) == (b.usable, b.turned)
        np.testing.assert_array_equal(a.short_sides, b.short_sides)
        np.testing.assert_array_equal(a.per_class, b.per_class)
        assert b.formats["pixels", "before"][0] == b.usable
    assert {bad.file for bad in first.unusable} == {bad.file for bad in second.unusable}


def test_pixels_are_not_prepared_again(pair, tmp_path):
    with pytest.raises(DataError, match="expected those that they were made of"):
        prepare(pair.decoded, tmp_path / "out", processes=1)


@pytest.mark.parametrize("orientation", [1, 8])
def test_a_ppm_file_states_its_size_and_orientation(orientation):
    image = np.asarray(scene(5, 7))
    content = ppm(image, orientation)
    assert ppm_header(content) == (5, 7, orientation)
    np.testing.assert_array_equal(image_files.read_image("x", content=content), image)
    for damaged in (content[:-1], content + b"\0", content.replace(b"255", b"254"), b"", b"P6\n"):
        assert ppm_header(damaged) is None


# ------------------------------------------------------------------------------ room, writing


def test_the_room_is_told_and_measured_before_anything_is_written(folder, tmp_path, monkeypatch):
    good = shutil.copytree(folder, tmp_path / "set")
    for file in good.glob("*/*/[fgh].jpg"):
        file.unlink()
    images, rooms = open_set("folder", good), []
    out = tmp_path / "out"
    stages = []

    def on_room(needed, free):
        rooms.append((needed, free))
        assert not list(out.glob("*.tfrecord"))

    def on_progress(stage, count, total):
        stages.append(stage)

    options = {"processes": 1, "decoded": True, "on_room": on_room, "on_progress": on_progress}
    for short_side in (None, 80):
        summary = prepare(images, out, short_side=short_side, **options)
        needed, free = rooms.pop()
        assert abs(needed - summary.size) < 0.01 * summary.size
        assert free == pytest.approx(shutil.disk_usage(out).free, rel=0.2)
        shutil.rmtree(out)
    assert list(dict.fromkeys(stages)) == ["measure", "write", "verify"]
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        DataError, match=r"out: decoded images of .* GB free; expected another disk"
    ):
        prepare(images, out, processes=1, decoded=True)
    assert not list(out.glob("*.tfrecord"))


def files(out):
    return {name: (out / name).read_bytes() for name in sorted(os.listdir(out))}


def test_resumed_writing_measures_and_writes_what_is_missing(folder, tmp_path, monkeypatch):
    images, needs = open_set("folder", folder), []
    options = {"shards": 5, "processes": 1, "decoded": True}
    prepare(images, tmp_path / "whole", on_room=lambda *room: needs.append(room[0]), **options)
    expected = files(tmp_path / "whole")
    out = shutil.copytree(tmp_path / "whole", tmp_path / "out")
    missing = "train-00003-of-00005.tfrecord"
    (out / missing).unlink()
    summary = prepare(images, out, on_room=lambda *room: needs.append(room[0]), **options)
    assert (summary.written, files(out)) == (1, expected)
    assert abs(needs[1] - len(expected[missing])) < 0.05 * needs[1] < 0.5 * needs[0]
    prepare(images, out, on_room=lambda *room: needs.append(room[0]), **options)
    assert len(needs) == 2


def test_several_processes_write_the_same_files(folder, tmp_path):
    images = open_set("folder", folder)
    for processes in (1, 2):
        prepare(images, tmp_path / str(processes), shards=3, processes=processes, decoded=True)
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_a_killed_run_is_gone_on_with(folder, tmp_path):
    code = (
        "import sys\n"
        "from input_pipeline import sources; from input_pipeline.tools import prepare\n"
        "images = sources.open_set('folder', sys.argv[1])\n"
        "prepare.prepare(images, sys.argv[2], shards=17, processes=1, decoded=True,\n"
        "                on_progress=lambda *step: print(*step, flush=True))\n"
    )
    out = tmp_path / "out"
    words = [sys.executable, "-c", code, str(folder), str(out)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b"write 9 "):
                process.send_signal(signal.SIGKILL)
                break
    with pytest.raises(DataError, match="not all shards are written"):
        open_set("shards", out)
    images = open_set("folder", folder)
    prepare(images, tmp_path / "whole", shards=17, processes=1, decoded=True)
    expected = files(tmp_path / "whole")
    written = {name: content for name, content in files(out).items() if name.endswith(".tfrecord")}
    assert 0 < len(written) < 17
    assert written.items() <= expected.items()
    assert prepare(images, out, processes=1, decoded=True).written == len(
        [name for name in expected if name.endswith(".tfrecord")]
    ) - len(written)
    assert files(out) == expected


def test_other_options_than_the_folder_s_are_named(folder, tmp_path):
    images = open_set("folder", folder)
    prepare(images, tmp_path, processes=1, decoded=True)
    with pytest.raises(DataError, match="was prepared with decoded True, and False is asked for"):
        prepare(images, tmp_path, processes=1)
    with pytest.raises(DataError, match="was prepared with short_side None, and 80"):
        prepare(images, tmp_path, processes=1, decoded=True, short_side=80)


def test_truncated_changed_and_foreign_files_are_refused(folder, tmp_path):
    images, out = open_set("folder", folder), tmp_path / "out"
    prepare(images, out, shards=2, processes=1, decoded=True)
    written = files(out)
    file = out / "train-00001-of-00002.tfrecord"

    def refused(match):
        with pytest.raises(DataError, match=match) as caught:
            open_set("shards", out)
        assert "\n" not in str(caught.value)

    os.truncate(file, len(written[file.name]) - 3000)
    refused(r"train-00001-of-00002.tfrecord is shorter than it was when written")
    file.write_bytes(written[file.name][:-100] + bytes(100))
    refused(r"train-00001-of-00002.tfrecord does not hold what was written \(1 images differ\)")
    file.write_bytes(written[file.name])
    foreign = shutil.copytree(folder, tmp_path / "other")
    shutil.copy(foreign / "train/ant/0.jpg", foreign / "train/ant/1.jpg")
    prepare(open_set("folder", foreign), tmp_path / "theirs", shards=2, processes=1, decoded=True)
    shutil.copy(tmp_path / "theirs" / "index.npz", out / "index.npz")
    refused(r"index.npz: cannot be read \(not the one that dataset.json was written with\)")
    state = json.loads(written["dataset.json"])
    (out / "dataset.json").write_text(json.dumps(state | {"decoded": 3}))
    refused("dataset.json: damaged")
    (out / "dataset.json").write_bytes(written["dataset.json"])
    assert prepare(images, out, processes=1, decoded=True).written == 0
    assert files(out) == written


def test_a_file_that_is_cut_off_while_it_is_read_is_one_unusable_image(folder, tmp_path):
    prepare(open_set("folder", folder), tmp_path, shards=1, processes=1, decoded=True)
    train = open_set("shards", tmp_path).train
    file = tmp_path / "train-00000-of-00001.tfrecord"
    os.truncate(file, 200_000)
    bad = []
    how = Decoding(max_unusable=1.0, on_bad=bad.append)
    batches = list(eval_stream(train, TEST_VIEWS["centre"], batch=8, how=how))
    assert 0 < sum(batch.mask.sum() for batch in batches) < len(train)
    assert any("ends before byte" in reason and file.name in reason for reason in bad)


def test_a_record_whose_pixels_are_not_whole_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "ppm", lambda pixels, turned: ppm(pixels, turned)[:-1])
    with pytest.raises(DataError, match="record 0 has no whole pixels, just after it was written"):
        prepare(open_set("folder", folder), tmp_path, processes=1, decoded=True)


def test_neither_writing_nor_reading_needs_tensorflow(folder, tmp_path, fresh_python):
    good = shutil.copytree(folder, tmp_path / "set")
    for file in good.glob("*/*/h.jpg"):
        file.unlink()  # plain from outside: only TensorFlow may yet decode it
    code = (
        "import sys\n"
        "from input_pipeline import crops, sources; from input_pipeline.tools import prepare\n"
        "images = sources.open_set('folder', sys.argv[1])\n"
        "prepare.prepare(images, sys.argv[2], processes=1, decoded=True)\n"
        "train = sources.open_set('shards', sys.argv[2]).train\n"
        "from input_pipeline import stream\n"
        "shown = stream.training_viewer(train, crops.AreaView(crop=32), seed=0)\n"
        "print(shown.example(0, 0)[0].shape)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    process = fresh_python("-c", code, str(good), str(tmp_path / "out"))
    assert (process.returncode, process.stdout.strip()) == (0, "(1, 32, 32, 3)"), process.stderr


def test_shards_without_the_word_are_of_encoded_images(folder, tmp_path):
    """As older ones are."""
    images = open_set("folder", folder)
    prepare(images, tmp_path, processes=1)
    file = tmp_path / "dataset.json"
    state = json.loads(file.read_text())
    assert state.pop("decoded") is False
    file.write_text(json.dumps(state))
    assert open_set("shards", tmp_path).train.pixels(0) is None
    assert prepare(images, tmp_path, processes=1).written == 0

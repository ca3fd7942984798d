"""Shards: the same images as before, for TensorFlow too, whatever interrupts their writing."""

import contextlib
import dataclasses
import errno
import hashlib
import io
import itertools
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from input_pipeline import DataError
from input_pipeline.image_files import imagenet_classes
from input_pipeline.sources import contents as contents_of
from input_pipeline.sources import detect, open_set
from input_pipeline.sources.byte_ranges import OpenFiles
from input_pipeline.tools import prepare as preparing
from input_pipeline.tools.prepare import prepare
from tests.input_pipeline.encoded_images import contents

of_source = contents_of.of_source
RNG = np.random.default_rng(0)


def picture(height, width, kind="JPEG", mode="RGB"):
    smooth = Image.fromarray(RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)).convert(mode)
    stream = io.BytesIO()
    smooth.resize((width, height), Image.Resampling.BICUBIC).save(stream, kind)
    return stream.getvalue()


SIZES = [(40, 60), (60, 40), (33, 90), (32, 50), (20, 24), (64, 64), (100, 37)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """22 training and 8 validation images of two wnids; one is damaged, one a PNG, one CMYK."""
    root = tmp_path_factory.mktemp("folder")
    count = 0
    for part, per_class in (("train", 11), ("val", 4)):
        for wnid in ("n01440764", "n02102040"):
            (root / part / wnid).mkdir(parents=True)
            for k in range(per_class):
                content = picture(*SIZES[count % len(SIZES)])
                (root / part / wnid / f"{wnid}_{k}.JPEG").write_bytes(content)
                count += 1
    first = root / "train" / "n01440764"
    (first / "n01440764_1.JPEG").write_bytes(picture(50, 70)[:400])
    (first / "n01440764_2.JPEG").write_bytes(b"")
    (first / "n01440764_3.JPEG").write_bytes(picture(50, 70, "PNG"))
    (first / "n01440764_4.JPEG").write_bytes(picture(50, 70, mode="CMYK"))
    (first / "n01440764_5.JPEG").write_bytes(picture(50, 70, mode="L"))
    return root


@pytest.fixture
def images(folder):
    return open_set("folder", folder)


def files(out):
    return {name: (out / name).read_bytes() for name in sorted(os.listdir(out))}


def test_shards_hold_the_same_images_in_the_same_order(images, tmp_path):
    progress = []
    summary = prepare(
        images,
        tmp_path / "out",
        shards=5,
        processes=1,
        on_progress=lambda *step: progress.append(step),
    )
    assert summary.counts == {"train": 22, "val": 8}
    assert (summary.written, summary.shrunk, summary.undecodable) == (7, 0, 0)
    assert progress == [(stage, k, 30) for stage in ("write", "verify") for k in range(1, 31)]
    assert detect(tmp_path / "out") == "shards"
    shards = open_set("shards", tmp_path / "out")
    for part, source in ((shards.train, images.train), (shards.test, images.test)):
        assert contents(part) == contents(source)
        np.testing.assert_array_equal(part.labels, source.labels)
        assert part.labels.dtype == np.int32
    assert shards.fingerprint == images.fingerprint
    assert shards.class_names == images.class_names
    assert shards.class_names == tuple(imagenet_classes()[1][k] for k in (0, 217))
    assert shards.folders == images.folders
    place = "train-00001-of-00005.tfrecord: train/n01440764/n01440764_3.JPEG"
    assert shards.train.where(4) == place
    assert (
        shards.train.where(8) == "train-00002-of-00005.tfrecord: train/n01440764/n01440764_7.JPEG"
    )
    names = [f"train-{k:05d}-of-00005.tfrecord" for k in range(5)]
    names += [f"val-{k:05d}-of-00002.tfrecord" for k in range(2)]
    assert summary.size == sum((tmp_path / "out" / name).stat().st_size for name in names)
    assert set(os.listdir(tmp_path / "out")) == {
        ".lock",
        "dataset.json",
        "index.npz",
        *names,
        *(name.replace("tfrecord", "json") for name in names),
    }


def test_several_processes_write_the_same_files(images, tmp_path):
    prepare(images, tmp_path / "one", shards=3, processes=1, short_side=32)
    progress = []
    prepare(
        images,
        tmp_path / "two",
        shards=3,
        processes=2,
        short_side=32,
        on_progress=lambda *step: progress.append(step),
    )
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert ("write", 30, 30) in progress
    assert progress[-1] == ("verify", 30, 30)


def test_large_images_are_shrunk_and_the_others_copied(images, tmp_path):
    summary = prepare(images, tmp_path, short_side=32, quality=90, processes=1)
    shards = open_set("shards", tmp_path)
    damaged = ["train/n01440764/n01440764_1.JPEG", "train/n01440764/n01440764_2.JPEG"]
    assert list(summary.undecodable_names) == damaged
    shrunk = 0
    for part, source in ((shards.train, images.train), (shards.test, images.test)):
        for i in range(len(source)):
            (old, label), (new, same) = source.read(i), part.read(i)
            assert label == same
            short = 0 if source.where(i) in damaged else min(Image.open(io.BytesIO(old)).size)
            if short <= 32:
                assert new == old
                continue
            shrunk += 1
            before, after = Image.open(io.BytesIO(old)), Image.open(io.BytesIO(new))
            assert min(after.size) == 32
            assert abs(max(after.size) - max(before.size) * 32 / short) <= 0.5
            assert after.format == "JPEG"
            if after.mode == "RGB":
                assert [layer[1:3] for layer in after.layer] == [(1, 1)] * 3  # chroma is whole
            scaled = before.convert(after.mode).resize(after.size, Image.Resampling.LANCZOS)
            difference = np.asarray(scaled).astype(int) - np.asarray(after)
            assert np.abs(difference).mean() < 3
    grey = Image.open(io.BytesIO(shards.train.read(6)[0]))
    assert (images.train.where(6), grey.mode) == ("train/n01440764/n01440764_5.JPEG", "L")
    assert summary.shrunk == shrunk > 10
    assert summary.undecodable == 2
    assert shards.fingerprint != images.fingerprint
    state = json.loads((tmp_path / "dataset.json").read_text())
    assert state["source"] == images.fingerprint
    assert (state["short_side"], state["quality"]) == (32, 90)
    assert state["undecodable_names"] == damaged


def test_images_that_are_shrunk_keep_their_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    for part, name in itertools.product(("train", "val"), "ab"):
        folder = tmp_path / "set" / part / name
        folder.mkdir(parents=True)
        Image.new("RGB", (80, 60), "red").save(folder / "1.jpg", exif=exif)
        Image.new("RGB", (90, 60), "red").save(folder / "2.jpg")
    prepare(open_set("folder", tmp_path / "set"), tmp_path / "out", short_side=32, processes=1)
    train = open_set("shards", tmp_path / "out").train
    images = [Image.open(io.BytesIO(content)) for content, _ in contents(train)]
    assert [image.getexif().get(0x0112, 1) for image in images] == [8, 1, 8, 1]
    assert {min(image.size) for image in images} == {32}


def test_the_same_images_give_the_same_bytes(folder, tmp_path, fresh_python):
    code = (
        "import sys\n"
        "from input_pipeline import sources; from input_pipeline.tools import prepare\n"
        "images = sources.open_set('folder', sys.argv[1])\n"
        "prepare.prepare(images, sys.argv[2], shards=3, processes=1)\n"
    )
    for seed in "123":  # of Python's hashes, by which sets are ordered
        out = str(tmp_path / seed)
        assert fresh_python("-c", code, str(folder), out, PYTHONHASHSEED=seed).returncode == 0
    assert files(tmp_path / "1") == files(tmp_path / "2") == files(tmp_path / "3")


def test_shards_are_read_once_and_what_was_changed_in_them_is_told(images, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"
    prepare(images, out, shards=5, processes=1)
    for file in out.iterdir():
        os.utime(file, ns=(0, 10**18))
    read, progress = [], []
    monkeypatch.setattr(contents_of, "of_source", lambda *args: read.append(1) or of_source(*args))
    for _ in range(2):
        shards = open_set("shards", out, lambda *step: progress.append(step))
        assert shards.fingerprint == images.fingerprint
    assert len(read) == 2  # train and val
    assert {(22, 22), (8, 8)} <= set(progress)
    file = out / "train-00001-of-00005.tfrecord"
    content = file.read_bytes()
    file.write_bytes(content[:-40] + bytes(byte ^ 1 for byte in content[-40:]))
    with pytest.raises(DataError, match=rf"{file.name} does not hold what was written \(1 images"):
        open_set("shards", out)
    file.unlink()
    prepare(images, out, shards=5, processes=1)
    assert file.read_bytes() == content
    assert open_set("shards", out).fingerprint == images.fingerprint


# ----------------------------------------------------------------------------- interruptions


def test_resumed_writing_equals_uninterrupted_writing(images, tmp_path, monkeypatch):
    prepare(images, tmp_path / "whole", shards=5, short_side=32, processes=1)
    out = tmp_path / "out"
    written = []
    write = preparing._write_images

    def until_the_disk_is_full(stream, work, shard, tick):
        if len(written) == 3:
            stream.write(b"half a shard")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(shard.file)
        return write(stream, work, shard, tick)

    monkeypatch.setattr(preparing, "_write_images", until_the_disk_is_full)
    with pytest.raises(DataError, match=r"No space left on device; finished shards stay"):
        prepare(images, out, shards=5, short_side=32, processes=1)
    assert sorted(name for name in os.listdir(out) if name.endswith("tfrecord")) == written
    assert not list(out.glob("*.partial"))
    with pytest.raises(DataError, match="not all shards are written"):
        open_set("shards", out)
    before = {name: (out / name).stat().st_mtime_ns for name in written}
    (out / "train-00004-of-00009.tfrecord.0.partial").write_bytes(b"of a process that was killed")
    monkeypatch.setattr(preparing, "_write_images", write)
    progress = []
    summary = prepare(
        images,
        out,
        short_side=32,
        processes=1,
        on_progress=lambda *step: progress.append(step),
    )
    assert summary.written == 4
    assert progress[0] == ("write", 14, 30)  # 13 images lie in the first three shards
    assert {name: (out / name).stat().st_mtime_ns for name in written} == before
    assert files(out) == files(tmp_path / "whole")


def test_a_second_call_writes_nothing(images, tmp_path, monkeypatch):
    first = prepare(images, tmp_path, short_side=32, processes=1)
    monkeypatch.setattr(preparing, "_write_shard", None)
    monkeypatch.setattr(preparing, "_verify_shard", None)
    second = prepare(images, tmp_path, short_side=32, processes=1)
    assert second.written == 0
    assert (second.counts, second.size, second.undecodable_names) == (
        first.counts,
        first.size,
        first.undecodable_names,
    )


@pytest.mark.parametrize("damage", ["missing", "short", "note", "flipped"])
def test_damaged_shards_are_written_again(images, tmp_path, damage):
    prepare(images, tmp_path, shards=5, processes=1)
    expected = files(tmp_path)
    file = tmp_path / "train-00002-of-00005.tfrecord"
    if damage in ("missing", "note"):
        file.unlink()
    if damage == "note":
        (tmp_path / "train-00003-of-00005.json").write_text("{")
    if damage == "short":
        os.truncate(file, file.stat().st_size - 1)
    if damage == "flipped":  # found when all are read again
        content = bytearray(file.read_bytes())
        content[500] ^= 1
        file.write_bytes(content)
        state = json.loads((tmp_path / "dataset.json").read_text())
        (tmp_path / "dataset.json").write_text(json.dumps(state | {"complete": False}))
    assert prepare(images, tmp_path, processes=1).written == (2 if damage == "note" else 1)
    assert files(tmp_path) == expected


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "foreign"])
def test_a_damaged_index_is_refused_and_the_same_call_writes_it_anew(images, tmp_path, damage):
    """As is one of other images, which fits this one's counts, places and sizes."""
    out = tmp_path / "out"
    prepare(images, out, shards=5, processes=1)
    expected = files(out)
    index = out / "index.npz"
    if damage == "missing":
        index.unlink()
    if damage == "short":
        os.truncate(index, 300)
    if damage == "flipped":
        index.write_bytes(expected["index.npz"][:-1] + b"\1")
    if damage == "foreign":
        with np.load(index) as archive:
            arrays = dict(archive)
        np.savez(index, **arrays | {"train_labels": 1 - arrays["train_labels"]})
    with pytest.raises(DataError, match=r"run `cnn-depth data prepare` again: it writes the index"):
        open_set("shards", out)
    stages = []
    summary = prepare(images, out, processes=1, on_progress=lambda stage, *_: stages.append(stage))
    assert (summary.written, set(stages)) == (0, {"verify"})
    assert files(out) == expected


def test_what_a_kill_at_the_first_write_leaves_is_no_other_file(images, tmp_path, monkeypatch):
    (tmp_path / "dataset.json.0.partial").write_text("{")
    prepare(images, tmp_path, processes=1)
    assert not list(tmp_path.glob("*.partial"))
    (tmp_path / "new").mkdir()

    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DataError, match="No space left on device"):
        prepare(images, tmp_path / "new", processes=1)
    assert os.listdir(tmp_path / "new") == [".lock"]


def test_a_killed_run_leaves_no_half_shard(folder, tmp_path):
    """The process is killed while it writes with two others, which then end too."""
    code = (
        "import sys, time\n"
        "from input_pipeline import sources; from input_pipeline.tools import prepare\n"
        "if __name__ == '__main__':\n"
        "    images = sources.open_set('folder', sys.argv[1])\n"
        "    prepare.prepare(images, sys.argv[2], shards=22, processes=2, short_side=8,\n"
        "                    on_progress=lambda *step: print(*step, flush=True))\n"
    )
    (tmp_path / "main.py").write_text(code)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py"), str(folder), str(out)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if not line.startswith(b"write 0 "):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while _processes_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _processes_of(process.pid)
    images = open_set("folder", folder)
    prepare(images, tmp_path / "whole", shards=22, processes=1, short_side=8)
    expected = files(tmp_path / "whole")
    for name, content in files(out).items():
        if name.endswith(".tfrecord"):
            assert content == expected[name]
    prepare(images, out, short_side=8, processes=1)
    assert files(out) == expected


def _processes_of(session):
    """The ids of the processes that were started in that session."""
    ids = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stream:
                    fields = stream.read().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                ids.append(int(entry))
    return ids


# ------------------------------------------------------------------------------ clear errors


def test_other_options_than_the_folder_s_are_named(images, folder, tmp_path):
    prepare(images, tmp_path / "out", shards=2, short_side=32, processes=1)

    def message(images=images, **options):
        with pytest.raises(DataError) as caught:
            prepare(images, tmp_path / "out", processes=1, **options)
        return str(caught.value)

    assert "prepared with short_side 32, and None is asked for" in message()
    assert "with short_side 32, and 16" in message(short_side=16)
    assert "with quality 95, and 50" in message(short_side=32, quality=50)
    assert "with shards {'train': 2, 'val': 1}" in message(short_side=32, shards=4)
    changed = shutil.copytree(folder, tmp_path / "other")
    (changed / "train" / "n01440764" / "n01440764_2.JPEG").write_bytes(b"longer")
    assert "from images with the fingerprint" in message(open_set("folder", changed), short_side=32)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(DataError, match=r"holds other files \('thesis.tex'\)"):
        prepare(images, tmp_path / "full")
    thesis = tmp_path / "full" / "thesis.tex"
    for place, reason in ((thesis, "File exists"), (thesis / "out", "Not a directory")):
        with pytest.raises(DataError, match=f"cannot be written: {reason}; expected a new folder"):
            prepare(images, place)
    for name, value in (("short_side", 0), ("quality", 101), ("shards", 0)):
        with pytest.raises(DataError, match=f"{name} {value}; expected"):
            prepare(images, tmp_path / "new", **{name: value})
    assert not (tmp_path / "new").exists()
    empty = dataclasses.replace(images, test=images.test.take(np.arange(0)))
    with pytest.raises(DataError, match="22 training and 0 test images"):
        prepare(empty, tmp_path / "empty")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_image_that_cannot_be_read_is_named(folder, tmp_path, processes):
    root = shutil.copytree(folder, tmp_path / "folder")
    images = open_set("folder", root)
    (root / "train" / "n02102040" / "n02102040_7.JPEG").unlink()
    with pytest.raises(DataError, match=r"train/n02102040/n02102040_7.JPEG: cannot be read: No su"):
        prepare(images, tmp_path / "out", shards=5, processes=processes)
    assert not list((tmp_path / "out").glob("*.partial"))


def test_links_that_lead_nowhere_are_named_before_anything_is_written(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "folder")
    for k in range(6):
        (root / "val" / "n02102040" / f"n02102040_{k}.JPEG").unlink(missing_ok=True)
        (root / "val" / "n02102040" / f"n02102040_{k}.JPEG").symlink_to("nowhere")
    images = open_set("folder", root)
    match = r"links that lead nowhere \(6\): 'val/n02102040/n02102040_0.JPEG'.* and 1 others"
    with pytest.raises(DataError, match=match):
        prepare(images, tmp_path / "out", processes=1)
    assert not (tmp_path / "out").exists()


def test_two_calls_do_not_write_to_one_folder(images, tmp_path):
    with (
        preparing._locked(tmp_path),
        pytest.raises(DataError, match="another process is writing shards here"),
    ):
        prepare(images, tmp_path, processes=1)


def hostile_index():
    """An array of more bytes than there is memory, by its header."""
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        array, {"descr": "<i8", "fortran_order": False, "shape": (1 << 56,)}
    )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("train_counts.npy", array.getvalue())
    return content.getvalue()


def test_index_files_that_lead_elsewhere_are_refused(images, tmp_path):
    prepare(images, tmp_path, shards=2, processes=1)
    index, file = tmp_path / "index.npz", tmp_path / "train-00001-of-00002.tfrecord"
    intact = index.read_bytes()
    with np.load(index) as archive:
        arrays = dict(archive)

    state = json.loads((tmp_path / "dataset.json").read_text())

    def refused(match, **changes):
        np.savez(index, **(arrays | changes))
        vouched_for()
        with pytest.raises(DataError, match=match):
            open_set("shards", tmp_path)
        index.write_bytes(intact)

    def vouched_for():
        digest = hashlib.sha256(index.read_bytes()).hexdigest()
        (tmp_path / "dataset.json").write_text(json.dumps(state | {"index": digest}))

    for name, change in {
        "train_offsets": lambda values: values - 10_000,
        "val_labels": lambda values: values + 1,
        "train_labels": lambda values: values - 1,
        "train_counts": lambda values: values * 2,
        "val_sizes": lambda values: values[1:],
        "train_sizes": lambda values: values.astype(np.float64),
    }.items():
        refused("index.npz: does not fit", **{name: change(arrays[name])})
    refused("train-00000-of-00002.tfrecord is shorter", train_sizes=arrays["train_sizes"] + 10**6)
    refused("is shorter", train_offsets=arrays["train_offsets"] + 2**62)
    refused("cannot be read", train_labels=np.array([object()] * 22))
    for content in (intact[:300], hostile_index()):
        index.write_bytes(content)
        vouched_for()
        with pytest.raises(DataError, match=r"index.npz: cannot be read .*writes the index anew"):
            open_set("shards", tmp_path)
    index.write_bytes(intact)
    vouched_for()
    os.truncate(file, file.stat().st_size - 300)
    with pytest.raises(DataError, match=r"train-00001-of-00002.tfrecord is shorter than it was"):
        open_set("shards", tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"train-00001-of-00002.tfrecord does not exist"):
        open_set("shards", tmp_path)
    for change in (
        {"format": "other"},
        {"version": 1},
        {"counts": {"train": -1, "val": 3}},
        {"shards": {"train": 10**9, "val": 1}},
        {"class_names": [1, 2]},
        {"fingerprint": None},
    ):
        (tmp_path / "dataset.json").write_text(json.dumps(state | change))
        with pytest.raises(DataError, match=r"dataset.json: (not written|version|damaged)"):
            open_set("shards", tmp_path)
    (tmp_path / "dataset.json").write_text("[" * 10**6)
    with pytest.raises(DataError, match=r"dataset.json: cannot be read"):
        open_set("shards", tmp_path)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"dataset.json does not exist"):
        open_set("shards", tmp_path)


def test_any_thread_and_any_process_reads_the_same(images, tmp_path, monkeypatch):
    monkeypatch.setattr(OpenFiles, "MOST", 3)  # the others are opened anew
    prepare(images, tmp_path, shards=7, processes=1)
    train = open_set("shards", tmp_path).train
    places = [k % 22 for k in range(300)]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(train.read, places))
    expected = contents(images.train)
    assert read == [expected[k] for k in places]
    assert contents(pickle.loads(pickle.dumps(train))) == expected


def test_files_that_stay_open_leave_descriptors_to_others(images, tmp_path):
    """Few are allowed; then none is left, but those that stay open."""
    prepare(images, tmp_path, shards=22, processes=1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = []
    before = len(os.listdir("/proc/self/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 64, limits[1]))
        train = open_set("shards", tmp_path).train
        allowed = (before + 64) // 8
        assert contents(train) == contents(images.train)
        assert len(os.listdir("/proc/self/fd")) == before + min(allowed, 22)
        with contextlib.suppress(OSError):
            while True:
                descriptors.append(os.open(os.devnull, os.O_RDONLY))
        read = contents(train)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert read == contents(images.train)


# ----------------------------------------------------------------------- TensorFlow's readers


def test_tensorflow_reads_the_records(images, tmp_path):
    tf = pytest.importorskip("tensorflow")
    prepare(images, tmp_path, shards=3, processes=1)
    names = sorted(str(file) for file in tmp_path.glob("train-*.tfrecord"))
    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
        "image/filename": tf.io.FixedLenFeature([], tf.string),
    }
    examples = [
        tf.io.parse_single_example(record, features) for record in tf.data.TFRecordDataset(names)
    ]
    rows = [(f["image/encoded"].numpy(), int(f["image/class/label"])) for f in examples]
    assert rows == contents(images.train)
    assert [f["image/filename"].numpy().decode() for f in examples] == [
        images.train.where(i) for i in range(22)
    ]

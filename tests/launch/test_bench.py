"""`bench`, and `bench input`: ratios of one repeat; everyone is shown the same examples."""

import errno
import importlib.util
import itertools
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline import DataError, crops
from launch import cli
from launch.bench import input_peers, ratios, timing
from launch.bench import measure_input as input_bench
from launch.bench.ratios import Item, Ratio
from launch.bench.timing import Series, Timing, series


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Six JPEGs below a folder, smooth and of several sizes, and two files that are none."""
    root = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for k in range(6):
        coarse = Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        image = coarse.resize((300 + 10 * k, 270 - 5 * k), Image.Resampling.BICUBIC)
        folder = root / ("one" if k % 2 else "other/deeper")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{k}.JPEG", quality=95)
    (root / "one" / "empty.jpg").touch()
    (root / "one" / "notes.txt").touch()
    return root


def test_figure_is_the_median_of_each_repeats_ratio():
    ratio = Ratio.of([10.0, 40.0, 90.0], [5.0, 10.0, 30.0])
    assert ratio.each == (2.0, 4.0, 3.0)
    assert ratio.median == 3.0  # that of the medians is 4
    assert str(ratio) == "3.00 [2.00, 4.00]"
    with pytest.raises(ValueError, match="argument 2 is longer"):
        Ratio.of([1.0], [1.0, 2.0])


def test_target_is_met_by_the_median_of_what_was_measured():
    item = Item("a_over_b", "a over b", 3.0, Ratio((2.0, 3.0, 9.0)), aim=4.0)
    row = item.to_json()
    assert (row["met"], row["measured"], row["lowest"], row["highest"]) == (True, 3.0, 2.0, 9.0)
    assert (row["target"], replace(item, target=3.01).met) == (3.0, False)
    row = replace(item, measured="torch is not installed").to_json()
    assert (row["met"], row["measured"]) == (None, None)
    assert row["not_measured"] == "torch is not installed"


def test_core_time_is_compared_by_image():
    ours = [Timing(100, 1.0, 2.0), Timing(100, 1.0, 1.0)]
    theirs = [Timing(50, 1.0, 3.0), Timing(50, 1.0, 3.0)]
    ours, theirs = ([replace(t, steps=None, free=1) for t in timings] for timings in (ours, theirs))

    def compared(*theirs):
        sides = [Series(tuple(timings)) for timings in (ours, theirs)]
        return ratios.core_time_ratio(*sides)

    assert compared(*theirs) == Ratio((3.0, 6.0))
    assert compared(theirs[0], Timing(50, 1.0)) is None
    assert ours[0].rate == 100.0


def test_warm_batches_are_not_timed_and_the_pipeline_goes_on(monkeypatch):
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    batches = iter(range(100))
    burst = input_peers.timed(batches, warm=2, count=5, size=8, threads=1)
    assert (burst.images, burst.steps, burst.cores) == (40, 5, 1)
    assert next(batches) == 7


def test_laps_are_whole_and_as_many_as_a_timing_needs(monkeypatch):
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.03)
    batches = (time.sleep(0.001) for _ in itertools.count())
    burst = input_peers.timed(batches, warm=2, count=4, size=8, threads=1)
    assert burst.steps % 4 == 0
    assert burst.steps >= 8  # of five steps at least
    assert burst.seconds >= 0.03


def test_end_to_end_is_measured_against_the_slower_part():
    assert input_bench.EndToEnd(device=2.0, input=1.0, together=2.5, parts=()).reached == 0.8
    assert input_bench.EndToEnd(device=1.0, input=2.0, together=2.5, parts=()).reached == 0.8


def test_loop_with_a_sleeping_device_takes_its_batches_and_no_more():
    batches = iter(range(100))
    burst = input_bench.train(batches, 0.0, warm=2, count=5, size=8, threads=1)
    assert (burst.images, burst.steps, burst.waits) == (40, 5, True)
    assert next(batches) == 7


def test_images_that_no_one_can_decode_are_left_out(photos, tmp_path):
    data = input_bench.gather(str(photos), tmp_path)
    assert (len(data.files), data.set_images, data.left_out) == (6, 7, 1)
    assert sorted(data.sizes) == [(270 - 5 * k, 300 + 10 * k) for k in range(5, -1, -1)]
    for place, file in enumerate(data.files):
        assert data.source.read(place)[0] == Path(file).read_bytes()
        with Image.open(file) as image:
            assert data.sizes[place] == image.size[::-1]


def test_made_images_are_as_large_as_imagenets_on_average(tmp_path):
    input_bench.make_images(tmp_path / "made", 4)
    files = sorted((tmp_path / "made").iterdir())
    assert 95_000 < np.mean([file.stat().st_size for file in files]) < 125_000
    sizes = []
    for file in files:
        with Image.open(file) as image:
            sizes.append(image.size)
    assert sizes == [(375, 500), (500, 375), (500, 375), (500, 375)]


@pytest.mark.parametrize("source", ["pixels", "disk"])
def test_decoded_shards_show_the_same_views(source, photos, tmp_path):
    data = input_bench.gather(str(photos), tmp_path)
    bench = input_bench.Bench(data, threads=1, batch=4, images=8, peer="none")
    for view in ("scale", "area"):
        with bench._stream(view, 1) as encoded, bench._stream(view, 1, source) as decoded:
            for _ in range(3):
                a, b = next(encoded), next(decoded)
                np.testing.assert_array_equal(a.images, b.images)
                np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.parametrize("name", ["scale", "area"])
def test_peers_are_given_the_examples_of_the_stream(name, photos, tmp_path):
    from input_pipeline.stream import Stream

    data = input_bench.gather(str(photos), tmp_path)
    bench = input_bench.Bench(data, threads=1, batch=4, images=8, peer="none")
    task = bench.tasks[name]
    with Stream(data.source, bench.views[name], seed=input_bench.SEED, batch=4) as stream:
        batches = [next(stream) for _ in range(3)]
    np.testing.assert_array_equal(task.picks[:12], np.concatenate([b.indices for b in batches]))
    np.testing.assert_array_equal(task.offsets[:12], np.concatenate([b.offsets for b in batches]))
    for batch, shown in enumerate(batches):
        for place in range(4):
            expected = by_pillow(task, 4 * batch + place, area=name == "area")
            difference = np.abs(shown.images[place].astype(int) - expected)
            assert difference.mean() <= 1
            assert difference.max() <= 3


def test_peers_give_batches_of_their_own_kind(photos, tmp_path):
    data = input_bench.gather(str(photos), tmp_path)
    task = input_peers.work(data.files, data.sizes, crops.AreaView(crop=64), 0, 12)
    plain = next(input_peers.plain_tf_data(task, 2, 3))
    assert (plain.shape, plain.dtype) == ((3, 64, 64, 3), np.uint8)
    flax = next(input_peers.flax_example(task, 2, 3))
    assert (flax.shape, flax.dtype) == ((3, 64, 64, 3), np.float32)
    assert -2.2 < flax.min() < flax.max() < 2.7  # with ImageNet's mean and deviation
    assert next(input_peers.cropped_decoding(task, 2, 3)).shape == (3,)


def by_pillow(task: input_peers.Work, k: int, *, area: bool) -> np.ndarray:
    """What the peers' instructions amount to for example k."""
    with Image.open(task.files[task.picks[k]]) as image:
        if area:
            top, left, height, width = task.boxes[k].tolist()
            part = image.crop((left, top, left + width, top + height))
            return np.asarray(part.resize((task.crop, task.crop), Image.Resampling.BILINEAR), int)
        (height, width), (top, left) = task.scaled[k].tolist(), task.offsets[k].tolist()
        resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), int)
        return resized[top : top + task.crop, left : left + task.crop]


def run(capsys, *words: str) -> dict:
    assert cli.main(["bench", "input", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


TINY = ("--images", "8", "--batch-size", "4", "--repeats", "2", "--threads", "1", "--entries", "0")


@pytest.fixture
def at_once(monkeypatch):
    """A burst may be short, and is trusted however busy this machine is."""
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(timing, "LEAST_SHARE", 0.0)
    monkeypatch.setattr(timing, "MOST_APART", 1e9)


def test_json_holds_every_item_with_its_raw_figures(photos, at_once, capsys):
    answer = run(capsys, str(photos), *TINY, "--peer", "none")
    assert answer["data"]["images"] == 6
    assert answer["settings"]["images_per_measurement"] == 8
    assert answer["machine"]["usable_cores"] >= 1
    assert answer["versions"]["pillow"]
    items = {item["name"]: item for item in answer["items"]}
    targets = {name: item["target"] for name, item in items.items()}
    assert targets == {
        "ours_scale_over_tf_scale": 2.2,
        "ours_scale_over_torch_scale": 2.0,
        "ours_scale_over_opencv_scale": 1.35,
        "ours_scale_over_torchvision_scale": 1.35,
        "ours_scale_over_grain_scale": 1.35,
        "ours_scale_over_decode_scale": 0.45,
        "pixels_scale_over_ours_scale": 2.5,
        "ours_area_over_flax_area": 1.25,
        "ours_area_over_torch_area": 2.0,
        "ours_area_over_opencv_area": 1.35,
        "ours_area_over_torchvision_area": 1.35,
        "ours_area_over_grain_area": 1.35,
        "ours_area_over_decode_area": 0.65,
        "pixels_area_over_ours_area": 2.5,
        "two_cores_over_one_core": 1.8,
        **{f"end_to_end_{times}": 0.95 for times in ("0.5", "0.9", "1.1", "2")},
    }
    assert items["ours_scale_over_torch_scale"]["not_measured"] == "--peer none"
    rates = {
        name: [timing["images_per_s"] for timing in measurement["timings"]]
        for name, measurement in answer["timings"].items()
    }
    assert {"decode_scale", "ours_scale", "decode_area", "ours_area"} <= set(rates)
    assert not {"tf_scale", "torch_scale", "flax_area", "torch_area"} & set(rates)
    for view in ("scale", "area"):
        ratios = np.divide(rates[f"ours_{view}"], rates[f"decode_{view}"])
        assert items[f"ours_{view}_over_decode_{view}"]["each"] == pytest.approx(ratios.tolist())
    assert answer["memory"] is None


def test_table_shows_target_and_figure_and_what_was_not_measured(capsys):
    def timings(*rates: float) -> Series[Timing]:
        return series([Timing(3 * r, 3.0, 0.006 * r, 0, 2, 5, waits=True) for r in rates])

    data = input_bench.Images("photos", None, ("a.jpg",), ((375, 500),), 1e5, 7, 1, Path())
    measurements = input_bench.Measurements(
        {
            "ours_scale": timings(600, 510, 660),
            "decode_scale": timings(1000, 1000, 1000),
            "pixels_scale": timings(1800, 1530, 1980),
            "pixels_area": timings(1000, 1000, 1000),
            "ours_area": timings(500, 500, 500),
            "decode_area": timings(1000, 1000, 1000),
            "two_cores": timings(600, 600, 600),
            "one_core": timings(300, 300, 300),
        },
        {0.9: series([input_bench.EndToEnd(0.9, 1.0, 1.25, ())])},
    )
    absent = {name: f"no {name}" for name in ("tf", *input_peers.LOADERS)} | {"cores": "one"}
    measurements.items = input_bench.items(measurements, absent)
    settings = {"threads": 2, "batch_size": 64, "images_per_measurement": 100, "repeats": 3}
    report = input_bench.report(data, settings, measurements, {"processor": "P", "usable_cores": 2})
    report.show()
    shown, page = " ".join(capsys.readouterr().out.split()), report.markdown()
    assert "VGG view over decoding alone 0.45 (0.6) 0.60 [0.51, 0.66] 1.00 yes" in shown
    assert "VGG view: decoded over JPEG 2.5 3.00 [3.00, 3.00] 1.00 yes" in shown
    assert "end to end, device 0.9 x input 0.95 0.80 [0.80, 0.80] no" in shown
    assert "area crop over Flax example: not measured: no tf" in shown
    for output in (shown, page):
        assert "1 JPEGs of 7 in photos, 500x375 pixels and 100 kB on average; 1 left out" in output
    assert "| VGG view: ours | 600.0 | 510.0 | 660.0 |" in page
    assert "| area crop over Flax example | 1.25 | no tf |  |" in page


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(input_bench.importlib.util, "find_spec", lambda name: None)
    assert input_bench._absent("all")["torch"] == "torch is not installed"
    assert input_bench._absent("tf")["torch"] == "--peer tf"
    monkeypatch.setattr(input_bench.importlib.util, "find_spec", {"torch": 1, "cv2": 1}.get)
    absent = input_bench._absent("all")
    assert absent["opencv"] == "simplejpeg is not installed"
    assert absent["torchvision"] == "torchvision is not installed"
    assert absent["grain"] == "grain is not installed"
    assert "torch" not in absent
    monkeypatch.setattr(input_bench.importlib.util, "find_spec", lambda name: name != "cv2" or None)
    assert input_bench._absent("all")["grain"] == "opencv-python-headless is not installed"
    assert input_bench._absent("torch").keys() & {*input_peers.LOADERS, "tf"} == {
        *("tf", "opencv", "grain")
    }


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("input {folder}", "{folder}"),
        ("input {folder}/nowhere", "does not exist"),
        ("input --repeats 0", "--repeats must be at least 1, not 0"),
        ("input --entries -1", "--entries must be at least 0, not -1"),
        ("compile --repeats 0", "--repeats must be at least 1, not 0"),
        ("end_to_end --repeats 0", "--repeats must be at least 1, not 0"),
        ("end_to_end --longest 10", "--longest must be at least 100, not 10"),
        ("step --repeats 0", "--repeats must be at least 1, not 0"),
        ("step --steps 4", "--steps must be at least 5, not 4"),
        ("step --batch 0", "--batch must be at least 1, not 0"),
        ("step --size 0", "--size must be at least 1, not 0"),
        ("planning --rows 0", "--rows must be at least 1, not 0"),
        ("planning --page", "--page docs/speed.md: there is no folder docs"),
        ("planning --page a/b.md", "--page a/b.md: there is no folder a"),
    ],
)
def test_bad_input_is_one_message_that_names_it(words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *words.format(folder=tmp_path).split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cnn-depth: error: ")
    assert error.count("\n") == 1
    assert named.format(folder=tmp_path) in error


def test_folder_whose_images_are_all_damaged_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match="none of 1 images tried"):
        input_bench.gather(str(tmp_path / "photos"), tmp_path)


def test_full_disk_is_told_and_leaves_no_image_out(photos, tmp_path, monkeypatch):
    def full(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        input_bench.gather(str(photos), tmp_path)


@pytest.mark.slow
def test_memory_is_measured_with_a_large_index(photos, capsys):
    answer = run(capsys, str(photos), *TINY[:-1], "3000", "--peer", "none")
    assert answer["memory"]["entries"] == 3000
    assert 0 < answer["memory"]["imported"] < answer["memory"]["peak"]


@pytest.mark.peers
def test_torch_makes_the_same_views(photos, tmp_path):
    pytest.importorskip("torch")
    data = input_bench.gather(str(photos), tmp_path)
    view = crops.ScaleView(crop=224, S=(256, 512))
    task = input_peers.work(data.files, data.sizes, view, 0, 24)
    for k in range(6):
        shown = input_peers._Views(task, input_peers.LOADERS["torch"][1], area=False)[k]
        np.testing.assert_array_equal(shown, by_pillow(task, k, area=False))


@pytest.mark.peers
@pytest.mark.parametrize("name", input_peers.LOADERS)
def test_loaders_take_the_views_in_laps(photos, tmp_path, name):
    skip_without(name)
    data = input_bench.gather(str(photos), tmp_path)
    view = crops.ScaleView(crop=224, S=(256, 512))
    task = input_peers.work(data.files, data.sizes, view, 0, 24)
    with input_peers.loaders_process({"scale": task}, threads=2, batch=2) as loaders:
        burst = loaders.ask("scale", name, 2, 4)  # in laps of 4 batches of 2, again from the start
    assert burst.steps % 4 == 0
    assert burst.images == 2 * burst.steps >= 16
    assert burst.seconds >= 2
    assert burst.core_seconds > 0


@pytest.mark.peers
def test_grain_shows_the_views_in_order(photos, tmp_path):
    skip_without("grain")
    data = input_bench.gather(str(photos), tmp_path)
    task = input_peers.work(data.files, data.sizes, crops.AreaView(crop=64), 0, 24)
    load, scaled = input_peers.LOADERS["grain"]
    views = input_peers._Views(task, scaled, area=True)
    batches = load(views, 2, 2)
    for first in (0, 2, 4):
        expected = np.stack([views[first], views[first + 1]])
        np.testing.assert_array_equal(np.asarray(next(batches)), expected)


def skip_without(loader):
    """Unless its modules are installed; they are not imported here, beside TensorFlow."""
    missing = [m for m in input_bench.NEEDED[loader] if importlib.util.find_spec(m) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")


def apart(function, values):
    """The function's results in a process without TensorFlow, which torchvision needs."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return list(process.map(function, values))


@pytest.mark.peers
@pytest.mark.parametrize("area", [False, True])
@pytest.mark.parametrize("name", ["opencv", "torchvision"])
def test_other_libraries_show_the_same_part_of_an_image(photos, tmp_path, area, name):
    """By another kernel, so that it is near to Pillow's view and not equal."""
    skip_without(name)
    data = input_bench.gather(str(photos), tmp_path)
    view = crops.AreaView(crop=64) if area else crops.ScaleView(crop=224, S=(256, 512))
    task = input_peers.work(data.files, data.sizes, view, 0, 24)
    views = input_peers._Views(task, input_peers.LOADERS[name][1], area=area)
    shown = apart(views.__getitem__, range(6))
    near, others = [], []
    for k in range(6):
        expected = by_pillow(task, k, area=area).astype(float)
        ours = shown[k]
        assert (ours.shape, ours.dtype) == (expected.shape, np.uint8)
        near.append(np.abs(ours - expected).mean())
        others.append(np.abs(ours[::-1] - expected).mean())
    assert max(near) < min(others)

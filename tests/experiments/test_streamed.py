"""Runs on encoded images: what the device makes of views, and training that can be interrupted."""

import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import config, data
from experiments.data import foreign as given_data
from experiments.data import preprocessing
from experiments.runs import checkpoints, runs
from experiments.testing import classifier, evaluate, predictions
from experiments.training import train
from input_pipeline import DataError, colour, crops, resident
from input_pipeline.sources import open_set
from input_pipeline.tools.prepare import prepare

CLASSES = ("ant", "bee", "cat")


def write_folder(root):
    """A small image folder: 30 and 9 JPEGs of three classes that differ by colour."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 3)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (*rng.integers(30, 60, 2), 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(root / part / name / f"{i}.jpg", quality=95)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images"))


def settings(folder, **overrides):
    base = config.base()
    base.model = config.model("cifar_resnet:8")
    chosen = {
        "data.name": "folder",
        "data.path": str(folder),
        "data.image_size": 16,
        "data.S": (20, 28),
        "data.holdout": 0.2,
        "data.mirror": True,
        "data.colour": "pca_fitted",
        "data.divide_by_std": True,
        "test.Q": 20,
        "test.batch_size": 8,
        "train.batch_size": 8,
        "train.steps": 7,
        "train.validate_every_epochs": 1.0,
        "train.log_every_epochs": 0.3,
    }
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    return config.override(base, {**chosen, **overrides}, "test")


def mesh(devices=1):
    kind = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices], axis_types=kind)


def create(c, where):
    return runs.create(c, data.open_data(c.data).fingerprint, where, {"study": "t", "row": "r"})


def trained(c, where, **options):
    """(the run of a config, its result)."""
    run = create(c, where)
    with run.lock():
        return run, train.train(run, mesh(), **options)


def network(run):
    _, trees = checkpoints.load_network(run.checkpoints)
    return {f"{kind}.{n}": np.asarray(a) for kind in trees for n, a in trees[kind].items()}


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    return trained(settings(folder), tmp_path_factory.mktemp("runs"))[0]


# ------------------------------------------------------------------------------------ the run


def test_interrupted_run_ends_bit_for_bit_like_an_undisturbed_one(finished, folder, tmp_path):
    run = create(settings(folder, data__threads=3), tmp_path)
    assert run.id == finished.id
    for stop_at in (1, 4):
        steps = [0]
        with run.lock(), pytest.raises(train.Interrupted):
            train.train(
                run,
                mesh(),
                on_event=lambda e, steps=steps: steps.append(e.get("step", 0)),
                stop=lambda steps=steps, at=stop_at: steps[-1] >= at,
            )
    again = []
    with run.lock():
        train.train(run, mesh(), on_event=again.append)
    assert not any(event["event"] == "statistics" for event in again)
    first, second = network(run), network(finished)
    for name in second:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_a_run_on_shards_of_files_goes_on_with_their_pixels(finished, folder, tmp_path):
    """And ends bit for bit as on the folder that both were prepared from."""
    configs = []
    for decoded in (False, True):
        out = tmp_path / f"shards {decoded}"
        prepare(open_set("folder", folder), out, processes=1, decoded=decoded)
        configs.append(settings(out, data__name="shards"))
    interrupted, steps = create(configs[0], tmp_path / "runs"), [0]
    with interrupted.lock(), pytest.raises(train.Interrupted):
        train.train(
            interrupted,
            mesh(),
            on_event=lambda event: steps.append(event.get("step", 0)),
            stop=lambda: steps[-1] >= 3,
        )
    shutil.rmtree(configs[0].data.path)
    run, result = trained(configs[1], tmp_path / "runs")
    assert (run.id, run.folder) == (interrupted.id, interrupted.folder)
    first, second = network(run), network(finished)
    for name in second:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert result["top1_errors_count"] == finished.read("result")["top1_errors_count"]


def test_result_counts_every_test_image_once(finished):
    result = finished.read("result")
    assert (result["n"], result["train_images"], result["holdout_images"]) == (9, 24, 6)
    tested = predictions.load(finished.folder / "predictions" / "test-center.npz")
    assert tested.ids.tolist() == list(range(9))
    assert tested.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    again = evaluate.Subject(finished, mesh()).tested().to_json()
    assert again["top1_errors_count"] == result["top1_errors_count"]


@pytest.mark.parametrize("kind", ["per_channel", "per_pixel"])
def test_a_run_sees_a_file_as_in_its_test(folder, tmp_path, kind):
    run, _ = trained(settings(folder, data__normalise=kind, train__steps=1, test__Q=24), tmp_path)
    model = classifier.load(run.folder)
    files = sorted((folder / "val").glob("*/*.jpg"))
    posteriors = np.exp(model.log_posteriors(np.stack([model.read(file) for file in files])))
    saved = run.folder / "predictions" / "test-center.npz"
    expected = predictions.load(saved).posteriors
    # One pixel may lie between the two ways of rounding a scaled side.
    assert np.abs(posteriors - expected).mean() < 0.02
    tested = evaluate.Subject(
        run, mesh(), settings=evaluate.EvaluationSettings(data=str(folder))
    ).tested()
    np.testing.assert_allclose(tested.predictions.posteriors, expected, atol=1e-4)


def test_a_test_counts_and_names_what_it_leaves_out(tmp_path):
    folder = write_folder(tmp_path / "images")
    (folder / "val" / "bee" / "1.jpg").write_bytes(b"no image")
    run, result = trained(settings(folder, data__max_bad=0.2, train__steps=1), tmp_path / "runs")
    assert (result["n"], result["left_out"]) == (8, 1)
    reasons = []
    again = evaluate.Subject(run, mesh(), on_bad=reasons.append).tested().to_json()
    assert (again["n"], again["left_out"]) == (8, 1)
    assert len(reasons) == 1


def test_changed_data_are_told_before_anything_is_kept_of_them(tmp_path):
    folder = write_folder(tmp_path / "images")
    run = create(settings(folder), tmp_path / "runs")
    (folder / "train" / "bee" / "5.jpg").unlink()
    with run.lock(), pytest.raises(runs.RunError, match="data"):
        train.train(run, mesh())
    assert not (run.folder / "statistics.npz").exists()


def test_a_bad_file_is_told_and_does_not_end_the_run(tmp_path):
    folder = write_folder(tmp_path / "images")
    (folder / "train" / "bee" / "5.jpg").write_bytes(b"no image")
    events = []
    c = settings(folder, data__max_bad=0.1, train__steps=3)
    trained(c, tmp_path / "runs", on_event=events.append)
    reasons = [event["reason"] for event in events if event["event"] == "bad_image"]
    assert len(reasons) == 1
    assert "train/bee/5.jpg" in reasons.pop()
    strict = settings(folder, train__steps=3, data__bad="raise", seed=1)
    with pytest.raises(DataError, match=r"none is allowed.*\n.*bee/5\.jpg"):
        trained(strict, tmp_path / "runs")


# ---------------------------------------------------------------------------------- the views


def pixels(folder, c):
    """Central squares of the training images that are not held out, as Pillow has them."""
    opened = data.open_data(c.data)
    source, side = opened.parts["train"], 20 if c.data.view == "square" else 16
    squares = []
    for i in range(len(source)):
        image = Image.open(io.BytesIO(source.read(i)[0]))
        scaled = crops.scaled_size(image.height, image.width, side)
        top, left = (round((length - side) / 2) for length in scaled)
        image = np.asarray(image.resize(scaled[::-1], Image.Resampling.BILINEAR))
        squares.append(image[top : top + side, left : left + side])
    return np.stack(squares).astype(np.float64)


def test_means_and_deviation_are_those_of_the_training_images(folder):
    for kind, axes in (("per_channel", (0, 1, 2)), ("per_pixel", 0)):
        c = settings(folder, data__normalise=kind)
        normalise, expected = data.prepare(c).preprocessing.normalise, pixels(folder, c)
        mean = expected.mean(axis=axes)
        np.testing.assert_allclose(normalise.mean, mean, atol=1.0)
        assert normalise.std == pytest.approx(np.sqrt(np.mean((expected - mean) ** 2)), rel=0.01)


def test_fixed_means_need_no_pass_over_the_images(folder):
    read = []
    c = settings(
        folder, data__normalise="fixed", data__colour="pca_public", data__divide_by_std=False
    )
    normalise = data.prepare(
        c, on_progress=lambda *counts: read.append(counts)
    ).preprocessing.normalise
    assert normalise.mean.tolist() == pytest.approx([123.68, 116.779, 103.939])
    assert not read


@pytest.mark.parametrize("view", ["scale", "square"])
def test_views_on_the_device_are_the_streams_with_mean_colour_and_mirror(folder, view):
    c = settings(
        folder, data__view=view, data__S=(20, 20), data__normalise="per_pixel", train__batch_size=24
    )
    prepared = data.prepare(c)
    feed = prepared.feed(c, mesh(), 0)
    batch = {name: array[0] for name, array in feed.next(range(1)).items()}
    feed.close()
    x, y = jax.jit(prepared.train_views)(prepared.constants, np.int32(0), batch)
    np.testing.assert_array_equal(y, batch["labels"])
    mirrored = 0
    for i in range(24):
        key = resident.view_key(0, batch["epochs"][i], batch["indices"][i])
        shift = colour.shift(colour.alphas(key), prepared.constants["colour"])
        top, left = batch["offsets"][i] if view == "square" else (0, 0)
        mean = prepared.constants["mean"][top : top + 16, left : left + 16]
        plain = (np.asarray(batch["images"][i], np.float64) + shift - mean) / prepared.constants[
            "std"
        ]
        ways = [np.abs(x[i] - plain).max(), np.abs(x[i] - plain[:, ::-1]).max()]
        assert min(ways) < 1e-4 < max(ways)
        mirrored += ways[1] < ways[0]
    assert 4 < mirrored < 20


@pytest.mark.slow
def test_two_devices_train_as_one(finished, folder, fresh_python, tmp_path):
    code = """
import sys; sys.path.insert(0, 'tests/experiments')
import numpy as np, test_streamed as t
from experiments import data
from experiments.training import state as training_state
from pathlib import Path
found = []
for devices in (1, 2):
    c = t.settings(Path(sys.argv[1]))
    training = training_state.start(c, data.prepare(c), t.mesh(devices), None)
    training.advance(1); training.finish_steps(); training.close()
    found.append(np.concatenate([np.ravel(a) for a in training.state['params'].values()]))
off = np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[0])
assert off < 1e-6, off
"""
    process = fresh_python("-c", code, str(folder), devices=2)
    assert process.returncode == 0, process.stderr


# ------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__pad": 2}, "data.pad=2 is for small data sets"),
        ({"data__normalise": "gcn_zca"}, "gcn_zca"),
        ({"data__view": "square"}, "must be one scale"),
        ({"data__name": "digits", "data__path": ""}, "data.colour='pca_fitted' is for encoded"),
        ({"data__path": "/nowhere"}, "/nowhere"),
        ({"data__name": "foldr"}, "folder"),
        ({"train__batch_size": 25}, "more than the 24 training images"),
    ],
)
def test_what_does_not_go_together_is_told_before_training(folder, overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        data.prepare(settings(folder, **{"data__mirror": False, **overrides}))
    assert error.value.user_error


def test_statistics_are_kept_and_a_broken_file_is_made_anew(folder, tmp_path):
    c, file = settings(folder), tmp_path / "statistics.npz"
    read = []
    first = data.prepare(c, statistics_file=file, on_progress=lambda *counts: read.append(counts))
    assert read[-1] == (24, 24)
    read.clear()
    second = data.prepare(c, statistics_file=file, on_progress=lambda *counts: read.append(counts))
    assert not read
    np.testing.assert_array_equal(
        first.preprocessing.normalise.mean, second.preprocessing.normalise.mean
    )
    file.write_bytes(file.read_bytes()[:100])
    third = data.prepare(c, statistics_file=file)
    np.testing.assert_array_equal(
        first.preprocessing.normalise.mean, third.preprocessing.normalise.mean
    )


def test_the_log_tells_the_loss_of_each_epoch(finished):
    lines = [json.loads(line) for line in finished.metrics.read_text().splitlines()]
    assert lines[-1]["step"] == 7
    assert any("val_top1_error" in line for line in lines)


def test_with_data_exif_images_are_turned_in_training_in_tests_and_in_predictions(tmp_path):
    """As in a set whose files hold the turned pixels."""
    exif, roots = Image.Exif(), [tmp_path / "stored", tmp_path / "turned"]
    exif[0x0112] = 6  # to be seen, the stored rows are turned by a quarter, clockwise
    write_folder(roots[0])
    for file in sorted(roots[0].rglob("*.jpg")):
        image = Image.open(file).copy()
        image.save(file, exif=exif, quality=95)
        turned = roots[1] / file.relative_to(roots[0]).with_suffix(".png")
        turned.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rot90(np.asarray(Image.open(file)), -1)).save(turned)
    configs = [settings(roots[0], data__exif=True), settings(roots[1])]
    both = [data.prepare(c) for c in configs]
    for name in ("mean", "std", "colour"):
        np.testing.assert_array_equal(*(np.asarray(d.constants[name]) for d in both))
    batches = []
    for c, d in zip(configs, both, strict=True):
        feed = d.feed(c, mesh(), 0)
        batches.append(np.asarray(feed.next(range(1))["images"]))
        feed.close()
    np.testing.assert_array_equal(*batches)
    assert [d.preprocessing.exif for d in both] == [True, False]
    preprocessing.save(tmp_path / "seen.npz", both[0].preprocessing)
    loaded = preprocessing.load(tmp_path / "seen.npz")
    assert loaded.exif
    notes = []
    (roots[0] / "val" / "ant" / "x.psd").write_bytes(b"")
    tests = [
        given_data.open_test(str(root / "val"), prep, c, on_note=notes.append)
        for root, prep, c in zip(
            roots, (loaded, dataclasses.replace(loaded, exif=False)), configs, strict=True
        )
    ]
    views = [
        np.asarray(next(t.tested("test", mesh(), 9, t.centre, np.arange(9))).inputs["images"])
        for t in tests
    ]
    np.testing.assert_array_equal(*views)
    assert notes == ["1 file of suffix .psd is not read, such as ant/x.psd"]
    plain = settings(roots[0])
    assert config.identity_part(configs[0]) == {**config.identity_part(plain), "data.exif": True}
    assert "data.exif" not in config.identity_part(plain)
    small = config.override(plain, {"data.name": "digits", "data.exif": True}, "test")
    assert "data.exif" not in config.identity_part(small)

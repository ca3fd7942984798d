"""Testing runs by protocols: averages as the papers say, every image once, nothing twice."""

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from cnn_arch.dense import FullyConvolutional
from cnn_arch.kernels import onednn
from experiments import config, data, network
from experiments.config import ConfigError
from experiments.data import preprocessing
from experiments.runs import checkpoints, runs
from experiments.testing import classifier, evaluate, prediction_store, predictions, protocols
from experiments.testing import tester as tester_module
from experiments.testing.prediction_store import EvaluationSettings
from experiments.testing.predictions import PredictionsError
from experiments.testing.tester import Tester
from input_pipeline import crops, stream

ROOT = runs.Path(__file__).resolve().parents[2]
FIELDS = ("ids", "labels", "posteriors", "ranks")
Q, N = 11, 23  # at a crop of 8, and so many test images of 8x8
SMALL = {
    "data.name": "npz",
    "data.image_size": 8,
    "model.width": 0.25,
    "train.batch_size": 32,
    "train.steps": 2,
}
FOLDER = {
    "data.name": "folder",
    "data.image_size": 16,
    "data.S": (20, 28),
    "data.divide_by_std": True,
    "test.Q": 24,
    "test.batch_size": 8,
    "train.batch_size": 8,
    "train.steps": 2,
}


def untrained(where, **settings):
    """A run's folder with a fresh network as its checkpoint."""
    base = config.base()
    base.model = config.model("cifar_resnet:8")
    c = config.override(base, settings, "test")
    opened = data.open_data(c.data)
    run = runs.create(c, opened.fingerprint, where, {"study": "test", "row": "r"})
    images = data.prepare(c, opened=opened, statistics_file=run.folder / "statistics.npz")
    params, stats = network.initial(c, images.classes, images.channels)
    with contextlib.closing(checkpoints.Checkpoints(run.checkpoints)) as saved:
        saved.save(2, {"params": params, "stats": stats}, {}, val_error=50.0)
    preprocessing.save(run.folder / "preprocessing.npz", images.preprocessing)
    return run


def mesh(devices=1):
    kind = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices], axis_types=kind)


def write_folder(root):
    """30 and 9 JPEGs of three classes, of many shapes."""
    rng, shapes = np.random.default_rng(0), ((30, 30, 3), (30, 41, 3), (47, 33, 3))
    for part, count in (("train", 10), ("val", 3)):
        for name in ("ant", "bee", "cat"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, shapes[i % 3], dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.jpg", quality=95)
    return root


@pytest.fixture(scope="module", autouse=True)
def fast_compilation():
    """The programs run once: compiling them is what takes time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 64), ("test", N)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(n) % 4
    np.savez(folder / "images.npz", **arrays)
    return untrained(folder / "runs", **SMALL, **{"data.path": str(folder / "images.npz")})


@pytest.fixture
def subject(run):
    return subject_of(run)


def subject_of(run):
    bar = contextlib.nullcontext(lambda n, total: None)
    return evaluate.Subject(run, mesh(), EvaluationSettings(), lambda label: bar)


@pytest.fixture(scope="module")
def seen(run):
    """The run's network, and its normalised test images scaled to Q: (n, Q, Q, 1)."""
    model = classifier.load(run.folder)
    test = data.open_data(run.config().data).dataset.test
    x = np.asarray(model.preprocessing.normalise(test.images))
    return model.network, np.asarray(jax.image.resize(x, (len(x), Q, Q, 1), "bilinear"))


def softmax(logits):
    return np.asarray(jax.nn.softmax(np.asarray(logits, np.float64)))


def mirrored(x):
    return x[:, :, ::-1]


def reference(protocol, net, x):
    """By loops over what the protocol's definition says, in NumPy."""
    forward = nnx.jit(lambda net, x: net(x))
    if protocol == "dense":
        dense = nnx.jit(lambda net, x: FullyConvolutional(net)(x))
        return np.mean([softmax(dense(net, v).mean((1, 2))) for v in (x, mirrored(x))], axis=0)
    if protocol == "dense+multi_crop":
        return (reference("dense", net, x) + reference("multi_crop", net, x)) / 2
    last = Q - 8
    places = {
        "center": [(last // 2, last // 2)],
        "ten_crop": [(0, 0), (0, last), (last, 0), (last, last), (last // 2, last // 2)],
        "multi_crop": [
            (round(last * i / 4), round(last * j / 4)) for i in range(5) for j in range(5)
        ],
    }[protocol]
    posteriors = []
    for row, column in places:
        crop = x[:, row : row + 8, column : column + 8]
        posteriors.append(softmax(forward(net, crop)))
        if protocol != "center":
            posteriors.append(softmax(forward(net, mirrored(crop))))
    return np.mean(posteriors, axis=0)


@pytest.mark.parametrize(
    "protocol", ["center", "ten_crop", "dense", "multi_crop", "dense+multi_crop"]
)
def test_protocols_average_as_the_papers_say(run, seen, protocol):
    result = evaluate.Subject(run, mesh()).tested(protocol, str(Q)).predictions
    assert result.ids.tolist() == list(range(N))
    np.testing.assert_allclose(result.posteriors, reference(protocol, *seen), atol=5e-5)


@pytest.mark.skipif(
    jax.default_backend() != "cpu" or not onednn.works(),
    reason="oneDNN's convolutions do not work with this jaxlib on this processor",
)
@pytest.mark.parametrize("protocol", ["center", "dense", "multi_crop"])
def test_a_large_test_is_onednns_and_has_the_same_posteriors(run, protocol, monkeypatch):
    params, stats = subject_of(run).network[1:]
    part = protocols.Pass(protocol, (Q,), protocol != "center")
    view = part.view(8)

    def outcome():
        with_onednn, tester = [], subject_of(run).network[0]
        using = onednn.using
        with monkeypatch.context() as patch:
            patch.setattr(onednn, "using", lambda whose: with_onednn.append(whose) or using(whose))
            batches = list(tester.batches(params, stats, "test", view, mirror=part.mirror))
        return with_onednn, predictions.concatenate(batches)

    by_size, theirs = outcome()
    assert not by_size
    monkeypatch.setattr(tester_module, "ONEDNN_FROM_MACS", 0)
    whose, ours = outcome()
    assert set(whose) == {"onednn"}
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    np.testing.assert_allclose(ours.posteriors, theirs.posteriors, atol=1e-5)
    monkeypatch.setenv(onednn.VARIABLE, "xla")
    assert outcome()[0] == []


def test_several_scales_are_the_mean_of_each(run):
    small, large, both = (
        evaluate.Subject(run, mesh()).tested("dense", scales).predictions.posteriors
        for scales in ("8", "11", "8,11")
    )
    np.testing.assert_allclose(both, (small + large) / 2, rtol=1e-6)


def test_dense_at_the_crop_s_size_is_the_centre_and_its_mirror(run):
    dense = evaluate.Subject(run, mesh()).tested("dense", "8").predictions
    centre = evaluate.Subject(run, mesh()).tested("center", "8", flip=True).predictions
    np.testing.assert_allclose(dense.posteriors, centre.posteriors, atol=5e-5)


def test_fusion_is_the_mean_of_saved_posteriors(run):
    names = ("dense", "multi_crop")
    evaluated = [evaluate.Subject(run, mesh()).tested(name, str(Q)) for name in names]
    fused = evaluate.fuse(evaluated)
    both = evaluate.Subject(run, mesh()).tested("dense+multi_crop", str(Q)).predictions
    np.testing.assert_allclose(fused.posteriors, both.posteriors, rtol=1e-6)
    fewer = predictions.Predictions(
        *(getattr(fused, k)[:9] for k in ("ids", "labels", "posteriors"))
    )
    with pytest.raises(PredictionsError, match="same images"):
        evaluate.fuse([evaluated[0], dataclasses.replace(evaluated[1], predictions=fewer)])


# ------------------------------------------------------------------------- once and for all


def forbid(monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("a network was run")

    monkeypatch.setattr(Tester, "batches", fail)


def test_what_was_tested_is_not_tested_again(run, monkeypatch):
    first = evaluate.Subject(run, mesh()).tested("ten_crop", "9")
    forbid(monkeypatch)
    again = evaluate.Subject(run, mesh()).tested("ten_crop", "9")
    assert (first.reused, again.reused) == (False, True)
    np.testing.assert_array_equal(first.predictions.posteriors, again.predictions.posteriors)
    assert prediction_store.load(run, "ten_crop", "9").ids.tolist() == list(range(N))
    for options in (
        {"settings": EvaluationSettings(which="best")},
        {"settings": EvaluationSettings(statistics_images=32)},
    ):
        with pytest.raises(AssertionError, match="was run"):
            evaluate.Subject(run, mesh(), **options).tested("ten_crop", "9")


@pytest.mark.parametrize("harm", ["damage", "step"])
def test_what_is_damaged_or_of_another_checkpoint_is_tested_anew(run, harm):
    first = evaluate.Subject(run, mesh()).tested("center", "9")
    (part,) = protocols.resolve("center", run.config(), "9")
    file = EvaluationSettings().file(run, part)
    if harm == "damage":
        file.write_bytes(file.read_bytes()[:100])
    else:
        about = predictions.about(file)
        predictions.save(file, first.predictions, {**about, "step": about["step"] - 1})
    again = evaluate.Subject(run, mesh()).tested("center", "9")
    assert not again.reused
    np.testing.assert_array_equal(first.predictions.posteriors, again.predictions.posteriors)


class Killed(BaseException):
    pass


def bar_that_fails(after):
    """A bar whose program ends after so many images."""

    @contextlib.contextmanager
    def bar(label):
        def on_progress(n, total):
            if n >= after:
                raise Killed

        yield on_progress

    return bar


def test_a_stopped_pass_goes_on_where_it_was(run, monkeypatch):
    expected = evaluate.Subject(run, mesh()).tested("multi_crop", "10").predictions
    (part,) = protocols.resolve("multi_crop", run.config(), "10")
    file = EvaluationSettings().file(run, part)
    file.unlink()
    count = 0
    for after in (1, 9, 20):
        with pytest.raises(Killed):
            evaluate.Subject(run, mesh(), bar=bar_that_fails(after)).tested("multi_crop", "10")
        partial = predictions.load(file.with_name(f"partial-0-{file.name}"))
        assert count < len(partial.ids) < N
        count = len(partial.ids)
    tested_ids, original = [], Tester.batches

    def batches(*arguments, places, **options):
        tested_ids.extend(places.tolist())
        return original(*arguments, places=places, **options)

    monkeypatch.setattr(Tester, "batches", batches)
    result = evaluate.Subject(run, mesh()).tested("multi_crop", "10").predictions
    assert len(tested_ids) == N - count
    np.testing.assert_array_equal(result.ids, expected.ids)
    # A batch of other images is another program's work: equal but for rounding.
    np.testing.assert_allclose(result.posteriors, expected.posteriors, atol=5e-5)
    assert not list(file.parent.glob("partial-*"))


def test_what_several_hosts_left_is_taken_up(run, monkeypatch):
    """Each host's part counts, whoever goes on; a part of other images does not."""
    expected = evaluate.Subject(run, mesh()).tested("ten_crop", "10").predictions
    (part,) = protocols.resolve("ten_crop", run.config(), "10")
    file = EvaluationSettings().file(run, part)
    about = predictions.about(file)
    file.unlink()

    def leave(host, ids, about):
        partial = predictions.Predictions(*(getattr(expected, k)[ids] for k in FIELDS))
        if ids[-1] == N - 1:
            partial = dataclasses.replace(partial, ids=partial.ids + 1)
        predictions.save(file.with_name(f"partial-{host}-{file.name}"), partial, about)

    leave(0, np.arange(0, 4), about)
    leave(1, np.arange(2, 10), about)
    leave(2, np.arange(10, N), about)  # shifted: there is no image N
    leave(3, np.arange(10, 12), {**about, "step": 1})
    tested_ids, original = [], Tester.batches

    def batches(*arguments, places, **options):
        tested_ids.extend(places.tolist())
        return original(*arguments, places=places, **options)

    monkeypatch.setattr(Tester, "batches", batches)
    evaluated = evaluate.Subject(run, mesh()).tested("ten_crop", "10")
    assert tested_ids == list(range(10, N))
    assert (evaluated.left_out, evaluated.predictions.ids.tolist()) == (0, list(range(N)))
    np.testing.assert_allclose(evaluated.predictions.posteriors, expected.posteriors, atol=5e-5)
    assert not list(file.parent.glob("partial-*"))


def test_a_checkpoint_that_is_gone_is_not_compared(run):
    evaluate.Subject(run, mesh()).tested("ten_crop", "12")
    assert prediction_store.load(run, "ten_crop", "12").ids.tolist() == list(range(N))
    (part,) = protocols.resolve("ten_crop", run.config(), "12")
    file = EvaluationSettings().file(run, part)
    predictions.save(file, predictions.load(file), {**predictions.about(file), "step": 1})
    with pytest.raises(runs.RunError, match="at another checkpoint"):
        prediction_store.load(run, "ten_crop", "12")


def test_a_pass_is_saved_now_and_then(run, monkeypatch):
    monkeypatch.setattr(evaluate, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(evaluate, "SAVE_SHARE", 1e9)
    (part,) = protocols.resolve("multi_crop", run.config(), "12")
    partial = EvaluationSettings().file(run, part)
    partial = partial.with_name(f"partial-0-{partial.name}")
    counts = []

    @contextlib.contextmanager
    def bar(label):
        yield lambda n, total: counts.append(len(predictions.load(partial).ids))

    evaluate.Subject(run, mesh(), bar=bar).tested("multi_crop", "12")
    assert counts[-1] == N
    assert counts == sorted(counts)
    assert len(set(counts)) > 5


def test_hosts_parts_put_together_are_the_whole(run, subject):
    net, params, stats = subject.network
    view = crops.WholeView(Q=Q)
    parts = [
        batch
        for host in range(3)
        for batch in net.batches(
            params, stats, "test", view, mirror=True, places=np.arange(host, N, 3)
        )
    ]
    ids = np.concatenate([part.ids for part in parts])
    assert sorted(ids.tolist()) == list(range(N))
    posteriors = np.concatenate([part.posteriors for part in parts])[np.argsort(ids)]
    expected = evaluate.Subject(run, mesh()).tested("dense", str(Q)).predictions.posteriors
    np.testing.assert_allclose(posteriors, expected, atol=5e-5)


def test_two_processes_share_the_images(run, tmp_path):
    """Each tests its share, also when the other's share of a test that was stopped is there."""
    copy = shutil.copytree(run.folder, tmp_path / run.id)
    for file in copy.glob("predictions/*"):
        file.unlink()
    code = f"""
import sys; sys.path.insert(0, 'tests/experiments')
import jax
jax.distributed.initialize('localhost:{free_port()}', 2, int(sys.argv[1]))
from experiments.runs import processes, runs
from experiments.testing import evaluate
from test_evaluate import bar_that_fails, Killed, whole_mesh
run = runs.Run(runs.Path({str(copy)!r}))
if int(sys.argv[2]):
    try:
        evaluate.Subject(run, whole_mesh(), bar=bar_that_fails(3)).tested('multi_crop', '11')
    except Killed:
        processes.meet('both have stopped')
        __import__('os')._exit(0)
found = evaluate.Subject(run, whole_mesh()).tested('multi_crop', '11')
print(len(found.predictions.ids))
"""
    for stopped in ("1", "0"):
        both = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(process), stopped],
                cwd=ROOT,
                env={
                    **os.environ,
                    "JAX_NUM_CPU_DEVICES": "2",
                    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for process in (0, 1)
        ]
        for process in both:
            out, error = process.communicate(timeout=200)
            if stopped == "0":
                assert process.returncode == 0, error
                assert out.splitlines()[-1] == str(N)
        assert len(list(copy.glob("predictions/partial-*"))) == (2 if stopped == "1" else 0)
    evaluated = evaluate.Subject(runs.Run(copy), mesh()).tested("multi_crop", "11")
    expected = evaluate.Subject(run, mesh()).tested("multi_crop", "11")
    assert evaluated.reused
    assert evaluated.predictions.ids.tolist() == list(range(N))
    np.testing.assert_allclose(
        evaluated.predictions.posteriors, expected.predictions.posteriors, atol=5e-5
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def whole_mesh():
    """Of all processes' devices."""
    kind = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=kind)


def test_every_image_counts_once_on_any_number_of_devices(fresh_python, run):
    code = f"""
import sys; sys.path.insert(0, 'tests/experiments')
import numpy as np
from test_evaluate import mesh
from experiments.runs import runs
from experiments.testing import evaluate
run = runs.Run(runs.Path({str(run.folder)!r}))
def tested(devices, name):
    for kept in (run.folder / 'predictions').glob(f'test-{{name}}-*.npz'):
        kept.unlink()
    return evaluate.Subject(run, mesh(devices)).tested(name, '11').predictions
for name in ('dense', 'ten_crop'):
    found = [tested(k, name) for k in (1, 4)]
    assert found[0].ids.tolist() == found[1].ids.tolist() == list(range({N}))
    np.testing.assert_allclose(found[0].posteriors, found[1].posteriors, atol=5e-5)
"""
    process = fresh_python("-c", code, devices=4, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    assert process.returncode == 0, process.stderr


# -------------------------------------------------------------------------------- image files


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("streamed")
    folder = write_folder(root / "images")
    return untrained(root / "runs", **FOLDER, **{"data.path": str(folder)}), folder


def test_whole_images_of_many_shapes_are_tested_as_one_by_one(folder_run):
    run, _ = folder_run
    result = evaluate.Subject(run, mesh()).tested("dense", "24").predictions
    subject = subject_of(run)
    source = subject.data.sources["test"]
    model = classifier.load(run.folder)
    mean, std = subject.data.constants["mean"], subject.data.constants["std"]
    dense, shapes = nnx.jit(lambda net, x: FullyConvolutional(net)(x)), set()
    for batch in stream.eval_stream(source, crops.WholeView(Q=24), batch=1):
        x = (batch.views[:, 0].astype(np.float32) - np.asarray(mean)) / np.asarray(std)
        shapes.add(x.shape)
        expected = np.mean(
            [softmax(dense(model.network, v).mean((1, 2))) for v in (x, mirrored(x))], axis=0
        )
        np.testing.assert_allclose(result.posteriors[batch.indices[0]], expected[0], atol=5e-5)
    assert len(shapes) > 1
    assert result.ids.tolist() == list(range(len(source)))


@pytest.mark.parametrize("protocol", ["ten_crop", "multi_crop", "googlenet_144", "dense"])
def test_a_folder_is_tested_as_a_run_s_own_images(folder_run, protocol):
    run, folder = folder_run
    own = evaluate.Subject(run, mesh()).tested(protocol)
    foreign = evaluate.Subject(run, mesh(), settings=EvaluationSettings(data=str(folder))).tested(
        protocol
    )
    np.testing.assert_allclose(
        own.predictions.posteriors, foreign.predictions.posteriors, atol=5e-5
    )


@pytest.mark.parametrize("view", ["multi_crop", "dense"])
def test_a_mean_image_is_taken_off_all_views_of_its_size(folder_run, tmp_path, view):
    _, folder = folder_run
    settings = {
        **FOLDER,
        "data.path": str(folder),
        "data.normalise": "per_pixel",
        "data.S": (16, 16),
    }
    run = untrained(tmp_path, **settings)
    for images in (None, folder):
        options = EvaluationSettings(data=None if images is None else str(images))
        subject = evaluate.Subject(run, mesh(), options)
        shown = subject.tested(view, "16").predictions
        centre = subject.tested("center", "16", flip=True).predictions
        square = [i for i in range(9) if i % 3 == 0]  # of which a crop of 16 is all
        np.testing.assert_allclose(shown.posteriors[square], centre.posteriors[square], atol=1e-4)


def test_ids_of_a_folder_are_kept_where_a_file_of_it_is_bad(run, tmp_path):
    """Also for a network with a mean image of stored images, for which these are made small."""
    settings = {**SMALL, "data.path": run.config().data.path, "data.normalise": "per_pixel"}
    pixelwise = untrained(tmp_path / "runs", **settings)
    for label in range(4):
        (tmp_path / "images" / str(label)).mkdir(parents=True)
        for i in range(2):
            pixels = np.full((9, 12), 60 * label + i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / str(label) / f"{i}.png")
    (tmp_path / "images" / "1" / "0.png").write_bytes(b"no image")
    (pixelwise.folder / "run.json").write_text(
        (pixelwise.folder / "run.json").read_text().replace('"max_bad": 0.001', '"max_bad": 0.5')
    )
    evaluated = evaluate.Subject(
        pixelwise, mesh(), settings=EvaluationSettings(data=str(tmp_path / "images"))
    ).tested()
    assert (evaluated.left_out, evaluated.predictions.ids.tolist()) == (1, [0, 1, 3, 4, 5, 6, 7])
    assert evaluated.predictions.labels.tolist() == [0, 0, 1, 2, 2, 3, 3]


# -------------------------------------------------------------------------- batch statistics


def test_batch_statistics_are_the_mean_moments_of_training_batches(run, subject):
    _, params, stats = subject.network
    images, c = subject.own, run.config()
    statistics = evaluate.batch_statistics(c, images, mesh(), params, stats, 3 * 32 - 5)
    everywhere = NamedSharding(mesh(), P())
    constants = jax.device_put(images.constants, everywhere)
    feed = images.feed(c, mesh(), 0)
    means, variances = [], []
    kernel = np.asarray(params["conv1/conv/kernel"])
    for k in range(3):
        inputs = jax.tree.map(lambda x: x[0], feed.next(range(k, k + 1)))
        x, _ = images.train_views(constants, np.int32(c.seed), inputs)
        y = np.asarray(
            jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            np.float64,
        ).reshape(-1, kernel.shape[-1])
        means.append(y.mean(0))
        variances.append(y.var(0, ddof=1))
    np.testing.assert_allclose(
        statistics["conv1/norm/mean"], np.mean(means, 0), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(statistics["conv1/norm/var"], np.mean(variances, 0), rtol=1e-3)
    assert statistics.keys() == stats.keys()
    tested = evaluate.Subject(
        run, mesh(), settings=EvaluationSettings(statistics_images=91)
    ).tested()
    plain = evaluate.Subject(run, mesh()).tested()
    assert np.abs(tested.predictions.posteriors - plain.predictions.posteriors).max() > 0.01


def test_a_network_without_batch_normalisation_has_no_statistics_to_take(run, subject):
    with pytest.raises(ConfigError, match="has no batch normalisation"):
        evaluate.batch_statistics(run.config(), subject.own, mesh(), {}, {}, 10)


def test_mirrors_are_left_out_where_they_are_not_of_their_class(run, subject, monkeypatch):
    for view in ("dense", "multi_crop"):
        net, params, stats = subject.network
        (part,) = protocols.resolve(view, run.config(), "13")
        shown = part.view(8)
        expected = np.concatenate([b.posteriors for b in net.batches(params, stats, "test", shown)])
        unmirrored = dataclasses.replace(subject.data.preprocessing, mirror_ok=False)
        digits = dataclasses.replace(subject.data, preprocessing=unmirrored)
        with monkeypatch.context() as patched:
            patched.setattr(data, "prepare", lambda *a, digits=digits, **k: digits)
            evaluated = evaluate.Subject(run, mesh()).tested(view, "13")
        assert not evaluated.mirrored
        np.testing.assert_allclose(evaluated.predictions.posteriors, expected, atol=5e-5)


def test_what_was_not_tested_says_so(run):
    with pytest.raises(runs.RunError, match="was not tested so"):
        prediction_store.load(run, "googlenet_144")

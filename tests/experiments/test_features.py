"""Features of every image of a set: what they are, kept, gone on with, and refused."""

import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from scipy.signal import correlate

import cnn_arch
from cnn_arch import pretrained, weight_files
from cnn_arch.network import flat_state
from experiments import weights
from experiments.config import ConfigError
from experiments.runs import runs
from experiments.testing import classifier
from experiments.transfer import features
from experiments.transfer.features import Extractor, FeatureRequest
from input_pipeline import DataError
from launch import devices

SIZES = [(40, 60), (50, 34), (32, 32), (33, 47)]  # height and width of the pictures


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An imported network with batch normalisation that does something."""
    folder = tmp_path_factory.mktemp("net")
    net = cnn_arch.create("cifar_resnet:8", rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    tensors = pretrained.export(net, "cifar")
    for name, values in tensors.items():
        if name.endswith(("bn1.weight", "bn1.bias", "running_mean", "running_var")):
            tensors[name] = rng.uniform(0.5, 1.5, values.shape).astype(np.float32)
    weight_files.write(folder / "net.pth", tensors)
    return weights.import_run(folder / "net.pth", "cifar_resnet:8", folder)


@pytest.fixture
def photos(tmp_path):
    """A folder of classes a and b without parts, of two colour pictures each."""
    rng = np.random.default_rng(0)
    for k, (h, w) in enumerate(SIZES):
        file = tmp_path / "photos" / "ab"[k // 2] / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(file)
    return str(tmp_path / "photos")


def extractor(run, data, **hearers):
    return Extractor(run, devices.mesh(), data, **hearers)


def pictures(photos):
    return [np.asarray(Image.open(f)) for f in sorted(Path(photos).glob("*/*.png"))]


def test_central_crops_are_the_networks_endpoints(run, photos):
    (result,) = extractor(run, photos).features(FeatureRequest())
    model = classifier.load(run.folder)
    views = np.stack([model.see(image) for image in pictures(photos)])
    x = (
        views.astype(np.float32) - model.preprocessing.normalise.mean
    ) / model.preprocessing.normalise.std
    expected = model.network.endpoints(x)["pool"]
    assert (result.layer, result.depth, result.name) == ("pool", 7, "center-Q32")
    np.testing.assert_allclose(result.values, expected, rtol=1e-4, atol=1e-5)
    assert result.of.labels.tolist() == [0, 0, 1, 1]
    assert result.of.class_names == ("a", "b")
    assert result.of.ids.tolist() == [0, 1, 2, 3]
    assert result.of.parts.tolist() == [0] * 4


def by_numpy(run, image):
    """The first convolution over a whole image and its mirror, averaged: (16,) float64."""
    model = classifier.load(run.folder)
    state = {k: np.asarray(v, np.float64) for k, v in flat_state(nnx.state(model.network)).items()}
    kernel = state["conv1/conv/kernel"]
    scale = state["conv1/norm/scale"] / np.sqrt(state["conv1/norm/var"] + 1e-5)
    x = (
        image.astype(np.float64) - model.preprocessing.normalise.mean
    ) / model.preprocessing.normalise.std
    means = []
    for shown in (x, x[:, ::-1]):
        padded = np.pad(shown, ((1, 1), (1, 1), (0, 0)))
        maps = [
            sum(correlate(padded[..., c], kernel[..., c, o], "valid") for c in range(3))
            for o in range(kernel.shape[3])
        ]
        y = (np.stack(maps, axis=-1) - state["conv1/norm/mean"]) * scale
        means.append(np.maximum(y + state["conv1/norm/bias"], 0).mean(axis=(0, 1)))
    return np.mean(means, axis=0)


@pytest.mark.parametrize("how", ["mean", "concatenate"])
def test_whole_images_at_several_scales_against_numpy(run, photos, how):
    passes = extractor(run, photos).features(FeatureRequest("conv1", "dense", "32,40"))
    assert [scaled.name for scaled in passes] == ["dense-Q32", "dense-Q40"]
    x = features.combined(passes, how, l2=True)
    square = pictures(photos)[2]  # whose scale of 32 is the picture itself
    np.testing.assert_allclose(passes[0].values[2], by_numpy(run, square), rtol=1e-5)
    parts = [np.asarray(scaled.values, np.float64) for scaled in passes]
    expected = sum(parts) / 2 if how == "mean" else np.hstack(parts)
    expected /= np.sqrt((expected**2).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(x, expected, rtol=1e-5)


def test_mirrors_and_crops_are_averaged(run, photos):
    subject = extractor(run, photos)
    (plain,), (both,) = (
        subject.features(FeatureRequest()),
        subject.features(FeatureRequest(flip=True)),
    )
    (ten,) = subject.features(FeatureRequest(protocol="ten_crop"))
    assert not np.allclose(plain.values, both.values)
    assert (both.name, both.mirrored, ten.name) == ("center_flip-Q32", True, "ten_crop-Q32")
    square = 2  # of which all ten crops are the picture or its mirror
    np.testing.assert_allclose(ten.values[square], both.values[square], rtol=1e-4, atol=1e-5)


def test_what_is_kept_is_not_computed_again(run, photos):
    (first,), (again,) = (extractor(run, photos).features(FeatureRequest()) for _ in range(2))
    assert (first.reused, again.reused) == (False, True)
    assert isinstance(again.values, np.memmap)
    np.testing.assert_array_equal(first.values, again.values)
    first.file.with_suffix(".npz").write_bytes(b"damaged")
    (anew,) = extractor(run, photos).features(FeatureRequest())
    assert not anew.reused
    np.testing.assert_array_equal(anew.values, again.values)
    rng = np.random.default_rng(5)
    replacement = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(replacement).save(f"{photos}/a/0.png")  # another picture of that name
    (changed,) = extractor(run, photos).features(FeatureRequest())
    assert not changed.reused
    assert not np.allclose(changed.values[0], anew.values[0])


def test_a_stopped_pass_goes_on(run, tmp_path, monkeypatch):
    rng, n = np.random.default_rng(0), 300
    images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(n) % 2
    np.savez(
        tmp_path / "set.npz",
        train_images=images[:250],
        train_labels=labels[:250],
        test_images=images[250:],
        test_labels=labels[250:],
    )
    monkeypatch.setattr(features, "CHUNK_SECONDS", 0.0)
    (complete,) = extractor(run, str(tmp_path / "set.npz")).features(FeatureRequest("stage1"))
    assert complete.of.parts.tolist() == [1] * 250 + [2] * 50
    expected, progress = np.array(complete.values), []
    for file in complete.file.parent.iterdir():
        file.unlink()

    class Stopped(Exception):
        pass

    def stop(count, total):
        raise Stopped

    class Bar:
        def __init__(self, heard):
            self.heard = heard

        def __enter__(self):
            return self.heard

        def __exit__(self, *_):
            pass

    with pytest.raises(Stopped):
        extractor(run, str(tmp_path / "set.npz"), bar=lambda label: Bar(stop)).features(
            FeatureRequest("stage1")
        )
    remaining = [f for f in complete.file.parent.iterdir() if f.suffix != ".lock"]
    assert [f.name.partition("-")[0] for f in remaining] == ["chunk"]

    def heard(count, total):
        progress.append((count, total))

    (resumed,) = extractor(run, str(tmp_path / "set.npz"), bar=lambda label: Bar(heard)).features(
        FeatureRequest("stage1")
    )
    assert progress[0] == (256, 300)  # the first batch of 128 was there
    np.testing.assert_array_equal(resumed.values, expected)
    assert sorted(f.suffix for f in resumed.file.parent.iterdir()) == [".lock", ".npy", ".npz"]


PROGRAM = """
import sys
import jax
data, folder, hosts, rank, port = sys.argv[1:]
if int(hosts) > 1:
    jax.distributed.initialize(f"localhost:{port}", int(hosts), int(rank))
from experiments.runs import runs
from experiments.transfer.features import Extractor, FeatureRequest
from launch import devices
subject = Extractor(runs.Run(runs.Path(folder)), devices.mesh(), data)
(found,) = subject.features(FeatureRequest("stage2"))
print(found.reused, found.values.shape)
"""


@pytest.mark.parametrize(("hosts", "count"), [(1, 2), (2, 1)])
def test_devices_and_hosts_share_the_images(run, photos, tmp_path, fresh_python, hosts, count):
    shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("features"))
    (alone,) = extractor(run, photos).features(FeatureRequest("stage2"))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def start(rank):
        words = (photos, str(tmp_path / "run"), str(hosts), str(rank), str(port))
        return fresh_python("-c", PROGRAM, *words, devices=count)

    with ThreadPoolExecutor(hosts) as pool:
        processes = list(pool.map(start, range(hosts)))
    outputs = [process.stdout.splitlines()[-1:] for process in processes]
    assert outputs == [["False (4, 32)"]] * hosts, processes[0].stderr
    (together,) = extractor(runs.Run(tmp_path / "run"), photos).features(FeatureRequest("stage2"))
    assert together.reused
    np.testing.assert_allclose(together.values, alone.values, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(together.of.labels, alone.of.labels)


def test_two_commands_do_not_compute_the_same(run, photos):
    (result,) = extractor(run, photos).features(FeatureRequest())
    result.file.with_suffix(".npz").unlink()
    with (
        run.lock(name=f"{features.FOLDER}/{result.file.stem}.lock"),
        pytest.raises(runs.RunLocked, match="is being written by process"),
    ):
        extractor(run, photos).features(FeatureRequest())


def test_half_precision_is_said_where_it_is_too_small(run, photos):
    (half,) = extractor(run, photos).features(FeatureRequest("conv1", dtype="float16"))
    (full,) = extractor(run, photos).features(FeatureRequest("conv1"))
    assert half.values.dtype == np.float16
    np.testing.assert_allclose(half.values, full.values, rtol=1e-3)
    assert not full.reused  # one of float16 is not taken for it
    batch = features.Batch(
        np.full((1, 2), 1e5, np.float32), *[np.zeros(1, np.int32)] * 2, np.zeros(1, bool)
    )
    with pytest.raises(DataError, match="beyond float16"):
        features._Chunks(full.file, {}, "float16").add(batch)


def test_files_are_not_believed(run, photos):
    (result,) = extractor(run, photos).features(FeatureRequest())
    np.save(result.file, np.zeros((3, 64), np.float32))
    with pytest.raises(DataError, match="not of the same images"):
        features.read(result.file)
    result.file.write_bytes(b"\x93NUMPY nothing")
    with pytest.raises(DataError, match="can't be read as features"):
        features.read(result.file)
    with pytest.raises(DataError, match="can't be read as features"):
        features.read(run.folder / features.FOLDER / "gone.npy")


@pytest.mark.parametrize(
    ("wanted", "error", "told"),
    [
        (FeatureRequest("pool9"), cnn_arch.ArchitectureError, "pool"),
        (
            FeatureRequest(protocol="googlenet_144"),
            ConfigError,
            "features are taken by center, ten_crop",
        ),
        (FeatureRequest(scales="16"), ConfigError, "smaller than the crop"),
    ],
)
def test_what_cannot_be_asked_for(run, photos, wanted, error, told):
    with pytest.raises(error, match=told):
        extractor(run, photos).features(wanted)


def test_imported_networks_have_no_images_of_their_own(run):
    with pytest.raises(runs.RunError, match="say what to test it on"):
        extractor(run, None)


def test_unusable_images_are_left_out_and_named(run, photos):
    Path(photos, "a", "bad.png").write_bytes(b"no picture")
    reasons = []
    (result,) = extractor(run, photos, on_bad=reasons.append).features(FeatureRequest())
    assert result.of.left_out == 1
    assert result.of.ids.tolist() == [0, 1, 3, 4]
    assert result.of.labels.tolist() == [0, 0, 1, 1]
    assert len(result.values) == 4
    assert len(reasons) == 1
    assert "bad.png" in reasons[0]
    Path(photos, "b", "bad.png").write_bytes(b"no picture either")
    with pytest.raises(DataError, match="can't be used"):
        extractor(run, photos).features(FeatureRequest())

"""Sets that TFDS prepared, read where TensorFlow is not installed.

A tiny data set with the features of CIFAR-10 is written with TFDS's own tools (images as ready
PNG bytes, since TFDS encodes arrays with TensorFlow) and read under the name of the real one.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import socket
import struct
import sys
import tempfile
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from input_pipeline import DataError, datasets, load, must_be_downloaded

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 30)
CLASS_NAMES = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VERSION = tfds.builder_cls("cifar10").VERSION

with tfds.core.registered.skip_registration():

    class Cifar10(tfds.core.GeneratorBasedBuilder):
        """Twenty training and ten test images."""

        VERSION = VERSION
        code_path = None  # there is no folder of download checksums beside this file

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(names=CLASS_NAMES),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(range(20)),
                "test": self._generate_examples(range(20, 30)),
            }

        def _generate_examples(self, places):
            for i in places:
                png = io.BytesIO()
                Image.fromarray(IMAGES[i]).save(png, "png")
                png.seek(0)
                yield i, {"id": str(i), "image": png, "label": int(LABELS[i])}


@pytest.fixture
def prepared(tmp_path):
    """A folder that holds the set as array_record."""
    tfds.disable_progress_bar()
    Cifar10(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    return tmp_path


def assert_is_the_set(dataset):
    where = {image.tobytes(): i for i, image in enumerate(IMAGES)}
    train, test = (
        [where[image.tobytes()] for image in part.images] for part in (dataset.train, dataset.test)
    )
    assert sorted(train) == list(range(20))
    assert sorted(test) == list(range(20, 30))
    np.testing.assert_array_equal(dataset.train.labels, LABELS[train])
    np.testing.assert_array_equal(dataset.test.labels, LABELS[test])
    assert dataset.train.labels.dtype == np.int32
    assert dataset.class_names == CLASS_NAMES
    digest = hashlib.sha256()
    for part in (dataset.train, dataset.test):
        for array in (part.images, part.labels):
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    assert dataset.fingerprint == f"cifar10-{digest.hexdigest()[:16]}"


def test_array_records_are_read_without_tensorflow(prepared):
    assert_is_the_set(load("cifar10", path=prepared))
    if importlib.util.find_spec("tensorflow") is None:
        assert "tensorflow" not in sys.modules


def test_a_prepared_set_leaves_nothing_in_the_temporary_folder(prepared, tmp_path, monkeypatch):
    """A set that is not prepared does, see findings/tfds_builder_leaves_a_temporary_folder.sh."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert_is_the_set(load("cifar10", path=prepared))
    assert not must_be_downloaded("cifar10", prepared)
    assert list(temporary.iterdir()) == []
    assert must_be_downloaded("cifar10", tmp_path / "elsewhere")
    assert [p.name.endswith("tfds") for p in temporary.iterdir()] == [True]


def test_second_load_reads_the_decoded_arrays(prepared, monkeypatch):
    load("cifar10", path=prepared)
    monkeypatch.setattr(datasets, "_decode", None)
    assert_is_the_set(load("cifar10", path=prepared))


def test_damaged_decoded_arrays_are_decoded_again(prepared):
    load("cifar10", path=prepared)
    (decoded,) = prepared.rglob("cnn-depth-decoded.npz")
    decoded.write_bytes(decoded.read_bytes()[:5000])
    assert_is_the_set(load("cifar10", path=prepared))


def test_tfrecords_are_read_without_tensorflow(prepared):
    folder = prepared / "cifar10" / str(VERSION)
    for split in ("train", "test"):
        source = tfds.builder("cifar10", data_dir=prepared).as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        records = [bytes(source[i]) for i in range(len(source))]
        (folder / f"cifar10-{split}.tfrecord-00000-of-00001").write_bytes(
            b"".join(struct.pack("<Q4x", len(data)) + data + b"crc!" for data in records)
        )
        (folder / f"cifar10-{split}.array_record-00000-of-00001").unlink()
    info = folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    assert_is_the_set(load("cifar10", path=prepared))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist", "svhn"])
def test_preparing_without_tensorflow_says_what_to_install(tmp_path, monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    message = rf"'{name}' is not yet prepared in .*pip install -e '\.\[tfds\]'"
    with pytest.raises(DataError, match=message):
        load(name, path=tmp_path)


def test_only_sets_that_are_not_prepared_must_be_downloaded(prepared, tmp_path):
    assert not must_be_downloaded("cifar10", prepared)
    assert must_be_downloaded("cifar10", tmp_path / "elsewhere")
    assert must_be_downloaded("tfds:cifar10", tmp_path / "elsewhere")
    assert not must_be_downloaded("digits")
    assert not must_be_downloaded("folder", tmp_path)
    assert not must_be_downloaded("tfds:no_such_set")  # opening it says so


@pytest.fixture
def asked(monkeypatch):
    """What TFDS was asked to download, which it can't."""
    names = []

    def prepare(builder):
        names.append(builder.name)
        raise OSError("no more")

    monkeypatch.setattr(tfds.builder_cls("cifar10"), "download_and_prepare", prepare)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return names


def files_at(monkeypatch, *addresses):
    urls = {f"http://{address}/set-{i}.tar.gz": None for i, address in enumerate(addresses)}
    monkeypatch.setattr(tfds.builder_cls("cifar10"), "url_infos", urls)


@contextlib.contextmanager
def refusing():
    """An address that refuses connections."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{unused.getsockname()[1]}"


@contextlib.contextmanager
def answering(answer):
    """An address that answers each connection with these bytes, and ends it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_servers_that_can_not_be_reached_are_told_at_once(tmp_path, monkeypatch, asked):
    (tmp_path / "downloads/cifar10/set.tar.gz.tmp.0123").mkdir(parents=True)  # of earlier attempts
    (tmp_path / "downloads/cifar10/set.tar.gz.tmp.0123/set.tar.gz").touch()
    with refusing() as first, refusing() as second:
        files_at(monkeypatch, first, second)
        with pytest.raises(DataError, match=r"(127\.0\.0\.1 can't be reached \(.*refused.*){2}"):
            load("cifar10", path=tmp_path)
    assert asked == []


@pytest.mark.parametrize("answer", [b"HTTP/1.1 404 Not Found\r\n\r\n", b"what?\r\n", b""])
def test_a_server_that_answers_anything_is_left_to_tfds(answer, tmp_path, monkeypatch, asked):
    with refusing() as first, answering(answer) as second:
        files_at(monkeypatch, first, second)
        with pytest.raises(DataError, match="no more"):
            load("cifar10", path=tmp_path)
    assert asked == ["cifar10"]


def test_files_that_were_downloaded_need_no_server(tmp_path, monkeypatch, asked):
    (tmp_path / "downloads/cifar10").mkdir(parents=True)
    (tmp_path / "downloads/cifar10/set.tar.gz").touch()
    with refusing() as address:
        files_at(monkeypatch, address)
        with pytest.raises(DataError, match="no more"):
            load("cifar10", path=tmp_path)
    assert asked == ["cifar10"]

"""Sets of TFDS in their encoded form, in both of its formats, as TFDS wrote them."""

import io
import os
import pickle
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from input_pipeline import DataError
from input_pipeline.image_files import imagenet_classes
from input_pipeline.sources import detect, open_set, open_test
from input_pipeline.tools.prepare import prepare
from tests.input_pipeline.encoded_images import contents

pytestmark = pytest.mark.usefixtures("own_cache")
WNIDS = ("n01440764", "n02102040", "n03000684")


def jpeg(width):
    stream = io.BytesIO()
    Image.fromarray(np.full((20, width, 3), width, np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


PNGS = []
for k in range(12):
    stream = io.BytesIO()
    Image.fromarray(np.full((5, 6, 3), 20 * k, np.uint8)).save(stream, "png")
    PNGS.append(stream.getvalue())
TFDS_LABELS = [k % 3 for k in range(12)]

with tfds.core.registered.skip_registration():

    class ThreeBreeds(tfds.core.GeneratorBasedBuilder):
        """Eight training and four validation images, of classes that are wnids."""

        VERSION = tfds.core.Version("1.2.0")
        code_path = None

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(names=WNIDS),
                "note": tfds.features.Text(),
                "boxes": tfds.features.Sequence(np.float32),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(range(8)),
                "validation": self._generate_examples(range(8, 12)),
            }

        def _generate_examples(self, places):
            for i in places:
                facts = {"note": "?" * 200, "boxes": [0.5] * i}
                yield i, {"image": io.BytesIO(PNGS[i]), "label": TFDS_LABELS[i], **facts}


@pytest.fixture(scope="module")
def array_records(tmp_path_factory):
    tfds.disable_progress_bar()
    folder = tmp_path_factory.mktemp("array_records")
    ThreeBreeds(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def tfrecords(array_records, tmp_path):
    """The same records in the other format, without TensorFlow."""
    version = tmp_path / "data" / "three_breeds" / "1.2.0"
    version.mkdir(parents=True)
    for name in ("dataset_info.json", "features.json", "label.labels.txt"):
        text = (array_records / "three_breeds" / "1.2.0" / name).read_text()
        (version / name).write_text(text.replace('"array_record"', '"tfrecord"'))
    for split in ("train", "validation"):
        source = tfds.builder("three_breeds", data_dir=array_records).as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        records = [bytes(source[i]) for i in range(len(source))]
        (version / f"three_breeds-{split}.tfrecord-00000-of-00001").write_bytes(
            b"".join(struct.pack("<Q4x", len(data)) + data + b"crc!" for data in records)
        )
    return tmp_path / "data"


def assert_is_the_tfds_set(images):
    assert sorted(contents(images.train)) == sorted(zip(PNGS[:8], TFDS_LABELS[:8], strict=True))
    assert sorted(contents(images.test)) == sorted(zip(PNGS[8:], TFDS_LABELS[8:], strict=True))
    assert images.train.labels is None
    assert images.folders == WNIDS
    assert images.class_names[0] == "tench, Tinca tinca"
    assert images.train.where(3) == "three_breeds/train: example 3"
    part = images.train.take(np.array([2]))
    assert (part.labels, part.read(0)) == (None, images.train.read(2))
    assert contents(pickle.loads(pickle.dumps(images.test))) == contents(images.test)


@pytest.mark.parametrize("file_format", ["array_records", "tfrecords"])
def test_sets_of_tfds_are_read_encoded_from_both_formats(request, file_format):
    folder = request.getfixturevalue(file_format)
    images = open_set("tfds:three_breeds", folder)
    assert_is_the_tfds_set(images)
    assert images.name == "tfds:three_breeds"
    assert images.fingerprint.startswith("three_breeds-1.2.0-")
    assert detect(folder) == "tfds:three_breeds"
    version = folder / "three_breeds" / "1.2.0"
    assert detect(version) == "tfds:three_breeds"
    assert_is_the_tfds_set(open_set("tfds:three_breeds", version))
    with pytest.raises(DataError, match="holds 'tfds:three_breeds', not 'tfds:mnist'"):
        open_set("tfds:mnist", version)


def test_both_formats_are_one_set(array_records, tfrecords):
    first, second = (open_set("tfds:three_breeds", path) for path in (array_records, tfrecords))
    assert contents(first.train) == contents(second.train)
    assert first.fingerprint == second.fingerprint


def test_a_changed_pixel_or_class_is_another_set(tfrecords):
    first = open_set("tfds:three_breeds", tfrecords).fingerprint
    (file,) = tfrecords.rglob("*train.tfrecord*")
    content = file.read_bytes()
    image = open_set("tfds:three_breeds", tfrecords).train.read(0)[0]
    at = content.index(image) + len(image) - 1
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    os.utime(file, ns=(0, 10**18))  # of the same length
    assert open_set("tfds:three_breeds", tfrecords).fingerprint != first
    file.write_bytes(content)
    assert open_set("tfds:three_breeds", tfrecords).fingerprint == first


def test_damaged_records_of_tfds_are_named(tfrecords):
    (file,) = tfrecords.rglob("*train.tfrecord*")
    content = file.read_bytes()
    file.write_bytes(content[:-5])
    with pytest.raises(DataError, match=rf"{file.name}: no whole record at byte .* truncated"):
        open_set("tfds:three_breeds", tfrecords)
    first = struct.unpack_from("<Q", content)[0] + 16
    file.write_bytes(content[first:])
    with pytest.raises(DataError, match=r"7 records .* 8 examples"):
        open_set("tfds:three_breeds", tfrecords)
    file.write_bytes(content[:12] + b"\xff" * (first - 16) + content[first - 4 :])
    images = open_set("tfds:three_breeds", tfrecords)
    with pytest.raises(DataError, match="three_breeds/train: example 0: no image and label"):
        images.train.read(0)
    assert len(images.train.read(1)[0]) > 50


def test_sets_of_tfds_that_are_no_classification_are_refused(tfrecords):
    (file,) = tfrecords.rglob("features.json")
    file.write_text(file.read_text().replace('"label"', '"breed"'))
    with pytest.raises(DataError, match=r"'tfds:three_breeds' has the features boxes, breed, ima"):
        open_set("tfds:three_breeds", tfrecords)
    with pytest.raises(DataError, match="Parsing builder name string"):
        open_set("tfds:no such name", tfrecords)


with tfds.core.registered.skip_registration():

    class Stray(tfds.core.GeneratorBasedBuilder):
        """Four test images of two of three classes, and nothing to train on."""

        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(names=WNIDS),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for i in range(4):
                yield i, {"image": io.BytesIO(PNGS[i]), "label": i % 2}


def test_sets_of_tfds_that_are_only_for_tests_are_tested_by_wnid(tmp_path):
    tfds.disable_progress_bar()
    Stray(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(DataError, match=r"has the parts test; expected train.*evaluate --data"):
        open_set("tfds:stray", tmp_path)
    images = open_set("tfds:stray", tmp_path, for_test=True)
    assert (len(images.train), len(images.test)) == (0, 4)
    wnids, names = imagenet_classes()
    for place in (tmp_path, tmp_path / "stray" / "1.0.0"):
        tested = open_test(str(place), names)
        assert tested.matched.how == "3 of 1000 classes matched by wnid"
        expected = [(PNGS[i], wnids.index(WNIDS[i % 2])) for i in range(4)]
        assert sorted(contents(tested.source)) == sorted(expected)
        assert tested.fingerprint == images.fingerprint


def test_tfrecords_that_tfds_writes_are_read(tmp_path):
    pytest.importorskip("tensorflow")
    with tfds.core.registered.skip_registration():

        class Squares(tfds.core.GeneratorBasedBuilder):
            """JPEGs, the training part in three shards."""

            VERSION = tfds.core.Version("1.0.0")
            code_path = None

            def _info(self):
                features = {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=4),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples(9), "test": self._generate_examples(4)}

            def _generate_examples(self, count):
                for k in range(count):
                    yield k, {"image": io.BytesIO(pictures[k]), "label": k % 4}

    pictures = [jpeg(width=30 + k) for k in range(9)]
    tfds.disable_progress_bar()
    Squares(data_dir=tmp_path, file_format="tfrecord").download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=3)
    )
    images = open_set("tfds:squares", tmp_path)
    assert images.class_names == ("0", "1", "2", "3")
    assert sorted(contents(images.train)) == sorted((pictures[k], k % 4) for k in range(9))
    assert sorted(contents(images.test)) == sorted((pictures[k], k % 4) for k in range(4))
    prepare(images, tmp_path / "out", shards=2, processes=1)
    assert contents(open_set("shards", tmp_path / "out").train) == contents(images.train)

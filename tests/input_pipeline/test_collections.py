"""All images of a set as one: joined sources, images in memory, folders with and without parts."""

import contextlib

import numpy as np
import pytest
from PIL import Image

from input_pipeline import DataError, stream
from input_pipeline.collections import open_collection
from input_pipeline.crops import CentreView
from input_pipeline.datasets import load
from input_pipeline.image_files import read_image
from input_pipeline.sources.collection import ANY, TEST, TRAIN, InMemory, Joined
from input_pipeline.sources.source import Source
from tests.input_pipeline.encoded_images import Memory

pytestmark = pytest.mark.usefixtures("own_cache")


def some_images(channels, count=5, seed=0):
    shape = (count, 6, 4, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("held", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_held_images_are_read_back_exactly(held, channels):
    images = some_images(held)
    source = InMemory(images, np.array([3, 1, 4, 1, 5], np.int32), "digits, train")
    assert source.where(2) == "digits, train: image 2"
    for i, image in enumerate(images):
        content, label = source.read(i)
        assert label == [3, 1, 4, 1, 5][i]
        read = read_image(source.where(i), channels, content)
        if (held, channels) == (3, 1):
            expected = np.asarray(Image.fromarray(image).convert("L"))[..., None]
        else:
            expected = np.broadcast_to(image, read.shape)
        np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_held_grey_images_are_viewed_exactly(channels):
    images = some_images(1)[:, :4]  # as large as the view
    source = InMemory(images, np.arange(5, dtype=np.int32), "held")
    view, how = CentreView(Q=4, crop=4), stream.Decoding(channels=channels)
    with contextlib.closing(stream.eval_stream(source, view, batch=2, how=how)) as batches:
        shown = np.concatenate([batch.views[:, 0] for batch in batches])
    np.testing.assert_array_equal(shown[:5], np.broadcast_to(images, (5, 4, 4, channels)))


def test_joined_sources_are_one_after_the_other():
    class Noted(Memory):
        missing = (1,)
        notes = ("a note",)

    first, nothing, last = Noted([b"a", b"b"]), Memory([]), Noted([b"c", b"d", b"e"])
    joined = Joined([first, nothing, last])
    assert len(joined) == 5
    assert [joined.read(i) for i in range(5)] == [
        (b"a", 0),
        (b"b", 1),
        (b"c", 0),
        (b"d", 1),
        (b"e", 2),
    ]
    assert joined.labels.tolist() == [0, 1, 0, 1, 2]
    assert [joined.where(i) for i in (1, 2)] == ["image-1", "image-0"]
    assert [joined.size(4), joined.pixels(4)] == [0, None]
    assert joined.missing == [1, 3]
    assert joined.notes == ("a note",)
    assert joined.take(np.array([4, 0])).read(0) == (b"e", 2)


def test_joined_sources_know_labels_where_all_do():
    unknown = Memory([b"a"])
    unknown.labels = None
    assert Joined([unknown, Memory([b"b"])]).labels is None


def folder(root, parts=("",)):
    for part in parts:
        for name, count in (("ant", 2), ("bee", 1)):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                (root / part / name / f"{i}.png").write_bytes(f"{part} {name} {i}".encode())
    return root


def contents(source: Source):
    return [source.read(i) for i in range(len(source))]


def test_folder_with_parts(tmp_path):
    collection = open_collection(str(folder(tmp_path, ("train", "val"))))
    expected = [
        (f"{part} {name}".encode(), label)
        for part in ("train", "val")
        for name, label in (("ant 0", 0), ("ant 1", 0), ("bee 0", 1))
    ]
    assert contents(collection.images) == expected
    assert collection.parts.tolist() == [TRAIN] * 3 + [TEST] * 3
    assert collection.class_names == ("ant", "bee")
    assert (collection.targets, collection.background) == (None, None)
    assert len(collection) == 6


def test_folder_without_parts(tmp_path):
    collection = open_collection(str(folder(tmp_path)))
    assert contents(collection.images) == [(b" ant 0", 0), (b" ant 1", 0), (b" bee 0", 1)]
    assert collection.parts.tolist() == [ANY] * 3


def test_arrays_in_a_file(tmp_path):
    images, labels = some_images(1, 5), np.array([0, 1, 0, 1, 1])
    file = tmp_path / "set.npz"
    np.savez(
        file,
        train_images=images[:3],
        train_labels=labels[:3],
        test_images=images[3:],
        test_labels=labels[3:],
    )
    collection = open_collection(str(file))
    assert collection.parts.tolist() == [TRAIN] * 3 + [TEST] * 2
    assert collection.images.labels.tolist() == labels.tolist()
    for i, image in enumerate(images):
        content, _ = collection.images.read(i)
        np.testing.assert_array_equal(read_image("", 1, content), image)
    assert collection.images.where(3) == "set: image 3"


def test_digits():
    collection, digits = open_collection("digits"), load("digits")
    assert collection.name == "digits"
    assert not collection.mirror_ok
    assert collection.fingerprint == digits.fingerprint
    assert np.bincount(collection.parts).tolist() == [0, len(digits.train), len(digits.test)]
    content, label = collection.images.read(len(digits.train))
    assert label == digits.test.labels[0]
    np.testing.assert_array_equal(read_image("", 1, content), digits.test.images[0])


def test_what_is_neither_a_folder_nor_a_set_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"didgits.*digits"):
        open_collection("didgits")
    with pytest.raises(DataError, match="holds no folders of classes"):
        open_collection(str(tmp_path))

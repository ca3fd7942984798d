"""TFRecords without TensorFlow. What TensorFlow itself reads of them, test_shards.py tells."""

import numpy as np
import pytest

from input_pipeline.tfrecords import crc32c, example, example_features, example_numbers, first_text

RNG = np.random.default_rng(0)


def test_the_checksum_is_crc_32c():
    # RFC 3720, appendix B.4; and bit by bit, around the length from which bytes are folded.
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43

    def plain(data):
        crc = 0xFFFFFFFF
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        return crc ^ 0xFFFFFFFF

    for length in (4, 5, 5684, 5685, 5686, 10_007, 23_456):
        data = RNG.bytes(length)
        assert crc32c(data) == plain(data), length


@pytest.mark.parametrize("size", [1, 100, 127, 128, 20_000])
def test_a_text_is_read_from_the_first_bytes_of_a_record(size):
    name = b"\xfe" * size
    record = example({b"image/class/label": 300, b"image/filename": name, b"image": b"i" * 3000})
    assert example_features(record)[b"image/filename"] == name
    assert first_text(record[:-3000], b"image/filename") == name
    assert first_text(record[: record.index(name) + size], b"image/filename") == name
    for head, key, message in (
        (record[: record.index(name) + size - 1], b"image/filename", "ends later"),
        (record[:40], b"image/filename", "not found"),
        (record, b"image/class/label", "holds no bytes"),
        (record, b"image/name", "not found"),
    ):
        with pytest.raises(ValueError, match=message):
            first_text(head, key)


def test_numbers_are_read_as_tensorflow_writes_them():
    train = pytest.importorskip("tensorflow").train
    floats = [0.1, 1.0, -3.5]
    features = {
        "boxes": train.Feature(float_list=train.FloatList(value=floats)),
        "labels": train.Feature(int64_list=train.Int64List(value=[3, -1])),
        "image": train.Feature(bytes_list=train.BytesList(value=[b"abc"])),
        "none": train.Feature(),
    }
    record = train.Example(features=train.Features(feature=features)).SerializeToString()
    assert example_numbers(record) == {
        b"boxes": np.float32(floats).tolist(),
        b"labels": [3, -1],
        b"none": [],
    }
    with pytest.raises(ValueError, match=r"no tf\.train\.Example"):
        example_numbers(b"\xff")

"""TFRecords without TensorFlow. What TensorFlow itself reads of them, test_shards.py tells."""

import numpy as np

from input_pipeline.tfrecords import crc32c

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

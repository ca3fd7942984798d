"""TFRecord files of tf.train.Examples, without TensorFlow.

A record is its length (8 bytes), the length's checksum (4), the data, and their checksum (4). A
tf.train.Example is a protocol buffer: a map from names to lists of bytes, integers or floats.
"""

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from input_pipeline.errors import DataError

# ---------------------------------------------------------------------------------- records


def record_places(file: Path) -> Iterator[tuple[int, int]]:
    """(offset, size) of each record's data. Raises OSError, or DataError where it is cut off."""
    with file.open("rb", buffering=0) as stream:
        fd, stop = stream.fileno(), os.fstat(stream.fileno()).st_size
        offset = 0
        while offset < stop:
            header = os.pread(fd, 12, offset)
            length = int.from_bytes(header[:8], "little")
            if len(header) < 12 or offset + 16 + length > stop:
                raise DataError(f"{file}: no whole record at byte {offset}; the file is truncated")
            yield offset + 12, length
            offset += 16 + length


def checked_records(file: Path) -> Iterator[tuple[int, bytes, int]]:
    """(offset, data, checksum) of each record. DataError at the first that is damaged."""
    with file.open("rb", buffering=1 << 20) as stream:
        for k, (offset, size) in enumerate(record_places(file)):
            header, record, stored = stream.read(12), stream.read(size), stream.read(4)
            if header[8:] != checksum(header[:8]) or size < 4 or stored != checksum(record):
                raise DataError(f"{file}: record {k} has another checksum than was written")
            yield offset, record, int.from_bytes(stored, "little")


def write_record(stream: BinaryIO, record: bytes) -> None:
    length = len(record).to_bytes(8, "little")
    stream.write(length + checksum(length))
    stream.write(record)
    stream.write(checksum(record))


def checksum(data: bytes) -> bytes:
    """TFRecord's checksum: CRC-32C, rotated and shifted, so that data may hold CRCs themselves."""
    crc = crc32c(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


# x^5685 + x^1362 + x^426 + 1 is a multiple of CRC-32C's polynomial, and so is its eighth power,
# whose exponents count bytes: three XORs remove a byte that lies 5685 bytes before another.
_TERMS = (5685, 1362, 426)


@functools.cache
def _crc_tables() -> tuple[np.ndarray, np.ndarray]:
    """CRCs of every byte value before K-1, ... 1, 0 zero bytes, (K, 256) flat; its rows' starts."""
    reach = _TERMS[0]
    crcs: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crcs = (crcs >> 1) ^ np.where(crcs & 1, np.uint32(0x82F63B78), np.uint32(0))
    rows: np.ndarray = np.empty((reach, 256), np.uint32)
    rows[-1] = crcs
    for k in range(reach - 1, 0, -1):
        rows[k - 1] = (rows[k] >> 8) ^ crcs[rows[k] & 255]
    return rows.ravel(), np.arange(reach) * 256


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC of at least four bytes, at some 800 MB/s without a compiled module."""
    reach, *exponents = _TERMS
    values = np.frombuffer(data, np.uint8).copy()
    values[:4] ^= 255
    too_many = len(values) - reach
    for start in range(0, too_many, reach - exponents[0]):
        stop = min(start + reach - exponents[0], too_many)
        for step in (reach - exponents[0], reach - exponents[1], reach):
            values[start + step : stop + step] ^= values[start:stop]
    tail = values[max(0, too_many) :]
    table, rows = _crc_tables()
    return int(np.bitwise_xor.reduce(table[rows[len(rows) - len(tail) :] + tail])) ^ 0xFFFFFFFF


# --------------------------------------------------------------------------------- examples


# The messages of tensorflow/core/example, each with its fields: name, type, number, whether
# repeated. The map from names to features is a list of its entries, which keeps their order.
_MESSAGES = {
    "Bytes": [("value", "bytes", 1, True)],
    "Integers": [("value", "int64", 1, True)],
    "Floats": [("value", "float", 1, True)],
    "Feature": [
        ("bytes_list", "Bytes", 1, False),
        ("float_list", "Floats", 2, False),
        ("int64_list", "Integers", 3, False),
    ],
    "Entry": [("key", "bytes", 1, False), ("value", "Feature", 2, False)],
    "Features": [("feature", "Entry", 1, True)],
    "Example": [("features", "Features", 1, False)],
}


@functools.cache
def _example_type() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", syntax="proto3")
    field_type = descriptor_pb2.FieldDescriptorProto
    for message, fields in _MESSAGES.items():
        message_type = file.message_type.add(name=message)
        for name, kind, number, repeated in fields:
            label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            field = message_type.field.add(name=name, number=number, label=label)
            if kind in _MESSAGES:
                field.type_name = kind
            else:
                field.type = getattr(field_type, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Example"))


def example(features: Mapping[bytes, bytes | int]) -> bytes:
    """A serialised tf.train.Example; it ends with the bytes of the last feature."""
    message = _example_type()()
    for key, value in features.items():
        feature = message.features.feature.add(key=key).value
        (feature.bytes_list if isinstance(value, bytes) else feature.int64_list).value.append(value)
    content: bytes = message.SerializeToString()
    return content


def example_features(record: bytes) -> dict[bytes, bytes | int]:
    """The features of a serialised tf.train.Example that hold one value. Raises ValueError."""
    features = {}
    for entry in _entries(record):
        for values in (entry.value.bytes_list.value, entry.value.int64_list.value):
            if len(values) == 1:
                features[entry.key] = values[0]
    return features


def example_numbers(record: bytes) -> dict[bytes, list[float]]:
    """The features of a serialised tf.train.Example that hold numbers. Raises ValueError."""
    return {
        entry.key: [*entry.value.float_list.value, *entry.value.int64_list.value]
        for entry in _entries(record)
        if not entry.value.bytes_list.value
    }


def _entries(record: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return _example_type().FromString(record).features.feature
    except DecodeError as error:
        raise ValueError(f"no tf.train.Example: {error}") from error


def first_text(head: bytes, key: bytes) -> bytes:
    """The only value, bytes, of a feature, from a record's first bytes. ValueError if none."""
    offset = head.index(bytes([0x0A, len(key)]) + key) + 2 + len(key)
    size = 0
    for tag in (0x12, 0x0A, 0x0A):  # the entry's feature, its list of bytes, the first of these
        if head[offset : offset + 1] != bytes([tag]):
            raise ValueError(f"{key!r} holds no bytes")
        size, offset = _varint(head, offset + 1)
    if offset + size > len(head):
        raise ValueError(f"{key!r} ends later")
    return head[offset : offset + size]


def _varint(content: bytes, offset: int) -> tuple[int, int]:
    """(the number at an offset, the offset behind it): seven bits a byte, the lowest first."""
    number = 0
    for k, byte in enumerate(content[offset : offset + 10]):
        number |= (byte & 127) << 7 * k
        if byte < 128:
            return number, offset + k + 1
    raise ValueError("a number that does not end")

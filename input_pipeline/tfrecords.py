"""TFRecord files of tf.train.Examples, without TensorFlow.

A record is its length (8 bytes), that one's checksum (4), the data, their checksum (4). A
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
        at = 0
        while at < stop:
            header = os.pread(fd, 12, at)
            length = int.from_bytes(header[:8], "little")
            if len(header) < 12 or at + 16 + length > stop:
                raise DataError(f"{file}: no whole record at byte {at}; the file is truncated")
            yield at + 12, length
            at += 16 + length


def checked_records(file: Path) -> Iterator[tuple[int, bytes, int]]:
    """(offset, data, checksum) of each record. DataError at the first that is damaged."""
    with file.open("rb", buffering=1 << 20) as stream:
        for k, (offset, size) in enumerate(record_places(file)):
            header, record, told = stream.read(12), stream.read(size), stream.read(4)
            if header[8:] != checksum(header[:8]) or size < 4 or told != checksum(record):
                raise DataError(f"{file}: record {k} has another checksum than was written")
            yield offset, record, int.from_bytes(told, "little")


def write_record(stream: BinaryIO, record: bytes) -> None:
    length = len(record).to_bytes(8, "little")
    stream.write(length + checksum(length))
    stream.write(record)
    stream.write(checksum(record))


def checksum(data: bytes) -> bytes:
    """TFRecord's checksum: CRC-32C, turned and shifted so that it is none of itself."""
    crc = crc32c(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


# x^5685 + x^1362 + x^426 + 1 is a multiple of CRC-32C's polynomial, and so is its eighth power,
# whose exponents count bytes: three XORs remove a byte that lies 5685 bytes before another.
_TERMS = (5685, 1362, 426)


@functools.cache
def _crc_tables() -> tuple[np.ndarray, np.ndarray]:
    """CRCs of every byte value before K-1, ... 1, 0 zero bytes, (K, 256) flat; its rows' starts."""
    reach = _TERMS[0]
    one: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        one = (one >> 1) ^ np.where(one & 1, np.uint32(0x82F63B78), np.uint32(0))
    rows: np.ndarray = np.empty((reach, 256), np.uint32)
    rows[-1] = one
    for k in range(reach - 1, 0, -1):
        rows[k - 1] = (rows[k] >> 8) ^ one[rows[k] & 255]
    return rows.ravel(), np.arange(reach) * 256


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC of at least four bytes, at some 800 MB/s and without a compiled module."""
    reach, *others = _TERMS
    values = np.frombuffer(data, np.uint8).copy()
    values[:4] ^= 255
    too_many = len(values) - reach
    for start in range(0, too_many, reach - others[0]):
        stop = min(start + reach - others[0], too_many)
        for step in (reach - others[0], reach - others[1], reach):
            values[start + step : stop + step] ^= values[start:stop]
    rest = values[max(0, too_many) :]
    table, rows = _crc_tables()
    return int(np.bitwise_xor.reduce(table[rows[len(rows) - len(rest) :] + rest])) ^ 0xFFFFFFFF


# --------------------------------------------------------------------------------- examples


# Of tensorflow/core/example: message -> its fields, whose number, and whether a message has many of
# them. The map from names to features is a list of its entries, which keeps their order.
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
        declared = file.message_type.add(name=message)
        for name, kind, number, many in fields:
            label = field_type.LABEL_REPEATED if many else field_type.LABEL_OPTIONAL
            field = declared.field.add(name=name, number=number, label=label)
            if kind in _MESSAGES:
                field.type_name = kind
            else:
                field.type = getattr(field_type, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Example"))


def example(features: Mapping[bytes, bytes | int]) -> bytes:
    """A serialised tf.train.Example; it ends with the bytes of the last feature."""
    made = _example_type()()
    for key, value in features.items():
        held = made.features.feature.add(key=key).value
        (held.bytes_list if isinstance(value, bytes) else held.int64_list).value.append(value)
    content: bytes = made.SerializeToString()
    return content


def example_features(record: bytes) -> dict[bytes, bytes | int]:
    """The features of a serialised tf.train.Example that hold one value. Raises ValueError."""
    found = {}
    for entry in _entries(record):
        for held in (entry.value.bytes_list.value, entry.value.int64_list.value):
            if len(held) == 1:
                found[entry.key] = held[0]
    return found


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
    """The one value, bytes, of a feature, from a record's first bytes. ValueError without it."""
    at = head.index(bytes([0x0A, len(key)]) + key) + 2 + len(key)
    size = 0
    for tag in (0x12, 0x0A, 0x0A):  # the entry's feature, its list of bytes, the first of these
        if head[at : at + 1] != bytes([tag]):
            raise ValueError(f"{key!r} holds no bytes")
        size, at = _varint(head, at + 1)
    if at + size > len(head):
        raise ValueError(f"{key!r} ends later")
    return head[at : at + size]


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """(the number at a place, the place behind it): seven bits a byte, the lowest first."""
    number = 0
    for k, byte in enumerate(content[at : at + 10]):
        number |= (byte & 127) << 7 * k
        if byte < 128:
            return number, at + k + 1
    raise ValueError("a number that does not end")

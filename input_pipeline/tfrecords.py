"""TFRecord files of tf.train.Examples, without TensorFlow.

A record is its length (8 bytes), that one's checksum (4), the data, their checksum (4). A
tf.train.Example is a protocol buffer: a map from names to lists of bytes or integers.
"""

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from input_pipeline.errors import DataError

# ---------------------------------------------------------------------------------- records


def record_places(file: Path) -> Iterator[tuple[int, int]]:
    """(offset, size) of the data of each record. Raises OSError, or DataError where it is cut off.

    Only lengths are read, and no checksum.
    """
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
            header, record, checksum = stream.read(12), stream.read(size), stream.read(4)
            if header[8:] != _masked(header[:8]) or size < 4 or checksum != _masked(record):
                raise DataError(f"{file}: record {k} has another checksum than was written")
            yield offset, record, int.from_bytes(checksum, "little")


def write_record(stream: BinaryIO, record: bytes) -> None:
    length = len(record).to_bytes(8, "little")
    stream.write(length + _masked(length))
    stream.write(record)
    stream.write(_masked(record))


def _masked(data: bytes) -> bytes:
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


def example(features: Mapping[bytes, bytes | int]) -> bytes:
    """A serialised tf.train.Example; it ends with the bytes of the last feature."""
    entries = b""
    for key, value in features.items():
        # Feature: 1 is a list of bytes, 3 one of integers, here packed.
        kind, content = (1, value) if isinstance(value, bytes) else (3, _number(value))
        entries += _field(1, _field(1, key) + _field(2, _field(kind, _field(1, content))))
    return _field(1, entries)


def _field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer that has a length."""
    return bytes([number << 3 | 2]) + _number(len(content)) + content


def _number(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def example_features(record: bytes) -> dict[bytes, tuple[int, int] | int]:
    """The features of a serialised tf.train.Example that hold one value.

    Bytes are given as (start, stop) in the record, integers as such. Raises ValueError, or KeyError
    where a feature has no name or no value.
    """
    found: dict[bytes, tuple[int, int] | int] = {}
    for features in _of_number(1, record, 0, len(record)):
        for entry in _of_number(1, record, *span(features)):
            pair = dict(_fields(record, *span(entry)))
            start, stop = span(pair[1])
            for kind, values in _fields(record, *span(pair[2])):
                held = _of_number(1, record, *span(values))
                if kind == 3 and len(held) == 1 and isinstance(held[0], tuple):  # packed
                    value, end = _varint(record, held[0][0])
                    held = [value] if end == held[0][1] else []
                if kind in (1, 3) and len(held) == 1:
                    found[record[start:stop]] = held[0]
    return found


def span(value: tuple[int, int] | int) -> tuple[int, int]:
    """Where a feature's bytes lie. Raises ValueError if it is a number."""
    if isinstance(value, int):
        raise ValueError("a number where bytes are expected")
    return value


def _of_number(number: int, record: bytes, at: int, stop: int) -> list[tuple[int, int] | int]:
    return [value for one, value in _fields(record, at, stop) if one == number]


def _fields(record: bytes, at: int, stop: int) -> Iterator[tuple[int, tuple[int, int] | int]]:
    """(number, value) of each field of a protocol buffer; (start, stop) where it has a length."""
    while at < stop:
        tag, at = _varint(record, at)
        if tag & 7 == 0:
            value, at = _varint(record, at)
            yield tag >> 3, value
        elif tag & 7 in (1, 2, 5):
            if tag & 7 == 2:
                length, at = _varint(record, at)
            else:
                length = 8 if tag & 7 == 1 else 4
            if at + length > stop:
                raise ValueError("a field longer than its message")
            yield tag >> 3, (at, at + length)
            at += length
        else:
            raise ValueError("not a protocol buffer")


def _varint(record: bytes, at: int) -> tuple[int, int]:
    """(value, where the next byte lies)."""
    value = shift = 0
    while shift < 64:
        if at >= len(record):
            raise ValueError("cut off")
        byte = record[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("not a number")

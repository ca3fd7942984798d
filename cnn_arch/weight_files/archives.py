"""Zip files, checked before anything is unpacked, and NumPy's npz in them."""

import io
import math
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from cnn_arch.weight_files.values import (
    NUMPY_TYPES,
    Refused,
    check_expansion,
    check_shape,
    refusing,
    widened,
)


class Zip:
    """The entries of a zip file, checked against each other and against the file's size."""

    def __init__(self, file: zipfile.ZipFile, size: int) -> None:
        self.file = file
        self.size = size
        self.entries: dict[str, zipfile.ZipInfo] = {}
        for entry in file.infolist():
            self._check(entry)
            self.entries[entry.filename] = entry
        check_expansion(self.size, sum(entry.file_size for entry in self.entries.values()))

    def _check(self, entry: zipfile.ZipInfo) -> None:
        name = entry.filename
        if name in self.entries:
            raise Refused(f"it has two entries named {name!r}")
        if not _stays_inside(name):
            raise Refused(f"its entry {name!r} points outside of it")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refused(f"its entry {name!r} is compressed by method {entry.compress_type}")
        if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
            raise Refused(
                f"its entry {name!r} says it has {entry.file_size} bytes and stores "
                f"{entry.compress_size}"
            )
        if entry.compress_size > self.size:
            raise Refused(f"its entry {name!r} is larger than the file")

    def read(self, name: str) -> bytes:
        entry = self.entries[name]
        with refusing(f"its entry {name!r} is damaged"), self.file.open(entry) as file:
            data = file.read(entry.file_size)  # a bound: read() would unpack all there is
        if len(data) != entry.file_size:
            raise Refused(f"its entry {name!r} has {len(data)} of {entry.file_size} bytes")
        return data


def _stays_inside(name: str) -> bool:
    """Whether a name in an archive would, unpacked, stay below the folder it is unpacked to."""
    parts = name.replace("\\", "/").split("/")
    return ".." not in parts and parts[0] != ""


def read_npz(archive: Zip) -> dict[str, np.ndarray]:
    for name in archive.entries:
        if not name.endswith(".npy"):
            raise Refused(f"it has an entry {name!r}, which neither torch nor npz files have")
    return {
        name.removesuffix(".npy"): _npy(name.removesuffix(".npy"), archive.read(name))
        for name in archive.entries
    }


def _npy(name: str, data: bytes) -> np.ndarray:
    """The array of one .npy file."""
    headers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    file = io.BytesIO(data)
    with refusing(f"array {name!r} has a wrong header"):
        shape, _, dtype = headers[np.lib.format.read_magic(file)](file)
    if dtype.name not in NUMPY_TYPES:  # an object array, above all, would be a pickle
        raise Refused(f"array {name!r} has the type {dtype.name}, which is not read")
    check_shape(name, shape)
    stored = len(data) - file.tell()
    if stored != math.prod(shape) * dtype.itemsize:
        raise Refused(
            f"array {name!r} has {stored} bytes, but {dtype.name} of shape {shape} takes "
            f"{math.prod(shape) * dtype.itemsize}"
        )
    file.seek(0)
    with refusing(f"array {name!r} is damaged"):
        array = np.lib.format.read_array(file, allow_pickle=False)
    return widened(array.view("u1") if dtype.kind == "b" else array, dtype.name)


def write_npz(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    # Not `numpy.savez`, which takes no array named 'file' and writes the time of day. An entry made
    # by itself, as here, is stored as it is and dated 1980.
    with zipfile.ZipFile(file, "w") as archive:
        for name, tensor in tensors.items():
            if not _stays_inside(name) or "\0" in name:
                raise Refused(f"{name!r} is no name for an array in an npz file")
            entry = io.BytesIO()
            np.lib.format.write_array(entry, tensor, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), entry.getbuffer())

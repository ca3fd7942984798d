"""Files of named tensors: safetensors, NumPy's .npz, torch's .pth and Caffe's .caffemodel.

Published weights come from strangers, so a file is data here and nothing else. What a file says of
itself (sizes, offsets, names, types) is checked against the bytes that are there before memory is
taken for it, and every file that cannot be read ends in a `WeightsError`.

The .pth files of torch hold a pickle, which is a small program that can call any function. It is
interpreted here, opcode by opcode, by a machine that has only the opcodes a state dict is made of
and the names in `_FUNCTIONS`, `_STORAGE_TYPES` and `_DTYPES`; Python's own unpickler is not used.

Values are never rounded. float16 and bfloat16 come out as float32, which holds all their values;
float64, the integers and bool come out as they are, in the machine's byte order.
"""

import io
import json
import math
import os
import pickletools
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from cnn_arch.errors import WeightsError, unknown

# How the values of each type are stored. bfloat16, which NumPy lacks, is the upper half of a
# float32; a bool is a byte that is zero or not.
_STORED = {
    **{name: np.dtype(name).str[1:] for name in ("float16", "float32", "float64")},
    **{f"int{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"u{bits // 8}" for bits in (8, 16, 32, 64)},
    "bfloat16": "u2",
    "bool": "u1",
}
_READ_AS = {"bfloat16": "float32", "float16": "float32"}

_NUMPY_TYPES = frozenset(_STORED) - {"bfloat16"}

_MIB = 1 << 20
_NO_MEMORY = 1 << 60  # more elements than any memory holds
_MOST_DIMENSIONS = 64  # of NumPy and of torch


class _Refused(Exception):
    """Why a file's bytes are refused; `read` and `write` add which file it is."""


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file, by name and in the file's order (safetensors has an order of its own).

    The format is told by the content, not by the suffix:

    - safetensors.
    - npz, as `numpy.savez` and `numpy.savez_compressed` write it.
    - torch, the zip container (torch >= 1.6) and the plain one before it (or with
      `_use_new_zipfile_serialization=False`); tar containers are refused. The file holds a
      state dict, or a dict with one under 'state_dict', 'model_state_dict' or 'model' (the first
      of these) whose other entries are ignored. 'module.', which `DataParallel` puts before names,
      is taken off if all names have it. Zip files saved with torch's checksums switched off are
      refused.
    - caffemodel, the binary NetParameter with `layer` (V2) or `layers` (V1). Blobs are named
      `<layer>.0` (weights) and `<layer>.1` (bias), and keep their shape: before `shape` was
      introduced all had four dimensions, so that a bias is (1, 1, 1, n) and a fully-connected
      layer's weights are (1, 1, outputs, inputs). The format has no end mark: a file cut exactly
      between two layers cannot be told from a shorter network's.

    Returns: arrays that are C-contiguous, writable and share no memory. float16 and bfloat16 become
    float32; float64, integers and bool stay what they are.

    Raises WeightsError when the file is missing, damaged, cut short, of another format, holds
    anything but tensors and plain values, holds no tensor, two of one name, or one with a NaN or
    an infinity.
    """
    what = "a file of weights"
    try:
        what, reader = _format(path)
        # Libraries warn of odd headers; what counts is whether they accept them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors = reader(path)
        if not tensors:
            raise _Refused("it holds no tensors")
        for name, tensor in tensors.items():
            _check_finite(name, tensor)
    except (_Refused, OSError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        # The file may have put a name of any length into the reason.
        raise WeightsError(f"{path} cannot be read as {what}: {reason[:1000]}.") from error
    return tensors


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the tensors to `path`, at once or not at all, in the format of its suffix.

    '.safetensors', '.npz', '.pth' and '.pt' (torch's zip container with an OrderedDict, which
    `torch.load(path, weights_only=True)` reads), or '.caffemodel' (names must be `<layer>.0`,
    `<layer>.1` and so on, types float32 or float64). The same tensors give the same bytes.

    `read` gives equal tensors back: float16 as float32, and .pth names without a 'module.' that
    all have.

    Raises WeightsError when the suffix is another, there is no tensor, a name or a type does not
    fit the format, a value is NaN or infinite, or the file cannot be written.
    """
    if path.suffix.lower() not in _WRITERS:
        raise WeightsError(f"{path} cannot be written. {unknown('suffix', path.suffix, _WRITERS)}")
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        if not tensors:
            raise _Refused("there are no tensors")
        ready = {name: _ready(name, tensor) for name, tensor in tensors.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                _WRITERS[path.suffix.lower()](file, ready)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except (_Refused, OSError) as error:
        raise WeightsError(f"{path} cannot be written: {error}.") from error


def _format(path: Path) -> tuple[str, Callable[[Path], dict[str, np.ndarray]]]:
    """What the file is, by its first bytes, and what reads it."""
    if path.is_dir():
        raise _Refused("it is a directory")
    if not path.exists():
        raise _Refused("there is no such file")
    if not path.is_file():
        raise _Refused("it is not a regular file")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise _Refused("it is empty")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "a zip file (torch's or npz)", _read_zip
    if head.startswith(b"\x80"):
        return "a torch file of the time before 1.6", _read_torch_legacy
    if head[257:262] == b"ustar":
        raise _Refused(
            "it is a tar file, as the first versions of torch wrote; load it with torch and save "
            "it again"
        )
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100 * _MIB:
        return "a safetensors file", _read_safetensors
    # A caffemodel has no magic bytes: it is what parses as one.
    return "safetensors, npz, torch or caffemodel", _read_caffemodel


# ------------------------------------------------------------------------------- values


def _whole(name: str, raw: bytes, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """The tensor that fills `raw`, little-endian and row after row."""
    _check_shape(name, shape)
    if len(raw) != math.prod(shape) * _itemsize(dtype):
        raise _Refused(
            f"tensor {name!r} has {len(raw)} bytes, but {dtype} of shape {tuple(shape)} takes "
            f"{math.prod(shape) * _itemsize(dtype)}"
        )
    return _view(name, raw, dtype, shape, _row_major(shape), 0, "<")


def _view(
    name: str,
    raw: bytes,
    dtype: str,
    shape: Sequence[int],
    strides: Sequence[int],
    offset: int,
    byte_order: str,
) -> np.ndarray:
    """The elements of `raw` that start at `offset` and lie `strides` apart, both in elements."""
    _check_shape(name, shape)
    if len(strides) != len(shape) or any(not 0 <= n < _NO_MEMORY for n in (offset, *strides)):
        raise _Refused(f"tensor {name!r} has strides or an offset that do not fit its shape")
    if 0 in shape:
        return np.zeros(shape, _READ_AS.get(dtype, dtype))
    itemsize = _itemsize(dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if (last + 1) * itemsize > len(raw):
        raise _Refused(
            f"tensor {name!r} reaches to element {last} of a storage of {len(raw) // itemsize}"
        )
    in_bytes = [stride * itemsize for stride in strides]
    stored = np.dtype(byte_order + _STORED[dtype])
    return _widened(np.ndarray(shape, stored, raw, offset * itemsize, in_bytes), dtype)


def _widened(stored: np.ndarray, dtype: str) -> np.ndarray:
    """A copy of values as stored, in the type they are read as."""
    if dtype == "bfloat16":
        bits: np.ndarray = stored.astype(np.uint32, order="C")
        bits <<= 16
        return bits.view(np.float32)
    return stored.astype(_READ_AS.get(dtype, dtype), order="C")


def _itemsize(dtype: str) -> int:
    return int(_STORED[dtype][1:])


def _row_major(shape: Sequence[int]) -> list[int]:
    """The strides, in elements, of a tensor whose last index moves fastest."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _check_shape(name: str, shape: Sequence[int]) -> None:
    """Refuses what NumPy would not take as a shape, of arrays without elements too."""
    if len(shape) > _MOST_DIMENSIONS:
        raise _Refused(f"tensor {name!r} has {len(shape)} dimensions")
    if any(size < 0 for size in shape) or math.prod(max(s, 1) for s in shape) >= _NO_MEMORY:
        raise _Refused(f"tensor {name!r} has a negative dimension, or more than any memory holds")


def _check_finite(name: str, tensor: np.ndarray) -> None:
    if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
        raise _Refused(f"tensor {name!r} has NaN or infinite values")


def _ready(name: str, tensor: np.ndarray) -> np.ndarray:
    """The tensor as it is written: C-contiguous and little-endian."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        encoded = b""
    if not encoded:
        raise _Refused(f"{name!r} is no name for a tensor")
    array = np.asarray(tensor, order="C")
    if array.dtype.name not in _NUMPY_TYPES:
        raise _Refused(f"tensor {name!r} is {array.dtype.name}, which is not written")
    _check_finite(name, array)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Refuses whatever a library raises on damaged bytes; only calls of libraries go inside."""
    try:
        yield
    except Exception as error:  # zipfile alone raises ten types, and none promises to stay at them
        reason = str(error) or type(error).__name__
        raise _Refused(f"{what}: {reason.rstrip('.')}") from error


# ------------------------------------------------------------------------------- safetensors

_SAFETENSORS_TYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "BF16": "bfloat16",
    "BOOL": "bool",
}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    with _refusing("it is damaged or cut short"):
        # The library's NumPy interface has no bfloat16, so its checked bytes are taken instead.
        entries = safetensors.deserialize(data)
    _check_names_differ(data)
    del data  # `entries` is a copy
    tensors = {}
    for name, entry in entries:
        dtype = _SAFETENSORS_TYPES.get(entry["dtype"])
        if dtype is None:
            raise _Refused(f"tensor {name!r} has the type {entry['dtype']}, which is not read")
        tensors[name] = _whole(name, entry["data"], dtype, entry["shape"])
    return tensors


def _check_names_differ(data: bytes) -> None:
    """Refuses a header that names a tensor twice, of which the library silently takes the last."""
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    with _refusing("its header is wrong"):
        names = [name for name, _ in json.loads(header, object_pairs_hook=list)]
    if twice := [a for a, b in pairwise(sorted(names)) if a == b]:
        raise _Refused(f"it has two tensors named {twice[0]!r}")


def _write_safetensors(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    if "__metadata__" in tensors:
        raise _Refused("'__metadata__' is no name for a tensor in safetensors")
    # Not `save_file`, which makes files that only their owner can read.
    file.write(safetensors.numpy.save(dict(tensors)))


# ------------------------------------------------------------------------------- zip files, npz

# Compressed npz files may be this many times larger unpacked, and smaller ones 16 MiB; trained
# weights hardly shrink at all, while deflate can blow up a file a thousandfold.
_MOST_EXPANSION = 100
_ALWAYS_UNPACKED = 16 * _MIB


class _Zip:
    """The entries of a zip file, checked against each other and against the file's size."""

    def __init__(self, file: zipfile.ZipFile, size: int) -> None:
        self.file = file
        self.size = size
        self.entries: dict[str, zipfile.ZipInfo] = {}
        for entry in file.infolist():
            self._check(entry)
            self.entries[entry.filename] = entry
        unpacked = sum(entry.file_size for entry in self.entries.values())
        if unpacked > max(_MOST_EXPANSION * self.size, _ALWAYS_UNPACKED):
            raise _Refused(f"its {self.size} bytes would unpack to {unpacked}")

    def _check(self, entry: zipfile.ZipInfo) -> None:
        name = entry.filename
        if name in self.entries:
            raise _Refused(f"it has two entries named {name!r}")
        if not _stays_inside(name):
            raise _Refused(f"its entry {name!r} points outside of it")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _Refused(f"its entry {name!r} is compressed by method {entry.compress_type}")
        if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
            raise _Refused(
                f"its entry {name!r} says it has {entry.file_size} bytes and stores "
                f"{entry.compress_size}"
            )
        if entry.compress_size > self.size:
            raise _Refused(f"its entry {name!r} is larger than the file")

    def read(self, name: str) -> bytes:
        entry = self.entries[name]
        with _refusing(f"its entry {name!r} is damaged"), self.file.open(entry) as file:
            data = file.read(entry.file_size)  # a bound: read() would unpack all there is
        if len(data) != entry.file_size:
            raise _Refused(f"its entry {name!r} has {len(data)} of {entry.file_size} bytes")
        return data


def _stays_inside(name: str) -> bool:
    """Whether a name in an archive would, unpacked, stay below the folder it is unpacked to."""
    parts = name.replace("\\", "/").split("/")
    return ".." not in parts and parts[0] != ""


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    with _refusing("it is damaged or cut short"):
        file = zipfile.ZipFile(path)
    with file:
        archive = _Zip(file, path.stat().st_size)
        # torch puts everything into one folder, whose name is the file's when it was saved.
        pickles = [n for n in archive.entries if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickles) == 1:
            return _read_torch_zip(archive, folder=pickles[0].removesuffix("data.pkl"))
        for name in archive.entries:
            if not name.endswith(".npy"):
                raise _Refused(f"it has an entry {name!r}, which neither torch nor npz files have")
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
    with _refusing(f"array {name!r} has a wrong header"):
        shape, _, dtype = headers[np.lib.format.read_magic(file)](file)
    if dtype.name not in _NUMPY_TYPES:  # an object array, above all, would be a pickle
        raise _Refused(f"array {name!r} has the type {dtype.name}, which is not read")
    _check_shape(name, shape)
    stored = len(data) - file.tell()
    if stored != math.prod(shape) * dtype.itemsize:
        raise _Refused(
            f"array {name!r} has {stored} bytes, but {dtype.name} of shape {shape} takes "
            f"{math.prod(shape) * dtype.itemsize}"
        )
    file.seek(0)
    with _refusing(f"array {name!r} is damaged"):
        array = np.lib.format.read_array(file, allow_pickle=False)
    return _widened(array.view("u1") if dtype.kind == "b" else array, dtype.name)


def _write_npz(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    # Not `numpy.savez`, which takes no array named 'file' and writes the time of day. An entry made
    # by itself, as here, is stored as it is and dated 1980.
    with zipfile.ZipFile(file, "w") as archive:
        for name, tensor in tensors.items():
            if not _stays_inside(name) or "\0" in name:
                raise _Refused(f"{name!r} is no name for an array in an npz file")
            entry = io.BytesIO()
            np.lib.format.write_array(entry, tensor, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), entry.getbuffer())


# ------------------------------------------------------------------------------- torch's containers

_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")
_DATA_PARALLEL = "module."

# Tensors that share a storage are read apart, and a few bytes can be shared a million times. Tied
# weights and float16 come nowhere near.
_MOST_SHARING = 4

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


@dataclass(frozen=True)
class _Storage:
    """A stretch of bytes in the file. dtype: of its `numel` elements, uint8 where untyped."""

    key: str
    dtype: str
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * _itemsize(self.dtype)


@dataclass(frozen=True)
class _Tensor:
    """A view into a storage; offset and strides count elements of `dtype`."""

    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _itemsize(self.dtype)


def _read_torch_zip(archive: _Zip, folder: str) -> dict[str, np.ndarray]:
    """The state dict of torch's zip container: data.pkl, and data/<key> for each storage."""
    for name, entry in archive.entries.items():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise _Refused(f"its entry {name!r} is compressed, which torch never does")
    byte_order = "<"
    if f"{folder}byteorder" in archive.entries:
        recorded = archive.read(f"{folder}byteorder")
        if recorded not in (b"little", b"big"):
            raise _Refused(f"its byte order is {recorded[:20]!r}, not 'little' or 'big'")
        byte_order = "<" if recorded == b"little" else ">"

    def bytes_of(storage: _Storage) -> bytes:
        name = f"{folder}data/{storage.key}"
        if name not in archive.entries:
            raise _Refused(f"it has no entry {name!r}")
        if archive.entries[name].file_size != storage.nbytes:
            raise _Refused(
                f"its entry {name!r} has {archive.entries[name].file_size} bytes, but "
                f"{storage.numel} elements of {storage.dtype} take {storage.nbytes}"
            )
        return archive.read(name)

    pickled = _interpret(archive.read(f"{folder}data.pkl"))
    return _tensors(pickled.value, bytes_of, byte_order, archive.size)


def _read_torch_legacy(path: Path) -> dict[str, np.ndarray]:
    """The state dict of torch's container before 1.6: five pickles, then the storages.

    The storages are little-endian whatever machine wrote them, so the third pickle, which
    describes that machine, is not needed.
    """
    data = path.read_bytes()
    magic = _interpret(data)
    if type(magic.value) is not int or magic.value != _LEGACY_MAGIC:
        raise _Refused("it is a pickle, but does not begin with torch's magic number")
    version = _interpret(data, magic.end)
    if type(version.value) is not int or version.value != _LEGACY_VERSION:
        raise _Refused(f"its format's version is not {_LEGACY_VERSION}")
    machine = _interpret(data, version.end)
    pickled = _interpret(data, machine.end)
    keys = _interpret(data, pickled.end)
    begins = _legacy_storages(data, keys.end, keys.value, pickled.storages)

    def bytes_of(storage: _Storage) -> bytes:
        if storage.key not in begins:
            raise _Refused(f"it has no storage {storage.key!r}")
        return data[begins[storage.key] : begins[storage.key] + storage.nbytes]

    return _tensors(pickled.value, bytes_of, "<", len(data))


def _legacy_storages(
    data: bytes, at: int, keys: object, storages: Mapping[str, _Storage]
) -> dict[str, int]:
    """Where each storage's bytes begin: they follow in the order of `keys`, each after its size."""
    if not isinstance(keys, list):
        raise _Refused("its list of storages is not a list")
    begins: dict[str, int] = {}
    for key in keys:
        if not isinstance(key, str) or key in begins or key not in storages:
            raise _Refused("its list of storages is not the list of those its tensors use")
        if at + 8 > len(data):
            raise _Refused(f"it ends before storage {key!r}")
        (numel,) = struct.unpack_from("<q", data, at)
        if numel != storages[key].numel:
            raise _Refused(
                f"its storage {key!r} has {numel} elements in one place and "
                f"{storages[key].numel} in another"
            )
        begins[key] = at + 8
        at += 8 + storages[key].nbytes
        if at > len(data):
            raise _Refused(f"it ends within storage {key!r}: {at - len(data)} bytes are missing")
    if at != len(data):
        raise _Refused(f"{len(data) - at} bytes follow after its last storage")
    return begins


def _tensors(
    root: object, bytes_of: Callable[[_Storage], bytes], byte_order: str, file_size: int
) -> dict[str, np.ndarray]:
    """The tensors of the state dict in `root`, storage by storage."""
    views = _state_dict(root)
    for name, view in views.items():
        _check_shape(name, view.shape)
    if (total := sum(view.nbytes for view in views.values())) > _MOST_SHARING * file_size + _MIB:
        raise _Refused(
            f"its tensors take {total} bytes of the same {file_size}: they overlap too much"
        )
    names: dict[str, list[str]] = {}
    for name, view in views.items():
        names.setdefault(view.storage.key, []).append(name)
    tensors = {}
    for sharing in names.values():
        raw = bytes_of(views[sharing[0]].storage)
        for name in sharing:
            view = views[name]
            tensors[name] = _view(
                name, raw, view.dtype, view.shape, view.strides, view.offset, byte_order
            )
    return {name: tensors[name] for name in views}


def _state_dict(root: object) -> dict[str, _Tensor]:
    """The state dict that is `root` or that `root` holds, without what `DataParallel` adds."""
    if not isinstance(root, dict):
        raise _Refused(f"it holds a {_kind(root)}, not a state dict")
    inner = [root[key] for key in _STATE_DICT_KEYS if isinstance(root.get(key), dict)]
    found = inner[0] if inner else root
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise _Refused(
                f"the entry {name!r} of its state dict is a {_kind(value)}, not a tensor"
            )
    if all(name.startswith(_DATA_PARALLEL) for name in found):
        return {name.removeprefix(_DATA_PARALLEL): value for name, value in found.items()}
    return found


def _kind(value: object) -> str:
    return type(value).__name__.removeprefix("_").lower()


# ------------------------------------------------------------------------------- torch's pickle

_OPCODES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_BYTE = {opcode.name: opcode.code.encode("latin-1") for opcode in pickletools.opcodes}

# A thousand tensors with their optimizer's take a tenth of this.
_MOST_STEPS = 1 << 20

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_STORAGE_TYPES = {
    **{f"torch.{name}": dtype for name, dtype in _STORAGES.items()},
    **{f"torch.cuda.{name}": dtype for name, dtype in _STORAGES.items()},
    "torch.storage.UntypedStorage": "uint8",
    "torch.UntypedStorage": "uint8",
}
_DTYPES = {f"torch.{name}": name for name in _STORED}
_FUNCTIONS = frozenset(
    {
        "collections.OrderedDict",
        "torch.Size",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_parameter",
        "torch.nn.parameter.Parameter",
    }
)


@dataclass(frozen=True)
class _Global:
    """A name that stands for something outside of the pickle: it is compared, never looked up."""

    name: str


@dataclass(frozen=True)
class _Interpreted:
    """What a pickle gave, where it ends, and the storages its tensors use, by key."""

    value: object
    end: int
    storages: dict[str, _Storage]


@dataclass
class _Machine:
    """The state of the pickle machine, and what its opcodes do to it.

    Everything on the stack is a plain value, a `_Global`, a `_Storage` or a `_Tensor`. Values are
    never compared, hashed, printed, copied or walked through: a few opcodes nest tuples a million
    deep, make them 2^1000 long when written out, or name a long one again and again.
    """

    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)  # the stacks below each open MARK
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, _Storage] = field(default_factory=dict)
    steps: int = 0

    def spend(self, steps: int) -> None:
        """Counts what is done, so that a short pickle cannot keep the machine busy for years."""
        self.steps += steps
        if self.steps > _MOST_STEPS:
            raise _Refused(f"its pickle takes more than {_MOST_STEPS} steps")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self, count: int = 1) -> list[Any]:
        """The last `count` values, the last one last."""
        if len(self.stack) < count:
            raise _Refused("its pickle takes more values than it has made")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def top(self) -> Any:
        if not self.stack:
            raise _Refused("its pickle takes more values than it has made")
        return self.stack[-1]

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """All values since the last MARK."""
        if not self.marks:
            raise _Refused("its pickle takes a mark that it has not made")
        values, self.stack = self.stack, self.marks.pop()
        return values

    def put(self, place: int) -> None:
        self.memo[place] = self.top()

    def get(self, place: int) -> None:
        if place not in self.memo:
            raise _Refused("its pickle recalls a value that it has not stored")
        self.push(self.memo[place])

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise _Refused(f"its pickle appends to a {_kind(target)}")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict):
            raise _Refused(f"its pickle sets items of a {_kind(target)}")
        _set_items(target, values)

    def name(self, name: str) -> None:
        if name not in _FUNCTIONS and name not in _STORAGE_TYPES and name not in _DTYPES:
            raise _Refused(
                f"its pickle uses {name}, which no state dict needs and which is not run; save "
                f"only the state dict"
            )
        self.push(_Global(name))

    def stack_name(self) -> None:
        match self.pop(2):
            case [str(module), str(name)]:
                self.name(f"{module}.{name}")
            case _:
                raise _Refused("its pickle makes a name of what is not text")

    def call(self) -> None:
        match self.pop(2):
            case [_Global("collections.OrderedDict"), (list(pairs),)]:  # of Python 2
                self.spend(len(pairs))
                self.push(_ordered(pairs))
            case [_Global(name), tuple(arguments)]:
                self.push(_called(name, arguments))
            case _:
                raise _Refused("its pickle calls what is not a function")

    def build(self) -> None:
        """Sets attributes: `_metadata` of a state dict, flags of a parameter. Neither matters."""
        self.pop()
        if not isinstance(target := self.top(), OrderedDict | _Tensor):
            raise _Refused(f"its pickle sets attributes of a {_kind(target)}")

    def persistent(self) -> None:
        """A storage: ('storage', type, key, device, elements), and None in the older container."""
        match self.pop()[0]:
            case ("storage", _Global(kind), str(key), str(), int(numel)) | (
                "storage",
                _Global(kind),
                str(key),
                str(),
                int(numel),
                None,
            ) if kind in _STORAGE_TYPES and 0 <= numel < _NO_MEMORY:
                storage = _Storage(key, _STORAGE_TYPES[kind], numel)
            case _:
                raise _Refused("its pickle refers to what is not a storage")
        if self.storages.setdefault(key, storage) != storage:
            raise _Refused(f"its storage {key!r} has two sizes or types")
        self.push(storage)


# What each opcode that a state dict needs does, given its argument.
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, argument: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE"), _Machine.push),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _Machine.push),  # text of Python 2
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "APPEND": lambda machine, _: machine.append(machine.pop()),
    "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": lambda machine, names: machine.name(names.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.stack_name(),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.persistent(),
    "STOP": lambda machine, _: None,
}


def _interpret(data: bytes, start: int = 0) -> _Interpreted:
    """Interprets the pickle that begins at `start` of `data`."""
    machine = _Machine()
    stream = io.BytesIO(data)
    stream.seek(start)
    steps = pickletools.genops(stream)
    while True:
        machine.spend(1)
        at = stream.tell()
        if at >= len(data):
            raise _Refused("its pickle is cut short")
        # Before the argument is read: those of other opcodes may be anything.
        name = _OPCODES.get(data[at], f"0x{data[at]:02x}")
        if name not in _OPERATIONS:
            raise _Refused(f"its pickle has the opcode {name}, which no state dict needs")
        try:
            _, argument, _ = next(steps)
        except Exception as error:  # see `_refusing`, too slow to enter for every opcode
            raise _Refused(f"its pickle is damaged at byte {at}: {error}") from error
        _OPERATIONS[name](machine, argument)
        if name == "STOP":
            return _Interpreted(machine.pop()[0], stream.tell(), machine.storages)


def _called(name: str, arguments: tuple[Any, ...]) -> object:
    """What the functions in a state dict's pickle give."""
    match name, arguments:
        case "collections.OrderedDict", ():
            return OrderedDict()
        case "torch.Size", (tuple(sizes),):
            return sizes
        case "torch._utils._rebuild_tensor", (_Storage() as storage, offset, shape, strides):
            return _tensor(storage, storage.dtype, offset, shape, strides)
        case (
            "torch._utils._rebuild_tensor_v2",
            (_Storage() as storage, offset, shape, strides, _, _, *_),
        ):
            return _tensor(storage, storage.dtype, offset, shape, strides)
        case (
            "torch._utils._rebuild_tensor_v3",
            (_Storage() as storage, offset, shape, strides, _, _, _Global(dtype), *_),
        ) if dtype in _DTYPES:
            return _tensor(storage, _DTYPES[dtype], offset, shape, strides)
        case (
            "torch._utils._rebuild_parameter" | "torch.nn.parameter.Parameter",
            (_Tensor() as tensor, *_),
        ):
            return tensor
    raise _Refused(f"its pickle calls {name} in a way that no state dict does")


def _tensor(storage: _Storage, dtype: str, offset: Any, shape: Any, strides: Any) -> _Tensor:
    """A tensor whose numbers are integers; `_view` checks that it lies within its storage."""
    for numbers in ((offset,), shape, strides):
        if (
            not isinstance(numbers, tuple)
            or len(numbers) > _MOST_DIMENSIONS
            or any(type(number) is not int for number in numbers)
        ):
            raise _Refused("its pickle has a tensor whose shape, strides or offset are not numbers")
    return _Tensor(storage, dtype, offset, shape, strides)


def _ordered(pairs: list[Any]) -> OrderedDict[Any, Any]:
    """The OrderedDict of [[key, value], ...], which is how Python 2 wrote one."""
    ordered: OrderedDict[Any, Any] = OrderedDict()
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise _Refused("its pickle makes an OrderedDict of what are not pairs")
        _set_items(ordered, pair)
    return ordered


def _set_items(target: dict[Any, Any], values: list[Any]) -> None:
    """Sets keys and values, which alternate."""
    if len(values) % 2:
        raise _Refused("its pickle has a dict with a key that lacks its value")
    for key, value in zip(values[::2], values[1::2], strict=True):
        # Tuples could take for ever to hash, and large numbers be chosen to hash alike.
        small = type(key) is int and abs(key) < 1 << 60
        if not small and type(key) not in (str, bool, type(None)):
            raise _Refused(f"its pickle has a dict with a {_kind(key)} as a key")
        if key in target:
            raise _Refused(f"its pickle has a dict with the key {key!r} twice")
        target[key] = value


def _write_torch(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    """torch's zip container, with the entries that its reader asks for."""
    entries = {"data.pkl": _pickled(tensors), "byteorder": b"little", "version": b"3\n"}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
        for key, tensor in enumerate(tensors.values()):
            archive.writestr(zipfile.ZipInfo(f"archive/data/{key}"), tensor.tobytes())


def _pickled(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of an OrderedDict of tensors, the n-th in storage n, as torch writes it."""
    storages = {dtype: name for name, dtype in _STORAGES.items()}
    new_dict = _pickled_name("collections", "OrderedDict") + _BYTE["EMPTY_TUPLE"] + _BYTE["REDUCE"]
    parts = [_BYTE["PROTO"], b"\x02", new_dict, _BYTE["MARK"]]
    for key, (name, tensor) in enumerate(tensors.items()):
        if tensor.dtype.name not in storages:
            raise _Refused(f"tensor {name!r} is {tensor.dtype.name}, which torch files do not hold")
        storage = [
            _pickled_text("storage"),
            _pickled_name("torch", storages[tensor.dtype.name]),
            _pickled_text(str(key)),
            _pickled_text("cpu"),
            _pickled_int(tensor.size),
        ]
        arguments = [
            _pickled_tuple(storage) + _BYTE["BINPERSID"],
            _pickled_int(0),  # offset
            _pickled_tuple(map(_pickled_int, tensor.shape)),
            _pickled_tuple(map(_pickled_int, _row_major(tensor.shape))),
            _BYTE["NEWFALSE"],  # requires_grad
            new_dict,  # hooks
        ]
        rebuild = _pickled_name("torch._utils", "_rebuild_tensor_v2")
        parts += [_pickled_text(name), rebuild, _pickled_tuple(arguments), _BYTE["REDUCE"]]
    return b"".join([*parts, _BYTE["SETITEMS"], _BYTE["STOP"]])


def _pickled_name(module: str, name: str) -> bytes:
    return _BYTE["GLOBAL"] + f"{module}\n{name}\n".encode()


def _pickled_text(text: str) -> bytes:
    return _BYTE["BINUNICODE"] + struct.pack("<I", len(text.encode())) + text.encode()


def _pickled_int(number: int) -> bytes:
    """Not negative. LONG1 takes any size, but torch itself writes BININT where it fits."""
    if number < 1 << 31:
        return _BYTE["BININT"] + struct.pack("<i", number)
    return _BYTE["LONG1"] + b"\x08" + struct.pack("<q", number)


def _pickled_tuple(parts: Any) -> bytes:
    return _BYTE["MARK"] + b"".join(parts) + _BYTE["TUPLE"]


# ------------------------------------------------------------------------------- caffemodel

_INT, _INT64, _BYTES = (
    descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
    descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
)
_ONE, _MANY = (
    descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
    descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED,
)
_OLD_SHAPE = ("num", "channels", "height", "width")

# The messages and fields of caffe.proto that hold weights: number, type or message, one or many.
# Packed floats look on the wire like bytes, and as bytes NumPy takes them without a copy each
# through Python; strings are bytes as well, so that a wrong one can be named.
_CAFFE_PROTO: dict[str, dict[str, tuple[int, int | str, int]]] = {
    "BlobShape": {"dim": (1, _INT64, _MANY)},
    "BlobProto": {
        **{name: (number, _INT, _ONE) for number, name in enumerate(_OLD_SHAPE, 1)},
        "data": (5, _BYTES, _MANY),
        "shape": (7, "BlobShape", _ONE),
        "double_data": (8, _BYTES, _MANY),
    },
    "V1LayerParameter": {"name": (4, _BYTES, _ONE), "blobs": (6, "BlobProto", _MANY)},
    "LayerParameter": {"name": (1, _BYTES, _ONE), "blobs": (7, "BlobProto", _MANY)},
    "NetParameter": {
        "layers": (2, "V1LayerParameter", _MANY),
        "layer": (100, "LayerParameter", _MANY),
    },
}
_MOST_MESSAGE = (1 << 31) - 1  # bytes, of protobuf


@cache
def _net_parameter() -> Any:
    """The message class of a caffemodel, built from `_CAFFE_PROTO`."""
    file = descriptor_pb2.FileDescriptorProto(name="weights.proto", package="weights")
    for message, fields in _CAFFE_PROTO.items():
        built = file.message_type.add(name=message)
        for name, (number, kind, label) in fields.items():
            described = built.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                described.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
                described.type_name = f".weights.{kind}"
            else:
                described.type = kind
                described.options.packed = kind == _INT64
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("weights.NetParameter"))


def _read_caffemodel(path: Path) -> dict[str, np.ndarray]:
    if path.stat().st_size > _MOST_MESSAGE:
        raise _Refused("it begins like none of these, and is too large for a caffemodel")
    data = path.read_bytes()
    neither = f"it begins with {data[:16]!r}, and is not a whole caffemodel"
    with _refusing(neither):
        net = _net_parameter().FromString(data)
    tensors: dict[str, np.ndarray] = {}
    for layer in [*net.layers, *net.layer]:
        for index, blob in enumerate(layer.blobs):
            with _refusing("the name of a layer is not text"):
                name = f"{layer.name.decode()}.{index}"
            if name in tensors:
                raise _Refused(f"it has two tensors named {name!r}")
            tensors[name] = _blob(name, blob)
    if not tensors:
        raise _Refused(f"{neither} with weights")
    return tensors


def _blob(name: str, blob: Any) -> np.ndarray:
    """A BlobProto's values; as in Caffe, the old shape and the double values come first."""
    if any(blob.HasField(part) for part in _OLD_SHAPE):
        shape = [getattr(blob, part) for part in _OLD_SHAPE]
    else:
        shape = list(blob.shape.dim)
    if blob.double_data:
        return _whole(name, b"".join(blob.double_data), "float64", shape)
    return _whole(name, b"".join(blob.data), "float32", shape)


def _write_caffemodel(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    if sum(tensor.nbytes for tensor in tensors.values()) + _MIB > _MOST_MESSAGE:
        raise _Refused("a caffemodel holds less than 2 GiB")
    blobs: dict[str, list[str]] = {}
    for name in tensors:
        blobs.setdefault(name.rpartition(".")[0], []).append(name)
    net = _net_parameter()()
    for layer, names in blobs.items():
        wanted = [f"{layer}.{index}" for index in range(len(names))]
        if not layer or sorted(names) != sorted(wanted):
            raise _Refused(
                f"the tensors of a caffemodel's layer are named <layer>.0, <layer>.1 and so on, "
                f"not {', '.join(map(repr, names))}"
            )
        message = net.layer.add(name=layer.encode())
        for name in wanted:
            tensor = tensors[name]
            if tensor.dtype.name not in ("float32", "float64"):
                raise _Refused(f"tensor {name!r} is {tensor.dtype.name}, not float32 or float64")
            blob = message.blobs.add()
            blob.shape.dim.extend(tensor.shape)
            data = blob.data if tensor.dtype.name == "float32" else blob.double_data
            data.append(tensor.tobytes())
    file.write(net.SerializeToString())


_WRITERS: dict[str, Callable[[BinaryIO, Mapping[str, np.ndarray]], None]] = {
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
    ".pth": _write_torch,
    ".pt": _write_torch,
    ".caffemodel": _write_caffemodel,
}

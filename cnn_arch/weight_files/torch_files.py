"""torch's containers, which hold a pickled state dict and the bytes of its tensors."""

import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from cnn_arch.weight_files.archives import Zip
from cnn_arch.weight_files.torch_pickle import STORAGES, Storage, Tensor, interpret, kind
from cnn_arch.weight_files.values import MIB, Refused, check_shape, row_major, view

# Keys of training scripts for a state dict, and for the average of its weights over the training.
RAW = ("state_dict", "model_state_dict", "model", "net", "network", "module")
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema")
Which = Literal["raw", "average"]

# The largest ratio of the tensors' bytes to the file's. Tensors that share a storage are copied,
# and a few bytes can be shared a million times. Tied weights and float16 come nowhere near.
_MOST_SHARING = 4

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001

_BYTE = {opcode.name: opcode.code.encode("latin-1") for opcode in pickletools.opcodes}


Choice = tuple[Which | None, Callable[[str], None]]  # `which` and `on_note` of `read`


def read_torch_zip(archive: Zip, folder: str, choice: Choice) -> dict[str, np.ndarray]:
    """The state dict of torch's zip container: data.pkl, and data/<key> for each storage."""
    for name, entry in archive.entries.items():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise Refused(f"its entry {name!r} is compressed, which torch never does")
    byte_order = "<"
    if f"{folder}byteorder" in archive.entries:
        recorded = archive.read(f"{folder}byteorder")
        if recorded not in (b"little", b"big"):
            raise Refused(f"its byte order is {recorded[:20]!r}, not 'little' or 'big'")
        byte_order = "<" if recorded == b"little" else ">"

    def bytes_of(storage: Storage) -> bytes:
        name = f"{folder}data/{storage.key}"
        if name not in archive.entries:
            raise Refused(f"it has no entry {name!r}")
        if archive.entries[name].file_size != storage.nbytes:
            raise Refused(
                f"its entry {name!r} has {archive.entries[name].file_size} bytes, but "
                f"{storage.numel} elements of {storage.dtype} take {storage.nbytes}"
            )
        return archive.read(name)

    pickled = interpret(archive.read(f"{folder}data.pkl"))
    return _tensors(_state_dict(pickled.value, choice), bytes_of, byte_order, archive.size)


def read_torch_legacy(path: Path, choice: Choice) -> dict[str, np.ndarray]:
    """The state dict of torch's container before 1.6: five pickles, then the storages.

    The storages are little-endian whatever machine wrote them, so the third pickle, which
    describes that machine, is not needed.
    """
    data = path.read_bytes()
    magic = interpret(data)
    if type(magic.value) is not int or magic.value != _LEGACY_MAGIC:
        raise Refused("it is a pickle, but does not begin with torch's magic number")
    version = interpret(data, magic.end)
    if type(version.value) is not int or version.value != _LEGACY_VERSION:
        raise Refused(f"its format's version is not {_LEGACY_VERSION}")
    machine = interpret(data, version.end)
    pickled = interpret(data, machine.end)
    keys = interpret(data, pickled.end)
    offsets = _legacy_storages(data, keys.end, keys.value, pickled.storages)

    def bytes_of(storage: Storage) -> bytes:
        if storage.key not in offsets:
            raise Refused(f"it has no storage {storage.key!r}")
        return data[offsets[storage.key] : offsets[storage.key] + storage.nbytes]

    return _tensors(_state_dict(pickled.value, choice), bytes_of, "<", len(data))


def _legacy_storages(
    data: bytes, offset: int, keys: object, storages: Mapping[str, Storage]
) -> dict[str, int]:
    """The offset of each storage's bytes: they follow in the order of `keys`, after their sizes."""
    if not isinstance(keys, list):
        raise Refused("its list of storages is not a list")
    offsets: dict[str, int] = {}
    for key in keys:
        if not isinstance(key, str) or key in offsets or key not in storages:
            raise Refused("its list of storages is not the list of those its tensors use")
        if offset + 8 > len(data):
            raise Refused(f"it ends before storage {key!r}")
        (numel,) = struct.unpack_from("<q", data, offset)
        if numel != storages[key].numel:
            raise Refused(
                f"its storage {key!r} has {numel} elements in one place and "
                f"{storages[key].numel} in another"
            )
        offsets[key] = offset + 8
        offset += 8 + storages[key].nbytes
        if offset > len(data):
            raise Refused(f"it ends within storage {key!r}: {offset - len(data)} bytes are missing")
    if offset != len(data):
        raise Refused(f"{len(data) - offset} bytes follow after its last storage")
    return offsets


def _tensors(
    views: Mapping[str, Tensor],
    bytes_of: Callable[[Storage], bytes],
    byte_order: str,
    file_size: int,
) -> dict[str, np.ndarray]:
    """The tensors of a state dict, storage by storage."""
    for name, tensor in views.items():
        check_shape(name, tensor.shape)
    if (total := sum(tensor.nbytes for tensor in views.values())) > _MOST_SHARING * file_size + MIB:
        raise Refused(
            f"its tensors take {total} bytes of the same {file_size}: they overlap too much"
        )
    names: dict[str, list[str]] = {}
    for name, tensor in views.items():
        names.setdefault(tensor.storage.key, []).append(name)
    tensors = {}
    for sharing in names.values():
        raw = bytes_of(views[sharing[0]].storage)
        for name in sharing:
            tensor = views[name]
            tensors[name] = view(
                name, raw, tensor.dtype, tensor.shape, tensor.strides, tensor.offset, byte_order
            )
    return {name: tensors[name] for name in views}


def _state_dict(root: object, choice: Choice) -> dict[str, Tensor]:
    """`root` itself if it is a state dict, or the chosen one of those that it holds."""
    if not isinstance(root, dict):
        raise Refused(f"it holds a {kind(root)}, not a state dict")
    which, on_note = choice
    raw, average = (
        next((key for key in keys if isinstance(root.get(key), dict)), None)
        for keys in (RAW, AVERAGES)
    )
    if which == "average" and average is None:
        raise Refused(
            "it has no average of its weights beside them; --which-weights raw takes them"
        )
    if which == "raw" and average and raw is None:
        raise Refused(f"it has only an average of its weights, {average!r}")
    chosen = raw if which == "raw" else average or raw
    if average and raw:
        unused, means = (average, "average") if chosen == raw else (raw, "raw")
        on_note(f"its {chosen!r} was taken, not {unused!r} (--which-weights {means} takes that)")
    state_dict: dict[Any, Any] = root if chosen is None else root[chosen]
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise Refused(f"the entry {name!r} of its state dict is a {kind(value)}, not a tensor")
    return state_dict


def write_torch(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes torch's zip container, with the entries that torch's reader needs."""
    entries = {"data.pkl": _pickled(tensors), "byteorder": b"little", "version": b"3\n"}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
        for key, tensor in enumerate(tensors.values()):
            archive.writestr(zipfile.ZipInfo(f"archive/data/{key}"), tensor.tobytes())


def _pickled(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of an OrderedDict of tensors, the n-th in storage n, as torch writes it."""
    storages = {dtype: name for name, dtype in STORAGES.items()}
    new_dict = _pickled_name("collections", "OrderedDict") + _BYTE["EMPTY_TUPLE"] + _BYTE["REDUCE"]
    parts = [_BYTE["PROTO"], b"\x02", new_dict, _BYTE["MARK"]]
    for key, (name, tensor) in enumerate(tensors.items()):
        if tensor.dtype.name not in storages:
            raise Refused(f"tensor {name!r} is {tensor.dtype.name}, which torch files do not hold")
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
            _pickled_tuple(map(_pickled_int, row_major(tensor.shape))),
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

"""Reads and writes HDF5 files of weights, in the two layouts of Keras.

Keras 1 and 2 write the older one, as does Keras 3 for other names than `.weights.h5`: a group for
each layer, and attributes that list the layers and their weights in order. Keras 3 writes the newer
one for `.weights.h5`, and for the file inside a `.keras`: groups `layers/<class>_<number>/vars`,
with the layer's own name in an attribute since Keras 3.6.

Tensors are named `<layer>/<variable>` here, with Keras's own names for the variables.

HDF5's library is trusted with the bytes of the file, and with nothing else: whatever could lead out
of the file or blow up in memory is refused before values are read.
"""

import io
import math
import mmap
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cnn_arch.weight_files.values import (
    MIB,
    NUMPY_TYPES,
    Refused,
    check_expansion,
    check_shape,
    refusing,
    widened,
)

MAGIC = b"\x89HDF\r\n\x1a\n"
# Keras's networks whose weights have a place here; see `pretrained`.
NETWORKS = "VGG16, VGG19, ResNet50, ResNet101 and ResNet152"
INSTALL = "pip install -e '.[keras]' in the checkout (or make sweep EXTRA=keras)"

_WEIGHTED = ("kernel", "bias")  # of a convolution or a fully connected layer, in Keras's order
_NORMALISED = ("gamma", "beta", "moving_mean", "moving_variance")  # of a batch normalisation
VARIABLES = (*_WEIGHTED, *_NORMALISED)
_LONGEST_NAME = 1000
_SHOWN = 100  # characters of a name, in an error
_LISTED = ("layer_names", "weight_names")  # attributes of the older layout
_SAVED = ("layers", "_layer_checkpoint_dependencies")  # the newer layout, and in TensorFlow 2.13
_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3  # HDF5's numbers of filters


def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _read(path, data)


def read_hdf5_bytes(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a file's content."""
    return _read(io.BytesIO(data), data)


def _read(file: Path | BinaryIO, data: bytes | mmap.mmap) -> dict[str, np.ndarray]:
    """data: the content of the file."""
    h5py, size = _h5py(), len(data)
    _check_heaps(data)
    # Without locks, which network and read-only file systems may not have.
    with refusing("it is damaged or cut short"), h5py.File(file, "r", locking=False) as root:
        if root.id.get_create_plist().get_sizes() != (8, 8):
            raise Refused("its addresses are not of 8 bytes, as Keras's are")
        reader = _Reader(h5py)
        datasets = reader.datasets(root)
        sizes = [reader.sizes(*item) for item in datasets.items()]
        check_expansion(size, sum(declared for declared, _ in sizes))
        if sum(stored for _, stored in sizes) > size:
            raise Refused("its tensors have more bytes than the file")
        return {
            name: widened(np.asarray(dataset[()]), dataset.dtype.name)
            for name, dataset in datasets.items()
        }


def write_hdf5(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the older layout as Keras 3 does. Keras assigns values in the order of the tensors."""
    h5py = _h5py()
    layers: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        layer, _, variable = name.rpartition("/")
        is_odd = not name.isprintable() or set(name.split("/")) & {"", "."}
        if not layer or variable not in VARIABLES or is_odd:
            raise Refused(
                f"the tensors of a Keras file are named <layer>/<variable>, with one of "
                f"{', '.join(VARIABLES)}, not {name!r} (the naming keras has them so)"
            )
        if tensor.dtype.kind != "f":
            raise Refused(f"tensor {name!r} is {tensor.dtype.name}, not float16, 32 or 64")
        layers.setdefault(layer, []).append(name)
    buffer = io.BytesIO()
    with refusing("HDF5 does not take it"), h5py.File(buffer, "w") as root:
        # Keras 2 takes a file that does not say its version for one of Keras 1.
        root.attrs.update(backend=b"tensorflow", keras_version=b"3.0.0")
        _set_texts(root, "layer_names", list(layers))
        for layer, names in layers.items():
            group = root.create_group(layer)
            _set_texts(group, "weight_names", names)
            for name in names:
                group.create_dataset(name, data=tensors[name], track_times=False)
    file.write(buffer.getbuffer())


def _set_texts(owner: Any, name: str, texts: list[str]) -> None:
    """Sets an attribute of many texts; as in Keras, several where one is too large for HDF5."""
    values = np.array([text.encode() for text in texts])
    parts = -(-values.nbytes // 60_000)
    for number, part in enumerate(np.array_split(values, parts)):
        owner.attrs[name if parts == 1 else f"{name}{number}"] = part


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise Refused(f"it needs h5py, which is not installed: {INSTALL}") from error
    return h5py


class _Reader:
    """Goes through one file. Objects with two names are refused, so nothing goes in circles."""

    def __init__(self, h5py: Any) -> None:
        self.h5py = h5py
        self.visited: set[Any] = set()

    def datasets(self, root: Any) -> dict[str, Any]:
        """All weights by `<layer>/<variable>`; their values are not read yet."""
        top = self._names(root)
        if _LISTED[0] in root.attrs or f"{_LISTED[0]}0" in root.attrs:
            pairs = self._listed(self._inside(root))
        elif "model_weights" in top:
            pairs = self._listed(self._inside(self._child(root, "model_weights")))
        elif layers := [name for name in _SAVED if name in top]:
            pairs = self._saved(self._inside(self._child(root, layers[0])), "")
        else:
            names = ", ".join(map(repr, top[:10])) or "nothing"
            raise Refused(
                f"it has {names} at its top, which is not how Keras saves weights; of Keras's "
                f"networks {NETWORKS} are known"
            )
        datasets: dict[str, Any] = {}
        for name, dataset in pairs:
            if not name.isprintable() or len(name) > _LONGEST_NAME:
                raise Refused(f"a tensor's name is too long, or no text: {name[:_SHOWN]!r}")
            if name in datasets:
                raise Refused(f"it has two tensors named {name!r}")
            datasets[name] = dataset
        return datasets

    def _listed(self, inside: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Weights of the older layout, whose layers are the groups with a list of weights."""
        for key, group in inside.items():
            layer, below = prefix + key, self._inside(group)
            if _LISTED[1] not in group.attrs and f"{_LISTED[1]}0" not in group.attrs:
                yield from self._listed(below, f"{layer}/")
                continue
            weights = dict(self._weights(below))
            names = [name.rpartition("/")[2] for name in weights]
            if len(set(names) & set(VARIABLES)) < len(names):
                # Keras 1 had other names, and Keras goes by the order. A network in a layer keeps
                # its layers' names.
                names = list(weights)
                order = [x.removesuffix(":0") for x in self._texts(group, _LISTED[1])]
                if set(order) == set(names) and (variables := _in_order(map(weights.get, order))):
                    weights, names = {name: weights[name] for name in order}, list(variables)
            yield from zip([f"{layer}/{name}" for name in names], weights.values(), strict=True)

    def _weights(self, inside: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        """All datasets of a layer of the older layout by their path, without TensorFlow's `:0`."""
        for key, part in inside.items():
            if isinstance(part, self.h5py.Dataset):
                yield prefix + key.removesuffix(":0"), part
            else:
                yield from self._weights(self._inside(part), f"{prefix}{key}/")

    def _saved(self, inside: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        """Weights of the newer layout. inside: its layers."""
        for key, group in inside.items():
            below = self._inside(group)
            values = below.pop("vars", None)
            name, numbers = key, []
            if values is not None:
                name = self._name(values) or key
                weights = self._inside(values)
                numbers = [str(i) for i in range(len(weights))]
                if weights.keys() != set(numbers):
                    raise Refused(f"the weights of its layer {name[:_SHOWN]!r} have gaps")
                variables = _in_order(weights[number] for number in numbers) or numbers
                for number, variable in zip(numbers, variables, strict=True):
                    yield f"{prefix}{name}/{variable}", weights[number]
            yield from self._saved(below, prefix if key == "layers" else f"{prefix}{name}/")

    def _inside(self, group: Any) -> dict[str, Any]:
        if not isinstance(group, self.h5py.Group):
            raise Refused(f"{str(group.name)[:_SHOWN]!r} in it is no group")
        return {name: self._child(group, name) for name in self._names(group)}

    def _names(self, group: Any) -> list[str]:
        """The names in a group. Refuses a damaged list that leads HDF5 in circles."""
        names: dict[bytes, None] = {}
        repeated: list[bytes] = []

        def take(name: bytes) -> bool | None:  # anything but None ends the iteration
            if name in names:
                repeated.append(name)
                return True
            return names.setdefault(name)

        group.id.links.iterate(take)
        if repeated:
            raise Refused("the names in it go round")
        return [name.decode() for name in names]

    def _child(self, group: Any, name: str) -> Any:
        """The object with this name in a group. Refuses links, which could lead anywhere."""
        if group.id.links.get_info(name.encode()).type != self.h5py.h5l.TYPE_HARD:
            raise Refused(f"{name[:_SHOWN]!r} in it is a link, which is not followed")
        child = group[name]
        if child in self.visited:
            raise Refused(f"{name[:_SHOWN]!r} in it has two names")
        self.visited.add(child)
        return child

    def _texts(self, owner: Any, name: str) -> list[str]:
        """The texts of an attribute or of all its parts; none where their length is not fixed."""
        texts: list[str] = []
        parts = [name] if name in owner.attrs else [f"{name}{n}" for n in range(len(owner.attrs))]
        for part in parts:
            if part not in owner.attrs:
                break
            attr = owner.attrs.get_id(part)
            if attr.dtype.kind != "S" or attr.shape is None or attr.get_storage_size() > MIB:
                return []
            texts += [x.decode() for x in np.ravel(owner.attrs[part]).tolist()]
        return texts

    def _name(self, owner: Any) -> str:
        """The name of a layer; '' where Keras kept none."""
        if "name" not in owner.attrs:
            return ""
        attr = owner.attrs.get_id("name")
        if attr.shape != () or self.h5py.check_string_dtype(attr.dtype) is None:
            raise Refused("the name of a layer in it is no text")
        name = owner.attrs["name"]
        return name.decode() if isinstance(name, bytes) else str(name)

    def sizes(self, name: str, dataset: Any) -> tuple[int, int]:
        """The bytes that a dataset takes in memory and has in the file.

        Refuses all but plain numbers in this file.
        """
        kinds = (self.h5py.h5t.TypeIntegerID, self.h5py.h5t.TypeFloatID)
        if not isinstance(dataset, self.h5py.Dataset):
            raise Refused(f"{name!r} in it is no tensor")
        type_ = dataset.id.get_type()
        dtype = dataset.dtype
        if (
            not isinstance(type_, kinds)
            or dtype.name not in NUMPY_TYPES
            or dtype.itemsize != type_.get_size()
        ):
            raise Refused(f"tensor {name!r} has a type that is not read: {dtype}")
        if dataset.shape is None:
            raise Refused(f"tensor {name!r} has no shape")
        check_shape(name, dataset.shape)
        plan = dataset.id.get_create_plist()
        if plan.get_external_count() or plan.get_layout() not in (
            self.h5py.h5d.COMPACT,
            self.h5py.h5d.CONTIGUOUS,
            self.h5py.h5d.CHUNKED,
        ):
            raise Refused(f"the values of tensor {name!r} are in other files")
        filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
        if filters != [x for x in (_SHUFFLE, _DEFLATE, _FLETCHER32) if x in filters]:
            raise Refused(f"tensor {name!r} is packed otherwise than by gzip")
        declared = math.prod(dataset.shape) * dtype.itemsize
        if plan.get_layout() != self.h5py.h5d.CHUNKED:
            chunk, stored = 0, dataset.id.get_storage_size()
        else:
            chunks = _chunks(name, dataset)
            chunk = math.prod(dataset.chunks) * dtype.itemsize
            stored = sum(part.size for part in chunks)
            if _DEFLATE in filters:
                _check_chunks(name, dataset, chunks, filters.index(_DEFLATE), chunk)
        if _DEFLATE not in filters and declared > stored:
            raise Refused(f"tensor {name!r} has values that are not in the file")
        return max(declared, chunk), stored


def _in_order(weights: Iterable[Any]) -> tuple[str, ...]:
    """Keras's names for the weights of a layer, by their numbers of dimensions; () if unknown."""
    dimensions = [len(getattr(dataset, "shape", None) or ()) for dataset in weights]
    if dimensions in ([4, 1], [2, 1]):
        return _WEIGHTED
    return _NORMALISED if dimensions == [1, 1, 1, 1] else ()


def _chunks(name: str, dataset: Any) -> list[Any]:
    """The chunks of a dataset. Refuses a damaged list that leads HDF5 in circles."""
    chunks: dict[Any, Any] = {}
    repeated: list[Any] = []

    def take(chunk: Any) -> bool | None:
        if chunk.chunk_offset in chunks:
            repeated.append(chunk)
            return True
        chunks[chunk.chunk_offset] = chunk
        return None

    dataset.id.chunk_iter(take)
    if repeated:
        raise Refused(f"the parts of tensor {name!r} go round")
    return list(chunks.values())


def _check_chunks(name: str, dataset: Any, chunks: list[Any], deflate: int, size: int) -> None:
    """Refuses chunks that unpack to more than `size` bytes; HDF5 would unpack them all."""
    for chunk in chunks:
        if chunk.filter_mask >> deflate & 1:  # stored as it is
            continue
        packed = dataset.id.read_direct_chunk(chunk.chunk_offset)[1]
        unpacking = zlib.decompressobj()
        remaining = size + 1
        while packed and remaining > 0:  # in pieces, as only their length matters
            remaining -= len(unpacking.decompress(packed, min(remaining, MIB)))
            packed = unpacking.unconsumed_tail
        if remaining <= 0:
            raise Refused(f"tensor {name!r} would unpack to more than its shape has")


def _check_heaps(data: bytes | mmap.mmap) -> None:
    """Refuses heaps, where HDF5 keeps names and texts, that would lead its library in circles.

    Heaps that HDF5 itself refuses pass, and so do values of tensors that look like heaps.
    """
    remaining = len(data) // 16 + 1  # as many parts as fit into the file
    for start in _places(data, b"GCOL\x01"):  # texts: an index, and a size, of each
        offset, end = start + 16, start + _number(data, start + 8)
        while end <= len(data) and end - offset >= 16:
            length = _number(data, offset + 8)
            if data[offset : offset + 2] != b"\0\0":  # what is free counts its own head
                length = (16 + -(-length // 8) * 8) % (1 << 64)
            remaining -= 1
            if not 16 <= length < 1 << 63 or remaining < 0:
                raise Refused("its texts are damaged")
            offset += length
    for start in _places(data, b"HEAP\0"):  # names: what is free is a chain of places
        size, free, begin = (_number(data, start + at) for at in (8, 16, 24))
        visited = set()
        while free != 1 and free + 16 <= size and begin + free + 16 <= len(data):
            remaining -= 1
            if free in visited or remaining < 0:
                raise Refused("its names are damaged")
            visited.add(free)
            free = _number(data, begin + free)


def _places(data: bytes | mmap.mmap, mark: bytes) -> Iterator[int]:
    offset = data.find(mark)
    while offset >= 0:
        yield offset
        offset = data.find(mark, offset + 1)


def _number(data: bytes | mmap.mmap, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")

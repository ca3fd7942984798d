"""Reads and writes caffemodels, Caffe's NetParameter of protobuf."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from cnn_arch.weight_files.values import MIB, Refused, contiguous, refusing

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
        descriptor = file.message_type.add(name=message)
        for name, (number, kind, label) in fields.items():
            field = descriptor.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                field.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
                field.type_name = f".weights.{kind}"
            else:
                field.type = kind
                field.options.packed = kind == _INT64
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("weights.NetParameter"))


def read_caffemodel(path: Path) -> dict[str, np.ndarray]:
    if path.stat().st_size > _MOST_MESSAGE:
        raise Refused("it begins like none of these, and is too large for a caffemodel")
    data = path.read_bytes()
    neither = f"it begins with {data[:16]!r}, and is not a whole caffemodel"
    with refusing(neither):
        net = _net_parameter().FromString(data)
    tensors: dict[str, np.ndarray] = {}
    for layer in [*net.layers, *net.layer]:
        for index, blob in enumerate(layer.blobs):
            with refusing("the name of a layer is not text"):
                name = f"{layer.name.decode()}.{index}"
            if name in tensors:
                raise Refused(f"it has two tensors named {name!r}")
            tensors[name] = _blob(name, blob)
    if not tensors:
        raise Refused(f"{neither} with weights")
    return tensors


def _blob(name: str, blob: Any) -> np.ndarray:
    """A BlobProto's values; as in Caffe, the old shape and the double values come first."""
    if any(blob.HasField(part) for part in _OLD_SHAPE):
        shape = [getattr(blob, part) for part in _OLD_SHAPE]
    else:
        shape = list(blob.shape.dim)
    if blob.double_data:
        return contiguous(name, b"".join(blob.double_data), "float64", shape)
    return contiguous(name, b"".join(blob.data), "float32", shape)


def write_caffemodel(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    if sum(tensor.nbytes for tensor in tensors.values()) + MIB > _MOST_MESSAGE:
        raise Refused("a caffemodel holds less than 2 GiB")
    blobs: dict[str, list[str]] = {}
    for name in tensors:
        blobs.setdefault(name.rpartition(".")[0], []).append(name)
    net = _net_parameter()()
    for layer, names in blobs.items():
        expected = [f"{layer}.{index}" for index in range(len(names))]
        if not layer or sorted(names) != sorted(expected):
            raise Refused(
                f"the tensors of a caffemodel's layer are named <layer>.0, <layer>.1 and so on, "
                f"not {', '.join(map(repr, names))}"
            )
        message = net.layer.add(name=layer.encode())
        for name in expected:
            tensor = tensors[name]
            if tensor.dtype.name not in ("float32", "float64"):
                raise Refused(f"tensor {name!r} is {tensor.dtype.name}, not float32 or float64")
            blob = message.blobs.add()
            blob.shape.dim.extend(tensor.shape)
            data = blob.data if tensor.dtype.name == "float32" else blob.double_data
            data.append(tensor.tobytes())
    file.write(net.SerializeToString())

"""Files of weights: what is read, what is written, and what is refused.

Hostile and old files are made here byte by byte, so that nothing needs torch or Caffe; the tests
marked `peers` compare with torch itself.
"""

import argparse
import collections
import io
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from cnn_arch.errors import ArchitectureError, WeightsError
from cnn_arch.pretrained import names
from cnn_arch.weight_files import read, torch_files, torch_pickle, write

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".caffemodel")
FLOATS = ("float16", "float32", "float64")
INTEGERS = ("bool", "int8", "int16", "int32", "int64", "uint8")
WIDE_INTEGERS = ("uint16", "uint32", "uint64")


def tensors(dtype="float32"):
    """Tensors of all ranks, one of them empty, under names that Caffe can hold too."""
    random = np.random.default_rng(0)
    shapes = {"conv1.0": (4, 3, 3, 2), "conv1.1": (4,), "mixed/1x1.0": (2, 0), "scale.0": ()}
    return {name: random.normal(size=s).astype(dtype) for name, s in shapes.items()}


def assert_equal(arrays, expected):
    assert list(arrays) == list(expected)
    for name, value in expected.items():
        assert arrays[name].dtype == value.dtype, name
        assert arrays[name].shape == value.shape, name
        assert arrays[name].flags.c_contiguous, name
        np.testing.assert_array_equal(arrays[name], value)


# ------------------------------------------------------------------------------- files made by hand


def plain(value) -> bytes:
    """The opcodes that push a value without any global."""
    return pickle.dumps(value, 2)[2:-1]


def name(dotted: str) -> bytes:
    module, _, attribute = dotted.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def dictionary(items: dict[str, bytes], start=b"}") -> bytes:
    return start + b"(" + b"".join(plain(key) + value for key, value in items.items()) + b"u"


ORDERED = name("collections.OrderedDict") + b")R"


def storage(kind="torch.FloatStorage", key="0", numel=6, more=b"") -> bytes:
    parts = [plain("storage"), name(kind), plain(key), plain("cpu"), plain(numel), more]
    return b"(" + b"".join(parts) + b"tQ"


def tensor(shape=(2, 3), strides=(3, 1), offset=0, of=None) -> bytes:
    """What torch has written for a tensor since version 0.4."""
    parts = [storage() if of is None else of, plain(offset), plain(shape), plain(strides), b"\x89"]
    return name("torch._utils._rebuild_tensor_v2") + b"(" + b"".join(parts) + ORDERED + b"tR"


def zip_bytes(entries: dict[str, bytes], method=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    return file.getvalue()


SIX = np.arange(6, dtype="<f4")


def torch_zip(body: bytes, storages=None, byte_order: bytes | None = b"little", **options) -> bytes:
    """A torch file of today whose pickle has `body` between its first and its last opcode."""
    entries = {"archive/data.pkl": b"\x80\x02" + body + b".", "archive/version": b"3\n"}
    if byte_order:
        entries["archive/byteorder"] = byte_order
    for key, data in (storages or {"0": SIX.tobytes()}).items():
        entries[f"archive/data/{key}"] = data
    return zip_bytes(entries, **options)


def torch_legacy(body: bytes, storages=None, keys=None, magic=0x1950A86A20F9469CFC6C) -> bytes:
    """A torch file of the time before 1.6. storages: (numel, bytes) by key."""
    if storages is None:
        storages = {"0": (6, SIX.tobytes())} if plain("storage") in body else {}
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    parts = [pickle.dumps(value, 2) for value in (magic, 1001, machine)]
    parts += [b"\x80\x02" + body + b".", pickle.dumps(list(storages) if keys is None else keys, 2)]
    parts += [struct.pack("<q", numel) + data for numel, data in storages.values()]
    return b"".join(parts)


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def message(number: int, payload: bytes) -> bytes:
    """A protobuf field that has a length."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def blob(values: bytes, shape=None, old_shape=(), field=5) -> bytes:
    parts = [varint(number << 3) + varint(size) for number, size in enumerate(old_shape, 1)]
    if shape is not None:
        parts.append(message(7, message(1, b"".join(map(varint, shape)))))
    return b"".join([*parts, message(field, values)])


def layer(layer_name: str, *blobs: bytes, version=2) -> bytes:
    net_field, name_field, blobs_field = {1: (2, 4, 6), 2: (100, 1, 7)}[version]
    parts = [message(name_field, layer_name.encode()), *(message(blobs_field, b) for b in blobs)]
    return message(net_field, b"".join(parts))


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npy_header(text: str, data=b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


def safetensors_bytes(header: str, data=b"") -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


@pytest.fixture
def reading(tmp_path) -> Callable[[bytes], dict[str, np.ndarray]]:
    def read_bytes(data: bytes) -> dict[str, np.ndarray]:
        path = tmp_path / "weights"
        path.write_bytes(data)
        return read(path)

    return read_bytes


# ------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read_back(tmp_path, suffix):
    path = tmp_path / "below" / f"weights{suffix}"
    write(path, tensors())
    arrays = read(path)
    assert_equal({name: arrays[name] for name in tensors()}, tensors())
    assert len(arrays) == len(tensors())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_arrays_are_contiguous_writable_and_apart(tmp_path, suffix):
    write(tmp_path / f"weights{suffix}", tensors())
    arrays = list(read(tmp_path / f"weights{suffix}").values())
    for place, array in enumerate(arrays):
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert not any(np.shares_memory(array, earlier) for earlier in arrays[:place])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, *WIDE_INTEGERS])
def test_every_type_comes_back_exactly_or_is_refused(tmp_path, suffix, dtype):
    path = tmp_path / f"weights{suffix}"
    saved = tensors(dtype)
    holds = {".caffemodel": FLOATS[1:], ".pth": FLOATS + INTEGERS, ".pt": FLOATS + INTEGERS}
    if dtype not in holds.get(suffix, FLOATS + INTEGERS + WIDE_INTEGERS):
        with pytest.raises(WeightsError, match=rf"weights{suffix} .*'conv1.0' is {dtype}"):
            write(path, saved)
        assert not list(tmp_path.iterdir())
        return
    write(path, saved)
    arrays = read(path)
    for name, value in saved.items():
        assert arrays[name].dtype == ("float32" if dtype == "float16" else dtype)
        np.testing.assert_array_equal(arrays[name], value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_views_and_other_byte_orders_are_written_as_what_they_show(tmp_path, suffix):
    base = np.arange(24, dtype="f4").reshape(2, 3, 4)
    saved = {"l.0": base.T, "l.1": base[:, ::-1, 1::2], "l.2": base.astype(">f4")}
    write(tmp_path / f"weights{suffix}", saved)
    assert_equal(
        dict(sorted(read(tmp_path / f"weights{suffix}").items())),
        {name: np.array(value, "f4", order="C") for name, value in saved.items()},
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_tensors_give_the_same_bytes(tmp_path, suffix):
    write(tmp_path / f"a{suffix}", tensors())
    write(tmp_path / f"b{suffix}", tensors())
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_the_old_file(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"weights{suffix}"
    write(path, tensors())
    before = path.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WeightsError, match="No space left"):
        write(path, {"l.0": SIX})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({}, "no tensors"),
        ({"l.0": np.array([1, np.nan], "f4")}, "'l.0' has NaN or infinite"),
        ({"l.0": np.array(["text"])}, "'l.0' is str"),
        ({"l.0": np.array([None])}, "'l.0' is object"),
        ({"l.0": np.array([1j])}, "'l.0' is complex"),
        ({"l.0": SIX.astype(ml_dtypes.bfloat16)}, "'l.0' is bfloat16"),
        ({"": SIX}, "'' is no name"),
        ({"\ud800.0": SIX}, "is no name"),
    ],
)
def test_what_cannot_be_read_back_is_not_written(tmp_path, suffix, bad, reason):
    with pytest.raises(WeightsError, match=reason):
        write(tmp_path / f"weights{suffix}", bad)
    assert not list(tmp_path.iterdir())


NO_BLOBS = [["conv"], ["conv.1"], ["conv.0", "conv.00"], [".0"], ["c.w"]]
OUTSIDE = [["../up"], ["/root"], ["a/../../b"], ["..\\up"], ["nul\0"]]


@pytest.mark.parametrize(
    ("suffix", "names", "reason"),
    [
        *((".caffemodel", names, r"named <layer>\.0") for names in NO_BLOBS),
        *((".npz", names, "is no name for an array") for names in OUTSIDE),
        (".safetensors", ["__metadata__"], "'__metadata__' is no name"),
        (".npy", ["w"], r"weights\.npy .*'\.npy'.*Known: .*\.caffemodel"),
    ],
)
def test_names_that_a_format_cannot_have_are_not_written(tmp_path, suffix, names, reason):
    with pytest.raises(WeightsError, match=reason) as caught:
        write(tmp_path / f"weights{suffix}", dict.fromkeys(names, SIX))
    assert isinstance(caught.value, ArchitectureError)
    assert caught.value.user_error


# ------------------------------------------------------------------------------- formats of others


def test_npz_of_numpy_is_read(tmp_path):
    saved = {"file": SIX.reshape(2, 3), "a/b": np.asfortranarray(SIX.reshape(3, 2)), "n": SIX > 2}
    for save in (np.savez, np.savez_compressed):
        with (tmp_path / "weights").open("wb") as file:
            save(file, **{k: v for k, v in saved.items() if k != "file"}, swapped=SIX.astype(">f4"))
        arrays = read(tmp_path / "weights")
        assert_equal(arrays, {"a/b": saved["a/b"], "n": saved["n"], "swapped": SIX})


def test_npz_of_python_2_is_read_without_a_warning(reading):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (6L,), }\n"
    assert_equal(reading(zip_bytes({"w.npy": npy_header(header, SIX.tobytes())})), {"w": SIX})


def test_numpy_reads_what_is_written(tmp_path):
    write(tmp_path / "weights.npz", {"file": SIX, **tensors()})
    with np.load(tmp_path / "weights.npz", allow_pickle=False) as archive:
        assert_equal(dict(archive), {"file": SIX, **tensors()})


def test_safetensors_reads_what_is_written(tmp_path):
    write(tmp_path / "weights.safetensors", tensors())
    arrays = safetensors.numpy.load_file(tmp_path / "weights.safetensors")
    assert_equal({name: arrays[name] for name in tensors()}, tensors())


HALVES = [ml_dtypes.bfloat16, np.float16]


@pytest.mark.parametrize("half", HALVES)
def test_halves_become_float32_with_the_same_values(reading, half):
    every = np.arange(1 << 16, dtype=np.uint16).view(half)
    every = every[np.isfinite(every.astype("f4"))]
    kind, short = ("Half", "F16") if half is np.float16 else ("BFloat16", "BF16")
    header = f'{{"w":{{"dtype":"{short}","shape":[{every.size}],"data_offsets":[0,'
    files = [safetensors_bytes(f"{header}{every.nbytes}]}}}}", every.tobytes())]
    body = tensor((every.size,), (1,), of=storage(f"torch.{kind}Storage", numel=every.size))
    files.append(torch_zip(dictionary({"w": body}), {"0": every.tobytes()}))
    swapped = every.view(np.uint16).byteswap().tobytes()
    files.append(torch_zip(dictionary({"w": body}), {"0": swapped}, b"big"))
    for data in files:
        assert_equal(reading(data), {"w": every.astype(np.float32)})


@pytest.mark.parametrize(("half", "kind"), [(HALVES[0], "BFloat16"), (HALVES[1], "Half")])
def test_halves_of_a_transposed_tensor_are_read(reading, half, kind):
    transposed = tensor((3, 2), (1, 3), of=storage(f"torch.{kind}Storage"))
    arrays = reading(torch_zip(dictionary({"w": transposed}), {"0": SIX.astype(half).tobytes()}))
    assert_equal(arrays, {"w": np.ascontiguousarray(STATE["w"].T)})


@pytest.mark.parametrize("order", ["little", "big", None])
@pytest.mark.parametrize(
    ("kind", "code"),
    {
        "Double": "f8",
        "Float": "f4",
        "Long": "i8",
        "Int": "i4",
        "Short": "i2",
        "Char": "i1",
        "Byte": "u1",
        "Bool": "?",
    }.items(),
)
def test_the_byte_order_that_a_torch_file_records_is_respected(reading, kind, code, order):
    values = np.arange(6).astype(code)
    stored = values.astype(values.dtype.newbyteorder(">" if order == "big" else "<"))
    body = dictionary({"w": tensor(of=storage(f"torch.{kind}Storage"))})
    data = torch_zip(body, {"0": stored.tobytes()}, order.encode() if order else None)
    assert_equal(reading(data), {"w": values.reshape(2, 3)})


@pytest.mark.parametrize("container", [torch_zip, torch_legacy])
@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((2, 3), (3, 1), 0),
        ((3, 2), (1, 3), 0),
        ((2, 2), (3, 1), 1),
        ((4,), (1,), 2),
        ((1, 6), (10**12, 1), 0),
        ((3, 2), (0, 1), 4),
        ((), (), 5),
        ((0, 7), (7, 1), 0),
    ],
)
def test_strides_and_offsets_are_honoured(reading, container, shape, strides, offset):
    array = reading(container(dictionary({"w": tensor(shape, strides, offset)})))["w"]
    assert array.shape == shape
    assert array.flags.c_contiguous
    for index in np.ndindex(shape):
        step = sum(i * stride for i, stride in zip(index, strides, strict=True))
        assert array[index] == SIX[offset + step]


@pytest.mark.parametrize("container", [torch_zip, torch_legacy])
@pytest.mark.parametrize(
    ("shape", "strides", "offset", "reason"),
    [
        ((2, 3), (3, 1), 1, "reaches to element 6 of a storage of 6"),
        ((2, 3), (4, 1), 0, "reaches to element 6"),
        ((1,), (1,), 6, "reaches to element 6"),
        ((), (), 6, "reaches to element 6"),
        ((2, 3), (2**60 + 2, 1), 0, "strides or an offset"),
        ((2, 3), (2**59, 1), 0, "reaches to element"),
        ((2, 3), (-3, 1), 3, "strides or an offset"),
        ((2, 3), (3, 1), -1, "strides or an offset"),
        ((2, 3), (3,), 0, "strides or an offset"),
        ((-2, 3), (3, 1), 0, "negative dimension"),
        ((-2, -3), (3, 1), 0, "negative dimension"),
        ((2**32, 2**32), (0, 0), 0, "more than any memory holds"),
        ((0, 2**63), (0, 0), 0, "more than any memory holds"),
        ((2**24, 2**6), (0, 0), 0, "overlap too much"),
        ((1,) * 65, (1,) * 65, 0, "are not numbers"),
        ((2.0, 3), (3, 1), 0, "are not numbers"),
        ((True, 3), (3, 1), 0, "are not numbers"),
        ([2, 3], (3, 1), 0, "are not numbers"),
    ],
)
def test_views_outside_their_storage_are_refused(
    refused, container, shape, strides, offset, reason
):
    refused(container(dictionary({"w": tensor(shape, strides, offset)})), reason)


STATE = {"w": SIX.reshape(2, 3), "b": SIX[:2]}
STATE_BODY = {"w": tensor(), "b": tensor((2,), (1,))}


@pytest.mark.parametrize("container", [torch_zip, torch_legacy])
@pytest.mark.parametrize("start", [b"}", ORDERED])
@pytest.mark.parametrize("key", [None, *torch_files.RAW, *torch_files.AVERAGES])
def test_state_dicts_are_found_where_training_scripts_put_them(reading, container, start, key):
    metadata = b"}" + plain("_metadata") + ORDERED + b"sb" if start == ORDERED else b""
    body = dictionary(STATE_BODY, start) + metadata
    if key:
        others = {"epoch": 90, "best_prec1": 76.5, "arch": "vgg16", "best": True, "amp": None}
        optimizer = plain({"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1, "params": [0]}]})
        entries = {name: plain(value) for name, value in others.items()}
        body = dictionary({**entries, key: body, "optimizer": optimizer, "momentum": tensor()})
    assert_equal(reading(container(body)), STATE)


@pytest.mark.parametrize("average", torch_files.AVERAGES)
@pytest.mark.parametrize(
    ("which", "taken"), [(None, "average"), ("average", "average"), ("raw", "raw")]
)
def test_average_is_taken_unless_the_raw_weights_are_wished(tmp_path, average, which, taken):
    both = {"model": dictionary({"raw": tensor()}), average: dictionary({"average": tensor()})}
    path, notes = tmp_path / "weights", []
    path.write_bytes(torch_zip(dictionary(both)))
    assert list(read(path, which, notes.append)) == [taken]
    (note,) = notes
    names = {"raw": "model", "average": average}
    skipped = "average" if taken == "raw" else "raw"
    assert note == (
        f"its {names[taken]!r} was taken, not {names[skipped]!r} "
        f"(--which-weights {skipped} takes that)"
    )


@pytest.mark.parametrize(
    ("data", "which", "reason"),
    [
        (torch_zip(dictionary({"model": dictionary(STATE_BODY)})), "average", "no average of its"),
        (torch_zip(dictionary({"ema": dictionary(STATE_BODY)})), "raw", "only an average .* 'ema'"),
        (safetensors_bytes("{}"), "average", "one set of weights"),
        (zip_bytes({"w.npy": npy(SIX)}), "average", "one set of weights"),
    ],
)
def test_weights_that_a_file_lacks_are_refused(tmp_path, data, which, reason):
    path = tmp_path / "weights"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=reason):
        read(path, which)


# What training scripts save beside a state dict. None of it is needed, and none of it is run.
BESIDE = {
    "argparse's options": name("argparse.Namespace") + b")\x81}" + plain("lr") + plain(0.1) + b"sb",
    "a NumPy scalar": name("numpy.core.multiarray.scalar") + plain(("f8",)) + b"R",
    "bytes": b"C\x01a",
    "a set": b"\x8f(" + plain(1) + b"\x90",
    "a frozen set": b"(" + plain(1) + b"\x91",
    "a dict with defaults": name("collections.defaultdict")
    + name("builtins.list")
    + b"\x85R"
    + plain("a")
    + plain([1])
    + b"s",
}


@pytest.mark.parametrize("container", [torch_zip, torch_legacy])
@pytest.mark.parametrize("way", BESIDE)
def test_what_is_saved_beside_a_state_dict_is_ignored(reading, refused, container, way):
    body = {"model": dictionary(STATE_BODY), "args": BESIDE[way]}
    assert_equal(reading(container(dictionary(body))), STATE)
    refused(container(dictionary({"w": BESIDE[way]})), "'w' of its state dict is a ")
    refused(container(BESIDE[way]), "not a state dict")


def test_tensors_of_one_storage_are_read_apart(reading):
    arrays = reading(torch_zip(dictionary({"w": tensor(), "tied": tensor()})))
    arrays["w"][:] = 7
    assert_equal(arrays, {"w": np.full((2, 3), 7, "f4"), "tied": SIX.reshape(2, 3)})


def rebuilt(function: str, *parts: bytes) -> bytes:
    return name(f"torch._utils.{function}") + b"(" + b"".join(parts) + b"tR"


PLACE = plain(0) + plain((2, 3)) + plain((3, 1))  # offset, shape, strides of the 2x3 tensor
OF_0_1 = rebuilt("_rebuild_tensor", storage(), PLACE)
PARAMETER_OF_0_1 = name("torch.nn.parameter.Parameter") + OF_0_1 + b"\x85R"
AGES = {
    "on a GPU": dictionary({"w": tensor(of=storage("torch.cuda.FloatStorage"))}),
    "with the storage's view": dictionary({"w": tensor(of=storage(more=b"N"))}),
    "torch 0.1": dictionary({"w": OF_0_1}),
    "a parameter": dictionary({"w": rebuilt("_rebuild_parameter", tensor(), b"\x88" + ORDERED)}),
    "a parameter of torch 0.1": dictionary({"w": PARAMETER_OF_0_1 + b"\x88\x89N\x87b"}),
    "untyped": dictionary(
        {
            "w": rebuilt(
                "_rebuild_tensor_v3",
                storage("torch.storage.UntypedStorage", numel=24),
                PLACE + b"\x89" + ORDERED + name("torch.float32"),
            )
        }
    ),
    "Python 2": name("collections.OrderedDict") + b"(]](U\x01w" + tensor() + b"eatR",
    "protocol 4": b"\x95" + bytes(8) + b"\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93)R\x94"
    b"\x8c\x01w\x94" + tensor() + b"s",
    "a memo": plain("w") + b"q\x07r\x00\x01\x00\x00}h\x07" + tensor() + b"s",
    "a size": dictionary(
        {"size": name("torch.Size") + b")\x85R", "model": dictionary({"w": tensor()})}
    ),
}


@pytest.mark.parametrize("age", AGES)
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_state_dicts_of_all_ages_are_read(reading, container, age):
    numel = 24 if age == "untyped" else 6
    legacy = torch_legacy(AGES[age], {"0": (numel, SIX.tobytes())})
    data = torch_zip(AGES[age]) if container == "zip" else legacy
    assert_equal(reading(data), {"w": STATE["w"]})


BLOB = blob(SIX.tobytes(), (2, 3))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (BLOB, SIX.reshape(2, 3)),
        (blob(SIX.tobytes(), None, (1, 1, 2, 3)), SIX.reshape(1, 1, 2, 3)),
        (blob(SIX.tobytes(), (9, 9), (1, 1, 2, 3)), SIX.reshape(1, 1, 2, 3)),
        (blob(SIX.astype("<f8").tobytes(), (6,), field=8), SIX.astype("f8")),
        (BLOB + message(6, SIX.tobytes()), SIX.reshape(2, 3)),
        (message(5, SIX[:2].tobytes()) + message(5, SIX[2:].tobytes()) + BLOB[:0], None),
        (blob(SIX[3:4].tobytes()), SIX[3]),
    ],
    ids=["shape", "old shape", "both shapes", "double", "with gradients", "no shape", "scalar"],
)
def test_blobs_of_caffe_are_read(reading, version, made, expected):
    net = layer("data", version=version) + layer("inception_3a/1x1", made, BLOB, version=version)
    if expected is None:
        with pytest.raises(WeightsError, match=r"'inception_3a/1x1.0' has 24 bytes"):
            reading(message(1, b"net") + net)
        return
    arrays = reading(message(1, b"net") + net)
    names = ["inception_3a/1x1.0", "inception_3a/1x1.1"]
    assert_equal(arrays, dict(zip(names, [np.asarray(expected), STATE["w"]], strict=True)))


def test_a_caffemodel_cut_between_layers_is_a_shorter_network(reading):
    """The format has nothing that would tell; within a layer it does, see below."""
    assert list(reading(layer("a", BLOB))) == ["a.0"]
    assert list(reading(layer("a", BLOB) + layer("b", BLOB))) == ["a.0", "b.0"]


# ------------------------------------------------------------------------------- refusals


def test_what_is_not_a_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"nothing\.pth .*no such file"):
        read(tmp_path / "nothing.pth")
    with pytest.raises(WeightsError, match="is a directory"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WeightsError, match="not a regular file"):
        read(tmp_path / "pipe")


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "weights.npz"
    write(path, tensors())

    def forbidden(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    for opens in ("open", "stat"):
        with monkeypatch.context() as patched:
            patched.setattr(type(path), opens, forbidden)
            with pytest.raises(WeightsError, match=r"weights\.npz .*Permission denied"):
                read(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"\n<!DOCTYPE html><html>", "it is a web page; open it in a browser"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS's note .* lfs pull"),
        (b"version https://git-lfs", "begins with b'version https://"),
        (npy(SIX), "not a whole caffemodel"),
        (b"\x08\x09\x12\x07pytorch" + bytes(1000), "it is an ONNX graph"),
        (
            zip_bytes({"m/constants.pkl": b"", "m/data.pkl": b""}),
            "TorchScript, a program; in torch",
        ),
        (zip_bytes({"m/archive_format": b"pt2"}), r"torch.export's \(.pt2\), a program"),
        (zip_bytes({"serialized_exported_program.json": b""}), r"torch.export's \(.pt2\)"),
        (bytes(1000), "not a whole caffemodel"),
        (message(1, b"a net without layers"), "not a whole caffemodel with weights"),
        (message(100, message(1, b"\xff\xfe") + message(7, BLOB)), "name of a layer is not text"),
        (zip_bytes({}), "it holds no tensors"),
        (zip_bytes({"readme.txt": b"hello"}), "'readme.txt', which neither torch nor npz"),
        (pickle.dumps({"w": [1.0]}), "does not begin with torch's magic number"),
        (pickle.dumps([1], 0), "not a whole caffemodel"),
    ],
)
def test_other_formats_are_refused(refused, data, reason):
    refused(data, reason)


def test_tar_files_are_refused(refused):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../up"), None)
    refused(file.getvalue(), "it is a tar file")


def mkdir(*opcodes: bytes) -> bytes:
    return b"".join(opcodes).replace(b"DIR", plain("ran").removesuffix(b"q\x00"))


# Each makes a folder when Python's unpickler loads it, or would if the names were others.
CODE = {
    "REDUCE": mkdir(name("posix.mkdir"), b"DIR\x85R"),
    "STACK_GLOBAL": mkdir(plain("posix") + plain("mkdir"), b"\x93DIR\x85R"),
    "INST": mkdir(b"(DIRiposix\nmkdir\n"),
    "OBJ": mkdir(b"(", name("posix.mkdir"), b"DIRo"),
    "eval": name("builtins.eval") + plain("__import__('os').mkdir('ran')") + b"\x85R",
}
NO_CODE = {
    "NEWOBJ": (name("subprocess.Popen") + plain(("ls",)) + b"\x81", "subprocess.Popen"),
    "NEWOBJ of a known name": (name("collections.OrderedDict") + b")\x81", "NEWOBJ"),
    "NEWOBJ_EX": (name("collections.OrderedDict") + b")}\x92", "NEWOBJ_EX"),
    "BUILD of a known name": (name("collections.OrderedDict") + b"}b", "attributes of a global"),
    "BUILD of a dict": (b"}}b", "attributes of a dict"),
    "BUILD of an unknown name": (name("os.system") + b"}b", "os.system"),
    "EXT1": (b"\x82\x01", "EXT1"),
    "PERSID": (b"Pstorage\n", "PERSID"),
    "a name's attribute": (name("torch.FloatStorage.mro"), "torch.FloatStorage.mro"),
    "a dotted name": (plain("torch") + plain("hub.load") + b"\x93", r"torch\.hub\.load"),
    "a name of numbers": (plain(1) + plain(2) + b"\x93", "a name of what is not text"),
    "a method": (name("collections.OrderedDict.fromkeys"), r"OrderedDict\.fromkeys"),
    "a module": (name("torchvision.models.vgg.VGG"), "torchvision.models.vgg.VGG"),
    "a storage called": (name("torch.FloatStorage") + plain((3,)) + b"R", "torch.FloatStorage"),
    "a type called": (name("torch.float32") + b")R", "torch.float32"),
    "a value called": (plain(3) + b")R", "what is not a function"),
    "a call without a tuple": (name("collections.OrderedDict") + b"]R", "not a function"),
    "a tensor of no storage": (rebuilt("_rebuild_tensor", plain(3), PLACE), "in a way"),
    "a parameter of no tensor": (rebuilt("_rebuild_parameter", plain(3)), "in a way"),
    "an unread type": (tensor(of=storage("torch.ComplexFloatStorage")), "ComplexFloatStorage"),
    "a quantized tensor": (name("torch._utils._rebuild_qtensor"), "_rebuild_qtensor"),
    "a long text": (b"\x8d" + b"\xff" * 8, "BINUNICODE8"),
    "an odd escape": (b"S'\\d'\n", "opcode STRING"),
    "no opcode": (b"\xff", "0xff"),
}


@pytest.mark.parametrize("container", [torch_zip, torch_legacy])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("way", CODE)
def test_no_code_is_run(refused, tmp_path, monkeypatch, container, hidden, way):
    monkeypatch.chdir(tmp_path)
    pickle.loads(CODE[way] + b".")
    (tmp_path / "ran").rmdir()  # it did run there
    body = dictionary({"state_dict": dictionary(STATE_BODY), "other": CODE[way]})
    refused(container(body if hidden else CODE[way]), "posix.mkdir|builtins.eval|INST")
    refused(CODE[way] + b".", "cannot be read as")
    refused(b"\x80\x02" + CODE[way] + b".", "posix.mkdir|builtins.eval|INST")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("container", [torch_zip, torch_legacy])
@pytest.mark.parametrize("way", NO_CODE)
def test_what_no_state_dict_needs_is_refused_by_name(refused, container, way):
    body, reason = NO_CODE[way]
    refused(container(body), reason)
    refused(container(dictionary({"model": dictionary(STATE_BODY), "other": body})), reason)


BROKEN = {
    "nothing to take": (b"\x85", "takes more values than it has made"),
    "nothing to store": (b"q\x00", "takes more values"),
    "nothing below a mark": (b"N(\x86", "takes more values"),
    "no mark": (b"Nt", "a mark that it has not made"),
    "nothing stored": (b"h\x05", "a value that it has not stored"),
    "an odd dict": (b"}(Nu", "lacks its value"),
    "items of a list": (b"]NNs", "sets items of a list"),
    "appended to a dict": (b"}Na", "appends to a dict"),
    "a key twice": (b"}" + plain("w") + b"Ns" + plain("w") + b"Ns", "the key 'w' twice"),
    "a tensor twice": (b"}" + (plain("w") + tensor() + b"s") * 2, "the key 'w' twice"),
    "a long key twice": (b"}" + (plain("w" * 100_000) + b"Ns") * 2, "the key 'www"),
    "a tuple as key": (b"}))s", "a tuple as a key"),
    "a list as key": (b"}])s", "a list as a key"),
    "a large key": (b"}" + plain(2**61 - 1) + b"Ns", "a int as a key"),
    "OrderedDict of values": (name("collections.OrderedDict") + b"]Na\x85R", "not pairs"),
    "a text that ends early": (b"X\xff\xff\xff\x7fabc", "is damaged at byte"),
    "a text that is none": (b"X\x01\x00\x00\x00\xff", "is damaged at byte"),
    "a reference to a text": (plain("storage") + b"Q", "is not a storage"),
    "a storage of -1": (storage(numel=-1), "is not a storage"),
    "a storage of 2^60": (storage(numel=1 << 60), "is not a storage"),
    "a storage of a function": (storage("collections.OrderedDict"), "is not a storage"),
    "a view of a storage": (storage(more=plain(("1", 0, 3))), "is not a storage"),
    "a storage elsewhere": (
        dictionary({"w": tensor(of=storage(key="../../up"))}),
        "no entry 'archive/data/../|list of those",
    ),
    "two sizes": (storage() + storage(numel=7), "two sizes or types"),
    "two types": (storage() + storage("torch.IntStorage"), "two sizes or types"),
    "a list": (b"]", "holds a list, not a state dict"),
    "a tensor": (tensor(), "holds a tensor, not a state dict"),
    "a name": (name("torch.Size"), "holds a global, not a state dict"),
    "no tensors": (b"}", "it holds no tensors"),
    "a number": (dictionary({"w": tensor(), "epoch": plain(3)}), "'epoch' .* is a int"),
    "a storage": (dictionary({"w": storage()}), "'w' .* is a storage"),
    "a tensor without a name": (b"}" + plain(3) + tensor() + b"s", "entry 3 "),
    "another container": (dictionary({"nets": dictionary(STATE_BODY)}), "'nets' .* is a dict"),
}


@pytest.mark.parametrize("container", [torch_zip, torch_legacy])
@pytest.mark.parametrize("way", BROKEN)
def test_broken_pickles_are_refused(refused, container, way):
    refused(container(BROKEN[way][0]), BROKEN[way][1])


DEEP = 5 * sys.getrecursionlimit()
BOMBS = {
    "deep lists": b"]" * DEEP + b"a" * (DEEP - 1),
    "deep tuples": b")" + b"\x85" * DEEP,
    "deep dicts": (b"}" + plain("a")) * DEEP + b"N" + b"s" * DEEP,
    "deep ordered dicts": (ORDERED + plain("a")) * DEEP + b"N" + b"s" * DEEP,
    "a list in itself": b"]q\x00h\x00a",
    "a dict in itself": b"}q\x00" + plain("model") + b"h\x00s",
    "2^5000 values": b")" + b"q\x00h\x00\x86" * 5000,
    "2^5000 values in a dict": dictionary({"a": b")" + b"q\x00h\x00\x86" * 5000}),
}


@pytest.mark.parametrize("container", [torch_zip, torch_legacy])
@pytest.mark.parametrize("way", BOMBS)
def test_nested_bombs_are_refused_or_ignored(reading, container, way):
    with pytest.raises(WeightsError, match=r"not a (state dict|tensor)"):
        reading(container(BOMBS[way]))
    with pytest.raises(WeightsError, match="'w' of its state dict is a"):
        reading(container(dictionary({"w": BOMBS[way]})))
    ignored = dictionary({"other": BOMBS[way], "model": dictionary(STATE_BODY)})
    assert_equal(reading(container(ignored)), STATE)


def test_very_deep_nesting_is_ignored(reading):
    body = dictionary({"other": b")" + b"\x85" * 100_000, "model": dictionary(STATE_BODY)})
    assert_equal(reading(torch_zip(body)), STATE)


LONG = 2000
BUSY = {
    "opcodes": b"N" * 2 * LONG,
    "dicts": b"}" * 2 * LONG,
    "OrderedDicts of one long list": b"]q\x00("
    + b"".join(b"](" + plain(number) + b"Ne" for number in range(LONG // 10))
    + b"e"
    + name("collections.OrderedDict")
    + b"q\x01h\x00\x85R"
    + b"h\x01h\x00\x85R" * (LONG // 20),
}


@pytest.mark.parametrize("way", BUSY)
def test_pickles_that_take_too_long_are_refused(refused, monkeypatch, way):
    monkeypatch.setattr(torch_pickle, "_MOST_STEPS", 2 * LONG)
    refused(torch_zip(BUSY[way]), f"more than {2 * LONG} steps")


@pytest.mark.parametrize(
    ("entry", "data", "reason"),
    [
        ("archive/byteorder", b"middle", "byte order is b'middle'"),
        ("archive/data/0", b"", "has 0 bytes, but 6 elements of float32 take 24"),
        ("archive/data/0", bytes(20), "has 20 bytes, but"),
        ("archive/data/0", bytes(28), "has 28 bytes, but"),
        ("archive/data/0", None, "has no entry 'archive/data/0'"),
        ("archive/data.pkl", None, "which neither torch nor npz"),
        ("other/data.pkl", b"\x80\x02}.", "which neither torch nor npz"),
        ("../up", b"", "points outside"),
        ("a/../../up", b"", "points outside"),
        ("..\\up", b"", "points outside"),
        ("/root", b"", "points outside"),
    ],
)
def test_torch_zips_with_wrong_entries_are_refused(refused, entry, data, reason):
    with zipfile.ZipFile(io.BytesIO(torch_zip(dictionary(STATE_BODY)))) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries[entry] = data
    refused(zip_bytes({k: v for k, v in entries.items() if v is not None}), reason)


def test_compressed_torch_zips_are_refused(refused):
    refused(torch_zip(dictionary(STATE_BODY), method=zipfile.ZIP_DEFLATED), "is compressed")
    refused(zip_bytes({"w.npy": npy(SIX)}, zipfile.ZIP_BZIP2), "by method 12")


def test_a_storage_that_says_it_is_larger_than_the_file_is_refused(refused):
    body = dictionary({"w": tensor((1 << 31,), (1,), of=storage(numel=1 << 31))})
    refused(torch_zip(body), "overlap too much")
    body = dictionary({"w": tensor(of=storage(numel=1 << 31))})
    refused(torch_zip(body), "has 24 bytes, but 2147483648 elements of float32 take")
    refused(torch_legacy(body, {"0": (1 << 31, SIX.tobytes())}), "bytes are missing")


def central(data: bytes, at: int, value: bytes, entry=0) -> bytes:
    """A zip file with another value at one place of an entry in its central directory."""
    begin = -1
    for _ in range(entry + 1):
        begin = data.index(b"PK\x01\x02", begin + 1)
    return data[: begin + at] + value + data[begin + at + len(value) :]


@pytest.mark.parametrize("make", [lambda: torch_zip(b"}"), lambda: zip_bytes({"w.npy": npy(SIX)})])
@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (8, b"\x01\x00", "is encrypted"),
        (10, b"\x63\x00", "by method 99"),
        (20, struct.pack("<I", 1 << 30), "says it has"),
        (24, struct.pack("<I", 1 << 30), "says it has"),
        (20, struct.pack("<II", 1 << 30, 1 << 30), "larger than the file"),
        (42, struct.pack("<I", 1 << 30), "damaged"),
        (16, b"\x00\x00\x00\x00", "Bad CRC-32"),
    ],
)
def test_zips_whose_directory_lies_are_refused(refused, make, at, value, reason):
    refused(central(make(), at, value), reason)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_used_twice_are_refused(refused):
    for entry in ("w.npy", "archive/data.pkl"):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(entry, npy(SIX))
            archive.writestr(entry, npy(SIX))
        refused(file.getvalue(), f"two entries named '{entry}'")
    refused(layer("a", BLOB) + layer("a", BLOB), "two tensors named 'a.0'")
    refused(layer("a", BLOB) + layer("a", BLOB, version=1), "two tensors named 'a.0'")
    item = '"w":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}'
    refused(safetensors_bytes(f"{{{item},{item}}}", SIX.tobytes()), "two tensors named 'w'")


def test_zip_bombs_are_refused(refused):
    zeros = zip_bytes({"w.npy": npy(np.zeros(1 << 23, "f4"))}, zipfile.ZIP_DEFLATED)
    assert len(zeros) < 1 << 17
    refused(zeros, "would unpack to 33554")
    # The directory says 4 kB, but the entry unpacks to 32 MB.
    lying = central(zeros, 24, struct.pack("<I", 4224))
    refused(lying, "Bad CRC-32|4096|takes")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (torch_legacy(b"}", magic=1), "magic number"),
        (torch_legacy(b"}", magic=[1]), "magic number"),
        (torch_legacy(b"}").replace(b"M\xe9\x03.", b"M\xe8\x03."), "version is not 1001"),
        (torch_legacy(dictionary(STATE_BODY), keys=["1"]), "not the list of those"),
        (torch_legacy(dictionary(STATE_BODY), keys=["0", "0"]), "not the list of those"),
        (torch_legacy(dictionary(STATE_BODY), keys=[0]), "not the list of those"),
        (torch_legacy(dictionary(STATE_BODY), keys=[["0"]]), "not the list of those"),
        (torch_legacy(dictionary(STATE_BODY), keys={"0": 1}), "is not a list"),
        (torch_legacy(dictionary(STATE_BODY), keys=[], storages={}), "no storage '0'"),
        (torch_legacy(dictionary(STATE_BODY), {"0": (7, bytes(28))}), "has 7 elements in one"),
        (torch_legacy(dictionary(STATE_BODY), {"0": (6, bytes(20))}), "4 bytes are missing"),
        (torch_legacy(dictionary(STATE_BODY), {"0": (6, bytes(25))}), "1 bytes follow"),
        (torch_legacy(dictionary(STATE_BODY), {"0": (-1, b"")}), "has -1 elements in one"),
    ],
)
def test_older_torch_files_whose_parts_disagree_are_refused(refused, data, reason):
    refused(data, reason)


def described(descr="'<f4'", shape="(6,)", fortran="False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy(np.array([{}, None])), "'w' has the type object"),
        (npy(np.array(["text"])), "'w' has the type str"),
        (npy(np.array([1j])), "'w' has the type complex"),
        (npy(np.array([(1, 2.0)], "i4,f4")), "'w' has the type void"),
        (npy(np.array(["2020-01-01"], "M8[D]")), "'w' has the type datetime64"),
        (npy_header(described("'bfloat16'", "(12,)"), SIX.tobytes()), "type bfloat16|wrong header"),
        (npy_header(described(shape="(7,)"), SIX.tobytes()), "24 bytes, but float32 .* takes 28"),
        (npy_header(described(shape="(5,)"), SIX.tobytes()), "24 bytes, but"),
        (npy_header(described(shape=f"({1 << 31},)"), SIX.tobytes()), "24 bytes, but"),
        (npy_header(described(shape="(-2, -3)"), SIX.tobytes()), "negative dimension"),
        (npy_header(described(shape=f"({1 << 62}, 0)")), "more than any memory holds"),
        (npy_header(described(shape="(1,) * 6"), SIX.tobytes()), "wrong header"),
        (npy_header(described(shape="'6'"), SIX.tobytes()), "wrong header"),
        (npy_header("__import__('os').mkdir('ran')\n"), "wrong header"),
        (npy_header("(" * 9000), "wrong header"),
        (npy_header("-" * 9000 + "1"), "wrong header"),
        (npy_header("[" * 150 + "]" * 150), "wrong header"),
        (npy_header("{'descr': '\\d'}"), "wrong header"),
        (npy_header(" " * 20000), "wrong header"),
        (b"\x93NUMPY\x03\x00" + npy(SIX)[8:], "wrong header"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}", "wrong header"),
        (b"PICKLE", "wrong header"),
        (b"", "wrong header"),
    ],
)
def test_wrong_arrays_in_an_npz_are_refused(refused, data, reason):
    refused(zip_bytes({"w.npy": data}), reason)


def entry(dtype="F32", shape="[6]", offsets="[0,24]", name="w") -> str:
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (entry("F32", "[7]"), "damaged"),
        (entry("F32", "[6]", "[0,28]"), "damaged"),
        (entry("F32", "[5]", "[4,24]"), "damaged"),
        (entry("F32", "[6]", "[24,0]"), "damaged"),
        (entry("F32", "[-6]"), "damaged"),
        (entry("F32", f"[{1 << 62},4]"), "damaged"),
        (entry("F32", "[3]", "[0,12]"), "damaged"),
        (entry() + "," + entry(name="v"), "damaged"),
        (entry("F33"), "damaged"),
        (entry("F8_E4M3", "[24]"), "type F8_E4M3"),
        (entry("F32", "[" + "1," * 64 + "6]"), "65 dimensions"),
        (entry() + "," + entry(name="v", shape=f"[{1 << 61},0]", offsets="[24,24]"), "any memory"),
        (entry() + ',"x":' + "[" * 100_000, "damaged"),
        (entry() + ',"__metadata__":{"a":["deep"]}', "damaged"),
        (entry()[:-1], "damaged"),
    ],
)
def test_safetensors_whose_header_lies_are_refused(refused, header, reason):
    refused(safetensors_bytes("{" + header + "}", SIX.tobytes()), reason)


def test_a_safetensors_header_longer_than_the_file_is_refused(refused):
    data = safetensors_bytes("{" + entry() + "}", SIX.tobytes())
    for length in (1 << 16, 1 << 26, (1 << 64) - 1):
        refused(struct.pack("<Q", length) + data[8:], "damaged|not a whole caffemodel")


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (blob(SIX.tobytes(), (2, 4)), "'a.0' has 24 bytes, but float32 .* takes 32"),
        (blob(SIX.tobytes(), (1 << 31,)), "'a.0' has 24 bytes"),
        (blob(SIX.tobytes(), (1 << 62, 4)), "any memory"),
        (blob(SIX.tobytes(), (1,) * 65), "65 dimensions"),
        (blob(SIX.tobytes(), ((1 << 64) - 6,)), "negative dimension"),
        (blob(SIX.tobytes()[:-1], (6,)), "'a.0' has 23 bytes"),
        (blob(SIX.tobytes(), (6,), field=8), "'a.0' has 24 bytes, but float64"),
        (blob(b"", (6,)), "'a.0' has 0 bytes"),
    ],
)
def test_blobs_whose_bytes_do_not_fit_their_shape_are_refused(refused, made, reason):
    refused(layer("a", made), reason)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(refused, value):
    bad = np.array([1, value, 3, 4, 5, 6], "<f4")
    reason = "'w(.0)?' has NaN or infinite values"
    body = dictionary({"v": tensor(of=storage(key="1")), "w": tensor()})
    stored = {"0": bad.tobytes(), "1": SIX.tobytes()}
    refused(torch_zip(body, stored), reason)
    refused(torch_legacy(body, {key: (6, data) for key, data in stored.items()}), reason)
    refused(zip_bytes({"v.npy": npy(SIX), "w.npy": npy(bad)}), reason)
    refused(zip_bytes({"w.npy": npy(bad.astype("f2"))}), reason)
    refused(safetensors_bytes("{" + entry() + "}", bad.tobytes()), reason)
    refused(layer("v", BLOB) + layer("w", blob(bad.tobytes(), (6,))), reason)
    half = bad.astype(ml_dtypes.bfloat16).tobytes()
    refused(safetensors_bytes("{" + entry("BF16", offsets="[0,12]") + "}", half), reason)


# ------------------------------------------------------------------------------- damaged files


def samples() -> dict[str, bytes]:
    """A small file of every format and container."""
    state = dictionary({"state_dict": dictionary(STATE_BODY, ORDERED), "epoch": plain(3)})
    rest = '{"__metadata__":{"a":"b"},' + entry() + "}"
    compressed = io.BytesIO()
    np.savez_compressed(compressed, w=SIX, v=np.arange(1000))
    return {
        "torch zip": torch_zip(state),
        "torch legacy": torch_legacy(state),
        "npz": zip_bytes({"w.npy": npy(SIX), "v.npy": npy(SIX > 2)}),
        "compressed npz": compressed.getvalue(),
        "safetensors": safetensors_bytes(rest, SIX.tobytes()),
        "caffemodel": layer("conv", BLOB, blob(SIX.tobytes(), None, (1, 1, 1, 6))),
        "caffemodel V1": layer("conv", BLOB, blob(SIX.tobytes(), (6,)), version=1),
    }


@pytest.mark.parametrize("what", samples())
def test_files_cut_short_anywhere_are_refused(tmp_path, what):
    data = samples()[what]
    path = tmp_path / "weights"
    path.write_bytes(data)
    read(path)
    cuts = {*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 30, len(data))}
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        with pytest.raises(WeightsError):
            read(path)


@pytest.mark.parametrize("what", samples())
def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path, what):
    random = np.random.default_rng(0)
    original = np.frombuffer(samples()[what], np.uint8)
    path = tmp_path / "weights"
    refusals = 0
    for _ in range(150):
        data = original.copy()
        places = random.integers(len(data), size=random.integers(1, 4))
        data[places] = random.integers(256, size=places.size)
        path.write_bytes(data.tobytes())
        try:
            read(path)
        except WeightsError:
            refusals += 1
    assert refusals > 30


def test_damaged_pickles_are_read_or_refused_and_nothing_else(tmp_path):
    """As above, within a zip file whose checksums are right."""
    random = np.random.default_rng(0)
    bodies = [np.frombuffer(body, np.uint8) for body in AGES.values()]
    path = tmp_path / "weights"
    refusals = 0
    for trial in range(400):
        body = bodies[trial % len(bodies)].copy()
        body[random.integers(len(body), size=2)] = random.integers(256, size=2)
        cut, start = random.integers(len(body), size=2)
        if trial % 3 == 0:  # a piece of it moved
            body = np.concatenate([body[:cut], body[start:]])
        path.write_bytes(torch_zip(body.tobytes()))
        try:
            read(path)
        except WeightsError:
            refusals += 1
    assert refusals > 200


# ------------------------------------------------------------------------------- torch itself


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def small_network(torch):
    """Convolution, batch norm and a linear layer, after a step of training."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(16, 2))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.randn(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    return network, optimizer


def in_numpy(state_dict):
    return {name: value.detach().numpy() for name, value in state_dict.items()}


@pytest.mark.peers
@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("training", [False, True])
def test_state_dicts_that_torch_saves_are_read(torch, tmp_path, new, protocol, training):
    network, optimizer = small_network(torch)
    state = network.state_dict()
    adam = torch.optim.Adam(network.parameters())
    adam.step()
    checkpoint = {
        "epoch": 3,
        "best_prec1": torch.tensor(76.5),
        "state_dict": torch.nn.DataParallel(network).state_dict(),
        "optimizer": optimizer.state_dict(),
        "adam": adam.state_dict(),
        "schedule": torch.optim.lr_scheduler.StepLR(optimizer, 30).state_dict(),
        "args": argparse.Namespace(lr=0.1, device=torch.device("cpu"), tags={1}, at=Path("x")),
        "best": np.float64(76.5),
        "history": np.arange(3.0),
        "more": collections.defaultdict(list, {"a": [1]}),
    }
    torch.save(
        checkpoint if training else state,
        tmp_path / "weights.pth",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=new,
    )
    assert_equal(names.unwrapped(read(tmp_path / "weights.pth")), in_numpy(state))


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_programs_of_torch_are_named_for_what_they_are(torch, refused, tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).eval()
    torch.jit.script(network).save(tmp_path / "script.pt")
    refused((tmp_path / "script.pt").read_bytes(), "it is TorchScript, a program")
    example = (torch.zeros(1, 3, 8, 8),)
    torch.export.save(torch.export.export(network, example), tmp_path / "exported.pt2")
    refused((tmp_path / "exported.pt2").read_bytes(), r"torch.export's \(.pt2\), a program")


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize("compiled", [False, True])
def test_average_of_torch_loses_its_wrappers(torch, tmp_path, compiled):
    network, _ = small_network(torch)
    inner = torch.compile(network) if compiled else network
    average = torch.optim.swa_utils.AveragedModel(inner)
    both = {"model": network.state_dict(), "model_ema": average.state_dict()}
    torch.save(both, tmp_path / "weights.pth")
    arrays = names.unwrapped(read(tmp_path / "weights.pth"))
    assert_equal(arrays, in_numpy(network.state_dict()))


@pytest.mark.peers
@pytest.mark.parametrize("new", [True, False])
def test_tensors_that_torch_saves_are_read(torch, tmp_path, new):
    base = torch.arange(24.0).reshape(2, 3, 4)
    state = {
        "parameter": torch.nn.Parameter(base.clone()),
        "transposed": base.permute(2, 0, 1),
        "part": base[1:, ::2, 1:3],
        "expanded": base[0, 0, :1].expand(3, 5),
        "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "bool": base > 3,
        **{
            f"int {dtype}": base.to(getattr(torch, dtype))
            for dtype in ("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
        },
    }
    torch.save(state, tmp_path / "weights", _use_new_zipfile_serialization=new)
    assert_equal(read(tmp_path / "weights"), in_numpy(state))
    halves = {dtype: torch.randn(50).to(getattr(torch, dtype)) for dtype in ("float16", "bfloat16")}
    torch.save(halves, tmp_path / "weights", _use_new_zipfile_serialization=new)
    assert_equal(
        read(tmp_path / "weights"), in_numpy({name: half.float() for name, half in halves.items()})
    )


@pytest.mark.peers
@pytest.mark.parametrize("new", [True, False])
def test_whole_networks_that_torch_saves_are_refused(torch, refused, tmp_path, new):
    torch.save(small_network(torch)[0], tmp_path / "saved", _use_new_zipfile_serialization=new)
    refused((tmp_path / "saved").read_bytes(), r"torch\.nn\.modules\.container\.Sequential")


@pytest.mark.peers
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_is_written(torch, tmp_path, dtype, mmap):
    write(tmp_path / "weights.pth", tensors(dtype))
    loaded = torch.load(tmp_path / "weights.pth", weights_only=True, mmap=mmap)
    assert type(loaded).__name__ == "OrderedDict"
    assert_equal(in_numpy(loaded), tensors(dtype))


@pytest.mark.peers
def test_a_network_of_torch_takes_what_is_written(torch, tmp_path):
    network, _ = small_network(torch)
    state = in_numpy(network.state_dict())
    write(tmp_path / "weights.pth", state)
    fresh = small_network(torch)[0]
    with torch.no_grad():
        fresh[0].weight.zero_()
    fresh.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    assert_equal(in_numpy(fresh.state_dict()), state)

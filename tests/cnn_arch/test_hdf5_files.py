"""Keras's files: what is read and written, and what is refused.

The files are made by h5py here, as Keras lays them out; `test_peers` has Keras write them.
"""

import io
import sys
import zipfile
import zlib

import h5py
import numpy as np
import pytest

from cnn_arch.errors import WeightsError
from cnn_arch.weight_files import hdf5_files, read, write
from cnn_arch.weight_files.values import Refused

KERNEL = np.arange(24, dtype=np.float32).reshape(1, 1, 4, 6)
SIX = np.arange(6, dtype=np.float32)
CONV = {"kernel": KERNEL, "bias": SIX}
NORM = {"gamma": SIX, "beta": SIX + 1, "moving_mean": SIX + 2, "moving_variance": SIX + 3}
LAYERS = {"conv": CONV, "block1/bn": NORM, "head": {"kernel": KERNEL[0, 0], "bias": SIX}}
TENSORS = {f"{layer}/{name}": x for layer, part in LAYERS.items() for name, x in part.items()}


def h5(fill, **options):
    """The bytes of an HDF5 file that `fill` has put something into."""
    file = io.BytesIO()
    with h5py.File(file, "w", **options) as root:
        fill(root)
    return file.getvalue()


def older(root, layers=None, name="{layer}/{variable}:0"):
    """Keras 1's, 2's and, without `:0`, 3's layout for .h5."""
    layers = LAYERS if layers is None else layers
    root.attrs["layer_names"] = [x.encode() for x in ["input", *layers]]
    root.create_group("input").attrs["weight_names"] = []
    for layer, variables in layers.items():
        group = root.create_group(layer)
        names = [name.format(layer=layer, variable=x) for x in variables]
        group.attrs["weight_names"] = [x.encode() for x in names]
        for x, values in zip(names, variables.values(), strict=True):
            group[x] = values


def newer(root, layers=None, names=True, top="layers"):
    """Keras 3's layout for .weights.h5."""
    layers = LAYERS if layers is None else layers
    root.create_group("vars")
    root.create_group("optimizer/vars")["0"] = np.zeros((), np.int64)
    root.create_group(f"{top}/input_layer/vars").attrs["name"] = "input"
    for number, (layer, variables) in enumerate(layers.items()):
        group = root.create_group(f"{top}/layer_{number}/vars")
        if names:
            group.attrs["name"] = layer
        for place, values in enumerate(variables.values()):
            group[str(place)] = values


def first(root):
    """Keras 1's names, which are no variables' of today."""
    conv = {"W_1": KERNEL, "b_1": SIX}
    norm = dict(zip(("gamma", "beta", "running_mean", "running_std"), NORM.values(), strict=True))
    older(root, {"conv": conv, "block1/bn": norm}, "{layer}_{variable}:0")
    for layer in ("conv", "block1/bn"):  # as h5py 2 wrote lists of texts
        root[layer].attrs["weight_names"] = root[layer].attrs["weight_names"].astype("S")


def keras_zip(data, entry="model.weights.h5", method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", '{"module": "os", "class_name": "Lambda"}')
        archive.writestr(entry, data)
    return file.getvalue()


def whole_model(root):
    root.attrs["model_config"] = b'{"class_name": "Lambda"}'
    older(root.create_group("model_weights"))
    root.create_group("optimizer_weights")["m"] = SIX


FORMS = {
    "Keras 2": h5(older),
    "Keras 3, .h5": h5(lambda root: older(root, name="{layer}/{variable}")),
    "a whole model": h5(whole_model),
    "weights.h5": h5(newer),
    "TensorFlow 2.13": h5(lambda root: newer(root, top="_layer_checkpoint_dependencies")),
    "keras": keras_zip(h5(newer)),
    "packed keras": keras_zip(h5(newer), method=zipfile.ZIP_DEFLATED),
    "libver": h5(older, libver="latest"),
}


@pytest.fixture
def reading(tmp_path):
    def read_bytes(data):
        path = tmp_path / "weights"
        path.write_bytes(data)
        return read(path)

    return read_bytes


def assert_equal(tensors, expected):
    assert set(tensors) == set(expected)
    for name, value in expected.items():
        assert (tensors[name].dtype, tensors[name].shape) == (value.dtype, value.shape), name
        assert tensors[name].flags.c_contiguous
        assert tensors[name].flags.writeable
        np.testing.assert_array_equal(tensors[name], value)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_keras_has_the_same_names(reading, form):
    assert_equal(reading(FORMS[form]), TENSORS)


def test_the_first_files_are_read_in_keras_order(reading):
    expected = {name: x for name, x in TENSORS.items() if not name.startswith("head")}
    assert_equal(reading(h5(first)), expected)


def test_layers_without_names_keep_their_numbers(reading):
    tensors = reading(h5(lambda root: newer(root, names=False)))
    numbers = dict(zip(LAYERS, ("layer_0", "layer_1", "layer_2"), strict=True))
    assert_equal(
        tensors,
        {f"{numbers[k]}/{name}": x for k, part in LAYERS.items() for name, x in part.items()},
    )


def test_lists_of_names_in_parts_are_read(reading):
    """As Keras writes them where one attribute would be too large for HDF5."""

    def parts(root):
        older(root)
        for place, name in ((root, "layer_names"), (root["conv"], "weight_names")):
            names = [x.encode() for x in place.attrs[name]]
            del place.attrs[name]
            for number, part in enumerate((names[:1], names[1:])):
                place.attrs[f"{name}{number}"] = np.array(part)
        root["conv"].move("conv/bias:0", "conv/b:0")
        root["conv"].move("conv/kernel:0", "conv/W:0")
        root["conv"].attrs["weight_names0"] = np.array([b"conv/W:0"])
        root["conv"].attrs["weight_names1"] = np.array([b"conv/b:0"])

    assert_equal(reading(h5(parts)), TENSORS)


def test_a_network_in_a_layer_keeps_its_layers_names(reading):
    def nested(root):
        weights = {"a/kernel": KERNEL, "a/bias": SIX, "b/kernel": KERNEL, "b/bias": SIX}
        older(root, {"vgg": weights}, "{variable}:0")

    def newer_nested(root):
        newer(root.create_group("layers/functional"), {"a": CONV, "b": CONV})
        root["layers/functional/vars"].attrs["name"] = "vgg"
        del root["layers/functional/optimizer"], root["layers/functional/layers/input_layer"]

    expected = {f"vgg/{layer}/{name}": x for layer in "ab" for name, x in CONV.items()}
    assert_equal(reading(h5(nested)), expected)
    assert_equal(reading(h5(newer_nested)), expected)


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", ">i2", "u1"])
def test_types_come_out_as_in_other_formats(reading, dtype):
    tensors = reading(h5(lambda root: older(root, {"a": {"kernel": SIX.astype(dtype)}})))
    native = np.dtype(dtype).newbyteorder("=")
    assert_equal(tensors, {"a/kernel": SIX.astype(np.float32 if dtype == "<f2" else native)})


PACKED = [
    {"chunks": (1, 1, 2, 4)},
    {"compression": "gzip"},
    {"compression": "gzip", "shuffle": True, "fletcher32": True, "chunks": (1, 1, 3, 5)},
    {"shuffle": True},
    {"fletcher32": True},
]


@pytest.mark.parametrize("options", PACKED)
def test_packed_values_are_read(reading, options):
    def packed(root):
        older(root)
        del root["conv/conv/kernel:0"]
        root["conv"].create_dataset("conv/kernel:0", data=KERNEL, **options)

    assert_equal(reading(h5(packed)), TENSORS)


# ------------------------------------------------------------------------------- writing


def test_what_is_written_is_read_back_and_lists_the_layers_in_order(tmp_path):
    path = tmp_path / "below" / "weights.h5"
    write(path, TENSORS)
    assert_equal(read(path), TENSORS)
    with h5py.File(path) as root:
        assert root.attrs["layer_names"].tolist() == [b"conv", b"block1/bn", b"head"]
        assert root["conv"].attrs["weight_names"].tolist() == [b"conv/kernel", b"conv/bias"]
        assert {"backend", "keras_version"} <= set(root.attrs)
    write(tmp_path / "again.h5", TENSORS)
    assert (tmp_path / "again.h5").read_bytes() == path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_long_lists_of_names_are_written_in_parts(tmp_path):
    many = {f"{'x' * 100}{number}/bias": SIX for number in range(1500)}
    write(tmp_path / "weights.h5", many)
    assert_equal(read(tmp_path / "weights.h5"), many)
    with h5py.File(tmp_path / "weights.h5") as root:
        parts = [root.attrs[f"layer_names{number}"] for number in range(3)]
    assert [f"{x.decode()}/bias" for x in np.concatenate(parts)] == list(many)


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("conv1.weight", SIX, "named <layer>/<variable>"),
        ("kernel", SIX, "named <layer>/<variable>"),
        ("/kernel", SIX, "named <layer>/<variable>"),
        ("a//kernel", SIX, "named <layer>/<variable>"),
        ("conv/weight", SIX, "the naming keras has them so"),
        ("conv/kernel", SIX.astype(int), "is int64, not float16"),
        ("a\0b/kernel", SIX, "named <layer>/<variable>"),
        ("./kernel", SIX, "named <layer>/<variable>"),
    ],
)
def test_what_keras_has_no_place_for_is_not_written(tmp_path, name, values, reason):
    with pytest.raises(WeightsError, match=reason):
        write(tmp_path / "weights.h5", {name: values})
    assert not list(tmp_path.iterdir())


def test_names_that_keras_takes_for_the_newer_layout_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"another layout in it; call it net\.h5"):
        write(tmp_path / "net.weights.h5", TENSORS)


def test_a_missing_h5py_is_told_with_the_way_to_have_it(tmp_path, monkeypatch):
    (tmp_path / "a.h5").write_bytes(FORMS["Keras 2"])
    monkeypatch.setitem(sys.modules, "h5py", None)
    for act in (lambda: read(tmp_path / "a.h5"), lambda: write(tmp_path / "b.h5", TENSORS)):
        with pytest.raises(WeightsError, match=r"needs h5py.*pip install -e '\.\[keras\]'"):
            act()


# ------------------------------------------------------------------------------- refusals


def changed(change):
    def fill(root):
        older(root)
        change(root)

    return h5(fill)


def instead(place, make):
    """A file in which something else has the name of one of the tensors."""

    def change(root):
        del root[place]
        make(root, place)

    return changed(change)


BIAS = "conv/conv/bias:0"


def assign(value):
    def make(root, place):
        root[place] = value

    return make


def dataset(**options):
    return lambda root, place: root.create_dataset(place, **{"shape": 6, "dtype": "f4", **options})


def virtual(root, place):
    layout = h5py.VirtualLayout((6,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (6,))
    root.create_virtual_dataset(place, layout)


def bomb(root, place):
    """A chunk that says it has 24 bytes, and unpacks to 64 MiB."""
    chunked = root.create_dataset(place, 6, "f4", chunks=(6,), compression="gzip")
    chunked.id.write_direct_chunk((0,), zlib.compress(bytes(1 << 26)))


REFUSED = {
    "external link": (instead(BIAS, assign(h5py.ExternalLink("/etc/passwd", "/x"))), "is a link"),
    "soft link": (instead(BIAS, assign(h5py.SoftLink("/head/head/bias:0"))), "is a link"),
    "soft link to nothing": (instead("conv", assign(h5py.SoftLink("/gone"))), "is a link"),
    "hard link": (
        instead(BIAS, lambda root, place: assign(root["head/head/bias:0"])(root, place)),
        "has two names",
    ),
    "itself": (
        h5(lambda root: assign(root.create_group("layers"))(root, "layers/again")),
        "has two names",
    ),
    "deep": (h5(lambda root: root.create_group("layers/" + "a/" * 5000)), "recursion depth"),
    "external storage": (
        instead(BIAS, dataset(external=[("other.raw", 0, h5py.h5f.UNLIMITED)])),
        "in other files",
    ),
    "virtual": (instead(BIAS, virtual), "in other files"),
    "object": (instead(BIAS, dataset(dtype=h5py.ref_dtype)), "type that is not read"),
    "text": (instead(BIAS, dataset(dtype=h5py.string_dtype())), "type that is not read"),
    "lists": (instead(BIAS, dataset(dtype=h5py.vlen_dtype("f4"))), "type that is not read"),
    "compound": (instead(BIAS, dataset(dtype=[("a", "f4")])), "type that is not read"),
    "enumeration": (instead(BIAS, assign(SIX > 2)), "type that is not read"),
    "opaque": (instead(BIAS, assign(np.zeros(6, "V2"))), "type that is not read"),
    "complex": (instead(BIAS, assign(SIX.astype("c8"))), "type that is not read"),
    "no shape": (instead(BIAS, assign(h5py.Empty("f4"))), "has no shape"),
    "a type": (instead(BIAS, assign(np.dtype("f4"))), "is no group"),
    "a type of the newer layout": (
        h5(lambda root: root.update({"layers/a/vars/0": np.dtype("f4")})),
        "is no tensor",
    ),
    "no group": (instead("conv", assign(SIX)), "is no group"),
    "lzf": (instead(BIAS, dataset(data=SIX, compression="lzf")), "packed otherwise than by gzip"),
    "scale-offset": (instead(BIAS, dataset(data=SIX, scaleoffset=2)), "packed otherwise"),
    "never written": (instead(BIAS, dataset(shape=1 << 40)), "values that are not in the file"),
    "shape bomb": (
        instead(BIAS, dataset(shape=1 << 40, chunks=(1 << 20,), compression="gzip")),
        "bytes would unpack to 4398",
    ),
    "chunk bomb": (
        instead(BIAS, dataset(chunks=(1 << 28,), maxshape=(None,), compression="gzip")),
        "bytes would unpack to 1073",
    ),
    "deflate bomb": (instead(BIAS, bomb), "unpack to more than its shape"),
    "long name": (h5(lambda root: older(root, {"x" * 2000: CONV})), "name is too long, or no text"),
    "odd name": (h5(lambda root: older(root, {"\x1b[31m": CONV})), "name is too long, or no text"),
    "no name": (
        h5(lambda root: (newer(root), root["layers/layer_0/vars"].attrs.update(name=3))),
        "name of a layer in it is no text",
    ),
    "name of any length": (
        h5(lambda root: (newer(root), root["layers/layer_0/vars"].attrs.update(name="x" * 5000))),
        "name is too long, or no text",
    ),
    "gap": (
        h5(lambda root: (newer(root), root.move("layers/layer_0/vars/1", "layers/layer_0/vars/7"))),
        "'conv' have gaps",
    ),
    "NaN": (instead(BIAS, assign(np.full(6, np.nan, "f4"))), "'conv/bias' has NaN"),
    "other data": (
        h5(lambda root: root.update(images=SIX, labels=SIX)),
        "it has 'images', 'labels' at its top.*VGG16, VGG19, ResNet50, ResNet101 and ResNet152",
    ),
    "nothing": (h5(lambda root: None), "it has nothing at its top"),
    "no layers": (h5(lambda root: root.create_group("layers")), "holds no tensors"),
    "no weights in a zip": (keras_zip(b""), "damaged or cut short"),
    "only its magic": (hdf5_files.MAGIC + bytes(1000), "damaged or cut short"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_plain_weights_is_refused(refused, what):
    refused(*REFUSED[what])


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(3, "S1000000"),
        np.array(["conv_W_1:0", "conv_b_1:0"], h5py.string_dtype()),
        np.array([b"conv_W_1:0"] * 2),
        np.array([b"a", b"b"]),
        np.arange(2),
        h5py.Empty("S3"),
    ],
)
def test_weights_keep_their_names_without_a_short_list_of_them(reading, value):
    def fill(root):
        first(root)
        root["conv"].attrs["weight_names"] = value

    assert {"conv/conv_W_1", "conv/conv_b_1"} <= set(reading(h5(fill, libver="latest")))


def texts(*lengths):
    """A heap of texts of these lengths by itself, which is no HDF5 file; the last one is free."""
    size = (1024).to_bytes(8, "little")
    heads = b"".join(
        bytes([number % len(lengths), 0]) + bytes(6) + length.to_bytes(8, "little")
        for number, length in enumerate(lengths, 1)
    )
    return (b"GCOL\x01\0\0\0" + size + heads).ljust(1024, b"\0")


def names(free, following):
    """A heap of names by itself, whose free parts are at `free` and then at `following`."""
    head = b"HEAP\0\0\0\0" + b"".join(x.to_bytes(8, "little") for x in (64, free, 32))
    data = bytearray(head.ljust(96, b"\0"))
    data[32 + free : 40 + free] = following.to_bytes(8, "little")
    return bytes(data)


def test_texts_and_names_are_checked_before_the_library_sees_them():
    """Heaps by themselves, which the library would not open: what is checked is our own code."""
    hdf5_files._check_heaps(texts(0, 0, 976))
    hdf5_files._check_heaps(names(24, 1))
    for wrong, part in ((texts(0, 0, 15), "texts"), (names(24, 24), "names")):
        with pytest.raises(Refused, match=f"its {part} are damaged"):
            hdf5_files._check_heaps(wrong)


def test_many_heaps_in_one_are_not_gone_through():
    size = 1 << 16
    head = b"GCOL\x01\0\0\0" + (size // 2).to_bytes(8, "little")
    over_the_next_head = b"\x01" + bytes(7) + (16).to_bytes(8, "little")
    with pytest.raises(Refused, match="its texts are damaged"):
        hdf5_files._check_heaps((head + over_the_next_head) * (size // 32))


def test_values_that_look_like_heaps_are_values(reading):
    like = b"GCOL\x01\0\0\0" + b"\xff" * 24 + b"HEAP\0\0\0\0" + b"\xff" * 24
    values = np.frombuffer(like, np.uint8)[:, None]
    tensors = reading(h5(lambda root: newer(root, {"a": {"kernel": values, "bias": SIX}})))
    assert_equal(tensors, {"a/kernel": values, "a/bias": SIX})


def test_nothing_outside_of_the_file_is_looked_at(reading, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with h5py.File("other.h5", "w") as file:
        file["x"] = SIX
    (tmp_path / "other.raw").write_bytes(SIX.tobytes())
    for link in (
        instead(BIAS, assign(h5py.ExternalLink("other.h5", "x"))),
        instead(BIAS, dataset(external=[("other.raw", 0, 24)])),
        instead(BIAS, virtual),
    ):
        with pytest.raises(WeightsError, match=r"link|other files"):
            reading(link)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    reading(FORMS["weights.h5"])
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"weights"}


@pytest.mark.parametrize("form", FORMS)
def test_files_cut_short_anywhere_are_refused(tmp_path, form):
    data = FORMS[form]
    path = tmp_path / "weights"
    cuts = {*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 30, len(data))}
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        with pytest.raises(WeightsError):
            read(path)


READ_ALL = """
import sys
from pathlib import Path
from cnn_arch.errors import WeightsError
from cnn_arch.weight_files import read
refusals = 0
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read(path)
    except WeightsError:
        refusals += 1
print(refusals)
"""


@pytest.mark.parametrize("form", FORMS)
def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path, fresh_python, form):
    """In a process of its own, which is ended where the library does not come to an end."""
    random = np.random.default_rng(0)
    original = np.frombuffer(FORMS[form], np.uint8)
    used = np.flatnonzero(original)
    for number in range(150):
        data = original.copy()
        places = random.choice(used, size=random.integers(1, 4))
        data[places] = random.integers(256, size=places.size)
        (tmp_path / f"{number:03}").write_bytes(data.tobytes())
    process = fresh_python("-c", READ_ALL, str(tmp_path), timeout=120)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 30

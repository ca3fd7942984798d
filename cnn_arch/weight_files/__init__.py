"""Files of named tensors: safetensors, .npz, torch's .pth, Caffe's .caffemodel and Keras's .h5.

Published weights come from strangers, so a file is data here and nothing else. Its declared sizes,
offsets, names and types are checked against its bytes before memory is allocated, and every file
that cannot be read ends in a `WeightsError`.

The .pth files of torch hold a pickle, which is a small program that can call any function.
`torch_pickle` interprets it; Python's own unpickler is not used.

Values are never rounded. float16 and bfloat16 become float32, which holds all their values;
float64, the integers and bool keep their types, in the machine's byte order.
"""

import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cnn_arch.errors import WeightsError, unknown
from cnn_arch.weight_files.archives import Zip, read_npz, write_npz
from cnn_arch.weight_files.caffe import read_caffemodel, write_caffemodel
from cnn_arch.weight_files.hdf5_files import MAGIC, read_hdf5, read_hdf5_bytes, write_hdf5
from cnn_arch.weight_files.safetensors_files import read_safetensors, write_safetensors
from cnn_arch.weight_files.torch_files import (
    Choice,
    Which,
    read_torch_legacy,
    read_torch_zip,
    write_torch,
)
from cnn_arch.weight_files.values import MIB, Refused, check_finite, ready, refusing

_WRITERS: dict[str, Callable[[BinaryIO, Mapping[str, np.ndarray]], None]] = {
    ".safetensors": write_safetensors,
    ".npz": write_npz,
    ".pth": write_torch,
    ".pt": write_torch,
    ".caffemodel": write_caffemodel,
    ".h5": write_hdf5,
}
SUFFIXES = tuple(_WRITERS)  # of the files that `write` makes
_NEWER_KERAS = ".weights.h5"
_IN_KERAS = "model.weights.h5"  # the weights in a .keras


def read(
    path: Path,
    which: Which | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> dict[str, np.ndarray]:
    """The tensors of a file, by name and in the file's order, where the format has one.

    The format is detected by the content, not by the suffix:

    - safetensors.
    - npz, as `numpy.savez` and `numpy.savez_compressed` write it.
    - torch, the zip container (torch >= 1.6) and the plain one before it (or with
      `_use_new_zipfile_serialization=False`); tar containers are refused. The file holds a
      state dict, or a dict with one under one of `torch_files.RAW`, and the average of its weights
      under one of `torch_files.AVERAGES`, or both (the first of each). Other entries are ignored:
      values of plain types, and what training scripts save, such as argparse's options and NumPy's
      numbers. Zip files saved with torch's checksums switched off are refused.
    - caffemodel, the binary NetParameter with `layer` (V2) or `layers` (V1). Blobs are named
      `<layer>.0` (weights) and `<layer>.1` (bias), and keep their shape: before `shape` was
      introduced all had four dimensions, so that a bias is (1, 1, 1, n) and a fully-connected
      layer's weights are (1, 1, outputs, inputs). The format has no end mark: a file cut exactly
      between two layers cannot be told from a shorter network's.
    - HDF5 as Keras 1 to 3 write it (.h5, .weights.h5), and .keras with such a file inside; see
      `hdf5_files`. Tensors are named `<layer>/kernel`, `<layer>/gamma` and so on. Nothing else of a
      .keras is looked at. It needs the extra `keras`.

    Args:
        which: the weights themselves ('raw') or their average over the training; by default the
            average if there is one, as publishers test that.
        on_note: called with which was taken, where the file has both.

    Returns: arrays that are C-contiguous, writable and share no memory. float16 and bfloat16 become
    float32; float64, integers and bool keep their types.

    Raises WeightsError when the file is missing, damaged, cut short, of another format, holds
    anything but tensors and plain values, holds no tensor, two of one name, or one with a NaN or
    an infinity.
    """
    description = "a file of weights"
    try:
        description, reader = _format(path, (which, on_note))
        # Libraries warn of odd headers; what counts is whether they accept them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors = reader(path)
        if not tensors:
            raise Refused("it holds no tensors")
        for name, tensor in tensors.items():
            check_finite(name, tensor)
    except (Refused, OSError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__  # a library's has lines
        # The file may have put a name of any length into the reason.
        raise WeightsError(f"{path} cannot be read as {description}: {reason[:1000]}.") from error
    return tensors


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the tensors to `path`, at once or not at all, in the format of its suffix.

    '.safetensors', '.npz', '.pth' and '.pt' (torch's zip container with an OrderedDict, which
    `torch.load(path, weights_only=True)` reads), '.caffemodel' (names must be `<layer>.0`,
    `<layer>.1` and so on, types float32 or float64), or '.h5' (names must be `<layer>/kernel` and
    so on, as in `hdf5_files.VARIABLES`, types of floating point; not '.weights.h5', by which Keras
    tells its newer layout). The same tensors give the same bytes.

    `read` gives equal tensors back: float16 as float32.

    Raises WeightsError when the suffix is another, there is no tensor, a name or a type does not
    fit the format, a value is NaN or infinite, or the file cannot be written.
    """
    if path.suffix.lower() not in _WRITERS:
        raise WeightsError(f"{path} cannot be written. {unknown('suffix', path.suffix, _WRITERS)}")
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        if not tensors:
            raise Refused("there are no tensors")
        if path.name.lower().endswith(_NEWER_KERAS):
            name = path.name[: -len(_NEWER_KERAS)] + ".h5"
            raise Refused(f"Keras expects another layout in it; call it {name}, which Keras loads")
        prepared = {name: ready(name, tensor) for name, tensor in tensors.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("wb") as file:
                _WRITERS[path.suffix.lower()](file, prepared)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except (Refused, OSError) as error:
        raise WeightsError(f"{path} cannot be written: {error}.") from error


def _format(path: Path, choice: Choice) -> tuple[str, Callable[[Path], dict[str, np.ndarray]]]:
    """(a description of the format, its reader), by the file's first bytes."""
    if path.is_dir():
        raise Refused("it is a directory")
    if not path.exists():
        raise Refused("there is no such file")
    if not path.is_file():
        raise Refused("it is not a regular file")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise Refused("it is empty")
    for kind, is_so, way_out in _OTHERS:
        if is_so(head):
            raise Refused(f"it is {kind}; {way_out}")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "a zip file (torch's, Keras's or npz)", partial(_read_zip, choice=choice)
    if head.startswith(b"\x80"):
        return "a torch file of the time before 1.6", partial(read_torch_legacy, choice=choice)
    if choice[0] == "average":
        raise Refused(_ONE_SET)
    if head.startswith(MAGIC):
        return "a Keras file (HDF5)", read_hdf5
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100 * MIB:
        return "a safetensors file", read_safetensors
    # A caffemodel has no magic bytes: it is what parses as one.
    return "safetensors, npz, torch or caffemodel", read_caffemodel


_ONE_SET = "it has one set of weights, and does not say that it is an average"
# Files that people take for weights: (what it is, a test of the first bytes, what to do then).
_OTHERS: tuple[tuple[str, Callable[[bytes], bool], str], ...] = (
    (
        "a tar file, as the first versions of torch wrote",
        lambda head: head[257:262] == b"ustar",
        "load it with torch and save it again",
    ),
    (
        "Git LFS's note of a file, not the file",
        lambda head: head.startswith(b"version https://git-lfs.github.com/spec/"),
        "`git lfs pull` in its repository brings the file",
    ),
    (
        "a web page",
        lambda head: head.lstrip().lower().startswith((b"<!doctype html", b"<html")),
        "open it in a browser to see why the file was not sent",
    ),
    (
        # ModelProto: `ir_version`, a number, and then the producer's name or version or a domain.
        "an ONNX graph",
        lambda head: head[0] == 0x08 and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42"),
        "take the weights from the library that it was made with",
    ),
)


def _read_zip(path: Path, choice: Choice) -> dict[str, np.ndarray]:
    with refusing("it is damaged or cut short"):
        file = zipfile.ZipFile(path)
    with file:
        archive = Zip(file, path.stat().st_size)
        # torch puts everything into one folder, whose name is the file's when it was saved.
        parts = [name.partition("/") for name in archive.entries]
        for kind, entry, way_out in _PROGRAMS:
            if any(entry in (first, rest) for first, _, rest in parts):
                raise Refused(f"it is {kind}, a program; {way_out}")
        pickles = [n for n in archive.entries if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickles) == 1:
            return read_torch_zip(archive, pickles[0].removesuffix("data.pkl"), choice)
        if choice[0] == "average":
            raise Refused(_ONE_SET)
        if _IN_KERAS in archive.entries:
            return read_hdf5_bytes(archive.read(_IN_KERAS))
        return read_npz(archive)


# Zip files of torch that hold a program: (what it is, an entry of it, how to get its weights).
_PROGRAMS = (
    (
        "TorchScript",
        "constants.pkl",
        "in torch, save the state dict of torch.jit.load(FILE) instead",
    ),
    (
        "torch.export's (.pt2)",
        "archive_format",
        "in torch, save the state_dict of torch.export.load(FILE) instead",
    ),
    (
        "torch.export's (.pt2)",
        "serialized_exported_program.json",
        "in torch, save the state_dict of torch.export.load(FILE) instead",
    ),
)

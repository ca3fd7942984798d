"""The labels of ILSVRC's validation images, which lie in one flat folder or tar.

Any one of these files has them, looked for in this order:

    LOC_val_solution.csv       Kaggle's table, a row an image
    synset_labels.txt, ...     a wnid a line, line k for image k
    ILSVRC2012_devkit_t12      ILSVRC's kit: a number a line, and meta.mat with their wnids
"""

import csv
import io
import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.image_files import SUFFIXES
from input_pipeline.sources.source import as_data_errors, first_names

_SOLUTION = "LOC_val_solution.csv"
_WNID_LISTS = (
    "imagenet_2012_validation_synset_labels.txt",
    "synset_labels.txt",
    "val_labels.txt",
)
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_DEVKIT = "ILSVRC2012_devkit_t12"
# Names of all these files, which lie beside images and are no unread files.
FILES = (_SOLUTION, *_WNID_LISTS, _TRUTH, "meta.mat", f"{_DEVKIT}.tar.gz")
_LARGEST = 64 << 20  # bytes of a labels file


def flat_labels(
    where: Path, names: list[bytes], places: Iterable[Path], folders: Sequence[str]
) -> np.ndarray:
    """(N,) int32: the label of each image, from a file in the first of `places` that has one.

    names: of the images in `where`, sorted. folders: the classes' wnids in label order.
    Raises DataError.
    """
    if not names:
        raise DataError(f"{where} holds no image files (of type {', '.join(SUFFIXES)})")
    wnids, file = _wnids(where, names, list(places))
    index = {name: k for k, name in enumerate(folders)}
    unknown = set(wnids) - index.keys()
    if unknown:
        raise DataError(f"{file}: images of classes that train has not: {first_names(unknown)}")
    return np.array([index[wnid] for wnid in wnids], np.int32)


def _wnids(where: Path, names: list[bytes], places: Sequence[Path]) -> tuple[list[str], Path]:
    """(the wnid of each image, the file that they are from)."""
    for place in places:
        if (place / _SOLUTION).is_file():
            return _wnids_of_solution(names, place / _SOLUTION), place / _SOLUTION
    for place in places:
        for file in (place / name for name in _WNID_LISTS):
            if file.is_file():
                return _in_file_order(names, _read_text(file).split(), file), file
    truth = _devkit_file(places, _TRUTH)
    if truth is None:
        raise DataError(
            f"{where} holds images without folders of classes, and no file with their labels was "
            f"found; expected {where}/CLASS/image files, or, of ImageNet, {_SOLUTION}, "
            f"{_WNID_LISTS[0]} or {_DEVKIT}.tar.gz in {places[-1]}"
        )
    content, file = truth
    return _in_file_order(names, _wnids_of_devkit(content, file, places), file), file


def _read_text(file: Path) -> str:
    with as_data_errors(file), file.open("rb") as stream:
        content = stream.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise DataError(f"{file}: more than {_LARGEST >> 20} MB; expected a line an image")
    return content.decode("utf-8-sig", "replace")


def _wnids_of_solution(names: list[bytes], file: Path) -> list[str]:
    """Kaggle's table: ImageId, then `wnid x y x y` for each box in PredictionString."""
    wnid_of: dict[str, str] = {}
    try:
        for row in csv.reader(_read_text(file).splitlines()):
            if len(row) < 2 or not row[1].split():
                raise DataError(f"{file}: row {row!r}; expected ImageId,PredictionString")
            wnid_of[row[0]] = row[1].split()[0]
    except csv.Error as error:
        raise DataError(f"{file}: not a CSV table: {error}") from error
    stems = [os.path.splitext(os.fsdecode(name))[0] for name in names]
    missing = set(stems) - wnid_of.keys()
    if missing:
        raise DataError(f"{file}: no row for the images {first_names(missing)}")
    return [wnid_of[stem] for stem in stems]


def _in_file_order(names: list[bytes], words: list[str], file: Path) -> list[str]:
    """The words by image: line k is that of ILSVRC2012_val_k, or else of the k-th name."""
    numbers = [re.fullmatch(rb"ILSVRC2012_val_(\d{8})\.\w+", name) for name in names]
    if all(numbers) and len(words) >= len(names):
        lines = [int(match[1]) for match in numbers if match]
        if min(lines) >= 1 and max(lines) <= len(words):
            return [words[line - 1] for line in lines]
    if len(words) != len(names):
        raise DataError(f"{file}: {len(words)} labels for {len(names)} images; expected one each")
    return words


def _wnids_of_devkit(truth: bytes, file: Path, places: Sequence[Path]) -> list[str]:
    """The wnid of each line in ILSVRC's file of numbers."""
    meta = _devkit_file(places, "meta.mat")
    if meta is None:
        raise DataError(
            f"{file} numbers the classes in an order of its own, which {_DEVKIT}'s meta.mat tells; "
            f"expected {_DEVKIT}.tar.gz or {_DEVKIT}/data/meta.mat in {places[-1]}"
        )
    wnid_of = _wnid_of_id(*meta)
    ids = truth.decode("utf-8", "replace").split()
    unknown = [word for word in ids if word not in wnid_of]
    if unknown:
        raise DataError(f"{file}: {unknown[0]!r} is no class; expected a number 1 to 1000 a line")
    return [wnid_of[word] for word in ids]


def _devkit_file(places: Sequence[Path], name: str) -> tuple[bytes, Path] | None:
    """(content, path for messages) of a file of ILSVRC's development kit, as folder or archive."""
    for place in places:
        for file in (place / name, place / "data" / name, place / _DEVKIT / "data" / name):
            if file.is_file():
                with as_data_errors(file):
                    return file.read_bytes(), file
        archive = place / f"{_DEVKIT}.tar.gz"
        if archive.is_file():
            try:
                with tarfile.open(archive, "r:gz") as tar:
                    for member in tar:
                        if member.name.endswith(f"data/{name}") and member.size <= _LARGEST:
                            stream = tar.extractfile(member)
                            if stream is not None:
                                return stream.read(), archive / member.name
            except (OSError, EOFError, tarfile.TarError, ValueError) as error:
                raise DataError(f"{archive}: damaged: {error}") from error
    return None


def _wnid_of_id(content: bytes, file: Path) -> dict[str, str]:
    """The wnid by ILSVRC2012_ID, as the labels file has it, from the content of meta.mat."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])
        rows = np.atleast_1d(synsets["synsets"])
        return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in rows}
    except Exception as error:  # scipy raises many kinds of errors for a damaged file
        raise DataError(f"{file}: not ILSVRC's table of classes: {error}") from error

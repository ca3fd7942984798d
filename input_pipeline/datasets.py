"""From a name to labelled images: a training part, a test part and their fingerprint."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.client
import importlib.util
import itertools
import math
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from input_pipeline import placed_digits
from input_pipeline.boxes import Boxes
from input_pipeline.errors import INSTALL, DataError, nearest
from input_pipeline.tfrecords import record_places
from input_pipeline.whole_files import Arrays, read_arrays, write_arrays

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

DIGITS_TEST_SIZE = 500
REACHED_WITHIN = 20  # seconds in which a server must answer
UNREACHED = (socket.gaierror, ConnectionRefusedError, TimeoutError)  # by that server, or its name's


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Labelled images."""

    images: np.ndarray  # (N, H, W, C) uint8, 0 to 255
    labels: np.ndarray  # (N,) int32
    boxes: Boxes | None = None  # around the objects of each image's class

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Examples":
        """The examples at `indices`, in that order."""
        boxes = None if self.boxes is None else self.boxes.take(indices)
        return Examples(self.images[indices], self.labels[indices], boxes)


def split_holdout(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending indices (the rest, `fraction` of the examples), class by class.

    Each class gives its share, and at least one example. The split depends only on the labels (N,),
    the fraction and the seed. Raises DataError if a part would be without a class.
    """
    if not 0.0 < fraction < 1.0:
        raise DataError(f"held-out fraction {fraction}; expected more than 0 and less than 1")
    # Raw Philox words are the same in every NumPy version; shuffles need not be.
    ranks = np.random.Philox(key=seed).random_raw(len(labels))
    held_out = stratified(labels, round(fraction * len(labels)), ranks, least=1)
    classes, classes_held_out = np.unique(labels), np.unique(labels[held_out])
    classes_kept = np.unique(labels[~held_out])
    if not len(classes) == len(classes_held_out) == len(classes_kept):
        smallest = np.bincount(labels)[classes].min()
        raise DataError(
            f"cannot hold out {fraction} of {len(labels)} training examples: every class needs "
            f"an example in both parts, and the smallest class has {smallest}"
        )
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def balanced(labels: np.ndarray, seed: int) -> np.ndarray:
    """Ascending indices with which every class of `labels` (N,) is as frequent as the largest one.

    Each example occurs as often as others of its class, or once more, as drawn. The draw depends
    only on the labels and the seed.
    """
    counts = np.bincount(labels)
    ranks = np.random.Philox(key=seed).random_raw(len(labels))
    order = np.lexsort((ranks, labels))
    starts = np.cumsum(counts) - counts
    rank: np.ndarray = np.empty(len(labels), np.int64)  # among those of its class
    rank[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    repeats, extra = np.divmod(counts.max(), np.maximum(counts, 1))
    return np.repeat(np.arange(len(labels)), repeats[labels] + (rank < extra[labels]))


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set."""

    name: str
    train: Examples
    test: Examples
    class_names: tuple[str, ...]
    fingerprint: str  # changes when the images or labels do
    mirror_ok: bool  # False where a mirrored image is not an image of its class (digits)

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return self.train.images.shape[-1]


def _dataset(
    name: str, train: Examples, test: Examples, class_names: Iterable[str], mirror_ok: bool = True
) -> Dataset:
    """A data set with its fingerprint, 16 hexadecimal digits of shapes, pixels, labels, boxes."""
    digest = hashlib.sha256()
    for array in (train.images, train.labels, test.images, test.labels):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    for part, examples in (("train", train), ("test", test)):
        if examples.boxes is not None:
            digest.update(f"{part} boxes".encode() + examples.boxes.digest())
    fingerprint = f"{name}-{digest.hexdigest()[:16]}"
    return Dataset(name, train, test, tuple(class_names), fingerprint, mirror_ok)


def names() -> tuple[str, ...]:
    """The names that `load` knows."""
    return tuple(_LOADERS)


def load(name: str, *, path: str | Path | None = None) -> Dataset:
    """The data set called `name`.

    `path` is the file for `npz`, and for the sets that TFDS downloads the folder that keeps
    them (default: TFDS's own, `~/tensorflow_datasets`). Raises DataError.
    """
    if name not in _LOADERS:
        hint = nearest("did you mean {!r}? ", name, _LOADERS)
        raise DataError(f"unknown data set {name!r}; {hint}known: {', '.join(_LOADERS)}")
    return _LOADERS[name](path)


def must_be_downloaded(name: str, path: str | Path | None = None) -> bool:
    """Whether opening a set of `names()`, or `tfds:NAME`, would have TFDS download it first."""
    tfds_name = _TFDS[name][0] if name in _TFDS else name.removeprefix("tfds:")
    if name not in _TFDS and tfds_name == name:
        return False
    import tensorflow_datasets as tfds

    try:
        return not tfds.builder(tfds_name, data_dir=path or None).is_prepared()
    except Exception:  # opening the set reports unknown names
        return False


# --------------------------------------------------------------------------------- digits


def _digits_table() -> np.ndarray:
    """(N, 65) int64: 64 grey levels and the label. Importing scikit-learn would take 2 seconds."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("data set 'digits' comes with scikit-learn, which is not installed")
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not file.is_file():
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return np.column_stack([bunch.data, bunch.target]).astype(np.int64)
    with gzip.open(file, "rt", encoding="ascii") as lines:
        return np.loadtxt(lines, delimiter=",", dtype=np.int64)


def _load_digits(path: str | Path | None) -> Dataset:
    """scikit-learn's 1,797 scans of handwritten digits, 8x8, 17 grey levels.

    Source: E. Alpaydin, C. Kaynak, UCI Optical Recognition of Handwritten Digits (its test part).
    """
    if path is not None:
        raise DataError(f"data set 'digits' comes with scikit-learn and takes no path; got {path}")
    table = _digits_table()
    images: np.ndarray = ((table[:, :-1].reshape(-1, 8, 8, 1) * 255 + 8) // 16).astype(np.uint8)
    labels: np.ndarray = table[:, -1].astype(np.int32)
    # A rule rather than a stored list, which no version of a random generator changes.
    ranks = np.array(
        [int.from_bytes(hashlib.sha256(b"digits %d" % i).digest()[:8]) for i in range(len(labels))],
        dtype=np.uint64,
    )
    in_test = stratified(labels, DIGITS_TEST_SIZE, ranks)
    digits = Examples(images, labels)
    train, test = (digits.take(np.flatnonzero(part)) for part in (~in_test, in_test))
    return _dataset("digits", train, test, map(str, range(10)), mirror_ok=False)


def _digits_for(name: str, path: str | Path | None) -> Dataset:
    """The digits, of which the set `name` is made. DataError for a path."""
    if path is not None:
        raise DataError(f"data set {name!r} is made of digits and takes no path; got {path}")
    return _load_digits(None)


def _load_placed_digits(path: str | Path | None) -> Dataset:
    """The digits, four times each in training, placed in larger fields: see `placed_digits`."""
    digits = _digits_for("placed_digits", path)
    train, test = (
        Examples(*placed_digits.placed(part.images[..., 0], part.labels, times, key))
        for part, times, key in ((digits.train, 4, 0), (digits.test, 1, 1))
    )
    return _dataset("placed_digits", train, test, digits.class_names, mirror_ok=False)


def _load_mirrored_digits(path: str | Path | None) -> Dataset:
    """The digits and their mirror images, which are ten classes more."""
    digits = _digits_for("mirrored_digits", path)
    train, test = (
        Examples(
            np.concatenate([part.images, part.images[:, :, ::-1]]),
            np.concatenate([part.labels, part.labels + digits.classes]),
        )
        for part in (digits.train, digits.test)
    )
    names = [*digits.class_names, *(f"{name} mirrored" for name in digits.class_names)]
    return _dataset("mirrored_digits", train, test, names, mirror_ok=False)


def stratified(labels: np.ndarray, count: int, ranks: np.ndarray, least: int = 0) -> np.ndarray:
    """Mask (N,) of `count` examples, in each class its share, lowest `ranks` first.

    Shares are rounded by largest remainder (ties: the lower class), and at least `least`.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    quotas, remainders = np.divmod(sizes * count, len(labels))
    extra = np.argsort(-remainders, kind="stable")[: count - quotas.sum()]
    quotas[extra] += 1
    quotas = np.maximum(quotas, least)
    chosen: np.ndarray = np.zeros(len(labels), bool)
    for cls, quota in zip(classes, quotas, strict=True):
        members = np.flatnonzero(labels == cls)
        chosen[members[np.argsort(ranks[members], kind="stable")[:quota]]] = True
    return chosen


# ------------------------------------------------------------------------------------ npz

_NPZ_TEST_KEYS = ("test_images", "test_labels")
_NPZ_KEYS = ("train_images", "train_labels", *_NPZ_TEST_KEYS)
_NPZ_OPTIONAL = ("class_names", "train_boxes", "test_boxes")
_MOST_CLASSES = 100_000  # of test images alone, whose labels give the number of classes


def load_npz_test(path: str | Path) -> Dataset:
    """The test part of a .npz file, as of `load("npz")`, but the training part may be missing.

    The classes are then those of class_names or, if these are missing too, 0 to the largest label.
    Raises DataError.
    """
    return _load_npz(path, test_only=True)


def _load_npz(path: str | Path | None, test_only: bool = False) -> Dataset:
    """A NumPy .npz file of one's own images.

    Keys: train_images and test_images (N, H, W) or (N, H, W, C), C being 1 (grey) or 3 (RGB) as in
    image files, uint8 or floats in [0, 1] (rounded to 0..255); train_labels and test_labels (N,)
    integers 0..K-1, every class with at least one training example; optionally class_names (K,)
    strings, and train_boxes and test_boxes (N, 4) or (N, M, 4), left, top, right, bottom in pixels,
    NaN where an image has fewer. test_only: the training part may be missing.
    """
    if path is None:
        raise DataError("data set 'npz' needs a path to a .npz file")
    path = Path(path).expanduser()
    try:
        arrays = _read_npz(path, test_only)
        has_train = "train_images" in arrays
        return _npz_dataset(arrays) if has_train else _npz_test(arrays)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _npz_dataset(arrays: Arrays) -> Dataset:
    train, test = (_npz_examples(part, arrays) for part in ("train", "test"))
    shapes = ["x".join(map(str, part.images.shape[1:])) for part in (train, test)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"train_images are {shapes[0]} and test_images {shapes[1]}; expected one height, width "
            "and channel count"
        )
    classes = _check_classes(train.labels, test.labels)
    names = _npz_class_names(arrays.get("class_names"), classes)
    return _dataset("npz", train, test, names)


def _npz_test(arrays: Arrays) -> Dataset:
    test, names = _npz_examples("test", arrays), arrays.get("class_names")
    classes = int(test.labels.max()) + 1
    if classes > _MOST_CLASSES:
        raise DataError(f"test_labels holds {classes - 1}; expected integers 0..K-1")
    if names is not None and names.ndim == 1:  # of more classes than have an image
        classes = max(classes, len(names))
    return _dataset("npz", test.take(np.arange(0)), test, _npz_class_names(names, classes))


def _read_npz(path: Path, test_only: bool) -> Arrays:
    """The arrays under known keys. DataError if one is unreadable, or needed and missing."""
    needed = _NPZ_TEST_KEYS if test_only else _NPZ_KEYS
    if not path.is_file():
        raise DataError(f"no such file; expected a .npz with {', '.join(needed)}")
    unreadable = "not a .npz file, or a truncated one; write it with numpy.savez"
    try:
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise DataError(unreadable)
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as archive:
                _check_keys(archive.files, needed)
                if any(key in archive for key in _NPZ_KEYS[:2]):
                    _check_keys(archive.files, _NPZ_KEYS)
                keys = (*_NPZ_KEYS, *_NPZ_OPTIONAL)
                return {key: _read_array(archive, key) for key in keys if key in archive}
    except zipfile.BadZipFile as error:
        raise DataError(unreadable) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error


def _check_keys(keys: list[str], needed: tuple[str, ...]) -> None:
    for key in needed:
        if key not in keys:
            hint = nearest(" (is {!r} meant?)", key, set(keys) - {*_NPZ_KEYS, *_NPZ_OPTIONAL})
            raise DataError(
                f"key {key!r} is missing{hint}; the file has "
                f"{', '.join(keys) or 'nothing'}; expected {', '.join(needed)}"
            )


def _read_array(archive: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        array = archive[key]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error):
            raise DataError(
                f"{key} holds Python objects, which are not read because that would run "
                "code from the file; expected a plain array of numbers or strings"
            ) from error
        raise DataError(f"{key} cannot be read, the file is damaged ({error})") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{key} is not a NumPy array")
    return array


def _npz_examples(part: str, arrays: Arrays) -> Examples:
    images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    _check_labels(f"{part}_labels", labels)
    _check_images(f"{part}_images", images, len(labels))
    images, labels = _pixels(f"{part}_images", images), labels.astype(np.int32)
    if len(images) != len(labels):
        raise DataError(
            f"{part}_images has {len(images)} examples and {part}_labels has {len(labels)}; "
            "expected as many labels as images"
        )
    boxes = arrays.get(f"{part}_boxes")
    return Examples(images, labels, None if boxes is None else _boxes(part, boxes, images.shape))


def _boxes(part: str, boxes: np.ndarray, shape: tuple[int, ...]) -> Boxes:
    """The boxes of a part, whose images have the shape (N, H, W, C). Raises DataError."""
    key, (n, height, width, _) = f"{part}_boxes", shape
    if boxes.ndim not in (2, 3) or boxes.shape[-1] != 4 or len(boxes) != n:
        raise DataError(
            f"{key} has shape {boxes.shape}; expected ({n}, 4) or ({n}, M, 4): left, top, right, "
            "bottom, NaN where an image has fewer"
        )
    if boxes.dtype.kind not in "iuf":
        raise DataError(f"{key} has dtype {boxes.dtype}; expected floats, in pixels")
    boxes = boxes.reshape(n, -1, 4).astype(np.float32)
    present = ~np.isnan(boxes).all(axis=2)
    left, top, right, bottom = np.moveaxis(boxes, 2, 0)
    # Comparisons with NaN are false.
    sound = (left >= 0) & (top >= 0) & (right <= width) & (bottom <= height)
    wrong = present & ~(sound & (left < right) & (top < bottom))
    if wrong.any():
        i, k = np.argwhere(wrong)[0].tolist()
        raise DataError(
            f"{key} of image {i} holds {boxes[i, k].tolist()}; expected left < right and top < "
            f"bottom, within an image {width} wide and {height} high, or four times NaN"
        )
    return Boxes.of([rows[mask] for rows, mask in zip(boxes, present, strict=True)])


def _check_images(key: str, images: np.ndarray, n: int) -> None:
    """DataError unless the axes are those of n images."""
    text = f"{key} has shape {images.shape}"
    if images.ndim not in (3, 4):
        mend = _unflattened(key, images)
        raise DataError(f"{text}; expected (N, H, W) or (N, H, W, C){mend}")
    if images.size == 0:
        raise DataError(f"{key} is empty, its shape is {images.shape}")
    if len(images) != n == images.shape[-1]:
        first = (images.ndim - 1, *range(images.ndim - 1))
        raise DataError(
            f"{text}, with the images along the last axis; expected (N, H, W, C): "
            f"{key}.transpose{first}"
        )
    channels = images.shape[3] if images.ndim == 4 else 1
    if channels in (1, 3):
        return
    mend = ""
    if images.shape[1] in (1, 3):
        mend = f"; of images with their channels first: {key}.transpose(0, 2, 3, 1)"
    elif channels in (2, 4):
        mend = f"; without transparency: {key}[..., :{channels - 1}]"
    raise DataError(
        f"{text}, and so {channels} channels; expected (N, H, W, C) of 1 channel (grey) or 3 (RGB)"
        f"{mend}"
    )


def _unflattened(key: str, images: np.ndarray) -> str:
    """Advice how to reshape flattened square images; '' for other images."""
    pixels = images.shape[1] if images.ndim == 2 else 0
    side = math.isqrt(pixels)
    if pixels > 1 and side**2 == pixels:
        return f": {key}.reshape(-1, {side}, {side})"
    side = math.isqrt(pixels // 3)
    if pixels > 3 and 3 * side**2 == pixels:
        return (
            f": {key}.reshape(-1, {side}, {side}, 3), or, where each image has its channels one "
            f"after the other, {key}.reshape(-1, 3, {side}, {side}).transpose(0, 2, 3, 1)"
        )
    return ""


def _pixels(key: str, images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) uint8. Raises DataError for other numbers than uint8 and [0, 1]."""
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    expected = "expected uint8 (0 to 255) or floats in [0, 1]"
    if images.dtype.kind not in "iuf":
        mend = f": {key}.astype(numpy.uint8) * 255" if images.dtype.kind == "b" else ""
        raise DataError(f"{key} has dtype {images.dtype}; {expected}{mend}")
    is_integer = images.dtype.kind in "iu"
    if not is_integer and not np.isfinite(images).all():
        raise DataError(f"{key} holds NaN or infinity; expected floats in [0, 1]")
    low, high = images.min(), images.max()
    if not is_integer and low >= 0 and high <= 1:
        return np.rint(images.astype(np.float32) * 255).astype(np.uint8)
    mend = ", as they were before anything was taken off"
    if not is_integer and 0 <= low <= high < 2:
        mend = f": {key}.clip(0, 1), if 1 is white"
    elif low >= 0 and 1 < high <= 255:
        mend = f": {key}.{'' if is_integer else 'round().'}astype(numpy.uint8)"
    elif is_integer and low >= 0:
        mend = f": ({key} * (255 / {high})).round().astype(numpy.uint8), if {high} is white"
    elif not is_integer and low >= -1 and high <= 1:
        mend = f": ({key} + 1) / 2"
    kind = f"dtype {images.dtype}" if is_integer else "floats"
    raise DataError(f"{key} holds {kind} from {low:g} to {high:g}; {expected}{mend}")


def _check_labels(key: str, labels: np.ndarray) -> None:
    """DataError unless labels are one number an image, from 0 on."""
    if labels.ndim != 1:
        mend = ""
        if labels.ndim == 2 and labels.shape[1] == 1:
            mend = f": {key}[:, 0]"
        elif labels.ndim == 2 and ((labels != 0).sum(axis=1) == 1).all():
            mend = f"; of labels one-hot: {key}.argmax(axis=1)"
        raise DataError(f"{key} has shape {labels.shape}; expected (N,){mend}")
    if labels.dtype.kind not in "iu":
        mend = ""
        if labels.dtype.kind == "b" or (labels.dtype.kind == "f" and (labels % 1 == 0).all()):
            mend = f": {key}.astype(int)"
        elif labels.dtype.kind in "US":
            recipe = f"class_names, {key} = numpy.unique({key}, return_inverse=True)"
            mend = f", and the names once: {recipe}"
        raise DataError(f"{key} has dtype {labels.dtype}; expected integers 0..K-1{mend}")
    for extreme in (labels.min(initial=0), labels.max(initial=0)):
        # Each class is present in the training part, so a label cannot exceed its length.
        if not 0 <= extreme <= np.iinfo(np.int32).max:
            raise DataError(f"{key} holds {extreme}; expected integers 0..K-1")


def _check_classes(train: np.ndarray, test: np.ndarray) -> int:
    """The number of classes K; every one of 0..K-1 must be among the training labels."""
    present = np.unique(train)
    if len(present) < 2:
        raise DataError(f"train_labels holds one class only ({present[0]}); expected at least two")
    if present[-1] != len(present) - 1:
        absent = next(k for k, label in enumerate(present) if k != label)
        from_1 = present[0] == 1 and present[-1] == len(present) and (test > 0).all()
        mend = ": train_labels - 1 and test_labels - 1" if from_1 else ""
        raise DataError(
            f"train_labels runs to {present[-1]} but class {absent} has no training "
            f"example; expected labels 0..K-1, each of them present{mend}"
        )
    unseen = np.setdiff1d(test, present)
    if len(unseen):
        raise DataError(
            f"test_labels holds class {unseen[0]}, which has no training example; "
            f"expected 0..{present[-1]}"
        )
    return len(present)


def _npz_class_names(class_names: np.ndarray | None, classes: int) -> tuple[str, ...]:
    if class_names is None:
        return tuple(str(k) for k in range(classes))
    if class_names.dtype.kind != "U" or class_names.shape != (classes,):
        raise DataError(
            f"class_names has dtype {class_names.dtype} and shape {class_names.shape}; "
            f"expected {classes} strings, one for each label"
        )
    return tuple(str(name) for name in class_names)


# ----------------------------------------------------------------------------------- TFDS


def _load_tfds(name: str, tfds_name: str, mirror_ok: bool, path: str | Path | None) -> Dataset:
    """A set that TensorFlow Datasets downloads once and keeps in the folder `path`.

    The decoded arrays are kept beside it, as decoding 60,000 PNGs takes a quarter of a minute.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder(tfds_name, data_dir=path)
    if not builder.is_prepared():
        builder = prepare_tfds(name, tfds_name, path)
    decoded = Path(builder.data_path) / "cnn-depth-decoded.npz"
    arrays = read_arrays(decoded, _NPZ_KEYS)
    if arrays is None:
        arrays = {}
        for part in ("train", "test"):
            arrays[f"{part}_images"], arrays[f"{part}_labels"] = _decode(builder, part)
        with contextlib.suppress(OSError):  # a read-only folder or a full disk: decode again
            write_arrays(decoded, arrays)
    train, test = (
        Examples(arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in ("train", "test")
    )
    return _dataset(name, train, test, builder.info.features["label"].names, mirror_ok)


def prepare_tfds(name: str, tfds_name: str, path: str | Path | None) -> "tfds.core.DatasetBuilder":
    """Download `tfds_name` and write it as array_record. DataError if that cannot be done."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(tfds_name, data_dir=path, file_format="array_record")
    # TFDS imports importlib_resources without declaring it.
    needed = ("tensorflow", "importlib_resources")
    missing = [module for module in needed if importlib.util.find_spec(module) is None]
    if missing:
        raise DataError(
            f"data set {name!r} is not yet prepared in {builder.data_path}; preparing it needs "
            f"{' and '.join(missing)}, and reading it later does not: {INSTALL.format('tfds')}"
        )
    downloads = (Path(builder.data_dir_root) / "downloads").rglob("*.*")
    has_files = any(file.is_file() and ".tmp." not in str(file) for file in downloads)
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not has_files:  # they may be this set's
        _check_reachable(name, builder.url_infos or ())
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # or TensorFlow would take all of JAX's memory
    try:
        with contextlib.redirect_stdout(sys.stderr):  # TFDS prints; stdout is for figures
            builder.download_and_prepare()
    except (OSError, tfds.download.DownloadError) as error:
        raise DataError(
            f"data set {name!r} could not be downloaded to {builder.data_path}: {error}"
        ) from error
    return builder


def _check_reachable(name: str, urls: Iterable[str]) -> None:
    """Raises DataError where none of the servers of a set's files can be reached.

    TFDS asks ten times before it says so, for three minutes. Other errors are left to it.
    """
    hosts = {urllib.parse.urlsplit(url).netloc: url for url in urls if url.startswith("http")}
    reasons = []
    for url in hosts.values():
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=REACHED_WITHIN).close()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if not isinstance(reason, UNREACHED):
                return
            reasons.append(f"{urllib.parse.urlsplit(url).hostname} can't be reached ({reason})")
        else:
            return
    if reasons:
        raise DataError(
            f"data set {name!r} is not here, and can't be downloaded: {', '.join(reasons)}; "
            "prepare it on a machine that reaches that server, and set data.path to the folder"
        )


def _decode(builder: "tfds.core.DatasetBuilder", part: str) -> tuple[np.ndarray, np.ndarray]:
    """(images (N, H, W, C) uint8, labels (N,) int32) of one split."""
    split, features = builder.info.splits[part], builder.info.features
    images = np.empty((split.num_examples, *features["image"].shape), np.uint8)
    labels = np.empty(split.num_examples, np.int32)
    if builder.info.file_format.value == "tfrecord":
        records = itertools.chain.from_iterable(map(_records, split.filepaths))
        examples = map(features.deserialize_example_np, records)
    else:
        examples = iter(builder.as_data_source(part))
    for i, example in zip(range(len(labels)), examples, strict=True):
        images[i], labels[i] = example["image"], example["label"]
    return images, labels


def _records(path: str) -> Iterator[bytes]:
    """The records of a TFRecord file. Raises DataError where it is cut off."""
    content = Path(path).read_bytes()
    for offset, size in record_places(Path(path)):
        yield content[offset : offset + size]


# Name -> TFDS's name, and whether a mirrored image is an image of its class.
_TFDS = {
    "cifar10": ("cifar10", True),
    "cifar100": ("cifar100", True),
    "mnist": ("mnist", False),
    "fashion_mnist": ("fashion_mnist", True),
    "svhn": ("svhn_cropped", False),
}
_LOADERS: dict[str, Callable[[str | Path | None], Dataset]] = {
    "digits": _load_digits,
    "mirrored_digits": _load_mirrored_digits,
    "placed_digits": _load_placed_digits,
    **{name: partial(_load_tfds, name, *options) for name, options in _TFDS.items()},
    "npz": _load_npz,
}

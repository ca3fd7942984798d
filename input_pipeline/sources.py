"""Encoded images with labels, read one by one in any order.

A source knows where each of its images lies (some thirty bytes an image, in NumPy arrays) and
reads it when asked. The same images give the same data set, in the same order and with the same
fingerprint, whether they lie in folders of classes, in ILSVRC's flat validation folder or in its
original tars: sorted by class, then by file name.

    data = open_set("folder", "imagenet")
    content, label = data.train.read(7)
"""

import abc
import array
import contextlib
import csv
import dataclasses
import difflib
import functools
import hashlib
import io
import json
import os
import re
import tarfile
import threading
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from input_pipeline.datasets import _prepare
from input_pipeline.errors import DataError
from input_pipeline.image_files import SUFFIXES, TEST_PARTS, imagenet_classes

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

STREAMED = ("folder", "ilsvrc", "shards")
_TFDS = "tfds:"
TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
SHARDS_FILE = "dataset.json"


class Source(abc.ABC):
    """Encoded images with labels. `labels` is (N,) int32, or None where only reading tells."""

    labels: np.ndarray | None

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, i: int) -> tuple[bytes, int]:
        """(content of image file i, its label). Thread-safe. Raises OSError or DataError."""

    @abc.abstractmethod
    def where(self, i: int) -> str:
        """Where image i lies, for messages."""

    def take(self, indices: np.ndarray) -> "Source":
        """The images at `indices`, in that order."""
        return _Taken(self, np.asarray(indices))


class _Taken(Source):
    def __init__(self, source: Source, indices: np.ndarray):
        if indices.ndim != 1 or (len(indices) and not _within(indices, 0, len(source) - 1)):
            raise DataError(f"indices of images run from 0 to {len(source) - 1}")
        self._source = source
        self._indices: np.ndarray = indices.astype(np.int32)
        self.labels = None if source.labels is None else source.labels[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, i: int) -> tuple[bytes, int]:
        return self._source.read(int(self._indices[i]))

    def where(self, i: int) -> str:
        return self._source.where(int(self._indices[i]))


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """A training part and a test part. `fingerprint` changes when images, names or labels do.

    `mirror_ok` is False where a mirrored image is not an image of its class.
    """

    name: str
    train: Source
    test: Source
    class_names: tuple[str, ...]
    fingerprint: str
    mirror_ok: bool = True
    folders: tuple[str, ...] = ()  # what the classes are called on disk: ImageNet's wnids

    @property
    def classes(self) -> int:
        return len(self.class_names)


def is_streamed(name: str) -> bool:
    """Whether `open_set` knows the name: its images are read when needed, not kept in memory."""
    return name in STREAMED or name.startswith(_TFDS)


def open_set(
    name: str,
    path: str | Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ImageSet:
    """The set of encoded images called `name` in the folder `path`.

    `folder`: PATH/{train,val}/{class}/image files, or ILSVRC's flat val with its labels file;
    `ilsvrc`: PATH with ILSVRC's original train and val tars; `shards`: what `prepare` wrote;
    `tfds:NAME`: a set of TFDS, PATH being its data_dir (default `~/tensorflow_datasets`).
    `on_progress(bytes done, bytes in all)` is called while tars are indexed the first time.
    Raises DataError.
    """
    if not is_streamed(name) or name == _TFDS:
        near = difflib.get_close_matches(name, [*STREAMED, "tfds:NAME"], n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(
            f"unknown set of encoded images {name!r}; {hint}known: {', '.join(STREAMED)}, tfds:NAME"
        )
    if name.startswith(_TFDS):
        return _open_tfds(name, path)
    if path is None:
        raise DataError(f"data set {name!r} needs a path, that of a folder")
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is no folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}; expected {_EXPECTED[name].format(root=root)}")
    if name == "ilsvrc":
        return _open_ilsvrc(root, on_progress)
    if name == "shards":
        from input_pipeline.shards import open_shards

        return open_shards(root)
    return _open_folder(root)


_EXPECTED = {
    "folder": "{root}/train/CLASS/image files and {root}/val/CLASS/image files",
    "ilsvrc": "{root}/" + TRAIN_TAR + " and {root}/" + VAL_TAR,
    "shards": "a folder that `cnn-depth data prepare` wrote, with {root}/" + SHARDS_FILE,
}


def detect(path: str | Path) -> str:
    """The name under which `open_set` reads the folder `path`. Raises DataError."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"{root} {'is no folder' if root.exists() else 'does not exist'}")
    if (root / SHARDS_FILE).is_file():
        return "shards"
    if (root / TRAIN_TAR).is_file() or (root / VAL_TAR).is_file():
        return "ilsvrc"
    if (_data_folder(root) / "train").is_dir():
        return "folder"
    _no_parts(root)  # before TFDS's folders are looked for among a million images
    prepared = _tfds_names(root)
    if len(prepared) == 1:
        return _TFDS + prepared[0]
    if prepared:
        raise DataError(f"{root} holds several sets of TFDS: {', '.join(prepared)}; name one")
    raise DataError(
        f"{root} holds no images that are known here; expected "
        + ", or ".join(text.format(root=root) for text in _EXPECTED.values())
        + ", or TFDS's data_dir"
    )


# -------------------------------------------------------------------------------- listings


@dataclasses.dataclass(frozen=True, eq=False)
class Names:
    """Many short names in few bytes: name i ends at `ends[i]`, where the next one starts."""

    blob: bytes
    ends: np.ndarray

    @classmethod
    def of(cls, names: Iterable[bytes]) -> "Names":
        names = list(names)
        ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        return cls(b"".join(names), _narrow(ends))

    @classmethod
    def join(cls, parts: Sequence["Names"]) -> "Names":
        sizes = [len(part.blob) for part in parts]
        starts = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
        ends = [part.ends + start for part, start in zip(parts, starts, strict=True)]
        return cls(b"".join(part.blob for part in parts), _narrow(np.concatenate(ends)))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> bytes:
        i = range(len(self.ends))[i]
        start = int(self.ends[i - 1]) if i else 0
        return self.blob[start : int(self.ends[i])]


def _narrow(ends: np.ndarray) -> np.ndarray:
    """Offsets in four bytes each where these are enough."""
    return ends.astype(np.uint32) if not len(ends) or ends[-1] < 2**32 else ends


def _within(values: np.ndarray, low: int, high: int) -> bool:
    return not len(values) or bool(values.min() >= low and values.max() <= high)


def _fingerprint(folders: Sequence[str], parts: Iterable[bytes]) -> str:
    """Of the classes and of the two parts' digests, 16 hexadecimal digits after the word images."""
    digest = hashlib.sha256("\0".join(folders).encode("utf-8", "surrogateescape"))
    for part in parts:
        digest.update(part)
    return f"images-{digest.hexdigest()[:16]}"


def _digest(names: Names, sizes: np.ndarray, labels: np.ndarray) -> bytes:
    """Hash of every image's name, size and label, in order."""
    digest = hashlib.sha256(b"%d\0" % len(names))
    for values, kind in ((names.ends, "<u8"), (sizes, "<i8"), (labels, "<i4")):
        digest.update(values.astype(kind).tobytes())
    digest.update(names.blob)
    return digest.digest()


def _class_names(folders: Sequence[str]) -> tuple[str, ...]:
    """What the classes are called: ImageNet's names where all folders are its wnids."""
    wnids, names = imagenet_classes()
    known = dict(zip(wnids, names, strict=True))
    return tuple(known[name] for name in folders) if set(folders) <= set(wnids) else tuple(folders)


def _text(name: bytes) -> str:
    return os.fsdecode(name)


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many others."""
    names = sorted(names)
    more = f" and {len(names) - 5} others" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more


# --------------------------------------------------------------------------------- folders

_IMAGE = tuple(suffix.encode() for suffix in SUFFIXES)


class FolderSource(Source):
    """Image files in `root`: those with label k in `root/folders[k]`."""

    labels: np.ndarray

    def __init__(self, root: Path, folders: Sequence[str], names: Names, labels: np.ndarray):
        self._root, self._names, self.labels = root, names, labels
        self._folders = tuple(folders)
        self._paths = tuple(os.fsencode(root / folder) + b"/" for folder in folders)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, i: int) -> tuple[bytes, int]:
        label = int(self.labels[i])
        with io.FileIO(self._paths[label] + self._names[i]) as stream:  # type: ignore[arg-type]
            return stream.readall(), label

    def where(self, i: int) -> str:
        return f"{self._folders[int(self.labels[i])]}/{_text(self._names[i])}"


def _data_folder(root: Path) -> Path:
    """The folder that holds train and val: in Kaggle's copy of ILSVRC three levels down."""
    for inner in ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"):
        if (root / inner / "train").is_dir():
            return root / inner
    return root


def _open_folder(root: Path) -> ImageSet:
    data = _data_folder(root)
    if not (data / "train").is_dir():
        _no_parts(root)
        raise DataError(
            f"{root}: no train folder; expected {_EXPECTED['folder'].format(root=root)}"
        )
    part = next((part for part in TEST_PARTS if (data / part).is_dir()), None)
    if part is None:
        raise DataError(
            f"{data} has a train folder but none called {', '.join(TEST_PARTS[:-1])} or "
            f"{TEST_PARTS[-1]}; expected {data}/val/CLASS/image files"
        )
    folders = _subfolders(data / "train")
    _check_classes(data / "train", folders)
    names, sizes, labels = _list_classes(data / "train", folders, range(len(folders)))
    empty = np.flatnonzero(np.bincount(labels, minlength=len(folders)) == 0)
    if len(empty):
        raise DataError(
            f"{data / 'train'}: no image files (of type {', '.join(SUFFIXES)}) in the folders of "
            f"{len(empty)} classes: {_some(folders[k] for k in empty)}"
        )
    train = FolderSource(data, [f"train/{name}" for name in folders], names, labels)
    digests = [_digest(names, sizes, labels)]
    inside = _subfolders(data / part)
    if inside:
        odd = set(inside) - set(folders)
        if odd:
            near = difflib.get_close_matches(min(odd), folders, n=1)
            hint = f" (is {near[0]!r} meant by {min(odd)!r}?)" if near else ""
            raise DataError(f"{data / part} has classes that train has not: {_some(odd)}{hint}")
        held = [k for k, name in enumerate(folders) if name in set(inside)]
        names, sizes, labels = _list_classes(data / part, folders, held)
        places = [f"{part}/{name}" for name in folders]
    else:
        files = _list_folder(data / part)
        beside = [data / part, data, root]
        if data.parts[-3:] == ("ILSVRC", "Data", "CLS-LOC"):
            beside.append(data.parents[2])
        names, sizes, labels, _ = _by_label(data / part, files, beside, folders)
        places = [part] * len(folders)
    if not len(names):
        raise DataError(f"{data / part} holds no image files (of type {', '.join(SUFFIXES)})")
    test = FolderSource(data, places, names, labels)
    digests.append(_digest(names, sizes, labels))
    return ImageSet(
        "folder",
        train,
        test,
        _class_names(folders),
        _fingerprint(folders, digests),
        folders=tuple(folders),
    )


def _check_classes(where: Path, folders: Sequence[str]) -> None:
    if len(folders) < 2:
        found = f"one class only ({folders[0]})" if folders else "no folders of classes"
        raise DataError(f"{where} holds {found}; expected at least two, each with its images")


def _no_parts(root: Path) -> None:
    """DataError if `root` is a folder of classes without parts, or of images without classes."""
    inside = _subfolders(root)
    if any(_list_folder(root / name) for name in inside[:20]):
        raise DataError(
            f"{root} holds folders of classes ({_some(inside)}) but no train and val; move some "
            f"images of each class to {root}/val/CLASS/ and the others to {root}/train/CLASS/"
        )
    if _list_folder(root):
        raise DataError(
            f"{root} holds images but no classes; expected {_EXPECTED['folder'].format(root=root)}"
        )


def _subfolders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith((".", "__")) and entry.is_dir()
            )
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from error


def _list_folder(folder: Path) -> list[tuple[bytes, int]]:
    """(name, size) of the image files in a folder, sorted; -1 for a link that leads nowhere."""
    found = []
    try:
        with os.scandir(os.fsencode(folder)) as entries:
            for entry in entries:
                if entry.name.startswith(b".") or not entry.name.lower().endswith(_IMAGE):
                    continue
                if entry.is_file():
                    found.append((entry.name, entry.stat().st_size))
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    found.append((entry.name, -1))  # reading it will say so
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from error
    found.sort()
    return found


def _list_classes(
    part: Path, folders: Sequence[str], classes: Iterable[int]
) -> tuple[Names, np.ndarray, np.ndarray]:
    """(names, sizes (N,) int64, labels (N,) int32) of the images in the folders of `classes`."""

    def one(k: int) -> tuple[Names, np.ndarray]:
        files = _list_folder(part / folders[k])
        return Names.of(name for name, _ in files), np.array([size for _, size in files], np.int64)

    classes = list(classes)
    with ThreadPoolExecutor(8) as pool:  # a network's file system answers several at once
        listed = list(pool.map(one, classes))
    counts = [len(names) for names, _ in listed]
    return (
        Names.join([names for names, _ in listed]),
        np.concatenate([sizes for _, sizes in listed]),
        np.repeat(np.array(classes, np.int32), counts),
    )


# ---------------------------------------------------------------- labels of a flat val folder

_SOLUTION = "LOC_val_solution.csv"
_WNID_LISTS = (
    "imagenet_2012_validation_synset_labels.txt",
    "synset_labels.txt",
    "val_labels.txt",
)
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_DEVKIT = "ILSVRC2012_devkit_t12"
_LARGEST = 64 << 20  # bytes of a labels file


def _by_label(
    where: Path, files: list[tuple[bytes, int]], places: Sequence[Path], folders: Sequence[str]
) -> tuple[Names, np.ndarray, np.ndarray, np.ndarray]:
    """The images of a flat part sorted by label, then by name.

    (names, sizes (N,) int64, labels (N,) int32, order (N,): which of the sorted `files` each is)
    """
    files = sorted(files)
    if not files:
        raise DataError(f"{where} holds no image files (of type {', '.join(SUFFIXES)})")
    wnids, source = _wnids([name for name, _ in files], where, list(dict.fromkeys(places)))
    index = {name: k for k, name in enumerate(folders)}
    odd = set(wnids) - index.keys()
    if odd:
        raise DataError(f"{source}: images of classes that train has not: {_some(odd)}")
    labels = np.array([index[wnid] for wnid in wnids], np.int32)
    order = np.argsort(labels, kind="stable")
    sizes = np.array([size for _, size in files], np.int64)
    return Names.of(files[i][0] for i in order), sizes[order], labels[order], order


def _wnids(names: list[bytes], where: Path, places: Sequence[Path]) -> tuple[list[str], Path]:
    """(the class folder's name for each image, the file that says so)."""
    for place in places:
        if (place / _SOLUTION).is_file():
            return _wnids_of_solution(names, place / _SOLUTION), place / _SOLUTION
    for place in places:
        for file in (place / name for name in _WNID_LISTS):
            if file.is_file():
                return _in_file_order(names, _read_labels(file).split(), file), file
    truth = _devkit_file(places, _TRUTH)
    if truth is None:
        raise DataError(
            f"{where} holds images without folders of classes, and no file with their labels was "
            f"found; expected {_SOLUTION}, {_WNID_LISTS[0]} or {_DEVKIT}.tar.gz in {places[-1]}"
        )
    content, file = truth
    meta = _devkit_file(places, "meta.mat")
    if meta is None:
        raise DataError(
            f"{file} numbers the classes in an order of its own, which {_DEVKIT}'s meta.mat tells; "
            f"expected {_DEVKIT}.tar.gz or {_DEVKIT}/data/meta.mat in {places[-1]}"
        )
    known = _wnid_of_id(*meta)
    ids = content.decode("utf-8", "replace").split()
    odd = [word for word in ids if word not in known]
    if odd:
        raise DataError(f"{file}: {odd[0]!r} is no class; expected a number 1 to 1000 a line")
    return _in_file_order(names, [known[word] for word in ids], file), file


def _read_labels(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(_LARGEST + 1)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    if len(content) > _LARGEST:
        raise DataError(f"{file}: more than {_LARGEST >> 20} MB; expected a line an image")
    return content.decode("utf-8-sig", "replace")


def _wnids_of_solution(names: list[bytes], file: Path) -> list[str]:
    """Kaggle's table: ImageId, then `wnid x y x y` for each box in PredictionString."""
    known: dict[str, str] = {}
    try:
        for row in csv.reader(_read_labels(file).splitlines()):
            if len(row) < 2 or not row[1].split():
                raise DataError(f"{file}: row {row!r}; expected ImageId,PredictionString")
            known[row[0]] = row[1].split()[0]
    except csv.Error as error:
        raise DataError(f"{file}: not a CSV table: {error}") from error
    missing = [name for name in names if _stem(name) not in known]
    if missing:
        raise DataError(f"{file}: no row for the images {_some(map(_stem, missing))}")
    return [known[_stem(name)] for name in names]


def _stem(name: bytes) -> str:
    return _text(name.rpartition(b".")[0])


def _in_file_order(names: list[bytes], words: list[str], file: Path) -> list[str]:
    """Line k of a labels file belongs to ILSVRC2012_val_k, or else to the k-th name of all."""
    numbers = [re.fullmatch(rb"ILSVRC2012_val_(\d{8})\.\w+", name) for name in names]
    if all(numbers) and len(words) >= len(names):
        lines = [int(match[1]) for match in numbers if match]
        if min(lines) >= 1 and max(lines) <= len(words):
            return [words[line - 1] for line in lines]
    if len(words) != len(names):
        raise DataError(f"{file}: {len(words)} labels for {len(names)} images; expected one each")
    return words


def _devkit_file(places: Sequence[Path], name: str) -> tuple[bytes, Path] | None:
    """(content, path for messages) of a file of ILSVRC's development kit, as folder or archive."""
    for place in places:
        for file in (place / name, place / "data" / name, place / _DEVKIT / "data" / name):
            if file.is_file():
                try:
                    return file.read_bytes(), file
                except OSError as error:
                    raise DataError(f"{file}: cannot be read: {error.strerror}") from error
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
    """meta.mat: ILSVRC2012_ID (as written in the labels file) -> wnid."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])
        rows = np.atleast_1d(synsets["synsets"])
        return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in rows}
    except Exception as error:  # whatever scipy meets in a damaged file
        raise DataError(f"{file}: not ILSVRC's table of classes: {error}") from error


# ---------------------------------------------------------------- large files read in place


class OpenFiles:
    """Files of which many threads read parts. The first few hundred stay open."""

    _MOST = 256  # many systems allow a process 1024

    def __init__(self, paths: Sequence[Path]):
        self.paths = tuple(paths)
        self._kept: dict[int, io.FileIO] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return OpenFiles, (self.paths,)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, k: int, offset: int, size: int) -> bytes:
        """`size` bytes of file k. Raises OSError, or DataError where the file ends before."""
        stream = self._kept.get(k)
        if stream is not None:
            return self._read(stream.fileno(), k, offset, size)
        with self._lock:
            if k not in self._kept and len(self._kept) < self._MOST:
                self._kept[k] = io.FileIO(self.paths[k])
        if k in self._kept:
            return self.read(k, offset, size)
        with io.FileIO(self.paths[k]) as stream:
            return self._read(stream.fileno(), k, offset, size)

    def _read(self, descriptor: int, k: int, offset: int, size: int) -> bytes:
        content = os.pread(descriptor, size, offset)
        while len(content) < size:
            more = os.pread(descriptor, size - len(content), offset + len(content))
            if not more:
                raise DataError(
                    f"{self.paths[k]}: ends before byte {offset + size}, up to which an image "
                    "reaches; the file is truncated"
                )
            content += more
        return content

    def __del__(self) -> None:
        for stream in self._kept.values():
            stream.close()


Arrays = dict[str, np.ndarray]


def _cached(kind: str, files: Sequence[Path], build: Callable[[], Arrays]) -> Arrays:
    """What `build` finds in `files`, kept in the user's cache folder until a file changes.

    Walking through a hundred gigabytes takes minutes on a disk.
    """
    where = [str(file.resolve()) for file in files]
    stats = [file.stat() for file in files]
    key = json.dumps(["1", kind, where, [(s.st_size, s.st_mtime_ns) for s in stats]]).encode()
    name = hashlib.sha256("\0".join([kind, *where]).encode("utf-8", "surrogateescape")).hexdigest()
    cache = _cache_folder() / f"{name[:32]}.npz"
    try:
        with cache.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
        if found.pop("key").tobytes() == hashlib.sha256(key).digest() and _sound(found, stats):
            return found
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        pass  # there is none, or it is damaged
    found = build()
    part = cache.with_name(f"{cache.name}.{uuid.uuid4().hex}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as out:
            digest = np.frombuffer(hashlib.sha256(key).digest(), np.uint8)
            np.savez(out, allow_pickle=False, key=digest, **found)
        part.replace(cache)
    except OSError:  # no home, or a full disk: the next start walks again
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return found


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "cnn-depth" / "index"


def _sound(found: Arrays, stats: Sequence[os.stat_result]) -> bool:
    """Whether an index read from the cache cannot lead outside its files.

    `counts` (K,) is how many of the images (N,) lie in each class's tar, or in each file; `ends`
    (N,) divides `names` (bytes).
    """
    try:
        counts, offsets, sizes = found["counts"], found["offsets"], found["sizes"]
        ends, names, place = found["ends"], found["names"], found["place"]
    except KeyError:
        return False
    wanted = {"counts": "<i8", "offsets": "<i8", "sizes": "<u4", "place": "<u2", "names": "u1"}
    if any(found[key].dtype != dtype or found[key].ndim != 1 for key, dtype in wanted.items()):
        return False
    if not len(offsets) == len(sizes) == len(place) == counts.sum() or not _within(
        counts, 0, 2**40
    ):
        return False
    if not _within(place, 0, len(stats) - 1) or not _within(offsets, 0, 2**62):
        return False
    if (offsets + sizes > np.array([s.st_size for s in stats], np.int64)[place]).any():
        return False
    if not len(ends):
        return not len(names)
    steps = np.diff(ends.astype(np.int64), prepend=0)
    return len(ends) == len(offsets) and bool((steps >= 0).all()) and int(ends[-1]) == len(names)


# ---------------------------------------------------------------------------- ILSVRC's tars


class TarSource(Source):
    """Images in an uncompressed tar, or in the tars in it, read without unpacking them."""

    labels: np.ndarray

    def __init__(
        self,
        tar: OpenFiles,
        inner: Sequence[str],
        names: Names,
        offsets: np.ndarray,
        sizes: np.ndarray,
        labels: np.ndarray,
    ):
        self._tar, self._inner, self._names = tar, tuple(inner), names
        self._offsets, self._sizes, self.labels = offsets, sizes, labels

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> tuple[bytes, int]:
        content = self._tar.read(0, int(self._offsets[i]), int(self._sizes[i]))
        return content, int(self.labels[i])

    def where(self, i: int) -> str:
        inner = f"{self._inner[int(self.labels[i])]}.tar: " if self._inner else ""
        return f"{self._tar.paths[0].name}: {inner}{_text(self._names[i])}"


def _open_ilsvrc(root: Path, on_progress: Callable[[int, int], None] | None) -> ImageSet:
    for name in (TRAIN_TAR, VAL_TAR):
        if not (root / name).is_file():
            raise DataError(f"{root / name} does not exist; expected ILSVRC-2012's original tars")
    progress = _Progress(on_progress, [root / TRAIN_TAR, root / VAL_TAR])
    train_file, val_file = root / TRAIN_TAR, root / VAL_TAR
    with _reading(train_file):
        found = _cached("tar of tars", [train_file], lambda: _walk_nested(train_file, progress))
    folders = [str(name) for name in found["folders"]]
    _check_classes(train_file, folders)
    names = Names(found["names"].tobytes(), found["ends"])
    labels: np.ndarray = np.repeat(np.arange(len(folders), dtype=np.int32), found["counts"])
    empty = np.flatnonzero(found["counts"] == 0)
    if len(empty):
        none = _some(folders[k] for k in empty)
        raise DataError(f"{train_file}: no images in the tars of {none}")
    train = TarSource(
        OpenFiles([train_file]), folders, names, found["offsets"], found["sizes"], labels
    )
    digests = [_digest(names, found["sizes"], labels)]
    with _reading(val_file):
        found = _cached("tar of images", [val_file], lambda: _walk_flat(val_file, progress))
    names = Names(found["names"].tobytes(), found["ends"])
    files = [(names[i], int(size)) for i, size in enumerate(found["sizes"])]
    names, sizes, labels, order = _by_label(val_file, files, [root], folders)
    test = TarSource(
        OpenFiles([val_file]), (), names, found["offsets"][order], found["sizes"][order], labels
    )
    digests.append(_digest(names, sizes, labels))
    return ImageSet(
        "ilsvrc",
        train,
        test,
        _class_names(folders),
        _fingerprint(folders, digests),
        folders=tuple(folders),
    )


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


class _Progress:
    """Calls `on_progress(bytes done, bytes in all)` while files are walked through."""

    def __init__(self, on_progress: Callable[[int, int], None] | None, files: Sequence[Path]):
        self._call = on_progress
        self._done, self._all = 0, sum(file.stat().st_size for file in files)

    def add(self, size: int) -> None:
        self._done += size
        if self._call is not None:
            self._call(self._done, self._all)


def _walk_nested(file: Path, progress: _Progress) -> Arrays:
    """The images of a tar whose members are tars, one a class, called after it."""
    listed: dict[str, Arrays] = {}
    with io.FileIO(file) as stream:
        fd, stop = stream.fileno(), os.fstat(stream.fileno()).st_size
        for name, offset, size in _members(fd, 0, stop, str(file)):
            if not name.endswith(b".tar"):
                raise DataError(
                    f"{file}: holds {_text(name)!r}; expected one tar a class, n01440764.tar"
                )
            where = f"{file}: {_text(name)}"
            images = [m for m in _members(fd, offset, offset + size, where) if _is_image(m[0])]
            listed[_text(name[:-4])] = _tar_arrays(images)
            progress.add(size)
    folders = sorted(listed)
    found = [listed[name] for name in folders]
    if not found:
        return _tar_arrays([]) | {"folders": np.array([], "U1")}
    names = Names.join([Names(one["names"].tobytes(), one["ends"]) for one in found])
    joined = {key: np.concatenate([one[key] for one in found]) for key in found[0]}
    return joined | {"ends": names.ends, "folders": np.array(folders, "U")}


def _walk_flat(file: Path, progress: _Progress) -> Arrays:
    with io.FileIO(file) as stream:
        fd, stop = stream.fileno(), os.fstat(stream.fileno()).st_size
        images = []
        for member in _members(fd, 0, stop, str(file)):
            if _is_image(member[0]):
                images.append(member)
                progress.add(member[2])
    return _tar_arrays(images)


def _is_image(name: bytes) -> bool:
    return name.lower().endswith(_IMAGE) and not name.startswith(b".")


def _tar_arrays(images: list[tuple[bytes, int, int]]) -> Arrays:
    """(name, offset, size) of images as arrays, in the order of the names."""
    images = sorted(images)
    names = Names.of(name for name, _, _ in images)
    return {
        "counts": np.array([len(images)], np.int64),
        "names": np.frombuffer(names.blob, np.uint8),
        "ends": names.ends,
        "offsets": np.array([offset for _, offset, _ in images], np.int64),
        "sizes": np.array([size for _, _, size in images], np.uint32),
        "place": np.zeros(len(images), np.uint16),
    }


def _members(fd: int, start: int, stop: int, where: str) -> Iterator[tuple[bytes, int, int]]:
    """(name without folders, offset, size) of each file in the tar at bytes `start` to `stop`.

    Only headers are read: ustar, GNU's long names, pax. Raises DataError where the tar is damaged
    or cut off.
    """
    at, name, length = start, None, None
    while True:
        header = os.pread(fd, 512, at) if at + 512 <= stop else b""
        if len(header) < 512:
            raise DataError(f"{where}: no end after byte {at - start}; the tar is truncated")
        if header[156:157] == b"\0" and not any(header):
            return
        try:
            stated = int(header[148:156].rstrip(b"\0 ").strip() or b"0", 8)
            size = _tar_number(header[124:136])
        except ValueError:
            stated, size = -1, 0
        if stated != sum(header) - sum(header[148:156]) + 8 * 32 or size < 0:
            raise DataError(f"{where}: no tar header at byte {at - start}; the tar is damaged")
        kind, data = header[156:157], at + 512
        if kind in b"LKxg" and size > 1 << 20:
            raise DataError(f"{where}: a name of {size} bytes at byte {at - start}; it is damaged")
        if kind == b"L":
            name = os.pread(fd, size, data).rstrip(b"\0")
        elif kind == b"x":
            pax = _pax(os.pread(fd, size, data))
            name = pax.get(b"path", name)
            length = int(pax[b"size"]) if pax.get(b"size", b"").isdigit() else length
        if kind in b"LKxg":
            at = data + -(-size // 512) * 512
            continue
        size = size if length is None else length
        if kind not in b"\x0007":  # folders and links have no content, whatever their size says
            size = 0 if kind in b"123456" else size
        else:
            if name is None:
                name = header[:100].split(b"\0")[0]
            if size >= 1 << 32 and _is_image(name):
                raise DataError(f"{where}: {_text(name)!r} has {size} bytes, which is no image")
            yield name.rpartition(b"/")[2], data, size
        at, name, length = data + -(-size // 512) * 512, None, None


def _tar_number(field: bytes) -> int:
    """Octal digits, or from 8 GB on a binary number behind a set first bit."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:])
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _pax(records: bytes) -> dict[bytes, bytes]:
    """Lines `length key=value`, the length being that of the whole line."""
    found = {}
    while match := re.match(rb"(\d{1,7}) ([^=]+)=", records):
        found[match[2]] = records[match.end() : int(match[1]) - 1]
        if int(match[1]) <= match.end():
            break
        records = records[int(match[1]) :]
    return found


# ------------------------------------------------------------------------------------ TFDS

# Mirrored, these are not images of their class.
_NOT_MIRRORED = ("mnist", "emnist", "kmnist", "mnist_corrupted", "svhn_cropped", "omniglot")


def _open_tfds(name: str, path: str | Path | None) -> ImageSet:
    """A set of TFDS in its encoded form; TensorFlow is needed only to prepare it."""
    import tensorflow_datasets as tfds

    folder = None if path is None else Path(path).expanduser()
    tfds_name = name.removeprefix(_TFDS)
    try:
        if folder is not None and (folder / "dataset_info.json").is_file():
            builder = tfds.builder_from_directory(folder)
            if tfds_name.split("/")[0] != builder.info.name:
                raise DataError(f"{folder} holds 'tfds:{builder.info.name}', not {name!r}")
        else:
            builder = tfds.builder(tfds_name, data_dir=folder)
        _check_features(name, builder.info.features)
        if not builder.is_prepared():
            builder = _prepare(name, tfds_name, folder)
    except DataError:
        raise
    except tfds.core.registered.DatasetNotFoundError as error:
        near = difflib.get_close_matches(tfds_name, tfds.list_builders(), n=1)
        hint = f"; did you mean 'tfds:{near[0]}'?" if near else ""
        raise DataError(f"TFDS knows no data set {tfds_name!r}{hint}") from error
    except Exception as error:  # what TFDS says, as of files that are to be fetched by hand
        hint = "\nData set 'ilsvrc' reads these tars as they are." if "ILSVRC" in str(error) else ""
        raise DataError(f"data set {name!r} cannot be prepared: {error}{hint}") from error
    info = builder.info
    part = next((part for part in TEST_PARTS if part in info.splits), None)
    if part is None or "train" not in info.splits:
        raise DataError(
            f"data set {name!r} has the parts {', '.join(info.splits)}; expected train, and "
            "validation or test"
        )
    label = info.features["label"]
    folders = tuple(label.names or map(str, range(label.num_classes)))
    train, test = (_tfds_source(builder, split, len(folders)) for split in ("train", part))
    digest = hashlib.sha256()
    for split in ("train", part):
        stated = info.splits[split]
        digest.update(json.dumps([split, stated.shard_lengths, stated.num_bytes]).encode())
    return ImageSet(
        name,
        train,
        test,
        _class_names(folders),
        f"{info.full_name.replace('/', '-')}-{digest.hexdigest()[:16]}",
        mirror_ok=info.name not in _NOT_MIRRORED,
        folders=folders,
    )


def _check_features(name: str, features: "tfds.features.FeaturesDict") -> None:
    import tensorflow_datasets as tfds

    for key, kind in (("image", tfds.features.Image), ("label", tfds.features.ClassLabel)):
        if key not in features or not isinstance(features[key], kind):
            has = ", ".join(sorted(features.keys()))
            raise DataError(
                f"data set {name!r} has the features {has}; expected an 'image' and a 'label' "
                "that is a class"
            )


def _tfds_names(root: Path) -> list[str]:
    """The sets of TFDS in a data_dir, or the one whose folder this is."""
    own = root / "dataset_info.json"
    if own.is_file():
        try:
            return [str(json.loads(own.read_text(encoding="utf-8"))["name"])]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{own}: not TFDS's description of a data set: {error}") from error
    found = [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]
    return sorted({file.parent.parent.relative_to(root).as_posix() for file in found})


def _tfds_source(builder: "tfds.core.DatasetBuilder", split: str, classes: int) -> Source:
    info = builder.info.splits[split]
    where = f"{builder.info.name}/{split}"
    file_format = builder.info.file_format.value
    if file_format == "array_record":
        return ArrayRecordSource(builder.data_path, split, where, classes, info.num_examples)
    if file_format != "tfrecord":
        raise DataError(
            f"{builder.data_path}: files of type {file_format}; expected array_record or tfrecord"
        )
    files = [Path(file) for file in info.filepaths]
    with _reading(Path(builder.data_path)):
        found = _cached("tfrecords", files, lambda: _walk_records(files))
    if found["counts"].tolist() != list(info.shard_lengths):
        raise DataError(
            f"{builder.data_path}: {found['counts'].sum()} records in the files of {split!r}, and "
            f"{info.num_examples} examples by its description; prepare the set again"
        )
    return RecordSource(OpenFiles(files), found, where, classes)


class _TfdsSource(Source):
    """Examples as TFDS writes them: protocol buffers with an encoded image and a label."""

    labels = None

    def __init__(self, where: str, classes: int):
        self._where, self._classes = where, classes

    @abc.abstractmethod
    def record(self, i: int) -> bytes: ...

    def read(self, i: int) -> tuple[bytes, int]:
        record = self.record(i)
        try:
            features = example_features(record)
            start, stop = _span(features[b"image"])
            image, label = record[start:stop], features[b"label"]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"{self.where(i)}: no image and label in the record") from error
        if not isinstance(label, int) or not 0 <= label < self._classes:
            raise DataError(f"{self.where(i)}: label {label}; expected 0 to {self._classes - 1}")
        return image, label

    def where(self, i: int) -> str:
        return f"{self._where}: example {i}"


class ArrayRecordSource(_TfdsSource):
    def __init__(self, folder: str | Path, split: str, where: str, classes: int, count: int):
        super().__init__(where, classes)
        self._arguments = (folder, split, where, classes, count)
        self._count = count

    def __reduce__(self) -> tuple:
        return ArrayRecordSource, self._arguments

    def __len__(self) -> int:
        return self._count

    @functools.cached_property
    def _records(self) -> Sequence[bytes]:
        import tensorflow_datasets as tfds

        folder, split = self._arguments[:2]
        return tfds.builder_from_directory(folder).as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )

    def record(self, i: int) -> bytes:
        try:
            return bytes(self._records[i])
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{self.where(i)}: cannot be read: {error}") from error


class RecordSource(_TfdsSource):
    """Examples in TFRecord files."""

    def __init__(self, files: OpenFiles, index: Arrays, where: str, classes: int):
        super().__init__(where, classes)
        self._files = files
        self._file, self._offsets, self._sizes = index["place"], index["offsets"], index["sizes"]

    def __len__(self) -> int:
        return len(self._offsets)

    def record(self, i: int) -> bytes:
        return self._files.read(int(self._file[i]), int(self._offsets[i]), int(self._sizes[i]))


def _walk_records(files: Sequence[Path]) -> Arrays:
    """Where the records lie: each is length (8 bytes), checksum (4), data, checksum (4)."""
    counts, offsets, sizes = [], array.array("q"), array.array("I")
    for file in files:
        before, at = len(offsets), 0
        with io.FileIO(file) as stream:
            fd, stop = stream.fileno(), os.fstat(stream.fileno()).st_size
            while at < stop:
                header = os.pread(fd, 12, at)
                length = int.from_bytes(header[:8], "little")
                if len(header) < 12 or length >= 1 << 32 or at + 16 + length > stop:
                    raise DataError(f"{file}: no whole record at byte {at}; the file is truncated")
                offsets.append(at + 12)
                sizes.append(length)
                at += 16 + length
        counts.append(len(offsets) - before)
    return {
        "counts": np.array(counts, np.int64),
        "names": np.empty(0, np.uint8),
        "ends": np.empty(0, np.uint32),
        "offsets": np.array(offsets, np.int64),
        "sizes": np.array(sizes, np.uint32),
        "place": np.repeat(np.arange(len(files), dtype=np.uint16), counts),
    }


def example_features(record: bytes) -> dict[bytes, tuple[int, int] | int]:
    """The features of a serialised tf.train.Example that hold one value.

    Bytes are given as (start, stop) in the record, integers as such. Raises ValueError.
    """
    found: dict[bytes, tuple[int, int] | int] = {}
    for features in _of_number(1, record, 0, len(record)):
        for entry in _of_number(1, record, *_span(features)):
            pair = dict(_fields(record, *_span(entry)))
            start, stop = _span(pair[1])
            for kind, values in _fields(record, *_span(pair[2])):
                held = _of_number(1, record, *_span(values))
                if kind == 3 and len(held) == 1 and isinstance(held[0], tuple):  # packed
                    value, end = _varint(record, held[0][0])
                    held = [value] if end == held[0][1] else []
                if kind in (1, 3) and len(held) == 1:
                    found[record[start:stop]] = held[0]
    return found


def _of_number(number: int, record: bytes, at: int, stop: int) -> list[tuple[int, int] | int]:
    return [value for one, value in _fields(record, at, stop) if one == number]


def _span(value: tuple[int, int] | int) -> tuple[int, int]:
    if isinstance(value, int):
        raise ValueError("a number where bytes are expected")
    return value


def _fields(record: bytes, at: int, stop: int) -> Iterator[tuple[int, tuple[int, int] | int]]:
    """(number, value) of each field of a protocol buffer; (start, stop) where it has a length."""
    while at < stop:
        tag, at = _varint(record, at)
        if tag & 7 == 0:
            value, at = _varint(record, at)
            yield tag >> 3, value
        elif tag & 7 in (1, 2, 5):
            if tag & 7 == 2:
                length, at = _varint(record, at)
            else:
                length = 8 if tag & 7 == 1 else 4
            if at + length > stop:
                raise ValueError("a field longer than its message")
            yield tag >> 3, (at, at + length)
            at += length
        else:
            raise ValueError("not a protocol buffer")


def _varint(record: bytes, at: int) -> tuple[int, int]:
    """(value, where the next byte lies)."""
    value = shift = 0
    while shift < 64:
        if at >= len(record):
            raise ValueError("cut off")
        byte = record[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("not a number")

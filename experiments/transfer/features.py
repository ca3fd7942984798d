"""Features of every image of a set, computed once by a run's network and kept beside the run.

A pass of a protocol gives each image one vector: a layer's output, averaged over its map, over the
pass's views and, with mirrors, over these. Whole images are shown to the fully convolutional
network (VGG, section B.1 of arXiv:1409.1556). A pass is two files in the run's folder,

    features/LAYER-PASS-SET.npy     (n, d) float32 or float16, which can be mapped into memory
    features/LAYER-PASS-SET.npz     what its rows are: COLUMNS below, and `about` as JSON text

A pass that is stopped leaves the chunks that it has, and goes on from them.
"""

import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import cnn_arch
from cnn_arch import layer_outputs
from experiments import data as data_lib
from experiments.config import ConfigError, builder_options
from experiments.data import foreign, preprocessing
from experiments.runs import processes, runs
from experiments.testing import evaluate, protocols
from experiments.testing.tester import Features as Batch
from experiments.testing.tester import Progress, Tester
from input_pipeline import DataError, collections, crops
from input_pipeline.sources.collection import PARTS, Collection
from input_pipeline.whole_files import PARTIAL, read_arrays, write_arrays

FOLDER = "features"
CHUNK_SECONDS, CHUNK_BYTES = 30.0, 256 * 2**20  # of an unfinished pass: limits of a chunk
COLUMNS = ("ids", "labels", "parts", "enlarged")  # of the .npz, with `targets` where there are any
PROTOCOLS = ("center", "ten_crop", "dense", "multi_crop")


@dataclass(frozen=True)
class FeatureRequest:
    """Which features of the images of a set are asked for."""

    layer: str = ""  # as in `layer_outputs`; '': what the last fully connected layer sees
    protocol: str = "center"  # of PROTOCOLS; this, scales and flip as in `protocols.resolve`
    scales: str | None = None
    flip: bool = False
    dtype: str = "float32"  # of the values in the file


@dataclass(frozen=True)
class Set:
    """The images that the rows of features belong to: n images of K classes."""

    name: str
    fingerprint: str
    class_names: tuple[str, ...]
    ids: np.ndarray  # (n,) int32, the images' places in their `Collection`
    labels: np.ndarray  # (n,) int32
    parts: np.ndarray  # (n,) uint8, codes of `collection.PARTS`
    targets: np.ndarray | None  # (n, K) int8 where images may be of several classes
    background: int | None  # as in `Collection`
    left_out: int  # images that can't be used

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class PassFeatures:
    """The features of one pass."""

    run: str
    layer: str
    depth: int  # of the layer, in layers with weights
    name: str  # of the pass
    mirrored: bool
    file: Path  # of the values
    values: np.ndarray  # (n, d), mapped from the file
    of: Set
    enlarged: int  # images that were smaller than the view, and were enlarged
    seconds: float  # spent on computing them, over all starts
    reused: bool  # whether nothing had to be computed


def combined(passes: Sequence[PassFeatures], how: str = "mean", *, l2: bool = False) -> np.ndarray:
    """The features of several passes over the same images as one array, (n, d) float32; those of
    one pass as they are in its file.

    how: `mean` averages passes, `concatenate` puts them side by side (VGG, section B.1, calls this
    pooling and stacking). l2: whether each image's vector is divided by its Euclidean length; a
    vector of zeros stays one.

    Raises DataError where passes are not of the same images or, to be averaged, layers.
    """
    first = passes[0]
    same_images(passes)
    for features in passes[1:]:
        if how == "mean" and features.values.shape != first.values.shape:
            raise DataError(
                f"{first.file} and {features.file} have {first.values.shape[1]} and "
                f"{features.values.shape[1]} features an image, and can't be averaged"
            )
    if len(passes) == 1 and not l2:
        return first.values  # in the file, until rows of it are looked at
    arrays = [np.asarray(features.values, np.float32) for features in passes]
    if how == "concatenate":
        x = np.concatenate(arrays, axis=1)
    else:
        x = functools.reduce(np.add, arrays) / np.float32(len(arrays))
    return unit_length(x) if l2 else x


def same_images(passes: Sequence[PassFeatures]) -> None:
    """Raises DataError where passes are not of the same images, or left out different ones."""
    first, *others = passes
    for features in others:
        alike = features.of.fingerprint == first.of.fingerprint
        if not alike or not np.array_equal(features.of.ids, first.of.ids):
            raise DataError(f"{first.file} and {features.file} are not of the same images")


def unit_length(x: np.ndarray) -> np.ndarray:
    """Rows (n, d) divided by their Euclidean lengths; rows of zeros stay zeros."""
    lengths = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
    scales = np.where(lengths > 0, 1 / np.where(lengths > 0, lengths, 1), 0)
    return (x * scales[:, None]).astype(np.float32)


def write(
    file: Path, passes: Sequence[PassFeatures], how: str = "mean", *, l2: bool = False
) -> None:
    """Writes the features of `combined` as an .npz, with the images that their rows belong to.

    Raises DataError as `combined` does, and RunError where the file can't be written.
    """
    of = passes[0].of
    arrays = {
        "features": np.asarray(combined(passes, how, l2=l2), np.float32),
        "ids": of.ids,
        "labels": of.labels,
        "parts": np.array(PARTS)[of.parts],
        "classes": np.array(of.class_names),
    }
    if of.targets is not None:
        arrays["targets"] = of.targets
    try:
        write_arrays(file, arrays)
    except OSError as error:
        raise runs.unwritten(file, error) from error


class Extractor(evaluate.Subject):
    """A run whose features are asked for, on all images of a set.

    data: as `collections.open_collection` takes it; the run's own images by default. which: as in
    `EvaluationSettings`. hearers: as of `evaluate.Subject`. Raises what `evaluate.Subject` does.
    """

    def __init__(
        self, run: runs.Run, mesh: Mesh, data: str | None, which: str = "last", **hearers: Any
    ):
        super().__init__(run, mesh, evaluate.EvaluationSettings(which=which, data=data), **hearers)
        self.own_images = data is None
        if data is None:
            self.settings = evaluate.EvaluationSettings(which=which, data=own_set(run))

    @cached_property
    def collection(self) -> Collection:
        """All images of the set."""
        with self.reading(str(self.settings.data)) as on_read:
            if self.own_images:
                collection = own_images(self.run, on_read)
            else:
                collection = collections.open_collection(str(self.settings.data), on_read)
        for note in collection.images.notes:
            self.on_note(note)
        return collection

    @cached_property
    def data(self) -> data_lib.TestData:
        prep = preprocessing.load(self.run.folder / preprocessing.FILE)
        on_bad = functools.cache(self.on_bad)
        return foreign.open_all(self.collection, prep, self.config, on_bad)

    @cached_property
    def bare(self) -> cnn_arch.Network:
        """The network without its values."""
        prep = preprocessing.load(self.run.folder / preprocessing.FILE)
        return cnn_arch.abstract(
            self.config.model.arch,
            image_size=self.config.data.image_size,
            classes=len(prep.class_names),
            channels=prep.channels,
            **builder_options(self.config.model),
        )

    def layer(self, name: str) -> str:
        """The name of a layer, by default of the one that the last fully connected layer sees.

        Raises ArchitectureError for an unknown layer.
        """
        name = name or layer_outputs.classifier_input(self.bare)
        layer_outputs.check(self.bare, name)
        return name

    def features(self, request: FeatureRequest) -> list[PassFeatures]:
        """The features of each pass of a protocol; those that are kept are not computed again.

        With several processes, each computes a share on its own devices.

        Raises RunLocked where another command computes them, ConfigError for an impossible
        protocol or scales, ArchitectureError for an unknown layer, DataError where no image can be
        used, and RunError where a file can't be written.
        """
        if request.protocol not in PROTOCOLS:
            raise ConfigError(
                f"--protocol {request.protocol}: features are taken by {', '.join(PROTOCOLS)}"
            )
        layer = self.layer(request.layer)
        passes = protocols.resolve(request.protocol, self.config, request.scales, flip=request.flip)
        return [self._pass(part, layer, request.dtype) for part in passes]

    def is_kept(self, request: FeatureRequest) -> bool:
        """Whether `features` has nothing to compute. Raises what it does before it computes."""
        layer = self.layer(request.layer)
        passes = protocols.resolve(request.protocol, self.config, request.scales, flip=request.flip)
        return all(self._is_computed(part, layer, request.dtype) for part in passes)

    def _is_computed(self, part: protocols.Pass, layer: str, dtype: str) -> bool:
        about = self.about(part) | {"layer": layer, "dtype": dtype}
        return bool(processes.from_first(_about(self._file(part, layer)).items() >= about.items()))

    def _pass(self, part: protocols.Pass, layer: str, dtype: str) -> PassFeatures:
        about = self.about(part) | {"layer": layer, "dtype": dtype}
        file = self._file(part, layer)
        if self._is_computed(part, layer, dtype):
            return read(file)
        try:
            file.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise runs.unwritten(file, error) from error
        lock = self.run.lock(name=f"{FOLDER}/{file.stem}.lock")
        with lock if processes.first() else nullcontext():
            self._compute(part, layer, dtype, file, about)
        return read(file, reused=False)

    def about(self, part: protocols.Pass) -> dict[str, Any]:
        return {
            "run": self.run.id,
            "step": self.step,
            "pass": part.name,
            "rounding": crops.ROUNDING,
            "data": self.collection.fingerprint,
            "columns": self._columns(),
        }

    def _columns(self) -> str:
        """A digest of the columns that are kept beside the features."""
        c = self.collection
        digest = hashlib.sha256(json.dumps([c.name, c.class_names, c.background]).encode())
        for array in (c.parts, c.targets):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def _file(self, part: protocols.Pass, layer: str) -> Path:
        test = self.settings.file(self.run, part).stem.removeprefix("other-")
        return self.run.folder / FOLDER / f"{re.sub('[^A-Za-z0-9]+', '.', layer)}-{test}.npy"

    def _compute(
        self, part: protocols.Pass, layer: str, dtype: str, file: Path, about: dict[str, Any]
    ) -> None:
        tester, params, stats = self.network
        data, n = self.data, len(self.collection)
        view = part.view(data.crop, square=data.square, warp=data.preprocessing.warp)
        mirror = part.mirror and data.preprocessing.mirror_ok
        if part.kind == "center" and part.mirror and not mirror:
            raise ConfigError(f"--flip: a mirrored image of {data.name} is not one of its class")
        label = f"{self.run.id} {layer} {part.name}"
        if not isinstance(data, data_lib.ResidentTests):
            with self.bar(f"{label}: sizes of images") as on_progress:
                data.prepare("test", view, on_progress)
        chunks = _Chunks(file, about, dtype)
        with self.bar(label) as on_progress:
            _collect(chunks, tester, params, stats, view, layer, mirror, n, on_progress)
        processes.meet("all hosts have computed their features")
        if processes.first():
            self._keep(chunks, file, about | {"mirror": mirror}, layer)
            chunks.delete()
        processes.meet("the features are kept")
        if not processes.wait_for(lambda: _about(file) or None):
            raise DataError(f"none of the {n} images of {data.name} can be used")

    def _keep(self, chunks: "_Chunks", file: Path, about: dict[str, Any], layer: str) -> None:
        """Writes both files, if any image could be used. The file of the values is first, since
        the other one says that they are whole."""
        columns, c = chunks.columns(), self.collection
        ids = columns["ids"]
        if not len(ids):
            return
        columns["parts"] = c.parts[ids]
        if c.targets is not None:
            columns["targets"] = c.targets[ids]
        description = about | {
            "set": c.name,
            "class_names": c.class_names,
            "background": c.background,
            "left_out": len(c) - len(ids),
            "depth": layer_outputs.check(self.bare, layer).depth,
            "seconds": round(float(columns.pop("seconds")), 3),
        }
        columns["about"] = np.array(json.dumps(description))
        try:
            file.with_suffix(".npz").unlink(missing_ok=True)
            chunks.write_values(file, ids)
            write_arrays(file.with_suffix(".npz"), columns)
        except OSError as error:
            raise runs.unwritten(file, error) from error


def own_set(run: runs.Run) -> str:
    """The path or name of the set that a run was trained on.

    Raises RunError for an imported run.
    """
    if run.imported:
        raise runs.RunError(
            f"{run.id} was imported and has no data of its own; name images with --data"
        )
    d = run.config().data
    return d.path or d.name


def own_images(run: runs.Run, on_read: Any = None) -> Collection:
    """All images of the set that a run was trained on, in its own parts."""
    d = run.config().data
    return collections.own_collection(d.name, d.path, d.split, on_read)


def read(file: Path, *, reused: bool = True) -> PassFeatures:
    """The features in a file that `Extractor` wrote. Raises DataError where they are not whole."""
    columns = read_arrays(file.with_suffix(".npz"))
    try:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} can't be read as features: {error}") from error
    about = _about(file)
    if columns is None or not about or not {*COLUMNS} <= columns.keys():
        raise DataError(f"{file.with_suffix('.npz')} is not there, or is not whole")
    n, classes = len(columns["ids"]), len(about["class_names"])
    targets = columns.get("targets")
    shapes = [columns[name].shape for name in COLUMNS] + [(len(values),)]
    if (
        values.ndim != 2
        or {*shapes} != {(n,)}
        or (targets is not None and targets.shape != (n, classes))
    ):
        raise DataError(f"{file} and {file.with_suffix('.npz')} are not of the same images")
    of = Set(
        name=about["set"],
        fingerprint=about["data"],
        class_names=tuple(about["class_names"]),
        **{name: columns[name] for name in ("ids", "labels", "parts")},
        targets=targets,
        background=about["background"],
        left_out=about["left_out"],
    )
    return PassFeatures(
        run=about["run"],
        layer=about["layer"],
        depth=about["depth"],
        name=about["pass"],
        mirrored=about["mirror"],
        file=file,
        values=values,
        of=of,
        enlarged=int(columns["enlarged"].sum()),
        seconds=about["seconds"],
        reused=reused,
    )


def _about(file: Path) -> dict[str, Any]:
    """The description of a file of features; {} where the file is missing or not whole."""
    arrays = read_arrays(file.with_suffix(".npz"), ("about",))
    if arrays is None or not file.is_file():
        return {}
    try:
        about = json.loads(str(arrays["about"]))
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _collect(
    chunks: "_Chunks",
    tester: Tester,
    params: Any,
    stats: Any,
    view: crops.TestView,
    layer: str,
    mirror: bool,
    n: int,
    on_progress: Progress,
) -> None:
    """Adds the features of this process's share of the images that no chunk has yet."""
    rest = np.setdiff1d(np.arange(n), chunks.ids())
    processes.meet("all hosts have read what there is")
    places = rest[jax.process_index() :: jax.process_count()]
    before = n - len(rest)
    batches = tester.features(params, stats, "test", view, layer, mirror=mirror, places=places)
    computed = 0
    try:
        for batch in batches:
            chunks.add(batch)
            computed += len(batch.ids)
            on_progress(before + computed, before + len(places))
    finally:
        batches.close()  # type: ignore[attr-defined]
        chunks.save()


class _Chunks:
    """The rows that all processes have computed of an unfinished pass, in files."""

    def __init__(self, file: Path, about: dict[str, Any], dtype: str):
        self.dtype = np.dtype(dtype)
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = file.parent
        self._file_prefix = f"chunk-{file.stem}-"  # of the chunks of any pass for this file
        self._pass_prefix = f"{self._file_prefix}{key}-"
        self._batches: list[Batch] = []
        self._since = time.monotonic()

    def _files(self) -> list[Path]:
        # Names of sets may hold what `glob` takes for a pattern.
        return sorted(
            f
            for f in self.folder.iterdir()
            if f.name.startswith(self._pass_prefix) and f.suffix == ".npz"
        )

    def _read(self, *names: str) -> Iterator[dict[str, np.ndarray]]:
        for file in self._files():
            arrays = read_arrays(file, names)
            if arrays is not None:
                yield arrays

    def ids(self) -> np.ndarray:
        """The ids of the images that chunks have."""
        ids = [chunk["ids"] for chunk in self._read("ids")]
        return np.concatenate([np.zeros(0, np.int32), *ids])

    def add(self, batch: Batch) -> None:
        """Adds images that are not there yet. Raises DataError where float16 can't hold them."""
        with np.errstate(over="ignore"):
            values: np.ndarray = batch.values.astype(self.dtype)
        if not np.isfinite(values).all():
            problem = "NaN or infinite" if not np.isfinite(batch.values).all() else "beyond float16"
            raise DataError(f"features of image {int(batch.ids[0])} and others are {problem}")
        self._batches.append(Batch(values, batch.ids, batch.labels, batch.enlarged))
        size = sum(b.values.nbytes for b in self._batches)
        if size > CHUNK_BYTES or time.monotonic() - self._since > CHUNK_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes the batches that were added since the last chunk as a new one."""
        now = time.monotonic()
        if self._batches:
            names = ("values", "ids", "labels", "enlarged")
            arrays = {
                name: np.concatenate([getattr(batch, name) for batch in self._batches])
                for name in names
            }
            arrays["seconds"] = np.array(now - self._since)
            name = f"{self._pass_prefix}{jax.process_index()}-{time.time_ns()}.npz"
            try:
                write_arrays(self.folder / name, arrays)
            except OSError as error:
                raise runs.unwritten(self.folder / name, error) from error
        self._batches, self._since = [], now

    def columns(self) -> dict[str, np.ndarray]:
        """The columns of all images, in the order of their ids, and the `seconds` that they took;
        all but the features."""
        names = ("ids", "labels", "enlarged")
        chunks = list(self._read(*names, "seconds"))
        empty = {"ids": np.int32, "labels": np.int32, "enlarged": bool}
        columns = {
            name: np.concatenate([np.zeros(0, empty[name]), *(chunk[name] for chunk in chunks)])
            for name in names
        }
        _, order = np.unique(columns["ids"], return_index=True)
        seconds = np.array(sum(float(chunk["seconds"]) for chunk in chunks))
        return {name: array[order] for name, array in columns.items()} | {"seconds": seconds}

    def write_values(self, file: Path, ids: np.ndarray) -> None:
        """Writes the features of the images with these ids, (n, d), chunk by chunk."""
        partial, rows = file.with_name(f"{file.name}.{os.getpid()}{PARTIAL}"), None
        filled: np.ndarray = np.zeros(len(ids), bool)
        try:
            for chunk in self._read("ids", "values"):
                if rows is None:
                    shape = (len(ids), chunk["values"].shape[1])
                    rows = np.lib.format.open_memmap(partial, "w+", self.dtype, shape)
                places = np.searchsorted(ids, chunk["ids"])
                rows[places], filled[places] = chunk["values"], True
            if rows is None or not filled.all():
                raise DataError(f"chunks of {file} vanished while they were read")
            rows.flush()
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    def delete(self) -> None:
        """Deletes the chunks of this pass, and of unfinished ones for the same file."""
        for file in self.folder.iterdir():
            if file.name.startswith(self._file_prefix) and file.suffix == ".npz":
                file.unlink(missing_ok=True)

"""Sets of TensorFlow Datasets in their encoded form. Reading a prepared one needs no TensorFlow."""

import array
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from input_pipeline.datasets import prepare_tfds
from input_pipeline.errors import DataError, nearest
from input_pipeline.image_files import TEST_PARTS, imagenet_names
from input_pipeline.sources import contents
from input_pipeline.sources.byte_ranges import ByteRanges
from input_pipeline.sources.cache import Arrays, of_files
from input_pipeline.sources.folders import tested_part
from input_pipeline.sources.source import ImageSet, Progress, Source, as_data_errors
from input_pipeline.tfrecords import example_features, example_numbers, record_places

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

PREFIX = "tfds:"
Edges = tuple[float, float, float, float]
# Mirrored, these are not images of their class.
_NOT_MIRRORED = ("mnist", "emnist", "kmnist", "mnist_corrupted", "svhn_cropped", "omniglot")


def tfds_names(root: Path) -> list[str]:
    """The names of the TFDS sets in a data_dir, or of the set whose own folder `root` is."""
    info = root / "dataset_info.json"
    if info.is_file():
        try:
            return [str(json.loads(info.read_text(encoding="utf-8"))["name"])]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{info}: not TFDS's description of a data set: {error}") from error
    info_files = [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]
    return sorted({file.parent.parent.relative_to(root).as_posix() for file in info_files})


def open_tfds(
    name: str,
    path: str | Path | None,
    on_progress: Progress | None = None,
    *,
    for_test: bool = False,
) -> ImageSet:
    """The set `tfds:NAME` in TFDS's data_dir or in the set's own folder. Raises DataError.

    on_progress: of examples that are read for their hashes. for_test: accept a set without a
    training part. Only preparing a set needs TensorFlow.
    """
    builder = _builder(name, None if path is None else Path(path).expanduser())
    info = builder.info
    parts = [part for part in TEST_PARTS if part in info.splits]
    if not parts or ("train" not in info.splits and not for_test):
        hint = "; it can be tested on: `evaluate --data`" if parts else ""
        raise DataError(
            f"data set {name!r} has the parts {', '.join(info.splits)}; expected train, and "
            f"validation or test{hint}"
        )
    label = info.features["label"]
    folders = tuple(label.names or map(str, range(label.num_classes)))
    sources = {
        split: _open_split(builder, split, len(folders))
        for split in ("train", parts[0])
        if split in info.splits
    }
    test = sources[parts[0]]
    test.notes = tested_part(name, parts)
    digest = hashlib.sha256(json.dumps(folders).encode())
    for split, source in sources.items():
        digest.update(f"\0{split} {len(source)}\0".encode())
        files = [Path(file) for file in info.splits[split].filepaths]
        with as_data_errors(files[0].parent):
            hashes = contents.of_large_files("examples", files, source, on_progress, labels=True)
        digest.update(hashes.tobytes())
    return ImageSet(
        name,
        sources["train"] if "train" in sources else test.take(np.arange(0)),
        test,
        imagenet_names(folders),
        f"{info.full_name.replace('/', '-')}-{digest.hexdigest()[:16]}",
        mirror_ok=info.name not in _NOT_MIRRORED,
        folders=folders,
    )


def _builder(name: str, folder: Path | None) -> "tfds.core.DatasetBuilder":
    """TFDS's builder of a prepared classification set."""
    import tensorflow_datasets as tfds

    tfds_name = name.removeprefix(PREFIX)
    try:
        if folder is not None and (folder / "dataset_info.json").is_file():
            builder = tfds.builder_from_directory(folder)
            if tfds_name.split("/")[0] != builder.info.name:
                raise DataError(f"{folder} holds 'tfds:{builder.info.name}', not {name!r}")
        else:
            builder = tfds.builder(tfds_name, data_dir=folder)
        _check_features(name, builder.info.features)
        return builder if builder.is_prepared() else prepare_tfds(name, tfds_name, folder)
    except DataError:
        raise
    except tfds.core.registered.DatasetNotFoundError as error:
        hint = nearest("; did you mean 'tfds:{}'?", tfds_name, tfds.list_builders())
        raise DataError(f"TFDS knows no data set {tfds_name!r}{hint}") from error
    except Exception as error:  # TFDS's own, as of files that are to be fetched by hand
        hint = "\nData set 'ilsvrc' reads these tars as they are." if "ILSVRC" in str(error) else ""
        raise DataError(f"data set {name!r} cannot be prepared: {error}{hint}") from error


def _check_features(name: str, features: "tfds.features.FeaturesDict") -> None:
    import tensorflow_datasets as tfds

    for key, kind in (("image", tfds.features.Image), ("label", tfds.features.ClassLabel)):
        if key not in features or not isinstance(features[key], kind):
            keys = ", ".join(sorted(features.keys()))
            raise DataError(
                f"data set {name!r} has the features {keys}; expected an 'image' and a 'label' "
                "that is a class"
            )


def _open_split(builder: "tfds.core.DatasetBuilder", split: str, classes: int) -> Source:
    info, file_format = builder.info.splits[split], builder.info.file_format.value
    records: ByteRanges | _ArrayRecords
    if file_format == "array_record":
        records = _ArrayRecords(builder.data_path, split, info.num_examples)
    elif file_format == "tfrecord":
        records = _tfrecords(Path(builder.data_path), info)
    else:
        raise DataError(
            f"{builder.data_path}: files of type {file_format}; expected array_record or tfrecord"
        )
    boxes = _box_feature(builder.info.features)
    return TfdsSource(records, f"{builder.info.name}/{split}", classes, boxes)


def _is_in_shares(feature: "tfds.features.BBoxFeature") -> bool:
    """Whether boxes are ymin, xmin, ymax, xmax as shares of the image, TFDS's usual format."""
    return feature.bbox_format is not None and feature.bbox_format.value == "REL_YXYX"


class BoxFeature(NamedTuple):
    """The keys of boxes in the records of a set."""

    boxes: bytes  # the key of four numbers a box
    labels: bytes | None  # the key of a label a box; None where all are of the image's class
    names: tuple[str, ...]  # the classes of these labels


def _box_feature(features: "tfds.features.FeaturesDict") -> BoxFeature | None:
    """`objects/bbox` with `objects/label`, `bbox`, or else the only feature of boxes."""
    import tensorflow_datasets as tfds

    boxes = {}
    for key, feature in features.items():
        inner = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
        several = isinstance(inner, tfds.features.FeaturesDict)
        for nested_key, nested in inner.items() if several else [("", inner)]:
            if isinstance(nested, tfds.features.BBoxFeature) and _is_in_shares(nested):
                label = inner["label"] if several and "label" in inner else None
                path = f"{key}/{nested_key}" if several else key
                if not isinstance(label, tfds.features.ClassLabel):
                    boxes[path] = BoxFeature(path.encode(), None, ())
                else:
                    names = tuple(label.names or map(str, range(label.num_classes)))
                    boxes[path] = BoxFeature(path.encode(), f"{key}/label".encode(), names)
    if len(boxes) > 1:
        preferred = [boxes[path] for path in ("objects/bbox", "bbox") if path in boxes]
        return preferred[0] if preferred else None
    return next(iter(boxes.values()), None)


def _tfrecords(folder: Path, info: "tfds.core.SplitInfo") -> ByteRanges:
    files = [Path(file) for file in info.filepaths]
    with as_data_errors(folder):
        places = of_files("tfrecords", files, lambda: _walk(files))
    if places["counts"].tolist() != list(info.shard_lengths):
        raise DataError(
            f"{folder}: {places['counts'].sum()} records in the files of {info.name!r}, and "
            f"{info.num_examples} examples by its description; prepare the set again"
        )
    return ByteRanges(files, places["counts"], places["offsets"], places["sizes"])


def _walk(files: Sequence[Path]) -> Arrays:
    """`counts` (K,) of the records in each file; `offsets` and `sizes` (N,) int64 of their data."""
    counts, offsets, sizes = [], array.array("q"), array.array("q")
    for file in files:
        start = len(offsets)
        for offset, size in record_places(file):
            offsets.append(offset)
            sizes.append(size)
        counts.append(len(offsets) - start)
    return {
        "counts": np.array(counts, np.int64),
        "offsets": np.array(offsets, np.int64),
        "sizes": np.array(sizes, np.int64),
    }


class _ArrayRecords:
    """The records of one split, opened in the process that reads them."""

    def __init__(self, folder: str | Path, split: str, count: int):
        self._folder, self._split, self._count = folder, split, count

    def __reduce__(self) -> tuple:
        return _ArrayRecords, (self._folder, self._split, self._count)

    def __len__(self) -> int:
        return self._count

    @functools.cached_property
    def _records(self) -> Sequence[bytes]:
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(self._folder).as_data_source(
            self._split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )

    def read(self, i: int) -> bytes:
        try:
            return bytes(self._records[i])
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{self._folder}: {self._split} cannot be read: {error}") from error


class TfdsSource(Source):
    """Examples as TFDS writes them: tf.train.Examples with an encoded image and a label."""

    labels = None

    def __init__(
        self,
        records: ByteRanges | _ArrayRecords,
        where: str,
        classes: int,
        box_feature: BoxFeature | None = None,
    ):
        self._records, self._where, self._classes = records, where, classes
        self.box_feature = box_feature

    def __len__(self) -> int:
        return len(self._records)

    def read(self, i: int) -> tuple[bytes, int]:
        try:
            features = example_features(self._records.read(i))
            image, label = features[b"image"], features[b"label"]
            if not isinstance(image, bytes):
                raise ValueError("a number where an image is expected")
        except (KeyError, ValueError) as error:
            raise DataError(f"{self.where(i)}: no image and label in the record") from error
        return image, self._checked_label(i, label)

    def _checked_label(self, i: int, label: object) -> int:
        if not isinstance(label, int) or not 0 <= label < self._classes:
            raise DataError(f"{self.where(i)}: label {label!r}; expected 0 to {self._classes - 1}")
        return label

    def objects(self, i: int) -> tuple[int, list[Edges], list[str | None]]:
        """(label, edges of the boxes of image i, names of their classes).

        Edges are left, top, right, bottom, as shares of the image. A name is None where a box is of
        the image's class. Raises OSError or DataError.
        """
        assert self.box_feature is not None
        keys = self.box_feature
        try:
            numbers = example_numbers(self._records.read(i))
            (label,) = numbers[b"label"]
            edges = numbers.get(keys.boxes, [])
            boxes = [(x1, y1, x2, y2) for y1, x1, y2, x2 in zip(*[iter(edges)] * 4, strict=True)]
            names: list[str | None] = [None] * len(boxes)
            if keys.labels is not None:
                name_of = dict(enumerate(keys.names))
                names = [name_of[int(k)] for k in numbers.get(keys.labels, [])]
            if len(names) != len(boxes):
                raise ValueError(f"{len(boxes)} boxes of {len(names)} labels")
        except (KeyError, ValueError) as error:
            raise DataError(f"{self.where(i)}: no label and boxes in the record") from error
        return self._checked_label(i, label), boxes, names

    def where(self, i: int) -> str:
        return f"{self._where}: example {i}"

"""Encoded images with labels, read one by one in any order.

A source knows where each of its images lies (some thirty bytes an image, in NumPy arrays) and
reads it when asked. The same images give the same data set, in the same order and with the same
fingerprint, whether they lie in folders of classes, in ILSVRC's flat validation folder or in its
original tars: sorted by class, then by file name.

    data = open_set("folder", "imagenet")
    content, label = data.train.read(7)

`source` has the interface. `folders`, `tars`, `shards` and `tfds_sets` read one kind each. `split`
makes a test part of a folder that has none. `contents` hashes images, so that sets are recognised
anywhere. `relabelled` labels images as a network does. `voc` and `caltech` open a `collection`: all
images of a set, for features. `voc` also opens sets to train on.
"""

from collections.abc import Sequence
from pathlib import Path

from input_pipeline.errors import DataError, nearest
from input_pipeline.sources import caltech, folders, relabelled, shards, tars, tfds_sets, voc
from input_pipeline.sources.folders import FolderSource
from input_pipeline.sources.relabelled import Relabelled, TestImages
from input_pipeline.sources.source import ImageSet, Names, Progress, Source
from input_pipeline.sources.split import open_split
from input_pipeline.sources.tfds_sets import TfdsSource
from input_pipeline.sources.upright import Upright

__all__ = [
    "STREAMED",
    "FolderSource",
    "ImageSet",
    "Names",
    "Relabelled",
    "Source",
    "TestImages",
    "TfdsSource",
    "Upright",
    "detect",
    "is_streamed",
    "open_set",
    "open_test",
]

# What opens each set in a folder, and what that folder is expected to hold.
_SETS = {
    "folder": (folders.open_folder, folders.EXPECTED),
    "ilsvrc": (tars.open_ilsvrc, tars.EXPECTED),
    "shards": (shards.open_shards, shards.EXPECTED),
    "voc": (voc.open_set, voc.EXPECTED),
}
STREAMED = tuple(_SETS)


def is_streamed(name: str) -> bool:
    """Whether `open_set` knows the name: its images are read when needed, not kept in memory."""
    return name in STREAMED or (name.startswith(tfds_sets.PREFIX) and name != tfds_sets.PREFIX)


def open_set(
    name: str,
    path: str | Path | None = None,
    on_progress: Progress | None = None,
    *,
    split: float = 0.0,
    for_test: bool = False,
) -> ImageSet:
    """The set of encoded images called `name` in the folder `path`.

    `folder`: PATH/{train,val}/{class}/image files, or ILSVRC's flat val with its labels file;
    `ilsvrc`: PATH with ILSVRC's original train and val tars; `shards`: what `prepare` wrote;
    `voc`: a year of PASCAL VOC, whose images are of several classes each;
    `tfds:NAME`: a set of TFDS, PATH being its data_dir (default `~/tensorflow_datasets`).
    on_progress: called while images are read for their hashes, which happens once. split: the share
    of each class of a `folder` without parts that is its test part. for_test: accept a set without
    a training part, which then has no images. Raises DataError.
    """
    if not is_streamed(name):
        hint = nearest("did you mean {!r}? ", name, [*STREAMED, "tfds:NAME"], 0.4)
        raise DataError(
            f"unknown set of encoded images {name!r}; {hint}known: {', '.join(STREAMED)}, tfds:NAME"
        )
    if split and name != "folder":
        raise DataError(f"a split is for folders of classes (name 'folder'), not for {name!r}")
    if name not in STREAMED:
        return tfds_sets.open_tfds(name, path, on_progress, for_test=for_test)
    if path is None:
        raise DataError(f"data set {name!r} needs a path, that of a folder")
    root = Path(path).expanduser()
    open_root, expected = _SETS[name]
    if not root.is_dir():
        raise DataError(f"{_no_folder(root)}; expected {expected.format(root=root)}")
    if split:
        return open_split(root, split, on_progress)
    if name == "folder" and not (folders.data_folder(root) / "train").is_dir():
        if for_test:
            return relabelled.folder_set(root, on_progress)
        _check_collections(root)
    return open_root(root, on_progress)


def open_test(
    name: str,
    class_names: Sequence[str],
    on_progress: Progress | None = None,
    *,
    in_order: bool = False,
) -> TestImages:
    """The test images of a set, labelled as a network numbers its classes, which `match` finds.

    name: `tfds:NAME`, or a folder: of images as `{class}/*`, perhaps in a part val or test, of
    ILSVRC's tars, of shards or of TFDS. on_progress: as for `open_set`. Raises DataError.
    """
    root = Path(name).expanduser()
    if is_streamed(name) and not root.is_dir():
        image_set = open_set(name, on_progress=on_progress, for_test=True)
    elif root.is_dir() and relabelled.is_set(root):
        image_set = open_set(detect(root), root, on_progress, for_test=True)
    else:
        return relabelled.image_folder(root, class_names, on_progress, in_order=in_order)
    return relabelled.of_set(name, image_set, class_names, in_order=in_order)


def detect(path: str | Path) -> str:
    """The name under which `open_set` reads the folder `path`. Raises DataError."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(_no_folder(root))
    if (root / shards.SHARDS_FILE).is_file():
        return "shards"
    if (root / tars.TRAIN_TAR).is_file() or (root / tars.VAL_TAR).is_file():
        return "ilsvrc"
    if (folders.data_folder(root) / "train").is_dir():
        return "folder"
    _check_collections(root)
    if relabelled.has_images(root):  # before TFDS's folders are looked for among a million images
        return "folder"
    prepared = tfds_sets.tfds_names(root)
    if len(prepared) == 1:
        return tfds_sets.PREFIX + prepared[0]
    if prepared:
        raise DataError(f"{root} holds several sets of TFDS: {', '.join(prepared)}; name one")
    if relabelled.has_images(root, deep=True):
        return "folder"
    raise DataError(
        f"{root} holds no images that are known here; expected "
        + ", or ".join(expected.format(root=root) for _, expected in _SETS.values())
        + ", or TFDS's data_dir"
    )


def _check_collections(root: Path) -> None:
    """DataError for the sets that are no folders of classes."""
    if voc.find(root):
        raise DataError(
            f"{root} holds PASCAL VOC, whose images are of several classes each; expected a set "
            "of one class an image. `features`, `transfer` and trainings with data.name=voc read it"
        )
    places = caltech.find(root).values()
    if places and root not in places:
        raise DataError(
            f"{root} holds {' and '.join(map(str, places))}, which `features` and `transfer` read; "
            "expected the folder of classes itself, unpacked"
        )


def _no_folder(root: Path) -> str:
    return f"{root} {'is no folder' if root.exists() else 'does not exist'}"

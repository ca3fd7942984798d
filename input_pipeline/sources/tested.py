"""The test images of any set, labelled as a network numbers its classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.image_files import SUFFIXES, TEST_PARTS, imagenet_classes
from input_pipeline.sources import folders, shards, tars, tfds_sets
from input_pipeline.sources.source import ImageSet, Progress, Source, fingerprint, some


class _Relabelled(Source):
    """The same images; label k becomes index[k]."""

    def __init__(self, source: Source, index: Sequence[int]):
        self._source, self._index = source, index
        self.missing, self.notes = source.missing, source.notes
        self.labels = None if source.labels is None else np.array(index, np.int32)[source.labels]

    def __len__(self) -> int:
        return len(self._source)

    def read(self, i: int) -> tuple[bytes, int]:
        content, label = self._source.read(i)
        return content, self._index[label]

    def where(self, i: int) -> str:
        return self._source.where(i)

    def size(self, i: int) -> int:
        return self._source.size(i)


def of_set(found: ImageSet, class_names: Sequence[str]) -> Source:
    """The test part of a set. Raises DataError where its classes are not among the network's."""
    own = found.folders or found.class_names
    index = class_index(found.name, found.class_names, class_names, on_disk=own)
    return _Relabelled(found.test, [index[name] for name in found.class_names])


def is_set(root: Path) -> bool:
    """Whether a folder holds tars, shards or one TFDS set, rather than folders of images."""
    if any((root / name).is_file() for name in (shards.SHARDS_FILE, tars.TRAIN_TAR, tars.VAL_TAR)):
        return True
    if (root / "dataset_info.json").is_file():
        return True
    part, _ = _image_part(root)
    shallow = (folders.has_images(part / name) for name in folders.subfolders(part))
    return not any(shallow) and bool(tfds_sets.tfds_names(root))


def _image_part(root: Path) -> tuple[Path, list[str]]:
    """The folder of test images in `root`, or itself, and the test parts that there are."""
    data = folders.data_folder(root)
    parts = [part for part in TEST_PARTS if (data / part).is_dir()]
    return (data / parts[0] if parts else root), parts


def image_folder(
    path: str | Path, class_names: Sequence[str], on_progress: Progress | None = None
) -> tuple[Source, str]:
    """The images of `PATH/{class}/*`, or of its `val` or `test` part, and their fingerprint.

    The classes' folders are matched with `class_names` (a network's), see `class_index`. ImageNet's
    flat validation folder will do too, with a file of its labels. Raises DataError.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root} is no folder of images")
    part, parts = _image_part(root)
    inside = folders.subfolders(part)
    found = [name for name in inside if folders.has_images(part / name, deep=True)]
    notes = folders.tested_part(root, parts)
    wnids, names = imagenet_classes()
    if found:
        folders.check_no_images_beside(part)
        if len(found) < len(inside):
            notes.append(f"{part}: no images in the folders {some(set(inside) - set(found))}")
        index = class_index(str(part), found, class_names)
        ordered = sorted(found, key=lambda name: (index[name], name))
        listing = folders.list_classes(part, ordered, range(len(ordered)))
        labels = [index[name] for name in ordered]
        places: list[str] = ordered
    elif tuple(class_names) == names and folders.has_images(part):
        listing = folders.list_flat(part, root, wnids)
        labels, places = list(range(len(wnids))), ["."] * len(wnids)
    else:
        raise DataError(
            f"{part} holds no folders of classes with image files (of type {', '.join(SUFFIXES)}); "
            f"expected {part}/CLASS/image files"
        )
    print_ = fingerprint(places, listing.digest(listing.hashes(on_progress)))
    return _Relabelled(listing.source(part, notes), labels), print_


def class_index(
    where: str,
    found: Sequence[str],
    class_names: Sequence[str],
    *,
    on_disk: Sequence[str] | None = None,
) -> Mapping[str, int]:
    """Which of a network's classes each class of a set is.

    They are matched by name; else, where these are ImageNet's, by wnid, so that a part of
    ImageNet's classes can be tested; else by label, if they are numbers; else, if none is called
    like a class and there are as many of both, in order. on_disk: what their folders are called.
    Raises DataError where none of these fits.
    """
    known = {name: i for i, name in enumerate(class_names)}
    on_disk = on_disk or found
    wnids, names = imagenet_classes()
    if tuple(class_names) == names and set(on_disk) <= set(wnids):  # some names occur twice
        return {name: wnids.index(wnid) for name, wnid in zip(found, on_disk, strict=True)}
    if set(found) <= known.keys():
        return {name: known[name] for name in found}
    by_wnid = dict(zip(wnids, names, strict=True))
    if {by_wnid.get(wnid) for wnid in on_disk} <= known.keys():
        return {name: known[by_wnid[wnid]] for name, wnid in zip(found, on_disk, strict=True)}
    if all(name.isdecimal() and int(name) < len(class_names) for name in found):
        return {name: int(name) for name in found}
    if len(found) == len(class_names) and not set(found) & known.keys():
        return {name: i for i, name in enumerate(found)}
    odd = [name for name in found if name not in known]
    raise DataError(
        f"{where} has {len(found)} classes and the network {len(class_names)}; "
        f"none of these is called {', '.join(map(repr, odd[:5]))}"
        + (f" or {len(odd) - 5} others" if len(odd) > 5 else "")
    )

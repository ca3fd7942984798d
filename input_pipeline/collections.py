"""From a folder or a name to a `Collection`: all images of a set, for features and transfer."""

from pathlib import Path

import numpy as np

from input_pipeline import datasets, sources
from input_pipeline.sources import caltech, folders, relabelled, voc
from input_pipeline.sources.collection import ANY, TEST, TRAIN, Collection, InMemory, Joined
from input_pipeline.sources.source import ImageSet, Progress


def open_collection(name: str, on_progress: Progress | None = None) -> Collection:
    """All images of a set.

    name: a folder of images (`{train,val}/{class}/*`, or `{class}/*` without parts; ILSVRC's tars,
    shards, TFDS's folders, VOC's and Caltech's too), an .npz, or the name of a data set.
    on_progress: of images that are read for their hashes. Raises DataError.
    """
    root = Path(name).expanduser()
    if sources.is_streamed(name) and not root.is_dir():
        return _of_set(sources.open_set(name, on_progress=on_progress, for_test=True), name)
    if root.suffix == ".npz" and not root.is_dir():
        return _of_dataset(datasets.load("npz", path=root), root.stem)
    if not root.is_dir():
        return _of_dataset(datasets.load(name), name)
    if voc.find(root):
        return voc.open_voc(root, on_progress)
    if caltech.find(root):
        return caltech.open_caltech(root, on_progress)
    if relabelled.is_set(root) or (folders.data_folder(root) / "train").is_dir():
        image_set = sources.open_set(sources.detect(root), root, on_progress, for_test=True)
        return _of_set(image_set, root.resolve().name)
    return _of_set(relabelled.folder_set(root, on_progress), root.resolve().name, ANY)


def own_collection(
    name: str, path: str, split: float = 0.0, on_progress: Progress | None = None
) -> Collection:
    """All images of the set that a config names, with the parts that its training has.

    name, path, split: as the keys of `data`. Raises DataError.
    """
    title = Path(path).stem if path else name
    if sources.is_streamed(name):
        image_set = sources.open_set(name, path or None, on_progress, split=split, for_test=True)
        return _of_set(image_set, title)
    return _of_dataset(datasets.load(name, path=path or None), title)


def _of_set(image_set: ImageSet, name: str, test: int = TEST) -> Collection:
    parts: np.ndarray = np.repeat(
        np.array([TRAIN, test], np.uint8), [len(image_set.train), len(image_set.test)]
    )
    return Collection(
        name=name,
        images=Joined([image_set.train, image_set.test]),
        class_names=image_set.class_names,
        fingerprint=image_set.fingerprint,
        parts=parts,
        targets=None if image_set.targets is None else np.concatenate(image_set.targets),
        mirror_ok=image_set.mirror_ok,
    )


def _of_dataset(dataset: datasets.Dataset, name: str) -> Collection:
    parts = (dataset.train, dataset.test)
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    return Collection(
        name=name,
        images=InMemory(images, labels, name),
        class_names=dataset.class_names,
        fingerprint=dataset.fingerprint,
        parts=np.repeat(np.array([TRAIN, TEST], np.uint8), [len(part) for part in parts]),
        mirror_ok=dataset.mirror_ok,
    )

"""Matches annotations with images, and sorts out boxes that cannot be used."""

import dataclasses
import math
import os
import re
from collections import Counter

import numpy as np

from input_pipeline.annotations.annotation import Annotation, Object
from input_pipeline.boxes import Boxes
from input_pipeline.errors import DataError, nearest
from input_pipeline.image_files import SUFFIXES, TEST_PARTS
from input_pipeline.sources.source import ImageSet

# Kinds of problems, as they follow a number in a sentence.
UNREADABLE = "annotations that cannot be used"
NOT_THERE = "annotations of images that are not in the set"
SEVERAL = "annotations whose name several images have"
SECOND = "annotations of images that have one already"
NO_SIZE = "annotations whose size is none"
UNKNOWN = "boxes of unknown classes"
OTHER = "boxes of another class than their image"
NO_NUMBER = "boxes whose edges are no numbers"
EMPTY = "boxes without an inside"
OUTSIDE = "boxes outside their image"
CUT = "boxes that leave their image, cut at its border"
# Problems that only show where images are read too.
SCALED = "images of another size than their annotation's, to which boxes are scaled"
STRETCHED = "images of another shape than their annotation's, to which boxes are stretched"
BEYOND = "boxes that leave their image, whose size the annotation does not tell"
NAMED = 3  # problems of a kind that notes list
# Separates the parts of `Source.where`: folders, tars in tars, shards.
_PARTS = re.compile(r"/|\.(?:tar|tfrecord): ")


@dataclasses.dataclass(frozen=True, eq=False)
class Annotated:
    """The boxes of a set's images: as many as `ImageSet.train` and `ImageSet.test` have."""

    train: Boxes
    test: Boxes
    notes: tuple[str, ...]  # sentences for people
    # By kind, a text for each wrong annotation or box: where it lies and what it says.
    problems: dict[str, list[str]]


def counted(problems: dict[str, list[str]]) -> list[str]:
    """A sentence for each kind of problem: how many there are, and the first of them."""
    return [
        f"{len(texts):,} {kind}: {'; '.join(texts[:NAMED])}{'; ...' if len(texts) > NAMED else ''}"
        for kind, texts in problems.items()
    ]


class _BoxError(Exception):
    """A box that is left out, for a problem of this kind."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class Gathered:
    """Collects the boxes of a set's images, which are numbered through both parts."""

    def __init__(self, images: ImageSet):
        self._images = images
        self._parts = {"train": len(images.train), "test": len(images.test)}
        count = sum(self._parts.values())
        self.labels: np.ndarray = np.full(count, -1, np.int32)
        self._classes = _classes(images)
        self._sizes: np.ndarray = np.zeros((count, 2), np.int32)
        self._edges: dict[int, list[tuple[float, ...]]] = {}  # of images with an annotation
        self._problems: dict[str, list[str]] = {}
        self._hints: dict[str, str] = {}  # by the name of an unknown class
        self._unnamed: list[str] = []  # annotations of unknown databases, which count pixels anyhow

    def give(self, i: int, annotation: Annotation) -> None:
        """Gives image i, whose label is known, the usable boxes of its annotation."""
        if i in self._edges:
            return self._note(SECOND, annotation.where)
        size = self._sizes[i] = self._size(annotation)
        boxes = self._edges[i] = []
        for obj in annotation.objects:
            try:
                boxes.append(self._box(obj, annotation.shift, i, size))
            except _BoxError as error:
                self._note(error.kind, str(error))
        if annotation.database is not None:
            self._unnamed.append(f"{annotation.where} ({annotation.database!r})")

    def _note(self, kind: str, message: str) -> None:
        self._problems.setdefault(kind, []).append(message)

    def _size(self, annotation: Annotation) -> tuple[int, int]:
        """(height, width) in an annotation; (0, 0) where it has none."""
        if annotation.size is None:
            return 0, 0
        height, width = (int(text) if _is_number(text) else 0 for text in annotation.size)
        if height and width:
            return height, width
        self._note(NO_SIZE, f"{annotation.where}: height and width {annotation.size}")
        return 0, 0

    def _box(
        self, obj: Object, shift: tuple[int, int, int, int], i: int, size: tuple[int, int]
    ) -> tuple[float, ...]:
        """The edges of an object's box in image i. Raises _BoxError where it can't be used."""
        label = self._classes.get(obj.class_name)
        if label is None:
            raise _BoxError(UNKNOWN, f"{obj.where}: {self._unknown(obj.class_name)}")
        if label != self.labels[i]:
            raise _BoxError(OTHER, f"{obj.where}: {obj.class_name!r}")
        message = f"{obj.where}: {', '.join(map(str, obj.edges))}"
        try:
            edges = [float(text) for text in obj.edges]
        except ValueError:
            raise _BoxError(NO_NUMBER, message) from None
        if not all(map(math.isfinite, edges)):
            raise _BoxError(NO_NUMBER, message)
        left, top, right, bottom = map(sum, zip(edges, shift, strict=True))
        if right <= left or bottom <= top:
            raise _BoxError(EMPTY, message)
        height, width = (length or math.inf for length in size)
        clipped = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
            raise _BoxError(OUTSIDE, message)
        if clipped != (left, top, right, bottom):
            self._note(CUT, message)
        return clipped

    def _unknown(self, name: str) -> str:
        """A class that the set has not, with the nearest that it has; searched once a name."""
        if name not in self._hints:
            self._hints[name] = repr(name) + nearest(" (is {!r} meant?)", name, self._classes)
        return self._hints[name]

    def result(self) -> Annotated:
        """The boxes of both parts."""
        train = self._parts["train"]
        parts = {"train": self._boxes(0, train), "test": self._boxes(train, len(self.labels))}
        return Annotated(**parts, notes=self._notes(), problems=self._problems)

    def _boxes(self, start: int, stop: int) -> Boxes:
        lists = [self._edges.get(i, []) for i in range(start, stop)]
        edges = np.array([edge for boxes in lists for edge in boxes], np.float32).reshape(-1, 4)
        starts = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        return Boxes(starts, edges, self._sizes[start:stop])

    def _notes(self) -> tuple[str, ...]:
        notes = [*counted(self._problems)]
        if self._unnamed:
            notes.append(
                f"{len(self._unnamed):,} annotations name no database that is known here, such as "
                f"{self._unnamed[0]}; their pixels are counted from 1, as PASCAL VOC's are"
            )
        return tuple(notes)


class Matching(Gathered):
    """Finds the image of each annotation by its name."""

    def __init__(self, path: str, images: ImageSet):
        super().__init__(images)
        self._path, self._count = path, 0
        labels = [part.labels for part in (images.train, images.test) if len(part)]
        if any(values is None for values in labels):
            raise DataError(
                f"boxes: {path!r} tells boxes by the names of images, and those of {images.name!r} "
                "have none; expected 'own', if boxes lie in its records"
            )
        self.labels = np.concatenate([np.zeros(0, np.int32), *labels])  # type: ignore
        self._indices_of: dict[str, list[int]] = {}  # of images, by their names without suffix
        for i in range(len(self.labels)):
            stem = os.path.splitext(self._image(i)[-1])[0]
            self._indices_of.setdefault(stem, []).append(i)

    def _image(self, i: int) -> list[str]:
        """The path of image i."""
        train = self._parts["train"]
        where = self._images.train.where(i) if i < train else self._images.test.where(i - train)
        return _PARTS.split(where)

    def add(self, annotation: Annotation) -> None:
        """Gives an annotation's boxes to its image, or notes what is wrong with it."""
        self._count += 1
        if annotation.error:
            return self._note(UNREADABLE, f"{annotation.where}: {annotation.error}")
        candidates = self._find(annotation.path)
        if len(candidates) != 1:
            return self._note(SEVERAL if candidates else NOT_THERE, annotation.where)
        self.give(candidates[0], annotation)

    def _find(self, path: tuple[str, ...]) -> list[int]:
        """The images that an annotation of this path may be of.

        Of several of the same name, those that share most folders with the annotation.
        """
        name, suffix = path[-1], os.path.splitext(path[-1])[1].lower()
        if suffix in SUFFIXES:
            stem = os.path.splitext(name)[0]
            candidates = [i for i in self._indices_of.get(stem, ()) if self._image(i)[-1] == name]
        else:
            stem, candidates = name, self._indices_of.get(name, [])
        folder = path[-2] if len(path) > 1 else ""  # a class, but not where it names a part
        label = None if folder in ("train", *TEST_PARTS) else self._classes.get(folder)
        if label is not None:
            candidates = [i for i in candidates if self.labels[i] == label]
        if len(candidates) < 2:
            return candidates
        shared = [_shared_folders(self._image(i)[:-1], path[:-1]) for i in candidates]
        return [i for i, count in zip(candidates, shared, strict=True) if count == max(shared)]

    def result(self) -> Annotated:
        """The boxes of both parts. DataError if no annotation was of any of their images."""
        if not self._edges:
            first = next((texts[0] for texts in self._problems.values()), "")
            name = "/".join(self._image(0)) if len(self.labels) else "none"
            raise DataError(
                f"boxes: none of {self._count:,} annotations in {self._path!r} is of an image of "
                f"{self._images.name!r}; the first is {first}, and images are called such as {name}"
            )
        return super().result()


def _shared_folders(folders: list[str], others: tuple[str, ...]) -> int:
    """The number of folders that two paths share, counted from the last one."""
    pairs = zip(reversed(folders), reversed(others), strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(folders), len(others)))


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 10


def _classes(images: ImageSet) -> dict[str, int]:
    """The labels by the classes' folders, and by their names where no two share one."""
    folders = {name: k for k, name in enumerate(images.folders)}
    counts = Counter(images.class_names)
    names = {name: k for k, name in enumerate(images.class_names) if counts[name] == 1}
    return names | folders

"""Which image an annotation is of, and which of its boxes count."""

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

# Kinds of what is wrong, as they follow a number.
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
# Found where images are read too.
SCALED = "images of another size than their annotation's, to which boxes are scaled"
STRETCHED = "images of another shape than their annotation's, to which boxes are stretched"
BEYOND = "boxes that leave their image, whose size the annotation does not tell"
NAMED = 3  # of a kind, in notes
# Between the parts of `Source.where`: folders, tars in tars, shards.
_PARTS = re.compile(r"/|\.(?:tar|tfrecord): ")


@dataclasses.dataclass(frozen=True, eq=False)
class Annotated:
    """The boxes of a set's images: as many as `ImageSet.train` and `ImageSet.test` have."""

    train: Boxes
    test: Boxes
    notes: tuple[str, ...]  # sentences for people
    # By kind, in words: each annotation or box that was wrong, where it lies and what it says.
    problems: dict[str, list[str]]


def counted(problems: dict[str, list[str]]) -> list[str]:
    """A sentence a kind of problem: how many there are, and the first of them."""
    return [
        f"{len(found):,} {kind}: {'; '.join(found[:NAMED])}{'; ...' if len(found) > NAMED else ''}"
        for kind, found in problems.items()
    ]


class _Wrong(Exception):
    """A box that does not count."""

    def __init__(self, kind: str, what: str):
        super().__init__(what)
        self.kind = kind


class Gathered:
    """The boxes of a set's images so far, by their numbers: those of both parts in a row."""

    def __init__(self, found: ImageSet):
        self._set = found
        self._parts = {"train": len(found.train), "test": len(found.test)}
        count = sum(self._parts.values())
        self.labels: np.ndarray = np.full(count, -1, np.int32)
        self._classes = _classes(found)
        self._sizes: np.ndarray = np.zeros((count, 2), np.int32)
        self._edges: dict[int, list[tuple[float, ...]]] = {}  # of images with an annotation
        self._problems: dict[str, list[str]] = {}
        self._said: dict[str, str] = {}  # of unknown classes
        self._unnamed: list[str] = []  # annotations that do not say how they count pixels

    def give(self, i: int, annotation: Annotation) -> None:
        """Gives image i, whose label is known, the boxes of its annotation that count."""
        if i in self._edges:
            return self._note(SECOND, annotation.where)
        size = self._sizes[i] = self._size(annotation)
        boxes = self._edges[i] = []
        for one in annotation.objects:
            try:
                boxes.append(self._box(one, annotation.shift, i, size))
            except _Wrong as wrong:
                self._note(wrong.kind, str(wrong))
        if annotation.database is not None:
            self._unnamed.append(f"{annotation.where} ({annotation.database!r})")

    def _note(self, kind: str, what: str) -> None:
        self._problems.setdefault(kind, []).append(what)

    def _size(self, annotation: Annotation) -> tuple[int, int]:
        """(height, width) that an annotation tells; 0 where it tells none."""
        if annotation.size is None:
            return 0, 0
        height, width = (int(text) if _is_number(text) else 0 for text in annotation.size)
        if height and width:
            return height, width
        self._note(NO_SIZE, f"{annotation.where}: height and width {annotation.size}")
        return 0, 0

    def _box(
        self, one: Object, shift: tuple[int, int, int, int], i: int, size: tuple[int, int]
    ) -> tuple[float, ...]:
        """The edges of an object's box in image i. Raises _Wrong where it does not count."""
        label = self._classes.get(one.class_name)
        if label is None:
            raise _Wrong(UNKNOWN, f"{one.where}: {self._unknown(one.class_name)}")
        if label != self.labels[i]:
            raise _Wrong(OTHER, f"{one.where}: {one.class_name!r}")
        told = f"{one.where}: {', '.join(map(str, one.edges))}"
        try:
            edges = [float(text) for text in one.edges]
        except ValueError:
            raise _Wrong(NO_NUMBER, told) from None
        if not all(map(math.isfinite, edges)):
            raise _Wrong(NO_NUMBER, told)
        left, top, right, bottom = map(sum, zip(edges, shift, strict=True))
        if right <= left or bottom <= top:
            raise _Wrong(EMPTY, told)
        height, width = (length or math.inf for length in size)
        inside = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            raise _Wrong(OUTSIDE, told)
        if inside != (left, top, right, bottom):
            self._note(CUT, told)
        return inside

    def _unknown(self, name: str) -> str:
        """A class that the set has not, and the nearest that it has; looked for once a name."""
        if name not in self._said:
            self._said[name] = repr(name) + nearest(" (is {!r} meant?)", name, self._classes)
        return self._said[name]

    def result(self) -> Annotated:
        """The boxes of both parts."""
        train = self._parts["train"]
        parts = {"train": self._boxes(0, train), "test": self._boxes(train, len(self.labels))}
        return Annotated(**parts, notes=self._notes(), problems=self._problems)

    def _boxes(self, start: int, stop: int) -> Boxes:
        found = [self._edges.get(i, []) for i in range(start, stop)]
        edges = np.array([edge for boxes in found for edge in boxes], np.float32).reshape(-1, 4)
        starts = np.cumsum([0, *map(len, found)], dtype=np.int64)
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

    def __init__(self, path: str, found: ImageSet):
        super().__init__(found)
        self._path, self._read = path, 0
        labels = [part.labels for part in (found.train, found.test) if len(part)]
        if any(own is None for own in labels):
            raise DataError(
                f"boxes: {path!r} tells boxes by the names of images, and those of {found.name!r} "
                "have none; expected 'own', if boxes lie in its records"
            )
        self.labels = np.concatenate([np.zeros(0, np.int32), *labels])  # type: ignore
        self._numbers: dict[str, list[int]] = {}  # of images, by their names without suffix
        for i in range(len(self.labels)):
            stem = os.path.splitext(self._image(i)[-1])[0]
            self._numbers.setdefault(stem, []).append(i)

    def _image(self, i: int) -> list[str]:
        """The path of image i."""
        train = self._parts["train"]
        told = self._set.train.where(i) if i < train else self._set.test.where(i - train)
        return _PARTS.split(told)

    def add(self, annotation: Annotation) -> None:
        """Gives an annotation's boxes to its image, or notes what is wrong with it."""
        self._read += 1
        if annotation.error:
            return self._note(UNREADABLE, f"{annotation.where}: {annotation.error}")
        found = self._find(annotation.path)
        if len(found) != 1:
            return self._note(SEVERAL if found else NOT_THERE, annotation.where)
        self.give(found[0], annotation)

    def _find(self, path: tuple[str, ...]) -> list[int]:
        """The images that an annotation of this path may be of.

        Of several with this name those whose folders are most like the annotation's.
        """
        name, suffix = path[-1], os.path.splitext(path[-1])[1].lower()
        if suffix in SUFFIXES:
            stem = os.path.splitext(name)[0]
            found = [i for i in self._numbers.get(stem, ()) if self._image(i)[-1] == name]
        else:
            stem, found = name, self._numbers.get(name, [])
        above = path[-2] if len(path) > 1 else ""  # a class, but not where it names a part
        label = None if above in ("train", *TEST_PARTS) else self._classes.get(above)
        if label is not None:
            found = [i for i in found if self.labels[i] == label]
        if len(found) < 2:
            return found
        alike = [_alike(self._image(i)[:-1], path[:-1]) for i in found]
        return [i for i, same in zip(found, alike, strict=True) if same == max(alike)]

    def result(self) -> Annotated:
        """The boxes of both parts. DataError if no annotation was of any of their images."""
        if not self._edges:
            first = next((found[0] for found in self._problems.values()), "")
            called = "/".join(self._image(0)) if len(self.labels) else "none"
            raise DataError(
                f"boxes: none of {self._read:,} annotations in {self._path!r} is of an image of "
                f"{self._set.name!r}; the first is {first}, and images are called such as {called}"
            )
        return super().result()


def _alike(folders: list[str], others: tuple[str, ...]) -> int:
    """How many folders two paths share, from the last one on."""
    pairs = zip(reversed(folders), reversed(others), strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(folders), len(others)))


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 10


def _classes(found: ImageSet) -> dict[str, int]:
    """The classes by their folders and by their names, unless two have the same name."""
    folders = {name: k for k, name in enumerate(found.folders)}
    often = Counter(found.class_names)
    names = {name: k for k, name in enumerate(found.class_names) if often[name] == 1}
    return names | folders

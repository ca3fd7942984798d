"""Reads and decodes every image of a set once, as training would, and reports on them.

An image is usable if one of training's two ways decodes it. Memory holds some thirty bytes of each
image, and the reason of an unusable one.
"""

import contextlib
import dataclasses
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from input_pipeline import image_files, jpeg, stream, viewer
from input_pipeline.annotations import Annotated
from input_pipeline.annotations.matching import BEYOND, SCALED, STRETCHED, counted
from input_pipeline.boxes import Boxes
from input_pipeline.crops import IMAGENET_CROP
from input_pipeline.sources import ImageSet, Source
from input_pipeline.sources.source import Wrapped
from input_pipeline.threads import MemoryBudget, run_in_threads

WAYS = {
    viewer.PLAIN: "fast",
    viewer.ODD: "careful",
    viewer.DECODED: "before",
    viewer.UNUSABLE: "unusable",
}
NAMED = 5  # duplicates that are listed by name
# Limits on what all threads together hold at once; a larger file or image is read alone.
MAX_BYTES = 2**26  # of files
MAX_PIXELS = 2**25
FEW = 0.1  # a class with less than this share of the median number of images a class is named


# -------------------------------------------------------------------------------- the report


class Unusable(NamedTuple):
    """An image that training would leave out."""

    part: str
    file: str
    reason: str


@dataclass(frozen=True, eq=False)
class Part:
    """The report on one part of a set."""

    images: int
    usable: int
    size: int  # bytes
    short_sides: np.ndarray  # of usable images, in pixels
    long_sides: np.ndarray  # of usable images, in pixels
    # (format, way of decoding: one of `WAYS`) -> (number of images, an example)
    formats: dict[tuple[str, str], tuple[int, str]]
    per_class: np.ndarray  # (K,): usable images of each class
    turned: tuple[int, str]  # (number of images whose EXIF orientation is ignored, an example)

    @property
    def smaller(self) -> int:
        """Images whose short side is below ImageNet's crop."""
        return int((self.short_sides < IMAGENET_CROP).sum())

    def few(self) -> list[int]:
        """The classes with no images, or fewer than a tenth of the median; fewest first."""
        least = max(1.0, FEW * float(np.median(self.per_class)))
        order = np.argsort(self.per_class, kind="stable")
        return [int(k) for k in order if self.per_class[k] < least]


@dataclass(frozen=True)
class Duplicates:
    """Files with the same content."""

    across: int  # images of the test part that the training part has too
    train: int  # images of the training part that it has had before
    test: int  # images of the test part that it has had before
    labels: int  # of all these, those of another class than their twin
    names: tuple[tuple[str, str], ...]  # the first few pairs (in test, in train)


@dataclass(frozen=True, eq=False)
class Report:
    """The report on a whole set."""

    name: str
    class_names: tuple[str, ...]
    folders: tuple[str, ...]
    parts: dict[str, Part]  # `train` and `test`
    unusable: tuple[Unusable, ...]
    duplicates: Duplicates
    notes: tuple[str, ...]  # on files that are not read
    seconds: float
    threads: int
    boxes: Annotated | None = None  # with the problems that the images' own sizes show

    @property
    def images(self) -> int:
        return sum(part.images for part in self.parts.values())

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts.values())


# -------------------------------------------------------------------------------- the reading


def check(
    images: ImageSet,
    *,
    boxes: Annotated | None = None,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Reads and decodes every image of both parts once. Raises DataError.

    boxes: of these images. threads: by default two a core, at least four, as reading waits.
    on_progress: called with the number of images done and of all.
    """
    stream.check_installed()
    # Larger pieces than malloc keeps for itself: a large image's memory is given back.
    Image.core.set_block_size(2**26)
    threads = threads or max(4, 2 * stream.cores())
    sources = {"train": images.train, "test": images.test}
    total = sum(map(len, sources.values()))
    previous, start = 0, time.perf_counter()
    parts: dict[str, _Reading] = {}
    for name, source in sources.items():
        parts[name] = _Reading(name, source)
        with contextlib.closing(
            run_in_threads(parts[name].take_note, range(len(source)), threads)
        ) as counts:
            for done in counts:
                if previous + done:
                    on_progress(previous + done, total)
        previous += len(source)
    seconds = time.perf_counter() - start
    return Report(
        name=images.name,
        class_names=images.class_names,
        folders=images.folders,
        parts={name: part.report(images.classes) for name, part in parts.items()},
        unusable=tuple(entry for part in parts.values() for entry in part.unusable()),
        duplicates=_duplicates(parts["train"], parts["test"]),
        notes=images.notes,
        seconds=seconds,
        threads=threads,
        boxes=None if boxes is None else _with_size_problems(boxes, list(parts.values())),
    )


def _with_size_problems(boxes: Annotated, parts: "list[_Reading]") -> Annotated:
    """Boxes with the problems that a comparison with the sizes of their images shows."""
    problems: dict[str, list[str]] = {}
    for part, part_boxes in zip(parts, (boxes.train, boxes.test), strict=True):
        for i in np.flatnonzero((part_boxes.counts > 0) & part.sides.all(axis=1)).tolist():
            for kind in _size_problems(part_boxes, i, part.sides[i].tolist()):
                height, width = part.sides[i].tolist()
                text = f"{part.where(i)}: {width} x {height}"
                if kind != BEYOND:
                    text += f", annotated as {part_boxes.sizes[i, 1]} x {part_boxes.sizes[i, 0]}"
                problems.setdefault(kind, []).append(text)
    notes = (*boxes.notes, *counted(problems))
    return dataclasses.replace(boxes, notes=notes, problems=boxes.problems | problems)


def _size_problems(boxes: Boxes, i: int, size: list[int]) -> list[str]:
    """The kinds of problems of the boxes of image i. size: its height and width."""
    rows, columns = boxes.sizes[i].tolist()
    if (rows, columns) == (1, 1) or [rows, columns] == size:  # shares of the image
        return []
    if not rows:
        beyond = boxes.edges[boxes.starts[i] : boxes.starts[i + 1], 2:] > size[::-1]
        return [BEYOND] * int(beyond.any(axis=1).sum())
    # Both sides of an image that was shrunk are rounded, by half a pixel or a little more.
    same_shape = abs(size[0] * columns - size[1] * rows) <= max(rows, columns)
    return [SCALED if same_shape else STRETCHED]


class _Reading(Wrapped):
    """One part's images; notes facts of each in arrays (N,) while the viewer reads it."""

    labels: np.ndarray

    def __init__(self, part: str, source: Source):
        super().__init__(source)
        n = len(source)
        self.name, self.labels = part, np.full(n, -1, np.int32)
        self.sides: np.ndarray = np.zeros((n, 2), np.int32)  # height, width; 0 of unusable ones
        self._sizes: np.ndarray = np.zeros(n, np.int64)
        self._hashes: np.ndarray = np.zeros(n, np.uint64)
        self._ways: np.ndarray = np.full(n, viewer.UNUSABLE, np.uint8)
        self._formats = ["not read"] * n
        self._turned: np.ndarray = np.zeros(n, bool)
        self._bytes, self._pixels = MemoryBudget(MAX_BYTES), MemoryBudget(MAX_PIXELS)
        self._viewer = viewer.as_stored(self)

    def read(self, i: int) -> tuple[bytes, int]:
        content, label = self.source.read(i)
        self.labels[i], self._sizes[i] = label, len(content)
        digest = hashlib.blake2b(content, digest_size=8).digest()
        self._hashes[i] = int.from_bytes(digest, "little")
        self._formats[i] = sys.intern(self._format(i, content))  # kept once, not once an image
        self._turned[i] = image_files.orientation(content) != 1
        return content, label

    def _format(self, i: int, content: bytes) -> str:
        if self.source.pixels(i) is not None:
            return "pixels"
        kind = image_format(content)
        if kind.startswith(("JPEG", "empty")):
            return kind
        suffix = self.where(i).rpartition(".")[2]
        expected = image_files.FORMAT_OF.get(f".{suffix.lower()}")
        if expected is not None and expected != kind.split(",")[0]:
            return f"{kind}, named .{suffix}"
        return kind

    def take_note(self, i: int) -> None:
        with self._bytes.take(self.source.size(i)):
            content, about = self._viewer.fetch_file(i, 0)
            if about[viewer.KIND] == viewer.PLAIN:
                height, width = about[viewer.WINDOW][2:]
            else:
                height, width = image_files.stated_size(content)
            with self._pixels.take(int(height * width)):
                self.sides[i] = self._viewer.check(content, about)
        decoded = about[viewer.KIND] == viewer.ODD and self.source.pixels(i) is not None
        self._ways[i] = viewer.DECODED if decoded else about[viewer.KIND]

    def unusable(self) -> list[Unusable]:
        """The unusable images, in the order of the set."""
        reasons = sorted(self._viewer.reasons.items())
        return [Unusable(self.name, self.where(index), reason) for index, reason in reasons]

    def report(self, classes: int) -> Part:
        usable = self._ways != viewer.UNUSABLE
        sides, turned = self.sides[usable], np.flatnonzero(self._turned & usable)
        counts: Counter[tuple[str, str]] = Counter()
        first_of: dict[tuple[str, str], int] = {}
        for i, (kind, way) in enumerate(zip(self._formats, self._ways, strict=True)):
            counts[kind, WAYS[way]] += 1
            first_of.setdefault((kind, WAYS[way]), i)
        return Part(
            images=len(self),
            usable=int(usable.sum()),
            size=int(self._sizes.sum()),
            short_sides=sides.min(axis=1),
            long_sides=sides.max(axis=1),
            formats={key: (n, self.where(first_of[key])) for key, n in counts.most_common()},
            per_class=np.bincount(self.labels[usable], minlength=classes),
            turned=(len(turned), self.where(int(turned[0])) if len(turned) else ""),
        )

    def hashes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(hash, index, label) of each usable image, sorted by hash, then by index."""
        indices = np.flatnonzero(self._ways != viewer.UNUSABLE)
        indices = indices[np.argsort(self._hashes[indices], kind="stable")]
        return self._hashes[indices], indices, self.labels[indices]


def _duplicates(train: _Reading, test: _Reading) -> Duplicates:
    """Compares hashes of 64 bits, which two of ImageNet's files share once in 10 million sets."""
    (a, a_indices, a_labels), (b, b_indices, b_labels) = train.hashes(), test.hashes()
    place = np.searchsorted(a, b)  # the first of each in train
    twin = np.minimum(place, max(len(a) - 1, 0))
    in_train = a[twin] == b if len(a) else np.zeros(len(b), bool)
    repeats_a, repeats_b = (np.flatnonzero(x[1:] == x[:-1]) for x in (a, b))
    relabelled = sum(
        int((labels[repeats + 1] != labels[repeats]).sum())
        for labels, repeats in ((a_labels, repeats_a), (b_labels, repeats_b))
    )
    across = np.flatnonzero(in_train)
    relabelled += int((a_labels[twin[across]] != b_labels[across]).sum())
    first = across[np.argsort(b_indices[across])][:NAMED]
    return Duplicates(
        across=len(across),
        train=len(repeats_a),
        test=len(repeats_b),
        labels=relabelled,
        names=tuple(
            (test.where(int(b_indices[k])), train.where(int(a_indices[twin[k]]))) for k in first
        ),
    )


# --------------------------------------------------------------------------------- formats

_CODINGS = {0xC0: "", 0xC1: "", 0xC2: "progressive"}
_COMPONENTS = {1: "grey", 3: "", 4: "CMYK"}
_PNG_COLOURS = {0: "grey", 3: "palette", 4: "grey, transparent", 6: "transparent"}


def image_format(content: bytes) -> str:
    """The format by a file's first bytes: `JPEG`, `JPEG, progressive, grey`, `PNG, 16 bits`."""
    if not content:
        return "empty file"
    words = [image_files.format_of(content)]
    if words == ["JPEG"]:
        frame = jpeg.frame(content)
        if frame is None:
            return "JPEG, no header"
        words.append(_CODINGS.get(frame.marker, "rare coding"))
        words.append("" if frame.bits == 8 else f"{frame.bits} bits")
        words.append(_COMPONENTS.get(frame.components, f"{frame.components} components"))
    elif words == ["PNG"] and len(content) > 25:
        words += ["16 bits" if content[24] == 16 else "", _PNG_COLOURS.get(content[25], "")]
    return ", ".join(word for word in words if word)


def count_formats(report: Report) -> dict[tuple[str, str], Counter[str]]:
    """(format, way) -> number of images by part; the most frequent first, unusable ones last."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for name, part in report.parts.items():
        for key, (count, _) in part.formats.items():
            counts.setdefault(key, Counter())[name] += count
    unusable = WAYS[viewer.UNUSABLE]
    return dict(sorted(counts.items(), key=lambda e: (e[0][1] == unusable, -e[1].total())))

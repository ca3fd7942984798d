"""Every image of a set read and decoded once, as training would, and what was found.

What is called usable here is what training uses: what one of its two ways decodes. What is kept of
an image are some thirty bytes; of an unusable one also the reason.
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
from input_pipeline.sources.source import Changed
from input_pipeline.threads import Room, each

WAYS = {
    viewer.PLAIN: "fast",
    viewer.ODD: "careful",
    viewer.DECODED: "before",
    viewer.UNUSABLE: "unusable",
}
NAMED = 5  # duplicates that are listed by name
# What all threads together hold at once; a larger file or image is looked at alone.
MOST_BYTES = 2**26  # of files
MOST_PIXELS = 2**25
FEW = 0.1  # of the median number of images a class: a class with fewer is named


# -------------------------------------------------------------------------------- what it says


class Unusable(NamedTuple):
    """An image that training would leave out."""

    part: str
    file: str
    reason: str


@dataclass(frozen=True, eq=False)
class Part:
    """What was found in one part of a set. Sides are of usable images, in pixels.

    formats: (format, way of decoding: one of `WAYS`) -> (images, one of them). per_class: usable
    images of each class (K,). turned: those whose EXIF orientation is ignored, and one of them.
    """

    images: int
    usable: int
    size: int  # bytes
    short_sides: np.ndarray
    long_sides: np.ndarray
    formats: dict[tuple[str, str], tuple[int, str]]
    per_class: np.ndarray
    turned: tuple[int, str]

    @property
    def smaller(self) -> int:
        """Images whose short side is below ImageNet's crop."""
        return int((self.short_sides < IMAGENET_CROP).sum())

    def few(self) -> list[int]:
        """The classes with fewer images than a tenth of the median, or none, fewest first."""
        least = max(1.0, FEW * float(np.median(self.per_class)))
        order = np.argsort(self.per_class, kind="stable")
        return [int(k) for k in order if self.per_class[k] < least]


@dataclass(frozen=True)
class Duplicates:
    """Files with the same content. across: images of the test part that the training part has too.

    train, test: images that their own part has had before. labels: how many of all these have
    another class than their twin. names: the first few pairs (in test, in train).
    """

    across: int
    train: int
    test: int
    labels: int
    names: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class Report:
    """Of a whole set. parts: `train` and `test`. notes: of what lies there and was not read."""

    name: str
    class_names: tuple[str, ...]
    folders: tuple[str, ...]
    parts: dict[str, Part]
    unusable: tuple[Unusable, ...]
    duplicates: Duplicates
    notes: tuple[str, ...]
    seconds: float
    threads: int
    boxes: Annotated | None = None  # with what the sizes of the images themselves say of them

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

    boxes: of these images. threads: default two a core, four at least, as reading waits.
    on_progress(images done, of all).
    """
    stream.check_installed()
    # Larger pieces than malloc keeps for itself: a large image's memory is given back.
    Image.core.set_block_size(2**26)
    threads = threads or max(4, 2 * stream.cores())
    sources = {"train": images.train, "test": images.test}
    total = sum(map(len, sources.values()))
    before, start = 0, time.perf_counter()
    read: dict[str, _Reading] = {}
    for name, source in sources.items():
        read[name] = _Reading(name, source)
        with contextlib.closing(each(read[name].take_note, range(len(source)), threads)) as counts:
            for done in counts:
                if before + done:
                    on_progress(before + done, total)
        before += len(source)
    seconds = time.perf_counter() - start
    return Report(
        name=images.name,
        class_names=images.class_names,
        folders=images.folders,
        parts={name: one.part(images.classes) for name, one in read.items()},
        unusable=tuple(entry for one in read.values() for entry in one.unusable()),
        duplicates=_duplicates(read["train"], read["test"]),
        notes=images.notes,
        seconds=seconds,
        threads=threads,
        boxes=None if boxes is None else _compared(boxes, list(read.values())),
    )


def _compared(boxes: Annotated, read: "list[_Reading]") -> Annotated:
    """Boxes with what is odd about them beside the sizes of their images."""
    problems: dict[str, list[str]] = {}
    for one, own in zip(read, (boxes.train, boxes.test), strict=True):
        for i in np.flatnonzero((own.counts > 0) & one.sides.all(axis=1)).tolist():
            for kind in _odd_boxes(own, i, one.sides[i].tolist()):
                height, width = one.sides[i].tolist()
                told = f"{one.where(i)}: {width} x {height}"
                if kind != BEYOND:
                    told += f", annotated as {own.sizes[i, 1]} x {own.sizes[i, 0]}"
                problems.setdefault(kind, []).append(told)
    notes = (*boxes.notes, *counted(problems))
    return dataclasses.replace(boxes, notes=notes, problems=boxes.problems | problems)


def _odd_boxes(boxes: Boxes, i: int, size: list[int]) -> list[str]:
    """The kinds of what is odd about the boxes of image i, which has this height and width."""
    rows, columns = boxes.sizes[i].tolist()
    if (rows, columns) == (1, 1) or [rows, columns] == size:  # shares of the image
        return []
    if not rows:
        over = boxes.edges[boxes.starts[i] : boxes.starts[i + 1], 2:] > size[::-1]
        return [BEYOND] * int(over.any(axis=1).sum())
    # Both sides of an image that was made smaller are rounded: by half a pixel, or a little more.
    same = abs(size[0] * columns - size[1] * rows) <= max(rows, columns)
    return [SCALED if same else STRETCHED]


class _Reading(Changed):
    """One part's images while they are read: notes what passes through, in arrays (N,)."""

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
        self._bytes, self._pixels = Room(MOST_BYTES), Room(MOST_PIXELS)
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
        usual = image_files.FORMAT_OF.get(f".{suffix.lower()}")
        if usual is not None and usual != kind.split(",")[0]:
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
        """In the order of the set."""
        reasons = sorted(self._viewer.reasons.items())
        return [Unusable(self.name, self.where(index), reason) for index, reason in reasons]

    def part(self, classes: int) -> Part:
        usable = self._ways != viewer.UNUSABLE
        sides, turned = self.sides[usable], np.flatnonzero(self._turned & usable)
        counts: Counter[tuple[str, str]] = Counter()
        first: dict[tuple[str, str], int] = {}
        for i, (kind, way) in enumerate(zip(self._formats, self._ways, strict=True)):
            counts[kind, WAYS[way]] += 1
            first.setdefault((kind, WAYS[way]), i)
        return Part(
            images=len(self),
            usable=int(usable.sum()),
            size=int(self._sizes.sum()),
            short_sides=sides.min(axis=1),
            long_sides=sides.max(axis=1),
            formats={key: (n, self.where(first[key])) for key, n in counts.most_common()},
            per_class=np.bincount(self.labels[usable], minlength=classes),
            turned=(len(turned), self.where(int(turned[0])) if len(turned) else ""),
        )

    def hashes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(hash, index, label) of each usable image, sorted by hash, then by index."""
        at = np.flatnonzero(self._ways != viewer.UNUSABLE)
        at = at[np.argsort(self._hashes[at], kind="stable")]
        return self._hashes[at], at, self.labels[at]


def _duplicates(train: _Reading, test: _Reading) -> Duplicates:
    """By a hash of 64 bits: two different files among ImageNet's agree once in 10 million sets."""
    (a, a_at, a_labels), (b, b_at, b_labels) = train.hashes(), test.hashes()
    place = np.searchsorted(a, b)  # the first of each in train
    twin = np.minimum(place, max(len(a) - 1, 0))
    same = a[twin] == b if len(a) else np.zeros(len(b), bool)
    again_a, again_b = (np.flatnonzero(x[1:] == x[:-1]) for x in (a, b))
    other = sum(
        int((labels[again + 1] != labels[again]).sum())
        for labels, again in ((a_labels, again_a), (b_labels, again_b))
    )
    across = np.flatnonzero(same)
    other += int((a_labels[twin[across]] != b_labels[across]).sum())
    first = across[np.argsort(b_at[across])][:NAMED]
    return Duplicates(
        across=len(across),
        train=len(again_a),
        test=len(again_b),
        labels=other,
        names=tuple((test.where(int(b_at[k])), train.where(int(a_at[twin[k]]))) for k in first),
    )


# --------------------------------------------------------------------------------- formats

_CODINGS = {0xC0: "", 0xC1: "", 0xC2: "progressive"}
_COMPONENTS = {1: "grey", 3: "", 4: "CMYK"}
_PNG_COLOURS = {0: "grey", 3: "palette", 4: "grey, transparent", 6: "transparent"}


def image_format(content: bytes) -> str:
    """What a file's first bytes say it is: `JPEG`, `JPEG, progressive, grey`, `PNG, 16 bits`."""
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
    """(format, way) -> images of each part; the most frequent first, unusable ones last."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for name, part in report.parts.items():
        for key, (count, _) in part.formats.items():
            found.setdefault(key, Counter())[name] += count
    unusable = WAYS[viewer.UNUSABLE]
    return dict(sorted(found.items(), key=lambda e: (e[0][1] == unusable, -e[1].total())))

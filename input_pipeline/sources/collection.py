"""All images of a set, with the classes of each and the part that it belongs to.

Features are computed once of every image, so a part is a column here, not a source of its own.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from input_pipeline.pixels import Pixels, ppm
from input_pipeline.sources.source import Source

PARTS = ("any", "train", "test")  # by code; `any` where a set has no parts
ANY, TRAIN, TEST = range(len(PARTS))


@dataclasses.dataclass(frozen=True, eq=False)
class Collection:
    """The n images of a set, of K classes."""

    name: str
    images: Source  # of all parts; their labels are 0 where there are `targets`
    class_names: tuple[str, ...]
    fingerprint: str  # changes when contents, names, classes or parts do
    parts: np.ndarray  # (n,) uint8, each a code of PARTS
    # (n, K) int8, where an image may be of several classes: 1 for a class that it is of, 0 for
    # another, -1 for one that counts neither way (VOC's difficult objects).
    targets: np.ndarray | None = None
    mirror_ok: bool = True  # False where a mirrored image is not one of its class
    background: int | None = None  # the class of images of nothing in particular, if there is one

    def __len__(self) -> int:
        return len(self.parts)


class Joined(Source):
    """The images of several sources, one after the other."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = tuple(sources)
        self._ends = np.cumsum([len(source) for source in sources])
        labels_by_source = [source.labels for source in sources]
        known_labels = [labels for labels in labels_by_source if labels is not None]
        self.labels = (
            np.concatenate(known_labels) if len(known_labels) == len(labels_by_source) else None
        )
        self.notes = tuple(dict.fromkeys(note for source in sources for note in source.notes))
        starts = self._ends - [len(source) for source in sources]
        self.missing = [
            int(start) + i
            for start, source in zip(starts, sources, strict=True)
            for i in source.missing
        ]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, i: int) -> tuple[Source, int]:
        k = int(np.searchsorted(self._ends, i, "right"))
        return self._sources[k], i - (int(self._ends[k - 1]) if k else 0)

    def read(self, i: int) -> tuple[bytes, int]:
        source, position = self._locate(i)
        return source.read(position)

    def where(self, i: int) -> str:
        source, position = self._locate(i)
        return source.where(position)

    def size(self, i: int) -> int:
        source, position = self._locate(i)
        return source.size(position)

    def pixels(self, i: int) -> Pixels | None:
        source, position = self._locate(i)
        return source.pixels(position)


class InMemory(Source):
    """Images that lie in memory, (n, H, W, C) uint8 with 1 or 3 channels, as PPM files."""

    labels: np.ndarray

    def __init__(self, images: np.ndarray, labels: np.ndarray, where: str):
        self.images, self.labels, self._where = images, labels, where

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int) -> tuple[bytes, int]:
        image = self.images[i]
        return ppm(np.broadcast_to(image, (*image.shape[:2], 3))), int(self.labels[i])

    def where(self, i: int) -> str:
        return f"{self._where}: image {i}"

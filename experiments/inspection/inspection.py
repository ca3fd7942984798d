"""All parts of an inspection, one after the other, and their arrays as one file."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from cnn_arch import ArchitectureError, layer_outputs
from experiments.config import ConfigError
from experiments.inspection import attention, codes, filters, neighbours, statistics, units
from experiments.inspection.attention import Occlusion, Saliency
from experiments.inspection.codes import Codes
from experiments.inspection.filters import Filters
from experiments.inspection.looking import Looking, Shown, evenly
from experiments.inspection.neighbours import Features
from experiments.inspection.statistics import LayerGradient, LayerStatistics, LoggedGradient
from experiments.inspection.units import Units
from experiments.runs import runs
from experiments.testing.tester import Progress
from experiments.text import nearest as nearest_word
from input_pipeline.whole_files import Arrays, write_arrays

FILE = "inspection.npz"  # beside the page
PARTS = ("filters", "units", "nearest", "codes", "occlusion", "saliency", "statistics")
OF_SCORES = ("occlusion", "saliency")  # parts that look at a class's score
SAYS_BOXES = "the run says boxes (train.boxes), and has no scores of classes"
QUERIES = 6  # images whose neighbours, occlusion and saliency are shown
NEAREST = 6  # neighbours of each
# Arrays of the file: name -> what it is. LAYER and HOW stand for names of layers and ways.
ARRAYS = {
    "classes": "names of the set's classes",
    "network_classes": "names of the network's classes",
    "filters/kernels": "(h, w, C, n) weights of the first convolution",
    "units/LAYER/units": "(u,) numbers of the units",
    "units/LAYER/ids": "(u, k) places of the images in the set, the most exciting first",
    "units/LAYER/values": "(u, k) their responses",
    "units/LAYER/places": "(u, k, 2) row and column of the response in the map",
    "units/LAYER/boxes": "(u, k, 4) top, left, bottom, right of the patch, pixels of the view",
    "nearest/queries": "(q,) ids of the query images",
    "nearest/ids": "(q, k) ids of their nearest training images, the nearest first",
    "nearest/distances": "(q, k) Euclidean distances of the features",
    "codes/training_ids": "(n,) ids of the training images that have codes",
    "codes/tested_ids": "(m,) ids of the test images that have codes",
    "codes/HOW/training": "(n, bits) bool, codes of the training images",
    "codes/HOW/tested": "(m, bits) bool, codes of the test images",
    "codes/HOW/recall": "recall@10",
    "images/ids": "(q,) ids of the images of occlusion and saliency",
    "images/pictures": "(q, h, w, C) uint8, their views",
    "images/classes": "(q,) classes of the network whose posterior or score is looked at",
    "occlusion/whole": "(q,) posteriors of the whole images",
    "occlusion/covered": "(q, p, p) posteriors, by the square's first row and column",
    "occlusion/firsts": "(p,) these rows and columns, pixels",
    "occlusion/square": "side of the square, pixels",
    "saliency/maps": "(q, h, w) largest absolute gradient of the score over channels",
    "statistics/layers": "(L,) names of layers and blocks, in the order of computation",
    "statistics/depths": "(L,) layers with weights up to each",
    "statistics/units": "(L,) maps, or outputs of fully connected layers",
    "statistics/means": "(L,) of their outputs",
    "statistics/deviations": "(L,) of their outputs",
    "statistics/dead": "(L,) units that are never above zero",
    "logged/layers": "(W,) names of layers whose gradients the training logged",
    "logged/epochs": "(T,) of its lines",
    "logged/gradients": "(W, T) root mean squares of the loss's gradient over their weights",
    "gradients/layers": "(W,) names of layers with weights",
    "gradients/depths": "(W,)",
    "gradients/mean_squares": "(W,) mean squares of the loss's gradient by a layer's weights",
}


@dataclass(frozen=True)
class Asked:
    """What is looked at, and how much of it."""

    parts: tuple[str, ...] = PARTS
    layers: tuple[str, ...] = ()  # of `units`; none: as `units.layers` chooses
    units: int = 8  # of each layer
    images: int = 500  # that `units` and `statistics` look through
    bits: int = codes.BITS

    def check(self) -> None:
        """Raises ConfigError for what can't be."""
        for part in self.parts:
            if part not in PARTS:
                near = nearest_word("; is {!r} meant?", part, PARTS)
                raise ConfigError(f"--parts {part!r}; expected some of {', '.join(PARTS)}{near}")
        for name in ("units", "images", "bits"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True)
class Neighbours:
    """The nearest training images of some test images."""

    layer: str
    of: int  # training images among which they were looked for
    queries: np.ndarray  # (q,) ids
    ids: np.ndarray  # (q, k)
    distances: np.ndarray  # (q, k)


@dataclass
class Inspection:
    """What was found, None where it was not asked for or can't be: `left_out` says why."""

    run: str
    step: int
    data: str
    class_names: tuple[str, ...]  # of the set
    network_classes: tuple[str, ...]
    own_classes: bool  # whether the set's classes are the network's
    has_parts: bool  # of the set; else every fifth image is a test image
    several: bool = False  # whether an image of the set may be of several classes
    filters: Filters | None = None
    units: list[Units] = field(default_factory=list)
    nearest: Neighbours | None = None
    features: Features | None = None  # of `nearest` and `codes`
    codes: list[Codes] = field(default_factory=list)
    images: Shown | None = None  # of `occlusion` and `saliency`
    occlusion: Occlusion | None = None
    saliency: Saliency | None = None
    statistics: list[LayerStatistics] = field(default_factory=list)
    gradients: list[LayerGradient] = field(default_factory=list)
    logged: list[LoggedGradient] = field(default_factory=list)
    pictures: dict[int, np.ndarray] = field(default_factory=dict)  # id -> view (h, w, C) uint8
    labels: dict[int, int] = field(default_factory=dict)  # id -> class of the set
    left_out: dict[str, str] = field(default_factory=dict)  # part -> why

    def arrays(self) -> Arrays:
        """Everything of it by the names of `ARRAYS`."""
        told: Arrays = {
            "classes": np.array(self.class_names),
            "network_classes": np.array(self.network_classes),
        }
        if self.filters is not None:
            told["filters/kernels"] = self.filters.kernels
        for one in self.units:
            for name in ("units", "ids", "values", "places", "boxes"):
                told[f"units/{one.layer}/{name}"] = getattr(one, name)
        if self.nearest is not None:
            for name in ("queries", "ids", "distances"):
                told[f"nearest/{name}"] = getattr(self.nearest, name)
        if self.codes and self.features is not None:
            told["codes/training_ids"] = self.features.training_ids
            told["codes/tested_ids"] = self.features.tested_ids
        for code in self.codes:
            for name in ("training", "tested", "recall"):
                told[f"codes/{code.how}/{name}"] = np.asarray(getattr(code, name))
        return told | self._attention() | self._statistics()

    def _attention(self) -> Arrays:
        told: Arrays = {}
        if self.images is not None:
            told["images/ids"], told["images/pictures"] = self.images.ids, self.images.pictures
        for found in (self.occlusion, self.saliency):
            if found is not None:
                told["images/classes"] = found.classes
        if self.occlusion is not None:
            for name in ("whole", "covered", "firsts", "square"):
                told[f"occlusion/{name}"] = np.asarray(getattr(self.occlusion, name))
        if self.saliency is not None:
            told["saliency/maps"] = self.saliency.maps
        return told

    def _statistics(self) -> Arrays:
        told: Arrays = {}
        for name, found, columns in (
            ("statistics", self.statistics, ("layer", "depth", "units", "mean", "deviation")),
            ("gradients", self.gradients, ("layer", "depth", "mean_square")),
        ):
            for column in columns if found else ():
                key = f"{name}/{column.removesuffix('s')}s"
                told[key] = np.array([getattr(one, column) for one in found])
        if self.statistics:
            told["statistics/dead"] = np.array([one.dead for one in self.statistics])
        if self.logged:
            told["logged/layers"] = np.array([one.layer for one in self.logged])
            told["logged/epochs"] = self.logged[0].epochs
            told["logged/gradients"] = np.stack([one.values for one in self.logged])
        return told


def write(found: Inspection, file: Path) -> None:
    """Writes `Inspection.arrays` as an .npz. Raises RunError where it can't be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(file, found.arrays())
    except OSError as error:
        raise runs.unwritten(file, error) from error


def inspect(
    looking: Looking, asked: Asked, on_part: Callable[[str], None] = lambda part: None
) -> Inspection:
    """Looks at all parts that are asked for, in the order of PARTS. on_part: hears of each.

    Raises ArchitectureError for an unknown layer, ConfigError for what else can't be asked, and
    DataError where no image can be used.
    """
    asked.check()
    for layer in asked.layers:
        layer_outputs.check(looking.bare, layer)
    work = _Work(looking, asked)
    boxes = looking.subject.config.train.boxes != "none"
    for part in PARTS:
        if boxes and part in asked.parts and part in OF_SCORES:
            work.found.left_out[part] = SAYS_BOXES
        elif part in asked.parts:
            on_part(part)
            try:
                getattr(work, part)()
            except ArchitectureError as error:
                work.found.left_out[part] = str(error)
    work.add_pictures()
    return work.found


class _Work:
    """The parts of one inspection, and what they share."""

    def __init__(self, looking: Looking, asked: Asked) -> None:
        self.looking, self.asked = looking, asked
        subject = looking.subject
        self.found = Inspection(
            run=subject.run.id,
            step=subject.step,
            data=subject.collection.name,
            class_names=looking.class_names,
            network_classes=subject.data.seen.class_names,
            own_classes=looking.own_classes is not None,
            several=subject.collection.targets is not None,
            has_parts=looking.has_parts,
        )

    def bar(self, what: str) -> AbstractContextManager[Progress]:
        subject = self.looking.subject
        return subject.bar(f"{subject.run.id} {what}")

    @cached_property
    def ids(self) -> np.ndarray:
        """Of the images that `units` and `statistics` look through."""
        return evenly(self.looking.tested, self.asked.images)

    @cached_property
    def queries(self) -> np.ndarray:
        return self.looking.spread(self.looking.tested, QUERIES)

    @cached_property
    def features(self) -> Features:
        self.found.features = neighbours.features(self.looking, self.queries)
        return self.found.features

    @cached_property
    def shown(self) -> tuple[Shown, np.ndarray]:
        images = self.looking.shown(self.queries)
        self.found.images = images
        return images, self.looking.classes_of(images)

    def filters(self) -> None:
        self.found.filters = filters.first(self.looking)

    def units(self) -> None:
        names = list(self.asked.layers) or units.layers(self.looking.bare)
        with self.bar("units") as on_progress:
            self.found.units = units.most_exciting(
                self.looking, names, self.ids, self.asked.units, on_progress
            )

    def nearest(self) -> None:
        features = self.features
        queries = self.queries[np.isin(self.queries, features.tested_ids)]
        at = np.searchsorted(features.tested_ids, queries)
        rows, distances = neighbours.nearest(features.training, features.tested[at], NEAREST)
        ids, of = features.training_ids[rows], len(features.training)
        self.found.nearest = Neighbours(features.layer, of, queries, ids, distances)

    def codes(self) -> None:
        self.found.codes = codes.compared(self.features, self.asked.bits)

    def occlusion(self) -> None:
        with self.bar("occlusion") as on_progress:
            self.found.occlusion = attention.occlusion(self.looking, *self.shown, on_progress)

    def saliency(self) -> None:
        self.found.saliency = attention.saliency(self.looking, *self.shown)

    def statistics(self) -> None:
        found, looking = self.found, self.looking
        with self.bar("statistics") as on_progress:
            found.statistics = statistics.of_layers(looking, self.ids, on_progress)
        found.logged = statistics.logged(looking)
        if looking.subject.config.train.boxes != "none":
            found.left_out["gradients"] = SAYS_BOXES
            return
        if looking.several:
            found.left_out["gradients"] = "images may be of several classes"
            return
        if looking.own_classes is None:
            found.left_out["gradients"] = f"classes of {found.data} are not the network's"
            return
        ids = looking.spread(looking.training, statistics.TRAINING)
        found.gradients = statistics.gradients(looking, ids)

    def add_pictures(self) -> None:
        """Of all images that are shown."""
        found = self.found
        needed: Sequence[np.ndarray] = [one.ids.ravel() for one in found.units]
        if found.nearest is not None:
            needed = [*needed, found.nearest.queries, found.nearest.ids.ravel()]
        if not needed:
            return
        seen = self.looking.shown(np.unique(np.concatenate(needed)))
        for at, picture, label in zip(seen.ids, seen.pictures, seen.labels, strict=True):
            found.pictures[int(at)], found.labels[int(at)] = picture, int(label)

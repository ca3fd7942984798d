"""Runs all parts of an inspection, and writes their arrays to one file."""

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
# Arrays of the file: name -> description. LAYER and HOW stand for names of layers and ways.
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
class InspectionSettings:
    """The parts of an inspection that are asked for, and their sizes."""

    parts: tuple[str, ...] = PARTS
    layers: tuple[str, ...] = ()  # of `units`; none: as `units.layers` chooses
    units: int = 8  # of each layer
    images: int = 500  # that `units` and `statistics` look through
    bits: int = codes.BITS

    def check(self) -> None:
        """Raises ConfigError for an unknown part, or a size below 1."""
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
    training_images: int  # among which they were looked for
    queries: np.ndarray  # (q,) ids
    ids: np.ndarray  # (q, k)
    distances: np.ndarray  # (q, k)


@dataclass
class Inspection:
    """What an inspection shows. Parts that were not asked for, or are in `left_out`, are empty."""

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
        """All arrays of the inspection, by the names of `ARRAYS`."""
        arrays: Arrays = {
            "classes": np.array(self.class_names),
            "network_classes": np.array(self.network_classes),
        }
        if self.filters is not None:
            arrays["filters/kernels"] = self.filters.kernels
        for layer_units in self.units:
            for name in ("units", "ids", "values", "places", "boxes"):
                arrays[f"units/{layer_units.layer}/{name}"] = getattr(layer_units, name)
        if self.nearest is not None:
            for name in ("queries", "ids", "distances"):
                arrays[f"nearest/{name}"] = getattr(self.nearest, name)
        if self.codes and self.features is not None:
            arrays["codes/training_ids"] = self.features.training_ids
            arrays["codes/tested_ids"] = self.features.tested_ids
        for code in self.codes:
            for name in ("training", "tested", "recall"):
                arrays[f"codes/{code.how}/{name}"] = np.asarray(getattr(code, name))
        return arrays | self._attention() | self._statistics()

    def _attention(self) -> Arrays:
        arrays: Arrays = {}
        if self.images is not None:
            arrays["images/ids"], arrays["images/pictures"] = self.images.ids, self.images.pictures
        for maps in (self.occlusion, self.saliency):
            if maps is not None:
                arrays["images/classes"] = maps.classes
        if self.occlusion is not None:
            for name in ("whole", "covered", "firsts", "square"):
                arrays[f"occlusion/{name}"] = np.asarray(getattr(self.occlusion, name))
        if self.saliency is not None:
            arrays["saliency/maps"] = self.saliency.maps
        return arrays

    def _statistics(self) -> Arrays:
        arrays: Arrays = {}
        for name, layers, columns in (
            ("statistics", self.statistics, ("layer", "depth", "units", "mean", "deviation")),
            ("gradients", self.gradients, ("layer", "depth", "mean_square")),
        ):
            for column in columns if layers else ():
                key = f"{name}/{column.removesuffix('s')}s"
                arrays[key] = np.array([getattr(layer, column) for layer in layers])
        if self.statistics:
            arrays["statistics/dead"] = np.array([layer.dead for layer in self.statistics])
        if self.logged:
            arrays["logged/layers"] = np.array([layer.layer for layer in self.logged])
            arrays["logged/epochs"] = self.logged[0].epochs
            arrays["logged/gradients"] = np.stack([layer.values for layer in self.logged])
        return arrays


def write(inspection: Inspection, file: Path) -> None:
    """Writes `Inspection.arrays` as an .npz. Raises RunError where it can't be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(file, inspection.arrays())
    except OSError as error:
        raise runs.unwritten(file, error) from error


def inspect(
    looking: Looking,
    request: InspectionSettings,
    on_part: Callable[[str], None] = lambda part: None,
) -> Inspection:
    """Makes all parts that are asked for, in the order of PARTS. on_part: called with each.

    Raises ArchitectureError for an unknown layer, ConfigError as `InspectionSettings.check` does,
    and DataError where no image can be used.
    """
    request.check()
    for layer in request.layers:
        layer_outputs.check(looking.bare, layer)
    work = _Work(looking, request)
    says_boxes = looking.subject.config.train.boxes != "none"
    for part in PARTS:
        if says_boxes and part in request.parts and part in OF_SCORES:
            work.inspection.left_out[part] = SAYS_BOXES
        elif part in request.parts:
            on_part(part)
            try:
                getattr(work, part)()
            except ArchitectureError as error:
                work.inspection.left_out[part] = str(error)
    work.add_pictures()
    return work.inspection


class _Work:
    """The parts of one inspection, and what they share."""

    def __init__(self, looking: Looking, request: InspectionSettings) -> None:
        self.looking, self.request = looking, request
        subject = looking.subject
        self.inspection = Inspection(
            run=subject.run.id,
            step=subject.step,
            data=subject.collection.name,
            class_names=looking.class_names,
            network_classes=subject.data.preprocessing.class_names,
            own_classes=looking.own_classes is not None,
            several=subject.collection.targets is not None,
            has_parts=looking.has_parts,
        )

    def bar(self, label: str) -> AbstractContextManager[Progress]:
        subject = self.looking.subject
        return subject.bar(f"{subject.run.id} {label}")

    @cached_property
    def ids(self) -> np.ndarray:
        """Ids of the images that `units` and `statistics` look through."""
        return evenly(self.looking.tested, self.request.images)

    @cached_property
    def queries(self) -> np.ndarray:
        return self.looking.spread(self.looking.tested, QUERIES)

    @cached_property
    def features(self) -> Features:
        self.inspection.features = neighbours.features(self.looking, self.queries)
        return self.inspection.features

    @cached_property
    def shown(self) -> tuple[Shown, np.ndarray]:
        images = self.looking.shown(self.queries)
        self.inspection.images = images
        return images, self.looking.classes_of(images)

    def filters(self) -> None:
        self.inspection.filters = filters.first(self.looking)

    def units(self) -> None:
        names = list(self.request.layers) or units.layers(self.looking.bare)
        with self.bar("units") as on_progress:
            self.inspection.units = units.most_exciting(
                self.looking, names, self.ids, self.request.units, on_progress
            )

    def nearest(self) -> None:
        features = self.features
        queries = self.queries[np.isin(self.queries, features.tested_ids)]
        at = np.searchsorted(features.tested_ids, queries)
        rows, distances = neighbours.nearest(features.training, features.tested[at], NEAREST)
        ids, n = features.training_ids[rows], len(features.training)
        self.inspection.nearest = Neighbours(features.layer, n, queries, ids, distances)

    def codes(self) -> None:
        self.inspection.codes = codes.compared(self.features, self.request.bits)

    def occlusion(self) -> None:
        with self.bar("occlusion") as on_progress:
            self.inspection.occlusion = attention.occlusion(self.looking, *self.shown, on_progress)

    def saliency(self) -> None:
        self.inspection.saliency = attention.saliency(self.looking, *self.shown)

    def statistics(self) -> None:
        inspection, looking = self.inspection, self.looking
        with self.bar("statistics") as on_progress:
            inspection.statistics = statistics.of_layers(looking, self.ids, on_progress)
        inspection.logged = statistics.logged(looking)
        if looking.subject.config.train.boxes != "none":
            inspection.left_out["gradients"] = SAYS_BOXES
            return
        if looking.several:
            inspection.left_out["gradients"] = "images may be of several classes"
            return
        if looking.own_classes is None:
            inspection.left_out["gradients"] = f"classes of {inspection.data} are not the network's"
            return
        ids = looking.spread(looking.training, statistics.TRAINING)
        inspection.gradients = statistics.gradients(looking, ids)

    def add_pictures(self) -> None:
        """Adds the views and labels of the images of units and neighbours."""
        inspection = self.inspection
        needed: Sequence[np.ndarray] = [layer_units.ids.ravel() for layer_units in inspection.units]
        if inspection.nearest is not None:
            needed = [*needed, inspection.nearest.queries, inspection.nearest.ids.ravel()]
        if not needed:
            return
        shown = self.looking.shown(np.unique(np.concatenate(needed)))
        for i, picture, label in zip(shown.ids, shown.pictures, shown.labels, strict=True):
            inspection.pictures[int(i)], inspection.labels[int(i)] = picture, int(label)

"""Heads on features that tables ask for: on which images, and what they came to."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from experiments.papers.table import Target, Transferred
from experiments.runs.runs import Run
from experiments.testing import protocols
from experiments.transfer import features, result_store
from experiments.transfer.transfer import HeadSettings
from input_pipeline import DataError, collections, crops
from input_pipeline.sources.collection import Collection

Reading = Callable[[str], AbstractContextManager[Any]]  # shows the reading of data, by their name


@dataclass(frozen=True)
class Head:
    """A head on features of trained runs, side by side."""

    runs: tuple[Run, ...]
    layer: str
    protocol: str  # of the features; this and `scales` as `protocols.resolve` takes them
    scales: str
    data: str | None  # as `open_collection` takes it; None are the runs' own images
    name: str  # of the set
    fingerprint: str  # of the set; '' where it is not at hand, and only its name is known
    how: HeadSettings

    def result(self) -> dict[str, Any] | None:
        """The figures that are kept of it; None where it was not computed."""
        parts = protocols.resolve(self.protocol, self.runs[0].config(), self.scales)
        key = self.runs, self.layer, [part.name for part in parts]
        if self.fingerprint:
            return result_store.by_fingerprint(*key, self.fingerprint, self.how)
        return result_store.by_name(*key, self.name, self.how)


class Sets:
    """The images that heads of a profile's tables are tested on; each set is opened once.

    folder: of `table --sets`, where the papers' sets lie. reading: makes a context that shows the
    progress while a set is read.
    """

    def __init__(self, folder: Path | None = None, reading: Reading | None = None):
        self.folder = folder
        self.failed: dict[Head, str] = {}  # why a head could not be computed; the caller fills it
        self._reading = reading or (lambda name: nullcontext(None))
        self._opened = cache(self._open)

    def heads(
        self, measured: Transferred, profile: str, runs: Sequence[Run], paper_crop: int
    ) -> dict[str, Head | str]:
        """Column -> its head, or why there can be none, of columns with images in the profile.

        runs: trained ones, one a network.
        """
        heads: dict[str, Head | str] = {}
        for key in measured.on:
            if target := measured.target(key, profile):
                try:
                    heads[key] = self._head(measured, target, runs, paper_crop)
                except ValueError as error:  # images that are not there, or of no use
                    if not getattr(error, "user_error", False):
                        raise
                    heads[key] = str(error)
        return heads

    def why_not(self, head: Head) -> str:
        """Why a head that is asked for is not there."""
        if not head.fingerprint:
            return "--sets says where the images are"
        return self.failed.get(head, "its head is not learnt yet")

    def _head(
        self, measured: Transferred, target: Target, runs: Sequence[Run], paper_crop: int
    ) -> Head:
        config = runs[0].config()
        crop, sides = config.data.image_size, map(int, target.scales.split(","))
        how = HeadSettings(
            head="svm",
            normalise="l2",
            combine=target.combine,
            train_per_class=target.train_per_class,
            test_per_class=target.test_per_class,
            splits=target.splits,
            precision=target.precision,
        )
        data, name, fingerprint = None, target.name, ""
        if not target.place:
            collection = self._opened(runs[0])
            how = replace(how, only=_unseen_classes(collection, config.data.classes))
            name, fingerprint = collection.name, collection.fingerprint
        elif self.folder is not None:
            data = str(self.folder / target.place)
            fingerprint = self._papers(data, name).fingerprint
        return Head(
            runs=tuple(runs),
            layer=measured.layer,
            protocol=measured.nets[0].protocol,
            scales=",".join(str(crops.in_ratio(Q, crop, paper_crop)) for Q in sides),
            data=data,
            name=name,
            fingerprint=fingerprint,
            how=how,
        )

    def _papers(self, data: str, name: str) -> Collection:
        """A set that a paper names. Raises DataError where it is not there, or is another set."""
        if not Path(data).is_dir():
            raise DataError(f"{data} is not there")
        collection = self._opened(data)
        if collection.name != name:
            raise DataError(f"{data} holds {collection.name}; expected {name} as it is given out")
        return collection

    def _open(self, data: str | Run) -> Collection:
        """A set by its place, or the one that a run was trained on."""
        with self._reading(data if isinstance(data, str) else features.own_set(data)) as on_read:
            if isinstance(data, str):
                return collections.open_collection(data, on_read)
            return features.own_images(data, on_read)


def _unseen_classes(collection: Collection, learnt: Sequence[str]) -> tuple[str, ...]:
    """The classes of a set that nets were not trained on. Raises DataError for fewer than two."""
    unseen = tuple(name for name in collection.class_names if name not in learnt) if learnt else ()
    if len(unseen) < 2:
        raise DataError(
            f"the nets were trained on {'all' if not unseen else 'all but one'} of the classes of "
            f"{collection.name}; data.classes has to leave two at least"
        )
    return unseen

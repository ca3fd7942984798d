"""A trained network with the images of a set, its views of them, and programs on these."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

import cnn_arch
from cnn_arch import execution
from experiments.transfer.features import Extractor
from input_pipeline import DataError, classes, crops
from input_pipeline.sources.collection import TEST, TRAIN

BATCH = 64  # images at once, at most
Function = Callable[..., Any]  # of a network in eval mode, its input (B, h, w, C), and more arrays


@dataclass(frozen=True)
class Shown:
    """n images as the network sees them."""

    x: np.ndarray  # (n, h, w, C) float32, normalised
    pictures: np.ndarray  # (n, h, w, C) uint8, the same views before they are normalised
    ids: np.ndarray  # (n,) int32, the images' places in the set
    labels: np.ndarray  # (n,) int32, of the set's classes

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Batch:
    """Images on the device; only those where `mask` is true count."""

    x: jax.Array  # (B, h, w, C) float32, normalised
    ids: np.ndarray  # (B,) int32
    labels: np.ndarray  # (B,) int32
    mask: np.ndarray  # (B,) bool


class Looking:
    """A network and the images of a set, seen in the central view of the run's own test."""

    def __init__(self, subject: Extractor):
        self.subject = subject

    @property
    def view(self) -> crops.CentreView:
        return self.subject.data.centre

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the set's classes."""
        return self.subject.collection.class_names

    @cached_property
    def training(self) -> np.ndarray:
        """Ids of the training images; of a set without parts, all that are not `tested`."""
        parts = self.subject.collection.parts
        if self.has_parts:
            return np.flatnonzero(parts == TRAIN)
        return np.setdiff1d(np.arange(len(parts)), self.tested)

    @cached_property
    def tested(self) -> np.ndarray:
        """Ids of the test images; of a set without parts, every fifth image."""
        parts = self.subject.collection.parts
        return np.flatnonzero(parts == TEST) if self.has_parts else np.arange(0, len(parts), 5)

    @property
    def has_parts(self) -> bool:
        parts = self.subject.collection.parts
        return bool((parts == TEST).any() and (parts == TRAIN).any())

    def spread(self, ids: np.ndarray, n: int) -> np.ndarray:
        """At most n of these ids, spread evenly over classes, or without labels over places."""
        labels = self.subject.collection.images.labels
        if labels is not None:
            ids = ids[np.argsort(np.asarray(labels)[ids], kind="stable")]
        return evenly(ids, n)

    @property
    def several(self) -> bool:
        """Whether images of the set, or of the network's training, may be of several classes."""
        return (
            self.subject.collection.targets is not None or self.subject.data.preprocessing.several
        )

    @cached_property
    def own_classes(self) -> tuple[int, ...] | None:
        """The network's class of each class of the set; None where their classes differ."""
        collection, prep = self.subject.collection, self.subject.data.preprocessing
        if collection.targets is not None:
            return None
        try:
            return classes.match(collection.name, self.class_names, prep.class_names).labels
        except DataError:
            return None

    def classes_of(self, shown: Shown) -> np.ndarray:
        """The network's class of each image, (n,): the true one, or where the set's classes are
        not the network's, the predicted one."""
        if self.own_classes is not None:
            return np.array(self.own_classes, np.int32)[shown.labels]
        logits = self.program(lambda net, x: net(x))(shown.x)
        return np.asarray(logits).argmax(axis=1).astype(np.int32)

    def batches(self, ids: np.ndarray) -> Iterator[Batch]:
        """Batches of these images, in order. Raises DataError where none can be used."""
        usable = False
        for x, batch in self._viewed(ids, "test_views"):
            usable |= bool(batch.mask.any())
            yield Batch(x, batch.indices, batch.labels, batch.mask)
        if not usable:
            raise self._all_unusable(len(ids))

    def shown(self, ids: np.ndarray) -> Shown:
        """These images, in order, without those that can't be used.

        Raises DataError where none can be used.
        """
        parts = []
        both = zip(self._viewed(ids, "test_views"), self._viewed(ids, "pixels"), strict=True)
        for (x, batch), (pixels, _) in both:
            pictures = np.asarray(pixels).round().clip(0, 255).astype(np.uint8)
            arrays = (np.asarray(x), pictures, batch.indices, batch.labels)
            parts.append([array[batch.mask] for array in arrays])
        joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        if not len(joined[2]):
            raise self._all_unusable(len(ids))
        return Shown(*joined)

    def _all_unusable(self, n: int) -> DataError:
        return DataError(f"none of {n} images of {self.subject.collection.name} can be used")

    def _viewed(self, ids: np.ndarray, how: str) -> Iterator[tuple[jax.Array, Any]]:
        tester, _, _ = self.subject.network
        view = self._views(how)
        size = min(tester.batch, BATCH, len(ids))
        for batch in tester.data.tested("test", tester.mesh, size, self.view, ids):
            yield view(tester.constants, batch.inputs)[:, 0], batch

    @functools.cache  # noqa: B019  it lives as long as its programs
    def _views(self, how: str) -> Any:
        return jax.jit(functools.partial(getattr(self.subject.data, how), view=self.view))

    def program(self, function: Function) -> Callable[..., Any]:
        """`function(network, x, ...)` compiled, as a function of x and the further arrays."""
        tester, params, stats = self.subject.network
        platform = tester.mesh.devices.flat[0].platform

        @functools.partial(jax.jit, compiler_options=execution.compiler_options(platform))
        def compiled(params: Any, stats: Any, *arrays: jax.Array) -> Any:
            with tester.skeleton.multiplying():
                return function(tester.skeleton.merge(params, stats), *arrays)

        return functools.partial(compiled, params, stats)

    @property
    def bare(self) -> cnn_arch.Network:
        """The network without its values."""
        return self.subject.bare


def evenly(values: np.ndarray, n: int) -> np.ndarray:
    """At most n of the values, evenly spaced."""
    return values[
        np.unique(np.linspace(0, len(values) - 1, min(n, len(values))).round().astype(int))
    ]

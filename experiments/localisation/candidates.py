"""Boxes that a localiser says of every window of whole images, which `merging` then merges.

The localiser and the classifier that it was started from are applied to an image at the same
places (`cnn_arch.dense`). Each place gives a box for each of the image's most probable classes, and
the classifier's posterior there is the box's confidence. They are kept in parts of PART images, so
that a stopped test goes on with the part that it was in.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cnn_arch import execution
from cnn_arch.dense import FullyConvolutional
from experiments import data as data_lib
from experiments.config import ConfigError
from experiments.data import preprocessing
from experiments.localisation import localised, regression
from experiments.network import Flat, Skeleton, for_tests, skeleton
from experiments.runs import checkpoints, processes, runs
from experiments.testing.tester import MOST_VIEWS, Progress, Tester, one_ahead
from experiments.training import memory
from input_pipeline import crops
from input_pipeline.boxes import in_image
from input_pipeline.whole_files import read_arrays, write_arrays

PART = 250  # images whose boxes are kept in one file
COLUMNS = ("ids", "counts", "boxes", "confidences")  # of such a file


@dataclass(frozen=True)
class Net:
    """A network with its arrays, on the devices."""

    run: runs.Run
    step: int  # of its checkpoint
    bones: Skeleton
    params: Flat
    stats: Flat

    @property
    def identity(self) -> list[Any]:
        """What the network's outputs depend on, besides images."""
        return [self.run.id, localised.made(self.run), self.step]


class Subject(Protocol):
    """A run and the images that it is shown; `evaluate.Subject` is one."""

    run: runs.Run
    config: ml_collections.ConfigDict
    mesh: Mesh

    @property
    def data(self) -> data_lib.TestData:
        """The images, as part `test`."""


class Localiser:
    """A run whose last layer says boxes, with its classifier and the images it is tested on.

    which: the run's checkpoint, `last` or `best`; the classifier's is the last. Raises RunError,
    CheckpointError or ConfigError where the run says no boxes, or its classifier is missing.
    """

    def __init__(self, subject: Subject, which: str = "last"):
        self.subject, self.run, self.config = subject, subject.run, subject.config
        self.which = which
        if self.config.train.boxes == "none":
            raise ConfigError(
                f"{self.run.id} says classes, not boxes: it was trained with train.boxes='none'"
            )
        if not self.config.seeding.run:
            raise ConfigError(
                f"{self.run.id} was not started from a classifier, whose posteriors say how much "
                "each box is trusted: train it with seed_from"
            )
        self.classifier = runs.Run(self.run.folder.parent / self.config.seeding.run)
        self.check(self.classifier)

    def check(self, classifier: runs.Run) -> None:
        """Raises RunError or ConfigError unless a classifier is trained, and has the localiser's
        classes, size and mean of images."""
        if not classifier.trained and not classifier.imported:
            raise runs.RunError(f"{classifier.id}, the classifier of {self.run.id}, is not trained")
        own, theirs = (
            preprocessing.load(run.folder / preprocessing.FILE) for run in (self.run, classifier)
        )
        config = classifier.config()
        if config.train.boxes != "none":
            raise ConfigError(f"{classifier.id} says boxes; expected a classifier")
        if theirs.several:
            raise ConfigError(
                f"{classifier.id} gives an image several classes, and a box is of one; expected a "
                "classifier of one class an image"
            )
        if own.class_names != theirs.class_names:
            raise ConfigError(f"{classifier.id} knows other classes than {self.run.id}")
        if config.data.image_size != self.config.data.image_size or not own.sees_as(theirs):
            raise ConfigError(
                f"{classifier.id} sees images of another size or mean than {self.run.id}, and both "
                "are applied to the same; train with seeding.normalise=inherit"
            )

    @property
    def data(self) -> data_lib.TestData:
        return self.subject.data

    @property
    def n(self) -> int:
        """The number of test images."""
        return self.data.counts["test"]

    def net(self, run: runs.Run, which: str = "last") -> Net:
        """The network of a run's checkpoint."""
        step, arrays = checkpoints.load_network(run.checkpoints, which)
        bones = skeleton(run.config(), self.data.classes, self.data.channels, train=False)
        params, stats = for_tests(arrays)
        bones.check(params, stats, run.checkpoints)
        everywhere = NamedSharding(self.subject.mesh, P())
        return Net(run, step, bones, *jax.device_put((params, stats), everywhere))

    @cached_property
    def nets(self) -> tuple[Net, Net]:
        """The localiser and its classifier."""
        return self.net(self.run, self.which), self.net(self.classifier)

    @cached_property
    def constants(self) -> Any:
        return jax.device_put(self.data.constants, NamedSharding(self.subject.mesh, P()))

    def tester(self, classifier: Net) -> Tester:
        """A tester of a classifier on the localiser's images."""
        return Tester(
            skeleton=classifier.bones,
            data=self.data,
            constants=self.constants,
            mesh=self.subject.mesh,
            batch=self.config.test.batch_size,
            deterministic=self.config.train.deterministic,
        )

    def candidates(
        self, Q: int, top: np.ndarray, on_progress: Progress
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each test image (its place, boxes (p, k, 4) in its pixels, confidences (p, k)).

        Q: short side of the scaled image. top: (n, k) int32, each image's classes whose boxes are
        asked for. Images that can't be used are left out. Parts that are kept are not computed
        again. Of several processes each computes a share, and all of them get all images.
        """
        view = crops.WholeView(Q=Q, warp=self.data.preprocessing.warp)
        self.data.prepare("test", view, on_progress)
        folder = self._folder(Q, top)
        parts = [range(at, min(at + PART, self.n)) for at in range(0, self.n, PART)]
        own = parts[jax.process_index() :: jax.process_count()]
        program = self.program(view)
        for number, part in enumerate(own):
            if read_arrays(_file(folder, part), COLUMNS) is None:
                columns = _packed(self._compute(view, program, np.asarray(part), top), top.shape[1])
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    write_arrays(_file(folder, part), columns)
                except OSError as error:
                    raise runs.unwritten(folder, error) from error
            on_progress(number + 1, len(own))
        processes.meet("all hosts have looked at their images")
        for part in parts:
            stored = read_arrays(_file(folder, part), COLUMNS)
            if stored is None:
                raise runs.RunError(f"{_file(folder, part)} can't be read; begin again")
            ends = np.cumsum(stored["counts"])
            for i, start, end in zip(stored["ids"], ends - stored["counts"], ends, strict=True):
                yield int(i), stored["boxes"][start:end], stored["confidences"][start:end]

    def _folder(self, Q: int, top: np.ndarray) -> Path:
        identity = [*(net.identity for net in self.nets), crops.ROUNDING, self.data.fingerprint]
        digest = hashlib.sha256(repr(identity).encode() + top.astype("<i4").tobytes()).hexdigest()
        return self.run.folder / "predictions" / f"boxes-Q{Q}-{digest[:12]}"

    def said(
        self, Q: int, top: np.ndarray, on_progress: Progress = lambda done, total: None
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Like `candidates`, but nothing is kept, and images come in any order."""
        view = crops.WholeView(Q=Q, warp=self.data.preprocessing.warp)
        images = self._compute(view, self.program(view), np.arange(self.n), top)
        for done, image in enumerate(images, 1):
            on_progress(done, self.n)
            yield image

    def _compute(
        self,
        view: crops.WholeView,
        program: Callable[..., Any],
        places: np.ndarray,
        top: np.ndarray,
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        budget = min(self.config.test.batch_size, len(places))
        budget = min(budget, MOST_VIEWS.get(jax.default_backend(), budget))
        arrays = [array for net in self.nets for array in (net.params, net.stats)]
        spread = NamedSharding(self.subject.mesh, P("data"))

        def start(batch: data_lib.Tested) -> Any:
            inputs = {**batch.inputs, "top": jax.device_put(top[batch.indices], spread)}
            return program(*arrays, self.constants, inputs)

        with memory.enough_to_test(budget):
            batches = self.data.tested("test", self.subject.mesh, budget, view, places)
            for computed, batch in one_ahead((start(batch), batch) for batch in batches):
                boxes, trust = map(np.asarray, computed)
                stored = self.data.stored("test", batch.indices)
                for row in np.flatnonzero(batch.mask):
                    place = view.places(*stored[row].tolist())[0]
                    rows, columns = (self._dense.count(side) for side in place.size)
                    own_boxes = boxes[row, :rows, :columns].reshape(rows * columns, -1, 4)
                    own_trust = trust[row, :rows, :columns].reshape(rows * columns, -1)
                    yield int(batch.indices[row]), in_image(own_boxes, place), own_trust

    @cached_property
    def _dense(self) -> FullyConvolutional:
        """The localiser as a fully convolutional network.

        Raises ConfigError where its classifier is applied at other places.
        """
        networks = [FullyConvolutional(net.bones.merge(net.params, net.stats)) for net in self.nets]
        if networks[0].stride != networks[1].stride:
            raise ConfigError(
                f"{self.run.id} has a place every {networks[0].stride} pixels, and its classifier "
                f"every {networks[1].stride}"
            )
        return networks[0]

    def program(self, view: crops.WholeView) -> Any:
        """The jitted `(params, stats, params, stats, constants, inputs)` -> boxes (b, r, c, k, 4)
        in pixels of the scaled image, and their confidences (b, r, c, k)."""
        if view not in self._programs:
            self._programs[view] = self._program(view)
        return self._programs[view]

    @cached_property
    def _programs(self) -> dict[crops.WholeView, Any]:
        return {}

    def _program(self, view: crops.WholeView) -> Any:
        (own, classifier), crop, stride = self.nets, self.data.crop, self._dense.stride

        def forward(
            params: Any,
            stats: Any,
            their_params: Any,
            their_stats: Any,
            constants: Any,
            inputs: Any,
        ) -> tuple[jax.Array, jax.Array]:
            x = self.data.test_views(constants, inputs, view)[:, 0]
            sizes, top = inputs.get("sizes"), inputs["top"][:, None, None, :]
            with own.bones.multiplying():
                outputs = FullyConvolutional(own.bones.merge(params, stats)).windows(x, sizes)
                scores = FullyConvolutional(
                    classifier.bones.merge(their_params, their_stats)
                ).windows(x, sizes)
            b, rows, columns, _ = outputs.shape
            xy = jnp.stack(jnp.meshgrid(jnp.arange(columns), jnp.arange(rows)), axis=-1) * stride
            boxes = outputs.reshape(b, rows, columns, -1, 4)
            if boxes.shape[3] > 1:
                boxes = jnp.take_along_axis(boxes, top[..., None], axis=3)
            boxes = jnp.broadcast_to(boxes, (b, rows, columns, top.shape[-1], 4))
            boxes = regression.boxes_of(boxes, None, crop) + jnp.tile(xy, 2)[None, :, :, None]
            return boxes, jnp.take_along_axis(jax.nn.softmax(scores), top, axis=3)

        platform = self.subject.mesh.devices.flat[0].platform
        return jax.jit(
            forward,
            out_shardings=NamedSharding(self.subject.mesh, P()),
            compiler_options=execution.compiler_options(
                platform, deterministic=self.config.train.deterministic
            ),
        )


def _packed(results: Iterator[tuple[int, np.ndarray, np.ndarray]], k: int) -> dict[str, np.ndarray]:
    """The boxes of some images, of k classes each, as the columns of a file."""
    images = sorted(results, key=lambda image: image[0])
    empty: tuple[np.ndarray, np.ndarray] = np.zeros((0, k, 4)), np.zeros((0, k))
    return {
        "ids": np.array([i for i, _, _ in images], np.int32),
        "counts": np.array([len(boxes) for _, boxes, _ in images], np.int64),
        "boxes": np.concatenate([empty[0], *(boxes for _, boxes, _ in images)]).astype("f4"),
        "confidences": np.concatenate([empty[1], *(trust for *_, trust in images)]).astype("f4"),
    }


def _file(folder: Path, part: range) -> Path:
    return folder / f"{part.start:07}.npz"

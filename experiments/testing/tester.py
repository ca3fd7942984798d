"""Testing a network on images: every example exactly once, whatever is shown of it."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cnn_arch import execution, layer_outputs
from cnn_arch.dense import FullyConvolutional
from cnn_arch.kernels import onednn
from experiments import data as data_lib
from experiments.localisation import regression
from experiments.network import Skeleton
from experiments.runs import processes
from experiments.statistics import true_class_rank
from experiments.testing.predictions import Predictions, concatenate
from experiments.training import memory
from input_pipeline import DataError, crops

T = TypeVar("T")
Progress = Callable[[int, int], None]  # images tested, of how many
# Views a batch, at most, where an image has many: on CPU more are no faster, and take memory.
MOST_VIEWS = {"cpu": 32}
# On a CPU a test of at least so many multiply-adds, some seconds of two cores, takes oneDNN's
# convolutions: they save a tenth of its time or more, but are compiled at every start.
ONEDNN_FROM_MACS = 1e12


@dataclass(frozen=True)
class Features:
    """A layer's output for n images."""

    values: np.ndarray  # (n, d) float32
    ids: np.ndarray  # (n,) int32, the images' places in their part
    labels: np.ndarray  # (n,) int32
    enlarged: np.ndarray  # (n,) bool: the image was smaller than what was shown of it


def one_ahead(computed: Iterator[T]) -> Iterator[T]:
    """Yields each item when the next is begun: the device computes while the host looks at one."""
    waiting = list(itertools.islice(computed, 1))
    for following in computed:
        yield waiting.pop()
        waiting.append(following)
    yield from waiting


@dataclass(frozen=True, eq=False)
class Tester:
    """The jitted tests of one architecture on the parts of its data, in batches of a fixed size."""

    skeleton: Skeleton  # in eval mode
    data: data_lib.TestData
    constants: Any  # the data's, on each device
    mesh: Mesh  # of this process's devices, over which a batch is spread
    batch: int
    deterministic: bool = False  # see `execution.compiler_options`
    boxes: bool = False  # whether the last layer says boxes
    _programs: dict[Any, Any] = field(default_factory=dict, init=False)

    __test__ = False  # not a pytest class

    @property
    def columns(self) -> int:
        """How many posteriors an image has: one a class; none where the network says boxes."""
        return 0 if self.boxes else self.data.classes

    def run(
        self, params: Any, stats: Any, part: str, on_progress: Progress = lambda n, total: None
    ) -> Predictions:
        """The central views of a part, each image once, in order; unusable files are left out.

        With several processes, which all call this, each tests its share of the images.
        """
        total, hosts = self.data.counts[part], jax.process_count()
        params, stats = processes.to_own_mesh((params, stats), self.mesh)
        places = np.arange(total)[jax.process_index() :: hosts]
        tested = [self._nothing()]
        for batch in self.batches(params, stats, part, self.data.centre, places=places):
            tested.append(batch)
            on_progress(sum(len(batch.labels) for batch in tested), len(places))
        predictions = _gathered(concatenate(tested), -(-total // hosts))
        if not len(predictions.labels):
            raise DataError(f"none of the {total} images of {part!r} can be used")
        return predictions.take(np.argsort(predictions.ids))

    def batches(
        self,
        params: Any,
        stats: Any,
        part: str,
        view: crops.TestView,
        *,
        mirror: bool = False,
        places: np.ndarray | None = None,
    ) -> Iterator[Predictions]:
        """The images of a part at `places` (default: all), each once.

        An image's posterior is the mean of its views', and with `mirror` of their mirrors'. Whole
        views are tested with the fully convolutional network: class scores averaged over the map
        first, then the soft-max, or the sigmoid where images may be of several classes.
        """
        for computed, batch in self._shown(params, stats, part, view, mirror, places):
            columns = (computed, batch.indices, batch.labels, batch.enlarged)
            rows = [array[batch.mask] for array in columns]
            if self.data.targets is not None:
                yield _tested_each(*rows, targets=self.data.targets[part][rows[1]])
            elif self.boxes:
                assert batch.boxes is not None
                yield _localised(*rows, boxes=batch.boxes[batch.mask], crop=self.data.crop)
            else:
                yield _tested(*rows)

    def _nothing(self) -> Predictions:
        """The predictions of no image."""
        empty: np.ndarray = np.zeros(0, np.int32)
        if self.boxes:
            no_box: np.ndarray = np.zeros((0, 4), np.float32)
            return _localised(no_box, empty, empty, empty > 0, boxes=no_box[:, None], crop=1)
        no_logs: np.ndarray = np.zeros((0, self.data.classes), np.float32)
        if self.data.targets is not None:
            return _tested_each(no_logs, empty, empty, empty > 0, targets=no_logs.astype(np.int8))
        return _tested(no_logs, empty, empty, empty > 0)

    def features(
        self,
        params: Any,
        stats: Any,
        part: str,
        view: crops.TestView,
        layer: str,
        *,
        mirror: bool = False,
        places: np.ndarray | None = None,
    ) -> Iterator[Features]:
        """A layer's output for the images of a part at `places` (default: all), each once.

        It is the mean over each map, over an image's views, and with `mirror` their mirrors'. Of
        whole views it is the fully convolutional network's. layer: as in `layer_outputs`.
        """
        for values, batch in self._shown(params, stats, part, view, mirror, places, layer):
            columns = (values, batch.indices, batch.labels, batch.enlarged)
            yield Features(*(array[batch.mask] for array in columns))

    def _shown(
        self,
        params: Any,
        stats: Any,
        part: str,
        view: crops.TestView,
        mirror: bool,
        places: np.ndarray | None,
        layer: str = "",
    ) -> Iterator[tuple[np.ndarray, data_lib.Tested]]:
        """What `program` gives for each batch of the images of a part at `places`."""
        convolutions = self._convolutions(part, view)
        forward = self.program(view, mirror=mirror, layer=layer, convolutions=convolutions)
        if self._fuses(view, layer, convolutions):
            fold = self._programs.setdefault("fold", jax.jit(self.skeleton.folded))
            params, stats = fold(params, stats)
        if places is None:
            places = np.arange(self.data.counts[part])
        # No more than the largest part has images, so that one program tests all parts.
        counts = (n for name, n in self.data.counts.items() if name != "train")
        budget = min(self.batch, max(counts, default=self.batch))
        if mirror or not isinstance(view, crops.CentreView):
            budget = min(budget, MOST_VIEWS.get(jax.default_backend(), budget))
        with memory.enough_to_test(budget):
            batches = self.data.tested(part, self.mesh, budget, view, places)
            outputs = (
                (forward(params, stats, self.constants, batch.inputs), batch) for batch in batches
            )
            for computed, batch in one_ahead(outputs):
                yield np.asarray(computed), batch

    def _convolutions(self, part: str, view: crops.TestView) -> onednn.Convolutions:
        """Whose convolutions all images of a part are tested with, whoever tests how many of them.

        oneDNN's on one CPU device where the test is large and they work, else XLA's, unless
        $CNN_DEPTH_CONVOLUTIONS says which.
        """
        if self.mesh.size > 1 or self.mesh.devices.flat[0].platform != "cpu":
            return "xla"
        if onednn.wished() == "auto":
            views = self.data.counts[part] * len(view.places(256, 256))
            if views * self.skeleton.macs() < ONEDNN_FROM_MACS:
                return "xla"
        return onednn.chosen(self.skeleton.dtype)

    def program(
        self,
        view: crops.TestView,
        *,
        mirror: bool = False,
        layer: str = "",
        convolutions: onednn.Convolutions = "xla",
    ) -> Any:
        """The jitted test of a batch: (params, stats, constants, inputs) -> log posteriors, a
        layer's features, or where the network says boxes that of each image's class. Where it
        fuses layers, params and stats are `Skeleton.folded`."""
        key = view, mirror, layer, convolutions
        if key not in self._programs:
            fuses = self._fuses(view, layer, convolutions)
            program = self._program(view, mirror, layer, fuses)
            self._programs[key] = program if convolutions == "xla" else _with_onednn(program)
        return self._programs[key]

    def _fuses(self, view: crops.TestView, layer: str, convolutions: onednn.Convolutions) -> bool:
        """Whether layers are computed several at once. Outputs of layers, and whole views, need
        them one by one; what a user's own network makes of its layers is not known."""
        is_whole, own = isinstance(view, crops.WholeView), self.skeleton.is_ours
        return convolutions == "onednn" and own and not layer and not is_whole

    def _program(self, view: crops.TestView, mirror: bool, layer: str, fuses: bool) -> Any:
        is_whole, platform = isinstance(view, crops.WholeView), self.mesh.devices.flat[0].platform

        def forward(params: Any, stats: Any, constants: Any, inputs: data_lib.Arrays) -> jax.Array:
            x, sizes = self.data.test_views(constants, inputs, view), inputs.get("sizes")
            if mirror:
                x = jnp.concatenate([x, _mirrored(x, sizes)], axis=1)
            b, views = x.shape[:2]
            x = x.reshape(b * views, *x.shape[2:])
            sizes = None if sizes is None else jnp.repeat(sizes, views, axis=0)
            net = self.skeleton.merge(params, stats)
            with self.skeleton.multiplying():
                if layer and is_whole:
                    outputs = FullyConvolutional(net).pooled(layer, x, sizes)
                elif layer:
                    outputs = layer_outputs.pooled(net, layer, x, platform)
                elif is_whole:
                    outputs = FullyConvolutional(net).scores(x, sizes)
                else:
                    outputs = net(x, tape=execution.tape(backend=platform, fuses=fuses))
            if layer:
                return outputs.reshape(b, views, -1).mean(axis=1)
            if self.boxes:  # of the one view, see `evaluate.Subject`
                return regression.boxes_of(outputs, inputs["labels"], self.data.crop)
            posteriors = (
                jax.nn.log_sigmoid if self.data.preprocessing.several else jax.nn.log_softmax
            )
            logs = posteriors(outputs).reshape(b, views, -1)
            if views == 1:
                return logs[:, 0]
            return jax.nn.logsumexp(logs, axis=1) - jnp.log(views)

        return jax.jit(
            forward,
            out_shardings=NamedSharding(self.mesh, P()),
            compiler_options=execution.compiler_options(platform, deterministic=self.deterministic),
        )


def _with_onednn(program: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A jitted program that is traced, where it is called first, with oneDNN's convolutions."""

    def call(*arguments: Any) -> jax.Array:
        with onednn.using("onednn"):
            return program(*arguments)

    return call


def _gathered(predictions: Predictions, most: int) -> Predictions:
    """The predictions of all processes, each of which has `most` at most."""
    columns: dict[str, Any] = dict(vars(predictions))
    sent = [name for name, a in columns.items() if a is not None and 0 not in a.shape[1:]]
    columns |= zip(sent, processes.gathered([columns[name] for name in sent], most), strict=True)
    if "posteriors" not in sent:  # of boxes, which have none
        columns["posteriors"] = np.zeros((len(columns["ids"]), 0), np.float32)
    return Predictions(**columns)


def _tested(
    logs: np.ndarray, ids: np.ndarray, labels: np.ndarray, enlarged: np.ndarray
) -> Predictions:
    """What is kept of a test. logs: natural logarithms of posteriors, (n, classes) float32."""
    ranks = true_class_rank(logs, labels).astype(np.int32)
    losses = -logs[np.arange(len(labels)), labels]
    return Predictions(ids, labels, np.exp(logs), ranks, losses, enlarged)


def _tested_each(
    logs: np.ndarray,
    ids: np.ndarray,
    labels: np.ndarray,
    enlarged: np.ndarray,
    *,
    targets: np.ndarray,
) -> Predictions:
    """The same of images that may be of several classes. targets: (n, classes) int8, as of a
    `Collection`. A loss is the mean logistic cross-entropy of the classes that count."""
    logs = np.minimum(logs, -np.finfo(np.float32).tiny)  # so that a loss is always finite
    entropies = -np.where(targets == 1, logs, np.log(-np.expm1(logs)))
    counts = targets >= 0
    sums = np.where(counts, entropies, 0).sum(axis=1)
    losses = (sums / np.maximum(counts.sum(axis=1), 1)).astype(np.float32)
    return Predictions(ids, labels, np.exp(logs), losses=losses, enlarged=enlarged, targets=targets)


def _localised(
    predicted: np.ndarray,
    ids: np.ndarray,
    labels: np.ndarray,
    enlarged: np.ndarray,
    *,
    boxes: np.ndarray,
    crop: int,
) -> Predictions:
    """What is kept of a test of boxes: by the true box that is nearest to the predicted one.

    predicted: (n, 4), boxes: the true ones, (n, M, 4), both in the crop's pixels; NaN where an
    image has fewer.
    """
    with np.errstate(invalid="ignore"):
        overlaps = np.nan_to_num(np.asarray(regression.iou(predicted[:, None], boxes)))
    right = overlaps.max(axis=1, initial=0) > regression.RIGHT
    offsets = np.asarray(
        regression.targets_of(predicted[:, None], crop) - regression.targets_of(boxes, crop)
    )
    losses = np.nanmin(0.5 * np.square(offsets).sum(axis=-1), axis=1, initial=np.inf)
    ranks = np.where(right, 1, 2).astype(np.int32)
    empty: np.ndarray = np.zeros((len(ids), 0), np.float32)
    return Predictions(
        ids, labels, empty, ranks, losses.astype(np.float32), enlarged, predicted.astype(np.float32)
    )


def _mirrored(x: jax.Array, sizes: jax.Array | None) -> jax.Array:
    """Images (b, V, h, w, C) left to right, each within its own width."""
    if sizes is None:
        return x[..., ::-1, :]
    width = x.shape[3]
    columns = (sizes[:, 1:] - 1 - jnp.arange(width)) % width  # (b, w)
    return jnp.take_along_axis(x, columns[:, None, None, :, None], axis=3)

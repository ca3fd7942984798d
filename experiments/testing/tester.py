"""Testing a network on images: every example exactly once, whatever is shown of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cnn_arch import execution
from cnn_arch.dense import FullyConvolutional
from experiments import data as data_lib
from experiments.network import Skeleton
from experiments.runs import processes
from experiments.statistics import topk_wrong, true_class_rank
from experiments.testing.predictions import Predictions
from experiments.training import memory
from input_pipeline import DataError, crops

Progress = Callable[[int, int], None]  # images tested, of how many
# Views a batch, at most, where an image has many: on CPU more are no faster, and take memory.
MOST_VIEWS = {"cpu": 32}


@dataclass(frozen=True)
class PartResult:
    """The test of a part, or a batch of it: natural logarithms (n, classes) float32, labels and
    indices (n,), and whether images were enlarged, (n,) bool."""

    log_posteriors: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    enlarged: np.ndarray

    @property
    def mean_loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.predictions.mean_loss

    @property
    def error(self) -> float:
        """Top-1 error in percent."""
        return 100 * float(topk_wrong(self.log_posteriors, self.labels).mean())

    @property
    def predictions(self) -> Predictions:
        """What is saved of a test: example ids in the test set's order, labels, posteriors."""
        ranks = true_class_rank(self.log_posteriors, self.labels)
        losses = -self.log_posteriors[np.arange(len(self.labels)), self.labels]
        posteriors = np.exp(self.log_posteriors)
        return Predictions(self.indices, self.labels, posteriors, ranks, losses, self.enlarged)


@dataclass(frozen=True, eq=False)
class Tester:
    """The jitted tests of one architecture on the parts of its data, in batches of a fixed size.

    mesh: of this process's devices, over which a batch is spread; constants: the data's, on each
    of them.
    """

    skeleton: Skeleton  # in eval mode
    data: data_lib.TestData
    constants: Any
    mesh: Mesh
    batch: int
    deterministic: bool = False  # see `execution.compiler_options`
    _programs: dict[Any, Any] = field(default_factory=dict, init=False)

    __test__ = False  # not a pytest class

    def run(
        self,
        params: Any,
        stats: Any,
        part: str,
        on_progress: Progress = lambda done, total: None,
    ) -> PartResult:
        """The central views of a part, each image once, in order; unusable files are left out.

        With several processes, which all call this, each tests its share of the images.
        """
        total, hosts = self.data.counts[part], jax.process_count()
        params, stats = processes.here((params, stats), self.mesh)
        places = np.arange(total)[jax.process_index() :: hosts]
        shape = (0, self.data.classes)
        none: np.ndarray = np.zeros(0, np.int32)
        found = [PartResult(np.zeros(shape, np.float32), none, none, none.astype(bool))]
        for batch in self.batches(params, stats, part, self.data.centre, places=places):
            found.append(batch)
            on_progress(sum(len(batch.labels) for batch in found), len(places))
        own = [np.concatenate([getattr(b, name) for b in found]) for name in vars(found[0])]
        whole = PartResult(*processes.gathered(own, -(-total // hosts)))
        if not len(whole.labels):
            raise DataError(f"none of the {total} images of {part!r} can be used")
        return _chosen(whole, np.argsort(whole.indices))

    def batches(
        self,
        params: Any,
        stats: Any,
        part: str,
        view: crops.TestView,
        *,
        mirror: bool = False,
        places: np.ndarray | None = None,
    ) -> Iterator[PartResult]:
        """The images of a part at `places` (default: all), each once.

        An image's posterior is the mean of its views', and with `mirror` of their mirrors'. Whole
        views are tested with the fully convolutional network: class scores averaged over the map
        first, then the soft-max.
        """
        if places is None:
            places = np.arange(self.data.counts[part])
        forward = self.program(view, mirror=mirror)
        # No more than there are images; of all parts, so that one program tests them all.
        counts = (n for name, n in self.data.counts.items() if name != "train")
        budget = min(self.batch, max(counts, default=self.batch))
        if mirror or not isinstance(view, crops.CentreView):
            budget = min(budget, MOST_VIEWS.get(jax.default_backend(), budget))
        waiting: list[tuple[jax.Array, data_lib.Tested]] = []

        def fetch() -> PartResult:
            logs, batch = waiting.pop(0)
            found = PartResult(np.asarray(logs), batch.labels, batch.indices, batch.enlarged)
            return _chosen(found, batch.mask)

        with memory.enough_to_test(budget):
            for batch in self.data.tested(part, self.mesh, budget, view, places):
                waiting.append((forward(params, stats, self.constants, batch.inputs), batch))
                if len(waiting) > 1:  # so that the device has the next batch already
                    yield fetch()
            if waiting:
                yield fetch()

    def program(self, view: crops.TestView, *, mirror: bool = False) -> Any:
        """The jitted test of a batch: (params, stats, constants, inputs) -> log posteriors."""
        if (view, mirror) not in self._programs:
            self._programs[view, mirror] = self._program(view, mirror)
        return self._programs[view, mirror]

    def _program(self, view: crops.TestView, mirror: bool) -> Any:
        whole = isinstance(view, crops.WholeView)

        def forward(params: Any, stats: Any, constants: Any, inputs: data_lib.Arrays) -> jax.Array:
            x, sizes = self.data.test_views(constants, inputs, view), inputs.get("sizes")
            if mirror:
                x = jnp.concatenate([x, _mirrored(x, sizes)], axis=1)
            b, views = x.shape[:2]
            x = x.reshape(b * views, *x.shape[2:])
            net = self.skeleton.merge(params, stats)
            with self.skeleton.multiplying():
                if whole:
                    sizes = None if sizes is None else jnp.repeat(sizes, views, axis=0)
                    scores = FullyConvolutional(net).scores(x, sizes)
                else:
                    scores = net(x, tape=execution.tape())
            logs = jax.nn.log_softmax(scores).reshape(b, views, -1)
            if views == 1:
                return logs[:, 0]
            return jax.nn.logsumexp(logs, axis=1) - jnp.log(views)

        return jax.jit(
            forward,
            out_shardings=NamedSharding(self.mesh, P()),
            compiler_options=execution.compiler_options(deterministic=self.deterministic),
        )


def _chosen(found: PartResult, rows: np.ndarray) -> PartResult:
    """The rows that an index or a mask chooses."""
    return PartResult(**{name: array[rows] for name, array in vars(found).items()})


def _mirrored(x: jax.Array, sizes: jax.Array | None) -> jax.Array:
    """Images (b, V, h, w, C) left to right, each within its own width."""
    if sizes is None:
        return x[..., ::-1, :]
    width = x.shape[3]
    columns = (sizes[:, 1:] - 1 - jnp.arange(width)) % width  # (b, w)
    return jnp.take_along_axis(x, columns[:, None, None, :, None], axis=3)

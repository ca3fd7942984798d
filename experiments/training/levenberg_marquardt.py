"""Stochastic diagonal Levenberg-Marquardt (LeCun et al. 1998, appendix C): a rate for each weight.

The rate of weight k is lr / (mu + h_k), with lr the schedule's and h_k the second derivative of the
loss by the weight (`cnn_arch.curvature`), a mean over `optimizer.patterns` training images. It is
measured before each pass over the training set, on the images that the pass begins with, as they
are shown in it.
"""

import math
import time
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from cnn_arch import curvature, execution
from experiments import network
from experiments.data import Data


def scale_by_curvature(mu: float) -> optax.GradientTransformationExtraArgs:
    """Divides each gradient by mu + h, where the tree h is handed to each update."""

    def update(
        updates: Any, state: Any, params: Any = None, *, curvature: Any, **_: Any
    ) -> tuple[Any, Any]:
        return {name: u / (mu + curvature[name]) for name, u in updates.items()}, state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def steps_a_pass(n: int, batch: int) -> int:
    """Steps of a pass over n training images."""
    return max(1, round(n / batch))


class Curvature:
    """Measures the second derivatives of a training, before each pass over the training set.

    steps: the number of steps of a pass.
    """

    def __init__(self, config: ConfigDict, data: Data, mesh: Mesh, frozen: Collection[str] = ()):
        self._config, self._data, self._mesh = config, data, mesh
        self.steps = steps_a_pass(data.counts["train"], config.train.batch_size)
        skeleton = network.skeleton(config, data.classes, data.channels, train=False)

        self._patterns = min(config.optimizer.patterns, data.counts["train"])

        def measure(
            state: Mapping[str, Any], constants: Any, seed: jax.Array, steps: dict[str, jax.Array]
        ) -> dict[str, jax.Array]:
            batch = {n: a.reshape(-1, *a.shape[2:])[: self._patterns] for n, a in steps.items()}
            x, y = data.train_views(constants, seed, batch)
            fixed = {n: array for n, array in state["params"].items() if n in frozen}
            trained = {n: array for n, array in state["params"].items() if n not in frozen}
            targets = optax.smooth_labels(
                jax.nn.one_hot(y, data.classes), config.train.label_smoothing
            )
            with skeleton.multiplying():
                return curvature.diagonal(
                    lambda values: skeleton.merge({**fixed, **values}, state["stats"]),
                    trained,
                    x,
                    targets,
                )

        self._program = jax.jit(
            measure,
            out_shardings=NamedSharding(mesh, P()),
            compiler_options=execution.compiler_options(deterministic=config.train.deterministic),
        )
        self._compiled: Any = None

    def measure(
        self, state: Mapping[str, Any], constants: Any, position: int
    ) -> tuple[dict[str, jax.Array], float]:
        """(h of each trained parameter, by name, at step `position`; seconds spent compiling)."""
        count = math.ceil(self._patterns / self._config.train.batch_size)
        feed = self._data.feed(self._config, self._mesh, position)
        try:
            steps = feed.next(range(position, position + count))
        finally:
            feed.close()
        arguments, seconds = (state, constants, np.int32(self._config.seed), steps), 0.0
        if self._compiled is None:
            start = time.perf_counter()
            self._compiled = self._program.lower(*arguments).compile()
            seconds = time.perf_counter() - start
        return jax.block_until_ready(self._compiled(*arguments)), seconds

"""The compiled program of a test, for devices that may not be there."""

from typing import Any

import ml_collections
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import cnn_arch
from experiments import network
from experiments.data import absent
from experiments.data.base import Data
from experiments.testing.tester import Tester
from input_pipeline import crops


def trace(
    config: ml_collections.ConfigDict, data: Data, mesh: Mesh, view: crops.TestView, images: int
) -> Any:
    """The traced test of a batch of so many images, from shapes alone, to be lowered.

    data: as `absent` makes it.
    """
    skeleton = network.skeleton(config, data.classes, data.channels, train=False)
    tester = Tester(skeleton=skeleton, data=data, constants=None, mesh=mesh, batch=images)
    everywhere, spread = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    params, stats = map(cnn_arch.flat_state, (skeleton.params, skeleton.stats))
    arrays = absent.laid_out((params, stats, data.constants), everywhere)
    inputs = absent.laid_out(absent.tested(data, view, images), spread)
    return tester.program(view).trace(*arrays, inputs)

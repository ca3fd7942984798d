"""The compiled program of a training, for devices that may not be there."""

from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import cnn_arch
from cnn_arch import execution
from experiments import network
from experiments.data import absent
from experiments.data.base import Data
from experiments.training import optimizer
from experiments.training.step import averaged, make_dispatch, make_step


def groups_span(config: ml_collections.ConfigDict, devices: int) -> bool:
    """Whether examples that are normalised together lie on several of so many devices."""
    micro_batch = config.train.batch_size // config.train.accumulate
    group = config.model.get("bn_group_size", 0) or micro_batch
    return devices > 1 and micro_batch // devices % group != 0


def jitted(
    config: ml_collections.ConfigDict,
    skeleton: network.Skeleton,
    transform: Any,
    data: Data,
    mesh: Mesh,
    frozen: set[str],
) -> Any:
    """The jitted dispatch of `make_dispatch` on the mesh; the state's memory is donated to it."""
    step = make_step(config, skeleton, transform.update, data, mesh, frozen)
    statistics = bool(jax.tree.leaves(skeleton.stats)) and groups_span(config, mesh.size)
    return jax.jit(
        make_dispatch(step),
        donate_argnums=0,
        out_shardings=NamedSharding(mesh, P()),
        compiler_options=execution.overlap(mesh, statistics=statistics)
        | execution.compiler_options(
            mesh.devices.flat[0].platform, deterministic=config.train.deterministic
        ),
    )


def trace(config: ml_collections.ConfigDict, data: Data, mesh: Mesh, steps: int = 1) -> Any:
    """The traced program of so many steps of a config, from shapes alone, to be lowered.

    data: as `absent` makes it.
    """
    shape, t = (data.classes, data.channels), config.train
    skeleton = network.skeleton(config, *shape, train=True)
    params, stats = map(cnn_arch.flat_state, (skeleton.params, skeleton.stats))
    frozen = optimizer.frozen(config, params)
    skeleton = network.skeleton(
        config, *shape, train=True, frozen=frozen, gradient_dtype=t.gradient_dtype, loss=t.loss
    )
    transform = optimizer.create(config, params)
    trained = {name: array for name, array in params.items() if name not in frozen}
    state = {"params": params, "stats": stats, "optimizer": jax.eval_shape(transform.init, trained)}
    if config.optimizer.kind == "sdlm":
        state["curvature"] = trained
    if config.train.ema:
        state["ema"] = averaged(params, stats, frozen)
    everywhere, spread = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "data"))
    inputs = {
        "step": np.zeros(steps, np.int32),
        "lr": np.zeros(steps, np.float32),
        "batch": absent.laid_out(absent.batch(config, data, steps), spread),
    }
    program = jitted(config, skeleton, transform, data, mesh, frozen)
    constants = absent.laid_out(data.constants, everywhere)
    return program.trace(absent.laid_out(state, everywhere), constants, np.int32(0), inputs)

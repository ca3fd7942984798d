"""A config's network as pure functions of flat `{name: array}` parameters and statistics."""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

import cnn_arch
from cnn_arch import execution, seeding
from cnn_arch.census import Census, census
from cnn_arch.folding import fold
from cnn_arch.layers import Affine, BatchNorm
from experiments import config as configs
from experiments.runs.checkpoints import CheckpointError

Flat = dict[str, jax.Array]


@dataclass(frozen=True)
class Skeleton:
    """A network without its arrays, in train or in eval mode; the states hold shapes only."""

    graphdef: Any
    params: nnx.State
    stats: nnx.State
    precision: execution.Precision = "default"
    dtype: str = "float32"  # in which it computes
    macs: Callable[[], int] = lambda: 0  # multiply-adds of an image, forward
    is_ours: bool = True  # not of a user's module

    def multiplying(self) -> AbstractContextManager[None]:
        """A context: programs traced in it, forward and backward, multiply at its precision.

        It is that of products and convolutions of float32, see `execution.multiplied_in`.
        """
        return jax.default_matmul_precision(self.precision)

    def merge(self, params: Mapping[str, Any], stats: Mapping[str, Any]) -> cnn_arch.Network:
        """The network with these arrays; what it changes in itself changes nothing outside."""
        return nnx.merge(
            self.graphdef,
            cnn_arch.unflat_state(dict(params), self.params),
            cnn_arch.unflat_state(dict(stats), self.stats),
            copy=True,
        )

    def folded(self, params: Flat, stats: Flat) -> tuple[Flat, Flat]:
        """Parameters and statistics for a tape that fuses layers; of a skeleton in eval mode."""
        net = self.merge(params, stats)
        fold(net)
        _, *states = nnx.split(net, nnx.Param, nnx.BatchStat)
        folded_params, folded_stats = map(cnn_arch.flat_state, states)
        return folded_params, folded_stats

    def check(self, params: Mapping[str, Any], stats: Mapping[str, Any], where: Path) -> None:
        """Raises CheckpointError, naming the first array that does not fit the network."""
        for state, arrays in ((self.params, params), (self.stats, stats)):
            reference = cnn_arch.flat_state(state)
            for name in sorted(reference.keys() | arrays.keys()):
                expected, shape = (
                    tuple(d[name].shape) if name in d else None for d in (reference, arrays)
                )
                if expected != shape:
                    raise CheckpointError(
                        f"{where} does not fit the network: {name} is {shape or 'missing'} there, "
                        f"{expected or 'not a parameter'} in the network of the config"
                    )


def outputs(config: ConfigDict, classes: int) -> int:
    """Numbers that the last layer has for each image: one a class, or those of boxes."""
    return {"none": classes, "single": 4, "per_class": 4 * classes}[config.train.boxes]


def _arguments(config: ConfigDict, classes: int, channels: int) -> tuple[str, dict[str, Any]]:
    """The architecture's name, and the further arguments of `cnn_arch.create` and its like."""
    cnn_arch.check_source(config.model.arch, config.model.get("source"))
    options = configs.builder_options(config.model)
    sizes = {
        "image_size": config.data.image_size,
        "classes": outputs(config, classes),
        "channels": channels,
    }
    return config.model.arch, {**sizes, **options}


def skeleton(
    config: ConfigDict,
    classes: int,
    channels: int,
    *,
    train: bool,
    batch_statistics: bool | None = None,
    frozen: Collection[str] = (),
    gradient_dtype: str = "model",
    loss: str = "network",
    several: bool = False,
) -> Skeleton:
    """The network of `config.model` for this data, without arrays.

    Args:
        train: with dropout, unless `config.train.dropout` says no.
        batch_statistics: whether batches are normalised with their own mean and variance; by
            default in training only.
        frozen: names of parameters that stay as they are. A batch normalisation that `is_frozen`
            always uses its running statistics, and leaves them alone.
        gradient_dtype, loss: as the keys of `config.train`.
        several: whether images may be of several classes; the loss leaves out those that do not
            count.

    Raises ArchitectureError where an option has a value that can't be, or images are too small, and
    ConfigError where the network has a loss of its own.
    """
    name, arguments = _arguments(config, classes, channels)
    network = cnn_arch.abstract(name, **arguments)
    (network.train if train else network.eval)()
    if not config.train.get("dropout", True):
        network.set_attributes(nnx.Dropout, deterministic=True, raise_if_not_found=False)
    if loss == "binary":
        if type(network).loss_of is not cnn_arch.Network.loss_of:
            raise configs.ConfigError(
                f"train.loss='binary' is not for {name}, which has a loss of its own; set it to "
                "'network'"
            )
        network.binary_loss, network.several_classes = True, several
    if config.train.boxes != "none":
        _check_boxes(config.train.boxes, name, network)
    if gradient_dtype == "float32":
        network.set_attributes(Affine, float32_gradients=True, raise_if_not_found=False)
    if batch_statistics is not None:
        network.set_attributes(
            BatchNorm, use_running_average=not batch_statistics, raise_if_not_found=False
        )
    for path, layer in nnx.iter_modules(network):
        if isinstance(layer, BatchNorm):
            layer.use_running_average |= is_frozen("/".join(map(str, path)), frozen)
    graphdef, params, stats = nnx.split(network, nnx.Param, nnx.BatchStat)
    return Skeleton(
        graphdef,
        params,
        stats,
        config.model.precision,
        dtype=config.model.get("dtype", "float32"),
        macs=partial(_macs, name, arguments),
        is_ours=config.model.get("source") is None,
    )


def _macs(name: str, arguments: Mapping[str, Any]) -> int:
    return census(name, **arguments).macs


def _check_boxes(kind: str, name: str, network: cnn_arch.Network) -> None:
    """Raises ConfigError where a network's last layer can't say a box."""
    if type(network).loss_of is not cnn_arch.Network.loss_of:
        why = "has a loss of its own"
    elif getattr(network, "auxiliary", False):
        why = "has auxiliary classifiers; set model.auxiliary=False"
    else:
        return
    raise configs.ConfigError(f"train.boxes={kind!r} is not for {name}, which {why}")


def is_frozen(norm: str, frozen: Collection[str]) -> bool:
    """Whether the batch normalisation of this name is frozen: its scale and its bias both are."""
    return f"{norm}/scale" in frozen and f"{norm}/bias" in frozen


def for_tests(trees: Mapping[str, Flat]) -> tuple[Flat, Flat]:
    """The (params, stats) to test, from the trees of a training or a checkpoint.

    Where the trees have averages (`ema`), these are tested.
    """
    averages = trees.get("ema", {})
    params, stats = (
        {name: averages.get(name, array) for name, array in trees[kind].items()}
        for kind in ("params", "stats")
    )
    return params, stats


def cost(config: ConfigDict, classes: int, channels: int) -> Census:
    """Layers, parameters and multiply-adds of a config's network."""
    name, arguments = _arguments(config, classes, channels)
    return census(name, **arguments)


def initial(config: ConfigDict, classes: int, channels: int) -> tuple[Flat, Flat]:
    """Fresh (params, stats) of the network of `config.model`, drawn from `config.seed`."""
    name, arguments = _arguments(config, classes, channels)
    network = cnn_arch.create(name, rngs=nnx.Rngs(config.seed), **arguments)
    _, params, stats = nnx.split(network, nnx.Param, nnx.BatchStat)
    return cnn_arch.flat_state(params), cnn_arch.flat_state(stats)


def seed(
    shallow: Flat, shallow_name: str, fresh: Flat, config: ConfigDict, classes: int, channels: int
) -> tuple[Flat, seeding.SeedReport]:
    """(params, report) of `config`'s network, seeded from a shallower one as `config.seeding` says.

    Raises ArchitectureError where they don't fit as `config.seeding` says.
    """
    how = config.seeding
    return seeding.seed(
        shallow,
        shallow_name,
        fresh,
        config.model.arch,
        mapping=how.mapping or None,
        kind=how.kind,
        fresh=classifier(config, classes, channels) if how.classifier == "fresh" else (),
    )


def classifier(config: ConfigDict, classes: int, channels: int) -> set[str]:
    """Names of the last layer's arrays: those whose shapes depend on the number of classes."""
    name, arguments = _arguments(config, classes, channels)
    del arguments["classes"]
    return seeding.classifier(name, **arguments)

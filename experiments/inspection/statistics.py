"""What layers compute, and how large their gradients are, by depth."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cnn_arch import Network, flat_state, layer_outputs
from experiments.inspection.looking import Looking
from experiments.network import Flat
from experiments.runs.runs import GRADIENT
from experiments.testing.tester import Progress

TRAINING = 128  # images of the batch whose gradients are taken


@dataclass(frozen=True)
class LayerStatistics:
    """The outputs of a layer for some images, behind its non-linearity."""

    layer: str
    depth: int  # layers with weights up to it
    images: int
    units: int  # maps, or outputs of a fully connected layer
    mean: float  # over images, places and units
    deviation: float  # as well
    dead: int  # units that are above zero at no place of any image


@dataclass(frozen=True)
class LayerGradient:
    """The loss's gradient by the weights of a layer, without its biases."""

    layer: str
    depth: int
    images: int
    weights: int
    mean_square: float  # over the weights


@dataclass(frozen=True)
class LoggedGradient:
    """The root mean square of the loss's gradient over a layer's weights, in training."""

    layer: str
    depth: int
    epochs: np.ndarray  # (T,)
    values: np.ndarray  # (T,), each over the steps since the one before


def logged(looking: Looking) -> list[LoggedGradient]:
    """Of the layers whose gradients the run's log has, by depth: see `train.log_gradients`."""
    lines = [line for line in looking.subject.run.logged() if "train_loss" in line]
    found = []
    for name, about in layer_outputs.layer_outputs(looking.bare).items():
        told = [(line["epoch"], line[key]) for line in lines if (key := GRADIENT + name) in line]
        if told:
            found.append(LoggedGradient(name, about.depth, *np.array(told, np.float64).T))
    return found


def of_layers(
    looking: Looking, ids: np.ndarray, on_progress: Progress = lambda done, total: None
) -> list[LayerStatistics]:
    """Of the layers and blocks of `layer_outputs.steps`, over the images with these ids."""
    names = layer_outputs.steps(looking.bare)

    def moments(net: Network, x: jax.Array) -> dict[str, tuple[jax.Array, ...]]:
        outputs = layer_outputs.outputs(net, names, x)
        return {name: _moments(output) for name, output in outputs.items()}

    program, parts, done = looking.program(moments), [], 0
    for batch in looking.batches(ids):
        found = jax.tree.map(np.asarray, program(batch.x))
        parts.append(jax.tree.map(lambda array, mask=batch.mask: array[mask], found))
        done += int(batch.mask.sum())
        on_progress(done, len(ids))
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    known = layer_outputs.layer_outputs(looking.bare)
    result = []
    for name in names:
        means, variances, above = joined[name]
        means = means.astype(np.float64)
        # All images have as many values, so that their moments join to those of all values.
        variance = variances.mean(dtype=np.float64) + means.var()
        dead = int((~above.any(axis=0)).sum())
        result.append(
            LayerStatistics(
                layer=name,
                depth=known[name].depth,
                images=done,
                units=known[name].shape[-1],
                mean=float(means.mean()),
                deviation=float(np.sqrt(variance)),
                dead=dead,
            )
        )
    return result


def _moments(output: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each image's mean and variance (B,), and which units are somewhere above zero (B, c)."""
    flat = output.astype(jnp.float32).reshape(output.shape[0], -1, output.shape[-1])
    return flat.mean(axis=(1, 2)), flat.var(axis=(1, 2)), (flat > 0).any(axis=1)


def gradients(looking: Looking, ids: np.ndarray) -> list[LayerGradient]:
    """Of the mean loss of the images with these ids, by each layer's weights, in eval mode.

    Only of sets whose classes are the network's, see `Looking.own_classes`.
    """
    labels = np.array(looking.own_classes, np.int32)

    def summed(net: Network, x: jax.Array, labels: jax.Array, mask: jax.Array) -> Flat:
        graphdef, params, rest = nnx.split(net, nnx.Param, ...)

        def loss(params: nnx.State) -> jax.Array:
            targets = jax.nn.one_hot(labels, net.classes)
            losses, _ = nnx.merge(graphdef, params, rest).losses(x, targets)
            return jnp.where(mask, losses, 0).sum()

        return flat_state(jax.grad(loss)(params))

    program, images = looking.program(summed), 0
    total: Flat = {}
    for batch in looking.batches(ids):
        found = program(batch.x, labels[batch.labels], batch.mask)
        total = jax.tree.map(jnp.add, total, found) if total else found
        images += int(batch.mask.sum())
    result = []
    for name, about in layer_outputs.layer_outputs(looking.bare).items():
        gradient = total.get(f"{name}/kernel")
        if gradient is not None:
            mean_square = float(jnp.square(gradient / images).mean())
            size = gradient.size
            result.append(LayerGradient(name, about.depth, images, size, mean_square))
    return result

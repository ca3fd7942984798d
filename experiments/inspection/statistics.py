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
    deviation: float  # over the same
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
    """The gradients in the run's log, by depth of their layers: see `train.log_gradients`."""
    lines = [line for line in looking.subject.run.logged() if "train_loss" in line]
    gradients = []
    for name, layer in layer_outputs.layer_outputs(looking.bare).items():
        points = [(line["epoch"], line[key]) for line in lines if (key := GRADIENT + name) in line]
        if points:
            gradients.append(LoggedGradient(name, layer.depth, *np.array(points, np.float64).T))
    return gradients


def of_layers(
    looking: Looking, ids: np.ndarray, on_progress: Progress = lambda done, total: None
) -> list[LayerStatistics]:
    """Statistics of the layers of `layer_outputs.steps`, over the images with these ids."""
    names = layer_outputs.steps(looking.bare)

    def moments(net: Network, x: jax.Array) -> dict[str, tuple[jax.Array, ...]]:
        outputs = layer_outputs.outputs(net, names, x)
        return {name: _moments(output) for name, output in outputs.items()}

    program, parts, images = looking.program(moments), [], 0
    for batch in looking.batches(ids):
        batch_moments = jax.tree.map(np.asarray, program(batch.x))
        parts.append(jax.tree.map(lambda array, mask=batch.mask: array[mask], batch_moments))
        images += int(batch.mask.sum())
        on_progress(images, len(ids))
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    layers = layer_outputs.layer_outputs(looking.bare)
    statistics = []
    for name in names:
        means, variances, above = joined[name]
        means = means.astype(np.float64)
        # All images have the same number of values, so the moments of all follow from theirs.
        variance = variances.mean(dtype=np.float64) + means.var()
        dead = int((~above.any(axis=0)).sum())
        statistics.append(
            LayerStatistics(
                layer=name,
                depth=layers[name].depth,
                images=images,
                units=layers[name].shape[-1],
                mean=float(means.mean()),
                deviation=float(np.sqrt(variance)),
                dead=dead,
            )
        )
    return statistics


def _moments(output: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each image's mean and variance (B,), and whether units are anywhere above zero (B, c)."""
    flat = output.astype(jnp.float32).reshape(output.shape[0], -1, output.shape[-1])
    return flat.mean(axis=(1, 2)), flat.var(axis=(1, 2)), (flat > 0).any(axis=1)


def gradients(looking: Looking, ids: np.ndarray) -> list[LayerGradient]:
    """The gradient of the images' mean loss by each layer's weights, in eval mode.

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
        batch_total = program(batch.x, labels[batch.labels], batch.mask)
        total = jax.tree.map(jnp.add, total, batch_total) if total else batch_total
        images += int(batch.mask.sum())
    by_layer = []
    for name, layer in layer_outputs.layer_outputs(looking.bare).items():
        gradient = total.get(f"{name}/kernel")
        if gradient is not None:
            mean_square = float(jnp.square(gradient / images).mean())
            size = gradient.size
            by_layer.append(LayerGradient(name, layer.depth, images, size, mean_square))
    return by_layer

"""The images that excite the units of a layer most, and the part of each that the unit sees.

A unit is a map of a layer, wherever it looks, or one of the outputs of a fully connected layer. Its
response to an image is the largest value of its map. The units are those whose responses vary most
over the images; units that never respond vary least.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from cnn_arch import Network, layer_outputs
from cnn_arch.census import receptive_fields
from experiments.inspection.looking import Looking, evenly
from experiments.testing.tester import Progress

LAYERS = 4  # chosen where none are named
IMAGES = 8  # shown of each unit


@dataclass(frozen=True)
class Units:
    """u units of a layer, and for each the k images that excite it most, the most exciting first.

    Of equal responses the image that comes first in the set is first.
    """

    layer: str
    depth: int  # layers with weights up to it
    layer_units: int  # that the layer has
    images: int  # looked at
    field: int  # side of the largest square of pixels that a response can depend on
    units: np.ndarray  # (u,) int32, their numbers
    ids: np.ndarray  # (u, k) int32, the images' places in the set
    values: np.ndarray  # (u, k) float32, the responses
    places: np.ndarray  # (u, k, 2) int32, row and column in the map; 0 of a fully connected layer
    boxes: np.ndarray  # (u, k, 4) int32: top, left, bottom, right of what is seen, in pixels


def layers(network: Network) -> list[str]:
    """LAYERS of the network's layers with weights, or of its stages, evenly over its depth."""
    outputs = layer_outputs.layer_outputs(network)
    names: list[str] = []
    for name in layer_outputs.outer(network):
        if outputs[name].depth > max((outputs[earlier].depth for earlier in names), default=0):
            names.append(name)
    return evenly(np.array(names), LAYERS).tolist()


def most_exciting(
    looking: Looking,
    names: Sequence[str],
    ids: np.ndarray,
    units: int,
    on_progress: Progress = lambda done, total: None,
) -> list[Units]:
    """This number of units of each layer, over the images with these ids.

    Raises ArchitectureError for an unknown layer.
    """
    for name in names:
        layer_outputs.check(looking.bare, name)

    def maxima(net: Network, x: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        outputs = layer_outputs.outputs(net, names, x)
        return {name: _largest(output) for name, output in outputs.items()}

    program, batch_ids, parts = looking.program(maxima), [], []
    for batch in looking.batches(ids):
        batch_maxima = jax.tree.map(np.asarray, program(batch.x))
        parts.append(jax.tree.map(lambda array, mask=batch.mask: array[mask], batch_maxima))
        batch_ids.append(batch.ids[batch.mask])
        on_progress(sum(map(len, batch_ids)), len(ids))
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    all_ids = np.concatenate(batch_ids)
    return [
        _of_layer(looking.bare, name, values, places, all_ids, units)
        for name in names
        for values, places in [joined[name]]
    ]


def _of_layer(
    network: Network, name: str, values: np.ndarray, places: np.ndarray, ids: np.ndarray, units: int
) -> Units:
    """The units of one layer. values, places: (n, c) of `_largest`, for images with these ids."""
    varied = np.argsort(-values.var(axis=0, dtype=np.float64), kind="stable")
    chosen = np.sort(varied[:units])
    values, places = values[:, chosen].T, places[:, chosen].T
    best = np.argsort(-values, axis=1, kind="stable")[:, :IMAGES]
    values, places = (np.take_along_axis(array, best, axis=1) for array in (values, places))
    layer, field = layer_outputs.check(network, name), receptive_fields(network)[name]
    rows, columns = np.divmod(places, layer.shape[1] if len(layer.shape) == 3 else 1)
    (top, bottom), (left, right) = (np.moveaxis(field[axis], -1, 0) for axis in (rows, columns))
    boxes = np.stack([top, left, bottom, right], axis=-1)
    return Units(
        layer=name,
        depth=layer.depth,
        layer_units=layer.shape[-1],
        images=len(ids),
        field=int((field[:, 1] - field[:, 0]).max()),
        units=chosen.astype(np.int32),
        ids=ids[best],
        values=values,
        places=np.stack([rows, columns], axis=-1).astype(np.int32),
        boxes=boxes.astype(np.int32),
    )


def _largest(output: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each unit's largest value and its place, (B, c) twice, of outputs (B, h, w, c) or (B, c).

    A place counts row by row; of equal values it is the first.
    """
    flat = output.astype(jnp.float32).reshape(output.shape[0], -1, output.shape[-1])
    return flat.max(axis=1), flat.argmax(axis=1)

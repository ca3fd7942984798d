"""The last layer's outputs of a localiser as boxes, their loss, and whether they are right.

A box is four numbers, the column and row of its centre, its width and its height (Simonyan and
Zisserman 2014, appendix A.1), in units of the crop's side. The paper prints no unit.
"""

import jax
import jax.numpy as jnp

RIGHT = 0.5  # a box is right where it shares more than this with a true one, over their union
ERROR = (
    "error of boxes: the share of images whose box, with the class given, shares at most half with "
    "each true one, over their union"
)


def boxes_of(outputs: jax.Array, labels: jax.Array | None, crop: int) -> jax.Array:
    """The boxes that outputs say, in a crop's pixels: (..., 4 or 4 K) -> (..., 4) float32.

    labels: (...,) int32, the classes whose boxes are taken from outputs of a box a class. The
    result is (left, top, right, bottom).
    """
    numbers = for_class(outputs, labels)
    centre, half = numbers[..., :2], numbers[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1) * crop


def for_class(outputs: jax.Array, labels: jax.Array | None) -> jax.Array:
    """The four numbers of each label from outputs (..., 4 K); outputs (..., 4) are returned."""
    if outputs.shape[-1] == 4 or labels is None:
        return outputs
    by_class = outputs.reshape(*outputs.shape[:-1], -1, 4)
    return jnp.take_along_axis(by_class, labels[..., None, None], axis=-2)[..., 0, :]


def targets_of(boxes: jax.Array, crop: int) -> jax.Array:
    """The outputs that would be right: boxes (..., 4) in a crop's pixels -> (..., 4)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1) / crop


def losses(outputs: jax.Array, labels: jax.Array, boxes: jax.Array, crop: int) -> jax.Array:
    """Half the squared Euclidean distance from the true boxes, (B,); 0 where a box is NaN.

    outputs: (B, 4), or (B, 4 K) of which the class of `labels` (B,) counts. boxes: (B, 4) in the
    crop's pixels.
    """
    has_box = jnp.isfinite(boxes).all(axis=-1)
    # Not NaN times 0: a gradient would be NaN.
    targets = targets_of(jnp.where(has_box[:, None], boxes, 0), crop)
    differences = for_class(outputs, labels) - targets
    return jnp.where(has_box, 0.5 * jnp.square(differences).sum(axis=-1), 0)


def iou(boxes: jax.Array, others: jax.Array) -> jax.Array:
    """Intersection over union: (..., 4) twice, broadcast -> (...,); 0 where nothing is shared."""
    low = jnp.maximum(boxes[..., :2], others[..., :2])
    high = jnp.minimum(boxes[..., 2:], others[..., 2:])
    shared = jnp.maximum(high - low, 0).prod(axis=-1)
    area, other_area = (
        jnp.maximum(b[..., 2:] - b[..., :2], 0).prod(axis=-1) for b in (boxes, others)
    )
    union = area + other_area - shared
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1), 0)


def wrong(outputs: jax.Array, labels: jax.Array, boxes: jax.Array, crop: int) -> jax.Array:
    """Whether boxes are wrong, (B,) float32: 0 or 1, and NaN where the true one is not known."""
    has_box = jnp.isfinite(boxes).all(axis=-1)
    shared = iou(boxes_of(outputs, labels, crop), boxes)
    return jnp.where(has_box, (shared <= RIGHT).astype(jnp.float32), jnp.nan)

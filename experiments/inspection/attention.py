"""Where in an image a class is seen: by covering parts of it, and by gradients.

Occlusion (Zeiler & Fergus, ECCV 2014, section 4.2): a square covers the image, and the posterior of
a class falls where it hides what speaks for that class. Saliency (Simonyan, Vedaldi & Zisserman,
arXiv:1312.6034, section 3): the largest absolute gradient of a class's score over the channels of a
pixel. The score is the logit.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from cnn_arch import Network
from experiments.inspection.looking import Looking, Shown
from experiments.testing.tester import Progress

SQUARE, STRIDE = 1 / 5, 1 / 16  # of the image's side
_BATCH = 64  # covered images at once


@dataclass(frozen=True)
class Occlusion:
    """Posteriors of a class for n images, whole, and covered at p by p places.

    The square is 0 in the network's input: the mean that is subtracted from all images.
    """

    classes: np.ndarray  # (n,) int32, of the network
    whole: np.ndarray  # (n,) float32
    covered: np.ndarray  # (n, p, p) float32, by the square's first row and first column
    firsts: np.ndarray  # (p,) int32, these rows and columns, pixels
    square: int  # side of the square, pixels


@dataclass(frozen=True)
class Saliency:
    """Saliency maps of n images."""

    classes: np.ndarray  # (n,) int32, of the network
    maps: np.ndarray  # (n, h, w) float32, change of the score a grey level (0 to 255) of the pixel


def places(side: int) -> tuple[int, np.ndarray]:
    """(side of the square, its first rows or columns) for images of this side, in pixels.

    The last square ends at the border.
    """
    square, stride = max(1, round(side * SQUARE)), max(1, round(side * STRIDE))
    firsts: np.ndarray = np.arange(0, side - square + 1, stride)
    return square, np.unique([*firsts, side - square]).astype(np.int32)


def occlusion(
    looking: Looking,
    shown: Shown,
    classes: np.ndarray,
    on_progress: Progress = lambda done, total: None,
) -> Occlusion:
    """Covers each image and computes the posterior of its class. on_progress: of covered images."""
    square, firsts = places(shown.x.shape[1])
    posteriors = jax.nn.sigmoid if looking.subject.data.preprocessing.several else jax.nn.softmax

    def covered(net: Network, x: jax.Array, corners: jax.Array, k: jax.Array) -> jax.Array:
        """Posteriors (B,) of class k for one image x (h, w, C); corners: (B, 2)."""
        h, w = x.shape[:2]
        rows, columns = (jnp.arange(n) - corners[:, i, None] for i, n in enumerate((h, w)))
        hidden = _within(rows, square)[:, :, None] & _within(columns, square)[:, None, :]
        return posteriors(net(jnp.where(hidden[..., None], 0, x)))[:, k]

    program, p = looking.program(covered), len(firsts)
    grid = np.stack(np.meshgrid(firsts, firsts, indexing="ij"), axis=-1).reshape(-1, 2)
    shape = (1 + (-1 - len(grid)) % _BATCH, 2)  # fills the last batch
    outside: np.ndarray = np.full(shape, -square, np.int32)  # covers nothing
    corners = np.concatenate([grid, outside])
    batches, total = [], len(classes) * len(corners)
    for x, k in zip(shown.x, classes, strict=True):
        for at in range(0, len(corners), _BATCH):
            batches.append(np.asarray(program(x, corners[at : at + _BATCH], k)))
            on_progress(len(batches) * _BATCH, total)
    posteriors = np.concatenate(batches).reshape(len(classes), -1)
    maps = posteriors[:, : len(grid)].reshape(-1, p, p)
    return Occlusion(classes, posteriors[:, len(grid)], maps, firsts, square)


def _within(places: jax.Array, size: int) -> jax.Array:
    return (places >= 0) & (places < size)


def saliency(looking: Looking, shown: Shown, classes: np.ndarray) -> Saliency:
    """The gradient of each image's score of its class, by the pixels of its view.

    Of whitened images it is by the whitened pixels.
    """

    def scores(net: Network, x: jax.Array, classes: jax.Array) -> jax.Array:
        return jnp.take_along_axis(net(x), classes[:, None], axis=1).sum()

    def gradients(net: Network, x: jax.Array, classes: jax.Array) -> jax.Array:
        return jax.grad(lambda x: scores(net, x, classes))(x)

    gradient = np.asarray(looking.program(gradients)(shown.x, classes))
    std = np.asarray(looking.subject.data.preprocessing.normalise.std)
    return Saliency(classes, np.abs(gradient / std).max(axis=-1))

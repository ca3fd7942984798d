"""Small data sets that live on the device and are augmented there.

The stream of training examples is the concatenation of one permutation an epoch, so a
position in it is a single integer and any position is reached at once. What is drawn for an
example depends on (seed, epoch, index of the example) and nothing else: not on its batch, its
place in the batch, the batch size or the number of devices.

All scaling and cropping of an example is one linear map, a (crop, height) matrix on its rows
and a (crop, width) matrix on its columns: no scaled image is ever stored or rounded.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import crops
from input_pipeline.datasets import Dataset
from input_pipeline.errors import DataError

# --------------------------------------------------------------------------------- order


def order(seed: int, n: int, position: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """The `batch` examples of the training stream from `position` on.

    `position` counts examples since the start of training; batch k starts at k * batch. A
    batch may straddle epochs. Returns (indices, epochs), both (batch,) int32: which of the `n`
    examples, and the epoch (from 0) that each belongs to. Every epoch holds each example once.
    """
    if n < 1 or batch < 1 or position < 0 or seed < 0:
        raise ValueError(f"order(seed={seed}, n={n}, position={position}, batch={batch})")
    epochs, places = np.divmod(np.arange(position, position + batch, dtype=np.int64), n)
    indices: np.ndarray = np.empty(batch, np.int32)
    for epoch in range(epochs[0], epochs[-1] + 1):
        here = epochs == epoch
        indices[here] = _permutation(seed, epoch, n)[places[here]]
    return indices, epochs.astype(np.int32)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """Ranks of raw Philox words: unlike a Generator's shuffle, fixed for all NumPy versions."""
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
    permutation = np.argsort(words, kind="stable").astype(np.int32)
    permutation.setflags(write=False)
    return permutation


def eval_batches(n: int, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every one of `n` examples once, as (indices (batch,) int32, mask (batch,) bool).

    The last batch is filled up with example 0, masked False.
    """
    if batch < 1:
        raise ValueError(f"eval_batches(n={n}, batch={batch})")
    places: np.ndarray = np.arange(-(-n // batch) * batch, dtype=np.int32).reshape(-1, batch)
    return [(np.where(row < n, row, 0), row < n) for row in places]


# ----------------------------------------------------------------------------- normalising


@functools.partial(jax.tree_util.register_dataclass, data_fields=["mean", "std"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class Normalisation:
    """x -> (x - mean) / std on images of the stored size, before they are scaled.

    `mean` is float32, (H, W, C), (C,) or (); `std` is float32 (). Scaling is linear, so removing
    the mean image first is the same as removing it, scaled to S, from the scaled image and
    cropping afterwards: the mean moves with the image, and beyond the border a crop sees 0.
    """

    mean: np.ndarray | jax.Array
    std: np.ndarray | jax.Array

    @classmethod
    def fit(
        cls, images: np.ndarray, kind: str = "per_pixel", *, divide_by_std: bool = False
    ) -> "Normalisation":
        """From the training images (N, H, W, C) uint8.

        kind: `per_pixel` removes the mean image (AlexNet, ResNet), `per_channel` the mean of each
        channel (VGG section 2.1), `none` nothing. `divide_by_std` divides by one number, the
        root mean square of what is left; without it values stay on the scale of 0 to 255.
        """
        if kind not in NORMALISATIONS:
            raise DataError(f"normalisation {kind!r}; expected one of {', '.join(NORMALISATIONS)}")
        # Sums of bytes are exact in float64, whatever the order.
        mean_HWC = images.mean(axis=0, dtype=np.float64)
        square_HWC = np.zeros_like(mean_HWC)
        for image in images:
            square_HWC += np.square(image, dtype=np.float64)
        mean = {
            "per_pixel": mean_HWC,
            "per_channel": mean_HWC.mean(axis=(0, 1)),
            "none": np.zeros(()),
        }[kind]
        left = np.mean(square_HWC / len(images) - 2 * mean * mean_HWC + mean**2)
        if divide_by_std and left < 1e-6:
            raise DataError("all training images are the same: their standard deviation is 0")
        std = np.sqrt(left) if divide_by_std else 1.0
        return cls(np.asarray(mean, np.float32), np.asarray(std, np.float32))

    def __call__(self, images: jax.Array) -> jax.Array:
        """(..., H, W, C) uint8 or float -> the same shape, float32."""
        return (images.astype(jnp.float32) - self.mean) / self.std


NORMALISATIONS = ("per_pixel", "per_channel", "none")

# ----------------------------------------------------------------------------------- views


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainView:
    """A random square of side `crop` (pixels) from an image whose short side is scaled to S.

    S: (lowest, highest); one integer is drawn uniformly for each image (VGG's scale jitter).
       None fits the short side to the crop: (crop, crop).
    pad: that many zeros on each side of the scaled, normalised image before the crop is drawn
       (ResNet section 4.2: pad 4, random 32x32 crop); zero is the mean, not black.
    mirror: flip left to right with probability one half.
    """

    crop: int
    S: tuple[int, int] | None = None
    pad: int = 0
    mirror: bool = False

    def __post_init__(self) -> None:
        if self.S is not None:
            object.__setattr__(self, "S", tuple(self.S))  # hashable, also when a config has a list
        low, high = self.scales
        if self.crop < 1 or self.pad < 0 or not self.crop <= low <= high:
            raise DataError(
                f"training view crop={self.crop}, S={self.S}, pad={self.pad}; expected "
                "1 <= crop <= S[0] <= S[1] and pad >= 0"
            )

    @property
    def scales(self) -> tuple[int, int]:
        return (self.crop, self.crop) if self.S is None else self.S

    def check(self, dataset: Dataset) -> None:
        """Raises DataError if the view would change what an image of `dataset` shows."""
        if self.mirror and not dataset.mirror_ok:
            raise DataError(
                f"mirror is asked for, but mirrored images of {dataset.name!r} are not images of "
                "their class; set mirror to False"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestView:
    """The central square of side `crop` from an image whose short side is scaled to Q.

    Q: None fits the short side to the crop.
    """

    __test__ = False  # not a pytest class

    crop: int
    Q: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.scale:
            raise DataError(f"test view crop={self.crop}, Q={self.Q}; expected 1 <= crop <= Q")

    @property
    def scale(self) -> int:
        return self.crop if self.Q is None else self.Q


def view_key(seed: jax.typing.ArrayLike, epoch: jax.Array, index: jax.Array) -> jax.Array:
    """The random key of one example in one epoch."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), epoch), index)


def train_batch(
    images_NHWC: jax.Array,
    labels_N: jax.Array,
    indices_B: jax.Array,
    epochs_B: jax.Array,
    seed: jax.typing.ArrayLike,
    view: TrainView,
    normalise: Normalisation,
) -> tuple[jax.Array, jax.Array]:
    """Random views x (B, crop, crop, C) float32 of the examples at `indices_B`, and labels (B,).

    A pure function to be called inside the jitted train step; `view` is static. Each view
    depends on (seed, epoch, index) only.
    """
    x_BHWC = normalise(images_NHWC[indices_B])
    draws = jax.vmap(functools.partial(_draw, view=view, size=images_NHWC.shape[1:3]))
    keys_B = jax.vmap(view_key, (None, 0, 0))(seed, epochs_B, indices_B)
    rows_B, columns_B, mirrored_B = draws(keys_B)
    x_BHWC = _resample(x_BHWC, rows_B, columns_B)
    if view.mirror:
        x_BHWC = jnp.where(mirrored_B[:, None, None, None], x_BHWC[:, :, ::-1], x_BHWC)
    return x_BHWC, labels_N[indices_B]


def test_batch(
    images_NHWC: jax.Array, indices_B: jax.Array, view: TestView, normalise: Normalisation
) -> jax.Array:
    """Central views (B, crop, crop, C) float32 of the examples at `indices_B`; no randomness."""
    height, width = images_NHWC.shape[1:3]
    scaled = crops.scaled_size(height, width, view.scale)
    rows, columns = (
        _axis_weights(size, new, crops.centre_offset(new, view.crop), view.crop)
        for size, new in zip((height, width), scaled, strict=True)
    )
    return _resample(normalise(images_NHWC[indices_B]), rows, columns)


def _draw(
    key: jax.Array, view: TrainView, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One example's row weights (crop, H), column weights (crop, W) and whether it is mirrored."""
    words = jax.random.bits(key, (4,), jnp.uint32)
    low, high = view.scales
    # The remainder's bias is below range / 2**32: nothing for ranges of some hundred pixels.
    short_side = low + (words[0] % (high - low + 1)).astype(jnp.int32)
    weights = []
    scaled_size = crops.scaled_size(*size, short_side)
    for length, scaled, word in zip(size, scaled_size, words[1:3], strict=True):
        places = (scaled - view.crop + 2 * view.pad + 1).astype(jnp.uint32)
        offset = (word % places).astype(jnp.int32) - view.pad
        weights.append(_axis_weights(length, scaled, offset, view.crop))
    return weights[0], weights[1], words[3] % 2 == 1


def _axis_weights(
    size: int, scaled: int | jax.Array, offset: int | jax.Array, crop: int
) -> jax.Array:
    """(crop, size): pixels offset .. offset + crop - 1 of an axis of `size` scaled to `scaled`.

    Linear interpolation between pixel centres (at half-integers), its triangle widened when the
    axis shrinks: the convention of Pillow's BILINEAR and of `jax.image.resize(..., "bilinear")`.
    Rows that fall outside the scaled image are 0. For scaled == size the matrix is exactly 0/1.
    """
    step = size / jnp.asarray(scaled, jnp.float32)
    place = offset + jnp.arange(crop)
    centre = (place + 0.5) * step - 0.5
    distance = jnp.abs(centre[:, None] - jnp.arange(size)) / jnp.maximum(step, 1.0)
    weights = jnp.maximum(0.0, 1.0 - distance)
    inside = (place >= 0) & (place < scaled)
    total = jnp.where(inside, weights.sum(axis=1), 1.0)
    return jnp.where(inside[:, None], weights / total[:, None], 0.0)


def _resample(x_BHWC: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Row weights (B, h, H) or (h, H) and column weights (B, w, W) or (w, W) applied to a batch."""
    batched = "b" if rows.ndim == 3 else ""
    # Full precision: a GPU's default (TF32) would round pixel values to ten bits.
    einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    x_BhWC = einsum(f"{batched}hH,bHWc->bhWc", rows, x_BHWC)
    return einsum(f"{batched}wW,bhWc->bhwc", columns, x_BhWC)

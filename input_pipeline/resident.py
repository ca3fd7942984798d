"""Small data sets that live on the device and are augmented there.

Random draws depend only on (seed, epoch, index of the example). Its batch, its place there, the
batch size and the number of devices do not matter.

All scaling and cropping of an example is one linear map, a (crop, height) matrix on its rows
and a (crop, width) matrix on its columns: no scaled image is ever stored or rounded.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import crops
from input_pipeline.datasets import Dataset
from input_pipeline.errors import DataError

# ---------------------------------------------------------------------------------- images


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["rows"], meta_fields=["shape_HWC"]
)
@dataclasses.dataclass(frozen=True)
class Images:
    """Images that lie on the device, each a row: `images[indices]` is (B, H, W, C).

    In each dispatch, a TPU copies a whole array (N, H, W, C) into another layout before it takes
    images from it. Rows it reads in place.
    """

    rows: jax.Array | np.ndarray  # (N, H * W * C) uint8
    shape_HWC: tuple[int, int, int]  # of an image

    @classmethod
    def of(cls, images_NHWC: np.ndarray) -> "Images":
        """The same images as rows; no copy."""
        n, *shape = images_NHWC.shape
        return cls(images_NHWC.reshape(n, -1), (shape[0], shape[1], shape[2]))

    def __getitem__(self, indices_B: jax.Array) -> jax.Array:
        return self.rows[indices_B].reshape(-1, *self.shape_HWC)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        return (len(self.rows), *self.shape_HWC)


# ----------------------------------------------------------------------------- normalising


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["mean", "std", "whitening"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, eq=False)
class Normalisation:
    """x -> (x - mean) / std on images of the stored size, before they are scaled.

    Scaling is linear, so the mean image moves with the image, and beyond the border a crop sees 0.

    With a `whitening` matrix, x -> (GCN(x) - mean) whitening / std: the contrast of each image is
    normalised first, and `mean` is of such images.
    """

    mean: np.ndarray | jax.Array  # float32, (H, W, C), (C,) or ()
    std: np.ndarray | jax.Array  # float32, ()
    whitening: np.ndarray | jax.Array | None = None  # (D, D) float32 with D = H W C

    @classmethod
    def fit(
        cls, images: np.ndarray, kind: str = "per_pixel", *, divide_by_std: bool = False
    ) -> "Normalisation":
        """From the training images (N, H, W, C) uint8.

        kind: `per_pixel` removes the mean image (AlexNet, ResNet), `per_channel` the mean of each
        channel (VGG section 2.1), `none` nothing; `gcn_zca` is global contrast normalisation and
        ZCA whitening (NiN section 4; `_zca`); `lenet` maps 0 to -0.1 and 255 to 1.175, whatever
        the images (LeCun et al. 1998, section II-B). `divide_by_std` divides by one number, the
        root mean square of the centred values. Without it values stay on the scale of 0 to 255, or
        whitened.

        Raises DataError for an unknown kind, and for images too large to whiten or all the same.
        """
        if kind not in NORMALISATIONS:
            raise DataError(f"normalisation {kind!r}; expected one of {', '.join(NORMALISATIONS)}")
        if kind == "lenet":
            return cls(*(np.asarray(value, np.float32) for value in LENET))
        if kind == "gcn_zca":
            mean, whitening, mean_square = _zca(images)
            return cls(mean, deviation(mean_square, divide_by_std), whitening)
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
        mean_square = float(np.mean(square_HWC / len(images) - 2 * mean * mean_HWC + mean**2))
        return cls(np.asarray(mean, np.float32), deviation(mean_square, divide_by_std))

    def __call__(self, images: jax.Array) -> jax.Array:
        """(..., H, W, C) uint8 or float -> the same shape, float32."""
        if self.whitening is None:
            return (images.astype(jnp.float32) - self.mean) / self.std
        centred = _contrast_normalised(jnp.asarray(images, jnp.float32)) - self.mean
        flat = centred.reshape(*centred.shape[:-3], -1)
        # Full precision: a GPU's default (TF32) would leave ten bits.
        white = jnp.matmul(flat, self.whitening, precision=jax.lax.Precision.HIGHEST)
        return white.reshape(centred.shape) / self.std


NORMALISATIONS = ("per_pixel", "per_channel", "none", "gcn_zca", "lenet")
LENET = (20.0, 200.0)  # mean and deviation: -20 / 200 is -0.1, and 235 / 200 is 1.175
GCN_NORM = 55.0  # of each image after its mean was subtracted
GCN_LEAST = 0.01  # grey levels: a smaller norm is rounding (one pixel one level off makes 0.7)
ZCA_BIAS = 0.1  # added to each eigenvalue
ZCA_LARGEST = 64  # pixels a side: a matrix of 600 MB


def deviation(mean_square: float, divide_by_std: bool) -> np.ndarray:
    """The number to divide by, () float32. mean_square: of the values that are divided."""
    if divide_by_std and mean_square < 1e-6:
        raise DataError("all training images are the same: their standard deviation is 0")
    return np.asarray(np.sqrt(mean_square) if divide_by_std else 1.0, np.float32)


def _contrast_normalised(x: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """Images (..., H, W, C) minus the mean of each over all its values, scaled to norm 55.

    An image of one value becomes 0: its rounding errors are not scaled up.
    """
    axes = (-3, -2, -1)
    centred = x - x.mean(axis=axes, keepdims=True)
    norm = (centred * centred).sum(axis=axes, keepdims=True) ** 0.5
    flat = norm < GCN_LEAST
    return centred * (GCN_NORM * ~flat / (norm + flat))


def _zca(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean image (H, W, C), whitening matrix (D, D), float32, and the whitened images' mean square.

    The whitening of the maxout paper, to which NiN section 4 refers: pylearn2's script
    make_cifar10_gcn_whitened.py, `CIFAR10(gcn=55.)` and `ZCA()`. With eigenvalues l and
    eigenvectors E of the covariance of the N contrast-normalised images (divided by N), it is
    E (l + 0.1)^(-1/2) E^T.
    Time grows with the sixth power of the side: 20 s for CIFAR on two cores.
    """
    n, *shape = images.shape
    if max(shape[:2]) > ZCA_LARGEST:
        raise DataError(
            f"normalisation 'gcn_zca' whitens images of at most {ZCA_LARGEST}x{ZCA_LARGEST}, and "
            f"these are {shape[0]}x{shape[1]}; use 'per_pixel', say"
        )
    size = math.prod(shape)
    total, products = np.zeros(size), np.zeros((size, size))
    for start in range(0, n, 1024):
        x = _contrast_normalised(images[start : start + 1024].astype(np.float64)).reshape(-1, size)
        total += x.sum(axis=0)
        products += x.T @ x
    mean = total / n
    products /= n
    products -= np.outer(mean, mean)
    eigenvalues, vectors = np.linalg.eigh(products)
    mean_square = float(np.mean(eigenvalues / (eigenvalues + ZCA_BIAS)))
    vectors *= (eigenvalues + ZCA_BIAS) ** -0.25
    whitening = (vectors @ vectors.T).astype(np.float32)
    return mean.astype(np.float32).reshape(shape), whitening, mean_square


# ----------------------------------------------------------------------------------- views


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainView:
    """A random square of side `crop` (pixels) from an image whose short side is scaled to S."""

    crop: int
    # (lowest, highest); one integer is drawn uniformly for each image (VGG's scale jitter). None
    # fits the short side to the crop: (crop, crop).
    S: tuple[int, int] | None = None
    # That many zeros on each side of the scaled, normalised image before the crop is drawn (ResNet
    # section 4.2: pad 4, random 32x32 crop); zero is the mean, not black.
    pad: int = 0
    mirror: bool = False  # flip left to right with probability one half
    distort: float = 0.0  # the share of the images that are shown distorted, see `_distorted`

    def __post_init__(self) -> None:
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


def view_key(seed: jax.typing.ArrayLike, epoch: jax.Array, index: jax.Array) -> jax.Array:
    """The random key of one example in one epoch."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), epoch), index)


def train_batch(
    images: Images | jax.Array,
    labels_N: jax.Array,
    indices_B: jax.Array,
    epochs_B: jax.Array,
    seed: jax.typing.ArrayLike,
    view: TrainView,
    normalise: Normalisation,
) -> tuple[jax.Array, jax.Array]:
    """Random views x (B, crop, crop, C) float32 of the examples at `indices_B`, and labels (B,).

    A pure function; `view` is static. Each view depends on (seed, epoch, index) only.
    """
    x_BHWC = normalise(images[indices_B])
    _, height, width, _ = images.shape
    draws = jax.vmap(functools.partial(_drawn_weights, view=view, size=(height, width)))
    keys_B = jax.vmap(view_key, (None, 0, 0))(seed, epochs_B, indices_B)
    if view.distort:
        x_BHWC = jax.vmap(functools.partial(_distorted, share=view.distort))(x_BHWC, keys_B)
    rows_B, columns_B, mirrored_B = draws(keys_B)
    x_BHWC = _weigh_columns(columns_B, _weigh_rows(rows_B, x_BHWC))
    if view.mirror:
        x_BHWC = jnp.where(mirrored_B[:, None, None, None], x_BHWC[:, :, ::-1], x_BHWC)
    return x_BHWC, labels_N[indices_B]


# The largest distortions in either direction. LeCun et al. 1998 (section III-A) name the maps and
# print no sizes.
SHIFT = 1 / 16  # of the side, in both directions
SCALE = 0.15  # the logarithm of the factor of both sides
SQUEEZE = 0.15  # the logarithm of a factor that multiplies the width and divides the height
SHEAR = 0.25  # pixels by which each row is shifted against the one above it


def _distorted(x_HWC: jax.Array, key: jax.Array, share: float) -> jax.Array:
    """The image under a random planar affine map, with probability `share`.

    The map keeps the centre but for the shift. Pixels are interpolated bilinearly; those at the
    border are repeated beyond it.
    """
    height, width, _ = x_HWC.shape
    draws = jax.random.uniform(jax.random.fold_in(key, 1), (6,))
    down, across, scale, squeeze, shear = (2 * draws[:5] - 1) * jnp.array(
        [SHIFT * height, SHIFT * width, SCALE, SQUEEZE, SHEAR]
    )
    y, x = (jnp.arange(side) - (side - 1) / 2 for side in (height, width))
    rows = (y - down) * jnp.exp(squeeze - scale)  # where in the image each row comes from, (H,)
    columns = (x - across) * jnp.exp(-squeeze - scale) + shear * rows[:, None]  # (H, W)
    rows = jnp.clip(rows + (height - 1) / 2, 0, height - 1)[:, None]
    columns = jnp.clip(columns + (width - 1) / 2, 0, width - 1)
    top, left = jnp.floor(rows).astype(jnp.int32), jnp.floor(columns).astype(jnp.int32)
    below, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    v, u = (rows - top)[..., None], (columns - left)[..., None]
    upper = x_HWC[top, left] * (1 - u) + x_HWC[top, right] * u
    lower = x_HWC[below, left] * (1 - u) + x_HWC[below, right] * u
    return jnp.where(draws[5] < share, upper * (1 - v) + lower * v, x_HWC)


def view_batch(
    images: Images | jax.Array,
    indices_B: jax.Array,
    view: crops.TestView,
    normalise: Normalisation,
) -> jax.Array:
    """All places of `view`, unmirrored, in the examples at `indices_B`: (B, V, h, w, C) float32.

    A pure function without randomness; `view` is static.
    """
    height, width = images.shape[1:3]
    x_BHWC = normalise(images[indices_B])
    columns: dict[tuple[float, ...], jax.Array] = {}
    cut_rows: dict[tuple[float, ...], jax.Array] = {}  # the rows of a place, (B, h, W, C)
    views = []
    for place in view.places(height, width):
        down = (place.box.top, place.box.height, place.size[0])
        across = (place.box.left, place.box.width, place.size[1])
        if down not in cut_rows:
            cut_rows[down] = _weigh_rows(_part_weights(height, *down), x_BHWC)
        if across not in columns:
            columns[across] = _part_weights(width, *across)
        views.append(_weigh_columns(columns[across], cut_rows[down]))
    return jnp.stack(views, axis=1)


def _part_weights(size: int, start: float, length: float, pixels: int) -> jax.Array:
    """(pixels, size): weights that show in `pixels` a part of an axis, from `start` on."""
    return _axis_weights(size, size * pixels / length, start * pixels / length, pixels)


def mirrored_boxes(boxes: jax.Array, width: int) -> jax.Array:
    """Boxes (..., 4) of a view of this width, in its mirror image."""
    left, top, right, bottom = (boxes[..., k] for k in range(4))
    return jnp.stack([width - right, top, width - left, bottom], axis=-1)


def train_boxes(
    boxes_NM4: jax.Array,
    indices_B: jax.Array,
    epochs_B: jax.Array,
    seed: jax.typing.ArrayLike,
    view: TrainView,
    size: tuple[int, int],
    part: float,
) -> jax.Array:
    """A box for each of the views of `train_batch`: (B, 4), in pixels of the crop.

    boxes_NM4: as of `Boxes.padded`, of images of this size (height, width). One is drawn of the
    boxes of which a view shows at least the share `part`; NaN where there is none.
    """

    def draw_box(image_boxes_M4: jax.Array, key: jax.Array) -> jax.Array:
        scaled, offsets, mirrored = _draw(key, view, size)
        down, across = (s / length for s, length in zip(scaled, size, strict=True))
        top, left = offsets
        boxes_M4 = image_boxes_M4 * jnp.stack([across, down] * 2) - jnp.stack([left, top] * 2)
        if view.mirror:
            boxes_M4 = jnp.where(mirrored, mirrored_boxes(boxes_M4, view.crop), boxes_M4)
        sides = boxes_M4[:, 2:] - boxes_M4[:, :2]
        inside = jnp.clip(boxes_M4[:, 2:], 0, view.crop) - jnp.clip(boxes_M4[:, :2], 0, view.crop)
        share = inside.prod(axis=1) / sides.prod(axis=1)
        is_shown = (share >= part) & (share > 0)
        draws = jax.random.uniform(jax.random.fold_in(key, 2), (len(image_boxes_M4),))
        box = boxes_M4[jnp.argmax(jnp.where(is_shown, draws, -1))]
        return jnp.where(is_shown.any(), box, jnp.nan)

    keys_B = jax.vmap(view_key, (None, 0, 0))(seed, epochs_B, indices_B)
    return jax.vmap(draw_box)(boxes_NM4[indices_B], keys_B)


def _draw(
    key: jax.Array, view: TrainView, size: tuple[int, int]
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...], jax.Array]:
    """(size of the whole scaled image, offset of the crop in it, whether it is mirrored) of a view.

    Size and offset are (rows, columns).
    """
    words = jax.random.bits(key, (4,), jnp.uint32)
    low, high = view.scales
    # The remainder's bias is below range / 2**32: nothing for ranges of some hundred pixels.
    short_side = low + (words[0] % (high - low + 1)).astype(jnp.int32)
    scaled_size, offsets = crops.scaled_size(*size, short_side), []
    for scaled, word in zip(scaled_size, words[1:3], strict=True):
        places = (scaled - view.crop + 2 * view.pad + 1).astype(jnp.uint32)
        offsets.append((word % places).astype(jnp.int32) - view.pad)
    return tuple(scaled_size), tuple(offsets), words[3] % 2 == 1


def _drawn_weights(
    key: jax.Array, view: TrainView, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One example's row weights (crop, H), column weights (crop, W) and whether it is mirrored."""
    scaled, offsets, mirrored = _draw(key, view, size)
    rows, columns = (
        _axis_weights(*axis, view.crop) for axis in zip(size, scaled, offsets, strict=True)
    )
    return rows, columns, mirrored


def _axis_weights(
    size: int, scaled: float | jax.Array, offset: float | jax.Array, crop: int
) -> jax.Array:
    """(crop, size): pixels offset .. offset + crop - 1 of an axis of `size` scaled to `scaled`.

    Linear interpolation between pixel centres (at half-integers), its triangle widened when the
    axis shrinks, as Pillow's BILINEAR. Rows outside the scaled image are 0. For scaled == size the
    matrix is exactly 0/1.
    """
    step = size / jnp.asarray(scaled, jnp.float32)
    place = offset + jnp.arange(crop)
    centre = (place + 0.5) * step - 0.5
    distance = jnp.abs(centre[:, None] - jnp.arange(size)) / jnp.maximum(step, 1.0)
    weights = jnp.maximum(0.0, 1.0 - distance)
    inside = (place >= 0) & (place < scaled)
    total = jnp.where(inside, weights.sum(axis=1), 1.0)
    return jnp.where(inside[:, None], weights / total[:, None], 0.0)


# Full precision: a GPU's default (TF32) would round pixel values to ten bits.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _weigh_rows(rows: jax.Array, x_BHWC: jax.Array) -> jax.Array:
    """Row weights (B, h, H), or (h, H) of all, applied to a batch."""
    return _einsum("bhH,bHWc->bhWc" if rows.ndim == 3 else "hH,bHWc->bhWc", rows, x_BHWC)


def _weigh_columns(columns: jax.Array, x_BhWC: jax.Array) -> jax.Array:
    return _einsum("bwW,bhWc->bhwc" if columns.ndim == 3 else "wW,bhWc->bhwc", columns, x_BhWC)

"""Changes of colours of training views, on the device, and mirroring.

AlexNet section 4.1 (Krizhevsky et al. 2012) shifts the colour of each image along the principal
components of the training images' pixels; VGG and ResNet do the same. GoogLeNet section 6 uses the
photometric distortions of Howard (2013, arXiv:1312.5402).

All draws for an example follow from its key (`resident.view_key(seed, epoch, index)`); mirror,
shift and distortions are drawn independently. Values are on the scale of 0 to 255; the mean is
subtracted afterwards.
"""

import functools
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.errors import DataError

KINDS = ("none", "pca_public", "pca_fitted", "pca_paper", "photometric", "photometric+pca_public")
SIGMA = 0.1  # standard deviation of alpha
FACTORS = (0.5, 1.5)  # range of brightness, contrast and saturation
LUMA = (0.299, 0.587, 0.114)  # of R, G and B, ITU-R BT.601
ORDERS = np.array(list(itertools.permutations(range(3))), np.int32)

# Published with fb.resnet.torch (datasets/imagenet.lua) for pixels in [0, 1]: components are the
# columns, in the order R, G, B. The second line is 255 times 0.2175, 0.0188, 0.0045.
PUBLIC_COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
PUBLIC_DEVIATIONS = np.array([55.46, 4.794, 1.148])

# Each draw has a key of its own, folded from the example's with one of these.
_MIRROR, _ALPHA, _ORDER, _FACTOR = 0x6D697272, 0x616C7068, 0x6F726465, 0x66616374

# ----------------------------------------------------------------------------- statistics


@dataclass(frozen=True, eq=False)
class Statistics:
    """Colour statistics of all pixels of n images, 0 to 255; each pixel has the same weight."""

    mean_C: np.ndarray  # (C,) float64
    covariance: np.ndarray  # (C, C) float64, divided by the number of pixels
    n: int

    @classmethod
    def fit(cls, images: Iterable[np.ndarray]) -> "Statistics":
        """From images (H, W, C) uint8 of any sizes, one after the other; exact in any order.

        Raises DataError without images, and for one that is not uint8 or has other channels.
        """
        n = pixels = 0
        total: np.ndarray | None = None  # (C,) and below (C, C): Python's integers have no end
        squares: np.ndarray | None = None
        for image in images:
            channels = 0 if total is None else len(total)
            fits = image.ndim == 3 and image.dtype == np.uint8 and image.size
            if not fits or (channels and image.shape[2] != channels):
                raise DataError(
                    f"image {n} is {image.dtype} of shape {image.shape}; expected uint8 of shape "
                    f"(height, width, {channels or 'channels'})"
                )
            flat = image.reshape(-1, image.shape[2])
            if total is None or squares is None:
                total = np.zeros(image.shape[2], object)
                squares = np.zeros((image.shape[2],) * 2, object)
            for start in range(0, len(flat), 1 << 20):
                # Sums of products of bytes are exact in float64, whatever the order.
                block: np.ndarray = flat[start : start + (1 << 20)].astype(np.float64)
                total += _integers(block.sum(axis=0))
                squares += _integers(block.T @ block)
            n, pixels = n + 1, pixels + len(flat)
        if total is None or squares is None:
            raise DataError("there are no images to take the colour statistics of")
        covariance = (pixels * squares - np.outer(total, total)) / pixels**2
        return cls((total / pixels).astype(np.float64), covariance.astype(np.float64), n)

    @functools.cached_property
    def eigen(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues (C,), largest first, and components (C, C), the columns.

        Of each component, the entry farthest from zero is positive.
        """
        eigenvalues, components = np.linalg.eigh(self.covariance)
        eigenvalues, components = np.maximum(eigenvalues[::-1], 0.0), components[:, ::-1]
        farthest = np.abs(components).argmax(axis=0)
        return eigenvalues, components * np.sign(components[farthest, np.arange(len(eigenvalues))])


def _integers(values: np.ndarray) -> np.ndarray:
    """Whole numbers in float64 as Python's integers."""
    return values.astype(np.int64).astype(object)


def constants(kind: str, channels: int, statistics: Statistics | None = None) -> np.ndarray | None:
    """The constants of `recolour` for `kind`: (3, 3) float32, or None.

    Column i is p_i times the factor of alpha_i, in grey levels from 0 to 255.

    `pca_public`: the constants of most implementations.
    `pca_paper`: the formula to the letter, sum of p_i alpha_i lambda_i with the eigenvalues of the
       training images. The paper does not give the scale of the pixels, which matters: here it is
       [0, 1], as in the public constants, and the shift is scaled back to 0 to 255.
    `pca_fitted`: standard deviations (square roots of the eigenvalues) in place of the
       eigenvalues, as cuda-convnet2 does, which is free of the scale. On natural images the first
       shift is about 2 times, the others 7 and 15 times those of the public constants.

    Raises DataError for an unknown kind, grey images, or missing statistics.
    """
    _check(kind, channels)
    if "pca" not in kind:
        return None
    if kind.endswith("pca_public"):
        return (PUBLIC_COMPONENTS * PUBLIC_DEVIATIONS).astype(np.float32)
    if statistics is None or len(statistics.mean_C) != channels:
        raise DataError(f"colour {kind!r} needs the statistics of the training images' pixels")
    eigenvalues, components = statistics.eigen
    spread = np.sqrt(eigenvalues) if kind == "pca_fitted" else eigenvalues / 255
    return (components * spread).astype(np.float32)


def _check(kind: str, channels: int) -> None:
    if kind not in KINDS:
        raise DataError(f"colour {kind!r}; expected one of {', '.join(KINDS)}")
    if kind != "none" and channels != 3:
        problem = "is grey (1 channel)" if channels == 1 else f"has {channels} channels"
        raise DataError(f"colour {kind!r} is for RGB images, and the data {problem}; use 'none'")


# ------------------------------------------------------------------------------ on the device


def recolour(
    x_BHWC: jax.Array,
    keys_B: jax.Array,
    kind: str,
    constants: np.ndarray | jax.Array | None = None,
) -> jax.Array:
    """Views with changed colours, float32 (B, H, W, C).

    x_BHWC: uint8 or float, 0 to 255. keys_B: `resident.view_key` of each example. kind: one of
    `KINDS`, static; constants: of `constants(kind, ...)`. Distortions are clipped to 0 to 255;
    shifts are not, as the papers say nothing of it. Raises DataError for an unknown kind, or one
    that these images can't have.
    """
    _check(kind, x_BHWC.shape[-1])
    if "pca" in kind and constants is None:
        raise DataError(f"colour {kind!r} needs its constants")

    def recolour_one(image_HWC: jax.Array, key: jax.Array) -> jax.Array:
        image_HWC = image_HWC.astype(jnp.float32)
        if kind.startswith("photometric"):
            image_HWC = distort(image_HWC, *distortions(key))
        if constants is not None:
            image_HWC = image_HWC + shift(alphas(key), constants)
        return image_HWC

    return jax.vmap(recolour_one)(x_BHWC, keys_B)


def mirror(x_BHWC: jax.Array, keys_B: jax.Array) -> jax.Array:
    """Views, each flipped left to right with probability one half."""
    mirrored_B = mirrored(keys_B)
    return jnp.where(mirrored_B[:, None, None, None], x_BHWC[:, :, ::-1], x_BHWC)


def mirrored(keys_B: jax.Array) -> jax.Array:
    """Which views `mirror` flips, (B,) bool."""
    return jax.vmap(_mirrored)(keys_B)


def _mirrored(key: jax.Array) -> jax.Array:
    return jax.random.bits(jax.random.fold_in(key, _MIRROR), (), jnp.uint32) % 2 == 1


def alphas(key: jax.Array) -> jax.Array:
    """(3,) float32, each from N(0, 0.1): AlexNet section 4.1, once for each use of an image."""
    return SIGMA * jax.random.normal(jax.random.fold_in(key, _ALPHA), (3,))


def shift(alphas: jax.Array, constants: np.ndarray | jax.Array) -> jax.Array:
    """The shift of R, G and B of all pixels: (3,), the sum of p_i alpha_i lambda_i."""
    return jnp.sum(alphas * constants, axis=1)


def distortions(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(factors (3,) float32 of brightness, contrast and saturation; their places (3,))."""
    low, high = FACTORS
    factors = jax.random.uniform(
        jax.random.fold_in(key, _FACTOR), (3,), jnp.float32, minval=low, maxval=high
    )
    word = jax.random.bits(jax.random.fold_in(key, _ORDER), (), jnp.uint32)
    return factors, jnp.asarray(ORDERS)[word % len(ORDERS)]


def distort(image_HWC: jax.Array, factors: jax.Array, places: jax.Array) -> jax.Array:
    """Brightness, contrast and saturation of an RGB image, 0 to 255, changed in a given order.

    As Pillow's ImageEnhance: the image is blended with black (brightness), with the mean of its
    luma (contrast) and with its luma (saturation), with weight factor on the image, and clipped
    after each. Nothing is rounded. In batches of another size the mean may be summed in another
    order, which moves values by some 1e-5.

    factors: (3,), 1 changes nothing; places: (3,) which of them is first (0), second, last (2).
    """
    # Only contrast needs the whole image. Brightness and saturation, x f + luma g, take the two
    # slots before it or the two after it; the others leave the image as it is (f = 1, g = 0).
    brightness, contrast, saturation = factors
    pair = jnp.array([[brightness, 0.0], [saturation, 1.0 - saturation]])
    pair = jnp.where(places[0] < places[2], pair, pair[::-1])
    of_pair = jnp.sort(places[jnp.array([0, 2])])
    is_before = (of_pair < places[1])[:, None]
    identity = jnp.array([1.0, 0.0])
    before, after = jnp.where(is_before, pair, identity), jnp.where(is_before, identity, pair)

    planes = [image_HWC[..., c] for c in range(3)]
    for f, g in before:
        planes = _blend(planes, f, _luma(planes) * g)
    planes = _blend(planes, contrast, (1.0 - contrast) * jnp.mean(_luma(planes)))
    for f, g in after:
        planes = _blend(planes, f, _luma(planes) * g)
    return jnp.stack(planes, axis=-1)


def _luma(planes: list[jax.Array]) -> jax.Array:
    return sum(weight * plane for weight, plane in zip(LUMA, planes, strict=True))


def _blend(planes: list[jax.Array], factor: jax.Array, addend: jax.Array) -> list[jax.Array]:
    return [jnp.clip(plane * factor + addend, 0.0, 255.0) for plane in planes]

"""Colours of views: statistics, AlexNet's shift, photometric distortions, and what is drawn."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from input_pipeline import DataError, colour
from input_pipeline.colour import Statistics
from input_pipeline.resident import view_key

# Mean and deviation of 4096 draws, within four standard errors.
DRAWS = 4096


def keys_of(seed, epochs, indices):
    epochs, indices = jnp.asarray(epochs, jnp.int32), jnp.asarray(indices, jnp.int32)
    return jax.vmap(view_key, (None, 0, 0))(seed, epochs, indices)


@functools.partial(jax.jit, static_argnames=("mirror", "kind"))
def augment(x, keys, *, mirror, kind, constants=None):
    x = colour.mirror(x, keys) if mirror else x
    return colour.recolour(x, keys, kind, constants)


@pytest.fixture(scope="module")
def images():
    """Smooth and dark or bright or colourful or grey: some are clipped, some are not."""
    rng = np.random.default_rng(0)
    shape = (8, 24, 20, 3)
    ramps = np.linspace(0, 1, 24)[:, None, None] * rng.uniform(-120, 120, (8, 1, 1, 3))
    levels = rng.uniform(0, 255, (8, 1, 1, 3))
    return np.clip(ramps + levels + rng.normal(0, 12, shape), 0, 255).astype(np.uint8)


# ----------------------------------------------------------------------------- statistics


def test_statistics_are_those_of_all_pixels():
    rng = np.random.default_rng(1)
    sizes = [(5, 9), (1, 1), (640, 1700), (3, 2)]  # one larger than is summed at once
    images = [
        rng.integers(0, 256, (*size, 3), dtype=np.uint8) // (i + 1) for i, size in enumerate(sizes)
    ]
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]).astype(np.float64)
    statistics = Statistics.fit(iter(images))
    assert statistics.n == 4
    assert statistics.mean_C.dtype == statistics.covariance.dtype == np.float64
    np.testing.assert_allclose(statistics.mean_C, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(pixels.T, bias=True), rtol=1e-10)


def test_statistics_are_exact_whatever_the_order_and_the_layout():
    rng = np.random.default_rng(2)
    images = [rng.integers(250, 256, (17, 31, 3), dtype=np.uint8) for _ in range(9)]
    statistics = Statistics.fit(images)
    strided = [image.transpose(1, 0, 2)[::-1] for image in reversed(images)]
    for refitted in (Statistics.fit(strided), Statistics.fit([np.concatenate(images)])):
        np.testing.assert_array_equal(refitted.mean_C, statistics.mean_C)
        np.testing.assert_array_equal(refitted.covariance, statistics.covariance)
    constant = Statistics.fit([np.full((100, 100, 3), 253, np.uint8)] * 3)
    np.testing.assert_array_equal(constant.covariance, np.zeros((3, 3)))


def test_components_are_columns_largest_first_with_fixed_signs():
    rng = np.random.default_rng(3)
    basis, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    for signs in itertools.product((1, -1), repeat=3):
        signed = basis * signs
        statistics = Statistics(np.zeros(3), signed * [900.0, 90.0, 4.0] @ signed.T, 1)
        values, components = statistics.eigen
        np.testing.assert_allclose(values, [900, 90, 4])
        np.testing.assert_allclose(np.abs(components), np.abs(basis))
        assert (components[np.abs(components).argmax(axis=0), range(3)] > 0).all()
    grey = Statistics(np.zeros(3), np.ones((3, 3)), 1)
    assert (grey.eigen[0] >= 0).all()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "there are no images"),
        ([np.zeros((2, 2, 3), np.float32)], "image 0 is float32 of shape"),
        ([np.zeros((2, 2), np.uint8)], r"expected uint8 of shape \(height, width, channels\)"),
        ([np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 1), np.uint8)], "image 1 .* width, 3"),
        ([np.zeros((0, 2, 3), np.uint8)], "image 0"),
    ],
)
def test_statistics_of_what_is_no_image_are_refused(images, message):
    with pytest.raises(DataError, match=message):
        Statistics.fit(images)


# ---------------------------------------------------------------------------- PCA colour


def test_shift_is_the_papers_sum_over_columns():
    p1 = np.array([-0.5675, -0.5808, -0.5836])  # in R, G, B
    p2 = np.array([0.7192, -0.0045, -0.6948])
    p3 = np.array([0.4009, -0.8140, 0.4203])
    expected = p1 * 0.13 * 55.46 + p2 * -0.2 * 4.794 + p3 * 0.07 * 1.148
    shift = colour.shift(jnp.array([0.13, -0.2, 0.07]), colour.constants("pca_public", 3))
    np.testing.assert_allclose(shift, expected, rtol=1e-5)


def test_public_constants_are_orthonormal_columns_and_255_times_the_published():
    inner = colour.PUBLIC_COMPONENTS.T @ colour.PUBLIC_COMPONENTS
    np.testing.assert_allclose(inner, np.eye(3), atol=2e-3)
    scaled = 255 * np.array([0.2175, 0.0188, 0.0045])
    np.testing.assert_allclose(colour.PUBLIC_DEVIATIONS, scaled, rtol=1e-3)


def test_fitted_shift_has_a_hundredth_of_the_pixels_covariance(images):
    statistics = Statistics.fit(images)
    constants = colour.constants("pca_fitted", 3, statistics)
    np.testing.assert_allclose(constants @ constants.T, statistics.covariance, rtol=1e-5)


def test_paper_constants_are_eigenvalues_of_pixels_up_to_one(images):
    pixels = images.reshape(-1, 3) / 255
    covariance = np.cov(pixels.T, bias=True)
    constants = colour.constants("pca_paper", 3, Statistics.fit(images)) / 255
    for column in constants.T:
        eigenvalue = np.linalg.norm(column)
        np.testing.assert_allclose(covariance @ column, eigenvalue * column, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(
        np.linalg.norm(constants, axis=0).sum(), np.trace(covariance), rtol=1e-5
    )


def test_public_constants_are_the_papers_of_pixels_with_their_covariance():
    c = colour.PUBLIC_COMPONENTS
    covariance = 255**2 * (c * [0.2175, 0.0188, 0.0045]) @ c.T
    paper = colour.constants("pca_paper", 3, Statistics(np.zeros(3), covariance, 1))
    public = colour.constants("pca_public", 3)
    np.testing.assert_allclose(np.abs(paper), np.abs(public), atol=0.1)


def test_all_pixels_of_an_image_are_shifted_alike_and_not_clipped(images):
    keys = keys_of(0, np.zeros(8), np.arange(8))
    constants = np.float32([[900, 0, 0], [0, 1, 0], [0, 0, 1]])
    x = augment(images, keys, mirror=False, kind="pca_fitted", constants=constants)
    shifts = np.asarray(x) - images
    spread = shifts.max(axis=(1, 2)) - shifts.min(axis=(1, 2))
    assert spread.max() < 1e-3
    expected = [constants @ np.asarray(colour.alphas(key)) for key in keys]
    np.testing.assert_allclose(shifts[:, 0, 0], expected, atol=1e-3)
    assert x.min() < 0 or x.max() > 255


def test_alphas_are_normal_with_deviation_one_tenth():
    alphas = np.asarray(jax.vmap(colour.alphas)(keys_of(0, np.zeros(DRAWS), np.arange(DRAWS))))
    assert alphas.shape == (DRAWS, 3)
    assert np.abs(alphas.mean(axis=0)).max() < 4 * 0.1 / DRAWS**0.5
    assert np.abs(alphas.std(axis=0) - 0.1).max() < 4 * 0.1 / (2 * DRAWS) ** 0.5
    kurtosis = np.mean((alphas / 0.1) ** 4)
    assert abs(kurtosis - 3) < 4 * (96 / alphas.size) ** 0.5  # variance of the square of a square
    correlation = np.corrcoef(alphas.T)[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < 4 / DRAWS**0.5


# ----------------------------------------------------------------------------- distortions


def straightforward(image, factors, places):
    """One image in NumPy, one operation after the other."""
    x = image.astype(np.float64)
    for place in range(3):
        operation = list(places).index(place)
        luma = x @ [0.299, 0.587, 0.114]
        base = [0.0, luma.mean(), luma[..., None]][operation]
        x = np.clip(base + factors[operation] * (x - base), 0, 255)
    return x


def with_pillow(image, factors, places):
    pillow = Image.fromarray(image)
    enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    for place in range(3):
        operation = list(places).index(place)
        pillow = enhancers[operation](pillow).enhance(float(factors[operation]))
    return np.asarray(pillow, np.float64)


@pytest.mark.parametrize("places", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("factors", [(1.4, 0.6, 1.5), (0.5, 1.5, 0.5), (1.0, 1.0, 1.0)])
def test_distortions_are_numpys_and_pillows_in_every_order(images, places, factors):
    distort = jax.jit(jax.vmap(colour.distort, (0, None, None)))
    x = distort(jnp.asarray(images, jnp.float32), jnp.float32(factors), jnp.int32(places))
    for image, distorted in zip(images, np.asarray(x), strict=True):
        np.testing.assert_allclose(distorted, straightforward(image, factors, places), atol=1e-3)
        off = np.abs(distorted - with_pillow(image, factors, places))
        assert off.mean() < 1.5  # Pillow rounds four times, and multiplies that by up to 1.5
        assert off.max() < 5


def test_factors_and_orders_are_uniform_and_independent():
    keys = keys_of(0, np.arange(DRAWS), np.zeros(DRAWS))
    factors, places = map(np.asarray, jax.vmap(colour.distortions)(keys))
    assert factors.min() >= 0.5
    assert factors.max() <= 1.5
    assert np.abs(factors.mean(axis=0) - 1).max() < 4 / (12 * DRAWS) ** 0.5
    assert np.abs(factors.var(axis=0) - 1 / 12).max() < 4 * (1 / 180 / DRAWS) ** 0.5
    assert np.abs(np.corrcoef(factors.T)[np.triu_indices(3, 1)]).max() < 4 / DRAWS**0.5
    drawn, counts = np.unique(places, axis=0, return_counts=True)
    assert drawn.tolist() == sorted(map(list, itertools.permutations(range(3))))
    assert np.abs(counts - DRAWS / 6).max() < 4 * (DRAWS * 5 / 36) ** 0.5


def test_augmented_images_are_distorted_with_their_own_draws_then_shifted(images):
    keys = keys_of(3, np.arange(8), np.arange(8))
    constants = colour.constants("photometric+pca_public", 3)
    x = augment(images, keys, mirror=False, kind="photometric+pca_public", constants=constants)
    for image, key, augmented in zip(images, keys, np.asarray(x), strict=True):
        factors, places = map(np.asarray, colour.distortions(key))
        expected = straightforward(image, factors, places) + constants @ np.asarray(
            colour.alphas(key)
        )
        np.testing.assert_allclose(augmented, expected, atol=2e-3)


# ----------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("kind", colour.KINDS)
def test_augmented_view_depends_on_seed_epoch_and_example_only(images, kind):
    constants = colour.constants(kind, 3, Statistics.fit(images))

    def batch(x, indices, epochs, seed=5):
        keys = keys_of(seed, epochs, indices)
        return np.asarray(augment(x, keys, mirror=True, kind=kind, constants=constants))

    alone = batch(images[:1], [11], [3])[0]
    # In a batch of another size, an image's mean luma may be summed in another order.
    atol = 1e-4 if kind.startswith("photometric") else 0
    rng = np.random.default_rng(7)
    for place in (0, 13, 36):
        x = rng.integers(0, 256, (37, *images.shape[1:]), dtype=np.uint8)
        indices, epochs = rng.integers(0, 1297, 37), rng.integers(0, 9, 37)
        x[place], indices[place], epochs[place] = images[0], 11, 3
        np.testing.assert_allclose(batch(x, indices, epochs)[place], alone, rtol=0, atol=atol)
    if kind != "none":
        for changed in (([11], [4]), ([12], [3]), ([11], [3], 6)):
            assert np.abs(batch(images[:1], *changed)[0] - alone).max() > 0.01


def test_half_of_the_views_are_mirrored_and_nothing_else_is_done(images):
    many = np.broadcast_to(images[0], (DRAWS, *images.shape[1:]))[:, :4, :4]
    keys = keys_of(0, np.arange(DRAWS), np.full(DRAWS, 7))
    x = np.asarray(augment(many, keys, mirror=True, kind="none"))
    assert x.dtype == np.float32
    mirrored = (x == many[:, :, ::-1]).all(axis=(1, 2, 3))
    assert ((x == many).all(axis=(1, 2, 3)) ^ mirrored).all()
    assert abs(mirrored.sum() - DRAWS / 2) < 4 * DRAWS**0.5 / 2
    np.testing.assert_array_equal(augment(many, keys, mirror=False, kind="none"), many)


def test_mirror_shift_and_distortions_do_not_share_their_draws():
    keys = keys_of(0, np.zeros(DRAWS), np.arange(DRAWS))
    mirrored = jax.vmap(colour._mirrored)(keys)
    factors, places = jax.vmap(colour.distortions)(keys)
    columns = [mirrored[:, None], jax.vmap(colour.alphas)(keys), factors, places[:, :2]]
    bits = jax.vmap(lambda key: jax.random.bits(key, (4,), jnp.uint32))(keys)  # the geometry's
    columns.append(bits.astype(jnp.float32))
    correlation = np.corrcoef(np.concatenate(columns, axis=1).T)
    correlation[7, 8] = correlation[8, 7] = 0  # two places of one order
    assert np.abs(correlation - np.eye(13)).max() < 4.5 / DRAWS**0.5


def test_views_in_float_are_treated_as_their_bytes(images):
    keys = keys_of(0, np.zeros(8), np.arange(8))
    constants = colour.constants("photometric+pca_public", 3)
    options = {"mirror": True, "kind": "photometric+pca_public", "constants": constants}
    of_float = augment(images.astype(np.float32), keys, **options)
    np.testing.assert_array_equal(of_float, augment(images, keys, **options))


# ---------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("kind", colour.KINDS[1:])
def test_grey_images_have_no_colour(kind):
    grey = np.zeros((1, 4, 4, 1), np.uint8)
    message = (
        rf"{kind!r} is for RGB images, and the data is grey \(1 channel\); use 'none'".replace(
            "+", r"\+"
        )
    )
    with pytest.raises(DataError, match=message):
        colour.constants(kind, 1)
    with pytest.raises(DataError, match="use 'none'"):
        colour.recolour(grey, keys_of(0, [0], [0]), kind)
    assert colour.constants("none", 1) is None
    assert augment(grey, keys_of(0, [0], [0]), mirror=True, kind="none").shape == grey.shape


def test_unknown_kinds_and_missing_constants_are_refused(images):
    with pytest.raises(DataError, match="'pca'; expected one of none, pca_public, pca_fitted"):
        colour.constants("pca", 3)
    with pytest.raises(DataError, match="'pca_fitted' needs the statistics"):
        colour.constants("pca_fitted", 3)
    with pytest.raises(DataError, match="'pca_public' needs its constants"):
        colour.recolour(images, keys_of(0, np.zeros(8), np.arange(8)), "pca_public")

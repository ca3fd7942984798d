"""Normalisation and views of data that lives on the device."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
from PIL import Image

from input_pipeline import DataError, crops, load, resident
from input_pipeline.resident import Normalisation, TrainView

# ---------------------------------------------------------------------------- normalising


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (40, 8, 6, 3), dtype=np.uint8)


def test_per_pixel_normalisation_is_numpys(images):
    normalise = Normalisation.fit(images, "per_pixel", divide_by_std=True)
    centred = images - images.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(normalise(images), centred / centred.std(), rtol=1e-5, atol=1e-5)
    assert normalise.std == pytest.approx(centred.std(), rel=1e-6)


def test_per_channel_normalisation_is_numpys_and_keeps_the_scale(images):
    centred = images - images.astype(np.float64).mean(axis=(0, 1, 2))
    x = Normalisation.fit(images, "per_channel")(images)
    np.testing.assert_allclose(x, centred, atol=1e-4)
    spread = Normalisation.fit(images, "per_channel", divide_by_std=True).std
    assert spread == pytest.approx(centred.std(), rel=1e-6)


def test_no_normalisation_leaves_the_bytes(images):
    np.testing.assert_array_equal(Normalisation.fit(images, "none")(images), images)


def test_bad_normalisation_is_refused(images):
    with pytest.raises(DataError, match="'mean'; expected one of per_pixel, per_channel, none"):
        Normalisation.fit(images, "mean")
    with pytest.raises(DataError, match="standard deviation is 0"):
        Normalisation.fit(images[:1], "per_pixel", divide_by_std=True)


@pytest.fixture(scope="module")
def smooth_images():
    """(1100, 8, 6, 3), neighbours alike: some directions hold much variance, others almost none."""
    rng = np.random.default_rng(11)
    walks = rng.normal(size=(1100, 8, 6, 3)).cumsum(axis=1).cumsum(axis=2)
    return np.clip(walks * rng.uniform(2, 20, (1100, 1, 1, 1)) + 120, 0, 255).astype(np.uint8)


def contrast_normalised(images):
    """Straightforward, one image after the other: (N, D) float64."""
    rows = []
    for image in images:
        values = image.astype(np.float64).ravel()
        values = values - np.mean(values)
        rows.append(55 * values / np.linalg.norm(values))
    return np.stack(rows)


def test_whitened_images_are_those_of_a_matrix_square_root(smooth_images):
    train, test = smooth_images[:1050], smooth_images[1050:]
    normalise = Normalisation.fit(train, "gcn_zca")
    g = contrast_normalised(train)
    covariance = np.cov(g, rowvar=False, bias=True)
    root = scipy.linalg.sqrtm(covariance + 0.1 * np.eye(144)).real
    for images in (train, test):
        expected = scipy.linalg.solve(root, (contrast_normalised(images) - g.mean(axis=0)).T).T
        white = jax.jit(lambda n, x: n(x))(normalise, images)
        assert white.dtype == jnp.float32
        np.testing.assert_allclose(white, expected.reshape(images.shape), atol=2e-4)


def test_variances_of_whitened_training_images_have_their_closed_form(smooth_images):
    g = contrast_normalised(smooth_images)
    values, vectors = np.linalg.eigh(np.cov(g, rowvar=False, bias=True))
    white = np.asarray(Normalisation.fit(smooth_images, "gcn_zca")(smooth_images), np.float64)
    covariance = np.cov(white.reshape(len(g), -1), rowvar=False, bias=True)
    in_eigenbasis = vectors.T @ covariance @ vectors
    np.testing.assert_allclose(in_eigenbasis, np.diag(values / (values + 0.1)), atol=2e-4)
    assert values.max() > 100  # many times the bias: such directions end with variance 1
    assert values.min() < 1e-3

    divided = Normalisation.fit(smooth_images, "gcn_zca", divide_by_std=True)(smooth_images)
    np.testing.assert_allclose(divided, white / white.std(), rtol=1e-4, atol=1e-4)


def test_contrast_of_each_image_is_normalised_by_itself(smooth_images):
    shape = smooth_images.shape[1:]
    alone = Normalisation(np.zeros(shape, np.float32), np.float32(1), np.eye(144, dtype=np.float32))
    x = np.asarray(jax.jit(alone)(smooth_images), np.float64).reshape(-1, 144)
    np.testing.assert_allclose(x.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 55, rtol=1e-5)
    np.testing.assert_allclose(alone(smooth_images[3] * 0.5 + 40).ravel(), x[3], atol=1e-4)
    # Any leading axes, also none.
    np.testing.assert_allclose(
        alone(smooth_images[:6].reshape(2, 3, *shape))[1, 2].ravel(), x[5], rtol=1e-5
    )


@pytest.mark.parametrize("value", [0, 1, 77, 255, 100.3])
def test_contrast_of_an_image_of_one_value_is_nothing(value):
    # 17 is no power of two, so that means are rounded.
    alone = Normalisation(np.zeros((17, 17, 3), np.float32), 1.0, np.eye(867, dtype=np.float32))
    image = np.full((17, 17, 3), value, np.uint8 if isinstance(value, int) else np.float32)
    assert np.abs(alone(image)).max() == 0
    one_step = image.copy()
    one_step[3, 4, 1] = value + 1 if value < 255 else 254
    assert np.linalg.norm(alone(one_step)) == pytest.approx(55, rel=1e-4)


def test_training_images_of_one_value_can_be_whitened(smooth_images):
    images = smooth_images.copy()
    images[::7] = 9
    white = Normalisation.fit(images, "gcn_zca")(images)
    assert np.isfinite(white).all()


def test_images_that_cannot_be_whitened_are_refused(images):
    with pytest.raises(DataError, match="at most 64x64, and these are 64x65"):
        Normalisation.fit(np.zeros((2, 64, 65, 1), np.uint8), "gcn_zca")
    with pytest.raises(DataError, match="standard deviation is 0"):
        Normalisation.fit(images[:1], "gcn_zca", divide_by_std=True)


def test_whitened_views_are_scaled_after_whitening(smooth_images):
    normalise = Normalisation.fit(smooth_images, "gcn_zca")
    views = central_views(smooth_images, np.arange(4), 7, 9, normalise)
    for view, image in zip(views, np.asarray(normalise(smooth_images[:4])), strict=True):
        np.testing.assert_allclose(view, scaled_with_jax(image, (12, 9))[2:9, 1:8], atol=1e-4)


# -------------------------------------------------------------------------------- test views

jitted_view_batch = jax.jit(resident.view_batch, static_argnums=2)
PLAIN = Normalisation(np.float32(0), np.float32(1))


def central_views(images, indices, crop, Q, normalise):
    view = crops.CentreView(crop=crop, Q=Q)
    return jitted_view_batch(images, indices, view, normalise)[:, 0]


def scaled_with_jax(image, size):
    shape = (*size, image.shape[-1])
    return np.asarray(jax.image.resize(image.astype(np.float32), shape, "bilinear", antialias=True))


@pytest.mark.parametrize(
    ("size", "Q", "crop"),
    [((8, 8), 16, 16), ((8, 8), 37, 32), ((32, 32), 20, 16), ((30, 47), 32, 32), ((47, 30), 9, 8)],
)
def test_test_view_is_the_centre_of_the_scaled_image(size, Q, crop):
    images = np.random.default_rng(2).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    views = central_views(images, np.array([2, 0]), crop, Q, PLAIN)
    assert views.shape == (2, crop, crop, 3)
    assert views.dtype == jnp.float32
    short = min(size)
    scaled = tuple(int(side * Q / short) for side in size)  # torchvision's rule
    top, left = (int(round((side - crop) / 2)) for side in scaled)  # noqa: RUF046
    window = np.s_[top : top + crop, left : left + crop]
    for view, image in zip(views, images[[2, 0]], strict=True):
        np.testing.assert_allclose(view, scaled_with_jax(image, scaled)[window], atol=2e-3)
        pillow = Image.fromarray(image).resize(scaled[::-1], Image.Resampling.BILINEAR)
        assert np.abs(view - np.asarray(pillow, np.float32)[window]).max() <= 1.0


def test_view_without_scaling_is_the_exact_slice():
    images = np.random.default_rng(3).integers(0, 256, (5, 12, 9, 1), dtype=np.uint8)
    views = central_views(images, np.arange(5), 5, 9, PLAIN)
    np.testing.assert_array_equal(views, images[:, 4:9, 2:7])  # 3.5: to the even one


def test_mean_image_moves_with_the_image():
    images = np.random.default_rng(4).integers(0, 256, (6, 8, 8, 2), dtype=np.uint8)
    normalise = Normalisation.fit(images, "per_pixel")
    views = central_views(images, np.arange(6), 9, 12, normalise)
    scaled = np.stack([scaled_with_jax(image, (12, 12)) for image in images])
    expected = (scaled - scaled.mean(axis=0))[:, 2:11, 2:11]
    np.testing.assert_allclose(views, expected, atol=2e-3)


ONE_SHOT = {"compiler_options": {"xla_backend_optimization_level": 0}}
quickly_compiled_view_batch = jax.jit(resident.view_batch, static_argnums=2, **ONE_SHOT)


@pytest.mark.parametrize("size", [(30, 43), (43, 30)])
@pytest.mark.parametrize(
    "view",
    [
        crops.TenCropView(crop=16, Q=21),
        crops.TenCropView(crop=16, Q=21, square=True),
        crops.GridView(crop=20, Q=37),
        crops.MultiSquareView(crop=16, scales=(18, 25)),
        crops.WholeView(Q=23),
    ],
    ids=lambda view: type(view).__name__,
)
def test_views_are_pillows_boxes_of_the_normalised_image(view, size):
    images = np.random.default_rng(13).integers(0, 256, (3, *size, 2), dtype=np.uint8)
    normalise = Normalisation.fit(images, "per_pixel", divide_by_std=True)
    places = view.places(*size)
    views = quickly_compiled_view_batch(images, np.array([2, 0]), view, normalise)
    assert views.shape == (2, len(places), *places[0].size, 2)
    assert views.dtype == jnp.float32
    for x, image in zip(views, np.asarray(normalise(images[[2, 0]])), strict=True):
        for shown, place in zip(x, places, strict=True):
            top, left, height, width = place.box
            box = (left, top, min(left + width, size[1]), min(top + height, size[0]))
            for channel in range(2):
                pillow = Image.fromarray(image[:, :, channel])  # of float32
                expected = pillow.resize(place.size[::-1], Image.Resampling.BILINEAR, box)
                np.testing.assert_allclose(shown[:, :, channel], np.asarray(expected), atol=5e-5)


# ------------------------------------------------------------------------------- train views


jitted_train_batch = jax.jit(resident.train_batch, static_argnums=5)


def many_views(image, view, normalise, count):
    """Views of one image in `count` epochs."""
    x, _ = jitted_train_batch(
        image[None], np.zeros(1, np.int32), np.zeros(count, np.int32),
        np.arange(count, dtype=np.int32), 0, view, normalise,
    )  # fmt: skip
    return np.asarray(x)


def which(view, candidates):
    """The one key of `candidates` whose array is `view`."""
    matches = [key for key, array in candidates.items() if np.abs(array - view).max() < 2e-3]
    assert len(matches) == 1, matches
    return matches[0]


def test_train_views_are_all_crops_of_all_scales_and_nothing_else():
    image = np.random.default_rng(5).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    candidates = {}
    for S in (7, 8, 9, 10):
        scaled = scaled_with_jax(image, (S, S))
        for y in range(S - 6):
            for x in range(S - 6):
                candidates[S, y, x] = scaled[y : y + 7, x : x + 7]
    views = many_views(image, TrainView(crop=7, S=(7, 10)), PLAIN, 800)
    drawn = Counter(which(view, candidates) for view in views)
    assert set(drawn) == set(candidates)
    per_scale = Counter()
    for (S, _, _), count in drawn.items():
        per_scale[S] += count
    assert all(abs(count - 200) < 50 for count in per_scale.values())


def test_shift_crop_pads_the_normalised_image_with_zeros_and_mirrors_half():
    rng = np.random.default_rng(6)
    images = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    normalise = Normalisation.fit(images, "per_pixel", divide_by_std=True)
    padded = np.pad(np.asarray(normalise(images))[0], ((2, 2), (2, 2), (0, 0)))
    candidates = {}
    for y in range(5):
        for x in range(5):
            candidates[y, x, False] = padded[y : y + 8, x : x + 8]
            candidates[y, x, True] = candidates[y, x, False][:, ::-1]
    views = many_views(images[0], TrainView(crop=8, pad=2, mirror=True), normalise, 600)
    drawn = Counter(which(view, candidates) for view in views)
    assert set(drawn) == set(candidates)
    assert abs(sum(count for (*_, mirrored), count in drawn.items() if mirrored) - 300) < 60


def test_jitter_draws_scales_over_their_whole_range():
    image = np.arange(8, dtype=np.uint8)[None, :, None] * np.ones((8, 1, 1), np.uint8) * 32
    views = many_views(image, TrainView(crop=32, S=(37, 73)), PLAIN, 2000)
    # Between pixel centres of a ramp the slope is 32 * 8 / S a pixel.
    steepest = np.diff(views[:, 16, :, 0], axis=1).max(axis=1)
    scales = np.rint(32 * 8 / steepest).astype(int)
    assert sorted(set(scales)) == list(range(37, 74))
    assert abs(scales.mean() - 55) < 1


def test_view_depends_on_seed_epoch_and_example_only():
    train = load("digits").train
    view = TrainView(crop=16, S=(16, 24), pad=2)
    normalise = Normalisation.fit(train.images)
    rng = np.random.default_rng(7)

    def batch(indices, epochs, seed=5):
        indices, epochs = np.asarray(indices, np.int32), np.asarray(epochs, np.int32)
        return jitted_train_batch(
            train.images, train.labels, indices, epochs, seed, view, normalise
        )

    alone = batch([11], [3])
    for place in (0, 17, 63):
        indices, epochs = rng.integers(0, 1297, 64), rng.integers(0, 9, 64)
        indices[place], epochs[place] = 11, 3
        x, y = batch(indices, epochs)
        np.testing.assert_array_equal(x[place], alone[0][0])
        np.testing.assert_array_equal(y, train.labels[indices])
    for changed in (batch([11], [4]), batch([12], [3]), batch([11], [3], seed=6)):
        assert not np.array_equal(changed[0], alone[0])


def test_two_examples_of_one_epoch_are_not_shifted_alike():
    images = np.broadcast_to(
        np.random.default_rng(8).integers(0, 256, (8, 8, 1), dtype=np.uint8), (50, 8, 8, 1)
    )
    indices = np.arange(50, dtype=np.int32)
    x, _ = jitted_train_batch(
        images, np.zeros(50, np.int32), indices, np.zeros(50, np.int32), 0,
        TrainView(crop=8, pad=2), PLAIN,
    )  # fmt: skip
    assert len(np.unique(np.asarray(x).reshape(50, -1), axis=0)) > 15


def test_mirror_of_digits_is_refused():
    digits = load("digits")
    TrainView(crop=16).check(digits)
    with pytest.raises(DataError, match="mirrored images of 'digits' are not images of their"):
        TrainView(crop=16, mirror=True).check(digits)


@pytest.mark.parametrize(
    "fields",
    [{"crop": 0}, {"crop": 32, "S": (31, 40)}, {"crop": 8, "S": (9, 8)}, {"crop": 8, "pad": -1}],
)
def test_impossible_train_view_is_refused(fields):
    with pytest.raises(DataError, match=r"expected 1 <= crop <= S\[0\] <= S\[1\] and pad >= 0"):
        TrainView(**fields)


def test_impossible_test_view_is_refused():
    with pytest.raises(DataError, match="test view crop=32, Q=31"):
        crops.CentreView(crop=32, Q=31)


def test_lenets_normalisation_is_the_papers_whatever_the_images(images):
    x = Normalisation.fit(images[:1], "lenet")(np.array([[[[0], [255]]]], np.uint8))
    np.testing.assert_allclose(x.ravel(), [-0.1, 1.175], rtol=1e-6)


def test_distorted_images_are_scipys_under_the_drawn_map(smooth_images):
    image = smooth_images[3].astype(np.float32)
    height, width, channels = image.shape
    shown = set()
    for seed in range(40):
        key = jax.random.key(seed)
        distorted = np.asarray(resident._distorted(jnp.asarray(image), key, share=0.5))
        draws = np.asarray(jax.random.uniform(jax.random.fold_in(key, 1), (6,)), np.float64)
        shown.add(bool(draws[5] < 0.5))
        if draws[5] >= 0.5:
            np.testing.assert_array_equal(distorted, image)
            continue
        down, across, scale, squeeze, shear = 2 * draws[:5] - 1
        down, across = down * resident.SHIFT * height, across * resident.SHIFT * width
        tall = np.exp(scale * resident.SCALE - squeeze * resident.SQUEEZE)
        wide = np.exp(scale * resident.SCALE + squeeze * resident.SQUEEZE)
        # From a place in the shown image to the one in the stored, around the centre.
        back = np.array([[1 / tall, 0], [shear * resident.SHEAR / tall, 1 / wide]])
        centre = (np.array([height, width]) - 1) / 2
        offset = centre - back @ (centre + np.array([down, across]))
        expected = [
            scipy.ndimage.affine_transform(image[..., c], back, offset, order=1, mode="nearest")
            for c in range(channels)
        ]
        np.testing.assert_allclose(distorted, np.stack(expected, -1), atol=2e-2)
    assert shown == {True, False}


def test_a_share_of_the_training_views_is_distorted_anew_in_each_epoch(smooth_images):
    square = smooth_images[:, :6]
    view, indices = TrainView(crop=6, S=(6, 6), distort=0.75), np.zeros(400, np.int32)
    epochs, labels = np.arange(400, dtype=np.int32), np.zeros(len(smooth_images), np.int32)

    def shown(view):
        x, _ = resident.train_batch(
            square, labels, indices, epochs, 0, view, Normalisation.fit(square)
        )
        return np.asarray(x)

    same = (shown(view) == shown(TrainView(crop=6, S=(6, 6)))).all(axis=(1, 2, 3))
    assert 0.2 < same.mean() < 0.3
    distorted = shown(view)[~same]
    assert len(np.unique(distorted.reshape(len(distorted), -1), axis=0)) == len(distorted)

"""Order, normalisation and views of data that lives on the device."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from input_pipeline import DataError, load, resident
from input_pipeline.resident import Normalisation, TestView, TrainView

FIRST_TWO_EPOCHS = [3, 5, 2, 7, 0, 6, 1, 4, 0, 6, 5, 3, 4, 7, 2, 1]

# --------------------------------------------------------------------------------- order


def stream(seed, n, batch, batches):
    """`batches` batches from the start, joined."""
    parts = [resident.order(seed, n, k * batch, batch) for k in range(batches)]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


@pytest.mark.parametrize("batch", [1, 5, 7, 20, 64])
def test_each_epoch_holds_each_example_once(batch):
    n, epochs = 20, 4
    indices, epoch_of = stream(0, n, batch, batches=-(-n * epochs // batch))
    assert indices.dtype == epoch_of.dtype == np.int32
    for epoch in range(epochs):
        assert sorted(indices[epoch_of == epoch][:n]) == list(range(n))
    np.testing.assert_array_equal(epoch_of, np.arange(len(epoch_of)) // n)


def test_order_from_any_position_continues_the_stream():
    whole, epochs = resident.order(7, 1297, 0, 5000)
    rng = np.random.default_rng(0)
    for position in rng.integers(0, 4900, 20).tolist():
        resident._permutation.cache_clear()
        indices, epoch_of = resident.order(7, 1297, position, 100)
        np.testing.assert_array_equal(indices, whole[position : position + 100])
        np.testing.assert_array_equal(epoch_of, epochs[position : position + 100])


def test_order_does_not_depend_on_the_batch_size():
    np.testing.assert_array_equal(stream(3, 50, 7, 20)[0], stream(3, 50, 20, 7)[0])


def test_order_differs_by_seed_and_by_epoch():
    permutations = [tuple(resident.order(s, 50, e * 50, 50)[0]) for s in (0, 1, 2) for e in (0, 1)]
    assert len(set(permutations)) == 6


def test_order_is_a_fair_shuffle():
    firsts = [int(resident.order(0, 5, 5 * epoch, 1)[0][0]) for epoch in range(2000)]
    assert all(abs(count - 400) < 80 for count in Counter(firsts).values())


def test_order_never_changes():
    assert resident.order(1, 8, 0, 16)[0].tolist() == FIRST_TWO_EPOCHS


@pytest.mark.parametrize("batch", [1, 64, 100, 500, 512])
def test_evaluation_covers_each_example_once(batch):
    batches = resident.eval_batches(500, batch)
    assert all(indices.shape == mask.shape == (batch,) for indices, mask in batches)
    assert np.concatenate([i[mask] for i, mask in batches]).tolist() == list(range(500))
    assert all(i.min() >= 0 and i.max() < 500 and i.dtype == np.int32 for i, _ in batches)


# ---------------------------------------------------------------------------- normalising


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (40, 8, 6, 3), dtype=np.uint8)


def test_per_pixel_normalisation_is_numpys(images):
    normalise = Normalisation.fit(images, "per_pixel", divide_by_std=True)
    left = images - images.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(normalise(images), left / left.std(), rtol=1e-5, atol=1e-5)
    assert normalise.std == pytest.approx(left.std(), rel=1e-6)


def test_per_channel_normalisation_is_numpys_and_keeps_the_scale(images):
    left = images - images.astype(np.float64).mean(axis=(0, 1, 2))
    x = Normalisation.fit(images, "per_channel")(images)
    np.testing.assert_allclose(x, left, atol=1e-4)
    spread = Normalisation.fit(images, "per_channel", divide_by_std=True).std
    assert spread == pytest.approx(left.std(), rel=1e-6)


def test_no_normalisation_leaves_the_bytes(images):
    np.testing.assert_array_equal(Normalisation.fit(images, "none")(images), images)


def test_bad_normalisation_is_refused(images):
    with pytest.raises(DataError, match="'mean'; expected one of per_pixel, per_channel, none"):
        Normalisation.fit(images, "mean")
    with pytest.raises(DataError, match="standard deviation is 0"):
        Normalisation.fit(images[:1], "per_pixel", divide_by_std=True)


# -------------------------------------------------------------------------------- test views

jitted_test_batch = jax.jit(resident.test_batch, static_argnums=2)
PLAIN = Normalisation(np.float32(0), np.float32(1))


def scaled_with_jax(image, size):
    shape = (*size, image.shape[-1])
    return np.asarray(jax.image.resize(image.astype(np.float32), shape, "bilinear", antialias=True))


@pytest.mark.parametrize(
    ("size", "Q", "crop"),
    [((8, 8), 16, 16), ((8, 8), 37, 32), ((32, 32), 20, 16), ((30, 47), 32, 32), ((47, 30), 9, 8)],
)
def test_test_view_is_the_centre_of_the_scaled_image(size, Q, crop):
    images = np.random.default_rng(2).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    views = jitted_test_batch(images, np.array([2, 0]), TestView(crop=crop, Q=Q), PLAIN)
    assert views.shape == (2, crop, crop, 3)
    assert views.dtype == jnp.float32
    short = min(size)
    scaled = tuple(int(np.floor(side * Q / short + 0.5)) for side in size)
    top, left = ((side - crop) // 2 for side in scaled)
    window = np.s_[top : top + crop, left : left + crop]
    for view, image in zip(views, images[[2, 0]], strict=True):
        np.testing.assert_allclose(view, scaled_with_jax(image, scaled)[window], atol=2e-3)
        pillow = Image.fromarray(image).resize(scaled[::-1], Image.Resampling.BILINEAR)
        assert np.abs(view - np.asarray(pillow, np.float32)[window]).max() <= 1.0


def test_view_without_scaling_is_the_exact_slice():
    images = np.random.default_rng(3).integers(0, 256, (5, 12, 9, 1), dtype=np.uint8)
    views = jitted_test_batch(images, np.arange(5), TestView(crop=5, Q=9), PLAIN)
    np.testing.assert_array_equal(views, images[:, 3:8, 2:7])


def test_mean_image_moves_with_the_image():
    images = np.random.default_rng(4).integers(0, 256, (6, 8, 8, 2), dtype=np.uint8)
    normalise = Normalisation.fit(images, "per_pixel")
    views = jitted_test_batch(images, np.arange(6), TestView(crop=9, Q=12), normalise)
    scaled = np.stack([scaled_with_jax(image, (12, 12)) for image in images])
    expected = (scaled - scaled.mean(axis=0))[:, 1:10, 1:10]
    np.testing.assert_allclose(views, expected, atol=2e-3)


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
    for other in (batch([11], [4]), batch([12], [3]), batch([11], [3], seed=6)):
        assert not np.array_equal(other[0], alone[0])


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
        TestView(crop=32, Q=31)


def test_views_are_static_arguments_also_from_lists():
    assert hash(TrainView(crop=8, S=[8, 9])) == hash(TrainView(crop=8, S=(8, 9)))

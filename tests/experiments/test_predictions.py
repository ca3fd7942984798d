"""Saved predictions keep error counts exactly, and are never taken for what they are not."""

import json
import pickle
import zipfile

import numpy as np
import pytest

from experiments.statistics import true_class_rank
from experiments.testing import predictions
from experiments.testing.predictions import Predictions, PredictionsError


def drawn(n=300, classes=20, seed=0, sharpness=4.0):
    """Soft-max of random scores."""
    rng = np.random.default_rng(seed)
    scores = sharpness * rng.standard_normal((n, classes))
    posteriors = np.exp(scores - scores.max(axis=1, keepdims=True))
    posteriors /= posteriors.sum(axis=1, keepdims=True)
    labels = rng.integers(0, classes, n).astype(np.int32)
    ids = 7 * np.random.default_rng(8).permutation(n).astype(np.int32) + 3
    return Predictions(ids, labels, posteriors.astype(np.float32))


def saved(path, original, **about):
    predictions.save(path, original, about)
    return predictions.load(path)


def test_posteriors_come_back_within_the_promised_error(tmp_path):
    original = drawn(n=2000, classes=100)
    loaded = saved(tmp_path / "a" / "p.npz", original)
    np.testing.assert_array_equal(loaded.ids, original.ids)
    np.testing.assert_array_equal(loaded.labels, original.labels)
    assert loaded.posteriors.dtype == np.float32
    error = np.abs(loaded.posteriors - original.posteriors)
    assert error.max() <= 3.1e-5
    # Where posteriors are small they are off by less: the fourth root by half a code.
    assert (error <= 2.1 * original.posteriors**0.75 / 65535 + 1e-18).all()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["p.npz"]


def test_every_code_is_read_as_it_was_written(tmp_path):
    values = (np.arange(65536) / 65535) ** 4
    posteriors = values.astype(np.float32).reshape(256, 256)
    original = Predictions(np.arange(256), np.arange(256), posteriors)
    np.testing.assert_array_equal(saved(tmp_path / "p.npz", original).posteriors, posteriors)


def test_ranks_and_errors_are_those_before_rounding(tmp_path):
    # Posteriors so even that rounding ties nearly all of them.
    rng = np.random.default_rng(1)
    posteriors = (0.01 + 1e-8 * rng.permuted(np.tile(np.arange(100), (500, 1)), axis=1)).astype(
        np.float32
    )
    labels = rng.integers(0, 100, 500)
    loaded = saved(tmp_path / "p.npz", Predictions(np.arange(500), labels, posteriors))
    np.testing.assert_array_equal(loaded.ranks, true_class_rank(posteriors, labels))
    for k in (1, 5, 50):
        expected = true_class_rank(posteriors, labels) > k
        np.testing.assert_array_equal(loaded.topk_wrong(k), expected)
    assert (true_class_rank(loaded.posteriors, labels) > 50).sum() > loaded.topk_wrong(50).sum()
    # Saved once more, they stay.
    np.testing.assert_array_equal(saved(tmp_path / "q.npz", loaded).ranks, loaded.ranks)


def test_posteriors_without_ranks_give_errors_by_themselves():
    tested = drawn()
    for k in (1, 5):
        expected = true_class_rank(tested.posteriors, tested.labels) > k
        np.testing.assert_array_equal(tested.topk_wrong(k), expected)
    with pytest.raises(ValueError, match="at least 1"):
        tested.topk_wrong(0)


def test_nan_comes_back_as_nan_and_wrong_at_every_k(tmp_path):
    original = drawn(n=4, classes=3)
    original.posteriors[2] = np.nan
    loaded = saved(tmp_path / "p.npz", original)
    assert np.isnan(loaded.posteriors).any(axis=1).tolist() == [False, False, True, False]
    assert loaded.topk_wrong(3).tolist() == [False, False, True, False]


def test_rounding_beyond_one_is_taken_and_scores_are_refused(tmp_path):
    rounded = Predictions(np.arange(1), np.zeros(1, int), np.array([[1 + 1e-6, 0.0]]))
    assert saved(tmp_path / "p.npz", rounded).posteriors.tolist() == [[1.0, 0.0]]
    for scores in ([[3.0, -1.0]], [[-0.5, 0.1]]):
        with pytest.raises(ValueError, match=r"outside 0\.\.1"):
            predictions.save(
                tmp_path / "q.npz", Predictions(rounded.ids, rounded.labels, np.array(scores))
            )
    assert not (tmp_path / "q.npz").exists()


def test_about_is_kept_and_read_alone(tmp_path):
    path = tmp_path / "p.npz"
    about = {"protocol": "dense", "scales": [224, 256], "run": "vgg-D ü", "Q": None}
    predictions.save(path, drawn(), about)
    assert predictions.about(path) == about
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "q.npz", "w") as part:
        part.writestr("about.npy", archive.read("about.npy"))
    assert predictions.about(tmp_path / "q.npz") == about
    predictions.save(path, drawn())
    assert predictions.about(path) == {}


def test_failed_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "p.npz"
    predictions.save(path, drawn(seed=1))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(PredictionsError, match="can't be written: No space"):
        predictions.save(path, drawn(seed=2))
    np.testing.assert_array_equal(predictions.load(path).labels, drawn(seed=1).labels)
    assert list(tmp_path.iterdir()) == [path]


def test_older_files_are_read_bit_for_bit(tmp_path):
    original = drawn()
    path = tmp_path / "old.npz"
    np.savez_compressed(
        path, ids=original.ids, labels=original.labels, posteriors=original.posteriors
    )
    loaded = predictions.load(path)
    assert loaded.posteriors.dtype == np.float32
    np.testing.assert_array_equal(loaded.posteriors, original.posteriors)
    np.testing.assert_array_equal(loaded.topk_wrong(1), original.topk_wrong(1))
    assert predictions.about(path) == {}


def test_file_takes_little_more_room_than_its_entropy(tmp_path):
    tested = drawn(n=500, classes=1000, sharpness=3.0)
    path = tmp_path / "p.npz"
    predictions.save(path, tested)
    codes = np.rint(65535 * np.sqrt(np.sqrt(tested.posteriors))).astype(int)
    shares = np.bincount(codes.ravel()) / codes.size
    bits = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum()
    assert path.stat().st_size < 1.15 * codes.size * bits / 8


# ----------------------------------------------------------------------------------- means


def shuffled(tested, seed=9):
    order = np.random.default_rng(seed).permutation(len(tested.ids))
    ranks = None if tested.ranks is None else tested.ranks[order]
    return Predictions(tested.ids[order], tested.labels[order], tested.posteriors[order], ranks)


def of_same_images(tested, seed):
    return Predictions(tested.ids, tested.labels, drawn(seed=seed).posteriors)


def test_mean_is_taken_image_by_image_whatever_their_order():
    first = drawn()
    second, third = of_same_images(first, 1), of_same_images(first, 2)
    expected = np.mean([p.posteriors.astype(np.float64) for p in (first, second, third)], axis=0)
    mean = predictions.mean([first, shuffled(second), shuffled(third, 5)])
    np.testing.assert_array_equal(mean.ids, first.ids)
    np.testing.assert_array_equal(mean.labels, first.labels)
    assert mean.posteriors.dtype == np.float32
    np.testing.assert_allclose(mean.posteriors, expected, rtol=1e-6)


def test_mean_has_ranks_of_its_own_and_leaves_its_parts_alone(tmp_path):
    first = saved(tmp_path / "p.npz", drawn())
    before = first.posteriors.copy()
    second = of_same_images(first, 1)
    mean = predictions.mean([first, second])
    assert mean.ranks is None
    expected = true_class_rank((first.posteriors + second.posteriors) / 2, first.labels) > 1
    np.testing.assert_array_equal(mean.topk_wrong(1), expected)
    np.testing.assert_array_equal(first.posteriors, before)
    assert predictions.mean([first]) is first


def test_other_images_labels_or_classes_are_refused_by_name():
    original = drawn()
    fewer = Predictions(original.ids[2:], original.labels[2:], original.posteriors[2:])
    with pytest.raises(PredictionsError, match=r"B and A .* of 298 and 300, 0 are .* 2 only"):
        predictions.order_like(fewer, original, ("B", "A"))
    moved = Predictions(original.ids + 1, original.labels, original.posteriors)
    with pytest.raises(PredictionsError, match="pass 2 and pass 1 were not tested on the same"):
        predictions.mean([original, moved])
    labels = original.labels.copy()
    labels[:3] = (labels[:3] + 1) % 20
    with pytest.raises(PredictionsError, match="3 of 300 labels differ"):
        predictions.mean([original, Predictions(original.ids, labels, original.posteriors)])
    with pytest.raises(PredictionsError, match="pass 2 has 19 classes, pass 1 20"):
        predictions.mean(
            [drawn(seed=0), Predictions(original.ids, original.labels, np.ones((300, 19)))]
        )


# ----------------------------------------------------------------------------------- bad files


def refused(path, match):
    with pytest.raises(PredictionsError, match=match) as caught:
        predictions.load(path)
    assert str(path) in str(caught.value)
    assert caught.value.user_error


def test_missing_file_is_named(tmp_path):
    refused(tmp_path / "none.npz", "is not there")
    with pytest.raises(PredictionsError, match="is not there"):
        predictions.about(tmp_path / "none.npz")


class Payload:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_in_a_file_is_executed(tmp_path):
    mark, path = tmp_path / "executed", tmp_path / "p.npz"
    path.write_bytes(pickle.dumps(Payload(mark)))
    refused(path, "can't be read")
    tested = drawn(n=1, classes=2)
    objects = np.empty(1, object)
    objects[0] = Payload(mark)
    np.savez(path, ids=objects, labels=tested.labels, posteriors=tested.posteriors)
    assert not mark.exists()
    refused(path, "can't be read")
    assert not mark.exists()


GOOD = {
    "ids": np.arange(4),
    "labels": np.array([0, 1, 2, 0]),
    "ranks": np.array([1, 2, 4, 1]),
    "high": np.zeros((4, 3), np.uint8),
    "low": np.zeros((4, 3), np.uint8),
}


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"ids": np.array([0, 1, 1, 3])}, "twice"),
        ({"ids": np.arange(3)}, "3 ids"),
        ({"ids": np.arange(4) + 2**40}, "int32"),
        ({"ids": np.arange(4.0)}, "'ids' must be"),
        ({"labels": np.array([0, 1, 3, 0])}, r"'labels' must be 4 numbers in 0\.\.2"),
        ({"labels": np.array([0, 1, -1, 0])}, "'labels'"),
        ({"ranks": np.array([1, 2, 5, 1])}, r"'ranks' must be 4 numbers in 1\.\.4"),
        ({"ranks": np.array([0, 2, 3, 1])}, "'ranks'"),
        ({"ranks": np.array([1, 2])}, "can't be read"),
        ({"high": np.zeros((4, 2), np.uint8)}, "'high' and 'low'"),
        ({"high": np.zeros((4, 3), np.uint16)}, "'high' and 'low'"),
        ({"low": None}, "low"),
        ({"ranks": None}, "ranks"),
        ({"posteriors": np.zeros((4, 3, 2), np.float32)}, "posteriors"),
        ({"posteriors": np.zeros((2, 3), np.float32)}, "posteriors"),
    ],
)
def test_files_with_other_content_are_refused(tmp_path, changed, match):
    path = tmp_path / "p.npz"
    np.savez(path, **GOOD)
    assert np.isnan(predictions.load(path).posteriors).any(axis=1).tolist() == [0, 0, 1, 0]
    np.savez(path, **{k: v for k, v in (GOOD | changed).items() if v is not None})
    refused(path, match)


@pytest.mark.parametrize("text", ["[1]", "{", '"x"', "[" * 100_000, json.dumps(3)])
def test_about_that_is_no_object_is_refused(tmp_path, text):
    path = tmp_path / "p.npz"
    np.savez(path, **GOOD, about=np.array(text))
    with pytest.raises(PredictionsError, match=r"p\.npz can't be read"):
        predictions.about(path)


def test_damaged_files_are_refused_or_read_and_never_anything_else(tmp_path):
    path = tmp_path / "p.npz"
    predictions.save(path, drawn(n=20), {"protocol": "center"})
    content = path.read_bytes()
    rng = np.random.default_rng(3)
    outcomes = set()
    for case in range(300):
        damaged = bytearray(content)
        if case % 3 == 0:
            damaged = damaged[: rng.integers(len(content))]
        else:
            for place in rng.integers(0, len(content), 1 + case % 4):
                damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        for read in (predictions.load, predictions.about):
            try:
                read(path)
            except PredictionsError as error:
                outcomes.add(str(path) in str(error))
            else:
                outcomes.add("read")
    assert outcomes == {True, "read"}

"""Names to examples: the bundled digits and a user's own .npz."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from input_pipeline import DataError, load, names, split_holdout

FIRST_TEST_LABELS = [0, 3, 8, 4, 5, 5, 5, 0, 8, 4, 5, 2, 8, 0, 1, 6, 3, 7, 3, 4]
TEST_PIXEL_SUM = 2_487_251


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def sorted_rows(images, labels):
    rows = [(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)]
    return sorted(rows)


# --------------------------------------------------------------------------------- digits


def test_digits_split_is_1297_and_500_and_together_all_of_them(digits):
    bunch = load_digits()
    grey = np.floor(bunch.images * 255 / 16 + 0.5).astype(np.uint8)
    assert len(digits.train) == 1297
    assert len(digits.test) == 500
    train = sorted_rows(digits.train.images, digits.train.labels)
    test = sorted_rows(digits.test.images, digits.test.labels)
    assert sorted(train + test) == sorted_rows(grey, bunch.target)


def test_digits_test_part_has_each_class_in_its_share(digits):
    share = np.bincount(load_digits().target) * 500 / 1797
    assert np.abs(np.bincount(digits.test.labels) - share).max() < 1


def test_digits_split_never_changes(digits):
    assert digits.fingerprint == "digits-aa705b412cba5d29"
    assert digits.test.labels[:20].tolist() == FIRST_TEST_LABELS
    assert int(digits.test.images.astype(np.int64).sum()) == TEST_PIXEL_SUM


def test_digits_are_bytes_over_the_whole_range(digits):
    assert digits.train.images.shape == (1297, 8, 8, 1)
    assert digits.train.images.dtype == np.uint8
    assert digits.train.labels.dtype == np.int32
    assert digits.train.images.min() == 0
    assert digits.train.images.max() == 255
    assert (digits.classes, digits.channels, digits.train.images.shape[1:3]) == (10, 1, (8, 8))
    assert not digits.mirror_ok


def test_unknown_name_is_told_the_nearest_one():
    with pytest.raises(DataError, match=r"'digit'; did you mean 'digits'\? known: .*npz"):
        load("digit")
    assert set(names()) == {
        "digits", "mirrored_digits", "placed_digits", "cifar10", "cifar100", "mnist",
        "fashion_mnist", "svhn", "npz",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["digits", "mirrored_digits", "placed_digits"])
def test_digits_refuse_a_path(name, tmp_path):
    with pytest.raises(DataError, match=f"'{name}' .* takes no path"):
        load(name, path=tmp_path)


def test_mirrored_digits_are_ten_classes_more(digits):
    doubled = load("mirrored_digits")
    for part in ("train", "test"):
        own, twice = getattr(digits, part), getattr(doubled, part)
        n = len(own.labels)
        assert len(twice.labels) == 2 * n
        np.testing.assert_array_equal(twice.images[:n], own.images)
        np.testing.assert_array_equal(twice.images[n:, :, 0], own.images[:, :, -1])
        np.testing.assert_array_equal(twice.labels, np.concatenate([own.labels, own.labels + 10]))
    assert doubled.class_names[3::10] == ("3", "3 mirrored")


# -------------------------------------------------------------------------------- holdout


def test_holdout_is_stratified_complete_disjoint_and_in_order(digits):
    labels = digits.train.labels
    rest, held_out = split_holdout(labels, 0.1, seed=3)
    assert len(held_out) == 130
    assert np.abs(np.bincount(labels[held_out]) - np.bincount(labels) * 130 / 1297).max() < 1
    assert sorted([*rest, *held_out]) == list(range(1297))
    assert (np.diff(rest) > 0).all()
    assert (np.diff(held_out) > 0).all()


def test_holdout_depends_on_the_seed_and_on_nothing_else(digits):
    first, again, reseeded = (
        split_holdout(digits.train.labels, 0.1, seed)[1] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, reseeded)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_holdout_of_a_nonsense_fraction_is_refused(digits, fraction):
    with pytest.raises(DataError, match="more than 0 and less than 1"):
        split_holdout(digits.train.labels, fraction, seed=0)


def test_a_small_holdout_has_an_example_of_each_class(digits):
    _, held_out = split_holdout(digits.train.labels, 0.001, seed=0)
    assert sorted(digits.train.labels[held_out]) == list(range(10))


def test_holdout_that_loses_a_class_is_refused(digits):
    with pytest.raises(DataError, match="every class needs an example in both parts"):
        split_holdout(digits.train.labels, 0.9999, seed=0)
    with pytest.raises(DataError, match="the smallest class has 1"):
        split_holdout(np.array([0, 0, 0, 1]), 0.5, seed=0)


# ------------------------------------------------------------------------------------ npz


def good_arrays():
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (9, 5, 4, 3), dtype=np.uint8),
        "train_labels": np.arange(9) % 3,
        "test_images": rng.integers(0, 256, (4, 5, 4, 3), dtype=np.uint8),
        "test_labels": np.array([2, 1, 0, 0]),
    }


def write(tmp_path, **changes):
    """The file of `good_arrays` with some replaced, or left out (None)."""
    arrays = {k: v for k, v in {**good_arrays(), **changes}.items() if v is not None}
    path = tmp_path / "own.npz"
    np.savez(path, **arrays)
    return path


def test_npz_gives_back_what_was_written(tmp_path):
    arrays = good_arrays()
    dataset = load("npz", path=write(tmp_path, class_names=np.array(["cat", "dog", "eel"])))
    np.testing.assert_array_equal(dataset.train.images, arrays["train_images"])
    np.testing.assert_array_equal(dataset.test.images, arrays["test_images"])
    np.testing.assert_array_equal(dataset.train.labels, arrays["train_labels"])
    np.testing.assert_array_equal(dataset.test.labels, arrays["test_labels"])
    assert dataset.train.labels.dtype == np.int32
    assert dataset.class_names == ("cat", "dog", "eel")
    assert dataset.mirror_ok


def test_npz_takes_grey_images_and_floats(tmp_path):
    grey = np.linspace(0, 1, 9 * 20).reshape(9, 5, 4)
    dataset = load("npz", path=write(tmp_path, train_images=grey, test_images=grey[:4]))
    assert dataset.train.images.dtype == np.uint8
    assert dataset.class_names == ("0", "1", "2")
    np.testing.assert_allclose(dataset.train.images[..., 0] / 255, grey, atol=0.5 / 255 + 1e-6)


def test_npz_fingerprint_changes_with_one_pixel_or_one_label(tmp_path):
    arrays = good_arrays()
    first = load("npz", path=write(tmp_path)).fingerprint
    assert load("npz", path=write(tmp_path)).fingerprint == first
    arrays["test_images"][1, 2, 3, 0] ^= 1
    arrays["test_labels"][0] = 1
    for key in ("test_images", "test_labels"):
        assert load("npz", path=write(tmp_path, **{key: arrays[key]})).fingerprint != first


BOXES = np.array([[0, 0, 2, 1], [1, 1, 2, 2]] * 9, np.float64)


def test_npz_has_boxes_too(tmp_path):
    arrays = good_arrays()
    (n, height, width), m = arrays["train_images"].shape[:3], len(arrays["test_images"])
    several = np.full((n, 2, 4), np.nan)
    several[1:, 1] = BOXES[: n - 1]
    several[0] = [[0, 0, width, height], [0.5, 0, 1, 1]]
    plain = load("npz", path=write(tmp_path))
    boxed = load("npz", path=write(tmp_path, train_boxes=several, test_boxes=BOXES[:m]))
    assert boxed.fingerprint != plain.fingerprint
    assert plain.train.boxes is None
    assert boxed.train.boxes.counts.tolist() == [2] + [1] * (n - 1)
    assert boxed.train.boxes.inside(0, height, width).tolist() == several[0].tolist()
    assert boxed.train.boxes.inside(2, height, width).tolist() == [BOXES[1].tolist()]
    assert boxed.test.boxes.counts.tolist() == [1] * m
    assert load("npz", path=write(tmp_path, test_boxes=BOXES[:m])).train.boxes is None


BAD_BOXES = {
    "shape": (BOXES[:4, :3], r"test_boxes has shape \(4, 3\); expected \(4, 4\) or \(4, M, 4\)"),
    "count": (BOXES[:3], r"test_boxes has shape \(3, 4\)"),
    "axes": (BOXES[:4, None, None], r"test_boxes has shape \(4, 1, 1, 4\)"),
    "words": (BOXES[:4].astype(str), "test_boxes has dtype <U32; expected floats, in pixels"),
    "turned": (BOXES[:4, [2, 1, 0, 3]], r"test_boxes of image 0 holds \[2.0, 0.0, 0.0, 1.0\]; exp"),
    "empty": (BOXES[:4, [0, 1, 2, 1]], r"image 0 holds .*; expected left < right and top < bottom"),
    "negative": (BOXES[:4] - [0, 0.5, 0, 0], r"image 0 holds \[0.0, -0.5, 2.0, 1.0\]"),
    "beyond": (BOXES[:4] * 90, r"image 0 holds .*, within an image \d+ wide"),
    "half": (np.where(BOXES == 0, np.nan, BOXES)[:4], "image 0 holds .* or four times NaN"),
    "infinite": (np.where(BOXES == 2, np.inf, BOXES)[:4], "image 0 holds .*inf"),
}


@pytest.mark.parametrize(("boxes", "message"), BAD_BOXES.values(), ids=BAD_BOXES)
def test_boxes_of_npz_that_cannot_be_are_refused(tmp_path, boxes, message):
    path = write(tmp_path, test_boxes=boxes)
    with pytest.raises(DataError, match=message) as caught:
        load("npz", path=path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def with_nan():
    images = np.zeros((9, 5, 4, 3), np.float32)
    images[3, 2, 1, 0] = np.nan
    return images


BAD = {
    "missing key": ({"test_labels": None}, "'test_labels' is missing.*expected train_images"),
    "misspelt key": (
        {"train_images": None, "train_image": np.zeros(1)},
        r"'train_images' is missing \(is 'train_image' meant\?\)",
    ),
    "lengths": ({"train_labels": np.arange(8) % 3}, "train_images has 9 .*train_labels has 8"),
    "objects": ({"train_labels": np.array([0, "x", None] * 3, object)}, "holds Python objects"),
    "empty": ({"train_images": np.zeros((0, 5, 4, 3), np.uint8)}, "train_images is empty"),
    "empty test": ({"test_images": np.zeros((0, 5, 4, 3), np.uint8)}, "test_images is empty"),
    "no pixels": ({"train_images": np.zeros((9, 0, 4, 3), np.uint8)}, "train_images is empty"),
    "one class": ({"train_labels": np.zeros(9, int)}, r"train_labels holds one class only \(0\)"),
    "negative": ({"train_labels": np.arange(9) % 3 - 1}, r"train_labels holds -1; .*0\.\.K-1"),
    "float labels": (
        {"test_labels": np.zeros(4)},
        r"test_labels has dtype float64; .*integers.*: test_labels\.astype\(int\)$",
    ),
    "half labels": (
        {"test_labels": np.full(4, 0.5)},
        r"test_labels has dtype float64; .*0\.\.K-1$",
    ),
    "words": ({"test_labels": np.array(["cat"] * 4)}, "dtype <U3; .*class_names.*return_inverse"),
    "huge labels": ({"test_labels": np.full(4, 2**40)}, "test_labels holds 1099511627776"),
    "label gap": (
        {"train_labels": np.arange(9) % 3 * 2},
        "class 1 has no training example; expected labels 0..K-1, each of them present$",
    ),
    "labels from 1": (
        {"train_labels": np.arange(9) % 3 + 1, "test_labels": np.array([1, 2, 3, 1])},
        "class 0 has no training example.*: train_labels - 1 and test_labels - 1$",
    ),
    "no class 0": (
        {"train_labels": np.arange(9) % 3 + 1, "test_labels": np.array([0, 1, 2, 3])},
        "class 0 has no training example.*present$",
    ),
    "unseen class": ({"test_labels": np.array([0, 1, 2, 3])}, "test_labels holds class 3"),
    "label rank": ({"train_labels": np.ones((9, 3), int)}, r"shape \(9, 3\); expected \(N,\)$"),
    "one-hot": (
        {"train_labels": np.eye(3, dtype=int)[np.arange(9) % 3]},
        r"shape \(9, 3\); expected \(N,\).*: train_labels\.argmax\(axis=1\)$",
    ),
    "a column": (
        {"test_labels": np.zeros((4, 1), int)},
        r"shape \(4, 1\); expected \(N,\): test_labels\[:, 0\]$",
    ),
    "nan": ({"train_images": with_nan()}, "train_images holds NaN or infinity"),
    "float range": (
        {"train_images": np.full((9, 5, 4, 3), 7.5)},
        r"floats from 7\.5 to 7\.5; .*: train_images\.round\(\)\.astype\(numpy\.uint8\)$",
    ),
    "floats from -1": (
        {"train_images": np.full((9, 5, 4, 3), -0.5)},
        r"floats from -0\.5 to -0\.5; .*: \(train_images \+ 1\) / 2$",
    ),
    "above white": (
        {"train_images": np.full((9, 5, 4, 3), 1.001)},
        r"floats from 1\.001 .*: train_images\.clip\(0, 1\)",
    ),
    "standardised": (
        {"train_images": np.full((9, 5, 4, 3), -2.5)},
        "before anything was taken off$",
    ),
    "int images": (
        {"train_images": np.full((9, 5, 4, 3), 200)},
        r"dtype int64 from 200 to 200; expected uint8.*: train_images\.astype\(numpy\.uint8\)$",
    ),
    "16 bits": (
        {"train_images": np.full((9, 5, 4, 3), 65535, np.uint16)},
        r"uint16 from 65535 .*: \(train_images \* \(255 / 65535\)\)\.round",
    ),
    "bits": (
        {"train_images": np.ones((9, 5, 4, 3), bool)},
        r"dtype bool; .*: train_images\.astype\(numpy\.uint8\) \* 255$",
    ),
    "rank": (
        {"train_images": np.zeros((9, 60), np.uint8)},
        r"shape \(9, 60\); expected \(N, H, W\) or \(N, H, W, C\)$",
    ),
    "flat grey": (
        {"train_images": np.zeros((9, 784), np.uint8)},
        r"shape \(9, 784\); .*: train_images\.reshape\(-1, 28, 28\)$",
    ),
    "flat RGB": (
        {"train_images": np.zeros((9, 3072), np.uint8)},
        r"\(9, 3072\); .*reshape\(-1, 32, 32, 3\), or.* train_images\.reshape\(-1, 3, 32, 32\)"
        r"\.transpose\(0, 2, 3, 1\)$",
    ),
    "channels first": (
        {"train_images": np.zeros((9, 3, 32, 32), np.uint8)},
        r"train_images has shape \(9, 3, 32, 32\).*: train_images\.transpose\(0, 2, 3, 1\)$",
    ),
    "grey channel first": (
        {"test_images": np.zeros((4, 1, 5, 4), np.uint8)},
        r"test_images has shape \(4, 1, 5, 4\).*: test_images\.transpose\(0, 2, 3, 1\)$",
    ),
    "transparent": (
        {"train_images": np.zeros((9, 5, 4, 4), np.uint8)},
        r"4 channels; .*: train_images\[\.\.\., :3\]$",
    ),
    "many channels": (
        {"train_images": np.zeros((9, 5, 4, 7), np.uint8)},
        r"7 channels; expected \(N, H, W, C\) of 1 channel \(grey\) or 3 \(RGB\)$",
    ),
    "images last": (
        {"train_images": np.zeros((28, 28, 9), np.uint8)},
        r"shape \(28, 28, 9\).*: train_images\.transpose\(2, 0, 1\)$",
    ),
    "RGB images last": (
        {"train_images": np.zeros((32, 32, 3, 9), np.uint8)},
        r"shape \(32, 32, 3, 9\).*: train_images\.transpose\(3, 0, 1, 2\)$",
    ),
    "sizes": (
        {"test_images": np.zeros((4, 5, 5, 3), np.uint8)},
        "train_images are 5x4x3 and test_images 5x5x3",
    ),
    "names": ({"class_names": np.array(["a", "b"])}, "class_names .* expected 3 strings"),
    "number names": ({"class_names": np.arange(3)}, "class_names has dtype int64"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_npz_is_refused_with_file_key_value_and_expectation(tmp_path, case):
    changes, message = BAD[case]
    path = write(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        load("npz", path=path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_truncated_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="needs a path"):
        load("npz")
    with pytest.raises(DataError, match=r"absent\.npz: no such file"):
        load("npz", path=tmp_path / "absent.npz")
    with pytest.raises(DataError, match="no such file"):
        load("npz", path=tmp_path)
    path = tmp_path / "own.npz"
    np.savez_compressed(path, **good_arrays())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"own\.npz: not a \.npz file, or a truncated one"):
        load("npz", path=path)
    end = len(content) - 22  # the zip's directory, found but spoilt
    path.write_bytes(content[: end - 60] + b"\xff" * 60 + content[end:])
    with pytest.raises(DataError, match=r"own\.npz: not a \.npz file, or a truncated one"):
        load("npz", path=path)
    path.write_bytes(content[:200] + b"\xff" * 40 + content[240:])
    with pytest.raises(DataError, match=r"own\.npz: train_images cannot be read"):
        load("npz", path=path)


# ------------------------------------------------------------------------------ importing


def modules_after(fresh_python, code):
    finished = fresh_python("-c", f"import sys\n{code}\nprint(*sys.modules)")
    assert finished.returncode == 0, finished.stderr
    return set(finished.stdout.split())


def test_importing_the_package_imports_neither_jax_nor_sklearn_nor_tfds(fresh_python):
    loaded = modules_after(fresh_python, "import input_pipeline")
    assert "numpy" in loaded
    assert not {"jax", "sklearn", "tensorflow_datasets", "tensorflow"} & loaded


def test_loading_and_augmenting_digits_never_imports_tensorflow(fresh_python):
    code = """
import jax
from input_pipeline import load, order, resident
train = load("digits").train
normalise = resident.Normalisation.fit(train.images)
view = resident.TrainView(crop=16, pad=2)
indices, epochs = order.training(0, len(train), 0, 4)
step = jax.jit(resident.train_batch, static_argnums=5)
step(train.images, train.labels, indices, epochs, 0, view, normalise)
"""
    loaded = modules_after(fresh_python, code)
    assert "jax" in loaded
    assert not {"tensorflow", "tensorflow_datasets"} & loaded

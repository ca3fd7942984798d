"""Figures and splits of transfer, beside scikit-learn, VOC's devkit and sums by hand."""

from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, confusion_matrix

from experiments.statistics import over_seeds
from experiments.testing.metrics import (
    average_precision,
    confusion,
    mean_average_precision,
    mean_class_recall,
)
from experiments.transfer.splits import random_split
from input_pipeline import DataError

KINDS = ("eleven_points", "all_points", "none")


def made(seed, n=60, levels=None, positives=None):
    """Scores, of few levels where there shall be ties, and targets with difficult examples."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=n) if levels is None else rng.integers(0, levels, n) / 7
    targets = rng.choice([1, 0, -1], n, p=[0.3, 0.5, 0.2])
    targets[:2] = 1, 0
    if positives is not None:
        targets = rng.permutation(np.repeat([1, 0, -1], [positives, n - positives - 5, 5]))
    return scores, targets


def devkit(scores, targets, kind, exact=False):
    """VOCevalcls.m of the devkit, line by line, with its loop of 2007 or VOCap.m of 2012.

    `gt` there is 1, -1 or 0. exact: recalls as fractions, where MATLAB's numbers are rounded.
    """
    gt = np.array([{1: 1, 0: -1, -1: 0}[int(t)] for t in targets])
    si = np.argsort(-np.asarray(scores), kind="stable")  # [so,si]=sort(-out)
    tp, fp = np.cumsum(gt[si] > 0), np.cumsum(gt[si] < 0)
    with np.errstate(invalid="ignore"):
        prec = tp / (fp + tp)  # NaN before the first example that counts; max leaves NaN out
    total = int((gt > 0).sum())
    rec = [Fraction(int(t), total) if exact else t / total for t in tp]
    if kind == "eleven_points":
        ap = 0.0
        for k in range(11):
            t = Fraction(k, 10) if exact else k * 0.1
            reached = [p for p, r in zip(prec, rec, strict=True) if r >= t and not np.isnan(p)]
            ap += max(reached, default=0.0) / 11
        return 100 * ap
    mrec, mpre = [0, *rec, 1], [0, *np.nan_to_num(prec), 0]
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    steps = [i for i in range(1, len(mrec)) if mrec[i] != mrec[i - 1]]
    return 100 * float(sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in steps))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["eleven_points", "all_points"])
def test_average_precision_is_the_devkits(kind, seed):
    scores, targets = made(seed)
    ap = average_precision(scores, targets, kind)
    assert ap == pytest.approx(devkit(scores, targets, kind, exact=True), abs=1e-10)
    if (targets == 1).sum() % 10:  # else recalls may equal 0.3, but for their rounding
        assert ap == pytest.approx(devkit(scores, targets, kind), abs=1e-10)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["eleven_points", "all_points"])
def test_ties_are_as_the_devkit_has_negatives_first_and_never_higher(kind, seed):
    scores, targets = made(seed, levels=6)
    ap = average_precision(scores, targets, kind)
    last = np.argsort(targets == 1, kind="stable")
    worst = devkit(scores[last], targets[last], kind, exact=True)
    assert ap == pytest.approx(worst, abs=1e-10)
    mixed = np.random.default_rng(seed).permutation(len(scores))
    assert average_precision(scores[mixed], targets[mixed], kind) == ap
    assert devkit(scores[mixed], targets[mixed], kind, exact=True) >= ap - 1e-10


@pytest.mark.parametrize("levels", [None, 6])
@pytest.mark.parametrize("seed", range(20))
def test_without_interpolation_it_is_scikit_learns(seed, levels):
    scores, targets = made(seed, levels=levels)
    counted = targets >= 0
    expected = 100 * average_precision_score(targets[counted], scores[counted])
    ap = average_precision(scores, targets, "none")
    assert ap == pytest.approx(expected, abs=1e-10)
    assert average_precision(scores, targets) >= ap - 1e-10


def test_recalls_that_reach_a_tenth_exactly_count_as_reaching_it():
    """Of ten positives three are first: at the recalls 0 to 0.3 precision is 1."""
    targets = [1] * 3 + [0] * 7 + [1] * 7
    scores = -np.arange(17.0)
    expected = 100 * (4 * 1 + 7 * 10 / 17) / 11
    assert average_precision(scores, targets, "eleven_points") == pytest.approx(expected)
    assert 3 / 10 < 3 * 0.1  # as in MATLAB
    assert devkit(scores, targets, "eleven_points") < expected
    assert devkit(scores, targets, "eleven_points", exact=True) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("targets", "eleven", "every", "none"),
    [
        ([1, 1, 0, 0], 1, 1, 1),
        # Precision is 1/2 at recall 1/2, and 2/3 at recall 1, the best at each recall.
        ([0, 1, 1], 2 / 3, 2 / 3, (1 / 2 + 2 / 3) / 2),
        # 1 up to recall 1/2, that is at six of eleven recalls, and then 2/3.
        ([1, 0, 1], (6 + 5 * 2 / 3) / 11, (1 + 2 / 3) / 2, (1 + 2 / 3) / 2),
        ([0, 0, 0, 1], 1 / 4, 1 / 4, 1 / 4),
        ([-1, 1, -1, 0, 1], (6 + 5 * 2 / 3) / 11, (1 + 2 / 3) / 2, (1 + 2 / 3) / 2),
    ],
)
def test_average_precision_of_small_rankings(targets, eleven, every, none):
    scores = -np.arange(float(len(targets)))
    results = [average_precision(scores, targets, kind) for kind in KINDS]
    assert results == pytest.approx([100 * eleven, 100 * every, 100 * none])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_are_worth_the_share_of_positives(kind):
    assert average_precision([0.5] * 8, [1, 0, 0, 0, 1, 0, 0, 0], kind) == pytest.approx(25)
    scores = [np.inf, np.inf, -np.inf, -np.inf]
    assert average_precision(scores, [1, 1, 0, 0], kind) == pytest.approx(100)


@pytest.mark.parametrize(
    ("scores", "targets", "told"),
    [
        ([1.0, 2.0], [1], "got \\(2,\\), \\(1,\\)"),
        ([1.0, np.nan], [1, 0], "NaN"),
        ([1.0, 2.0], [1, 2], "other than 1, 0 and -1"),
        ([1.0, 2.0], [0, -1], "no positive example"),
        ([1.0, 2.0], [-1, -1], "no positive example"),
        ([], [], "no positive example"),
    ],
)
def test_what_has_no_average_precision_is_refused(scores, targets, told):
    with pytest.raises(ValueError, match=told):
        average_precision(scores, targets)


def test_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match="'11'; expected one of eleven_points, all_points, none"):
        average_precision([1.0, 2.0], [1, 0], "11")


def test_mean_average_precision_is_the_mean_over_classes():
    pairs = [made(seed) for seed in range(3)]
    scores, targets = (np.stack(columns, axis=1) for columns in zip(*pairs, strict=True))
    for kind in KINDS:
        expected = np.mean([average_precision(*pair, kind) for pair in pairs])
        assert mean_average_precision(scores, targets, kind) == pytest.approx(expected)
    targets[:, 1] = 0
    with pytest.raises(ValueError, match="class 1: no positive example"):
        mean_average_precision(scores, targets)
    with pytest.raises(ValueError, match="got \\(60, 3\\), \\(60, 2\\)"):
        mean_average_precision(scores, targets[:, :2])


def test_confusion_and_mean_class_recall_are_scikit_learns():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 5, 200), rng.integers(0, 5, 200).astype(np.uint8)
    counts = confusion(predicted, labels, 5)
    np.testing.assert_array_equal(counts, confusion_matrix(labels, predicted))
    expected = 100 * balanced_accuracy_score(labels, predicted)
    assert mean_class_recall(counts) == pytest.approx(expected)


def test_mean_class_recall_weighs_classes_alike():
    labels = np.repeat([0, 1, 3], [90, 10, 1])  # none of class 2
    predicted = np.repeat([0, 0, 3], [90, 10, 1])
    counts = confusion(predicted, labels, 4)
    assert counts.tolist() == [[90, 0, 0, 0], [10, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert mean_class_recall(counts) == pytest.approx(100 * 2 / 3)
    with pytest.raises(ValueError, match="no examples"):
        mean_class_recall(np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("predicted", "labels", "told"),
    [
        ([0, 1], [0], "got \\(2,\\), \\(1,\\)"),
        ([0, 3], [0, 1], "predicted must lie in 0..2"),
        ([0, 1], [-1, 1], "labels must lie in 0..2"),
    ],
)
def test_classes_that_are_not_there_are_refused(predicted, labels, told):
    with pytest.raises(ValueError, match=told):
        confusion(predicted, labels, 3)


def test_splits_are_summed_up_by_mean_and_sample_deviation():
    summary = over_seeds([91.0, 93.0, 92.0])
    assert (summary.mean, summary.deviation) == (pytest.approx(92), pytest.approx(1))


# ------------------------------------------------------------------------------- splits

CLASSES = ("BACKGROUND_Google", "Faces", "inline_skate")
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [468, 435, 31]))


def test_split_of_caltech_101():
    """30 images of each class, and up to 50 others to test on: one of the smallest class."""
    train, test = random_split(LABELS, CLASSES, 30, seed=0, test_per_class=50)
    assert np.bincount(LABELS[train]).tolist() == [30, 30, 30]
    assert np.bincount(LABELS[test]).tolist() == [50, 50, 1]
    assert not set(train) & set(test)
    for part in (train, test):
        assert (np.diff(part) > 0).all()


def test_split_without_a_limit_tests_on_all_others():
    train, test = random_split(LABELS, CLASSES, 20, seed=3)
    assert np.bincount(LABELS[train]).tolist() == [20, 20, 20]
    assert sorted([*train, *test]) == list(range(len(LABELS)))


def test_split_depends_on_seed_and_labels_alone():
    first, again, other_seed = (
        random_split(LABELS, CLASSES, 5, seed=seed)[0] for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other_seed)
    # Written down: random words are Philox's, the same in every version of NumPy.
    train, test = random_split(np.array([0, 1] * 5), ("a", "b"), 2, seed=1, test_per_class=1)
    ranks = np.random.Philox(key=1).random_raw(10)
    a, b = (sorted(range(k, 10, 2), key=lambda i: ranks[i]) for k in (0, 1))
    assert train.tolist() == sorted(a[:2] + b[:2])
    assert test.tolist() == sorted(a[2:3] + b[2:3])


def test_each_image_is_as_likely_as_any_other():
    labels = np.repeat([0, 1], [10, 6])
    counts = np.zeros(16)
    for seed in range(2000):
        counts[random_split(labels, ("a", "b"), 3, seed)[0]] += 1
    # Binomial with p of 0.3 and 0.5: five deviations are 102 and 112.
    np.testing.assert_allclose(counts[:10], 600, atol=103)
    np.testing.assert_allclose(counts[10:], 1000, atol=112)


def test_class_with_too_few_images_is_named():
    with pytest.raises(DataError, match=r"'inline_skate' has 31 images; .*31 to train.*at most 30"):
        random_split(LABELS, CLASSES, 31, seed=0)
    with pytest.raises(DataError, match="'none' has 0 images"):
        random_split(LABELS, (*CLASSES, "none"), 1, seed=0)


@pytest.mark.parametrize(
    "wrong",
    [{"train_per_class": 0}, {"test_per_class": 0}, {"seed": -1}],
)
def test_numbers_that_make_no_split_are_refused(wrong):
    with pytest.raises(DataError, match="expected at least 1, at least 1 or None, and at least 0"):
        random_split(LABELS, CLASSES, **({"train_per_class": 5, "seed": 0} | wrong))

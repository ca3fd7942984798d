import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import top_k_accuracy_score
from statsmodels.stats import proportion

from experiments.statistics import (
    bootstrap_difference,
    error_rate,
    mcnemar,
    over_seeds,
    paired_difference,
    rank_agreement,
    true_class_rank,
)


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_topk_error_equals_scikit_learn_where_nothing_ties(k):
    rng = np.random.default_rng(0)
    posteriors, labels = rng.random((400, 10)).astype(np.float32), rng.integers(0, 10, 400)
    expected = top_k_accuracy_score(labels, posteriors, k=k, labels=range(10), normalize=False)
    assert (true_class_rank(posteriors, labels) > k).sum() == 400 - expected


def as_class_zero(posteriors, labels):
    """Each example's classes renamed: 0 is its true one, which ranks last among ties there."""
    classes = posteriors.shape[1]
    places = (labels[:, None] + np.arange(classes)) % classes
    return np.take_along_axis(posteriors, places, axis=1)


@pytest.mark.parametrize("k", [1, 5])
def test_topk_error_with_ties_equals_scikit_learn_with_the_true_class_first_of_all(k):
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 10, 2000)
    posteriors = (rng.integers(0, 6, (2000, 10)) / 8).astype(np.float32)  # most rows hold ties
    tied = posteriors == posteriors[np.arange(2000), labels][:, None]
    assert (tied.sum(axis=1) > 1).mean() > 0.5
    right = top_k_accuracy_score(
        np.zeros(2000, int),
        as_class_zero(posteriors, labels),
        k=k,
        labels=range(10),
        normalize=False,
    )
    assert (true_class_rank(posteriors, labels) > k).sum() == 2000 - right


def test_ties_count_against_the_net():
    posteriors = np.array([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4], [0.3, 0.3, 0.4]])
    assert true_class_rank(posteriors, [0, 0, 0]).tolist() == [2, 3, 3]
    assert (true_class_rank(posteriors, [0, 0, 0]) > 1).tolist() == [True, True, True]
    assert (true_class_rank(posteriors, [0, 0, 0]) > 2).tolist() == [False, True, True]


def test_a_net_that_cannot_tell_classes_apart_is_always_wrong():
    posteriors, labels = np.full((10, 10), 0.1), np.arange(10)
    assert (true_class_rank(posteriors, labels) > 1).all()
    assert (true_class_rank(posteriors, labels) > 9).all()
    assert not (true_class_rank(posteriors, labels) > 10).any()


def test_nan_posteriors_are_wrong_at_every_k():
    posteriors = np.array([[np.nan, 1.0], [np.nan, np.nan], [0.9, 0.1]])
    assert (true_class_rank(posteriors, [1, 0, 0]) > 2).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("shape", "labels"), [((3, 4), [0, 1]), ((2, 4), [0, 4]), ((2, 4), [-1, 0]), ((4,), [0])]
)
def test_labels_that_do_not_fit_are_refused(shape, labels):
    with pytest.raises(ValueError, match="labels"):
        true_class_rank(np.zeros(shape), np.array(labels))


@pytest.mark.parametrize(
    ("errors", "n"), [(0, 50), (1, 50), (11_203, 50_000), (50, 50), (250, 500), (3, 7)]
)
def test_error_rate_interval_equals_statsmodels(errors, n):
    rate = error_rate(errors, n)
    assert rate.percent == pytest.approx(100 * errors / n)
    expected = 100 * np.array(proportion.proportion_confint(errors, n, method="wilson"))
    np.testing.assert_allclose([rate.low, rate.high], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("errors", "n"), [(1, 0), (6, 5), (-1, 5)])
def test_impossible_error_counts_are_refused(errors, n):
    with pytest.raises(ValueError, match=f"{errors} errors among {n} examples"):
        error_rate(errors, n)


def test_summary_over_seeds_is_mean_deviation_and_t_interval():
    values = [12.0, 13.5, 11.2, 14.8, 12.4]
    mean = sum(values) / 5
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 4)
    half = 2.7764451051977987 * deviation / math.sqrt(5)  # t with 4 degrees of freedom, 97.5%
    summary = over_seeds(values)
    assert summary.seeds == 5
    assert summary.mean == pytest.approx(mean)
    assert summary.deviation == pytest.approx(deviation)
    assert (summary.low, summary.high) == pytest.approx((mean - half, mean + half))


def test_one_seed_has_neither_deviation_nor_interval():
    summary = over_seeds([4.2])
    assert (summary.mean, summary.deviation, summary.low, summary.high) == (4.2, None, None, None)


def test_equal_values_and_a_diverged_seed_give_no_warning():
    equal = over_seeds([7.4, 7.4, 7.4])
    assert (equal.deviation, equal.low, equal.high) == (pytest.approx(0, abs=1e-12), None, None)
    assert math.isnan(over_seeds([1.0, math.nan]).mean)


def test_paired_difference_equals_scipys_paired_test():
    rng = np.random.default_rng(1)
    first, second = rng.normal(10, 2, 5), rng.normal(11, 2, 5)
    expected = stats.ttest_rel(first, second)
    low, high = expected.confidence_interval()
    difference = paired_difference(first, second)
    assert (difference.p_value, difference.low, difference.high) == pytest.approx(
        (expected.pvalue, low, high)
    )
    assert difference.mean == pytest.approx((first - second).mean())


def test_equal_differences_give_neither_p_value_nor_interval():
    # 0.2 each, but for rounding.
    difference = paired_difference([10.2, 11.4, 9.0], [10.0, 11.2, 8.8])
    assert difference.mean == pytest.approx(0.2)
    assert (difference.p_value, difference.low, difference.high) == (None, None, None)
    with pytest.raises(ValueError, match="at least 2"):
        paired_difference([1.0], [2.0])


def wrong_pair(both, only_first, only_second, neither):
    first = [True] * both + [True] * only_first + [False] * only_second + [False] * neither
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return np.array(first), np.array(second)


@pytest.mark.parametrize(("b", "c"), [(12, 3), (3, 12), (8, 8), (1, 0), (0, 0), (610, 480)])
def test_mcnemar_p_value_is_the_exact_binomial_one(b, c):
    test = mcnemar(*wrong_pair(20, b, c, 400))
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1)) / 2 ** (b + c)
    assert test.p_value == pytest.approx(min(1.0, 2 * tail))
    assert (test.only_first, test.only_second, test.n) == (b, c, 420 + b + c)
    assert test.difference == pytest.approx(100 * (b - c) / test.n)
    assert test.low < test.difference + 1e-9
    assert test.high > test.difference - 1e-9


def test_interval_of_a_paired_difference_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    cells = rng.multinomial(300, [0.05, 0.08, 0.03, 0.84], size=600)
    covered = 0
    for cell in cells:
        test = mcnemar(*wrong_pair(*cell))
        covered += test.low <= 5.0 <= test.high
    assert 0.925 < covered / 600 < 0.975


@pytest.mark.parametrize("paired", [mcnemar, bootstrap_difference])
@pytest.mark.parametrize("lengths", [(3, 4), (0, 0)])
def test_paired_lists_of_unequal_length_or_none_are_refused(paired, lengths):
    with pytest.raises(ValueError, match="same examples"):
        paired(*(np.zeros(n, bool) for n in lengths))


@pytest.mark.parametrize("cells", [(20, 30, 12, 338), (60, 4, 25, 111), (0, 1, 0, 199)])
def test_bootstrap_interval_equals_scipys_of_resampled_examples(cells):
    first, second = wrong_pair(*cells)
    expected = stats.bootstrap(
        (first, second),
        lambda a, b, axis=-1: 100 * (a.mean(axis=axis) - b.mean(axis=axis)),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=10_000,
        rng=np.random.default_rng(5),
    )
    interval = bootstrap_difference(first, second)
    # The 2.5% point of 10,000 draws has a deviation of 0.027 of theirs, and values are 100/n apart.
    tolerance = 100 / len(first) + 4 * 0.027 * math.sqrt(2) * expected.standard_error
    np.testing.assert_allclose(interval, expected.confidence_interval, rtol=0, atol=tolerance)


def test_bootstrap_interval_equals_the_binomials_where_every_example_is_discordant():
    interval = bootstrap_difference(*wrong_pair(0, 45, 75, 0), resamples=200_000)
    counts = stats.binom.ppf([0.025, 0.975], 120, 45 / 120)
    np.testing.assert_allclose(interval, 100 * (2 * counts - 120) / 120, rtol=0, atol=2 * 100 / 120)


@pytest.mark.parametrize("cells", [(5, 0, 0, 9), (0, 9, 0, 0), (0, 0, 9, 0)])
def test_where_all_examples_are_alike_there_is_no_bootstrap_interval(cells):
    assert bootstrap_difference(*wrong_pair(*cells)) is None


def test_bootstrap_interval_is_the_same_again_and_turns_with_the_order():
    first, second = wrong_pair(20, 30, 12, 338)
    low, high = bootstrap_difference(first, second)
    assert (low, high) == bootstrap_difference(first, second)
    assert low < 100 * 18 / 400 < high
    turned = bootstrap_difference(second, first)
    assert turned == pytest.approx((-high, -low), abs=0.5)
    assert bootstrap_difference(first, second, seed=1) == pytest.approx((low, high), abs=0.5)


# ------------------------------------------------------------------------------ rank agreement


def test_rank_agreement_is_scipys_tau_b_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(30):
        printed = rng.integers(0, 4, 6).astype(float)
        counts = rng.integers(0, 4, 6)
        wrong = [np.arange(10) < count for count in counts]
        agreement = rank_agreement(printed, wrong, resamples=2)
        expected = stats.kendalltau(printed, counts, variant="b").statistic
        if np.isnan(expected):
            assert agreement.tau is None
        else:
            assert agreement.tau == pytest.approx(expected)


def test_rank_agreements_interval_is_that_of_resampled_images_and_seeds():
    rng = np.random.default_rng(1)
    printed = [10.0, 12.0, 15.0, 16.0, 20.0]
    images = 300
    wrong = [rng.random((1 + i % 3, images)) < rate / 100 for i, rate in enumerate(printed)]
    agreement = rank_agreement(printed, wrong, resamples=4000)
    taus = []
    for _ in range(3000):  # image by image and seed by seed
        chosen = rng.integers(0, images, images)
        errors = [w[rng.integers(0, len(w), len(w))][:, chosen].mean() for w in wrong]
        taus.append(stats.kendalltau(printed, errors).statistic)
    low, high = np.nanpercentile(taus, [2.5, 97.5])
    assert agreement.low == pytest.approx(low, abs=0.11)  # one pair of rows moves tau by 0.2
    assert agreement.high == pytest.approx(high, abs=0.11)
    assert agreement.low < agreement.tau <= agreement.high


def test_rank_agreement_of_noise_or_of_hardly_any_errors_does_not_exclude_chance():
    rng = np.random.default_rng(2)
    noise = [rng.random(200) < 0.1 for _ in range(8)]
    few = np.zeros((4, 500), bool)
    few[1, :2] = True
    for printed, wrong in ((range(8), noise), ([7.5, 7.1, 7.2, 6.8], few)):
        agreement = rank_agreement(printed, wrong)
        assert agreement.low < 0 < agreement.high


@pytest.mark.parametrize(
    ("printed", "wrong"),
    [([1.0], [[True]]), ([1.0, 2.0], [[True], [True, False]]), ([1.0, 2.0], [[True]])],
)
def test_rank_agreement_of_what_can_not_be_compared_is_an_error(printed, wrong):
    with pytest.raises(ValueError, match="two rows or more"):
        rank_agreement(printed, wrong)


def test_intervals_are_those_of_scipy():
    rng = np.random.default_rng(3)
    for _ in range(300):
        n = int(rng.integers(1, 50_000))
        errors = int(rng.choice([0, n, rng.integers(0, n + 1)]))
        wilson = stats.binomtest(errors, n).proportion_ci(0.95, method="wilson")
        rate = error_rate(errors, n)
        assert (rate.low, rate.high) == pytest.approx(
            (100 * wilson.low, 100 * wilson.high), rel=1e-12
        )
        values = rng.normal(rng.normal(), rng.random(), int(rng.integers(2, 12)))
        student = stats.t.interval(0.95, values.size - 1, values.mean(), stats.sem(values))
        summary = over_seeds(list(values))
        assert (summary.low, summary.high) == pytest.approx(tuple(student), rel=1e-12)

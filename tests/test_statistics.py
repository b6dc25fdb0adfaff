"""Tests of intervals and tests: published examples, other implementations, and simulation."""

from itertools import product

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from iqa_utils.metrics import plcc, rmse
from iqa_utils.statistics import (
    bootstrap_ci,
    holm,
    nadeau_bengio,
    paired_bootstrap,
    pairwise_bootstrap,
    pitman_morgan,
    residual_f_test,
    steiger,
    wilcoxon_splits,
    williams,
)


def mean_error(mos, pred):
    return float(np.mean(mos - pred))


def assert_five_percent(p, n_errors=3.0):
    """Rejections at 5 % lie within so many standard errors of 5 %."""
    rate, error = np.mean(np.asarray(p) <= 0.05), np.sqrt(0.05 * 0.95 / len(p))
    assert abs(rate - 0.05) < n_errors * error, f"{rate:.4f} of {len(p)} null cases rejected"


def correlated(rng, covariance, shape):
    """Normal draws of three correlated variables, shape (3, *shape)."""
    return np.tensordot(np.linalg.cholesky(covariance), rng.normal(size=(3, *shape)), axes=1)


# --- bootstrap -------------------------------------------------------------------------------


def test_bootstrap_of_a_mean_has_the_normal_width():
    rng = np.random.default_rng(0)
    mos = rng.normal(size=400)
    low, high = bootstrap_ci(mos, np.zeros(400), mean_error, n_resamples=4000)
    half = stats.norm.ppf(0.975) * mos.std() / 20
    np.testing.assert_allclose([low, high], [mos.mean() - half, mos.mean() + half], atol=0.01)


def test_bootstrap_agrees_with_scipy():
    rng = np.random.default_rng(1)
    mos = rng.normal(size=80)
    pred = mos + rng.normal(size=80)
    ours = bootstrap_ci(mos, pred, plcc, n_resamples=4000)
    theirs = stats.bootstrap(
        (mos, pred),
        lambda a, b: stats.pearsonr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=4000,
        method="percentile",
        rng=2,
    ).confidence_interval
    np.testing.assert_allclose(ours, [theirs.low, theirs.high], atol=0.01)


def test_drawing_whole_references_gives_the_interval_of_their_means():
    rng = np.random.default_rng(2)
    shift = rng.normal(size=50)  # images of a reference share all of their error
    mos, groups = np.repeat(shift, 20), np.repeat(np.arange(50), 20)
    clustered = bootstrap_ci(mos, 0 * mos, mean_error, groups=groups, n_resamples=2000)
    by_mean = bootstrap_ci(shift, 0 * shift, mean_error, n_resamples=2000)
    naive = bootstrap_ci(mos, 0 * mos, mean_error, n_resamples=2000)
    np.testing.assert_allclose(clustered, by_mean, atol=1e-12)
    ratio = np.ptp(clustered) / np.ptp(naive)
    assert ratio == pytest.approx(np.sqrt(20), rel=0.1)


def test_groups_may_be_names_in_any_order():
    mos = np.array([0.0, 10.0, 1.0, 11.0])
    low, high = bootstrap_ci(mos, 0 * mos, mean_error, groups=["b", "a", "b", "a"])
    assert (low, high) == (0.5, 10.5)  # only the means of b and of a, and their middle, exist


def test_the_seed_decides_the_interval():
    mos = np.arange(20.0)
    pred = mos[::-1] ** 2
    first = bootstrap_ci(mos, pred, plcc, seed=3)
    assert first == bootstrap_ci(mos, pred, plcc, seed=3)
    assert first != bootstrap_ci(mos, pred, plcc, seed=4)


def test_bootstrap_intervals_cover_in_95_percent_of_cases():
    rng = np.random.default_rng(5)
    mos = rng.normal(size=(400, 60))
    outside = []
    for row in mos:
        low, high = bootstrap_ci(row, 0 * row, mean_error, n_resamples=200, seed=len(outside))
        outside.append(not low <= 0 <= high)
    assert_five_percent(1.0 - np.asarray(outside))


def test_paired_bootstrap_sees_through_what_both_methods_share():
    rng = np.random.default_rng(6)
    mos, shared = rng.normal(size=(2, 200))
    pred_a, pred_b = mos + shared, mos + shared + 0.1 * rng.normal(size=200) - 0.05
    result = paired_bootstrap(mos, pred_a, pred_b, mean_error, n_resamples=999)
    assert result.difference == pytest.approx(np.mean(pred_b - pred_a))
    assert result.low < result.difference < result.high < 0
    assert result.p == pytest.approx(2 / 1000)


def test_many_pairs_draw_enough_to_survive_the_correction():
    rng = np.random.default_rng(0)
    mos = rng.normal(size=60)
    preds = {f"good {i}": mos + 0.2 * rng.normal(size=60) for i in range(4)}
    preds["poor"] = rng.normal(size=60)
    found = pairwise_bootstrap(mos, preds, rmse, seed=1)
    assert len(found) == 10
    corrected = dict(zip(found, holm([pair.p for pair in found.values()]), strict=True))
    assert all(corrected[f"good {i}", "poor"] <= 0.02 for i in range(4))
    options = {"n_resamples": 1000, "seed": 1}
    alone = paired_bootstrap(mos, preds["good 1"], preds["poor"], rmse, **options)
    assert alone == found["good 1", "poor"]


def test_paired_bootstrap_rejects_five_percent_of_null_cases():
    rng = np.random.default_rng(7)
    p = []
    for _ in range(400):
        mos, a, b = rng.normal(size=(3, 60))
        p.append(paired_bootstrap(mos, a, b, mean_error, n_resamples=199, seed=len(p)).p)
    assert_five_percent(p)


def test_equal_predictions_do_not_differ():
    mos = np.arange(9.0)
    assert paired_bootstrap(mos, mos, mos, rmse, n_resamples=20) == (0.0, 0.0, 0.0, 1.0)


def test_an_undefined_metric_is_not_hidden():
    mos, flat = np.arange(5.0), np.zeros(5)
    assert np.isnan(bootstrap_ci(mos, flat, plcc, n_resamples=10)).all()
    assert np.isnan(paired_bootstrap(mos, mos, flat, plcc, n_resamples=10).p)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"groups": ["a"] * 4}, "found only 'a'"),
        ({"groups": ["a", "b"]}, r"expected shape \(4,\), found \(2,\)"),
        ({"level": 1.5}, "found 1.5"),
        ({"n_resamples": 0}, "found 0"),
    ],
)
def test_bootstrap_refuses_what_it_cannot_mean(options, match):
    with pytest.raises(ValueError, match=match):
        bootstrap_ci(np.arange(4.0), np.ones(4), rmse, **options)


# --- over splits -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 10, 25])
def test_signed_ranks_agree_with_scipy_exactly(n):
    a, b = np.random.default_rng(n).normal(size=(2, n))
    theirs = stats.wilcoxon(a, b, method="exact")
    np.testing.assert_allclose(wilcoxon_splits(a, b), theirs, rtol=1e-12)


def test_signed_ranks_with_ties_agree_with_counting_every_sign():
    d = np.array([1.0, 1.0, 1.0, -2.0, 2.0, 3.0, 0.0])  # the zero is left out
    ranks = stats.rankdata(np.abs(d[:-1]))
    sums = np.array([ranks @ signs for signs in product([0, 1], repeat=6)])
    smaller = min(ranks[d[:-1] > 0].sum(), ranks[d[:-1] < 0].sum())
    expected = 2 * np.mean(sums <= smaller)
    np.testing.assert_allclose(wilcoxon_splits(d, 0 * d), [smaller, expected])


def test_five_splits_can_never_reach_five_percent():
    assert wilcoxon_splits(np.arange(1.0, 6.0), np.zeros(5)).p == 2 / 2**5


def test_signed_ranks_reject_no_more_than_five_percent_of_null_cases():
    a, b = np.random.default_rng(8).normal(size=(2, 1000, 20))
    p = [wilcoxon_splits(*pair).p for pair in zip(a, b, strict=True)]
    assert_five_percent(p)  # with 20 splits the attainable level is 4.8 %


def test_corrected_t_by_hand():
    a, b = np.array([0.90, 0.92, 0.94]), np.array([0.89, 0.89, 0.89])
    # differences .01 .03 .05: mean .03, variance .0004; (1/3 + 1/4) * .0004 = .00023333
    t, p = nadeau_bengio(a, b, 800, 200)
    assert t == pytest.approx(0.03 / np.sqrt(0.0007 / 3))
    assert p == pytest.approx(2 * stats.t.sf(t, 2))


def test_corrected_t_is_the_paired_t_shrunk_by_the_overlap():
    a, b = np.random.default_rng(9).normal(size=(2, 10))
    paired = stats.ttest_rel(a, b)
    t, _ = nadeau_bengio(a, b, 4, 1)
    assert t == pytest.approx(paired.statistic / np.sqrt(1 + 10 / 4))
    np.testing.assert_allclose(nadeau_bengio(a, b, 10**12, 1), paired, rtol=1e-9)


def test_corrected_t_keeps_five_percent_over_overlapping_splits_and_the_plain_one_does_not():
    rng = np.random.default_rng(10)
    corrected, plain = [], []
    for _ in range(1000):
        gap = rng.normal(size=100)  # what two equal methods differ by on each image
        parts = [gap[rng.permutation(100)[:20]].mean() for _ in range(10)]
        corrected.append(nadeau_bengio(parts, np.zeros(10), 80, 20).p)
        plain.append(stats.ttest_1samp(parts, 0).pvalue)
    assert_five_percent(corrected)
    assert np.mean(np.asarray(plain) <= 0.05) > 0.2


def test_a_difference_without_spread_is_certain_and_no_difference_is_none():
    ones = np.ones(5)
    assert nadeau_bengio(ones, 0 * ones, 8, 2) == (np.inf, 0.0)
    assert nadeau_bengio(0 * ones, ones, 8, 2) == (-np.inf, 0.0)
    assert nadeau_bengio(ones, ones, 8, 2) == (0.0, 1.0)
    assert wilcoxon_splits(ones, ones) == (0.0, 1.0)


def test_corrected_t_refuses_an_empty_part():
    with pytest.raises(ValueError, match="found 8 and 0"):
        nadeau_bengio([1, 2], [2, 3], 8, 0)


# --- dependent correlations ------------------------------------------------------------------

# r_a, r_b, r_ab, n; t of Williams, z of Steiger: printed by the R package cocor on data sets of
# other people, correlations to four digits
PUBLISHED = [
    (0.8066, 0.2383, 0.2255, 177, 9.3823, 8.5460),
    (-0.1741, 0.2015, 0.3734, 646, -9.0340, -8.6124),
]


@pytest.mark.parametrize(("r_a", "r_b", "r_ab", "n", "t", "z"), PUBLISHED)
def test_dependent_correlations_match_published_results(r_a, r_b, r_ab, n, t, z):
    assert williams(r_a, r_b, r_ab, n).statistic == pytest.approx(t, abs=2e-3)
    assert steiger(r_a, r_b, r_ab, n).statistic == pytest.approx(z, abs=2e-3)


def test_williams_matches_a_published_p():
    t, p = williams(0.5447, 0.8000, 0.0729, 70)
    assert t == pytest.approx(-2.8114, abs=1e-3)
    assert p == pytest.approx(0.0065, abs=5e-5)


@pytest.mark.parametrize("test", [williams, steiger])
def test_dependent_correlations_change_sign_with_the_order_and_know_equality(test):
    ab, ba = test(0.9, 0.8, 0.7, 50), test(0.8, 0.9, 0.7, 50)
    assert ab.statistic == -ba.statistic
    assert ab.p == ba.p
    assert test(0.8, 0.8, 0.7, 50) == (0.0, 1.0)
    assert test(0.9, 0.8, 0.7, 500).p < ab.p


@pytest.mark.parametrize("test", [williams, steiger])
def test_dependent_correlations_reject_five_percent_of_null_cases(test):
    rng = np.random.default_rng(11)
    covariance = np.array([[1, 0.8, 0.8], [0.8, 1, 0.7], [0.8, 0.7, 1]])
    draws = correlated(rng, covariance, (2000, 80))  # (3, cases, images)
    draws = (draws - draws.mean(-1, keepdims=True)) / draws.std(-1, keepdims=True)
    mos, a, b = draws
    r_a, r_b, r_ab = (mos * a).mean(-1), (mos * b).mean(-1), (a * b).mean(-1)
    assert_five_percent([test(*r, 80).p for r in zip(r_a, r_b, r_ab, strict=True)])


@pytest.mark.parametrize("test", [williams, steiger])
def test_impossible_correlations_are_refused(test):
    with pytest.raises(ValueError, match="no data have the correlations"):
        test(0.9, -0.9, 0.9, 50)
    with pytest.raises(ValueError, match="at least 4 images, found 3"):
        test(0.9, 0.8, 0.7, 3)


def test_perfect_correlations_have_no_fisher_z():
    with pytest.raises(ValueError, match=r"inside \(-1, 1\)"):
        steiger(1.0, 0.5, 0.5, 30)
    assert williams(1.0, -1.0, -1.0, 30) == (np.inf, 0.0)


# --- residuals -------------------------------------------------------------------------------


def test_residual_f_by_hand():
    mos = np.array([1.0, 2.0, 3.0, 4.0])
    pred_a, pred_b = mos - [2, -2, 2, -2], mos - [1, 1, -1, -1]
    ratio, p = residual_f_test(mos, pred_a, pred_b)
    assert ratio == pytest.approx(4)
    assert p == pytest.approx(2 * stats.f.sf(4, 3, 3))
    assert residual_f_test(mos, pred_b, pred_a) == pytest.approx((0.25, p))


def test_residual_f_keeps_five_percent_only_for_independent_residuals():
    rng = np.random.default_rng(12)
    a, b = rng.normal(size=(2, 1000, 60))
    shared = rng.normal(size=(1000, 60))
    zeros = np.zeros(60)
    assert_five_percent([residual_f_test(zeros, *r).p for r in zip(a, b, strict=True)])
    both = list(zip(a + 2 * shared, b + 2 * shared, strict=True))
    assert np.mean([residual_f_test(zeros, *r).p <= 0.05 for r in both]) < 0.01
    assert_five_percent([pitman_morgan(zeros, *r).p for r in both])


def test_pitman_morgan_is_the_correlation_of_sum_and_difference():
    mos, a, b = np.random.default_rng(13).normal(size=(3, 30))
    theirs = stats.pearsonr((mos - a) + (mos - b), (mos - a) - (mos - b))
    t, p = pitman_morgan(mos, a, b)
    assert p == pytest.approx(theirs.pvalue)
    assert np.sign(t) == np.sign(theirs.statistic)
    assert pitman_morgan(mos, a, a) == (0.0, 1.0)


def test_residuals_that_do_not_vary_are_refused():
    mos = np.arange(4.0)
    with pytest.raises(ValueError, match="residuals that vary"):
        residual_f_test(mos, mos - 1, mos[::-1])


# --- many tests ------------------------------------------------------------------------------


def test_holm_agrees_with_statsmodels_in_any_order():
    p = np.random.default_rng(14).uniform(size=12) ** 3
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])


def test_holm_keeps_five_percent_for_the_family():
    p = np.random.default_rng(15).uniform(size=(2000, 10))
    assert_five_percent([holm(family).min() for family in p])


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match=r"expected p values in \[0, 1\]"):
        holm([0.5, 1.5])

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
    wilcoxon_splits,
)


def mean_error(mos, pred):
    return float(np.mean(mos - pred))


def assert_five_percent(p, n_errors=3.0):
    """Rejections at 5 % lie within so many standard errors of 5 %."""
    rate, error = np.mean(np.asarray(p) <= 0.05), np.sqrt(0.05 * 0.95 / len(p))
    assert abs(rate - 0.05) < n_errors * error, f"{rate:.4f} of {len(p)} null cases rejected"


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


def test_one_group_alone_has_no_interval():
    with pytest.raises(ValueError, match="found only 'a'"):
        bootstrap_ci(np.arange(4.0), np.ones(4), rmse, groups=["a"] * 4)


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


def test_corrected_t_refuses_an_empty_set():
    with pytest.raises(ValueError, match="found 8 and 0"):
        nadeau_bengio([1, 2], [2, 3], 8, 0)


# --- many tests ------------------------------------------------------------------------------


def test_holm_agrees_with_statsmodels_in_any_order():
    p = np.random.default_rng(14).uniform(size=12) ** 3
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])


def test_holm_keeps_five_percent_for_the_family():
    p = np.random.default_rng(15).uniform(size=(2000, 10))
    assert_five_percent([holm(family).min() for family in p])

"""Tests over splits and over many comparisons: by hand, other implementations, simulation."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from iqa_utils.evaluate import holm, nadeau_bengio


def assert_five_percent(p, n_errors=3.0):
    """Rejections at 5 % lie within so many standard errors of 5 %."""
    rate, error = np.mean(np.asarray(p) <= 0.05), np.sqrt(0.05 * 0.95 / len(p))
    assert abs(rate - 0.05) < n_errors * error, f"{rate:.4f} of {len(p)} null cases rejected"


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
        corrected.append(nadeau_bengio(parts, np.zeros(10), 80, 20)[1])
        plain.append(stats.ttest_1samp(parts, 0).pvalue)
    assert_five_percent(corrected)
    assert np.mean(np.asarray(plain) <= 0.05) > 0.2


def test_a_difference_without_spread_is_certain_and_no_difference_is_none():
    ones = np.ones(5)
    assert nadeau_bengio(ones, 0 * ones, 8, 2) == (np.inf, 0.0)
    assert nadeau_bengio(0 * ones, ones, 8, 2) == (-np.inf, 0.0)
    assert nadeau_bengio(ones, ones, 8, 2) == (0.0, 1.0)


def test_corrected_t_refuses_an_empty_set():
    with pytest.raises(ValueError, match="found 8 and 0"):
        nadeau_bengio([1, 2], [2, 3], 8, 0)


def test_holm_agrees_with_statsmodels_in_any_order():
    p = np.random.default_rng(14).uniform(size=12) ** 3
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])


def test_holm_keeps_five_percent_for_the_family():
    p = np.random.default_rng(15).uniform(size=(2000, 10))
    assert_five_percent([holm(family).min() for family in p])

"""Metrics against formulas written out by hand and against SciPy's own."""

from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import pearsonr, spearmanr

from iqa_utils import metrics

MOS = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
PRED = np.array([1.5, 1.0, 3.5, 5.0, 4.0])


@pytest.fixture
def noisy() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    mos = rng.uniform(5, 95, 300)
    return mos, mos + rng.normal(0, 12, 300)


def test_hand_computed_values_of_five_images():
    # squared errors .25 1 .25 1 1; rank differences 1 1 0 1 1; 2 of the 10 pairs are discordant
    assert metrics.mse(MOS, PRED) == pytest.approx(0.7)
    assert metrics.rmse(MOS, PRED) == pytest.approx(np.sqrt(0.7))
    assert metrics.mae(MOS, PRED) == pytest.approx(0.8)
    assert metrics.srcc(MOS, PRED) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert metrics.krcc(MOS, PRED) == pytest.approx(0.6)
    assert metrics.plcc(MOS, PRED) == pytest.approx(9 / np.sqrt(10 * 11.5))


def test_correlations_agree_with_scipy_when_there_are_ties(noisy):
    mos, pred = np.round(noisy[0], -1), np.round(noisy[1], -1)
    assert metrics.srcc(mos, pred) == pytest.approx(spearmanr(mos, pred).statistic, abs=1e-12)
    assert metrics.plcc(mos, pred) == pytest.approx(pearsonr(mos, pred).statistic, abs=1e-12)


def test_kendall_counts_pairs_and_corrects_for_ties():
    mos, pred = np.array([1, 1, 2, 3, 3, 4.0]), np.array([1, 2, 2, 2, 5, 3.0])
    signs = [
        (np.sign(mos[i] - mos[j]), np.sign(pred[i] - pred[j])) for i, j in combinations(range(6), 2)
    ]
    a, b = np.array(signs).T
    expected = (a * b).sum() / np.sqrt((a != 0).sum() * (b != 0).sum())
    assert metrics.krcc(mos, pred) == pytest.approx(expected)


def test_rank_metrics_ignore_any_increasing_map_and_plcc_any_straight_line(noisy):
    mos, pred = noisy
    assert metrics.srcc(mos, np.exp(pred / 30)) == pytest.approx(metrics.srcc(mos, pred))
    assert metrics.krcc(mos, np.exp(pred / 30)) == pytest.approx(metrics.krcc(mos, pred))
    assert metrics.plcc(mos, 3 * pred - 7) == pytest.approx(metrics.plcc(mos, pred))
    assert metrics.srcc(mos, -pred) == pytest.approx(-metrics.srcc(mos, pred))


@pytest.mark.parametrize("name", ["srcc", "plcc", "krcc"])
def test_a_constant_prediction_has_no_correlation(name):
    assert np.isnan(getattr(metrics, name)(MOS, np.full(5, 0.1)))


@pytest.mark.parametrize(
    ("mos", "pred", "message"),
    [
        (MOS, PRED[:4], r"\(5,\) and \(4,\)"),
        (MOS[:, None], PRED[:, None], r"shape \(N,\)"),
        (MOS[:1], PRED[:1], "at least 2"),
        (MOS, [1, 2, np.nan, 4, 5], "pred must be finite, 1 of 5"),
    ],
)
def test_bad_pairs_are_refused(mos, pred, message):
    with pytest.raises(ValueError, match=message):
        metrics.srcc(mos, pred)


@pytest.mark.parametrize("truth", [(90.0, 5.0, 0.4, 0.15), (60.0, 8.0, 0.5, 15.0, 10.0)])
def test_the_logistic_fit_recovers_the_curve_that_made_the_scores(truth):
    pred = np.linspace(0, 1, 80)
    fit = metrics.fit_logistic(metrics.logistic(pred, truth), pred, len(truth))
    np.testing.assert_allclose(fit.parameters, truth, rtol=2e-3)
    assert fit.rmse < 1e-3
    assert fit.plcc > 0.999999


def test_the_five_parameter_map_is_the_published_formula():
    x, b = np.array([0.2, 0.7]), (3.0, 4.0, 0.5, 2.0, 1.0)
    expected = b[0] * (0.5 - 1 / (1 + np.exp(b[1] * (x - b[2])))) + b[3] * x + b[4]
    np.testing.assert_allclose(metrics.logistic(x, b), expected)


@pytest.mark.parametrize("n_parameters", [4, 5])
def test_no_start_of_scipys_curve_fit_beats_the_multi_start_fit(noisy, n_parameters):
    mos, pred = noisy
    ours = metrics.fit_logistic(mos, pred, n_parameters)
    starts = {4: (95, 5, 50, 15), 5: (60, 0.05, 50, 0.5, 20)}
    curve, _ = curve_fit(
        lambda x, *b: metrics.logistic(x, b), pred, mos, p0=starts[n_parameters], maxfev=20000
    )
    theirs = np.sqrt(np.mean((metrics.logistic(pred, curve) - mos) ** 2))
    assert ours.rmse <= theirs * (1 + 1e-6)
    assert len(ours.start_rmse) == 4
    assert min(ours.start_rmse) == pytest.approx(ours.rmse, rel=1e-6)


def test_five_parameters_hold_the_straight_line_so_plcc_cannot_fall(noisy):
    mos, pred = noisy
    assert metrics.plcc_logistic(mos, pred) >= metrics.plcc(mos, pred) - 1e-9
    assert metrics.plcc_logistic(mos, -pred) == pytest.approx(
        metrics.plcc_logistic(mos, pred), abs=1e-4
    )


def test_the_fit_does_not_depend_on_the_units_of_the_prediction(noisy):
    mos, pred = noisy
    reference = metrics.fit_logistic(mos, pred, 4).plcc
    assert metrics.fit_logistic(mos, pred * 1e-3 + 7, 4).plcc == pytest.approx(reference, abs=1e-6)


@pytest.mark.parametrize("n_parameters", [4, 5])
def test_predictions_of_two_values_need_no_curve(n_parameters):
    mos, pred = np.array([1.0, 2, 3, 3, 5, 6]), np.array([0.0, 0, 0, 1, 1, 1])
    assert metrics.plcc_logistic(mos, pred, n_parameters) == pytest.approx(metrics.plcc(mos, pred))


def test_the_parameters_give_what_the_search_found_even_far_out_on_a_tail():
    for seed in (8, 12, 19):  # noise, where the best centre can lie three SD beyond the data
        pred, mos = np.random.default_rng(seed).normal(size=(2, 40))
        fit = metrics.fit_logistic(mos, pred, 5)
        assert fit.rmse == pytest.approx(min(fit.start_rmse), rel=1e-3)  # digits of expit


def test_the_fit_tells_whether_the_data_would_go_on_to_a_step():
    pred = np.linspace(0, 1, 40)
    assert metrics.fit_logistic(np.where(pred > 0.5, 1.0, 0.0), pred, 4).at_bound
    assert not metrics.fit_logistic(metrics.logistic(pred, (9, 1, 0.4, 0.2)), pred, 4).at_bound


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MOS, PRED, 3), "4 or 5, got 3"),
        ((MOS, PRED, 5), "more than 5 scores, got 5"),
        ((MOS, np.ones(5), 4), "constant"),
    ],
)
def test_impossible_fits_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.fit_logistic(*arguments)


def test_ranges_are_closed_on_the_left_and_the_last_on_both_sides():
    index = metrics.range_index([0, 19.99, 20, 40, 60, 99, 100], (0, 20, 40, 60, 80, 100))
    assert index.tolist() == [0, 0, 1, 2, 3, 4, 4]


def test_error_per_range_pools_to_the_total():
    mos, pred = np.array([5, 15, 25, 30, 35, 90.0]), np.array([6, 18, 25, 34, 30, 80.0])
    by_range = metrics.per_range(mos, pred, metrics.rmse, (0, 20, 40, 100))
    assert by_range["0-20"] == pytest.approx(np.sqrt(5))
    assert by_range["20-40"] == pytest.approx(np.sqrt(41 / 3))
    assert np.isnan(by_range["40-100"])  # one image is not a range
    pooled = (2 * by_range["0-20"] ** 2 + 3 * by_range["20-40"] ** 2 + 100) / 6
    assert metrics.mse(mos, pred) == pytest.approx(pooled)


@pytest.mark.parametrize("edges", [[0.0], [0.0, 60.0, 60.0], [100.0, 0.0]])
def test_edges_that_do_not_increase_are_refused(edges):
    with pytest.raises(ValueError, match="edges must increase and be two or more"):
        metrics.range_index([50.0], edges)


def test_scores_outside_the_edges_are_refused():
    with pytest.raises(ValueError, match=r"scores span \[55, 72\], edges only \[1, 3\]"):
        metrics.per_range([55, 72], [60, 70], metrics.mae, (1, 3))


def test_size_weighted_mean_of_two_sets():
    assert metrics.size_weighted({"a": 0.9, "b": 0.6}, {"b": 200, "a": 100}) == pytest.approx(0.7)
    with pytest.raises(ValueError, match=r"values name \['a'\], sizes name \['b'\]"):
        metrics.size_weighted({"a": 1.0}, {"b": 1})
    with pytest.raises(ValueError, match=r"sizes must be positive, got \{'a': -1, 'b': 3\}"):
        metrics.size_weighted({"a": 1.0, "b": 0.5}, {"a": -1, "b": 3})


def test_rounding_never_lifts_a_correlation_above_one():
    scores = [np.random.default_rng(seed).normal(size=7) for seed in range(200)]
    found = np.array([metrics.plcc(one, one) for one in scores])
    assert found.max() == 1.0
    assert found.min() > 1 - 1e-12

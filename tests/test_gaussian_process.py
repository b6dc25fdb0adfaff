"""The exact Gaussian process against scikit-learn and against refitting by hand."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime
from scipy.spatial.distance import cdist
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from iqa_utils.regression import gaussian_process
from iqa_utils.regression.gaussian_process import (
    _evaluate,
    calibration,
    cross_validated_residuals,
    fit_gaussian_process,
    matern52,
    search_noise,
)


def made_data(n=60, seed=0, noise=0.2):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 3))
    mos = 50 + 10 * np.sin(features[:, 0]) + 5 * features[:, 1] + 10 * noise * rng.normal(size=n)
    return features, mos


def made_versions(n_references, n_versions, noise, width=1000, seed=0):
    """Make wide features of references in versions, scored by how far a version is distorted."""
    rng = np.random.default_rng(seed)
    references = rng.normal(size=(n_references, 1, width))
    level = rng.uniform(size=(n_references, n_versions))
    features = references + 0.3 * level[:, :, None] * rng.normal(size=(n_versions, width))
    features += 0.02 * rng.normal(size=features.shape)
    mos = 30 * level * rng.uniform(0.5, 1, size=n_versions)
    mos += noise * mos.std() * rng.normal(size=mos.shape)
    return features.reshape(-1, width), mos.ravel()


def oracle(features, mos, **options):
    kernel = ConstantKernel(1.0, (1e-6, 1e6)) * Matern(1.0, (1e-4, 1e5), nu=2.5)
    kernel += WhiteKernel(0.1, (1e-8, 1e3))
    model = GaussianProcessRegressor(kernel, alpha=0.0, normalize_y=True, **options)
    return model.fit(features, mos)


def test_matern_equals_scikit_learn():
    features, _ = made_data(n=20)
    ours, _ = matern52(torch.as_tensor(cdist(features, features)), 0.7)
    np.testing.assert_allclose(ours, Matern(0.7, nu=2.5)(features), atol=1e-12)


def test_the_printed_kernel_is_another_function():
    r, length = 1.0, 2.0
    ours, _ = matern52(torch.tensor([r], dtype=torch.float64), length)
    scaled = math.sqrt(5) * r / length
    printed = (1 + scaled + 5 * r**2 / (3 * length) ** 2) * math.exp(-scaled)
    assert float(ours) - printed == pytest.approx((5 / 12 - 5 / 36) * math.exp(-scaled))


def test_type_two_likelihood_reaches_the_optimum_of_scikit_learn():
    features, mos = made_data()
    model = oracle(features, mos)
    process = fit_gaussian_process(cdist(features, features), mos, constant="sample_mean")
    # scikit-learn standardises the scores: its density is per standard deviation
    likelihood = model.log_marginal_likelihood_value_ - len(mos) * math.log(mos.std())
    assert process.log_likelihood == pytest.approx(likelihood, rel=1e-7)
    new = np.random.default_rng(1).normal(size=(15, 3))
    mean, sd = process.predict(cdist(new, features))
    expected_mean, expected_sd = model.predict(new, return_std=True)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-3 * mos.std())
    np.testing.assert_allclose(sd, expected_sd, rtol=1e-3)


@pytest.mark.parametrize(("n", "width"), [(1000, 64), (300, 64)])
def test_a_fit_evaluates_the_likelihood_at_most_15_times(n, width, monkeypatch):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n, width))
    mos = np.sin(features[:, 0]) + 0.5 * features[:, 1] + 0.3 * rng.normal(size=n)
    values = []

    def counted(distances, *options):
        process, gradient = _evaluate(distances, *options)
        if len(distances) == n:  # those of the few that choose the start cost next to nothing
            values.append(process.log_likelihood)
        return process, gradient

    monkeypatch.setattr(gaussian_process, "_evaluate", counted)
    process = fit_gaussian_process(cdist(features, features), mos)
    assert 3 < len(values) <= 15
    assert process.log_likelihood == max(values)


def test_a_function_that_changes_over_short_distances_is_not_taken_for_noise():
    rng = np.random.default_rng(3)
    x = rng.uniform(size=(60, 2))
    mos = np.sin(6 * np.pi * x[:, 0]) + np.cos(6 * np.pi * x[:, 1]) + 0.3 * rng.normal(size=60)
    distances = cdist(x, x)
    typical = np.median(distances[distances > 0])
    process = fit_gaussian_process(distances, mos)
    assert process.length < 0.5 * typical
    assert process.signal_sd > process.noise_sd


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n_references", [10, 32])  # 60 and 320 images
@pytest.mark.parametrize("noise_share", [None, 0.3])
def test_no_point_of_a_grid_beats_the_top_that_is_found(noise, n_references, noise_share):
    features, mos = made_versions(n_references, n_references // 3 + 3, noise)
    distances = cdist(features, features)
    held = noise_share and noise_share * mos.std()
    process = fit_gaussian_process(distances, mos, noise_sd=held)
    lengths = np.median(distances) * np.array([0.03, 0.05, 0.1, 0.3, 1, 3, 10, 20])
    pairs = itertools.product(lengths, [1e-6, 1e-5, 1e-4, 1e-3, 0.1, 0.3, 1, 10, 1e6])
    data = torch.as_tensor(distances), torch.as_tensor(mos)
    processes = [_evaluate(*data, np.log(pair), held, "least_squares")[0] for pair in pairs]
    grid = [process.log_likelihood for process in processes]
    assert process.log_likelihood > max(grid)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_best_top_of_few_images_need_not_be_that_of_all(seed):
    rng = np.random.default_rng(seed)
    features, weights = rng.normal(size=(700, 100)), rng.normal(size=100) / 10
    mos = np.sin(2 * features @ weights) + 0.5 * rng.normal(size=700)
    process = fit_gaussian_process(cdist(features, features), mos)
    # what the best top of 200 images alone leads to
    assert process.log_likelihood > {0: -914.0, 1: -911.3}[seed] + 5


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_the_top_is_as_high_as_that_of_scikit_learn_with_restarts(noise):
    features, mos = made_versions(10, 6, noise)
    process = fit_gaussian_process(cdist(features, features), mos, constant="sample_mean")
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        model = oracle(features, mos, n_restarts_optimizer=20, random_state=0)
    likelihood = model.log_marginal_likelihood_value_ - len(mos) * math.log(mos.std())
    assert process.log_likelihood > likelihood - 1e-3


def test_predictions_equal_scikit_learn_at_the_same_parameters():
    features, mos = made_data()
    process = fit_gaussian_process(cdist(features, features), mos, constant="sample_mean")
    scale = mos.std()
    kernel = ConstantKernel((process.signal_sd / scale) ** 2) * Matern(process.length, nu=2.5)
    kernel += WhiteKernel((process.noise_sd / scale) ** 2)
    model = GaussianProcessRegressor(kernel, alpha=0.0, normalize_y=True, optimizer=None)
    expected = model.fit(features, mos).predict(features[:9] + 0.1, return_std=True)
    ours = process.predict(cdist(features[:9] + 0.1, features))
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_the_constant_is_that_of_generalised_least_squares_by_hand():
    features, mos = made_data()
    mos = mos + 4 * features[:, 2]  # images that lie close together count less
    distances = cdist(features, features)
    process = fit_gaussian_process(distances, mos)
    matrix = matern52(torch.as_tensor(distances), process.length)[0].numpy()
    matrix += (process.noise_sd / process.signal_sd) ** 2 * np.eye(len(mos))
    weights = np.linalg.solve(matrix, np.ones(len(mos)))
    assert process.mean == pytest.approx(weights @ mos / weights.sum())
    assert abs(process.mean - mos.mean()) > 0.1
    np.testing.assert_allclose(process.alpha, np.linalg.solve(matrix, mos - process.mean))
    plain = fit_gaussian_process(distances, mos, constant="sample_mean")
    assert plain.mean == pytest.approx(mos.mean())
    assert plain.log_likelihood < process.log_likelihood  # the constant maximises it


@pytest.mark.parametrize("seed", range(3))
def test_the_two_constants_move_predictions_by_less_than_a_tenth_of_the_spread(seed):
    features, mos = made_data(n=120, seed=seed)
    mos = mos + 4 * features[:, 2]
    known, new = cdist(features[:60], features[:60]), cdist(features[60:], features[:60])
    means = [
        fit_gaussian_process(known, mos[:60], constant=constant).predict(new)[0]
        for constant in ("least_squares", "sample_mean")
    ]
    assert 0.01 < np.abs(means[0] - means[1]).max() / mos.std() < 0.1


def test_predictions_equal_universal_kriging_with_one_unknown_constant():
    features, mos = made_data(n=30)
    distances = cdist(features, features)
    process = fit_gaussian_process(distances, mos)
    new = cdist(features[:5] + 0.4, features)
    kernel = matern52(torch.as_tensor(distances), process.length)[0].numpy()
    kernel += (process.noise_sd / process.signal_sd) ** 2 * np.eye(30)
    # weights sum to one by a Lagrange multiplier: another derivation of the same predictor
    system = np.block([[kernel, np.ones((30, 1))], [np.ones((1, 30)), np.zeros((1, 1))]])
    right = np.vstack([matern52(torch.as_tensor(new), process.length)[0].numpy().T, np.ones(5)])
    expected = np.linalg.solve(system, right)[:30].T @ mos
    np.testing.assert_allclose(process.predict(new)[0], expected)


@pytest.mark.parametrize("constant", ["least_squares", "sample_mean"])
@pytest.mark.parametrize("noise_sd", [None, 3.0])
def test_the_gradient_is_that_of_finite_differences(noise_sd, constant):
    features, mos = made_data(n=25)
    distances = torch.as_tensor(cdist(features, features))
    data = distances, torch.as_tensor(mos)

    def value(theta):
        return _evaluate(*data, theta, noise_sd, constant)[0].log_likelihood

    theta = np.array([0.3, -1.0])
    numeric = approx_fprime(theta, value, 1e-6)
    np.testing.assert_allclose(_evaluate(*data, theta, noise_sd, constant)[1](), numeric, rtol=1e-4)


def test_held_noise_is_kept_and_fits_no_better_than_free_noise():
    features, mos = made_data()
    distances = cdist(features, features)
    free = fit_gaussian_process(distances, mos)
    held = fit_gaussian_process(distances, mos, noise_sd=3 * free.noise_sd)
    assert held.noise_sd == pytest.approx(3 * free.noise_sd)
    assert held.log_likelihood < free.log_likelihood
    same = fit_gaussian_process(distances, mos, noise_sd=free.noise_sd)
    assert same.log_likelihood == pytest.approx(free.log_likelihood, abs=1e-4)


def test_cross_validated_residuals_equal_refitting_the_weights():
    features, mos = made_data(n=30)
    distances, fold = cdist(features, features), np.arange(30) % 5
    process = fit_gaussian_process(distances, mos)
    matrix = matern52(torch.as_tensor(distances), process.length)[0].numpy()
    matrix = matrix + (process.noise_sd / process.signal_sd) ** 2 * np.eye(30)
    expected = np.empty(30)
    for k in range(5):
        train, test = fold != k, fold == k
        weights = np.linalg.solve(matrix[np.ix_(train, train)], mos[train] - process.mean)
        expected[test] = mos[test] - process.mean - matrix[np.ix_(test, train)] @ weights
    np.testing.assert_allclose(cross_validated_residuals(process, fold), expected, atol=1e-8)


def test_the_noise_search_ends_near_the_noise_that_was_put_in():
    features, mos = made_data(n=80, noise=0.4)
    search = search_noise(cdist(features, features), mos, n_trials=12, seed=0)
    assert list(search.trials.columns) == ["noise_sd", "loss", "best"]
    assert len(search.trials) == 12
    assert (search.trials["best"].diff().dropna() <= 0).all()
    assert 2 < search.process.noise_sd < 8  # 4 was put in


def test_the_search_fits_each_noise_once_and_keeps_the_best(monkeypatch):
    features, mos = made_data(n=80, noise=0.4)
    fitted = []

    def counted(*args, **options):
        fitted.append(fit_gaussian_process(*args, **options))
        return fitted[-1]

    monkeypatch.setattr(gaussian_process, "fit_gaussian_process", counted)
    search = search_noise(cdist(features, features), mos, n_trials=6, seed=0)
    assert len(fitted) == 1 + 6  # the likelihood's own, and one per trial
    assert search.by_likelihood is fitted[0]
    assert search.process is fitted[1 + search.trials["loss"].idxmin()]


def test_predictive_intervals_of_a_true_process_cover_as_often_as_they_say():
    features, mos = made_data(n=400, seed=3)
    process = fit_gaussian_process(cdist(features[:200], features[:200]), mos[:200])
    mean, sd = process.predict(cdist(features[200:], features[:200]))
    table = calibration(mos[200:], mean, sd)
    assert np.abs(table["coverage"] - table["level"]).max() < 0.1
    too_sure = calibration(mos[200:], mean, sd / 3)
    assert too_sure.loc[too_sure["level"] == 0.95, "coverage"].item() < 0.6


def test_calibration_counts_by_hand():
    table = calibration(np.array([0.0, 1.0, 3.0]), np.zeros(3), np.ones(3)).set_index("level")
    np.testing.assert_allclose(table.loc[[0.5, 0.95], "coverage"], [1 / 3, 2 / 3])
    np.testing.assert_allclose(table.loc[[0.5, 0.95], "half_width"], [0.67449, 1.95996], atol=1e-5)


def test_duplicate_images_are_handled_by_the_noise():
    features, mos = made_data(n=40)
    features[1], mos[1] = features[0], mos[0] + 5
    process = fit_gaussian_process(cdist(features, features), mos)
    pair, _ = process.predict(cdist(features[:2], features))
    assert pair[0] == pytest.approx(pair[1])


def test_a_single_score_that_differs_is_fitted_where_all_that_choose_the_start_are_equal():
    features, mos = made_data(n=400)[0], np.zeros(400)
    mos[np.random.default_rng(0).permutation(400)[-1]] = 1.0
    process = fit_gaussian_process(cdist(features, features), mos)
    assert process.noise_sd**2 + process.signal_sd**2 == pytest.approx(mos.var(), rel=0.1)


def test_distances_that_no_features_have_are_refused():
    rng = np.random.default_rng(0)
    wrong = rng.uniform(0.01, 10, size=(30, 30))
    wrong = np.triu(wrong, 1) + np.triu(wrong, 1).T
    with pytest.raises(ValueError, match="not Euclidean"):
        fit_gaussian_process(wrong, rng.normal(size=30), noise_sd=1e-3)


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        (np.zeros((5, 5)), "same features"),
        (np.ones((5, 5)), "zeros on the diagonal"),
        (np.ones((5, 4)), "must have shape"),
        (np.where(np.eye(5) == 1, 0, np.nan), "finite"),
        (np.where(np.eye(5) == 1, 0, np.inf), "finite"),
        (np.triu(np.ones((5, 5)), 1), "symmetric"),
        (np.eye(5) - 1, "at least 0"),
    ],
)
def test_malformed_distances_are_refused(distances, message):
    with pytest.raises(ValueError, match=message):
        fit_gaussian_process(distances, np.arange(5.0))


def test_fewer_references_than_folds_is_refused():
    features = np.random.default_rng(0).normal(size=(12, 3))
    with pytest.raises(ValueError, match="5 folds need 2 to 3"):
        search_noise(cdist(features, features), features[:, 0], groups=np.repeat([0, 1, 2], 4))


def test_images_that_show_no_noise_among_few_do_not_end_the_search_in_noise_alone():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(700, 40))
    copies = rng.choice(686, 14)  # among 200 images there is hardly a pair that shows the noise
    features[686:] = features[copies] + 0.01 * rng.normal(size=(14, 40))
    mos = np.tanh(features[:, :3].sum(axis=1) / 2) + rng.normal(size=700)
    process = fit_gaussian_process(cdist(features, features), mos)
    assert process.log_likelihood > -1060  # noise alone has -1105
    assert process.noise_sd < 0.95 * mos.std()

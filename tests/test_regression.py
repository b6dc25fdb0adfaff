"""Ridge, Gram SVR and the exact Gaussian process against independent implementations."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from iqa_utils.regression import fold_numbers, ridge_cv


def made_data(n=60, d=8, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, d)) * rng.uniform(0.1, 5, d) + rng.normal(size=d)
    mos = np.tanh(features[:, 0] / 3) + 0.2 * features[:, 1] + noise * rng.normal(size=n)
    return features, mos


@pytest.mark.parametrize("d", [8, 90])
def test_ridge_equals_scikit_learn_on_standardised_features_wide_or_narrow(d):
    features, mos = made_data(d=d)
    model = ridge_cv(features, mos, lambdas=[3.0])
    z = (features - features.mean(0)) / features.std(0)
    oracle = SklearnRidge(alpha=3.0).fit(z, mos)
    np.testing.assert_allclose(model.predict(features), oracle.predict(z), atol=1e-9)


def test_ridge_picks_the_lambda_with_the_smallest_cross_validated_error():
    features, mos = made_data(n=50, d=40, noise=1.0)
    model = ridge_cv(features, mos, lambdas=[1e-3, 1e2, 1e6])
    fold = fold_numbers(50)
    errors = []
    for penalty in model.lambdas:
        held_out = np.concatenate(
            [
                ridge_cv(features[fold != k], mos[fold != k], lambdas=[penalty]).predict(
                    features[fold == k]
                )
                - mos[fold == k]
                for k in range(5)
            ]
        )
        errors.append(np.sqrt(np.mean(held_out**2)))
    np.testing.assert_allclose(model.cv_rmse, errors, rtol=1e-9)
    assert model.penalty == model.lambdas[int(np.argmin(errors))]


def test_a_constant_feature_column_gets_no_weight_and_changes_nothing():
    features, mos = made_data()
    wider = np.insert(features, 3, 0.1 + 1e5, axis=1)
    model = ridge_cv(wider, mos, lambdas=[1.0])
    assert model.weights[3] == 0
    plain = ridge_cv(features, mos, lambdas=[1.0])
    np.testing.assert_allclose(model.predict(wider), plain.predict(features), atol=1e-8)


def test_features_that_are_not_finite_are_refused_by_row():
    features, mos = made_data()
    features[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"1 of 60 images are not: rows \[7\]"):
        ridge_cv(features, mos)


def test_fewer_images_than_folds_is_refused():
    features, mos = made_data(n=4)
    with pytest.raises(ValueError, match="5 folds need 2 to 4"):
        ridge_cv(features, mos)


def test_equal_scores_are_refused():
    features, _ = made_data()
    with pytest.raises(ValueError, match="two different scores"):
        ridge_cv(features, np.ones(60))


def test_a_content_is_never_cut_by_folds():
    groups = np.repeat(np.arange(12), 5)
    fold = fold_numbers(60, n_folds=5, groups=groups, seed=3)
    assert all(len(set(fold[groups == g])) == 1 for g in range(12))
    assert sorted(set(fold)) == [0, 1, 2, 3, 4]

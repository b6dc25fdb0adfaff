"""Ridge, Gram SVR and the exact Gaussian process against independent implementations."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.svm import SVR

from iqa_utils.features.grams import gram_from_panels
from iqa_utils.regression import fold_numbers, gram_svr, ridge_cv


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
    errors, lambdas = [], [1e-3, 1e2, 1e6]
    for penalty in lambdas:
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
    assert model.penalty == lambdas[int(np.argmin(errors))]


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


def test_gram_svr_equals_the_linear_svr_on_the_features():
    features, mos = made_data(n=80, d=300)
    train, test = np.arange(60), np.arange(60, 80)
    linear = SVR(kernel="linear", C=0.5, epsilon=0.01).fit(features[train], mos[train])
    gram = features @ features.T
    model = gram_svr(gram[:60, :60], mos[train], c=0.5, epsilon=0.01)
    difference = model.model.predict(gram[60:, :60]) - linear.predict(features[test])
    assert np.abs(difference).max() < 1e-10 * mos.std()


def test_gram_svr_in_single_precision_stays_within_a_thousandth_of_a_score_sd():
    features, mos = made_data(n=80, d=300)
    narrow = features.astype(np.float32)
    gram = (narrow @ narrow.T).astype(np.float64)
    linear = SVR(kernel="linear", C=0.5, epsilon=0.01).fit(features[:60], mos[:60])
    model = gram_svr(gram[:60, :60], mos[:60], c=0.5, epsilon=0.01)
    difference = model.model.predict(gram[60:, :60]) - linear.predict(features[60:])
    assert 0 < np.abs(difference).max() < 1e-3 * mos.std()


def test_svr_defaults_are_those_of_matlab():
    features, mos = made_data()
    model = gram_svr(features @ features.T, mos)
    assert model.model.C == 1.0
    assert model.model.epsilon == pytest.approx(
        (np.quantile(mos, 0.75) - np.quantile(mos, 0.25)) / 13.49
    )


def test_svr_picks_the_constraint_with_the_smallest_cross_validated_error():
    features, mos = made_data(n=50, d=40, noise=1.0)
    model = gram_svr(features @ features.T, mos, c=[1e-5, 1e-3, 1.0])
    assert [1e-5, 1e-3, 1.0][int(model.cv_rmse.argmin())] == model.model.C
    assert np.ptp(model.cv_rmse) > 0.01
    one = gram_svr(features @ features.T, mos, c=1e-3, cross_validate=True)
    assert one.cv_rmse == model.cv_rmse[1]


def test_choosing_a_constraint_from_one_gram_matrix_equals_a_grid_search_on_the_features():
    features, mos = made_data(n=80, d=300, noise=1.0)
    constraints, epsilon = [1e-5, 1e-4, 1e-2], 0.1
    search = GridSearchCV(
        SVR(kernel="linear", epsilon=epsilon), {"C": constraints},
        scoring="neg_mean_squared_error", cv=PredefinedSplit(fold_numbers(60)),
    ).fit(features[:60], mos[:60])  # fmt: skip
    gram = features @ features.T
    model = gram_svr(gram[:60, :60], mos[:60], c=constraints, epsilon=epsilon)
    assert search.best_params_["C"] == model.model.C
    np.testing.assert_allclose(
        model.cv_rmse**2, -search.cv_results_["mean_test_score"], rtol=1e-9
    )  # folds of 12 images each
    difference = model.model.predict(gram[60:, :60]) - search.predict(features[60:])
    assert np.abs(difference).max() < 1e-10 * mos.std()


def test_a_fit_that_reaches_its_limit_of_steps_says_so(monkeypatch):
    features, mos = made_data(n=60, d=40, noise=1.0)
    gram = features @ features.T
    assert gram_svr(gram, mos, c=1.0).converged
    monkeypatch.setattr("iqa_utils.regression.MAX_ITERATIONS", 5)
    assert not gram_svr(gram, mos, c=1.0).converged


def test_constant_feature_columns_change_no_svr_and_constant_features_predict_one_score():
    features, mos = made_data()
    wider = np.hstack([features, np.full((60, 3), 7.0)])
    models = [gram_svr(gram_from_panels([x]), mos) for x in (features, wider)]
    preds = [model.model.predict(gram_from_panels([features])) for model in models]
    np.testing.assert_allclose(*preds, atol=1e-9)
    flat = np.zeros((60, 60))  # nothing but constant columns: no image differs from another
    assert np.ptp(gram_svr(flat, mos).model.predict(flat)) == 0


def test_fewer_contents_than_folds_is_refused_for_the_gram_svr():
    features, mos = made_data(n=12)
    with pytest.raises(ValueError, match="5 folds need 2 to 3"):
        gram_svr(features @ features.T, mos, c=[0.1, 1.0], groups=np.repeat([0, 1, 2], 4))


def test_duplicate_images_change_nothing_that_matters():
    features, mos = made_data()
    twice, scores = np.vstack([features, features[:5]]), np.append(mos, mos[:5])
    gram = twice @ twice.T  # rank deficient, still positive semidefinite
    assert np.isfinite(gram_svr(gram, scores).model.predict(gram)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gram: gram[:-1], "inconsistent numbers of samples"),
        (lambda gram: gram[:, :-1], "must be a square matrix"),
        (lambda gram: np.where(np.eye(60) == 1, np.nan, gram), "contains NaN"),
    ],
)
def test_a_malformed_gram_matrix_is_refused(change, message):
    features, mos = made_data()
    with pytest.raises(ValueError, match=message):
        gram_svr(change(features @ features.T), mos)

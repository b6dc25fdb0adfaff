"""Regression of scores on fixed features: ridge, linear SVR and an exact Gaussian process.

A linear SVR sees features only through inner products and a Matern Gaussian process only through
distances, so both take (N, N) matrices from :mod:`iqa_utils.features` and never the features
themselves; ridge takes the features.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVR

MAX_ITERATIONS = 1_000_000  # of one fit of an SVR; from memory, MATLAB's default
LAMBDAS = tuple(float(x) for x in np.logspace(-2, 7, 19))


def check_features(features: ArrayLike, *, n_images: int | None = None) -> np.ndarray:
    """Return features as an array, or refuse those that no regression can use.

    Args:
        features: Shape (N, D).
        n_images: Expected N.

    Returns:
        The same array; no copy where it is one already.

    Raises:
        ValueError: If the shape is wrong or a value is not finite; the images are named by row.
    """
    features = np.asarray(features)
    if features.ndim != 2 or (n_images is not None and len(features) != n_images):
        expected = "(N, D)" if n_images is None else f"({n_images}, D)"
        raise ValueError(f"features must have shape {expected}, got {features.shape}")
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise ValueError(
            f"features must be finite, {len(bad)} of {len(features)} images are not: rows "
            f"{bad[:5].tolist()}"
        )
    return features


def check_scores(mos: ArrayLike) -> np.ndarray:
    """Return scores as float64 of shape (N,), or refuse them.

    Raises:
        ValueError: If they are not one finite number an image, or all equal.
    """
    mos = np.asarray(mos, dtype=np.float64)
    if mos.ndim != 1 or not np.isfinite(mos).all():
        raise ValueError(f"mos must be finite and of shape (N,), got shape {mos.shape}")
    if len(mos) < 2 or np.ptp(mos) == 0:
        raise ValueError(f"mos must hold at least two different scores, got {len(mos)} equal ones")
    return mos


def fold_numbers(
    n_images: int, *, n_folds: int = 5, seed: int = 0, groups: ArrayLike | None = None
) -> np.ndarray:
    """Deal images into folds of nearly equal size, contents kept together.

    Args:
        n_images: N.
        n_folds: Folds, at least 2.
        seed: Decides the deal.
        groups: Content of each image, shape (N,); a content is never cut. None: each its own.

    Returns:
        Fold of each image, shape (N,), values 0 to n_folds - 1.

    Raises:
        ValueError: If there are fewer contents than folds.
    """
    groups = np.arange(n_images) if groups is None else np.asarray(groups)
    if groups.shape != (n_images,):
        raise ValueError(f"groups must have shape ({n_images},), got {groups.shape}")
    contents, content_of = np.unique(groups, return_inverse=True)
    if not 2 <= n_folds <= len(contents):
        raise ValueError(f"{n_folds} folds need 2 to {len(contents)} (the contents there are)")
    order = np.random.default_rng(seed).permutation(len(contents))
    fold_of_content = np.empty(len(contents), dtype=np.intp)
    fold_of_content[order] = np.arange(len(contents)) % n_folds
    return fold_of_content[content_of]


@dataclass(frozen=True)
class Ridge:
    """A fitted ridge regression.

    Attributes:
        penalty: The chosen lambda.
        cv_rmse: Cross-validated RMSE of each lambda tried, in units of the scores.
        lambdas: The lambdas tried.
        weights: Shape (D,), for raw (not standardised) features.
        intercept: Score at features of zero.
    """

    penalty: float
    cv_rmse: np.ndarray
    lambdas: tuple[float, ...]
    weights: np.ndarray
    intercept: float

    def predict(self, features: ArrayLike) -> np.ndarray:
        """Predict scores, shape (N,), of features of shape (N, D), in units of the scores."""
        features = check_features(features)
        if features.shape[1] != len(self.weights):
            raise ValueError(f"{len(self.weights)} features expected, got {features.shape[1]}")
        return features.astype(np.float64) @ self.weights + self.intercept


def ridge_cv(
    features: ArrayLike,
    mos: ArrayLike,
    *,
    lambdas: Sequence[float] = LAMBDAS,
    n_folds: int = 5,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> Ridge:
    """Fit ridge regression on standardised features, lambda chosen by cross-validation.

    The floor that every trained model has to beat. Minimises ``|mos - Zw - b|^2 + lambda |w|^2``
    with Z the features standardised on the training part of each fold; one eigendecomposition a
    fold serves all lambdas. A constant feature column gets no weight.

    Args:
        features: Shape (N, D).
        mos: Shape (N,), any scale.
        lambdas: Penalties to try, positive.
        n_folds: Folds of the cross-validation.
        seed: Deals the folds.
        groups: Content of each image, kept within a fold; needed for synthetic data sets.

    Returns:
        The model, refitted on all N images with the lambda of the smallest cross-validated RMSE.

    Raises:
        ValueError: If shapes disagree, a value is not finite, a lambda is not positive, or there
            are fewer contents than folds.
    """
    mos = check_scores(mos)
    features = check_features(features, n_images=len(mos)).astype(np.float64)
    if not min(lambdas) > 0:
        raise ValueError(f"lambdas must be positive, got {min(lambdas)}")
    fold = fold_numbers(len(mos), n_folds=n_folds, seed=seed, groups=groups)
    squared = np.zeros(len(lambdas))
    for k in range(n_folds):
        train, test = fold != k, fold == k
        weights, intercepts = _ridge_path(features[train], mos[train], lambdas)  # (L, D), (L,)
        errors = features[test] @ weights.T + intercepts - mos[test, None]  # (N/k, L)
        squared += (errors**2).sum(axis=0)
    best = int(squared.argmin())
    weights, intercepts = _ridge_path(features, mos, lambdas[best : best + 1])
    cv_rmse = np.sqrt(squared / len(mos))
    return Ridge(float(lambdas[best]), cv_rmse, tuple(lambdas), weights[0], float(intercepts[0]))


def _ridge_path(
    features: np.ndarray, mos: np.ndarray, lambdas: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Solve for all lambdas by one eigendecomposition of the smaller side; (L, D) and (L,)."""
    centre, spread = features.mean(axis=0), features.std(axis=0)
    constant = spread <= 1e-12 * np.maximum(1.0, np.abs(centre))
    spread = np.where(constant, np.inf, spread)
    z = (features - centre) / spread
    mean = mos.mean()
    if z.shape[0] <= z.shape[1]:
        values, vectors = np.linalg.eigh(z @ z.T)
        along = vectors.T @ (mos - mean)
        back = z.T @ vectors
    else:
        values, back = np.linalg.eigh(z.T @ z)
        along = back.T @ (z.T @ (mos - mean))
    shrunk = along[:, None] / (values.clip(min=0)[:, None] + np.asarray(lambdas))  # (R, L)
    weights = (back @ shrunk).T / spread  # (L, D)
    return weights, mean - weights @ centre


def check_gram(gram: ArrayLike, *, n_images: int) -> np.ndarray:
    """Return a Gram matrix as float64, or refuse one that no features can have.

    Products in single precision are wrong by a share of the largest eigenvalue, which is at most N
    mean diagonals: a negative eigenvalue up to that counts as rounding.

    Args:
        gram: Inner products, shape (N, N).
        n_images: N.

    Raises:
        ValueError: If the shape is wrong, a value is not finite, it is not symmetric, or it has an
            eigenvalue below zero by more than rounding; the eigenvalue is given.
    """
    gram = np.asarray(gram, dtype=np.float64)
    if gram.shape != (n_images, n_images):
        raise ValueError(f"gram must have shape ({n_images}, {n_images}), got {gram.shape}")
    if not np.isfinite(gram).all():
        rows = np.flatnonzero(~np.isfinite(gram).all(axis=1))
        raise ValueError(f"gram must be finite, rows {rows[:5].tolist()} are not")
    scale = float(np.abs(np.diagonal(gram)).mean())
    if not np.allclose(gram, gram.T, rtol=0, atol=1e-6 * scale):
        raise ValueError("gram must be symmetric")
    try:
        rounding = max(1e-5, n_images * np.finfo(np.float32).eps) * max(scale, 1e-300)
        np.linalg.cholesky(gram + rounding * np.eye(n_images))
    except np.linalg.LinAlgError:
        smallest = float(np.linalg.eigvalsh(gram)[0])
        raise ValueError(
            f"gram must be positive semidefinite, its smallest eigenvalue is {smallest:.3g} with a "
            f"mean diagonal of {scale:.3g}: these are not inner products of real features"
        ) from None
    return gram


@dataclass(frozen=True)
class GramSVR:
    """A fitted linear support vector regression that knows features by inner products only.

    Attributes:
        model: scikit-learn's ``SVR(kernel="precomputed")``.
        c: The box constraint used.
        epsilon: Half-width of the tube without loss, in units of the scores.
        cv_rmse: Cross-validated RMSE of each box constraint tried; empty when there was one and
            nobody asked for its error.
        converged: Whether the final fit met libsvm's tolerance before :data:`MAX_ITERATIONS`.
    """

    model: SVR
    c: float
    epsilon: float
    cv_rmse: np.ndarray
    converged: bool = True

    def predict(self, gram: ArrayLike) -> np.ndarray:
        """Predict scores, shape (M,), from inner products with the training images, (M, N)."""
        gram = np.asarray(gram, dtype=np.float64)
        if not np.isfinite(gram).all():
            raise ValueError("gram must be finite")
        return self.model.predict(gram)


def gram_svr(
    gram: ArrayLike,
    mos: ArrayLike,
    *,
    c: float | Sequence[float] = 1.0,
    epsilon: float | None = None,
    cross_validate: bool = False,
    n_folds: int = 5,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> GramSVR:
    """Fit a linear SVR from a Gram matrix: the model of ``SVR(kernel="linear")``, far cheaper.

    libsvm forms each inner product of ~100,000 features anew whenever its cache misses; one matrix
    product makes them all, for every split and every box constraint.

    A box constraint that is large for the features (the paper's 1 on logits is) can ask for more
    steps than anyone waits for; as in MATLAB the fit then stops at a limit and says so.

    Args:
        gram: Inner products of the training images, shape (N, N). Centred features give the same
            model: the intercept is not penalised.
        mos: Scores, shape (N,).
        c: Box constraint, positive; several are chosen from by cross-validated RMSE. The default
            is MATLAB's, which the paper used.
        epsilon: Half-width of the tube; by default MATLAB's, the interquartile range over 13.49.
        cross_validate: Whether to estimate the error of a single constraint as well.
        n_folds: Folds where several constraints are tried.
        seed: Deals the folds.
        groups: Content of each image, kept within a fold.

    Returns:
        The fitted model.

    Raises:
        ValueError: If the Gram matrix is refused by :func:`check_gram`, a constraint is not
            positive, or there are fewer contents than folds.
    """
    mos = check_scores(mos)
    gram = check_gram(gram, n_images=len(mos))
    constraints = np.atleast_1d(np.asarray(c, dtype=np.float64))
    if constraints.min() <= 0:
        raise ValueError(f"c must be positive, got {constraints.min()}")
    if epsilon is None:
        epsilon = float(np.subtract(*np.percentile(mos, [75, 25]))) / 13.49

    def fit(rows: np.ndarray, constraint: float) -> SVR:
        options = {"C": constraint, "epsilon": epsilon, "max_iter": MAX_ITERATIONS}
        model = SVR(kernel="precomputed", cache_size=1000, **options)
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            return model.fit(gram[np.ix_(rows, rows)], mos[rows])

    everyone, cv_rmse = np.arange(len(mos)), np.empty(0)
    if cross_validate or len(constraints) > 1:
        fold = fold_numbers(len(mos), n_folds=n_folds, seed=seed, groups=groups)
        squared = np.zeros(len(constraints))
        for k in range(n_folds):
            train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            for i, constraint in enumerate(constraints):
                pred = fit(train, constraint).predict(gram[np.ix_(test, train)])
                squared[i] += ((pred - mos[test]) ** 2).sum()
        cv_rmse = np.sqrt(squared / len(mos))
    best = float(constraints[cv_rmse.argmin() if len(cv_rmse) else 0])
    model = fit(everyone, best)
    return GramSVR(model, best, epsilon, cv_rmse, converged=model.fit_status_ == 0)

"""Regression of scores on fixed features: ridge, linear SVR and an exact Gaussian process.

A linear SVR sees features only through inner products and a Matern Gaussian process only through
distances, so both take (N, N) matrices from :mod:`iqa_utils.features` and never the features
themselves; ridge takes the features.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.svm import SVR

MAX_ITERATIONS = 1_000_000  # of one fit of an SVR; from memory, MATLAB's default
LAMBDAS = tuple(float(x) for x in np.logspace(-2, 7, 19))


def check_scores(mos: ArrayLike) -> np.ndarray:
    """Return scores as float64 of shape (N,), or refuse them: not finite, or all equal."""
    mos = np.asarray(mos, dtype=np.float64)
    if mos.ndim != 1 or not np.isfinite(mos).all():
        raise ValueError(f"mos must be finite and of shape (N,), got shape {mos.shape}")
    if len(mos) < 2 or np.ptp(mos) == 0:
        raise ValueError(f"mos must hold at least two different scores, got {len(mos)} equal ones")
    return mos


def fold_numbers(
    n_images: int, *, n_folds: int = 5, seed: int = 0, groups: ArrayLike | None = None
) -> np.ndarray:
    """Deal images into folds of nearly equal size, reference images kept together.

    ``groups`` is the reference image of each image, shape (N,), never cut; None: each its own.
    Returns the fold of each image, shape (N,), for ``PredefinedSplit``. scikit-learn's GroupKFold
    deals other folds, which would move every penalty that was chosen.

    Example:
        >>> np.bincount(fold_numbers(6, n_folds=3)).tolist()
        [2, 2, 2]
    """
    groups = np.arange(n_images) if groups is None else np.asarray(groups)
    references, reference_of = np.unique(groups, return_inverse=True)
    if not 2 <= n_folds <= len(references):
        raise ValueError(f"{n_folds} folds need 2 to {len(references)} (the references there are)")
    order = np.random.default_rng(seed).permutation(len(references))
    fold_of_reference = np.empty(len(references), dtype=np.intp)
    fold_of_reference[order] = np.arange(len(references)) % n_folds
    return fold_of_reference[reference_of]


@dataclass(frozen=True)
class Ridge:
    """A fitted ridge regression on raw (not standardised) features."""

    penalty: float  # the chosen lambda
    cv_rmse: np.ndarray  # cross-validated, of each lambda tried
    weights: np.ndarray  # (D,)
    intercept: float

    def predict(self, features: ArrayLike) -> np.ndarray:
        """Predict scores, shape (N,), of features of shape (N, D), in units of the scores."""
        return np.asarray(features, dtype=np.float64) @ self.weights + self.intercept


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

    The baseline that every trained model has to beat. Minimises ``|mos - Zw - b|^2 + lambda |w|^2``
    with Z the features standardised on the training images of each fold; one eigendecomposition per
    fold serves all lambdas (scikit-learn's RidgeCV solves each anew once there are folds and a
    scaler). A constant feature column gets no weight.

    Args:
        features: Shape (N, D).
        mos: Shape (N,), any scale.
        lambdas: Penalties to try, positive.
        n_folds: For :func:`fold_numbers`, as ``seed`` and ``groups``.
        seed: Deals the folds.
        groups: Reference image of each image; needed for synthetic sets.

    Returns:
        The model, refitted on all N images with the lambda of the smallest cross-validated RMSE.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 3))
        >>> ridge_cv(x, x @ [1.0, 2.0, 0.0]).weights.round(2).tolist()
        [1.0, 2.0, 0.0]
    """
    mos, features = check_scores(mos), np.asarray(features, dtype=np.float64)
    if len(bad := np.flatnonzero(~np.isfinite(features).all(axis=1))):
        found = f"{len(bad)} of {len(features)} images are not: rows {bad[:5].tolist()}"
        raise ValueError(f"features must be finite, {found}")
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
    return Ridge(float(lambdas[best]), cv_rmse, weights[0], float(intercepts[0]))


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


@dataclass(frozen=True)
class GramSVR:
    """A fitted SVR; ``model.predict`` takes inner products with the training images, (M, N)."""

    model: SVR
    cv_rmse: np.ndarray  # cross-validated, of each box constraint; empty where that was not asked

    @property
    def converged(self) -> bool:
        """Whether libsvm met its tolerance before :data:`MAX_ITERATIONS`."""
        return self.model.fit_status_ == 0


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

    Args:
        gram: Inner products of the training images, shape (N, N). Centred features give the same
            model: the intercept is not penalised.
        mos: Scores, shape (N,).
        c: Box constraint, positive; several are chosen from by cross-validated RMSE. The default
            is MATLAB's, which the paper used.
        epsilon: Half-width of the tube; by default MATLAB's, the interquartile range over 13.49.
        cross_validate: Whether to estimate the error of a single constraint as well.
        n_folds: For :func:`fold_numbers`, as ``seed`` and ``groups``.
        seed: Deals the folds.
        groups: Reference image of each image.
    """
    mos, gram = check_scores(mos), np.asarray(gram, dtype=np.float64)
    if epsilon is None:
        epsilon = float(np.subtract(*np.percentile(mos, [75, 25]))) / 13.49
    options = {"epsilon": epsilon, "max_iter": MAX_ITERATIONS, "cache_size": 1000}
    models = [SVR(kernel="precomputed", C=constraint, **options) for constraint in np.ravel(c)]
    cv_rmse = np.empty(0)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        if cross_validate or len(models) > 1:
            fold = fold_numbers(len(mos), n_folds=n_folds, seed=seed, groups=groups)
            folds = PredefinedSplit(fold)
            preds = np.array([cross_val_predict(svr, gram, mos, cv=folds) for svr in models])
            cv_rmse = np.sqrt(((preds - mos) ** 2).mean(axis=1))  # of all images, not of folds
        best = models[cv_rmse.argmin() if len(cv_rmse) else 0]
        return GramSVR(best.fit(gram, mos), cv_rmse)

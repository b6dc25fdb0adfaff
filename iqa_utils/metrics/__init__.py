"""Agreement between predicted and human scores.

Every metric takes ``(mos, pred)`` in this order, both of shape (N,), higher is better, and
returns one float. Nothing here rescales a score; a correlation of a constant array is undefined
and comes back as NaN, so that a network which has collapsed is seen in its results.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import kendalltau, rankdata

from iqa_utils.metrics.logistic_maps import LogisticFit, fit_logistic, logistic
from iqa_utils.metrics.pairs import check_pair, pearson

__all__ = [
    "METRICS", "TEACHER_WEIGHTS", "LogisticFit", "Metric", "check_pair", "fit_logistic", "krcc",
    "logistic", "mae", "mse", "per_range", "plcc", "plcc_logistic", "range_index", "range_names",
    "ranges_sd", "rmse", "size_weighted", "srcc", "summary", "within_groups",
]  # fmt: skip

Metric = Callable[[ArrayLike, ArrayLike], float]
# of data sets in the weighted correlation by which ponomarenko2022 chooses its teacher, Eq. (1)
TEACHER_WEIGHTS = {"koniq10k": 0.25, "flive": 0.15, "nrtid": 0.2, "livec": 0.25, "htid": 0.15}


def plcc(mos: ArrayLike, pred: ArrayLike) -> float:
    """Pearson linear correlation of the raw scores, in [-1, 1]; NaN if either is constant."""
    return pearson(*check_pair(mos, pred))


def srcc(mos: ArrayLike, pred: ArrayLike) -> float:
    """Spearman rank correlation with average ranks for ties; NaN if either is constant."""
    mos, pred = check_pair(mos, pred)
    return pearson(rankdata(mos), rankdata(pred))


def krcc(mos: ArrayLike, pred: ArrayLike) -> float:
    """Kendall rank correlation tau-b, in [-1, 1]; NaN if either is constant."""
    mos, pred = check_pair(mos, pred)
    return float(kendalltau(mos, pred).statistic)


def mse(mos: ArrayLike, pred: ArrayLike) -> float:
    """Mean squared error, in squared units of ``mos``."""
    mos, pred = check_pair(mos, pred)
    return float(np.mean((mos - pred) ** 2))


def rmse(mos: ArrayLike, pred: ArrayLike) -> float:
    """Root mean squared error, in units of ``mos``."""
    return float(np.sqrt(mse(mos, pred)))


def mae(mos: ArrayLike, pred: ArrayLike) -> float:
    """Mean absolute error, in units of ``mos``."""
    mos, pred = check_pair(mos, pred)
    return float(np.mean(np.abs(mos - pred)))


def plcc_logistic(
    mos: ArrayLike, pred: ArrayLike, n_parameters: int = 5, *, start: Sequence[float] | None = None
) -> float:
    """Pearson correlation after the logistic map, in [0, 1]; arguments of `fit_logistic`."""
    return fit_logistic(mos, pred, n_parameters, start=start).plcc


METRICS: dict[str, Metric] = {
    "SRCC": srcc,
    "PLCC": plcc,
    "PLCC logistic": plcc_logistic,
    "KRCC": krcc,
    "RMSE": rmse,
    "MSE": mse,
    "MAE": mae,
}


def summary(mos: ArrayLike, pred: ArrayLike, *, logistic: bool = False) -> dict[str, float]:
    """All metrics by the names of `METRICS`; ``PLCC`` is raw, the fitted one comes on request."""
    names = [name for name in METRICS if logistic or name != "PLCC logistic"]
    return {name: METRICS[name](mos, pred) for name in names}


def range_names(edges: Sequence[float]) -> list[str]:
    """Names of the ranges between edges: ``[0, 20, 40]`` gives ``["0-20", "20-40"]``."""
    return [f"{low:g}-{high:g}" for low, high in pairwise(edges)]


def range_index(mos: ArrayLike, edges: Sequence[float]) -> np.ndarray:
    """Index of the range that holds each score, closed on the left, the last range on both sides.

    Args:
        mos: Scores, shape (N,).
        edges: Increasing, K + 1 values.

    Returns:
        Integers in [0, K - 1], shape (N,).

    Raises:
        ValueError: If the edges do not increase or a score lies outside them.
    """
    mos, edges = np.asarray(mos, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    if len(edges) < 2 or (np.diff(edges) <= 0).any():
        raise ValueError(f"edges must increase and be two or more, got {edges.tolist()}")
    if not np.isfinite(mos).all():
        bad = np.sum(~np.isfinite(mos))
        raise ValueError(f"mos must be finite, {bad} of {len(mos)} are not")
    if len(mos) and (mos.min() < edges[0] or mos.max() > edges[-1]):
        raise ValueError(
            f"scores span [{mos.min():g}, {mos.max():g}], edges only [{edges[0]:g}, {edges[-1]:g}]"
        )
    return np.minimum(np.searchsorted(edges, mos, side="right") - 1, len(edges) - 2)


def per_range(
    mos: ArrayLike,
    pred: ArrayLike,
    metric: Metric = rmse,
    edges: Sequence[float] = (0, 20, 40, 60, 80, 100),
) -> dict[str, float]:
    """A metric within each range of the human score.

    Args:
        mos: Human scores, shape (N,), within the edges.
        pred: Predictions, shape (N,).
        metric: Any function of this module.
        edges: Increasing range limits; ranges are [low, high), the last one [low, high].

    Returns:
        Range name such as ``"0-20"`` to value; NaN where a range holds fewer than two images.

    References:
        Lehmann and Rokita, MGV 2023, section 3 (five ranges of KonIQ-10k).
    """
    mos, pred = check_pair(mos, pred)
    inside = range_index(mos, edges)
    values = {}
    for k, name in enumerate(range_names(edges)):
        rows = inside == k
        values[name] = metric(mos[rows], pred[rows]) if rows.sum() > 1 else float("nan")
    return values


def ranges_sd(values: Mapping[str, float] | Sequence[float]) -> float:
    """Sample standard deviation (n - 1) of per-range errors: how uneven a model is over the scale.

    Ranges without images (NaN) are an error: leave them out knowingly.
    """
    errors = np.asarray(
        list(values.values()) if isinstance(values, Mapping) else values, dtype=float
    )
    if len(errors) < 2 or not np.isfinite(errors).all():
        raise ValueError(f"two or more finite range errors are needed, got {errors.tolist()}")
    return float(np.std(errors, ddof=1))


def size_weighted(values: Mapping[str, float], sizes: Mapping[str, float]) -> float:
    """Mean of per-set values weighted by the number of images of each set.

    Raises:
        ValueError: If the two name different sets or the sizes are not positive.

    References:
        Feng et al., Learning from Mixed Datasets, 2023, Table 1.
    """
    if set(values) != set(sizes):
        raise ValueError(f"values name {sorted(values)}, sizes name {sorted(sizes)}")
    weights = np.array([sizes[name] for name in values], dtype=float)
    if not len(weights) or (weights <= 0).any():
        raise ValueError(f"sizes must be positive, got {dict(sizes)}")
    return float(np.average([values[name] for name in values], weights=weights))


def within_groups(
    mos: ArrayLike, pred: ArrayLike, groups: Sequence[Any] | np.ndarray, metric: Metric = srcc
) -> dict[str, float]:
    """A metric inside each group, so that differences between groups cannot flatter it.

    Args:
        mos: Human scores, shape (N,).
        pred: Predictions, shape (N,).
        groups: Group of each image, shape (N,), e.g. the subset of BIQ2021 or the distortion.
        metric: Any function of this module.

    Returns:
        Group name, sorted, to value; NaN where a group holds fewer than two images.
    """
    mos, pred = check_pair(mos, pred)
    groups = np.asarray(groups).astype(str)
    if groups.shape != mos.shape:
        raise ValueError(f"groups must have shape {mos.shape}, got {groups.shape}")
    values = {}
    for name in np.unique(groups):
        rows = groups == name
        values[str(name)] = metric(mos[rows], pred[rows]) if rows.sum() > 1 else float("nan")
    return values

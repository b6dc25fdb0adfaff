"""Agreement between predicted and human scores.

Every metric takes ``(mos, pred)`` in this order, both of shape (N,), higher is better, and
returns one float. Nothing here rescales a score; a correlation of a constant array is undefined
and comes back as NaN, so that a network which has collapsed is seen in its results.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares
from scipy.special import expit
from scipy.stats import kendalltau, rankdata

Metric = Callable[[ArrayLike, ArrayLike], float]


def check_pair(mos: ArrayLike, pred: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return both score arrays as float64 of shape (N,), or refuse them.

    Raises:
        ValueError: If an array is not one-dimensional, the lengths differ, fewer than two scores
            are given, or a score is not finite.
    """
    mos, pred = np.asarray(mos, dtype=np.float64), np.asarray(pred, dtype=np.float64)
    if mos.ndim != 1 or mos.shape != pred.shape:
        raise ValueError(
            f"mos and pred must both have shape (N,), got {mos.shape} and {pred.shape}"
        )
    if len(mos) < 2:
        raise ValueError(f"at least 2 scores are needed, got {len(mos)}")
    for name, values in (("mos", mos), ("pred", pred)):
        if not np.isfinite(values).all():
            raise ValueError(
                f"{name} must be finite, {np.sum(~np.isfinite(values))} of {len(values)} are not"
            )
    return mos, pred


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    # a constant array of non-dyadic values leaves rounding noise behind, which is not a signal
    norms = np.linalg.norm(a), np.linalg.norm(b)
    if min(norms) <= 1e-14 * max(1.0, *norms):
        return float("nan")
    return float(np.clip(a @ b / (norms[0] * norms[1]), -1.0, 1.0))


def plcc(mos: ArrayLike, pred: ArrayLike) -> float:
    """Pearson linear correlation of the raw scores, in [-1, 1]; NaN if either is constant."""
    return _pearson(*check_pair(mos, pred))


def srcc(mos: ArrayLike, pred: ArrayLike) -> float:
    """Spearman rank correlation with average ranks for ties; NaN if either is constant."""
    mos, pred = check_pair(mos, pred)
    return _pearson(rankdata(mos), rankdata(pred))


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


@dataclass(frozen=True)
class LogisticFit:
    """A fitted logistic map from predictions to scores, with what is needed to distrust it.

    Attributes:
        parameters: (4,) or (5,), in the units of the raw scores, in the order of the formula.
        fitted: (N,) mapped predictions.
        plcc: Pearson correlation of ``fitted`` with ``mos``.
        rmse: Root mean squared error of ``fitted``, in units of ``mos``.
        start_rmse: RMSE reached from each start; a wide spread means a hard surface.
        converged: Whether the optimiser of the best start reported success.
        monotonic: Whether the curve never turns back between the lowest and highest prediction.
    """

    parameters: np.ndarray
    fitted: np.ndarray
    plcc: float
    rmse: float
    start_rmse: tuple[float, ...]
    converged: bool
    monotonic: bool


def logistic(pred: ArrayLike, parameters: ArrayLike) -> np.ndarray:
    """Evaluate the logistic map with four or five parameters.

    With ``s`` the sigmoid, four: ``b2 + (b1 - b2) * s((x - b3) / b4)``; five:
    ``b1 * (s(b2 * (x - b3)) - 1/2) + b4 * x + b5``.

    Args:
        pred: Predictions, shape (N,).
        parameters: Shape (4,) or (5,).

    Returns:
        Shape (N,).

    References:
        VQEG, final report FR-TV phase II, 2003 (four); Sheikh et al., A Statistical Evaluation of
        Recent Full Reference Image Quality Assessment Algorithms, TIP 2006 (five).
    """
    x, b = np.asarray(pred, dtype=np.float64), np.asarray(parameters, dtype=np.float64)
    if len(b) == 4:
        return b[1] + (b[0] - b[1]) * expit((x - b[2]) / b[3])
    if len(b) == 5:
        return b[0] * (expit(b[1] * (x - b[2])) - 0.5) + b[3] * x + b[4]
    raise ValueError(f"a logistic map has 4 or 5 parameters, got {len(b)}")


def _basis(x: np.ndarray, centre: float, log_slope: float, n_parameters: int) -> np.ndarray:
    """Columns of the map that enter linearly once centre and slope are fixed: (N, 2) or (N, 3)."""
    step = expit(np.exp(log_slope) * (x - centre)) - 0.5
    columns = [step, np.ones_like(x)] if n_parameters == 4 else [step, x, np.ones_like(x)]
    return np.stack(columns, axis=1)


def fit_logistic(
    mos: ArrayLike, pred: ArrayLike, n_parameters: int = 5, *, start: Sequence[float] | None = None
) -> LogisticFit:
    """Fit the logistic map that the field applies before PLCC and RMSE.

    Both maps are linear in all but centre and slope, so the search runs over these two only, from
    nine starts on standardised scores, and keeps the best end: no start has to be a lucky one.

    Args:
        mos: Human scores, shape (N,), N above ``n_parameters``.
        pred: Predictions, shape (N,), not constant; their scale does not matter.
        n_parameters: 4 or 5.
        start: Start all parameters here instead, in raw units, and follow one Levenberg-Marquardt
            descent as the field's MATLAB scripts do.

    Returns:
        The fit with its diagnostics.

    Raises:
        ValueError: If ``n_parameters`` is neither 4 nor 5, there are too few scores, ``start`` has
            another length, or an array is constant.

    Note:
        Slope is searched within 0.02 and 50 per standard deviation of ``pred``: below, the map is a
        straight line, above, a step between two neighbouring images.
    """
    mos, pred = check_pair(mos, pred)
    if n_parameters not in (4, 5):
        raise ValueError(f"n_parameters must be 4 or 5, got {n_parameters}")
    if len(mos) <= n_parameters:
        raise ValueError(
            f"{n_parameters} parameters need more than {n_parameters} scores, got {len(mos)}"
        )
    if np.ptp(mos) == 0 or np.ptp(pred) == 0:
        raise ValueError("mos and pred must not be constant")
    if start is not None:
        return _descend(mos, pred, n_parameters, start)
    shift, scale = pred.mean(), pred.std()
    x = (pred - shift) / scale
    y = (mos - mos.mean()) / mos.std()

    def residual(theta: np.ndarray) -> np.ndarray:
        basis = _basis(x, *theta, n_parameters)
        return basis @ np.linalg.lstsq(basis, y, rcond=1e-10)[0] - y

    bounds = ([x.min() - 2, np.log(0.02)], [x.max() + 2, np.log(50)])
    starts = [(c, np.log(s)) for c in np.quantile(x, [0.1, 0.5, 0.9]) for s in (0.3, 1.5, 6.0)]
    ends = [least_squares(residual, s, bounds=bounds, x_scale=(1.0, 1.0)) for s in starts]
    best = min(ends, key=lambda end: end.cost)
    centre, slope = best.x[0], np.exp(best.x[1])
    weights = np.linalg.lstsq(_basis(x, *best.x, n_parameters), y, rcond=1e-10)[0] * mos.std()
    middle = shift + scale * centre  # back to raw units
    if n_parameters == 4:
        low, high = (
            mos.mean() + weights[1] - weights[0] / 2,
            mos.mean() + weights[1] + weights[0] / 2,
        )
        parameters = np.array([high, low, middle, scale / slope])
    else:
        gain = weights[1] / scale
        parameters = np.array(
            [weights[0], slope / scale, middle, gain, mos.mean() + weights[2] - gain * shift]
        )
    spread = tuple(float(np.sqrt(2 * end.cost / len(y)) * mos.std()) for end in ends)
    return _describe(mos, pred, parameters, spread, bool(best.success))


def _descend(
    mos: np.ndarray, pred: np.ndarray, n_parameters: int, start: Sequence[float]
) -> LogisticFit:
    if len(start) != n_parameters:
        raise ValueError(f"start must hold {n_parameters} values, got {len(start)}")
    end = least_squares(lambda b: logistic(pred, b) - mos, np.asarray(start, float), method="lm")
    spread = (float(np.sqrt(2 * end.cost / len(mos))),)
    return _describe(mos, pred, end.x, spread, bool(end.success))


def _describe(
    mos: np.ndarray,
    pred: np.ndarray,
    parameters: np.ndarray,
    spread: tuple[float, ...],
    converged: bool,
) -> LogisticFit:
    fitted = logistic(pred, parameters)
    curve = np.diff(logistic(np.linspace(pred.min(), pred.max(), 513), parameters))
    slack = 1e-9 * np.ptp(fitted)
    return LogisticFit(
        parameters=parameters,
        fitted=fitted,
        plcc=_pearson(mos, fitted),
        rmse=float(np.sqrt(np.mean((mos - fitted) ** 2))),
        start_rmse=spread,
        converged=converged,
        monotonic=bool((curve >= -slack).all() or (curve <= slack).all()),
    )


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

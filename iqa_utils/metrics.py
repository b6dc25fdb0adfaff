"""Agreement between predicted and human scores.

Every metric takes ``(mos, pred)`` in this order, both of shape (N,), higher is better, and
returns one float. Nothing here rescales a score; a correlation of a constant array is undefined
and comes back as NaN, so that a network which has collapsed is seen in its results.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import kendalltau, rankdata

Metric = Callable[[ArrayLike, ArrayLike], float]
# of data sets in the weighted correlation by which ponomarenko2022 chooses its teacher, Eq. (1)
TEACHER_WEIGHTS = {"koniq10k": 0.25, "flive": 0.15, "nrtid": 0.2, "livec": 0.25, "htid": 0.15}
MOS_EDGES = (0, 20, 40, 60, 80, 100)  # ranges of lehmann2023
SLOPES = (0.05, 10.0)  # bounds of a logistic map, per standard deviation of the predictions
REACH = 3.0  # standard deviations that its centre may lie outside the predictions


def check_pair(mos: ArrayLike, pred: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return both score arrays as float64 of shape (N,).

    Raises:
        ValueError: If the shapes differ or are not (N,), N is below 2, or a score is not finite.
    """
    mos, pred = np.asarray(mos, dtype=np.float64), np.asarray(pred, dtype=np.float64)
    if mos.ndim != 1 or mos.shape != pred.shape:
        shapes = f"{mos.shape} and {pred.shape}"
        raise ValueError(f"mos and pred must both have shape (N,), got {shapes}")
    if len(mos) < 2:
        raise ValueError(f"at least 2 scores are needed, got {len(mos)}")
    for name, values in (("mos", mos), ("pred", pred)):
        if not np.isfinite(values).all():
            bad = np.sum(~np.isfinite(values))
            raise ValueError(f"{name} must be finite, {bad} of {len(values)} are not")
    return mos, pred


def plcc(mos: ArrayLike, pred: ArrayLike) -> float:
    """Pearson linear correlation of the raw scores.

    Args:
        mos: Human scores, shape (N,), N >= 2, finite, on any scale.
        pred: Predictions, shape (N,), finite; their scale does not matter.

    Returns:
        Correlation in [-1, 1]; NaN if either array is constant.

    Raises:
        ValueError: If the shapes differ or are not (N,), N is below 2, or a score is not finite.

    Example:
        >>> round(plcc([1, 2, 3], [2, 4, 9]), 3)
        0.971
    """
    return _pearson(*check_pair(mos, pred))


def srcc(mos: ArrayLike, pred: ArrayLike) -> float:
    """Spearman rank correlation with average ranks for ties, in [-1, 1].

    Only the orders of both arrays count. Arguments, NaN and errors are those of :func:`plcc`.

    Example:
        >>> round(srcc([1, 2, 3, 4], [10, 30, 20, 40]), 3)
        0.8
    """
    mos, pred = check_pair(mos, pred)
    return _pearson(rankdata(mos), rankdata(pred))


def krcc(mos: ArrayLike, pred: ArrayLike) -> float:
    """Kendall rank correlation tau-b, which corrects for ties, in [-1, 1].

    Arguments, NaN and errors are those of :func:`plcc`.

    Example:
        >>> round(krcc([1, 2, 3, 4], [10, 30, 20, 40]), 3)
        0.667
    """
    return float(kendalltau(*check_pair(mos, pred)).statistic)


def mse(mos: ArrayLike, pred: ArrayLike) -> float:
    """Mean squared error, in squared units of ``mos``, otherwise as :func:`rmse`."""
    mos, pred = check_pair(mos, pred)
    return float(np.mean((mos - pred) ** 2))


def rmse(mos: ArrayLike, pred: ArrayLike) -> float:
    """Root mean squared error of ``pred`` (N,), in units of ``mos`` (N,), >= 0.

    Both must be on one scale; errors are those of :func:`plcc`.

    Example:
        >>> rmse([1, 2], [2, 5])
        2.23606797749979
    """
    return float(np.sqrt(mse(mos, pred)))


def mae(mos: ArrayLike, pred: ArrayLike) -> float:
    """Mean absolute error, in units of ``mos``, otherwise as :func:`rmse`."""
    mos, pred = check_pair(mos, pred)
    return float(np.mean(np.abs(mos - pred)))


def plcc_logistic(mos: ArrayLike, pred: ArrayLike, n_parameters: int = 5) -> float:
    """Pearson correlation after the map of :func:`fit_logistic`, which see, in [0, 1]."""
    return fit_logistic(mos, pred, n_parameters).plcc


METRICS: dict[str, Metric] = {
    "SRCC": srcc,
    "PLCC": plcc,
    "PLCC logistic": plcc_logistic,
    "KRCC": krcc,
    "RMSE": rmse,
    "MSE": mse,
    "MAE": mae,
}


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    # a constant array of non-dyadic values leaves rounding noise behind, which is not a signal
    norms = np.linalg.norm(a), np.linalg.norm(b)
    if min(norms) <= 1e-14 * max(1.0, *norms):
        return float("nan")
    return float(np.clip(a @ b / (norms[0] * norms[1]), -1.0, 1.0))


# Ranges of scores, sets and groups


def range_names(edges: Sequence[float]) -> list[str]:
    """Names of the ranges between edges: ``[0, 20, 40]`` gives ``["0-20", "20-40"]``.

    Example:
        >>> range_names([0, 20, 40])
        ['0-20', '20-40']
    """
    return [f"{low:g}-{high:g}" for low, high in pairwise(edges)]


def range_index(mos: ArrayLike, edges: Sequence[float]) -> np.ndarray:
    """Index of the range that holds each score, closed on the left, the last range on both sides.

    Scores (N,) and K + 1 increasing edges give integers in [0, K - 1], (N,).

    Raises:
        ValueError: If the edges do not increase, or a score is outside them or not a number.
    """
    mos, edges = np.asarray(mos, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    if len(edges) < 2 or (np.diff(edges) <= 0).any():
        raise ValueError(f"edges must increase and be two or more, got {edges.tolist()}")
    if not ((mos >= edges[0]) & (mos <= edges[-1])).all():
        span = f"[{edges[0]:g}, {edges[-1]:g}]"
        raise ValueError(f"scores span [{mos.min():g}, {mos.max():g}], edges only {span}")
    return np.minimum(np.searchsorted(edges, mos, side="right") - 1, len(edges) - 2)


def per_range(
    mos: ArrayLike, pred: ArrayLike, metric: Metric, edges: Sequence[float]
) -> dict[str, float]:
    """A metric, any of this module, within each range of the human score.

    ``edges`` are as for :func:`range_index`. Returns range name such as ``"0-20"`` to value; NaN
    where a range holds fewer than two images (Lehmann and Rokita, MGV 2023, section 3).

    Raises:
        ValueError: If a score lies outside the edges, or as for :func:`plcc`.

    Example:
        >>> per_range([10, 15, 30, 35], [12, 13, 30, 34], mae, [0, 20, 40])
        {'0-20': 2.0, '20-40': 0.5}
    """
    mos, pred = check_pair(mos, pred)
    inside = range_index(mos, edges)
    found = {name: inside == k for k, name in enumerate(range_names(edges))}
    return {k: metric(mos[i], pred[i]) if i.sum() > 1 else np.nan for k, i in found.items()}


def size_weighted(values: Mapping[str, float], sizes: Mapping[str, float]) -> float:
    """Mean of per-set values weighted by the images of each set (Feng et al. 2023, Table 1).

    Raises:
        ValueError: If both do not name the same data sets, or a size is not positive.
    """
    if set(values) != set(sizes):
        raise ValueError(f"values name {sorted(values)}, sizes name {sorted(sizes)}")
    if not sizes or min(sizes.values()) <= 0:
        raise ValueError(f"sizes must be positive, got {dict(sizes)}")
    return float(np.average(list(values.values()), weights=[sizes[name] for name in values]))


# Logistic maps, which the field fits to predictions before it reports PLCC and RMSE


class LogisticFit(NamedTuple):
    """A fitted logistic map from predictions to scores, with what is needed to distrust it."""

    parameters: np.ndarray  # (4,) or (5,), in the units of the raw scores, as in the formula
    plcc: float  # of the mapped predictions with mos
    rmse: float  # of both, in units of mos
    start_rmse: tuple[float, ...]  # reached from each start; a wide spread means a hard surface
    converged: bool  # whether the best search ended by its own criterion
    at_bound: bool  # whether slope or centre does: the data alone would go on to a step


def logistic(pred: ArrayLike, parameters: ArrayLike) -> np.ndarray:
    """Evaluate the logistic map with four or five parameters.

    With ``s`` the sigmoid, four: ``b2 + (b1 - b2) * s((x - b3) / b4)``; five:
    ``b1 * (s(b2 * (x - b3)) - 1/2) + b4 * x + b5``.

    Args:
        pred: Predictions, shape (N,).
        parameters: Shape (4,) or (5,).

    Returns:
        Mapped predictions, shape (N,), in units of the human scores.

    References:
        VQEG, final report FR-TV phase II, 2003 (four); Sheikh et al., A Statistical Evaluation of
        Recent Full Reference Image Quality Assessment Algorithms, TIP 2006 (five).
    """
    x, b = np.asarray(pred, dtype=np.float64), np.asarray(parameters, dtype=np.float64)
    if len(b) == 4:
        return b[1] + (b[0] - b[1]) * expit((x - b[2]) / b[3])
    return b[0] * (expit(b[1] * (x - b[2])) - 0.5) + b[3] * x + b[4]


def fit_logistic(mos: ArrayLike, pred: ArrayLike, n_parameters: int = 5) -> LogisticFit:
    """Fit the logistic map that the field applies before PLCC and RMSE.

    Both maps are linear in all but centre and slope, so the search runs over these two only: a grid
    is screened, four starts descend, and the lowest end is kept.

    Args:
        mos: Human scores, shape (N,), N above ``n_parameters``, not constant.
        pred: Predictions, shape (N,), not constant; their scale does not matter.
        n_parameters: 4 or 5.

    Returns:
        The fit with its diagnostics; ``rmse`` is in units of ``mos``.

    Raises:
        ValueError: If ``n_parameters`` is neither 4 nor 5, there are too few scores, or an array
            is constant or not finite.

    Note:
        The slope stays within 0.05 and 10 per standard deviation of ``pred``, the centre within
        three of the predictions: below, the map is a straight line; above, it is a step between
        two neighbouring images, with which five parameters can always lower the error a little
        more. ``at_bound`` tells where the optimum lies there.

    Example:
        >>> fit = fit_logistic([1, 2, 4, 7, 8, 9], [0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
        >>> bool(fit.rmse < 0.5)
        True
    """
    mos, pred = check_pair(mos, pred)
    if n_parameters not in (4, 5):
        raise ValueError(f"n_parameters must be 4 or 5, got {n_parameters}")
    if len(mos) <= n_parameters:
        raise ValueError(f"a fit needs more than {n_parameters} scores, got {len(mos)}")
    if np.ptp(mos) == 0 or np.ptp(pred) == 0:
        raise ValueError("mos and pred must not be constant")
    shift, scale = pred.mean(), pred.std()
    x, y = (pred - shift) / scale, (mos - mos.mean()) / mos.std()
    search = _Search(x, y, n_parameters)
    how = {"jac": True, "method": "L-BFGS-B", "bounds": search.bounds}
    how["options"] = {"ftol": 1e-12, "gtol": 1e-6}
    ends = [minimize(search, start, **how) for start in search.starts()]
    best = min(ends, key=lambda end: end.fun)
    slope, middle = np.exp(best.x[1]) / scale, shift + scale * best.x[0]  # in raw units
    u = slope * (pred - middle)
    height = mos.std() * search.project(expit(u) if best.x[0] > 0 else -expit(-u))[0]
    rest = mos - height * (expit(u) - 0.5)
    if n_parameters == 4:
        base = rest.mean()
        parameters = np.array([base + height / 2, base - height / 2, middle, 1 / slope])
    else:
        parameters = np.array([height, slope, middle, *np.polyfit(pred, rest, 1)])
    fitted, bounds = logistic(pred, parameters), np.array(search.bounds)  # (N,), (2, 2)
    start_rmse = tuple(float(np.sqrt(end.fun / len(y)) * mos.std()) for end in ends)
    at_bound = bool((np.abs(best.x[:, None] - bounds) < 1e-6).any())
    quality = _pearson(mos, fitted), rmse(mos, fitted)
    return LogisticFit(parameters, *quality, start_rmse, bool(best.success), at_bound)


class _Search:
    """Residual of the best linear weights at a given centre and log slope, on standardised scores.

    The map is linear in all but these two (variable projection).

    References:
        Golub and Pereyra, The differentiation of pseudo-inverses and nonlinear least squares
        problems whose variables separate, SIAM J. Numer. Anal. 1973.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, n_parameters: int) -> None:
        lines = [np.ones_like(x), x] if n_parameters == 5 else [np.ones_like(x)]
        self.x, self.lines = x, np.linalg.qr(np.stack(lines, axis=1))[0]  # (N, K)
        self.y = y - self.lines @ (self.lines.T @ y)
        self.bounds = [(x.min() - REACH, x.max() + REACH), tuple(np.log(SLOPES))]

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Sum of squares left, and its gradient."""
        slope, shifted = np.exp(theta[1]), self.x - theta[0]
        up, down = expit(slope * shifted), expit(-slope * shifted)
        weight, left = self.project(up if theta[0] > 0 else -down)
        bell = weight * slope * up * down * left
        return left @ left, np.array([2 * bell.sum(), -2 * (bell @ shifted)])

    def project(self, step: np.ndarray) -> tuple[float, np.ndarray]:
        """Best weight of a step, its constant does not matter, and what is left of the scores."""
        step = step - self.lines @ (self.lines.T @ step)
        weight = (self.y @ step) / max(step @ step, 1e-28)  # over two values a line leaves none
        return weight, self.y - weight * step

    def starts(self) -> np.ndarray:
        """The four best of eight slopes, each with its best centre; shape (4, 2)."""
        rows = np.argsort(self.x)[:: max(1, len(self.x) // 400)]  # enough to find a start
        x, y, lines = self.x[rows], self.y[rows], self.lines[rows]
        found = []
        for slope in SLOPES[1] / 2.0 ** np.arange(8):
            centres = np.arange(*self.bounds[0], 0.5 / slope)  # (C,)
            step = expit(slope * (x - centres[:, None])) - 0.5  # (C, N)
            norm = (step**2).sum(axis=1) - ((step @ lines) ** 2).sum(axis=1)
            explained = (step @ y) ** 2 / np.maximum(norm, 1e-9)
            best = explained.argmax()
            found.append((explained[best], centres[best], np.log(slope)))
        return np.array(sorted(found, reverse=True))[:4, 1:]

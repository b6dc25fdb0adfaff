"""The logistic maps that the field fits to predictions before it reports PLCC and RMSE."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares, minimize
from scipy.special import expit

from iqa_utils.metrics.pairs import check_pair, pearson

SLOPES = (0.05, 10.0)  # bounds, per standard deviation of the predictions
REACH = 3.0  # standard deviations that the centre may lie outside the predictions


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
        at_bound: Whether slope or centre lies on its bound: the data alone would go on to a step.
        monotonic: Whether the curve never turns back between the lowest and highest prediction.
    """

    parameters: np.ndarray
    fitted: np.ndarray
    plcc: float
    rmse: float
    start_rmse: tuple[float, ...]
    converged: bool
    at_bound: bool
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
        centres, slopes = (x.min() - REACH, x.max() + REACH), np.log(SLOPES)
        self.bounds = [centres, tuple(slopes)]

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


def fit_logistic(
    mos: ArrayLike, pred: ArrayLike, n_parameters: int = 5, *, start: Sequence[float] | None = None
) -> LogisticFit:
    """Fit the logistic map that the field applies before PLCC and RMSE.

    Both maps are linear in all but centre and slope, so the search runs over these two only: a grid
    is screened, four starts descend, and the lowest end is kept.

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
        The slope stays within 0.05 and 10 per standard deviation of ``pred``, the centre within
        three of the predictions: below, the map is a straight line; above, it is a step between
        two neighbouring images, with which five parameters can always lower the error a little
        more. ``at_bound`` tells where the optimum lies there.
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
    spread = tuple(float(np.sqrt(end.fun / len(y)) * mos.std()) for end in ends)
    edges = np.array(search.bounds)  # (2, 2)
    at_bound = bool((np.abs(best.x[:, None] - edges) < 1e-6).any())
    return _describe(mos, pred, parameters, spread, bool(best.success), at_bound)


def _descend(
    mos: np.ndarray, pred: np.ndarray, n_parameters: int, start: Sequence[float]
) -> LogisticFit:
    if len(start) != n_parameters:
        raise ValueError(f"start must hold {n_parameters} values, got {len(start)}")
    end = least_squares(lambda b: logistic(pred, b) - mos, np.asarray(start, float), method="lm")
    spread = (float(np.sqrt(2 * end.cost / len(mos))),)
    return _describe(mos, pred, end.x, spread, bool(end.success), False)


def _describe(
    mos: np.ndarray,
    pred: np.ndarray,
    parameters: np.ndarray,
    spread: tuple[float, ...],
    converged: bool,
    at_bound: bool,
) -> LogisticFit:
    fitted = logistic(pred, parameters)
    curve = np.diff(logistic(np.linspace(pred.min(), pred.max(), 513), parameters))
    slack = 1e-9 * np.ptp(fitted)
    return LogisticFit(
        parameters=parameters,
        fitted=fitted,
        plcc=pearson(mos, fitted),
        rmse=float(np.sqrt(np.mean((mos - fitted) ** 2))),
        start_rmse=spread,
        converged=converged,
        at_bound=at_bound,
        monotonic=bool((curve >= -slack).all() or (curve <= slack).all()),
    )

"""The logistic maps that the field fits to predictions before it reports PLCC and RMSE."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares
from scipy.special import expit

from iqa_utils.metrics.pairs import check_pair, pearson


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


def _basis(x: np.ndarray, theta: np.ndarray, n_parameters: int) -> np.ndarray:
    """Columns of the map that enter linearly once centre and log slope are fixed.

    Shapes: x (N,), theta (..., 2), result (..., N, 2) or (..., N, 3).
    """
    centre, slope = theta[..., :1], np.exp(theta[..., 1:])
    step = expit(slope * (x - centre)) - 0.5  # (..., N)
    others = [np.broadcast_to(x, step.shape)] if n_parameters == 5 else []
    return np.stack([step, *others, np.ones_like(step)], axis=-1)


class _Projection:
    """Residual of the best linear weights at a given centre and log slope, with its Jacobian.

    References:
        Kaufman, A Variable Projection Method for Solving Separable Nonlinear Least Squares
        Problems, BIT 1975.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, n_parameters: int) -> None:
        self.x, self.y, self.n = x, y, n_parameters

    def weights(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        q, r = np.linalg.qr(_basis(self.x, theta, self.n))  # (N, K), (K, K)
        return q, np.linalg.lstsq(r, q.T @ self.y, rcond=1e-12)[0]

    def residual(self, theta: np.ndarray) -> np.ndarray:
        q, _ = self.weights(theta)
        return q @ (q.T @ self.y) - self.y

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        q, weights = self.weights(theta)
        slope, shifted = np.exp(theta[1]), self.x - theta[0]
        height = expit(slope * shifted)
        bell = weights[0] * height * (1 - height) * slope
        columns = np.stack([-bell, bell * shifted], axis=1)  # (N, 2)
        return columns - q @ (q.T @ columns)

    def screen(self, centres: np.ndarray, log_slopes: np.ndarray) -> np.ndarray:
        """Best of the centres, shape (C,), for each of the slopes, shape (S,): starts (S, 2)."""
        starts = []
        for log_slope in log_slopes:
            line = np.stack([centres, np.full_like(centres, log_slope)], axis=-1)  # (C, 2)
            q, _ = np.linalg.qr(_basis(self.x, line, self.n))  # (C, N, K)
            starts.append(line[((self.y @ q) ** 2).sum(axis=-1).argmax()])
        return np.stack(starts)


def fit_logistic(
    mos: ArrayLike, pred: ArrayLike, n_parameters: int = 5, *, start: Sequence[float] | None = None
) -> LogisticFit:
    """Fit the logistic map that the field applies before PLCC and RMSE.

    Both maps are linear in all but centre and slope, so the search runs over these two only: on
    standardised scores 25 centres are screened for each of seven slopes, the best of each slope
    descends, and the lowest end is kept.

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
        The slope stays within 0.05 and 10 per standard deviation of ``pred``: below, the map is a
        straight line; above, it is a step between two neighbouring images, with which five
        parameters can always lower the error a little more.
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

    search = _Projection(x, y, n_parameters)
    bounds = (np.array([x.min() - 2, np.log(0.05)]), np.array([x.max() + 2, np.log(10)]))
    centres, slopes = np.linspace(x.min() - 1, x.max() + 1, 25), np.geomspace(0.1, 9, 7)
    ends = [
        least_squares(search.residual, start, search.jacobian, bounds=bounds, max_nfev=40)
        for start in search.screen(centres, np.log(slopes))
    ]
    best = min(ends, key=lambda end: end.cost)
    centre, slope = best.x[0], np.exp(best.x[1])
    weights = search.weights(best.x)[1] * mos.std()
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
        plcc=pearson(mos, fitted),
        rmse=float(np.sqrt(np.mean((mos - fitted) ** 2))),
        start_rmse=spread,
        converged=converged,
        monotonic=bool((curve >= -slack).all() or (curve <= slack).all()),
    )

"""Exact Gaussian process regression with a Matern 5/2 kernel, from distances alone.

The features are never seen: training takes their (N, N) distances, prediction the (M, N) distances
from new images. Everything is float64 on the device asked for. Two ways to find the noise: the
likelihood (type II), and the paper's, Bayesian optimisation of a cross-validated loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.ndimage import minimum_filter
from scipy.optimize import minimize
from scipy.stats import norm
from torch import Tensor

from iqa_utils.regression import check_scores, fold_numbers

_ROWS = 32  # of a matrix at a time: these stay in a cache
# The search runs over x, from which these are the logs of length (in median distances) and of noise
# over signal variance. Long lengths fix signal over length alone, hence the turn.
_LOGS = 4.5 * np.array([[1.0, -0.5], [0.0, 1.0]])
_BOUNDS = [(-math.log(1e6) / 4.5, math.log(1e6) / 4.5)] * 2
_STARTS = np.log([[1 / 3, 1.0], [1.0, 0.1], [3.0, 1e-4]])  # logs that are always tried
_AXES = np.arange(-1, 3, 0.5), np.arange(-3, 1, 0.5)  # of x
_GRID = np.stack(np.meshgrid(*_AXES, indexing="ij"), axis=-1) @ _LOGS.T  # (8, 8, 2), those logs
_FEW = 200  # images that are tried at every point of the grid
Gradient = Callable[[], np.ndarray]  # of the likelihood by the logs of length and noise ratio
_LEAST_RATIOS = np.array([1e-6, 1e-2, 1e-1])  # few images may show less noise than all have


def matern52(distances: Tensor, length: float) -> tuple[Tensor, Tensor]:
    """Evaluate the Matern 5/2 correlation and its derivative by the log length.

    With ``r = sqrt(5) d / l`` the correlation is ``(1 + r + r^2/3) exp(-r)``, for distances of any
    shape and a length in their unit (Rasmussen and Williams, 2006, equation 4.17).

    Note:
        Equation (3) of the paper prints ``5 r^2 / (3 l)^2``; this is ``5 r^2 / (3 l^2)``. With the
        printed term the function is no longer twice differentiable, nor a Matern kernel.
    """
    correlation, derivative = torch.empty_like(distances), torch.empty_like(distances)
    for rows in range(0, len(distances), _ROWS):
        part = slice(rows, rows + _ROWS)
        r = distances[part] * (math.sqrt(5) / length)
        decay = torch.exp(-r)
        third = r.square().div_(3)
        torch.mul(third, r.add_(1), out=derivative[part]).mul_(decay)
        torch.mul(third.add_(r), decay, out=correlation[part])
    return correlation, derivative


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted Gaussian process with a constant mean."""

    length: float  # in units of the distances
    signal_sd: float  # in units of the scores, as noise_sd and mean
    noise_sd: float
    mean: float
    log_likelihood: float  # log marginal likelihood of the training scores, nats
    factor: Tensor  # lower Cholesky factor of correlation plus noise ratio, (N, N)
    alpha: Tensor  # that matrix's inverse times the scores less their mean, (N,)

    def predict(self, distances: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Predict means and standard deviations (noise included), (M,) each, from distances (M, N).

        The mean is ``k*^T (C + s^2 I)^-1 y``; equation (2) of the paper lacks the inverse.
        """
        distances = torch.as_tensor(distances, dtype=torch.float64, device=self.alpha.device)
        correlation, _ = matern52(distances, self.length)  # (M, N)
        mean = self.mean + correlation @ self.alpha
        explained = torch.linalg.solve_triangular(self.factor, correlation.T, upper=False)
        signal = self.signal_sd**2 * (1 - explained.square().sum(0)).clamp_(min=0)  # (M,), variance
        return mean.cpu().numpy(), (signal + self.noise_sd**2).sqrt().cpu().numpy()


def fit_gaussian_process(
    distances: ArrayLike,
    mos: ArrayLike,
    *,
    noise_sd: float | None = None,
    constant: Literal["least_squares", "sample_mean"] = "least_squares",
    device: str | torch.device = "cpu",
) -> GaussianProcess:
    """Fit length, signal and noise by maximum marginal likelihood with its exact gradient.

    Tried are pairs of a length and a ratio of noise to signal variance (1e-6 to 1e6). Wide features
    give the likelihood several maxima, one of them noise alone, and a search from a few fixed
    starts ended up to 800 nats too low. Here at most 200 images climb from three fixed starts and
    from the three highest maxima of a grid. Their ends, and the same with more noise, are tried on
    all images, which climb from the best two. No climb ends lower than it starts.

    Args:
        distances: Between the training images, shape (N, N); duplicates (distance 0) are fine.
        mos: Scores, shape (N,), any scale.
        noise_sd: Hold the noise at this value, in units of the scores; None finds it.
        constant: Estimate of the constant mean: generalised ``least_squares`` at every length and
            noise tried, as MATLAB's fitrgp does for its constant basis, or ``sample_mean``.
        device: Where the matrices live.

    Raises:
        ValueError: If the distances are not those of any features, or all images coincide.

    Note:
        The predictive spread treats the constant as known. That fitrgp estimates its constant so is
        stated from memory of its documentation.

    References:
        Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, equations 5.8, 5.9.
    """
    mos = check_scores(mos)
    distances = torch.as_tensor(distances, dtype=torch.float64, device=device)
    if distances.shape != (len(mos), len(mos)):
        raise ValueError(f"distances must have shape {(len(mos),) * 2}, got {distances.shape}")
    mirrored = distances.allclose(distances.T, rtol=1e-6, atol=0)  # NaN is not
    if not mirrored or distances.diagonal().any() or distances.min() < 0 or distances.isinf().any():
        raise ValueError("distances must be finite, symmetric, at least 0, zeros on the diagonal")
    if not distances.any():
        raise ValueError("all images have the same features: every distance is 0")
    scores = torch.as_tensor(mos, device=device)
    unit = np.log([float(distances[distances > 0].median()), 1.0])

    def evaluate(x: np.ndarray, distances: Tensor, mos: Tensor) -> tuple[GaussianProcess, Gradient]:
        return _evaluate(distances, mos, unit + _LOGS @ x, noise_sd, constant)

    def value(x: np.ndarray, distances: Tensor, mos: Tensor) -> float:
        return -evaluate(x, distances, mos)[0].log_likelihood / len(mos)

    def negative(x: np.ndarray, distances: Tensor, mos: Tensor) -> tuple[float, np.ndarray]:
        process, gradient = evaluate(x, distances, mos)
        return -process.log_likelihood / len(mos), -(_LOGS.T @ gradient()) / len(mos)

    options = {"ftol": 1e-9, "gtol": 3e-5}
    climb = partial(minimize, negative, jac=True, bounds=_BOUNDS, options=options)  # L-BFGS-B
    # noise that is held is a share of the scores' variance, not of the signal's
    share = 1.0 if noise_sd is None else noise_sd**2 / mos.var()
    held = partial(np.add, np.log([1.0, share]))
    grid = _from_logs(held(_GRID))
    few = torch.as_tensor(np.random.default_rng(0).permutation(len(mos))[:_FEW], device=device)
    part = distances[few][:, few], scores[few]
    with _one_thread():
        tried = np.array([[value(x, *part) for x in row] for row in grid])
        peaks = np.argwhere(tried == minimum_filter(tried, size=3))
        peaks = sorted(map(tuple, peaks), key=lambda peak: tried[peak])[:3]
        starts = [*(grid[peak] for peak in peaks), *_from_logs(held(_STARTS))]
        tops = np.array([climb(start, args=part).x for start in starts])
    _, distinct = np.unique(tops.round(1), axis=0, return_index=True)
    wider = []  # of each top, the best on all images: (value, point)
    for length, ratio in tops[distinct] @ _LOGS.T:
        more = [(length, max(ratio, least)) for least in np.log(share * _LEAST_RATIOS)]
        points = [tuple(x) for x in _from_logs(np.array([*dict.fromkeys(more)]))]
        wider.append(min((value(np.array(x), distances, scores), x) for x in points))
    found = [climb(np.array(x), args=(distances, scores)) for _, x in sorted(wider)[:2]]
    top = min(found, key=lambda one: one.fun)
    return evaluate(top.x, distances, scores)[0]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: on matrices of few images several wait longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _from_logs(logs: np.ndarray) -> np.ndarray:
    """Turn logs of length and ratio, (..., 2), into points of the search."""
    ratios = logs.clip([-math.inf, -math.log(1e6)], [math.inf, math.log(1e6)])
    return np.linalg.solve(_LOGS, ratios[..., None])[..., 0].clip(*_BOUNDS[0])


def _evaluate(
    distances: Tensor, mos: Tensor, logs: np.ndarray, noise_sd: float | None, constant: str
) -> tuple[GaussianProcess, Gradient]:
    """Return the process at logs of length and noise ratio, and what gives the gradient there."""
    length, ratio = np.exp(logs).tolist()
    n, y = len(mos), mos - mos.mean()
    matrix, derivative = matern52(distances, length)
    matrix.diagonal().add_(ratio)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        kernel = f"length {length:.3g} and noise ratio {ratio:.3g}"
        raise ValueError(f"distances are not Euclidean: kernel of {kernel} not positive definite")
    alpha, ones = torch.cholesky_solve(torch.stack([y, torch.ones_like(y)], 1), factor).T  # (N,)
    offset = float(alpha.sum() / ones.sum()) if constant == "least_squares" else 0.0
    alpha, y = alpha - offset * ones, y - offset
    quadratic = max(float(y @ alpha), 1e-300)  # 0 where a few images score the same
    variance = quadratic / n if noise_sd is None else noise_sd**2 / ratio  # of the signal
    signal_sd, fit = math.sqrt(variance), quadratic / variance
    half_log_determinant = float(factor.diagonal().log().sum())
    likelihood = -0.5 * (fit + n * math.log(2 * math.pi * variance)) - half_log_determinant

    def gradient() -> np.ndarray:
        inverse = torch.cholesky_inverse(factor)
        by_length = alpha @ (derivative @ alpha) / variance
        by_length -= inverse.flatten() @ derivative.flatten()
        by_ratio = ratio * (alpha @ alpha / variance - inverse.trace())
        by_ratio += n - fit  # fit moves where the noise is held
        return 0.5 * np.array([float(by_length), float(by_ratio)])

    found = length, signal_sd, math.sqrt(ratio) * signal_sd, float(mos.mean()) + offset, likelihood
    return GaussianProcess(*found, factor, alpha), gradient


@dataclass(frozen=True)
class NoiseSearch:
    """A finished search of the noise."""

    trials: pd.DataFrame  # noise_sd, loss (log of 1 + cross-validated MSE) and best loss so far
    process: GaussianProcess  # fitted on all images with the best noise
    by_likelihood: GaussianProcess  # whose noise maximises the likelihood, for comparison
    seconds: float


def search_noise(
    distances: ArrayLike,
    mos: ArrayLike,
    *,
    n_trials: int = 30,
    n_folds: int = 5,
    seed: int = 0,
    groups: ArrayLike | None = None,
    device: str | torch.device = "cpu",
) -> NoiseSearch:
    """Find the noise as the paper did: Bayesian optimisation of a cross-validated loss (Fig. 3).

    Each noise tried is held by :func:`fit_gaussian_process`; the loss of all folds then follows
    from the one inverse of that fit. Arguments as there and for
    :func:`iqa_utils.regression.fold_numbers`; 30 trials are MATLAB's default, and the figure's.

    Note:
        MATLAB searches from 1e-4 up to ten score standard deviations; here the lower end is 1e-3
        standard deviations, so that it does not depend on the unit of the scores. Kernel and mean
        are those of all training images in every fold; only the weights are cross-validated.
    """
    started = time.perf_counter()
    mos = check_scores(mos)
    import optuna  # the core is installed without it

    fold = fold_numbers(len(mos), n_folds=n_folds, seed=seed, groups=groups)
    spread = float(mos.std())
    fit = partial(fit_gaussian_process, distances, mos, device=device)
    by_likelihood = best = fit()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=5)
    study = optuna.create_study(sampler=sampler)
    tried, smallest = [], math.inf
    for _ in range(n_trials):
        trial = study.ask()
        noise_sd = trial.suggest_float("noise_sd", 1e-3 * spread, 10 * spread, log=True)
        process = fit(noise_sd=noise_sd)
        loss = math.log1p(float(np.mean(cross_validated_residuals(process, fold) ** 2)))
        if loss < smallest:
            best, smallest = process, loss
        tried.append((noise_sd, loss, smallest))
        study.tell(trial, loss)
    trials = pd.DataFrame(tried, columns=["noise_sd", "loss", "best"])
    return NoiseSearch(trials, best, by_likelihood, time.perf_counter() - started)


def cross_validated_residuals(process: GaussianProcess, fold: np.ndarray) -> np.ndarray:
    """Return what each fold's images miss by when the others predict them, without refitting.

    With B the inverse of the training matrix, the residuals of fold I are ``B_II^-1 alpha_I``:
    score minus prediction, shape (N,). Rasmussen and Williams, 2006, section 5.4.2, for one image.
    """
    inverse = torch.cholesky_inverse(process.factor)
    residuals = torch.empty_like(process.alpha)
    for k in np.unique(fold):
        rows = torch.as_tensor(np.flatnonzero(fold == k), device=inverse.device)
        residuals[rows] = torch.linalg.solve(inverse[rows][:, rows], process.alpha[rows])
    return residuals.cpu().numpy()


def calibration(mos: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> pd.DataFrame:
    """Compare how often scores fall into predictive intervals with how often they should.

    ``mos``, ``mean`` and ``sd`` are of shape (M,). Returns one row per nominal ``level``, with
    ``coverage`` (share of scores inside the central interval) and ``half_width`` (mean).
    """
    levels = np.array([0.5, 0.68, 0.8, 0.9, 0.95, 0.99])
    reach = norm.ppf(0.5 + levels / 2)
    inside = np.abs(mos - mean)[:, None] <= reach * sd[:, None]  # (M, levels)
    coverage, half_width = inside.mean(axis=0), reach * sd.mean()
    return pd.DataFrame({"level": levels, "coverage": coverage, "half_width": half_width})

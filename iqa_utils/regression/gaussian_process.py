"""Exact Gaussian process regression with a Matern 5/2 kernel, from distances alone.

The features are never seen: training takes their (N, N) distances, prediction the (M, N) distances
from new images. Everything is float64 on the device asked for. Two ways to find the noise: the
likelihood (type II), and the paper's, Bayesian optimisation of a cross-validated loss.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.stats import norm
from torch import Tensor

from iqa_utils.regression import check_scores, fold_numbers

_ROWS = 32  # of a matrix at a time: these stay in a cache
# The search runs over x, from which these are the logs of length (in median distances) and of noise
# over signal variance. Long lengths fix signal over length alone, hence the turn.
_LOGS = 4.5 * np.array([[1.0, -0.5], [0.0, 1.0]])
_LIMIT = np.log(1e6) / 4.5
_STARTS = ((1 / 3, 1.0), (1.0, 0.1), (3.0, 1e-4))  # of the search: median distances, noise ratio
_FEW = 200  # images that choose among the starts


def matern52(distances: Tensor, length: float) -> tuple[Tensor, Tensor]:
    """Evaluate the Matern 5/2 correlation and its derivative by the log length.

    With ``r = sqrt(5) d / l`` the correlation is ``(1 + r + r^2/3) exp(-r)``, for distances of any
    shape and a length in their unit.

    Note:
        Equation (3) of the paper prints ``5 r^2 / (3 l)^2``; this is ``5 r^2 / (3 l^2)``. With the
        printed term the function is no longer twice differentiable, nor a Matern kernel.

    References:
        Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, equation 4.17.
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
    """A fitted Gaussian process with a constant mean.

    Attributes:
        length: Length scale, in units of the distances.
        signal_sd: Standard deviation of the function, in units of the scores.
        noise_sd: Standard deviation of the noise, in units of the scores.
        mean: Constant mean, in units of the scores.
        log_likelihood: Log marginal likelihood of the training scores, nats.
        factor: Lower Cholesky factor of correlation plus noise ratio, shape (N, N).
        alpha: That matrix's inverse times the scores less their mean, shape (N,).
    """

    length: float
    signal_sd: float
    noise_sd: float
    mean: float
    log_likelihood: float
    factor: Tensor
    alpha: Tensor

    def predict(self, distances: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Predict means and standard deviations (noise included), (M,) each, from distances (M, N).

        The mean is ``k*^T (C + s^2 I)^-1 y``; equation (2) of the paper lacks the inverse.
        """
        distances = _distances(distances, columns=len(self.alpha), device=self.alpha.device)
        correlation, _ = matern52(distances, self.length)  # (M, N)
        mean = self.mean + correlation @ self.alpha
        explained = torch.linalg.solve_triangular(self.factor, correlation.T, upper=False)
        left = (1 - explained.square().sum(0)).clamp_(min=0)  # share of the signal variance
        sd = (self.signal_sd**2 * left + self.noise_sd**2).sqrt()
        return mean.cpu().numpy(), sd.cpu().numpy()


def fit_gaussian_process(
    distances: ArrayLike,
    mos: ArrayLike,
    *,
    noise_sd: float | None = None,
    constant: Literal["least_squares", "sample_mean"] = "least_squares",
    device: str | torch.device = "cpu",
) -> GaussianProcess:
    """Fit length, signal and noise by maximum marginal likelihood with its exact gradient.

    Of length and ratio of noise to signal variance, some ten pairs are tried; given these the best
    signal variance is known in closed form, or follows from ``noise_sd``. The likelihood has
    several tops, one of them noise alone: the highest that 200 images show from three starts is
    climbed.

    Args:
        distances: Between the training images, shape (N, N), symmetric, zero on the diagonal.
            Duplicate images (distance 0) are fine: noise keeps the matrix regular.
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
        Rasmussen and Williams, 2006, equations 5.8 and 5.9; for the constant, section 2.7.
    """
    mos = check_scores(mos)
    distances = _distances(distances, columns=len(mos), device=device, square=True)
    typical = float(distances[distances > 0].median()) if bool((distances > 0).any()) else 0.0
    if typical == 0:
        raise ValueError("all images have the same features: every distance is 0")
    centred = torch.as_tensor(mos - mos.mean(), dtype=torch.float64, device=device)
    # noise that is held is a share of the scores' variance, not of the signal's
    scale = 1.0 if noise_sd is None else noise_sd**2 / mos.var()

    def climb(distances: Tensor, y: Tensor, logs: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the top above a start, and the logs of length and noise ratio there."""

        def negative(x: np.ndarray) -> tuple[float, np.ndarray]:
            length, ratio = np.exp(_LOGS @ x).tolist()
            step = _Likelihood(distances, y, typical * length, ratio, noise_sd, constant)
            value, gradient = step.value_and_gradient()
            return -value / len(y), -(_LOGS.T @ gradient) / len(y)

        found = minimize(
            negative,
            np.linalg.solve(_LOGS, logs).clip(-_LIMIT, _LIMIT),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-_LIMIT, _LIMIT)] * 2,
            options={"ftol": 1e-9, "gtol": 3e-5},
        )
        return -found.fun, _LOGS @ found.x

    few = torch.as_tensor(np.random.default_rng(0).permutation(len(mos))[:_FEW], device=device)
    part, y = distances[few][:, few], centred[few]
    ratios = [np.clip(scale * ratio, 1e-6, 1e6) for _, ratio in _STARTS]
    starts = np.log([(length, ratio) for (length, _), ratio in zip(_STARTS, ratios, strict=True)])
    _, logs = max((climb(part, y, start) for start in starts), key=lambda top: top[0])
    if len(few) < len(mos):
        _, logs = climb(distances, centred, logs)
    length, ratio = np.exp(logs).tolist()
    best = _Likelihood(distances, centred, typical * length, ratio, noise_sd, constant)
    return GaussianProcess(
        length=best.length,
        signal_sd=math.sqrt(best.signal_variance),
        noise_sd=math.sqrt(best.signal_variance * best.ratio),
        mean=float(mos.mean()) + best.constant,
        log_likelihood=best.value,
        factor=best.factor,
        alpha=best.alpha,
    )


class _Likelihood:
    """One evaluation of the log marginal likelihood at a length and a noise ratio."""

    def __init__(
        self,
        distances: Tensor,
        y: Tensor,
        length: float,
        ratio: float,
        noise_sd: float | None,
        constant: str,
    ) -> None:
        n = len(y)
        matrix, self.derivative = matern52(distances, length)
        matrix.diagonal().add_(ratio)
        self.factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            raise ValueError(
                "the distances are not Euclidean: the kernel matrix of length "
                f"{length:.3g} and noise ratio {ratio:.3g} is not positive definite"
            )
        sides = torch.stack([y, torch.ones_like(y)], dim=1)
        self.alpha, ones = torch.cholesky_solve(sides, self.factor).T  # (N,) each
        self.constant = float(self.alpha.sum() / ones.sum()) if constant == "least_squares" else 0.0
        self.alpha, y = self.alpha - self.constant * ones, y - self.constant
        self.quadratic = float(y @ self.alpha)
        self.length, self.ratio, self.noise_sd, self.n = length, ratio, noise_sd, n
        self.signal_variance = self.quadratic / n if noise_sd is None else noise_sd**2 / self.ratio
        log_determinant = 2 * float(self.factor.diagonal().log().sum())
        self.value = -0.5 * (
            self.quadratic / self.signal_variance
            + log_determinant
            + n * math.log(2 * math.pi * self.signal_variance)
        )

    def value_and_gradient(self) -> tuple[float, np.ndarray]:
        """Return the likelihood and its gradient by log length and log ratio."""
        inverse = torch.cholesky_inverse(self.factor)
        fit = float(self.alpha @ (self.derivative @ self.alpha)) / self.signal_variance
        by_length = 0.5 * (fit - float(inverse.flatten() @ self.derivative.flatten()))
        fit = float(self.alpha @ self.alpha) / self.signal_variance
        by_ratio = 0.5 * self.ratio * (fit - float(inverse.trace()))
        if self.noise_sd is not None:  # the signal variance moves with the ratio
            by_ratio += 0.5 * (self.n - self.quadratic / self.signal_variance)
        return self.value, np.array([by_length, by_ratio])


@dataclass(frozen=True)
class NoiseSearch:
    """A finished search of the noise.

    Attributes:
        trials: One row per evaluation: ``noise_sd``, ``loss`` (log of 1 + cross-validated mean
            squared error), ``best`` (the smallest loss so far).
        process: The process fitted on all images with the best noise.
        by_likelihood: The process whose noise maximises the likelihood, for comparison.
        seconds: Wall time of the search.
    """

    trials: pd.DataFrame
    process: GaussianProcess
    by_likelihood: GaussianProcess
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

    For each noise tried, length and signal are fitted by likelihood with the noise held; the loss
    of all folds then follows from the one inverse of that fit, without refitting.

    Arguments as for :func:`fit_gaussian_process` and :func:`iqa_utils.regression.fold_numbers`;
    MATLAB's default, and the paper's figure, have 30 trials.

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
    distances = _distances(distances, columns=len(mos), device=device, square=True)
    free = fit_gaussian_process(distances, mos, device=device)

    best: list[tuple[float, GaussianProcess]] = []  # one at a time in memory

    def objective(trial: optuna.Trial) -> float:
        noise_sd = trial.suggest_float("noise_sd", 1e-3 * spread, 10 * spread, log=True)
        process = fit_gaussian_process(distances, mos, noise_sd=noise_sd, device=device)
        loss = math.log1p(float(np.mean(cross_validated_residuals(process, fold) ** 2)))
        if not best or loss < best[0][0]:
            best[:] = [(loss, process)]
        return loss

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=5)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=n_trials)
    tried = [(trial.params["noise_sd"], trial.value) for trial in study.trials]
    trials = pd.DataFrame(tried, columns=["noise_sd", "loss"])
    trials["best"] = trials["loss"].cummin()
    return NoiseSearch(trials, best[0][1], free, time.perf_counter() - started)


def cross_validated_residuals(process: GaussianProcess, fold: np.ndarray) -> np.ndarray:
    """Return what each fold's images miss by when the others predict them, without refitting.

    With B the inverse of the training matrix, the residuals of fold I are ``B_II^-1 alpha_I``:
    score minus prediction, shape (N,), in units of the scores.

    References:
        Rasmussen and Williams, 2006, section 5.4.2 (one image per fold).
    """
    inverse = torch.cholesky_inverse(process.factor)
    residuals = torch.empty_like(process.alpha)
    for k in np.unique(fold):
        rows = torch.as_tensor(np.flatnonzero(fold == k), device=inverse.device)
        block = inverse[rows][:, rows]
        residuals[rows] = torch.linalg.solve(block, process.alpha[rows])
    return residuals.cpu().numpy()


def calibration(
    mos: ArrayLike,
    mean: ArrayLike,
    sd: ArrayLike,
    *,
    levels: ArrayLike = (0.5, 0.68, 0.8, 0.9, 0.95, 0.99),
) -> pd.DataFrame:
    """Compare how often scores fall into predictive intervals with how often they should.

    ``mos``, ``mean`` and ``sd`` are of shape (M,). Returns one row per nominal ``level``, with
    ``coverage`` (share of scores inside the central interval) and ``half_width`` (mean).
    """
    mos, mean, sd = (np.asarray(x, dtype=np.float64) for x in (mos, mean, sd))
    levels = np.asarray(levels, dtype=np.float64)
    reach = norm.ppf(0.5 + levels / 2)  # (K,)
    inside = np.abs(mos - mean)[:, None] <= reach * sd[:, None]  # (M, K)
    found = {"level": levels, "coverage": inside.mean(axis=0), "half_width": reach * sd.mean()}
    return pd.DataFrame(found)


def _distances(
    distances: ArrayLike | Tensor,
    *,
    columns: int,
    device: str | torch.device,
    square: bool = False,
) -> Tensor:
    distances = torch.as_tensor(distances, dtype=torch.float64, device=device)
    rows = columns if square else len(distances)
    if distances.shape != (rows, columns):
        raise ValueError(
            f"distances must have shape ({'N' if square else 'M'}, {columns}), got "
            f"{tuple(distances.shape)}"
        )
    if not bool(torch.isfinite(distances).all()) or bool((distances < 0).any()):
        raise ValueError("distances must be finite and at least 0")
    if square and not (
        torch.allclose(distances, distances.T, rtol=1e-6, atol=0) and not distances.diagonal().any()
    ):
        raise ValueError("distances must be symmetric with zeros on the diagonal")
    return distances

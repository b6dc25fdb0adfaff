"""How far a number can be trusted, and whether one method beats another.

Over the images of one test set: the bootstrap. Over repeated splits: signed ranks and the
corrected t. All tests are two-sided, say what they assume, and hold their 5 % in a simulation of
``tests/test_statistics.py``, or say where they do not.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from scipy.stats import t as t_distribution

from iqa_utils.metrics import Metric, check_pair


class TestResult(NamedTuple):
    """The statistic of a test and its two-sided p value."""

    statistic: float
    p: float


class Difference(NamedTuple):
    """A difference `a - b` of a metric, its interval, and a two-sided p value."""

    difference: float
    low: float
    high: float
    p: float


def bootstrap_ci(
    mos: ArrayLike,
    pred: ArrayLike,
    metric: Metric,
    *,
    groups: ArrayLike | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a metric.

    With `groups`, whole groups are drawn: the distorted versions of one photograph are not
    independent images, and an interval that treats them so is too short.

    Args:
        mos: Human scores, shape (N,).
        pred: Predictions, shape (N,).
        metric: Function of (mos, pred).
        groups: What each image belongs to (its `reference`), shape (N,); every image its own
            group without.
        n_resamples: Draws of the bootstrap.
        seed: Seed of the draws.

    Returns:
        Lower and upper end; NaN if the metric is undefined in a draw.

    Raises:
        ValueError: If shapes differ, a score is not finite, or there is only one group.

    References:
        Efron, Tibshirani, An Introduction to the Bootstrap, 1993, sections 8 and 13.
    """
    mos, pred = check_pair(mos, pred)
    draws = [metric(mos[i], pred[i]) for i in _resamples(len(mos), groups, n_resamples, seed)]
    return _interval(draws)


def paired_bootstrap(
    mos: ArrayLike,
    pred_a: ArrayLike,
    pred_b: ArrayLike,
    metric: Metric,
    *,
    groups: ArrayLike | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """Compare two methods on the same images, drawing the same images for both.

    The arguments are those of :func:`bootstrap_ci`. Returns metric(a) - metric(b), its interval,
    and the p at which the interval touches zero, never below 2 / (n_resamples + 1).
    """
    options = {"groups": groups, "n_resamples": n_resamples, "seed": seed}
    return pairwise_bootstrap(mos, {"a": pred_a, "b": pred_b}, metric, **options)["a", "b"]


def pairwise_bootstrap(
    mos: ArrayLike,
    preds: Mapping[str, ArrayLike],
    metric: Metric,
    *,
    groups: ArrayLike | None = None,
    n_resamples: int | None = None,
    seed: int = 0,
) -> dict[tuple[str, str], Difference]:
    """Compare every two of several methods as `paired_bootstrap` does, drawing once for all.

    Without ``n_resamples`` it draws so often that the smallest p, 2 / (draws + 1), is still 2 %
    after Holm's correction over all pairs, and at least 1,000 times. Returns first minus second of
    every pair, in the order of ``preds``, which maps methods to predictions.
    """
    names, checked = list(preds), {}
    for name in names:
        scores, checked[name] = check_pair(mos, preds[name])
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    n_resamples = n_resamples or max(1000, 100 * len(pairs))
    draws = np.array(
        [
            [metric(scores[i], checked[name][i]) for name in names]
            for i in _resamples(len(scores), groups, n_resamples, seed)
        ]
    )
    whole = dict(zip(names, [metric(scores, checked[name]) for name in names], strict=True))
    columns = dict(zip(names, draws.T, strict=True))
    found = {}
    for a, b in pairs:
        drawn = columns[a] - columns[b]
        below, above = np.sum(drawn <= 0), np.sum(drawn >= 0)
        p = min(1.0, 2 * (1 + min(below, above)) / (1 + n_resamples))
        p = float("nan") if np.isnan(drawn).any() else float(p)
        found[a, b] = Difference(whole[a] - whole[b], *_interval(drawn), p)
    return found


def wilcoxon_splits(a: ArrayLike, b: ArrayLike) -> TestResult:
    """Test paired results of two methods over splits by signed ranks, exactly.

    The null distribution is counted over all 2^J signs given the ranks, so ties are exact too.
    Pairs without a difference are left out.

    ``a`` and ``b`` are a metric of two methods on the same splits, shape (J,). Returns the smaller
    rank sum, and its p.

    Note:
        Repeated splits of one data set share images; the splits are then not independent and the
        test rejects too often. `nadeau_bengio` corrects for that.

    References:
        Wilcoxon, Individual comparisons by ranking methods, Biometrics Bulletin 1945.
    """
    a, b = check_pair(a, b)
    d = (a - b)[a != b]
    if not len(d):
        return TestResult(0.0, 1.0)
    doubled = np.rint(2 * rankdata(np.abs(d))).astype(int)  # average ranks are halves
    counts = np.ones(1)  # share of sign patterns by doubled positive rank sum
    for rank in doubled:
        counts = (np.pad(counts, (0, rank)) + np.pad(counts, (rank, 0))) / 2
    positive = int(doubled[d > 0].sum())
    smaller = min(positive, int(doubled.sum()) - positive)
    return TestResult(smaller / 2, float(min(1.0, 2 * counts[: smaller + 1].sum())))


def nadeau_bengio(a: ArrayLike, b: ArrayLike, n_train: int, n_test: int) -> TestResult:
    """Test paired results over random splits of one data set by the corrected resampled t.

    The splits overlap, so the variance of the mean difference is larger than that of independent
    runs by about the ratio of ``n_test`` to ``n_train``, the images of a test and training set.

    ``a`` and ``b`` are a metric of two methods on the same splits, shape (J,). Returns the t with
    J - 1 degrees of freedom, and its p, which is 1 if all differences are zero.

    References:
        Nadeau, Bengio, Inference for the generalization error, Machine Learning 2003, section 3.
    """
    a, b = check_pair(a, b)
    if n_train < 1 or n_test < 1:
        raise ValueError(f"expected sets of at least 1 image, found {n_train} and {n_test}")
    d, n = a - b, len(a)
    if not d.any():
        return TestResult(0.0, 1.0)
    variance = (1 / n + n_test / n_train) * d.var(ddof=1)
    t = float(d.mean() / np.sqrt(variance)) if variance else float(np.copysign(np.inf, d[0]))
    return TestResult(t, float(2 * t_distribution.sf(abs(t), n - 1)))


def holm(p: ArrayLike) -> np.ndarray:
    """Adjust the p values of a family of tests, shape (K,), by Holm's step-down procedure."""
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _resamples(
    n: int, groups: ArrayLike | None, n_resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """Yield row numbers of each draw; groups are drawn whole."""
    rng = np.random.default_rng(seed)
    if groups is None:
        for _ in range(n_resamples):
            yield rng.integers(n, size=n)
        return
    names, labels = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"groups: expected at least 2, found only '{names[0]}'")
    ends = np.cumsum(np.bincount(labels))[:-1]
    members = np.split(np.argsort(labels, kind="stable"), ends)
    for _ in range(n_resamples):
        yield np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])


def _interval(draws: ArrayLike) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)

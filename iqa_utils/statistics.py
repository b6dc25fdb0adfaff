"""How far a number can be trusted, and whether one method beats another.

Intervals and tests of two kinds: over the images of one test part (bootstrap, dependent
correlations, residual variances) and over repeated splits (signed ranks, corrected t). All tests
are two-sided, all say what they assume, and every one holds its 5 % in a simulation of
`tests/test_statistics.py`, or says where it does not.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import f as f_distribution
from scipy.stats import norm, rankdata
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
    level: float = 0.95,
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
        level: Share of the draws inside the interval, in (0, 1).
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
    return _interval(draws, level)


def paired_bootstrap(
    mos: ArrayLike,
    pred_a: ArrayLike,
    pred_b: ArrayLike,
    metric: Metric,
    *,
    groups: ArrayLike | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Compare two methods on the same images, drawing the same images for both.

    Args:
        mos: Human scores, shape (N,).
        pred_a: Predictions of one method, shape (N,).
        pred_b: Predictions of the other, shape (N,).
        metric: Function of (mos, pred).
        groups: As in `bootstrap_ci`.
        n_resamples: Draws of the bootstrap; p is never below 2 / (n_resamples + 1).
        level: Share of the draws inside the interval, in (0, 1).
        seed: Seed of the draws.

    Returns:
        metric(a) - metric(b), its interval, and the p at which the interval touches zero.

    Raises:
        ValueError: As `bootstrap_ci`.
    """
    options = {"groups": groups, "n_resamples": n_resamples, "level": level, "seed": seed}
    return pairwise_bootstrap(mos, {"a": pred_a, "b": pred_b}, metric, **options)["a", "b"]


def pairwise_bootstrap(
    mos: ArrayLike,
    preds: Mapping[str, ArrayLike],
    metric: Metric,
    *,
    groups: ArrayLike | None = None,
    n_resamples: int | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> dict[tuple[str, str], Difference]:
    """Compare every two of several methods as `paired_bootstrap` does, drawing once for all.

    Args:
        mos: Human scores, shape (N,).
        preds: Predictions by method, each of shape (N,).
        metric: Function of (mos, pred).
        groups: As in `bootstrap_ci`.
        n_resamples: Draws. None takes enough that the smallest p there can be, 2 / (draws + 1),
            is still 2 % after Holm's correction over all pairs, and at least 1,000.
        level: Share of the draws inside the interval, in (0, 1).
        seed: Seed of the draws.

    Returns:
        Difference first minus second of every pair, in the order of the methods.

    Raises:
        ValueError: As `bootstrap_ci`.
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
        found[a, b] = Difference(whole[a] - whole[b], *_interval(drawn, level), p)
    return found


def wilcoxon_splits(a: ArrayLike, b: ArrayLike) -> TestResult:
    """Test paired results of two methods over splits by signed ranks, exactly.

    The null distribution is counted over all 2^J signs given the ranks, so ties are exact too.
    Pairs without a difference are left out.

    Args:
        a: A metric of one method, one value a split, shape (J,).
        b: The same metric of the other on the same splits, shape (J,).

    Returns:
        The smaller rank sum, and its p.

    Raises:
        ValueError: If the shapes differ or a value is not finite.

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
    runs by about the ratio of the parts.

    Args:
        a: A metric of one method, one value a split, shape (J,).
        b: The same metric of the other on the same splits, shape (J,).
        n_train: Images in a training part.
        n_test: Images in a test part.

    Returns:
        The t with J - 1 degrees of freedom, and its p; p is 1 if all differences are zero.

    Raises:
        ValueError: If the shapes differ, a value is not finite, or a part is empty.

    References:
        Nadeau, Bengio, Inference for the generalization error, Machine Learning 2003, section 3.
    """
    a, b = check_pair(a, b)
    if n_train < 1 or n_test < 1:
        raise ValueError(f"expected parts of at least 1 image, found {n_train} and {n_test}")
    d, n = a - b, len(a)
    if not d.any():
        return TestResult(0.0, 1.0)
    variance = (1 / n + n_test / n_train) * d.var(ddof=1)
    t = float(d.mean() / np.sqrt(variance)) if variance else float(np.copysign(np.inf, d[0]))
    return TestResult(t, float(2 * t_distribution.sf(abs(t), n - 1)))


def williams(r_a: float, r_b: float, r_ab: float, n: int) -> TestResult:
    """Test whether two predictions correlate equally with the same scores; Williams' t.

    Args:
        r_a: Correlation of the first prediction with the scores.
        r_b: Correlation of the second prediction with the scores.
        r_ab: Correlation between the two predictions.
        n: Images, at least 4.

    Returns:
        The t with n - 3 degrees of freedom, and its p.

    Raises:
        ValueError: If no data can have these correlations, or n is too small.

    Note:
        Derived for Pearson correlations of normal scores. With Spearman's it is an approximation.

    References:
        Steiger, Tests for comparing elements of a correlation matrix, Psychological Bulletin
        1980, equation 7.
    """
    determinant = _determinant(r_a, r_b, r_ab, n)
    if r_a == r_b:
        return TestResult(0.0, 1.0)
    mean = (r_a + r_b) / 2
    spread = 2 * (n - 1) / (n - 3) * determinant + mean**2 * (1 - r_ab) ** 3
    if not spread:
        return TestResult(float(np.copysign(np.inf, r_a - r_b)), 0.0)
    t = float((r_a - r_b) * np.sqrt((n - 1) * (1 + r_ab) / spread))
    return TestResult(t, float(2 * t_distribution.sf(abs(t), n - 3)))


def steiger(r_a: float, r_b: float, r_ab: float, n: int) -> TestResult:
    """Test the same as `williams` on Fisher's z; Steiger's Z with average correlations.

    Args:
        r_a: Correlation of the first prediction with the scores, inside (-1, 1).
        r_b: Correlation of the second prediction with the scores, inside (-1, 1).
        r_ab: Correlation between the two predictions.
        n: Images, at least 4.

    Returns:
        The standard normal statistic, and its p.

    Raises:
        ValueError: If no data can have these correlations, one is perfect, or n is too small.

    References:
        Steiger, Tests for comparing elements of a correlation matrix, Psychological Bulletin
        1980, equations 3 and 14.
    """
    _determinant(r_a, r_b, r_ab, n)
    if r_a == r_b:
        return TestResult(0.0, 1.0)
    if max(abs(r_a), abs(r_b)) == 1:
        raise ValueError(f"expected correlations inside (-1, 1), found {r_a} and {r_b}")
    square = ((r_a + r_b) / 2) ** 2
    covariance = r_ab * (1 - 2 * square) - square * (1 - 2 * square - r_ab**2) / 2
    shared = covariance / (1 - square) ** 2
    z = float((np.arctanh(r_a) - np.arctanh(r_b)) * np.sqrt((n - 3) / (2 - 2 * shared)))
    return TestResult(z, float(2 * norm.sf(abs(z))))


def residual_f_test(mos: ArrayLike, pred_a: ArrayLike, pred_b: ArrayLike) -> TestResult:
    """Test whether two predictions leave residuals of equal variance, as the papers do.

    Args:
        mos: Human scores, shape (N,).
        pred_a: Predictions of one method on the scale of `mos`, shape (N,).
        pred_b: Predictions of the other, shape (N,).

    Returns:
        var(a) / var(b) with (N - 1, N - 1) degrees of freedom, and its p.

    Raises:
        ValueError: If the shapes differ, a score is not finite, or residuals do not vary.

    Note:
        The test takes the residuals for normal and the two sets for independent. Two methods on
        the same images are not: their residuals correlate, and the test then rejects too seldom.
        `pitman_morgan` allows for it.

    References:
        Sheikh, Sabir, Bovik, A statistical evaluation of recent full reference image quality
        assessment algorithms, IEEE TIP 2006, section III-C.
    """
    a, b = _residuals(mos, pred_a, pred_b)
    ratio, free = float(a.var(ddof=1) / b.var(ddof=1)), len(a) - 1
    tail = f_distribution.sf(max(ratio, 1 / ratio), free, free)
    return TestResult(ratio, float(min(1.0, 2 * tail)))


def pitman_morgan(mos: ArrayLike, pred_a: ArrayLike, pred_b: ArrayLike) -> TestResult:
    """Test whether residuals on the same images have equal variance.

    The variances are equal exactly when sum and difference of the residuals are uncorrelated.

    Args:
        mos: Human scores, shape (N,), N at least 3.
        pred_a: Predictions of one method on the scale of `mos`, shape (N,).
        pred_b: Predictions of the other, shape (N,).

    Returns:
        The t with N - 2 degrees of freedom, positive where a varies more, and its p.

    Raises:
        ValueError: As `residual_f_test`.

    References:
        Pitman, A note on normal correlation, Biometrika 1939.
    """
    a, b = _residuals(mos, pred_a, pred_b)
    if len(a) < 3:
        raise ValueError(f"expected at least 3 images, found {len(a)}")
    total, gap = a + b, a - b
    if not gap.var() or not total.var():
        return TestResult(0.0, 1.0)
    r, free = np.corrcoef(total, gap)[0, 1], len(a) - 2
    t = float(r * np.sqrt(free / max(1 - r**2, np.finfo(float).tiny)))
    return TestResult(t, float(2 * t_distribution.sf(abs(t), free)))


def holm(p: Sequence[float] | ArrayLike) -> np.ndarray:
    """Adjust p values so that all tests together err with the stated probability.

    Args:
        p: p values of a family of tests, shape (K,).

    Returns:
        Adjusted p values, shape (K,), in the order given.

    Raises:
        ValueError: If a value is outside [0, 1].

    References:
        Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of
        Statistics 1979.
    """
    p = np.asarray(p, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"expected p values in [0, 1] of shape (K,), found {p}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _resamples(
    n: int, groups: ArrayLike | None, n_resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """Yield row numbers of each draw; groups are drawn whole."""
    if n_resamples < 1:
        raise ValueError(f"n_resamples: expected at least 1, found {n_resamples}")
    rng = np.random.default_rng(seed)
    if groups is None:
        for _ in range(n_resamples):
            yield rng.integers(n, size=n)
        return
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise ValueError(f"groups: expected shape {(n,)}, found {groups.shape}")
    names, labels = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"groups: expected at least 2, found only '{names[0]}'")
    ends = np.cumsum(np.bincount(labels))[:-1]
    members = np.split(np.argsort(labels, kind="stable"), ends)
    for _ in range(n_resamples):
        yield np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])


def _interval(draws: ArrayLike, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level: expected a share in (0, 1), found {level}")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _determinant(r_a: float, r_b: float, r_ab: float, n: int) -> float:
    """Determinant of the correlation matrix, once it is known to be one."""
    if n < 4:
        raise ValueError(f"n: expected at least 4 images, found {n}")
    value = 1 - r_a**2 - r_b**2 - r_ab**2 + 2 * r_a * r_b * r_ab
    # not at once: correlations that were computed from data may miss 0 by rounding
    if max(abs(r_a), abs(r_b), abs(r_ab)) > 1 or value < -1e-9:
        raise ValueError(f"no data have the correlations {r_a}, {r_b} and {r_ab}")
    return max(value, 0.0)


def _residuals(
    mos: ArrayLike, pred_a: ArrayLike, pred_b: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    mos, pred_a = check_pair(mos, pred_a)
    _, pred_b = check_pair(mos, pred_b)
    a, b = mos - pred_a, mos - pred_b
    if not a.var() or not b.var():
        raise ValueError("expected residuals that vary, found all residuals of a method equal")
    return a, b

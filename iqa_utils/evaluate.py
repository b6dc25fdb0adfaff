"""Score a table of predictions by any grouping, and compare methods in pairs.

A table of predictions has one row per image, method and run: the columns ``mos``, ``pred``,
``image``, ``seed`` (the run or split) and whatever tells experiments apart (``method``,
``dataset``, ...). Both functions return long tables with plain columns: pivot, draw or save them.

A metric is a name: one of :data:`iqa_utils.metrics.METRICS`; ``"RMSE 0-20"`` or ``"MAE 0-20 and
80-100"`` for the images in a range or in several; ``"RMSE ranges SD"`` and ``"MAE ranges mean"``
for the spread and the mean of the errors of all ranges; ``"SRCC within subset"`` (or ``"MAE 0-20
within subset"``) for the mean inside the groups of a column, each counted by its images, or by the
column ``weight`` where the table has one: then the runs of a group are combined first. Noise raises
a spread, and a bootstrap adds noise: read the interval of ``ranges SD`` as an upper one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import t as t_distribution, wilcoxon

from iqa_utils.metrics import METRICS, check_pair, range_index, range_names

_OVER_RANGES = ("ranges SD", "ranges mean")


def range_metrics(metric: str, edges: Sequence[float]) -> list[str]:
    """Name a metric in every range of scores: ``["RMSE 0-20", "RMSE 20-40", ...]``."""
    return [f"{metric} {name}" for name in range_names(edges)]


def score(
    predictions: pd.DataFrame, by: Sequence[str], metrics: Sequence[str], **options: Any
) -> pd.DataFrame:
    """Score every experiment, with the spread over its runs and an interval.

    Args:
        predictions: One row per image, experiment and run.
        by: Columns that tell experiments apart.
        metrics: Names, as the module describes.
        **options: ``edges``, borders of the score ranges, where a metric needs them. ``combine``,
            how values of several runs become one: ``"mean"`` or ``"median"``. ``resample``, the
            column whose values are drawn, all runs of an image together: ``"image"``, or
            ``"reference"`` where images share one; the interval then reflects the choice of test
            images. None takes the t interval over runs, with the variance of Nadeau and Bengio
            where ``predictions`` has ``n_train``: the runs are then splits that share images.
            ``n_resamples``, draws of the bootstrap (1,000), and their ``seed`` (0).

    Returns:
        Columns ``by``, ``metric``, ``value``, ``sd`` (over runs, NaN for one), ``ci_low``,
        ``ci_high`` (95 %), ``n`` (images per run), ``n_runs``. Undefined values (a correlation of
        constant predictions, a range with fewer than two images) have no row.

    Raises:
        KeyError: If a metric or a column is unknown.

    Example:
        >>> table = pd.DataFrame({"image": list("abcd"), "mos": [1.0, 2, 3, 4],
        ...     "pred": [1.0, 2, 4, 3], "seed": 0, "method": "ridge"})
        >>> score(table, ["method"], ["MAE"])[["method", "metric", "value", "n"]].values.tolist()
        [['ridge', 'MAE', 0.5, 4]]
    """
    rows, predictions = [], predictions.reset_index(drop=True)
    for key, group in predictions.groupby(list(by), sort=False, dropna=False):
        runs = _Runs(group, **options)
        for metric in metrics:
            values = runs.values(metric)
            if len(values) and np.isfinite(values).all():
                spread = float(values.std(ddof=1)) if len(values) > 1 else np.nan
                cell = [metric, runs.whole(metric), spread, *runs.interval(metric)]
                rows.append([*key, *cell, runs.count(metric), len(values)])
    columns = [*by, "metric", "value", "sd", "ci_low", "ci_high", "n", "n_runs"]
    return pd.DataFrame(rows, columns=columns)


def compare(
    predictions: pd.DataFrame,
    baseline: Mapping[str, str],
    metrics: Sequence[str],
    *,
    by: Sequence[str] = (),
    **options: Any,
) -> pd.DataFrame:
    """Subtract a baseline from every other experiment on the same images.

    ``baseline`` is one column and its value, such as ``{"method": "none"}``; within each group of
    ``by``, all others are compared with it. Metrics and options are those of :func:`score`. Both
    sides see the same draws, and ``p`` is never below 2 / (n_resamples + 1).

    Returns:
        Columns ``by``, the compared column, ``baseline``, ``metric``, ``value`` (experiment minus
        baseline), ``ci_low``, ``ci_high``, ``p`` over images, ``p_holm`` over all experiments of a
        group and metric, ``p_runs`` over runs (corrected resampled t where ``predictions`` has
        ``n_train`` and there are three runs or more, else signed ranks from five runs on, else
        NaN), ``n``, ``n_runs``.

    Raises:
        KeyError: If a group has no such baseline.
        ValueError: If an experiment predicts other images than the baseline.

    Example:
        >>> table = pd.DataFrame({"image": [*"abcd"] * 2, "mos": [1.0, 2, 3, 4] * 2,
        ...     "pred": [1.0, 2, 4, 3, 2, 1, 4, 3], "seed": 0, "method": [*"AAAABBBB"]})
        >>> compare(table, {"method": "A"}, ["MAE"])[["method", "value"]].values.tolist()
        [['B', 0.5]]
    """
    (column, reference), rows = *baseline.items(), []
    predictions = predictions.reset_index(drop=True)
    groups = predictions.groupby(list(by), sort=False) if by else [((), predictions)]
    for key, group in groups:
        parts = dict(list(group.groupby(column, sort=False)))
        if reference not in parts:
            raise KeyError(f"{column} {reference!r} is not among {sorted(map(str, parts))}")
        base = _Runs(parts.pop(reference), **options)
        for name, part in parts.items():
            runs = _Runs(part, **options)
            if not np.array_equal(runs.units, base.units):
                raise ValueError(f"{name} and {reference} predict different images")
            for metric in metrics:
                found = _difference(runs, base, metric)
                if found is not None:
                    n = runs.count(metric)
                    rows.append([*key, name, reference, metric, *found, n, len(runs.runs)])
    columns = [*by, column, "baseline", "metric", "value", "ci_low", "ci_high", "p", "p_runs"]
    table = pd.DataFrame(rows, columns=[*columns, "n", "n_runs"])
    family = table.groupby([*by, "metric"], sort=False)["p"]
    return table.assign(p_holm=family.transform(lambda p: holm(p.to_numpy())))


def _difference(runs: _Runs, base: _Runs, metric: str) -> tuple[float, ...] | None:
    """Return value, ends of the interval, p over images and p over runs."""
    ours, theirs = runs.values(metric), base.values(metric)
    if not (len(ours) and np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return None
    drawn = runs.draws(metric) - base.draws(metric)
    drawn = drawn[np.isfinite(drawn)]
    tail = min(np.sum(drawn <= 0), np.sum(drawn >= 0))
    p = min(1.0, 2 * (1 + tail) / (1 + len(drawn)))
    p_runs = np.nan
    if len(ours) == len(theirs) > 2 and runs.overlap:
        p_runs = nadeau_bengio(ours, theirs, *runs.overlap)[1]
    elif len(ours) == len(theirs) > 4:
        # the default is exact for few runs; PermutationMethod is too, but random for more
        p_runs = wilcoxon(ours, theirs).pvalue if (ours != theirs).any() else 1.0
    value = runs.combine(ours) - runs.combine(theirs)
    return float(value), *_ends(drawn), float(p), float(p_runs)


class _Runs:
    """The runs of one experiment, and the draws that all its metrics share."""

    def __init__(
        self,
        table: pd.DataFrame,
        *,
        edges: Sequence[float] = (),
        combine: Literal["mean", "median"] = "mean",
        resample: str | None = "image",
        n_resamples: int = 1000,
        seed: int | list[int] = 0,
    ) -> None:
        self.table, self.edges, self.seed = table, edges, seed
        self.options = {"edges": edges, "combine": combine, "resample": resample}
        self.options["n_resamples"] = n_resamples
        self.runs = [part for _, part in table.groupby("seed")]
        self.combine = np.median if combine == "median" else np.mean
        self.drawn: dict[str, np.ndarray] = {}  # by metric: a baseline is asked often
        self.overlap: tuple[int, int] | None = None
        if "n_train" in table:
            self.overlap = int(table["n_train"].mean()), len(table) // len(self.runs)
        self.units = np.array([])
        if resample is None:
            return
        self.units, labels = np.unique(table[resample].astype(str), return_inverse=True)
        if len(self.units) < 2:  # one reference image alone: its images are drawn
            self.units, labels = np.unique(table["image"].astype(str), return_inverse=True)
        n = len(self.units)
        drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples)
        labels = pd.Series(labels, table.index)
        self.counts = [drawn[:, labels[part.index]] for part in self.runs]  # (draws, N) each

    def values(self, metric: str) -> np.ndarray:
        """Return the metric of each run."""
        ones = [np.ones((1, len(part)), int) for part in self.runs]
        found = zip(self.runs, ones, strict=True)
        return np.array([_measure(part, metric, self.edges, one)[0] for part, one in found])

    def draws(self, metric: str) -> np.ndarray:
        """Return the combined metric of every draw, shape (draws,)."""
        if metric not in self.drawn:
            found = self._over_groups(metric, _Runs.draws)
            if found is None:
                pairs = zip(self.runs, self.counts, strict=True)
                values = [_measure(part, metric, self.edges, drawn) for part, drawn in pairs]
                # the median passes over a run whose images a draw left out
                is_mean = self.combine is np.mean
                found = np.mean(values, 0) if is_mean else pd.DataFrame(values).median().to_numpy()
            self.drawn[metric] = found
        return self.drawn[metric]

    def whole(self, metric: str) -> float:
        """Return the combined metric of all images."""
        found = self._over_groups(metric, _Runs.whole)
        return float(self.combine(self.values(metric)) if found is None else found)

    def interval(self, metric: str) -> tuple[float, float]:
        """Return the ends of the 95 % interval over draws of images, or over runs: Student's t."""
        if self.options["resample"] is not None:
            return _ends(self.draws(metric))
        values = self.values(metric)
        if len(values) < 2:
            return np.nan, np.nan
        share = 0.0 if self.overlap is None else self.overlap[1] / self.overlap[0]
        spread = np.sqrt((1 / len(values) + share) * values.var(ddof=1))
        half = float(t_distribution.ppf(0.975, len(values) - 1) * spread)
        return float(values.mean() - half), float(values.mean() + half)

    def _over_groups(self, metric: str, ask: Callable[[_Runs, str], Any]) -> Any:
        """Average what groups that have a weight of their own answer; None without any."""
        inner, _, column = metric.partition(" within ")
        if not column or "weight" not in self.table:
            return None
        found, weights = [], []
        for k, (_, group) in enumerate(self.table.groupby(column)):
            found.append(ask(_Runs(group, **self.options, seed=[self.seed, k]), inner))
            weights.append(group["weight"].iloc[0])
        return np.average(found, axis=0, weights=weights)

    def count(self, metric: str) -> int:
        """Return the images per run that a metric is computed from."""
        _, where, _ = _parse(metric, self.edges)
        inside = [_inside(part, where, self.edges).sum() for part in self.runs]
        return round(sum(inside) / len(inside))


def _parse(metric: str, edges: Sequence[float]) -> tuple[str, str, str]:
    """Split a metric into one of :data:`METRICS`, its ranges, and the column of its groups."""
    name = max((own for own in METRICS if f"{metric} ".startswith(f"{own} ")), key=len, default="")
    if not name:
        raise KeyError(f"metric {metric!r} does not begin with one of {', '.join(METRICS)}")
    where, _, column = metric[len(name) + 1 :].partition("within ")
    where, names = where.strip(), range_names(edges)
    if where not in ("", *_OVER_RANGES) and not set(where.split(" and ")) <= set(names):
        raise KeyError(f"metric {metric!r} names none of the ranges {names}")
    return name, where, column


def _inside(part: pd.DataFrame, where: str, edges: Sequence[float]) -> np.ndarray:
    """Mask the images of the ranges that a metric names; all of them where it names none."""
    if where in ("", *_OVER_RANGES):
        return np.ones(len(part), bool)
    wanted = [range_names(edges).index(name) for name in where.split(" and ")]
    return np.isin(range_index(part["mos"], edges), wanted)


def _measure(
    part: pd.DataFrame, metric: str, edges: Sequence[float], counts: np.ndarray
) -> np.ndarray:
    """Compute a metric where image n occurs ``counts[r, n]`` times; shape (draws,)."""
    name, where, column = _parse(metric, edges)
    mos, pred = check_pair(part["mos"], part["pred"])
    masks = [_inside(part, where, edges)]
    if where in _OVER_RANGES:
        masks = [_inside(part, one, edges) for one in range_names(edges)]
    elif column:
        groups = part[column].astype(str)
        masks = [(groups == group).to_numpy() & masks[0] for group in groups.unique()]
    masks = [mask for mask in masks if mask.sum() > 1]
    if not masks:
        return np.full(len(counts), np.nan)
    values = np.array([_weighted(name, mos[m], pred[m], counts[:, m]) for m in masks])
    if where in _OVER_RANGES:
        return np.nanmean(values, 0) if where == "ranges mean" else np.nanstd(values, 0, ddof=1)
    if not column:
        return values[0]
    weights = np.array([counts[:, m].sum(1) for m in masks])
    if "weight" in part:
        weights = np.array([part["weight"].to_numpy()[m][:1] for m in masks])  # (groups, 1)
    return (values * weights).sum(0) / weights.sum(0)


def _weighted(name: str, mos: np.ndarray, pred: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """One of :data:`METRICS` where image n occurs ``counts[r, n]`` times; shape (draws,)."""
    if (counts == 1).all():
        return np.full(len(counts), METRICS[name](mos, pred))
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw without any image is NaN
        if name in ("MAE", "MSE", "RMSE"):
            error = np.abs(mos - pred) if name == "MAE" else (mos - pred) ** 2
            mean = counts @ error / counts.sum(1)
            return np.sqrt(mean) if name == "RMSE" else mean
        if name in ("PLCC", "SRCC"):
            ranked = name == "SRCC"
            a, b = (_centred(values, counts.astype(float), ranked) for values in (mos, pred))
            norms = (counts * a * a).sum(1) * (counts * b * b).sum(1)
            return (counts * a * b).sum(1) / np.sqrt(norms)
    rows = [np.repeat(np.arange(len(mos)), drawn) for drawn in counts]
    return np.array([METRICS[name](mos[i], pred[i]) for i in rows])


def _centred(values: np.ndarray, counts: np.ndarray, ranked: bool) -> np.ndarray:
    """Values, or the ranks that they have in each draw, less their mean; shape (draws, N)."""
    if ranked:
        _, group = np.unique(values, return_inverse=True)
        order = np.argsort(group, kind="stable")
        starts = np.flatnonzero(np.diff(group[order], prepend=-1))
        in_group = np.add.reduceat(counts[:, order], starts, axis=1)  # (draws, different values)
        values = (in_group.cumsum(1) - (in_group - 1) / 2)[:, group]  # (draws, N)
    return values - (counts * values).sum(1, keepdims=True) / counts.sum(1, keepdims=True)


def _ends(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)


def nadeau_bengio(a: ArrayLike, b: ArrayLike, n_train: int, n_test: int) -> tuple[float, float]:
    """Test paired results over random splits of one data set by the corrected resampled t.

    The splits overlap, so the variance of the mean difference is larger than that of independent
    runs by about the ratio of ``n_test`` to ``n_train``, the images of a test and training set.

    Args:
        a: A metric of the first method, one value per split, shape (J,), J >= 2.
        b: The same of the second method on the same splits, shape (J,).
        n_train: Images of a training set.
        n_test: Images of a test set.

    Returns:
        The t with J - 1 degrees of freedom, positive where ``a`` is larger, and its two-sided p in
        [0, 1], which is 1 if all differences are zero.

    Raises:
        ValueError: If a set is empty, the shapes differ, J is below 2, or a value is not finite.

    References:
        Nadeau, Bengio, Inference for the generalization error, Machine Learning 2003, section 3.

    Example:
        >>> t, p = nadeau_bengio([0.71, 0.75, 0.73], [0.70, 0.72, 0.71], n_train=80, n_test=20)
        >>> round(p, 2)
        0.12
    """
    a, b = check_pair(a, b)
    if n_train < 1 or n_test < 1:
        raise ValueError(f"expected sets of at least 1 image, found {n_train} and {n_test}")
    d, n = a - b, len(a)
    if not d.any():
        return 0.0, 1.0
    variance = (1 / n + n_test / n_train) * d.var(ddof=1)
    t = float(d.mean() / np.sqrt(variance)) if variance else float(np.copysign(np.inf, d[0]))
    return t, float(2 * t_distribution.sf(abs(t), n - 1))


def holm(p: ArrayLike) -> np.ndarray:
    """Adjust the p values of a family of tests by Holm's step-down procedure.

    Ours is 6 lines; statsmodels, the oracle of its test, takes a second to import.
    Values ``p`` (K,) in [0, 1] give adjusted ones in their order, (K,), none below its own p.

    References:
        Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted

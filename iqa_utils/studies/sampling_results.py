"""Tables of the cross-sampling study, drawn from predictions alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from iqa_utils import metrics
from iqa_utils.samplers import MOS_EDGES, Method, range_quotas
from iqa_utils.statistics import bootstrap_ci, holm, paired_bootstrap

LEDGER_SAMPLERS = {
    "none": "without cross-sampling", "method1": "method 1", "method2": "method 2",
    "method3": "method 3", "rule": "rule of section 2.2.3",
}  # fmt: skip
RANGES_SD = "Ranges standard deviation"
TOTALS = ("PLCC", "SRCC", "RMSE", "MSE")


def quota_table(
    mos: Sequence[float],
    samplers: Sequence[Method],
    *,
    edges: Sequence[float] = MOS_EDGES,
    threshold: int = 1000,
) -> pd.DataFrame:
    """Count what an epoch of each sampler shows.

    Args:
        mos: Scores of the training part, shape (N,).
        samplers: Names.
        edges: Edges of the score ranges.
        threshold: Of method 2, images.

    Returns:
        One row a sampler: images of each range, ``images`` in all, and ``share`` of all images.
    """
    counts = np.bincount(metrics.range_index(mos, edges), minlength=len(edges) - 1)
    rows = {s: range_quotas(counts, s, threshold=threshold) for s in samplers}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=metrics.range_names(edges))
    table["images"] = table.sum(axis=1)
    return table.assign(share=table["images"] / len(mos))


def score_runs(predictions: pd.DataFrame, *, edges: Sequence[float] = MOS_EDGES) -> pd.DataFrame:
    """Score every run on its own.

    Args:
        predictions: Columns ``method``, ``seed``, ``mos``, ``pred``.
        edges: Edges of the score ranges.

    Returns:
        Long table: ``method``, ``seed``, ``metric``, ``value``. Metrics are PLCC, SRCC, RMSE and
        MSE, RMSE and MSE of every range that holds at least two images, and the standard deviation
        (n - 1) of the ranges' RMSE.

    Note:
        What the paper's tables call MSE are root mean squared errors; both are here by their names.
    """
    rows = []
    for (method, seed), part in predictions.groupby(["method", "seed"], sort=False):
        mos, pred = part["mos"].to_numpy(), part["pred"].to_numpy()
        values = {name: metrics.METRICS[name](mos, pred) for name in TOTALS}
        by_range = metrics.per_range(mos, pred, metrics.rmse, edges)
        by_range = {k: v for k, v in by_range.items() if np.isfinite(v)}
        values |= {f"RMSE {name}": value for name, value in by_range.items()}
        values |= {f"MSE {name}": value**2 for name, value in by_range.items()}
        if len(by_range) > 1:
            values[RANGES_SD] = metrics.ranges_sd(by_range)
        rows += [
            {"method": method, "seed": seed, "metric": k, "value": v} for k, v in values.items()
        ]
    return pd.DataFrame(rows)


def summarise(
    predictions: pd.DataFrame,
    *,
    edges: Sequence[float] = MOS_EDGES,
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Average the scores over runs, with their spread and an interval over images.

    Args:
        predictions: As :func:`score_runs`.
        edges: Edges of the score ranges.
        n_resamples: Draws of the bootstrap.
        seed: Of the draws.

    Returns:
        Long table: ``method``, ``metric``, mean ``value``, ``sd`` over runs (n - 1; NaN for one
        run), ``n_runs``, ``n`` images, and for PLCC, SRCC and RMSE the 95 % bootstrap interval
        ``ci_low``, ``ci_high`` of the mean over runs.
    """
    scores = score_runs(predictions, edges=edges)
    groups = scores.groupby(["method", "metric"], sort=False)["value"]
    table = groups.agg(value="mean", sd="std", n_runs="count").reset_index()
    table["ci_low"] = table["ci_high"] = np.nan
    for method, part in predictions.groupby("method", sort=False):
        mos, stack = _stack(part)
        table.loc[table["method"] == method, "n"] = len(mos)
        for name in ("PLCC", "SRCC", "RMSE"):
            over_runs = _over_runs(metrics.METRICS[name], stack)
            rows = np.arange(len(mos))
            ends = bootstrap_ci(mos, rows, over_runs, n_resamples=n_resamples, seed=seed)
            cell = (table["method"] == method) & (table["metric"] == name)
            table.loc[cell, ["ci_low", "ci_high"]] = ends
    return table


def paired_tests(
    predictions: pd.DataFrame,
    reference: str,
    *,
    metric: str = "SRCC",
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare every method with one of them on the same images.

    Each draw of the bootstrap takes the same images for both; a method's value is its mean over
    runs.

    Args:
        predictions: As :func:`score_runs`; all methods on the same images.
        reference: Method to compare with.
        metric: Name of the metric.
        n_resamples: Draws of the bootstrap.
        seed: Of the draws.

    Returns:
        One row a method: ``difference`` to the reference, 95 % ``low`` and ``high``, ``p``, and
        ``p_holm`` corrected for all comparisons.

    Raises:
        KeyError: If there is no such method.
    """
    parts = dict(list(predictions.groupby("method", sort=False)))
    if reference not in parts:
        raise KeyError(f"reference must be one of {sorted(parts)}, got {reference!r}")
    mos, base = _stack(parts.pop(reference))
    found = {}
    for method, part in parts.items():
        _, own = _stack(part)
        n_runs = min(len(own), len(base))
        both = np.hstack([own[:n_runs], base[:n_runs]])  # (runs, 2 N)
        rows = np.arange(len(mos))
        found[method] = paired_bootstrap(
            mos, rows, rows + len(mos), _over_runs(metrics.METRICS[metric], both),
            n_resamples=n_resamples, seed=seed,
        )  # fmt: skip
    table = pd.DataFrame(found, index=["difference", "low", "high", "p"]).T
    return table.assign(p_holm=holm(table["p"].to_numpy()))


def wide(summary: pd.DataFrame, methods: Sequence[str], *, digits: int = 2) -> pd.DataFrame:
    """Lay a summary out as the paper does: one row a metric, one column a method.

    Args:
        summary: From :func:`summarise`.
        methods: Columns, in order.
        digits: Decimal places.

    Returns:
        Cells ``"mean ± sd"``, or the mean where there is one run.
    """

    def cell(row: pd.Series) -> str:
        spread = "" if np.isnan(row["sd"]) else f" ± {row['sd']:.{digits}f}"
        return f"{row['value']:.{digits}f}{spread}"

    chosen = summary[summary["method"].isin(methods)]
    cells = chosen.assign(cell=chosen.apply(cell, axis=1))
    order = list(dict.fromkeys(chosen["metric"]))
    cells = cells.set_index(["metric", "method"])["cell"].unstack()  # noqa: PD010 - cells are text
    return cells.loc[order, list(methods)]


def as_results(
    summary: pd.DataFrame, table: str, names: Mapping[str, str], **shared: object
) -> pd.DataFrame:
    """Turn a summary into rows for :meth:`iqa_utils.workshop.runs.Run.add_results`.

    Args:
        summary: From :func:`summarise`.
        table: Table of the paper, or a word of our own.
        names: Method here -> method as the ledger spells it; others are left out.
        **shared: ``dataset``, ``data``, ``variant``.

    Returns:
        One row a number.
    """
    rows = summary[summary["method"].isin(list(names))].assign(table=table, **shared)
    rows["method"] = rows["method"].map(dict(names))
    return rows.drop(columns="sd")


def _stack(part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (N,) and one row of predictions a run (runs, N)."""
    table = part.pivot_table(index="image", columns="seed", values="pred")
    mos = part.drop_duplicates("image").set_index("image")["mos"].loc[table.index]
    return mos.to_numpy(), table.to_numpy().T


def _over_runs(
    metric: Callable[[np.ndarray, np.ndarray], float], stack: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], float]:
    """Make a metric of (scores, columns of the stack): its mean over the runs in the stack."""

    def mean_over_runs(mos: np.ndarray, columns: np.ndarray) -> float:
        return float(np.mean([metric(mos, run[columns.astype(int)]) for run in stack]))

    return mean_over_runs

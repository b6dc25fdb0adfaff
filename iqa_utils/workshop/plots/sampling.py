"""Pictures of the cross-sampling notebook."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from iqa_utils.workshop.plots import common
from iqa_utils.workshop.plots.common import PALETTE

MARKERS = "osD^vP*X"


def plot_quotas(axes: Axes, quotas: pd.DataFrame) -> None:
    """Draw how many images of each range an epoch of each sampler shows.

    Args:
        axes: Where to draw.
        quotas: One row per sampler, one column per range, then ``images`` and ``share``.
    """
    counts = quotas.drop(columns=["images", "share"])
    n_bars = len(counts)
    for i, (name, row) in enumerate(counts.iterrows()):
        x = np.arange(len(row)) + 0.8 * (i - (n_bars - 1) / 2) / n_bars
        label = f"{common.plain_name(name)}: {int(row.sum()):,}"
        axes.plot(x, row, MARKERS[i % 8], color=PALETTE[i], markersize=7, label=label)
    axes.set(xticks=range(len(counts.columns)), xticklabels=counts.columns, yscale="log")
    axes.set(xlabel="range of MOS", ylabel="images per epoch")
    common.plain_log(axes.yaxis)
    common.legend_beside(axes)


def plot_range_errors(
    axes: Axes, scores: pd.DataFrame, methods: Sequence[str], ranges: Sequence[str]
) -> None:
    """Draw the error in each range, with its interval: an even model is a flat line.

    Args:
        axes: Where to draw.
        scores: From :func:`iqa_utils.evaluate.score`.
        methods: Lines, in order.
        ranges: Names of the ranges, in order.
    """
    for i, method in enumerate(methods):
        part = scores[scores["method"] == method].set_index("metric")
        part = part.reindex([f"RMSE {name}" for name in ranges])
        offset = 0.3 * (i / max(len(methods) - 1, 1) - 0.5)
        style = {"marker": MARKERS[i % 8], "color": PALETTE[i], "linewidth": 1, "capsize": 2}
        x = np.arange(len(ranges)) + offset
        ends = [part["value"] - part["ci_low"], part["ci_high"] - part["value"]]
        style["yerr"] = np.clip(ends, 0, None)
        axes.errorbar(x, part["value"], label=common.plain_name(method), **style)
    axes.set(xticks=range(len(ranges)), xticklabels=ranges, xlabel="range of MOS")
    axes.set(ylabel="RMSE, MOS points", ylim=(0, None))
    common.legend_beside(axes)


def plot_range_scatter(
    axes: Axes, mos: np.ndarray, pred: np.ndarray, edges: Sequence[float], *, title: str = ""
) -> None:
    """Draw predictions against scores, both shape (N,), with the mean prediction of each range."""
    low, high = edges[0], edges[-1]
    axes.plot([low, high], [low, high], color="0.4", linewidth=1, linestyle="--", zorder=0)
    ranges = np.clip(np.searchsorted(edges, mos, side="right") - 1, 0, len(edges) - 2)
    for i in range(len(edges) - 1):
        inside = ranges == i
        axes.scatter(mos[inside], pred[inside], s=10, alpha=0.5, linewidths=0, color=PALETTE[i])
        if inside.any():
            axes.hlines(pred[inside].mean(), edges[i], edges[i + 1], color=PALETTE[i], linewidth=2)
    axes.set(xlabel="MOS, observed", ylabel="MOS, predicted", title=title, xlim=(low, high))


def plot_cost(axes: Axes, cost: pd.DataFrame) -> None:
    """Draw time against images of an epoch, both logarithmic, one line per network.

    Args:
        axes: Where to draw.
        cost: Columns ``network``, ``sampler``, ``images``, ``seconds``.
    """
    sns.scatterplot(cost, x="images", y="seconds", hue="network", style="sampler", s=60, ax=axes)
    for i, (_, part) in enumerate(cost.groupby("network", sort=False)):
        part = part.sort_values("images")
        axes.plot(part["images"], part["seconds"], color=PALETTE[i], linewidth=1, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="images per epoch", ylabel="seconds per epoch")
    common.plain_log(axes.xaxis)
    common.plain_log(axes.yaxis)
    common.legend_beside(axes)


def plot_differences(axes: Axes, tests: pd.DataFrame, *, xlabel: str) -> None:
    """Draw the differences of :func:`iqa_utils.evaluate.compare`; 0 is no difference."""
    axes.axvline(0, color="0.4", linewidth=1, linestyle="--")
    common.plot_intervals(axes, tests, xlabel=xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(5))  # more run together in a narrow panel

"""Pictures of the cross-sampling notebook."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from iqa_utils.workshop.plots.common import PALETTE

MARKERS = "osD^vP*X"


def plot_quotas(axes: Axes, quotas: pd.DataFrame) -> Axes:
    """Draw how many images of each range an epoch of each sampler shows.

    Args:
        axes: Where to draw.
        quotas: From :func:`iqa_utils.studies.sampling_results.quota_table`.

    Returns:
        The axes; the count is logarithmic.
    """
    counts = quotas.drop(columns=["images", "share"])
    n_bars = len(counts)
    for i, (name, row) in enumerate(counts.iterrows()):
        x = np.arange(len(row)) + 0.8 * (i - (n_bars - 1) / 2) / n_bars
        hatch = ("", "//", "..", "xx", "\\\\")[i % 5]
        axes.bar(x, row, 0.8 / n_bars, color=PALETTE[i], hatch=hatch, edgecolor="white",
                 label=f"{name}: {int(row.sum()):,}")  # fmt: skip
    axes.set(xticks=range(len(counts.columns)), xticklabels=counts.columns, yscale="log",
             xlabel="range of MOS", ylabel="images an epoch",
             ylim=(max(0.5 * counts.to_numpy().min(), 0.5), None))  # fmt: skip
    axes.legend(fontsize=8, ncols=n_bars, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return axes


def plot_range_errors(
    axes: Axes, summary: pd.DataFrame, methods: Sequence[str], ranges: Sequence[str]
) -> Axes:
    """Draw the error in each range: an even model is a flat line.

    Args:
        axes: Where to draw.
        summary: From :func:`iqa_utils.studies.sampling_results.summarise`.
        methods: Lines, in order.
        ranges: Names of the ranges, in order.

    Returns:
        The axes; bars are the standard deviation over runs.
    """
    for i, method in enumerate(methods):
        part = summary[summary["method"] == method].set_index("metric")
        part = part.reindex([f"RMSE {name}" for name in ranges])
        offset = 0.3 * (i / max(len(methods) - 1, 1) - 0.5)
        axes.errorbar(np.arange(len(ranges)) + offset, part["value"], yerr=part["sd"].fillna(0),
                      marker=MARKERS[i % 8], color=PALETTE[i], linewidth=1, capsize=2,
                      label=method)  # fmt: skip
    axes.set(xticks=range(len(ranges)), xticklabels=ranges, xlabel="range of MOS",
             ylabel="RMSE, MOS points", ylim=(0, None))  # fmt: skip
    axes.legend(fontsize=8)
    return axes


def plot_range_scatter(
    axes: Axes, mos: np.ndarray, pred: np.ndarray, edges: Sequence[float], *, title: str = ""
) -> Axes:
    """Draw predictions against scores with the mean prediction of each range.

    Args:
        axes: Where to draw.
        mos: Scores, shape (N,).
        pred: Predictions, shape (N,).
        edges: Edges of the score ranges.
        title: Of the panel.

    Returns:
        The axes, both on the scale of the edges.
    """
    low, high = edges[0], edges[-1]
    axes.plot([low, high], [low, high], color="0.4", linewidth=1, linestyle="--", zorder=0)
    ranges = np.clip(np.searchsorted(edges, mos, side="right") - 1, 0, len(edges) - 2)
    for i in range(len(edges) - 1):
        inside = ranges == i
        axes.scatter(mos[inside], pred[inside], s=10, alpha=0.5, linewidths=0, color=PALETTE[i])
        if inside.any():
            axes.hlines(pred[inside].mean(), edges[i], edges[i + 1], color=PALETTE[i], linewidth=2)
    axes.set(xlabel="MOS, observed", ylabel="MOS, predicted", title=title, xlim=(low, high))
    return axes


def plot_cost(axes: Axes, cost: pd.DataFrame) -> Axes:
    """Draw time of an epoch against its images, one line a network.

    Args:
        axes: Where to draw.
        cost: Columns ``network``, ``sampler``, ``images``, ``seconds``.

    Returns:
        The axes, both logarithmic.
    """
    sns.scatterplot(cost, x="images", y="seconds", hue="network", style="sampler", s=60, ax=axes)
    for i, (_, part) in enumerate(cost.groupby("network", sort=False)):
        part = part.sort_values("images")
        axes.plot(part["images"], part["seconds"], color=PALETTE[i], linewidth=1, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="images an epoch", ylabel="seconds an epoch")
    axes.legend(fontsize=8)
    return axes


def plot_differences(axes: Axes, tests: pd.DataFrame, *, xlabel: str) -> Axes:
    """Draw paired differences with their 95 % intervals.

    Args:
        axes: Where to draw.
        tests: From :func:`iqa_utils.studies.sampling_results.paired_tests`.
        xlabel: What the difference is of.

    Returns:
        The axes; the line at 0 is no difference.
    """
    y = np.arange(len(tests))
    axes.axvline(0, color="0.4", linewidth=1, linestyle="--")
    axes.hlines(y, tests["low"], tests["high"], color=PALETTE[0], linewidth=1.6)
    axes.plot(tests["difference"], y, "o", color=PALETTE[0])
    axes.set(yticks=y, yticklabels=tests.index, xlabel=xlabel, ylim=(len(tests) - 0.5, -0.5))
    axes.xaxis.set_major_locator(MaxNLocator(5))  # more run together in a narrow panel
    axes.grid(axis="y", visible=False)
    return axes

"""Pictures of imbalance: where labels lie, what they weigh, where a model errs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from iqa_utils.workshop.plots.common import PALETTE

MARKERS = "osD^vP*X<>hd"


def plot_label_density(
    axes: Axes,
    counts: np.ndarray,
    edges: np.ndarray,
    *,
    smoothed: np.ndarray | None = None,
    unit: str = "MOS",
    title: str = "",
) -> Axes:
    """Draw how many images have which score, and the density that smoothing makes of it.

    Args:
        axes: Where to draw.
        counts: Images per bin, shape (K,).
        edges: Bin edges, shape (K + 1,).
        smoothed: Effective density, shape (K,), scaled to the same total for the picture.
        unit: Name and scale of the scores.
        title: Data set.

    Returns:
        The axes.
    """
    axes.stairs(counts, edges, fill=True, color=PALETTE[0], alpha=0.5, label="images")
    if smoothed is not None:
        scaled = smoothed * counts.sum() / smoothed.sum()
        axes.stairs(scaled, edges, color=PALETTE[1], linewidth=1.6, label="smoothed, to scale")
        axes.legend(loc="upper left", fontsize=8)
    axes.set(xlabel=unit, ylabel=f"images per bin of {edges[1] - edges[0]:g} MOS points",
             title=title)  # fmt: skip
    axes.set_xlim(edges[0], edges[-1])
    return axes


def plot_weights(
    axes: Axes, weights: Mapping[str, np.ndarray], edges: np.ndarray, *, unit: str = "MOS"
) -> Axes:
    """Draw the loss weight of every label under several treatments, on a logarithmic axis.

    Args:
        axes: Where to draw.
        weights: Treatment to weights per bin (K,), NaN where no image is near.
        edges: Bin edges, shape (K + 1,).
        unit: Name and scale of the scores.

    Returns:
        The axes.
    """
    centres = (edges[1:] + edges[:-1]) / 2
    for k, (name, values) in enumerate(weights.items()):
        style = ("-", "--", "-.", ":")[k % 4]
        axes.plot(
            centres, values, style, color=PALETTE[k % len(PALETTE)], label=name, linewidth=1.6
        )
    axes.axhline(1, color="0.4", linewidth=0.8)
    axes.set(xlabel=unit, ylabel="loss weight (mean 1)", yscale="log")
    axes.set_xlim(edges[0], edges[-1])
    axes.legend(fontsize=8)
    return axes


def plot_smoothed_statistics(
    axes: Axes, own: np.ndarray, smoothed: np.ndarray, edges: np.ndarray, held: np.ndarray
) -> Axes:
    """Draw one feature's mean per score bucket before and after smoothing.

    Args:
        axes: Where to draw.
        own: Mean of each bucket, shape (K,).
        smoothed: The same after smoothing, shape (K,).
        edges: Bucket edges, shape (K + 1,).
        held: Which buckets hold images, shape (K,); the others were filled from neighbours.

    Returns:
        The axes.
    """
    centres = (edges[1:] + edges[:-1]) / 2
    axes.plot(centres[held], own[held], "o", color=PALETTE[0], markersize=4, label="bucket")
    axes.plot(centres[~held], own[~held], "x", color="0.55", markersize=4, label="empty, filled")
    axes.plot(centres, smoothed, color=PALETTE[1], linewidth=1.6, label="smoothed")
    axes.set(xlabel="MOS", ylabel="feature mean (its own unit)")
    axes.legend(fontsize=8)
    return axes


def plot_range_errors(
    axes: Axes, table: pd.DataFrame, metrics: Sequence[str], *, unit: str = "MOS points"
) -> Axes:
    """Draw the error in every range with its interval, methods side by side.

    Args:
        axes: Where to draw.
        table: From :func:`iqa_utils.studies.rebalancing_results.error_table`.
        metrics: Metrics to draw, left to right ("MAE 0-20", ..., "MAE").
        unit: Unit of the errors.

    Returns:
        The axes.
    """
    methods = list(dict.fromkeys(table["method"]))
    places = np.arange(len(metrics))
    for k, method in enumerate(methods):
        rows = table[table["method"] == method].set_index("metric").reindex(metrics)
        x = places + 0.7 * ((k + 0.5) / len(methods) - 0.5)
        colour = PALETTE[k % len(PALETTE)]
        axes.vlines(x, rows["ci_low"], rows["ci_high"], color=colour, linewidth=1.4)
        mark = MARKERS[k % len(MARKERS)]
        axes.plot(x, rows["value"], mark, color=colour, markersize=5, label=method)
    axes.set_xticks(places, [name.removeprefix("MAE ").replace("MAE", "all") for name in metrics])
    axes.set(xlabel="range of MOS", ylabel=f"MAE ({unit})")
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return axes


def plot_differences(
    axes: Axes, table: pd.DataFrame, metrics: Sequence[str], *, reference: str
) -> Axes:
    """Draw what each method changes against a reference; left of zero is better.

    Args:
        axes: Where to draw.
        table: From :func:`iqa_utils.studies.rebalancing_results.difference_table`.
        metrics: Metrics to draw, one mark each.
        reference: Name of the method at zero.

    Returns:
        The axes. Filled marks have p < 0.05 after Holm's correction over methods.
    """
    methods = list(dict.fromkeys(table["method"]))
    for k, metric in enumerate(metrics):
        rows = table[table["metric"] == metric].set_index("method").reindex(methods)
        y = np.arange(len(methods)) + 0.6 * ((k + 0.5) / len(metrics) - 0.5)
        colour, mark = PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)]
        axes.hlines(y, rows["ci_low"], rows["ci_high"], color=colour, linewidth=1.4)
        sure = (rows["p_holm"] < 0.05).to_numpy()
        axes.plot(rows["value"], y, mark, color=colour, fillstyle="none", markersize=5)
        axes.plot(rows["value"][sure], y[sure], mark, color=colour, markersize=5)
        axes.plot([], [], mark, color=colour, label=metric, markersize=5)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(methods)), methods)
    axes.invert_yaxis()
    axes.set(xlabel=f"MAE minus that of {reference} (MOS points)")
    axes.grid(axis="y", visible=False)
    title = "filled: p < 0.05 after Holm"
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), title=title, title_fontsize=8)
    return axes


def plot_density_errors(axes: Axes, table: pd.DataFrame, methods: Sequence[str]) -> Axes:
    """Draw error against the number of training images of the same label bin.

    Args:
        axes: Where to draw.
        table: From :func:`iqa_utils.studies.rebalancing_results.density_errors`.
        methods: Methods to draw; the legend gives each one's rank correlation over bins.

    Returns:
        The axes.
    """
    for k, method in enumerate(methods):
        rows = table[table["method"] == method]
        rank = rows["images"].corr(rows["mae"], method="spearman")
        mark = MARKERS[k % len(MARKERS)]
        axes.scatter(
            rows["images"], rows["mae"], s=8 + 3 * rows["n"], alpha=0.6, linewidths=0,
            marker=mark, color=PALETTE[k % len(PALETTE)], label=f"{method}: {rank:+.2f}",
        )  # fmt: skip
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlabel="training images in the label bin", ylabel="test MAE of the bin (MOS points)")
    legend = axes.legend(fontsize=8, title="rank correlation over bins", title_fontsize=8)
    for handle in legend.legend_handles:
        handle.set_sizes([30])
    return axes


def plot_range_curves(
    axes: Axes, history: pd.DataFrame, ranges: Sequence[str], *, part: str, epochs: int
) -> Axes:
    """Draw the error in every range over the first epochs of a training, averaged over seeds.

    Args:
        axes: Where to draw.
        history: One method's, with columns such as ``train_mae 0-20``.
        ranges: Names of the ranges.
        part: ``train`` or ``val``.
        epochs: How many epochs to draw.

    Returns:
        The axes.
    """
    early = history[history["epoch"] <= epochs].groupby("epoch").mean(numeric_only=True)
    for k, name in enumerate(ranges):
        values = early[f"{part}_mae {name}"]
        style = ("-", "--", "-.", ":", (0, (1, 3)))[k % 5]
        axes.plot(early.index, values, linestyle=style, marker=MARKERS[k], markersize=4,
                  color=PALETTE[k % len(PALETTE)], label=name)  # fmt: skip
    axes.set(xlabel="epoch", ylabel=f"MAE, {part} (MOS points)")
    axes.legend(fontsize=8, title="range of MOS", title_fontsize=8, ncols=len(ranges),
                columnspacing=1.2, loc="lower center", bbox_to_anchor=(0.5, 1.0))  # fmt: skip
    return axes

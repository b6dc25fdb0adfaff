"""Pictures of imbalance: where labels lie, what they weigh, where a model errs.

Every function draws into the axes it is given. Edges of K bins have shape (K + 1,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iqa_utils.workshop.plots.common import PALETTE, legend_beside, plain_log, plain_name

MARKERS = "osD^vP*X<>hd"
LINES = ("-", "--", "-.", ":", (0, (1, 3)))


def plot_label_density(
    axes: Axes, counts: np.ndarray, edges: np.ndarray, *, smoothed: np.ndarray, unit: str
) -> None:
    """Draw images per bin (K,), and the smoothed density (K,) scaled to the same area."""
    axes.stairs(counts, edges, fill=True, color=PALETTE[0], alpha=0.5, label="images")
    scaled = smoothed * counts.sum() / smoothed.sum()
    axes.stairs(scaled, edges, color=PALETTE[1], linewidth=1.6, label="smoothed, to scale")
    axes.legend(loc="upper left", fontsize=8)
    axes.set(xlabel=unit, ylabel=f"images per bin of {edges[1] - edges[0]:g} MOS points")
    axes.set_xlim(edges[0], edges[-1])


def plot_weights(axes: Axes, weights: Mapping[str, np.ndarray], edges: np.ndarray) -> None:
    """Draw the loss weight per bin (K,) of several methods; NaN leaves a gap."""
    centres = (edges[1:] + edges[:-1]) / 2
    for k, (name, values) in enumerate(weights.items()):
        axes.plot(
            centres,
            values,
            linestyle=LINES[k],
            color=PALETTE[k],
            label=plain_name(name),
            linewidth=1.6,
        )
    axes.axhline(1, color="0.4", linewidth=0.8)
    axes.set(xlabel="MOS", ylabel="loss weight (mean 1)", yscale="log")
    axes.set_xlim(edges[0], edges[-1])
    plain_log(axes.yaxis)
    legend_beside(axes)


def plot_smoothed_statistics(
    axes: Axes, own: np.ndarray, smoothed: np.ndarray, edges: np.ndarray, held: np.ndarray
) -> None:
    """Draw one feature's mean per bucket (K,) before and after smoothing.

    ``held`` tells which buckets hold images, shape (K,); the others were filled from neighbours.
    """
    centres = (edges[1:] + edges[:-1]) / 2
    axes.plot(centres[held], own[held], "o", color=PALETTE[0], markersize=4, label="bucket")
    axes.plot(centres[~held], own[~held], "x", color="0.55", markersize=4, label="empty, filled")
    axes.plot(centres, smoothed, color=PALETTE[1], linewidth=1.6, label="smoothed")
    axes.set(xlabel="MOS", ylabel="feature mean (its own unit)")
    legend_beside(axes)


def plot_range_errors(axes: Axes, table: pd.DataFrame, metrics: Sequence[str]) -> None:
    """Draw values with intervals, from :func:`iqa_utils.evaluate.score`, methods side by side."""
    methods = list(dict.fromkeys(table["method"]))
    places = np.arange(len(metrics))
    for k, method in enumerate(methods):
        rows = table[table["method"] == method].set_index("metric").reindex(metrics)
        x = places + 0.7 * ((k + 0.5) / len(methods) - 0.5)
        colour, mark = PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)]
        axes.vlines(x, rows["ci_low"], rows["ci_high"], color=colour, linewidth=1.4)
        axes.plot(x, rows["value"], mark, color=colour, markersize=5, label=method)
    axes.set_xticks(places, [name.removeprefix("MAE ").replace("MAE", "all") for name in metrics])
    axes.set(xlabel="range of MOS", ylabel="MAE (MOS points)")
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)
    legend_beside(axes)


def plot_differences(
    axes: Axes, table: pd.DataFrame, metrics: Sequence[str], *, baseline: str
) -> None:
    """Draw rows of :func:`iqa_utils.evaluate.compare`; marks are filled where p_holm < 0.05."""
    methods = list(dict.fromkeys(table["method"]))
    for k, metric in enumerate(metrics):
        rows = table[table["metric"] == metric].set_index("method").reindex(methods)
        y = np.arange(len(methods)) + 0.6 * ((k + 0.5) / len(metrics) - 0.5)
        style = {"color": PALETTE[k % len(PALETTE)], "marker": MARKERS[k], "linestyle": "none"}
        axes.hlines(y, rows["ci_low"], rows["ci_high"], color=style["color"], linewidth=1.4)
        sure = (rows["p_holm"] < 0.05).to_numpy()
        axes.plot(rows["value"], y, fillstyle="none", markersize=5, **style)
        axes.plot(rows["value"][sure], y[sure], markersize=5, **style)
        axes.plot([], [], label=metric, markersize=5, **style)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(methods)), methods)
    axes.invert_yaxis()
    axes.set(xlabel=f"MAE minus that of {baseline} (MOS points)")
    axes.grid(axis="y", visible=False)
    title = "filled: p < 0.05 after Holm"
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), title=title, title_fontsize=8)


def plot_panel(panel: pd.DataFrame) -> Figure:
    """Draw a difference over the learning rate: a picture per metric, a line per kind of head.

    ``panel`` has ``form``, ``size``, ``targets``, ``rate``, ``metric``, ``value`` and its interval;
    marks are filled where that does not touch zero. Settings with a training that died are left
    out: ``dead`` counts them.
    """
    metrics, panel = panel["metric"].unique(), panel[panel["dead"] == 0]
    figure, axes = plt.subplots(1, len(metrics), figsize=(5.2 * len(metrics), 4.2), squeeze=False)
    for ax, metric in zip(axes[0], metrics, strict=True):
        groups = panel[panel["metric"] == metric].groupby(["form", "size", "targets"], sort=False)
        for k, (names, rows) in enumerate(groups):
            style = {"color": PALETTE[k % len(PALETTE)], "marker": MARKERS[k % len(MARKERS)]}
            ax.plot(rows["rate"], rows["value"], fillstyle="none", label=" ".join(names), **style)
            sure = rows[(rows["ci_low"] > 0) | (rows["ci_high"] < 0)]
            ax.plot(sure["rate"], sure["value"], linestyle="none", **style)
        ax.axhline(0, color="0.4", linewidth=0.8)
        ax.set(xscale="log", xlabel="learning rate", title=metric)
    axes[0, 0].set_ylabel("LDS minus vanilla (MOS points)")
    axes[0, -1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def plot_density_errors(axes: Axes, table: pd.DataFrame, methods: Sequence[str]) -> None:
    """Draw error against training images of the same bin, with the rank correlation over bins.

    ``table`` has a row per method and bin: ``images``, ``mae`` and ``n`` test images.
    """
    for k, method in enumerate(methods):
        rows = table[table["method"] == method]
        rank = rows["images"].corr(rows["mae"], method="spearman")
        style = {"marker": MARKERS[k], "color": PALETTE[k], "alpha": 0.6, "linewidths": 0}
        label = f"{method}: {rank:+.2f}"
        axes.scatter(rows["images"], rows["mae"], s=8 + 3 * rows["n"], label=label, **style)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(ticks := [0, 1, 2, 5, 10, 20, 50, 100, 200, 500], map(str, ticks))
    axes.set_xlim(-0.2, 1.4 * table["images"].max())
    axes.set(xlabel="training images in the label bin", ylabel="test MAE of the bin (MOS points)")
    legend_beside(axes, title="rank correlation over bins")
    for handle in axes.get_legend().legend_handles:
        handle.set_sizes([30])


def plot_range_curves(
    axes: Axes, history: pd.DataFrame, ranges: Sequence[str], *, part: str, epochs: int
) -> None:
    """Draw one method's error per range over the first epochs, averaged over seeds.

    ``history`` has columns such as ``train_mae 0-20``; ``part`` is ``train`` or ``val``.
    """
    early = history[history["epoch"] <= epochs].groupby("epoch").mean(numeric_only=True)
    for k, name in enumerate(ranges):
        style = {"linestyle": LINES[k % 5], "color": PALETTE[k % len(PALETTE)], "label": name}
        axes.plot(
            early.index, early[f"{part}_mae {name}"], marker=MARKERS[k], markersize=4, **style
        )
    axes.set(xlabel="epoch", ylabel=f"MAE, {part} (MOS points)")
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "columnspacing": 1.2}
    axes.legend(title="range of MOS", fontsize=8, title_fontsize=8, ncols=len(ranges), **place)

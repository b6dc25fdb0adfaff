"""Pictures of distillation: merged scores, what the teacher said, how students learn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from iqa_utils.workshop.plots.common import PALETTE, legend_beside, plain_log, plain_name

DASHES = ("-", "--", ":", "-.", (0, (3, 1, 1, 1, 1, 1)))


def plot_ranges(axes: Axes, merged: pd.DataFrame, *, unit: str) -> None:
    """Draw where the merged scores of each set lie, Fig. 2: columns ``dataset`` and ``merged``."""
    names = list(dict.fromkeys(merged["dataset"]))
    for y, name in enumerate(names):
        scores = merged.loc[merged["dataset"] == name, "merged"]
        low, five, middle, high_five, high = np.quantile(scores, [0, 0.05, 0.5, 0.95, 1])
        colour = PALETTE[y % len(PALETTE)]
        axes.hlines(y, low, high, color=colour, linewidth=2)
        axes.hlines(y, five, high_five, color=colour, linewidth=9, alpha=0.6)
        axes.plot(middle, y, "o", color="white", markeredgecolor=colour, markersize=6)
    labels = [f"{plain_name(name)} ({(merged['dataset'] == name).sum():,})" for name in names]
    axes.set(xlabel=unit, yticks=range(len(names)), yticklabels=labels)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def plot_histograms(
    axes: Axes, scores: np.ndarray, labelled: Mapping[str, np.ndarray], *, unit: str
) -> None:
    """Draw the teacher's scores and the merged scores of each labelled set, area 1: Fig. 3."""
    edges = np.histogram_bin_edges(np.concatenate([scores, *labelled.values()]), 24)
    title = f"unlabelled, teacher ({len(scores):,})"
    axes.hist(scores, edges, density=True, color="0.8", label=title)
    for i, (name, values) in enumerate(labelled.items()):
        style = {"color": PALETTE[i % len(PALETTE)], "linestyle": DASHES[i % len(DASHES)]}
        style["label"] = f"{plain_name(name)}, MOS ({len(values):,})"
        axes.hist(values, edges, density=True, histtype="step", linewidth=1.6, **style)
    axes.set(xlabel=unit, ylabel="density")
    legend_beside(axes)


def plot_learning(axes: Axes, history: pd.DataFrame, *, unit: str, scale: float = 1.0) -> None:
    """Draw RMSE / ``scale`` on images that are learned from and on others, by ``step``: Fig. 6."""
    watched = [name for name in history if name.endswith("_rmse")]
    for i, name in enumerate(watched):
        label = name.removesuffix("_rmse").replace("_", " ")
        style = {"color": PALETTE[i], "linestyle": DASHES[i], "marker": "os^D"[i], "markersize": 4}
        axes.plot(history["step"], history[name] / scale, label=label, **style)
    axes.set(xlabel="training step", ylabel=f"RMSE, {unit}")
    highest = history[watched].to_numpy().max() / scale
    axes.set_ylim(0, max(axes.get_ylim()[1], 1.08 * highest))  # panels may share the axis
    axes.legend(fontsize=8)


def plot_growth(axes: Axes, table: pd.DataFrame, baselines: pd.Series) -> None:
    """Draw how a student gains from more unlabelled images.

    Args:
        axes: Where to draw.
        table: ``n_unlabelled``, ``value``, ``ci_low``, ``ci_high``, one row per point.
        baselines: Values of methods without unlabelled images, by method: horizontal lines.
    """
    error = np.array([table["value"] - table["ci_low"], table["ci_high"] - table["value"]], float)
    style = {"marker": "o", "color": PALETTE[0], "linestyle": "-", "capsize": 3}
    style |= {"yerr": np.clip(error, 0, None), "label": "distilled"}
    axes.errorbar(table["n_unlabelled"], table["value"], **style)
    for i, (method, value) in enumerate(baselines.items(), 1):
        colour = PALETTE[(i + 2) % len(PALETTE)]
        dashes = DASHES[i % len(DASHES)]
        axes.axhline(value, color=colour, linestyle=dashes, linewidth=1.3, label=method)
    axes.set(xlabel="unlabelled images learned from", ylabel="SRCC with held-out MOS")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))


def plot_rates(axes: Axes, rates: pd.Series) -> None:
    """Draw images per second of each step of the pipeline, on a logarithmic axis."""
    axes.plot(rates.to_numpy(dtype=float), rates.index, "o", color=PALETTE[0], markersize=8)
    for row, rate in enumerate(rates):
        axes.annotate(f"{rate:,.0f}", (rate, row), (9, 0), textcoords="offset points", size=8)
    axes.set(xscale="log", xlabel="images per second")
    axes.margins(x=0.2, y=0.1)
    plain_log(axes.xaxis)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)

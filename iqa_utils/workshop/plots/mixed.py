"""Pictures of several data sets together: one regressor, carried scores, merged scores, a student.

Notebooks 03 and 06 share them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from iqa_utils.models.monotonic import SIZES
from iqa_utils.workshop.plots import common
from iqa_utils.workshop.plots.common import PALETTE, line, look, name_rows, plain_log, plain_name


def plot_visits(axes: Axes, visits: pd.DataFrame) -> None:
    """Draw how often an epoch shows an image: a row per set, a column per mixing."""
    visits.rename(index=plain_name).plot.barh(ax=axes, width=0.8, color=PALETTE)
    for bars in axes.containers:
        axes.bar_label(bars, fmt="%.1f", padding=3, size=8)
    axes.set(xlabel="visits to an image in one epoch", ylabel="")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.legend(title="batches")


def plot_transformers(axes: Axes, points: pd.DataFrame, *, title: str) -> None:
    """Draw the learned curves of one set, each over the qualities its own model predicts.

    Qualities of different models have no common unit, so each model's middle 98 % is drawn from 0
    to 1; a straight line is a gain and an offset.
    """
    inside = points[points["inside"]].groupby("method", sort=False)
    for k, (method, curve) in enumerate(inside):
        quality = (curve["quality"] - curve["quality"].min()) / np.ptp(curve["quality"])
        axes.plot(quality, curve["score"], label=plain_name(method), linewidth=2, **line(k))
    axes.set(xlabel="quality (1st to 99th percentile)", ylabel="MOS, own scale", title=title)


def plot_split_dots(axes: Axes, table: pd.DataFrame, *, xlabel: str) -> None:
    """Draw ``value`` as one dot per ``seed`` and ``method``, joined by seed, medians as bars."""
    wide = table.pivot_table(index="method", columns="seed", values="value", sort=False)
    rows = np.arange(len(wide))
    axes.plot(wide.to_numpy(), rows, color="0.75", linewidth=0.7, zorder=0)
    axes.plot(wide.to_numpy(), rows, "o", color=PALETTE[0], markersize=5)
    axes.vlines(wide.median(axis=1), rows - 0.33, rows + 0.33, color=PALETTE[3], linewidth=2)
    axes.set(xlabel=xlabel)
    name_rows(axes, map(plain_name, wide.index))


def plot_heat(axes: Axes, table: pd.DataFrame, *, label: str) -> None:
    """Draw a table of correlations as colours with their numbers; NaN stays white."""
    named = table.astype(float).rename(index=plain_name, columns=plain_name)
    common.plot_table(axes, named, fmt=".3f", cmap="viridis", vmin=0, vmax=1, cbar=False)
    axes.set(ylabel=label, xlabel="")


def plot_carried(axes: Axes, carried: pd.DataFrame, *, title: str) -> None:
    """Draw scores carried from one set's scale to another's, a line per method and split."""
    axes.plot([0, 1], [0, 1], color="0.3", linewidth=1, linestyle=(0, (2, 2)), label="recovered")
    for k, (method, of_method) in enumerate(carried.groupby("method", sort=False)):
        for i, (_, part) in enumerate(of_method.groupby("seed")):
            label = plain_name(method) if i == 0 else None
            axes.plot(part["mos"], part["carried"], label=label, alpha=0.85, lw=1.7, **line(k))
    axes.set(xlabel="original MOS", ylabel="carried to the unwarped set's scale", title=title)
    axes.set(xlim=(0, 1), ylim=(-0.3, 1.3))


def plot_costs(axes: Axes, table: pd.DataFrame) -> None:
    """Draw GMAC: a row per image size, named by side or data set; a column per network."""
    for k, name in enumerate(table):
        y = np.arange(len(table)) + 0.16 * (k - (len(table.columns) - 1) / 2)
        axes.plot(table[name], y, linestyle="none", label=name, markersize=5, **look(k))
    sets = {name: "" if name.isdigit() else f" ({plain_name(name)})" for name in table.index}
    name_rows(axes, [f"{SIZES[k][1]} x {SIZES[k][0]}{shown}" for k, shown in sets.items()])
    axes.set(xlabel="GMAC per image", xscale="log", ylabel="image, width x height in pixels")
    plain_log(axes.xaxis)
    common.legend_beside(axes)


def plot_ranges(axes: Axes, merged: pd.DataFrame, *, unit: str) -> None:
    """Draw where the merged scores of each set lie, Fig. 2: columns ``dataset`` and ``merged``."""
    labels = []
    for y, (name, part) in enumerate(merged.groupby("dataset", sort=False)):
        low, five, middle, high_five, high = part["merged"].quantile([0, 0.05, 0.5, 0.95, 1])
        colour = PALETTE[y % len(PALETTE)]
        axes.hlines(y, low, high, color=colour, linewidth=2)
        axes.hlines(y, five, high_five, color=colour, linewidth=9, alpha=0.6)
        axes.plot(middle, y, "o", color="white", markeredgecolor=colour, markersize=6)
        labels.append(f"{plain_name(name)} ({len(part):,})")
    name_rows(axes, labels)
    axes.set(xlabel=unit)


def plot_histograms(
    axes: Axes, scores: np.ndarray, labelled: Mapping[str, np.ndarray], *, unit: str
) -> None:
    """Draw the teacher's scores and the merged scores of each labelled set, area 1: Fig. 3."""
    edges = np.histogram_bin_edges(np.concatenate([scores, *labelled.values()]), 24)
    title = f"unlabelled, teacher ({len(scores):,})"
    axes.hist(scores, edges, density=True, color="0.8", label=title)
    for k, (name, values) in enumerate(labelled.items()):
        label = f"{plain_name(name)}, MOS ({len(values):,})"
        outline = {"histtype": "step", "linewidth": 1.6, "label": label}
        axes.hist(values, edges, density=True, **outline, **line(k))
    axes.set(xlabel=unit, ylabel="density")
    common.legend_beside(axes)


def plot_learning(axes: Axes, history: pd.DataFrame, *, unit: str, scale: float = 1.0) -> None:
    """Draw RMSE / ``scale`` on images that are learned from and on others, by ``step``: Fig. 6."""
    errors = history.filter(regex="_rmse$") / scale
    for k, name in enumerate(errors):
        label = name.removesuffix("_rmse").replace("_", " ")
        axes.plot(history["step"], errors[name], label=label, markersize=4, **line(k) | look(k))
    axes.set(xlabel="training step", ylabel=f"RMSE, {unit}")
    highest = errors.to_numpy().max()
    axes.set_ylim(0, max(axes.get_ylim()[1], 1.08 * highest))  # panels may share the axis
    axes.legend(fontsize=8)


def plot_growth(axes: Axes, table: pd.DataFrame, baselines: pd.Series) -> None:
    """Draw how a student gains from more unlabelled images.

    ``table`` has ``n_unlabelled``, ``value``, ``ci_low`` and ``ci_high``, one row per point;
    ``baselines``, values of methods without unlabelled images, are horizontal lines.
    """
    ends = [table["value"] - table["ci_low"], table["ci_high"] - table["value"]]
    style = {"color": PALETTE[0], "capsize": 3, "label": "distilled"}
    error = np.clip(np.array(ends, float), 0, None)
    axes.errorbar(table["n_unlabelled"], table["value"], error, fmt="o-", **style)
    for k, (method, value) in enumerate(baselines.items(), 1):
        style = {"color": PALETTE[(k + 2) % len(PALETTE)], "linestyle": line(k)["linestyle"]}
        axes.axhline(value, linewidth=1.3, label=method, **style)
    axes.set(xlabel="unlabelled images learned from", ylabel="SRCC with held-out MOS")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))


def plot_rates(axes: Axes, rates: pd.Series) -> None:
    """Draw images per second of each step of the pipeline, on a logarithmic axis."""
    axes.plot(rates.to_numpy(dtype=float), range(len(rates)), "o", color=PALETTE[0], markersize=8)
    for row, rate in enumerate(rates):
        axes.annotate(f"{rate:,.0f}", (rate, row), (9, 0), textcoords="offset points", size=8)
    axes.set(xscale="log", xlabel="images per second")
    axes.margins(x=0.2)
    plain_log(axes.xaxis)
    name_rows(axes, rates.index)

"""Pictures of one regressor on several data sets."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from iqa_utils.models.monotonic import SIZES
from iqa_utils.workshop.plots.common import PALETTE, legend_beside, plain_log, plain_name

LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def _line(k: int) -> dict[str, object]:
    return {"color": PALETTE[k % len(PALETTE)], "linestyle": LINES[k % len(LINES)]}


def plot_visits(axes: Axes, visits: pd.DataFrame) -> None:
    """Draw how often an epoch shows an image: a row per set, a column per mixing."""
    height = 0.8 / len(visits.columns)
    for k, mixing in enumerate(visits):
        y = np.arange(len(visits)) + (k - (len(visits.columns) - 1) / 2) * height
        bars = axes.barh(y, visits[mixing], height, color=PALETTE[k], label=mixing)
        axes.bar_label(bars, fmt="%.1f", padding=3, size=8)
    axes.set(xlabel="visits to an image in one epoch", yticks=range(len(visits)))
    axes.set_yticklabels(map(plain_name, visits.index))
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
        axes.plot(quality, curve["score"], label=method, linewidth=2, **_line(k))
    axes.set(xlabel="quality (1st to 99th percentile)", ylabel="MOS, own scale", title=title)


def plot_split_dots(axes: Axes, table: pd.DataFrame, *, xlabel: str) -> None:
    """Draw ``value`` as one dot per ``seed`` and ``method``, joined by seed, medians as bars."""
    methods = list(dict.fromkeys(table["method"]))
    for row, method in enumerate(methods):
        values = table.loc[table["method"] == method, "value"]
        axes.scatter(values, [row] * len(values), s=26, color=PALETTE[0], linewidths=0)
        axes.plot([values.median()] * 2, [row - 0.33, row + 0.33], color=PALETTE[3], lw=2)
    for seed in table["seed"].unique():
        part = table[table["seed"] == seed].set_index("method").reindex(methods)
        axes.plot(part["value"], range(len(methods)), color="0.75", linewidth=0.7, zorder=0)
    axes.set(xlabel=xlabel, yticks=range(len(methods)), yticklabels=methods)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def plot_heat(axes: Axes, table: pd.DataFrame, *, label: str) -> None:
    """Draw a table of correlations as colours with their numbers; NaN stays white."""
    values = table.to_numpy(dtype=float)
    axes.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < 0.65 else "black"
            axes.text(j, i, f"{value:.3f}", ha="center", va="center", color=colour, size=8)
    axes.set(xticks=range(table.shape[1]), yticks=range(table.shape[0]), ylabel=label)
    axes.set_xticklabels(map(plain_name, table.columns), rotation=30, ha="right")
    axes.set_yticklabels(map(plain_name, table.index))
    axes.grid(visible=False)


def plot_carried(axes: Axes, carried: pd.DataFrame, *, title: str) -> None:
    """Draw scores carried from one set's scale to another's, a line per method and split."""
    axes.plot([0, 1], [0, 1], color="0.3", linewidth=1, linestyle=(0, (2, 2)), label="recovered")
    for k, (method, of_method) in enumerate(carried.groupby("method", sort=False)):
        for i, (_, part) in enumerate(of_method.groupby("seed")):
            label = method if i == 0 else None
            style = {"label": label, "alpha": 0.85, "linewidth": 1.7}
            axes.plot(part["mos"], part["carried"], **style, **_line(k))
    axes.set(xlabel="original MOS", ylabel="carried to the unwarped set's scale", title=title)
    axes.set(xlim=(0, 1), ylim=(-0.3, 1.3))


def plot_costs(axes: Axes, table: pd.DataFrame) -> None:
    """Draw GMAC: a row per image size, named by side or data set; a column per network."""
    for k, name in enumerate(table):
        y = np.arange(len(table)) + 0.16 * (k - (len(table.columns) - 1) / 2)
        axes.plot(table[name], y, "osD^vP"[k], color=PALETTE[k], label=name, markersize=5)
    axes.set(xlabel="GMAC per image", xscale="log", yticks=range(len(table)))
    sizes = [f"{SIZES[name][1]} x {SIZES[name][0]}" for name in table.index]
    sets = ["" if name.isdigit() else f" ({plain_name(name)})" for name in table.index]
    axes.set_yticklabels([size + name for size, name in zip(sizes, sets, strict=True)])
    axes.set_ylabel("image, width x height in pixels")
    plain_log(axes.xaxis)
    axes.invert_yaxis()
    legend_beside(axes)

"""Pictures of distillation: merged scores, what the teacher said, how students learn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from iqa_utils.workshop.plots.common import PALETTE

DASHES = ("-", "--", ":", "-.", (0, (3, 1, 1, 1, 1, 1)))


def plot_ranges(axes: Axes, merged: pd.DataFrame, *, unit: str) -> Axes:
    """Draw where the merged scores of each data set lie: the paper's Fig. 2.

    Args:
        axes: Where to draw.
        merged: Columns ``dataset`` and ``merged``.
        unit: Name of the common scale.

    Returns:
        The axes: full range thin, middle 90 % thick, median a dot.
    """
    names = list(dict.fromkeys(merged["dataset"]))
    for y, name in enumerate(names):
        scores = merged.loc[merged["dataset"] == name, "merged"]
        low, five, middle, high_five, high = np.quantile(scores, [0, 0.05, 0.5, 0.95, 1])
        colour = PALETTE[y % len(PALETTE)]
        axes.hlines(y, low, high, color=colour, linewidth=2)
        axes.hlines(y, five, high_five, color=colour, linewidth=9, alpha=0.6)
        axes.plot(middle, y, "o", color="white", markeredgecolor=colour, markersize=6)
    labels = [f"{name} ({(merged['dataset'] == name).sum():,})" for name in names]
    axes.set(xlabel=unit, yticks=range(len(names)), yticklabels=labels)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    return axes


def plot_histograms(
    axes: Axes, scores: np.ndarray, labelled: Mapping[str, np.ndarray], *, unit: str
) -> Axes:
    """Draw the teacher's scores against those of the labelled sets: the paper's Fig. 3.

    Args:
        axes: Where to draw.
        scores: The teacher's scores of the unlabelled images, shape (N,).
        labelled: Merged scores by data set.
        unit: Name of the common scale.

    Returns:
        The axes; every histogram has area 1.
    """
    everything = np.concatenate([scores, *labelled.values()])
    edges = np.histogram_bin_edges(everything, 24)
    title = f"unlabelled, teacher ({len(scores):,})"
    axes.hist(scores, edges, density=True, color="0.8", label=title)
    for i, (name, values) in enumerate(labelled.items()):
        axes.hist(
            values,
            edges,
            density=True,
            histtype="step",
            linewidth=1.6,
            color=PALETTE[i % len(PALETTE)],
            linestyle=DASHES[i % len(DASHES)],
            label=f"{name}, MOS ({len(values):,})",
        )
    axes.set(xlabel=unit, ylabel="density")
    axes.legend(fontsize=8)
    return axes


def plot_learning(axes: Axes, history: pd.DataFrame, *, unit: str, scale: float = 1.0) -> Axes:
    """Draw the error on images that are learned from and on images that are not: Fig. 6.

    Args:
        axes: Where to draw.
        history: ``step`` and a column ``NAME_rmse`` for each part that was watched.
        unit: What the error is measured in.
        scale: Divides the errors, e.g. the spread of the scores.

    Returns:
        The axes; two lines that part show memorising.
    """
    watched = [name.removesuffix("_rmse") for name in history if name.endswith("_rmse")]
    for i, name in enumerate(watched):
        axes.plot(
            history["step"],
            history[f"{name}_rmse"] / scale,
            color=PALETTE[i],
            linestyle=DASHES[i],
            marker="os^D"[i],
            markersize=4,
            label=name.replace("_", " "),
        )
    axes.set(xlabel="training step", ylabel=f"RMSE, {unit}")
    highest = history[[f"{name}_rmse" for name in watched]].to_numpy().max() / scale
    axes.set_ylim(0, max(axes.get_ylim()[1], 1.08 * highest))  # panels may share the axis
    axes.legend(fontsize=8)
    return axes


def plot_growth(axes: Axes, table: pd.DataFrame, floors: pd.DataFrame) -> Axes:
    """Draw how a distilled student gains from more unlabelled images.

    Args:
        axes: Where to draw.
        table: ``n_unlabelled``, ``value``, ``ci_low``, ``ci_high`` and ``student``, a row a point.
        floors: Methods without unlabelled images: ``method`` and ``value``, drawn as lines.

    Returns:
        The axes.
    """
    for i, (name, part) in enumerate(table.groupby("student", sort=False)):
        part = part.sort_values("n_unlabelled")
        error = [part["value"] - part["ci_low"], part["ci_high"] - part["value"]]
        axes.errorbar(
            part["n_unlabelled"],
            part["value"],
            yerr=np.clip(np.array(error, dtype=float), 0, None),
            marker="os^"[i % 3],
            color=PALETTE[i],
            linestyle=DASHES[i % len(DASHES)],
            capsize=3,
            label=name,
        )
    for i, row in enumerate(floors.itertuples()):
        axes.axhline(
            row.value,
            color=PALETTE[(i + 3) % len(PALETTE)],
            linestyle=DASHES[(i + 1) % len(DASHES)],
            linewidth=1.3,
            label=row.method,
        )
    axes.set(xlabel="unlabelled images learned from", ylabel="SRCC with held-out MOS")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return axes


def plot_rates(axes: Axes, rates: pd.Series) -> Axes:
    """Draw images a second of each leg, on a logarithmic axis.

    Args:
        axes: Where to draw.
        rates: Images per second by leg.

    Returns:
        The axes.
    """
    bars = axes.barh(rates.index, rates.to_numpy(dtype=float), color=PALETTE[0])
    axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
    axes.set(xscale="log", xlabel="images per second")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    return axes

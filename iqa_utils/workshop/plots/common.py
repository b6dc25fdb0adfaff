"""Theme and the pictures that several notebooks share.

Colours are seaborn's colour-blind-safe palette; a second cue (marker, position, text) always
carries the same meaning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from pandas.io.formats.style import Styler

from iqa_utils.datasets import DATASETS

WORDS = {
    "as_written": "as written",
    "sqrt_inv": "square root of the inverse",
    "method1": "method 1",
    "method2": "method 2",
    "method3": "method 3",
}
PALETTE = sns.color_palette("colorblind")
VERDICT_COLOURS = {
    "reproduced": PALETTE[2],
    "close": PALETTE[9],
    "better": PALETTE[0],
    "worse": PALETTE[1],
    "inconsistent": PALETTE[3],
    "implausible": PALETTE[4],
    "not comparable": (0.72, 0.72, 0.72),
    "not run": (0.9, 0.9, 0.9),
}


def set_theme() -> None:
    """Set fonts, grid and palette; fixes what would make PDF files differ between repeats."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.9)
    mpl.rcParams.update(
        {
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "axes.titleweight": "bold",
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "pdf.fonttype": 42,
            "svg.hashsalt": "iqa",
        }
    )


def text_table(table: pd.DataFrame) -> Styler:
    """Show a table without its index, numbers at four decimals, sentences left-aligned."""
    words = [c for c in table if not pd.api.types.is_numeric_dtype(table[c])]
    styler = table.reset_index(drop=True).style.hide().format(precision=4, na_rep="")
    return styler.set_properties(subset=words, **{"text-align": "left"})


def plain_name(key: object) -> str:
    """Name a data set by its title and any other key by its words."""
    text = str(key)
    if text in DATASETS:
        return DATASETS[text].title
    return WORDS.get(text) or re.sub(r"\bss0(\d)", r"subset \1", text)


def plain_log(axis: Axis) -> None:
    """Write the ticks of a logarithmic axis as plain numbers, 1, 2 and 5 of each decade."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_locator(NullLocator())


def legend_beside(axes: Axes, title: str | None = None) -> None:
    """Put the legend to the right of the axes, where no curve runs."""
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), title=title, title_fontsize=8)


def plot_scatter(axes: Axes, mos: np.ndarray, pred: np.ndarray, *, unit: str = "MOS") -> Axes:
    """Draw predictions against opinion scores with the line of equality."""
    low, high = float(min(mos.min(), pred.min())), float(max(mos.max(), pred.max()))
    axes.plot([low, high], [low, high], color="0.4", linewidth=1, linestyle="--", zorder=0)
    axes.scatter(mos, pred, s=12, alpha=0.55, linewidths=0)
    axes.set(xlabel=f"{unit}, observed", ylabel=f"{unit}, predicted")
    return axes


def plot_intervals(
    axes: Axes,
    table: pd.DataFrame,
    *,
    label: str = "method",
    group: str | None = None,
    xlabel: str = "SRCC",
) -> Axes:
    """Draw one value with its 95 % interval per row; ``group`` sets colour and marker."""
    names = list(dict.fromkeys(table[label]))
    groups = list(dict.fromkeys(table[group])) if group else [None]
    markers = "osD^vP*X"
    for g, name in enumerate(groups):
        part = table if name is None else table[table[group] == name]
        offset = 0.0 if len(groups) == 1 else 0.6 * (g / (len(groups) - 1) - 0.5)
        y = np.array([names.index(v) for v in part[label]]) + offset
        colour = PALETTE[g % len(PALETTE)]
        low, high = part["ci_low"].astype(float), part["ci_high"].astype(float)
        axes.hlines(y, low, high, color=colour, linewidth=1.6)
        mark = markers[g % len(markers)]
        shown = None if name is None else plain_name(name)
        axes.plot(part["value"], y, mark, color=colour, markersize=5, label=shown)
    axes.set(xlabel=xlabel, yticks=range(len(names)), yticklabels=map(plain_name, names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    if group:
        legend_beside(axes)
    return axes


def plot_curves(
    axes: Axes,
    history: pd.DataFrame,
    *,
    y: str,
    group: str,
    xlabel: str = "epoch",
    ylabel: str | None = None,
) -> Axes:
    """Draw learning curves: mean over runs as a line, their spread as a band."""
    sns.lineplot(history, x="epoch", y=y, hue=group, style=group, errorbar="sd", ax=axes)
    axes.set(xlabel=xlabel, ylabel=ylabel or y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_beside(axes)
    return axes


def grid_figure(
    n: int, *, columns: int = 3, size: tuple[float, float] = (4.0, 3.2)
) -> Sequence[Axes]:
    """Make a figure of equal panels and hide those beyond ``n``."""
    columns = min(columns, n)
    rows = -(-n // columns)
    _, axes = plt.subplots(rows, columns, figsize=(size[0] * columns, size[1] * rows))
    flat = np.atleast_1d(axes).ravel()
    for spare in flat[n:]:
        spare.set_visible(False)
    return list(flat[:n])

"""Pictures of labels: score tables (01), their imbalance and where models err for it (02, 05).

Edges of K bins have shape (K + 1,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from iqa_utils.workshop.plots import common
from iqa_utils.workshop.plots.common import PALETTE, line, look, name_rows, plain_log, plain_name

REGIMES = (  # ranges of the labels on 0-5, a colour for each and what nguyen2024 calls it
    (0, 1, 4, "called zero-shot"),
    (4.2, 5, 4, None),
    (1, 2, 1, "called few-shot"),
    (3.9, 4.2, 1, None),
    (2.2, 3.9, 2, "called concentrated"),
)
CLOUD = {"s": 5, "alpha": 0.3, "linewidths": 0, "rasterized": True}


def plot_correlations(axes: Axes, matrix: pd.DataFrame) -> None:
    """Draw a correlation matrix with its numbers at two decimals."""
    colours = {"vmin": -1, "vmax": 1, "cmap": "vlag", "fmt": ".2f", "linewidths": 0.5}
    bar = {"label": "Pearson correlation"}
    texts = matrix.round(2) + 0.0  # -0.00 becomes 0.00
    common.plot_table(axes, matrix, texts, square=True, cbar_kws=bar, **colours)
    axes.set_title("Which indicators go with MOS, and with each other?")


def plot_range_counts(axes: Axes, counts: pd.Series, printed: pd.Series | None = None) -> None:
    """Draw the images in each MOS range, and the printed counts as open diamonds."""
    axes.plot(counts.index, counts, "o", color=PALETTE[0], markersize=8, label="here")
    for place, count in enumerate(counts):
        axes.annotate(f"{count:,.0f}", (place, count), (9, 0), textcoords="offset points", size=9)
    if printed is not None:
        style = {"color": "0.1", "fillstyle": "none", "markersize": 11, "label": "paper"}
        axes.plot(printed.index, printed, "D", **style)
    axes.set(xlabel="MOS range, points", ylabel="images", yscale="log")
    axes.set(xlim=(-0.4, len(counts) - 0.2), title="How many images does each range hold?")
    plain_log(axes.yaxis)
    axes.legend(loc="upper left")


def plot_range_shares(axes: Axes, shares: pd.DataFrame) -> None:
    """Draw the share of each MOS range in each set of a split."""
    (100 * shares.T).plot.bar(ax=axes, width=0.8, rot=0, color=PALETTE)
    for bars, hatch in zip(axes.containers, ("", "//", ".."), strict=False):
        for bar in bars:
            bar.set_hatch(hatch)
    axes.set(xlabel="MOS range, points", ylabel="share of the set, %")
    axes.set_title("Does the split treat the ranges alike?")
    axes.legend()
    axes.grid(axis="x", visible=False)


def plot_label_histogram(axes: Axes, mos: np.ndarray) -> None:
    """Draw the labels on 0-5 in bins of 0.1, with the ranges that nguyen2024 names."""
    for low, high, colour, label in REGIMES:
        axes.axvspan(low, high, label=label, color=PALETTE[colour], alpha=0.16, linewidth=0)
    axes.hist(np.asarray(mos) / 20, bins=np.linspace(0, 5, 51), color=PALETTE[0])
    axes.set(xlabel="MOS / 20, bins of 0.1", ylabel="images", xlim=(0, 5))
    axes.set_title("Where do the labels lie?")
    axes.legend(loc="upper left")


def plot_two_scales(axes: Axes, raw: np.ndarray, z_score: np.ndarray) -> None:
    """Draw the two MOS of KonIQ-10k against each other, with the best line."""
    best = np.poly1d(np.polyfit(raw, z_score, 1))
    ends = np.array([np.min(raw), np.max(raw)])
    axes.scatter(raw, z_score, **CLOUD)
    axes.plot(ends, best(ends), color=PALETTE[3], label="best line")
    axes.plot(ends, 25 * (ends - 1), "--", color="0.2", label="(MOS - 1) / 4 * 100")
    axes.set(xlabel="MOS on 1-5", ylabel="z-score MOS, points")
    axes.set_title("Is one scale a copy of the other?")
    axes.legend()


def plot_disagreement(axes: Axes, mos: np.ndarray, deviation: np.ndarray) -> None:
    """Draw how much raters disagree about an image against its MOS."""
    axes.scatter(mos, deviation, **CLOUD)
    grid = np.linspace(1, 5, 100)
    axes.plot(grid, np.sqrt((grid - 1) * (5 - grid)), "--", color="0.3", label="largest possible")
    axes.set(xlabel="MOS on 1-5", ylabel="SD of the votes", xlim=(1, 5), ylim=(0, 2.1))
    axes.set_title("How much do raters disagree?")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.85))  # between votes and arc


def plot_vote_curve(axes: Axes, curve: pd.DataFrame, ceiling: float) -> None:
    """Draw how well the mean of a few votes predicts the others, and the ceiling of a model."""
    axes.semilogx(curve["votes"], curve["srcc"], "o-", label="mean of n votes")
    axes.axhline(ceiling, color=PALETTE[3], linestyle="--", label=f"ceiling {ceiling:.3f}")
    axes.set_xticks(curve["votes"], map(str, curve["votes"]))
    axes.minorticks_off()
    axes.set(xlabel="votes drawn", ylabel="SRCC with the other votes")
    axes.set_title("How well do a few votes predict the others?")
    axes.legend(loc="lower right")


def plot_sets(axes: Axes, tables: Mapping[str, pd.DataFrame]) -> None:
    """Draw the scores of every data set as shares of its own scale."""
    for row, frame in enumerate(tables.values()):
        low, high = frame.attrs["scale"]
        colour = PALETTE[frame.attrs["kind"] == "synthetic"]
        box = {"orientation": "horizontal", "whis": (1, 99), "showfliers": False, "widths": 0.6}
        looks = {"boxprops": {"facecolor": (*colour, 0.55)}, "medianprops": {"color": "black"}}
        shares = (frame["mos"] - low) / (high - low)
        axes.boxplot(shares, positions=[row], patch_artist=True, **box, **looks)
    name_rows(axes, [f"{plain_name(name)} ({len(frame):,})" for name, frame in tables.items()])
    axes.set(xlabel="MOS, share of the set's scale (blue authentic, orange synthetic)", xlim=(0, 1))
    axes.set_title("Which part of its scale does each set use?")


def plot_gallery(axes: Sequence[Axes], frame: pd.DataFrame, root: str | Path) -> None:
    """Show images with their scores; never to be published."""
    for panel, (_, row) in zip(axes, frame.iterrows(), strict=True):
        with Image.open(Path(root) / row["image"]) as picture:
            picture.draft("RGB", (512, 512))
            panel.imshow(np.asarray(picture.convert("RGB")))
        panel.set_title(f"MOS {row['mos']:.1f}", loc="center")
        panel.set_axis_off()


def plot_label_density(
    axes: Axes, counts: np.ndarray, edges: np.ndarray, *, smoothed: np.ndarray, unit: str
) -> None:
    """Draw images per bin (K,), and the smoothed density (K,) scaled to the same area."""
    axes.stairs(counts, edges, fill=True, color=PALETTE[0], alpha=0.5, label="images")
    scaled = smoothed * counts.sum() / smoothed.sum()
    axes.stairs(scaled, edges, color=PALETTE[1], linewidth=1.6, label="smoothed, to scale")
    axes.set(xlabel=unit, ylabel=f"images per bin of {edges[1] - edges[0]:g} MOS points")
    axes.set_xlim(edges[0], edges[-1])
    axes.legend(loc="upper left", fontsize=8)


def plot_quotas(axes: Axes, quotas: pd.DataFrame) -> None:
    """Draw how many images of each range an epoch of each sampler shows, a row per sampler."""
    counts = quotas.drop(columns=["images", "share"])
    for k, (name, row) in enumerate(counts.iterrows()):
        x = np.arange(len(row)) + 0.8 * ((k + 0.5) / len(counts) - 0.5)
        label = f"{plain_name(name)}: {int(row.sum()):,}"
        axes.plot(x, row, linestyle="none", markersize=7, label=label, **look(k))
    axes.set_xticks(range(counts.shape[1]), counts.columns)
    axes.set(xlabel="range of MOS", ylabel="images per epoch", yscale="log")
    plain_log(axes.yaxis)
    common.legend_beside(axes)


def plot_weights(axes: Axes, weights: Mapping[str, np.ndarray], edges: np.ndarray) -> None:
    """Draw the loss weight per bin (K,) of several methods; NaN leaves a gap."""
    centres = (edges[1:] + edges[:-1]) / 2
    for k, (name, values) in enumerate(weights.items()):
        axes.plot(centres, values, label=plain_name(name), linewidth=1.6, **line(k))
    axes.axhline(1, color="0.4", linewidth=0.8)
    axes.set(xlabel="MOS", ylabel="loss weight (mean 1)", yscale="log")
    axes.set_xlim(edges[0], edges[-1])
    plain_log(axes.yaxis)
    common.legend_beside(axes)


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
    common.legend_beside(axes)


def plot_range_errors(axes: Axes, table: pd.DataFrame, metrics: Sequence[str]) -> None:
    """Draw values with intervals, from :func:`iqa_utils.evaluate.score`, methods side by side.

    A model that errs evenly over the ranges lies on one level.
    """
    methods, name = list(dict.fromkeys(table["method"])), metrics[0].split()[0]
    for k, method in enumerate(methods):
        rows = table[table["method"] == method].set_index("metric").reindex(metrics)
        x = np.arange(len(metrics)) + 0.7 * ((k + 0.5) / len(methods) - 0.5)
        axes.vlines(x, rows["ci_low"], rows["ci_high"], color=look(k)["color"], linewidth=1.4)
        style = {"linestyle": "none", "markersize": 5, "label": plain_name(method)}
        axes.plot(x, rows["value"], **look(k), **style)
    axes.set_xticks(range(len(metrics)), [m.removeprefix(name).strip() or "all" for m in metrics])
    axes.set(xlabel="range of MOS", ylabel=f"{name} (MOS points)", ylim=(0, None))
    axes.grid(axis="x", visible=False)
    common.legend_beside(axes)


def plot_range_scatter(
    axes: Axes, mos: np.ndarray, pred: np.ndarray, edges: Sequence[float], *, title: str = ""
) -> None:
    """Draw predictions against scores, both shape (N,), with the mean prediction of each range."""
    ends = edges[0], edges[-1]
    axes.plot(ends, ends, color="0.4", linewidth=1, linestyle="--", zorder=0)
    ranges = np.clip(np.searchsorted(edges, mos, side="right") - 1, 0, len(edges) - 2)
    for i in np.unique(ranges):
        inside = ranges == i
        axes.scatter(mos[inside], pred[inside], s=10, alpha=0.5, linewidths=0, color=PALETTE[i])
        axes.hlines(pred[inside].mean(), edges[i], edges[i + 1], color=PALETTE[i], linewidth=2)
    axes.set(xlabel="MOS, observed", ylabel="MOS, predicted", title=title, xlim=ends)


def plot_cost(axes: Axes, cost: pd.DataFrame) -> None:
    """Draw ``seconds`` against ``images`` of an epoch, both logarithmic, one line per network."""
    cost = cost.assign(**{name: cost[name].map(plain_name) for name in ("network", "sampler")})
    style = {"x": "images", "y": "seconds", "hue": "network", "ax": axes}
    sns.lineplot(cost, linewidth=1, errorbar=None, legend=False, **style)
    sns.scatterplot(cost, style="sampler", s=60, **style)
    axes.set(xscale="log", yscale="log", xlabel="images per epoch", ylabel="seconds per epoch")
    plain_log(axes.xaxis)
    plain_log(axes.yaxis)
    common.legend_beside(axes)


def plot_differences(
    axes: Axes, table: pd.DataFrame, metrics: Sequence[str], *, baseline: str
) -> None:
    """Draw rows of :func:`iqa_utils.evaluate.compare`; marks are filled where p_holm < 0.05."""
    methods = list(dict.fromkeys(table["method"]))
    for k, metric in enumerate(metrics):
        rows = table[table["metric"] == metric]
        place = rows["method"].map(methods.index).astype(float)  # a metric may have no row
        rows = rows.assign(y=place + 0.6 * (k + 0.5) / len(metrics) - 0.3)
        sure = rows[rows["p_holm"] < 0.05]
        style = {"linestyle": "none", "markersize": 5} | look(k)
        axes.hlines(rows["y"], rows["ci_low"], rows["ci_high"], color=look(k)["color"], lw=1.4)
        axes.plot(rows["value"], rows["y"], fillstyle="none", **style)
        axes.plot(sure["value"], sure["y"], **style)
        axes.plot([], [], label=plain_name(metric), **style)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_xlabel(f"MAE minus that of {plain_name(baseline)} (MOS points)")
    name_rows(axes, map(plain_name, methods))
    common.legend_beside(axes, title="filled: p < 0.05 after Holm")


def plot_panel(panel: pd.DataFrame) -> Figure:
    """Draw a difference over the learning rate: a picture per metric, a line per kind of head.

    ``panel`` has ``form``, ``size``, ``targets``, ``rate``, ``metric``, ``value`` and its interval;
    marks are filled where that does not touch zero. Settings with a collapsed training are left
    out: ``dead`` counts them.
    """
    legend = "form, width-blocks-neck, targets"
    metrics, panel = panel["metric"].unique(), panel[panel["dead"] == 0]
    figure, axes = plt.subplots(1, len(metrics), figsize=(5.2 * len(metrics), 4.2), squeeze=False)
    for ax, metric in zip(axes[0], metrics, strict=True):
        groups = panel[panel["metric"] == metric].groupby(["form", "size", "targets"], sort=False)
        for k, (names, rows) in enumerate(groups):
            style = look(k) | {"linestyle": "-" if names[0] == "normalised" else "--"}
            ax.plot(rows["rate"], rows["value"], fillstyle="none", label=", ".join(names), **style)
            sure = rows[(rows["ci_low"] > 0) | (rows["ci_high"] < 0)]
            ax.plot(sure["rate"], sure["value"], linestyle="none", **look(k))
        ax.axhline(0, color="0.4", linewidth=0.8)
        ax.set(xscale="log", xlabel="learning rate", title=plain_name(metric))
        plain_log(ax.xaxis)
    axes[0, 0].set_ylabel("LDS minus vanilla (MOS points)")
    common.legend_beside(axes[0, -1], title=legend)
    return figure


def plot_density_errors(axes: Axes, table: pd.DataFrame, methods: Sequence[str]) -> None:
    """Draw error against training images of the same bin, with the rank correlation over bins.

    ``table`` has a row per method and bin: ``images``, ``mae`` and ``n`` test images.
    """
    for k, method in enumerate(methods):
        rows = table[table["method"] == method]
        rank = rows["images"].corr(rows["mae"], method="spearman")
        style = {"alpha": 0.6, "linewidths": 0, "label": f"{plain_name(method)}: {rank:+.2f}"}
        axes.scatter(rows["images"], rows["mae"], s=8 + 3 * rows["n"], **look(k), **style)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(ticks := [0, 1, 2, 5, 10, 20, 50, 100, 200, 500], map(str, ticks))
    axes.set_xlim(-0.2, 1.4 * table["images"].max())
    axes.set(xlabel="training images in the label bin", ylabel="test MAE of the bin (MOS points)")
    common.legend_beside(axes, title="larger: more test images\nrank correlation over bins:")
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
        style = {"marker": common.MARKERS[k], "markersize": 4, "label": name} | line(k)
        axes.plot(early.index, early[f"{part}_mae {name}"], **style)
    axes.set(xlabel="epoch", ylabel="MAE (MOS points)")
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "columnspacing": 1.2}
    axes.legend(title="range of MOS", fontsize=8, title_fontsize=8, ncols=len(ranges), **place)

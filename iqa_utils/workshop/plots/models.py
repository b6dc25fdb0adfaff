"""Pictures of models: layers, noise and residuals (04), several sets and a student (03, 06)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from scipy import stats

from iqa_utils.models.monotonic import SIZES
from iqa_utils.workshop.plots import common
from iqa_utils.workshop.plots.common import PALETTE, line, look, name_rows, plain_log, plain_name


def plot_layers(
    panels: Sequence[Axes],
    scores: pd.DataFrame,
    *,
    layers: Mapping[str, Sequence[str]],
    regressors: Sequence[str],
    metric: str = "SRCC",
) -> None:
    """Draw how much quality each layer carries: one row of panels per network, one per regressor.

    ``scores`` has ``network``, ``layer``, ``regressor``, ``stage``, ``variant``, ``metric``,
    ``value`` and its interval; stage ``"handcrafted"`` is a grey line and band. ``layers`` lists
    the layers of each network in the order they run.
    """
    scores = scores[scores["metric"] == metric]
    scores = scores.assign(series=(scores["stage"] + " " + scores["variant"]).str.strip())
    names = [name for name in scores["series"].unique() if name != "handcrafted"]
    limits = scores["ci_low"].min() - 0.02, scores["ci_high"].max() + 0.02
    pairs = list(itertools.product(layers, regressors))
    for i, (axes, (network, regressor)) in enumerate(zip(panels, pairs, strict=True)):
        inside = scores[scores["regressor"] == regressor]
        for hand in inside[inside["series"] == "handcrafted"].itertuples():
            axes.axhspan(hand.ci_low, hand.ci_high, color="0.9", zorder=0)
            axes.axhline(hand.value, color="0.55", ls=":", lw=1.2, label="BRISQUE, 36 statistics")
        for k, name in enumerate(names):
            part = inside[(inside["series"] == name) & (inside["network"] == network)]
            part = part.set_index("layer").reindex(layers[network])
            x = np.arange(len(part)) + 0.14 * (k - (len(names) - 1) / 2)
            axes.vlines(x, part["ci_low"], part["ci_high"], color=look(k)["color"], linewidth=1.4)
            style = {"markersize": 5.5, "linewidth": 1, "label": plain_name(name)} | look(k)
            axes.plot(x, part["value"], **style)
        turned = {"rotation": 35, "ha": "right"} if len(part) <= 8 else {"rotation": 90}
        axes.set_xticks(range(len(part)), map(plain_name, layers[network]), **turned)
        axes.set(title=plain_name(f"{network}, {regressor}"), ylim=limits)
        if i % len(regressors) == 0:
            axes.set_ylabel(f"{metric},\ntest set")
        if i >= len(panels) - len(regressors):
            axes.set_xlabel("layer, input to output")
    _legend_below(panels[0], 4)


def _legend_below(axes: Axes, n_columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    place = {"loc": "outside lower center", "ncols": n_columns, "fontsize": 9}
    axes.figure.legend(handles, labels, **place)


def plot_differences(
    axes: Axes, table: pd.DataFrame, *, names: Sequence[str], by: str, title: str
) -> None:
    """Draw differences in SRCC (of :func:`iqa_utils.evaluate.compare`) about zero."""
    shown = table[table["metric"] == "SRCC"]
    shown = shown.assign(label=shown[list(names)].agg(", ".join, axis=1))
    options = {"label": "label", "group": by, "xlabel": "difference in SRCC, test set"}
    common.plot_about_zero(axes, shown, **options)
    axes.set_title(plain_name(title))
    half_inch = ScaledTranslation(0, -0.5, axes.figure.dpi_scale_trans)  # the axis has its label
    place = {"bbox_to_anchor": (0.5, 0), "bbox_transform": axes.transAxes + half_inch}
    axes.legend(fontsize=8, ncols=3, loc="upper center", **place)


def plot_fine_tuning(left: Axes, right: Axes, history: pd.DataFrame) -> None:
    """Draw the error of training crops and of validation images over the epochs (Fig. 1)."""
    training = (history["network"] + ", " + history["mode"]).map(plain_name)
    table = history.assign(training=training, train_rmse=np.sqrt(history["train_loss"]))
    for axes, part, images in (
        (left, "train", "training crops"),
        (right, "val", "validation images"),
    ):
        label = f"RMSE of {images},\nscore SDs"
        common.plot_curves(axes, table, y=f"{part}_rmse", group="training", ylabel=label)
        axes.get_legend().set_visible(False)
    _legend_below(right, 2)


def plot_score_histogram(axes: Axes, mos: np.ndarray, *, unit: str) -> None:
    """Draw the distribution of opinion scores with a Gaussian of the same mean and spread (Fig. 2).

    The legend states skewness and excess kurtosis, which are 0 for a Gaussian.
    """
    axes.hist(mos, bins=30, density=True, color=PALETTE[0], alpha=0.45, label="scores")
    shape = f"Gaussian; skewness {stats.skew(mos):.2f}, excess kurtosis {stats.kurtosis(mos):.2f}"
    _gaussian(axes, mos, label=shape)
    axes.set(xlabel=unit, ylabel=f"density per unit of {unit}", ylim=(0, 1.25 * axes.get_ylim()[1]))
    axes.legend(fontsize=8, loc="upper left")


def _gaussian(axes: Axes, values: np.ndarray, **style: object) -> None:
    """Draw the Gaussian of the same mean and spread."""
    x = np.linspace(values.min(), values.max(), 200)
    axes.plot(x, stats.norm.pdf(x, values.mean(), values.std()), color=PALETTE[1], **style)


def plot_noise_search(
    left: Axes, right: Axes, trials: pd.DataFrame, *, likelihood_sd: float, unit: str
) -> None:
    """Draw the search of the noise as Fig. 3 does, and where the likelihood would put it.

    Objectives far above the others stand at the upper edge, so that they squeeze nothing.
    """
    left.step(range(1, len(trials) + 1), trials["best"], where="post", color=PALETTE[0])
    left.set(xlabel="evaluations", ylabel="smallest objective so far", title="search")
    best = trials.loc[trials["loss"].idxmin()]
    top = best["loss"] + 4 * (trials["loss"].median() - best["loss"])
    far = trials[trials["loss"] > top]
    near = trials.drop(far.index)
    right.scatter(near["noise_sd"], near["loss"], color=PALETTE[0], s=18, label="tried")
    if len(far):
        label = f"above this axis, up to {far['loss'].max():.3g}"
        edge = {"marker": "^", "color": PALETTE[0], "clip_on": False, "zorder": 3}
        right.scatter(far["noise_sd"], np.full(len(far), top), s=30, label=label, **edge)
        right.set_ylim(top=top)
    right.plot(best["noise_sd"], best["loss"], "*", color=PALETTE[1], markersize=13, label="best")
    low = trials["noise_sd"].min() / 3
    shown, note = max(likelihood_sd, low), "" if likelihood_sd >= low else " (below this axis)"
    right.axvline(shown, color=PALETTE[2], linestyle="--", label=f"likelihood's choice{note}")
    right.set(xscale="log", xlabel=f"noise SD sigma, {unit}", ylabel="log(1 + cross-validated MSE)")
    plain_log(right.xaxis)
    right.set_title("objective")
    right.legend(fontsize=8)


def plot_bars_and_stems(axes: Axes, mos: np.ndarray, pred: np.ndarray, *, unit: str) -> None:
    """Draw observed scores as bars and predictions as stems (Fig. 5)."""
    x = np.arange(1, len(mos) + 1)
    axes.bar(x, mos, color=PALETTE[2], alpha=0.55, label="observed")
    stems = axes.stem(x, pred, markerfmt="o", basefmt=" ", label="predicted")
    stems.markerline.set(color=PALETTE[1], markersize=5)
    stems.stemlines.set(color=PALETTE[1], linewidth=1.2)
    axes.set(xlabel="test image, drawn at random", ylabel=unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(top=1.2 * max(mos.max(), pred.max()))
    axes.legend(fontsize=8, ncols=2, loc="upper right")


def plot_regression_line(axes: Axes, mos: np.ndarray, pred: np.ndarray, *, unit: str) -> None:
    """Draw predictions against scores with the least-squares line and R^2 (Fig. 6).

    The first R^2 is that of the line, the squared Pearson correlation; the second is that of the
    predictions themselves, which a shifted or stretched prediction cannot flatter.
    """
    fitted = stats.linregress(mos, pred)
    of_pred = 1 - np.mean((mos - pred) ** 2) / np.var(mos)
    x, label = np.array([mos.min(), mos.max()]), f"line, R² = {fitted.rvalue**2:.3f}"
    axes.scatter(mos, pred, s=13, alpha=0.5, linewidths=0, color=PALETTE[0])
    axes.plot(x, fitted.slope * x + fitted.intercept, color=PALETTE[1], label=label)
    axes.plot(x, x, color="0.4", ls="--", lw=1, label=f"equality, R² = {of_pred:.3f}")
    axes.set(xlabel=f"{unit}, observed", ylabel=f"{unit}, predicted")
    axes.legend(fontsize=8)


def plot_residuals(axes: Axes, residuals: np.ndarray, *, unit: str) -> None:
    """Draw each test image's residual as a bar about zero (Fig. 7)."""
    colours = [PALETTE[0] if residual > 0 else PALETTE[1] for residual in residuals]
    axes.bar(np.arange(1, len(residuals) + 1), residuals, color=colours, width=1.0, linewidth=0)
    axes.axhline(0, color="0.3", linewidth=0.8)
    spread = f"mean {residuals.mean():.3g}, SD {residuals.std():.3g}"
    axes.set(xlabel="test image", ylabel=f"observed minus predicted, {unit}")
    axes.set_title(spread, fontweight="normal", fontsize=9)


def plot_residual_normality(left: Axes, right: Axes, residuals: np.ndarray, *, unit: str) -> None:
    """Draw residuals against a Gaussian: histogram and probability plot (Fig. 8)."""
    left.hist(residuals, bins="auto", density=True, color=PALETTE[0], alpha=0.45)
    _gaussian(left, residuals)
    left.set(xlabel=f"observed minus predicted, {unit}", ylabel="density", title="a) histogram")
    stats.probplot(residuals, plot=right)
    points, straight = right.get_lines()
    points.set(color=PALETTE[0], markersize=3, alpha=0.6)
    straight.set(color=PALETTE[1], linewidth=1)
    right.set(xlabel="quantiles of a standard Gaussian", ylabel=f"ordered residuals, {unit}")
    p = stats.shapiro(residuals).pvalue
    right.set_title(f"b) probability plot, Shapiro-Wilk p = {p:.2g}")


def plot_calibration(axes: Axes, table: pd.DataFrame, *, n: int, label: str) -> None:
    """Draw the share of scores inside predictive intervals against the nominal one.

    Above the diagonal intervals are too wide, below too narrow; the band is chance over n images.
    """
    level = table["level"]
    chance = 1.96 * np.sqrt(level * (1 - level) / n)
    axes.fill_between(level, level - chance, level + chance, color="0.85", label="chance, 95 %")
    axes.plot([0.4, 1], [0.4, 1], color="0.4", linestyle="--", linewidth=1)
    style = {"color": PALETTE[0], "markersize": 5, "label": plain_name(label)}
    axes.plot(level, table["coverage"], "o-", **style)
    axes.set(xlabel="nominal coverage", ylabel="share of test scores inside")
    axes.legend(fontsize=8)


def plot_better_than(axes: Axes, table: pd.DataFrame) -> None:
    """Draw a table of "row beats column" (1, 0, -1) as coloured cells with their sign."""
    signs = table.map({1: "+", 0: "·", -1: "−"}.get)
    colours = {"cmap": "PuOr", "vmin": -1.6, "vmax": 1.6, "cbar": False, "square": True}
    common.plot_table(axes, table, signs, fmt="", **colours)
    names, numbers = map(plain_name, table.index), range(1, len(table) + 1)
    axes.tick_params(labelsize=8)
    axes.set_xticklabels(numbers, rotation=0, ha="center")
    axes.set_yticklabels([f"{name}  {k}" for k, name in zip(numbers, names, strict=True)])
    meaning = "columns: the methods of these rows\n+ row above column, − below,\n· no difference"
    axes.set(ylabel="")
    axes.set_xlabel(meaning, fontsize=9)


def plot_visits(axes: Axes, visits: pd.DataFrame) -> None:
    """Draw how often an epoch shows an image: a row per set, a column per mixing."""
    visits.rename(index=plain_name).plot.barh(ax=axes, width=0.8, color=PALETTE)
    for bars in axes.containers:
        axes.bar_label(bars, fmt="%.1f", padding=3, size=8)
    axes.set(xlabel="visits to an image in one epoch", ylabel="")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    common.legend_beside(axes, title="batches")


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
    axes.set(xlabel=f"{xlabel} (bar: median)")
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
        style = {"linestyle": "none", "label": plain_name(name), "markersize": 5} | look(k)
        axes.plot(table[name], y, **style)
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

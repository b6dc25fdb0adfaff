"""Theme and the pictures that several notebooks share.

Colours are seaborn's colour-blind-safe palette; a second cue (marker, position, text) always
carries the same meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

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

NETWORK_TITLES = {
    "alexnet": "AlexNet",
    "densenet201": "DenseNet201",
    "googlenet": "GoogLeNet",
    "inception_resnet_v2": "Inception-ResNet-v2",
    "inception_v3": "Inception v3",
    "legacy_senet154": "SENet154",
    "legacy_xception": "Xception",
    "mobilenet_v2": "MobileNetV2",
    "mobilenetv2_100": "MobileNetV2",
    "nasnetalarge": "NASNet-Large",
    "resnet34": "ResNet-34",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "resnet152": "ResNet-152",
    "shufflenet": "ShuffleNet v2",
    "squeezenet": "SqueezeNet 1.1",
    "squeezenet1_0": "SqueezeNet 1.0",
    "tf_efficientnet_lite0": "EfficientNet-Lite0",
    "vgg16": "VGG16",
    "vit_base_patch16_clip_quickgelu_224": "CLIP ViT-B/16",
    "vit_base_patch32_clip_224.laion2b": "CLIP ViT-B/32",
    "xception": "Xception",
}
WORDS = {
    "MAE 0-20 and 20-40": "MAE of 0-20 and 20-40",
    "MAE ranges mean": "mean of MAE over ranges",
    "RMSE ranges SD": "SD of RMSE over ranges",
    "as_written": "as written",
    "class_token": "class token",
    "conv_head": "last convolution",
    "dual": "dual network",
    "koncept": "KonCept512",
    "live1": "LIVE-I",  # as ahmed2020 calls them
    "live2": "LIVE-II",
    "niqe": "NIQE",
    "none": "no sampling",
    "released_agedb": "as released, AgeDB",
    "released_stsb": "as released, STS-B",
    "rule": "rule of section 2.2.3",
    "sqrt_inv": "square root of the inverse",
}
LOSSES = {"eq4": "printed loss", "nin": "cited loss", "l1": "released loss"}  # of notebook 03
PALETTE = sns.color_palette("colorblind")
MARKERS = "osD^vP*X<>hd"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def set_theme() -> None:
    """Set fonts, grid and palette; fixes what would make PDF files differ between repeats."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.9)
    mpl.rc("figure", dpi=100)
    mpl.rc("figure.constrained_layout", use=True)
    mpl.rc("axes", titleweight="bold", titlesize=11, titlelocation="left")
    mpl.rc("legend", frameon=False)
    mpl.rc("pdf", fonttype=42)
    mpl.rc("svg", hashsalt="iqa")


def text_table(table: pd.DataFrame) -> Styler:
    """Show a table without its index, numbers at four decimals, sentences left-aligned."""
    words = [c for c in table if not pd.api.types.is_numeric_dtype(table[c])]
    styler = table.reset_index(drop=True).style.hide().format(precision=4, na_rep="")
    return styler.set_properties(subset=words, **{"text-align": "left"})


def plain_name(key: object) -> str:
    """Name data sets and networks by their titles and other keys by words.

    Names that are joined by commas are named one by one.
    """
    if ", " in str(key):
        return ", ".join(map(plain_name, str(key).split(", ")))
    text = re.sub(r"\bss0(?=\d)", "subset ", str(key)).replace("(x)", "(unchanged)")
    text = re.sub(r"\b(method|block_)(?=\d)", lambda word: f"{word[0].rstrip('_')} ", text)
    if text.startswith("single:"):
        return f"single: {plain_name(text.removeprefix('single:'))}"
    family, _, loss = text.partition(" ")
    if loss in LOSSES:
        return f"{family}, {LOSSES[loss]}"
    if text in DATASETS:
        return DATASETS[text].title
    return NETWORK_TITLES.get(text, WORDS.get(text, text))


class PlainLocator(LogLocator):
    """Place ticks at 1, 2 and 5 of each decade, or at 1 alone over more than two decades."""

    def tick_values(self, vmin: float, vmax: float) -> np.ndarray:
        """Return the places of the ticks between two values."""
        self.set_params(subs=(1,) if vmax > 100 * vmin else (1, 2, 5))
        return super().tick_values(vmin, vmax)


def plain_log(axis: Axis) -> None:
    """Write the ticks of a logarithmic axis as plain numbers."""
    axis.set_major_locator(PlainLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_locator(NullLocator())


def look(k: int) -> dict[str, object]:
    """Colour and marker of the k-th series."""
    return {"color": PALETTE[k % len(PALETTE)], "marker": MARKERS[k % len(MARKERS)]}


def line(k: int) -> dict[str, object]:
    """Colour and dashes of the k-th curve."""
    return {"color": PALETTE[k % len(PALETTE)], "linestyle": LINES[k % len(LINES)]}


def name_rows(axes: Axes, names: Iterable[str]) -> None:
    """Name the rows 0, 1, ... of a picture, the first on top, without lines between them."""
    names = list(names)
    axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)


def legend_beside(axes: Axes, title: str | None = None) -> None:
    """Put the legend to the right of the axes, where no curve runs."""
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), title=title, title_fontsize=8)


def plot_scatter(axes: Axes, mos: np.ndarray, pred: np.ndarray, *, unit: str = "MOS") -> None:
    """Draw predictions against opinion scores with the line of equality."""
    ends = min(mos.min(), pred.min()), max(mos.max(), pred.max())
    axes.plot(ends, ends, color="0.4", linewidth=1, linestyle="--", zorder=0)
    axes.scatter(mos, pred, s=12, alpha=0.55, linewidths=0)
    axes.set(xlabel=f"{unit}, observed", ylabel=f"{unit}, predicted")


def plot_intervals(
    axes: Axes, table: pd.DataFrame, *, label: str = "method", group: str = "", xlabel: str = "SRCC"
) -> Axes:
    """Draw one value with its 95 % interval per row; ``group`` sets colour and marker."""
    names = list(dict.fromkeys(table[label]))
    groups = list(table.groupby(group, sort=False)) if group else [(None, table)]
    for k, (name, part) in enumerate(groups):
        y = part[label].map(names.index) + 0.6 * (k + 0.5) / len(groups) - 0.3
        ends = part[["ci_low", "ci_high"]].astype(float)
        axes.hlines(y, ends["ci_low"], ends["ci_high"], color=look(k)["color"], linewidth=1.6)
        shown = {"label": name and plain_name(name), "linestyle": "none", "markersize": 5}
        axes.plot(part["value"], y, **look(k), **shown)
    axes.set(xlabel=xlabel)
    name_rows(axes, map(plain_name, names))
    if group:
        legend_beside(axes)
    return axes


def plot_about_zero(axes: Axes, tests: pd.DataFrame, **options: str) -> None:
    """Draw the differences of :func:`iqa_utils.evaluate.compare`; 0 is no difference.

    The options are those of :func:`plot_intervals`.
    """
    axes.axvline(0, color="0.4", linewidth=1, linestyle="--")
    plot_intervals(axes, tests, **options)
    axes.xaxis.set_major_locator(MaxNLocator(5))  # more run together in a narrow panel


def plot_table(axes: Axes, table: pd.DataFrame, texts: object = True, **colours: object) -> None:
    """Draw a table as coloured cells with their numbers, or other texts; NaN stays white."""
    sns.heatmap(table, ax=axes, annot=texts, annot_kws={"size": 8}, **colours)
    axes.set_xticks(axes.get_xticks(), table.columns, rotation=40, ha="right")
    axes.grid(visible=False)


def plot_curves(axes: Axes, history: pd.DataFrame, *, y: str, group: str, ylabel: str) -> None:
    """Draw learning curves: mean over runs as a line, their spread as a band."""
    named = history.assign(**{group: history[group].map(plain_name)})
    sns.lineplot(named, x="epoch", y=y, hue=group, style=group, errorbar="sd", ax=axes)
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_beside(axes)


def grid_figure(
    n: int, *, columns: int = 3, size: tuple[float, float] = (4.0, 3.2)
) -> Sequence[Axes]:
    """Make a figure of equal panels and hide those beyond ``n``."""
    columns = min(columns, n)
    rows = -(-n // columns)
    size = size[0] * columns, size[1] * rows
    axes = plt.subplots(rows, columns, figsize=size, squeeze=False)[1].ravel()
    for spare in axes[n:]:
        spare.set_visible(False)
    return list(axes[:n])

"""Pictures of score tables: correlations, ranges, scales, votes and a gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from PIL import Image

from iqa_utils.workshop.plots.common import PALETTE, name_rows, plain_log, plain_name, plot_table

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
    plot_table(axes, matrix, square=True, cbar_kws=bar, **colours)
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
    axes.legend(loc="upper right")


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

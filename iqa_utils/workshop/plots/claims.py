"""Pictures of the audit of published numbers."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from iqa_utils.workshop.audit import KENDALL_BAND, kendall_from_spearman
from iqa_utils.workshop.plots.common import PALETTE, VERDICT_COLOURS

STYLES = {  # colour, marker and size: the marker says the same as the colour
    "consistent": ((0.62, 0.75, 0.86), "s", 52),
    "implausible": (VERDICT_COLOURS["implausible"], "^", 60),
    "inconsistent": (VERDICT_COLOURS["inconsistent"], "X", 66),
}


def plot_audit(axes: Axes, table: pd.DataFrame, *, width: int = 22) -> Axes:
    """Draw one mark a check, a block a paper: how much was checked and what fails, at a glance."""
    rank = {name: k for k, name in enumerate(reversed(STYLES))}
    top, ticks, labels = 0.0, [], []
    for paper, part in table.groupby("paper", sort=False):
        part = part.sort_values("verdict", key=lambda column: column.map(rank), kind="stable")
        place = np.arange(len(part))
        x, y = place % width, top + place // width
        for verdict, (colour, marker, size) in STYLES.items():
            rows = (part["verdict"] == verdict).to_numpy()
            axes.scatter(x[rows], y[rows], color=colour, marker=marker, s=size, linewidths=0)
        found = int((part["verdict"] != "consistent").sum())
        ticks.append((y[0] + y[-1]) / 2)
        labels.append(f"{paper}\n{len(part)} checks, {found} not consistent")
        top = y[-1] + 2.0
    for verdict, (colour, marker, size) in STYLES.items():
        count = int((table["verdict"] == verdict).sum())
        label = f"{verdict} ({count})"
        axes.scatter([], [], color=colour, marker=marker, s=size, linewidths=0, label=label)
    axes.set(yticks=ticks, yticklabels=labels, xticks=[], xlim=(-1, width))
    axes.set_ylim(top - 1.0, -0.8)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3)
    return axes


def plot_kinds(axes: Axes, table: pd.DataFrame) -> Axes:
    """Draw stacked bars: checks of each family by verdict."""
    counts = pd.crosstab(table["kind"], table["verdict"])
    counts = counts.loc[counts.sum(axis=1).sort_values().index]
    left = np.zeros(len(counts))
    for verdict, (colour, _, _) in STYLES.items():
        width = counts[verdict].to_numpy(float) if verdict in counts else np.zeros(len(counts))
        axes.barh(counts.index, width, left=left, color=colour, label=verdict)
        left = left + width
    found = counts.sum(axis=1) - counts["consistent"]
    for row, (total, odd) in enumerate(zip(counts.sum(axis=1), found, strict=True)):
        text = f"{total}" + (f", {odd} not" if odd else "")
        axes.text(left[row] + 0.8, row, text, va="center", size=8)
    axes.set(xlabel="checks", xlim=(0, left.max() * 1.2))
    axes.grid(axis="y", visible=False)
    return axes


def plot_weighted(axes: Axes, table: pd.DataFrame) -> Axes:
    """Draw each printed mean over sets against what its own row gives.

    Bars span every value that hidden digits and set sizes allow.
    """
    rows = table[table["kind"] == "weighted mean"].reset_index(drop=True)
    y = np.arange(len(rows))
    axes.hlines(y, rows["low"], rows["high"], color="0.55", linewidth=5, label="its row allows")
    good = (rows["verdict"] == "consistent").to_numpy()
    for chosen, verdict, label in (
        (good, "consistent", "printed, agrees"),
        (~good, "inconsistent", "printed, cannot be"),
    ):
        _, marker, _ = STYLES[verdict]
        colour = PALETTE[0] if verdict == "consistent" else STYLES[verdict][0]
        axes.scatter(
            rows["printed"][chosen], y[chosen], marker=marker, s=34, color=colour, label=label,
            zorder=3, linewidths=0,
        )  # fmt: skip
    for k in y[~good]:
        ends = rows["recomputed"][k], rows["printed"][k]
        axes.plot(ends, (k, k), color=STYLES["inconsistent"][0], linewidth=1)
        text = f"row gives {ends[0]:.3f}, printed {ends[1]:.3f}"
        side = {"ha": "right"} if max(ends) > 0.7 else {"ha": "left"}  # keep inside the frame
        place = (min(ends), -9) if max(ends) > 0.7 else (max(ends), 9)
        axes.annotate(text, (place[0], k), (place[1], 0), textcoords="offset points", va="center",
                      size=9, **side)  # fmt: skip
    papers = list(dict.fromkeys(rows["paper"]))
    for paper in papers[1:]:
        axes.axhline(rows.index[rows["paper"] == paper][0] - 0.5, color="0.4", linewidth=1)
    for paper in papers:
        axes.text(0.985, rows.index[rows["paper"] == paper][0], paper, ha="right", va="center",
                  size=9, style="italic")  # fmt: skip
    axes.set(yticks=y, yticklabels=rows["what"].str.removesuffix(" over sets"), xlim=(0.38, 0.99))
    axes.set_xlabel("mean correlation over data sets")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.legend(loc="lower center", bbox_to_anchor=(0.3, 1.0), ncols=3)
    return axes


def plot_kendall(axes: Axes, table: pd.DataFrame, measured: pd.DataFrame, *, label: str) -> Axes:
    """Draw every printed Kendall against its Spearman, with measured pairs and a plausible band."""
    line = np.linspace(0.4, 1, 200)
    curve = np.array([kendall_from_spearman(r) for r in line])
    axes.fill_between(
        line, curve - KENDALL_BAND, curve + KENDALL_BAND, color="0.88", label="plausible band"
    )
    axes.plot(line, curve, color="0.45", linewidth=1.2, label="bivariate normal")
    axes.scatter(
        measured["SRCC"], measured["KRCC"], s=18, color=PALETTE[2], alpha=0.7, linewidths=0,
        label=label,
    )  # fmt: skip
    rows = table[table["kind"] == "Kendall against Spearman"]
    spearman = np.interp(rows["recomputed"], curve, line)  # the curve is increasing
    for verdict, words in (("consistent", "ahmed2020, agrees"), ("implausible", "far above")):
        chosen = (rows["verdict"] == verdict).to_numpy()
        marker = STYLES[verdict][1]
        colour = PALETTE[0] if verdict == "consistent" else STYLES[verdict][0]
        size = 18 if verdict == "consistent" else 60
        axes.scatter(
            spearman[chosen], rows["printed"][chosen], marker=marker, s=size, color=colour,
            label=f"{words} ({chosen.sum()})", linewidths=0, zorder=3,
        )  # fmt: skip
    odd = (rows["verdict"] == "implausible").to_numpy()
    labelled = rows[odd].assign(x=spearman[odd]).sort_values("printed", ascending=False)
    labelled["place"] = np.linspace(0.86, 0.7, len(labelled))  # such that no lines cross
    labelled.loc[labelled["printed"] < 0.7, "place"] -= 0.1
    leader = {"arrowstyle": "-", "color": "0.6", "relpos": (1, 0.5)}  # from where a label ends
    for _, row in labelled.iterrows():
        text = f"{row['table']}, {row['what'].split(', ')[-1]}  {row['printed']:.3f}"
        column = 0.745 if row["printed"] > 0.7 else 0.695
        axes.annotate(text, (row["x"], row["printed"]), (column, row["place"]), size=8, ha="right",
                      va="center", arrowprops=leader)  # fmt: skip
    axes.set(xlabel="SRCC", ylabel="KRCC", xlim=(0.6, 1), ylim=(0.4, 0.95))
    axes.legend(loc="lower right", fontsize=8)
    return axes


def plot_floors(axes: Axes, table: pd.DataFrame) -> Axes:
    """Draw printed errors over the least error that their correlation allows.

    Args:
        axes: Where to draw.
        table: From `claims.audit`; rows without a floor are left out.

    Returns:
        The axes, on a logarithmic scale; left of 1 is impossible.
    """
    rows = table[(table["kind"] == "error floor") & np.isinf(table["high"])].reset_index(drop=True)
    y = np.arange(len(rows))
    ratio = rows["printed"] / rows["recomputed"]
    axes.axvspan(0.1, 1, color="0.92")
    axes.axvline(1, color="0.4", linewidth=1)
    for verdict, (colour, marker, size) in STYLES.items():
        chosen = (rows["verdict"] == verdict).to_numpy()
        axes.hlines(y[chosen], 1, ratio[chosen], color=colour, linewidth=1.5)
        axes.scatter(ratio[chosen], y[chosen], color=colour, marker=marker, s=size, linewidths=0,
                     label=f"{verdict} ({chosen.sum()})", zorder=3)  # fmt: skip
    names = rows["paper"] + " " + rows["table"] + ", " + rows["what"].str.replace("least ", "as ")
    axes.set(xscale="log", yticks=y, yticklabels=names, xlim=(0.35, 30))
    axes.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axes.set_xlabel("printed error / least error that the printed correlation allows")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, fontsize=8)
    return axes


def plot_gains(axes: Axes, table: pd.DataFrame) -> Axes:
    """Draw the gain that each split's transformer learned, a column a data set.

    Splits of one model are joined by a line.
    """
    wide = table.pivot_table(index="split", columns="dataset", values="gain")
    wide = wide[list(dict.fromkeys(table["dataset"]))]
    x = np.arange(wide.shape[1])
    for _, values in wide.iterrows():
        axes.plot(x, values, color="0.8", linewidth=1, zorder=1)
    for k, name in enumerate(wide.columns):
        axes.scatter(np.full(len(wide), k), wide[name], s=22, color=PALETTE[k], linewidths=0)
        axes.hlines(wide[name].median(), k - 0.25, k + 0.25, color=PALETTE[k], linewidth=2.5)
    axes.set(xticks=x, xticklabels=wide.columns, ylabel="gain, transformer / regressor output")
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", visible=False)
    return axes


def plot_splits(axes: Axes, table: pd.DataFrame, printed: pd.Series) -> Axes:
    """Draw SRCC of every split and set, its median, and the printed median."""
    rows = table[table["metric"] == "SRCC"]
    names = list(dict.fromkeys(rows["dataset"]))
    for k, name in enumerate(names):
        values = rows[rows["dataset"] == name]["value"]
        axes.scatter(values, np.full(len(values), k), s=18, color=PALETTE[0], alpha=0.5,
                     linewidths=0, label="one split" if k == 0 else None)  # fmt: skip
        axes.vlines(values.median(), k - 0.3, k + 0.3, color=PALETTE[0], linewidth=2.5,
                    label="median of ten" if k == 0 else None)  # fmt: skip
        axes.plot(printed[name], k, "D", color="0.15", markersize=6, fillstyle="none",
                  label="printed" if k == 0 else None, linestyle="none")  # fmt: skip
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="SRCC")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.legend(loc="lower left", fontsize=8)
    return axes

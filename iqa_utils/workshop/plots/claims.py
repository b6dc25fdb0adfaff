"""Pictures of the audit of published numbers."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from iqa_utils.workshop.audit import KENDALL_BAND, kendall_from_spearman
from iqa_utils.workshop.claims import counts
from iqa_utils.workshop.papers import papers
from iqa_utils.workshop.plots.common import PALETTE, VERDICT_COLOURS, plain_name, set_theme

STYLES = {  # colour, marker and size: the marker says the same as the colour
    "consistent": ((0.62, 0.75, 0.86), "s", 52),
    "implausible": (VERDICT_COLOURS["implausible"], "^", 60),
    "inconsistent": (VERDICT_COLOURS["inconsistent"], "X", 66),
}
QUIET = {"consistent": (PALETTE[0], "s", 22)}  # where what agrees is not the point


def _mark(
    axes: Axes, x: object, y: object, verdict: str, label: str = "", styles: dict = STYLES
) -> None:
    colour, marker, size = styles[verdict]
    style = {"color": colour, "marker": marker, "s": size, "linewidths": 0, "zorder": 3}
    axes.scatter(x, y, label=label or None, **style)


def plot_audit(axes: Axes, table: pd.DataFrame, *, width: int = 22) -> None:
    """Draw one mark per check, a block per paper: how much was checked and what fails."""
    rank = {name: k for k, name in enumerate(reversed(STYLES))}
    top, ticks, labels = 0.0, [], []
    for paper, part in table.groupby("paper", sort=False):
        part = part.sort_values("verdict", key=lambda column: column.map(rank), kind="stable")
        place = np.arange(len(part))
        x, y = place % width, top + place // width
        for verdict in STYLES:
            rows = (part["verdict"] == verdict).to_numpy()
            _mark(axes, x[rows], y[rows], verdict)
        found = int((part["verdict"] != "consistent").sum())
        ticks.append((y[0] + y[-1]) / 2)
        labels.append(f"{paper}\n{len(part)} checks, {found} not consistent")
        top = y[-1] + 2.0
    for verdict in STYLES:
        _mark(axes, [], [], verdict, f"{verdict} ({(table['verdict'] == verdict).sum()})")
    axes.set(yticks=ticks, yticklabels=labels, xticks=[], xlim=(-1, width))
    axes.set_ylim(top - 1.0, -0.8)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3)


def plot_kinds(axes: Axes, table: pd.DataFrame) -> None:
    """Draw stacked bars: checks of each family by verdict."""
    counts = pd.crosstab(table["kind"], table["verdict"]).reindex(columns=[*STYLES], fill_value=0)
    counts = counts.loc[counts.sum(axis=1).sort_values().index]
    colours = [colour for colour, _, _ in STYLES.values()]
    counts.plot.barh(stacked=True, ax=axes, color=colours, width=0.8, legend=False)
    total = counts.sum(axis=1)
    for row, (n, odd) in enumerate(zip(total, total - counts["consistent"], strict=True)):
        axes.text(n + 0.8, row, f"{n}" + (f", {odd} not" if odd else ""), va="center", size=8)
    axes.set(xlabel="checks", ylabel="", xlim=(0, total.max() * 1.2))
    axes.grid(axis="y", visible=False)


def plot_weighted(axes: Axes, table: pd.DataFrame) -> None:
    """Draw each printed mean over sets against what its own row gives.

    Bars span every value that hidden digits and set sizes allow.
    """
    rows = table[table["kind"] == "weighted mean"].reset_index(drop=True)
    y = np.arange(len(rows))
    axes.hlines(y, rows["low"], rows["high"], color="0.55", linewidth=5, label="its row allows")
    good = (rows["verdict"] == "consistent").to_numpy()
    _mark(axes, rows["printed"][good], y[good], "consistent", "printed, agrees", QUIET)
    _mark(axes, rows["printed"][~good], y[~good], "inconsistent", "printed, cannot be")
    for k in y[~good]:
        ends = rows["recomputed"][k], rows["printed"][k]
        axes.plot(ends, (k, k), color=STYLES["inconsistent"][0], linewidth=1)
        text = f"row gives {ends[0]:.3f}, printed {ends[1]:.3f}"
        left = max(ends) > 0.7  # keeps the text inside the frame
        place = {"ha": "right" if left else "left", "va": "center", "size": 9}
        from_end = {"xytext": (-9 if left else 9, 0), "textcoords": "offset points"}
        axes.annotate(text, (min(ends) if left else max(ends), k), **from_end, **place)
    for k, paper in rows["paper"].drop_duplicates().items():
        if k:
            axes.axhline(k - 0.5, color="0.4", linewidth=1)
        axes.text(0.985, k, paper, ha="right", va="center", size=9, style="italic")
    axes.set(yticks=y, yticklabels=rows["what"].str.removesuffix(" over sets"), xlim=(0.38, 0.99))
    axes.set_xlabel("mean correlation over data sets")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.legend(loc="lower center", bbox_to_anchor=(0.3, 1.0), ncols=3)
    axes.set_title("Can the printed means come from their own rows?", pad=26)


def plot_kendall(axes: Axes, table: pd.DataFrame, measured: pd.DataFrame, *, label: str) -> None:
    """Draw every printed Kendall against its Spearman, with measured pairs and a plausible band."""
    line = np.linspace(0.4, 1, 200)
    curve = np.array([kendall_from_spearman(r) for r in line])
    band = curve - KENDALL_BAND, curve + KENDALL_BAND
    axes.fill_between(line, *band, color="0.88", label="plausible band")
    axes.plot(line, curve, color="0.45", linewidth=1.2, label="bivariate normal")
    dots = {"s": 18, "color": PALETTE[2], "alpha": 0.7, "linewidths": 0}
    axes.scatter(measured["SRCC"], measured["KRCC"], label=label, **dots)
    rows = table[table["kind"] == "Kendall against Spearman"]
    rows = rows.assign(x=np.interp(rows["recomputed"], curve, line))  # the curve is increasing
    good = rows["verdict"] == "consistent"
    told = f"ahmed2020, agrees ({good.sum()})", f"far above ({(~good).sum()})"
    _mark(axes, rows["x"][good], rows["printed"][good], "consistent", told[0], QUIET)
    _mark(axes, rows["x"][~good], rows["printed"][~good], "implausible", told[1])
    odd = rows[~good].sort_values("printed", ascending=False)
    odd["place"] = np.linspace(0.86, 0.7, len(odd))  # such that no lines cross
    odd.loc[odd["printed"] < 0.7, "place"] -= 0.1
    leader = {"arrowstyle": "-", "color": "0.6", "relpos": (1, 0.5)}  # from where a label ends
    style = {"size": 8, "ha": "right", "va": "center", "arrowprops": leader}
    for row in odd.itertuples():
        text = f"{row.table}, {row.what.split(', ')[-1]}  {row.printed:.3f}"
        column = 0.745 if row.printed > 0.7 else 0.695
        axes.annotate(text, (row.x, row.printed), (column, row.place), **style)
    axes.set(xlabel="SRCC", ylabel="KRCC", xlim=(0.6, 1), ylim=(0.4, 0.95))
    axes.legend(loc="lower right", fontsize=8)
    axes.set_title("Do the printed rank correlations agree with each other?")


def plot_floors(axes: Axes, table: pd.DataFrame) -> None:
    """Draw printed errors over the least error that their correlation allows."""
    rows = table[(table["kind"] == "error floor") & np.isinf(table["high"])].reset_index(drop=True)
    y = np.arange(len(rows))
    ratio = rows["printed"] / rows["recomputed"]
    axes.axvspan(0.1, 1, color="0.92")
    axes.axvline(1, color="0.4", linewidth=1)
    for verdict, (colour, _, _) in STYLES.items():
        chosen = (rows["verdict"] == verdict).to_numpy()
        axes.hlines(y[chosen], 1, ratio[chosen], color=colour, linewidth=1.5)
        _mark(axes, ratio[chosen], y[chosen], verdict, f"{verdict} ({chosen.sum()})")
    names = rows["paper"] + " " + rows["table"] + ", " + rows["what"].str.replace("least ", "as ")
    axes.set(xscale="log", yticks=y, yticklabels=names, xlim=(0.35, 30))
    axes.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axes.set_xlabel("printed error / least error that the printed correlation allows")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, fontsize=8)
    axes.set_title("Are the printed errors possible with the printed correlations?", pad=26)


def plot_gains(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the gain that each split's transformer learned, one column per data set.

    Splits of one model are joined by a line.
    """
    wide = table.pivot_table(index="split", columns="dataset", values="gain")
    wide = wide[list(dict.fromkeys(table["dataset"]))]
    x = np.arange(wide.shape[1])
    axes.plot(x, wide.T, color="0.8", linewidth=1, zorder=1)
    for k, name in enumerate(wide.columns):
        axes.scatter(np.full(len(wide), k), wide[name], s=22, color=PALETTE[k], linewidths=0)
        axes.hlines(wide[name].median(), k - 0.25, k + 0.25, color=PALETTE[k], linewidth=2.5)
    axes.set(ylabel="gain, transformer / regressor output")
    axes.set_xticks(x, map(plain_name, wide.columns), rotation=20, ha="right")
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", visible=False)
    axes.set_title("Does every image of a set get the same gain?")


def plot_splits(axes: Axes, table: pd.DataFrame, printed: pd.Series) -> None:
    """Draw SRCC of every split and set, its median, and the printed median."""
    rows = table[table["metric"] == "SRCC"]
    names = list(dict.fromkeys(rows["dataset"]))
    y = np.arange(len(names))
    medians = rows.groupby("dataset", sort=False)["value"].median()
    dots = {"s": 18, "color": PALETTE[0], "alpha": 0.5, "linewidths": 0}
    axes.scatter(rows["value"], rows["dataset"].map(names.index), label="one split", **dots)
    line = {"color": PALETTE[0], "linewidth": 2.5, "label": "median of ten"}
    axes.vlines(medians, y - 0.3, y + 0.3, **line)
    diamond = {"color": "0.15", "markersize": 6, "fillstyle": "none", "linestyle": "none"}
    axes.plot(printed[names], y, "D", label="printed", **diamond)
    axes.set_yticks(range(len(names)), map(plain_name, names))
    axes.set_xlabel("SRCC")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.legend(loc="lower left", fontsize=8)
    axes.set_title("How far do splits scatter around the printed medians?")


def draw_scoreboard(board: pd.DataFrame) -> Figure:
    """Draw where each paper stands: a bar per paper and kind of answer, a colour per verdict."""
    set_theme()
    table = counts(board)
    titles = [f"{papers()[paper].TITLE.split(':')[0]}, {kind}" for paper, kind in table.index]
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.34 * len(table)))
    left = np.zeros(len(table))
    for verdict in [v for v in VERDICT_COLOURS if table[v].any()]:
        width = table[verdict].to_numpy(dtype=float)
        bars = axes.barh(range(len(table)), width, left=left, color=VERDICT_COLOURS[verdict])
        bars.set_label(verdict)
        for row, (start, size) in enumerate(zip(left, width, strict=True)):
            if size >= 0.04 * table.to_numpy().sum(axis=1).max():
                axes.text(start + size / 2, row, f"{size:.0f}", ha="center", va="center", size=8)
        left = left + width
    axes.set(xlabel="distinct quantities", yticks=range(len(table)), yticklabels=titles)
    axes.set_title("Which printed numbers have been checked?", x=-0.3)
    axes.invert_yaxis()
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.4, -0.16), fontsize=8)
    axes.grid(axis="y", visible=False)
    return figure

"""Pictures of the audit of published numbers."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from iqa_utils.workshop.audit import KENDALL_BAND, kendall_from_spearman
from iqa_utils.workshop.claims import VERDICTS, counts
from iqa_utils.workshop.papers import papers
from iqa_utils.workshop.plots import common
from iqa_utils.workshop.plots.common import PALETTE, name_rows, plain_name

GREYS = [(0.72, 0.72, 0.72), (0.9, 0.9, 0.9)]  # of what says nothing about a number
COLOURS = [*(PALETTE[k] for k in (2, 9, 0, 1, 3, 4)), *GREYS]
VERDICT_COLOURS = dict(zip(VERDICTS, COLOURS, strict=True))
STYLES = {  # colour, marker and size: the marker says the same as the colour
    "consistent": ((0.62, 0.75, 0.86), "s", 52),
    "implausible": (VERDICT_COLOURS["implausible"], "^", 60),
    "inconsistent": (VERDICT_COLOURS["inconsistent"], "X", 66),
}
QUIET = (PALETTE[0], "s", 22)  # of what agrees, where that is not the point
ABOVE = {"loc": "lower center", "ncols": 3}  # a legend between the axes and their title


def _mark(
    axes: Axes, x: object, y: object, style: tuple[object, str, int], label: str | None = None
) -> None:
    colour, marker, size = style
    axes.scatter(x, y, size, color=colour, marker=marker, lw=0, zorder=3, label=label)


def _authors(paper: str) -> str:
    return papers()[paper].TITLE.split(":")[0]


def _mark_papers(axes: Axes, rows: pd.DataFrame) -> None:
    """Part the rows of each paper by a line and write its authors at the right."""
    for k, paper in rows["paper"].drop_duplicates().items():
        axes.axhline(k - 0.5, color="0.4", linewidth=1)
        place = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center"}
        axes.text(0.985, k, _authors(paper), size=9, style="italic", **place)


def plot_audit(axes: Axes, table: pd.DataFrame) -> None:
    """Draw one mark per check, a block per paper: how much was checked and what fails."""
    worst_first = [*reversed(STYLES)]
    width, top, ticks = 22, 0, {}
    for paper, part in table.groupby("paper", sort=False):
        verdicts = part["verdict"].sort_values(key=lambda column: column.map(worst_first.index))
        place = np.arange(len(part))
        x, y = place % width, top + place // width
        for verdict, style in STYLES.items():
            rows = (verdicts == verdict).to_numpy()
            _mark(axes, x[rows], y[rows], style)
        found = (verdicts != "consistent").sum()
        ticks[(y[0] + y[-1]) / 2] = f"{_authors(paper)}\n{len(part)} checks, {found} not consistent"
        top = y[-1] + 2
    for verdict, style in STYLES.items():
        _mark(axes, [], [], style, f"{verdict} ({(table['verdict'] == verdict).sum()})")
    axes.set_yticks([*ticks], ticks.values())
    axes.set(xticks=[], xlim=(-1, width), ylim=(top - 1.0, -0.8))
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
    odd = total - counts["consistent"]
    told = [f"{n}, {k} not" if k else f"{n}" for n, k in zip(total, odd, strict=True)]
    axes.bar_label(axes.containers[-1], told, padding=4, size=8)
    axes.set(xlabel="checks", ylabel="", xlim=(0, total.max() * 1.2))
    axes.grid(axis="y", visible=False)


def plot_weighted(axes: Axes, table: pd.DataFrame) -> None:
    """Draw each printed mean over sets against what its own row gives.

    Bars span every value that hidden digits and set sizes allow.
    """
    rows = table[table["kind"] == "weighted mean"].reset_index(drop=True)
    good = rows["verdict"] == "consistent"
    axes.hlines(rows.index, rows["low"], rows["high"], color="0.55", lw=5, label="its row allows")
    _mark(axes, rows["printed"][good], rows.index[good], QUIET, "printed, agrees")
    red = STYLES["inconsistent"]
    _mark(axes, rows["printed"][~good], rows.index[~good], red, "printed, cannot be")
    for row in rows[~good].itertuples():
        ends = row.recomputed, row.printed
        axes.plot(ends, (row.Index, row.Index), color=red[0], linewidth=1)
        text = f"row gives {ends[0]:.3f}, printed {ends[1]:.3f}"
        left = max(ends) > 0.7  # keeps the text inside the frame
        x, offset, side = (min(ends), -9, "right") if left else (max(ends), 9, "left")
        place = {"xytext": (offset, 0), "textcoords": "offset points", "ha": side, "va": "center"}
        axes.annotate(text, (x, row.Index), size=9, **place)
    _mark_papers(axes, rows)
    name_rows(axes, rows["what"].str.removesuffix(" over sets"))
    axes.set(xlim=(0.38, 0.99), xlabel="mean correlation over data sets")
    axes.legend(bbox_to_anchor=(0.3, 1.0), **ABOVE)
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
    named = " and ".join(map(_authors, rows["paper"].unique()))
    agree, odd = rows[good], rows[~good].sort_values("printed", ascending=False)
    _mark(axes, agree["x"], agree["printed"], QUIET, f"{named}, agrees ({len(agree)})")
    _mark(axes, odd["x"], odd["printed"], STYLES["implausible"], f"far above ({len(odd)})")
    leader = {"arrowstyle": "-", "color": "0.6", "relpos": (1, 0.5)}  # from where a label ends
    style = {"size": 8, "ha": "right", "va": "center", "arrowprops": leader}
    heights = np.linspace(0.86, 0.7, len(odd))  # such that no lines cross
    for row, height in zip(odd.itertuples(), heights, strict=True):
        text = f"{row.table}, {plain_name(row.what.split(', ')[-1])}  {row.printed:.3f}"
        place = (0.745, height) if row.printed > 0.7 else (0.695, height - 0.1)
        axes.annotate(text, (row.x, row.printed), place, **style)
    axes.set(xlabel="SRCC", ylabel="KRCC", xlim=(0.6, 1), ylim=(0.4, 0.95))
    axes.legend(loc="lower right", fontsize=8)
    axes.set_title("Do the printed rank correlations agree with each other?")


def plot_least_errors(axes: Axes, table: pd.DataFrame) -> None:
    """Draw printed errors over the least error that their correlation allows."""
    rows = table[(table["kind"] == "least error") & np.isinf(table["high"])].reset_index(drop=True)
    ratio = rows["printed"] / rows["recomputed"]
    axes.axvspan(0.1, 1, color="0.92")
    axes.axvline(1, color="0.4", linewidth=1)
    for verdict, style in STYLES.items():
        x = ratio[rows["verdict"] == verdict]
        axes.hlines(x.index, 1, x, color=style[0], linewidth=1.5)
        _mark(axes, x, x.index, style, f"{verdict} ({len(x)})")
    _mark_papers(axes, rows)
    names = rows["table"] + ", " + rows["what"].str.replace("least ", "as ")
    name_rows(axes, map(plain_name, names))
    axes.set(xscale="log", xlim=(0.35, 60))
    axes.set_xticks(ticks := [0.5, 1, 2, 5, 10, 20, 50], map(str, ticks))
    axes.set_xlabel("printed error / least error that the printed correlation allows")
    axes.legend(bbox_to_anchor=(0.4, 1.0), fontsize=8, **ABOVE)
    axes.set_title("Are the printed errors possible with the printed correlations?", pad=26)


def plot_gains(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the gain that each split's transformer learned, one column per data set.

    Splits of one model are joined by a line.
    """
    wide = table.pivot_table(index="dataset", columns="split", values="gain", sort=False)
    x = np.arange(len(wide))
    axes.plot(x, wide, color="0.8", linewidth=1, zorder=1)
    for k, gains in enumerate(wide.to_numpy()):
        axes.scatter(np.full(len(gains), k), gains, s=22, color=PALETTE[k], linewidths=0)
    axes.hlines(wide.median(axis=1), x - 0.25, x + 0.25, color=PALETTE[: len(x)], linewidth=2.5)
    axes.set_ylabel("gain, transformer / regressor output")
    axes.set_xticks(x, map(plain_name, wide.index), rotation=20, ha="right")
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", visible=False)
    axes.set_title("Does every image of a set get the same gain?")


def plot_splits(axes: Axes, table: pd.DataFrame, printed: pd.Series) -> None:
    """Draw SRCC of every split and set, its median, and the printed median."""
    srcc = table[table["metric"] == "SRCC"].groupby("dataset", sort=False)["value"]
    dots = {"s": 18, "color": PALETTE[0], "alpha": 0.5, "linewidths": 0}
    for y, (_, values) in enumerate(srcc):
        axes.scatter(values, [y] * len(values), label=None if y else "one split", **dots)
    medians, y = srcc.median(), np.arange(srcc.ngroups)
    line = {"color": PALETTE[0], "linewidth": 2.5, "label": "median of ten"}
    axes.vlines(medians, y - 0.3, y + 0.3, **line)
    diamond = {"color": "0.15", "markersize": 6, "fillstyle": "none", "label": "printed"}
    axes.plot(printed[medians.index], y, "D", **diamond)
    name_rows(axes, map(plain_name, medians.index))
    axes.set_xlabel("SRCC")
    axes.legend(loc="lower left", fontsize=8)
    axes.set_title("How far do splits scatter around the printed medians?")


def draw_scoreboard(board: pd.DataFrame) -> Figure:
    """Draw where each paper stands: a bar per paper and kind of answer, a colour per verdict."""
    common.set_theme()
    table = counts(board)
    table = table.loc[:, table.any()]
    unmeasured = {"no result": "not measured here"}  # what the audit finds has a verdict there too
    titles = [f"{_authors(paper)}, {unmeasured.get(kind, kind)}" for paper, kind in table.index]
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.34 * len(table)))
    colours = [VERDICT_COLOURS[verdict] for verdict in table]
    table.plot.barh(stacked=True, ax=axes, color=colours, width=0.8, legend=False)
    total = table.sum(axis=1)
    inner = (table >= 0.04 * total.max()).where(table.lt(total, axis=0), other=False)
    for bars, verdict in zip(axes.containers, table, strict=True):
        shown = table[verdict].astype(str).where(inner[verdict], "")
        axes.bar_label(bars, shown, label_type="center", size=8)
    for place, (row, n) in enumerate(total.items()):  # in words what is too narrow for a number
        narrow = table.loc[row][(table.loc[row] > 0) & ~inner.loc[row]]
        told = ", ".join(f"{k} {verdict}" for verdict, k in narrow.items())
        told = told if narrow.sum() == n else f"{n}: {told}" if told else f"{n}"
        axes.annotate(told, (n, place), (4, 0), textcoords="offset points", va="center", size=8)
    axes.set_xlim(0, 1.28 * total.max())
    name_rows(axes, titles)
    axes.set(xlabel="distinct quantities", ylabel="")
    axes.set_title("Which printed numbers have been checked?", x=-0.3)
    figure.legend(ncols=4, loc="outside lower center", fontsize=8)
    return figure

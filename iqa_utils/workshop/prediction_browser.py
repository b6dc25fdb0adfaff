"""Look at a run's predictions image by image: worst and best, filtered, two runs side by side.

In JupyterLab :func:`browse` shows controls; where no front end listens (papermill, nbval) it shows
one picture of the same view and nothing else.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from iqa_utils.datasets import load_scores
from iqa_utils.workshop.plots.common import PALETTE

ORDERS = {
    "largest error": lambda rows: -rows["error"].abs(),
    "smallest error": lambda rows: rows["error"].abs(),
    "highest prediction": lambda rows: -rows["pred"],
    "lowest prediction": lambda rows: rows["pred"],
}
ANY = "(any)"
VOTES = [f"c{grade}" for grade in range(1, 6)]


def load_predictions(run: str | Path, data_root: str | Path) -> pd.DataFrame:
    """Read a run's predictions and join what the data sets below ``data_root`` know of each image.

    Returns:
        ``predictions.parquet`` with ``error`` (prediction minus opinion), ``distortion``, the vote
        counts ``c1..c5`` (NA where unknown) and ``path`` (empty where no image is there).
    """
    file = Path(run) / "predictions.parquet"
    if not file.is_file():
        raise FileNotFoundError(f"{Path(run).name} holds no predictions.parquet")
    sets = pd.read_parquet(file).groupby("dataset", sort=False)
    joined = pd.concat(_join_scores(part, Path(data_root) / str(name)) for name, part in sets)
    return joined.sort_index().assign(error=joined["pred"] - joined["mos"])


def _join_scores(part: pd.DataFrame, root: Path) -> pd.DataFrame:
    extra = ["distortion", *VOTES]
    try:
        scores = load_scores(root.name, root)
    except (KeyError, FileNotFoundError, ValueError):
        return part.reindex(columns=[*part.columns, *extra]).assign(path="")
    known = scores.reindex(columns=["image", *extra])
    joined = part.reset_index().merge(known, on="image", how="left").set_index("index")
    paths = [str(root / image) if (root / image).is_file() else "" for image in joined["image"]]
    return joined.assign(path=paths)


def select(
    predictions: pd.DataFrame,
    order: str = "largest error",
    scores: tuple[float, float] = (-np.inf, np.inf),
    n: int = 6,
    **wanted: str,
) -> pd.DataFrame:
    """Order the predictions of images within ``scores``; at most ``n``, each image once.

    ``wanted`` chooses a value of ``method``, ``dataset`` or ``distortion``.
    """
    rows = predictions[predictions["mos"].between(*scores)]
    for column, value in wanted.items():
        rows = rows if value == ANY else rows[rows[column] == value]
    rows = rows.loc[ORDERS[order](rows).sort_values(kind="stable").index]
    return rows.drop_duplicates(["dataset", "image"]).head(n)


def draw(rows: pd.DataFrame, *, other: pd.DataFrame | None = None) -> Figure:
    """Draw images with their votes, opinion score and prediction, and that of another run."""
    columns = 3
    lines = max(1, -(-len(rows) // columns))
    figure = plt.figure(figsize=(4.2 * columns, 3.3 * lines), layout="constrained")
    cells = figure.subplots(2 * lines, columns, squeeze=False, height_ratios=[4, 1] * lines)
    for axes in cells.ravel():
        axes.set_axis_off()
    places = zip(cells[::2].ravel(), cells[1::2].ravel(), strict=True)
    for (_, row), (above, below) in zip(rows.iterrows(), places, strict=False):
        _draw_image(above, row, other)
        _draw_votes(below, row)
    if rows.empty:
        cells[0, 0].text(0.0, 0.5, "no prediction fits this choice")
    return figure


def _draw_image(axes: Axes, row: pd.Series, other: pd.DataFrame | None) -> None:
    title = f"opinion {row['mos']:.2f}, predicted {row['pred']:.2f}"
    if other is not None:
        same = other[(other["dataset"] == row["dataset"]) & (other["image"] == row["image"])]
        title += "".join(f", other run {pred:.2f}" for pred in same["pred"][:1])
    axes.set_title(f"{Path(row['image']).name}\n{title}", fontsize=8)
    try:
        with Image.open(row["path"]) as stored:
            picture = ImageOps.exif_transpose(stored).convert("RGB")
    except (OSError, ValueError):  # no path, no file, or no image
        axes.text(0.5, 0.5, "image not here", ha="center", transform=axes.transAxes)
        return
    picture.thumbnail((480, 480))
    axes.imshow(picture)


def _draw_votes(axes: Axes, row: pd.Series) -> None:
    votes = pd.to_numeric(row.reindex(VOTES), errors="coerce")
    if votes.notna().all() and votes.any():
        axes.set_axis_on()
        axes.bar(range(1, 6), votes / votes.sum(), color=PALETTE[0])
        axes.set(xticks=range(1, 6), yticks=[], ylim=(0, 1))
        axes.set_xlabel("share of votes per grade", size=7)
        axes.tick_params(labelsize=7)
        axes.grid(visible=False)


def browse(predictions: pd.DataFrame, *, other: pd.DataFrame | None = None) -> Figure | None:
    """Show the browser, or return one picture where no front end listens."""
    if "JPY_SESSION_NAME" not in os.environ:  # of a kernel that Jupyter starts for a person
        return draw(select(predictions), other=other)
    import ipywidgets as widgets

    lists = {"order": tuple(ORDERS)}
    for column in ("method", "dataset", "distortion"):
        lists[column] = [ANY, *sorted(predictions[column].dropna().astype(str).unique())]
    choices = {k: widgets.Dropdown(options=v, description=k) for k, v in lists.items()}
    low, high = float(predictions["mos"].min()), float(predictions["mos"].max())
    scores = widgets.FloatRangeSlider(value=(low, high), min=low, max=high, description="opinion")
    n = widgets.IntSlider(value=6, min=3, max=24, step=3, description="images")

    def show(**options: Any) -> None:
        figure = draw(select(predictions, **options), other=other)
        display(figure)
        plt.close(figure)

    shown = widgets.interactive_output(show, {**choices, "scores": scores, "n": n})
    display(widgets.HBox([widgets.VBox([*choices.values()]), widgets.VBox([scores, n])]), shown)
    return None

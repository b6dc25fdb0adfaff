"""What learned monotone curves look like, and whether they undo known maps.

Curves are kept as points, a table that can be drawn and measured without the network.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from iqa_utils.mixed_sets import TOP, WARPS
from iqa_utils.models.monotonic import MonotonicIQA


@torch.inference_mode()
def own_scale(
    model: MonotonicIQA, name: str, quality: np.ndarray, span: tuple[float, float]
) -> np.ndarray:
    """Map quality, (N,), through the curve of one set, whose training scores had this span."""
    number = model.architecture["sources"].index(name)
    device = next(model.head.parameters()).device
    x = torch.as_tensor(quality, dtype=torch.float32, device=device)
    scores = model.transformers.curves(x)[:, number].double().cpu().numpy()
    return span[0] + scores / TOP * (span[1] - span[0])


def curve_points(
    model: MonotonicIQA, spans: Mapping[str, tuple[float, float]], predictions: pd.DataFrame
) -> pd.DataFrame:
    """Sample the curve of every set with training scores in ``spans`` over predicted qualities.

    ``predictions`` has the columns ``dataset`` and ``pred``, the quality.

    Returns:
        Columns ``dataset``, ``quality``, ``score`` (own scale) and ``inside``, true from the 1st to
        the 99th percentile of the set's own qualities.
    """
    qualities = predictions[predictions["dataset"].isin(list(spans))].groupby("dataset")["pred"]
    grid = np.linspace(qualities.min().min(), qualities.max().max(), 401)
    empty = {"dataset": [], "quality": grid[:0], "score": grid[:0], "inside": grid[:0] > 0}
    tables = [pd.DataFrame(empty).astype({"dataset": str})]
    for name, span in spans.items():
        low, high = qualities.get_group(name).quantile([0.01, 0.99])
        points = {"dataset": name, "quality": grid, "score": own_scale(model, name, grid, span)}
        tables.append(pd.DataFrame(points | {"inside": (grid >= low) & (grid <= high)}))
    return pd.concat(tables, ignore_index=True)


def carry_over(points: pd.DataFrame, warps: Mapping[str, str]) -> pd.DataFrame:
    """Carry scores of one set to the scale of another through the shared quality.

    A score m of a set is warped as the set's labels are, traced back through the set's curve to a
    quality, and read off the curve of the first set that was not warped. That should give m again.
    It is all that data can tell: a bend common to all curves is absorbed by the regressor.

    Returns:
        Columns ``method``, ``seed``, ``dataset``, ``mos`` (original) and ``carried``, equal where
        the map was recovered. Scores that the set's own qualities do not reach are left out, and so
        are methods without a curve for every set.
    """
    target = next((name for name, warp in warps.items() if warp == "x"), None)
    rows = []
    for (method, seed), curves in points.groupby(["method", "seed"], sort=False):
        if target is None or set(curves["dataset"]) != set(warps):
            continue
        plain = curves[curves["dataset"] == target]
        for name, curve in curves[curves["inside"]].groupby("dataset", sort=False):
            warp, scores = WARPS[warps[name]], np.maximum.accumulate(curve["score"])
            mos = np.linspace(0, 1, 2001)
            reached = mos[(warp(mos) >= scores.iloc[0]) & (warp(mos) <= scores.iloc[-1])]
            if name != target and len(reached) > 1 and np.ptp(scores) > 0:
                mos = np.linspace(reached[0], reached[-1], 60)
                traced = np.interp(warp(mos), scores, curve["quality"])
                carried = np.interp(traced, plain["quality"], plain["score"])
                rows += [(method, seed, name, *pair) for pair in zip(mos, carried, strict=True)]
    columns = ["method", "seed", "dataset", "mos", "carried"]
    return pd.DataFrame(rows, columns=columns).astype({"mos": float, "carried": float})


def bends(points: pd.DataFrame) -> pd.DataFrame:
    """Measure how far each curve is from a straight line: a row per method, a column per set.

    The largest distance from the line between the curve's ends over the set's own qualities, as a
    share of its rise; median over splits. 0 is a line, NaN a curve that is flat.
    """
    rows, keys = [], ["method", "dataset", "seed"]
    for key, curve in points[points["inside"]].groupby(keys, sort=False):
        x, y = (curve[name] - curve[name].iloc[0] for name in ("quality", "score"))
        bend = (y / y.iloc[-1] - x / x.iloc[-1]).abs().max() if y.iloc[-1] > 0 else np.nan
        rows.append((*key, bend))
    table = pd.DataFrame(rows, columns=[*keys, "bend"])
    return table.pivot_table("bend", "method", "dataset", aggfunc="median", sort=False)

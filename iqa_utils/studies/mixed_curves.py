"""What the monotone curves of a trained method look like, and whether they undo known maps.

Curves are kept as points, a table that can be drawn and measured without the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from iqa_utils.studies.mixed import Trained, map_quality
from iqa_utils.studies.mixed_data import WARPS

# columns of curve_points, which a table without rows has, too
POINTS = {
    "dataset": str, "quality": float, "score": float, "inside": bool, "method": str, "seed": int,
}  # fmt: skip


def curve_points(
    trained: Trained, predictions: pd.DataFrame, *, n_points: int = 401
) -> pd.DataFrame:
    """Sample the curve of every set over the qualities that the model predicts.

    Args:
        trained: From :func:`iqa_utils.studies.mixed.train_method`.
        predictions: From :func:`iqa_utils.studies.mixed.predict_test` of the same model.
        n_points: Points a curve, evenly spaced from the lowest to the highest quality of all sets
            it was trained on.

    Returns:
        Columns ``method``, ``seed``, ``dataset``, ``quality``, ``score`` (the scale that the method
        was trained on: the set's own, but for ``unwarped``) and ``inside``, true from the 1st to
        the 99th percentile of the set's own qualities. No rows for a ranking, which has no scale.
    """
    known = trained.model.architecture["sources"]
    qualities = predictions[predictions["dataset"].isin(known)].groupby("dataset")["pred"]
    grid = np.linspace(qualities.min().min(), qualities.max().max(), n_points)
    tables = []
    for name in known if trained.method.loss == "regression" else []:
        low, high = qualities.get_group(name).quantile([0.01, 0.99])
        score = map_quality(trained, name, grid)
        inside = (grid >= low) & (grid <= high)
        points = {"dataset": name, "quality": grid, "score": score, "inside": inside}
        tables.append(pd.DataFrame(points))
    if not tables:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in POINTS.items()})
    split = int(predictions["seed"].iloc[0])
    return pd.concat(tables, ignore_index=True).assign(method=trained.method.name, seed=split)


def carry_over(
    points: pd.DataFrame,
    warps: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    *,
    reference: str,
    n_points: int = 60,
) -> pd.DataFrame:
    """Carry scores of one set to the scale of another through the shared quality.

    A score m of a set is warped as the set's labels are, traced back through the set's curve to a
    quality, and read off the curve of the reference set, whose own warp is then undone. That should
    give m again. It is all that data can tell: a bend common to all curves is absorbed by the
    regressor.

    Args:
        points: Curves of one method and split, see :func:`curve_points`.
        warps: The known maps, by set; that of the reference must be the identity.
        reference: Set whose scale is the target.
        n_points: Points a set.

    Returns:
        Columns ``dataset``, ``mos`` (original) and ``carried`` (on the reference's scale), equal
        where the map was recovered. Scores that the set's own qualities do not reach are left out,
        and a set without a curve is, too.
    """
    target = points[points["dataset"] == reference]
    tables = []
    for name, curve in points[points["inside"]].groupby("dataset", sort=False):
        scores, mos = np.maximum.accumulate(curve["score"]), np.linspace(0, 1, 2001)
        reached = mos[(warps[name](mos) >= scores.iloc[0]) & (warps[name](mos) <= scores.iloc[-1])]
        if name == reference or target.empty or len(reached) < 2 or np.ptp(scores) == 0:
            continue
        mos = np.linspace(reached[0], reached[-1], n_points)
        traced = np.interp(warps[name](mos), scores, curve["quality"])
        carried = np.interp(traced, target["quality"], target["score"])
        tables.append(pd.DataFrame({"dataset": name, "mos": mos, "carried": carried}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def carry_all(points: pd.DataFrame, subset_warps: Mapping[str, str]) -> pd.DataFrame:
    """Apply :func:`carry_over` to every method and split that was trained on all warped sets.

    ``unwarped`` is left out: it saw the scores before their maps, so there is no map to undo, and
    its curves must not be given warped scores. What it is a ceiling of is the order of all images.

    Args:
        points: From :func:`curve_points`, any number of methods and splits.
        subset_warps: Name of the known map of each set; the first unwarped one is the target.

    Returns:
        Columns ``method``, ``seed``, ``dataset``, ``mos`` and ``carried``; no rows without maps.
    """
    columns = ["method", "seed", "dataset", "mos", "carried"]
    plain = [name for name, warp in subset_warps.items() if warp == "x"]
    warps = {name: WARPS[warp] for name, warp in subset_warps.items()}
    tables = [pd.DataFrame(columns=columns).astype({"mos": float, "carried": float})]
    for (method, seed), part in points.groupby(["method", "seed"], sort=False):
        if plain and method != "unwarped" and set(part["dataset"]) == set(warps):
            carried = carry_over(part, warps, reference=plain[0])
            tables.append(carried.assign(method=method, seed=seed))
    return pd.concat(tables[len(tables) > 1 :], ignore_index=True)


def carried_error(carried: pd.DataFrame) -> pd.DataFrame:
    """Average |carried - original| over the scores reached and the splits.

    Args:
        carried: From :func:`carry_all`.

    Returns:
        A row a method, a column a set, in units of the original score.
    """
    error = (carried["carried"] - carried["mos"]).abs()
    table = carried.assign(error=error)
    return table.pivot_table(index="method", columns="dataset", values="error", sort=False)


def bends(points: pd.DataFrame) -> pd.DataFrame:
    """Measure how far each curve is from a straight line.

    Args:
        points: From :func:`curve_points`.

    Returns:
        A row a method, a column a set: largest distance from the line between the curve's ends
        over the set's own qualities, as a share of its rise; median over splits. 0 is a line, NaN
        a curve that is flat. No rows where no method has curves.
    """
    rows = []
    keys = ["method", "dataset", "seed"]
    for key, curve in points[points["inside"]].groupby(keys, sort=False):
        x, y = curve["quality"] - curve["quality"].iloc[0], curve["score"] - curve["score"].iloc[0]
        bend = (y / y.iloc[-1] - x / x.iloc[-1]).abs().max() if y.iloc[-1] > 0 else np.nan
        rows.append(dict(zip(keys, key, strict=True)) | {"bend": bend})
    table = pd.DataFrame(rows, columns=[*keys, "bend"])
    return table.pivot_table(
        index="method", columns="dataset", values="bend", aggfunc="median", sort=False
    )


def resample_curves(points: pd.DataFrame, dataset: str, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Bring the curves of one set and split to 100 points, each over its own qualities.

    Args:
        points: From :func:`curve_points`.
        dataset: The set.
        seed: The split.

    Returns:
        Method to scores, each shape (100,).
    """
    mine = points[(points["dataset"] == dataset) & (points["seed"] == seed) & points["inside"]]
    curves = {}
    for method, curve in mine.groupby("method", sort=False):
        at = np.linspace(curve["quality"].iloc[0], curve["quality"].iloc[-1], 100)
        curves[method] = np.interp(at, curve["quality"], curve["score"])
    return curves

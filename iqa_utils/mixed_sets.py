"""Several data sets side by side: score tables, splits, scores on one range, and learned curves.

Scores keep each set's own scale in the tables; only training sees them re-scaled, and only with
what the training set shows. Learned monotone curves lead back, and may undo maps that are known.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from iqa_utils.datasets import DATASETS, check_images, load_scores
from iqa_utils.losses import fidelity
from iqa_utils.models.dual_xception import KonCept
from iqa_utils.models.monotonic import MonotonicIQA
from iqa_utils.splits import SPLITS, check_disjoint, content_split

TOP = 10.0  # training scores of every set are re-scaled to [0, 10]
WARPS = {"x": np.positive, "square root": np.sqrt, "cube": lambda x: x**3}


def load_sets(
    names: Sequence[str], root: Path, warps: Mapping[str, str]
) -> tuple[dict[str, pd.DataFrame], dict[str, Path], dict[str, str]]:
    """Load named sets, or all that are whole under the root; ``warps`` cuts one into subsets.

    Returns score tables by set, the folder that each set's image names are relative to, and for
    sets that were passed over the reason why.
    """
    frames, reasons = {}, {}
    for name in names or [known for known in DATASETS if known != "table"]:
        try:
            frame = load_scores(name, root / name)
            check_images(frame, root / name)
            frames[name] = frame
        except (FileNotFoundError, ValueError) as error:
            if names:
                raise
            reasons[name] = str(error)
    if not frames:
        raise FileNotFoundError(f"no data set with its images under {root}: {reasons}")
    folders = {name: root / name for name in frames}
    if warps:
        if len(frames) != 1:
            raise ValueError(f"known maps need one set to cut, got {sorted(frames)}")
        ((name, whole),) = frames.items()
        frames = warp_subsets(whole, warps)
        folders = dict.fromkeys(frames, root / name)
    return frames, folders, reasons


def warp_subsets(frame: pd.DataFrame, warps: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    """Cut a set with scores in [0, 1] by its column ``subset``; warp every subset.

    ``warps`` maps subsets to keys of :data:`WARPS`. In the tables ``mos`` is warped and
    ``mos_original`` is not; ``row`` is the row in the table given.
    """
    unknown, scale = sorted(set(warps.values()) - set(WARPS)), frame.attrs["scale"]
    if unknown or scale != (0.0, 1.0):
        raise ValueError(f"maps are {sorted(WARPS)} of scores in [0, 1], got {unknown} on {scale}")
    frames = {}
    for name, warp in warps.items():
        part = frame[frame["subset"] == name].reset_index(names="row")
        if part.empty:
            raise ValueError(f"{frame.attrs['dataset']} has no subset {name!r}")
        mos = part["mos"]
        frames[name] = part.assign(mos_original=mos, mos=WARPS[warp](mos.to_numpy()))
        frames[name].attrs = {**frame.attrs, "dataset": name, "title": f"{name} ({warp})"}
    return frames


def split_sets(
    frames: Mapping[str, pd.DataFrame], *, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Split every set 60/20/20 by reference image: rows by set and by split."""
    splits = {}
    for name, frame in frames.items():
        split = content_split(frame, seed=seed)
        check_disjoint(frame, split)
        splits[name] = {part: np.flatnonzero(split == part) for part in SPLITS}
        counts = {part: len(rows) for part, rows in splits[name].items()}
        if min(counts.values()) < 2:
            raise ValueError(f"{name}: {SPLITS} need 2 images each to be ranked, found {counts}")
    return splits


def split_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Tabulate ten 60/20/20 splits of a set: a row per reference image, a column per seed.

    0 is training, 1 validation and 2 test. ``data/splits/feng2023-*.csv`` are these tables.
    """
    numbers = {part: number for number, part in enumerate(SPLITS)}
    columns = {f"split_{k}": content_split(frame, seed=k).map(numbers) for k in range(10)}
    table = frame[["reference"]].assign(**columns)
    return table.drop_duplicates("reference").sort_values("reference", ignore_index=True)


def describe_sets(
    frames: Mapping[str, pd.DataFrame], split: Mapping[str, Mapping[str, np.ndarray]]
) -> pd.DataFrame:
    """Tabulate sets: kind, images, sizes of the split and the range of the scores, by title."""
    facts = {}
    for name, frame in frames.items():
        images = {part: len(rows) for part, rows in split[name].items()}
        mos = frame["mos"].describe()[["min", "50%", "max"]].add_prefix("MOS ")
        known = {"kind": frame.attrs["kind"], "images": len(frame)}
        known["reference images"] = frame["reference"].nunique()
        facts[frame.attrs["title"]] = known | images | dict(mos)
    return pd.DataFrame.from_dict(facts, orient="index")


def rescaled_std(frame: pd.DataFrame, span: tuple[float, float]) -> np.ndarray:
    """Bring deviations of scores to the scale of :func:`rescale`, (N,); NaN where unknown.

    KonIQ-10k tells deviations on 1-5 alone (``sd_raw``): they are stretched to its 0-100 as the
    scores are, by the ratio of the standard deviations of ``mos`` and ``mos_raw`` over all images.
    """
    std = frame["mos_std"].astype(float)
    if "sd_raw" in frame:
        std = std.fillna(frame["sd_raw"] * frame["mos"].std() / frame["mos_raw"].std())
    return TOP * std.to_numpy() / (span[1] - span[0])


def set_fidelity(pred: Tensor, mos: Tensor, mos_std: Tensor, pred_std: Tensor) -> Tensor:
    """Apply :func:`fidelity` to images of one set, some of whose ``mos_std`` may be NaN; all (B,).

    A pair with an unknown deviation has the true probability 0, 1/2 or 1, and no other pair has.
    ``mos_std`` may lie in main memory, where to look at it waits for no GPU.
    """
    known = mos_std.isfinite().nonzero().flatten()
    known_std = mos_std[known].to(pred.device, non_blocking=True)
    n, n_known = len(mos), len(known)
    if n_known == n:
        return fidelity(pred, mos, mos_std=known_std, pred_std=pred_std)
    every = fidelity(pred, mos, pred_std=pred_std)
    if n_known < 2:
        return every
    known = known.to(pred.device, non_blocking=True)
    known_pred, known_mos, deviations = pred[known], mos[known], pred_std[known]
    certain = fidelity(known_pred, known_mos, pred_std=deviations)
    told = fidelity(known_pred, known_mos, mos_std=known_std, pred_std=deviations)
    return every + n_known * (n_known - 1) / (n * (n - 1)) * (told - certain)


def rescale(mos: np.ndarray, training: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Map scores (N,) linearly so that those of the training rows span [0, 10].

    Returns them (others may lie outside) and the lowest and highest training score.
    """
    low, high = float(mos[training].min()), float(mos[training].max())
    if not high > low:
        raise ValueError(f"training scores are all {low:g}; their range cannot be re-scaled")
    return TOP * (mos - low) / (high - low), (low, high)


def rescale_sets(
    frames: Mapping[str, pd.DataFrame],
    split: Mapping[str, Mapping[str, np.ndarray]],
    names: Sequence[str],
    *,
    original: bool = False,
) -> tuple[dict[str, np.ndarray], dict[str, tuple[float, float]]]:
    """Apply :func:`rescale` to some sets: scores to learn, and lowest and highest score, by set.

    With ``original`` the scores before their known maps, in [0, 1], are learned instead.
    """
    if original:
        scores = {name: TOP * frames[name]["mos_original"].to_numpy() for name in names}
        return scores, dict.fromkeys(names, (0.0, 1.0))
    scores, spans = {}, {}
    for name in names:
        mos = frames[name]["mos"].to_numpy(dtype=float)
        scores[name], spans[name] = rescale(mos, split[name]["training"])
    return scores, spans


# Learned curves as points: a table that can be drawn and measured without the network


@torch.inference_mode()
def own_scale(
    model: MonotonicIQA | KonCept, name: str, quality: np.ndarray, span: tuple[float, float]
) -> np.ndarray:
    """Map quality, (N,), to the scores of one set, whose training scores had this span.

    It goes through the curve of the set; what KonCept512 predicts is a score already.
    """
    scores = quality
    if isinstance(model, MonotonicIQA):
        number = model.architecture["sources"].index(name)
        device = next(model.head.parameters()).device
        x = torch.as_tensor(quality, dtype=torch.float32, device=device)
        scores = model.transformers.curves(x)[:, number].double().cpu().numpy()
    return span[0] + scores / TOP * (span[1] - span[0])


def curve_points(
    model: MonotonicIQA | KonCept,
    spans: Mapping[str, tuple[float, float]],
    predictions: pd.DataFrame,
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

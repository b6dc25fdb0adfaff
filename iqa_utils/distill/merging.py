"""Scores of several data sets on one scale, and how far one set of images stands for another."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.isotonic import IsotonicRegression

from iqa_utils.claims.checks import TEACHER_WEIGHTS
from iqa_utils.images import ImageStore
from iqa_utils.natural_scenes import brisque_statistics
from iqa_utils.regression import ridge_cv
from iqa_utils.splits import content_split, official_split


def join_sets(
    frames: Mapping[str, pd.DataFrame], *, n_training: int = 0, seed: int = 0
) -> pd.DataFrame:
    """Put several data sets into one table, with the part of every image.

    Args:
        frames: Score tables by data set.
        n_training: Training scores kept in all, a seeded draw; the others become ``"unused"``, as
            if nobody had judged them. 0 keeps all.
        seed: Of the draw, and of the split of sets without an official one.

    Returns:
        One row an image: ``dataset``, ``image`` (with its set's folder in front), ``mos``, ``part``
        (``"training"``, ``"validation"``, ``"test"``, ``"unused"``) and ``subset`` where a set has
        one, else the set's name.

    Raises:
        ValueError: If fewer training scores are there than asked for.
    """
    parts = []
    for name, frame in frames.items():
        split = content_split(frame, seed=seed)
        if frame["split"].notna().all():
            split = official_split(frame)
        part = pd.DataFrame({"dataset": name, "image": f"{name}/" + frame["image"]})
        part = part.assign(mos=frame["mos"], part=split.astype(str))
        parts.append(part.assign(subset=frame.get("subset", name)))
    table = pd.concat(parts, ignore_index=True)
    training = np.flatnonzero(table["part"] == "training")
    if n_training > len(training):
        raise ValueError(f"n_training is {n_training}, but there are {len(training)} scores")
    if n_training:
        kept = np.random.default_rng(seed).permutation(training)[:n_training]
        # validation scores are human judgements too: with few scores nobody has those either
        spare = np.setdiff1d(np.flatnonzero(table["part"].isin(["training", "validation"])), kept)
        table.loc[spare, "part"] = "unused"
    return table


def weighted_srocc(values: Mapping[str, float]) -> float:
    """Aggregate the SROCC of the five sets of Table 1.

    Args:
        values: SROCC by data set, one for each of ``TEACHER_WEIGHTS``.

    Returns:
        Absolute value of the weighted sum, in [0, 1].

    Raises:
        ValueError: If a set is missing or unknown.

    References:
        Ponomarenko et al., Eq. (1).
    """
    if set(values) != set(TEACHER_WEIGHTS):
        raise ValueError(f"expected SROCC of {sorted(TEACHER_WEIGHTS)}, got {sorted(values)}")
    return abs(sum(TEACHER_WEIGHTS[name] * value for name, value in values.items()))


def aggregate(table: pd.DataFrame) -> pd.DataFrame:
    """Add the aggregates of Tables 1 and 4 where every set they need is there.

    Args:
        table: Columns ``table``, ``method``, ``variant``, ``dataset``, ``metric``, ``value``.

    Returns:
        The table with rows ``"weighted"`` (Eq. (1), five sets) of Table 1 and ``"average"`` (six)
        of Table 4 below, without intervals; none where a set is missing.
    """
    rows = []
    plain = table[table["metric"] == "SRCC"]
    for keys, part in plain.groupby(["table", "method", "variant"]):
        values = dict(zip(part["dataset"], part["value"], strict=True))
        row = dict(zip(["table", "method", "variant"], keys, strict=True), metric="SRCC")
        if keys[0] == "Table 1" and set(TEACHER_WEIGHTS) <= set(values):
            weighted = weighted_srocc({name: values[name] for name in TEACHER_WEIGHTS})
            rows.append(row | {"dataset": "weighted", "value": weighted})
        if keys[0] == "Table 4" and {*TEACHER_WEIGHTS, "spaq"} <= set(values):
            six = [values[name] for name in (*TEACHER_WEIGHTS, "spaq")]
            rows.append(row | {"dataset": "average", "value": float(np.mean(six))})
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True) if rows else table


def merge_scores(
    tables: Mapping[str, pd.DataFrame],
    predictions: Mapping[str, np.ndarray],
    *,
    reference: str,
    known: Mapping[str, np.ndarray] | None = None,
    method: str = "monotone",
    n_knots: int = 8,
) -> pd.DataFrame:
    """Bring the scores of several data sets onto the scale of one, through a common predictor.

    For every set the predictor is described as a rising function of that set's scores; two scores
    of different sets are equal where those functions are. The predictor is the response, so its
    errors (the same network everywhere) do not flatten the curves against each other. Order within
    a set never changes.

    Args:
        tables: Score table by data set, each with ``image`` and ``mos``.
        predictions: The common predictor on the images of each table, same order, shape (N,).
        reference: Set whose scale the others are brought to; its own scores stay.
        known: Rows of each table whose scores may be used to draw the curves, boolean, shape (N,);
            all by default. Scores of a test part must not be.
        method: ``"monotone"``: piecewise linear through isotonic means of ``n_knots`` groups of
            equal size; ``"linear"``: the least-squares line, as the control.
        n_knots: Groups, where a set has at least ten images for each.

    Returns:
        One row an image: ``dataset``, ``image``, ``mos`` (own scale), ``merged``, ``predictor``.

    Raises:
        ValueError: If the predictor does not rise with the scores of a set, lengths differ, or
            the reference is not among the tables.

    Note:
        The paper trains its teacher on merged scores that are not public and cites another work
        for the merging; this is a construction of ours with the same aim.
    """
    if method not in ("monotone", "linear"):
        raise ValueError(f"method must be 'monotone' or 'linear', got {method!r}")
    if reference not in tables or set(tables) != set(predictions):
        raise ValueError(
            f"reference {reference!r} and the predictions {sorted(predictions)} must match the "
            f"tables {sorted(tables)}"
        )
    knots = 1 if method == "linear" else n_knots
    curves = {}
    for name, table in tables.items():
        mos, predicted = table["mos"].to_numpy(), np.asarray(predictions[name])
        if mos.shape != predicted.shape:
            raise ValueError(f"{name}: {mos.shape} scores but {predicted.shape} predictions")
        rows = slice(None) if known is None else known[name]
        curves[name] = _rising_curve(name, mos[rows], predicted[rows], knots)
    scores, levels, slope = curves[reference]
    parts = []
    for name, table in tables.items():
        common = _read_curve(table["mos"].to_numpy(), *curves[name])
        merged = _read_curve(common, levels, scores, 1 / slope)
        if name == reference:
            merged = table["mos"].to_numpy()
        part = table[["image", "mos"]].assign(dataset=name, merged=merged)
        parts.append(part.assign(predictor=np.asarray(predictions[name])))
    columns = ["dataset", "image", "mos", "merged", "predictor"]
    return pd.concat(parts, ignore_index=True)[columns]


def scene_statistics(store: ImageStore, cache_dir: Path) -> np.ndarray:
    """Compute BRISQUE's statistics of a store once: features that need no weights.

    Args:
        store: Decoded images, N of them.
        cache_dir: Where the result is kept, by the key of the store.

    Returns:
        float64, shape (N, 36).
    """
    path = cache_dir / f"brisque2-{store.key}.npy"
    if path.is_file():
        return np.load(path)
    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(lambda i: _statistics(store, i), range(len(store))))
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    np.save(partial, np.stack(rows))
    partial.replace(path)
    return np.stack(rows)


def _statistics(store: ImageStore, row: int) -> np.ndarray:
    return brisque_statistics(store.image(row).permute(1, 2, 0).numpy())


def merge_by_features(
    labelled: pd.DataFrame,
    features: np.ndarray,
    names: Sequence[str],
    *,
    parts: Sequence[str] = ("training",),
    method: str = "monotone",
) -> np.ndarray:
    """Merge the scores of some sets with ridge regression on features as the predictor.

    The regression learns the first set; nothing but the scores of the named sets and parts is used.

    Args:
        labelled: Table of :func:`join_sets`, N rows.
        features: Features of its images, shape (N, D).
        names: Data sets to merge; the first gives the scale.
        parts: Parts whose scores may be used.
        method: As :func:`merge_scores`.

    Returns:
        Merged scores, shape (N,); NaN outside the named sets.
    """
    usable = labelled["part"].isin(parts).to_numpy()
    first = usable & (labelled["dataset"] == names[0]).to_numpy()
    predictor = ridge_cv(features[first], labelled.loc[first, "mos"].to_numpy()).predict(features)
    tables = {name: labelled[labelled["dataset"] == name] for name in names}
    merged = merge_scores(
        tables,
        {name: predictor[table.index] for name, table in tables.items()},
        reference=names[0],
        known={name: usable[table.index] for name, table in tables.items()},
        method=method,
    )
    scores = np.full(len(labelled), np.nan)
    for name, table in tables.items():
        scores[table.index] = merged.loc[merged["dataset"] == name, "merged"]
    return scores


def coverage(unlabelled: pd.DataFrame, labelled: pd.DataFrame, *, bins: int = 20) -> pd.DataFrame:
    """Compare the spread of quantities on the unlabelled images with that on labelled ones.

    Args:
        unlabelled: One column a quantity (scores, sharpness, ...), one row an image.
        labelled: The same columns on images with scores.
        bins: Equal bins over both, for the overlap.

    Returns:
        One row a quantity: ``inside`` (share of labelled values between the smallest and the
        largest unlabelled one), ``overlap`` (common area of both histograms), both in [0, 1].
    """
    rows = []
    for name in unlabelled.columns:
        a, b = unlabelled[name].to_numpy(dtype=float), labelled[name].to_numpy(dtype=float)
        edges = np.histogram_bin_edges(np.concatenate([a, b]), bins)
        shares = [np.histogram(values, edges)[0] / len(values) for values in (a, b)]
        inside = np.mean((b >= a.min()) & (b <= a.max()))
        rows.append({"quantity": name, "inside": inside, "overlap": np.minimum(*shares).sum()})
    return pd.DataFrame(rows)


def _rising_curve(
    name: str, mos: np.ndarray, predictor: np.ndarray, n_knots: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Describe the predictor as a strictly rising function of the scores: knots, levels, slope."""
    slope, offset = np.polyfit(mos, predictor, 1)
    if slope <= 0:
        raise ValueError(
            f"{name}: the predictor must rise with the scores, its slope is {slope:.3g}"
        )
    n_knots = min(n_knots, len(mos) // 10)
    if n_knots < 2:
        ends = np.array([mos.min(), mos.max()])
        return ends, offset + slope * ends, slope
    order = np.argsort(mos, kind="stable")
    groups = np.array_split(order, n_knots)
    knots = np.array([mos[group].mean() for group in groups])
    levels = np.array([predictor[group].mean() for group in groups])
    knots, first = np.unique(knots, return_index=True)
    rising = IsotonicRegression().fit_transform(knots, levels[first])
    # a twentieth of the line makes flat pieces rise, so that order survives
    return knots, 0.95 * rising + 0.05 * (offset + slope * knots), slope


def _read_curve(x: np.ndarray, knots: np.ndarray, levels: np.ndarray, slope: float) -> np.ndarray:
    """Interpolate between knots and go on with the overall slope beyond them."""
    beyond = np.minimum(x - knots[0], 0) + np.maximum(x - knots[-1], 0)
    return np.interp(x, knots, levels) + slope * beyond

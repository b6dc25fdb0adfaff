"""Scores of several data sets on one scale, and how far one set of images stands for another."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.isotonic import IsotonicRegression

from iqa_utils.metrics import TEACHER_WEIGHTS
from iqa_utils.regression import ridge_cv
from iqa_utils.splits import official_or_content_split

N_KNOTS = 8  # of a curve, where a set has at least ten images for each


def join_sets(
    frames: Mapping[str, pd.DataFrame], *, n_training: int = 0, seed: int = 0
) -> pd.DataFrame:
    """Put several data sets into one table, with the split of every image.

    Returns ``dataset``, ``image`` (with its set's folder in front), ``mos``, ``reference``,
    ``subset`` (where a set has one, else its name) and ``part``: ``"training"``, ``"validation"``,
    ``"test"``. With ``n_training`` only so many training scores are kept in all, a seeded draw; the
    others and all validation scores become ``"unused"``, as if nobody had judged them. More than
    there are raise a ValueError.
    """
    parts = []
    for name, frame in frames.items():
        part = frame[["mos", "reference"]].assign(dataset=name, image=f"{name}/" + frame["image"])
        split = official_or_content_split(frame, seed=seed).astype(str)
        parts.append(part.assign(part=split, subset=frame.get("subset", name)))
    table = pd.concat(parts, ignore_index=True)
    training = np.flatnonzero(table["part"] == "training")
    if n_training > len(training):
        raise ValueError(f"n_training is {n_training}, but there are {len(training)} scores")
    if n_training:
        kept = np.random.default_rng(seed).permutation(training)[:n_training]
        spare = np.setdiff1d(np.flatnonzero(table["part"].isin(["training", "validation"])), kept)
        table.loc[spare, "part"] = "unused"
    return table


def weighted_srocc(values: Mapping[str, float]) -> float:
    """Aggregate the SROCC of the five sets of Table 1 by Eq. (1) of Ponomarenko et al."""
    if set(values) != set(TEACHER_WEIGHTS):
        raise ValueError(f"expected SROCC of {sorted(TEACHER_WEIGHTS)}, got {sorted(values)}")
    return abs(sum(TEACHER_WEIGHTS[name] * value for name, value in values.items()))


def aggregate(table: pd.DataFrame) -> pd.DataFrame:
    """Append rows ``"weighted"`` (Eq. (1)) of Table 1 and ``"average"`` of Table 4 to a table.

    They need all their sets, have no interval, and are marked leaky where one of their sets is.
    """
    six, rows = [*TEACHER_WEIGHTS, "spaq"], []
    keys = ["table", "method", "variant"]
    for group, part in table[table["metric"] == "SRCC"].groupby(keys):
        values = part.set_index("dataset")["value"]
        row = dict(zip(keys, group, strict=True), metric="SRCC", mark=part["mark"].max())
        if group[0] == "Table 1" and set(TEACHER_WEIGHTS) <= set(values.index):
            weighted = weighted_srocc(values[list(TEACHER_WEIGHTS)].to_dict())
            rows.append(row | {"dataset": "weighted", "value": weighted})
        if group[0] == "Table 4" and set(six) <= set(values.index):
            rows.append(row | {"dataset": "average", "value": float(values[six].mean())})
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True) if rows else table


def merge_scores(
    labelled: pd.DataFrame,
    predictor: np.ndarray,
    names: Sequence[str],
    *,
    parts: Sequence[str] = ("training",),
    method: str = "monotone",
) -> np.ndarray:
    """Bring the scores of several data sets onto the scale of one, through a common predictor.

    For every set the predictor is described as a rising function of that set's scores; two scores
    of different sets are equal where those functions are. The predictor is the response, so its
    errors (the same network everywhere) do not flatten the curves against each other. Order within
    a set never changes.

    Args:
        labelled: Table of :func:`join_sets`, N rows.
        predictor: The common predictor on its images, shape (N,), or features, shape (N, D), of
            which ridge regression makes one: it learns the first set.
        names: Data sets to merge; the first gives the scale, and its scores stay.
        parts: Splits whose scores may be used to draw the curves.
        method: ``"monotone"``: piecewise linear through isotonic means of groups of equal size;
            ``"linear"``: the least-squares line, as the control.

    Returns:
        Merged scores, shape (N,); NaN outside the named sets.

    Raises:
        ValueError: If the predictor does not rise with the scores of a set, or the method is
            unknown.

    Note:
        The paper's teacher learned scores merged by Kaipio, Ponomarenko and Egiazarian, "Merging
        of MOS of large image databases", MMSP 2020. Those scores are not public and their method is
        not used here: this construction of ours has the same aim.
    """
    if method not in ("monotone", "linear"):
        raise ValueError(f"method must be 'monotone' or 'linear', got {method!r}")
    mos, dataset = labelled["mos"].to_numpy(), labelled["dataset"].to_numpy()
    usable, n_knots = labelled["part"].isin(parts).to_numpy(), N_KNOTS if method != "linear" else 1
    if predictor.ndim == 2:
        first = usable & (dataset == names[0])
        predictor = ridge_cv(predictor[first], mos[first]).predict(predictor)
    curves = {}
    for name in names:
        rows = usable & (dataset == name)
        curves[name] = _rising_curve(name, mos[rows], predictor[rows], n_knots)
    scores, levels, slope = curves[names[0]]
    merged = np.where(dataset == names[0], mos, np.nan)
    for name in names[1:]:
        common = _read_curve(mos[dataset == name], *curves[name])
        merged[dataset == name] = _read_curve(common, levels, scores, 1 / slope)
    return merged


def coverage(unlabelled: pd.DataFrame, labelled: pd.DataFrame) -> pd.DataFrame:
    """Compare the spread of quantities on the unlabelled images with that on labelled ones.

    Both have one column per quantity (scores, sharpness, ...) and one row per image. Returns one
    row per quantity: ``inside`` (share of labelled values between the smallest and the largest
    unlabelled one), ``overlap`` (common area of both histograms), both in [0, 1].
    """
    rows = []
    for name in unlabelled.columns:
        a, b = unlabelled[name].to_numpy(dtype=float), labelled[name].to_numpy(dtype=float)
        edges = np.histogram_bin_edges(np.concatenate([a, b]), 20)
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
    groups = np.array_split(np.argsort(mos, kind="stable"), n_knots)
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

"""What a score table says before any model is trained: ranges, correlations, noise of raters.

Written for KonIQ-10k, whose table keeps every vote; the audit of a set works for all.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from iqa_utils.datasets import DATASETS
from iqa_utils.datasets.readers import KONIQ_COUNTS
from iqa_utils.indicators import measure_all
from iqa_utils.metrics import MOS_EDGES, mae, per_range, plcc, range_index, range_names, srcc
from iqa_utils.splits import SPLITS

VARIABLES = {  # names in Fig. 2 of lehmann2023 -> our columns
    "MOS Z-Score": "mos",
    "Brightness": "brightness",
    "Contrast": "contrast",
    "Colorfulness": "colorfulness",
    "Sharpness": "sharpness",
    "Bitrate": "bitrate",
    "Resolution": "hxw",
    "Deep Feature": "deep_feature",
}


def correlations(frame: pd.DataFrame) -> pd.DataFrame:
    """Correlate MOS and indicators pair by pair (Pearson), as Fig. 2 of lehmann2023 does.

    Raises:
        ValueError: If an indicator of an image is missing.
    """
    table = frame[list(VARIABLES.values())]
    if table.isna().any(axis=None):
        absent = table.columns[table.isna().any()].tolist()
        raise ValueError(f"expected the indicators of every image, missing values in {absent}")
    return table.set_axis(list(VARIABLES), axis=1).corr()


def pair_results(matrix: pd.DataFrame) -> list[dict[str, object]]:
    """List each pair of a correlation matrix once, in the words of the ledger."""
    names = list(matrix)
    return [
        {"method": row, "metric": f"pearson with {column}", "value": matrix.loc[row, column]}
        for i, row in enumerate(names)
        for column in names[i + 1 :]
    ]


def range_counts(mos: Sequence[float] | np.ndarray, *, right: bool = False) -> pd.Series:
    """Count images in each MOS range, indexed "0-20", "20-40", ...

    Ranges are [low, high), the last one closed on both sides (the convention that gives the
    published counts), or (low, high] where they are closed on the ``right``. ``mos`` is (N,) on
    0-100; ValueError for a score outside.
    """
    mos, edges, last = np.asarray(mos, float), np.asarray(MOS_EDGES), len(MOS_EDGES) - 2
    ranges = last - range_index(-mos, -edges[::-1]) if right else range_index(mos, edges)
    return pd.Series(np.bincount(ranges, minlength=last + 1), index=range_names(MOS_EDGES))


def conventions(frame: pd.DataFrame) -> pd.DataFrame:
    """Count KonIQ-10k's ranges under each convention that is in use."""
    stretched = (frame["mos_raw"] - 1) / 4 * 100
    counts = {"z-score MOS, [low, high)": range_counts(frame["mos"])}
    counts["z-score MOS, (low, high]"] = range_counts(frame["mos"], right=True)
    counts["(MOS - 1) / 4 * 100, [low, high)"] = range_counts(stretched)
    return pd.DataFrame(counts).T


def constant_baseline(frame: pd.DataFrame) -> pd.Series:
    """Return the MAE of always answering the median, in all and by range."""
    mos = frame["mos"].to_numpy()
    median = np.full_like(mos, np.median(mos))
    return pd.Series({"all": mae(mos, median), **per_range(mos, median, mae, MOS_EDGES)})


def label_regimes(mos: Sequence[float] | np.ndarray) -> pd.DataFrame:
    """Hold the sentences of nguyen2024 about its Fig. 3 against the scores."""
    label = np.asarray(mos, float) / 20
    filled = np.histogram(label, np.linspace(0, 5, 51))[0]
    main = float(((label >= 2.2) & (label < 3.9)).mean())
    low, high = int((label < 1).sum()), int((label > 4.2).sum())
    few = float((((label >= 1) & (label < 2)) | ((label >= 3.5) & (label <= 4.2))).mean())
    mode, skew = 0.1 * filled.argmax(), float(stats.skew(label))
    near = mode - 0.1 <= 3.5 <= mode + 0.2
    rows = [
        ("most values fall between 2.2 and 3.9", f"{main:.1%} do", main > 0.5),
        ("the mode is around 3.5", f"fullest bin [{mode:.1f}, {mode + 0.1:.1f})", near),
        ("no sample from 0 to 1", f"{low} images", low == 0),
        ("no sample above about 4.2", f"{high} images", high == 0),
        ("few samples in 1-2 and 3.5-4.2", f"{few:.1%} of all", few < 0.1),
        ("right-skewed", f"skewness {skew:+.2f}", skew > 0),
    ]
    return pd.DataFrame(rows, columns=["sentence", "measured", "holds"])


def rater_noise(frame: pd.DataFrame) -> dict[str, float]:
    """Split the spread of MOS into quality and sampling of raters.

    The mean of n votes has variance SD^2 / n; what is left of the variance of MOS is quality.
    A model that knew the quality exactly would correlate with MOS at the root of the share that
    is quality, and miss it by the noise.

    Returns:
        ``noise``, the root mean square error of a MOS on 1-5, ``noise_points``, the same on the
        scale of ``mos``, ``reliability`` and ``plcc_ceiling``, both at most 1.

    Note:
        Votes count as independent; whatever raters share (screens, a habit) is not in it, so the
        true ceiling is lower.
    """
    noise = float((frame["sd_raw"] ** 2 / frame["votes"]).mean())
    total = float(frame["mos_raw"].var())
    reliability = 1 - noise / total
    points = noise**0.5 * float(frame["mos"].std() / frame["mos_raw"].std())
    found = {"noise": noise**0.5, "noise_points": points, "reliability": reliability}
    return found | {"plcc_ceiling": reliability**0.5}


def draw_votes(
    counts: np.ndarray, n_votes: int | np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw votes of every image without replacement: counts (N, 5) give drawn counts (N, 5).

    ``n_votes`` is one number for all or one per image, at most what an image has.

    Raises:
        ValueError: If an image has fewer votes.
    """
    wanted = np.broadcast_to(n_votes, len(counts)).copy()
    if (wanted > counts.sum(axis=1)).any():
        fewest = int(counts.sum(axis=1).min())
        raise ValueError(f"expected at least {int(wanted.max())} votes per image, found {fewest}")
    drawn, rest = np.zeros_like(counts), counts.sum(axis=1)
    for grade in range(counts.shape[1]):
        rest = rest - counts[:, grade]
        drawn[:, grade] = rng.hypergeometric(counts[:, grade], rest, wanted)
        wanted -= drawn[:, grade]
    return drawn


def _agreement(counts: np.ndarray, drawn: np.ndarray) -> list[float]:
    """Correlate the mean of the drawn votes with that of the others: SRCC and PLCC."""
    means = [votes @ np.arange(1, 6) / votes.sum(axis=1) for votes in (drawn, counts - drawn)]
    return [srcc(*means), plcc(*means)]


def vote_curve(frame: pd.DataFrame, sizes: Sequence[int], *, seed: int) -> pd.DataFrame:
    """Correlate the mean of a few votes with the mean of the image's other votes; one row per size.

    A size above half of the fewest votes of an image is left out.
    """
    counts, rng = frame[KONIQ_COUNTS].to_numpy(int), np.random.default_rng(seed)
    sizes = [size for size in sizes if size <= counts.sum(axis=1).min() // 2]
    rows = [(size, *_agreement(counts, draw_votes(counts, size, rng))) for size in sizes]
    return pd.DataFrame(rows, columns=["votes", "srcc", "plcc"])


def split_half_ceiling(
    frame: pd.DataFrame, *, n_splits: int = 20, seed: int
) -> dict[str, tuple[float, float, float]]:
    """Estimate the correlation that no model can pass from random halves of the votes.

    Two halves correlate at r; by Spearman and Brown the whole has reliability 2r / (1 + r), and
    the noise-free scores correlate with the observed ones at its root.

    Returns:
        "SRCC" and "PLCC" to mean, smallest and largest ceiling over the splits.
    """
    counts, rng = frame[KONIQ_COUNTS].to_numpy(int), np.random.default_rng(seed)
    halves = (draw_votes(counts, counts.sum(axis=1) // 2, rng) for _ in range(n_splits))
    found = np.array([_agreement(counts, half) for half in halves])  # (n_splits, 2)
    rows = zip(("SRCC", "PLCC"), np.sqrt(2 * found / (1 + found)).T, strict=True)
    return {name: (float(r.mean()), float(r.min()), float(r.max())) for name, r in rows}


def audit_table(tables: Mapping[str, pd.DataFrame], data_root: str | Path) -> pd.DataFrame:
    """Put every data set that was found on one page."""
    rows = {}
    for name, frame in tables.items():
        mos, (low, high) = frame["mos"], frame.attrs["scale"]
        there = sum((Path(data_root) / name / image).is_file() for image in frame["image"])
        parts = frame["split"].value_counts()
        split = [str(parts.get(part, 0)) for part in SPLITS]
        rows[name] = {
            "kind": frame.attrs["kind"],
            "scores": len(frame),
            "official": DATASETS[name].n_images or None,
            "images": there,
            "reference images": frame["reference"].nunique(),
            "scale": f"{low:g} to {high:g}",
            "mean": mos.mean(),
            "SD": mos.std(),
            "skewness": float(stats.skew(mos)),
            "split": "/".join(split) if len(parts) else "",
            "synthetic": frame.attrs["demo"],
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def indicator_agreement(frame: pd.DataFrame, root: str | Path, n_images: int) -> pd.DataFrame:
    """Correlate our indicators of the images with the columns that come with the set."""
    rows = frame.iloc[np.unique(np.linspace(0, len(frame) - 1, n_images).astype(int))]
    ours = measure_all(root, rows["image"].tolist())
    names = ["brightness", "contrast", "colorfulness", "sharpness", "bitrate"]
    found = [(plcc(rows[c], ours[c]), srcc(rows[c], ours[c]), len(rows)) for c in names]
    return pd.DataFrame(found, index=names, columns=["pearson", "spearman", "n"])

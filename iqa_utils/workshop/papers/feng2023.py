"""Feng and others: one regressor and monotonic transformers for six mixed data sets.

The authors released score files: ten MATLAB files, one per split, hold for the test images of six
data sets the human score, the output of the shared regressor and that of the set's own monotone
transformer. No image names are in them. Here they are read, and Table 1 is computed again.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.io import loadmat

from iqa_utils import metrics
from iqa_utils.metrics import Metric, size_weighted
from iqa_utils.workshop.audit import Check, Facts, Interval, check_mean
from iqa_utils.workshop.papers import Answer

KEY = "feng2023"
TITLE = "Feng et al. 2023: one regressor, monotonic transformers"
DOI = "10.1049/ell2.12698"
NOTEBOOKS = ("03_mixed_datasets",)
LEDGER = (142, "a3559f251a14871a")
DATA = {"weighted": {"live", "csiq", "kadid10k", "bid", "livec", "koniq10k"}}
METRICS = {"PLCC": ("PLCC logistic", "PLCC")}  # after a five-parameter logistic map
PROPOSED = "Proposed (All databases)"
# images with scores; the upper end counts references or training images too, as a reader might
SIZES: dict[str, float | Interval] = {
    "live": (779, 982),
    "csiq": (866, 900),
    "kadid10k": (10125, 10206),
    "bid": (585, 586),
    "livec": (1162, 1169),
    "koniq10k": 10073,
}
RESNET = {"network": "resnet34", "weights": "imagenet", "recipe": ("paper", "released")}
RESNET["protocol"] = {"split": "60/20/20", "epochs": 24}
RELEASED = {"authors' predictions": {}, "trained here": RESNET}
# the numbers of UNIQUE are those of its own paper: other splits, no validation set
UNIQUE = {"network": "UNIQUE", "protocol": {"split": "80/20"}}
# the caption: trained on KonIQ-10k, ten splits; who trained it is not said, the size is its own
KONCEPT = {"network": "KonCept512", "weights": "imagenet"}
KONCEPT["protocol"] = {"training": "koniq10k", "split": "60/20/20", "size": "512x384"}
SMALL, LARGE = {"protocol": {"size": "224x224"}}, {"protocol": {"size": "299x299"}}
ANSWERS = (
    Answer("Table 1", RELEASED, (PROPOSED,)),
    Answer("Table 1", {"trained here": UNIQUE}, ("UNIQUE",)),
    Answer("Table 1", {"trained here": KONCEPT}, ("KonCept512",)),
    Answer("Table 1", {"trained here": {"network": "NIQE", "weights": "LIVE"}}, ("NIQE",)),
    Answer("Table 2", RELEASED, ("Five",)),
    Answer("Table 2", {"trained here": RESNET}),
    Answer("text", {"arithmetic": SMALL | {"network": "resnet34"}}, ("Proposed",)),
    Answer("text", {"arithmetic": SMALL | {"network": "UNIQUE"}}, ("UNIQUE",)),
    Answer("text", {"arithmetic": LARGE | {"network": "KonCept512"}}, ("KonCept512",)),
)
ROWS = {  # method of the notebook -> table and row
    "released": {"Table 1": PROPOSED, "Table 2": "Five CFCLs and Four ELUs (Proposed)"},
    "released-3": {"Table 2": "Three CFCLs and Two ELUs"},
    "released-7": {"Table 2": "Seven CFCLs and Six ELUs"},
    "linear": {"Table 1": "UNIQUE-Linear (All databases)"},
    "ranking": {"Table 1": "UNIQUE (All databases)"},
    "paper eq4": {"Table 1": PROPOSED},  # with the loss as printed
    "KonCept512": {"Table 1": "KonCept512 (KonIQ-10k)"},
    "niqe": {"Table 1": "NIQE"},
}
SETS = {  # our name: name in the files and full size of the set, its weight in the paper's means
    "live": ("live", 779),
    "csiq": ("csiq", 866),
    "kadid10k": ("kadid10k", 10125),
    "bid": ("bid", 586),
    "livec": ("clive", 1162),
    "koniq10k": ("koniq10k", 10073),
}
FULL_SIZES = {name: size for name, (_, size) in SETS.items()}
N_RESAMPLES = 2000  # of the splits, for an interval of their median
ALL_SETS = "+".join(SETS)
CORRELATIONS: Mapping[str, Metric] = {
    "SRCC": metrics.srcc,
    "PLCC": metrics.plcc,
    "PLCC logistic": metrics.plcc_logistic,
    "PLCC logistic 4": lambda mos, pred: metrics.plcc_logistic(mos, pred, 4),
}
EASY = "The authors released code and ten files of predictions: the medians follow digit by digit."
DIFFICULT = (
    "Splits are neither shipped nor seeded, the printed loss is not the one the code trains, rows "
    "of other methods come from other splits, and each learned curve is one multiplication."
)


def checks(rows: pd.DataFrame) -> list[Check]:
    """Recompute the weighted columns."""
    tables = ("Table 1", "Table 2")
    return [check for table in tables for check in check_mean(rows, table, "weighted", SIZES)]


def facts(rows: pd.DataFrame) -> Facts:
    """Recompute the claims on the weighted columns, and the cost at the stated size."""
    means = rows.query("table == 'Table 1' and dataset == 'weighted'")
    means = means.set_index(["metric", "method"])["value"]
    least = 3.6 * (768 / 224) ** 2  # ResNet-34 trunk: 3.6 GMAC at 224 squared
    gflops = rows[rows["method"] == "Proposed"]["value"].iloc[0]
    found: Facts = {"least GMAC with the short side at 768 pixels": [(least, 2 * least), gflops]}
    for metric in ("SRCC", "PLCC"):
        words = f"weighted {metric} of the proposed method, called the best"
        found[words] = [means[metric].max(), means[metric][PROPOSED]]
    return found


def load_released(root: Path) -> pd.DataFrame:
    """Read ``scores1.mat`` to ``scores10.mat`` of the authors' repository, fzp0424/MonotonicIQA."""
    paths = [root / f"scores{k}.mat" for k in range(1, 11)]
    if lost := [p.name for p in paths if not p.is_file()]:
        raise FileNotFoundError(f"{root} must hold scores1.mat to scores10.mat, lacks {lost}")
    parts, digest = [], hashlib.sha256()
    for split, path in enumerate(paths, start=1):
        digest.update(path.read_bytes())
        arrays = loadmat(path, simplify_cells=True)
        for name, (theirs, _) in SETS.items():
            try:
                columns = [np.ravel(arrays[k][theirs]) for k in ("mos", "DNN_mos", "hat")]
                columns = np.column_stack(columns).astype(np.float64)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path.name}, set {theirs}: {error}") from error
            parts.append(_part(split, name, *columns.T))
    return _attributed(parts, digest.hexdigest()[:16], demo=False)


def make_released(*, seed: int = 0, n: int = 60) -> pd.DataFrame:
    """Make a synthetic table of the same form, for want of the files."""
    parts = []
    for split in range(1, 11):
        rng = np.random.default_rng([seed, split])
        for name in SETS:
            pred = rng.uniform(0.2, 2.2, n)
            mos = 40 * pred + rng.normal(0, 12, n)
            parts.append(_part(split, name, mos, pred, pred * rng.uniform(3.5, 4.5)))
    return _attributed(parts, f"made-{seed}-{n}", demo=True)


def _part(
    split: int, name: str, mos: np.ndarray, pred: np.ndarray, transformed: np.ndarray
) -> pd.DataFrame:
    columns = {"mos": mos, "pred": pred, "transformed": transformed}
    return pd.DataFrame({"split": split, "dataset": name, **columns})


def _attributed(parts: list[pd.DataFrame], fingerprint: str, *, demo: bool) -> pd.DataFrame:
    frame = pd.concat(parts, ignore_index=True)
    title = "synthetic scores" if demo else "released scores of feng2023"
    frame.attrs = {"dataset": "monotoniciqa_scores", "title": title}
    frame.attrs |= {"demo": demo, "fingerprint": fingerprint}
    return frame


def split_metrics(
    frame: pd.DataFrame, methods: Mapping[str, Metric] = CORRELATIONS
) -> pd.DataFrame:
    """Score the regressor on every split and set; ``weighted`` is the mean by full sizes."""
    rows = []
    for (split, name), part in frame.groupby(["split", "dataset"], sort=False):
        mos, pred = part["mos"].to_numpy(), part["pred"].to_numpy()
        for label, metric in methods.items():
            rows.append((split, name, label, metric(mos, pred), len(part)))
    table = pd.DataFrame(rows, columns=["split", "dataset", "metric", "value", "n"])
    means = []
    for (split, label), part in table.groupby(["split", "metric"], sort=False):
        value = size_weighted(part.set_index("dataset")["value"].to_dict(), FULL_SIZES)
        means.append((split, "weighted", label, value, part["n"].sum()))
    return pd.concat([table, pd.DataFrame(means, columns=table.columns)], ignore_index=True)


def medians(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Median over splits per set and metric, with a bootstrap interval over splits.

    As in the paper, ``weighted`` is the weighted mean of the six medians; the median of the ten
    weighted means, which is another number, is given as ``median of weighted``.
    """
    rng, rows, names = np.random.default_rng(seed), [], list(SETS)
    weights = np.array([FULL_SIZES[name] for name in names]) / sum(FULL_SIZES.values())
    for metric, part in table.groupby("metric", sort=False):
        wide = part.pivot_table(index="split", columns="dataset", values="value")
        counts = part.groupby("dataset")["n"].sum()
        draws = rng.integers(len(wide), size=(N_RESAMPLES, len(wide)))
        resampled = np.median(wide[names].to_numpy()[draws], axis=1)  # (resamples, sets)
        values = {name: (wide[name].median(), resampled[:, k]) for k, name in enumerate(names)}
        values["weighted"] = (wide[names].median() @ weights, resampled @ weights)
        whole = wide["weighted"].to_numpy()
        values["median of weighted"] = (np.median(whole), np.median(whole[draws], axis=1))
        for name, (value, sample) in values.items():
            low, high = np.quantile(sample, [0.025, 0.975])
            own = name if name in SETS else "weighted"
            rows.append((name, metric, value, low, high, counts[own], len(wide), wide[own].std()))
    columns = ["dataset", "metric", "value", "ci_low", "ci_high", "n", "n_runs", "sd"]
    return pd.DataFrame(rows, columns=columns)


def gains(frame: pd.DataFrame) -> pd.DataFrame:
    """What each learned transformer does: its gain, transformed over regressor output."""
    rows = []
    for (split, name), part in frame.groupby(["split", "dataset"], sort=False):
        positive = part[part["pred"] > 0]
        gain = positive["transformed"] / positive["pred"]
        middle = gain.median()
        deviation = float((gain / middle - 1).abs().max())
        rows.append((split, name, middle, deviation, int((part["pred"] <= 0).sum())))
    return pd.DataFrame(rows, columns=["split", "dataset", "gain", "deviation", "not_positive"])


def quoted_rows(ledger: pd.DataFrame) -> pd.DataFrame:
    """SRCC of other papers' networks as Table 1 quotes it; ``recomputed`` is the weighted mean."""
    table = ledger.query("paper == 'feng2023' and table == 'Table 1' and metric == 'SRCC'")
    table = table[table["method"].str.contains("NIQE|PQR|DB-CNN")]
    wide = table.pivot_table(index="method", columns="dataset", values="value", sort=False)
    weights = pd.Series(FULL_SIZES) / sum(FULL_SIZES.values())
    return wide.assign(recomputed=(wide[list(FULL_SIZES)] * weights).sum(axis=1, skipna=False))


def kendall_points(frame: pd.DataFrame) -> pd.DataFrame:
    """Spearman and Kendall of every split and set, to see how far real pairs stray."""
    table = split_metrics(frame, {"SRCC": metrics.srcc, "KRCC": metrics.krcc})
    table = table[table["dataset"] != "weighted"]
    index = ["split", "dataset"]
    return table.pivot_table(index=index, columns="metric", values="value").reset_index()

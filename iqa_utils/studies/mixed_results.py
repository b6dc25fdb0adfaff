"""What predictions over several data sets and splits say: tables, intervals, paired comparisons.

Everything starts from the table of predictions, one row an image, method and split; nothing here
needs a network. NIQE, which is not trained on scores, fills the same table.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from iqa_utils import natural_scenes
from iqa_utils.images.decode_once import hash_files, lock
from iqa_utils.images.decoding import read_image
from iqa_utils.metrics import METRICS, plcc_logistic, size_weighted
from iqa_utils.natural_scenes import live_parameters, niqe
from iqa_utils.statistics import nadeau_bengio, wilcoxon_splits
from iqa_utils.workshop.released import ALL_SETS, SIZES

# short name of a method -> the rows of the ledger that it re-runs
LEDGER = {
    "released": [
        ("Table 1", "Proposed (All databases)"),
        ("Table 2", "Five CFCLs and Four ELUs (Proposed)"),
    ],
    "released-3": [("Table 2", "Three CFCLs and Two ELUs")],
    "released-7": [("Table 2", "Seven CFCLs and Six ELUs")],
    "linear": [("Table 1", "UNIQUE-Linear (All databases)")],
    "ranking": [("Table 1", "UNIQUE (All databases)")],
    "single:koniq10k": [("Table 1", "KonCept512 (KonIQ-10k)")],
    "niqe": [("Table 1", "NIQE")],
}
TOTAL, WEIGHTED = "total", "weighted"
DEPTHS = ("released-3", "released-7")
PAIRED = [
    "a", "b", "dataset", "difference", "ci_low", "ci_high",
    "p images", "sd splits", "p splits", "p signed ranks",
]  # fmt: skip
_NIQE_CODE = inspect.getsource(natural_scenes)  # as it was loaded


def score_splits(predictions: pd.DataFrame, *, logistic: Sequence[str] = ()) -> pd.DataFrame:
    """Score every method on every set of every split.

    Args:
        predictions: Columns ``method``, ``seed`` (number of the split), ``dataset``, ``mos`` and
            ``pred``; where ``mos_original`` is given, a set ``total`` pools all images against it.
        logistic: Methods whose PLCC is also taken after the five-parameter logistic, which is
            slow; NaN for others.

    Returns:
        Columns ``method``, ``dataset``, ``seed``, ``n``, ``SRCC``, ``PLCC`` and ``PLCC logistic``;
        NaN where a method predicts a constant.
    """
    rows = []
    for (method, dataset, seed), part in _with_total(predictions).groupby(
        ["method", "dataset", "seed"], sort=False
    ):
        values = {name: METRICS[name](part["mos"], part["pred"]) for name in ("SRCC", "PLCC")}
        fitted = method in logistic and np.ptp(part["pred"]) > 0
        values["PLCC logistic"] = plcc_logistic(part["mos"], part["pred"]) if fitted else np.nan
        rows.append({"method": method, "dataset": dataset, "seed": seed, "n": len(part)} | values)
    return pd.DataFrame(rows)


def _with_total(predictions: pd.DataFrame) -> pd.DataFrame:
    columns = ["method", "dataset", "seed", "reference", "image", "mos", "pred"]
    if "mos_original" not in predictions:
        return predictions[columns]
    total = predictions.assign(dataset=TOTAL, mos=predictions["mos_original"])
    return pd.concat([predictions[columns], total[columns]], ignore_index=True)


def bootstrap_medians(
    predictions: pd.DataFrame, sizes: Mapping[str, int], *, n_resamples: int, seed: int
) -> pd.DataFrame:
    """Resample images and recompute each method's median SRCC over splits.

    Contents are drawn with all their images, once for all methods and splits: an image that is in
    the test part of two splits is drawn for both, and two columns of the result are paired.

    Args:
        predictions: As in :func:`score_splits`, with ``reference``.
        sizes: Images of each set, weights of the set ``weighted``.
        n_resamples: Draws, R.
        seed: Of the draws.

    Returns:
        Shape (R, columns): columns are (method, dataset), ``weighted`` and ``total`` included.

    Note:
        The interval covers the choice of test images, not that of training images and seeds, which
        the spread over splits shows.
    """
    columns: dict[tuple[str, str], np.ndarray] = {}
    table = _with_total(predictions)
    for dataset, of_set in table.groupby("dataset", sort=False):
        contents, label = np.unique(of_set["reference"].astype(str), return_inverse=True)
        generator = np.random.default_rng([seed, len(contents)])
        uniform = np.full(len(contents), 1 / len(contents))
        counts = generator.multinomial(len(contents), uniform, size=n_resamples)  # (R, contents)
        of_set = of_set.assign(label=label)
        for method, part in of_set.groupby("method", sort=False):
            draws = [
                _resampled_srcc(p["mos"].to_numpy(), p["pred"].to_numpy(), counts[:, p["label"]])
                for _, p in part.groupby("seed")
            ]
            columns[method, dataset] = pd.DataFrame(draws).median().to_numpy()  # NaN is skipped
    draws = pd.DataFrame(columns)
    for method in draws.columns.unique(0):
        if set(sizes) <= set(draws[method]):
            weights = pd.Series(sizes, dtype=float)
            values = draws[method][list(sizes)].to_numpy() @ (weights / weights.sum()).to_numpy()
            draws[method, WEIGHTED] = values
    return draws


def _resampled_srcc(mos: np.ndarray, pred: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Spearman's correlation of (N,) data in which image n occurs counts[r, n] times; (R,)."""
    counts = counts.astype(float)
    total = counts.sum(1, keepdims=True)
    centred = []
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw without any image is NaN
        for values in (mos, pred):
            _, group = np.unique(values, return_inverse=True)
            order = np.argsort(group, kind="stable")
            starts = np.flatnonzero(np.diff(group[order], prepend=-1))
            in_group = np.add.reduceat(counts[:, order], starts, axis=1)  # (R, different values)
            ranks = (in_group.cumsum(1) - (in_group - 1) / 2)[:, group]  # (R, N)
            centred.append(ranks - (counts * ranks).sum(1, keepdims=True) / total)
        a, b = centred
        norms = (counts * a * a).sum(1) * (counts * b * b).sum(1)
        return (counts * a * b).sum(1) / np.sqrt(norms)


def summarise(
    scores: pd.DataFrame, sizes: Mapping[str, int], draws: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Take medians over splits, and their mean over sets weighted by size.

    Args:
        scores: From :func:`score_splits`.
        sizes: Images of each set; the weights.
        draws: From :func:`bootstrap_medians`, or None for no intervals.

    Returns:
        Columns ``method``, ``dataset``, ``metric``, ``value`` (median), ``sd`` (over splits; NaN
        for one split), ``ci_low``, ``ci_high`` (95 %, SRCC only), ``n`` and ``n_runs``. The set
        ``weighted`` is there for methods that were scored on all sets; its ``sd`` is that of the
        splits' weighted values.

    References:
        Feng et al., Table 1: weights are the full sizes of the sets.
    """
    metrics = [c for c in scores.columns if c in METRICS]
    rows = []
    for method, of_method in scores.groupby("method", sort=False):
        for metric in metrics:
            table = _by_split(of_method, metric)
            n = of_method.groupby("dataset")["n"].median()
            for dataset in table:
                values = table[dataset].dropna()
                rows.append(_row(method, dataset, metric, values.median(), values, n[[dataset]]))
            if set(sizes) <= set(table):
                split_values = table[list(sizes)] @ (pd.Series(sizes) / sum(sizes.values()))
                median = size_weighted(table[list(sizes)].median().to_dict(), sizes)
                rows.append(_row(method, WEIGHTED, metric, median, split_values, n[list(sizes)]))
    out = pd.DataFrame(rows)
    if draws is None:
        return out.assign(ci_low=np.nan, ci_high=np.nan)
    limits = draws.quantile([0.025, 0.975])
    keys = list(zip(out["method"], out["dataset"], strict=True))
    is_srcc = out["metric"].eq("SRCC").tolist()
    for column, level in (("ci_low", 0.025), ("ci_high", 0.975)):
        known = [s and k in limits for k, s in zip(keys, is_srcc, strict=True)]
        out[column] = [
            limits.loc[level, k] if ok else np.nan for k, ok in zip(keys, known, strict=True)
        ]
    return out


def _row(
    method: str, dataset: str, metric: str, value: float, splits: pd.Series, n: pd.Series
) -> dict:
    return {
        "method": method, "dataset": dataset, "metric": metric, "value": value,
        "sd": splits.std(), "n": int(n.sum()), "n_runs": len(splits),
    }  # fmt: skip


def split_values(scores: pd.DataFrame, sizes: Mapping[str, int], dataset: str) -> pd.DataFrame:
    """Return the SRCC of every split on one set, on ``total`` or ``weighted`` over sets.

    Args:
        scores: From :func:`score_splits`.
        sizes: Images of each set; the weights.
        dataset: Which.

    Returns:
        Columns ``method``, ``seed`` and ``SRCC``; undefined values are left out.
    """
    table = scores.pivot_table(
        index=["method", "seed"], columns="dataset", values="SRCC", sort=False, dropna=False
    )
    if dataset == WEIGHTED:
        weights = pd.Series(sizes) / sum(sizes.values())
        value = (table[list(sizes)] * weights).sum(axis=1, skipna=False)
    else:
        value = table[dataset]
    return value.rename("SRCC").dropna().reset_index()


def method_pairs(names: Sequence[str], *, scored: Iterable[str]) -> list[tuple[str, str]]:
    """Pair each method with the one it is held against.

    Args:
        names: Methods.
        scored: Methods that have a score on the set compared; others are left out.

    Returns:
        (a, b) for each: b is ``released``, five layers deep, for the depths of Table 2, and
        ``linear`` for all others. Empty where that one is not among the methods.
    """
    against = {name: "released" if name in DEPTHS else "linear" for name in names}
    scored = set(scored)
    return [(a, b) for a, b in against.items() if a != b and {a, b} <= scored]


def compare_methods(
    scores: pd.DataFrame,
    draws: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    dataset: str,
    *,
    n_train: int,
    n_test: int,
    sizes: Mapping[str, int],
) -> pd.DataFrame:
    """Compare methods pair by pair on the same images and on the same splits.

    Args:
        scores: From :func:`score_splits`.
        draws: From :func:`bootstrap_medians`.
        pairs: (a, b), compared as a - b.
        dataset: A set, ``weighted`` or ``total``.
        n_train: Training images of a split, for the corrected t.
        n_test: Test images of a split.
        sizes: Images of each set, for ``weighted``.

    Returns:
        One row a pair: ``difference`` of the median SRCC, its interval and p over images, the
        ``sd`` of the differences over splits, and over splits the p of the corrected resampled t
        and of Wilcoxon's exact test (NaN where fewer than three or five splits say too little).
        The columns are the same without pairs.
    """
    table = split_values(scores, sizes, dataset).pivot_table(
        index="seed", columns="method", values="SRCC"
    )
    rows = []
    for a, b in pairs:
        values = table[a], table[b]
        shared = values[0].notna() & values[1].notna()
        delta = (draws[a, dataset] - draws[b, dataset]).dropna()
        tail = min((delta <= 0).sum(), (delta >= 0).sum())
        j, both = shared.sum(), [v[shared] for v in values]
        corrected = nadeau_bengio(*both, n_train, n_test).p if j >= 3 else np.nan
        rows.append(
            {
                "a": a,
                "b": b,
                "dataset": dataset,
                "difference": values[0].median() - values[1].median(),
                "ci_low": delta.quantile(0.025),
                "ci_high": delta.quantile(0.975),
                "p images": min(1.0, 2 * (tail + 1) / (len(delta) + 1)),
                "sd splits": (values[0] - values[1]).std(),
                "p splits": corrected,
                "p signed ranks": wilcoxon_splits(*both).p if j >= 5 else np.nan,
            }
        )
    return pd.DataFrame(rows, columns=PAIRED)


def _by_split(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return one method's values, a row a split and a column a set."""
    return scores.pivot_table(index="seed", columns="dataset", values=metric, dropna=False)


def ledger_rows(summary: pd.DataFrame, *, data: str) -> list[dict]:
    """Turn a summary into results: ledger rows where the paper has them, ``control`` otherwise.

    Args:
        summary: From :func:`summarise`.
        data: ``demo``, or empty for the set of each row, and all sets joined by ``+`` for
            ``weighted`` and ``total``.

    Returns:
        Keyword arguments of ``Run.add_result``. Undefined correlations (a method that predicts a
        constant) are left out.
    """
    rows = []
    sets = "+".join(name for name in summary["dataset"].unique() if name not in (TOTAL, WEIGHTED))
    columns = ["dataset", "metric", "value", "ci_low", "ci_high", "n", "n_runs"]
    for record in summary.dropna(subset="value").to_dict("records"):
        pooled = record["dataset"] in (TOTAL, WEIGHTED)
        own = record["method"].startswith("released")
        keep = {name: record[name] for name in columns}
        keep["data"] = data or (sets if pooled else record["dataset"])
        keep["variant"] = "released" if own else "one frame for all methods"
        for table, method in LEDGER.get(record["method"], [("control", record["method"])]):
            rows.append({"table": table, "method": method, **keep})
    return rows


def paired_rows(paired: pd.DataFrame, *, data: str, n_runs: int) -> list[dict]:
    """Turn paired comparisons into results of the table ``paired``.

    Args:
        paired: From :func:`compare_methods`.
        data: What they were measured on.
        n_runs: Splits.

    Returns:
        Keyword arguments of :meth:`iqa_utils.workshop.runs.Run.add_result`.
    """
    rows = paired[["dataset", "ci_low", "ci_high"]].assign(value=paired["difference"])
    rows["method"] = paired["a"] + " - " + paired["b"]
    same = {"table": "paired", "metric": "SRCC difference", "data": data, "n_runs": n_runs}
    return rows.assign(**same).to_dict("records")


def map_rows(error: pd.DataFrame, *, data: str, n_runs: int) -> list[dict]:
    """Turn errors of recovered maps into results of the table ``known maps``.

    Args:
        error: From :func:`iqa_utils.studies.mixed_curves.carried_error`.
        data: What they were measured on.
        n_runs: Splits.

    Returns:
        Keyword arguments of :meth:`iqa_utils.workshop.runs.Run.add_result`.
    """
    same = {"table": "known maps", "metric": "mean error of carried MOS"}
    same |= {"data": data, "n_runs": n_runs}
    cells = error.melt(ignore_index=False, var_name="dataset").dropna().reset_index()
    return cells.assign(**same).to_dict("records")


def released_rows(medians: pd.DataFrame) -> list[dict]:
    """Turn medians of the authors' predictions into results of their row in Table 1.

    Args:
        medians: From :func:`iqa_utils.workshop.released.medians`.

    Returns:
        Keyword arguments of :meth:`iqa_utils.workshop.runs.Run.add_result`.
    """
    rows = medians[medians["dataset"] != "median of weighted"].drop(columns="sd")
    data = rows["dataset"].replace(WEIGHTED, ALL_SETS)
    same = {"table": "Table 1", "method": "Proposed (All databases)", "variant": "released scores"}
    return rows.assign(data=data, **same).to_dict("records")


def quoted_rows(ledger: pd.DataFrame) -> pd.DataFrame:
    """Collect the SRCC rows of Table 1 that belong to networks of other papers.

    Args:
        ledger: From :func:`iqa_utils.workshop.claims.load_claims`.

    Returns:
        A row a method, a column a set as printed; ``recomputed`` is the size-weighted mean of the
        row's own numbers, NaN where it does not have all six.
    """
    table = ledger.query("paper == 'feng2023' and table == 'Table 1' and metric == 'SRCC'")
    table = table[table["method"].str.contains("NIQE|PQR|DB-CNN")]
    wide = table.pivot_table(index="method", columns="dataset", values="value", sort=False)
    weights = pd.Series(SIZES) / sum(SIZES.values())
    return wide.assign(recomputed=(wide[list(SIZES)] * weights).sum(axis=1, skipna=False))


def predict_niqe(
    frames: Mapping[str, pd.DataFrame],
    splits: Sequence[Mapping[str, pd.Series]],
    folders: Mapping[str, Path],
    cache_dir: Path,
    *,
    patch: int = 96,
    save_seconds: float = 60.0,
) -> pd.DataFrame:
    """Predict every test part by NIQE, which has seen no score.

    An image is measured once for all splits and runs, and a killed run goes on where it was.

    Args:
        frames: Score tables by set.
        splits: Part of each row by set, one a split.
        folders: Folder that the image names of each set are relative to.
        cache_dir: Where values are kept by the bytes of the images.
        patch: Side of its patches, pixels; the published parameters are those of 96.
        save_seconds: Time between saves.

    Returns:
        One row an image and split, as :func:`iqa_utils.studies.mixed.predict_test` gives them;
        ``pred`` is negated NIQE, since lower is better there.
    """
    tables = []
    for dataset, frame in frames.items():
        tested = [np.flatnonzero(parts[dataset] == "test") for parts in splits]
        rows = np.unique(np.concatenate(tested))
        quality = -niqe_of_files(
            folders[dataset], frame["image"].tolist(), rows, patch, cache_dir, save_seconds
        )
        columns = ["image", "mos", "reference", *({"mos_original"} & set(frame))]
        for split, rows in enumerate(tested):
            table = frame.iloc[rows][columns].assign(dataset=dataset, split="test", seed=split)
            tables.append(table.assign(pred=quality[rows], mapped=np.nan))
    return pd.concat(tables, ignore_index=True).assign(method="niqe", variant="")


def niqe_of_files(
    root: Path,
    images: Sequence[str],
    rows: np.ndarray,
    patch: int,
    cache_dir: Path,
    save_seconds: float,
) -> np.ndarray:
    """Return NIQE of some rows of a list of images, NaN for rows never asked for; shape (N,)."""
    recipe = [_NIQE_CODE, str(patch), *(a.tobytes().hex() for a in live_parameters())]
    recipe += hash_files(Path(root), images, cache_dir / "stores")
    path = cache_dir / "niqe" / f"{hashlib.sha256(' '.join(recipe).encode()).hexdigest()[:20]}.npy"
    with lock(path.with_suffix(".lock")):
        values = np.load(path) if path.is_file() else np.full(len(images), np.nan)
        missing = rows[np.isnan(values[rows])]
        saved = time.monotonic()
        for row in missing:
            values[row] = niqe(np.asarray(read_image(Path(root) / images[row])), patch=patch)
            if time.monotonic() - saved >= save_seconds or row == missing[-1]:
                partial = path.with_name(f".{path.stem}.{os.getpid()}.npy")
                np.save(partial, values)
                partial.replace(path)
                saved = time.monotonic()
    return values

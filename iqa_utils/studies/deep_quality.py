"""The protocol of ahmed2020 on one joined table of several data sets, and its inference.

Joined, all sets share one image store, one standardised score and one idea of content, so that
fine-tuning, regression and cross-set tests are choices of rows. Scores get intervals over contents
or over splits, and methods are compared by paired tests in place of the paper's Table 9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as t_distribution

from iqa_utils.features.layers import LAYERS, NETWORKS, ledger_method
from iqa_utils.metrics import Metric, krcc, plcc, rmse, srcc
from iqa_utils.splits import content_split, official_split
from iqa_utils.statistics import (
    bootstrap_ci,
    holm,
    nadeau_bengio,
    paired_bootstrap,
    pairwise_bootstrap,
)

METRICS: dict[str, Metric] = {"RMSE": rmse, "PLCC": plcc, "SRCC": srcc, "KRCC": krcc}
CATEGORIES = {  # training category of the paper to its table and data sets
    "TID": ("Table 5", ("tid2008", "tid2013")),
    "CSIQ": ("Table 6", ("csiq",)),
    "LIVE": ("Table 7", ("live",)),
}


def join_sets(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Put score tables under each other with a standardised score and a common content.

    Args:
        frames: Name to table of :func:`iqa_utils.datasets.load_scores`.

    Returns:
        One row an image: ``dataset``, ``image`` (relative to the folder of all sets), ``mos`` (the
        set's own scale), ``mos_z`` (equation 4: standardised over its set), ``content``,
        ``distortion``, ``subset`` ("" where the set has none).

    Note:
        TID2008 and TID2013 show the same 25 references, so these are one content each. LIVE and TID
        share scenes of the Kodak set as well; their names do not say which.
    """
    parts = []
    for name, frame in frames.items():
        columns = {
            "dataset": name,
            "image": f"{name}/" + frame["image"],
            "mos": frame["mos"],
            "mos_z": (frame["mos"] - frame["mos"].mean()) / frame["mos"].std(ddof=0),
            "content": _contents(name, frame),
            "distortion": frame["distortion"],
            "subset": frame.get("subset", ""),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def split_sets(frames: Mapping[str, pd.DataFrame], *, seed: int) -> np.ndarray:
    """Assign every image of :func:`join_sets` to training, validation or test.

    Official splits where a set has one (the seed is then ignored), else 60/20/20 by content.

    Args:
        frames: As for :func:`join_sets`.
        seed: Which of the content splits.

    Returns:
        Part of each row of the joined table, shape (N,).

    Note:
        The paper tests on "20 %, 750 images" of TID2013; 20 % are 600. It does not say that its
        splits keep the distorted versions of a reference together; these do.
    """
    parts = []
    for name, frame in frames.items():
        if frame["split"].notna().all():
            parts.append(official_split(frame))
            continue
        frame = frame.assign(reference=_contents(name, frame))
        frame.attrs["dataset"] = _family(name)  # one family is split alike
        parts.append(content_split(frame, seed=seed))
    return pd.concat(parts, ignore_index=True).to_numpy()


def _family(name: str) -> str:
    return "tid" if name.startswith("tid") else name


def _contents(name: str, frame: pd.DataFrame) -> pd.Series:
    return f"{_family(name)}/" + frame["reference"].astype(str).str.lower().str.removesuffix(".bmp")


def paper_sets(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """List the rows of each data set under the ledger's names.

    Args:
        frame: Table of :func:`join_sets`.

    Returns:
        Name to row numbers; LIVE appears as ``live1`` (its JPEG and JPEG 2000 images, which were
        released first) and ``live2`` (all of it).
    """
    found = {}
    for name, part in frame.groupby("dataset", sort=False):
        found["live2" if name == "live" else str(name)] = part.index.to_numpy()
        if name == "live":
            first = part["distortion"].isin(["jp2k", "jpeg"])
            found["live1"] = part.index[first].to_numpy()
    return found


def score_predictions(
    predictions: pd.DataFrame,
    frame: pd.DataFrame,
    by: Sequence[str],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score each experiment, with an interval over splits where there are several, else contents.

    Args:
        predictions: Columns ``row``, ``mos``, ``pred``, ``seed`` (of the split), ``n_train`` and
            those of ``by``.
        frame: Table of :func:`join_sets`.
        by: Columns that tell experiments apart.
        n_resamples: Draws of the bootstrap by content, for a single split.
        seed: Of the draws.

    Returns:
        One row an experiment and metric: ``by``, ``metric``, ``value`` (mean over splits),
        ``ci_low``, ``ci_high`` (95 %), ``n`` (test images of a split), ``n_runs``. Where the set
        has subsets, ``SRCC ss01`` and so on are the values within them. A correlation of constant
        predictions has no value and no row.

    Note:
        Splits of one set overlap: the interval over them has Nadeau and Bengio's variance. Where a
        test part is one content only (tiny demo sets) images are drawn, and intervals are short.
    """
    rows = []
    if predictions.empty:
        return pd.DataFrame(columns=[*by, "metric", "value", "ci_low", "ci_high", "n", "n_runs"])
    for key, group in predictions.groupby(list(by), sort=False):
        labels = dict(zip(by, key, strict=True))
        n_runs = group["seed"].nunique()
        about = frame.loc[group["row"]].set_axis(group.index)
        named = {name: (metric, group) for name, metric in METRICS.items()}
        for name in sorted(set(about["subset"]) - {""}):
            named[f"SRCC {name}"] = (srcc, group[about["subset"] == name])
        for name, (metric, part) in named.items():
            values = np.array([metric(g["mos"], g["pred"]) for _, g in part.groupby("seed")])
            if not np.isfinite(values).all():
                continue
            if n_runs > 1:
                n_test = len(part) / n_runs
                half = _half_width(values, n_test / float(part["n_train"].mean()))
                low, high = values.mean() - half, values.mean() + half
                if name != "RMSE":  # no correlation lies beyond these
                    low, high = max(low, -1.0), min(high, 1.0)
            else:
                options = {"groups": _drawn(about.loc[part.index, "content"])}
                options |= {"n_resamples": n_resamples, "seed": seed}
                low, high = bootstrap_ci(part["mos"], part["pred"], metric, **options)
            found = {"metric": name, "value": values.mean(), "ci_low": low, "ci_high": high}
            rows.append({**labels, **found, "n": len(part) // n_runs, "n_runs": n_runs})
    return pd.DataFrame(rows)


def _drawn(content: pd.Series) -> np.ndarray | None:
    """What a bootstrap draws: contents, or images (None) where there is only one content."""
    return content.to_numpy() if len(content.unique()) > 1 else None


def _half_width(values: np.ndarray, ratio: float) -> float:
    """Half of a 95 % interval of the mean over overlapping splits; ratio is test over training."""
    n = len(values)
    spread = float(np.sqrt((1 / n + ratio) * values.var(ddof=1)))
    return float(t_distribution.ppf(0.975, n - 1)) * spread


def compare_methods(
    predictions: pd.DataFrame, frame: pd.DataFrame, *, seed: int = 0
) -> pd.DataFrame:
    """Test every pair of methods on the same test images, in place of the paper's Table 9.

    Over several splits by Nadeau and Bengio's corrected t, on one split by the bootstrap by
    content; all p are Holm-corrected.

    Args:
        predictions: Columns ``method``, ``row``, ``mos``, ``pred``, ``seed``, ``n_train``.
        frame: Table of :func:`join_sets`.
        seed: Of the draws; there are as many as Holm's correction over all pairs asks for.

    Returns:
        Square table, methods on both sides: 1 where the row's SRCC is above the column's at 5 %,
        -1 where it is below, 0 otherwise. It is antisymmetric, as any table of "better than" has to
        be; the paper's holds 1 on both sides of the diagonal.
    """
    wide = predictions.pivot_table(index=["seed", "row"], columns="method", values="pred")
    wide = wide[list(dict.fromkeys(predictions["method"]))]
    mos = predictions.drop_duplicates(["seed", "row"]).set_index(["seed", "row"])["mos"]
    mos = mos.loc[wide.index]
    n_runs = wide.index.get_level_values("seed").nunique()
    n_train, n_test = int(predictions["n_train"].mean()), len(wide) // n_runs
    groups = _drawn(frame.loc[wide.index.get_level_values("row"), "content"])
    methods = list(wide.columns)
    pairs = [(a, b) for i, a in enumerate(methods) for b in methods[i + 1 :]]
    if n_runs > 1:
        runs = {
            name: [srcc(mos.loc[s], g) for s, g in wide[name].groupby(level="seed")]
            for name in methods
        }
        signs = [np.sign(np.mean(runs[a]) - np.mean(runs[b])) for a, b in pairs]
        p = [nadeau_bengio(runs[a], runs[b], n_train, n_test).p for a, b in pairs]
    else:
        preds = {name: wide[name].to_numpy() for name in methods}
        found = pairwise_bootstrap(mos, preds, srcc, groups=groups, seed=seed)
        signs = [np.sign(found[pair].difference) for pair in pairs]
        p = [found[pair].p for pair in pairs]
    table = pd.DataFrame(0, index=methods, columns=methods)
    for (a, b), sign, corrected in zip(pairs, signs, holm(p), strict=True):
        if corrected < 0.05:
            table.loc[a, b], table.loc[b, a] = int(sign), -int(sign)
    return table


def depth_contrast(
    predictions: pd.DataFrame, frame: pd.DataFrame, *, n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Ask of each network and stage whether its last layer or an earlier one carries more quality.

    The earlier layer is the one with the smallest cross-validated error on the training images, so
    the test images do not choose it.

    Args:
        predictions: From :func:`predict_layers` with a ``stage`` column ("pre-trained", ...).
        frame: Table of :func:`join_sets`.
        n_resamples: Draws of the paired bootstrap by content.
        seed: Of the draws.

    Returns:
        One row a network, stage and regressor with ``cv_rmse``, on the first split: ``last``,
        ``earlier``, and the difference last minus earlier in SRCC with its 95 % interval.
    """
    rows = []
    usable = predictions.dropna(subset="cv_rmse")
    usable = usable[usable["seed"] == usable["seed"].iloc[0]]
    for (network, stage, regressor), part in usable.groupby(
        ["network", "stage", "regressor"], sort=False
    ):
        error = part.groupby("layer", sort=False)["cv_rmse"].first()
        last = error.index[-1]
        earlier = error.drop(last).idxmin()
        a, b = (part[part["layer"] == name].set_index("row") for name in (last, earlier))
        groups = _drawn(frame.loc[a.index, "content"])
        found = paired_bootstrap(
            a["mos"], a["pred"], b.loc[a.index, "pred"], srcc,
            groups=groups, n_resamples=n_resamples, seed=seed,
        )  # fmt: skip
        labels = {"network": network, "stage": stage, "regressor": regressor}
        ends = {"difference": found.difference, "ci_low": found.low, "ci_high": found.high}
        rows.append({**labels, "last": last, "earlier": earlier, **ends})
    return pd.DataFrame(rows)


def to_own_scale(predictions: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Turn standardised scores and predictions into units of the set they are tested on.

    Args:
        predictions: ``row``, ``mos`` and ``pred`` of one data set, standardised.
        frame: Table of :func:`join_sets`.

    Returns:
        The same table on the set's own scale. Mean and spread of the test set enter: without them
        a model trained on another set's scale has no error in these units at all.
    """
    dataset = frame.loc[predictions["row"].iloc[0], "dataset"]
    mos = frame.loc[frame["dataset"] == dataset, "mos"]
    scale = {name: predictions[name] * mos.std(ddof=0) + mos.mean() for name in ("mos", "pred")}
    return predictions.assign(**scale)


def name_layers(scores: pd.DataFrame, stage: str) -> pd.DataFrame:
    """Name scored layers as the ledger does where it has them, else as controls of our own.

    Args:
        scores: From :func:`score_predictions` by network, layer and regressor.
        stage: ``"pre-trained"`` (Table 1), ``"fine-tuned"`` (Table 2), or another (controls).

    Returns:
        The scores with ``table`` and ``method``.
    """
    table = {"pre-trained": "Table 1", "fine-tuned": "Table 2"}.get(stage, "control")
    known = {(row.network, row.name): row for row in LAYERS if table in row.tables}
    named = []
    for network, layer, regressor in zip(
        scores["network"], scores["layer"], scores["regressor"], strict=True
    ):
        row = known.get((network, layer)) if regressor == "SVR" else None
        own = f"{network} / {layer} ({stage}, {regressor})"
        named.append((table, ledger_method(row, table)) if row else ("control", own))
    return scores.assign(table=[t for t, _ in named], method=[m for _, m in named])


def name_final(scores: pd.DataFrame, network: str) -> pd.DataFrame:
    """Name scores of the final method as Tables 4 to 7 do; networks but NASNet are controls.

    Args:
        scores: From :func:`score_predictions` by ``dataset`` and ``variant``, and by ``table`` and
            ``category`` where the training set was another.
        network: Key of :data:`iqa_utils.features.layers.NETWORKS`.

    Returns:
        The scores with ``table`` and ``method``.
    """
    title = NETWORKS[network].titles.get("Table 2", network)
    method = pd.Series(f"{title} + GPR", index=scores.index)
    table = pd.Series("Table 4", index=scores.index)
    if "category" in scores:
        method, table = method + " trained on " + scores["category"], scores["table"]
    if title != "NASNet-Large":
        table = "control"
    return scores.assign(table=table, method=method)


def result_rows(scores: pd.DataFrame, **labels: str) -> list[dict[str, Any]]:
    """Make the rows of :meth:`iqa_utils.runs.Run.add_results` from scores and further labels."""
    columns = ["table", "method", "dataset", "metric", "value", "ci_low", "ci_high"]
    columns += ["n", "n_runs", "variant", "data"]
    return scores.assign(**labels)[columns].to_dict("records")


def read_contrast(row: Any) -> str:
    """Say in words what one row of :func:`depth_contrast` decides."""
    if row.ci_low <= 0 <= row.ci_high:
        return "undecided"
    return "the last layer is better" if row.ci_low > 0 else "an earlier layer is better"


def tuning_gain(
    predictions: pd.DataFrame, frame: pd.DataFrame, *, n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Measure what fine-tuning adds to each layer, on the images of the first split.

    Args:
        predictions: From :func:`iqa_utils.studies.layer_regression.predict_layers` with ``stage``
            ("pre-trained", "fine-tuned"), ``variant`` and ``seed``.
        frame: Table of :func:`join_sets`.
        n_resamples: Draws of the paired bootstrap by content.
        seed: Of the draws.

    Returns:
        One row a network, layer, regressor and variant: fine-tuned minus pre-trained SRCC with its
        95 % interval.
    """
    columns = ["network", "layer", "regressor"]
    first = predictions[predictions["seed"] == predictions["seed"].iloc[0]]
    before = {
        key: g.set_index("row")
        for key, g in first[first["stage"] == "pre-trained"].groupby(columns)
    }
    rows = []
    after = first[first["stage"] == "fine-tuned"]
    for (*key, variant), group in after.groupby([*columns, "variant"], sort=False):
        base = before.get(tuple(key))
        if base is None:
            continue
        tuned = group.set_index("row").loc[base.index]
        found = paired_bootstrap(
            base["mos"], tuned["pred"], base["pred"], srcc,
            groups=_drawn(frame.loc[base.index, "content"]),
            n_resamples=n_resamples, seed=seed,
        )  # fmt: skip
        ends = {"gain": found.difference, "ci_low": found.low, "ci_high": found.high}
        rows.append({**dict(zip(columns, key, strict=True)), "variant": variant, **ends})
    return pd.DataFrame(rows, columns=[*columns, "variant", "gain", "ci_low", "ci_high"])


def difference_rows(
    contrast: pd.DataFrame, gain: pd.DataFrame, *, dataset: str, data: str
) -> list[dict[str, Any]]:
    """Make result rows of both differences in SRCC: between layers, and by fine-tuning.

    A difference with an undefined SRCC (constant predictions, as the demo has) gives no row.

    Args:
        contrast: From :func:`depth_contrast`.
        gain: From :func:`tuning_gain`.
        dataset: Data set they were measured on.
        data: What the run used, for the ledger.
    """
    common = {"table": "control", "dataset": dataset, "metric": "SRCC difference", "data": data}
    rows = [
        {
            "method": f"{row.network} {row.last} minus {row.earlier}, {row.regressor}, {row.stage}",
            "value": row.difference, "ci_low": row.ci_low, "ci_high": row.ci_high,
        }
        for row in contrast.itertuples()
    ]  # fmt: skip
    rows += [
        {
            "method": f"{row.network} {row.layer} fine-tuned minus pre-trained, {row.regressor}",
            "value": row.gain, "ci_low": row.ci_low, "ci_high": row.ci_high,
            "variant": row.variant,
        }
        for row in gain.itertuples()
    ]  # fmt: skip
    return [{**common, **row} for row in rows if np.isfinite(row["value"])]


def size_rows() -> list[dict[str, Any]]:
    """Make result rows of the layer sizes that Tables 1 and 2 print; they need no data."""
    return [
        {
            "table": table, "method": ledger_method(layer, table), "dataset": "tid2013",
            "metric": "feature count", "value": layer.size, "data": "none",
        }
        for layer in LAYERS
        for table in layer.tables
    ]  # fmt: skip

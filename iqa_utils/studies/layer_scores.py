"""What layers and methods of notebook 04 are worth, with intervals and paired tests.

Predictions become scores over splits or, on one split, over resampled contents; layers and methods
are compared on the same test images, in place of the paper's Table 9; and every number gets the
name that the ledger of ahmed2020 has for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as t_distribution

from iqa_utils.features.layers import LAYERS, NETWORKS, ledger_method
from iqa_utils.metrics import Metric, krcc, plcc, rmse, srcc
from iqa_utils.statistics import (
    bootstrap_ci,
    holm,
    nadeau_bengio,
    paired_bootstrap,
    pairwise_bootstrap,
)

METRICS: dict[str, Metric] = {"RMSE": rmse, "PLCC": plcc, "SRCC": srcc, "KRCC": krcc}
WITHIN = "SRCC within subsets"  # their mean, each counted by its images


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
        has subsets, ``SRCC ss01`` and so on are the values within them, and :data:`WITHIN` is
        their mean by images: telling the subsets apart cannot raise it. A correlation of constant
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
        subset = about["subset"]
        named = dict.fromkeys(METRICS, group)
        named |= {f"SRCC {name}": group[subset == name] for name in sorted(set(subset) - {""})}
        if len(subset.unique()) > 1:
            named[WITHIN] = group
        for name, part in named.items():
            values = []
            for _, split in part.groupby("seed"):
                scores, metric = _paired_with(name, split["mos"], subset[split.index])
                values.append(metric(scores, split["pred"]))
            if not np.isfinite(values).all():
                continue
            if n_runs > 1:
                n_test = len(part) / n_runs
                half = _half_width(np.array(values), n_test / float(part["n_train"].mean()))
                low, high = np.mean(values) - half, np.mean(values) + half
                if name != "RMSE":  # no correlation lies beyond these
                    low, high = max(low, -1.0), min(high, 1.0)
            else:
                options = {"groups": _drawn(about.loc[part.index, "content"])}
                options |= {"n_resamples": n_resamples, "seed": seed}
                low, high = bootstrap_ci(scores, part["pred"], metric, **options)
            found = {"metric": name, "value": np.mean(values), "ci_low": low, "ci_high": high}
            rows.append({**labels, **found, "n": len(part) // n_runs, "n_runs": n_runs})
    return pd.DataFrame(rows)


def _paired_with(name: str, mos: pd.Series, subset: pd.Series) -> tuple[np.ndarray, Metric]:
    """Return what a metric takes beside predictions, shape (N,), and the metric.

    These are the scores, but for :data:`WITHIN`: a draw of a bootstrap has to know the subset of
    each image, so that one takes the images' positions.
    """
    scores = mos.to_numpy()
    if name != WITHIN:
        return scores, METRICS.get(name, srcc)
    names, code = np.unique(subset.to_numpy(), return_inverse=True)

    def within(position: np.ndarray, pred: np.ndarray) -> float:
        rows, pred = np.asarray(position).astype(int), np.asarray(pred)
        inside = [np.flatnonzero(code[rows] == k) for k in range(len(names))]
        inside = [i for i in inside if len(i) > 1]
        values = [srcc(scores[rows[i]], pred[i]) for i in inside]
        return float(np.average(values, weights=[len(i) for i in inside]))

    return np.arange(len(scores)), within


def _compare(
    name: str, frame: pd.DataFrame, base: pd.DataFrame, other: pd.DataFrame, **resampling: int
) -> dict[str, Any]:
    """Subtract a metric of ``base`` from that of ``other``, both indexed by row; with interval."""
    about = frame.loc[base.index]
    scores, metric = _paired_with(name, base["mos"], about["subset"])
    preds = other.loc[base.index, "pred"], base["pred"]
    found = paired_bootstrap(scores, *preds, metric, groups=_drawn(about["content"]), **resampling)
    ends = {"ci_low": found.low, "ci_high": found.high}
    return {"metric": name, "difference": found.difference, **ends}


def _compared_metrics(frame: pd.DataFrame, rows: pd.Series) -> tuple[str, ...]:
    several = len(frame.loc[rows, "subset"].unique()) > 1
    return ("SRCC", WITHIN) if several else ("SRCC",)


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
            A method whose SRCC is undefined (constant predictions) differs from none.

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
        defined = {name for name in methods if np.isfinite(runs[name]).all()}
        signs = [np.sign(np.mean(runs[a]) - np.mean(runs[b])) for a, b in pairs]
        p = [
            nadeau_bengio(runs[a], runs[b], n_train, n_test).p if {a, b} <= defined else 1.0
            for a, b in pairs
        ]
    else:
        preds = {name: wide[name].to_numpy() for name in methods}
        found = pairwise_bootstrap(mos, preds, srcc, groups=groups, seed=seed)
        signs = [np.sign(found[pair].difference) for pair in pairs]
        p = [1.0 if np.isnan(found[pair].p) else found[pair].p for pair in pairs]
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
        One row a network, stage, regressor and ``metric`` (SRCC; :data:`WITHIN` as well where the
        set has subsets), on the first split: ``last`` (tapped: four networks of Table 1 have no row
        for their output), ``earlier``, and the ``difference`` last minus earlier with its 95 %
        interval.
    """
    rows = []
    usable = predictions.dropna(subset="cv_rmse")
    usable = usable[usable["seed"] == usable["seed"].iloc[0]]
    metrics = _compared_metrics(frame, usable["row"])
    for (network, stage, regressor), part in usable.groupby(
        ["network", "stage", "regressor"], sort=False
    ):
        error = part.groupby("layer", sort=False)["cv_rmse"].first()
        last = error.index[-1]
        earlier = error.drop(last).idxmin()
        a, b = (part[part["layer"] == name].set_index("row") for name in (last, earlier))
        labels = {"network": network, "stage": stage, "regressor": regressor}
        labels |= {"last": last, "earlier": earlier}
        for metric in metrics:
            found = _compare(metric, frame, b, a, n_resamples=n_resamples, seed=seed)
            rows.append({**labels, **found})
    return pd.DataFrame(rows)


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
    """Make the rows of ``Run.add_results`` from scores and further labels."""
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
        One row a network, layer, regressor, variant and ``metric`` (as in :func:`depth_contrast`):
        the ``difference`` fine-tuned minus pre-trained with its 95 % interval.
    """
    columns = ["network", "layer", "regressor"]
    first = predictions[predictions["seed"] == predictions["seed"].iloc[0]]
    metrics = _compared_metrics(frame, first["row"])
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
        tuned, labels = group.set_index("row"), dict(zip(columns, key, strict=True))
        for metric in metrics:
            found = _compare(metric, frame, base, tuned, n_resamples=n_resamples, seed=seed)
            rows.append({**labels, "variant": variant, **found})
    found = ["metric", "difference", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=[*columns, "variant", *found])


def against_handcrafted(
    predictions: pd.DataFrame, frame: pd.DataFrame, *, n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Compare each network with BRISQUE, both at their best as cross-validation sees it.

    Layer and regressor of a network, and the regressor of BRISQUE, are those of the smallest
    cross-validated error on the training images: no test image chooses.

    Args:
        predictions: As for :func:`depth_contrast`, with stage ``"handcrafted"`` among them.
        frame: Table of :func:`iqa_utils.studies.deep_quality.join_sets`.
        n_resamples: Draws of the paired bootstrap by content.
        seed: Of the draws.

    Returns:
        One row a network, stage and ``metric`` (as in :func:`depth_contrast`): ``best`` (layer and
        regressor), ``handcrafted`` (regressor) and the ``difference`` with its 95 % interval.
    """
    first = predictions[predictions["seed"] == predictions["seed"].iloc[0]]
    first = first.dropna(subset="cv_rmse")

    def best_of(part: pd.DataFrame) -> tuple[tuple[str, str], pd.DataFrame]:
        key = tuple(part.loc[part["cv_rmse"].idxmin(), ["layer", "regressor"]])
        chosen = (part["layer"] == key[0]) & (part["regressor"] == key[1])
        return key, part[chosen].set_index("row")

    by_hand = first["stage"] == "handcrafted"
    (_, hand), base = best_of(first[by_hand])
    rows = []
    for (network, stage), part in first[~by_hand].groupby(["network", "stage"], sort=False):
        key, other = best_of(part)
        labels = {"network": network, "stage": stage, "best": ", ".join(key), "handcrafted": hand}
        for metric in _compared_metrics(frame, part["row"]):
            found = _compare(metric, frame, base, other, n_resamples=n_resamples, seed=seed)
            rows.append({**labels, **found})
    return pd.DataFrame(rows)


def leakage(
    predictions: pd.DataFrame,
    frame: pd.DataFrame,
    by: Sequence[str],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure what a network gains by having seen the test images: ``as_written`` minus ``strict``.

    Args:
        predictions: Of one split, with ``row``, ``mos``, ``pred``, ``variant`` (the mode of
            :mod:`iqa_utils.studies.finetune`) and the columns of ``by``.
        frame: Table of :func:`iqa_utils.studies.deep_quality.join_sets`.
        by: Columns that tell experiments apart.
        n_resamples: Draws of the paired bootstrap by content.
        seed: Of the draws.

    Returns:
        One row an experiment that has both modes and ``metric`` (as in :func:`depth_contrast`):
        the ``difference`` with its 95 % interval.
    """
    rows = []
    groups = predictions.groupby(list(by), sort=False) if len(predictions) else []
    for key, group in groups:
        modes = {mode: part.set_index("row") for mode, part in group.groupby("variant")}
        if not {"strict", "as_written"} <= modes.keys():
            continue
        for metric in _compared_metrics(frame, group["row"]):
            base, other = modes["strict"], modes["as_written"]
            found = _compare(metric, frame, base, other, n_resamples=n_resamples, seed=seed)
            rows.append({**dict(zip(by, key, strict=True)), **found})
    return pd.DataFrame(rows, columns=[*by, "metric", "difference", "ci_low", "ci_high"])


def difference_rows(
    contrast: pd.DataFrame, gain: pd.DataFrame, crafted: pd.DataFrame, *, dataset: str, data: str
) -> list[dict[str, Any]]:
    """Make result rows of differences: between layers, by fine-tuning, to BRISQUE.

    A difference with an undefined SRCC (constant predictions, as the demo has) gives no row.

    Args:
        contrast: From :func:`depth_contrast`.
        gain: From :func:`tuning_gain`.
        crafted: From :func:`against_handcrafted`.
        dataset: Data set they were measured on.
        data: What the run used, for the ledger.
    """
    common = {"dataset": dataset, "data": data}
    rows = []
    for row in contrast.itertuples():
        method = f"{row.network} {row.last} minus {row.earlier}, {row.regressor}, {row.stage}"
        rows.append(_difference_row(row, method=method, **common))
    for row in gain.itertuples():
        method = f"{row.network} {row.layer} fine-tuned minus pre-trained, {row.regressor}"
        rows.append(_difference_row(row, method=method, variant=row.variant, **common))
    for row in crafted.itertuples():
        method = f"{row.network} {row.best} minus BRISQUE, {row.handcrafted}, {row.stage}"
        rows.append(_difference_row(row, method=method, **common))
    return [row for row in rows if np.isfinite(row["value"])]


def leakage_rows(
    leaks: pd.DataFrame, network: str, *, data: Mapping[str, str | None]
) -> list[dict[str, Any]]:
    """Make result rows of :func:`leakage` for the final method.

    Args:
        leaks: By ``category`` ("" where trained on the set itself) and ``dataset``.
        network: Key of :data:`iqa_utils.features.layers.NETWORKS`.
        data: Data set to what the run used, for the ledger.
    """
    rows = []
    for row in leaks.itertuples():
        trained = f" trained on {row.category}" if row.category else ""
        method = f"{network} + GPR{trained}, as_written minus strict"
        labels = {"method": method, "dataset": row.dataset, "data": data[row.dataset]}
        rows.append(_difference_row(row, **labels))
    return [row for row in rows if np.isfinite(row["value"])]


def _difference_row(row: Any, **labels: str) -> dict[str, Any]:
    ends = {"ci_low": row.ci_low, "ci_high": row.ci_high}
    metric = f"{row.metric} difference"
    return {"table": "control", "metric": metric, "value": row.difference, **ends, **labels}


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

"""What a treatment of rare scores changes: errors by range, with intervals and paired tests.

Every number is an average over seeds. An interval draws test images, all seeds of an image
together, so it speaks about images; the spread over seeds stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from iqa_utils.imbalance import effective_sample_size, label_counts
from iqa_utils.metrics import range_index, range_names, srcc
from iqa_utils.models.clip_head import OPEN_CLIP_TAGS, PAPER_ENCODER
from iqa_utils.regression import ridge_cv
from iqa_utils.statistics import bootstrap_ci, holm, paired_bootstrap, wilcoxon_splits
from iqa_utils.studies.rebalancing import RECIPES, HeadSettings, Recipe, balanced_mean


class Predictions(NamedTuple):
    """One method's predictions of the test part: ``mos`` (N,), ``pred`` (S, N) by seed."""

    image: np.ndarray
    mos: np.ndarray
    pred: np.ndarray

    @property
    def error(self) -> np.ndarray:
        """Absolute errors, shape (S, N)."""
        return np.abs(self.pred - self.mos)


def by_method(predictions: pd.DataFrame) -> dict[str, Predictions]:
    """Sort predictions of the test part by method, images in one order for all.

    Args:
        predictions: From :func:`iqa_utils.studies.rebalancing.train_recipes`.

    Returns:
        Method, in order of appearance, to its predictions.

    Raises:
        ValueError: If the methods do not predict the same images.
    """
    parts: dict[str, Predictions] = {}
    for name in predictions["method"].unique():
        rows = predictions[predictions["method"] == name]
        table = rows.pivot_table(index="image", columns="seed", values="pred")
        mos = rows.groupby("image")["mos"].first()
        parts[name] = Predictions(mos.index.to_numpy(), mos.to_numpy(), table.to_numpy().T)
        first = next(iter(parts.values()))
        if not np.array_equal(parts[name].image, first.image) or np.isnan(table).any(axis=None):
            raise ValueError(f"methods {next(iter(parts))} and {name} predict different images")
    return parts


def image_groups(
    mos: ArrayLike,
    edges: Sequence[float],
    *,
    names: Sequence[str] = (),
    rare: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Name the groups of images whose error is reported.

    Args:
        mos: Scores, shape (N,).
        edges: Edges of R ranges.
        names: Names of the ranges; "0-20" and so on by default.
        rare: Ranges that are also reported together, as "0-20 and 80-100".

    Returns:
        Metric name ("MAE 0-20", "MAE 0-20 and 80-100", "MAE") to a mask, shape (N,).

    Raises:
        ValueError: If there are not R names, or a rare range has no such name.
    """
    names = list(names) or range_names(edges)
    if len(names) != len(edges) - 1 or not set(rare) <= set(names):
        raise ValueError(f"{len(edges) - 1} ranges need as many names, rare ones among them, got "
                         f"{names} and {list(rare)}")  # fmt: skip
    inside = range_index(mos, edges)
    groups = {f"MAE {name}": inside == k for k, name in enumerate(names)}
    if rare:
        groups[f"MAE {' and '.join(rare)}"] = np.isin(inside, [names.index(r) for r in rare])
    groups["MAE"] = np.ones(len(inside), dtype=bool)
    return groups


def error_table(
    parts: Mapping[str, Predictions],
    edges: Sequence[float],
    *,
    names: Sequence[str] = (),
    rare: Sequence[str] = (),
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Tabulate errors by range, overall and balanced, and the rank correlation.

    Args:
        parts: From :func:`by_method`.
        edges: Edges of the ranges.
        names: As :func:`image_groups`.
        rare: As :func:`image_groups`.
        n_resamples: Draws of an interval.
        seed: Seed of the draws.

    Returns:
        One row a method and metric: method, metric, value, ci_low, ci_high, n (images), n_runs
        (seeds), seed_sd. Groups with fewer than two images are left out; "MAE balanced" is the mean
        over ranges, "SRCC" the mean over seeds.
    """
    rows = []
    options = {"n_resamples": n_resamples, "seed": seed}
    for method, part in parts.items():
        groups = image_groups(part.mos, edges, names=names, rare=rare)
        error = part.error.mean(axis=0)  # (N,) average over seeds
        for metric, mask in groups.items():
            if mask.sum() < 2:
                continue
            low, high = bootstrap_ci(part.mos[mask], error[mask], _mean_error, **options)
            by_seed = part.error[:, mask].mean(axis=1)  # (S,)
            rows.append([method, metric, by_seed.mean(), low, high, mask.sum(), by_seed])
        balanced = _balanced(edges)
        low, high = bootstrap_ci(part.mos, error, balanced, **options)
        by_seed = np.array([balanced(part.mos, e) for e in part.error])
        rows.append([method, "MAE balanced", by_seed.mean(), low, high, len(error), by_seed])
        value, low, high, by_seed = mean_correlation(part, **options)
        if np.isfinite([value, low, high]).all():
            rows.append([method, "SRCC", value, low, high, len(error), by_seed])
    columns = ["method", "metric", "value", "ci_low", "ci_high", "n", "by_seed"]
    table = pd.DataFrame(rows, columns=columns)
    table["n_runs"] = table["by_seed"].map(len)
    table["seed_sd"] = table["by_seed"].map(lambda v: v.std(ddof=1) if len(v) > 1 else np.nan)
    return table.drop(columns="by_seed")


def difference_table(
    parts: Mapping[str, Predictions],
    reference: str,
    edges: Sequence[float],
    *,
    names: Sequence[str] = (),
    rare: Sequence[str] = (),
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare every method with one of them, image by image.

    Args:
        parts: From :func:`by_method`.
        reference: Method that the others are held against.
        edges: Edges of the ranges.
        names: As :func:`image_groups`.
        rare: As :func:`image_groups`.
        n_resamples: Draws of an interval.
        seed: Seed of the draws.

    Returns:
        One row a method and metric: method, metric, value (method minus reference, so negative is
        better), ci_low, ci_high and p of a paired bootstrap over images, p_holm over all methods
        of a metric, p_seeds of signed ranks over seeds (NaN where seeds do not pair), n.
    """
    base, rows = parts[reference], []
    groups = image_groups(base.mos, edges, names=names, rare=rare)
    metrics: dict[str, tuple[np.ndarray, Callable[..., float]]] = {
        metric: (mask, _mean_error) for metric, mask in groups.items() if mask.sum() > 1
    }
    metrics["MAE balanced"] = (groups["MAE"], _balanced(edges))
    for metric, (mask, measure) in metrics.items():
        for method, part in parts.items():
            if method == reference:
                continue
            test = paired_bootstrap(
                base.mos[mask], part.error[:, mask].mean(0), base.error[:, mask].mean(0), measure,
                n_resamples=n_resamples, seed=seed,
            )  # fmt: skip
            p_seeds = np.nan
            if len(part.error) == len(base.error) > 1:
                ours, theirs = (
                    [measure(base.mos[mask], e[mask]) for e in p.error] for p in (part, base)
                )
                p_seeds = wilcoxon_splits(ours, theirs).p
            rows.append([method, metric, *test, p_seeds, int(mask.sum())])
    columns = ["method", "metric", "value", "ci_low", "ci_high", "p", "p_seeds", "n"]
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = table.groupby("metric")["p"].transform(lambda p: holm(p.to_numpy()))
    return table


def mean_correlation(
    part: Predictions,
    rows: np.ndarray | None = None,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float, np.ndarray]:
    """Return the rank correlation averaged over seeds, its interval, and each seed's.

    Args:
        part: One method.
        rows: Mask or rows of the images to use; all by default.
        n_resamples: Draws of the interval, which draw images.
        seed: Seed of the draws.

    Returns:
        Mean, lower and upper end, and values by seed (S,); NaN for constant predictions.
    """
    rows = np.arange(len(part.mos)) if rows is None else np.arange(len(part.mos))[rows]

    def mean_srcc(drawn: np.ndarray, _: np.ndarray) -> float:
        drawn = drawn.astype(int)
        return float(np.mean([srcc(part.mos[drawn], pred[drawn]) for pred in part.pred]))

    low, high = bootstrap_ci(rows, rows, mean_srcc, n_resamples=n_resamples, seed=seed)
    by_seed = np.array([srcc(part.mos[rows], pred[rows]) for pred in part.pred])
    return float(by_seed.mean()), low, high, by_seed


def weight_table(
    mos: ArrayLike, recipes: Mapping[str, Recipe], settings: HeadSettings
) -> pd.DataFrame:
    """Tabulate what recipes do to the loss of a training part.

    Args:
        mos: Training scores, shape (N,).
        recipes: Recipes by name.
        settings: Bins and ranges.

    Returns:
        One row a recipe: the mean weight in every range that holds images, the ratio of the largest
        to the smallest weight, and the effective sample size out of N.
    """
    rows = {}
    inside = range_index(mos, settings.range_edges)
    for name, recipe in recipes.items():
        weights = recipe.weights(mos, settings)
        means = {
            f"mean weight {label}": weights[inside == k].mean()
            for k, label in enumerate(range_names(settings.range_edges))
            if (inside == k).any()
        }
        ratio = weights.max() / weights.min()
        size = effective_sample_size(weights)
        rows[name] = means | {"largest / smallest": ratio, "effective sample size": size}
    return pd.DataFrame(rows).T


def is_papers_encoder(name: str, pretrained: str | None) -> bool:
    """Tell whether vectors are those of the paper's CLIP: its ViT-B/32, with trained weights."""
    return pretrained is not None and name in (PAPER_ENCODER, *OPEN_CLIP_TAGS)


def ledger_rows(
    table: pd.DataFrame, *, dataset: str, data: str, papers_encoder: bool, raw_targets: bool
) -> pd.DataFrame:
    """Spell errors as results, in the ledger's words where they answer a ledger row.

    Args:
        table: From :func:`error_table`.
        dataset: Name for :func:`iqa_utils.datasets.load_scores`; ``table`` is one's own set, which
            stands in for the paper's internal one.
        data: "demo" or the name of the real set.
        papers_encoder: Whether the vectors are CLIP's; other encoders answer no ledger row.
        raw_targets: Whether targets were raw, as in the paper.

    Returns:
        Rows for :meth:`iqa_utils.workshop.runs.Run.add_results`.
    """
    printed = {"koniq10k": ("Table 1", "koniq10k"), "table": ("Table 2", "internal")}
    names = {"vanilla": "CLIP", "LDS": "CLIP + LDS"}
    names |= dict.fromkeys(("LDS + FDS", "LDS + FDS, released"), "CLIP + LDS + FDS")
    ours = table["method"].isin(names) & (dataset in printed) & (papers_encoder or data == "demo")
    where, spelt = printed.get(dataset, ("control", dataset))
    variant = table["method"].map(lambda m: RECIPES[m].fds or "" if m in RECIPES else "")
    rows = table.drop(columns="seed_sd").assign(
        table=np.where(ours, where, "control"),
        dataset=np.where(ours, spelt, dataset),
        method=table["method"].map(names).where(ours, table["method"]),
        variant=variant.where((variant == "corrected") | (not raw_targets), "paper"),
    )
    return rows.assign(data=data)


def density_errors(
    parts: Mapping[str, Predictions], training_mos: ArrayLike, edges: Sequence[float]
) -> pd.DataFrame:
    """Set the error of every label bin beside the training images that lie in it.

    Args:
        parts: From :func:`by_method`.
        training_mos: Scores of the training part.
        edges: Edges of the bins.

    Returns:
        One row a method and bin that holds test images: method, mos (centre of the bin), images
        (training), n (test images), mae.
    """
    counts, centres = label_counts(training_mos, edges), [(a + b) / 2 for a, b in pairwise(edges)]
    tables = []
    for method, part in parts.items():
        table = pd.DataFrame({"bin": range_index(part.mos, edges), "error": part.error.mean(0)})
        table = table.groupby("bin")["error"].agg(mae="mean", n="size").reset_index()
        table["mos"] = np.array(centres)[table["bin"]]
        tables.append(table.assign(images=counts[table["bin"]], method=method))
    return pd.concat(tables, ignore_index=True)[["method", "mos", "images", "n", "mae"]]


def floor_predictions(
    features: ArrayLike, frame: pd.DataFrame, split: pd.Series, *, ridge: bool = True
) -> pd.DataFrame:
    """Predict the test part without a head: the training median, and ridge on the same vectors.

    Args:
        features: Encoder vectors, shape (N, D).
        frame: Score table, N rows.
        split: Part of each row.
        ridge: Also fit ridge regression, its penalty chosen by cross-validation on training and
            validation parts.

    Returns:
        Predictions as :func:`iqa_utils.studies.rebalancing.train_recipes` gives them, seed 0.
    """
    mos, features = frame["mos"].to_numpy(), np.asarray(features)
    test, fitted = (split == "test").to_numpy(), split.isin(["training", "validation"]).to_numpy()
    rows = frame.loc[test, ["image", "mos"]].assign(
        split="test", dataset=frame.attrs["dataset"], seed=0, variant=""
    )
    median = np.median(mos[(split == "training").to_numpy()])
    tables = [rows.assign(method="constant median", pred=median)]
    if ridge:
        groups = frame.loc[fitted, "reference"].to_numpy()
        model = ridge_cv(features[fitted], mos[fitted], groups=groups)
        tables.append(rows.assign(method="ridge", pred=model.predict(features[test])))
    return pd.concat(tables, ignore_index=True)


def _mean_error(_: np.ndarray, error: np.ndarray) -> float:
    return float(error.mean())


def _balanced(edges: Sequence[float]) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda mos, error: balanced_mean(mos, error, edges)

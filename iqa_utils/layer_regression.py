"""Scores from tapped layers: every layer by every regressor, BRISQUE beside them, and ten crops.

Tables 1 and 2 of ahmed2020 are :func:`predict_layers`, its final method is :func:`predict_final`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from iqa_utils.features import Crop, brisque_features, frozen_features, iterate_layers
from iqa_utils.features.grams import gram_from_panels, layer_grams, squared_distances
from iqa_utils.features.layers import LAYERS, NETWORKS, Layer, layers_of
from iqa_utils.images import ImageStore
from iqa_utils.regression import fold_numbers, gram_svr, ridge_cv
from iqa_utils.regression.gaussian_process import (
    GaussianProcess,
    NoiseSearch,
    cross_validated_residuals,
    fit_gaussian_process,
    search_noise,
)

REGRESSORS = ("SVR", "GPR", "ridge")


@dataclass(frozen=True)
class Task:
    """Rows of a joined table to learn from and to predict, in ``mos`` or ``mos_z``."""

    frame: pd.DataFrame
    train: np.ndarray
    test: np.ndarray
    column: str = "mos"
    seed: int = 0  # of the folds

    def __post_init__(self) -> None:
        reference = self.frame["reference"].to_numpy()
        shared = np.intersect1d(reference[self.train], reference[self.test])
        if len(shared):
            raise ValueError(f"{len(shared)} references are trained on and tested: {shared[:3]}")

    @property
    def mos(self) -> np.ndarray:
        """Scores of the training images."""
        return self.frame[self.column].to_numpy()[self.train]

    @property
    def folds(self) -> dict[str, Any]:
        """Options of a cross-validation: five folds, or one per reference where there are fewer."""
        groups = self.frame["reference"].to_numpy()[self.train]
        return {"n_folds": min(5, len(np.unique(groups))), "seed": self.seed, "groups": groups}

    def table(self, pred: np.ndarray, **columns: Any) -> pd.DataFrame:
        """Put predictions of the test images into a table with the given columns."""
        about = self.frame.loc[self.test, ["image", "dataset", "reference", "subset"]]
        own = {"row": self.test, "mos": self.frame[self.column].to_numpy()[self.test], "pred": pred}
        own |= {"seed": self.seed, "n_train": len(self.train)}
        return about.assign(**columns, **own).reset_index(drop=True)


def make_tasks(
    frame: pd.DataFrame, rows: np.ndarray, splits: Mapping[int, np.ndarray]
) -> dict[int, Task]:
    """Make the task of each split, by seed: training and validation images predict the test images.

    Equal splits, as those of an official one, are refused: an interval over them has no width.
    """
    tests = {seed: split[rows] == "test" for seed, split in splits.items()}
    n_different = len({test.tobytes() for test in tests.values()})
    if n_different < len(tests):
        raise ValueError(
            f"{frame.loc[rows[0], 'dataset']}: {len(tests)} splits were asked for and "
            f"{n_different} differ; a set with an official split has one (N_SPLITS: 1)"
        )
    return {seed: Task(frame, rows[~test], rows[test], seed=seed) for seed, test in tests.items()}


def regress(
    regressor: str,
    gram: np.ndarray,
    features: np.ndarray,
    rows: np.ndarray,
    task: Task,
    *,
    svr_c: Sequence[float] = (1.0,),
    relative_c: bool = False,
    cross_validate: bool = True,
    device: str = "cpu",
) -> dict[str, Any]:
    """Fit one of :data:`REGRESSORS` and predict the test images.

    ``"SVR"`` (linear) and ``"GPR"`` (type-II likelihood) take the Gram matrix, centred inner
    products of the R images of ``rows``, sorted rows of the table; ``"ridge"`` the features (R, D).
    Several box constraints ``svr_c`` are chosen from by cross-validation, which estimates the error
    of a single one only where asked to. With ``relative_c`` they are in units of one over the mean
    squared norm of the centred features, so that one list fits all layers; MATLAB's, and the
    paper's, are absolute. Gaussian processes are fitted on ``device``.

    Returns ``pred`` (M,), ``sd`` (of a Gaussian process), ``cv_rmse`` (the smallest over the
    penalties tried, a Gaussian process keeping its kernel in every fold) and ``converged``.
    """
    train, test = np.searchsorted(rows, task.train), np.searchsorted(rows, task.test)
    within, across = np.ix_(train, train), np.ix_(test, train)
    mos, folds, sd, converged = task.mos, task.folds, np.nan, True
    if regressor == "SVR":
        c = np.asarray(svr_c) / (np.diagonal(gram[within]).mean() if relative_c else 1.0)
        svr = gram_svr(gram[within], mos, c=c, cross_validate=cross_validate, **folds)
        pred, converged = svr.model.predict(gram[across]), svr.converged
        cv_rmse = svr.cv_rmse.min() if len(svr.cv_rmse) else np.nan
    elif regressor == "GPR":
        distances = np.sqrt(squared_distances(gram))
        process = fit_gaussian_process(distances[within], mos, device=device)
        pred, sd = process.predict(distances[across])
        missed = cross_validated_residuals(process, fold_numbers(len(mos), **folds))
        cv_rmse = np.sqrt(np.mean(missed**2))
    else:
        ridge = ridge_cv(features[train], mos, **folds)
        pred, cv_rmse = ridge.predict(features[test]), ridge.cv_rmse.min()
    return {"pred": pred, "sd": sd, "cv_rmse": cv_rmse, "converged": converged}


def predict_layers(
    network: nn.Module,
    name: str,
    store: ImageStore,
    tasks: Mapping[int, Task],
    *,
    choice: str = "paper",
    side: int = 0,
    crop_seed: int = 0,
    cache_dir: str | Path,
    save_seconds: float = 60.0,
    **regression: Any,
) -> pd.DataFrame:
    """Predict test scores from each layer by each regressor, from a single crop of each image.

    SVR and Gaussian process see the whole activation, as in the paper; ridge sees mean and spread
    over places, the baseline that a method with 100,000 features has to beat. All splits share
    their crops, so that one Gram matrix per layer serves them; the first one is cross-validated.

    ``name`` is the network's key in :data:`iqa_utils.features.layers.NETWORKS`, ``side`` the crop's
    height and width in pixels (0: the network's own). ``choice`` is for ``layers_of``,
    ``save_seconds`` for ``layer_grams``, the rest for :func:`regress`.

    Returns one row per prediction, with ``network``, ``layer``, ``regressor`` and the image's
    columns.
    """
    side, layers = side or NETWORKS[name].side, layers_of(name, choice=choice)
    rows = np.unique([np.r_[task.train, task.test] for task in tasks.values()])
    options = {"rows": rows, "crop": Crop((side, side), seed=crop_seed), "cache_dir": cache_dir}
    options |= {**NETWORKS[name].normalisation, "progress": True}
    pooled = {layer.module: "flatten" if layer.is_vector else "mean_std" for layer in layers}
    grams = layer_grams(network, store, pooled, save_seconds=save_seconds, **options)
    features = {
        module: frozen_features(network, store, layer=module, pooling=pooling, **options)
        for module, pooling in pooled.items()
    }
    found = []
    for task in tasks.values():
        for layer in layers:
            matrices = grams[layer.module], features[layer.module]
            labels = {"network": name, "layer": layer.name}
            found += _by_all(task, tasks, rows, *matrices, labels, **regression)
    return pd.concat(found, ignore_index=True)


def _by_all(
    task: Task,
    tasks: Mapping[int, Task],
    rows: np.ndarray,
    gram: np.ndarray,
    features: np.ndarray,
    labels: Mapping[str, str],
    **regression: Any,
) -> list[pd.DataFrame]:
    """Predict by each regressor; the task of the first split is cross-validated."""
    regression["cross_validate"] = task is next(iter(tasks.values()))
    values = {r: regress(r, gram, features, rows, task, **regression) for r in REGRESSORS}
    return [task.table(**found, **labels, regressor=r) for r, found in values.items()]


def predict_brisque(
    store: ImageStore, tasks: Mapping[int, Task], *, cache_dir: str | Path, **regression: Any
) -> pd.DataFrame:
    """Predict test scores from BRISQUE's 36 statistics of whole images, by the same regressors.

    They are standardised on the training images. An image of one grey level has none and gets the
    mean of the training images, so that it stays in the comparison.
    """
    rows = np.unique([np.r_[task.train, task.test] for task in tasks.values()])
    statistics = brisque_features(store, rows, cache_dir=cache_dir)
    found = []
    for task in tasks.values():
        train = statistics[np.searchsorted(rows, task.train)]
        spread = np.nanstd(train, axis=0)
        x = (statistics - np.nanmean(train, axis=0)) / np.where(spread > 0, spread, 1.0)
        x = np.where(np.isnan(x).any(axis=1, keepdims=True), 0.0, x)  # no statistics: the mean
        labels = {"network": "BRISQUE", "layer": "36 statistics"}
        found += _by_all(task, tasks, rows, gram_from_panels([x]), x, labels, **regression)
    return pd.concat(found, ignore_index=True)


def ledger_row(network: str, layer: str, stage: str, regressor: str) -> tuple[str, str]:
    """Name table and method of a score as the ledger does where it has it, else as a control."""
    table = {"pre-trained": "Table 1", "fine-tuned": "Table 2"}.get(stage, "control")
    for row in LAYERS:
        if (row.network, row.name, regressor) == (network, layer, "SVR") and table in row.tables:
            return table, row.in_ledger(table)
    return "control", f"{network} / {layer} ({stage}, {regressor})"


def preferred(predictions: pd.DataFrame, by: Sequence[str], choice: Sequence[str]) -> pd.DataFrame:
    """Keep what cross-validation prefers within each group, so that no test image chooses.

    Of the columns ``choice``, the values of the smallest error on the training images stay.
    """
    errors = predictions.dropna(subset="cv_rmse").groupby([*by, *choice], sort=False)["cv_rmse"]
    error = errors.first().reset_index()  # of the first split
    best = error.loc[error.groupby(list(by), sort=False)["cv_rmse"].idxmin(), [*by, *choice]]
    return predictions.merge(best)


def crop_distances(
    network: nn.Module,
    store: ImageStore,
    layer: Layer,
    task: Task,
    *,
    n_crops: int,
    side: int = 0,
    crop_seed: int = 0,
    cache_dir: str | Path,
) -> tuple[np.ndarray, np.ndarray]:
    """Measure distances between crops of a layer that gives vectors (the paper's 1000 logits).

    One crop of each training image and ``n_crops`` of each test image, of ``side`` pixels (0: the
    network's own): training distances (N, N) and test distances (n_crops, M, N).
    """
    row, how = NETWORKS[layer.network], {"layer": layer.module, "pooling": "flatten"}
    how |= {"cache_dir": cache_dir, **row.normalisation}

    def crops(rows: np.ndarray, number: int) -> np.ndarray:
        crop = Crop((side or row.side,) * 2, number, crop_seed)
        return frozen_features(network, store, rows=rows, crop=crop, **how).astype(np.float64)

    x = crops(task.train, 0)
    # shifting all by the training mean changes no distance and keeps digits
    centre = x.mean(axis=0)
    tests = [crops(task.test, k) - centre for k in range(n_crops)]
    x -= centre
    norms = (x**2).sum(axis=1)
    between = [((t**2).sum(axis=1)[:, None] + norms - 2 * t @ x.T).clip(min=0) for t in tests]
    return np.sqrt(squared_distances(x @ x.T)), np.sqrt(np.stack(between))


def average_crops(process: GaussianProcess, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average mean and standard deviation, (M,) each, over crops: distances are (K, M, N).

    The crops of an image share its noise, so averaging does not make the interval narrower.
    """
    means, sds = zip(*(process.predict(d) for d in distances), strict=True)
    return np.mean(means, axis=0), np.mean(sds, axis=0)


def predict_final(
    network: nn.Module,
    store: ImageStore,
    layer: Layer,
    task: Task,
    *,
    n_trials: int = 0,
    device: str = "cpu",
    **crops: Any,
) -> tuple[pd.DataFrame, NoiseSearch | None]:
    """Predict as the paper's final method does: a Gaussian process on logits, crops averaged.

    The noise is found by ``n_trials`` evaluations of a search (the paper's way), by the likelihood
    where that is 0. ``crops`` are for :func:`crop_distances`. Returns predictions and the search.
    """
    within, between = crop_distances(network, store, layer, task, **crops)
    search, how = None, {"device": device}
    if n_trials:
        search = search_noise(within, task.mos, n_trials=n_trials, **how, **task.folds)
    process = search.process if search else fit_gaussian_process(within, task.mos, **how)
    pred, sd = average_crops(process, between)
    labels = {"network": layer.network, "layer": layer.name, "regressor": "GPR"}
    return task.table(pred, sd=sd, **labels), search


def time_prediction(
    network: nn.Module,
    store: ImageStore,
    layer: Layer,
    rows: Sequence[int],
    process: GaussianProcess,
    *,
    n_crops: int,
    side: int = 0,
) -> dict[str, float]:
    """Return median seconds per image by step; nothing is cached, the first row warms up."""
    size = (side or NETWORKS[layer.network].side,) * 2
    distances, seconds = np.ones((n_crops, 1, len(process.alpha))), []
    for row in rows:
        started = time.perf_counter()
        for k in range(n_crops):
            list(iterate_layers(network, store, [layer.module], rows=[row], crop=Crop(size, k)))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        encoded = time.perf_counter()
        average_crops(process, distances)
        seconds.append((encoded - started, time.perf_counter() - encoded))
    return dict(zip(("features", "prediction"), np.median(seconds[1:], axis=0), strict=True))

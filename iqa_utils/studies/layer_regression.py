"""Scores from tapped layers: every layer by every regressor, and BRISQUE beside them.

The bridge from networks (:mod:`iqa_utils.features`, :mod:`iqa_utils.features.grams`) to regressors
that see matrices only. Tables 1 and 2 of ahmed2020 are one call each; its final method is in
:mod:`iqa_utils.studies.final_method`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import nn
from tqdm import tqdm

from iqa_utils.features import Crop, frozen_features, load_rows, save_rows
from iqa_utils.features.grams import gram_from_panels, layer_grams, squared_distances
from iqa_utils.features.layers import NETWORKS, Layer, layers_of
from iqa_utils.natural_scenes import N_STATISTICS, brisque_statistics
from iqa_utils.regression import fold_numbers, gram_svr, ridge_cv
from iqa_utils.regression.gaussian_process import (
    cross_validated_residuals,
    fit_gaussian_process,
)

if TYPE_CHECKING:
    from iqa_utils.images import ImageStore

REGRESSORS = ("SVR", "GPR", "ridge")


@dataclass(frozen=True)
class Task:
    """What to learn from and what to predict.

    Attributes:
        mos: Scores of all images of the store, shape (N,).
        content: Content of each, shape (N,): kept together by cross-validation.
        train: Rows that regressors are fitted on.
        test: Rows to predict.
        svr_c: Box constraints; several are chosen from by cross-validation on the training rows.
        relative_c: Whether they are in units of one over the mean squared norm of the centred
            features, so that one list fits all layers; MATLAB's, and the paper's, are absolute.
        seed: Of the folds.
        crop_seed: Of the crops: the same for all splits, so that a layer's one Gram matrix serves
            them all.
        cross_validate: Whether to estimate the error of a single box constraint in folds too.
        device: Where Gaussian processes are fitted.
    """

    mos: np.ndarray
    content: np.ndarray
    train: np.ndarray
    test: np.ndarray
    svr_c: Sequence[float] = (1.0,)
    relative_c: bool = False
    seed: int = 0
    crop_seed: int = 0
    cross_validate: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        shared = np.intersect1d(self.content[self.train], self.content[self.test])
        if len(shared):
            raise ValueError(f"{len(shared)} contents are trained on and tested: {shared[:3]}")

    @property
    def rows(self) -> np.ndarray:
        """All rows needed, sorted."""
        return np.union1d(self.train, self.test)

    @property
    def n_folds(self) -> int:
        """Folds of a cross-validation: five, or one for each content where there are fewer."""
        return min(5, len(np.unique(self.content[self.train])))

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the training and of the test images within ``rows``."""
        return np.searchsorted(self.rows, self.train), np.searchsorted(self.rows, self.test)

    def table(self, pred: np.ndarray, **columns: Any) -> pd.DataFrame:
        """Put predictions of the test images into a table with the given labels."""
        values = {"row": self.test, "mos": self.mos[self.test], "pred": pred}
        return pd.DataFrame({**columns, **values, "n_train": len(self.train)})


def make_task(
    frame: pd.DataFrame, rows: np.ndarray, parts: np.ndarray, *, column: str = "mos", **options: Any
) -> Task:
    """Make the task of one data set: learn from its training and validation part, predict its test.

    Args:
        frame: Table of :func:`iqa_utils.studies.deep_quality.join_sets`.
        rows: Rows of the data set.
        parts: Part of each row of ``frame``.
        column: ``"mos"``, or ``"mos_z"`` for standardised scores.
        **options: Further fields of :class:`Task`.
    """
    test = parts[rows] == "test"
    return Task(
        frame[column].to_numpy(), frame["content"].to_numpy(), rows[~test], rows[test], **options
    )


def make_tasks(
    frame: pd.DataFrame,
    rows: np.ndarray,
    splits: Mapping[int, np.ndarray],
    *,
    seed: int = 0,
    **options: Any,
) -> dict[int, Task]:
    """Make the tasks of one data set over several splits; only the first one is cross-validated.

    Args:
        frame: Table of :func:`iqa_utils.studies.deep_quality.join_sets`.
        rows: Rows of the data set.
        splits: Seed of a split to the part of each row of ``frame``.
        seed: Of the crops, for all splits.
        **options: For :func:`make_task`.

    Returns:
        Seed of a split to its task.

    Raises:
        ValueError: If two splits have the same test images, as those of an official split have:
            an interval over them would be of no width.
    """
    tests = {number: rows[parts[rows] == "test"].tobytes() for number, parts in splits.items()}
    if len(set(tests.values())) < len(tests):
        name = frame.loc[rows[0], "dataset"]
        raise ValueError(
            f"{name}: {len(tests)} splits were asked for and {len(set(tests.values()))} differ; "
            "a set with an official split has one (N_SPLITS: 1)"
        )
    first = next(iter(splits))
    return {
        number: make_task(
            frame, rows, parts, seed=number, crop_seed=seed, cross_validate=number == first,
            **options,
        )
        for number, parts in splits.items()
    }  # fmt: skip


def regress(
    regressor: str, gram: np.ndarray, features: np.ndarray | None, task: Task
) -> dict[str, Any]:
    """Fit one regressor and predict the test images.

    Args:
        regressor: ``"SVR"`` (linear) and ``"GPR"`` (type-II likelihood) take the Gram matrix,
            ``"ridge"`` the features.
        gram: Centred inner products of ``task.rows``, shape (R, R).
        features: Shape (R, D); only for ridge.
        task: What to learn and predict.

    Returns:
        ``pred`` (M,), ``sd`` (predictive, Gaussian process only, else NaN), ``cv_rmse`` (the
        smallest over the penalties tried, a Gaussian process keeping its kernel in every fold; NaN
        for a single box constraint that is not cross-validated) and ``converged``.

    Raises:
        ValueError: If the regressor is unknown.
    """
    at_train, at_test = task.places()
    mos, groups = task.mos[task.train], task.content[task.train]
    folds = {"n_folds": task.n_folds, "seed": task.seed, "groups": groups}
    if regressor == "SVR":
        fitted = gram[np.ix_(at_train, at_train)]
        unit = float(np.diagonal(fitted).mean()) if task.relative_c else 1.0
        c = np.asarray(task.svr_c) / unit
        svr = gram_svr(fitted, mos, c=c, cross_validate=task.cross_validate, **folds)
        pred = svr.predict(gram[np.ix_(at_test, at_train)])
        cv_rmse = svr.cv_rmse.min() if len(svr.cv_rmse) else np.nan
        return {"pred": pred, "sd": np.nan, "cv_rmse": cv_rmse, "converged": svr.converged}
    if regressor == "GPR":
        distances = np.sqrt(squared_distances(gram))
        options = {"tolerance": 1e-5, "device": task.device}
        process = fit_gaussian_process(distances[np.ix_(at_train, at_train)], mos, **options)
        pred, sd = process.predict(distances[np.ix_(at_test, at_train)])
        fold = fold_numbers(len(mos), **folds)
        cv_rmse = np.sqrt(np.mean(cross_validated_residuals(process, fold) ** 2))
        return {"pred": pred, "sd": sd, "cv_rmse": float(cv_rmse), "converged": True}
    if regressor == "ridge":
        ridge = ridge_cv(features[at_train], mos, **folds)
        pred = ridge.predict(features[at_test])
        cv_rmse = ridge.cv_rmse.min()
        return {"pred": pred, "sd": np.nan, "cv_rmse": cv_rmse, "converged": True}
    raise ValueError(f"regressor must be one of {REGRESSORS}, got {regressor!r}")


def predict_layers(
    network: nn.Module,
    store: ImageStore,
    layers: Sequence[Layer],
    task: Task,
    *,
    side: int,
    cache_dir: str | Path,
    regressors: Iterable[str] = REGRESSORS,
    batch_size: int = 32,
    save_seconds: float = 60.0,
    progress: bool = False,
) -> pd.DataFrame:
    """Predict test scores from each layer by each regressor, from a single crop of each image.

    SVR and Gaussian process see the whole activation, as in the paper; ridge sees mean and spread
    over places, the floor that a method with 100,000 features has to beat.

    Args:
        network: Network to tap, on the device to use.
        store: Decoded images.
        layers: Where to tap; all of one network.
        task: What to learn and predict.
        side: Crop height and width, pixels.
        cache_dir: Folder of the feature cache.
        regressors: Out of :data:`REGRESSORS`.
        batch_size: Images a forward pass.
        save_seconds: For :func:`iqa_utils.features.grams.layer_grams`.
        progress: Show a bar.

    Returns:
        One row a prediction: ``network``, ``layer``, ``regressor``, ``row`` (of the store),
        ``mos``, ``pred``, ``sd``, ``cv_rmse``, ``converged``, ``n_train``.
    """
    description, regressors = NETWORKS[layers[0].network], tuple(regressors)
    options = {"rows": task.rows, "crop": Crop((side, side), seed=task.crop_seed)}
    options |= {"mean": description.mean, "std": description.std, "cache_dir": cache_dir}
    options |= {"batch_size": batch_size, "progress": progress}
    modules = {layer.module: "flatten" if layer.is_vector else "mean_std" for layer in layers}
    own = {"poolings": modules, "save_seconds": save_seconds}
    grams = layer_grams(network, store, list(modules), **own, **options)
    parts = []
    for layer in layers:
        features = None
        if "ridge" in regressors:
            how = {"pooling": modules[layer.module], "layer": layer.module}
            features = frozen_features(network, store, **how, **options)
        for regressor in regressors:
            found = regress(regressor, grams[layer.module], features, task)
            labels = {"network": layer.network, "layer": layer.name, "regressor": regressor}
            parts.append(task.table(**found, **labels))
    return pd.concat(parts, ignore_index=True)


def predict_networks(
    names: Sequence[str],
    build: Callable[[str], nn.Module],
    store: ImageStore,
    tasks: Mapping[int, Task],
    *,
    stage: str,
    variant: str = "",
    side: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Run :func:`predict_layers` over networks, of which one at a time is in memory, and splits.

    Args:
        names: Keys of :data:`iqa_utils.features.layers.NETWORKS`.
        build: Makes the network of a key.
        store: Decoded images.
        tasks: Seed of a split to its task.
        stage: Label of the networks: ``"pre-trained"`` or ``"fine-tuned"``.
        variant: Further label.
        side: Crop height and width in pixels; 0 is each network's own.
        **options: For :func:`predict_layers`.

    Returns:
        All predictions, with ``stage``, ``variant`` and ``seed``.
    """
    parts = []
    for name in names:
        network = build(name)
        options["side"] = side or NETWORKS[name].side
        for seed, task in tasks.items():
            found = predict_layers(network, store, layers_of(name), task, **options)
            parts.append(found.assign(stage=stage, variant=variant, seed=seed))
        del network  # before the next one is built
    return pd.concat(parts, ignore_index=True)


def _statistics_or_nan(store: ImageStore, row: int) -> np.ndarray:
    image = store.image(row).permute(1, 2, 0).numpy()
    if not np.ptp(image.reshape(-1, 3), axis=0).any():
        return np.full(N_STATISTICS, np.nan)
    return brisque_statistics(image)


def predict_brisque(
    store: ImageStore,
    tasks: Mapping[int, Task],
    *,
    cache_dir: str | Path,
    regressors: Iterable[str] = REGRESSORS,
    progress: bool = False,
) -> pd.DataFrame:
    """Predict test scores from BRISQUE's 36 statistics of whole images, by the same regressors.

    Args:
        store: Decoded images at their own size.
        tasks: Seed of a split to its task.
        cache_dir: Folder of the feature cache.
        regressors: Out of :data:`REGRESSORS`; all see the statistics standardised on the training
            images.
        progress: Show a bar.

    Returns:
        As :func:`predict_networks`, with network ``BRISQUE``, layer ``36 statistics`` and stage
        ``handcrafted``.

    Note:
        An image of one grey level has no such statistics; it gets the mean of the training images,
        so that it stays in the comparison.
    """
    path = Path(cache_dir) / f"brisque2-{store.key[:24]}.rows"
    rows, n = np.unique(np.concatenate([task.rows for task in tasks.values()])), len(store)
    _, done = load_rows(path, rows, n_images=n)
    for row in tqdm(rows[~done], disable=not progress, leave=False):
        values = _statistics_or_nan(store, row)[None]  # (1, 36), float64: two words a value
        save_rows(path, [row], values.view(np.float32), n_images=n)
    statistics = np.full((n, N_STATISTICS), np.nan)
    statistics[rows] = load_rows(path, rows, n_images=n)[0].view(np.float64)
    labels = {"network": "BRISQUE", "layer": "36 statistics", "stage": "handcrafted", "variant": ""}
    parts = []
    for seed, task in tasks.items():
        train, x = statistics[task.train], statistics[task.rows]
        spread = np.nanstd(train, axis=0)
        x = (x - np.nanmean(train, axis=0)) / np.where(spread > 0, spread, 1.0)
        x = np.where(np.isnan(x).any(axis=1, keepdims=True), 0.0, x)  # no statistics: the mean
        gram = gram_from_panels(iter([x]))
        for regressor in regressors:
            found = regress(regressor, gram, x, task)
            parts.append(task.table(**found, **labels, regressor=regressor, seed=seed))
    return pd.concat(parts, ignore_index=True)

"""Scores from tapped layers: every layer by every regressor, BRISQUE beside them, ten crops.

The bridge from networks (:mod:`iqa_utils.features`, :mod:`iqa_utils.grams`) to regressors that see
matrices only. Tables 1 and 2 of ahmed2020 are one call each; its final method is another.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import nn

from iqa_utils.features import Crop, frozen_features, frozen_layers, save_array
from iqa_utils.gaussian_process import (
    GaussianProcess,
    NoiseSearch,
    fit_gaussian_process,
    search_noise,
)
from iqa_utils.grams import gram_from_panels, layer_grams, squared_distances
from iqa_utils.layers import NETWORKS, Layer
from iqa_utils.natural_scenes import brisque_statistics
from iqa_utils.regression import gram_svr, ridge_cv

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
        seed: Of crops and folds.
        device: Where Gaussian processes are fitted.
    """

    mos: np.ndarray
    content: np.ndarray
    train: np.ndarray
    test: np.ndarray
    svr_c: Sequence[float] = (1.0,)
    relative_c: bool = False
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        shared = np.intersect1d(self.content[self.train], self.content[self.test])
        if len(shared):
            raise ValueError(f"{len(shared)} contents are trained on and tested: {shared[:3]}")

    @property
    def rows(self) -> np.ndarray:
        """All rows needed, sorted."""
        return np.union1d(self.train, self.test)

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the training and of the test images within ``rows``."""
        return np.searchsorted(self.rows, self.train), np.searchsorted(self.rows, self.test)

    def table(self, pred: np.ndarray, **columns: Any) -> pd.DataFrame:
        """Put predictions of the test images into a table with the given labels."""
        values = {"row": self.test, "mos": self.mos[self.test], "pred": pred}
        return pd.DataFrame({**columns, **values, "n_train": len(self.train)})


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
        ``pred`` (M,), ``sd`` (predictive, Gaussian process only) and ``cv_rmse`` (smallest over
        the penalties tried), NaN where there is none.

    Raises:
        ValueError: If the regressor is unknown.
    """
    at_train, at_test = task.places()
    mos, groups = task.mos[task.train], task.content[task.train]
    if regressor == "SVR":
        fitted = gram[np.ix_(at_train, at_train)]
        unit = float(np.diagonal(fitted).mean()) if task.relative_c else 1.0
        c = np.asarray(task.svr_c) / unit
        svr = gram_svr(fitted, mos, c=c, seed=task.seed, groups=groups)
        cv_rmse = svr.cv_rmse.min() if len(svr.cv_rmse) else np.nan
        pred = svr.predict(gram[np.ix_(at_test, at_train)])
        return {"pred": pred, "sd": np.nan, "cv_rmse": cv_rmse}
    if regressor == "GPR":
        distances = np.sqrt(squared_distances(gram))
        options = {"tolerance": 1e-7, "device": task.device}
        process = fit_gaussian_process(distances[np.ix_(at_train, at_train)], mos, **options)
        pred, sd = process.predict(distances[np.ix_(at_test, at_train)])
        return {"pred": pred, "sd": sd, "cv_rmse": np.nan}
    if regressor == "ridge":
        ridge = ridge_cv(features[at_train], mos, seed=task.seed, groups=groups)
        pred = ridge.predict(features[at_test])
        return {"pred": pred, "sd": np.nan, "cv_rmse": ridge.cv_rmse.min()}
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
        progress: Show a bar.

    Returns:
        One row a prediction: ``network``, ``layer``, ``regressor``, ``row`` (of the store),
        ``mos``, ``pred``, ``sd``, ``cv_rmse``, ``n_train``.
    """
    description, regressors = NETWORKS[layers[0].network], tuple(regressors)
    options = {"rows": task.rows, "crop": Crop((side, side), seed=task.seed)}
    options |= {"mean": description.mean, "std": description.std, "cache_dir": cache_dir}
    options |= {"batch_size": batch_size, "progress": progress}
    modules = [layer.module for layer in layers]
    grams = layer_grams(network, store, modules, also_pooled="mean_std", **options)
    parts = []
    for layer in layers:
        features = None
        if "ridge" in regressors:
            how = {"pooling": "flatten" if layer.is_vector else "mean_std", "layer": layer.module}
            features = frozen_features(network, store, **how, **options)
        for regressor in regressors:
            found = regress(regressor, grams[layer.module], features, task)
            labels = {"network": layer.network, "layer": layer.name, "regressor": regressor}
            parts.append(task.table(**found, **labels))
    return pd.concat(parts, ignore_index=True)


def predict_brisque(
    store: ImageStore,
    task: Task,
    *,
    cache_dir: str | Path,
    regressors: Iterable[str] = REGRESSORS,
) -> pd.DataFrame:
    """Predict test scores from BRISQUE's 36 statistics of whole images, by the same regressors.

    Args:
        store: Decoded images at their own size.
        task: What to learn and predict.
        cache_dir: Folder of the feature cache.
        regressors: Out of :data:`REGRESSORS`; all see the statistics standardised on the training
            images.

    Returns:
        As :func:`predict_layers`, with network ``BRISQUE`` and layer ``36 statistics``.

    Raises:
        ValueError: If an image has no statistics (it is flat, or far too small).
    """
    path = Path(cache_dir) / f"brisque-{store.key[:24]}.npy"
    if not path.is_file():
        images = (store.image(i).permute(1, 2, 0).numpy() for i in range(len(store)))
        save_array(path, np.stack([brisque_statistics(image) for image in images]))
    x = np.load(path)[task.rows]
    train = x[task.places()[0]]
    spread = train.std(axis=0)
    x = (x - train.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    gram = gram_from_panels(iter([x]))
    labels = {"network": "BRISQUE", "layer": "36 statistics"}
    return pd.concat(
        [task.table(**regress(r, gram, x, task), **labels, regressor=r) for r in regressors],
        ignore_index=True,
    )


def crop_distances(
    network: nn.Module,
    store: ImageStore,
    layer: Layer,
    task: Task,
    *,
    side: int,
    n_crops: int,
    cache_dir: str | Path,
    batch_size: int = 32,
) -> tuple[np.ndarray, np.ndarray]:
    """Measure distances between crops of one narrow layer, for ten-crop averaging.

    Args:
        network: Network to tap.
        store: Decoded images.
        layer: A layer that gives vectors (the paper's 1000 logits).
        task: Training images, of which one crop is used, and test images, with ``n_crops`` each.
        side: Crop height and width, pixels.
        n_crops: Crops a test image.
        cache_dir: Folder of the feature cache.
        batch_size: Images a forward pass.

    Returns:
        Training distances (N, N) and test distances (n_crops, M, N).

    Raises:
        ValueError: If the layer is wide; :func:`predict_layers` serves those.
    """
    if not layer.is_vector:
        raise ValueError(f"{layer.network} {layer.name} gives {layer.size} values, not a vector")
    description = NETWORKS[layer.network]
    options = {"pooling": "flatten", "mean": description.mean, "std": description.std}
    options |= {"cache_dir": cache_dir, "batch_size": batch_size}

    def encode(rows: np.ndarray, number: int) -> np.ndarray:
        crop = Crop((side, side), number, task.seed)
        found = frozen_layers(network, store, [layer.module], rows=rows, crop=crop, **options)
        return found[layer.module].astype(np.float64)

    x = encode(task.train, 0)
    # shifting all by the training mean changes no distance and keeps digits
    centre = x.mean(axis=0)
    tests = [encode(task.test, k) - centre for k in range(n_crops)]
    x -= centre
    norms = (x**2).sum(axis=1)
    between = [((t**2).sum(axis=1)[:, None] + norms - 2 * t @ x.T).clip(min=0) for t in tests]
    return np.sqrt(squared_distances(x @ x.T)), np.sqrt(np.stack(between))


def average_crops(process: GaussianProcess, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average a process's predictions over crops.

    Args:
        process: Fitted on the training images.
        distances: Shape (K, M, N), K crops of M images.

    Returns:
        Mean prediction and mean predictive standard deviation of each image, each (M,). The crops
        of an image share its noise, so averaging does not make the interval narrower.
    """
    means, sds = zip(*(process.predict(d) for d in distances), strict=True)
    return np.mean(means, axis=0), np.mean(sds, axis=0)


def predict_final(
    network: nn.Module,
    store: ImageStore,
    layer: Layer,
    task: Task,
    *,
    side: int,
    n_crops: int,
    cache_dir: str | Path,
    n_trials: int = 0,
    batch_size: int = 32,
) -> tuple[pd.DataFrame, GaussianProcess, NoiseSearch | None]:
    """Predict as the paper's final method does: a Gaussian process on logits, crops averaged.

    Args:
        network: Network to tap.
        store: Decoded images.
        layer: A layer that gives vectors.
        task: What to learn and predict.
        side: Crop height and width, pixels.
        n_crops: Crops of each test image; the paper takes 10.
        cache_dir: Folder of the feature cache.
        n_trials: Evaluations of the noise search (the paper's way); 0 takes the likelihood's noise.
        batch_size: Images a forward pass.

    Returns:
        Predictions as :func:`predict_layers` gives them, the process, and the search if any.
    """
    options = {"side": side, "n_crops": n_crops, "cache_dir": cache_dir, "batch_size": batch_size}
    within, between = crop_distances(network, store, layer, task, **options)
    mos, search = task.mos[task.train], None
    if n_trials:
        groups = task.content[task.train]
        how = {"n_trials": n_trials, "seed": task.seed, "groups": groups, "device": task.device}
        search = search_noise(within, mos, **how)
        process = search.process
    else:
        process = fit_gaussian_process(within, mos, tolerance=1e-7, device=task.device)
    pred, sd = average_crops(process, between)
    labels = {"network": layer.network, "layer": layer.name, "regressor": "GPR"}
    return task.table(pred, sd=sd, cv_rmse=np.nan, **labels), process, search


def time_prediction(
    network: nn.Module,
    store: ImageStore,
    layer: Layer,
    task: Task,
    process: GaussianProcess,
    *,
    side: int,
    n_crops: int,
    n_images: int = 5,
) -> dict[str, float]:
    """Time the final method on single images, nothing cached.

    Args:
        network: Network to tap.
        store: Decoded images.
        layer: The layer that the process was fitted on.
        task: Its first test images are timed.
        process: The fitted process.
        side: Crop height and width, pixels.
        n_crops: Crops an image.
        n_images: Images to take the median over, after one that warms up.

    Returns:
        Seconds an image: ``features`` (all crops, batches of one) and ``prediction``.
    """
    single = [replace(task, test=task.test[i : i + 1]) for i in range(n_images + 1)]
    options = {"pooling": "flatten", "cache_dir": None, "batch_size": 1}
    features, prediction = [], []
    for one in single:
        started = time.perf_counter()
        for k in range(n_crops):
            crop = Crop((side, side), k, task.seed)
            frozen_layers(network, store, [layer.module], rows=one.test, crop=crop, **options)
        features.append(time.perf_counter() - started)
        distances = np.ones((n_crops, 1, len(task.train)))
        started = time.perf_counter()
        average_crops(process, distances)
        prediction.append(time.perf_counter() - started)
    return {
        "features": float(np.median(features[1:])),
        "prediction": float(np.median(prediction[1:])),
    }

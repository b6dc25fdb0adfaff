"""The final method of ahmed2020: a Gaussian process on logits, predictions averaged over crops.

On each data set by itself (Table 4) and from one family of sets to the others (Tables 5 to 7).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from iqa_utils.features import Crop, frozen_features, iterate_layers
from iqa_utils.features.grams import squared_distances
from iqa_utils.features.layers import NETWORKS, Layer
from iqa_utils.regression.gaussian_process import (
    GaussianProcess,
    NoiseSearch,
    fit_gaussian_process,
    search_noise,
)
from iqa_utils.studies.deep_quality import CATEGORIES, paper_sets, to_own_scale
from iqa_utils.studies.layer_regression import Task, make_task

if TYPE_CHECKING:
    from iqa_utils.images import ImageStore
    from iqa_utils.studies.finetune import Tuner


def crop_distances(
    network: nn.Module,
    store: ImageStore,
    layer: Layer,
    task: Task,
    *,
    n_crops: int,
    side: int = 0,
    cache_dir: str | Path,
    batch_size: int = 32,
) -> tuple[np.ndarray, np.ndarray]:
    """Measure distances between crops of one narrow layer, for ten-crop averaging.

    Args:
        network: Network to tap.
        store: Decoded images.
        layer: A layer that gives vectors (the paper's 1000 logits).
        task: Training images, of which one crop is used, and test images, with ``n_crops`` each.
        n_crops: Crops a test image.
        side: Crop height and width in pixels; 0 is the network's own.
        cache_dir: Folder of the feature cache.
        batch_size: Images a forward pass.

    Returns:
        Training distances (N, N) and test distances (n_crops, M, N).

    Raises:
        ValueError: If the layer is wide;
            :func:`iqa_utils.studies.layer_regression.predict_layers` serves those.
    """
    if not layer.is_vector:
        raise ValueError(f"{layer.network} {layer.name} gives {layer.size} values, not a vector")
    description = NETWORKS[layer.network]
    options = {"pooling": "flatten", "mean": description.mean, "std": description.std}
    options |= {"cache_dir": cache_dir, "batch_size": batch_size}
    side = side or description.side

    def encode(rows: np.ndarray, number: int) -> np.ndarray:
        crop = Crop((side, side), number, task.crop_seed)
        x = frozen_features(network, store, layer=layer.module, rows=rows, crop=crop, **options)
        return x.astype(np.float64)

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
    n_crops: int,
    side: int = 0,
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
        n_crops: Crops of each test image; the paper takes 10.
        side: Crop height and width in pixels; 0 is the network's own.
        cache_dir: Folder of the feature cache.
        n_trials: Evaluations of the noise search (the paper's way); 0 takes the likelihood's noise.
        batch_size: Images a forward pass.

    Returns:
        Predictions as :func:`iqa_utils.studies.layer_regression.predict_layers` gives them, the
        process, and the search if any.
    """
    options = {"side": side, "n_crops": n_crops, "cache_dir": cache_dir, "batch_size": batch_size}
    within, between = crop_distances(network, store, layer, task, **options)
    mos, search = task.mos[task.train], None
    if n_trials:
        groups = task.content[task.train]
        how = {"n_folds": task.n_folds, "seed": task.seed, "groups": groups}
        search = search_noise(within, mos, n_trials=n_trials, device=task.device, **how)
        process = search.process
    else:
        process = fit_gaussian_process(within, mos, tolerance=1e-7, device=task.device)
    pred, sd = average_crops(process, between)
    labels = {"network": layer.network, "layer": layer.name, "regressor": "GPR"}
    return task.table(pred, sd=sd, cv_rmse=np.nan, **labels), process, search


def predict_own_sets(
    tuner: Tuner,
    layer: Layer,
    parts: np.ndarray,
    modes: Sequence[str],
    *,
    task_options: Mapping[str, Any],
    **options: Any,
) -> tuple[pd.DataFrame, dict[tuple[str, str], NoiseSearch]]:
    """Run the final method on each data set by itself (Table 4).

    Args:
        tuner: Gives the network fine-tuned on the training part of a set.
        layer: A layer that gives vectors.
        parts: Part of each row of the tuner's table.
        modes: Ways to fine-tune, out of :data:`iqa_utils.studies.finetune.MODES`.
        task_options: Fields of :class:`iqa_utils.studies.layer_regression.Task` (seed, device).
        **options: For :func:`predict_final`.

    Returns:
        Predictions with ``dataset`` (the ledger's name), ``variant`` (mode) and ``seed``, and the
        noise searches by data set and mode.
    """
    found, searches = [], {}
    for mode in modes:
        for name, rows in paper_sets(tuner.frame).items():
            own = [str(tuner.frame.loc[rows[0], "dataset"])]
            task = make_task(tuner.frame, rows, parts, **task_options)
            network = tuner(layer.network, mode, own)
            pred, _, search = predict_final(network, tuner.store, layer, task, **options)
            found.append(pred.assign(dataset=name, variant=mode, seed=task.seed))
            searches[name, mode] = search
            del network  # before the next one is built
    return pd.concat(found, ignore_index=True), searches


def predict_other_sets(
    tuner: Tuner,
    layer: Layer,
    modes: Sequence[str],
    *,
    task_options: Mapping[str, Any],
    **options: Any,
) -> pd.DataFrame:
    """Train on one family of sets and test on all others (Tables 5 to 7), in standardised scores.

    Args:
        tuner: Gives the network fine-tuned on a family.
        layer: A layer that gives vectors.
        modes: Ways to fine-tune.
        task_options: Fields of :class:`iqa_utils.studies.layer_regression.Task` (seed, device).
        **options: For :func:`predict_final`.

    Returns:
        Predictions on the scales of the test sets with ``table``, ``category``, ``dataset``,
        ``variant`` and ``seed``; an empty table with these columns where there is one family only.
    """
    frame = tuner.frame
    columns = ["table", "category", "dataset", "variant"]
    found = [pd.DataFrame(columns=columns)]
    mos, content = frame["mos_z"].to_numpy(), frame["content"].to_numpy()
    for mode, (category, (table, members)) in product(modes, CATEGORIES.items()):
        train = np.flatnonzero(frame["dataset"].isin(members))
        others = {
            name: rows for name, rows in paper_sets(frame).items() if not np.isin(rows, train).any()
        }
        if not len(train) or not others:
            continue
        test = np.unique(np.concatenate(list(others.values())))  # one process serves them all
        task = Task(mos, content, train, test, **task_options)
        network = tuner(layer.network, mode, members, whole=True)
        pred, *_ = predict_final(network, tuner.store, layer, task, **options)
        del network  # before the next one is built
        for name, rows in others.items():
            labels = dict(zip(columns, (table, category, name, mode), strict=True))
            own = to_own_scale(pred[pred["row"].isin(rows)], frame)
            found.append(own.assign(**labels, seed=task.seed))
    return pd.concat(found[1:] or found, ignore_index=True)


def time_prediction(
    network: nn.Module,
    store: ImageStore,
    layer: Layer,
    task: Task,
    process: GaussianProcess,
    *,
    n_crops: int,
    side: int = 0,
    n_images: int = 5,
) -> dict[str, float]:
    """Time the final method on single images, nothing cached.

    Args:
        network: Network to tap.
        store: Decoded images.
        layer: The layer that the process was fitted on.
        task: Its first test images are timed.
        process: The fitted process.
        n_crops: Crops an image.
        side: Crop height and width in pixels; 0 is the network's own.
        n_images: Images to take the median over, after one that warms up.

    Returns:
        Seconds an image: ``features`` (all crops, batches of one) and ``prediction``.
    """
    side = side or NETWORKS[layer.network].side
    distances = np.ones((n_crops, 1, len(process.alpha)))
    features, prediction = [], []
    for row in task.test[: n_images + 1]:
        started = time.perf_counter()
        for k in range(n_crops):
            crop = Crop((side, side), k, task.crop_seed)
            list(iterate_layers(network, store, [layer.module], rows=[row], crop=crop))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        features.append(time.perf_counter() - started)
        started = time.perf_counter()
        average_crops(process, distances)
        prediction.append(time.perf_counter() - started)
    medians = (float(np.median(seconds[1:])) for seconds in (features, prediction))
    return dict(zip(("features", "prediction"), medians, strict=True))

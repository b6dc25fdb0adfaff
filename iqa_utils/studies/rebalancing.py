"""Train the same head on the same vectors under different treatments of rare scores.

A :class:`Recipe` says what is done about imbalance, :class:`HeadSettings` everything else. Encoder
vectors are computed once for all trainings, which makes a hundred of them a matter of minutes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm

from iqa_utils.backbones import weights_hash
from iqa_utils.imbalance import KernelShape, Reweighting, Variant, lds_weights, smoothing_kernel
from iqa_utils.losses import balanced_mse, weighted_l1, weighted_mse
from iqa_utils.metrics import mae, per_range, range_index, srcc
from iqa_utils.models.clip_head import ClipHead
from iqa_utils.training import Batch, FitResult, fit, tensor_batches
from iqa_utils.training.checkpoints import data_digest
from iqa_utils.workshop.parameters import check_overrides

Loss = Literal["l1", "mse", "balanced_mse"]


@dataclass(frozen=True)
class Recipe:
    """What one method does about rare scores.

    Attributes:
        reweight: Loss weights: ``none``, ``inverse`` or ``sqrt_inv`` of the label density.
        kernel: Shape of the window that smooths the density, or None for no smoothing.
        size: Its length in bins (an even n counts as n - 1).
        sigma: Its width in bins.
        mean: Its centre in bins, 0 but for the literal reading of N(12, 10).
        order: Root before or after smoothing, see :func:`iqa_utils.imbalance.lds_density`.
        released_counts: Clip counts to 5 and 1,000 and drop the fractions of smoothed ones, as the
            released ``inverse`` does on its age data.
        by_range: Weigh by the images per range of the paper's tables instead of per bin.
        loss: Loss, or None for that of the settings.
        fds: Variant of feature distribution smoothing, or None.
        after: Recipe whose trained head this one goes on from; None starts from scratch.
    """

    reweight: Reweighting = "none"
    kernel: KernelShape | None = None
    size: int = 12
    sigma: float = 10.0
    mean: float = 0.0
    order: Literal["root_first", "smooth_first"] = "root_first"
    released_counts: bool = False
    by_range: bool = False
    loss: Loss | None = None
    fds: Variant | None = None
    after: str | None = None

    def weights(self, mos: ArrayLike, settings: HeadSettings) -> np.ndarray:
        """Return the loss weight of each training score (N,), averaging 1."""
        kernel = None
        if self.kernel is not None:
            kernel = smoothing_kernel(self.kernel, size=self.size, sigma=self.sigma, mean=self.mean)
        edges = settings.range_edges if self.by_range else settings.bin_edges
        options = {"kernel": kernel, "reweight": self.reweight, "order": self.order}
        if self.released_counts:
            options |= {"clip": (5, 1000), "truncate": True}
        return lds_weights(mos, edges=edges, **options)


LDS = Recipe("sqrt_inv", "released")
RECIPES: dict[str, Recipe] = {
    "vanilla": Recipe(),
    "LDS": LDS,
    "LDS + FDS": replace(LDS, fds="corrected"),
    "LDS + FDS, released": replace(LDS, fds="released_agedb"),
    "LDS + FDS, released (STS-B)": replace(LDS, fds="released_stsb"),
    "LDS, then FDS": replace(LDS, fds="corrected", after="LDS"),
    "FDS": Recipe(fds="corrected"),
    "sqrt_inv": Recipe("sqrt_inv"),
    "inverse": Recipe("inverse"),
    "LDS, inverse": Recipe("inverse", "released"),
    "LDS, inverse, released": Recipe("inverse", "released", released_counts=True),
    "LDS, kernel (5, 2)": replace(LDS, size=5, sigma=2.0),
    "LDS, smooth first": replace(LDS, order="smooth_first"),
    "LDS, true Gaussian": replace(LDS, kernel="gaussian", size=61),
    "LDS, literal N(12, 10)": replace(LDS, kernel="gaussian", size=81, mean=12.0),
    "MSE": Recipe(loss="mse"),
    "range-weighted MSE": Recipe("inverse", by_range=True, loss="mse"),
    "balanced MSE": Recipe(loss="balanced_mse"),
}


@dataclass(frozen=True)
class HeadSettings:
    """Everything about a training but the treatment of rare scores.

    Attributes:
        bin_edges: Edges of the label bins and feature buckets; the paper's are 0, 1, ..., 100.
        range_edges: Edges of the ranges that errors are reported in.
        width: Width of the head's residual blocks.
        depth: Number of residual blocks.
        neck: Features that are smoothed.
        epochs: Epochs of a training.
        batch_size: Images a step.
        learning_rate: Of Adam: 1e-3 on standardised targets; the paper uses 0.1 on raw ones.
        standardise: Standardise targets by the training scores; False trains on raw scores.
        loss: ``l1`` (the metric of the paper, which names no loss) or ``mse``.
        noise: For balanced MSE, in standard deviations of the training scores.
        select: What picks the epoch, smallest first: ``val_mae``, ``val_balanced_mae``, or ``last``
            for the last one.
    """

    bin_edges: tuple[float, ...]
    range_edges: tuple[float, ...]
    width: int = 768
    depth: int = 2
    neck: int = 256
    epochs: int = 200
    batch_size: int = 256
    learning_rate: float = 1e-3
    standardise: bool = True
    loss: Literal["l1", "mse"] = "l1"
    noise: float = 0.5
    select: str = "val_mae"


class HeadRun(NamedTuple):
    """A trained head, its predictions for all N images (N,), and how it got there."""

    head: ClipHead
    pred: np.ndarray
    fit: FitResult


def balanced_mean(mos: ArrayLike, error: ArrayLike, edges: Sequence[float]) -> float:
    """Return the mean over ranges of the mean error in each: every range counts the same.

    Args:
        mos: Scores, shape (N,).
        error: Absolute errors, shape (N,).
        edges: Edges of the ranges; ranges with fewer than two images are left out.

    Returns:
        Score units; NaN if no range holds two images.
    """
    inside, n_ranges = range_index(mos, edges), len(edges) - 1
    counts = np.bincount(inside, minlength=n_ranges)
    sums = np.bincount(inside, weights=error, minlength=n_ranges)
    held = counts > 1
    return float(np.mean(sums[held] / counts[held])) if held.any() else float("nan")


def train_head(
    features: Tensor,
    mos: ArrayLike,
    split: ArrayLike,
    recipe: Recipe,
    settings: HeadSettings,
    *,
    seed: int,
    start: Mapping[str, Tensor] | None = None,
    checkpoint_dir: Path | None = None,
    save_seconds: float = 60.0,
) -> HeadRun:
    """Train one head on cached vectors.

    Args:
        features: Encoder vectors of all images, shape (N, D), on the device to train on.
        mos: Scores, shape (N,), inside the edges of the settings.
        split: Part of each image, shape (N,): "training", "validation", others are only predicted.
        recipe: Treatment of rare scores.
        settings: Everything else.
        seed: Decides initial weights and the order of images.
        start: State of a trained head to go on from (``recipe.after``).
        checkpoint_dir: Where trainings are kept by a hash of what decides them, or None.
        save_seconds: Time between saved states of an unfinished training.

    Returns:
        Head with the weights of its best epoch, predictions of all N images, and the history: one
        row an epoch with ``val_mae``, ``val_balanced_mae``, ``val_srcc`` and, by range,
        ``train_mae 0-20`` and ``val_mae 0-20``.

    Raises:
        ValueError: If a score lies outside the edges or an option is impossible.

    Note:
        The second pass that feature smoothing makes over the training part comes at the start of
        the next epoch, before anything changed, so that an interrupted training finds its place.
    """
    mos, split = np.array(mos, dtype=np.float64), np.asarray(split)  # copied: pandas is read-only
    train, validation = (np.flatnonzero(split == part) for part in ("training", "validation"))
    torch.manual_seed(seed)
    head = _make_head(features.shape[1], mos[train], recipe, settings).to(features.device)
    head.standardise(features[train])
    if start is not None:
        head.load_state_dict(start, strict=False)
    rows = {part: np.flatnonzero(split == part) for part in np.unique(split)}
    config = {"recipe": asdict(recipe), "settings": asdict(settings)}
    config |= {"data": data_digest(rows, mos), "weights": weights_hash(head)}
    config["features"] = hashlib.sha256(features.cpu().numpy().tobytes()).hexdigest()
    weight = np.ones(len(mos))
    weight[train] = recipe.weights(mos[train], settings)
    scores = torch.as_tensor(mos, dtype=torch.float32, device=features.device)
    shown = 0  # epoch that is trained, from 0
    loss, noise = recipe.loss or settings.loss, settings.noise * mos[train].std()

    def train_batches(epoch: int) -> Iterator[Batch]:
        nonlocal shown
        shown = epoch
        head.end_epochs(epoch, features[train], scores[train])
        return tensor_batches(
            features, train, mos, batch_size=settings.batch_size, seed=seed, epoch=epoch,
            device=features.device, weight=weight,
        )  # fmt: skip

    def loss_step(model: ClipHead, batch: Batch) -> Tensor:
        pred = model(*batch.inputs, batch.mos)
        if loss == "balanced_mse":
            return balanced_mse(pred, batch.mos, noise=noise)
        return (weighted_l1 if loss == "l1" else weighted_mse)(pred, batch.mos, batch.weight)

    def evaluate(model: ClipHead) -> dict[str, float]:
        pred = predict_vectors(model, features)
        by_part = {"train": train, "val": validation}
        metrics = {"last": -shown}  # falls, so that the smallest is the last
        for part, rows in by_part.items():
            errors = per_range(mos[rows], pred[rows], mae, settings.range_edges)
            metrics |= {f"{part}_mae {name}": value for name, value in errors.items()}
        rows = validation
        metrics["val_mae"] = mae(mos[rows], pred[rows])
        metrics["val_balanced_mae"] = balanced_mean(
            mos[rows], np.abs(pred - mos)[rows], settings.range_edges
        )
        metrics["val_srcc"] = srcc(mos[rows], pred[rows])
        return metrics

    result = fit(
        head, train_batches, loss_step=loss_step, evaluate=evaluate,
        optimizer=torch.optim.Adam(head.parameters(), lr=settings.learning_rate, fused=True),
        epochs=settings.epochs, select=settings.select, mode="min",
        checkpoint_dir=checkpoint_dir, save_seconds=save_seconds, config=config, seed=seed,
        progress=False,
    )  # fmt: skip
    return HeadRun(head, predict_vectors(head, features), result)


def train_recipes(
    features: Tensor,
    frame: pd.DataFrame,
    split: pd.Series,
    names: Sequence[str],
    settings: HeadSettings,
    *,
    seeds: Sequence[int],
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    checkpoint_dir: Path | None = None,
    save_seconds: float = 60.0,
    progress: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train every recipe with every seed on the same vectors.

    A killed run finds its finished trainings in ``checkpoint_dir`` and goes on with the other.

    Args:
        features: Encoder vectors of the images of ``frame``, shape (N, D).
        frame: A table of :func:`iqa_utils.datasets.load_scores`, N rows.
        split: Part of each row.
        names: Keys of :data:`RECIPES`. A recipe that goes on from another needs that one before it.
        settings: Shared by all trainings.
        seeds: One training a recipe and seed; each one more than the last.
        overrides: Recipe to ``EPOCHS`` or ``N_SEEDS`` (from the first seed on) of its own.
        checkpoint_dir: As for :func:`train_head`.
        save_seconds: Likewise.
        progress: Show a bar on a terminal.

    Returns:
        Predictions of the test part (image, dataset, split, seed, method, variant, mos, pred), and
        the history of all epochs (``method`` and ``seed`` added).

    Raises:
        KeyError: If a name is unknown.
        ValueError: If a recipe's predecessor does not come before it, an override names no recipe
            or no such setting, or as :func:`train_head`.
    """
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        raise KeyError(f"no recipe {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    overrides = overrides or {}
    check_overrides(overrides, names, {"EPOCHS": int, "N_SEEDS": int})
    mos, parts = frame["mos"].to_numpy(), split.to_numpy()
    test = frame.loc[parts == "test", ["image", "mos"]].assign(split="test")
    test["dataset"] = frame.attrs["dataset"]
    predictions, histories, heads = [], [], {}
    needed = {RECIPES[name].after for name in names}
    jobs = [
        (seeds[0] + k, name)
        for name in names
        for k in range(overrides.get(name, {}).get("N_SEEDS", len(seeds)))
    ]
    jobs.sort(key=lambda job: job[0])  # seed by seed
    for seed, name in tqdm(jobs, disable=None if progress else True):
        recipe = RECIPES[name]
        if recipe.after is not None and (seed, recipe.after) not in heads:
            raise ValueError(f"recipe {name!r} goes on from {recipe.after!r}, list that before it")
        own = replace(settings, epochs=overrides.get(name, {}).get("EPOCHS", settings.epochs))
        run = train_head(
            features, mos, parts, recipe, own, seed=seed, start=heads.get((seed, recipe.after)),
            checkpoint_dir=checkpoint_dir, save_seconds=save_seconds,
        )  # fmt: skip
        if name in needed:
            heads[seed, name] = run.head.state_dict()
        label = {"method": name, "seed": seed, "variant": recipe.fds or ""}
        predictions.append(test.assign(pred=run.pred[parts == "test"], **label))
        histories.append(run.fit.history.assign(**label))
    return pd.concat(predictions, ignore_index=True), pd.concat(histories, ignore_index=True)


@torch.inference_mode()
def predict_vectors(head: ClipHead, features: Tensor, *, batch_size: int = 4096) -> np.ndarray:
    """Return the predictions (N,) of a head in evaluation mode for vectors (N, D)."""
    head.eval()
    return torch.cat([head(part) for part in features.split(batch_size)]).double().cpu().numpy()


def _make_head(
    n_features: int, training_mos: np.ndarray, recipe: Recipe, settings: HeadSettings
) -> ClipHead:
    moments: dict[str, Any] = {}
    if settings.standardise:
        moments = {"mos_mean": training_mos.mean(), "mos_std": training_mos.std()}
    fds = None
    if recipe.fds is not None:
        fds = {"edges": settings.bin_edges, "variant": recipe.fds}
    sizes = {"width": settings.width, "depth": settings.depth, "neck": settings.neck}
    return ClipHead(n_features, **sizes, **moments, fds=fds)

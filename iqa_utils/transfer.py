"""Train teachers and students for a stated number of steps: only what they learn from differs.

The paper compares a network trained on few scores with one trained on many labels. Here both take
the same number of steps from an endless, reshuffled stream of their rows, nothing is selected on
scores, and the last weights count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iqa_utils.batches import Augment, Batch, epoch_seed, store_batches, tensor_batches
from iqa_utils.distill import Teacher
from iqa_utils.features import frozen_features
from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD, ImageStore, augment, to_float
from iqa_utils.metrics import rmse, srcc
from iqa_utils.models.koncept import KonCept
from iqa_utils.schedules import constant_then_halved
from iqa_utils.statistics import bootstrap_ci
from iqa_utils.training import FitResult, fit, predict
from iqa_utils.unlabelled import crop_batches

Stream = Callable[..., Iterator[Batch]]


def endless_rows(rows: np.ndarray, start: int, n: int, *, seed: int) -> np.ndarray:
    """Cut a piece out of an endless sequence that shows every row once before any row again.

    Args:
        rows: Rows to show, R of them.
        start: Position of the piece, 0 or more.
        n: Its length.
        seed: Each pass over the rows is shuffled by ``(seed, pass)``.

    Returns:
        Rows, shape (n,); neighbouring pieces fit together whatever their lengths.
    """
    first, last = start // len(rows), (start + n - 1) // len(rows)
    passes = [
        np.random.default_rng(epoch_seed(seed, number)).permutation(rows)
        for number in range(first, last + 1)
    ]
    offset = start - first * len(rows)
    return np.concatenate(passes)[offset : offset + n]


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of a batch, the only change that leaves quality as it was."""
    return augment(images, generator=generator)


def file_batches(
    paths: Sequence[Path],
    crop: tuple[int, int],
    rows: np.ndarray,
    scores: np.ndarray,
    *,
    batch_size: int,
    epoch: int = 0,
    augment: Augment | None = None,
    device: torch.device | str = "cpu",
    workers: int | None = None,
) -> Iterator[Batch]:
    """Stream central crops from their files, for sets too large to keep decoded.

    Args:
        paths: Image files, N of them.
        crop: Height and width, pixels.
        rows: Files to show, in this order.
        scores: One score a file, shape (N,).
        batch_size: Images a batch.
        epoch: Seeds ``augment``.
        augment: Function of (uint8 images, generator).
        device: Where the batches go.
        workers: Decoding threads; by default one a core.

    Yields:
        Batches whose input is normalised float32 images, shape (B, 3, height, width).
    """
    generator = torch.Generator().manual_seed(epoch_seed(0, epoch))
    groups = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    names = [str(path) for path in paths]
    for group, crops, _ in crop_batches(paths, groups, crop, workers=workers):
        images = crops.to(device)
        if augment is not None:
            images = augment(images, generator)
        images = to_float(images, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        mos = torch.as_tensor(scores[group], dtype=torch.float32, device=device)
        yield Batch((images,), mos, torch.from_numpy(group), names=names)


def train(
    model: nn.Module,
    stream: Stream,
    rows: np.ndarray,
    scores: np.ndarray,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    halve_every: int,
    looks: int,
    watch: Mapping[str, np.ndarray],
    seed: int,
    augment: Augment | None = flip,
    checkpoint_dir: Path | None = None,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> FitResult:
    """Train on squared error for a number of steps and keep the last weights.

    Adam, halving its rate at regular steps: 100,000 steps of 10 images, 1e-4 halved every 20,000,
    are the paper's. The loss is in units of the variance of the scores that are learned.

    Args:
        model: Network on its device; output on the scale of the scores.
        stream: ``stream(rows, scores, batch_size=..., epoch=...)`` gives batches of these rows.
        rows: Rows to learn from.
        scores: What to learn, for every row of the stream, shape (N,); NaN where unknown.
        steps: Gradient steps, a multiple of ``looks``.
        batch_size: Images a step.
        learning_rate: Initial rate.
        halve_every: Steps.
        looks: How many times the curves are measured.
        watch: Name to rows whose SRCC and RMSE make a curve.
        seed: Order and augmentation.
        augment: Variation of training images; None for streams without pixels.
        checkpoint_dir: As :func:`iqa_utils.training.fit`.
        config: What else decides the outcome.
        **options: Passed on to :func:`iqa_utils.training.fit`.

    Returns:
        The result; its history has ``step``, ``train_loss`` and, for each name watched,
        ``NAME_srcc`` and ``NAME_rmse``.

    Raises:
        ValueError: If the steps are no multiple of the looks, or a score to learn is unknown.

    Note:
        The paper names neither optimiser nor loss.
    """
    if steps % looks:
        raise ValueError(f"steps must be a multiple of looks, got {steps} and {looks}")
    learned = np.asarray(scores)[rows]
    if not np.isfinite(learned).all():
        raise ValueError(f"{np.isnan(learned).sum()} of {len(rows)} rows have no score to learn")
    n = steps // looks * batch_size  # images between looks
    variance = float(learned.var()) or 1.0
    vary = {} if augment is None else {"augment": augment}
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    scheduler = constant_then_halved(optimizer, every=halve_every)

    def evaluate(network: nn.Module) -> dict[str, float]:
        values = {"step": float(scheduler.last_epoch)}
        for name, part in watch.items():
            pred = predict(network, stream(part, scores, batch_size=batch_size))
            values[f"{name}_srcc"] = srcc(scores[part], pred)
            values[f"{name}_rmse"] = rmse(scores[part], pred)
        return values

    return fit(
        model,
        lambda look: stream(
            endless_rows(rows, look * n, n, seed=seed),
            scores,
            batch_size=batch_size,
            epoch=look,
            **vary,
        ),
        loss_step=lambda network, batch: F.mse_loss(network(*batch.inputs), batch.mos) / variance,
        evaluate=evaluate,
        optimizer=optimizer,
        scheduler=scheduler,
        schedule_each="batch",
        epochs=looks,
        select="step",
        checkpoint_dir=checkpoint_dir,
        config=config or {},
        seed=seed,
        **options,
    )


class PooledHead(nn.Module):
    """The head of a KonCept network on features of its trunk that were computed before.

    Args:
        network: Shares its head: training this trains that.
    """

    def __init__(self, network: KonCept) -> None:
        super().__init__()
        self.head = network.head
        self.mos_mean, self.mos_std = network.mos_mean, network.mos_std

    def forward(self, features: Tensor) -> Tensor:
        """Return scores (B,) of pooled features (B, F)."""
        return self.head(features).squeeze(1) * self.mos_std + self.mos_mean


def train_teacher(
    store: ImageStore,
    rows: np.ndarray,
    scores: np.ndarray,
    *,
    backbone: str,
    pretrained: str | Path | None,
    freeze_trunk: bool,
    saw: Sequence[str],
    cache_dir: Path,
    device: torch.device | str = "cpu",
    widths: tuple[int, ...] = (2048, 1024, 256),
    seed: int,
    **options: Any,
) -> tuple[Teacher, FitResult]:
    """Train a KonCept network on the scores of some rows.

    Args:
        store: Images squashed to the teacher's input size.
        rows: Rows to learn from; never another one's score is touched.
        scores: Shape (N,).
        backbone: timm name of the trunk.
        pretrained: Its weights, as :func:`iqa_utils.backbones.create_backbone`.
        freeze_trunk: Encode every image once and train the head alone.
        saw: ``"dataset/part"`` of the rows, kept with the teacher.
        cache_dir: Of features.
        device: Where to train.
        widths: Of the three layers of the head.
        seed: Initial weights, order and dropout.
        **options: As :func:`train`.

    Returns:
        The teacher and the history of its training.
    """
    torch.manual_seed(seed)
    network = KonCept(
        backbone,
        widths=widths,
        mos_mean=float(scores[rows].mean()),
        mos_std=float(scores[rows].std()),
        pretrained=pretrained,
    ).to(device)
    if freeze_trunk:
        network.trunk.requires_grad_(False)
        features = frozen_features(network.trunk, store, pooling="mean", cache_dir=cache_dir)
        stream = partial(tensor_batches, torch.from_numpy(features), device=device)
        options = {**options, "augment": None}
        result = train(PooledHead(network), stream, rows, scores, seed=seed, **options)
    else:
        stream = partial(store_batches, store, device=device)
        result = train(network, stream, rows, scores, seed=seed, **options)
    height, width = store.sizes[0].tolist()
    teacher = Teacher(network.eval(), (height, width), IMAGENET_MEAN, IMAGENET_STD, tuple(saw))
    return teacher, result


@torch.inference_mode()
def predict_any_size(
    model: nn.Module,
    store: ImageStore,
    rows: np.ndarray,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> np.ndarray:
    """Predict whole images of a store whose sizes may differ; equal ones share a batch.

    Args:
        model: Network for images of any size.
        store: Decoded images.
        rows: Rows wanted.
        batch_size: Most images a batch.
        device: Where to compute.
        precision: ``"fp32"`` or ``"bf16"``.

    Returns:
        Predictions in the order of ``rows``, shape (N,), float64.
    """
    sizes = np.asarray(store.sizes)[rows]
    pred = np.empty(len(rows))
    model = model.to(device).eval()
    for size in np.unique(sizes, axis=0):
        same = np.flatnonzero((sizes == size).all(axis=1))
        for start in range(0, len(same), batch_size):
            part = same[start : start + batch_size]
            crops = store.crops(rows[part], tuple(size.tolist())).to(device)
            images = to_float(crops, mean=IMAGENET_MEAN, std=IMAGENET_STD)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
                pred[part] = model(images).double().reshape(-1).cpu().numpy()
    return pred


def score_table(
    predictions: pd.DataFrame, *, n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Turn predictions into SRCC with intervals, in total and within subsets.

    Args:
        predictions: One row an image and method: ``table``, ``method``, ``variant``, ``dataset``,
            ``subset``, ``mos``, ``pred``.
        n_resamples: Bootstrap resamples of an interval.
        seed: Of the resamples.

    Returns:
        One row a number: ``table``, ``method``, ``variant``, ``dataset``, ``metric`` (``SRCC``, and
        ``SRCC SUBSET`` where a set has several), ``value``, ``ci_low``, ``ci_high``, ``n``.
    """
    rows = []
    keys = ["table", "method", "variant", "dataset"]
    for group, part in predictions.groupby(keys, sort=False):
        pieces = {"SRCC": part}
        if part["subset"].nunique() > 1:
            pieces |= {f"SRCC {name}": piece for name, piece in part.groupby("subset")}
        for metric, piece in pieces.items():
            mos, pred = piece["mos"].to_numpy(), piece["pred"].to_numpy()
            low, high = bootstrap_ci(mos, pred, srcc, n_resamples=n_resamples, seed=seed)
            row = dict(zip(keys, group, strict=True)) | {"metric": metric, "value": srcc(mos, pred)}
            rows.append(row | {"ci_low": low, "ci_high": high, "n": len(piece)})
    return pd.DataFrame(rows)

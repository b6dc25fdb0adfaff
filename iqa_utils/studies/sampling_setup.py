"""What the trainings of the cross-sampling paper are made of: scenarios, recipes, indicators."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD
from iqa_utils.indicators import measure_all
from iqa_utils.models.branch import count_parameters
from iqa_utils.models.dual_xception import Fusion, Inputs
from iqa_utils.samplers import Method

SETTINGS = {"EPOCHS": int, "N_RUNS": int, "PRECISION": str, "COMPILE": bool}
SELECT = {"total": ("val_rmse", "min"), "range_sum": ("val_range_sum", "min"),
          "srcc": ("val_srcc", "max")}  # fmt: skip
INDICATORS = ("brightness", "contrast", "sharpness", "bitrate")


@dataclass(frozen=True)
class Scenario:
    """What tells one training from another.

    Attributes:
        network: ``"dual"`` or ``"koncept"``.
        inputs: What the dual network sees.
        fusion: How it takes the indicators in.
        sampler: Which images an epoch shows.
        loss: ``"mse"``, or ``"range-weighted"`` as the alternative to sampling.
    """

    network: Literal["dual", "koncept"] = "dual"
    inputs: Inputs = "both"
    fusion: Fusion = "dual"
    sampler: Method = "none"
    loss: Literal["mse", "range-weighted"] = "mse"


@dataclass(frozen=True)
class Recipe:
    """How every network of a study is trained.

    Attributes:
        backbone: timm name of the trunks of the dual network.
        koncept_backbone: timm name of KonCept512's trunk.
        pretrained: Weights of the image trunks.
        variant: Construction of :class:`iqa_utils.models.dual_xception.DualXception`.
        pooling: Of the dual network's branches.
        plane_size: Side of the indicator planes, pixels; 0 makes them as large as the image.
        frozen: Last frozen layer of the image trunks; empty trains all.
        ridge_start: Begin the dual network's head with ridge regression on the untrained features.
        freeze_statistics: Keep the image trunk's batch normalisation on its stored statistics.
        epochs: Epochs.
        batch_size: Images a batch.
        learning_rate: Of Adam, at the start.
        halve_every: Epochs after which the learning rate is halved.
        threshold: Of method 2, images.
        strong_copies: Rotate, vary contrast and add noise to repeated images of method 3, as the
            paper says; else they are only mirrored like all.
        precision: Of :func:`iqa_utils.training.fit`.
        channels_last: Likewise.
        compile: Likewise.
        mean: Normalisation of the trunks, RGB in [0, 1].
        std: Likewise.
    """

    backbone: str
    koncept_backbone: str
    pretrained: str | None
    epochs: int
    batch_size: int
    learning_rate: float
    halve_every: int
    threshold: int = 1000
    variant: str = "A"
    pooling: str = "mean"
    plane_size: int = 64
    frozen: str = ""
    ridge_start: bool = False
    freeze_statistics: bool = False
    strong_copies: bool = True
    precision: str = "fp32"
    channels_last: bool = True
    compile: bool = False
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD


@dataclass
class Training:
    """One trained network, seen from outside.

    Attributes:
        history: As :class:`iqa_utils.training.FitResult`.
        best_epoch: Epoch that was kept, from 1.
        pred: Predictions of the test part.
        parameters: Weights of the network.
        images: Images an epoch, mean over epochs.
        seconds: Training time of an epoch, mean over epochs.
    """

    history: pd.DataFrame
    best_epoch: int
    pred: np.ndarray
    parameters: int
    images: float
    seconds: float


class Runs(NamedTuple):
    """Several trainings, seen from outside.

    Attributes:
        predictions: ``method``, ``seed``, ``image``, ``split``, ``mos``, ``pred`` of the test part.
        history: One row an epoch, with ``method`` and ``seed``.
        cost: One row a training: ``images`` and ``seconds`` an epoch, ``parameters``,
            ``best_epoch``, with ``method``, ``seed``, ``network`` and ``sampler``.
    """

    predictions: pd.DataFrame
    history: pd.DataFrame
    cost: pd.DataFrame


def indicators_of(frame: pd.DataFrame, root: str | Path, cache_dir: str | Path) -> pd.DataFrame:
    """Take the four indicators from a score table, or measure the images once.

    Args:
        frame: From :func:`iqa_utils.datasets.load_scores`.
        root: Folder of the set.
        cache_dir: Folder that keeps what was measured.

    Returns:
        Columns :data:`INDICATORS`, rows as the frame.
    """
    if set(INDICATORS) <= set(frame.columns) and frame[list(INDICATORS)].notna().all(axis=None):
        return frame[list(INDICATORS)]
    key = f"{frame.attrs['dataset']}-{frame.attrs['fingerprint'][:16]}-{len(frame)}"
    path = Path(cache_dir) / f"indicators-{key}.parquet"
    if not path.is_file():
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        measure_all(root, list(frame["image"])).to_parquet(partial)
        partial.replace(path)
    return pd.read_parquet(path)[list(INDICATORS)]


def standardise(indicators: pd.DataFrame, train_rows: np.ndarray) -> Tensor:
    """Turn the four indicators into numbers of mean 0 and spread 1 on the training part.

    Sharpness and bitrate are taken as logarithms first: they are positive and long-tailed.

    Args:
        indicators: Columns :data:`INDICATORS`, N rows.
        train_rows: Rows that mean and spread are taken from.

    Returns:
        float32, shape (N, 4).

    Raises:
        ValueError: If a column is missing, or a value is not finite after the logarithm.
    """
    absent = [name for name in INDICATORS if name not in indicators]
    if absent:
        raise ValueError(f"indicators need the columns {list(INDICATORS)}, missing {absent}")
    table = indicators[list(INDICATORS)].astype(float)
    for name in ("sharpness", "bitrate"):
        table[name] = np.log(table[name].clip(lower=1e-6))
    bad = table.index[~np.isfinite(table).all(axis=1)]
    if len(bad):
        raise ValueError(f"indicators of {len(bad)} images are not finite, first row {bad[0]}")
    train = table.iloc[train_rows]
    scaled = (table - train.mean()) / train.std(ddof=0).replace(0.0, 1.0)
    return torch.tensor(scaled.to_numpy(), dtype=torch.float32)


def step_seconds(
    networks: Mapping[str, nn.Module], *, size: tuple[int, int], batch_size: int, repeats: int
) -> pd.DataFrame:
    """Time a training step of networks, in turn so that all see the same machine.

    Args:
        networks: Name to a network of images and indicators; all on one device.
        size: Height and width, pixels.
        batch_size: Images a step.
        repeats: Timed steps of each; one more warms up.

    Returns:
        One row a network: ``millions`` of weights, median ``seconds`` a step, and ``ratio`` to the
        first one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    device = next(next(iter(networks.values())).parameters()).device
    images = torch.randn(batch_size, 3, *size, device=device)
    numbers = torch.zeros(batch_size, 4, device=device)
    for repeat in range(repeats + 1):
        for name, network in networks.items():
            started = time.perf_counter()
            network.zero_grad()
            network(images, numbers).square().mean().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    table = pd.DataFrame({"millions": {n: count_parameters(m) / 1e6 for n, m in networks.items()}})
    table["seconds"] = pd.Series({name: float(np.median(v)) for name, v in seconds.items()})
    table["ratio"] = table["seconds"] / table["seconds"].iloc[0]
    return table

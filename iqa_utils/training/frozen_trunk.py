"""What the frozen beginning of a network makes of every image, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iqa_utils.backbones import weights_hash
from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD, ImageStore, to_float
from iqa_utils.models.pooled_trunk import PooledTrunk
from iqa_utils.training.batches import Batch, epoch_seed, tensor_batches


@torch.no_grad()  # not inference mode: a store reuses the memory of its batches
def stem_activations(
    branch: PooledTrunk,
    store: ImageStore,
    *,
    cache_dir: str | Path | None,
    batch_size: int = 8,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Run the frozen layers over every image and its mirror image, or read the cached result.

    Args:
        branch: Trunk with a frozen beginning, on the device to use.
        store: Decoded images of one size, N of them.
        cache_dir: Folder of the cache; None computes and keeps nothing.
        batch_size: Images a forward pass.
        mean: Normalisation, RGB in [0, 1].
        std: Normalisation.

    Returns:
        float16, shape (2 N, C, h, w), channels-last, on the CPU: all images, then all mirrored.

    Note:
        Half precision halves the memory; trained layers see its rounding (2e-4 relative).
    """
    recipe = f"{store.key}|{weights_hash(branch)}|{branch.frozen}|{list(mean)}|{list(std)}"
    name = f"stem-{hashlib.sha256(recipe.encode()).hexdigest()[:24]}.npy"
    path = None if cache_dir is None else Path(cache_dir) / name
    if path is not None and path.is_file():
        return torch.from_numpy(np.load(path)).permute(0, 3, 1, 2)
    device = next(branch.parameters()).device
    branch.eval().to(memory_format=torch.channels_last)
    parts: list[list[Tensor]] = [[], []]
    for rows in torch.arange(len(store)).split(batch_size):
        images = to_float(store.batch(rows, device=device), mean=mean, std=std)
        for mirrored, part in enumerate(parts):
            maps = branch.stem(images.flip(3) if mirrored else images)
            part.append(maps.permute(0, 2, 3, 1).half().cpu())  # (B, h, w, C)
    array = torch.cat(parts[0] + parts[1])
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.stem}.{os.getpid()}.npy")
        np.save(partial, array.numpy())
        partial.replace(path)
    return array.permute(0, 3, 1, 2)


def stem_batches(
    activations: Tensor,
    rows: np.ndarray,
    mos: np.ndarray,
    *,
    batch_size: int,
    seed: int | None = None,
    epoch: int = 0,
    extra_inputs: Tensor | None = None,
    names: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Stream activations in place of images; with a seed each one is mirrored by a coin.

    Args:
        activations: From :func:`stem_activations`, shape (2 N, C, h, w).
        rows: Images of this epoch, 0 to N - 1, repeats allowed.
        mos: Scores, shape (N,).
        batch_size: Images a batch.
        seed: Shuffles and mirrors by ``(seed, epoch)``; None does neither.
        epoch: Counted from 0.
        extra_inputs: Further input of the network, shape (N, D).
        names: Image names, N values.
        device: Where the batches go.

    Yields:
        Batches as those of images, but for their first input.
    """
    rows = np.asarray(rows)
    if seed is not None:
        coins = np.random.default_rng(epoch_seed(seed, epoch, 2)).integers(2, size=len(rows))
        rows = rows + coins * len(mos)
    twice = np.tile(mos, 2)
    inputs = (activations,) if extra_inputs is None else (activations, extra_inputs.repeat(2, 1))
    yield from tensor_batches(
        inputs,
        rows,
        twice,
        batch_size=batch_size,
        seed=seed,
        epoch=epoch,
        device=device,
        names=None if names is None else [*names, *names],
    )

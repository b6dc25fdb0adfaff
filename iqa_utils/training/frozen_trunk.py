"""What a frozen trunk, or the frozen beginning of one, makes of every image, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from iqa_utils.features import frozen_features
from iqa_utils.images import ImageStore
from iqa_utils.models.pooled_trunk import PooledTrunk
from iqa_utils.training.batches import Batch, epoch_seed, tensor_batches

CHUNK = 256  # images whose maps are in memory in float32 at once


def frozen_maps(
    network: nn.Module,
    store: ImageStore,
    *,
    cache_dir: str | Path | None,
    dtype: torch.dtype = torch.float32,
    **options: object,
) -> Tensor:
    """Run a frozen network over every image, or read the cached result; a killed pass goes on.

    Args:
        network: Gives maps, shape (B, C, h, w); on the device to use.
        store: Decoded images of one size, N of them.
        cache_dir: Folder of the cache; None keeps nothing.
        dtype: Of the result; half precision halves the memory and rounds (2e-4 relative).
        **options: For :func:`iqa_utils.features.frozen_features` (``batch_size``, ``mean``, ...).

    Returns:
        Shape (N, C, h, w), channels-last, on the CPU.
    """
    device = next(network.parameters()).device
    run = getattr(network.eval(), "forward_features", network)
    with torch.no_grad():
        probe = torch.zeros(1, 3, *store.sizes[0].tolist(), device=device)
        _, channels, height, width = run(probe).shape
    maps = torch.empty(len(store), height, width, channels, dtype=dtype)
    for rows in torch.arange(len(store)).split(CHUNK):
        options |= {"pooling": "flatten", "cache_dir": cache_dir, "rows": rows.numpy()}
        flat = torch.from_numpy(frozen_features(network, store, **options))
        maps[rows] = flat.view(-1, channels, height, width).permute(0, 2, 3, 1).to(dtype)
    return maps.permute(0, 3, 1, 2)


def stem_activations(branch: PooledTrunk, store: ImageStore, **options: object) -> Tensor:
    """Run the frozen layers of a trunk over every image and its mirror image.

    Options are those of :func:`frozen_maps`. Returns float16, shape (2 N, C, h, w), channels-last,
    on the CPU: all images, then all mirrored; trained layers see its rounding.
    """
    stem = branch.frozen_layers().to(memory_format=torch.channels_last)
    options = {"batch_size": 8, "dtype": torch.float16, **options}
    return torch.cat([frozen_maps(network, store, **options) for network in (stem, Mirrored(stem))])


class Mirrored(nn.Module):
    """A network that sees every image mirrored."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Apply the network to mirrored images, (B, C, H, W)."""
        return self.network(images.flip(3))


def stem_batches(
    activations: Tensor,
    rows: np.ndarray,
    mos: np.ndarray,
    *,
    seed: int | None = None,
    epoch: int = 0,
    extra_inputs: Tensor | None = None,
    names: Sequence[str] | None = None,
    change_copies: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    **options: object,
) -> Iterator[Batch]:
    """Stream activations in place of images; with a seed each one is mirrored by a coin.

    Args:
        activations: From :func:`stem_activations`, shape (2 N, C, h, w).
        rows: Images of this epoch, 0 to N - 1, repeats allowed.
        mos: Scores, shape (N,).
        seed: Shuffles and mirrors by ``(seed, epoch)``; None does neither.
        epoch: Counted from 0.
        extra_inputs: Further input of the network, shape (N, D).
        names: Image names, N values.
        change_copies: Activations of changed copies of these images, (R,): instead of those of
            images that this epoch has already shown once.
        **options: For :func:`tensor_batches` (``batch_size``, ``device``).

    Yields:
        Batches as those of images, but for their first input.
    """
    rows = np.asarray(rows)
    if seed is not None:
        coins = np.random.default_rng(epoch_seed(seed, epoch, 2)).integers(2, size=len(rows))
        rows = rows + coins * len(mos)
    inputs = (activations,) if extra_inputs is None else (activations, extra_inputs.repeat(2, 1))
    options |= {"seed": seed, "epoch": epoch, "names": names and [*names, *names]}
    generator = torch.Generator().manual_seed(epoch_seed(seed or 0, epoch, 3))
    shown = np.zeros(len(mos), dtype=bool)
    for batch in tensor_batches(inputs, rows, np.tile(mos, 2), **options):
        image = batch.index.numpy() % len(mos)
        again = shown[image]
        again[np.setdiff1d(np.arange(len(image)), np.unique(image, return_index=True)[1])] = True
        shown[image] = True
        if change_copies is not None and again.any():
            changed = change_copies(torch.from_numpy(image[again]), generator)
            batch.inputs[0][torch.from_numpy(np.flatnonzero(again))] = changed.to(batch.inputs[0])
        yield batch

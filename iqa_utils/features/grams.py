"""Gram and distance matrices of features that are too wide to hold in memory.

The last cells of NASNet give 487,872 values an image: 5.9 GB for 3,000 images and one layer. Here
each batch goes to a file in panels of columns, the panels are multiplied one after the other, and
the file is deleted. What stays is the upper triangle of one (N, N) matrix.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.linalg import get_blas_funcs
from torch import nn

from iqa_utils.features import (
    Crop,
    cache_path,
    feature_recipe,
    iterate_layers,
    pool_activation,
    require_finite,
    save_array,
)
from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from iqa_utils.images import ImageStore

PANEL = 8192  # features a panel: 200 MB at 6,000 images
_STRIP = 4096  # features that are shifted and multiplied at a time: these stay in a cache
_SHIFT_ROWS = 16  # images whose mean is taken away before products are rounded


def gram_from_panels(
    panels: Iterable[np.ndarray], *, device: str | torch.device = "cpu"
) -> np.ndarray:
    """Sum the centred inner products of features that arrive in panels of columns.

    Products of float32 features are rounded to float32, so the part that all images share is taken
    away first: nearly, by the mean of a few images, before the product, and exactly, in float64,
    after it.

    Args:
        panels: Arrays of shape (N, W_k), float32 or float64, whose columns together are the
            features. Products are taken in the panel's own precision and summed in float64.
        device: Where the products are taken.

    Returns:
        Inner products of the features less their column means, shape (N, N), float64. A linear SVR
        and all distances are those of the features as they came.

    Raises:
        ValueError: If there is no panel, a value is not finite (the rows are named), or a product
            does not fit the panel's precision.
    """
    on_cpu = torch.device(device).type == "cpu"
    gram: np.ndarray | torch.Tensor | None = None
    room = np.empty(0)
    for panel in panels:
        if on_cpu:
            needed = len(panel) * min(_STRIP, panel.shape[1])
            if room.dtype != panel.dtype or room.size < needed:
                room = np.empty(needed, dtype=panel.dtype)  # kept: fresh pages cost as much
            product = _triangle(panel, room)
        else:
            product = _product(panel, device)
        if not bool((product.diagonal() < np.inf).all()):  # NaN fails as well
            bad = np.flatnonzero(~np.isfinite(panel).all(axis=1))
            if len(bad):
                raise ValueError(f"features must be finite, rows {bad[:5].tolist()} are not")
            raise ValueError(
                f"features reach {np.abs(panel).max():.3g}, their products are beyond {panel.dtype}"
            )
        if gram is None:
            gram = product.astype(np.float64) if on_cpu else product.double()
        else:
            gram += product
    if gram is None:
        raise ValueError("no panel of features was given")
    gram = np.tril(gram if on_cpu else gram.cpu().numpy())
    gram += np.tril(gram, -1).T
    means = gram.mean(axis=0)
    gram -= means[:, None] + means - means.mean()
    return gram


@np.errstate(over="ignore", invalid="ignore")  # its caller looks at the result
def _triangle(panel: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Multiply shifted features with each other; the lower triangle of (N, N) is valid."""
    n, width = panel.shape
    syrk = get_blas_funcs("syrk", dtype=panel.dtype)
    shift = panel[:_SHIFT_ROWS].mean(axis=0)
    product = np.zeros((n, n), dtype=panel.dtype, order="F")
    for start in range(0, width, _STRIP):
        columns = slice(start, min(start + _STRIP, width))
        strip = room[: n * (columns.stop - start)].reshape(n, -1)
        np.subtract(panel[:, columns], shift[columns], out=strip)
        product = syrk(1.0, strip.T, beta=1.0, c=product, trans=1, overwrite_c=1)
    return product.T


def _product(panel: np.ndarray, device: str | torch.device) -> torch.Tensor:
    shifted = torch.from_numpy(np.ascontiguousarray(panel)).to(device)
    shifted = shifted - shifted[:_SHIFT_ROWS].mean(dim=0)
    return shifted @ shifted.T


def squared_distances(gram: ArrayLike) -> np.ndarray:
    """Turn inner products into squared Euclidean distances, shape (N, N), at least 0."""
    gram = np.asarray(gram, dtype=np.float64)
    norms = np.diagonal(gram)
    squared = norms[:, None] + norms[None, :] - 2 * gram
    np.fill_diagonal(squared, 0.0)
    return squared.clip(min=0)


def layer_grams(
    backbone: nn.Module,
    store: ImageStore,
    layers: Sequence[str],
    *,
    cache_dir: str | Path,
    also_pooled: str | None = None,
    rows: Sequence[int] | np.ndarray | None = None,
    crop: Crop | None = None,
    batch_size: int = 32,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Compute or read the centred Gram matrices of whole (flattened) activations.

    All layers come from one pass; their activations wait in ``cache_dir`` until they are
    multiplied: 4 bytes a value, all layers together, deleted at once. Where the disk cannot hold
    them, the layers are halved and each half has a pass of its own. What is kept is one triangle,
    4 N (N + 1) bytes a layer.

    Args:
        backbone: Network, on the device to use.
        store: Decoded images.
        layers: Names for :func:`iqa_utils.features.tap_layers`.
        cache_dir: Folder of the cache.
        also_pooled: A pooling whose (small) features of the same pass are cached as well, for
            :func:`iqa_utils.features.frozen_layers` to find; layers that give plain vectors are
            cached under ``"flatten"``.
        rows: Images to encode, N of them in this order; None for the whole store.
        crop: Crop to take, or None for whole images.
        batch_size: Images a batch.
        mean: Normalisation, RGB in [0, 1].
        std: Normalisation.
        dtype: Arithmetic of the network.
        progress: Show a bar.

    Returns:
        Layer to inner products, shape (N, N), float64.

    Raises:
        OSError: If the disk cannot hold the activations of one layer; says how much is needed.
        ValueError: If a layer is unknown or a feature is not finite (layer and images are named).
    """
    recipe = feature_recipe(backbone, store, rows, crop, mean, std, dtype)
    paths = {layer: cache_path(cache_dir, recipe, layer, "gram") for layer in layers}
    missing = [layer for layer, path in paths.items() if not path.is_file()]
    if missing:
        rows = np.arange(len(store)) if rows is None else np.asarray(rows)
        options = {"rows": rows, "crop": crop, "batch_size": batch_size, "mean": mean, "std": std}
        options |= {"dtype": dtype, "progress": progress}

        def multiply(some: list[str]) -> None:
            batches = iterate_layers(backbone, store, some, **options)
            try:
                _spool_and_multiply(batches, paths, store, rows, also_pooled, cache_dir, recipe)
            except _DiskTooSmall:
                if len(some) == 1:
                    raise
                half = len(some) // 2
                multiply(some[:half])
                multiply(some[half:])

        multiply(missing)
    return {layer: unpack(np.load(path)) for layer, path in paths.items()}


class _DiskTooSmall(OSError):
    """Activations would not fit."""


def _spool_and_multiply(
    batches: Iterator[tuple[slice, dict[str | None, torch.Tensor]]],
    paths: dict[str, Path],
    store: ImageStore,
    rows: np.ndarray,
    also_pooled: str | None,
    cache_dir: str | Path,
    recipe: dict[str, Any],
) -> None:
    """Write the activations of one pass to disk, multiply them panel by panel, keep the result."""
    Path(cache_dir).mkdir(parents=True, exist_ok=True)
    pooled: dict[tuple[str, str], list[np.ndarray]] = {}
    spools: dict[str, _Spool] = {}
    with tempfile.TemporaryDirectory(prefix=".spool-", dir=cache_dir) as folder:
        for part, batch in batches:
            spools = spools or _make_spools(Path(folder), len(rows), batch)
            for layer, activation in batch.items():
                flat = pool_activation(activation, "flatten")
                if not bool(flat.isfinite().all()):
                    require_finite(flat.cpu().numpy(), layer, store, rows[part])
                spools[layer].write(part.start, flat.cpu().numpy())
                if also_pooled:
                    is_map = activation[0].numel() > activation.shape[1]
                    kind = also_pooled if is_map else "flatten"
                    values = pool_activation(activation, kind).cpu().numpy()
                    pooled.setdefault((layer, kind), []).append(values)
        for layer, spool in spools.items():
            device = batch[layer].device
            save_array(paths[layer], pack(gram_from_panels(spool.panels(), device=device)))
            spool.delete()
    for (layer, kind), parts in pooled.items():
        save_array(cache_path(cache_dir, recipe, layer, kind), np.concatenate(parts))


def pack(matrix: np.ndarray) -> np.ndarray:
    """Keep the upper triangle of a symmetric matrix: (N, N) to (N (N + 1) / 2,)."""
    return matrix[np.triu_indices(len(matrix))]


def unpack(triangle: np.ndarray) -> np.ndarray:
    """Restore a symmetric matrix from :func:`pack`."""
    n = int((np.sqrt(8 * len(triangle) + 1) - 1) / 2)
    matrix = np.zeros((n, n), dtype=triangle.dtype)
    upper = np.triu_indices(n)
    matrix[upper] = triangle
    matrix.T[upper] = triangle
    return matrix


def disk_use(n_images: int, sizes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """State what feature sets of N images take on disk.

    Args:
        n_images: N.
        sizes: Network to the features an image of each of its layers.

    Returns:
        Bytes: ``features`` (float32, what is not kept), ``grams`` (what is), ``layer`` (the widest
        layer's activations) and ``pass`` (all layers of the widest network: what waits on disk for
        a moment; ``layer`` is enough where the disk is small).
    """
    passes = [sum(own) for own in sizes.values()]
    n_layers = sum(map(len, sizes.values()))
    return {
        "features": 4 * n_images * sum(passes),
        "grams": 4 * n_images * (n_images + 1) * n_layers,
        "layer": 4 * n_images * max(max(own) for own in sizes.values()),
        "pass": 4 * n_images * max(passes),
    }


class _Spool:
    """Features of one layer on disk, one contiguous (N, W) block a panel of columns."""

    def __init__(self, path: Path, n_images: int, n_features: int) -> None:
        self.path, self.n_features = path, n_features
        width = min(PANEL, n_features)
        shape = (-(-n_features // width), n_images, width)
        self.blocks = np.memmap(path, dtype=np.float32, mode="w+", shape=shape)

    def write(self, start: int, features: np.ndarray) -> None:
        width = self.blocks.shape[2]
        for k, block in enumerate(self.blocks):
            part = features[:, k * width : (k + 1) * width]
            block[start : start + len(features), : part.shape[1]] = part

    def panels(self) -> Iterator[np.ndarray]:
        width = self.blocks.shape[2]
        for k, block in enumerate(self.blocks):
            yield np.asarray(block[:, : min(width, self.n_features - k * width)])

    def delete(self) -> None:
        del self.blocks
        self.path.unlink()


def _make_spools(folder: Path, n_images: int, batch: dict[str, torch.Tensor]) -> dict[str, _Spool]:
    sizes = {layer: activation[0].numel() for layer, activation in batch.items()}
    needed, free = 4 * n_images * sum(sizes.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise _DiskTooSmall(
            f"activations of {n_images} images at {len(sizes)} layers need {needed / 1e9:.1f} GB "
            f"of disk for a moment, {free / 1e9:.1f} GB are free"
        )
    return {
        layer: _Spool(folder / f"{k}.bin", n_images, size)
        for k, (layer, size) in enumerate(sizes.items())
    }

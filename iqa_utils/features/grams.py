"""Gram and distance matrices of features that are too wide to hold in memory.

The last cells of NASNet give 487,872 values an image: 5.9 GB for 3,000 images and one layer. Here
each batch goes to a file in panels of columns, the panels are multiplied one after the other, and
the file is deleted. What stays is the upper triangle of one (N, N) matrix. A pass that was killed
goes on where it last noted how many images its files hold.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
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
    save_rows,
)
from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD
from iqa_utils.images.decode_once import lock

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
    poolings: Mapping[str, str] | None = None,
    rows: Sequence[int] | np.ndarray | None = None,
    crop: Crop | None = None,
    batch_size: int = 32,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
    save_seconds: float = 60.0,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Compute or read the centred Gram matrices of whole (flattened) activations.

    All layers come from one pass; their activations wait in ``cache_dir`` until they are
    multiplied: 4 bytes a value, all layers together, deleted at once. Where the disk cannot hold
    them, the layers are halved and each half has a pass of its own. What is kept is one triangle,
    4 N (N + 1) bytes a layer. Processes that ask for the same matrices take turns.

    Args:
        backbone: Network, on the device to use.
        store: Decoded images.
        layers: Names for :func:`iqa_utils.features.tap_layers`.
        cache_dir: Folder of the cache.
        poolings: Layer to a pooling whose (small) features of the same pass are cached as well, for
            :func:`iqa_utils.features.frozen_layers` to find.
        rows: Images to encode, N of them in this order; None for the whole store.
        crop: Crop to take, or None for whole images.
        batch_size: Images a batch.
        mean: Normalisation, RGB in [0, 1].
        std: Normalisation.
        dtype: Arithmetic of the network.
        save_seconds: Time between notes of how far the pass is; a killed one resumes there.
        progress: Show a bar.

    Returns:
        Layer to inner products, shape (N, N), float64.

    Raises:
        OSError: If the disk cannot hold the activations of one layer; says how much is needed.
        ValueError: If a layer is unknown or a feature is not finite (layer and images are named).
    """
    recipe = feature_recipe(backbone, store, crop, mean, std, dtype)
    rows = np.arange(len(store)) if rows is None else np.asarray(rows)
    key = recipe | {"rows": rows.tolist()}
    paths = {layer: cache_path(cache_dir, key, layer, "gram") for layer in layers}
    if not all(path.is_file() for path in paths.values()):
        text = json.dumps([key, batch_size], sort_keys=True)
        name = f"pass-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
        kinds = {
            layer: (kind, cache_path(cache_dir, recipe, layer, kind))
            for layer, kind in (poolings or {}).items()
        }
        options = {"crop": crop, "batch_size": batch_size, "mean": mean, "std": std}
        options |= {"dtype": dtype, "progress": progress}

        def multiply(some: list[str]) -> None:
            spools = _Pass(Path(cache_dir) / name, some, len(rows), save_seconds)
            try:
                spools.fill(backbone, store, rows, kinds, **options)
            except _DiskTooSmall:
                if len(some) == 1:
                    raise
                half = len(some) // 2
                multiply(some[:half])
                multiply(some[half:])
            else:
                device = next(backbone.parameters()).device
                for layer, panels in spools.panels():
                    save_array(paths[layer], pack(gram_from_panels(panels, device=device)))
                spools.delete()

        with lock(Path(cache_dir) / f"{name}.lock"):
            missing = [layer for layer, path in paths.items() if not path.is_file()]
            begun = [layer for layer in _begun(Path(cache_dir) / name) if layer in missing]
            for some in (begun, [layer for layer in missing if layer not in begun]):
                if some:
                    multiply(some)
    return {layer: unpack(np.load(path)) for layer, path in paths.items()}


class _DiskTooSmall(OSError):
    """Activations would not fit."""


def _begun(folder: Path) -> dict[str, int]:
    """Return the layers of a pass that was begun, with their sizes."""
    note = folder / "note.json"
    return json.loads(note.read_text())["sizes"] if note.is_file() else {}


class _Pass:
    """One pass over N images whose activations wait on disk, in files that outlive a kill."""

    def __init__(self, folder: Path, layers: list[str], n_images: int, save_seconds: float) -> None:
        self.folder, self.layers, self.n_images = folder, layers, n_images
        self.save_seconds = save_seconds
        self.spools: dict[str, _Spool] = {}

    def fill(
        self,
        backbone: nn.Module,
        store: ImageStore,
        rows: np.ndarray,
        kinds: Mapping[str, tuple[str, Path]],
        **options: Any,
    ) -> None:
        """Write what is still missing; the pooled features of each batch as well."""
        done = self._resume()
        saved_at = time.monotonic()
        batches = iterate_layers(backbone, store, self.layers, rows=rows[done:], **options)
        try:
            for part, batch in batches:
                if not self.spools:
                    self._create({layer: value[0].numel() for layer, value in batch.items()})
                for layer, activation in batch.items():
                    flat = pool_activation(activation, "flatten")
                    if not bool(flat.isfinite().all()):
                        require_finite(flat.cpu().numpy(), layer, store, rows[done:][part])
                    self.spools[layer].write(done + part.start, flat.cpu().numpy())
                    if layer in kinds:
                        kind, path = kinds[layer]
                        values = pool_activation(activation, kind).cpu().numpy()
                        save_rows(path, rows[done:][part], values, n_images=len(store))
                if time.monotonic() - saved_at >= self.save_seconds:
                    self._note(done + part.stop)
                    saved_at = time.monotonic()
        except ValueError:
            self.delete()  # these activations will never do
            raise
        self._note(self.n_images)

    def _resume(self) -> int:
        """Open the files of a killed pass, or clear the place; return the images they hold."""
        begun = _begun(self.folder)
        if not set(self.layers) <= set(begun):
            shutil.rmtree(self.folder, ignore_errors=True)
            return 0
        self._open(begun, "r+")
        done = json.loads((self.folder / "note.json").read_text())["done"]
        print(f"resumed at image {done} of {self.n_images}", flush=True)
        return done

    def _create(self, sizes: dict[str, int]) -> None:
        self.folder.mkdir(parents=True)
        needed = 4 * self.n_images * sum(sizes.values())
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            self.delete()
            raise _DiskTooSmall(
                f"activations of {self.n_images} images at {len(sizes)} layers need "
                f"{needed / 1e9:.1f} GB of disk for a moment, {free / 1e9:.1f} GB are free"
            )
        self._open(sizes, "w+")

    def _open(self, sizes: Mapping[str, int], mode: str) -> None:
        self.sizes = dict(sizes)
        self.spools = {
            layer: _Spool(self.folder / f"{k}.bin", self.n_images, size, mode)
            for k, (layer, size) in enumerate(sizes.items())
            if layer in self.layers
        }

    def _note(self, done: int) -> None:
        for spool in self.spools.values():
            spool.blocks.flush()
        note = self.folder / "note.json"
        partial = note.with_suffix(".tmp")
        partial.write_text(json.dumps({"sizes": self.sizes, "done": done}))
        partial.replace(note)

    def panels(self) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
        """Yield each layer's panels; its file is deleted when the next one is asked for."""
        while self.spools:
            layer = next(iter(self.spools))
            yield layer, self.spools[layer].panels()
            self.spools.pop(layer).delete()

    def delete(self) -> None:
        """Leave nothing on disk."""
        self.spools = {}
        shutil.rmtree(self.folder, ignore_errors=True)


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

    def __init__(self, path: Path, n_images: int, n_features: int, mode: str) -> None:
        self.path, self.n_features = path, n_features
        width = min(PANEL, n_features)
        shape = (-(-n_features // width), n_images, width)
        self.blocks = np.memmap(path, dtype=np.float32, mode=mode, shape=shape)

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

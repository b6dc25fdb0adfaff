"""Gram and distance matrices of features that are too wide to hold in memory.

The last cells of NASNet give 487,872 values per image: 5.9 GB for 3,000 images and one layer. Here
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
    cache_path,
    feature_recipe,
    iterate_layers,
    pool_activation,
    require_finite,
    save_rows,
)
from iqa_utils.files import atomic_write, lock

if TYPE_CHECKING:
    from iqa_utils.images import ImageStore

PANEL = 8192  # features per panel: 200 MB at 6,000 images
_STRIP = 4096  # features that are shifted and multiplied at a time: these stay in a cache
_SHIFT_ROWS = 16  # images whose mean is taken away before products are rounded


def gram_from_panels(
    panels: Iterable[np.ndarray], *, device: str | torch.device = "cpu"
) -> np.ndarray:
    """Sum the centred inner products of features that arrive in panels of columns.

    Products of float32 features are rounded to float32, so what all images share is taken away
    first: nearly, by the mean of a few images, before the product, and exactly, in float64, after.

    Args:
        panels: Arrays of shape (N, W_k), float32 or float64, whose columns together are the
            features. Products are taken in the panel's own precision and summed in float64.
        device: Where the products are taken.

    Returns:
        Inner products of the features less their column means, shape (N, N), float64. A linear SVR
        and all distances are those of the features as they came.
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
            shifted = torch.from_numpy(np.ascontiguousarray(panel)).to(device)
            shifted = shifted - shifted[:_SHIFT_ROWS].mean(dim=0)
            product = shifted @ shifted.T
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


def squared_distances(gram: ArrayLike) -> np.ndarray:
    """Turn inner products into squared Euclidean distances, shape (N, N), at least 0.

    Example:
        >>> squared_distances([[0.0, 0.0], [0.0, 9.0]]).tolist()
        [[0.0, 9.0], [9.0, 0.0]]
    """
    gram = np.asarray(gram, dtype=np.float64)
    norms = np.diagonal(gram)
    squared = norms[:, None] + norms[None, :] - 2 * gram
    np.fill_diagonal(squared, 0.0)
    return squared.clip(min=0)


def layer_grams(
    backbone: nn.Module,
    store: ImageStore,
    poolings: Mapping[str, str],
    *,
    cache_dir: str | Path,
    rows: Sequence[int] | np.ndarray | None = None,
    save_seconds: float = 60.0,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Compute or read the centred Gram matrices of whole (flattened) activations.

    All layers come from one pass; their activations wait in ``cache_dir`` until they are
    multiplied: 4 bytes per value, all layers together, deleted at once. Where the disk cannot hold
    them, the layers are halved and each half has a pass of its own. What is kept is one triangle,
    4 N (N + 1) bytes per layer. Processes that ask for the same matrices take turns.

    Args:
        backbone: Network, on the device to use.
        store: Decoded images.
        poolings: Layer for :func:`iqa_utils.features.tap_layers` to the pooling whose (small)
            features are cached from the same pass, for :func:`iqa_utils.features.frozen_layers`.
        cache_dir: Folder of the cache.
        rows: Images to encode, N of them in this order; None for the whole store.
        save_seconds: Time between notes of how far the pass is; a killed one resumes there.
        **options: For :func:`iqa_utils.features.iterate_layers`.

    Returns:
        Layer to inner products, shape (N, N), float64.

    Raises:
        OSError: If the disk cannot hold the activations of one layer; says how much is needed.
    """
    recipe = feature_recipe(backbone, store, options)
    rows = np.arange(len(store)) if rows is None else np.asarray(rows)
    key = recipe | {"rows": rows.tolist()}
    paths = {layer: cache_path(cache_dir, key, layer, "gram") for layer in poolings}
    text = json.dumps([key, options.get("batch_size")], sort_keys=True)
    folder = Path(cache_dir) / f"pass-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    def multiply(layers: list[str]) -> None:
        spools = _Pass(folder, layers, len(rows), save_seconds)
        kinds = {k: (poolings[k], cache_path(cache_dir, recipe, k, poolings[k])) for k in layers}
        try:
            spools.fill(backbone, store, rows, kinds, **options)
        except _DiskTooSmall:
            if len(layers) == 1:
                raise
            half = len(layers) // 2
            multiply(layers[:half])
            multiply(layers[half:])
        else:
            device = next(backbone.parameters()).device
            for layer, panels in spools.panels():
                with atomic_write(paths[layer]) as partial:
                    np.save(partial, pack(gram_from_panels(panels, device=device)))
            shutil.rmtree(folder)

    if not all(path.is_file() for path in paths.values()):
        with lock(folder.with_suffix(".lock")):
            missing = [layer for layer, path in paths.items() if not path.is_file()]
            begun = [layer for layer in _begun(folder) if layer in missing]
            for layers in (begun, [layer for layer in missing if layer not in begun]):
                if layers:
                    multiply(layers)
    return {layer: unpack(np.load(path)) for layer, path in paths.items()}


class _DiskTooSmall(OSError):
    """Activations would not fit."""


def _begun(folder: Path) -> dict[str, int]:
    """Return the layers of a pass that was begun, with their sizes."""
    note = folder / "note.json"
    return json.loads(note.read_text())["sizes"] if note.is_file() else {}


class _Pass:
    """One pass over N images whose activations wait on disk, in files that outlive a kill.

    The file of a layer holds one contiguous (N, W) block per panel of columns.
    """

    def __init__(self, folder: Path, layers: list[str], n_images: int, save_seconds: float) -> None:
        self.folder, self.layers, self.n_images = folder, layers, n_images
        self.save_seconds = save_seconds
        self.sizes: dict[str, int] = {}
        self.blocks: dict[str, np.memmap] = {}

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
                if not self.blocks:
                    self._create({layer: value[0].numel() for layer, value in batch.items()})
                for layer, activation in batch.items():
                    flat = pool_activation(activation, "flatten").cpu().numpy()
                    require_finite(flat, layer, store, rows[done:][part])
                    self._write(layer, done + part.start, flat)
                    kind, path = kinds[layer]
                    values = pool_activation(activation, kind).cpu().numpy()
                    save_rows(path, rows[done:][part], values, n_images=len(store))
                if time.monotonic() - saved_at >= self.save_seconds:
                    self._note(done + part.stop)
                    saved_at = time.monotonic()
        except ValueError:
            shutil.rmtree(self.folder, ignore_errors=True)  # these activations will never do
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
            self.folder.rmdir()
            raise _DiskTooSmall(
                f"activations of {self.n_images} images at {len(sizes)} layers need "
                f"{needed / 1e9:.1f} GB of disk for a moment, {free / 1e9:.1f} GB are free"
            )
        self._open(sizes, "w+")

    def _open(self, sizes: dict[str, int], mode: str) -> None:
        self.sizes = sizes
        for k, (layer, size) in enumerate(sizes.items()):
            if layer in self.layers:
                width = min(PANEL, size)
                shape = (-(-size // width), self.n_images, width)
                path = self.folder / f"{k}.bin"
                self.blocks[layer] = np.memmap(path, dtype=np.float32, mode=mode, shape=shape)

    def _write(self, layer: str, start: int, features: np.ndarray) -> None:
        width = self.blocks[layer].shape[2]
        for k, block in enumerate(self.blocks[layer]):
            panel = features[:, k * width : (k + 1) * width]
            block[start : start + len(features), : panel.shape[1]] = panel

    def _note(self, done: int) -> None:
        for blocks in self.blocks.values():
            blocks.flush()
        with atomic_write(self.folder / "note.json") as partial:
            partial.write_text(json.dumps({"sizes": self.sizes, "done": done}))

    def panels(self) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
        """Yield each layer's panels; its file is deleted when the next one is asked for."""
        for layer in list(self.blocks):
            blocks, size = np.asarray(self.blocks[layer]), self.sizes[layer]
            width = blocks.shape[2]
            yield layer, (block[:, : size - k * width] for k, block in enumerate(blocks))
            Path(self.blocks.pop(layer).filename).unlink()


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
        sizes: Network to the features per image of each of its layers.

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

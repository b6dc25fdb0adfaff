"""Gram and distance matrices of features that are too wide to hold in memory.

The last cells of NASNet give 487,872 values per image: 5.9 GB for 3,000 images and one layer. Here
each batch goes to a file in panels of columns, the panels are multiplied one after the other, and
the file is deleted. What stays is the upper triangle of one (N, N) matrix. A pass that was killed
goes on where it last noted how many images its files hold.
"""

import hashlib
import json
import math
import shutil
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from iqa_utils.files import atomic_write, load_array, lock, read_mapping, save_array
from iqa_utils.images import ImageStore

PANEL = 8192  # features per panel: 200 MB at 6,000 images
_STRIP = 2048  # features that are shifted and multiplied at a time: these stay in a cache
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
    gram: np.ndarray | None = None
    room = torch.empty(0)
    for panel in panels:
        values = torch.from_numpy(panel if panel.flags.writeable else panel.copy()).to(device)
        if on_cpu:
            needed = len(panel) * min(_STRIP, panel.shape[1])
            if room.dtype != values.dtype or room.numel() < needed:
                room = torch.empty(needed, dtype=values.dtype)  # kept: fresh pages cost as much
            product = _triangle(values, room)
        else:
            shifted = values - values[:_SHIFT_ROWS].mean(dim=0)
            product = (shifted @ shifted.T).cpu().numpy()
        if not (np.diagonal(product) < np.inf).all():  # NaN fails as well
            bad = np.flatnonzero(~np.isfinite(panel).all(axis=1))
            if len(bad):
                raise ValueError(f"features must be finite, rows {bad[:5].tolist()} are not")
            raise ValueError(
                f"features reach {np.abs(panel).max():.3g}, their products are beyond {panel.dtype}"
            )
        gram = product.astype(np.float64) if gram is None else np.add(gram, product, out=gram)
    gram = np.tril(gram)
    gram += np.tril(gram, -1).T
    means = gram.mean(axis=0)
    gram -= means[:, None] + means - means.mean()
    return gram


@np.errstate(over="ignore", invalid="ignore")  # its caller looks at the result
def _triangle(panel: torch.Tensor, room: torch.Tensor) -> np.ndarray:
    """Multiply shifted features with each other; the lower triangle of (N, N) is valid."""
    n, width = panel.shape
    product = np.zeros((n, n), dtype=room.numpy().dtype, order="F")
    syrk = get_blas_funcs("syrk", dtype=product.dtype)
    shift = panel[:_SHIFT_ROWS].mean(dim=0)
    for start in range(0, width, _STRIP):
        columns = slice(start, min(start + _STRIP, width))
        strip = room[: n * (columns.stop - start)].view(n, -1)
        torch.sub(panel[:, columns], shift[columns], out=strip)  # faster than NumPy's
        product = syrk(1.0, strip.numpy().T, beta=1.0, c=product, trans=1, overwrite_c=1)
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

    ``poolings`` is layer, for :func:`iqa_utils.features.tap_layers`, to the pooling whose (small)
    features are cached from the same pass, for :func:`iqa_utils.features.frozen_layers`; the other
    arguments are those of :func:`iqa_utils.features.iterate_layers`. A killed pass resumes where
    it last noted how far it was, every ``save_seconds``. Returns layer to inner products, shape
    (N, N), float64.

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
        kinds = {k: (poolings[k], cache_path(cache_dir, recipe, k, poolings[k])) for k in layers}
        try:
            sizes, blocks = _fill(folder, backbone, store, rows, kinds, save_seconds, **options)
        except _DiskTooSmall:
            if len(layers) == 1:
                raise
            multiply(layers[: len(layers) // 2])
            multiply(layers[len(layers) // 2 :])
            return
        device = next(backbone.parameters()).device
        for layer in list(blocks):
            panels = blocks.pop(layer)  # the disk is free again when this is the next one
            width = panels.shape[2]
            cut = (x[:, : sizes[layer] - k * width] for k, x in enumerate(np.asarray(panels)))
            found[layer] = pack(gram_from_panels(cut, device=device))
            save_array(paths[layer], found[layer])
            Path(panels.filename).unlink()
        shutil.rmtree(folder)

    with lock(folder.with_suffix(".lock")):
        size = len(rows) * (len(rows) + 1) // 2
        found = {layer: load_array(path, (size,)) for layer, path in paths.items()}
        missing = [layer for layer, triangle in found.items() if triangle is None]
        begun = [layer for layer in _read_note(folder)["sizes"] if layer in missing]
        for layers in (begun, [layer for layer in missing if layer not in begun]):
            if layers:
                multiply(layers)
    return {layer: unpack(found.pop(layer)) for layer in paths}


class _DiskTooSmall(OSError):
    """Activations would not fit."""


def _read_note(folder: Path) -> dict[str, Any]:
    """Return the layers of a pass that was begun: sizes, checksums by panel, and images held."""
    nothing = {"sizes": {}, "sums": {}, "done": 0}
    try:
        note = read_mapping(folder / "note.json")
    except FileNotFoundError:
        return nothing
    except ValueError as error:
        print(f"{error}; the pass starts anew", flush=True)
        return nothing
    return note if note.keys() == nothing.keys() else nothing


def _fill(
    folder: Path,
    backbone: nn.Module,
    store: ImageStore,
    rows: np.ndarray,
    kinds: Mapping[str, tuple[str, Path]],
    save_seconds: float,
    **options: Any,
) -> tuple[dict[str, int], dict[str, np.memmap]]:
    """Write the activations of N images to files that outlive a kill, and the pooled features.

    ``kinds`` is layer to pooling and file of the pooled features. Returns values per image, and
    activations as one contiguous (N, W) block per panel of columns, shape (panels, N, W), by layer.
    """
    note, blocks = _read_note(folder), {}
    if note["sizes"].keys() >= kinds.keys():
        blocks = _reopen_blocks(folder, note, len(rows), kinds)
    if blocks:
        print(f"resumed at image {note['done']} of {len(rows)}", flush=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        note = _read_note(folder)
    begun, saved_at = note["done"], time.monotonic()

    def save(done: int) -> None:
        for panels in blocks.values():
            panels.flush()
        with atomic_write(folder / "note.json") as partial:
            partial.write_text(json.dumps(note | {"done": done}))

    try:
        batches = iterate_layers(backbone, store, list(kinds), rows=rows[begun:], **options)
        for part, batch in batches:
            at = slice(begun + part.start, begun + part.stop)
            if not blocks:
                note["sizes"] = {layer: value[0].numel() for layer, value in batch.items()}
                _reserve(folder, note["sizes"], len(rows))
                blocks = _open_blocks(folder, note["sizes"], len(rows), kinds, "w+")
                note["sums"] = {layer: [0] * len(panels) for layer, panels in blocks.items()}
            for layer, activation in batch.items():
                flat = pool_activation(activation, "flatten").cpu().numpy()
                require_finite(flat, layer, store, rows[at])
                for k, block in enumerate(blocks[layer]):
                    panel = flat[:, k * block.shape[1] : (k + 1) * block.shape[1]]
                    block[at, : panel.shape[1]] = panel
                    note["sums"][layer][k] = zlib.crc32(block[at], note["sums"][layer][k])
                kind, path = kinds[layer]
                values = pool_activation(activation, kind).cpu().numpy()
                save_rows(path, rows[at], values, n_images=len(store))
            if time.monotonic() - saved_at >= save_seconds:
                save(at.stop)
                saved_at = time.monotonic()
    except ValueError:
        shutil.rmtree(folder, ignore_errors=True)  # these activations will never do
        raise
    save(len(rows))
    return note["sizes"], blocks


def _reserve(folder: Path, sizes: Mapping[str, int], n_images: int) -> None:
    """Make the folder of a pass, or refuse where its disk is too small."""
    folder.mkdir(parents=True)
    needed, free = 4 * n_images * sum(sizes.values()), shutil.disk_usage(folder).free
    if needed > free:
        folder.rmdir()
        raise _DiskTooSmall(
            f"activations of {n_images} images at {len(sizes)} layers need "
            f"{needed / 1e9:.1f} GB of disk for a moment, {free / 1e9:.1f} GB are free"
        )


def _open_blocks(
    folder: Path, sizes: Mapping[str, int], n_images: int, wanted: Iterable[str], mode: str
) -> dict[str, np.memmap]:
    blocks = {}
    for k, (layer, size) in enumerate(sizes.items()):
        if layer in wanted:
            width = min(PANEL, size)
            shape, path = (-(-size // width), n_images, width), folder / f"{k}.bin"
            if mode == "r+" and path.stat().st_size != 4 * math.prod(shape):
                raise ValueError(f"{layer} has {path.stat().st_size} bytes")
            blocks[layer] = np.memmap(path, np.float32, mode, shape=shape)
    return blocks


def _reopen_blocks(
    folder: Path, note: Mapping[str, Any], n_images: int, wanted: Iterable[str]
) -> dict[str, np.memmap]:
    """Open the files of a pass that was killed; none where they are not as its note has them."""
    try:
        blocks = _open_blocks(folder, note["sizes"], n_images, wanted, "r+")
        for layer, panels in blocks.items():
            if note["sums"][layer] != [zlib.crc32(panel[: note["done"]]) for panel in panels]:
                raise ValueError(f"{layer} has another checksum")
    except (OSError, ValueError, LookupError) as error:
        print(f"{folder} is damaged ({error}): the pass starts anew", flush=True)
        return {}
    return blocks


def pack(matrix: np.ndarray) -> np.ndarray:
    """Keep the upper triangle of a symmetric matrix: (N, N) to (N (N + 1) / 2,)."""
    return matrix[np.triu_indices(len(matrix))]


def unpack(triangle: np.ndarray) -> np.ndarray:
    """Restore a symmetric matrix from :func:`pack`."""
    n = int((np.sqrt(8 * len(triangle) + 1) - 1) / 2)
    matrix = np.zeros((n, n), dtype=triangle.dtype)
    matrix[np.triu_indices(n)] = triangle
    return matrix + np.triu(matrix, 1).T


def disk_use(n_images: int, sizes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """State what feature sets of N images, network to values by layer, take on disk.

    Bytes: ``features`` (float32, what is not kept), ``grams`` (what is), ``layer`` (the widest
    layer's activations) and ``pass`` (all layers of the widest network: what is on disk for a
    moment; ``layer`` is enough where the disk is small).
    """
    passes = [sum(own) for own in sizes.values()]
    n_layers = sum(map(len, sizes.values()))
    return {
        "features": 4 * n_images * sum(passes),
        "grams": 4 * n_images * (n_images + 1) * n_layers,
        "layer": 4 * n_images * max(max(own) for own in sizes.values()),
        "pass": 4 * n_images * max(passes),
    }

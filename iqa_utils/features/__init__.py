"""Deep features: tap named layers of a backbone once, and never run it twice on the same pixels.

A feature is a function of (weights, layer, pooling, pixels, precision) and is cached under a hash
of exactly these, image by image: of the rows that are asked for, those that are there are read. One
forward pass serves all layers that were asked for.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from iqa_utils.backbones import weights_hash
from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD, to_float

if TYPE_CHECKING:
    from iqa_utils.images import ImageStore

POOLINGS = ("flatten", "mean", "std", "max", "mean_std")


@dataclass(frozen=True)
class Crop:
    """One seeded random crop of every image, at the network's own input size.

    Attributes:
        size: (height, width) in pixels.
        number: Which of the crops; crop k of an image never depends on how many are taken.
        seed: Root seed.
    """

    size: tuple[int, int]
    number: int = 0
    seed: int = 0


@contextmanager
def tap_layers(network: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the activations of several layers during one forward pass.

    Activations are cloned when they leave their layer: the in-place activation that often follows
    (VGG, DenseNet, MobileNet) would otherwise overwrite them.

    Args:
        network: Any module.
        layers: Names as in ``network.named_modules()``; ``"name:input"`` taps what enters a layer
            instead (a list of tensors is concatenated over channels, as DenseNet does itself).

    Yields:
        A dictionary that holds the activations of the latest forward pass by these names.

    Raises:
        ValueError: If the network has no layer of that name; the nearest names are given.
    """
    modules = dict(network.named_modules())
    unknown = [layer for layer in layers if layer.partition(":")[0] not in modules]
    if unknown:
        near = difflib.get_close_matches(unknown[0], modules, n=3, cutoff=0.3)
        raise ValueError(f"{type(network).__name__} has no layer {unknown[0]!r}; nearest: {near}")
    taps: dict[str, torch.Tensor] = {}
    handles = []
    for layer in layers:
        name, _, end = layer.partition(":")
        if end == "input":
            keep = modules[name].register_forward_pre_hook(_keep_input(taps, layer))
        else:
            keep = modules[name].register_forward_hook(_keep_output(taps, layer))
        handles.append(keep)
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def _keep_input(taps: dict[str, torch.Tensor], layer: str) -> Any:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        value = inputs[0]
        taps[layer] = torch.cat(list(value), 1) if isinstance(value, list) else value.clone()

    return hook


def _keep_output(taps: dict[str, torch.Tensor], layer: str) -> Any:
    def hook(_: nn.Module, __: tuple[Any, ...], output: torch.Tensor) -> None:
        taps[layer] = output.clone()

    return hook


def pool_activation(activation: torch.Tensor, pooling: str) -> torch.Tensor:
    """Turn one layer's activation into a feature vector an image.

    Args:
        activation: Shape (B, C, H, W), tokens (B, T, C), or vectors (B, C).
        pooling: ``"flatten"`` (the paper's: every value), or over places ``"mean"``, ``"std"``
            (population), ``"max"``, ``"mean_std"`` (both, means first).

    Returns:
        Shape (B, D), float32.

    Raises:
        ValueError: If the pooling is unknown, or a spread over places is asked of plain vectors.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {POOLINGS}, got {pooling!r}")
    activation = activation.float()
    if pooling == "flatten":
        return activation.flatten(1)
    if activation.ndim == 2:
        if "std" in pooling:
            raise ValueError(f"pooling {pooling!r} needs places, the layer gives vectors")
        return activation
    is_map = activation.ndim == 4
    places = activation.flatten(2) if is_map else activation.transpose(1, 2)  # (B, C, places)
    parts = {
        "mean": lambda: places.mean(2),
        "std": lambda: places.std(2, correction=0),
        "max": lambda: places.amax(2),
    }
    return torch.cat([parts[name]() for name in pooling.split("_")], dim=1)


def iterate_layers(
    backbone: nn.Module,
    store: ImageStore,
    layers: Sequence[str | None],
    *,
    rows: Sequence[int] | np.ndarray | None = None,
    crop: Crop | None = None,
    batch_size: int = 32,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> Iterator[tuple[slice, dict[str | None, torch.Tensor]]]:
    """Run images through the network once and yield the activations of all layers by batch.

    Args:
        backbone: Network, on the device to use; run in evaluation mode without gradients.
        store: Decoded images.
        layers: Names for :func:`tap_layers`, or ``[None]`` for the network's own features
            (``forward_features`` where it has that, else its output).
        rows: Images to run, in this order; None for the whole store.
        crop: Take this crop of each image; None takes whole images of a uniform store.
        batch_size: Images a batch.
        mean: Normalisation, RGB in [0, 1].
        std: Normalisation.
        dtype: Arithmetic: float32, or bfloat16/float16 under autocast.
        progress: Show a bar.

    Yields:
        Positions in ``rows`` and, by layer, activations of shape (B, ...) on the device.

    Raises:
        ValueError: If a layer is unknown or never reached, or named layers and None are mixed.
    """
    rows = np.arange(len(store)) if rows is None else np.asarray(rows)
    device = next(backbone.parameters()).device
    named = [layer for layer in layers if layer is not None]
    if named and len(named) < len(layers):
        raise ValueError("ask for named layers or for None, not for both in one pass")
    run = backbone if named else getattr(backbone, "forward_features", backbone)
    was_training = backbone.training
    backbone.eval()
    try:
        starts = tqdm(range(0, len(rows), batch_size), disable=not progress, leave=False)
        for start in starts:
            part = slice(start, min(start + batch_size, len(rows)))
            # gathered outside inference mode, which would taint the store's reused buffer
            images = to_float(_pixels(store, rows[part], crop, device), mean=mean, std=std)
            precision = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
            with torch.inference_mode(), tap_layers(backbone, named) as taps, precision:
                output = run(images)
            values = dict(taps) if named else {None: output}
            missed = [layer for layer in named if layer not in values]
            if missed:
                raise ValueError(f"the forward pass never reached the layers {missed}")
            yield part, values
    finally:
        backbone.train(was_training)


def _pixels(
    store: ImageStore, rows: np.ndarray, crop: Crop | None, device: torch.device
) -> torch.Tensor:
    if crop is None:
        return store.batch(rows, device=device)
    images = []
    for row in rows:  # one generator an image: a crop depends on nothing but its own key
        key = f"{crop.seed}|{crop.number}|{store.names[row]}".encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:7], "big")
        generator = torch.Generator().manual_seed(seed)
        images.append(store.crops([row], crop.size, generator=generator).clone())
    return torch.cat(images).to(device)


def frozen_layers(
    backbone: nn.Module,
    store: ImageStore,
    layers: Sequence[str | None],
    *,
    pooling: str = "mean_std",
    cache_dir: str | Path | None,
    rows: Sequence[int] | np.ndarray | None = None,
    crop: Crop | None = None,
    batch_size: int = 32,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> dict[str | None, np.ndarray]:
    """Encode images at several layers in one pass, or read the cached result.

    Args:
        backbone: Network, on the device to use.
        store: Decoded images.
        layers: Names for :func:`tap_layers`, or ``[None]``; only those not cached are computed.
        pooling: For :func:`pool_activation`.
        cache_dir: Folder of the cache; None computes and keeps nothing.
        rows: Images to encode, N of them in this order; None for the whole store.
        crop: Crop to take, or None for whole images.
        batch_size: Images a batch.
        mean: Normalisation, RGB in [0, 1].
        std: Normalisation.
        dtype: Arithmetic.
        progress: Show a bar.

    Returns:
        Layer to float32 array of shape (N, D).

    Raises:
        ValueError: If a layer is unknown or never reached, the pooling does not fit, or a feature
            is not finite (the image is named).

    Note:
        Every batch is kept at once, so a pass that was killed goes on where it stopped. Cached and
        re-encoded features are equal to the last bit for the same ``batch_size``, rows and machine;
        other batches may round differently (1e-6), so they share one cache entry.
    """
    recipe = feature_recipe(backbone, store, crop, mean, std, dtype)
    rows = np.arange(len(store)) if rows is None else np.asarray(rows)
    files, arrays, done = {}, {}, {}
    for layer in dict.fromkeys(layers):
        arrays[layer], done[layer] = None, np.zeros(len(rows), dtype=bool)
        if cache_dir is not None:
            files[layer] = cache_path(cache_dir, recipe, layer, pooling)
            arrays[layer], done[layer] = load_rows(files[layer], rows, n_images=len(store))
    missing = [layer for layer in done if not done[layer].all()]
    if missing:
        places = np.flatnonzero(~np.all([done[layer] for layer in missing], axis=0))
        options = {"crop": crop, "batch_size": batch_size, "mean": mean, "std": std}
        options |= {"dtype": dtype, "progress": progress, "rows": rows[places]}
        for part, batch in iterate_layers(backbone, store, missing, **options):
            at = places[part]
            for layer, activation in batch.items():
                x = pool_activation(activation, pooling).cpu().numpy()  # (B, D)
                require_finite(x, layer, store, rows[at])
                if arrays[layer] is None:
                    arrays[layer] = np.empty((len(rows), x.shape[1]), dtype=np.float32)
                arrays[layer][at] = x
                if layer in files:
                    save_rows(files[layer], rows[at], x, n_images=len(store))
    return {layer: arrays[layer] for layer in layers}


def require_finite(
    array: np.ndarray, layer: str | None, store: ImageStore, rows: np.ndarray
) -> np.ndarray:
    """Return features, shape (N, D), or refuse them: layer and images are named.

    Raises:
        ValueError: If a feature is not finite.
    """
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        names = [store.names[i] for i in rows[bad[:3]]]
        raise ValueError(
            f"layer {layer}: features must be finite, {len(bad)} images are not: {names}"
        )
    return array


def frozen_features(
    backbone: nn.Module, store: ImageStore, *, layer: str | None = None, **options: Any
) -> np.ndarray:
    """Encode images once: :func:`frozen_layers` for a single layer.

    Args:
        backbone: Network, on the device to use.
        store: Decoded images.
        layer: Name for :func:`tap_layers`; None takes the network's own features.
        **options: Keyword arguments of :func:`frozen_layers` (``pooling``, ``cache_dir``, ``rows``,
            ``crop``, ``batch_size``, ``mean``, ``std``, ``dtype``, ``progress``).

    Returns:
        Float32 array of shape (N, D).
    """
    return frozen_layers(backbone, store, [layer], **options)[layer]


def feature_recipe(
    backbone: nn.Module,
    store: ImageStore,
    crop: Crop | None,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Collect what features depend on but for layer and pooling: the key of a cache entry."""
    return {
        "weights": weights_hash(backbone),
        "network": repr(backbone),
        "pixels": store.key,
        "crop": crop and asdict(crop),
        "mean": [float(x) for x in mean],
        "std": [float(x) for x in std],
        "dtype": str(dtype),
    }


def cache_path(cache_dir: str | Path, recipe: dict[str, Any], layer: str | None, kind: str) -> Path:
    """Name the file of one cache entry: kind and layer for people, a hash of all of it for us."""
    text = json.dumps({**recipe, "layer": layer, "kind": kind}, sort_keys=True)
    label = f"{kind}-{layer or 'features'}".replace(":", "-")
    ending = "npy" if kind == "gram" else "rows"
    return Path(cache_dir) / f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.{ending}"


def load_rows(
    path: Path, rows: np.ndarray, *, n_images: int
) -> tuple[np.ndarray | None, np.ndarray]:
    """Read features of some of a store's images: (N, D), and which of them are there, (N,)."""
    done = np.zeros(len(rows), dtype=bool)
    if not path.is_file() or not path.stat().st_size:
        return None, done
    table = np.memmap(path, dtype=np.uint32, mode="r").reshape(n_images, -1)[rows]  # (N, D + 1)
    done[:] = [_checksum(row[:-1].tobytes()) == row[-1] for row in table]
    return np.ascontiguousarray(table[:, :-1]).view(np.float32), done


def save_rows(path: Path, rows: np.ndarray, features: np.ndarray, *, n_images: int) -> None:
    """Write features of some images, (N, D), each with the checksum that makes it valid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    length = 4 * (features.shape[1] + 1)  # bytes a row
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        os.ftruncate(file.fileno(), n_images * length)  # rows to come take no disk
        for row, values in zip(rows, features, strict=True):
            data = values.astype(np.float32).tobytes()
            file.seek(int(row) * length)
            file.write(data + np.uint32(_checksum(data)).tobytes())


def _checksum(data: bytes) -> int:
    return zlib.crc32(data) or 1  # 0 is a row that was never written


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array to a temporary name and move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(path)

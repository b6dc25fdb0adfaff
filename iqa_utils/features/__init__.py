"""Deep features: tap named layers of a backbone once, and never run it twice on the same pixels.

A feature is a function of (weights, layer, pooling, pixels) and is cached under a hash of exactly
these, image by image. One forward pass serves all layers that were asked for.
"""

import difflib
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from iqa_utils.backbones import by_places, create_backbone, normalisation, weights_hash
from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD, ImageStore, to_float
from iqa_utils.natural_scenes import N_STATISTICS, brisque_statistics

POOLINGS = ("flatten", "mean", "std", "max", "mean_std")


@dataclass(frozen=True)
class Crop:
    """One seeded random crop of every image; crop k never depends on how many are taken."""

    size: tuple[int, int]  # height and width, px
    number: int = 0
    seed: int = 0

    def take(self, store: ImageStore, rows: np.ndarray) -> torch.Tensor:
        """Cut images of a store, shape (B, 3, height, width), uint8."""
        images, generator = [], torch.Generator()
        for row in rows:  # one seed per image: a crop depends on nothing but its own key
            key = f"{self.seed}|{self.number}|{store.names[row]}".encode()
            generator.manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:7], "big"))
            images.append(store.crops([row], self.size, generator=generator).clone())
        return torch.cat(images)


@contextmanager
def tap_layers(network: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the activations of several layers during one forward pass.

    Activations are cloned when they leave their layer: the in-place activation that often follows
    (VGG, DenseNet, MobileNet) would otherwise overwrite them.

    Args:
        network: Any module.
        layers: Names as in ``network.named_modules()``; ``"name:input"`` taps what enters a layer
            instead, in its last call (a list of tensors is concatenated over channels, as DenseNet
            does itself); ``"name+name"`` joins two, the later one last.

    Yields:
        A dictionary that holds the activations of the latest forward pass by these names.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> with tap_layers(network, ["0"]) as taps:
        ...     _ = network(torch.zeros(1, 3, 5, 5))
        >>> taps["0"].shape
        torch.Size([1, 8, 3, 3])
    """
    modules = dict(network.named_modules())
    parts = {layer: layer.split("+") for layer in layers}
    ends = dict.fromkeys(part for names in parts.values() for part in names)
    unknown = [end for end in ends if end.partition(":")[0] not in modules]
    if unknown:
        near = difflib.get_close_matches(unknown[0], modules, n=3, cutoff=0.3)
        raise ValueError(f"{type(network).__name__} has no layer {unknown[0]!r}; nearest: {near}")
    taps: dict[str, torch.Tensor] = {}
    pieces: dict[str, torch.Tensor] = {}

    def keep(end: str, value: Any) -> None:
        pieces[end] = torch.cat(list(value), 1) if isinstance(value, list) else value.clone()
        for layer, names in parts.items():
            if end == names[-1]:
                taps[layer] = torch.cat([pieces[n] for n in names], 1) if names[1:] else pieces[end]

    handles = []
    for end in ends:
        name, _, side = end.partition(":")
        if side == "input":
            hook = partial(lambda end, _, inputs: keep(end, inputs[0]), end)
            handles.append(modules[name].register_forward_pre_hook(hook))
        else:
            hook = partial(lambda end, _, __, output: keep(end, output), end)
            handles.append(modules[name].register_forward_hook(hook))
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def pool_activation(activation: torch.Tensor, pooling: str) -> torch.Tensor:
    """Turn one layer's activation into one feature vector per image.

    Args:
        activation: Shape (B, C, H, W), tokens (B, T, C), or vectors (B, C).
        pooling: ``"flatten"`` (the paper's: every value), or over places ``"mean"``, ``"std"``
            (population), ``"max"``, ``"mean_std"`` (both, means first).

    Returns:
        Shape (B, D), float32.

    Example:
        >>> pool_activation(torch.ones(2, 3, 4, 4), "mean_std").shape
        torch.Size([2, 6])
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
    places = by_places(activation)  # (B, C, places)
    if pooling == "max":
        return places.amax(2)
    parts = {"mean": places.mean, "std": lambda axis: places.std(axis, correction=0)}
    return torch.cat([parts[name](2) for name in pooling.split("_")], dim=1)


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
        batch_size: Images per batch.
        mean: Normalisation, RGB in [0, 1], as ``std``.
        std: Normalisation.
        progress: Show a bar.

    Yields:
        Positions in ``rows`` and, by layer, activations of shape (B, ...) on the device.
    """
    rows = np.arange(len(store)) if rows is None else np.asarray(rows)
    device = next(backbone.parameters()).device
    named = [layer for layer in layers if layer is not None]
    run = backbone if named else getattr(backbone, "forward_features", backbone)
    was_training = backbone.training
    backbone.eval()
    try:
        for start in tqdm(range(0, len(rows), batch_size), disable=not progress, leave=False):
            part = slice(start, min(start + batch_size, len(rows)))
            # gathered outside inference mode, which would taint the store's reused buffer
            cut = crop.take(store, rows[part]).to(device) if crop else None
            pixels = store.batch(rows[part], device=device) if cut is None else cut
            images = to_float(pixels, mean=mean, std=std)
            with torch.inference_mode(), tap_layers(backbone, named) as taps:
                output = run(images)
            values = dict(taps) if named else {None: output}
            if missed := [layer for layer in layers if layer not in values]:
                raise ValueError(f"the forward pass never reached the layers {missed}")
            yield part, values
    finally:
        backbone.train(was_training)


def frozen_layers(
    backbone: nn.Module,
    store: ImageStore,
    layers: Sequence[str | None],
    *,
    pooling: str = "mean_std",
    cache_dir: str | Path | None,
    rows: Sequence[int] | np.ndarray | None = None,
    **options: Any,
) -> dict[str | None, np.ndarray]:
    """Encode N images at several layers in one pass, or read the cached result.

    Images, layers and ``options`` are those of :func:`iterate_layers`, ``pooling`` that of
    :func:`pool_activation`. Layers that are cached in ``cache_dir`` are not computed; None keeps
    nothing. Returns layer to float32 array of shape (N, D).

    Note:
        Every batch is kept at once, so a pass that was killed goes on where it stopped. Cached and
        re-encoded features are equal to the last bit for the same ``batch_size``, rows and machine;
        other batches may round differently (1e-6), so they share one cache entry.
    """
    recipe, n = feature_recipe(backbone, store, options), len(store)
    rows = np.arange(n) if rows is None else np.asarray(rows)
    files, arrays, done = {}, {}, {}
    for layer in dict.fromkeys(layers):
        files[layer] = cache_dir and cache_path(cache_dir, recipe, layer, pooling)
        arrays[layer], done[layer] = load_rows(files[layer], rows, n_images=n)
    missing = [layer for layer in done if not done[layer].all()]
    if missing:
        places = np.flatnonzero(~np.all([done[layer] for layer in missing], axis=0))
        batches = iterate_layers(backbone, store, missing, rows=rows[places], **options)
        for part, batch in batches:
            at = places[part]
            for layer, activation in batch.items():
                x = pool_activation(activation, pooling).cpu().numpy()  # (B, D)
                require_finite(x, layer, store, rows[at])
                if arrays[layer] is None:
                    arrays[layer] = np.empty((len(rows), x.shape[1]), dtype=np.float32)
                arrays[layer][at] = x
                if files[layer]:
                    save_rows(files[layer], rows[at], x, n_images=n)
    return {layer: arrays[layer] for layer in layers}


def frozen_features(
    backbone: nn.Module, store: ImageStore, *, layer: str | None = None, **options: Any
) -> np.ndarray:
    """Encode images once, shape (N, D): :func:`frozen_layers` for one layer (None: the last)."""
    return frozen_layers(backbone, store, [layer], **options)[layer]


@dataclass(frozen=True)
class Encoder:
    """Features of images by one network, made by :func:`encoder`."""

    network: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    pooling: str

    def __call__(
        self, images: ImageStore | torch.Tensor, *, cache_dir: str | Path | None = None, **how: Any
    ) -> np.ndarray:
        """Return features, shape (N, D), float32, of a store or of uint8 images (N, 3, H, W).

        ``how`` are options of :func:`frozen_features`: ``rows``, ``crop``, ``batch_size``, ...
        """
        source = _Images(images) if isinstance(images, torch.Tensor) else images
        # the network's own pooling gives the output of the whole network, which is layer ""
        own = {"layer": "", "pooling": "flatten"} if self.pooling == "own" else {"layer": None}
        how |= {"pooling": self.pooling, "mean": self.mean, "std": self.std} | own
        return frozen_features(self.network, source, cache_dir=cache_dir, **how)


def encoder(
    name: str, *, pretrained: str | Path = "random", pooling: str = "own", device: str = "cpu"
) -> Encoder:
    """Return what turns images into features by one network without its classifier.

    Args:
        name: timm model name; its own normalisation is used.
        pretrained: As in :func:`iqa_utils.backbones.create_backbone`.
        pooling: ``"own"`` is the network's (CLIP: the class token); else of the last activation,
            as in :func:`pool_activation`.
        device: Where the network runs.

    Example:
        >>> encode = encoder("resnet18", pooling="mean_std")  # pretrained="hub" downloads weights
        >>> encode(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape
        (2, 1024)
    """
    if pooling not in ("own", *POOLINGS):
        raise ValueError(f"pooling must be 'own' or one of {POOLINGS}, got {pooling!r}")
    network = create_backbone(name, pretrained=pretrained, num_classes=0).to(device)
    return Encoder(network.requires_grad_(False), **normalisation(network), pooling=pooling)


@dataclass(frozen=True)
class _Images:
    """Images in memory, with what an image store offers to a pass."""

    images: torch.Tensor  # (N, 3, H, W), uint8

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> list[str]:
        return [f"image {i}" for i in range(len(self))]

    @property
    def key(self) -> str:
        shape = str(tuple(self.images.shape)).encode()
        return hashlib.sha256(shape + self.images.cpu().numpy().tobytes()).hexdigest()

    def batch(self, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        return self.images[torch.as_tensor(rows)].to(device)


def brisque_features(
    store: ImageStore, rows: np.ndarray | None = None, *, cache_dir: str | Path
) -> np.ndarray:
    """Compute or read BRISQUE's 36 statistics of whole images, shape (N, 36), float64.

    NaN for an image of one grey level, which has none.
    """
    rows = np.arange(len(store)) if rows is None else rows
    path, n = Path(cache_dir) / f"brisque2-{store.key[:24]}.rows", len(store)
    missing = rows[~load_rows(path, rows, n_images=n)[1]]

    def measure(row: int) -> np.ndarray:
        image = store.image(row).permute(1, 2, 0).numpy()
        is_flat = not np.ptp(image.reshape(-1, 3), axis=0).any()
        return np.full(N_STATISTICS, np.nan) if is_flat else brisque_statistics(image)

    with ThreadPoolExecutor() as pool:
        for row, values in zip(missing, pool.map(measure, missing), strict=True):
            words = values[None].view(np.float32)  # two a value
            save_rows(path, [row], words, n_images=n)
    return load_rows(path, rows, n_images=n)[0].view(np.float64)


def require_finite(x: np.ndarray, layer: str | None, store: ImageStore, rows: np.ndarray) -> None:
    """Refuse features, shape (N, D), that are not finite: layer and images are named."""
    if len(bad := np.flatnonzero(~np.isfinite(x).all(axis=1))):
        first = f"{len(bad)} images are not: {[store.names[i] for i in rows[bad[:3]]]}"
        raise ValueError(f"layer {layer}: features must be finite, {first}")


def feature_recipe(
    backbone: nn.Module, store: ImageStore, options: dict[str, Any]
) -> dict[str, Any]:
    """Collect what features depend on but for layer and pooling: the key of a cache entry."""
    crop = options.get("crop")
    return {
        "weights": weights_hash(backbone),
        "network": repr(backbone),
        "pixels": store.key,
        "crop": crop and asdict(crop),
        "mean": [float(x) for x in options.get("mean", IMAGENET_MEAN)],
        "std": [float(x) for x in options.get("std", IMAGENET_STD)],
    }


def cache_path(cache_dir: str | Path, recipe: dict[str, Any], layer: str | None, kind: str) -> Path:
    """Name the file of one cache entry: kind and layer for people, a hash of all of it for us."""
    text = json.dumps({**recipe, "layer": layer, "kind": kind}, sort_keys=True)
    label = f"{kind}-{layer or 'features'}".replace(":", "-")
    ending = "npy" if kind == "gram" else "rows"
    return Path(cache_dir) / f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.{ending}"


def load_rows(
    path: Path | None, rows: np.ndarray, *, n_images: int
) -> tuple[np.ndarray | None, np.ndarray]:
    """Read features of some of a store's images: (N, D), and which of them are there, (N,)."""
    size = path.stat().st_size if path and path.is_file() else 0
    if not size or size % (4 * n_images):  # absent, or cut: see `save_rows`
        return None, np.zeros(len(rows), dtype=bool)
    table = np.memmap(path, dtype=np.uint32, mode="r").reshape(n_images, -1)[rows]  # (N, D + 1)
    done = np.array([_checksum(row[:-1].tobytes()) == row[-1] for row in table], dtype=bool)
    if len(rows) and not done.any():  # nor is its width to be trusted
        return None, done
    return np.ascontiguousarray(table[:, :-1]).view(np.float32), done


def save_rows(path: Path, rows: np.ndarray, features: np.ndarray, *, n_images: int) -> None:
    """Write features of some images, (N, D), each with the checksum that makes it valid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    length = 4 * (features.shape[1] + 1)  # bytes per row
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        if os.fstat(file.fileno()).st_size not in (0, n_images * length):
            print(f"{path} is damaged and is made again", flush=True)
            file.truncate(0)
        os.ftruncate(file.fileno(), n_images * length)  # rows to come take no disk
        for row, values in zip(rows, features, strict=True):
            data = values.astype(np.float32).tobytes()
            file.seek(int(row) * length)
            file.write(data + np.uint32(_checksum(data)).tobytes())


def _checksum(data: bytes) -> int:
    return zlib.crc32(data) or 1  # 0 is a row that was never written

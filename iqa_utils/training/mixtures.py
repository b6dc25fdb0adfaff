"""Images of several data sets in one batch, and predictions of whole images of any size."""

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from iqa_utils import losses, samplers, training
from iqa_utils.backbones import normalisation, weights_hash
from iqa_utils.images import ImageStore, augment, build_store, to_float
from iqa_utils.metrics import size_weighted, srcc
from iqa_utils.models import monotonic
from iqa_utils.samplers import Mixing
from iqa_utils.training.batches import Batch, epoch_seed, frozen_maps
from iqa_utils.training.checkpoints import data_digest

# source that decides a training, as it was loaded: other code, another training
_MODULES = (sys.modules[__name__], losses, samplers, monotonic, training)
_CODE = "".join(map(inspect.getsource, _MODULES))


class CroppedImages:
    """Pixels of one set: seeded random crops of ``train``, whole images of ``test`` to predict."""

    def __init__(
        self, train: ImageStore, test: ImageStore, *, crop: int | tuple[int, int], trunk: nn.Module
    ) -> None:
        self.train, self.test, self.crop = train, test, _height_and_width(crop)
        self.device, self.normal = next(trunk.parameters()).device, normalisation(trunk)
        self.key = f"{train.key} {test.key} {crop}"

    def draw(self, rows: np.ndarray, generator: torch.Generator) -> Tensor:
        """Return one random, randomly mirrored crop per row, (B, 3, H, W)."""
        options = {"generator": generator, "device": self.device}
        crops = self.train.crops(rows, self.crop, **options)
        return to_float(augment(crops, generator=generator), **self.normal)

    def whole(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield positions in ``rows`` and images, (B, 3, H, W), batched by their size."""
        sizes = self.test.sizes[rows]
        for size in np.unique(sizes, axis=0):
            same = np.flatnonzero((sizes == size).all(1))
            for start in range(0, len(same), 8):
                chosen = same[start : start + 8]
                images = torch.stack([self.test.image(i) for i in rows[chosen]])
                images = images.to(self.device, non_blocking=True)
                yield chosen, to_float(images, **self.normal)


@dataclass
class TrunkMaps:
    """Last maps of a frozen trunk, (N, C, h, w), computed once: inputs for heads alone."""

    maps: Tensor
    key: str

    def draw(self, rows: np.ndarray, generator: torch.Generator) -> Tensor:
        """Return the maps of the rows, (B, C, h, w), float32; there is nothing to draw."""
        return self.maps[torch.as_tensor(rows)]

    def whole(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield positions in ``rows`` and their maps."""
        for start in range(0, len(rows), 64):
            chosen = np.arange(len(rows))[start : start + 64]
            yield chosen, self.maps[torch.as_tensor(rows[chosen])]


Pixels = Mapping[str, CroppedImages | TrunkMaps]


def prepare_crops(
    root: Path,
    images: list[str],
    cache_dir: Path,
    *,
    size: int,
    sides: Sequence[int],
    trunk: nn.Module,
) -> CroppedImages:
    """Decode a set for crops of ``size`` from the first shorter side and tests at the second."""
    files = (root, images, cache_dir / "stores")
    stores = [build_store(*files, size=side, fit="shrink_short_side") for side in sides]
    return CroppedImages(*stores, crop=size, trunk=trunk)


def prepare_squashed(
    root: Path, images: list[str], cache_dir: Path, *, size: Sequence[int], trunk: nn.Module
) -> CroppedImages:
    """Squash a set to one height and width; training, too, sees whole images, mirrored or not."""
    height_and_width = _height_and_width(size)
    store = build_store(root, images, cache_dir / "stores", size=height_and_width)
    return CroppedImages(store, store, crop=height_and_width, trunk=trunk)


def prepare_maps(
    root: Path,
    images: list[str],
    cache_dir: Path,
    *,
    size: int | Sequence[int],
    trunk: nn.Module,
) -> TrunkMaps:
    """Squash a set to one side, or height and width, and run a frozen trunk over it once."""
    store = build_store(root, images, cache_dir / "stores", size=_height_and_width(size))
    how = {"cache_dir": cache_dir / "features", "batch_size": 16, **normalisation(trunk)}
    maps = frozen_maps(trunk, store, **how)
    return TrunkMaps(maps, key=f"{store.key} {weights_hash(trunk)}")


def _height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def mixed_stream(
    frames: Mapping[str, pd.DataFrame],
    pixels: Pixels,
    split: Mapping[str, Mapping[str, np.ndarray]],
    targets: Mapping[str, np.ndarray],
    *,
    mixing: Mixing,
    batch_size: int,
    seed: int,
) -> Callable[[int], Iterator[Batch]]:
    """Return the stream of mixed batches of an epoch, counted from 0.

    ``split`` is that of :func:`iqa_utils.mixed_sets.split_sets`; for ``mixing`` and ``batch_size``
    see :func:`iqa_utils.samplers.mixed_batches`. ``source`` numbers the sets of ``targets``, which
    hold the scores to learn.
    """
    names = list(targets)
    rows = {name: split[name]["training"] for name in names}
    starts = np.cumsum([0, *(len(frames[name]) for name in names)])
    images = [f"{name}/{image}" for name in names for image in frames[name]["image"]]

    def epoch_batches(epoch: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch_seed(seed, epoch, 2))
        options = {"batch_size": batch_size, "seed": seed, "epoch": epoch}
        for drawn in samplers.mixed_batches([len(rows[n]) for n in names], mixing, **options):
            drawn = drawn[np.argsort(drawn[:, 0], kind="stable")]  # (B, 2), set by set
            chosen = {s: rows[names[s]][drawn[drawn[:, 0] == s, 1]] for s in np.unique(drawn[:, 0])}
            inputs = torch.cat([pixels[names[s]].draw(r, generator) for s, r in chosen.items()])
            mos = np.concatenate([targets[names[s]][r] for s, r in chosen.items()])
            mos = torch.as_tensor(mos, dtype=torch.float32)
            index = torch.as_tensor(np.concatenate([starts[s] + r for s, r in chosen.items()]))
            source = torch.as_tensor(drawn[:, 0])
            yield Batch((inputs,), mos, index, source=source, names=images)

    return epoch_batches


def loss_step(
    of_one_set: Callable[[Tensor, Tensor], Tensor], model: nn.Module, batch: Batch
) -> Tensor:
    """Return the loss of one mixed batch: each set on its own, the sets averaged."""
    source = batch.source.to(batch.mos.device, non_blocking=True)
    pred = model(*batch.inputs, source).float()
    return losses.mean_over_sources(of_one_set, pred, batch.mos, batch.source)


def predict_quality(
    model: nn.Module,
    pixels: CroppedImages | TrunkMaps,
    rows: np.ndarray,
    precision: training.Precision = "fp32",
) -> np.ndarray:
    """Predict the quality of whole images, or of their maps, shape (N,), on the model's scale."""
    order: list[np.ndarray] = []

    def batches() -> Iterator[Batch]:
        for positions, inputs in pixels.whole(rows):
            order.append(positions)
            yield Batch((inputs,), torch.zeros(len(positions)), torch.as_tensor(positions))

    pred = training.predict(model, batches(), precision=precision)  # waits for a GPU once
    quality = np.empty(len(rows))
    quality[np.concatenate(order)] = pred
    return quality


def validate(
    model: nn.Module,
    frames: Mapping[str, pd.DataFrame],
    pixels: Pixels,
    split: Mapping[str, Mapping[str, np.ndarray]],
    names: Sequence[str],
    precision: training.Precision,
) -> dict[str, float]:
    """Rank the validation set of each data set; ``val_srcc`` weights them by all their images.

    A constant prediction ranks nothing and counts as 0. Curves do not change the order, so quality
    is ranked.
    """
    values = {}
    for name in names:
        rows = split[name]["validation"]
        quality = predict_quality(model, pixels[name], rows, precision)
        values[name] = np.nan_to_num(srcc(frames[name]["mos"].to_numpy()[rows], quality))
    weighted = size_weighted(values, {name: len(frames[name]) for name in names})
    return {"val_srcc": weighted, **{f"val_srcc {name}": v for name, v in values.items()}}


def describe_data(
    frames: Mapping[str, pd.DataFrame],
    pixels: Pixels,
    split: Mapping[str, Mapping[str, np.ndarray]],
    targets: Mapping[str, np.ndarray],
) -> dict[str, object]:
    """Collect code, pixels, splits and scores that decide a training, for ``config`` of ``fit``."""
    config: dict[str, object] = {"code": hashlib.sha256(_CODE.encode()).hexdigest()}
    for name, scores in targets.items():
        scores = np.stack([scores, frames[name]["mos"].to_numpy(dtype=float)])
        config[f"data of {name}"] = [pixels[name].key, data_digest(split[name], scores)]
    return config

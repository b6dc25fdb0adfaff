"""Several data sets side by side: their scores on one range, their pixels as a network takes them.

Scores keep each set's own scale in the tables; only training sees them re-scaled, and only with
what the training part shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from iqa_utils.backbones import weights_hash
from iqa_utils.datasets import DATASETS, check_images, load_scores
from iqa_utils.features import frozen_features
from iqa_utils.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageStore,
    augment,
    build_store,
    to_float,
)
from iqa_utils.images.decoding import read_image
from iqa_utils.splits import PARTS, check_disjoint, content_split

TOP = 10.0  # training scores of every set are re-scaled to [0, 10]
Frames = Mapping[str, pd.DataFrame]
Parts = Mapping[str, pd.Series]
WARPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "x": lambda x: x,
    "square root": np.sqrt,
    "cube": lambda x: x**3,
}


def load_sets(names: Sequence[str], root: str | Path) -> tuple[dict[str, pd.DataFrame], dict]:
    """Load the score tables of several sets whose images are on disk.

    Args:
        names: Sets to load; empty means every known set that is whole under the root.
        root: Folder that holds each set in a folder of its name.

    Returns:
        Score tables by set, and for sets that were passed over the reason why.

    Raises:
        FileNotFoundError: If a named set or its images are missing, or nothing at all is found.
    """
    frames, reasons = {}, {}
    for name in names or [known for known in DATASETS if known != "table"]:
        try:
            frame = load_scores(name, Path(root) / name)
            check_images(frame, Path(root) / name)
            frames[name] = frame
        except (FileNotFoundError, ValueError) as error:
            if names:
                raise
            reasons[name] = str(error)
    if not frames:
        raise FileNotFoundError(f"no data set with its images under {root}: {reasons}")
    return frames, reasons


def warp_subsets(frame: pd.DataFrame, warps: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    """Cut one set into subsets and pass the scores of each through a known monotone map.

    Args:
        frame: Score table whose image names start with the name of a subset, scale [0, 1].
        warps: Subset to a key of :data:`WARPS`.

    Returns:
        Score tables by subset: ``mos`` is warped, ``mos_original`` is not, ``row`` is the row in
        the table given.

    Raises:
        ValueError: If a map is unknown, a subset has no image, or the scale is not [0, 1].
    """
    unknown = sorted(set(warps.values()) - set(WARPS))
    if unknown or frame.attrs["scale"] != (0.0, 1.0):
        raise ValueError(
            f"warps take {sorted(WARPS)} on scores in [0, 1], got {unknown or 'known names'} on "
            f"{frame.attrs['scale']}"
        )
    subset = frame["image"].map(lambda image: Path(image).name.split(" ")[0].lower())
    frames = {}
    for name, warp in warps.items():
        part = frame[subset == name].reset_index(names="row")
        if part.empty:
            raise ValueError(f"no image of {frame.attrs['dataset']} starts with {name!r}")
        part["mos_original"] = part["mos"]
        frames[name] = part.assign(mos=WARPS[warp](part["mos"].to_numpy()))
        frames[name].attrs = {**frame.attrs, "dataset": name, "title": f"{name} ({warp})"}
    return frames


def load_frames(
    names: Sequence[str], root: Path, warps: Mapping[str, str]
) -> tuple[dict[str, pd.DataFrame], dict[str, Path], dict[str, str]]:
    """Load the sets of a run: several real ones, or one cut into subsets with known maps.

    Args:
        names: As in :func:`load_sets`.
        root: Likewise.
        warps: As in :func:`warp_subsets`; empty leaves the sets as they are.

    Returns:
        Score tables by set, the folder that each set's image names are relative to, and for sets
        that were passed over the reason why.

    Raises:
        ValueError: If there are warps and not exactly one set.
    """
    frames, passed_over = load_sets(names, root)
    folders = {name: root / name for name in frames}
    if warps:
        if len(frames) != 1:
            raise ValueError(f"known maps need one set to cut, got {sorted(frames)}")
        ((name, whole),) = frames.items()
        frames = warp_subsets(whole, warps)
        folders = dict.fromkeys(frames, root / name)
    return frames, folders, passed_over


def describe_sets(frames: Frames, parts: Parts) -> pd.DataFrame:
    """Tabulate sets: what they are, the range of their scores, the sizes of their parts.

    Args:
        frames: Score tables by set.
        parts: Part of each row, by set.

    Returns:
        One row a set.
    """
    rows = {}
    for name, frame in frames.items():
        counts = parts[name].value_counts().reindex(list(PARTS)).to_dict()
        low, middle, high = frame["mos"].quantile([0, 0.5, 1])
        kind, title = frame.attrs["kind"], frame.attrs["title"]
        contents = frame["reference"].nunique()
        rows[title] = {"kind": kind, "images": len(frame), "contents": contents} | counts
        rows[title] |= {"lowest MOS": low, "median MOS": middle, "highest MOS": high}
    return pd.DataFrame.from_dict(rows, orient="index")


def pick_examples(
    frames: Frames, folders: Mapping[str, Path], *, quantiles: Sequence[float] = (0.9, 0.1)
) -> tuple[list[np.ndarray], list[str]]:
    """Read one image of each set at some ranks of its scores.

    Args:
        frames: Score tables by set.
        folders: Folder that the image names of each set are relative to.
        quantiles: Ranks, 0 to 1.

    Returns:
        uint8 images, (H, W, 3), rank by rank, and captions with set, distortion and score.
    """
    images, captions = [], []
    for quantile in quantiles:
        for name, frame in frames.items():
            row = frame.sort_values("mos").iloc[int(quantile * (len(frame) - 1))]
            kind = "" if pd.isna(row["distortion"]) else f" {row['distortion']}"
            images.append(np.asarray(read_image(folders[name] / row["image"])))
            captions.append(f"{name}{kind}\nMOS {row['mos']:.3g}")
    return images, captions


def split_sets(
    frames: Frames, *, fractions: tuple[float, ...] = (0.6, 0.2, 0.2), seed: int
) -> dict[str, pd.Series]:
    """Split every set by content and refuse parts that cannot be ranked.

    Args:
        frames: Score tables by set.
        fractions: Shares of training, validation and test.
        seed: Which of the splits.

    Returns:
        Part of each row, by set.

    Raises:
        ValueError: If a part of a set has fewer than two images; names set and part.
    """
    parts = {}
    for name, frame in frames.items():
        parts[name] = content_split(frame, fractions=fractions, seed=seed)
        check_disjoint(frame, parts[name])
        counts = parts[name].value_counts().reindex(list(PARTS), fill_value=0)
        if counts.min() < 2:
            raise ValueError(
                f"{name}: every part needs 2 images to be ranked, split {seed} has "
                f"{counts.to_dict()}"
            )
    return parts


def rescale(mos: np.ndarray, training: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Map scores linearly so that those of the training part span [0, 10].

    Args:
        mos: All scores of a set, shape (N,).
        training: Which rows are training, booleans, shape (N,).

    Returns:
        Re-scaled scores, shape (N,) (others may lie outside [0, 10]), and the lowest and highest
        training score.

    Raises:
        ValueError: If all training scores are equal.
    """
    low, high = float(mos[training].min()), float(mos[training].max())
    if not high > low:
        raise ValueError(f"training scores are all {low:g}; their range cannot be re-scaled")
    return TOP * (mos - low) / (high - low), (low, high)


class CroppedImages:
    """Pixels of one set: seeded random crops to train on, whole images to predict.

    Args:
        train: Store at the size that crops are taken from.
        test: Store at the size of prediction; its rows are those of ``train``.
        crop: Side of the square crops, pixels.
        device: Where batches are normalised.
    """

    def __init__(
        self, train: ImageStore, test: ImageStore, *, crop: int, device: torch.device | str = "cpu"
    ) -> None:
        self.train, self.test, self.crop, self.device = train, test, crop, device
        self.key = f"{train.key} {test.key} {crop}"
        self.preprocessing: dict[str, Any] = {}  # how a whole image was brought to its size

    def draw(self, rows: np.ndarray, generator: torch.Generator) -> Tensor:
        """Return one random, randomly mirrored crop a row, (B, 3, crop, crop)."""
        crops = self.train.crops(rows, (self.crop, self.crop), generator=generator)
        crops = augment(crops.to(self.device), generator=generator)
        return to_float(crops, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    def whole(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield positions in ``rows`` and images, (B, 3, H, W), batched by their size."""
        sizes = self.test.sizes[rows]
        for size in np.unique(sizes, axis=0):
            same = np.flatnonzero((sizes == size).all(1))
            for start in range(0, len(same), batch_size):
                chosen = same[start : start + batch_size]
                images = torch.stack([self.test.image(i) for i in rows[chosen]]).to(self.device)
                yield chosen, to_float(images, mean=IMAGENET_MEAN, std=IMAGENET_STD)


class TrunkMaps:
    """Last maps of a frozen trunk, computed once: inputs for heads that are trained alone.

    Args:
        maps: Shape (N, h, w, C), float32; channels last, as a projection reads them.
        trunk: What they were computed with.
        key: Names the pixels and the weights.
    """

    def __init__(self, maps: Tensor, *, trunk: nn.Module, key: str) -> None:
        self.maps, self.trunk, self.key = maps, trunk, key
        self.preprocessing: dict[str, Any] = {}  # how an image was brought to its size

    def draw(self, rows: np.ndarray, generator: torch.Generator) -> Tensor:
        """Return the maps of the rows, (B, C, h, w), float32; there is nothing to draw."""
        return self.maps[torch.as_tensor(rows)].permute(0, 3, 1, 2)

    def whole(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield positions in ``rows`` and their maps."""
        for start in range(0, len(rows), batch_size):
            chosen = np.arange(start, min(start + batch_size, len(rows)))
            yield chosen, self.maps[torch.as_tensor(rows[chosen])].permute(0, 3, 1, 2)


Pixels = Mapping[str, CroppedImages | TrunkMaps]


def trunk_maps(trunk: nn.Module, store: ImageStore, *, cache_dir: str | Path | None) -> TrunkMaps:
    """Run a frozen trunk over a uniform store once, or read the cached result.

    Args:
        trunk: timm network without pooling and classifier.
        store: Decoded images of one size.
        cache_dir: Folder of the feature cache, or None.

    Returns:
        Its maps, float32.
    """
    flat = frozen_features(trunk, store, pooling="flatten", cache_dir=cache_dir, batch_size=16)
    device = next(trunk.parameters()).device
    with torch.inference_mode():
        shape = trunk.eval().forward_features(torch.zeros(1, 3, *store.sizes[0], device=device))
    maps = torch.from_numpy(flat).reshape(-1, *shape.shape[1:])  # (N, C, h, w)
    maps = maps.permute(0, 2, 3, 1).contiguous()
    return TrunkMaps(maps, trunk=trunk, key=f"{store.key} {weights_hash(trunk)}")


def prepare_pixels(
    frames: Frames,
    folders: Mapping[str, Path],
    cache_dir: Path,
    *,
    size: int,
    trunk: nn.Module | None = None,
    sides: Sequence[int] = (512, 768),
    device: torch.device | str = "cpu",
) -> dict[str, CroppedImages | TrunkMaps]:
    """Decode every set once, in the way that its training needs.

    Args:
        frames: Score tables by set.
        folders: Folder that the image names of each set are relative to.
        cache_dir: Folder with ``stores`` and ``features``.
        size: Side of random crops, or of whole squashed images where a trunk is given; pixels.
        trunk: Frozen trunk: its maps are computed once and nothing before them is trained.
        sides: Crops are taken from images shrunk to the first shorter side, smaller ones as they
            are; whole images of the second are predicted.
        device: Where batches of crops are normalised.

    Returns:
        Pixels by set.

    References:
        Feng et al., released code: 384-pixel crops from a shorter side of 512, tested at 768.
    """
    pixels: dict[str, CroppedImages | TrunkMaps] = {}
    stores = cache_dir / "stores"
    for name, frame in frames.items():
        root, images = folders[name], frame["image"].tolist()
        if trunk is not None:
            store = build_store(root, images, stores, size=(size, size))
            pixels[name] = trunk_maps(trunk, store, cache_dir=cache_dir / "features")
            pixels[name].preprocessing = {"size": [size, size], "fit": "squash"}
            continue
        train, test = (
            build_store(root, images, stores, size=side, fit="shrink_short_side") for side in sides
        )
        pixels[name] = CroppedImages(train, test, crop=size, device=device)
        pixels[name].preprocessing = {"size": sides[1], "fit": "shrink_short_side"}
    return pixels

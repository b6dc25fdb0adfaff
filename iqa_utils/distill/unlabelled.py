"""Images without scores: which can be used, and their central crops as fast as files decode.

A crop is taken from the decoded pixels and never re-encoded or enlarged, because both leave
artefacts that a quality model would learn. Nothing here knows a network.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD, to_float
from iqa_utils.images.decoding import BadImageError, find_images, image_size, read_image
from iqa_utils.training.batches import Batch, epoch_seed

COPY = "copy of a labelled image"
AHEAD = 2  # batches decoded in advance


@dataclass(frozen=True)
class UnlabelledSet:
    """The usable images of some folders, and those that were left out with the reason.

    Attributes:
        images: One row per usable image, sorted: ``image`` (folder name / relative path), ``path``,
            ``height``, ``width`` (pixels, upright), ``bytes``.
        left_out: ``image``, ``reason`` (one of a few words, to be counted) and ``detail`` of every
            other image file that was found.
        crop: Height and width of the central crop, pixels.
    """

    images: pd.DataFrame
    left_out: pd.DataFrame
    crop: tuple[int, int]

    def __len__(self) -> int:
        return len(self.images)

    def without(self, errors: pd.DataFrame) -> UnlabelledSet:
        """Leave out the images whose decoding failed: columns ``image`` and ``error``."""
        bad = self.images["image"].isin(errors["image"])
        corrupt = errors.rename(columns={"error": "detail"}).assign(reason="corrupt")
        left_out = pd.concat([self.left_out, corrupt[list(self.left_out)]], ignore_index=True)
        return UnlabelledSet(self.images[~bad].reset_index(drop=True), left_out, self.crop)


def scan_images(
    *folders: Path,
    crop: tuple[int, int],
    exclude: Collection[Path] = (),
    on_bad_image: str = "raise",
) -> UnlabelledSet:
    """List the images of some folders that a central crop can be taken from.

    Nothing is enlarged. An image below the crop's height and width is ``"too small"``; one that
    falls short on one side only has the ``"wrong shape"``: a 3:2 photograph of 1024x683 for a crop
    of 1024x768. Of a file as long as an excluded one the bytes are read: a copy of a labelled image
    under another name is found where not a byte differs.

    Args:
        *folders: Searched with their sub-folders.
        crop: Height and width of the central crop, pixels.
        exclude: Files to leave out with their copies: images of a test, or with known scores.
        on_bad_image: ``"raise"`` names every image whose header cannot be read; ``"drop"`` puts
            them among those left out.

    Raises:
        FileNotFoundError: If a folder is missing or holds no image file.
        ValueError: If two folders have one name, or no image can be used.
        BadImageError: If headers cannot be read.
    """
    if on_bad_image not in ("raise", "drop"):
        raise ValueError(f"on_bad_image must be 'raise' or 'drop', got {on_bad_image!r}")
    titles = [folder.name for folder in folders]
    if len(set(titles)) < len(titles):
        raise ValueError(f"folders must have different names, got {titles}")
    found = [(folder, path) for folder in folders for path in find_images([folder])]
    paths = {f"{folder.name}/{p.relative_to(folder).as_posix()}": p for folder, p in found}
    hidden = {path.resolve() for path in exclude}
    excluded = {name for name, path in paths.items() if path.resolve() in hidden}
    names = sorted(set(paths) - excluded)
    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(lambda name: _measure(name, paths[name], crop), names))
        columns = ["image", "path", "height", "width", "bytes", "reason", "detail"]
        frame = pd.DataFrame(rows, columns=columns)
        copies = _find_copies(frame, exclude, pool)
    frame.loc[copies.index, "reason"], frame.loc[copies.index, "detail"] = COPY, copies
    bad = frame.loc[frame["reason"] == "corrupt", "detail"]
    if len(bad) and on_bad_image == "raise":
        raise BadImageError(f"{len(bad)} images cannot be read: {'; '.join(bad)}")
    usable = frame["reason"].isna()
    if not usable.any():
        first = ": ".join(frame[["reason", "detail"]].iloc[0]) if len(frame) else "all are excluded"
        raise ValueError(f"none of {len(paths)} images can be used: {first}")
    images = frame[usable].drop(columns=["reason", "detail"]).reset_index(drop=True)
    left_out = pd.DataFrame({"image": sorted(excluded), "reason": "labelled image", "detail": ""})
    left_out = pd.concat([frame.loc[~usable, list(left_out)], left_out], ignore_index=True)
    return UnlabelledSet(images.astype({"height": int, "width": int}), left_out, crop)


def central_crop(path: Path, crop: tuple[int, int]) -> np.ndarray:
    """Decode one image and keep its centre.

    Args:
        path: Image file.
        crop: Height and width, pixels.

    Returns:
        uint8 RGB, shape (height, width, 3); an odd margin leaves its extra line below and right.

    Raises:
        BadImageError: If the image cannot be decoded, or is smaller than the crop.
    """
    image, (height, width) = read_image(path), crop
    left, top = (image.width - width) // 2, (image.height - height) // 2
    if left < 0 or top < 0:
        raise BadImageError(
            f"{path}: {image.height}x{image.width} is smaller than the crop {height}x{width}"
        )
    return np.asarray(image.crop((left, top, left + width, top + height)))


def crop_batches(
    paths: Sequence[Path],
    groups: Sequence[np.ndarray],
    crop: tuple[int, int],
    *,
    on_bad_image: str = "raise",
) -> Iterator[tuple[np.ndarray, Tensor, dict[int, str]]]:
    """Decode groups of images in threads while the caller works on an earlier group.

    The processes that torchrun starts on a machine share its cores.

    Args:
        paths: Image files.
        groups: Rows of ``paths`` that go into each batch.
        crop: Height and width of the central crop, pixels.
        on_bad_image: ``"raise"`` or ``"drop"``.

    Yields:
        Rows that were decoded, shape (B,); their crops, uint8, shape (B, 3, H, W), a
        channels-last view of a buffer that is overwritten after the next step of the loop; and
        the rows that could not be decoded with the reason.

    Raises:
        BadImageError: With ``"raise"``, names all undecodable images of a batch, when it is due.
    """
    size = max((len(group) for group in groups), default=0)
    # one buffer more than is in flight: the caller still holds the last one
    shape, pin = (size, *crop, 3), torch.cuda.is_available()
    ring = [torch.empty(shape, dtype=torch.uint8, pin_memory=pin) for _ in range(AHEAD + 2)]
    cores = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    waiting, pool = deque(), ThreadPoolExecutor(max(cores, 1))
    try:
        for position in range(len(groups) + AHEAD):
            if position < len(groups):
                group, buffer = groups[position], ring[position % len(ring)]
                jobs = [
                    pool.submit(_fill, paths[row], crop, buffer[i].numpy())
                    for i, row in enumerate(group)
                ]
                waiting.append((group, buffer, jobs))
            if position >= AHEAD and waiting:
                yield _gather(*waiting.popleft(), on_bad_image)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def file_batches(
    paths: Sequence[Path],
    crop: tuple[int, int],
    rows: np.ndarray,
    scores: np.ndarray,
    *,
    batch_size: int,
    epoch: int = 0,
    augment: Callable[..., Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Stream central crops from their files, for sets too large to keep decoded.

    It yields what :func:`iqa_utils.training.batches.store_batches` would of a store of these crops.
    """
    generator = torch.Generator().manual_seed(epoch_seed(0, epoch))
    groups = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    names = [str(path) for path in paths]
    for group, crops, _ in crop_batches(paths, groups, crop):
        images = crops.to(device)
        if augment is not None:
            images = augment(images, generator=generator)
        images = to_float(images, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        mos = torch.as_tensor(scores[group], dtype=torch.float32, device=device)
        yield Batch((images,), mos, torch.from_numpy(group), names=names)


def _gather(
    group: np.ndarray, buffer: Tensor, jobs: list, on_bad_image: str
) -> tuple[np.ndarray, Tensor, dict[int, str]]:
    """Wait for one batch and take out what could not be decoded."""
    reasons = [job.result() for job in jobs]
    bad = {int(row): reason for row, reason in zip(group, reasons, strict=True) if reason}
    if bad and on_bad_image == "raise":
        raise BadImageError("; ".join(bad.values()))
    good = np.array([reason is None for reason in reasons])
    pixels = buffer[: len(group)] if good.all() else buffer[: len(group)][torch.from_numpy(good)]
    return np.asarray(group)[good], pixels.permute(0, 3, 1, 2), bad  # (B, 3, H, W)


def _fill(path: Path, crop: tuple[int, int], slot: np.ndarray) -> str | None:
    """Decode into a slot of a batch; return the reason where that fails."""
    try:
        slot[...] = central_crop(path, crop)
    except (BadImageError, OSError) as error:
        return str(error)
    return None


def _measure(name: str, path: Path, crop: tuple[int, int]) -> tuple[object, ...]:
    """Return one row: name, path, height, width, bytes, and why the image cannot be used."""
    size = path.stat().st_size
    try:
        height, width = image_size(path)
    except BadImageError as error:
        return name, path, None, None, size, "corrupt", str(error)
    short = (height < crop[0]) + (width < crop[1])
    reason = (None, "wrong shape", "too small")[short]
    detail = f"{height}x{width}, the crop is {crop[0]}x{crop[1]}" if short else None
    return name, path, height, width, size, reason, detail


def _find_copies(
    frame: pd.DataFrame, others: Collection[Path], pool: ThreadPoolExecutor
) -> pd.Series:
    """Return row and original of every file that is byte for byte one of the others."""
    lengths = set(frame["bytes"])
    same = [path for path in others if path.is_file() and path.stat().st_size in lengths]
    originals = dict(zip(pool.map(_content, same), same, strict=True))
    rows = frame.index[frame["bytes"].isin({path.stat().st_size for path in same})]
    found = dict(zip(rows, pool.map(_content, frame.loc[rows, "path"]), strict=True))
    copies = {
        row: originals[content].as_posix() for row, content in found.items() if content in originals
    }
    return pd.Series(copies, dtype=object)


def _content(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()

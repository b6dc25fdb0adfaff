"""Images without scores: which can be used, and their central crops as fast as files decode.

A crop is taken from the decoded pixels and never re-encoded or enlarged, because both leave
artefacts that a quality model would learn. Nothing here knows a network.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from iqa_utils.decoding import BadImageError, image_size, read_image
from iqa_utils.image_files import ENDINGS, walk_images
from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD, to_float
from iqa_utils.training.batches import Batch, epoch_seed

COPY, LABELLED = "copy of a labelled image", "labelled image"
AHEAD = 2  # batches decoded in advance
_SIZES = {"height": "i4", "width": "i4", "bytes": "i8"}
_TEXT = pd.StringDtype("pyarrow", na_value=np.nan)  # 8 bytes and the letters for each name


@dataclass(frozen=True)
class UnlabelledSet(Sequence):
    """The usable images of some folders, and those that were left out with the reason.

    As a sequence it holds the paths, each made when it is asked for: millions of images take their
    names' letters and some 30 bytes each.

    Attributes:
        folders: The folders by their name.
        images: One row per usable image, sorted: ``image`` (folder name / relative path),
            ``height``, ``width`` (pixels, upright), ``bytes``.
        left_out: ``image``, ``reason`` (one of a few words, to be counted) and ``detail`` of every
            other image file that was found.
        crop: Height and width of the central crop, pixels.
    """

    folders: dict[str, Path]
    images: pd.DataFrame
    left_out: pd.DataFrame
    crop: tuple[int, int]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Path:
        title, _, name = self.images["image"].iloc[row].partition("/")
        return self.folders[title] / name

    def without(self, errors: pd.DataFrame) -> UnlabelledSet:
        """Leave out the images whose decoding failed: columns ``image`` and ``error``."""
        bad = self.images["image"].isin(errors["image"])
        corrupt = errors.rename(columns={"error": "detail"}).assign(reason="corrupt")
        left_out = pd.concat([self.left_out, corrupt[list(self.left_out)]], ignore_index=True)
        images = self.images[~bad].reset_index(drop=True)
        return UnlabelledSet(self.folders, images, left_out, self.crop)


def scan_images(
    *folders: Path, crop: tuple[int, int], exclude: Iterable[Path] = (), on_bad_image: str = "raise"
) -> UnlabelledSet:
    """List the images of some folders, with sub-folders, that a central crop can be taken from.

    Nothing is enlarged. An image below the crop's height and width is ``"too small"``; one that
    falls short on one side only has the ``"wrong shape"``: a 3:2 photograph of 1024x683 for a crop
    of 1024x768. ``"not read"`` is what only looks like an image file. A copy of an excluded image
    under another name is found where the bytes agree.

    Args:
        *folders: Of different names.
        crop: Height and width of the central crop, pixels.
        exclude: Files to leave out with their copies: images of a test, or with known scores.
        on_bad_image: ``"raise"`` names every image whose header cannot be read; ``"drop"`` puts
            them among those left out.
    """
    if on_bad_image not in ("raise", "drop"):
        raise ValueError(f"on_bad_image must be 'raise' or 'drop', got {on_bad_image!r}")
    by_title = {folder.name: folder for folder in folders}
    if len(by_title) < len(folders):
        raise ValueError(f"folders must have different names, got {[f.name for f in folders]}")
    known, usable, left_out = _Excluded(exclude), [], []
    with ThreadPoolExecutor() as pool:
        for title in sorted(by_title, key=lambda title: f"{title}/"):
            if not (folder := by_title[title]).exists():
                raise FileNotFoundError(f"nothing at {folder}")
            walk = walk_images(folder)
            if not (found := list(islice(walk, 4096))):
                raise FileNotFoundError(f"no image ({', '.join(ENDINGS)}) in {folder}")
            while found:
                paths = ((folder / name, why, crop, known) for name, why in found)
                rows = pool.map(lambda one: _measure(*one), paths)
                table = pd.DataFrame(rows, columns=["reason", "detail", *_SIZES])
                names = pd.array([f"{title}/{name}" for name, _ in found], dtype=_TEXT)
                table.insert(0, "image", names)
                good = table["reason"] == ""
                usable.append(table.loc[good, ["image", *_SIZES]].astype(_SIZES))
                left_out.append(table.loc[~good, ["image", "reason", "detail"]])
                found = list(islice(walk, 4096))
    left_out = pd.concat(left_out)  # labelled images last; names stay in order
    left_out = left_out.iloc[np.argsort(left_out["reason"] == LABELLED, kind="stable")]
    bad = left_out.loc[left_out["reason"] == "corrupt", "detail"]
    if len(bad) and on_bad_image == "raise":
        raise BadImageError(f"{len(bad)} images cannot be read: {'; '.join(bad)}")
    images = pd.concat(usable, ignore_index=True)
    if images.empty:
        first = ": ".join(left_out[["reason", "detail"]].iloc[0])
        raise ValueError(f"none of {len(left_out)} images can be used: {first}")
    return UnlabelledSet(by_title, images, left_out.reset_index(drop=True), crop)


def central_crop(path: Path, crop: tuple[int, int]) -> np.ndarray:
    """Decode one image and keep its centre: uint8 RGB, shape (h, w, 3), nothing enlarged.

    An odd margin leaves its extra line below and right.
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
    """Decode groups of rows of ``paths`` in threads while the caller works on an earlier group.

    The processes that torchrun starts on a machine share its cores.

    Yields:
        Rows that were decoded, shape (B,); their central crops, uint8, shape (B, 3, H, W), a
        channels-last view of a buffer that is overwritten after the next step of the loop; and
        the rows that could not be decoded with the reason, under ``on_bad_image="drop"``.
    """
    size = max((len(group) for group in groups), default=0)
    # one buffer more than is in flight: the caller still holds the last one
    shape, pin = (size, *crop, 3), torch.cuda.is_available()
    ring = [torch.empty(shape, dtype=torch.uint8, pin_memory=pin) for _ in range(AHEAD + 2)]
    cores = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    pool = ThreadPoolExecutor(max(cores, 1))

    def begin(group: np.ndarray, buffer: Tensor) -> tuple[np.ndarray, Tensor, list]:
        slots = zip(group, buffer.numpy(), strict=False)
        return group, buffer, [pool.submit(_fill, paths[row], crop, slot) for row, slot in slots]

    try:
        begun = map(begin, groups, cycle(ring))
        waiting = deque(islice(begun, AHEAD + 1))
        while waiting:
            yield _gather(*waiting.popleft(), on_bad_image)
            waiting.extend(islice(begun, 1))
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
    Nothing waits for a GPU but for the copy of the batch before, whose buffer is filled again.
    """
    generator = torch.Generator().manual_seed(epoch_seed(0, epoch))
    copies: deque[torch.cuda.Event] = deque()
    groups = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    for group, crops, _ in crop_batches(paths, groups, crop):
        images = crops.to(device, non_blocking=True)
        if images.is_cuda:
            copies.append(torch.cuda.Event())
            copies[-1].record()
        if augment is not None:
            images = augment(images, generator=generator)
        images = to_float(images, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        mos = torch.as_tensor(scores[group], dtype=torch.float32).to(device, non_blocking=True)
        yield Batch((images,), mos, torch.from_numpy(group), names=paths)
        if len(copies) > 1:
            copies.popleft().synchronize()


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


def _measure(
    path: Path, why: str, crop: tuple[int, int], known: _Excluded
) -> tuple[str, str, int, int, int]:
    """Return why an image cannot be used with its detail, height, width, bytes."""
    if why:
        return "not read", why, 0, 0, 0
    about = path.stat()
    if told := known.find(path, about):
        return *told, 0, 0, 0
    try:
        height, width = image_size(path)
    except BadImageError as error:
        return "corrupt", str(error), 0, 0, 0
    short = (height < crop[0]) + (width < crop[1])
    reason = ("", "wrong shape", "too small")[short]
    detail = f"{height}x{width}, the crop is {crop[0]}x{crop[1]}" if short else ""
    return reason, detail, height, width, about.st_size


class _Excluded:
    """Files to leave out, found by place, or by content where the lengths agree."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.by_length, self.contents = defaultdict(list), {}
        for path in paths:
            if path.is_file():
                self.by_length[path.stat().st_size].append(path)

    def find(self, path: Path, about: os.stat_result) -> tuple[str, str] | None:
        """Return reason and detail for a file that is excluded, or a copy of one that is."""
        if not (like := self.by_length.get(about.st_size)):
            return None
        if any(path.samefile(other) and path.resolve() == other.resolve() for other in like):
            return LABELLED, ""
        if about.st_size not in self.contents:
            self.contents[about.st_size] = {_content(other): other for other in like}
        original = self.contents[about.st_size].get(_content(path))
        return original and (COPY, original.as_posix())


def _content(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()

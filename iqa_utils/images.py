"""Decode every image once, into a memory map of bytes; batches leave it ready for a device.

A store holds uint8 pixels in height, width, channel order, so that a gathered batch *is* a
channels-last tensor. It is named by what went into it: the bytes of the files, the size, the fit
and the resampler, which is a treatment and not a detail for a quality model. Pixels stay bytes
until they are on the device; normalisation and augmentation happen there, on whole batches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from iqa_utils.decoding import Fit, finished_folder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION_MEAN, INCEPTION_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _fits(n_bytes: int, device: torch.device) -> bool:
    """Tell whether half of the free memory of a GPU holds a store."""
    return device.type == "cuda" and 2 * n_bytes <= torch.cuda.mem_get_info(device)[0]


class Transfer:
    """Two buffers in turn: one is filled while the copy of the other is under way.

    A buffer is filled again only once its last copy has ended, which an event tells; nothing else
    waits. On the CPU there is one buffer and no copy, hence no event.
    """

    def __init__(
        self, device: torch.device, new_event: Callable[[], torch.cuda.Event] | None = None
    ) -> None:
        if new_event is None and device.type == "cuda":
            new_event = torch.cuda.Event
        self.device, self.new_event, self.turn = device, new_event, 0
        n = 1 if new_event is None else 2
        self.buffers = [torch.empty(0, dtype=torch.uint8)] * n
        self.copied: list[torch.cuda.Event | None] = [None] * n

    def buffer(self, shape: tuple[int, ...]) -> Tensor:
        """Return memory to fill, pinned where it goes to a GPU."""
        self.turn = (self.turn + 1) % len(self.buffers)
        if self.copied[self.turn] is not None:
            self.copied[self.turn].synchronize()
        n_bytes = torch.Size(shape).numel()
        if len(self.buffers[self.turn]) < n_bytes:
            pin = self.device.type == "cuda"
            self.buffers[self.turn] = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=pin)
        return self.buffers[self.turn][:n_bytes].view(shape)

    def send(self, filled: Tensor) -> Tensor:
        """Start the copy of the buffer that was filled last; the CPU gets the buffer itself."""
        sent = filled.to(self.device, non_blocking=True)
        if self.new_event is not None:
            self.copied[self.turn] = self.new_event()
            self.copied[self.turn].record()
        return sent


class ImageStore:
    """Decoded images in one uint8 memory map; made by `build_store`.

    Row i of a store is image ``names[i]``. Nothing that a caller does to a returned tensor
    reaches the file.

    Attributes:
        names: File names relative to the root, N values.
        sizes: Height and width of each image, shape (N, 2), pixels.
        uniform: Whether all images share one size.
        key: Hash of the files' bytes, size, fit and resampler; what feature caches are keyed by.
    """

    def __init__(self, folder: Path) -> None:
        """Open the folder of a finished store, which is named by the key."""
        index = json.loads((folder / "index.json").read_text())
        self.folder = folder
        self.key = folder.name
        self.names: list[str] = index["names"]
        self.sizes = np.asarray(index["sizes"], dtype=np.int64)
        self.uniform = bool((self.sizes == self.sizes[0]).all())
        self._starts = index["starts"]
        # copy-on-write: torch gets writable memory, the file never changes
        self._bytes = torch.from_numpy(np.memmap(folder / "pixels.bin", dtype=np.uint8, mode="c"))
        self._transfers: dict[torch.device, Transfer] = {}
        self._resident: dict[torch.device, Tensor] = {}  # all pixels, where a GPU holds them

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.sizes[0])) if self.uniform else "mixed sizes"
        return f"ImageStore({len(self)} images, {shape}, key {self.key[:12]})"

    def image(self, i: int) -> Tensor:
        """Return one image, uint8, shape (3, H, W), RGB: a view, `clone()` it to write to it."""
        height, width = self.sizes[i].tolist()
        pixels = self._bytes[self._starts[i] :][: height * width * 3]
        return pixels.view(height, width, 3).permute(2, 0, 1)

    def batch(
        self, indices: Sequence[int] | Tensor, *, device: str | torch.device = "cpu"
    ) -> Tensor:
        """Gather images of one size: uint8, shape (B, 3, H, W), channels-last.

        The next call of `batch` or `crops` may reuse the memory: `clone()` what must outlive it.

        Args:
            indices: Rows, B values.
            device: Where the batch goes. A GPU whose memory holds the store gets all of it, once;
                else batches go by way of two pinned buffers.
        """
        if not self.uniform:
            found = len(np.unique(self.sizes, axis=0))
            raise ValueError(f"expected images of one size, found {found} sizes; use crops()")
        height, width = self.sizes[0].tolist()
        rows = torch.from_numpy(_row_numbers(indices))  # (B,)
        gathered = self._gather(lambda pixels: pixels.view(len(self), -1), rows, device)
        return gathered.view(-1, height, width, 3).permute(0, 3, 1, 2)

    def crops(
        self,
        indices: Sequence[int] | Tensor,
        size: tuple[int, int],
        *,
        generator: torch.Generator | None = None,
        device: str | torch.device = "cpu",
    ) -> Tensor:
        """Gather one crop of each image, as `batch` does; the images may differ in size.

        Args:
            indices: Rows, B values.
            size: Height and width of the crops, pixels.
            generator: CPU generator of the positions; central crops without one.
            device: Where the batch goes.
        """
        indices, (height, width) = _row_numbers(indices), size
        room = self.sizes[indices] - (height, width)  # (B, 2)
        if (room < 0).any():
            small = indices[(room < 0).any(axis=1)][0]
            found = "x".join(map(str, self.sizes[small]))
            raise ValueError(f"crops of {height}x{width}: {self.names[small]} is only {found}")
        share = 0.5
        if generator is not None:
            share = torch.rand(room.shape, dtype=torch.float64, generator=generator).numpy()
        top, left = (share * (room + (generator is not None))).astype(int).T  # (B,)
        widths = self.sizes[indices, 1]
        first = np.asarray(self._starts)[indices] + 3 * (top * widths + left)
        lines = first[:, None] + 3 * np.arange(height) * widths[:, None]  # (B, height)
        lines = torch.from_numpy(lines.ravel())
        gathered = self._gather(lambda pixels: pixels.unfold(0, 3 * width, 1), lines, device)
        return gathered.view(-1, height, width, 3).permute(0, 3, 1, 2)

    def _gather(
        self, pieces: Callable[[Tensor], Tensor], rows: Tensor, device: str | torch.device
    ) -> Tensor:
        """Return some pieces of the pixels, (R, bytes of a piece), on a device."""
        device = torch.device(device)
        if device not in self._resident and _fits(len(self._bytes), device):
            self._resident[device] = self._bytes.to(device)
        if device in self._resident:
            rows = rows.to(device, non_blocking=True)
            return pieces(self._resident[device]).index_select(0, rows)
        transfer = self._transfers.setdefault(device, Transfer(device))
        table = pieces(self._bytes)
        buffer = transfer.buffer((len(rows), table.shape[1]))
        torch.index_select(table, 0, rows, out=buffer)
        return transfer.send(buffer)


def build_store(
    root: str | Path,
    names: Sequence[str],
    store_dir: str | Path,
    *,
    size: tuple[int, int] | int | None,
    fit: str = "squash",
    resampler: str = "bilinear",
    progress: bool = True,
) -> ImageStore:
    """Open the store of these images, decoding whatever it still lacks.

    Pillow decodes and resizes, so the pixels are Pillow's own. Work is kept image by image with a
    checksum: the next call finishes a build that was killed and, where a file of the store has
    changed, decodes again whatever does not match. Processes that ask for one store take turns.

    Args:
        root: Folder that the names are relative to.
        names: Image files, N different names; their order is the order of the rows.
        store_dir: Folder of all stores; this one gets a folder named by its key.
        size: (height, width) in pixels for "squash" and "center_crop"; the shorter side for
            "short_side" and "shrink_short_side"; None for "native".
        fit: "squash" resizes to the size, whatever the aspect ratio; "short_side" keeps the ratio
            (the longer side is rounded down); "shrink_short_side" does so without ever enlarging;
            "center_crop" cuts without resizing; "native" leaves the pixels as they are.
        resampler: Pillow's name in lower case: nearest, box, bilinear, hamming, bicubic, lanczos.
        progress: Show a bar on a terminal.

    Returns:
        The finished store.

    Raises:
        FileNotFoundError: If files are missing; names them.
        BadImageError: If images cannot be read; names them.
        OSError: If the disk cannot hold the pixels.
        ValueError: If an option is unknown, a name is there twice, or the size is of another kind.
    """
    treatment, names = Fit(size, fit, resampler), [str(name) for name in names]
    folder = finished_folder(Path(root), names, Path(store_dir), treatment, progress=progress)
    return ImageStore(folder)


def to_float(batch: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise bytes where they are: (batch / 255 - mean) / std, float32, channels-last.

    Args:
        batch: uint8, shape (B, 3, H, W).
        mean: Mean of each channel, in units of full scale; 3 values.
        std: Standard deviation of each channel, likewise.
    """
    if batch.dtype != torch.uint8:
        raise ValueError(f"expected uint8 pixels, found {batch.dtype}: normalised already?")
    n, _, height, width = batch.shape
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), width, batch.device)
    # whole pixel rows at once: an inner axis of three channels is twice as slow
    rows = batch.permute(0, 2, 3, 1).reshape(n, height, width * 3)  # (B, H, W * 3)
    rows = rows.to(torch.float32).mul_(scale).sub_(shift)
    return rows.view(n, height, width, 3).permute(0, 3, 1, 2)  # (B, 3, H, W)


@lru_cache(maxsize=16)  # a copy to a GPU waits for it
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return what a row of ``width`` pixels is multiplied by, and what is taken off, (W * 3,)."""
    mean, std = (torch.tensor(values, device=device) for values in (mean, std))
    return (1 / (255 * std)).repeat(width), (mean / std).repeat(width)


def augment(
    batch: Tensor,
    *,
    flip: bool = True,
    rotate: float = 0.0,
    contrast: float = 0.0,
    noise: float = 0.0,
    generator: torch.Generator,
) -> Tensor:
    """Vary a batch on its device, every image by its own draw.

    The default is the horizontal flip, which leaves quality as it was; the rest changes quality
    and is there because the cross-sampling paper used it with training method 3.

    Args:
        batch: uint8, shape (B, 3, H, W).
        flip: Mirror each image with probability one half.
        rotate: Largest turn in degrees, uniform in [-rotate, rotate]; borders are reflected.
        contrast: Largest relative change of the distance from the image's mean, in [0, 1].
        noise: Standard deviation of white Gaussian noise in grey levels (0 to 255).
        generator: CPU generator; the draws are the same on every device but for the noise.

    Returns:
        uint8, new memory, same shape and memory format.

    References:
        Lehmann, Rokita, 2023, training method 3: rotations, flips, minor contrast modifications
        and noise; how strong they were is not stated.
    """
    if batch.dtype != torch.uint8:
        raise ValueError(f"expected uint8 pixels, found {batch.dtype}: augment before to_float")
    if rotate < 0 or noise < 0 or not 0 <= contrast <= 1:
        raise ValueError(
            "expected rotate >= 0, noise >= 0 and contrast in [0, 1], "
            f"found {rotate}, {noise}, {contrast}"
        )
    draws = torch.rand((3, len(batch), 1, 1, 1), generator=generator)
    draws = draws.to(batch.device, non_blocking=True)
    out = torch.where(draws[0] < 0.5, batch.flip(3), batch) if flip else batch.clone()
    if not (rotate or contrast or noise):
        return out
    out = out.to(torch.float32)
    if rotate:
        out = moved(out, torch.deg2rad((2 * draws[1].flatten() - 1) * rotate))
    if contrast:
        mean = out.mean(dim=(1, 2, 3), keepdim=True)
        out = mean + (out - mean) * (1 + contrast * (2 * draws[2] - 1))
    if noise:
        seed = int(torch.randint(2**62, (), generator=generator))
        local = torch.Generator(batch.device).manual_seed(seed)
        out = out + noise * torch.randn(out.shape, generator=local, device=batch.device)
    result = out.round_().clamp_(0, 255).to(torch.uint8)
    return result.contiguous(memory_format=torch.channels_last)


def _row_numbers(indices: Sequence[int] | Tensor) -> np.ndarray:
    rows = np.asarray(indices)
    if rows.dtype.kind == "b" or (rows.size and rows.dtype.kind not in "iu"):
        raise ValueError(f"expected row numbers, found {rows.dtype}; use np.flatnonzero of a mask")
    return rows.astype(np.int64)  # a copy: pandas hands out read-only arrays


def moved(
    images: Tensor,
    angles: Tensor,
    scale: Tensor | float = 1.0,
    shift: Tensor | tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """Turn, scale and shift float images (B, 3, H, W), each by its own; borders are reflected.

    Angles (B,) are in radians, scales (B,) factors, shifts right and down (2, B) in half sides.
    """
    height, width = images.shape[2:]
    cos, sin = angles.cos() * scale, angles.sin() * scale
    turn = images.new_zeros(len(images), 2, 3)  # in units of half the width and half the height
    turn[:, 0, 0], turn[:, 0, 1], turn[:, 0, 2] = cos, -sin * height / width, shift[0]
    turn[:, 1, 0], turn[:, 1, 1], turn[:, 1, 2] = sin * width / height, cos, shift[1]
    grid = affine_grid(turn, list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="reflection", align_corners=False)

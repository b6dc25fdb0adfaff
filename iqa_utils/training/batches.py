"""What a training step sees, and streams of it from an image store or from cached features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD, ImageStore, to_float

Augment = Callable[..., Tensor]  # (uint8 images, generator=...) -> uint8 images


@dataclass(slots=True)
class Batch:
    """One batch.

    Attributes:
        inputs: Arguments of the network, each with B rows.
        mos: Scores, shape (B,).
        index: Row of every image in its store or table, shape (B,).
        weight: Weights of the loss, shape (B,), or None.
        source: Data set of every image, shape (B,), or None.
        names: Image names of the whole store, which ``index`` points into; only for messages.
    """

    inputs: tuple[Tensor, ...]
    mos: Tensor
    index: Tensor
    weight: Tensor | None = None
    source: Tensor | None = None
    names: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.mos)

    def to(self, device: torch.device | str, *, channels_last: bool = False) -> Batch:
        """Return the batch on a device; ``channels_last`` is the memory format of images."""

        def move(x: Tensor) -> Tensor:
            images = channels_last and x.ndim == 4
            memory = torch.channels_last if images else torch.preserve_format
            return x.to(device, non_blocking=True, memory_format=memory)

        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "inputs"}
        moved = {k: move(v) for k, v in tensors.items() if isinstance(v, Tensor)}
        return replace(self, inputs=tuple(move(x) for x in self.inputs), **moved)

    def describe(self) -> str:
        """Name the images of the batch, or their rows where the names are not known."""
        index = self.index.tolist()
        return ", ".join(f"row {i}" if self.names is None else str(self.names[i]) for i in index)


def store_batches(
    store: ImageStore,
    rows: Sequence[int] | np.ndarray,
    mos: Sequence[float] | np.ndarray,
    *,
    batch_size: int,
    seed: int | None = None,
    epoch: int = 0,
    augment: Augment | None = None,
    augment_copies: Augment | None = None,
    crop: tuple[int, int] | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    device: torch.device | str = "cpu",
    extra_inputs: Tensor | None = None,
    weight: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Stream normalised images; pixels stay bytes until they are on the device.

    Args:
        store: Decoded images, N of them.
        rows: Images of this epoch, repeats allowed.
        mos: Scores of the whole store, shape (N,).
        batch_size: Images a batch; the last one may be smaller. With a seed, a lone last image
            joins the batch before it: batch statistics need two.
        seed: Shuffles and augments by ``(seed, epoch)``; None keeps the order and, unless
            ``augment`` is given, changes nothing.
        epoch: Counted from 0.
        augment: Change of uint8 images such as :func:`iqa_utils.images.augment`, or None.
        augment_copies: The same for images that this epoch has already shown once, instead of
            ``augment``: repeats of an oversampled class.
        crop: Height and width to cut out, at random when there is a seed, else from the centre.
        mean: Per-channel mean, in [0, 1].
        std: Per-channel standard deviation.
        device: Where the batches go.
        extra_inputs: Further input of the network for the whole store, shape (N, D).
        weight: Loss weights of the whole store, shape (N,).

    Yields:
        Batches whose first input is float32 images, shape (B, 3, H, W).

    Raises:
        ValueError: If ``mos`` does not have one score an image of the store.
    """
    _check_rows(rows, mos, len(store))
    generator = torch.Generator().manual_seed(epoch_seed(0 if seed is None else seed, epoch))
    table = _on_device(mos, weight, device)
    extra = None if extra_inputs is None else extra_inputs.to(device)
    for index, here, repeated in _chunks(rows, batch_size, seed, epoch, device):
        if crop is None:
            images = store.batch(index, device=device)
        else:
            shift = None if seed is None else generator
            images = store.crops(index, crop, generator=shift, device=device)
        if augment_copies is not None and repeated.any():
            images = images.clone()
            for chosen, change in ((repeated, augment_copies), (~repeated, augment)):
                at = chosen.nonzero().flatten().to(device, non_blocking=True)
                if change is not None and len(at):
                    images[at] = change(images[at], generator=generator)
        elif augment is not None:
            images = augment(images, generator=generator)
        images = to_float(images, mean=mean, std=std)
        inputs = (images,) if extra is None else (images, extra[here])
        yield _batch(inputs, table, index, here, store.names)


def tensor_batches(
    inputs: Tensor | tuple[Tensor, ...],
    rows: Sequence[int] | np.ndarray,
    mos: Sequence[float] | np.ndarray,
    *,
    batch_size: int,
    seed: int | None = None,
    epoch: int = 0,
    device: torch.device | str = "cpu",
    weight: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[Batch]:
    """Stream rows of tensors that fit in memory, such as cached features.

    Args:
        inputs: One tensor per argument of the network, each with N rows.
        rows: Rows of this epoch, repeats allowed.
        mos: Scores, shape (N,).
        batch_size: Likewise as :func:`store_batches`, as all that follows.
        seed: Shuffles by ``(seed, epoch)``; None keeps the order.
        epoch: Counted from 0.
        device: Where the batches go.
        weight: Loss weights, shape (N,).
        names: Image names, N values, for messages.

    Example:
        >>> x, mos = torch.zeros(5, 2), np.zeros(5)
        >>> [len(batch.mos) for batch in tensor_batches(x, range(5), mos, batch_size=2, seed=0)]
        [2, 3]
    """
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    for tensor in inputs:
        _check_rows(rows, mos, len(tensor))
    table = _on_device(mos, weight, device)
    for index, here, _ in _chunks(rows, batch_size, seed, epoch, device):
        own = [index if x.device.type == "cpu" else here for x in inputs]
        taken = [x[i].to(device, non_blocking=True) for x, i in zip(inputs, own, strict=True)]
        yield _batch(tuple(x.float() for x in taken), table, index, here, names)


def epoch_seed(seed: int, epoch: int, *more: int) -> int:
    """Mix a root seed, an epoch and further numbers into 63 bits; neighbours share nothing."""
    sequence = np.random.SeedSequence([seed, epoch, *more])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _chunks(
    rows: Sequence[int] | np.ndarray,
    batch_size: int,
    seed: int | None,
    epoch: int,
    device: torch.device | str,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield each batch's rows, here and on the device, and which this epoch has shown already."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = np.asarray(rows, dtype=np.int64)
    if seed is not None:
        order = np.random.default_rng(epoch_seed(seed, epoch, 1)).permutation(order)
    repeated = np.ones(len(order), dtype=bool)
    repeated[np.unique(order, return_index=True)[1]] = False
    starts = list(range(0, len(order), batch_size))
    if seed is not None and batch_size > 1 and len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    order, repeated = torch.from_numpy(order), torch.from_numpy(repeated)
    moved = order.to(device)  # once an epoch: a copy for each batch would wait for the device
    for part in map(slice, starts, [*starts[1:], len(order)]):
        yield order[part], moved[part], repeated[part]


def _check_rows(rows: Sequence[int] | np.ndarray, mos: Sequence[float], n: int) -> None:
    if len(mos) != n:
        raise ValueError(f"mos must hold one score for each of {n} images, got {len(mos)}")
    if not len(rows):
        raise ValueError("an epoch needs at least one image, got none")


def _on_device(
    mos: Sequence[float] | np.ndarray, weight: np.ndarray | None, device: torch.device | str
) -> list[Tensor | None]:
    """Return scores and weights of all rows as float32 on the device, once an epoch."""
    columns = (None if x is None else np.asarray(x, dtype=np.float32) for x in (mos, weight))
    return [None if x is None else torch.as_tensor(x, device=device) for x in columns]


def _batch(
    inputs: tuple[Tensor, ...],
    table: list[Tensor | None],
    index: Tensor,
    here: Tensor,
    names: Sequence[str] | None,
) -> Batch:
    mos, weight = (None if column is None else column[here] for column in table)
    return Batch(inputs, mos, index, weight=weight, names=names)

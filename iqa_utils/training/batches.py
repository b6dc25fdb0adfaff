"""What a training step sees: batches of a store, of cached features, of a frozen trunk's maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from iqa_utils.features import frozen_features
from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD, ImageStore, to_float
from iqa_utils.models.shared import PooledTrunk

Augment = Callable[..., Tensor]  # (uint8 images, generator=...) -> uint8 images
CHUNK = 256  # images whose maps are in memory in float32 at once


@dataclass(slots=True)
class Batch:
    """One batch.

    Attributes:
        inputs: Arguments of the network, each with B rows.
        mos: Scores, shape (B,).
        index: Row of every image in its store or table, shape (B,), in main memory.
        weight: Weights of the loss, shape (B,), or None.
        source: Data set of every image, shape (B,), in main memory, or None.
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
        """Return the batch on a device; ``channels_last`` is the memory format of images.

        ``index`` and ``source`` stay where they are: to look them up on a GPU would wait for it.
        """

        def move(x: Tensor) -> Tensor:
            images = channels_last and x.ndim == 4
            memory = torch.channels_last if images else torch.preserve_format
            return x.to(device, non_blocking=True, memory_format=memory)

        inputs, mos = tuple(move(x) for x in self.inputs), move(self.mos)
        weight = None if self.weight is None else move(self.weight)
        return replace(self, inputs=inputs, mos=mos, weight=weight)

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
        batch_size: Images per batch; the last one may be smaller. With a seed, a lone last image
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
    generator = torch.Generator().manual_seed(epoch_seed(seed or 0, epoch))
    extra = None if extra_inputs is None else extra_inputs.to(device)
    order = {"batch_size": batch_size, "seed": seed, "epoch": epoch, "device": device}
    for batch, here, repeated in _chunks(len(store), rows, mos, weight, store.names, **order):
        if crop is None:
            images = store.batch(batch.index, device=device)
        else:
            shift = None if seed is None else generator
            images = store.crops(batch.index, crop, generator=shift, device=device)
        if augment_copies is not None and repeated.any():
            images = images.clone()
            for chosen, change in ((repeated, augment_copies), (~repeated, augment)):
                at = chosen.nonzero().flatten().to(device, non_blocking=True)
                if change is not None and len(at):
                    images[at] = change(images[at], generator=generator)
        elif augment is not None:
            images = augment(images, generator=generator)
        images = to_float(images, mean=mean, std=std)
        yield replace(batch, inputs=(images,) if extra is None else (images, extra[here]))


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
    order = {"batch_size": batch_size, "seed": seed, "epoch": epoch, "device": device}
    for batch, here, _ in _chunks(len(inputs[0]), rows, mos, weight, names, **order):
        yield replace(batch, inputs=_rows_of(inputs, batch.index, here))


def epoch_seed(seed: int, epoch: int, *more: int) -> int:
    """Mix a root seed, an epoch and further numbers into 63 bits; neighbours share nothing."""
    sequence = np.random.SeedSequence([seed, epoch, *more])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _rows_of(inputs: tuple[Tensor, ...], index: Tensor, here: Tensor) -> tuple[Tensor, ...]:
    """Take rows of tensors, which may lie in memory or on the device of ``here``, as float32."""
    own = [index if x.device.type == "cpu" else here for x in inputs]
    taken = [x[i].to(here.device, non_blocking=True) for x, i in zip(inputs, own, strict=True)]
    return tuple(x.float() for x in taken)


def _chunks(
    n: int,
    rows: Sequence[int] | np.ndarray,
    mos: Sequence[float] | np.ndarray,
    weight: np.ndarray | None,
    names: Sequence[str] | None,
    *,
    batch_size: int,
    seed: int | None,
    epoch: int,
    device: torch.device | str,
    n_images: int | None = None,
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Yield batches without inputs, their rows on the device, and which were shown already.

    Row r shows image r modulo ``n_images``. Scores, weights and rows move once an epoch: a copy for
    each batch would wait for the device.
    """
    if len(mos) != n:
        raise ValueError(f"mos must hold one score for each of {n} images, got {len(mos)}")
    if not len(rows):
        raise ValueError("an epoch needs at least one image, got none")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = np.asarray(rows, dtype=np.int64)
    if seed is not None:
        order = np.random.default_rng(epoch_seed(seed, epoch, 1)).permutation(order)
    repeated = np.ones(len(order), dtype=bool)
    repeated[np.unique(order % (n_images or n), return_index=True)[1]] = False
    starts = list(range(0, len(order), batch_size))
    if seed is not None and batch_size > 1 and len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    order, repeated = torch.from_numpy(order), torch.from_numpy(repeated)
    moved = order.to(device)
    scores, weights = (
        None if x is None else torch.as_tensor(np.asarray(x, dtype=np.float32), device=device)
        for x in (mos, weight)
    )
    for part in map(slice, starts, [*starts[1:], len(order)]):
        here = moved[part]
        own = None if weights is None else weights[here]
        yield Batch((), scores[here], order[part], own, names=names), here, repeated[part]


def frozen_maps(
    network: nn.Module,
    store: ImageStore,
    *,
    cache_dir: str | Path | None,
    dtype: torch.dtype = torch.float32,
    **options: object,
) -> Tensor:
    """Run a frozen network over every image of one size, or read the cached result.

    Options are those of :func:`iqa_utils.features.frozen_features` (``batch_size``, ``mean``, ...);
    half precision halves the memory and rounds (2e-4 relative). Returns shape (N, C, h, w),
    channels-last, on the CPU.
    """
    device = next(network.parameters()).device
    run = getattr(network.eval(), "forward_features", network)
    with torch.no_grad():
        probe = torch.zeros(1, 3, *store.sizes[0].tolist(), device=device)
        _, channels, height, width = run(probe).shape
    maps = torch.empty(len(store), height, width, channels, dtype=dtype)
    for rows in torch.arange(len(store)).split(CHUNK):
        options |= {"pooling": "flatten", "cache_dir": cache_dir, "rows": rows.numpy()}
        flat = torch.from_numpy(frozen_features(network, store, **options))
        maps[rows] = flat.view(-1, channels, height, width).permute(0, 2, 3, 1).to(dtype)
    return maps.permute(0, 3, 1, 2)


def stem_activations(branch: PooledTrunk, store: ImageStore, **options: object) -> Tensor:
    """Run the frozen layers of a trunk over every image and its mirror image.

    Options are those of :func:`frozen_maps`. Returns float16, shape (2 N, C, h, w), channels-last,
    on the CPU: all images, then all mirrored; trained layers see its rounding.
    """
    stem = branch.frozen_layers().to(memory_format=torch.channels_last)
    options = {"batch_size": 8, "dtype": torch.float16, **options}
    return torch.cat([frozen_maps(network, store, **options) for network in (stem, Mirrored(stem))])


class Mirrored(nn.Module):
    """A network that sees every image mirrored."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Apply the network to mirrored images, (B, C, H, W)."""
        return self.network(images.flip(3))


def stem_batches(
    activations: Tensor,
    rows: np.ndarray,
    mos: np.ndarray,
    *,
    batch_size: int,
    seed: int | None = None,
    epoch: int = 0,
    device: torch.device | str = "cpu",
    extra_inputs: Tensor | None = None,
    names: Sequence[str] | None = None,
    change_copies: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Iterator[Batch]:
    """Stream activations in place of images; with a seed each one is mirrored by a coin.

    Arguments are those of :func:`store_batches` but for ``activations``, (2 N, C, h, w), from
    :func:`stem_activations`, and ``change_copies``, which gives the activations of changed copies
    of these images, (R,): instead of those of images that this epoch has already shown once.
    """
    rows, n = np.asarray(rows), len(mos)
    if seed is not None:
        rows = rows + n * np.random.default_rng(epoch_seed(seed, epoch, 2)).integers(
            2, size=len(rows)
        )
    inputs = (activations,) if extra_inputs is None else (activations, extra_inputs.repeat(2, 1))
    generator = torch.Generator().manual_seed(epoch_seed(seed or 0, epoch, 3))
    order = {"batch_size": batch_size, "seed": seed, "epoch": epoch, "device": device}
    both = (np.tile(mos, 2), None, names and [*names, *names])
    for batch, here, repeated in _chunks(len(activations), rows, *both, **order, n_images=n):
        taken = _rows_of(inputs, batch.index, here)
        if change_copies is not None and repeated.any():
            changed = change_copies(batch.index[repeated] % n, generator)
            at = repeated.nonzero().flatten().to(device, non_blocking=True)
            taken[0][at] = changed.to(taken[0])
        yield replace(batch, inputs=taken)

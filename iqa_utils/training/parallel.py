"""The processes of one training: one, or all that ``torchrun`` or ``accelerate`` started."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from iqa_utils.training.batches import Batch


class Workers:
    """Who takes part in a training, and how batches and numbers are shared.

    Args:
        device: The device of this process: ``cuda:<LOCAL_RANK>`` when there are several.

    Attributes:
        rank: Number of this process; the first one (0) evaluates, saves and shows progress.
        size: Number of processes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank, self.size = 0, int(os.environ.get("WORLD_SIZE", "1"))
        if self.size > 1:
            from accelerate import PartialState  # starts gloo on CPUs, NCCL on GPUs

            self.rank = PartialState(cpu=device.type == "cpu").process_index

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the network to train: gradients are averaged over the processes."""
        if self.size == 1:
            return model
        devices = None if self.device.type == "cpu" else [self.device]
        return DistributedDataParallel(model, device_ids=devices)

    def share(self, batch: Batch) -> Batch:
        """Return this process' rows of a batch, which must hold one for each process."""
        if self.size == 1:
            return batch
        if len(batch) < self.size:
            raise ValueError(
                f"a batch of {len(batch)} images cannot be shared by {self.size} processes"
            )
        first, last = (len(batch) * rank // self.size for rank in (self.rank, self.rank + 1))
        return batch.rows(slice(first, last))

    def weight(self, part: int, whole: int) -> float:
        """Return what this part's mean loss counts, so that the average is the whole's mean."""
        return part * self.size / whole

    def total(self, value: Tensor) -> float:
        """Add up a number over the processes."""
        if self.size > 1:
            value = value.to(self.device)
            distributed.all_reduce(value)
        return value.item()

    def from_first(self, compute: Callable[[], Any]) -> Any:
        """Compute something in the first process and give it to all."""
        if self.size == 1:
            return compute()
        box = [compute() if self.rank == 0 else None]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

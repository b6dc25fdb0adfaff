"""Pixels on their way to a GPU: all at once where they fit, else through two pinned buffers."""

from collections.abc import Callable

import torch
from torch import Tensor


def fits(n_bytes: int, device: torch.device) -> bool:
    """Tell whether half of the free memory of a GPU holds a store."""
    return device.type == "cuda" and 2 * n_bytes <= torch.cuda.mem_get_info(device)[0]


class Transfer:
    """Two buffers in turn: one is filled while the copy of the other is under way.

    A buffer is filled again only once its last copy has ended, which an event tells; nothing else
    waits. On the CPU there is one buffer and no copy.

    Args:
        device: Where the bytes go.
        new_event: Makes an event with ``record()`` and ``synchronize()``; None where copies end
            before the next call, as on the CPU.
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

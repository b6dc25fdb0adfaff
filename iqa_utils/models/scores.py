"""What all networks share: the facts to rebuild them, and the last step to a score."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def architecture(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a network by ``locals()`` of its constructor, without its pretrained weights."""
    kept = {k: v for k, v in arguments.items() if k not in ("self", "__class__", "pretrained")}
    return {"name": name} | {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}


def full_precision(device: str) -> AbstractContextManager:
    """Leave autocast for a block of code that needs float32."""
    known = torch.amp.is_autocast_available(device)  # not on meta tensors, where costs are counted
    return torch.autocast(device, enabled=False) if known else nullcontext()


def scaled_score(
    last: nn.Module, features: Tensor, mos_mean: Tensor | float, mos_std: Tensor | float
) -> Tensor:
    """Apply the last layer and the scale of the scores in float32, whatever the trunk ran in.

    Under autocast the product would be bfloat16: between 64 and 128 its values lie 0.5 apart, and
    2,015 test images share some 250 predictions. Shapes: (B, F) to (B,).
    """
    with full_precision(features.device.type):
        return last(features.float()).squeeze(1) * mos_std + mos_mean

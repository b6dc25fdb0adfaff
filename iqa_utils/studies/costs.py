"""Multiply-accumulates of the compared networks at the sizes they really see.

Convention: one multiply-accumulate (MAC) a weight and place in convolutions and matrix products of
one image's forward pass, which is half of what ``torch.utils.flop_counter`` counts. Additions of
biases, activations and normalisation are left out. Nothing is computed: tensors have no data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from iqa_utils.backbones import create_backbone
from iqa_utils.models.koncept import KonCept
from iqa_utils.models.monotonic import MonotonicIQA

# (height, width) at test in the released code: only BID is shrunk (shorter side 768); LIVE's most
# frequent size stands for its eight
TEST_SIZES = {
    "live": (512, 768),
    "csiq": (512, 512),
    "kadid10k": (384, 512),
    "bid": (768, 1024),
    "livec": (500, 500),
    "koniq10k": (768, 1024),
}
SIZES = {"224": (224, 224), "299": (299, 299), "384": (384, 384), **TEST_SIZES}


class Unique(nn.Module):
    """UNIQUE's shape: the same trunk and products, read by one layer of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = create_backbone("resnet34", pretrained=None, num_classes=0, global_pool="")
        self.read = nn.Linear(512 * 512, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Return mean and log variance, (B, 2)."""
        flat = self.trunk(images).flatten(2)
        return self.read((flat @ flat.mT).flatten(1))


# all with random weights, at test: one image in, one score out
MODELS: dict[str, Callable[[], nn.Module]] = {
    "Proposed": lambda: MonotonicIQA(["any"], form="full", variant="identity"),
    "Proposed, triangle head": lambda: MonotonicIQA(["any"], variant="identity"),
    "UNIQUE": Unique,
    "KonCept512": KonCept,
}


def count_macs(network: nn.Module, height: int, width: int) -> int:
    """Count the multiply-accumulates of one image.

    Args:
        network: Best built on the meta device, where nothing is computed.
        height: Of the image, pixels.
        width: Of the image, pixels.

    Returns:
        Multiply-accumulates of the forward pass.
    """
    images = torch.empty(1, 3, height, width, device=next(network.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(images)
    return counter.get_total_flops() // 2


def cost_table(sizes: Mapping[str, tuple[int, int]] = SIZES) -> pd.DataFrame:
    """Count every network of :data:`MODELS` at several sizes.

    Args:
        sizes: Name to (height, width).

    Returns:
        GMAC an image, a row a size and a column a network; a first row has the parameters in
        millions.
    """
    columns = {}
    for name, build in MODELS.items():
        with torch.device("meta"):
            network = build()
        column = {"parameters (M)": sum(p.numel() for p in network.parameters()) / 1e6}
        macs = {size: count_macs(network, *size) / 1e9 for size in dict.fromkeys(sizes.values())}
        columns[name] = column | {key: macs[size] for key, size in sizes.items()}
    return pd.DataFrame(columns)


def cost_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Turn the table into results, at the sizes that the paper's FLOPs belong to.

    Args:
        table: From :func:`cost_table`.

    Returns:
        Keyword arguments of :meth:`iqa_utils.workshop.runs.Run.add_result`.
    """
    return [
        {
            "table": "text",
            "method": name,
            "dataset": "",
            "metric": "inference GFLOPs",
            "value": table.loc[size, name],
            "data": "none",
            "variant": f"GMAC at {size}x{size}",
        }
        for name, size in {"Proposed": "224", "UNIQUE": "224", "KonCept512": "299"}.items()
    ]

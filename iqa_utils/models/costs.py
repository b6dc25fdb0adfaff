"""Multiply-accumulates of the networks that feng2023 compares, at the sizes they really see.

One multiply-accumulate (MAC) per weight and place in convolutions and matrix products of one
image's forward pass: half of what torch counts. Nothing is computed: tensors have no data.
"""

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from iqa_utils.backbones import create_backbone
from iqa_utils.models.koncept import KonCept
from iqa_utils.models.monotonic import MonotonicIQA

# height, width at test in the released code: only BID is shrunk (shorter side 768); LIVE's most
# frequent size stands for its eight
SIZES = {
    "224": (224, 224),
    "299": (299, 299),
    "384": (384, 384),
    "live": (512, 768),
    "csiq": (512, 512),
    "kadid10k": (384, 512),
    "bid": (768, 1024),
    "livec": (500, 500),
    "koniq10k": (768, 1024),
}


class Unique(nn.Module):
    """UNIQUE's shape: the same trunk and products, read by one layer of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = create_backbone("resnet34", pretrained="random", num_classes=0, global_pool="")
        self.read = nn.Linear(512 * 512, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Return mean and log variance, (B, 2)."""
        flat = self.trunk(images).flatten(2)
        return self.read((flat @ flat.mT).flatten(1))


MODELS = {
    "Proposed": lambda: MonotonicIQA(["any"], form="full", variant="identity"),
    "Proposed, triangle head": lambda: MonotonicIQA(["any"], variant="identity"),
    "UNIQUE": Unique,
    "KonCept512": KonCept,
}


def count_macs(network: nn.Module, height: int, width: int, *more: Tensor) -> int:
    """Count the MACs of one image, and of ``more`` inputs; on the meta device nothing is computed.

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 1, bias=False), 4, 5)
        480
    """
    images = torch.empty(1, 3, height, width, device=next(network.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(images, *more)
    return counter.get_total_flops() // 2


def cost_table(sizes: dict[str, tuple[int, int]] = SIZES) -> pd.DataFrame:
    """Count GMAC per image, a row per size and a column per network, parameters (M) first."""
    columns = {}
    for name, build in MODELS.items():
        with torch.device("meta"):
            network = build()
        macs = {size: count_macs(network, *size) / 1e9 for size in dict.fromkeys(sizes.values())}
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        columns[name] = {"parameters (M)": millions} | {k: macs[s] for k, s in sizes.items()}
    return pd.DataFrame(columns)

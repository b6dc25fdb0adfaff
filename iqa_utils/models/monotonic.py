"""One quality regressor for all data sets, and a monotone curve from quality to each set's scores.

The regressor sees an image and gives its quality on a scale of its own. Each data set has a
transformer, a monotone function of that one number, which absorbs the set's range and curvature;
at test time only the regressor runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iqa_utils.backbones import create_backbone
from iqa_utils.models import architecture, count_macs, count_parameters, full_precision
from iqa_utils.models.dual_xception import KonCept

Variant = Literal["released", "paper", "mixed", "scalar", "identity"]
VARIANTS = ("released", "paper", "mixed", "scalar", "identity")
# widths by number of layers; the paper draws the one of five, those of three and seven are ours
WIDTHS = {3: (1, 10, 10, 1), 5: (1, 10, 20, 20, 10, 1), 7: (1, 10, 20, 20, 20, 20, 10, 1)}


class MonotonicTransformers(nn.Module):
    """Monotone curves, one for each data set, evaluated together.

    Layers are linear with the absolute values of their weights and ELU between them: sums with
    non-negative factors of non-decreasing functions do not decrease.

    ``released``: the biases exist and are not used, as in the released code. f(0) = 0, f is exactly
    linear for x > 0 (ELU is the identity there) and bounded below: one gain per data set.
    ``paper``: the biases are used. ELU is convex, so every curve is convex; it can steepen, never
    flatten. ``mixed``: half of the units use ELU(x), half -ELU(-x), which is concave; curves can
    bend both ways and saturate. ``scalar``: ``|gain| x + offset``, the baseline. ``identity``:
    no transformer, which leaves the linear re-scaling of the scores alone.

    Args:
        n_sources: Data sets, S.
        variant: Which family of curves.
        n_layers: 3, 5 or 7; ``scalar`` and ``identity`` ignore it.

    References:
        Feng et al., Electronics Letters 2023, Fig. 3 and Table 2.

    Example:
        >>> transformers = MonotonicTransformers(6, variant="mixed")
        >>> transformers(torch.rand(4), torch.tensor([0, 5, 5, 2])).shape
        torch.Size([4])
    """

    def __init__(self, n_sources: int, *, variant: Variant = "paper", n_layers: int = 5) -> None:
        super().__init__()
        if n_sources < 1 or variant not in VARIANTS or n_layers not in WIDTHS:
            raise ValueError(
                f"transformers need a source, a variant of {VARIANTS} and {sorted(WIDTHS)} layers, "
                f"got {n_sources}, {variant!r}, {n_layers}"
            )
        self.n_sources, self.variant = n_sources, variant
        widths = {"scalar": (1, 1), "identity": ()}.get(variant, WIDTHS[n_layers])
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(widths):
            bound = fan_in**-0.5  # torch's default for linear layers
            weight = torch.empty(n_sources, fan_out, fan_in).uniform_(-bound, bound)
            bias = torch.empty(n_sources, fan_out).uniform_(-bound, bound)
            if variant == "scalar":
                weight, bias = torch.ones_like(weight), torch.zeros_like(bias)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))

    def curves(self, quality: Tensor) -> Tensor:
        """Evaluate every curve at every quality: (B,) to (B, S), no column decreasing."""
        x = quality[None, :, None].expand(self.n_sources, -1, 1)  # (S, B, 1)
        with full_precision(x.device.type):  # bfloat16 would make steps of the curves
            for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                x = self._activate(x) if layer else x
                x = x @ weight.abs().mT  # (S, B, width)
                x = x if self.variant == "released" else x + bias[:, None]
        return x[..., 0].mT

    def _activate(self, x: Tensor) -> Tensor:
        if self.variant != "mixed":
            return F.elu(x)
        convex, concave = x.chunk(2, dim=-1)
        return torch.cat([F.elu(convex), -F.elu(-concave)], dim=-1)

    def forward(self, quality: Tensor, source: Tensor) -> Tensor:
        """Map each quality, (B,), through the curve of its own set, numbered by ``source``."""
        return self.curves(quality).gather(1, source[:, None])[:, 0]


class BilinearRegressor(nn.Module):
    """Regress one number from the products of all pairs of channels.

    The C x C matrix of channel products, averaged over places, goes through a signed square root
    and is scaled to unit length; three fully connected layers read it. It is symmetric: the first
    layer acts only through w_ij + w_ji, and ``triangle`` keeps one weight for each pair.

    Args:
        in_channels: Channels of the maps.
        channels: Learn a projection to this many channels first; None uses all of them.
        form: ``triangle``, or ``full`` as published.
        hidden: Widths of the two hidden layers.
        uncertain: Regress a standard deviation too, as UNIQUE does; see :meth:`moments`.

    Note:
        With the off-diagonal weights started at w_ij + w_ji and trained at twice the learning rate
        (:func:`parameter_groups`), ``triangle`` follows ``full`` step by step under Adam without
        weight decay. Pooling runs in float32 under autocast: products of half-precision maps
        overflow, and the root has a steep slope at 0.

    References:
        Feng et al., Eq. (1); root, norm and widths from the released code.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        channels: int | None = None,
        form: Literal["triangle", "full"] = "triangle",
        hidden: tuple[int, int] = (512, 64),
        uncertain: bool = False,
    ) -> None:
        super().__init__()
        if form not in ("triangle", "full"):
            raise ValueError(f"form must be triangle or full, got {form!r}")
        size = channels or in_channels
        self.form = form
        self.project = nn.Linear(in_channels, size) if channels else nn.Identity()
        if form == "full":
            self.first = nn.Linear(size * size, hidden[0])
        else:
            i, j = torch.triu_indices(size, size, offset=1)
            self.register_buffer("pairs", i * size + j, persistent=False)
            self.first = nn.Linear(size, hidden[0])  # the diagonal, with the bias
            self.off_diagonal = nn.Linear(len(i), hidden[0], bias=False)
        self.second, self.last = nn.Linear(hidden[0], hidden[1]), nn.Linear(hidden[1], 1)
        for layer in (self.second, self.last):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        std = (2 / size**2) ** 0.5  # Kaiming's for the full matrix
        nn.init.normal_(self.first.weight, std=std)
        nn.init.zeros_(self.first.bias)
        if form == "triangle":
            nn.init.normal_(self.off_diagonal.weight, std=2**0.5 * std)  # the sum of two
        self.deviation = nn.Linear(hidden[1], 1) if uncertain else None  # drawn last

    def forward(self, maps: Tensor) -> Tensor:
        """Regress quality, (B,), from maps of any height and width, (B, in_channels, h, w)."""
        with full_precision(maps.device.type):
            return self.last(self._hidden(maps))[:, 0]

    def moments(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Regress quality and its standard deviation, > 0; (B,) each."""
        with full_precision(maps.device.type):
            hidden = self._hidden(maps)
            return self.last(hidden)[:, 0], F.softplus(self.deviation(hidden))[:, 0]

    def _hidden(self, maps: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self._read(maps.float()))))

    def _read(self, maps: Tensor) -> Tensor:
        places = self.project(maps.flatten(2).mT)  # (B, hw, C)
        products = places.mT @ places / places.shape[1]  # (B, C, C)
        if self.form == "full":
            return self.first(F.normalize(_signed_root(products).flatten(1)))
        off = _signed_root(products.flatten(1).index_select(1, self.pairs))  # (B, C (C-1) / 2)
        diagonal = _signed_root(products.diagonal(dim1=1, dim2=2))  # (B, C)
        length = (2 * off.square().sum(1) + diagonal.square().sum(1)).sqrt()
        read = F.linear(diagonal, self.first.weight) + self.off_diagonal(off)  # (B, hidden)
        return read / length.clamp_min(1e-12)[:, None] + self.first.bias

    @torch.no_grad()
    def copy_full(self, full: BilinearRegressor) -> BilinearRegressor:
        """Take over the weights of a ``full`` regressor: both compute the same function."""
        size = self.first.in_features
        state = {k: v.clone() for k, v in full.state_dict().items()}
        square = state["first.weight"].reshape(-1, size, size)  # (hidden, C, C)
        state["first.weight"] = square.diagonal(dim1=1, dim2=2).clone()
        state["off_diagonal.weight"] = (square + square.mT).flatten(1)[:, self.pairs]
        self.load_state_dict(state)
        return self


def _signed_root(x: Tensor) -> Tensor:
    return x.sign() * (x.abs() + 1e-8).sqrt()


class MonotonicIQA(nn.Module):
    """Trunk, bilinear regressor and one monotone transformer for each data set.

    ``sources`` names the data sets in the order of the transformers; ``backbone`` is any
    convolutional timm model. For the rest see :class:`BilinearRegressor` (wide trunks need
    ``channels``), :class:`MonotonicTransformers` and :func:`iqa_utils.backbones.create_backbone`.

    References:
        Feng et al., Learning from mixed datasets, Electronics Letters 2023, Fig. 2.
    """

    def __init__(
        self,
        sources: Sequence[str],
        *,
        backbone: str = "resnet34",
        pretrained: str | Path = "random",
        channels: int | None = None,
        form: Literal["triangle", "full"] = "triangle",
        uncertain: bool = False,
        variant: Variant = "paper",
        n_layers: int = 5,
    ) -> None:
        super().__init__()
        self.architecture = architecture("monotonic", locals()) | {"sources": list(sources)}
        self.trunk = create_backbone(backbone, pretrained=pretrained, num_classes=0, global_pool="")
        # timm calls it num_features before and head_hidden_size after the last 1x1 convolution
        width = getattr(self.trunk, "head_hidden_size", None) or self.trunk.num_features
        self.head = BilinearRegressor(width, channels=channels, form=form, uncertain=uncertain)
        self.transformers = MonotonicTransformers(len(sources), variant=variant, n_layers=n_layers)

    def quality(self, images: Tensor) -> Tensor:
        """Regress quality, (B,), on the model's own scale: the way the model is used."""
        return self.head(self.trunk(images))

    def forward(self, images: Tensor, source: Tensor | None = None) -> Tensor:
        """Regress quality, (B,), and map it to the scores of each image's ``source``, if given."""
        quality = self.quality(images)
        return quality if source is None else self.transformers(quality, source)


def parameter_groups(model: nn.Module, *, lr_trunk: float, lr: float) -> list[dict[str, Any]]:
    """Group parameters for Adam as the released code does.

    The trunk gets ``lr_trunk`` (paper: 3e-5), everything else ``lr`` (paper: 3e-4; it gives the
    regressor two rates in two sentences, the code's is taken), but for off-diagonal weights of a
    triangle head: ``2 * lr``, since each stands for two of the full matrix.
    """
    groups: dict[float, list[nn.Parameter]] = {lr_trunk: [], lr: [], 2 * lr: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_trunk, is_double = name.startswith("trunk."), "off_diagonal" in name
            groups[lr_trunk if is_trunk else 2 * lr if is_double else lr].append(parameter)
    return [{"params": params, "lr": rate} for rate, params in groups.items() if params]


# height and width at which the released code tests: only BID is shrunk (shorter side 768); LIVE's
# most frequent size stands for its eight
SIZES = {
    **{"224": (224, 224), "299": (299, 299), "384": (384, 384)},
    **{"live": (512, 768), "csiq": (512, 512), "kadid10k": (384, 512)},
    **{"bid": (768, 1024), "livec": (500, 500), "koniq10k": (768, 1024)},
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


COMPARED = {
    "Proposed": lambda: MonotonicIQA(["any"], form="full", variant="identity"),
    "Proposed, triangle head": lambda: MonotonicIQA(["any"], variant="identity"),
    "UNIQUE": Unique,
    "KonCept512": KonCept,
}


def cost_table(sizes: dict[str, tuple[int, int]] = SIZES) -> pd.DataFrame:
    """Count GMAC per image, a row per size and a column per network, parameters (M) first."""
    columns = {}
    for name, build in COMPARED.items():
        with torch.device("meta"):
            network = build()
        macs = {size: count_macs(network, *size) / 1e9 for size in dict.fromkeys(sizes.values())}
        columns[name] = {"parameters (M)": count_parameters(network) / 1e6}
        columns[name] |= {key: macs[size] for key, size in sizes.items()}
    return pd.DataFrame(columns)

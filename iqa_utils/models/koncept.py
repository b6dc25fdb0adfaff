"""KonCept512: InceptionResNetV2 with a deep head, the network that the paper compares with."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from iqa_utils.models.pooled_trunk import PooledTrunk
from iqa_utils.models.scores import architecture, scaled_score

WIDTHS = (2048, 1024, 256)
DROPOUT = (0.25, 0.25, 0.5)


class KonCept(nn.Module):
    """Predict quality from a pooled trunk through three wide layers.

    Args:
        backbone: timm name of the trunk.
        pooling: ``"global"`` averages the whole map, as in the authors' notebooks. ``"8x8"``
            averages its top-left 8x8 positions, as in their PyTorch port, which keeps the trunk's
            pooling of 299-pixel inputs: at 512x384 it sees 64 of 140 positions.
        widths: Widths of the three layers.
        frozen: Name of a layer of the trunk that is not trained, nor any before it; as
            :class:`iqa_utils.models.dual_xception.DualXception`.
        mos_mean: Score that an untrained network predicts, on the data's scale.
        mos_std: Spread of the scores: the head works in these units.
        pretrained: Weights of the trunk, as :func:`iqa_utils.backbones.create_backbone`.

    Raises:
        ValueError: If the pooling is unknown or there are not three widths.

    Note:
        Layers follow the released notebooks: dense, ReLU, batch normalisation, dropout; weights
        drawn as He did. 59,821,729 parameters; the "56 million" of Lehmann is InceptionResNetV2
        with its ImageNet classifier. Standardised output is ours: as released the head needs 13
        epochs to climb to the mean score.

    References:
        Hosu, Lin, Sziranyi and Saupe, IEEE Transactions on Image Processing 2020, section V.
    """

    def __init__(
        self,
        backbone: str = "inception_resnet_v2",
        *,
        pooling: Literal["global", "8x8"] = "global",
        widths: tuple[int, ...] = WIDTHS,
        frozen: str | None = None,
        mos_mean: float = 0.0,
        mos_std: float = 1.0,
        pretrained: str | Path = "random",
    ) -> None:
        super().__init__()
        if pooling not in ("global", "8x8"):
            raise ValueError(f"pooling must be 'global' or '8x8', got {pooling!r}")
        if len(widths) != len(DROPOUT):
            raise ValueError(f"widths must be {len(DROPOUT)} numbers, got {tuple(widths)}")
        self.architecture = architecture("koncept", locals())
        how = "mean" if pooling == "global" else pooling
        self.image_branch = PooledTrunk(backbone, 3, pooling=how, pretrained=pretrained)
        if frozen is not None:
            self.image_branch.freeze(frozen)
        layers, n_in = [], self.image_branch.n_features
        for n_out, dropout in zip(widths, DROPOUT, strict=True):
            dense = nn.Linear(n_in, n_out)
            nn.init.kaiming_normal_(dense.weight, nonlinearity="relu")
            nn.init.zeros_(dense.bias)
            layers += [dense, nn.ReLU(), nn.BatchNorm1d(n_out), nn.Dropout(dropout)]
            n_in = n_out
        self.head = nn.Sequential(*layers, nn.Linear(n_in, 1))
        self.register_buffer("mos_mean", torch.tensor(float(mos_mean)))
        self.register_buffer("mos_std", torch.tensor(float(mos_std)))

    def forward(self, images: Tensor, parameters: Tensor | None = None) -> Tensor:
        """Predict the scores, shape (B,), of normalised RGB or of what the stem made of it.

        ``parameters`` are not read; they are there so that batches of dual-Xception fit.
        """
        return self.score(self.image_branch(images))

    def score(self, features: Tensor) -> Tensor:
        """Return the scores (B,) of pooled features (B, F) of the trunk."""
        return scaled_score(self.head[-1], self.head[:-1](features), self.mos_mean, self.mos_std)


class PooledHead(nn.Module):
    """The head of a KonCept network, shared with it, on features of its trunk computed before."""

    def __init__(self, network: KonCept) -> None:
        super().__init__()
        self.head, self.score = network.head, network.score

    def forward(self, features: Tensor) -> Tensor:
        """Return scores (B,) of pooled features (B, F)."""
        return self.score(features)

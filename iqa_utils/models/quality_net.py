"""The network of the default quality model: features of early and late blocks."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from iqa_utils.backbones import create_backbone, freeze_batch_statistics

TRUNK = "tf_efficientnet_lite0"
TAPS = (1, 2, 3, 4, 6)  # blocks whose maps are pooled: stride 4 to 32


class QualityNet(nn.Module):
    """EfficientNet-Lite0 and one linear layer on the pooled maps of five blocks and the last layer.

    Noise and blocking are plain in early maps and lost in late ones, so the score reads both: mean
    and standard deviation of every map over the image, standardised by the training photographs.

    Args:
        pretrained: Weights of the trunk, as for :func:`iqa_utils.backbones.create_backbone`.
        n_axes: Directions in which the distance to the training photographs is measured.
    """

    def __init__(self, *, pretrained: str | Path = "random", n_axes: int = 48) -> None:
        super().__init__()
        self.architecture = {"name": "quality", "n_axes": n_axes}
        self.trunk = create_backbone(TRUNK, pretrained=pretrained, num_classes=0, global_pool="")
        freeze_batch_statistics(self.trunk).eval()
        with torch.no_grad():
            n_features = self.pooled(torch.zeros(1, 3, 32, 32)).shape[1]
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("std", torch.ones(n_features))
        self.register_buffer("axes", torch.zeros(n_features, n_axes))  # whitened
        self.register_buffer("left", torch.ones(()))  # mean square of what they leave
        self.head = nn.Linear(n_features, 1)

    def fold(self) -> QualityNet:
        """Put every batch normalisation into the layer before it: faster, for scoring only."""
        for parent in list(self.trunk.modules()):
            children = list(parent.named_children())
            for (first, conv), (second, norm) in pairwise(children):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    setattr(parent, first, fuse_conv_bn_eval(conv, norm))
                    setattr(parent, second, getattr(norm, "act", nn.Identity()))
        return self.to(memory_format=torch.channels_last)

    def pooled(self, images: Tensor) -> Tensor:
        """Pool the maps of normalised images (B, 3, H, W) to (B, F)."""
        maps, pooled = self.trunk.bn1(self.trunk.conv_stem(images)), []
        for number, block in enumerate(self.trunk.blocks):
            maps = block(maps)
            if number in TAPS:
                spread, mean = torch.var_mean(maps.float(), dim=(2, 3), correction=0)
                pooled += [mean, (spread + 1e-6).sqrt()]
        last = self.trunk.bn2(self.trunk.conv_head(maps))
        return torch.cat([*pooled, last.float().mean(dim=(2, 3))], 1)

    def features(self, images: Tensor) -> Tensor:
        """Standardise :meth:`pooled` by mean and spread of the training photographs."""
        return (self.pooled(images) - self.mean) / self.std

    def logits(self, images: Tensor) -> Tensor:
        """Return the log odds of the score, (B,): unbounded, for training."""
        return self.head(self.features(images)).squeeze(1)

    def with_distance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B,) in (0, 1) and Mahalanobis distances (B,) to the training photographs.

        The distance counts ``n_axes`` principal directions and, as one more, all that is left.
        """
        features = self.features(images)
        along = features @ self.axes
        inside = along.square() @ (1 / self.axes.square().sum(0))  # the axes are orthogonal
        distance = along.square().sum(1) + (features.square().sum(1) - inside) / self.left
        return self.head(features).squeeze(1).sigmoid(), distance.sqrt()

    def forward(self, images: Tensor) -> Tensor:
        """Score normalised images (B, 3, H, W) in (0, 1), higher is better; (B,)."""
        return self.logits(images).sigmoid()

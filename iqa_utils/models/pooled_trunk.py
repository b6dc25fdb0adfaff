"""One trunk with the pooling and layers that turn its map into a feature.

Its beginning can be frozen; what the frozen layers make of an image never changes, so it can be
computed once and fed in place of the image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from iqa_utils.backbones import create_backbone, freeze_batch_statistics

Variant = Literal["A", "B", "C", "G"]
Pooling = Literal["mean", "mean_std", "8x8"]


class PooledTrunk(nn.Module):
    """A trunk and the pooling and layers that turn its map into a feature.

    Args:
        backbone: timm name.
        channels: Input planes.
        variant: See :class:`iqa_utils.models.dual_xception.DualXception`.
        width: Feature width of the variants ``B``, ``C`` and ``G``.
        pooling: ``"mean"`` over all positions; ``"mean_std"``: also their standard deviation;
            ``"8x8"``: the mean of the 8x8 positions at the top left.
        pretrained: Weights of the trunk.
    """

    def __init__(
        self,
        backbone: str,
        channels: int,
        *,
        variant: Variant = "A",
        width: int = 1024,
        pooling: Pooling = "mean",
        pretrained: str | Path = "random",
    ) -> None:
        super().__init__()
        options = {"num_classes": 0, "global_pool": ""}
        if channels != 3:
            options["in_chans"] = channels
        self.trunk = create_backbone(backbone, pretrained=pretrained, **options)
        self.channels = channels
        self.pooling = pooling
        n_map = self.trunk.num_features
        if variant in ("C", "G"):
            _narrow_last_convolution(self.trunk, backbone, width)
            n_map = width
        n_map *= 2 if pooling == "mean_std" else 1
        self.project = nn.Linear(n_map, width) if variant in ("B", "G") else nn.Identity()
        self.n_features = width if variant in ("B", "G") else n_map
        self.frozen: str | None = None
        self._frozen_steps: list[nn.Module] = []  # of the trunk, which owns them
        self._trained_steps: list[nn.Module] = [self.trunk]

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W), or the output of :meth:`stem`, to features (B, n_features)."""
        maps = self.stem(images) if images.shape[1] == self.channels else images
        for step in self._trained_steps:
            maps = step(maps)
        return self.project(self._pool(maps))

    @torch.no_grad()
    def stem(self, images: Tensor) -> Tensor:
        """Apply the frozen layers, which always give the same for the same image."""
        for step in self._frozen_steps:
            images = step(images)
        return images

    def frozen_layers(self) -> nn.Sequential:
        """Return the layers of :meth:`stem`, shared with the trunk."""
        return nn.Sequential(*self._frozen_steps)

    def freeze(self, last: str) -> None:
        """Freeze the trunk up to a child, or a step of one of its sequential blocks, by name."""
        steps = _chain(self.trunk)
        if last not in steps:
            raise ValueError(f"frozen must be one of {list(steps)}, got {last!r}")
        position = list(steps).index(last) + 1
        self.frozen = last
        self._frozen_steps = list(steps.values())[:position]
        self._trained_steps = list(steps.values())[position:]
        for step in self._frozen_steps:
            freeze_batch_statistics(step).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PooledTrunk:
        """Set the mode of everything but the frozen layers, which stay in evaluation mode."""
        super().train(mode)
        for step in self._frozen_steps:
            step.eval()
        return self

    def _pool(self, maps: Tensor) -> Tensor:
        """Pool a map (B, F, h, w) to (B, F) or, with the spread, (B, 2 F)."""
        if maps.ndim != 4:
            raise ValueError(f"the trunk must end in a map (B, F, h, w), got {tuple(maps.shape)}")
        if self.pooling == "8x8":
            maps = maps[:, :, :8, :8]
        mean = maps.mean(dim=(2, 3))
        if self.pooling != "mean_std":
            return mean
        return torch.cat([mean, maps.flatten(2).float().var(2, correction=0).add(1e-6).sqrt()], 1)


def count_parameters(network: nn.Module) -> int:
    """Count the weights of a network."""
    return sum(p.numel() for p in network.parameters())


def _chain(trunk: nn.Module) -> dict[str, nn.Module]:
    """List a trunk's layers in order, by name, and make sure that in a row they are the trunk."""
    steps: dict[str, nn.Module] = {}
    for name, child in trunk.named_children():
        if isinstance(child, nn.Sequential):
            steps |= {f"{name}.{inner}": step for inner, step in child.named_children()}
        else:
            steps[name] = child
    probe = maps = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    mode = trunk.training
    trunk.eval()
    with torch.no_grad():
        expected = trunk(probe)
        try:
            for step in steps.values():
                maps = step(maps)
        except (RuntimeError, TypeError, ValueError):
            maps = probe  # the layers do not even fit one another
    trunk.train(mode)
    if not torch.equal(maps, expected):
        raise ValueError(
            f"{type(trunk).__name__} is not a chain of its layers: cannot freeze a part"
        )
    return steps


def _narrow_last_convolution(trunk: nn.Module, backbone: str, width: int) -> None:
    """Give Xception's last separable convolution another width, with new random weights."""
    if "xception" not in backbone or not hasattr(getattr(trunk, "conv4", None), "pointwise"):
        raise ValueError(
            f"variants C and G narrow Xception's conv4, which {backbone} does not have"
        )
    trunk.conv4.pointwise = nn.Conv2d(trunk.conv4.pointwise.in_channels, width, 1, bias=False)
    trunk.bn4 = nn.BatchNorm2d(width)

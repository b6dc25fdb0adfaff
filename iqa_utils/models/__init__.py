"""The networks of the five papers: what they share, and the way from a description to a network.

The beginning of a trunk can be frozen; what the frozen layers make of an image never changes, so it
can be computed once and fed in place of the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from iqa_utils.backbones import create_backbone, freeze_batch_statistics

Variant = Literal["A", "B", "C", "G"]
Pooling = Literal["mean", "mean_std"]
# name in a saved architecture -> (module here, class); imported only when it is asked for
MODELS = {
    "dual_xception": ("dual_xception", "DualXception"),
    "koncept": ("dual_xception", "KonCept"),
    "monotonic": ("monotonic", "MonotonicIQA"),
    "clip_head": ("clip_head", "ClipHead"),
    "imqnet": ("imqnet", "IMQNet"),
    "quality": ("quality_net", "QualityNet"),
}


def build_model(architecture: Mapping[str, Any]) -> nn.Module:
    """Build one of the project's networks, with random weights, from its ``architecture``.

    Args:
        architecture: ``name`` (a key of :data:`MODELS`) and the arguments of the constructor.

    Returns:
        The network on the CPU. Weights are the caller's to load: ``pretrained`` is refused here, so
        that reading a model file never fetches or opens another file.

    Raises:
        ValueError: If the name is unknown, ``pretrained`` is given, or the constructor does not
            accept the arguments.
    """
    arguments = dict(architecture)
    name = arguments.pop("name", None)
    if name not in MODELS:
        raise ValueError(f"architecture name must be one of {sorted(MODELS)}, got {name!r}")
    if arguments.pop("pretrained", None) is not None:
        raise ValueError(f"architecture {name}: pretrained weights come from the model file itself")
    module, class_name = MODELS[name]
    network = getattr(import_module(f"{__name__}.{module}"), class_name)
    try:
        return network(**arguments)
    except TypeError as error:
        raise ValueError(f"architecture {name}: {error}") from error


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


def count_parameters(network: nn.Module) -> int:
    """Count the weights of a network."""
    return sum(p.numel() for p in network.parameters())


def count_macs(network: nn.Module, height: int, width: int, *more: Tensor) -> int:
    """Count the multiply-accumulates of one image, and of ``more`` inputs: half of torch's FLOPs.

    One per weight and place in convolutions and matrix products; on the meta device nothing is
    computed.

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 1, bias=False), 4, 5)
        480
    """
    images = torch.empty(1, 3, height, width, device=next(network.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(images, *more)
    return counter.get_total_flops() // 2


class PooledTrunk(nn.Module):
    """A trunk for some input planes, and the pooling and layers that turn its map into a feature.

    ``pooling`` is the ``mean`` over all positions, or ``mean_std``, also their standard deviation.
    The other arguments are those of :class:`iqa_utils.models.dual_xception.DualXception`.
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
        planes = {} if channels == 3 else {"in_chans": channels}
        options = {"num_classes": 0, "global_pool": "", **planes}
        trunk = create_backbone(backbone, pretrained=pretrained, **options)
        self.trunk, self.channels, self.pooling = trunk, channels, pooling
        n_map = trunk.num_features
        if variant in ("C", "G"):  # another width of the last convolution, with random weights
            if "xception" not in backbone or not hasattr(trunk, "conv4"):
                raise ValueError(
                    f"variants C and G narrow Xception's conv4, which {backbone} does not have"
                )
            n_in, n_map = trunk.conv4.pointwise.in_channels, width
            trunk.conv4.pointwise = nn.Conv2d(n_in, width, 1, bias=False)
            trunk.bn4 = nn.BatchNorm2d(width)
        n_map *= 2 if pooling == "mean_std" else 1
        self.project = nn.Linear(n_map, width) if variant in ("B", "G") else nn.Identity()
        self.n_features = width if variant in ("B", "G") else n_map
        self._frozen_steps: list[nn.Module] = []  # of the trunk, which owns them
        self._trained_steps: list[nn.Module] = [trunk]

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
        position, layers = list(steps).index(last) + 1, list(steps.values())
        self._frozen_steps, self._trained_steps = layers[:position], layers[position:]
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
        mean = maps.mean(dim=(2, 3))
        if self.pooling != "mean_std":
            return mean
        return torch.cat([mean, maps.flatten(2).float().var(2, correction=0).add(1e-6).sqrt()], 1)


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
        raise ValueError(f"{type(trunk).__name__} is not a chain of its layers, freeze all or none")
    return steps

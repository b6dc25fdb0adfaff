"""IMQNet: one branch for low-level features, one for high-level ones, joined on a 7x7 grid.

The paper gives the outline and no numbers; the widths, the three sub-branches and the fully
connected layers here are a plan that fits every sentence of it and is stated where it is a choice.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iqa_utils.models import architecture, count_macs, count_parameters, scaled_score

# (channels at width 1, stride) of each block; a stride of 2 halves the map
LOW_LEVEL = [(24, 1), (24, 2), (48, 1), (48, 2), (96, 1), (96, 2)]
LOW_LEVEL += [(144, 1), (144, 2), (192, 1), (192, 2), (192, 1)]
HIGH_LEVEL = [(24, 1), (24, 2), (48, 1), (48, 1), (48, 2), (96, 1), (96, 1), (96, 2)]
HIGH_LEVEL += [(144, 1), (144, 1), (144, 2), (192, 1), (192, 1), (192, 2), (192, 1), (192, 1)]
GRID = 7  # both branches end on a 7x7 map of image regions


class ThreeWayBlock(nn.Module):
    """Look at a map with three receptive fields at once and concatenate what they saw.

    The sub-branches are 3x3, 1x1 then 3x3, and 1x1 then 3x3 twice, each convolution followed by
    ReLU, each giving a third of the channels. In a downscaling block the last convolution of every
    sub-branch has stride 2.

    References:
        Ponomarenko et al., Transfer learning for no-reference image quality metrics using large
        temporary image sets, Fig. 5.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        if out_channels < 3 or out_channels % 3:
            raise ValueError(f"out_channels must be a multiple of 3, got {out_channels}")
        self.branches = nn.ModuleList()
        for kernels in [(3,), (1, 3), (1, 3, 3)]:
            layers, n_in = [], in_channels
            for position, kernel in enumerate(kernels, 1):
                step = stride if position == len(kernels) else 1
                layers.append(nn.Conv2d(n_in, out_channels // 3, kernel, step, kernel // 2))
                layers.append(nn.ReLU(inplace=True))
                n_in = out_channels // 3
            self.branches.append(nn.Sequential(*layers))

    def forward(self, maps: Tensor) -> Tensor:
        """Return the three views of (B, C, H, W) side by side, H and W divided by the stride."""
        return torch.cat([branch(maps) for branch in self.branches], dim=1)


class IMQNet(nn.Module):
    """Predict quality from low-level and high-level maps of an image of any size.

    The input is halved by antialiased bicubic resampling. Branch 1 keeps that size and runs eleven
    blocks; branch 2 starts from a copy whose shorter side is fixed and runs sixteen. Both end on a
    7x7 map, are concatenated, rearranged from space to depth and read by three fully connected
    layers, so composition (where in the image something is) reaches the score.

    Args:
        width: Multiplies every channel count, each rounded to a multiple of 3. 1.0 has 7.73 M
            parameters and costs 6.5 GMAC at 1024x768; 0.5 has 3.15 M and costs 1.65 GMAC.
        downscale: Factor by which the input is shrunk first; 1 where the store already did it.
        high_level_side: Shorter side of the input of branch 2, in pixels.
        hidden: Widths of the two hidden fully connected layers.
        mos_mean: Added to the output: start it at the mean of the training scores.
        mos_std: Multiplies the output: the SD of the training scores.

    Raises:
        ValueError: If width, downscale or the side is not positive.

    Note:
        The paper says both that the input is halved and that branch 1 starts "from the full-size
        input": full size is read as that of the halved input. Space-to-depth on a 7x7 map admits
        only blocks of 7 (7 is prime) and is therefore a flattening. Channel counts, hidden widths,
        the kernels of the sub-branches and the standardised output are ours.

    References:
        Ponomarenko et al., Fig. 4 and 5.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        downscale: int = 2,
        high_level_side: int = 292,
        hidden: tuple[int, int] = (256, 64),
        mos_mean: float = 0.0,
        mos_std: float = 1.0,
    ) -> None:
        super().__init__()
        if min(width, mos_std) <= 0 or downscale < 1 or high_level_side < GRID:
            raise ValueError(
                f"width and mos_std must be > 0, downscale >= 1 and high_level_side >= {GRID}, "
                f"got {width}, {mos_std}, {downscale} and {high_level_side}"
            )
        self.architecture = architecture("imqnet", locals())
        self.downscale, self.high_level_side = downscale, high_level_side
        self.register_buffer("mos_mean", torch.tensor(float(mos_mean)))
        self.register_buffer("mos_std", torch.tensor(float(mos_std)))
        self.low_level = _branch(LOW_LEVEL, width)
        self.high_level = _branch(HIGH_LEVEL, width)
        joined = _scaled(LOW_LEVEL[-1][0], width) + _scaled(HIGH_LEVEL[-1][0], width)
        self.space_to_depth = nn.PixelUnshuffle(GRID)
        first, second = nn.Linear(joined * GRID * GRID, hidden[0]), nn.Linear(*hidden)
        last = nn.Linear(hidden[1], 1)
        self.head = nn.Sequential(first, nn.ReLU(True), second, nn.ReLU(True), last)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        # without normalisation an unlucky start is far from the mean: begin near it
        with torch.no_grad():
            self.head[-1].weight.mul_(0.1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores (B,) of normalised RGB images (B, 3, H, W), any H and W."""
        height, width = images.shape[-2:]
        if self.downscale > 1:
            size = (max(height // self.downscale, 1), max(width // self.downscale, 1))
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        low = _resize(self.low_level(images), (GRID, GRID))  # (B, C, 7, 7)
        side = self.high_level_side
        scale = side / min(images.shape[-2:])
        small = _resize(images, tuple(round(length * scale) for length in images.shape[-2:]))
        high = _resize(self.high_level(small), (GRID, GRID))  # (B, C, 7, 7)
        depth = self.space_to_depth(torch.cat([low, high], dim=1))  # (B, 49 * 2C, 1, 1)
        features = self.head[:-1](depth.flatten(1))
        return scaled_score(self.head[-1], features, self.mos_mean, self.mos_std)  # (B,)


def cost(model_arguments: dict[str, object], height: int, width: int) -> dict[str, int]:
    """Count what an ``IMQNet(**model_arguments)`` costs at an image size, without allocating it.

    Returns ``parameters`` in total and by ``low_level``, ``high_level``, ``head``; ``macs`` of one
    forward pass (convolutions and fully connected layers).
    """
    with torch.device("meta"):
        model = IMQNet(**model_arguments)
    parts = ["low_level", "high_level", "head"]
    count = {part: count_parameters(getattr(model, part)) for part in parts}
    return {"parameters": sum(count.values()), **count, "macs": count_macs(model, height, width)}


def _branch(plan: list[tuple[int, int]], width: float) -> nn.Sequential:
    """Stack the blocks of a plan at a given width."""
    channels = [3] + [_scaled(out, width) for out, _ in plan]
    blocks = zip(channels[:-1], channels[1:], (stride for _, stride in plan), strict=True)
    return nn.Sequential(*(ThreeWayBlock(i, o, stride=stride) for i, o, stride in blocks))


def _scaled(channels: int, width: float) -> int:
    """Return the nearest multiple of 3 to the scaled channel count, at least 3."""
    return max(round(channels * width / 3), 1) * 3


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample with antialiasing: averages where it shrinks, interpolates where it grows."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps.float(), size, mode="bilinear", antialias=True)  # CPU: no bfloat16

"""One training step of the bilinear head: the full matrix against one weight for each pair."""

from collections.abc import Callable

import torch
from common import compare, report
from torch import Tensor

from iqa_utils.models.monotonic import BilinearRegressor, parameter_groups

RATE = 3e-4  # the paper's
CHANNELS = 352


def make_step(
    head: BilinearRegressor, maps: Tensor, mos: Tensor, *, fused: bool
) -> Callable[[], None]:
    """Return a function that trains the head on one batch."""
    groups = parameter_groups(head, lr_trunk=0.0, lr=RATE)
    optimizer = torch.optim.Adam(groups, fused=fused)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (head(maps) - mos).square().mean().backward()
        optimizer.step()

    return step


def gate(steps: int = 200) -> float:
    """Train both forms side by side; return how far apart their predictions end, relatively."""
    torch.manual_seed(1)
    maps, mos = torch.rand(16, 32, 6, 6), torch.rand(16)
    full = BilinearRegressor(32, form="full").double()
    triangle = BilinearRegressor(32, form="triangle").double().copy_full(full)
    optimizers = [
        torch.optim.Adam(parameter_groups(head, lr_trunk=0.0, lr=RATE)) for head in (full, triangle)
    ]
    for _ in range(steps):
        for head, optimizer in zip((full, triangle), optimizers, strict=True):
            optimizer.zero_grad()
            (predict(head, maps) - mos).square().mean().backward()
            optimizer.step()
    with torch.no_grad():
        ends = predict(full, maps), predict(triangle, maps)
    return float((ends[0] - ends[1]).abs().max() / ends[0].std())


def predict(head: BilinearRegressor, maps: Tensor) -> Tensor:
    """Run a head in float64, where rounding does not hide a different trajectory."""
    hidden = torch.relu(head._read(maps.double()))
    return head.last(torch.relu(head.second(hidden)))[:, 0]


def main() -> None:
    """Time steps on the maps of 32 crops of 384 pixels behind ResNet-34.

    Of its 512 channels 352 are used: three heads with their moments then fit into 4 GB.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    difference = gate()
    torch.manual_seed(0)
    maps, mos = torch.rand(32, CHANNELS, 12, 12, device=device), torch.rand(32, device=device)
    full = BilinearRegressor(CHANNELS, form="full").to(device)
    triangle = BilinearRegressor(CHANNELS, form="triangle").to(device).copy_full(full)
    again = BilinearRegressor(CHANNELS, form="triangle").to(device).copy_full(full)
    legs = {
        "full": make_step(full, maps, mos, fused=False),
        "triangle": make_step(triangle, maps, mos, fused=False),
        "triangle, fused Adam": make_step(again, maps, mos, fused=True),
    }
    record = compare(
        f"bilinear head, {CHANNELS} channels, step of 32", legs, gate=(difference, 1e-6), goal=1.5
    )
    report([record])


if __name__ == "__main__":
    main()

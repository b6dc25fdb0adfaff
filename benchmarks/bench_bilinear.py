"""One training step of the bilinear head: the full matrix against one weight for each pair.

Each optimiser has a record of its own, so that ours gains nothing from a faster one.
"""

from typing import Literal

import torch
from common import clock, judge, report
from torch import Tensor

from iqa_utils.models.monotonic import BilinearRegressor, parameter_groups

RATE = 3e-4  # the paper's
CHANNELS = 512  # of ResNet-34
REPEATS = 5


def time_steps(
    form: Literal["full", "triangle"], maps: Tensor, mos: Tensor, *, fused: bool
) -> list[float]:
    """Return the seconds of training steps of a new head, after one that is not timed.

    One head with its moments takes 2 GB, so heads cannot take turns within 4 GB.
    """
    torch.manual_seed(0)
    head = BilinearRegressor(maps.shape[1], form=form).to(maps.device)
    groups = parameter_groups(head, lr_trunk=0.0, lr=RATE)
    optimizer = torch.optim.Adam(groups, fused=fused)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (head(maps) - mos).square().mean().backward()
        optimizer.step()

    step()
    return [clock(step)[1] for _ in range(REPEATS)]


def gate(*, fused: bool, steps: int = 200) -> float:
    """Train both forms side by side, the full one by plain Adam, ours by either.

    Returns:
        How far apart their predictions end, relatively.
    """
    torch.manual_seed(1)
    maps, mos = torch.rand(16, 32, 6, 6), torch.rand(16)
    full = BilinearRegressor(32, form="full").double()
    triangle = BilinearRegressor(32, form="triangle").double().copy_full(full)
    optimizers = [
        torch.optim.Adam(parameter_groups(head, lr_trunk=0.0, lr=RATE), fused=faster)
        for head, faster in ((full, False), (triangle, fused))
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
    """Time steps on the maps of 32 crops of 384 pixels behind ResNet-34."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    maps, mos = torch.rand(32, CHANNELS, 12, 12, device=device), torch.rand(32, device=device)
    records = []
    for fused in (False, True):
        adam = "fused Adam" if fused else "Adam"
        implementations = {
            form: time_steps(form, maps, mos, fused=fused) for form in ("full", "triangle")
        }
        title = f"bilinear head, {CHANNELS} channels, step of 32, {adam}"
        records.append(judge(title, implementations, gate=(gate(fused=fused), 1e-6), goal=1.5))
    report(records)


if __name__ == "__main__":
    main()

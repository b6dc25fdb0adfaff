"""Learning-rate schedules of the five papers, all in epochs (or batches, if `fit` counts those)."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, StepLR


def constant_then_halved(
    optimizer: Optimizer, *, every: int = 20, factor: float = 0.5
) -> LRScheduler:
    """Multiply the learning rate by a factor at regular intervals.

    Args:
        optimizer: Optimiser at its initial learning rates.
        every: Length of an interval: 20 epochs (Lehmann), 20,000 batches (Ponomarenko), or 3 epochs
            with ``factor=0.9`` (Feng).
        factor: Multiplier.

    Returns:
        Schedule.
    """
    return StepLR(optimizer, step_size=every, gamma=factor)


def staged(optimizer: Optimizer, stages: Sequence[tuple[int, float]]) -> LRScheduler:
    """Hold the learning rate for a number of epochs, then jump to the next stage.

    Args:
        optimizer: Optimiser at its initial learning rates.
        stages: Pairs of (epochs, multiple of the initial rate); the last one has no end. KonCept512
            as published is ``[(40, 1.0), (20, 0.2)]``.

    Returns:
        Schedule.

    Raises:
        ValueError: If there is no stage, or one is shorter than an epoch.
    """
    if not stages or any(epochs < 1 for epochs, _ in stages):
        raise ValueError(f"stages must be (epochs >= 1, multiple) pairs, got {list(stages)}")

    def multiple(epoch: int) -> float:
        for epochs, value in stages:
            if epoch < epochs:
                return value
            epoch -= epochs
        return stages[-1][1]

    return LambdaLR(optimizer, multiple)


def cosine(optimizer: Optimizer, *, epochs: int, floor: float = 0.0) -> LRScheduler:
    """Lower the learning rate along half a cosine.

    Args:
        optimizer: Optimiser at its initial learning rates.
        epochs: Epochs until the floor is reached.
        floor: Final learning rate.

    Returns:
        Schedule.
    """
    return CosineAnnealingLR(optimizer, T_max=epochs, eta_min=floor)

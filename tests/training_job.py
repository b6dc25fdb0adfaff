"""A tiny training that other processes can run, be killed in, and be compared by."""

import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import StepLR

from iqa_utils.backbones import freeze_batch_statistics
from iqa_utils.training import fit, mean_loss, predict, tensor_batches

FEATURES = torch.randn(44, 5, generator=torch.Generator().manual_seed(3))
MOS = (FEATURES.sum(1) * 8 + 50).numpy()
NAMES = [f"image-{i}.png" for i in range(len(MOS))]


class SmallNet(nn.Module):
    """Batch normalisation and dropout: both depend on what came before."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features).squeeze(1)


def make(*, dropout: float = 0.3, frozen: bool = False):
    """Return a network, its optimiser and its schedule, the same every time."""
    torch.manual_seed(0)
    network = SmallNet(dropout)
    if frozen:
        freeze_batch_statistics(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    return network, optimizer, StepLR(optimizer, 2, gamma=0.5)


def evaluate(network: nn.Module) -> dict[str, float]:
    pred = predict(network, tensor_batches(FEATURES, range(32, 44), MOS, batch_size=8))
    return {"val_rmse": float(np.sqrt(np.mean((pred - MOS[32:]) ** 2)))}


def batches(epoch: int, mos: np.ndarray = MOS):
    return tensor_batches(FEATURES, range(32), mos, batch_size=6, seed=1, epoch=epoch, names=NAMES)


def train(network, optimizer, scheduler, *, epochs: int = 6, step=None, **options):
    defaults = {"train_batches": batches, "evaluate": evaluate, "config": {"job": "test"}}
    defaults |= {"select": "val_rmse", "mode": "min", "progress": False, "seed": 7}
    return fit(
        network, loss_step=step or mean_loss(mse_loss), optimizer=optimizer, scheduler=scheduler,
        epochs=epochs, **(defaults | options),
    )  # fmt: skip


def main(folder: str, threads: str) -> None:
    """Train slowly enough to be killed, and save after every step."""
    torch.set_num_threads(int(threads))
    network, optimizer, scheduler = make()

    def slow_step(model: nn.Module, batch) -> torch.Tensor:
        print("step", flush=True)
        time.sleep(0.01)
        return mse_loss(model(*batch.inputs), batch.mos)

    train(network, optimizer, scheduler, step=slow_step, checkpoint_dir=folder, save_seconds=0)


if __name__ == "__main__":
    main(*sys.argv[1:])

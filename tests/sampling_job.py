"""A small study of two samplers that another process can run and be killed in."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn.functional import mse_loss

from iqa_utils.images import build_store
from iqa_utils.studies import sampling_study
from iqa_utils.studies.sampling_setup import INDICATORS, Recipe, Scenario

SMALL = "test_efficientnet"
RECIPE = Recipe(
    backbone=SMALL, koncept_backbone=SMALL, pretrained=None, epochs=2, batch_size=4,
    learning_rate=1e-3, halve_every=1, plane_size=32,
)  # fmt: skip
SCENARIOS = {"none": Scenario(), "koncept": Scenario(network="koncept", sampler="method1")}
STEPS = [4 + 4, 2 + 2]  # 16 images, and 9 of which the last joins the batch before it
N = 24


def train_both(folder: Path, checkpoints: Path | None, on_step) -> sampling_study.Runs:
    """Train both scenarios, save after every step and call a function before it."""
    generator = np.random.default_rng(0)
    names = [f"{i:02d}.png" for i in range(N)]
    for name in names:
        pixels = generator.integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    store = build_store(folder, names, folder / "stores", size=(32, 40), progress=False)
    numbers = pd.DataFrame(generator.uniform(0.1, 1, (N, 4)), columns=list(INDICATORS))
    mos = np.linspace(2, 98, N)[generator.permutation(N)]
    mos[:16] = [10] * 3 + [30] * 6 + [60] * 4 + [90] * 3
    split = np.repeat(["training", "validation", "test"], [16, 4, 4])
    study = sampling_study.Study(
        store, mos, numbers, split, RECIPE, edges=[0, 50, 75, 100],
        checkpoint_dir=checkpoints, save_seconds=0,
    )  # fmt: skip
    study._loss = lambda scenario: lambda pred, mos: on_step() or mse_loss(pred, mos)
    return study.train_all(SCENARIOS, n_runs=1, select="total")


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    root = Path(sys.argv[1])
    train_both(root, root / "checkpoints", lambda: print("step", flush=True))

"""The one feature of Toy 2030: the mean brightness of a photograph."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def brightness(paths: Iterable[Path]) -> torch.Tensor:
    """Return the mean grey level in [0, 1] of every image, shape (N, 1)."""
    means = []
    for path in paths:
        with Image.open(path) as image:
            means.append(np.asarray(image.convert("L"), np.float32).mean() / 255)
    return torch.tensor(means)[:, None]

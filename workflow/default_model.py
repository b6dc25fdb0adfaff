"""Make the default quality model again, with its card: ``python workflow/default_model.py``.

The 1,600 training photographs of the small BIQ2021 set are all it learns from; the 400 test
photographs are scored once, at the end. What is finished (under ``runs/default_model``) is not
done again, so a killed run goes on. One thread, so that another machine comes close.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageFilter
from torch.nn import functional as F

from iqa_utils.datasets import load_scores
from iqa_utils.images.decoding import read_image
from iqa_utils.models.quality_net import QualityNet
from iqa_utils.scorer import Scorer

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "iqa_utils" / "weights" / "quality.safetensors"
WORK = ROOT / "runs" / "default_model"

LEVELS = {
    "gaussian blur": (0.8, 1.4, 2.2, 3.5, 5.5),  # standard deviation, pixels
    "white noise": (6, 12, 22, 38, 60),  # standard deviation, grey levels
    "jpeg": (50, 28, 16, 9, 5),  # quality
    "down and up": (1.5, 2.0, 3.0, 4.5, 7.0),  # factor, bicubic both ways
}
TRAINED = {  # mildest and strongest in training, levels between on a logarithmic scale
    "gaussian blur": (0.5, 6.5),
    "white noise": (3, 70),
    "jpeg": (75, 4),
    "down and up": (1.25, 8),
}
TEST_PICTURES = ("astronaut", "camera", "chelsea", "rocket", "motorcycle_left", "grass")
CHOICE_PICTURES = ("coffee", "brick", "coins", "moon", "hubble_deep_field", "gravel")


def distorted(
    pixels: np.ndarray, kind: str, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """Blur, add noise to, compress, or scale down and up uint8 RGB (H, W, 3)."""
    image = Image.fromarray(pixels)
    if kind == "gaussian blur":
        image = image.filter(ImageFilter.GaussianBlur(strength))
    elif kind == "jpeg":
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=round(strength))
        image = Image.open(stream)
    elif kind == "down and up":
        size = (round(image.width / strength), round(image.height / strength))
        image = image.resize(size, Image.Resampling.BICUBIC)
        image = image.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC)
    elif kind == "white noise":
        noise = rng.standard_normal(pixels.shape, np.float32) * strength
        return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    else:
        raise ValueError(f"no distortion {kind!r}")
    return np.asarray(image)


def photographs(names: Sequence[str], side: int = 384) -> dict[str, np.ndarray]:
    """Open photographs that ship with scikit-image, as RGB, and cut out the middle."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    found = {}
    for name in names:
        image = read_image(next(folder.glob(f"{name}.*")))
        width, height = min(side, image.width), min(side, image.height)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        found[name] = np.asarray(image)[top : top + height, left : left + width]
    return found


def falling_pairs(
    scorer: Scorer, pictures: Mapping[str, np.ndarray], *, seed: int
) -> pd.DataFrame:
    """Compare each level with the one below it; level 0 is the picture itself.

    Returns:
        One row a pair: ``picture``, ``distortion``, ``level``, ``score``, ``falls``.
    """
    rows = []
    for name, clean in pictures.items():
        for kind, strengths in LEVELS.items():
            rng = np.random.default_rng(seed)
            versions = [clean, *(distorted(clean, kind, value, rng) for value in strengths)]
            batch = torch.from_numpy(np.stack(versions)).permute(0, 3, 1, 2)
            scores = scorer.score(batch).tolist()
            for level, (above, score) in enumerate(zip(scores, scores[1:], strict=False), 1):
                rows.append((name, kind, level, score, score < above))
    return pd.DataFrame(rows, columns=["picture", "distortion", "level", "score", "falls"])

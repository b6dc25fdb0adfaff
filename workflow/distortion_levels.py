"""Whether the score falls with the level of a distortion, for the card of the default model."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageFilter

from iqa_utils.decoding import read_image
from iqa_utils.scorer import Scorer

LEVELS = {
    "Gaussian blur": (0.8, 1.4, 2.2, 3.5, 5.5),  # standard deviation, pixels
    "White noise": (6, 12, 22, 38, 60),  # standard deviation, grey levels
    "JPEG": (50, 28, 16, 9, 5),  # quality
    "Down and up": (1.5, 2.0, 3.0, 4.5, 7.0),  # factor, bicubic both ways
}


def distorted(
    pixels: np.ndarray, kind: str, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """Blur, add noise to, compress, or scale down and up uint8 RGB (H, W, 3)."""
    image = Image.fromarray(pixels)
    if kind == "Gaussian blur":
        image = image.filter(ImageFilter.GaussianBlur(strength))
    elif kind == "JPEG":
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=round(strength))
        image = Image.open(stream)
    elif kind == "Down and up":
        size = (round(image.width / strength), round(image.height / strength))
        image = image.resize(size, Image.Resampling.BICUBIC)
        image = image.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC)
    elif kind == "White noise":
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


def falling_pairs(scorer: Scorer, pictures: Mapping[str, np.ndarray], *, seed: int) -> pd.DataFrame:
    """Compare each level with the one below it; level 0 is the picture itself.

    Returns:
        One row per pair: ``picture``, ``distortion``, ``level``, ``score``, ``falls``.
    """
    rows = []
    for name, clean in pictures.items():
        for kind, strengths in LEVELS.items():
            rng = np.random.default_rng(seed)
            versions = [clean, *(distorted(clean, kind, value, rng) for value in strengths)]
            batch = torch.from_numpy(np.stack(versions)).permute(0, 3, 1, 2)
            scores = scorer.score(batch).tolist()
            for level, (above, value) in enumerate(itertools.pairwise(scores), 1):
                rows.append((name, kind, level, value, value < above))
    return pd.DataFrame(rows, columns=["picture", "distortion", "level", "score", "falls"])


def share_of_falls(pairs: pd.DataFrame) -> dict[str, Any]:
    """Count the falling pairs of :func:`falling_pairs`, in total and by distortion and level."""
    table = pairs.groupby(["distortion", "level"], sort=False)["falls"].mean()
    rows = {kind: table[kind].tolist() for kind in LEVELS}
    return {"pairs": len(pairs), "share": float(pairs["falls"].mean()), "by level": rows}

"""Draw where the default model is at its best and at its worst, on pictures that may be shown.

    .venv/bin/python docs/gallery.py

A held-out photograph of scikit-image is distorted in five steps, four ways; its score should fall
with each. Shown are, one per photograph, the steps with the largest fall and with the smallest
(or a rise). The files, levels and seed are those of the model card.
"""

import io
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "workflow"))
from distortion_levels import LEVELS, distorted, photographs  # noqa: E402 - no package

from iqa_utils.backbones import SHIPPED_FILE  # noqa: E402
from iqa_utils.scorer import Scorer  # noqa: E402

FREE = ("astronaut", "camera", "chelsea", "rocket", "grass")  # CC0 or in the public domain
UNITS = {"Gaussian blur": "SD {} px", "White noise": "SD {} grey levels", "JPEG": "quality {}"}
UNITS["Down and up"] = "factor {}"
HEADS = ("Best: the largest fall", "Worst: the smallest fall, or a rise")


def steps() -> pd.DataFrame:
    """Score every version; one row per step, with both pictures and scores."""
    scorer, rows = Scorer.load(SHIPPED_FILE), []
    for name, clean in photographs(FREE).items():
        for kind, strengths in LEVELS.items():
            rng = np.random.default_rng(0)
            versions = [clean, *(distorted(clean, kind, value, rng) for value in strengths)]
            scores = scorer.score(torch.from_numpy(np.stack(versions)).permute(0, 3, 1, 2)).tolist()
            words = ["As it is", *(f"{kind}, {UNITS[kind].format(x)}" for x in strengths)]
            for i in range(len(strengths)):
                row = {"name": name, "change": scores[i + 1] - scores[i]}
                for side, k in (("before", i), ("after", i + 1)):
                    row |= {side: versions[k], f"{side} title": f"{words[k]}\n{scores[k]:.1f}"}
                rows.append(row)
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> plt.Figure:
    """Draw the best steps on the left and the worst on the right, a photograph per row.

    Of a picture that is no square its middle is shown; the score is that of the whole.
    """
    figure = plt.figure(figsize=(11, 14), layout="constrained")
    halves = figure.subfigures(1, 2, wspace=0.03)
    for half, words, place in zip(halves, HEADS, (0, -1), strict=True):
        half.suptitle(words, weight="bold")
        rows = half.subplots(len(FREE), 2)
        for row, (_, own) in zip(rows, table.groupby("name", sort=False), strict=True):
            one = own.sort_values("change").iloc[place]
            for panel, side in zip(row, ("before", "after"), strict=True):
                change = f" ({one['change']:+.1f} points)" if side == "after" else ""
                panel.imshow(_middle(one[side]))
                panel.set_title(one[f"{side} title"] + change, fontsize=9)
                panel.set_axis_off()
    return figure


def _middle(picture: np.ndarray) -> np.ndarray:
    """Cut the largest square from the middle of a picture, shape (H, W, 3)."""
    top, left = ((n - min(picture.shape[:2])) // 2 for n in picture.shape[:2])
    return picture[top : picture.shape[0] - top, left : picture.shape[1] - left]


if __name__ == "__main__":
    buffer = io.BytesIO()
    draw(steps()).savefig(buffer, dpi=80)
    path = DOCS / "gallery.png"
    Image.open(buffer).convert("RGB").quantize(160).save(path, optimize=True)
    print(path.name, path.stat().st_size // 1000, "kB")

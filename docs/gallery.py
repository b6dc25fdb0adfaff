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
                    row |= {side: versions[k], f"{side} title": f"{scores[k]:.1f}  {words[k]}"}
                rows.append(row)
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> plt.Figure:
    """Draw the best steps on the left and the worst on the right, a photograph per row."""
    figure, axes = plt.subplots(len(FREE), 4, figsize=(11, 13), layout="constrained")
    for row, (_, own) in zip(axes, table.groupby("name", sort=False), strict=True):
        ordered = own.sort_values("change")
        for panels, one in ((row[:2], ordered.iloc[0]), (row[2:], ordered.iloc[-1])):
            for panel, side in zip(panels, ("before", "after"), strict=True):
                panel.imshow(one[side])
                change = f"\n{one['change']:+.1f} points" if side == "after" else "\n"
                panel.set_title(one[f"{side} title"] + change, fontsize=9)
                panel.set_axis_off()
    axes[0, 0].text(0, 1.3, "Best: the largest fall", transform=axes[0, 0].transAxes, weight="bold")
    words = "Worst: the smallest fall, or a rise"
    axes[0, 2].text(0, 1.3, words, transform=axes[0, 2].transAxes, weight="bold")
    return figure


if __name__ == "__main__":
    buffer = io.BytesIO()
    draw(steps()).savefig(buffer, dpi=80)
    path = DOCS / "gallery.png"
    Image.open(buffer).convert("RGB").quantize(160).save(path, optimize=True)
    print(path.name, path.stat().st_size // 1000, "kB")

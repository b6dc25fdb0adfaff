"""Draw the README's picture: one photograph, distorted, best to worst, with the scores of a model.

    .venv/bin/python docs/front_picture.py [--method niqe]

The photographs come with scikit-image (chelsea and coffee, CC0). Options go to `iqa score`.
"""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import skimage
from matplotlib.figure import Figure
from PIL import Image, ImageFilter

OUT = Path(__file__).resolve().parents[1] / "figures" / "front.png"


def versions(picture: Image.Image) -> dict[str, Image.Image]:
    """Distort a photograph in four ways, from mild to strong."""
    noise = np.random.default_rng(0).normal(0, 25, (picture.height, picture.width, 3))
    noisy = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    small = picture.resize((picture.width // 6, picture.height // 6))
    compressed = io.BytesIO()
    picture.save(compressed, "JPEG", quality=12)
    return {
        "As it is": picture,
        "Blurred": picture.filter(ImageFilter.GaussianBlur(2)),
        "JPEG, quality 12": Image.open(compressed).convert("RGB"),
        "Noise": noisy,
        "Enlarged 6 times": small.resize(picture.size, Image.Resampling.BICUBIC),
    }


def draw(options: list[str]) -> Figure:
    """Score all versions with `iqa score` and draw one row per photograph, best first."""
    pictures = {name: Image.fromarray(getattr(skimage.data, name)()) for name in ("coffee", "cat")}
    figure, axes = plt.subplots(2, 5, figsize=(11, 3.9), layout="constrained")
    with tempfile.TemporaryDirectory() as folder:
        for name, picture in pictures.items():
            for kind, image in versions(picture).items():
                image.save(Path(folder, f"{name}, {kind}.png"))
        command = [sys.executable, "-m", "iqa_utils.workshop.cli", "score", folder]
        subprocess.run([*command, "--out", f"{folder}/scores", *options], check=True)
        scores = pd.read_csv(f"{folder}/scores.csv")
        lower_is_better = "niqe" in options
        scores = scores.sort_values("score", ascending=lower_is_better)
        for row, name in zip(axes, pictures, strict=True):
            own = scores[scores["image"].map(lambda p, n=name: Path(p).name.startswith(n))]
            for panel, one in zip(row, own.itertuples(), strict=True):
                panel.imshow(Image.open(one.image))
                kind = Path(one.image).stem.split(", ", 1)[1]
                panel.set_title(f"{one.score:.1f}  {kind}", fontsize=10)
                panel.set_axis_off()
    return figure


if __name__ == "__main__":
    buffer = io.BytesIO()
    draw(sys.argv[1:]).savefig(buffer, dpi=100)
    Image.open(buffer).convert("RGB").quantize(160).save(OUT, optimize=True)
    print(OUT.name, OUT.stat().st_size // 1000, "kB")

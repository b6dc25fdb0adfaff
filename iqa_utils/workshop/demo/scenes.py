"""Clean scenes for the demo data: crops of shipped photographs, and dead leaves.

The photographs ship with scikit-image and scikit-learn. A dead-leaves scene is a pile of shaded,
textured discs and polygons whose sizes follow a power law, which gives it the edge statistics of
a natural image. Everything is a function of its generator.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

PHOTOGRAPHS = (  # noqa: SIM905
    "astronaut chelsea coffee rocket china flower hubble_deep_field camera grass gravel brick moon"
).split()
N_LEAVES = 180


@cache
def photograph(name: str) -> Image.Image:
    """Open one of the shipped photographs as RGB; do not change it in place."""
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        return Image.fromarray(load_sample_image(f"{name}.jpg"))
    import skimage.data

    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


def crop_photograph(name: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Cut a random part out of a photograph, half of its side at least, perhaps mirrored.

    Returns:
        RGB in [0, 1], shape (H, W, 3), float32.
    """
    picture = photograph(name)
    height, width = size
    fit = min(picture.width / width, picture.height / height) * rng.uniform(0.5, 1.0)
    left = rng.uniform(0, picture.width - fit * width)
    top = rng.uniform(0, picture.height - fit * height)
    box = (left, top, left + fit * width, top + fit * height)
    crop = picture.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=2)
    pixels = np.asarray(crop, np.float32) / 255
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def dead_leaves(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Pile leaves on a sky until the picture is full: RGB in [0, 1], (H, W, 3), float32."""
    height, width = size
    labels = Image.new("I", (width, height), 0)
    draw = ImageDraw.Draw(labels)
    largest = 0.35 * min(size)
    radii = np.sort(largest * rng.uniform(0.03, 1, N_LEAVES) ** 1.5)[::-1] + 1.5
    for label, radius in enumerate(radii, start=1):
        x, y = rng.uniform(0, width), height * rng.beta(1.9, 1.0)
        corners = rng.integers(3, 9)
        turn = rng.uniform(0, 2 * np.pi)
        if corners > 6:
            flat = rng.uniform(0.4, 1)
            box = (x - radius, y - radius * flat, x + radius, y + radius * flat)
            draw.ellipse(box, fill=label)
        else:
            angles = turn + np.linspace(0, 2 * np.pi, corners, endpoint=False)
            reach = radius * rng.uniform(0.7, 1.2, corners)
            points = np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], 1)
            draw.polygon(list(map(tuple, points)), fill=label)
    labels = np.asarray(labels)  # (H, W), 0 is the sky
    colours = _palette(rng)[labels]  # (H, W, 3)
    pattern = _texture(size, rng)[rng.integers(0, 4, N_LEAVES + 1)[labels], *np.indices(size)]
    depth = rng.uniform(0, 0.16, N_LEAVES + 1)[labels] * (labels > 0)
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij")
    slope = rng.uniform(-0.25, 0.25, 2)
    light = 1 + slope[0] * rows + slope[1] * columns + depth * pattern
    picture = np.clip(colours * light[..., None], 0, 1)
    return ndimage.gaussian_filter(picture, (0.45, 0.45, 0)).astype(np.float32)


def _palette(rng: np.random.Generator) -> np.ndarray:
    """Draw one colour a leaf from the pixels of a photograph, the sky first; (N + 1, 3)."""
    colourful = ("chelsea", "coffee", "rocket", "china", "flower", "astronaut")
    pixels = np.asarray(photograph(colourful[rng.integers(len(colourful))]), np.float32) / 255
    pixels = pixels.reshape(-1, 3)
    colours = pixels[rng.integers(0, len(pixels), N_LEAVES + 1)]
    colours = 0.08 + 0.87 * colours + rng.normal(0, 0.04, colours.shape)
    colours[0] = np.array([0.62, 0.74, 0.88]) * rng.uniform(0.55, 1.1)
    return colours


def _texture(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Make four patterns of mean 0, deviation about 1: fine, coarse, stripes, cloth; (4, H, W)."""
    rows, columns = np.indices(size)
    noise = rng.normal(size=(2, *size))
    coarse = ndimage.gaussian_filter(noise[1], max(1.0, min(size) / 60))
    angle, wave = rng.uniform(0, np.pi), rng.uniform(4, 12)
    stripes = np.sin(2 * np.pi * (rows * np.sin(angle) + columns * np.cos(angle)) / wave)
    cloth = np.sin(2 * np.pi * rows / wave) * np.sin(2 * np.pi * columns / wave)
    return np.stack([noise[0], coarse / coarse.std(), 1.4 * stripes, 2 * cloth])

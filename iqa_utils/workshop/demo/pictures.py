"""Pictures of the demo data with a known quality, and raters who answer about them.

The model, which every page that shows synthetic data refers to:

- the quality q of an image lies in [0, 1]. In a synthetic set it falls with the measured
  difference D from its reference, q = exp(-D); in an authentic set it is drawn first, from
  KonIQ-10k's range counts, and up to three distortions share a total strength of 6 (1 - q)^0.8,
  most of it a blur, noise or JPEG;
- rater r answers bias_r + gain_r * q + noise, before the scale and the rounding of a set.

Clean scenes are crops of the photographs that ship with scikit-image and scikit-learn, and dead
leaves: a pile of shaded, textured discs and polygons whose sizes follow a power law, which gives it
the edge statistics of a natural image. Everything is a function of its generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, NamedTuple
from zlib import crc32

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from iqa_utils.datasets.readers import LIVE_FOLDERS
from iqa_utils.indicators import measure
from iqa_utils.workshop.demo.distortions import as_image, distort

PHOTOGRAPHS = (  # noqa: SIM905
    "astronaut chelsea coffee rocket china flower hubble_deep_field camera grass gravel brick moon"
).split()
N_LEAVES = 180
KONIQ_RANGES = {(0, 20): 183, (20, 40): 1189, (40, 60): 3081, (60, 80): 5408, (80, 100): 212}
MAIN = ("gaussian blur", "lens blur", "motion blur", "white noise", "jpeg")
BESIDES = ("darken", "brighten", "contrast change", "white noise", "jpeg")


class Picture(NamedTuple):
    """One synthetic image: its scene, its pixels (H, W, 3) in [0, 1] and its quality in [0, 1].

    A picture that is only to be linked has no pixels.
    """

    reference: str
    distortion: str
    level: int
    pixels: np.ndarray | None
    quality: float


def sides(height: int, width: int, scale: float) -> tuple[int, int]:
    """Scale a picture's sides, which are real from scale 9 on; even, 48 at least."""
    share = min(1.0, scale**0.5 / 3)
    return max(48, 2 * round(height * share / 2)), max(48, 2 * round(width * share / 2))


def generator(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """Return the generator of one thing, independent of all others."""
    return np.random.default_rng([seed, crc32(name.encode()), *numbers])


def range_qualities(n: int) -> np.ndarray:
    """Spread n qualities over [0, 1] so that KonIQ-10k's ranges hold their share; (N,), rising."""
    counts = np.array(list(KONIQ_RANGES.values()))
    edges = np.concatenate([[0], np.cumsum(counts) / counts.sum()])
    return np.interp((np.arange(n) + 0.5) / n, edges, [0.02, 0.2, 0.4, 0.6, 0.8, 0.97])


@dataclass(frozen=True)
class Studio:
    """Makes and saves the pictures of the demo sets; scale and seed as of ``demo.make_demo``."""

    scale: float
    seed: int
    official: ClassVar[bool] = False  # whether KonIQ's ranges and split have official counts

    def count(self, official: int, small: int) -> int:
        """Scale a number of images from `small` at 1 up to the official one, 5 at least."""
        at_scale = max(5, round(small * self.scale), round(official * self.scale / 64))
        return min(official, at_scale)

    def authentic(self, name: str, n: int, size: tuple[int, int]) -> list[Picture]:
        """Draw n qualities from KonIQ-10k's range counts and spoil scenes accordingly.

        The real size is in pixels; pictures of the two rare ranges are dead leaves.
        """
        pictures, qualities = [], generator(self.seed, name).permutation(range_qualities(n))
        for i, quality in enumerate(qualities):
            rng = generator(self.seed, name, i)
            ordinary = 0.2 < quality < 0.8  # the rare ranges get dead leaves, free to be split
            place = i if ordinary else 2 * (n + i) + 1
            reference, pixels = scene(name, place, sides(*size, self.scale), self.seed)
            n_kinds = int(rng.integers(1, 4))
            kinds = [rng.choice(MAIN), *rng.choice(BESIDES, 2, replace=False)][:n_kinds]
            shares = rng.dirichlet([6.0, 1.5, 1.5][:n_kinds])
            for kind, level in zip(kinds, 6 * (1 - quality) ** 0.8 * shares, strict=True):
                pixels = distort(pixels, kind, level, rng) if level > 0.2 else pixels
            pictures.append(Picture(reference, "", 0, pixels, float(quality)))
        return pictures

    def synthetic(
        self, name: str, types: Sequence[str], size: tuple[int, int], layout: tuple[int, int, int]
    ) -> list[Picture]:
        """Make every type of distortion on every reference, at some of the five levels.

        The layout is the official number of references, that at scale 1, and the number of levels
        that each type and reference has there.
        """
        official, scenes, per_pair = layout
        pictures, per_pair = [], min(5, max(per_pair, round(self.scale)))
        for i in range(self.count(official, scenes)):
            reference, clean = scene(name, i, sides(*size, self.scale), self.seed)
            for j, kind in enumerate(types):
                for level in sorted((i + j + 2 * step) % 5 + 1 for step in range(per_pair)):
                    rng = generator(self.seed, name, i, j, level)
                    pixels = distort(clean, kind, level, rng)
                    quality = float(np.exp(-difference(clean, pixels)))
                    pictures.append(Picture(reference, kind, level, pixels, quality))
        return pictures

    def originals(self, name: str, folder: str, size: tuple[int, int]) -> list[Picture]:
        """Return the clean images that lie among the distorted ones of a folder of LIVE."""
        i = list(LIVE_FOLDERS).index(folder)
        reference, pixels = scene(name, i, sides(*size, self.scale), self.seed)
        return [Picture(reference, "", 0, pixels, 1.0)]

    def save(self, picture: Picture, path: Path, **options: object) -> None:
        """Write a picture as the file's ending says."""
        path.parent.mkdir(parents=True, exist_ok=True)
        as_image(picture.pixels).save(path, **options)

    def measure(self, picture: Picture, path: Path) -> dict[str, float]:
        """Measure the indicators of a picture that was saved."""
        return measure(path)


def scene(name: str, i: int, size: tuple[int, int], seed: int) -> tuple[str, np.ndarray]:
    """Take a photograph for every other scene, dead leaves between; returns its source too."""
    rng = generator(seed, f"{name} scene", i)
    if i % 2 == 0 and i < 20 * len(PHOTOGRAPHS):
        chosen = PHOTOGRAPHS[(i // 2) % len(PHOTOGRAPHS)]
        return chosen, crop_photograph(chosen, size, rng)
    return f"leaves-{name}-{i:05d}", dead_leaves(size, rng)


def difference(clean: np.ndarray, other: np.ndarray) -> float:
    """Measure how much two pictures differ to the eye, 0 for none.

    The deviation of the similarity of gradient magnitudes (edges), and the mean difference of
    the low-passed colours (exposure, casts), each in units of a clearly visible step.
    """
    small = [ndimage.uniform_filter(picture, (2, 2, 1)) for picture in (clean, other)]
    edges = [ndimage.gaussian_gradient_magnitude(picture.mean(axis=2), 0.6) for picture in small]
    similarity = (2 * edges[0] * edges[1] + 1e-3) / (edges[0] ** 2 + edges[1] ** 2 + 1e-3)
    smooth = [ndimage.uniform_filter(picture, (9, 9, 1)) for picture in small]
    return float(similarity.std() / 0.16 + np.abs(smooth[0] - smooth[1]).mean() / 0.2)


def answers(
    quality: np.ndarray, n_raters: int, rng: np.random.Generator, noise: float = 0.12
) -> np.ndarray:
    """Let R raters answer on [0, 1] and beyond: bias + gain * quality + noise; (N,) -> (N, R)."""
    bias = rng.normal(0, 0.06, n_raters)
    gain = rng.normal(1, 0.08, n_raters)
    spread = rng.normal(0, noise, (len(quality), n_raters))
    return 0.5 + bias + gain * (quality[:, None] - 0.5) + spread


@cache
def photograph(name: str) -> Image.Image:
    """Open one of the shipped photographs as RGB; do not change it in place."""
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        return Image.fromarray(load_sample_image(f"{name}.jpg"))
    import skimage.data

    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


def crop_photograph(name: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Cut a random part out of a photograph, half of its side at least, perhaps mirrored."""
    picture = photograph(name)
    shape = np.array(size[::-1])  # width, height
    part = shape * (min(picture.size / shape) * rng.uniform(0.5, 1.0))
    corner = rng.uniform(0, picture.size - part)
    box = (*corner, *(corner + part))
    crop = picture.resize(tuple(shape), Image.Resampling.LANCZOS, box=box, reducing_gap=2)
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
        corners, turn = rng.integers(3, 9), rng.uniform(0, 2 * np.pi)
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

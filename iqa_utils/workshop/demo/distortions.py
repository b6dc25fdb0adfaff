"""Distortions of the demo data: what the synthetic data sets do to a reference.

Thirty-four types at five levels, each a short function of pixels, level and generator. Their
strengths are ours; the names follow the data sets, which share them through :data:`ALIASES`.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage, signal

Generator = np.random.Generator
Distortion = Callable[[np.ndarray, float, Generator], np.ndarray]


def distort(pixels: np.ndarray, name: str, level: float, rng: Generator) -> np.ndarray:
    """Distort RGB in [0, 1], shape (H, W, 3), from level 1 (hardly visible) to 5 (bad)."""
    distortion = DISTORTIONS[ALIASES.get(name, name)]
    return np.clip(distortion(pixels, level, rng), 0, 1).astype(np.float32)


def encode(pixels: np.ndarray, file_format: str, **options: object) -> np.ndarray:
    """Encode and decode a picture as "JPEG" or "JPEG2000"; the options are those of Pillow."""
    stream = io.BytesIO()
    as_image(pixels).save(stream, file_format, **options)
    return np.asarray(Image.open(stream).convert("RGB"), np.float32) / 255


def as_image(pixels: np.ndarray) -> Image.Image:
    """Turn RGB in [0, 1], shape (H, W, 3), into an 8-bit picture."""
    return Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))


def _scale(pixels: np.ndarray) -> float:
    """Size of the picture against 512 pixels: blur and blocks grow with it."""
    return min(pixels.shape[:2]) / 512


def _smooth(pixels: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(pixels, (sigma, sigma, 0))


def _convolve(pixels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    reach = len(kernel) // 2  # the kernel is square with an odd side
    padded = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    unit = (kernel / kernel.sum()).astype(np.float32)[..., None]
    return signal.oaconvolve(padded, unit, mode="valid", axes=(0, 1))


def _lens_blur(pixels: np.ndarray, level: float, _: object) -> np.ndarray:
    radius = 0.7 + 1.8 * _scale(pixels) * level
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return _convolve(pixels, np.clip(radius + 0.5 - np.hypot(x, y), 0, 1))  # a disc


def _motion_blur(pixels: np.ndarray, level: float, rng: Generator) -> np.ndarray:
    length = 3 + 2 * int(3.5 * _scale(pixels) * level)
    kernel = np.zeros((length, length))
    step = np.linspace(-1, 1, 4 * length) * (length - 1) / 2
    angle = rng.uniform(0, np.pi)
    at = np.rint(step[:, None] * [np.sin(angle), np.cos(angle)] + (length - 1) / 2).astype(int)
    np.add.at(kernel, tuple(at.T), 1)
    return _convolve(pixels, kernel)


def _grey(pixels: np.ndarray) -> np.ndarray:
    return (pixels @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]  # (H, W, 1)


def _colour_diffusion(pixels: np.ndarray, level: float, _: object) -> np.ndarray:
    grey = _grey(pixels)
    return grey + 1.15 * _smooth(pixels - grey, 6 * _scale(pixels) * level)


def _colour_shift(pixels: np.ndarray, level: float, rng: Generator) -> np.ndarray:
    shift = np.rint(6 * _scale(pixels) * level * rng.choice([-1, 1], 2)).astype(int)
    moved = pixels.copy()
    moved[..., 1] = ndimage.shift(pixels[..., 1], shift, order=0, mode="nearest")
    return moved


def _aberration(pixels: np.ndarray, level: float, _: object) -> np.ndarray:
    moved, reach = pixels.copy(), 2.4 * _scale(pixels) * level
    for channel, shift in ((0, reach), (2, -reach)):
        plane = pixels[..., channel]
        moved[..., channel] = ndimage.shift(plane, (0, shift), order=1, mode="nearest")
    return _smooth(moved, 0.25 * level * _scale(pixels))


def _palette(pixels: np.ndarray, level: float, dither: Image.Dither) -> np.ndarray:
    picture = as_image(pixels)
    palette = picture.quantize(int(64 / 1.8 ** (level - 1)), dither=Image.Dither.NONE)
    return np.asarray(picture.quantize(palette=palette, dither=dither).convert("RGB")) / 255


def _jpeg(pixels: np.ndarray, level: float, _: object) -> np.ndarray:
    return encode(pixels, "JPEG", quality=int(np.interp(level, range(1, 6), (50, 28, 16, 9, 5))))


def _jpeg2000(pixels: np.ndarray, level: float, _: object) -> np.ndarray:
    rate = float(np.interp(level, range(1, 6), (14, 28, 50, 85, 140)))
    return encode(pixels, "JPEG2000", quality_mode="rates", quality_layers=[rate])


def _noise(pixels: np.ndarray, level: float, rng: Generator) -> np.ndarray:
    return pixels + 0.022 * level * rng.normal(size=pixels.shape)


def _colour_noise(pixels: np.ndarray, level: float, rng: Generator) -> np.ndarray:
    noise = rng.normal(size=pixels.shape)
    return pixels + 0.036 * level * (noise - noise.mean(axis=2, keepdims=True))


def _correlated_noise(pixels: np.ndarray, level: float, rng: Generator) -> np.ndarray:
    noise = _smooth(rng.normal(size=pixels.shape), 1.2)
    return pixels + 0.02 * level * noise / noise.std()


def _high_noise(pixels: np.ndarray, level: float, rng: Generator) -> np.ndarray:
    noise = rng.normal(size=pixels.shape)
    return pixels + 0.026 * level * (noise - _smooth(noise, 1))


def _masked_noise(pixels: np.ndarray, level: float, rng: Generator) -> np.ndarray:
    busy = ndimage.gaussian_gradient_magnitude(pixels.mean(axis=2), 1.0)
    mask = busy / (busy.mean() + 1e-6)
    return pixels + 0.022 * level * np.minimum(mask, 3)[..., None] * rng.normal(size=pixels.shape)


def _impulse(pixels: np.ndarray, level: float, rng: Generator) -> np.ndarray:
    hit = rng.random(pixels.shape) < 0.006 * level**1.4
    return np.where(hit, rng.integers(0, 2, pixels.shape), pixels)


def _denoised(pixels: np.ndarray, level: float, rng: Generator) -> np.ndarray:
    noisy = np.clip(_noise(pixels, 1 + level, rng), 0, 1)
    return ndimage.median_filter(noisy, size=(3 + 2 * int(level > 3),) * 2 + (1,))


def _jitter(pixels: np.ndarray, level: float, rng: Generator) -> np.ndarray:
    reach = 0.3 + 2.2 * _scale(pixels) * level
    size = pixels.shape[:2]
    where = np.indices(size) + rng.normal(0, reach, (2, *size))
    rows, columns = np.clip(np.rint(where).astype(int).T, 0, np.array(size) - 1).T
    return pixels[rows, columns]


def _places(pixels: np.ndarray, side: int, n: int, rng: Generator) -> list[tuple[slice, slice]]:
    corners = [rng.integers(0, max(1, length - side), n) for length in pixels.shape[:2]]
    return [(slice(r, r + side), slice(c, c + side)) for r, c in zip(*corners, strict=True)]


def _patches(pixels: np.ndarray, level: float, rng: Generator) -> np.ndarray:
    side = max(3, int(24 * _scale(pixels)))
    patched, near = pixels.copy(), max(1, side // 2)
    for rows, columns in _places(pixels[near:, near:], side, int(14 * level), rng):
        patched[rows, columns] = pixels[near:, near:][rows, columns]
    return patched


def _blocks(pixels: np.ndarray, level: float, rng: Generator) -> np.ndarray:
    side = max(4, int(32 * _scale(pixels)))
    covered = pixels.copy()
    for place in _places(pixels, side, int(2.5 * level), rng):
        covered[place] = rng.random(3)
    return covered


def _lost_packets(pixels: np.ndarray, level: float, rng: Generator) -> np.ndarray:
    side = max(4, int(28 * _scale(pixels)))
    broken = pixels.copy()
    for rows, columns in _places(pixels, side, int(3 * level), rng):
        run = slice(columns.start, columns.start + side * int(rng.integers(2, 6)))
        broken[rows, run] = np.roll(broken[rows, run], int(rng.integers(1, side)), axis=1) * 0.85
    return broken


def _ripples(pixels: np.ndarray, level: float, rng: Generator) -> np.ndarray:
    side = max(8, int(70 * _scale(pixels)))
    broken = pixels.copy()
    for place in _places(pixels, side, int(1 + 1.5 * level), rng):
        block = broken[place]
        wave = 0.06 * np.sin(np.arange(block.shape[1]) * rng.uniform(0.4, 1.2))
        broken[place] = ndimage.uniform_filter(block, (5, 5, 1)) + wave[None, :, None]
    return broken


def _pixelate(pixels: np.ndarray, level: float, _: object) -> np.ndarray:
    height, width = pixels.shape[:2]
    step = 1 + 2.2 * _scale(pixels) * level
    small = as_image(pixels).resize((int(width / step), int(height / step)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST)) / 255


def _quantise(pixels: np.ndarray, level: float, _: object) -> np.ndarray:
    steps = np.interp(level, range(1, 6), (14, 9, 6, 4, 3))
    return np.round(pixels * steps) / steps


def _sparse(pixels: np.ndarray, level: float, rng: Generator) -> np.ndarray:
    kept = (rng.random(pixels.shape[:2]) > np.interp(level, (1, 5), (0.45, 0.93))).astype(float)
    width = 0.5 + 0.25 * level
    weight = ndimage.gaussian_filter(kept, width)[..., None]
    return _smooth(pixels * kept[..., None], width) / (weight + 1e-6)


DISTORTIONS: dict[str, Distortion] = {
    "gaussian blur": lambda p, s, _: _smooth(p, 0.35 + 1.3 * _scale(p) * s),
    "lens blur": _lens_blur,
    "motion blur": _motion_blur,
    "colour diffusion": _colour_diffusion,
    "colour shift": _colour_shift,
    "colour quantisation": lambda p, s, _: _palette(p, s, Image.Dither.NONE),
    "dithered colour quantisation": lambda p, s, _: _palette(p, s, Image.Dither.FLOYDSTEINBERG),
    "saturation 1": lambda p, s, _: _grey(p) + (1 - 0.19 * s) * (p - _grey(p)),
    "saturation 2": lambda p, s, _: _grey(p) + (1 + 0.6 * s) * (p - _grey(p)),
    "jpeg2000": _jpeg2000,
    "jpeg": _jpeg,
    "white noise": _noise,
    "colour noise": _colour_noise,
    "spatially correlated noise": _correlated_noise,
    "masked noise": _masked_noise,
    "high frequency noise": _high_noise,
    "impulse noise": _impulse,
    "multiplicative noise": lambda p, s, r: p * (1 + 0.05 * s * r.normal(size=p.shape)),
    "denoising": _denoised,
    "brighten": lambda p, s, _: p ** (1 / (1 + 0.25 * s)),
    "darken": lambda p, s, _: p ** (1 + 0.3 * s),
    "mean shift": lambda p, s, _: p + 0.055 * s,
    "jitter": _jitter,
    "non-eccentricity patch": _patches,
    "pixelate": _pixelate,
    "quantisation": _quantise,
    "colour block": _blocks,
    "sharpen": lambda p, s, _: p + 0.7 * s * (p - _smooth(p, 1.2)),
    "contrast change": lambda p, s, _: p.mean() + (p - p.mean()) * (1 - 0.16 * s),
    "jpeg transmission errors": lambda p, s, r: _lost_packets(_jpeg(p, 1, r), s, r),
    "jpeg2000 transmission errors": lambda p, s, r: _ripples(_jpeg2000(p, 1, r), s, r),
    "lossy compression of noise": lambda p, s, r: _jpeg(np.clip(_noise(p, s, r), 0, 1), 2, r),
    "chromatic aberration": _aberration,
    "sparse sampling": _sparse,
}
ALIASES = {
    "wn": "white noise",
    "gblur": "gaussian blur",
    "jp2k": "jpeg2000",
    "fastfading": "jpeg2000 transmission errors",
    "awgn": "white noise",
    "blur": "gaussian blur",
    "contrast": "contrast change",
    "fnoise": "spatially correlated noise",
    "additive noise": "white noise",
    "quantisation noise": "quantisation",
    "non-eccentricity pattern": "non-eccentricity patch",
    "block-wise distortion": "colour block",
    "colour saturation": "saturation 2",
    "comfort noise": "masked noise",
}

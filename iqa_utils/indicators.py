"""Simple properties of an image that correlate with its quality.

They are those of the table that comes with KonIQ-10k, and keep its column names: `brightness`,
`contrast`, `colorfulness`, `sharpness`, `bitrate`, `hxw`. The definitions here are the sources'
own; the data set does not state its own in full, so notebook 01 correlates the two where its
images are present.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from iqa_utils.decoding import decode_image
from iqa_utils.files import atomic_write

NAMES = ("brightness", "contrast", "sharpness", "bitrate")  # what dual-Xception sees
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, of gamma-corrected channels
_CDF_97 = (-1.586134342, -0.05298011854, 0.8829110762, 0.4435068522)  # lifting steps
_CDF_97_SCALE = 1.149604398


def measure(path: str | Path) -> dict[str, float]:
    """Compute all indicators of one image file; bitrate in bits per pixel, hxw in pixels."""
    data = Path(path).read_bytes()
    rgb = np.asarray(decode_image(data, str(path)))
    n_pixels = rgb.shape[0] * rgb.shape[1]
    found = {own.__name__: own(rgb) for own in (brightness, contrast, colorfulness, sharpness)}
    return found | {"bitrate": 8 * len(data) / n_pixels, "hxw": float(n_pixels)}


def measure_all(root: str | Path, names: Sequence[str]) -> pd.DataFrame:
    """Compute all indicators of the N files below root: `image` and the columns of `measure`."""
    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(lambda name: measure(Path(root) / name), names))
    table = pd.DataFrame(rows)
    table.insert(0, "image", list(names))
    return table


def load_or_measure(frame: pd.DataFrame, root: str | Path, cache_dir: str | Path) -> pd.DataFrame:
    """Take the columns :data:`NAMES` from a score table, or measure the images once."""
    if set(NAMES) <= set(frame.columns) and frame[list(NAMES)].notna().all(axis=None):
        return frame[list(NAMES)]
    key = f"{frame.attrs['dataset']}-{frame.attrs['fingerprint'][:16]}-{len(frame)}"
    path = Path(cache_dir) / f"indicators-{key}.parquet"
    if not path.is_file():
        with atomic_write(path) as partial:
            measure_all(root, list(frame["image"])).to_parquet(partial)
    return pd.read_parquet(path)[list(NAMES)]


def standardise(indicators: pd.DataFrame, training: np.ndarray) -> np.ndarray:
    """Turn indicators into float32, (N, 4), of mean 0 and spread 1 on the rows ``training``.

    Sharpness and bitrate are taken as logarithms first: they are positive and long-tailed.
    """
    table = indicators[list(NAMES)].astype(float)
    for name in ("sharpness", "bitrate"):
        table[name] = np.log(table[name].clip(lower=1e-6))
    bad = table.index[~np.isfinite(table).all(axis=1)]
    if len(bad):
        raise ValueError(f"indicators of {len(bad)} images are not finite, first row {bad[0]}")
    rows = table.iloc[training]
    scaled = (table - rows.mean()) / rows.std(ddof=0).replace(0.0, 1.0)
    return scaled.to_numpy().astype(np.float32)


def luma(rgb: np.ndarray) -> np.ndarray:
    """Return the luma of an image, uint8 (H, W, 3): float64, (H, W), 0 black to 255 white."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"expected uint8 of shape (H, W, 3), found {rgb.dtype} of {rgb.shape}")
    return rgb @ LUMA


def brightness(rgb: np.ndarray) -> float:
    """Return the mean luma in [0, 1] of an image, uint8, shape (H, W, 3).

    Example:
        >>> round(brightness(np.full((4, 4, 3), 51, np.uint8)), 6)
        0.2
    """
    return float(luma(rgb).mean() / 255)


def contrast(rgb: np.ndarray) -> float:
    """Return the root-mean-square contrast: the standard deviation of luma, in [0, 0.5].

    References:
        Peli, Contrast in complex images, JOSA A 1990, equation 2.
    """
    return float(luma(rgb).std() / 255)


def colorfulness(rgb: np.ndarray) -> float:
    """Return how far colours spread from grey and from each other.

    The spread of the two opponent channels (red - green, yellow - blue) plus 0.3 of the distance
    of their mean from grey.

    Returns:
        0 for grey; channels count in [0, 1], so the authors' "extremely colourful" (109) is 0.43.

    References:
        Hasler, Suesstrunk, Measuring colourfulness in natural images, SPIE 2003, section 7.

    Example:
        >>> colorfulness(np.full((4, 4, 3), 51, np.uint8))
        0.0
    """
    red, green, blue = np.moveaxis(rgb / 255, 2, 0)
    opponent = np.stack([red - green, (red + green) / 2 - blue])  # (2, H, W)
    spread = np.sqrt(opponent.var(axis=(1, 2)).sum())
    return float(spread + 0.3 * np.linalg.norm(opponent.mean(axis=(1, 2))))


def sharpness(rgb: np.ndarray) -> float:
    """Return the wavelet log-energy of an image, FISH: 0 for a flat one, 5 to 25 for photographs.

    Log-energies of the detail bands of a three-level Cohen-Daubechies-Feauveau 9/7 transform, the
    diagonal band counting 0.8 of a level and the finest level four times the coarsest.

    Args:
        rgb: uint8, shape (H, W, 3), at least 8 pixels each way; odd rows and columns are cut.

    Note:
        The span of KonIQ-10k's own column, 5.6 to 25.7, is that of this index; the data set's
        definition could not be confirmed.

    References:
        Vu, Chandler, A fast wavelet-based algorithm for global and local image sharpness
        estimation, IEEE Signal Processing Letters 2012, equations 1 to 3.
    """
    if min(rgb.shape[:2]) < 8:
        raise ValueError(f"expected at least 8x8 pixels, found {rgb.shape[0]}x{rgb.shape[1]}")
    approximation, index = luma(rgb), 0.0
    for weight in (4, 2, 1):
        low, high = _lift(approximation)
        approximation, vertical = (band.T for band in _lift(low.T))
        horizontal, diagonal = (band.T for band in _lift(high.T))
        energies = [np.log10(1 + np.mean(b**2)) for b in (vertical, horizontal, diagonal)]
        index += weight * (0.2 * (energies[0] + energies[1]) / 2 + 0.8 * energies[2])
    return float(index)


def _lift(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into low and high band; orthonormal scaling, borders mirrored."""
    even, odd = values[:, 0 : values.shape[1] // 2 * 2 : 2], values[:, 1::2]
    for step, coefficient in enumerate(_CDF_97):
        if step % 2 == 0:  # predict odd samples from the even ones on both sides
            right = np.concatenate([even[:, 1:], even[:, -1:]], axis=1)
            odd = odd + coefficient * (even + right)
        else:
            left = np.concatenate([odd[:, :1], odd[:, :-1]], axis=1)
            even = even + coefficient * (left + odd)
    return even * _CDF_97_SCALE, odd / _CDF_97_SCALE

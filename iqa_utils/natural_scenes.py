"""Statistics of natural scenes: BRISQUE's 36 numbers, and the distance NIQE.

Subtract from each pixel the mean of its neighbourhood and divide by the spread: in undistorted
photographs what is left looks Gaussian, and distortions bend it in ways of their own. BRISQUE
describes that shape; NIQE says how far it is from the shape in pristine images. Both are the
handcrafted baselines of the papers.
"""

import hashlib
import inspect
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy.ndimage import correlate1d
from scipy.special import gammaln

from iqa_utils.decoding import hash_files, read_image
from iqa_utils.files import load_array, lock, save_array
from iqa_utils.indicators import luma

N_STATISTICS = 36
BRISQUE_FILE = Path(__file__).with_name("brisque_biq2021.npz")
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # right, below, both diagonals
_SHAPES = np.arange(0.2, 10.0, 0.001)
# (E|x|)^2 / E x^2 of a generalised Gaussian, which rises with its shape
_RATIOS = np.exp(2 * gammaln(2 / _SHAPES) - gammaln(1 / _SHAPES) - gammaln(3 / _SHAPES))
_FLAT = 1e-9  # grey levels: smaller gaps are rounding
_WINDOW = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
_WINDOW /= _WINDOW.sum()
_CODE = inspect.getsource(sys.modules[__name__])  # as it was loaded


def brisque_statistics(image: np.ndarray) -> np.ndarray:
    """Compute BRISQUE's statistics of an image at full and at half size.

    As in the released code, zeros lie beyond the border when pixels are normalised, and products
    wrap around it; the paper (Mittal, Moorthy, Bovik, IEEE TIP 2012, section III-A and table I)
    mentions neither.

    Args:
        image: RGB, uint8, shape (H, W, 3), or grey levels 0 to 255, shape (H, W); at least 16
            pixels each way.

    Returns:
        Shape (36,): for each of the two sizes shape and variance of the normalised pixels, then
        for each of four neighbours shape, mean, left and right variance of the products.

    Example:
        >>> noise = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
        >>> brisque_statistics(noise).shape
        (36,)
    """
    grey = _grey_levels(image)
    if min(grey.shape) < 16:
        raise ValueError(f"expected at least 16x16 pixels, found {grey.shape[0]}x{grey.shape[1]}")
    if np.ptp(grey) < 1e-9:
        raise ValueError("expected an image that varies, found one grey level")
    rows = []
    for plane in (grey, _halved(grey)):
        pixels = normalise(plane, border="zero")
        rows += [*fit_ggd(pixels.ravel())]
        for products in _neighbour_products(pixels):
            rows += [*fit_aggd(products)]
    return np.stack(rows)


def brisque(image: np.ndarray) -> float:
    """Score an image by BRISQUE's statistics and the regressor of 1,600 photographs of BIQ2021.

    Higher is better, about 0 to 100; the released model is the other way round.
    """
    statistics = brisque_statistics(image)
    if not np.isfinite(statistics).all():
        raise ValueError("expected pixels that vary at both sizes, found flat ones")
    return brisque_score(statistics)


def brisque_score(statistics: np.ndarray) -> float:
    """Apply the shipped regressor to BRISQUE's statistics, shape (36,)."""
    fit = _brisque_regressor()
    z = (statistics - fit["mean"]) / fit["std"]
    kernel = np.exp(-fit["gamma"] * ((fit["vectors"] - z) ** 2).sum(axis=1))
    return float(kernel @ fit["weights"] + fit["intercept"])


@cache
def _brisque_regressor() -> dict[str, np.ndarray]:
    with np.load(BRISQUE_FILE) as file:
        return dict(file)


def normalise(grey: np.ndarray, *, border: Literal["zero", "repeat"]) -> np.ndarray:
    """Subtract the local mean and divide by the local spread plus one grey level; (H, W).

    Beyond the image lie zeros for BRISQUE and its edge for NIQE, as released. The window is a 7x7
    Gaussian of standard deviation 7/6 pixels (Mittal et al., 2012, equations 1 to 3).
    """
    mode = {"zero": "constant", "repeat": "nearest"}[border]
    mean = _blurred(grey, mode)
    spread = np.sqrt(np.maximum(_blurred(grey**2, mode) - mean**2, 0))
    gap = grey - mean
    gap[np.abs(gap) < _FLAT] = 0  # or rounding would decide its sign in saturated areas
    return gap / (spread + 1)


def fit_ggd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit a zero-mean generalised Gaussian to samples (..., N) by two absolute moments.

    Returns shape (2 is Gaussian, 1 Laplacian; clipped to [0.2, 10], NaN where all samples are zero)
    and variance, both (...). Sharifi, Leon-Garcia, IEEE TCSVT 1995.
    """
    variance = np.mean(x**2, axis=-1)
    return _shape_of(np.mean(np.abs(x), axis=-1), variance), variance


def fit_aggd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fit an asymmetric generalised Gaussian with its mode at zero to samples (..., N).

    Returns shape, mean, left variance and right variance, each (...); NaN where all samples are
    zero (Mittal et al., 2012, equations 10 to 17).

    Zeros count to the right. In saturated areas the released code multiplies rounding errors of
    one sign, so its products lie there too; in a photograph they can be a fifth of all.
    """
    left, right = (
        np.sum(np.square(x, where=side, out=np.zeros_like(x)), axis=-1)
        / np.maximum(side.sum(axis=-1), 1)
        for side in (x < 0, x >= 0)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        skew = np.sqrt(np.minimum(left, right) / np.maximum(left, right))
        correction = (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
        magnitude = np.mean(np.abs(x), axis=-1) * np.sqrt(correction)
    shape = _shape_of(magnitude, np.mean(x**2, axis=-1))
    # mean = (right scale - left scale) * G(2/a) / G(1/a), scale = sigma * sqrt(G(1/a) / G(3/a))
    log_mean = gammaln(2 / shape) - (gammaln(1 / shape) + gammaln(3 / shape)) / 2
    mean = (np.sqrt(right) - np.sqrt(left)) * np.exp(log_mean)
    return shape, mean, left, right


def niqe(image: np.ndarray, *, patch: int = 96) -> float:
    """Return the distance of an image from pristine ones; at least 0, **lower is better**.

    That is against the convention of this package: negate it before it is used as a prediction.
    Mittal, Soundararajan, Bovik, IEEE Signal Processing Letters 2013, equation 10; the parameters
    are of the authors' software release, see `niqe_live_NOTICE.txt`.

    Args:
        image: RGB, uint8, shape (H, W, 3), or grey levels 0 to 255, shape (H, W); at least one
            patch each way.
        patch: Side of a patch in pixels; the published parameters are those of 96.
    """
    rows = niqe_statistics(image, patch=patch)
    mean, covariance = live_parameters()
    # one patch has no spread of its own
    spread = np.cov(rows, rowvar=False) if len(rows) > 1 else 0 * covariance
    gap = rows.mean(axis=0) - mean  # (36,)
    inverse = np.linalg.pinv((covariance + spread) / 2, hermitian=True)
    return float(np.sqrt(max(gap @ inverse @ gap, 0.0)))


def niqe_of_files(
    root: Path,
    images: Sequence[str],
    rows: np.ndarray,
    cache_dir: Path,
    *,
    patch: int = 96,
    save_seconds: float = 60.0,
) -> np.ndarray:
    """Measure NIQE of some rows of a list of N files below a folder, each image once for all runs.

    Values are kept in ``cache_dir`` by the bytes of the images and saved every so many seconds: a
    killed run continues there. Returns shape (N,); NaN for rows that were never asked for.
    """
    recipe = [_CODE, str(patch), *(a.tobytes().hex() for a in live_parameters())]
    recipe += hash_files(root, images, cache_dir / "stores")
    path = cache_dir / "niqe" / f"{hashlib.sha256(' '.join(recipe).encode()).hexdigest()[:20]}.npy"
    with lock(path.with_suffix(".lock")):
        values = load_array(path, (len(images),))
        values = np.full(len(images), np.nan) if values is None else values
        missing = rows[np.isnan(values[rows])]
        saved = time.monotonic()
        for row in missing:
            values[row] = niqe(np.asarray(read_image(root / images[row])), patch=patch)
            if time.monotonic() - saved >= save_seconds or row == missing[-1]:
                save_array(path, values)
                saved = time.monotonic()
    return values


@cache
def live_parameters() -> tuple[np.ndarray, np.ndarray]:
    """Mean (36,) and covariance (36, 36) of the statistics of pristine patches, from LIVE."""
    with np.load(Path(__file__).with_name("niqe_live.npz")) as file:
        return file["mean"], file["covariance"]


def niqe_statistics(image: np.ndarray, *, patch: int = 96) -> np.ndarray:
    """Compute NIQE's 36 statistics of each patch; arguments as for :func:`niqe`.

    They describe what BRISQUE's do, by other numbers (Mittal et al., 2013, sections II-A to II-C):
    all fits are asymmetric, and in place of variances stand the scales of the fitted distribution.
    What is left over right and below whole patches is cut first; at half size a patch is half as
    large, and products wrap around within it. Returns shape (P, 36), without flat patches.
    """
    if patch % 2 or patch < 16:
        raise ValueError(f"patch: expected an even side of at least 16 pixels, found {patch}")
    grey = _grey_levels(image)
    height, width = (side // patch * patch for side in grey.shape)
    if not height or not width:
        found = f"{grey.shape[0]}x{grey.shape[1]}"
        raise ValueError(f"expected at least {patch}x{patch} pixels, found {found}")
    grey, columns = grey[:height, :width], []
    for plane, side in ((grey, patch), (_halved(grey), patch // 2)):
        pixels = _tiles(normalise(plane, border="repeat"), side)  # (P, side, side)
        shape, _, left, right = _scales(pixels.reshape(len(pixels), -1))
        columns += [shape, (left + right) / 2]
        for products in _neighbour_products(pixels):
            columns += _scales(products)
    statistics = np.stack(columns, axis=-1)  # (P, 36)
    keep = np.isfinite(statistics).all(axis=1)
    if not keep.any():
        raise ValueError("expected patches that vary, found only flat ones")
    return statistics[keep]


def _scales(x: np.ndarray) -> list[np.ndarray]:
    """Shape, mean, left and right scale of an asymmetric fit; (..., N) -> four of (...)."""
    shape, mean, left, right = fit_aggd(x)
    factor = np.exp((gammaln(1 / shape) - gammaln(3 / shape)) / 2)
    return [shape, mean, np.sqrt(left) * factor, np.sqrt(right) * factor]


def _neighbour_products(pixels: np.ndarray) -> list[np.ndarray]:
    """Each pixel times its neighbour in four directions; (..., h, w) -> four of (..., h * w)."""
    flat = (*pixels.shape[:-2], -1)
    return [
        (pixels * np.roll(pixels, (-down, -right), axis=(-2, -1))).reshape(flat)
        for down, right in _NEIGHBOURS
    ]


def _grey_levels(image: np.ndarray) -> np.ndarray:
    """Rounded luma of RGB, as the released code reads it; grey levels as they are."""
    return np.rint(luma(image)) if image.ndim == 3 else image.astype(np.float64)


def _shape_of(magnitude: np.ndarray, variance: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.interp(magnitude**2 / variance, _RATIOS, _SHAPES)


def _blurred(grey: np.ndarray, mode: str) -> np.ndarray:
    rows = correlate1d(grey, _WINDOW, axis=0, mode=mode)
    return correlate1d(rows, _WINDOW, axis=1, mode=mode)


def _halved(grey: np.ndarray) -> np.ndarray:
    """Antialiased bicubic half size; an odd side is rounded up."""
    height, width = grey.shape
    image = Image.fromarray(grey.astype(np.float32))
    size = ((width + 1) // 2, (height + 1) // 2)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float64)


def _tiles(plane: np.ndarray, side: int) -> np.ndarray:
    """Cut into squares; (H, W) -> (P, side, side)."""
    rows, columns = plane.shape[0] // side, plane.shape[1] // side
    tiles = plane.reshape(rows, side, columns, side).swapaxes(1, 2)
    return tiles.reshape(-1, side, side)

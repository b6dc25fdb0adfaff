"""Statistics of natural scenes: BRISQUE's 36 numbers, and the distance NIQE from them.

Subtract from each pixel the mean of its neighbourhood and divide by the spread: in undistorted
photographs what is left looks Gaussian, and distortions bend it in ways of their own. BRISQUE
describes that shape; NIQE says how far it is from the shape in pristine images. Both are the
handcrafted baselines of the papers.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import correlate1d
from scipy.special import gammaln

from iqa_utils.indicators import luma

N_STATISTICS = 36
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # right, below, both diagonals
_SHAPES = np.arange(0.2, 10.0, 0.001)
# (E|x|)^2 / E x^2 of a generalised Gaussian, which rises with its shape
_RATIOS = np.exp(2 * gammaln(2 / _SHAPES) - gammaln(1 / _SHAPES) - gammaln(3 / _SHAPES))
_FLAT = 1e-3  # grey levels
_WINDOW = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
_WINDOW /= _WINDOW.sum()


def brisque_statistics(rgb: np.ndarray) -> np.ndarray:
    """Compute BRISQUE's statistics of an image at full and at half size.

    Args:
        rgb: uint8, shape (H, W, 3), at least 16 pixels each way.

    Returns:
        Shape (36,): for each of the two sizes shape and variance of the normalised pixels, then
        for each of four neighbours shape, mean, left and right variance of the products.

    Raises:
        ValueError: If the image is flat or too small.

    Note:
        As in the paper, products end at the border, where the released code wraps around it; the
        luma is not rounded.

    References:
        Mittal, Moorthy, Bovik, No-reference image quality assessment in the spatial domain, IEEE
        TIP 2012, section III-A and table I.
    """
    if min(rgb.shape[:2]) < 16:
        raise ValueError(f"expected at least 16x16 pixels, found {rgb.shape[0]}x{rgb.shape[1]}")
    grey = luma(rgb)
    if np.ptp(grey) < 1e-9:
        raise ValueError("expected an image that varies, found one grey level")
    statistics = [_shape_statistics(normalise(plane)[0]) for plane in (grey, _halved(grey))]
    return np.concatenate(statistics)


def normalise(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Subtract the local mean and divide by the local spread plus one grey level.

    Args:
        grey: Grey levels 0 to 255, shape (H, W).

    Returns:
        The normalised pixels and the local standard deviation, both shape (H, W). The window is a
        7x7 Gaussian of standard deviation 7/6 pixels; borders repeat.

    References:
        Mittal et al., 2012, equations 1 to 3.
    """
    mean = _blurred(grey)
    spread = np.sqrt(np.maximum(_blurred(grey**2) - mean**2, 0))
    gap = grey - mean
    gap[np.abs(gap) < _FLAT] = 0  # or rounding would decide the signs in saturated areas
    return gap / (spread + 1), spread


def fit_ggd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit a zero-mean generalised Gaussian by its first two absolute moments.

    Args:
        x: Samples on the last axis, shape (..., N).

    Returns:
        Shape (2 is Gaussian, 1 Laplacian; clipped to [0.2, 10]) and variance, both (...); the
        shape is NaN where all samples are zero.

    References:
        Sharifi, Leon-Garcia, Estimation of shape parameter for generalized Gaussian
        distributions in subband decompositions of video, IEEE TCSVT 1995.
    """
    variance = np.mean(x**2, axis=-1)
    return _shape_of(np.mean(np.abs(x), axis=-1), variance), variance


def fit_aggd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fit an asymmetric generalised Gaussian with its mode at zero.

    Args:
        x: Samples on the last axis, shape (..., N).

    Returns:
        Shape, mean, left variance and right variance, each (...); NaN where all samples are zero.

    References:
        Lasmar, Stitou, Berthoumieu, Multiscale skewed heavy tailed model for texture analysis,
        ICIP 2009; Mittal et al., 2012, equations 10 to 17.
    """
    left, right = (
        np.sum(np.square(x, where=side, out=np.zeros_like(x)), axis=-1)
        / np.maximum(side.sum(axis=-1), 1)
        for side in (x < 0, x > 0)
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


@dataclass(frozen=True)
class NiqeModel:
    """The normal distribution of the statistics of pristine patches.

    Attributes:
        mean: Shape (36,).
        covariance: Shape (36, 36).
        patch: Side of a patch in pixels.
        n_patches: Patches it was fitted on.
    """

    mean: np.ndarray
    covariance: np.ndarray
    patch: int
    n_patches: int


def fit_niqe(images: Iterable[np.ndarray], *, patch: int = 96, sharpest: float = 0.75) -> NiqeModel:
    """Learn what pristine patches look like.

    Args:
        images: Pristine images, each uint8, shape (H, W, 3).
        patch: Side of a patch in pixels, even, at least 16.
        sharpest: Only patches whose mean local spread is at least this share of the sharpest
            patch of their image count, in [0, 1].

    Returns:
        The model.

    Raises:
        ValueError: If all images together give fewer than 37 patches, with which a covariance of
            36 statistics cannot be told.

    References:
        Mittal, Soundararajan, Bovik, Making a completely blind image quality analyzer, IEEE
        Signal Processing Letters 2013, sections II-B to II-D.
    """
    patches = [patch_statistics(image, patch=patch, sharpest=sharpest) for image in images]
    rows = np.concatenate(patches) if patches else np.empty((0, N_STATISTICS))
    if len(rows) <= N_STATISTICS:
        raise ValueError(f"expected at least {N_STATISTICS + 1} patches, found {len(rows)}")
    return NiqeModel(rows.mean(axis=0), np.cov(rows, rowvar=False), patch, len(rows))


def niqe(rgb: np.ndarray, model: NiqeModel) -> float:
    """Return the distance of an image from pristine ones.

    Args:
        rgb: uint8, shape (H, W, 3), at least one patch each way.
        model: What pristine images look like.

    Returns:
        At least 0; **lower is better**, against the convention of this package: negate it before
        it is used as a prediction.

    Raises:
        ValueError: If the image is smaller than a patch, or every patch is flat.

    References:
        Mittal et al., 2013, equation 10.
    """
    rows = patch_statistics(rgb, patch=model.patch)
    # one patch has no spread of its own
    spread = np.cov(rows, rowvar=False) if len(rows) > 1 else 0 * model.covariance
    gap = rows.mean(axis=0) - model.mean  # (36,)
    inverse = np.linalg.pinv((model.covariance + spread) / 2, hermitian=True)
    return float(np.sqrt(max(gap @ inverse @ gap, 0.0)))


def patch_statistics(rgb: np.ndarray, *, patch: int = 96, sharpest: float = 0.0) -> np.ndarray:
    """Compute the 36 statistics of each patch.

    Args:
        rgb: uint8, shape (H, W, 3); what is left over right and below whole patches is cut.
        patch: Side of a patch in pixels, even, at least 16; half of it at half size.
        sharpest: As in `fit_niqe`; 0 keeps all patches.

    Returns:
        Shape (P, 36), without patches that are flat.

    Raises:
        ValueError: If the patch is odd or too small, the image is smaller than a patch, or every
            patch is flat.
    """
    if patch % 2 or patch < 16:
        raise ValueError(f"patch: expected an even side of at least 16 pixels, found {patch}")
    height, width = rgb.shape[0] // patch * patch, rgb.shape[1] // patch * patch
    if not height or not width:
        found = f"{rgb.shape[0]}x{rgb.shape[1]}"
        raise ValueError(f"expected at least {patch}x{patch} pixels, found {found}")
    grey = luma(rgb)[:height, :width]
    full, spread = normalise(grey)
    half, _ = normalise(_halved(grey))
    rows = [
        _shape_statistics(_tiles(full, patch)),
        _shape_statistics(_tiles(half, patch // 2)),
    ]
    sharpness = _tiles(spread, patch).mean(axis=(1, 2))  # (P,)
    statistics = np.concatenate(rows, axis=1)  # (P, 36)
    keep = (sharpness >= sharpest * sharpness.max()) & np.isfinite(statistics).all(axis=1)
    if not keep.any():
        raise ValueError("expected patches that vary, found only flat ones")
    return statistics[keep]


def _shape_statistics(pixels: np.ndarray) -> np.ndarray:
    """The 18 statistics of one size; (..., h, w) -> (..., 18)."""
    height, width = pixels.shape[-2:]
    columns = [*fit_ggd(pixels.reshape(*pixels.shape[:-2], -1))]
    for down, right in _NEIGHBOURS:
        first = pixels[..., : height - down, max(0, -right) : width - max(0, right)]
        second = pixels[..., down:, max(0, right) : width + min(0, right)]
        columns += fit_aggd((first * second).reshape(*pixels.shape[:-2], -1))
    return np.stack(columns, axis=-1)


def _shape_of(magnitude: np.ndarray, variance: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.interp(magnitude**2 / variance, _RATIOS, _SHAPES)


def _blurred(grey: np.ndarray) -> np.ndarray:
    rows = correlate1d(grey, _WINDOW, axis=0, mode="nearest")
    return correlate1d(rows, _WINDOW, axis=1, mode="nearest")


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

"""Label distribution smoothing (LDS): how rare a score is, as a loss weight.

Training scores are counted in bins, the counts smoothed over neighbouring bins, and the reciprocal
becomes the weight of every image in the bin. Nothing here knows about pixels or networks; the same
idea for features is :mod:`iqa_utils.imbalance.feature_smoothing`.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import convolve1d, gaussian_filter1d

from iqa_utils.metrics import range_index

FloatArray = NDArray[np.float64]
KernelShape = Literal["released", "gaussian", "triangular", "laplace"]
Reweighting = Literal["none", "inverse", "sqrt_inv"]


def label_counts(mos: ArrayLike, edges: ArrayLike) -> NDArray[np.int64]:
    """Count the images in every bin; bins are left-closed, the last one closed on both sides.

    Args:
        mos: Scores, shape (N,), on the scale of ``edges``.
        edges: Increasing bin edges, shape (K + 1,).

    Returns:
        Images per bin, shape (K,).

    Raises:
        ValueError: If the edges do not increase or a score lies outside them.

    Note:
        The released code moves every score above the last bin into it; here that is an error.
    """
    return np.bincount(range_index(mos, edges), minlength=len(np.asarray(edges)) - 1)


def smoothing_kernel(
    shape: KernelShape = "released", *, size: int = 5, sigma: float = 2.0, mean: float = 0.0
) -> FloatArray:
    """Return a smoothing window over bins, scaled to a maximum of 1.

    ``released`` is the authors' Gaussian: a unit impulse of the window's own length passed through
    a Gaussian filter whose reflecting edges fold the tails back in. For sigma well below the size
    it is a Gaussian; (5, 2) is ``.86 .95 1 .95 .86`` and (11, 10) is a box to four digits.

    Args:
        shape: ``released``, ``gaussian`` (sampled density), ``triangular`` or ``laplace``.
        size: Window length in bins, >= 1; an even size n gives n - 1, as in the released code.
        sigma: Standard deviation (``laplace``: scale) in bins, > 0; unused by ``triangular``.
        mean: Centre in bins to the right, ``gaussian`` only: the literal reading of N(12, 10).

    Returns:
        Weights, odd length, centre in the middle, maximum 1.

    Raises:
        ValueError: For an unknown shape, ``size`` < 1, ``sigma`` <= 0, or a mean elsewhere.

    Note:
        The released triangular window keeps an even length (and so shifts by half a bin); here
        every shape uses n - 1.

    References:
        Yang, Zha, Chen, Wang, Katabi, Delving into deep imbalanced regression, ICML 2021.
    """
    if size < 1 or sigma <= 0:
        raise ValueError(f"a kernel needs size >= 1 and sigma > 0, got {size} and {sigma}")
    if mean and shape != "gaussian":
        raise ValueError(f"only the gaussian kernel takes a mean, got {mean} for {shape!r}")
    half = (size - 1) // 2
    offset = np.arange(-half, half + 1, dtype=np.float64)
    if shape == "released":
        window = gaussian_filter1d((offset == 0).astype(np.float64), sigma)
    elif shape == "gaussian":
        window = np.exp(-0.5 * ((offset - mean) / sigma) ** 2)
    elif shape == "triangular":
        window = 1 - np.abs(offset) / (half + 1)
    elif shape == "laplace":
        window = np.exp(-np.abs(offset) / sigma)
    else:
        raise ValueError(f"kernel must be released, gaussian, triangular or laplace, got {shape!r}")
    return window / window.max()


def lds_density(
    counts: ArrayLike,
    *,
    kernel: ArrayLike | None = None,
    reweight: Reweighting = "sqrt_inv",
    order: Literal["root_first", "smooth_first"] = "root_first",
    clip: tuple[float, float] | None = None,
    boundary: Literal["constant", "reflect"] = "constant",
    truncate: bool = False,
) -> FloatArray:
    """Return the effective label density whose reciprocal weights the loss.

    Counts are clipped, rooted (``sqrt_inv``) and convolved with the kernel; the order of the last
    two is an option. Scaling the kernel changes nothing once the weights average 1.

    Args:
        counts: Images per bin, shape (K,), >= 0.
        kernel: Odd-length window, see :func:`smoothing_kernel`; None for no smoothing.
        reweight: ``sqrt_inv`` (square root of the counts), ``inverse`` (counts), ``none`` (ones).
        order: ``root_first`` as released; ``smooth_first`` as the paper's w(x) = sqrt(1/x) reads.
        clip: Bounds of the counts before anything else; the released ``inverse`` uses (5, 1000)
            on its age data.
        boundary: Beyond the histogram: zeros (``constant``) or its mirror image (``reflect``).
        truncate: With ``inverse``, drop the fractions of smoothed counts, as released: its counts
            are integers, and so is what SciPy returns for them. Weights change by up to 8 %.

    Returns:
        Density, shape (K,), on an arbitrary scale.

    Raises:
        ValueError: For an unknown option, smoothing without re-weighting, an even kernel, or one
            that is longer than the histogram.

    References:
        Nguyen et al., Imbalance problem in image quality assessment, 2024, section 2.2.1.
    """
    density = np.asarray(counts, dtype=np.float64)
    if reweight not in ("none", "inverse", "sqrt_inv"):
        raise ValueError(f"reweight must be none, inverse or sqrt_inv, got {reweight!r}")
    if order not in ("root_first", "smooth_first") or boundary not in ("constant", "reflect"):
        raise ValueError(
            "order must be root_first or smooth_first and boundary constant or reflect, "
            f"got {order!r} and {boundary!r}"
        )
    if reweight == "none":
        if kernel is not None:
            raise ValueError("smoothing needs reweight inverse or sqrt_inv, got none")
        return np.ones_like(density)
    if truncate and reweight != "inverse":
        raise ValueError(f"only inverse truncates counts, got {reweight!r}")
    if clip is not None:
        density = np.clip(density, *clip)
    if reweight == "sqrt_inv" and order == "root_first":
        density = np.sqrt(density)
    if kernel is not None:
        density = density.astype(np.int64) if truncate else density
        density = convolve1d(density, checked_kernel(kernel, len(density)), mode=boundary)
        density = density.astype(np.float64)
    return np.sqrt(density) if reweight == "sqrt_inv" and order == "smooth_first" else density


def lds_bin_weights(counts: ArrayLike, **options: Any) -> FloatArray:
    """Return the loss weight of every bin, averaging 1 over the counted images.

    Args:
        counts: Images per bin, shape (K,), at least one image in all.
        options: Those of :func:`lds_density`.

    Returns:
        Weights, shape (K,), >= 0; NaN where the density is zero, which never holds an image.

    Raises:
        ValueError: As :func:`lds_density`; or if a bin that holds images gets zero density.
    """
    counts = np.asarray(counts, dtype=np.float64)
    density = lds_density(counts, **options)
    if not counts.sum() or (density[counts > 0] <= 0).any():
        raise ValueError("every bin that holds an image needs a positive smoothed density")
    weights = np.full_like(density, np.nan)
    np.divide(1.0, density, out=weights, where=density > 0)
    return weights * counts.sum() / np.nansum(weights * counts)


def lds_weights(mos: ArrayLike, *, edges: ArrayLike, **options: Any) -> FloatArray:
    """Return one loss weight per training image, averaging 1.

    Args:
        mos: Training scores, shape (N,), on the scale of ``edges``.
        edges: Increasing bin edges, shape (K + 1,); the paper's are ``np.arange(101.0)``.
        options: Those of :func:`lds_density`; the paper's are ``reweight="sqrt_inv"`` with
            ``kernel=smoothing_kernel("released", size=12, sigma=10)``.

    Returns:
        Weights, shape (N,), > 0, mean 1.

    Raises:
        ValueError: As :func:`label_counts` and :func:`lds_bin_weights`.
    """
    return lds_bin_weights(label_counts(mos, edges), **options)[range_index(mos, edges)]


def effective_sample_size(weights: ArrayLike) -> float:
    """Return Kish's effective number of images, (sum w)^2 / sum w^2, in (0, N].

    Args:
        weights: Loss weights, shape (N,), >= 0 and not all zero.

    Returns:
        N for equal weights, 1 if a single image carries all of it.
    """
    weights = np.asarray(weights, dtype=np.float64)
    return float(weights.sum() ** 2 / (weights**2).sum())


def checked_kernel(kernel: ArrayLike, n_bins: int) -> FloatArray:
    """Return a smoothing window as floats; refuse an even one or one longer than the bins."""
    kernel = np.asarray(kernel, dtype=np.float64)
    if kernel.ndim != 1 or len(kernel) % 2 == 0:
        raise ValueError(f"a kernel needs an odd number of bins, got shape {kernel.shape}")
    if len(kernel) > n_bins:
        raise ValueError(f"the kernel covers {len(kernel)} bins, the histogram has {n_bins}")
    return kernel

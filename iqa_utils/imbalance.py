"""Imbalanced scores: label distribution smoothing (LDS) and feature distribution smoothing (FDS).

LDS counts training scores in bins, smooths the counts over neighbouring bins, and weighs the loss
of every image by the reciprocal. FDS keeps the mean and variance of the features in every bin and
moves each training feature towards the smoothed ones. Neither knows about pixels or networks.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import convolve1d, gaussian_filter1d
from torch import Tensor, nn

from iqa_utils.metrics import range_index, range_names

FloatArray = NDArray[np.float64]
Variant = Literal["corrected", "released_agedb", "released_stsb"]
# published bounds of the ratio of smoothed to own variance
CLIPS = {"corrected": (0.1, 10.0), "released_agedb": (0.1, 10.0), "released_stsb": (0.5, 2.0)}
ZERO_VARIANCE = 1e-10  # a bucket whose variances sum to less is not calibrated, as released


def label_counts(mos: ArrayLike, edges: ArrayLike) -> NDArray[np.int64]:
    """Count images per bin, shape (K,), for scores (N,) and increasing edges (K + 1,).

    Note:
        The released code moves scores above the last bin into it; here they are an error.

    Example:
        >>> label_counts([0.5, 1.5, 1.5], [0, 1, 2]).tolist()
        [1, 2]
    """
    return np.bincount(range_index(mos, edges), minlength=len(np.asarray(edges)) - 1)


def smoothing_kernel(
    shape: Literal["released", "gaussian"] = "released",
    *,
    size: int = 5,
    sigma: float = 2.0,
    mean: float = 0.0,
) -> FloatArray:
    """Return a smoothing window over bins, scaled to a maximum of 1.

    ``released`` is the authors' Gaussian: a unit impulse of the window's own length passed through
    a Gaussian filter whose reflecting edges fold the tails back in. For sigma well below the size
    it is a Gaussian; (5, 2) is ``.86 .95 1 .95 .86`` and (11, 10) is a box to four digits.

    Args:
        shape: ``released`` or ``gaussian``, the sampled density.
        size: Window length in bins, >= 1; an even size n gives n - 1, as in the released code.
        sigma: Standard deviation in bins, > 0.
        mean: Centre in bins to the right, ``gaussian`` only: the literal reading of N(12, 10).

    Returns:
        Weights, odd length, maximum 1.

    Raises:
        ValueError: For an unknown shape, ``size`` < 1 or ``sigma`` <= 0.

    References:
        Yang, Zha, Chen, Wang, Katabi, Delving into deep imbalanced regression, ICML 2021.

    Example:
        >>> smoothing_kernel(size=5, sigma=2).round(2).tolist()
        [0.86, 0.95, 1.0, 0.95, 0.86]
    """
    if shape not in ("released", "gaussian") or size < 1 or sigma <= 0:
        raise ValueError(
            "a kernel is released or gaussian with size >= 1 and sigma > 0, "
            f"got {shape!r}, {size} and {sigma}"
        )
    half = (size - 1) // 2
    offset = np.arange(-half, half + 1, dtype=np.float64)
    if shape == "released":
        window = gaussian_filter1d((offset == 0).astype(np.float64), sigma)
    else:
        window = np.exp(-0.5 * ((offset - mean) / sigma) ** 2)
    return window / window.max()


def lds_density(
    counts: ArrayLike,
    *,
    kernel: ArrayLike | None = None,
    reweight: Literal["none", "inverse", "sqrt_inv"] = "sqrt_inv",
    order: Literal["root_first", "smooth_first"] = "root_first",
    released_counts: bool = False,
) -> FloatArray:
    """Return the effective label density whose reciprocal weighs the loss.

    Args:
        counts: Images per bin, shape (K,), >= 0.
        kernel: Odd-length window, see :func:`smoothing_kernel`; None for no smoothing.
        reweight: ``sqrt_inv`` (square root of the counts), ``inverse`` (counts), ``none`` (ones).
        order: ``root_first`` as released; ``smooth_first`` as the paper's w(x) = sqrt(1/x) reads.
        released_counts: Clip counts to 5 and 1,000 and drop the fractions of smoothed ones, as the
            released ``inverse`` does on its age data. Weights change by up to 8 %.

    Returns:
        Density, shape (K,), on an arbitrary scale; zeros lie beyond the histogram.

    Raises:
        ValueError: For an unknown option, or a kernel that is even or longer than the histogram.

    References:
        Nguyen et al., Imbalance problem in image quality assessment, 2024, section 2.2.1.

    Example:
        >>> lds_density([1, 4, 9]).tolist()
        [1.0, 2.0, 3.0]
    """
    if reweight not in ("none", "inverse", "sqrt_inv") or order not in (
        "root_first",
        "smooth_first",
    ):
        raise ValueError(
            "reweight must be none, inverse or sqrt_inv and order root_first or smooth_first, "
            f"got {reweight!r} and {order!r}"
        )
    density = np.asarray(counts, dtype=np.float64)
    if reweight == "none":
        return np.ones_like(density)
    if released_counts:
        density = np.clip(density, 5, 1000)
    if reweight == "sqrt_inv" and order == "root_first":
        density = np.sqrt(density)
    if kernel is not None:
        density = density.astype(np.int64) if released_counts else density
        density = convolve1d(density, _checked_kernel(kernel, len(density)), mode="constant")
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
        ValueError: If a score lies outside the edges, or as :func:`lds_bin_weights`.

    Example:
        >>> lds_weights([0.5, 1.5, 1.5, 1.5], edges=[0, 1, 2], reweight="inverse").round(2).tolist()
        [2.0, 0.67, 0.67, 0.67]
    """
    return lds_bin_weights(label_counts(mos, edges), **options)[range_index(mos, edges)]


def effective_sample_size(weights: ArrayLike) -> float:
    """Return Kish's effective number of images, (sum w)^2 / sum w^2, in (0, N].

    Example:
        >>> effective_sample_size([3.0, 1.0])
        1.6
    """
    weights = np.asarray(weights, dtype=np.float64)
    return float(weights.sum() ** 2 / (weights**2).sum())


def describe_weights(
    weights: ArrayLike, mos: ArrayLike, edges: Sequence[float]
) -> dict[str, float]:
    """Return the mean weight per range that holds images, their spread, and what is left of N."""
    weights, inside = np.asarray(weights), range_index(mos, edges)
    found = {
        f"mean weight {name}": weights[inside == k].mean()
        for k, name in enumerate(range_names(edges))
        if (inside == k).any()
    }
    found["largest / smallest"] = weights.max() / weights.min()
    return found | {"effective sample size": effective_sample_size(weights)}


def _checked_kernel(kernel: ArrayLike, n_bins: int) -> FloatArray:
    kernel = np.asarray(kernel, dtype=np.float64)
    if kernel.ndim != 1 or len(kernel) % 2 == 0:
        raise ValueError(f"a kernel needs an odd number of bins, got shape {kernel.shape}")
    if len(kernel) > n_bins:
        raise ValueError(f"the kernel covers {len(kernel)} bins, the histogram has {n_bins}")
    return kernel


class FDS(nn.Module):
    """Feature distribution smoothing: calibrate features bucket by bucket while training.

    Call the layer on the features and scores of each training batch, and :meth:`end_epoch` once
    after every epoch with the features of the whole training set. Statistics are a running mean
    and variance per bucket and feature; a feature is whitened with those of its bucket and
    re-coloured with the ones smoothed over neighbouring buckets. In evaluation mode the layer is
    the identity.

    ``corrected`` (the default, because the paper describes it) whitens and re-colours with the
    statistics of the same epoch, taken on uncalibrated features, and starts in epoch 1. The
    released variants do what the authors' code does: the statistics they whiten with are an alias
    of the running ones and so one epoch newer than the smoothed ones; the features they collect
    have been calibrated in place; and the first smoothing that is not the identity comes in epoch
    2. The authors published two rules for buckets without images: ``released_agedb`` never touches
    them, their mean stays 0 and their variance 1; ``released_stsb`` averages the two adjacent rows
    in order, so that a long empty stretch starts near zero.

    Args:
        n_features: Feature length D.
        edges: Increasing bucket edges, shape (K + 1,), on the scale of the scores.
        kernel_size: Length of the smoothing window in buckets, at most K; an even n gives n - 1.
        sigma: Width in buckets.
        variant: ``corrected``, ``released_agedb`` or ``released_stsb``.

    Raises:
        ValueError: For a kernel longer than the buckets, or an unknown variant.

    Note:
        Variances only (the paper's text says covariance; the code it builds on is diagonal).
        ``corrected`` interpolates a bucket without images between the nearest ones that have some,
        and likewise the variance of a bucket with a single image, where the released code stores
        zero. Features of zero variance pass through unchanged in all variants.

    References:
        Yang et al., Delving into deep imbalanced regression, ICML 2021, section 3.2; Nguyen et
        al. 2024, section 2.2.2.
    """

    def __init__(
        self,
        n_features: int,
        edges: Sequence[float] | FloatArray,
        *,
        kernel_size: int = 5,
        sigma: float = 2.0,
        variant: Variant = "corrected",
    ) -> None:
        super().__init__()
        if variant not in CLIPS:
            raise ValueError(f"variant must be one of {', '.join(CLIPS)}, got {variant!r}")
        edges = np.asarray(edges, dtype=np.float64)
        range_index([], edges)  # refuses edges that do not increase
        n_buckets = len(edges) - 1
        window = smoothing_kernel(size=kernel_size, sigma=sigma)
        window = _checked_kernel(window / window.sum(), n_buckets)
        # Row k of this matrix smooths bucket k; "mirror" is what torch calls reflect padding.
        smoothing = convolve1d(np.eye(n_buckets), window, axis=0, mode="mirror")
        self.variant, self.momentum = variant, 0.9  # share of the old statistics
        self.collects_calibrated = variant != "corrected"
        self.edges: Tensor
        self.register_buffer("edges", torch.tensor(edges), persistent=False)
        self.register_buffer("smoothing", torch.tensor(smoothing), persistent=False)
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))  # epochs ended so far
        self.register_buffer("mean", torch.zeros(n_buckets, n_features))  # (K, D) running
        self.register_buffer("variance", torch.ones(n_buckets, n_features))
        self.register_buffer("scale", torch.ones(n_buckets, n_features))  # (K, D) calibration
        self.register_buffer("shift", torch.zeros(n_buckets, n_features))

    def buckets(self, mos: Tensor) -> Tensor:
        """Return the bucket (B,) of each score (B,); scores outside the edges are refused."""
        if mos.ndim != 1 or not (mos.min() >= self.edges[0] and mos.max() <= self.edges[-1]):
            raise ValueError(
                f"FDS needs scores of shape (B,) inside [{self.edges[0]:g}, {self.edges[-1]:g}], "
                f"got {tuple(mos.shape)} spanning [{mos.min():g}, {mos.max():g}]"
            )
        return torch.bucketize(mos.to(self.edges), self.edges[1:-1], right=True)

    def forward(self, features: Tensor, mos: Tensor | None = None) -> Tensor:
        """Return calibrated features (B, D) while training, the features themselves otherwise.

        Args:
            features: Shape (B, D).
            mos: Shape (B,), needed in training mode from epoch 1 on.
        """
        if not self.training or self.epoch < 1:
            return features
        if mos is None:
            raise ValueError("FDS needs the scores of a training batch, got None")
        return self._calibrated(features, self.buckets(mos))

    @torch.no_grad()
    def end_epoch(self, features: Tensor, mos: Tensor) -> None:
        """Take in the uncalibrated features (N, D) of the training set and its scores (N,)."""
        bucket, older = self.buckets(mos), self._smoothed()
        if self.collects_calibrated and self.epoch > 0:
            features = self._calibrated(features, bucket)  # with the tables of the epoch that ended
        self._update(features, bucket)
        if self.variant == "corrected":
            self._calibrate(*self._smoothed())
        elif self.epoch > 0:
            self._calibrate(*older)
        self.epoch += 1

    def _smoothed(self) -> tuple[Tensor, Tensor]:
        smoothing = self.smoothing.to(self.mean)
        return smoothing @ self.mean, smoothing @ self.variance

    def _calibrated(self, features: Tensor, bucket: Tensor) -> Tensor:
        return torch.addcmul(self.shift[bucket], features, self.scale[bucket])

    def _update(self, features: Tensor, bucket: Tensor) -> None:
        count, mean, variance = bucket_statistics(features, bucket, len(self.mean))
        known = count > 0
        keep = self.momentum if self.epoch > 0 else 0.0
        if self.variant == "corrected":
            mean = _interpolate_rows(mean, known)
            variance = _interpolate_rows(variance, count > 1)
            known = torch.ones_like(known)
        self.mean[known] = torch.lerp(mean[known], self.mean[known], keep)
        self.variance[known] = torch.lerp(variance[known], self.variance[known], keep)
        empty = torch.nonzero(~known).flatten().tolist()
        for k in empty if self.variant == "released_stsb" else []:
            near = [j for j in (k - 1, k + 1) if 0 <= j < len(self.mean)]
            self.mean[k] = self.mean[near].mean(0)
            self.variance[k] = self.variance[near].mean(0)

    def _calibrate(self, smoothed_mean: Tensor, smoothed_variance: Tensor) -> None:
        live = (self.variance > 0) & (self.variance.sum(1, keepdim=True) >= ZERO_VARIANCE)
        ratio = smoothed_variance / torch.where(live, self.variance, 1.0)
        scale = ratio.clamp(*CLIPS[self.variant]).sqrt()
        self.scale = torch.where(live, scale, 1.0)
        self.shift = torch.where(live, smoothed_mean - self.mean * scale, 0.0)


def bucket_statistics(
    features: Tensor, bucket: Tensor, n_buckets: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (K,), mean and unbiased variance (K, D) per bucket, without a loop.

    Statistics of an empty bucket, and the variance of a single image, are zero.
    """
    count = torch.bincount(bucket, minlength=n_buckets)
    total = features.new_zeros(n_buckets, features.shape[1])
    mean = total.index_add(0, bucket, features) / count.clamp(min=1)[:, None]  # (K, D)
    squares = (features - mean[bucket]).square_()
    return count, mean, total.index_add(0, bucket, squares) / (count - 1).clamp(min=1)[:, None]


def _interpolate_rows(table: Tensor, known: Tensor) -> Tensor:
    """Fill unknown rows of (K, D) linearly between the nearest known ones, constant outside."""
    where = torch.nonzero(known).flatten()
    if not len(where):
        return table
    rows = torch.arange(len(table), device=table.device)
    right = torch.searchsorted(where, rows).clamp(max=len(where) - 1)
    left = (torch.searchsorted(where, rows, right=True) - 1).clamp(min=0)
    low, high = where[left], where[right]  # equal on known rows and beyond the ends
    share = ((rows - low).to(table.dtype) / (high - low).clamp(min=1)).clamp(0, 1)
    return torch.lerp(table[low], table[high], share[:, None])

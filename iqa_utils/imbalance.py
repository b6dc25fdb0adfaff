"""Imbalanced scores: label distribution smoothing (LDS) and feature distribution smoothing (FDS).

LDS counts training scores in bins, smooths the counts over neighbouring bins, and weighs the loss
of every image by the reciprocal. FDS keeps the mean and variance of the features in every bin and
moves each training feature towards the smoothed ones. Neither knows about pixels or networks.
"""

from collections.abc import Callable, Sequence
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
    """Count images per bin, (K,), for scores (N,) inside increasing edges (K + 1,).

    Bins are closed on the left, the last one on both sides; ValueError for a score outside.

    Example:
        >>> label_counts([0.5, 1.5, 1.5], [0, 1, 2]).tolist()
        [1, 2]
    """
    return np.bincount(range_index(mos, edges), minlength=len(np.asarray(edges)) - 1)


def smoothing_kernel(
    shape: str = "released", *, size: int = 5, sigma: float = 2.0, mean: float = 0.0
) -> FloatArray:
    """Return a smoothing window over bins, of odd length and maximum 1.

    ``released`` is the authors' Gaussian (Yang et al., ICML 2021): a unit impulse of the window's
    own length passed through a Gaussian filter whose reflecting edges fold the tails back in; (5,
    2) is ``.86 .95 1 .95 .86`` and (11, 10) a box to four digits. ``gaussian`` is the sampled
    density, its centre ``mean`` bins to the right: the literal reading of N(12, 10). ``size`` >= 1
    and ``sigma`` > 0 are in bins; an even size n gives n - 1, as in the released code.

    Raises:
        ValueError: If the shape is neither, or size or sigma is too small.

    Example:
        >>> smoothing_kernel(size=5, sigma=2).round(2).tolist()
        [0.86, 0.95, 1.0, 0.95, 0.86]
    """
    if shape not in ("released", "gaussian") or size < 1 or sigma <= 0:
        known = "released or gaussian with size >= 1 and sigma > 0"
        raise ValueError(f"a kernel is {known}, got {shape!r}, {size} and {sigma}")
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
    reweight: str = "sqrt_inv",
    order: str = "root_first",
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
        ValueError: If ``reweight`` or ``order`` is none of these, or the kernel is even, not of one
            dimension or longer than the histogram.

    References:
        Yang et al., Delving into deep imbalanced regression, ICML 2021, section 3.1.

    Example:
        >>> lds_density([1, 4, 9]).tolist()
        [1.0, 2.0, 3.0]
    """
    if reweight not in ("none", "inverse", "sqrt_inv"):
        raise ValueError(f"reweight must be none, inverse or sqrt_inv, got {reweight!r}")
    if order not in ("root_first", "smooth_first"):
        raise ValueError(f"order must be root_first or smooth_first, got {order!r}")
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
    """Return the weight of every bin, (K,), averaging 1 over the counted images; NaN if no density.

    ``counts`` are the images per bin, (K,); ``options`` are those of :func:`lds_density`.

    Raises:
        ValueError: If there is no image, or a bin with images gets no density.
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

    Raises:
        ValueError: If a score lies outside the edges, or a bin with images gets no density.

    Example:
        >>> lds_weights([0.5, 1.5, 1.5, 1.5], edges=[0, 1, 2], reweight="inverse").round(2).tolist()
        [2.0, 0.67, 0.67, 0.67]
    """
    return lds_bin_weights(label_counts(mos, edges), **options)[range_index(mos, edges)]


def describe_weights(
    weights: ArrayLike, mos: ArrayLike, edges: Sequence[float]
) -> dict[str, float]:
    """Return the mean weight per range that holds images, their spread, and what is left of N.

    The effective sample size is Kish's: (sum w)^2 / sum w^2, in (0, N]. Weights and scores are
    (N,); one outside the ``edges`` is refused.

    Example:
        >>> describe_weights([3.0, 1.0], [5.0, 15.0], [0, 20])["effective sample size"].item()
        1.6
    """
    weights, inside, names = np.asarray(weights), range_index(mos, edges), range_names(edges)
    found = {f"mean weight {names[k]}": weights[inside == k].mean() for k in np.unique(inside)}
    found["largest / smallest"] = weights.max() / weights.min()
    return found | {"effective sample size": weights.sum() ** 2 / (weights**2).sum()}


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
    statistics of the same epoch and starts in epoch 1. The released variants do what the authors'
    code does: the statistics they whiten with are an alias of the running ones and so one epoch
    newer than the smoothed ones, and the first smoothing that is not the identity comes in epoch 2.
    The authors published two rules for buckets without images: ``released_agedb`` never touches
    them, their mean stays 0 and their variance 1; ``released_stsb`` averages the two adjacent rows
    in order, so that a long empty stretch starts near zero.

    Args:
        n_features: Feature length D.
        edges: Increasing bucket edges, shape (K + 1,), on the scale of the scores.
        kernel_size: Length of the smoothing window in buckets, at most K; an even n gives n - 1.
        sigma: Width in buckets.
        variant: ``corrected``, ``released_agedb`` or ``released_stsb``.
        collects: Statistics of ``raw`` features, or of ``calibrated`` ones as the released loop
            takes them, because it has smoothed them in place; None: calibrated where released.

    Raises:
        ValueError: If the edges do not increase, the kernel is longer than the buckets, or there
            is no such variant; later, if scores are missing, not (B,) or outside the edges.

    Note:
        Variances only (the paper's text says covariance; the code it builds on is diagonal).
        ``corrected`` interpolates a bucket without images between the nearest ones that have some,
        and likewise the variance of a bucket with a single image, where the released code stores
        zero. Features of zero variance pass through unchanged in all variants.

    References:
        Yang et al., Delving into deep imbalanced regression, ICML 2021, section 3.2; Nguyen et
        al. 2024, section 2.2.2.

    Example:
        >>> layer = FDS(64, edges=range(0, 101, 10))
        >>> layer(torch.rand(8, 64), torch.linspace(5, 95, 8)).shape  # then layer.end_epoch
        torch.Size([8, 64])
    """

    def __init__(
        self,
        n_features: int,
        edges: ArrayLike,
        *,
        kernel_size: int = 5,
        sigma: float = 2.0,
        variant: Variant = "corrected",
        collects: Literal["raw", "calibrated"] | None = None,
    ) -> None:
        super().__init__()
        if variant not in CLIPS or collects not in (None, "raw", "calibrated"):
            known = f"one of {', '.join(CLIPS)} and collects raw or calibrated"
            raise ValueError(f"variant must be {known}, got {variant!r} and {collects!r}")
        edges = np.asarray(edges, dtype=np.float64)
        range_index([], edges)  # refuses edges that do not increase
        n_buckets = len(edges) - 1
        window = smoothing_kernel(size=kernel_size, sigma=sigma)
        window = _checked_kernel(window / window.sum(), n_buckets)
        # Row k of this matrix smooths bucket k; "mirror" is what torch calls reflect padding.
        smoothing = convolve1d(np.eye(n_buckets), window, axis=0, mode="mirror")
        self.variant, self.momentum = variant, 0.9  # share of the old statistics
        self.collects = collects or ("raw" if variant == "corrected" else "calibrated")
        self.ends = float(edges[0]), float(edges[-1])
        self.register_buffer("inner", torch.tensor(edges[1:-1]), persistent=False)
        self.register_buffer("smoothing", torch.tensor(smoothing), persistent=False)
        epoch = torch.zeros((), dtype=torch.int64, device="cpu")
        self.register_buffer("epoch", epoch)  # epochs ended so far, see _apply
        # running statistics and calibration, (K, D) each
        for name, start in {"mean": 0.0, "variance": 1.0, "scale": 1.0, "shift": 0.0}.items():
            self.register_buffer(name, torch.full((n_buckets, n_features), start))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FDS":
        """Move all but the epoch, which every step asks for: on a GPU that would wait."""
        epoch = self.epoch
        super()._apply(fn, recurse)
        self.epoch = epoch
        return self

    def buckets(self, mos: Tensor) -> Tensor:
        """Return the bucket (B,) of each score (B,)."""
        if mos.ndim != 1:
            raise ValueError(f"FDS needs scores of shape (B,), got {tuple(mos.shape)}")
        return torch.bucketize(mos.to(self.inner), self.inner, right=True)

    def forward(self, features: Tensor, mos: Tensor | None = None) -> Tensor:
        """Calibrate features (B, D) while training; ``mos`` (B,) is needed from epoch 1 on."""
        if not self.training or self.epoch < 1:
            return features
        if mos is None:
            raise ValueError("FDS needs the scores of a training batch, got None")
        bucket = self.buckets(mos)
        scale, shift = self.scale.index_select(0, bucket), self.shift.index_select(0, bucket)
        return shift.addcmul_(features, scale)

    @torch.no_grad()
    def end_epoch(self, features: Tensor, mos: Tensor) -> None:
        """Take in the uncalibrated features (N, D) of the training set and its scores (N,)."""
        bucket, (low, high) = self.buckets(mos), self.ends
        if not (mos.min() >= low and mos.max() <= high):  # also where one is not a number
            span = f"[{mos.min():g}, {mos.max():g}]"
            raise ValueError(f"FDS needs scores inside [{low:g}, {high:g}], got {span}")
        older = self._smoothed()
        near = self.mean if self.epoch > 0 else None
        count, mean, variance = bucket_statistics(features, bucket, len(self.mean), near=near)
        if self.collects == "calibrated" and self.epoch > 0:  # a linear map of every bucket
            mean, variance = self.shift + self.scale * mean, self.scale.square() * variance
        self._update(count, mean, variance)
        if self.variant == "corrected":
            self._calibrate(*self._smoothed())
        elif self.epoch > 0:
            self._calibrate(*older)
        self.epoch += 1

    def _smoothed(self) -> tuple[Tensor, Tensor]:
        smoothing = self.smoothing.to(self.mean)
        return smoothing @ self.mean, smoothing @ self.variance

    def _update(self, count: Tensor, mean: Tensor, variance: Tensor) -> None:
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
    features: Tensor, bucket: Tensor, n_buckets: int, *, near: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (K,), mean and unbiased variance (K, D) per bucket.

    Statistics of an empty bucket, and the variance of a single image, are zero. One pass is enough
    where means that are ``near`` the true ones are known, (K, D): no digits cancel.
    """
    count = torch.bincount(bucket, minlength=n_buckets)
    n = count.clamp(min=1)[:, None]
    zeros = features.new_zeros(n_buckets, features.shape[1])
    near = zeros.index_add(0, bucket, features) / n if near is None else near
    first, second = zeros.clone(), zeros
    for x, k in zip(features.split(128), bucket.split(128), strict=True):  # fits a cache
        x = x - near.index_select(0, k)
        first.index_add_(0, k, x)
        second.index_add_(0, k, x.square_())
    mean = torch.where(count[:, None] > 0, near + first / n, 0.0)
    variance = (second - first.square() / n) / (n - 1).clamp(min=1)
    return count, mean, torch.where(n > 1, variance, 0.0).clamp_(min=0)


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

"""Feature distribution smoothing (FDS): features of rare scores borrow from their neighbours.

The mean and variance of the features are kept per score bucket and smoothed over neighbouring
buckets; while training, every feature vector is moved from its bucket's own statistics to the
smoothed ones. The layer knows nothing about the network around it.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy.ndimage import convolve1d
from torch import Tensor, nn

from iqa_utils.imbalance import (
    FloatArray,
    KernelShape,
    checked_kernel,
    smoothing_kernel,
)
from iqa_utils.metrics import range_index

Variant = Literal["corrected", "released_agedb", "released_stsb"]
# published bounds of the ratio of smoothed to own variance
CLIPS = {"corrected": (0.1, 10.0), "released_agedb": (0.1, 10.0), "released_stsb": (0.5, 2.0)}

ZERO_VARIANCE = 1e-10  # a bucket whose variances sum to less is not calibrated, as released


class FDS(nn.Module):
    """Feature distribution smoothing: calibrate features bucket by bucket while training.

    Call the layer on the features and scores of each training batch, and :meth:`end_epoch` once
    after every epoch with the features of the whole training part. Statistics are a running mean
    and variance per bucket and feature; a feature is whitened with those of its bucket and
    re-coloured with the ones smoothed over neighbouring buckets. In evaluation mode the layer is
    the identity. Everything is one gather and one multiply-add: per-bucket tables of scale and
    shift are made when an epoch ends.

    ``corrected`` (the default, because the paper describes it) whitens and re-colours with the
    statistics of the same epoch, taken on uncalibrated features, and starts in epoch
    ``start_smooth``. The released variants do what the authors' code does: the statistics they
    whiten with are an alias of the running ones and so one epoch newer than the smoothed ones; the
    features they collect have been calibrated in place; and the first smoothing that is not the
    identity comes in epoch ``start_update + 2``. The authors published two rules for buckets
    without images: ``released_agedb`` never touches them, their mean stays 0 and their variance 1;
    ``released_stsb`` averages the two adjacent rows in order, so that a long empty stretch starts
    near zero.

    Args:
        n_features: Feature length D.
        edges: Increasing bucket edges, shape (K + 1,), on the scale of the scores.
        kernel: Shape of the smoothing window, see :func:`smoothing_kernel`.
        kernel_size: Length in buckets, at most K; an even n is used as n - 1.
        sigma: Width in buckets.
        momentum: Share of the old statistics after the first epoch, in [0, 1).
        clip: Bounds of the ratio of smoothed to own variance; None takes the published ones, 0.1
            and 10, or 0.5 and 2 for ``released_stsb``.
        start_update: First epoch, from 0, whose features are collected.
        start_smooth: First epoch whose features are calibrated.
        variant: ``corrected``, ``released_agedb`` or ``released_stsb``.
        collect: Features whose statistics are kept: ``raw``, or ``calibrated`` as released; None
            takes that of the variant.

    Raises:
        ValueError: For a kernel longer than the buckets, or an option outside its range.

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
        kernel: KernelShape = "released",
        kernel_size: int = 5,
        sigma: float = 2.0,
        momentum: float = 0.9,
        clip: tuple[float, float] | None = None,
        start_update: int = 0,
        start_smooth: int = 1,
        variant: Variant = "corrected",
        collect: Literal["raw", "calibrated"] | None = None,
    ) -> None:
        super().__init__()
        if variant not in CLIPS or collect not in (None, "raw", "calibrated"):
            raise ValueError(
                f"variant must be one of {', '.join(CLIPS)} and collect raw or calibrated, "
                f"got {variant!r} and {collect!r}"
            )
        clip = clip or CLIPS[variant]
        collect = collect or ("raw" if variant == "corrected" else "calibrated")
        if not (0 <= momentum < 1 and 0 < clip[0] <= clip[1]):
            raise ValueError(
                f"need 0 <= momentum < 1 and 0 < clip low <= high, got {momentum}, {clip}"
            )
        edges = np.asarray(edges, dtype=np.float64)
        range_index([], edges)  # refuses edges that do not increase
        n_buckets = len(edges) - 1
        window = smoothing_kernel(kernel, size=kernel_size, sigma=sigma)
        window = checked_kernel(window / window.sum(), n_buckets)
        # Row k of this matrix smooths bucket k; "mirror" is what torch calls reflect padding.
        smoothing = convolve1d(np.eye(n_buckets), window, axis=0, mode="mirror")
        self.options: dict[str, Any] = {
            "edges": edges.tolist(),
            "kernel": kernel,
            "kernel_size": kernel_size,
            "sigma": sigma,
            "momentum": momentum,
            "clip": list(clip),
            "start_update": start_update,
            "start_smooth": start_smooth,
            "variant": variant,
            "collect": collect,
        }
        self.momentum, self.clip, self.variant = momentum, tuple(clip), variant
        self.collect = collect
        self.start_update, self.start_smooth = start_update, start_smooth
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
            mos: Shape (B,), needed in training mode once smoothing has started.
        """
        if not self.training or self.epoch < self.start_smooth:
            return features
        if mos is None:
            raise ValueError("FDS needs the scores of a training batch, got None")
        return self._calibrated(features, self.buckets(mos))

    @torch.no_grad()
    def end_epoch(self, features: Tensor, mos: Tensor) -> None:
        """Take in the features of the epoch that just ended and prepare the next one.

        Args:
            features: Uncalibrated features of the training part, shape (N, D).
            mos: Their scores, shape (N,).

        Note:
            Calibrated ones are made here, with the tables of the epoch that ended.
        """
        if self.epoch >= self.start_update:
            bucket, older = self.buckets(mos), self._smoothed()
            if self.collect == "calibrated" and self.epoch >= self.start_smooth:
                features = self._calibrated(features, bucket)
            self._update(features, bucket)
            if self.variant == "corrected":
                self._calibrate(*self._smoothed())
            elif self.epoch > self.start_update:
                self._calibrate(*older)
        self.epoch += 1

    def _smoothed(self) -> tuple[Tensor, Tensor]:
        smoothing = self.smoothing.to(self.mean)
        return smoothing @ self.mean, smoothing @ self.variance

    def _calibrated(self, features: Tensor, bucket: Tensor) -> Tensor:
        return torch.addcmul(self.shift[bucket], features, self.scale[bucket])

    def _update(self, features: Tensor, bucket: Tensor) -> None:
        count, mean, variance = bucket_statistics(features, bucket, len(self.mean))
        known = count >= (2 if self.variant == "corrected" else 1)
        keep = self.momentum if self.epoch > self.start_update else 0.0
        if self.variant == "corrected":
            mean = _interpolate_rows(mean, count > 0)
            variance = _interpolate_rows(variance, known)
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
        scale = ratio.clamp(*self.clip).sqrt()
        self.scale = torch.where(live, scale, 1.0)
        self.shift = torch.where(live, smoothed_mean - self.mean * scale, 0.0)


def bucket_statistics(
    features: Tensor, bucket: Tensor, n_buckets: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, mean and unbiased variance per bucket, without a loop.

    Args:
        features: Shape (N, D).
        bucket: Shape (N,), int64 in 0..K-1.
        n_buckets: K.

    Returns:
        Counts (K,), means (K, D) and variances (K, D) in two passes; zero where a bucket is
        empty, variance zero where it holds one image.
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

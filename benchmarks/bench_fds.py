"""One epoch of feature distribution smoothing: the released loop, in our lines, and our layer.

``LoopFDS`` has the structure of the authors' layer: a table per statistic, a loop over the buckets
of a batch with a mask each, smoothing by a padded convolution. STS-B's looks a bucket up for every
label, AgeDB's takes the label itself: whole numbers there, cut to whole numbers here. The golden
runs of their code hold it; the tests hold our layer to it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from common import compare, report
from torch import Tensor
from torch.nn import functional as F

from iqa_utils.imbalance import CLIPS, FDS, smoothing_kernel


class LoopFDS:
    """Feature distribution smoothing with a loop over buckets.

    Args:
        n_features: Feature length D.
        edges: Bucket edges, shape (K + 1,).
        kernel: Smoothing window of odd length, summing to 1.
        clip: Bounds of the variance ratio.
        variant: As our layer's: the released ones alias the whitening statistics and collect
            calibrated features; ``released_stsb`` fills empty buckets from the adjacent rows.
        dtype: Of the features.
    """

    def __init__(
        self,
        n_features: int,
        edges: Sequence[float],
        *,
        kernel: Sequence[float] = (0.2, 0.2, 0.2, 0.2, 0.2),
        clip: tuple[float, float] = (0.1, 10.0),
        variant: str = "corrected",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.edges = np.asarray(edges, dtype=np.float64)
        self.kernel = torch.as_tensor(np.asarray(kernel), dtype=dtype)
        self.momentum, self.clip, self.variant = 0.9, clip, variant
        self.released = variant != "corrected"
        self.whole = variant == "released_agedb" and bool((np.diff(self.edges) == 1).all())
        self.epoch = 0
        n = len(self.edges) - 1
        self.mean = torch.zeros(n, n_features, dtype=dtype)
        self.variance = torch.ones(n, n_features, dtype=dtype)
        self.own = self.mean, self.variance  # what features are whitened with
        self.smoothed: tuple[Tensor, Tensor] | None = None

    def bucket(self, score: float) -> int:
        """Return the left-closed bucket of a score."""
        return min(int(np.searchsorted(self.edges, score, side="right")), len(self.mean)) - 1

    def buckets(self, mos: Tensor) -> np.ndarray:
        """Return the bucket of every label."""
        if self.whole:
            return np.minimum(
                (mos.double().numpy() - self.edges[0]).astype(int), len(self.mean) - 1
            )
        return np.array([self.bucket(score) for score in mos.tolist()])

    def smooth(self, table: Tensor) -> Tensor:
        """Return the weighted sum of neighbouring rows, reflected at the ends."""
        half = len(self.kernel) // 2
        padded = F.pad(table.T[:, None], (half, half), mode="reflect")  # (D, 1, K + 2 half)
        return F.conv1d(padded, self.kernel[None, None])[:, 0].T

    def calibrate(self, features: Tensor, mos: Tensor) -> Tensor:
        """Return features (B, D) moved to the smoothed statistics of their buckets."""
        out = features.clone()
        if self.smoothed is None:
            return out
        buckets = self.buckets(mos)
        (means, variances), (new_means, new_variances) = self.own, self.smoothed
        for k in np.unique(buckets):
            rows = torch.from_numpy(buckets == k)
            moments = means[k], variances[k], new_means[k], new_variances[k]
            out[rows] = self.moved(out[rows], *moments)
        return out

    def moved(self, x: Tensor, m1: Tensor, v1: Tensor, m2: Tensor, v2: Tensor) -> Tensor:
        """Whiten rows with one pair of moments and colour them with the other."""
        if torch.sum(v1) < 1e-10:
            return x
        if (v1 == 0).any():
            live = v1 != 0
            ratio = torch.clamp(v2[live] / v1[live], *self.clip)
            x[:, live] = (x[:, live] - m1[live]) * torch.sqrt(ratio) + m2[live]
            return x
        return (x - m1) * torch.sqrt(torch.clamp(v2 / v1, *self.clip)) + m2

    def end_epoch(self, features: Tensor, mos: Tensor) -> None:
        """Take in the features of the training set after an epoch."""
        if self.released:
            features = self.calibrate(features, mos)
            if self.epoch > 0:
                self.remember()
        self.update(features, mos)
        if not self.released:
            self.own = self.mean.clone(), self.variance.clone()
            self.remember()
        self.epoch += 1

    def remember(self) -> None:
        """Smooth the running statistics; the released layer never copies what it whitens with."""
        self.smoothed = self.smooth(self.mean), self.smooth(self.variance)

    def update(self, features: Tensor, mos: Tensor) -> None:
        """Move the running mean and variance of every bucket towards this epoch's."""
        keep = self.momentum if self.epoch > 0 else 0.0
        buckets = self.buckets(mos)
        means, variances = {}, {}
        for k in np.unique(buckets).tolist():
            rows = features[torch.from_numpy(buckets == k)]
            means[k] = torch.mean(rows, 0)
            if len(rows) > 1 or self.released:
                variances[k] = torch.var(rows, 0, unbiased=len(rows) > 1)
        n = len(self.mean)
        for k in means if self.released else range(n):
            mean = self.between(means, k)
            variance = self.between(variances, k) if variances else torch.zeros_like(mean)
            self.mean[k] = (1 - keep) * mean + keep * self.mean[k]
            self.variance[k] = (1 - keep) * variance + keep * self.variance[k]
        empty = [k for k in range(n) if k not in means]
        for k in empty if self.variant == "released_stsb" else []:
            near = [j for j in (k - 1, k + 1) if 0 <= j < n]
            self.mean[k] = sum(self.mean[j] for j in near) / len(near)
            self.variance[k] = sum(self.variance[j] for j in near) / len(near)

    @staticmethod
    def between(known: dict[int, Tensor], k: int) -> Tensor:
        """Return row ``k``, interpolated between the nearest known rows where it is not known."""
        below = [j for j in known if j <= k]
        above = [j for j in known if j >= k]
        if not below or not above:
            return known[max(below)] if below else known[min(above)]
        low, high = max(below), min(above)
        share = (k - low) / (high - low) if high > low else 0.0
        return (1 - share) * known[low] + share * known[high]


def run_epoch(layer: FDS | LoopFDS, features: Tensor, mos: Tensor, batch_size: int) -> Tensor:
    """Calibrate every batch of an epoch, then take in all features; returns the calibrated."""
    calibrated = torch.cat(list(batches(layer, features, mos, batch_size)))
    layer.end_epoch(features, mos)
    return calibrated


def batches(
    layer: FDS | LoopFDS, features: Tensor, mos: Tensor, batch_size: int
) -> Iterator[Tensor]:
    """Yield the calibrated batches of an epoch."""
    forward = layer if isinstance(layer, FDS) else layer.calibrate
    yield from map(forward, features.split(batch_size), mos.split(batch_size))


def timed_epoch(layer: FDS | LoopFDS, features: Tensor, mos: Tensor, batch_size: int) -> None:
    """Run an epoch as a training does: no batch outlives its step."""
    for _ in batches(layer, features, mos, batch_size):
        pass
    layer.end_epoch(features, mos)


def main() -> None:
    """Time one epoch at the size of KonIQ-10k: 7,058 features of length 768, two batch sizes."""
    generator = torch.Generator().manual_seed(0)
    mos = (58.7 + 15.4 * torch.randn(7058, generator=generator)).clamp(4, 88)
    features = torch.randn(7058, 768, generator=generator) + 0.02 * mos[:, None]
    edges = np.arange(101.0)
    kernel = smoothing_kernel(size=5, sigma=2.0)
    records = []
    for variant, batch_size, goal in (
        ("released_agedb", 64, 15),
        ("released_agedb", 256, 10),
        ("released_stsb", 64, 15),
        ("released_stsb", 256, 10),
    ):
        options = {"variant": variant, "clip": CLIPS[variant], "dtype": torch.float32}
        loop = LoopFDS(768, edges, kernel=kernel / kernel.sum(), **options)
        layer = FDS(768, edges, variant=variant)
        for _ in range(4):  # the first epochs are not smoothed yet
            pair = [run_epoch(each, features, mos, batch_size) for each in (loop, layer)]
        difference = float((pair[0] - pair[1]).abs().max() / pair[0].abs().max())
        implementations = {
            "released loop": lambda loop=loop, b=batch_size: timed_epoch(loop, features, mos, b),
            "ours": lambda layer=layer, b=batch_size: timed_epoch(layer, features, mos, b),
        }
        title = f"FDS epoch, {variant}, batches of {batch_size}"
        records.append(compare(title, implementations, gate=(difference, 1e-6), goal=goal))
    report(records)


if __name__ == "__main__":
    main()

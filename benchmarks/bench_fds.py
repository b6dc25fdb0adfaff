"""One epoch of feature distribution smoothing: loops over buckets and labels against our layer.

``LoopFDS`` is the plain-loop reference, quirks of the released code included; the tests hold our
layer to it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from common import compare, report
from torch import Tensor

from iqa_utils.imbalance import FDS, smoothing_kernel


class LoopFDS:
    """Feature distribution smoothing with a loop over buckets, on lists of rows.

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
        self.edges, self.kernel = list(edges), list(kernel)
        self.momentum, self.clip, self.variant = 0.9, clip, variant
        self.released = variant != "corrected"
        self.epoch = 0
        n = len(self.edges) - 1
        self.mean = [torch.zeros(n_features, dtype=dtype) for _ in range(n)]
        self.variance = [torch.ones(n_features, dtype=dtype) for _ in range(n)]
        self.own: list[tuple[Tensor, Tensor]] | None = None  # what features are whitened with
        self.smoothed: list[tuple[Tensor, Tensor]] | None = None

    def bucket(self, score: float) -> int:
        """Return the left-closed bucket of a score."""
        return min(sum(score >= edge for edge in self.edges), len(self.edges) - 1) - 1

    def smooth(self, table: list[Tensor]) -> list[Tensor]:
        """Return the weighted sum of neighbouring rows, reflected at the ends."""
        n, half = len(table), len(self.kernel) // 2
        rows = []
        for k in range(n):
            total = torch.zeros_like(table[0])
            for offset, weight in zip(range(-half, half + 1), self.kernel, strict=True):
                j = abs(k + offset)
                total += weight * table[j if j < n else 2 * (n - 1) - j]
            rows.append(total)
        return rows

    def calibrate(self, features: Tensor, mos: Tensor) -> Tensor:
        """Return features (B, D) moved to the smoothed statistics of their buckets."""
        out = features.clone()
        if self.smoothed is None:
            return out
        buckets = np.array([self.bucket(score) for score in mos.tolist()])
        for k in np.unique(buckets).tolist():
            m1, v1 = (self.mean[k], self.variance[k]) if self.released else self.own[k]
            m2, v2 = self.smoothed[k]
            if v1.sum() < 1e-10:
                continue
            rows, live = torch.from_numpy(buckets == k), v1 != 0
            ratio = (v2[live] / v1[live]).clamp(*self.clip)
            moved = out[rows]
            moved[:, live] = (moved[:, live] - m1[live]) * ratio.sqrt() + m2[live]
            out[rows] = moved
        return out

    def end_epoch(self, features: Tensor, mos: Tensor) -> None:
        """Take in the features of the training part after an epoch."""
        if self.released:
            features = self.calibrate(features, mos)
            if self.epoch > 0:
                self.remember()
        self.update(features, mos)
        if not self.released:
            self.remember()
        self.epoch += 1

    def remember(self) -> None:
        """Smooth the running statistics; ``released`` never copies the ones it whitens with."""
        self.own = [(m.clone(), v.clone()) for m, v in zip(self.mean, self.variance, strict=True)]
        pairs = zip(self.smooth(self.mean), self.smooth(self.variance), strict=True)
        self.smoothed = list(pairs)

    def update(self, features: Tensor, mos: Tensor) -> None:
        """Move the running mean and variance of every bucket towards this epoch's."""
        keep = self.momentum if self.epoch > 0 else 0.0
        buckets = np.array([self.bucket(score) for score in mos.tolist()])
        means, variances = {}, {}
        for k in np.unique(buckets).tolist():
            rows = features[torch.from_numpy(buckets == k)]
            means[k] = rows.mean(0)
            if len(rows) > 1 or self.released:
                variances[k] = rows.var(0, correction=1 if len(rows) > 1 else 0)
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
    """Calibrate every batch of an epoch, then take in all features."""
    forward = layer if isinstance(layer, FDS) else layer.calibrate
    parts = zip(features.split(batch_size), mos.split(batch_size), strict=True)
    calibrated = torch.cat([forward(x, y) for x, y in parts])
    layer.end_epoch(features, mos)
    return calibrated


def main() -> None:
    """Time one epoch at the size of KonIQ-10k: 7,058 features of length 768, batches of 256."""
    generator = torch.Generator().manual_seed(0)
    mos = (58.7 + 15.4 * torch.randn(7058, generator=generator)).clamp(4, 88)
    features = torch.randn(7058, 768, generator=generator) + 0.02 * mos[:, None]
    edges = np.arange(101.0)
    kernel = smoothing_kernel(size=5, sigma=2.0)
    records = []
    for variant in ("corrected", "released_agedb"):
        loop = LoopFDS(
            768,
            edges,
            kernel=kernel / kernel.sum(),
            variant=variant,
            dtype=torch.float32,
        )
        layer = FDS(768, edges, variant=variant)
        for _ in range(4):  # the first epochs are not smoothed yet
            pair = [run_epoch(each, features, mos, 256) for each in (loop, layer)]
        difference = float((pair[0] - pair[1]).abs().max() / features.std())
        records.append(
            compare(
                f"FDS epoch, {variant}",
                {
                    "loop": lambda loop=loop: run_epoch(loop, features, mos, 256),
                    "table": lambda layer=layer: run_epoch(layer, features, mos, 256),
                },
                gate=(difference, 1e-5),
                goal=5,
            )
        )
    report(records)


if __name__ == "__main__":
    main()

"""What every metric needs first: two score arrays that belong together."""

import numpy as np
from numpy.typing import ArrayLike


def check_pair(mos: ArrayLike, pred: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return both score arrays as float64 of shape (N,), or refuse them.

    Raises:
        ValueError: If an array is not one-dimensional, the lengths differ, fewer than two scores
            are given, or a score is not finite.
    """
    mos, pred = np.asarray(mos, dtype=np.float64), np.asarray(pred, dtype=np.float64)
    if mos.ndim != 1 or mos.shape != pred.shape:
        raise ValueError(
            f"mos and pred must both have shape (N,), got {mos.shape} and {pred.shape}"
        )
    if len(mos) < 2:
        raise ValueError(f"at least 2 scores are needed, got {len(mos)}")
    for name, values in (("mos", mos), ("pred", pred)):
        if not np.isfinite(values).all():
            raise ValueError(
                f"{name} must be finite, {np.sum(~np.isfinite(values))} of {len(values)} are not"
            )
    return mos, pred


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two arrays of shape (N,), in [-1, 1]; NaN if either is constant."""
    a, b = a - a.mean(), b - b.mean()
    # a constant array of non-dyadic values leaves rounding noise behind, which is not a signal
    norms = np.linalg.norm(a), np.linalg.norm(b)
    if min(norms) <= 1e-14 * max(1.0, *norms):
        return float("nan")
    return float(np.clip(a @ b / (norms[0] * norms[1]), -1.0, 1.0))

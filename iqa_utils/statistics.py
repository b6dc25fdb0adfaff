"""Whether one method beats another over repeated splits, and over many comparisons."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as t_distribution

from iqa_utils.metrics import check_pair


def nadeau_bengio(a: ArrayLike, b: ArrayLike, n_train: int, n_test: int) -> tuple[float, float]:
    """Test paired results over random splits of one data set by the corrected resampled t.

    The splits overlap, so the variance of the mean difference is larger than that of independent
    runs by about the ratio of ``n_test`` to ``n_train``, the images of a test and training set.

    Args:
        a: A metric of the first method, one value per split, shape (J,), J >= 2.
        b: The same of the second method on the same splits, shape (J,).
        n_train: Images of a training set.
        n_test: Images of a test set.

    Returns:
        The t with J - 1 degrees of freedom, positive where ``a`` is larger, and its two-sided p in
        [0, 1], which is 1 if all differences are zero.

    Raises:
        ValueError: If a set is empty, the shapes differ, J is below 2, or a value is not finite.

    References:
        Nadeau, Bengio, Inference for the generalization error, Machine Learning 2003, section 3.

    Example:
        >>> t, p = nadeau_bengio([0.71, 0.75, 0.73], [0.70, 0.72, 0.71], n_train=80, n_test=20)
        >>> round(p, 2)
        0.12
    """
    a, b = check_pair(a, b)
    if n_train < 1 or n_test < 1:
        raise ValueError(f"expected sets of at least 1 image, found {n_train} and {n_test}")
    d, n = a - b, len(a)
    if not d.any():
        return 0.0, 1.0
    variance = (1 / n + n_test / n_train) * d.var(ddof=1)
    t = float(d.mean() / np.sqrt(variance)) if variance else float(np.copysign(np.inf, d[0]))
    return t, float(2 * t_distribution.sf(abs(t), n - 1))


def holm(p: ArrayLike) -> np.ndarray:
    """Adjust the p values of a family of tests by Holm's step-down procedure.

    Ours is 6 lines; statsmodels, the oracle of its test, takes a second to import.
    Values ``p`` (K,) in [0, 1] give adjusted ones in their order, (K,), none below its own p.

    References:
        Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted

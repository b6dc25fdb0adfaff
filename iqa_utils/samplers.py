"""Samplers that decide which images an epoch shows, and which data sets share a batch.

A sampler sees opinion scores or set sizes and returns rows. It knows nothing about pixels, so it
can be tested on numbers alone, and its draw depends on ``(seed, epoch)`` and nothing else.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from iqa_utils.metrics import MOS_EDGES, range_index

Method = Literal["none", "method1", "method2", "method3", "rule"]
METHODS: tuple[str, ...] = get_args(Method)
Mixing = Literal["released", "proportional"]
MIXINGS: tuple[str, ...] = get_args(Mixing)


def range_quotas(counts: ArrayLike, method: Method, *, threshold: int = 1000) -> np.ndarray:
    """Return how many images of each score range an epoch shows.

    With m the count of the smallest range that is not empty:

    * ``none``: every image once.
    * ``method1``: m of every range.
    * ``method2``: m, or 2m where the range holds more than ``threshold`` images.
    * ``method3``: 4m of the two largest ranges, 3m of the others; images repeat where a range
      holds fewer than that.
    * ``rule``: all of a range up to 2m; else 2m below 4m, 3m below 6m, and 4m from there on.

    ``counts`` are training images in each range, shape (R,), as is the result; an empty range stays
    empty. ``threshold`` is what "exceeds 1000" in the definition of method 2 stands for; the
    paper's own number belongs to KonIQ-10k.

    Raises:
        ValueError: If no range holds an image, a count is negative, fewer than three ranges hold
            images for ``method3``, or there is no such method.

    Note:
        The rule does not mention a ratio up to 2: nothing is removed then. Method 2 counts on the
        training set, where its example (two ranges doubled) holds.

    References:
        Lehmann and Rokita, Machine Graphics & Vision 2023, sections 2.2.3 (rule) and 3.2.

    Example:
        >>> range_quotas([10, 40, 100], "rule").tolist()
        [10, 30, 40]
    """
    counts = np.asarray(counts, dtype=np.int64)
    if counts.ndim != 1 or (counts < 0).any() or not counts.any():
        raise ValueError(f"counts must be images per range, at least one of them, got {counts}")
    smallest = counts[counts > 0].min()
    if method == "method3":
        if (counts > 0).sum() < 3:
            raise ValueError(f"method3 needs three ranges with images, got counts {counts}")
        times = np.full_like(counts, 3)
        times[np.argsort(-counts, kind="stable")[:2]] = 4
        return np.where(counts > 0, times * smallest, 0)
    ratio = counts / smallest
    times = {"none": 1, "method1": 1, "method2": np.where(counts > threshold, 2, 1)}
    times["rule"] = np.select([ratio < 4, ratio < 6], [2, 3], default=4)
    if method not in times:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    return counts.copy() if method == "none" else np.minimum(counts, times[method] * smallest)


def cross_sample(
    mos: ArrayLike,
    method: Method,
    *,
    edges: Sequence[float] = MOS_EDGES,
    seed: int,
    epoch: int,
    threshold: int = 1000,
) -> np.ndarray:
    """Draw the images of one epoch.

    Within a range images are drawn without repeats until it is used up; an oversampled range shows
    every image equally often, up to one.

    Args:
        mos: Scores of the training images, shape (N,).
        method: Sampler; see :func:`range_quotas`.
        edges: Edges of the score ranges; left-closed, the last range closed on both sides.
        seed: Root seed.
        epoch: Counted from 0; every epoch has its own draw.
        threshold: For ``method2``.

    Returns:
        Rows into ``mos``, sorted by range and not shuffled, int64.

    Raises:
        ValueError: If a score lies outside the edges, or as for :func:`range_quotas`.

    Example:
        >>> mos = [10.0, 20.0, 30.0, 90.0]
        >>> len(cross_sample(mos, "method1", edges=[0, 50, 100], seed=0, epoch=0))
        2
    """
    ranges = range_index(mos, edges)  # (N,)
    counts = np.bincount(ranges, minlength=len(edges) - 1)
    quotas = range_quotas(counts, method, threshold=threshold)
    generator = np.random.default_rng([seed, epoch])
    drawn = []
    for number, quota in enumerate(quotas):
        rows = np.flatnonzero(ranges == number)
        if quota == len(rows):
            drawn.append(rows)
        elif quota:
            copies, rest = divmod(int(quota), len(rows))
            drawn += [rows] * copies + [generator.permutation(rows)[:rest]]
    return np.concatenate(drawn)


def mixed_batches(
    sizes: Sequence[int], mixing: Mixing, *, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Draw the batches of one epoch over several data sets.

    ``released``: index i of the largest set takes image i modulo n of *every* set of n images, so
    an epoch visits the largest set once and cycles through the others. ``proportional``: every
    image of every set once, shuffled together.

    ``sizes`` are training images of each set, S values; ``batch_size`` counts indices in
    ``released``, images in ``proportional``.

    Returns:
        One array per batch with columns (set, row in the set), int64, shape (B, 2).

    Raises:
        ValueError: If there is no such mixing, a set is empty, or ``batch_size`` is below 1.

    References:
        Feng et al., Electronics Letters 2023, released code.

    Example:
        >>> batches = mixed_batches([8, 3], "released", batch_size=4, seed=0, epoch=0)
        >>> [len(batch) for batch in batches]
        [8, 8]
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    if mixing not in MIXINGS:
        raise ValueError(f"mixing must be one of {MIXINGS}, got {mixing!r}")
    if not len(sizes) or (sizes < 1).any() or batch_size < 1:
        raise ValueError(
            f"every set needs an image and a batch a place, got sizes {sizes.tolist()} "
            f"and batch_size {batch_size}"
        )
    generator = np.random.default_rng([seed, epoch])
    sets = np.arange(len(sizes))
    if mixing == "proportional":
        rows = np.stack([np.repeat(sets, sizes), np.concatenate(list(map(np.arange, sizes)))], 1)
        rows = generator.permutation(rows)  # (all images, 2)
        return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    order = generator.permutation(sizes.max())
    chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [np.stack([np.repeat(sets, len(c)), (c % sizes[:, None]).ravel()], 1) for c in chunks]


def visits_per_epoch(sizes: Sequence[int], mixing: Mixing) -> np.ndarray:
    """Return how often an epoch of :func:`mixed_batches` shows an image of each set, on average."""
    sizes = np.asarray(sizes)
    return sizes.max() / sizes if mixing == "released" else np.ones(len(sizes))

"""Training, validation and test sets that share no reference image.

The seeded split sorts reference images by a hash of data set, seed and name, so it is the same on
every machine and with every library version. The official split is used where there is one.
"""

import hashlib
import math
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

SPLITS = ("training", "validation", "test")


def content_split(
    frame: pd.DataFrame, *, fractions: tuple[float, ...] = (0.6, 0.2, 0.2), seed: int
) -> pd.Series:
    """Split a score table by reference image, by seed.

    Validation and test take the rounded share of the reference images and training the rest.
    Where a reference has several images and there is a validation set, training is rounded up at
    the cost of test: 29 references give 18/6/5, as in the splits that feng2023 released.

    Args:
        frame: A table of ``datasets.load_scores``, N rows.
        fractions: Shares of training, validation and test, or of training and test; sum 1.
        seed: Which of the splits, >= 0.

    Returns:
        "training", "validation" or "test" for each row, shape (N,), with the frame's index.

    Raises:
        ValueError: If the shares do not sum to 1, or there are fewer reference images than sets.

    Example:
        >>> frame = pd.DataFrame({"reference": ["a", "b", "c", "d", "e"]})
        >>> sorted(content_split(frame, seed=0))
        ['test', 'training', 'training', 'training', 'validation']
    """
    if len(fractions) == 2:
        fractions = (fractions[0], 0.0, fractions[1])
    if len(fractions) != 3 or min(fractions) < 0 or not math.isclose(sum(fractions), 1.0):
        raise ValueError(f"expected two or three shares that sum to 1, got {fractions}")
    references = frame["reference"].unique()
    n, n_sets = len(references), sum(share > 0 for share in fractions)
    if n < n_sets:
        raise ValueError(f"expected at least {n_sets} reference images, found {n}")
    n_validation, n_test = (max(1, round(share * n)) if share > 0 else 0 for share in fractions[1:])
    if n < len(frame) and n_validation:
        n_training = math.ceil(round(fractions[0] * n, 9))
        n_test = max(min(n_test, 1), min(n_test, n - n_validation - n_training))
    n_training = n - n_validation - n_test

    def order(name: object) -> tuple[str, str]:  # KonIQ comes in two folders, names in two cases
        own = PurePosixPath(str(name)).name.casefold()
        key = f"{frame.attrs.get('dataset', '')}|{seed}|{own}"
        return hashlib.sha256(key.encode()).hexdigest(), str(name).casefold()

    ordered = sorted(references, key=order)
    sets = np.repeat(SPLITS, (n_training, n_validation, n_test))
    return frame["reference"].map(dict(zip(ordered, sets.tolist(), strict=True))).rename("split")


def official_split(frame: pd.DataFrame) -> pd.Series:
    """Return the official split; 20 % of training, seed 0, is validation where there is none.

    Frame and result are as for :func:`content_split`.

    Raises:
        ValueError: If an image has no official split.
    """
    n_missing = int(frame["split"].isna().sum())
    if n_missing:
        raise ValueError(
            f"{frame.attrs.get('title', 'this set')}: expected an official split, {n_missing} of "
            f"{len(frame)} images have none; use content_split"
        )
    split = frame["split"].rename("split")
    if (split == "validation").any():
        return split
    training = frame[split == "training"]
    held_out = content_split(training, fractions=(0.8, 0.0, 0.2), seed=0) == "test"
    return split.where(~held_out.reindex(split.index, fill_value=False), "validation")


def official_or_content_split(frame: pd.DataFrame, *, seed: int) -> pd.Series:
    """Return :func:`official_split` where every image has one, else :func:`content_split`."""
    is_official = frame["split"].notna().all()
    return official_split(frame) if is_official else content_split(frame, seed=seed)


def check_disjoint(frame: pd.DataFrame, split: pd.Series) -> None:
    """Refuse a split that has one reference image in two sets.

    Raises:
        ValueError: If a reference image is in two sets, a row in none, or the index differs.
    """
    if not split.index.equals(frame.index):
        raise ValueError(f"expected a set for each of {len(frame)} rows, got {len(split)}")
    unknown = sorted(set(split) - set(SPLITS), key=str)
    if unknown:
        raise ValueError(f"expected every row in one of {SPLITS}, found {unknown}")
    n_sets = split.groupby(frame["reference"]).nunique()
    shared = sorted(n_sets.index[n_sets > 1])
    if shared:
        raise ValueError(f"{len(shared)} reference images are in more than one set: {shared[:5]}")

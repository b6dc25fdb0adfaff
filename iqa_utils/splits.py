"""Training, validation and test parts that share no content.

The seeded split sorts contents by a hash of set, seed and name, so it is the same on every
machine and with every library version. The official split is used where there is one.
"""

import hashlib
import math
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

PARTS = ("training", "validation", "test")


def content_split(
    frame: pd.DataFrame, *, fractions: tuple[float, ...] = (0.6, 0.2, 0.2), seed: int
) -> pd.Series:
    """Split a score table by content, by seed.

    Validation and test take the rounded share of the contents and training the rest. Where a
    content has several images (a reference and its distortions) and there is a validation
    part, training is rounded up at the cost of test: 29 references give 18/6/5, as in the
    splits that feng2023 released.

    Args:
        frame: A table of ``datasets.load_scores``, N rows.
        fractions: Shares of training, validation and test, or of training and test; sum 1.
        seed: Which of the splits, >= 0.

    Returns:
        "training", "validation" or "test" for each row, shape (N,), with the frame's index.

    Raises:
        ValueError: If the fractions are not shares, or there are fewer contents than parts.
    """
    if len(fractions) == 2:
        fractions = (fractions[0], 0.0, fractions[1])
    if len(fractions) != 3 or min(fractions) < 0 or not math.isclose(sum(fractions), 1.0):
        raise ValueError(f"expected two or three shares that sum to 1, got {fractions}")
    if seed < 0:
        raise ValueError(f"expected a seed >= 0, got {seed}")
    contents = frame["reference"].unique()
    n, n_parts = len(contents), sum(share > 0 for share in fractions)
    if n < n_parts:
        raise ValueError(f"expected at least {n_parts} contents for {n_parts} parts, found {n}")
    n_validation, n_test = (max(1, round(share * n)) if share > 0 else 0 for share in fractions[1:])
    if n < len(frame) and n_validation:
        n_training = math.ceil(round(fractions[0] * n, 9))
        n_test = max(min(n_test, 1), min(n_test, n - n_validation - n_training))
    n_training = n - n_validation - n_test
    dataset = frame.attrs.get("dataset", "")
    ordered = sorted(contents, key=lambda name: _order(dataset, seed, str(name)))
    parts = np.repeat(PARTS, (n_training, n_validation, n_test))
    part_of = dict(zip(ordered, parts.tolist(), strict=True))
    return frame["reference"].map(part_of).rename("split")


def official_split(frame: pd.DataFrame) -> pd.Series:
    """Return the official split; 20 % of training, seed 0, is validation where there is none.

    Args:
        frame: A table of ``datasets.load_scores``, N rows.

    Returns:
        "training", "validation" or "test" for each row, shape (N,), with the frame's index.

    Raises:
        ValueError: If the set has no official split (use :func:`content_split`), or only for
            some of its images.
    """
    title = frame.attrs.get("title", "this set")
    if frame["split"].isna().any():
        n_missing = int(frame["split"].isna().sum())
        raise ValueError(
            f"{title}: expected an official split, {n_missing} of {len(frame)} images have none; "
            "use content_split"
        )
    split = frame["split"].rename("split")
    if (split == "validation").any():
        return split
    training = frame[split == "training"]
    held_out = content_split(training, fractions=(0.8, 0.0, 0.2), seed=0) == "test"
    return split.where(~held_out.reindex(split.index, fill_value=False), "validation")


def official_or_content_split(frame: pd.DataFrame, *, seed: int) -> pd.Series:
    """Return :func:`official_split` where every image has one, else :func:`content_split`.

    Args:
        frame: A table of ``datasets.load_scores``, N rows.
        seed: Which of the content splits.
    """
    is_official = frame["split"].notna().all()
    return official_split(frame) if is_official else content_split(frame, seed=seed)


def check_disjoint(frame: pd.DataFrame, split: pd.Series) -> None:
    """Refuse a split that has one content in two parts.

    Args:
        frame: A table of ``datasets.load_scores``, N rows.
        split: The part of each row, shape (N,), with the frame's index.

    Raises:
        ValueError: If the indexes differ, a part has an unknown name, or a content is in two.
    """
    if not split.index.equals(frame.index):
        raise ValueError(f"expected a part for each of {len(frame)} rows, got {len(split)}")
    unknown = sorted(set(split.dropna()) - set(PARTS))
    if unknown:
        raise ValueError(f"expected parts {PARTS}, found {unknown}")
    n_parts = split.groupby(frame["reference"]).nunique()
    shared = sorted(n_parts.index[n_parts > 1])
    if shared:
        raise ValueError(f"{len(shared)} contents are in more than one part: {shared[:5]}")


def split_digest(frame: pd.DataFrame, split: pd.Series) -> str:
    """Hash which image is in which part, so that a test can hold a split to it.

    Args:
        frame: A table of ``datasets.load_scores``, N rows.
        split: The part of each row, shape (N,), with the frame's index.

    Returns:
        16 hexadecimal digits; the order of the rows and the folder of the images do not matter.
    """
    lines = sorted(
        f"{_name(image)}\t{part}\n" for image, part in zip(frame["image"], split, strict=True)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _name(path: str) -> str:
    """Return a file's name without folder and case: KonIQ comes in two folders."""
    return PurePosixPath(path).name.casefold()


def _order(dataset: str, seed: int, content: str) -> tuple[str, str]:
    """Return the sort key of a content: a hash of set, seed and name, then the content itself."""
    key = f"{dataset}|{seed}|{_name(content)}"
    return hashlib.sha256(key.encode()).hexdigest(), content.casefold()

"""The protocol of ahmed2020 on one joined table of several data sets.

Joined, all sets share one image store, one standardised score and one idea of content, so that
fine-tuning, regression and cross-set tests are choices of rows. Scores of what comes out, with
intervals and paired tests, are in :mod:`iqa_utils.studies.layer_scores`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from iqa_utils.splits import content_split, official_split

CATEGORIES = {  # training category of the paper to its table and data sets
    "TID": ("Table 5", ("tid2008", "tid2013")),
    "CSIQ": ("Table 6", ("csiq",)),
    "LIVE": ("Table 7", ("live",)),
}


def join_sets(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Put score tables under each other with a standardised score and a common content.

    Args:
        frames: Name to table of :func:`iqa_utils.datasets.load_scores`.

    Returns:
        One row an image: ``dataset``, ``image`` (relative to the folder of all sets), ``mos`` (the
        set's own scale), ``mos_z`` (equation 4: standardised over its set), ``content``,
        ``distortion``, ``subset`` ("" where the set has none).

    Note:
        TID2008 and TID2013 show the same 25 references, so these are one content each. LIVE and TID
        share scenes of the Kodak set as well; their names do not say which.
    """
    parts = []
    for name, frame in frames.items():
        columns = {
            "dataset": name,
            "image": f"{name}/" + frame["image"],
            "mos": frame["mos"],
            "mos_z": (frame["mos"] - frame["mos"].mean()) / frame["mos"].std(ddof=0),
            "content": _contents(name, frame),
            "distortion": frame["distortion"],
            "subset": frame.get("subset", ""),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def split_sets(frames: Mapping[str, pd.DataFrame], *, seed: int) -> np.ndarray:
    """Assign every image of :func:`join_sets` to training, validation or test.

    Official splits where a set has one (the seed is then ignored), else 60/20/20 by content.

    Args:
        frames: As for :func:`join_sets`.
        seed: Which of the content splits.

    Returns:
        Part of each row of the joined table, shape (N,).

    Note:
        The paper tests on "20 %, 750 images" of TID2013; 20 % are 600. It does not say that its
        splits keep the distorted versions of a reference together; these do.
    """
    parts = []
    for name, frame in frames.items():
        if frame["split"].notna().all():
            parts.append(official_split(frame))
            continue
        frame = frame.assign(reference=_contents(name, frame))
        frame.attrs["dataset"] = _family(name)  # one family is split alike
        parts.append(content_split(frame, seed=seed))
    return pd.concat(parts, ignore_index=True).to_numpy()


def _family(name: str) -> str:
    return "tid" if name.startswith("tid") else name


def _contents(name: str, frame: pd.DataFrame) -> pd.Series:
    return f"{_family(name)}/" + frame["reference"].astype(str).str.lower().str.removesuffix(".bmp")


def paper_sets(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """List the rows of each data set under the ledger's names.

    Args:
        frame: Table of :func:`join_sets`.

    Returns:
        Name to row numbers; LIVE appears as ``live1`` (its JPEG and JPEG 2000 images, which were
        released first) and ``live2`` (all of it).
    """
    found = {}
    for name, part in frame.groupby("dataset", sort=False):
        found["live2" if name == "live" else str(name)] = part.index.to_numpy()
        if name == "live":
            first = part["distortion"].isin(["jp2k", "jpeg"])
            found["live1"] = part.index[first].to_numpy()
    return found


def to_own_scale(predictions: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Turn standardised scores and predictions into units of the set they are tested on.

    Args:
        predictions: ``row``, ``mos`` and ``pred`` of one data set, standardised.
        frame: Table of :func:`join_sets`.

    Returns:
        The same table on the set's own scale. Mean and spread of the test set enter: without them
        a model trained on another set's scale has no error in these units at all.
    """
    dataset = frame.loc[predictions["row"].iloc[0], "dataset"]
    mos = frame.loc[frame["dataset"] == dataset, "mos"]
    scale = {name: predictions[name] * mos.std(ddof=0) + mos.mean() for name in ("mos", "pred")}
    return predictions.assign(**scale)

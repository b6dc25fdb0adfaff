"""The joined table of several sets that ahmed2020 learns from, and who may see which image.

Joined, all sets share one image store, one standardised score and one idea of reference image, so
that fine-tuning, regression and cross-data-set tests are choices of rows.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from iqa_utils.images import moved
from iqa_utils.models import scaled_score
from iqa_utils.splits import official_or_content_split

MODES = ("strict", "as_written")  # what a network may see while it is fine-tuned
CATEGORIES = {  # training category of the paper to its table and data sets
    "TID": ("Table 5", ("tid2008", "tid2013")),
    "CSIQ": ("Table 6", ("csiq",)),
    "LIVE": ("Table 7", ("live",)),
}


def join_sets(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Put score tables of :func:`iqa_utils.datasets.load_scores`, by name, under each other.

    Returns:
        One row per image: ``dataset``, ``image`` (relative to the folder of all sets), ``mos`` (the
        set's own scale), ``mos_z`` (equation 4: standardised over its set), ``reference``,
        ``distortion``, ``subset`` ("" where the set has none).

    Note:
        TID2008 and TID2013 show the same 25 reference images. LIVE and TID share scenes of the
        Kodak set as well; their names do not say which.
    """
    tables = []
    for name, frame in frames.items():
        mos, about = frame["mos"], {"dataset": name, "image": f"{name}/" + frame["image"]}
        about |= {"mos": mos, "mos_z": (mos - mos.mean()) / mos.std(ddof=0)}
        about |= {"reference": _references(name, frame), "distortion": frame["distortion"]}
        tables.append(pd.DataFrame(about | {"subset": frame.get("subset", "")}))
    return pd.concat(tables, ignore_index=True)


def split_sets(frames: Mapping[str, pd.DataFrame], *, seed: int) -> np.ndarray:
    """Assign every image of :func:`join_sets` to training, validation or test, shape (N,).

    Official splits where a set has one (the seed is then ignored), else 60/20/20 by reference.

    Note:
        The paper tests on "20 %, 750 images" of TID2013; 20 % are 600. It does not say that its
        splits keep the distorted versions of a reference together; these do.
    """
    found = []
    for name, frame in frames.items():
        frame = frame.assign(reference=_references(name, frame))
        frame.attrs["dataset"] = _family(name)  # one family is split alike
        found.append(official_or_content_split(frame, seed=seed))
    return pd.concat(found, ignore_index=True).to_numpy()


def _family(name: str) -> str:
    return "tid" if name.startswith("tid") else name


def _references(name: str, frame: pd.DataFrame) -> pd.Series:
    return f"{_family(name)}/" + frame["reference"].astype(str).str.lower().str.removesuffix(".bmp")


def paper_sets(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """List the rows of each data set under the ledger's names.

    LIVE appears as ``live1`` (its JPEG and JPEG 2000 images, released first) and ``live2`` (all).
    """
    found = {}
    for name, own in frame.groupby("dataset", sort=False):
        found["live2" if name == "live" else str(name)] = own.index.to_numpy()
        if name == "live":
            found["live1"] = own.index[own["distortion"].isin(["jp2k", "jpeg"])].to_numpy()
    return found


def other_sets(
    frame: pd.DataFrame, members: Sequence[str]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """List the rows of a family of sets, and of each set outside it (:func:`paper_sets`)."""
    train, sets = np.flatnonzero(frame["dataset"].isin(members)), paper_sets(frame)
    sets = {name: rows for name, rows in sets.items() if not np.isin(rows, train).any()}
    return train, sets if len(train) else {}


def to_own_scale(predictions: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Turn standardised ``mos`` and ``pred`` of one data set into units of that set.

    Mean and spread of the test set enter: without them a model trained on another set's scale has
    no error in these units at all.
    """
    dataset = frame.loc[predictions["row"].iloc[0], "dataset"]
    mos = frame.loc[frame["dataset"] == dataset, "mos"]
    scale = {name: predictions[name] * mos.std(ddof=0) + mos.mean() for name in ("mos", "pred")}
    return predictions.assign(**scale)


def tuning_rows(
    frame: pd.DataFrame, split: np.ndarray, mode: str, datasets: Sequence[str], *, whole: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the images that a network is fine-tuned on, and those that pick its best epoch.

    Mode ``"strict"`` takes the training images of the training sets (with ``whole`` their test
    images too, where the test is on other sets); ``"as_written"`` all images of all sets, the test
    images among them: leaky, and one reading of section 3.2, which is silent on test images.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    leaky = mode == "as_written"
    inside = np.full(len(frame), True) if leaky else frame["dataset"].isin(datasets).to_numpy()
    chosen = split != "validation" if leaky or whole else split == "training"
    return np.flatnonzero(inside & chosen), np.flatnonzero(inside & (split == "validation"))


def protocol(split: str, crops: int, recipe: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """State the protocol of a result; a ``recipe`` of fine-tuning adds its epochs, or its steps."""
    told = {"split": split, "crops": crops}
    if recipe is None:
        return told
    epochs, n_steps = recipe["EPOCHS"], recipe["N_STEPS"]  # of an epoch; 0: each image once
    return told | ({"steps": epochs * n_steps} if n_steps else {"epochs": epochs})


def warp(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Turn, scale and shift uint8 images (B, 3, H, W), each by its own draw; borders are reflected.

    At most 10 degrees, 10 % and 5 % of a side: section 4.2 names the three and states no amounts.
    """
    draws = 2 * torch.rand((4, len(images)), generator=generator).to(images.device) - 1  # (4, B)
    angles, scale, shift = draws[0] * math.radians(10), 1 + 0.1 * draws[1], 0.1 * draws[2:]
    out = moved(images.float(), angles, scale, shift)  # a side is 2 long
    return out.round_().clamp_(0, 255).to(torch.uint8)


class ScoreNetwork(nn.Module):
    """A classifier, images to 1000 logits, followed by one neuron that reads a score from them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.score = nn.Linear(1000, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return standardised scores, shape (B,), of images (B, 3, H, W)."""
        return scaled_score(self.score, self.network(images), 0.0, 1.0)

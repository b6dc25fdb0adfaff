"""Nguyen and others: CLIP's image encoder, label and feature distribution smoothing."""

from collections.abc import Iterable
from itertools import product

import numpy as np
import pandas as pd

from iqa_utils.workshop.audit import RANGES, Check, Facts, Interval, check_pooling, printed_interval
from iqa_utils.workshop.papers import Answer

KEY = "nguyen2024"
TITLE = "Nguyen et al. 2024: CLIP with label and feature smoothing"
DOI = ""  # the text at hand names none
NOTEBOOKS = ("05_lds_fds",)
LEDGER = (30, "9eba99ce0cb4f08d")
METRICS = {"MAE all": ("MAE all", "MAE")}
BOTH = "CLIP + LDS + FDS"
KONIQ_COUNTS = np.array([183, 1189, 3081, 5408, 212])  # whole set, ranges of 20 points
CLIP = {"network": "vit_base_patch32_clip_224", "weights": "laion2b", "recipe": "paper"}
NEEDS = {"trained here": CLIP | {"protocol": {"epochs": 200}}}
ANSWERS = (Answer("Table 1", NEEDS), Answer("Table 2", NEEDS))
EASY = "The encoder is public and frozen: features are cached once and a training takes seconds."
DIFFICULT = (
    "Split, loss, batch size and the head are not given, the learning rate of 0.1 kills heads that "
    "the text allows, and the second data set is not public."
)


def checks(rows: pd.DataFrame) -> Iterable[Check]:
    """Recompute the totals."""
    return check_pooling(rows, "Table 1", "MAE all", 1)


def facts(rows: pd.DataFrame) -> Facts:
    """Recompute what the words say of the cells and of the set."""
    values = rows.pivot_table(index=["table", "method"], columns="metric", values="value")
    koniq, internal = values.loc["Table 1"], values.loc["Table 2"]["MAE all"]
    whole, range_4 = koniq["MAE all"], koniq["MAE 60-80"]
    mean_at_most = KONIQ_COUNTS @ np.array([20, 40, 60, 80, 100]) / KONIQ_COUNTS.sum() / 20
    uneven = koniq[[f"MAE {r}" for r in RANGES]].std(axis=1)
    shares, n = label_shares(rows), len(pooling_counts(rows))
    best = [whole.min(), whole["CLIP + LDS"]]
    found: Facts = {
        "images of KonIQ-10k with a label below 1 of 5": [KONIQ_COUNTS[0]],
        "highest possible mean label, against the mode 3.5": [(0, mean_at_most)],
        "MAE of CLIP + LDS, called the optimum of the whole set": best,
        "MAE 60-80 of CLIP + LDS + FDS, called the best": [range_4.min(), range_4[BOTH]],
        "SD over ranges of CLIP + LDS + FDS, called balancing": [uneven[BOTH], (0, uneven["CLIP"])],
        "MAE on the internal set, called best of all": [internal.min(), internal[BOTH]],
        "count vectors of 2,015 test images that give all three totals": [n, max(n, 1)],
    }
    for method in ("CLIP + LDS", BOTH):
        words = f"share of label 4 that pools 3 and 4, {method}"
        found[words] = [shares[method], shares["CLIP"]]
    return found


def pooling_counts(rows: pd.DataFrame, n: int = 2015) -> list[list[int]]:
    """Find the images per range that reach all three totals of Table 1 at their printed digits.

    Every cell and total may lie half a unit of its last digit away. Searched are all vectors of
    five counts that sum to ``n``: three totals and the sum leave one count free, and around each
    of its values the others lie in a box that the digits bound.
    """
    table = rows[rows["table"] == "Table 1"].pivot_table(
        index="method", columns="metric", values="printed", aggfunc="first", sort=False
    )
    text = table[[f"MAE {r}" for r in RANGES]].to_numpy()
    half = np.vectorize(lambda t: 0.5 * 10.0 ** -len(t.split(".")[1]))
    cells, totals = text.astype(float), table["MAE all"].to_numpy().astype(float)
    inverse = np.linalg.inv(np.vstack([np.ones(4), cells[:, 1:]]))
    slack = np.abs(inverse) @ [0, *(n * (half(table["MAE all"]) + half(text).max(axis=1)))]
    found: list[list[int]] = []
    for first in range(n + 1):
        centre = inverse @ [n - first, *(n * totals - first * cells[:, 0])]
        low, high = np.maximum(np.ceil(centre - slack), 0), np.floor(centre + slack)
        grid = np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(low[:3], high[:3], strict=True)))
        inner = np.stack(grid, axis=-1).reshape(-1, 3)
        last = n - first - inner.sum(axis=1)
        counts = np.column_stack([np.full(len(inner), first), inner, last]).astype(int)
        gaps = np.abs(counts @ cells.T - n * totals)
        near = (gaps <= n * half(table["MAE all"]) + counts @ half(text).T + 1e-9).all(axis=1)
        found += counts[near & (last >= 0)].tolist()
    return found


def label_shares(rows: pd.DataFrame) -> dict[str, Interval]:
    """Ask which share of label 4 pools the errors of labels 3 and 4: the same in all rows."""
    inside = rows[rows["table"] == "Table 2"].set_index(["method", "metric"])["printed"]
    shares = {}
    for method in dict.fromkeys(inside.index.get_level_values(0)):
        ends = (printed_interval(inside[method, f"MAE {k}"]) for k in ("3", "4", "3 and 4"))
        corners = [(both - three) / (four - three) for three, four, both in product(*ends)]
        shares[method] = (min(corners), max(corners))
    return shares

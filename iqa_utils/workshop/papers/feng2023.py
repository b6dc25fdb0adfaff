"""Feng and others: one regressor and monotonic transformers for six mixed data sets."""

import pandas as pd

from iqa_utils.workshop.audit import Check, Facts, Interval, check_mean

KEY = "feng2023"
TITLE = "Feng et al. 2023: one regressor, monotonic transformers"
DOI = "10.1049/ell2.12698"
NOTEBOOKS = ("03_mixed_datasets",)
METRICS = {"PLCC": ("PLCC logistic", "PLCC")}  # after a five-parameter logistic map
PROPOSED = "Proposed (All databases)"
REPEATS = (("Table 2", "Five CFCLs and Four ELUs (Proposed)", "", "Table 1", PROPOSED, ""),)
# images with scores; the upper end counts references or training images too, as a reader might
SIZES: dict[str, float | Interval] = {
    "live": (779, 982),
    "csiq": (866, 900),
    "kadid10k": (10125, 10206),
    "bid": (585, 586),
    "livec": (1162, 1169),
    "koniq10k": 10073,
}


def checks(rows: pd.DataFrame) -> list[Check]:
    """Recompute the weighted columns."""
    tables = ("Table 1", "Table 2")
    return [check for table in tables for check in check_mean(rows, table, "weighted", SIZES)]


def facts(rows: pd.DataFrame) -> Facts:
    """Recompute the claims on the weighted columns, and the cost at the stated size."""
    means = rows[(rows["table"] == "Table 1") & (rows["dataset"] == "weighted")]
    means = means.set_index(["metric", "method"])["value"]
    floor = 3.6 * (768 / 224) ** 2  # ResNet-34 trunk: 3.6 GMAC at 224 squared
    gflops = rows[rows["method"] == "Proposed"]["value"].iloc[0]
    return {
        "least GMAC with the short side at 768 pixels": [(floor, 2 * floor), gflops],
        **{
            f"weighted {metric} of the proposed method, called the best": [
                means[metric].max(),
                means[metric][PROPOSED],
            ]
            for metric in ("SRCC", "PLCC")
        },
    }

"""Feng and others: one regressor and monotonic transformers for six mixed data sets."""

import pandas as pd

from iqa_utils.workshop.audit import Check, Facts, Interval, check_mean
from iqa_utils.workshop.papers import Answer

KEY = "feng2023"
TITLE = "Feng et al. 2023: one regressor, monotonic transformers"
DOI = "10.1049/ell2.12698"
NOTEBOOKS = ("03_mixed_datasets",)
LEDGER = (142, "9410703bf0b37e0b")
DATA = {"weighted": {"live", "csiq", "kadid10k", "bid", "livec", "koniq10k"}}
METRICS = {"PLCC": ("PLCC logistic", "PLCC")}  # after a five-parameter logistic map
PROPOSED = "Proposed (All databases)"
# images with scores; the upper end counts references or training images too, as a reader might
SIZES: dict[str, float | Interval] = {
    "live": (779, 982),
    "csiq": (866, 900),
    "kadid10k": (10125, 10206),
    "bid": (585, 586),
    "livec": (1162, 1169),
    "koniq10k": 10073,
}
RESNET = {"network": "resnet34", "weights": "imagenet", "recipe": ("paper", "released")}
RESNET["protocol"] = {"split": "60/20/20", "epochs": 24}
RELEASED = {"authors' predictions": {}, "trained here": RESNET}
# the numbers of UNIQUE are those of its own paper: other splits, no validation set
UNIQUE = {"network": "UNIQUE", "protocol": {"split": "80/20"}}
KONCEPT = {"network": "KonCept512", "weights": "imagenet", "protocol": {"training": "koniq10k"}}
SMALL, LARGE = {"protocol": {"size": "224x224"}}, {"protocol": {"size": "299x299"}}
ANSWERS = (
    Answer("Table 1", RELEASED, (PROPOSED,)),
    Answer("Table 1", {"trained here": UNIQUE}, ("UNIQUE",)),
    Answer("Table 1", {"trained here": KONCEPT}, ("KonCept512",)),
    Answer("Table 1", {"trained here": {"network": "NIQE", "weights": "LIVE"}}, ("NIQE",)),
    Answer("Table 2", RELEASED, ("Five",)),
    Answer("Table 2", {"trained here": RESNET}),
    Answer("text", {"arithmetic": SMALL | {"network": "resnet34"}}, ("Proposed",)),
    Answer("text", {"arithmetic": SMALL | {"network": "UNIQUE"}}, ("UNIQUE",)),
    Answer("text", {"arithmetic": LARGE | {"network": "KonCept512"}}, ("KonCept512",)),
)
ROWS = {  # method of the notebook -> table and row
    "released": {"Table 1": PROPOSED, "Table 2": "Five CFCLs and Four ELUs (Proposed)"},
    "released-3": {"Table 2": "Three CFCLs and Two ELUs"},
    "released-7": {"Table 2": "Seven CFCLs and Six ELUs"},
    "linear": {"Table 1": "UNIQUE-Linear (All databases)"},
    "ranking": {"Table 1": "UNIQUE (All databases)"},
    "paper eq4": {"Table 1": PROPOSED},  # with the loss as printed
    "niqe": {"Table 1": "NIQE"},
}
EASY = "The authors released code and ten files of predictions: the medians follow digit by digit."
DIFFICULT = (
    "Splits are neither shipped nor seeded, the printed loss is not the one the code trains, rows "
    "of other methods come from other splits, and each learned curve is one multiplication."
)


def checks(rows: pd.DataFrame) -> list[Check]:
    """Recompute the weighted columns."""
    tables = ("Table 1", "Table 2")
    return [check for table in tables for check in check_mean(rows, table, "weighted", SIZES)]


def facts(rows: pd.DataFrame) -> Facts:
    """Recompute the claims on the weighted columns, and the cost at the stated size."""
    means = rows.query("table == 'Table 1' and dataset == 'weighted'")
    means = means.set_index(["metric", "method"])["value"]
    floor = 3.6 * (768 / 224) ** 2  # ResNet-34 trunk: 3.6 GMAC at 224 squared
    gflops = rows[rows["method"] == "Proposed"]["value"].iloc[0]
    found: Facts = {"least GMAC with the short side at 768 pixels": [(floor, 2 * floor), gflops]}
    for metric in ("SRCC", "PLCC"):
        words = f"weighted {metric} of the proposed method, called the best"
        found[words] = [means[metric].max(), means[metric][PROPOSED]]
    return found

"""Ponomarenko and others: IMQNet, distilled from KonCept512 over images without scores."""

import numpy as np
import pandas as pd

from iqa_utils.metrics import TEACHER_WEIGHTS
from iqa_utils.workshop.audit import Check, Facts, check_mean
from iqa_utils.workshop.papers import Answer

KEY = "ponomarenko2022"
TITLE = "Ponomarenko et al. 2022: distillation over unlabelled images"
DOI = "10.2352/EI.2022.34.14.COIMG-219"
NOTEBOOKS = ("06_distillation",)
LEDGER = (80, "fd589083135dc636")
STUDENT = "IMQNet pre-trained on TMP by transfer"
DATA = {
    "weighted": {"koniq10k", "flive", "nrtid", "livec", "htid"},
    "average": {"koniq10k", "flive", "livec", "nrtid", "htid", "spaq"},
}
KONCEPT = {"network": "KonCept512", "weights": "imagenet"}
SIX, FIVE = ({"protocol": {"training": f"{n} merged sets"}} for n in ("six", "five"))
STEPS = {"teacher": "six merged sets", "steps": 100000}
IMQNET = {"network": "IMQNet", "weights": "random"}  # a new architecture, "IMQNet training"
TAUGHT = IMQNET | {"recipe": "as written", "protocol": STEPS}
# of the direct training no length is given: as many passes over KonIQ-10k's 7,058 images as 100,000
# steps are over 342,000, or as many steps
DIRECT = IMQNET | {"recipe": ("paper", "same steps"), "protocol": {"steps": (2060, 100000)}}
ANSWERS = (
    Answer("Table 1", {"trained here": KONCEPT | SIX}, ("KonCept512",)),
    Answer("text", {"trained here": TAUGHT}),
    Answer("Table 3", {"trained here": DIRECT}, ("IMQNet trained on",)),
    Answer("Table 3", {"trained here": TAUGHT}, ("IMQNet pre-trained",)),
    Answer("Table 4", {"trained here": KONCEPT | FIVE}, ("K5",)),
    Answer("Table 4", {"trained here": TAUGHT}, ("IMQNet",)),
)
EASY = "The teacher's architecture is public, and every weighted mean follows from its row."
DIFFICULT = (
    "Nothing of the student is released, its widths and loss are not given, the 360,000 images are "
    "not named, and the teacher has seen the scores of the test images."
)


def checks(rows: pd.DataFrame) -> list[Check]:
    """Recompute the weighted and the plain mean."""
    six = dict.fromkeys([*TEACHER_WEIGHTS, "spaq"], 1.0)
    weighted = check_mean(rows, "Table 1", "weighted", TEACHER_WEIGHTS)
    return [*weighted, *check_mean(rows, "Table 4", "average", six)]


def facts(rows: pd.DataFrame) -> Facts:
    """Recompute the order of Table 1."""
    means = rows[(rows["table"] == "Table 1") & (rows["dataset"] == "weighted")]["value"]
    return {"metrics out of order of the weighted mean": [(np.diff(means) > 0).sum()]}

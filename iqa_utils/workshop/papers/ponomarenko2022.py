"""Ponomarenko and others: IMQNet, distilled from KonCept512 over images without scores."""

import numpy as np
import pandas as pd

from iqa_utils.workshop.audit import Check, Facts, check_mean

KEY = "ponomarenko2022"
TITLE = "Ponomarenko et al. 2022: distillation over unlabelled images"
DOI = "10.2352/EI.2022.34.14.COIMG-219"
NOTEBOOKS = ("06_distillation",)
METRICS: dict[str, tuple[str, ...]] = {}
STUDENT = "IMQNet pre-trained on TMP by transfer"
REPEATS = (("Table 4", "IMQNet", "koniq10k", "Table 3", STUDENT, ""),)


def checks(rows: pd.DataFrame) -> list[Check]:
    """Recompute the weighted and the plain mean."""
    from iqa_utils.distill.merging import TEACHER_WEIGHTS

    six = dict.fromkeys([*TEACHER_WEIGHTS, "spaq"], 1.0)
    weighted = check_mean(rows, "Table 1", "weighted", TEACHER_WEIGHTS)
    return weighted + check_mean(rows, "Table 4", "average", six)


def facts(rows: pd.DataFrame) -> Facts:
    """Recompute the order of Table 1."""
    means = rows[(rows["table"] == "Table 1") & (rows["dataset"] == "weighted")]["value"]
    return {"metrics out of order of the weighted mean": [(np.diff(means) > 0).sum()]}

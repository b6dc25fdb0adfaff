"""Toy 2030: the quality of a photograph from its mean brightness."""

import pandas as pd

from iqa_utils.workshop.audit import Check, Facts
from iqa_utils.workshop.papers import Answer

KEY = "toy2030"
TITLE = "Toy 2030: brightness as quality"
DOI = ""
NOTEBOOKS = ("90_toy",)
LEDGER = (2, "b3eac70312a03abe")
METRICS: dict[str, tuple[str, ...]] = {}
ANSWERS = (Answer("Table 1", {"trained here": {"network": "linear", "recipe": "paper"}}),)
EASY = "One feature and one linear layer."
DIFFICULT = "The second camera is not public."


def checks(rows: pd.DataFrame) -> list[Check]:
    """Recompute nothing: the paper prints two numbers that do not depend on each other."""
    return []


def facts(rows: pd.DataFrame) -> Facts:
    """Compute nothing for the prose."""
    return {}

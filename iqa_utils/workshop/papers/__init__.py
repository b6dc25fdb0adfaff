"""One file per paper, found by its name: what only that paper knows.

A module here has KEY, TITLE, DOI, NOTEBOOKS, LEDGER (number and digest of its rows in
``data/claims.csv``), ANSWERS, EASY and DIFFICULT, ``checks(rows)``, which recomputes what no other
paper has, and ``facts(rows)``, what it computes for the numbers of the prose. METRICS, ALIASES and
DATA are needed only where a metric or data set of the ledger bears another name in our results or
stands for several. What is only data lies beside
the ledger: ``headlines.yaml``, ``coverage.csv``, ``repeats.csv``, ``audit_facts.csv`` and
``layer_shapes.csv``.
"""

import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, NamedTuple

import yaml

from iqa_utils.workshop import ROOT


class Answer(NamedTuple):
    """What a result must be to answer rows of a table: for each kind, field by field."""

    table: str
    # kind to needs; a tuple allows any of its values, one of protocols any of them as a whole
    kinds: Mapping[str, Mapping[str, Any]]
    methods: tuple[str, ...] = ("",)  # beginnings of the ledger's methods
    metrics: tuple[str, ...] = ("",)  # beginnings of the ledger's metrics

    def covers(self, claim: Mapping[str, Any]) -> bool:
        """Tell whether a row of the ledger is meant."""
        same = claim["table"] == self.table and claim["method"].startswith(self.methods)
        return same and claim["metric"].startswith(self.metrics)


class Headline(NamedTuple):
    """A main claim of a paper, and the one result that would confirm or refute it.

    It is confirmed where the whole 95 % interval lies beyond ``margin`` on the side of ``expect``,
    refuted where it lies on the other side. ``compare`` names fields of the result; a list allows
    any of its values.
    """

    claim: str
    notebook: str
    compare: Mapping[str, str | int | list[str]]
    expect: Literal["higher", "lower"]
    margin: float = 0.0
    primary: bool = False
    short: str = ""  # this and the next two are for the README
    numbers: bool = False
    price: Sequence[str] = ()  # other metrics of the same comparison

    def says(self, low: float, high: float) -> str:
        """Judge an interval."""
        if self.expect == "lower":
            low, high = -high, -low
        edge = self.margin if self.expect == "higher" else -self.margin
        return "confirmed" if low > edge else "refuted" if high < edge else "undecided"

    def test(self) -> str:
        """Say in words what confirms and what refutes the claim."""
        what = f"{self.compare['metric']} of {self.compare['method']}"
        if baseline := self.compare.get("baseline"):
            what += f" minus {baseline}"
        side, other = ("above", "below") if self.expect == "higher" else ("below", "above")
        where = f"where the 95 % interval of {what} lies {side} {self.margin:g}"
        return f"Confirmed {where}, refuted where it lies {other}."


@cache
def headlines() -> dict[str, list[Headline]]:
    """Read the headline claims of each paper, ``data/headlines.yaml``."""
    entries = yaml.safe_load((ROOT / "data" / "headlines.yaml").read_text())
    return {key: [Headline(**entry) for entry in found] for key, found in entries.items()}


@cache
def papers() -> dict[str, ModuleType]:
    """Return the modules of this folder by their key, in the order of their notebooks."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    found = [import_module(f"{__name__}.{name}") for name in names]
    return {module.KEY: module for module in sorted(found, key=lambda module: module.NOTEBOOKS)}

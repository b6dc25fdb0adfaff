"""One file a paper, found by its name: what only that paper knows.

A module here has KEY, TITLE, REFERENCE, DOI, NOTEBOOKS, LEDGER (number and digest of its rows in
``data/claims.csv``), METRICS, REPEATS, ANSWERS, HEADLINES, ``checks(rows)``, which recomputes what
no other paper has, and ``facts(rows)``, what it computes for the numbers of the prose. What is only
data lies beside the ledger.
"""

import pkgutil
from functools import cache
from importlib import import_module
from types import ModuleType


@cache
def papers() -> dict[str, ModuleType]:
    """Return the modules of this folder by their key, in the order of their notebooks."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    found = [import_module(f"{__name__}.{name}") for name in names]
    return {module.KEY: module for module in sorted(found, key=lambda module: module.NOTEBOOKS)}

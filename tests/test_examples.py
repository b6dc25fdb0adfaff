"""The examples in the docstrings of the science modules are run as they stand."""

import doctest
import pkgutil
from importlib import import_module

import pytest

import iqa_utils

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(iqa_utils.__path__, "iqa_utils.")
    if not module.name.startswith("iqa_utils.workshop")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name):
    assert doctest.testmod(import_module(name)).failed == 0


def test_what_a_researcher_imports_first_has_an_example():
    finder = doctest.DocTestFinder(exclude_empty=True)
    shown = [
        test.name
        for name in MODULES
        for test in finder.find(import_module(name))
        if test.examples and not any(doctest.SKIP in one.options for one in test.examples)
    ]
    assert len(shown) >= 30
    rooms = {name.split(".")[1] for name in shown}
    first = {"samplers", "losses", "imbalance", "metrics", "evaluate", "splits"}
    assert rooms >= first | {"datasets", "features", "regression", "training", "models"}

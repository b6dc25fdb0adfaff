"""Values against their declared types."""

import ast
import re

import papermill
import pytest

from iqa_utils.workshop import notebooks
from iqa_utils.workshop.runs import wrong_types


@pytest.mark.parametrize("stem", notebooks.notebook_stems())
def test_papermill_sees_every_parameter_as_it_is_declared(stem):
    path = notebooks.find_notebook(stem)
    seen = papermill.inspect_notebook(str(path))  # what --help-notebook prints
    types = {name: one["inferred_type_name"] for name, one in seen.items()}
    assert types == notebooks.declared_parameters(path)
    defaults = {name: ast.literal_eval(one["default"]) for name, one in seen.items()}
    assert defaults == notebooks.default_parameters(path)


def test_right_values_are_told_nothing_and_none_is_converted():
    kinds = {"A": int, "B": str | None, "C": list[float], "D": float}
    assert wrong_types(kinds, {"A": 1, "B": None, "C": [1, 2.5], "D": 3}) == []
    assert wrong_types({"A": int}, {"A": True}) == ["A must be int, got True (bool)"]


def test_wrong_values_are_named_in_order_with_the_whole_type():
    kinds = {"A": list[list[int]], "B": str | None, "C": int}
    assert wrong_types(kinds, {"A": [1], "B": 2, "C": 3, "D": "unasked"}) == [
        "A must be list[list[int]], got [1] (list)",
        "B must be str | None, got 2 (int)",
    ]


@pytest.mark.parametrize("value", ["1e-3", "-1E-3", "1.5e3", ["0.1", "1e-3"]])
def test_a_number_that_yaml_read_as_text_says_how_to_write_it(value):
    kind = list[float] if isinstance(value, list) else float
    [told] = wrong_types({"RATE": kind}, {"RATE": value})
    assert told.endswith("(in YAML write 1.0e-3, not 1e-3)")


@pytest.mark.parametrize("value", ["fast", "e-3", "1e-3 or less"])
def test_other_text_gets_no_such_advice(value):
    [told] = wrong_types({"RATE": float}, {"RATE": value})
    assert told == f"RATE must be float, got {value!r} (str)"


COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}


def uncommented(text):
    """Keys of a profile without a comment, but those that "the next N" of one before covers."""
    lines, lost, covered = text.splitlines(), [], 0
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        key = re.match(r"[A-Z_]+(?=:)", line)
        if not key:
            continue
        place = after if line.endswith(":") else line  # a list is commented item by item
        if covered < 1 and " # " not in place and key[0] not in ("PROFILE", "DATA_ROOT"):
            lost.append(key[0])
        covered -= 1
        if following := re.search(r" # .*the next (\w+)", line):
            covered = COUNTS[following[1]]
    return lost


def test_every_value_of_a_paper_profile_says_where_it_comes_from():
    assert uncommented("A: 1  # ours, as the next two\nB: 1\nC: 1\nD: 1\nE:\n  - x") == ["D", "E"]
    paths = sorted((notebooks.NOTEBOOKS / "params").glob("*.paper.yaml"))
    assert len(paths) >= 8
    assert {one.name: lost for one in paths if (lost := uncommented(one.read_text()))} == {}

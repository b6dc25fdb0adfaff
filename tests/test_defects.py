"""What once broke a run at the counts of a paper: each defect is held by a test that is there."""

import ast
from itertools import product
from pathlib import Path
from weakref import WeakSet

import nbformat
import pandas as pd
import pytest

from iqa_utils.datasets import DATASETS
from iqa_utils.workshop import notebooks, plan
from iqa_utils.workshop.jobs import JOBS, parts_of

TESTS = Path(__file__).parent


def names_in(file):
    """Names of the tests in a file; none where there is no such file."""
    path = TESTS.parent / file
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def absent(table):
    rows = [(row.defect, *row.test.split("::")) for row in table.itertuples()]
    return [
        f"{defect}: {file}::{name}" for defect, file, name in rows if name not in names_in(file)
    ]


def test_the_test_of_every_defect_exists():
    table = pd.read_csv(TESTS / "defects.csv")
    assert len(table) > 20
    assert absent(table) == []


def test_a_defect_without_its_test_is_found():
    row = {"defect": "d", "test": "tests/test_defects.py::test_that_is_not_there"}
    assert absent(pd.DataFrame([row])) == [f"d: {row['test']}"]


@pytest.mark.parametrize(("name", "factor"), [("livec", 1.0), ("biq2021", 100.0)])
def test_02_is_planned_on_a_set_without_an_official_validation_set(name, factor):
    values = plan.values_of("02", "paper") | {"DATASET": name, "MOS_FACTOR": factor}
    frame = plan.score_table(name, None)
    parts = parts_of(frame, 0).value_counts()
    shown = {job.name: job for job in JOBS["02"](values, {name: frame})}
    assert parts["validation"] > 0
    assert shown["none"].images == values["EPOCHS"] * parts["training"]
    assert parts.sum() == DATASETS[name].n_images


def test_networks_of_04_are_built_and_let_go_one_by_one():
    """No list keeps a network: beside the one that is built, at most the last one is there."""
    cells = nbformat.read(notebooks.find_notebook("04"), as_version=4).cells
    (cell,) = [cell.source for cell in cells if "for name in NETWORKS_TAPPED:" in cell.source]
    loops = cell[cell.index("found = []") : cell.index("brisque =")]

    class Network:
        pass

    alive, most = WeakSet(), []

    def build(*_):
        network = Network()
        alive.add(network)
        most.append(len(alive))
        return network

    space = {"NETWORKS_TAPPED": list("abcdef"), "NETWORKS_TUNED": list("abc"), "SEED": 0}
    space |= {"TUNING": ["strict", "as_written"], "selection": "x", "tasks": {}, "task": None}
    space |= {"build": build, "tuned": build, "product": product}
    exec(loops, space | {"by_layer": lambda network, name, *_, **labels: name})  # of our notebook
    assert len(most) == 6 + 2 * 3
    assert max(most) == 2


def test_the_published_files_of_biq2021_are_known_by_their_hashes():
    assert DATASETS["biq2021"].checked == {
        "Train (Images and MOS).csv": "1f0c28a28d78903c",
        "Test (Images and MOS).csv": "2f8579d5e9647015",
    }

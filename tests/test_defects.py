"""What once broke a run at the counts of a paper: each defect is held by a test that is there."""

import ast
from html import escape
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from weakref import WeakSet

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from iqa_utils import datasets, indicators
from iqa_utils.datasets import DATASETS
from iqa_utils.splits import check_disjoint, official_or_content_split
from iqa_utils.workshop import claims, demo, notebooks, plan
from iqa_utils.workshop.jobs import JOBS, parts_of
from iqa_utils.workshop.plots import common

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


def run_cell(stem, name, space):
    cells = nbformat.read(notebooks.find_notebook(stem), as_version=4).cells
    exec(next(cell.source for cell in cells if cell.id == name), space)  # of our notebook
    return space


def test_02_splits_a_set_without_an_official_split(tmp_path):
    demo.make_demo(tmp_path, scale=0.3, sets=("livec",))
    space = {"DATASET": "livec", "MOS_FACTOR": 1.0, "PRETRAINED": "random", "device": "cpu"}
    space |= {"root": tmp_path, "run": SimpleNamespace(use_data=lambda frame: frame)}
    space |= {"cache_dir": tmp_path.joinpath, "display": lambda *_: None, "np": np, "torch": torch}
    space |= {"datasets": datasets, "indicators": indicators, "check_disjoint": check_disjoint}
    space |= {"official_or_content_split": official_or_content_split}
    found = run_cell("02", "load", space)
    assert found["frame"]["split"].isna().all()
    n = {name: len(rows) for name, rows in found["rows"].items()}
    assert sum(n.values()) == len(found["frame"]) == len(found["numbers"])
    assert n["training"] > n["test"] > 0
    assert n["validation"] > 0


def test_the_board_of_02_shows_the_reason_of_every_verdict():
    row = claims.load_claims().query("paper == 'lehmann2023' and table == 'Tab. 4'").iloc[0]
    keys = ("paper", "table", "method", "dataset", "metric")
    result = {key: row[key] for key in keys} | {"value": 0.5, "data": row["dataset"]}
    result |= {"ci_low": 0.4, "ci_high": 0.6, "n": 100, "n_runs": 1, "variant": "small"}
    shown, run = [], SimpleNamespace(results=[result], paper=row["paper"])
    space = {"claims": claims, "common": common, "display": shown.append, "run": run}
    board = run_cell("02", "compare", space)["board"]
    (answered,) = board[board["ours"].notna()].to_dict("records")
    assert len(answered["reason"]) > 10
    assert f">{escape(answered['reason'])}</td>" in shown[0].to_html()


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

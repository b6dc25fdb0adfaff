import nbformat
import pytest

from tests.make_golden import COMPARED, GOLDEN, IGNORED, STEMS, golden_source


@pytest.mark.parametrize("stem", STEMS)
def test_golden_copies_are_of_the_current_notebooks(stem):
    wanted = golden_source(stem).cells
    kept = nbformat.read(GOLDEN / f"{stem}.ipynb", as_version=4).cells
    assert [c.source for c in kept] == [c.source for c in wanted], "run tests/make_golden.py"
    assert [c.metadata for c in kept] == [c.metadata for c in wanted], "run tests/make_golden.py"


@pytest.mark.parametrize("stem", STEMS)
def test_golden_copies_compare_nearly_everything(stem):
    cells = list(nbformat.read(GOLDEN / f"{stem}.ipynb", as_version=4).cells)
    code = [c for c in cells if c.cell_type == "code"]
    compared = [c for c in code if COMPARED in c.metadata["tags"]]
    assert len(compared) >= len(code) - 2
    assert all(c.execution_count for c in code)  # nbval compares nothing without it
    assert sum(bool(c.outputs) for c in compared) > len(compared) / 2
    assert sum(IGNORED in c.metadata["tags"] for c in code) >= 1

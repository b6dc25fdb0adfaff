"""Every published run comes from the code that is here."""

import nbformat

from iqa_utils.workshop.notebooks import RELATIVE_LINK
from iqa_utils.workshop.paper_pages import has_changed
from iqa_utils.workshop.runs import ROOT

# their trainings need a GPU for hours; the README marks them
MAY_BE_STALE = {"02_cross_sampling/biq2021", "06_distillation/biq2021"}


def test_published_runs_are_of_the_present_code_but_for_those_that_need_a_gpu():
    folders = sorted(path.parent for path in (ROOT / "figures").glob("*/*/metrics.json"))
    assert all((folder / "provenance.json").is_file() for folder in folders)
    stale = {f"{one.parent.name}/{one.name}" for one in folders if has_changed(one)}
    left = sorted(stale - MAY_BE_STALE)
    assert not left, f"code has changed since: run again with --publish: {', '.join(left)}"


def test_links_of_published_notebooks_lead_to_files():
    found = 0
    for path in (ROOT / "figures").glob("*/*/*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        targets = [link[2] for link in RELATIVE_LINK.finditer(text)]
        lost = [target for target in targets if not (path.parent / target).exists()]
        assert not lost, f"{path.relative_to(ROOT)}: no file at {', '.join(lost)}"
        found += len(targets)
    assert found > 20

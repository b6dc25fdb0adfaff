"""Every published run comes from the code that is here."""

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

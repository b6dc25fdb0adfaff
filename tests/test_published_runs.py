"""Every published run comes from the code and the data files that are here."""

import json

import nbformat
import pytest

from iqa_utils.workshop.committed import data_digest, data_files
from iqa_utils.workshop.notebooks import RELATIVE_LINK
from iqa_utils.workshop.paper_pages import has_changed
from iqa_utils.workshop.runs import ROOT, find_runs

PUBLISHED = sorted((ROOT / "figures").glob("*/*/provenance.json"))
CHANGED = {  # data files that are others than published runs found, and why no run is touched
    "iqa_utils/weights/quality.safetensors": "trained again; no published run reads it, see below",
    "data/headlines.yaml": "only `short` and `numbers`, which the README's rows read",
}
UNSAID = {  # results of networks trained here that do not say a field; a number may only fall
    "02_cross_sampling/biq2021": {"network": 10},  # seconds of an epoch, Tab. 5
    "03_mixed_datasets/biq2021": {"recipe": 33, "protocol": 33},
    "03_mixed_datasets/biq2021_mixture": {"recipe": 10, "protocol": 10},
    "04_deep_features_gpr/biq2021": {"weights": 24, "recipe": 926},  # all of table "control"
    "04_deep_features_gpr/biq2021_384": {"weights": 24, "recipe": 434},
    "04_deep_features_gpr/depth": {"weights": 24, "recipe": 2172},
    "06_distillation/biq2021": {"recipe": 54, "protocol": 54},
}


def test_published_runs_are_of_the_present_code():
    folders = sorted(path.parent for path in (ROOT / "figures").glob("*/*/metrics.json"))
    assert all((folder / "provenance.json").is_file() for folder in folders)
    stale = {f"{one.parent.name}/{one.name}" for one in folders if has_changed(one)}
    told = f"code has changed since: run again with --publish: {', '.join(sorted(stale))}"
    assert not stale, told


def changed_data(digests, commits):
    """Files of which one of the commits had another content than is here now."""
    found = set()
    for name, by in digests.items():
        path = ROOT / name
        now = data_digest(name, path.read_bytes()) if path.is_file() else ""
        found |= {name for commit in commits if commit in by and by[commit] != now}
    return found


def test_data_files_of_published_runs_have_not_changed_since():
    digests = json.loads((ROOT / "figures" / "data_files.json").read_text())
    commits = {json.loads(path.read_text())["commit"] for path in PUBLISHED}
    kept = {commit for by in digests.values() for commit in by}
    assert kept == commits, "run: iqa report --readme"
    for commit in commits:
        if seen := data_files(commit):  # a shallow checkout lacks it
            assert seen == {name: by[commit] for name, by in digests.items() if commit in by}
    changed = changed_data(digests, commits) - set(CHANGED)
    assert not changed, f"{', '.join(sorted(changed))} changed: run again with --publish"


def test_a_changed_data_file_is_found_and_a_comment_is_no_change(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    texts = {"a.csv": b"x\n1\n", "b.yaml": b"x: 1  # one\n"}
    digests = {name: {"c0": data_digest(name, text)} for name, text in texts.items()}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    (tmp_path / "b.yaml").write_bytes(b"# other words\nx: 1\n")
    assert changed_data(digests, {"c0"}) == set()
    (tmp_path / "a.csv").write_bytes(b"x\n2\n")
    (tmp_path / "b.yaml").unlink()
    assert changed_data(digests, {"c0"}) == {"a.csv", "b.yaml"}


def test_no_published_run_reads_the_model_of_this_repository():
    for path in PUBLISHED:
        seen = json.loads(path.read_text())
        files = [one["file"] for one in seen["weights"].values()]
        assert "quality.safetensors" not in [*files, seen["parameters"]["PRETRAINED"]]
        assert all(files), path


@pytest.mark.parametrize(
    "run", find_runs(ROOT / "figures"), ids=lambda run: f"{run['stem']}-{run['profile']}"
)
def test_results_of_trained_networks_say_what_they_are_but_for_known_gaps(run):
    trained = [result for result in run["results"] if result["kind"] == "trained here"]
    fields = ("network", "weights", "recipe", "protocol")
    counted = {field: sum(not result[field] for result in trained) for field in fields}
    unsaid = {field: n for field, n in counted.items() if n}
    assert unsaid == UNSAID.get(f"{run['stem']}/{run['profile']}", {})


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

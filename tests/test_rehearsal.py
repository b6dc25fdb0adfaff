"""A rehearsal replaces what two cores cannot hold, and nothing that a paper states."""

import json

import pytest
import yaml

from iqa_utils.workshop import claims, notebooks, paper_pages, runs
from iqa_utils.workshop.rehearsal import rehearsals
from iqa_utils.workshop.sweeps import grid_path, read_grid

SMALL = "its true value needs a large GPU"
PIXELS = "decoding and training at true size need a large GPU"
SHORT = "an epoch, a run or a draw shows what a hundred would"
EVERYWHERE = {
    "PROFILE": "names the runs",
    "DATA_ROOT": "generated pictures in the official layouts",
    "PRETRAINED": "no weights are needed for the way through",
    "N_RESAMPLES": SHORT,
    "THREADS": "two notebooks share two cores",
    "SAVE_SECONDS": "states are saved often enough for a kill to find one",
    "OVERRIDES": "two epochs, two runs, bf16 and compilation in one training each; few steps",
}
ALLOWED = {
    "02_cross_sampling": {
        "BACKBONE": SMALL, "KONCEPT_BACKBONE": SMALL, "PLANE_SIZE": PIXELS,
        "PRECISION": "no bf16 on a CPU", "COMPILE": "likewise",
        "SIZE": PIXELS, "RESOLUTIONS": PIXELS, "STEP": PIXELS, "EPOCHS": SHORT, "N_RUNS": SHORT,
        "N_RUNS_MODELS": SHORT, "STEP_BACKBONES": SMALL,
    },
    "03_mixed_datasets": {
        "BACKBONE": SMALL, "SIZE": PIXELS, "EPOCHS": SHORT, "N_SPLITS": SHORT,
        "NIQE_PATCH": PIXELS, "SIDES": PIXELS, "PRECISION": "no bf16 on a CPU",
        "RELEASED_SCORES": "predictions of the authors, no training of ours",
    },
    "04_deep_features_gpr": {
        "NETWORKS_TAPPED": SMALL, "NETWORKS_TUNED": SMALL, "FINAL": SMALL, "SIDE": PIXELS,
        "TUNING_SIDE": PIXELS, "EPOCHS": SHORT, "N_SPLITS": SHORT, "N_TRIALS": SHORT,
        "N_STEPS": SHORT, "N_CROPS": SHORT, "PRECISION": "no bf16 on a CPU",
    },
    "05_lds_fds": {
        "ENCODER": SMALL, "IMAGE_SIZE": PIXELS, "EPOCHS": SHORT, "N_SEEDS": SHORT,
    },
    "06_distillation": {
        "BACKBONE": SMALL, "HEAD": SMALL, "STUDENT": SMALL, "CROP": PIXELS, "TEACHER_SIZE": PIXELS,
        "CONTROL_SIZE": PIXELS, "N_UNLABELLED": "a hundredth", "N_KEPT": "a hundredth",
        "TEACHER_PLAN": "steps only", "STUDENT_PLAN": "steps only", "CONTROL_PLAN": "steps only",
        "PRECISION": "no bf16 on a CPU", "COMPILE": "likewise",
    },
    "07_scoreboard": {"RESULT_ROOTS": "reads the runs of the rehearsal and no others"},
}  # fmt: skip


def overlay():
    return [
        (key, key.partition("-")[0], values) for key, values in notebooks.read_overlay().items()
    ]


def test_every_notebook_that_trains_is_rehearsed_and_04_twice():
    stems = [stem for stem, _ in rehearsals()]
    assert sorted(stems) == sorted([*ALLOWED, "04_deep_features_gpr"])
    assert stems[-1] == "07_scoreboard"


def forbidden(stem, values):
    """Names that a rehearsal may not replace, though their values differ from the paper's."""
    paper = notebooks.read_profile(stem, "paper")
    changed = {name for name, value in values.items() if paper.get(name) != value}
    return changed - set(EVERYWHERE) - set(ALLOWED[stem])


def test_the_overlay_replaces_only_what_is_allowed():
    assert {key: forbidden(stem, values) for key, stem, values in overlay()} == {
        key: set() for key, *_ in overlay()
    }


def test_a_value_of_the_paper_in_the_overlay_is_found():
    assert forbidden("02_cross_sampling", {"BATCH_SIZE": 8, "EDGES": [0.0, 50.0, 100.0]}) == {
        "BATCH_SIZE",
        "EDGES",
    }
    for name in ("METHODS", "THRESHOLD", "SELECT_MODELS", "SELECT_SAMPLERS", "TUNING", "SVR_C"):
        assert all(name not in EVERYWHERE | allowed for allowed in ALLOWED.values())


def test_plans_of_distillation_change_their_steps_alone():
    paper = notebooks.read_profile("06_distillation", "paper")
    mine = notebooks.read_profile("06_distillation", "rehearsal")
    for plan in ("TEACHER_PLAN", "STUDENT_PLAN", "CONTROL_PLAN"):
        assert mine[plan][1:3] == paper[plan][1:3], "batch size and learning rate are the paper's"
    assert mine["N_UNLABELLED"] == [n // 100 for n in paper["N_UNLABELLED"]]
    assert mine["N_KEPT"] == paper["N_KEPT"] // 100


def test_the_final_network_of_04_is_rehearsed_by_the_papers_recipe_in_fewer_steps():
    paper, mine = (
        notebooks.read_profile("04_deep_features_gpr", name) for name in ("paper", "rehearsal")
    )
    papers, ours = (profile["OVERRIDES"][profile["FINAL"][0]] for profile in (paper, mine))
    assert ours["AUGMENT"] == papers["AUGMENT"]
    assert 0 < ours["N_STEPS"] < papers["N_STEPS"]


def test_the_profile_is_the_papers_under_the_overlay_with_declared_types():
    for key, stem, values in overlay():
        profile = notebooks.read_profile(stem, "rehearsal")
        notebooks.check_parameters(notebooks.find_notebook(stem), {**profile, **values})
        kept = {k: v for k, v in notebooks.read_profile(stem, "paper").items() if k not in profile}
        assert not kept, key


def test_the_grid_has_the_keys_and_the_order_of_the_papers():
    ours, papers = (yaml.safe_load(grid_path(p).read_text()) for p in ("rehearsal", "paper"))
    assert list(ours) == [stem for stem in papers if stem in ALLOWED]
    for stem, entry in ours.items():
        keys = list(papers[stem]["grid"])
        assert [key for key in entry["grid"] if key in keys] == keys
        assert all(len(values) == 1 for key, values in entry["grid"].items() if key not in keys)
        after = [s for s in papers[stem].get("after", []) if s in ours]
        assert list(entry.get("after", [])) == after
    jobs = [job.stem for job in read_grid(grid_path("rehearsal"))]
    assert all(jobs.count(stem) == (1 if stem.startswith("07") else 2) for stem in ALLOWED)


@pytest.fixture
def rehearsed(tmp_path):
    """A rehearsal that answers every row of the ledger with the paper's own number."""
    ledger = claims.load_claims()
    rows = ledger[["paper", "table", "method", "dataset", "metric", "value"]].to_dict("records")
    for row in rows:
        row |= dict.fromkeys(("ci_low", "ci_high", "n"), None)
        row |= {"n_runs": 1, "variant": "", "data": "demo"}
    folder = tmp_path / "runs" / "rehearsal" / "02_cross_sampling"
    folder.mkdir(parents=True)
    content = {"stem": folder.name, "profile": "rehearsal", "parameters": {}, "results": rows}
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def test_no_rehearsed_number_gets_a_verdict(rehearsed):
    found = runs.find_runs(rehearsed.parent, rehearsal=True)
    board = claims.compare(paper_pages.real_results(found))
    assert board["ours"].isna().all()
    assert set(board["verdict"]) <= {"not run", "inconsistent", "implausible"}


def test_a_rehearsal_is_read_by_its_own_scoreboard_alone(rehearsed):
    assert runs.find_runs(rehearsed.parent) == []
    assert len(runs.find_runs(rehearsed.parent, rehearsal=True)) == 1


def test_a_rehearsal_is_never_published(rehearsed):
    (rehearsed / "provenance.json").write_text(json.dumps({"demo": False}))
    with pytest.raises(ValueError, match="is a rehearsal; only real results are published"):
        notebooks.publish(rehearsed)


def test_a_notebook_without_a_rehearsal_is_named():
    with pytest.raises(ValueError, match="no rehearsal of 00_claims_audit"):
        rehearsals(["00"])

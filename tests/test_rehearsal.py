"""A rehearsal replaces what two cores cannot hold, and nothing that a paper states."""

import json
import time

import pytest
import torch
import yaml
from typer.testing import CliRunner

from iqa_utils.features.layers import create_network
from iqa_utils.workshop import claims, notebooks, paper_pages, rehearsal, report, runs
from iqa_utils.workshop.cli import app
from iqa_utils.workshop.jobs import JOBS, Job
from iqa_utils.workshop.plan import score_table, sets_of, values_of
from iqa_utils.workshop.rehearsal import rehearsals
from iqa_utils.workshop.sweeps import grid_path, read_grid

SMALL = "its true value needs a large GPU"
PIXELS = "decoding and training at true size need a large GPU"
SHORT = "an epoch, a run or a draw shows what a hundred would"
BF16 = "bf16 is slow on a CPU: one training of each kind of network has it"
COMPILER = "compiling takes longer than a short training: one of each kind of network is compiled"
FEW = "decoding 360,000 crops takes hours; a hundredth has every step of it"
STEPS = "100,000 steps need a large GPU; batch size and learning rate stay"
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
        "PRECISION": BF16, "COMPILE": COMPILER,
        "SIZE": PIXELS, "RESOLUTIONS": PIXELS, "STEP": PIXELS, "EPOCHS": SHORT, "N_RUNS": SHORT,
        "N_RUNS_MODELS": SHORT, "STEP_BACKBONES": SMALL,
    },
    "03_mixed_datasets": {
        "BACKBONE": SMALL, "SIZE": PIXELS, "EPOCHS": SHORT, "N_SPLITS": SHORT,
        "NIQE_PATCH": PIXELS, "SIDES": PIXELS, "PRECISION": BF16,
        "KONCEPT_BACKBONE": SMALL, "KONCEPT_SIZE": PIXELS, "KONCEPT_EPOCHS": SHORT,
        "RELEASED_SCORES": "predictions of the authors, no training of ours",
    },
    "04_deep_features_gpr": {
        "NETWORKS_TAPPED": SMALL, "NETWORKS_TUNED": SMALL, "FINAL": SMALL, "SIDE": PIXELS,
        "TUNING_SIDE": PIXELS, "EPOCHS": SHORT, "N_SPLITS": SHORT, "N_TRIALS": SHORT,
        "N_STEPS": SHORT, "N_CROPS": SHORT, "PRECISION": BF16,
    },
    "05_lds_fds": {
        "ENCODER": SMALL, "IMAGE_SIZE": PIXELS, "EPOCHS": SHORT, "N_SEEDS": SHORT,
    },
    "06_distillation": {
        "BACKBONE": SMALL, "HEAD": SMALL, "STUDENT": SMALL, "CROP": PIXELS, "TEACHER_SIZE": PIXELS,
        "CONTROL_SIZE": PIXELS, "N_UNLABELLED": FEW, "N_KEPT": FEW,
        "TEACHER_PLAN": STEPS, "STUDENT_PLAN": STEPS, "CONTROL_PLAN": STEPS,
        "PRECISION": BF16, "COMPILE": COMPILER,
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


def test_final_networks_of_04_normalise_batches_or_random_weights_die_at_the_papers_rate():
    finals = {values["FINAL"][0] for _, _, values in overlay() if "FINAL" in values}
    for name in finals:
        with torch.device("meta"):
            network = create_network(name, pretrained="random")
        assert any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules()), name
    assert finals


SHORTER = {"EPOCHS", "N_STEPS", "N_RUNS", "N_SPLITS", "N_SEEDS"}


def overridden(key, stem, values):
    """Yield training, its own settings, those that the paper profile gives the same training."""
    paper = notebooks.read_profile(stem, "paper")
    final = {values.get("FINAL", paper.get("FINAL", [""]))[0]: paper.get("FINAL", [""])[0]}
    for name, own in values.get("OVERRIDES", {}).items():
        papers = paper.get("OVERRIDES", {}).get(final.get(name, name), {})
        yield f"{key}, {name}", own, {"EPOCHS": paper.get("EPOCHS")} | papers, paper


def wrong_overrides(runs):
    """List settings of single trainings that are neither the paper's nor made shorter."""
    found = []
    for run in runs:
        for name, own, papers, paper in overridden(*run):
            for setting in sorted((set(own) | set(papers)) - SHORTER):
                expected = papers.get(setting, paper.get(setting, True))  # COMPILE is a speed
                if own.get(setting) != expected:
                    found.append(f"{name}: {setting} {own.get(setting)}, the paper's {expected}")
    return found


def test_settings_of_single_trainings_are_the_papers_or_shorter():
    assert wrong_overrides(overlay()) == []


def test_a_setting_of_a_single_training_that_is_not_the_papers_is_found():
    name, stem = "squeezenet1_0", "04_deep_features_gpr"
    own = {"N_STEPS": 20, "AUGMENT": False, "PRECISION": "fp32"}
    planted = {"FINAL": [name, "logits"], "OVERRIDES": {name: own}}
    assert wrong_overrides([(stem, stem, planted)]) == [
        f"{stem}, {name}: AUGMENT False, the paper's True",
        f"{stem}, {name}: LEARNING_RATE None, the paper's 0.003",
        f"{stem}, {name}: PRECISION fp32, the paper's bf16",
    ]


def test_the_recipe_of_a_final_network_stands_in_every_run_of_it():
    for key, stem, values in overlay():
        paper = notebooks.read_profile(stem, "paper")
        if papers := paper.get("OVERRIDES", {}).get(paper.get("FINAL", [""])[0]):
            own = values["OVERRIDES"][values.get("FINAL", paper["FINAL"])[0]]
            assert set(papers) - SHORTER <= set(own), key


def test_epochs_and_repeats_are_one_and_two_in_one_training():
    counts = {"N_RUNS", "N_RUNS_MODELS", "N_SPLITS", "N_SEEDS"}
    twice = {stem: {"EPOCHS": 0, "N": 0} for stem in ALLOWED if not stem.startswith("07")}
    for _, stem, values in overlay():
        own = {k: v for k, v in values.items() if k in counts or k.endswith("EPOCHS")}
        assert set(own.values()) <= {1, 2}
        for settings in [own, *values.get("OVERRIDES", {}).values()]:
            for name, value in settings.items():
                group = "EPOCHS" if name.endswith("EPOCHS") else "N" if name in counts else ""
                twice[stem][group] = twice[stem].get(group, 0) + (group != "" and value == 2)
    assert {stem: found["EPOCHS"] for stem, found in twice.items()} == dict.fromkeys(twice, 1)
    repeated = {stem: found["N"] for stem, found in twice.items()}
    assert repeated == dict.fromkeys(twice, 1) | {"06_distillation": 0}  # one seed, as the paper


def test_precision_and_handling_of_bad_files_are_those_of_a_large_gpu_in_the_paper_profiles():
    for stem in ("02_cross_sampling", "03_mixed_datasets", "04_deep_features_gpr"):
        assert notebooks.read_profile(stem, "paper")["PRECISION"] == "bf16"
    distilled = notebooks.read_profile("06_distillation", "paper")
    assert (distilled["PRECISION"], distilled["COMPILE"]) == ("bf16", True)
    assert distilled["ON_BAD_IMAGE"] == "drop"


IN_06 = {  # its plan counts trainings by the plan of their steps, not by their names
    "IMQNet": ["distilled, 3420 images"],
    "KonCept": ["teacher-training", "pretrained, distilled"],  # two sizes of head
}


def architecture(job):
    """Name of a network without its trunk, its depth and its sizes."""
    return job.network.partition(" ")[0].partition("-")[0]


def trainings(stem, values):
    """Yield kind of network, precision and compilation of each training that a plan counts."""
    tables = {name: score_table(name, None) for name in sets_of(values)}
    for job in JOBS[stem[:2]](values, tables):
        if isinstance(job, Job) and job.steps:
            own = [{"PRECISION": job.precision, "COMPILE": job.compile}]
            if stem.startswith("06"):
                own += [values["OVERRIDES"].get(name, {}) for name in IN_06[architecture(job)]]
            for settings in own:
                yield architecture(job), settings.get("PRECISION"), settings.get("COMPILE", False)


def never_rehearsed(stem, runs):
    """Name what the paper profile trains in bf16, or compiles, and no rehearsed training does."""
    paper = set(trainings(stem, values_of(stem, "paper")))
    ours = {one for values in runs for one in trainings(stem, values)}
    absent = {f"{kind}: bf16" for kind, precision, _ in paper if precision == "bf16"}
    absent |= {f"{kind}: compiled" for kind, _, compiled in paper if compiled}
    absent -= {f"{kind}: bf16" for kind, precision, _ in ours if precision == "bf16"}
    return sorted(absent - {f"{kind}: compiled" for kind, _, compiled in ours if compiled})


def runs_of(stem):
    return [
        values_of(stem, "rehearsal") | own for own_stem, own in rehearsals() if stem == own_stem
    ]


@pytest.mark.parametrize("stem", [stem for stem in ALLOWED if stem[:2] in JOBS])
def test_every_kind_of_network_is_rehearsed_once_in_the_precision_of_the_paper(stem):
    assert never_rehearsed(stem, runs_of(stem)) == []


def test_a_kind_of_network_that_no_rehearsal_trains_in_bf16_is_found():
    (values,) = runs_of("02_cross_sampling")
    own = {name: one for name, one in values["OVERRIDES"].items() if name != "plain"}
    found = never_rehearsed("02_cross_sampling", [values | {"OVERRIDES": own}])
    assert found == ["plain: bf16", "plain: compiled"]
    (values,) = runs_of("06_distillation")
    own = {name: one for name, one in values["OVERRIDES"].items() if "distilled, " not in name}
    found = never_rehearsed("06_distillation", [values | {"OVERRIDES": own}])
    assert found == ["IMQNet: bf16", "IMQNet: compiled"]


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


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A rehearsal whose notebooks run for a minute, and 02 for two after a kill, or fail."""
    failing, commits = set(), ["abc"]

    def run_jobs(jobs, **_):
        outcomes = []
        for stem, own in jobs:
            folder = runs.run_dir(stem, "rehearsal", own.get("RUN_NAME", ""))
            folder.mkdir(parents=True, exist_ok=True)
            killed = int(stem.startswith("02"))
            content = {"seconds": 59.0 + 61 * killed, "killed_attempts": killed}
            (folder / "provenance.json").write_text(json.dumps(content))
            failed = f"{folder.name} broke" if folder.name in failing else ""
            outcomes.append((folder.name, 60.0, failed))
        return outcomes

    for module in (rehearsal, runs):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(rehearsal, "ensure_rehearsal_data", lambda *_, **__: {})
    monkeypatch.setattr(rehearsal.provenance, "commit", lambda: (commits[-1], True))
    monkeypatch.setattr(notebooks, "run_jobs", run_jobs)
    return tmp_path, failing, commits


def test_a_rehearsal_leaves_what_each_run_took_and_names_no_machine(fake):
    folder, *_ = fake
    assert rehearsal.rehearse(keep_times=True) == []
    kept = folder / "figures/rehearsal/times.json"
    assert kept.read_text() == (folder / "runs/rehearsal/times.json").read_text()
    seen = json.loads(kept.read_text())
    facts = {"commit", "clean", "cpu", "cores", "torch", "workers", "calls", "runs"}
    assert set(seen) == facts | {"data", "annotations"}
    assert len(seen["runs"]) == len(rehearsals())
    sampling, board = seen["runs"]["02_cross_sampling"], seen["runs"]["07_scoreboard"]
    assert (sampling["seconds"], sampling["attempts"], sampling["threads"]) == (120.0, 2, 1)
    assert (board["seconds"], board["attempts"], board["trainings"]) == (60.0, 1, {})
    n_methods = len(notebooks.read_profile("05_lds_fds", "rehearsal")["METHODS"])
    assert sum(seen["runs"]["05_lds_fds"]["trainings"].values()) == n_methods + 1  # one twice
    assert seen["runs"]["04_deep_features_gpr-networks"]["trainings"]["vgg16"] == 2  # two modes


def test_times_are_kept_only_where_every_run_finished_at_one_commit(fake):
    folder, failing, commits = fake
    kept, failed = folder / "figures/rehearsal/times.json", "06_distillation"
    failing.add(failed)
    broke, told = rehearsal.rehearse(keep_times=True)
    assert broke == f"{failed} broke"
    assert told == f"times are not kept: at this commit {failed} did not finish"
    assert not kept.exists()
    failing.clear()
    commits.append("def")  # the others ran older code
    assert len(rehearsal.rehearse([failed], keep_times=True)) == 1
    commits.append("abc")
    rehearsal.rehearse([])
    assert rehearsal.rehearse([failed], keep_times=True) == []
    assert len(json.loads(kept.read_text())["calls"]) == 2


def test_the_site_says_what_the_kept_rehearsal_took(fake):
    folder, *_ = fake
    kept = folder / "figures/rehearsal/times.json"
    assert report.rehearsal_table(kept).startswith("No times of a rehearsal are kept")
    rehearsal.rehearse(keep_times=True)
    table = report.rehearsal_table(kept)
    (row,) = [line for line in table.splitlines() if "06_distillation" in line]
    assert "| 1.0 | 1 | 1 |" in row
    assert "IMQNet" in row
    assert "2 at a time, commit abc: 0 minutes in all." in table


def test_times_say_what_the_data_sets_took_and_whose_scores_they_have(fake, monkeypatch):
    folder, *_ = fake
    log, root = folder / "runs/rehearsal/times.json", folder / "data/rehearsal"

    def make(*_, **__):
        root.mkdir(parents=True, exist_ok=True)
        (root / "a").write_bytes(bytes(3_000_000))
        (root / "b").unlink(missing_ok=True)
        (root / "b").hardlink_to(root / "a")
        time.sleep(0.11)

    monkeypatch.setattr(rehearsal, "ensure_rehearsal_data", make)
    for least in (0.1, 0.2):  # calls add up
        rehearsal.rehearse(["05"])
        seen = json.loads(log.read_text())
        assert seen["data"]["bytes"] == 3_000_000
        assert seen["data"]["seconds"] >= least
        assert seen["annotations"] is False
    assert "all sets take 3 MB" in report.rehearsal_table(log)
    assert "Scores are synthetic." in report.rehearsal_table(log)
    rehearsal.rehearse(["06"], annotations=folder)
    seen = json.loads(log.read_text())
    assert (seen["annotations"], list(seen["runs"])) == (True, ["06_distillation"])  # not mixed
    assert "Scores are real where they were given." in report.rehearsal_table(log)
    for name in ("data", "annotations"):
        del seen[name]  # as times were kept before
    log.write_text(json.dumps(seen))
    assert report.rehearsal_table(log).endswith("minutes in all.")


def test_the_command_keeps_times_of_a_rehearsal_and_not_of_true_sizes(monkeypatch):
    asked = []
    monkeypatch.setattr(rehearsal, "rehearse", lambda stems, **how: asked.append((stems, how)))
    run = CliRunner().invoke(app, ["rehearse", "05", "--keep-times"])
    assert run.exit_code == 0
    assert asked == [(["05"], {"annotations": None, "keep_times": True})]
    run = CliRunner().invoke(app, ["rehearse", "--true-size", "--keep-times"])
    assert "--keep-times belongs to a rehearsal" in str(run.exception)

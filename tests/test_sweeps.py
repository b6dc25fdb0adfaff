import json
import shlex

import numpy as np
import pandas as pd
import pytest

from iqa_utils.workshop import cli, notebooks, runs, sweeps
from iqa_utils.workshop.runs import RESULT_COLUMNS

CELL = dict.fromkeys(RESULT_COLUMNS) | {
    "paper": "p", "table": "T", "dataset": "d", "metric": "SRCC", "n": 50, "n_runs": 1,
    "variant": "", "data": "biq2021",
}  # fmt: skip
SCORES = {0: {"a": 0.50, "b": 0.60}, 1: {"a": 0.54, "b": 0.66}, 2: {"a": 0.52, "b": 0.72}}


@pytest.fixture
def repo(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    return tmp_path


def grid_file(tmp_path, text):
    path = tmp_path / "demo.yaml"
    path.write_text(text)
    return path


def test_a_grid_is_every_combination_in_order(tmp_path):
    path = grid_file(
        tmp_path,
        "07_scoreboard:\n  grid: {SEED: [0, 1], PROFILE: [demo, paper]}\n  gpus: 0\n",
    )
    jobs = sweeps.read_grid(path)
    assert [job.run_name for job in jobs] == [
        "grid.SEED-0.PROFILE-demo", "grid.SEED-0.PROFILE-paper",
        "grid.SEED-1.PROFILE-demo", "grid.SEED-1.PROFILE-paper",
    ]  # fmt: skip
    assert jobs[3].parameters == {"SEED": 1, "PROFILE": "paper"}
    assert {job.gpus for job in jobs} == {0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("07_scoreboard:\n  grid: {SEEDS: [0]}\n", "SEEDS is not one of"),
        ("07_scoreboard:\n  grid: {SEED: ['0']}\n", "SEED must be int, got '0'"),
        ("70_none:\n  grid: {SEED: [0]}\n", "no notebook '70_none'"),
        ("07_scoreboard:\n  grid: {SEED: [0]}\n  gpu: 1\n", r"unknown \['gpu'\]"),
        ("07_scoreboard:\n  grid: {SEED: [0]}\n  after: [02_x]\n", "which the grid does not run"),
        ("07_scoreboard:\n  grid: {SEED: [0]}\n  after: 5\n", "07_scoreboard: after must be list"),
        ("07_scoreboard:\n  grid: {SEED: [0]}\n  gpus: null\n", "07_scoreboard: gpus must be int"),
        ("07_scoreboard:\n  grid: {SEED: [0]}\n  gpus: many\n", "gpus must be int, got 'many'"),
        (
            "05_lds_fds:\n  grid: {PRETRAINED: [data/a.pth, data_a.pth]}\n",
            r"2 combinations of values would share the run name grid\.PRETRAINED-data_a_pth",
        ),
    ],
)
def test_a_mistake_in_a_grid_is_named_before_anything_runs(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        sweeps.read_grid(grid_file(tmp_path, text))


def test_an_unknown_grid_names_those_there_are(tmp_path):
    grid_file(tmp_path, "")
    with pytest.raises(FileNotFoundError, match=r"no grid big\.yaml; there are demo"):
        sweeps.read_grid(tmp_path / "big.yaml")


def test_every_grid_of_the_repository_fits_its_notebooks():
    for path in sweeps.grid_path("demo").parent.glob("*.yaml"):
        jobs = sweeps.read_grid(path)
        assert len({(job.stem, job.run_name) for job in jobs}) == len(jobs)
        for job in jobs:
            values = notebooks.read_profile(job.stem, path.stem) | dict(job.parameters)
            notebooks.check_parameters(notebooks.find_notebook(job.stem), values)


@pytest.mark.parametrize(
    ("stem", "values", "step"),
    [
        ("02_cross_sampling", "N_RUNS: [1], N_RUNS_MODELS: [3]", 3),
        ("03_mixed_datasets", "N_SPLITS: [4]", 4),
        ("04_deep_features_gpr", "TUNING: [[strict]]", 3),  # the three splits of the demo
        ("05_lds_fds", "ENCODER: [test_resnet, test_efficientnet]", 2),
        ("06_distillation", "MERGE: [linear]", 1),
    ],
)
def test_no_two_repeats_may_share_a_training(tmp_path, stem, values, step):
    text = f"{stem}:\n  grid: {{{values}, SEED: [{7 + step}, 7]}}\n"
    assert sweeps.read_grid(grid_file(tmp_path, text))
    text = text.replace(f"[{7 + step},", f"[{6 + step},")
    message = rf"{stem}: SEED {min(7, 6 + step)} uses.*step SEED by {step}$"
    with pytest.raises(ValueError, match=message):
        sweeps.read_grid(grid_file(tmp_path, text))


def test_every_notebook_with_several_runs_is_known_to_the_seed_check():
    # the number of runs or splits is whatever parameter starts with one of these words
    counts = set()
    for stem in notebooks.notebook_stems():
        declared = notebooks.default_parameters(notebooks.find_notebook(stem))
        counts |= {n for n in declared if n.startswith(("N_RUNS", "N_SPLITS", "N_SEEDS"))}
    assert counts == set(sweeps.COUNTS)


def finish(repo, job, methods):
    folder = runs.run_dir(job.stem, "test", job.run_name)
    folder.mkdir(parents=True)
    results = [CELL | {"method": m, "value": v} for m, v in methods.items()]
    (folder / "metrics.json").write_text(json.dumps({"results": results}))


def seeds(*, backbones=("x",)):
    found = []
    for backbone in backbones:
        for seed in SCORES:
            values = {"SEED": seed, "BACKBONE": backbone}
            found.append(sweeps.GridRun("02_x", sweeps.run_name(values), values))
    return found


def test_repeats_become_a_mean_with_its_interval(repo):
    jobs = seeds()
    for job in jobs:
        finish(repo, job, SCORES[job.parameters["SEED"]])
    folder = sweeps.aggregate("02_x", "test", jobs)
    results = json.loads((folder / "metrics.json").read_text())["results"]
    assert [r["method"] for r in results] == ["a", "b"]
    a = results[0]
    assert a["value"] == pytest.approx(0.52)
    assert a["n_runs"] == 3
    half = 4.302652729911275 * 0.02 / np.sqrt(3)  # t of 2 degrees of freedom at 97.5 %
    assert (a["ci_low"], a["ci_high"]) == pytest.approx((0.52 - half, 0.52 + half))
    assert a["variant"] == "BACKBONE=x"
    table = pd.read_csv(folder / "aggregate.csv")
    assert table["sd"].tolist() == pytest.approx([0.02, 0.06])
    assert table["median"].tolist() == pytest.approx([0.52, 0.66])


def test_only_repeats_are_put_together(repo):
    jobs = seeds(backbones=("x", "y"))
    for job in jobs:
        finish(repo, job, {"a": SCORES[job.parameters["SEED"]]["a"]})
    folder = sweeps.aggregate("02_x", "test", jobs)
    results = json.loads((folder / "metrics.json").read_text())["results"]
    assert [(r["variant"], r["n_runs"]) for r in results] == [("BACKBONE=x", 3), ("BACKBONE=y", 3)]


def test_a_method_in_two_lists_counts_once_and_its_variant_does_not_name_the_lists(repo):
    jobs = []
    for seed in (0, 2):
        for methods in (["a"], ["a", "b"]):
            values = {"SEED": seed, "METHODS": methods}
            jobs.append(sweeps.GridRun("02_x", sweeps.run_name(values), values))
            # as if the second training of `a` ended elsewhere, on other hardware
            scores = {m: 0.5 + 0.1 * seed + 0.01 * len(methods) for m in methods}
            finish(repo, jobs[-1], scores)
    folder = sweeps.aggregate("02_x", "test", jobs)
    results = json.loads((folder / "metrics.json").read_text())["results"]
    assert [(r["method"], r["variant"], r["n_runs"]) for r in results] == [
        ("a", "", 2),
        ("b", "", 2),
    ]
    assert [r["value"] for r in results] == pytest.approx([0.61, 0.62])  # the first list's `a`


def test_a_single_run_has_no_interval(repo):
    jobs = seeds()[:1]
    finish(repo, jobs[0], {"a": 0.5})
    folder = sweeps.aggregate("02_x", "test", jobs)
    result = json.loads((folder / "metrics.json").read_text())["results"][0]
    assert result["ci_low"] is None
    assert result["n_runs"] == 1


def test_what_finished_is_aggregated_and_what_did_not_is_named(repo, capsys):
    jobs = seeds()
    with pytest.raises(FileNotFoundError, match="02_x: no run of the grid has finished"):
        sweeps.aggregate("02_x", "test", jobs)
    finish(repo, jobs[1], {"a": 0.5})
    capsys.readouterr()
    content = json.loads((sweeps.aggregate("02_x", "test", jobs) / "metrics.json").read_text())
    missing = ["grid.SEED-0.BACKBONE-x", "grid.SEED-2.BACKBONE-x"]
    told = f"02_x: 1 of 3 runs finished, not {', '.join(missing)}\n"
    assert capsys.readouterr().out == told
    assert content["parameters"]["MISSING"] == missing
    assert [row["n_runs"] for row in content["results"]] == [1]


def test_a_broken_run_is_named_and_counts_as_missing(repo, capsys):
    jobs = seeds()
    for job in jobs:
        finish(repo, job, {"=a": 0.5})
    torn = runs.run_dir("02_x", "test", jobs[0].run_name) / "metrics.json"
    torn.write_text("")
    folder = sweeps.aggregate("02_x", "test", jobs)
    told = capsys.readouterr().out
    assert f"left out: {torn}: expected JSON with names and values" in told
    assert f"2 of 3 runs finished, not {jobs[0].run_name}" in told
    assert pd.read_csv(folder / "aggregate.csv")["method"].tolist() == ["'=a"]  # text, no formula


VALUES = {
    "RATE": 1e-5, "N": 3, "ON": True, "NONE": None, "EMPTY": "", "WORD": "true", "PATH": "/a b/c",
    "LONG": ["LDS, then FDS", "single:x", "a" * 200], "MAP": {"0": 0.5, "deep": [[1, 2], []]},
}  # fmt: skip


def test_parameters_come_back_from_the_command_line_as_they_were():
    words = shlex.split(sweeps.command_line(VALUES))
    assert cli._split_parameters(["02", *words]) == (["02"], VALUES)


def test_numbers_that_became_text_on_the_way_are_numbers_again():
    expected = {"ROOT": "/data/iqa", "NAME": "", "RATE": 1e-5, "NONE": None, "SIZES": [[1, 2]]}
    text = expected | {"RATE": "1.0e-5", "NONE": "null", "SIZES": [["1", "2"]]}
    assert sweeps.typed(text) == expected
    assert sweeps.typed(sweeps.typed(text)) == expected
    assert sweeps.typed('{"ROOT": "/data/iqa", "N": 3}') == {"ROOT": "/data/iqa", "N": 3}
    assert sweeps.typed({}) == {}

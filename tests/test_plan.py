"""What a profile asks for: counted by hand, against published sizes, and against the samplers."""

import json
import math
from collections import Counter
from functools import partial
from types import SimpleNamespace
from unittest.mock import MagicMock

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from iqa_utils import samplers
from iqa_utils.datasets import DATASETS
from iqa_utils.features.layers import create_network, layers_of
from iqa_utils.images import build_store
from iqa_utils.models.dual_xception import KonCept
from iqa_utils.workshop import notebooks, paper_pages, plan, runs
from iqa_utils.workshop.cli import app
from iqa_utils.workshop.disk import Disk, decoded_before, folder_bytes, stored_bytes, stores
from iqa_utils.workshop.jobs import JOBS, Job, disk_of, parts_of, sampling_runs, to_fetch
from iqa_utils.workshop.plan import footprint, kind, preflight, seconds

PHOTOS = ["a.png", "b.png", "c.png", "d.png", "e.png"]


def job(build, size, **more):
    facts = {"name": "one", "network": "small", "batch": 4, "images": 8, "steps": 2}
    return Job(build=build, size=size, **{**facts, **more})


def two_layers():
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 1))


def jobs_of(stem, profile, root=None, **changes):
    values = plan.values_of(stem, profile) | changes
    tables = {name: plan.score_table(name, root) for name in plan.sets_of(values)}
    return values, list(JOBS[stem[:2]](values, tables))


def test_memory_is_what_a_hand_counts_for_two_layers():
    seen = footprint(job(two_layers, (10,)))
    n_weights = 10 * 20 + 20 + 20 + 1
    assert seen.weights == 4 * n_weights
    assert seen.training == 4 * n_weights + 8 * n_weights  # gradients, two moments
    assert seen.activations == 4 * (4 * 10 + 4 * 20)  # the input, and the ReLU's output once
    assert seen.flops == 2 * (10 * 20 + 20)


def test_bf16_halves_what_autocast_stores_and_counts_its_copies_of_weights():
    seen = footprint(job(two_layers, (10,), precision="bf16"))
    assert seen.weights == 4 * (10 * 20 + 20 + 20 + 1)
    # input, ReLU, and the second layer's weights, which the gradient of its input needs
    assert seen.activations == 2 * (4 * 10 + 4 * 20 + 20)


def test_a_pass_keeps_nothing_for_a_backward_pass():
    seen = footprint(job(two_layers, (10,), steps=0))
    assert (seen.training, seen.activations) == (0, 0)


@pytest.mark.parametrize(
    ("build", "batch_size", "size", "gigabytes"),
    [
        (lambda: create_network("nasnetalarge", pretrained="random"), 16, (3, 331, 331), 14.9),
        (KonCept, 32, (3, 384, 512), 13.3),
    ],
)
def test_large_networks_keep_the_activations_that_were_measured(build, batch_size, size, gigabytes):
    seen = footprint(job(build, size, batch=batch_size))
    assert seen.activations / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_a_frozen_beginning_keeps_no_activations():
    changes = {"BACKBONE": "mobilenetv2_050", "KONCEPT_BACKBONE": "mobilenetv2_050"}
    kept = {}
    for frozen in ("", "blocks.4"):
        _, jobs = jobs_of("02", "demo", FROZEN=frozen, SIZE=[64, 64], **changes)
        kept[frozen] = footprint(jobs[0])
    assert kept["blocks.4"].activations < kept[""].activations / 2
    assert kept["blocks.4"].training < kept[""].training


def test_the_paper_profile_of_02_shows_the_images_of_every_sampler():
    values, jobs = jobs_of("02", "paper")
    shown = {one.name: one for one in jobs}
    for name, images in zip(samplers.METHODS, (7058, 645, 903, 2193, 1826), strict=True):
        equal_steps = round(60 * 7058 / images)  # the samplers, not their rivals
        for method, epochs in ((name, equal_steps), (f"KonCept512, {name}", 60)):
            assert shown[method].images == epochs * images
            assert shown[method].steps == epochs * (images // 4 + (images % 4 > 1))  # no lone image
    assert sum(one.count for one in jobs) == 210  # "512x384" is "Images" again
    assert len(sampling_runs(values)) == 220


@pytest.mark.parametrize("profile", ["demo", "biq2021", "full_xception", "paper"])
def test_02_is_planned_as_its_cells_train_it(profile):
    values, called = plan.values_of("02", profile), []

    def train_all(stage, scenarios, n_runs, select, size=tuple(values["SIZE"]), equal_steps=False):
        for name, scenario in scenarios.items():
            called.extend((name, scenario, select, seed, size) for seed in range(n_runs))
        return MagicMock()

    notebook = nbformat.read(notebooks.find_notebook("02"), as_version=4)
    marks = ("scenarios = ", "at_sizes = ", "= train_all(", 'train_all("resolutions"')
    cells = [c.source for c in notebook.cells if any(mark in c.source for mark in marks)]
    space = {name: MagicMock() for name in ("runs", "display")}
    space |= {"train_all": train_all, "samplers": samplers, "decode": tuple} | values
    for cell in cells:
        exec(cell, space)  # of our own notebook
    assert sorted(sampling_runs(values), key=str) == sorted(called, key=str)


def cells_of(stem, *marks):
    """Return of a notebook the one cell that holds each mark."""
    notebook = nbformat.read(notebooks.find_notebook(stem), as_version=4)
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    cells = [[source for source in sources if mark in source] for mark in marks]
    assert [len(found) for found in cells] == [1] * len(marks)
    return [source for (source,) in cells]


def planned(stem, profile, once, **changes):
    """Return every training with its epochs, by comparison with a plan of one, and the values."""
    values, jobs = jobs_of(stem, profile, **changes)
    _, short = jobs_of(stem, profile, **{**changes, **once})
    pairs = [pair for pair in zip(jobs, short, strict=True) if isinstance(pair[0], Job)]
    found = {job.name: (job, job.images / one.images) for job, one in pairs if job.steps}
    return found, values


@pytest.mark.parametrize("profile", ["demo", "biq2021", "biq2021_mixture", "paper"])
def test_03_is_planned_as_its_cells_train_it(profile):
    own = {"linear": {"EPOCHS": 2, "N_SPLITS": 1}, "ranking": {"N_SPLITS": 12}}
    once = {"EPOCHS": 1, "KONCEPT_EPOCHS": 1}
    once["OVERRIDES"] = {name: {**one, "EPOCHS": 1} for name, one in own.items()}
    jobs, values = planned("03", profile, once, OVERRIDES=own)
    called, fitted = Counter(), SimpleNamespace(seconds=0.0, history=MagicMock(), best=None)

    def train(name, k):
        called[name, space["settings"][name]["EPOCHS"], network(name)] += 1
        return MagicMock(), {}, fitted

    def network(name):
        method = space["methods"][name]
        return "KonCept" if name == "KonCept512" else f"{method['variant']}-{method['n_layers']}"

    load, define, loop = cells_of("03", "n_splits = max(", "singles = {", "for k, name in [(k, m)")
    names = [*(values["SUBSET_WARPS"] or values["SETS"]), *["distorted"][: values["DISTORTED"]]]
    space = {name: MagicMock() for name in ("run", "predict_test", "mixed_sets", "time")}
    space["time"].perf_counter.return_value = 0.0
    space |= {"runs": runs, "math": math, "train": train, "frames": dict.fromkeys(names)} | values
    counted = next(line for line in load.splitlines() if line.startswith("n_splits = "))
    for cell in (counted, define, loop):
        exec(cell, space)  # of our own notebook
    found = {
        (name, epochs, job.network.partition(" ")[0]): job.count
        for name, (job, epochs) in jobs.items()
    }
    assert found == called


@pytest.mark.parametrize("profile", ["demo", "biq2021", "biq2021_raw", "paper"])
def test_05_is_planned_as_its_cells_train_it(profile):
    own = {"LDS": {"EPOCHS": 2, "N_SEEDS": 12}, "vanilla": {"N_SEEDS": 1}}
    once = {"EPOCHS": 1, "OVERRIDES": {name: {**one, "EPOCHS": 1} for name, one in own.items()}}
    jobs, values = planned("05", profile, once, OVERRIDES=own)
    called = Counter()

    def train(name, seed, heads):
        called[name, eval(epochs, space | {"name": name})] += 1  # of our own notebook
        return MagicMock(), MagicMock()

    one, loop = cells_of("05", "def train(", "= train(name, seed, heads)")
    (epochs,) = [line.partition(" = ")[2] for line in one.splitlines() if " epochs = " in line]
    space = {name: MagicMock() for name in ("frame", "test", "recipes", "predict_all")}
    space |= {"runs": runs, "train": train} | values
    exec(loop.partition("history = pd.concat")[0], space)
    assert values["PANEL"] == {}
    assert {(name, epochs): job.count for name, (job, epochs) in jobs.items()} == called


def test_every_setting_of_the_panel_of_05_is_planned():
    _, jobs = jobs_of("05", "sensitivity")
    heads = {(one.name, one.network): one.count for one in jobs if one.name.startswith("panel")}
    assert len(heads) == 6  # two forms, three sizes
    assert set(heads.values()) == {2 * 3 * 2 * 3}  # methods, seeds, targets and rates


def test_only_the_named_trainings_of_02_are_planned_and_their_counts_stay():
    every, chosen = (
        {one.name: one.images for one in jobs_of("02", "demo", ONLY=only)[1]}
        for only in ([], ["none", "method2"])
    )
    assert set(chosen) == {"none", "method2"} < set(every)
    assert all(every[name] == images for name, images in chosen.items())
    _, jobs = jobs_of("02", "full_xception")
    assert {one.name: one.count for one in jobs} == {"none": 3, "method2": 3}
    assert {(one.network, one.size, one.batch) for one in jobs} == {
        ("dual legacy_xception 64", (3, 384, 384), 4)
    }


def test_the_demo_of_02_trains_what_its_samplers_draw():
    values = plan.values_of("02", "demo")
    scores = np.random.default_rng(0).uniform(0, 100, 240)
    frame = pd.DataFrame({"image": [f"{i}.png" for i in range(240)], "mos": scores})
    frame = frame.assign(reference=frame["image"], split=np.repeat(["training", "test"], 120))
    frame.attrs["dataset"] = "koniq10k"
    jobs = list(JOBS["02"](values, {"koniq10k": frame}))
    training = frame["mos"][parts_of(frame, 0) == "training"].to_numpy()
    draw = {"edges": values["EDGES"], "threshold": values["THRESHOLD"], "seed": 0, "epoch": 0}
    for one in jobs:
        if one.name in samplers.METHODS:
            drawn = samplers.cross_sample(training, one.name, **draw)
            epochs = max(values["EPOCHS"], round(values["EPOCHS"] * len(training) / len(drawn)))
            assert one.images == epochs * len(drawn)


def test_overrides_of_single_trainings_are_planned():
    own = {"method1": {"EPOCHS": 7, "N_RUNS": 3, "PRECISION": "bf16", "COMPILE": True}}
    _, jobs = jobs_of("02", "demo", OVERRIDES=own, N_RUNS=1, EQUAL_STEPS=False)
    changed = {one.name: one for one in jobs}
    one = changed["method1"]
    assert (one.count, one.precision, one.compile) == (3, "bf16", True)
    assert one.images == 7 * changed["KonCept512, method1"].images / 2
    assert changed["method2"].count == 1


def test_mixed_batches_cycle_the_smaller_sets():
    _, jobs = jobs_of("03", "paper")
    shown = {one.name: one for one in jobs}
    n = 6125  # 49 of 81 reference images of KADID-10k, with 125 images each
    assert shown["released"].images == 24 * 6 * n
    assert shown["released"].steps == 24 * -(-n // 32)
    assert shown["single:koniq10k"].images == 24 * 6043


def test_koncept512_is_planned_in_03_with_its_own_size_batches_and_epochs():
    values, jobs = jobs_of("03", "paper")
    (one,) = [job for job in jobs if job.name == "KonCept512"]
    assert (one.images, one.steps, one.count) == (60 * 6043, 60 * -(-6043 // 16), 10)
    assert (one.size, one.batch) == ((3, 384, 512), 16)
    seen = footprint(one)
    assert seen.weights / 4e6 == pytest.approx(59.9, abs=0.1)  # its parameters and statistics
    assert seen.flops / 2e9 == pytest.approx(29.7, abs=0.1)
    decoded = stores("03", values, {"koniq10k": plan.score_table("koniq10k", None)})
    assert decoded["decoded, 512x384"] == 10073 * 3 * 384 * 512
    _, jobs = jobs_of("03", "demo")
    (one,) = [job for job in jobs if job.name == "KonCept512"]
    assert one.size == (1280, 3, 3)  # maps of the frozen trunk
    assert footprint(one).weights / 4e6 < 6  # the head alone


def test_the_set_of_distorted_pictures_is_planned_beside_the_photographs():
    jobs = plan.make_plan("03", "biq2021_mixture", official=True)["jobs"]
    images = {job["name"]: job["images"] for job in jobs}
    # 24 of 40 references, each clean and at five levels of four distortions; 10 epochs, 5 splits
    assert images["single:distorted"] == 24 * 21 * 10 * 5
    assert "single:biq2021" in images


def test_no_network_of_04_is_tuned_twice_on_the_same_images():
    values, jobs = jobs_of("04", "paper")
    tuned = [one for one in jobs if isinstance(one, Job) and one.steps]
    # eight networks in two modes; NASNet on the other sets, and on whole families, strictly
    assert sum(one.count for one in tuned) == 16 + 3 + 3
    grams, moment = (one for one in jobs if isinstance(one, Disk))
    n_layers = {name: len(layers_of(name)) for name in values["NETWORKS_TAPPED"]}
    n_tuned = sum(n_layers[name] for name in values["NETWORKS_TUNED"])
    assert grams.size == 4 * 3000 * 3001 * (sum(n_layers.values()) + 2 * n_tuned)
    assert not moment.kept


def test_the_steps_of_an_epoch_of_fine_tuning_may_be_cut():
    _, jobs = jobs_of("04", "demo", N_STEPS=3)
    tuned = [one for one in jobs if isinstance(one, Job) and one.steps]
    assert {(one.steps, one.images) for one in tuned} == {(2 * 3, 2 * 3 * 16)}


def test_every_student_of_06_is_planned():
    _, jobs = jobs_of("06", "paper")
    steps = {one.name: one.count * one.steps for one in jobs}
    assert steps["distilled"] == (3 + 7) * 100_000
    assert sum(n for name, n in steps.items() if name.startswith("teacher of")) == 8 * 40_000
    passes = next(one for one in jobs if one.name == "teacher passes")
    assert (passes.images, passes.count) == (360_000, 8)


def test_official_splits_and_ranges_add_up():
    for name, info in DATASETS.items():
        assert sum(info.split_sizes) in (0, info.n_images), name
        assert not info.ranges or sum(info.ranges) == info.split_sizes[0]
    frame = plan.score_table("live", None)
    assert frame["reference"].nunique() == 29
    assert frame["distortion"].value_counts()[["jp2k", "jpeg"]].tolist() == [169, 175]


def test_time_follows_the_rate_that_is_given():
    one = job(two_layers, (10,), images=900, watched=300, count=2)
    seen = footprint(one)
    assert seconds(one, seen, rate=10.0) == 2 * (90 + 10)
    streamed = job(two_layers, (10,), images=3000, files=True)
    assert seconds(streamed, seen) == 2.0  # 1,500 files a second


@pytest.mark.slow
@pytest.mark.parametrize("stem", notebooks.notebook_stems())
def test_every_profile_has_a_plan(stem):
    for profile in notebooks.profiles_of(stem):
        told = plan.plan_lines(plan.make_plan(stem, profile, official=True))
        assert told[0] == f"{stem}, profile {profile}"


def test_the_table_of_what_the_paper_profiles_ask_for_is_what_their_plans_say(monkeypatch):
    counted = plan.Footprint(weights=10**9, training=0, activations=0, flops=1e9, layers=9)
    monkeypatch.setattr(plan, "footprint", lambda job: counted)
    rows = [line.split(" | ") for line in paper_pages.needs_table().splitlines() if "|" in line]
    told, numbers = {row[0].removeprefix("| "): row for row in rows}, []
    for stem in notebooks.stems_with("paper"):
        found = plan.make_plan(stem, "paper", official=True)
        if found["jobs"]:
            numbers.append(stem[:2])
            _, _, trainings, images, disk, memory, hours = told[stem[:2]]
            assert trainings == f"{found['trainings']:,}"
            assert images == f"{found['images'] / 1e6:.1f} million"
            assert disk.startswith(f"{sum(found['disk'].values()) / 1e9:.0f} GB")
            assert memory == "1.0 GB"
            assert hours.startswith(f"{found['hours']:.1f}, {found['source']}")
    assert numbers == list(plan.TRAINED_BY)
    page = (notebooks.ROOT / "docs" / "howto" / "gpu.md").read_text()
    assert "../generated/needs.md" in page


def test_the_command_tells_a_plan_as_text_and_as_json():
    runner = CliRunner()
    told = runner.invoke(app, ["plan", "05", "--profile", "demo"])
    assert "LDS + FDS" in told.output
    assert "trainings" in told.output
    found = json.loads(runner.invoke(app, ["plan", "05", "--profile", "demo", "--json"]).output)
    assert found[0]["trainings"] == 5 * 2


def test_a_plan_says_what_it_counted_and_what_it_could_not_and_rounds_nothing_to_zero():
    told = plan.plan_lines(plan.make_plan("05", "demo", official=True))
    assert "  counted by official numbers of images: koniq10k (10,073)" in told
    assert [line.split()[-1] for line in told if "vanilla" in line] == ["<0.01"]  # hours
    told = plan.plan_lines(plan.make_plan("05", "internal", official=True))
    assert "  not counted: table, of unknown size" in told
    assert not any("official numbers" in line for line in told)
    told = plan.plan_lines(plan.make_plan("08", "biq2021", official=True))
    assert told == ["08_across_data_sets, profile biq2021", "  trains no network"]


def test_a_run_names_all_that_is_missing_before_it_starts(tmp_path):
    parameters = {"DATA_ROOT": str(tmp_path), "PRETRAINED": str(tmp_path / "weights.pth")}
    with pytest.raises(ValueError, match=r"(?s)02_cross.* koniq10k: .*expected a.*weights\.pth"):
        notebooks.run_notebook("02", profile="paper", parameters=parameters, check=preflight)


def test_a_folder_of_weights_is_looked_through(tmp_path):
    (tmp_path / "squeezenet-imagenet.pth").touch()
    changes = {"NETWORKS_TAPPED": ["squeezenet", "vgg16"], "FINAL": ["squeezenet", "logits"]}
    values = plan.values_of("04", "demo") | {**changes, "PRETRAINED": str(tmp_path)}
    assert plan.missing(values) == [f"no weights at {tmp_path / 'vgg16'}-imagenet.pth"]


@pytest.fixture
def one_set(tmp_path, monkeypatch):
    """A set of five photographs, in a repository of its own."""
    folder = tmp_path / "data" / "table"
    folder.mkdir(parents=True)
    rows = [f"{name},{score}\n" for score, name in enumerate(PHOTOS)]
    (folder / "scores.csv").write_text("".join(["image,mos\n", *rows]))
    for name in PHOTOS:
        Image.new("RGB", (40, 30)).save(folder / name)
    monkeypatch.setattr(plan, "ROOT", tmp_path)
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    return tmp_path


def check(repository, free, monkeypatch, **changes):
    """Return what preflight says of 05 where so many bytes are free."""
    values = plan.values_of("05", "internal") | {"DATA_ROOT": str(repository / "data")}
    with monkeypatch.context() as patch:
        patch.setattr(plan.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        return preflight("05_lds_fds", values | {"PRETRAINED": "random"} | changes)


def decode(repository, names, size, fit="squash", root="data"):
    options = {"size": size, "fit": fit, "progress": False}
    return build_store(repository / root, names, repository / "runs/cache/stores", **options)


def test_a_full_disk_is_noticed_before_anything_is_decoded(one_set, monkeypatch):
    wanted = 5 * 3 * plan.values_of("05", "internal")["IMAGE_SIZE"] ** 2
    assert check(one_set, 10 * wanted, monkeypatch) == []
    (problem,) = check(one_set, wanted, monkeypatch)  # their features have no room
    assert problem.startswith(f"needs more than the {wanted / 1e9:.3g} GB of disk that are free")
    assert problem.partition(": ")[2].startswith("decoded images ")
    assert "features" in problem


def test_only_what_the_run_itself_has_decoded_is_not_asked_for_again(one_set, monkeypatch):
    side = plan.values_of("05", "internal")["IMAGE_SIZE"]
    free = 5 * 3 * side**2 - 1
    (one_set / "data" / "other").mkdir()
    Image.new("RGB", (900, 900)).save(one_set / "data" / "other" / "c.png")
    decode(one_set, ["c.png"], (900, 900), root="data/other")
    decode(one_set, PHOTOS, (side + 8, side + 8), root="data/table")  # of another size
    assert check(one_set, free, monkeypatch)
    decode(one_set, PHOTOS, (side, side), root="data/table")
    assert check(one_set, free, monkeypatch) == []


def test_each_store_of_a_run_is_known_by_its_images_and_their_sizes(one_set):
    values = plan.values_of("06", "demo") | {"LABELLED": ["table"], "TEACHER_SIZE": [12, 16]}
    values |= {"CROP": [20, 24], "STREAM": True}
    tables = {"table": plan.score_table("table", one_set / "data")}
    caches, names = one_set / "runs/cache/stores", [f"table/{name}" for name in PHOTOS]
    decode(one_set, names, (12, 16))
    decode(one_set, names, 20, "shrink_short_side")
    decode(one_set, names[::-1], (12, 16))  # other rows
    found = decoded_before("06", values, tables, caches)
    assert found == sum(stores("06", values, tables).values()) == 5 * 3 * (12 * 16 + 20 * 26)
    native = plan.values_of("04", "demo") | {"DATASETS": ["table"], "TAP_SIZE": 0}
    assert decoded_before("04", native, tables, caches) == 0
    decode(one_set, names, None, "native")
    assert decoded_before("04", native, tables, caches) == 5 * 3 * 30 * 40


def test_both_stores_of_06_are_planned():
    values = plan.values_of("06", "paper")
    tables = {name: plan.score_table(name, None) for name in values["LABELLED"]}
    n = sum(map(len, tables.values()))
    found = stores("06", values, tables)
    assert found["decoded, 512x384"] == n * 3 * 384 * 512
    assert found["decoded, shorter side 768"] > found["decoded, 512x384"]
    assert sum(found.values()) > 100e9


@pytest.mark.parametrize("stem", ["03", "04", "05"])
def test_checkpoints_and_matrices_are_counted_alike_by_the_plan_and_before_a_run(stem):
    values = plan.values_of(stem, "demo")
    tables = {name: plan.score_table(name, None) for name in plan.sets_of(values)}
    found = plan.make_plan(stem, "demo", official=True)
    left = disk_of(stem, values, tables)
    kept = {name: size for name, size in found["disk"].items() if "decoded" not in name}
    assert {one.name: one.size for one in left if one.kept} == kept
    assert sum(one.size for one in left if not one.kept) == found["moment"]


def test_what_networks_have_left_before_is_not_asked_for_again(one_set, monkeypatch):
    values = plan.values_of("04", "demo") | {"DATASETS": ["table"]}
    tables = {"table": plan.score_table("table", one_set / "data")}
    wanted = [Disk("Gram matrices", 360), Disk("pass", 99, kept=False), Disk("checkpoints", 7)]
    monkeypatch.setattr("iqa_utils.workshop.jobs.disk_of", lambda *_: wanted)
    left = partial(plan._left_by_networks, "04_x", values, tables, one_set)
    assert left() == {"Gram matrices": 360, "pass": 99, "checkpoints": 7}
    saved = one_set / "runs" / values["PROFILE"] / ".04_x.partial" / "checkpoints"
    saved.mkdir(parents=True)
    (saved / "one.pt").write_bytes(bytes(5))
    np.save(one_set / "gram-other.npy", np.zeros((40, 41), np.float32))  # of another set
    for k in range(3):
        np.save(one_set / f"gram-layer-{k}.npy", np.zeros((5, 6), np.float32))
    assert left() == {"Gram matrices": 0, "checkpoints": 2}  # and nothing is left to spool


def test_weights_that_will_be_fetched_are_named_before_a_run(one_set, monkeypatch, capsys):
    monkeypatch.setattr("iqa_utils.workshop.jobs.to_fetch", lambda _: ["some_network"])
    assert check(one_set, 10**12, monkeypatch, PRETRAINED="hub") == []
    told = "05_lds_fds: weights to be fetched from the hub: some_network\n"
    assert capsys.readouterr().out == told


def test_images_that_are_there_give_the_size_of_their_set(tmp_path):
    folder = tmp_path / "table"
    folder.mkdir()
    (folder / "scores.csv").write_text("image,mos\na.png,1\nb.png,2\n")
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    values = plan.values_of("04", "demo") | {"DATASETS": ["table"]}
    tables = {"table": plan.score_table("table", tmp_path)}
    assert stores("04", values, tables) == {"decoded, native size": 2 * 3 * 30 * 40}
    assert stored_bytes((30, 40), 15) == 3 * 15 * 20
    assert stored_bytes((30, 40), 60) == 3 * 30 * 40  # never enlarged


def test_weights_of_the_hub_are_looked_for_in_its_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("iqa_utils.workshop.jobs.try_to_load_from_cache", lambda *_: None)
    values = plan.values_of("02", "paper")
    assert to_fetch(values) == ["legacy_xception", "inception_resnet_v2"]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "xception-43020ad28.pth").touch()
    assert to_fetch(values) == ["inception_resnet_v2"]
    monkeypatch.setattr("iqa_utils.workshop.jobs.try_to_load_from_cache", lambda *_: "a file")
    assert to_fetch(values) == []
    assert to_fetch(values | {"PRETRAINED": "random"}) == []


def test_a_check_before_a_run_does_not_import_torch():
    import subprocess
    import sys

    code = (
        "import sys; from iqa_utils.workshop.plan import preflight, values_of; "
        "preflight('06_distillation', values_of('06', 'paper') | {'DATA_ROOT': '/nowhere'}); "
        "preflight('01_dataset_analysis', values_of('01', 'paper')); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_card_at_hand_is_taken_else_that_with_most_rows_and_it_is_named(tmp_path, monkeypatch):
    _, jobs = jobs_of("05", "demo")
    encoder = {"kind": kind(jobs[0]), "images_per_s": 10.0}
    head = {"kind": kind(jobs[1]), "images_per_s": 100.0}
    for card, rows in (("A", [encoder, head]), ("B", [head | {"images_per_s": 7.0}])):
        (tmp_path / f"{card}.json").write_text(json.dumps({"card": card, "rows": rows}))
    for here, taken, rate in (("cpu", "A", 100.0), ("B", "B", 7.0), ("A", "A", 100.0)):
        monkeypatch.setattr(plan, "device_name", lambda here=here: here)
        card, rows = plan.measured.__wrapped__(tmp_path)
        assert (card, rows[head["kind"]]["images_per_s"]) == (taken, rate)
        found = plan.make_plan("05", "demo", official=True, rates=(card, rows))
        assert f"measured on {taken}" in found["source"]


def test_a_speed_that_was_measured_with_other_input_is_said_to_be(tmp_path):
    _, jobs = jobs_of("05", "demo")
    rows = {kind(one): {"images_per_s": 1.0, "input": "whole images"} for one in jobs[:2]}
    found = plan.make_plan("05", "demo", official=True, rates=("Card", rows))
    assert found["source"] == "measured on Card with whole images"


def test_an_infinite_rate_is_refused():
    run = CliRunner().invoke(app, ["plan", "05", "--profile", "demo", "--rate", "inf"])
    assert str(run.exception) == "the rate is inf images/s, not a finite number above 0"


def test_a_file_with_several_names_is_counted_once(tmp_path):
    (tmp_path / "a").write_bytes(bytes(5))
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").write_bytes(bytes(5))
    assert folder_bytes(tmp_path) == 10
    assert folder_bytes(tmp_path / "absent") == 0


def test_published_speeds_replace_computed_times(tmp_path, monkeypatch):
    values, jobs = jobs_of("05", "demo")
    row = {"kind": kind(jobs[1]), "images_per_s": 100.0}
    (tmp_path / "card.json").write_text(json.dumps({"card": "Card", "rows": [row]}))
    known = plan.measured.__wrapped__(tmp_path)
    monkeypatch.setattr(plan, "measured", lambda: known)
    found = plan.make_plan("05", "demo", official=True)
    assert found["source"] == "computed and measured on Card"
    hours = {one["name"]: one["hours"] for one in found["jobs"]}
    n = jobs[1].images + jobs[1].watched / 3
    assert hours["LDS"] == pytest.approx(values["N_SEEDS"] * n / 100 / 3600)

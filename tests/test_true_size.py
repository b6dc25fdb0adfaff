"""The few steps at true size: here at small size on the CPU, to try the mechanism."""

import json
from functools import partial

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from iqa_utils.workshop import plan, true_size
from iqa_utils.workshop.cli import app
from iqa_utils.workshop.jobs import JOBS, Job
from iqa_utils.workshop.plan import footprint, score_table, sets_of, values_of

CPU = torch.device("cpu")


def job(**more):
    def build():
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
        )

    facts = {"name": "one", "network": "small", "size": (3, 24, 32), "batch": 4, "images": 8}
    return Job(build=build, **{**facts, "steps": 2, **more})


@pytest.mark.parametrize("more", [{}, {"files": True}, {"steps": 0}, {"precision": "bf16"}])
def test_a_step_is_timed_through_the_real_input(tmp_path, more):
    found = true_size.measure(job(**more), 3, CPU, tmp_path)
    assert found["images_per_s"] > 0
    assert 0 < found["waiting"] < 1
    assert len(list(tmp_path.glob("32x24-*.jpg"))) == 3 * 4
    assert bool(list(tmp_path.glob("stores/*/pixels.bin"))) != more.get("files", False)


def first_jobs(stem, **changes):
    """Return the parameters of a paper profile with tiny networks, and its jobs by name."""
    values = values_of(stem, "paper") | changes
    tables = {name: score_table(name, None) for name in sets_of(values)}
    return values, {one.name: one for one in JOBS[stem](values, tables) if isinstance(one, Job)}


def test_03_is_timed_on_crops_of_all_sets_and_koncept512_on_whole_images(tmp_path):
    changes = {"BACKBONE": "test_resnet", "KONCEPT_BACKBONE": "test_efficientnet", "SIZE": 24}
    changes |= {"SIDES": [32, 48], "KONCEPT_SIZE": [24, 32], "BATCH_SIZE": 2}
    values, jobs = first_jobs("03", **changes, KONCEPT_BATCH_SIZE=2)
    for name, shape in (("paper", (12, 3, 24, 24)), ("KonCept512", (2, 3, 24, 32))):
        job, network = jobs[name], jobs[name].build()
        source = partial(true_size.SOURCES["03"], values)
        first, second = (list(source(job, network, 2, CPU, tmp_path)(epoch)) for epoch in (0, 1))
        assert [batch.inputs[0].shape for batch in first] == [shape] * 2
        assert not torch.equal(first[0].inputs[0], second[0].inputs[0])  # drawn anew
        found = true_size.measure(job, 2, CPU, tmp_path, make_source=source)
        assert found["images_per_s"] > 0
    assert first[0].source.unique().tolist() == [0]
    assert (tmp_path / "43x32-0000.jpg").is_file()  # crops are cut from larger pictures
    assert (tmp_path / "32x24-0000.jpg").is_file()


def test_04_is_timed_on_crops_of_native_images_each_with_its_own_in_a_pass(tmp_path):
    changes = {"NETWORKS_TAPPED": ["squeezenet", "shufflenet"], "NETWORKS_TUNED": ["shufflenet"]}
    changes |= {"FINAL": ["squeezenet", "logits"], "SIDE": 64, "TUNING_SIDE": 64, "BATCH_SIZE": 2}
    values, jobs = first_jobs("04", **changes, OVERRIDES={"shufflenet": {"AUGMENT": True}})
    tuned, tapped = jobs["shufflenet, strict"], jobs["squeezenet, layers and crops"]
    source = partial(true_size.SOURCES["04"], values)
    for job, n in ((tuned, 2), (tapped, 32)):
        (batch,) = source(job, None, 1, CPU, tmp_path)(0)
        assert batch.inputs[0].shape == (n, 3, 64, 64)
        found = true_size.measure(job, 1, CPU, tmp_path, make_source=source)
        assert found["images_per_s"] > 0
    assert (tmp_path / "512x384-0000.jpg").is_file()
    assert not list(tmp_path.glob("64x64-*"))


def test_operations_are_three_forward_passes_a_training_step(tmp_path):
    trained, passed = (true_size.measure(job(steps=n), 2, CPU, tmp_path) for n in (2, 0))
    forward = footprint(job()).flops
    for found, times in ((trained, 3), (passed, 1)):
        assert found["flops_per_s"] == pytest.approx(times * forward * found["images_per_s"])


def test_every_kind_of_a_profile_is_timed_once(tmp_path, monkeypatch):
    monkeypatch.setattr(true_size, "ROOT", tmp_path)
    monkeypatch.setattr(true_size, "PROFILE", "demo")
    found = true_size.true_size(1, ["05"], scale=0.5)
    kinds = [row["kind"] for row in found["rows"]]
    assert [kind.split(", ")[0] for kind in kinds] == ["tf_efficientnet_lite0", "head 64-1-32"]
    assert found["card"] == "CPU"
    assert found["hours"] == {}  # of no meaning at another size
    saved = json.loads((tmp_path / "runs/true_size/true_size.json").read_text())
    assert [row["kind"] for row in saved["rows"]] == kinds
    assert not (tmp_path / "figures").exists()


def test_hours_are_projected_from_what_was_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(true_size, "ROOT", tmp_path)
    row = {"images_per_s": 50.0, "waiting": 0.1, "peak_bytes": 0, "flops_per_s": 1.0}
    monkeypatch.setattr(true_size, "measure", lambda *_, **__: dict(row))
    monkeypatch.setattr(true_size, "PROFILE", "demo")
    found = true_size.true_size(1, ["05"])
    jobs = plan.make_plan("05", "demo", official=True)["jobs"]
    watched = 10073 * 12 * 10 / 3  # every head predicts all images after each of 12 epochs
    seen = sum(one["images"] for one in jobs) + watched
    assert found["hours"]["05_lds_fds"] == pytest.approx(seen / 50 / 3600)


def test_what_is_measured_later_joins_the_file_of_the_card(tmp_path, monkeypatch):
    monkeypatch.setattr(true_size, "ROOT", tmp_path)
    for stem, rates in (("03", {"a": 1.0, "b": 2.0}), ("05", {"b": 3.0, "c": 4.0})):
        rows = [{"kind": kind, "images_per_s": rate} for kind, rate in rates.items()]
        found = {"card": "A Card", "rows": rows, "peak": {stem: 1.0}, "hours": {stem: 2.0}}
        path = true_size.add_to_published(found)
    card, seen = plan.measured.__wrapped__(path.parent)
    assert (card, seen) == ("A Card", {"a": 1.0, "b": 3.0, "c": 4.0})
    assert json.loads(path.read_text())["hours"] == {"03": 2.0, "05": 2.0}


def test_a_killed_call_keeps_its_rows_and_the_next_goes_on(tmp_path, monkeypatch):
    measured = []

    def measure(job, *_, **__):
        measured.append(job.network)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return {"images_per_s": 5.0, "waiting": 0.1, "peak_bytes": 0, "flops_per_s": 1.0}

    monkeypatch.setattr(true_size, "ROOT", tmp_path)
    monkeypatch.setattr(true_size, "PROFILE", "demo")
    monkeypatch.setattr(true_size, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        true_size.true_size(1, ["05"], scale=0.5)
    saved = tmp_path / "runs/true_size/true_size.json"
    assert len(json.loads(saved.read_text())["rows"]) == 1
    assert len(true_size.true_size(1, ["05"], scale=0.5)["rows"]) == 2
    encoder, head = "tf_efficientnet_lite0", "head 64-1-32"
    assert measured == [encoder, head, head]
    true_size.true_size(2, ["05"], scale=0.5)  # other steps: nothing is read back
    assert measured[3:] == [encoder, head]


def test_a_network_that_fails_is_a_row_with_its_error_and_the_others_go_on(tmp_path, monkeypatch):
    broken = [True]

    def measure(job, *_, **__):
        if broken and job.network.startswith("tf_"):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried\nand more")
        return {"images_per_s": 5.0, "waiting": 0.1, "peak_bytes": 0, "flops_per_s": 1.0}

    monkeypatch.setattr(true_size, "ROOT", tmp_path)
    monkeypatch.setattr(true_size, "PROFILE", "demo")
    monkeypatch.setattr(true_size, "measure", measure)
    failed, head = true_size.true_size(1, ["05"])["rows"]
    assert failed["error"] == "OutOfMemoryError: CUDA out of memory. Tried"
    assert head["images_per_s"] == 5.0
    path = true_size.add_to_published(json.loads(next(tmp_path.glob("runs/*/*")).read_text()))
    assert plan.measured.__wrapped__(path.parent) == ("CPU", {head["kind"]: 5.0})
    broken.clear()
    again = true_size.true_size(1, ["05"])  # what failed is tried again
    assert [row["images_per_s"] for row in again["rows"]] == [5.0, 5.0]
    true_size.add_to_published(again)
    true_size.add_to_published(again | {"rows": [failed]})  # and a later failure replaces nothing
    assert len(plan.measured.__wrapped__(path.parent)[1]) == 2


def test_times_of_a_cpu_are_not_published(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="only what a GPU did at true size"):
        true_size.true_size(1, ["05"], publish=True)


def test_the_command_asks_for_the_steps_and_notebooks_given(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        true_size, "true_size", lambda steps, **options: asked.update(steps=steps, **options)
    )
    CliRunner().invoke(app, ["rehearse", "02", "--true-size", "--steps", "3"])
    assert asked == {"steps": 3, "stems": ["02"], "scale": 1.0, "publish": False}


def test_the_matrix_peak_leaves_the_precision_of_products_as_it_was():
    before = torch.get_float32_matmul_precision()
    assert true_size.matrix_peak("fp32", CPU) > 1e8
    assert torch.get_float32_matmul_precision() == before

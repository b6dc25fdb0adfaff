"""The few steps at true size: here at small size on the CPU, to try the mechanism."""

import json
from functools import partial

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from iqa_utils.workshop import plan, tables, true_size
from iqa_utils.workshop.cli import app
from iqa_utils.workshop.jobs import JOBS, Job
from iqa_utils.workshop.plan import counted, footprint, score_table, sets_of, values_of

CPU = torch.device("cpu")
PUBLISHED = sorted((true_size.ROOT / "figures" / "true_size").glob("*.json"))


def speeds(folder):
    card, rows = plan.measured.__wrapped__(folder)
    return card, {kind: row["images_per_s"] for kind, row in rows.items()}


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
        head = {"torch": stem, "peak": {"bf16": float(stem)}, "hours": {stem: 2.0}}
        rows = [row | {"torch": stem, "peak": float(stem)} for row in rows]
        path = true_size.add_to_published({"card": "A Card", "rows": rows, **head})
    assert speeds(path.parent) == ("A Card", {"a": 1.0, "b": 3.0, "c": 4.0})
    seen = json.loads(path.read_text())
    assert set(seen) == {"card", "rows"}  # all else is said by row
    assert [(row["torch"], row["peak"]) for row in seen["rows"]] == [
        ("03", 3.0),
        ("05", 5.0),
        ("05", 5.0),
    ]


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
    monkeypatch.setattr(true_size, "_code", lambda: "changed")
    rows = true_size.true_size(2, ["05"], scale=0.5)["rows"]  # nor of other code
    assert measured[5:] == [encoder, head]
    assert {row["code"] for row in rows} == {"changed"}


def test_each_row_says_what_it_ran_on_and_what_its_share_is_of(tmp_path, monkeypatch):
    row = {"images_per_s": 5.0, "waiting": 0.1, "peak_bytes": 0, "flops_per_s": 3e12}
    monkeypatch.setattr(true_size, "ROOT", tmp_path)
    monkeypatch.setattr(true_size, "PROFILE", "demo")
    monkeypatch.setattr(true_size, "measure", lambda *_, **__: dict(row))
    monkeypatch.setattr(true_size, "matrix_peak", lambda *_: 12e12)
    monkeypatch.setattr(true_size.provenance, "commit", lambda: ("abc", False))
    for row in true_size.true_size(1, ["05"])["rows"]:
        assert (row["peak"], row["of_peak"]) == (12.0, 0.25)
        assert (row["commit"], row["torch"]) == ("abc, with changes", torch.__version__)
        assert row["steps"] == 1
        assert len(row["code"]) == 16


def test_hours_are_not_kept_where_a_network_failed(tmp_path, monkeypatch):
    def measure(job, *_, **__):
        if job.network.startswith("tf_"):
            raise RuntimeError("broke")
        return {"images_per_s": 5.0, "waiting": 0.1, "peak_bytes": 0, "flops_per_s": 1.0}

    monkeypatch.setattr(true_size, "ROOT", tmp_path)
    monkeypatch.setattr(true_size, "PROFILE", "demo")
    monkeypatch.setattr(true_size, "measure", measure)
    assert true_size.true_size(1, ["05"])["hours"] == {}


@pytest.mark.parametrize("start", ["released-5 resnet34", "head 768-2-256", "images legacy_x"])
def test_a_published_share_of_the_peak_follows_from_its_row(start):
    rows = [row for file in PUBLISHED for row in json.loads(file.read_text())["rows"]]
    row = next(row for row in rows if row["kind"].startswith(start))
    job, *_ = true_size.listed(["02", "03", "05"])[row["kind"]]
    flops = 3 * counted(job, {}).flops * row["images_per_s"]
    assert row["of_peak"] * row["peak"] * 1e12 == pytest.approx(flops, rel=1e-6)


def test_the_site_lists_every_published_row_and_counts_the_kinds_that_are_not(
    tmp_path, monkeypatch
):
    kinds = {"net {'a': 1, 'b': 2}, 4x3x8x9, bf16, eager": "03", "head 8, 16x8, fp32, eager": "05"}
    kinds |= {"other, 2x3x8x8, fp32, pass": "05", "bad, 2x3x8x8, fp32, pass": "06"}
    listed = {kind: (None, stem, {}) for kind, stem in kinds.items()}
    monkeypatch.setattr(true_size, "listed", lambda _: listed)
    assert tables.true_size_table(tmp_path) == "Nothing measured at true size is published."
    net, head, _, bad = kinds
    row = {"images_per_s": 1234.4, "waiting": 0.0561, "peak_bytes": 3 * 2**29, "of_peak": 0.2134}
    rows = [{"kind": net, **row, "peak": 778.2, "input": "whole images"}]
    rows += [{"kind": head, **row, "peak": 400, "torch": "2.1", "commit": "abc"}]
    gone = rows[1] | {"kind": "gone, 1x3x4x4, fp32, pass"}  # no profile asks for it any more
    rows += [{"kind": bad, "error": "A | B"}, gone]
    (tmp_path / "card.json").write_text(json.dumps({"card": "A Card", "rows": rows}))
    text = tables.true_size_table(tmp_path)
    assert (
        "Of 4 kinds of network, 2 are measured: 02 0 of 0, 03 1 of 1, 04 0 of 0, 05 1 of 2" in text
    )
    assert "no accuracy is claimed" in text
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if "A Card" in line]
    numbers = ["1,234", "5.6%", "1.50 GiB"]
    assert lines[0] == [
        *["03", "net {'a': 1, 'b': 2}", "4", "3x8x9", "bf16, eager", *numbers],
        *["21.34% of 778 TFLOP/s", "whole images", "A Card", "not recorded", "not recorded"],
    ]
    assert lines[1][-4:] == ["input as in the notebook", "A Card", "2.1", "abc"]
    assert lines[2][5] == "failed: A / B"
    assert lines[3][0] == "gone"
    page = (true_size.ROOT / "docs" / "howto" / "gpu.md").read_text()
    assert "../generated/true_size.md" in page


def test_published_rows_of_03_say_that_they_were_timed_before_its_crops(monkeypatch):
    (rows,) = [json.loads(file.read_text())["rows"] for file in PUBLISHED if "H100" in file.name]
    early = [row["kind"] for row in rows if row.get("input") == "whole images"]
    assert len(early) == 8
    assert all("resnet34.tv_in1k" in kind for kind in early)
    counted = plan.Footprint(weights=1, training=0, activations=0, flops=1e9, layers=9)
    monkeypatch.setattr(plan, "footprint", lambda job: counted)
    found = plan.make_plan("03", "paper", official=True)
    assert "with whole images" in found["source"]


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
    assert speeds(path.parent) == ("CPU", {head["kind"]: 5.0})
    broken.clear()
    again = true_size.true_size(1, ["05"])  # what failed is tried again
    assert [row["images_per_s"] for row in again["rows"]] == [5.0, 5.0]
    true_size.add_to_published(again)
    true_size.add_to_published(again | {"rows": [failed]})  # and a later failure replaces nothing
    assert len(speeds(path.parent)[1]) == 2


def test_what_an_earlier_call_measured_is_published_by_a_later_one(tmp_path, monkeypatch):
    row = {"images_per_s": 5.0, "waiting": 0.1, "peak_bytes": 0, "flops_per_s": 1.0}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "A Card")
    monkeypatch.setattr(true_size, "ROOT", tmp_path)
    monkeypatch.setattr(true_size, "PROFILE", "demo")
    monkeypatch.setattr(true_size, "measure", lambda *_, **__: dict(row))
    monkeypatch.setattr(true_size, "matrix_peak", lambda *_: 1e12)
    rows = true_size.true_size(1, ["05"])["rows"]
    true_size.true_size(1, ["05"], publish=True)
    content = {"card": "A Card", "rows": rows}
    assert json.loads((tmp_path / "figures/true_size/A-Card.json").read_text()) == content


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

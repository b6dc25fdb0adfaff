"""Equal steps for teachers and students, and the rates that a plan is made from."""

import os
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from iqa_utils.distill import Teacher
from iqa_utils.distill.merging import aggregate, merge_by_features
from iqa_utils.distill.unlabelled import scan_images
from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD, build_store
from iqa_utils.metrics import srcc
from iqa_utils.models.imqnet import IMQNet
from iqa_utils.studies import teachers, transfer
from iqa_utils.training.batches import store_batches, tensor_batches
from iqa_utils.training.checkpoints import read_metadata
from iqa_utils.workshop import notebooks, throughput

PLAN = transfer.Plan(40, 8, 0.05, 20, looks=4)
TINY = {"width": 0.125, "downscale": 1, "high_level_side": 14, "hidden": (8, 4)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images of 32x40, brighter and brighter, and one of 20x20."""
    target = tmp_path_factory.mktemp("shots")
    generator = np.random.default_rng(0)
    for i in range(12):
        pixels = generator.integers(0, 40, (32, 40, 3)) + 15 * i
        Image.fromarray(pixels.astype(np.uint8)).save(target / f"{i:02}.png")
    Image.new("RGB", (20, 20), (99, 99, 99)).save(target / "small.png")
    return target


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, features):
        return self.layer(features).squeeze(1)


def test_the_endless_stream_shows_every_row_once_before_any_again():
    rows = np.array([3, 5, 8, 13, 21])
    whole = transfer.endless_rows(rows, 0, 15, seed=0)
    for start in (0, 5, 10):
        assert sorted(whole[start : start + 5]) == rows.tolist()
    pieces = [transfer.endless_rows(rows, start, 3, seed=0) for start in range(0, 15, 3)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert (whole[:5] != whole[5:10]).any()


def test_a_plan_refuses_steps_that_looks_do_not_divide():
    with pytest.raises(ValueError, match="steps must be a multiple of looks, got 10 and 4"):
        transfer.Plan(10, 8, 1e-3, 5, looks=4)
    assert PLAN.shortened(0.5).steps == 20
    assert PLAN.shortened(1e-6).steps == 4


def made_lesson(n=60):
    features = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    scores = (features @ torch.tensor([1.0, -2.0, 0.5])).numpy() * 10 + 50
    torch.manual_seed(0)
    stream = partial(tensor_batches, features)
    rows = np.arange(n)
    return transfer.Lesson(Linear(), stream, rows[:40], scores, PLAN, rows[40:])


def test_training_learns_and_its_curves_are_measured_at_every_look():
    lesson = made_lesson()
    result = transfer.train(
        lesson.student, lesson.stream, lesson.rows, lesson.scores, PLAN,
        watch={"unseen": lesson.unseen}, augment=None, progress=False,
    )  # fmt: skip
    assert result.history["step"].tolist() == [10, 20, 30, 40]
    assert result.best_epoch == 4  # the last weights, whatever the scores
    assert result.history["unseen_srcc"].iloc[-1] > 0.8
    assert result.history["lr"].tolist() == [0.05, 0.05, 0.025, 0.025]


def test_a_score_that_nobody_knows_cannot_be_learned():
    lesson = made_lesson()
    scores = np.where(np.arange(60) == 3, np.nan, lesson.scores)
    with pytest.raises(ValueError, match="1 of 40 rows have no score to learn"):
        transfer.train(
            lesson.student, lesson.stream, lesson.rows, scores, PLAN, watch={}, augment=None
        )


def test_a_lesson_that_was_finished_is_found_again(tmp_path):
    first, again = made_lesson(), made_lesson()
    options = {"config": {}, "checkpoint_dir": tmp_path, "augment": None}
    history = transfer.teach({"a": first}, **options)
    pd.testing.assert_frame_equal(transfer.teach({"a": again}, **options), history)
    torch.testing.assert_close(again.student.state_dict(), first.student.state_dict())
    other = made_lesson()
    other.scores[:] = -other.scores
    assert (
        transfer.teach({"a": other}, **options)["train_loss"].tolist()
        != history["train_loss"].tolist()
    )


def test_files_and_a_store_give_the_same_batches(folder, tmp_path):
    names = [f"{i:02}.png" for i in range(12)]
    store = build_store(folder, names, tmp_path, size=(24, 30), fit="center_crop", progress=False)
    scores, rows = np.arange(12.0), np.array([4, 1, 9, 3, 7])
    paths = [folder / name for name in names]
    files = transfer.file_batches(paths, (24, 30), rows, scores, batch_size=2)
    for a, b in zip(files, store_batches(store, rows, scores, batch_size=2), strict=True):
        torch.testing.assert_close(a.inputs[0], b.inputs[0])
        torch.testing.assert_close(a.mos, b.mos)


def test_images_of_any_size_are_predicted_in_the_order_asked_for(folder, tmp_path):
    names = ["03.png", "small.png", "11.png", "00.png"]
    store = build_store(folder, names, tmp_path, size=None, fit="native", progress=False)
    model = IMQNet(**TINY).eval()
    pred = transfer.predict_any_size(model, store, np.array([2, 1, 0]), batch_size=4)
    alone = Teacher(model, None, IMAGENET_MEAN, IMAGENET_STD)
    expected = [alone.score(store.image(i)[None]).item() for i in (2, 1, 0)]
    np.testing.assert_allclose(pred, expected, atol=1e-5)


def test_teachers_see_what_their_names_say():
    chosen = teachers.choose_teachers(["a", "b"], ["training", "all", "without"])
    assert chosen["training"] == (["a", "b"], ("training",))
    assert chosen["without a"] == (["b"], ("training", "validation", "test"))
    assert list(teachers.choose_teachers(["a"], ["training", "without"])) == ["training"]
    with pytest.raises(ValueError, match="teachers must be some of"):
        teachers.choose_teachers(["a"], ["some"])


def test_a_left_out_set_is_tested_whole_and_other_sets_in_their_test_part():
    parts = ["training", "test", "unused", "test"]
    labelled = pd.DataFrame({"dataset": list("aabb"), "part": parts})
    assert teachers.tested_rows(labelled, "training").tolist() == [1, 3]
    assert teachers.tested_rows(labelled, "without a").tolist() == [0, 1]


def test_every_result_is_marked_by_what_its_teacher_saw():
    def knowing(*saw):
        return Teacher(Linear(), None, IMAGENET_MEAN, IMAGENET_STD, saw)

    taught = {
        "training": knowing("a/training", "b/training"),
        "all": knowing("a/training", "a/test", "b/training", "b/test"),
        "without a": knowing("b/training", "b/test"),
    }
    rows = [("held-out", "a"), ("as written", "a"), ("leave one out", "a"), ("", "a")]
    rows += [("as written", "average"), ("held-out", "average")]
    table = pd.DataFrame(rows, columns=["variant", "dataset"])
    expected = ["held-out", "leaky", "held-out", "held-out", "leaky", "held-out"]
    assert teachers.marks(table, taught) == expected


TEACHER_PLAN = transfer.Plan(4, 4, 1e-3, 2, looks=2)


def train_tiny_teacher(folder, work, *, freeze=False, **options):
    names = [f"{i:02}.png" for i in range(12)]
    store = build_store(folder, names, work, size=(32, 32), progress=False)
    scores = np.where(np.arange(12) < 8, np.arange(12.0), np.nan)
    made = {"dataset": "shots", "demo": True}
    teacher, result = teachers.train_teacher(
        store, np.arange(8), scores, TEACHER_PLAN, backbone="mobilenetv2_035", pretrained=None,
        freeze_trunk=freeze, saw=("a/training",), cache_dir=work, widths=(8, 8, 4),
        path=work / "teacher.safetensors", training_data=made, checkpoint_dir=work, **options,
    )  # fmt: skip
    return store, scores, teacher, result


@pytest.mark.parametrize("freeze", [True, False])
def test_a_teacher_learns_only_the_rows_it_is_given(folder, tmp_path, freeze):
    store, scores, teacher, result = train_tiny_teacher(folder, tmp_path, freeze=freeze)
    assert teacher.saw == ("a/training",)
    assert teacher.size == (32, 32)
    pred = transfer.predict_any_size(teacher, store, np.arange(8), batch_size=4)
    assert srcc(scores[:8], pred) == pytest.approx(result.best["seen_srcc"], abs=1e-9)


def test_a_teacher_is_a_model_file_that_a_second_call_finds_again(folder, tmp_path):
    *_, teacher, result = train_tiny_teacher(folder, tmp_path)
    known = read_metadata(tmp_path / "teacher.safetensors")
    assert known["training_data"] == {"dataset": "shots", "demo": True, "images": 8}
    assert known["scores_seen"] == ["a/training"]
    assert known["metrics"] == {"SRCC seen": result.best["seen_srcc"]}
    assert Teacher.load(tmp_path / "teacher.safetensors").hash == teacher.hash
    *_, again, found = train_tiny_teacher(folder, tmp_path)
    assert again.hash == teacher.hash
    pd.testing.assert_frame_equal(found.history, result.history)  # to the second: not trained again


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from iqa_utils.studies import teachers
from test_transfer import train_tiny_teacher
whole = teachers.store_batches
def dying(*args, **options):
    for number, batch in enumerate(whole(*args, **options)):
        if options.get("epoch") == 1 and "augment" in options and number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch
teachers.store_batches = dying
train_tiny_teacher(Path({folder!r}), Path({work!r}), save_seconds=0.0)
"""


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_teacher_killed_in_training_ends_as_if_it_had_not_been(
    folder, tmp_path, capsys, one_thread
):
    (tmp_path / "killed").mkdir()
    work, tests = str(tmp_path / "killed"), os.path.dirname(__file__)
    script = KILLED.format(tests=tests, folder=str(folder), work=work)
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    *_, resumed, _ = train_tiny_teacher(folder, tmp_path / "killed")
    assert "resumed at epoch 1, step 1" in capsys.readouterr().out
    *_, whole, _ = train_tiny_teacher(folder, tmp_path)
    assert resumed.hash == whole.hash


def test_settings_of_single_trainings_are_refused_where_nothing_has_that_name():
    names = ["teacher all", "direct"]
    own = transfer.training_settings(
        names, {"direct": {"EPOCHS": 2, "PRECISION": "bf16"}}, precision="fp32", compile=False
    )
    assert own["direct"] == {"looks": 2, "precision": "bf16", "compile": False}
    assert own["teacher all"] == {"precision": "fp32", "compile": False}
    with pytest.raises(ValueError, match="no training 'teacher', there are teacher all, direct"):
        transfer.training_settings(names, {"teacher": {"EPOCHS": 2}})
    with pytest.raises(ValueError, match="OVERRIDES of 'direct': unknown"):
        transfer.training_settings(names, {"direct": {"N_RUNS": 2}})


def test_a_student_has_the_settings_that_are_its_own_and_the_log_names_it(capsys):
    lessons = {"a": made_lesson(), "b": made_lesson()}
    own = {"b": {"looks": 2, "precision": "bf16"}}
    history = transfer.teach(lessons, config={}, settings=own, augment=None)
    assert history["student"].tolist() == list("aaaabb")
    assert capsys.readouterr().out.splitlines() == [
        "training 'a': 40 images, 40 steps of 8",
        "training 'b': 40 images, 40 steps of 8, precision bf16, looks 2",
    ]


def test_a_rehearsal_cuts_steps_and_looks_of_the_plans_and_nothing_else():
    paper, cut = (
        notebooks.read_profile("06_distillation", name) for name in ("paper", "rehearsal")
    )
    for name in ("TEACHER_PLAN", "STUDENT_PLAN", "CONTROL_PLAN"):
        assert cut[name][1:4] == paper[name][1:4]
        assert cut[name][0] < paper[name][0]
    for name in ("N_UNLABELLED", "N_KEPT"):
        np.testing.assert_array_equal(cut[name], np.floor_divide(paper[name], 100))


def test_decoded_labelled_images_take_three_bytes_a_pixel_and_are_never_enlarged():
    counts = {"koniq10k": 10, "livec": 2, "spaq": 1}  # 768x1024, 500x500, 3000x4000
    taken = teachers.store_bytes(counts, teacher_size=[384, 512], short_side=768)
    assert taken["squashed"] == 13 * 384 * 512 * 3
    assert taken["whole"] == 3 * (10 * 768 * 1024 + 2 * 500 * 500 + 768 * 1024)


def test_a_point_of_a_curve_takes_two_thousand_images_at_most():
    lesson, seen = made_lesson(), []

    def stream(rows, scores, **options):
        seen.append(len(rows))
        return lesson.stream(rows, scores, **options)

    many = np.tile(lesson.unseen, 151)  # 3,020
    transfer.train(
        lesson.student, stream, lesson.rows, lesson.scores, PLAN,
        watch={"many": many, "few": lesson.unseen}, augment=None, progress=False,
    )  # fmt: skip
    assert set(seen) == {80, 1510, 20}  # of training, every second one, all


def test_merging_never_reads_a_test_score():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(200, 4))
    mos = features[:, 0] * 10 + generator.normal(size=200)
    labelled = pd.DataFrame({
        "dataset": ["a"] * 100 + ["b"] * 100, "image": [str(i) for i in range(200)],
        "mos": mos, "part": ["training", "test"] * 100,
    })  # fmt: skip
    merged = merge_by_features(labelled, features, ["a", "b"])
    test = labelled["part"] == "test"
    lied = labelled.assign(mos=np.where(test, -labelled["mos"], labelled["mos"]))
    again = merge_by_features(lied, features, ["a", "b"])
    np.testing.assert_allclose(again[~test], merged[~test])
    assert np.isnan(merge_by_features(labelled, features, ["b"])[:100]).all()


def test_a_constant_student_is_named_and_leaves_no_result(capsys):
    frame = pd.DataFrame({"mos": np.arange(20.0), "subset": "x", "dataset": "d", "variant": ""})
    parts = [frame.assign(method="good", pred=frame["mos"]), frame.assign(method="flat", pred=1.0)]
    table = transfer.score_table(pd.concat(parts).assign(table="control"), n_resamples=20)
    assert table["method"].tolist() == ["good", "flat"]
    assert transfer.defined(table)["method"].tolist() == ["good"]
    assert capsys.readouterr().out == "no SRCC, the predictions are constant: flat, d\n"


def test_scores_are_counted_in_total_and_within_subsets():
    frame = pd.DataFrame({"mos": np.arange(20.0), "subset": ["x", "y"] * 10, "dataset": "d"})
    frame = frame.assign(table="control", method="m", variant="", pred=frame["mos"] ** 3)
    table = transfer.score_table(frame, n_resamples=20)
    assert table["metric"].tolist() == ["SRCC", "SRCC x", "SRCC y"]
    assert table["value"].tolist() == [1, 1, 1]
    assert table["n"].tolist() == [20, 10, 10]


def test_aggregates_need_all_their_sets():
    sets = ["koniq10k", "flive", "nrtid", "livec", "htid", "spaq"]
    row = {"method": "m", "variant": "v", "metric": "SRCC"}
    table = pd.DataFrame([{**row, "table": t, "dataset": s, "value": 0.1 * i}
                          for t in ("Table 1", "Table 4") for i, s in enumerate(sets)])  # fmt: skip
    found = aggregate(table).set_index("dataset")["value"]
    assert found["average"] == pytest.approx(0.25)
    assert found["weighted"] == pytest.approx(0.15 * 0.1 + 0.2 * 0.2 + 0.25 * 0.3 + 0.15 * 0.4)
    pd.testing.assert_frame_equal(aggregate(table)[:12], table)
    short = table[table["dataset"] != "htid"]
    pd.testing.assert_frame_equal(aggregate(short), short)


def test_the_naive_leg_and_the_batched_one_agree_and_every_leg_has_a_rate(folder):
    found = scan_images(folder, crop=(24, 30))
    teacher = Teacher(IMQNet(**TINY).eval(), None, IMAGENET_MEAN, IMAGENET_STD)
    paths = found.images["path"].tolist()
    naive = throughput.label_naively(teacher, paths, found.crop)
    batched = throughput.label_in_batches(teacher, paths, found.crop, batch_size=5)
    np.testing.assert_allclose(naive, batched, atol=1e-5)
    rates = throughput.measure_rates(teacher, IMQNet(**TINY), found, n=8, batch_size=4)
    assert (rates > 0).all()
    assert {"read", "decode", "network", "pass", "student step", "bytes"} == set(rates.index)


def test_a_plan_names_the_leg_that_runs_out(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    rates = pd.Series({"decode": 200.0, "network": 1000.0, "student step": 500.0, "bytes": 1e5})
    table = throughput.plans(rates)  # 100 images a second and core
    assert table["bottleneck"].tolist()[:3] == ["decode", "teacher", "teacher"]
    assert table["decode"].iloc[0] == pytest.approx(360_000 / 200 / 60)
    assert table["teacher"].iloc[1] == pytest.approx(6.0)
    assert table["reading"].iloc[0] == pytest.approx(20.0)
    last = table.iloc[-1]
    assert last["cores"] == pytest.approx(9e6 / 86_400 / 100)
    assert last["decode"] == pytest.approx(24 * 60)


def test_students_are_compared_on_the_same_images():
    rng = np.random.default_rng(0)
    mos = rng.normal(size=80)
    preds = {"good": mos + 0.3 * rng.normal(size=80), "bad": mos + 3 * rng.normal(size=80)}
    gaps = transfer.compare_students(mos, preds, "good", ["bad", "good"], seed=0)
    assert gaps["method"].tolist() == ["good minus bad", "good minus good"]
    first, same = gaps["value"]
    assert first == pytest.approx(srcc(mos, preds["good"]) - srcc(mos, preds["bad"]))
    assert gaps["ci_low"][0] > 0
    assert same == 0

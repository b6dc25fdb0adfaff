"""The training that notebook 06 shows, and the rates that a plan is made from."""

import ast
import json
import re
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn, optim
from torchvision.transforms.v2 import Normalize, Resize

from iqa_utils import backbones, distill, images
from iqa_utils.backbones import weights_hash
from iqa_utils.decoding import BadImageError
from iqa_utils.distill.unlabelled import central_crop, scan_images
from iqa_utils.metrics import rmse, srcc
from iqa_utils.models.dual_xception import KonCept
from iqa_utils.models.imqnet import IMQNet
from iqa_utils.scorer import Scorer
from iqa_utils.training import fit, predict, tensor_batches
from iqa_utils.training.checkpoints import data_digest
from iqa_utils.workshop import notebooks, runs
from iqa_utils.workshop.plots import models as plots

PLAN = [40, 8, 0.05, 20, 4]  # steps, batch, rate, halved every, looks
TINY = {"width": 0.125, "downscale": 1, "high_level_side": 14, "hidden": (8, 4)}
ROWS, UNSEEN = np.arange(40), np.arange(40, 60)
LIBRARY = {
    "data_digest": data_digest, "distill": distill, "fit": fit, "nn": nn, "optim": optim,
    "predict": predict, "rmse": rmse, "srcc": srcc, "weights_hash": weights_hash,
}  # fmt: skip


@pytest.fixture
def shown():
    """The functions ``curves`` and ``train`` of the notebook, with the parameters they read."""
    cells = json.loads(notebooks.find_notebook("06_distillation").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    nodes = [node for cell in code for node in ast.parse(cell).body]
    wanted = [n for n in nodes if isinstance(n, ast.FunctionDef) and n.name in ("curves", "train")]
    assert len(wanted) == 2
    space = {**LIBRARY, "PRECISION": "fp32", "COMPILE": False, "OVERRIDES": {}, "SEED": 0}
    space |= {"inputs": {}, "FLIP": {}, "keep": {"progress": False}}  # vectors are not mirrored
    exec(compile(ast.Module(wanted, []), "06", "exec"), space)
    return space


def lesson(n=60):
    """A linear network, a stream of 60 vectors, the rows to learn from and their scores."""
    features = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    scores = (features @ torch.tensor([1.0, -2.0, 0.5])).numpy() * 10 + 50
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    return network, partial(tensor_batches, features), ROWS, scores


def test_a_training_takes_its_steps_and_its_curves_are_measured_at_every_look(shown):
    history = shown["train"]("a", *lesson(), PLAN, {"unseen": UNSEEN})
    assert history["step"].tolist() == [10, 20, 30, 40]
    assert history["images"].tolist() == [80] * 4
    assert history["lr"].tolist() == [0.05, 0.05, 0.025, 0.025]
    assert history["unseen_srcc"].iloc[-1] > 0.8


def test_the_last_weights_count_whatever_the_scores(shown):
    network, stream, rows, scores = lesson()
    history = shown["train"]("a", network, stream, rows, scores, PLAN, {"u": UNSEEN})
    pred = predict(network, stream(UNSEEN, scores, batch_size=8))
    assert rmse(scores[UNSEEN], pred) == history["u_rmse"].iloc[-1]


def test_a_finished_training_is_found_again_unless_its_scores_are_others(shown, tmp_path):
    shown["keep"]["checkpoint_dir"] = tmp_path
    first, again = lesson(), lesson()
    history = shown["train"]("a", *first, PLAN, {})
    found = shown["train"]("a", *again, PLAN, {})
    pd.testing.assert_frame_equal(found, history)  # to the second: not trained again
    torch.testing.assert_close(again[0].state_dict(), first[0].state_dict())
    network, stream, rows, scores = lesson()
    other = shown["train"]("a", network, stream, rows, -scores, PLAN, {})
    assert other["train_loss"].tolist() != history["train_loss"].tolist()


def pictures():
    """A stream of 24 images, mirrored in training, and their scores."""
    pixels = torch.rand(24, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    scores = 100 * pixels.mean((1, 2, 3)).double().numpy()

    def stream(rows, scores, *, augment=None, **options):
        for batch in tensor_batches(pixels, rows, scores, **options):
            yield replace(batch, inputs=(batch.inputs[0].flip(3),)) if augment else batch

    return stream, scores


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_a_killed_teacher_or_student_goes_on_and_ends_the_same(shown, tmp_path, capsys, kind):
    steps, stream, scores = [], *pictures()

    def train(name, folder, stop_at=0):
        def counted(pred, mos):
            steps.append(name)
            if len(steps) == stop_at:
                raise InterruptedError
            return nn.functional.mse_loss(pred, mos)

        shown["nn"] = SimpleNamespace(functional=SimpleNamespace(mse_loss=counted))
        shown["keep"] |= {"checkpoint_dir": tmp_path / folder, "save_seconds": 0.0}
        torch.manual_seed(0)
        teacher = kind == "teacher"
        network = KonCept("test_byobnet", widths=(16, 8, 4)) if teacher else IMQNet(**TINY)
        plan, how = [8, 4, 0.01, 3, 2], {"vary": {"augment": images.augment}}  # two looks
        told = shown["train"](
            name, network, stream, ROWS[:16], scores, plan, {"u": ROWS[16:24]}, **how
        )
        return network.state_dict(), told.drop(columns="seconds")

    train("first", "a")
    with pytest.raises(InterruptedError):
        train("second", "a", stop_at=8 + 7)
    steps.clear()
    capsys.readouterr()
    found = [train(name, "a") for name in ("first", "second")]
    ((epoch, step),) = re.findall(r"resumed at epoch (\d+), step (\d+)", capsys.readouterr().out)
    assert int(epoch) + int(step) > 0
    assert steps == ["second"] * (8 - 4 * int(epoch) - int(step))  # nothing finished ran twice
    for name, (weights, history) in zip(("first", "second"), found, strict=True):
        expected, whole = train(name, "b")
        torch.testing.assert_close(weights, expected, rtol=0, atol=0)
        pd.testing.assert_frame_equal(history, whole, check_exact=True)


def test_a_training_has_the_settings_that_are_its_own_and_the_log_names_it(shown, capsys):
    shown["OVERRIDES"] |= {"b": {"EPOCHS": 2, "PRECISION": "bf16"}}
    histories = [shown["train"](name, *lesson(), PLAN, {}) for name in "ab"]
    assert [history["step"].tolist() for history in histories] == [[10, 20, 30, 40], [20, 40]]
    assert capsys.readouterr().out.splitlines() == [
        "training 'a': 40 images, 40 steps of 8 "
        "{'precision': 'fp32', 'compile': False, 'epochs': 4}",
        "training 'b': 40 images, 40 steps of 8 "
        "{'precision': 'bf16', 'compile': False, 'epochs': 2}",
    ]


def test_a_point_of_a_curve_takes_two_thousand_images_at_most(shown):
    network, stream, _, scores = lesson()
    seen = []

    def counted(rows, scores, **options):
        seen.append(len(rows))
        return stream(rows, scores, **options)

    watch = {"many": np.tile(UNSEEN, 151), "few": UNSEEN}  # 3,020 and 20
    shown["curves"](network, counted, scores, watch, batch_size=100, precision="fp32")
    assert seen == [1510, 20]  # every second one, all


def test_a_rehearsal_cuts_steps_and_looks_of_the_plans_and_nothing_else():
    paper, cut = (
        notebooks.read_profile("06_distillation", name) for name in ("paper", "rehearsal")
    )
    for name in ("TEACHER_PLAN", "STUDENT_PLAN", "CONTROL_PLAN"):
        assert cut[name][1:4] == paper[name][1:4]
        assert cut[name][0] < paper[name][0]
    for name in ("N_UNLABELLED", "N_KEPT"):
        np.testing.assert_array_equal(cut[name], np.floor_divide(paper[name], 100))


def test_the_pretrained_student_can_be_compiled():
    notebook = nbformat.read(notebooks.find_notebook("06"), as_version=4)
    space = {
        "BACKBONE": "test_byobnet", "CONTROL_SIZE": [24, 32], "FREEZE_TRUNK": True,
        "KonCept": KonCept,
        "Normalize": Normalize, "Resize": Resize, "backbones": backbones, "device": "cpu",
        "images": images, "nn": nn, "np": np, "weights": "random",
        "normal": {"mean": images.INCEPTION_MEAN, "std": images.INCEPTION_STD}, "torch": torch,
    }  # fmt: skip
    exec(next(c.source for c in notebook.cells if "def new_pretrained" in c.source), space)
    student = space["new_pretrained"](torch.tensor([0.0, 1.0]), 0).eval()
    pixels = torch.rand(2, 3, 48, 64)
    torch._dynamo.reset()
    compiled = torch.compile(student, backend="eager", dynamic=False)
    torch.testing.assert_close(compiled(pixels), student(pixels))


def test_one_image_at_a_time_and_batches_agree_and_every_step_has_a_rate(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(12):
        pixels = generator.integers(0, 40, (32, 40, 3)) + 15 * i
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i:02}.png")
    found = scan_images(tmp_path, crop=(24, 30))
    teacher = Scorer(IMQNet(**TINY).eval())
    paths = list(found)
    crops = [torch.from_numpy(central_crop(path, found.crop).copy()) for path in paths]
    naive = [teacher.score(crop.permute(2, 0, 1)[None]).item() for crop in crops]
    batched = distill.label_in_batches(teacher, paths, found.crop, batch_size=5)
    np.testing.assert_allclose(naive, batched, atol=1e-5)
    rates = distill.measure_rates(teacher, IMQNet(**TINY), found, n=8, batch_size=4)
    assert (rates > 0).all()
    assert {"read", "decode", "network", "pass", "student step", "bytes"} == set(rates.index)
    for none in ({"n": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="must not be zero"):
            distill.measure_rates(teacher, IMQNet(**TINY), found, **none)
    paths[0].write_bytes(b"")
    with pytest.raises(BadImageError, match=r"00\.png"):
        distill.measure_rates(teacher, IMQNet(**TINY), found, n=8, batch_size=4)


def test_a_plan_names_the_step_that_is_the_bottleneck(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    rates = pd.Series({"decode": 200.0, "network": 1000.0, "student step": 500.0, "bytes": 1e5})
    table = distill.plans(rates)  # 100 images a second and core
    assert table["bottleneck"].tolist()[:3] == ["decode", "teacher", "teacher"]
    assert table["decode"].iloc[0] == pytest.approx(360_000 / 200 / 60)
    assert table["teacher"].iloc[1] == pytest.approx(6.0)
    assert table["reading"].iloc[0] == pytest.approx(20.0)
    last = table.iloc[-1]
    assert last["cores"] == pytest.approx(9e6 / 86_400 / 100)
    assert last["decode"] == pytest.approx(24 * 60)


@pytest.mark.parametrize(("looks", "refused"), [(2, False), (7, True), (0, True)])
def test_looks_of_a_single_training_must_divide_the_steps_of_the_plans(looks, refused):
    notebook = nbformat.read(notebooks.find_notebook("06"), as_version=4)
    source = next(c.source for c in notebook.cells if c.source.startswith("choices = "))
    space = {"TEACHER": "a.safetensors", "N_UNLABELLED": [34], "main": 34}
    space |= {f"{who}_PLAN": [20, 10, 1e-3, 5, 1] for who in ("TEACHER", "STUDENT", "CONTROL")}
    space["runs"] = runs
    space["OVERRIDES"] = {"distilled, 34 images": {"EPOCHS": looks}}
    if refused:
        with pytest.raises(ValueError, match=f"must divide the steps of every plan, got {looks}"):
            exec(source, space)
    else:
        exec(source, space)


def test_ticks_of_rates_of_three_decades_do_not_overlap():
    rates = [93_411.0, 853, 3_045, 591, 412]  # measured on a GPU
    figure, axes = plt.subplots(figsize=(6, 2.6))
    plots.plot_rates(axes, pd.Series(rates, ["read", "decode", "network", "pass", "student step"]))
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_visible()]
    shown = sorted((box.x0, box.x1) for box in boxes if box.width)
    plt.close(figure)
    assert len(shown) >= 3
    assert all(end + 4 < start for (_, end), (start, _) in pairwise(shown))

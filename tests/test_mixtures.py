"""Batches of several data sets, and the training of notebook 03 on them."""

import json
import linecache
import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from iqa_utils.backbones import create_backbone
from iqa_utils.files import lock
from iqa_utils.images import build_store
from iqa_utils.mixed_sets import rescale, rescale_sets, split_sets
from iqa_utils.models.dual_xception import KonCept
from iqa_utils.models.monotonic import MonotonicIQA
from iqa_utils.training import save_model
from iqa_utils.training.mixtures import (
    CroppedImages,
    TrunkMaps,
    mixed_stream,
    predict_quality,
    prepare_crops,
    prepare_maps,
    prepare_squashed,
    validate,
)
from iqa_utils.workshop.notebooks import default_parameters, find_notebook
from iqa_utils.workshop.scoring import score_images
from iqa_utils.workshop.sweeps import grid_path, read_grid
from tests.test_mixed_sets import make_frame

NOTEBOOK = find_notebook("03_mixed_datasets")
CELLS = [
    "".join(cell["source"])
    for cell in json.loads(NOTEBOOK.read_text())["cells"]
    if cell["cell_type"] == "code"
]
SETTINGS = {
    "BACKBONE": "test_resnet", "CHANNELS": 8, "BATCH_SIZE": 4, "EPOCHS": 3, "LR": 3e-3,
    "N_SPLITS": 1, "METHODS": ["released", "mixed-3", "scalar", "linear", "ranking", "single:b"],
    "KONCEPT_BACKBONE": "test_resnet", "KONCEPT_EPOCHS": 6, "KONCEPT_BATCH_SIZE": 4,
}  # fmt: skip


def make_sets():
    """Two sets whose maps carry the score in their spread, on scales of 1 and of 100."""
    frames = {"a": make_frame("a", 30), "b": make_frame("b", 20, (0.0, 100.0), seed=1)}
    generator = torch.Generator().manual_seed(0)
    pixels = {}
    for name, frame in frames.items():
        noise = torch.randn(len(frame), 96, 2, 2, generator=generator)
        level = torch.tensor((frame["mos"] / frame["mos"].max()).to_numpy()).float()
        noise[:, :48] *= 0.2 + 3 * level[:, None, None, None]
        pixels[name] = TrunkMaps(noise.to(memory_format=torch.channels_last), key=name)
    return frames, pixels


def notebook(tmp_path, frames, pixels, **parameters):
    """Define what notebook 03 trains with on other data; returns its names."""
    space = default_parameters(NOTEBOOK) | SETTINGS | parameters
    splits = [split_sets(frames, seed=k) for k in range(2)]
    space |= {"frames": frames, "pixels": pixels, "splits": splits, "weights": "random"}
    space["koncept_pixels"] = pixels
    space |= {"sizes": {name: len(frame) for name, frame in frames.items()}, "device": "cpu"}
    starts = ("import inspect", "shape =", "def recipe_of", "def fit_options", "def curve_loss")
    starts = (*starts, "def train", "def tested")
    for start in starts:
        (cell,) = [cell for cell in CELLS if cell.startswith(start)]
        name = f"<notebook {start}>"
        linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
        exec(compile(cell, name, "exec"), space)
    space["cache_dir"] = lambda name="": tmp_path / name
    (tmp_path / "trainings").mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(**space)


def test_every_method_learns_and_predicts_all_sets(tmp_path):
    own = notebook(tmp_path, *make_sets(), EPOCHS=12)
    starts = {}
    for name in own.methods:
        model, spans, fitted = own.train(name, 0)
        losses = fitted.history["train_loss"]
        assert losses.iloc[-3:].mean() < 0.9 * losses.iloc[0], name
        predictions = own.predict_test(name, 0, model, spans)
        assert predictions.groupby("dataset").size().to_dict() == {"a": 6, "b": 4}
        assert np.isfinite(predictions["pred"]).all()
        unseen = name == "single:b"
        assert predictions["mapped"].isna().equals(predictions["dataset"].eq("a") & unseen)
        starts[name] = fitted.history["val_srcc"].iloc[0]
    assert len(set(starts.values())) > 1


def test_ranking_learns_from_the_deviations_of_a_set_that_has_them(tmp_path):
    frames, pixels = make_sets()
    hard = notebook(tmp_path / "hard", frames, pixels, METHODS=["ranking"])
    soft = {**frames, "a": frames["a"].assign(mos_std=0.3)}
    soft = notebook(tmp_path / "soft", soft, pixels, METHODS=["ranking"])
    model, _, first = hard.train("ranking", 0)
    _, _, second = soft.train("ranking", 0)
    assert first.history["train_loss"].tolist() != second.history["train_loss"].tolist()
    some = frames["a"].assign(mos_std=np.where(np.arange(30) % 10, 0.3, np.nan))
    some = notebook(tmp_path / "some", {**frames, "a": some}, pixels, METHODS=["ranking"])
    losses = [
        one.train("ranking", 0)[2].history["train_loss"].iloc[0] for one in (soft, some, hard)
    ]
    assert losses == sorted(losses)  # few unknown deviations do not make all targets certain
    assert losses[1] - losses[0] < losses[2] - losses[1]
    maps = pixels["a"].draw(np.arange(30), None)
    quality, deviation = model.head.moments(maps)
    torch.testing.assert_close(quality, model.head(maps))
    assert (deviation > 0).all()
    assert deviation.std() > 1e-4  # learnt, and of each image its own


def test_a_loss_behind_a_name_replaces_that_of_the_profile(tmp_path):
    methods = ["paper", "paper eq4", "paper nin", "paper l1", "released eq4"]
    own = notebook(tmp_path, *make_sets(), METHODS=methods)
    assert own.forms == dict(zip(methods, ["l1", "eq4", "nin", "l1", "eq4"], strict=True))
    assert own.methods["paper eq4"] == own.methods["paper"]
    found = {m: own.train(m, 0)[2].history["train_loss"].tolist() for m in methods[:4]}
    assert found["paper"] == found["paper l1"]
    assert len({tuple(loss) for loss in found.values()}) == 3


def test_training_is_a_function_of_the_seed(tmp_path):
    losses = []
    for place, seed in enumerate((3, 3, 4)):
        own = notebook(tmp_path / str(place), *make_sets(), SEED=seed)
        losses.append(own.train("mixed-3", 0)[2].history["train_loss"].tolist())
    assert losses[0] == losses[1] != losses[2]


def test_methods_of_one_split_start_from_the_same_regressor(tmp_path):
    own = notebook(tmp_path, *make_sets(), LR=0.0, EPOCHS=1)
    first, second = (own.train(name, 0)[0].head.state_dict() for name in ("released", "linear"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_second_run_finds_a_finished_training_and_trains_nothing(tmp_path, monkeypatch):
    own = notebook(tmp_path, *make_sets())
    model, _, first = own.train("mixed-3", 0)
    monkeypatch.setattr(own.mixtures, "mixed_stream", lambda *_, **__: None)  # would fail
    found, _, again = own.train("mixed-3", 0)
    pd.testing.assert_frame_equal(again.history, first.history)
    weights = model.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in found.state_dict().items())


@pytest.mark.parametrize(
    "change", ["validation", "scores", "PRECISION", "SEED", "NORM_FORM", "code"]
)
def test_what_decides_a_training_is_in_its_name(tmp_path, monkeypatch, change):
    notebook(tmp_path, *make_sets(), EPOCHS=1).train("mixed-3", 0)
    frames, pixels = make_sets()
    other = {"PRECISION": "bf16", "SEED": 1, "NORM_FORM": "eq4"}
    own = notebook(
        tmp_path, frames, pixels, EPOCHS=1, **{k: v for k, v in other.items() if k == change}
    )
    rows = own.splits[0]["a"]
    if change == "validation":
        rows["validation"] = rows["validation"][1:]
    elif change == "scores":
        frames["a"].loc[rows["validation"][0], "mos"] += 1e-9
    elif change == "code":
        monkeypatch.setattr(own.mixtures, "_CODE", "other")
    own.train("mixed-3", 0)
    assert len(list(tmp_path.glob("trainings/*/last.pt"))) == 2


def test_a_run_waits_for_another_at_the_same_training(tmp_path):
    own = notebook(tmp_path, *make_sets())
    own.train("mixed-3", 0)
    (held,) = tmp_path.glob("trainings/*.lock")
    second = threading.Thread(target=own.train, args=("mixed-3", 0))
    with lock(held):
        second.start()
        second.join(1.0)
        assert second.is_alive()
    second.join(30.0)
    assert not second.is_alive()


def test_single_methods_may_have_settings_of_their_own(tmp_path):
    given = {"N_SPLITS": 2, "EPOCHS": 1, "PRECISION": "bf16", "COMPILE": True}
    own = notebook(tmp_path, *make_sets(), METHODS=["linear", "mixed"], OVERRIDES={"mixed": given})
    assert own.settings["mixed"] == given
    assert own.settings["linear"]["EPOCHS"] == 3
    for wrong, fact in (
        ({"released": {}}, "no training 'released', there are linear, mixed"),
        ({"mixed": {"LR": 1}}, r"OVERRIDES of 'mixed': unknown \['LR'\]"),
        ({"mixed": {"EPOCHS": "1"}}, "EPOCHS must be int, got '1' \\(str\\)"),
    ):
        with pytest.raises(ValueError, match=fact):
            notebook(tmp_path, *make_sets(), METHODS=["linear", "mixed"], OVERRIDES=wrong)


def test_single_is_one_method_per_set_and_unknown_names_are_refused(tmp_path):
    own = notebook(tmp_path, *make_sets(), METHODS=["paper-7", "single"])
    assert list(own.methods) == ["paper-7", "single:a", "single:b"]
    assert own.methods["paper-7"] == {"variant": "paper", "n_layers": 7, "sources": ["a", "b"]}
    for name in ("released-4", "single:c"):
        with pytest.raises(ValueError, match=f"no .'{name}'"):
            notebook(tmp_path, *make_sets(), METHODS=[name])


def koniq_and_another(tmp_path, **parameters):
    frames, pixels = make_sets()
    frames["koniq10k"], pixels["koniq10k"] = frames.pop("b"), pixels.pop("b")
    pixels["a"].draw = None  # training on it would fail
    return notebook(tmp_path, frames, pixels, METHODS=["KonCept512"], **parameters)


def test_koncept512_is_that_network_trained_on_koniq10k_alone_and_tested_on_all_sets(tmp_path):
    own = koniq_and_another(tmp_path)
    model, spans, fitted = own.train("KonCept512", 0)
    assert isinstance(model, KonCept)
    assert list(spans) == ["koniq10k"]
    assert len(fitted.history) == 6
    predictions = own.predict_test("KonCept512", 0, model, spans)
    assert predictions.groupby("dataset").size().to_dict() == {"a": 6, "koniq10k": 4}
    known = predictions["dataset"] == "koniq10k"
    assert predictions["mapped"].isna().equals(~known)
    low, high = spans["koniq10k"]
    expected = low + predictions["pred"][known] / 10 * (high - low)
    np.testing.assert_allclose(predictions["mapped"][known], expected)


def test_koncept512_has_the_recipe_of_its_authors(tmp_path):
    own = koniq_and_another(tmp_path, KONCEPT_EPOCHS=60, KONCEPT_LR=1e-4)
    _, batch_size, lr, (every, factor) = own.recipe_of("KonCept512")
    assert (batch_size, lr, every, lr * factor) == (4, 1e-4, 40, pytest.approx(2e-5))
    mos = np.array([2.0, 4.0, 9.0])
    targets = {"koniq10k": np.resize(mos, 20)}
    own.splits[0]["koniq10k"]["training"] = np.arange(3)
    model = own.build("KonCept512", 0, targets).eval()
    torch.nn.init.zeros_(model.head[-1].weight)
    torch.nn.init.zeros_(model.head[-1].bias)
    batch = SimpleNamespace(inputs=(torch.rand(3, 96, 2, 2),), mos=torch.tensor(mos).float())
    batch.source = torch.zeros(3, dtype=torch.int64)
    assert own.squared_error(model, batch).item() == pytest.approx(26 / 3)  # about the mean, 5


def test_koncept512_needs_koniq10k(tmp_path):
    with pytest.raises(ValueError, match=r"no .'KonCept512'"):
        notebook(tmp_path, *make_sets(), METHODS=["KonCept512"])


def test_unwarped_trains_on_the_scores_before_their_maps(tmp_path):
    frames, pixels = make_sets()
    frames = {n: f.assign(mos_original=f["mos"] / f["mos"].max()) for n, f in frames.items()}
    own = notebook(tmp_path, frames, pixels, METHODS=["unwarped"])
    assert own.train("unwarped", 0)[1] == {"a": (0.0, 1.0), "b": (0.0, 1.0)}
    targets, _ = rescale_sets(frames, own.splits[0], ["b"], original=True)
    np.testing.assert_allclose(targets["b"], 10 * frames["b"]["mos_original"])


def test_validation_weights_sets_by_size_and_counts_a_constant_as_zero(tmp_path):
    own = notebook(tmp_path, *make_sets())
    model, _, _ = own.train("linear", 0)
    metrics = validate(model, own.frames, own.pixels, own.splits[0], ["a", "b"], "fp32")
    expected = (30 * metrics["val_srcc a"] + 20 * metrics["val_srcc b"]) / 50
    assert metrics["val_srcc"] == pytest.approx(expected)
    for parameter in model.head.last.parameters():
        torch.nn.init.zeros_(parameter)
    assert (
        validate(model, own.frames, own.pixels, own.splits[0], ["a", "b"], "fp32")["val_srcc"] == 0
    )


def test_batches_carry_scores_sets_and_names_of_training_images_only():
    frames, pixels = make_sets()
    split = split_sets(frames, seed=0)
    scaled = {n: rescale(f["mos"].to_numpy(), split[n]["training"])[0] for n, f in frames.items()}
    how = {"mixing": "released", "batch_size": 4, "seed": 0}
    batches = list(mixed_stream(frames, pixels, split, scaled, **how)(0))
    assert len(batches) == 5  # 18 indices of the larger set in batches of 4
    assert len(batches[0]) == 8
    allowed = {f"{n}/{i}" for n, f in frames.items() for i in f["image"][split[n]["training"]]}
    seen = set()
    for batch in batches:
        for index, mos, source, maps in zip(
            batch.index.tolist(), batch.mos, batch.source, batch.inputs[0], strict=True
        ):
            name = "ab"[int(source)]
            row = index - (30 if name == "b" else 0)
            assert batch.names[index] == f"{name}/{frames[name]['image'][row]}"
            assert mos.item() == pytest.approx(scaled[name][row], rel=1e-6)
            assert torch.equal(maps, pixels[name].maps[row])
            seen.add(batch.names[index])
    assert seen == allowed


def test_crops_of_real_files_train_the_trunk_and_whole_images_of_any_size_are_predicted(tmp_path):
    rng = np.random.default_rng(0)
    frame = make_frame("a", 12)
    for i, name in enumerate(frame["image"]):
        size = (40, 56) if i % 3 else (48, 40)
        pixels = rng.integers(0, 256, size=(*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    store = build_store(tmp_path, frame["image"], tmp_path / "s", size=None, fit="native")
    trunk = create_backbone("test_resnet", pretrained="random", num_classes=0)
    images = {"a": CroppedImages(store, store, crop=32, trunk=trunk)}
    parameters = {"METHODS": ["paper"], "FROZEN_TRUNK": False, "LR_TRUNK": 1e-3, "EPOCHS": 1}
    own = notebook(tmp_path, {"a": frame}, images, **parameters)
    model, _, _ = own.train("paper", 0)
    torch.manual_seed(0)
    fresh = create_backbone("test_resnet", pretrained="random", num_classes=0, global_pool="")
    before, after = fresh.state_dict(), model.trunk.state_dict()
    assert not torch.equal(before["conv1.0.weight"], after["conv1.0.weight"])
    rows = np.array([5, 0, 7, 3])
    together = predict_quality(model, images["a"], rows)
    alone = [predict_quality(model, images["a"], rows[[k]])[0] for k in range(4)]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", [True, False])
def test_pixels_prepared_for_training_give_what_the_saved_network_gives_for_files(tmp_path, frozen):
    names = [f"{i}.png" for i in range(6)]
    rng = np.random.default_rng(0)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(tmp_path / name)
    torch.manual_seed(0)
    model = MonotonicIQA(["a"], backbone="test_resnet", channels=8)
    trunk, files = model.trunk, (tmp_path, names, tmp_path / "cache")
    if frozen:
        pixels, fit = (
            prepare_maps(*files, size=36, trunk=trunk),
            {"size": [36, 36], "fit": "squash"},
        )
        model.trunk = torch.nn.Identity()
    else:
        pixels = prepare_crops(*files, size=24, sides=[30, 36], trunk=trunk)
        fit = {"size": 36, "fit": "shrink_short_side"}
    quality = predict_quality(model, pixels, np.arange(6))
    model.trunk = trunk
    own = {"mean": [0.5] * 3, "std": [0.5] * 3}  # what this network was trained with
    pixels = fit | {"resampler": "bilinear", **own}
    about = {"preprocessing": pixels, "training_data": {"dataset": "a", "demo": True}}
    save_model(tmp_path / "m.safetensors", model, about | {"scores_seen": [], "metrics": {}})
    scored = score_images([tmp_path / n for n in names], tmp_path / "m.safetensors", progress=False)
    np.testing.assert_allclose(scored["score"], quality, rtol=1e-4, atol=1e-5)


def test_squashed_images_are_shown_whole_and_mirrored_at_random(tmp_path):
    names, rng = [f"{i}.png" for i in range(8)], np.random.default_rng(0)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)).save(tmp_path / name)
    trunk = create_backbone("test_resnet", pretrained="random", num_classes=0)
    squashed = prepare_squashed(tmp_path, names, tmp_path / "c", size=[24, 32], trunk=trunk)
    ((_, whole),) = squashed.whole(np.arange(8))
    shown = squashed.draw(np.arange(8), torch.Generator().manual_seed(0))
    assert shown.shape == (8, 3, 24, 32)
    same, mirrored = ((shown == images).flatten(1).all(1) for images in (whole, whole.flip(3)))
    assert (same ^ mirrored).all()
    assert same.any()
    assert mirrored.any()


def test_every_job_of_the_grids_compares_all_its_methods():
    jobs = [job for path in grid_path("paper").parent.glob("*.yaml") for job in read_grid(path)]
    lists = [
        set(job.parameters["METHODS"])
        for job in jobs
        if job.stem == "03_mixed_datasets" and "METHODS" in job.parameters
    ]
    assert lists
    depths = {"released-3", "released-7"}
    for names in lists:
        compared = names - depths if "linear" in names else set()
        if "released" in names:
            compared |= names & {"released", "ranking", "single:koniq10k", *depths}
        for curves in ("released", "paper"):
            losses = {name for name in names if name.startswith(f"{curves} ")}
            compared |= losses | {curves} if losses and curves in names else set()
        assert compared == names

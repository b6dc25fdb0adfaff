"""One frame for all methods: data, batches, training, prediction, and inputs that are refused."""

import threading

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from iqa_utils.backbones import create_backbone
from iqa_utils.images import build_store
from iqa_utils.images.decode_once import lock
from iqa_utils.studies import mixed
from iqa_utils.studies.mixed import (
    Method,
    Setup,
    loss_step,
    map_quality,
    parse_methods,
    plan_trainings,
    predict_quality,
    predict_test,
    train_method,
    training_batches,
    validate,
)
from iqa_utils.studies.mixed_curves import curve_points
from iqa_utils.studies.mixed_data import (
    CroppedImages,
    TrunkMaps,
    describe_sets,
    load_frames,
    load_sets,
    pick_examples,
    prepare_pixels,
    rescale,
    split_sets,
    warp_subsets,
)
from iqa_utils.workshop.scoring import score_images


def parse_method(name):
    return parse_methods([name], ["a", "b"])[0]


SETUP = Setup(
    backbone="test_resnet", pretrained=None, channels=8, mixing="released", batch_size=4,
    epochs=3, lr=3e-3, test_batch_size=5,
)  # fmt: skip


def make_frame(name, n, scale=(0.0, 1.0), seed=0):
    mos = np.random.default_rng(seed).uniform(*scale, size=n)
    images = [f"{name} ({i}).png" for i in range(n)]
    frame = pd.DataFrame({"image": images, "mos": mos, "reference": images})
    frame.attrs = {"dataset": name, "title": name, "scale": scale, "kind": "authentic"}
    frame.attrs |= {"demo": True, "fingerprint": ""}
    return frame


def make_sets():
    """Two sets whose maps carry the score in their spread, on scales of 1 and of 100."""
    frames = {"a": make_frame("a", 30), "b": make_frame("b", 20, (0.0, 100.0), seed=1)}
    generator = torch.Generator().manual_seed(0)
    trunk = create_backbone("test_resnet", pretrained=None, num_classes=0, global_pool="")
    pixels = {}
    for name, frame in frames.items():
        noise = torch.randn(len(frame), 96, 2, 2, generator=generator)
        level = torch.tensor((frame["mos"] / frame["mos"].max()).to_numpy()).float()
        noise[:, :48] *= 0.2 + 3 * level[:, None, None, None]
        pixels[name] = TrunkMaps(noise.permute(0, 2, 3, 1), trunk=trunk, key=name)
    return frames, pixels, split_sets(frames, seed=0)


@pytest.mark.parametrize("name", ["released", "mixed-3", "scalar", "linear", "ranking", "single:b"])
def test_every_method_learns_and_predicts_all_sets(name):
    frames, pixels, parts = make_sets()
    setup = Setup(**{**SETUP.__dict__, "epochs": 12})
    trained = train_method(parse_method(name), frames, pixels, parts, setup, seed=0)
    losses = trained.result.history["train_loss"]
    assert losses.iloc[-3:].mean() < 0.9 * losses.iloc[0]
    predictions = predict_test(trained, frames, pixels, parts, setup, split=7)
    assert predictions.groupby("dataset").size().to_dict() == {"a": 6, "b": 4}
    assert set(predictions["seed"]) == {7}
    assert np.isfinite(predictions["pred"]).all()
    unseen = predictions["dataset"].eq("a") if name == "single:b" else predictions["pred"].isna()
    assert predictions["mapped"].isna().equals(unseen)
    assert trained.model.trunk is pixels["a"].trunk


def test_training_is_a_function_of_the_seed():
    frames, pixels, parts = make_sets()
    runs = [
        train_method(parse_method("mixed"), frames, pixels, parts, SETUP, seed=s) for s in (3, 3, 4)
    ]
    losses = [run.result.history["train_loss"].tolist() for run in runs]
    assert losses[0] == losses[1] != losses[2]
    heads = [run.model.head.first.weight for run in runs]
    assert torch.equal(heads[0], heads[1])


def test_methods_of_one_seed_start_from_the_same_regressor():
    frames, pixels, parts = make_sets()
    still = Setup(**{**SETUP.__dict__, "lr": 0.0, "epochs": 1})
    weights = [
        train_method(parse_method(m), frames, pixels, parts, still, seed=0).model.head.state_dict()
        for m in ("released", "linear")
    ]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_a_second_run_finds_a_finished_training_and_trains_nothing(tmp_path, monkeypatch):
    arguments = (parse_method("mixed"), *make_sets(), SETUP)
    first = train_method(*arguments, seed=0, checkpoint_dir=tmp_path)
    monkeypatch.setattr(mixed, "training_batches", lambda *_, **__: None)  # would fail
    again = train_method(*arguments, seed=0, checkpoint_dir=tmp_path)
    pd.testing.assert_frame_equal(again.result.history, first.result.history)
    weights = first.model.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in again.model.state_dict().items())
    assert first.seconds_before == 0
    assert again.seconds_before > 0  # the provenance counts them


@pytest.mark.parametrize("change", ["validation rows", "scores", "precision", "seed", "code"])
def test_what_decides_a_training_is_in_its_name(tmp_path, monkeypatch, change):
    frames, pixels, parts = make_sets()
    setup, seed = Setup(**{**SETUP.__dict__, "epochs": 1}), 0
    train_method(parse_method("mixed"), frames, pixels, parts, setup, seed=0,
                 checkpoint_dir=tmp_path)  # fmt: skip
    if change == "validation rows":
        parts["a"].loc[parts["a"].eq("validation").idxmax()] = "test"
    elif change == "scores":
        frames["a"].loc[parts["a"].eq("validation").idxmax(), "mos"] += 1e-9
    elif change == "precision":
        setup = Setup(**{**setup.__dict__, "precision": "bf16"})
    elif change == "seed":
        seed = 1
    else:
        monkeypatch.setattr(mixed, "_CODE", "other")
    train_method(parse_method("mixed"), frames, pixels, parts, setup, seed=seed,
                 checkpoint_dir=tmp_path)  # fmt: skip
    assert len(list(tmp_path.glob("*/last.pt"))) == 2


def test_a_run_waits_for_another_at_the_same_training(tmp_path):
    arguments = (parse_method("mixed"), *make_sets(), SETUP)
    train_method(*arguments, seed=0, checkpoint_dir=tmp_path)
    (held,) = tmp_path.glob("*.lock")
    second = threading.Thread(
        target=train_method, args=arguments, kwargs={"seed": 0, "checkpoint_dir": tmp_path}
    )
    with lock(held):
        second.start()
        second.join(1.0)
        assert second.is_alive()
    second.join(30.0)
    assert not second.is_alive()


def test_single_methods_may_have_settings_of_their_own():
    methods = [parse_method("linear"), parse_method("mixed")]
    own = {"mixed": {"N_SPLITS": 2, "EPOCHS": 1, "PRECISION": "bf16", "COMPILE": True}}
    trainings = plan_trainings(methods, SETUP, 1, own)
    assert [(k, m.name) for k, m, _ in trainings] == [(0, "linear"), (0, "mixed"), (1, "mixed")]
    assert trainings[0][2] == SETUP
    setup = trainings[2][2]
    assert (setup.epochs, setup.precision, setup.compile) == (1, "bf16", True)
    with pytest.raises(ValueError, match="no training 'released', there are linear, mixed"):
        plan_trainings(methods, SETUP, 1, {"released": {"EPOCHS": 1}})
    with pytest.raises(ValueError, match=r"OVERRIDES of 'mixed': unknown \['LR'\]"):
        plan_trainings(methods, SETUP, 1, {"mixed": {"LR": 1}})
    with pytest.raises(ValueError, match="EPOCHS must be int, got '1' \\(str\\)"):
        plan_trainings(methods, SETUP, 1, {"mixed": {"EPOCHS": "1"}})


def test_batches_carry_scores_sets_and_names_of_training_images_only():
    frames, pixels, parts = make_sets()
    scaled = {n: rescale(f["mos"].to_numpy(), parts[n].eq("training").to_numpy())[0]
              for n, f in frames.items()}  # fmt: skip
    batches = list(training_batches(frames, pixels, parts, scaled, SETUP, seed=0)(0))
    assert len(batches) == 5  # 18 indices of the larger set in batches of 4
    assert len(batches[0]) == 8
    allowed = {f"{n}/{i}" for n, f in frames.items() for i in f["image"][parts[n] == "training"]}
    seen = set()
    for batch in batches:
        for index, mos, source, maps in zip(
            batch.index.tolist(), batch.mos, batch.source, batch.inputs[0], strict=True
        ):
            name = "ab"[int(source)]
            row = index - (30 if name == "b" else 0)
            assert batch.names[index] == f"{name}/{frames[name]['image'][row]}"
            assert mos.item() == pytest.approx(scaled[name][row], rel=1e-6)
            assert torch.equal(maps, pixels[name].maps[row].permute(2, 0, 1))
            seen.add(batch.names[index])
    assert seen == allowed


def test_a_batch_with_a_single_image_of_a_set_trains_without_its_correlation():
    step = loss_step(Method("m"), Setup(**{**SETUP.__dict__, "norm_form": "eq4"}))
    from iqa_utils.training.batches import Batch

    mos, source = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 0, 1])
    quality = torch.tensor([1.5, 1.0, 3.0], requires_grad=True)
    batch = Batch((quality,), mos, torch.arange(3), source=source)
    loss = step(lambda x, _: x, batch)
    # set 0: smooth L1 (0.125 + 0.5) / 2 and 1 - (-1); set 1: 2 - 0.5 and no correlation
    assert loss.item() == pytest.approx(((0.3125 + 2) + 1.5) / 2, abs=1e-6)
    loss.backward()
    assert torch.isfinite(quality.grad).all()


def test_crops_of_real_files_train_the_trunk_and_whole_images_of_any_size_are_predicted(tmp_path):
    rng = np.random.default_rng(0)
    frame = make_frame("a", 12)
    for i, name in enumerate(frame["image"]):
        size = (40, 56) if i % 3 else (48, 40)
        pixels = rng.integers(0, 256, size=(*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    store = build_store(tmp_path, frame["image"], tmp_path / "s", size=None, fit="native")
    frames, images = {"a": frame}, {"a": CroppedImages(store, store, crop=32)}
    parts = split_sets(frames, seed=0)
    setup = Setup(**{**SETUP.__dict__, "lr_trunk": 1e-3, "epochs": 1})
    trained = train_method(parse_method("paper"), frames, images, parts, setup, seed=0)
    torch.manual_seed(0)
    fresh = create_backbone("test_resnet", pretrained=None, num_classes=0, global_pool="")
    before, after = fresh.state_dict(), trained.model.trunk.state_dict()
    assert not torch.equal(before["conv1.0.weight"], after["conv1.0.weight"])
    rows = np.array([5, 0, 7, 3])
    together = predict_quality(trained.model, images["a"], rows, setup)
    alone = [predict_quality(trained.model, images["a"], rows[[k]], setup)[0] for k in range(4)]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_maps_of_a_frozen_trunk_give_what_the_saved_network_gives_for_the_files(tmp_path):
    frame = make_frame("a", 6)
    rng = np.random.default_rng(0)
    for name in frame["image"]:
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / name)
    torch.manual_seed(0)
    trunk = create_backbone("test_resnet", pretrained=None, num_classes=0, global_pool="")
    frames, folders = {"a": frame}, {"a": tmp_path}
    pixels = prepare_pixels(frames, folders, tmp_path / "cache", size=36, trunk=trunk)
    parts = split_sets(frames, fractions=(0.34, 0.33, 0.33), seed=0)
    trained = train_method(parse_method("scalar"), frames, pixels, parts, SETUP, seed=0)
    quality = predict_quality(trained.model, pixels["a"], np.arange(6), SETUP)
    path = trained.save(tmp_path / "model.safetensors", split=0)
    scored = score_images([tmp_path / name for name in frame["image"]], path, progress=False)
    np.testing.assert_allclose(scored["score"], quality, rtol=1e-4, atol=1e-5)


def test_curves_speak_each_sets_own_scale():
    frames, pixels, parts = make_sets()
    trained = train_method(parse_method("linear"), frames, pixels, parts, SETUP, seed=0)
    training = frames["b"]["mos"][parts["b"] == "training"]
    ends = map_quality(trained, "b", np.array([0.0, 10.0]))
    np.testing.assert_allclose(ends, [training.min(), training.max()], rtol=1e-6)


def test_scores_are_rescaled_with_the_training_part_only():
    mos, training = np.array([2.0, 4.0, 6.0, 10.0]), np.array([True, False, True, False])
    scaled, span = rescale(mos, training)
    np.testing.assert_allclose(scaled, [0, 5, 10, 20])
    assert span == (2.0, 6.0)
    with pytest.raises(ValueError, match="training scores are all 2"):
        rescale(np.full(4, 2.0), training)


def test_validation_weights_sets_by_size_and_counts_a_constant_as_zero():
    frames, pixels, parts = make_sets()
    trained = train_method(parse_method("linear"), frames, pixels, parts, SETUP, seed=0)
    metrics = validate(trained.model, frames, pixels, parts, SETUP, ["a", "b"])
    expected = (30 * metrics["val_srcc a"] + 20 * metrics["val_srcc b"]) / 50
    assert metrics["val_srcc"] == pytest.approx(expected)
    for parameter in trained.model.head.last.parameters():
        torch.nn.init.zeros_(parameter)
    dead = validate(trained.model, frames, pixels, parts, SETUP, ["a", "b"])
    assert dead["val_srcc"] == 0


def test_subsets_are_warped_by_known_maps_and_keep_the_original():
    frame = pd.concat([make_frame("ss01", 3), make_frame("ss02", 4)], ignore_index=True)
    frame.attrs = make_frame("x", 1).attrs
    subsets = warp_subsets(frame, {"ss02": "cube", "ss01": "square root"})
    np.testing.assert_allclose(subsets["ss02"]["mos"], subsets["ss02"]["mos_original"] ** 3)
    np.testing.assert_allclose(subsets["ss01"]["mos"] ** 2, subsets["ss01"]["mos_original"])
    assert subsets["ss02"]["row"].tolist() == [3, 4, 5, 6]
    with pytest.raises(ValueError, match="no image of x starts with 'ss03'"):
        warp_subsets(frame, {"ss03": "x"})
    with pytest.raises(ValueError, match=r"got \['log'\]"):
        warp_subsets(frame, {"ss01": "log"})


def test_a_part_too_small_to_rank_is_refused_by_name():
    with pytest.raises(ValueError, match=r"a: every part needs 2 images.*'test': 1"):
        split_sets({"a": make_frame("a", 5)}, seed=0)


def test_a_missing_set_is_an_error_when_named_and_passed_over_when_not(tmp_path):
    with pytest.raises(FileNotFoundError, match="LIVE"):
        load_sets(["live"], tmp_path)
    with pytest.raises(FileNotFoundError, match="no data set with its images"):
        load_sets([], tmp_path)


def test_curves_are_sampled_where_the_model_predicts():
    frames, pixels, parts = make_sets()
    trained = train_method(parse_method("mixed"), frames, pixels, parts, SETUP, seed=0)
    predictions = predict_test(trained, frames, pixels, parts, SETUP, split=0)
    points = curve_points(trained, predictions, n_points=11)
    assert points.groupby("dataset").size().to_dict() == {"a": 11, "b": 11}
    assert points["quality"].min() == pytest.approx(predictions["pred"].min())
    assert (points.groupby("dataset")["score"].diff().dropna() >= -1e-6).all()
    for name, part in predictions.groupby("dataset"):
        inside = points[(points["dataset"] == name) & points["inside"]]["quality"]
        assert inside.between(part["pred"].min(), part["pred"].max()).all()
    ranked = train_method(parse_method("ranking"), frames, pixels, parts, SETUP, seed=0)
    none = curve_points(ranked, predictions)
    assert none.empty
    assert none.dtypes.to_dict() == points[list(none)].dtypes.to_dict()
    assert set(none) == set(points)


def test_unwarped_trains_on_the_scores_before_their_maps():
    frames, pixels, parts = make_sets()
    frames = {n: f.assign(mos_original=f["mos"] / f["mos"].max()) for n, f in frames.items()}
    setup = Setup(**{**SETUP.__dict__, "epochs": 1})
    trained = train_method(parse_method("unwarped"), frames, pixels, parts, setup, seed=0)
    assert trained.spans == {"a": (0.0, 1.0), "b": (0.0, 1.0)}


def test_sets_are_described_and_shown_on_their_own_scales(tmp_path):
    frames, _, parts = make_sets()
    table = describe_sets(frames, parts)
    assert table.loc["b", ["images", "training", "test"]].tolist() == [20, 12, 4]
    assert table.loc["b", "highest MOS"] > 50 > 1 > table.loc["a", "highest MOS"]
    frame = make_frame("a", 5).assign(distortion="blur")
    for level, name in enumerate(frame.sort_values("mos")["image"]):
        Image.new("RGB", (20, 10), (level, 0, 0)).save(tmp_path / name)
    images, captions = pick_examples({"a": frame}, {"a": tmp_path}, quantiles=(1.0, 0.0))
    assert [image[0, 0, 0] for image in images] == [4, 0]
    assert captions[0] == f"a blur\nMOS {frame['mos'].max():.3g}"


def test_known_maps_need_one_set(real_data):
    frames, folders, _ = load_frames(["biq2021"], real_data, {"ss02": "cube"})
    assert folders == {"ss02": real_data / "biq2021"}
    assert frames["ss02"]["image"].str.contains("ss02").all()
    np.testing.assert_allclose(frames["ss02"]["mos"], frames["ss02"]["mos_original"] ** 3)


def test_single_is_one_method_a_set_and_unknown_names_are_refused():
    names = [m.name for m in parse_methods(["paper-7", "single"], ["a", "b"])]
    assert names == ["paper-7", "single:a", "single:b"]
    with pytest.raises(ValueError, match="got 'released-4'"):
        parse_methods(["released-4"], ["a"])
    with pytest.raises(ValueError, match=r"\['single:c'\] need sets that are not among \['a'\]"):
        parse_methods(["single:c"], ["a"])

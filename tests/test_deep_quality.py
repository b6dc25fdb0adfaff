"""The joined table, fine-tuning rows, regression of layers, and paired comparisons."""

import functools
import re
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from iqa_utils.features import Crop, frozen_features
from iqa_utils.features.layers import Layer, Network, create_network, layers_of
from iqa_utils.images import build_store
from iqa_utils.regression.gaussian_process import fit_gaussian_process
from iqa_utils.studies import deep_quality, final_method, layer_regression, layer_scores
from iqa_utils.studies.final_method import average_crops, crop_distances, predict_final
from iqa_utils.studies.finetune import (
    ScoreNetwork,
    Tuner,
    check_choices,
    fine_tune,
    freeze_until,
    tuning_rows,
)
from iqa_utils.studies.layer_regression import (
    Task,
    make_tasks,
    predict_brisque,
    predict_layers,
    predict_networks,
)


def made_frame(name="tid2013", n_contents=6, per_content=4, seed=0):
    rng = np.random.default_rng(seed)
    n = n_contents * per_content
    frame = pd.DataFrame(
        {
            "image": [f"{i}.png" for i in range(n)],
            "mos": rng.normal(5, 2, n),
            "reference": np.repeat([f"I{k:02d}" for k in range(n_contents)], per_content),
            "distortion": np.tile(["jp2k", "jpeg", "wn", "gblur"], n_contents)[:n],
            "split": np.nan,
        }
    )
    frame.attrs["dataset"] = name
    return frame


def made_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 1000),
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A joined table of two sets with images whose brightness is their score."""
    root = tmp_path_factory.mktemp("sets")
    frames = {"tid2013": made_frame("tid2013"), "live": made_frame("live", seed=1)}
    rng = np.random.default_rng(0)
    for name, frame in frames.items():
        (root / name).mkdir()
        for image, mos in zip(frame["image"], frame["mos"], strict=True):
            pixels = 120 + 20 * (mos - 5) + rng.normal(0, 10, (20, 22, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / image)
    joined = deep_quality.join_sets(frames)
    parts = deep_quality.split_sets(frames, seed=0)
    store = build_store(
        root, joined["image"], root / "stores", size=None, fit="native", progress=False
    )
    return joined, parts, store


@pytest.fixture
def tiny(monkeypatch):
    """A network of the map small enough for tests."""
    row = Network("tiny", "torchvision", "none", 16, {})
    layers = (Layer("tiny", "early", "2", 196), Layer("tiny", "logits", "5", 1000))
    for module in (layer_regression, final_method, layer_scores):
        monkeypatch.setitem(module.NETWORKS, "tiny", row)
    monkeypatch.setattr("iqa_utils.features.layers.LAYERS", layers)
    return made_network(), layers


def task_of(world, dataset="tid2013", **options):
    frame, parts, _ = world
    rows = np.flatnonzero(frame["dataset"] == dataset)
    return layer_regression.make_task(frame, rows, parts, **options)


def test_joined_scores_are_standardised_per_set_and_tid_shares_its_contents():
    frames = {"tid2008": made_frame("tid2008", seed=2), "tid2013": made_frame("tid2013")}
    frames["tid2008"]["reference"] = frames["tid2008"]["reference"].str.lower()
    joined = deep_quality.join_sets(frames)
    by_set = joined.groupby("dataset")["mos_z"]
    np.testing.assert_allclose(by_set.mean(), 0, atol=1e-12)
    np.testing.assert_allclose(by_set.std(ddof=0), 1)
    assert joined["content"].nunique() == 6
    assert joined["image"].iloc[0] == "tid2008/0.png"
    parts = deep_quality.split_sets(frames, seed=3)
    assert len({*zip(joined["content"], parts, strict=True)}) == 6


def test_live_appears_as_its_two_releases(world):
    frame, *_ = world
    sets = deep_quality.paper_sets(frame)
    assert list(sets) == ["tid2013", "live2", "live1"]
    assert set(frame.loc[sets["live1"], "distortion"]) == {"jp2k", "jpeg"}
    assert len(sets["live2"]) == 24


def test_strict_tuning_sees_training_contents_only_and_as_written_sees_test_images(world):
    frame, parts, _ = world
    options = {"whole": False}
    train, validation = tuning_rows(frame, parts, "strict", ["live"], **options)
    assert set(frame["dataset"].iloc[train]) == {"live"}
    assert set(parts[train]) == {"training"}
    assert set(parts[validation]) == {"validation"}
    leaky, _ = tuning_rows(frame, parts, "as_written", ["live"], **options)
    assert (parts[leaky] == "test").any()
    assert set(frame["dataset"].iloc[leaky]) == {"live", "tid2013"}
    with pytest.raises(ValueError, match="mode must be one of"):
        tuning_rows(frame, parts, "honest", ["live"], **options)


def test_freezing_stops_at_the_named_module():
    network = made_network()
    assert freeze_until(network, "1") == 4
    assert [p.requires_grad for p in network.parameters()] == [False] * 4 + [True] * 2
    with pytest.raises(ValueError, match="no module '9'"):
        freeze_until(network, "9")
    with pytest.raises(ValueError, match="both sides"):
        freeze_until(network, "5")


def test_fine_tuning_lowers_the_error_and_leaves_frozen_layers_alone(world):
    frame, parts, store = world
    row = Network("tiny", "torchvision", "none", 16, {})
    before = made_network().state_dict()
    rows = [np.flatnonzero(parts == part) for part in ("training", "validation")]
    options = {"side": 16, "epochs": 4, "learning_rate": 1e-2, "frozen_until": "1"}
    options |= {"freeze_batch_norm": True}
    scores = frame["mos_z"].to_numpy()
    tuned, result = fine_tune(made_network(), row, store, scores, *rows, **options)
    assert result.history["train_loss"].iloc[-1] < result.history["train_loss"].iloc[0]
    assert all(parameter.grad is None for parameter in tuned.parameters())
    after = tuned.state_dict()
    assert torch.equal(after["1.running_mean"], before["1.running_mean"])
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(after["5.weight"], before["5.weight"])
    again, _ = fine_tune(made_network(), row, store, scores, *rows, **options)
    assert all(torch.equal(v, after[k]) for k, v in again.state_dict().items())
    with pytest.raises(ValueError, match="training and validation"):
        fine_tune(made_network(), row, store, scores, rows[0], rows[0][:3], **options)


def test_scores_under_bf16_are_as_fine_as_single_precision(world):
    torch.manual_seed(0)
    model, images = ScoreNetwork(made_network()).eval(), torch.randn(400, 3, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = model(images)
    assert scores.dtype == torch.float32
    assert len(scores.unique()) > 390


def test_steps_in_place_of_epochs_cut_the_last_pass_short(world):
    frame, parts, store = world
    row = Network("tiny", "torchvision", "none", 16, {})
    rows = [np.flatnonzero(parts == part) for part in ("training", "validation")]
    options = {"side": 16, "batch_size": 9, "epochs": 7}
    scores = frame["mos_z"].to_numpy()  # 32 images to train on: batches of 9, 9, 9 and 5
    _, result = fine_tune(made_network(), row, store, scores, *rows, n_steps=5, **options)
    assert result.history["images"].tolist() == [32, 9]


def test_the_tuner_never_trains_twice_on_the_same_images(world, tiny, tmp_path, capsys):
    frame, parts, store = world
    trained = []

    def build(name):
        network = made_network()
        network.register_forward_hook(lambda net, *_: trained.append(1) if net.training else None)
        return network

    tuner = Tuner(build, store, frame, parts, checkpoint_dir=tmp_path, epochs=1)
    first = tuner("tiny", "as_written", ["live"])
    weights = {name: value.clone() for name, value in first.state_dict().items()}
    assert tuner("tiny", "as_written", ["tid2013"], whole=True) is first
    assert tuner("tiny", "strict", ["live"]) is not first
    steps = len(trained)
    again = tuner("tiny", "as_written", ["live"]).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert len(trained) == steps
    assert len(tuner.histories) == 2
    assert capsys.readouterr().out.count("tiny, as_written, all sets: 40 images\n") == 1


def test_one_network_at_a_time_is_in_memory(world, tiny, tmp_path):
    frame, parts, store = world
    networks = weakref.WeakSet()

    def build(name):
        assert not len(networks)
        network = made_network()
        networks.add(network)
        return network

    layers, common = tiny[1], {"cache_dir": tmp_path / "cache", "stage": "any"}
    tasks = {0: task_of(world)}
    predict_networks(["tiny", "tiny"], build, store, tasks, **common)
    assert not len(networks)
    tuner = Tuner(build, store, frame, parts, checkpoint_dir=tmp_path, epochs=1)
    modes = ["strict", "as_written"]
    for mode in modes:
        tune = functools.partial(tuner, mode=mode, datasets=["tid2013"])
        predict_networks(["tiny"], tune, store, tasks, **common)
    options = {"task_options": {}, "n_crops": 1, "side": 16, "cache_dir": tmp_path / "cache"}
    final_method.predict_own_sets(tuner, layers[1], parts, modes, **options)
    final_method.predict_other_sets(tuner, layers[1], modes, **options)
    assert len(networks) == 1
    assert len(tuner.histories) == 5  # of all sets, and of each set without and with its test part


def test_an_override_changes_the_trainings_of_one_network_and_the_log_names_it(
    world, tiny, tmp_path, capsys
):
    frame, parts, store = world
    overrides = {"tiny": {"EPOCHS": 2, "PRECISION": "bf16"}}
    tuner = Tuner(
        lambda name: made_network(), store, frame, parts, checkpoint_dir=tmp_path, epochs=1,
        overrides=overrides,
    )  # fmt: skip
    tuner("tiny", "strict", ["live"])
    assert len(tuner.histories[0]) == 2
    assert "tiny, strict, live: 16 images, epochs 2, precision bf16\n" in capsys.readouterr().out


JOB = """
import sys, time
from pathlib import Path
import numpy as np
from iqa_utils.features.layers import Network
from iqa_utils.images import ImageStore
from iqa_utils.studies.finetune import fine_tune
from tests.test_deep_quality import TUNING, made_network

network = made_network()
network.register_forward_hook(lambda *_: time.sleep(0.05))
store = ImageStore(Path(sys.argv[1]))
fine_tune(network, Network("tiny", "torchvision", "none", 16, {}), store, np.arange(48.0),
          range(40), range(40, 48), checkpoint_dir=sys.argv[2], save_seconds=0.0, **TUNING)
"""
TUNING = {"side": 16, "batch_size": 4, "epochs": 2}


def test_a_killed_fine_tuning_ends_with_the_same_weights_to_the_last_bit(world, tmp_path, capsys):
    store, row = world[2], Network("tiny", "torchvision", "none", 16, {})
    root = Path(__file__).parents[1]
    job = subprocess.Popen([sys.executable, "-c", JOB, store.folder, tmp_path], cwd=root)
    until = time.monotonic() + 60
    while time.monotonic() < until and job.poll() is None and not list(tmp_path.glob("*/last.pt")):
        time.sleep(0.02)
    job.kill()
    assert job.wait() == -9
    network, steps = made_network(), []
    network.register_forward_hook(lambda net, *_: steps.append(1) if net.training else None)
    rows = (np.arange(48.0), range(40), range(40, 48))
    again, _ = fine_tune(network, row, store, *rows, checkpoint_dir=tmp_path, **TUNING)
    at = re.search(r"resumed at epoch (\d+), step (\d+)", capsys.readouterr().out)
    done = 10 * int(at[1]) + int(at[2])
    assert done > 0
    assert len(steps) == 20 - done
    whole, _ = fine_tune(made_network(), row, store, *rows, **TUNING)
    state = whole.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


def test_a_task_refuses_a_content_on_both_sides():
    content = np.array(["a", "a", "b"])
    with pytest.raises(ValueError, match="1 contents are trained on and tested"):
        Task(np.arange(3.0), content, np.array([0, 2]), np.array([1]))


def test_splits_that_do_not_differ_are_refused_and_others_share_their_crops(world):
    frame, parts, _ = world
    rows = np.flatnonzero(frame["dataset"] == "tid2013")
    with pytest.raises(ValueError, match="tid2013: 2 splits were asked for and 1 differ"):
        make_tasks(frame, rows, {0: parts, 1: parts.copy()})
    other = np.where(parts == "test", "training", np.where(parts == "validation", "test", parts))
    first, second = make_tasks(frame, rows, {4: parts, 5: other}, seed=4).values()
    assert (first.crop_seed, second.crop_seed, first.seed, second.seed) == (4, 4, 4, 5)
    assert (first.cross_validate, second.cross_validate) == (True, False)


CHOICES = {
    "tapped": ["vgg16", "alexnet"], "tuned": ["vgg16"], "final": ["vgg16", "fc8"],
    "modes": ["strict"], "frozen_until": {}, "overrides": {"vgg16": {"EPOCHS": 2}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tuned": []}, "fine-tuned: expected at least one"),
        ({"modes": ["strict", "strict"]}, "modes: expected at least one and none twice"),
        ({"modes": ["strikt"]}, r"\['strikt'\] are not among \['as_written', 'strict'\]"),
        ({"tapped": ["vgg"]}, r"\['vgg'\] are not among"),
        ({"tuned": ["resnet50"]}, r"\['resnet50'\] are not among \['alexnet', 'vgg16'\]"),
        ({"final": ["vgg16", "fc9"]}, r"must be one of \['fc6', 'fc7', 'fc8'\], got 'fc9'"),
        ({"final": ["vgg16", "conv5_3"]}, "got 'conv5_3'"),
        ({"final": ["vgg16"]}, "a network of the map and a layer"),
        ({"frozen_until": {"alexnet": "features"}}, r"\['alexnet'\], which are not fine-tuned"),
        ({"overrides": {"alexnet": {}}}, r"overrides names \['alexnet'\], which are not"),
        ({"overrides": {"vgg16": {"EPOCH": 2}}}, r"overrides of vgg16: \['EPOCH'\]; there are"),
        ({"overrides": {"vgg16": {"EPOCHS": "2"}}}, "EPOCHS must be int, got '2'"),
    ],
)
def test_choices_that_would_fail_late_are_refused_first(change, message):
    assert check_choices(**CHOICES).name == "fc8"
    with pytest.raises(ValueError, match=message):
        check_choices(**{**CHOICES, **change})


def test_layers_and_statistics_that_see_brightness_predict_it(world, tiny, tmp_path):
    frame, _, store = world
    task = task_of(world, relative_c=True, svr_c=[0.1, 1.0])
    network, layers = tiny
    predictions = predict_networks(
        ["tiny"], lambda name: network, store, {0: task}, stage="pre-trained", cache_dir=tmp_path
    )
    assert set(zip(predictions["layer"], predictions["regressor"], strict=True)) == {
        (layer.name, regressor) for layer in layers for regressor in ("SVR", "GPR", "ridge")
    }
    assert predictions.loc[predictions["regressor"] == "GPR", "sd"].gt(0).all()
    by = ["layer", "regressor"]
    scores = layer_scores.score_predictions(predictions, frame, by, n_resamples=50)
    srcc = scores[scores["metric"] == "SRCC"].set_index(by)["value"]
    assert srcc.min() > 0.7
    brisque = predict_brisque(store, {0: task}, cache_dir=tmp_path)
    assert set(brisque["stage"]) == {"handcrafted"}
    assert (tmp_path / f"brisque2-{store.key[:24]}.rows").is_file()


def test_a_set_of_five_references_is_cross_validated_in_as_many_folds_as_it_can(
    world, tiny, tmp_path
):
    frame, _, store = world
    contents = sorted(set(frame["content"]))[:5]  # four to learn from, one to predict
    rows = np.flatnonzero(frame["content"].isin(contents))
    parts = np.where(frame["content"] == contents[0], "test", "training")
    task = layer_regression.make_task(frame, rows, parts, svr_c=[0.1, 1.0], relative_c=True)
    assert task.n_folds == 4
    found = predict_layers(tiny[0], store, tiny[1], task, side=16, cache_dir=tmp_path)
    assert found.groupby("regressor")["cv_rmse"].first().gt(0).all()
    options = {"n_crops": 1, "side": 16, "cache_dir": tmp_path, "n_trials": 5}
    final, *_ = predict_final(tiny[0], store, tiny[1][1], task, **options)
    assert np.isfinite(final["pred"]).all()


def test_an_unknown_regressor_is_refused(world, tiny, tmp_path):
    with pytest.raises(ValueError, match="regressor must be one of"):
        predict_layers(
            tiny[0], world[2], tiny[1], task_of(world), side=16, cache_dir=tmp_path,
            regressors=["forest"],
        )  # fmt: skip


def test_crop_distances_are_those_of_the_features_and_one_crop_averages_to_itself(
    world, tiny, tmp_path
):
    task, (network, layers) = task_of(world), tiny
    options = {"side": 16, "cache_dir": tmp_path}
    within, between = crop_distances(network, world[2], layers[1], task, n_crops=2, **options)
    x, y = (
        frozen_features(
            network, world[2], layer="5", pooling="flatten", rows=rows, crop=Crop((16, 16), k),
            cache_dir=None,
        )
        for rows, k in ((task.train, 0), (task.test, 1))
    )  # fmt: skip
    direct = np.linalg.norm(y[:, None] - x[None], axis=2)
    np.testing.assert_allclose(between[1], direct, atol=1e-4)
    process = fit_gaussian_process(within, task.mos[task.train])
    twice = average_crops(process, np.stack([between[1], between[1]]))
    np.testing.assert_allclose(twice, process.predict(between[1]))
    with pytest.raises(ValueError, match="196 values, not a vector"):
        crop_distances(network, world[2], layers[0], task, n_crops=1, **options)


def test_the_final_method_searches_the_noise_when_asked(world, tiny, tmp_path):
    options = {"side": 16, "n_crops": 2, "cache_dir": tmp_path}
    found = [
        predict_final(tiny[0], world[2], tiny[1][1], task_of(world), n_trials=n, **options)
        for n in (0, 6)
    ]
    assert found[0][2] is None
    assert len(found[1][2].trials) == 6
    assert np.isfinite(found[1][0]["pred"]).all()


def test_cross_set_predictions_come_back_on_the_scale_of_the_test_set(
    world, tiny, tmp_path, monkeypatch
):
    frame, parts, store = world
    fits = []

    def counted(*arguments, **options):
        fits.append(1)
        return fit_gaussian_process(*arguments, **options)

    monkeypatch.setattr(final_method, "fit_gaussian_process", counted)
    tuner = Tuner(
        lambda name: made_network(), store, frame, parts, checkpoint_dir=tmp_path, epochs=1
    )
    cross = final_method.predict_other_sets(
        tuner, tiny[1][1], ["strict"], task_options={}, n_crops=1, side=16, cache_dir=tmp_path
    )
    assert set(zip(cross["table"], cross["dataset"], strict=True)) == {
        ("Table 5", "live1"),
        ("Table 5", "live2"),
        ("Table 7", "tid2013"),
    }
    np.testing.assert_allclose(cross["mos"], frame.loc[cross["row"], "mos"])
    sizes = {"live1": 12, "live2": 24, "tid2013": 24}
    assert cross.groupby("dataset")["row"].nunique().to_dict() == sizes
    assert len(fits) == 2  # one for each family that is trained on
    own, searches = final_method.predict_own_sets(
        tuner, tiny[1][1], parts, ["strict"], task_options={}, n_crops=1, side=16,
        cache_dir=tmp_path, n_trials=5,
    )  # fmt: skip
    assert set(own["dataset"]) == {"tid2013", "live1", "live2"}
    assert len(searches["live1", "strict"].trials) == 5
    timing = final_method.time_prediction(
        tiny[0], store, tiny[1][1], task_of(world), searches["tid2013", "strict"].process,
        n_crops=1, side=16, n_images=1,
    )  # fmt: skip
    assert timing["features"] > 0


def made_predictions(world, quality, seeds=(0,)):
    frame, *_ = world
    rng = np.random.default_rng(5)
    rows = np.arange(len(frame))
    mos = frame["mos"].to_numpy()
    parts = [
        pd.DataFrame(
            {"method": name, "row": rows, "mos": mos, "seed": seed, "n_train": 100,
             "pred": mos + noise * rng.normal(size=len(mos))}
        )
        for name, noise in quality.items()
        for seed in seeds
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2, 3)])
def test_better_than_changes_sign_across_the_diagonal(world, seeds):
    predictions = made_predictions(world, {"good": 0.1, "poor": 9.0, "also good": 0.1}, seeds)
    table = layer_scores.compare_methods(predictions, world[0])
    assert table.loc["good", "poor"] == 1
    assert table.loc["poor", "good"] == -1
    assert table.loc["good", "also good"] == 0
    np.testing.assert_array_equal(table, -table.T)


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_a_method_that_predicts_a_constant_differs_from_none(world, seeds):
    predictions = made_predictions(world, {"good": 0.1, "constant": 1.0, "poor": 9.0}, seeds)
    predictions.loc[predictions["method"] == "constant", "pred"] = 5.0
    table = layer_scores.compare_methods(predictions, world[0])
    assert table.loc["good", "poor"] == 1
    assert not table["constant"].any()


def test_scores_over_splits_have_the_corrected_interval(world):
    predictions = made_predictions(world, {"one": 2.0}, seeds=(0, 1, 2))
    scores = layer_scores.score_predictions(predictions, world[0], ["method"])
    row = scores[scores["metric"] == "RMSE"].iloc[0]
    values = [np.sqrt(np.mean((g["mos"] - g["pred"]) ** 2)) for _, g in predictions.groupby("seed")]
    half = 4.302653 * np.sqrt((1 / 3 + 48 / 100) * np.var(values, ddof=1))
    assert row["value"] == pytest.approx(np.mean(values))
    assert row["ci_high"] - row["value"] == pytest.approx(half, rel=1e-6)
    assert row["n_runs"] == 3


def test_scores_within_subsets_stand_beside_the_total(world):
    frame = world[0].assign(subset=np.where(world[0].index % 2, "ss01", "ss02"))
    scores = layer_scores.score_predictions(
        made_predictions(world, {"one": 1.0}), frame, ["method"], n_resamples=50
    )
    inside = ["SRCC ss01", "SRCC ss02", "SRCC within subsets"]
    assert list(scores["metric"]) == ["RMSE", "PLCC", "SRCC", "KRCC", *inside]
    assert scores["n"].tolist() == [48, 48, 48, 48, 24, 24, 48]


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_knowing_nothing_but_the_subset_gives_a_total_and_nothing_within(world, seeds):
    frame = world[0].assign(subset=np.repeat(["ss01", "ss02"], [12, 36]))
    predictions = made_predictions(world, {"one": 0.0}, seeds)
    first = frame.loc[predictions["row"], "subset"].to_numpy() == "ss01"
    noise = np.random.default_rng(9).normal(size=len(predictions))
    predictions["pred"] = 100.0 * first + noise
    predictions["mos"] = 100.0 * first + predictions["mos"].rank(pct=True)
    scores = layer_scores.score_predictions(predictions, frame, ["method"], n_resamples=300)
    value = scores.set_index("metric")["value"]
    assert value["SRCC"] > 0.5
    mean = (12 * value["SRCC ss01"] + 36 * value["SRCC ss02"]) / 48
    assert value["SRCC within subsets"] == pytest.approx(mean)
    low, high = scores.set_index("metric").loc["SRCC within subsets", ["ci_low", "ci_high"]]
    assert low < 0 < high
    assert abs(value["SRCC within subsets"]) < 0.3


def test_leakage_is_what_the_leaky_mode_gains_and_needs_both_modes(world):
    predictions = made_predictions(world, {"strict": 3.0, "as_written": 0.1})
    predictions = predictions.rename(columns={"method": "variant"}).assign(
        category="", dataset="live2"
    )
    leaks = layer_scores.leakage(predictions, world[0], ["category", "dataset"], n_resamples=100)
    low = leaks[["difference", "ci_low"]].to_numpy()
    assert leaks["metric"].tolist() == ["SRCC"]
    assert (low > 0).all()
    (row,) = layer_scores.leakage_rows(leaks, "vgg16", data={"live2": "demo"})
    assert (row["method"], row["value"]) == ("vgg16 + GPR, as_written minus strict", low[0, 0])
    strict = predictions[predictions["variant"] == "strict"]
    assert layer_scores.leakage(strict, world[0], ["category", "dataset"]).empty
    assert layer_scores.leakage(strict.iloc[:0], world[0], ["category", "dataset"]).empty


def test_differences_within_subsets_stand_beside_those_of_the_total(world):
    frame = world[0].assign(subset=np.where(world[0].index % 2, "ss01", "ss02"))
    predictions = made_predictions(world, {"early": 0.2, "last": 5.0})
    predictions = predictions.rename(columns={"method": "layer"}).assign(
        network="tiny", stage="pre-trained", regressor="SVR", cv_rmse=1.0, variant=""
    )
    contrast = layer_scores.depth_contrast(predictions, frame, n_resamples=100)
    assert contrast["metric"].tolist() == ["SRCC", "SRCC within subsets"]
    assert (contrast["ci_high"] < 0).all()
    after = predictions.assign(stage="fine-tuned", variant="strict")
    gain = layer_scores.tuning_gain(pd.concat([predictions, after]), frame, n_resamples=100)
    assert gain["metric"].tolist() == ["SRCC", "SRCC within subsets"] * 2
    assert (gain[["difference", "ci_low", "ci_high"]] == 0).all(axis=None)


def test_the_contrast_picks_the_earlier_layer_by_cross_validation_and_tests_the_difference(world):
    predictions = made_predictions(world, {"early": 5.0, "middle": 0.2, "last": 5.0})
    predictions = predictions.rename(columns={"method": "layer"}).assign(
        network="tiny", stage="pre-trained", regressor="SVR"
    )
    predictions["cv_rmse"] = predictions["layer"].map({"early": 3.0, "middle": 1.0, "last": 2.0})
    row = layer_scores.depth_contrast(predictions, world[0], n_resamples=200).iloc[0]
    assert (row["last"], row["earlier"]) == ("last", "middle")
    assert row["difference"] < 0
    assert layer_scores.read_contrast(row) == "an earlier layer is better"
    after = predictions.assign(stage="fine-tuned", variant="strict", pred=predictions["mos"])
    both = pd.concat([predictions.assign(variant=""), after])
    gain = layer_scores.tuning_gain(both, world[0], n_resamples=100)
    assert (gain["difference"] > 0).all()
    assert len(gain) == 3
    contrast = layer_scores.depth_contrast(predictions, world[0], n_resamples=50)
    hand = predictions[predictions["layer"] == "early"].assign(
        network="BRISQUE", layer="36 statistics", stage="handcrafted"
    )
    crafted = layer_scores.against_handcrafted(pd.concat([predictions, hand]), world[0])
    assert crafted[["best", "handcrafted"]].to_numpy().tolist() == [["middle, SVR", "SVR"]]
    assert crafted["ci_low"].item() > 0
    named = {"dataset": "made", "data": "demo"}
    rows = layer_scores.difference_rows(contrast, gain, crafted, **named)
    assert rows[0]["method"].endswith(f" last minus middle, {row['regressor']}, {row['stage']}")
    assert [r["value"] for r in rows] == [
        *contrast["difference"],
        *gain["difference"],
        *crafted["difference"],
    ]
    gain.loc[1, ["difference", "ci_low", "ci_high"]] = np.nan
    fewer = layer_scores.difference_rows(contrast, gain, crafted, **named)
    assert fewer == [row for row in rows if row is not rows[len(contrast) + 1]]


def test_results_are_named_as_in_the_ledger_or_as_controls():
    scores = pd.DataFrame(
        {"network": ["vgg16", "vgg16", "squeezenet1_0"], "layer": ["conv5_1", "conv5_1", "fire7"],
         "regressor": ["SVR", "ridge", "SVR"]}
    )  # fmt: skip
    named = layer_scores.name_layers(scores, "pre-trained")
    assert named["table"].tolist() == ["Table 1", "control", "control"]
    assert named["method"].iloc[0] == "Vgg16 / conv5_1 (pre-trained, linear SVR)"
    final = pd.DataFrame({"dataset": ["csiq"], "table": "Table 5", "category": "TID"})
    assert layer_scores.name_final(final, "nasnetalarge")["method"].item() == (
        "NASNet-Large + GPR trained on TID"
    )
    assert layer_scores.name_final(final, "squeezenet1_0")["table"].item() == "control"
    sizes = layer_scores.size_rows()
    assert {row["value"] for row in sizes if "ResNet101" in row["method"]} >= {100352, 200704}
    assert {row["data"] for row in sizes} == {"none"}


def test_the_paper_profile_names_networks_and_layers_that_exist():
    assert "predictions" in [layer.name for layer in layers_of("nasnetalarge", "Table 2")]
    with torch.device("meta"):
        network = create_network("nasnetalarge", pretrained=None)
    assert network.last_linear.out_features == 1000


def test_a_flat_image_has_no_statistics_and_gets_the_training_mean(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.normal(120, 5 + 4 * i, (24, 24, 3)).clip(0, 255)
        pixels = np.full((24, 24, 3), 80.0) if i in (3, 11) else pixels
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i}.png")
    names = [f"{i}.png" for i in range(12)]
    store = build_store(
        tmp_path, names, tmp_path / "stores", size=None, fit="native", progress=False
    )
    rows = np.arange(12)
    task = Task(np.arange(12.0), rows.astype(str), rows[:9], rows[9:])
    found = predict_brisque(store, {0: task}, cache_dir=tmp_path, regressors=["ridge"])
    assert found.loc[found["row"] == 11, "pred"].item() == pytest.approx(np.arange(9).mean(), abs=1)
    assert np.isfinite(found["pred"]).all()

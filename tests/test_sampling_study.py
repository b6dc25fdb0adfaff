"""The study of the samplers: what is trained, on which images, and what the tables say."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from iqa_utils import metrics
from iqa_utils.features.frozen_stem import stem_activations, stem_batches
from iqa_utils.images import build_store
from iqa_utils.models.branch import Branch
from iqa_utils.studies import sampling_results as results
from iqa_utils.studies.sampling_setup import INDICATORS, Recipe, Scenario, standardise, step_seconds
from iqa_utils.studies.sampling_study import Study
from iqa_utils.training import load_model
from tests.conftest import ROOT
from tests.sampling_job import STEPS, train_both

SMALL = "test_efficientnet"
RECIPE = Recipe(
    backbone=SMALL, koncept_backbone=SMALL, pretrained=None, epochs=1, batch_size=4,
    learning_rate=1e-3, halve_every=1, plane_size=32,
)  # fmt: skip
N = 24
MOS = np.linspace(2, 98, N)
SPLIT = np.array(["training"] * 16 + ["validation"] * 4 + ["test"] * 4)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    names = [f"{i:02d}.png" for i in range(N)]
    for i, name in enumerate(names):
        noise = generator.normal(0, 2 * i, (40, 48, 3))
        Image.fromarray(np.clip(128 + noise, 0, 255).astype(np.uint8)).save(folder / name)
    return build_store(folder, names, folder / "stores", size=(40, 48), progress=False)


@pytest.fixture(scope="module")
def indicators():
    table = np.random.default_rng(1).uniform(0.1, 1, (N, len(INDICATORS)))
    return pd.DataFrame(table, columns=list(INDICATORS))


def study(store, indicators, recipe=RECIPE, **options):
    order = np.random.default_rng(2).permutation(N)  # every part has all scores
    return Study(store, MOS[order], indicators, SPLIT, recipe, edges=[0, 50, 75, 100], **options)


def test_every_scenario_trains_and_predicts_the_test_part(store, indicators):
    scenarios = {
        "both": Scenario(), "pixels": Scenario(inputs="images", sampler="method3"),
        "numbers": Scenario(inputs="parameters", sampler="rule"),
        "weighted": Scenario(fusion="linear", loss="range-weighted"),
        "rival": Scenario(network="koncept", sampler="method1"),
    }  # fmt: skip
    runs = study(store, indicators).train_all(scenarios, n_runs=1, select="range_sum")
    assert runs.predictions.groupby("method").size().eq(4).all()
    assert runs.predictions["pred"].notna().all()
    assert runs.history["method"].tolist() == list(scenarios)
    images = runs.cost.set_index("method")["images"]
    counts = np.histogram(study(store, indicators).mos[:16], [0, 50, 75, 100])[0]
    smallest = counts.min()
    assert images["both"] == images["weighted"] == 16
    assert images["pixels"] == smallest * (4 + 4 + 3)
    assert images["rival"] == smallest * 3  # 9 images in batches of 4: none is left out
    assert runs.history.set_index("method")["images"].equals(images.astype(int))


def test_the_same_training_gives_the_same_predictions_and_another_seed_others(store, indicators):
    first, again = (study(store, indicators).train(Scenario(), seed=0).pred for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, study(store, indicators).train(Scenario(), seed=1).pred)


def test_what_was_trained_is_not_trained_again(store, indicators):
    one = study(store, indicators)
    first = one.train_all({"a": Scenario()}, n_runs=1, select="total")
    again = one.train_all({"b": Scenario()}, n_runs=1, select="total")
    assert first.cost["seconds"].equals(again.cost["seconds"])
    assert again.predictions["method"].unique().tolist() == ["b"]


def test_a_saved_network_scores_as_it_did_and_is_not_trained_twice(store, indicators, tmp_path):
    one = study(store, indicators, checkpoint_dir=tmp_path)
    scenario = Scenario(inputs="images")
    trained = one.train(scenario, seed=0, select="srcc")
    stamp = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/last.pt")}
    options = {"dataset": "made", "demo": True, "seed": 0, "select": "srcc"}
    path = one.save(tmp_path / "model.safetensors", "Images", scenario, **options)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/last.pt")} == stamp
    model, metadata = load_model(path)
    np.testing.assert_array_equal(one.predict(model, one.rows["test"], "fp32"), trained.pred)
    assert metadata["preprocessing"]["size"] == [40, 48]
    assert metadata["training_data"] == {"dataset": "made", "demo": True}


def test_a_method_can_have_settings_of_its_own_and_the_log_names_it(store, indicators, capsys):
    own = {"a": {"EPOCHS": 2, "N_RUNS": 2}, "b": {"PRECISION": "bf16"}}
    one = study(store, indicators, overrides=own)
    runs = one.train_all(
        {"a": Scenario(), "b": Scenario(), "c": Scenario()}, n_runs=1, select="total"
    )
    assert runs.history.groupby(["method", "seed"]).size().to_dict() == {
        ("a", 0): 2, ("a", 1): 2, ("b", 0): 1, ("c", 0): 1,
    }  # fmt: skip
    first = runs.predictions.query("seed == 0").set_index("method")["pred"]
    assert not np.array_equal(first["b"], first["c"])
    assert capsys.readouterr().out.splitlines() == [
        "a, seed 0: {'EPOCHS': 2, 'N_RUNS': 2}", "a, seed 1: {'EPOCHS': 2, 'N_RUNS': 2}",
        "b, seed 0: {'PRECISION': 'bf16'}",
    ]  # fmt: skip


def test_two_splits_of_the_same_sizes_and_first_images_share_no_checkpoint(store, indicators):
    other = SPLIT.copy()
    other[[5, 18]] = other[[18, 5]]  # neither is the first of its part
    configs = [
        Study(store, MOS, indicators, split, RECIPE)._config(Scenario(), RECIPE)
        for split in (SPLIT, other)
    ]
    assert configs[0]["data"] != configs[1]["data"]


def test_a_ridge_start_predicts_what_ridge_regression_predicts(store, indicators):
    recipe = replace(RECIPE, ridge_start=True, frozen="blocks.2", pooling="mean_std")
    one = study(store, indicators, recipe)
    model = one.build(Scenario(), 0)
    model.activation = torch.nn.Identity()  # this small trunk does not end in a ReLU
    rows = one.rows["test"]
    expected = one.ridge.predict(one.image_features(rows))
    np.testing.assert_allclose(one.predict(model, rows, "fp32"), expected, rtol=1e-3)


def test_frozen_layers_are_applied_once_and_mirrored(store, tmp_path):
    branch = Branch(SMALL, 3)
    branch.freeze("blocks.1")
    activations = stem_activations(branch, store, cache_dir=tmp_path)
    assert len(activations) == 2 * N
    images = torch.stack([store.image(3), store.image(3).flip(2)]).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = branch.stem((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    pair = activations[[3, N + 3]].float()
    torch.testing.assert_close(pair, expected, rtol=2e-3, atol=2e-3)
    branch.stem = None  # would fail if it ran again
    assert torch.equal(stem_activations(branch, store, cache_dir=tmp_path), activations)
    (plain,) = stem_batches(activations, np.arange(4), MOS, batch_size=4)
    assert torch.equal(plain.inputs[0], activations[:4].float())
    shown = [b.index for b in stem_batches(activations, np.arange(N), MOS, batch_size=4, seed=0)]
    shown = torch.cat(shown)
    assert sorted((shown % N).tolist()) == list(range(N))
    assert 0 < (shown >= N).sum() < N


def test_indicators_are_standardised_on_the_training_part(indicators):
    numbers = standardise(indicators, np.arange(16))
    torch.testing.assert_close(numbers[:16].mean(0), torch.zeros(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(numbers[:16].std(0, correction=0), torch.ones(4))
    logs = np.log(indicators["sharpness"])
    order = numbers[:, INDICATORS.index("sharpness")]
    assert np.corrcoef(logs, order)[0, 1] == pytest.approx(1)
    with pytest.raises(ValueError, match=r"missing \['bitrate'\]"):
        standardise(indicators.drop(columns="bitrate"), np.arange(16))
    with pytest.raises(ValueError, match="first row 5"):
        standardise(
            indicators.assign(contrast=np.where(np.arange(N) == 5, np.nan, 1.0)), np.arange(9)
        )


def test_wrong_studies_are_refused(store, indicators):
    with pytest.raises(ValueError, match="differ in number"):
        Study(store, MOS[:-1], indicators, SPLIT, RECIPE)
    with pytest.raises(ValueError, match=r"no images for \['test'\]"):
        Study(store, MOS, indicators, np.where(SPLIT == "test", "training", SPLIT), RECIPE)
    with pytest.raises(ValueError, match="select must be one of"):
        study(store, indicators).train(Scenario(), seed=0, select="best")


def test_steps_are_timed_and_compared_with_the_first():
    from iqa_utils.models.dual_xception import DualXception

    networks = {"a": DualXception(SMALL, inputs="images"), "b": DualXception(SMALL, plane_size=32)}
    table = step_seconds(networks, size=(40, 40), batch_size=2, repeats=1)
    assert table.loc["a", "ratio"] == 1
    assert (table["seconds"] > 0).all()
    assert table.loc["b", "millions"] > table.loc["a", "millions"]


# tables


def made_predictions():
    generator = np.random.default_rng(0)
    mos = generator.uniform(0, 100, 60)
    parts = []
    for method, noise in (("good", 5.0), ("bad", 30.0)):
        for seed in range(3):
            pred = mos + generator.normal(0, noise, len(mos))
            columns = {"image": [f"{i}" for i in range(60)], "mos": mos, "pred": pred}
            parts.append(pd.DataFrame(columns).assign(method=method, seed=seed))
    return pd.concat(parts, ignore_index=True)


def test_a_summary_averages_runs_and_names_both_errors():
    frame = made_predictions()
    table = results.summarise(frame, n_resamples=50).set_index(["method", "metric"])
    runs = [part for _, part in frame.query("method == 'bad'").groupby("seed")]
    for name, metric in (("RMSE", metrics.rmse), ("MSE", metrics.mse), ("SRCC", metrics.srcc)):
        values = [metric(part["mos"], part["pred"]) for part in runs]
        assert table.loc[("bad", name), "value"] == pytest.approx(np.mean(values))
        assert table.loc[("bad", name), "sd"] == pytest.approx(np.std(values, ddof=1))
    row = table.loc[("bad", "SRCC")]
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert row["n"] == 60
    assert row["n_runs"] == 3
    edges = [metrics.per_range(p["mos"], p["pred"], metrics.rmse) for p in runs]
    spread = np.mean([metrics.ranges_sd(values) for values in edges])
    assert table.loc[("bad", results.RANGES_SD), "value"] == pytest.approx(spread)


def test_a_paired_test_finds_a_real_difference_and_no_difference():
    frame = made_predictions()
    same = frame.query("method == 'bad'").assign(method="twin")
    tests = results.paired_tests(pd.concat([frame, same]), "bad", n_resamples=100)
    assert tests.loc["good", "low"] > 0
    assert tests.loc["good", "p"] < 0.05
    assert tests.loc["twin", "difference"] == 0
    assert tests.loc["twin", "low"] == tests.loc["twin", "high"] == 0
    assert (tests["p_holm"] >= tests["p"]).all()
    with pytest.raises(KeyError, match="reference must be one of"):
        results.paired_tests(frame, "absent")


def test_layout_and_ledger_names():
    summary = results.summarise(made_predictions(), n_resamples=20)
    table = results.wide(summary, ["bad", "good"])
    assert list(table.columns) == ["bad", "good"]
    assert "±" in table.loc["SRCC", "good"]
    rows = results.as_results(summary, "Tab. 4", {"good": "method 1"}, dataset="d", data="demo")
    assert set(rows["method"]) == {"method 1"}
    assert {"table", "metric", "value", "ci_low", "n", "n_runs", "dataset"} <= set(rows.columns)
    assert "sd" not in rows


def test_quotas_of_the_official_training_part():
    mos = np.repeat([10, 30, 50, 70, 90], [129, 833, 2157, 3790, 149])
    table = results.quota_table(mos, ["none", "rule"])
    assert table["images"].tolist() == [7058, 1826]
    assert table.loc["rule", "share"] == 1826 / 7058


def test_a_study_killed_inside_an_epoch_ends_with_the_same_numbers_to_the_last_bit(
    tmp_path, capsys
):
    threads, before = str(torch.get_num_threads()), STEPS[0] + 1
    with subprocess.Popen(
        [sys.executable, "-m", "tests.sampling_job", str(tmp_path), threads],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        for _ in range(before + 1):  # in the second training, with a step saved
            assert process.stdout.readline() == "step\n"
        process.kill()
    steps = []
    runs = train_both(tmp_path, tmp_path / "checkpoints", lambda: steps.append(1))
    found = re.fullmatch(r"resumed at epoch (\d), step (\d)\n", capsys.readouterr().out)
    epoch, step = map(int, found.groups())
    assert epoch + step > 0
    assert len(steps) == STEPS[1] - 2 * epoch - step  # nothing finished ran twice
    expected = train_both(tmp_path, None, lambda: None)
    assert runs.predictions.equals(expected.predictions)
    assert runs.history.drop(columns="seconds").equals(expected.history.drop(columns="seconds"))


# true counts

OFFICIAL = {"none": 7058, "method1": 645, "method2": 903, "method3": 2193, "rule": 1826}


class Linear(torch.nn.Module):
    """One neuron on one pixel and four indicators."""

    def __init__(self):
        super().__init__()
        self.neuron = torch.nn.Linear(3 + len(INDICATORS), 1)

    def forward(self, images, indicators):
        return self.neuron(torch.cat([images.flatten(1), indicators], dim=1)).squeeze(1)


def official_training_scores():
    """Return KonIQ-10k's, or where the file is absent scores with as many in each range."""
    path = ROOT.parent / "shared" / "data" / "koniq10k" / "koniq10k_distributions_sets.csv"
    if path.is_file():
        table = pd.read_csv(path)
        return table.loc[table["set"] == "training", "MOS"].to_numpy()
    low = np.repeat([0, 20, 40, 60, 80], [129, 833, 2157, 3790, 149])
    return low + np.random.default_rng(0).uniform(0, 20, len(low))


def test_histories_of_the_official_training_part_hold_what_every_sampler_draws(tmp_path):
    mos = official_training_scores()
    mos = np.r_[mos, mos[::353], mos[1::353]]  # 20 more each for validation and test
    split = np.repeat(["training", "validation", "test"], [7058, 20, 20])
    picture = tmp_path / "0.png"
    Image.new("RGB", (1, 1), (90, 120, 150)).save(picture)
    names = [f"{i}.png" for i in range(len(mos))]
    for name in names[1:]:
        (tmp_path / name).hardlink_to(picture)
    store = build_store(tmp_path, names, tmp_path / "stores", size=(1, 1), progress=False)
    numbers = np.random.default_rng(0).uniform(0.1, 1, (len(mos), len(INDICATORS)))
    numbers = pd.DataFrame(numbers, columns=list(INDICATORS))
    one = Study(store, mos, numbers, split, RECIPE)
    one.build = lambda scenario, seed: Linear()
    runs = one.train_all(
        {name: Scenario(sampler=name) for name in OFFICIAL}, n_runs=1, select="total"
    )
    assert runs.history.set_index("method")["images"].to_dict() == OFFICIAL

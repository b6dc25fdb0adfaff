"""Trainings of one head under several treatments of rare scores, and the tables made of them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from iqa_utils.imbalance import effective_sample_size
from iqa_utils.studies import rebalancing
from iqa_utils.studies.rebalancing import (
    RECIPES,
    HeadSettings,
    Recipe,
    balanced_mean,
    train_head,
    train_recipes,
)
from iqa_utils.studies.rebalancing_results import (
    by_method,
    density_errors,
    difference_table,
    error_table,
    floor_predictions,
    image_groups,
    is_papers_encoder,
    ledger_rows,
    mean_correlation,
    weight_table,
)

RANGES = (0.0, 20.0, 40.0, 60.0, 80.0, 100.0)
SETTINGS = HeadSettings(
    tuple(float(e) for e in range(101)), RANGES,
    width=16, depth=1, neck=8, epochs=4, batch_size=32, learning_rate=0.02,
)  # fmt: skip


def _data(n=240, *, seed=0):
    """Vectors that tell the score with noise; scores crowd between 40 and 80."""
    rng = np.random.default_rng(seed)
    mos = np.clip(rng.normal(60, 15, n), 1, 99)
    mos[:12] = rng.uniform(1, 20, 12)
    mos = rng.permutation(mos)
    features = np.column_stack([mos / 15 + rng.normal(0, 0.4, n), rng.normal(size=(n, 7))])
    frame = pd.DataFrame({"image": [f"{i:03}.png" for i in range(n)], "mos": mos})
    frame["reference"] = frame["image"]
    frame.attrs["dataset"] = "made"
    split = pd.Series(np.resize(["training", "training", "validation", "test"], n))
    return torch.tensor(features, dtype=torch.float32), frame, split


@pytest.fixture(scope="module")
def trained():
    features, frame, split = _data()
    return train_recipes(
        features, frame, split, list(RECIPES), SETTINGS, seeds=[0, 1], progress=False
    )


def test_every_recipe_trains_and_predicts_the_test_part_with_every_seed(trained):
    predictions, history = trained
    assert predictions.groupby(["method", "seed"]).size().eq(60).all()
    assert set(predictions["method"]) == set(RECIPES)
    assert np.isfinite(predictions["pred"]).all()
    assert history.groupby(["method", "seed"]).size().eq(4).all()
    errors = (predictions["pred"] - predictions["mos"]).abs()
    floor = (predictions["mos"] - predictions["mos"].median()).abs().mean()
    assert errors.groupby(predictions["method"]).mean().max() < 0.8 * floor


def test_recipes_of_one_seed_start_from_the_same_weights_and_differ_in_the_end(trained):
    predictions, _ = trained
    table = predictions[predictions["seed"] == 0].pivot_table(
        index="image", columns="method", values="pred"
    )
    assert len({tuple(table[name]) for name in table}) == len(RECIPES)


def test_a_seed_decides_a_training_completely():
    features, frame, split = _data()
    runs = [
        train_head(features, frame["mos"], split, RECIPES["LDS + FDS"], SETTINGS, seed=seed)
        for seed in (3, 3, 4)
    ]
    np.testing.assert_array_equal(runs[0].pred, runs[1].pred)
    assert np.abs(runs[0].pred - runs[2].pred).max() > 1e-3


@pytest.mark.parametrize("select", ["last", "val_mae", "val_balanced_mae"])
def test_the_epoch_is_the_last_or_the_best_on_validation_images(select):
    features, frame, split = _data()
    settings = replace(SETTINGS, select=select, learning_rate=0.2)
    run = train_head(features, frame["mos"], split, Recipe(), settings, seed=0)
    history = run.fit.history
    expected = 4 if select == "last" else history["epoch"][history[select].argmin()]
    assert run.fit.best_epoch == expected
    rows = (split == "validation").to_numpy()
    error = np.abs(run.pred - frame["mos"])[rows].mean()
    assert error == pytest.approx(history["val_mae"][expected - 1], rel=1e-5)


def test_feature_smoothing_sees_every_epoch_once():
    features, frame, split = _data()
    run = train_head(
        features, frame["mos"], split, RECIPES["FDS"], replace(SETTINGS, epochs=5), seed=0
    )
    best = run.fit.best_epoch  # in its state, epoch e (from 1) has ended e - 1 collections
    assert int(run.head.fds.epoch) == best - 1


def test_a_recipe_that_goes_on_starts_from_the_trained_head():
    features, frame, split = _data()
    first = train_head(features, frame["mos"], split, RECIPES["LDS"], SETTINGS, seed=0)
    still = replace(SETTINGS, learning_rate=1e-12)
    second = train_head(
        features,
        frame["mos"],
        split,
        RECIPES["LDS, then FDS"],
        still,
        seed=0,
        start=first.head.state_dict(),
    )
    np.testing.assert_allclose(second.pred, first.pred, atol=1e-3)
    with pytest.raises(ValueError, match=r"goes on from 'LDS', list that before it"):
        train_recipes(features, frame, split, ["LDS, then FDS"], SETTINGS, seeds=[0])


def test_finished_trainings_are_not_repeated_and_a_changed_setting_is(tmp_path, monkeypatch):
    features, frame, split = _data()
    arguments = (features, frame, split, ["LDS", "LDS, then FDS"])
    options = {"seeds": [0], "checkpoint_dir": tmp_path, "progress": False}
    first, history = train_recipes(*arguments, SETTINGS, **options)
    monkeypatch.setattr(rebalancing, "tensor_batches", None)  # would fail if it were called
    again, history_again = train_recipes(*arguments, SETTINGS, **options)
    pd.testing.assert_frame_equal(first, again)
    pd.testing.assert_frame_equal(history, history_again)
    with pytest.raises(TypeError):
        train_recipes(*arguments, replace(SETTINGS, epochs=5), **options)
    frame.loc[split.eq("validation").idxmax(), "mos"] += 1e-9
    with pytest.raises(TypeError):
        train_recipes(*arguments, SETTINGS, **options)


@pytest.mark.parametrize("recipe", ["LDS + FDS", "LDS + FDS, released"])
@pytest.mark.parametrize("select", ["last", "val_mae"])
def test_a_killed_training_goes_on_and_ends_the_same(tmp_path, monkeypatch, select, recipe):
    features, frame, split = _data()
    settings = replace(SETTINGS, select=select, learning_rate=0.2)
    arguments = (features, frame["mos"], split, RECIPES[recipe], settings)
    options = {"seed": 0, "checkpoint_dir": tmp_path, "save_seconds": 0.0}
    expected = train_head(*arguments, seed=0)
    batches, left = rebalancing.tensor_batches, iter(range(10))  # 4 a epoch: dies in the third

    def dying(*args, **kwargs):
        for batch in batches(*args, **kwargs):
            if next(left, None) is None:
                raise MemoryError
            yield batch

    monkeypatch.setattr(rebalancing, "tensor_batches", dying)
    with pytest.raises(MemoryError):
        train_head(*arguments, **options)
    monkeypatch.setattr(rebalancing, "tensor_batches", batches)
    run = train_head(*arguments, **options)
    np.testing.assert_array_equal(run.pred, expected.pred)
    assert run.fit.best_epoch == expected.fit.best_epoch


def test_single_recipes_may_have_epochs_and_seeds_of_their_own():
    features, frame, split = _data()
    own = {"LDS": {"EPOCHS": 2}, "vanilla": {"N_SEEDS": 2}}
    arguments = (features, frame, split, ["vanilla", "LDS"], replace(SETTINGS, epochs=1))
    predictions, history = train_recipes(*arguments, seeds=[3], overrides=own, progress=False)
    epochs = history.groupby(["seed", "method"], sort=False).size()
    assert epochs.to_dict() == {(3, "vanilla"): 1, (3, "LDS"): 2, (4, "vanilla"): 1}
    parts = by_method(predictions)
    table = difference_table(parts, "vanilla", RANGES, n_resamples=20)
    assert table["p_seeds"].isna().all()
    with pytest.raises(ValueError, match="no training 'MSE', there are vanilla, LDS"):
        train_recipes(*arguments, seeds=[0], overrides={"MSE": {"EPOCHS": 2}})
    with pytest.raises(ValueError, match=r"unknown \['PRECISION'\]"):
        train_recipes(*arguments, seeds=[0], overrides={"LDS": {"PRECISION": "bf16"}})


def test_weights_of_the_recipes():
    mos = np.array([5.0, 50.5, 50.6, 50.7])
    assert effective_sample_size(Recipe().weights(mos, SETTINGS)) == pytest.approx(4)
    root = RECIPES["sqrt_inv"].weights(mos, SETTINGS)
    assert root[0] / root[1] == pytest.approx(np.sqrt(3))
    by_range = RECIPES["range-weighted MSE"].weights([5, 50.5, 55.6, 59.7], SETTINGS)
    assert by_range[0] / by_range[3] == pytest.approx(3)


def test_raw_targets_start_at_zero_and_standardised_ones_at_the_mean():
    features, frame, split = _data()
    still = replace(SETTINGS, learning_rate=1e-12, epochs=1)
    for standardise, low, high in ((True, 30, 90), (False, -3, 3)):
        settings = replace(still, standardise=standardise)
        run = train_head(features, frame["mos"], split, Recipe(), settings, seed=0)
        assert low < run.pred.mean() < high


def test_unknown_recipes_and_scores_outside_the_bins_are_refused():
    features, frame, split = _data()
    with pytest.raises(KeyError, match="no recipe DenseWeight; there are vanilla, LDS"):
        train_recipes(features, frame, split, ["DenseWeight"], SETTINGS, seeds=[0])
    frame["mos"] += 10
    with pytest.raises(ValueError, match="scores span"):
        train_head(features, frame["mos"], split, RECIPES["LDS"], SETTINGS, seed=0)


def test_a_balanced_mean_counts_every_range_the_same():
    mos, error = [5, 6, 50, 51, 52, 53, 90], [4, 6, 1, 1, 1, 1, 100]
    assert balanced_mean(mos, error, RANGES) == pytest.approx(3)  # (5 + 1) / 2, 90 is alone
    assert np.isnan(balanced_mean([5, 90], [1, 1], RANGES))


def test_groups_of_images_have_the_papers_names():
    mos = np.array([0.2, 1, 2.4, 3.0, 3.6, 4])
    groups = image_groups(
        mos, [0, 0.5, 1.5, 2.5, 3.5, 4], names=["0", "1", "2", "3", "4"], rare=["3", "4"]
    )
    assert list(groups) == ["MAE 0", "MAE 1", "MAE 2", "MAE 3", "MAE 4", "MAE 3 and 4", "MAE"]
    assert groups["MAE 3 and 4"].tolist() == [False, False, False, True, True, True]
    assert groups["MAE"].all()
    with pytest.raises(ValueError, match="need as many names"):
        image_groups(mos, [0, 2, 4], rare=["3"])


def _two_methods(n=60, n_seeds=4):
    """Method b errs by one less than a below 20, by two more elsewhere."""
    mos = np.linspace(1, 99, n)
    rows = []
    for seed in range(n_seeds):
        for method in "ab":
            bias = np.where(mos < 20, 5.0, 3.0) + 0.1 * seed
            bias += 0 if method == "a" else np.where(mos < 20, -1.0, 2.0)
            rows.append(pd.DataFrame({"image": np.arange(n), "mos": mos, "pred": mos + bias,
                                      "method": method, "seed": seed}))  # fmt: skip
    return by_method(pd.concat(rows))


def test_errors_by_range_by_hand():
    table = error_table(_two_methods(), RANGES, rare=["0-20"], n_resamples=50)
    cells = table.set_index(["method", "metric"])["value"]
    assert cells["a", "MAE 0-20"] == pytest.approx(5.15)
    assert cells["b", "MAE 80-100"] == pytest.approx(5.15)
    assert cells["a", "MAE balanced"] == pytest.approx((5.15 + 4 * 3.15) / 5)
    row = table.query("method == 'a' and metric == 'MAE 0-20'").iloc[0]
    assert (row["n"], row["n_runs"]) == (12, 4)
    assert row["seed_sd"] == pytest.approx(np.std([5.0, 5.1, 5.2, 5.3], ddof=1))
    inside = (table["ci_low"] <= table["value"] + 1e-9) & (
        table["value"] <= table["ci_high"] + 1e-9
    )
    assert inside.all()


def test_differences_are_method_minus_reference_and_paired():
    table = difference_table(_two_methods(), "a", RANGES, n_resamples=50)
    cells = table.set_index("metric")
    assert cells.loc["MAE 0-20", "value"] == pytest.approx(-1)
    assert cells.loc["MAE 60-80", "value"] == pytest.approx(2)
    assert cells.loc["MAE 0-20", ["ci_low", "ci_high"]].tolist() == pytest.approx([-1, -1])
    assert cells.loc["MAE 0-20", "p"] == pytest.approx(2 / 51)
    assert cells.loc["MAE 0-20", "p_seeds"] == pytest.approx(0.125)  # 2 / 2**4, the least of four
    assert set(table["method"]) == {"b"}


def test_the_correlation_is_averaged_over_seeds():
    parts = _two_methods()
    value, low, high, by_seed = mean_correlation(parts["a"], n_resamples=20)
    assert value == pytest.approx(by_seed.mean())
    assert 0.99 < low <= value <= high <= 1
    half = mean_correlation(parts["a"], parts["a"].mos < 19, n_resamples=20)
    assert half[0] == pytest.approx(1)


def test_methods_that_predict_other_images_are_not_compared():
    frame = pd.DataFrame({"image": [0, 1, 0, 2], "mos": 1.0, "pred": 1.0, "seed": 0})
    with pytest.raises(ValueError, match="methods a and b predict different images"):
        by_method(frame.assign(method=list("aabb")))


def test_density_and_error_stand_side_by_side():
    table = density_errors(_two_methods(), [10.0, 11, 50, 95], RANGES)
    row = table.query("method == 'a' and mos == 10").iloc[0]
    assert (row["images"], row["n"]) == (2, 12)
    assert row["mae"] == pytest.approx(5.15)


def test_the_floors_are_the_training_median_and_ridge():
    features, frame, split = _data()
    floors = floor_predictions(features, frame, split)
    median = frame.loc[split == "training", "mos"].median()
    assert (floors.query("method == 'constant median'")["pred"] == median).all()
    parts = by_method(floors)
    assert parts["ridge"].error.mean() < 0.7 * parts["constant median"].error.mean()


def test_weights_are_tabulated_by_range_with_what_they_cost():
    mos = np.array([5.0, 50.5, 50.6, 50.7])
    table = weight_table(mos, {"plain": Recipe(), "inverse": RECIPES["inverse"]}, SETTINGS)
    assert table.loc["plain", "effective sample size"] == pytest.approx(4)
    assert table.loc["inverse", ["mean weight 0-20", "mean weight 40-60"]].tolist() == [
        pytest.approx(2),
        pytest.approx(2 / 3),
    ]
    assert table.loc["inverse", "largest / smallest"] == pytest.approx(3)
    assert "mean weight 20-40" not in table


@pytest.mark.parametrize(
    ("dataset", "data", "papers_encoder", "expected"),
    [
        ("koniq10k", "koniq10k", True, ("Table 1", "CLIP + LDS", "koniq10k")),
        ("koniq10k", "koniq10k", False, ("control", "LDS", "koniq10k")),
        ("koniq10k", "demo", False, ("Table 1", "CLIP + LDS", "koniq10k")),
        ("table", "table", True, ("Table 2", "CLIP + LDS", "internal")),
        ("biq2021", "biq2021", True, ("control", "LDS", "biq2021")),
    ],
)
def test_only_the_papers_encoder_on_the_papers_set_answers_the_ledger(
    dataset, data, papers_encoder, expected
):
    table = pd.DataFrame({"method": ["LDS", "ridge", "LDS + FDS, released"], "seed_sd": 0.1})
    options = {"data": data, "papers_encoder": papers_encoder}
    rows = ledger_rows(table, dataset=dataset, raw_targets=False, **options)
    assert tuple(rows.loc[0, ["table", "method", "dataset"]]) == expected
    assert tuple(rows.loc[1, ["table", "method"]]) == ("control", "ridge")
    assert rows["variant"].tolist() == ["", "", "released_agedb"]
    raw = ledger_rows(table, dataset=dataset, raw_targets=True, **options)
    assert raw["variant"].tolist() == ["paper"] * 3


def test_random_weights_and_other_towers_are_not_the_papers_encoder():
    paper = "vit_base_patch32_clip_224.laion2b"
    assert is_papers_encoder(paper, "hub")
    assert is_papers_encoder("ViT-B-32", "data/weights/clip.pth")  # as open_clip calls it
    assert not is_papers_encoder(paper, None)
    assert not is_papers_encoder("ViT-L-14", "hub")

"""Medians, weights, paired draws, maps that are recovered, and NIQE as a baseline."""

import numpy as np
import pandas as pd
import pytest
from PIL import ImageFilter

from iqa_utils.metrics import srcc
from iqa_utils.natural_scenes import niqe
from iqa_utils.studies import mixed_results
from iqa_utils.studies.mixed_curves import (
    bends,
    carried_error,
    carry_all,
    carry_over,
    resample_curves,
)
from iqa_utils.studies.mixed_results import (
    _resampled_srcc,
    bootstrap_medians,
    compare_methods,
    ledger_rows,
    method_pairs,
    paired_rows,
    predict_niqe,
    quoted_rows,
    score_splits,
    summarise,
)
from iqa_utils.workshop.claims import load_claims
from iqa_utils.workshop.demo.scenes import photograph
from iqa_utils.workshop.sweeps import grid_path, read_grid

SIZES = {"a": 30, "b": 10}


def make_predictions(noise, *, n_splits=4, seed=0):
    rng = np.random.default_rng(seed)
    tables = []
    for split in range(n_splits):
        for name, n in SIZES.items():
            mos = rng.uniform(size=n)
            for method, sd in noise.items():
                table = pd.DataFrame({"mos": mos, "pred": mos + sd * rng.normal(size=n)})
                image = [f"{name}{i}" for i in range(n)]
                tables.append(
                    table.assign(
                        method=method, seed=split, dataset=name, image=image, reference=image
                    )
                )
    return pd.concat(tables, ignore_index=True)


def test_resampled_srcc_is_that_of_the_repeated_data_with_ties():
    rng = np.random.default_rng(0)
    mos, pred = rng.integers(6, size=40), rng.normal(size=40).round(1)
    counts = rng.multinomial(40, np.full(40, 1 / 40), size=5)
    expected = [srcc(np.repeat(mos, c), np.repeat(pred, c)) for c in counts]
    np.testing.assert_allclose(_resampled_srcc(mos, pred, counts), expected, rtol=1e-12)


def test_weighted_value_is_the_size_weighted_mean_of_the_medians():
    predictions = make_predictions({"m": 0.3})
    scores = score_splits(predictions)
    summary = summarise(scores, SIZES).query("metric == 'SRCC'").set_index("dataset")
    medians = scores.groupby("dataset")["SRCC"].median()
    expected = (30 * medians["a"] + 10 * medians["b"]) / 40
    assert summary.loc["weighted", "value"] == pytest.approx(expected)
    by_split = scores.pivot_table(index="seed", columns="dataset", values="SRCC")
    assert summary.loc["weighted", "sd"] == pytest.approx((by_split @ [0.75, 0.25]).std())
    assert summary.loc["weighted", "n"] == 40
    assert summary.loc["a", "n_runs"] == 4


def test_total_is_scored_against_the_scores_before_the_warp():
    predictions = make_predictions({"m": 0.0}).assign(mos_original=lambda t: t["mos"])
    predictions["mos"] = predictions["mos"] ** 3
    scores = score_splits(predictions).set_index(["dataset", "seed"])
    assert scores.loc[("total", 0), "PLCC"] == pytest.approx(1)
    assert scores.loc[("a", 0), "PLCC"] < 0.95
    assert scores.loc[("total", 0), "n"] == 40


def test_interval_holds_the_median_and_a_better_method_is_found():
    predictions = make_predictions({"good": 0.1, "poor": 1.0}, n_splits=6)
    scores = score_splits(predictions)
    draws = bootstrap_medians(predictions, SIZES, n_resamples=300, seed=0)
    summary = summarise(scores, SIZES, draws)
    assert set(summary.loc[summary["ci_low"].isna(), "metric"]) == {"PLCC", "PLCC logistic"}
    summary = summary.query("metric == 'SRCC'")
    assert (summary["ci_low"] < summary["ci_high"]).all()
    assert summary["value"].between(summary["ci_low"], summary["ci_high"]).mean() > 0.8
    options = {"n_train": 120, "n_test": 40, "sizes": SIZES}
    (row,) = compare_methods(scores, draws, [("good", "poor")], "weighted", **options).to_dict(
        "records"
    )
    assert row["ci_low"] > 0
    assert row["p images"] < 0.02
    assert row["p signed ranks"] == pytest.approx(2 / 2**6)
    assert row["p splits"] < 0.05
    assert row["difference"] > 0.3
    same = compare_methods(scores, draws, [("good", "good")], "a", **options).iloc[0]
    assert same["difference"] == 0
    assert same["p images"] == 1


def test_logistic_is_fitted_for_the_methods_that_ask_for_it():
    predictions = make_predictions({"x": 0.2, "y": 0.2}, n_splits=1)
    scores = score_splits(predictions, logistic=("x",)).set_index(["method", "dataset"])
    assert scores.loc[("x", "a"), "PLCC logistic"] >= scores.loc[("x", "a"), "PLCC"]
    assert scores.loc["y", "PLCC logistic"].isna().all()


def test_few_splits_give_no_p_over_splits():
    predictions = make_predictions({"x": 0.2, "y": 0.4}, n_splits=2)
    scores = score_splits(predictions)
    draws = bootstrap_medians(predictions, SIZES, n_resamples=50, seed=0)
    row = compare_methods(scores, draws, [("x", "y")], "a", n_train=3, n_test=1, sizes=SIZES).iloc[
        0
    ]
    assert np.isnan(row["p splits"])
    assert np.isnan(row["p signed ranks"])


def test_constant_predictions_are_left_out_of_the_results():
    predictions = make_predictions({"dead": 0.0}).assign(pred=1.0)
    summary = summarise(score_splits(predictions), SIZES)
    assert summary["value"].isna().all()
    assert ledger_rows(summary, data="demo") == []


def test_the_main_method_fills_its_rows_in_both_tables_of_the_ledger():
    predictions = make_predictions({"released": 0.2, "mixed": 0.2}, n_splits=1)
    summary = summarise(score_splits(predictions), SIZES)
    rows = pd.DataFrame(ledger_rows(summary, data=""))
    names = set(zip(rows["table"], rows["method"], strict=True))
    assert names == {
        ("Table 1", "Proposed (All databases)"),
        ("Table 2", "Five CFCLs and Four ELUs (Proposed)"),
        ("control", "mixed"),
    }
    assert set(rows["data"]) == {"a", "b", "a+b"}
    assert set(rows.loc[rows["data"] == "a+b", "dataset"]) == {"weighted"}


def test_quoted_weighted_means_are_recomputed_from_their_own_rows():
    quoted = quoted_rows(load_claims())
    assert quoted.loc["ILNIQE", "weighted"] == 0.528
    assert quoted.loc["ILNIQE", "recomputed"] == pytest.approx(0.541, abs=5e-4)
    assert quoted.loc["NIQE", "recomputed"] == pytest.approx(0.471, abs=1e-3)
    assert np.isnan(quoted.loc["PQR (BID)", "recomputed"])


WARPS = {"r": lambda x: x, "s": np.sqrt, "c": lambda x: x**3}


def make_points(curves, quality):
    tables = [
        pd.DataFrame({"dataset": name, "quality": quality, "score": curve(quality), "inside": True})
        for name, curve in curves.items()
    ]
    return pd.concat(tables, ignore_index=True)


def test_true_curves_carry_scores_over():
    carried = carry_over(make_points(WARPS, np.linspace(0.1, 0.9, 200)), WARPS, reference="r")
    assert set(carried["dataset"]) == {"s", "c"}
    np.testing.assert_allclose(carried["carried"], carried["mos"], atol=2e-3)
    assert carried["mos"].min() >= 0.1 - 1e-3


def test_a_bend_common_to_all_curves_cancels():
    bent = {k: (lambda q, f=f: f(np.log(q) / 5 + 1)) for k, f in WARPS.items()}
    carried = carry_over(make_points(bent, np.geomspace(0.01, 0.6, 400)), WARPS, reference="r")
    np.testing.assert_allclose(carried["carried"], carried["mos"], atol=5e-3)


def test_straight_curves_do_not_undo_the_warp():
    straight = make_points(dict.fromkeys(WARPS, lambda q: q), np.linspace(0, 1, 50))
    missed = carry_over(straight, WARPS, reference="r")
    cube = missed[missed["dataset"] == "c"]
    np.testing.assert_allclose(cube["carried"], cube["mos"] ** 3, atol=1e-6)
    assert carry_over(straight[straight["dataset"] == "s"], WARPS, reference="r").empty


def test_all_methods_are_carried_but_those_of_a_single_set():
    true = make_points(WARPS, np.linspace(0.1, 0.9, 200)).assign(method="true", seed=0)
    straight = make_points(dict.fromkeys(WARPS, lambda q: q), np.linspace(0.1, 0.9, 50))
    alone = straight[straight["dataset"] == "s"].assign(method="single:s", seed=0)
    points = pd.concat([true, straight.assign(method="linear", seed=0), alone])
    names = {"r": "x", "s": "square root", "c": "cube"}
    error = carried_error(carry_all(points, names))
    assert list(error.index) == ["true", "linear"]
    assert error.loc["true"].max() < 2e-3 < 0.1 < error.loc["linear"].min()
    assert carry_all(points, {}).empty


def test_a_ceiling_that_never_saw_the_maps_has_none_to_undo():
    points = make_points(dict.fromkeys(WARPS, lambda q: q), np.linspace(0.1, 0.9, 50))
    points = pd.concat([points.assign(method=m, seed=0) for m in ("linear", "unwarped")])
    names = {"r": "x", "s": "square root", "c": "cube"}
    assert set(carry_all(points, names)["method"]) == {"linear"}
    assert carry_all(points[points["method"] == "unwarped"], names).empty


def test_bend_is_the_distance_from_the_chord_as_a_share_of_the_rise():
    curves = {"line": lambda q: 3 * q + 1, "cube": lambda q: q**3, "flat": lambda q: 0 * q}
    points = make_points(curves, np.linspace(0, 1, 1001)).assign(method="m", seed=0)
    bend = bends(points).loc["m"]
    assert bend["line"] == pytest.approx(0, abs=1e-12)
    assert bend["cube"] == pytest.approx(2 / 27**0.5, abs=1e-5)  # x - x^3 at 1 / sqrt(3)
    assert "flat" not in bend
    np.testing.assert_allclose(
        resample_curves(points, "cube")["m"], np.linspace(0, 1, 100) ** 3, atol=1e-5
    )


def test_depths_are_held_against_five_layers_and_everything_else_against_rescaling():
    names = ["linear", "released", "released-3", "ranking", "niqe"]
    pairs = [("released", "linear"), ("released-3", "released"), ("ranking", "linear")]
    assert method_pairs(names, scored=names[:-1]) == pairs
    assert method_pairs(["released", "scalar"], scored=["released", "scalar"]) == []


def test_without_pairs_and_without_curves_the_tables_keep_their_columns():
    predictions = make_predictions({"a": 0.2, "b": 0.4})
    scores = score_splits(predictions)
    draws = bootstrap_medians(predictions, SIZES, n_resamples=20, seed=0)
    options = {"sizes": SIZES, "n_train": 24, "n_test": 8}
    some, none = (compare_methods(scores, draws, p, "a", **options) for p in ([("a", "b")], []))
    assert none.empty
    assert list(none) == list(some)
    assert paired_rows(none, data="demo", n_runs=4) == []
    points = make_points(WARPS, np.linspace(0, 1, 5)).assign(method="m", seed=0)
    assert bends(points[:0]).empty


def test_every_job_of_the_grids_compares_something():
    jobs = [job for path in grid_path("paper").parent.glob("*.yaml") for job in read_grid(path)]
    lists = [job.parameters["METHODS"] for job in jobs
             if job.stem == "03_mixed_datasets" and "METHODS" in job.parameters]  # fmt: skip
    assert lists
    for names in lists:
        compared = {name for pair in method_pairs(names, scored=names) for name in pair}
        assert compared == set(names)


def test_niqe_prefers_a_sharp_photograph_to_its_blurred_copy(tmp_path):
    sharp = photograph("coffee")
    sharp.save(tmp_path / "sharp.png")
    sharp.filter(ImageFilter.GaussianBlur(4)).save(tmp_path / "blurred.png")
    frame = pd.DataFrame({"image": ["sharp.png", "blurred.png"], "mos": [2.0, 1.0]})
    frame["reference"] = frame["image"]
    parts = {"a": pd.Series(["test", "test"])}
    table = predict_niqe({"a": frame}, [parts, parts], {"a": tmp_path}, tmp_path / "cache")
    assert table["seed"].tolist() == [0, 0, 1, 1]
    assert table["pred"].iloc[0] > table["pred"].iloc[1]
    assert (table["pred"] < 0).all()


def test_niqe_goes_on_after_a_kill_and_measures_no_image_twice(tmp_path, monkeypatch):
    names = [f"{i}.png" for i in range(3)]
    for i, name in enumerate(names):
        photograph("coffee").resize((64 + 16 * i, 64)).save(tmp_path / name)
    frame = pd.DataFrame({"image": names, "mos": [1.0, 2.0, 3.0], "reference": names})
    first, whole = ({"a": pd.Series(part)} for part in (["test", "test", "training"], ["test"] * 3))
    arguments = ({"a": tmp_path}, tmp_path / "cache")
    options = {"patch": 32, "save_seconds": 0.0}
    seen = []

    def counted(pixels, patch):
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(pixels.shape[1])
        return niqe(pixels, patch=patch)

    monkeypatch.setattr(mixed_results, "niqe", counted)
    with pytest.raises(KeyboardInterrupt):
        predict_niqe({"a": frame}, [first], *arguments, **options)
    monkeypatch.setattr(
        mixed_results, "niqe", lambda p, patch: seen.append(p.shape[1]) or niqe(p, patch=patch)
    )
    again = predict_niqe({"a": frame}, [first, whole], *arguments, **options)
    assert seen == [64, 80, 96]
    monkeypatch.setattr(mixed_results, "niqe", lambda *_, **__: seen.append(0))
    third = predict_niqe({"a": frame}, [first, whole], *arguments, **options)
    pd.testing.assert_frame_equal(third, again)
    photograph("rocket").resize((64, 64)).save(tmp_path / names[0])  # other pixels, same name
    monkeypatch.setattr(mixed_results, "niqe", niqe)
    changed = predict_niqe({"a": frame}, [first, whole], *arguments, **options)
    assert changed["pred"].iloc[0] != again["pred"].iloc[0]


def test_p_over_splits_comes_from_the_splits_that_both_methods_have():
    predictions = make_predictions({"x": 0.2, "y": 0.4}, n_splits=6)
    draws = bootstrap_medians(predictions, SIZES, n_resamples=50, seed=0)
    options = {"n_train": 3, "n_test": 1, "sizes": SIZES}
    scores = score_splits(predictions)
    fewer = scores[(scores["method"] == "x") | (scores["seed"] < 5)]
    both = scores[scores["seed"] < 5]
    row, expected = (
        compare_methods(s, draws, [("x", "y")], "a", **options).iloc[0] for s in (fewer, both)
    )
    for column in ("sd splits", "p splits", "p signed ranks"):
        assert row[column] == pytest.approx(expected[column])
    assert np.isfinite(row["p splits"])

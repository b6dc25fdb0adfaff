import numpy as np
import pandas as pd
import pytest
from scipy import stats

from iqa_utils import evaluate, metrics

EDGES = [0, 20, 40, 60, 80, 100]


@pytest.fixture
def predictions():
    """Two methods, six runs, 120 images of 40 reference images in two subsets."""
    rng = np.random.default_rng(0)
    mos = rng.uniform(0, 100, 120)
    base = pd.DataFrame({"image": [f"{i:03d}.png" for i in range(120)], "mos": mos})
    base = base.assign(reference=np.arange(120) // 3, subset=np.where(mos > 50, "good", "bad"))
    tables = [
        base.assign(method=method, seed=seed, pred=mos + rng.normal(shift, noise, 120))
        for method, shift, noise in (("none", 0, 20), ("method2", 1, 8))
        for seed in range(6)
    ]
    return pd.concat(tables, ignore_index=True)


def of(table, **wanted):
    for column, value in wanted.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def plain_draws(values, groups, n=1000):
    """Bootstrap a function of row numbers in plain NumPy, drawing whole groups."""
    rng = np.random.default_rng(9)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    picks = rng.integers(len(members), size=(n, len(members)))
    return np.array([values(np.concatenate([members[k] for k in pick])) for pick in picks])


@pytest.mark.parametrize("name", sorted(set(metrics.METRICS) - {"PLCC logistic"}))
def test_a_value_is_the_mean_of_the_metric_over_runs(predictions, name):
    row = of(evaluate.score(predictions, ["method"], [name], n_resamples=20), method="none")
    runs = [
        metrics.METRICS[name](part["mos"], part["pred"])
        for _, part in predictions[predictions["method"] == "none"].groupby("seed")
    ]
    np.testing.assert_allclose([row["value"], row["sd"]], [np.mean(runs), np.std(runs, ddof=1)])
    assert (row["n"], row["n_runs"]) == (120, 6)


@pytest.mark.parametrize("name", ["SRCC", "PLCC", "KRCC", "RMSE", "MAE"])
def test_a_draw_equals_the_metric_of_the_repeated_images(name):
    rng = np.random.default_rng(1)
    mos, pred = rng.integers(0, 9, 30).astype(float), rng.normal(size=30).round(1)
    counts = rng.multinomial(30, np.full(30, 1 / 30), size=5)
    found = evaluate._weighted(name, mos, pred, counts)
    rows = [np.repeat(np.arange(30), drawn) for drawn in counts]
    expected = [metrics.METRICS[name](mos[i], pred[i]) for i in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_an_interval_agrees_with_the_plain_bootstrap_up_to_the_draws(predictions):
    one = predictions[(predictions["method"] == "none") & (predictions["seed"] == 0)]
    options = {"n_resamples": 4000, "resample": "reference"}
    row = of(evaluate.score(one, ["method"], ["SRCC"], **options), metric="SRCC")
    mos, pred = one["mos"].to_numpy(), one["pred"].to_numpy()
    drawn = plain_draws(lambda i: stats.spearmanr(mos[i], pred[i])[0], one["reference"])
    ends = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose([row["ci_low"], row["ci_high"]], ends, atol=0.02)


def test_the_interval_of_a_mean_error_has_the_normal_width():
    error = np.random.default_rng(0).uniform(0, 1, 400)
    table = pd.DataFrame({"image": np.arange(400).astype(str), "mos": 0.0, "pred": error})
    options = {"n_resamples": 4000}
    row = evaluate.score(table.assign(seed=0, method="a"), ["method"], ["MAE"], **options).iloc[0]
    half = stats.norm.ppf(0.975) * error.std() / 20
    ends = [error.mean() - half, error.mean() + half]
    np.testing.assert_allclose([row["ci_low"], row["ci_high"]], ends, atol=0.003)


def test_intervals_cover_in_95_percent_of_cases():
    rng, n_cases = np.random.default_rng(5), 200
    error = rng.choice([0.0, 1.0], (n_cases, 60)) + rng.uniform(0, 1, (n_cases, 60))  # mean 1
    table = pd.DataFrame({"case": np.repeat(np.arange(n_cases), 60), "pred": error.ravel()})
    table = table.assign(image=np.tile(np.arange(60), n_cases), mos=0.0, seed=0)
    found = evaluate.score(table, ["case"], ["MAE"], n_resamples=200)
    outside = np.mean((found["ci_low"] > 1) | (found["ci_high"] < 1))
    assert abs(outside - 0.05) < 3 * np.sqrt(0.05 * 0.95 / n_cases)


def test_tables_that_were_put_together_may_repeat_their_index(predictions):
    repeated = predictions.set_axis(predictions.index % 120)
    for table in (evaluate.score, evaluate.compare):
        argument = ["method"] if table is evaluate.score else {"method": "none"}
        options = {"metrics": ["MAE"], "n_resamples": 20}
        pd.testing.assert_frame_equal(
            table(repeated, argument, **options), table(predictions, argument, **options)
        )


def test_the_seed_decides_the_interval(predictions):
    ends = [
        evaluate.score(predictions, ["method"], ["MAE"], n_resamples=50, seed=s)["ci_low"].tolist()
        for s in (3, 3, 4)
    ]
    assert ends[0] == ends[1] != ends[2]


def test_groups_that_belong_together_widen_the_interval(predictions):
    same = predictions.assign(pred=predictions["mos"] + predictions["reference"] % 7 * 9.0)
    widths = {}
    for unit in ("image", "reference"):
        row = of(evaluate.score(same, ["method"], ["RMSE"], resample=unit), method="none")
        widths[unit] = row["ci_high"] - row["ci_low"]
    assert widths["reference"] > 1.3 * widths["image"]


def test_ranges_are_scored_by_name(predictions):
    names = evaluate.range_metrics("RMSE", EDGES)
    assert names[0] == "RMSE 0-20"
    wanted = [*names, "RMSE ranges SD", "RMSE ranges mean", "MAE 0-20 and 80-100"]
    table = evaluate.score(predictions, ["method"], wanted, edges=EDGES, n_resamples=20)
    first = predictions[(predictions["method"] == "none") & (predictions["seed"] == 0)]
    alone = evaluate.score(first, ["method"], wanted, edges=EDGES, n_resamples=20)
    by_range = metrics.per_range(first["mos"], first["pred"], metrics.rmse, EDGES)
    np.testing.assert_allclose(alone["value"][:5], list(by_range.values()))
    assert alone["value"][5] == pytest.approx(np.std(list(by_range.values()), ddof=1))
    assert alone["value"][6] == pytest.approx(np.mean(list(by_range.values())))
    ends = first[~first["mos"].between(20, 80)]
    assert alone["value"][7] == pytest.approx(metrics.mae(ends["mos"], ends["pred"]))
    assert alone["n"][7] == len(ends)
    errors = table[table["metric"] != "RMSE ranges SD"]  # a bootstrap raises a spread
    assert errors["value"].between(errors["ci_low"], errors["ci_high"]).all()


def test_inside_groups_is_their_mean_by_images(predictions):
    first = predictions[(predictions["method"] == "none") & (predictions["seed"] == 0)]
    row = of(evaluate.score(first, ["method"], ["SRCC within subset"]), method="none")
    groups = [group for _, group in first.groupby("subset")]
    inside = [stats.spearmanr(group["mos"], group["pred"])[0] for group in groups]
    assert row["value"] == pytest.approx(np.average(inside, weights=list(map(len, groups))))


def test_a_constant_method_has_no_correlation_and_an_error(predictions):
    constant = predictions.assign(pred=50.0)
    table = evaluate.score(constant, ["method"], ["SRCC", "RMSE"], n_resamples=20)
    assert table["metric"].unique().tolist() == ["RMSE"]


def test_medians_over_splits_combine_medians(predictions):
    row = of(
        evaluate.score(predictions, ["method"], ["SRCC"], combine="median", n_resamples=50),
        method="none",
    )
    runs = [
        metrics.srcc(part["mos"], part["pred"])
        for _, part in predictions[predictions["method"] == "none"].groupby("seed")
    ]
    assert row["value"] == pytest.approx(np.median(runs))


def test_an_interval_over_runs_is_students_and_longer_where_splits_overlap(predictions):
    alone = of(evaluate.score(predictions, ["method"], ["SRCC"], resample=None), method="none")
    runs = [
        metrics.srcc(part["mos"], part["pred"])
        for _, part in predictions[predictions["method"] == "none"].groupby("seed")
    ]
    ends = stats.t.interval(0.95, 5, np.mean(runs), stats.sem(runs))
    np.testing.assert_allclose([alone["ci_low"], alone["ci_high"]], ends)
    shared = predictions.assign(n_train=480)
    longer = of(evaluate.score(shared, ["method"], ["SRCC"], resample=None), method="none")
    ratio = (longer["ci_high"] - longer["ci_low"]) / (alone["ci_high"] - alone["ci_low"])
    assert ratio == pytest.approx(np.sqrt((1 / 6 + 120 / 480) * 6))


def test_a_comparison_agrees_with_a_plain_paired_bootstrap(predictions):
    one = predictions[predictions["seed"] == 0]
    row = of(
        evaluate.compare(one, {"method": "none"}, ["SRCC"], n_resamples=4000), method="method2"
    )
    a, b = (one[one["method"] == m]["pred"].to_numpy() for m in ("method2", "none"))
    mos = one[one["method"] == "none"]["mos"].to_numpy()

    def gain(i):
        return stats.spearmanr(mos[i], a[i])[0] - stats.spearmanr(mos[i], b[i])[0]

    ends = np.quantile(plain_draws(gain, np.arange(len(mos))), [0.025, 0.975])
    assert row["value"] == pytest.approx(gain(np.arange(len(mos))))
    np.testing.assert_allclose([row["ci_low"], row["ci_high"]], ends, atol=0.02)
    assert row["p"] < 0.05
    assert np.isnan(row["p_runs"])


def test_a_comparison_tests_over_runs_and_corrects_for_all_methods(predictions):
    third = predictions[predictions["method"] == "none"].assign(method="same")
    table = evaluate.compare(
        pd.concat([predictions, third]), {"method": "none"}, ["RMSE"], n_resamples=200
    )
    better, same = (of(table, method=m) for m in ("method2", "same"))
    values = evaluate.score(predictions, ["method", "seed"], ["RMSE"], n_resamples=2)
    runs = {m: values[values["method"] == m]["value"] for m in ("method2", "none")}
    assert better["p_runs"] == 2 / 2**6  # better in each of six runs
    assert better["p_holm"] == pytest.approx(2 * better["p"])
    assert (same["value"], same["p"], same["p_runs"]) == (0.0, 1.0, 1.0)
    split = evaluate.compare(
        predictions.assign(n_train=360), {"method": "none"}, ["RMSE"], n_resamples=200
    )
    corrected = evaluate.nadeau_bengio(runs["method2"], runs["none"], 360, 120)[1]
    assert split["p_runs"][0] == pytest.approx(corrected)


def test_a_comparison_sees_through_what_both_methods_share():
    rng = np.random.default_rng(6)
    mos, shared = rng.normal(size=(2, 200))
    table = pd.DataFrame({"image": np.arange(200).astype(str), "mos": mos, "seed": 0})
    pair = [table.assign(method=str(k), pred=mos + k * shared) for k in (1.0, 1.1)]
    row = evaluate.compare(pd.concat(pair), {"method": "1.0"}, ["RMSE"]).iloc[0]
    alone = evaluate.score(pair[0], ["method"], ["RMSE"]).iloc[0]
    found = row[["value", "ci_low", "ci_high"]].astype(float)  # the same images for both
    np.testing.assert_allclose(found, 0.1 * alone[["value", "ci_low", "ci_high"]].astype(float))


def test_a_comparison_rejects_five_percent_of_null_cases():
    rng, n_cases = np.random.default_rng(7), 200
    keys = pd.MultiIndex.from_product([range(n_cases), ["a", "b"], range(60)])
    table = keys.to_frame(index=False, name=["case", "method", "image"]).assign(seed=0, mos=0.0)
    table["pred"] = rng.normal(size=len(table))
    options = {"by": ["case"], "n_resamples": 199}
    p = evaluate.compare(table, {"method": "a"}, ["MAE"], **options)["p"]
    assert p.min() >= 2 / 200
    assert abs(np.mean(p <= 0.05) - 0.05) < 3 * np.sqrt(0.05 * 0.95 / n_cases)


def test_a_baseline_is_drawn_once_for_all_methods(predictions, monkeypatch):
    several = [predictions[predictions["method"] == "none"].assign(method=m) for m in "abc"]
    table, drawn = pd.concat([predictions, *several]), []
    original = evaluate._weighted

    def counted(name, mos, pred, counts):
        drawn.append(len(counts) > 1)
        return original(name, mos, pred, counts)

    monkeypatch.setattr(evaluate, "_weighted", counted)
    evaluate.compare(table, {"method": "none"}, ["RMSE"], n_resamples=50)
    assert sum(drawn) == 6 * (1 + 4)  # six runs of the baseline and of each other method


def test_what_cannot_be_compared_is_named(predictions):
    with pytest.raises(KeyError, match="'median' is not among"):
        evaluate.compare(predictions, {"method": "median"}, ["SRCC"])
    fewer = predictions[(predictions["method"] == "none") | (predictions["mos"] > 50)]
    with pytest.raises(ValueError, match="method2 and none predict different images"):
        evaluate.compare(fewer, {"method": "none"}, ["SRCC"])
    with pytest.raises(KeyError, match="'ACC' does not begin with one of SRCC"):
        evaluate.score(predictions, ["method"], ["ACC"])
    with pytest.raises(KeyError, match="'RMSE 0-30' names none of the ranges"):
        evaluate.score(predictions, ["method"], ["RMSE 0-30"], edges=EDGES)


def test_weighted_groups_are_combined_over_the_runs_before_they_are_averaged(predictions):
    weights = {"good": 3.0, "bad": 1.0}
    table = predictions.assign(weight=predictions["subset"].map(weights))
    options = {"combine": "median", "resample": "reference", "n_resamples": 200}
    whole = evaluate.score(table, ["method"], ["SRCC within subset"], **options)
    each = evaluate.score(table, ["method", "subset"], ["SRCC"], **options)
    runs = evaluate.score(table, ["seed", "method"], ["SRCC within subset"], resample=None)
    for method in ("none", "method2"):
        parts = {name: of(each, method=method, subset=name)["value"] for name in weights}
        found = of(whole, method=method)
        assert found["value"] == pytest.approx((3 * parts["good"] + parts["bad"]) / 4)
        values = runs[runs["method"] == method]["value"]
        assert found["sd"] == pytest.approx(values.std())
        assert found["value"] != pytest.approx(values.median(), abs=1e-6)  # the other order
        assert found["ci_low"] < found["value"] < found["ci_high"]
        assert found["n"] == 120
    logistic = evaluate.score(
        table, ["method"], ["PLCC logistic within subset"], combine="median", resample=None
    )
    assert logistic["value"].between(0.3, 1).all()


def test_a_range_inside_groups_counts_only_its_own_images():
    table = pd.DataFrame({"mos": [5.0, 15, 6, 16, 7, 8], "subset": list("aabbbb"), "seed": 0})
    table = table.assign(image=table.index.astype(str), pred=table["mos"] + [1, 9, 2, 9, 4, 6])
    table["pred"] = table["pred"].astype(float)
    wider = pd.concat([table, table.assign(image=table["image"] + "x")], ignore_index=True)
    options = {"edges": (0, 10, 20), "resample": None}
    for weighted, expected in ((wider, (2 * 1 + 6 * 4) / 8), (wider.assign(weight=1.0), 2.5)):
        found = evaluate.score(weighted, ["seed"], ["MAE 0-10 within subset"], **options)
        assert found["value"].item() == pytest.approx(expected)
        assert found["n"].item() == 8

"""The released scores of feng2023: form, medians and learned gains."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.io import savemat
from scipy.optimize import least_squares
from scipy.stats import spearmanr

from iqa_utils import metrics
from iqa_utils.workshop import audit, claims
from iqa_utils.workshop.papers import feng2023
from iqa_utils.workshop.plots import claims as plots


def test_made_scores_have_the_form_of_the_released_ones_and_say_so():
    frame = feng2023.make_released(seed=1, n=12)
    assert list(frame) == ["split", "dataset", "mos", "pred", "transformed"]
    assert frame.groupby(["split", "dataset"]).size().tolist() == [12] * 60
    assert frame.attrs["demo"]
    again = feng2023.make_released(seed=1, n=12)
    assert frame.equals(again)


def test_files_that_are_missing_or_cut_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks \['scores1.mat'"):
        feng2023.load_released(tmp_path)
    good = {theirs: np.arange(5.0) for theirs, _ in feng2023.SETS.values()}
    for k in range(1, 11):
        hat = dict(good)
        if k == 3:
            del hat["bid"]
        savemat(tmp_path / f"scores{k}.mat", {"mos": good, "DNN_mos": good, "hat": hat})
    with pytest.raises(ValueError, match=r"scores3\.mat, set bid"):
        feng2023.load_released(tmp_path)


def test_medians_and_weights_follow_their_definition():
    frame = feng2023.make_released(seed=2, n=15)
    table = feng2023.split_metrics(frame, {"SRCC": metrics.srcc})
    one = frame[(frame["split"] == 4) & (frame["dataset"] == "bid")]
    row = table[(table["split"] == 4) & (table["dataset"] == "bid")].iloc[0]
    assert row["value"] == pytest.approx(spearmanr(one["mos"], one["pred"]).statistic)
    result = feng2023.medians(table).set_index("dataset")
    median = {name: table[table["dataset"] == name]["value"].median() for name in feng2023.SETS}
    assert result.loc["bid", "value"] == pytest.approx(median["bid"])
    sizes = feng2023.FULL_SIZES
    expected = sum(median[name] * size for name, size in sizes.items()) / sum(sizes.values())
    assert result.loc["weighted", "value"] == pytest.approx(expected)
    assert (result["ci_low"] <= result["value"] + 1e-12).all()
    assert (result["value"] <= result["ci_high"] + 1e-12).all()


def test_a_gain_is_the_ratio_and_its_deviation_that_of_the_worst_image():
    frame = feng2023.make_released(seed=0, n=5)
    frame = frame[(frame["split"] == 1) & (frame["dataset"] == "live")].copy()
    frame["transformed"] = 4.0 * frame["pred"]
    frame.iloc[0, frame.columns.get_loc("transformed")] *= 1.01
    frame.iloc[1, [frame.columns.get_loc("pred"), frame.columns.get_loc("transformed")]] = -1.0
    found = feng2023.gains(frame).iloc[0]
    assert found["gain"] == pytest.approx(4.0)
    assert found["deviation"] == pytest.approx(0.01)
    assert found["not_positive"] == 1


def test_released_files_give_the_published_medians_and_constant_gains(real_data):
    frame = feng2023.load_released(real_data / "monotoniciqa_scores")
    assert len(frame) == 46_711
    table = feng2023.split_metrics(frame, {"SRCC": metrics.srcc})
    result = feng2023.medians(table).set_index("dataset")["value"]
    printed = {
        "live": 0.958, "csiq": 0.898, "kadid10k": 0.885, "bid": 0.847, "livec": 0.854,
        "koniq10k": 0.902, "weighted": 0.892,
    }  # fmt: skip
    assert result[list(printed)].round(3).to_dict() == printed
    assert table[table["dataset"] == "weighted"]["value"].std() == pytest.approx(0.0125, abs=5e-5)
    gains = feng2023.gains(frame)
    assert gains["not_positive"].sum() == 1
    assert gains["gain"].between(3.25 - 5e-3, 4.64).all()
    assert gains["deviation"].max() < 1.1e-3  # one multiplication, to the rounding of the GPU
    middle = feng2023.medians(table).set_index("dataset")
    half = (middle["ci_high"] - middle["ci_low"]) / 2
    assert half["weighted"] == pytest.approx(0.0074, abs=5e-5)
    assert half["median of weighted"] == pytest.approx(0.0067, abs=5e-5)
    alike = (0.004 / 2.8) ** 2 / (2 * middle["sd"]["median of weighted"] ** 2)
    least = [1 - alike * n for n in (10, 3, 1 / (1 / 10 + 1 / 3))]  # as notebook 03 says
    assert least == pytest.approx([0.935, 0.980, 0.985], abs=5e-4)
    points = feng2023.kendall_points(frame)
    expected = [audit.kendall_from_spearman(r) for r in points["SRCC"]]
    assert np.abs(points["KRCC"] - expected).max() == pytest.approx(0.0218, abs=1e-3)


def test_the_single_start_fit_of_the_field_is_near_the_multi_start_one(real_data):
    frame = feng2023.load_released(real_data / "monotoniciqa_scores")
    part = frame[(frame["split"] == 1) & (frame["dataset"] == "livec")]
    mos, pred = part["mos"].to_numpy(), part["transformed"].to_numpy()
    start = (10, 0, pred.mean(), 0.1, 0.1)  # of the authors' script
    end = least_squares(lambda b: metrics.logistic(pred, b) - mos, start, method="lm")
    single = np.sqrt(np.mean(end.fun**2))
    assert metrics.fit_logistic(mos, pred).rmse <= single * (1 + 1e-4)


def test_every_picture_of_the_audit_draws():
    table, scores = claims.audit(), feng2023.make_released(n=10)
    by_split = feng2023.split_metrics(scores, {"SRCC": metrics.srcc})
    printed = by_split.groupby("dataset")["value"].median()
    figure, axes = plt.subplots(2, 4)
    plots.plot_audit(axes[0, 0], table)
    plots.plot_kinds(axes[0, 1], table)
    plots.plot_weighted(axes[0, 2], table)
    plots.plot_least_errors(axes[0, 3], table)
    plots.plot_kendall(axes[1, 0], table, feng2023.kendall_points(scores), label="synthetic")
    plots.plot_gains(axes[1, 1], feng2023.gains(scores))
    plots.plot_splits(axes[1, 2], by_split, printed)
    assert all(panel.has_data() for panel in axes.flat[:7])
    marks = sum(len(c.get_offsets()) for c in axes[0, 0].collections)
    assert marks == len(table)
    plt.close(figure)


def test_quoted_weighted_means_are_recomputed_from_their_own_rows():
    quoted = feng2023.quoted_rows(claims.load_claims())
    assert quoted.loc["ILNIQE", "weighted"] == 0.528
    assert quoted.loc["ILNIQE", "recomputed"] == pytest.approx(0.541, abs=5e-4)
    assert quoted.loc["NIQE", "recomputed"] == pytest.approx(0.471, abs=1e-3)
    assert np.isnan(quoted.loc["PQR (BID)", "recomputed"])

"""Curves as points: their own scale, their bends, and known maps that they undo or miss."""

import numpy as np
import pandas as pd
import pytest
import torch

from iqa_utils.mixed_sets import WARPS, bends, carry_over, curve_points, own_scale
from iqa_utils.models.monotonic import MonotonicIQA

NAMES = {"r": "x", "s": "square root", "c": "cube"}
MAPS = {name: WARPS[warp] for name, warp in NAMES.items()}


def make_model(variant):
    torch.manual_seed(0)
    return MonotonicIQA(["a", "b"], backbone="test_resnet", channels=8, variant=variant)


def make_points(curves, quality, method="m"):
    tables = [
        pd.DataFrame({"dataset": name, "quality": quality, "score": curve(quality), "inside": True})
        for name, curve in curves.items()
    ]
    return pd.concat(tables, ignore_index=True).assign(method=method, seed=0)


def test_curves_speak_each_sets_own_scale():
    ends = own_scale(make_model("identity"), "b", np.array([0.0, 10.0]), (20.0, 70.0))
    np.testing.assert_allclose(ends, [20, 70], rtol=1e-6)


def test_curves_are_sampled_where_the_model_predicts():
    rng = np.random.default_rng(0)
    predictions = pd.DataFrame({"dataset": ["a", "b", "c"] * 20, "pred": rng.normal(size=60)})
    predictions["pred"] += predictions["dataset"].map({"a": 0.0, "b": 3.0, "c": 90.0})
    spans = {"a": (0.0, 1.0), "b": (0.0, 100.0)}  # "c" was not trained on
    points = curve_points(make_model("mixed"), spans, predictions)
    assert points.groupby("dataset").size().to_dict() == {"a": 401, "b": 401}
    known = predictions[predictions["dataset"] != "c"]
    assert points["quality"].min() == pytest.approx(known["pred"].min())
    assert (points.groupby("dataset")["score"].diff().dropna() >= -1e-5).all()
    for name, part in known.groupby("dataset"):
        inside = points[(points["dataset"] == name) & points["inside"]]["quality"]
        assert inside.between(part["pred"].min(), part["pred"].max()).all()
    none = curve_points(make_model("mixed"), {}, predictions)
    assert none.empty
    assert none.dtypes.to_dict() == points.dtypes.to_dict()


def test_true_curves_carry_scores_over():
    carried = carry_over(make_points(MAPS, np.linspace(0.1, 0.9, 200)), NAMES)
    assert set(carried["dataset"]) == {"s", "c"}
    np.testing.assert_allclose(carried["carried"], carried["mos"], atol=2e-3)
    assert carried["mos"].min() >= 0.1 - 1e-3


def test_a_bend_common_to_all_curves_cancels():
    bent = {k: (lambda q, f=f: f(np.log(q) / 5 + 1)) for k, f in MAPS.items()}
    carried = carry_over(make_points(bent, np.geomspace(0.01, 0.6, 400)), NAMES)
    np.testing.assert_allclose(carried["carried"], carried["mos"], atol=5e-3)


def test_straight_curves_do_not_undo_the_warp():
    straight = make_points(dict.fromkeys(MAPS, lambda q: q), np.linspace(0, 1, 50))
    cube = carry_over(straight, NAMES).query("dataset == 'c'")
    np.testing.assert_allclose(cube["carried"], cube["mos"] ** 3, atol=1e-6)


def test_methods_of_a_single_set_and_sets_without_maps_carry_nothing():
    true = make_points(MAPS, np.linspace(0.1, 0.9, 200), "true")
    alone = true[true["dataset"] == "s"].assign(method="single:s")
    carried = carry_over(pd.concat([true, alone]), NAMES)
    assert set(carried["method"]) == {"true"}
    for warps in ({}, dict.fromkeys(NAMES, "cube")):  # no maps, no unwarped set
        assert carry_over(true, warps).empty
    assert list(carry_over(true, {})) == list(carried)


def test_bend_is_the_distance_from_the_chord_as_a_share_of_the_rise():
    curves = {"line": lambda q: 3 * q + 1, "cube": lambda q: q**3, "flat": lambda q: 0 * q}
    points = make_points(curves, np.linspace(0, 1, 1001))
    bend = bends(points).loc["m"]
    assert bend["line"] == pytest.approx(0, abs=1e-12)
    assert bend["cube"] == pytest.approx(2 / 27**0.5, abs=1e-5)  # x - x^3 at 1 / sqrt(3)
    assert "flat" not in bend
    assert bends(points[:0]).empty

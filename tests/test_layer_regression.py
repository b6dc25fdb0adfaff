"""Layers, BRISQUE and the final method predict scores; cross-validation chooses among them."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from iqa_utils import layer_regression
from iqa_utils.deep_quality import to_own_scale
from iqa_utils.evaluate import score
from iqa_utils.features import Crop, frozen_features
from iqa_utils.features.layers import Layer, Network
from iqa_utils.images import build_store
from iqa_utils.layer_regression import (
    Task,
    average_crops,
    crop_distances,
    make_tasks,
    predict_brisque,
    predict_final,
    predict_layers,
    preferred,
    time_prediction,
)
from iqa_utils.regression.gaussian_process import fit_gaussian_process
from tests.test_deep_quality import made_network, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def tiny(monkeypatch):
    """A network of the map small enough for tests."""
    layers = (Layer("tiny", "early", "2", 196), Layer("tiny", "logits", "5", 1000))
    row = Network("torchvision", "none", 16)
    monkeypatch.setitem(layer_regression.NETWORKS, "tiny", row)
    monkeypatch.setattr("iqa_utils.features.layers.LAYERS", layers)
    return made_network(), layers


def task_of(world, dataset="tid2013"):
    frame, split, _ = world
    rows = np.flatnonzero(frame["dataset"] == dataset)
    return make_tasks(frame, rows, {0: split})[0]


def test_a_task_refuses_a_reference_on_both_sides():
    frame = pd.DataFrame({"reference": ["a", "a", "b"], "mos": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="1 references are trained on and tested"):
        Task(frame, np.array([0, 2]), np.array([1]))


def test_splits_that_do_not_differ_are_refused(world):
    frame, split, _ = world
    rows = np.flatnonzero(frame["dataset"] == "tid2013")
    with pytest.raises(ValueError, match="tid2013: 2 splits were asked for and 1 differ"):
        make_tasks(frame, rows, {0: split, 1: split.copy()})
    other = np.where(split == "test", "training", np.where(split == "validation", "test", split))
    first, second = make_tasks(frame, rows, {4: split, 5: other}).values()
    assert (first.seed, second.seed) == (4, 5)
    assert not np.intersect1d(first.test, second.test).size


def test_layers_and_statistics_that_see_brightness_predict_it(world, tiny, tmp_path):
    frame, split, store = world
    other = np.where(split == "test", "training", np.where(split == "validation", "test", split))
    rows = np.flatnonzero(frame["dataset"] == "tid2013")
    tasks = make_tasks(frame, rows, {0: split, 1: other})
    options = {"cache_dir": tmp_path, "svr_c": [1.0], "relative_c": True}
    predictions = predict_layers(tiny[0], "tiny", store, tasks, **options)
    by = ["layer", "regressor"]
    assert {key for key, _ in predictions.groupby(by)} == {
        (layer.name, regressor) for layer in tiny[1] for regressor in ("SVR", "GPR", "ridge")
    }
    is_gpr = predictions["regressor"] == "GPR"
    assert predictions.loc[is_gpr, "sd"].gt(0).all()
    svr = predictions[predictions["regressor"] == "SVR"].groupby("seed")["cv_rmse"].first()
    assert svr.notna().tolist() == [True, False]  # a single constraint has its error once
    scores = score(predictions, by, ["SRCC"], resample=None)
    assert scores["value"].min() > 0.7
    brisque = predict_brisque(store, tasks, cache_dir=tmp_path)
    assert set(brisque["network"]) == {"BRISQUE"}
    assert (tmp_path / f"brisque2-{store.key[:24]}.rows").is_file()


def test_a_set_of_five_references_is_cross_validated_in_as_many_folds_as_it_can(
    world, tiny, tmp_path
):
    frame, _, store = world
    references = sorted(set(frame["reference"]))[:5]  # four to learn from, one to predict
    rows = np.flatnonzero(frame["reference"].isin(references))
    split = np.where(frame["reference"] == references[0], "test", "training")
    tasks = make_tasks(frame, rows, {0: split})
    assert tasks[0].folds["n_folds"] == 4
    options = {"side": 16, "cache_dir": tmp_path}
    choices = {"svr_c": [0.1, 1.0], "relative_c": True}
    found = predict_layers(tiny[0], "tiny", store, tasks, **choices, **options)
    assert found.groupby("regressor")["cv_rmse"].first().gt(0).all()
    final, _ = predict_final(tiny[0], store, tiny[1][1], tasks[0], n_crops=1, n_trials=5, **options)
    assert np.isfinite(final["pred"]).all()


def test_crop_distances_are_those_of_the_features_and_one_crop_averages_to_itself(
    world, tiny, tmp_path
):
    task, (network, layers) = task_of(world), tiny
    options = {"side": 16, "cache_dir": tmp_path}
    within, between = crop_distances(network, world[2], layers[1], task, n_crops=2, **options)
    plain = {"layer": "5", "pooling": "flatten", "cache_dir": None}
    x, y = (
        frozen_features(network, world[2], rows=rows, crop=Crop((16, 16), k), **plain)
        for rows, k in ((task.train, 0), (task.test, 1))
    )
    direct = np.linalg.norm(y[:, None] - x[None], axis=2)
    np.testing.assert_allclose(between[1], direct, atol=1e-4)
    process = fit_gaussian_process(within, task.mos)
    twice = average_crops(process, np.stack([between[1], between[1]]))
    np.testing.assert_allclose(twice, process.predict(between[1]))


def test_the_final_method_searches_the_noise_when_asked_and_is_timed(world, tiny, tmp_path):
    options = {"side": 16, "n_crops": 2, "cache_dir": tmp_path}
    (network, layers), task = tiny, task_of(world)
    plain, none = predict_final(network, world[2], layers[1], task, **options)
    found, search = predict_final(network, world[2], layers[1], task, n_trials=6, **options)
    assert none is None
    assert len(search.trials) == 6
    assert np.isfinite(found["pred"]).all()
    assert list(found["row"]) == list(plain["row"]) == list(task.test)
    timing = time_prediction(
        network, world[2], layers[1], task.test[:2], search.process, n_crops=1, side=16
    )
    assert timing["features"] > 0
    assert timing["prediction"] > 0


def test_standardised_predictions_come_back_on_the_scale_of_the_test_set(world):
    frame, *_ = world
    rows = np.flatnonzero(frame["dataset"] == "live")
    z = frame.loc[rows, "mos_z"].to_numpy()
    own = to_own_scale(pd.DataFrame({"row": rows, "mos": z, "pred": z + 1}), frame)
    np.testing.assert_allclose(own["mos"], frame.loc[rows, "mos"])
    np.testing.assert_allclose(own["pred"] - own["mos"], frame.loc[rows, "mos"].std(ddof=0))


def test_cross_validation_on_the_first_split_chooses_and_the_test_images_do_not():
    predictions = pd.DataFrame(
        {
            "network": ["a"] * 4 + ["b"] * 2,
            "layer": ["x", "y", "x", "y", "z", "w"],
            "seed": [0, 0, 1, 1, 0, 0],
            "cv_rmse": [2.0, 1.0, 0.1, np.nan, 5.0, 6.0],
            "pred": range(6),
        }
    )
    kept = preferred(predictions, ["network"], ["layer"])
    assert kept["pred"].tolist() == [1, 3, 4]


def test_scores_are_named_as_in_the_ledger_or_as_controls():
    row = layer_regression.ledger_row("vgg16", "conv5_1", "pre-trained", "SVR")
    assert row == ("Table 1", "Vgg16 / conv5_1 (pre-trained, linear SVR)")
    for key in (
        ("vgg16", "conv5_1", "pre-trained", "ridge"),
        ("vgg16", "conv5_1", "fine-tuned", "SVR"),  # Table 2 has other layers
        ("squeezenet1_0", "fire7", "pre-trained", "SVR"),
    ):
        assert layer_regression.ledger_row(*key)[0] == "control"


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
    about = {"image": names, "dataset": "one", "reference": names, "subset": "", "mos": rows}
    task = Task(pd.DataFrame(about).astype({"mos": float}), rows[:9], rows[9:])
    found = predict_brisque(store, {0: task}, cache_dir=tmp_path)
    ridge = found[found["regressor"] == "ridge"].set_index("row")
    assert ridge.loc[11, "pred"] == pytest.approx(np.arange(9).mean(), abs=1)
    assert np.isfinite(found["pred"]).all()

"""The training that notebook 02 shows: its own cells, on small data."""

import json
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from iqa_utils.images import build_store
from iqa_utils.indicators import NAMES, standardise
from iqa_utils.models import PooledTrunk
from iqa_utils.training.batches import stem_activations, stem_batches
from iqa_utils.workshop import demo, notebooks
from iqa_utils.workshop.runs import start_run
from tests.conftest import REAL_DATA

N = 24
MOS = np.linspace(2, 98, N)[np.random.default_rng(2).permutation(N)]  # every set has all scores
SPLIT = np.repeat(["training", "validation", "test"], [16, 4, 4])
SMALL = {"EPOCHS": 1, "BATCH_SIZE": 4, "N_RUNS": 1, "EDGES": [0, 50, 75, 100], "SIZE": [40, 48]}
SMALL |= {"BACKBONE": "test_efficientnet", "KONCEPT_BACKBONE": "test_efficientnet", "FROZEN": ""}
SMALL |= {"FREEZE_STATISTICS": False, "RIDGE_START": False, "POOLING": "mean"}
SMALL |= {"MEAN": [0.485, 0.456, 0.406], "STD": [0.229, 0.224, 0.225], "LEARNING_RATE": 1e-3}
CELLS = ["imports", "forward", "0b7a41c2", "0b7a41c4", "0b7a41c6", "0b7a41c8", "0b7a41ca"]
CELLS += ["0b7a41cc", "5c41e07a"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    names = [f"{i:02d}.png" for i in range(N)]
    for i, name in enumerate(names):
        noise = generator.normal(0, 2 * i, (40, 48, 3))
        Image.fromarray(np.clip(128 + noise, 0, 255).astype(np.uint8)).save(folder / name)
    return build_store(folder, names, folder / "stores", size=(40, 48), progress=False)


def notebook(store, folder, *, mos=MOS, split=SPLIT, **changes):
    """Run the cells of notebook 02 that define its training; return what they define."""
    path = notebooks.find_notebook("02")
    values = notebooks.default_parameters(path) | SMALL | changes
    rows = {name: np.flatnonzero(split == name) for name in ("training", "validation", "test")}
    table = np.random.default_rng(1).uniform(0.1, 1, (len(mos), 4))
    numbers = standardise(pd.DataFrame(table, columns=list(NAMES)), rows["training"])
    frame = pd.DataFrame({"image": store.names, "reference": store.names})
    space = dict(values, mos=mos, rows=rows, store=store, frame=frame)
    space |= {"numbers": torch.tensor(numbers), "training_mos": mos[rows["training"]]}
    space |= {"data": "demo", "device": "cpu", "weights": "random"}
    space["counts"] = np.histogram(space["training_mos"], values["EDGES"])[0]
    run = {"checkpoints_dir": folder / "checkpoints", "use_weights": lambda *_: None}
    run["parameters"] = values
    space["run"] = SimpleNamespace(**run)
    cells = {cell.id: cell.source for cell in nbformat.read(path, as_version=4).cells}
    for name in CELLS:
        exec(cells[name], space)  # of our own notebook
        space["cache_dir"] = folder.joinpath
    return SimpleNamespace(**space, space=space)


def test_every_scenario_trains_and_predicts_the_test_set(store, tmp_path):
    one = notebook(store, tmp_path)
    scenarios = {
        "both": one.BASE, "pixels": one.inputs["images"] | {"sampler": "method3"},
        "numbers": one.inputs["parameters"] | {"sampler": "rule"},
        "weighted": one.controls["linear"] | {"loss": "range-weighted"},
        "rival": one.BASE | {"network": "koncept", "sampler": "method1"},
    }  # fmt: skip
    runs = one.train_all("all", scenarios, 1, "range_sum")
    assert runs.predictions.groupby("method").size().eq(4).all()
    assert runs.predictions["pred"].notna().all()
    assert runs.history["method"].tolist() == list(scenarios)
    images = runs.history.set_index("method")["images"]
    smallest = one.counts.min()
    assert images["both"] == images["weighted"] == 16
    assert images["pixels"] == smallest * (4 + 4 + 3)
    assert images["rival"] == smallest * 3  # no image is left out, though batches hold 4
    assert runs.cost["images"].tolist() == images.tolist()


def test_the_same_training_gives_the_same_predictions_and_another_seed_others(store, tmp_path):
    def predictions(folder, seed):
        one = notebook(store, tmp_path / folder, SEED=seed)
        return one.train_all("all", {"dual": one.BASE}, 1, "total").predictions["pred"]

    first = predictions("a", 0)
    assert first.equals(predictions("b", 0))
    assert not first.equals(predictions("c", 1))


def test_what_was_trained_is_read_and_not_trained_again(store, tmp_path):
    one = notebook(store, tmp_path)
    first = one.train_all("a", {"none": one.BASE}, 1, "total")
    again = one.train_all("b", {"dual": one.BASE}, 1, "total")
    assert first.cost["seconds"].equals(again.cost["seconds"])
    assert first.predictions["pred"].equals(again.predictions["pred"])
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_another_split_recipe_or_criterion_is_another_training(store, tmp_path):
    other = SPLIT.copy()
    other[[5, 18]] = other[[18, 5]]  # neither is the first of its set
    for changes in ({}, {"split": other}, {"MEAN": [0.5] * 3}):
        one = notebook(store, tmp_path, **changes)
        one.train_all("all", {"dual": one.BASE}, 1, "total")
    one.train_all("all", {"dual": one.BASE}, 1, "range_sum")
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4


def test_a_method_can_have_settings_of_its_own_and_the_log_names_it(store, tmp_path, capsys):
    own = {"a": {"EPOCHS": 2, "N_RUNS": 2}, "b": {"PRECISION": "bf16"}}
    one = notebook(store, tmp_path, OVERRIDES=own)
    capsys.readouterr()
    runs = one.train_all("all", dict.fromkeys("abc", one.BASE), 1, "total")
    assert runs.history.groupby(["method", "seed"]).size().to_dict() == {
        ("a", 0): 2, ("a", 1): 2, ("b", 0): 1, ("c", 0): 1,
    }  # fmt: skip
    first = runs.predictions.query("seed == 0").set_index("method")["pred"]
    assert not np.array_equal(first["b"], first["c"])
    assert capsys.readouterr().out.splitlines() == [
        "a, seed 0: {'EPOCHS': 2, 'N_RUNS': 2}", "a, seed 1: {'EPOCHS': 2, 'N_RUNS': 2}",
        "b, seed 0: {'PRECISION': 'bf16'}",
    ]  # fmt: skip


def test_only_the_named_scenarios_are_left_and_the_baseline_is_required(store, tmp_path):
    cells = nbformat.read(notebooks.find_notebook("02"), as_version=4).cells
    source = next(cell.source for cell in cells if cell.id == "e07b3d15")

    def scenarios(*only):
        one = notebook(store, tmp_path, ONLY=list(only), RESOLUTIONS=[[32, 24]])
        exec(source, one.space)
        groups = [one.space[name] for name in ("scenarios", "by_sampler", "koncept", "at_sizes")]
        return [list(group) for group in groups]

    assert [len(group) for group in scenarios()] == [8, 6, 5, 1]
    assert scenarios("method2", "none") == [[], ["none", "method2"], [], []]
    chosen = scenarios("none", "dual", "KonCept512, none", "24x32")
    assert chosen == [["dual"], ["none"], ["KonCept512, none"], ["24x32"]]
    with pytest.raises(ValueError, match=r"ONLY needs 'none' .*got \['method2'\]"):
        scenarios("method2")
    with pytest.raises(ValueError, match=r"names among .*method3.*got \['none', 'method4'\]"):
        scenarios("none", "method4")


def test_a_size_above_that_of_the_images_is_said_to_enlarge_them(store, tmp_path, capsys):
    cells = {c.id: c.source for c in nbformat.read(notebooks.find_notebook("02"), 4).cells}
    lines = cells["store"].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("native ="))
    space = {"SIZE": [40, 48], "RESOLUTIONS": [[80, 96], [20, 24]], "store": store, "np": np}
    space |= {"native": np.full((N, 2), (40, 48))}
    exec(lines[first + 1] + "\n" + lines[first + 2], space)  # of our own notebook
    expected = {"48x40": False, "96x80": True, "24x20": False}
    assert space["enlarged"] == expected
    assert f"enlarges some images: {expected}" in capsys.readouterr().out
    naming = next(
        s for s in "\n".join(cells.values()).splitlines() if s.startswith("names = {name")
    )
    space["at_sizes"] = expected
    exec(naming, space)
    assert space["names"]["96x80"] == "Images, 96x80, enlarged"
    assert space["names"]["48x40"] == "Images, 48x40"


TINY = {"DATASET": "koniq10k", "MOS_FACTOR": 1.0, "EDGES": [0, 45, 64, 100], "THRESHOLD": 10}
TINY |= {"SIZE": [24, 32], "RESOLUTIONS": [[24, 32]]}
TINY |= {"PRETRAINED": "random", "BACKBONE": "test_efficientnet", "PLANE_SIZE": 16}
TINY |= {"KONCEPT_BACKBONE": "test_efficientnet", "EPOCHS": 1, "N_RUNS": 1, "PRECISION": "fp32"}
TINY |= {"STEP_BACKBONES": [], "STEP": [2, 80, 112, 1], "N_RESAMPLES": 20, "THREADS": 1}


def test_a_tiny_run_of_the_whole_xception_profile_ends_with_what_only_names(tmp_path, monkeypatch):
    demo.make_demo(tmp_path / "data", scale=0.3, sets=("koniq10k",))
    space = {"__name__": "__main__"}
    for cell in nbformat.read(notebooks.find_notebook("02"), as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, space)  # of our own notebook
        if "parameters" in cell.metadata.get("tags", []):
            space |= notebooks.read_profile("02_cross_sampling", "full_xception") | TINY
            monkeypatch.setattr("iqa_utils.workshop.runs.ROOT", tmp_path)  # all is imported
    plt.close("all")
    folder = tmp_path / "runs" / "full_xception" / "02_cross_sampling"
    results = pd.DataFrame(json.loads((folder / "metrics.json").read_text())["results"])
    assert set(results.loc[results["table"] == "Tab. 4", "method"]) == {
        "without cross-sampling", "method 2",
    }  # fmt: skip
    assert set(pd.read_parquet(folder / "history.parquet")["method"]) == {"none", "method2"}
    assert (folder / "figures" / "range_errors.png").is_file()
    assert not (folder / "figures" / "resolutions.png").exists()  # one size says nothing


def test_a_ridge_start_on_frozen_layers_predicts_what_ridge_regression_predicts(store, tmp_path):
    options = {"RIDGE_START": True, "FROZEN": "blocks.2", "POOLING": "mean_std"}
    one = notebook(store, tmp_path, **options, FREEZE_STATISTICS=True)
    torch.manual_seed(0)
    network = one.build("images", one.start)
    network.activation = torch.nn.Identity()  # this small trunk does not end in a ReLU
    test = one.rows["test"]
    expected = one.start.predict(one.image_features(test))
    pred = one.predict(network, one.batches(test, store))
    np.testing.assert_allclose(pred, expected, rtol=1e-3)
    assert (
        one.train_all("all", {"images": one.inputs["images"]}, 1, "total")
        .history.notna()
        .all(axis=None)
    )


def test_a_notebook_stopped_inside_an_epoch_ends_with_the_same_numbers(store, tmp_path, capsys):
    steps = []

    def train_both(folder, stop_at=None):
        one = notebook(store, folder, SAVE_SECONDS=0.0, EPOCHS=2)
        plain = one.LOSSES["mse"]

        def loss(pred, mos):
            steps.append(1)
            if len(steps) == stop_at:
                raise InterruptedError
            return plain(pred, mos)

        one.LOSSES["mse"] = loss
        rival = one.BASE | {"network": "koncept", "sampler": "method1"}
        return one.train_all("all", {"dual": one.BASE, "koncept": rival}, 1, "total")

    with pytest.raises(InterruptedError):
        train_both(tmp_path / "a", stop_at=10)  # in the second training, with a step saved
    steps.clear()
    runs = train_both(tmp_path / "a")
    assert "resumed at epoch 0, step 1\n" in capsys.readouterr().out
    again = len(steps)
    expected = train_both(tmp_path / "b")
    assert len(steps) - again - again == 9  # nothing finished ran twice
    assert runs.predictions.equals(expected.predictions)
    assert runs.history.drop(columns="seconds").equals(expected.history.drop(columns="seconds"))


def test_equal_steps_go_on_from_equal_epochs_and_show_as_many_images(store, tmp_path):
    one = notebook(store, tmp_path, EPOCHS=2, EDGES=[0, 15, 75, 100])
    scenarios = {name: one.BASE | {"sampler": name} for name in ("none", "method1")}
    shorter = one.train_all("samplers", scenarios, 1, "total")
    runs = one.train_all("samplers", scenarios, 1, "total", equal_steps=True)
    assert runs.predictions.equals(shorter.predictions)  # read off, to the last bit
    seen = runs.cost.set_index("method")["images seen"]
    per_epoch = 3 * one.counts.min()  # of method 1
    assert seen["none"] == 2 * 16
    assert abs(seen["method1"] - 2 * 16) <= per_epoch / 2
    assert set(runs.longer["stage"]) == {"equal steps"}
    rates = runs.history.query("method == 'method1'")["lr"].to_numpy()
    assert len(rates) == round(2 * 16 / per_epoch) > 2
    np.testing.assert_allclose(rates, np.resize([1e-3, 5e-4], len(rates)))


def test_the_criterion_sums_root_mean_squares_of_the_ranges_or_their_squares(store, tmp_path):
    one = notebook(store, tmp_path)
    true = one.mos[one.rows["validation"]]
    error = np.array([4.0, 4.0, 4.0, 4.0])
    one.space["predict"] = lambda *_, **__: true + error
    found = one.validate(None, store, "fp32")
    ranges = np.unique(np.digitize(true, one.EDGES[1:-1]), return_counts=True)[1]
    n = (ranges > 1).sum()  # a range with one image has no error
    assert found["val_range_sum"] == pytest.approx(4 * n)
    assert found["val_range_mse_sum"] == pytest.approx(16 * n)


def test_copies_pass_the_frozen_layers_anew(store, tmp_path):
    one = notebook(store, tmp_path, FROZEN="blocks.1")
    rows = np.array([3, 7, 3, 3])
    black = lambda pixels, generator: torch.zeros_like(pixels)  # noqa: E731
    (batch,) = one.batches(rows, store, seed=0, copies=black)
    (plain,) = one.batches(rows, store, seed=0)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (one.MEAN, one.STD))
    stem = one.frozen_branch().eval().stem
    expected = stem((torch.zeros(1, 3, 40, 48) - mean) / std)[0]
    changed = [not torch.equal(a, b) for a, b in zip(batch.inputs[0], plain.inputs[0], strict=True)]
    assert sum(changed) == 2  # of the three showings of image 3 the first stays
    for at in np.flatnonzero(changed):
        torch.testing.assert_close(batch.inputs[0][at], expected, rtol=2e-3, atol=2e-3)


def test_frozen_layers_are_applied_once_and_mirrored(store, tmp_path):
    branch = PooledTrunk("test_efficientnet", 3)
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


# true counts

OFFICIAL = {"none": 7058, "method1": 645, "method2": 903, "method3": 2193, "rule": 1826}


class Linear(torch.nn.Module):
    """One neuron on one pixel and four indicators."""

    def __init__(self):
        super().__init__()
        self.neuron = torch.nn.Linear(3 + len(NAMES), 1)

    def forward(self, images, indicators):
        return self.neuron(torch.cat([images.flatten(1), indicators], dim=1)).squeeze(1)


@pytest.fixture(params=["official", "stand-in"])
def training_scores(request):
    """Scores of KonIQ-10k's training set, where at hand; then others with as many in each range."""
    if request.param == "official":
        path = REAL_DATA / "koniq10k" / "koniq10k_distributions_sets.csv"
        if not path.is_file():
            pytest.skip(f"needs the official scores in {path}, which are not there")
        table = pd.read_csv(path)
        return table.loc[table["set"] == "training", "MOS"].to_numpy()
    low = np.repeat([0, 20, 40, 60, 80], [129, 833, 2157, 3790, 149])
    return low + np.random.default_rng(0).uniform(0, 20, len(low))


def test_histories_of_the_official_training_set_hold_what_every_sampler_draws(
    training_scores, tmp_path, monkeypatch
):
    mos = training_scores
    mos = np.r_[mos, mos[::353], mos[1::353]]  # 20 more each for validation and test
    split = np.repeat(["training", "validation", "test"], [7058, 20, 20])
    picture = tmp_path / "0.png"
    Image.new("RGB", (1, 1), (90, 120, 150)).save(picture)
    names = [f"{i}.png" for i in range(len(mos))]
    for name in names[1:]:
        (tmp_path / name).hardlink_to(picture)
    store = build_store(tmp_path, names, tmp_path / "stores", size=(1, 1), progress=False)
    official = {"EDGES": [0, 20, 40, 60, 80, 100], "THRESHOLD": 1000}
    one = notebook(store, tmp_path, mos=mos, split=split, **official)
    one.space["build"] = lambda name, start: Linear()
    samplers = {name: one.BASE | {"sampler": name} for name in OFFICIAL}
    runs = one.train_all("samplers", samplers, 1, "total")
    assert runs.history.set_index("method")["images"].to_dict() == OFFICIAL
    monkeypatch.setattr("iqa_utils.workshop.runs.ROOT", tmp_path)
    run = start_run("02_cross_sampling", {"PROFILE": "counts", "RUN_NAME": "", "SEED": 0})
    run.save_history(runs.history)
    kept = pd.read_parquet(run.dir / "history.parquet")
    pd.testing.assert_frame_equal(kept, runs.history)
    assert kept.set_index("method")["images"].to_dict() == OFFICIAL

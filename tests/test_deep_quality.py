"""The joined table of several sets, who may see which image, and the fine-tuning of notebook 04."""

import functools
import itertools
import types

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from iqa_utils import backbones, deep_quality
from iqa_utils.features.layers import Network
from iqa_utils.images import build_store
from iqa_utils.metrics import rmse, srcc
from iqa_utils.training import fit, mean_loss, predict
from iqa_utils.training.batches import store_batches
from iqa_utils.training.checkpoints import data_digest
from iqa_utils.workshop.notebooks import find_notebook


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


def make_world(root):
    """Return a joined table of two sets, its split, and images whose brightness is their score."""
    frames = {"tid2013": made_frame("tid2013"), "live": made_frame("live", seed=1)}
    rng = np.random.default_rng(0)
    for name, frame in frames.items():
        (root / name).mkdir()
        for image, mos in zip(frame["image"], frame["mos"], strict=True):
            pixels = 120 + 20 * (mos - 5) + rng.normal(0, 10, (20, 22, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / image)
    joined = deep_quality.join_sets(frames)
    split = deep_quality.split_sets(frames, seed=0)
    store = build_store(
        root, joined["image"], root / "stores", size=None, fit="native", progress=False
    )
    return joined, split, store


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("sets"))


def test_joined_scores_are_standardised_per_set_and_tid_shares_its_references():
    frames = {"tid2008": made_frame("tid2008", seed=2), "tid2013": made_frame("tid2013")}
    frames["tid2008"]["reference"] = frames["tid2008"]["reference"].str.lower()
    joined = deep_quality.join_sets(frames)
    by_set = joined.groupby("dataset")["mos_z"]
    np.testing.assert_allclose(by_set.mean(), 0, atol=1e-12)
    np.testing.assert_allclose(by_set.std(ddof=0), 1)
    assert joined["reference"].nunique() == 6
    assert joined["image"].iloc[0] == "tid2008/0.png"
    split = deep_quality.split_sets(frames, seed=3)
    assert len({*zip(joined["reference"], split, strict=True)}) == 6


def test_live_appears_as_its_two_releases(world):
    frame, *_ = world
    sets = deep_quality.paper_sets(frame)
    assert list(sets) == ["tid2013", "live2", "live1"]
    assert set(frame.loc[sets["live1"], "distortion"]) == {"jp2k", "jpeg"}
    assert len(sets["live2"]) == 24


def test_a_family_of_sets_is_tested_on_the_sets_outside_it(world):
    frame, *_ = world
    train, others = deep_quality.other_sets(frame, ("live",))
    assert set(frame.loc[train, "dataset"]) == {"live"}
    assert {name: len(rows) for name, rows in others.items()} == {"tid2013": 24}
    assert deep_quality.other_sets(frame, ("csiq",))[1] == {}


def test_strict_tuning_sees_training_images_only_and_as_written_sees_test_images(world):
    frame, split, _ = world
    rows = functools.partial(deep_quality.tuning_rows, frame, split)
    train, validation = rows("strict", ["live"], whole=False)
    assert set(frame["dataset"].iloc[train]) == {"live"}
    assert set(split[train]) == {"training"}
    assert set(split[validation]) == {"validation"}
    assert set(split[rows("strict", ["live"], whole=True)[0]]) == {"training", "test"}
    leaky, _ = rows("as_written", ["live"], whole=False)
    assert (split[leaky] == "test").any()
    assert set(frame["dataset"].iloc[leaky]) == {"live", "tid2013"}
    with pytest.raises(ValueError, match="mode must be one of"):
        rows("honest", ["live"], whole=False)


def fine_tuning(world, folder, build=None, **parameters):
    """Return ``fine_tune`` of notebook 04, as its cells define it, for a network called tiny."""
    frame, _, store = world
    networks = {"tiny": Network("torchvision", "none", 16)}
    space = {"np": np, "torch": torch, "partial": functools.partial, "chain": itertools.chain}
    space |= {"islice": itertools.islice, "count": itertools.count, "AUGMENT": False}
    space |= {"frame": frame, "store": store, "NETWORKS": networks, "tunable": ["tiny"]}
    space |= {"run": types.SimpleNamespace(checkpoints_dir=folder), "DEVICE": "cpu", "SEED": 0}
    space |= {"fit": fit, "mean_loss": mean_loss, "predict": predict, "srcc": srcc, "rmse": rmse}
    space |= {"mse_loss": nn.functional.mse_loss, "store_batches": store_batches}
    space |= {"data_digest": data_digest, "weights_hash": backbones.weights_hash}
    space |= {"deep_quality": deep_quality, "build": build or (lambda name: made_network())}
    values = {"EPOCHS": 4, "N_STEPS": 0, "LEARNING_RATE": 1e-2, "BATCH_SIZE": 16, "OVERRIDES": {}}
    values |= {"TUNING_SIDE": 0, "PRECISION": "fp32", "SAVE_SECONDS": 60.0}
    space |= values | {"FREEZE_BATCH_NORM": False} | parameters
    cells = nbformat.read(find_notebook("04"), as_version=4).cells
    for cell in cells:
        if cell.cell_type == "code" and "def training_key" in cell.source:
            exec(cell.source, space)  # of our own notebook
        if cell.cell_type == "code" and "def fine_tune" in cell.source:
            exec(cell.source, space)
    return space["fine_tune"]


def rows_of(world):
    _, split, _ = world
    return [np.flatnonzero(split == name) for name in ("training", "validation")]


def test_the_fine_tuning_of_the_notebook_lowers_the_error_and_repeats_itself(world, tmp_path):
    train = fine_tuning(world, tmp_path / "one")
    tuned, history = train("tiny", *rows_of(world))
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]
    assert list(history["epoch"]) == [1, 2, 3, 4]
    assert all(parameter.grad is None for parameter in tuned.parameters())
    again, _ = fine_tuning(world, tmp_path / "two")("tiny", *rows_of(world))
    after = tuned.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in again.state_dict().items())
    assert not torch.equal(after["5.weight"], made_network().state_dict()["5.weight"])


def test_a_finished_fine_tuning_is_read_back_and_another_split_trains_again(world, tmp_path):
    steps = []

    def build(name):
        network = made_network()
        network.register_forward_hook(lambda net, *_: steps.append(1) if net.training else None)
        return network

    train = fine_tuning(world, tmp_path, build, EPOCHS=1)
    training, validation = rows_of(world)
    first, _ = train("tiny", training, validation)
    n_steps = len(steps)
    again, _ = train("tiny", training, validation)
    assert len(steps) == n_steps > 0
    assert all(torch.equal(v, first.state_dict()[k]) for k, v in again.state_dict().items())
    train("tiny", training[1:], validation)
    assert len(steps) > n_steps


def test_batch_normalisation_keeps_its_statistics_where_that_is_asked_for(world, tmp_path):
    def frozen(name):
        return backbones.freeze_batch_statistics(made_network())

    tuned, _ = fine_tuning(world, tmp_path, frozen, FREEZE_BATCH_NORM=True)("tiny", *rows_of(world))
    assert torch.equal(tuned[1].running_mean, torch.zeros(4))
    tuned, _ = fine_tuning(world, tmp_path)("tiny", *rows_of(world))
    assert not torch.equal(tuned[1].running_mean, torch.zeros(4))


def test_steps_cut_an_epoch_short_and_overrides_change_one_network(world, tmp_path):
    overrides = {"tiny": {"EPOCHS": 2, "PRECISION": "bf16"}}
    train = fine_tuning(world, tmp_path, N_STEPS=1, BATCH_SIZE=9, OVERRIDES=overrides)
    _, history = train("tiny", *rows_of(world))
    assert history["images"].tolist() == [9, 9]


def test_steps_beyond_an_epoch_go_on_with_the_images_in_a_new_order(world, tmp_path):
    train = fine_tuning(world, tmp_path, EPOCHS=2, N_STEPS=9, BATCH_SIZE=8)
    training, validation = rows_of(world)
    assert len(training) < 9 * 8
    _, history = train("tiny", training, validation)
    n_passes, left = divmod(9, -(-len(training) // 8))
    assert history["images"].tolist() == [n_passes * len(training) + left * 8] * 2


def test_a_network_has_its_own_recipe_of_fine_tuning(world, tmp_path):
    start = made_network().state_dict()["5.weight"]
    own = {"tiny": {"LEARNING_RATE": 0.0, "EPOCHS": 1, "N_STEPS": 2}}
    tuned, history = fine_tuning(world, tmp_path / "own", OVERRIDES=own)("tiny", *rows_of(world))
    assert torch.equal(tuned.state_dict()["5.weight"], start)
    assert history["images"].tolist() == [32]
    warped, _ = fine_tuning(world, tmp_path / "a", EPOCHS=1, AUGMENT=True)("tiny", *rows_of(world))
    plain, _ = fine_tuning(world, tmp_path / "b", EPOCHS=1)("tiny", *rows_of(world))
    assert not torch.equal(warped.state_dict()["5.weight"], plain.state_dict()["5.weight"])


def test_a_result_states_epochs_or_steps_only_where_a_network_was_trained():
    ours, papers = {"EPOCHS": 5, "N_STEPS": 0}, {"EPOCHS": 10, "N_STEPS": 100}
    told = {"split": "official", "crops": 1}
    assert deep_quality.protocol("official", 1) == told
    assert deep_quality.protocol("official", 1, ours) == told | {"epochs": 5}
    assert deep_quality.protocol("official", 1, papers) == told | {"steps": 1000}


def described_rows(**parameters):
    """Call ``described`` of notebook 04, as its cell defines it, for rows of three networks."""
    recipes = {"a": {"EPOCHS": 5, "N_STEPS": 0}, "b": {"EPOCHS": 10, "N_STEPS": 100}}
    space = {"DATASETS": ["s"], "is_demo": False, "selection": "s", "recipes": recipes}
    space |= {"frames": {"s": made_frame("s")}, "TAP_SIZE": 0, "deep_quality": deep_quality}
    space |= {"weights": {"a": "imagenet", "b": "openai"}, "LAYERS": [], "scores": made_scores()}
    results = []
    space["run"] = types.SimpleNamespace(describe=lambda **_: None, add_results=results.extend)
    space["layer_regression"] = types.SimpleNamespace(ledger_row=lambda *key: ("control", "x"))
    cells = nbformat.read(find_notebook("04"), as_version=4).cells
    exec(next(cell.source for cell in cells if "def described" in cell.source), space | parameters)
    return results


def made_scores():
    rows = [("a", "pre-trained", ""), ("a", "fine-tuned", "strict"), ("b", "fine-tuned", "strict")]
    rows = [*rows, ("b", "pre-trained", ""), ("BRISQUE", "handcrafted", "")]
    table = pd.DataFrame(rows, columns=["network", "stage", "variant"])
    return table.assign(layer="l", regressor="SVR")


def test_rows_of_the_notebook_state_their_own_networks_weights_and_training():
    found = [(row["weights"], row["protocol"]) for row in described_rows()]
    told = {"split": "60/20/20", "crops": 1}
    assert found == [
        ("imagenet", told),
        ("imagenet", told | {"epochs": 5}),
        ("openai", told | {"steps": 1000}),
        ("openai", told),
        ("", told | {"crops": 0}),
    ]
    whole = [row["protocol"]["crops"] for row in described_rows(TAP_SIZE=384)]
    assert whole == [0] * 5
    official = {"s": made_frame("s").assign(split="test")}
    assert {row["protocol"]["split"] for row in described_rows(frames=official)} == {"official"}


def test_warped_images_turn_scale_and_shift_a_little_each_by_its_own_draw():
    ramp = torch.arange(64.0).expand(6, 3, 64, 64).mul(4).to(torch.uint8)  # rises to the right
    seeded = torch.Generator().manual_seed(0)
    warped = deep_quality.warp(ramp, generator=seeded)
    assert warped.dtype == torch.uint8
    assert warped.shape == ramp.shape
    again = deep_quality.warp(ramp, generator=torch.Generator().manual_seed(0))
    assert torch.equal(warped, again)
    inside = warped[:, 0, 16:48, 16:48].float()
    across, down = inside.diff(dim=2).mean((1, 2)), inside.diff(dim=1).mean((1, 2))
    assert ((across > 4 * 0.85) & (across < 4 * 1.11)).all()  # 0.9 to 1.1, cosine
    assert (down.abs() < 4 * 1.1 * 0.18).all()
    assert down.std() > 0.1
    assert (inside.mean((1, 2)) - 126).abs().max() < 4 * 64 * 0.06
    flat = torch.full((2, 3, 8, 8), 77, dtype=torch.uint8)
    assert torch.equal(deep_quality.warp(flat, generator=seeded), flat)

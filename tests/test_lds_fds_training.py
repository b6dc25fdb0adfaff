"""The training that notebook 05 shows: its cells are run here on small vectors."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from iqa_utils import imbalance, losses, metrics
from iqa_utils.backbones import weights_hash
from iqa_utils.models.clip_head import ClipHead
from iqa_utils.training import fit, predict, tensor_batches
from iqa_utils.training.checkpoints import data_digest

NOTEBOOK = json.loads((Path(__file__).parents[1] / "notebooks/05_lds_fds.ipynb").read_text())
CELLS = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"]}
NAMES = ("7b1d04e6", "weights", "4e8a7d15", "9d04b7e3", "5fd2e81c", "train")
KEY = "5fd2e81c"


def notebook(folder=None, *, n=240, **parameters):
    """Return the namespace of the notebook once it can train; scores crowd between 40 and 80."""
    rng = np.random.default_rng(0)
    mos = np.clip(rng.normal(60, 15, n), 1, 99)
    mos[:12] = rng.uniform(1, 20, 12)
    mos = rng.permutation(mos)
    vectors = np.column_stack([mos / 15 + rng.normal(0, 0.4, n), rng.normal(size=(n, 7))])
    split = np.resize(["training", "training", "validation", "test"], n)
    training, validation, test = (
        np.flatnonzero(split == part) for part in ("training", "validation", "test")
    )
    namespace = {
        "imbalance": imbalance, "losses": losses, "metrics": metrics, "np": np, "torch": torch,
        "weights_hash": weights_hash, "ClipHead": ClipHead, "fit": fit, "predict": predict,
        "tensor_batches": tensor_batches, "data_digest": data_digest, "device": "cpu",
        "smoothing_kernel": imbalance.smoothing_kernel, "mos": mos, "training": training,
        "vectors": vectors.astype(np.float32), "validation": validation, "test": test,
        "edges": np.arange(101.0), "range_edges": (0.0, 20.0, 40.0, 60.0, 80.0, 100.0),
        "run": SimpleNamespace(checkpoints_dir=folder), "HEAD": [16, 1, 8], "EPOCHS": 4,
        "BATCH_SIZE": 32, "LEARNING_RATE": 0.02, "LEARNING_RATE_RAW": 0.1, "LOSS": "l1",
        "TARGETS": "standardised", "HEAD_FORM": "plain", "SELECT": "val_mae", "SAVE_SECONDS": 0.0,
        "OVERRIDES": {},
    }  # fmt: skip
    namespace |= parameters
    for cell in NAMES:
        source = CELLS[cell].partition("\nnames = ")[
            0
        ]  # of the table of weights the function alone
        exec(compile(source, cell, "exec"), namespace)
    return SimpleNamespace(**namespace)


def predictions(book, name, seed=0, heads=None):
    head, history = book.train(name, seed, heads or {})
    return book.predict_all(head), history


def test_every_method_learns_and_all_of_one_seed_differ_in_the_end():
    book, found = notebook(SELECT="last"), {}
    heads = {"LDS": book.train("LDS", 0, {})[0]}
    baseline = np.abs(book.mos - np.median(book.mos))[book.test].mean()
    for name in book.recipes:
        pred, history = predictions(book, name, 0, heads)
        assert np.abs(pred - book.mos)[book.test].mean() < 0.8 * baseline
        assert len(history) == 4
        found[name] = tuple(pred)
    assert len(set(found.values())) == len(book.recipes)


def test_a_seed_decides_a_training_completely():
    book = notebook()
    first, again, other = (predictions(book, "LDS + FDS", seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize("select", ["last", "val_mae", "val_balanced_mae"])
def test_the_epoch_is_the_last_or_the_best_on_validation_images(select):
    book = notebook(SELECT=select, LEARNING_RATE=0.2)
    pred, history = predictions(book, "vanilla")
    best = 3 if select == "last" else history[select].argmin()
    error = np.abs(pred - book.mos)[book.validation].mean()
    assert error == pytest.approx(history["val_mae"][best], rel=1e-5)


def test_a_method_that_goes_on_starts_from_the_trained_head():
    book = notebook()
    first, _ = book.train("LDS", 0, {})
    still = notebook(LEARNING_RATE=1e-12)
    second, _ = predictions(still, "LDS, then FDS", 0, {"LDS": first})
    np.testing.assert_allclose(second, book.predict_all(first), atol=1e-3)


@pytest.mark.parametrize("name", ["LDS + FDS", "LDS + FDS, released_agedb"])
@pytest.mark.parametrize("select", ["last", "val_mae"])
def test_a_killed_training_goes_on_and_ends_the_same(tmp_path, capsys, select, name):
    expected, _ = predictions(notebook(SELECT=select), name)
    left = iter(range(10))  # batches, 4 an epoch: dies in the third

    def dying(*args, **options):
        for batch in tensor_batches(*args, **options):
            if options.get("weight") is not None and next(left, None) is None:
                raise MemoryError
            yield batch

    with pytest.raises(MemoryError):
        predictions(notebook(tmp_path, SELECT=select, tensor_batches=dying), name)
    pred, _ = predictions(notebook(tmp_path, SELECT=select), name)
    assert "resumed at epoch 2, step 2" in capsys.readouterr().out
    np.testing.assert_array_equal(pred, expected)


def test_finished_trainings_are_not_repeated_and_changed_ones_are(tmp_path):
    def dead(*args, weight=None, **options):
        if weight is not None:
            raise MemoryError
        return tensor_batches(*args, **options)

    pred, _ = predictions(notebook(tmp_path), "LDS")
    again, _ = predictions(notebook(tmp_path, tensor_batches=dead), "LDS")
    np.testing.assert_array_equal(pred, again)
    for changed in ({"EPOCHS": 5}, {"BATCH_SIZE": 16}, {"LOSS": "mse"}, {"HEAD": [16, 2, 8]}):
        with pytest.raises(MemoryError):
            predictions(notebook(tmp_path, tensor_batches=dead, **changed), "LDS")
    moved = notebook(tmp_path, tensor_batches=dead)
    moved.mos[moved.validation[0]] += 1e-9
    exec(CELLS[KEY], moved.train.__globals__)
    with pytest.raises(MemoryError):
        predictions(moved, "LDS")


@pytest.mark.parametrize("targets", ["standardised", "raw"])
def test_predictions_start_at_the_mean_of_the_training_scores(targets):
    still = notebook(LEARNING_RATE=1e-12, LEARNING_RATE_RAW=1e-12, EPOCHS=1, TARGETS=targets)
    pred = predictions(still, "vanilla")[0]
    spread = 15 if targets == "standardised" else 1
    assert pred.mean() == pytest.approx(still.mos[still.training].mean(), abs=spread)


@pytest.mark.parametrize("name", ["vanilla", "LDS, then FDS"])
def test_the_papers_rate_on_raw_targets_trains_a_head_that_lives(name):
    book = notebook(TARGETS="raw", HEAD_FORM="normalised", EPOCHS=10)
    heads = {"LDS": book.train("LDS", 0, {})[0]} if "after" in book.recipes[name] else {}
    pred, mos = predictions(book, name, 0, heads)[0][book.test], book.mos[book.test]
    assert pred.std() > 0.2 * mos.std()
    assert np.abs(pred - mos).mean() < np.abs(mos - np.median(book.mos[book.training])).mean()


def test_a_single_method_may_have_epochs_of_its_own():
    book = notebook(OVERRIDES={"LDS": {"EPOCHS": 2}}, EPOCHS=1)
    assert [len(book.train(name, 0, {})[1]) for name in ("vanilla", "LDS")] == [1, 2]

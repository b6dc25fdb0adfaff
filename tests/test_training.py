"""The training loop: the same numbers whatever happens to it."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import StepLR

from iqa_utils.images import build_store
from iqa_utils.models import build_model
from iqa_utils.models.dual_xception import DualXception
from iqa_utils.training import fit, mean_loss, predict
from iqa_utils.training.batches import Batch, epoch_seed, store_batches, tensor_batches
from iqa_utils.training.checkpoints import (
    config_key,
    data_digest,
    load_model,
    save_checkpoint,
    save_model,
)
from tests.training_job import FEATURES, MOS, NAMES, batches, evaluate, make, train

JOB = Path(__file__).with_name("training_job.py")
METADATA = {"preprocessing": {}, "scores_seen": [], "metrics": {}}
METADATA["training_data"] = {"dataset": "none", "demo": True}


def without_time(history):
    return history.drop(columns="seconds")


def assert_same_outcome(network, result, *, other=None):
    """Compare with an undisturbed run to the last bit."""
    straight = other or make()
    expected = train(*straight)
    assert without_time(result.history).equals(without_time(expected.history))
    assert result.best_epoch == expected.best_epoch
    for key, value in straight[0].state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key


def stop_job(folder, number, *, after, threads=None):
    """Train in another process, send it a signal after some steps, and return what it wrote."""
    threads = threads or torch.get_num_threads()  # another number sums in another order
    with subprocess.Popen(
        [sys.executable, JOB, str(folder), str(threads)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        for _ in range(after):
            line = process.stdout.readline()
            if line != "step\n":
                process.kill()
                pytest.fail(f"wrote {line!r} and {process.stderr.read()}")
        process.send_signal(number)
        _, errors = process.communicate()
    return process.returncode, errors


# what a training does


def test_the_loss_falls_and_the_best_epoch_is_kept():
    network, optimizer, scheduler = make(dropout=0.0)
    result = train(network, optimizer, scheduler, epochs=8)
    assert result.history["train_loss"].is_monotonic_decreasing
    best = result.history["val_rmse"].min()
    assert result.best["val_rmse"] == best
    assert evaluate(network)["val_rmse"] == best
    assert result.history["images"].eq(32).all()
    assert result.history["lr"].tolist() == [0.01] * 2 + [0.005] * 2 + [0.0025] * 2 + [0.00125] * 2


def test_one_epoch_equals_a_loop_written_out_by_hand():
    network, optimizer, _ = make(dropout=0.0)
    result = train(network, optimizer, None, epochs=1)
    twin, optimizer, _ = make(dropout=0.0)
    losses = []
    for batch in batches(0):
        optimizer.zero_grad()
        loss = mse_loss(twin(*batch.inputs), batch.mos)
        loss.backward()
        optimizer.step()
        losses.append(loss.item() * len(batch))
    np.testing.assert_allclose(result.history["train_loss"][0], sum(losses) / 32, rtol=1e-6)
    for key, value in twin.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key


def test_the_criterion_decides_which_epoch_is_best():
    values = iter([3.0, float("nan"), 1.0, 2.0] * 2)
    result = train(
        *make(), epochs=4, evaluate=lambda _: {"a": next(values)}, select="a", mode="max"
    )
    assert result.best_epoch == 1
    result = train(
        *make(), epochs=4, evaluate=lambda _: {"a": next(values)}, select="a", mode="min"
    )
    assert result.best_epoch == 3


def test_a_criterion_that_is_missing_or_never_finite_is_an_error():
    with pytest.raises(KeyError, match="'val_srcc' is not among"):
        train(*make(), select="val_srcc")
    with pytest.raises(ValueError, match="no epoch had a finite a"):
        train(*make(), evaluate=lambda _: {"a": float("nan")}, select="a")


def test_trainings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="no epoch had a finite val_rmse"):
        train(*make(), epochs=0)
    with pytest.raises(ValueError, match="no batches for epoch 0"):
        train(*make(), train_batches=lambda epoch: [])
    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        train(*make(), step=lambda model, batch: model(*batch.inputs))


def test_a_batch_on_a_device_keeps_in_main_memory_what_the_host_looks_up():
    numbers = torch.zeros(2)
    batch = Batch((numbers,), numbers, numbers.long(), weight=numbers, source=numbers.long())
    moved = batch.to("meta")
    assert moved.inputs[0].is_meta
    assert moved.mos.is_meta
    assert moved.weight.is_meta
    assert not moved.index.is_meta
    assert not moved.source.is_meta


def test_a_loss_that_is_not_finite_names_epoch_batch_and_images():
    def nan_at_seventeen(epoch):
        mos = MOS.copy()
        mos[17] = np.nan if epoch == 1 else mos[17]
        return batches(epoch, mos)

    rows = [batch.index.tolist() for batch in batches(1)]
    number = next(i for i, row in enumerate(rows) if 17 in row)
    with pytest.raises(FloatingPointError, match=r"image-17\.png") as error:
        train(*make(), train_batches=nan_at_seventeen)
    assert f"epoch 2, batch {number + 1}: images " in str(error.value)
    assert all(NAMES[i] in str(error.value) for i in rows[number])


def test_lower_precision_ends_near_full_precision():
    full = train(*make(dropout=0.0)).best["val_rmse"]
    low = train(*make(dropout=0.0), precision="bf16").best["val_rmse"]
    assert low != full
    assert abs(low - full) < 0.02 * full


def test_frozen_statistics_stay_while_other_layers_train():
    network, optimizer, scheduler = make(frozen=True)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    train(network, optimizer, scheduler, epochs=2)
    moved = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert "layers.1.weight" in moved
    assert not any("running" in key for key in moved)


def test_channels_last_reaches_network_and_images():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 1), nn.Flatten(0))
    seen = []

    def step(model, batch):
        seen.append(batch.inputs[0].is_contiguous(memory_format=torch.channels_last))
        return mse_loss(model(*batch.inputs), batch.mos)

    images = torch.randn(8, 3, 8, 8)
    fit(
        network, lambda epoch: tensor_batches(images, range(8), MOS[:8], batch_size=4),
        loss_step=step, evaluate=lambda _: {"a": 1.0}, select="a", epochs=1, config={},
        optimizer=torch.optim.SGD(network.parameters(), 1e-5), channels_last=True, progress=False,
    )  # fmt: skip
    assert seen == [True, True]
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_only_full_batches_are_compiled_and_the_log_names_the_rest(capsys):
    network, optimizer, scheduler = make(dropout=0.0)
    plain = train(*make(dropout=0.0), epochs=2).history["train_loss"]
    for _ in range(2):  # dynamo is reset: the second training compiles again
        network, optimizer, scheduler = make(dropout=0.0)
        result = train(network, optimizer, scheduler, epochs=2, compile=True)
        assert counters["stats"]["unique_graphs"] == 1  # 32 images: five batches of 6, one of 2
        np.testing.assert_allclose(result.history["train_loss"], plain, rtol=1e-5)
        assert capsys.readouterr().out == (
            "compiled for batches of 6: 5 ran through the graph; "
            "1 of another size and the evaluation ran eagerly\n"
        )


def test_a_network_that_dynamo_gives_up_on_is_named_in_the_log(capsys):
    with torch._dynamo.config.patch(recompile_limit=0):
        train(*make(), epochs=1, compile=True)
    assert "runs eagerly: 1 functions (Dynamo recompile limit exceeded" in capsys.readouterr().out


# what happens when it stops


def test_a_process_killed_inside_an_epoch_ends_with_the_same_numbers_to_the_last_bit(
    tmp_path, capsys
):
    code, _ = stop_job(tmp_path, signal.SIGKILL, after=2 * 6 + 3)  # two epochs of six, and a bit
    assert code == -signal.SIGKILL
    assert len(list(tmp_path.glob("*/last.pt"))) == 1
    steps = []
    network, optimizer, scheduler = make()
    result = train(
        network, optimizer, scheduler, checkpoint_dir=tmp_path,
        step=lambda m, b: steps.append(1) or mse_loss(m(*b.inputs), b.mos),
    )  # fmt: skip
    epoch, step = map(
        int, re.match(r"resumed at epoch (\d), step (\d)\n", capsys.readouterr().out).groups()
    )
    assert epoch * 6 + step >= 2 * 6 + 2  # two steps of the third epoch at least were saved
    assert len(steps) == 6 * 6 - epoch * 6 - step  # nothing finished ran twice
    assert_same_outcome(network, result)


def test_an_interrupt_saves_in_the_middle_of_an_epoch_then_raises(tmp_path):
    _, errors = stop_job(tmp_path, signal.SIGINT, after=2 * 6 + 3)
    assert "KeyboardInterrupt: training stopped in epoch 3, saved" in errors
    steps = []
    network, optimizer, scheduler = make()
    result = train(
        network, optimizer, scheduler, checkpoint_dir=tmp_path,
        step=lambda m, b: steps.append(1) or mse_loss(m(*b.inputs), b.mos),
    )  # fmt: skip
    assert len(steps) < 4 * 6  # nor were the finished batches of the third
    assert_same_outcome(network, result)


def test_states_are_saved_by_time_and_best_weights_only_when_they_change(tmp_path, monkeypatch):
    written = []

    def note(path, state):
        written.append(path.name)
        save_checkpoint(path, state)

    monkeypatch.setattr("iqa_utils.training.checkpoints.save_checkpoint", note)
    result = train(*make(), checkpoint_dir=tmp_path / "minute")
    assert written == [f"best-{result.best_epoch}.pt", "last.pt"]  # six epochs took no minute
    written.clear()
    result = train(*make(), checkpoint_dir=tmp_path / "always", save_seconds=0)
    assert written.count("last.pt") == 6 * 6 + 6  # after every batch and every epoch
    improved = result.history["val_rmse"].cummin().drop_duplicates().index + 1
    assert [name for name in written if name != "last.pt"] == [f"best-{e}.pt" for e in improved]


def test_a_finished_training_keeps_its_best_weights_and_no_optimiser_state(tmp_path):
    result = train(*make(), checkpoint_dir=tmp_path, save_seconds=0)
    (folder,) = tmp_path.iterdir()
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"best-{result.best_epoch}.pt", "last.pt"]
    assert set(torch.load(folder / "last.pt", weights_only=True)) == {
        "epoch",
        "history",
        "best",
        "early",
    }


def test_going_on_with_another_number_of_threads_warns(tmp_path):
    more = torch.get_num_threads() + 1
    stop_job(tmp_path, signal.SIGINT, after=3, threads=more)
    with pytest.warns(UserWarning, match=f"began with {more} threads and goes on with {more - 1}"):
        train(*make(), checkpoint_dir=tmp_path)


def test_an_interrupt_inside_the_process_leaves_the_handler_as_it_was(tmp_path):
    handler = signal.getsignal(signal.SIGINT)

    def step(model, batch):
        signal.raise_signal(signal.SIGINT)
        return mse_loss(model(*batch.inputs), batch.mos)

    with pytest.raises(KeyboardInterrupt, match="epoch 1, saved"):
        train(*make(), step=step, checkpoint_dir=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    network, optimizer, scheduler = make()
    assert_same_outcome(network, train(network, optimizer, scheduler, checkpoint_dir=tmp_path))


def test_a_rate_that_falls_inside_an_epoch_is_written_down_alike_after_a_kill(tmp_path):
    steps = []

    def step(model, batch):
        steps.append(1)
        if len(steps) == 5:
            raise InterruptedError
        return mse_loss(model(*batch.inputs), batch.mos)

    options = {"epochs": 2, "schedule_each": "batch", "save_seconds": 0, "step": step}
    with pytest.raises(InterruptedError):
        train(*make(), checkpoint_dir=tmp_path, **options)
    result = train(*make(), checkpoint_dir=tmp_path, **options)
    expected = train(*make(), **options)
    assert without_time(result.history).equals(without_time(expected.history))


def test_a_shorter_training_is_read_off_a_longer_one(tmp_path):
    short = make()
    expected = train(*short, epochs=2)
    network, optimizer, scheduler = make()
    options = {"epochs": 5, "read_off": 2, "checkpoint_dir": tmp_path, "save_seconds": 0}

    def stop(model):  # in the fourth epoch, when the first two are over
        if optimizer.state and scheduler.last_epoch == 3:
            raise InterruptedError
        return evaluate(model)

    with pytest.raises(InterruptedError):
        train(network, optimizer, scheduler, evaluate=stop, **options)
    network, optimizer, scheduler = make()
    result = train(network, optimizer, scheduler, **options)
    assert result.best_epoch > result.early[0] == expected.best_epoch
    assert without_time(result.history[:2]).equals(without_time(expected.history))
    again = train(*make(), step=None, **options)  # of a finished training both are kept
    for early in (result.early[1], again.early[1]):
        assert all(torch.equal(early[k], v) for k, v in short[0].state_dict().items())
    (folder,) = tmp_path.iterdir()
    kept = {f"best-{epoch}.pt" for epoch in (result.best_epoch, result.early[0])}
    assert {path.name for path in folder.glob("best-*")} == kept


def test_a_finished_training_is_read_not_repeated(tmp_path, capsys):
    first = train(*make(), checkpoint_dir=tmp_path)
    network, optimizer, scheduler = make()
    again = train(network, optimizer, scheduler, checkpoint_dir=tmp_path, step=None)
    assert again.history.equals(first.history)  # times included: nothing ran
    assert_same_outcome(network, again)
    assert capsys.readouterr().out == ""


def test_another_configuration_has_its_own_checkpoint(tmp_path):
    train(*make(), checkpoint_dir=tmp_path)
    train(*make(), checkpoint_dir=tmp_path, config={"job": "other"})
    train(*make(), checkpoint_dir=tmp_path, seed=8)
    network, optimizer, _ = make()
    train(network, optimizer, StepLR(optimizer, 3, gamma=0.5), checkpoint_dir=tmp_path)
    assert len(list(tmp_path.glob("*/last.pt"))) == 4
    assert not list(tmp_path.glob("*/.*"))  # no temporary file is left


def test_a_damaged_checkpoint_is_named(tmp_path):
    train(*make(), checkpoint_dir=tmp_path)
    path = next(tmp_path.glob("*/last.pt"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"last\.pt is damaged"):
        train(*make(), checkpoint_dir=tmp_path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    train(*make(), checkpoint_dir=tmp_path)
    path = next(tmp_path.glob("*/last.pt"))
    save_checkpoint(path, {"epoch": Path("x")})  # any class but tensors and plain values
    with pytest.raises(ValueError, match="damaged or not one of ours"):
        train(*make(), checkpoint_dir=tmp_path)


def test_a_digest_tells_splits_and_scores_apart():
    rows = {"training": np.arange(8), "test": np.arange(8, 12)}
    swapped = {"training": np.r_[:7, 8], "test": np.r_[7, 9:12]}
    digest = data_digest(rows, MOS)
    assert data_digest(dict(reversed(rows.items())), MOS.astype(np.float64)) == digest
    assert data_digest(swapped, MOS) != digest
    assert data_digest(rows, MOS[::-1]) != digest  # the same sum
    assert data_digest({"training": np.arange(12), "test": []}, MOS) != digest


def test_keys_depend_on_values_not_on_order():
    assert config_key({"a": 1, "b": [2.0]}) == config_key({"b": [2.0], "a": np.int64(1)})
    assert config_key({"a": 1}) != config_key({"a": 2})
    with pytest.raises(TypeError, match="plain values, got function"):
        config_key({"a": lambda: 0})


# batches


def test_batches_of_an_epoch_depend_on_seed_and_epoch_only():
    order = [torch.cat([b.index for b in batches(e)]).tolist() for e in (0, 0, 1)]
    assert order[0] == order[1] != order[2]
    assert sorted(order[2]) == list(range(32))
    assert epoch_seed(0, 1) != epoch_seed(1, 0)


def test_batches_carry_rows_scores_weights_and_names():
    weight = np.arange(44.0)
    stream = tensor_batches(FEATURES, [3, 1], MOS, batch_size=2, weight=weight, names=NAMES)
    (batch,) = stream
    assert torch.equal(batch.inputs[0], FEATURES[[3, 1]])
    np.testing.assert_allclose(batch.mos, MOS[[3, 1]])
    assert batch.weight.tolist() == [3, 1]
    assert batch.describe() == "image-3.png, image-1.png"


def test_a_lone_last_image_of_a_training_joins_the_batch_before_it():
    def lengths(n, size, seed=0):
        stream = tensor_batches(FEATURES, range(n), MOS, batch_size=size, seed=seed)
        return [len(batch) for batch in stream]

    assert lengths(9, 4) == [4, 5]
    assert lengths(9, 4, seed=None) == [4, 4, 1]  # nothing is normalised by its batch there
    assert lengths(10, 4) == [4, 4, 2]
    assert lengths(1, 4) == [1]
    assert lengths(3, 1) == [1, 1, 1]


def test_wrong_streams_are_refused():
    with pytest.raises(ValueError, match="one score for each of 44 images, got 3"):
        list(tensor_batches(FEATURES, [0], MOS[:3], batch_size=2))
    with pytest.raises(ValueError, match="at least one image"):
        list(tensor_batches(FEATURES, [], MOS, batch_size=2))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        list(tensor_batches(FEATURES, [0], MOS, batch_size=0))


@pytest.fixture
def store(tmp_path):
    from PIL import Image

    generator = np.random.default_rng(0)
    for i in range(5):
        pixels = generator.integers(0, 256, (8, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    names = [f"{i}.png" for i in range(5)]
    return build_store(tmp_path, names, tmp_path / "store", size=(8, 10), progress=False)


def test_store_batches_normalise_and_append_further_inputs(store):
    extra = torch.arange(10.0).view(5, 2)
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    (batch,) = store_batches(store, [4, 0], MOS[:5], batch_size=4, extra_inputs=extra, **half)
    expected = store.image(4).float() / 127.5 - 1
    torch.testing.assert_close(batch.inputs[0][0], expected)
    assert torch.equal(batch.inputs[1], extra[[4, 0]])
    assert batch.describe() == "4.png, 0.png"


def test_copies_of_an_image_are_changed_otherwise_than_its_first_showing(store):
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    stream = store_batches(
        store, [0, 1, 0, 0], MOS[:5], batch_size=2, augment=lambda x, generator: x,
        augment_copies=lambda x, generator: torch.zeros_like(x), **plain,
    )  # fmt: skip
    images = torch.cat([batch.inputs[0] for batch in stream])
    assert images.flatten(1).any(dim=1).tolist() == [True, True, False, False]


def test_random_crops_of_training_and_central_ones_of_evaluation(store):
    options = {"batch_size": 2, "crop": (4, 4), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    (central,) = store_batches(store, [0, 1], MOS[:5], **options)
    torch.testing.assert_close(central.inputs[0][0], store.image(0)[:, 2:6, 3:7].float() / 255)
    first, again = (
        torch.cat([b.inputs[0] for b in store_batches(store, range(5), MOS[:5], seed=1, **options)])
        for _ in range(2)
    )
    assert torch.equal(first, again)
    assert first.shape == (5, 3, 4, 4)


def test_predictions_come_in_order_and_leave_the_mode_alone():
    network, *_ = make()
    network.train()
    pred = predict(network, tensor_batches(FEATURES, range(44), MOS, batch_size=7))
    assert network.training
    with torch.no_grad():
        expected = network.eval()(FEATURES)
    np.testing.assert_allclose(pred, expected, rtol=1e-6)


# models on disk


def test_a_model_file_gives_back_the_network_and_what_it_is(tmp_path):
    network = DualXception("test_efficientnet", mos_mean=50, mos_std=9, plane_size=32)
    metadata = METADATA | {"scores_seen": ["biq2021 training"]}
    path = save_model(tmp_path / "sub" / "m.safetensors", network, metadata)
    again, header = load_model(path)
    assert header["scores_seen"] == ["biq2021 training"]
    assert header["architecture"] == network.architecture
    images, numbers = torch.randn(2, 3, 40, 40), torch.randn(2, 4)
    assert torch.equal(again(images, numbers), network.eval()(images, numbers))
    assert [p.name for p in path.parent.iterdir()] == ["m.safetensors"]


def test_model_files_that_do_not_fit_are_refused(tmp_path):
    network = DualXception("test_efficientnet", inputs="images")
    with pytest.raises(ValueError, match=r"missing \['scores_seen', 'metrics'\]"):
        save_model(tmp_path / "m.safetensors", network, {"preprocessing": 0, "training_data": 0})
    with pytest.raises(ValueError, match=r"must tell the data set .*'koniq10k'"):
        save_model(tmp_path / "m.safetensors", network, {**METADATA, "training_data": "koniq10k"})
    network.architecture["pooling"] = "mean_std"
    path = save_model(tmp_path / "m.safetensors", network, METADATA)
    with pytest.raises(ValueError, match="weights do not fit"):
        load_model(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_model(path)
    with pytest.raises(FileNotFoundError, match="No such file"):
        load_model(tmp_path / "absent.safetensors")


def test_descriptions_that_name_no_network_are_refused():
    with pytest.raises(ValueError, match="must be one of"):
        build_model({"name": "resnet"})
    with pytest.raises(ValueError, match="unexpected keyword"):
        build_model({"name": "dual_xception", "depth": 3})
    with pytest.raises(ValueError, match="weights come from the model file"):
        build_model({"name": "dual_xception", "pretrained": "hub"})


def test_mean_loss_compares_predictions_with_scores():
    network, *_ = make()
    batch = next(iter(batches(0)))
    loss = mean_loss(mse_loss)(network.eval(), batch)
    torch.testing.assert_close(loss, mse_loss(network(batch.inputs[0]), batch.mos))


def test_training_goes_on_after_predictions_on_the_same_store(store):
    network = nn.Sequential(nn.Flatten(), nn.Linear(240, 1), nn.Flatten(0))

    def stream(epoch=0):
        return store_batches(store, range(4), MOS[:5], batch_size=2)

    first = predict(network, stream())
    result = fit(
        network, stream, loss_step=mean_loss(mse_loss), epochs=2, config={}, progress=False,
        optimizer=torch.optim.SGD(network.parameters(), 1e-6), select="val_mean",
        evaluate=lambda model: {"val_mean": predict(model, stream()).mean()},
    )  # fmt: skip
    assert len(first) == 4
    assert len(result.history) == 2


@pytest.mark.gpu
@pytest.mark.filterwarnings("default::DeprecationWarning")  # of PyTorch's own compiler
def test_a_gpu_ends_near_the_cpu():
    options = {"precision": "bf16", "compile": True}
    results = []
    for device, more in (("cpu", {}), ("cuda", options)):
        network, _, _ = make(dropout=0.0)
        network.to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        results.append(train(network, optimizer, None, **more).best["val_rmse"])
    assert abs(results[1] - results[0]) < 0.02 * results[0]

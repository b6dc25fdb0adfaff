"""What only a GPU can show; run by ``pytest -m gpu tests/test_gpu.py``."""

import traceback
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss, smooth_l1_loss

import iqa_utils
from iqa_utils.distill.unlabelled import file_batches
from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD, augment, build_store, to_float
from iqa_utils.losses import mean_over_sources, norm_in_norm, range_weighted_mse, weighted_l1
from iqa_utils.mixed_sets import set_fidelity
from iqa_utils.models.clip_head import ClipHead
from iqa_utils.models.monotonic import MonotonicIQA
from iqa_utils.training import fit, mean_loss, mixtures, predict, store_batches, tensor_batches
from iqa_utils.training.batches import stem_batches
from iqa_utils.workshop.demo.distortions import as_image

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
PACKAGE = str(Path(iqa_utils.__file__).parent)
SIZE = (24, 32)
MOS = np.linspace(0, 1, 32)
CHANGES = {"rotate": 5.0, "contrast": 0.1, "noise": 2.0}  # of copies, as in notebook 02
LENGTHS = (20, 20, 40)  # batches of an epoch; the first training brings constants to the device


@pytest.fixture
def store(tmp_path):
    names = [f"{i}.png" for i in range(len(MOS))]
    rng = np.random.default_rng(0)
    for name in names:
        as_image(rng.uniform(0, 1, (*SIZE, 3))).save(tmp_path / name)
    return build_store(tmp_path, names, tmp_path / "stores", size=SIZE, progress=False)


@contextmanager
def noted_waits():
    """Give a list that gets the line of our code at each wait of the host for the GPU."""
    lines = []

    def note(message, *_):
        if "called a synchronizing" in str(message):
            stack = traceback.extract_stack()
            own = [frame for frame in stack if frame.filename.startswith(PACKAGE)] or stack
            lines.append(f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lines
        finally:
            torch.cuda.set_sync_debug_mode("default")


def train(model, stream, loss_step, **how):
    how = {"evaluate": lambda _: {"loss": 0.0}, "select": "loss", "progress": False} | how
    adam = torch.optim.Adam(model.parameters())
    return fit(model, stream, loss_step=loss_step, optimizer=adam, epochs=2, config={}, **how)


def waits_of_a_training(*training, **how):
    with noted_waits() as lines:
        train(*training, **how)
    return lines


def check_steps(fewer, more):
    """Refuse a line that waits more often in the longer training."""
    new = Counter(more) - Counter(fewer)
    assert not new, "\n".join(f"{times} more waits at {line}" for line, times in new.items())


def convolutions(channels=3):
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 1), nn.Flatten(0)).to(DEVICE)


def rows_of(n_batches):
    return np.arange(4 * n_batches) % len(MOS)


# trainings on n batches of four images: network, stream and loss


def stored_images(store, n, *, loss=mse_loss, **more):
    def stream(epoch):
        how = {"batch_size": 4, "seed": 0, "epoch": epoch, "device": DEVICE, "augment": augment}
        return store_batches(store, rows_of(n), MOS, **how, **more)

    return convolutions(), stream, mean_loss(loss)


def changed_copies(store, n):
    return stored_images(store, n, augment_copies=partial(augment, **CHANGES))


def range_weights(store, n):
    counts, edges = torch.tensor([8, 8, 16]), torch.tensor([0, 0.25, 0.5, 1])
    return stored_images(store, n, loss=partial(range_weighted_mse, counts=counts, edges=edges))


def mixed_sets(store, n, *, uncertain=False):
    torch.manual_seed(0)
    model = MonotonicIQA(["a", "b"], backbone="test_resnet", channels=8, uncertain=uncertain)
    model = model.to(DEVICE)
    frames = {name: pd.DataFrame({"image": store.names}) for name in "ab"}
    crops = mixtures.CroppedImages(store, store, crop=24, trunk=model.trunk)
    split = {"a": {"training": rows_of(n)}, "b": {"training": np.arange(len(MOS))}}
    how = {"mixing": "released", "batch_size": 4, "seed": 0}
    data = frames, {"a": crops, "b": crops}, split, {"a": 10 * MOS, "b": 10 * MOS}
    return model, mixtures.mixed_stream(*data, **how), partial(mixtures.loss_step, of_one_set)


def of_one_set(pred, mos):
    return smooth_l1_loss(pred, mos) + norm_in_norm(pred, mos)


def ranking(store, n):
    noise = torch.full((2 * len(MOS),), 0.3)
    noise[::5] = torch.nan

    def loss_step(model, batch):
        pred, pred_std = model.head.moments(model.trunk(*batch.inputs))
        more = noise[batch.index], pred_std
        return mean_over_sources(set_fidelity, pred, batch.mos, batch.source, *more)

    return *mixed_sets(store, n, uncertain=True)[:2], loss_step


def smoothed_features(store, n):
    torch.manual_seed(0)
    vectors, scores = torch.rand(len(MOS), 16).to(DEVICE), torch.tensor(MOS).float().to(DEVICE)
    smoothing = {"edges": np.linspace(0, 1, 11)}
    head = ClipHead(16, width=8, depth=1, neck=8, fds=smoothing).to(DEVICE)

    def stream(epoch):
        head.end_epochs(epoch, vectors, scores)
        how = {"batch_size": 4, "seed": 0, "epoch": epoch, "device": DEVICE}
        return tensor_batches(vectors, rows_of(n), MOS, weight=np.ones(len(MOS)), **how)

    def loss_step(head, batch):
        return weighted_l1(head(*batch.inputs, batch.mos), batch.mos, batch.weight)

    return head, stream, loss_step


def frozen_stem(store, n):
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 4, 3).requires_grad_(False).to(DEVICE)
    activations = torch.rand(2 * len(MOS), 4, SIZE[0] - 2, SIZE[1] - 2).half()

    def change(index, generator):
        pixels = augment(store.batch(index, device=DEVICE), generator=generator, **CHANGES)
        return stem(to_float(pixels, mean=IMAGENET_MEAN, std=IMAGENET_STD))

    def stream(epoch):
        how = {"batch_size": 4, "seed": 0, "epoch": epoch, "device": DEVICE}
        return stem_batches(activations, rows_of(n), MOS, change_copies=change, **how)

    return convolutions(channels=4), stream, mean_loss(mse_loss)


def crops_of_files(store, n, *, device=None, **more):
    paths = [store.folder.parent.parent / name for name in store.names]
    how = {"batch_size": 4, "device": device or DEVICE, **more}
    stream = partial(file_batches, paths, SIZE, rows_of(n), MOS, **how)
    return convolutions(), lambda epoch: stream(epoch=epoch), mean_loss(mse_loss)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("resident", [True, False])
def test_twice_the_steps_wait_no_more_often_for_a_gpu(store, resident, precision, monkeypatch):
    monkeypatch.setattr("iqa_utils.images._fits", lambda *_: resident)
    _, fewer, more = (
        waits_of_a_training(*stored_images(store, n), precision=precision) for n in LENGTHS
    )
    check_steps(fewer, more)


TRAININGS = [changed_copies, range_weights, mixed_sets, ranking, smoothed_features, frozen_stem]


@pytest.mark.parametrize("training", [*TRAININGS, partial(crops_of_files, augment=augment)])
def test_no_step_of_a_notebook_waits_for_a_gpu(store, training):
    _, fewer, more = (waits_of_a_training(*training(store, n)) for n in LENGTHS)
    check_steps(fewer, more)


def test_predictions_of_twice_the_images_wait_no_more_often_for_a_gpu(store):
    lines = []
    for n in LENGTHS:
        model, stream, _ = stored_images(store, n)
        mixed = mixed_sets(store, n)[0]
        crops = mixtures.CroppedImages(store, store, crop=24, trunk=mixed.trunk)
        with noted_waits() as waited:
            predict(model, stream(0))
            mixtures.predict_quality(mixed, crops, rows_of(n))
        lines.append(waited)
    check_steps(*lines[1:])
    assert lines[1]  # for the result


def test_sets_that_only_the_gpu_knows_are_waited_for_once_a_step(store):
    def waits(n):
        model, stream, loss_step = mixed_sets(store, n)

        def moved(model, batch):
            source = batch.source.to(DEVICE, non_blocking=True)
            return loss_step(model, replace(batch, source=source))

        return waits_of_a_training(model, stream, moved)

    _, fewer, more = map(waits, LENGTHS)
    ((line, times),) = (Counter(more) - Counter(fewer)).items()
    assert "losses.py" in line
    assert times == 2 * (LENGTHS[2] - LENGTHS[1])  # in two epochs


def test_a_score_without_a_range_stops_a_training_on_a_gpu_with_its_images(store):
    counts, edges = torch.tensor([16, 0]), torch.tensor([0, 0.5, 1])
    loss = partial(range_weighted_mse, counts=counts, edges=edges)
    with pytest.raises(FloatingPointError, match=r"nan in epoch 1, batch 1: images \d+\.png"):
        train(*stored_images(store, 8, loss=loss))


def test_crops_reach_a_busy_gpu_before_their_buffer_is_filled_again(store):
    expected = [batch.inputs[0].cpu() for batch in crops_of_files(store, 16, device="cpu")[1](0)]
    found = []
    for batch in crops_of_files(store, 16)[1](0):
        torch.cuda._sleep(100_000_000)  # cycles, some 0.06 s: the next copy comes later
        found.append(batch.inputs[0])
    for crops, one in zip(found, expected, strict=True):
        torch.testing.assert_close(crops.cpu(), one)

"""What only a GPU can show; run by ``pytest -m gpu tests/test_gpu.py``."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from iqa_utils.images import augment, build_store
from iqa_utils.training import fit, mean_loss, store_batches
from iqa_utils.workshop.demo.distortions import as_image

pytestmark = pytest.mark.gpu


@pytest.fixture
def store(tmp_path):
    names = [f"{i}.png" for i in range(32)]
    rng = np.random.default_rng(0)
    for name in names:
        as_image(rng.uniform(0, 1, (24, 32, 3))).save(tmp_path / name)
    return build_store(tmp_path, names, tmp_path / "stores", size=(24, 32), progress=False)


def syncs_of_a_training(store, n_batches, **more):
    """Train for one epoch on a GPU; return where the host waited for it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                            nn.Linear(8, 1), nn.Flatten(0)).cuda()  # fmt: skip
    rows = np.arange(4 * n_batches) % len(store)
    mos = np.linspace(0, 1, len(store))

    def stream(epoch):
        how = {"batch_size": 4, "seed": 0, "epoch": epoch, "device": "cuda", "augment": augment}
        return store_batches(store, rows, mos, **how)

    how = {"loss_step": mean_loss(mse_loss), "evaluate": lambda _: {"loss": 0.0}, "select": "loss"}
    adam = torch.optim.Adam(network.parameters())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            fit(network, stream, optimizer=adam, epochs=1, config={}, progress=False, **how | more)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in caught if "called a synchronizing" in str(one.message)]
    return [f"{one.filename}:{one.lineno}" for one in waits]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("resident", [True, False])
def test_twice_the_steps_wait_no_more_often_for_a_gpu(store, resident, precision, monkeypatch):
    monkeypatch.setattr("iqa_utils.images._fits", lambda *_: resident)
    fewer, more = (syncs_of_a_training(store, n, precision=precision) for n in (20, 40))
    assert len(more) == len(fewer), "\n".join(more)

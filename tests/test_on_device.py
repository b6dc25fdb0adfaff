"""Pixels on their way to a GPU, on the CPU: the same bytes by every way, and no wait too many."""

import numpy as np
import pytest
import torch
from PIL import Image

from iqa_utils import images
from iqa_utils.images import Transfer, build_store


@pytest.fixture
def stores(tmp_path):
    """One store of equal sizes and one of different sizes."""
    generator = np.random.default_rng(0)
    for i in range(6):
        pixels = generator.integers(0, 256, (9 + i, 12 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    names = [f"{i}.png" for i in range(6)]
    options = {"store_dir": tmp_path / "store", "progress": False}
    return [
        build_store(tmp_path, names, size=(9, 8), **options),
        build_store(tmp_path, names, size=None, fit="native", **options),
    ]


def crops_by_hand(store, rows, size, generator):
    room = torch.tensor(store.sizes[rows] - size)
    share = torch.rand(room.shape, dtype=torch.float64, generator=generator)
    corners = (share * (room + 1)).long().tolist()
    height, width = size
    pairs = zip(rows, corners, strict=True)
    return torch.stack(
        [store.image(i)[:, top : top + height, left : left + width] for i, (top, left) in pairs]
    )


@pytest.mark.parametrize("resident", [False, True])
def test_batches_and_crops_are_the_same_bytes_whether_a_store_is_resident_or_not(
    stores, resident, monkeypatch
):
    monkeypatch.setattr(images, "_fits", lambda n_bytes, device: resident)
    one_size, many_sizes = stores
    rows = [4, 0, 4]
    batch = one_size.batch(rows)
    assert torch.equal(batch, torch.stack([one_size.image(i) for i in rows]))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert bool(one_size._resident) is resident
    expected = crops_by_hand(many_sizes, rows, (5, 4), torch.Generator().manual_seed(3))
    found = many_sizes.crops(rows, (5, 4), generator=torch.Generator().manual_seed(3))
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_buffer_is_filled_again_only_after_its_own_copy_has_ended():
    log = []

    class Event:
        def __init__(self):
            self.number = sum(line.startswith("record") for line in log)

        def record(self):
            log.append(f"record {self.number}")

        def synchronize(self):
            log.append(f"wait {self.number}")

    transfer = Transfer(torch.device("cpu"), Event)
    places = []
    for _ in range(4):
        buffer = transfer.buffer((2, 3))
        places.append(buffer.data_ptr())
        transfer.send(buffer)
    assert places[0] == places[2] != places[1] == places[3]
    # the copy just started is never waited for, only the one before it
    assert log == ["record 0", "record 1", "wait 0", "record 2", "wait 1", "record 3"]


def test_a_larger_batch_gets_a_larger_buffer_and_a_cpu_copies_nothing():
    transfer = Transfer(torch.device("cpu"))
    small = transfer.buffer((2, 3))
    assert transfer.send(small).data_ptr() == small.data_ptr()
    assert transfer.buffer((4, 3)).shape == (4, 3)
    assert not images._fits(1, torch.device("cpu"))


def test_normalisation_makes_its_constants_once():
    images._scale_and_shift.cache_clear()
    batch = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    for _ in range(3):
        images.to_float(batch, mean=[0.5] * 3, std=[0.5] * 3)
    assert images._scale_and_shift.cache_info()[:2] == (2, 1)  # hits, misses


def test_flips_of_chosen_images_leave_the_others_alone():
    batch = torch.arange(8 * 3 * 2 * 4).reshape(8, 3, 2, 4).to(torch.uint8)
    draws = torch.rand((3, 8, 1, 1, 1), generator=torch.Generator().manual_seed(5))
    flipped = draws[0].flatten() < 0.5
    found = images.augment(batch, generator=torch.Generator().manual_seed(5))
    assert 0 < flipped.sum() < 8
    assert torch.equal(found[flipped], batch[flipped].flip(3))
    assert torch.equal(found[~flipped], batch[~flipped])

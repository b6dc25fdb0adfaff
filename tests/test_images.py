"""Tests of the image store: Pillow's own pixels, kills, twins, damage; and of batches."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from iqa_utils import decoding
from iqa_utils.decoding import BadImageError
from iqa_utils.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageStore,
    augment,
    build_store,
    to_float,
)

SIZES = [(40, 60), (33, 47), (64, 31), (20, 20), (51, 50), (48, 64)]  # odd ones too
FLOAT = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


@pytest.fixture
def root(tmp_path):
    """Six files of three formats and different sizes."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for number, (height, width) in enumerate(SIZES):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}{('.jpg', '.png', '.bmp')[number % 3]}")
    return folder


@pytest.fixture
def names(root):
    return sorted(path.name for path in root.iterdir())


@pytest.fixture
def build(root, names, tmp_path):
    def make(**options):
        options = {"size": (24, 32), "progress": False} | options
        return build_store(root, options.pop("names", names), tmp_path / "stores", **options)

    return make


def pillow(path, size=None, resampler="BILINEAR"):
    image = Image.open(path).convert("RGB")
    if size:
        image = image.resize(size[::-1], Image.Resampling[resampler])
    return np.asarray(image)


def stored(store, i):
    return store.image(i).permute(1, 2, 0).numpy()


# --- pixels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "resampler", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
)
def test_pixels_are_bit_for_bit_those_of_pillow(build, root, names, resampler):
    store = build(resampler=resampler)
    assert store.names == names
    for i, name in enumerate(names):
        expected = pillow(root / name, (24, 32), resampler.upper())
        np.testing.assert_array_equal(stored(store, i), expected)


def test_real_photographs_are_bit_for_bit_those_of_pillow(real_data, tmp_path):
    root = real_data / "biq2021"
    names = [f"Images/ss01 ({number}).jpg" for number in (1000, 1003, 102, 1020, 1022)]
    store = build_store(root, names, tmp_path, size=(192, 256), progress=False)
    for i, name in enumerate(names):
        np.testing.assert_array_equal(stored(store, i), pillow(root / name, (192, 256)))


@pytest.mark.parametrize("fit", ["short_side", "shrink_short_side"])
def test_the_shorter_side_is_fitted_as_torchvision_does(build, root, names, fit):
    store = build(size=36, fit=fit)
    resize = v2.Resize(36, interpolation=v2.InterpolationMode.BILINEAR)
    for i, name in enumerate(names):
        image = Image.open(root / name).convert("RGB")
        kept = fit == "shrink_short_side" and min(image.size) <= 36
        np.testing.assert_array_equal(stored(store, i), image if kept else resize(image))


def test_native_pixels_and_central_crops_are_untouched(build, root, names):
    native, cropped = build(size=None, fit="native"), build(size=(19, 20), fit="center_crop")
    assert not native.uniform
    np.testing.assert_array_equal(native.sizes, SIZES)
    for i, name in enumerate(names):
        whole = pillow(root / name)
        np.testing.assert_array_equal(stored(native, i), whole)
        top, left = (whole.shape[0] - 19) // 2, (whole.shape[1] - 20) // 2
        np.testing.assert_array_equal(stored(cropped, i), whole[top : top + 19, left : left + 20])


# --- batches ---------------------------------------------------------------------------------


def test_a_batch_is_channels_last_bytes_in_reused_memory(build):
    store = build()
    batch = store.batch([4, 0, 4])
    assert batch.shape == (3, 3, 24, 32)
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for row, i in enumerate([4, 0, 4]):
        torch.testing.assert_close(batch[row], store.image(i))
    again = store.batch(torch.tensor([1, 2]))
    assert again.data_ptr() == batch.data_ptr()
    torch.testing.assert_close(again[1], store.image(2))
    assert store.batch(np.array([], dtype=int)).shape == (0, 3, 24, 32)


def test_writing_to_a_batch_or_an_image_never_reaches_the_file(build):
    store = build()
    before = (store.folder / "pixels.bin").read_bytes()
    store.batch([0]).zero_()
    store.image(0).zero_()
    assert (store.folder / "pixels.bin").read_bytes() == before


@pytest.mark.gpu
def test_a_gpu_receives_the_same_batch(build):
    store = build()
    expected = store.batch([3, 1]).clone()
    found = store.batch([3, 1], device="cuda")
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.cpu(), expected)


def test_masks_and_ragged_batches_are_refused(build):
    with pytest.raises(ValueError, match="expected row numbers, found bool"):
        build().batch(np.array([True, False]))
    native = build(size=None, fit="native")
    with pytest.raises(ValueError, match="found 6 sizes; use crops"):
        native.batch([0, 1])


def test_crops_are_central_or_drawn_by_the_generator(build):
    store = build(size=None, fit="native")
    central = store.crops([0, 5], (20, 21)).clone()
    torch.testing.assert_close(central[0], store.image(0)[:, 10:30, 19:40])
    assert central.is_contiguous(memory_format=torch.channels_last)
    first, second, other = (
        store.crops([0, 5, 0], (20, 21), generator=torch.Generator().manual_seed(seed)).clone()
        for seed in (1, 1, 2)
    )
    torch.testing.assert_close(first, second)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[2])
    whole = store.image(0).unfold(1, 20, 1).unfold(2, 21, 1).permute(1, 2, 0, 3, 4)
    assert (whole == first[0]).flatten(2).all(2).any()  # it is one of the crops of the image


def test_every_position_of_a_crop_is_drawn(build):
    store = build(size=(4, 4))
    store._bytes.copy_(torch.arange(len(store._bytes)) % 251)
    generator = torch.Generator().manual_seed(0)
    drawn = {int(crop[0, 0, 0]) for crop in store.crops([0] * 200, (3, 3), generator=generator)}
    assert drawn == {0, 3, 12, 15}


def test_a_crop_larger_than_an_image_names_it(build):
    with pytest.raises(ValueError, match=r"crops of 32x32: 2\.bmp is only 64x31"):
        build(size=None, fit="native").crops([0, 2], (32, 32))


def test_floats_equal_the_plain_formula(build):
    batch = build().batch(range(6))
    plain = v2.functional.normalize(batch / 255, IMAGENET_MEAN, IMAGENET_STD)
    found = to_float(batch, **FLOAT)
    torch.testing.assert_close(found, plain, atol=1e-6, rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(to_float(batch.contiguous(), **FLOAT), found)
    with pytest.raises(ValueError, match="normalised already"):
        to_float(found, **FLOAT)


# --- augmentation ----------------------------------------------------------------------------


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_flip_mirrors_about_half_of_the_images_and_nothing_else(build):
    batch = build().batch([i % 6 for i in range(200)])
    flipped = augment(batch, generator=seeded())
    same = (flipped == batch).flatten(1).all(1)
    mirrored = (flipped == batch.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 70 < mirrored.sum() < 130
    assert flipped.data_ptr() != batch.data_ptr()
    assert flipped.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(augment(batch, flip=False, generator=seeded()), batch)


def test_the_generator_decides_everything(build):
    batch = build().batch(range(6)).clone()
    options = {"rotate": 10, "contrast": 0.2, "noise": 3}
    first = augment(batch, **options, generator=seeded(1))
    torch.testing.assert_close(augment(batch, **options, generator=seeded(1)), first)
    assert not torch.equal(augment(batch, **options, generator=seeded(2)), first)
    assert first.dtype == torch.uint8
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_noise_has_the_stated_spread():
    grey = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)
    noisy = augment(grey, flip=False, noise=5, generator=seeded()).float()
    assert noisy.mean() == pytest.approx(128, abs=0.1)
    assert noisy.std() == pytest.approx(np.sqrt(25 + 1 / 12), rel=0.02)  # rounding adds 1/12


def test_contrast_keeps_the_mean_and_scales_the_spread(build):
    batch = build().batch(range(6)).clone() // 2 + 64  # room on both sides
    changed = augment(batch, flip=False, contrast=0.3, generator=seeded()).float()
    plain = batch.float()
    torch.testing.assert_close(changed.mean((1, 2, 3)), plain.mean((1, 2, 3)), atol=0.5, rtol=0)
    ratios = changed.std((1, 2, 3)) / plain.std((1, 2, 3))
    assert ((ratios > 0.69) & (ratios < 1.31)).all()
    assert ratios.std() > 0.05


def test_rotation_keeps_the_centre_and_the_aspect_ratio():
    batch = torch.zeros(1, 3, 41, 81, dtype=torch.uint8)
    batch[:, :, 20, :] = 255  # a level line through the centre
    turned = augment(batch, flip=False, rotate=30, generator=seeded(3))
    assert turned[0, 0, 20, 40] > 100
    angle = np.deg2rad((2 * torch.rand((3, 1), generator=seeded(3))[1].item() - 1) * 30)
    columns = np.array([25, 55])
    rows = turned[0, 0, :, columns].float().argmax(0).numpy()
    np.testing.assert_allclose(np.abs(rows - 20), np.abs(np.tan(angle)) * 15, atol=1.0)


@pytest.mark.parametrize("options", [{"rotate": -1}, {"noise": -1}, {"contrast": 1.5}])
def test_strengths_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="expected rotate >= 0"):
        augment(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), **options, generator=seeded())
    with pytest.raises(ValueError, match="augment before to_float"):
        augment(torch.zeros(1, 3, 4, 4), generator=seeded())


# --- the key ---------------------------------------------------------------------------------


def test_a_store_is_decoded_once(build, monkeypatch):
    first = build()
    monkeypatch.setattr(decoding, "read_image", None)  # decoding again would fail
    assert build().key == first.key
    assert repr(first).startswith("ImageStore(6 images, 24x32, key ")


def test_everything_that_decides_the_pixels_is_in_the_key(build, names):
    variants = [
        {},
        {"size": (24, 33)},
        {"resampler": "bicubic"},
        {"size": (20, 20), "fit": "center_crop"},
        {"size": 24, "fit": "short_side"},
        {"names": names[::-1]},
        {"names": names[:5]},
    ]
    keys = [build(**variant).key for variant in variants]
    assert len(set(keys)) == len(keys)
    # a resampler that has no say does not split the store
    crop = {"size": (20, 20), "fit": "center_crop", "resampler": "lanczos"}
    assert build(**crop).key == keys[3]


def test_changed_bytes_make_another_store_and_a_touch_does_not(build, root):
    first = build()
    stamp = (root / "1.png").stat()
    os.utime(root / "1.png", (stamp.st_atime + 60, stamp.st_mtime + 60))
    assert build().key == first.key
    Image.new("RGB", (47, 33)).save(root / "1.png")
    changed = build()
    assert changed.key != first.key
    assert stored(changed, 1).max() == 0


def overwrite(path, content, start=0):
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


DAMAGE = {
    "pixels of equal length": lambda f: overwrite(f / "pixels.bin", b"damage", start=3000),
    "cut short": lambda f: os.truncate(f / "pixels.bin", 100),
    "no pixels": lambda f: (f / "pixels.bin").unlink(),
    "empty index": lambda f: (f / "index.json").write_text(""),
    "torn index": lambda f: os.truncate(f / "index.json", 50),
    "index of other images": lambda f: (f / "index.json").write_text('{"bytes": 13824}'),
    "a checksum": lambda f: overwrite(f / "sums.bin", b"x"),
    "torn note": lambda f: (f / "checked.json").write_text("[["),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_is_mended_when_it_is_opened(build, root, names, capsys, damage):
    store = build()
    DAMAGE[damage](store.folder)
    again = build()
    assert again.key == store.key
    for i, name in enumerate(names):
        np.testing.assert_array_equal(stored(again, i), pillow(root / name, (24, 32)))
    wrong = {"pixels of equal length": 1, "cut short": 6, "no pixels": 6, "a checksum": 1}
    told = f"{store.folder}: {wrong.get(damage)} damaged images are decoded again\n"
    assert capsys.readouterr().out == (told if damage in wrong else "")


def test_a_store_is_checked_once_for_each_change_of_a_file(build, monkeypatch):
    store = build()
    checked, checksum = [], decoding._checksum
    monkeypatch.setattr(decoding, "_checksum", lambda p: checked.append(1) or checksum(p))
    build()
    assert checked == []
    os.utime(store.folder / "pixels.bin")
    build()
    build()
    assert len(checked) == 6


@pytest.mark.parametrize("content", [b"", b'{"0.jpg": [1', b"[]"])
def test_a_torn_list_of_hashes_is_made_again(build, tmp_path, content):
    store = build()
    (memory,) = (tmp_path / "stores").glob("files-*.json")
    memory.write_bytes(content)
    assert build().key == store.key
    assert len(json.loads(memory.read_text())) == 6


# --- damage ----------------------------------------------------------------------------------


def damage(root, name):
    path = root / name
    path.write_bytes(path.read_bytes()[:-80])  # the header stays


def test_bad_images_are_all_named_in_one_error(build, root):
    damage(root, "0.jpg")
    damage(root, "4.png")
    with pytest.raises(BadImageError, match=r"2 of 6 images unreadable: 0\.jpg \(trunc.*4\.png \("):
        build()
    for name in ("0.jpg", "4.png"):
        Image.new("RGB", (30, 20)).save(root / name)
    assert len(build()) == 6


def test_missing_files_are_all_named(build, root, names):
    (root / "1.png").unlink()
    (root / "3.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 6 images missing: 1\.png, 3\.jpg$"):
        build()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fit": "stretch"}, "fit: expected one of squash"),
        ({"resampler": "cubic"}, "resampler: expected one of nearest"),
        ({"size": 24}, "'squash' takes 2 positive integers, found 24"),
        ({"size": (24, 0)}, r"takes 2 positive integers, found \(24, 0\)"),
        ({"size": (24, 32), "fit": "native"}, "'native' takes 0"),
        ({"size": 24.5, "fit": "short_side"}, "takes 1 positive integers, found 24.5"),
        ({"names": ["1.png", "1.png"]}, "found more than once: 1.png"),
        ({"names": []}, "expected image names, found none"),
    ],
)
def test_options_that_mean_nothing_are_refused(build, options, match):
    with pytest.raises(ValueError, match=match):
        build(**options)


def test_a_crop_larger_than_a_file_names_the_file(build):
    with pytest.raises(
        BadImageError, match=r"3\.jpg \(expected at least 24x32 to crop, found 20x20"
    ):
        build(fit="center_crop")


def test_a_full_disk_is_an_error_before_the_work(build, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(OSError, match="the store takes 13,824 bytes, the disk has 1,000 free"):
        build()


# --- kills and twins -------------------------------------------------------------------------

SLOW_BUILD = """
import sys, time
from pathlib import Path
from iqa_utils import decoding
from iqa_utils.decoding import Fit, finished_folder

read = decoding.read_image

def slow(path):
    with open(sys.argv[3], "a") as log:
        log.write(path.name + "\\n")
    time.sleep(float(sys.argv[4]))
    return read(path)

decoding.read_image = slow
names = sorted(path.name for path in Path(sys.argv[1]).iterdir())
fit = Fit((24, 32), "squash", "bilinear")
finished_folder(Path(sys.argv[1]), names, Path(sys.argv[2]), fit, progress=False)
"""


def start_build(root, tmp_path, pause):
    log = tmp_path / "decoded.txt"
    arguments = [str(root), str(tmp_path / "stores"), str(log), str(pause)]
    return subprocess.Popen([sys.executable, "-c", SLOW_BUILD, *arguments])


def test_a_killed_build_is_finished_and_not_trusted(build, root, names, tmp_path, monkeypatch):
    child = start_build(root, tmp_path, 0.4)
    deadline = time.monotonic() + 60
    sums = []
    while len(sums) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
        for path in tmp_path.glob("stores/*.partial/sums.bin"):
            sums = np.flatnonzero(np.fromfile(path, dtype="<u8")).tolist()
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert 2 <= len(sums) < 6
    assert not [path for path in (tmp_path / "stores").iterdir() if len(path.name) == 40]
    # of what the dead process left, one image does not match its sum any more
    partial = next(tmp_path.glob("stores/*.partial"))
    with (partial / "pixels.bin").open("r+b") as file:
        file.seek(sums[0] * 24 * 32 * 3)
        file.write(b"damage")
    decoded, read = [], decoding.read_image
    monkeypatch.setattr(decoding, "read_image", lambda p: decoded.append(p.name) or read(p))
    store = build()
    assert not partial.exists()
    assert names[sums[0]] in decoded
    assert not {names[row] for row in sums[1:]} & set(decoded)
    for i, name in enumerate(names):
        np.testing.assert_array_equal(stored(store, i), pillow(root / name, (24, 32)))


def test_two_builds_at_once_end_with_one_good_store(build, root, names, tmp_path):
    twins = [start_build(root, tmp_path, 0.2) for _ in range(2)]
    assert [child.wait(60) for child in twins] == [0, 0]
    decoded = (tmp_path / "decoded.txt").read_text().split()
    assert sorted(decoded) == names  # the second one waited and found it done
    stores = [path for path in (tmp_path / "stores").iterdir() if path.is_dir()]
    assert len(stores) == 1
    store = ImageStore(stores[0])
    for i, name in enumerate(names):
        np.testing.assert_array_equal(stored(store, i), pillow(root / name, (24, 32)))
    assert json.loads((stores[0] / "index.json").read_text())["names"] == names

"""Input of one epoch: decode every image again, or gather bytes that were decoded once.

Synthetic photographs of 1024x768 become 512x384, as KonIQ-10k does. Measured is what each epoch
after the first costs, in batches of bytes (normalisation then runs on the GPU) and in batches that
are normalised on this processor. The first decode fills a new store each time, its
checksums and the wait for the disk included, against a loop of Pillow that fills an array and waits
for the disk as well.
"""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import compare, report
from PIL import Image
from skimage import data

from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD, build_store, to_float

N_IMAGES, BATCH, SIZE = 48, 16, (384, 512)
N_FIRST = 144  # images that are decoded for the first time: a set waits for the disk once
EPOCHS, FLOAT_EPOCHS = (
    100,
    5,
)  # of the cached implementations in one call: each implementation takes about as long
MEAN = np.array(IMAGENET_MEAN, dtype=np.float32)
STD = np.array(IMAGENET_STD, dtype=np.float32)


def make_photographs(folder: Path, n: int = N_IMAGES) -> list[str]:
    """Write different 1024x768 JPEGs cut from one enlarged photograph."""
    large = Image.fromarray(data.astronaut()).resize((1536, 1152), Image.Resampling.BICUBIC)
    names = [f"{number:03d}.jpg" for number in range(n)]
    for number, name in enumerate(names):
        left, top = number * 3, number * 2
        large.crop((left, top, left + 1024, top + 768)).save(folder / name, quality=92)
    return names


def main() -> None:
    """Time the implementations; the pixels' equality is the gate."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        many = make_photographs(folder, N_FIRST)
        names = many[:N_IMAGES]
        store = build_store(folder, names, folder / "stores", size=SIZE, progress=False)
        order = np.random.default_rng(0).permutation(N_IMAGES)
        batches = [order[start : start + BATCH] for start in range(0, N_IMAGES, BATCH)]

        def decode(name: str) -> np.ndarray:
            image = Image.open(folder / name).convert("RGB")
            return np.asarray(image.resize(SIZE[::-1], Image.Resampling.BILINEAR))

        def decode_bytes() -> None:
            for rows in batches:
                images = np.stack([decode(names[row]) for row in rows])
                torch.from_numpy(images).permute(0, 3, 1, 2)

        def normalised(name: str) -> np.ndarray:
            return (decode(name) / np.float32(255) - MEAN) / STD

        def decode_float() -> None:
            for rows in batches:
                images = np.stack([normalised(names[row]) for row in rows])
                torch.from_numpy(images).permute(0, 3, 1, 2)

        def gather() -> None:
            for rows in batches * EPOCHS:
                store.batch(rows)

        def gather_float() -> None:
            for rows in batches * FLOAT_EPOCHS:
                to_float(store.batch(rows), mean=IMAGENET_MEAN, std=IMAGENET_STD)

        def decode_and_save() -> None:
            pixels = np.empty((N_FIRST, *SIZE, 3), np.uint8)
            for row, name in enumerate(many):
                pixels[row] = decode(name)
            with (folder / "pixels.npy").open("wb") as file:
                np.save(file, pixels)
                file.flush()
                os.fsync(file.fileno())

        def fill_store() -> None:
            shutil.rmtree(folder / "new", ignore_errors=True)
            build_store(folder, many, folder / "new", size=SIZE, progress=False)

        pixels = store.batch(range(N_IMAGES)).permute(0, 2, 3, 1).numpy().astype(int)
        difference = max(np.abs(pixels[i] - decode(name)).max() for i, name in enumerate(names))
        floats = to_float(store.batch(range(N_IMAGES)), mean=IMAGENET_MEAN, std=IMAGENET_STD)
        floats = floats.permute(0, 2, 3, 1).numpy()
        rounding = max(np.abs(floats[i] - normalised(name)).max() for i, name in enumerate(names))
        fill_store()
        decode_and_save()
        first = build_store(folder, many, folder / "new", size=SIZE, progress=False)
        first = first.batch(range(N_FIRST)).permute(0, 2, 3, 1).numpy().astype(int)
        first = np.abs(first - np.load(folder / "pixels.npy")).max()
        units = {"decode again": N_IMAGES, "gather": N_IMAGES * EPOCHS}
        units["gather and normalise here"] = N_IMAGES * FLOAT_EPOCHS
        report(
            [
                compare(
                    "input of a later epoch, bytes, per image",
                    {"decode again": decode_bytes, "gather": gather},
                    gate=(difference, 0),
                    units=units,
                    goal=100,
                ),
                compare(
                    "input of a later epoch, floats, per image",
                    {"decode again": decode_float, "gather and normalise here": gather_float},
                    gate=(rounding, 1e-5),
                    units=units,
                ),
                compare(
                    "first decode and store, per image",
                    {"Pillow, one after the other": decode_and_save, "store": fill_store},
                    gate=(first, 0),
                    units=N_FIRST,
                    goal=1.5,
                    warm_up=False,
                ),
            ]
        )


if __name__ == "__main__":
    main()

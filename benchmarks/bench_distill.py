"""The teacher pass and the student's steps, step by step, against one image at a time.

Writes its own images (seeded JPEG files), so it runs anywhere. On a GPU the teacher has the paper's
size and runs in bf16, which may change a score by a tenth of their SD, and the pass must reach nine
tenths of the rate at which files decode.
"""

import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import compare, report, time_implementations
from PIL import Image

from iqa_utils.decoding import Fit
from iqa_utils.distill import (
    Teacher,
    label_in_batches,
    measure_rates,
    plans,
)
from iqa_utils.distill.unlabelled import UnlabelledSet, central_crop, crop_batches, scan_images
from iqa_utils.models.dual_xception import KonCept
from iqa_utils.models.imqnet import IMQNet

GPU_SHARE = 0.9  # of the decode-only rate
BF16_CHANGE = 0.1  # of a score SD, which the bf16 pass may change a score by


def make_images(folder: Path, n: int, size: tuple[int, int]) -> None:
    """Write seeded noise with the spectrum of photographs as JPEG files of a size (H, W)."""
    generator = np.random.default_rng(0)
    for i in range(n):
        small = generator.integers(0, 256, (size[0] // 16, size[1] // 16, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)
        noise = generator.normal(0, 6, (*size, 3))
        pixels = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04}.jpg", quality=90)


def decode_only(images: UnlabelledSet, batch_size: int) -> None:
    """Decode and crop every image, in threads, and do nothing with it."""
    n = len(images)
    groups = np.split(np.arange(n), range(batch_size, n, batch_size))
    for _ in crop_batches(images, groups, images.crop):
        pass


def label_naively(teacher: Teacher, paths: Iterable[Path], crop: tuple[int, int]) -> np.ndarray:
    """Score (N,) image after image, what the teacher pass is compared with."""
    device = next(teacher.model.parameters()).device
    scores = []
    for path in paths:
        pixels = torch.from_numpy(central_crop(path, crop).copy()).permute(2, 0, 1)[None]
        scores.append(teacher.score(pixels, device=device).item())
    return np.array(scores)


@dataclass(frozen=True)
class Job:
    """What is timed: the paper's sizes on a GPU, small ones on a CPU."""

    n: int = 48
    batch: int = 16
    image: tuple[int, int] = (600, 800)
    crop: tuple[int, int] = (512, 512)
    backbone: str = "mobilenetv2_100"
    size: tuple[int, int] = (256, 256)
    width: float = 0.25


PAPER = Job(1024, 64, (900, 1200), (768, 1024), "inception_resnet_v2", (384, 512), 1.0)


def main() -> None:
    """Time labelling step by step and print what large sets would take."""
    job = PAPER if torch.cuda.is_available() else Job()
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder), job.n, job.image)
        record = bench(scan_images(Path(folder), crop=job.crop), job)
    report([record])


def bench(images: UnlabelledSet, job: Job) -> dict[str, object]:
    """Return the record of one set of images."""
    gpu = torch.cuda.is_available()
    device, precision = ("cuda", "bf16") if gpu else ("cpu", "fp32")
    torch.manual_seed(0)
    network = KonCept(job.backbone, widths=(256, 128, 64)).eval()
    teacher = Teacher(network, Fit(job.size, "squash", "bilinear"))
    teacher.model.to(device, memory_format=torch.channels_last).eval()
    student = IMQNet(width=job.width).to(device, memory_format=torch.channels_last)
    paths = list(images)
    naive = label_naively(teacher, paths, images.crop)
    batched = label_in_batches(teacher, paths, images.crop, batch_size=job.batch)
    difference = float(np.abs(naive - batched).max() / max(naive.std(), 1e-12))
    record = compare(
        "scores of a teacher, per image (difference in SDs)",
        {
            "one image at a time": lambda: label_naively(teacher, paths, images.crop),
            "batches that decode ahead": lambda: label_in_batches(
                teacher, paths, images.crop, batch_size=job.batch, precision=precision
            ),
        },
        gate=(difference, 1e-3),  # of fp32
        units=len(images),
        warm_up=gpu,  # the gate has called both
    )
    decoding = time_implementations({"decode": lambda: decode_only(images, job.batch)})["decode"]
    seconds = record["seconds_per_unit"]["batches that decode ahead"]["median"]
    share = statistics.median(decoding) / len(images) / seconds
    record["share of the decode-only rate"] = share
    if device == "cuda":
        fast = label_in_batches(teacher, paths, images.crop, batch_size=job.batch, precision="bf16")
        record["bf16 change, sd"] = float(np.abs(fast - batched).max() / batched.std())
        exact = record["bf16 change, sd"] <= BF16_CHANGE
        record["passed"] = record["passed"] and exact and share >= GPU_SHARE
    rates = measure_rates(
        teacher, student, images, n=len(images), batch_size=job.batch, precision=precision
    )
    record["images per second"] = rates.drop("bytes").to_dict()
    record["large sets"] = plans(rates).round(1).to_dict("records")
    return record


if __name__ == "__main__":
    main()

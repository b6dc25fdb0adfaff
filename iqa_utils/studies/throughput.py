"""How fast a large set can be labelled and learned from, leg by leg, and what follows from it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from iqa_utils.distill import Teacher
from iqa_utils.distill.unlabelled import UnlabelledSet, central_crop, crop_batches
from iqa_utils.images import to_float


def label_naively(teacher: Teacher, paths: Iterable[Path], crop: tuple[int, int]) -> np.ndarray:
    """Score image after image, normalised to floats on the CPU: the leg to compare with.

    Args:
        teacher: Its network stays where it is.
        paths: Image files, N of them.
        crop: Height and width, pixels.

    Returns:
        Scores, shape (N,).
    """
    device = next(teacher.model.parameters()).device
    scores = []
    for path in paths:
        pixels = torch.from_numpy(central_crop(path, crop).copy()).permute(2, 0, 1)[None]
        scores.append(teacher.score(pixels, device=device).item())
    return np.array(scores)


def label_in_batches(
    teacher: Teacher, paths: list[Path], crop: tuple[int, int], *, batch_size: int, **options: str
) -> np.ndarray:
    """Score as the teacher pass does, without storing.

    Args:
        teacher: Its network stays where it is.
        paths: Image files, N of them.
        crop: Height and width, pixels.
        batch_size: Images a forward pass.
        **options: ``precision`` of :meth:`iqa_utils.distill.Teacher.score`.

    Returns:
        Scores, shape (N,).
    """
    device = next(teacher.model.parameters()).device
    groups = np.split(np.arange(len(paths)), range(batch_size, len(paths), batch_size))
    batches = crop_batches(paths, groups, crop)
    scores = [teacher.score(crops, device=device, **options) for _, crops, _ in batches]
    return torch.cat(scores).double().cpu().numpy()


def measure_rates(
    teacher: Teacher,
    student: nn.Module,
    images: UnlabelledSet,
    *,
    n: int = 64,
    batch_size: int = 16,
    precision: str = "fp32",
) -> pd.Series:
    """Time each leg of the pipeline alone and together on the first images of a set.

    Args:
        teacher: On the device to time.
        student: On the same device; its weights are left as they are.
        images: At least ``n`` images.
        n: Images of one timing.
        batch_size: Images a forward pass or step.
        precision: Of the teacher on a GPU.

    Returns:
        Images per second: ``read`` (bytes of the files), ``decode`` (and crop; all cores),
        ``network`` (teacher on crops in memory), ``pass`` (all three together), ``student step``
        (forward and backward); and ``bytes``, the mean size of a file.
    """
    n = min(n, len(images))
    batch_size = min(batch_size, n)
    paths, device = images.images["path"].tolist()[:n], next(student.parameters()).device
    teacher.model.to(device).eval()
    groups = np.split(np.arange(n), range(batch_size, n, batch_size))
    _, crops, _ = next(crop_batches(paths, groups[:1], images.crop))
    crops = crops.clone().to(device)
    target = torch.zeros(len(crops), device=device)
    repeats = max(n // len(crops), 1)

    def step() -> None:
        pixels = to_float(crops, mean=teacher.mean, std=teacher.std)
        F.mse_loss(student(pixels), target).backward()
        student.zero_grad(set_to_none=True)

    def forward() -> None:
        teacher.score(crops, device=device, precision=precision)

    student.train()
    step(), forward()  # warm up
    legs: dict[str, tuple[Callable[[], object], int]] = {
        "read": (lambda: [path.read_bytes() for path in paths], n),
        "decode": (lambda: [None for _ in crop_batches(paths, groups, images.crop)], n),
        "network": (lambda: [forward() for _ in range(repeats)], repeats * len(crops)),
        "pass": (
            lambda: label_in_batches(
                teacher, paths, images.crop, batch_size=batch_size, precision=precision
            ),
            n,
        ),
        "student step": (lambda: [step() for _ in range(repeats)], repeats * len(crops)),
    }
    rates = {name: count / _seconds(leg) for name, (leg, count) in legs.items()}
    rates["bytes"] = float(images.images["bytes"].iloc[:n].mean())
    return pd.Series(rates, name="images/s")


def plans(rates: pd.Series) -> pd.DataFrame:
    """Work out what large sets take on some hardware, from rates measured here.

    Decoding is taken to scale with cores, networks with devices; the legs of the teacher pass run
    beside each other, so the slower one decides. The student shows 2.8 times as many images as
    there are, as in the paper, and decodes them again.

    Args:
        rates: From :func:`measure_rates`, on all cores and one device of this machine.

    Returns:
        One row a case: ``images``, ``cores``, ``devices``, minutes of ``decode``, ``teacher`` and
        ``student``, the ``bottleneck`` of labelling, ``minutes`` in all, and ``reading`` in MB/s
        while labelling. In the last row cores and devices are what a day needs.
    """
    here = len(os.sched_getaffinity(0))
    per_core, day = rates["decode"] / here, 9_000_000 / 86_400
    cases = [(360_000, here, 1), (360_000, 16, 1), (360_000, 64, 4), (9_000_000, 64, 4)]
    cases.append((9_000_000, day / per_core, day / rates["network"]))
    rows = []
    for n, cores, devices in cases:
        decode = n / (per_core * cores) / 60
        teacher = n / (rates["network"] * devices) / 60
        student = 2.8 * max(n / (rates["student step"] * devices) / 60, decode)
        labelling = max(decode, teacher)
        rows.append(
            {
                "images": n,
                "cores": cores,
                "devices": devices,
                "decode": decode,
                "teacher": teacher,
                "student": student,
                "bottleneck": "decode" if decode >= teacher else "teacher",
                "minutes": labelling + student,
                "reading": n * rates["bytes"] / 1e6 / (labelling * 60),
            }
        )
    return pd.DataFrame(rows)


def _seconds(leg: Callable[[], object], repeats: int = 3) -> float:
    """Return the median time of a leg, the device's work included."""
    times = []
    for _ in range(repeats):
        _wait()
        start = time.perf_counter()
        leg()
        _wait()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

"""How fast a large set can be labelled and learned from, step by step, and what follows from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from iqa_utils.distill import Teacher
from iqa_utils.distill.unlabelled import UnlabelledSet, central_crop, crop_batches
from iqa_utils.images import to_float


def label_naively(teacher: Teacher, paths: Iterable[Path], crop: tuple[int, int]) -> np.ndarray:
    """Score (N,) image after image, what the teacher pass is compared with."""
    device = next(teacher.model.parameters()).device
    scores = []
    for path in paths:
        pixels = torch.from_numpy(central_crop(path, crop).copy()).permute(2, 0, 1)[None]
        scores.append(teacher.score(pixels, device=device).item())
    return np.array(scores)


def label_in_batches(
    teacher: Teacher,
    paths: list[Path],
    crop: tuple[int, int],
    *,
    batch_size: int,
    precision: str = "fp32",
) -> np.ndarray:
    """Score (N,) as the teacher pass does, without storing."""
    device = next(teacher.model.parameters()).device
    groups = np.split(np.arange(len(paths)), range(batch_size, len(paths), batch_size))
    batches = crop_batches(paths, groups, crop)
    scores = [teacher.score(crops, device=device, precision=precision) for _, crops, _ in batches]
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
    """Time each step of the pipeline alone and together on the first ``n`` images of a set.

    Returns:
        Images per second: ``read`` (bytes of the files), ``decode`` (and crop; all cores),
        ``network`` (teacher on crops in memory), ``pass`` (all three together), ``student step``
        (forward and backward; its weights stay as they are); and ``bytes``, the mean size of a
        file.
    """
    n = min(n, len(images))
    batch_size = min(batch_size, n)
    paths, device = [images[i] for i in range(n)], next(student.parameters()).device
    teacher.model.to(device).eval()
    groups = np.split(np.arange(n), range(batch_size, n, batch_size))
    _, crops, _ = next(crop_batches(paths, groups[:1], images.crop))
    crops = crops.clone().to(device)
    target = torch.zeros(len(crops), device=device)

    def step() -> None:
        pixels = to_float(crops, mean=teacher.mean, std=teacher.std)
        F.mse_loss(student(pixels), target).backward()
        student.zero_grad(set_to_none=True)

    def whole_pass() -> None:
        label_in_batches(teacher, paths, images.crop, batch_size=batch_size, precision=precision)

    student.train()
    steps: dict[str, tuple[Callable[[], object], int]] = {
        "read": (lambda: [path.read_bytes() for path in paths], n),
        "decode": (lambda: [None for _ in crop_batches(paths, groups, images.crop)], n),
        "network": (lambda: teacher.score(crops, device=device, precision=precision), len(crops)),
        "pass": (whole_pass, n),
        "student step": (step, len(crops)),
    }
    rates = {}
    for name, (function, count) in steps.items():
        timer = Timer("f()", globals={"f": function}, num_threads=torch.get_num_threads())
        rates[name] = count / timer.timeit(5).mean  # after a warm-up; waits for the device
    rates["bytes"] = float(images.images["bytes"].iloc[:n].mean())
    return pd.Series(rates, name="images/s")


def plans(rates: pd.Series) -> pd.DataFrame:
    """Work out what large sets take on some hardware, from rates measured here.

    Decoding is taken to scale with cores, networks with devices; decoding and teacher run beside
    each other, so the slower one decides. The student shows 2.8 times as many images as there are,
    as in the paper, and decodes them again. Steps are in minutes, ``reading`` is in MB/s while
    labelling; in the last row cores and devices are what a day needs.
    """
    here = len(os.sched_getaffinity(0))
    per_core, day = rates["decode"] / here, 9_000_000 / 86_400
    cases = [(360_000, here, 1), (360_000, 16, 1), (360_000, 64, 4), (9_000_000, 64, 4)]
    cases.append((9_000_000, day / per_core, day / rates["network"]))
    table = pd.DataFrame(cases, columns=["images", "cores", "devices"])
    n = table["images"]
    table["decode"] = n / (per_core * table["cores"]) / 60
    table["teacher"] = n / (rates["network"] * table["devices"]) / 60
    learning = n / (rates["student step"] * table["devices"]) / 60
    table["student"] = 2.8 * np.maximum(learning, table["decode"])
    labelling = table[["decode", "teacher"]]
    table["bottleneck"] = labelling.idxmax(axis=1)
    table["minutes"] = labelling.max(axis=1) + table["student"]
    table["reading"] = n * rates["bytes"] / 1e6 / (labelling.max(axis=1) * 60)
    return table

"""The networks of the paper profiles at their true size, for a few steps, to know their speed.

Weights are random and pixels synthetic, so nothing here says anything about accuracy. What is
measured is the real step: an image store on disk, batches gathered and normalised on the device,
and :func:`iqa_utils.training.fit` with the profile's batch size and precision.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.benchmark import Timer

from iqa_utils.distill.unlabelled import file_batches
from iqa_utils.files import write_json
from iqa_utils.images import augment, build_store
from iqa_utils.training import DTYPES, Batch, fit
from iqa_utils.training.batches import store_batches, tensor_batches
from iqa_utils.workshop.demo.distortions import as_image
from iqa_utils.workshop.jobs import JOBS, Job
from iqa_utils.workshop.plan import footprint, kind, make_plan, score_table, sets_of, values_of
from iqa_utils.workshop.runs import ROOT

PROFILE = "paper"
Source = Callable[[int], Iterator[Batch]]


def true_size(
    steps: int = 20,
    stems: Sequence[str] = ("02", "03", "04", "05", "06"),
    *,
    scale: float = 1.0,
    publish: bool = False,
) -> dict[str, Any]:
    """Train every kind of network of the ``paper`` profiles, after as many steps that warm up.

    A ``scale`` below 1 shrinks batches and sides, to try the mechanism. ``publish`` adds the
    rows to ``figures/true_size/CARD.json``, where plans find them.

    Returns:
        ``runs/true_size/true_size.json``: ``peak`` TFLOP/s of matrix products by precision, and by
        network ``waiting`` for input, as a share of a step, and ``of_peak``, the share reached.
    """
    on_gpu = torch.cuda.is_available()
    if unknown := sorted(set(stems) - set(JOBS)):
        raise ValueError(f"{', '.join(unknown)} trains no network; there are {', '.join(JOBS)}")
    if publish and not (on_gpu and scale == 1.0):
        raise ValueError("only what a GPU did at true size is published")
    device = torch.device("cuda" if on_gpu else "cpu")
    card = torch.cuda.get_device_name() if on_gpu else "CPU"
    jobs: dict[str, Job] = {}
    for stem in stems:
        values = values_of(stem, PROFILE)
        tables = {name: score_table(name, None) for name in sets_of(values)}
        for job in JOBS[stem[:2]](values, tables):
            if isinstance(job, Job):
                jobs.setdefault(kind(job), job)
    peak = {name: matrix_peak(name, device) for name in {job.precision for job in jobs.values()}}
    path, rows = ROOT / "runs" / "true_size" / "true_size.json", []
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for label, job in jobs.items():
            row = measure(_shrunk(job, scale), steps, device, Path(folder))
            row["of_peak"] = row.pop("flops_per_s") / peak[job.precision]
            rows.append({"kind": label, **row})
            told = f"{row['images_per_s']:10.1f} images/s, {row['waiting']:4.0%} waiting"
            print(f"{told}, {row['of_peak']:5.1%} of peak  {label}", flush=True)
    found = {"card": card, "steps": steps, "scale": scale, "rows": rows}
    found["peak"] = {name: value / 1e12 for name, value in sorted(peak.items())}
    rates = (card, {row["kind"]: row["images_per_s"] for row in rows})
    plans = [make_plan(stem, PROFILE, official=True, rates=rates) for stem in stems]
    found["hours"] = {plan["stem"]: plan["hours"] for plan in plans if scale == 1.0}
    write_json(path, found)
    if publish:
        add_to_published(found)
    return found


def add_to_published(found: dict[str, Any]) -> Path:
    """Add what was measured to the file of its card; a network measured again is replaced."""
    target = ROOT / "figures" / "true_size" / f"{found['card'].replace(' ', '-')}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(target.read_text()) if target.is_file() else {"rows": []}
    rows = {row["kind"]: row for row in [*before["rows"], *found["rows"]]}
    both = {name: before.get(name, {}) | found[name] for name in ("peak", "hours")}
    write_json(target, found | both | {"rows": list(rows.values())})
    return target


def measure(job: Job, steps: int, device: torch.device, folder: Path) -> dict[str, float]:
    """Time ``steps`` steps of a job after as many that warm up; see :func:`true_size`."""
    torch.manual_seed(0)
    network = job.build().to(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    source, waits = _source(job, network, steps, device, folder), []

    def batches(epoch: int) -> Iterator[Batch]:
        stream, start = source(epoch), time.perf_counter()
        waits.append(0.0)
        for batch in stream:
            waits[-1] += time.perf_counter() - start
            yield batch
            start = time.perf_counter()
        waits[-1] += time.perf_counter() - start

    took = (_train if job.steps else _pass)(network, job, batches, device)
    images = steps * job.batch
    flops = footprint(job).flops * (3 if job.steps else 1)  # backward: twice the forward pass
    return {
        "images_per_s": images / took,
        "waiting": waits[-1] / took,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        "flops_per_s": flops * images / took,
    }


def _train(network: nn.Module, job: Job, batches: Source, device: torch.device) -> float:
    trained = [p for p in network.parameters() if p.requires_grad]

    def loss_step(model: nn.Module, batch: Batch) -> torch.Tensor:
        return mse_loss(model(*batch.inputs).float().reshape(-1), batch.mos)

    how = {"precision": job.precision, "compile": job.compile and device.type == "cuda"}
    how |= {"channels_last": len(job.size) == 3, "config": {}, "progress": False}
    how |= {"evaluate": lambda _: {"looked": 0.0}, "select": "looked", "epochs": 2}
    adam = torch.optim.Adam(trained, lr=1e-5)
    result = fit(network, batches, loss_step=loss_step, optimizer=adam, **how)
    return float(result.history["seconds"].iloc[-1])


@torch.no_grad()  # not inference mode: a store reuses the memory of its batches
def _pass(network: nn.Module, job: Job, batches: Source, device: torch.device) -> float:
    half = job.precision != "fp32"
    network.eval()
    for epoch in range(2):
        start = time.perf_counter()
        with torch.autocast(device.type, DTYPES[job.precision], enabled=half):
            for batch in batches(epoch):
                network(*batch.inputs)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - start


def _source(job: Job, network: nn.Module, steps: int, device: torch.device, folder: Path) -> Source:
    """Return the stream of an epoch, of synthetic images that come as the notebook's own do."""
    n = steps * job.batch
    rows, mos = np.arange(n), np.random.default_rng(0).normal(size=n)
    how: dict[str, Any] = {"batch_size": job.batch, "device": device}
    if job.size[0] != 3:  # of what a frozen network made of images
        vectors = torch.randn(n, *job.size, device=device)
        stream = partial(tensor_batches, vectors, rows, mos, seed=0, **how)
    else:
        size, n_files = job.size[1:], steps * min(job.batch, 16)
        paths, rows = _pictures(folder, size, n_files), rows % n_files
        stream = partial(file_batches, [folder / path for path in paths], size, rows, mos, **how)
        if not job.files:
            store = build_store(folder, paths, folder / "stores", size=size, progress=False)
            mos, how = mos[:n_files], how | {"augment": augment, "seed": 0}
            stream = partial(store_batches, store, rows, mos, **how)

    return lambda epoch: (
        replace(batch, inputs=job.inputs(network, batch.inputs[0])) for batch in stream(epoch=epoch)
    )


def _pictures(folder: Path, size: tuple[int, ...], n: int) -> list[str]:
    """Write JPEG files of smooth scenes with noise, once for each size; return their names."""
    height, width = size
    names = [f"{width}x{height}-{i:04d}.jpg" for i in range(n)]
    for i, name in enumerate(names):
        if not (folder / name).is_file():
            rng = np.random.default_rng(i)
            coarse = as_image(rng.uniform(0, 1, (24, 32, 3)))
            smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 255
            noisy = smooth + rng.normal(0, 0.024, smooth.shape)  # bytes a pixel of a photograph
            as_image(noisy).save(folder / name, quality=90)
    return names


def matrix_peak(precision: str, device: torch.device) -> float:
    """Measure the FLOP/s of a large matrix product; fp32 may use TF32, as convolutions do."""
    n = 8192 if device.type == "cuda" else 512
    a = torch.randn(n, n, device=device, dtype=DTYPES[precision])
    before, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("high")
    timer = Timer("a @ a", globals={"a": a}, num_threads=threads)
    seconds = timer.timeit(5).mean  # after a warm-up; the device is waited for
    torch.set_float32_matmul_precision(before)
    return 2 * n**3 / seconds


def _shrunk(job: Job, scale: float) -> Job:
    if scale == 1.0 or job.size[0] != 3:
        return job
    sides = [max(round(side * scale), 64) for side in job.size[1:]]
    return replace(job, batch=max(round(job.batch * scale), 2), size=(job.size[0], *sides))

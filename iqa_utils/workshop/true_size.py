"""The networks of the paper profiles at their true size, for a few steps, to know their speed.

Weights are random and pixels synthetic, so nothing here says anything about accuracy. What is
measured is the real step: an image store on disk, batches gathered, cut and normalised as the
notebook's own, and :func:`iqa_utils.training.fit` with the profile's batch size and precision.
"""

from __future__ import annotations

import gc
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import mse_loss

from iqa_utils.deep_quality import warp
from iqa_utils.distill.unlabelled import file_batches
from iqa_utils.features import Crop
from iqa_utils.features.layers import NETWORKS
from iqa_utils.files import write_json
from iqa_utils.images import augment, build_store, to_float
from iqa_utils.training import DTYPES, Batch, fit, mixtures
from iqa_utils.training.batches import store_batches, tensor_batches
from iqa_utils.workshop import provenance
from iqa_utils.workshop.demo.distortions import as_image
from iqa_utils.workshop.jobs import JOBS, Job
from iqa_utils.workshop.plan import (
    Footprints,
    Values,
    counted,
    kind,
    make_plan,
    score_table,
    sets_of,
    values_of,
)
from iqa_utils.workshop.runs import ROOT

PROFILE = "paper"
N_FILES = 64  # pictures of one size, at most; later steps read them again
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
    rows to ``figures/true_size/CARD.json``, where plans find them. A row is written as soon as it
    is measured, and a later call of the same code and torch on the same card, with as many steps,
    does not measure it again.
    A network that fails leaves its ``error``, and is tried again.

    Returns:
        ``runs/true_size/true_size.json``: by network ``waiting`` for input, as a share of a step,
        ``of_peak``, the share reached of ``peak`` TFLOP/s of matrix products, and what it ran on;
        ``hours`` of notebooks whose every network is measured.
    """
    on_gpu = torch.cuda.is_available()
    if unknown := sorted(set(stems) - set(JOBS)):
        raise ValueError(f"{', '.join(unknown)} trains no network; there are {', '.join(JOBS)}")
    if publish and not (on_gpu and scale == 1.0):
        raise ValueError("only what a GPU did at true size is published")
    device = torch.device("cuda" if on_gpu else "cpu")
    card = torch.cuda.get_device_name() if on_gpu else "CPU"
    path = ROOT / "runs" / "true_size" / "true_size.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    conditions = {"steps": steps, "torch": torch.__version__, "code": _code()}
    found = _read_back(path, {"card": card, "scale": scale, **conditions})
    name, clean = provenance.commit()
    conditions |= {"commit": name + ", with changes" * (not clean)}
    rows = {row["kind"]: row for row in found["rows"]}
    chosen, footprints = listed(stems), Footprints()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for label, (job, stem, values) in chosen.items():
            if "images_per_s" in rows.get(label, {}):
                print(f"measured before: {label}", flush=True)
                continue
            if job.precision not in found["peak"]:
                found["peak"][job.precision] = matrix_peak(job.precision, device) / 1e12
            source = partial(SOURCES[stem], values) if stem in SOURCES else _stored
            options = {"make_source": source, "footprints": footprints}
            row = _row(_shrunk(job, scale), steps, device, Path(folder), options)
            if "error" not in row:
                row["peak"] = found["peak"][job.precision]
                row["of_peak"] = row.pop("flops_per_s") / row["peak"] / 1e12
            rows[label] = {"kind": label, **row, **conditions}
            found["rows"] = list(rows.values())
            write_json(path, found)
            if publish:
                add_to_published(found)
            print(f"{_told(row)}  {label}", flush=True)
    rates = (card, {k: row for k, row in rows.items() if "error" not in row})
    options = {"official": True, "rates": rates, "footprints": footprints}
    plans = [make_plan(stem, PROFILE, **options) for stem in stems]
    plans = [plan for plan in plans if scale == 1.0 and "computed" not in plan["source"]]
    found["hours"] |= {plan["stem"]: plan["hours"] for plan in plans}
    write_json(path, found)
    if publish:  # what an earlier call has measured, too
        add_to_published(found)
    return found


def listed(stems: Sequence[str]) -> dict[str, tuple[Job, str, Values]]:
    """List every kind of network once: its first job, the notebook's number, its parameters."""
    jobs: dict[str, tuple[Job, str, Values]] = {}
    for stem in stems:
        values = values_of(stem, PROFILE)
        tables = {name: score_table(name, None) for name in sets_of(values)}
        for job in JOBS[stem](values, tables):
            if isinstance(job, Job):
                jobs.setdefault(kind(job), (job, stem, values))
    return jobs


def _read_back(path: Path, head: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier call left under the same conditions, or nothing yet."""
    before = json.loads(path.read_text()) if path.is_file() else {}
    if before and head.items() <= before.items():
        print(f"goes on with {path.name}; delete it to measure all again", flush=True)
        return before
    return head | {"rows": [], "peak": {}, "hours": {}}


def _code() -> str:
    """Digest of the package; comments and docstrings do not count."""
    digests = [provenance.code_digest(text) for text in provenance.code_files().values()]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def _row(
    job: Job, steps: int, device: torch.device, folder: Path, options: dict[str, Any]
) -> dict[str, Any]:
    """Measure a job; where that fails, say why in place of numbers."""
    try:
        return measure(job, steps, device, folder, **options)
    except Exception as error:  # out of memory, or a compiler that gives up: the others go on
        said = str(error).strip().partition("\n")[0][:200]
        return {"error": f"{type(error).__name__}: {said}"}


def _told(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"FAILED: {row['error']}"
    speed = f"{row['images_per_s']:10.1f} images/s, {row['waiting']:4.0%} waiting"
    return f"{speed}, {row['of_peak']:5.1%} of peak"


def add_to_published(found: dict[str, Any]) -> Path:
    """Add what was measured to the file of its card; a network measured again is replaced.

    A network that failed is named with its error, unless it was measured before. Each row says
    what it ran on; hours are left to the plan.
    """
    target = ROOT / "figures" / "true_size" / f"{found['card'].replace(' ', '-')}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(target.read_text()) if target.is_file() else {"rows": []}
    rows = {row["kind"]: row for row in before["rows"]}
    for row in found["rows"]:
        if "error" not in row or "error" in rows.get(row["kind"], row):
            rows[row["kind"]] = row
    write_json(target, {"card": found["card"], "rows": list(rows.values())})
    return target


def measure(
    job: Job,
    steps: int,
    device: torch.device,
    folder: Path,
    *,
    make_source: Callable[..., Source] | None = None,
    footprints: Footprints | None = None,
) -> dict[str, float]:
    """Time ``steps`` steps of a job after as many that warm up; see :func:`true_size`.

    ``make_source`` is one of ``SOURCES`` with its parameters; else images come whole.
    """
    torch.manual_seed(0)
    gc.collect()  # what the network before has left
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    network = job.build().to(device)
    source, waits = (make_source or _stored)(job, network, steps, device, folder), []
    seen: list[int] = []  # images of an epoch

    def batches(epoch: int) -> Iterator[Batch]:
        stream, start = source(epoch), time.perf_counter()
        waits.append(0.0)
        seen.append(0)
        for batch in stream:
            batch = replace(batch, inputs=job.inputs(network, batch.inputs[0]))
            waits[-1] += time.perf_counter() - start
            seen[-1] += len(batch)
            yield batch
            start = time.perf_counter()
        waits[-1] += time.perf_counter() - start

    took = (_train if job.steps else _pass)(network, job, batches, device)
    images = seen[-1]
    known = Footprints() if footprints is None else footprints
    flops = counted(job, known).flops * (3 if job.steps else 1)  # backward: twice the forward pass
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


def _stored(job: Job, network: nn.Module, steps: int, device: torch.device, folder: Path) -> Source:
    """Return the stream of an epoch, of whole images from a store or their files, or of vectors."""
    n = steps * job.batch
    rows, mos = np.arange(n), np.random.default_rng(0).normal(size=n)
    how: dict[str, Any] = {"batch_size": job.batch, "device": device}
    if job.size[0] != 3:  # of what a frozen network made of images
        vectors = torch.randn(n, *job.size, device=device)
        stream = partial(tensor_batches, vectors, rows, mos, seed=0, **how)
    else:
        size = job.size[1:]
        paths = _pictures(folder, size, _n_files(job, steps))
        rows, mos = rows % len(paths), mos[: len(paths)]
        if job.files:
            files = [folder / path for path in paths]
            stream = partial(file_batches, files, size, rows, mos, **how)
        else:
            store = build_store(folder, paths, folder / "stores", size=size, progress=False)
            how |= {"augment": augment, "seed": 0} if job.steps else {}
            stream = partial(store_batches, store, rows, mos, **how)
    return lambda epoch: stream(epoch=epoch)


def _mixed(
    values: Values, job: Job, network: nn.Module, steps: int, device: torch.device, folder: Path
) -> Source:
    """Return the stream of notebook 03: random crops of every set in each batch, not squashed.

    KonCept512 sees one set, and its images whole. The maps of a frozen trunk come as vectors do.
    """
    if job.size[0] != 3:
        return _stored(job, network, steps, device, folder)
    if is_koncept := job.name == "KonCept512":
        paths = _pictures(folder, job.size[1:], _n_files(job, steps))
        trunk = network.image_branch.trunk
        prepare = partial(mixtures.prepare_squashed, size=job.size[1:])
    else:
        crop, trunk = job.size[1], network.trunk
        shorter = max(round(values["SIDES"][0] * crop / values["SIZE"]), crop)
        paths = _pictures(folder, (shorter, round(4 / 3 * shorter)), _n_files(job, steps))
        prepare = partial(mixtures.prepare_crops, size=crop, sides=(shorter, shorter))
    is_single = is_koncept or job.name.startswith("single:")
    names = ["one"] if is_single else [f"set {i}" for i in range(len(values["SETS"]))]
    released = values["MIXING"] == "released"
    each = max(job.batch // len(names), 1)  # images of a set in a batch
    frame, rows = pd.DataFrame({"image": paths}), np.arange(steps * each) % len(paths)
    targets = dict.fromkeys(names, np.random.default_rng(0).normal(size=len(paths)))
    return mixtures.mixed_stream(
        dict.fromkeys(names, frame),
        dict.fromkeys(names, prepare(folder, paths, folder, trunk=trunk)),
        {name: {"training": rows} for name in names},
        targets,
        mixing=values["MIXING"],
        batch_size=each if released else each * len(names),
        seed=0,
    )


def _layers(
    values: Values, job: Job, network: nn.Module, steps: int, device: torch.device, folder: Path
) -> Source:
    """Return the stream of notebook 04: crops of native images, of each its own in a pass."""
    crop = (job.size[1], job.size[2])
    height, width = (max(side, n) for side, n in zip(crop, (384, 512), strict=True))  # TID2013's
    paths = _pictures(folder, (height, width), _n_files(job, steps))
    how: dict[str, Any] = {"size": None, "fit": "native", "progress": False}
    store = build_store(folder, paths, folder / "stores", **how)
    rows, normal = np.arange(steps * job.batch) % len(paths), NETWORKS[job.network].normalisation
    mos = np.random.default_rng(0).normal(size=len(paths))
    if job.steps:
        own = values | values["OVERRIDES"].get(job.network, {})
        how = {"augment": warp if own["AUGMENT"] else None, "device": device, **normal}
        how |= {"batch_size": job.batch, "seed": 0, "crop": crop}
        return lambda epoch: store_batches(store, rows, mos, epoch=epoch, **how)

    def cuts(epoch: int) -> Iterator[Batch]:
        for part in rows.reshape(steps, job.batch):
            pixels = to_float(Crop(crop, epoch).take(store, part).to(device), **normal)
            yield Batch((pixels,), torch.from_numpy(mos[part]), torch.from_numpy(part))

    return cuts


SOURCES = {"03": _mixed, "04": _layers}  # of the others images come whole


def _n_files(job: Job, steps: int) -> int:
    return min(steps * min(job.batch, 16), N_FILES)


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
    from torch.utils.benchmark import Timer  # takes seconds, and may warn that there is no CUDA

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

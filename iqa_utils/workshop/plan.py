"""What a profile asks for: trainings, steps, images, disk, GPU memory and time, before it starts.

Counts follow from the parameters of a notebook and from score tables: those under ``DATA_ROOT``
where they are, else stand-ins with the official numbers of the catalogue. What is trained is listed
in :mod:`iqa_utils.workshop.jobs`. Nothing here imports torch until a network is counted, so that
:func:`preflight` costs next to nothing.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from iqa_utils.datasets import DATASETS, check_images, load_scores
from iqa_utils.splits import SPLITS
from iqa_utils.workshop import notebooks
from iqa_utils.workshop.runs import ROOT, resolve

if TYPE_CHECKING:
    from torch import Tensor, nn

Values = Mapping[str, Any]
Tables = Mapping[str, pd.DataFrame]
TOTALS = ["trainings", "steps", "images", "hours"]
# where nothing was measured: what one large GPU sustains in such networks, and the least time of a
# step, which at small batches is spent on starting kernels, one by one or as a graph
FLOPS = {"fp32": 15e12, "bf16": 60e12, "fp16": 60e12}
LAYER_SECONDS = {False: 60e-6, True: 15e-6}  # compiled?
FILES_A_SECOND = 1500  # photographs decoded and cropped on 16 cores
ASSUMED = (
    f"{FLOPS['bf16'] / 1e12:.0f} TFLOP/s sustained in bf16 and {FLOPS['fp32'] / 1e12:.0f} in fp32, "
    f"at least {1e6 * LAYER_SECONDS[False]:.0f} µs a layer and step "
    f"({1e6 * LAYER_SECONDS[True]:.0f} compiled), {FILES_A_SECOND:,} files decoded a second"
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Equal trainings, or passes without gradients (``steps`` 0).

    ``images`` and ``steps`` are those of one training over all epochs, ``watched`` the images it
    predicts for validation and test. ``size`` is the shape of an image or vector; with ``network``
    it tells footprints apart. ``frozen`` networks are built with real weights, because freezing
    compares values; ``files`` are decoded at every step; ``saved`` ones leave a checkpoint.
    """

    name: str
    network: str
    size: tuple[int, ...]
    build: Callable[[], nn.Module]
    batch: int
    images: int
    steps: int = 0
    count: int = 1
    watched: int = 0
    precision: str = "fp32"
    compile: bool = False
    frozen: bool = False
    files: bool = False
    saved: bool = True
    inputs: Callable[[nn.Module, Tensor], tuple[Tensor, ...]] = lambda network, x: (x,)


class Footprint(NamedTuple):
    """Bytes of weights, of gradients and moments, of activations; operations an image; layers."""

    weights: int
    training: int
    activations: int
    flops: float
    layers: int


def footprint(job: Job) -> Footprint:
    """Count a network without computing it, at the true batch, size and precision.

    Activations are what autograd keeps for the backward pass on the meta device: unique storages,
    parameters and buffers excluded. In bf16 the same is counted under autocast, which needs fake
    tensors that stand for a CPU's: what it stores in bf16 takes half, its copies of the weights
    included, and what it keeps in float32 does not.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    half = job.precision != "fp32"
    device, mode = ("cpu", FakeTensorMode(allow_non_fake_inputs=True)) if half else ("meta", None)
    with nullcontext() if job.frozen else torch.device("meta"):
        network = job.build().train(job.steps > 0)
    own: set[int] = set()
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no address comes twice
        return tensor

    with mode or nullcontext(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        network.to_empty(device=device)
        inputs = job.inputs(network, torch.empty(job.batch, *job.size, device=device))
        owned = [*network.parameters(), *network.buffers()]
        own.update(tensor.untyped_storage()._cdata for tensor in owned)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with torch.set_grad_enabled(job.steps > 0), hooks, FlopCounterMode(display=False) as ops:
            network(*inputs)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in owned)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad and job.steps)
    activations = sum(storage.nbytes() for storage in kept.values())
    layers = sum(not list(module.children()) for module in network.modules())
    flops = ops.get_total_flops() / job.batch
    return Footprint(weights, 12 * trained, activations, flops, layers)


def kind(job: Job) -> str:
    """Name what a measured speed belongs to: network, batch, size, precision."""
    size = "x".join(map(str, (job.batch, *job.size)))
    how = "pass" if not job.steps else "compiled" if job.compile else "eager"
    return f"{job.network}, {size}, {job.precision}, {how}"


def seconds(job: Job, seen: Footprint, rate: float | None = None) -> float:
    """Estimate all trainings of a job: from images/s, or from operation counts.

    The backward pass takes twice the operations of the forward pass.
    """
    forward = seen.flops / FLOPS[job.precision]
    time = job.images / rate + job.watched / (3 * rate) if rate else job.images * forward
    if job.steps and not rate:
        least = job.steps * LAYER_SECONDS[job.compile] * seen.layers
        time = max(3 * time, least) + job.watched * forward
    decoded = (job.images + job.watched) / FILES_A_SECOND if job.files else 0.0
    return job.count * max(time, decoded)


def values_of(stem: str, profile: str) -> dict[str, Any]:
    """Return every parameter of a notebook in a profile; ``stem`` by name or number."""
    notebook = notebooks.find_notebook(stem)
    own = notebooks.default_parameters(notebook) | notebooks.read_profile(notebook.stem, profile)
    return own | {"PROFILE": profile}


def sets_of(values: Values) -> list[str]:
    """Name the data sets that a notebook cannot do without; 00, 01 and 07 take what is there."""
    one = [values["DATASET"]] if "DATASET" in values else []
    return one + [name for key in ("SETS", "DATASETS", "LABELLED") for name in values.get(key, [])]


def score_table(name: str, root: Path | None) -> pd.DataFrame:
    """Return the score table under ``root``, or a stand-in with the official numbers."""
    info = DATASETS[name]
    if root is not None and (root / name).is_dir():
        frame = load_scores(name, root / name)
        frame.attrs["pixels"], first = info.pixels, root / name / frame["image"].iloc[0]
        if first.is_file():
            with Image.open(first) as image:
                frame.attrs["pixels"] = image.size[::-1]
        return frame
    n, (low, high) = info.n_images, info.scale or (0.0, 1.0)
    frame = pd.DataFrame({"image": [f"{i}.png" for i in range(n)]})
    frame["mos"] = low + (high - low) * (np.arange(n) + 0.5) / max(n, 1)
    references = info.references or max(n, 1)
    frame["reference"] = [f"i{i % references:03d}.bmp" for i in range(n)]
    frame["split"] = np.repeat(SPLITS, info.split_sizes) if info.split_sizes else None
    frame["distortion"] = "jpeg"
    if info.ranges:
        fifth = (high - low) / len(info.ranges)
        middle = low + fifth * (np.arange(len(info.ranges)) + 0.5)
        frame.loc[frame["split"] == "training", "mos"] = np.repeat(middle, info.ranges)
    if name == "live":
        kinds, counts = ("jp2k", "jpeg", "wn", "gblur", "fastfading"), (169, 175, 145, 145, 145)
        frame["distortion"] = np.repeat(kinds, counts)
    frame.attrs = {"dataset": name, "title": info.title, "pixels": info.pixels}
    return frame


def stores(stem: str, values: Values, tables: Tables) -> dict[str, int]:
    """Return the bytes of the decoded images by how they are fitted; a set is of one size here."""
    known: dict[str, Callable[[], list[Any]]] = {
        "02": lambda: [*dict.fromkeys(map(tuple, [values["SIZE"], *values["RESOLUTIONS"]]))],
        "03": lambda: [
            *([(values["SIZE"],) * 2] if values["FROZEN_TRUNK"] else [512, 768]),
            *([tuple(values["KONCEPT_SIZE"])] if "KonCept512" in values["METHODS"] else []),
        ],
        "04": lambda: [None, *[(side, side) for side in [values["TAP_SIZE"]] if side]],
        "05": lambda: [(values["IMAGE_SIZE"],) * 2],
        "06": lambda: [tuple(values["TEACHER_SIZE"]), values["CROP"][0]],
    }  # (height, width), the longest shorter side, or None for native
    found = {}
    for fit in known.get(stem[:2], list)():
        label = f"shorter side {fit}" if fit else "native size"
        label = "{1}x{0}".format(*fit) if isinstance(fit, tuple) else label
        sizes = [len(table) * stored_bytes(table.attrs["pixels"], fit) for table in tables.values()]
        found[f"decoded, {label}"] = sum(sizes)
    if stem[:2] == "06" and not values["STREAM"]:
        n = values["N_KEPT"] + values["N_UNLABELLED"][-1]
        found["decoded, unlabelled crops"] = n * 3 * math.prod(values["CROP"])
    return found


def stored_bytes(pixels: tuple[int, int], fit: Any) -> int:
    """Return the bytes of one decoded image: (height, width), a longest shorter side, or native."""
    if isinstance(fit, tuple):
        return 3 * math.prod(fit)
    short = min(pixels)
    side = min(fit or short, short)
    return 3 * math.prod(length * side // short for length in pixels)


def missing(values: Values) -> list[str]:
    """Name the data sets, images, folders and files of weights that a run would not find."""
    root, problems = resolve(values["DATA_ROOT"]), []
    files = [values.get("RELEASED_SCORES"), values.get("TEACHER")]
    if root != ROOT / "data" / "demo":  # a run makes these
        for name in sets_of(values):
            try:
                check_images(load_scores(name, root / name), root / name)
            except (FileNotFoundError, KeyError, ValueError) as error:
                problems.append(f"{name}: {error}")
        files += [root / name for name in values.get("UNLABELLED", [])]
    weights, networks = values["PRETRAINED"], set()
    if weights not in ("random", "hub", "shipped"):
        networks = {*values.get("NETWORKS_TAPPED", []), *values.get("FINAL", [])[:1]}
        files += [] if networks else [weights]
    for name in sorted(networks):  # the word is Network.weights, which loads torch
        path = resolve(weights) / f"{name}-{'openai' if 'clip' in name else 'imagenet'}.pth"
        if not (path.is_file() or path.with_suffix(".safetensors").is_file()):
            problems.append(f"no weights at {path}")
    absent = [resolve(file) for file in files if file and not resolve(file).exists()]
    return problems + [f"nothing at {path}" for path in absent]


def preflight(stem: str, values: Values) -> list[str]:
    """List what would stop a run: missing data and weights, and a disk too small for its images."""
    root, problems = resolve(values["DATA_ROOT"]), missing(values)
    if problems or root == ROOT / "data" / "demo":
        return problems
    tables = {name: score_table(name, root) for name in sets_of(values)}
    done = (ROOT / "runs" / "cache" / "stores").glob("*/pixels.bin")
    needed = sum(stores(stem, values, tables).values()) - sum(f.stat().st_size for f in done)
    free = shutil.disk_usage(ROOT).free
    if needed <= free:
        return []
    return [f"decoded images need {needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} are free"]


@cache
def measured(folder: Path = ROOT / "figures" / "true_size") -> tuple[str, dict[str, float]]:
    """Return the card whose speeds are published, and images/s by :func:`kind`; empty if none."""
    files = sorted(folder.glob("*.json"))
    seen = json.loads(files[-1].read_text()) if files else {"card": "", "rows": []}
    return seen["card"], {row["kind"]: row["images_per_s"] for row in seen["rows"]}


def make_plan(
    stem: str,
    profile: str,
    *,
    rate: float | None = None,
    official: bool = False,
    rates: tuple[str, dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Work out what a notebook asks for in a profile: jobs, bytes, hours, and what is missing.

    Time follows from ``rate`` (images/s of every training), else from ``rates`` as of
    :func:`measured`, else from counted operations. ``official`` numbers may take the place of the
    score tables at hand. ``memory`` is the largest job's, ``moment`` the disk needed for a moment.
    """
    stem = notebooks.find_notebook(stem).stem
    values = values_of(stem, profile)
    names, root = sets_of(values), None if official else resolve(values["DATA_ROOT"])
    plan: dict[str, Any] = {"stem": stem, "profile": profile, "sets": names, "jobs": []}
    plan |= {"missing": [] if official else missing(values), "moment": 0, "source": "none"}
    if stem[:2] not in ("02", "03", "04", "05", "06"):
        return plan | dict.fromkeys(["memory", *TOTALS], 0) | {"disk": {}}
    from iqa_utils.workshop.jobs import JOBS, Disk, to_fetch

    plan["to fetch"] = [] if official else to_fetch(values)
    names = names or [name for name in DATASETS if DATASETS[name].n_images]  # SETS: [] takes all
    tables = {name: score_table(name, root) for name in names}
    plan["disk"] = stores(stem, values, tables)
    card, known_rates = rates or measured()
    checkpoints, unfinished, sources = 0, 0, set()
    known: dict[tuple[str, bool], Footprint] = {}
    for job in JOBS[stem[:2]](values, tables):
        if isinstance(job, Disk):
            plan["disk"] |= {job.name: job.size} if job.kept else {}
            plan["moment"] += 0 if job.kept else job.size
            continue
        key = (kind(replace(job, compile=False)), bool(job.steps))
        seen = known[key] = known.get(key) or footprint(job)
        speed = rate or known_rates.get(kind(job))
        sources.add("given" if rate else f"measured on {card}" if speed else "computed")
        if job.steps and job.saved:
            checkpoints += job.count * seen.weights
            unfinished = max(unfinished, seen.weights + seen.training * 2 // 3)
        row = {"name": job.name, "kind": kind(job), "trainings": job.count * (job.steps > 0)}
        row |= {"steps": job.count * job.steps, "images": job.count * job.images}
        row |= {"activations": seen.activations, "memory": sum(seen[:3])}
        plan["jobs"].append(row | {"hours": seconds(job, seen, speed) / 3600})
    plan["disk"]["checkpoints"] = checkpoints + unfinished
    plan["stand-ins"] = [name for name in names if root is None or not (root / name).is_dir()]
    plan["uncounted"] = [name for name, table in tables.items() if table.empty]
    plan["memory"] = max(row["memory"] for row in plan["jobs"])
    plan |= {total: sum(row[total] for row in plan["jobs"]) for total in TOTALS}
    return plan | {"source": " and ".join(sorted(sources))}


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """Tell a plan as text."""
    lines = [f"{plan['stem']}, profile {plan['profile']}"]
    if not plan["jobs"]:
        lines.append("  lists no trainings: reads annotation files, or what other runs left")
    else:
        table = pd.DataFrame([*plan["jobs"], {**plan, "name": "in all"}])
        table["GB"] = table["memory"] / 1e9
        formats = dict.fromkeys(TOTALS[:3], "{:,.0f}".format)
        formats |= {"GB": "{:.1f}".format, "hours": "{:.2f}".format}
        text = table.to_string(columns=["name", *formats], index=False, formatters=formats)
        lines += [f"  {line}" for line in text.split("\n")]
        lines.append(f"  time is {plan['source']}; GB is GPU memory in a step")
        if "computed" in plan["source"]:
            lines.append(f"  computed: networks alone, with {ASSUMED}")
        disk = {**plan["disk"], "in all": sum(plan["disk"].values())}
        disk |= {"for a moment": plan["moment"]} if plan["moment"] else {}
        lines += [f"  disk {size / 1e9:8.2f} GB  {name}" for name, size in disk.items()]
    if plan.get("stand-ins"):
        lines.append(f"  counted by official numbers: {', '.join(plan['stand-ins'])}")
    lines += [f"  not counted: {name}, of unknown size" for name in plan.get("uncounted", [])]
    if plan.get("to fetch"):
        lines.append(f"  weights not in the cache of the hub: {', '.join(plan['to fetch'])}")
    return lines + [f"  missing: {problem[:300]}" for problem in plan["missing"]]

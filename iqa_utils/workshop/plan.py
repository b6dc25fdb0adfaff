"""What a profile asks for: trainings, steps, images, disk, GPU memory and time, before it starts.

Counts follow from the parameters of a notebook and from score tables: those under ``DATA_ROOT``
where they are, else stand-ins with the official numbers of the catalogue. What is trained is listed
in :mod:`iqa_utils.workshop.jobs`. Nothing here imports torch until a network is counted, so that
:func:`preflight` costs next to nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from iqa_utils.datasets import DATASETS, check_images, load_scores
from iqa_utils.splits import SPLITS
from iqa_utils.workshop import notebooks
from iqa_utils.workshop.disk import Disk, Values, decoded_before, folder_bytes, stores
from iqa_utils.workshop.provenance import device_name
from iqa_utils.workshop.runs import ROOT, resolve, run_dir

if TYPE_CHECKING:
    from torch import Tensor

    from iqa_utils.workshop.jobs import Job

TOTALS = ["trainings", "steps", "images", "hours"]
# where nothing was measured: what one large GPU sustains in such networks, and the least time of a
# step, which at small batches is spent on starting kernels, one by one or as a graph
FLOPS = {"fp32": 15e12, "bf16": 60e12}
LAYER_SECONDS = {False: 60e-6, True: 15e-6}  # compiled?
TRAINED_BY = ("02", "03", "04", "05", "06")  # notebooks
FILES_A_SECOND = 1500  # photographs decoded and cropped on 16 cores
ASSUMED = (
    f"{FLOPS['bf16'] / 1e12:.0f} TFLOP/s sustained in bf16 and {FLOPS['fp32'] / 1e12:.0f} in fp32, "
    f"at least {1e6 * LAYER_SECONDS[False]:.0f} µs a layer and step "
    f"({1e6 * LAYER_SECONDS[True]:.0f} compiled), {FILES_A_SECOND:,} files decoded a second"
)


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


# a card, and what was measured on it by :func:`kind`
Rates = tuple[str, Mapping[str, Mapping[str, Any]]]
# footprints counted before, by :func:`kind` as if nothing were compiled, and whether it is trained
Footprints = dict[tuple[str, bool], Footprint]


def counted(job: Job, footprints: Footprints) -> Footprint:
    """Return the footprint of a job, counted once for jobs of one kind."""
    key = (kind(replace(job, compile=False)), bool(job.steps))
    if key not in footprints:
        footprints[key] = footprint(job)
    return footprints[key]


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
    """List what would stop a run: missing data and weights, and a disk too small for what it keeps.

    What the run has decoded, saved or multiplied before is not asked for again. Networks are built
    without weights to count their checkpoints, in seconds; a run without networks, and one that
    lacks data, does not import torch. Weights that will be fetched are named in a line of text.
    """
    root, problems, names = resolve(values["DATA_ROOT"]), missing(values), sets_of(values)
    if problems or root == ROOT / "data" / "demo" or not names:
        return problems
    cache = ROOT / "runs" / "cache"
    tables = {name: score_table(name, root) for name in names}
    decoded = sum(stores(stem, values, tables).values())
    decoded -= decoded_before(stem, values, tables, cache / "stores")
    needed = {"decoded images": max(decoded, 0)}
    free = shutil.disk_usage(ROOT).free
    if values["PRETRAINED"] == "hub":
        from iqa_utils.workshop.jobs import to_fetch

        if absent := to_fetch(values):
            print(f"{stem}: weights to be fetched from the hub: {', '.join(absent)}", flush=True)
    if stem[:2] in TRAINED_BY:
        needed |= _left_by_networks(stem, values, tables, cache / "features")
    if sum(needed.values()) <= free:
        return []
    told = ", ".join(f"{name} {size / 1e9:.3g} GB" for name, size in needed.items() if size)
    return [f"needs more than the {free / 1e9:.3g} GB of disk that are free: {told}"]


def _left_by_networks(
    stem: str, values: Values, tables: Mapping[str, pd.DataFrame], features: Path
) -> dict[str, int]:
    """Return the bytes of checkpoints, matrices and spools that a run has not written yet."""
    from iqa_utils.workshop.jobs import disk_of

    run = run_dir(stem, values["PROFILE"], values["RUN_NAME"])
    written = folder_bytes(run.with_name(f".{run.name}.partial") / "checkpoints")
    kept = {one.name: one for one in disk_of(stem, values, tables)}
    sizes = {name: one.size for name, one in kept.items()}
    sizes["checkpoints"] = max(sizes["checkpoints"] - written, 0)
    if "Gram matrices" in sizes:
        n = len(tables[values["DATASETS"][0]])
        grams = [path.stat().st_size for path in features.glob("gram-*.npy")]
        there = sum(size for size in grams if 4 * n * (n + 1) <= size < 4 * n * (n + 1) + 4096)
        sizes["Gram matrices"] = max(sizes["Gram matrices"] - there, 0)
        if not sizes["Gram matrices"]:  # nothing is left to spool
            sizes = {name: size for name, size in sizes.items() if kept[name].kept}
    return sizes


@cache
def measured(folder: Path = ROOT / "figures" / "true_size") -> Rates:
    """Return a card with published speeds, and its rows by :func:`kind`; empty if there is none.

    It is the card at hand, else the one with most rows.
    """
    cards: dict[str, dict[str, dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        seen = json.loads(file.read_text())
        cards[seen["card"]] = {row["kind"]: row for row in seen["rows"] if "error" not in row}
    most = max(cards, key=lambda card: len(cards[card]), default="")
    card = device_name() if device_name() in cards else most
    return card, cards.get(card, {})


def make_plan(
    stem: str,
    profile: str,
    *,
    rate: float | None = None,
    official: bool = False,
    rates: Rates | None = None,
    footprints: Footprints | None = None,
) -> dict[str, Any]:
    """Work out what a notebook asks for in a profile: jobs, bytes, hours, and what is missing.

    Time follows from ``rate`` (images/s of every training), else from ``rates`` as of
    :func:`measured`, else from counted operations. ``official`` numbers may take the place of the
    score tables at hand; ``footprints`` are those counted before. ``memory`` is the largest job's,
    ``moment`` the disk needed for a moment.

    Raises:
        ValueError: If ``rate`` is not a finite number above 0.
    """
    if rate is not None and not 0 < rate < inf:
        raise ValueError(f"the rate is {rate} images/s, not a finite number above 0")
    stem = notebooks.find_notebook(stem).stem
    values = values_of(stem, profile)
    names, root = sets_of(values), None if official else resolve(values["DATA_ROOT"])
    plan: dict[str, Any] = {"stem": stem, "profile": profile, "sets": names, "jobs": []}
    plan |= {"missing": [] if official else missing(values), "moment": 0, "source": "none"}
    if stem[:2] not in TRAINED_BY:
        return plan | dict.fromkeys(["memory", *TOTALS], 0) | {"disk": {}}
    from iqa_utils.workshop.jobs import JOBS, checkpoint_bytes, to_fetch

    plan["to fetch"] = [] if official else to_fetch(values)
    names = names or [name for name in DATASETS if DATASETS[name].n_images]  # SETS: [] takes all
    tables = {name: score_table(name, root) for name in names}
    plan["disk"] = stores(stem, values, tables)
    card, known = rates or measured()
    saved, sources = [], set()
    footprints = Footprints() if footprints is None else footprints
    for job in JOBS[stem[:2]](values, tables):
        if isinstance(job, Disk):
            plan["disk"] |= {job.name: job.size} if job.kept else {}
            plan["moment"] += 0 if job.kept else job.size
            continue
        seen = counted(job, footprints)
        row = known.get(kind(job), {})
        speed = rate or row.get("images_per_s")
        seen_as = f" with {row['input']}" if "input" in row else ""
        sources.add("given" if rate else f"measured on {card}{seen_as}" if speed else "computed")
        saved.append((job, seen.weights, seen.training // 12))
        row = {"name": job.name, "kind": kind(job), "trainings": job.count * (job.steps > 0)}
        row |= {"steps": job.count * job.steps, "images": job.count * job.images}
        row |= {"activations": seen.activations, "memory": sum(seen[:3])}
        plan["jobs"].append(row | {"hours": seconds(job, seen, speed) / 3600})
    plan["disk"]["checkpoints"] = checkpoint_bytes(saved)
    plan["uncounted"] = [name for name, table in tables.items() if table.empty]
    absent = [name for name in names if root is None or not (root / name).is_dir()]
    plan["stand-ins"] = [name for name in absent if name not in plan["uncounted"]]
    plan["memory"] = max(row["memory"] for row in plan["jobs"])
    plan |= {total: sum(row[total] for row in plan["jobs"]) for total in TOTALS}
    return plan | {"source": " and ".join(sorted(sources))}


def _short(value: float, digits: int) -> str:
    """Write a number with some digits behind the point; what they cannot show is not nothing."""
    least = 10.0**-digits
    return f"<{least:g}" if 0 < value < least / 2 else f"{value:.{digits}f}"


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """Tell a plan as text."""
    lines = [f"{plan['stem']}, profile {plan['profile']}"]
    if not plan["jobs"]:
        lines.append("  trains no network")
    else:
        table = pd.DataFrame([*plan["jobs"], {**plan, "name": "in all"}])
        table["GB"] = table["memory"] / 1e9
        formats = dict.fromkeys(TOTALS[:3], "{:,.0f}".format)
        formats |= {"GB": partial(_short, digits=1), "hours": partial(_short, digits=2)}
        text = table.to_string(columns=["name", *formats], index=False, formatters=formats)
        lines += [f"  {line}" for line in text.split("\n")]
        lines.append(f"  time is {plan['source']}; GB is GPU memory in a step")
        if "computed" in plan["source"]:
            lines.append(f"  computed: networks alone on one large GPU, with {ASSUMED}")
        disk = {**plan["disk"], "in all": sum(plan["disk"].values())}
        disk |= {"for a moment": plan["moment"]} if plan["moment"] else {}
        lines += [f"  disk {size / 1e9:8.2f} GB  {name}" for name, size in disk.items()]
    if plan.get("stand-ins"):
        official = (f"{name} ({DATASETS[name].n_images:,})" for name in plan["stand-ins"])
        lines.append(f"  counted by official numbers of images: {', '.join(official)}")
    lines += [f"  not counted: {name}, of unknown size" for name in plan.get("uncounted", [])]
    if plan.get("to fetch"):
        lines.append(f"  weights not in the cache of the hub: {', '.join(plan['to fetch'])}")
    return lines + [f"  missing: {problem[:300]}" for problem in plan["missing"]]

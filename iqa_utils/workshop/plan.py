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
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from iqa_utils.datasets import DATASETS, check_images, load_scores
from iqa_utils.splits import PARTS
from iqa_utils.workshop import notebooks
from iqa_utils.workshop.footprint import ASSUMED, Footprint, footprint, kind, seconds
from iqa_utils.workshop.runs import ROOT, resolve

Values = Mapping[str, Any]
Tables = Mapping[str, pd.DataFrame]


def values_of(stem: str, profile: str, parameters: Values | None = None) -> dict[str, Any]:
    """Return every parameter of a notebook in a profile; ``stem`` by name or number."""
    notebook = notebooks.find_notebook(stem)
    own = notebooks.default_parameters(notebook) | notebooks.read_profile(notebook.stem, profile)
    return own | {"PROFILE": profile, **(parameters or {})}


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
    mos = low + (high - low) * (np.arange(n) + 0.5) / max(n, 1)
    frame = pd.DataFrame({"image": [f"{i}.png" for i in range(n)], "mos": mos})
    frame["reference"] = frame["image"]
    if info.references:
        frame["reference"] = [f"i{i % info.references:03d}.bmp" for i in range(n)]
    frame["split"], frame["distortion"] = None, "jpeg"
    if info.split_sizes:
        frame["split"] = np.repeat(PARTS, info.split_sizes)
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
    fits: list[Any] = []  # (height, width), the longest shorter side, or None for native
    if stem[:2] == "02":
        fits = [*dict.fromkeys(map(tuple, [values["SIZE"], *values["RESOLUTIONS"]]))]
    elif stem[:2] == "03":
        fits = [(values["SIZE"],) * 2] if values["FROZEN_TRUNK"] else [512, 768]
    elif stem[:2] == "04":
        fits = [None]
    elif stem[:2] == "05":
        fits = [(values["IMAGE_SIZE"],) * 2]
    elif stem[:2] == "06":
        fits = [tuple(values["TEACHER_SIZE"]), values["CROP"][0]]
    found = {}
    for fit in fits:
        label = {None: "native size"}.get(fit, f"shorter side {fit}")
        label = "x".join(map(str, fit[::-1])) if isinstance(fit, tuple) else label
        found[f"decoded, {label}"] = sum(
            len(table) * stored_bytes(table.attrs["pixels"], fit) for table in tables.values()
        )
    if stem[:2] == "06" and not values["STREAM"]:
        n = values["N_KEPT"] + values["N_UNLABELLED"][-1]
        found["decoded, unlabelled crops"] = n * 3 * math.prod(values["CROP"])
    return found


def stored_bytes(pixels: tuple[int, int], fit: Any) -> int:
    """Return the bytes of one decoded image: (height, width), a longest shorter side, or native."""
    height, width = pixels
    if isinstance(fit, tuple):
        height, width = fit
    elif fit is not None and min(height, width) > fit:
        short = min(height, width)
        height, width = height * fit // short, width * fit // short
    return 3 * height * width


def missing(stem: str, values: Values) -> list[str]:
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
    weights = values["PRETRAINED"]
    if weights not in ("random", "hub", "shipped") and "NETWORKS_TAPPED" in values:
        for name in sorted({*values["NETWORKS_TAPPED"], values["FINAL"][0]}):
            ends = (".pth", ".safetensors")
            if not any((resolve(weights) / f"{name}-imagenet{end}").is_file() for end in ends):
                problems.append(f"no weights at {resolve(weights) / name}-imagenet.pth")
    elif weights not in ("random", "hub", "shipped"):
        files.append(weights)
    absent = [resolve(file) for file in files if file and not resolve(file).exists()]
    return problems + [f"nothing at {path}" for path in absent]


def preflight(stem: str, values: Values) -> list[str]:
    """List what would stop a run: missing data and weights, and a disk too small for its images."""
    root, problems = resolve(values["DATA_ROOT"]), missing(stem, values)
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
    if not files:
        return "", {}
    seen = json.loads(files[-1].read_text())
    return seen["card"], {row["kind"]: row["images_per_s"] for row in seen["rows"]}


def make_plan(
    stem: str,
    profile: str,
    *,
    rate: float | None = None,
    official: bool = False,
    rates: tuple[str, dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Work out what a notebook asks for in a profile.

    Time follows from ``rate`` (images/s of every training), else from ``rates`` as of
    :func:`measured`, else from counted operations. ``official`` numbers may take the place of the
    score tables at hand.

    Returns:
        ``jobs`` (one row a kind of training or pass), ``disk`` (bytes kept, by what they are),
        ``moment`` (bytes needed for a moment), ``memory`` (bytes, of the largest job),
        ``trainings``, ``steps``, ``images``, ``hours``, ``source`` of the time, ``missing``, and
        ``to fetch``: weights that the notebook would get from the hub in its first minute.
    """
    stem = notebooks.find_notebook(stem).stem
    values = values_of(stem, profile)
    names, root = sets_of(values), None if official else resolve(values["DATA_ROOT"])
    plan: dict[str, Any] = {"stem": stem, "profile": profile, "sets": names, "jobs": []}
    plan |= {"missing": [] if official else missing(stem, values), "moment": 0, "source": "none"}
    if stem[:2] not in ("02", "03", "04", "05", "06"):
        zero = dict.fromkeys(("memory", "trainings", "steps", "images", "hours"), 0)
        return plan | zero | {"disk": {}}
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
        row |= {"activations": seen.activations, "memory": seen.memory}
        plan["jobs"].append(row | {"hours": seconds(job, seen, speed) / 3600})
    plan["disk"]["checkpoints"] = checkpoints + unfinished
    plan["stand-ins"] = [name for name in names if root is None or not (root / name).is_dir()]
    plan["uncounted"] = [name for name, table in tables.items() if table.empty]
    plan["memory"] = max(row["memory"] for row in plan["jobs"])
    for total in ("trainings", "steps", "images", "hours"):
        plan[total] = sum(row[total] for row in plan["jobs"])
    return plan | {"source": " and ".join(sorted(sources))}


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """Tell a plan as text."""
    lines = [f"{plan['stem']}, profile {plan['profile']}"]
    if not plan["jobs"]:
        lines.append("  trains nothing: reads annotation files, or what other runs left")
    else:
        columns = ["trainings", "steps", "images", "GB", "hours"]
        table = pd.DataFrame(plan["jobs"]).assign(GB=lambda t: t["memory"] / 1e9)
        table = pd.concat([table, pd.DataFrame([{**plan, "name": "in all"}])])
        table.loc[table["name"] == "in all", "GB"] = plan["memory"] / 1e9
        formats = dict.fromkeys(columns[:3], "{:,.0f}".format)
        formats |= {"GB": "{:.1f}".format, "hours": "{:.2f}".format}
        text = table.to_string(columns=["name", *columns], index=False, formatters=formats)
        lines += [f"  {line}" for line in text.split("\n")]
        lines.append(f"  time is {plan['source']}; GB is GPU memory in a step")
        if "computed" in plan["source"]:
            lines.append(f"  computed: networks alone, with {ASSUMED}")
        lines += [f"  disk {size / 1e9:8.2f} GB  {name}" for name, size in plan["disk"].items()]
        lines.append(f"  disk {sum(plan['disk'].values()) / 1e9:8.2f} GB  in all")
        if plan["moment"]:
            lines.append(f"  disk {plan['moment'] / 1e9:8.2f} GB  for a moment")
    if plan.get("stand-ins"):
        lines.append(f"  counted by official numbers: {', '.join(plan['stand-ins'])}")
    lines += [f"  not counted: {name}, of unknown size" for name in plan.get("uncounted", [])]
    if plan.get("to fetch"):
        lines.append(f"  weights not in the cache of the hub: {', '.join(plan['to fetch'])}")
    return lines + [f"  missing: {problem[:300]}" for problem in plan["missing"]]

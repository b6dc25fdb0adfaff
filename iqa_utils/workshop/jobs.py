"""What each notebook trains and keeps, as its parameters and the score tables say.

One function per notebook lists jobs and disk space; `plan` counts them, `true_size` runs them.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
import torchvision
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from iqa_utils import deep_quality as quality
from iqa_utils.backbones import create_backbone
from iqa_utils.distill import choose_teachers
from iqa_utils.features.grams import disk_use
from iqa_utils.features.layers import NETWORKS, create_network, layers_of
from iqa_utils.models.clip_head import ClipHead, ImageEncoder
from iqa_utils.models.dual_xception import DualXception, KonCept, PooledHead
from iqa_utils.models.imqnet import IMQNet
from iqa_utils.models.monotonic import VARIANTS, MonotonicIQA
from iqa_utils.samplers import METHODS, range_quotas
from iqa_utils.splits import official_or_content_split
from iqa_utils.workshop.demo import KINDS
from iqa_utils.workshop.disk import Disk, Tables, Values, stored_bytes


@dataclass(frozen=True, kw_only=True)
class Job:
    """Equal trainings, or passes without gradients (``steps`` 0).

    ``images`` and ``steps`` are those of one training over all epochs, ``watched`` the images it
    predicts for validation and test, ``size`` the shape of an image or vector. ``frozen`` networks
    have real weights; ``files`` are decoded at every step; ``saved`` ones leave a checkpoint.
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


def parts_of(frame: pd.DataFrame, seed: int) -> pd.Series:
    """Split as the notebooks do: the official split, or one by content."""
    return frame["split"] if frame.empty else official_or_content_split(frame, seed=seed)


def _training(
    values: Values, method: str, n: int, each: int, last: int = 0, epochs: int = 0, **more: Any
) -> Job:
    """Describe a training on n images; it predicts ``each`` after an epoch, ``last`` at its end."""
    own, batch = values | values["OVERRIDES"].get(method, {}), values["BATCH_SIZE"]
    epochs = max(epochs, own["EPOCHS"])
    n_batches = max(n // batch + (n % batch > 1), 1)  # a lone last image joins the batch before it
    facts = {"name": method, "batch": batch, "images": epochs * n, "steps": epochs * n_batches}
    facts |= {"precision": own.get("PRECISION", "fp32"), "compile": own.get("COMPILE", False)}
    return Job(**facts | {"watched": epochs * each + last} | more)


def sampling_runs(values: Values) -> list[tuple[str, dict[str, str], str, int, tuple[int, ...]]]:
    """List the trainings of notebook 02, each as often as tables show it."""
    base = {"network": "dual", "sampler": "none", "loss": "mse"}
    models = {name: base | {"network": name} for name in ("images", "parameters", "dual")}
    cross = {"sampler": values["CROSS_SAMPLER"]}
    models |= {f"{name}, cross-sampled": one | cross for name, one in models.items()}
    models |= {name: base | {"network": name} for name in ("plain", "linear")}
    by_sampler = {name: base | {"sampler": name} for name in METHODS}
    rivals = {f"KonCept512, {k}": one | {"network": "koncept"} for k, one in by_sampler.items()}
    by_sampler["range-weighted loss"] = base | {"loss": "range-weighted"}
    seeds, few, size = values["N_RUNS"], values["N_RUNS_MODELS"], tuple(values["SIZE"])
    groups = [(models, few, "SELECT_MODELS", size), (by_sampler, seeds, "SELECT_SAMPLERS", size)]
    groups.append((rivals, few, "SELECT_SAMPLERS", size))
    for h, w in values["RESOLUTIONS"]:
        groups.append(({f"{w}x{h}": models["images"]}, few, "SELECT_MODELS", (h, w)))
    return [
        (method, scenario, values[select], seed, size)
        for scenarios, n, select, size in groups
        for method, scenario in scenarios.items()
        if not values["ONLY"] or method in values["ONLY"]
        for seed in range(values["OVERRIDES"].get(method, {}).get("N_RUNS", n))
    ]


def _sampling(values: Values, tables: Tables) -> Iterator[Job | Disk]:
    frame, frozen = tables[values["DATASET"]], values["FROZEN"] or None
    parts = parts_of(frame, 0)
    counts = np.histogram(frame["mos"][parts == "training"] * values["MOS_FACTOR"], values["EDGES"])
    quota = partial(range_quotas, counts[0], threshold=values["THRESHOLD"])
    n = parts.value_counts()

    def build(name: str) -> nn.Module:
        if name == "koncept":
            return KonCept(values["KONCEPT_BACKBONE"], frozen=frozen)
        only = {"inputs": name} if name in ("images", "parameters") else {"fusion": name}
        only |= {"pooling": values["POOLING"], "plane_size": values["PLANE_SIZE"] or None}
        return DualXception(values["BACKBONE"], frozen=frozen, **only)

    def inputs(network: Any, images: Tensor) -> tuple[Tensor, ...]:
        if frozen and network.image_branch is not None:  # computed once
            images = network.image_branch.stem(images)
        return images, torch.zeros(len(images), 4, device=images.device)

    goes_on = set(METHODS) - {"none"} if values["EQUAL_STEPS"] else set()
    unique: dict[str, tuple[str, str, str, tuple[int, ...]]] = {}
    for method, scenario, *rest in sampling_runs(values):
        own = values["OVERRIDES"].get(method, {}) | {"N_RUNS": 0}  # what else sets it apart
        key = str((scenario, sorted(own.items()), rest, method in goes_on))
        unique.setdefault(key, (method, scenario["network"], scenario["sampler"], rest[-1]))
    for (method, network, sampler, size), count in Counter(unique.values()).items():
        shown = int(quota(sampler).sum())
        equal_steps = round(values["EPOCHS"] * counts[0].sum() / shown)
        trunk = values["KONCEPT_BACKBONE" if network == "koncept" else "BACKBONE"]
        name = f"{network} {trunk} {values['PLANE_SIZE']} {frozen or ''}".rstrip()
        how = {"network": name, "build": partial(build, network), "inputs": inputs}
        how |= {"epochs": equal_steps if method in goes_on else 0, "size": (3, *size)}
        watched = int(n.get("validation", 0)), int(n.get("test", 0))
        yield _training(values, method, shown, *watched, count=count, frozen=bool(frozen), **how)


def _mixing(values: Values, tables: Tables) -> Iterator[Job | Disk]:
    if names := list(values["SUBSET_WARPS"]):  # of one set; a stand-in is cut into like parts
        (frame,) = tables.values()
        stand_in = np.resize(names, len(frame))
        subset = frame.get("subset", stand_in)
        tables = {name: frame[subset == name] for name in names}
    if n_references := values["DISTORTED"]:  # each clean, and at five levels of every distortion
        reference = np.repeat(np.arange(n_references).astype(str), 1 + 5 * len(KINDS))
        distorted = pd.DataFrame({"image": reference, "reference": reference, "mos": 0.0})
        distorted.attrs["pixels"] = (320, 320)
        tables = {**tables, "distorted": distorted}
    split = partial(parts_of, seed=values["SEED"])
    counts = {k: split(frame.assign(split=None)).value_counts() for k, frame in tables.items()}
    frozen, side, released = values["FROZEN_TRUNK"], values["SIZE"], values["MIXING"] == "released"
    trunk = f"{values['BACKBONE']} {values['CHANNELS'] or ''}".rstrip()

    def build(names: list[str], variant: str, n_layers: int) -> nn.Module:
        options = {"backbone": values["BACKBONE"], "channels": values["CHANNELS"] or None}
        model = MonotonicIQA(names, variant=variant, n_layers=n_layers, **options)
        if frozen:
            model.trunk = nn.Identity()
        return model

    def koncept() -> nn.Module:
        network = KonCept(values["KONCEPT_BACKBONE"])
        if frozen:
            network.image_branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return network

    def size(backbone: str, height: int, width: int) -> tuple[int, ...]:
        if not frozen:
            return 3, height, width
        options = {"pretrained": "random", "num_classes": 0, "global_pool": ""}
        with torch.device("meta"), torch.no_grad():  # maps of the trunk are computed once
            maps = create_backbone(backbone, **options).eval()(torch.empty(1, 3, height, width))
        return tuple(maps.shape[1:])

    def inputs(n_sets: int, network: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
        return images, torch.arange(len(images), device=images.device) % n_sets

    n_test = sum(int(count["test"]) for count in counts.values())
    of_crops = size(values["BACKBONE"], side, side)
    long, crop = values["SIDES"][1], 3 * side**2
    whole = {k: stored_bytes(t.attrs["pixels"], long) / crop for k, t in tables.items()}
    singles = [f"single:{name}" for name in tables]
    for method in [m for one in values["METHODS"] for m in (singles if one == "single" else [one])]:
        count = values["OVERRIDES"].get(method, {}).get("N_SPLITS", values["N_SPLITS"])
        if method == "KonCept512":
            own = {key: values[f"KONCEPT_{key}"] for key in ("EPOCHS", "BATCH_SIZE")}
            backbone, of_one = values["KONCEPT_BACKBONE"], counts["koniq10k"]
            how = {"network": f"KonCept {backbone}", "inputs": partial(inputs, 1)}
            how |= {"build": koncept, "size": size(backbone, *values["KONCEPT_SIZE"])}
            n, watched = int(of_one["training"]), int(of_one["validation"])
            yield _training(values | own, method, n, watched, n_test, count=count, **how)
            continue
        variant, _, depth = method.partition(" ")[0].partition("-")
        variant = variant if variant in VARIANTS else "identity"
        names = [method.removeprefix("single:")] if method in singles else list(tables)
        sizes = [int(counts[name]["training"]) for name in names]
        n = max(sizes) * len(names) if released else sum(sizes)
        batch = values["BATCH_SIZE"] * (len(names) if released else 1)
        n_watched = [int(counts[name]["validation"]) for name in names]
        how = {"network": f"{variant}-{depth or 5} {trunk}", "inputs": partial(inputs, len(names))}
        how |= {"build": partial(build, names, variant, int(depth or 5)), "size": of_crops}
        watched = sum(n_watched), n_test
        one = _training(values, method, n, *watched, batch=batch, count=count, **how)
        # images are predicted whole
        share = 1.0 if frozen else float(np.average([whole[k] for k in names], weights=n_watched))
        steps = one.images // n * math.ceil(n / batch)
        yield replace(one, steps=steps, watched=round(share * one.watched))


def _layers(values: Values, tables: Tables) -> Iterator[Job | Disk]:
    frame, parts = quality.join_sets(tables), quality.split_sets(tables, seed=values["SEED"])
    tapped, tuned, modes = (values[k] for k in ("NETWORKS_TAPPED", "NETWORKS_TUNED", "TUNING"))
    final, selection = values["FINAL"][0], values["DATASETS"][0]
    n_crops, n_selection = values["N_CROPS"], int((frame["dataset"] == selection).sum())
    wanted = [(name, mode, [selection], False) for mode in modes for name in tuned]
    passes = Counter(dict.fromkeys(tapped, n_selection))
    passes.update({name: len(modes) * n_selection for name in tuned})
    for rows in quality.paper_sets(frame).values():
        own = [str(frame.loc[rows[0], "dataset"])] if len(rows) else []
        wanted += [(final, mode, own, False) for mode in modes if own]
        n_test = int((parts[rows] == "test").sum())
        passes[final] += len(modes) * (len(rows) - n_test + n_crops * n_test)
    for _, members in quality.CATEGORIES.values():
        train, others = quality.other_sets(frame, members)
        if others:
            wanted += [(final, mode, members, True) for mode in modes]
            n = sum(len(train) + n_crops * len(rows) for rows in others.values())
            passes[final] += len(modes) * n

    def size(name: str, key: str) -> tuple[int, ...]:
        whole = values["TAP_SIZE"] if key == "SIDE" else 0
        return (3, *(whole or values[key] or NETWORKS[name].side,) * 2)

    def tuned_network(name: str) -> nn.Module:
        return quality.ScoreNetwork(create_network(name, pretrained="random"))

    trained = {}
    for name, mode, sets, whole in wanted:
        rows, validation = quality.tuning_rows(frame, parts, mode, sets, whole=whole)
        trained.setdefault((name, rows.tobytes()), (mode, len(rows), len(validation)))
    groups = Counter((name, *facts) for (name, _), facts in trained.items())
    for (name, mode, n, n_validation), count in groups.items():
        n_steps = (values | values["OVERRIDES"].get(name, {}))["N_STEPS"]  # per epoch
        seen = n_steps * values["BATCH_SIZE"] if n_steps else n
        how = {"name": f"{name}, {mode}", "network": name, "size": size(name, "TUNING_SIDE")}
        how |= {"count": count, "build": partial(tuned_network, name)}
        yield _training(values, name, seen, n_validation, **how)
    for name, n in passes.items():
        build = partial(create_network, name, pretrained="random")
        how = {"network": name, "build": build, "size": size(name, "SIDE")}
        yield Job(name=f"{name}, layers and crops", batch=32, images=n, **how)
    layers = {name: layers_of(name, choice=values["TAPS"]) for name in tapped}
    sizes = {name: [row.size for row in rows] for name, rows in layers.items()}
    use = disk_use(n_selection, sizes)
    of_tuned = disk_use(n_selection, {name: sizes[name] for name in tuned})["grams"]
    yield Disk("Gram matrices", use["grams"] + len(modes) * of_tuned)
    yield Disk("activations of one network, for a moment", use["pass"], kept=False)


def _heads(values: Values, tables: Tables) -> Iterator[Job | Disk]:
    frame, name = tables[values["DATASET"]], values["ENCODER"]
    n = int((parts_of(frame, values["SEED"]) == "training").sum())
    encoder = partial(ImageEncoder, name, library=values["LIBRARY"], pooling=values["POOLING"])
    with torch.device("meta"):
        width = encoder().n_features
    how = {"network": name, "build": encoder, "size": (3, *(values["IMAGE_SIZE"],) * 2)}
    yield Job(name="encoder", batch=32, images=len(frame), **how)

    def described(size: Sequence[int], form: str) -> dict[str, Any]:
        shape = dict(zip(("width", "depth", "neck"), size, strict=True))
        build, name = partial(ClipHead, width, **shape, form=form), "-".join(map(str, size))
        return {"network": f"head {name}", "size": (width,), "saved": False, "build": build}

    panel, usual = values["PANEL"], described(values["HEAD"], values["HEAD_FORM"])
    for method in values["METHODS"]:
        count = values["OVERRIDES"].get(method, {}).get("N_SEEDS", values["N_SEEDS"])
        yield _training(values, method, n, len(frame), count=count, **usual)
    tried = [dict(zip(panel, one, strict=True)) for one in itertools.product(*panel.values())]
    heads = Counter((tuple(own["size"]), own["form"]) for own in tried if own)
    for head, count in heads.items():  # vanilla and LDS
        how = described(*head) | {"count": 2 * values["N_SEEDS"] * count}
        yield _training(values, f"panel, {head[1]}", n, len(frame), **how)
    yield Disk("features", 4 * width * len(frame))


def _distillation(values: Values, tables: Tables) -> Iterator[Job | Disk]:
    parts = {name: parts_of(frame, values["SEED"]) for name, frame in tables.items()}
    student, control = values["STUDENT_PLAN"], values["CONTROL_PLAN"]
    kept, main, files = values["N_KEPT"], values["N_UNLABELLED"][-1], values["STREAM"]
    frozen, trunk, shape = values["FREEZE_TRUNK"], values["BACKBONE"], values["STUDENT"]
    how: dict[str, Any] = {"precision": values["PRECISION"], "compile": values["COMPILE"]}

    def koncept(widths: Any, size: Any) -> dict[str, Any]:
        def build() -> nn.Module:
            network = KonCept(trunk, widths=tuple(widths))
            network.image_branch.trunk.requires_grad_(not frozen)
            return network

        name = f"KonCept {trunk} {'-'.join(map(str, widths))}{' frozen' * frozen}"
        return {"build": build, "size": (3, *size), "network": name}

    def lesson(name: str, plan: list[Any], watched: int, **more: Any) -> Job:
        steps, batch, _, _, looks = plan
        counts = {"steps": steps, "batch": batch, "images": steps * batch}
        return Job(name=name, watched=looks * watched, **counts, **how, **more)

    teaching, chosen = koncept(values["HEAD"], values["TEACHER_SIZE"]), {"own": ([], ())}
    if not values["TEACHER"]:
        chosen = choose_teachers(list(tables), values["TEACHERS"])
        seen = Counter(
            values["N_LABELLED"] or sum(int(parts[name].isin(which).sum()) for name in sets)
            for sets, which in chosen.values()
        )
        with torch.device("meta"):
            width = KonCept(trunk).image_branch.n_features

        def head() -> nn.Module:
            return PooledHead(KonCept(trunk, widths=tuple(values["HEAD"])))

        of_head = {"network": f"head of KonCept {trunk}", "build": head, "size": (width,)}
        how_taught = {"plan": values["TEACHER_PLAN"], **(of_head if frozen else teaching)}
        for n, count in seen.items():
            yield lesson(f"teacher of {n:,} scores", watched=n, count=count, **how_taught)
    everywhere = {**teaching, "precision": values["PRECISION"]}
    everywhere["images"] = sum(map(len, tables.values()))
    yield Job(name="features of all scored images", batch=16, **everywhere)
    labelling = {**everywhere, "batch": 64, "count": len(chosen), "images": kept + main}
    yield Job(name="teacher passes", files=True, **labelling)
    imqnet = {"network": f"IMQNet width {shape['width']:g}", "size": (3, *values["CROP"])}
    imqnet |= {"build": partial(IMQNet, **shape), "count": values["N_SEEDS"]}
    few = values["N_LABELLED"] or int((parts[values["LABELLED"][0]] == "training").sum())
    n = (len(values["N_UNLABELLED"]) + len(chosen) - 1) * values["N_SEEDS"]
    yield lesson("distilled", student, 2 * kept, **imqnet | {"count": n, "files": files})
    rival = koncept((512, 256, 64), values["CONTROL_SIZE"]) | {"count": values["N_SEEDS"]}
    shorter = [max(round(student[0] * few / main / student[4]), 1) * student[4], *student[1:]]
    yield lesson("direct, same passes", shorter, 2 * kept, **imqnet)
    yield lesson("direct, same steps", student, 2 * kept, **imqnet)
    yield lesson("direct or tuned", control, 2 * kept, **imqnet)
    yield lesson("pretrained, direct", control, 2 * kept, **rival)
    yield lesson("pretrained, distilled", control, 2 * kept, files=files, **rival)


JOBS = {"02": _sampling, "03": _mixing, "04": _layers, "05": _heads, "06": _distillation}


def checkpoint_bytes(saved: Iterable[tuple[Job, int, int]]) -> int:
    """Count the checkpoints of jobs, each with the bytes of its weights and its trained numbers.

    A finished training keeps its weights; one at a time has two moments and other weights besides.
    """
    training = [one for one in saved if one[0].steps and one[0].saved]
    finished = sum(job.count * weights for job, weights, _ in training)
    return finished + max((weights + 8 * trained for _, weights, trained in training), default=0)


def disk_of(stem: str, values: Values, tables: Tables) -> list[Disk]:
    """List what the networks of a notebook leave on the disk; none of them is applied to images."""
    found, saved = [], []
    known: dict[str, tuple[int, int]] = {}
    for job in JOBS[stem[:2]](values, tables):
        if isinstance(job, Disk):
            found.append(job)
        elif job.steps and job.saved:
            if job.network not in known:
                with nullcontext() if job.frozen else torch.device("meta"):
                    network = job.build()
                owned = [*network.parameters(), *network.buffers()]
                weights = sum(tensor.numel() * tensor.element_size() for tensor in owned)
                trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
                known[job.network] = weights, trained
            saved.append((job, *known[job.network]))
    return [*found, Disk("checkpoints", checkpoint_bytes(saved))]


def to_fetch(values: Values) -> list[str]:
    """Name the networks whose weights come from the hub and are not in its caches on this disk."""
    if values["PRETRAINED"] != "hub":
        return []
    names = [values.get(key) for key in ("BACKBONE", "KONCEPT_BACKBONE", "ENCODER")]
    names += [*values.get("NETWORKS_TAPPED", []), *values.get("FINAL", [])[:1]]
    return [name for name in dict.fromkeys(filter(None, names)) if not _is_cached(name)]


def _is_cached(name: str) -> bool:
    row = NETWORKS.get(name)
    if row is not None and row.library == "torchvision":
        url = torchvision.models.get_model_weights(row.model).IMAGENET1K_V1.url
    else:
        config = timm.get_pretrained_cfg(name if row is None else row.model)
        if config and config.hf_hub_id:
            files = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")
            return any(isinstance(try_to_load_from_cache(config.hf_hub_id, f), str) for f in files)
        url = (config and config.url) or "unknown"
    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name).is_file()

"""What each notebook trains and keeps, as its parameters and the score tables say.

One function per notebook lists :class:`Job` s and :class:`Disk` s; :mod:`iqa_utils.workshop.plan`
counts and times them, :mod:`iqa_utils.workshop.true_size` runs them for a few steps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from iqa_utils.splits import official_or_content_split
from iqa_utils.workshop.footprint import Job
from iqa_utils.workshop.plan import Tables, Values, stored_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn


class Disk(NamedTuple):
    """Bytes that a run keeps, or needs for a moment only."""

    name: str
    size: int
    kept: bool = True


def parts_of(frame: pd.DataFrame, seed: int) -> pd.Series:
    """Split as the notebooks do: the official split, or one by content."""
    if frame.empty:
        return frame["split"]
    return official_or_content_split(frame, seed=seed)


def n_batches(n: int, batch_size: int) -> int:
    """Count the batches of an epoch: a lone last image joins the batch before it."""
    return max(n // batch_size + (n % batch_size > 1), 1)


def sampling_runs(values: Values) -> list[tuple[str, dict[str, str], str, int, tuple[int, ...]]]:
    """List the trainings of notebook 02: method, scenario, criterion, seed, size.

    A training that two tables show is listed twice, as in the run's history.
    """
    from iqa_utils.samplers import METHODS

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
    own = values.get("OVERRIDES", {})
    return [
        (method, scenario, values[select], seed, size)
        for scenarios, n, select, size in groups
        for method, scenario in scenarios.items()
        for seed in range(own.get(method, {}).get("N_RUNS", n))
    ]


def _sampling(values: Values, tables: Tables) -> Iterator[Job | Disk]:
    from iqa_utils.models.dual_xception import DualXception
    from iqa_utils.models.koncept import KonCept
    from iqa_utils.samplers import METHODS, range_quotas

    frame = tables[values["DATASET"]]
    parts = parts_of(frame, 0)
    mos = frame["mos"][parts == "training"] * values["MOS_FACTOR"]
    counts = np.histogram(mos, values["EDGES"])[0]
    quota = {
        name: int(range_quotas(counts, name, threshold=values["THRESHOLD"]).sum())
        for name in METHODS
    }
    frozen = values["FROZEN"] or None

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

    overrides, unique = values.get("OVERRIDES", {}), {}
    by_sampler = set(METHODS) - {"none"} if values["EQUAL_STEPS"] else set()
    for method, scenario, select, seed, size in sampling_runs(values):
        own = {k: v for k, v in overrides.get(method, {}).items() if k != "N_RUNS"}
        key = (*scenario.values(), size, str(own), select, seed, method in by_sampler)
        unique.setdefault(key, (method, own, scenario, size))
    settings = {method: one for method, *one in unique.values()}
    for method, count in Counter(method for method, *_ in unique.values()).items():
        own, scenario, size = settings[method]
        network, images = scenario["network"], quota[scenario["sampler"]]
        epochs = own.get("EPOCHS", values["EPOCHS"])
        if method in by_sampler:  # as many steps as without sampling
            epochs = max(epochs, round(values["EPOCHS"] * len(mos) / images))
        trunk = values["KONCEPT_BACKBONE" if network == "koncept" else "BACKBONE"]
        yield Job(
            name=method,
            network=f"{network} {trunk} {values['PLANE_SIZE']} {frozen or ''}".rstrip(),
            build=partial(build, network),
            count=count,
            inputs=inputs,
            size=(3, *size),
            batch=values["BATCH_SIZE"],
            images=epochs * images,
            steps=epochs * n_batches(images, values["BATCH_SIZE"]),
            frozen=bool(frozen),
            watched=epochs * int((parts == "validation").sum()) + int((parts == "test").sum()),
            precision=own.get("PRECISION", values["PRECISION"]),
            compile=own.get("COMPILE", values["COMPILE"]),
        )


def _mixing(values: Values, tables: Tables) -> Iterator[Job | Disk]:
    from iqa_utils.models.monotonic import VARIANTS, MonotonicIQA

    if values["SUBSET_WARPS"]:  # one set cut into subsets of like size
        frame = next(iter(tables.values()))
        subset = frame["image"].map(lambda image: Path(image).name.split(" ")[0].lower())
        tables = {name: frame[subset == name] for name in values["SUBSET_WARPS"]}
        tables = {
            k: t if len(t) else frame.iloc[i :: len(tables)]
            for i, (k, t) in enumerate(tables.items())
        }
    counts = {
        name: parts_of(frame, values["SEED"]).value_counts()
        for name, frame in ((k, t.assign(split=None)) for k, t in tables.items())
    }
    trunk = f"{values['BACKBONE']} {values['CHANNELS'] or ''}".rstrip()
    frozen, side, released = values["FROZEN_TRUNK"], values["SIZE"], values["MIXING"] == "released"

    def build(names: list[str], variant: str, n_layers: int) -> nn.Module:
        options = {"backbone": values["BACKBONE"], "channels": values["CHANNELS"]}
        model = MonotonicIQA(names, variant=variant, n_layers=n_layers, **options)
        if frozen:
            model.trunk = torch.nn.Identity()
        return model

    size: tuple[int, ...] = (3, side, side)
    if frozen:  # maps of the trunk are computed once
        with torch.device("meta"), torch.no_grad():
            maps = MonotonicIQA(["any"], backbone=values["BACKBONE"]).trunk.eval()
            size = tuple(maps(torch.empty(1, *size)).shape[1:])

    def inputs(n_sets: int, network: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
        return images, torch.arange(len(images), device=images.device) % n_sets

    singles = [f"single:{name}" for name in tables]
    for method in [m for one in values["METHODS"] for m in (singles if one == "single" else [one])]:
        variant, _, depth = method.partition("-")
        variant = variant if variant in VARIANTS else "identity"
        names = [method.removeprefix("single:")] if method in singles else list(tables)
        sizes = [int(counts[name]["training"]) for name in names]
        images = max(sizes) * len(names) if released else sum(sizes)
        batch_size = values["BATCH_SIZE"] * (len(names) if released else 1)
        own = values.get("OVERRIDES", {}).get(method, {})
        epochs = own.get("EPOCHS", values["EPOCHS"])
        whole = 1.0 if frozen else _whole_images(tables, counts, names) / side**2
        yield Job(
            name=method,
            network=f"{variant}-{depth or 5} {trunk}",
            build=partial(build, names, variant, int(depth or 5)),
            batch=batch_size,
            size=size,
            inputs=partial(inputs, len(names)),
            images=epochs * images,
            steps=epochs * math.ceil(images / batch_size),
            frozen=False,
            count=own.get("N_SPLITS", values["N_SPLITS"]),
            watched=round(
                whole
                * (
                    epochs * sum(int(counts[name]["validation"]) for name in names)
                    + sum(int(c["test"]) for c in counts.values())
                )
            ),
            precision=own.get("PRECISION", values["PRECISION"]),
            compile=own.get("COMPILE", False),
        )


def _whole_images(tables: Tables, counts: Mapping[str, Any], names: list[str]) -> float:
    """Return the mean pixels of the whole images that are predicted, at most 768 on a side."""
    n = [int(counts[name]["validation"]) for name in names]
    sizes = [stored_bytes(tables[name].attrs["pixels"], 768) / 3 for name in names]
    return float(np.average(sizes, weights=n))


def _layers(values: Values, tables: Tables) -> Iterator[Job | Disk]:
    from iqa_utils import deep_quality as quality
    from iqa_utils.features.grams import disk_use
    from iqa_utils.features.layers import NETWORKS, create_network, layers_of

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
        return (3, *(values[key] or NETWORKS[name].side,) * 2)

    trained = {}
    for name, mode, sets, whole in wanted:
        rows, validation = quality.tuning_rows(frame, parts, mode, sets, whole=whole)
        trained.setdefault((name, rows.tobytes()), (mode, len(rows), len(validation)))
    groups = Counter((name, *facts) for (name, _), facts in trained.items())
    for (name, mode, n, n_validation), count in groups.items():
        own = values.get("OVERRIDES", {}).get(name, {})
        epochs = own.get("EPOCHS", values["EPOCHS"])
        if values["N_STEPS"]:  # per epoch
            n = min(n, values["N_STEPS"] * values["BATCH_SIZE"])
        steps = epochs * n_batches(n, values["BATCH_SIZE"])
        yield Job(
            name=f"{name}, {mode}",
            network=name,
            count=count,
            batch=values["BATCH_SIZE"],
            build=lambda name=name: quality.ScoreNetwork(create_network(name, pretrained="random")),
            size=size(name, "TUNING_SIDE"),
            images=epochs * n,
            steps=steps,
            watched=epochs * n_validation,
            precision=own.get("PRECISION", values["PRECISION"]),
            compile=own.get("COMPILE", values.get("COMPILE", False)),
        )
    for name, n in passes.items():
        yield Job(
            name=f"{name}, layers and crops",
            network=name,
            batch=32,
            images=n,
            build=partial(create_network, name, pretrained="random"),
            size=size(name, "SIDE"),
        )
    sizes = {name: [layer.size for layer in layers_of(name)] for name in tapped}
    use = disk_use(n_selection, sizes)
    of_tuned = disk_use(n_selection, {name: sizes[name] for name in tuned})["grams"]
    yield Disk("Gram matrices", use["grams"] + len(modes) * of_tuned)
    yield Disk("activations of one network, for a moment", use["pass"], kept=False)


def _heads(values: Values, tables: Tables) -> Iterator[Job | Disk]:
    from iqa_utils.models.clip_head import ClipHead, ImageEncoder

    frame = tables[values["DATASET"]]
    parts, side = parts_of(frame, values["SEED"]), values["IMAGE_SIZE"]
    options = {"library": values["LIBRARY"], "pooling": values["POOLING"]}
    encoder = partial(ImageEncoder, values["ENCODER"], **options)
    with torch.device("meta"):
        width = encoder().n_features
    yield Job(
        name="encoder",
        network=values["ENCODER"],
        build=encoder,
        size=(3, side, side),
        batch=32,
        images=len(frame),
    )
    hidden, depth, neck = values["HEAD"]
    n, own = int((parts == "training").sum()), values.get("OVERRIDES", {})
    steps = n_batches(n, values["BATCH_SIZE"])
    for name in values["METHODS"]:
        changed = own.get(name, {})
        epochs = changed.get("EPOCHS", values["EPOCHS"])
        yield Job(
            name=name,
            network=f"head {hidden}-{depth}-{neck}",
            build=partial(ClipHead, width, width=hidden, depth=depth, neck=neck),
            size=(width,),
            batch=values["BATCH_SIZE"],
            count=changed.get("N_SEEDS", values["N_SEEDS"]),
            images=epochs * n,
            steps=epochs * steps,
            watched=epochs * len(frame),
            saved=False,
        )
    yield Disk("features", 4 * width * len(frame))


def _distillation(values: Values, tables: Tables) -> Iterator[Job | Disk]:
    from iqa_utils.distill import choose_teachers
    from iqa_utils.models.imqnet import IMQNet
    from iqa_utils.models.koncept import KonCept, PooledHead

    parts = {name: parts_of(frame, values["SEED"]) for name, frame in tables.items()}
    teacher, student, control = (
        values[key] for key in ("TEACHER_PLAN", "STUDENT_PLAN", "CONTROL_PLAN")
    )
    kept, main, files = values["N_KEPT"], values["N_UNLABELLED"][-1], values["STREAM"]
    precision, compiled = values.get("PRECISION", "fp32"), values.get("COMPILE", False)
    how: dict[str, Any] = {"precision": precision, "compile": compiled}
    frozen, trunk = values["FREEZE_TRUNK"], values["BACKBONE"]

    def koncept(widths: Any, size: Any) -> dict[str, Any]:
        def build() -> nn.Module:
            network = KonCept(trunk, widths=tuple(widths))
            network.image_branch.trunk.requires_grad_(not frozen)
            return network

        name = f"KonCept {trunk} {'-'.join(map(str, widths))}{' frozen' * frozen}"
        return {"build": build, "size": (3, *size), "network": name}

    def lesson(name: str, plan: list[Any], watched: int, **more: Any) -> Job:
        steps, batch_size, _, _, looks = plan
        counts = {"batch": batch_size, "images": steps * batch_size}
        return Job(name=name, steps=steps, watched=looks * watched, **counts, **more)

    teaching = koncept(values["HEAD"], values["TEACHER_SIZE"])
    known = sum(len(frame) for frame in tables.values())
    chosen = {"own": ([], ())}
    if not values["TEACHER"]:
        chosen = choose_teachers(list(tables), values["TEACHERS"])
        seen = Counter(
            sum(int(parts[name].isin(which).sum()) for name in sets)
            for sets, which in chosen.values()
        )
        if values.get("N_LABELLED"):
            seen = Counter({values["N_LABELLED"]: len(chosen)})
        training = {**teaching, **how}
        if frozen:
            with torch.device("meta"):
                width = KonCept(trunk).image_branch.n_features

            def head() -> nn.Module:
                return PooledHead(KonCept(trunk, widths=tuple(values["HEAD"])))

            training |= {"network": f"head of KonCept {trunk}", "build": head}
            training["size"] = (width,)
        for n, count in seen.items():
            yield lesson(f"teacher of {n:,} scores", teacher, n, count=count, **training)
    everywhere = {**teaching, "batch": 16, "precision": precision}
    yield Job(name="features of all scored images", images=known, **everywhere)
    labelling = {**everywhere, "batch": 64, "count": len(chosen), "files": True}
    yield Job(name="teacher passes", images=kept + main, **labelling)
    imqnet = {
        "build": partial(IMQNet, **values["STUDENT"]),
        "network": f"IMQNet {values['STUDENT']}",
        "size": (3, *values["CROP"]),
        **how,
    }
    few = int((parts[values["LABELLED"][0]] == "training").sum())
    few, n = values.get("N_LABELLED") or few, len(values["N_UNLABELLED"]) + len(chosen) - 1
    yield lesson("distilled", student, 2 * kept, count=n, files=files, **imqnet)
    looks = student[4]
    shorter = [max(round(student[0] * few / main / looks), 1) * looks, *student[1:]]
    for name, plan in (("same passes", shorter), ("same steps", student), ("tuned", control)):
        yield lesson(
            f"direct or {name}" if name == "tuned" else f"direct, {name}", plan, 2 * kept, **imqnet
        )
    rival = koncept((512, 256, 64), values["CONTROL_SIZE"])
    yield lesson("pretrained, direct", control, 2 * kept, **rival, **how)
    yield lesson("pretrained, distilled", control, 2 * kept, files=files, **rival, **how)


JOBS: dict[str, Callable[[Values, Tables], Iterator[Job | Disk]]] = {
    "02": _sampling,
    "03": _mixing,
    "04": _layers,
    "05": _heads,
    "06": _distillation,
}


def to_fetch(values: Values) -> list[str]:
    """Name the networks whose weights come from the hub and are not in its caches on this disk."""
    names = [values.get(key) for key in ("BACKBONE", "KONCEPT_BACKBONE", "ENCODER")]
    names += [*values.get("NETWORKS_TAPPED", []), *values.get("FINAL", [])[:1]]
    wanted = dict.fromkeys(filter(None, names if values["PRETRAINED"] == "hub" else []))
    return [name for name in wanted if not _is_cached(name)]


def _is_cached(name: str) -> bool:
    import timm
    import torchvision
    from huggingface_hub import try_to_load_from_cache

    from iqa_utils.features.layers import NETWORKS

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

"""Who teaches: networks trained on chosen scores, and what may be tested on them afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import Resize

from iqa_utils.distill import Teacher
from iqa_utils.features import frozen_features
from iqa_utils.images import ImageStore
from iqa_utils.images.decode_once import Fit
from iqa_utils.models.koncept import KonCept
from iqa_utils.studies.transfer import Plan, announce, train
from iqa_utils.training import FitResult, freeze_batch_statistics, save_model
from iqa_utils.training.batches import store_batches, tensor_batches

VARIANTS = {"training": "held-out", "all": "as written", "without": "leave one out", "own": "own"}

# height and width of typical photographs; FLIVE's differ, those of HTID and NRTID are not known
PHOTOGRAPHS = {"koniq10k": (768, 1024), "flive": (500, 640), "livec": (500, 500)}
LARGE = (3000, 4000)


def store_bytes(
    counts: Mapping[str, int], *, teacher_size: Sequence[int], short_side: int
) -> dict[str, int]:
    """Work out what the decoded labelled images of notebook 06 take on disk.

    Args:
        counts: Images by data set.
        teacher_size: ``TEACHER_SIZE``.
        short_side: Of the images that students are tested on, never enlarged: ``CROP[0]``.

    Returns:
        Bytes of the store at the teacher's size (``"squashed"``) and of that of whole images.
    """
    fits = {
        "squashed": Fit(tuple(teacher_size), "squash", "bilinear"),
        "whole": Fit(short_side, "shrink_short_side", "bilinear"),
    }
    return {
        name: sum(
            n * math.prod(fit.target(*PHOTOGRAPHS.get(dataset, LARGE))) * 3
            for dataset, n in counts.items()
        )
        for name, fit in fits.items()
    }


def title(backbone: str) -> str:
    """Return what to add to the paper's name of a network whose trunk is another one."""
    return "" if backbone == "inception_resnet_v2" else f" ({backbone})"


def student_title(width: float) -> str:
    """Return the paper's name of the student, with its width where that is not the planned one."""
    return "IMQNet" if width == 1 else f"IMQNet (width {width:.3g})"


class PooledHead(nn.Module):
    """The head of a KonCept network on features of its trunk that were computed before.

    Args:
        network: Shares its head: training this trains that.
    """

    def __init__(self, network: KonCept) -> None:
        super().__init__()
        self.head, self.score = network.head, network.score

    def forward(self, features: Tensor) -> Tensor:
        """Return scores (B,) of pooled features (B, F)."""
        return self.score(features)


def train_teacher(
    store: ImageStore,
    rows: np.ndarray,
    scores: np.ndarray,
    plan: Plan,
    *,
    backbone: str,
    pretrained: str | Path | None,
    freeze_trunk: bool,
    saw: Sequence[str],
    cache_dir: Path,
    path: Path,
    training_data: Mapping[str, Any],
    device: torch.device | str = "cpu",
    widths: tuple[int, ...] = (2048, 1024, 256),
    **options: Any,
) -> tuple[Teacher, FitResult]:
    """Train a KonCept network on the scores of some rows and save it as a model file.

    Args:
        store: Images squashed to the teacher's input size.
        rows: Rows to learn from; never another one's score is touched.
        scores: Shape (N,).
        plan: Steps and rates; its seed draws the initial weights too.
        backbone: timm name of the trunk.
        pretrained: Its weights, as :func:`iqa_utils.backbones.create_backbone`.
        freeze_trunk: Encode every image once and train the head alone.
        saw: ``"dataset/part"`` of the rows, kept with the teacher.
        cache_dir: Of features.
        path: Of the model file, whose name without its ending is that of the training.
        training_data: As :func:`iqa_utils.training.save_model`.
        device: Where to train.
        widths: Of the three layers of the head.
        **options: As :func:`train`; a curve ``seen`` of the rows is measured.

    Returns:
        The teacher, as any process reads it from the file, and the history of its training.
    """
    torch.manual_seed(plan.seed)
    network = KonCept(
        backbone,
        widths=widths,
        mos_mean=float(scores[rows].mean()),
        mos_std=float(scores[rows].std()),
        pretrained=pretrained,
    ).to(device)
    trunk = network.image_branch.trunk
    own = {key: tuple(trunk.pretrained_cfg[key]) for key in ("mean", "std")}
    config = {"teacher": path.stem, "pixels": store.key, "frozen": freeze_trunk}
    options = {"watch": {"seen": rows}, "config": config, "progress": False, **options}
    announce(path.stem, len(rows), plan, options)
    if freeze_trunk:
        trunk.requires_grad_(False)
        features = frozen_features(trunk, store, pooling="mean", cache_dir=cache_dir, **own)
        stream = partial(tensor_batches, torch.from_numpy(features), device=device)
        options = {**options, "augment": None}
        result = train(PooledHead(network), stream, rows, scores, plan, **options)
    else:
        stream = partial(store_batches, store, device=device, **own)
        result = train(network, stream, rows, scores, plan, channels_last=True, **options)
    treatment = {"size": store.sizes[0].tolist(), "fit": "squash", "resampler": "bilinear", **own}
    metadata = {"preprocessing": treatment, "training_data": {**training_data, "images": len(rows)}}
    metadata |= {"scores_seen": list(saw), "metrics": {"SRCC seen": result.best["seen_srcc"]}}
    return Teacher.load(save_model(path, network, metadata)), result


def choose_teachers(names: Sequence[str], kinds: Sequence[str]) -> dict[str, tuple[list, tuple]]:
    """List which sets and parts each teacher sees.

    Args:
        names: Labelled data sets.
        kinds: ``"training"`` sees training parts, ``"all"`` every score (as the paper's teacher),
            ``"without"`` stands for one teacher a set that sees every score of the others (K5).

    Returns:
        Name of the teacher to its sets and parts, in the order of the kinds.

    Raises:
        ValueError: If a kind is unknown.
    """
    everything = ("training", "validation", "test")
    without = {f"without {x}": ([s for s in names if s != x], everything) for x in names}
    known = {
        "training": {"training": (list(names), ("training",))},
        "all": {"all": (list(names), everything)},
        "without": without if len(names) > 1 else {},
    }
    unknown = sorted(set(kinds) - set(known))
    if unknown or not kinds:
        raise ValueError(f"teachers must be some of {sorted(known)}, got {list(kinds)}")
    return {name: seen for kind in kinds for name, seen in known[kind].items()}


def tested_rows(labelled: pd.DataFrame, teacher: str) -> np.ndarray:
    """Return the rows a teacher of :func:`choose_teachers` and its student are tested on.

    Args:
        labelled: Table of :func:`iqa_utils.distill.merging.join_sets`.
        teacher: Its name.

    Returns:
        All judged rows of the left-out set for ``"without X"``, else every set's test part.
    """
    judged = labelled["part"] != "unused"
    if teacher.startswith("without "):
        judged &= labelled["dataset"] == teacher.removeprefix("without ")
    else:
        judged = labelled["part"] == "test"
    return np.flatnonzero(judged)


def marks(table: pd.DataFrame, taught: Mapping[str, Teacher]) -> list[str]:
    """Say for every result whether the teacher behind it saw the scores it is tested on.

    Args:
        table: Columns ``variant`` and ``dataset``; a row without variant has no teacher.
        taught: Teachers by the names of :func:`choose_teachers`, or ``"own"``.

    Returns:
        ``"leaky"`` or ``"held-out"``; an aggregate over sets is leaky where one of them is.
    """
    kinds = {variant: kind for kind, variant in VARIANTS.items()}
    found = []
    for variant, dataset in zip(table["variant"], table["dataset"], strict=True):
        kind = kinds.get(variant, "")
        teacher = taught.get(f"without {dataset}" if kind == "without" else kind)
        part = "all" if kind == "without" else "test"
        sets = [dataset]
        if dataset in ("weighted", "average") and teacher:
            sets = sorted({known.partition("/")[0] for known in teacher.saw})
        leaks = teacher and any(teacher.knows(one, part) == "leaky" for one in sets)
        found.append("leaky" if leaks else "held-out")
    return found


def pretrained_student(
    backbone: str,
    size: Sequence[int],
    learned: np.ndarray,
    *,
    pretrained: str | Path | None,
    freeze_trunk: bool,
) -> nn.Module:
    """Build a student with a trunk from another task, for images of any size.

    Args:
        backbone: timm name.
        size: Height and width that images are resized to, antialiased.
        learned: Scores it will learn; its output starts at their mean.
        pretrained: Weights of the trunk.
        freeze_trunk: Learn with the head alone.

    Returns:
        The network; its batch statistics stay those of the trunk's own training.
    """
    scale = {"mos_mean": float(learned.mean()), "mos_std": float(learned.std())}
    network = KonCept(backbone, pretrained=pretrained, widths=(512, 256, 64), **scale)
    freeze_batch_statistics(network.image_branch.trunk).requires_grad_(not freeze_trunk)
    return nn.Sequential(Resize(list(size), antialias=True), network)

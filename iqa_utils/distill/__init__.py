"""Knowledge transfer through images without scores: the teacher and its one pass over them.

A teacher scores a large set once; the scores lie in a folder of parquet files that any number of
processes fill and that outlives a kill. What is already there is verified and never repeated.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv
from tqdm.auto import tqdm

from iqa_utils.backbones import weights_hash
from iqa_utils.distill.unlabelled import UnlabelledSet, crop_batches, scan_images
from iqa_utils.images import to_float
from iqa_utils.images.decode_once import Fit
from iqa_utils.images.decoding import BadImageError
from iqa_utils.training.checkpoints import load_model
from iqa_utils.workshop.scoring import Preprocessing

PASS_COLUMNS = ("image", "score", "teacher", "crop", "bytes", "error")


@dataclass(frozen=True)
class Teacher:
    """A trained network with all that decides its scores.

    Attributes:
        model: Takes normalised RGB (B, 3, H, W), returns (B,); higher is better.
        size: Height and width that a crop is resized to (antialiased, on the device); one number
            is its shorter side, which is never enlarged; None feeds the crop as it is.
        mean: Of the normalisation, three channels, for pixels in [0, 1].
        std: As ``mean``.
        saw: Scores it was trained on, as ``"dataset/part"``.
        resampler: ``"bilinear"`` or ``"bicubic"``: that of the teacher's training.
        gain: What the network's output is multiplied by to be on the scale of its scores.
        offset: What is added then.
        hash: 16 digits of weights, architecture and preprocessing, computed here.
    """

    model: nn.Module
    size: tuple[int, int] | int | None
    mean: Sequence[float]
    std: Sequence[float]
    saw: tuple[str, ...] = ()
    resampler: str = "bilinear"
    gain: float = 1.0
    offset: float = 0.0
    hash: str = field(init=False)

    @classmethod
    def load(cls, path: Path) -> Teacher:
        """Make a teacher of a network that any notebook saved.

        Args:
            path: File of :func:`iqa_utils.training.checkpoints.save_model`.

        Returns:
            The teacher, with the size, normalisation and scores named in the file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no model of this project, needs more than pixels, or was trained on
                pixels that a whole crop cannot be turned into.
        """
        model, facts = load_model(path)
        treatment = Preprocessing(facts, path.name)
        fit = treatment.fit
        if fit.kind == "short_side":
            raise ValueError(
                f"{path.name} was trained on fit 'short_side', which enlarges small images; "
                "expected another fit"
            )
        size = fit.size if fit.kind in ("squash", "shrink_short_side") else None
        saw = facts["scores_seen"]
        saw = tuple([saw] if isinstance(saw, str) else saw)
        scale = {"gain": treatment.gain, "offset": treatment.offset}
        return cls(model, size, treatment.mean, treatment.std, saw, fit.resampler, **scale)

    def __post_init__(self) -> None:
        facts = [weights_hash(self.model), getattr(self.model, "architecture", None)]
        facts += [self.size, list(self.mean), list(self.std), self.resampler]
        if (self.gain, self.offset) != (1.0, 0.0):  # older passes knew no other scale
            facts += [self.gain, self.offset]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        object.__setattr__(self, "hash", digest)

    def pass_name(self, crop: Sequence[int]) -> str:
        """Name the folder of this teacher's pass over crops of this height and width."""
        return f"{self.hash}-{crop[0]}x{crop[1]}"

    @torch.inference_mode()
    def score(
        self, crops: Tensor, *, device: str | torch.device = "cpu", precision: str = "fp32"
    ) -> Tensor:
        """Score a batch of 8-bit crops.

        Args:
            crops: uint8 RGB, shape (B, 3, H, W).
            device: Where the network is.
            precision: ``"fp32"`` or ``"bf16"`` (autocast).

        Returns:
            float32 scores on the device, shape (B,).
        """
        crops = crops.to(device)
        size = self.size or crops.shape[-2:]
        if isinstance(size, int):
            size = Fit(size, "shrink_short_side", self.resampler).target(*crops.shape[-2:])
        if tuple(crops.shape[-2:]) != tuple(size):
            how = InterpolationMode(self.resampler)
            crops = tv.resize(crops, list(size), interpolation=how, antialias=True)
        images = to_float(crops, mean=self.mean, std=self.std)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = self.model(images).float().reshape(-1)
        return output * self.gain + self.offset

    def knows(self, dataset: str, part: str = "test") -> str:
        """Say whether a test on some scores is fair: ``"leaky"`` or ``"held-out"``.

        Args:
            dataset: Data set of the test.
            part: Part of it that is tested; ``"all"`` is leaky if any part was seen.

        Returns:
            ``"leaky"`` where the teacher was trained on scores of that part.
        """
        seen = {known.rpartition("/")[2] for known in self.saw if known.startswith(f"{dataset}/")}
        return "leaky" if seen and (part in seen or "all" in (part, *seen)) else "held-out"


def teacher_pass(
    teacher: Teacher,
    unlabelled: UnlabelledSet,
    folder: Path,
    *,
    batch_size: int = 64,
    part_size: int = 1024,
    rank: int | None = None,
    world_size: int | None = None,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    workers: int | None = None,
    on_bad_image: str = "raise",
    progress: bool = True,
    after_part: Callable[[Path], None] | None = None,
) -> tuple[int, int]:
    """Score this process's share of the images and store it, leaving out what is stored already.

    Every process of a launch takes the images whose position in the sorted list is its rank modulo
    the number of processes, so they need no communication, only the same folder. Parts are written
    under a temporary name and moved: after a kill at most one part is scored again and no image
    appears twice.

    Args:
        teacher: Its hash is written beside every score.
        unlabelled: Images and crop.
        folder: Where the parts lie; made if missing.
        batch_size: Images a forward pass.
        part_size: Images a parquet file, the most that a kill costs.
        rank: Of this process; by default ``RANK`` as torchrun sets it, or 0.
        world_size: Processes of this launch; by default ``WORLD_SIZE``, or 1.
        device: Where the network runs.
        precision: ``"fp32"`` or ``"bf16"``.
        workers: Decoding threads; by default one a core.
        on_bad_image: ``"raise"`` stores what was scored and names the image; ``"drop"`` stores it
            without a score and with the reason.
        progress: Show a bar.
        after_part: Called with the path of each part written.

    Returns:
        Images scored by this call, and those it could not decode.

    Raises:
        ValueError: If a size is below 1; or if a stored part is damaged, of another teacher or
            crop, or of an image that has changed since; the file is named, nothing is overwritten.
        BadImageError: If an image cannot be decoded and ``on_bad_image="raise"``.
    """
    rank = int(os.environ.get("RANK", 0)) if rank is None else rank
    world_size = int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be 0 to {world_size - 1}, got {rank}")
    if min(batch_size, part_size) < 1:
        raise ValueError(
            f"batch_size and part_size must be at least 1, got {batch_size} and {part_size}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    images = unlabelled.images
    stored = _read_parts(folder, unlabelled, teacher)
    mine = np.arange(rank, len(images), world_size)
    todo = mine[~images["image"].iloc[mine].isin(stored["image"]).to_numpy()]
    groups = [
        part[start : start + batch_size]
        for part in np.split(todo, np.arange(part_size, len(todo), part_size))
        for start in range(0, len(part), batch_size)
    ]
    teacher.model.to(device, memory_format=torch.channels_last).eval()
    paths = images["path"].tolist()
    batches = crop_batches(
        paths, groups, unlabelled.crop, workers=workers, on_bad_image=on_bad_image
    )
    pending: list[tuple[np.ndarray, Tensor, dict[int, str]]] = []

    def store() -> None:
        if pending:
            path = _write_part(folder, unlabelled, teacher, pending)
            pending.clear()
            if after_part:
                after_part(path)

    n_bad = 0
    bar = tqdm(total=len(todo), desc="teacher", unit="img", disable=not progress)
    try:
        for rows, crops, bad in batches:
            pending.append((rows, teacher.score(crops, device=device, precision=precision), bad))
            n_bad += len(bad)
            bar.update(len(rows) + len(bad))
            if sum(len(r) + len(b) for r, _, b in pending) >= part_size:
                store()
    finally:
        store()  # a corrupt image or an interrupt loses nothing that was scored
        bar.close()
    return len(todo) - n_bad, n_bad


def run_passes(
    teachers: Mapping[str, Teacher],
    unlabelled: UnlabelledSet,
    folder: Path,
    *,
    on_bad_image: str,
    **options: Any,
) -> tuple[UnlabelledSet, dict[str, np.ndarray]]:
    """Let every teacher score a set of images; finished passes are found by the teacher's hash.

    Args:
        teachers: By name.
        unlabelled: Images and crop.
        folder: Each pass gets a folder below, named by :meth:`Teacher.pass_name`.
        on_bad_image: As :func:`teacher_pass`; under ``"raise"`` no stored pass may have dropped an
            image either.
        **options: As :func:`teacher_pass`.

    Returns:
        The images that could be decoded, the others being among those left out, and their scores
        by teacher, each of shape (N,).

    Raises:
        BadImageError: As :func:`teacher_pass`.
    """
    passes, errors = {}, []
    for name, teacher in teachers.items():
        where = folder / teacher.pass_name(unlabelled.crop)
        n_scored, n_bad = teacher_pass(
            teacher, unlabelled, where, on_bad_image=on_bad_image, **options
        )
        teacher.model.cpu()
        passes[name], bad = read_pass(where, unlabelled, teacher)
        errors.append(bad)
        found = len(unlabelled) - n_scored - n_bad
        print(
            f"{name}: {n_scored} images scored, {len(bad)} corrupt, {found} found in {where.name}"
        )
    bad = pd.concat(errors).drop_duplicates("image")
    if len(bad) and on_bad_image == "raise":
        raise BadImageError(f"{len(bad)} images could not be decoded: {'; '.join(bad['error'])}")
    usable = unlabelled.without(bad)
    names = usable.images["image"]
    return usable, {
        name: scores.set_index("image").loc[names, "score"].to_numpy()
        for name, scores in passes.items()
    }


def label_folders(
    folders: Sequence[Path],
    teacher: Path,
    out: Path,
    *,
    crop: tuple[int, int],
    batch_size: int,
    part_size: int,
    on_bad_image: str,
) -> tuple[int, int]:
    """Run this process's share of a teacher pass on its own GPU, or the CPU: ``iqa label``.

    Args:
        folders: Images without scores.
        teacher: Model file.
        out: Where the parts lie, seen by all processes.
        crop: As :func:`scan_images`.
        batch_size: As :func:`teacher_pass`.
        part_size: As :func:`teacher_pass`.
        on_bad_image: As :func:`teacher_pass`.

    Returns:
        As :func:`teacher_pass`.
    """
    gpu = torch.cuda.is_available()
    found = scan_images(*folders, crop=crop, on_bad_image=on_bad_image)
    first = int(os.environ.get("RANK", 0)) == 0
    if first:
        for reason, n in found.left_out["reason"].value_counts().items():
            print(f"left out, {reason}: {n}")
    return teacher_pass(
        Teacher.load(teacher),
        found,
        out,
        batch_size=batch_size,
        part_size=part_size,
        device=f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if gpu else "cpu",
        precision="bf16" if gpu else "fp32",
        workers=max(len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1),
        on_bad_image=on_bad_image,
        progress=first,
    )


def read_pass(
    folder: Path, unlabelled: UnlabelledSet, teacher: Teacher
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a finished teacher pass.

    Args:
        folder: Of :func:`teacher_pass`.
        unlabelled: Images that must be there.
        teacher: Whose scores they must be.

    Returns:
        ``image``, ``path``, ``score``, ``teacher`` of the scored images in the order of the list,
        and ``image``, ``error`` of those that could not be decoded.

    Raises:
        ValueError: As :func:`teacher_pass`; or if images have no score yet, their number and the
            first few named.
    """
    stored = _read_parts(folder, unlabelled, teacher)
    table = unlabelled.images[["image", "path"]].merge(
        stored[["image", "score", "teacher", "error"]], on="image", how="left", validate="1:1"
    )
    missing = table["teacher"].isna()
    if missing.any():
        names = ", ".join(table.loc[missing, "image"].head(3))
        raise ValueError(
            f"teacher pass in {folder.name}: {missing.sum()} of {len(table)} images have no score "
            f"yet ({names}, ...); run it again, it resumes"
        )
    bad = table["score"].isna()
    scores = table.loc[~bad, ["image", "path", "score", "teacher"]].reset_index(drop=True)
    return scores, table.loc[bad, ["image", "error"]].reset_index(drop=True)


def _write_part(folder: Path, unlabelled: UnlabelledSet, teacher: Teacher, pending: list) -> Path:
    rows = np.concatenate([r for r, _, _ in pending]).astype(int)
    scores = torch.cat([s for _, s, _ in pending]).double().cpu().numpy()
    errors = {row: reason for _, _, bad in pending for row, reason in bad.items()}
    if not np.isfinite(scores).all():
        first = unlabelled.images["image"].iloc[rows[~np.isfinite(scores)][0]]
        raise ValueError(f"teacher {teacher.hash} gave {first} a score that is not finite")
    rows = np.concatenate([rows, np.array(list(errors), dtype=int)])
    part = unlabelled.images.iloc[rows][["image", "bytes"]].reset_index(drop=True)
    part["score"] = np.concatenate([scores, np.full(len(errors), np.nan)])
    part["teacher"], part["crop"] = teacher.hash, _crop_name(unlabelled)
    part["error"] = pd.Series([None] * len(scores) + list(errors.values()), dtype="string")
    digest = hashlib.sha256("\n".join(part["image"]).encode()).hexdigest()[:16]
    path = folder / f"part-{digest}.parquet"
    partial = folder / f".{path.name}.{os.getpid()}"
    part[list(PASS_COLUMNS)].to_parquet(partial, index=False)
    partial.replace(path)
    return path


def _read_parts(folder: Path, unlabelled: UnlabelledSet, teacher: Teacher) -> pd.DataFrame:
    """Read every stored part after checking that each belongs to this pass."""
    parts = [_read_part(path) for path in sorted(folder.glob("part-*.parquet"))]
    stored = pd.concat(parts) if parts else pd.DataFrame(columns=[*PASS_COLUMNS, "file"])
    now = unlabelled.images.set_index("image")["bytes"]
    checks = {
        f"is of teacher {{teacher}}, this is teacher {teacher.hash}": (
            stored["teacher"] != teacher.hash
        ),
        f"is of crop {{crop}}, this pass takes {_crop_name(unlabelled)}": (
            stored["crop"] != _crop_name(unlabelled)
        ),
        "scores {image}, which has changed since": (
            stored["image"].map(now).fillna(stored["bytes"]) != stored["bytes"]
        ),
        "scores {image} again": stored["image"].duplicated(),
    }
    for message, wrong in checks.items():
        if wrong.any():
            first = stored[wrong].iloc[0].to_dict()
            raise ValueError(
                f"{folder.name}/{first['file']} {message.format(**first)}; "
                "take another folder, or delete that file and its images are scored anew"
            )
    return stored


def _read_part(path: Path) -> pd.DataFrame:
    try:
        part = pq.read_table(path, columns=list(PASS_COLUMNS)).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path.parent.name}/{path.name} is cut short or no teacher pass ({error}); delete it "
            "and its images are scored anew"
        ) from error
    return part.assign(file=path.name)


def _crop_name(unlabelled: UnlabelledSet) -> str:
    return "x".join(map(str, unlabelled.crop))

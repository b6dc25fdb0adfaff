"""Knowledge transfer through images without scores: the teachers and their pass over the images.

A teacher scores a large set once; the scores lie in a folder of parquet files that any number of
processes fill and that outlives a kill. What is already there is verified and never repeated. How
fast each step of it is can be measured, with what follows for large sets.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from tqdm.auto import tqdm

from iqa_utils.decoding import BadImageError
from iqa_utils.distill.unlabelled import UnlabelledSet, crop_batches, scan_images
from iqa_utils.files import atomic_write
from iqa_utils.images import to_float
from iqa_utils.scorer import Scorer as Teacher
from iqa_utils.splits import SPLITS
from iqa_utils.training.batches import epoch_seed

PASS_COLUMNS = ("image", "score", "teacher", "crop", "bytes", "error")


def choose_teachers(names: Sequence[str], kinds: Sequence[str]) -> dict[str, tuple[list, tuple]]:
    """Return which data sets and splits each teacher sees, by its name.

    The kind ``"training"`` sees training sets only, ``"all"`` every score (as the paper's teacher);
    ``"without"`` stands for one teacher per data set, which sees every score of the others (K5).
    """
    without = {f"without {x}": ([s for s in names if s != x], SPLITS) for x in names}
    known = {"training": {"training": (list(names), SPLITS[:1])}}
    known |= {"all": {"all": (list(names), SPLITS)}, "without": without if names[1:] else {}}
    unknown = sorted(set(kinds) - set(known))
    if unknown or not kinds:
        raise ValueError(f"teachers must be some of {sorted(known)}, got {list(kinds)}")
    return {name: seen for kind in kinds for name, seen in known[kind].items()}


def endless_rows(rows: np.ndarray, start: int, n: int, *, seed: int) -> np.ndarray:
    """Cut a piece out of an endless sequence that shows every row once before any row again.

    Each pass over the rows is shuffled by ``(seed, pass)``; the piece has ``n`` rows from position
    ``start``, and neighbouring pieces fit together whatever their lengths.
    """
    first, last = start // len(rows), (start + n - 1) // len(rows)
    passes = [
        np.random.default_rng(epoch_seed(seed, number)).permutation(rows)
        for number in range(first, last + 1)
    ]
    return np.concatenate(passes)[start - first * len(rows) :][:n]


def teacher_pass(
    teacher: Teacher,
    unlabelled: UnlabelledSet,
    folder: Path,
    *,
    batch_size: int = 64,
    part_size: int = 1024,
    device: str = "cpu",
    precision: str = "fp32",
    on_bad_image: str = "raise",
    progress: bool = True,
) -> tuple[int, int]:
    """Score this process's share of the images and store it, leaving out what is stored already.

    Every process that torchrun starts takes the images whose position in the sorted list is its
    rank modulo the number of processes, so they share nothing but the folder. After a kill at most
    one file of ``part_size`` images is scored again and no image appears twice. A corrupt image is
    named at the end under ``on_bad_image="raise"``, and stored without a score under ``"drop"``.

    Returns:
        Images whose scores this call stored, and those it could not decode.

    Raises:
        BadImageError: If an image cannot be decoded and ``on_bad_image="raise"``.
        ValueError: If a stored file is damaged, of another teacher or crop, or of an image that has
            changed since; the file is named, nothing is overwritten.
    """
    rank, n_ranks = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    folder.mkdir(parents=True, exist_ok=True)
    images, stored = unlabelled.images, _read_parts(folder, unlabelled, teacher)
    mine = np.arange(rank, len(images), n_ranks)
    todo = mine[~images["image"].iloc[mine].isin(stored["image"]).to_numpy()]
    parts = np.split(todo, range(part_size, len(todo), part_size))
    groups = [x[i : i + batch_size] for x in parts for i in range(0, len(x), batch_size)]
    teacher.model.to(device, memory_format=torch.channels_last).eval()
    batches = crop_batches(unlabelled, groups, unlabelled.crop, on_bad_image=on_bad_image)
    pending: list[tuple[np.ndarray, Tensor, dict[int, str]]] = []
    counts = [(0, 0)]  # of what was stored
    bar = tqdm(total=len(todo), desc="teacher", unit="img", disable=not progress)
    try:
        for rows, crops, bad in batches:
            pending.append((rows, teacher.score(crops, device=device, precision=precision), bad))
            bar.update(len(rows) + len(bad))
            if sum(len(r) + len(b) for r, _, b in pending) >= part_size:
                counts.append(_write_part(folder, unlabelled, teacher, pending))
    finally:
        if pending:  # a corrupt image or an interrupt loses nothing that was scored
            counts.append(_write_part(folder, unlabelled, teacher, pending))
        bar.close()
    n_scored, n_bad = map(sum, zip(*counts, strict=True))
    return n_scored, n_bad


def run_passes(
    teachers: Mapping[str, Teacher], unlabelled: UnlabelledSet, folder: Path, **how: str
) -> tuple[UnlabelledSet, dict[str, np.ndarray]]:
    """Let every teacher score a set of images, each in its folder ``HASH-HEIGHTxWIDTH``.

    ``how`` is that of :func:`teacher_pass`. Returns the images that could be decoded, and their
    scores by teacher, each of shape (N,); under ``on_bad_image="raise"`` no stored pass may have
    dropped an image either.
    """
    passes, errors = {}, []
    for name, teacher in teachers.items():
        where = folder / f"{teacher.hash}-{_crop_name(unlabelled)}"
        n_scored, n_bad = teacher_pass(teacher, unlabelled, where, progress=False, **how)
        teacher.model.cpu()
        passes[name], bad = read_pass(where, unlabelled, teacher)
        errors.append(bad)
        kept = len(unlabelled) - n_scored - n_bad
        print(f"{name}: {n_scored} images scored, {len(bad)} corrupt, {kept} found in {where.name}")
    bad = pd.concat(errors).drop_duplicates("image")
    if len(bad) and how["on_bad_image"] == "raise":
        raise BadImageError(f"{len(bad)} images could not be decoded: {'; '.join(bad['error'])}")
    usable = unlabelled.without(bad)
    names = usable.images["image"]
    scores = {name: table.set_index("image")["score"] for name, table in passes.items()}
    return usable, {name: column[names].to_numpy() for name, column in scores.items()}


def label_folders(
    folders: Sequence[Path], teacher: Path, out: Path, *, crop: tuple[int, int], **how: Any
) -> tuple[int, int]:
    """Run this process's share of a teacher pass on its own GPU, or the CPU: ``iqa label``."""
    first, how["device"], how["precision"] = os.environ.get("RANK", "0") == "0", "cpu", "fp32"
    if torch.cuda.is_available():
        how |= {"device": f"cuda:{os.environ.get('LOCAL_RANK', 0)}", "precision": "bf16"}
    found = scan_images(*folders, crop=crop, on_bad_image=how["on_bad_image"])
    for reason, n in found.left_out["reason"].value_counts().items() if first else ():
        print(f"left out, {reason}: {n}")
    return teacher_pass(Teacher.load(teacher), found, out, progress=first, **how)


def read_pass(
    folder: Path, unlabelled: UnlabelledSet, teacher: Teacher
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a finished teacher pass, in the order of the list.

    Returns ``image``, ``score``, ``teacher`` of what was scored, and ``image``, ``error`` of what
    could not be decoded. Images without a score yet raise a ValueError, as does a foreign file.
    """
    stored = _read_parts(folder, unlabelled, teacher)
    table = unlabelled.images[["image"]].merge(
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
    scores = table.loc[~bad, ["image", "score", "teacher"]].reset_index(drop=True)
    return scores, table.loc[bad, ["image", "error"]].reset_index(drop=True)


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

    Raises:
        BadImageError: If one of these images cannot be decoded.
        ValueError: If there is no image, or ``n`` or ``batch_size`` is 0.
    """
    from torch.utils.benchmark import Timer  # takes seconds, and torch's compiler with it

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
        mse_loss(student(pixels), target).backward()
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


def _write_part(
    folder: Path, unlabelled: UnlabelledSet, teacher: Teacher, pending: list
) -> tuple[int, int]:
    """Store what is pending in a file of its own, and forget it; return scores and errors."""
    rows = np.concatenate([r for r, _, _ in pending]).astype(int)
    scores = torch.cat([s for _, s, _ in pending]).cpu().numpy()
    errors = {row: reason for _, _, bad in pending for row, reason in bad.items()}
    pending.clear()
    if not np.isfinite(scores).all():
        first = unlabelled.images["image"].iloc[rows[~np.isfinite(scores)][0]]
        raise ValueError(f"teacher {teacher.hash} gave {first} a score that is not finite")
    rows = np.concatenate([rows, np.array(list(errors), dtype=int)])
    part = unlabelled.images.iloc[rows][["image", "bytes"]].reset_index(drop=True)
    part["score"] = np.concatenate([scores, np.full(len(errors), np.nan)])
    part["teacher"], part["crop"] = teacher.hash, _crop_name(unlabelled)
    part["error"] = pd.Series([None] * len(scores) + list(errors.values()), dtype="string")
    digest = hashlib.sha256("\n".join(part["image"]).encode()).hexdigest()[:16]
    with atomic_write(folder / f"part-{digest}.parquet") as partial:
        part[list(PASS_COLUMNS)].to_parquet(partial, index=False)
    return len(scores), len(errors)


def _read_parts(folder: Path, unlabelled: UnlabelledSet, teacher: Teacher) -> pd.DataFrame:
    """Read every stored file after checking that each belongs to this pass."""
    parts = [_read_part(path) for path in sorted(folder.glob("part-*.parquet"))]
    stored = pd.concat(parts) if parts else pd.DataFrame(columns=[*PASS_COLUMNS, "file"])
    now, crop = unlabelled.images.set_index("image")["bytes"], _crop_name(unlabelled)
    changed = stored["image"].map(now).fillna(stored["bytes"]) != stored["bytes"]
    whose, which = f"this is teacher {teacher.hash}", f"this pass takes {crop}"
    checks = [
        ("is of teacher {teacher}, " + whose, stored["teacher"] != teacher.hash),
        ("is of crop {crop}, " + which, stored["crop"] != crop),
        ("scores {image}, which has changed since", changed),
        ("scores {image} again", stored["image"].duplicated()),
    ]
    for message, wrong in checks:
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

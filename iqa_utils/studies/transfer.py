"""Train for a stated number of steps, so that students differ only in what they learn from.

The paper compares a network trained on few scores with one trained on many labels. Here both take
the same number of steps from an endless, reshuffled stream of their rows, nothing is selected on
scores, and the last weights count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iqa_utils.backbones import weights_hash
from iqa_utils.distill import Teacher
from iqa_utils.distill.unlabelled import crop_batches
from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD, ImageStore, augment, to_float
from iqa_utils.metrics import rmse, srcc
from iqa_utils.statistics import bootstrap_ci, paired_bootstrap
from iqa_utils.training import FitResult, fit, predict
from iqa_utils.training.batches import Augment, Batch, epoch_seed
from iqa_utils.training.checkpoints import data_digest
from iqa_utils.training.schedules import constant_then_halved
from iqa_utils.workshop.parameters import check_overrides

Stream = Callable[..., Iterator[Batch]]
NORMALISATION = (IMAGENET_MEAN, IMAGENET_STD)  # of every student
WATCHED = 2000  # images behind a point of a curve: all of them would cost as much as the steps
SETTINGS = {"PRECISION": "precision", "COMPILE": "compile", "EPOCHS": "looks"}


def endless_rows(rows: np.ndarray, start: int, n: int, *, seed: int) -> np.ndarray:
    """Cut a piece out of an endless sequence that shows every row once before any row again.

    Args:
        rows: Rows to show, R of them.
        start: Position of the piece, 0 or more.
        n: Its length.
        seed: Each pass over the rows is shuffled by ``(seed, pass)``.

    Returns:
        Rows, shape (n,); neighbouring pieces fit together whatever their lengths.
    """
    first, last = start // len(rows), (start + n - 1) // len(rows)
    passes = [
        np.random.default_rng(epoch_seed(seed, number)).permutation(rows)
        for number in range(first, last + 1)
    ]
    offset = start - first * len(rows)
    return np.concatenate(passes)[offset : offset + n]


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of a batch, the only change that leaves quality as it was."""
    return augment(images, generator=generator)


def file_batches(
    paths: Sequence[Path],
    crop: tuple[int, int],
    rows: np.ndarray,
    scores: np.ndarray,
    *,
    batch_size: int,
    epoch: int = 0,
    augment: Augment | None = None,
    device: torch.device | str = "cpu",
    workers: int | None = None,
) -> Iterator[Batch]:
    """Stream central crops from their files, for sets too large to keep decoded.

    Args:
        paths: Image files, N of them.
        crop: Height and width, pixels.
        rows: Files to show, in this order.
        scores: One score a file, shape (N,).
        batch_size: Images a batch.
        epoch: Seeds ``augment``.
        augment: Function of (uint8 images, generator).
        device: Where the batches go.
        workers: Decoding threads; by default one a core.

    Yields:
        Batches whose input is normalised float32 images, shape (B, 3, height, width).
    """
    generator = torch.Generator().manual_seed(epoch_seed(0, epoch))
    groups = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    names = [str(path) for path in paths]
    for group, crops, _ in crop_batches(paths, groups, crop, workers=workers):
        images = crops.to(device)
        if augment is not None:
            images = augment(images, generator)
        images = to_float(images, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        mos = torch.as_tensor(scores[group], dtype=torch.float32, device=device)
        yield Batch((images,), mos, torch.from_numpy(group), names=names)


@dataclass(frozen=True)
class Plan:
    """How long and how fast a network learns.

    The paper's student: 100,000 steps of 10 images, 1e-4 halved every 20,000 steps.

    Attributes:
        steps: Gradient steps, a multiple of ``looks``.
        batch_size: Images a step.
        learning_rate: Initial rate of Adam.
        halve_every: Steps between halvings.
        looks: How many times the curves are measured.
        seed: Order and augmentation.
    """

    steps: int
    batch_size: int
    learning_rate: float
    halve_every: int
    looks: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.looks < 1 or self.steps % self.looks or self.steps < 1:
            raise ValueError(
                f"steps must be a multiple of looks, got {self.steps} and {self.looks}"
            )

    def shortened(self, share: float) -> Plan:
        """Return the plan with a share of its steps, at least one a look."""
        return replace(self, steps=max(round(self.steps * share / self.looks), 1) * self.looks)


def training_settings(
    names: Sequence[str], overrides: Mapping[str, Mapping[str, Any]], **common: Any
) -> dict[str, dict[str, Any]]:
    """Give every training its settings, and refuse those of a training that is not there.

    Args:
        names: Of all trainings.
        overrides: Name of a training to its own ``PRECISION``, ``COMPILE``, ``EPOCHS`` (looks of
            its plan).
        **common: Settings of the others, by the names of :func:`train`.

    Returns:
        Name to keyword arguments of :func:`train`.

    Raises:
        ValueError: As :func:`iqa_utils.workshop.parameters.check_overrides`.
    """
    check_overrides(overrides, names, {"PRECISION": str, "COMPILE": bool, "EPOCHS": int})
    return {
        name: common | {SETTINGS[key]: value for key, value in overrides.get(name, {}).items()}
        for name in names
    }


def train(
    model: nn.Module,
    stream: Stream,
    rows: np.ndarray,
    scores: np.ndarray,
    plan: Plan,
    *,
    watch: Mapping[str, np.ndarray],
    looks: int | None = None,
    augment: Augment | None = flip,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> FitResult:
    """Train on squared error for a number of steps and keep the last weights.

    The loss is in units of the variance of the scores that are learned.

    Args:
        model: Network on its device; output on the scale of the scores.
        stream: ``stream(rows, scores, batch_size=..., epoch=...)`` gives batches of these rows.
        rows: Rows to learn from.
        scores: What to learn, for every row of the stream, shape (N,); NaN where unknown.
        plan: Steps and rates.
        watch: Name to rows whose SRCC and RMSE make a curve, measured on 2,000 of them at most.
        looks: Instead of those of the plan.
        augment: Variation of training images; None for streams without pixels.
        config: What else decides the outcome.
        **options: Passed on to :func:`iqa_utils.training.fit`.

    Returns:
        The result; its history has ``step``, ``train_loss`` and, for each name watched,
        ``NAME_srcc`` and ``NAME_rmse``.

    Raises:
        ValueError: If a score to learn is unknown.

    Note:
        The paper names neither optimiser nor loss.
    """
    plan = replace(plan, looks=looks or plan.looks)
    learned = np.asarray(scores)[rows]
    if not np.isfinite(learned).all():
        raise ValueError(f"{np.isnan(learned).sum()} of {len(rows)} rows have no score to learn")
    n = plan.steps // plan.looks * plan.batch_size  # images between looks
    variance = float(learned.var()) or 1.0
    vary = {} if augment is None else {"augment": augment}
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=plan.learning_rate, fused=True)
    scheduler = constant_then_halved(optimizer, every=plan.halve_every)

    def evaluate(network: nn.Module) -> dict[str, float]:
        values = {"step": float(scheduler.last_epoch)}
        for name, part in watch.items():
            part = part[:: -(-len(part) // WATCHED)]
            batches = stream(part, scores, batch_size=plan.batch_size)
            pred = predict(network, batches, precision=options.get("precision", "fp32"))
            values[f"{name}_srcc"] = srcc(scores[part], pred)
            values[f"{name}_rmse"] = rmse(scores[part], pred)
        return values

    return fit(
        model,
        lambda look: stream(
            endless_rows(rows, look * n, n, seed=plan.seed),
            scores,
            batch_size=plan.batch_size,
            epoch=look,
            **vary,
        ),
        loss_step=lambda network, batch: F.mse_loss(network(*batch.inputs), batch.mos) / variance,
        evaluate=evaluate,
        optimizer=optimizer,
        scheduler=scheduler,
        schedule_each="batch",
        epochs=plan.looks,
        select="step",
        config={
            **(config or {}),
            "start": weights_hash(model),
            "data": data_digest({"learned": rows, **watch}, scores),
            "plan": asdict(plan),
        },
        seed=plan.seed,
        **options,
    )


@dataclass(frozen=True)
class Lesson:
    """What one student learns.

    Attributes:
        student: Network on its device.
        stream: As in :func:`train`.
        rows: Rows to learn from.
        scores: Of every row of the stream.
        plan: Steps and rates.
        unseen: Rows that are watched and not learned from.
    """

    student: nn.Module
    stream: Stream
    rows: np.ndarray
    scores: np.ndarray
    plan: Plan
    unseen: np.ndarray


def announce(name: str, n: int, plan: Plan, settings: Mapping[str, Any]) -> None:
    """Print what is trained now, so that a log shows where a run is."""
    told = {key: settings[key] for key in SETTINGS.values() if settings.get(key)}
    how = "".join(f", {key} {value}" for key, value in told.items())
    print(
        f"training {name!r}: {n} images, {plan.steps} steps of {plan.batch_size}{how}", flush=True
    )


def teach(
    lessons: Mapping[str, Lesson],
    *,
    config: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Train students one after the other; a killed call finds the finished ones again.

    Args:
        lessons: Name of the student to its lesson.
        config: What decides the pixels; names, plans, initial weights and scores are added.
        settings: Options of single students, by name.
        **options: As :func:`train`, for all.

    Returns:
        The histories, one below the other, with the column ``student``. ``learned_from_...`` is
        measured on as many learned rows as there are unseen ones.
    """
    histories = []
    for name, lesson in lessons.items():
        own = (settings or {}).get(name, {})
        announce(name, len(lesson.rows), lesson.plan, own)
        result = train(
            lesson.student,
            lesson.stream,
            lesson.rows,
            lesson.scores,
            lesson.plan,
            watch={
                "learned_from": lesson.rows[: len(lesson.unseen)],
                "not_learned_from": lesson.unseen,
            },
            config={**config, "student": name},
            progress=False,
            **{**options, **own},
        )
        histories.append(result.history.assign(student=name))
    return pd.concat(histories, ignore_index=True)


def predict_any_size(
    model: nn.Module | Teacher,
    store: ImageStore,
    rows: np.ndarray,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> np.ndarray:
    """Predict whole images of a store whose sizes may differ; equal ones share a batch.

    Args:
        model: A teacher, which brings images to its size, or a network for images of any size.
        store: Decoded images.
        rows: Rows wanted.
        batch_size: Most images a batch.
        device: Where to compute.
        precision: ``"fp32"`` or ``"bf16"``.

    Returns:
        Predictions in the order of ``rows``, shape (N,), float64.
    """
    network = model.model if isinstance(model, Teacher) else model
    scorer = model if isinstance(model, Teacher) else Teacher(model, None, *NORMALISATION)
    network.to(device).eval()
    sizes, pred = np.asarray(store.sizes)[rows], np.empty(len(rows))
    kinds, kind = np.unique(sizes, axis=0, return_inverse=True)
    for number, size in enumerate(kinds):
        same = np.flatnonzero(kind.reshape(-1) == number)
        for start in range(0, len(same), batch_size):
            part = same[start : start + batch_size]
            crops = store.crops(rows[part], tuple(size.tolist()))
            pred[part] = scorer.score(crops, device=device, precision=precision).double().cpu()
    return pred


def compare_students(
    mos: np.ndarray,
    preds: Mapping[str, np.ndarray],
    name: str,
    rivals: Sequence[str],
    *,
    n_resamples: int = 1000,
    seed: int,
) -> pd.DataFrame:
    """Test one network against others on the same images, by paired bootstrap.

    Args:
        mos: Scores of the images, shape (N,).
        preds: Predictions by network, each of shape (N,).
        name: The network in question.
        rivals: The others.
        n_resamples: Draws of the bootstrap.
        seed: Of the draws.

    Returns:
        One row a rival for ``Run.add_results``: the difference in SRCC with its 95 % interval.
    """
    rows = []
    for rival in rivals:
        draws = {"n_resamples": n_resamples, "seed": seed}
        gap = paired_bootstrap(mos, preds[name], preds[rival], srcc, **draws)
        ends = {"value": gap.difference, "ci_low": gap.low, "ci_high": gap.high, "n": len(mos)}
        rows.append({"method": f"{name} minus {rival}", "metric": "SRCC difference", **ends})
    return pd.DataFrame(rows).assign(table="control")


def record(
    labelled: pd.DataFrame,
    rows: np.ndarray,
    pred: np.ndarray,
    *,
    table: str,
    method: str,
    variant: str = "",
    seed: int = 0,
) -> pd.DataFrame:
    """Put predictions beside what they predict.

    Args:
        labelled: Table of :func:`iqa_utils.distill.merging.join_sets`.
        rows: Its rows that were predicted.
        pred: Predictions, shape (N,).
        table: Table of the paper, or ``"control"``.
        method: Row of that table.
        variant: Which teacher.
        seed: Of the training.

    Returns:
        One row an image, with the columns of ``predictions.parquet`` and ``table``, ``subset``.
    """
    facts = labelled.loc[rows, ["image", "dataset", "subset", "mos"]]
    tags = {"table": table, "method": method, "variant": variant, "seed": seed, "split": "test"}
    return facts.assign(pred=pred, **tags)


def defined(results: pd.DataFrame) -> pd.DataFrame:
    """Leave out results without a value, and name them: a constant prediction has no order."""
    for row in results[results["value"].isna()].to_dict("records"):
        named = ", ".join(str(row[key]) for key in ("method", "dataset") if key in row)
        print(f"no {row['metric']}, the predictions are constant: {named}")
    return results.dropna(subset="value")


def score_table(
    predictions: pd.DataFrame, *, n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Turn predictions into SRCC with intervals, in total and within subsets.

    Args:
        predictions: One row an image and method: ``table``, ``method``, ``variant``, ``dataset``,
            ``subset``, ``mos``, ``pred``.
        n_resamples: Bootstrap resamples of an interval.
        seed: Of the resamples.

    Returns:
        One row a number: ``table``, ``method``, ``variant``, ``dataset``, ``metric`` (``SRCC``, and
        ``SRCC SUBSET`` where a set has several), ``value``, ``ci_low``, ``ci_high``, ``n``.
    """
    rows = []
    keys = ["table", "method", "variant", "dataset"]
    for group, part in predictions.groupby(keys, sort=False):
        pieces = {"SRCC": part}
        if len(part["subset"].unique()) > 1:
            pieces |= {f"SRCC {name}": piece for name, piece in part.groupby("subset")}
        for metric, piece in pieces.items():
            mos, pred = piece["mos"].to_numpy(), piece["pred"].to_numpy()
            low, high = bootstrap_ci(mos, pred, srcc, n_resamples=n_resamples, seed=seed)
            row = dict(zip(keys, group, strict=True)) | {"metric": metric, "value": srcc(mos, pred)}
            rows.append(row | {"ci_low": low, "ci_high": high, "n": len(piece)})
    return pd.DataFrame(rows)

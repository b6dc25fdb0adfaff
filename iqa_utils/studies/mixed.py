"""Train one quality regressor on several data sets at once, and score all of them with it.

A :class:`Method` says which curves, loss and data sets; :func:`train_method` runs it in the
:class:`Setup` that all methods share: same trunk, head, batches, schedule and selection. What
differs between two rows of a table is then only what their names say.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from iqa_utils import losses, samplers, training
from iqa_utils.backbones import weights_hash
from iqa_utils.images import IMAGENET_MEAN, IMAGENET_STD
from iqa_utils.images.decode_once import lock
from iqa_utils.losses import fidelity, mean_over_sources, norm_in_norm, smooth_l1
from iqa_utils.metrics import size_weighted, srcc
from iqa_utils.models import monotonic
from iqa_utils.models.monotonic import MonotonicIQA, parameter_groups
from iqa_utils.samplers import Mixing, mixed_batches
from iqa_utils.splits import PARTS
from iqa_utils.studies import mixed_data
from iqa_utils.studies.mixed_data import (
    TOP,
    CroppedImages,
    Frames,
    Parts,
    Pixels,
    TrunkMaps,
    rescale,
)
from iqa_utils.training import FitResult, fit, predict, save_model
from iqa_utils.training.batches import Batch, epoch_seed
from iqa_utils.training.checkpoints import config_key, data_digest
from iqa_utils.training.schedules import constant_then_halved
from iqa_utils.workshop.parameters import check_overrides

# hash of the source that decides a training, as it was loaded: other code, another training
_MODULES = (sys.modules[__name__], mixed_data, losses, samplers, monotonic, training)
_CODE = hashlib.sha256("".join(map(inspect.getsource, _MODULES)).encode()).hexdigest()


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        name: Label.
        variant: Curves, see :class:`iqa_utils.models.monotonic.MonotonicTransformers`.
        n_layers: Depth of the curves.
        loss: ``regression`` on re-scaled scores, or ``ranking`` by fidelity within each set.
        only: Train on this set alone.
        unwarped: Train on the scores before their known maps, on one scale: a ceiling.
    """

    name: str
    variant: str = "identity"
    n_layers: int = 5
    loss: Literal["regression", "ranking"] = "regression"
    only: str | None = None
    unwarped: bool = False


def parse_methods(names: Sequence[str], sets: Sequence[str]) -> list[Method]:
    """Read methods from their short names.

    Args:
        names: ``released``, ``paper``, ``mixed``, ``scalar`` (also with a depth, ``released-3``),
            ``linear`` (re-scaling without curves), ``ranking``, ``unwarped``, ``single:SET``, or
            ``single`` for one method a set.
        sets: Names of the data sets.

    Returns:
        The methods.

    Raises:
        ValueError: If a name is none of these, or wants a set that is not there.
    """
    singles = [f"single:{name}" for name in sets]
    expanded = [m for name in names for m in (singles if name == "single" else [name])]
    absent = sorted({m for m in expanded if m.startswith("single:")} - set(singles))
    if absent:
        raise ValueError(f"methods {absent} need sets that are not among {list(sets)}")
    return [_parse_method(name) for name in expanded]


def _parse_method(name: str) -> Method:
    variant, _, depth = name.partition("-")
    if name == "unwarped":
        return Method(name, unwarped=True)
    if name == "linear":
        return Method(name)
    if name == "ranking":
        return Method(name, loss="ranking")
    if name.startswith("single:"):
        return Method(name, only=name.removeprefix("single:"))
    if variant in ("released", "paper", "mixed", "scalar") and depth in ("", "3", "5", "7"):
        return Method(name, variant, int(depth or 5))
    raise ValueError(
        "a method is released, paper, mixed or scalar (-3, -5, -7), linear, ranking, unwarped, "
        f"single or single:SET, got {name!r}"
    )


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all methods share.

    Attributes:
        backbone: timm trunk.
        pretrained: Its weights, see :func:`iqa_utils.backbones.create_backbone`.
        channels: Channels after a learnt projection, or None for all (published).
        mixing: ``released`` or ``proportional``, see :func:`iqa_utils.samplers.mixed_batches`.
        batch_size: Likewise.
        epochs: Epochs of the mixture.
        lr_trunk: Learning rate of the trunk.
        lr: Learning rate of the rest; both shrink by 0.9 every 3 epochs.
        norm_form: Form of norm-in-norm.
        norm_weight: Its weight beside smooth L1.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        compile: Whether the network is compiled to train.
        test_batch_size: Whole images of one size predicted together.
        device: Where to train.
    """

    backbone: str
    pretrained: str | None
    channels: int | None
    mixing: Mixing
    batch_size: int
    epochs: int
    lr_trunk: float = 3e-5
    lr: float = 3e-4
    norm_form: Literal["eq4", "nin", "l1"] = "l1"
    norm_weight: float = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    test_batch_size: int = 8
    device: str = "cpu"


@dataclass
class Trained:
    """A trained method.

    Attributes:
        method: What was trained.
        model: With the weights of its best epoch.
        spans: Lowest and highest training score of each set.
        result: History and best epoch.
        preprocessing: How images are brought to the size that is predicted.
        demo: Whether the images are made.
        seconds_before: Training time that an earlier process spent and this one did not repeat.
    """

    method: Method
    model: MonotonicIQA
    spans: dict[str, tuple[float, float]]
    result: FitResult
    preprocessing: dict[str, Any]
    demo: bool
    seconds_before: float

    def save(self, path: Path, *, split: int) -> Path:
        """Keep the model for one's own images.

        Args:
            path: ``.safetensors`` file.
            split: Number of the split.

        Returns:
            The path.
        """
        pixels = {**self.preprocessing, "resampler": "bilinear"}
        pixels |= {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        names = self.model.architecture["sources"]
        seen = [f"{name}, training and validation parts of split {split}" for name in names]
        known = {"preprocessing": pixels, "scores_seen": seen}
        known["training_data"] = {"dataset": " + ".join(names), "demo": self.demo}
        return save_model(path, self.model, {**known, "metrics": self.result.best})


def plan_trainings(
    methods: Sequence[Method],
    setup: Setup,
    n_splits: int,
    overrides: Mapping[str, Mapping[str, Any]],
) -> list[tuple[int, Method, Setup]]:
    """List the trainings of a run, split by split.

    Args:
        methods: What to train.
        setup: What all methods share, but for the overrides.
        n_splits: Splits of each method.
        overrides: Method name to ``N_SPLITS``, ``EPOCHS``, ``PRECISION`` or ``COMPILE`` of its own.

    Returns:
        Number of the split, method and settings of each training.

    Raises:
        ValueError: If an override names no method, or no such setting.
    """
    names = [method.name for method in methods]
    check_overrides(
        overrides, names, {"N_SPLITS": int, "EPOCHS": int, "PRECISION": str, "COMPILE": bool}
    )
    trainings = []
    for method in methods:
        own = {key.lower(): value for key, value in overrides.get(method.name, {}).items()}
        splits = range(own.pop("n_splits", n_splits))
        trainings += [(k, method, replace(setup, **own)) for k in splits]
    return sorted(trainings, key=lambda item: item[0])


def train_method(
    method: Method,
    frames: Frames,
    pixels: Pixels,
    parts: Parts,
    setup: Setup,
    *,
    seed: int,
    checkpoint_dir: str | Path | None = None,
    save_seconds: float = 60.0,
) -> Trained:
    """Train one method on the training parts; the epoch is chosen on the validation parts.

    Args:
        method: What to train.
        frames: Score tables by set.
        pixels: Images, or maps of the frozen trunk, by set.
        parts: Part of each row, by set.
        setup: What all methods share.
        seed: Initial weights, order and crops.
        checkpoint_dir: Where trainings are kept by a hash of all that decides them, or None. Runs
            may share it: what one has finished another finds, what one is at another waits for.
        save_seconds: Time between saved states of an unfinished training.

    Returns:
        The trained method. Under frozen maps its trunk is the one that made them.
    """
    started = time.perf_counter()
    names = [method.only] if method.only else list(frames)
    torch.manual_seed(seed)
    model = MonotonicIQA(
        names, backbone=setup.backbone, pretrained=setup.pretrained, channels=setup.channels,
        variant=method.variant, n_layers=method.n_layers,
    )  # fmt: skip
    config = {**asdict(method), **asdict(setup), "code": _CODE, "weights": weights_hash(model)}
    del config["pretrained"]  # a path says less than the weights
    model.to(setup.device)
    frozen = isinstance(pixels[names[0]], TrunkMaps)
    if frozen:
        model.trunk = nn.Identity()  # its work is done
    scaled, spans = {}, {}
    for name in names:
        if method.unwarped:
            scaled[name], spans[name] = TOP * frames[name]["mos_original"].to_numpy(), (0.0, 1.0)
            continue
        mos = frames[name]["mos"].to_numpy(dtype=float)
        scaled[name], spans[name] = rescale(mos, (parts[name] == "training").to_numpy())
    for name in names:
        rows = {part: np.flatnonzero(parts[name] == part) for part in PARTS}
        scores = np.stack([scaled[name], frames[name]["mos"].to_numpy(dtype=float)])
        config[f"data of {name}"] = [pixels[name].key, data_digest(rows, scores)]
    groups = parameter_groups(model, lr_trunk=setup.lr_trunk, lr=setup.lr)
    optimizer = torch.optim.Adam(groups, fused=True)
    alone = nullcontext()
    if checkpoint_dir is not None:
        alone = lock(Path(checkpoint_dir) / f"{config_key({**config, 'seed': seed})}.lock")
    with alone:
        result = fit(
            model,
            training_batches(frames, pixels, parts, scaled, setup, seed=seed),
            loss_step=loss_step(method, setup),
            evaluate=lambda m: validate(m, frames, pixels, parts, setup, names),
            optimizer=optimizer,
            scheduler=constant_then_halved(optimizer, every=3, factor=0.9),
            epochs=setup.epochs,
            precision=setup.precision,
            channels_last=not frozen,
            compile=setup.compile,
            checkpoint_dir=checkpoint_dir,
            save_seconds=save_seconds,
            config=config,
            seed=seed,
            progress=False,
        )
    before = max(0.0, result.seconds - (time.perf_counter() - started))
    if frozen:
        model.trunk = pixels[names[0]].trunk
    demo = any(frames[name].attrs["demo"] for name in names)
    return Trained(method, model, spans, result, pixels[names[0]].preprocessing, demo, before)


def loss_step(method: Method, setup: Setup) -> Callable[[nn.Module, Batch], Tensor]:
    """Return the loss of one mixed batch: each set on its own, the sets averaged."""

    def of_one_set(pred: Tensor, mos: Tensor) -> Tensor:
        if method.loss == "ranking":
            return fidelity(pred, mos)
        norm = norm_in_norm(pred, mos, form=setup.norm_form)
        return smooth_l1(pred, mos) + setup.norm_weight * norm

    return lambda model, batch: mean_over_sources(
        of_one_set, model(*batch.inputs, batch.source).float(), batch.mos, batch.source
    )


def training_batches(
    frames: Frames,
    pixels: Pixels,
    parts: Parts,
    scaled: Mapping[str, np.ndarray],
    setup: Setup,
    *,
    seed: int,
) -> Callable[[int], Iterator[Batch]]:
    """Return the stream of mixed batches of an epoch.

    Args:
        frames: Score tables by set.
        pixels: Images or maps by set.
        parts: Part of each row, by set.
        scaled: Scores to train on, by set; its keys are the sets, in order.
        setup: Mixing and batch size.
        seed: Root seed of order and crops.

    Returns:
        Function of the epoch, counted from 0. ``source`` of a batch numbers the keys of ``scaled``.
    """
    names = list(scaled)
    rows = [np.flatnonzero(parts[name] == "training") for name in names]
    starts = np.cumsum([0, *(len(frames[name]) for name in names)])
    images = [f"{name}/{image}" for name in names for image in frames[name]["image"]]

    def epoch_batches(epoch: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch_seed(seed, epoch, 2))
        sizes = [len(r) for r in rows]
        options = {"batch_size": setup.batch_size, "seed": seed, "epoch": epoch}
        for drawn in mixed_batches(sizes, setup.mixing, **options):
            drawn = drawn[np.argsort(drawn[:, 0], kind="stable")]  # (B, 2), set by set
            chosen = {s: rows[s][drawn[drawn[:, 0] == s, 1]] for s in np.unique(drawn[:, 0])}
            inputs = torch.cat([pixels[names[s]].draw(r, generator) for s, r in chosen.items()])
            mos = np.concatenate([scaled[names[s]][r] for s, r in chosen.items()])
            index = np.concatenate([starts[s] + r for s, r in chosen.items()])
            yield Batch(
                (inputs,),
                torch.as_tensor(mos, dtype=torch.float32),
                torch.as_tensor(index),
                source=torch.as_tensor(drawn[:, 0]),
                names=images,
            )

    return epoch_batches


def validate(
    model: nn.Module, frames: Frames, pixels: Pixels, parts: Parts, setup: Setup, names: list[str]
) -> dict[str, float]:
    """Rank the validation part of each set; ``val_srcc`` weights the sets by all their images.

    A constant prediction ranks nothing and counts as 0. The curves do not change the order, so
    quality is ranked and not its image under a curve.
    """
    values = {}
    for name in names:
        rows = np.flatnonzero(parts[name] == "validation")
        quality = predict_quality(model, pixels[name], rows, setup)
        values[name] = np.nan_to_num(srcc(frames[name]["mos"].to_numpy()[rows], quality))
    weighted = size_weighted(values, {name: len(frames[name]) for name in names})
    return {"val_srcc": weighted, **{f"val_srcc {name}": v for name, v in values.items()}}


def predict_quality(
    model: nn.Module, pixels: CroppedImages | TrunkMaps, rows: np.ndarray, setup: Setup
) -> np.ndarray:
    """Predict the quality of whole images by the regressor alone.

    Args:
        model: Trained network; under maps of a frozen trunk its trunk is passed by.
        pixels: Images or maps of the set.
        rows: Images wanted, N rows.
        setup: Batch size and precision.

    Returns:
        Quality on the model's own scale, shape (N,).
    """
    network = model.head if isinstance(pixels, TrunkMaps) else model
    order, batches = [], pixels.whole(rows, setup.test_batch_size)

    def stream() -> Iterator[Batch]:
        for positions, inputs in batches:
            order.append(positions)
            index = torch.as_tensor(rows[positions])
            yield Batch((inputs,), torch.zeros(len(index)), index)

    quality = predict(network, stream(), precision=setup.precision)
    return quality[np.argsort(np.concatenate(order))]


def predict_test(
    trained: Trained, frames: Frames, pixels: Pixels, parts: Parts, setup: Setup, *, split: int
) -> pd.DataFrame:
    """Predict the test part of every set, those the method never saw included.

    Args:
        trained: From :func:`train_method`.
        frames: Score tables by set.
        pixels: Images or maps by set.
        parts: Part of each row, by set.
        setup: What all methods share.
        split: Number of the split, kept in ``seed``.

    Returns:
        One row an image: the columns of ``predictions.parquet`` (``pred`` is quality),
        ``reference``, ``mapped`` (through the set's curve, on the set's own scale; NaN for sets
        without one) and ``mos_original`` where scores were warped.
    """
    tables = []
    known = trained.model.architecture["sources"]
    for name, table in frames.items():
        rows = np.flatnonzero(parts[name] == "test")
        quality = predict_quality(trained.model, pixels[name], rows, setup)
        columns = ["image", "mos", "reference", *({"mos_original"} & set(table))]
        out = table.iloc[rows][columns].reset_index(drop=True)
        out = out.assign(dataset=name, split="test", seed=split, pred=quality, mapped=np.nan)
        if name in known:
            out["mapped"] = map_quality(trained, name, quality)
        tables.append(out.assign(method=trained.method.name, variant=trained.method.variant))
    return pd.concat(tables, ignore_index=True)


@torch.inference_mode()
def map_quality(trained: Trained, name: str, quality: np.ndarray) -> np.ndarray:
    """Map quality through the curve of one set to scores on that set's own scale.

    Args:
        trained: From :func:`train_method`.
        name: A set it was trained on.
        quality: Shape (N,).

    Returns:
        Scores, shape (N,).
    """
    low, high = trained.spans[name]
    number = trained.model.architecture["sources"].index(name)
    device = next(trained.model.head.parameters()).device
    x = torch.as_tensor(quality, dtype=torch.float32, device=device)
    scores = trained.model.transformers.curves(x)[:, number].double().cpu().numpy()
    return low + scores / TOP * (high - low)
